"""A step on tensors that stay in place is the step that one writes by hand, over and over."""

from __future__ import annotations

import copy
import math
from typing import Any

import pytest
import tiny
import torch
from torch import Tensor, nn

from diffsiam import params, runtime
from diffsiam.data import augment
from diffsiam.training import representation
from diffsiam.training.inputs import Inputs
from diffsiam.training.methods import METHODS
from diffsiam.training.step import Average, Step

TRAINED = [name for name, method in METHODS.items() if method.trained]
COUNT, STEPS, EMA = 6, 3, 0.4


def in_float64(batch: Any) -> Any:
    """The numbers of a batch in float64."""
    if isinstance(batch, dict):
        return {key: in_float64(value) for key, value in batch.items()}
    if isinstance(batch, tuple):
        parts = [in_float64(value) for value in batch]
        return type(batch)(*parts) if hasattr(batch, "_fields") else tuple(parts)
    return batch.double() if isinstance(batch, Tensor) and batch.is_floating_point() else batch


def filled(into: Any, values: Any) -> None:
    """Copy a batch into the places of another."""
    if isinstance(into, Tensor):
        into.copy_(values)
    elif isinstance(into, float):
        assert into == values
    elif isinstance(into, dict):
        for key, value in into.items():
            filled(value, values[key])
    else:
        for a, b in zip(into, values, strict=True):
            filled(a, b)


def by_hand(
    learner: nn.Module, cfg: params.Representation, batches: list[dict[str, Any]], clip: float | None
) -> tuple[dict[str, Tensor], list[float]]:
    """Averages and losses of the plain loop: its own batches, gradients and rates at every step."""
    rate = [cfg.optimizer.learning_rate * 0.5 * (1 + math.cos(math.pi * step / cfg.steps)) for step in range(STEPS)]
    slower = [r * cfg.decoder_optimizer.learning_rate / cfg.optimizer.learning_rate for r in rate]
    encoder = [p for name, p in learner.named_parameters() if not name.startswith("decoder.")]
    optimizers: list[torch.optim.Optimizer] = [torch.optim.SGD(encoder, 1.0, 0.9, weight_decay=5e-4)]
    if decoder := [p for name, p in learner.named_parameters() if name.startswith("decoder.")]:
        optimizers.append(torch.optim.Adam(decoder, 1.0))
    average = {name: p.detach().clone() for name, p in learner.named_parameters()}
    losses = []
    for step, batch in enumerate(batches):
        for optimizer, rates in zip(optimizers, (rate, slower), strict=False):
            optimizer.zero_grad()
            for group in optimizer.param_groups:
                group["lr"] = rates[step]
        loss = learner(batch)["loss"]
        loss.backward()
        if clip is not None:
            nn.utils.clip_grad_norm_(learner.parameters(), clip)
        for optimizer in optimizers:
            optimizer.step()
        decay = min(EMA, (1 + step) / (10 + step))
        for name, p in learner.named_parameters():
            average[name] = decay * average[name] + (1 - decay) * p.detach()
        losses.append(loss.item())
    return average, losses


@pytest.mark.parametrize("clip", [None, 0.1])
@pytest.mark.parametrize("name", TRAINED)
def test_a_step_on_buffers_that_are_filled_anew_is_the_plain_step_in_float64(
    name: str, clip: float | None, monkeypatch: pytest.MonkeyPatch
) -> None:
    cfg, dm = tiny.representation_of(name, encoder_width=2), tiny.diffusion_model()
    torch.manual_seed(1)
    task = representation.make_task(name, cfg, torch.from_numpy(tiny.images()), dm, torch.device("cpu"))
    batches = [in_float64(task.batch(tiny.given(step, COUNT))) for step in range(STEPS)]
    monkeypatch.setattr(Tensor, "float", Tensor.double)
    learner = task.module.double().train()
    tiny.wake(learner)
    plain = copy.deepcopy(learner)

    static, average = copy.deepcopy(batches[-1]), Average(learner)
    inputs = Inputs(torch.zeros(COUNT, 1, 1, 3, dtype=torch.uint8), COUNT, 0, torch.device("cpu"))
    optimizers = representation.make_optimizers(learner, cfg)
    step = Step(
        learner, learner, lambda inputs: static, inputs, optimizers, {"all": average},
        ema_decay=EMA, grad_clip=clip, dtype=torch.float32,
    )  # fmt: skip
    step.rates, step.weight = [rate.double() for rate in step.rates], step.weight.double()
    losses = []
    for i in range(STEPS):
        filled(static, batches[i])
        step.load(i)
        step.run()
        assert step.sums is not None
        losses.append(step.sums[step.names.index("loss")].item() - sum(losses))

    expected, plain_losses = by_hand(plain, cfg, batches, clip)
    assert losses == pytest.approx(plain_losses, rel=1e-9)
    assert len({round(loss, 6) for loss in losses}) == STEPS
    for (key, p), (_, q) in zip(learner.named_parameters(), plain.named_parameters(), strict=True):
        assert torch.allclose(p, q, rtol=1e-9, atol=1e-10), key
        assert torch.allclose(average.own[key], expected[key], rtol=1e-9, atol=1e-10), key
    for (key, value), (_, other) in zip(learner.named_buffers(), plain.named_buffers(), strict=True):
        assert torch.allclose(value.double(), other.double(), rtol=1e-9, atol=1e-10), key


