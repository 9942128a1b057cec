from __future__ import annotations

import dataclasses
import hashlib
import io
import json
import random
import socket
import tarfile
import zipfile
from pathlib import Path

import pytest
from small_data import save_image

from diffsiam import params, runtime
from diffsiam.data import download, prepare, sources
from diffsiam.data.sources import Archive, DataSet
from diffsiam.errors import UserError
from tests.data.served import Web

BODY = random.Random(0).randbytes(3_000_000)
MD5 = f"md5:{hashlib.md5(BODY).hexdigest()}"
SHA256 = f"sha256:{hashlib.sha256(BODY).hexdigest()}"


def left(folder: Path) -> list[str]:
    return sorted(p.relative_to(folder).as_posix() for p in folder.rglob("*") if p.is_file())


# ---------------------------------------------------------------------------------------------------- one file
@pytest.mark.parametrize("checksum", [MD5, SHA256, None])
def test_a_good_file_arrives_under_its_name(tmp_path: Path, web: Web, checksum: str | None) -> None:
    web.files["x.bin"] = BODY
    download.download(web.url("x.bin"), tmp_path / "sub" / "x.bin", checksum)
    assert (tmp_path / "sub" / "x.bin").read_bytes() == BODY
    assert left(tmp_path) == ["sub/x.bin"]


def test_an_address_that_is_not_there_leaves_nothing(tmp_path: Path, web: Web) -> None:
    with pytest.raises(UserError, match=r"cannot fetch http://127\.0\.0\.1:\d+/gone\.bin: .*404"):
        download.download(web.url("gone.bin"), tmp_path / "sub" / "gone.bin", MD5)
    assert list(tmp_path.iterdir()) == []


def test_a_refused_connection_leaves_nothing(tmp_path: Path) -> None:
    with socket.socket() as s:
        s.bind(("127.0.0.1", 0))  # taken, and nobody listens
        with pytest.raises(UserError, match=r"cannot fetch .*refused"):
            download.download(f"http://127.0.0.1:{s.getsockname()[1]}/x.bin", tmp_path / "x.bin", None)
    assert list(tmp_path.iterdir()) == []


def test_a_wrong_checksum_is_named_and_leaves_nothing(tmp_path: Path, web: Web) -> None:
    web.files["x.bin"] = BODY[:-1] + bytes([BODY[-1] ^ 1])
    met = hashlib.md5(web.files["x.bin"]).hexdigest()
    with pytest.raises(UserError, match=rf"expected {MD5[4:]}, met {met}"):
        download.download(web.url("x.bin"), tmp_path / "x.bin", MD5)
    assert left(tmp_path) == []


def test_a_cut_download_is_kept_apart_and_continued(tmp_path: Path, web: Web) -> None:
    web.files["x.bin"], web.cut = BODY, 1_234_567
    with pytest.raises(UserError, match=r"ended after 1234567 of 3000000 bytes"):
        download.download(web.url("x.bin"), tmp_path / "x.bin", MD5)
    assert left(tmp_path) == ["x.bin.part"]
    web.cut = None
    download.download(web.url("x.bin"), tmp_path / "x.bin", MD5)
    assert web.requests[-1] == ("/x.bin", "bytes=1234567-")
    assert (tmp_path / "x.bin").read_bytes() == BODY
    assert left(tmp_path) == ["x.bin"]


def test_a_server_that_cannot_continue_starts_the_file_again(tmp_path: Path, web: Web) -> None:
    web.files["x.bin"], web.ranges = BODY, False
    (tmp_path / "x.bin.part").write_bytes(BODY[:1000])
    download.download(web.url("x.bin"), tmp_path / "x.bin", MD5)
    assert (tmp_path / "x.bin").read_bytes() == BODY


def test_a_part_of_full_length_does_not_block_the_file(tmp_path: Path, web: Web) -> None:
    web.files["x.bin"] = BODY
    (tmp_path / "x.bin.part").write_bytes(BODY)
    download.download(web.url("x.bin"), tmp_path / "x.bin", MD5)
    assert (tmp_path / "x.bin").read_bytes() == BODY


