"""g_phi: the decoder, in PDAE's style, for any diffusers `UNet2DModel`."""

from __future__ import annotations

from typing import NamedTuple

from diffusers import UNet2DModel
from diffusers.models.resnet import ResnetBlock2D
from torch import Tensor, nn
from torch.nn import functional

from diffsiam.models.unet import Trunk, up_path


class Conditioning(NamedTuple):
    """What a residual block of the decoder is told: the frozen time embedding and the embedding of z, both (N, E)."""

    time: Tensor
    z: Tensor


class ConditionedResnet(nn.Module):
    """A residual block with a second adaptive group norm for z after the time one (PDAE).

    With scale-shift time embedding ``h = (1+z_scale) * ((1+t_scale) * GN(h) + t_shift) + z_shift``; where the diffusion
    model adds the time embedding before the norm (Ho et al.), ``h = (1+z_scale) * GN(h + t) + z_shift``.
    """

    def __init__(self, block: ResnetBlock2D) -> None:
        super().__init__()
        self.block = block
        self.z_proj = nn.Linear(block.time_emb_proj.in_features, 2 * block.out_channels)

    def forward(self, x: Tensor, temb: Conditioning) -> Tensor:
        """(N, C, H, W) -> (N, C', H', W'); the argument's name is the one that diffusers' containers use."""
        block = self.block
        hidden = functional.silu(block.norm1(x))
        if block.upsample is not None:
            x, hidden = block.upsample(x), block.upsample(hidden)
        hidden = block.conv1(hidden)
        time = block.time_emb_proj(functional.silu(temb.time))[:, :, None, None]
        z_scale, z_shift = self.z_proj(functional.silu(temb.z))[:, :, None, None].chunk(2, dim=1)
        if block.time_embedding_norm == "scale_shift":
            t_scale, t_shift = time.chunk(2, dim=1)
            hidden = (1 + t_scale) * block.norm2(hidden) + t_shift
        else:
            hidden = block.norm2(hidden + time)
        hidden = (1 + z_scale) * hidden + z_shift
        hidden = block.conv2(functional.silu(hidden))
        shortcut = x if block.conv_shortcut is None else block.conv_shortcut(x)
        return (shortcut + hidden) / block.output_scale_factor


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
        for container in [own.mid_block, *own.up_blocks]:
            container.resnets = nn.ModuleList(ConditionedResnet(r) for r in container.resnets)
        for container in own.up_blocks:
            if container.upsamplers is not None and isinstance(container.upsamplers[0], ResnetBlock2D):
                container.upsamplers = nn.ModuleList(ConditionedResnet(u) for u in container.upsamplers)
        nn.init.zeros_(own.conv_out.weight)
        nn.init.zeros_(own.conv_out.bias)
        self.unet = own
        self.z_embedding = nn.Linear(dim, unet.time_embedding.linear_2.out_features)

    def forward(self, z: Tensor, trunk: Trunk) -> Tensor:
        """g_phi(z, x_t, t): z (N, d) and the frozen network's `Trunk` of (x_t, t) to (N, 3, H, W), float32."""
        return up_path(self.unet, trunk, Conditioning(trunk.time, self.z_embedding(z)))
