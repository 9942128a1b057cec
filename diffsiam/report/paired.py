"""Differences between methods on the same episodes and test images, with 95 % intervals.

Few-shot episodes are the same for every method and seed, so differences are taken episode by episode: what makes an
episode hard is common to both methods and drops out. With x[s, e] the accuracy of a method in episode e at seed s, in
percent, y[s, e] that of the method it is compared with, d = x - y, S seeds and E episodes:

    seed s:      difference_s = mean_e d[s, e],   ci95_s = 1.96 std_e(d[s, e]) / sqrt(E)
    all seeds:   difference = mean_s difference_s, ci95 = 1.96 std_e(mean_s d[s, e]) / sqrt(E)
                 spread = sample standard deviation over seeds of difference_s

Linear probes are compared test image by test image in the same way, with d 100 times the difference of right (1) and
wrong (0). Where the metric is the mean over classes, d is averaged over the images of each class and then over the C
classes: ci95 = 1.96 sqrt(sum_c s_c^2 / n_c) / C. Classes may be small, so s_c^2 is the unbiased variance (n_c - 1);
that of a class of one image is unknown and counts as 0. Everything else takes the population's, as the thesis does.

Data sets are drawn apart from each other: over K of them, difference is the plain mean and ci95 = sqrt(sum of squares)
/ K. Every interval is about the draw of episodes or test images, for these very encoders;
what another training would give is in the spread alone.

Of many cells some lie outside their intervals by chance. ``holm`` is the probability of a cell's difference where there
is none, corrected for all cells of the same two methods (data sets, protocols and shots) as Holm (1979) does: the
larger of the two-sided probabilities over episodes or images, by the normal, and, with several seeds, over trainings,
by Student's t. Below 0.05 a single cell may be pointed at.
"""

from __future__ import annotations

import dataclasses
import itertools
from collections.abc import Callable, Iterator, Sequence
from typing import Any

import numpy as np
import pandas as pd
from matplotlib import colormaps
from matplotlib.figure import Figure
from numpy.typing import NDArray
from scipy import stats

from diffsiam.errors import UserError
from diffsiam.evaluation import metrics
from diffsiam.evaluation.metrics import Z95
from diffsiam.training.methods import METHODS

AVERAGE = "Transfer avg."  # in place of a data set: all but the one pretrained on
ALL = "all"  # in place of a seed
_COLORS = colormaps["tab20"].colors[::2] + colormaps["tab20"].colors[1::2]  # type: ignore[attr-defined]
BASELINES = ("untrained", "frozen_dm", "simsiam")
ORDER = ("diffsiam_hier", "diffsiam_seq", "simsiam")  # the thesis's, best first
ALONE = ("diffsiam_hier", "pdae")  # what SimSiam and segments add to the diffusion term alone
COLUMNS = ["protocol", "shots", "method", "against", "dataset", "seed", "difference", "ci95", "spread", "holm"]


@dataclasses.dataclass(frozen=True)
class Estimate:
    """Differences (seeds,) in points, their 95 % half-widths (seeds,), and the half-width over all seeds."""

    differences: NDArray[np.float64]
    ci95: NDArray[np.float64]
    pooled: float

    @property
    def spread(self) -> float:
        """Standard deviation over seeds; NaN for one seed."""
        return float(self.differences.std(ddof=1)) if len(self.differences) > 1 else np.nan


def table(linear: Sequence[dict[str, Any]], fewshot: Sequence[dict[str, Any]], pretrain: str) -> pd.DataFrame:
    """Every method against each of `BASELINES`, each of `ORDER` against the next, and `ALONE`, where both are there.

    Args:
        linear, fewshot: results as the protocols write them, of the same methods, data sets and seeds.
        pretrain: the data set that the averages leave out.
    Returns:
        `COLUMNS`: per protocol and pair one row for each data set and `AVERAGE`, at each seed and `ALL`. ``shots`` is
        missing for linear, ``spread`` where it is not over seeds.
    Raises:
        UserError: a result is missing, or results are of different episodes or test images.
    """
    methods, datasets, seeds = _grid(linear, fewshot)
    rows = []
    for protocol, shots, scores, strata in _blocks(linear, fewshot, seeds):
        for method, against in pairs(methods):
            found = {d: paired(scores[method, d], scores[against, d], strata.get(d)) for d in datasets}
            if transfer := [found[name] for name in datasets if name != pretrain]:
                found[AVERAGE] = average(transfer)
            for name, e in found.items():
                where = {"protocol": protocol, "shots": shots, "method": method, "against": against, "dataset": name}
                cells = [*zip(map(str, seeds), e.differences, e.ci95, [np.nan] * len(seeds), strict=True)]
                cells += [(ALL, e.differences.mean(), e.pooled, e.spread)]
                values = (dict(zip(("seed", "difference", "ci95", "spread"), cell, strict=True)) for cell in cells)
                rows += [where | cell for cell in values]
    frame = pd.DataFrame(rows, columns=COLUMNS).astype({"shots": "Int64"})
    single = frame[(frame["seed"] == ALL) & (frame["dataset"] != AVERAGE)]
    for _, part in single.groupby(["method", "against"]):
        frame.loc[part.index, "holm"] = holm(chance(part, len(seeds)))
    return frame


