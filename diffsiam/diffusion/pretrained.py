"""Published diffusion models: fetched, verified, and written in the diffusers layout.

A model comes as two files side by side, a config and the weights, from a Hugging Face repository, an address or
a local folder: in the diffusers layout, or as a guided-diffusion checkpoint of PDAE's, which is converted. What is
written is always a `UNet2DModel` that predicts noise in three channels from images in [-1, 1] and a timestep index
in 0..999, under beta linear from 1e-4 to 0.02 (as in DDPM). A network that predicts the variance as well,
in three further output channels, loses these here.
"""

from __future__ import annotations

import contextlib
import dataclasses
import hashlib
import json
import os
import pickle
import re
import tempfile
import urllib.parse
from collections.abc import Mapping
from pathlib import Path
from typing import TYPE_CHECKING, Any

import yaml

from diffsiam import runtime
from diffsiam.diffusion import guided
from diffsiam.errors import UserError
from diffsiam.params import Fetch

if TYPE_CHECKING:
    import torch

CONFIG = "config.json"
WEIGHTS = "diffusion_pytorch_model.safetensors"
SCHEDULER = "scheduler_config.json"
CHECKSUMS = "checksums.json"  # in the cache: weights file -> sha256 at its first fetch

_WHERE = "diffusion.fetch.location"
_FILES = {  # format -> config, weights (the first that is there)
    "diffusers": (CONFIG, (WEIGHTS, "diffusion_pytorch_model.bin")),
    "guided": ("config.yml", ("checkpoint.pt",)),
}
_SIZES = {"google/ddpm-cifar10-32": " (143 MB)"}  # for the message without a network
_MEGABYTE = 1 << 20

# What the rest of the pipeline relies on; a key that is not there has diffusers' default, which is allowed.
_UNET_OPTIONS: dict[str, tuple[Any, ...]] = {
    "_class_name": ("UNet2DModel",),
    "in_channels": (3,),
    "out_channels": (3, 6),
    "time_embedding_type": ("positional",),
    "center_input_sample": (False,),
    "class_embed_type": (None,),
    "num_class_embeds": (None,),
}
_SCHEDULER_OPTIONS: dict[str, tuple[Any, ...]] = {
    "num_train_timesteps": (1000,),
    "beta_schedule": ("linear",),
    "beta_start": (1e-4,),
    "beta_end": (0.02,),
    "trained_betas": (None,),
    "prediction_type": ("epsilon",),
}

# What diffusers called the layers of an attention when the first models were published.
_OLD_ATTENTION = {"query": "to_q", "key": "to_k", "value": "to_v", "proj_attn": "to_out.0"}


@dataclasses.dataclass(frozen=True)
class _Source:
    """Where a model's files are: in ``folder``, or at ``url`` until they are kept in ``folder``."""

    folder: Path
    config: str
    weights: tuple[str, ...]
    url: str | None = None  # its path ends with a slash
    size: str = ""

    def address(self, name: str) -> str:
        """Address of one file. It may carry secrets: never in a message."""
        parts = urllib.parse.urlsplit(self.url or "")
        return urllib.parse.urlunsplit(parts._replace(path=parts.path + urllib.parse.quote(name)))

    def title(self, name: str) -> str:
        """One file, for a message."""
        return str(self.folder / name) if self.url is None else _without_secrets(self.address(name))

    def expected(self) -> str:
        """The files that make up a model, for a message."""
        return f"{self.config} and {' or '.join(self.weights)}"

    def weights_in(self, folder: Path) -> str | None:
        """The weights file in ``folder``, if a whole model is there."""
        there = [name for name in self.weights if (folder / name).is_file()]
        return there[0] if there and (folder / self.config).is_file() else None


