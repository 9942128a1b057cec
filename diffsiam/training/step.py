"""One training step, a function of tensors that stay in place: run as it is, or captured as a CUDA graph.

What changes from step to step (images, seeds, learning rates, decays) is brought there by `Step.load`; what the step
leaves (weights, optimisers' states, averages, sums for the record) stays where it is. Nothing in it waits for the host.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from typing import Any, NamedTuple

import torch
from torch import Tensor, nn
from torch.func import functional_call

from diffsiam import graph, runtime
from diffsiam.errors import UserError
from diffsiam.training.inputs import Inputs


class Scheduled(NamedTuple):
    """An optimiser and its learning rate by step."""

    optimizer: torch.optim.Optimizer
    rate: Callable[[int], float]


def averaging_decay(step: int, limit: float) -> float:
    """min(limit, (1 + step) / (10 + step)) for the 0-based ``step``."""
    return min(limit, (1 + step) / (10 + step))


class Average:
    """Exponential moving average of a module's weights; batch-norm statistics, which are averages already, are the
    module's own."""

    def __init__(self, module: nn.Module) -> None:
        self.module = module
        self.own = {name: p.detach().clone().requires_grad_() for name, p in module.named_parameters()}
        for own, live in zip(self.own.values(), module.parameters(), strict=True):
            own.grad = live.detach()
        # average -= rate * (average - weights), one pass over all: decay of weights, and ascent along the new ones
        self._optimizer = torch.optim.SGD(self.own.values(), weight_decay=1.0, maximize=True, fused=True)

    def update(self, weight: Tensor) -> None:
        """Take in the weights of now: average += weight * (weights - average), ``weight`` a scalar, 1 - decay."""
        for group in self._optimizer.param_groups:
            group["lr"] = weight
        self._optimizer.step()

    def state(self) -> dict[str, Tensor]:
        """Everything that the module's state_dict has, averaged."""
        own = {name: value.detach() for name, value in self.own.items()}
        return {**{name: value.detach().clone() for name, value in self.module.state_dict().items()}, **own}

    @torch.no_grad()
    def load(self, state: Mapping[str, Tensor]) -> None:
        """Take over a saved ``own``."""
        for name, value in self.own.items():
            value.copy_(state[name])


class _Converted(torch.autograd.Function):
    """Weights in another precision, and their gradients back, each by one operation over all."""

    @staticmethod
    def forward(ctx: Any, dtype: torch.dtype, *weights: Tensor) -> tuple[Tensor, ...]:
        converted = [torch.empty_like(weight, dtype=dtype) for weight in weights]
        torch._foreach_copy_(converted, weights)
        return tuple(converted)

    @staticmethod
    def backward(ctx: Any, *gradients: Tensor) -> tuple[Tensor | None, ...]:  # type: ignore[override]
        converted = [torch.empty_like(gradient, dtype=torch.float32) for gradient in gradients]
        torch._foreach_copy_(converted, gradients)
        return None, *converted


