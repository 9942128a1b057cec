"""ProbMask against an exhaustive search, and its parts against their formulas."""

from __future__ import annotations

import itertools
import json
import math
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from scipy.optimize import brentq, minimize
from sklearn.linear_model import LogisticRegression
from sklearn.metrics import average_precision_score

from diffsiam import runtime
from diffsiam.errors import UserError
from diffsiam.evaluation import probmask
from diffsiam.models.encoder import Encoder
from diffsiam.params import Attribute, ProbMask, Runtime

CPU = torch.device("cpu")
RUNTIME = Runtime("cpu", "fp32", 1, False, False, False, 5.0, False)
SIDE = 8


def settings(steps: int = 1000, seed: int = 0, attributes: tuple[Attribute, ...] = ()) -> ProbMask:
    return ProbMask(attributes, steps, 128, 0.01, 0.1, seed)


@pytest.fixture(autouse=True)
def one_thread() -> None:
    torch.set_num_threads(1)


# ----------------------------------------------------------------------------------------------------- the method
def planted(seed: int) -> tuple[np.ndarray, np.ndarray]:
    """Standardised, correlated features (600, 12) and labels that three of them make."""
    rng = np.random.default_rng(seed)
    mixing = rng.normal(size=(12, 12))
    x = rng.multivariate_normal(np.zeros(12), mixing @ mixing.T / 12 + 0.5 * np.eye(12), 600)
    x = (x - x.mean(axis=0)) / x.std(axis=0)
    weight = np.zeros(12)
    weight[rng.choice(12, 3, replace=False)] = rng.choice([-1, 1], 3) * rng.uniform(1, 2, 3)
    return x.astype(np.float32), (rng.random(600) < 1 / (1 + np.exp(-x @ weight))).astype(np.uint8)


def exhaustive(x: np.ndarray, y: np.ndarray) -> tuple[int, ...]:
    """The three dimensions with the smallest cross-entropy, of all 220 sets."""

    def loss(chosen: tuple[int, ...]) -> float:
        p = LogisticRegression(C=1e3).fit(x[:, chosen], y).predict_proba(x[:, chosen])
        return -float(np.log(p[np.arange(len(y)), y]).mean())

    return min(itertools.combinations(range(12), 3), key=loss)


def test_it_finds_the_set_of_an_exhaustive_search_in_nine_of_ten_seeds() -> None:
    found = 0
    for seed in range(10):
        x, y = planted(seed)
        weight, _ = probmask.fit(x, y[:, None], [3], ["a"], settings(seed=seed), CPU)
        found += tuple(np.flatnonzero(weight[0])) == exhaustive(x, y)
    assert found >= 9


def test_exactly_the_asked_number_of_dimensions_carry_weight_and_company_does_not_matter() -> None:
    x, y = planted(0)
    labels = np.stack([y, 1 - y, y], axis=1)
    together, bias = probmask.fit(x, labels, [3, 5, 12], ["a", "b", "c"], settings(50), CPU)
    assert np.count_nonzero(together, axis=1).tolist() == [3, 5, 12]
    alone, bias_alone = probmask.fit(x, labels[:, 1:2], [5], ["b"], settings(50), CPU)
    assert np.allclose(together[1], alone[0], atol=1e-6)
    assert bias[1] == pytest.approx(bias_alone[0], abs=1e-6)


