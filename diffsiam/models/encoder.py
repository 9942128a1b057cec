"""f_omega: ResNet-10, one BasicBlock per stage."""

from __future__ import annotations

from torch import Tensor, nn

from diffsiam.models.batch_norm import norm_relu


class BasicBlock(nn.Module):
    """Two 3x3 convolutions with batch norm and a shortcut (He et al. 2016); weights named as in torchvision."""

    def __init__(self, inplanes: int, planes: int, stride: int) -> None:
        super().__init__()
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

    def forward(self, x: Tensor) -> Tensor:
        """(N, inplanes, H, W) -> (N, planes, H / stride, W / stride)."""
        hidden = norm_relu(self.conv1(x), self.bn1)
        x = x if self.every == 1 else x[:, :, :: self.every, :: self.every]
        if isinstance(self.downsample, nn.Sequential):
            convolution, norm = self.downsample
            x = norm_relu(convolution(x), norm, relu=False)
        return norm_relu(self.conv2(hidden), self.bn2, x)


class Encoder(nn.Module):
    """ResNet-10 with global average pool: images (N, 3, H, W) in [-1, 1] to z (N, 8 * width), float32.

    Up to 32x32 the stem is one 3x3 convolution of stride 1 without max-pool, above it is the standard 7x7 of stride 2
    with max-pool.
    """

    def __init__(self, width: int, image_size: int) -> None:
        super().__init__()
        small = image_size <= 32
        self.conv1 = nn.Conv2d(3, width, *((3, 1, 1) if small else (7, 2, 3)), bias=False)
        self.bn1 = nn.BatchNorm2d(width)
        self.maxpool: nn.Module = nn.Identity() if small else nn.MaxPool2d(3, 2, 1)
        self.layer1 = nn.Sequential(BasicBlock(width, width, 1))
        self.layer2 = nn.Sequential(BasicBlock(width, 2 * width, 2))
        self.layer3 = nn.Sequential(BasicBlock(2 * width, 4 * width, 2))
        self.layer4 = nn.Sequential(BasicBlock(4 * width, 8 * width, 2))
        for module in self.modules():
            if isinstance(module, nn.Conv2d):
                nn.init.kaiming_normal_(module.weight, mode="fan_out", nonlinearity="relu")

    def forward(self, x: Tensor) -> Tensor:
        """z = f_omega(x)."""
        hidden = self.maxpool(norm_relu(self.conv1(x), self.bn1))
        hidden = self.layer4(self.layer3(self.layer2(self.layer1(hidden))))
        return hidden.float().mean(dim=(2, 3))
