"""Fetching against a local server and local files; conversion against a plain implementation of the same network."""

from __future__ import annotations

import copy
import json
import pickle
from collections.abc import Iterator
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path
from typing import Any

import pytest
import safetensors.torch
import torch
import yaml
from diffusers import DDPMPipeline, UNet2DModel
from guided_reference import GuidedUnet

from diffsiam import runtime
from diffsiam.diffusion import pretrained
from diffsiam.errors import UserError
from diffsiam.params import Fetch
from tests.data.served import running

CIFAR = "google/ddpm-cifar10-32"
CIFAR_CONFIG = {  # as published
    "_class_name": "UNet2DModel",
    "_diffusers_version": "0.0.4",
    "act_fn": "silu",
    "attention_head_dim": None,
    "block_out_channels": [128, 256, 256, 256],
    "center_input_sample": False,
    "down_block_types": ["DownBlock2D", "AttnDownBlock2D", "DownBlock2D", "DownBlock2D"],
    "downsample_padding": 0,
    "flip_sin_to_cos": False,
    "freq_shift": 1,
    "in_channels": 3,
    "layers_per_block": 2,
    "mid_block_scale_factor": 1,
    "norm_eps": 1e-06,
    "norm_num_groups": 32,
    "out_channels": 3,
    "sample_size": 32,
    "time_embedding_type": "positional",
    "up_block_types": ["UpBlock2D", "UpBlock2D", "AttnUpBlock2D", "UpBlock2D"],
}
SMALL_CONFIG = {
    "_class_name": "UNet2DModel",
    "sample_size": 16,
    "block_out_channels": [16, 32],
    "layers_per_block": 1,
    "down_block_types": ["DownBlock2D", "AttnDownBlock2D"],
    "up_block_types": ["AttnUpBlock2D", "UpBlock2D"],
    "norm_num_groups": 8,
    "attention_head_dim": None,
}
SCHEDULER = {
    "_class_name": "DDPMScheduler",
    "beta_start": 0.0001,
    "beta_end": 0.02,
    "beta_schedule": "linear",
    "num_train_timesteps": 1000,
    "trained_betas": None,
}
GUIDED = {
    "model": "UNet",
    "dims": 2,
    "input_channel": 3,
    "base_channel": 32,
    "channel_multiplier": [1, 2, 2],
    "num_residual_blocks_of_a_block": 1,
    "dropout": 0.1,
    "attention_resolutions": [2, 4],
    "use_new_attention_order": False,
    "num_heads": 1,
    "head_channel": -1,
}


class Server(ThreadingHTTPServer):
    """Serves ``files`` (path -> content) and notes who asked for what with which token."""

    daemon_threads = True

    def __init__(self) -> None:
        self.files: dict[str, bytes] = {}
        self.cut: dict[str, int] = {}  # path -> bytes after which the connection ends
        self.moved: dict[str, str] = {}
        self.status = 404
        self.seen: list[tuple[str, str | None]] = []
        super().__init__(("127.0.0.1", 0), Handler)

    @property
    def address(self) -> str:
        return f"http://127.0.0.1:{self.server_address[1]}"

    def share(self, folder: Path, under: str) -> None:
        files = (file for file in folder.rglob("*") if file.is_file())
        self.files |= {f"{under}/{file.relative_to(folder).as_posix()}": file.read_bytes() for file in files}


class Handler(BaseHTTPRequestHandler):
    server: Server

    def do_GET(self) -> None:
        path = self.path.partition("?")[0]
        self.server.seen.append((self.path, self.headers["Authorization"]))
        if path in self.server.moved:
            self.send_response(302)
            self.send_header("Location", self.server.moved[path])
            self.end_headers()
            return
        content = self.server.files.get(path)
        self.send_response(self.server.status if content is None else 200)
        self.send_header("Content-Length", str(len(content or b"")))
        self.end_headers()
        self.wfile.write((content or b"")[: self.server.cut.get(path)])

    def log_message(self, *args: object) -> None:
        pass


def _serve() -> Iterator[Server]:
    server = Server()
    with running(server):
        yield server


@pytest.fixture(autouse=True, scope="module")
def _one_thread() -> Iterator[None]:
    """On busy cores the threads of a small convolution spend their time waiting for one another."""
    threads = torch.get_num_threads()
    torch.set_num_threads(1)
    yield
    torch.set_num_threads(threads)


@pytest.fixture
def hub(monkeypatch: pytest.MonkeyPatch) -> Iterator[Server]:
    """A server in the place of huggingface.co."""
    monkeypatch.setenv("NO_PROXY", "127.0.0.1")
    monkeypatch.delenv("HF_TOKEN", raising=False)
    for server in _serve():
        monkeypatch.setenv("HF_ENDPOINT", server.address)
        yield server


@pytest.fixture
def elsewhere() -> Iterator[Server]:
    yield from _serve()


def _randomise(model: torch.nn.Module) -> torch.nn.Module:
    """Weights of unit gain and no zeros, so that every tensor moves the output."""
    generator = runtime.generator(0, "test weights")
    norms = {id(m.weight) for m in model.modules() if isinstance(m, torch.nn.GroupNorm)}
    with torch.no_grad():
        for parameter in model.parameters():
            fan_in = parameter[0].numel() if parameter.ndim > 1 else 16
            parameter.normal_(1.0 if id(parameter) in norms else 0.0, fan_in**-0.5, generator=generator)
    return model.eval()


