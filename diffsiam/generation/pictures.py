"""A user's own pictures: read, edited or restored from noise by a trained model; edits are written as a strip."""

from __future__ import annotations

import dataclasses
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray
from PIL import Image
from torch import Tensor

from diffsiam import runtime
from diffsiam.data import images, pixels
from diffsiam.diffusion import ddim
from diffsiam.diffusion.schedule import TIMESTEPS, Schedule
from diffsiam.errors import UserError
from diffsiam.evaluation import probmask
from diffsiam.generation import counterfactual as algorithm2
from diffsiam.generation import manipulation as algorithm3
from diffsiam.generation import model as guided
from diffsiam.generation.figures import to_stored
from diffsiam.params import Generation, Runtime

_TILE = 128  # pixels; smaller images are enlarged to about this by repeating pixels
_BORDER = ((0, 0), (0, 0), (1, 1), (1, 1), (0, 0))  # one white pixel around each image of (row, column, y, x, colour)


@dataclasses.dataclass(frozen=True)
class Trained:
    """Which trained networks, by the places where Snakemake leaves them."""

    results: Path
    pretrain: str
    method: str
    seed: int
    cfg: Generation
    rt: Runtime

    @property
    def probmask(self) -> Path:
        """Folder of its attribute classifiers."""
        return self.results / "probmask" / self.pretrain / self.method / f"seed{self.seed}"

    def load(self) -> tuple[guided.Guided, int]:
        """The networks, and the side in pixels of the images that they take.

        Raises:
            UserError: they are not there; the message lists those that are.
        """
        folder = self.results / "representation" / self.pretrain / self.method / f"seed{self.seed}"
        if not (folder / "decoder_ema.safetensors").is_file():
            there = [f"{t['method']} on {t['pretrain']}, {t['seed']}" for t in guided.trained(self.results)]
            place = Path("results", folder.relative_to(self.results))  # as the rules name it
            raise UserError(
                f"no trained {self.method} on {self.pretrain or '(no data set named)'}, seed{self.seed}, below "
                f"{self.results}. There {'are: ' + '; '.join(there) if there else 'is none'}. Name one with --method, "
                f"--pretrain and --seed, or train it: `snakemake --cores all {place}/decoder_ema.safetensors`."
            )
        device = runtime.select_device(self.rt)
        captured = runtime.use_graph(self.rt, device)
        model = guided.load(folder, self.results / "diffusion" / self.pretrain, self.cfg, device, captured=captured)
        return model, runtime.read_json(folder / "config.json")["image_size"]


def counterfactual(
    pictures: Sequence[Path], segments: Sequence[str], trained: Trained, out: Path, *, scales: Sequence[float] | None
) -> None:
    """Write a strip (PNG): for each range of segments a row of source, the scales, target (Algorithm 2); with
    `generation.exchange_noise` both, those with x_T exchanged above those with the source's own."""
    check_png(out)
    model, side = trained.load()
    ranges = [algorithm2.parse_range(text, model.segments) for text in segments]
    chosen = torch.tensor(scales if scales is not None else trained.cfg.scales, dtype=torch.float64)
    if not ((chosen >= 0) & (chosen <= 1)).all():
        raise UserError(f"--scales {' '.join(map(str, scales or ()))}: met a value outside 0 to 1.")
    x0 = read_pictures(pictures, side)
    z, x_T = model.latents(x0)
    source, target = (z[:1], x_T[:1]), (z[1:], x_T[1:])
    made = [
        algorithm2.counterfactual(model, source, target, ranges, chosen, exchange_noise=exchange)[0]
        for exchange in algorithm2.EXCHANGES[trained.cfg.exchange_noise]
    ]
    write_strip(out, [torch.cat([x0[:1], row, x0[1:]]) for row in torch.cat(made)])


def manipulate(
    picture: Path, trained: Trained, out: Path, *, attribute: str, dims: str | None, scales: Sequence[float] | None
) -> None:
    """Write a strip (PNG): the picture, then the picture at every scale (Algorithm 3)."""
    check_png(out)
    model, side = trained.load()
    classifier = find_classifier(trained.probmask, attribute, dims)
    chosen = torch.tensor(scales if scales is not None else trained.cfg.manipulation_scales, dtype=torch.float64)
    x0 = read_pictures([picture], side)
    made = algorithm3.manipulate(model, model.whole.latents(x0), classifier, chosen)[0]
    write_strip(out, [torch.cat([x0, made])])


