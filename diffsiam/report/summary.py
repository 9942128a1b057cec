"""results/summary.md: the methods side by side, their differences, and what these say about the thesis's order."""

from __future__ import annotations

import itertools
import textwrap
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd
import scipy.stats

from diffsiam import runtime
from diffsiam.errors import UserError
from diffsiam.report import paired, tables
from diffsiam.report.save import save
from diffsiam.training import methods

_BASELINES = ("simsiam", "frozen_dm")  # of those of `paired`, what is shown here
_THESIS_PRETRAIN = "CIFAR10"  # what the thesis trains the encoders of its tables on
_SHARED = "the thesis's sets"  # in place of a data set: the transfer sets that the thesis prints too
_FEATURES = {  # what is said of features beside the accuracies
    "RankMe": "RankMe{of}: exp of the entropy of the test features' singular values over their sum.",
    "Participation": "Participation: (sum l)^2 / sum l^2 of the eigenvalues l of their covariance.",
    "Mean norm": "Mean norm: of the train features.",
}
_SEEN, _REVERSED, _UNTOLD = (
    "seen in {}",
    "not seen in {} (a step is reversed)",
    "cannot be told in {} (a step is within its interval)",
)


def run(linear: Sequence[Path], fewshot: Sequence[Path], references: Sequence[Path], pretrain: str, out: Path) -> None:
    """Write the summary as ``out``, and every difference beside it as paired.csv, drawn in paired.png and .pdf.

    Args:
        linear, fewshot: JSON files of the linear probes and the few-shot episodes, of the same encoders and data sets.
        references: the thesis's Tables 4.1 and 4.2 as CSV.
        pretrain: the data set that the encoders were trained on; transfer averages leave it out.
    Raises:
        UserError: see `paired.table`; an unknown method.
    """
    results = [runtime.read_json(path) for path in linear], [runtime.read_json(path) for path in fewshot]
    differences = paired.table(*results, pretrain)
    thesis = pd.concat([runtime.read_csv(path) for path in references], ignore_index=True)
    summary = text(
        _accuracies(*results), differences, thesis, pretrain, _features([*results[0], *results[1]], pretrain)
    )
    with runtime.atomic(out.with_name("paired.csv")) as temporary:
        differences.to_csv(temporary, index=False, float_format="%.4f")
    save(paired.draw(differences, pretrain), out.with_name("paired.png"))
    runtime.write_text(out, summary)


def encoder(folder: Path, datasets: Sequence[str], refused: Mapping[tuple[str, str], str], out: Path) -> str:
    """Write one encoder's results as a Markdown table with a row per data set, and return it.

    Args:
        folder, datasets, refused: of `diffsiam.evaluation.protocols.run`; what was refused stands below the table.
    Raises:
        UserError: everything was refused.
    """
    results = {
        (name, protocol): runtime.read_json(folder / protocol / f"{name}.json")
        for name in datasets
        for protocol in ("linear", "fewshot")
        if not {(name, protocol), (name, "data")} & refused.keys()
    }
    if not results:
        raise UserError(" ".join(refused.values()))
    episodes = [r for (_, protocol), r in results.items() if protocol == "fewshot"]
    scores = pd.DataFrame(index=list(dict.fromkeys(datasets)))
    cells = scores.copy()
    for (name, _), result in results.items():
        probe = {"Linear": result, "k-NN": result["knn"]} if "knn" in result else {}
        few = {_label(int(n)): score for n, score in result.get("shots", {}).items()}
        for column, score in (probe | few).items():
            scores.loc[name, column] = score["accuracy"]
            cells.loc[name, column] = tables.cell(score["accuracy"], score.get("ci95"))
        for column, value in _of_features(result).items():
            scores.loc[name, column] = value
            cells.loc[name, column] = tables.cell(value)
    last = ["-shot", *_FEATURES]
    order = sorted(scores.columns, key=lambda column: [column.endswith(end) for end in reversed(last)])
    scores, cells = scores[order], cells[order]
    means = scores.mean(skipna=False)  # of all data sets or of none
    rows = [["Data set", *cells.columns], *([name, *row.fillna("")] for name, row in cells.iterrows())]
    rows.append(["Avg.", *("" if pd.isna(mean) else tables.cell(mean) for mean in means)])
    method = next(iter(results.values()))["method"]
    missing = [f"- {what} of {name}: {reason}" for (name, what), reason in refused.items()]
    lines = [f"**{method}**: accuracy in percent ± 95 % half-width", "", *aligned(rows), ""]
    meaning = _meaning(list(results.values()))
    lines += [*meaning, ""] if meaning else []
    lines += [*_scale(method, episodes), ""] if episodes else []
    lines += ["Not computed:", *missing, ""] if missing else []
    table = "\n".join(lines)
    runtime.write_text(out, table)
    return table


