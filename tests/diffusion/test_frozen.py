"""The frozen diffusion model as an encoder is diffusers' own network, read at one block."""

from __future__ import annotations

import pytest
import torch
from diffusers.models.unets.unet_2d_blocks import AttnUpBlock2D
from torch import Tensor

from diffsiam.diffusion import frozen
from diffsiam.diffusion.schedule import Schedule
from diffsiam.models.unet import DiffusionModel
from tests.models.tiny_unets import LAYOUTS, SIDE, unet

LEVEL = 50


def images(count: int = 5) -> Tensor:
    drawn = torch.randint(0, 256, (count, 3, SIDE, SIDE), generator=torch.Generator().manual_seed(2))
    return drawn / 127.5 - 1


def by_hand(layout: str, x_t: Tensor) -> list[Tensor]:
    """Pixel means of every block's output on the way up, walked with diffusers' untouched modules."""
    net = unet(layout)
    time = net.time_embedding(net.time_proj(torch.full((len(x_t),), LEVEL - 1)))
    hidden = net.conv_in(x_t)
    skips = [hidden]
    for down in net.down_blocks:
        hidden, more = down(hidden, time)
        skips += more
    hidden, found = net.mid_block(hidden, time), []
    for up in net.up_blocks:
        attentions = up.attentions if isinstance(up, AttnUpBlock2D) else [None] * len(up.resnets)
        for block, attention in zip(up.resnets, attentions, strict=True):
            hidden = block(torch.cat([hidden, skips.pop()], dim=1), time)
            hidden = hidden if attention is None else attention(hidden)
            found.append(hidden.mean(dim=(2, 3)))
        for upsample in up.upsamplers or []:
            hidden = upsample(hidden) if layout == "ho" else upsample(hidden, time)
    return found


@pytest.mark.parametrize("layout", LAYOUTS)
@torch.no_grad()
def test_features_of_each_block_are_those_of_diffusers_network_walked_by_hand(layout: str) -> None:
    x, table = images(), Schedule()
    level = torch.full((len(x),), LEVEL)
    expected = by_hand(layout, table.q_sample(x, level, frozen.noise(x, 3)))
    dm = DiffusionModel(unet(layout))
    assert len(frozen.layers(dm.unet)) == len(expected)
    for block, z in enumerate(expected, start=1):
        model = frozen.FrozenEncoder(unet(layout), block, LEVEL, 3).eval()
        torch.testing.assert_close(model(x), z, atol=1e-5, rtol=1e-4)
        assert model(x).dtype == torch.float32
    found = frozen.features(dm, table, x, LEVEL, 3)
    assert [z.shape[1] for z in found] == [z.shape[1] for z in expected]


def test_an_image_has_the_same_noise_in_every_batch_and_another_with_every_seed() -> None:
    x = images(64)
    noise = frozen.noise(x, 0)
    order = torch.randperm(64, generator=torch.Generator().manual_seed(0))
    assert torch.equal(frozen.noise(x[order], 0), noise[order])
    assert torch.equal(frozen.noise(x[7:8].contiguous(memory_format=torch.channels_last), 0), noise[7:8])
    assert len({row.numpy().tobytes() for row in noise}) == 64
    assert abs(noise.mean()) < 0.02
    assert abs(noise.std() - 1) < 0.02
    assert not torch.isclose(frozen.noise(x, 1), noise).any(dim=(1, 2, 3)).all()


def test_a_pass_leaves_no_hook_behind() -> None:
    dm = DiffusionModel(unet("ho"))
    frozen.features(dm, Schedule(), images(), LEVEL, 0)
    assert not any(layer._forward_hooks for layer in frozen.layers(dm.unet))


def test_only_the_networks_weights_are_stored() -> None:
    state = frozen.FrozenEncoder(unet("ho"), 1, LEVEL, 0).state_dict()
    assert state.keys() == {f"dm.unet.{name}" for name in unet("ho").state_dict()}
