"""The few-shot protocol as a plain PyTorch loop: what the batched solver must agree with."""

from __future__ import annotations

import numpy as np
import torch
from numpy.typing import NDArray

from diffsiam import params
from diffsiam.evaluation import fewshot


def scores(
    features: NDArray[np.float32],
    drawn: fewshot.Episodes,
    cfg: params.FewShot,
    dataset: str,
    shots: int,
    episode: int,
    dtype: torch.dtype = torch.float64,
) -> torch.Tensor:
    """Scores (ways * queries, ways) of one episode's queries after training on its first ``shots`` images."""
    table = torch.from_numpy(features).to(dtype)
    support = table[drawn.support[episode, :, :shots].reshape(-1)]
    target = torch.arange(cfg.ways).repeat_interleave(shots)
    initial = torch.from_numpy(fewshot.initial_weights(cfg, dataset, episode, features.shape[1])).to(dtype)
    layer = torch.nn.Linear(features.shape[1], cfg.ways, dtype=dtype)
    with torch.no_grad():
        layer.weight.copy_(initial[:, :-1])
        layer.bias.copy_(initial[:, -1])
    optimizer = torch.optim.SGD(
        layer.parameters(),
        lr=cfg.learning_rate,
        momentum=cfg.momentum,
        dampening=cfg.dampening,
        weight_decay=cfg.weight_decay,
    )
    for order in fewshot.batch_order(cfg, dataset, shots, episode):
        for batch in torch.from_numpy(order).split(cfg.batch_size):
            optimizer.zero_grad()
            torch.nn.functional.cross_entropy(layer(support[batch]), target[batch]).backward()
            optimizer.step()
    with torch.no_grad():
        return layer(table[drawn.query[episode].reshape(-1)])
