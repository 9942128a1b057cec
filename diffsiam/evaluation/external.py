"""Frozen encoders from anywhere: torchvision's, timm's, or one trained here."""

from __future__ import annotations

import dataclasses
import difflib
import math
import re
import sys
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn

from diffsiam import runtime, weights
from diffsiam.errors import UserError
from diffsiam.evaluation import features, hub

HALF = (0.5, 0.5, 0.5)  # mean and deviation that take pixels in [0, 1] to [-1, 1]
SIDE, CIFAR_SIDE = 224, 32  # pixels, the sizes that published encoders and those with CIFAR's stem are trained at
SIDES = range(8, 1025)
STEMS = ("imagenet", "cifar")

_OLD_DENSENET = re.compile(r"(denselayer\d+\.(?:norm|conv))\.([12]\.)")

# Networks with auxiliary classifiers, and how to build them without and unfilled.
_AUXILIARY = ("aux1", "aux2", "AuxLogits")
_BARE: dict[str, dict[str, Any]] = {
    name: {"aux_logits": False, "init_weights": False} for name in ("googlenet", "inception_v3")
}


@dataclasses.dataclass(frozen=True)
class Options:
    """What a file of weights does not tell.

    Attributes:
        part: the words before the network's names, where the file holds it more than once.
        stem: ``imagenet``, as the library builds its ResNets, or ``cifar``: a first convolution of 3x3 without stride,
            and no pooling behind it (SimCLR, appendix B.9).
        mean, std: by which images in [0, 1] are standardised, by channel; None for the published weights'.
    """

    part: str | None = None
    stem: str = STEMS[0]
    mean: tuple[float, ...] | None = None
    std: tuple[float, ...] | None = None

    def __post_init__(self) -> None:
        if (self.mean is None) != (self.std is None):
            raise UserError("--mean and --std: one was given. Give both, three numbers each for images in [0, 1].")
        if not all(map(math.isfinite, (*(self.mean or ()), *(self.std or ())))) or min(self.std or (1,)) <= 0:
            raise UserError(f"--mean {self.mean} --std {self.std}: allowed are finite numbers, --std above 0.")


@dataclasses.dataclass(frozen=True)
class External:
    """An encoder in evaluation mode.

    Attributes:
        model: images (N, 3, H, W) in [-1, 1] to features (N, d) float32.
        image_size: side of its images in pixels.
        weights: the file or name that they came from; sha256: of the file, None where the library keeps it.
        mean, std: by which images in [0, 1] are standardised.
    """

    model: nn.Module
    image_size: int
    weights: str
    sha256: str | None
    mean: tuple[float, ...] = HALF
    std: tuple[float, ...] = HALF


class Standardized(nn.Module):
    """A network that takes images in [0, 1] less ``mean``, over ``std``, behind our [-1, 1]."""

    mean: Tensor
    std: Tensor

    def __init__(self, network: nn.Module, mean: Sequence[float], std: Sequence[float]) -> None:
        super().__init__()
        self.network = network
        self.register_buffer("mean", torch.tensor(mean).view(3, 1, 1))
        self.register_buffer("std", torch.tensor(std).view(3, 1, 1))

    def forward(self, x: Tensor) -> Tensor:
        """(N, 3, H, W) in [-1, 1] -> (N, d) float32."""
        return self.network(((x + 1) / 2 - self.mean) / self.std).flatten(1).float()


def load(encoder: str, weights: str | None, image_size: int | None, options: Options | None = None) -> External:
    """Find an encoder and its weights.

    Images are standardised by the statistics of the published weights that the network's name stands for, whether
    weights come by name or from a file; those of a file that is one of the published ones are its own. ``options``
    may say otherwise.

    Args:
        encoder: ``torchvision:NAME``, ``timm:NAME`` or the path of an encoder.safetensors beside its config.json.
        weights: torchvision's name of the weights or a file; None for the library's default.
        image_size: side in pixels; None for the one that the encoder was trained at, where it was trained here, else
            `SIDE`, or `CIFAR_SIDE` with CIFAR's stem.
    Raises:
        UserError: an unknown name, a size that is not allowed, weights that are not there, do not fit or are not
            finite.
    """
    options = options or Options()
    library, _, name = encoder.partition(":")
    if image_size is not None and image_size not in SIDES:
        raise UserError(f"--image-size {image_size}: allowed are {SIDES[0]} to {SIDES[-1]} pixels.")
    if library in _LIBRARIES:
        found = _LIBRARIES[library](name, weights, options)
    elif encoder.endswith(".safetensors"):
        found = _trained_here(Path(encoder), weights, options)
    else:
        raise UserError(
            f"--encoder {encoder}: not an encoder. Give one of {', '.join(f'{name}:NAME' for name in _LIBRARIES)}, or "
            "the path of an encoder.safetensors that `diffsiam representation` left, beside its config.json."
        )
    found.model.eval().requires_grad_(False)
    return dataclasses.replace(found, image_size=found.image_size if image_size is None else image_size)


