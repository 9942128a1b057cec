"""Eq. 3.9 to 3.12 as they are trained, against literal loops over images."""

from __future__ import annotations

import copy
import dataclasses
import math
from pathlib import Path
from typing import Any

import pandas as pd
import pytest
import scipy.stats
import tiny
import torch
from torch import Tensor, nn

from diffsiam import params, runtime
from diffsiam.data import augment
from diffsiam.errors import UserError
from diffsiam.models import encoder as encoders
from diffsiam.models.encoder import Encoder
from diffsiam.models.unet import DiffusionModel
from diffsiam.params import Representation
from diffsiam.training import diffsiam as segmented
from diffsiam.training import representation
from diffsiam.training.methods import METHODS

WITH_DIFFUSION = [name for name, m in METHODS.items() if m.mask]
WHOLE, ALONE = ("pdae", "pdae_simsiam"), ("diffsiam_seq", "seq_alone")  # what of z the decoder is shown
DIFFSIAM = [name for name in WITH_DIFFUSION if name.startswith("diffsiam")]
ABAR = [1.0]
for _t in range(1000):
    ABAR.append(ABAR[-1] * (1 - (1e-4 + (0.02 - 1e-4) * _t / 999)))


def settings(**changes: Any) -> Representation:
    return tiny.section(Representation, **changes)


def make(name: str, cfg: Representation) -> tuple[segmented.Learner, DiffusionModel]:
    """A learner whose decoder is no longer silent, in training mode, and the model under it."""
    dm = tiny.diffusion_model()
    torch.manual_seed(1)
    learner = segmented.Learner(METHODS[name], cfg, tiny.SIDE, dm)
    if learner.decoder is not None:
        nn.init.normal_(learner.decoder.unet.conv_out.weight, std=0.3)
        nn.init.normal_(learner.decoder.unet.conv_out.bias, std=0.3)
    return learner.train(), dm


def batch_of(name: str, cfg: Representation, dm: DiffusionModel | None, count: int = 6) -> dict[str, Any]:
    make_one = segmented.make_batch(METHODS[name], cfg, dm, torch.device("cpu"))
    with torch.no_grad():
        return make_one(tiny.given(3, count))


