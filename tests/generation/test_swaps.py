"""Swaps and partial conditioning: their ends, what they are sampled from, and what is said where there are none."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd
import pytest
import torch
from torch import Tensor

from diffsiam import params, runtime
from diffsiam.data.grid import Grid
from diffsiam.diffusion import ddim
from diffsiam.errors import UserError
from diffsiam.generation import factors, figures, measure, swaps
from diffsiam.generation import model as guided
from diffsiam.models.segments import even_edges
from tests.generation import tiny_guided
from tests.generation.test_factors import RUNTIME

SIDE, DIM, CODES = tiny_guided.SIDE, tiny_guided.DIM, tiny_guided.SEGMENTS
SIZES = (6, 5)


def coded(**changes: Any) -> guided.Guided:
    dm, encoder, _ = tiny_guided.networks()
    return guided.Guided(
        dm, encoder, tiny_guided.code_decoder(dm), even_edges(DIM, CODES), tiny_guided.settings(**changes)
    )


def near(images: Tensor, expected: Tensor) -> bool:
    """To rounding; networks of random weights leave [-1, 1]."""
    return bool((images - expected).abs().max() < 1e-4 * expected.abs().max())


@pytest.fixture(params=["segments", "codes"])
def model(request: pytest.FixtureRequest) -> guided.Guided:
    return tiny_guided.model() if request.param == "segments" else coded()


def latents(model: guided.Guided) -> tuple[Tensor, Tensor, Tensor]:
    """x_T of three images, their z, and that of three others."""
    x0 = tiny_guided.images(6)
    z, x_T = model.latents(x0)
    return x_T[:3], z[:3], z[3:]


def test_a_code_swapped_with_itself_leaves_the_reconstruction(model: guided.Guided) -> None:
    x_T, z, _ = latents(model)
    made = swaps.swap(model, x_T, z, z, [(0, 0), (1, 2), (0, CODES)])
    for each in made:
        assert near(each, model.sample(x_T, z))


def test_a_swap_samples_with_one_code_of_the_target_and_a_swap_of_all_with_its_z(model: guided.Guided) -> None:
    x_T, z, other = latents(model)
    made = swaps.swap(model, x_T, z, other, [(2, 3), (0, CODES)])
    width = DIM // CODES
    mixed = torch.cat([z[:, : 2 * width], other[:, 2 * width : 3 * width], z[:, 3 * width :]], dim=1)
    for each, own in zip(made, (mixed, other), strict=True):
        assert near(each, model.sample(x_T, own))
        assert not near(each, model.sample(x_T, z))


def test_all_codes_are_full_conditioning_and_none_the_frozen_model() -> None:
    model = coded()
    x_T, z, _ = latents(model)
    assert near(swaps.partial(model, x_T, z, range(CODES)), model.sample(x_T, z))
    assert torch.equal(swaps.partial(model, x_T, z, ()), model.sample(x_T, None))


def test_only_the_field_of_one_code_guides() -> None:
    model = coded(solver="ddim")
    x_T, z, other = latents(model)
    table = model.table

    def noise(x: Tensor, t: Tensor) -> Tensor:
        trunk, found = model.dm(x, t)
        return found + table.noise_shift(t) * model.decoder.fields(z, trunk)[:, 1]

    with torch.no_grad():
        expected = ddim.sample(noise, x_T, model.cfg.steps, table, clip=False, solver="ddim")
    assert near(swaps.partial(model, x_T, z, (1,)), expected)
    width = DIM // CODES  # what the other codes say does not matter
    mixed = torch.cat([other[:, :width], z[:, width : 2 * width], other[:, 2 * width :]], dim=1)
    assert near(swaps.partial(model, x_T, mixed, (1,)), expected)


# ------------------------------------------------------------------------------------------------- the stage
@pytest.fixture(scope="module")
def results(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A grid, its classifier, and diffsiam_hier and disdiff trained on it, all of random weights."""
    folder = tmp_path_factory.mktemp("grid")
    tiny_guided.disdiff(tiny_guided.results(folder))
    data = folder / "results" / "data" / "sprites"
    meta = runtime.read_json(data / "meta.json") | {"grid": {"names": ["hue", "side"], "sizes": list(SIZES)}}
    runtime.write_json(data / "meta.json", meta | {"dataset": "rooms", "splits": {"val": [3, 4]}})
    out = folder / "results" / "generation" / "classifier.safetensors"
    figures.run("classifier", tiny_guided.settings(), RUNTIME, data, None, out, root=folder)
    return folder / "results"


