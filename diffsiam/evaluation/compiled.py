"""Compiled loops: numba's decorator as this package uses it, and threads over blocks of work.

Numba's cache notices an edit of a function's own file only, so a kernel and all that it calls live in one
module.
"""

from __future__ import annotations

import os
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from typing import Any

import numba

# Only the order of sums may change, so that they use vector registers; NaN and infinity keep their meaning.
_FASTMATH = {"contract", "reassoc", "nsz", "arcp"}


def jit(function: Callable[..., Any]) -> Any:
    """Compile ``function`` on its first call, without the GIL; later processes find the machine code on disk,
    beside the source or in the user's cache folder, and compile anew where neither can be written."""
    # Inlined into their callers: else the process that compiles links to a kernel's own code and later ones to the copy
    # that was optimised for its caller, with sums in another order.
    options: dict[str, Any] = {"nogil": True, "fastmath": _FASTMATH, "error_model": "numpy", "forceinline": True}
    try:
        return numba.njit(function, cache=True, **options)
    except RuntimeError:  # numba's word for: no folder to cache in
        return numba.njit(function, **options)


def threads() -> int:
    """CPU threads of this job: OMP_NUM_THREADS (Snakemake sets it to the rule's threads), else all cores."""
    limit = os.environ.get("OMP_NUM_THREADS", "")
    return min(numba.get_num_threads(), int(limit)) if limit.isdigit() and int(limit) else numba.get_num_threads()


def over_blocks(function: Callable[[int, int], Any], items: int, block: int) -> list[Any]:
    """``function(start, stop)`` for blocks that cover ``range(items)``, on all threads; results in order."""
    starts = range(0, items, block)
    if len(starts) == 1:
        return [function(0, items)]
    with ThreadPoolExecutor(threads()) as pool:
        return list(pool.map(lambda start: function(start, min(start + block, items)), starts))
