"""The segments of z: the only place that masks it.

z has d numbers in n segments, z_1 .. z_n. Segment k lies between ``edges[k - 1]`` and ``edges[k]``.
"""

from __future__ import annotations

import itertools
from typing import Any

import torch
from torch import Tensor

from diffsiam.errors import UserError
from diffsiam.training import methods


def even_edges(dim: int, segments: int) -> Tensor:
    """Edges (n + 1,) of segments of equal width; ``segments`` divides ``dim``."""
    return torch.arange(segments + 1) * (dim // segments)


def staged_edges(
    dim: int, segments: int, timesteps: int, stages: tuple[int, ...], dims_per_stage: tuple[int, ...]
) -> Tensor:
    """Edges (n + 1,) of DiTi's staged widths: segments are uniform in time, each belongs to the stage that holds its
    first step, and a stage's dimensions are split evenly over its segments, the remainder to the last.

    Args:
        stages: last step of each stage, rising, ending with ``timesteps``.
        dims_per_stage: dimensions of each stage, adding up to ``dim``.
    Raises:
        UserError: the two do not fit each other, ``dim`` or ``timesteps``, or a stage with dimensions has no segment.
    """
    first_steps = [-(-k * timesteps // segments) for k in range(segments)]
    counts = [sum(low <= s < high for s in first_steps) for low, high in itertools.pairwise((0, *stages))]
    fits = len(stages) == len(dims_per_stage) and sum(dims_per_stage) == dim and stages[-1] == timesteps
    if not fits or sorted(set(stages)) != list(stages) or 0 in counts:
        raise UserError(
            f"representation.diti: stages {list(stages)} with dims_per_stage {list(dims_per_stage)} do not describe "
            f"{segments} segments of d = {dim}. Stages must rise to {timesteps}, be as many as dims_per_stage, hold at "
            f"least one segment's first step each (met {counts}), and the dimensions must add up to {dim}."
        )
    widths: list[int] = []
    for count, dims in zip(counts, dims_per_stage, strict=True):
        widths += [dims // count] * (count - 1) + [dims - dims // count * (count - 1)]
    return torch.tensor([0, *widths]).cumsum(0)


def recorded_edges(config: dict[str, Any]) -> Tensor:
    """Edges (n + 1,) of the segments that a representation was trained with, from its config.json, of whatever version
    of the params."""
    diti = config["params"]["representation"].get("diti")
    if methods.lookup(config["method"]).segment == "timestep" and diti["stages"]:
        stages, dims = tuple(diti["stages"]), tuple(diti["dims_per_stage"])
        return staged_edges(config["dim"], config["segments"], stages[-1], stages, dims)
    return even_edges(config["dim"], config["segments"])


def segment_of_step(t: Tensor, segments: int, timesteps: int) -> Tensor:
    """DiTi's segment of a step: k = 1 + floor(t * n / T), for indices t in 0..T-1."""
    return 1 + t * segments // timesteps


def mask(z: Tensor, k: Tensor, edges: Tensor, strategy: str) -> Tensor:
    r"""\bar z_k for each row.

    Args:
        z: representations (N, d).
        k: segment of each row, (N,) in 1..n.
        edges: (n + 1,), from `even_edges` or `staged_edges`, on the device of z.
        strategy: ``full`` (z itself, PDAE), ``hierarchical`` ([z_1 .. z_k, 0 .. 0]), ``hierarchical_detach`` (the same
            values, gradient only through z_k; Figure 4.9) or ``sequential`` ([0 .. 0, z_k, 0 .. 0]).
    Returns:
        (N, d).
    """
    if strategy == "full":
        return z
    position = torch.arange(z.shape[1], device=z.device)
    below = position < edges[k][:, None]
    own = below & (position >= edges[k - 1][:, None])
    if strategy == "hierarchical":
        return z * below
    if strategy == "sequential":
        return z * own
    if strategy == "hierarchical_detach":
        return torch.where(own, z, z.detach() * below)
    raise ValueError(f"unknown strategy {strategy!r}")
