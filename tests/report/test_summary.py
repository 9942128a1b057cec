"""The summary: averages, the thesis's own differences and the sentence on its order, by hand."""

from __future__ import annotations

import itertools
import json
import re
from pathlib import Path

import pandas as pd
import pytest

from diffsiam import cli
from diffsiam.report import summary
from tests.report import small_results

REFERENCES = sorted((Path(__file__).resolve().parents[2] / "workflow" / "reference").glob("thesis_table4_*.csv"))
METHODS = ("simsiam", "diffsiam_seq", "diffsiam_hier")
DATASETS = ("CIFAR10", "CIFAR100", "Flowers")  # pretrained on the first; the thesis prints no few-shot for the last
SEEDS = (0, 1)


def results(correct: dict[str, list[int]], methods: tuple[str, ...] = METHODS) -> tuple[list[dict], list[dict]]:
    """Linear and 1-shot results; ``correct`` per episode are the same for every data set and seed."""
    linear, fewshot = [], []
    for i, method in enumerate(methods):
        for d, dataset in enumerate(DATASETS):
            for seed in SEEDS:
                linear.append(
                    small_results.linear(method, dataset, seed, 40 + i + 10 * d + 2 * seed, knn=30 + i + 10 * d)
                )
                fewshot.append(small_results.fewshot(method, dataset, seed, {"1": correct[method]}))
    return linear, fewshot


CORRECT = {"simsiam": [8, 10, 8, 10], "diffsiam_seq": [9, 11, 9, 12], "diffsiam_hier": [11, 13, 11, 14]}


def make(tmp_path: Path, correct: dict[str, list[int]] = CORRECT, methods: tuple[str, ...] = METHODS) -> str:
    linear, fewshot = results(correct, methods)
    paths = small_results.write(tmp_path / "linear", linear), small_results.write(tmp_path / "fewshot", fewshot)
    summary.run(*paths, REFERENCES, "CIFAR10", tmp_path / "summary.md")
    return (tmp_path / "summary.md").read_text()


def test_averages_by_hand(tmp_path: Path) -> None:
    text = make(tmp_path)
    found = small_results.rows(text)
    # Linear, all: 40, 50, 60 and two more at seed 1: 50, 52. Transfer: 55, 57. k-NN 35 + i. 1-shot: 9 of 20.
    assert found["Method",] == ["Linear, all", "Linear", "k-NN", "1-shot"]
    assert found["SimSiam",] == ["51.00 (1.41)", "56.00 (1.41)", "45.00 (0.00)", "45.00 (0.00)"]
    assert found["DiffSiam hier.",] == ["53.00 (1.41)", "58.00 (1.41)", "47.00 (0.00)", "61.25 (0.00)"]
    assert "mean over the transfer sets:\nCIFAR100, Flowers." in text
    assert "Seeds: 0, 1; standard deviation over seeds in parentheses." in text


def test_differences_stand_beside_the_thesis_own(tmp_path: Path) -> None:
    found = small_results.rows(make(tmp_path))
    # Linear: one and two points, 2 and 4 of 200 images at each seed, never the same: over both seeds 4 and 8 images by
    # a half, half-width 196 sqrt((0.25 n / 200 - mean^2) / 200) per data set, over sqrt 2 on the average of two.
    # Thesis: CIFAR100 57.73 - 50.48 = 7.25 and Flowers 54.822 - 46.285 = 8.537, mean 7.8935.
    # On CIFAR10 alone: the same half-width times sqrt 2; 90.88 - 90.98.
    assert found["DiffSiam hier.", "Linear"] == [
        "+2.00 ± 1.36 (0.00)",
        "-0.10",
        "+2.00 ± 0.96 (0.00)",
        "+2.00 ± 0.96 (0.00)",
        "+7.89",
    ]
    # 1-shot: 3, 3, 3, 4 queries are 15, 15, 15, 20 points: deviation sqrt(4.6875), 1.96 / 2 of it, over sqrt 2.
    # Thesis: 43.20 - 37.44; CIFAR100 alone, 46.22 - 39.54, beside ours on CIFAR100 alone.
    assert found["DiffSiam hier.", "1-shot"] == [
        "+16.25 ± 2.12 (0.00)",
        "+5.76",
        "+16.25 ± 1.50 (0.00)",
        "+16.25 ± 2.12 (0.00)",
        "+6.68",
    ]
    # 90.71 - 90.98; (56.5 - 50.48 + 55.433 - 46.285) / 2. 40.98 - 37.44; 45.09 - 39.54.
    assert found["DiffSiam seq.", "Linear"] == [
        "+1.00 ± 0.97 (0.00)",
        "-0.27",
        "+1.00 ± 0.69 (0.00)",
        "+1.00 ± 0.69 (0.00)",
        "+7.58",
    ]
    assert found["DiffSiam seq.", "1-shot"][1::3] == ["+3.54", "+5.55"]


