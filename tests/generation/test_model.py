"""The conditioned prediction against its formula, and what `load` takes and refuses."""

from __future__ import annotations

import dataclasses
import itertools
import math
from pathlib import Path

import pytest
import torch

from diffsiam import params, runtime
from diffsiam.diffusion import ddim
from diffsiam.errors import UserError
from diffsiam.generation import model as guided
from diffsiam.models.segments import even_edges, recorded_edges
from diffsiam.models.unet import WEIGHTS
from diffsiam.training.diffsiam import method_edges
from diffsiam.training.methods import METHODS
from tests.generation import tiny_guided
from tests.training import tiny


def abar(step: int) -> float:
    return math.prod(1 - (1e-4 + (0.02 - 1e-4) * i / 999) for i in range(step))


@pytest.mark.parametrize("step", [1, 2, 300, 1000])
@pytest.mark.parametrize("guidance", ["w_t", "score"])
def test_the_prediction_is_that_of_the_algorithms_or_of_the_score(step: int, guidance: str) -> None:
    model = tiny_guided.model(guidance=guidance)
    x, t = tiny_guided.images(3), torch.full((3,), step)
    z = torch.randn(3, tiny_guided.DIM, generator=torch.Generator().manual_seed(2))
    plain, g = model.dm.predict_noise(x, t), model.decoder(z, model.dm.trunk(x, t))
    noise = model.noise(z)(x, t)
    signal, sigma, before = math.sqrt(abar(step)), math.sqrt(1 - abar(step)), abar(step - 1)
    if guidance == "w_t":  # x0_hat = u_theta(x_t, t) + w_t g_phi
        x0 = (x - sigma * plain) / signal + (1 - before) / math.sqrt(before) * g
        assert torch.allclose((x - sigma * noise) / signal, x0, rtol=1e-3, atol=1e-3 / signal)
    else:
        assert torch.allclose(noise, plain - sigma * g, atol=1e-5)
    assert torch.equal(model.noise(None)(x, t), plain)
    assert float(g.abs().mean()) > 1e-3


def test_only_ditis_sampler_hides_the_segments_after_the_current_step() -> None:
    x, z = tiny_guided.images(2), torch.ones(2, tiny_guided.DIM)
    for step, seen in ((1, 4), (250, 4), (251, 8), (1000, 16)):  # 4 segments of 4, uniform over 1000 steps
        t = torch.full((2,), step)
        masked = z.clone()
        masked[:, seen:] = 0
        model = tiny_guided.model(mask_by_step=True)
        assert torch.equal(model.noise(z)(x, t), tiny_guided.model().noise(masked)(x, t))


def test_manipulation_works_with_the_whole_of_z_whatever_the_sampler_masks() -> None:
    masked, plain = tiny_guided.model(mask_by_step=True), tiny_guided.model()
    x0 = tiny_guided.images(2)
    for a, b in zip(masked.whole.latents(x0), plain.latents(x0), strict=True):
        assert torch.equal(a, b)
    assert not torch.allclose(masked.latents(x0)[1], plain.latents(x0)[1], atol=1e-3)
    assert plain.whole is plain


def test_batches_do_not_change_a_picture() -> None:
    x0 = tiny_guided.images(5)
    one, many = tiny_guided.model(batch_size=1), tiny_guided.model(batch_size=64)
    for a, b in zip(one.latents(x0), many.latents(x0), strict=True):
        assert torch.allclose(a, b, rtol=1e-3, atol=1e-3)


def test_inversion_is_conditioned_or_frozen_as_the_parameter_says() -> None:
    x0 = tiny_guided.images(2)
    model = tiny_guided.model()
    z, x_T = model.latents(x0)
    assert torch.equal(x_T, model.invert(x0, z))
    frozen = tiny_guided.model(inversion="frozen")
    assert torch.equal(frozen.latents(x0)[1], frozen.invert(x0, None))
    assert not torch.allclose(x_T, frozen.invert(x0, None), atol=1e-3)


@pytest.mark.parametrize("solver", ["ddim", "dpmpp"])
@pytest.mark.parametrize("clip", [True, False])
def test_pictures_are_integrated_with_the_params_steps_clipping_and_solver(clip: bool, solver: str) -> None:
    model = tiny_guided.model(steps=3, clip=clip, solver=solver)
    x, z = 2 * tiny_guided.images(2), torch.ones(2, tiny_guided.DIM)
    results = []
    for up, got in ((False, model.sample(x, z)), (True, model.invert(x, z))):
        path = [0, 333, 667, 1000] if up else [1000, 667, 333, 0]
        for other in itertools.product([True, False], ["ddim", "dpmpp"]):
            by_hand = ddim.integrate(model.noise(z), x, path, model.table, clip=other[0], solver=other[1])
            results.append(torch.allclose(got, by_hand, rtol=1e-3, atol=1e-3) == (other == (clip, solver)))
    assert all(results)


