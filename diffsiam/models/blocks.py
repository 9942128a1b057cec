"""diffusers' blocks as we run them: the same modules, weights and results, fewer and faster operations.

`adopt` changes the classes of a network's blocks and of their parts in place, so that names and shapes of its weights
stay diffusers'. Residual blocks are handed their part of the embeddings, made for all of them by
one matrix product (`project`); feature maps stay in channels-last memory; nothing is divided by 1.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any, NamedTuple

import torch
from diffusers.models.attention_processor import Attention
from diffusers.models.resnet import ResnetBlock2D
from diffusers.models.unets.unet_2d_blocks import AttnUpBlock2D, UpBlock2D
from diffusers.models.upsampling import Upsample2D
from torch import Tensor, nn
from torch.nn import functional

from diffsiam import runtime
from diffsiam.models import bias, maps
from diffsiam.models.group_norm import norm_silu


class Conditioning(NamedTuple):
    """What the residual blocks of a network are told, one tensor for each in the order of `adopt`: projections of the
    time embedding, (N, C) or (N, 2C), and of z, (N, 2C); z is None in the frozen network."""

    time: Sequence[Tensor]
    z: Sequence[Tensor] | None = None


class ResidualBlock(ResnetBlock2D):
    """A residual block, with a second adaptive group norm for z after the time one where z is given (PDAE).

    With scale-shift time embedding ``h = (1+z_scale) * ((1+t_scale) * GN(h) + t_shift) + z_shift``; where the diffusion
    model adds the time embedding before the norm (Ho et al.), ``h = (1+z_scale) * GN(h + t) + z_shift``.
    """

    place: int  # of this block among those of its network

    def forward(self, x: Tensor, temb: Conditioning | Tensor) -> Tensor:
        """(N, C, H, W) -> (N, C', H', W'); the argument's name is the one that diffusers' containers use. Where the
        network is called as diffusers', with a time embedding (N, E), so is this block."""
        if isinstance(temb, Tensor):
            return super().forward(x, temb)
        fused = runtime.runs_triton(x)
        hidden = norm_silu(x, self.norm1)
        resample = self.upsample or self.downsample
        if resample is not None:
            x, hidden = resample(x), resample(hidden)
        hidden = _convolved(self.conv1, hidden, plain=fused)
        time = temb.time[self.place]
        pairs = [] if temb.z is None else [temb.z[self.place]]
        added = time if self.time_embedding_norm == "default" else None
        if added is None:
            pairs.insert(0, time)
        given = self.conv1.bias if fused else None  # the norm adds it
        hidden = norm_silu(hidden, self.norm2, bias=given, added=added, modulations=pairs)
        hidden = _convolved(self.conv2, self.dropout(hidden), plain=fused)
        shortcut = x if self.conv_shortcut is None else _convolved(self.conv_shortcut, x, plain=fused)
        if not fused:
            return _rescaled(shortcut + hidden, self.output_scale_factor)
        last = self.conv2.bias if self.conv_shortcut is None else self.conv2.bias + self.conv_shortcut.bias
        return _rescaled(bias.add(hidden, shortcut, last), self.output_scale_factor)


class NearestUpsample(Upsample2D):
    """Repeats pixels, then convolves; diffusers' own leaves channels-last memory at batches of 64 and more."""

    def forward(self, hidden_states: Tensor, output_size: None = None) -> Tensor:
        """(N, C, H, W) -> (N, C', 2H, 2W); sides that halve evenly on the way down need no ``output_size``."""
        hidden = maps.doubled(hidden_states)
        if not self.use_conv:
            return hidden
        if not runtime.runs_triton(hidden):
            return self.conv(hidden)
        return bias.add(_convolved(self.conv, hidden, plain=True), None, self.conv.bias)


class SelfAttention:
    """An attention processor of diffusers to which a pixel is a row, as it lies in channels-last memory."""

    def __call__(
        self,
        attn: Attention,
        hidden_states: Tensor,
        encoder_hidden_states: None = None,
        attention_mask: None = None,
        temb: object = None,  # the middle block passes it to all
    ) -> Tensor:
        """(N, C, H, W) -> (N, C, H, W)."""
        x, fused = hidden_states, runtime.runs_triton(hidden_states)
        hidden = x if attn.group_norm is None else norm_silu(x, attn.group_norm, silu=False)
        rows = hidden.permute(0, 2, 3, 1).flatten(1, 2)  # (N, HW, C)
        layers = (attn.to_q, attn.to_k, attn.to_v)
        made = (bias.linear(rows, layer) if fused else layer(rows) for layer in layers)
        q, k, v = (y.unflatten(2, (attn.heads, -1)).transpose(1, 2) for y in made)
        mixed = functional.scaled_dot_product_attention(q, k, v).transpose(1, 2).flatten(2)
        last, shortcut = attn.to_out[0], x if attn.residual_connection else None
        if fused:
            out = functional.linear(mixed, last.weight).unflatten(1, x.shape[2:]).permute(0, 3, 1, 2)
            return _rescaled(bias.add(out, shortcut, last.bias), attn.rescale_output_factor)
        out = last(mixed).unflatten(1, x.shape[2:]).permute(0, 3, 1, 2)
        if not x.is_contiguous(memory_format=torch.channels_last):
            out = out.contiguous()  # what follows keeps the layout that it was given
        return _rescaled(out if shortcut is None else out + shortcut, attn.rescale_output_factor)


class _Joining:
    """A level of the way up whose skips are joined by `maps.joined`."""

    def forward(
        self: Any, hidden_states: Tensor, res_hidden_states_tuple: tuple[Tensor, ...], temb: Conditioning | Tensor
    ) -> Tensor:
        """(N, C, H, W) and the skips of this level, the last one first, to (N, C', 2H, 2W), at the last level to
        (N, C', H, W); the arguments' names are diffusers'."""
        if isinstance(temb, Tensor):
            return super().forward(hidden_states, res_hidden_states_tuple, temb)  # type: ignore[misc]
        hidden, skips = hidden_states, reversed(res_hidden_states_tuple)
        attentions = self.attentions if isinstance(self, AttnUpBlock2D) else [nn.Identity()] * len(self.resnets)
        for resnet, attention, skip in zip(self.resnets, attentions, skips, strict=True):
            hidden = attention(resnet(maps.joined(hidden, skip), temb))
        for upsampler in self.upsamplers or ():
            hidden = upsampler(hidden) if isinstance(upsampler, Upsample2D) else upsampler(hidden, temb)
        return hidden


class _Up(_Joining, UpBlock2D):
    pass


class _AttentionUp(_Joining, AttnUpBlock2D):
    pass


def _convolved(layer: nn.Conv2d, x: Tensor, *, plain: bool) -> Tensor:
    """The convolution, without its bias where ``plain``."""
    return functional.conv2d(x, layer.weight, None, layer.stride, layer.padding) if plain else layer(x)


def _rescaled(x: Tensor, factor: float) -> Tensor:
    return x if factor == 1 else x / factor


def adopt(*parts: nn.Module) -> list[ResidualBlock]:
    """Let the blocks in ``parts`` run as above; the residual blocks, numbered in the order of their names."""
    blocks: list[ResidualBlock] = []
    for module in (m for part in parts for m in part.modules()):
        if isinstance(module, ResnetBlock2D):
            module.__class__ = ResidualBlock
            module.place = len(blocks)
            blocks.append(module)
        elif isinstance(module, Upsample2D):
            module.__class__ = NearestUpsample
        elif isinstance(module, UpBlock2D | AttnUpBlock2D):
            module.__class__ = _Up if isinstance(module, UpBlock2D) else _AttentionUp
        elif isinstance(module, Attention):
            module.set_processor(SelfAttention())
    return blocks


def project(embedding: Tensor, layers: Sequence[nn.Linear]) -> Sequence[Tensor]:
    """Each of the ``layers`` on silu(embedding), (N, E), by one matrix product: (N, out) for each."""
    weight = torch.cat([layer.weight for layer in layers])
    offset = torch.cat([layer.bias for layer in layers])
    widths = [layer.out_features for layer in layers]
    return functional.linear(functional.silu(embedding), weight, offset).split(widths, dim=1)