def chance(cells: pd.DataFrame, seeds: int) -> NDArray[np.float64]:
    """Two-sided probabilities of the differences of ``cells``, rows of `ALL` over this many seeds, where there is no
    difference: the larger of those over episodes or images and over trainings."""
    size = cells["difference"].abs().to_numpy()
    with np.errstate(divide="ignore", invalid="ignore"):  # equal in every image, or at every seed: 0 / 0 says nothing
        p = 2 * stats.norm.sf(size / (cells["ci95"].to_numpy() / Z95))
        if seeds > 1:
            p = np.fmax(p, 2 * stats.t.sf(size / (cells["spread"].to_numpy() / seeds**0.5), seeds - 1))
    return np.where(size > 0, p, 1.0)


def holm(p: NDArray[np.float64]) -> NDArray[np.float64]:
    """Probabilities (m,) corrected for their number: the i-th smallest, from 0, times m - i, and never below the one
    before."""
    order = np.argsort(p)
    corrected = np.minimum(np.maximum.accumulate((len(p) - np.arange(len(p))) * p[order]), 1)
    return corrected[np.argsort(order)]


def paired(x: NDArray[np.float64], y: NDArray[np.float64], strata: NDArray[np.int64] | None = None) -> Estimate:
    """x - y of accuracies in percent, (seeds, episodes) or (seeds, images).

    Args:
        strata: sizes of consecutive groups that count alike however many are in them; None for a single one.
    """
    d = x - y
    groups = np.split(d, np.cumsum(strata)[:-1], axis=1) if strata is not None else [d]

    def half_width(parts: Sequence[NDArray[np.float64]]) -> NDArray[np.float64]:
        lost = int(len(parts) > 1)
        variance = sum(part.var(axis=-1) / max(part.shape[-1] - lost, 1) for part in parts)
        return Z95 * np.sqrt(variance) / len(parts)

    means = np.mean([group.mean(axis=1) for group in groups], axis=0)
    return Estimate(means, half_width(groups), float(half_width([group.mean(axis=0) for group in groups])))


def average(estimates: Sequence[Estimate]) -> Estimate:
    """The mean over data sets."""
    k = len(estimates)
    ci95 = np.stack([np.append(e.ci95, e.pooled) for e in estimates])
    ci95 = np.sqrt((ci95**2).sum(axis=0)) / k
    return Estimate(np.mean([e.differences for e in estimates], axis=0), ci95[:-1], float(ci95[-1]))


def color(method: str) -> tuple[float, float, float]:
    """The method's color in every picture."""
    return _COLORS[list(METHODS).index(method)]


def draw(frame: pd.DataFrame, pretrain: str) -> Figure:
    """One panel per baseline and protocol, one line per data set and method: the mean over seeds with its interval,
    and a dot per seed where there are several.

    Args:
        frame: of `table`.
        pretrain: stands apart from the transfer sets, as the average does.
    """
    frame = frame[frame["against"].isin(BASELINES)]
    if frame.empty:
        fig = Figure(figsize=(6, 1))
        fig.text(0.5, 0.5, f"Nothing to compare with {' or '.join(BASELINES)}.", ha="center")
        return fig
    names = sorted(frame["dataset"].unique(), key=lambda name: (name == AVERAGE) - (name == pretrain))
    shown = [name for name in METHODS if name in set(frame["method"])]
    lines, columns = frame["against"].unique(), frame["shots"].unique()
    size = 1.2 + 2.6 * len(columns), 0.5 + len(lines) * (0.7 + len(names) * (0.1 + 0.09 * len(shown)))
    fig = Figure(figsize=size, layout="constrained")
    panels = fig.subplots(len(lines), len(columns), sharex="col", sharey=True, squeeze=False)
    for (against, shots), axes in zip(itertools.product(lines, columns), panels.flat, strict=True):
        part = frame[(frame["against"] == against) & frame["shots"].isin([shots])]
        for i, name in enumerate(shown):
            own = part[part["method"] == name]
            seeds, pooled = own[own["seed"] != ALL], own[own["seed"] == ALL]
            if pooled.empty:
                continue
            y = pooled["dataset"].map(names.index) + 0.8 * ((i + 0.5) / len(shown) - 0.5)
            title = METHODS[name].title
            axes.errorbar(
                pooled["difference"], y, xerr=pooled["ci95"], fmt="o", ms=3.5, lw=1, color=color(name), label=title
            )
            if len(seeds) > len(pooled):
                y = seeds["dataset"].map(dict(zip(pooled["dataset"], y, strict=True)))
                axes.plot(seeds["difference"], y, "|", ms=6, color=color(name), alpha=0.6)
        axes.axvline(0, color="0.4", lw=0.8)
        if AVERAGE in names:
            axes.axhspan(len(names) - 1.5, len(names) - 0.5, color="0.93", zorder=0)
        protocol = "Linear" if pd.isna(shots) else f"{shots}-shot"
        axes.set(title=f"{protocol}, minus {METHODS[against].title}", xlabel="Difference (points)")
        axes.set(yticks=range(len(names)), yticklabels=names, ylim=(len(names) - 0.5, -0.5))
        axes.tick_params(labelbottom=True)
        axes.grid(axis="x", alpha=0.3)
    entries = {t: h for axes in panels.flat for h, t in zip(*axes.get_legend_handles_labels(), strict=True)}
    fig.legend(entries.values(), entries, loc="outside lower center", ncols=2 * len(columns), fontsize="small")
    return fig


