"""Tables 4.1 and 4.2: tidy CSV with the thesis's numbers beside ours, and Markdown and LaTeX in the thesis's shape."""

from __future__ import annotations

import json
from collections.abc import Callable, Iterator, Sequence
from pathlib import Path
from typing import Any

import pandas as pd

from diffsiam import runtime
from diffsiam.data import sources
from diffsiam.training.methods import METHODS, lookup

Rows = list[tuple[str, list[tuple[str, bool]]]]  # title, cells, and whether a cell is the best; the head first

_KEYS = {"4_1": ["method", "dataset"], "4_2": ["shots", "method", "dataset"]}
_NETWORKS = {"resnet10": "ResNet-10", "conv": "DisDiff's convolutions"}  # of `diffsiam.models.encoder.build`


def run(
    table: str, results: Sequence[Path], metas: Sequence[Path], configs: Sequence[Path], reference: Path, out: Path
) -> None:
    """Write one table as ``out`` (.csv), and .md and .tex beside it.

    Args:
        table: "4_1" or "4_2".
        results: JSON files of the linear probe or the few-shot episodes.
        metas: meta.json of every data set in ``results``.
        configs: config.json of every encoder in ``results``; their parameters stand in the footnote.
        reference: the thesis's numbers as CSV.
    """
    found = [runtime.read_json(path) for path in results]
    rows = [row for result in found for row in _ROWS[table](result)]
    frame = with_thesis(pd.DataFrame(rows), runtime.read_csv(reference), _KEYS[table], complete(metas))
    datasets = list(dict.fromkeys(frame["dataset"]))
    blocks = (
        [("", frame)] if table == "4_1" else [(f"{c}-shot", part) for c, part in frame.groupby("shots", sort=False)]
    )
    shaped = [(title, _shape(part, datasets)) for title, part in blocks]
    caption, note = _CAPTIONS[table](found), " ".join([_footnote(configs, frame), *scaling(found)])
    with runtime.atomic(out) as temporary:
        frame.to_csv(temporary, index=False, float_format="%.4f")
    runtime.write_text(out.with_suffix(".md"), markdown(caption, shaped, note))
    runtime.write_text(out.with_suffix(".tex"), latex(caption, shaped, note))


def _linear_rows(result: dict[str, Any]) -> list[dict[str, Any]]:
    names = ["method", "dataset", "seed", "metric", "accuracy", "ci95", "l2", "n_train", "n_test"]
    return [{name: result[name] for name in names} | {"l2": f"{result['l2']:.6g}"}]


def _fewshot_rows(result: dict[str, Any]) -> list[dict[str, Any]]:
    return [
        {"shots": int(shots)}
        | {name: result[name] for name in ("method", "dataset", "seed")}
        | {name: scores[name] for name in ("accuracy", "std", "ci95")}
        | {"episodes": result["episodes"]}
        for shots, scores in result["shots"].items()
    ]


_ROWS: dict[str, Callable[[dict[str, Any]], list[dict[str, Any]]]] = {"4_1": _linear_rows, "4_2": _fewshot_rows}


def _linear_caption(results: Sequence[dict[str, Any]]) -> str:
    by_class = dict.fromkeys(r["dataset"] for r in results if r["metric"] == "mean_per_class")
    metric = f" ({', '.join(by_class)}: mean per class)" if by_class else ""
    return f"Table 4.1. Linear classification: accuracy in percent{metric} and 95 % interval over test images."


def _fewshot_caption(results: Sequence[dict[str, Any]]) -> str:
    ways = ", ".join(f"{ways}-way" for ways in dict.fromkeys(r["ways"] for r in results))
    return f"Table 4.2. {ways} few-shot classification: accuracy in percent and 95 % interval over episodes."


_CAPTIONS = {"4_1": _linear_caption, "4_2": _fewshot_caption}


def with_thesis(frame: pd.DataFrame, thesis: pd.DataFrame, keys: list[str], complete: set[str]) -> pd.DataFrame:
    """Add the thesis's numbers as columns ``thesis_*``, only for the data sets in ``complete``."""
    printed = thesis[thesis["dataset"].isin(complete)]
    printed = printed.rename(columns={c: f"thesis_{c}" for c in thesis.columns if c not in keys})
    order = {name: i for i, name in enumerate(METHODS)}
    frame = frame.sort_values("method", key=lambda c: c.map(order), kind="stable")
    if "shots" in keys:
        frame = frame.sort_values("shots", kind="stable")
    return frame.merge(printed, on=keys, how="left").reset_index(drop=True)