def by_hand(x: np.ndarray, y: np.ndarray, dims: int, name: str, cfg: ProbMask) -> tuple[np.ndarray, float]:
    """One attribute by a loop over steps, masks and images, the projection by a root of its sum."""
    features, labels, d = torch.from_numpy(x), torch.from_numpy(y).float(), x.shape[1]
    w, b, s = torch.zeros(d, requires_grad=True), torch.zeros((), requires_grad=True), torch.ones(d, requires_grad=True)
    adam = torch.optim.Adam([w, b], lr=cfg.learning_rate)
    order, noise = (runtime.generator(cfg.seed, *purpose) for purpose in (["probmask/order"], ["probmask/mask", name]))
    for step in range(cfg.steps):
        done = step / cfg.steps
        tau = 1 - 0.97 * done
        rows = torch.randint(len(x), (16, math.ceil(cfg.batch_size / 16)), generator=order)
        losses = []
        for images, u in zip(rows, torch.rand(16, d, generator=noise), strict=True):
            # Its formula has a test of its own; at s = 1 another way to write it rounds to another gradient.
            mask = probmask.sample_mask(s, u, tau)
            p = torch.sigmoid(features[images] @ (w * mask) + b)
            losses.append(-torch.where(labels[images] == 1, p, 1 - p).log())
        adam.zero_grad()
        (gradient,) = torch.autograd.grad(torch.cat(losses).mean(), s, retain_graph=True)
        torch.cat(losses).mean().backward()
        adam.step()
        limit = dims if done >= 0.4 else dims + (d - dims) * min((0.4 - done) / 0.3, 1) ** 3
        free = (s - cfg.mask_learning_rate * gradient).detach().double()

        def spent(v: float, free: torch.Tensor = free, limit: float = limit) -> float:
            return float((free - v).clamp(0, 1).sum()) - limit

        v = brentq(spent, 0, float(free.max())) if spent(0) > 0 else 0
        s = (free - v).clamp(0, 1).float().requires_grad_()
    kept = sorted(range(d), key=lambda i: float(s.detach()[i]))[-dims:]
    return np.array([float(w.detach()[i]) if i in kept else 0 for i in range(d)]), float(b.detach())


def test_a_fit_is_the_loop_over_steps_masks_and_images() -> None:
    x, y = planted(3)
    cfg = ProbMask((), 20, 50, 0.02, 0.4, 5)  # of images, a number that 16 masks do not share evenly
    for labels, dims, name in ((y, 3, "a"), (1 - y, 5, "b")):
        weight, bias = by_hand(x, labels, dims, name, cfg)
        got, got_bias = probmask.fit(x, labels[:, None], [dims], [name], cfg, CPU)
        assert got[0] == pytest.approx(weight, abs=1e-4)
        assert got_bias[0] == pytest.approx(bias, abs=1e-4)
        assert abs(bias) > 1e-2


def test_dimensions_of_equal_keep_probability_are_chosen_by_the_size_of_their_weights() -> None:
    x, y = planted(0)
    cfg = ProbMask((), 2, 128, 0.01, 0.0, 0)  # at rate 0 none leaves the others; the budget falls after the second step
    everything, some = (probmask.fit(x, y[:, None], [dims], ["a"], cfg, CPU)[0][0] for dims in (12, 4))
    largest = np.argsort(-np.abs(everything))[:4]
    assert np.flatnonzero(some).tolist() == sorted(largest)
    assert some[largest].tolist() == everything[largest].tolist()


def test_the_projection_is_the_nearest_point_within_the_budget() -> None:
    rng = np.random.default_rng(0)
    keep = torch.from_numpy(rng.uniform(-0.5, 1.6, (20, 7))).float()
    budget = torch.from_numpy(rng.uniform(0.5, 6, 20)).float()
    got = probmask.project(keep, budget)
    assert ((got >= 0) & (got <= 1)).all()
    for row, sought, limit in zip(keep.numpy(), got.numpy(), budget.tolist(), strict=True):
        # The sum is piecewise linear in the scalar that is subtracted, with breaks at s and s - 1.
        inside = np.clip(row, 0, 1)
        if inside.sum() > limit:
            breaks = np.sort(np.concatenate([row, row - 1, [0]]))
            sums = np.array([np.clip(row - v, 0, 1).sum() for v in breaks])
            i = int(np.flatnonzero(sums >= limit)[-1])
            share = (sums[i] - limit) / (sums[i] - sums[i + 1])
            inside = np.clip(row - (breaks[i] + share * (breaks[i + 1] - breaks[i])), 0, 1)
            assert sought.sum() == pytest.approx(limit, abs=1e-4)
        assert np.allclose(sought, inside, atol=1e-5)


def test_the_budget_falls_by_a_cubic_between_a_tenth_and_four_tenths() -> None:
    final = torch.tensor([16.0, 32.0])
    values = [probmask.budget(p, 512, final).tolist() for p in (0, 0.1, 0.25, 0.4, 1)]
    assert values[0] == values[1] == [512, 512]
    assert values[2] == pytest.approx([16 + 496 / 8, 32 + 480 / 8])
    assert values[3] == values[4] == [16, 32]


