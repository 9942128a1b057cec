"""The numbers of edits: what Algorithms 2 and 3 change, as told by a classifier on pixels and by spatial frequencies.

Rows of `figures.COLUMNS` less the names; those with an interval, over images or pairs of them, have ``ci95`` and
``images`` themselves.
"""

from __future__ import annotations

import dataclasses
from collections.abc import Callable, Sequence
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from diffsiam.evaluation.probmask import Classifier
from diffsiam.generation import measure
from diffsiam.generation.counterfactual import Range, counterfactual
from diffsiam.generation.manipulation import manipulate
from diffsiam.generation.model import Guided

Latents = tuple[Tensor, Tensor]
Rows = list[dict[str, Any]]
NOISE_ALONE = "x_T alone"


@dataclasses.dataclass(frozen=True)
class Judge:
    """Tells the attributes of images.

    Attributes:
        tell: probabilities (N, A) of images (N, 3, side, side) as they would be stored.
        names: of the A attributes.
        own: those whose moves are measured one by one.
        same: from `measure.exclusive`.
        labels: (N, A) in {0, 1} of the measured images.
    """

    tell: Callable[[Tensor], NDArray[np.float64]]
    names: Sequence[str]
    own: Sequence[int]
    same: NDArray[np.bool_]
    labels: NDArray[np.int64]


def pushes(
    model: Guided, latents: Latents, classifiers: Sequence[Classifier], scales: Sequence[float], judge: Judge
) -> Rows:
    """What Algorithm 3 changes by every classifier, of the attribute ``judge.own`` in the same place, at every scale
    but 0.

    Args:
        model: without masks (`Guided.whole`), which the ``latents`` are of.
    """
    z, x_T = latents
    before, rows = model.sample(x_T, z), []
    told = judge.tell(before)
    for c, a in zip(classifiers, judge.own, strict=True):
        for scale in sorted(set(scales) - {0.0}):
            edited = manipulate(model, latents, c, torch.tensor([scale]))[:, 0]
            change = judge.tell(edited) - told
            found = {
                **measure.manipulated(change, a, int(np.sign(scale)), judge.same),
                **measure.moved(change, a, judge.same),
                "coarseness": measure.mean(_coarse(edited, before)),
            }
            rows += measure.rows("manipulation", f"{c.dims} {scale:+g}", c.name, found)
    return rows


def exchanges(model: Guided, latents: Latents, ranges: Sequence[Range], judge: Judge | None) -> Rows:
    """What Algorithm 2 changes at scale 1, between partners (`measure.partners`), on every range of segments.

    Algorithm 2 exchanges x_T as well, which carries much of the image: measure ``counterfactual`` has the change from
    (z, the other's x_T), so that it is the range's alone, and a row of what x_T alone changes; ``segments`` starts from
    the image's own x_T.

    Args:
        ranges: the last one all of z.
    """
    z, x_T = latents
    partner, rows = measure.partners(len(z)), []
    starts = {"counterfactual": x_T[partner], "segments": x_T}
    before = {what: model.sample(start, z) for what, start in starts.items()}  # Algorithm 2 on an empty range
    told = {what: judge.tell(images) for what, images in before.items()} if judge else {}
    change = told["counterfactual"] - told["segments"] if judge else None
    coarse = _coarse(before["counterfactual"], before["segments"])
    rows += _changed("counterfactual", NOISE_ALONE, coarse, change, partner, judge)
    for what, start in starts.items():
        coarser = []
        for span in ranges:
            edited = counterfactual(model, (z, x_T), (z[partner], start), [span], torch.ones(1))[:, 0, 0]
            change = judge.tell(edited) - told[what] if judge else None
            coarser.append(_coarse(edited, before[what]))
            rows += _changed(what, f"{span[0]}-{span[1]}", coarser[-1], change, partner, judge)
        found = {"coarseness_trend": measure.trend(np.stack(coarser)[:-1], ranges[:-1])}
        rows += measure.rows(what, "early to late", "", found)
    return rows


def _changed(
    what: str,
    subject: str,
    coarse: NDArray[np.float64],
    change: NDArray[np.float64] | None,
    partner: NDArray[np.int64],
    judge: Judge | None,
) -> Rows:
    """Of one range; of attributes over the pairs that differ in them."""
    rows = measure.rows(what, subject, "", {"coarseness": measure.mean(coarse)})
    if judge is None or change is None:
        return rows
    difference = judge.labels[partner] - judge.labels
    carried = measure.exchanged(change, difference, judge.same)
    if carried is not None:
        rows += measure.rows(what, subject, judge.names[carried[0]], carried[1])
    for a in dict.fromkeys(judge.own):  # an attribute may have several classifiers
        found = measure.moved(change[difference[:, a] != 0], a, judge.same)
        rows += measure.rows(what, subject, judge.names[a], found)
    return rows


def _coarse(edited: Tensor, before: Tensor) -> NDArray[np.float64]:
    """Coarseness of a change of pictures that are seen: clamped to [-1, 1], as `measure.round_trip`'s."""
    return measure.coarseness(edited.clamp(-1, 1) - before.clamp(-1, 1))