def complete(metas: Sequence[Path]) -> set[str]:
    """Data sets with the published counts: the thesis's numbers are not those of a subset."""
    facts = [runtime.read_json(path) for path in metas]
    return {
        f["dataset"] for f in facts if sources.counts_match(f["dataset"], f["counts"]["train"], f["counts"]["test"])
    }


def cell(
    mean: float, half_width: float | None = None, spread: float | None = None, sign: str = "", decimals: int = 2
) -> str:
    """``mean ± half_width (spread)``; what is None or NaN is left out. ``sign`` "+" shows a plus."""
    text = f"{mean:{sign}.{decimals}f}"
    text += f" ± {half_width:.{decimals}f}" if half_width is not None and pd.notna(half_width) else ""
    return text + (f" ({spread:.{decimals}f})" if spread is not None and pd.notna(spread) else "")


def _shape(frame: pd.DataFrame, datasets: list[str]) -> Rows:
    """Rows (title, cells) in the thesis's shape: a cell is its text and whether it is its column's best.

    With several seeds an interval is the mean of the seeds' own, and the spread of "Avg." that of the seeds' averages.
    """
    by = frame.groupby(["method", "dataset"], sort=False)
    means, spreads = by["accuracy"].mean().unstack(), by["accuracy"].std(ddof=1).unstack()
    intervals = by["ci95"].mean().unstack()
    means, best = means[datasets], means[datasets].max()
    average = means.mean(axis=1)
    average_spread = frame.groupby(["method", "seed"])["accuracy"].mean().groupby("method").std(ddof=1)
    rows = []
    for method in means.index:
        cells = []
        for name in datasets:
            text = cell(means.loc[method, name], intervals.loc[method, name], spreads.loc[method, name])
            cells.append((text, bool(means.loc[method, name] == best[name])))
        text = cell(average[method], spread=average_spread[method])
        cells.append((text, bool(average[method] == average.max())))
        rows.append((lookup(method).title, cells))
    printed = frame.drop_duplicates(["method", "dataset"]).set_index(["method", "dataset"])["thesis_accuracy"]
    for method in means.index:
        values = [printed.get((method, name)) for name in datasets]
        if any(pd.notna(v) for v in values):
            cells = [(f"{v:.2f}" if pd.notna(v) else "", False) for v in values]
            full = pd.Series(values, dtype=float)
            cells.append((f"{full.mean():.2f}" if full.notna().all() else "", False))
            rows.append((f"{lookup(method).title} (thesis)", cells))
    return [("", [(name, False) for name in [*datasets, "Avg."]]), *rows]


def encoders(configs: Sequence[Path]) -> list[str]:
    """How the encoders were trained, from their own records, in sentences."""
    every = [*{(c["method"], c["seed"]): c for c in map(runtime.read_json, configs)}.values()]
    records = [record for record in every if not lookup(record["method"]).frozen]
    return (_trained(records) if records else []) + _frozen([r for r in every if lookup(r["method"]).frozen])


def _frozen(records: Sequence[dict[str, Any]]) -> list[str]:
    pieces = {(r["block"], r["level"], r["dim"], bool(r["grid"])): r["method"] for r in records}
    return [
        f"{lookup(method).title}: block {block} on its way up, fed images noised to t = {level}, d = {dim}"
        + (", the best on the pretraining set's validation images." if chosen else ", as given.")
        for (block, level, dim, chosen), method in pieces.items()
    ]


def _trained(records: Sequence[dict[str, Any]]) -> list[str]:
    first = records[0]
    by_method = {r["method"]: dict(leaves(r["params"]["representation"])) for r in records}
    params, differing = _common(by_method)
    cut = [record["segments"] for record in records if lookup(record["method"]).segment]
    lines = [
        f"Encoders: {_NETWORKS[first.get('encoder', 'resnet10')]}, width {first['encoder_width']}, d = {first['dim']}, "
        + (f"{cut[0]} segments, " if cut else "")  # what a method does not use its record may have of an older edit
        + f"images of {first['image_size']}x{first['image_size']}"
        + (f", {params['steps']} steps of {params['batch_size']}." if "steps" in params else "."),
    ]
    if "diffusion_weight" in params:  # a method records the weights of the terms that it has
        of = " of the noise" if params.get("loss_space") == "noise" else ""
        lines.append(
            f"The diffusion term is the mean over pixels{of}, "
            f"weighted by {params['diffusion_weight']:g} (our choice: the thesis leaves the scale open)"
            + (f"; SimSiam's by {params['ssl_weight']:g}." if "ssl_weight" in params else ".")
        )
    own = [f"{lookup(name).title} {', '.join(given)}" for name, given in differing.items()]
    return lines + ([f"Of a method's own: {'; '.join(own)}."] if own else [])


