"""Results of heads as a table: tidy CSV with published numbers beside ours, Markdown and LaTeX in the published shape,
and paired differences between methods.

A difference is taken draw by draw: both methods' results hold their metric on the same draws of the test images, so
what makes a draw hard drops out. With x[s, b] the metric of a method at seed s in draw b and y that of the other:

    difference = mean_s (value_x[s] - value_y[s])
    ci95 = half of the width between the 2.5th and the 97.5th percentile over b of mean_s (x[s, b] - y[s, b])
    spread = sample standard deviation over seeds of value_x[s] - value_y[s]
"""

from __future__ import annotations

import itertools
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd

from diffsiam import runtime
from diffsiam.errors import UserError
from diffsiam.report import paired, tables
from diffsiam.training import methods

MEAN, PIXELS = "mean", "pixels"  # in place of a method: floors
TITLES = {MEAN: "Prediction of the mean", PIXELS: "Raw pixels"} | {
    name: row.title for name, row in methods.METHODS.items()
}
METRICS = {"ap": ("AP", 2, max), "r": ("r", 3, max), "mse": ("MSE", 4, min)}  # heading, decimals, which is best
_MEANING = {
    "attributes": "AP: mean average precision over the attributes, in percent",
    "regression": "r, MSE: Pearson's r and mean squared error, means over the labels",
}
CLAIM = ("diti", "pdae")  # what DiTi's paper says is above what
COLUMNS = ["method", "pretrain", "dataset", "seed", "protocol", "metric", "value", "ci95", "n_train", "n_test"]
_KEYS = ["method", "pretrain", "dataset", "metric"]


def run(
    results: Sequence[Path], metas: Sequence[Path], configs: Sequence[Path], reference: Path, pretrain: str, out: Path
) -> None:
    """Write the table as ``out`` (.csv), .md and .tex beside it, and the differences as paired_attributes.csv.

    Args:
        results: JSON files of `diffsiam.evaluation.heads`, the floor of the pixels among them.
        metas: meta.json of every data set in ``results``: published numbers stand beside those of published counts.
        configs: config.json of every encoder in ``results``; their parameters stand in the footnote.
        reference: published numbers as CSV: method, pretrain, dataset, metric, paper_value.
        pretrain: the data set that the encoders were trained on.
    Raises:
        UserError: an unknown method; results whose test images or draws differ, or a combination of method and seed
            that has none.
    """
    found = [runtime.read_json(path) for path in results]
    for name in {r["method"] for r in found} - {PIXELS}:
        methods.lookup(name)
    found.sort(key=lambda r: list(TITLES).index(r["method"]))
    frame = table(found, pretrain)
    printed = runtime.read_csv(reference)
    printed = printed[printed["dataset"].isin(tables.complete(metas))]
    frame = frame.merge(printed, on=_KEYS, how="left").astype({"seed": "Int64"})
    differences = difference_table(found)
    with runtime.atomic(out.with_name("paired_attributes.csv")) as temporary:
        differences.to_csv(temporary, index=False, float_format="%.4f")
    with runtime.atomic(out) as temporary:
        frame.to_csv(temporary, index=False, float_format="%.4f")
    caption = (
        f"Attributes and continuous labels by one linear layer on frozen features of encoders trained on {pretrain}."
    )
    blocks, footnote = [("", shape(frame))], " ".join([*tables.encoders(configs), note(found)])
    runtime.write_text(out.with_suffix(".md"), tables.markdown(caption, blocks, footnote) + _differences(differences))
    runtime.write_text(out.with_suffix(".tex"), tables.latex(caption, blocks, footnote))


