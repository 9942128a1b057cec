"""results/figures/accuracy_hours: what a method's linear accuracy costs in hours of training."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path
from typing import Any

import pandas as pd
from matplotlib.figure import Figure

from diffsiam import runtime
from diffsiam.report import provenance
from diffsiam.report.figures import method_title
from diffsiam.report.paired import color
from diffsiam.training import methods


def read(files: Mapping[str, Path], pretrain: str) -> pd.DataFrame:
    """Accuracy and hours of each method and seed.

    Args:
        files: linear results; config.json of their encoders and training.json of the diffusion model, where any was
            used, each with history.csv beside it.
        pretrain: the data set that the accuracies leave out, unless it is the only one.
    Returns:
        method, seed, sets (the data sets), accuracy (percent, mean over them), ci95 (half-width over test images),
        hours of the encoder's training, below, hours of the diffusion model's (0 for a method without one, and where it
        was fetched), where (the machine or its GPUs).
    """
    spent: dict[Any, tuple[float, str]] = {}
    rows = []
    for path in files.values():
        if path.name == "history.csv":
            continue
        found = runtime.read_json(path)
        if path.name in ("config.json", "training.json"):
            spent[found.get("method"), found.get("seed")] = _spent(found, path)
        else:
            rows.append({key: found[key] for key in ("method", "seed", "dataset", "accuracy", "ci95")})
    frame = pd.DataFrame(rows)
    if not (transfer := frame[frame["dataset"] != pretrain]).empty:
        frame = transfer
    model = spent.get((None, None), (0.0, ""))
    out = []
    for (method, seed), part in frame.groupby(["method", "seed"], sort=False):
        hours, where = spent[method, seed]
        row = {"method": method, "seed": seed, "sets": ", ".join(part["dataset"]), "accuracy": part["accuracy"].mean()}
        row |= {"ci95": (part["ci95"] ** 2).sum() ** 0.5 / len(part), "hours": hours, "where": where}
        out.append(row | {"below": model[0] if methods.lookup(str(method)).diffusion else 0.0})
    return pd.DataFrame(out)


def _spent(record: Mapping[str, Any], path: Path) -> tuple[float, str]:
    """Hours of a training, 0 of what was not trained here, and on what."""
    history = runtime.read_csv(path.with_name("history.csv"))
    collected, params = record["collected"], record["params"]
    where = collected["machine"] if record.get("device") == "cpu" else ", ".join(collected["gpus"])
    if history.empty:
        return 0.0, where
    return provenance.hours(history, (params.get("representation") or params["diffusion"])["batch_size"]), where


def _means(frame: pd.DataFrame) -> pd.DataFrame:
    """Over seeds, a row for each method."""
    columns = ["accuracy", "ci95", "hours", "below"]
    return frame.groupby("method", sort=False)[columns].mean().reset_index()


def draw(frame: pd.DataFrame, dataset: str) -> Figure:
    """A mark for each method, mean over seeds with its interval, and a dot for each seed; a line leads to the hours
    with the diffusion model's, at a hollow mark."""
    fig = Figure(figsize=(7.2, 4.2), layout="constrained")
    ax = fig.subplots()
    for method, accuracy, ci95, hours, below in _means(frame).itertuples(index=False):
        colour = color(method)
        ax.errorbar(hours, accuracy, yerr=ci95, fmt="o", ms=5, lw=1.2, color=colour, label=method_title(method))
        if below:
            ax.plot([hours, hours + below], [accuracy, accuracy], lw=0.9, alpha=0.6, color=colour)
            ax.plot(hours + below, accuracy, "o", ms=5, mfc="white", color=colour)
        part = frame[frame["method"] == method]
        if len(part) > 1:
            ax.plot(part["hours"], part["accuracy"], ".", ms=4, alpha=0.6, color=colour)
    ax.set_title(f"Accuracy against hours of training: {dataset}", fontsize=10)
    ax.set_xlabel("hours of training; hollow: with the diffusion model's", fontsize=8)
    ax.set_ylabel("linear accuracy, transfer mean (%)", fontsize=8)
    ax.tick_params(labelsize=8)
    ax.grid(alpha=0.3)
    fig.legend(*ax.get_legend_handles_labels(), loc="outside lower center", ncols=4, fontsize=8, frameon=False)
    return fig


def shows(frame: pd.DataFrame) -> str:
    """Accuracy and hours of each method, in words."""
    said = []
    for method, accuracy, ci95, hours, below in _means(frame).itertuples(index=False):
        more = f" and {below:.3g} of the diffusion model" if below else ""
        said.append(f"{method_title(method)} {accuracy:.1f} ± {ci95:.1f} % in {hours:.3g} h{more}")
    seeds = frame["seed"].nunique()
    return (
        f"mean over {frame['sets'].iloc[0]} and {seeds} seed{'s' if seeds > 1 else ''}, ± half of a 95 % interval over "
        f"test images, on {' and '.join(dict.fromkeys(frame['where']))}: {', '.join(said)}."
    )
