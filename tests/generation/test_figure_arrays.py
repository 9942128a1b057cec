"""The files behind the figures: their shapes, their ends, and which images they show."""

from __future__ import annotations

import math
from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd
import pytest
import torch
from sklearn.decomposition import PCA

from diffsiam import params, runtime
from diffsiam.errors import UserError
from diffsiam.evaluation import detectors, probmask, quality
from diffsiam.generation import figures, measure
from diffsiam.generation import model as guided
from diffsiam.models.unet import DiffusionModel
from tests.generation import tiny_guided

SIDE, DIM, NAMES = tiny_guided.SIDE, tiny_guided.DIM, tiny_guided.ATTRIBUTES
Latents = tuple[torch.Tensor, torch.Tensor]
RUNTIME = params.Runtime("cpu", "fp32", 1, False, False, False, 5.0, False)


@pytest.fixture(scope="module")
def results(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tiny_guided.results(tmp_path_factory.mktemp("place"))
    tiny_guided.results(folder.parent, "diti")
    rng = np.random.default_rng(0)
    labels = rng.integers(0, 2, (12, 2)).astype(np.uint8)
    np.save(folder / "data" / "sprites" / "attributes_test.npy", labels)
    for name, dims in (("Red left", 3), ("Blue top", DIM)):
        weight, mean, std = rng.random((3, DIM)).astype(np.float32)
        weight[dims:] = 0
        c = probmask.Classifier(name, weight, 0.0, mean, std, masked=dims < DIM)
        probmask.write(folder / "probmask" / f"{name.replace(' ', '_')}.safetensors", c, {})
    return folder


def run(results: Path, what: str, out: str, method: str = "diffsiam_hier", **changes: Any) -> Path:
    cfg, data = tiny_guided.settings(**changes), results / "data" / "sprites"
    options = {
        "representation": results / "representation" / "sprites" / method / "seed0",
        "probmask": tuple(sorted((results / "probmask").glob("*.safetensors"))[::-1]),
        "classifier": results / "generation" / "classifier.safetensors",
    }
    path = results / "generation" / out
    figures.run(what, cfg, RUNTIME, data, results / "diffusion" / "sprites", path, root=results, **options)
    return path


def stored(results: Path) -> np.ndarray:
    return np.load(results / "data" / "sprites" / "images_test.npy")


def test_denoise_is_the_frozen_models_reconstruction(results: Path) -> None:
    arrays = np.load(run(results, "denoise", "denoise.npz"))
    assert arrays["images"].shape == arrays["noisy"].shape == (4, 2, SIDE, SIDE, 3)
    assert arrays["timesteps"].tolist() == [10, 500]
    dm = DiffusionModel.load(results / "diffusion" / "sprites")
    x = torch.from_numpy(arrays["noisy"][:, 0]).permute(0, 3, 1, 2).float() / 127.5 - 1
    abar = math.prod(1 - (1e-4 + (0.02 - 1e-4) * i / 999) for i in range(10))
    x0 = (x - math.sqrt(1 - abar) * dm.predict_noise(x, torch.full((4,), 10))) / math.sqrt(abar)
    expected = ((x0 + 1) * 127.5).clamp(0, 255).permute(0, 2, 3, 1).numpy()
    inside = (arrays["noisy"][:, 0] > 0) & (arrays["noisy"][:, 0] < 255)  # where storing clipped nothing

    def error(stored: np.ndarray) -> float:
        return float(np.abs(expected - stored)[inside].mean())

    assert error(arrays["images"][:, 0]) < 0.5 * error(arrays["noisy"][:, 0])


def test_counterfactuals_show_the_pairs_of_the_params_both_ways(results: Path) -> None:
    pairs = {"seed": 0, "count": 1, "indices": [[3, 5], [7, 1]]}
    arrays = np.load(run(results, "counterfactual", "c.npz", pairs=pairs, scales=[0.0, 1.0]))
    assert arrays["images"].shape == arrays["reverse"].shape == (2, 6, 2, SIDE, SIDE, 3)
    assert arrays["images"].dtype == np.uint8
    assert arrays["ranges"].tolist() == 2 * [[0, 0], [0, 2], [0, 4]]
    assert arrays["exchanged"].tolist() == [True] * 3 + [False] * 3
    assert (arrays["sources"] == stored(results)[[3, 7]]).all()
    assert (arrays["targets"] == stored(results)[[5, 1]]).all()
    there, back = arrays["images"].astype(int), arrays["reverse"].astype(int)
    # All of z at scale 1 is the other image's reconstruction, which the way back has at scale 0; the first row of
    # either kind leaves z alone: without x_T it is the reconstruction at every scale.
    assert np.abs(there[:, 2, 1] - back[:, 2, 0]).max() <= 1
    assert np.abs(there[:, 1, 0] - there[:, 2, 0]).max() <= 1
    for scale in (0, 1):
        assert np.abs(there[:, 3, scale] - there[:, 0, 0]).max() <= 1
    assert np.abs(there[:, 0, 1] - there[:, 0, 0]).max() > 5
    assert np.abs(there[:, 5, 1] - there[:, 2, 1]).max() > 5


@pytest.mark.parametrize("kind", [True, False])
def test_rows_of_one_kind_are_the_same_bits_without_the_other(results: Path, kind: bool) -> None:
    both = np.load(run(results, "counterfactual", "both.npz"))
    one = np.load(run(results, "counterfactual", "one.npz", exchange_noise=kind))
    assert one["exchanged"].tolist() == [kind] * 3
    for way in ("images", "reverse"):
        assert (one[way] == both[way][:, both["exchanged"] == kind]).all()


def test_manipulations_stand_in_the_order_of_their_classifiers(results: Path) -> None:
    arrays = np.load(run(results, "manipulation", "m.npz"))
    assert arrays["images"].shape == (2, 4, 3, SIDE, SIDE, 3)
    assert arrays["attributes"].tolist() == ["Red left", "Blue top"]
    assert arrays["dims"].tolist() == [3, DIM]
    assert arrays["masked"].tolist() == [True, False]
    assert (arrays["originals"] == stored(results)[arrays["indices"]]).all()
    middle = arrays["images"][:, :, 1].astype(int)  # scale 0: the reconstruction, whatever the attribute
    assert np.abs(middle[0] - middle[1]).max() <= 1
    assert np.abs(arrays["images"][0, :, 2].astype(int) - middle[0]).max() > 5


def test_numbers_hold_every_measure_once(results: Path) -> None:
    run(results, "classifier", "classifier.safetensors")
    table = pd.read_csv(run(results, "numbers", "numbers.csv", measured=8), keep_default_na=False)
    assert list(table.columns) == list(figures.COLUMNS)
    assert set(table["method"]) == {"diffsiam_hier"}
    moved = table["metric"].isin(["moved_own", "moved_others"]) & (table["measure"] != "manipulation")
    assert set(table[(table["measure"] != "tad") & ~moved]["images"]) == {8}
    assert set(table[moved]["images"]) <= set(range(1, 8))  # pairs that differ in the attribute
    told = moved | (table["metric"] == "coarseness") | table["metric"].str.startswith("moved")
    assert (told == (table["ci95"] != "")).all()
    assert set(table[table["measure"] == "tad"]["images"]) == {12}  # all that there are
    trips = table[table["measure"] == "round_trip"]
    assert len(trips) == 6
    assert set(trips["subject"]) == {"frozen_model", "conditioned", "frozen_inversion"}
    moves = table[table["measure"] == "manipulation"]
    assert set(zip(moves["subject"], moves["attribute"], strict=True)) == {
        (f"{d} {s}2", name) for d, name in ((3, "Red left"), (DIM, "Blue top")) for s in "+-"
    }
    for what, more in (("counterfactual", {"x_T alone"}), ("segments", set())):
        assert set(table[table["measure"] == what]["subject"]) == {"0-2", "0-4"} | more
    assert not table.duplicated(["measure", "subject", "attribute", "metric"]).any()


def coarseness(change: np.ndarray) -> float:
    """Of a change (3, SIDE, SIDE), by octaves of the frequencies of a real transform, each counted twice but for the
    two columns that are their own mirror."""
    power = (np.abs(np.fft.rfft2(change)) ** 2).sum(axis=0)
    power[:, 1:-1] *= 2
    v, u = np.meshgrid(np.fft.rfftfreq(SIDE), np.fft.fftfreq(SIDE))
    cycles = SIDE * np.sqrt(u**2 + v**2)
    return 1 - float((power * np.log2(np.maximum(cycles, 1))).sum() / power.sum() / np.log2(SIDE / np.sqrt(2)))


class Judge:
    """In place of the classifier on pixels: how red the left half is, how blue the upper half."""

    def to(self, device: torch.device) -> Judge:
        return self

    def probabilities(self, images: torch.Tensor, device: torch.device) -> torch.Tensor:
        x = images.float() / 255
        return torch.stack([x[:, :, : SIDE // 2, 0].mean((1, 2)), x[:, : SIDE // 2, :, 2].mean((1, 2))], dim=1)


@pytest.mark.parametrize("method", ["diffsiam_hier", "diti"])
def test_numbers_are_those_of_a_plain_loop(results: Path, monkeypatch: pytest.MonkeyPatch, method: str) -> None:
    """DiTi's sampler masks z step by step in counterfactuals and round trips, and not in manipulations."""
    monkeypatch.setattr(measure, "load", lambda *_: Judge())
    table = pd.read_csv(run(results, "numbers", f"{method}.csv", method, measured=8), keep_default_na=False)
    found = table.set_index(["measure", "subject", "attribute", "metric"])["value"].to_dict()
    expected: dict[tuple[str, str, str, str], float] = {}

    cfg, data = tiny_guided.settings(), results / "data" / "sprites"
    folder = results / "representation" / "sprites" / method / "seed0"
    model = guided.load(folder, results / "diffusion" / "sprites", cfg, "cpu")
    whole = guided.Guided(model.dm, model.encoder, model.decoder, model.edges, cfg)
    chosen = runtime.rng(cfg.pairs.seed, "measured").permutation(12)[:8]
    x0 = torch.from_numpy(stored(results)[chosen]).permute(0, 3, 1, 2) / 127.5 - 1
    z = model.encode(x0)
    x_T, free = model.invert(x0, z), model.invert(x0, None)

    returned = {"frozen_model": (free, None), "conditioned": (x_T, z), "frozen_inversion": (free, z)}
    for name, latents in returned.items():
        mse = [float((a - b.clamp(-1, 1)).square().mean()) for a, b in zip(x0, model.sample(*latents), strict=True)]
        expected["round_trip", name, "", "mse"] = sum(mse) / 8
        expected["round_trip", name, "", "psnr"] = sum(10 * math.log10(4 / e) for e in mse) / 8

    noise = torch.stack(
        [torch.randn(x0[0].shape, generator=runtime.generator(cfg.pairs.seed, "random_x_T", i)) for i in chosen]
    )
    for name, start in {"inferred_x_T": x_T, "random_x_T": noise}.items():
        one, other = ((x.double() + 1) / 2 for x in (x0, model.sample(start, z)))
        expected["autoencoding", name, "", "mse"] = float((one - other).square().mean())
        expected["autoencoding", name, "", "ssim"] = quality.ssim(one, other)

    codes = model.encode(torch.from_numpy(stored(results)).permute(0, 3, 1, 2) / 127.5 - 1)
    pieces = [PCA(1).fit_transform(part.double()).round(9) for part in codes.split(DIM // 4, dim=1)]
    for name, units in {"segments": np.hstack(pieces), "dimensions": codes.numpy()}.items():
        told = detectors.folds(units, np.load(data / "attributes_test.npy"))
        expected |= {("tad", name, "", metric): value for metric, value in told.items()}

    def seen(x_T: torch.Tensor, z: torch.Tensor, model: guided.Guided = model) -> np.ndarray:
        return Judge().probabilities(torch.from_numpy(figures.to_stored(model.sample(x_T, z))), x_T.device).numpy()

    def add(key: tuple[str, str], edited: Latents, base: Latents, model: guided.Guided, which: list[list[int]]) -> None:
        """Coarseness, and of each attribute its moves and the other's over the images of ``which``."""
        change = seen(*edited, model) - seen(*base, model)
        images = [model.sample(*latents).clamp(-1, 1).double().numpy() for latents in (edited, base)]
        expected[*key, "", "coarseness"] = np.mean([coarseness(d) for d in images[0] - images[1]])
        for a, name in enumerate(NAMES):
            for metric, b in (("moved_own", a), ("moved_others", 1 - a)):
                if which[a]:
                    expected[*key, name, metric] = np.mean([abs(change[i, b]) for i in which[a]])

    for a, (name, dims) in enumerate((("Red left", 3), ("Blue top", DIM))):
        c = probmask.read(results / "probmask" / f"{name.replace(' ', '_')}.safetensors")
        for scale in (-2, 2):
            step = torch.from_numpy(scale * c.std * c.weight / np.linalg.norm(c.weight))
            start = whole.invert(x0, z)
            change = seen(start, z + step, whole) - seen(start, z, whole)
            key = "manipulation", f"{dims} {scale:+d}", name
            expected[*key, "intended"] = change[:, a].mean() * scale / 2
            expected[*key, "others"] = np.abs(change[:, 1 - a]).mean()
            which: list[list[int]] = [[], []]
            which[a] = list(range(8))
            add(key[:2], (start, z + step), (start, z), whole, which)
            expected[*key, "coarseness"] = expected.pop((*key[:2], "", "coarseness"))

    labels = np.load(data / "attributes_test.npy")[chosen].astype(int)
    other = [2, 3, 4, 5, 6, 7, 0, 1]  # the next of the even ones, the next of the odd ones
    differ = [[i for i in range(8) if labels[other[i], a] != labels[i, a]] for a in (0, 1)]
    edited = {("counterfactual", "x_T alone"): ((x_T[other], z), (x_T, z))}
    for what, start in (("counterfactual", x_T[other]), ("segments", x_T)):
        for stop in (2, 4):
            exchanged = torch.cat([z[other][:, : stop * DIM // 4], z[:, stop * DIM // 4 :]], dim=1)
            edited[what, f"0-{stop}"] = (start, exchanged), (start, z)
    for key, (after, before) in edited.items():
        change, wanted = seen(*after) - seen(*before), labels[other] - labels
        moves = [
            [np.mean([change[i, a] * wanted[i, a] for i in half if wanted[i, a]]) for a in (0, 1)]
            for half in ((0, 2, 4, 6), (1, 3, 5, 7))
        ]
        a = int(np.argmax(moves[0]))
        expected[*key, NAMES[a], "intended"] = moves[1][a]
        expected[*key, NAMES[a], "others"] = np.abs(change[1::2, 1 - a]).mean()
        add(key, after, before, model, differ)
    assert found == pytest.approx(expected, rel=1e-3, abs=1e-4)


def test_pairs_are_drawn_once_for_all_or_named() -> None:
    drawn = figures.draw_pairs(params.Pairs(0, 3, None), 10, Path("d"))
    assert drawn.shape == (3, 2)
    assert len(set(drawn.reshape(-1).tolist())) == 6
    assert (figures.draw_pairs(params.Pairs(0, 2, None), 10, Path("d")) == drawn[:2]).all()
    assert (figures.draw_pairs(params.Pairs(1, 3, None), 10, Path("d")) != drawn).any()
    with pytest.raises(UserError, match="10, but d has 10 test images"):
        figures.draw_pairs(params.Pairs(0, 1, ((0, 10),)), 10, Path("d"))
    with pytest.raises(UserError, match="6 pairs need 12 images; d has 10"):
        figures.draw_pairs(params.Pairs(0, 6, None), 10, Path("d"))


def test_a_range_beyond_the_model_and_a_missing_input_are_named(results: Path) -> None:
    with pytest.raises(UserError, match=r"'2-9': no range of this model's 4 segments"):
        run(results, "counterfactual", "x.npz", ranges=[{"dataset": "sprites", "ranges": [[2, 9]]}])
    data = results / "data" / "sprites"
    with pytest.raises(UserError, match="--representation is missing"):
        figures.run("counterfactual", tiny_guided.settings(), RUNTIME, data, None, results / "x.npz", root=results)
    assert not (results / "generation" / "x.npz").exists()
    assert runtime.read_json(data / "meta.json")["attributes"] == tiny_guided.ATTRIBUTES


def test_ditis_manipulations_start_from_an_inversion_with_all_of_z(results: Path) -> None:
    arrays = np.load(run(results, "manipulation", "diti.npz", "diti"))
    folder = results / "representation" / "sprites" / "diti" / "seed0"
    masked = guided.load(folder, results / "diffusion" / "sprites", tiny_guided.settings(), "cpu")
    plain = guided.Guided(masked.dm, masked.encoder, masked.decoder, masked.edges, masked.cfg)
    x0 = torch.from_numpy(stored(results)[arrays["indices"]]).permute(0, 3, 1, 2) / 127.5 - 1
    shown = arrays["images"][0, :, 1].astype(int)  # scale 0
    whole, hidden = (figures.to_stored(m.sample(*m.latents(x0)[::-1])) for m in (plain, masked))
    assert np.abs(shown - whole).max() <= 1
    assert np.abs(shown - hidden).max() > 5