@pytest.fixture(scope="module")
def cifar(tmp_path_factory: pytest.TempPathFactory) -> tuple[Path, UNet2DModel]:
    """The published network with random weights, saved by diffusers, under the published config."""
    folder = tmp_path_factory.mktemp("cifar")
    model = _randomise(UNet2DModel.from_config(CIFAR_CONFIG))
    model.save_pretrained(folder)
    (folder / "config.json").write_text(json.dumps(CIFAR_CONFIG))
    (folder / "scheduler_config.json").write_text(json.dumps(SCHEDULER))
    return folder, model


@pytest.fixture
def small(tmp_path: Path) -> tuple[Path, UNet2DModel]:
    return _save_small(tmp_path / "model")


def _save_small(folder: Path, **changes: Any) -> tuple[Path, UNet2DModel]:
    model = _randomise(UNet2DModel.from_config(SMALL_CONFIG | changes))
    model.save_pretrained(folder)
    (folder / "config.json").write_text(json.dumps(SMALL_CONFIG | changes))
    return folder, model


def _save_guided(folder: Path, changes: dict[str, Any] | None = None, **sections: Any) -> GuidedUnet:
    """A folder like PDAE's, with the weights that belong to the options before ``changes``."""
    network = _randomise(GuidedUnet(**GUIDED))
    checkpoint = {"step": 1, "denoise_fn": {}, "ema_denoise_fn": network.state_dict(), "optimizer": {"lr": 1e-4}}
    _write_guided(folder, checkpoint, GUIDED | (changes or {}), **sections)
    return network


def _write_guided(folder: Path, checkpoint: object, options: dict[str, Any], **sections: Any) -> None:
    folder.mkdir(exist_ok=True)
    torch.save(checkpoint, folder / "checkpoint.pt")
    (folder / "config.yml").write_text(yaml.safe_dump({"denoise_fn_config": options} | sections))


def _fetch(
    location: object, tmp_path: Path, *, form: str = "diffusers", sha256: str | None = None, size: int = 16
) -> Path:
    pretrained.fetch(Fetch(str(location), form, sha256), size, tmp_path / "out", tmp_path / "cache")
    return tmp_path / "out"


def _largest_difference(fetched: Path, reference: torch.nn.Module, size: int) -> float:
    """Over one batch of images and timesteps; the reference's noise is in its first three channels. In float64: on
    a busy machine, float32 outputs of equal weights were seen to differ by 2e-6."""
    model, reference = UNet2DModel.from_pretrained(fetched).double().eval(), copy.deepcopy(reference).double()
    timesteps = torch.tensor([0, 17, 500, 999])[: 1 if size == 32 else 4]
    x = torch.randn(len(timesteps), 3, size, size, generator=runtime.generator(0, "test images")).double()
    with torch.no_grad():
        expected = reference(x, timesteps)
        expected = expected if isinstance(expected, torch.Tensor) else expected.sample
        met = model(x, timesteps).sample
    assert met.shape == x.shape
    assert 0.3 < expected.std() < 10, "the comparison needs an output of order one"
    return float((met - expected[:, :3]).abs().max())


def _refused(location: object, tmp_path: Path, *words: str, **kwargs: Any) -> str:
    """Fetching fails with a message that holds all ``words`` and leaves no file behind; returns the message."""
    cache = tmp_path / "cache"
    before = set(cache.rglob("*"))
    with pytest.raises(UserError) as error:
        _fetch(location, tmp_path, **kwargs)
    assert not list((tmp_path / "out").rglob("*"))
    assert set(cache.rglob("*")) == before
    assert [word for word in words if word not in str(error.value)] == [], str(error.value)
    return str(error.value)


# ------------------------------------------------------------------------------------------- diffusers' layout
def test_the_published_cifar10_network_gives_the_same_output_from_a_folder(
    cifar: tuple[Path, UNet2DModel], tmp_path: Path
) -> None:
    folder, model = cifar
    assert _largest_difference(_fetch(folder, tmp_path, size=32), model, 32) <= 1e-6
    files = [pretrained.CONFIG, pretrained.WEIGHTS, pretrained.INDEX, pretrained.SCHEDULER]
    assert sorted(p.name for p in (tmp_path / "out").iterdir()) == files
    assert type(DDPMPipeline.from_pretrained(tmp_path / "out", local_files_only=True).unet) is UNet2DModel


def test_the_published_cifar10_network_gives_the_same_output_from_the_hub(
    cifar: tuple[Path, UNet2DModel], tmp_path: Path, hub: Server
) -> None:
    folder, model = cifar
    hub.share(folder, f"/{CIFAR}/resolve/main")
    assert _largest_difference(_fetch(CIFAR, tmp_path, size=32), model, 32) <= 1e-6


def test_a_commit_of_a_repository_is_asked_for_and_kept_apart_from_others(
    small: tuple[Path, UNet2DModel], tmp_path: Path, hub: Server
) -> None:
    """What the branch has is another model by now."""
    commit = "0123456789abcdef0123456789abcdef01234567"
    hub.share(small[0], f"/me/model/resolve/{commit}")
    other = _save_small(tmp_path / "other", layers_per_block=2)[1]
    hub.share(tmp_path / "other", "/me/model/resolve/main")
    assert _largest_difference(_fetch(f"me/model@{commit}", tmp_path), small[1], 16) <= 1e-6
    assert _largest_difference(_fetch("me/model", tmp_path), other, 16) <= 1e-6
    assert {path.split("/")[4] for path, _ in hub.seen[:3]} == {commit}


