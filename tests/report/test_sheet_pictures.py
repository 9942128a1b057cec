"""Sheets of test images, maps and segments: the right pictures and words, legible at the width of a README."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import matplotlib
import numpy as np
import pytest
from matplotlib.colors import to_rgba
from matplotlib.figure import Figure

from diffsiam import cli, runtime
from diffsiam.report import confusion, embedding, entries, figures, neighbours, segments_attributes
from tests.report import small_pictures as small
from tests.report import test_confusion
from tests.report.small_pictures import pictures
from tests.report.test_figures import legible, texts

QUERIES, SHOWN = 6, 5
CLASSES = ["airplane", "automobile, of a long name", "bird"]


def nearest(method: str, seed: int, classes: bool = True, **more: Any) -> dict[str, np.ndarray]:
    made: dict[str, Any] = {"method": method, "dataset": "CIFAR10", "names": CLASSES, "classes": classes, "tests": 900}
    made |= {"queries": 1000 * np.arange(QUERIES), "images": pictures(QUERIES, 1 + SHOWN, seed=seed)}
    same = np.zeros((QUERIES, SHOWN))
    same[2, 3] = same[5, 0] = 1
    made |= {"same": same, "labels": np.arange(QUERIES)[:, None] % 3, "agreement": 0.75, "ci95": 0.02, "chance": 0.1}
    return {key: np.asarray(value) for key, value in (made | more).items()}


def points(method: str, **more: Any) -> dict[str, np.ndarray]:
    rng = np.random.default_rng(len(method))
    shown = np.minimum(np.arange(90) % 12, np.arange(90) // 4)[:, None]
    made: dict[str, Any] = {"method": method, "names": [f"class {i}" for i in range(12)], "classes": True}
    made |= {"xy": rng.normal(size=(90, 2)), "shown": shown, "trustworthiness": 0.913, "perplexity": 30.0}
    return {key: np.asarray(value) for key, value in (made | more).items()}


def cut(method: str, count: int = 32, low: float = 0.1) -> dict[str, Any]:
    names, rng = [f"Attribute {i}" for i in range(16)], np.random.default_rng(0)
    chance = rng.uniform(5, 50, 16)
    ap = chance + rng.uniform(0, 30, (count, 16))
    ap[3, 7] = 100
    made = {"method": method, "dataset": "sprites", "attributes": names, "chance": chance.tolist(), "ap": ap.tolist()}
    made |= {"all": (chance + 40).tolist(), "low": names[0], "high": names[7], "difference": 0.25, "ci95": [low, 0.4]}
    return made


FIGURES = {
    "neighbours": lambda: neighbours.draw([nearest(m, i) for i, m in enumerate(("pdae", "frozen_dm", "pixels"))], "a"),
    "two of them": lambda: neighbours.draw([nearest(m, i) for i, m in enumerate(("diffsiam_hier", "pixels"))], "a"),
    "embedding": lambda: embedding.draw([points(m) for m in ("untrained", "pdae", "diti", "diffsiam_seq")], "a"),
    "segments": lambda: segments_attributes.draw([cut("diffsiam_seq"), cut("diffsiam_hier"), cut("diti", 64)]),
}


@pytest.mark.parametrize("name", FIGURES)
def test_words_overlap_nowhere_and_can_be_read_where_the_figure_is_900_pixels_wide(name: str) -> None:
    fig = FIGURES[name]()
    legible(fig)
    assert all((ax.images or ax.collections) for ax in fig.axes if ax.axison)  # no empty panel
    assert all(ax.get_window_extent().x1 < fig.bbox.x1 - 2 for ax in fig.axes)
    for text in texts(fig):
        assert text.get_fontsize() / 72 * 900 / fig.get_size_inches()[0] >= 7, text.get_text()


PRICED = "$_$"  # as a formula it ends the drawing


def priced(folder: Path) -> dict[str, Figure]:
    """Every figure that has names of a user's data set, each name with two dollar signs."""
    truth = [[5, 5, 0], [0, 9, 1], [0, 0, 10]]
    mistakes = test_confusion.found(folder, [test_confusion.result("pdae", 0, truth, [f"{c}{PRICED}" for c in "abc"])])
    with np.load(small.manipulation(folder, "pdae")) as arrays:
        edits = {**arrays, "attributes": np.array([PRICED] * 4)}
    np.savez(folder / "edits.npz", **edits)
    inputs = figures.Inputs("a", {"pdae": folder / "edits.npz"}, [])
    return {
        "neighbours": neighbours.draw([nearest("pdae", 0, names=[PRICED] * 3)], "a"),
        "embedding": embedding.draw([points("pdae", names=[PRICED] * 12)], "a"),
        "segments": segments_attributes.draw([cut("pdae") | {"attributes": [PRICED] * 16}]),
        "confusion": confusion.draw(mistakes),
        **{number: figures.FIGURES[number](inputs) for number in ("4_5", "4_6", "4_7")},
    }


def test_dollar_signs_in_a_name_are_drawn_as_they_are(tmp_path: Path) -> None:
    for name, fig in priced(tmp_path).items():
        assert any(PRICED in text.get_text().replace(r"\$", "$") for text in texts(fig)), name