def test_the_thesis_own_accuracies_stand_in_rows_that_say_whose_they_are(tmp_path: Path) -> None:
    text = make(tmp_path)
    # CIFAR10, CIFAR100, Flowers: (90.98 + 50.48 + 46.285) / 3; without CIFAR10; no k-NN; CIFAR100 alone.
    assert small_results.rows(text)["SimSiam (thesis)",] == ["62.58", "48.38", "", "39.54"]
    assert "It does not print, and its means leave out: Flowers in Table 4.2." in text


def test_without_data_sets_of_the_thesis_nothing_of_it_is_said(tmp_path: Path) -> None:
    linear, fewshot = results(CORRECT)
    for result in (*linear, *fewshot):
        result["dataset"] = f"my{result['dataset']}"
    paths = small_results.write(tmp_path / "l", linear), small_results.write(tmp_path / "f", fewshot)
    summary.run(*paths, REFERENCES, "myCIFAR10", tmp_path / "summary.md")
    text = (tmp_path / "summary.md").read_text()
    assert "thesis" not in text
    assert small_results.rows(text)["DiffSiam hier.", "Linear"] == ["+2.00 ± 1.36 (0.00)", "+2.00 ± 0.96 (0.00)"]


@pytest.mark.parametrize("pretrain", ["CIFAR100", "Bedroom"])
def test_encoders_of_other_images_than_the_thesis_stand_alone(tmp_path: Path, pretrain: str) -> None:
    """CIFAR10 would be a transfer set of ours, and CIFAR100 is one of the thesis's."""
    linear, fewshot = results(CORRECT)
    paths = small_results.write(tmp_path / "l", linear), small_results.write(tmp_path / "f", fewshot)
    summary.run(*paths, REFERENCES, pretrain, tmp_path / "summary.md")
    assert "thesis" not in (tmp_path / "summary.md").read_text()


def test_the_thesis_means_are_over_our_data_sets_alone(tmp_path: Path) -> None:
    """Encoders trained on CIFAR10 that were not evaluated on it."""
    linear, fewshot = ([r for r in rows if r["dataset"] != "CIFAR10"] for rows in results(CORRECT))
    paths = small_results.write(tmp_path / "l", linear), small_results.write(tmp_path / "f", fewshot)
    summary.run(*paths, REFERENCES, "CIFAR10", tmp_path / "summary.md")
    assert small_results.rows((tmp_path / "summary.md").read_text())["SimSiam (thesis)",][:2] == ["48.38", "48.38"]


def test_a_method_that_the_thesis_does_not_print_has_an_empty_cell(tmp_path: Path) -> None:
    found = small_results.rows(make(tmp_path, CORRECT | {"untrained": [5, 5, 5, 5]}, ("untrained", *METHODS)))
    assert found["Untrained", "1-shot"][0].startswith("-20.00 ±")
    assert found["Untrained", "1-shot"][1::3] == found["Untrained", "Linear"][1::3] == ["", ""]
    assert ("Untrained (thesis)",) not in found


def test_with_several_seeds_a_step_must_exceed_what_trainings_differ_by(tmp_path: Path) -> None:
    """hier. is above seq. by 10 and by 5 points, with no interval over episodes at all: by Student's t with one degree
    of freedom, 7.5 ± 12.706 * 3.54 / sqrt 2."""
    linear, fewshot = results(CORRECT)
    for result in fewshot:
        correct = {"simsiam": 8, "diffsiam_seq": 12, "diffsiam_hier": (14, 13)[result["seed"]]}[result["method"]]
        result["shots"]["1"]["correct"] = [correct] * 4
    paths = small_results.write(tmp_path / "l", linear), small_results.write(tmp_path / "f", fewshot)
    summary.run(*paths, REFERENCES, "CIFAR10", tmp_path / "summary.md")
    text = (tmp_path / "summary.md").read_text()
    assert "seen in Linear; cannot be told in 1-shot (a step is within its interval)" in sentence(text)
    # From SimSiam: 30 and 25 points, on every data set.
    assert small_results.rows(text)["DiffSiam hier.", "1-shot"][::3] == ["+27.50 ± 0.00 (3.54)"] * 2


