"""Encoders from elsewhere: the features are the network's own, and the protocols those of the stages."""

from __future__ import annotations

import dataclasses
import json
import re
import sys
import urllib.error
from pathlib import Path

import numpy as np
import pytest
import torch
from torchvision import models
from torchvision.transforms.v2 import functional

from diffsiam import cli, params, runtime, weights
from diffsiam.data import prepare
from diffsiam.errors import UserError
from diffsiam.evaluation import external
from diffsiam.models.encoder import Encoder

DEMO = Path(__file__).resolve().parents[2] / "workflow" / "presets" / "demo.yaml"
QUICK = {
    "linear": {"penalties": 2, "penalty_min": 1000.0, "penalty_max": 1e4, "tolerance": 1e-2},
    "fewshot": {"episodes": 20, "epochs": 3},
    "runtime": {"device": "cpu", "precision": "fp32", "threads": 1},
}
OPTIONS = ["--params", str(DEMO), "--params", json.dumps(QUICK)]
MEAN, STD = [0.485, 0.456, 0.406], [0.229, 0.224, 0.225]


@pytest.fixture(autouse=True)
def one_thread():
    before = torch.get_num_threads()
    torch.set_num_threads(1)
    yield
    torch.set_num_threads(before)


@pytest.fixture(scope="module")
def resnet18() -> torch.nn.Module:
    """Untrained, with batch statistics that are not the identity."""
    torch.manual_seed(0)
    model = models.resnet18(weights=None).eval()
    for module in model.modules():
        if isinstance(module, torch.nn.BatchNorm2d):
            module.running_mean.normal_(0, 0.1)
            module.running_var.uniform_(0.5, 2)
    return model


@pytest.fixture(scope="module")
def saved(resnet18: torch.nn.Module, tmp_path_factory: pytest.TempPathFactory) -> Path:
    path = tmp_path_factory.mktemp("weights") / "resnet18.pth"
    torch.save(resnet18.state_dict(), path)
    return path


def penultimate(model: torch.nn.Module, images: np.ndarray) -> np.ndarray:
    """What enters ``fc`` for uint8 images (N, H, W, 3), by torchvision's own preprocessing."""
    seen = []
    hook = model.fc.register_forward_pre_hook(lambda _, args: seen.append(args[0]))
    x = functional.to_dtype(torch.from_numpy(images).permute(0, 3, 1, 2), torch.float32, scale=True)
    with torch.no_grad():
        model(functional.normalize(x, MEAN, STD))
    hook.remove()
    return seen[0].numpy()


def results(out: Path) -> list[dict]:
    return [json.loads((out / protocol / "digits.json").read_text()) for protocol in ("linear", "fewshot")]


def by_hand(features: Path, meta: Path, out: Path, method: str, seed: int) -> list[dict]:
    """The results of the two stages' own commands."""
    for stage in ("linear", "fewshot"):
        where = ["--features", features, "--meta", meta, "--out", out / stage / "digits.json"]
        assert cli.main([stage, *map(str, where), "--method", method, "--seed", str(seed), *OPTIONS]) == 0
    return results(out)


def test_torchvision_network_on_digits(resnet18, saved, tmp_path, capsys) -> None:
    out = tmp_path / "out"
    command = ["evaluate", "--encoder", "torchvision:resnet18", "--weights", str(saved), "--data", "digits"]
    assert cli.main([*command, "--image-size", "32", "--seed", "3", "--out", str(out), *OPTIONS]) == 0
    cfg = params.section(params.read(str(DEMO)), params.Data)
    prepare.run("digits", dataclasses.replace(cfg, image_size=32), tmp_path / "data")
    with np.load(out / "features" / "digits.npz") as stored:
        for split in ("train", "test"):
            images = np.load(tmp_path / "data" / f"images_{split}.npy")
            expected = penultimate(resnet18, images[-40:])
            assert stored[split].shape == (len(images), 512)
            np.testing.assert_allclose(stored[split][-40:], expected, rtol=1e-3, atol=1e-3 * expected.std())
            assert (stored[f"{split}_labels"] == np.load(tmp_path / "data" / f"labels_{split}.npy")).all()
    found = results(out)
    assert found == by_hand(
        out / "features/digits.npz", tmp_path / "data/meta.json", tmp_path, "torchvision:resnet18", 3
    )
    printed = capsys.readouterr().out
    assert printed == (out / "summary.md").read_text()
    assert f"| digits   | {found[0]['accuracy']:.2f} ± {found[0]['ci95']:.2f} |" in printed
    record = json.loads((out / "config.json").read_text())
    assert (record["dim"], record["params"]["data"]["image_size"]) == (512, 32)
    assert record["sha256"] == runtime.sha256(saved)


