"""The guided-diffusion U-Net in plain PyTorch, under the names of PDAE's checkpoints, for tests of the conversion.

Written from the architecture (Dhariwal and Nichol 2021, Section 3 and Appendix): scale-shift group norms, residual
blocks that resample, attention whose heads are cut before query, key and value.
"""

from __future__ import annotations

import math
from collections.abc import Iterable, Sequence

import torch
import torch.nn.functional as F
from torch import Tensor, nn


class Residual(nn.Module):
    def __init__(self, channels: int, width: int, embedding: int, resample: str = "keep") -> None:
        super().__init__()
        self.resample = resample
        self.in_layers = nn.Sequential(nn.GroupNorm(32, channels), nn.SiLU(), nn.Conv2d(channels, width, 3, padding=1))
        self.emb_layers = nn.Sequential(nn.SiLU(), nn.Linear(embedding, 2 * width))
        self.out_layers = nn.Sequential(
            nn.GroupNorm(32, width), nn.SiLU(), nn.Dropout(0.1), nn.Conv2d(width, width, 3, padding=1)
        )
        self.skip_connection = nn.Identity() if channels == width else nn.Conv2d(channels, width, 1)

    def _resampled(self, x: Tensor) -> Tensor:
        if self.resample == "down":
            return F.avg_pool2d(x, 2)
        return F.interpolate(x, scale_factor=2, mode="nearest") if self.resample == "up" else x

    def forward(self, x: Tensor, embedding: Tensor) -> Tensor:
        norm, activation, convolution = self.in_layers
        h = convolution(self._resampled(activation(norm(x))))
        scale, shift = self.emb_layers(embedding)[:, :, None, None].chunk(2, dim=1)
        norm, *rest = self.out_layers
        h = norm(h) * (1 + scale) + shift
        for layer in rest:
            h = layer(h)
        return self.skip_connection(self._resampled(x)) + h


class Attention(nn.Module):
    def __init__(self, width: int, heads: int) -> None:
        super().__init__()
        self.heads = heads
        self.norm = nn.GroupNorm(32, width)
        self.qkv = nn.Conv1d(width, 3 * width, 1)
        self.proj_out = nn.Conv1d(width, width, 1)

    def forward(self, x: Tensor) -> Tensor:
        flat = x.flatten(2)
        heads = []
        for rows in self.qkv(self.norm(flat)).chunk(self.heads, dim=1):
            query, key, value = rows.chunk(3, dim=1)
            match = (query.transpose(1, 2) @ key / math.sqrt(query.shape[1])).softmax(dim=-1)
            heads.append(value @ match.transpose(1, 2))
        return (flat + self.proj_out(torch.cat(heads, dim=1))).view_as(x)


class GuidedUnet(nn.Module):
    """The network of ``denoise_fn_config``; other keys than these (dropout, dims, ...) make no difference here."""

    def __init__(
        self,
        *,
        input_channel: int,
        base_channel: int,
        channel_multiplier: Sequence[int],
        num_residual_blocks_of_a_block: int,
        attention_resolutions: Sequence[int],
        num_heads: int,
        head_channel: int,
        learn_sigma: bool = False,
        **_: object,
    ) -> None:
        super().__init__()
        widths = [base_channel * factor for factor in channel_multiplier]
        self.sinusoids, embedding = base_channel, 4 * base_channel
        depth, last = num_residual_blocks_of_a_block, len(widths) - 1

        def attention(width: int) -> Attention:
            return Attention(width, num_heads if head_channel == -1 else width // head_channel)

        def attended(level: int, width: int) -> list[nn.Module]:
            return [attention(width)] if 2**level in attention_resolutions else []

        self.time_embed = nn.Sequential(nn.Linear(base_channel, embedding), nn.SiLU(), nn.Linear(embedding, embedding))
        blocks: list[list[nn.Module]] = [[nn.Conv2d(input_channel, widths[0], 3, padding=1)]]
        skips = [channels := widths[0]]
        for level, width in enumerate(widths):
            for _layer in range(depth):
                blocks.append([Residual(channels, width, embedding), *attended(level, width)])
                skips.append(channels := width)
            if level < last:
                blocks.append([Residual(width, width, embedding, "down")])
                skips.append(width)
        self.input_blocks = _nested(blocks)
        self.middle_block = nn.ModuleList(
            [Residual(channels, channels, embedding), attention(channels), Residual(channels, channels, embedding)]
        )
        blocks = []
        for level in range(last, -1, -1):
            width = widths[level]
            for layer in range(depth + 1):
                up = [Residual(width, width, embedding, "up")] if level and layer == depth else []
                blocks.append([Residual(channels + skips.pop(), width, embedding), *attended(level, width), *up])
                channels = width
        self.output_blocks = _nested(blocks)
        outputs = 2 * input_channel if learn_sigma else input_channel
        self.out = nn.Sequential(nn.GroupNorm(32, channels), nn.SiLU(), nn.Conv2d(channels, outputs, 3, padding=1))

    def forward(self, x: Tensor, timestep: Tensor) -> Tensor:
        half = self.sinusoids // 2
        frequencies = torch.exp(-math.log(10000) * torch.arange(half, dtype=torch.float32) / half)
        angles = timestep[:, None].float() * frequencies
        embedding = self.time_embed(torch.cat([angles.cos(), angles.sin()], dim=1).to(x.dtype))
        skips = []
        for block in self.input_blocks:
            x = _run(block, x, embedding)
            skips.append(x)
        x = _run(self.middle_block, x, embedding)
        for block in self.output_blocks:
            x = _run(block, torch.cat([x, skips.pop()], dim=1), embedding)
        return self.out(x)


def _nested(blocks: Iterable[Sequence[nn.Module]]) -> nn.ModuleList:
    return nn.ModuleList([nn.ModuleList(block) for block in blocks])


def _run(block: Iterable[nn.Module], x: Tensor, embedding: Tensor) -> Tensor:
    for layer in block:
        x = layer(x, embedding) if isinstance(layer, Residual) else layer(x)
    return x
