"""What docs/measured and the README show is what the pipeline wrote, and its parts agree with each other."""

from __future__ import annotations

import os
import re
import shutil
import subprocess
import sys
from pathlib import Path

import pandas as pd
import pytest
import yaml
from scipy import stats

ROOT = Path(__file__).resolve().parents[1]
MEASURED = ROOT / "docs" / "measured"
PAGE = MEASURED / "README.md"
RUNS = sorted(path.parent for path in MEASURED.glob("*/params.yaml"))
# Made before steps were captured, and before figures showed ranges with their own x_T; their parameters say so.
EARLIER = {"cifar-cpu", "cifar-study", "cifar-gpu"}
TITLES = {"untrained": "Untrained", "simsiam": "SimSiam", "pdae": "PDAE", "diffsiam_seq": "DiffSiam seq.",
          "diffsiam_hier": "DiffSiam hier."}  # fmt: skip
UNTRACKED = {"data": {"root"}, "runtime": {"checkpoint_minutes", "tensorboard"}}  # no result depends on them


def settings(path: Path) -> dict:
    """Parameters without those that may differ from machine to machine."""
    params = yaml.safe_load(path.read_text())
    return {k: {n: x for n, x in v.items() if n not in UNTRACKED.get(k, ())} if isinstance(v, dict) else v
            for k, v in params.items()}  # fmt: skip


def accuracies(run: Path) -> pd.DataFrame:
    """Both tables by protocol, method, data set and seed."""
    linear = pd.read_csv(run / "table4_1.csv").assign(protocol="linear", shots=0)
    fewshot = pd.read_csv(run / "table4_2.csv").assign(protocol="fewshot")
    keys = ["protocol", "shots", "method", "dataset", "seed"]
    return pd.concat([linear, fewshot])[[*keys, "accuracy", "ci95"]].set_index(keys)


def test_there_are_runs() -> None:
    assert RUNS


@pytest.fixture(params=RUNS, ids=lambda run: run.name)
def run(request: pytest.FixtureRequest) -> Path:
    return request.param


def test_a_run_is_of_the_preset_that_it_is_named_after_or_of_some_of_its_seeds_and_methods(run: Path) -> None:
    mine, preset = settings(run / "params.yaml"), settings(ROOT / "workflow" / "presets" / f"{run.name}.yaml")
    made = {key: mine[key] for key in ("seeds", "methods")}
    assert all(set(made[key]) <= set(preset[key]) for key in made)
    if run.name in EARLIER:
        made["runtime"] = preset["runtime"] | {"graph": False}
        made["generation"] = preset["generation"] | {"exchange_noise": True}
    assert mine == preset | made


@pytest.mark.slow
@pytest.mark.parametrize("name", sorted({path.parent.name for path in MEASURED.glob("*/*.tar.xz")}))
def test_parts_of_a_run_give_its_tables(name: str, tmp_path: Path) -> None:
    run, copy = MEASURED / name, tmp_path / name
    shutil.copytree(run, copy, ignore=shutil.ignore_patterns("table*", "summary*", "paired*", "curve.csv", "curve.png"))
    env = os.environ | {"PATH": f"{Path(sys.executable).parent}{os.pathsep}{os.environ['PATH']}"}
    subprocess.run(["bash", ROOT / "workflow" / "scripts" / "merge.sh", copy], env=env, check=True, timeout=300)
    assert {path.name for path in copy.iterdir()} == {path.name for path in run.iterdir()}
    for path in run.iterdir():
        if path.name != "search.csv" and path.suffix in {".csv", ".md", ".tex"}:
            assert (copy / path.name).read_bytes() == path.read_bytes(), path.name