# -------------------------------------------------------------------------------------------------- neighbours
def test_a_query_stands_left_of_its_neighbours_and_those_of_its_class_are_framed() -> None:
    records = [nearest("pdae", 1), nearest("pixels", 2)]
    query, z, pixels = neighbours.draw(records, "CIFAR10").axes
    shown = [ax.images[0].get_array() for ax in (query, z, pixels)]
    side, step = 8, 9
    for row in range(QUERIES):
        top = slice(row * step, row * step + side)
        assert np.array_equal(shown[0][top, :side], records[0]["images"][row, 0])
        for drawn, record in zip(shown[1:], records, strict=True):
            assert np.array_equal(drawn[top, 4 * step : 4 * step + side], record["images"][row, 5])
    frames = [(patch.get_x(), patch.get_y(), patch.get_width()) for patch in z.patches]
    assert frames == [(3 * step - 0.5, 2 * step - 0.5, side), (-0.5, 5 * step - 0.5, side)]
    assert z.get_title() == "PDAE\n75.0 ± 2.0 % agree"


def test_the_caption_gives_the_agreement_with_its_interval_and_chance_and_says_where_nothing_is_known() -> None:
    said = neighbours.shows([nearest("pdae", 1), nearest("pixels", 2, agreement=0.5)])
    assert "of the 5 nearest of each of 900 test images, the share that are of its class" in said
    assert "PDAE 75.0 ± 2.0 %, Pixels 50.0 ± 2.0 %; of images at random 10.0 %." in said
    assert "have each of its attributes" in neighbours.shows([nearest("pdae", 1, classes=False)])
    unknown = nearest("pdae", 1, classes=False, agreement=np.nan, names=[], labels=np.zeros((QUERIES, 0)))
    assert "nothing is known" in neighbours.shows([unknown])
    fig = neighbours.draw([unknown], "birds")
    assert [ax.patches[:] for ax in fig.axes] == [[], []]


# --------------------------------------------------------------------------------------------------- embedding
def test_points_have_the_colour_of_their_class_and_the_rarest_are_grey() -> None:
    record = points("pdae")
    (ax,) = embedding.draw([record], "CIFAR10").axes
    counts = np.bincount(record["shown"][:, 0])
    kept = sorted(sorted(range(12), key=lambda k: (-counts[k], k))[:10])
    grey, *groups = ax.collections
    assert len(grey.get_offsets()) == sum(counts[k] for k in range(12) if k not in kept)
    for k, colour, group in zip(kept, matplotlib.colormaps["tab10"].colors, groups, strict=True):
        assert np.array_equal(group.get_offsets(), record["xy"][record["shown"][:, 0] == k])
        assert tuple(group.get_facecolor()[0]) == to_rgba(colour)
    assert ax.get_title() == "PDAE\ntrustworthiness 0.91"


def test_without_classes_the_attribute_of_nearest_to_half_of_the_images_colours_them() -> None:
    shown = (np.arange(90)[:, None] < [80, 50, 3]).astype(int)
    record = points("pdae", classes=False, shown=shown, names=["Young", "Smiling", "Bald"])
    names, colour = embedding.groups(record)
    assert names == ["not Smiling", "Smiling"]
    assert np.array_equal(colour, shown[:, 1])
    assert "coloured by not Smiling, Smiling. Trustworthiness" in embedding.shows([record])
    assert "without colours" in embedding.shows([points("pdae", shown=np.zeros((90, 0), int), names=[])])


# ---------------------------------------------------------------------------------------------------- segments
def test_a_field_is_what_its_segment_tells_above_chance_and_a_dot_marks_the_best() -> None:
    record = cut("diffsiam_hier")
    ax = segments_attributes.draw([record]).axes[0]
    grid = np.ma.filled(ax.images[0].get_array(), np.nan)
    assert grid[7, 3] == pytest.approx(100 - record["chance"][7])
    assert np.isnan(grid[:, 32]).all()
    np.testing.assert_allclose(grid[:, 33], 40)
    best, rows = ax.lines[0].get_data()
    assert (best[7], rows[7]) == (3, 7)
    assert best.tolist() == np.argmax(record["ap"], axis=0).tolist()  # of the segments, though all of z tells more
    assert ax.get_yticklabels()[7].get_text() == f"Attribute 7 ({record['chance'][7]:.0f} %)"


@pytest.mark.parametrize(("low", "verdict"), [(0.1, "they lie apart"), (-0.1, "that they lie apart is not seen")])
def test_the_caption_says_whether_attributes_are_seen_to_lie_apart(low: float, verdict: str) -> None:
    said = segments_attributes.shows([cut("diffsiam_hier", low=low)])
    assert f"Attribute 7 less Attribute 0 +0.250 ({low:+.3f} to +0.400), {verdict};" in said
    assert "best segments of 32: Attribute 0 " in said
    assert "Attribute 7 4," in said  # the fourth, from 1


@pytest.mark.parametrize("word", ["neighbours", "embedding", "segments_attributes"])
def test_the_command_draws_what_the_page_shows(word: str, tmp_path: Path) -> None:
    files = {"neighbours": nearest("pdae", 1), "embedding": points("pdae"), "segments_attributes": cut("diti")}
    path = tmp_path / "sheet"
    if word == "segments_attributes":
        runtime.write_json(path, files[word])
    else:
        with path.open("wb") as f:
            np.savez(f, **files[word])
    results = tmp_path / "results"
    words = ["figure", word, "--dataset", "sprites", "--input", f"a={path}", "--params", "{}"]
    assert cli.main([*words, "--out", str(results / "figures" / f"{word}.png")]) == 0
    (entry,) = [entry for section in entries.SECTIONS.values() for entry in section if entry.name == word]
    assert entry.made(results)
    assert (results / entry.shows).read_text().startswith("**This run** (sprites): ")
