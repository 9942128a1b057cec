"""The family of DisDiff as it is trained: its start, what its losses reach, what it leaves out."""

from __future__ import annotations

import copy
import math
from typing import Any

import numpy as np
import pytest
import tiny
import torch
from torch import Tensor

from diffsiam import params, runtime
from diffsiam.diffusion.schedule import TIMESTEPS, Schedule
from diffsiam.errors import UserError
from diffsiam.models.unet import Trunk
from diffsiam.training import disdiff, disentangle, representation
from diffsiam.training.loop import Task
from diffsiam.training.methods import METHODS

COUNT = 8
CPU = torch.device("cpu")


def settings(**changes: Any) -> params.Representation:
    return tiny.section(params.Representation, encoder_width=2, codes=tiny.CODES | changes)


def task_of(name: str, **changes: Any) -> Task:
    images, dm = torch.from_numpy(tiny.images()), tiny.diffusion_model()
    return representation.make_task(name, settings(**changes), images, dm, CPU)


def made(name: str = "disdiff", *, awake: bool = True, **changes: Any) -> tuple[disdiff.Learner, dict[str, Any]]:
    """A learner in training mode and a batch; ``awake`` fields are not the zeros of the start."""
    torch.manual_seed(1)
    task = task_of(name, **changes)
    assert isinstance(task.module, disdiff.Learner)
    if awake:
        tiny.wake(task.module)
    return task.module.train(), task.batch(tiny.given(0, COUNT))


def gradients(learner: disdiff.Learner, loss: Tensor, part: str) -> list[Tensor]:
    parameters = [p for name, p in learner.named_parameters() if name.startswith(part)]
    found = torch.autograd.grad(loss, parameters, retain_graph=True, allow_unused=True)
    return [torch.zeros_like(p) if g is None else g for p, g in zip(parameters, found, strict=True)]


# ------------------------------------------------------------------------------------------------------ the start
def test_at_the_start_nothing_is_guided_and_the_loss_is_the_frozen_models_own() -> None:
    learner, batch = made(awake=False)
    parts = learner(batch)
    n = tiny.CODES["count"]
    assert parts["invariant"].item() == pytest.approx(math.log(n), rel=1e-6)
    assert parts["variant"].item() == pytest.approx(math.log(n), rel=1e-6)
    assert parts["gamma"].item() == 0
    own = (batch["noise"] - batch["predicted"]).abs().mean()
    assert parts["loss"].item() == pytest.approx(own.item(), rel=1e-6)


# ------------------------------------------------------------------------------------------------------- formulas
def test_the_reconstruction_is_the_mean_absolute_error_of_the_shifted_noise() -> None:
    learner, batch = made("disdiff_plain")
    parts = learner(batch)
    each = {f"field_{c}" for c in range(1, 5)}
    assert set(parts) == {"loss", "reconstruction", "active", "spread", "participation"} | each
    fields = learner.decoder.fields(learner.encoder(batch["x0"]), batch["trunk"])
    assert parts["field_3"].item() == pytest.approx(fields[:, 2].abs().mean().item(), rel=1e-5)
    errors = []
    for i in range(COUNT):
        total = sum(fields[i, c] for c in range(fields.shape[1]))
        errors.append((batch["noise"][i] - (batch["predicted"][i] + batch["shift"][i] * total)).abs().mean())
    assert parts["loss"].item() == pytest.approx(torch.stack(errors).mean().item(), rel=1e-5)


def test_the_reconstruction_can_be_pdaes() -> None:
    """With the same field, the loss of the PDAE row."""
    learner, batch = made("disdiff_plain", reconstruction="pdae")
    total = learner.decoder(learner.encoder(batch["x0"]), batch["trunk"])
    error = (batch["x0"] - batch["x0_hat"] - batch["guidance"] * total).square().mean(dim=(1, 2, 3))
    expected = (batch["weight"].flatten() * error).mean()
    assert learner(batch)["loss"].item() == pytest.approx(expected.item(), rel=1e-5)


