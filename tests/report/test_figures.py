"""Every figure: the right pictures in the right places, text that does not overlap, the same bytes every time."""

from __future__ import annotations

import functools
import itertools
from collections.abc import Callable
from pathlib import Path

import numpy as np
import pytest
from matplotlib.backends.backend_agg import FigureCanvasAgg
from matplotlib.figure import Figure
from matplotlib.text import Text
from matplotlib.transforms import Bbox
from PIL import Image

from diffsiam import params
from diffsiam.errors import UserError
from diffsiam.report import captions, drawings, figures
from tests.report import small_pictures as small

METHODS = ("pdae", "diffsiam_hier")
EARLY_MIDDLE_LATE = [(0, 2), (2, 4), (4, 6)]


@pytest.fixture(scope="module")
def inputs(tmp_path_factory: pytest.TempPathFactory) -> dict[str, figures.Inputs]:
    """What each figure is drawn from."""
    folder = tmp_path_factory.mktemp("arrays")
    pairs = {m: small.counterfactual(folder, m, 10 * i) for i, m in enumerate(METHODS)}
    edits = {m: small.manipulation(folder, m, 10 * i) for i, m in enumerate(METHODS)}
    losses = {"diffsiam_hier": 1.0, "diffsiam_hier_detach": 2.0}
    networks = {"representation": small.record(folder), "diffusion": small.unet(folder)}
    files = {
        "1_1": {"frozen": small.denoise(folder)},
        "3_1": networks,
        "4_1": {"diffsiam_hier": pairs["diffsiam_hier"]},
        **dict.fromkeys(("4_2", "4_3", "4_4"), pairs),
        **dict.fromkeys(("4_5", "4_6", "4_7"), edits),
        "4_8": {"representation": networks["representation"]},
        "4_9": {name: small.history(folder, name, level) for name, level in losses.items()},
    }
    return {number: figures.Inputs("sprites", paths, EARLY_MIDDLE_LATE) for number, paths in files.items()}


@pytest.fixture(scope="module")
def drawn(inputs: dict[str, figures.Inputs]) -> Callable[[str], Figure]:
    """Each figure, drawn once."""
    return functools.cache(lambda number: figures.FIGURES[number](inputs[number]))


@functools.cache
def texts(fig: Figure) -> list[Text]:
    """Every text that is drawn, laid out."""
    FigureCanvasAgg(fig).draw()
    beyond = set()  # labels of ticks outside the axes' limits exist, but are not drawn
    for axis in (axis for ax in fig.axes for axis in (ax.xaxis, ax.yaxis)):
        low, high = sorted(axis.get_view_interval())
        ticks = [*axis.get_major_ticks(), *axis.get_minor_ticks()]
        beyond |= {tick.label1 for tick in ticks if not low <= tick.get_loc() <= high}
    found = [t for t in fig.findobj(Text) if t.get_visible() and t.get_text().strip()]  # type: ignore[attr-defined]
    return [t for t in found if t not in beyond]


def legible(fig: Figure) -> list[tuple[str, Bbox]]:
    """Every text that is drawn and its place, none of which overlaps another or leaves the figure."""
    shown = [(t.get_text(), t.get_window_extent()) for t in texts(fig)]
    assert len(shown) > 2
    for (a, box), (b, other) in itertools.combinations(shown, 2):
        inner = other.padded(-1)
        assert not box.overlaps(inner), f"{a!r} overlaps {b!r}"
    for text, box in shown:
        assert box.x0 >= 0, text
        assert box.y0 >= 0, text
        assert box.x1 <= fig.bbox.x1, text
        assert box.y1 <= fig.bbox.y1, text
    return shown


def check_layout(fig: Figure) -> None:
    """Every text is `legible`, and none lies on a picture."""
    for (text, box), ax in itertools.product(legible(fig), [ax for ax in fig.axes if ax.images]):
        assert not ax.get_window_extent().overlaps(box), f"{text!r} lies on a picture"


def check_readable(fig: Figure) -> None:
    """`check_layout`, and letters of 7 pixels and more where the figure is 900 pixels wide, as a README shows it."""
    check_layout(fig)
    for text in texts(fig):
        assert text.get_fontsize() / 72 * README / fig.get_figwidth() >= 7, text.get_text()


