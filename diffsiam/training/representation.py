"""Training of an encoder by any of the METHODS: the stage. What is trained is the method's family's to say."""

from __future__ import annotations

import dataclasses
import math
import time
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import TYPE_CHECKING

import torch
from torch import Tensor, nn

from diffsiam import params, runtime
from diffsiam.data import pixels
from diffsiam.data.images import Images, open_images
from diffsiam.params import Optimizer, Representation, Runtime
from diffsiam.training import loop, methods, record
from diffsiam.training.parallel import world

if TYPE_CHECKING:  # diffusers takes seconds to import, and not every method has a diffusion model
    from diffsiam.models.unet import DiffusionModel


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
        raise methods.needs_diffusion(name, data.name)
    device = runtime.select_device(rt)
    images = open_images(data / "images_train.npy", root)
    used = params.select({"representation": dataclasses.asdict(cfg)}, ("representation",), method.unused)
    dm, checksum = None, None
    if method.diffusion and dm_folder:
        from diffsiam.models.unet import WEIGHTS, DiffusionModel

        dm, checksum = DiffusionModel.load(dm_folder), runtime.sha256(dm_folder / WEIGHTS)
        dm.to(device).to(memory_format=torch.channels_last)
    width = max(dm.unet.config.block_out_channels) if dm else cfg.dim
    dtype = loop.precision(rt, device, width, checkpoint)
    if dm is not None:
        dm.hold(dtype)
    torch.manual_seed(runtime.derive_seed(seed, "weights"))
    plan = loop.Plan(
        steps=cfg.steps,
        batch_size=cfg.batch_size,
        seed=seed,
        optimizers=lambda module: make_optimizers(module, cfg),
        grad_clip=cfg.grad_clip,
        ema_decay=cfg.ema_decay,
        device=device,
        dtype=dtype,
        checkpoint=checkpoint,
        checkpoint_minutes=rt.checkpoint_minutes,
        compile=rt.compile,
        graph=runtime.use_graph(rt, device),
        snapshots=methods.snapshot_steps(cfg.steps, cfg.snapshots) if method.trained else (),
        events=events if rt.tensorboard else None,
        identity=record.identity(data, **used, rt=rt, device=device, method=name, seed=seed, diffusion_model=checksum),
    )
    task = make_task(name, cfg, images, dm, device)

    def keep(step: int) -> None:
        runtime.save_weights(snapshot(plan, step), task.averaged["encoder"].state_dict())

    task = dataclasses.replace(task, snapshot=keep)
    with world(device) as here:
        if method.trained:
            history, means = loop.train(task, plan, here)
        else:
            history, means = untrained(task, plan)
        if here.first:
            save(out, task, means, method.weights)
            for step in plan.snapshots:
                runtime.save_weights(
                    out / f"encoder_step{step}.safetensors", runtime.load_weights(snapshot(plan, step))
                )
            shape = {"encoder": cfg.encoder, "encoder_width": cfg.encoder_width, "image_size": images.shape[1]}
            shape |= {"stem": cfg.stem, "last_relu": cfg.last_relu, "segments": cfg.segments, "dim": cfg.dim}
            record.finish(
                out / "config.json", out / "history.csv", plan, history, began, method=name, seed=seed, **shape
            )
            for step in plan.snapshots:
                snapshot(plan, step).unlink()


def snapshot(plan: loop.Plan, step: int) -> Path:
    """Where the encoder after ``step`` waits for the end of the run: beside the checkpoint, which outlives a kill."""
    return plan.checkpoint.with_name(f"{plan.checkpoint.stem}_step{step}.safetensors")


def make_task(
    name: str, cfg: Representation, images: Images, dm: DiffusionModel | None, device: torch.device
) -> loop.Task:
    """What method ``name`` trains on uint8 ``images``, with the frozen ``dm`` where it has one: its family's word."""
    if methods.lookup(name).family == "disdiff":
        from diffsiam.training.disdiff import make_task as make
    else:
        from diffsiam.training.diffsiam import make_task as make
    return make(name, cfg, images, dm, device)


def untrained(task: loop.Task, plan: loop.Plan) -> tuple[list[dict[str, float]], dict[str, dict[str, Tensor]]]:
    """The control in place of `loop.train`: nothing but the statistics of its batch norms is of the images."""
    encoder = task.averaged["encoder"].to(plan.device)
    set_statistics(encoder, task.images, plan.batch_size, plan.device)
    return [], {"encoder": encoder.state_dict()}


def save(out: Path, task: loop.Task, means: dict[str, dict[str, Tensor]], stems: Sequence[str]) -> None:
    """Write the weights that the method leaves behind: of ``stems``, those of the parts as they are, and averaged."""
    states = {name: part.state_dict() for name, part in {**task.averaged, **task.kept}.items()}
    states |= {f"{name}_ema": state for name, state in means.items()}
    for stem in stems:
        runtime.save_weights(out / f"{stem}.safetensors", states[stem])


def make_optimizers(learner: nn.Module, cfg: Representation) -> list[loop.Scheduled]:
    """One optimiser for encoder and heads, one for the decoder, fused: one pass over all weights; and one for SimSiam's
    predictor where its rate is fixed."""
    own = {"decoder.": cfg.decoder_optimizer}  # by the beginning of a weight's name
    if cfg.fixed_predictor_rate:
        own["heads.predictor."] = dataclasses.replace(cfg.optimizer, schedule="constant", warmup=0)
    named = list(learner.named_parameters())
    parts = [(cfg.optimizer, [p for name, p in named if not name.startswith(tuple(own))])]
    parts += [(part, [p for name, p in named if name.startswith(start)]) for start, part in own.items()]
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
    """Rate of each step: constant, or falling along half a cosine to 0; at first rising in proportion to the step."""

    def rate(step: int) -> float:
        falling = 0.5 * (1 + math.cos(math.pi * step / steps)) if cfg.schedule == "cosine" else 1.0
        return cfg.learning_rate * falling * min(1.0, (step + 1) / (cfg.warmup + 1))

    return rate


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