def test_paired_differences_are_those_of_the_tables(run: Path) -> None:
    table = accuracies(run)["accuracy"]
    paired = pd.read_csv(run / "paired.csv").fillna({"shots": 0})
    of_sets = paired[(paired["dataset"] != "Transfer avg.") & (paired["seed"] != "all")]
    assert len(of_sets)
    for row in of_sets.itertuples():
        key = row.protocol, int(row.shots)
        mine, theirs = (table[*key, name, row.dataset, int(row.seed)] for name in (row.method, row.against))
        assert row.difference == pytest.approx(mine - theirs, abs=2e-4), row
    keys = ["protocol", "shots", "method", "against", "seed"]
    pretrain = yaml.safe_load((run / "params.yaml").read_text())["pretrain"]
    averages = of_sets[of_sets["dataset"] != pretrain].groupby(keys)["difference"].mean()
    shown = paired[(paired["dataset"] == "Transfer avg.") & (paired["seed"] != "all")].set_index(keys)["difference"]
    assert shown.to_dict() == pytest.approx(averages.to_dict(), abs=2e-4)


def test_every_method_is_compared_with_both_baselines_on_every_set_and_the_average(run: Path) -> None:
    params = yaml.safe_load((run / "params.yaml").read_text())
    paired = pd.read_csv(run / "paired.csv")
    overall = paired[paired["seed"] == "all"].set_index(["method", "against", "dataset"])
    for against in ("untrained", "simsiam"):
        for method in set(params["methods"]) - {against}:
            for dataset in [*params["transfer"], "Transfer avg."]:
                rows = overall.loc[[(method, against, dataset)]]
                assert len(rows) == 1 + len(params["fewshot"]["shots"])
                assert rows["ci95"].gt(0).all()
                assert rows["spread"].notna().all() == (len(params["seeds"]) > 1)


def rows_of_numbers(text: str) -> set[str]:
    """Table rows with an accuracy in them; the search's name a setting in backquotes."""
    return {line for line in text.splitlines() if re.match(r"\|[^`]*\d\.\d\d\b.*\|$", line)}


def test_rows_of_numbers_on_the_page_are_those_that_the_pipeline_wrote_of_the_run_in_the_heading() -> None:
    sections = re.split(r"^## ", PAGE.read_text(), flags=re.MULTILINE)
    shown = {text.split(":")[0]: rows for text in sections if (rows := rows_of_numbers(text))}
    assert shown.keys() == {run.name for run in RUNS}
    for name, rows in shown.items():
        assert rows <= rows_of_numbers((MEASURED / name / "summary.md").read_text()), name


def test_rows_of_numbers_in_the_readme_are_of_one_run() -> None:
    rows = rows_of_numbers((ROOT / "README.md").read_text())
    assert rows
    assert any(rows <= rows_of_numbers((run / "summary.md").read_text()) for run in RUNS)


def test_the_search_on_the_page_shows_every_run_of_its_file() -> None:
    page = PAGE.read_text()
    rows = re.findall(r"^\| *(\d+) \| `(\w+)` *\| *([\d.]+) \| *([\d.]*) \|$", page, re.MULTILINE)
    shown = {(float(w), t, seed): float(x) for w, t, *xs in rows for seed, x in enumerate(xs) if x}
    runs = pd.read_csv(MEASURED / "cifar-study" / "search.csv").set_index(["diffusion_weight", "time_input", "seed"])
    assert shown == runs["validation_accuracy"].round(2).to_dict()


def test_gains_of_simsiams_rate_are_those_of_its_seeds() -> None:
    found = pd.read_csv(MEASURED / "simsiam" / "seeds.csv")
    page = PAGE.read_text()
    columns = {"linear": "linear", "1-shot": "shot1", "5-shot": "shot5", "10-shot": "shot10"}
    rows = re.findall(r"^\| (transfer|CIFAR-10), (\S+) \|(.*)\|", page, flags=re.MULTILINE)
    assert len(rows) == 6
    for where, protocol, shown in rows:
        kept = found[(found["dataset"] == "CIFAR10") == (where == "CIFAR-10")]
        mean = kept.groupby(["seed", "learning_rate"])[columns[protocol]].mean().unstack()
        gain = (mean[0.2] - mean[0.05]).loc[[101, 0, 2]]
        half = stats.t.ppf(0.975, 2) * gain.std() / 3**0.5
        expected = [*(f"{x:+.1f}" for x in gain), f"{gain.mean():+.1f} ± {half:.1f}"]
        assert [cell.strip() for cell in shown.split("|")][:4] == expected, (where, protocol)


