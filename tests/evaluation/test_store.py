from __future__ import annotations

import json
from pathlib import Path

import numpy as np
import pytest

from diffsiam.errors import UserError
from diffsiam.evaluation import store

META = {
    "dataset": "digits",
    "classes": ["0", "1", "2"],
    "metric": "accuracy",
    "counts": {"train": 6, "test": 4},
    "splits": {"val": [1, 4]},
}


def arrays() -> dict[str, np.ndarray]:
    rng = np.random.default_rng(0)
    return {
        "train": rng.normal(size=(6, 5)).astype(np.float32),
        "train_labels": np.array([0, 1, 2, 0, 1, 2]),
        "test": rng.normal(size=(4, 5)).astype(np.float32),
        "test_labels": np.array([2, 1, 0, 0]),
    }


@pytest.fixture
def files(tmp_path: Path) -> tuple[Path, Path]:
    features, meta = tmp_path / "digits.npz", tmp_path / "meta.json"
    store.write(features, **arrays())
    meta.write_text(json.dumps(META))
    return features, meta


def test_what_was_written_is_read(files):
    read = store.read(*files)
    for name, array in arrays().items():
        assert (getattr(read, name) == array).all()
        assert getattr(read, name).dtype == array.dtype
    assert (read.dataset, read.classes) == ("digits", ["0", "1", "2"])


def test_edges_of_segments_are_read_where_they_were_written_and_fit(files: tuple[Path, Path]) -> None:
    features, meta = files
    assert store.read(*files).edges is None
    store.write(features, **arrays(), edges=np.array([0, 2, 5]))
    assert store.read(*files).edges.tolist() == [0, 2, 5]
    for wrong in ([0, 2, 4], [1, 5], [0, 3, 2, 5], [5]):
        store.write(features, **arrays(), edges=np.array(wrong))
        with pytest.raises(UserError, match="do not rise from 0 to 5"):
            store.read(features, meta)


def test_validation_images_are_those_of_meta(files):
    assert store.read(*files).validation.tolist() == [1, 4]


def test_write_leaves_nothing_behind_when_it_fails(tmp_path, monkeypatch):
    def full_disk(file, **kwargs):
        file.write(b"half")
        raise OSError("No space left on device")

    monkeypatch.setattr(np, "savez", full_disk)
    with pytest.raises(OSError, match="No space"):
        store.write(tmp_path / "f.npz", **arrays())
    assert list(tmp_path.iterdir()) == []


def with_value(array: np.ndarray, value: float) -> np.ndarray:
    array[3, 2] = value
    return array


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"train": with_value(arrays()["train"], np.nan)}, r"train holds nan in image 3, and 1 of 6 images"),
        ({"test": with_value(arrays()["test"], np.inf)}, r"test holds inf in image 3, and 1 of 4 images"),
        ({"train": np.zeros((6, 5, 1), np.float32)}, r"train has shape \(6, 5, 1\), type float32; needed is"),
        ({"train": np.zeros((6, 5))}, r"train has shape \(6, 5\), type float64"),
        ({"test": np.zeros((4, 7), np.float32)}, r"5 dimensions in train, 7 in test"),
        ({"test": np.zeros((0, 5), np.float32), "test_labels": np.zeros(0, int)}, r"not empty"),
        ({"train_labels": np.array([0, 1, 2, 0, 1, 3])}, r"train_labels holds labels from 0 to 3; allowed are 0 to 2"),
        ({"test_labels": np.array([0, -1, 2, 0])}, r"test_labels holds labels from -1 to 2"),
        ({"test_labels": np.array([0, 1, 2])}, r"test_labels has shape \(3,\)"),
        ({"test_labels": np.array([0.0, 1.0, 2.0, 0.0])}, r"test_labels has shape \(4,\) and type float64"),
        ({"train": arrays()["train"][:5], "train_labels": np.zeros(5, int)}, r"train has 5 images, meta.json says 6"),
    ],
    ids=lambda value: value if isinstance(value, str) else "",
)
def test_a_bad_array_is_an_error_that_names_file_value_and_remedy(files, change, message):
    features, meta = files
    np.savez(features, **(arrays() | change))
    with pytest.raises(UserError, match=message) as error:
        store.read(features, meta)
    assert str(features) in str(error.value)
    assert "Delete" in str(error.value)


