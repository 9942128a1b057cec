"""Model cards: every number is the record's or a result's own, and nothing private goes out."""

from __future__ import annotations

from pathlib import Path

import pytest
from huggingface_hub import ModelCard

from diffsiam import runtime
from diffsiam.errors import UserError
from diffsiam.report import card
from tests.report import small_results, small_trained


def text_of(folder: Path, license: str = "other") -> ModelCard:
    """The card as the Hub's library reads it back."""
    made = card.card(card.read(folder), {"encoder.safetensors": "2" * 64}, license)
    return ModelCard(str(made))


def test_the_front_matter_says_library_licence_data_and_scores_as_the_hub_reads_them(tmp_path: Path) -> None:
    data = text_of(small_trained.encoder(tmp_path)).data
    assert (data.library_name, data.license, data.license_name) == ("diffsiam", "other", "terms-of-the-training-data")
    assert data.datasets == ["sprites"]
    assert data.tags == ["diffsiam", "self-supervised-learning", "diffsiam_hier"]
    (score,) = data.eval_results
    assert (score.dataset_name, score.metric_type, score.metric_value) == ("digits (linear probe)", "accuracy", 51.25)


def test_the_card_says_what_it_is_the_data_the_training_and_its_seed(tmp_path: Path) -> None:
    text = text_of(small_trained.encoder(tmp_path)).text
    for said in (
        "# An encoder by DiffSiam hier., trained on sprites",
        "A resnet10 of width 1 that takes images of 8x8 pixels in [-1, 1] to 8 features.",
        f"30 training images of data set `sprites`, at 8x8 pixels; no label was used. SHA-256 of the array of images: "
        f"`{small_trained.IMAGES}`",
        "seed 3, 6 steps, batches of 8, 1.5 seconds",
        "on cpu in float32 (Linux x86_64, 2 cores, Some CPU, Some GPU)",
        "commit abc1234; Python 3.11.7, torch 2.14.1\n",
        f"| `encoder.safetensors` | {'2' * 64} |",
    ):
        assert said in text, said


def test_every_result_stands_with_its_interval_and_what_it_was_measured_on(tmp_path: Path) -> None:
    rows = small_results.rows(text_of(small_trained.encoder(tmp_path)).text)
    assert rows["linear probe",] == ["digits", "51.25", "± 0.75", "200 test images, accuracy"]
    assert rows["5-way 1-shot",] == ["digits", "75.00", "± 0.50", "2 episodes"]
    assert rows["5-way 5-shot",] == ["digits", "100.00", "± 0.50", "2 episodes"]


def test_without_results_there_is_no_section_of_results_and_none_in_the_front_matter(tmp_path: Path) -> None:
    folder = small_trained.encoder(tmp_path)
    for protocol in ("linear", "fewshot"):
        (tmp_path / protocol).rename(tmp_path / f"{protocol}_elsewhere")
    made = text_of(folder)
    assert "## Results" not in made.text
    assert made.data.eval_results is None


def test_a_diffusion_model_is_a_pipeline_of_diffusers_with_its_own_seed(tmp_path: Path) -> None:
    small_trained.encoder(tmp_path)
    made = text_of(small_trained.diffusion(tmp_path), "mit")
    assert (made.data.library_name, made.data.license, made.data.license_name) == ("diffusers", "mit", None)
    assert "seed 4, 7 steps" in made.text
    assert "DDPMPipeline.from_pretrained" in made.text
    assert "no licence of their own" not in made.text


@pytest.mark.parametrize(
    ("fetched", "said"),
    [
        (None, "of the same pipeline"),
        ("google/ddpm-cifar10-32", "`google/ddpm-cifar10-32`"),
        ("owner/name@0123abc", "`owner/name@0123abc`"),
        ("~/private/model", "made elsewhere"),
        ("https://me:secret@host/weights.safetensors", "made elsewhere"),
    ],
)
def test_where_the_diffusion_model_came_from_is_said_but_no_path_and_no_address(
    tmp_path: Path, fetched: str | None, said: str
) -> None:
    params = {
        "representation": {"steps": 6, "batch_size": 8},
        "images": small_trained.IMAGES,
        "diffusion_model": "d" * 64,
    }
    folder = small_trained.encoder(tmp_path, params=params)
    if fetched:
        small_trained.diffusion(tmp_path, fetched={"location": fetched})
    text = text_of(folder).text
    assert f"with a frozen diffusion model {said}, SHA-256 `{'d' * 64}`" in text
    assert "private" not in text
    assert "secret" not in text


@pytest.mark.parametrize("pretrain", ["CelebA", "birds"])
def test_the_terms_of_the_data_are_the_owners_and_of_ones_own_images_that_they_are(
    tmp_path: Path, pretrain: str
) -> None:
    terms = text_of(small_trained.encoder(tmp_path, pretrain)).text.partition("## Terms")[2]
    said = "for non-commercial research only; its makers" if pretrain == "CelebA" else "images of the trainer's own"
    assert said in terms
    assert "under no licence of their own" in terms


def test_an_untrained_encoder_is_called_so(tmp_path: Path) -> None:
    params = {"representation": {"batch_size": 8}, "images": small_trained.IMAGES}
    text = text_of(small_trained.encoder(tmp_path, method="untrained", params=params)).text
    assert "# An untrained encoder, the control on sprites" in text
    assert "seed 3, no step" in text


def test_data_that_are_not_those_of_the_training_are_refused(tmp_path: Path) -> None:
    folder = small_trained.encoder(tmp_path)
    meta = tmp_path / "data" / "sprites" / "meta.json"
    runtime.write_json(meta, runtime.read_json(meta) | {"sha256": {"images_train.npy": "0" * 64}})
    with pytest.raises(UserError, match=r"data/sprites: its images are not those that .*seed3 was trained on"):
        card.read(folder)


def test_a_model_that_was_fetched_is_refused(tmp_path: Path) -> None:
    with pytest.raises(UserError, match="was fetched, not trained here"):
        card.read(small_trained.diffusion(tmp_path, fetched={"location": "google/ddpm-cifar10-32"}))


def test_of_a_method_that_is_the_diffusion_model_itself_that_is_to_be_published(tmp_path: Path) -> None:
    with pytest.raises(UserError, match=r"frozen_dm are the diffusion model's. Publish that, .*/diffusion/sprites"):
        card.read(small_trained.encoder(tmp_path, method="frozen_dm"))


@pytest.mark.parametrize("config", [None, "{}"])
def test_a_folder_without_a_training_says_which_it_may_be(tmp_path: Path, config: str | None) -> None:
    folder = tmp_path / "representation" / "a" / "b" / "c"
    folder.mkdir(parents=True)
    if config:
        (folder / "config.json").write_text(config)
    with pytest.raises(
        UserError, match="Name results/representation/<data>/<method>/seed<k> or results/diffusion/<data>"
    ):
        card.read(folder)
