"""The trials of `search`: results/search.csv, and results/search.md with the best settings of each method.

An accuracy is the best over the probe's penalties, on the images that choose the penalty: no test image is seen.
"""

from __future__ import annotations

import json
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Any

import pandas as pd
import yaml

from diffsiam import runtime, search
from diffsiam.evaluation.metrics import Z95
from diffsiam.report import tables
from diffsiam.training.methods import METHODS

_MEASURED = ["accuracy", "ci95", "l2", "at_edge", "participation", "seconds", "chosen"]


def run(probes: Sequence[Path], meta: Path, out: Path) -> None:
    """Write the table to ``out`` (.csv), and what it says beside it (.md).

    Args:
        probes: results of the linear probe, ``.../<trial>/seed<K>/linear_<dataset>.json``, each beside the
            config.json and history.csv of its encoder.
        meta: meta.json of the data set.
    """
    facts = runtime.read_json(meta)
    frame = table(probes, len(facts["splits"]["val"]))
    with runtime.atomic(out) as temporary:
        frame.to_csv(temporary, index=False, float_format="%.6g")
    runtime.write_text(out.with_suffix(".md"), markdown(frame, facts))


def table(probes: Sequence[Path], images: int) -> pd.DataFrame:
    """A row per trial and seed: ``method,trial,seed``, the settings in which the trials of a method differ, as JSON by
    their dotted names below representation, and what was measured.

    ``accuracy`` is of the validation images, in percent, ``ci95`` its normal approximation over ``images`` of them;
    ``participation`` the training's last participation ratio of z; ``chosen`` marks the method's trial with the highest
    mean accuracy over seeds, of equals the first.
    """
    rows, settings = [], []
    for path in probes:
        found, record = runtime.read_json(path), runtime.read_json(path.with_name("config.json"))
        best = max(found["validation"], key=lambda entry: entry["accuracy"])
        share = best["accuracy"] / 100
        rows.append(
            {
                "method": found["method"],
                "trial": path.parent.parent.name,
                "seed": found["seed"],
                "accuracy": best["accuracy"],
                "ci95": 100 * Z95 * (share * (1 - share) / images) ** 0.5,
                "l2": best["l2"],
                "at_edge": best["l2"] in (found["validation"][0]["l2"], found["validation"][-1]["l2"]),
                "participation": runtime.read_csv(path.with_name("history.csv"))["participation"].iloc[-1],
                "seconds": record["seconds"],
            }
        )
        settings.append({leaf: json.dumps(value) for leaf, value in tables.leaves(record["params"]["representation"])})
    frame, given = pd.DataFrame(rows), pd.DataFrame(settings, dtype=object)
    varied = given.groupby(frame["method"]).nunique().max() > 1
    means = frame.groupby(["method", "trial"], sort=False)["accuracy"].mean()
    best = {trial for _, trial in means.groupby("method", sort=False).idxmax().items()}
    frame["chosen"] = [pair in best for pair in zip(frame["method"], frame["trial"], strict=True)]
    frame = pd.concat([frame, given[varied.index[varied]]], axis=1)
    return frame[["method", "trial", "seed", *varied.index[varied], *_MEASURED]]


def markdown(frame: pd.DataFrame, meta: dict[str, Any]) -> str:
    """A table per method, best trial first, and the chosen settings as section `by_method` takes them."""
    blocks, chosen, ends = [], {}, []
    for method, part in frame.groupby("method", sort=False):
        leaves = [name for name in part.columns if name not in ("method", "trial", "seed", *_MEASURED)]
        leaves = [name for name in leaves if part[name].nunique(dropna=False) > 1]
        by = part.groupby("trial", sort=False)
        means = by[["accuracy", "ci95", "participation"]].mean()
        spreads = by["accuracy"].std(ddof=1)
        rows: tables.Rows = [("", [(name, False) for name in ("Validation accuracy", "Participation", "Penalty")])]
        for trial in means.sort_values("accuracy", ascending=False, kind="stable").index:
            first = by.get_group(trial).iloc[0]
            text = tables.cell(means["accuracy"][trial], means["ci95"][trial], spreads[trial])
            edge = "at an end of the grid" if by["at_edge"].any()[trial] else ""
            cells = [(text, bool(first["chosen"])), (f"{means['participation'][trial]:.1f}", False), (edge, False)]
            rows.append((", ".join(f"{leaf} {first[leaf]}" for leaf in leaves) or str(trial), cells))
            if first["chosen"] and leaves:
                settings = {leaf: json.loads(first[leaf]) for leaf in leaves}
                chosen[str(method)] = search.nested(settings)
                ends += [f"{METHODS[str(method)].title}'s {end}" for end in _ends(settings, part)]
        blocks.append((METHODS[str(method)].title, rows))
    seeds = ", ".join(map(str, sorted(frame["seed"].unique())))
    note = (
        f"Accuracy in percent on {len(meta['splits']['val'])} validation images with its 95 % interval"
        f"{' and the standard deviation over seeds' if frame['seed'].nunique() > 1 else ''}; no test image was seen. "
        f"Seeds: {seeds}. The best of several is a little too high, the more of them the more."
    )
    text = tables.markdown(f"Settings tried on {meta['dataset']}", blocks, note)
    if chosen:
        text += "\nThe best of each method, for `params.yaml`:\n\n```yaml\n"
        text += yaml.safe_dump({"by_method": chosen}, sort_keys=False) + "```\n"
    if ends:
        text += f"\nOf what was tried, {'; '.join(ends)}: a better one may lie beyond.\n"
    return text


def _ends(chosen: dict[str, Any], part: pd.DataFrame) -> Iterator[str]:
    """Chosen numbers that are the first or the last of three or more."""
    for leaf, value in chosen.items():
        tried = [json.loads(text) for text in part[leaf].dropna().unique()]
        if len(tried) > 2 and all(type(each) in (int, float) for each in tried) and value in (min(tried), max(tried)):
            yield f"{leaf} {value:g} is the {'smallest' if value == min(tried) else 'largest'}"
