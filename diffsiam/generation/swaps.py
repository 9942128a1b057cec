"""Swaps of one code, and conditioning on one code alone (DisDiff, Fig. 4 to 7), with what they change, measured.

The codes of a method that has none are its segments, so that both families stand side by side. Sampling is
deterministic, and guidance is ``score`` (Eq. 3.8; DisDiff Eq. 6) whatever Algorithms 2 and 3 use.

Under results/generation/<pretrain>/, of N codes, F factors, M samples and the first K of them shown, images uint8:

swaps_<method>.npz: ``dataset``, ``method``, ``seed``, ``factors`` (F,), ``accuracy`` (F,) of the classifier.
    ``sources``, ``targets`` (K, H, W, 3): one pair in each column. ``swap`` (N + 2, K, H, W, 3): sampled from the
    source's z; with code c of the target, N rows; and with all of them. ``swap_moved`` (N + 1, F): share of the samples
    in which a swap moved the factor to the target's (`factors.moved`), the last row all codes. ``swap_carried`` (N, 3):
    `factors.carried`'s factor, intended, others.
    Of methods with a field for each code, one image and K noises: ``partial_target`` (H, W, 3); ``partial`` (N + 2, K,
    H, W, 3): sampled by the frozen model alone; guided by the field of code c alone; and by all. ``partial_moved``
    (N + 1, F), from the frozen model's samples to the target's factors; ``partial_carried`` (N, 3): factor, intended,
    and intended less the next factor's share.
swaps_<method>.csv: `figures.COLUMNS`. Measures swap and partial; subject the code, from 0, or ``all``; metric share
    (each factor's ``moved``), and of the factor that the code carries, intended and others (swap) or partial, which is
    intended less the next factor's share.
"""

from __future__ import annotations

import dataclasses
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd
import torch
from torch import Tensor

from diffsiam import runtime
from diffsiam.data import pixels
from diffsiam.data.grid import Grid
from diffsiam.data.images import open_images
from diffsiam.data.sources import DATASETS
from diffsiam.diffusion import ddim
from diffsiam.errors import UserError
from diffsiam.generation import factors, figures, measure
from diffsiam.generation import model as guided
from diffsiam.generation.counterfactual import Range, lerp
from diffsiam.models.codes import CodeDecoder
from diffsiam.params import Generation, Runtime, Swaps

Arrays = dict[str, np.ndarray]
Found = tuple[Arrays, list[dict[str, Any]]]  # what is stored, and rows of numbers
SHOWN = 6  # columns of the figure, and noises for each target of partial conditioning


def swap(model: guided.Guided, x_T: Tensor, z: Tensor, target: Tensor, ranges: Sequence[Range]) -> Tensor:
    """Images (R, N, 3, side, side) sampled from ``x_T`` and z (N, d) with the segments of each range those of
    ``target`` (N, d)."""
    edited = torch.cat([lerp(z, target, model.edges, span, torch.ones(1))[:, 0] for span in ranges])
    return model.sample(x_T.repeat(len(ranges), 1, 1, 1), edited).unflatten(0, (len(ranges), -1))


def partial(model: guided.Guided, x_T: Tensor, z: Tensor, which: Sequence[int]) -> Tensor:
    """Images (N, 3, side, side) sampled from ``x_T`` where only the codes ``which`` of z (N, d) guide: the frozen
    model's own samples where there are none."""
    if not which:
        return model.sample(x_T, None)
    return model.only(which).sample(x_T, z)


@dataclasses.dataclass(frozen=True)
class Judge:
    """The classifier of factors, as a function of images (..., 3, side, side) as they would be stored: values
    (..., F)."""

    net: measure.AttributeNet
    grid: Grid
    device: torch.device

    def __call__(self, images: Tensor) -> factors.Values:
        stored = torch.from_numpy(figures.to_stored(images))
        found = factors.predict(self.net, stored.flatten(0, -4), self.grid.sizes, self.device)
        return found.reshape(*stored.shape[:-3], -1)


