"""The encoder against torchvision's ResNet with one block per stage and the same weights."""

from __future__ import annotations

import copy

import pytest
import torch
from torch import Tensor, nn
from torchvision.models.resnet import BasicBlock, ResNet

from diffsiam.errors import UserError
from diffsiam.models.encoder import Encoder, build, recorded


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


@pytest.mark.parametrize(
    ("side", "stem", "small"),
    [(32, "auto", True), (64, "auto", False), (64, "3x3", True), (32, "7x7", False)],
)
def test_equals_torchvisions_resnet_with_the_same_weights(side: int, stem: str, small: bool) -> None:
    torch.manual_seed(0)
    encoder = Encoder(64, side, stem)
    twin = torchvision_twin(encoder, small)
    x = images(side)
    assert torch.allclose(encoder(x), twin(x), atol=1e-5)  # training: batch statistics
    encoder.eval()
    twin.eval()  # running statistics, which the call above moved in both
    assert torch.allclose(encoder(x), twin(x), atol=1e-5)
    assert encoder(x).shape == (2, 512)


@pytest.mark.parametrize("zero_init_residual", [False, True])
def test_gradients_equal_torchvisions(zero_init_residual: bool) -> None:
    torch.manual_seed(0)
    encoder = Encoder(64, 16, zero_init_residual=zero_init_residual)
    twin = torchvision_twin(copy.deepcopy(encoder), small=True)
    for net in (encoder, twin):
        net(images(16)).square().mean().backward()
    theirs = dict(twin.named_parameters())
    for name, p in encoder.named_parameters():
        assert p.grad is not None
        assert torch.allclose(p.grad, theirs[name].grad, atol=1e-5 * p.grad.abs().max().item()), name


@pytest.mark.parametrize("zero", [False, True])
def test_initial_weights_have_the_spread_of_torchvisions(zero: bool) -> None:
    torch.manual_seed(0)
    encoder = Encoder(64, 64, zero_init_residual=zero)
    other = ResNet(BasicBlock, [1, 1, 1, 1], zero_init_residual=zero)
    theirs = dict(other.named_parameters())
    for name, p in encoder.named_parameters():
        if p.dim() == 4:
            assert p.std().item() == pytest.approx(theirs[name].std().item(), rel=0.05), name
        else:
            assert torch.equal(p, theirs[name]), name


def test_without_the_last_relu_z_is_the_pooled_sum_that_it_would_have_cut_off() -> None:
    torch.manual_seed(0)
    encoder = Encoder(8, 16, last_relu=False).eval()
    sums: list[Tensor] = []
    block = encoder.layer4[0]
    block.bn2.register_forward_hook(lambda module, inputs, output: sums.append(output))
    block.downsample[1].register_forward_hook(lambda module, inputs, output: sums.append(output))
    z = encoder(images(16))
    whole = sum(sums[1:], sums[0])
    assert torch.allclose(z, whole.mean(dim=(2, 3)), atol=1e-6)
    assert z.min() < 0
    rectified = recorded({"encoder_width": 8, "image_size": 16})
    rectified.load_state_dict(encoder.state_dict())
    assert torch.allclose(rectified.eval()(images(16)), whole.relu().mean(dim=(2, 3)), atol=1e-6)
    config = {"encoder_width": 8, "image_size": 16, "last_relu": False}
    signed = recorded(config)
    signed.load_state_dict(encoder.state_dict())
    assert torch.equal(signed.eval()(images(16)), z)


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


@pytest.fixture
def in_float64(monkeypatch: pytest.MonkeyPatch) -> None:
    """Networks leave autocast by `Tensor.float`."""
    monkeypatch.setattr(Tensor, "float", Tensor.double)