def test_a_part_of_another_file_is_found_by_its_checksum(tmp_path: Path, web: Web) -> None:
    web.files["x.bin"] = BODY
    (tmp_path / "x.bin.part").write_bytes(b"old" * 100)
    with pytest.raises(UserError, match="wrong md5"):
        download.download(web.url("x.bin"), tmp_path / "x.bin", MD5)
    assert left(tmp_path) == []  # so that the next run starts anew
    download.download(web.url("x.bin"), tmp_path / "x.bin", MD5)


# ----------------------------------------------------------------------------------------------------- archives
def packed(files: dict[str, bytes]) -> bytes:
    """A tar.gz of files."""
    buffer = io.BytesIO()
    with tarfile.open(fileobj=buffer, mode="w:gz") as archive:
        for name, data in files.items():
            info = tarfile.TarInfo(name)
            info.size = len(data)
            archive.addfile(info, io.BytesIO(data))
    return buffer.getvalue()


def zipped(files: dict[str, bytes]) -> bytes:
    buffer = io.BytesIO()
    with zipfile.ZipFile(buffer, "w") as archive:
        for name, data in files.items():
            archive.writestr(name, data)
    return buffer.getvalue()


def png(tmp_path: Path, seed: int) -> bytes:
    return save_image(tmp_path / "scratch.png", seed).read_bytes()


def serve(web: Web, name: str, archives: dict[str, bytes], *, checksums: bool = True) -> DataSet:
    """The row of a data set whose archives lie on the local server."""
    row = sources.get(name)
    local = []
    for archive in row.archives:
        data = archives[archive.file]
        web.files[archive.file] = data
        checksum = f"sha256:{hashlib.sha256(data).hexdigest()}" if checksums else None
        local.append(dataclasses.replace(archive, url=web.url(archive.file), checksum=checksum))
    return dataclasses.replace(row, archives=tuple(local))


def dtd_archive(tmp_path: Path) -> bytes:
    files = {}
    for k, part in enumerate(("train", "val", "test")):
        files[f"dtd/labels/{part}1.txt"] = f"banded/b{k}.jpg\ndotted/d{k}.jpg\n".encode()
        files |= {f"dtd/images/banded/b{k}.jpg": png(tmp_path, k), f"dtd/images/dotted/d{k}.jpg": png(tmp_path, 9 + k)}
    return packed(files)


def test_a_data_set_is_fetched_unpacked_and_read_and_not_fetched_again(
    tmp_path: Path, cfg: params.Data, web: Web
) -> None:
    row = serve(web, "DTD", {"dtd-r1.0.1.tar.gz": dtd_archive(tmp_path)})
    for _ in range(2):
        source = prepare.find(row, Path(cfg.root), cfg)
        assert {part: len(split) for part, split in source.splits.items()} == {"train": 2, "val": 2, "test": 2}
    assert web.requests == [("/dtd-r1.0.1.tar.gz", None)]
    assert not list(Path(cfg.root).rglob(".*"))  # no temporary folder stays


def test_an_archive_in_a_zip_is_unpacked_too(tmp_path: Path, cfg: params.Data, web: Web) -> None:
    images = {f"101_ObjectCategories/Faces/image_{i:04d}.jpg": png(tmp_path, i) for i in range(1, 32)}
    inner = {"caltech-101/101_ObjectCategories.tar.gz": packed(images), "__MACOSX/caltech-101/._x": b""}
    source = prepare.find(serve(web, "Caltech", {"caltech-101.zip": zipped(inner)}), Path(cfg.root), cfg)
    assert (source.classes, len(source.splits["train"]), len(source.splits["test"])) == (["Faces"], 30, 1)


def test_what_a_mac_adds_to_an_archive_is_not_taken_for_its_content(tmp_path: Path, cfg: params.Data, web: Web) -> None:
    images = {f"a/101_ObjectCategories/Faces/image_{i:04d}.jpg": png(tmp_path, i) for i in range(1, 32)}
    files = {"__MACOSX/101_ObjectCategories/._Faces": b"x", **images}
    source = prepare.find(serve(web, "Caltech", {"caltech-101.zip": zipped(files)}), Path(cfg.root), cfg)
    assert source.classes == ["Faces"]


