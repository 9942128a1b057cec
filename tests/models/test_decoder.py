"""The decoder against a literal block, and against the U-Net's own way up."""

from __future__ import annotations

import pytest
import torch
from diffusers import UNet2DModel
from diffusers.models.resnet import ResnetBlock2D
from tiny_unets import STEPS, noisy_images, unet
from torch import Tensor, nn
from torch.nn import functional

from diffsiam.models import blocks
from diffsiam.models.decoder import ConditionedResnet, Decoder
from diffsiam.models.unet import DiffusionModel

DIM, EMBEDDING = 12, 10
LAYOUTS = ["ho", "guided"]


def rand(*shape: int, seed: int = 0) -> Tensor:
    return torch.randn(shape, generator=torch.Generator().manual_seed(seed))


def randomise(module: nn.Module) -> None:
    with torch.no_grad():
        for i, p in enumerate(module.parameters()):
            p.copy_(0.3 * rand(*p.shape, seed=i))


def make(layout: str) -> tuple[DiffusionModel, Decoder]:
    """A frozen model and a decoder whose last convolution is no longer zero."""
    model = DiffusionModel(unet(layout)).requires_grad_(False)
    torch.manual_seed(1)
    decoder = Decoder(model.unet, DIM)
    nn.init.normal_(decoder.unet.conv_out.weight, std=0.1)
    return model, decoder


def group_norm(x: Tensor, groups: int, weight: Tensor, bias: Tensor, eps: float) -> Tensor:
    """By the definition: each image's groups of channels to mean 0 and variance 1."""
    out = torch.empty_like(x)
    size = x.shape[1] // groups
    for n in range(x.shape[0]):
        for g in range(groups):
            part = x[n, g * size : (g + 1) * size]
            out[n, g * size : (g + 1) * size] = (part - part.mean()) / (part.var(unbiased=False) + eps).sqrt()
    return out * weight[:, None, None] + bias[:, None, None]


@pytest.mark.parametrize("up", [False, True])
@pytest.mark.parametrize("widths", [(8, 8), (8, 12)])
@pytest.mark.parametrize("mode", ["default", "scale_shift"])
@torch.no_grad()
def test_conditioned_block_is_the_literal_formula(mode: str, widths: tuple[int, int], up: bool) -> None:
    """scale_shift: (1+z_scale) ((1+t_scale) GN(h) + t_shift) + z_shift; added time: (1+z_scale) GN(h + t) + z_shift."""
    block = ResnetBlock2D(
        in_channels=widths[0], out_channels=widths[1], temb_channels=EMBEDDING, groups=4, eps=1e-5,
        time_embedding_norm=mode, up=up,
    )  # fmt: skip
    blocks.adopt(block)
    ours = ConditionedResnet(block)
    randomise(ours)
    x, time, z = rand(2, widths[0], 4, 4, seed=50), rand(2, EMBEDDING, seed=51), rand(2, EMBEDDING, seed=52)
    w = ours.state_dict()

    def silu(v: Tensor) -> Tensor:
        return v / (1 + (-v).exp())

    def enlarge(v: Tensor) -> Tensor:
        return v.repeat_interleave(2, dim=2).repeat_interleave(2, dim=3) if up else v

    def linear(v: Tensor, name: str) -> Tensor:
        return (silu(v) @ w[f"{name}.weight"].T + w[f"{name}.bias"])[:, :, None, None]

    def norm(v: Tensor, name: str) -> Tensor:
        return group_norm(v, 4, w[f"block.{name}.weight"], w[f"block.{name}.bias"], 1e-5)

    h = enlarge(silu(norm(x, "norm1")))
    h = functional.conv2d(h, w["block.conv1.weight"], w["block.conv1.bias"], padding=1)
    t, zz = linear(time, "block.time_emb_proj"), linear(z, "z_proj")
    z_scale, z_shift = zz[:, : widths[1]], zz[:, widths[1] :]
    if mode == "scale_shift":
        t_scale, t_shift = t[:, : widths[1]], t[:, widths[1] :]
        h = (1 + z_scale) * ((1 + t_scale) * norm(h, "norm2") + t_shift) + z_shift
    else:
        h = (1 + z_scale) * norm(h + t, "norm2") + z_shift
    h = functional.conv2d(silu(h), w["block.conv2.weight"], w["block.conv2.bias"], padding=1)
    shortcut = enlarge(x)
    if widths[0] != widths[1]:
        shortcut = functional.conv2d(shortcut, w["block.conv_shortcut.weight"], w["block.conv_shortcut.bias"])
    told = blocks.Conditioning(blocks.project(time, [block.time_emb_proj]), blocks.project(z, [ours.z_proj]))
    assert torch.allclose(ours(x, told), shortcut + h, atol=1e-4)


@pytest.mark.parametrize("layout", LAYOUTS)
def test_decoder_is_zero_at_the_start(layout: str) -> None:
    model = DiffusionModel(unet(layout)).requires_grad_(False)
    decoder = Decoder(model.unet, DIM)
    g = decoder(rand(3, DIM), model.trunk(noisy_images(), STEPS))
    assert g.shape == noisy_images().shape
    assert g.dtype == torch.float32
    assert (g == 0).all()
    (g - 1).square().sum().backward()  # and not stuck there: any error pulls at the last convolution
    assert decoder.unet.conv_out.weight.grad.abs().max() > 0