def test_damaged_and_foreign_files_are_errors(files):
    features, meta = files
    whole = features.read_bytes()
    for content in (whole[: len(whole) // 2], whole[:-40], b"", b"not a zip"):
        features.write_bytes(content)
        with pytest.raises(UserError, match=r"digits.npz: not a complete .npz"):
            store.read(features, meta)
    flipped = bytearray(whole)
    flipped[whole.index(arrays()["train"].tobytes()) + 7] ^= 255
    features.write_bytes(flipped)
    with pytest.raises(UserError, match=r"digits.npz: not a complete .npz.*CRC"):
        store.read(features, meta)
    np.save(features.with_suffix(".npy"), np.zeros(3))
    with pytest.raises(UserError, match=r"not a complete .npz"):
        store.read(features.with_suffix(".npy"), meta)


def test_pickled_objects_are_refused(files):
    features, meta = files
    np.savez(features, **(arrays() | {"train": np.array([{"a": 1}], dtype=object)}))
    with pytest.raises(UserError, match=r"not a complete .npz file of plain arrays.*pickle"):
        store.read(features, meta)


def test_numbers_whose_products_overflow_are_refused(files):
    features, meta = files
    whole = arrays()
    np.savez(features, **(whole | {"test": whole["test"] * np.float32(1e15)}))
    store.read(features, meta)
    for large in (1e19, -1e19):
        np.savez(features, **(whole | {"test": np.full_like(whole["test"], large)}))
        with pytest.raises(UserError, match=r"test holds numbers up to 1e\+19; above 1e\+16 their products leave"):
            store.read(features, meta)


def test_a_missing_array_or_file_is_named(files):
    features, meta = files
    np.savez(features, **{k: v for k, v in arrays().items() if k != "test"})
    with pytest.raises(UserError, match=r"digits.npz: test is not in it; needed are train, train_labels"):
        store.read(features, meta)
    features.unlink()
    with pytest.raises(UserError, match=r"digits.npz: no such file"):
        store.read(features, meta)


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"metric": "f1"}, r"metric 'f1'; needed are.*metric one of accuracy, mean_per_class"),
        ({"splits": {"val": [0, 6]}}, r"splits.val holds 2 indices from 0 to 6, allowed are 0 to 5"),
        ({"splits": {"val": []}}, r"splits.val"),
        ({"splits": {"val": [0, 1, 2, 3, 4, 5]}}, r"splits.val"),
        ({"splits": {}}, r"splits.val"),
        ({"counts": None}, r"counts"),
    ],
    ids=str,
)
def test_a_meta_file_that_does_not_fit_is_an_error(files, change, message):
    features, meta = files
    meta.write_text(json.dumps(META | change))
    with pytest.raises(UserError, match=message):
        store.read(features, meta)


def test_a_meta_file_without_a_key_is_an_error(files):
    features, meta = files
    meta.write_text(json.dumps({k: v for k, v in META.items() if k != "classes"}))
    with pytest.raises(UserError, match=r"meta.json: no classes; needed are"):
        store.read(features, meta)


def test_results_are_json_with_one_line_per_key(tmp_path):
    store.write_result(tmp_path / "r.json", {"a": 1, "confusion": [[1, 2], [3, 4]]})
    text = (tmp_path / "r.json").read_text()
    assert json.loads(text) == {"a": 1, "confusion": [[1, 2], [3, 4]]}
    assert len(text.splitlines()) == 4
    with pytest.raises(ValueError, match="JSON"):
        store.write_result(tmp_path / "s.json", {"a": float("nan")})
    assert [p.name for p in tmp_path.iterdir()] == ["r.json"]
