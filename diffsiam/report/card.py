"""The model card of a trained network: the README.md of a Hugging Face repository, from what the pipeline recorded."""

from __future__ import annotations

import dataclasses
import re
from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any

from huggingface_hub import EvalResult, ModelCard, ModelCardData

from diffsiam import runtime
from diffsiam.data import terms
from diffsiam.diffusion import pretrained
from diffsiam.errors import UserError
from diffsiam.report.summary import aligned
from diffsiam.training import methods

OTHER = "other"  # the Hub's word for a licence that its list does not have
_METRICS = {"accuracy": "accuracy", "mean_per_class": "mean per class"}
_ENCODER = """\
```python
import diffsiam

encoder = diffsiam.load_encoder("FOLDER")
z = diffsiam.features(encoder, "photos/")
```

`FOLDER` is what `diffsiam fetch` wrote. Tables are of `encoder.safetensors`; pictures and attribute classifiers are of
the moving average of its weights, `encoder_ema.safetensors`."""
_DIFFUSION = """\
```python
from diffusers import DDPMPipeline

images = DDPMPipeline.from_pretrained("FOLDER")(batch_size=4).images
```

`FOLDER` is what `diffsiam fetch` wrote, or the repository's name. `diffsiam.load_diffusion("FOLDER")` is the network
alone: it takes images in [-1, 1] and the index t - 1 of step t = 1 .. 1000, and predicts the noise."""


@dataclasses.dataclass(frozen=True)
class Trained:
    """A trained network among the results of a run.

    Attributes:
        folder: ``results/representation/<data>/<method>/seed<k>`` or ``results/diffusion/<data>``.
        results: the folder ``results``.
        pretrain: the data set that it was trained on.
        record: its config.json or training.json.
        meta: meta.json of that data set.
        files: what the network is made of.
    """

    folder: Path
    results: Path
    pretrain: str
    record: dict[str, Any]
    meta: dict[str, Any]
    files: tuple[str, ...]

    @property
    def is_encoder(self) -> bool:
        """Else it is a diffusion model."""
        return "method" in self.record

    @property
    def seed(self) -> int:
        """Of its training."""
        return self.record["seed"] if self.is_encoder else self.record["params"]["diffusion"]["seed"]


def read(folder: Path) -> Trained:
    """What lies in ``folder``.

    Raises:
        UserError: no trained network is there, it was not trained here, or the data set that is among the results is
            not the one that it was trained on.
    """
    place = folder.resolve()
    if (place / "training.json").is_file():
        record, results, pretrain = runtime.read_json(place / "training.json"), place.parents[1], place.name
        files: tuple[str, ...] = (pretrained.WEIGHTS, pretrained.CONFIG, "training.json")
        if "fetched" in record:
            raise UserError(
                f"{folder}: this diffusion model was fetched, not trained here; it is published where it came from. "
                "Name one that was trained (diffusion.source: pretrain), or an encoder's folder."
            )
    elif len(place.parents) > 3 and (place / "config.json").is_file():
        record, results, pretrain = runtime.read_json(place / "config.json"), place.parents[3], place.parents[1].name
        if "method" not in record:
            raise UserError(f"{place / 'config.json'}: names no method, so not of an encoder trained here. {_WANTED}")
        method = methods.lookup(record["method"])
        if method.frozen:
            raise UserError(
                f"{folder}: the weights of {record['method']} are the diffusion model's. Publish that, "
                f"{results / 'diffusion' / pretrain}, where it was trained here."
            )
        files = (*(f"{stem}.safetensors" for stem in method.weights), "config.json")
    else:
        raise UserError(f"{folder}: no training.json and no config.json, so no trained network. {_WANTED}")
    meta = runtime.read_json(results / "data" / pretrain / "meta.json")
    if record["params"]["images"] != meta["sha256"]["images_train.npy"]:
        raise UserError(
            f"{results / 'data' / pretrain}: its images are not those that {folder} was trained on (another sha256), "
            "and the card would speak of them. Make both of one state: `snakemake --cores all tables`."
        )
    return Trained(folder, results, pretrain, record, meta, files)


_WANTED = (
    "Name results/representation/<data>/<method>/seed<k> or results/diffusion/<data> where they lie: the card is "
    "written from what lies beside them in results."
)


def card(trained: Trained, sums: Mapping[str, str], license: str = OTHER) -> ModelCard:
    """The card.

    Args:
        sums: file to SHA-256, of what is published.
        license: of the weights, by the Hub's word for it; ``other`` stands for the terms of the data.
    """
    found = list(_results(trained)) if trained.is_encoder else []
    title = _title(trained)
    scores = [_evaluation(result) for protocol, result in found if protocol == "linear"]
    if trained.is_encoder:
        tags, library, task = (
            ["self-supervised-learning", trained.record["method"]],
            "diffsiam",
            "image-feature-extraction",
        )
    else:
        tags, library, task = ["diffusion"], "diffusers", "unconditional-image-generation"
    data = ModelCardData(
        license=license,
        license_name="terms-of-the-training-data" if license == OTHER else None,
        library_name=library,
        pipeline_tag=task,
        tags=["diffsiam", *tags],
        datasets=[trained.pretrain],
        model_name=title if scores else None,
        eval_results=scores or None,
    )
    parts = {
        "Files": aligned([["File", "SHA-256"], *([f"`{name}`", digest] for name, digest in sums.items())]),
        "Use": [_ENCODER if trained.is_encoder else _DIFFUSION],
        "Data": _data(trained),
        "Training": _training(trained),
        "Results": _table(trained, found),
        "Terms": _terms(trained, license),
    }
    body = [f"# {title}", "", *_what(trained)]
    for heading, lines in parts.items():
        body += ["", f"## {heading}", "", *lines] if lines else []
    return ModelCard(f"---\n{data.to_yaml()}\n---\n\n" + "\n".join(body) + "\n")