def fetch(cfg: Fetch, image_size: int, out: Path, cache: Path) -> None:
    """Fetch a published diffusion model and write it for `UNet2DModel.from_pretrained(out)`.

    The environment variable HF_ENDPOINT replaces https://huggingface.co; HF_TOKEN is sent there and nowhere else.

    Args:
        cfg: ``location``: a local file or folder, the http(s) address of a weights file, or a Hugging Face
            repository ``owner/name``. ``format``: ``diffusers`` (config.json, safetensors or .bin) or ``guided``
            (config.yml, checkpoint.pt). ``sha256`` of the weights file; None records it at the first fetch.
        image_size: side in pixels of the images that the network will see.
        out: folder for config.json and diffusion_pytorch_model.safetensors.
        cache: folder of downloads and recorded checksums. A model that is whole there is not downloaded again, so
            its files can also be placed there by hand.
    Raises:
        UserError: the files cannot be had, have another checksum, cannot be read, do not fit together, or describe
            a network that the pipeline cannot use. Nothing is left behind in ``out`` or ``cache``.
    """
    source = _locate(cfg, cache)
    cache.mkdir(parents=True, exist_ok=True)
    with tempfile.TemporaryDirectory(prefix=".fetch-", dir=cache) as staging:
        folder, weights = _collect(source, Path(staging))
        key = str(source.folder / weights) if source.url is None else f"{source.folder.name}/{weights}"
        digest = _verify(cfg, source, folder / weights, key, cache / CHECKSUMS)
        read = _read_guided if cfg.format == "guided" else _read_diffusers
        config, state = read(source, folder, weights, image_size)
        _write(out, config, state)
        if folder != source.folder:
            source.folder.mkdir(exist_ok=True)
            for file in folder.iterdir():
                file.replace(source.folder / file.name)
    recorded = _recorded(cache / CHECKSUMS)
    if recorded.get(key) != digest:
        runtime.write_json(cache / CHECKSUMS, recorded | {key: digest})


# --------------------------------------------------------------------------------------------------- the files
def _endpoint() -> str:
    return (os.environ.get("HF_ENDPOINT") or "https://huggingface.co").rstrip("/")


def _without_secrets(location: str) -> str:
    """An address without the password and the query that it may carry; anything else as it is."""
    parts = urllib.parse.urlsplit(location)
    if not parts.scheme:
        return location
    return urllib.parse.urlunsplit((parts.scheme, parts.netloc.rpartition("@")[2], parts.path, "", ""))


def _locate(cfg: Fetch, cache: Path) -> _Source:
    config, weights = _FILES[cfg.format]
    path = Path(cfg.location).expanduser()
    if path.is_file():
        return _Source(path.parent, config, (path.name,))
    if path.is_dir():
        return _Source(path, config, weights)
    parts = urllib.parse.urlsplit(cfg.location)
    head, _, name = parts.path.rpartition("/")
    if parts.scheme in ("http", "https") and parts.hostname and name:
        # of the whole address: two models of one host may differ in the query alone
        digest = hashlib.sha256(cfg.location.encode()).hexdigest()[:8]
        url = urllib.parse.urlunsplit(parts._replace(path=head + "/"))
        return _Source(cache / f"{parts.hostname}-{digest}", config, (urllib.parse.unquote(name),), url)
    if re.fullmatch(r"\w[\w.-]*/\w[\w.-]*", cfg.location):
        url = f"{_endpoint()}/{cfg.location}/resolve/main/"
        kept = cache / cfg.location.replace("/", "--")
        return _Source(kept, config, weights, url, _SIZES.get(cfg.location, ""))
    raise UserError(
        f"{_WHERE}: {_without_secrets(cfg.location)}: no such file or folder, and neither the http(s) address of a "
        "weights file nor a Hugging Face repository (owner/name). Name one of these."
    )


def _collect(source: _Source, staging: Path) -> tuple[Path, str]:
    """The folder that holds the whole model (the source's own, or ``staging`` after a download), its weights file."""
    weights = source.weights_in(source.folder)
    if weights is not None:
        return source.folder, weights
    for names in ((source.config,), source.weights):
        if source.url is None:
            found = any((source.folder / name).is_file() for name in names)
        else:
            found = any(_download(source, name, staging) for name in names)
        if not found:
            raise UserError(
                f"{_WHERE}: {' or '.join(source.title(name) for name in names)}: no such file. Expected side by "
                f"side: {source.expected()}. Check diffusion.fetch.format too; for a sub-folder of a Hugging Face "
                "repository give the address of its weights file."
            )
    if source.config == CONFIG:
        _download(source, SCHEDULER, staging, absent=(403, 404))  # some stores answer 403 for what they do not have
    return staging, next(name for name in source.weights if (staging / name).is_file())


