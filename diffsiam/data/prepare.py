"""Stage `data`: any data set becomes memory-mappable uint8 arrays at the encoder's size.

Results depend on the images and on `params.Data`, not on threads, dates or the place of the data.
"""

from __future__ import annotations

import dataclasses
import functools
import itertools
import os
import shutil
import sys
import tempfile
from collections.abc import Callable, Mapping
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any

import numpy as np
from PIL import Image

from diffsiam import params, runtime
from diffsiam.data import (
    download,
    embedded,
    images,
    own,
    places,
    published,
    published_grids,
    readers,
    sources,
    unlabelled,
)
from diffsiam.data.grid import Grid
from diffsiam.data.images import WORKERS
from diffsiam.data.readers import Source, Split
from diffsiam.errors import UserError

_TASK = 32  # images that a thread takes at a time


def run(
    dataset: str, cfg: params.Data, out: Path, attributes: Path | None = None, entries: sources.Entries | None = None
) -> None:
    """Prepare one data set.

    Writes into ``out``, meta.json last:
        images_train.npy, images_test.npy: uint8, (N, image_size, image_size, 3); names of the images, bytes (N,), in
            place of the train images of a data set too large for an array (`diffsiam.data.images`).
        labels_train.npy, labels_test.npy: int64, (N,).
        attributes_train.npy, attributes_test.npy: uint8 in {0, 1}, (N, A); A is 0 where the source has no attributes.
        targets_train.npy, targets_test.npy: float32, (N, T), continuous labels; T is 0 where the source has none.
        meta.json: dataset, classes, image_size, metric, counts, splits (val: indices into train), attributes,
            targets, source, broken (names of images left out), sha256 of every array file; of a grid of factors also
            grid: names and sizes of the factors, the slowest first (`diffsiam.data.grid.Grid.of`).

    Train holds train and val. The val part is the data set's own where it has one, else a seeded, stratified
    ``val_fraction`` of train. Of a grid of factors train is the whole grid in its order, and test some of it
    (`drawn`).

    Args:
        attributes: a CSV of attributes for a source without them (`unlabelled.with_attributes`).
        entries: section `datasets` of params.yaml, where ``dataset`` may be one of one's own.
    Raises:
        UserError: nothing found and no download; a damaged or incomplete source; too many broken images; no
            space. What an earlier run left in ``out`` is then untouched.
    """
    row = sources.get(dataset, entries)
    source = find(row, params.place(cfg.root), cfg)
    if attributes is not None:
        source = unlabelled.with_attributes(source, attributes)
    try:
        out.mkdir(parents=True, exist_ok=True)
        for stale in out.glob(".preparing-*"):
            shutil.rmtree(stale)
        with tempfile.TemporaryDirectory(prefix=".preparing-", dir=out) as folder:
            meta = write(row, source, cfg, Path(folder))
            (out / "meta.json").unlink(missing_ok=True)
            for file in meta["sha256"]:
                os.replace(Path(folder) / file, out / file)
            runtime.write_json(out / "meta.json", meta)
    except OSError as e:
        need = sum(len(s) for s in source.splits.values()) * 3 * cfg.image_size**2 / 1e6
        raise UserError(
            f"{dataset}: cannot write to {out} ({e.strerror}). It needs {need:.0f} MB there; make room and run again."
        ) from None


def find(row: sources.DataSet, root: Path, cfg: params.Data) -> Source:
    """The images of a data set from where its entry or `places.locate` finds them; where it finds none, from a download
    into torchvision's layout."""
    if row.own is not None:
        return own.read(row.name, row.own, cfg.split_seed)
    place = places.locate(row, root)
    match place.kind:
        case "embedded":
            return embedded.source(row.name, cfg.image_size, cfg.split_seed)
        case "class folders":
            return readers.class_folders(row.name, root)
        case "tar":
            return unlabelled.celeba_tar(root) if row.name == "CelebA" else readers.tar(row.name, root)
        case "absent":
            published_grids.check_packages(row)
            download.fetch(row, root)
    if row.factors:
        return published_grids.read(row, root)
    return published.read(row, root, cfg.split_seed, cfg.image_size)


