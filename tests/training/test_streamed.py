"""Training on images that are decoded as they are used leaves the weights of training on an array of them."""

from __future__ import annotations

from pathlib import Path

import numpy as np
from PIL import Image

from diffsiam import params, runtime
from diffsiam.training import diffusion, representation
from tests.training import tiny


def streamed(folder: Path, root: Path) -> Path:
    """The tiny data set as files under ``root``, and a prepared folder that names them."""
    (root / "Bedroom").mkdir(parents=True)
    names = [f"{i:02d}.png" for i in range(tiny.IMAGES)]
    for name, pixels in zip(names, tiny.images(), strict=True):
        Image.fromarray(pixels).save(root / "Bedroom" / name)
    folder.mkdir()
    np.save(folder / "images_train.npy", np.array(names, np.bytes_))
    checksum = runtime.sha256(folder / "images_train.npy")
    meta = {"image_size": tiny.SIDE, "source": {"folder": "Bedroom"}, "sha256": {"images_train.npy": checksum}}
    runtime.write_json(folder / "meta.json", meta)
    return folder


def test_training_on_streamed_images_gives_the_bits_of_training_on_an_array(tmp_path: Path) -> None:
    cfg, rt = tiny.section(params.Representation), tiny.section(params.Runtime)
    data = {"array": tiny.data(tmp_path / "array"), "stream": streamed(tmp_path / "stream", tmp_path / "root")}
    weights = {}
    for name, folder in data.items():
        dm, out = tmp_path / f"dm-{name}", tmp_path / f"out-{name}"
        state = tmp_path / f"{name}.pt"
        diffusion.run(tiny.section(params.Diffusion), rt, folder, dm, state, tmp_path / "root")
        representation.run("diffsiam_hier", cfg, rt, folder, dm, out, state, seed=0, root=tmp_path / "root")
        files = [dm / "diffusion_pytorch_model.safetensors", *sorted(out.glob("*.safetensors"))]
        weights[name] = {file.name: runtime.sha256(file) for file in files}
    assert len(weights["array"]) == 5
    assert weights["stream"] == weights["array"]