def _download(source: _Source, name: str, folder: Path, absent: tuple[int, ...] = (404,)) -> bool:
    """Download one file into ``folder``; False where the server's status says that it is ``absent``."""
    import requests

    address, path, length = source.address(name), folder / name, 0
    headers = {"Accept-Encoding": "identity"}  # Content-Length then counts the bytes that arrive
    token = os.environ.get("HF_TOKEN")
    if token and address.startswith(f"{_endpoint()}/"):
        headers["Authorization"] = f"Bearer {token}"  # dropped on a redirect to another host
    try:
        with requests.get(address, headers=headers, stream=True, timeout=(10, 60)) as response:
            if response.status_code in absent:
                return False
            response.raise_for_status()
            length = int(response.headers.get("Content-Length", 0))
            progress = runtime.Progress(-(-length // _MEGABYTE), f"fetch {name}", "MB")
            with contextlib.closing(progress), runtime.writing(source.folder / name), open(path, "wb") as f:
                for block in response.iter_content(_MEGABYTE):
                    f.write(block)
                    progress.update()
    except requests.RequestException as e:
        # not the exception's own text: it may hold the query of the address
        status = f" {e.response.status_code}" if e.response is not None else ""
        came = f" before all of its {length} bytes came" if length else ""
        raise UserError(
            f"{_WHERE}: cannot download {source.title(name)} ({type(e).__name__}{status}{came}). Check the network; "
            "HF_ENDPOINT names a mirror of huggingface.co, HF_TOKEN opens a private repository (401, 403). Or place "
            f"{source.expected()}{source.size} in {source.folder} by hand and run again."
        ) from None
    return True


def _recorded(path: Path) -> dict[str, str]:
    return runtime.read_json(path) if path.exists() else {}


def _verify(cfg: Fetch, source: _Source, path: Path, key: str, checksums: Path) -> str:
    """Checksum of the weights file ``path``; it must be the one in the params or, without, of the first fetch."""
    digest = runtime.sha256(path)
    expected, where = cfg.sha256, "diffusion.fetch.sha256"
    if expected is None:
        expected, where = _recorded(checksums).get(key), f"{checksums}, {key}"
    if expected not in (None, digest):
        first = f" (remove {path} first)" if path.parent == source.folder else ""
        raise UserError(
            f"{source.title(path.name)}: its sha256 is {digest}, expected {expected} ({where}). The file is damaged "
            f"or another one. Get it again{first}, or, if it is the right one, correct the checksum in {where}."
        )
    return digest


# ------------------------------------------------------------------------------------------------- the formats
Network = tuple[dict[str, Any], dict[str, "torch.Tensor"]]  # config and tensors of a UNet2DModel


def _read_diffusers(source: _Source, folder: Path, weights: str, image_size: int) -> Network:
    where, title = source.title(source.config), source.title(weights)
    met = _read_mapping(folder / source.config, where)
    guided.check_options(met, _UNET_OPTIONS, where)
    sizes = (image_size, [image_size, image_size], None)
    guided.check_options(met, {"sample_size": sizes}, where, guided.SIZE_REMEDY)
    if (folder / SCHEDULER).is_file():
        scheduler = source.title(SCHEDULER)
        guided.check_options(_read_mapping(folder / SCHEDULER, scheduler), _SCHEDULER_OPTIONS, scheduler)
    config, shapes = _resolve(met | {"sample_size": image_size}, where)
    state = _tensors(_load(folder / weights, title), title)
    for key in list(state):
        layer = re.fullmatch(r"(.*attentions\.\d+\.)(query|key|value|proj_attn)(\.\w+)", key)
        if layer:
            state[f"{layer[1]}{_OLD_ATTENTION[layer[2]]}{layer[3]}"] = state.pop(key)
    _check_shapes(state, shapes, title, where)
    return _noise_only(config, state)


def _read_guided(source: _Source, folder: Path, weights: str, image_size: int) -> Network:
    where, title = source.title(source.config), source.title(weights)
    try:
        met = guided.unet_config(_read_mapping(folder / source.config, where), image_size, where)
    except (TypeError, ValueError) as e:  # a value of another type
        raise UserError(f"{where}: describes no network ({e}). Correct it or choose another model.") from None
    config, shapes = _resolve(met, where)
    keys = guided.key_map(met, shapes)
    checkpoint = _load(folder / weights, title)
    if guided.EMA_KEY not in checkpoint:
        raise UserError(
            f"{title}: {guided.EMA_KEY}, the averaged weights, missing; met {', '.join(map(str, checkpoint))[:200]}. "
            "Choose a checkpoint of the diffusion model's own training."
        )
    # an attention's layers are 1-D convolutions there and linear here
    state = {
        key: tensor.squeeze(-1) if tensor.ndim == 3 else tensor
        for key, tensor in _tensors(checkpoint[guided.EMA_KEY], title).items()
    }
    expected = {key: (len(ours) * shapes[ours[0]][0], *shapes[ours[0]][1:]) for key, ours in keys.items()}
    _check_shapes(state, expected, title, where)
    return _noise_only(config, guided.convert(state, keys, met["attention_head_dim"]))


def _read_mapping(path: Path, title: str) -> dict[str, Any]:
    try:
        text = path.read_text(encoding="utf-8")
        # YAML reads JSON's 1e-06 as text
        value = json.loads(text) if path.suffix == ".json" else yaml.safe_load(text)
    except (ValueError, yaml.YAMLError):
        value = None
    if not isinstance(value, dict):
        raise UserError(f"{title}: not a mapping in {path.suffix[1:]} format. Get the file again.")
    return value


def _resolve(config: Mapping[str, Any], where: str) -> tuple[dict[str, Any], dict[str, tuple[int, ...]]]:
    """The config with diffusers' defaults filled in, and the shape of every tensor of its network."""
    import diffusers
    import torch

    try:
        with torch.device("meta"):  # names and shapes only
            model = diffusers.UNet2DModel.from_config(dict(config))
    except (TypeError, ValueError, ZeroDivisionError, RuntimeError) as e:
        raise UserError(f"{where}: describes no UNet2DModel ({e}). Correct it or choose another model.") from None
    return json.loads(model.to_json_string()), {k: tuple(v.shape) for k, v in model.state_dict().items()}


def _load(path: Path, title: str) -> dict[str, Any]:
    """What a safetensors file, or a checkpoint of `torch.save`, holds. No code of the file runs."""
    import safetensors
    import safetensors.torch
    import torch

    try:
        if path.suffix == ".safetensors":
            return safetensors.torch.load_file(path)
        loaded = torch.load(path, map_location="cpu", weights_only=True)
        if isinstance(loaded, dict):
            return loaded
        reason = f"it holds a {type(loaded).__name__}"
    except (pickle.UnpicklingError, safetensors.SafetensorError, RuntimeError, EOFError, OSError, ValueError) as e:
        call = re.search(r"GLOBAL (\S+)", str(e))
        reason = f"it would call {call[1]}" if call else type(e).__name__
    raise UserError(
        f"{title}: cannot be read as named tensors ({reason}). Expected a whole .safetensors file, or a .bin or .pt "
        "file of tensors only: one with code in it is refused. Get it again, or choose another model."
    )


def _tensors(state: object, title: str) -> dict[str, torch.Tensor]:
    import torch

    if not isinstance(state, dict) or not all(isinstance(v, torch.Tensor) for v in state.values()):
        raise UserError(f"{title}: expected names and tensors, met something else. Choose another model.")
    return {name: tensor.float() for name, tensor in state.items()}


def _check_shapes(
    state: Mapping[str, torch.Tensor], expected: Mapping[str, tuple[int, ...]], title: str, config: str
) -> None:
    met = {key: tuple(tensor.shape) for key, tensor in state.items()}
    found = {
        "missing": [f"{key} {expected[key]}" for key in expected if key not in met],
        "not expected": [f"{key} {met[key]}" for key in met if key not in expected],
        "of another shape": [
            f"{key} {met[key]}, expected {expected[key]}"
            for key in expected
            if key in met and met[key] != expected[key]
        ],
    }
    problems = [f"{len(keys)} {what}: {'; '.join(keys[:3])}" for what, keys in found.items() if keys]
    if problems:
        raise UserError(
            f"{title}: its tensors are not the {len(expected)} of the network in {config}. {'. '.join(problems)}. "
            "Take both files from the same model."
        )


def _noise_only(config: Mapping[str, Any], state: Mapping[str, torch.Tensor]) -> Network:
    """The network with three output channels: of six, the last three are the variance."""
    return {**config, "out_channels": 3}, {
        key: tensor[:3] if key.startswith("conv_out.") else tensor for key, tensor in state.items()
    }


def _write(out: Path, config: Mapping[str, Any], state: Mapping[str, torch.Tensor]) -> None:
    """Both files or neither."""
    out.mkdir(parents=True, exist_ok=True)
    with tempfile.TemporaryDirectory(prefix=".fetch-", dir=out) as staging:
        runtime.save_weights(Path(staging) / WEIGHTS, state)
        runtime.write_json(Path(staging) / CONFIG, config)
        for name in (WEIGHTS, CONFIG):
            (Path(staging) / name).replace(out / name)