def write(row: sources.DataSet, source: Source, cfg: params.Data, folder: Path) -> dict[str, Any]:
    """Write the arrays of ``source`` into ``folder`` and return what meta.json is to hold."""
    splits = {"train": joined(source.splits)}
    if row.factors:
        splits["test"] = drawn(row, folder / "images_train.npy", cfg.split_seed)
    else:
        splits["test"] = source.splits["test"]
    arrays: dict[str, dict[str, np.ndarray]] = {"labels": {}, "attributes": {}, "targets": {}}
    kept: dict[str, np.ndarray] = {}
    broken: list[str] = []
    for part, split in splits.items():
        streamed = row.streamed and part == "train" and "folder" in source.origin
        where, what = folder / f"images_{part}.npy", f"{row.name} {part}"
        if streamed:
            if cfg.resize != "short_side":
                raise UserError(
                    f"data.resize: met {cfg.resize}, but the images of {row.name} stay where they are and are read by "
                    "their short side when they are asked for. Choose short_side."
                )
            kept[part], left_out = write_names(where, split)
        else:
            kept[part], left_out = write_images(where, split, cfg.image_size, what, images.SIZED[cfg.resize])
        _check_broken(row.name, part, source, split, left_out, cfg.max_broken)
        broken += [split.names[i] for i in left_out]
        arrays["labels"][part] = split.labels[kept[part]].astype(np.int64)
        none = np.zeros((len(split), 0))
        for kind, rows, dtype in (("attributes", split.attributes, np.uint8), ("targets", split.targets, np.float32)):
            arrays[kind][part] = (none if rows is None else rows)[kept[part]].astype(dtype)
    for kind, parts in arrays.items():
        for part, array in parts.items():
            np.save(folder / f"{kind}_{part}.npy", array)
    meta = {
        "dataset": row.name,
        "classes": list(source.classes),
        "image_size": cfg.image_size,
        "metric": row.metric,
        "counts": {part: len(indices) for part, indices in kept.items()},
        "splits": {"val": _validation(row, source, kept["train"], arrays["labels"]["train"], cfg)},
        "attributes": list(source.attributes),
        "targets": list(source.targets),
        "source": dict(source.origin),
        "broken": broken,
        "sha256": {path.name: runtime.sha256(path) for path in sorted(folder.glob("*.npy"))},
    }
    if row.factors:
        meta["grid"] = dataclasses.asdict(Grid.named(row.factors))
    return meta


def joined(splits: Mapping[str, Split]) -> Split:
    """Train followed by val, where there is one."""
    train, val = splits["train"], splits.get("val")
    if val is None:
        return train
    n = len(train)
    return Split(
        [*train.names, *val.names],
        np.concatenate([train.labels, val.labels]),
        lambda i: train.load(i) if i < n else val.load(i - n),
        None if train.attributes is None else np.concatenate([train.attributes, val.attributes]),
        None if train.targets is None else np.concatenate([train.targets, val.targets]),
    )


def drawn(row: sources.DataSet, train: Path, split_seed: int) -> Split:
    """``row.test`` images of a grid of factors, for figures, in the order of their lot: out of ``train``, the array
    that was written for train, since a compressed file is read only once, from its start to its end."""
    rows = runtime.rng(split_seed, "grid/test", row.name).permutation(row.train)[: row.test]
    written = functools.cache(lambda: np.load(train, mmap_mode="r"))
    names = [f"row {i}" for i in rows]
    return Split(names, np.zeros(len(rows), np.int64), lambda i: Image.fromarray(written()[rows[i]]))


