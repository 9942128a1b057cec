"""The few-shot protocol as a plain PyTorch loop: what the batched solver must agree with, and is timed against."""

from __future__ import annotations

from collections.abc import Iterable, Sequence

import numpy as np
import torch
from numpy.typing import NDArray

from diffsiam import params
from diffsiam.evaluation import fewshot


def optimizer(parameters: Iterable[torch.Tensor], cfg: params.FewShot) -> torch.optim.SGD:
    return torch.optim.SGD(
        parameters,
        lr=cfg.learning_rate,
        momentum=cfg.momentum,
        dampening=cfg.dampening,
        weight_decay=cfg.weight_decay,
    )


def train(layer: torch.nn.Linear, x: torch.Tensor, orders: Iterable[torch.Tensor], cfg: params.FewShot) -> None:
    """Train ``layer`` on support features ``x`` (ways * shots, d), class by class, in the order of each epoch."""
    target = torch.arange(cfg.ways).repeat_interleave(len(x) // cfg.ways)
    sgd = optimizer(layer.parameters(), cfg)
    for order in orders:
        for batch in order.split(cfg.batch_size):
            sgd.zero_grad()
            torch.nn.functional.cross_entropy(layer(x[batch]), target[batch]).backward()
            sgd.step()


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


def together(
    features: NDArray[np.float32],
    drawn: fewshot.Episodes,
    cfg: params.FewShot,
    dataset: str,
    shots: int,
    episodes: Sequence[int],
) -> torch.Tensor:
    """What `scores` gives for each of E episodes, (E, ways * queries, ways), of layers that are trained side by side: a
    step is on the sum of their losses, which share nothing."""
    count = len(episodes)
    support, query = (
        torch.from_numpy(features[images[list(episodes)].reshape(count, -1)]).double()
        for images in (drawn.support[:, :, :shots], drawn.query)
    )
    initial = [fewshot.initial_weights(cfg, dataset, episode, features.shape[1]) for episode in episodes]
    start = torch.from_numpy(np.stack(initial)).double()
    weight, bias = start[..., :-1].mT.clone().requires_grad_(), start[..., None, :, -1].clone().requires_grad_()
    orders = torch.from_numpy(np.stack([fewshot.batch_order(cfg, dataset, shots, episode) for episode in episodes]))
    target, row = torch.arange(cfg.ways).repeat_interleave(shots), torch.arange(count)[:, None]
    sgd = optimizer([weight, bias], cfg)
    for order in orders.unbind(dim=1):
        for batch in order.split(cfg.batch_size, dim=1):
            sgd.zero_grad()
            logits = torch.baddbmm(bias, support[row, batch], weight).flatten(0, 1)
            loss = torch.nn.functional.cross_entropy(logits, target[batch].flatten(), reduction="sum") / batch.shape[1]
            loss.backward()
            sgd.step()
    with torch.no_grad():
        return torch.baddbmm(bias, query, weight)