def test_intervals_over_episodes_and_over_trainings_add_in_squares(tmp_path: Path) -> None:
    """hier. is above seq. by 10.62 points; over episodes ± 8.5, over the two trainings ± 7.9."""
    linear, fewshot = results(CORRECT)
    for result in fewshot:
        last = 15 + result["seed"]
        correct = {"simsiam": [8, 10, 8, 10], "diffsiam_seq": [9, 11, 9, 11], "diffsiam_hier": [9, 11, 13, last]}
        result["shots"]["1"]["correct"] = correct[result["method"]]
    paths = small_results.write(tmp_path / "l", linear), small_results.write(tmp_path / "f", fewshot)
    summary.run(*paths, REFERENCES, "CIFAR10", tmp_path / "summary.md")
    steps = pd.read_csv(tmp_path / "paired.csv").query("method == 'diffsiam_hier' and against == 'diffsiam_seq'")
    (step,) = steps.query("shots == 1 and dataset == 'Transfer avg.' and seed == 'all'").itertuples()
    over_trainings = 12.706 * step.spread / 2**0.5
    assert max(step.ci95, over_trainings) < step.difference < (step.ci95**2 + over_trainings**2) ** 0.5
    assert "On the transfer average: seen in Linear; cannot be told in 1-shot" in sentence(
        (tmp_path / "summary.md").read_text()
    )


def test_a_lead_beyond_the_interval_of_the_mean_of_the_trainings_is_seen(tmp_path: Path) -> None:
    """hier. is above seq. by 10 and 11.25 points: 10.62 ± 12.706 * 0.88 / sqrt 2 = 7.9, where one training differs by
    11.2 from the next."""
    linear, fewshot = results(CORRECT)
    for result in fewshot:
        correct = {"simsiam": [8] * 4, "diffsiam_seq": [11] * 4, "diffsiam_hier": [13, 13, 13, 13 + result["seed"]]}
        result["shots"]["1"]["correct"] = correct[result["method"]]
    paths = small_results.write(tmp_path / "l", linear), small_results.write(tmp_path / "f", fewshot)
    summary.run(*paths, REFERENCES, "CIFAR10", tmp_path / "summary.md")
    assert "On the transfer average: seen in Linear, 1-shot" in sentence((tmp_path / "summary.md").read_text())


def test_a_lead_on_a_set_that_the_thesis_does_not_print_is_none_on_its_sets(tmp_path: Path) -> None:
    linear, fewshot = results(CORRECT)
    for result in fewshot:
        if result["dataset"] == "CIFAR100":
            result["shots"]["1"]["correct"] = CORRECT["simsiam"]
    paths = small_results.write(tmp_path / "l", linear), small_results.write(tmp_path / "f", fewshot)
    summary.run(*paths, REFERENCES, "CIFAR10", tmp_path / "summary.md")
    said = sentence((tmp_path / "summary.md").read_text())
    assert "On the transfer average: seen in Linear, 1-shot." in said
    assert "On the average over the thesis's sets: seen in Linear; cannot be told in 1-shot" in said


def sentence(text: str) -> str:
    """The last paragraph on one line."""
    return text.strip().split("\n\n")[-1].replace("\n", " ")


@pytest.mark.parametrize(
    ("seq", "hier", "verdict"),
    [
        ([9, 11, 9, 12], [11, 13, 11, 14], "seen in Linear, 1-shot"),
        (
            [9, 11, 9, 12],
            [9, 11, 10, 11],
            "seen in Linear; cannot be told in 1-shot (a step is within its interval)",
        ),
        (
            [9, 11, 9, 12],
            [9, 11, 10, 10],
            "seen in Linear; cannot be told in 1-shot (a step is within its interval)",
        ),
        ([9, 11, 9, 12], [7, 9, 7, 10], "seen in Linear; not seen in 1-shot (a step is reversed)"),
        ([6, 8, 6, 8], [12, 14, 12, 14], "seen in Linear; not seen in 1-shot (a step is reversed)"),
        (
            [8, 10, 8, 10],
            [9, 11, 9, 11],
            "seen in Linear; cannot be told in 1-shot (a step is within its interval)",
        ),
    ],
    ids=["seen", "hier ties", "hier a little below seq", "hier below seq", "seq below simsiam", "seq equals simsiam"],
)
def test_the_order_is_read_off_the_intervals(tmp_path: Path, seq: list[int], hier: list[int], verdict: str) -> None:
    text = make(tmp_path, CORRECT | {"diffsiam_seq": seq, "diffsiam_hier": hier})
    assert sentence(text) == (
        f"**The order DiffSiam hier. > DiffSiam seq. > SimSiam.** On the transfer average: {verdict}. "
        f"On the average over the thesis's sets: {verdict}. "
        "Intervals are over test images or episodes, and over the 2 trainings (Student's t)."
    )