def test_own_encoder_gives_the_numbers_of_the_stages(tmp_path) -> None:
    torch.manual_seed(0)
    model = Encoder(4, 16)
    runtime.save_weights(tmp_path / "encoder.safetensors", model.state_dict())
    runtime.write_json(tmp_path / "config.json", {"encoder_width": 4, "image_size": 16})
    encoder = str(tmp_path / "encoder.safetensors")
    assert (
        cli.main(["evaluate", "--encoder", encoder, "--data", "digits", "--out", str(tmp_path / "out"), *OPTIONS]) == 0
    )
    data, features = tmp_path / "data", tmp_path / "features.npz"
    assert cli.main(["data", "digits", "--out", str(data), *OPTIONS]) == 0  # the demo's images are 16x16
    assert cli.main(["features", "--encoder", encoder, "--data", str(data), "--out", str(features), *OPTIONS]) == 0
    assert results(tmp_path / "out") == by_hand(features, data / "meta.json", tmp_path / "stages", encoder, 0)


def test_safetensors_and_torch_files_hold_the_same_encoder(resnet18, saved, tmp_path) -> None:
    runtime.save_weights(tmp_path / "resnet18.safetensors", resnet18.state_dict())
    x = torch.rand(2, 3, 32, 32) * 2 - 1
    files = (str(saved), str(tmp_path / "resnet18.safetensors"))
    first, second = (external.load("torchvision:resnet18", file, 32).model(x) for file in files)
    assert torch.equal(first, second)
    assert first.std() > 0


def test_weights_without_a_classifier_do(resnet18, tmp_path) -> None:
    """Self-supervised weights have none, or one of another width."""
    state = {k: v for k, v in resnet18.state_dict().items() if not k.startswith("fc.")}
    torch.save(state, tmp_path / "w.pth")
    torch.save(state | {"fc.weight": torch.zeros(7, 512), "fc.bias": torch.zeros(7)}, tmp_path / "seven.pth")
    x = torch.rand(2, 3, 32, 32)
    z = [external.load("torchvision:resnet18", str(tmp_path / name), 32).model(x) for name in ("w.pth", "seven.pth")]
    assert torch.equal(*z)


@pytest.mark.parametrize(
    ("name", "dim"),
    [("alexnet", 4096), ("convnext_tiny", 768), ("densenet121", 1024), ("efficientnet_v2_s", 1280), ("resnet50", 2048),
     ("mobilenet_v3_small", 1024), ("swin_t", 768), ("vgg11", 4096), ("vit_b_16", 768)],
)  # fmt: skip
def test_the_classifier_of_every_kind_of_network_is_found(name: str, dim: int) -> None:
    with torch.device("meta"):  # shapes alone
        model = models.get_model(name, weights=None).eval()
        external._without_classifier(name, model)
        assert model(torch.zeros(1, 3, 224, 224)).shape == (1, dim)


def test_a_network_without_a_linear_classifier_is_refused() -> None:
    with pytest.raises(UserError, match="squeezenet1_1: its classifier is no linear layer"):
        external._without_classifier("squeezenet1_1", models.squeezenet1_1(weights=None))


def test_images_are_standardized_as_published() -> None:
    x = torch.tensor([-1.0, 0.0, 1.0]).expand(1, 3, 1, 3)
    z = external.Standardized(torch.nn.Identity(), MEAN, STD)(x).view(3, 3)
    for c in range(3):
        assert z[c].tolist() == pytest.approx([(v - MEAN[c]) / STD[c] for v in (0, 0.5, 1)])


