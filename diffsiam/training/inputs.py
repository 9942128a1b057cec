"""What a training step is given: images and random numbers, in tensors and generators that stay in place.

`Inputs.load` brings those of one step to the device without waiting for it; `Inputs.images` and `Inputs.generators` are
what the step, captured or not, reads.
"""

from __future__ import annotations

import functools
from collections.abc import Sequence
from concurrent.futures import Future, ThreadPoolExecutor

import numpy as np
import torch
from torch import Tensor

from diffsiam import runtime
from diffsiam.data.images import Images

_RESIDENT = 0.25  # of a GPU's free memory: images that take less live there


def step_indices(size: int, batch_size: int, seed: int, step: int) -> np.ndarray:
    """Images of one step: consecutive pieces of an endless row of permutations, one per epoch."""
    start, stop = step * batch_size, (step + 1) * batch_size
    pieces = []
    for epoch in range(start // size, (stop - 1) // size + 1):
        pieces.append(_permutation(size, seed, epoch)[max(start - epoch * size, 0) : stop - epoch * size])
    return np.concatenate(pieces)


@functools.lru_cache(maxsize=2)  # a step seldom needs more than two, and three million images take long to shuffle
def _permutation(size: int, seed: int, epoch: int) -> np.ndarray:
    return runtime.rng(seed, "order", epoch).permutation(size)


class Inputs:
    """Images and generators of each step of a run.

    Args:
        images: all of them; those that fit are kept on the device, others are read a step ahead by a thread.
        labels: what belongs to each image, (N, ...); kept on the device.
        rows: of each batch of ``batch_size``, those that this process trains on.
        purposes: names of the generators; each is seeded anew for every step, by (seed, purpose, step).
    """

    def __init__(
        self,
        images: Images,
        batch_size: int,
        seed: int,
        device: torch.device,
        *,
        labels: Tensor | None = None,
        rows: slice = slice(None),
        purposes: Sequence[str] = (),
    ) -> None:
        self.size, self.batch_size, self.seed, self.device, self.rows = len(images), batch_size, seed, device, rows
        self.generators = {purpose: runtime.generator(seed, purpose, 0, device) for purpose in purposes}
        self._labels = None if labels is None else labels.to(device)
        self._indices = torch.zeros(len(range(batch_size)[rows]), dtype=torch.int64, device=device)
        self._resident: Tensor | None = None
        if isinstance(images, Tensor) and (device.type == "cpu" or _fits(images, device)):
            self._resident = images.to(device)
            return
        self._all, self._ahead = images, ThreadPoolExecutor(1)
        self._next: tuple[int, Future[Tensor]] | None = None
        self._buffer = torch.zeros((len(self._indices), *images.shape[1:]), dtype=torch.uint8, device=device)

    def load(self, step: int) -> None:
        """Bring the images of ``step`` (0-based) to where `images` finds them, and seed its generators."""
        for purpose, generator in self.generators.items():
            generator.manual_seed(runtime.derive_seed(self.seed, purpose, step))
        self._indices.copy_(self._pinned(self._chosen(step)), non_blocking=True)
        if self._resident is None:
            read = self._next[1] if self._next and self._next[0] == step else self._ahead.submit(self._read, step)
            self._next = step + 1, self._ahead.submit(self._read, step + 1)
            self._buffer.copy_(read.result(), non_blocking=True)

    def images(self) -> Tensor:
        """The images of the step that was loaded, on the device; uint8, (N, H, W, C)."""
        return self._buffer if self._resident is None else self._resident.index_select(0, self._indices)

    def labels(self) -> Tensor:
        """What belongs to these images, on the device."""
        assert self._labels is not None
        return self._labels.index_select(0, self._indices)

    def mirror(self, x: Tensor, probability: float, purpose: str) -> Tensor:
        """The images ``x`` (N, C, H, W) of the step, each mirrored with ``probability``; the generator of ``purpose``
        draws."""
        drawn = torch.rand(self.batch_size, generator=self.generators[purpose], device=self.device)[self.rows]
        return torch.where((drawn < probability).view(-1, 1, 1, 1), x.flip(3), x)

    def _chosen(self, step: int) -> Tensor:
        return torch.from_numpy(step_indices(self.size, self.batch_size, self.seed, step)[self.rows])

    def _read(self, step: int) -> Tensor:
        return self._pinned(self._all[self._chosen(step)])

    def _pinned(self, tensor: Tensor) -> Tensor:
        """In memory that a GPU copies from without stopping the host."""
        return tensor.pin_memory() if self.device.type == "cuda" else tensor


def _fits(images: Tensor, device: torch.device) -> bool:
    free, _ = torch.cuda.mem_get_info(device)
    return images.nbytes < _RESIDENT * free
