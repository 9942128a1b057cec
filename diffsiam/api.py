"""The public API: what scripts and notebooks need of trained networks, on arrays, picture files and folders.

`import diffsiam` gives these names too. Images go in as files, or as they are stored: uint8 in 0..255, (N, H, W, 3).
A mistake is a `diffsiam.errors.UserError` with one message.
"""

from __future__ import annotations

import dataclasses
import json
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any, TypeAlias, TypeVar

import numpy as np
import torch
from diffusers import UNet2DModel
from numpy.typing import ArrayLike, NDArray
from torch import Tensor

from diffsiam import params as parameters
from diffsiam import runtime
from diffsiam.data import images, pixels, places, readers
from diffsiam.errors import UserError
from diffsiam.evaluation import external, own_features, protocols
from diffsiam.evaluation.external import External
from diffsiam.evaluation.features import extract
from diffsiam.generation import counterfactual as algorithm2
from diffsiam.generation import manipulation as algorithm3
from diffsiam.generation import model as guided
from diffsiam.generation import pictures as files
from diffsiam.generation.figures import to_stored
from diffsiam.models.unet import CONFIG

Pictures: TypeAlias = "str | Path | Sequence[str | Path] | NDArray[np.uint8] | Tensor"
"""A folder or a picture file, a list of files, or stored images: uint8 (N, H, W, 3), array or tensor."""
Params: TypeAlias = "str | Path | Mapping[str, Any] | None"
"""What differs from the preset ``thesis``: a params.yaml, a preset's name, or a mapping of sections as in there."""
T = TypeVar("T")

_BATCH = 256  # images that an encoder takes at a time


@dataclasses.dataclass(frozen=True)
class Representation:
    """A trained encoder and decoder around the frozen diffusion model, by `load_representation`.

    Attributes:
        model: the networks, to encode, invert and sample with.
        image_size: side in pixels of their images.
        classifiers: folder of the attribute classifiers that were fitted on its encoder.
    """

    model: guided.Guided
    image_size: int
    classifiers: Path


def load_encoder(encoder: str | Path, weights: str | Path | None = None) -> External:
    """A frozen encoder in evaluation mode.

    Args:
        encoder: what a training left: the folder ``results/representation/<data>/<method>/seed<k>``, whose
            encoder.safetensors the tables use, or another file in it, such as encoder_ema.safetensors; or
            ``torchvision:NAME`` or ``timm:NAME``.
        weights: of the latter two, a file or a name (docs/evaluate.md); None for the library's default.
    Returns:
        The network, ``model``, and the ``image_size`` that it takes.
    Raises:
        UserError: there is no such encoder, or its weights are not there, do not fit or are not finite.
    """
    path = Path(encoder) / "encoder.safetensors" if Path(encoder).is_dir() else encoder
    return external.load(str(path), None if weights is None else str(weights), None)


def features(encoder: External, pictures: Pictures, *, device: str = "auto") -> NDArray[np.float32]:
    """Features (N, d) of images, as the tables' protocols take them.

    Args:
        pictures: in the order of the features; of a folder all images at any depth, sorted by path. Files are resized
            on the short side and centre-cropped to the encoder's ``image_size``, as data sets are; arrays have that
            side already.
        device: auto, cpu or cuda.
    Raises:
        UserError: no images, one that cannot be read, or an array of another kind or size.
    """
    place = runtime.select_device(_runtime(device))
    model = encoder.model.to(place).to(memory_format=torch.channels_last)
    stored = _stored(pictures, encoder.image_size)
    blocks = [
        extract(model, np.asarray(stored[start : start + _BATCH]), _BATCH, place)
        for start in range(0, len(stored), _BATCH)
    ]
    return np.concatenate(blocks)