def write_images(
    path: Path,
    split: Split,
    size: int,
    what: str,
    resize: Callable[[Image.Image, int], Image.Image] = images.resize,
) -> tuple[np.ndarray, dict[int, str]]:
    """Stream a split into a .npy file, leaving out images that cannot be read.

    Returns:
        Indices of the images that were written, in order: int64, (N,); indices of the others, with the cause.
    """

    def pixels(i: int) -> bytes | str:
        try:
            return images.attempt(lambda: resize(split.load(i), size).tobytes())
        except images.BrokenImage as e:
            return str(e)

    def task(start: int) -> list[tuple[int, bytes | str]]:
        return [(i, pixels(i)) for i in range(start, min(start + _TASK, len(split)))]

    def header(count: int) -> dict[str, Any]:
        return {"descr": "|u1", "fortran_order": False, "shape": (count, size, size, 3)}

    kept: list[int] = []
    broken: dict[int, str] = {}
    progress = runtime.Progress(len(split), what, "images")
    # Written in sequence, not through a memory map: a full disk is then an error, not a bus error.
    with open(path, "wb") as f, ThreadPoolExecutor(WORKERS) as pool:
        np.lib.format.write_array_header_1_0(f, header(len(split)))
        begin = f.tell()
        for start in range(0, len(split), _TASK * WORKERS):  # few at a time: results wait in memory
            starts = range(start, min(start + _TASK * WORKERS, len(split)), _TASK)
            for i, image in itertools.chain.from_iterable(pool.map(task, starts)):
                if isinstance(image, bytes):
                    f.write(image)
                    kept.append(i)
                else:
                    broken[i] = image
                progress.update()
        f.seek(0)
        np.lib.format.write_array_header_1_0(f, header(len(kept)))  # the format pads it for a change of length
        assert f.tell() == begin
    progress.close()
    return np.array(kept, np.int64), broken


def write_names(path: Path, split: Split) -> tuple[np.ndarray, dict[int, str]]:
    """Write where a split's images are to be found instead of the images; all of them, as `write_images` returns."""
    np.save(path, np.array([images.encode_name(name) for name in split.names]))
    return np.arange(len(split)), {}


def _check_broken(
    name: str, part: str, source: Source, split: Split, broken: Mapping[int, str], max_broken: float
) -> None:
    """Say which images are left out, and why; a `UserError` where they are too many or a whole class."""
    said = images.causes((split.names[i], cause) for i, cause in broken.items())
    if len(broken) > max_broken * len(split):
        raise UserError(
            f"{name}: {len(broken)} of {len(split)} {part} images are missing or cannot be read: {said}. "
            f"Replace or remove them, or allow more than data.max_broken = {max_broken:g} (a share of the split)."
        )
    counts = np.bincount(np.delete(split.labels, list(broken)), minlength=len(source.classes))
    if empty := [source.classes[c] for c in np.flatnonzero(counts == 0).tolist()]:
        raise UserError(
            f"{name}: {part} has no readable image of {len(empty)} classes: {', '.join(empty[:5])}. "
            f"Left out: {said or 'none'}."
        )
    if broken:
        print(f"{name}: left out {len(broken)} of {len(split)} {part} images: {said}", file=sys.stderr, flush=True)


def _validation(
    row: sources.DataSet, source: Source, kept: np.ndarray, labels: np.ndarray, cfg: params.Data
) -> list[int]:
    """Indices into the written train images that choose the penalty."""
    key, fraction = "data.val_fraction", cfg.val_fraction
    if row.own is not None and row.own.validation is not None:
        key, fraction = f"datasets.{row.name}.validation", row.own.validation
    if "val" in source.splits:
        chosen = np.flatnonzero(kept >= len(source.splits["train"]))
    else:
        chosen = readers.validation(labels, fraction, cfg.val_draw, cfg.split_seed, row.name)
    if not len(chosen):
        raise UserError(
            f"{row.name}: {key} = {fraction:g} of {len(labels)} train images leaves no validation image. Raise it, or "
            "bring more images."
        )
    return chosen.tolist()
