"""The training loop against plain PyTorch loops; stopping, killing and resuming it."""

from __future__ import annotations

import dataclasses
import itertools
import math
import os
import resource
import signal
import subprocess
import sys
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import tiny
import torch
from torch import Tensor, nn

from diffsiam import params, runtime
from diffsiam.errors import UserError
from diffsiam.training import diffsiam, loop
from diffsiam.training.inputs import Inputs, step_indices
from diffsiam.training.parallel import World
from diffsiam.training.step import Average, averaging_decay

ALONE = World(0, 1, torch.device("cpu"))
SIZE, BATCH, STEPS = 10, 4, 12
TABLE = torch.randn(SIZE, 3, generator=torch.Generator().manual_seed(0))
TARGET = TABLE @ torch.tensor([1.0, -2.0, 0.5]) + 0.3
ITEMS = torch.cat([TABLE, TARGET[:, None]], dim=1)  # what stands for images here


class Regression(nn.Module):
    """A small network with a batch norm, whose loss is a mean squared error."""

    def __init__(self) -> None:
        super().__init__()
        self.net = nn.Sequential(nn.Linear(3, 5, bias=False), nn.BatchNorm1d(5), nn.Tanh(), nn.Linear(5, 1))

    def forward(self, batch: dict[str, Tensor]) -> dict[str, Tensor]:
        error = (self.net(batch["x"]).flatten() - batch["y"]).square().mean()
        return {"loss": error, "double": 2 * error.detach()}


def fresh() -> Regression:
    torch.manual_seed(0)
    return Regression()


def take(inputs: Inputs) -> dict[str, Tensor]:
    return {"x": inputs.images()[:, :3], "y": inputs.images()[:, 3]}


def cosine(step: int) -> float:
    return 0.1 * (1 + math.cos(math.pi * step / STEPS)) / 2


def sgd(module: nn.Module) -> list[loop.Scheduled]:
    optimizer = torch.optim.SGD(module.parameters(), lr=9.0, momentum=0.9, weight_decay=0.01, fused=True)
    return [loop.Scheduled(optimizer, cosine)]


def adam(module: nn.Module) -> list[loop.Scheduled]:
    return [loop.Scheduled(torch.optim.Adam(module.parameters(), lr=9.0, fused=True), lambda step: 0.02)]


def two(module: nn.Module) -> list[loop.Scheduled]:
    """The first layer by SGD, the rest by Adam."""
    named = list(module.named_parameters())
    first = [p for name, p in named if name.startswith("net.0")]
    rest = [p for name, p in named if not name.startswith("net.0")]
    return [
        loop.Scheduled(torch.optim.SGD(first, lr=9.0, momentum=0.9), cosine),
        loop.Scheduled(torch.optim.Adam(rest, lr=9.0), lambda step: 0.02),
    ]


def plan_of(tmp_path: Path, **changes: Any) -> loop.Plan:
    plan = loop.Plan(
        steps=STEPS,
        batch_size=BATCH,
        seed=3,
        optimizers=sgd,
        grad_clip=None,
        ema_decay=0.5,
        device=torch.device("cpu"),
        dtype=torch.float32,
        checkpoint=tmp_path / "checkpoints" / "run.pt",
        checkpoint_minutes=1e9,
        identity={"representation": {"steps": STEPS, "views": {"crop_scale": (0.2, 1.0)}}, "seed": 3},
    )
    return dataclasses.replace(plan, **changes)


def task_of(module: nn.Module, batch: Callable[[Inputs], Any] = take, **changes: Any) -> loop.Task:
    return loop.Task("toy", module, {"net": module.net}, ITEMS, batch, **changes)  # type: ignore[dict-item]