def table(results: Sequence[dict[str, Any]], pretrain: str) -> pd.DataFrame:
    """`COLUMNS`: one row for each result and metric, the floors first; ``pretrain`` and ``seed`` are missing there."""
    rows = []
    for r in results:
        where = {key: r[key] for key in ("dataset", "protocol", "n_train", "n_test")}
        if r["method"] == PIXELS:
            rows += [where | {"method": MEAN, "metric": name, "value": value} for name, value in r["floor"].items()]
        own = {"method": r["method"], "seed": r["seed"], "pretrain": None if r["method"] == PIXELS else pretrain}
        for name, score in r["metrics"].items():
            rows.append(where | own | {"metric": name, "value": score["value"], "ci95": score["ci95"]})
    frame = pd.DataFrame(rows, columns=COLUMNS)
    return frame.sort_values("method", key=lambda c: c.map(list(TITLES).index), kind="stable", ignore_index=True)


def shape(frame: pd.DataFrame) -> list[tuple[str, list[tuple[str, bool]]]]:
    """Rows of `tables.markdown`: a row for each method, a column for each data set and metric. With several seeds an
    interval is the mean of the seeds' own. Published numbers stand in rows of their own."""
    columns = list(dict.fromkeys(zip(frame["dataset"], frame["metric"], strict=True)))
    means = frame.groupby(["method", "dataset", "metric"], sort=False).agg(
        value=("value", "mean"), ci95=("ci95", "mean"), spread=("value", "std"), paper=("paper_value", "first")
    )
    cell_of = means.to_dict("index")
    best = {(d, m): METRICS[m][2](means.xs((d, m), level=("dataset", "metric"))["value"]) for d, m in columns}
    rows, printed = [], []
    for method in dict.fromkeys(frame["method"]):
        cells, paper = [], []
        for dataset, metric in columns:
            found = cell_of[method, dataset, metric]
            text = tables.cell(found["value"], found["ci95"], found["spread"], decimals=METRICS[metric][1])
            cells.append((text, bool(found["value"] == best[dataset, metric])))
            paper.append(("" if pd.isna(found["paper"]) else f"{found['paper']:.{METRICS[metric][1]}f}", False))
        rows.append((TITLES[method], cells))
        if any(text for text, _ in paper):
            printed.append((f"{TITLES[method]} (published)", paper))
    return [("", [(f"{dataset} {METRICS[metric][0]}", False) for dataset, metric in columns]), *rows, *printed]


def note(results: Sequence[dict[str, Any]]) -> str:
    """How the numbers came about, and what is not as it should be about them."""
    words = {
        "val": "the best on the validation images",
        "last": "the last",
        "best_test": "the best on the TEST images, as in DiTi's code for LFW: a leak, these numbers are too good",
    }
    epochs = results[0]["epochs"]
    chosen = dict.fromkeys((r["protocol"], r["choice"]) for r in results)
    said = "; ".join(f"{protocol}: {words[choice]}" for protocol, choice in chosen)
    seeds = sorted({r["seed"] for r in results if r["seed"] is not None})
    return (
        f"{'; '.join(_MEANING[protocol] for protocol in dict.fromkeys(protocol for protocol, _ in chosen))}; ± half of "
        "a 95 % bootstrap interval over test images. One linear layer on features of the "
        f"averaged (EMA) encoder, not standardised, {epochs} epochs of Adam; the epoch reported is, for {said}. Raw "
        "pixels: the same on the images, averaged to 16x16 where they are larger. "
        f"Seeds: {', '.join(map(str, seeds))}"
        + ("; standard deviation over seeds in parentheses." if len(seeds) > 1 else ".")
    )


