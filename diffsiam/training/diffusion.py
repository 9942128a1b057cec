"""Pretraining of the diffusion model (Eq. 3.4, without its 1/(1 - abar_t) factor, as Ho et al. do)."""

from __future__ import annotations

import dataclasses
import sys
import time
from collections.abc import Callable
from pathlib import Path

import torch
from torch import Tensor, nn

from diffsiam import runtime
from diffsiam.data import pixels
from diffsiam.data.images import open_images
from diffsiam.diffusion import pretrained, schedule
from diffsiam.models.unet import DiffusionModel, feature_sides
from diffsiam.params import Diffusion, Runtime, Unet
from diffsiam.training import loop, record
from diffsiam.training.inputs import Inputs
from diffsiam.training.parallel import world


class NoisePrediction(nn.Module):
    """Mean squared error of the predicted noise."""

    def __init__(self, model: DiffusionModel) -> None:
        super().__init__()
        self.model = model

    def forward(self, batch: dict[str, Tensor]) -> dict[str, Tensor]:
        """Batch with ``x`` = x_t, ``t`` in 1..T and ``noise`` to the loss."""
        predicted = self.model.predict_noise(batch["x"], batch["t"])
        return {"loss": nn.functional.mse_loss(predicted, batch["noise"])}


def run(
    cfg: Diffusion, rt: Runtime, data: Path, out: Path, checkpoint: Path, root: Path, events: Path | None = None
) -> None:
    """Bring a diffusion model to ``out``, by pretraining or by fetching.

    Args:
        data: folder of the prepared data set that it is, or was, trained on.
        out: folder that gets a pipeline in diffusers' layout (see `pretrained.fetch`), training.json, history.csv.
        checkpoint: file to resume pretraining from.
        root: `data.root`, where fetched models are kept and images that are streamed lie.
        events: folder of TensorBoard events, where ``rt.tensorboard`` asks for them.
    """
    if cfg.source == "pretrain":
        pretrain(cfg, rt, data, out, checkpoint, root, events)
        return
    image_size = runtime.read_json(data / "meta.json")["image_size"]
    pretrained.fetch(cfg.fetch, image_size, out, root / "diffusion")
    with runtime.atomic(out / "history.csv") as temporary:
        temporary.write_text("step,loss\n")
    runtime.write_json(
        out / "training.json", {"fetched": dataclasses.asdict(cfg.fetch), "collected": runtime.provenance()}
    )


def pretrain(
    cfg: Diffusion, rt: Runtime, data: Path, out: Path, checkpoint: Path, root: Path, events: Path | None
) -> None:
    """Train on ``data``/images_train.npy (Eq. 3.4) and write the averaged weights to ``out``."""
    began = time.monotonic()
    device = runtime.select_device(rt)
    images = open_images(data / "images_train.npy", root)
    torch.manual_seed(runtime.derive_seed(cfg.seed, "weights"))
    model = DiffusionModel.create(cfg.unet, images.shape[1])
    plan = loop.Plan(
        steps=cfg.steps,
        batch_size=cfg.batch_size,
        seed=cfg.seed,
        optimizers=lambda module: make_optimizers(module, cfg),
        grad_clip=cfg.grad_clip,
        ema_decay=cfg.ema_decay,
        device=device,
        dtype=loop.precision(rt, device, max(cfg.unet.channels), checkpoint),
        checkpoint=checkpoint,
        checkpoint_minutes=rt.checkpoint_minutes,
        compile=rt.compile,
        graph=runtime.use_graph(rt, device),
        events=events if rt.tensorboard else None,
        identity=record.identity(data, diffusion=dataclasses.asdict(cfg), rt=rt, device=device),
    )
    task = loop.Task(
        "diffusion model", NoisePrediction(model), {"model": model}, images, make_batch(cfg, device), ["diffusion"]
    )
    with world(device) as here:
        if here.first and (absent := _without_attention(cfg.unet, images.shape[1])):
            print(f"diffusion model: {absent}", file=sys.stderr)
        history, averaged = loop.train(task, plan, here)
        if here.first:
            pretrained.write_pipeline(out)
            model.save(out, averaged["model"])
            record.finish(out / "training.json", out / "history.csv", plan, history, began)


def _without_attention(cfg: Unet, image_size: int) -> str:
    """Which of the sides that should have attention no feature map has, in words."""
    sides = feature_sides(cfg, image_size)
    absent = [str(side) for side in cfg.attention_resolutions if side not in sides]
    if not absent:
        return ""
    return (
        f"no attention at {', '.join(absent)} (diffusion.unet.attention_resolutions): the feature maps of images of "
        f"{image_size}x{image_size} are {', '.join(map(str, sides))} pixels a side"
    )


def make_batch(cfg: Diffusion, device: torch.device) -> Callable[[Inputs], dict[str, Tensor]]:
    """The function that makes a step's batch: images, mirrored or not, noised to steps drawn uniformly."""
    table = schedule.Schedule().to(device)

    def batch(inputs: Inputs) -> dict[str, Tensor]:
        g, count, rows = inputs.generators["diffusion"], inputs.batch_size, inputs.rows
        x0 = inputs.mirror(pixels.to_float(inputs.images()), cfg.flip, "diffusion")
        t = torch.randint(1, schedule.TIMESTEPS + 1, (count,), generator=g, device=device)[rows]
        noise = torch.randn((count, *x0.shape[1:]), generator=g, device=device)[rows]
        return {"x": table.q_sample(x0, t, noise), "t": t, "noise": noise}

    return batch


def make_optimizers(module: nn.Module, cfg: Diffusion) -> list[loop.Scheduled]:
    """Adam at a constant rate."""
    parameters = list(module.parameters())
    adam = torch.optim.Adam(parameters, fused=True, capturable=parameters[0].is_cuda)
    return [loop.Scheduled(adam, lambda step: cfg.learning_rate)]