def _scale(method: str, episodes: Sequence[dict[str, Any]]) -> list[str]:
    """What the few-shot accuracies of an encoder from elsewhere depend on."""
    scaled = tables.scaling(episodes)
    if scaled or ":" not in method:  # trained here
        return scaled
    return textwrap.wrap(
        "Few-shot accuracies depend on the scale of the features, because the thesis's learning rate is fixed. With "
        "`fewshot.normalize: norm` all are scaled to one mean norm.",
        118,
    )


def _of_features(result: dict[str, Any]) -> dict[str, float]:
    """What a linear or few-shot result says of the features themselves; older ones say less, or nothing."""
    rank = result.get("rank", {})
    found = {
        "RankMe": rank.get("rankme"),
        "Participation": rank.get("participation"),
        "Mean norm": result.get("mean_norm"),
    }
    return {title: value for title, value in found.items() if value is not None}


def _meaning(results: Sequence[dict[str, Any]]) -> list[str]:
    """What the numbers of `_of_features` are, where there are any."""
    titles = {title for result in results for title in _of_features(result)}
    dimensions = {str(result["rank"]["dimensions"]) for result in results if "rank" in result}
    of = f", of {' or '.join(sorted(dimensions))} dimensions"
    return textwrap.wrap(" ".join(said.format(of=of) for title, said in _FEATURES.items() if title in titles), 118)


def _features(results: Sequence[dict[str, Any]], pretrain: str) -> list[str]:
    """Rank and mean norm of the features of every method, or nothing where no result holds them."""
    found = [
        {
            "method": r["method"],
            "place": r["dataset"] if r["dataset"] == pretrain else paired.AVERAGE,
            "seed": r["seed"],
        }
        | _of_features(r)
        for r in results
        if _of_features(r)
    ]
    if not found:
        return []
    frame = pd.DataFrame(found)
    titles = [title for title in _FEATURES if title in frame]
    rows = [["Method", "Features of", *titles]]
    for (method, place), part in frame.groupby(["method", "place"], sort=False):
        cells = [_mean_cell(part.dropna(subset=title), title) for title in titles]
        rows.append([methods.lookup(str(method)).title, str(place), *cells])
    return ["**The features themselves.**", *_meaning(results), "", *aligned(rows), ""]


def text(
    scores: pd.DataFrame, differences: pd.DataFrame, thesis: pd.DataFrame, pretrain: str, features: Sequence[str]
) -> str:
    """The summary.

    Args:
        scores: protocol, method, dataset, seed, accuracy, one row each.
        differences: of `paired.table`.
        thesis: method, dataset, accuracy and shots, which is missing for Table 4.1.
        features: lines on the features themselves.
    """
    titles = {name: methods.lookup(name).title for name in scores["method"].unique()}
    names = [name for name in scores["dataset"].unique() if name != pretrain]
    thesis = thesis[thesis["dataset"].isin(scores["dataset"].unique()) & thesis["method"].isin(titles)]
    if pretrain != _THESIS_PRETRAIN:  # its transfer sets are not ours
        thesis = thesis.head(0)
    thesis = thesis.assign(protocol=thesis["shots"].map(_label), seed=0)
    ours, theirs = _columns(scores, pretrain), _columns(thesis, pretrain)
    rows = [["Method", *ours]]
    for name, title in titles.items():
        rows.append([title, *(_mean_cell(part[part["method"] == name]) for part in ours.values())])
    for name, title in titles.items():
        if name in set(thesis["method"]):
            printed = [theirs.get(column, thesis.head(0)) for column in ours]
            rows.append([f"{title} (thesis)", *(_mean_cell(part[part["method"] == name]) for part in printed)])
    seeds = sorted(scores["seed"].unique())
    lines = [
        "**Methods side by side.** Accuracy in percent, mean over the transfer sets:",
        f"{', '.join(names) or 'there is none'}. 'Linear, all' is the mean over all data sets.",
        f"Seeds: {', '.join(map(str, seeds))}"
        + ("; standard deviation over seeds in parentheses." if len(seeds) > 1 else "."),
        *_whose(thesis, names),
        "",
        *aligned(rows),
        "",
        *features,
    ]
    compared = differences.assign(protocol=differences["shots"].map(_label))
    compared = pd.concat([compared, _shared(compared, thesis, pretrain)])
    pooled = compared[compared["seed"] == paired.ALL]
    for baseline in _BASELINES:
        if not (found := pooled[pooled["against"] == baseline]).empty:
            lines += [*_differences(found, thesis, pretrain, titles, baseline), ""]
    return "\n".join([*lines, *_order(pooled, len(seeds)), ""])


