"""How a source looks from outside, so that changed images are noticed without being read.

Snakemake's planning process takes the fingerprints, and the rules that read sources record them; jobs take none. Where
a source is away, the fingerprint that was seen last stands: a moved or unmounted `data.root` re-runs nothing.
"""

from __future__ import annotations

import hashlib
import os
from collections.abc import Iterable, Iterator
from pathlib import Path

from diffsiam import params, runtime
from diffsiam.data import own, places
from diffsiam.data.sources import DataSet
from diffsiam.errors import UserError

MEMORY = Path("results/sources")  # what was seen last, a file for each source; for git, so that every clone has it
DOWNLOADED = "downloaded"  # recorded for a source that was not there when its job was planned
# Files that are one source each, or parts of a network: another content may well have the same size.
_TIMED = (".tar", ".mdb", ".csv", ".npy", ".npz", ".h5", ".hdf5", ".safetensors", ".pt", ".pth")
_LOCKS = ("lock.mdb",)  # touched by every reader


def parts(row: DataSet, root: Path) -> list[Path]:
    """What is there of a data set under ``root``. What its job will refuse is part of it, so that the job runs and says
    so."""
    try:
        return list(places.locate(row, root).parts)
    except UserError:
        published = [part for archive in row.archives for part in archive.parts(root)]
        return [part for part in (*published, root / row.name, root / f"{row.name}.tar") if os.path.exists(part)]


def of(row: DataSet, root: Path) -> str | None:
    """The fingerprint of what is there of a data set: one's own by its entry of `datasets`, others under ``root``."""
    if row.own is None:
        return take(parts(row, root), root)
    place, table = params.place(row.own.path), params.place(row.own.attributes or "")
    images = take(own.parts(row.own), place)
    return f"{images} {take([table], table)}" if images and row.own.attributes else images


def model(place: Path) -> str | None:
    """The fingerprint of a diffusion model's files: of a folder, or of a file of weights what is read with it too, its
    shards, config and noise schedule."""
    beside = [place.with_name("scheduler")]
    if os.path.isfile(place):
        beside += [place.with_name(name) for name in ("config.json", "config.yml", "scheduler_config.json")]
        beside += [place.parent.with_name("scheduler"), *place.parent.glob(f"{place.name.partition('.')[0]}-*-of-*")]
    return take([place, *beside], place.parent)


def take(paths: Iterable[Path], folder: Path) -> str | None:
    """16 hexadecimal digits of the names, relative to ``folder``, and the sizes of all files in ``paths``; of tars,
    LMDBs, tables, arrays and weights also their times, in seconds. None where there is no file. Hidden names are left
    out.
    """
    lines = []
    for path in sorted({file for part in paths for file in _files(part)}):
        stat = path.stat()
        time = f" {int(stat.st_mtime)}" if path.suffix in _TIMED else ""
        lines.append(f"{os.path.relpath(path, folder)} {stat.st_size}{time}")
    text = "\n".join(lines).encode(errors="surrogateescape")
    return hashlib.sha256(text).hexdigest()[:16] if lines else None


def _files(part: Path) -> Iterator[Path]:
    if os.path.isfile(part):
        yield part
    walked: set[str] = set()
    for folder, folders, files in os.walk(part, followlinks=True):
        walked.add(os.path.realpath(folder))
        folders[:] = [
            name
            for name in folders
            if not places.hidden(name) and os.path.realpath(os.path.join(folder, name)) not in walked
        ]
        for name in files:
            path = Path(folder, name)
            if not places.hidden(name) and name not in _LOCKS and os.path.isfile(path):
                yield path


def recorded(source: str, now: str | None) -> str:
    """What a rule records of ``source``, whose fingerprint is ``now``, None where it is away.

    That is the fingerprint itself; the last one while the source is away; and `DOWNLOADED` for as long as the source is
    what was fetched by a job that was planned without it.
    """
    memory = MEMORY / f"{source}.json"
    known = runtime.read_json(memory) if memory.exists() else {}
    entry = dict(known)
    if now is not None and known.get("seen", now) is None:
        entry[DOWNLOADED] = now
    entry["seen"] = known.get("seen") if now is None else now
    if entry != known:
        runtime.write_json(memory, entry)
    return DOWNLOADED if entry["seen"] == entry.get(DOWNLOADED) else entry["seen"]
