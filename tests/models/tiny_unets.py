"""Small networks of the two layouts that the pipeline meets, with random weights."""

from __future__ import annotations

import torch
from diffusers import UNet2DModel

SIDE = 16
LAYOUTS = {
    "ho": {  # the published CIFAR-10 network, made small
        "block_out_channels": (8, 16),
        "layers_per_block": 2,
        "down_block_types": ("DownBlock2D", "AttnDownBlock2D"),
        "up_block_types": ("AttnUpBlock2D", "UpBlock2D"),
        "downsample_padding": 0,
        "flip_sin_to_cos": False,
        "freq_shift": 1,
        "norm_eps": 1e-6,
    },
    "guided": {  # guided-diffusion, as in PDAE's checkpoints, made small
        "block_out_channels": (8, 16, 16),
        "layers_per_block": 1,
        "down_block_types": ("ResnetDownsampleBlock2D", "AttnDownBlock2D", "ResnetDownsampleBlock2D"),
        "up_block_types": ("ResnetUpsampleBlock2D", "AttnUpBlock2D", "ResnetUpsampleBlock2D"),
        "downsample_type": "resnet",
        "upsample_type": "resnet",
        "resnet_time_scale_shift": "scale_shift",
        "attn_norm_num_groups": 4,
    },
}


def unet(layout: str, **changes: object) -> UNet2DModel:
    """A network of ``layout`` with every weight random: diffusers' own start has zeros, which hide faults."""
    torch.manual_seed(0)
    config = {"sample_size": SIDE, "norm_num_groups": 4, "attention_head_dim": None, **LAYOUTS[layout], **changes}
    net = UNet2DModel(**config).eval()
    with torch.no_grad():
        for p in net.parameters():
            p.add_(0.05 * torch.randn(p.shape))
    return net


def noisy_images(count: int = 3) -> torch.Tensor:
    """Images (N, 3, 16, 16)."""
    return torch.randn(count, 3, SIDE, SIDE, generator=torch.Generator().manual_seed(1))


STEPS = torch.tensor([1, 417, 1000])
