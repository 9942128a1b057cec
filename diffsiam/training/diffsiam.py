"""DiffSiam and what it is made of: SimSiam's term (Eq. 3.9), PDAE's and DiTi's diffusion term (Eq. 3.11), their sum."""

from __future__ import annotations

import math
from collections.abc import Callable
from typing import TYPE_CHECKING, Any

import torch
from torch import Tensor, nn

from diffsiam.data import augment, pixels
from diffsiam.data.images import Images
from diffsiam.diffusion.schedule import TIMESTEPS, Schedule
from diffsiam.models import encoder, segments
from diffsiam.models.batch_norm import of_views
from diffsiam.models.simsiam import Heads, participation_ratio, spread
from diffsiam.params import Representation
from diffsiam.training import loop, methods
from diffsiam.training.inputs import Inputs

if TYPE_CHECKING:  # diffusers takes seconds to import, and not every method has a diffusion model
    from diffsiam.models.unet import DiffusionModel

COLLAPSING = "the representation is collapsing: spread {spread:.3f}, participation ratio {participation:.1f}"


def make_task(
    name: str, cfg: Representation, images: Images, dm: DiffusionModel | None, device: torch.device
) -> loop.Task:
    """The training of method ``name`` on uint8 ``images``, with a frozen diffusion model where it has one."""
    method = methods.lookup(name)
    learner = Learner(method, cfg, images.shape[1], dm)
    averaged: dict[str, nn.Module] = {"encoder": learner.encoder}
    if learner.decoder is not None:
        averaged["decoder"] = learner.decoder
    return loop.Task(
        name,
        learner,
        averaged,
        images,
        make_batch(method, cfg, dm, device),
        ["view1", "view2"] * method.ssl + ["noise", "mirror"] * method.diffusion,
        frozen=dm,
        kept={} if learner.heads is None else {"heads": learner.heads},
        warnings={"spread": (cfg.collapse_below, math.inf, COLLAPSING)},
    )


class Learner(nn.Module):
    """What a method trains: encoder, and SimSiam's heads and the decoder where it has them."""

    def __init__(self, method: methods.Method, cfg: Representation, image_size: int, dm: DiffusionModel | None) -> None:
        super().__init__()
        self.method, self.cfg = method, cfg
        shape = cfg.encoder, cfg.encoder_width, image_size, cfg.dim
        self.encoder = encoder.build(*shape, cfg.stem, cfg.zero_init_residual, cfg.last_relu)
        self.heads = Heads(cfg.dim) if method.ssl else None
        self.decoder = None
        if dm is not None and method.diffusion:
            from diffsiam.models.decoder import Decoder

            self.decoder = Decoder(dm.unet, cfg.dim)
        self.edges: Tensor
        self.register_buffer("edges", method_edges(method, cfg), persistent=False)

    def forward(self, batch: dict[str, Any]) -> dict[str, Tensor]:
        """Loss and its parts, weighted into ``loss`` (Eq. 3.12), and the collapse measures."""
        parts: dict[str, Tensor] = {}
        loss = torch.zeros((), device=batch["x0"].device)
        names = ["view1", "view2"] * (self.heads is not None) + ["x0"] * (self.decoder is not None)
        views = dict(zip(names, of_views(self.encoder, *(batch[name] for name in names)), strict=True))
        if self.heads is not None:
            z = views["view1"]
            parts["ssl"], projection = self.heads(z, views["view2"])
            parts["projection_spread"] = spread(projection)
            loss = loss + self.cfg.ssl_weight * parts["ssl"]
        if self.decoder is not None:
            z = views["x0"]
            parts["diffusion"] = self.diffusion_loss(z, batch)
            loss = loss + self.cfg.diffusion_weight * parts["diffusion"]
        parts["spread"], parts["participation"] = spread(z.detach()), participation_ratio(z.detach())
        return {"loss": loss, **parts}

    def diffusion_loss(self, z: Tensor, batch: dict[str, Any]) -> Tensor:
        """Eq. 3.11 with the mean over pixels and batch in place of the squared norm; of noise, not of x0, where the
        batch holds that."""
        assert self.decoder is not None
        assert self.method.mask is not None
        zbar = segments.mask(z, batch["k"], self.edges, self.method.mask)
        compensation = batch["strength"] * self.decoder(zbar, batch["trunk"])
        error = (batch["target"] - batch["estimate"] - compensation).square().mean(dim=(1, 2, 3))
        return (batch["weight"].flatten() * error).mean()