def test_a_data_set_of_two_archives_needs_both(tmp_path: Path, cfg: params.Data, web: Web) -> None:
    images = {"SUN397/ClassName.txt": b"/a/abbey\n"}
    images |= {f"SUN397/a/abbey/sun_{i}.jpg": png(tmp_path, i) for i in (1, 2)}
    lists = {"Training_01.txt": b"/a/abbey/sun_1.jpg\n", "Testing_01.txt": b"/a/abbey/sun_2.jpg", "README": b""}
    row = serve(web, "SUN", {"SUN397.tar.gz": packed(images), "Partitions.zip": zipped(lists)})
    body = web.files.pop("Partitions.zip")
    with pytest.raises(UserError, match=r"SUN: cannot fetch .*Partitions\.zip: .*404"):
        prepare.find(row, Path(cfg.root), cfg)
    web.files["Partitions.zip"] = body
    source = prepare.find(row, Path(cfg.root), cfg)
    assert source.splits["test"].names == ["SUN397/a/abbey/sun_2.jpg"]
    assert [path for path, _ in web.requests] == ["/SUN397.tar.gz", "/Partitions.zip", "/Partitions.zip"]


def test_without_a_published_checksum_the_first_fetch_is_recorded_and_verified_later(
    tmp_path: Path, cfg: params.Data, web: Web
) -> None:
    root = Path(cfg.root)
    row = serve(web, "DTD", {"dtd-r1.0.1.tar.gz": dtd_archive(tmp_path)}, checksums=False)
    prepare.find(row, root, cfg)
    digest = hashlib.sha256(web.files["dtd-r1.0.1.tar.gz"]).hexdigest()
    assert json.loads((root / "checksums.json").read_text()) == {"dtd-r1.0.1.tar.gz": digest}
    (root / "dtd" / "dtd").rename(tmp_path / "moved")
    (root / "dtd" / "dtd-r1.0.1.tar.gz").unlink()
    web.files["dtd-r1.0.1.tar.gz"] = packed({"dtd/other": b""})
    with pytest.raises(UserError, match=f"wrong sha256: expected {digest}"):
        prepare.find(row, root, cfg)
    assert not (root / "dtd" / "dtd").exists()