def _whose(thesis: pd.DataFrame, names: list[str]) -> list[str]:
    """What the thesis's numbers are of, where there are any."""
    if thesis.empty:
        return []
    few = thesis["shots"].notna()
    printed = {"Table 4.1": set(thesis.loc[~few, "dataset"]), "Table 4.2": set(thesis.loc[few, "dataset"])}
    missing = [f"{name} in {table}" for table, there in printed.items() for name in names if name not in there]
    return [
        "Rows (thesis): means of what it prints for these data sets, at its own numbers of images and steps.",
        *([f"It does not print, and its means leave out: {', '.join(missing)}."] if missing else []),
    ]


def _columns(scores: pd.DataFrame, pretrain: str) -> dict[str, pd.DataFrame]:
    """The rows that each column of the first table is the mean of."""
    transfer = scores[scores["dataset"] != pretrain]
    columns = {"Linear, all": scores[scores["protocol"] == "Linear"]}
    return columns | {str(protocol): part for protocol, part in transfer.groupby("protocol", sort=False)}


def _accuracies(linear: Sequence[dict[str, Any]], fewshot: Sequence[dict[str, Any]]) -> pd.DataFrame:
    values = [(r, {"Linear": r["accuracy"], "k-NN": r["knn"]["accuracy"]}) for r in linear]
    values += [(r, {_label(int(n)): s["accuracy"] for n, s in r["shots"].items()}) for r in fewshot]
    rows = [(p, r["method"], r["dataset"], r["seed"], x) for r, scores in values for p, x in scores.items()]
    return pd.DataFrame(rows, columns=["protocol", "method", "dataset", "seed", "accuracy"])


def _label(shots: Any) -> str:
    return "Linear" if pd.isna(shots) else f"{shots:.0f}-shot"


def _mean_cell(part: pd.DataFrame, column: str = "accuracy") -> str:
    by_seed = part.groupby("seed")[column].mean()
    return tables.cell(by_seed.mean(), spread=by_seed.std()) if len(by_seed) else ""


def _shared(differences: pd.DataFrame, thesis: pd.DataFrame, pretrain: str) -> pd.DataFrame:
    """Every difference on the average over the transfer sets that the thesis prints too, as rows of `_SHARED`."""
    both = differences[differences["dataset"] != pretrain].merge(thesis[["dataset", "protocol"]].drop_duplicates())
    keys = ["method", "against", "protocol"]
    means = both.groupby([*keys, "seed"], sort=False).agg(
        difference=("difference", "mean"), ci95=("ci95", lambda x: np.sqrt((x**2).sum()) / len(x))
    )
    by_seed = means["difference"].drop(paired.ALL, level="seed", errors="ignore")
    spread = by_seed.groupby(keys).std().rename("spread")
    return means.reset_index().merge(spread, on=keys).assign(dataset=_SHARED)