def test_published_weights_are_read_from_the_cache(resnet18, saved, tmp_path, monkeypatch) -> None:
    monkeypatch.setenv("TORCH_HOME", str(tmp_path))
    cached = tmp_path / "hub" / "checkpoints" / "resnet18-f37072fd.pth"
    cached.parent.mkdir(parents=True)
    cached.write_bytes(saved.read_bytes())
    with pytest.raises(
        UserError, match=r"resnet18-f37072fd.pth .*is damaged \(its sha256 does not start with f37072fd"
    ):
        external.load("torchvision:resnet18", None, None)
    monkeypatch.setattr(runtime, "sha256", lambda path: "f37072fd" + 56 * "0")
    found = external.load("torchvision:resnet18", "IMAGENET1K_V1", None)
    assert (found.image_size, found.weights) == (224, "IMAGENET1K_V1")
    x = torch.rand(2, 3, 32, 32)
    own = external.load("torchvision:resnet18", str(saved), None)
    assert torch.equal(found.model(x), own.model(x))


def test_a_published_file_that_holds_more_than_tensors_never_reaches_plain_pickle(tmp_path, monkeypatch) -> None:
    """torchvision would unpickle whatever has the checksum, of which eight digits are known."""
    monkeypatch.setenv("TORCH_HOME", str(tmp_path))
    cached = tmp_path / "hub" / "checkpoints" / "resnet18-f37072fd.pth"
    cached.parent.mkdir(parents=True)
    torch.save({"conv1.weight": Payload(tmp_path / "ran")}, cached)
    monkeypatch.setattr(runtime, "sha256", lambda path: "f37072fd" + 56 * "0")
    with pytest.raises(UserError, match=r"resnet18-f37072fd.pth: holds more than tensors, or damaged"):
        external.load("torchvision:resnet18", "IMAGENET1K_V1", None)
    assert not (tmp_path / "ran").exists()


def test_without_a_network_the_message_says_which_file_goes_where(tmp_path, monkeypatch) -> None:
    def refuse(*args: object, **kwargs: object) -> None:
        raise urllib.error.URLError("no route to host")

    monkeypatch.setenv("TORCH_HOME", str(tmp_path))
    monkeypatch.setattr(torch.hub, "download_url_to_file", refuse)
    place = tmp_path / "hub" / "checkpoints" / "resnet18-f37072fd.pth"
    url = "https://download.pytorch.org/models/resnet18-f37072fd.pth"
    with pytest.raises(UserError) as error:
        external.load("torchvision:resnet18", None, None)
    assert f"Fetch {url} where there is a network and put it at {place}" in str(error.value)


class Payload:
    """Runs code when unpickled."""

    def __init__(self, mark: Path) -> None:
        self.mark = mark

    def __reduce__(self) -> tuple:
        return Path.touch, (self.mark,)


def test_no_pickled_object_is_run(tmp_path) -> None:
    torch.save({"conv1.weight": Payload(tmp_path / "ran")}, tmp_path / "w.pth")
    with pytest.raises(UserError, match="code of a file is never run"):
        external.load("torchvision:resnet18", str(tmp_path / "w.pth"), None)
    assert not (tmp_path / "ran").exists()


@pytest.mark.parametrize(
    ("content", "message"),
    [
        (
            lambda state: {k.replace("layer4", "layer5"): v for k, v in state.items()},
            "25 missing: layer4.0.conv1.weight",
        ),
        (lambda state: {k: v[:1] for k, v in state.items() if v.ndim}, "100 of another shape: conv1.weight"),
        (lambda state: state | {"layer5.0.conv1.weight": torch.ones(1)}, "1 not expected: layer5.0.conv1.weight"),
    ],
)
def test_a_file_that_does_not_fit_is_refused(resnet18, tmp_path, content, message) -> None:
    torch.save(content(resnet18.state_dict()), tmp_path / "w.pth")
    with pytest.raises(UserError, match=message):
        external.load("torchvision:resnet18", str(tmp_path / "w.pth"), None)


def test_a_damaged_file_is_refused(saved, tmp_path) -> None:
    (tmp_path / "w.pth").write_bytes(saved.read_bytes()[:1000])
    with pytest.raises(
        UserError, match=r"w.pth: cannot be read: neither safetensors nor a file of torch.save's, or cut off"
    ):
        external.load("torchvision:resnet18", str(tmp_path / "w.pth"), None)