class Step:
    """Forward and backward pass, optimisers, averages, sums.

    Args:
        forward: from a batch to scalar tensors by name, ``loss`` among them: the module, or what wraps it.
        batch: from the images of `Inputs` and its generators to a batch; runs without gradient.
        averages: by name.
        dtype: of autocast; float32 for none.
        compiled: whether the module is; the compiler converts weights by itself.
    """

    def __init__(
        self,
        module: nn.Module,
        forward: Callable[[Any], dict[str, Tensor]],
        batch: Callable[[Inputs], Any],
        inputs: Inputs,
        optimizers: Sequence[Scheduled],
        averages: Mapping[str, Average],
        *,
        ema_decay: float,
        grad_clip: float | None,
        dtype: torch.dtype,
        compiled: bool = False,
    ) -> None:
        self.module, self.forward, self.batch, self.inputs = module, forward, batch, inputs
        self.optimizers, self.averages = optimizers, averages
        self.ema_decay, self.grad_clip, self.dtype = ema_decay, grad_clip, dtype
        self.parameters = [p for p in module.parameters() if p.requires_grad]
        device = inputs.device
        self.rates = [torch.zeros((), device=device) for _ in optimizers]
        self.weight = torch.zeros((), device=device)  # of the newest weights in the averages
        self.names: tuple[str, ...] = ()
        self.sums: Tensor | None = None  # of the named scalars since the last record, float64
        # What autocast would convert, one by one and with the same result, in every step.
        layers = {n: m for n, m in module.named_modules() if isinstance(m, nn.Conv2d | nn.Linear)}
        named = {f"{n}.{key}": p for n, m in layers.items() for key, p in m.named_parameters(recurse=False)}
        alone = forward is module and dtype != torch.float32 and not compiled
        self.converted = {n: p for n, p in named.items() if p.requires_grad and alone}
        self.has_dropout = any(isinstance(m, nn.Dropout) and m.p > 0 for m in module.modules())
        self.take: Callable[[], None] = self.run

    def load(self, step: int) -> None:
        """Bring what belongs to ``step`` (0-based) to its place; waits for nothing but images that are not read yet."""
        self.inputs.load(step)
        for rate, scheduled in zip(self.rates, self.optimizers, strict=True):
            rate.fill_(scheduled.rate(step))
            for group in scheduled.optimizer.param_groups:
                group["lr"] = rate
        self.weight.fill_(1 - averaging_decay(step, self.ema_decay))
        if self.has_dropout:
            torch.manual_seed(runtime.derive_seed(self.inputs.seed, "dropout", f"{step}/{self.inputs.rows.start}"))

    def run(self) -> None:
        """The step on what was loaded.

        Raises:
            UserError: the record that was taken up is of other scalars.
        """
        for optimizer, _ in self.optimizers:
            optimizer.zero_grad(set_to_none=True)
        with torch.autocast(self.inputs.device.type, self.dtype, enabled=self.dtype != torch.float32):
            with torch.no_grad():
                batch = self.batch(self.inputs)
            if self.converted:
                weights = _Converted.apply(self.dtype, *self.converted.values())
                parts = functional_call(self.module, dict(zip(self.converted, weights, strict=True)), (batch,))
            else:
                parts = self.forward(batch)
        parts["loss"].backward()
        if self.grad_clip is not None:
            parts["grad_norm"] = nn.utils.clip_grad_norm_(self.parameters, self.grad_clip)
        for optimizer, _ in self.optimizers:
            optimizer.step()
        for average in self.averages.values():
            average.update(self.weight)
        values = torch.stack([value.detach().double() for value in parts.values()])
        if self.sums is None:
            self.names, self.sums = tuple(parts), torch.zeros_like(values)
        if self.names != tuple(parts):
            raise UserError(
                f"The checkpoint was left by another version of this project: it records {', '.join(self.names)}; this "
                f"version, {', '.join(parts)}. Go on with that version, or delete the checkpoint to start over."
            )
        self.sums.add_(values)

    def capture(self) -> None:
        """Let `take` replay the step as a CUDA graph. It is warmed up and recorded on the state as it is, which is put
        back: every step of a run, before a stop and after it, is a replay."""
        before = {id(t): t.detach().clone() for t in self._state()}
        self.load(0)
        replay = graph.capture(self.run, list(self.inputs.generators.values()))
        with torch.no_grad():
            for tensor in self._state():  # what is not of before is an optimiser's, which begins with zeros, or a sum
                tensor.copy_(before[id(tensor)]) if id(tensor) in before else tensor.zero_()
        self.take = replay

    def _state(self) -> list[Tensor]:
        """All tensors that a step changes, but gradients."""
        found = list(self.module.state_dict(keep_vars=True).values())
        for average in self.averages.values():
            found += average.own.values()
        for optimizer, _ in self.optimizers:
            found += [v for state in optimizer.state.values() for v in state.values() if isinstance(v, Tensor)]
        return found if self.sums is None else [*found, self.sums]