def evaluate(
    features: str | Path | Mapping[str, ArrayLike],
    *,
    name: str | None = None,
    metric: str = "accuracy",
    protocol: Sequence[str] = tuple(protocols.EVALUATE),
    params: Params = None,
) -> dict[str, dict[str, Any]]:
    """The tables' protocols on features, whatever they were made by.

    Args:
        features: arrays ``train``, ``test`` (N, d) and ``train_labels``, ``test_labels`` (N,), whole numbers or text,
            or an .npz file that holds them; ``val`` may name the rows of train that choose the penalty, and is drawn
            where it is absent.
        name: of the data set; few-shot episodes and the validation images are drawn by it. None: the file's own.
        metric: ``accuracy`` or ``mean_per_class``, of the linear probe.
        protocol: ``linear`` (Table 4.1), ``fewshot`` (Table 4.2), or both.
        params: sections ``linear``, ``fewshot`` and ``data``.
    Returns:
        A result for each protocol, as results/linear/ and results/fewshot/ hold them: accuracies in percent.
    Raises:
        UserError: features that are not of this kind, or too few classes or images for a protocol.
    """
    if unknown := [word for word in protocol if word not in protocols.EVALUATE]:
        raise UserError(f"protocol: met {', '.join(unknown)}, allowed are {', '.join(protocols.EVALUATE)}.")
    label = name or (Path(features).stem if isinstance(features, str | Path) else "features")
    data = own_features.feature_set(features, label, metric, _section(parameters.Data, params))
    sections = {"linear": _section(parameters.Linear, params), "fewshot": _section(parameters.FewShot, params)}
    return {word: protocols.EVALUATE[word](data, sections[word], method=label, seed=0) for word in protocol}


def load_diffusion(folder: str | Path) -> UNet2DModel:
    """The frozen diffusion model by diffusers' own ``UNet2DModel.from_pretrained``.

    It takes images in [-1, 1] and the index ``t - 1`` in 0..999 of the paper step t in 1..1000 (\\bar\\alpha_t is entry
    t - 1 of a scheduler's ``alphas_cumprod``), and predicts the noise. ``DDPMPipeline.from_pretrained(folder)`` works
    as well, where a scheduler_config.json lies beside it.

    Args:
        folder: ``results/diffusion/<data>``, or another in diffusers' layout.
    Raises:
        UserError: no config.json is there.
    """
    if not (Path(folder) / CONFIG).is_file():  # diffusers would look for a repository of that name
        raise runtime.missing(Path(folder) / CONFIG)
    # What its default saves of memory needs a package, accelerate, and it warns where that is not installed.
    unet = UNet2DModel.from_pretrained(folder, local_files_only=True, low_cpu_mem_usage=False)
    return unet.eval().requires_grad_(False)


def load_representation(
    results: str | Path,
    pretrain: str,
    method: str = "diffsiam_hier",
    seed: int = 0,
    *,
    device: str = "auto",
    params: Params = None,
) -> Representation:
    """A trained method with its decoder and diffusion model, by the averaged weights that the figures use.

    Args:
        results: the folder ``results`` of a run.
        pretrain: the data set that it was trained on.
        method: one with a decoder.
        device: auto, cpu or cuda.
        params: section ``generation``: steps, solver, guidance and the like.
    Raises:
        UserError: no such training, or a part of it is missing; the message lists those that are there.
    """
    rt, cfg = _runtime(device), _section(parameters.Generation, params)
    trained = files.Trained(Path(results), pretrain, method, seed, cfg, rt)
    return Representation(*trained.load(), trained.probmask)


def invert(representation: Representation, pictures: Pictures) -> tuple[Tensor, Tensor]:
    """(z, x_T) of images: what the encoder sees, (N, d), and the noise that DDIM inversion leads to,
    (N, 3, side, side). ``representation.model.sample(x_T, z)`` leads back, in [-1, 1].

    Raises:
        UserError: see `features`.
    """
    return representation.model.latents(_float(pictures, representation.image_size))


