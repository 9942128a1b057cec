"""The encoder against torchvision's ResNet with one block per stage and the same weights."""

from __future__ import annotations

import copy

import pytest
import torch
from torch import nn
from torchvision.models.resnet import BasicBlock, ResNet

from diffsiam.models.encoder import Encoder


def images(side: int) -> torch.Tensor:
    return torch.rand(2, 3, side, side, generator=torch.Generator().manual_seed(0)) * 2 - 1


def torchvision_twin(encoder: Encoder, small: bool) -> ResNet:
    net = ResNet(BasicBlock, [1, 1, 1, 1])
    net.fc = nn.Identity()  # type: ignore[assignment]
    if small:
        net.conv1 = nn.Conv2d(3, 64, 3, 1, 1, bias=False)
        net.maxpool = nn.Identity()  # type: ignore[assignment]
    net.load_state_dict(encoder.state_dict())
    return net


@pytest.mark.parametrize(("side", "small"), [(32, True), (64, False)])
def test_equals_torchvisions_resnet_with_the_same_weights(side: int, small: bool) -> None:
    torch.manual_seed(0)
    encoder = Encoder(64, side)
    twin = torchvision_twin(encoder, small)
    x = images(side)
    assert torch.allclose(encoder(x), twin(x), atol=1e-5)  # training: batch statistics
    encoder.eval()
    twin.eval()  # running statistics, which the call above moved in both
    assert torch.allclose(encoder(x), twin(x), atol=1e-5)
    assert encoder(x).shape == (2, 512)


def test_gradients_equal_torchvisions() -> None:
    torch.manual_seed(0)
    encoder = Encoder(64, 16)
    twin = torchvision_twin(copy.deepcopy(encoder), small=True)
    for net in (encoder, twin):
        net(images(16)).square().mean().backward()
    theirs = dict(twin.named_parameters())
    for name, p in encoder.named_parameters():
        assert p.grad is not None
        assert torch.allclose(p.grad, theirs[name].grad, atol=1e-5 * p.grad.abs().max().item()), name


def test_initial_weights_have_the_spread_of_torchvisions() -> None:
    torch.manual_seed(0)
    encoder, other = Encoder(64, 64), ResNet(BasicBlock, [1, 1, 1, 1])
    theirs = dict(other.named_parameters())
    for name, p in encoder.named_parameters():
        if p.dim() == 4:
            assert p.std().item() == pytest.approx(theirs[name].std().item(), rel=0.05), name
        else:
            assert torch.equal(p, theirs[name]), name


@pytest.mark.parametrize("width", [4, 8])
def test_z_has_eight_numbers_per_unit_of_width_and_is_float32_under_bf16(width: int) -> None:
    encoder = Encoder(width, 32)
    with torch.autocast("cpu", torch.bfloat16):
        z = encoder(images(32))
    assert z.shape == (2, 8 * width)
    assert z.dtype == torch.float32


def test_z_of_an_image_does_not_depend_on_its_batch_in_evaluation() -> None:
    torch.manual_seed(0)
    encoder = Encoder(4, 16).eval()
    x = images(16)
    assert torch.allclose(encoder(x)[1:2], encoder(x[1:2]), atol=1e-6)


@pytest.mark.parametrize("width", [4, 8])
def test_a_narrow_block_is_torchvisions_too(width: int) -> None:
    torch.manual_seed(0)
    block = Encoder(width, 16).layer2[0].double().eval()
    shortcut = nn.Sequential(nn.Conv2d(width, 2 * width, 1, 2, bias=False), nn.BatchNorm2d(2 * width))
    other = BasicBlock(width, 2 * width, 2, shortcut).double().eval()
    other.load_state_dict(block.state_dict())
    x = torch.randn(2, width, 6, 6, dtype=torch.float64)
    assert torch.allclose(block(x), other(x), atol=1e-12)
