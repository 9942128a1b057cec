"""The notebook of the docs runs from top to bottom, on results as a run leaves them, made tiny."""

from __future__ import annotations

import json
import shutil
from pathlib import Path

import matplotlib.pyplot as plt
import numpy as np
import pytest
import torch

from diffsiam import params
from diffsiam.data import prepare
from diffsiam.diffusion import pretrained
from diffsiam.evaluation import probmask
from tests.generation import tiny_guided

NOTEBOOK = json.loads((Path(__file__).resolve().parents[1] / "docs" / "tour.ipynb").read_text(encoding="utf-8"))
CODE = ["".join(cell["source"]) for cell in NOTEBOOK["cells"] if cell["cell_type"] == "code"]


@pytest.fixture
def results(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """Beside the folder that the notebook lies in."""
    folder = tiny_guided.results(tmp_path)
    encoder = folder / "representation" / "sprites" / "diffsiam_hier" / "seed0" / "encoder.safetensors"
    shutil.copy(encoder.with_name("encoder_ema.safetensors"), encoder)
    pretrained.write_pipeline(folder / "diffusion" / "sprites")
    prepare.run("digits", params.Data("resources", tiny_guided.SIDE, 0.0, 0.2, 0), folder / "data" / "digits")
    one = np.ones(tiny_guided.DIM, np.float32)
    classifier = probmask.Classifier("Red", one, 0.0, 0 * one, 1 * one, masked=False)
    probmask.write(folder / "probmask" / "sprites" / "diffsiam_hier" / "seed0" / "Red_all.safetensors", classifier, {})
    (tmp_path / "docs").mkdir()
    monkeypatch.chdir(tmp_path / "docs")
    return folder


def test_every_cell_runs_and_shows_its_pictures(
    results: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    shown: list[int] = []
    monkeypatch.setattr(plt, "show", lambda: shown.append(len(plt.gcf().axes)))
    names: dict[str, object] = {}
    threads = torch.get_num_threads()
    torch.set_num_threads(1)  # of networks this small
    try:
        for source in CODE:
            exec(compile(source, "tour.ipynb", "exec"), names)
    finally:
        torch.set_num_threads(threads)
        plt.close("all")
    assert shown == [4 * 4, 3 * 5, 4 * 4]
    printed = capsys.readouterr().out
    for word in ("linear: ", "1-shot: ", "10-shot: ", "mean squared error of the round trip"):
        assert word in printed


def test_the_notebook_is_kept_without_outputs() -> None:
    assert [cell for cell in NOTEBOOK["cells"] if cell.get("outputs") or cell.get("execution_count")] == []
