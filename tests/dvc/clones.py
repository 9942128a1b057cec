"""Throw-away clones of this repository with parameters so small that the whole DAG takes a minute, and what drives
the real git, DVC and Snakemake in them."""

from __future__ import annotations

import json
import os
import re
import shutil
import subprocess
import sys
from collections.abc import Iterable
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import yaml

ROOT = Path(__file__).resolve().parents[2]
MICRO = {
    "methods": ["diffsiam_hier"],
    "seeds": [0],
    "pretrain": "sprites",  # with images_train.npy above 1 MB, Snakemake's own limit for checksums
    "transfer": ["digits"],
    "data": {"image_size": 16},
    "diffusion": {
        "unet": {"channels": [8, 8], "attention_resolutions": [], "norm_groups": 4},
        "steps": 2,
        "batch_size": 16,
    },
    "representation": {"encoder_width": 4, "segments": 32, "steps": 3, "batch_size": 16},
    "fewshot": {"episodes": 20, "shots": [1, 2], "epochs": 2},
    "linear": {"penalties": 3},
    "heads": {"regression_on": [], "epochs": 1, "bootstrap": 2},
    "disentanglement": {"datasets": []},
    "runtime": {"threads": 1},
}


@dataclass(frozen=True)
class Clone:
    """A clone, and the commands that a user types there."""

    root: Path
    env: dict[str, str]

    def run(self, *command: str, check: bool = True, **env: str) -> subprocess.CompletedProcess[str]:
        done = subprocess.run(
            command, cwd=self.root, env=self.env | env, capture_output=True, text=True, errors="replace", check=False
        )
        if check and done.returncode:
            raise AssertionError(
                f"{' '.join(command)}: {done.returncode}\n{done.stdout[-6000:]}\n{done.stderr[-6000:]}"
            )
        return done

    def git(self, *arguments: str) -> str:
        return self.run("git", *arguments).stdout

    def dvc(self, *arguments: str) -> str:
        return self.run("dvc", *arguments).stdout

    def commit(self) -> None:
        self.git("add", "--all")
        self.git("commit", "--quiet", "--message", "results")

    def clone(self, to: Path, cache: Path | None = None, link: str = "copy") -> Clone:
        """What ``git clone`` makes of the last commit; DVC's cache inside the clone, or at ``cache``."""
        subprocess.run(["git", "clone", "--quiet", self.root, to], env=self.env, check=True)
        place = f"    dir = {cache}\n" if cache is not None else ""
        (to / ".dvc/config.local").write_text(f"[cache]\n    type = {link}\n{place}")
        return Clone(to, self.env)

    def copy(self, to: Path) -> Clone:
        """The same folder elsewhere, time stamps and all: cheaper than another clone and pull."""
        shutil.copytree(self.root, to, symlinks=True)
        return Clone(to, self.env)

    def edit(self, leaf: str, value: Any) -> None:
        """Set one leaf of params.yaml, named with dots."""
        path = self.root / "params.yaml"
        params = yaml.safe_load(path.read_text())
        *heads, last = leaf.split(".")
        node = params
        for head in heads:
            node = node[head]
        assert node[last] != value
        node[last] = value
        path.write_text(yaml.safe_dump(params, sort_keys=False))

    def replace(self, file: str, old: str, new: str) -> None:
        path = self.root / file
        assert old in path.read_text()
        path.write_text(path.read_text().replace(old, new, 1))

    def planned(self, *targets: str) -> dict[str, int]:
        """Number of jobs by rule that ``snakemake -n`` would run, rules without outputs left out."""
        text = self.run("snakemake", "-n", *targets).stdout
        if "Nothing to be done" in text:
            return {}
        table = re.search(r"^job +count\n[- ]+\n(.*?)^total", text, re.MULTILINE | re.DOTALL)
        assert table, text
        counts = {name: int(count) for name, count in map(str.split, table[1].splitlines())}
        return {
            name: count
            for name, count in counts.items()
            if name not in {"all", "tables", "attributes_tables"} and "@" not in name
        }

    def changed(self) -> dict[str, Any]:
        """Stages that ``dvc status`` calls changed, and why; the one that looks at the sources always runs."""
        found = json.loads(self.dvc("status", "--json"))
        assert "always changed" in found.pop("sources")
        return found

    def records(self) -> dict[str, dict[str, Any]]:
        """Snakemake's records by file name."""
        folder = self.root / ".snakemake/metadata"
        return {path.name: json.loads(path.read_text()) for path in folder.rglob("*") if path.is_file()}


def environment(scratch: Path) -> dict[str, str]:
    """This environment, with nothing of the user's DVC, git or Snakemake settings in it."""
    env = {
        k: v for k, v in os.environ.items() if not k.startswith(("SNAKEMAKE", "DIFFSIAM", "DVC", "AWS", "PYTHONPATH"))
    }
    return env | {
        "PATH": f"{Path(sys.executable).parent}{os.pathsep}{env['PATH']}",
        "DVC_SITE_CACHE_DIR": str(scratch / "dvc-site"),
        "DVC_GLOBAL_CONFIG_DIR": str(scratch / "dvc-global"),
        "DVC_SYSTEM_CONFIG_DIR": str(scratch / "dvc-system"),
        "GIT_CONFIG_GLOBAL": os.devnull,
        **{f"GIT_{who}_{what}": "test@localhost" for who in ("AUTHOR", "COMMITTER") for what in ("NAME", "EMAIL")},
        "NUMBA_DISABLE_JIT": "1",  # compiling takes longer than these few episodes
    }


def working_tree(to: Path, scratch: Path) -> Clone:
    """A repository of one commit: this checkout's files as they are now, without results, on the micro parameters."""
    listed = subprocess.run(
        ["git", "ls-files", "--cached", "--others", "--exclude-standard", "-z"],
        cwd=ROOT,
        capture_output=True,
        check=True,
    )
    for name in filter(None, listed.stdout.decode().split("\0")):
        if not name.startswith(("results/", ".snakemake/")) and name != "dvc.lock" and (ROOT / name).exists():
            (to / name).parent.mkdir(parents=True, exist_ok=True)
            shutil.copy2(ROOT / name, to / name)
    params = yaml.safe_load((ROOT / "workflow/presets/demo.yaml").read_text())
    (to / "params.yaml").write_text(yaml.safe_dump(merged(params, MICRO), sort_keys=False))
    clone = Clone(to, environment(scratch))
    clone.git("init", "--quiet", "--initial-branch", "main")
    clone.commit()
    return clone


def merged(base: dict[str, Any], over: dict[str, Any]) -> dict[str, Any]:
    out = dict(base)
    for key, value in over.items():
        assert key in out, key
        out[key] = merged(out[key], value) if isinstance(value, dict) else value
    return out


def ran(said: str) -> list[str]:
    """Stages whose command ``dvc repro`` ran, but for the one that looks at the sources, which always runs."""
    return [name for name in re.findall(r"^Running stage '(.*)':$", said, re.MULTILINE) if name != "sources"]


def level(rule: str) -> str:
    """The level of the DAG that a rule belongs to: the stage of dvc.yaml, without its method."""
    first = rule.split("_")[0]
    return "tables" if first in {"table4", "summary", "provenance", "page", "metrics"} else first


def closure(names: Iterable[str], edges: Iterable[tuple[str, str]]) -> set[str]:
    """``names`` and all that follows them along ``edges`` (from, to)."""
    found = set(names)
    while more := {to for source, to in edges if source in found} - found:
        found |= more
    return found
