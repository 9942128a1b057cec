"""The tables' protocols on any frozen encoder: torchvision's, timm's, or one trained here."""

from __future__ import annotations

import dataclasses
import difflib
import pickle
from collections.abc import Callable, Iterable, Sequence
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch import Tensor, nn

from diffsiam import params, runtime
from diffsiam.data import prepare, sources
from diffsiam.errors import UserError
from diffsiam.evaluation import features, fewshot, linear, store

IMAGENET = (0.485, 0.456, 0.406), (0.229, 0.224, 0.225)  # mean and std of pixels in [0, 1]
SIDE = 224  # pixels, the size that published encoders are commonly trained at


@dataclasses.dataclass(frozen=True)
class Settings:
    """The sections of params.yaml that the protocols read; ``data.image_size`` gives way to the encoder's."""

    data: params.Data
    features: params.Features
    linear: params.Linear
    fewshot: params.FewShot
    runtime: params.Runtime


@dataclasses.dataclass(frozen=True)
class External:
    """An encoder in evaluation mode.

    Attributes:
        model: images (N, 3, H, W) in [-1, 1] to features (N, d) float32.
        image_size: side of its images in pixels.
        weights: the file or name that they came from; sha256: of the file, None where the library keeps it.
    """

    model: nn.Module
    image_size: int
    weights: str
    sha256: str | None


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


def run(
    encoder: str, datasets: Sequence[str], cfg: Settings, out: Path, *, weights: str | None, image_size: int | None,
    seed: int,
) -> None:  # fmt: skip
    """Evaluate an encoder on data sets: data/, features/, linear/ and fewshot/ under ``out``, and config.json.

    Args:
        encoder: ``torchvision:NAME``, ``timm:NAME`` or the path of an encoder.safetensors beside its config.json.
        weights: torchvision's name of the weights or a file of a state dict; None for the library's default.
        image_size: side in pixels to prepare the data at; None for the one that the encoder was trained at, where it
            was trained here, else `SIDE`.
        seed: for the record.
    Raises:
        UserError: an unknown name, weights that are not there or do not fit, a size that the encoder does not take,
            or what the stages raise.
    """
    for name in datasets:
        sources.get(name)
    found = load(encoder, weights, image_size)
    dim = _probe(encoder, found)
    device = runtime.select_device(cfg.runtime)
    model = found.model.to(device).to(memory_format=torch.channels_last)
    data_cfg = dataclasses.replace(cfg.data, image_size=found.image_size)
    for name in datasets:
        data, stored = out / "data" / name, out / "features" / f"{name}.npz"
        prepare.run(name, data_cfg, data)
        arrays: list[np.ndarray] = []
        for split in ("train", "test"):
            images = runtime.read_array(data / f"images_{split}.npy")
            arrays += [features.extract(model, images, cfg.features.batch_size, device)]
            arrays += [runtime.read_array(data / f"labels_{split}.npy")]
        store.write(stored, *arrays)
        meta = data / "meta.json"
        linear.run(stored, meta, cfg.linear, out / "linear" / f"{name}.json", method=encoder, seed=seed)
        fewshot.run(stored, meta, cfg.fewshot, out / "fewshot" / f"{name}.json", method=encoder, seed=seed)
    facts = {"encoder": encoder, "weights": found.weights, "sha256": found.sha256, "dim": dim, "seed": seed}
    settings = dataclasses.asdict(dataclasses.replace(cfg, data=data_cfg))
    runtime.write_json(out / "config.json", facts | {"params": settings, "collected": runtime.provenance()})


def load(encoder: str, weights: str | None, image_size: int | None) -> External:
    """Find an encoder and its weights; see `run`."""
    library, _, name = encoder.partition(":")
    if library in _LIBRARIES:
        found = _LIBRARIES[library](name, weights)
    elif encoder.endswith(".safetensors"):
        found = _trained_here(Path(encoder), weights)
    else:
        raise UserError(
            f"--encoder {encoder}: not an encoder. Give one of {', '.join(f'{name}:NAME' for name in _LIBRARIES)}, or "
            "the path of an encoder.safetensors that `diffsiam representation` left, beside its config.json."
        )
    found.model.eval().requires_grad_(False)
    return dataclasses.replace(found, image_size=found.image_size if image_size is None else image_size)


def _trained_here(path: Path, weights: str | None) -> External:
    if weights is not None:
        raise UserError(f"--weights {weights}: {path} is the weights already. Leave --weights out.")
    config = runtime.read_json(path.parent / "config.json")
    if not {"encoder_width", "image_size"} <= config.keys():
        raise UserError(
            f"{path.parent / 'config.json'}: no encoder_width or image_size, so not of an encoder trained here. For "
            "another library's weights name its network too: --encoder torchvision:NAME --weights FILE."
        )
    model, side = features.load_encoder(path)
    return External(model, side, str(path), runtime.sha256(path))