def run(results: Path, method: str, x_T: str = "shared", **changes: Any) -> Path:
    given: dict[str, Any] = {
        "cfg": tiny_guided.settings(),
        "rt": RUNTIME,
        "settings": params.Swaps(x_T, 8),
        "data": results / "data" / "sprites",
        "diffusion": results / "diffusion" / "sprites",
        "out": results / "generation" / f"swaps_{method}_{x_T}.npz",
        "root": results,
        "representation": results / "representation" / "sprites" / method / "seed0",
        "classifier": results / "generation" / "classifier.safetensors",
        "segments": CODES,
    }
    swaps.run(**(given | changes))
    return given["out"]


@pytest.fixture
def by_pixels(monkeypatch: pytest.MonkeyPatch) -> None:
    """Factors of which every pixel is a part, in place of a classifier that says the same of all images."""

    def predict(net: object, images: Tensor, sizes: tuple[int, ...], device: object) -> factors.Values:
        levels = (images // 16).long().sum(dim=(1, 2, 3))
        return torch.stack([levels % n for n in sizes], dim=1).numpy()

    monkeypatch.setattr(factors, "predict", predict)


@pytest.mark.usefixtures("by_pixels")
@pytest.mark.parametrize(("method", "x_T"), [("diffsiam_hier", "inverted"), ("disdiff", "shared")])
def test_pictures_and_shares_are_those_of_a_plain_loop(results: Path, method: str, x_T: str) -> None:
    arrays = np.load(path := run(results, method, x_T))
    cfg, data = tiny_guided.settings(guidance="score"), results / "data" / "sprites"
    places = results / "representation" / "sprites" / method / "seed0", results / "diffusion" / "sprites"
    model = guided.load(*places, cfg, "cpu")
    net = measure.load(results / "generation" / "classifier.safetensors", ["hue", "side"], sum(SIZES))
    a, b = runtime.rng(cfg.pairs.seed, "swaps").integers(30, size=(8, 2)).T
    x0 = torch.from_numpy(np.load(data / "images_train.npy")).permute(0, 3, 1, 2) / 127.5 - 1
    z, other = model.encode(x0[a]), model.encode(x0[b])
    noise = torch.stack([torch.randn(3, SIDE, SIDE, generator=runtime.generator(0, "swap", i)) for i in range(8)])
    start = model.invert(x0[a], z) if x_T == "inverted" else noise
    mixed = [z, *(z.clone() for _ in range(CODES)), other]
    for c, width in enumerate([DIM // CODES] * CODES):
        mixed[1 + c][:, c * width : (c + 1) * width] = other[:, c * width : (c + 1) * width]
    made = [figures.to_stored(model.sample(start, each)) for each in mixed]
    assert np.abs(arrays["swap"].astype(int) - np.stack(made)[:, :6]).max() <= 1
    assert np.abs(arrays["sources"].astype(int) - np.load(data / "images_train.npy")[a[:6]]).max() == 0

    told = [factors.predict(net, torch.from_numpy(each), SIZES, torch.device("cpu")) for each in made]
    target = np.stack([b // 5, b % 5], axis=1)
    table = pd.read_csv(path.with_suffix(".csv"))
    assert list(table.columns) == list(figures.COLUMNS)
    assert set(table["images"]) == {8}
    assert set(table["method"]) == {method}
    found = table.set_index(["measure", "subject", "attribute", "metric"])["value"]
    for c, after in enumerate(told[1:]):
        for k, name in enumerate(("hue", "side")):
            kept = [i for i in range(8) if told[0][i, k] != target[i, k]]
            share = sum(after[i, k] == target[i, k] for i in kept) / len(kept)
            subject = "all" if c == CODES else str(c)
            assert found["swap", subject, name, "share"] == pytest.approx(share, abs=1e-6)
            assert arrays["swap_moved"][c, k] == pytest.approx(share)
    assert set(table["measure"]) == ({"swap", "partial"} if method == "disdiff" else {"swap"})
    values = np.stack(told)
    for c in range(CODES):
        code = factors.carried(values[0], values[1 + c], target)
        assert tuple(arrays["swap_carried"][c]) == pytest.approx((code.factor, code.intended, code.others), nan_ok=True)
    assert len(np.unique(arrays["swap_moved"])) > 2


@pytest.mark.usefixtures("by_pixels")
def test_one_target_guides_the_noises_that_are_shown_and_the_next_those_after_them(results: Path) -> None:
    arrays = np.load(run(results, "disdiff"))
    cfg, data = tiny_guided.settings(guidance="score"), results / "data" / "sprites"
    places = results / "representation" / "sprites" / "disdiff" / "seed0", results / "diffusion" / "sprites"
    model = guided.load(*places, cfg, "cpu")
    net = measure.load(results / "generation" / "classifier.safetensors", ["hue", "side"], sum(SIZES))
    _, targets = runtime.rng(cfg.pairs.seed, "swaps").integers(30, size=(8, 2)).T
    rows = targets[[0, 0, 0, 0, 0, 0, 6, 6]]
    target = np.load(data / "images_train.npy")[rows]
    z = model.encode(torch.from_numpy(target).permute(0, 3, 1, 2) / 127.5 - 1)
    noise = torch.stack([torch.randn(3, SIDE, SIDE, generator=runtime.generator(0, "partial", i)) for i in range(8)])
    made = [figures.to_stored(images) for images in (model.sample(noise, None), model.sample(noise, z))]
    assert (arrays["partial_target"] == target[0]).all()
    assert np.abs(arrays["partial"][[0, -1]].astype(int) - np.stack(made)[:, :6]).max() <= 1
    assert arrays["partial"].shape == (CODES + 2, 6, SIDE, SIDE, 3)
    before, after = (factors.predict(net, torch.from_numpy(x), SIZES, torch.device("cpu")) for x in made)
    for k, values in enumerate((rows // 5, rows % 5)):
        kept = [i for i in range(8) if before[i, k] != values[i]]
        assert arrays["partial_moved"][-1, k] == pytest.approx(sum(after[i, k] == values[i] for i in kept) / len(kept))


class Told:
    """A judge that finds in every sample the factors of the first of its six targets, but where ``after`` differs."""

    grid = Grid(("hue", "side", "shade"), (9, 9, 9))

    def __init__(self, values: np.ndarray) -> None:
        self.target = values[[0] * 6 + [6] * 6 + [12] * 2]
        self.after = np.stack([np.full((14, 3), -1), *[self.target] * (CODES + 1)])

    def __call__(self, images: Tensor) -> np.ndarray:
        assert images.shape[:2] == self.after.shape[:2]
        return self.after


def test_six_noises_have_the_first_of_six_targets_and_a_code_is_less_the_factor_that_it_moves_next(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    seen, model, x0 = [], coded(), tiny_guided.images(14)
    monkeypatch.setattr(swaps, "partial", lambda model, x_T, z, which: (seen.append(z), x_T)[1])
    values = np.arange(42).reshape(14, 3)
    judge = Told(values)
    judge.after[1, 1::2, 1] = judge.after[1, :, 2] = -1  # code 0 moves hue always, side in every other, shade never
    arrays, rows = swaps.partials(model, x0, values, judge)  # type: ignore[arg-type]
    assert all(torch.equal(z, model.encode(x0)[[0] * 6 + [6] * 6 + [12] * 2]) for z in seen)
    assert arrays["partial_moved"].tolist() == [[1, 0.5, 0], *[[1, 1, 1]] * CODES]
    assert arrays["partial_carried"][0].tolist() == [0, 1, pytest.approx(1 - 3 / 7)]  # of the last seven
    told = {(row["subject"], row["attribute"], row["metric"]): row["value"] for row in rows}
    assert (told["0", "hue", "intended"], told["0", "hue", "partial"]) == (1, pytest.approx(1 - 3 / 7))


@pytest.mark.parametrize(
    ("changed", "words"),
    [
        ({"grid": None}, ["rooms has no grid of known factors", "Choose one of", "tiles"]),
        ({"counts": {"train": 29, "test": 12}}, ["holds 29 images", "6 x 5 = 30"]),
        ({"grid": {"names": ["hue", "tone"], "sizes": list(SIZES)}}, ["knows the attributes hue, side", "hue, tone"]),
        ({"--out": "swaps.csv"}, ["swaps.csv", ".npz"]),
        ({"--classifier": None}, ["--classifier is missing"]),
        ({"--representation": None}, ["--representation is missing"]),
    ],
)
def test_what_cannot_be_swapped_is_said_and_nothing_is_written(
    results: Path, tmp_path: Path, changed: dict[str, Any], words: list[str]
) -> None:
    given = {name.lstrip("-"): value for name, value in changed.items() if name.startswith("--")}
    given = {"out": tmp_path / given.pop("out", "made.npz"), **given}
    data = tmp_path / "data"
    data.mkdir()
    meta = runtime.read_json(results / "data" / "sprites" / "meta.json")
    meta |= {name: value for name, value in changed.items() if not name.startswith("--")}
    runtime.write_json(data / "meta.json", {name: value for name, value in meta.items() if value is not None})
    np.save(data / "images_train.npy", np.load(results / "data" / "sprites" / "images_train.npy"))
    with pytest.raises(UserError) as caught:
        run(results, "diffsiam_hier", data=data, **given)
    assert all(word in str(caught.value) for word in words)
    assert [path.name for path in tmp_path.iterdir()] == ["data"]