@pytest.mark.parametrize("number", figures.FIGURES)
def test_no_text_overlaps_another_or_leaves_the_figure(number: str, drawn: Callable[[str], Figure]) -> None:
    check_layout(drawn(number))


@pytest.mark.parametrize("number", figures.FIGURES)
def test_the_title_names_the_data_set_really_used(number: str, drawn: Callable[[str], Figure]) -> None:
    assert any("sprites" in t.get_text() for t in texts(drawn(number)))


def test_there_is_a_figure_a_caption_and_a_parameter_for_each_number() -> None:
    numbers = list(figures.FIGURES)
    assert numbers == ["1_1", "3_1", *(f"4_{i}" for i in range(1, 10))]
    assert list(captions.SHOWS) == numbers
    assert list(params.FigureData.__dataclass_fields__) == [f"fig{number}" for number in numbers]


def panels(fig: Figure) -> list[np.ndarray]:
    """The picture in each of a figure's axes, in the order that they were drawn."""
    return [np.asarray(ax.images[0].get_array()) for ax in fig.axes]


README = 900  # pixels that a README gives a picture in width
LETTERS, PICTURES = 9, 38  # pixels that an eye needs of a letter's height, and of the side of an image


@pytest.mark.parametrize("number", figures.FIGURES)
def test_letters_and_images_are_large_enough_at_the_width_of_a_readme(
    number: str, drawn: Callable[[str], Figure]
) -> None:
    fig = drawn(number)
    inch = README / fig.get_figwidth()
    assert min(t.get_fontsize() for t in texts(fig)) / 72 * inch >= LETTERS
    for ax in (ax for ax in fig.axes if ax.images):
        assert ax.images[0].get_interpolation() == "nearest"
        shown = ax.get_position().width * README / ax.images[0].get_array().shape[1] * small.SIZE
        assert shown >= PICTURES, number


@pytest.mark.parametrize("number", ["4_1", "4_2", "4_3", "4_4"])
def test_both_ways_of_a_pair_run_from_left_to_right(
    number: str, inputs: dict[str, figures.Inputs], drawn: Callable[[str], Figure]
) -> None:
    """Row 1 of the figure's first method (x_T alone), pair 2."""
    name, a = next(iter(inputs[number].arrays().items()))
    block, n = panels(drawn(number))[1], small.SIZE
    assert name == ("diffsiam_hier" if number == "4_1" else "pdae")
    step = n + 1  # a white line of a pixel between two images
    for top, original, way in ((0, "sources", "images"), (step, "targets", "reverse")):
        row = [block[top : top + n, c * step : c * step + n] for c in range(6)]
        assert np.array_equal(row[0], a[original][1])
        assert [np.array_equal(row[1 + s], a[way][1, 0, s]) for s in range(4)] == [True] * 4


def test_figure_4_1_has_x_T_alone_then_each_range_with_the_others_x_T_and_with_its_own(
    inputs: dict[str, figures.Inputs],
    drawn: Callable[[str], Figure],
) -> None:
    fig, a = drawn("4_1"), inputs["4_1"].arrays()["diffsiam_hier"]
    labels = [t.get_text().split("\n") for t in texts(fig) if "\nchange" in t.get_text()]
    x_T, n = "$\\mathbf{x}_T$", small.SIZE
    ranges = [f"segments {span}" for span in ("0-2", "2-4", "4-6")]
    kinds = [[words, kind] for kind in (f"and {x_T}", f"own {x_T}") for words in ranges]
    assert [label[:-1] for label in labels] == [[f"{x_T} alone"], *kinds]
    ends = [p[:n, 4 * n + 4 : 5 * n + 4] for p in panels(fig)[::2]]  # pair 1, scale 1
    expected = [a["images"][0, row, -1] for row in (0, 1, 2, 3, 6, 7, 8)]
    assert [np.array_equal(p, e) for p, e in zip(ends, expected, strict=True)] == [True] * 7


