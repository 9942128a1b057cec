"""The few-shot solver against the plain PyTorch loop, on the thesis's 2 000 episodes at 512 dimensions."""

from __future__ import annotations

import dataclasses
import resource
import statistics
import time

import numpy as np
import torch

from diffsiam import params
from diffsiam.evaluation import fewshot
from tests.evaluation import sgd_loop

PROTOCOL = params.FewShot(5, (1, 5, 10), 15, 2000, 100, 4, 0.01, 0.9, 0.9, 0.001, "none", 0)
LOOPED = 8  # episodes that the loop runs, per repeat; its time is scaled to all


def fewshot_rows(shots: int) -> list[dict[str, object]]:
    """Seconds for all episodes of one number of shots; the loop in float32, as one would run it."""
    torch.set_num_threads(2)
    rng = np.random.default_rng(0)
    labels = np.repeat(np.arange(20), 100)
    features = np.maximum(rng.normal(size=(20, 512))[labels] + rng.normal(size=(2000, 512)), 0).astype(np.float32)
    cfg = dataclasses.replace(PROTOCOL, shots=(shots,))
    drawn = fewshot.episodes(labels, cfg, "bench")
    fewshot.predict(features, drawn, cfg, "bench")  # compiles on a fresh machine
    ours, loop = [], []
    for repeat in range(5):
        began = time.perf_counter()
        fewshot.predict(features, drawn, cfg, "bench")
        ours.append(time.perf_counter() - began)
        began = time.perf_counter()
        for episode in range(repeat * LOOPED, (repeat + 1) * LOOPED):
            sgd_loop.scores(features, drawn, cfg, "bench", shots, episode, torch.float32)
        loop.append((time.perf_counter() - began) * cfg.episodes / LOOPED)
    a, b = statistics.median(ours), statistics.median(loop)
    peak = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss / 1e6
    note = f"2000 episodes, 512 dimensions; loop timed on {LOOPED} episodes x 5 and scaled; peak memory {peak:.2f} GB"
    row = {"name": f"fewshot_{shots}", "ours_seconds": a, "reference_seconds": b, "ratio": b / a, "note": note}
    return [row]


BENCHES = {f"fewshot_{n}": (lambda n=n: fewshot_rows(n)) for n in (1, 5, 10)}
