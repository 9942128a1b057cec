"""Fetch published archives: verified, and never half a file or folder under a final name."""

from __future__ import annotations

import hashlib
import http
import http.client
import os
import shutil
import sys
import tarfile
import tempfile
import urllib.error
import urllib.request
import zipfile
import zlib
from collections.abc import Sequence
from pathlib import Path

from diffsiam import params, runtime
from diffsiam.data import places
from diffsiam.data.sources import Archive, DataSet
from diffsiam.errors import UserError

RECORD = "checksums.json"  # under data.root: sha256 of archives that nobody publishes a checksum of
_TIMEOUT = 60.0  # seconds without a byte
_MEGABYTE = 1 << 20


def fetch(row: DataSet, root: Path) -> None:
    """Bring every missing part of a data set to its place in torchvision's layout under ``root``.

    An archive that lies in its folder already is verified and unpacked, not downloaded.

    Raises:
        UserError: no network, no working address, a wrong checksum, a damaged archive, no space. It names what to
            place where.
    """
    missing = [archive for archive in row.archives if not archive.present(root)]
    for archive in missing:
        path = root / archive.folder / archive.file
        recorded = runtime.read_json(root / RECORD) if (root / RECORD).exists() else {}
        first_seen = f"sha256:{recorded[archive.file]}" if archive.file in recorded else None
        checksum = archive.checksum or first_seen
        try:
            if path.exists():
                verify(path, checksum)
            elif archive.url is None:
                raise UserError("there is no address to fetch it from.")
            else:
                download(archive.url, path, checksum)
            if archive.makes:
                unpack(path, archive.makes)
        except UserError as e:
            raise UserError(f"{row.name}: {e}\n{instructions(row, root, missing)}") from None
        if checksum is None:
            runtime.write_json(root / RECORD, {**recorded, archive.file: runtime.sha256(path)})


def absent(row: DataSet, root: Path) -> str | None:
    """A line on what a data set lacks: what will be fetched from where, or has to be placed; None where it is there, or
    its job will say what is wrong."""
    if row.own is not None:
        path = params.place(row.own.path)
        return None if os.path.exists(path) else f"{row.name}: {path}, which datasets.{row.name}.path names"
    try:
        if places.locate(row, root).kind != "absent":
            return None
    except UserError:
        return None
    missing = [archive for archive in row.archives if not archive.present(root)]
    size = sum(archive.megabytes or 0 for archive in missing)
    about = f"{row.name}{f', about {size} MB' * bool(size)}"
    files = {root / archive.folder / archive.file: archive.url for archive in missing}
    if by_hand := [str(file) for file, url in files.items() if not (url or file.exists())]:
        return f"{about}: no address to fetch it from; place {', '.join(by_hand)} (docs/data.md says where they are)"
    return f"{about}: will be fetched from {', '.join(url or str(file) for file, url in files.items())}"


def instructions(row: DataSet, root: Path, archives: Sequence[Archive]) -> str:
    """What to place where, for a machine that cannot fetch ``archives``."""
    own = (
        f"class folders {root / row.name}/{{train,test}}/<class>/* with images, or "
        f"{root / row.name}.tar of such folders, or these files (torchvision's layout)"
    )
    lines = [f"To use {row.name}, place {'this file' if row.factors else own}:"]
    for archive in archives:
        facts = [f"about {archive.megabytes} MB"] if archive.megabytes else []
        facts += [archive.checksum] if archive.checksum else []
        facts += [f"from {archive.url}"] if archive.url else []
        unpacked = f", or unpacked there: {', '.join(archive.makes)}" if archive.makes else ""
        lines.append(f"  {root / archive.folder / archive.file} ({', '.join(facts)}){unpacked}")
    return "\n".join(lines)


