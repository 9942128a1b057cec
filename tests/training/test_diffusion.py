"""Pretraining of the diffusion model against a plain PyTorch loop."""

from __future__ import annotations

import math
from pathlib import Path

import numpy as np
import pandas as pd
import pytest
import tiny
import torch
from diffusers import DDPMPipeline, UNet2DModel
from torch.nn import functional

from diffsiam import params, runtime
from diffsiam.models.unet import WEIGHTS, DiffusionModel
from diffsiam.training import diffusion
from diffsiam.training.inputs import Inputs

STEPS, BATCH = 7, 8  # 56 images: all 20 almost three times


def abar_table() -> torch.Tensor:
    values = [1.0]
    for t in range(1, 1001):
        values.append(values[-1] * (1 - (1e-4 + (0.02 - 1e-4) * (t - 1) / 999)))
    return torch.tensor(values)


def plain_loop(cfg: params.Diffusion) -> tuple[list[float], dict[str, torch.Tensor]]:
    """Ho et al.'s loss, Adam, clipping and averaging written out, from the draws that the method names."""
    torch.manual_seed(runtime.derive_seed(cfg.seed, "weights"))
    net = DiffusionModel.create(cfg.unet, tiny.SIDE).unet
    optimizer = torch.optim.Adam(net.parameters(), lr=cfg.learning_rate)
    average = {name: p.detach().clone() for name, p in net.named_parameters()}
    order = np.concatenate([runtime.rng(cfg.seed, "order", epoch).permutation(tiny.IMAGES) for epoch in range(3)])
    images, abar, losses = torch.from_numpy(tiny.images()), abar_table(), []
    for step in range(cfg.steps):
        chosen = order[step * BATCH : (step + 1) * BATCH]
        x0 = images[torch.from_numpy(chosen)].permute(0, 3, 1, 2).float() / 127.5 - 1
        g = runtime.generator(cfg.seed, "diffusion", step)
        flip = torch.rand(BATCH, generator=g) < cfg.flip
        x0 = torch.stack([image.flip(2) if f else image for image, f in zip(x0, flip, strict=True)])
        t = torch.randint(1, 1001, (BATCH,), generator=g)
        noise = torch.randn(x0.shape, generator=g)
        level = abar[t][:, None, None, None]
        predicted = net(level.sqrt() * x0 + (1 - level).sqrt() * noise, t - 1).sample
        loss = (predicted - noise).square().mean()
        optimizer.zero_grad()
        loss.backward()
        if cfg.grad_clip is not None:
            norm = torch.stack([p.grad.square().sum() for p in net.parameters() if p.grad is not None]).sum().sqrt()
            for p in net.parameters():
                assert p.grad is not None
                p.grad *= min(1.0, cfg.grad_clip / float(norm))
        optimizer.step()
        decay = min(cfg.ema_decay, (1 + step) / (10 + step))
        for name, p in net.named_parameters():
            average[name] = decay * average[name] + (1 - decay) * p.detach()
        losses.append(loss.item())
    return losses, average


@pytest.mark.parametrize("clip", [None, 0.5])
def test_pretraining_is_the_plain_loop(clip: float | None, tmp_path: Path) -> None:
    cfg = tiny.section(params.Diffusion, steps=STEPS, batch_size=BATCH, learning_rate=0.01, grad_clip=clip)
    diffusion.run(
        cfg, tiny.section(params.Runtime), tiny.data(tmp_path / "data"), tmp_path / "out", tmp_path / "c.pt", tmp_path
    )
    losses, average = plain_loop(cfg)
    history = pd.read_csv(tmp_path / "out" / "history.csv")
    assert history["loss"].tolist() == pytest.approx(losses, rel=1e-4)
    assert losses[-1] < losses[0]
    weights = runtime.load_weights(tmp_path / "out" / WEIGHTS)
    assert weights.keys() == average.keys()
    torch.manual_seed(runtime.derive_seed(cfg.seed, "weights"))
    start = DiffusionModel.create(cfg.unet, tiny.SIDE).unet.state_dict()
    # Adam divides a gradient by its own size, so where it is all rounding (softmax does not see the bias of a key) two
    # sums of the same numbers part: the whole way is compared, not each number.
    apart = sum(float((weights[name] - value).square().sum()) for name, value in average.items())
    way = sum(float((start[name] - value).square().sum()) for name, value in average.items())
    assert math.sqrt(apart / way) < 0.01
    assert not (tmp_path / "c.pt").exists()
    assert ("grad_norm" in history) == (clip is not None)