def test_the_disentangling_loss_is_its_formula_image_by_image() -> None:
    learner, batch = made(weight=0.7)
    fresh, parts = copy.deepcopy(learner), learner(batch)
    z, n = copy.deepcopy(learner.encoder)(batch["x0"]), tiny.CODES["count"]
    learner.requires_grad_(False).encoder.eval()
    total, rows = 0.0, []
    for i in range(COUNT):
        c = int(batch["code"][i])
        trunk, row = batch["trunk"], slice(i, i + 1)
        one = Trunk(trunk.time[row], tuple(skip[row] for skip in trunk.skips), trunk.hidden[row])
        field = learner.decoder.fields(z[i : i + 1], one)[:, c]
        x0_hat = batch["x0_hat"][i : i + 1]
        guided = x0_hat + batch["gain"][i] * field
        images = learner.encoder(x0_hat), learner.encoder(guided)
        own, bar, hat = (t.unflatten(1, (n, -1)) for t in (z[row], *images))
        a = (hat - bar).norm(dim=2)
        b = (bar - own).norm(dim=2) - (hat - own).norm(dim=2)
        losses = [-a.log_softmax(1)[0, c].item(), -b.log_softmax(1)[0, c].item()]
        gamma = 0.7 * (x0_hat - guided).square().mean().item() / batch["variance"]
        total += gamma * sum(losses) * batch["counts"][i].item()
        rows.append([*losses, float(a[0].argmax() == c), float(b[0].argmax() == c), gamma])
    assert 0 < batch["counts"].sum() < COUNT, "the batch needs steps of both kinds"
    assert parts["disentangling"].item() == pytest.approx(total / COUNT, rel=1e-4)
    assert parts["loss"].item() == pytest.approx(parts["reconstruction"].item() + total / COUNT, rel=1e-5)
    names, told = ("invariant", "variant", "invariant_accuracy", "variant_accuracy", "gamma"), np.array(rows)
    assert 0 < told[:, 2].mean() != told[:, 3].mean() < 1
    alone = [(counts, copy.deepcopy(fresh)(batch | {"counts": counts})) for counts in torch.eye(COUNT)]
    for counts, found in ((batch["counts"], parts), *alone):
        expected = told[counts.bool().numpy()].mean(axis=0).tolist()
        assert [found[name].item() for name in names] == pytest.approx(expected, rel=1e-4)
        assert found["largest_gamma"].item() == pytest.approx(told[counts.bool().numpy(), -1].max(), rel=1e-4)