def _trained_here(path: Path, weights: str | None, options: Options) -> External:
    if weights is not None or options != Options():
        given = f"--weights {weights}" if weights is not None else "--part, --stem, --mean or --std"
        raise UserError(f"{given}: {path} is the weights already, and its config.json describes them. Leave it out.")
    config = runtime.read_json(path.parent / "config.json")
    if not {"encoder_width", "image_size"} <= config.keys():
        raise UserError(
            f"{path.parent / 'config.json'}: no encoder_width or image_size, so not of an encoder trained here. For "
            "another library's weights name its network too: --encoder torchvision:NAME --weights FILE."
        )
    model, side = features.load_encoder(path)
    return External(model, side, str(path), runtime.sha256(path))


def _torchvision(name: str, label: str | None, options: Options) -> External:
    """One of torchvision's classifiers without its last layer, with weights by torchvision's name or from a file."""
    from torchvision import models

    known = models.list_models(module=models)
    if name not in known:
        raise UserError(f"--encoder torchvision:{name}: no such network. torchvision has {', '.join(known)}.")
    published = models.get_model_weights(name).__members__
    label = label or "DEFAULT"
    path = Path(label)
    if label in published:
        _refuse_file_options(f"torchvision:{name}", options)
        like = published[label]
        path = _downloaded(f"torchvision:{name}", like.url)
        hub.check_plain(path)
        model = models.get_model(name, weights=like)
        _without_classifier(name, model)
    elif not path.exists():
        raise UserError(f"--weights {label}: no such file, and {name} has {', '.join(published)}.")
    else:
        digest = weights.sha256(path, label)
        starts = {hub.named_hash(w.url): w for w in published.values()}
        like = next((w for start, w in starts.items() if start and digest.startswith(start)), published["DEFAULT"])
        model = models.get_model(name, weights=None, **_BARE.get(name, {}))
        remedy = "Name the network that they are of."
        if isinstance(model, models.ResNet):
            remedy += " A ResNet made for CIFAR has another stem: --stem cifar."
        if options.stem == "cifar":
            _cifar_stem(f"torchvision:{name}", model, isinstance(model, models.ResNet))
        _fill(model, path, name, (_without_classifier(name, model), *_AUXILIARY), remedy, options)
    mean, std = like.transforms().mean, like.transforms().std
    if isinstance(model, models.GoogLeNet | models.Inception3):
        # Trained on [-1, 1]; by name, torchvision has them undo ImageNet's statistics first.
        model.transform_input, mean, std = False, HALF, HALF
    return _standardized(model, label, weights.sha256(path, label), (mean, std), options)


def _timm(name: str, label: str | None, options: Options) -> External:
    """One of timm's networks without its classifier, with the weights that its name stands for or from a file."""
    try:
        import timm
    except ImportError:
        raise UserError(f"--encoder timm:{name}: timm is not installed. Run `pip install timm`.") from None
    if not timm.is_model(name):
        near = difflib.get_close_matches(name, timm.list_models(), n=10, cutoff=0.4)
        raise UserError(
            f"--encoder timm:{name}: no such network. Near it: {', '.join(near) or 'none'}; "
            "`python -c 'import timm; print(timm.list_models())'` lists all."
        )
    if label is None:
        _refuse_file_options(f"timm:{name}", options)
    try:
        model: Any = timm.create_model(name, pretrained=label is None, num_classes=0)
    except (OSError, RuntimeError) as e:  # no network, or no weights of that name
        address = timm.models.get_pretrained_cfg(name)
        where = f"https://huggingface.co/{address.hf_hub_id}" if address and address.hf_hub_id else "its publisher"
        raise UserError(
            f"--encoder timm:{name}: its weights cannot be fetched ({_first_line(e)}). Fetch model.safetensors from "
            f"{where} where there is a network, and name the file with --weights."
        ) from None
    if label is not None:
        if options.stem == "cifar":
            _cifar_stem(f"timm:{name}", model, isinstance(model, timm.models.resnet.ResNet))
        classifier = model.pretrained_cfg.get("classifier") or ()
        spare = (classifier,) if isinstance(classifier, str) else tuple(classifier)
        _fill(model, Path(label), name, spare, "Name the network that they are of.", options)
    cfg = timm.data.resolve_model_data_config(model)
    digest = weights.sha256(Path(label), label) if label is not None else None
    return _standardized(model, label or name, digest, (cfg["mean"], cfg["std"]), options)


