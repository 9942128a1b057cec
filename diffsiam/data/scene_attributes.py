"""Pseudo-labels of a data set without attributes: its user's own table, or what an off-the-shelf predictor says.

The predictor is the one of the Places365 release: a wide ResNet-18 whose pooled features times a matrix are responses
to the 102 scene attributes of the SUN attribute database.
"""

from __future__ import annotations

import difflib
import pickle
import shutil
from collections.abc import Sequence
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import numpy as np
import torch
from PIL import Image
from torch import Tensor, nn

from diffsiam import params, runtime
from diffsiam.data import prepare, sources
from diffsiam.data.images import WORKERS, BrokenImage, attempt
from diffsiam.data.readers import Split
from diffsiam.errors import UserError

NETWORK = "wideresnet18_places365.pth.tar"
MATRIX = "W_sceneattribute_wideresnet18.npy"  # (attributes, features)
LABELS = "labels_sunattribute.txt"  # one name a line
_ADDRESS = "http://places2.csail.mit.edu/models_places365/ and https://github.com/CSAILVision/places365"
_SIDE, _MEAN, _STD = 224, (0.485, 0.456, 0.406), (0.229, 0.224, 0.225)
_BATCH = 64


def run(dataset: str, names: Sequence[str], cfg: params.Data, rt: params.Runtime, out: Path) -> None:
    """Write the attributes of every image of ``dataset`` to ``out``, a CSV: ``image,<name>,...``.

    ``<data.root>/<dataset>_attributes.csv`` is taken as it is where it exists. Otherwise the predictor's files must lie
    in ``<data.root>/places365/``; a value is then its response less the mean response over the data set: the responses
    have no zero of their own, so an attribute is present where it is stronger than usual here.

    Args:
        names: attributes to predict.
    Raises:
        UserError: neither is there; a file of the predictor is not what it should be; an attribute it does not know.
    """
    root = params.place(cfg.root)
    own, folder = root / f"{dataset}_attributes.csv", root / "places365"
    if own.is_file():
        with runtime.atomic(out) as temporary:
            shutil.copyfile(own, temporary)
        return
    if missing := [name for name in (NETWORK, MATRIX, LABELS) if not (folder / name).is_file()]:
        raise UserError(
            f"{dataset} has no attributes of its own. Place a table at {own} (header image,<name>,..., one row per "
            "image, present where the number is above 0), or these files of the Places365 scene-attribute predictor in "
            f"{folder}: {', '.join(missing)}, from {_ADDRESS}."
        )
    device = runtime.select_device(rt)
    network, matrix = load(folder, names)
    network.to(device)
    splits = prepare.find(sources.get(dataset), root, cfg).splits.values()
    responses = np.concatenate([respond(network, matrix, split, device) for split in splits])
    write(out, [name for split in splits for name in split.names], names, responses - responses.mean(axis=0))


def load(folder: Path, names: Sequence[str]) -> tuple[nn.Module, Tensor]:
    """The network up to its pooled features, and the rows (A, features) of the matrix that belong to ``names``."""
    from torchvision.models import resnet18

    known = [line.strip() for line in (folder / LABELS).read_text().splitlines() if line.strip()]
    for name in names:
        if name not in known:
            near = difflib.get_close_matches(name, known, n=3) or known
            raise UserError(f"{folder / LABELS}: no attribute {name!r}. Near it: {', '.join(near)}.")
    network = resnet18(num_classes=365)
    network.maxpool = nn.Identity()  # as the published network: its last map is 14x14
    try:
        state = torch.load(folder / NETWORK, map_location="cpu", weights_only=True)["state_dict"]
        network.load_state_dict({name.removeprefix("module."): value for name, value in state.items()})
        matrix = np.load(folder / MATRIX).astype(np.float32)
    except (OSError, RuntimeError, LookupError, ValueError, TypeError, pickle.UnpicklingError) as e:
        raise UserError(
            f"{folder}: not the published scene-attribute predictor ({e}). Fetch it from {_ADDRESS}."
        ) from None
    if matrix.shape != (len(known), network.fc.in_features):
        raise UserError(
            f"{folder / MATRIX}: met shape {matrix.shape}, needed is {(len(known), network.fc.in_features)}: a row for "
            f"each line of {LABELS}. Fetch it from {_ADDRESS}."
        )
    network.fc = nn.Identity()  # type: ignore[assignment]
    return network.eval(), torch.from_numpy(matrix[[known.index(name) for name in names]])


@torch.no_grad()
def respond(network: nn.Module, matrix: Tensor, split: Split, device: torch.device) -> np.ndarray:
    """Responses (N, A) to the images of a split, float32."""
    mean, std = (torch.tensor(v, device=device).view(1, 3, 1, 1) for v in (_MEAN, _STD))
    progress, out = runtime.Progress(len(split), "scene attributes", "images"), []

    def pixels(i: int) -> np.ndarray:
        try:
            return attempt(lambda: np.asarray(split.load(i).resize((_SIDE, _SIDE), Image.Resampling.BILINEAR)))
        except BrokenImage as e:
            raise UserError(f"image {split.names[i]}: cannot be read: {e}. Replace or remove it.") from None

    with ThreadPoolExecutor(WORKERS) as pool:
        for start in range(0, len(split), _BATCH):
            batch = np.stack(list(pool.map(pixels, range(start, min(start + _BATCH, len(split))))))
            x = torch.from_numpy(batch).to(device).permute(0, 3, 1, 2) / 255
            out.append((network((x - mean) / std).cpu() @ matrix.T).numpy())
            progress.update(len(batch))
    progress.close()
    return np.concatenate(out)


def write(out: Path, images: Sequence[str], names: Sequence[str], values: np.ndarray) -> None:
    """Write the table."""
    import pandas as pd

    frame = pd.DataFrame(values, index=pd.Index(images, name="image"), columns=list(names))
    with runtime.atomic(out) as temporary:
        frame.to_csv(temporary, float_format="%.5g", errors="surrogateescape")  # names of files may be any bytes