def test_the_change_of_a_row_is_what_its_segments_alone_change(tmp_path: Path) -> None:
    """From x_T alone, or from the reconstruction, worked out by hand: ranges change 2, 3 and 4 of 255 everywhere."""
    arrays = dict(np.load(small.counterfactual(tmp_path, "diffsiam_hier")))
    levels = np.array([100, 102, 103, 104, 120, 60, 62, 63, 64, 80], np.uint8)  # x_T alone moves by 40
    for way in ("images", "reverse"):
        arrays[way] = np.broadcast_to(levels[:, None, None, None, None], arrays[way].shape)
    np.savez(tmp_path / "a.npz", **arrays)
    fig = figures.FIGURES["4_1"](figures.Inputs("sprites", {"diffsiam_hier": tmp_path / "a.npz"}))
    shown = [t.get_text() for t in texts(fig)]
    found = [float(text.rpartition("change ")[2]) for text in shown if "\nchange" in text]
    assert found == [40, 2, 3, 4, 2, 3, 4]
    assert "change\nx32" in shown  # the largest power of 2 by which 4 stays below white
    tiles = [int(p[0, -1, 0]) for p in panels(fig)[::2]]
    assert tiles == [255, 64, 96, 128, 64, 96, 128]


def test_arrays_of_a_version_before_are_drawn_without_changes(tmp_path: Path) -> None:
    inputs = figures.Inputs("sprites", {"diffsiam_hier": small.counterfactual_of_before(tmp_path, "diffsiam_hier")})
    fig, a = figures.FIGURES["4_1"](inputs), inputs.arrays()["diffsiam_hier"]
    assert not any("hange" in t.get_text() for t in texts(fig))
    assert [np.array_equal(p[: small.SIZE, -small.SIZE :], a["images"][0, row, -1]) for row, p in
            enumerate(panels(fig)[::2])] == [True] * 3  # fmt: skip


def test_methods_whose_rows_differ_are_named(tmp_path: Path) -> None:
    files = {"pdae": small.counterfactual(tmp_path, "pdae")}
    files["diffsiam_hier"] = small.counterfactual_of_before(tmp_path, "diffsiam_hier")
    with pytest.raises(UserError, match=r"before_diffsiam_hier.npz: .*counterfactual_pdae.npz.*exchange_noise"):
        figures.FIGURES["4_3"](figures.Inputs("sprites", files))


def test_columns_that_are_too_many_stand_below_the_others() -> None:
    """Of 5 blocks of 6 images a row of 9 inches takes 3 beside the label; text that is too long is broken."""
    blocks = [[np.full((1, 6, 8, 8, 3), c, np.uint8) for c in range(5)]]
    words = 30 * "title ", 60 * "note "
    fig = figures.Grid(*words, blocks, ["a\nb\nc\nd"], [f"above {c}" for c in range(5)], ["change\nx16"] * 6).draw()
    check_layout(fig)
    assert fig.get_figwidth() == figures.WIDTH
    places = [ax.get_position() for ax in fig.axes]
    assert [p[0, 0, 0] for p in panels(fig)] == [0, 1, 2, 3, 4]
    assert [round(p.x0, 6) for p in places[3:]] == [round(p.x0, 6) for p in places[:2]]
    assert [p.y0 < places[0].y0 for p in places] == [False] * 3 + [True] * 2


def test_all_of_z_and_ranges_of_it_are_different_figures(
    inputs: dict[str, figures.Inputs], drawn: Callable[[str], Figure]
) -> None:
    labels = {n: [t.get_text().rpartition("\n")[0] for t in texts(drawn(n))]
              for n in ("4_2", "4_3")}  # fmt: skip
    along, own = "and $\\mathbf{x}_T$", "own $\\mathbf{x}_T$"
    assert {f"Early 0-2\n{along}\nPDAE", f"Late 4-6\n{own}\nDiffSiam hier."} <= set(labels["4_2"])
    assert {f"all of z\n{kind}\n{name}" for kind in (along, own) for name in ("PDAE", "DiffSiam hier.")} <= set(
        labels["4_3"]
    )
    a, n = inputs["4_3"].arrays()["pdae"], small.SIZE
    picture = panels(drawn("4_3"))[4]  # after two rows of x_T alone
    assert np.array_equal(picture[:n, 4 * n + 4 : 5 * n + 4], a["images"][0, 4, 3])