def download(url: str, path: Path, checksum: str | None) -> None:
    """Download to ``<path>.part``, verify, and rename; a ``.part`` of an earlier try is continued.

    Args:
        url: http or https.
        path: the final name.
        checksum: ``md5:...`` or ``sha256:...``; None where there is nothing to compare with.
    Raises:
        UserError: the address does not answer, answers with an error, sends less than it announced, or sends
            something with another checksum.
    """
    part = path.with_name(path.name + ".part")
    try:
        _receive(url, part)
    except (OSError, http.client.HTTPException) as e:
        raise UserError(f"cannot fetch {url}: {e}.") from None
    try:
        verify(part, checksum)
    except UserError as e:
        part.unlink()
        raise UserError(f"{e} It came from {url} and was deleted.") from None
    part.replace(path)


def _receive(url: str, part: Path) -> None:
    have = part.stat().st_size if part.exists() else 0
    request = urllib.request.Request(url, headers={"User-Agent": "diffsiam"})
    if have:
        request.add_header("Range", f"bytes={have}-")
    try:
        response = urllib.request.urlopen(request, timeout=_TIMEOUT)
    except urllib.error.HTTPError as e:
        if e.code != http.HTTPStatus.REQUESTED_RANGE_NOT_SATISFIABLE:
            raise
        part.unlink()  # as long as the whole file or longer: its last run ended before the rename
        return _receive(url, part)
    with response:
        have = have if response.status == http.HTTPStatus.PARTIAL_CONTENT else 0
        announced = response.headers["Content-Length"]
        total = have + int(announced) if announced else None
        part.parent.mkdir(parents=True, exist_ok=True)
        progress = runtime.Progress(-(-(total or have) // _MEGABYTE), part.stem, "MiB", start=have // _MEGABYTE)
        with open(part, "ab" if have else "wb") as f:
            while block := response.read(_MEGABYTE):
                f.write(block)
                progress.update()
            size = f.tell()
        progress.close()
    if total is not None and size != total:
        raise OSError(f"it ended after {size} of {total} bytes; run again to continue")


def verify(path: Path, checksum: str | None) -> None:
    """Compare a file with ``md5:...`` or ``sha256:...``; None compares with nothing."""
    if checksum is None:
        return
    kind, expected = checksum.split(":")
    with open(path, "rb") as f:
        met = hashlib.file_digest(f, kind).hexdigest()
    if met != expected:
        raise UserError(f"{path.name}: wrong {kind}: expected {expected}, met {met}.")


def unpack(path: Path, makes: Sequence[str]) -> None:
    """Unpack an archive beside itself and move what it ``makes`` into place, each at once.

    Names are looked up at any depth of the archive; where only ``<name>.tar.gz`` is in it, that is unpacked too.
    """
    print(f"{path.name}: unpacking", file=sys.stderr, flush=True)
    prefix = f".unpacking-{path.name}-"
    for stale in path.parent.glob(f"{prefix}*"):
        shutil.rmtree(stale)
    try:
        with tempfile.TemporaryDirectory(prefix=prefix, dir=path.parent) as folder:
            _extract(path, Path(folder))
            for name in makes:
                for inner in list(Path(folder).rglob(f"{name}.tar.gz")):
                    _extract(inner, Path(folder))
                made = next((path for path in Path(folder).rglob(name) if "__MACOSX" not in path.parts), None)
                if made is None:
                    raise UserError(f"{path.name}: holds no {name}; it is another archive. Replace it.")
                if not (path.parent / name).exists():
                    os.replace(made, path.parent / name)
    except (tarfile.TarError, zipfile.BadZipFile, zlib.error, EOFError, OSError) as e:
        raise UserError(f"{path}: cannot be unpacked ({e}). If it is damaged, delete it and run again.") from None


def _extract(path: Path, folder: Path) -> None:
    if zipfile.is_zipfile(path):
        with zipfile.ZipFile(path) as zipped:
            zipped.extractall(folder)
    else:
        with tarfile.open(path) as tar:
            tar.extractall(folder, filter="data")
