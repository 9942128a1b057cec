"""Several processes that train one model: each holds an equal part of every batch.

`torchrun` starts the processes; alone, everything here is a no-op. The global batch, its random draws and batch norm's
statistics stay what they are in one process, so the loss does too.
"""

from __future__ import annotations

import os
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor, distributed, nn

from diffsiam.errors import UserError


@dataclass(frozen=True)
class World:
    """This process among all: ``rank`` in 0..size-1, and the device on which it meets the others."""

    rank: int
    size: int
    device: torch.device

    @property
    def first(self) -> bool:
        """Whether this is the process that prints and writes."""
        return self.rank == 0

    @property
    def meet_every(self) -> int:
        """Steps between two calls of `any`, which make the processes wait for each other."""
        return 1 if self.size == 1 else 16

    def rows(self, batch_size: int) -> slice:
        """This process's part of a batch."""
        share, rest = divmod(batch_size, self.size)
        if rest:
            raise UserError(
                f"batch_size: {batch_size} images cannot be shared evenly by {self.size} processes. Choose a batch "
                f"size divisible by {self.size}, or another number of processes."
            )
        return slice(self.rank * share, (self.rank + 1) * share)

    def mean(self, values: Tensor) -> Tensor:
        """Mean over the processes."""
        if self.size > 1:
            distributed.all_reduce(values)
        return values / self.size

    def any(self, *flags: bool) -> list[bool]:
        """For each flag, whether any process raised it: so all stop and save at the same step."""
        if self.size == 1:
            return list(flags)
        raised = torch.tensor([float(flag) for flag in flags], device=self.device)
        distributed.all_reduce(raised, op=distributed.ReduceOp.MAX)
        return [bool(flag) for flag in raised.tolist()]

    def wrap(self, module: nn.Module) -> nn.Module:
        """``module`` with gradients averaged over the processes."""
        if self.size == 1:
            return module
        return nn.parallel.DistributedDataParallel(module, forward_sync_buffers=False)


@contextmanager
def world(device: torch.device) -> Iterator[World]:
    """The processes that `torchrun` started, connected by NCCL on GPUs and gloo on CPUs."""
    size = int(os.environ.get("WORLD_SIZE", 1))
    if size == 1:
        yield World(0, 1, device)
        return
    if device.type == "cuda":
        torch.cuda.set_device(device)
    distributed.init_process_group("nccl" if device.type == "cuda" else "gloo")
    try:
        yield World(distributed.get_rank(), size, device)
    finally:
        distributed.destroy_process_group()


def synchronized(module: nn.Module, device: torch.device) -> nn.Module:
    """Let every batch norm in ``module`` see the whole batch; `nn.SyncBatchNorm` refuses CPU tensors."""
    if device.type == "cuda":
        return nn.SyncBatchNorm.convert_sync_batchnorm(module)
    for parent in list(module.modules()):
        for name, child in parent.named_children():
            if isinstance(child, nn.BatchNorm1d | nn.BatchNorm2d):
                setattr(parent, name, _SynchronizedBatchNorm(child))
    return module


class _Total(torch.autograd.Function):
    """Sum over the processes; so is its gradient, since each process's loss depends on every process's term."""

    @staticmethod
    def forward(ctx: Any, value: Tensor) -> Tensor:
        total = value.clone()
        distributed.all_reduce(total)
        return total

    @staticmethod
    def backward(ctx: Any, gradient: Tensor) -> Tensor:  # type: ignore[override]
        return _Total.forward(ctx, gradient.contiguous())


def _total(value: Tensor) -> Tensor:
    return _Total.apply(value)


class _SynchronizedBatchNorm(nn.modules.batchnorm._BatchNorm):
    """Batch norm over the images of all processes, for any backend, with the weights and statistics of ``norm``."""

    def __init__(self, norm: nn.BatchNorm1d | nn.BatchNorm2d) -> None:
        super().__init__(norm.num_features, norm.eps, norm.momentum, norm.affine)
        self.__dict__["_parameters"] = norm._parameters
        self.__dict__["_buffers"] = norm._buffers

    def _check_input_dim(self, input: Tensor) -> None:
        """Any number of dimensions will do."""

    def forward(self, x: Tensor) -> Tensor:
        """(N, C, ...) of this process, normalised with the mean and variance over all processes."""
        if not self.training:
            return super().forward(x)
        size = distributed.get_world_size()
        axes = [axis for axis in range(x.dim()) if axis != 1]
        shape = [-1 if axis == 1 else 1 for axis in range(x.dim())]
        count = size * x.numel() // x.shape[1]
        mean = _total(x.float().sum(axes)) / count
        centred = x.float() - mean.view(shape)
        variance = _total(centred.square().sum(axes)) / count
        with torch.no_grad():
            assert self.running_mean is not None
            assert self.running_var is not None
            assert self.momentum is not None
            self.running_mean.lerp_(mean, self.momentum)
            self.running_var.lerp_(variance * count / (count - 1), self.momentum)
            self.num_batches_tracked.add_(1)  # type: ignore[union-attr]
        out = centred * (variance + self.eps).rsqrt().view(shape)
        if self.affine:
            out = out * self.weight.view(shape) + self.bias.view(shape)
        return out.to(x.dtype)
