"""Published diffusion models: fetched, verified, and written in the diffusers layout.

A model comes as two files side by side, a config and the weights, from a Hugging Face repository, an address or
a local folder: in the diffusers layout, or as a guided-diffusion checkpoint of PDAE's, which is converted
(`diffsiam.diffusion.formats`).
"""

from __future__ import annotations

import contextlib
import dataclasses
import hashlib
import os
import re
import sys
import tempfile
import urllib.parse
from collections.abc import Iterable, Iterator, Mapping
from pathlib import Path
from typing import TYPE_CHECKING, Any

from diffsiam import params, runtime, weights
from diffsiam.diffusion import formats, schedule
from diffsiam.diffusion.formats import File
from diffsiam.errors import UserError
from diffsiam.params import Fetch

if TYPE_CHECKING:
    import torch

CONFIG = "config.json"
WEIGHTS = "diffusion_pytorch_model.safetensors"
SCHEDULER = "scheduler_config.json"
INDEX = "model_index.json"  # of a pipeline of diffusers
_PIPELINE = f"../scheduler/{SCHEDULER}"  # in a pipeline of diffusers: beside the folder of the network
_KEPT = f"scheduler/{SCHEDULER}"  # its place in the cache
CHECKSUMS = "checksums.json"  # in the cache: weights file -> sha256 at its first fetch

REPOSITORY = r"\w[\w.-]*/\w[\w.-]*"  # of Hugging Face
COMMIT = r"(?:@(\w[\w.-]*))?"  # behind it
_WHERE = "diffusion.fetch.location"
_FILES = {  # format -> config, weights (the first that is there)
    "diffusers": (
        CONFIG,
        (WEIGHTS, f"diffusion_pytorch_model.safetensors{weights.INDEX}", "diffusion_pytorch_model.bin"),
    ),
    "guided": ("config.yml", ("checkpoint.pt",)),
}
_SIZES = {"google/ddpm-cifar10-32": " (143 MB)"}  # for the message without a network
_MEGABYTE = 1 << 20


@dataclasses.dataclass(frozen=True)
class _Source:
    """Where a model's files are: in ``folder``, or at ``url`` until they are kept in ``folder``."""

    folder: Path
    config: str
    weights: tuple[str, ...]
    url: str | None = None  # its path ends with a slash
    size: str = ""
    schedulers: Mapping[str, str] = dataclasses.field(  # where they may lie: in ``folder``, and at the source
        default_factory=lambda: {name: name for name in (SCHEDULER, _KEPT, _PIPELINE)}
    )

    def address(self, name: str) -> str:
        """Address of one file. It may carry secrets: never in a message."""
        parts = urllib.parse.urlsplit(self.url or "")
        head = parts.path
        while name.startswith("../"):
            name, head = name.removeprefix("../"), head.rstrip("/").rpartition("/")[0] + "/"
        return urllib.parse.urlunsplit(parts._replace(path=head + urllib.parse.quote(name)))

    def title(self, name: str) -> str:
        """One file, for a message."""
        return os.path.normpath(self.folder / name) if self.url is None else _without_secrets(self.address(name))

    def expected(self) -> str:
        """The files that make up a model, for a message."""
        return f"{self.config} and {' or '.join(self.weights)}"

    def schedulers_in(self, folder: Path) -> list[File]:
        """Every description of the noise schedule that is there, of a model in ``folder``."""
        places = [File(folder / kept, self.title(name)) for kept, name in self.schedulers.items()]
        return [file for file in places if file.path.is_file()]

    def weights_in(self, folder: Path) -> str | None:
        """The weights file in ``folder``, if a whole model is there."""
        there = [name for name in self.weights if (folder / name).is_file()]
        return there[0] if there and (folder / self.config).is_file() else None