def restored(
    picture: Path, segments: Sequence[str], levels: Sequence[int], trained: Trained, *, noise_seed: int
) -> dict[str, NDArray[Any]]:
    """x0_hat of a picture under noise, in one evaluation: of the diffusion model alone (Figure 1.1), and given ranges
    of segments, all else of z at zero; of DisDiff, whose codes have a field each, guided by the fields of those codes.

    Args:
        segments: ``A-B``, half-open from 0.
        levels: steps of 1 to 1000, rising noise.
    Returns:
        original (side, side, 3), noisy (L, side, side, 3) and images (L, 1 + R, side, side, 3), uint8, the model alone
        first; errors (L, 1 + R), the root mean squared error against the picture in grey levels of 255; ranges (R, 2);
        levels (L,).
    Raises:
        UserError: a range that is none, a level out of range, no trained networks, no picture.
    """
    if not levels or min(levels) < 1 or max(levels) > TIMESTEPS:
        raise UserError(f"--levels {' '.join(map(str, levels))}: a step of noise is 1 to {TIMESTEPS}.")
    model, side = trained.load()
    model = model.whole
    ranges = [algorithm2.parse_range(text, model.segments) for text in segments]
    x0 = read_pictures([picture], side)
    noise = ddim.noise_like(x0, noise_seed, "restored", [0])
    t = torch.tensor(levels)
    x = Schedule().q_sample(x0.expand(len(t), -1, -1, -1), t, noise)
    z = model.encode(x0)
    made = [model.estimate(x, t, None), *(_estimate(model, x, t, z, span) for span in ranges)]
    images = to_stored(torch.stack(made, dim=1))
    original = to_stored(x0[0])
    errors = np.sqrt(np.square(images - original.astype(np.float64)).mean(axis=(2, 3, 4)))
    arrays = {"original": original, "noisy": to_stored(x), "images": images, "errors": errors}
    return {**arrays, "ranges": np.array(ranges, np.int64), "levels": np.array(levels)}


def _estimate(model: guided.Guided, x: Tensor, t: Tensor, z: Tensor, span: algorithm2.Range) -> Tensor:
    """x0_hat given a range of segments; of DisDiff's codes, guided by their fields alone."""
    first, end = span
    if model.coded:
        return model.only(range(first, end)).estimate(x, t, z) if first < end else model.estimate(x, t, None)
    position = torch.arange(z.shape[1])
    return model.estimate(x, t, z * ((model.edges[first] <= position) & (position < model.edges[end])))


def find_classifier(folder: Path, attribute: str, dims: str | None) -> probmask.Classifier:
    """The classifier of an attribute with ``dims`` dimensions (a number or ``all``; None: the fewest there are).

    Raises:
        UserError: there is none; the message lists those that there are.
    """
    stems = sorted(path.stem.rpartition("_") for path in folder.glob("*_*.safetensors"))
    if not stems:
        raise UserError(
            f"{folder}: no attribute classifiers. Fit one: `diffsiam probmask --encoder "
            f"{Path(*('representation' if p == 'probmask' else p for p in folder.parts))}/encoder_ema.safetensors "
            f"--data results/data/{folder.parts[-3]} --attribute {attribute!r} --out {folder}`."
        )
    names = sorted({name for name, _, _ in stems})
    name = names[probmask.find(attribute, names, folder)]
    sizes = sorted((d for n, _, d in stems if n == name), key=lambda d: (d == "all", d.zfill(9)))
    if dims is not None and dims not in sizes:
        raise UserError(f"{folder}: {name} has no classifier of {dims} dimensions. There are: {', '.join(sizes)}.")
    return probmask.read(folder / f"{name}_{dims or sizes[0]}.safetensors")


def read_pictures(paths: Sequence[Path], side: int) -> Tensor:
    """Image files of any size as (N, 3, side, side) in [-1, 1]: turned upright as their orientation tag says, then
    resized and cropped as data sets are.

    Raises:
        UserError: a file is missing or no image.
    """
    return pixels.to_float(torch.from_numpy(np.stack([_picture(path, side) for path in paths])))


def check_png(out: Path) -> None:
    """A `UserError` where ``out`` has another ending; said before the sampling, not after."""
    if out.suffix.lower() != ".png":
        raise UserError(f"--out {out}: the strip is a PNG; name a file that ends with .png.")


def write_strip(out: Path, rows: Sequence[Tensor]) -> None:
    """Write rows of images (C, 3, side, side), all with C images, as one PNG, two white pixels apart."""
    tiles = np.stack([to_stored(row) for row in rows])
    zoom = max(1, _TILE // tiles.shape[2])
    tiles = np.pad(tiles.repeat(zoom, axis=2).repeat(zoom, axis=3), _BORDER, constant_values=255)
    strip = np.concatenate(np.concatenate(tiles, axis=1), axis=1)  # rows below each other, then images side by side
    with runtime.atomic(out) as temporary:
        Image.fromarray(strip).save(temporary, format="PNG")


def _picture(path: Path, side: int) -> NDArray[np.uint8]:
    try:
        return images.attempt(lambda: np.asarray(images.resize(images.decode(path, upright=True), side)))
    except images.BrokenImage as e:
        if isinstance(e.__cause__, FileNotFoundError):
            raise UserError(f"{path}: no such file.") from None
        raise UserError(f"{path}: not an image that can be read: {e}. Give a PNG or JPEG file.") from None
