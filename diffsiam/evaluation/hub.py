"""Published weights in PyTorch's own cache, where torch.hub puts them: their names end in their checksum's start.

Snakemake's planning looks here too, so nothing imports PyTorch before a file is read.
"""

from __future__ import annotations

import importlib.util
import os
import pickle
import re
import sys
from pathlib import Path
from typing import NamedTuple

from diffsiam import runtime
from diffsiam.errors import UserError


class Weights(NamedTuple):
    """Of which network, the library that runs it, the address, the size."""

    network: str
    library: str
    url: str
    megabytes: int

    @property
    def usable(self) -> bool:
        return place(self.url).is_file() and importlib.util.find_spec(self.library.replace("-", "_")) is not None


_FIDELITY = "https://github.com/toshas/torch-fidelity/releases/download"
METRICS = {  # what metrics of images need
    "lpips": Weights("AlexNet", "torchmetrics", "https://download.pytorch.org/models/alexnet-owt-7be5be79.pth", 233),
    "fid": Weights(
        "Inception-v3", "torch-fidelity", f"{_FIDELITY}/v0.2.0/weights-inception-2015-12-05-6726825d.pth", 91
    ),
}


def usable() -> list[str]:
    """Those of `METRICS` that can be taken here."""
    return [metric for metric, weights in METRICS.items() if weights.usable]


def found(metric: str) -> Path | None:
    """The weights of one of `METRICS`, which are never fetched; None, and a line that says why, where they or their
    library are not there.

    Raises:
        UserError: the file of that name is another one.
    """
    weights = METRICS[metric]
    path = place(weights.url)
    if not weights.usable:
        print(
            f"No {metric} among the numbers: it takes {weights.network}'s published weights and {weights.library}. Put "
            f"{weights.url} ({weights.megabytes} MB) at {path}, `pip install {weights.library}`, and run again.",
            file=sys.stderr,
        )
        return None
    if not fits(path):
        raise UserError(
            f"{path}: its sha256 does not start with {named_hash(path.name)}, so it is damaged or another file. Fetch "
            f"{weights.url} anew, or delete it: the numbers then have no {metric}."
        )
    check_plain(path)
    return path


def place(url: str) -> Path:
    """Where the cache keeps the file behind an address, whether it is there or not."""
    home = os.environ.get("TORCH_HOME") or os.path.join(os.environ.get("XDG_CACHE_HOME", "~/.cache"), "torch")
    return Path(home).expanduser() / "hub" / "checkpoints" / url.rsplit("/", 1)[1]


def named_hash(url: str) -> str:
    """The start of a file's sha256 that its publisher puts in its name, "" where there is none."""
    named = re.search(r"-([a-f0-9]+)\.", url)
    return named.group(1) if named else ""


def fits(path: Path) -> bool:
    """Whether the file's sha256 starts as its name says."""
    return runtime.sha256(path).startswith(named_hash(path.name))


def check_plain(path: Path) -> None:
    """A `UserError` where a file of torch.save's holds more than tensors: libraries read it with plain pickle, after
    their checksum. torchvision also knows what differs in the names of old files."""
    import torch

    try:
        torch.load(path, map_location="cpu", weights_only=True)
    except (OSError, RuntimeError, EOFError, ValueError, pickle.UnpicklingError) as e:
        reason = str(e).partition("\n")[0].rstrip(". ")
        raise UserError(f"{path}: holds more than tensors, or damaged ({reason}). Delete it and get it anew.") from None
