"""The arrays behind the figures and the numbers beside them; drawing is `diffsiam.report`'s.

Under results/generation/<pretrain>/, images uint8 (H, W, 3):

denoise.npz (Figure 1.1): ``images`` (rows, levels, H, W, 3), x0_hat of the frozen model from ``noisy`` of the same
    shape; ``originals`` (rows, H, W, 3); ``timesteps`` (levels,) int64, paper steps.
counterfactual_<method>.npz (Figures 4.1 to 4.4): ``images`` (pairs, rows, scales, H, W, 3) on the way from ``sources``
    to ``targets`` (pairs, H, W, 3), and ``reverse``, as ``images``, from target to source; ``ranges`` (rows, 2) int64,
    half-open, the last one all of z; ``exchanged`` (rows,) bool, whether x_T goes along; the first of either kind is
    the empty range, from which the others differ by their segments alone: x_T alone, and the reconstruction;
    ``scales`` (scales,) float64; ``indices`` (pairs, 2) int64, rows of images_test.npy. Files of before have rows with
    x_T alone, no ``exchanged`` and no empty range.
manipulation_<method>.npz (Figures 4.5 to 4.7): ``images`` (attributes, samples, scales, H, W, 3); ``originals``
    (samples, H, W, 3); ``attributes`` (attributes,) names; ``dims`` (attributes,) int64, dimensions of the classifier,
    d for one on all of z; ``masked`` (attributes,) bool, whether ProbMask chose them; rows in the order of
    ``--probmask``; ``scales`` (scales,); ``indices`` (samples,).
classifier.safetensors: the attribute classifier on pixels that the numbers are measured by, one for all methods;
    average precisions on the test images in classifier.json. Of a grid of factors: a softmax for each factor, and its
    accuracies on the grid's val images.
numbers_<method>.csv: `COLUMNS`, one number a row; ``ci95``, the half-width of its interval over the ``images``, or
    pairs of them, that are behind it, where there is one:
    measure round_trip: subject frozen_model (inverted and sampled by the diffusion model alone), conditioned (both
        given z) or frozen_inversion (inverted by the diffusion model alone, sampled given z); metric mse, psnr (dB).
    measure autoencoding: subject inferred_x_T (sampled given z from the image's own x_T, inverted given z) or
        random_x_T (from noise); metric mse, ssim, and lpips where its weights are there (`autoencoding.scores`).
    measure frechet: subject as autoencoding, or frozen_model (sampled by the diffusion model alone); metric fid, where
        `generation.frechet_images` asks for it and its weights are there (`autoencoding.distances`).
    measure tad: subject segments or dimensions of z, of data sets with attributes; metric tad, tad_std and captured,
        over five folds (`detectors.folds`).
    measure manipulation: subject d' and scale, as ``16 +6.8``; the attribute; metric intended, others
        (`measure.manipulated`), moved_own, moved_others (`measure.moved`) and coarseness (`measure.coarseness`). Data
        sets with attributes only.
    measure counterfactual: subject the segment range, as ``0-8``, at scale 1, from (z, the other's x_T), as Algorithm 2
        exchanges x_T as well; or ``x_T alone``. Metric coarseness; and of attributes intended, others of the one that
        the range carries (`measure.exchanged`), and moved_own, moved_others of each that has a classifier on z, over
        the pairs that differ in it. Subject ``early to late``: metric coarseness_trend (`measure.trend`).
    measure segments: the same with the image's own x_T, so that only the range of z is exchanged.
"""

from __future__ import annotations

import dataclasses
import functools
from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd
import torch
from numpy.typing import NDArray
from torch import Tensor

from diffsiam import runtime
from diffsiam.data import pixels
from diffsiam.data.grid import Grid
from diffsiam.data.images import open_images
from diffsiam.diffusion import ddim, schedule
from diffsiam.errors import UserError
from diffsiam.evaluation.probmask import Classifier, check_attributes, find, read
from diffsiam.generation import autoencoding, edits, factors, measure
from diffsiam.generation import model as guided
from diffsiam.generation.counterfactual import EXCHANGES, Range, check_range, counterfactual
from diffsiam.generation.manipulation import manipulate
from diffsiam.models.unet import DiffusionModel, timesteps_like
from diffsiam.params import Generation, Pairs, Runtime

COLUMNS = ("dataset", "method", "seed", "measure", "subject", "attribute", "metric", "value", "ci95", "images")


