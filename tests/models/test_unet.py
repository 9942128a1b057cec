"""The wrapper around the U-Net against diffusers' own forward pass."""

from __future__ import annotations

import json
import math
from pathlib import Path

import pytest
import torch
from diffusers import UNet2DModel
from tiny_unets import SIDE, STEPS, noisy_images, unet
from torch import nn
from torch.utils._pytree import tree_leaves

from diffsiam import params
from diffsiam.errors import UserError
from diffsiam.models.unet import CONFIG, WEIGHTS, DiffusionModel, timesteps_like

LAYOUTS = ["ho", "guided"]
SMALL = params.Unet(channels=(8, 16), layers_per_block=1, attention_resolutions=(8,), norm_groups=4, dropout=0.1)


@pytest.mark.parametrize("layout", LAYOUTS)
@torch.no_grad()
def test_predict_noise_is_diffusers_own_forward_at_the_index_before_the_step(layout: str) -> None:
    net, x = unet(layout), noisy_images()
    model = DiffusionModel(net)
    own = net(x, STEPS - 1).sample
    assert own.abs().max() > 0.1
    assert torch.allclose(model.predict_noise(x, STEPS), own, atol=1e-5)
    assert torch.allclose(model.predict_noise(x, STEPS, model.trunk(x, STEPS)), own, atol=1e-5)
    assert not torch.allclose(net(x, STEPS).sample, own, atol=1e-5)  # the index matters


@pytest.mark.parametrize("change", [{"attention_head_dim": 4}, {"mid_block_scale_factor": 2.0}], ids=str)
@torch.no_grad()
def test_several_heads_and_a_scale_of_the_middle_block_are_diffusers_own(change: dict[str, float]) -> None:
    net = unet("ho", **change)
    own = net(noisy_images(), STEPS - 1).sample
    assert torch.allclose(DiffusionModel(net).predict_noise(noisy_images(), STEPS), own, atol=1e-5)


@torch.no_grad()
def test_predict_x0_takes_the_noise_out_at_the_level_that_is_named() -> None:
    net, x = unet("ho"), noisy_images()
    level = torch.tensor([0.9, 0.5, 0.1])[:, None, None, None]
    x0 = DiffusionModel(net).predict_x0(x, STEPS, level.sqrt(), (1 - level).sqrt())
    noise = net(x, STEPS - 1).sample
    for i, abar in enumerate([0.9, 0.5, 0.1]):
        literal = (x[i] - math.sqrt(1 - abar) * noise[i]) / math.sqrt(abar)
        assert torch.allclose(x0[i], literal, atol=1e-5)


@torch.no_grad()
def test_noise_is_float32_under_bf16() -> None:
    net = unet("ho")
    with torch.autocast("cpu", torch.bfloat16):
        got = DiffusionModel(net).predict_noise(noisy_images(), STEPS)
    assert got.dtype == torch.float32
    assert torch.allclose(got, net(noisy_images(), STEPS - 1).sample, atol=0.1)


@pytest.mark.parametrize("layout", LAYOUTS)
@torch.no_grad()
def test_weights_held_in_bf16_give_the_bits_that_autocast_alone_gives(layout: str) -> None:
    alone, held = DiffusionModel(unet(layout)), DiffusionModel(unet(layout)).hold(torch.bfloat16)
    with torch.autocast("cpu", torch.bfloat16):
        expected, got = (tree_leaves(model(noisy_images(), STEPS)) for model in (alone, held))
    for a, b in zip(expected, got, strict=True):
        assert torch.equal(a, b)
    kinds = {type(m): p.dtype for m in held.modules() for p in m.parameters(recurse=False)}
    assert kinds == {nn.Conv2d: torch.bfloat16, nn.Linear: torch.bfloat16, nn.GroupNorm: torch.float32}
    assert not torch.equal(got[-1], alone(noisy_images(), STEPS)[1])  # autocast did something


def test_created_network_has_hos_layout_and_the_asked_widths() -> None:
    net = DiffusionModel.create(SMALL, SIDE).unet
    assert net.config.block_out_channels == (8, 16)
    assert net.config.down_block_types == ("DownBlock2D", "AttnDownBlock2D")  # 16x16, then attention at 8x8
    assert net.config.up_block_types == ("AttnUpBlock2D", "UpBlock2D")
    assert net.config.resnet_time_scale_shift == "default"  # the time embedding is added
    assert net.config.out_channels == 3
    assert net.config.sample_size == SIDE
    assert {m.p for m in net.modules() if isinstance(m, torch.nn.Dropout)} >= {0.1}
    heads = [m.heads for m in net.modules() if hasattr(m, "heads")]
    assert heads
    assert set(heads) == {1}


@pytest.mark.parametrize(
    ("changes", "side"),
    [
        ({"channels": (8, 18)}, 16),  # 18 is not a multiple of 4
        ({"channels": (8, 8, 8, 8, 8)}, 16),  # the last level would be 1x1
        ({"channels": (8, 8, 8)}, 18),  # 18 does not halve twice
    ],
)
def test_widths_that_do_not_fit_are_refused(changes: dict[str, tuple[int, ...]], side: int) -> None:
    cfg = params.Unet(**{**SMALL.__dict__, **changes})
    with pytest.raises(UserError) as error:
        DiffusionModel.create(cfg, side)
    assert str(list(changes["channels"])) in str(error.value)
    assert f"{side}x{side}" in str(error.value)


@pytest.mark.parametrize("layout", LAYOUTS)
def test_saved_model_is_read_back_frozen_and_by_diffusers(layout: str, tmp_path: Path) -> None:
    model = DiffusionModel(unet(layout, dropout=0.5))
    model.save(tmp_path / "dm", model.state_dict())
    ours, theirs = DiffusionModel.load(tmp_path / "dm"), UNet2DModel.from_pretrained(tmp_path / "dm").eval()
    assert not ours.training
    assert not any(p.requires_grad for p in ours.parameters())
    with torch.no_grad():
        expected = model.predict_noise(noisy_images(), STEPS)
        assert torch.equal(ours.predict_noise(noisy_images(), STEPS), expected)
        assert torch.allclose(theirs(noisy_images(), STEPS - 1).sample, expected, atol=1e-5)


@pytest.fixture
def saved(tmp_path: Path) -> Path:
    model = DiffusionModel(unet("ho"))
    model.save(tmp_path, model.state_dict())
    return tmp_path


def test_a_missing_or_damaged_model_is_named(saved: Path) -> None:
    whole = (saved / WEIGHTS).read_bytes()
    (saved / WEIGHTS).write_bytes(whole[:1000])
    with pytest.raises(UserError, match=WEIGHTS):
        DiffusionModel.load(saved)
    (saved / WEIGHTS).unlink()
    with pytest.raises(UserError, match=WEIGHTS):
        DiffusionModel.load(saved)
    with pytest.raises(UserError, match="elsewhere"):
        DiffusionModel.load(saved / "elsewhere")


@pytest.mark.parametrize(
    ("key", "value"),
    [("block_out_channels", [8, 8]), ("num_class_embeds", 10), ("time_embedding_type", "fourier")],
)
def test_a_config_that_does_not_fit_or_is_not_supported_is_refused(saved: Path, key: str, value: object) -> None:
    config = json.loads((saved / CONFIG).read_text())
    (saved / CONFIG).write_text(json.dumps(config | {key: value}))
    with pytest.raises(UserError, match=CONFIG):
        DiffusionModel.load(saved)


def test_timesteps_like_is_one_step_per_image() -> None:
    got = timesteps_like(7, noisy_images())
    assert got.tolist() == [7, 7, 7]
    assert got.dtype == torch.int64
