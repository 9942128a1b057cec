"""results/table_disentanglement: scores of every encoder with their floors, and paired differences between methods."""

from __future__ import annotations

import itertools
from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd
import scipy.stats

from diffsiam import runtime
from diffsiam.data import sources
from diffsiam.report import tables
from diffsiam.training import methods

METRICS = {
    "factorvae": "FactorVAE",
    "dci": "DCI",
    "dci_block": "DCI, blocks",
    "completeness": "Completeness",
    "informativeness": "Informativeness",
    "mig": "MIG",
    "beta_vae": "beta-VAE",
    "sap": "SAP",
}
COLUMNS = ["pretrain", "method", "seed", "metric", "value", "active", "paper_mean", "paper_std"]
FLOOR = "its floor"
_PAPER = {"disdiff": "DisDiff-VQ", "disdiff_plain": "DisDiff-VQ wo L_dis"}  # rows of DisDiff's tables
_SETS = {"Shapes3D": "Shapes3D", "Cars3D": "Cars3D", "MPI3Dtoy": "MPI3D"}  # its code takes MPI3D's toy images
_CAPTION = "Disentanglement: scores from 0 to 1, each with its floor."


def run(results: Sequence[Path], reference: Path, out: Path) -> None:
    """Write the table as ``out`` (.csv), and .md and .tex beside it; .md holds the differences too.

    Args:
        results: of `diffsiam.evaluation.disentanglement`; there may be none.
        reference: DisDiff's Tables 1 and 2 as CSV.
    """
    records = [runtime.read_json(path) for path in results]
    frame = table(records, runtime.read_csv(reference))
    blocks = [(str(name), _shape(part)) for name, part in frame.groupby("pretrain", sort=False)]
    note = _note(records)
    with runtime.atomic(out) as temporary:
        frame.to_csv(temporary, index=False, float_format="%.4f")
    runtime.write_text(out.with_suffix(".tex"), tables.latex(_CAPTION, blocks, note))
    text = [tables.markdown(_CAPTION, blocks, note), *_paired(differences(frame))]
    runtime.write_text(out.with_suffix(".md"), "\n".join(text))


def table(records: Sequence[Mapping[str, Any]], reference: pd.DataFrame) -> pd.DataFrame:
    """`COLUMNS`: one row per encoder and score, floors under the metric's name with ``_floor``; a score that is not
    defined is missing. ``active`` counts the codes whose standard deviation is .05 or more."""
    rows = []
    for record in records:
        printed = paper(record, reference)
        whose = {key: record[key] for key in ("pretrain", "method", "seed")}
        for metric, suffix in itertools.product(METRICS, ("", "_floor")):
            if (name := metric + suffix) in record["scores"]:
                mean, std = printed.get(name, (None, None))
                more = {"value": record["scores"][name], "active": record[f"active{suffix}"]}
                rows.append(whose | {"metric": name} | more | {"paper_mean": mean, "paper_std": std})
    numbers = ["value", "paper_mean", "paper_std"]
    return pd.DataFrame(rows, columns=COLUMNS).astype(dict.fromkeys(numbers, float))


def comparable(record: Mapping[str, Any]) -> bool:
    """Whether the paper's numbers may stand beside: its data set, the whole grid of it at 64x64, its latent space and
    its ten codes."""
    setting = (record["latent"], record["image_size"], record["codes"])
    name = record["pretrain"]
    return name in _SETS and record["images"] == sources.get(name).train and setting == ("vq", 64, 10)


def paper(record: Mapping[str, Any], reference: pd.DataFrame) -> dict[str, tuple[float, float]]:
    """What the paper prints for the record's method and data set, by metric: mean and standard deviation."""
    if not comparable(record) or record["method"] not in _PAPER:
        return {}
    method, dataset = _PAPER[record["method"]], _SETS[record["pretrain"]]
    rows = reference[(reference["method"] == method) & (reference["dataset"] == dataset)].drop_duplicates("metric")
    return dict(zip(rows["metric"], zip(rows["mean"], rows["std"], strict=True), strict=True))


def differences(frame: pd.DataFrame) -> pd.DataFrame:
    """Every method less each before it and less its own floor, seed by seed: the mean over the seeds that both have,
    and the half-width of Student's 95 % interval over them, where there are two or more.

    Returns:
        pretrain, method, against, metric, difference, ci95, seeds.
    """
    rows = []
    for pretrain, part in frame.groupby("pretrain", sort=False):
        values = part.set_index(["metric", "method", "seed"])["value"].sort_index()
        names = list(dict.fromkeys(part["method"]))
        pairs = [(method, against) for against, method in itertools.combinations(names, 2)]
        pairs += [(method, FLOOR) for method in names]
        for (method, against), metric in itertools.product(pairs, METRICS):
            other = (f"{metric}_floor", method) if against == FLOOR else (metric, against)
            if (metric, method) in values and other in values:
                d = (values[metric, method] - values[other]).dropna().to_numpy()
                row = {"pretrain": pretrain, "method": method, "against": against, "metric": metric}
                rows += [row | {"difference": d.mean(), "ci95": _t95(d), "seeds": len(d)}] if len(d) > 1 else []
    return pd.DataFrame(rows, columns=["pretrain", "method", "against", "metric", "difference", "ci95", "seeds"])