def method_edges(method: methods.Method, cfg: Representation) -> Tensor:
    """The method's segments of z."""
    if method.segment == "timestep" and cfg.diti.stages and cfg.diti.dims_per_stage:
        return segments.staged_edges(cfg.dim, cfg.segments, TIMESTEPS, cfg.diti.stages, cfg.diti.dims_per_stage)
    return segments.even_edges(cfg.dim, cfg.segments)


def draw_steps(
    method: methods.Method, cfg: Representation, count: int, g: torch.Generator
) -> tuple[Tensor, Tensor, Tensor]:
    """Draw the step that is fed, the noise level, and the segment of each image: (t, t + k, k), int64 (count,).

    DiffSiam draws t ~ U{1..T-n} and k ~ U{1..n} (Algorithm 1) and feeds t, or t + k with ``time_input: noise_level``;
    PDAE and DiTi draw t ~ U{1..T} and add no steps.
    """
    low, high = (1, TIMESTEPS - cfg.segments) if method.segment == "extra_steps" else (1, TIMESTEPS)
    t = torch.randint(low, high + 1, (count,), generator=g, device=g.device)
    k = torch.randint(1, cfg.segments + 1, (count,), generator=g, device=g.device)
    if method.segment == "extra_steps":
        level = t + k
        return (level if cfg.time_input == "noise_level" else t), level, k
    if method.segment == "timestep":
        k = segments.segment_of_step(t - 1, cfg.segments, TIMESTEPS)
    return t, t, k


def diffusion_batch(
    dm: DiffusionModel,
    table: Schedule,
    method: methods.Method,
    cfg: Representation,
    x0: Tensor,
    g: torch.Generator,
    count: int | None = None,
    rows: slice = slice(None),
) -> dict[str, Any]:
    """The frozen side of Eq. 3.11 for images x0: noise them, and let the diffusion model reconstruct.

    The error is weight * |target - estimate - strength * g|^2. With ``loss_space: x0`` it is that of Eq. 3.11: x0, what
    the model makes of it, w and lambda. With ``noise`` it is PDAE's own: the noise, its prediction, the shift of the
    posterior mean, and the weight without SNR_t. At the same step the two are equal; with k further steps the frozen
    model's error weighs SNR_t / SNR_{t+k} times as much in the first.
    The network is fed ``t``; x0 is recovered at the true noise level; strength and weight are taken at the step fed.
    Where x0 is but the ``rows`` of a batch of ``count``, the draws are those of the whole batch.
    """
    count = count or len(x0)
    t, level, k = (value[rows] for value in draw_steps(method, cfg, count, g))
    noise = torch.randn((count, *x0.shape[1:]), generator=g, device=g.device)[rows]
    x = table.q_sample(x0, level, noise)
    trunk, predicted = dm(x, t)
    if cfg.loss_space == "noise":
        error = {
            "target": noise,
            "estimate": predicted,
            "strength": table.noise_shift(t),
            "weight": table.noise_weight(t),
        }
    else:
        x0_hat = table.x0_from_noise(x, level, predicted)
        error = {"target": x0, "estimate": x0_hat, "strength": table.guidance(t), "weight": table.weight(t)}
    return {"k": k, "trunk": trunk, **error}


def make_batch(
    method: methods.Method, cfg: Representation, dm: DiffusionModel | None, device: torch.device
) -> Callable[[Inputs], dict[str, Any]]:
    """The function that makes a step's batch: two views of the clean images, and the frozen side of Eq. 3.11 for them,
    mirrored where ``cfg.flip`` says so."""
    table = Schedule().to(device)

    def batch(inputs: Inputs) -> dict[str, Any]:
        g, count, rows = inputs.generators, inputs.batch_size, inputs.rows
        x0 = pixels.to_float(inputs.images())
        out: dict[str, Any] = {"x0": x0}
        if method.ssl:
            drawn = augment.draw(count, x0.shape[-1], cfg.views, g["view1"], g["view2"], rows=rows)
            out["view1"], out["view2"] = augment.apply(x0, drawn).chunk(2)
        if dm is not None:
            if cfg.flip:
                x0 = out["x0"] = inputs.mirror(x0, cfg.flip, "mirror")
            out |= diffusion_batch(dm, table, method, cfg, x0, g["noise"], count, rows)
        return out

    return batch