# ------------------------------------------------------------------------------------------------------- draws
@pytest.mark.parametrize("time_input", ["t", "noise_level"])
@pytest.mark.parametrize("name", WITH_DIFFUSION)
def test_steps_and_segments_are_drawn_uniformly_from_the_methods_ranges(name: str, time_input: str) -> None:
    cfg = settings(encoder_width=8, segments=64, time_input=time_input)
    fed, level, k = segmented.draw_steps(METHODS[name], cfg, 60_000, runtime.generator(0, "draws"))
    assert fed.dtype == level.dtype == k.dtype == torch.int64
    if METHODS[name].segment == "extra_steps":
        t = level - k
        assert torch.equal(fed, t if time_input == "t" else level)
        assert (t.min(), t.max()) == (1, 936)  # Algorithm 1: U(1, T - n)
        assert (k.min(), k.max()) == (1, 64)
        assert abs(torch.corrcoef(torch.stack([t.double(), k.double()]))[0, 1]) < 0.02
        assert scipy.stats.chisquare(torch.bincount(k, minlength=65)[1:].numpy()).pvalue > 0.001
        high = 936
    else:
        assert torch.equal(fed, level)  # no extra steps
        assert (level.min(), level.max()) == (1, 1000)
        t, high = level, 1000
        if name == "diti":
            assert torch.equal(k, 1 + (level - 1) * 64 // 1000)
    assert scipy.stats.chisquare(torch.bincount(t, minlength=high + 1)[1:].numpy()).pvalue > 0.001


# ------------------------------------------------------------------------------------------------------ losses
def literal_mask(z: Tensor, k: int, edges: list[int], name: str) -> Tensor:
    """The thesis's zbar_k of one image, slice by slice."""
    out = torch.zeros_like(z)
    if name in WHOLE:
        out[:] = z
    elif name in ALONE:
        out[edges[k - 1] : edges[k]] = z[edges[k - 1] : edges[k]]
    else:
        out[: edges[k]] = z[: edges[k]]
    return out


def literal_diffusion_loss(
    name: str, learner: segmented.Learner, dm: DiffusionModel, x0: Tensor, z: Tensor, edges: list[int]
) -> float:
    """Eq. 3.11 image by image in float64, from the same draws, with diffusers' own forward for u_theta."""
    assert learner.decoder is not None
    cfg, method = learner.cfg, METHODS[name]
    g = runtime.generator(0, "noise", 3)
    fed, level, k = segmented.draw_steps(method, cfg, len(x0), g)
    noise = torch.randn(x0.shape, generator=g)
    total = 0.0
    for i in range(len(x0)):
        t, n = int(fed[i]), int(level[i])
        x = math.sqrt(ABAR[n]) * x0[i].double() + math.sqrt(1 - ABAR[n]) * noise[i].double()
        one = x.float()[None]
        step = torch.tensor([t])
        eps = dm.unet(one, step - 1).sample[0].double()
        x0_hat = (x - math.sqrt(1 - ABAR[n]) * eps) / math.sqrt(ABAR[n])
        zbar = literal_mask(z[i], int(k[i]), edges, name)
        gradient = learner.decoder(zbar[None], dm.trunk(one, step))[0].double()
        w = (1 - ABAR[t - 1]) / math.sqrt(ABAR[t - 1])
        snr = ABAR[t] / (1 - ABAR[t])
        if cfg.loss_space == "noise":  # PDAE's Eq. 14: its gamma is 0.1, its alpha_t is ABAR[t] / ABAR[t - 1]
            shift = -math.sqrt(ABAR[t] / ABAR[t - 1]) * (1 - ABAR[t - 1]) / math.sqrt(1 - ABAR[t])
            weight = (1 / (1 + snr)) ** 0.9 * (snr / (1 + snr)) ** 0.1
            error = noise[i].double() - (eps + shift * gradient)
        else:
            weight = snr * snr**0.1 / (1 + snr)
            error = x0[i].double() - (x0_hat + w * gradient)
        total += weight * float(error.pow(2).sum()) / error.numel()
    return total / len(x0)


@pytest.mark.parametrize("space", ["x0", "noise"])
@pytest.mark.parametrize("time_input", ["t", "noise_level"])
@pytest.mark.parametrize("name", WITH_DIFFUSION)
@torch.no_grad()
def test_diffusion_term_of_a_batch_is_equation_3_11_image_by_image(name: str, time_input: str, space: str) -> None:
    cfg = settings(time_input=time_input, loss_space=space)
    learner, dm = make(name, cfg)
    batch = batch_of(name, cfg, dm)
    x0 = torch.from_numpy(tiny.images()[:6]).permute(0, 3, 1, 2) / 127.5 - 1
    literal = literal_diffusion_loss(name, learner, dm, x0, learner.encoder(x0), [0, 2, 4, 6, 8])
    assert learner(batch)["diffusion"].item() == pytest.approx(literal, rel=1e-4)


@torch.no_grad()
def test_the_spaces_of_the_loss_agree_where_the_step_is_that_of_the_noise_and_differ_by_the_ratio_of_snr() -> None:
    snr = [abar / (1 - abar) for abar in ABAR[1:]]
    for name, time_input in (("pdae", "t"), ("diffsiam_hier", "noise_level"), ("diffsiam_hier", "t")):
        errors, levels = [], []
        for space in ("x0", "noise"):
            cfg = settings(time_input=time_input, loss_space=space, segments=8)
            batch = batch_of(name, cfg, tiny.diffusion_model())
            fed, level, _ = segmented.draw_steps(METHODS[name], cfg, 6, runtime.generator(0, "noise", 3))
            levels = [(int(a) - 1, int(b) - 1) for a, b in zip(fed, level, strict=True)]
            error = (batch["target"] - batch["estimate"]).square().mean(dim=(1, 2, 3))  # of the frozen model alone
            errors.append((batch["weight"].flatten() * error).tolist())
        ratios = [a / b for a, b in zip(*errors, strict=True)]
        assert ratios == pytest.approx([snr[t] / snr[n] for t, n in levels], rel=1e-3)
        assert (max(ratios) > 1.01) == (time_input == "t" and name == "diffsiam_hier")


@torch.no_grad()
def test_the_image_of_the_diffusion_term_is_mirrored_with_its_probability_and_the_views_are_not() -> None:
    plain, dm = settings(), tiny.diffusion_model()
    batches = {p: batch_of("diffsiam_hier", settings(flip=p), dm, 20) for p in (0.0, 0.4, 1.0)}
    x0 = torch.from_numpy(tiny.images()).permute(0, 3, 1, 2) / 127.5 - 1
    mirrored = {
        p: [torch.allclose(one, other.flip(2), atol=1e-6) for one, other in zip(batch["x0"], x0, strict=True)]
        for p, batch in batches.items()
    }
    assert [sum(mirrored[p]) for p in (0.0, 1.0)] == [0, 20]
    drawn = torch.rand(20, generator=runtime.generator(0, "mirror", 3)) < 0.4
    assert mirrored[0.4] == drawn.tolist()
    assert 0 < drawn.sum() < 20
    for p, batch in batches.items():
        assert torch.equal(batch["target"], batch["x0"])
        assert torch.equal(batch["view1"], batches[0.0]["view1"]), p
    part = segmented.make_batch(METHODS["diffsiam_hier"], dataclasses.replace(plain, flip=0.4), dm, torch.device("cpu"))
    rows = part(tiny.given(3, 20, rows=slice(5, 9)))
    assert torch.equal(rows["x0"], batches[0.4]["x0"][5:9])


@torch.no_grad()
def test_ditis_staged_widths_reach_the_loss() -> None:
    cfg = settings(diti={"stages": [300, 1000], "dims_per_stage": [1, 7]})  # segments start at 0, 250, 500, 750
    learner, dm = make("diti", cfg)
    x0 = torch.from_numpy(tiny.images()[:6]).permute(0, 3, 1, 2) / 127.5 - 1
    literal = literal_diffusion_loss("diti", learner, dm, x0, learner.encoder(x0), [0, 0, 1, 4, 8])
    assert learner(batch_of("diti", cfg, dm))["diffusion"].item() == pytest.approx(literal, rel=1e-4)
    assert learner.edges.tolist() == [0, 0, 1, 4, 8]


@pytest.mark.parametrize("name", ["simsiam", "diffsiam_hier"])
def test_simsiam_term_is_equation_3_9_of_two_different_views(name: str) -> None:
    cfg = settings()
    learner, dm = make(name, cfg)
    batch = batch_of(name, cfg, dm if METHODS[name].diffusion else None)
    assert learner.heads is not None
    f1, f2 = (learner.heads.projector(learner.encoder(batch[view])) for view in ("view1", "view2"))
    p1, p2 = learner.heads.predictor(f1), learner.heads.predictor(f2)
    cosines = [
        (p / p.norm(dim=1, keepdim=True) * f / f.norm(dim=1, keepdim=True)).sum(1) for p, f in [(p1, f2), (p2, f1)]
    ]
    literal = -(cosines[0] + cosines[1]).mean() / 2
    parts = learner(batch)
    assert parts["ssl"].item() == pytest.approx(literal.item(), abs=1e-5)
    units = (f1 / f1.norm(dim=1, keepdim=True)).detach()
    around = (units - units.mean(0)).square().sum(0) / (len(units) - 1)
    assert parts["projection_spread"].item() == pytest.approx(float(around.sqrt().mean()) * math.sqrt(32), abs=1e-5)
    for purpose in ("view1", "view2"):
        drawn = augment.draw(6, tiny.SIDE, cfg.views, runtime.generator(0, purpose, 3))
        assert torch.equal(batch[purpose], augment.apply(batch["x0"], drawn))
    assert not torch.allclose(batch["view1"], batch["view2"])
    assert not torch.allclose(batch["view1"], batch["x0"])


@pytest.mark.parametrize("name", [n for n in METHODS if METHODS[n].trained and not METHODS[n].coded])
def test_total_is_the_weighted_sum_of_the_methods_terms(name: str) -> None:
    cfg = settings(ssl_weight=0.7, diffusion_weight=3.0)
    learner, dm = make(name, cfg)
    batch = batch_of(name, cfg, dm if METHODS[name].diffusion else None)
    parts = learner(batch)
    terms = {"ssl": METHODS[name].ssl, "diffusion": METHODS[name].diffusion}
    assert {term for term in terms if term in parts} == {term for term, has in terms.items() if has}
    expected = 0.7 * parts.get("ssl", torch.zeros(())) + 3.0 * parts.get("diffusion", torch.zeros(()))
    assert parts["loss"].item() == pytest.approx(expected.item(), rel=1e-6)
    assert 0 <= parts["spread"].item() <= 1.5
    z = learner.encoder(batch["x0" if METHODS[name].diffusion else "view1"]).detach().double()
    eigenvalues = torch.linalg.eigvalsh(torch.cov(z.T))
    participation = eigenvalues.sum() ** 2 / eigenvalues.square().sum()
    assert parts["participation"].item() == pytest.approx(participation.item(), rel=1e-4)


def test_at_the_start_the_diffusion_term_is_the_frozen_models_own_error() -> None:
    cfg, dm = settings(), tiny.diffusion_model()
    learner = segmented.Learner(METHODS["diffsiam_hier"], cfg, tiny.SIDE, dm)
    batch = batch_of("diffsiam_hier", cfg, dm)
    error = batch["weight"] * (batch["x0"] - batch["estimate"]).square()
    assert learner(batch)["diffusion"].item() == pytest.approx(error.mean().item(), rel=1e-5)


class Leaf(nn.Module):
    """In place of the encoder: representations that are leaves, so that their gradient can be read."""

    def __init__(self, z: Tensor) -> None:
        super().__init__()
        self.z = nn.Parameter(z)

    def forward(self, x: Tensor) -> Tensor:
        return self.z


@pytest.mark.parametrize("name", WITH_DIFFUSION)
def test_gradient_of_the_loss_reaches_the_segments_that_the_method_trains(name: str) -> None:
    """All of z for PDAE, z_1 .. z_k for hierarchical, z_k alone for the detached and the sequential."""
    cfg = settings(ssl_weight=0.0)
    learner, dm = make(name, cfg)
    batch = batch_of(name, cfg, dm)
    leaf = Leaf(torch.randn(6, 8, generator=torch.Generator().manual_seed(2)))
    learner.encoder = leaf  # type: ignore[assignment]
    learner(batch)["loss"].backward()
    assert leaf.z.grad is not None
    expected = torch.zeros(6, 8, dtype=torch.bool)
    for i, k in enumerate(batch["k"].tolist()):
        start = 2 * (k - 1) if name in (*ALONE, "diffsiam_hier_detach") else 0
        expected[i, start : 8 if name in WHOLE else 2 * k] = True
    assert torch.equal(leaf.z.grad != 0, expected)
    assert len(set(batch["k"].tolist())) > 1


@pytest.mark.parametrize("name", WITH_DIFFUSION)
def test_training_leaves_the_frozen_model_alone_and_moves_all_of_the_learner(name: str) -> None:
    cfg = settings()
    learner, dm = make(name, cfg)
    before = {k: v.clone() for k, v in dm.state_dict().items()}
    learner(batch_of(name, cfg, dm))["loss"].backward()
    assert all(p.grad is None for p in dm.parameters())
    for scheduled in representation.make_optimizers(learner, cfg):
        scheduled.optimizer.step()
    assert all(torch.equal(v, before[k]) for k, v in dm.state_dict().items())
    without = [n for n, p in learner.named_parameters() if p.grad is None]
    assert without == []


def test_rows_of_a_batch_are_those_of_the_whole() -> None:
    cfg, dm = settings(), tiny.diffusion_model()
    make_one = segmented.make_batch(METHODS["diffsiam_hier"], cfg, dm, torch.device("cpu"))
    with torch.no_grad():
        whole, part = make_one(tiny.given(3, 6)), make_one(tiny.given(3, 6, rows=slice(2, 4)))
    assert torch.equal(part["k"], whole["k"][2:4])
    for key in ("x0", "view1", "view2", "target", "estimate", "strength", "weight"):
        assert torch.allclose(part[key], whole[key][2:4], atol=1e-4), key


def test_a_step_draws_anew_and_the_same_step_draws_the_same() -> None:
    cfg, dm = settings(), tiny.diffusion_model()
    make_one = segmented.make_batch(METHODS["diffsiam_hier"], cfg, dm, torch.device("cpu"))
    with torch.no_grad():
        a, b, other = (make_one(tiny.given(step, 6)) for step in (3, 3, 4))
    for key in ("view1", "view2", "estimate"):
        assert torch.equal(a[key], b[key])
        assert not torch.equal(a[key], other[key])


# -------------------------------------------------------------------------------------------------- optimisers
def test_encoder_and_heads_have_one_optimiser_and_the_decoder_another() -> None:
    cfg = settings(decoder_optimizer={"weight_decay": 0.25})
    learner, _ = make("diffsiam_hier", cfg)
    first, second = representation.make_optimizers(learner, cfg)
    assert learner.heads is not None
    assert learner.decoder is not None

    def held(scheduled: Any) -> set[int]:
        return {id(p) for group in scheduled.optimizer.param_groups for p in group["params"]}

    assert held(first) == {id(p) for part in (learner.encoder, learner.heads) for p in part.parameters()}
    assert held(second) == {id(p) for p in learner.decoder.parameters()}
    assert type(first.optimizer) is torch.optim.SGD
    assert type(second.optimizer) is torch.optim.Adam
    group = first.optimizer.param_groups[0]
    assert (group["momentum"], group["weight_decay"]) == (0.9, 5e-4)
    assert second.optimizer.param_groups[0]["weight_decay"] == 0.25


@pytest.mark.parametrize("fixed", [True, False])
def test_simsiams_predictor_keeps_its_rate_or_decays_with_the_rest(fixed: bool) -> None:
    """Three steps against one plain optimiser with the groups and rates of SimSiam's official main_simsiam.py."""
    cfg = settings(fixed_predictor_rate=fixed, optimizer={"warmup": 0}, grad_clip=None)
    learner, _ = make("simsiam", cfg)
    twin = copy.deepcopy(learner)
    ours = representation.make_optimizers(learner, cfg)
    assert twin.heads is not None
    groups = [
        {"params": [*twin.encoder.parameters(), *twin.heads.projector.parameters()], "fix_lr": False},
        {"params": list(twin.heads.predictor.parameters()), "fix_lr": fixed},
    ]
    plain = torch.optim.SGD(groups, lr=0.05, momentum=0.9, weight_decay=5e-4)
    for epoch in range(3):
        for scheduled in ours:
            for group in scheduled.optimizer.param_groups:
                group["lr"] = scheduled.rate(epoch)
        for group in plain.param_groups:
            cosine = 0.05 * 0.5 * (1.0 + math.cos(math.pi * epoch / cfg.steps))
            group["lr"] = 0.05 if group["fix_lr"] else cosine
        batch = batch_of("simsiam", cfg, None)
        for module, optimizers in ((learner, [s.optimizer for s in ours]), (twin, [plain])):
            module.zero_grad()
            module(batch)["loss"].backward()
            for optimizer in optimizers:
                optimizer.step()
    for (name, p), q in zip(learner.named_parameters(), twin.parameters(), strict=True):
        assert torch.allclose(p, q, rtol=1e-5, atol=1e-7), name
    predictor = learner.heads.predictor[0].weight if learner.heads else None
    held = [s for s in ours for group in s.optimizer.param_groups for p in group["params"] if p is predictor]
    assert [[s.rate(step) for step in (0, 3, 5)] for s in held] == [
        pytest.approx([0.05, 0.05, 0.05] if fixed else [0.05, 0.025, 0.05 * (1 - math.sqrt(0.75)) / 2])
    ]


def test_learning_rate_is_half_a_cosine_to_zero_or_constant() -> None:
    cosine = params.Optimizer("sgd", 0.05, 0.9, 5e-4, "cosine", 0)
    rate = representation.learning_rate(cosine, 200)
    assert [rate(0), rate(100), rate(200)] == pytest.approx([0.05, 0.025, 0])
    assert rate(50) == pytest.approx(0.05 * (1 + math.sqrt(0.5)) / 2)
    constant = representation.learning_rate(dataclasses.replace(cosine, schedule="constant"), 200)
    assert {constant(s) for s in range(200)} == {0.05}


def test_learning_rate_rises_in_proportion_over_the_warm_up() -> None:
    warm = representation.learning_rate(params.Optimizer("adam", 0.1, 0.9, 0.0, "constant", 4), 20)
    assert [warm(step) for step in range(6)] == pytest.approx([0.02, 0.04, 0.06, 0.08, 0.1, 0.1])


# ------------------------------------------------------------------------------------------------------- runs
def run(name: str, top: Path, *, seed: int = 0, out: str = "out", dm: bool = True, **changes: Any) -> Path:
    data, folder = tiny.data(top / "data"), tiny.saved_diffusion_model(top / "dm")
    representation.run(
        name, settings(**changes), tiny.section(params.Runtime), data, folder if dm else None, top / out,
        top / "checkpoint.pt", seed=seed,
    )  # fmt: skip
    return top / out


@pytest.mark.parametrize("name", ["untrained", "simsiam", "pdae", "diti", "diffsiam_hier_detach", "disdiff"])
def test_run_leaves_the_methods_files_and_no_checkpoint(name: str, tmp_path: Path) -> None:
    codes = {"codes": tiny.CODES | {"dim": 2}} if METHODS[name].coded else {}
    out = run(name, tmp_path, dm=METHODS[name].diffusion, **codes)
    assert {p.name for p in out.iterdir()} == {f"{stem}.safetensors" for stem in METHODS[name].weights} | {
        "config.json",
        "history.csv",
    }
    assert not (tmp_path / "checkpoint.pt").exists()
    config = runtime.read_json(out / "config.json")
    assert (config["method"], config["seed"], config["dim"], config["image_size"]) == (name, 0, 8, tiny.SIDE)
    assert config["segments"] == 4
    recorded = {f"representation.{key}" for key in config["params"]["representation"]}
    left_out = {leaf for leaf in METHODS[name].unused if leaf.count(".") == 1}
    assert recorded.isdisjoint(left_out)
    assert len(recorded) + len(left_out) == len(dataclasses.fields(params.Representation))
    history = pd.read_csv(out / "history.csv")
    if not METHODS[name].trained:
        assert history.empty
        assert list(history) == ["step", "loss"]
    else:
        assert history["step"].tolist() == [1, 2, 3, 4, 5, 6]
        assert history["learning_rate"][0] == pytest.approx(0.05)
        raw, averaged = (runtime.load_weights(out / f"{stem}.safetensors") for stem in ("encoder", "encoder_ema"))
        assert any(not torch.equal(raw[k], averaged[k]) for k in raw)
        encoders.recorded(config).load_state_dict(averaged)


def test_encoders_kept_on_the_way_are_those_of_shorter_runs(tmp_path: Path) -> None:
    constant = dataclasses.asdict(settings().optimizer) | {"schedule": "constant"}
    whole = run("simsiam", tmp_path, snapshots=3, optimizer=constant)
    kept = sorted(p.stem for p in whole.glob("encoder_step*"))
    assert kept == ["encoder_step2", "encoder_step4", "encoder_step6"]
    for step in (2, 4, 6):
        shorter = run("simsiam", tmp_path, out=f"short{step}", steps=step, optimizer=constant)
        there = runtime.load_weights(whole / f"encoder_step{step}.safetensors")
        alone = runtime.load_weights(shorter / "encoder.safetensors")
        assert all(torch.equal(there[k], alone[k]) for k in alone)
    assert not list(tmp_path.glob("checkpoint*"))


def test_the_same_seed_gives_the_same_bits_and_another_seed_others(tmp_path: Path) -> None:
    outs = [run("diffsiam_hier", tmp_path, seed=s, out=o) for s, o in [(0, "a"), (0, "b"), (1, "c")]]
    a, b, c = (runtime.load_weights(out / "encoder.safetensors") for out in outs)
    assert all(torch.equal(a[k], b[k]) for k in a)
    assert not torch.equal(a["conv1.weight"], c["conv1.weight"])


def test_untrained_is_the_initial_encoder_of_the_other_methods_with_statistics_of_the_images(tmp_path: Path) -> None:
    """Batches of 8 of 20 images: two whole ones are taken, the mean over batches kept."""
    untrained = runtime.load_weights(run("untrained", tmp_path, seed=3, dm=False) / "encoder.safetensors")
    dm = tiny.diffusion_model()
    torch.manual_seed(runtime.derive_seed(3, "weights"))
    initial = segmented.Learner(METHODS["diffsiam_hier"], settings(), tiny.SIDE, dm).encoder
    names = {name for name, _ in initial.named_parameters()}
    for name, value in initial.state_dict().items():
        if name in names:
            assert torch.equal(untrained[name], value), name
    x = torch.from_numpy(tiny.images()).permute(0, 3, 1, 2) / 127.5 - 1
    hidden = [initial.conv1(x[i : i + 8]) for i in (0, 8)]
    mean = torch.stack([h.mean(dim=(0, 2, 3)) for h in hidden]).mean(0)
    variance = torch.stack([h.var(dim=(0, 2, 3)) for h in hidden]).mean(0)
    assert torch.allclose(untrained["bn1.running_mean"], mean, atol=1e-6)
    assert torch.allclose(untrained["bn1.running_var"], variance, rtol=1e-5)
    assert untrained["layer4.0.bn2.running_var"].ne(1).all()


def test_setting_statistics_leaves_weights_and_momentum_alone() -> None:
    encoder = Encoder(1, tiny.SIDE)
    before = {k: v.clone() for k, v in encoder.state_dict().items()}
    representation.set_statistics(encoder, torch.from_numpy(tiny.images()), 64, torch.device("cpu"))
    changed = {k for k, v in encoder.state_dict().items() if not torch.equal(v, before[k])}
    assert changed
    assert all("running" in k or "num_batches" in k for k in changed)
    assert {m.momentum for m in encoder.modules() if isinstance(m, nn.BatchNorm2d)} == {0.1}


def test_a_method_with_a_diffusion_term_is_refused_without_a_diffusion_model(tmp_path: Path) -> None:
    with pytest.raises(UserError, match="--diffusion"):
        run("diffsiam_hier", tmp_path, dm=False)
    assert not (tmp_path / "out").exists()


def test_an_unknown_method_is_refused(tmp_path: Path) -> None:
    with pytest.raises(UserError, match="diffsiam_hierarchical"):
        run("diffsiam_hierarchical", tmp_path)
