"""Every figure: the right pictures in the right places, text that does not overlap, the same bytes every time."""

from __future__ import annotations

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


@pytest.mark.parametrize("number", figures.FIGURES)
def test_no_text_overlaps_another_or_leaves_the_figure(number: str, inputs: dict[str, figures.Inputs]) -> None:
    fig = figures.FIGURES[number](inputs[number])
    for (text, box), ax in itertools.product(legible(fig), fig.axes if len(fig.axes) > 1 else []):
        assert not ax.get_window_extent().overlaps(box), f"{text!r} lies on a picture"


@pytest.mark.parametrize("number", figures.FIGURES)
def test_the_title_names_the_data_set_really_used(number: str, inputs: dict[str, figures.Inputs]) -> None:
    assert any("sprites" in t.get_text() for t in texts(figures.FIGURES[number](inputs[number])))


def test_there_is_a_figure_a_caption_and_a_parameter_for_each_number() -> None:
    numbers = list(figures.FIGURES)
    assert numbers == ["1_1", "3_1", *(f"4_{i}" for i in range(1, 10))]
    assert list(captions.SHOWS) == numbers
    assert list(params.FigureData.__dataclass_fields__) == [f"fig{number}" for number in numbers]


def panels(fig: Figure) -> list[np.ndarray]:
    """The picture in each of a figure's axes, in the order that they were drawn."""
    return [np.asarray(ax.images[0].get_array()) for ax in fig.axes]


def test_a_counterfactual_shows_the_originals_at_two_corners(inputs: dict[str, figures.Inputs]) -> None:
    fig = figures.FIGURES["4_2"](inputs["4_2"])
    arrays = inputs["4_2"].arrays()
    block, n = panels(fig)[3], small.SIZE  # row 2 of ranges x methods, pair 2: DiffSiam's first range
    a = arrays["diffsiam_hier"]
    assert len(panels(fig)) == 3 * 2 * 2
    assert np.array_equal(block[:n, :n], a["sources"][1])
    assert np.array_equal(block[-n:, -n:], a["targets"][1])
    assert np.array_equal(block[:n, -n:], a["images"][1, 0, -1])
    assert np.array_equal(block[-n:, :n], a["reverse"][1, 0, -1])


def test_all_of_z_and_ranges_of_it_are_different_figures(inputs: dict[str, figures.Inputs]) -> None:
    labels = {n: [t.get_text() for t in texts(figures.FIGURES[n](inputs[n]))] for n in ("4_1", "4_2", "4_3")}
    assert [label for label in labels["4_1"] if "-" in label] == ["0-2", "2-4", "4-6"]
    assert {"Early\n0-2\nPDAE", "Late\n4-6\nDiffSiam hier."} <= set(labels["4_2"])
    assert {"PDAE", "DiffSiam hier."} <= set(labels["4_3"])
    a = inputs["4_3"].arrays()["pdae"]
    assert np.array_equal(
        panels(figures.FIGURES["4_3"](inputs["4_3"]))[0][: small.SIZE, -small.SIZE :], a["images"][0, 3, 3]
    )


def test_a_range_that_was_not_made_is_named(inputs: dict[str, figures.Inputs]) -> None:
    bad = figures.Inputs("sprites", inputs["4_2"].files, [(0, 2), (2, 4), (3, 5)])
    with pytest.raises(UserError, match=r"\(3, 5\).*generation\.ranges"):
        figures.FIGURES["4_2"](bad)


@pytest.mark.parametrize(("number", "rows"), [("4_5", [0, 2]), ("4_7", [1, 3])])
def test_manipulation_shows_masked_or_full_classifiers(
    number: str, rows: list[int], inputs: dict[str, figures.Inputs]
) -> None:
    """Rows: attribute by attribute, PDAE above DiffSiam; columns: samples."""
    a, n = inputs[number].arrays(), small.SIZE
    expected = [a[m]["images"][row, sample] for row in rows for m in METHODS for sample in (0, 2)]
    drawn = panels(figures.FIGURES[number](inputs[number]))
    assert [np.array_equal(p[:, :n], e[0]) for p, e in zip(drawn, expected, strict=True)] == [True] * 8
    assert [np.array_equal(p[:, -n:], e[-1]) for p, e in zip(drawn, expected, strict=True)] == [True] * 8


def test_methods_stand_side_by_side_in_figure_4_6(inputs: dict[str, figures.Inputs]) -> None:
    a, n = inputs["4_6"].arrays(), small.SIZE
    expected = [a[m]["images"][row, sample, 0] for row in (0, 2) for m in METHODS for sample in (0, 2)]
    drawn = panels(figures.FIGURES["4_6"](inputs["4_6"]))
    assert [np.array_equal(p[:, :n], e) for p, e in zip(drawn, expected, strict=True)] == [True] * 8


def test_the_loss_curves_are_the_histories(inputs: dict[str, figures.Inputs]) -> None:
    (ax,) = figures.FIGURES["4_9"](inputs["4_9"]).axes
    raw = [line.get_ydata() for line in ax.lines[::2]]
    assert np.allclose(raw, [level / np.arange(1, 101) for level in (1.0, 2.0)])
    assert [t.get_text() for t in ax.get_legend().get_texts()] == ["DiffSiam hier.", "DiffSiam hier. detached"]


def test_noise_stands_above_what_is_made_of_it(inputs: dict[str, figures.Inputs]) -> None:
    a, n = inputs["1_1"].arrays()["frozen"], small.SIZE
    second = panels(figures.FIGURES["1_1"](inputs["1_1"]))[1]  # the first image of the second pair
    assert np.array_equal(second[:n, :n], a["originals"][2])
    assert np.array_equal(second[:n, -n:], a["noisy"][2, -1])
    assert np.array_equal(second[-n:, -n:], a["images"][2, -1])


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