def test_a_mask_is_a_binary_concrete_sample() -> None:
    keep, uniform, tau = torch.tensor([0.3, 0.9]), torch.tensor([0.7, 0.2]), probmask.temperature(0.5)
    assert tau == pytest.approx(0.97 * 0.5 + 0.03)
    assert (probmask.temperature(0), probmask.temperature(1)) == pytest.approx((1, 0.03))
    expected = [
        1 / (1 + math.exp(-(math.log(s / (1 - s)) + math.log(u / (1 - u))) / tau))
        for s, u in zip(keep.tolist(), uniform.tolist(), strict=True)
    ]
    assert probmask.sample_mask(keep, uniform, tau).tolist() == pytest.approx(expected, abs=1e-4)
    ends = probmask.sample_mask(torch.tensor([0.0, 1.0]), torch.tensor([0.5, 0.5]), 1.0)
    assert ends.tolist() == pytest.approx([0, 1], abs=1e-5)


def test_the_l1_regression_keeps_the_asked_number_of_weights() -> None:
    x, y = planted(1)
    for dims in (1, 3, 6):
        weight = probmask.l1_logistic(x, y, dims)
        kept = np.flatnonzero(weight)
        assert len(kept) == dims
        free = LogisticRegression().fit(x[:, kept], y).decision_function(x[:, kept])
        assert average_precision_score(y, x @ weight) == pytest.approx(average_precision_score(y, free), abs=0.02)


def test_the_regression_on_all_dimensions_is_the_minimum_of_cross_entropy_and_half_the_square_of_its_weights() -> None:
    x, y = planted(2)

    def objective(at: np.ndarray) -> float:
        margin = (2.0 * y - 1) * (x @ at[:-1] + at[-1])
        return float(np.logaddexp(0, -margin).sum() + at[:-1] @ at[:-1] / 2)

    weight, bias = probmask.logistic(x, y)
    assert [*weight, bias] == pytest.approx(minimize(objective, np.zeros(13)).x, abs=5e-3)
    assert abs(bias) > 0.02


def test_features_are_standardised_and_those_that_were_constant_become_0() -> None:
    x = np.array([[1, 5, 7], [3, 1, 8]], np.float32)
    got = probmask.standardize(x, np.array([2, 3, 6], np.float32), np.array([0.5, 4, 0], np.float32))
    assert got.tolist() == [[-2, 0.5, 0], [2, -0.5, 0]]


# ------------------------------------------------------------------------------------------------------ the stage
@pytest.fixture
def place(tmp_path: Path) -> Path:
    """A data set whose attributes are seen in the pixels, and an encoder with random weights."""
    rng = np.random.default_rng(0)
    for split, count in (("train", 80), ("test", 40)):
        labels = rng.integers(0, 2, (count, 2)).astype(np.uint8)
        images = rng.integers(0, 60, (count, SIDE, SIDE, 3)).astype(np.uint8)
        images[:, :, :4, 0] += 150 * labels[:, None, None, 0].repeat(SIDE, 1).repeat(4, 2)
        images[:, :4, :, 2] += 150 * labels[:, None, None, 1].repeat(4, 1).repeat(SIDE, 2)
        np.save(tmp_path / f"images_{split}.npy", images)
        np.save(tmp_path / f"attributes_{split}.npy", labels)
    meta = {"dataset": "sprites", "attributes": ["Red left", "Blue_top"], "image_size": SIDE}
    runtime.write_json(tmp_path / "meta.json", meta)
    torch.manual_seed(0)
    runtime.save_weights(tmp_path / "encoder_ema.safetensors", Encoder(4, SIDE).state_dict())
    runtime.write_json(tmp_path / "config.json", {"encoder_width": 4, "image_size": SIDE})
    return tmp_path


ROWS = (Attribute("sprites", "Blue top", 3), Attribute("sprites", "red LEFT", 5), Attribute("CelebA", "Smiling", 3))


def run(place: Path, out: Path, **options: Any) -> None:
    cfg = settings(200, attributes=ROWS)
    probmask.run(place / "encoder_ema.safetensors", place, cfg, RUNTIME, out, root=place, **options)