@dataclasses.dataclass(frozen=True)
class Job:
    """The inputs of one command; ``representation``, ``probmask`` and ``classifier`` for those that take them."""

    cfg: Generation
    device: torch.device
    captured: bool  # whether networks run as CUDA graphs
    data: Path
    root: Path
    diffusion: Path | None = None
    representation: Path | None = None
    probmask: tuple[Path, ...] = ()
    classifier: Path | None = None
    segments: int | None = None

    @functools.cached_property
    def meta(self) -> dict[str, Any]:
        return runtime.read_json(self.data / "meta.json")

    @functools.cached_property
    def model(self) -> guided.Guided:
        """The trained networks, for images of the data's size."""
        representation, diffusion = given(self.representation, "--representation"), given(self.diffusion, "--diffusion")
        return guided.load(representation, diffusion, self.cfg, self.device, self.segments, captured=self.captured)

    @functools.cached_property
    def trained(self) -> dict[str, Any]:
        """config.json of the representation."""
        return runtime.read_json(given(self.representation, "--representation") / "config.json")

    @functools.cached_property
    def classifiers(self) -> list[Classifier]:
        return [read(path) for path in self.probmask]

    def test(self, indices: NDArray[np.int64]) -> Tensor:
        """Test images (N, 3, side, side) in [-1, 1]."""
        return pixels.to_float(open_images(self.data / "images_test.npy", self.root)[torch.from_numpy(indices)])

    def pairs(self) -> NDArray[np.int64]:
        """Indices of the figures' pairs of test images, (P, 2)."""
        return draw_pairs(self.cfg.pairs, self.meta["counts"]["test"], self.data)

    def ranges(self) -> list[Range]:
        """The data set's segment ranges, and all of z."""
        n = self.model.segments
        rows = [span for row in self.cfg.ranges if row.dataset == self.meta["dataset"] for span in row.ranges]
        return [*(check_range(span, n) for span in rows), (0, n)]


def run(
    what: str,
    cfg: Generation,
    rt: Runtime,
    data: Path,
    diffusion: Path | None,
    out: Path,
    *,
    root: Path,
    representation: Path | None = None,
    probmask: tuple[Path, ...] = (),
    classifier: Path | None = None,
    segments: int | None = None,
) -> None:
    """Make one of the files that this module's docstring describes.

    Args:
        what: denoise, counterfactual, manipulation, classifier or numbers.
        data: folder of the prepared data set that the networks were trained on.
        diffusion, representation, probmask, classifier: what the earlier stages left.
        root: `data.root`, where images that are streamed lie.
        segments: n of a method that was trained without segments, None for what its config.json says.
    Raises:
        UserError: an input that this one needs was not named or is not there; bad pairs or ranges.
    """
    device = runtime.select_device(rt)
    captured = runtime.use_graph(rt, device)
    job = Job(cfg, device, captured, data, root, diffusion, representation, tuple(probmask), classifier, segments)
    if what == "classifier":
        return train_classifier(job, out)
    if what == "numbers":
        frame = numbers(job)
        with runtime.atomic(out) as temporary:
            frame.to_csv(temporary, index=False, float_format="%.6g")
        return None
    arrays = {"denoise": denoise, "counterfactual": counterfactuals, "manipulation": manipulations}[what](job)
    with runtime.atomic(out) as temporary, open(temporary, "wb") as f:
        np.savez_compressed(f, **arrays)  # type: ignore[arg-type]
    return None


def denoise(job: Job) -> dict[str, NDArray[Any]]:
    """Figure 1.1: x0_hat of the frozen model from growing noise."""
    dm = DiffusionModel.load(given(job.diffusion, "--diffusion")).to(job.device)
    table, indices = schedule.Schedule().to(job.device), job.pairs().reshape(-1)
    x0 = job.test(indices).to(job.device)
    noise = ddim.noise_like(x0, job.cfg.pairs.seed, "denoise", indices.tolist())
    noisy, images = [], []
    for level in job.cfg.noise_levels:
        t = timesteps_like(level, x0)
        x = table.q_sample(x0, t, noise)
        with torch.no_grad():
            images.append(to_stored(table.x0_from_noise(x, t, dm.predict_noise(x, t))))
        noisy.append(to_stored(x))
    stacked = {"images": np.stack(images, axis=1), "noisy": np.stack(noisy, axis=1)}
    return {**stacked, "originals": to_stored(x0), "timesteps": np.array(job.cfg.noise_levels, np.int64)}


