"""The figure of swaps: its rows say what each code moved, and methods stand side by side."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest

from diffsiam import cli
from diffsiam.report import swaps
from tests.report.test_figures import check_readable

CODES, SHOWN, SIDE = 3, 4, 8


def arrays(method: str, *, partial: bool) -> dict[str, np.ndarray]:
    """Images of one grey level for each row: 50 for code 0, 51 for code 1, and so on."""
    rows = np.arange(49, 49 + CODES + 2, dtype=np.uint8)[:, None, None, None, None]
    images = np.broadcast_to(rows, (CODES + 2, SHOWN, SIDE, SIDE, 3))
    made = {"dataset": np.array("rooms"), "method": np.array(method), "seed": np.array(0)}
    made |= {"factors": np.array(["wall hue", "shape"]), "accuracy": np.array([1.0, 0.97])}
    made |= {"sources": images[0] + 100, "targets": images[0] + 150, "swap": images}
    made |= {"swap_moved": np.array([[0.8, 0.2], [0, np.nan], [0.1, 0.5], [0.9, 0.7]])}
    made |= {"swap_carried": np.array([[0, 0.75, 0.25], [0, 0.25, np.nan], [1, 0.5, 0.1]])}
    if partial:
        made |= {"partial_target": images[0, 0] + 150, "partial": images + 50}
        made |= {"partial_moved": made["swap_moved"], "partial_carried": made["swap_carried"]}
    return made


def test_a_panel_has_a_row_for_each_code_between_none_and_all() -> None:
    panel = swaps.swapped(arrays("disdiff", partial=True))
    assert panel.images[:, 0, 0, 0, 0].tolist() == [199, 149, 49, 50, 51, 52, 53]
    assert panel.labels == [
        *("target", "source", "no code"),
        *("0: wall hue 0.75; 0.25", "1: wall hue 0.25; -", "2: shape 0.50; 0.10"),
        "all: 0.80",
    ]
    panel = swaps.alone(arrays("disdiff", partial=True))
    assert panel.images[:, 0, 0, 0, 0].tolist() == [199, 99, 100, 101, 102, 103]
    assert (panel.images[0, 1:] == 255).all()
    assert panel.labels[:2] == ["target", "no code"]


def test_methods_stand_side_by_side_and_one_without_fields_of_its_codes_has_swaps_alone() -> None:
    fig = swaps.draw([arrays("disdiff", partial=True), arrays("diffsiam_hier", partial=False)])
    drawn = [ax for ax in fig.axes if ax.images]
    assert [ax.get_title().split("\n")[0] for ax in drawn] == [
        *("DisDiff, rooms", "DiffSiam hier., rooms"),
        "DisDiff, rooms",
    ]
    ticks, labels = drawn[0].get_yticks(), [label.get_text() for label in drawn[0].get_yticklabels()]
    picture = drawn[0].images[0].get_array()
    levels = {text: picture[round(tick), 2, 0] for tick, text in zip(ticks, labels, strict=True)}
    assert levels["target"] == 199
    assert levels["2: shape 0.50; 0.10"] == 52
    assert levels["all: 0.80"] == 53


@pytest.mark.parametrize("count", [1, 2, 5])
def test_panels_stand_in_rows_that_can_be_read_where_the_figure_is_900_pixels_wide(count: int) -> None:
    names = ("disdiff", "disdiff_plain", "diti", "pdae", "diffsiam_hier_detach")
    fig = swaps.draw([arrays(name, partial=name.startswith("dis")) for name in names[:count]])
    check_readable(fig)
    assert len([ax for ax in fig.axes if ax.images]) == count + min(count, 2)


def test_the_caption_gives_means_over_codes_and_what_the_classifier_knows() -> None:
    text = swaps.shows([arrays("disdiff", partial=True), arrays("pdae", partial=False)])
    assert "DisDiff, rooms: swaps 0.50 (2 of 2 factors; all codes 0.80), all others 0.17" in text
    assert "one code alone 0.50 (2 of 2 factors; all codes 0.80), less the next 0.17" in text
    assert text.count("one code alone") == 1
    assert "wall hue 1.00, shape 0.97" in text


def test_the_command_draws_it_and_without_data_sets_says_so(tmp_path: Path) -> None:
    np.savez(tmp_path / "a.npz", **arrays("disdiff", partial=True))
    named = ["--input", f"a={tmp_path / 'a.npz'}", "--out", str(tmp_path / "swaps.png")]
    assert cli.main(["figure", "swaps", "--dataset", "rooms", *named, "--params", "{}"]) == 0
    assert {path.suffix for path in tmp_path.glob("swaps.*")} == {".png", ".pdf", ".rst"}
    assert swaps.shows([]) == "nothing was measured."
    assert "nothing was measured" in swaps.draw([]).texts[0].get_text()


def test_an_array_of_another_figure_is_named(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    np.savez(tmp_path / "a.npz", images=np.zeros(3))
    named = ["--input", f"a={tmp_path / 'a.npz'}", "--out", str(tmp_path / "swaps.png")]
    assert cli.main(["figure", "swaps", "--dataset", "rooms", *named, "--params", "{}"]) == 2
    assert "lacks dataset" in capsys.readouterr().err
    assert not (tmp_path / "swaps.png").exists()