def test_the_order_cannot_be_told_without_its_methods(tmp_path: Path) -> None:
    assert "cannot be told: a method or every transfer set is missing" in sentence(make(tmp_path, methods=METHODS[:2]))


def test_it_fits_a_terminal_with_the_presets_data_sets_shots_and_seeds(tmp_path: Path) -> None:
    names = ("CIFAR10", "Caltech", "Cars", "CIFAR100", "DTD", "Flowers", "Food")
    linear, fewshot = [], []
    for m, d, seed in itertools.product(METHODS, names, SEEDS):
        linear.append(small_results.linear(m, d, seed, 40 + seed))
        fewshot.append(small_results.fewshot(m, d, seed, dict.fromkeys(("1", "5", "10"), CORRECT[m])))
    paths = small_results.write(tmp_path / "l", linear), small_results.write(tmp_path / "f", fewshot)
    summary.run(*paths, REFERENCES, "CIFAR10", tmp_path / "summary.md")
    lines = (tmp_path / "summary.md").read_text().splitlines()
    assert max(map(len, lines)) <= 120
    tables = [list(rows) for is_row, rows in itertools.groupby(lines, lambda line: line.startswith("|")) if is_row]
    assert [len(rows) for rows in tables] == [8, 10]  # with header and rule
    assert all(len({tuple(m.start() for m in re.finditer(r"\|", row)) for row in rows}) == 1 for rows in tables)