def test_the_repeated_run_on_the_page_is_that_of_its_file() -> None:
    found = pd.read_csv(MEASURED / "cifar-gpu-again" / "accuracies.csv")
    transfer = found[found["dataset"] != "CIFAR10"].set_index(["run", "method", "seed"])
    whole = transfer.dropna(subset=["linear", "shot1"]).groupby(level=[0, 1, 2]).size() == 6
    means = transfer.groupby(level=[0, 1, 2]).mean(numeric_only=True).loc[whole[whole].index]
    section = PAGE.read_text().split("\n## The same again\n")[1].split("\n## ")[0]
    rows = {title: cells.split("|") for title, cells in re.findall(r"^\| (\w[^|]+?) \|(.*)\|$", section, re.MULTILINE)}
    assert rows.keys() == {"method", "Untrained", "SimSiam", "PDAE", "DiffSiam seq.", "DiffSiam hier."}
    for name, title in TITLES.items():
        mean = means.loc["a"].loc[name].mean()
        expected = [f"{mean[key]:.1f}" for key in ("linear", "knn", "shot1", "shot5", "shot10")]
        expected += [f"{mean['rankme']:.0f}", f"{mean['segments_r2']:.2f}"[1:] if "diffsiam" in name else ""]
        assert [cell.strip() for cell in rows[title]] == expected, name
    assert means.loc["a"].loc["diffsiam_seq"].index.tolist() == [1, 2]
    protocols = ["linear", "shot1", "shot5", "shot10"]
    few = transfer[transfer["dataset"] != "Flowers"].groupby(level=[0, 1, 2]).mean(numeric_only=True)
    for of, other, kept in ((means, "simsiam", protocols), (few, "simsiam", protocols[1:]), (means, "pdae", protocols)):
        lead = of.loc["a"].loc["diffsiam_hier"] - of.loc["a"].loc[other]
        half = stats.t.ppf(0.975, 2) * lead.std() / 3**0.5
        told = [f"{lead[key].mean():.1f} ± {half[key]:.1f}".replace("-", "\N{MINUS SIGN}") for key in kept]
        assert [text for text in told if text not in section] == [], other
    moved = (means.loc["b"] - means.loc["a"])[protocols].drop("untrained").dropna().abs()
    least, most, mean = (f"{moved['linear'].agg(how):.1f}" for how in ("min", "max", "mean"))
    assert len(moved) == 7
    told = f"moved by {least} to {most} points in linear classification ({mean} on average)"
    told += (
        f" and by at most {moved[protocols[1:]].max().max():.1f} in few-shot ({moved[protocols[1:]].mean().mean():.1f})"
    )
    assert told in " ".join(section.split())


def of_cifar_16() -> pd.DataFrame:
    """Accuracies by method, protocol, data set and seed; a method at another setting is one more, by the setting."""
    table = accuracies(MEASURED / "cifar-16")["accuracy"].reset_index()
    table["protocol"] = table["protocol"].where(table["shots"] == 0, table["shots"].astype(str) + "-shot")
    other = pd.read_csv(MEASURED / "cifar-16" / "settings.csv").drop(columns="method")
    other = other.melt(["setting", "seed", "dataset"], value_name="accuracy").rename(columns={"setting": "method"})
    other["protocol"] = other["variable"].str.replace(r"shot(\d+)$", r"\1-shot", regex=True)
    return pd.concat([table, other])