_LIBRARIES: dict[str, Callable[[str, str | None, Options], External]] = {"torchvision": _torchvision, "timm": _timm}


def _standardized(
    model: nn.Module, label: str, sha256: str | None, published: tuple[Sequence[float], Sequence[float]],
    options: Options,
) -> External:  # fmt: skip
    mean, std = map(tuple, published)
    if options.mean is not None and options.std is not None:
        mean, std = options.mean, options.std
    elif Path(label).is_file():
        print(
            f"{label}: images in [0, 1] are standardised by mean {mean} and deviation {std}, those of the network's "
            "published weights; where it was trained on others, say so with --mean and --std.",
            file=sys.stderr,
        )
    side = SIDE if options.stem == STEMS[0] else CIFAR_SIDE
    return External(Standardized(model, mean, std), side, label, sha256, mean, std)


def _refuse_file_options(encoder: str, options: Options) -> None:
    if options.part is not None or options.stem != STEMS[0]:
        raise UserError(
            f"--encoder {encoder}: its published weights are one network with its own stem; --part and --stem are for "
            "a file. Name one with --weights."
        )


def _without_classifier(name: str, model: nn.Module) -> str:
    """Replace the last linear layer by the identity, so that the network returns what went into it."""
    layers = [layer for layer, module in model.named_modules() if isinstance(module, nn.Linear)]
    if not layers:
        raise UserError(f"--encoder torchvision:{name}: its classifier is no linear layer. Choose another network.")
    model.set_submodule(layers[-1], nn.Identity())
    return layers[-1]


def _cifar_stem(encoder: str, model: nn.Module, resnet: bool) -> None:
    conv = model.get_submodule("conv1") if resnet else None
    if not isinstance(conv, nn.Conv2d):
        raise UserError(f"--encoder {encoder} --stem cifar: only ResNets with one first convolution have such a stem.")
    model.set_submodule("conv1", nn.Conv2d(3, conv.out_channels, 3, padding=1, bias=False))
    model.set_submodule("maxpool", nn.Identity())


def _fill(model: nn.Module, path: Path, name: str, spare: tuple[str, ...], remedy: str, options: Options) -> None:
    """Load the file's tensors of this network, all but those of the modules ``spare``."""
    state = model.state_dict()  # it carries its modules' versions beside its tensors, which a file may lack
    shapes = {key: tuple(tensor.shape) for key, tensor in state.items()}
    network = weights.Network(name, shapes, remedy, "Choose one with --part.", spare)
    # torchvision's published DenseNets have the names of its first version.
    found = {_OLD_DENSENET.sub(r"\1\2", key): tensor for key, tensor in weights.read(path, str(path)).items()}
    state.update(weights.part(found, network, str(path), options.part))
    model.load_state_dict(state)


def _downloaded(encoder: str, url: str) -> Path:
    """The file behind one of torchvision's addresses, in PyTorch's own cache; its name ends in its checksum's start."""
    path = hub.place(url)
    prefix = hub.named_hash(path.name)
    try:
        if not path.exists():
            path.parent.mkdir(parents=True, exist_ok=True)
            torch.hub.download_url_to_file(url, str(path), hash_prefix=prefix)
        elif not hub.fits(path):
            raise RuntimeError(f"its sha256 does not start with {prefix}")
    except (OSError, RuntimeError) as e:
        raise UserError(
            f"--encoder {encoder}: {path.name} cannot be fetched or is damaged ({_first_line(e)}). Fetch {url} where "
            f"there is a network and put it at {path}, or name a file of your own with --weights."
        ) from None
    return path


@torch.inference_mode()
def probe(encoder: str, found: External) -> int:
    """d, from one empty image: what a network refuses is found before any data set is prepared."""
    side = found.image_size
    try:
        z = found.model(torch.zeros(1, 3, side, side))
    except (RuntimeError, AssertionError, ValueError) as e:
        raise UserError(
            f"--encoder {encoder}: does not take images of {side}x{side} ({_first_line(e)}). Give the size that it was "
            "made for with --image-size."
        ) from None
    if not z.isfinite().all():
        raise UserError(
            f"--encoder {encoder}: gives NaN or infinity for a grey image, by {found.weights}: of a training that "
            "diverged, or of another network. Take other weights."
        )
    return z.shape[1]


def _first_line(error: Exception) -> str:
    return str(error).partition("\n")[0].rstrip(". ")
