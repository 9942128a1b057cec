"""The few-shot protocol as a plain PyTorch loop: what the batched solver must agree with, and is timed against."""

from __future__ import annotations

from collections.abc import Iterable

import numpy as np
import torch
from numpy.typing import NDArray

from diffsiam import params
from diffsiam.evaluation import fewshot


def train(layer: torch.nn.Linear, x: torch.Tensor, orders: Iterable[torch.Tensor], cfg: params.FewShot) -> None:
    """Train ``layer`` on support features ``x`` (ways * shots, d), class by class, in the order of each epoch."""
    target = torch.arange(cfg.ways).repeat_interleave(len(x) // cfg.ways)
    optimizer = torch.optim.SGD(
        layer.parameters(),
        lr=cfg.learning_rate,
        momentum=cfg.momentum,
        dampening=cfg.dampening,
        weight_decay=cfg.weight_decay,
    )
    for order in orders:
        for batch in order.split(cfg.batch_size):
            optimizer.zero_grad()
            torch.nn.functional.cross_entropy(layer(x[batch]), target[batch]).backward()
            optimizer.step()


def scores(
    features: NDArray[np.float32],
    drawn: fewshot.Episodes,
    cfg: params.FewShot,
    dataset: str,
    shots: int,
    episode: int,
    dtype: torch.dtype = torch.float64,
) -> torch.Tensor:
    """Scores (ways * queries, ways) of one episode's queries, from the solver's own draws."""
    support = torch.from_numpy(features[drawn.support[episode, :, :shots].reshape(-1)]).to(dtype)
    query = torch.from_numpy(features[drawn.query[episode].reshape(-1)]).to(dtype)
    initial = torch.from_numpy(fewshot.initial_weights(cfg, dataset, episode, features.shape[1])).to(dtype)
    layer = torch.nn.Linear(features.shape[1], cfg.ways, dtype=dtype)
    with torch.no_grad():
        layer.weight.copy_(initial[:, :-1])
        layer.bias.copy_(initial[:, -1])
    train(layer, support, torch.from_numpy(fewshot.batch_order(cfg, dataset, shots, episode)), cfg)
    with torch.no_grad():
        return layer(query)
