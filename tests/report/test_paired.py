"""Paired differences, by hand and against SciPy."""

from __future__ import annotations

import numpy as np
import pandas as pd
import pytest
import scipy.stats
from matplotlib.figure import Figure

from diffsiam.errors import UserError
from diffsiam.evaluation import metrics
from diffsiam.report import paired
from tests.report import small_results

# Differences over the four episodes, 5 points a query: seed 0 10, 0, 20, 10; seed 1 0, 20, 0, 40; mean 5, 10, 10, 25.
CORRECT = {
    ("simsiam", 0): [10, 12, 8, 10],
    ("simsiam", 1): [12, 12, 10, 10],
    ("diffsiam_hier", 0): [12, 12, 12, 12],
    ("diffsiam_hier", 1): [12, 16, 10, 18],
}
SEEDS, TRANSFER = (0, 1), ("digits", "photos")


def linear(methods: tuple[str, ...] = ("simsiam", "diffsiam_hier"), datasets: tuple[str, ...] = TRANSFER) -> list[dict]:
    return [
        small_results.linear(m, d, s, 40.0 + 3 * methods.index(m) + s) for m in methods for d in datasets for s in SEEDS
    ]


def fewshot(datasets: tuple[str, ...] = TRANSFER) -> list[dict]:
    """``photos`` has half the differences of the others, the pretraining set a hundred times as much."""
    out = []
    for dataset in datasets:
        for (method, seed), counts in CORRECT.items():
            base = CORRECT["simsiam", seed]
            scale = {"photos": 0.5, "sprites": 100}.get(dataset, 1)
            scaled = [round(b + scale * (c - b)) for b, c in zip(base, counts, strict=True)]
            out.append(small_results.fewshot(method, dataset, seed, {"1": scaled}))
    return out


def select(frame: pd.DataFrame, **where: str) -> pd.DataFrame:
    for column, value in where.items():
        frame = frame[frame[column] == value]
    return frame


HIER = {"method": "diffsiam_hier", "against": "simsiam"}


def test_few_shot_differences_by_hand() -> None:
    frame = paired.table(linear(), fewshot(), "sprites")
    found = select(frame, protocol="fewshot", dataset="digits", **HIER).set_index("seed")
    assert list(found.index) == ["0", "1", "all"]
    assert found["difference"].tolist() == pytest.approx([10, 15, 12.5])
    # Population deviations over episodes: sqrt 50, sqrt 275, sqrt 56.25; half-widths 1.96 / sqrt 4 of them.
    assert found["ci95"].tolist() == pytest.approx([0.98 * 50**0.5, 0.98 * 275**0.5, 0.98 * 7.5])
    assert found["spread"].tolist() == pytest.approx([np.nan, np.nan, 12.5**0.5], nan_ok=True)
    assert set(found["shots"]) == {1}


def test_transfer_average_leaves_the_pretraining_set_out() -> None:
    datasets = ("sprites", *TRANSFER)
    frame = paired.table(linear(datasets=datasets), fewshot(datasets), "sprites")
    found = select(frame, protocol="fewshot", dataset=paired.AVERAGE, **HIER).set_index("seed")
    assert found["difference"].tolist() == pytest.approx([7.5, 11.25, 9.375])  # the mean of d and d / 2
    own = np.array([0.98 * 50**0.5, 0.98 * 275**0.5, 0.98 * 7.5])
    assert found["ci95"].tolist() == pytest.approx((own * (1 + 0.25) ** 0.5 / 2).tolist())
    assert found["spread"]["all"] == pytest.approx(3.75 / 2**0.5)
    assert len(select(frame, dataset="sprites", **HIER)) == 2 * 3  # but in rows of its own
    alone = paired.table(linear(datasets=("sprites",)), fewshot(("sprites",)), "sprites")
    assert paired.AVERAGE not in set(alone["dataset"])


def test_linear_differences_are_taken_image_by_image() -> None:
    """Both are right on the first 40 %; 3 % of the images are right in one alone, others than at the other seed."""
    found = select(paired.table(linear(), fewshot(), "sprites"), protocol="linear", **HIER)
    digits = select(found, dataset="digits").set_index("seed")
    assert digits["difference"].tolist() == pytest.approx([3, 3, 3])
    one = 1.96 * 100 * (0.03 * 0.97 / 200) ** 0.5
    # The mean over seeds: 2 images of each seed alone, 4 of both (seed 1 is right on 2 images more).
    both = 1.96 * 100 * ((4 * 0.5**2 + 4) / 200 - 0.03**2) ** 0.5 / 200**0.5
    assert digits["ci95"].tolist() == pytest.approx([one, one, both])
    assert digits["spread"]["all"] == pytest.approx(0)
    average = select(found, dataset=paired.AVERAGE).set_index("seed")
    assert average["ci95"].tolist() == pytest.approx([one / 2**0.5, one / 2**0.5, both / 2**0.5])
    assert found["shots"].isna().all()


