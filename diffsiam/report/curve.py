"""Linear accuracy over the course of training: where, if anywhere, do the methods part?

The accuracies are those of the images that choose the penalty, so a curve may guide decisions: it sees no test image.
"""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path

import pandas as pd
from matplotlib.figure import Figure

from diffsiam import runtime
from diffsiam.report.paired import AVERAGE
from diffsiam.report.save import save
from diffsiam.training import methods


def table(results: Sequence[Path]) -> pd.DataFrame:
    """Validation accuracies in percent of linear probes that lie in ``.../step<N>/<dataset>.json``:
    ``method,seed,step,dataset,accuracy``, one row each."""
    rows = []
    for path in results:
        found = runtime.read_json(path)
        accuracy = max(entry["accuracy"] for entry in found["validation"])
        step = int(path.parent.name.removeprefix("step"))
        rows.append((found["method"], found["seed"], step, found["dataset"], accuracy))
    return pd.DataFrame(rows, columns=["method", "seed", "step", "dataset", "accuracy"])


def draw(curve: pd.DataFrame, pretrain: str) -> Figure:
    """Two panels, ``pretrain`` itself and the mean over the others: lines are means over seeds, dots are seeds."""
    own = curve[curve["dataset"] == pretrain]
    others = curve[curve["dataset"] != pretrain]
    others = others.groupby(["method", "seed", "step"], sort=False)["accuracy"].mean().reset_index()
    panels = [(title, part) for title, part in ((pretrain, own), (AVERAGE, others)) if len(part)]
    fig = Figure(figsize=(0.6 + 3.4 * len(panels), 3.2), layout="constrained")
    for axes, (title, part) in zip(fig.subplots(1, len(panels), squeeze=False)[0], panels, strict=True):
        for name, rows in part.groupby("method", sort=False):
            mean = rows.groupby("step")["accuracy"].mean()
            (line,) = axes.plot(mean.index, mean, label=methods.lookup(str(name)).title)
            axes.plot(rows["step"], rows["accuracy"], ".", color=line.get_color())
        axes.set(title=title, xlabel="Step", ylabel="Linear probe, validation accuracy (%)")
        axes.set_xlim(left=0)
        axes.grid(alpha=0.3)
    axes.legend(fontsize="small")
    return fig


def run(results: Sequence[Path], pretrain: str, out: Path) -> None:
    """Write the table to ``out`` (.csv) and the picture beside it (.png, .pdf)."""
    curve = table(results)
    save(draw(curve, pretrain), out.with_suffix(".png"))
    with runtime.atomic(out) as temporary:
        curve.to_csv(temporary, index=False, float_format="%.4f")
