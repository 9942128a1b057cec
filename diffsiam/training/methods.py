"""The methods: what each masks, weighs and leaves behind. Nothing here imports PyTorch: Snakemake reads this table."""

from __future__ import annotations

from dataclasses import dataclass

from diffsiam.errors import UserError

_DISENTANGLING = ("weight", "least_signal", "weighting", "encoder_gradient")  # keys of `params.Codes`


@dataclass(frozen=True)
class Method:
    """One row of the tables.

    Attributes:
        title: the name in tables and figures.
        family: the module with its loss and its batch: ``diffsiam`` (a decoder that is told the masked z) or
            ``disdiff`` (a gradient field for each code of z); or ``frozen``, the diffusion model itself
            (`diffsiam.evaluation.frozen`).
        mask: strategy of `diffsiam.models.segments.mask`; None for a method without a diffusion term.
        segment: what chooses the segment k: ``extra_steps`` draws k ~ U{1..n} and adds k forward steps (Eq. 3.11),
            ``timestep`` is DiTi's k = 1 + floor(t * n / T), None has no segments and no extra steps (PDAE).
        ssl: whether the SimSiam term is part of the loss.
        disentangle: whether the fields are made to speak of different factors (DisDiff Eq. 13).
        trained: False for the control at its initialisation.
    """

    title: str
    family: str = "diffsiam"
    mask: str | None = None
    segment: str | None = None
    ssl: bool = False
    disentangle: bool = False
    trained: bool = True

    @property
    def diffusion(self) -> bool:
        """Whether the method needs a diffusion model."""
        return self.decoder or self.frozen

    @property
    def decoder(self) -> bool:
        """Whether the method trains a decoder on the diffusion model."""
        return self.mask is not None or self.coded

    @property
    def frozen(self) -> bool:
        """Whether the encoder is a piece of the diffusion model, which `params.FrozenDm` chooses."""
        return self.family == "frozen"

    @property
    def coded(self) -> bool:
        """Whether z is made of codes with a field each, so that `params.Codes` must be given."""
        return self.family == "disdiff"

    @property
    def weights(self) -> tuple[str, ...]:
        """Stems of the weight files that training leaves."""
        names = ["encoder", "encoder_ema"]
        return tuple(names + ["decoder_ema"] * self.decoder + ["heads"] * self.ssl)

    @property
    def unused(self) -> tuple[str, ...]:
        """Keys of representation in params.yaml that the method's weights do not depend on: a warning's threshold, and
        what belongs to terms of the loss, segments or a training that the method does not have."""
        if self.frozen:  # what it depends on is no part of representation
            return ()
        keys = ["collapse_below"] + ["decoder_optimizer"] * (not self.decoder)
        keys += ["diffusion_weight", "loss_space", "flip"] * (self.mask is None)
        keys += ["stem", "zero_init_residual", "last_relu"] * self.coded
        keys += ["codes.embedding", "codes.reconstruction"] * (not self.coded)
        keys += [f"codes.{key}" for key in _DISENTANGLING] * (not self.disentangle)
        keys += ["ssl_weight", "fixed_predictor_rate", "views"] * (not self.ssl) + ["segments"] * (self.segment is None)
        keys += ["time_input"] * (self.segment != "extra_steps") + ["diti"] * (self.segment != "timestep")
        keys += ["steps", "optimizer", "grad_clip", "ema_decay", "snapshots"] * (not self.trained)
        return tuple(f"representation.{key}" for key in keys)


METHODS = {
    "untrained": Method("Untrained", trained=False),
    "frozen_dm": Method("Frozen DM", family="frozen", trained=False),
    "simsiam": Method("SimSiam", ssl=True),
    "pdae": Method("PDAE", mask="full"),
    "pdae_simsiam": Method("PDAE with SimSiam", mask="full", ssl=True),
    "diti": Method("DiTi", mask="hierarchical", segment="timestep"),
    "seq_alone": Method("Seq. without SimSiam", mask="sequential", segment="extra_steps"),
    "diffsiam_seq": Method("DiffSiam seq.", mask="sequential", segment="extra_steps", ssl=True),
    "diffsiam_hier": Method("DiffSiam hier.", mask="hierarchical", segment="extra_steps", ssl=True),
    "diffsiam_hier_detach": Method(
        "DiffSiam hier. detached", mask="hierarchical_detach", segment="extra_steps", ssl=True
    ),
    "disdiff_plain": Method("DisDiff without L_dis", family="disdiff"),
    "disdiff": Method("DisDiff", family="disdiff", disentangle=True),
}


def snapshot_steps(steps: int, count: int) -> list[int]:
    """``count`` evenly spaced steps (fewer where there are fewer), the last at the end."""
    return sorted({-(-i * steps // count) for i in range(1, count + 1)})


def needs_diffusion(name: str, dataset: str) -> UserError:
    """What is said where ``name`` is to be trained on ``dataset`` without the diffusion model that it needs."""
    return UserError(
        f"{name}: this method needs a diffusion model; name its folder with --diffusion, for instance "
        f"results/diffusion/{dataset}. Methods without one: "
        f"{', '.join(name for name, method in METHODS.items() if not method.diffusion)}."
    )


def lookup(name: str) -> Method:
    """The row called ``name``; an unknown name is a `UserError` that lists them."""
    if name not in METHODS:
        raise UserError(f"unknown method {name!r}. Methods: {', '.join(METHODS)}.")
    return METHODS[name]