def test_classes_of_a_mean_over_classes_count_alike() -> None:
    """Two classes of 400 and 100 images, against SciPy on each and against the two methods' own scores."""
    rng = np.random.default_rng(0)
    labels = rng.permutation(np.repeat([0, 1], [400, 100]))
    results = []
    for method, share in (("simsiam", 0.5), ("diffsiam_hier", 0.7)):
        right = rng.random(500) < share
        counts = metrics.confusion(labels, np.where(right, labels, 1 - labels), 2)
        accuracy = metrics.score(counts, "mean_per_class").accuracy
        result = small_results.linear(method, "digits", 0, accuracy)
        result |= {"metric": "mean_per_class", "n_test": 500, "confusion": counts.tolist()}
        results.append((result | {"correct": metrics.pack(right, labels)}, right))
    (one, x), (other, y) = results
    episodes = [small_results.fewshot(m, "digits", 0, {"1": [3]}) for m in ("simsiam", "diffsiam_hier")]
    frame = paired.table([one, other], episodes, "sprites")
    (row,) = select(frame, protocol="linear", dataset="digits", seed="0", **HIER).to_dict("records")
    errors = [scipy.stats.sem(100 * (y[labels == c].astype(float) - x[labels == c]), ddof=1) for c in (0, 1)]
    assert row["difference"] == pytest.approx(other["accuracy"] - one["accuracy"])
    assert row["ci95"] == pytest.approx(1.96 * (errors[0] ** 2 + errors[1] ** 2) ** 0.5 / 2)


def test_a_class_of_one_image_counts_as_certain() -> None:
    found = paired.paired(np.array([[100.0, 0, 0, 100]]), np.zeros((1, 4)), np.array([3, 1]))
    assert found.differences[0] == pytest.approx((100 / 3 + 100) / 2)
    assert found.ci95[0] == found.pooled == pytest.approx(1.96 * scipy.stats.sem([100, 0, 0], ddof=1) / 2)


def test_different_test_images_are_refused() -> None:
    results = linear()
    results[0]["confusion"] = [[50, 49], [0, 101]]
    with pytest.raises(UserError, match="linear results on digits are of different test images"):
        paired.table(results, fewshot(), "sprites")


def test_episode_differences_agree_with_scipy() -> None:
    rng = np.random.default_rng(0)
    x, y = rng.integers(0, 76, (2, 3, 500)) / 0.75
    found = paired.paired(x, y)
    for seed in range(3):
        assert found.differences[seed] == pytest.approx(x[seed].mean() - y[seed].mean())
        assert found.ci95[seed] == pytest.approx(1.96 * scipy.stats.sem(x[seed] - y[seed], ddof=0))
    assert found.pooled == pytest.approx(1.96 * scipy.stats.sem(x.mean(axis=0) - y.mean(axis=0), ddof=0))
    assert found.spread == pytest.approx(np.std(x.mean(axis=1) - y.mean(axis=1), ddof=1))


def test_what_is_common_to_an_episode_drops_out() -> None:
    hard = np.random.default_rng(0).normal(50, 10, (1, 2000))
    found = paired.paired(hard + 1, hard)
    assert found.differences[0] == pytest.approx(1)
    assert found.pooled == pytest.approx(0, abs=1e-9)  # two separate intervals would be 0.44 wide each


def test_turning_a_comparison_round_turns_its_sign() -> None:
    frame = paired.table(linear(("untrained", "simsiam")), [
        r | {"method": {"diffsiam_hier": "untrained"}.get(r["method"], r["method"])} for r in fewshot()
    ], "sprites")  # fmt: skip
    one = select(frame, method="simsiam", against="untrained")
    other = select(frame, method="untrained", against="simsiam")
    assert len(one) == len(other) == 2 * 3 * 3
    assert one["difference"].tolist() == pytest.approx((-other["difference"]).tolist())
    assert one["ci95"].tolist() == pytest.approx(other["ci95"].tolist())


def test_pairs_are_the_baselines_the_steps_of_the_order_and_hier_against_the_diffusion_term_alone() -> None:
    methods = ("untrained", "simsiam", "pdae", "diffsiam_seq", "diffsiam_hier")
    episodes = [small_results.fewshot(m, "digits", s, {"5": [3, 4]}) for m in methods for s in SEEDS]
    frame = paired.table(linear(methods, ("digits",)), episodes, "sprites")
    assert set(zip(frame["method"], frame["against"], strict=True)) == {
        ("simsiam", "untrained"), ("diffsiam_seq", "untrained"), ("diffsiam_hier", "untrained"),
        ("untrained", "simsiam"), ("diffsiam_seq", "simsiam"), ("diffsiam_hier", "simsiam"),
        ("pdae", "untrained"), ("pdae", "simsiam"),
        ("diffsiam_hier", "diffsiam_seq"), ("diffsiam_hier", "pdae"),
    }  # fmt: skip
    assert not frame.duplicated(["protocol", "shots", "method", "against", "dataset", "seed"]).any()


def test_a_missing_result_is_named() -> None:
    with pytest.raises(UserError, match="no few-shot result of diffsiam_hier on photos at seed 1, one of 1 missing"):
        paired.table(linear(), fewshot()[:-1], "sprites")
    with pytest.raises(UserError, match="no linear result of simsiam on digits at seed 0, one of 4"):
        paired.table([r for r in linear() if r["method"] != "simsiam"], fewshot(), "sprites")