def test_an_inversion_takes_its_own_number_of_steps_where_there_is_one() -> None:
    model, x0 = tiny_guided.model(steps=3, inversion_steps=6), tiny_guided.images(2)
    z, x_T = model.latents(x0)
    by_hand = ddim.integrate(model.noise(z), x0, [0, 167, 333, 500, 667, 833, 1000], model.table)
    assert torch.allclose(x_T, by_hand, rtol=1e-3, atol=1e-3)
    down = ddim.integrate(model.noise(z), x_T, [1000, 667, 333, 0], model.table)
    assert torch.allclose(model.sample(x_T, z), down, rtol=1e-3, atol=1e-3)


@pytest.mark.parametrize("solver", ["ddim", "dpmpp"])
def test_the_round_trip_error_falls_as_steps_grow(solver: str) -> None:
    x0, errors = tiny_guided.images(2), []
    for steps in (10, 40, 160):
        model = tiny_guided.model(steps=steps, solver=solver)
        z, x_T = model.latents(x0)
        errors.append(float((model.sample(x_T, z) - x0).square().mean()))
    assert errors[0] > errors[1] > errors[2]


def test_a_trained_folder_is_read_with_its_averaged_weights(tmp_path: Path) -> None:
    results = tiny_guided.results(tmp_path)
    folder = results / "representation" / "sprites" / "diffsiam_hier" / "seed0"
    got = guided.load(folder, results / "diffusion" / "sprites", tiny_guided.settings(), "cpu")
    expected, x0 = tiny_guided.model(), tiny_guided.images(2)
    for a, b in zip(got.latents(x0), expected.latents(x0), strict=True):
        assert torch.allclose(a, b, atol=1e-4)
    assert (got.segments, got.mask_by_step) == (4, False)
    assert guided.trained(results) == [{"pretrain": "sprites", "method": "diffsiam_hier", "seed": "seed0"}]
    tiny_guided.results(tmp_path, "diti")
    folder = results / "representation" / "sprites" / "diti" / "seed0"
    assert guided.load(folder, results / "diffusion" / "sprites", tiny_guided.settings(), "cpu").mask_by_step


def test_z_is_cut_as_the_params_say_where_the_method_was_trained_without_segments(tmp_path: Path) -> None:
    for method, n in (("pdae", 2), ("diffsiam_hier", 4)):
        results = tiny_guided.results(tmp_path / method, method)
        folders = results / "representation" / "sprites" / method / "seed0", results / "diffusion" / "sprites"
        got = guided.load(*folders, tiny_guided.settings(), "cpu", segments=2)
        assert torch.equal(got.edges, even_edges(tiny_guided.DIM, n))


def test_a_record_without_the_settings_of_another_method_is_read() -> None:
    config = {"method": "diffsiam_hier", "dim": 16, "segments": 4, "params": {"representation": {}}}
    assert torch.equal(recorded_edges(config), even_edges(16, 4))


@pytest.mark.parametrize("staged", [False, True])
@pytest.mark.parametrize("method", ["diti", "diffsiam_hier", "pdae"])
def test_the_segments_are_those_of_the_training(method: str, staged: bool) -> None:
    stages = {"stages": [300, 1000], "dims_per_stage": [3, 13]} if staged else {"stages": None, "dims_per_stage": None}
    cfg = tiny.section(params.Representation, encoder_width=2, segments=4, diti=stages)
    config = {"method": method, "dim": 16, "segments": 4, "params": {"representation": dataclasses.asdict(cfg)}}
    assert torch.equal(recorded_edges(config), method_edges(METHODS[method], cfg))


def test_another_diffusion_model_and_a_method_without_a_decoder_are_refused(tmp_path: Path) -> None:
    results = tiny_guided.results(tmp_path)
    dm, folder = results / "diffusion" / "sprites", results / "representation" / "sprites" / "diffsiam_hier" / "seed0"
    weights = runtime.load_weights(dm / WEIGHTS)
    runtime.save_weights(dm / WEIGHTS, {k: v + 1 for k, v in weights.items()})
    with pytest.raises(UserError, match="was trained on a diffusion model with checksum"):
        guided.load(folder, dm, tiny_guided.settings(), "cpu")
    config = runtime.read_json(folder / "config.json")
    runtime.write_json(folder / "config.json", {**config, "method": "simsiam"})
    with pytest.raises(UserError, match=r"simsiam has no decoder.*pdae, pdae_simsiam, diti, seq_alone, diffsiam_seq"):
        guided.load(folder, dm, tiny_guided.settings(), "cpu")
