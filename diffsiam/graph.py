"""A function of tensors that stay in place, recorded once as a CUDA graph and replayed.

A replay costs the host one call in place of thousands, and the GPU no gap between its kernels. What is recorded must
not wait for the host, copy from it, or branch on data; tests/training/test_waits.py shows that of the training steps.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import TypeVar

import torch
from torch import Tensor

_WARM_UPS = 3  # calls before the recording: kernels are chosen and compiled, and buffers made

T = TypeVar("T")


def capture(function: Callable[[], T], generators: Sequence[torch.Generator] = ()) -> Callable[[], T]:
    """Record ``function()`` on the current CUDA device; the result replays it and returns what it returned, whose
    tensors each replay fills anew.

    The function runs a few times before: what it changes in place has changed then. A generator must be seeded before
    each replay, and then gives the numbers that it would give a plain call.

    Args:
        generators: that the function draws from, besides PyTorch's own.
    """
    stream = torch.cuda.Stream()
    stream.wait_stream(torch.cuda.current_stream())
    with torch.cuda.stream(stream):
        for _ in range(_WARM_UPS):
            function()
    torch.cuda.current_stream().wait_stream(stream)
    graph = torch.cuda.CUDAGraph()
    for generator in generators:
        graph.register_generator_state(generator)
    # Threads that read images ahead may go on meanwhile.
    with torch.cuda.graph(graph, capture_error_mode="thread_local"):
        result = function()

    def replay() -> T:
        graph.replay()
        return result

    return replay


class Replayed:
    """A function of tensors on a GPU that is captured once for each shape of its arguments.

    What it returns is overwritten by its next call.
    """

    def __init__(self, function: Callable[..., Tensor]) -> None:
        self.function = function
        self._captured: dict[tuple[torch.Size, ...], tuple[list[Tensor], Callable[[], Tensor]]] = {}

    def __call__(self, *tensors: Tensor) -> Tensor:
        """The function of ``tensors``, all on one device; without gradient."""
        shapes = tuple(t.shape for t in tensors)
        if shapes not in self._captured:
            places = [t.clone() for t in tensors]
            self._captured[shapes] = places, capture(lambda: self.function(*places))
        places, replay = self._captured[shapes]
        for place, tensor in zip(places, tensors, strict=True):
            place.copy_(tensor)
        return replay()