@pytest.mark.usefixtures("in_float64")
@pytest.mark.parametrize("kind", ["resnet10", "conv"])
def test_views_in_one_pass_have_statistics_and_gradients_of_separate_passes(kind: str) -> None:
    torch.manual_seed(0)
    apart = build(kind, 4, 16, 32).double()
    together = copy.deepcopy(apart)
    views = [scale * torch.randn(4, 3, 16, 16, dtype=torch.float64) for scale in (1, 2, 3)]
    expected, z = torch.cat([apart(view) for view in views]), together(torch.cat(views), 3)
    assert torch.allclose(z, expected, atol=1e-12)
    dz = torch.randn_like(z)
    expected.backward(dz)
    z.backward(dz)
    for mine, theirs in zip(together.parameters(), apart.parameters(), strict=True):
        assert mine.grad is not None
        assert torch.allclose(mine.grad, theirs.grad, atol=1e-12)
    for (name, mine), theirs in zip(together.named_buffers(), apart.buffers(), strict=True):
        assert torch.allclose(mine, theirs, atol=1e-12), name
        assert name.split(".")[-1] != "num_batches_tracked" or mine == 3
    assert not torch.allclose(together(torch.cat(views)), z, atol=1e-2)  # one batch of all is another thing
    alone = together.eval()(torch.cat(views))
    assert torch.equal(together(torch.cat(views), 3), alone)


# ---------------------------------------------------------------------------------------------- DisDiff's encoder
def block(width: int) -> nn.Module:
    return nn.Sequential(
        nn.ReLU(), nn.Conv2d(width, width, 3, 1, 1), nn.BatchNorm2d(width), nn.ReLU(), nn.Conv2d(width, width, 1)
    )


class Literal(nn.Module):
    """The layers for 64x64 as the authors list them, those of the convolutions in ``kept`` only."""

    def __init__(self, width: int, dim: int, kept: tuple[int, ...]) -> None:
        super().__init__()
        layers: list[nn.Module] = []
        for number in kept:
            layers += [nn.Conv2d(3 if not layers else width, width, 4, 2, 1), nn.BatchNorm2d(width)]
            layers += [] if number == 3 else [nn.ReLU()]
        self.down, self.first, self.second = nn.Sequential(*layers), block(width), block(width)
        self.between, self.linear = nn.BatchNorm2d(width), nn.Linear(16 * width, dim)

    def forward(self, x: Tensor) -> Tensor:
        x = self.down(x)
        x = (self.between(x + self.first(x))).relu()
        return self.linear((x + self.second(x)).flatten(1))


@pytest.mark.parametrize(("side", "kept"), [(8, (1,)), (16, (1, 4)), (32, (1, 2, 4)), (64, (1, 2, 3, 4))])
def test_the_conv_encoder_is_disdiffs_with_the_layers_that_the_image_leaves(side: int, kept: tuple[int, ...]) -> None:
    torch.manual_seed(0)
    ours, twin = build("conv", 5, side, 7), Literal(5, 7, kept)
    mine, theirs = list(ours.named_parameters()), list(twin.named_parameters())
    given = [p for name, p in mine if name.startswith(("convs.", "norms."))]
    order = [given[2 * i + j + k] for i in range(len(kept)) for k in (0, 2 * len(kept)) for j in range(2)]
    rest = {name: p for name, p in mine if not name.startswith(("convs.", "norms."))}
    for number in ("1", "2"):
        order += [p for name, p in rest.items() if name.startswith(f"block{number}.")]
    order += [rest["bn.weight"], rest["bn.bias"], rest["linear.weight"], rest["linear.bias"]]
    with torch.no_grad():
        for (name, p), value in zip(theirs, order, strict=True):
            assert p.shape == value.shape, name
            value.add_(0.1 * torch.randn(value.shape))
            p.copy_(value)
    x = images(side)
    assert torch.allclose(ours(x), twin(x), atol=1e-4)
    assert ours(x).dtype == torch.float32


def test_the_conv_encoder_refuses_images_of_another_size() -> None:
    with pytest.raises(UserError, match=r"met 128, but .* 8, 16, 32, 64 pixels"):
        build("conv", 4, 128, 6)


def test_a_record_of_before_there_was_a_choice_is_of_resnet10() -> None:
    assert isinstance(recorded({"encoder_width": 2, "image_size": 16}), Encoder)
    conv = recorded({"encoder": "conv", "encoder_width": 2, "image_size": 16, "dim": 6})
    assert conv(images(16)).shape == (2, 6)


@pytest.mark.parametrize(("stem", "kernel"), [({}, 7), ({"stem": "auto"}, 7), ({"stem": "3x3"}, 3)])
def test_a_record_gives_the_stem_and_one_without_it_that_of_its_image_size(stem: dict[str, str], kernel: int) -> None:
    net = recorded({"encoder_width": 2, "image_size": 64, **stem})
    assert isinstance(net, Encoder)
    assert net.conv1.kernel_size == (kernel, kernel)