def test_the_trained_model_is_read_by_diffusers_and_by_us(tmp_path: Path) -> None:
    cfg = tiny.section(params.Diffusion)
    diffusion.run(
        cfg, tiny.section(params.Runtime), tiny.data(tmp_path / "data"), tmp_path / "out", tmp_path / "c.pt", tmp_path
    )
    x, t = torch.randn(2, 3, tiny.SIDE, tiny.SIDE), torch.tensor([1, 900])
    with torch.no_grad():
        ours = DiffusionModel.load(tmp_path / "out").predict_noise(x, t)
        pipeline = DDPMPipeline.from_pretrained(tmp_path / "out", local_files_only=True)
        theirs = UNet2DModel.from_pretrained(tmp_path / "out").eval()(x, t - 1).sample
        assert torch.equal(pipeline.unet.eval()(x, t - 1).sample, theirs)
    assert torch.allclose(ours, theirs, atol=1e-5)
    assert torch.allclose(pipeline.scheduler.alphas_cumprod, abar_table()[1:], rtol=1e-5)
    pipeline.set_progress_bar_config(disable=True)
    assert pipeline(num_inference_steps=2, output_type="np").images.shape == (1, tiny.SIDE, tiny.SIDE, 3)
    record = runtime.read_json(tmp_path / "out" / "training.json")
    assert record["params"]["diffusion"]["steps"] == cfg.steps
    assert record["precision"] == "float32"


@pytest.mark.parametrize(("sides", "said"), [([4], ""), ([4, 5, 16], "no attention at 5, 16"), ([], "")])
def test_attention_that_no_feature_map_gets_is_told(
    sides: list[int], said: str, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    cfg = tiny.section(params.Diffusion, steps=1, unet={"attention_resolutions": sides})
    rt, data = tiny.section(params.Runtime), tiny.data(tmp_path / "data")
    diffusion.run(cfg, rt, data, tmp_path / "out", tmp_path / "c.pt", tmp_path)
    printed = capsys.readouterr().err
    assert ("no attention" in printed) == bool(said)
    assert said in printed


def test_noise_prediction_is_the_mean_squared_error_on_the_noise() -> None:
    """Eq. 3.4 without its weight, which is 1 / (1 - abar_t) on the noise."""
    model = tiny.diffusion_model()
    x, noise = torch.randn(4, 3, tiny.SIDE, tiny.SIDE), torch.randn(4, 3, tiny.SIDE, tiny.SIDE)
    t = torch.tensor([1, 10, 500, 1000])
    got = diffusion.NoisePrediction(model)({"x": x, "t": t, "noise": noise})["loss"]
    assert got.item() == pytest.approx(functional.mse_loss(model.unet(x, t - 1).sample, noise).item(), rel=1e-5)


def test_rows_of_a_batch_are_those_of_the_whole() -> None:
    cfg, cpu = tiny.section(params.Diffusion), torch.device("cpu")
    made = []
    for rows in (slice(None), slice(3, 8)):
        given = Inputs(torch.from_numpy(tiny.images()), 8, 0, cpu, rows=rows, purposes=["diffusion"])
        given.load(2)
        made.append(diffusion.make_batch(cfg, cpu)(given))
    whole, part = made
    for name, value in part.items():
        assert torch.equal(value, whole[name][3:]), name


def test_dropout_is_on_in_training_and_off_in_evaluation() -> None:
    unet = tiny.section(params.Diffusion, unet={"dropout": 0.5}).unet
    model = DiffusionModel.create(unet, tiny.SIDE)
    x, t = torch.randn(2, 3, tiny.SIDE, tiny.SIDE), torch.tensor([5, 600])
    with torch.no_grad():
        for p in model.parameters():
            p.add_(0.1 * torch.randn(p.shape))
        model.train()
        assert not torch.equal(model.predict_noise(x, t), model.predict_noise(x, t))
        model.eval()
        assert torch.equal(model.predict_noise(x, t), model.predict_noise(x, t))
