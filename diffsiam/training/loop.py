"""The one training loop: steps, averaging, records, checkpoints.

Everything random in a step is drawn from generators named by (seed, purpose, step), so the whole state of a run is its
weights, optimiser, averages, records and step number, and a stopped run resumes to the same bits. The step itself is
`diffsiam.training.step`.
"""

from __future__ import annotations

import contextlib
import math
import signal
import sys
import time
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn

from diffsiam import runtime
from diffsiam.data.images import Images
from diffsiam.errors import UserError
from diffsiam.params import Runtime
from diffsiam.training.inputs import Inputs
from diffsiam.training.parallel import World, synchronized
from diffsiam.training.step import Average, Scheduled, Step

STOPPED = 75  # exit status of a training that saved its state on a signal and wants to be started again (EX_TEMPFAIL)
_RECORDS = 500  # rows of a history at least, where there are as many steps: each is the mean since the last
_SIGNALS = (signal.SIGTERM, signal.SIGINT, signal.SIGUSR1)


@dataclass(frozen=True)
class Task:
    """What is trained.

    Attributes:
        name: for progress lines.
        module: the trainable part; called with a batch, returns scalar tensors by name, ``loss`` among them.
        averaged: parts of ``module`` whose exponential moving average is kept.
        images: that it is trained on.
        batch: from a step's `Inputs` to its batch; runs without gradient. What it draws, it draws for the whole step.
        purposes: names of the generators that ``batch`` draws from.
        frozen: a network that ``batch`` runs, which `Plan.compile` compiles as well.
        snapshot: called with the step number after each of `Plan.snapshots`, on one process.
        kept: parts of ``module`` that the run leaves behind as they are, beside the averaged ones.
        warnings: name of a returned scalar to (lowest, highest, message), said when a record leaves these limits and
            not again while it stays outside. The message may name any scalar of the record, in braces, and its own
            as ``value``.
    """

    name: str
    module: nn.Module
    averaged: Mapping[str, nn.Module]
    images: Images
    batch: Callable[[Inputs], Any]
    purposes: Sequence[str] = ()
    frozen: nn.Module | None = None
    kept: Mapping[str, nn.Module] = field(default_factory=dict)
    warnings: Mapping[str, tuple[float, float, str]] = field(default_factory=dict)
    snapshot: Callable[[int], None] = lambda step: None


@dataclass(frozen=True)
class Plan:
    """How it is trained.

    Attributes:
        events: folder of TensorBoard events, None for none.
        optimizers: from the module, once it is on its device: the optimisers of its parts, each with its rate by step.
        identity: what the result depends on; a checkpoint made under another identity is refused.
        graph: whether the step is captured as a CUDA graph; not among several processes, whose messages are not.
    """

    steps: int
    batch_size: int
    seed: int
    optimizers: Callable[[nn.Module], list[Scheduled]]
    grad_clip: float | None
    ema_decay: float
    device: torch.device
    dtype: torch.dtype
    checkpoint: Path
    checkpoint_minutes: float
    identity: Mapping[str, Any]
    compile: bool = False
    graph: bool = False
    snapshots: Sequence[int] = ()
    events: Path | None = None


def precision(rt: Runtime, device: torch.device, width: int, checkpoint: Path) -> torch.dtype:
    """`runtime.compute_dtype`; under ``auto``, that of the ``checkpoint`` of a run that goes on, whatever this machine
    would choose."""
    if rt.precision == "auto" and checkpoint.exists():
        with contextlib.suppress(Exception):  # what is wrong with it is said when the run takes it up
            dtype: torch.dtype = torch.load(checkpoint, map_location="cpu", weights_only=True, mmap=True)["dtype"]
            return dtype
    return runtime.compute_dtype(rt, device, width)