@pytest.mark.parametrize("damage", ["cut", "garbage", "other content"])
def test_a_damaged_archive_without_a_checksum_leaves_nothing_that_looks_complete(
    tmp_path: Path, cfg: params.Data, web: Web, damage: str
) -> None:
    root, whole = Path(cfg.root), dtd_archive(tmp_path)
    body = {"cut": whole[: len(whole) // 2], "garbage": b"<html>" * 99, "other content": packed({"x/y": b""})}[damage]
    row = serve(web, "DTD", {"dtd-r1.0.1.tar.gz": body}, checksums=False)
    with pytest.raises(UserError, match=r"DTD: .*dtd-r1\.0\.1\.tar\.gz: (cannot be unpacked|holds no dtd)"):
        prepare.find(row, root, cfg)
    assert left(root) == ["dtd/dtd-r1.0.1.tar.gz"]
    assert not any(archive.present(root) for archive in row.archives)
    assert not (root / "checksums.json").exists()


def test_an_archive_cannot_write_outside_its_folder(tmp_path: Path, cfg: params.Data, web: Web) -> None:
    row = serve(web, "DTD", {"dtd-r1.0.1.tar.gz": packed({"dtd/x": b"", "../../evil": b"x"})})
    with pytest.raises(UserError, match=r"cannot be unpacked.*\.\./\.\./evil"):
        download.fetch(row, Path(cfg.root))
    assert left(Path(cfg.root)) == ["dtd/dtd-r1.0.1.tar.gz"]
    (Path(cfg.root) / "dtd" / "dtd-r1.0.1.tar.gz").unlink()
    row = serve(web, "DTD", {"dtd-r1.0.1.tar.gz": packed({"dtd/x": b"", str(tmp_path / "evil"): b"x"})})
    download.fetch(row, Path(cfg.root))  # an absolute name is read as a relative one, and is nothing that is asked for
    assert not list(tmp_path.rglob("evil"))


def test_an_archive_placed_by_hand_is_verified_and_unpacked_without_a_network(tmp_path: Path, cfg: params.Data) -> None:
    root, body = Path(cfg.root), dtd_archive(tmp_path)
    (root / "dtd").mkdir()
    (root / "dtd" / "dtd-r1.0.1.tar.gz").write_bytes(body)
    (archive,) = sources.get("DTD").archives
    archive = dataclasses.replace(archive, url=None, checksum=f"sha256:{hashlib.sha256(body).hexdigest()}")
    row = dataclasses.replace(sources.get("DTD"), archives=(archive,))
    assert len(prepare.find(row, root, cfg).splits["train"]) == 2
    (root / "dtd" / "dtd").rename(tmp_path / "moved")
    with pytest.raises(UserError, match=r"dtd-r1\.0\.1\.tar\.gz: wrong md5"):
        prepare.find(sources.get("DTD"), root, cfg)  # not the published one
    assert left(root) == ["dtd/dtd-r1.0.1.tar.gz"]  # the user's file stays


# ------------------------------------------------------------------------------------------------- what to place
def test_without_a_network_one_message_names_address_file_size_checksum_and_folder(cfg: params.Data) -> None:
    with socket.socket() as s:
        s.bind(("127.0.0.1", 0))
        url = f"http://127.0.0.1:{s.getsockname()[1]}/food-101.tar.gz"
        archive = Archive("food-101.tar.gz", "sub", ("food-101",), url, MD5, 5000)
        row = dataclasses.replace(sources.get("Food"), archives=(archive,))
        with pytest.raises(UserError) as e:
            prepare.find(row, Path(cfg.root), cfg)
    message = str(e.value)
    for part in (url, f"{cfg.root}/sub/food-101.tar.gz", "about 5000 MB", MD5, f"{cfg.root}/Food.tar", "refused"):
        assert part in message, part
    assert list(Path(cfg.root).iterdir()) == []


def test_stanford_cars_says_which_files_to_place_where(cfg: params.Data) -> None:
    with pytest.raises(UserError, match="Cars: there is no address to fetch it from") as e:
        prepare.find(sources.get("Cars"), Path(cfg.root), cfg)
    for name in ("car_devkit.tgz", "cars_train.tgz", "cars_test.tgz", "cars_test_annos_withlabels.mat"):
        assert f"{cfg.root}/stanford_cars/{name}" in str(e.value)


def test_what_a_data_set_lacks_is_one_line_with_its_size_and_address_or_the_files_to_place(tmp_path: Path) -> None:
    def line(name: str) -> str | None:
        return download.absent(sources.get(name, {"birds": {"path": str(tmp_path / "birds")}}), tmp_path)

    sun = sources.get("SUN").archives
    assert line("SUN") == f"SUN, about 39000 MB: will be fetched from {sun[0].url}, {sun[1].url}"
    folder = tmp_path / "stanford_cars"
    cars = [archive.file for archive in sources.get("Cars").archives]
    assert f"place {', '.join(f'{folder}/{file}' for file in cars)} (docs" in str(line("Cars"))
    folder.mkdir()
    for file in cars[:3]:
        (folder / file).touch()  # to be unpacked
    assert f"place {folder}/{cars[3]} (docs" in str(line("Cars"))
    assert line("birds") == f"birds: {tmp_path}/birds, which datasets.birds.path names"
    save_image(tmp_path / "birds" / "0.png", 0)
    save_image(tmp_path / "DTD" / "train" / "a" / "0.png", 0)
    assert [line(name) for name in ("birds", "DTD", "digits")] == [None, None, None]


def test_sun_says_that_it_needs_its_partitions(cfg: params.Data) -> None:
    row = sources.get("SUN")
    message = download.instructions(row, Path(cfg.root), row.archives)
    assert f"{cfg.root}/SUN397-partitions/Partitions.zip" in message
    assert "Training_01.txt, Testing_01.txt" in message


def test_verify_reads_what_runtime_reads(tmp_path: Path) -> None:
    (tmp_path / "x").write_bytes(BODY)
    download.verify(tmp_path / "x", f"sha256:{runtime.sha256(tmp_path / 'x')}")