def leaves(tree: dict[str, Any], above: str = "") -> Iterator[tuple[str, Any]]:
    """The values in nested mappings by their dotted names."""
    for key, value in tree.items():
        if isinstance(value, dict):
            yield from leaves(value, f"{above}{key}.")
        else:
            yield above + key, value


def _common(by_method: dict[str, dict[str, Any]]) -> tuple[dict[str, Any], dict[str, list[str]]]:
    """The value of each setting that most of the methods have which use it, and by method what it has in its place."""
    common: dict[str, Any] = {}
    for leaf in dict.fromkeys(leaf for given in by_method.values() for leaf in given):
        values = [given[leaf] for given in by_method.values() if leaf in given]
        common[leaf] = max(values, key=values.count)
    differing = {
        name: [f"{leaf} {json.dumps(value)}" for leaf, value in given.items() if value != common[leaf]]
        for name, given in by_method.items()
    }
    return common, {name: given for name, given in differing.items() if given}


def _footnote(configs: Sequence[Path], frame: pd.DataFrame) -> str:
    lines = encoders(configs)
    lines.append(
        f"Seeds: {', '.join(str(s) for s in sorted(frame['seed'].unique()))}"
        + (
            "; standard deviation over seeds in parentheses."
            if frame["seed"].nunique() > 1
            else "; one seed: differences between methods include the luck of that seed."
        )
    )
    if frame["thesis_accuracy"].isna().all():
        lines.append("The thesis's numbers are left out: these data sets or their sizes are not the thesis's.")
    return " ".join(lines)


def scaling(results: Sequence[dict[str, Any]]) -> list[str]:
    """What was done to the features' scale, in a sentence; none where they were taken as they are."""
    to = {f"{result['mean_norm'] * result['scale']:.3g}" for result in results if result.get("scale", 1) != 1}
    return [f"Features scaled to a mean norm of {' or '.join(sorted(to))} (fewshot.normalize: norm)."] if to else []


def markdown(caption: str, blocks: Sequence[tuple[str, Rows]], note: str) -> str:
    """Tables one below the other, each under its title where it has one."""
    out = [f"**{caption}**", ""]
    for above, (head, *rows) in blocks:
        out += [above, ""] if above else []
        out += ["| " + " | ".join([head[0], *(text for text, _ in head[1])]) + " |"]
        out += ["|---|" + "---:|" * len(head[1])]
        out += [
            "| " + " | ".join([title, *(f"**{text}**" if best else text for text, best in cells)]) + " |"
            for title, cells in rows
        ]
        out += [""]
    return "\n".join([*out, note, ""])


def latex(caption: str, blocks: Sequence[tuple[str, Rows]], note: str) -> str:
    """The same in LaTeX."""
    out = [r"\begin{table}", r"\centering", f"\\caption{{{_tex(caption)}}}"]
    for above, (head, *rows) in blocks:
        out += [f"\\par\\medskip {_tex(above)}\\par"] if above else []
        out += [f"\\begin{{tabular}}{{l{'r' * len(head[1])}}}", r"\hline"]
        out += [" & ".join(["", *(_tex(text) for text, _ in head[1])]) + r" \\ \hline"]
        out += [
            " & ".join([_tex(title), *(f"\\textbf{{{_tex(t)}}}" if best else _tex(t) for t, best in cells)]) + r" \\"
            for title, cells in rows
        ]
        out += [r"\hline", r"\end{tabular}"]
    return "\n".join([*out, f"\\par\\smallskip {{\\footnotesize {_tex(note)}}}", r"\end{table}", ""])


def _tex(text: str) -> str:
    return text.replace("%", r"\%").replace("±", r"$\pm$").replace("_", r"\_")