def test_a_range_that_was_not_made_is_named(inputs: dict[str, figures.Inputs]) -> None:
    bad = figures.Inputs("sprites", inputs["4_2"].files, [(0, 2), (2, 4), (3, 5)])
    with pytest.raises(UserError, match=r"\(3, 5\).*generation\.ranges"):
        figures.FIGURES["4_2"](bad)


@pytest.mark.parametrize(("number", "rows"), [("4_5", [0, 2]), ("4_7", [1, 3])])
def test_manipulation_shows_masked_or_full_classifiers(
    number: str, rows: list[int], inputs: dict[str, figures.Inputs], drawn: Callable[[str], Figure]
) -> None:
    """Rows: attribute by attribute, PDAE above DiffSiam; columns: samples; the last image is what changed."""
    a, n = inputs[number].arrays(), small.SIZE
    expected = [a[m]["images"][row, sample] for row in rows for m in METHODS for sample in (0, 2)]
    for p, e in zip(panels(drawn(number)), expected, strict=True):
        assert np.array_equal(p[:, :n], e[0])
        assert np.array_equal(p[:, -2 * n - 1 : -n - 1], e[-1])
        assert np.array_equal(p[:, -n:], np.abs(e[-1].astype(int) - e[0]))  # random images: by a factor of 1


def test_methods_stand_side_by_side_in_figure_4_6(
    inputs: dict[str, figures.Inputs], drawn: Callable[[str], Figure]
) -> None:
    a, n = inputs["4_6"].arrays(), small.SIZE
    expected = [a[m]["images"][row, sample, 0] for row in (0, 2) for sample in (0, 2) for m in METHODS]
    fig = drawn("4_6")
    assert [np.array_equal(p[:, :n], e) for p, e in zip(panels(fig), expected, strict=True)] == [True] * 8
    change = [np.abs(a[m]["images"][0, 2, -1].astype(int) - a[m]["images"][0, 2, 0]).mean() for m in METHODS]
    label = f"Wearing Hat, 128 dim.\ntest image 33\nchange {change[0]:.1f} | {change[1]:.1f}"
    assert label in [t.get_text() for t in texts(fig)]


def test_a_row_whose_columns_wrap_says_what_changed_beside_it() -> None:
    block = np.zeros((1, 6, 8, 8, 3), np.uint8)
    ticks = ["original", "0.25", "0.5", "0.75", "1", "change"]
    grid = figures.Grid("title", "note", [[block] * 4], ["row"], list("abcd"), ticks, [["1", "2", "3", "4"]])
    found = [t.get_text() for t in texts(grid.draw()) if t.get_text().startswith("row")]
    assert len(found) > 1
    assert " | ".join(label.removeprefix("row\nchange ") for label in found) == "1 | 2 | 3 | 4"


def test_the_loss_curves_are_the_histories(drawn: Callable[[str], Figure]) -> None:
    (ax,) = drawn("4_9").axes
    raw = [line.get_ydata() for line in ax.lines[::2]]
    assert np.allclose(raw, [level / np.arange(1, 101) for level in (1.0, 2.0)])
    assert [t.get_text() for t in ax.get_legend().get_texts()] == ["DiffSiam hier.", "DiffSiam hier. detached"]


def test_noise_stands_above_what_is_made_of_it(
    inputs: dict[str, figures.Inputs], drawn: Callable[[str], Figure]
) -> None:
    a, n = inputs["1_1"].arrays()["frozen"], small.SIZE
    noisy, made, lost = panels(drawn("1_1"))[3:]  # the first image of the second pair
    assert np.array_equal(noisy[:, :n], a["originals"][2])
    assert np.array_equal(noisy[:, -n:], a["noisy"][2, -1])
    assert np.array_equal(made[:, -n:], a["images"][2, -1])
    assert np.array_equal(lost[:, -n:], np.abs(a["images"][2, -1].astype(int) - a["originals"][2]))


