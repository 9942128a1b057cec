"""Training of an encoder by any of the METHODS: SimSiam's term (Eq. 3.9), the diffusion term (Eq. 3.11), their sum."""

from __future__ import annotations

import dataclasses
import math
import time
from collections.abc import Callable
from pathlib import Path
from typing import TYPE_CHECKING, Any

import torch
from torch import Tensor, nn

from diffsiam import runtime
from diffsiam.data import augment, pixels
from diffsiam.data.images import Images, open_images
from diffsiam.diffusion.schedule import TIMESTEPS, Schedule
from diffsiam.errors import UserError
from diffsiam.models import segments
from diffsiam.models.encoder import Encoder
from diffsiam.models.simsiam import Heads, spread
from diffsiam.params import Optimizer, Representation, Runtime
from diffsiam.training import loop, methods, record
from diffsiam.training.inputs import Inputs
from diffsiam.training.parallel import World, world

if TYPE_CHECKING:  # diffusers takes seconds to import, and not every method has a diffusion model
    from diffsiam.models.unet import DiffusionModel


class Learner(nn.Module):
    """What a method trains: encoder, and SimSiam's heads and the decoder where it has them."""

    def __init__(self, method: methods.Method, cfg: Representation, image_size: int, dm: DiffusionModel | None) -> None:
        super().__init__()
        self.method, self.cfg = method, cfg
        self.encoder = Encoder(cfg.encoder_width, image_size)
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
        if self.heads is not None:
            z1, z2 = self.encoder(batch["view1"]), self.encoder(batch["view2"])
            parts["ssl"], projection = self.heads(z1, z2)
            parts["projection_spread"], z = spread(projection), z1
            loss = loss + self.cfg.ssl_weight * parts["ssl"]
        if self.decoder is not None:
            z = self.encoder(batch["x0"])
            parts["diffusion"] = self.diffusion_loss(z, batch)
            loss = loss + self.cfg.diffusion_weight * parts["diffusion"]
        parts["spread"] = spread(z.detach())
        return {"loss": loss, **parts}

    def diffusion_loss(self, z: Tensor, batch: dict[str, Any]) -> Tensor:
        """Eq. 3.11 with the mean over pixels and batch in place of the squared norm."""
        assert self.decoder is not None
        assert self.method.mask is not None
        zbar = segments.mask(z, batch["k"], self.edges, self.method.mask)
        compensation = batch["guidance"] * self.decoder(zbar, batch["trunk"])
        error = (batch["x0"] - batch["x0_hat"] - compensation).square().mean(dim=(1, 2, 3))
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

    The network is fed ``t``; ``x0_hat`` is recovered at the true noise level; w and lambda are taken at the step fed.
    Where x0 is but the ``rows`` of a batch of ``count``, the draws are those of the whole batch.
    """
    count = count or len(x0)
    t, level, k = (value[rows] for value in draw_steps(method, cfg, count, g))
    noise = torch.randn((count, *x0.shape[1:]), generator=g, device=g.device)[rows]
    x = table.q_sample(x0, level, noise)
    trunk, predicted = dm(x, t)
    x0_hat = table.x0_from_noise(x, level, predicted)
    return {
        "k": k,
        "trunk": trunk,
        "x0_hat": x0_hat,
        "guidance": table.guidance(t),
        "weight": table.weight(t),
    }


def run(
    name: str,
    cfg: Representation,
    rt: Runtime,
    data: Path,
    dm_folder: Path | None,
    out: Path,
    checkpoint: Path,
    *,
    seed: int,
    events: Path | None = None,
    root: Path = Path("resources"),
) -> None:
    """Train method ``name`` on ``data``/images_train.npy and write its weights, config.json and history.csv to ``out``,
    and the encoders on the way as encoder_step<N>.safetensors.

    Args:
        name: a row of METHODS.
        data: folder of a prepared data set.
        dm_folder: the frozen diffusion model, diffusers' layout; not read by methods without a diffusion term.
        checkpoint: file to resume from.
        seed: of the initial weights, the order of images, the views, and the noise.
        events: folder of TensorBoard events, where ``rt.tensorboard`` asks for them.
        root: `data.root`, where images that are streamed lie.
    Raises:
        UserError: no such method; it needs a diffusion model and there is none; whatever `loop.train` raises.
    """
    began = time.monotonic()
    method = methods.lookup(name)
    if method.diffusion and dm_folder is None:
        raise UserError(
            f"{name}: this method needs a diffusion model; name its folder with --diffusion, for instance "
            f"results/diffusion/{data.name}. Methods without one: "
            f"{', '.join(k for k, m in methods.METHODS.items() if not m.diffusion)}."
        )
    device = runtime.select_device(rt)
    images = open_images(data / "images_train.npy", root)
    used = {k: v for k, v in dataclasses.asdict(cfg).items() if f"representation.{k}" not in method.unused}
    dm, checksum = None, None
    if method.diffusion and dm_folder:
        from diffsiam.models.unet import WEIGHTS, DiffusionModel

        dm, checksum = DiffusionModel.load(dm_folder), runtime.sha256(dm_folder / WEIGHTS)
        dm.to(device).to(memory_format=torch.channels_last).hold(runtime.compute_dtype(rt, device))
    torch.manual_seed(runtime.derive_seed(seed, "weights"))
    learner = Learner(method, cfg, images.shape[1], dm)
    plan = loop.Plan(
        steps=cfg.steps,
        batch_size=cfg.batch_size,
        seed=seed,
        optimizers=lambda module: make_optimizers(module, cfg),
        grad_clip=cfg.grad_clip,
        ema_decay=cfg.ema_decay,
        device=device,
        dtype=runtime.compute_dtype(rt, device),
        checkpoint=checkpoint,
        checkpoint_minutes=rt.checkpoint_minutes,
        compile=rt.compile,
        graph=runtime.use_graph(rt, device),
        snapshots=methods.snapshot_steps(cfg.steps, cfg.snapshots) if method.trained else (),
        events=events if rt.tensorboard else None,
        identity=record.identity(
            data, representation=used, rt=rt, device=device, method=name, seed=seed, diffusion_model=checksum
        ),
    )
    with world(device) as here:
        history, means = fit(name, learner, images, dm, plan, here)
        if here.first:
            save(out, learner, means)
            for step in plan.snapshots:
                runtime.save_weights(
                    out / f"encoder_step{step}.safetensors", runtime.load_weights(snapshot(plan, step))
                )
            shape = {"encoder_width": cfg.encoder_width, "image_size": images.shape[1]}
            shape |= {"segments": cfg.segments, "dim": cfg.dim}
            record.finish(
                out / "config.json", out / "history.csv", plan, history, began, method=name, seed=seed, **shape
            )
            for step in plan.snapshots:
                snapshot(plan, step).unlink()


def snapshot(plan: loop.Plan, step: int) -> Path:
    """Where the encoder after ``step`` waits for the end of the run: beside the checkpoint, which outlives a kill."""
    return plan.checkpoint.with_name(f"{plan.checkpoint.stem}_step{step}.safetensors")


def fit(
    name: str, learner: Learner, images: Images, dm: DiffusionModel | None, plan: loop.Plan, here: World
) -> tuple[list[dict[str, float]], dict[str, dict[str, Tensor]]]:
    """Train the learner; history and averaged weights, as `loop.train` gives them. The control is not trained."""
    method, cfg = learner.method, learner.cfg
    if not method.trained:
        set_statistics(learner.encoder.to(plan.device), images, cfg.batch_size, plan.device)
        return [], {"encoder": learner.encoder.state_dict()}
    averaged: dict[str, nn.Module] = {"encoder": learner.encoder}
    if learner.decoder is not None:
        averaged["decoder"] = learner.decoder
    warning = (cfg.collapse_below, "the representation is collapsing")
    batch = make_batch(method, cfg, dm, plan.device)

    def keep(step: int) -> None:
        runtime.save_weights(snapshot(plan, step), learner.encoder.state_dict())

    purposes = ["view1", "view2"] * method.ssl + ["noise"] * method.diffusion
    task = loop.Task(name, learner, averaged, images, batch, purposes, dm, {"spread": warning}, keep)
    return loop.train(task, plan, here)


def save(out: Path, learner: Learner, means: dict[str, dict[str, Tensor]]) -> None:
    """Write the weights that the method leaves behind."""
    states = {"encoder": learner.encoder.state_dict(), "encoder_ema": means["encoder"]}
    if learner.decoder is not None:
        states["decoder_ema"] = means["decoder"]
    if learner.heads is not None:
        states["heads"] = learner.heads.state_dict()
    for stem in learner.method.weights:
        runtime.save_weights(out / f"{stem}.safetensors", states[stem])


def make_batch(
    method: methods.Method, cfg: Representation, dm: DiffusionModel | None, device: torch.device
) -> Callable[[Inputs], dict[str, Any]]:
    """The function that makes a step's batch: clean images, two views, and the frozen side of Eq. 3.11."""
    table = Schedule().to(device)

    def batch(inputs: Inputs) -> dict[str, Any]:
        g, count, rows = inputs.generators, inputs.batch_size, inputs.rows
        x0 = pixels.to_float(inputs.images())
        out: dict[str, Any] = {"x0": x0}
        if method.ssl:
            drawn = augment.draw(count, x0.shape[-1], cfg.views, g["view1"], g["view2"], rows=rows)
            out["view1"], out["view2"] = augment.apply(x0, drawn).chunk(2)
        if dm is not None:
            out |= diffusion_batch(dm, table, method, cfg, x0, g["noise"], count, rows)
        return out

    return batch