@pytest.mark.parametrize("layout", LAYOUTS)
@torch.no_grad()
def test_decoder_with_the_unets_weights_and_a_silent_z_is_the_unets_own_way_up(layout: str) -> None:
    model, decoder = make(layout)
    frozen = model.unet.state_dict()
    for name, p in decoder.unet.state_dict().items():
        if ".z_proj." in name:
            p.zero_()
        else:
            p.copy_(frozen[name.replace(".block.", ".")])
    own = model.unet(noisy_images(), STEPS - 1).sample
    assert torch.allclose(decoder(rand(3, DIM), model.trunk(noisy_images(), STEPS)), own, atol=1e-5)


@pytest.mark.parametrize("layout", LAYOUTS)
def test_decoder_owns_middle_block_up_path_and_output_and_nothing_of_the_way_down(layout: str) -> None:
    model, decoder = make(layout)
    parts = {name.split(".")[0] for name, _ in decoder.unet.named_parameters()}
    assert parts == {"mid_block", "up_blocks", "conv_norm_out", "conv_out"}
    frozen = {p.data_ptr() for p in model.parameters()}
    assert not frozen & {p.data_ptr() for p in decoder.parameters()}


@pytest.mark.parametrize("layout", LAYOUTS)
def test_every_residual_block_of_the_way_up_is_conditioned(layout: str) -> None:
    model, decoder = make(layout)
    net = model.unet
    expected = sum(isinstance(m, ResnetBlock2D) for part in (net.mid_block, net.up_blocks) for m in part.modules())
    blocks = [m for m in decoder.modules() if isinstance(m, ConditionedResnet)]
    assert len(blocks) == expected == sum(isinstance(m, ResnetBlock2D) for m in decoder.modules())
    decoder(rand(3, DIM), model.trunk(noisy_images(), STEPS)).square().sum().backward()
    for block in blocks:
        assert block.z_proj.weight.grad.abs().max() > 0
    for name, p in decoder.named_parameters():
        assert p.grad is not None, name


@pytest.mark.parametrize("layout", LAYOUTS)
@torch.no_grad()
def test_output_depends_on_z_on_the_step_and_on_the_noisy_image_row_by_row(layout: str) -> None:
    model, decoder = make(layout)
    z, x = rand(3, DIM), noisy_images()
    base = decoder(z, model.trunk(x, STEPS))
    other = {
        "z": decoder(z + torch.tensor([1.0, 0, 0])[:, None], model.trunk(x, STEPS)),
        "t": decoder(z, model.trunk(x, STEPS + torch.tensor([300, 0, 0]))),
        "x": decoder(z, model.trunk(x * torch.tensor([0.5, 1, 1])[:, None, None, None], STEPS)),
    }
    for what, changed in other.items():
        assert (changed[0] - base[0]).abs().max() > 1e-3, what
        assert torch.allclose(changed[1:], base[1:], atol=1e-6), what


@pytest.mark.parametrize("layout", LAYOUTS)
def test_a_step_of_the_decoder_leaves_the_frozen_network_as_it_is(layout: str) -> None:
    model, decoder = make(layout)
    before = {k: v.clone() for k, v in model.state_dict().items()}
    z = rand(3, DIM).requires_grad_()
    optimizer = torch.optim.SGD([*decoder.parameters(), *model.parameters()], lr=0.1)
    decoder(z, model.trunk(noisy_images(), STEPS)).square().mean().backward()
    optimizer.step()
    assert all(p.grad is None for p in model.parameters())
    assert all(torch.equal(v, before[k]) for k, v in model.state_dict().items())
    assert z.grad is not None
    assert z.grad.abs().max() > 0  # what trains the encoder


def test_decoder_has_no_dropout_and_three_channels_whatever_the_network_has() -> None:
    decoder = Decoder(unet("guided", dropout=0.3, out_channels=6), DIM)
    assert {m.p for m in decoder.modules() if isinstance(m, nn.Dropout)} == {0.0}
    assert decoder.unet.conv_out.out_channels == 3


def test_decoder_of_the_thesiss_network_has_its_size() -> None:
    """The published CIFAR-10 network: 35.7 M parameters; the decoder repeats its middle, up path and output."""
    with torch.device("meta"):
        net = UNet2DModel(
            sample_size=32, block_out_channels=(128, 256, 256, 256), layers_per_block=2, attention_head_dim=None,
            down_block_types=("DownBlock2D", "AttnDownBlock2D", "DownBlock2D", "DownBlock2D"),
            up_block_types=("UpBlock2D", "UpBlock2D", "AttnUpBlock2D", "UpBlock2D"),
        )  # fmt: skip
        decoder = Decoder(net, 512)
    assert sum(p.numel() for p in net.parameters()) == 35_746_307
    way_up = (net.mid_block, net.up_blocks, net.conv_norm_out, net.conv_out)
    repeated = sum(p.numel() for part in way_up for p in part.parameters())
    blocks = [m for m in decoder.modules() if isinstance(m, ConditionedResnet)]
    for_z = sum(513 * 2 * b.block.out_channels for b in blocks) + 513 * 512
    assert sum(p.numel() for p in decoder.parameters()) == repeated + for_z