def fetch(cfg: Fetch, image_size: int, out: Path, cache: Path) -> None:
    """Fetch a published diffusion model and write it for diffusers' own `UNet2DModel.from_pretrained(out)`, which takes
    the index t - 1 of step t, and `DDPMPipeline.from_pretrained(out)`.

    The environment variable HF_ENDPOINT replaces https://huggingface.co; HF_TOKEN is sent there and nowhere else.

    Args:
        cfg: ``location``: a local file or folder, the http(s) address of a weights file, or a Hugging Face
            repository ``owner/name``, or ``owner/name@commit``, which cannot change. ``format``: ``diffusers``
            (config.json, safetensors or .bin) or ``guided`` (config.yml, checkpoint.pt). ``sha256`` of the weights
            file; None records it at the first fetch.
        image_size: side in pixels of the images that the network will see.
        out: folder for config.json, diffusion_pytorch_model.safetensors, scheduler_config.json and model_index.json.
        cache: folder of downloads and recorded checksums. A model that is whole there is not downloaded again, so
            its files can also be placed there by hand.
    Raises:
        UserError: the files cannot be had, have another checksum, cannot be read, do not fit together, or describe
            a network that the pipeline cannot use. Nothing is left behind in ``out`` or ``cache``.
    """
    source = _locate(cfg, cache)
    with _collected(source, cache) as folder:
        name = source.weights_in(folder)
        if name is None:
            raise _missing(source, (source.config,) if not (folder / source.config).is_file() else source.weights)
        key = str(source.folder / name) if source.url is None else f"{source.folder.name}/{name}"
        digest = _verify(cfg, source, folder / name, key, cache / CHECKSUMS)
        config, tensors = (File(folder / n, source.title(n)) for n in (source.config, name))
        if cfg.format == "guided":
            network = formats.read_guided(config, tensors, image_size)
        else:
            network = formats.read_diffusers(config, tensors, source.schedulers_in(folder), image_size)
        _write(out, *network)
    _record(cfg, key, digest, cache / CHECKSUMS)


# --------------------------------------------------------------------------------------------------- the files
def _endpoint() -> str:
    return (os.environ.get("HF_ENDPOINT") or "https://huggingface.co").rstrip("/")


def _split(location: str) -> urllib.parse.SplitResult:
    """The parts of an address; none of what is no address."""
    try:
        return urllib.parse.urlsplit(location)
    except ValueError:  # a bracket, say
        return urllib.parse.SplitResult("", "", location, "", "")


def _without_secrets(location: str) -> str:
    """An address without the password and the query that it may carry; anything else as it is."""
    parts = _split(location)
    if not parts.scheme:
        return location
    return urllib.parse.urlunsplit((parts.scheme, parts.netloc.rpartition("@")[2], parts.path, "", ""))


def _locate(cfg: Fetch, cache: Path) -> _Source:
    config, weights = _FILES[cfg.format]
    path = params.place(cfg.location)
    if not (path / config).is_file() and (path / "unet" / config).is_file():  # a whole pipeline of diffusers
        path = path / "unet"
    if path.is_file():
        return _Source(path.parent, config, (path.name,))
    if path.is_dir():
        return _Source(path, config, weights)
    _refuse_page(cfg.location)
    parts = _split(cfg.location)
    head, _, name = parts.path.rpartition("/")
    if parts.scheme in ("http", "https") and parts.hostname and name:
        # of the whole address: two models of one host may differ in the query alone
        digest = hashlib.sha256(cfg.location.encode()).hexdigest()[:8]
        url = urllib.parse.urlunsplit(parts._replace(path=head + "/"))
        kept, files = cache / f"{parts.hostname}-{digest}", (urllib.parse.unquote(name),)
        return _Source(kept, config, files, url, schedulers={SCHEDULER: SCHEDULER, _KEPT: _PIPELINE})
    if named := re.fullmatch(f"({REPOSITORY}){COMMIT}", cfg.location):
        url = f"{_endpoint()}/{named[1]}/resolve/{named[2] or 'main'}/"
        kept = cache / cfg.location.replace("/", "--")
        places = {SCHEDULER: SCHEDULER, _KEPT: _KEPT}
        return _Source(kept, config, weights, url, _SIZES.get(named[1], ""), places)
    raise UserError(
        f"{_WHERE}: {_without_secrets(cfg.location)}: no such file or folder, and neither the http(s) address of a "
        "weights file nor a Hugging Face repository (owner/name, owner/name@commit). Name one of these."
    )


def _refuse_page(location: str) -> None:
    """A `UserError` for the address of a page of the Hub, as a browser has it."""
    page = re.fullmatch(rf"{re.escape(_endpoint())}/({REPOSITORY})(/tree/.*|/blob/.*|/)?", location)
    if page and not page[1].endswith((".safetensors", ".bin", ".pt", ".json")):
        blob = _without_secrets(location).replace("/blob/", "/resolve/") if "/blob/" in location else page[1]
        raise UserError(f"{_WHERE}: {_without_secrets(location)}: a page of the Hub, not a file. Give {blob}.")


