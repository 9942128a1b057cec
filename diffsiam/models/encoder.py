"""f_omega: ResNet-10, one BasicBlock per stage, and E_phi: the convolutional encoder of DisDiff."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from torch import Tensor, nn
from torch.nn import functional

from diffsiam.errors import UserError
from diffsiam.models.batch_norm import norm_relu


class BasicBlock(nn.Module):
    """Two 3x3 convolutions with batch norm and a shortcut (He et al. 2016), and a ReLU of their sum unless ``relu`` is
    False; weights named as in torchvision."""

    def __init__(self, inplanes: int, planes: int, stride: int, relu: bool = True) -> None:
        super().__init__()
        self.relu = relu
        self.conv1 = nn.Conv2d(inplanes, planes, 3, stride, 1, bias=False)
        self.bn1 = nn.BatchNorm2d(planes)
        self.conv2 = nn.Conv2d(planes, planes, 3, 1, 1, bias=False)
        self.bn2 = nn.BatchNorm2d(planes)
        self.downsample: nn.Module = nn.Identity()
        # A strided 1x1 convolution reads every stride-th pixel. Below 8 channels these are taken before it: on a CPU
        # without AVX512, torch 2.14's backward pass of that convolution in channels-last memory writes out of bounds.
        self.every = stride if inplanes < 8 else 1
        if stride != 1 or inplanes != planes:
            shortcut = nn.Conv2d(inplanes, planes, 1, stride // self.every, bias=False)
            self.downsample = nn.Sequential(shortcut, nn.BatchNorm2d(planes))

    def forward(self, x: Tensor, views: int = 1) -> Tensor:
        """(N, inplanes, H, W) -> (N, planes, H / stride, W / stride)."""
        hidden = norm_relu(self.conv1(x), self.bn1, views=views)
        x = x if self.every == 1 else x[:, :, :: self.every, :: self.every]
        if isinstance(self.downsample, nn.Sequential):
            convolution, norm = self.downsample
            x = norm_relu(convolution(x), norm, relu=False, views=views)
        return norm_relu(self.conv2(hidden), self.bn2, x, relu=self.relu, views=views)


class Encoder(nn.Module):
    """ResNet-10 with global average pool: images (N, 3, H, W) in [-1, 1] to z (N, 8 * width), float32.

    Args:
        stem: ``3x3``, one convolution of stride 1 without max-pool; ``7x7``, the standard one of stride 2 with
            max-pool; ``auto``, the first for images up to 32x32 and the second above.
        zero_init_residual: the last batch norm of each block starts at 0, so that the block starts as its shortcut
            (Goyal et al. 2017).
        last_relu: the last block ends with its ReLU, as in every ResNet, so that z >= 0; without, z has signs.
    """

    def __init__(
        self,
        width: int,
        image_size: int,
        stem: str = "auto",
        zero_init_residual: bool = False,
        last_relu: bool = True,
    ) -> None:
        super().__init__()
        small = image_size <= 32 if stem == "auto" else stem == "3x3"
        self.conv1 = nn.Conv2d(3, width, *((3, 1, 1) if small else (7, 2, 3)), bias=False)
        self.bn1 = nn.BatchNorm2d(width)
        self.maxpool: nn.Module = nn.Identity() if small else nn.MaxPool2d(3, 2, 1)
        self.layer1 = nn.Sequential(BasicBlock(width, width, 1))
        self.layer2 = nn.Sequential(BasicBlock(width, 2 * width, 2))
        self.layer3 = nn.Sequential(BasicBlock(2 * width, 4 * width, 2))
        self.layer4 = nn.Sequential(BasicBlock(4 * width, 8 * width, 2, last_relu))
        for module in self.modules():
            if isinstance(module, nn.Conv2d):
                nn.init.kaiming_normal_(module.weight, mode="fan_out", nonlinearity="relu")
            elif isinstance(module, BasicBlock) and zero_init_residual:
                nn.init.zeros_(module.bn2.weight)

    def forward(self, x: Tensor, views: int = 1) -> Tensor:
        """z = f_omega(x), where x may be several ``views`` one after the other: see `norm_relu`."""
        hidden = self.maxpool(norm_relu(self.conv1(x), self.bn1, views=views))
        for layer in (self.layer1, self.layer2, self.layer3, self.layer4):
            for block in layer:
                hidden = block(hidden, views)
        return hidden.float().mean(dim=(2, 3))


class CodeBlock(nn.Module):
    """x plus ReLU, 3x3 convolution, batch norm, ReLU, 1x1 convolution of it."""

    def __init__(self, width: int) -> None:
        super().__init__()
        self.conv1 = nn.Conv2d(width, width, 3, 1, 1)
        self.bn1 = nn.BatchNorm2d(width)
        self.conv2 = nn.Conv2d(width, width, 1)

    def forward(self, x: Tensor, views: int = 1) -> Tensor:
        """(N, width, H, W) -> the same."""
        return x + self.conv2(norm_relu(self.conv1(functional.relu(x)), self.bn1, views=views))


class ConvEncoder(nn.Module):
    """DisDiff's encoder: images (N, 3, H, W) in [-1, 1] to the codes z (N, dim), float32 and of any scale.

    Strided 4x4 convolutions with batch norm halve the image down to 4x4, two residual blocks and a linear layer follow.
    As in the authors' code (its `Encoder4`) for images of 64x64; the third convolution, which has no ReLU there either,
    is left out at 32x32, the second and third at 16x16, all but the first at 8x8.
    """

    def __init__(self, width: int, image_size: int, dim: int) -> None:
        super().__init__()
        if image_size not in STRIDED:
            raise UserError(
                f"data.image_size: met {image_size}, but the encoder of representation.codes takes images of "
                f"{', '.join(map(str, STRIDED))} pixels. Choose one of these."
            )
        self.rectified = STRIDED[image_size]
        inputs = [3] + [width] * (len(self.rectified) - 1)
        self.convs = nn.ModuleList(nn.Conv2d(channels, width, 4, 2, 1) for channels in inputs)
        self.norms = nn.ModuleList(nn.BatchNorm2d(width) for _ in inputs)
        self.block1, self.bn, self.block2 = CodeBlock(width), nn.BatchNorm2d(width), CodeBlock(width)
        self.linear = nn.Linear(16 * width, dim)

    def forward(self, x: Tensor, views: int = 1) -> Tensor:
        """z = E_phi(x), where x may be several ``views`` one after the other: see `norm_relu`."""
        for conv, norm, rectified in zip(self.convs, self.norms, self.rectified, strict=True):
            x = norm_relu(conv(x), norm, relu=rectified, views=views)
        x = self.block2(norm_relu(self.block1(x, views), self.bn, views=views), views)
        return self.linear(x.flatten(1)).float()


STRIDED = {
    8: (True,),
    16: (True, True),
    32: (True, True, True),
    64: (True, True, False, True),
}  # image size to ReLU or not


def build(
    kind: str,
    width: int,
    image_size: int,
    dim: int,
    stem: str = "auto",
    zero_init_residual: bool = False,
    last_relu: bool = True,
) -> nn.Module:
    """An encoder, ``resnet10`` or ``conv``, from images of ``image_size`` to z of ``dim`` numbers; of ResNet-10, which
    alone has a stem and residual blocks to choose, that is 8 * width."""
    if kind == "conv":
        return ConvEncoder(width, image_size, dim)
    return Encoder(width, image_size, stem, zero_init_residual, last_relu)


def recorded(config: Mapping[str, Any]) -> nn.Module:
    """The encoder, untrained, that a config.json describes; those of before there was a choice are ResNet-10 with the
    stem of their image size."""
    width = config["encoder_width"]
    kind, dim, stem = config.get("encoder", "resnet10"), config.get("dim", 8 * width), config.get("stem", "auto")
    last_relu = config.get("last_relu", True)
    return build(kind, width, config["image_size"], dim, stem, last_relu=last_relu)
