"""The z-conditioned diffusion model of Algorithms 2 and 3: the frozen U-Net with a trained encoder and decoder."""

from __future__ import annotations

import functools
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn

from diffsiam import graph, runtime
from diffsiam.diffusion import ddim
from diffsiam.diffusion.schedule import TIMESTEPS, Schedule
from diffsiam.errors import UserError
from diffsiam.evaluation.features import load_encoder
from diffsiam.models.codes import CodeDecoder, Only
from diffsiam.models.decoder import Decoder
from diffsiam.models.segments import even_edges, mask, recorded_edges, segment_of_step
from diffsiam.models.unet import WEIGHTS, DiffusionModel
from diffsiam.params import Generation
from diffsiam.training import methods


class Guided:
    """Encodes, inverts and samples images (N, 3, side, side) in [-1, 1], any N, ``cfg.batch_size`` at a time.

    Args:
        decoder: from z and the U-Net's trunk to the field, (N, 3, side, side).
        edges: (n + 1,), the segments of z.
        mask_by_step: hide from the decoder the segments after that of the current step, as DiTi's sampler does in
            counterfactuals; Algorithms 2 and 3 give the decoder the whole z at every step.
        captured: whether an evaluation of the networks is the replay of a CUDA graph.
        guidance: in place of ``cfg.guidance``.
    """

    def __init__(
        self,
        dm: DiffusionModel,
        encoder: nn.Module,
        decoder: nn.Module,
        edges: Tensor,
        cfg: Generation,
        *,
        mask_by_step: bool = False,
        device: torch.device | str = "cpu",
        captured: bool = False,
        guidance: str | None = None,
    ) -> None:
        for network in (dm, encoder, decoder):
            network.to(device).to(memory_format=torch.channels_last).eval().requires_grad_(False)
        self.dm, self.encoder, self.decoder = dm, encoder, decoder
        self.table = Schedule().to(device)
        self.edges, self.cfg, self.mask_by_step, self.device = edges, cfg, mask_by_step, torch.device(device)
        self.captured, self.guidance = captured, guidance or cfg.guidance
        self._edges = edges.to(device)
        self._evaluate = graph.Replayed(self._predict) if captured else self._predict

    @property
    def segments(self) -> int:
        """n."""
        return len(self.edges) - 1

    @functools.cached_property
    def whole(self) -> Guided:
        """The same networks without masks: what manipulation works with, DiTi's too (its authors' code)."""
        return self._with(self.decoder) if self.mask_by_step else self

    @property
    def coded(self) -> bool:
        """Whether the decoder has a field for each code (DisDiff)."""
        return isinstance(self.decoder, CodeDecoder)

    def only(self, codes: Sequence[int]) -> Guided:
        """The same networks where of a decoder with a field for each code only those of ``codes`` guide."""
        assert isinstance(self.decoder, CodeDecoder)
        return self._with(Only(self.decoder, codes))

    def _with(self, decoder: nn.Module) -> Guided:
        how: dict[str, Any] = {"device": self.device, "captured": self.captured, "guidance": self.guidance}
        return Guided(self.dm, self.encoder, decoder, self.edges, self.cfg, **how)

    def noise(self, z: Tensor | None) -> ddim.Model:
        """The noise that the model predicts given z (N, d); of the frozen U-Net alone where z is None. What a
        captured evaluation returned is overwritten by the next.

        With ``guidance: w_t`` x0_hat is u_theta(x_t, t) + w_t g_phi(z, x_t, t) (Algorithms 2, 3; in noise space
        `Schedule.noise_shift`), with ``score`` the noise is shifted by -sqrt(1 - abar_t) g_phi (Eq. 3.8).
        """
        return self._evaluate if z is None else lambda x, t: self._evaluate(x, t, z)

    def _predict(self, x: Tensor, t: Tensor, z: Tensor | None = None) -> Tensor:
        trunk, noise = self.dm(x, t)
        if z is None:
            return noise
        strength = self.table.noise_shift(t) if self.guidance == "w_t" else -self.table.sigma(t)
        return noise + strength * self.decoder(self._seen(z, t), trunk)

    def encode(self, x0: Tensor) -> Tensor:
        """z (N, d) of images."""
        return self._batches("encode", lambda x: self.encoder(x), x0)

    def invert(self, x0: Tensor, z: Tensor | None) -> Tensor:
        """x_T of images by the prediction conditioned on z, or by the frozen U-Net alone where z is None."""
        return self._integrate("invert", ddim.invert, x0, z, self.cfg.inversion_steps or self.cfg.steps)

    def sample(self, x_T: Tensor, z: Tensor | None) -> Tensor:
        """Images of noise x_T, as `invert`."""
        return self._integrate("sample", ddim.sample, x_T, z, self.cfg.steps)

    def estimate(self, x: Tensor, t: Tensor, z: Tensor | None) -> Tensor:
        """x0_hat in [-1, 1] of images x (N, 3, side, side) with the noise of steps t (N,), in one evaluation: given z
        (N, d) or (1, d), or of the frozen U-Net alone."""

        def run(x: Tensor, t: Tensor, *z: Tensor) -> Tensor:
            return self.table.x0_from_noise(x, t, self.noise(z[0] if z else None)(x, t)).clamp(-1, 1)

        return self._batches("restore", run, x, t, *([] if z is None else [z.expand(len(x), -1)]))

    def latents(self, x0: Tensor) -> tuple[Tensor, Tensor]:
        """(z, x_T) of images, inverted as ``cfg.inversion`` says."""
        z = self.encode(x0)
        return z, self.invert(x0, z if self.cfg.inversion == "conditioned" else None)

    def _seen(self, z: Tensor, t: Tensor) -> Tensor:
        if not self.mask_by_step:
            return z
        k = segment_of_step(t - 1, self.segments, TIMESTEPS)
        return mask(z, k, self._edges, "hierarchical")

    def _integrate(
        self, what: str, direction: Callable[..., Tensor], x: Tensor, z: Tensor | None, steps: int
    ) -> Tensor:
        cfg = self.cfg

        def run(x: Tensor, *z: Tensor) -> Tensor:
            model = self.noise(z[0] if z else None)
            return direction(model, x, steps, self.table, clip=cfg.clip, solver=cfg.solver)

        return self._batches(what, run, x, *([] if z is None else [z]))

    @torch.no_grad()
    def _batches(self, what: str, function: Callable[..., Tensor], *tensors: Tensor) -> Tensor:
        progress, done = runtime.Progress(len(tensors[0]), what, "images"), []
        for batch in zip(*(t.split(self.cfg.batch_size) for t in tensors), strict=True):
            x, *rest = (part.to(self.device) for part in batch)
            done.append(function(x.contiguous(memory_format=torch.channels_last), *rest).cpu())
            progress.update(len(x))
        progress.close()
        return torch.cat(done)


