"""Features of one's own: arrays, or an .npz that no stage wrote, as the protocols take them."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import ArrayLike, NDArray

from diffsiam import params, runtime
from diffsiam.data import readers
from diffsiam.errors import UserError
from diffsiam.evaluation import store


def feature_set(
    features: Path | str | Mapping[str, ArrayLike], name: str, metric: str, cfg: params.Data
) -> store.FeatureSet:
    """Features from elsewhere, which no meta.json describes, checked.

    Args:
        features: arrays by the names of `store.KEYS`, or an .npz of them: train and test (N, d) of numbers, their
            labels (N,) of whole numbers or text. An array ``val``, if there is one, holds the rows of train that choose
            the penalty; else ``cfg.val_fraction`` is drawn, as for a data set of that ``name``.
        metric: one of `store.METRICS`.
    Raises:
        UserError: an array is missing or not of its kind, NaN or infinity, labels in test that train has not.
    """
    title = str(features) if isinstance(features, Path | str) else "features"
    if metric not in store.METRICS:
        raise UserError(f"{title}: metric: met {metric!r}, allowed are {', '.join(store.METRICS)}.")
    given: Mapping[str, ArrayLike] = runtime.read_arrays(features) if isinstance(features, Path | str) else features
    if absent := [key for key in store.KEYS if key not in given]:
        raise UserError(f"{title}: no {', '.join(absent)}; needed are {', '.join(store.KEYS)}, val may be there too.")
    x = {split: _array(title, split, given[split], "iuf", 2).astype(np.float32) for split in ("train", "test")}
    labels = {split: _array(title, f"{split}_labels", given[f"{split}_labels"], "iuUb", 1) for split in x}
    classes, codes = np.unique(labels["train"], return_inverse=True)
    if strange := sorted(set(labels["test"].tolist()) - set(classes.tolist()), key=str):
        raise UserError(f"{title}: test_labels has classes that train_labels has not: {str(strange[:5])[1:-1]}.")
    if "val" in given:
        val = _array(title, "val", given["val"], "iu", 1)
    else:
        val = readers.validation(codes, cfg.val_fraction, cfg.val_draw, cfg.split_seed, name)
    meta = {
        "dataset": name,
        "classes": [str(c) for c in classes],
        "metric": metric,
        "counts": {split: len(array) for split, array in x.items()},
        "splits": {"val": val.tolist()},
    }
    found = store.FeatureSet(x["train"], codes, x["test"], np.searchsorted(classes, labels["test"]), meta)
    if problem := store.problems(found):
        raise UserError(f"{title}: {problem[1].removeprefix('splits.')}.")
    return found


_KINDS = {"iuf": "numbers", "iuUb": "whole numbers or text", "iu": "whole numbers"}  # of NumPy's kinds


def _array(title: str, key: str, value: ArrayLike, kinds: str, ndim: int) -> NDArray[Any]:
    array = np.asarray(value)
    if array.dtype.kind not in kinds or array.ndim != ndim or not array.size:
        shape = "(N, d)" if ndim == 2 else "(N,)"
        raise UserError(f"{title}: {key}: met {array.dtype} {array.shape}, needed are {_KINDS[kinds]} {shape}.")
    return array