def counterfactuals(job: Job) -> dict[str, NDArray[Any]]:
    """Figures 4.1 to 4.4: Algorithm 2 both ways, of each kind on the empty range first."""
    indices, ranges, kinds = job.pairs(), job.ranges(), EXCHANGES[job.cfg.exchange_noise]
    scales = torch.tensor(job.cfg.scales, dtype=torch.float64)
    x0 = job.test(indices.T.reshape(-1))
    z, x_T = job.model.latents(x0)
    source, target = zip(z.chunk(2), x_T.chunk(2), strict=True)

    def rows(source: edits.Latents, target: edits.Latents, exchange: bool) -> Tensor:
        # In calls of their own, so that the rows of the ranges are those of the same batches whatever stands beside
        # them; without an exchange the empty range is the reconstruction at every scale.
        wanted = scales if exchange else scales[:1]
        empty = counterfactual(job.model, source, target, [(0, 0)], wanted, exchange_noise=exchange)
        edited = counterfactual(job.model, source, target, ranges, scales, exchange_noise=exchange)
        return torch.cat([empty.expand(-1, -1, len(scales), -1, -1, -1), edited], dim=1)

    there, back = (
        to_stored(torch.cat([rows(a, b, kind) for kind in kinds], dim=1))
        for a, b in ((source, target), (target, source))
    )
    sources, targets = (to_stored(part) for part in x0.chunk(2))
    arrays = {"images": there, "reverse": back, "sources": sources, "targets": targets}
    arrays |= {"ranges": np.array([(0, 0), *ranges] * len(kinds), np.int64)}
    arrays |= {"exchanged": np.repeat(kinds, 1 + len(ranges))}
    return {**arrays, "scales": scales.numpy(), "indices": indices}


def manipulations(job: Job) -> dict[str, NDArray[Any]]:
    """Figures 4.5 to 4.7: Algorithm 3 for every classifier."""
    if not job.classifiers:
        raise UserError("generate manipulation: name the attribute classifiers with --probmask.")
    indices = job.pairs().reshape(-1)
    scales = torch.tensor(job.cfg.manipulation_scales, dtype=torch.float64)
    x0 = job.test(indices)
    latents = job.model.whole.latents(x0)
    images = [to_stored(manipulate(job.model, latents, c, scales)) for c in job.classifiers]
    names, dims = np.array([c.name for c in job.classifiers]), np.array([c.dims for c in job.classifiers], np.int64)
    arrays = {"images": np.stack(images), "originals": to_stored(x0), "attributes": names, "dims": dims}
    masked = np.array([c.masked for c in job.classifiers])
    return {**arrays, "masked": masked, "scales": scales.numpy(), "indices": indices}


def train_classifier(job: Job, out: Path) -> None:
    """The classifier on pixels, of the factors of a grid or else of attributes; its scores stand beside it."""
    if "grid" in job.meta:
        return _train_factors(job, out)
    names, cfg = check_attributes(job.meta, job.data), job.cfg.classifier
    images = {split: open_images(job.data / f"images_{split}.npy", job.root) for split in ("train", "test")}
    labels = {split: runtime.read_array(job.data / f"attributes_{split}.npy") for split in images}
    net = measure.train(images["train"], labels["train"], cfg, job.device, captured=job.captured)
    precision = measure.scores(net, images["test"][:], labels["test"], job.device)
    facts = {"width": cfg.width, "image_size": images["train"].shape[1], "attributes": names}
    measure.save(out, net, {**facts, "average_precision": dict(zip(names, precision, strict=True))})
    return None


def _train_factors(job: Job, out: Path) -> None:
    """Learns from the train part of the grid, and is scored on the val part."""
    cfg, grid, images = job.cfg.classifier, Grid.of(job.meta), open_images(job.data / "images_train.npy", job.root)
    kept = np.array(job.meta["splits"]["val"], np.int64)
    rest = np.setdiff1d(np.arange(len(images)), kept)
    order = runtime.rng(cfg.seed, "classifier/images").permutation(rest)[: cfg.steps * cfg.batch_size]
    shown = images[torch.from_numpy(order)]  # no more than it sees: a large grid does not fit the memory
    net = factors.train(shown, grid.factors(order), grid.sizes, cfg, job.device, captured=job.captured)
    kept = kept[: factors.SCORED]
    right = factors.predict(net, images[torch.from_numpy(kept)], grid.sizes, job.device) == grid.factors(kept)
    facts = {"width": cfg.width, "image_size": images.shape[1], "attributes": list(grid.names)}
    accuracy = dict(zip(grid.names, right.mean(axis=0).tolist(), strict=True))
    measure.save(out, net, {**facts, "accuracy": accuracy, "scored_on": len(kept)})