def test_the_command_writes_both_files(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    linear, fewshot = results(CORRECT)
    files = [small_results.write(tmp_path / "l", linear), small_results.write(tmp_path / "f", fewshot), REFERENCES]
    options = ["--linear", *files[0], "--fewshot", *files[1], "--reference", *files[2], "--pretrain", "CIFAR10"]
    command = ["summary", *map(str, options), "--params", "{}", "--out", str(tmp_path / "summary.md")]
    assert cli.main(command) == 0
    assert (tmp_path / "summary.md").read_text() == make(tmp_path)
    assert list(pd.read_csv(tmp_path / "paired.csv")) == [
        "protocol", "shots", "method", "against", "dataset", "seed", "difference", "ci95", "spread", "holm",
    ]  # fmt: skip
    command.remove(str(files[0][0]))
    assert cli.main(command) == 2
    assert "no linear result of simsiam on CIFAR10 at seed 0" in capsys.readouterr().err


def of_one_encoder(tmp_path: Path, linear: list[dict], fewshot: list[dict], refused: dict) -> str:
    for protocol, results in (("linear", linear), ("fewshot", fewshot)):
        (tmp_path / protocol).mkdir()
        for result in results:
            (tmp_path / protocol / f"{result['dataset']}.json").write_text(json.dumps(result))
    return summary.encoder(tmp_path, ["digits", "photos"], refused, tmp_path / "summary.md")


def test_one_encoder_has_a_row_per_data_set(tmp_path: Path) -> None:
    linear = [small_results.linear("net", d, 0, a, 0.75, knn=a - 10) for d, a in (("digits", 90.0), ("photos", 60.0))]
    fewshot = [small_results.fewshot("net", d, 0, {"1": [c], "5": [c + 2]}) for d, c in (("digits", 10), ("photos", 8))]
    text = of_one_encoder(tmp_path, linear, fewshot, {})
    assert small_results.rows(text) == {
        ("Data set",): ["Linear", "k-NN", "1-shot", "5-shot"],
        ("--------",): ["-----------:", "----:", "-----------:", "-----------:"],
        ("digits",): ["90.00 ± 0.75", "80.00", "50.00 ± 0.50", "60.00 ± 0.50"],
        ("photos",): ["60.00 ± 0.75", "50.00", "40.00 ± 0.50", "50.00 ± 0.50"],
        ("Avg.",): ["75.00", "65.00", "45.00", "55.00"],
    }
    assert (tmp_path / "summary.md").read_text() == text


def test_what_was_refused_leaves_a_gap_and_no_average(tmp_path: Path) -> None:
    linear = [small_results.linear("net", "photos", 0, 60.0, 0.75, knn=50.0)]
    fewshot = [small_results.fewshot("net", d, 0, {"1": [c]}) for d, c in (("digits", 10), ("photos", 8))]
    text = of_one_encoder(tmp_path, linear, fewshot, {("digits", "linear"): "too few."})
    found = small_results.rows(text)
    assert found["digits",] == ["", "", "50.00 ± 0.50"]
    assert found["photos",] == ["60.00 ± 0.75", "50.00", "40.00 ± 0.50"]
    assert found["Avg.",] == ["", "", "45.00"]
    assert text.endswith("\nNot computed:\n- linear of digits: too few.\n")


RANK = {"rank": {"rankme": 31.25, "participation": 4.5, "dimensions": 64}}


def test_rank_and_norm_stand_beside_one_encoders_accuracies_where_the_results_hold_them(tmp_path: Path) -> None:
    linear = [small_results.linear("net", d, 0, 50.0) for d in ("digits", "photos")]
    fewshot = [small_results.fewshot("net", d, 0, {"1": [8]}) | {"mean_norm": 27.31} for d in ("digits", "photos")]
    text = of_one_encoder(tmp_path, [linear[0] | RANK, linear[1]], fewshot, {})  # photos of before ranks were recorded
    found = small_results.rows(text)
    assert found["Data set",] == ["Linear", "k-NN", "1-shot", "RankMe", "Participation", "Mean norm"]
    assert found["digits",][-3:] == ["31.25", "4.50", "27.31"]
    assert found["photos",][-3:] == ["", "", "27.31"]
    assert found["Avg.",][-3:] == ["", "", "27.31"]
    assert "RankMe, of 64 dimensions: " in text


def test_the_summary_shows_rank_and_norm_by_method_on_the_set_pretrained_on_and_on_transfer(tmp_path: Path) -> None:
    linear, fewshot = results(CORRECT)
    without = make(tmp_path)
    of = {"CIFAR10": 20, "CIFAR100": 30, "Flowers": 50}
    for result in linear:
        rankme = of[result["dataset"]] + METHODS.index(result["method"]) + 2 * result["seed"]
        result["rank"] = {"rankme": rankme, "participation": 2 + result["seed"], "dimensions": 64}
    for result in fewshot:
        result["mean_norm"] = 5.0 + result["seed"]
    paths = small_results.write(tmp_path / "l", linear), small_results.write(tmp_path / "f", fewshot)
    summary.run(*paths, REFERENCES, "CIFAR10", tmp_path / "summary.md")
    text = (tmp_path / "summary.md").read_text()
    assert max(map(len, text.splitlines())) <= 120
    before, _, rest = text.partition("**The features themselves.**")
    table, _, after = rest.partition("\n\n**Difference")
    assert before + "**Difference" + after == without  # which has no such part
    found = small_results.rows(table)
    assert found["Method",] == ["Features of", "RankMe", "Participation", "Mean norm"]
    # SimSiam: 20 and 22 on CIFAR10, 40 and 42 on average over the others; hier. 2 more. Then 2 and 3; 5 and 6.
    assert found["SimSiam",] == ["CIFAR10", "21.00 (1.41)", "2.50 (0.71)", "5.50 (0.71)"]
    assert found["SimSiam", "Transfer avg."] == ["41.00 (1.41)", "2.50 (0.71)", "5.50 (0.71)"]
    assert found["DiffSiam hier.",] == ["CIFAR10", "23.00 (1.41)", "2.50 (0.71)", "5.50 (0.71)"]
    assert found["DiffSiam hier.", "Transfer avg."] == ["43.00 (1.41)", "2.50 (0.71)", "5.50 (0.71)"]


@pytest.mark.parametrize(
    ("method", "facts", "said"),
    [
        ("torchvision:resnet18", {"mean_norm": 27.31}, "Few-shot accuracies depend on the scale of the features"),
        (
            "torchvision:resnet18",
            {"mean_norm": 5.0, "scale": 4.0},
            "Features scaled to a mean norm of 20 (fewshot.norm",
        ),
        ("x/encoder.safetensors", {"mean_norm": 27.31}, None),
    ],
)
def test_few_shot_of_a_foreign_encoder_says_what_it_depends_on(
    tmp_path: Path, method: str, facts: dict, said: str | None
) -> None:
    fewshot = [small_results.fewshot(method, "digits", 0, {"1": [3]}) | facts]
    linear = [small_results.linear(method, d, 0, 50.0) for d in ("digits", "photos")]
    text = of_one_encoder(tmp_path, linear, fewshot, {("photos", "fewshot"): "too few."})
    assert said in text if said else "scale" not in text
