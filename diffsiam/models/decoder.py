"""g_phi: the decoder, in PDAE's style, for any diffusers `UNet2DModel`."""

from __future__ import annotations

import torch
from diffusers import UNet2DModel
from torch import Tensor, nn

from diffsiam.models import blocks
from diffsiam.models.unet import Trunk, up_path


class ConditionedResnet(nn.Module):
    """A residual block of the decoder, with the layer that tells it of z: scale and shift of its second norm."""

    def __init__(self, block: blocks.ResidualBlock) -> None:
        super().__init__()
        self.block = block
        self.z_proj = nn.Linear(block.time_emb_proj.in_features, 2 * block.out_channels)

    def forward(self, x: Tensor, temb: blocks.Conditioning) -> Tensor:
        """(N, C, H, W) -> (N, C', H', W'), by `blocks.ResidualBlock`."""
        return self.block(x, temb)


class Decoder(nn.Module):
    """Middle block, up path and output block of its own on the frozen U-Net's time embedding and down path.

    The last convolution starts at zero, so training starts at the frozen model's own reconstruction. There is no
    dropout: the decoder must explain the reconstruction error, not average over it.

    Args:
        unet: the frozen network, whose config is taken over; its weights are not.
        dim: numbers in the representation z.
    """

    def __init__(self, unet: UNet2DModel, dim: int) -> None:
        super().__init__()
        own = UNet2DModel.from_config({**unet.config, "dropout": 0.0, "out_channels": unet.config.in_channels})
        own.conv_in = own.time_proj = own.time_embedding = own.down_blocks = None
        blocks.adopt(own.mid_block, own.up_blocks)
        for container in [own.mid_block, *own.up_blocks]:
            container.resnets = nn.ModuleList(ConditionedResnet(r) for r in container.resnets)
        for container in own.up_blocks:
            if container.upsamplers is not None and isinstance(container.upsamplers[0], blocks.ResidualBlock):
                container.upsamplers = nn.ModuleList(ConditionedResnet(u) for u in container.upsamplers)
        nn.init.zeros_(own.conv_out.weight)
        nn.init.zeros_(own.conv_out.bias)
        self.unet = own
        self.z_embedding = nn.Linear(dim, unet.time_embedding.linear_2.out_features)
        conditioned = (m for m in self.modules() if isinstance(m, ConditionedResnet))
        self._residual = sorted(conditioned, key=lambda m: m.block.place)

    def forward(self, z: Tensor, trunk: Trunk) -> Tensor:
        """g_phi(z, x_t, t): z (N, d) and the frozen network's `Trunk` of (x_t, t) to (N, 3, H, W), float32."""
        time = blocks.project(trunk.time, [own.block.time_emb_proj for own in self._residual])
        told = blocks.Conditioning(time, blocks.project(self.z_embedding(z), [own.z_proj for own in self._residual]))
        # The backward pass of a group norm on a CPU, in channels-last memory, was a segmentation fault before PyTorch
        # 2.14 where the norm's input needs no gradient, as the frozen network's last feature map does not.
        if trunk.hidden.device.type == "cpu" and not (trunk.hidden.requires_grad or torch.compiler.is_compiling()):
            trunk = trunk._replace(hidden=trunk.hidden.detach().requires_grad_())
        return up_path(self.unet, trunk, told)
