"""Strips of `restore` and `samples`: what stands where, and that it can be read."""

from __future__ import annotations

from collections.abc import Callable

import numpy as np
import pytest
from matplotlib.figure import Figure

from diffsiam.report import strips
from tests.report.test_figures import check_layout, check_readable

SIDE = 4


def picture(level: int, *shape: int) -> np.ndarray:
    return np.full((*shape, SIDE, SIDE, 3), level, np.uint8)


def restored(times: int = 1) -> Figure:
    """Four ranges of segments, ``times`` over."""
    made = 1 + 4 * times
    arrays = {"original": picture(10), "noisy": np.stack([picture(20), picture(30)])}
    arrays |= {"images": np.zeros((2, made, SIDE, SIDE, 3), np.uint8)}
    arrays |= {"errors": np.arange(2.0 * made).reshape(2, made) * 11, "levels": np.array([100, 700])}
    arrays |= {"ranges": np.array([(0, 1), (0, 4), (12, 400), (3, 3)] * times)}
    return strips.restored(arrays, "diffsiam_hier_detach", "sprites")


def samples() -> Figure:
    arrays = {"images": np.stack([picture(10 * i) for i in range(11)]), "distances": np.linspace(1, 200, 11)}
    return strips.samples({**arrays, "copied": np.arange(11) == 2, "reference": np.array([4.0, 5.0, 9.0])}, "CelebA")


def test_restored_has_a_row_for_each_step_from_the_picture_to_what_segments_give() -> None:
    fig = restored()
    assert [text.get_text() for text in fig.texts[1:]] == ["step 100", "step 700"]
    assert [ax.get_title() for ax in fig.axes[3:7]] == [
        "given\nsegment 1", "given segments\n1 to 4", "given segments\n13 to 400", "given\nno segment"
    ]  # fmt: skip
    below = [ax.get_xlabel() for ax in fig.axes]
    assert below[:7] == ["", "", *(f"error {11 * i}.0" for i in range(5))]
    assert below[7:] == ["", "", *(f"error {11 * i}.0" for i in range(5, 10))]
    assert [int(ax.images[0].get_array()[0, 0, 0]) for ax in fig.axes[:2] + fig.axes[7:9]] == [10, 20, 10, 30]
    assert fig.texts[0].get_text().endswith("DiffSiam hier. detached, trained on sprites")


def test_samples_stand_over_their_distances_and_a_copy_is_not_shown() -> None:
    fig = samples()
    assert len(fig.axes) == 11
    assert [int(ax.images[0].get_array().mean()) for ax in fig.axes[:4]] == [0, 10, 255, 30]
    assert [ax.get_xlabel() for ax in fig.axes[:4]] == ["1.0", "20.9", "40.8 (a copy)", "60.7"]
    assert "(test images: 5.0)" in fig.texts[0].get_text()


@pytest.mark.parametrize("drawn", [restored, samples])
def test_no_text_overlaps_and_all_can_be_read_where_the_strip_is_900_pixels_wide(drawn: Callable[[], Figure]) -> None:
    check_readable(drawn())


def test_no_label_is_cut_off_where_there_are_many_ranges() -> None:
    check_layout(restored(times=5))