# ----------------------------------------------------------------------------------------------- differences
def difference_table(results: Sequence[dict[str, Any]]) -> pd.DataFrame:
    """Every method against `paired.BASELINES` and the raw pixels, and the pairs of `paired` and `CLAIM`:
    protocol, dataset, metric, method, against, difference, ci95, spread over seeds."""
    rows = []
    for (protocol, dataset), group in _grouped(results).items():
        names = [name for name in dict.fromkeys(method for method, _ in group) if name != PIXELS]
        more = [CLAIM] if set(CLAIM) <= set(names) else []
        more += [(name, PIXELS) for name in names if (PIXELS, None) in group]
        for method, against in [*paired.pairs(names), *more]:
            seeds = [seed for name, seed in group if name == method]
            for metric in next(iter(group.values()))["metrics"]:
                x, y = (_stack(group, name, metric, seeds) for name in (method, against))
                by_seed = x[0] - y[0]
                low, high = np.nanpercentile((x[1] - y[1]).mean(axis=0), [2.5, 97.5])
                where = {
                    "protocol": protocol,
                    "dataset": dataset,
                    "metric": metric,
                    "method": method,
                    "against": against,
                }
                spread = by_seed.std(ddof=1) if len(by_seed) > 1 else np.nan
                rows.append(where | {"difference": by_seed.mean(), "ci95": (high - low) / 2, "spread": spread})
    columns = ["protocol", "dataset", "metric", "method", "against", "difference", "ci95", "spread"]
    return pd.DataFrame(rows, columns=columns)


_Group = dict[tuple[str, int | None], dict[str, Any]]  # (method, seed) -> result


def _grouped(results: Sequence[dict[str, Any]]) -> dict[tuple[str, str], _Group]:
    """By protocol and data set, after a check that they can be compared."""
    groups: dict[tuple[str, str], _Group] = {}
    for r in results:
        groups.setdefault((r["protocol"], r["dataset"]), {})[r["method"], r["seed"]] = r
    for (protocol, dataset), group in groups.items():
        draws = {(r["n_test"], len(next(iter(r["metrics"].values()))["draws"])) for r in group.values()}
        if len(draws) > 1:
            raise UserError(
                f"table attributes: {protocol} on {dataset} has different test images or draws: (images, draws) "
                f"{', '.join(map(str, sorted(draws)))}. Make them with the same `heads` section and data set."
            )
        trained = [key for key in group if key[0] != PIXELS]
        wanted = itertools.product(dict.fromkeys(m for m, _ in trained), dict.fromkeys(s for _, s in trained))
        if missing := [f"{method} at seed {seed}" for method, seed in wanted if (method, seed) not in group]:
            raise UserError(
                f"table attributes: no result of {missing[0]} for {protocol} on {dataset}. Give one for each method "
                "and seed, or ask Snakemake for `results/table_attributes.csv`."
            )
    return groups


def _stack(group: _Group, method: str, metric: str, seeds: Sequence[int | None]) -> tuple[np.ndarray, np.ndarray]:
    """Values (S,) and draws (S, B) over seeds; the one result of the pixels for each of them."""
    scores = [group[method, None if method == PIXELS else seed]["metrics"][metric] for seed in seeds]
    return np.array([s["value"] for s in scores]), np.array([s["draws"] for s in scores], np.float64)


def _differences(differences: pd.DataFrame) -> str:
    """Differences from the untrained encoder and the frozen diffusion model, and that of `CLAIM`, as Markdown."""
    claim = (differences["method"] == CLAIM[0]) & (differences["against"] == CLAIM[1])
    shown = differences[(differences["against"].isin(["untrained", "frozen_dm"])) | claim]
    if shown.empty:
        return ""
    columns = list(dict.fromkeys(zip(shown["dataset"], shown["metric"], strict=True)))
    cells = shown.set_index(["method", "against", "dataset", "metric"]).to_dict("index")
    lines = [
        "",
        "**Paired differences** ± 95 % half-width, draw by draw of the test images. All: paired_attributes.csv.",
        "",
    ]
    lines += ["| " + " | ".join(["", *(f"{dataset} {METRICS[metric][0]}" for dataset, metric in columns)]) + " |"]
    lines += ["|---|" + "---:|" * len(columns)]
    for method, against in dict.fromkeys(zip(shown["method"], shown["against"], strict=True)):
        row = [f"{TITLES[method]} minus {TITLES[against]}"]
        for dataset, metric in columns:
            d = cells[method, against, dataset, metric]
            row.append(tables.cell(d["difference"], d["ci95"], d["spread"], sign="+", decimals=METRICS[metric][1]))
        lines.append("| " + " | ".join(row) + " |")
    return "\n".join([*lines, ""])