def test_the_size_in_the_offline_message_is_that_of_the_published_network(
    cifar: tuple[Path, UNet2DModel], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("HF_ENDPOINT", "http://127.0.0.1:9")
    megabytes = round((cifar[0] / pretrained.WEIGHTS).stat().st_size / 1e6)
    _refused(CIFAR, tmp_path, f"({megabytes} MB)")


def test_the_attention_names_of_early_diffusers_are_read_from_a_bin_file(
    small: tuple[Path, UNet2DModel], tmp_path: Path
) -> None:
    folder, model = small
    old = {".to_q.": ".query.", ".to_k.": ".key.", ".to_v.": ".value.", ".to_out.0.": ".proj_attn."}
    state = {}
    for name, tensor in model.state_dict().items():
        for new, early in old.items():
            name = name.replace(new, early)
        state[name] = tensor
    assert len(set(state) - set(model.state_dict())) == 32
    (folder / pretrained.WEIGHTS).unlink()
    torch.save(state, folder / "diffusion_pytorch_model.bin")
    assert _largest_difference(_fetch(folder, tmp_path), model, 16) <= 1e-6


def test_half_precision_weights_come_out_in_single_precision(small: tuple[Path, UNet2DModel], tmp_path: Path) -> None:
    folder, model = small
    model.half().save_pretrained(folder)
    assert _largest_difference(_fetch(folder, tmp_path), model.float(), 16) <= 1e-6


def test_safetensors_are_preferred_to_a_bin_file(small: tuple[Path, UNet2DModel], tmp_path: Path, hub: Server) -> None:
    hub.share(small[0], "/me/model/resolve/main")
    hub.files["/me/model/resolve/main/diffusion_pytorch_model.bin"] = b"not to be read"
    assert _largest_difference(_fetch("me/model", tmp_path), small[1], 16) <= 1e-6


def test_a_network_with_a_predicted_variance_keeps_its_noise_channels(tmp_path: Path) -> None:
    folder, model = _save_small(tmp_path / "model", out_channels=6)
    assert _largest_difference(_fetch(folder, tmp_path), model, 16) <= 1e-6


def test_a_network_for_any_image_size_gets_the_one_of_the_data(tmp_path: Path) -> None:
    folder, _ = _save_small(tmp_path / "model", sample_size=None)
    assert runtime.read_json(_fetch(folder, tmp_path) / pretrained.CONFIG)["sample_size"] == 16


def test_an_address_names_the_weights_file_and_its_query_goes_along(
    small: tuple[Path, UNet2DModel], tmp_path: Path, hub: Server, elsewhere: Server
) -> None:
    elsewhere.share(small[0], "/models/unet v2")
    address = f"{elsewhere.address}/models/unet%20v2/{pretrained.WEIGHTS}?download=1"
    elsewhere.files = {path.replace(" ", "%20"): content for path, content in elsewhere.files.items()}
    assert _largest_difference(_fetch(address, tmp_path), small[1], 16) <= 1e-6
    assert [path.rpartition("?")[2] for path, _ in elsewhere.seen] == ["download=1"] * 4
    assert hub.seen == []


# ----------------------------------------------------------------------------------------- cache and checksums
def test_what_was_fetched_once_is_not_asked_for_again(
    small: tuple[Path, UNet2DModel], tmp_path: Path, hub: Server
) -> None:
    hub.share(small[0], "/me/model/resolve/main")
    _fetch("me/model", tmp_path)
    asked = len(hub.seen)
    for file in (tmp_path / "out").iterdir():
        file.unlink()
    assert _largest_difference(_fetch("me/model", tmp_path), small[1], 16) <= 1e-6
    assert len(hub.seen) == asked > 0


def test_files_placed_by_hand_where_the_message_says_are_taken(
    small: tuple[Path, UNet2DModel], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("HF_ENDPOINT", "http://127.0.0.1:9")
    place = tmp_path / "cache" / "me--model"
    _refused("me/model", tmp_path, "ConnectionError", f"{pretrained.CONFIG} and {pretrained.WEIGHTS}", str(place))
    small[0].rename(place)
    assert _largest_difference(_fetch("me/model", tmp_path), small[1], 16) <= 1e-6


def test_the_right_checksum_passes_and_a_wrong_one_names_both(
    small: tuple[Path, UNet2DModel], tmp_path: Path, hub: Server
) -> None:
    hub.share(small[0], "/me/model/resolve/main")
    digest = runtime.sha256(small[0] / pretrained.WEIGHTS)
    _refused("me/model", tmp_path, digest, "0" * 64, "diffusion.fetch.sha256", sha256="0" * 64)
    _fetch("me/model", tmp_path, sha256=digest)


@pytest.mark.parametrize("remote", [True, False])
def test_without_a_checksum_the_first_fetch_sets_it(
    small: tuple[Path, UNet2DModel], tmp_path: Path, hub: Server, remote: bool
) -> None:
    folder, location = small[0], "me/model" if remote else small[0]
    hub.share(folder, "/me/model/resolve/main")
    first = runtime.sha256(folder / pretrained.WEIGHTS)
    for file in _fetch(location, tmp_path).iterdir():
        file.unlink()
    changed = tmp_path / "cache" / "me--model" if remote else folder
    state = safetensors.torch.load_file(changed / pretrained.WEIGHTS)
    safetensors.torch.save_file({k: v + 1 for k, v in state.items()}, changed / pretrained.WEIGHTS)
    words = [first, pretrained.CHECKSUMS, f"remove {changed / pretrained.WEIGHTS}"]
    _refused(location, tmp_path, *words)
    if remote:
        (changed / pretrained.WEIGHTS).unlink()
        assert _largest_difference(_fetch(location, tmp_path), small[1], 16) <= 1e-6


def test_a_refused_model_sets_no_checksum(small: tuple[Path, UNet2DModel], tmp_path: Path) -> None:
    _refused(small[0], tmp_path, "sample_size: met 16, allowed: 32 or", "data.image_size", size=32)
    assert not (tmp_path / "cache" / pretrained.CHECKSUMS).exists()


# ------------------------------------------------------------------------------------------------------ secrets
def test_the_token_goes_to_the_hub_alone(
    small: tuple[Path, UNet2DModel],
    tmp_path: Path,
    hub: Server,
    elsewhere: Server,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.setenv("HF_TOKEN", "hf_secret")
    hub.share(small[0], "/me/model/resolve/main")
    weights = f"/me/model/resolve/main/{pretrained.WEIGHTS}"
    elsewhere.files["/store"] = hub.files.pop(weights)
    hub.moved[weights] = f"{elsewhere.address}/store"
    _fetch("me/model", tmp_path)
    assert {token for _, token in hub.seen} == {"Bearer hf_secret"}
    assert elsewhere.seen == [("/store", None)]

    elsewhere.share(small[0], "/models")
    _fetch(f"{elsewhere.address}/models/{pretrained.WEIGHTS}", tmp_path)
    assert {token for _, token in elsewhere.seen} == {None}


def test_messages_and_records_hold_no_secret(
    small: tuple[Path, UNet2DModel], tmp_path: Path, hub: Server, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("HF_TOKEN", "secret")
    hub.status = 403
    assert "secret" not in _refused("me/model", tmp_path, "403", "HF_TOKEN")
    host = hub.address.removeprefix("http://")
    address = f"http://user:secret@{host}/models/{pretrained.WEIGHTS}?key=secret"
    assert "secret" not in _refused(address, tmp_path, "403", f"http://{host}/models/config.json")
    unreachable = f"http://user:secret@127.0.0.1:9/{pretrained.WEIGHTS}?key=secret"
    assert "secret" not in _refused(unreachable, tmp_path, "ConnectionError")
    assert "secret" not in _refused("ftp://user:secret@host/file?key=secret", tmp_path, "ftp://host/file")
    hub.share(small[0], "/models")
    _fetch(address, tmp_path)
    records = (tmp_path / "cache" / pretrained.CHECKSUMS).read_text()
    assert pretrained.WEIGHTS in records
    assert "secret" not in records


# ----------------------------------------------------------------------------------------------- failures
def test_a_missing_repository_says_which_files_it_needs(tmp_path: Path, hub: Server) -> None:
    _refused("me/model", tmp_path, f"{hub.address}/me/model/resolve/main/config.json", pretrained.WEIGHTS, ".bin")


def test_a_repository_without_weights_says_so(small: tuple[Path, UNet2DModel], tmp_path: Path, hub: Server) -> None:
    hub.share(small[0], "/me/model/resolve/main")
    del hub.files[f"/me/model/resolve/main/{pretrained.WEIGHTS}"]
    _refused("me/model", tmp_path, f"main/{pretrained.WEIGHTS}", "no such file")


def test_a_folder_without_a_config_says_so(small: tuple[Path, UNet2DModel], tmp_path: Path) -> None:
    (small[0] / "config.json").unlink()
    _refused(small[0], tmp_path, str(small[0] / "config.json"), "no such file", "diffusion.fetch.format")
    _refused(small[0] / pretrained.WEIGHTS, tmp_path, str(small[0] / "config.json"), "no such file")


@pytest.mark.parametrize(
    ("page", "instead"),
    [
        ("/me/model", "me/model."),
        ("/me/model/", "me/model."),
        ("/me/model/tree/main/unet", "me/model."),
        ("/me/model/blob/main/unet/x.safetensors?key=secret", "/me/model/resolve/main/unet/x.safetensors."),
    ],
)
def test_a_page_of_the_hub_is_told_what_to_name_instead(page: str, instead: str, hub: Server, tmp_path: Path) -> None:
    message = _refused(f"{hub.address}{page}", tmp_path, "a page of the Hub, not a file. Give ")
    assert message.endswith(instead)
    assert "secret" not in message


@pytest.mark.parametrize(
    "location", ["nowhere", "./nowhere/model", "/nowhere/model.pt", "http://host", "a/b/c", "http://[host/x.pt"]
)
def test_a_location_that_is_nothing_lists_what_it_may_be(location: str, tmp_path: Path) -> None:
    _refused(location, tmp_path, location, "folder", "http", "owner/name")


def test_a_download_that_ends_early_is_refused(small: tuple[Path, UNet2DModel], tmp_path: Path, hub: Server) -> None:
    hub.share(small[0], "/me/model/resolve/main")
    hub.cut[f"/me/model/resolve/main/{pretrained.WEIGHTS}"] = 1000
    whole = (small[0] / pretrained.WEIGHTS).stat().st_size
    _refused("me/model", tmp_path, f"main/{pretrained.WEIGHTS}", f"{whole} bytes")


def test_a_login_page_instead_of_weights_is_refused(
    small: tuple[Path, UNet2DModel], tmp_path: Path, hub: Server
) -> None:
    hub.share(small[0], "/me/model/resolve/main")
    hub.files[f"/me/model/resolve/main/{pretrained.WEIGHTS}"] = b"<html>Please log in</html>"
    _refused("me/model", tmp_path, pretrained.WEIGHTS, "a web page, not weights")


@pytest.mark.parametrize("remote", [True, False])
def test_tensors_that_do_not_fit_the_config_are_listed(
    small: tuple[Path, UNet2DModel], tmp_path: Path, hub: Server, remote: bool
) -> None:
    folder, model = small
    state = dict(model.state_dict())
    del state["conv_in.bias"]
    state["surplus"] = torch.zeros(2)
    state["conv_in.weight"] = torch.zeros(16, 4, 3, 3)
    safetensors.torch.save_file(state, folder / pretrained.WEIGHTS)
    hub.share(folder, "/me/model/resolve/main")
    _refused(
        "me/model" if remote else folder,
        tmp_path,
        "1 missing: conv_in.bias (16,)",
        "1 not expected: surplus (2,)",
        "1 of another shape: conv_in.weight (16, 4, 3, 3), expected (16, 3, 3, 3)",
    )


@pytest.mark.parametrize(
    ("key", "value"),
    [
        ("_class_name", "UNet2DConditionModel"),
        ("in_channels", 1),
        ("out_channels", 1),
        ("time_embedding_type", "fourier"),
        ("center_input_sample", True),
        ("num_class_embeds", 10),
    ],
)
def test_a_network_that_the_pipeline_cannot_feed_is_refused_by_name(
    small: tuple[Path, UNet2DModel], tmp_path: Path, key: str, value: object
) -> None:
    (small[0] / "config.json").write_text(json.dumps(SMALL_CONFIG | {key: value}))
    _refused(small[0], tmp_path, f"config.json: {key}: met {json.dumps(value)}, allowed: ")


@pytest.mark.parametrize(
    ("key", "value"),
    [
        ("beta_schedule", "squaredcos_cap_v2"),
        ("beta_end", 0.012),
        ("num_train_timesteps", 4000),
        ("prediction_type", "v_prediction"),
        ("trained_betas", [0.1]),
    ],
)
def test_another_noise_schedule_is_refused_by_name(
    small: tuple[Path, UNet2DModel], tmp_path: Path, key: str, value: object
) -> None:
    (small[0] / "scheduler_config.json").write_text(json.dumps(SCHEDULER | {key: value}))
    _refused(small[0], tmp_path, f"scheduler_config.json: {key}: met {json.dumps(value)}, allowed: ")


def _pipeline(folder: Path, **scheduler: Any) -> UNet2DModel:
    """A folder as a diffusers pipeline saves itself: network and schedule side by side."""
    _, model = _save_small(folder / "unet")
    (folder / "scheduler").mkdir()
    (folder / "scheduler" / "scheduler_config.json").write_text(json.dumps(SCHEDULER | scheduler))
    return model


UNUSABLE = [
    {"beta_schedule": "squaredcos_cap_v2"},
    {"beta_schedule": "scaled_linear", "beta_start": 0.00085, "beta_end": 0.012},
    {"num_train_timesteps": 4000},
    {"prediction_type": "v_prediction"},
    {"rescale_betas_zero_snr": True},
    {"_class_name": "FlowMatchEulerDiscreteScheduler"},
]


@pytest.mark.parametrize("changes", UNUSABLE, ids=lambda changes: next(iter(changes.values())))
@pytest.mark.parametrize("place", ["unet", "", f"unet/{pretrained.WEIGHTS}"])
def test_another_noise_schedule_beside_the_network_s_folder_is_refused_by_name(
    tmp_path: Path, changes: dict[str, Any], place: str
) -> None:
    _pipeline(tmp_path / "pipeline", **changes)
    key, value = next(iter(changes.items()))
    path = tmp_path / "pipeline" / "scheduler" / "scheduler_config.json"
    _refused(tmp_path / "pipeline" / place, tmp_path, f"{path}: {key}: met {json.dumps(value)}, allowed: ")


@pytest.mark.parametrize("changes", UNUSABLE, ids=lambda changes: next(iter(changes.values())))
def test_another_noise_schedule_of_a_pipeline_on_a_server_is_refused_by_name(
    tmp_path: Path, hub: Server, changes: dict[str, Any]
) -> None:
    _pipeline(tmp_path / "pipeline", **changes)
    hub.share(tmp_path / "pipeline", "/me/model/resolve/main")
    key, value = next(iter(changes.items()))
    address = f"{hub.address}/me/model/resolve/main"
    words = f"{address}/scheduler/scheduler_config.json: {key}: met {json.dumps(value)}", "allowed: "
    _refused(f"{address}/unet/{pretrained.WEIGHTS}", tmp_path, *words)


def test_a_repository_with_its_schedule_in_a_folder_below_the_network_is_refused_too(
    tmp_path: Path, small: tuple[Path, UNet2DModel], hub: Server
) -> None:
    hub.share(small[0], "/me/model/resolve/main")
    hub.files["/me/model/resolve/main/scheduler/scheduler_config.json"] = json.dumps({"beta_end": 0.012}).encode()
    _refused("me/model", tmp_path, "main/scheduler/scheduler_config.json: beta_end: met 0.012")


def test_of_two_schedules_either_is_refused(tmp_path: Path) -> None:
    _pipeline(tmp_path / "pipeline", prediction_type="sample")
    (tmp_path / "pipeline" / "unet" / "scheduler_config.json").write_text(json.dumps(SCHEDULER))
    _refused(tmp_path / "pipeline" / "unet", tmp_path, "scheduler/scheduler_config.json: prediction_type")


@pytest.mark.parametrize("remote", [True, False])
def test_a_pipeline_with_our_schedule_is_taken_without_a_word(
    tmp_path: Path, hub: Server, capsys: pytest.CaptureFixture[str], remote: bool
) -> None:
    model = _pipeline(tmp_path / "pipeline")
    hub.share(tmp_path / "pipeline", "/pipeline")
    location = f"{hub.address}/pipeline/unet/{pretrained.WEIGHTS}" if remote else tmp_path / "pipeline"
    for _ in range(2):  # fetched, and from what was kept
        assert _largest_difference(_fetch(location, tmp_path), model, 16) <= 1e-6
        assert "scheduler" not in capsys.readouterr().err.replace("fetch scheduler_config.json", "")


def test_where_no_schedule_is_found_what_is_assumed_is_said(
    small: tuple[Path, UNet2DModel], tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    _fetch(small[0], tmp_path)
    said = capsys.readouterr().err
    assert f"{small[0] / 'config.json'}: no scheduler_config.json" in said
    assert "1000 steps of beta linear from 0.0001 to 0.02" in said
    _save_guided(tmp_path / "guided")
    _fetch(tmp_path / "guided", tmp_path, form="guided")
    assert "config.yml: no diffusion_config" in capsys.readouterr().err
    _save_guided(tmp_path / "told", diffusion_config={"timesteps": 1000})
    _fetch(tmp_path / "told", tmp_path, form="guided")
    assert capsys.readouterr().err == ""


@pytest.mark.parametrize("form", ["diffusers", "guided"])
@pytest.mark.parametrize("value", [float("nan"), float("inf")])
def test_weights_that_are_not_finite_are_refused(tmp_path: Path, form: str, value: float) -> None:
    folder, model = _save_small(tmp_path / "model")
    state = {name: tensor.clone() for name, tensor in model.state_dict().items()}
    state["conv_in.bias"][3] = value
    safetensors.torch.save_file(state, folder / pretrained.WEIGHTS)
    network = _save_guided(folder)
    guided_state = dict(network.state_dict())
    guided_state["out.2.bias"] = torch.full((3,), value)
    torch.save({"ema_denoise_fn": guided_state}, folder / "checkpoint.pt")
    word = "out.2.bias holds NaN or infinity in 3 of 3" if form == "guided" else "conv_in.bias holds NaN"
    _refused(folder, tmp_path, word, form=form)


def _shard(folder: Path, model: UNet2DModel) -> dict[str, torch.Tensor]:
    """The weights in ``folder`` as two shards and their index."""
    (folder / pretrained.WEIGHTS).unlink()
    parts: list[dict[str, torch.Tensor]] = [{}, {}]
    for i, (name, tensor) in enumerate(model.state_dict().items()):
        parts[i % 2][name] = tensor
    names = [f"diffusion_pytorch_model-{i}-of-00002.safetensors" for i in ("00001", "00002")]
    for name, part in zip(names, parts, strict=True):
        safetensors.torch.save_file(part, folder / name)
    index = {"weight_map": {key: name for name, part in zip(names, parts, strict=True) for key in part}}
    (folder / f"{pretrained.WEIGHTS}.index.json").write_text(json.dumps(index))
    return parts[1]


@pytest.mark.parametrize("remote", [True, False])
def test_a_model_in_shards_gives_the_same_output(
    small: tuple[Path, UNet2DModel], tmp_path: Path, hub: Server, remote: bool
) -> None:
    _shard(*small)
    hub.share(small[0], "/me/model/resolve/main")
    for _ in range(2):
        assert _largest_difference(_fetch("me/model" if remote else small[0], tmp_path), small[1], 16) <= 1e-6


@pytest.mark.parametrize("remote", [True, False])
def test_a_shard_that_is_not_there_is_named(
    small: tuple[Path, UNet2DModel], tmp_path: Path, hub: Server, remote: bool
) -> None:
    _shard(*small)
    shard = "diffusion_pytorch_model-00002-of-00002.safetensors"
    (small[0] / shard).unlink()
    hub.share(small[0], "/me/model/resolve/main")
    _refused("me/model" if remote else small[0], tmp_path, shard)


def test_a_changed_shard_is_another_model(small: tuple[Path, UNet2DModel], tmp_path: Path) -> None:
    second = _shard(*small)
    for file in _fetch(small[0], tmp_path).iterdir():
        file.unlink()
    name = "diffusion_pytorch_model-00002-of-00002.safetensors"
    safetensors.torch.save_file({k: v + 1 for k, v in second.items()}, small[0] / name)
    _refused(small[0], tmp_path, "its sha256 is", pretrained.CHECKSUMS)


def test_a_local_model_needs_no_place_to_write_but_the_output(
    small: tuple[Path, UNet2DModel], tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    """A cache below a plain file can be written by nobody, root included."""
    (tmp_path / "cache").write_text("")
    pretrained.fetch(Fetch(str(small[0]), "diffusers", None), 16, tmp_path / "out", tmp_path / "cache" / "diffusion")
    assert _largest_difference(tmp_path / "out", small[1], 16) <= 1e-6
    digest = runtime.sha256(small[0] / pretrained.WEIGHTS)
    assert f"Its sha256 is {digest}: diffusion.fetch.sha256 may hold it" in capsys.readouterr().err


def test_a_download_without_a_place_to_keep_it_says_where_it_would_be(
    small: tuple[Path, UNet2DModel], tmp_path: Path, hub: Server
) -> None:
    hub.share(small[0], "/me/model/resolve/main")
    (tmp_path / "cache").write_text("")
    with pytest.raises(UserError, match=r"cache/diffusion: cannot be written .*data.root.* a local copy of the model"):
        pretrained.fetch(Fetch("me/model", "diffusers", None), 16, tmp_path / "out", tmp_path / "cache" / "diffusion")
    assert hub.seen == []


@pytest.mark.parametrize("text", ["{", "[]", '{"layers_per_block": "two"}', '{"block_out_channels": [16]}'])
def test_a_config_that_describes_no_network_is_refused(
    small: tuple[Path, UNet2DModel], tmp_path: Path, text: str
) -> None:
    (small[0] / "config.json").write_text(text)
    _refused(small[0], tmp_path, str(small[0] / "config.json"))


class _Code:
    """Unpickled, it writes a file."""

    def __init__(self, mark: Path) -> None:
        self.mark = mark

    def __reduce__(self) -> tuple[Any, ...]:
        return Path.touch, (self.mark,)


@pytest.mark.parametrize("form", ["diffusers", "guided"])
def test_code_in_a_checkpoint_is_refused_and_does_not_run(
    small: tuple[Path, UNet2DModel], tmp_path: Path, form: str
) -> None:
    folder, mark = small[0], tmp_path / "ran"
    _save_guided(folder)
    (folder / pretrained.WEIGHTS).unlink()
    name = "checkpoint.pt" if form == "guided" else "diffusion_pytorch_model.bin"
    torch.save({"ema_denoise_fn": _Code(mark)}, folder / name)
    _refused(folder, tmp_path, name, "code", form=form)
    assert not mark.exists()
    torch.load(folder / name, weights_only=False)
    assert mark.exists(), "the file of this test is harmless: it proves nothing"


def test_a_plain_pickle_is_refused(small: tuple[Path, UNet2DModel], tmp_path: Path) -> None:
    (small[0] / pretrained.WEIGHTS).unlink()
    (small[0] / "diffusion_pytorch_model.bin").write_bytes(pickle.dumps({"conv_in.bias": Path("x")}, protocol=2))
    _refused(small[0], tmp_path, "diffusion_pytorch_model.bin", "pathlib.", "code of a file is never run")


def test_a_write_that_fails_half_way_leaves_nothing(
    small: tuple[Path, UNet2DModel], tmp_path: Path, hub: Server, monkeypatch: pytest.MonkeyPatch
) -> None:
    def full(*args: object) -> None:
        raise OSError(28, "No space left on device")

    hub.share(small[0], "/me/model/resolve/main")
    monkeypatch.setattr(runtime, "write_json", full)
    with pytest.raises(OSError, match="No space left"):
        _fetch("me/model", tmp_path)
    assert not list((tmp_path / "out").rglob("*"))
    assert not list((tmp_path / "cache").rglob("*"))


# ----------------------------------------------------------------------------------------------------- guided
@pytest.mark.parametrize("learn_sigma", [False, True])
@pytest.mark.parametrize(
    "options",
    [
        {},
        {"head_channel": 16},
        {"head_channel": 64, "base_channel": 64, "channel_multiplier": [1, 2], "attention_resolutions": [1]},
        {"num_heads": 4, "channel_multiplier": [1, 1, 1]},
        {"num_residual_blocks_of_a_block": 2, "attention_resolutions": [4]},
        {"num_residual_blocks_of_a_block": 2, "attention_resolutions": [1, 2], "channel_multiplier": [1, 2, 3]},
        {"attention_resolutions": []},
        {"attention_resolutions": [], "num_heads": 4},
    ],
    ids=lambda options: ",".join(f"{k}={v}" for k, v in options.items()) or "one head per level",
)
def test_a_guided_network_gives_the_same_output(tmp_path: Path, options: dict[str, Any], learn_sigma: bool) -> None:
    options = GUIDED | options | ({"learn_sigma": True} if learn_sigma else {})
    network = _randomise(GuidedUnet(**options))
    _write_guided(tmp_path / "model", {"ema_denoise_fn": network.state_dict()}, options)
    out = _fetch(tmp_path / "model", tmp_path, form="guided")
    assert _largest_difference(out, network, 16) <= 1e-5


def test_a_guided_checkpoint_with_all_that_pdae_saves_is_read_from_an_address(tmp_path: Path, hub: Server) -> None:
    network = _save_guided(
        tmp_path / "model",
        dataset_config={"name": "celeba64", "image_size": 16},
        diffusion_config={
            "timesteps": 1000,
            "betas_type": "linear",
            "linear_beta_start": 0.0001,
            "linear_beta_end": 0.02,
        },
        optimizer_config={"adam_betas": "(0.9, 0.999)"},
    )
    hub.share(tmp_path / "model", "/dpms/celeba64")
    out = _fetch(f"{hub.address}/dpms/celeba64/checkpoint.pt", tmp_path, form="guided")
    assert _largest_difference(out, network, 16) <= 1e-5


@pytest.mark.parametrize(
    ("changes", "words"),
    [
        ({"use_new_attention_order": True}, ["use_new_attention_order: met true, allowed: false"]),
        ({"num_heads": 4, "attention_resolutions": [1, 4]}, ["num_heads: 4", "[32, 64]"]),
        ({"num_heads": 4, "attention_resolutions": [1], "channel_multiplier": [1, 1, 2]}, ["num_heads", "[32, 64]"]),
        ({"head_channel": 48}, ["head_channel: 48", "[64]"]),
        ({"dims": 1}, ["dims: met 1, allowed: 2"]),
        ({"dims": 3}, ["dims: met 3, allowed: 2"]),
        ({"num_class": 10}, ["num_class: met 10, allowed: null"]),
        ({"input_channel": 1}, ["input_channel: met 1, allowed: 3"]),
        ({"use_scale_shift_norm": False}, ["use_scale_shift_norm"]),
        ({"resblock_updown": False}, ["resblock_updown"]),
        ({"channel_multiplier": [2, 2, 2]}, ["channel_multiplier: met [2, 2, 2]", "begin with 1"]),
        ({"base_channel": 40}, ["config.yml", "32"]),
        ({"channel_multiplier": "1,2,2"}, ["config.yml", "describes no network"]),
        ({"attention_resolutions": None}, ["config.yml", "describes no network"]),
    ],
)
def test_what_unet2dmodel_cannot_express_is_refused_by_name(
    tmp_path: Path, changes: dict[str, Any], words: list[str]
) -> None:
    _save_guided(tmp_path / "model", changes)
    _refused(tmp_path / "model", tmp_path, *words, form="guided")


@pytest.mark.parametrize(
    ("section", "key", "value"),
    [
        ("diffusion_config", "timesteps", 4000),
        ("diffusion_config", "betas_type", "cosine"),
        ("diffusion_config", "linear_beta_end", 0.01),
        ("dataset_config", "image_size", 128),
    ],
)
def test_a_guided_model_of_another_schedule_or_size_is_refused_by_name(
    tmp_path: Path, section: str, key: str, value: object
) -> None:
    _save_guided(tmp_path / "model", **{section: {key: value}})
    _refused(tmp_path / "model", tmp_path, f"{section}: {key}: met {json.dumps(value)}, allowed", form="guided")


def test_a_guided_config_without_its_options_lists_them(tmp_path: Path) -> None:
    _save_guided(tmp_path / "model")
    options = {k: v for k, v in GUIDED.items() if k not in ("num_heads", "base_channel")}
    (tmp_path / "model" / "config.yml").write_text(yaml.safe_dump({"denoise_fn_config": options}))
    _refused(tmp_path / "model", tmp_path, "denoise_fn_config", "base_channel, num_heads", form="guided")


def test_guided_tensors_that_do_not_fit_are_listed_under_their_own_names(tmp_path: Path) -> None:
    network = _save_guided(tmp_path / "model")
    state = dict(network.state_dict())
    del state["middle_block.0.in_layers.0.weight"]
    state["label_emb.0.weight"] = torch.zeros(2, 3)
    state["middle_block.1.qkv.weight"] = torch.zeros(64, 64, 1)
    _write_guided(tmp_path / "model", {"ema_denoise_fn": state}, GUIDED)
    _refused(
        tmp_path / "model",
        tmp_path,
        "1 missing: middle_block.0.in_layers.0.weight (64,)",
        "1 not expected: label_emb.0.weight (2, 3)",
        "1 of another shape: middle_block.1.qkv.weight (64, 64), expected (192, 64)",
        form="guided",
    )


@pytest.mark.parametrize(
    ("checkpoint", "words"),
    [
        ({"step": 1, "ema_decoder": {}}, ["ema_denoise_fn", "step, ema_decoder"]),
        ({"ema_denoise_fn": {"out.0.weight": 1.0}}, ["tensors"]),
        ({"ema_denoise_fn": [1]}, ["tensors"]),
        (torch.zeros(3), ["Tensor"]),
    ],
)
def test_a_checkpoint_without_averaged_weights_is_refused(tmp_path: Path, checkpoint: object, words: list[str]) -> None:
    _write_guided(tmp_path / "model", checkpoint, GUIDED)
    _refused(tmp_path / "model", tmp_path, "checkpoint.pt", *words, form="guided")


def test_a_checkpoint_that_was_cut_is_refused(tmp_path: Path) -> None:
    _save_guided(tmp_path / "model")
    path = tmp_path / "model" / "checkpoint.pt"
    path.write_bytes(path.read_bytes()[:5000])
    _refused(tmp_path / "model", tmp_path, str(path), "cannot be read", form="guided")