@pytest.mark.parametrize(
    ("encoder", "weights", "message"),
    [
        ("resnet18", None, "Give one of torchvision:NAME, timm:NAME, or the path of an encoder.safetensors"),
        ("torchvison:resnet18", None, "Give one of torchvision:NAME"),
        ("torchvision:resnet19", None, "no such network. torchvision has alexnet, .*resnet18, resnet34"),
        ("torchvision:resnet18", "V1", "--weights V1: no such file, and resnet18 has IMAGENET1K_V1, DEFAULT"),
        ("x/encoder.safetensors", "DEFAULT", "is the weights already"),
        ("x/encoder.safetensors", None, "x/config.json: no such file"),
    ],
)
def test_bad_names_list_what_is_allowed(encoder, weights, message) -> None:
    with pytest.raises(UserError, match=message):
        external.load(encoder, weights, None)


def test_a_foreign_safetensors_file_is_told_from_ours(tmp_path) -> None:
    (tmp_path / "config.json").write_text('{"architecture": "resnet50"}')
    with pytest.raises(
        UserError, match=r"no encoder_width or image_size.*name its network too: --encoder torchvision:"
    ):
        external.load(str(tmp_path / "model.safetensors"), None, None)


def test_mistakes_are_found_before_any_data_is_prepared(saved, tmp_path, capsys) -> None:
    base = [
        "evaluate",
        "--encoder",
        "torchvision:resnet18",
        "--weights",
        str(saved),
        "--out",
        str(tmp_path / "out"),
        *OPTIONS,
    ]
    assert cli.main([*base, "--data", "digits", "CIFAR11"]) == 2
    assert "CIFAR11" in capsys.readouterr().err
    assert cli.main([*base, "--data", "digits", "FFHQ", "Bedroom"]) == 2
    assert "--data FFHQ Bedroom: no classes to tell apart. Data sets with classes: CIFAR10," in capsys.readouterr().err
    for side in ("-1", "0", "1", "7", "1025", "100000"):
        assert cli.main([*base, "--data", "digits", "--image-size", side]) == 2
        assert f"--image-size {side}: allowed are 8 to 1024 pixels" in capsys.readouterr().err
    assert not (tmp_path / "out").exists()


def test_without_timm_the_message_says_how_to_install_it(monkeypatch) -> None:
    monkeypatch.setitem(sys.modules, "timm", None)
    with pytest.raises(UserError, match=r"timm is not installed. Run `pip install timm`"):
        external.load("timm:resnet18", None, None)


def test_timm_network_gives_its_pooled_features(tmp_path) -> None:
    timm = pytest.importorskip("timm", reason="timm is optional: `pip install timm`")
    model = timm.create_model("tf_efficientnet_lite0", pretrained=False).eval()  # takes means and deviations of 0.5
    torch.save(model.state_dict(), tmp_path / "w.pth")
    found = external.load("timm:tf_efficientnet_lite0", str(tmp_path / "w.pth"), 32)
    x = torch.rand(2, 3, 32, 32) * 2 - 1
    expected = model.forward_head(model.forward_features(x), pre_logits=True)
    torch.testing.assert_close(found.model(x), expected)
    with pytest.raises(UserError, match=r"nowhere.safetensors: no such file"):
        external.load("timm:tf_efficientnet_lite0", str(tmp_path / "nowhere.safetensors"), None)
    with pytest.raises(UserError, match=r"no such network. Near it: .*tf_efficientnet_lite0"):
        external.load("timm:tf_eficientnet_lite0", None, None)


# ------------------------------------------------------------------------------- how images are standardised
def googlenet() -> torch.nn.Module:
    """As published, in the form that torchvision gives it by name: it undoes ImageNet's statistics inside."""
    torch.manual_seed(0)
    model = models.googlenet(weights=None, transform_input=True, init_weights=False).eval()
    for module in model.modules():
        if isinstance(module, torch.nn.BatchNorm2d):
            module.running_var.fill_(0.01)
    return model