_Scores = dict[tuple[str, str], NDArray[np.float64]]  # (method, data set) -> (seeds, ...)
_Block = tuple[str, int | None, _Scores, dict[str, NDArray[np.int64]]]


def _blocks(linear: Sequence[dict[str, Any]], fewshot: Sequence[dict[str, Any]], seeds: list[int]) -> Iterator[_Block]:
    """Protocol, shots, scores, and the strata of data sets that have them."""

    def stacked(results: Sequence[dict[str, Any]], values: Callable[[dict[str, Any]], Any]) -> _Scores:
        found = {(r["method"], r["dataset"], r["seed"]): values(r) for r in results}
        names = dict.fromkeys((method, dataset) for method, dataset, _ in found)
        return {name: np.array([found[*name, seed] for seed in seeds], np.float64) for name in names}

    strata = {r["dataset"]: metrics.strata(np.array(r["confusion"]), r["metric"]) for r in linear}
    yield "linear", None, stacked(linear, lambda r: 100 * metrics.unpack(r["correct"], r["n_test"])), strata
    for n in fewshot[0]["shots"]:

        def percent(r: dict[str, Any], n: str = n) -> NDArray[np.float64]:
            return 100 * np.array(r["shots"][n]["correct"]) / (r["ways"] * r["queries"])

        yield "fewshot", int(n), stacked(fewshot, percent), {}


def pairs(methods: Sequence[str]) -> list[tuple[str, str]]:
    """(method, what it is compared with), of those that are there."""
    wanted = [(method, against) for against in BASELINES for method in methods] + [*itertools.pairwise(ORDER), ALONE]
    return [(m, a) for m, a in dict.fromkeys(wanted) if m != a and {m, a} <= set(methods)]


def _grid(linear: Sequence[dict[str, Any]], fewshot: Sequence[dict[str, Any]]) -> tuple[list, list, list]:
    """Methods, data sets and seeds, after a check that there is a result for each combination."""
    keys = ("method", "dataset", "seed")
    axes = [list(dict.fromkeys(r[key] for r in (*linear, *fewshot))) for key in keys]
    for protocol, results in {"linear": linear, "few-shot": fewshot}.items():
        there = {tuple(r[key] for key in keys) for r in results}
        if missing := [cell for cell in itertools.product(*axes) if cell not in there]:
            raise UserError(
                f"summary: no {protocol} result of {missing[0][0]} on {missing[0][1]} at seed {missing[0][2]}, one of "
                f"{len(missing)} missing. Methods are compared on the same data sets and seeds: give --linear and "
                "--fewshot a result for each combination, or ask Snakemake for `results/summary.md`."
            )
    protocols = {(r["ways"], r["queries"], r["episodes"], tuple(r["shots"])) for r in fewshot}
    if len(protocols) > 1:
        first, second, *_ = (f"{w} ways, {q} queries, {e} episodes, shots {', '.join(s)}" for w, q, e, s in protocols)
        raise UserError(
            f"summary: few-shot results of different episodes cannot be compared: {first}; {second}. Make them with "
            "the same `fewshot` section of params.yaml."
        )
    for dataset in axes[1]:
        images = {tuple(np.sum(r["confusion"], axis=1)) for r in linear if r["dataset"] == dataset}
        if len(images) > 1:
            raise UserError(
                f"summary: linear results on {dataset} are of different test images. Make them from the same "
                f"results/data/{dataset}."
            )
    methods, datasets, seeds = axes
    return methods, datasets, sorted(seeds)