def _title(trained: Trained) -> str:
    if not trained.is_encoder:
        return f"A diffusion model, trained on {trained.pretrain}"
    method = methods.lookup(trained.record["method"])
    if not method.trained:
        return f"An untrained encoder, the control on {trained.pretrain}"
    return f"An encoder by {method.title}, trained on {trained.pretrain}"


def _what(trained: Trained) -> list[str]:
    record, side = trained.record, trained.meta["image_size"]
    if not trained.is_encoder:
        return [
            f"A DDPM (`UNet2DModel` of diffusers, beta linear over 1 000 steps) for images of {side}x{side} pixels."
        ]
    width = record["encoder_width"]
    return [
        f"A {record.get('encoder', 'resnet10')} of width {width} that takes images of {side}x{side} pixels in [-1, 1] "
        f"to {record.get('dim', 8 * width)} features. Made by *DiffSiam, reproduced*, a pipeline for the thesis "
        f"*Unsupervised Learning with Diffusion Models*, as its method `{record['method']}`."
    ]


def _data(trained: Trained) -> list[str]:
    meta, name = trained.meta, trained.pretrain
    kind = "images of the trainer's own" if name not in terms.TERMS else f"data set `{name}`"
    return [
        f"{meta['counts']['train']} training images of {kind}, at {meta['image_size']}x{meta['image_size']} pixels; no "
        f"label was used. SHA-256 of the array of images: `{trained.record['params']['images']}`."
    ]


def _training(trained: Trained) -> list[str]:
    record = trained.record
    params, collected = record["params"], record["collected"]
    used = params.get("representation") or params["diffusion"]
    facts = [f"seed {trained.seed}"]
    facts += [f"{used['steps']} steps"] if "steps" in used else ["no step"]
    facts += [f"batches of {used['batch_size']}", f"{record['seconds']} seconds in its last sitting"]
    facts += [
        f"on {record['device']} in {record['precision']} ({', '.join([collected['machine'], *collected['gpus']])})"
    ]
    versions = ", ".join(f"{name} {version}" for name, version in collected["versions"].items() if version)
    lines = [f"- {', '.join(facts)}; ended {collected['date']}"]
    lines += [f"- commit {collected['commit'] or 'unknown'}; Python {collected['python']}, {versions}"]
    if params.get("diffusion_model"):
        lines += [f"- with a frozen diffusion model {_origin(trained)}, SHA-256 `{params['diffusion_model']}`"]
    whole = "config.json" if trained.is_encoder else "training.json"
    return [*lines, f"- every parameter: `{whole}`"]


def _origin(trained: Trained) -> str:
    """Of the diffusion model behind an encoder; never a path or an address, which may be private."""
    path = trained.results / "diffusion" / trained.pretrain / "training.json"
    fetched = runtime.read_json(path).get("fetched", {}) if path.exists() else {}
    if not fetched:
        return "of the same pipeline"
    public = re.fullmatch(pretrained.REPOSITORY + pretrained.COMMIT, fetched["location"])
    return f"`{fetched['location']}`" if public else "made elsewhere"


def _results(trained: Trained) -> Iterator[tuple[str, dict[str, Any]]]:
    """(protocol, result) of the tables' protocols, as far as they were run."""
    below = trained.folder.resolve().relative_to(trained.results / "representation")
    for protocol in ("linear", "fewshot"):
        for path in sorted((trained.results / protocol / below).glob("*.json")):
            yield protocol, runtime.read_json(path)


def _evaluation(result: dict[str, Any]) -> EvalResult:
    """For the list of results that the Hub shows beside the card."""
    return EvalResult(
        task_type="image-classification",
        dataset_type=result["dataset"].lower(),
        dataset_name=f"{result['dataset']} (linear probe)",
        metric_type="accuracy",
        metric_name=f"{_METRICS[result['metric']]}, %",
        metric_value=round(result["accuracy"], 2),
    )


def _table(trained: Trained, found: Sequence[tuple[str, dict[str, Any]]]) -> list[str]:
    rows = [["Protocol", "Data set", "%", "95 %", "Measured on"]]
    for protocol, result in found:
        name = result["dataset"]
        if protocol == "linear":
            on = f"{result['n_test']} test images, {_METRICS[result['metric']]}"
            rows.append(["linear probe", name, f"{result['accuracy']:.2f}", f"± {result['ci95']:.2f}", on])
            continue
        for shots, score in result["shots"].items():
            on = f"{result['episodes']} episodes"
            title = f"{result['ways']}-way {shots}-shot"
            rows.append([title, name, f"{score['accuracy']:.2f}", f"± {score['ci95']:.2f}", on])
    if len(rows) == 1:
        return []
    said = (
        f"Of the frozen `encoder.safetensors` of one training, seed {trained.seed}: the intervals are over test images"
    )
    return [f"{said} and episodes, not over trainings.", "", *aligned(rows)]


def _terms(trained: Trained, license: str) -> list[str]:
    said = terms.TERMS.get(trained.pretrain, terms.OWN)
    lines = [f"Training data, {trained.pretrain}: {said.text}{f' ({said.where})' if said.where else ''}."]
    if license == OTHER:
        lines += [
            "",
            "The weights are under no licence of their own; what the data's terms ask of what is made of them holds.",
        ]
    return lines