def test_differences_on_the_page_are_those_of_cifar_16() -> None:
    table = of_cifar_16()
    names = {"hier.": "diffsiam_hier", "PDAE with SimSiam": "pdae_simsiam", "SimSiam": "simsiam", "PDAE": "pdae"}
    names |= {
        "SimSiam, its predictor's rate fixed": "fixed_predictor_rate=true",
        "hier. of the noise": "loss_space=noise",
    }
    section = PAGE.read_text().split("\n## cifar-16")[1].split("\n## ")[0]
    rows = re.findall(r"^\| ([^|]+ minus [^|]+|the same, without Flowers) \|(.*)\|$", section, re.MULTILINE)
    assert len(rows) == 11
    pair, without = "", set[str]()
    for title, cells in rows:
        pair, without = (pair, {"Flowers"}) if title.startswith("the same") else (title, set())
        transfer = table[~table["dataset"].isin({"CIFAR10", *without})]
        means = transfer.groupby(["method", "protocol", "seed"])["accuracy"].mean()
        first, second = (means[names[name]] for name in pair.split(" minus "))
        of = (first - second).dropna().groupby("protocol")
        shown = of.mean(), stats.t.ppf(0.975, 2) * of.std() / 3**0.5
        protocols = ["linear", "1-shot", "5-shot", "10-shot"]
        assert [cell.strip() for cell in cells.split("|")] == [
            f"{shown[0][p]:+.1f} ± {shown[1][p]:.1f}" for p in protocols
        ]


def test_what_was_tried_at_cifar_16_is_on_the_page_whole() -> None:
    found = pd.read_csv(MEASURED / "cifar-16" / "search.csv").set_index("method")["accuracy"]
    text = PAGE.read_text().split("### What else was tried")[1].split("**Why seq.'s")[0]
    rows = [cells.split("|") for cells in re.findall(r"^\| [^|]+ \|(.*)\|$", text, re.MULTILINE)[2:]]
    methods = ["simsiam", "diffsiam_hier", "diffsiam_seq", "seq_alone"]
    assert found.index.unique().sort_values().tolist() == sorted(methods)
    for method, column in zip(methods, zip(*rows, strict=True), strict=True):
        assert sorted(filter(None, map(str.strip, column))) == sorted(f"{accuracy:.1f}" for accuracy in found[[method]])


def test_segments_on_the_page_are_those_of_cifar_16() -> None:
    found = pd.read_csv(MEASURED / "cifar-16" / "segments.csv")
    r2 = found[found["dataset"] == "CIFAR10"].groupby("method")["segments_r2"].mean()
    order = ["diffsiam_hier", "pdae", "pdae_simsiam", "simsiam", "untrained"]
    sentences = re.findall(r"R² between hier\.'s segments is .*?\(\[segments\.csv\]", PAGE.read_text(), re.DOTALL)
    assert [re.findall(r"\.\d\d", text) for text in sentences] == [[f"{r2[name]:.2f}"[1:] for name in order]]


def test_what_makes_segments_alike_is_as_the_trials_say() -> None:
    found = pd.read_csv(MEASURED / "cifar-16" / "trials.csv").set_index(["method", "trial"])
    searched = pd.read_csv(MEASURED / "cifar-16" / "search.csv").set_index(["method", "trial"])["accuracy"]
    assert found["validation"].to_dict() == pytest.approx(searched.to_dict(), abs=1e-3)
    page = PAGE.read_text().split("| training | validation |")[1].split("\n\n")[0]
    rows = [[cell.strip() for cell in line.split("|")[2:5]] for line in page.splitlines()[2:]]
    trials = [
        ("diffsiam_hier", "optimizer.learning_rate=0.2"),
        ("diffsiam_seq", "diffusion_weight=768.0"),
        ("diffsiam_seq", "time_input=noise_level"),
        ("diffsiam_seq", "diffusion_weight=2304.0"),
        ("seq_alone", "diffusion_weight=768.0"),
        ("diffsiam_seq", "last_relu=false"),
    ]
    columns = [found.loc[trial, ["validation", "segments_r2", "rankme"]] for trial in trials]
    assert rows == [[f"{accuracy:.1f}", f"{r2:.2f}"[1:], f"{rank:.0f}"] for accuracy, r2, rank in columns]