def test_a_code_is_active_whose_most_varied_number_varies_enough(monkeypatch: pytest.MonkeyPatch) -> None:
    """A code's numbers by their deviations: one above .05 will do, and .06, not .04, is above it."""
    learner, batch = made("disdiff_plain")
    deviations = torch.tensor([[0.06, 0, 0], [0.04, 0.04, 0.04], [0, 0, 0], [1, 0.001, 0]]).flatten()
    z = torch.tensor([-1.0, 1.0]).repeat(COUNT // 2)[:, None] * deviations * ((COUNT - 1) / COUNT) ** 0.5
    monkeypatch.setattr(learner.encoder, "forward", lambda x: z)
    assert learner(batch)["active"].item() == 2


def test_constant_weighting_is_lambda_itself() -> None:
    learner, batch = made(weight=0.7, weighting="constant", least_signal=0.0)
    parts = learner(batch)
    assert parts["gamma"].item() == pytest.approx(0.7)
    assert parts["disentangling"].item() == pytest.approx(
        0.7 * (parts["invariant"] + parts["variant"]).item(), rel=1e-6
    )


@pytest.mark.parametrize(("least", "last"), [(0.02, 620), (0.0, TIMESTEPS)])
def test_steps_with_too_little_signal_do_not_count(least: float, last: int) -> None:
    _, batch = made(least_signal=least)
    beyond = Schedule().sigma(torch.tensor([last])).square() / Schedule().signal(torch.tensor([last]))
    assert batch["counts"].tolist() == (batch["gain"].flatten() <= 1.0001 * beyond.item()).float().tolist()


def test_a_batch_is_the_frozen_models_reconstruction_of_noised_images_and_the_literal_factors() -> None:
    dm = tiny.diffusion_model()
    batch = disdiff.make_batch(settings().codes, torch.from_numpy(tiny.images()), dm, CPU)(tiny.given(3, COUNT))
    g = runtime.generator(0, "noise", 3)
    t = torch.randint(1, 1001, (COUNT,), generator=g)
    noise, code = torch.randn(COUNT, 3, 8, 8, generator=g), torch.randint(0, 4, (COUNT,), generator=g)
    assert torch.equal(batch["code"], code)
    assert torch.equal(batch["noise"], noise)
    for i in range(COUNT):
        betas = np.linspace(1e-4, 0.02, 1000)[: int(t[i])]
        abar, before, alpha = np.prod(1 - betas), np.prod(1 - betas[:-1]), 1 - betas[-1]
        x0 = torch.from_numpy(tiny.images()[i]).permute(2, 0, 1).double() / 127.5 - 1
        x = (abar**0.5 * x0 + (1 - abar) ** 0.5 * noise[i].double()).float()
        with torch.no_grad():
            predicted = dm.predict_noise(x[None], t[i : i + 1])[0]
        assert torch.allclose(batch["predicted"][i], predicted, rtol=1e-3, atol=1e-4)
        x0_hat = (x.double() - (1 - abar) ** 0.5 * predicted.double()) / abar**0.5
        assert torch.allclose(batch["x0_hat"][i].double(), x0_hat, rtol=1e-3, atol=1e-4 / abar**0.5)
        literal = {
            "gain": (1 - abar) / abar**0.5,
            "shift": -(alpha**0.5) * (1 - before) / (1 - abar) ** 0.5,
            "guidance": (1 - before) / before**0.5,
            "weight": (abar / (1 - abar)) ** 1.1 * (1 - abar),
        }
        for name, value in literal.items():
            assert batch[name][i].item() == pytest.approx(value, rel=1e-4), name


def test_the_step_before_the_first_with_too_little_signal_is_the_last_that_counts() -> None:
    t = int(torch.randint(1, 1001, (COUNT,), generator=runtime.generator(0, "noise", 0))[0])
    abar = Schedule().abar[[t - 1, t, t + 1]].tolist()
    for least, counted in (((abar[0] + abar[1]) / 2, False), ((abar[1] + abar[2]) / 2, True)):
        _, batch = made(least_signal=least)
        assert bool(batch["counts"][0]) == counted


def test_steps_codes_and_noise_are_drawn_for_each_image() -> None:
    task = task_of("disdiff")
    drawn = [task.batch(tiny.given(step, 16)) for step in range(20)]
    codes = torch.cat([batch["code"] for batch in drawn])
    assert codes.unique().tolist() == [0, 1, 2, 3]
    assert codes.bincount().min() > 320 / 4 / 2
    assert torch.cat([batch["gain"] for batch in drawn]).unique().numel() > 200
    again = task.batch(tiny.given(0, 16))
    assert torch.equal(again["noise"], drawn[0]["noise"])
    half = task.batch(tiny.given(0, 16, rows=slice(8, 16)))
    assert torch.equal(half["code"], drawn[0]["code"][8:])


def test_the_variance_is_that_of_all_pixels() -> None:
    images = torch.from_numpy(tiny.images())
    assert disdiff.pixel_variance(images) == pytest.approx(float((images.double() / 127.5 - 1).var()), rel=1e-5)


# ------------------------------------------------------------------------------------------------------ gradients
def test_the_encoder_learns_of_the_loss_through_the_code_that_guides_and_by_no_other_way() -> None:
    learner, batch = made(least_signal=0.0)
    own = gradients(learner, learner(batch)["disentangling"], "encoder.")
    # The same with two encoders, of which the second only measures.
    other = copy.deepcopy(learner.encoder).requires_grad_(False).eval()
    cfg, n = learner.codes, tiny.CODES["count"]
    z = learner.encoder(batch["x0"])
    field = learner.decoder.fields(z, batch["trunk"])[torch.arange(COUNT), batch["code"]]
    guided = disentangle.conditioned_x0(batch["x0_hat"], batch["gain"], field)
    of = disentangle.distances(*(t.unflatten(1, (n, -1)) for t in (z.detach(), other(batch["x0_hat"]), other(guided))))
    gamma = cfg.weight * (batch["x0_hat"] - guided.detach()).square().mean(dim=(1, 2, 3)) / batch["variance"]
    loss = (gamma * sum(disentangle.cross_entropies(of, batch["code"]))).mean()
    expected = gradients(learner, loss, "encoder.")
    assert max(float(g.abs().max()) for g in expected) > 0
    scale = max(float(g.abs().max()) for g in expected)
    assert all(torch.allclose(a, b, rtol=1e-3, atol=1e-4 * scale) for a, b in zip(own, expected, strict=True))


def test_the_encoder_can_be_kept_from_the_loss_while_the_decoder_learns_of_it() -> None:
    learner, batch = made(encoder_gradient="none", least_signal=0.0)
    loss = learner(batch)["disentangling"]
    assert all(not g.any() for g in gradients(learner, loss, "encoder."))
    assert any(g.any() for g in gradients(learner, loss, "decoder."))
    through_code, same = made(encoder_gradient="code", least_signal=0.0)
    assert loss.item() == pytest.approx(through_code(same)["disentangling"].item(), rel=1e-5)


def test_the_whole_encoder_can_learn_of_the_loss() -> None:
    """By the code that guides, by the image's own codes and by both reconstructions': nothing is held."""
    learner, batch = made(encoder_gradient="full", least_signal=0.0, weighting="constant")
    plain, n = copy.deepcopy(learner), tiny.CODES["count"]
    found = gradients(learner, learner(batch)["disentangling"], "encoder.")
    z = plain.encoder(batch["x0"])
    field = plain.decoder.fields(z, batch["trunk"])[torch.arange(COUNT), batch["code"]]
    plain.encoder.eval()
    others = plain.encoder(batch["x0_hat"]), plain.encoder(batch["x0_hat"] + batch["gain"] * field)
    own, bar, hat = (code.unflatten(1, (n, -1)) for code in (z, *others))
    a, b = (hat - bar).norm(dim=2), (bar - own).norm(dim=2) - (hat - own).norm(dim=2)
    loss = plain.codes.weight * sum(torch.nn.functional.cross_entropy(x, batch["code"]) for x in (a, b))
    expected = gradients(plain, loss, "encoder.")
    scale = max(float(g.abs().max()) for g in expected)
    assert scale > 0
    assert all(torch.allclose(x, y, rtol=1e-3, atol=1e-4 * scale) for x, y in zip(found, expected, strict=True))


@pytest.mark.parametrize("gradient", ["code", "none", "full"])
def test_statistics_move_by_the_pass_over_the_images_alone(gradient: str) -> None:
    learner, batch = made(encoder_gradient=gradient)
    other = copy.deepcopy(learner.encoder)
    learner(batch)
    other(batch["x0"])
    for (name, value), (_, expected) in zip(learner.encoder.named_buffers(), other.named_buffers(), strict=True):
        assert torch.equal(value, expected), name
    assert learner.encoder.training


def test_the_frozen_model_never_has_a_gradient() -> None:
    dm = tiny.diffusion_model()
    task = representation.make_task("disdiff", settings(), torch.from_numpy(tiny.images()), dm, CPU)
    task.module(task.batch(tiny.given(0, COUNT)))["loss"].backward()
    assert all(p.grad is None for p in dm.parameters())


# -------------------------------------------------------------------------------------------------------- symmetry
def test_codes_exchanged_together_with_their_embeddings_change_nothing() -> None:
    learner, batch = made("disdiff_plain", embedding="learned")
    order = torch.tensor([2, 0, 3, 1])
    z = learner.encoder(batch["x0"]).unflatten(1, (4, -1))
    before = learner.decoder(z.flatten(1), batch["trunk"])
    assert learner.decoder.table is not None
    with torch.no_grad():
        learner.decoder.table.copy_(learner.decoder.table[order])
    after = learner.decoder(z[:, order].flatten(1), batch["trunk"])
    assert torch.allclose(before, after, rtol=1e-4, atol=1e-5)


# -------------------------------------------------------------------------------------------------------- messages
def test_a_method_with_codes_on_a_data_set_without_is_refused() -> None:
    with pytest.raises(UserError, match=r"representation\.codes: null, but disdiff needs codes"):
        representation.make_task(
            "disdiff", tiny.section(params.Representation), torch.from_numpy(tiny.images()), tiny.diffusion_model(), CPU
        )


def test_distances_that_run_away_are_warned_of_beyond_twice_the_logarithm() -> None:
    task = task_of("disdiff")
    assert {name: high for name, (_, high, _) in task.warnings.items()} == dict.fromkeys(
        ("invariant", "variant"), 2 * math.log(4)
    )
    assert task.warnings["variant"][2].format(value=3.0) == (
        "the distances of codes run away (3.000); lower representation.codes.weight"
    )


def test_every_method_of_a_data_set_with_codes_has_their_encoder() -> None:
    learners = {
        name: representation.make_task(
            name, settings(), torch.from_numpy(tiny.images()), tiny.diffusion_model() if m.diffusion else None, CPU
        ).averaged["encoder"]
        for name, m in METHODS.items()
    }
    assert {type(e).__name__ for e in learners.values()} == {"ConvEncoder"}
    z = {tuple(e.eval()(torch.zeros(2, 3, tiny.SIDE, tiny.SIDE)).shape) for e in learners.values()}
    assert z == {(2, 12)}