def _differences(
    rows: pd.DataFrame, thesis: pd.DataFrame, pretrain: str, titles: dict[str, str], baseline: str
) -> list[str]:
    """From ``baseline``: on the data set pretrained on, on the transfer average, and on those of its sets that the
    thesis prints, each beside the thesis's own where it has the baseline."""
    ours = rows.set_index(["dataset", "protocol", "method"])
    place = thesis["dataset"].where(thesis["dataset"] == pretrain, _SHARED)
    theirs = thesis.groupby([place, "protocol", "method"])["accuracy"].mean()
    there = set(ours.index.get_level_values("dataset"))
    known = set(place) if baseline in set(thesis["method"]) else set()
    places = [(name, name in known) for name in (pretrain, paired.AVERAGE, _SHARED) if name in there]
    out = [["Method", "Protocol", *(title for name, beside in places for title in [name, "thesis"][: 1 + beside])]]
    for method, protocol in itertools.product([m for m in titles if m != baseline], rows["protocol"].unique()):
        out.append([titles[method], protocol])
        for name, beside in places:
            cell = ours.xs((name, protocol, method)).to_dict() if (name, protocol, method) in ours.index else None
            out[-1].append(tables.cell(cell["difference"], cell["ci95"], cell["spread"], sign="+") if cell else "")
            if beside:
                x, y = (theirs.get((name, protocol, m)) for m in (method, baseline))
                out[-1].append("" if x is None or y is None else tables.cell(x - y, sign="+"))
    return [
        f"**Difference from {titles[baseline]}** in points ± 95 % half-width, paired: episode by episode, test image",
        "by test image"
        + ("" if rows["spread"].isna().all() else "; standard deviation over seeds in parentheses")
        + ".",
        "All data sets: paired.csv, paired.png.",
        *([f"'{_SHARED}': the average over the transfer sets that it prints too."] if _SHARED in there else []),
        "",
        *aligned(out),
    ]


def _order(pooled: pd.DataFrame, seeds: int) -> list[str]:
    """Sentences: per average and protocol, whether each step of the thesis's order lies outside its interval."""
    words = " > ".join(methods.lookup(name).title for name in paired.ORDER)
    steps = pd.concat(
        [pooled[(pooled["method"] == m) & (pooled["against"] == a)] for m, a in itertools.pairwise(paired.ORDER)]
    )
    # Over test images or episodes, and over trainings: spread holds some of the first too, so this is a little wide.
    half_width = np.hypot(steps["ci95"], _t95(seeds) * steps["spread"].fillna(0) / np.sqrt(seeds))
    steps = steps.assign(up=steps["difference"] > half_width, down=steps["difference"] < -half_width)
    said = []
    for name, title in ((paired.AVERAGE, "the transfer average"), (_SHARED, f"the average over {_SHARED}")):
        found: dict[str, list[str]] = {_SEEN: [], _REVERSED: [], _UNTOLD: []}
        for protocol, part in steps[steps["dataset"] == name].groupby("protocol", sort=False):
            if len(part) == len(paired.ORDER) - 1:
                verdict = _SEEN if part["up"].all() else _REVERSED if part["down"].any() else _UNTOLD
                found[verdict].append(str(protocol))
        if verdicts := [verdict.format(", ".join(where)) for verdict, where in found.items() if where]:
            said.append(f"On {title}: {'; '.join(verdicts)}.")
    if not said:
        said = ["It cannot be told: a method or every transfer set is missing."]
    elif seeds == 1:
        said.append(
            "Intervals are over test images, or over episodes of these very images; trainings may differ by more."
        )
    else:
        said.append(f"Intervals are over test images or episodes, and over the {seeds} trainings (Student's t).")
    return textwrap.wrap(f"**The order {words}.** {' '.join(said)}", 118)


def _t95(seeds: int) -> float:
    """Student's t for a two-sided 95 % interval of the mean of so many."""
    return float(scipy.stats.t.ppf(0.975, seeds - 1)) if seeds > 1 else 0.0


def aligned(rows: Sequence[Sequence[str]]) -> list[str]:
    """A Markdown table, header first, whose columns line up in a terminal too."""
    widths = [max(map(len, column)) for column in zip(*rows, strict=True)]
    padded = [
        [row[0].ljust(widths[0]), *(c.rjust(w) for c, w in zip(row[1:], widths[1:], strict=True))] for row in rows
    ]
    rule = ["-" * widths[0], *("-" * (width - 1) + ":" for width in widths[1:])]
    return ["| " + " | ".join(row) + " |" for row in (padded[0], rule, *padded[1:])]
