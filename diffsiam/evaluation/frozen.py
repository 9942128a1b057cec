"""Row ``frozen_dm`` of the tables: which block of the frozen diffusion model, fed how noisy an image, tells the most of
the pretraining set's validation images; that block as an encoder like those that are trained."""

from __future__ import annotations

import dataclasses
import time
from pathlib import Path
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray
from sklearn.linear_model import RidgeClassifierCV
from sklearn.pipeline import make_pipeline
from sklearn.preprocessing import StandardScaler

from diffsiam import runtime
from diffsiam.data import pixels
from diffsiam.data.grid import Grid
from diffsiam.data.images import Images, open_images
from diffsiam.diffusion import frozen
from diffsiam.diffusion.schedule import Schedule
from diffsiam.errors import UserError
from diffsiam.evaluation import metrics
from diffsiam.models.unet import WEIGHTS, DiffusionModel
from diffsiam.params import FrozenDm, Runtime
from diffsiam.training import methods, record

Labels = NDArray[np.integer[Any]]
METHOD = "frozen_dm"
_BATCH = 256  # images in a pass
_PENALTIES = np.geomspace(1e-3, 1e5, 9)  # of the probes that choose


def run(cfg: FrozenDm, rt: Runtime, data: Path, dm_folder: Path | None, out: Path, *, seed: int, root: Path) -> None:
    """Choose block and level, and write encoder.safetensors, its twin encoder_ema.safetensors, config.json with the
    scores of all, and an empty history.csv to ``out``.

    Args:
        data: folder of the prepared data set that the model was trained on.
        dm_folder: the diffusion model, diffusers' layout.
        seed: of the noise; the model is the same for all.
        root: `data.root`, where images that are streamed lie.
    Raises:
        UserError: there is no model, or it has no such block; nothing to choose by is known of the images.
    """
    began = time.monotonic()
    if dm_folder is None:
        raise methods.needs_diffusion(METHOD, data.name)
    device = runtime.select_device(rt)
    dm = DiffusionModel.load(dm_folder).to(device)
    count = len(frozen.layers(dm.unet))
    if cfg.block is not None and cfg.block > count:
        raise UserError(
            f"frozen_dm.block: met {cfg.block}, but the way up of {dm_folder} has {count} blocks. Choose 1 to {count}, "
            "or null for the best on validation images."
        )
    images, meta = open_images(data / "images_train.npy", root), runtime.read_json(data / "meta.json")
    block, level, scores = cfg.block, cfg.level, None
    if block is None or level is None:
        labels, metric = told(data, meta)
        scores = grid(dm, images, labels, np.asarray(meta["splits"]["val"]), metric, cfg.levels, seed)
        block, place = (int(i) for i in np.unravel_index(scores.argmax(), scores.shape))
        block, level = block + 1, cfg.levels[place]
    model = frozen.FrozenEncoder(dm.unet, block, level, seed)
    for stem in ("encoder", "encoder_ema"):
        runtime.save_weights(out / f"{stem}.safetensors", model.state_dict())
    own = {"frozen_dm": dataclasses.asdict(cfg), "diffusion_model": runtime.sha256(dm_folder / WEIGHTS)}
    record.write(
        out / "config.json",
        out / "history.csv",
        record.identity(data, **own, rt=rt, device=device, method=METHOD, seed=seed),
        device,
        torch.float32,
        [],
        began,
        method=METHOD,
        seed=seed,
        encoder="unet",
        unet={key: value for key, value in dm.unet.config.items() if not key.startswith("_")},
        block=block,
        level=level,
        image_size=images.shape[1],
        dim=widths(dm)[block - 1],
        grid=None if scores is None else {"levels": cfg.levels, "widths": widths(dm), "scores": scores.tolist()},
    )


def widths(dm: DiffusionModel) -> list[int]:
    """Channels at the output of each block."""
    side = dm.unet.config.sample_size
    with torch.inference_mode():
        x = torch.zeros(1, 3, side, side, device=dm.unet.device)
        return [z.shape[1] for z in frozen.features(dm, Schedule().to(x.device), x, 1, 0)]


def told(data: Path, meta: dict[str, Any]) -> tuple[list[Labels], str]:
    """What is known of the train images to choose by, each (N,), and the metric: their classes; of a grid its factors;
    else their attributes."""
    if len(meta["classes"]) > 1:
        return [runtime.read_array(data / "labels_train.npy")], meta["metric"]
    if "grid" in meta:
        known = Grid.of(meta)
        return list(known.factors(np.arange(known.size)).T), "mean_per_class"
    if not meta["attributes"]:
        raise UserError(
            f"{data}: {meta['dataset']} has neither classes, factors nor attributes to choose a block by. Give "
            "frozen_dm.block and frozen_dm.level in params.yaml, or take frozen_dm out of methods."
        )
    return list(runtime.read_array(data / "attributes_train.npy").T), "mean_per_class"


def grid(
    dm: DiffusionModel,
    images: Images,
    labels: list[Labels],
    validation: NDArray[np.integer[Any]],
    metric: str,
    levels: tuple[int, ...],
    seed: int,
) -> NDArray[np.float64]:
    """Validation scores in percent, (blocks, levels): means over ``labels`` of `score`."""
    columns = []
    for level in levels:
        z = extract(dm, images, level, seed)
        columns.append([np.mean([score(part, each, validation, metric) for each in labels]) for part in z])
        said = ", ".join(f"{value:.1f}" for value in columns[-1])
        print(f"frozen_dm: level {level}, blocks 1 to {len(z)}: {said} %", flush=True)
    return np.array(columns).T


@torch.inference_mode()
def extract(dm: DiffusionModel, images: Images, level: int, seed: int) -> list[NDArray[np.float32]]:
    """Features (N, C) of all ``images``, for each block."""
    device, found = dm.unet.device, []
    table = Schedule().to(device)
    for start in range(0, images.shape[0], _BATCH):
        x = pixels.to_float(images[start : start + _BATCH].to(device))
        found.append([z.cpu().numpy() for z in frozen.features(dm, table, x, level, seed)])
    return [np.concatenate(parts) for parts in zip(*found, strict=True)]


def score(z: NDArray[np.float32], labels: Labels, validation: NDArray[np.integer[Any]], metric: str) -> float:
    """How well a linear classifier on the other rows of ``z`` (N, d) tells the ``labels`` of the ``validation`` rows,
    in percent. Ridge regression on standardised features, its penalty by leave-one-out: seconds where the tables' own
    probe takes minutes, and it only chooses."""
    fit = np.setdiff1d(np.arange(len(z)), validation)
    probe = make_pipeline(StandardScaler(), RidgeClassifierCV(_PENALTIES)).fit(z[fit], labels[fit])
    counts = metrics.confusion(labels[validation], probe.predict(z[validation]), int(labels.max()) + 1)
    return metrics.score(counts, metric).accuracy