def test_a_history_without_a_diffusion_term_is_refused(tmp_path: Path) -> None:
    (tmp_path / "h.csv").write_text("step,loss\n1,2\n")
    with pytest.raises(UserError, match="no column 'diffusion'; met step, loss"):
        figures.FIGURES["4_9"](figures.Inputs("sprites", {"diffsiam_hier": tmp_path / "h.csv"}))
    with pytest.raises(UserError, match=r"none.csv: no such file"):
        figures.FIGURES["4_9"](figures.Inputs("sprites", {"diffsiam_hier": tmp_path / "none.csv"}))


def test_the_drawing_has_the_sizes_of_the_real_networks(inputs: dict[str, figures.Inputs]) -> None:
    """ResNet-10 of width 4 at 16x16 by hand: 4 channels, doubled and halved in size per stage."""
    files = inputs["3_1"].files
    s = drawings.shapes(files["representation"], files["diffusion"])
    assert [(b.width, b.side_out) for b in s.stages] == [(4, 16), (8, 8), (16, 4), (32, 2)]
    assert (s.projector, s.predictor) == ([32, 128, 128], [128, 32, 128])
    assert [(b.width, b.side) for b in s.down] == [(8, 16), (16, 8)]
    assert [(b.width, b.side) for b in s.up] == [(16, 8), (8, 16)]


def test_a_drawing_of_more_levels_has_room_for_them() -> None:
    blocks = [drawings.Block(64 * (i + 1), 128 >> i, 128 >> i) for i in range(6)]
    s = drawings.Shapes(
        128, 512, 64, blocks[:4], [512, 2048, 2048], [2048, 512, 2048], blocks, blocks[-1], blocks[::-1]
    )
    check_layout(drawings.architecture("FFHQ", s))


@pytest.mark.parametrize(("strategy", "expected"), [("hierarchical", [1, 1, 1, 0]), ("sequential", [0, 0, 1, 0])])
def test_the_strategies_keep_what_the_thesis_says(strategy: str, expected: list[int]) -> None:
    assert drawings.kept(strategy, 3, 8, 4) == [bool(x) for x in expected]


def test_files_are_300_dpi_and_the_same_bytes_every_time(tmp_path: Path, inputs: dict[str, figures.Inputs]) -> None:
    for name in ("a", "b"):
        figures.run("4_3", inputs["4_3"], tmp_path / f"{name}.png")
    with Image.open(tmp_path / "a.png") as image:
        assert round(image.info["dpi"][0]) == 300
    assert (tmp_path / "a.pdf").read_bytes()[:5] == b"%PDF-"
    for suffix in (".png", ".pdf"):
        assert (tmp_path / f"a{suffix}").read_bytes() == (tmp_path / f"b{suffix}").read_bytes()


@pytest.mark.parametrize(
    ("make", "words"),
    [
        (lambda path: None, "no such file"),
        (lambda path: path.write_bytes(b"half a"), "not a complete .npz"),
    ],
)
def test_arrays_that_are_missing_or_damaged_are_named(
    make: Callable[[Path], object], words: str, tmp_path: Path
) -> None:
    make(tmp_path / "denoise.npz")
    with pytest.raises(UserError, match=f"denoise.npz: {words}"):
        figures.run("1_1", figures.Inputs("sprites", {"frozen": tmp_path / "denoise.npz"}), tmp_path / "x.png")


@pytest.mark.parametrize(("number", "other", "missing"), [("4_1", "4_5", "reverse"), ("4_5", "1_1", "masked")])
def test_arrays_of_another_figure_are_named(
    number: str, other: str, missing: str, inputs: dict[str, figures.Inputs], tmp_path: Path
) -> None:
    with pytest.raises(UserError, match=rf"npz: lacks .*{missing}.*; met .*originals"):
        figures.run(number, inputs[other], tmp_path / "x.png")


def test_an_unknown_figure_lists_the_known_ones(tmp_path: Path) -> None:
    with pytest.raises(UserError, match=r"4_10.*1_1, 3_1"):
        figures.run("4_10", figures.Inputs("sprites", {}), tmp_path / "x.png")