def _missing(source: _Source, names: Iterable[str]) -> UserError:
    return UserError(
        f"{_WHERE}: {' or '.join(source.title(name) for name in names)}: no such file. Expected side by side: "
        f"{source.expected()}. Check diffusion.fetch.format too; for a sub-folder of a Hugging Face repository give "
        "the address of its weights file."
    )


@contextlib.contextmanager
def _collected(source: _Source, cache: Path) -> Iterator[Path]:
    """The folder with the model's files: the source's own, or one of downloads, kept when the block ends well."""
    if source.url is None or source.weights_in(source.folder) is not None:
        yield source.folder  # nothing is written: it may be somebody else's
        return
    try:
        cache.mkdir(parents=True, exist_ok=True)
        staging = tempfile.TemporaryDirectory(prefix=".fetch-", dir=cache)
    except OSError as e:
        raise UserError(
            f"{cache}: cannot be written ({e.strerror}), and {_without_secrets(source.url)} is to be kept there. Let "
            "this user write there, set data.root to a folder of your own, or name a local copy of the model."
        ) from None
    with staging:
        folder = Path(staging.name)
        _download_all(source, folder)
        yield folder
        for file in [path for path in folder.rglob("*") if path.is_file()]:
            place = source.folder / file.relative_to(folder)
            place.parent.mkdir(parents=True, exist_ok=True)
            file.replace(place)


def _download_all(source: _Source, folder: Path) -> None:
    for names in ((source.config,), source.weights):
        if not any(_download(source, name, folder / name) for name in names):
            raise _missing(source, names)
    for index in folder.glob(f"*{weights.INDEX}"):
        for shard in weights.shard_names(index, source.title(index.name)):
            if not _download(source, shard, folder / shard):
                raise _missing(source, (shard,))
    if source.config == CONFIG:
        for kept, name in source.schedulers.items():
            # some stores answer 403 for what they do not have
            _download(source, name, folder / kept, absent=(403, 404))


def _download(source: _Source, name: str, path: Path, absent: tuple[int, ...] = (404,)) -> bool:
    """Download one file to ``path``; False where the server's status says that it is ``absent``."""
    import requests

    address, length = source.address(name), 0
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
            progress = runtime.Progress(-(-length // _MEGABYTE), f"fetch {path.name}", "MB")
            path.parent.mkdir(exist_ok=True)
            with contextlib.closing(progress), runtime.writing(path), open(path, "wb") as f:
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
    digest = weights.sha256(path, source.title(path.name))
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


def _record(cfg: Fetch, key: str, digest: str, checksums: Path) -> None:
    """Note the checksum of a first fetch; where that cannot be written, say what it is."""
    recorded = _recorded(checksums)
    if recorded.get(key) == digest:
        return
    try:
        runtime.write_json(checksums, recorded | {key: digest})
    except UserError:
        if cfg.sha256 is None:
            print(
                f"{checksums}: cannot be written, so a later change of {key} would pass. Its sha256 is {digest}: "
                "diffusion.fetch.sha256 may hold it.",
                file=sys.stderr,
            )


def _write(out: Path, config: Mapping[str, Any], state: Mapping[str, torch.Tensor]) -> None:
    """All files or none."""
    out.mkdir(parents=True, exist_ok=True)
    with tempfile.TemporaryDirectory(prefix=".fetch-", dir=out) as staging:
        runtime.save_weights(Path(staging) / WEIGHTS, state)
        runtime.write_json(Path(staging) / CONFIG, config)
        write_pipeline(Path(staging))
        for name in (WEIGHTS, SCHEDULER, INDEX, CONFIG):
            (Path(staging) / name).replace(out / name)


def write_pipeline(folder: Path) -> None:
    """What `DDPMPipeline.from_pretrained(folder)` needs beside the network: the noise schedule, and which class of
    diffusers reads what. Nothing of the pipeline's own reads them."""
    betas = {"beta_schedule": "linear", "beta_start": schedule.BETA_START, "beta_end": schedule.BETA_END}
    steps = {"num_train_timesteps": schedule.TIMESTEPS, "prediction_type": "epsilon", "clip_sample": True}
    runtime.write_json(folder / SCHEDULER, {"_class_name": "DDPMScheduler", **steps, **betas})
    classes = {"unet": ["diffusers", "UNet2DModel"], "scheduler": ["diffusers", "DDPMScheduler"]}
    runtime.write_json(folder / INDEX, {"_class_name": "DDPMPipeline", **classes})