@pytest.mark.parametrize("name", TRAINED)
def test_weights_that_are_converted_at_once_train_to_the_bits_of_autocast(name: str) -> None:
    cfg, cpu = tiny.representation_of(name, encoder_width=2), torch.device("cpu")
    images = torch.from_numpy(tiny.images())
    dm = tiny.diffusion_model() if METHODS[name].diffusion else None
    torch.manual_seed(1)
    task = representation.make_task(name, cfg, images, dm, cpu)
    learner, batch = task.module.train(), task.batch
    tiny.wake(learner)
    plain = copy.deepcopy(learner)
    given, same = (Inputs(images, COUNT, 0, cpu, purposes=tiny.PURPOSES) for _ in range(2))
    optimizers, theirs = (representation.make_optimizers(module, cfg) for module in (learner, plain))
    step = Step(learner, learner, batch, given, optimizers, {}, ema_decay=EMA, grad_clip=0.1, dtype=torch.bfloat16)
    layers = [m for m in learner.modules() if isinstance(m, nn.Conv2d | nn.Linear)]
    assert {id(p) for p in step.converted.values()} == {id(p) for layer in layers for p in layer.parameters()}
    total = torch.zeros((), dtype=torch.float64)
    for i in range(STEPS):
        step.load(i)
        step.run()
        same.load(i)
        for scheduled in theirs:
            scheduled.optimizer.zero_grad()
            for group in scheduled.optimizer.param_groups:
                group["lr"] = torch.tensor(scheduled.rate(i))
        with torch.autocast("cpu", torch.bfloat16):
            with torch.no_grad():
                drawn = batch(same)
            loss = plain(drawn)["loss"]
        loss.backward()
        nn.utils.clip_grad_norm_(plain.parameters(), 0.1)
        for scheduled in theirs:
            scheduled.optimizer.step()
        total += loss.detach()
        assert step.sums is not None
        assert step.sums[step.names.index("loss")] == total
    for (key, value), (_, other) in zip(learner.state_dict().items(), plain.state_dict().items(), strict=True):
        assert torch.equal(value, other), key


class Drops(nn.Module):
    """Its loss tells which of 64 numbers were dropped."""

    def __init__(self) -> None:
        super().__init__()
        self.weight, self.dropout = nn.Parameter(torch.ones(64)), nn.Dropout(0.5)

    def forward(self, batch: Tensor) -> dict[str, Tensor]:
        return {"loss": (self.dropout(self.weight) * torch.arange(64).square()).sum()}


def test_dropout_is_drawn_by_seed_step_and_rows_alone() -> None:
    def loss(seed: int, number: int, first: int) -> float:
        torch.rand(3)  # somebody else's draw
        module, images = Drops(), torch.zeros(4, 1, 1, 3, dtype=torch.uint8)
        inputs = Inputs(images, 4, seed, torch.device("cpu"), rows=slice(first, 4))
        step = Step(module, module, Inputs.images, inputs, [], {}, ema_decay=0, grad_clip=None, dtype=torch.float32)
        step.load(number)
        step.run()
        assert step.sums is not None
        return step.sums.item()

    places = [(0, 0, 0), (1, 0, 0), (0, 1, 0), (0, 0, 2)]
    assert len({loss(*place) for place in places}) == len(places)
    assert [loss(*place) for place in places] == [loss(*place) for place in places]


def test_a_seed_in_place_draws_what_a_new_generator_draws() -> None:
    inputs = Inputs(torch.from_numpy(tiny.images()), 4, 7, torch.device("cpu"), purposes=["view1"])
    for step in (3, 0, 3):
        inputs.load(step)
        got = torch.rand(5, generator=inputs.generators["view1"])
        assert torch.equal(got, torch.rand(5, generator=runtime.generator(7, "view1", step)))


def test_images_and_labels_of_a_step_are_those_of_its_indices_for_arrays_and_for_streams() -> None:
    from diffsiam.training.inputs import step_indices

    class Read:
        """Images that are read when they are asked for."""

        shape = tiny.images().shape

        def __len__(self) -> int:
            return tiny.IMAGES

        def __getitem__(self, index: Tensor) -> Tensor:
            return torch.from_numpy(tiny.images())[index]

    rows = slice(1, 5)
    labels = torch.randn(tiny.IMAGES, 2)
    both = [
        Inputs(images, 6, 2, torch.device("cpu"), labels=labels, rows=rows)  # type: ignore[arg-type]
        for images in (torch.from_numpy(tiny.images()), Read())
    ]
    for step in (0, 1, 2, 9, 3):  # one after the other, and after a resume
        chosen = step_indices(tiny.IMAGES, 6, 2, step)[rows]
        for inputs in both:
            inputs.load(step)
            assert (inputs.images().numpy() == tiny.images()[chosen]).all()
            assert torch.equal(inputs.labels(), labels[chosen])


def test_views_of_two_generators_are_those_of_each_one_after_the_other() -> None:
    views = tiny.section(params.Representation).views
    pair = augment.draw(5, 8, views, runtime.generator(0, "view1"), runtime.generator(0, "view2"))
    for i, purpose in enumerate(("view1", "view2")):
        alone = augment.draw(5, 8, views, runtime.generator(0, purpose))
        for got, expected in zip(pair[:5], alone[:5], strict=True):
            assert torch.equal(got[5 * i : 5 * i + 5], expected)