@pytest.mark.parametrize("auxiliary", [True, False])
def test_a_network_that_undoes_the_statistics_inside_gives_the_same_features_from_a_file(tmp_path, auxiliary) -> None:
    model = googlenet()
    state = {k: v for k, v in model.state_dict().items() if auxiliary or not k.startswith("aux")}
    torch.save(state, tmp_path / "w.pth")
    images = np.random.default_rng(0).integers(256, size=(2, 64, 64, 3), dtype=np.uint8)
    found = external.load("torchvision:googlenet", str(tmp_path / "w.pth"), 64)
    x = torch.from_numpy(images).permute(0, 3, 1, 2) / 127.5 - 1
    expected = penultimate(model, images)
    assert expected.std() > 0.1
    np.testing.assert_allclose(found.model(x).numpy(), expected, rtol=1e-3, atol=1e-4)
    assert (found.mean, found.std) == ((0.5, 0.5, 0.5), (0.5, 0.5, 0.5))


@pytest.mark.filterwarnings("ignore")  # filling shapes alone does nothing
def test_a_published_densenet_has_the_names_of_torchvisions_first_version(tmp_path) -> None:
    with torch.device("meta"):
        model = models.densenet121(weights=None)
    first = {
        re.sub(r"(layer\d+\.\D+)(\d)", r"\1.\2", name): torch.tensor(0.0).expand(tensor.shape)
        for name, tensor in model.state_dict().items()
    }
    assert "features.denseblock1.denselayer1.norm.1.weight" in first
    torch.save(first, tmp_path / "w.pth")
    external._fill(model, tmp_path / "w.pth", "densenet121", (), "", external.Options())


def test_by_name_and_by_file_the_same_statistics(tmp_path, monkeypatch) -> None:
    """No network is filled: what is standardised by which numbers is told by name and checksum alone."""
    path, published = tmp_path / "w.pth", {"vgg16": "vgg16_features-amdegroot-88682ab5.pth"}
    path.touch()
    monkeypatch.setattr(external, "_fill", lambda *args: None)
    features = (0.48235, 0.45882, 0.40784), (1 / 255, 1 / 255, 1 / 255)
    for name, checksum, expected in [
        ("resnet18", "f37072fd", (tuple(MEAN), tuple(STD))),
        ("efficientnet_v2_l", "0" * 8, ((0.5,) * 3, (0.5,) * 3)),
        ("inception_v3", "0" * 8, ((0.5,) * 3, (0.5,) * 3)),
        ("vgg16", "0" * 8, (tuple(MEAN), tuple(STD))),
        ("vgg16", published["vgg16"][-12:-4], features),
    ]:
        monkeypatch.setattr(weights, "sha256", lambda path, title, start=checksum: start + 56 * "0")
        with torch.device("meta"):
            found = external.load(f"torchvision:{name}", str(path), None)
        assert found.mean == pytest.approx(expected[0])
        assert found.std == pytest.approx(expected[1])


def test_own_statistics_replace_the_published_ones(resnet18, saved, capsys) -> None:
    mean, std = (0.5, 0.4, 0.3), (0.2, 0.3, 0.4)
    x = torch.rand(2, 3, 32, 32)
    found = external.load("torchvision:resnet18", str(saved), 32, external.Options(mean=mean, std=std))
    expected = external.load("torchvision:resnet18", str(saved), 32).model
    assert f"standardised by mean {tuple(MEAN)} and deviation {tuple(STD)}" in capsys.readouterr().err
    ours = (x - torch.tensor(mean).view(3, 1, 1)) / torch.tensor(std).view(3, 1, 1)
    theirs = ours * torch.tensor(STD).view(3, 1, 1) + torch.tensor(MEAN).view(3, 1, 1)
    torch.testing.assert_close(found.model(x * 2 - 1), expected(theirs * 2 - 1), rtol=1e-4, atol=1e-4)
    assert (found.mean, found.std) == (mean, std)