def load(
    representation: Path,
    diffusion: Path,
    cfg: Generation,
    device: torch.device | str,
    segments: int | None = None,
    *,
    captured: bool = False,
    guidance: str | None = None,
) -> Guided:
    """Read what stages `diffusion` and `representation` left: EMA weights of encoder and decoder.

    Args:
        segments: n of a method that was trained without segments (PDAE); None for that of its config.json.
        guidance: in place of ``cfg.guidance``.

    Raises:
        UserError: a file is missing, the method has no decoder, or the decoder was trained on another diffusion model.
    """
    config = runtime.read_json(representation / "config.json")
    method = methods.lookup(config["method"])
    if not method.decoder:
        able = ", ".join(name for name, m in methods.METHODS.items() if m.decoder)
        raise UserError(f"{representation}: {config['method']} has no decoder to make pictures with. Methods: {able}.")
    recorded = config["params"].get("diffusion_model")
    dm = DiffusionModel.load(diffusion)
    if recorded != (met := runtime.sha256(diffusion / WEIGHTS)):
        raise UserError(
            f"{representation} was trained on a diffusion model with checksum {recorded}, but {diffusion / WEIGHTS} "
            f"has {met}. Name the folder that it was trained on, or train it anew with Snakemake."
        )
    encoder, _ = load_encoder(representation / "encoder_ema.safetensors")
    codes = config["params"]["representation"].get("codes") if method.coded else None
    decoder: nn.Module = Decoder(dm.unet, config["dim"])
    if codes:
        decoder = CodeDecoder(dm.unet, codes["count"], codes["dim"], codes["embedding"])
    decoder.load_state_dict(runtime.load_weights(representation / "decoder_ema.safetensors"))
    edges = recorded_edges(config) if method.segment or segments is None else even_edges(config["dim"], segments)
    masks = method.segment == "timestep"
    return Guided(
        dm, encoder, decoder, edges, cfg, mask_by_step=masks, device=device, captured=captured, guidance=guidance
    )


def trained(results: Path) -> list[dict[str, Any]]:
    """What `load` could take below ``results``: pretrain, method and seed of each, sorted by name."""
    found = sorted(results.glob("representation/*/*/seed*/decoder_ema.safetensors"))
    return [dict(zip(("pretrain", "method", "seed"), path.parts[-4:-1], strict=True)) for path in found]