def test_the_stage_writes_a_masked_and_a_whole_classifier_of_every_attribute_of_the_data(place: Path) -> None:
    out = place / "out"
    run(place, out)
    stems = ["Red_left_5", "Red_left_all", "Blue_top_3", "Blue_top_all"]
    assert {p.name for p in out.iterdir()} == {f"{s}{x}" for s in stems for x in (".safetensors", ".json")}
    c = probmask.read(out / "Red_left_5.safetensors")
    facts = json.loads((out / "Red_left_5.json").read_text())
    assert (c.name, c.dims, facts["dims"]) == ("Red left", 5, 5)
    assert np.flatnonzero(c.weight).tolist() == facts["indices"]
    model, _ = probmask.load_encoder(place / "encoder_ema.safetensors")
    with torch.no_grad():
        z = {
            split: model(
                torch.from_numpy(np.load(place / f"images_{split}.npy")).permute(0, 3, 1, 2) / 127.5 - 1
            ).numpy()
            for split in ("train", "test")
        }
    assert np.allclose(c.mean, z["train"].mean(axis=0), atol=1e-5)
    assert np.allclose(c.std, z["train"].std(axis=0), atol=1e-5)
    x = {split: (part - c.mean) / np.where(c.std > 0, c.std, 1) for split, part in z.items()}
    for column, stem, dims in ((0, "Red_left", 5), (1, "Blue_top", 3)):
        y = {split: np.load(place / f"attributes_{split}.npy")[:, column] for split in ("train", "test")}
        facts = json.loads((out / f"{stem}_{dims}.json").read_text())
        plain = LogisticRegression(max_iter=1000).fit(x["train"], y["train"])
        whole = probmask.read(out / f"{stem}_all.safetensors")
        assert np.allclose(whole.weight, plain.coef_[0], atol=1e-3)
        assert whole.bias == pytest.approx(plain.intercept_[0], abs=1e-3)
        masked = probmask.read(out / f"{stem}_{dims}.safetensors")
        sparse = probmask.l1_logistic(x["train"].astype(np.float32), y["train"], dims)
        scores = {"masked": masked.weight, "all": plain.coef_[0], "l1": sparse}
        expected = {kind: average_precision_score(y["test"], x["test"] @ weight) for kind, weight in scores.items()}
        assert facts["average_precision"] == pytest.approx(expected, abs=1e-3)
        assert facts["average_precision"]["masked"] > 0.8
        assert ((x["train"] @ masked.weight + masked.bias > 0) == y["train"]).mean() > 0.8
        assert (facts["positive"], facts["l1_dims"]) == (y["test"].mean(), np.count_nonzero(sparse))
    whole = probmask.read(out / "Red_left_all.safetensors")
    assert (whole.dims, whole.masked, c.masked) == (32, False, True)


def test_one_attribute_can_be_asked_for_and_is_what_it_is_in_company(
    place: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    run(place, place / "all")
    monkeypatch.setattr(probmask, "l1_logistic", lambda x, *_: np.eye(x.shape[1], dtype=np.float32)[0])
    run(place, place / "out", attribute="red_left", dims=5)
    assert {p.stem for p in (place / "out").iterdir()} == {"Red_left_5", "Red_left_all"}
    alone, together = (probmask.read(place / folder / "Red_left_5.safetensors") for folder in ("out", "all"))
    assert np.allclose(alone.weight, together.weight, atol=1e-5)
    assert alone.bias == pytest.approx(together.bias, abs=1e-5)
    assert json.loads((place / "out" / "Red_left_5.json").read_text())["l1_dims"] == 1


def test_mistakes_are_named(place: Path) -> None:
    with pytest.raises(UserError, match=r"no attribute 'Smiling'\. There are: Red left, Blue_top"):
        run(place, place / "out", attribute="Smiling")
    with pytest.raises(UserError, match=r"33 dimensions for 'Red left', but z has 32"):
        run(place, place / "out", attribute="Red left", dims=33)
    for dims in (0, -1):
        with pytest.raises(UserError, match=rf"{dims} dimensions for 'Red left', but z has 32\. Choose 1 to 32"):
            run(place, place / "out", attribute="Red left", dims=dims)
    labels = np.load(place / "attributes_test.npy")
    labels[:, 0] = 0
    np.save(place / "attributes_test.npy", labels)
    with pytest.raises(UserError, match=r"none of the test images have 'Red left'"):
        run(place, place / "out", attribute="Red left")
    runtime.write_json(place / "meta.json", {"dataset": "Bedroom", "attributes": ["Red left", "Blue top"]})
    with pytest.raises(UserError, match=r"no row of probmask.attributes is about Bedroom.*Red left, Blue top"):
        run(place, place / "out")
    runtime.write_json(place / "meta.json", {"dataset": "digits", "attributes": []})
    with pytest.raises(UserError, match="digits has no attributes"):
        run(place, place / "out")
    assert not (place / "out").exists()