@pytest.mark.parametrize(
    ("mean", "std", "message"),
    [
        ((0.5,) * 3, None, "Give both"),
        (None, (0.5,) * 3, "Give both"),
        ((0.5,) * 3, (0.5, 0.0, 0.5), "--std above 0"),
        ((0.5,) * 3, (0.5, -1.0, 0.5), "--std above 0"),
        ((0.5, float("nan"), 0.5), (0.5,) * 3, "finite"),
        ((0.5,) * 3, (0.5, float("inf"), 0.5), "finite"),
    ],
)
def test_statistics_that_are_none_are_refused(mean, std, message) -> None:
    with pytest.raises(UserError, match=message):
        external.Options(mean=mean, std=std)


def test_what_a_config_describes_takes_no_options(tmp_path) -> None:
    for options in ({"mean": (0.5,) * 3, "std": (0.5,) * 3}, {"stem": "cifar"}, {"part": "teacher"}):
        with pytest.raises(UserError, match=r"its config.json describes them"):
            external.load("x/encoder.safetensors", None, None, external.Options(**options))


# --------------------------------------------------------------------------------------------------------- stem
def cifar_resnet18() -> torch.nn.Module:
    """As SimCLR's appendix B.9 describes it."""
    torch.manual_seed(0)
    model = models.resnet18(weights=None)
    model.conv1 = torch.nn.Conv2d(3, 64, kernel_size=3, stride=1, padding=1, bias=False)
    model.maxpool = torch.nn.Identity()
    return model.eval()


CIFAR = external.Options(stem="cifar")


def test_a_resnet_with_the_stem_for_cifar_gives_its_own_features(tmp_path) -> None:
    model = cifar_resnet18()
    state = {f"backbone.{k}": v for k, v in model.state_dict().items()} | {"projector.weight": torch.ones(2)}
    torch.save({"state_dict": state}, tmp_path / "w.ckpt")
    found = external.load("torchvision:resnet18", str(tmp_path / "w.ckpt"), None, CIFAR)
    assert found.image_size == 32
    images = np.random.default_rng(0).integers(256, size=(2, 32, 32, 3), dtype=np.uint8)
    x = torch.from_numpy(images).permute(0, 3, 1, 2) / 127.5 - 1
    np.testing.assert_allclose(found.model(x).numpy(), penultimate(model, images), rtol=1e-3, atol=1e-4)


def test_a_stem_that_is_not_said_is_asked_for(saved, tmp_path) -> None:
    torch.save(cifar_resnet18().state_dict(), tmp_path / "w.pth")
    with pytest.raises(UserError, match=r"conv1.weight \(64, 3, 3, 3\), expected \(64, 3, 7, 7\).*: --stem cifar"):
        external.load("torchvision:resnet18", str(tmp_path / "w.pth"), None)
    with pytest.raises(UserError, match=r"conv1.weight \(64, 3, 7, 7\), expected \(64, 3, 3, 3\)"):
        external.load("torchvision:resnet18", str(saved), None, CIFAR)


@pytest.mark.parametrize(
    ("encoder", "message"),
    [
        ("torchvision:resnet18", "published weights are one network with its own stem"),
        ("torchvision:vgg11", "only ResNets with one first convolution"),
    ],
)
def test_a_stem_is_for_a_resnet_from_a_file(encoder, message, tmp_path) -> None:
    torch.save({"x": torch.ones(1)}, tmp_path / "w.pth")
    with pytest.raises(UserError, match=message):
        external.load(encoder, None if "resnet" in encoder else str(tmp_path / "w.pth"), None, CIFAR)


def test_timm_s_resnet_takes_the_stem_for_cifar_too(tmp_path) -> None:
    pytest.importorskip("timm", reason="timm is optional: `pip install timm`")
    model = cifar_resnet18()
    torch.save(model.state_dict(), tmp_path / "w.pth")
    x = torch.rand(2, 3, 32, 32) * 2 - 1
    ours, theirs = (
        external.load(f"{library}:resnet18", str(tmp_path / "w.pth"), None, CIFAR).model(x)
        for library in ("timm", "torchvision")
    )
    torch.testing.assert_close(ours, theirs, rtol=1e-4, atol=1e-4)
    with pytest.raises(UserError, match="only ResNets with one first convolution"):
        external.load("timm:resnet18d", str(tmp_path / "w.pth"), None, CIFAR)
