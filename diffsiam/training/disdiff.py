"""DisDiff (Yang et al. 2023): an encoder whose codes each have a gradient field on the frozen diffusion model, and a
loss that makes the fields speak of different factors."""

from __future__ import annotations

import math
from collections.abc import Callable
from typing import Any

import torch
from torch import Tensor, nn

from diffsiam.data import pixels
from diffsiam.data.images import Images
from diffsiam.diffusion.schedule import TIMESTEPS, Schedule
from diffsiam.errors import UserError
from diffsiam.models import encoder
from diffsiam.models.codes import CodeDecoder
from diffsiam.models.simsiam import participation_ratio, spread
from diffsiam.models.unet import DiffusionModel
from diffsiam.params import Codes, Representation
from diffsiam.training import disentangle, loop, methods
from diffsiam.training.inputs import Inputs

_IMAGES = 4096  # of which the variance of pixels is taken
_ACTIVE = 0.05  # standard deviation of its largest number, over a batch, from which a code counts as used


def make_task(
    name: str, cfg: Representation, images: Images, dm: DiffusionModel | None, device: torch.device
) -> loop.Task:
    """The training of method ``name`` on uint8 ``images`` with the frozen diffusion model ``dm``.

    Raises:
        UserError: no codes are given.
    """
    if cfg.codes is None:
        raise UserError(
            f"representation.codes: null, but {name} needs codes. Give count and dim, as overrides in "
            "workflow/presets/demo.yaml do for rooms, or take the method out."
        )
    assert dm is not None
    learner = Learner(methods.lookup(name), cfg, images.shape[1], dm)
    high = 2 * math.log(cfg.codes.count)
    runaway = "the distances of codes run away ({value:.3f}); lower representation.codes.weight"
    return loop.Task(
        name,
        learner,
        {"encoder": learner.encoder, "decoder": learner.decoder},
        images,
        make_batch(cfg.codes, images, dm, device),
        ["noise"],
        frozen=dm,
        warnings={key: (0.0, high, runaway) for key in ("invariant", "variant") if learner.method.disentangle},
    )


class Learner(nn.Module):
    """Encoder and code decoder, and their loss: L_r + gamma (L_in + L_va), means over the batch."""

    def __init__(self, method: methods.Method, cfg: Representation, image_size: int, dm: DiffusionModel) -> None:
        super().__init__()
        assert cfg.codes is not None
        self.method, self.codes = method, cfg.codes
        self.encoder = encoder.build(cfg.encoder, cfg.encoder_width, image_size, cfg.dim)
        self.decoder = CodeDecoder(dm.unet, cfg.codes.count, cfg.codes.dim, cfg.codes.embedding)

    def forward(self, batch: dict[str, Any]) -> dict[str, Tensor]:
        """Loss and its parts, and how the codes are used."""
        z = self.encoder(batch["x0"])
        fields = self.decoder.fields(z, batch["trunk"])
        parts = {"reconstruction": self.reconstruction(fields.sum(1), batch)}
        loss = parts["reconstruction"]
        if self.method.disentangle:
            parts |= self.disentangling(z, fields, batch)
            loss = loss + parts["disentangling"]
        sizes = fields.detach().abs().mean(dim=(0, 2, 3, 4))  # of each field: one that takes all leaves the others idle
        parts |= {f"field_{c}": size for c, size in enumerate(sizes.unbind(), start=1)}
        used = z.detach().unflatten(1, (self.codes.count, -1)).std(dim=0).amax(dim=1) >= _ACTIVE
        parts["active"], parts["spread"] = used.sum(), spread(z.detach())
        parts["participation"] = participation_ratio(z.detach())
        return {"loss": loss, **parts}

    def reconstruction(self, total: Tensor, batch: dict[str, Any]) -> Tensor:
        """L_r of the sum of all fields, (B, 3, H, W): Eq. 8 as the authors' code has it, or PDAE's."""
        if self.codes.reconstruction == "l1":
            return (batch["noise"] - (batch["predicted"] + batch["shift"] * total)).abs().mean()
        error = batch["x0"] - batch["x0_hat"] - batch["guidance"] * total
        return (batch["weight"] * error.square()).mean()

    def disentangling(self, z: Tensor, fields: Tensor, batch: dict[str, Any]) -> dict[str, Tensor]:
        """gamma (L_in + L_va) and its parts; where the image is all but gone it does not count."""
        cfg, drawn, counts = self.codes, batch["code"], batch["counts"]
        full = cfg.encoder_gradient == "full"
        if cfg.encoder_gradient == "none":
            field = self.decoder.field(z.detach(), batch["trunk"], drawn)
        else:
            field = fields[torch.arange(len(z), device=z.device), drawn]
        guided = disentangle.conditioned_x0(batch["x0_hat"], batch["gain"], field)
        with torch.set_grad_enabled(full):
            unguided = disentangle.frozen(self.encoder, batch["x0_hat"], attached=full)
        codes = (z if full else z.detach(), unguided, disentangle.frozen(self.encoder, guided, attached=full))
        of = disentangle.distances(*(code.unflatten(1, (cfg.count, -1)) for code in codes))
        invariant, variant = disentangle.cross_entropies(of, drawn)
        gamma = cfg.weight * torch.ones_like(counts)
        if cfg.weighting == "difference":
            gamma = cfg.weight * disentangle.difference_weight(batch["x0_hat"], guided, batch["variance"])
        gamma = gamma * counts
        share = counts / counts.sum().clamp_min(1)
        return {
            "disentangling": (gamma * (invariant + variant)).mean(),
            "invariant": (share * invariant).sum(),
            "variant": (share * variant).sum(),
            "invariant_accuracy": (share * (of.invariant.argmax(1) == drawn)).sum(),
            "variant_accuracy": (share * (of.variant.argmax(1) == drawn)).sum(),
            "gamma": (share * gamma).sum(),
            "largest_gamma": gamma.max(),
        }


def make_batch(
    cfg: Codes, images: Images, dm: DiffusionModel, device: torch.device
) -> Callable[[Inputs], dict[str, Any]]:
    """The function that makes a step's batch: clean images, the frozen model's reconstruction of them from a step drawn
    uniformly, and one code drawn for each."""
    table = Schedule().to(device)
    variance = pixel_variance(images)

    def batch(inputs: Inputs) -> dict[str, Any]:
        g, count, rows = inputs.generators["noise"], inputs.batch_size, inputs.rows
        x0 = pixels.to_float(inputs.images())
        t = torch.randint(1, TIMESTEPS + 1, (count,), generator=g, device=device)[rows]
        noise = torch.randn((count, *x0.shape[1:]), generator=g, device=device)[rows]
        code = torch.randint(0, cfg.count, (count,), generator=g, device=device)[rows]
        x = table.q_sample(x0, t, noise)
        trunk, predicted = dm(x, t)
        return {
            "x0": x0,
            "noise": noise,
            "code": code,
            "trunk": trunk,
            "predicted": predicted,
            "x0_hat": table.x0_from_noise(x, t, predicted),
            "shift": table.noise_shift(t),
            "gain": table.sigma(t).square() / table.signal(t),
            "guidance": table.guidance(t),
            "weight": table.weight(t),
            "variance": variance,
            "counts": (table.abar[t] >= cfg.least_signal).float(),
        }

    return batch


def pixel_variance(images: Images) -> float:
    """Variance of the pixels in [-1, 1] of uint8 ``images``, or of some thousands of them evenly spaced."""
    rows = torch.linspace(0, len(images) - 1, min(len(images), _IMAGES), device="cpu").long()
    return float(pixels.to_float(images[rows]).var())