def run(
    cfg: Generation,
    rt: Runtime,
    settings: Swaps,
    data: Path,
    diffusion: Path | None,
    out: Path,
    *,
    root: Path,
    representation: Path | None,
    classifier: Path | None,
    segments: int,
) -> None:
    """Write ``out`` (.npz), and the numbers beside it (.csv).

    Args:
        data: folder of the grid that the networks were trained on.
        classifier: of its factors, as `figures.run` leaves it.
        segments: n of a method that was trained without segments.
    Raises:
        UserError: ``out`` is no .npz; the data set has no grid, or not all of it; an input was not named or is not
            there; whatever `model.load` and `measure.load` raise.
    """
    if out.suffix != ".npz":
        raise UserError(f"--out {out}: swaps writes arrays, and a .csv beside them; name a file that ends with .npz.")
    meta = runtime.read_json(data / "meta.json")
    grid, images = _grid(meta, data), open_images(data / "images_train.npy", root)
    trained, judged = figures.given(representation, "--representation"), figures.given(classifier, "--classifier")
    device = runtime.select_device(rt)
    judge = Judge(measure.load(judged, grid.names, sum(grid.sizes)).to(device), grid, device)
    how: dict[str, Any] = {"captured": runtime.use_graph(rt, device), "guidance": "score"}
    model = guided.load(trained, figures.given(diffusion, "--diffusion"), cfg, device, segments, **how)
    sources, targets = runtime.rng(cfg.pairs.seed, "swaps").integers(grid.size, size=(settings.samples, 2)).T
    source, target = (pixels.to_float(images[torch.from_numpy(rows)]) for rows in (sources, targets))
    arrays, rows = swaps(model, source, target, grid.factors(targets), judge, inverted=settings.x_T == "inverted")
    if isinstance(model.decoder, CodeDecoder):
        found = partials(model, target, grid.factors(targets), judge)
        arrays, rows = arrays | found[0], rows + found[1]
    accuracy = runtime.read_json(judged.with_suffix(".json"))["accuracy"]
    record = runtime.read_json(trained / "config.json")
    whose = {"dataset": meta["dataset"], "method": record["method"], "seed": record["seed"]}
    frame = pd.DataFrame([{**whose, **row, "images": settings.samples} for row in rows], columns=list(figures.COLUMNS))
    with runtime.atomic(out.with_suffix(".csv")) as temporary:
        frame.to_csv(temporary, index=False, float_format="%.6g")
    labels = {name: np.array(value) for name, value in whose.items()}
    labels |= {"factors": np.array(grid.names), "accuracy": np.array([accuracy[name] for name in grid.names])}
    with runtime.atomic(out) as temporary, open(temporary, "wb") as f:
        np.savez_compressed(f, **labels, **arrays)  # type: ignore[arg-type]


def swaps(
    model: guided.Guided, source: Tensor, target: Tensor, values: factors.Values, judge: Judge, *, inverted: bool
) -> Found:
    """Swaps of every code of images ``source`` with those of ``target`` (M, 3, side, side), whose factors are
    ``values`` (M, F).

    Args:
        inverted: start from the source's own x_T, not from noise.
    """
    n, noise = model.segments, ddim.noise_like(source, model.cfg.pairs.seed, "swap", range(len(source)))
    z, x_T = model.latents(source) if inverted else (model.encode(source), noise)
    made = swap(model, x_T, z, model.encode(target), [(0, 0), *((c, c + 1) for c in range(n)), (0, n)])
    shown = {"sources": source[:SHOWN], "targets": target[:SHOWN], "swap": made[:, :SHOWN]}
    return _told("swap", made, values, judge, {name: figures.to_stored(x) for name, x in shown.items()})


def partials(model: guided.Guided, images: Tensor, values: factors.Values, judge: Judge) -> Found:
    """Noise guided by one code at a time, of images (M, 3, side, side) whose factors are ``values`` (M, F): the first
    of every `SHOWN` of them, for as many noises."""
    n, chosen = model.segments, np.arange(len(images)) // SHOWN * SHOWN
    x_T = ddim.noise_like(images, model.cfg.pairs.seed, "partial", range(len(images)))
    z = model.encode(images)[torch.from_numpy(chosen)]
    made = torch.stack([partial(model, x_T, z, which) for which in [(), *((c,) for c in range(n)), range(n)]])
    shown = {"partial_target": figures.to_stored(images[0]), "partial": figures.to_stored(made[:, :SHOWN])}
    return _told("partial", made, values[chosen], judge, shown)


def _told(what: str, made: Tensor, values: factors.Values, judge: Judge, shown: Arrays) -> Found:
    """What images (N + 2, M, 3, side, side) tell: of no code of the target, of each, and of all."""
    before, *after = judge(made)
    moved, names = factors.moved(before, np.stack(after), values), judge.grid.names
    rows = [
        {"subject": "all" if c == len(moved) - 1 else str(c), "attribute": name, "metric": "share", "value": share}
        for c, shares in enumerate(moved)
        for name, share in zip(names, shares, strict=True)
    ]
    carried = []
    for c, each in enumerate(after[:-1]):
        code = factors.carried(before, each, values)
        more = {"others": code.others} if what == "swap" else {"partial": code.intended - code.runner_up}
        carried.append((code.factor, code.intended, *more.values()))
        whose = {"subject": str(c), "attribute": names[code.factor]}
        rows += [{**whose, "metric": k, "value": v} for k, v in {"intended": code.intended, **more}.items()]
    arrays = {f"{what}_moved": moved, f"{what}_carried": np.array(carried)}
    return shown | arrays, [{"measure": what, **row} for row in rows]


def _grid(meta: dict[str, Any], data: Path) -> Grid:
    """The grid whose whole the train images are."""
    if "grid" not in meta:
        raise UserError(
            f"{data}: {meta['dataset']} has no grid of known factors, by which swaps are measured. Choose one of "
            f"{', '.join(name for name, row in DATASETS.items() if row.factors)}."
        )
    grid, count = Grid.of(meta), meta["counts"]["train"]
    if count != grid.size:
        sizes = " x ".join(map(str, grid.sizes))
        raise runtime.damaged(
            data / "meta.json", f"holds {count} images, the whole grid of {meta['dataset']} has {sizes} = {grid.size}"
        )
    return grid