def train(task: Task, plan: Plan, here: World) -> tuple[list[dict[str, float]], dict[str, dict[str, Tensor]]]:
    """Train to the end, from the checkpoint where there is one, alone or as one of the processes of a `World`.

    Returns:
        The history, one row per record, and the averaged weights by the names of ``task.averaged``.
    Raises:
        UserError: the loss is not finite; the checkpoint belongs to another run; it cannot be written.
        SystemExit: with status `STOPPED` after SIGTERM, SIGINT or SIGUSR1; the state is saved.
    """
    module = task.module.to(plan.device).to(memory_format=torch.channels_last).train()
    if here.size > 1:
        module = synchronized(module, plan.device)
    inputs = Inputs(
        task.images,
        plan.batch_size,
        plan.seed,
        plan.device,
        rows=here.rows(plan.batch_size),
        purposes=task.purposes,
    )
    averages = {name: Average(part) for name, part in task.averaged.items()}
    step = Step(
        module,
        here.wrap(module),
        task.batch,
        inputs,
        plan.optimizers(module),
        averages,
        ema_decay=plan.ema_decay,
        grad_clip=plan.grad_clip,
        dtype=plan.dtype,
        compiled=plan.compile,
    )
    run = _Run(step, plan, here)
    run.resume()
    every = max(1, plan.steps // _RECORDS)
    _prepare(task, plan, step, here)
    write_events = _events(plan, here)
    progress = runtime.Progress(plan.steps, task.name, "steps", start=run.step, quiet=not here.first)
    saved, record_began, timed_from = time.monotonic(), time.monotonic(), run.counted  # of the record under way
    with _stop_requests() as requests:
        while run.step < plan.steps:
            run.advance()
            if here.first and run.step in plan.snapshots:
                task.snapshot(run.step)
            if run.step % every == 0 or run.step == plan.steps:
                now = time.monotonic()
                row = run.record((run.counted - timed_from) * plan.batch_size / (now - record_began))
                record_began, timed_from = now, 0
                write_events(row)
                _guard(task, plan, run.history, here)
                progress.update(run.step - progress.done, f"loss {row['loss']:.4f}")
            if run.step % here.meet_every and run.step < plan.steps:
                continue
            stop, due = here.any(bool(requests), time.monotonic() - saved > 60 * plan.checkpoint_minutes)
            if stop or due:
                if not all(bool(p.isfinite().all()) for p in step.parameters):  # the last record may be older than that
                    raise _diverged(task, plan, f"a weight is not finite at step {run.step}")
                run.save()
                saved = time.monotonic()
            if stop:
                progress.close()
                if here.first:
                    print(
                        f"{task.name}: stopped by a signal at step {run.step} of {plan.steps}; the state is in "
                        f"{plan.checkpoint}. The same command goes on from there.",
                        file=sys.stderr,
                    )
                raise SystemExit(STOPPED)
    progress.close()
    return run.history, {name: average.state() for name, average in averages.items()}


def _prepare(task: Task, plan: Plan, step: Step, here: World) -> None:
    """Compile and capture, where the plan says so, before the first step."""
    if plan.compile:
        step.module.compile()
        if task.frozen is not None:
            task.frozen.compile()
    if plan.graph and here.size == 1:
        began = time.monotonic()
        step.capture()
        compiled = "compiled and " if plan.compile else ""
        print(f"{task.name}: {compiled}captured in {time.monotonic() - began:.0f} s", file=sys.stderr)


def _events(plan: Plan, here: World) -> Callable[[dict[str, float]], None]:
    if plan.events is None or not here.first:
        return lambda row: None
    from torch.utils.tensorboard import SummaryWriter

    writer = SummaryWriter(str(plan.events))

    def write(row: dict[str, float]) -> None:
        for name, value in row.items():
            writer.add_scalar(name, value, int(row["step"]))  # type: ignore[no-untyped-call]
        writer.flush()  # type: ignore[no-untyped-call]

    return write


def _guard(task: Task, plan: Plan, history: list[dict[str, float]], here: World) -> None:
    row, before = history[-1], history[-2] if len(history) > 1 else None
    if not math.isfinite(row["loss"]):
        parts = ", ".join(f"{k} {v:.4g}" for k, v in row.items() if k != "step")
        raise _diverged(task, plan, f"the loss is not finite at step {row['step']:.0f} ({parts})")
    for name, (low, high, message) in task.warnings.items():
        if here.first and not low <= row[name] <= high and (before is None or low <= before[name] <= high):
            said = message.format(**row, value=row[name])
            print(f"{task.name}: warning at step {row['step']:.0f}: {said}", file=sys.stderr)


def _diverged(task: Task, plan: Plan, what: str) -> UserError:
    good = f"{plan.checkpoint} holds the last good state" if plan.checkpoint.exists() else "none was saved yet"
    return UserError(f"{task.name}: {what}; {good}. Lower the learning rate, or set grad_clip, and start again.")


class _Run:
    """The state of a run, and its way to disk and back."""

    def __init__(self, step: Step, plan: Plan, here: World) -> None:
        self.it, self.plan, self.here = step, plan, here
        self.step = 0
        self.history: list[dict[str, float]] = []
        self.counted = 0  # steps of the record under way

    def advance(self) -> None:
        """Take the next step; on a GPU it has not ended when this returns, so steps do not wait for each other."""
        self.it.load(self.step)
        self.it.take()
        self.step += 1
        self.counted += 1

    def record(self, rate: float) -> dict[str, float]:
        """Close the record under way."""
        row = {
            "step": self.step,
            "learning_rate": self.it.optimizers[0].rate(self.step - 1),
            "images_per_second": rate,
        }
        assert self.it.sums is not None
        means = self.here.mean(self.it.sums / self.counted)
        row |= dict(zip(self.it.names, means.tolist(), strict=True))
        self.history.append(row)
        self.it.sums.zero_()
        self.counted = 0
        return row

    def save(self) -> None:
        """Write the checkpoint under a temporary name and rename it: the last good one survives anything."""
        if not self.here.first:
            return
        state = {
            "identity": _flatten(self.plan.identity),
            "step": self.step,
            "dtype": self.plan.dtype,
            "module": self.it.module.state_dict(),
            "optimizers": [optimizer.state_dict() for optimizer, _ in self.it.optimizers],
            "averages": {name: average.own for name, average in self.it.averages.items()},
            "history": self.history,
            "sums": self.it.sums,
            "names": self.it.names,
            "counted": self.counted,
        }
        try:
            with runtime.atomic(self.plan.checkpoint) as temporary:
                torch.save(state, temporary)
        except (OSError, RuntimeError) as e:
            raise UserError(
                f"{self.plan.checkpoint}: cannot save the state of step {self.step} ({e}). An earlier checkpoint there "
                "is intact. Free some space and run the same command again."
            ) from None

    def resume(self) -> None:
        """Take up the checkpoint, if there is one; refuse one that another run made."""
        path = self.plan.checkpoint
        if not path.exists():
            return
        try:
            state = torch.load(path, map_location=self.plan.device, weights_only=True)
        except Exception as e:
            raise UserError(
                f"{path}: not a readable checkpoint ({type(e).__name__}: {e}). Delete it to start over."
            ) from None
        mine = _flatten(self.plan.identity)
        differing = sorted(k for k in mine.keys() | state["identity"].keys() if mine.get(k) != state["identity"].get(k))
        if differing:
            lines = [f"{k}: {state['identity'].get(k)!r} there, {mine.get(k)!r} now" for k in differing]
            raise UserError(
                f"{path}: this checkpoint belongs to a run with other parameters:\n  " + "\n  ".join(lines) + "\n"
                "Delete it to start over, or restore those values to go on from it."
            )
        self.it.module.load_state_dict(state["module"])
        for (optimizer, _), saved in zip(self.it.optimizers, state["optimizers"], strict=True):
            optimizer.load_state_dict(saved)
        for name, average in self.it.averages.items():
            average.load(state["averages"][name])
        self.step, self.history, self.counted = state["step"], state["history"], state["counted"]
        self.it.sums, self.it.names = state["sums"], tuple(state["names"])
        if self.here.first:
            print(f"resuming from {path} at step {self.step}", file=sys.stderr)


def _flatten(tree: Mapping[str, Any], prefix: str = "") -> dict[str, Any]:
    flat: dict[str, Any] = {}
    for key, value in tree.items():
        name = f"{prefix}{key}"
        flat |= _flatten(value, f"{name}.") if isinstance(value, Mapping) else {name: value}
    return {k: list(v) if isinstance(v, tuple) else v for k, v in flat.items()}


@contextlib.contextmanager
def _stop_requests() -> Iterator[list[int]]:
    """A list that gets the number of each stop signal that arrives; the handlers of before come back at the end."""
    requests: list[int] = []
    before = {s: signal.signal(s, lambda number, frame: requests.append(number)) for s in _SIGNALS}
    try:
        yield requests
    finally:
        for number, handler in before.items():
            signal.signal(number, handler)
