"""What was edited, cut off or damaged is found and named, and nothing is made from it."""

from __future__ import annotations

import os
import shutil
from pathlib import Path

import pytest

from tests.dvc.clones import Clone, ran

FEATURES = "results/features/sprites/diffsiam_hier/seed0/digits.npz"
STAGE = "features@diffsiam_hier"


def assert_refused(clone: Clone, file: str) -> None:
    """Snakemake names the file and plans nothing; DVC stops there too, or finds no stage to run; no result changes."""
    before = {name: (clone.root / "results" / name).read_bytes() for name in ("table4_1.csv", "metrics.json")}
    for command in (["snakemake", "-n", "tables"], ["snakemake", "--cores", "1", "tables"]):
        said = clone.run(*command, check=False)
        assert said.returncode == 2
        assert f"Not what the record says, because edited, damaged or of another commit: {file}" in said.stderr
    lock = (clone.root / "dvc.lock").read_bytes()
    said = clone.run("dvc", "repro", check=False)
    assert (said.returncode != 0 and file in said.stderr) or ran(said.stdout) == []
    assert (clone.root / "dvc.lock").read_bytes() == lock
    assert before == {name: (clone.root / "results" / name).read_bytes() for name in before}


def test_a_truncated_output_is_named_and_checkout_brings_it_back(pulled: Clone) -> None:
    path = pulled.root / FEATURES
    path.write_bytes(path.read_bytes()[:-100])
    assert pulled.changed()[STAGE] == [{"changed outs": {str(Path(FEATURES).parents[1]): "modified"}}]
    assert_refused(pulled, FEATURES)
    pulled.dvc("checkout", "--force")
    assert pulled.planned("all") == {}


def test_a_hand_edited_table_is_named_and_git_brings_it_back(pulled: Clone) -> None:
    table = "results/table4_1.csv"
    path = pulled.root / table
    path.write_text(path.read_text().replace("accuracy", "precision", 1))
    assert "tables" in pulled.changed()
    said = pulled.run("snakemake", "-n", check=False)
    assert said.returncode == 2
    assert table in said.stderr
    said = pulled.run("dvc", "repro", check=False)
    assert said.returncode != 0
    assert table in said.stderr
    pulled.git("checkout", table)
    assert pulled.planned("all") == {}


@pytest.mark.parametrize("protected", [True, False], ids=["behind DVC's back", "in a file open to writing"])
def test_a_damaged_cache_file_is_named_and_a_pull_mends_it(finished: Clone, tmp_path: Path, protected: bool) -> None:
    cache = tmp_path / "cache"
    first = finished.clone(tmp_path / "first", cache=cache)
    first.dvc("pull")
    good = (first.root / FEATURES).read_bytes()
    damaged = next(p for p in cache.rglob("*") if p.is_file() and p.read_bytes() == good)
    damaged.chmod(0o644)
    damaged.write_bytes(good[:1000] + bytes(8) + good[1008:])
    damaged.chmod(0o444 if protected else 0o644)

    second = finished.clone(tmp_path / "second", cache=cache)
    second.dvc("checkout")
    assert_refused(second, FEATURES)

    # As docs/dvc.md says: DVC checks a cache file again once it is open to writing.
    (second.root / FEATURES).unlink()
    for path in cache.rglob("*"):
        os.chmod(path, path.stat().st_mode | 0o200)
    second.dvc("pull")
    assert (second.root / FEATURES).read_bytes() == good
    assert second.planned("all") == {}


def test_restore_does_not_take_over_a_damaged_file_that_dvc_believes_in(finished: Clone, tmp_path: Path) -> None:
    cache = tmp_path / "cache"
    clone = finished.clone(tmp_path / "first", cache=cache)
    clone.dvc("pull")
    path = clone.root / FEATURES
    stat = path.stat()
    good = path.read_bytes()
    path.write_bytes(good[:1000] + bytes(8) + good[1008:])
    os.utime(path, ns=(stat.st_atime_ns, stat.st_mtime_ns))
    assert clone.changed() == {}
    shutil.rmtree(clone.root / ".snakemake/metadata")
    said = clone.run("bash", "workflow/scripts/restore.sh", check=False)
    assert said.returncode == 2
    assert "restore: refused" in said.stderr


def test_a_deleted_output_is_made_anew(pulled: Clone) -> None:
    heads = "results/representation/sprites/diffsiam_hier/seed0/heads.safetensors"
    (pulled.root / heads).unlink()
    assert set(pulled.planned("representation@diffsiam_hier")) == {"representation_diffsiam_hier"}
    assert "representation@diffsiam_hier" in pulled.changed()