def make_optimizers(learner: nn.Module, cfg: Representation) -> list[loop.Scheduled]:
    """One optimiser for encoder and heads, one for the decoder, fused: one pass over all weights."""
    named = list(learner.named_parameters())
    parts = [(cfg.optimizer, [p for name, p in named if not name.startswith("decoder.")])]
    parts.append((cfg.decoder_optimizer, [p for name, p in named if name.startswith("decoder.")]))
    return [
        loop.Scheduled(make_optimizer(part, parameters), learning_rate(part, cfg.steps))
        for part, parameters in parts
        if parameters
    ]


def make_optimizer(cfg: Optimizer, parameters: list[nn.Parameter]) -> torch.optim.Optimizer:
    """SGD or Adam."""
    if cfg.name == "adam":
        on_gpu = parameters[0].is_cuda  # a graph needs Adam's count of steps there
        rate, decay = cfg.learning_rate, cfg.weight_decay
        return torch.optim.Adam(parameters, lr=rate, weight_decay=decay, fused=True, capturable=on_gpu)
    return torch.optim.SGD(
        parameters, lr=cfg.learning_rate, momentum=cfg.momentum, weight_decay=cfg.weight_decay, fused=True
    )


def learning_rate(cfg: Optimizer, steps: int) -> Callable[[int], float]:
    """Rate of each step: constant, or falling along half a cosine to 0."""
    if cfg.schedule == "constant":
        return lambda step: cfg.learning_rate
    return lambda step: cfg.learning_rate * 0.5 * (1 + math.cos(math.pi * step / steps))


@torch.no_grad()
def set_statistics(encoder: nn.Module, images: Images, batch_size: int, device: torch.device) -> None:
    """Set batch-norm statistics to their mean over one pass of ``images``; nothing else changes."""
    norms = [m for m in encoder.modules() if isinstance(m, nn.BatchNorm2d)]
    momenta = [norm.momentum for norm in norms]
    for norm in norms:
        norm.reset_running_stats()
        norm.momentum = None  # PyTorch's word for a plain mean over batches
    encoder.train()
    for start in range(0, len(images) - len(images) % batch_size or len(images), batch_size):
        encoder(pixels.to_float(images[start : start + batch_size].to(device)))
    for norm, momentum in zip(norms, momenta, strict=True):
        norm.momentum = momentum