def test_different_episodes_are_refused() -> None:
    results = fewshot()
    results[2] = small_results.fewshot("diffsiam_hier", "digits", 0, {"1": [3, 4, 5]})
    with pytest.raises(
        UserError, match=r"5 ways, 4 queries, (3|4) episodes, shots 1; 5 ways, 4 queries, (3|4) episodes"
    ):
        paired.table(linear(), results, "sprites")


def drawn(datasets: tuple[str, ...] = ("sprites", *TRANSFER)) -> Figure:
    return paired.draw(paired.table(linear(datasets=datasets), fewshot(datasets), "digits"), "digits")


def test_the_picture_has_a_panel_per_protocol_and_data_sets_from_the_pretraining_set_to_the_average() -> None:
    axes = drawn().axes
    assert [a.get_title() for a in axes] == ["Linear, minus SimSiam", "1-shot, minus SimSiam"]
    assert [t.get_text() for t in axes[0].get_yticklabels()] == ["digits", "sprites", "photos", paired.AVERAGE]


def test_the_picture_shows_means_intervals_and_seeds() -> None:
    _, axes = drawn().axes
    (bars,) = axes.containers
    means, _, (segments,) = bars.lines
    frame = select(paired.table(linear(datasets=("sprites", *TRANSFER)), fewshot(("sprites", *TRANSFER)), "digits"))
    frame = select(frame, protocol="fewshot", **HIER).set_index(["dataset", "seed"])
    at = {round(y): x for x, y in zip(*means.get_data(), strict=True)}
    assert at[0] == pytest.approx(frame.loc[("digits", "all"), "difference"])
    assert at[3] == pytest.approx(frame.loc[(paired.AVERAGE, "all"), "difference"])
    ends = {round(path[0, 1]): path[:, 0] for path in segments.get_segments()}
    centre, half = frame.loc[("digits", "all"), ["difference", "ci95"]]
    assert ends[0] == pytest.approx([centre - half, centre + half])
    ticks = axes.get_lines()[1]
    at_seeds = [x for x, y in zip(*ticks.get_data(), strict=True) if round(y) == 0]
    assert at_seeds == pytest.approx([10, 15])


def test_without_a_baseline_there_is_a_picture_that_says_so() -> None:
    only = [r for r in linear() if r["method"] == "simsiam"], [r for r in fewshot() if r["method"] == "simsiam"]
    fig = paired.draw(paired.table(*only, "sprites"), "sprites")
    assert not fig.axes
    assert "Nothing to compare" in fig.texts[0].get_text()


def test_probabilities_are_corrected_for_their_number_as_holm_does() -> None:
    assert paired.holm(np.array([0.01, 0.04, 0.03, 0.005])) == pytest.approx([0.03, 0.06, 0.06, 0.02])
    assert paired.holm(np.array([0.5, 0.6, 0.01])) == pytest.approx([1, 1, 0.03])
    rng = np.random.default_rng(0)  # by the definition: reject one after the other at alpha / (those that are left)
    for _ in range(20):
        p, alpha = rng.uniform(0, 0.1, 9), 0.05
        left, rejected = sorted(range(9), key=lambda i, p=p: p[i]), set()
        while left and p[left[0]] <= alpha / len(left):
            rejected.add(left.pop(0))
        assert set(np.flatnonzero(paired.holm(p) <= alpha)) == rejected


def test_a_single_cell_is_told_by_the_larger_probability_over_episodes_and_over_trainings() -> None:
    frame = paired.table(linear(), fewshot(), "sprites")
    cells = frame[(frame["seed"] == "all") & (frame["dataset"] != paired.AVERAGE)]
    assert frame["holm"].notna().sum() == len(cells)
    episodes = np.array([5, 10, 10, 25])  # mean over seeds of digits; of photos half of it, rounded to queries
    of_digits = select(cells, protocol="fewshot", dataset="digits", **HIER)
    over_episodes = 2 * scipy.stats.norm.sf(episodes.mean() / (episodes.std() / 2))
    over_trainings = scipy.stats.ttest_1samp([10, 15], 0).pvalue
    assert over_episodes < over_trainings
    assert paired.chance(of_digits, 2) == pytest.approx([over_trainings])
    assert paired.chance(of_digits, 1) == pytest.approx([over_episodes])
    part = cells[(cells["method"] == "diffsiam_hier") & (cells["against"] == "simsiam")]
    assert len(part) == 4  # two data sets by two protocols
    assert part["holm"].tolist() == pytest.approx(paired.holm(paired.chance(part, 2)))


def test_equal_results_are_no_difference() -> None:
    same = [result | {"seed": seed} for seed in SEEDS for result in linear(("simsiam",))[::2]]
    twice = same + [result | {"method": "pdae"} for result in same]
    few = [r for r in fewshot() if r["method"] == "simsiam"]
    frame = paired.table(twice, few + [r | {"method": "pdae"} for r in few], "sprites")
    assert (frame["holm"].dropna() == 1).all()
