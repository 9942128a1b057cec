"""Where the segments of an encoder's z lie, by its own record."""

from __future__ import annotations

from typing import Any

import pytest

from diffsiam.evaluation import features

STAGED = {"stages": [500, 1000], "dims_per_stage": [2, 6]}
HIER = {"method": "diffsiam_hier", "segments": 4, "dim": 8, "params": {"representation": {}}}


@pytest.mark.parametrize(
    ("config", "edges"),
    [
        (HIER, [0, 2, 4, 6, 8]),
        (HIER | {"method": "disdiff"}, [0, 2, 4, 6, 8]),
        (HIER | {"method": "diti", "segments": 2, "params": {"representation": {"diti": STAGED}}}, [0, 2, 8]),
        (
            HIER | {"method": "diti", "params": {"representation": {"diti": {"stages": None, "dims_per_stage": None}}}},
            [0, 2, 4, 6, 8],
        ),
        (HIER | {"params": {"representation": {"diti": STAGED}}}, [0, 2, 4, 6, 8]),  # DiTi's, of params that all share
        (HIER | {"segments": 1}, None),
        (HIER | {"method": "simsiam"}, None),  # trained beside others; it knows no segments
        (HIER | {"method": "pdae"}, None),
        ({"method": "frozen_dm", "dim": 8}, None),
        ({"encoder_width": 2, "image_size": 8}, None),
    ],
)
def test_edges_are_those_that_the_method_was_trained_with(config: dict[str, Any], edges: list[int] | None) -> None:
    found = features.edges(config)
    assert (None if found is None else found.tolist()) == edges