def numbers(job: Job) -> pd.DataFrame:
    """Round trips and autoencoding; where images have attributes, TAD and what manipulation and counterfactuals
    change."""
    weights = autoencoding.judges(job.meta["image_size"], job.cfg.frechet_images is not None)
    order = runtime.rng(job.cfg.pairs.seed, "measured").permutation(job.meta["counts"]["test"])
    indices = order[: job.cfg.measured]
    x0 = job.test(indices)
    z, x_T = job.model.latents(x0)
    returned = round_trips(job, x0, z)
    rows = [
        row for name, x in returned.items() for row in measure.rows("round_trip", name, "", measure.round_trip(x0, x))
    ]
    made = {"inferred_x_T": returned["conditioned"], "random_x_T": autoencoding.from_noise(job.model, z, x0, indices)}
    for name, x in made.items():
        found = autoencoding.scores(x0, x, job.device, lpips="lpips" in weights)
        rows += measure.rows("autoencoding", name, "", found)
    images = open_images(job.data / "images_test.npy", job.root)
    if "fid" in weights:
        rows += autoencoding.distances(job.model, images, order[: job.cfg.frechet_images], weights["fid"])
    if job.meta.get("attributes"):
        rows += autoencoding.told(job.model, images, runtime.read_array(job.data / "attributes_test.npy"))
    judge = None
    if job.classifier is not None:
        judge = _judge(job, indices)
        model = job.model.whole
        latents = (z, x_T) if model is job.model else model.latents(x0)  # whose inversion sees no masks
        ends = {min(job.cfg.manipulation_scales), max(job.cfg.manipulation_scales)}
        rows += edits.pushes(model, latents, job.classifiers, sorted(ends), judge)
    rows += edits.exchanges(job.model, (z, x_T), job.ranges(), judge)
    whose = {"dataset": job.meta["dataset"], "method": job.trained["method"], "seed": job.trained["seed"]}
    return pd.DataFrame([{**whose, "images": len(indices), **row} for row in rows], columns=list(COLUMNS))


def round_trips(job: Job, x0: Tensor, z: Tensor) -> dict[str, Tensor]:
    """Inversion followed by sampling, without z, with z, and with z in sampling only."""
    model, free = job.model, job.model.invert(x0, None)
    return {
        "frozen_model": model.sample(free, None),
        "conditioned": model.sample(model.invert(x0, z), z),
        "frozen_inversion": model.sample(free, z),
    }


def draw_pairs(cfg: Pairs, count: int, data: Path) -> NDArray[np.int64]:
    """Pairs (P, 2) of indices below ``count``: those of ``cfg.indices``, or 2P different ones by lot."""
    if cfg.indices is not None:
        chosen = np.array(cfg.indices, np.int64)
        if chosen.max() >= count:
            raise UserError(f"generation.pairs.indices: {chosen.max()}, but {data} has {count} test images, from 0.")
        return chosen
    if 2 * cfg.count > count:
        raise UserError(f"generation.pairs.count: {cfg.count} pairs need {2 * cfg.count} images; {data} has {count}.")
    return runtime.rng(cfg.seed, "pairs").permutation(count)[: 2 * cfg.count].reshape(-1, 2)


def to_stored(images: Tensor) -> NDArray[np.uint8]:
    """Images (..., 3, H, W) in [-1, 1] as uint8 (..., H, W, 3)."""
    flat = pixels.to_uint8(images.reshape(-1, *images.shape[-3:])).cpu()
    return flat.reshape(*images.shape[:-3], *flat.shape[1:]).numpy()


def given(path: Path | None, option: str) -> Path:
    """``path``; a `UserError` where the option was left out."""
    if path is None:
        raise UserError(f"{option} is missing; `diffsiam generate --help` says which one needs it.")
    return path


def _judge(job: Job, indices: NDArray[np.int64]) -> edits.Judge:
    """The classifier on pixels, with what is known of the test images ``indices``."""
    names = check_attributes(job.meta, job.data)
    net = measure.load(given(job.classifier, "--classifier"), names).to(job.device)

    def tell(images: Tensor) -> NDArray[np.float64]:
        return net.probabilities(torch.from_numpy(to_stored(images)), job.device).double().numpy()

    own = [find(c.name, names, job.data) for c in job.classifiers]
    same = measure.exclusive(runtime.read_array(job.data / "attributes_train.npy"))
    labels = runtime.read_array(job.data / "attributes_test.npy")[indices].astype(np.int64)
    return edits.Judge(tell, names, own, same, labels)