def _t95(values: np.ndarray) -> float:
    """Half-width of Student's two-sided 95 % interval of the mean."""
    return float(scipy.stats.t.ppf(0.975, len(values) - 1) * scipy.stats.sem(values))


def _shape(frame: pd.DataFrame) -> tables.Rows:
    """Two rows per method, its scores and their floors; the paper's below where it prints any."""
    shown = [name for name in METRICS if name in set(frame["metric"])]
    rows = [("", [(title, False) for title in (*(METRICS[name] for name in shown), "Active codes")])]
    for method, part in frame.groupby("method", sort=False):
        title = methods.lookup(str(method)).title
        for label, suffix in ((title, ""), (f"{title}, {FLOOR}", "_floor")):
            by = {name: part[part["metric"] == name + suffix] for name in shown}
            cells = [_cell(rows_of["value"].mean(), rows_of["value"].std(ddof=1)) for rows_of in by.values()]
            rows.append((label, [(text, False) for text in (*cells, f"{by['dci']['active'].mean():.3g}")]))
        if part["paper_mean"].notna().any():
            printed = part.drop_duplicates("metric").set_index("metric")
            cells = [_cell(*printed.loc[name, ["paper_mean", "paper_std"]]) for name in shown]
            rows.append((f"{title} (paper)", [(text, False) for text in (*cells, "")]))
    return rows


def _cell(mean: float, spread: float) -> str:
    return "" if pd.isna(mean) else f"{mean:.3f}" + (f" ({spread:.3f})" if pd.notna(spread) else "")


def _note(records: Sequence[Mapping[str, Any]]) -> str:
    """What the scores depend on, from the records."""
    if not records:
        return "Nothing was measured: disentanglement.datasets of params.yaml is empty. Data sets with factors: " + (
            ", ".join(name for name, row in sources.DATASETS.items() if row.factors) + "."
        )
    seeds = sorted({r["seed"] for r in records})
    protocols = dict.fromkeys(
        "{train} training and {test} test draws, votes of {batch}, trees: {trees}, seed {seed}".format(**r["protocol"])
        for r in records
    )
    cut = dict.fromkeys(f"{r['pretrain']}: z of {r['dim']} numbers in {r['codes']} codes" for r in records)
    lines = [
        "Floor: the same scores of as many principal components of all of z, a rotation that needs no method; of "
        "blocks, the mean over random orders of the numbers of z.",
        "FactorVAE alone proves little: random rotations of perfect codes score .6 to .9, their DCI .1 to .4.",
        f"{'; '.join(cut)}. {'; '.join(protocols)}. Seeds: {', '.join(map(str, seeds))}"
        + ("; standard deviation over seeds in parentheses." if len(seeds) > 1 else "; differences hold its luck."),
    ]
    undefined = [f"{r['method']} at seed {r['seed']}" for r in records if r["scores"]["dci"] is None]
    lines += [f"DCI is undefined where all codes are constant: {', '.join(undefined)}."] if undefined else []
    if not any(map(comparable, records)):
        lines.append("The paper's numbers are left out: its data sets, image size and latent space are others.")
    return " ".join(lines)


def _paired(frame: pd.DataFrame) -> Iterator[str]:
    if frame.empty:
        return
    yield "**Paired by seed**: mean difference over seeds ± half-width of Student's 95 % interval over them.\n"
    for pretrain, part in frame.groupby("pretrain", sort=False):
        shown = [name for name in METRICS if name in set(part["metric"])]
        yield f"{pretrain}, {' or '.join(str(n) for n in sorted(part['seeds'].unique()))} seeds\n"
        yield "| | " + " | ".join(METRICS[name] for name in shown) + " |"
        yield "|---|" + "---:|" * len(shown)
        for (method, against), rows in part.groupby(["method", "against"], sort=False):
            by = rows.set_index("metric")
            cells = [f"{by.difference[n]:+.3f} ± {by.ci95[n]:.3f}" if n in by.index else "" for n in shown]
            beside = FLOOR if against == FLOOR else methods.lookup(str(against)).title
            yield f"| {methods.lookup(str(method)).title} - {beside} | " + " | ".join(cells) + " |"
        yield ""