def counterfactual(
    representation: Representation,
    source: Pictures,
    target: Pictures,
    segments: Sequence[tuple[int, int]],
    scales: Sequence[float] = (1.0,),
    *,
    exchange_noise: bool = True,
) -> NDArray[np.uint8]:
    """Algorithm 2: ``source`` with some segments of its z drawn towards those of ``target``.

    Args:
        source: N images.
        target: as many.
        segments: R half-open ranges, counted from 0: (0, 8) is z_1 .. z_8.
        scales: S numbers in [0, 1]; 0 is the source's reconstruction.
        exchange_noise: draw x_T towards the target's as well, as Algorithm 2 does; else only the segments change.
    Returns:
        Stored images (N, R, S, side, side, 3).
    Raises:
        UserError: counts that differ, a range that is none of the model's, a scale out of range; see `features`.
    """
    model, side = representation.model, representation.image_size
    a, b = _float(source, side), _float(target, side)
    if len(a) != len(b):
        raise UserError(f"source and target: met {len(a)} and {len(b)} images. Give as many targets as sources.")
    if bad := [s for s in scales if not 0 <= s <= 1]:
        raise UserError(f"scales: met {bad}, allowed are 0 to 1.")
    ranges = [algorithm2.check_range(span, model.segments) for span in segments]
    latents = model.latents(a), model.latents(b)
    made = algorithm2.counterfactual(model, *latents, ranges, torch.tensor(scales), exchange_noise=exchange_noise)
    return to_stored(made)


def manipulate(
    representation: Representation,
    pictures: Pictures,
    attribute: str,
    scales: Sequence[float],
    *,
    dims: int | None = None,
) -> NDArray[np.uint8]:
    """Algorithm 3: images pushed along the normal of an attribute classifier's boundary.

    Args:
        attribute: one that has a classifier among the results.
        scales: S lengths of the push in standard deviations; negative pushes away from the attribute.
        dims: dimensions of the classifier; None for the one of fewest.
    Returns:
        Stored images (N, S, side, side, 3).
    Raises:
        UserError: no such classifier; see `features`.
    """
    words = None if dims is None else str(dims)
    classifier = files.find_classifier(representation.classifiers, attribute, words)
    latents = representation.model.whole.latents(_float(pictures, representation.image_size))
    made = algorithm3.manipulate(representation.model, latents, classifier, torch.tensor(scales))
    return to_stored(made)


def _section(cls: type[T], params: Params) -> T:
    """A section of the preset ``thesis`` with what ``params`` says otherwise."""
    given = json.dumps(params) if isinstance(params, Mapping) else params
    return parameters.section(parameters.read("thesis", *([] if given is None else [str(given)])), cls)


def _runtime(device: str) -> parameters.Runtime:
    """Of the caller's own number of threads."""
    runtime_params = {"runtime": {"device": device, "threads": torch.get_num_threads()}}
    return _section(parameters.Runtime, runtime_params)


def _float(pictures: Pictures, side: int) -> Tensor:
    return pixels.to_float(torch.from_numpy(np.asarray(_stored(pictures, side)[:])))


def _stored(pictures: Pictures, side: int) -> NDArray[np.uint8] | images.Stream:
    """Images (N, side, side, 3) that are sliced like an array, files when their turn comes."""
    if isinstance(pictures, np.ndarray | Tensor):
        array = pictures.cpu().numpy() if isinstance(pictures, Tensor) else pictures
        if array.dtype != np.uint8 or array.shape[1:] != (side, side, 3) or not len(array):
            raise UserError(
                f"images: met {array.dtype} {array.shape}, needed are uint8 (N, {side}, {side}, 3), N at least 1. Give "
                "files or their folder to have them resized; a float in [0, 1] times 255 is what uint8 holds."
            )
        return array
    names = _names(pictures)
    if not names:
        raise UserError(f"{pictures}: no images. Name a folder that holds some, or files.")
    return images.Stream(np.array([images.encode_name(name) for name in names]), lambda n: Path(n).read_bytes(), side)


def _names(pictures: str | Path | Sequence[str | Path]) -> list[str]:
    """Paths of the image files; what lies in a folder and is no image is passed over."""
    if not isinstance(pictures, str | Path):
        return [str(path) for path in pictures]
    top = Path(pictures)
    if not top.is_dir():
        return [str(top)]
    is_image = readers.images_below(top)
    return [str(top / name) for name in places.walk(top) if not name.endswith("/") and is_image(name)]
