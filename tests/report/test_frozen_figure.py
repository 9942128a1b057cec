"""The figure of the frozen model's blocks and levels, from a record made by hand."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np
import pytest

from diffsiam import runtime
from diffsiam.errors import UserError
from diffsiam.report import frozen_grid
from tests.report.test_figures import legible

SCORES = [[50.0, 60.0], [70.0, 95.0], [80.0, 40.0]]
RECORD: dict[str, Any] = {"block": 2, "level": 300, "dim": 8}
RECORD |= {"grid": {"levels": [1, 300], "widths": [16, 8, 4], "scores": SCORES}}


def test_the_chosen_pair_is_framed_among_all_scores() -> None:
    fig = frozen_grid.draw(RECORD, "CIFAR10")
    ax = fig.axes[0]
    np.testing.assert_array_equal(ax.images[0].get_array(), SCORES)
    assert ax.get_ylim()[0] < ax.get_ylim()[1]  # blocks from the bottom up
    assert [label.get_text() for label in ax.get_yticklabels()] == ["1 (16)", "2 (8)", "3 (4)"]
    assert [label.get_text() for label in ax.get_xticklabels()] == ["1", "300"]
    (frame,) = ax.patches
    place = frame.get_x() + frame.get_width() / 2, frame.get_y() + frame.get_height() / 2
    assert {text.get_text() for text in ax.texts if text.get_position() == place} == {"95.0"}


def test_words_overlap_nowhere_with_the_levels_of_the_demo() -> None:
    levels = [10, 50, 100, 200, 400]
    grid = {"levels": levels, "widths": [64] * 12, "scores": np.linspace(20, 60, 60).reshape(12, 5).tolist()}
    legible(frozen_grid.draw(RECORD | {"level": 200, "grid": grid}, "CIFAR10"))


def test_the_caption_gives_the_chosen_pair_and_the_range_of_all() -> None:
    assert frozen_grid.shows(RECORD) == (
        "block 2 of 3, 8 channels, at t = 300 tells the most, 95.0 % of the validation images; all pairs lie between "
        "40.0 and 95.0 %, the last block between 40.0 and 80.0 %."
    )


def test_a_pair_that_was_given_has_no_grid_to_draw(tmp_path: Path) -> None:
    runtime.write_json(tmp_path / "config.json", RECORD | {"grid": None})
    with pytest.raises(UserError, match="holds no grid of blocks and levels"):
        frozen_grid.read({"frozen_dm": tmp_path / "config.json"})
