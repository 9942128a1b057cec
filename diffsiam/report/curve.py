"""Linear accuracy over the course of training: where, if anywhere, do the methods part?

An accuracy is the best over the probe's penalties, on the images that choose the penalty: no test image is seen, so a
curve may guide decisions; the choice makes it a little too high, for all methods alike.
"""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path

import pandas as pd
from matplotlib.figure import Figure

from diffsiam import runtime
from diffsiam.errors import UserError
from diffsiam.report.paired import AVERAGE, color
from diffsiam.report.save import save
from diffsiam.training import methods


def table(results: Sequence[Path]) -> pd.DataFrame:
    """Validation accuracies in percent of linear probes: ``method,seed,step,dataset,accuracy``, one row each, with
    ``knn``, that of k nearest neighbours, and ``rankme,participation,segments_r2`` of the test features
    (`diffsiam.evaluation.rank`), which no label enters; empty where a result has none, and left out where none has.

    Args:
        results: files ``.../step<N>/<dataset>.json``; of a probe that lies elsewhere, the untrained encoder's, N is 0.
    Raises:
        UserError: a method, seed and step without some data set.
    """
    rows = []
    for path in results:
        found = runtime.read_json(path)
        accuracy = max(entry["accuracy"] for entry in found["validation"])
        step = int(path.parent.name.removeprefix("step")) if path.parent.name.startswith("step") else 0
        row = {"method": found["method"], "seed": found["seed"], "step": step, "dataset": found["dataset"]}
        rank = {name: found.get("rank", {}).get(name) for name in ("rankme", "participation", "segments_r2")}
        rows.append(row | {"accuracy": accuracy, "knn": found.get("knn", {}).get("validation"), **rank})
    curve = pd.DataFrame(rows).dropna(axis=1, how="all")
    for point, part in curve.groupby(["method", "seed", "step"])["dataset"]:
        if missing := sorted(set(curve["dataset"]) - set(part)):
            raise UserError(
                f"curve: no result of {', '.join(missing)} for method, seed and step {point}, where others have one. "
                "Give every data set for every point."
            )
    return curve


def draw(curve: pd.DataFrame, pretrain: str) -> Figure:
    """Two panels, ``pretrain`` itself and the mean over the others: lines are means over seeds, dots are seeds; the
    untrained encoder is a dashed line all along."""
    own = curve[curve["dataset"] == pretrain]
    others = curve[curve["dataset"] != pretrain]
    others = others.groupby(["method", "seed", "step"], sort=False)["accuracy"].mean().reset_index()
    panels = [(title, part) for title, part in ((pretrain, own), (AVERAGE, others)) if len(part)]
    fig = Figure(figsize=(0.6 + 3.4 * len(panels), 3.4), layout="constrained")
    for axes, (title, part) in zip(fig.subplots(1, len(panels), squeeze=False)[0], panels, strict=True):
        for name, rows in part.groupby("method", sort=False):
            method, style = methods.lookup(str(name)), {"color": color(str(name))}
            if not method.trained:
                axes.axhline(rows["accuracy"].mean(), ls="--", lw=1, label=method.title, **style)
                continue
            mean = rows.groupby("step")["accuracy"].mean()
            axes.plot(mean.index, mean, label=method.title, **style)
            axes.plot(rows["step"], rows["accuracy"], ".", **style)
        axes.set(title=f"Linear, {title}", xlabel="Step", ylabel="Best validation accuracy (%)")
        axes.set_xlim(left=0)
        axes.grid(alpha=0.3)
    fig.legend(*axes.get_legend_handles_labels(), loc="outside lower center", ncols=4, fontsize="small")
    return fig


def run(results: Sequence[Path], pretrain: str, out: Path) -> None:
    """Write the table to ``out`` (.csv) and the picture beside it (.png, .pdf)."""
    curve = table(results)
    save(draw(curve, pretrain), out.with_suffix(".png"))
    with runtime.atomic(out) as temporary:
        curve.to_csv(temporary, index=False, float_format="%.4f")