# ------------------------------------------------------------------------------------------------- trajectories
def order(steps: int) -> list[list[int]]:
    """Images of each step: permutation after permutation, cut into batches."""
    endless: list[int] = []
    for epoch in range(steps * BATCH // SIZE + 1):
        endless += runtime.rng(3, "order", epoch).permutation(SIZE).tolist()
    return [endless[i * BATCH : (i + 1) * BATCH] for i in range(steps)]


def plain_loop(optimizers: list[tuple[torch.optim.Optimizer, Callable[[int], float]]], module: Regression,
               clip: float | None) -> tuple[list[float], dict[str, Tensor]]:  # fmt: skip
    """Losses and averaged weights of a loop as one would write it by hand."""
    average = {name: p.detach().clone() for name, p in module.net.named_parameters()}
    losses = []
    for step, chosen in enumerate(order(STEPS)):
        loss = module({"x": TABLE[chosen], "y": TARGET[chosen]})["loss"]
        for optimizer, rate in optimizers:
            optimizer.zero_grad()
            for group in optimizer.param_groups:
                group["lr"] = rate(step)
        loss.backward()
        if clip is not None:
            torch.nn.utils.clip_grad_norm_(module.parameters(), clip)
        for optimizer, _ in optimizers:
            optimizer.step()
        decay = min(0.5, (1 + step) / (10 + step))
        for name, p in module.net.named_parameters():
            average[name] = decay * average[name] + (1 - decay) * p.detach()
        losses.append(loss.item())
    return losses, average


@pytest.mark.parametrize("clip", [None, 0.3])
@pytest.mark.parametrize("kind", ["sgd", "adam", "two"])
def test_trajectory_history_and_averages_are_the_plain_loops(kind: str, clip: float | None, tmp_path: Path) -> None:
    ours, plain = fresh(), fresh()
    makers = {"sgd": sgd, "adam": adam, "two": two}
    by_hand: dict[str, list[tuple[torch.optim.Optimizer, Callable[[int], float]]]] = {
        "sgd": [(torch.optim.SGD(plain.parameters(), lr=1, momentum=0.9, weight_decay=0.01), cosine)],
        "adam": [(torch.optim.Adam(plain.parameters(), lr=1), lambda step: 0.02)],
        "two": [
            (torch.optim.SGD(plain.net[0].parameters(), lr=1, momentum=0.9), cosine),
            (torch.optim.Adam([p for layer in plain.net[1:] for p in layer.parameters()], lr=1), lambda step: 0.02),
        ],
    }
    history, averages = loop.train(task_of(ours), plan_of(tmp_path, optimizers=makers[kind], grad_clip=clip), ALONE)
    losses, average = plain_loop(by_hand[kind], plain, clip)
    assert [row["loss"] for row in history] == pytest.approx(losses, rel=1e-5)
    assert [row["double"] for row in history] == pytest.approx([2 * v for v in losses], rel=1e-5)
    assert [row["step"] for row in history] == list(range(1, STEPS + 1))
    rate = (lambda step: 0.02) if kind == "adam" else cosine
    assert [row["learning_rate"] for row in history] == pytest.approx([rate(s) for s in range(STEPS)])
    for name, p in plain.named_parameters():
        assert torch.allclose(dict(ours.named_parameters())[name], p, atol=1e-5), name
    for name, value in average.items():
        assert torch.allclose(averages["net"][name], value, atol=1e-5), name
    for name in ("1.running_mean", "1.running_var", "1.num_batches_tracked"):  # statistics are copied, not averaged
        assert torch.equal(averages["net"][name], ours.net.state_dict()[name])


def test_averaging_decay_rises_from_a_tenth_to_its_limit() -> None:
    """min(limit, (1 + step) / (10 + step)): literal, for weights that jump."""
    layer = nn.Linear(1, 1)
    average = Average(layer)
    expected = layer.weight.item()
    for step in range(60):
        with torch.no_grad():
            layer.weight.fill_(float(step % 7))
        average.update(torch.tensor(1 - averaging_decay(step, 0.8)))
        decay = min(0.8, (1 + step) / (10 + step))
        expected = decay * expected + (1 - decay) * (step % 7)
        assert average.state()["weight"].item() == pytest.approx(expected, rel=1e-4)
    assert averaging_decay(0, 0.8) == 0.1
    assert averaging_decay(60, 0.8) == 0.8
    assert averaging_decay(980, 0.9999) == 981 / 990


def test_a_record_is_the_mean_over_the_steps_since_the_last(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    each, _ = loop.train(task_of(fresh()), plan_of(tmp_path), ALONE)
    monkeypatch.setattr(loop, "_RECORDS", 3)  # 12 steps: a record every 4
    few, _ = loop.train(task_of(fresh()), plan_of(tmp_path), ALONE)
    assert [row["step"] for row in few] == [4, 8, 12]
    for i, row in enumerate(few):
        assert row["loss"] == pytest.approx(np.mean([r["loss"] for r in each[4 * i : 4 * i + 4]]))


# ------------------------------------------------------------------------------------------------- data order
@pytest.mark.parametrize(("size", "batch_size"), [(10, 4), (10, 10), (10, 5), (3, 8), (7, 1)])
def test_step_indices_take_every_image_once_per_epoch(size: int, batch_size: int) -> None:
    steps = 4 * size
    taken = np.concatenate([step_indices(size, batch_size, 0, step) for step in range(steps)])
    assert len(taken) == steps * batch_size
    epochs = taken.reshape(-1, size)
    assert len(epochs) == 4 * batch_size
    assert (np.sort(epochs, axis=1) == np.arange(size)).all()
    assert len({tuple(e) for e in epochs}) > 1
    for step in range(steps):
        assert len(step_indices(size, batch_size, 0, step)) == batch_size


def test_another_seed_gives_another_order() -> None:
    assert step_indices(100, 50, 0, 0).tolist() != step_indices(100, 50, 1, 0).tolist()


# ---------------------------------------------------------------------------------------------- stop and resume
def at_step(stop: int, action: Callable[[], None]) -> Callable[[Inputs], dict[str, Tensor]]:
    """The batch function of a run from its start, which does ``action`` in step ``stop``."""
    steps = itertools.count()

    def batch(inputs: Inputs) -> dict[str, Tensor]:
        if next(steps) == stop:
            action()
        return take(inputs)

    return batch


def state_of(module: nn.Module, result: tuple[list[dict[str, float]], dict[str, dict[str, Tensor]]]) -> Any:
    """All that a run leaves, without its speed, as comparable bytes."""
    history, averages = result
    rows = [{k: v for k, v in row.items() if k != "images_per_second"} for row in history]
    weights = {k: v.numpy().tobytes() for k, v in module.state_dict().items()}
    return rows, weights, {k: v.numpy().tobytes() for k, v in averages["net"].items()}


@pytest.mark.parametrize("number", [signal.SIGTERM, signal.SIGINT, signal.SIGUSR1])
@pytest.mark.parametrize("stop", [0, 5, STEPS - 1])
@pytest.mark.parametrize("kind", ["sgd", "two"])
def test_a_signal_saves_and_the_resumed_run_ends_with_the_same_bits(
    kind: str, stop: int, number: signal.Signals, tmp_path: Path, capsys: pytest.CaptureFixture[str],
    monkeypatch: pytest.MonkeyPatch,
) -> None:  # fmt: skip
    monkeypatch.setattr(loop, "_RECORDS", 5)  # records every 2 steps: the stop falls within one
    optimizers = {"sgd": sgd, "two": two}[kind]
    whole = fresh()
    expected = state_of(whole, loop.train(task_of(whole), plan_of(tmp_path, optimizers=optimizers), ALONE))

    plan = plan_of(tmp_path, optimizers=optimizers)
    with pytest.raises(SystemExit) as stopped:
        loop.train(task_of(fresh(), at_step(stop, lambda: os.kill(os.getpid(), number))), plan, ALONE)
    assert stopped.value.code == loop.STOPPED == 75
    said = capsys.readouterr().err
    assert f"at step {stop + 1} of {STEPS}" in said
    assert str(plan.checkpoint) in said

    again = Regression()  # other weights: all must come from the checkpoint
    assert state_of(again, loop.train(task_of(again), plan, ALONE)) == expected
    assert f"resuming from {plan.checkpoint} at step {stop + 1}" in capsys.readouterr().err


def test_snapshots_are_asked_for_once_each_over_a_stop_and_a_resume(tmp_path: Path) -> None:
    plan, kept = plan_of(tmp_path, snapshots=(2, 5, STEPS)), []
    stop = at_step(3, lambda: os.kill(os.getpid(), signal.SIGTERM))
    with pytest.raises(SystemExit):
        loop.train(task_of(fresh(), stop, snapshot=kept.append), plan, ALONE)
    assert kept == [2]
    loop.train(task_of(fresh(), snapshot=kept.append), plan, ALONE)
    assert kept == [2, 5, STEPS]


def test_signal_handlers_come_back_after_a_run(tmp_path: Path) -> None:
    before = [signal.getsignal(s) for s in (signal.SIGTERM, signal.SIGINT, signal.SIGUSR1)]
    loop.train(task_of(fresh()), plan_of(tmp_path), ALONE)
    assert [signal.getsignal(s) for s in (signal.SIGTERM, signal.SIGINT, signal.SIGUSR1)] == before


def test_checkpoints_are_taken_by_the_clock_only(tmp_path: Path) -> None:
    loop.train(task_of(fresh()), plan_of(tmp_path), ALONE)
    assert not (tmp_path / "checkpoints").exists()
    loop.train(task_of(fresh()), plan_of(tmp_path, checkpoint_minutes=0), ALONE)
    assert torch.load(tmp_path / "checkpoints" / "run.pt", weights_only=True)["step"] == STEPS


KILLS = """
import os, signal, sys
from pathlib import Path

import pandas  # here, and not in every process anew
import tiny
import torch
from diffsiam import params, runtime
from diffsiam.training import inputs, representation

top = Path(sys.argv[1])
data, dm = tiny.data(top / "data"), tiny.saved_diffusion_model(top / "dm")
cfg = tiny.section(params.Representation, steps=6)
rt = tiny.section(params.Runtime, checkpoint_minutes=1e-9)  # a checkpoint at every step


def train(out):
    representation.run("diffsiam_hier", cfg, rt, data, dm, top / out, top / "checkpoints" / out, seed=0)


def in_a_process_of_its_own(action):
    pid = os.fork()
    if pid == 0:
        try:
            action()
            os._exit(0)
        except BaseException as e:
            print(repr(e), file=sys.stderr)
            os._exit(1)
    return os.waitpid(pid, 0)[1]


def killed_at(out, step, while_saving):
    steps, save = inputs.step_indices, torch.save

    def die_at_step(size, batch_size, seed, at):
        if at == step and not while_saving:
            os.kill(os.getpid(), signal.SIGKILL)
        return steps(size, batch_size, seed, at)

    def die_while_saving(state, path):
        save(state, path)
        if while_saving and state["step"] == step:
            os.truncate(path, os.path.getsize(path) // 2)
            os.kill(os.getpid(), signal.SIGKILL)

    inputs.step_indices, torch.save = die_at_step, die_while_saving
    train(out)


assert in_a_process_of_its_own(lambda: train("whole")) == 0  # this one trains nothing: then it is safe to fork
for step, while_saving in [(0, False), (1, True), (3, False), (5, False), (5, True)]:
    out = f"killed{step}{while_saving}"
    status = in_a_process_of_its_own(lambda: killed_at(out, step, while_saving))
    assert os.WIFSIGNALED(status) and os.WTERMSIG(status) == signal.SIGKILL, status
    assert in_a_process_of_its_own(lambda: train(out)) == 0
print("done")
"""


def test_a_run_killed_at_any_step_or_while_saving_resumes_to_the_same_bits(tmp_path: Path) -> None:
    """DiffSiam itself, killed by SIGKILL and started again."""
    done = subprocess.run(
        [sys.executable, "-c", KILLS, str(tmp_path)],
        env={**os.environ, "PYTHONPATH": str(Path(__file__).parent), "OMP_NUM_THREADS": "1"},
        capture_output=True, text=True, check=False, timeout=800,
    )  # fmt: skip
    assert done.stdout.strip() == "done", done.stderr
    outs = sorted(tmp_path.glob("killed*"))
    assert len(outs) == 5
    whole = tiny.files_of(tmp_path / "whole")
    assert len(whole) == 5
    for out in outs:
        assert tiny.files_of(out) == whole, out.name


# ----------------------------------------------------------------------------------------------------- refusals
def stopped_run(tmp_path: Path, **changes: Any) -> loop.Plan:
    """A plan whose checkpoint holds a run stopped in step 5."""
    plan = plan_of(tmp_path, **changes)
    with pytest.raises(SystemExit):
        loop.train(task_of(fresh(), at_step(5, lambda: os.kill(os.getpid(), signal.SIGTERM))), plan, ALONE)
    return plan


def test_a_checkpoint_of_other_parameters_is_refused_with_what_differs(tmp_path: Path) -> None:
    plan = stopped_run(tmp_path)
    before = plan.checkpoint.read_bytes()
    other = {"representation": {"steps": 99, "views": {"crop_scale": (0.3, 1.0)}}, "seed": 3, "images": "abc"}
    with pytest.raises(UserError) as error:
        loop.train(task_of(fresh()), dataclasses.replace(plan, identity=other), ALONE)
    text = str(error.value)
    for part in (
        str(plan.checkpoint),
        "representation.steps: 12 there, 99 now",
        "representation.views.crop_scale: [0.2, 1.0] there, [0.3, 1.0] now",
        "images: None there, 'abc' now",
    ):
        assert part in text
    assert "seed" not in text
    assert plan.checkpoint.read_bytes() == before


@pytest.mark.parametrize("damage", ["truncated", "text"])
def test_an_unreadable_checkpoint_is_named(damage: str, tmp_path: Path) -> None:
    plan = stopped_run(tmp_path)
    content = plan.checkpoint.read_bytes()
    plan.checkpoint.write_bytes(content[:-100] if damage == "truncated" else b"not a checkpoint")
    with pytest.raises(UserError, match=r"run\.pt: not a readable checkpoint"):
        loop.train(task_of(fresh()), plan, ALONE)


def with_nan(first: int) -> Callable[[Inputs], dict[str, Tensor]]:
    """Batches of a run from its start whose targets are not finite from step ``first`` on."""
    steps = itertools.count()

    def batch(inputs: Inputs) -> dict[str, Tensor]:
        out = take(inputs)
        return {**out, "y": out["y"] * math.nan} if next(steps) >= first else out

    return batch


def test_a_loss_that_is_not_finite_stops_with_the_step_the_parts_and_the_last_good_checkpoint(tmp_path: Path) -> None:
    plan = plan_of(tmp_path)
    with pytest.raises(UserError, match="not finite at step 8 ") as error:
        loop.train(task_of(fresh(), with_nan(7)), plan, ALONE)
    assert "double nan" in str(error.value)
    assert "none was saved yet" in str(error.value)
    with pytest.raises(UserError, match="holds the last good state"):
        loop.train(task_of(fresh(), with_nan(7)), dataclasses.replace(plan, checkpoint_minutes=0), ALONE)
    assert torch.load(plan.checkpoint, weights_only=True)["step"] == 7


def test_weights_that_are_not_finite_never_replace_a_good_checkpoint(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """A record may be hundreds of steps away when a checkpoint is due."""
    monkeypatch.setattr(loop, "_RECORDS", 1)
    plan = plan_of(tmp_path, checkpoint_minutes=0)
    with pytest.raises(UserError, match=r"a weight is not finite at step 8;.*holds the last good state"):
        loop.train(task_of(fresh(), with_nan(7)), plan, ALONE)
    state = torch.load(plan.checkpoint, weights_only=True)
    assert state["step"] == 7
    assert all(v.isfinite().all() for v in state["module"].values())


def test_a_warning_is_said_when_a_record_falls_below_its_limit_and_not_at_every_record(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    class Falling(Regression):
        def forward(self, batch: dict[str, Tensor]) -> dict[str, Tensor]:
            return {**super().forward(batch), "spread": batch["spread"], "participation": 30 * batch["spread"]}

    spreads = iter([0.5, 0.5, 0.05, 0.04, 0.03, 0.5, 0.5, 0.02, 0.5, 0.5, 0.5, 0.5])

    def batch(inputs: Inputs) -> dict[str, Tensor]:
        return {**take(inputs), "spread": torch.tensor(next(spreads))}

    loop.train(
        task_of(Falling(), batch, warnings={"spread": (0.1, 0.9, diffsiam.COLLAPSING)}),
        plan_of(tmp_path),
        ALONE,
    )
    warnings = [line for line in capsys.readouterr().err.splitlines() if "warning" in line]
    assert [line.split(":")[1].strip() for line in warnings] == ["warning at step 3", "warning at step 8"]
    assert "collapsing: spread 0.050, participation ratio 1.5" in warnings[0]


def test_a_checkpoint_that_records_other_scalars_is_refused_by_their_names(tmp_path: Path) -> None:
    class Renamed(Regression):
        def forward(self, batch: dict[str, Tensor]) -> dict[str, Tensor]:
            return {**super().forward(batch), "participation": batch["x"].mean()}

    plan = stopped_run(tmp_path)
    before = plan.checkpoint.read_bytes()
    with pytest.raises(
        UserError, match=r"another version .* it records loss, double; this version, loss, double, participation\."
    ):
        loop.train(task_of(Renamed()), plan, ALONE)
    assert plan.checkpoint.read_bytes() == before


# --------------------------------------------------------------------------------------------------- precision
@pytest.mark.parametrize(("asked", "expected"), [("auto", torch.bfloat16), ("fp32", torch.float32)])
def test_a_run_that_goes_on_keeps_the_precision_that_auto_chose_on_another_processor(
    asked: str, expected: torch.dtype, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    plan = plan_of(tmp_path, dtype=torch.bfloat16, checkpoint_minutes=0)
    loop.train(task_of(fresh()), plan, ALONE)
    assert plan.checkpoint.exists()
    monkeypatch.setattr(runtime, "compute_dtype", lambda rt, device, width: torch.float32)
    rt = tiny.section(params.Runtime, precision=asked)
    assert loop.precision(rt, torch.device("cpu"), 64, plan.checkpoint) == expected


@contextmanager
def file_size_limit(folder: Path) -> Iterator[None]:
    """No file may grow beyond a few bytes: writes fail as they do over a quota."""
    soft, hard = resource.getrlimit(resource.RLIMIT_FSIZE)
    resource.setrlimit(resource.RLIMIT_FSIZE, (1000, hard))
    try:
        yield
    finally:
        resource.setrlimit(resource.RLIMIT_FSIZE, (soft, hard))


@contextmanager
def filled(folder: Path) -> Iterator[None]:
    """The file system of ``folder`` is filled to the last byte."""
    with open(folder / "filler", "wb", buffering=0) as f:
        room = os.statvfs(folder).f_bavail * os.statvfs(folder).f_frsize
        os.posix_fallocate(f.fileno(), 0, room)
    yield
    (folder / "filler").unlink()


@pytest.fixture
def small_disk(tmp_path: Path) -> Iterator[Path]:
    """A file system of one megabyte."""
    folder = tmp_path / "disk"
    folder.mkdir()
    if subprocess.run(["mount", "-t", "tmpfs", "-o", "size=1m", "tmpfs", str(folder)], check=False).returncode:
        pytest.skip("mounting a small file system is not allowed here")
    yield folder
    subprocess.run(["umount", str(folder)], check=True)


def full_disk_leaves_the_last_checkpoint(folder: Path, full: Callable[[Path], Any]) -> None:
    plan = stopped_run(folder)
    before = plan.checkpoint.read_bytes()
    with full(folder), pytest.raises(UserError, match=r"run\.pt: cannot save the state of step 7"):
        loop.train(task_of(fresh()), dataclasses.replace(plan, checkpoint_minutes=0), ALONE)
    assert plan.checkpoint.read_bytes() == before
    assert [p.name for p in plan.checkpoint.parent.iterdir()] == ["run.pt"]
    loop.train(task_of(fresh()), plan, ALONE)  # with room again it goes on


def test_a_quota_leaves_the_last_good_checkpoint(tmp_path: Path) -> None:
    full_disk_leaves_the_last_checkpoint(tmp_path, file_size_limit)


def test_a_full_disk_leaves_the_last_good_checkpoint(small_disk: Path) -> None:
    full_disk_leaves_the_last_checkpoint(small_disk, filled)