def _torchvision(name: str, weights: str | None) -> External:
    """One of torchvision's classifiers without its last layer, with weights by torchvision's name or from a file."""
    from torchvision import models

    known = models.list_models(module=models)
    if name not in known:
        raise UserError(f"--encoder torchvision:{name}: no such network. torchvision has {', '.join(known)}.")
    published = models.get_model_weights(name).__members__
    label = weights or "DEFAULT"
    mean, std = IMAGENET
    if label in published:
        path = _downloaded(f"torchvision:{name}", published[label].url)
        # The builder reads the file with plain pickle, and knows what differs from network to network; a file that
        # passes here holds tensors alone.
        _read_state(path)
        model = models.get_model(name, weights=published[label])
        preset = published[label].transforms()
        mean, std = preset.mean, preset.std
        _without_classifier(name, model)
    else:
        path = Path(label)
        if not path.is_file():
            raise UserError(f"--weights {label}: no such file, and {name} has {', '.join(published)}.")
        model = models.get_model(name, weights=None)
        _fill(model, path, [_without_classifier(name, model)])
    return External(Standardized(model, mean, std), SIDE, label, runtime.sha256(path))


def _timm(name: str, weights: str | None) -> External:
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
    try:
        model = timm.create_model(name, pretrained=weights is None, num_classes=0)
    except (OSError, RuntimeError) as e:  # no network, or no weights of that name
        address = timm.models.get_pretrained_cfg(name)
        where = f"https://huggingface.co/{address.hf_hub_id}" if address and address.hf_hub_id else "its publisher"
        raise UserError(
            f"--encoder timm:{name}: its weights cannot be fetched ({_first_line(e)}). Fetch model.safetensors from "
            f"{where} where there is a network, and name the file with --weights."
        ) from None
    if weights is not None:
        classifier = model.pretrained_cfg.get("classifier") or ()
        _fill(model, Path(weights), [classifier] if isinstance(classifier, str) else classifier)
    cfg = timm.data.resolve_model_data_config(model)
    sha256 = runtime.sha256(weights) if weights is not None else None
    return External(Standardized(model, cfg["mean"], cfg["std"]), SIDE, weights or name, sha256)


_LIBRARIES: dict[str, Callable[[str, str | None], External]] = {"torchvision": _torchvision, "timm": _timm}


def _without_classifier(name: str, model: nn.Module) -> str:
    """Replace the last linear layer by the identity, so that the network returns what went into it."""
    layers = [layer for layer, module in model.named_modules() if isinstance(module, nn.Linear)]
    if not layers:
        raise UserError(f"--encoder torchvision:{name}: its classifier is no linear layer. Choose another network.")
    model.set_submodule(layers[-1], nn.Identity())
    return layers[-1]


def _fill(model: nn.Module, path: Path, classifiers: Iterable[str]) -> None:
    """Load the state dict in ``path``, all but the removed classifier's part."""
    state = _read_state(path)
    for key in [k for k in state if any(k.startswith(f"{layer}.") for layer in classifiers)]:
        del state[key]  # in place: a state dict carries its modules' versions beside its tensors
    try:
        model.load_state_dict(state)
    except (RuntimeError, ValueError) as e:
        raise UserError(f"{path}: not the weights of this network: {e}") from None


def _read_state(path: Path) -> dict[str, Any]:
    """A state dict, from safetensors or from a file of torch.save's that holds nothing but tensors."""
    if not path.is_file():
        raise UserError(f"--weights {path}: no such file.")
    if path.suffix == ".safetensors":
        return runtime.load_weights(path)
    try:
        state = torch.load(path, map_location="cpu", weights_only=True)
    except (OSError, RuntimeError, EOFError, pickle.UnpicklingError) as e:
        raise UserError(f"{path}: not a state dict, or damaged ({_first_line(e)}). Fetch it again.") from None
    if not isinstance(state, dict) or not all(isinstance(v, Tensor) for v in state.values()):
        raise UserError(
            f"{path}: holds more than tensors by name. Save the network's own part alone: "
            "`safetensors.torch.save_file(model.state_dict(), 'encoder.safetensors')`."
        )
    return state


def _downloaded(encoder: str, url: str) -> Path:
    """The file behind one of torchvision's addresses, in PyTorch's own cache; its name ends in its checksum's start."""
    path = Path(torch.hub.get_dir()) / "checkpoints" / url.rsplit("/", 1)[1]
    named = torch.hub.HASH_REGEX.search(path.name)
    prefix = named.group(1) if named else ""
    try:
        if not path.exists():
            path.parent.mkdir(parents=True, exist_ok=True)
            torch.hub.download_url_to_file(url, str(path), hash_prefix=prefix)
        elif not runtime.sha256(path).startswith(prefix):
            raise RuntimeError(f"its sha256 does not start with {prefix}")
    except (OSError, RuntimeError) as e:
        raise UserError(
            f"--encoder {encoder}: {path.name} cannot be fetched or is damaged ({_first_line(e)}). Fetch {url} where "
            f"there is a network and put it at {path}, or name a file of your own with --weights."
        ) from None
    return path


@torch.inference_mode()
def _probe(encoder: str, found: External) -> int:
    """d, from one empty image: a size that a network refuses is found before any data set is prepared."""
    side = found.image_size
    try:
        return found.model(torch.zeros(1, 3, side, side)).shape[1]
    except (RuntimeError, AssertionError, ValueError) as e:
        raise UserError(
            f"--encoder {encoder}: does not take images of {side}x{side} ({_first_line(e)}). Give the size that it was "
            "made for with --image-size."
        ) from None


def _first_line(error: Exception) -> str:
    return str(error).partition("\n")[0].rstrip(". ")
