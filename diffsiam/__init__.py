"""DiffSiam: self-supervised learning that joins SimSiam with a frozen diffusion model.

What a script or a notebook needs is here by name, and lives in `diffsiam.api`, which is loaded when the first of the
names is asked for.
"""

from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from diffsiam.api import (
        counterfactual,
        evaluate,
        features,
        invert,
        load_diffusion,
        load_encoder,
        load_representation,
        manipulate,
    )

__all__ = [
    "counterfactual",
    "evaluate",
    "features",
    "invert",
    "load_diffusion",
    "load_encoder",
    "load_representation",
    "manipulate",
]


def __getattr__(name: str) -> Any:
    if name not in __all__:  # modules too come here, before they are imported
        raise AttributeError(f"module 'diffsiam' has no attribute {name!r}")
    from diffsiam import api

    return vars(api)[name]
