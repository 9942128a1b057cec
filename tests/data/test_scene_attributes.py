"""Pseudo-labels: the user's own table first, else the predictor in its published layout, with random weights here."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pandas as pd
import pytest
import torch
from PIL import Image
from torchvision import transforms
from torchvision.models import resnet18

from diffsiam import params
from diffsiam.data import readers, scene_attributes, unlabelled
from diffsiam.errors import UserError
from tests.data.small_data import save_image

LABELS = ["driving", "indoor lighting", "rusty", "carpet"]
RT = params.Runtime("cpu", "fp32", 1, False, False, False, 5.0, False)


@pytest.fixture(scope="module")
def network() -> torch.nn.Module:
    torch.manual_seed(0)
    model = resnet18(num_classes=365)
    model.maxpool = torch.nn.Identity()
    return model.eval()


@pytest.fixture
def root(cfg: params.Data, network: torch.nn.Module) -> Path:
    """Three bedrooms, and the predictor as it is published: a checkpoint of a data-parallel model."""
    root = Path(cfg.root)
    for part, count in (("train", 2), ("test", 1)):
        for i in range(count):
            save_image(root / f"Bedroom/{part}/bedroom/{part}{i}.png", i + 10 * len(part), (12, 9))
    (root / "places365").mkdir()
    state = {f"module.{name}": value for name, value in network.state_dict().items()}
    torch.save({"arch": "resnet18", "state_dict": state}, root / "places365" / scene_attributes.NETWORK)
    matrix = np.random.default_rng(0).normal(size=(len(LABELS), 512))
    np.save(root / "places365" / scene_attributes.MATRIX, matrix)
    (root / "places365" / scene_attributes.LABELS).write_text("\n".join(LABELS) + "\n")
    return root


def test_responses_are_the_matrix_times_the_pooled_features_less_their_mean(
    cfg: params.Data, root: Path, network: torch.nn.Module, tmp_path: Path
) -> None:
    """Against the published recipe: a hook on the pooling layer, and torchvision's transforms."""
    scene_attributes.run("Bedroom", ["carpet", "rusty"], cfg, RT, tmp_path / "a.csv")
    features: list[torch.Tensor] = []
    hook = network.avgpool.register_forward_hook(lambda module, args, output: features.append(output.flatten()))
    prepare = transforms.Compose(
        [
            transforms.Resize((224, 224)),
            transforms.ToTensor(),
            transforms.Normalize([0.485, 0.456, 0.406], [0.229, 0.224, 0.225]),
        ]
    )
    names = ["train/bedroom/train0.png", "train/bedroom/train1.png", "test/bedroom/test0.png"]
    for name in names:
        with Image.open(root / "Bedroom" / name) as image, torch.no_grad():
            network(prepare(image.convert("RGB"))[None])
    hook.remove()
    matrix = np.load(root / "places365" / scene_attributes.MATRIX)
    responses = np.array([matrix[[3, 2]] @ feature.numpy() for feature in features])
    frame = pd.read_csv(tmp_path / "a.csv", index_col="image")
    assert list(frame.columns) == ["carpet", "rusty"]
    assert list(frame.index) == names
    assert np.allclose(frame.to_numpy(), responses - responses.mean(axis=0), rtol=1e-3, atol=1e-4)


def test_an_own_table_comes_before_the_predictor(cfg: params.Data, root: Path, tmp_path: Path) -> None:
    (root / "Bedroom_attributes.csv").write_text("image,rusty\nx,1\n")
    scene_attributes.run("Bedroom", ["rusty"], cfg, RT, tmp_path / "a.csv")
    assert (tmp_path / "a.csv").read_text() == "image,rusty\nx,1\n"


def test_without_table_and_weights_the_message_names_both(cfg: params.Data, tmp_path: Path) -> None:
    with pytest.raises(UserError) as e:
        scene_attributes.run("Bedroom", ["rusty"], cfg, RT, tmp_path / "a.csv")
    for part in (
        f"{cfg.root}/Bedroom_attributes.csv",
        "image,<name>",
        f"{cfg.root}/places365",
        scene_attributes.NETWORK,
    ):
        assert part in str(e.value)


def test_an_unknown_attribute_is_answered_with_those_near_it(cfg: params.Data, root: Path, tmp_path: Path) -> None:
    with pytest.raises(UserError, match=r"no attribute 'lighting'.*indoor lighting"):
        scene_attributes.run("Bedroom", ["lighting"], cfg, RT, tmp_path / "a.csv")


def test_another_network_or_matrix_is_refused(cfg: params.Data, root: Path, tmp_path: Path) -> None:
    np.save(root / "places365" / scene_attributes.MATRIX, np.zeros((3, 512)))
    with pytest.raises(UserError, match=r"met shape \(3, 512\), needed is \(4, 512\)"):
        scene_attributes.run("Bedroom", ["rusty"], cfg, RT, tmp_path / "a.csv")
    torch.save({"state_dict": {}}, root / "places365" / scene_attributes.NETWORK)
    with pytest.raises(UserError, match="not the published scene-attribute predictor"):
        scene_attributes.run("Bedroom", ["rusty"], cfg, RT, tmp_path / "a.csv")


def test_an_image_that_cannot_be_read_is_named_with_its_cause(cfg: params.Data, root: Path, tmp_path: Path) -> None:
    (root / "Bedroom/train/bedroom/train1.png").write_bytes(b"")
    with pytest.raises(UserError, match=r"image train/bedroom/train1\.png: cannot be read: empty"):
        scene_attributes.run("Bedroom", ["rusty"], cfg, RT, tmp_path / "a.csv")


def test_names_of_any_bytes_come_back_from_the_table(tmp_path: Path) -> None:
    names = ["caf\udce9.png", "寝室.png"]
    scene_attributes.write(tmp_path / "a.csv", names, ["rusty"], np.array([[1.0], [-1.0]]))
    split = readers.Split(names, np.zeros(2, np.int64), lambda i: Image.new("RGB", (1, 1)))
    source = unlabelled.with_attributes(readers.Source(["bedroom"], {"train": split}, {}), tmp_path / "a.csv")
    assert source.splits["train"].attributes.tolist() == [[1], [0]]
