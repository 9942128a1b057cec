"""The command line: one subcommand per stage. Snakemake's rules call it; it works without Snakemake too."""

from __future__ import annotations

import argparse
import errno
import json
import os
import shlex
import sys
import time
from collections.abc import Sequence
from pathlib import Path

from diffsiam import commands, params
from diffsiam.errors import UserError

# What the system says of a place that this user may not so much as look into, or that cannot be: wherever it is met.
_CLOSED = (errno.EACCES, errno.EPERM, errno.ENAMETOOLONG)
# Stages whose --out is a folder; others': a file.
_FOLDERS = ("data", "diffusion", "representation", "probmask", "evaluate", "publish", "fetch")


def main(argv: Sequence[str] | None = None) -> int:
    """Run one stage; 0 when it is done, 2 after a `UserError`, at a closed door or a full GPU, whose message is all
    that is printed."""
    args = _parser().parse_args(argv)
    _share_cores()
    try:
        if args.processes > 1 and "WORLD_SIZE" not in os.environ:
            from diffsiam.training import launch

            launch.replace_process("diffsiam.cli", argv or sys.argv[1:], args.processes, args.nodes)
        _check_out(args.stage, args.out)
        untracked, began = os.environ.get(params.VARIABLE), time.time()
        commands.RUN[args.stage](args, params.read(_rest(args, untracked), *(args.params or ["params.yaml"])))
        if untracked is None and args.ruled:  # what a rule would make, and no rule's job
            from diffsiam import records

            records.by_hand(shlex.join(["diffsiam", *(argv or sys.argv[1:])]), args.out, began)
    except UserError as e:
        print(f"diffsiam {args.stage}: {e}", file=sys.stderr)
        return 2
    except OSError as e:
        if e.errno not in _CLOSED or e.filename is None:
            raise
        print(
            f"diffsiam {args.stage}: {e.filename}: {e.strerror}. Name another place, or let this user into it.",
            file=sys.stderr,
        )
        return 2
    except RuntimeError as e:
        if type(e).__name__ != "OutOfMemoryError":  # PyTorch's; to name it here would load PyTorch for every message
            raise
        print(
            f"diffsiam {args.stage}: the GPU's memory is full ({str(e).partition('. ')[0]}). Let fewer jobs share it, "
            "`snakemake --resources gpu_jobs=1 ...` for one at a time, or lower the stage's batch_size. A training "
            "goes on from its last checkpoint.",
            file=sys.stderr,
        )
        return 2
    return 0


def _rest(args: argparse.Namespace, untracked: str | None) -> str:
    """What a rule does not record of the parameters of its job: those of the data set that the job works on, and of the
    method that it trains."""
    if untracked is None:
        return "{}"
    raw, data = json.loads(untracked), vars(args).get("data")  # most stages take a prepared data set's folder
    return json.dumps(params.of(raw, data.name, vars(args).get("method", "")) if isinstance(data, Path) else raw)


def _share_cores() -> None:
    """Let threads that wait for each other give their core away after a moment. By default they spin for it, for
    milliseconds, and jobs that share cores then run at a hundredth of their speed (docs/cluster.md). OpenMP reads this
    when a library brings it along; what the user set stands."""
    if not {"OMP_WAIT_POLICY", "GOMP_SPINCOUNT"} & os.environ.keys():
        os.environ["GOMP_SPINCOUNT"] = "1000"


def _check_out(stage: str, out: Path) -> None:
    """Before a stage's work: a name that it cannot write under would be found at its end."""
    wanted, other = ("folder", "file") if stage in _FOLDERS else ("file", "folder")
    if out.exists() and out.is_dir() != (wanted == "folder"):
        raise UserError(f"--out {out}: is a {other}, and {stage} writes a {wanted}. Name another, or delete it first.")


def _named(text: str) -> tuple[str, Path]:
    """``NAME=FILE``."""
    name, _, file = text.partition("=")
    if not file:
        raise argparse.ArgumentTypeError(f"{text!r}: needed is NAME=FILE")
    return name, Path(file)


def _parser() -> argparse.ArgumentParser:
    parser = argparse.ArgumentParser(
        prog="diffsiam", description="One stage of the DiffSiam pipeline; `snakemake --cores all tables` runs them all."
    )
    stages = parser.add_subparsers(dest="stage", required=True, metavar="STAGE")

    def stage(name: str, text: str, *, ruled: bool = True, configured: bool = True) -> argparse.ArgumentParser:
        sub = stages.add_parser(name, help=text, description=text)
        sub.set_defaults(processes=1, ruled=ruled, data=None, params=None if configured else ["{}"])
        if configured:
            sub.add_argument(
                "--params",
                action="append",
                metavar="FILE_OR_JSON",
                help="parameters: a YAML file, a preset's name or a JSON object; repeat to override (default: "
                "params.yaml)",
            )
        kind = "DIR" if name in _FOLDERS else "FILE"
        sub.add_argument("--out", type=Path, required=True, metavar=kind, help="what to write")
        return sub

    def encoder_options(sub: argparse.ArgumentParser) -> None:
        sub.add_argument("--features", type=Path, required=True, metavar="NPZ", help="features of one data set")
        sub.add_argument("--meta", type=Path, required=True, metavar="JSON", help="meta.json of that data set")
        sub.add_argument("--method", required=True, help="the encoder's method, for the record")
        sub.add_argument("--seed", type=int, required=True, help="the encoder's seed, for the record")

    def training_options(sub: argparse.ArgumentParser) -> None:
        sub.add_argument("--data", type=Path, required=True, metavar="DIR", help="prepared data set to train on")
        sub.add_argument("--checkpoint", type=Path, required=True, metavar="FILE", help="what a stopped run resumes")
        sub.add_argument(
            "--events", type=Path, metavar="DIR", help="TensorBoard events, if runtime.tensorboard is true"
        )
        sub.add_argument("--processes", type=int, default=1, metavar="N", help="train on N GPUs (or CPU processes)")
        sub.add_argument("--nodes", type=int, default=1, metavar="N", help="of the SLURM allocation that share them")

    sub = stage("data", "Prepare a data set: find or download it, and write arrays of one size.")
    sub.add_argument("dataset", help="name of the data set, built in or of section datasets")
    sub.add_argument("--attributes", type=Path, metavar="CSV", help="attributes of a data set without its own")

    sub = stage("attributes", "Make a table of pseudo-labels by a scene-attribute predictor.")
    sub.add_argument("dataset", help="name of the data set")
    sub.add_argument("--names", nargs="+", required=True, metavar="NAME", help="attributes to predict")

    training_options(stage("diffusion", "Pretrain the diffusion model (Eq. 3.4) or fetch one."))

    sub = stage("representation", "Train an encoder by one method (Eq. 3.9 to 3.12).")
    sub.add_argument("method", help="row of the METHODS table")
    sub.add_argument("--diffusion", type=Path, metavar="DIR", help="the frozen diffusion model, diffusers' layout")
    sub.add_argument("--seed", type=int, required=True)
    training_options(sub)

    sub = stage("features", "Extract the features of a data set by a frozen encoder.")
    sub.add_argument("--encoder", type=Path, required=True, metavar="FILE", help="weights, beside their config.json")
    sub.add_argument("--data", type=Path, required=True, metavar="DIR", help="prepared data set")
    sub.add_argument("--mirror", action="store_true", help="add those of the train images' mirror images, for heads")

    encoder_options(stage("linear", "Many-shot protocol: linear probe (Table 4.1)."))
    encoder_options(stage("fewshot", "Few-shot protocol: 5-way episodes (Table 4.2)."))

    sub = stage("probmask", "Fit attribute classifiers on few dimensions of z (ProbMask).")
    sub.add_argument("--encoder", type=Path, required=True, metavar="FILE", help="encoder_ema.safetensors")
    sub.add_argument("--data", type=Path, required=True, metavar="DIR", help="prepared data set with attributes")
    sub.add_argument("--attribute", metavar="NAME", help="this one only (default: those of probmask.attributes)")
    sub.add_argument("--dims", type=int, metavar="D", help="its dimensions (default: 16)")

    sub = stage("heads", "DiTi's evaluations: attributes, continuous labels, by one linear layer on features.")
    sub.add_argument("protocol", choices=["attributes", "regression"])
    sub.add_argument("--data", type=Path, required=True, metavar="DIR", help="prepared data set with such labels")
    sub.add_argument("--features", type=Path, metavar="NPZ", help="of that data set; not for the floor of the pixels")
    sub.add_argument("--method", required=True, help="the encoder's method, for the record; pixels: no encoder")
    sub.add_argument("--seed", type=int, help="the encoder's seed, for the record")

    sub = stage("disentanglement", "Score codes against known factors (docs/disentangle.md).")
    encoder_options(sub)
    sub.add_argument("--config", type=Path, required=True, metavar="JSON", help="config.json of the encoder")

    sub = stage("sheet", "Neighbours, a map or the segments of an encoder's test features (docs/sheets.md).")
    sub.add_argument("kind", choices=["neighbours", "embedding", "segments"])
    sub.add_argument("--data", type=Path, required=True, metavar="DIR", help="prepared data set")
    sub.add_argument("--features", type=Path, metavar="NPZ", help="of that data set; not for the images themselves")
    sub.add_argument("--method", required=True, help="the encoder's method, for the record; pixels: no encoder")

    sub = stage("disentangled", "Collect scores of disentanglement as CSV, Markdown and LaTeX.")
    sub.add_argument("--results", type=Path, nargs="*", default=[], metavar="JSON", help="scores to collect")
    sub.add_argument("--reference", type=Path, required=True, metavar="CSV", help="the published numbers")

    sub = stage("generate", "Make the arrays behind a figure, or the numbers beside them.")
    sub.add_argument("what", choices=["denoise", "counterfactual", "manipulation", "swaps", "classifier", "numbers"])
    sub.add_argument("--data", type=Path, required=True, metavar="DIR", help="prepared data set")
    sub.add_argument("--diffusion", type=Path, metavar="DIR", help="frozen diffusion model; not for classifier")
    sub.add_argument("--representation", type=Path, metavar="DIR", help="trained method; not for denoise, classifier")
    sub.add_argument("--probmask", type=Path, nargs="+", default=[], metavar="FILE", help="probmask's; rows in order")
    sub.add_argument("--classifier", type=Path, metavar="FILE", help="what classifier wrote; for numbers, swaps")

    def place_options(sub: argparse.ArgumentParser) -> None:
        sub.add_argument("--pretrain", metavar="NAME", help="data set it was trained on (default: params' pretrain)")
        sub.add_argument("--results", type=Path, default=Path("results"), metavar="DIR", help="default: results")

    def trained_options(sub: argparse.ArgumentParser) -> None:
        sub.add_argument("--method", default="diffsiam_hier", help="default: diffsiam_hier")
        sub.add_argument("--seed", type=int, default=0, help="seed of its training (default: 0)")
        place_options(sub)

    sub = stage(
        "counterfactual",
        "Segments of one picture's z replaced by another's (Algorithm 2).",
        ruled=False,
    )
    sub.add_argument("pictures", type=Path, nargs=2, metavar="PICTURE", help="two image files of any size")
    sub.add_argument("--segments", nargs="+", required=True, metavar="A-B", help="half-open from 0: 0-8 is z_1 .. z_8")
    sub.add_argument("--scales", type=float, nargs="+", metavar="S", help="0 to 1 (default: generation.scales)")
    trained_options(sub)

    sub = stage("manipulate", "Push a picture along an attribute (Algorithm 3).", ruled=False)
    sub.add_argument("picture", type=Path, metavar="PICTURE", help="an image file of any size")
    sub.add_argument("--attribute", required=True, metavar="NAME", help="one that has a trained classifier")
    sub.add_argument("--dims", metavar="D", help="dimensions of the classifier, or all (default: the fewest there are)")
    sub.add_argument("--scale", type=float, nargs="+", metavar="S", help="default: generation.manipulation_scales")
    trained_options(sub)

    sub = stage("restore", "A picture under noise, restored without and with segments of z.", ruled=False)
    sub.add_argument("picture", type=Path, metavar="PICTURE", help="an image file of any size")
    sub.add_argument("--segments", nargs="+", required=True, metavar="A-B", help="half-open from 0: 0-8 is z_1 .. z_8")
    sub.add_argument("--levels", type=int, nargs="+", default=[200, 500, 800], metavar="T", help="default: 200 500 800")
    sub.add_argument("--noise-seed", type=int, default=0, metavar="N", help="seed of the noise (default: 0)")
    trained_options(sub)

    sub = stage("samples", "What the diffusion model makes of noise alone, and whether it copies.", ruled=False)
    sub.add_argument("--count", type=int, default=24, metavar="N", help="default: 24")
    sub.add_argument("--noise-seed", type=int, default=0, metavar="N", help="seed of the noise (default: 0)")
    place_options(sub)

    sub = stage("table", "Collect results into Table 4.1, 4.2 or that of attributes: CSV, Markdown, LaTeX.")
    sub.add_argument("table", choices=["4_1", "4_2", "attributes"])
    sub.add_argument("--results", type=Path, nargs="+", required=True, metavar="JSON", help="results to collect")
    sub.add_argument("--meta", type=Path, nargs="+", required=True, metavar="JSON", help="meta.json of the data sets")
    sub.add_argument(
        "--config", type=Path, nargs="+", required=True, metavar="JSON", help="config.json of the encoders"
    )
    sub.add_argument("--reference", type=Path, metavar="CSV", help="published numbers (default: the package's)")
    sub.add_argument("--pretrain", default="", metavar="NAME", help="what encoders were trained on; for attributes")

    sub = stage("figure", "Draw a figure from stored arrays: PNG, PDF, and what it shows as text.")
    sub.add_argument("figure", metavar="NUMBER", help="1_1, 3_1, 4_1 to 4_9, or a word such as neighbours")
    sub.add_argument("--dataset", required=True, metavar="NAME", help="data set, for the title")
    sub.add_argument(
        "--input", type=_named, nargs="+", required=True, metavar="NAME=FILE", help="arrays or history by method"
    )

    sub = stage("numbers", "Collect the numbers beside the figures as CSV and Markdown.")
    sub.add_argument("--results", type=Path, nargs="+", required=True, metavar="CSV", help="numbers_<method>.csv")

    sub = stage("summary", "Put the methods side by side, with paired differences beside it: CSV, PNG, PDF.")
    for protocol in ("linear", "fewshot"):
        sub.add_argument(f"--{protocol}", type=Path, nargs="+", required=True, metavar="JSON", help="its results")
    sub.add_argument(
        "--reference", type=Path, nargs="+", metavar="CSV", help="the thesis's numbers (default: the package's)"
    )
    sub.add_argument("--pretrain", required=True, metavar="NAME", help="data set that transfer averages leave out")

    sub = stage("provenance", "Collect the data, and what trained the networks, where, in what time.")
    sub.add_argument("--meta", type=Path, nargs="+", required=True, metavar="JSON", help="meta.json of the data sets")
    sub.add_argument(
        "--training", type=Path, nargs="+", required=True, metavar="JSON", help="config.json or training.json"
    )

    sub = stage("page", "Put every table and figure that is there on one page, with its claim beside it: HTML.")
    sub.add_argument("--results", type=Path, required=True, metavar="DIR", help="the folder that holds the tables")
    sub.add_argument("--pretrain", required=True, metavar="NAME", help="data set that the encoders were trained on")

    sub = stage("search", "Settings that were tried, by their validation accuracy, as CSV and Markdown.")
    sub.add_argument(
        "--linear", type=Path, nargs="+", required=True, metavar="JSON", help="results of the linear probe"
    )
    sub.add_argument("--meta", type=Path, required=True, metavar="JSON", help="meta.json of the data set")

    sub = stage("curve", "Linear validation accuracy over training, as CSV, PNG and PDF.")
    sub.add_argument("--linear", type=Path, nargs="+", required=True, metavar="JSON", help=".../step<N>/<set>.json")
    sub.add_argument("--pretrain", required=True, metavar="NAME", help="data set with a panel of its own")

    sub = stage("evaluate", "The tables' protocols on any encoder: torchvision's, timm's or your own.", ruled=False)
    source = sub.add_mutually_exclusive_group(required=True)
    source.add_argument("--encoder", metavar="PATH_OR_NAME", help="torchvision:NAME, timm:NAME or a file")
    source.add_argument("--features", type=Path, metavar="NPZ", help="features of your own in place of an encoder's")
    sub.add_argument("--metric", choices=["accuracy", "mean_per_class"], help="of --features (default: accuracy)")
    sub.add_argument("--weights", metavar="FILE_OR_NAME", help="state dict, or torchvision's name of the weights")
    sub.add_argument(
        "--data", nargs="+", default=[], metavar="NAME_OR_PATH", help="data sets, or images of your own, for an encoder"
    )
    sub.add_argument("--image-size", type=int, metavar="PIXELS", help="default: an own encoder's, else 224 (cifar: 32)")
    sub.add_argument("--part", metavar="WORDS", help="what stands before the names, where weights are there twice")
    sub.add_argument("--stem", choices=["imagenet", "cifar"], help="of a ResNet (default: imagenet)")
    for which, text in (("mean", "subtracted from images in [0, 1]"), ("std", "that they are divided by")):
        sub.add_argument(
            f"--{which}", type=float, nargs=3, metavar=tuple("RGB"), help=f"{text} (default: as published)"
        )
    sub.add_argument("--seed", type=int, default=0, help="for the record")

    unruled = {"ruled": False, "configured": False}
    sub = stage("publish", "Make a folder with a model card of a trained network, to upload.", **unruled)
    sub.add_argument(
        "folder", type=Path, metavar="FOLDER", help="results/representation/DATA/METHOD/seedK or results/diffusion/DATA"
    )
    sub.add_argument("--license", default="other", help="of the weights, in the Hub's words (default: other)")
    sub.add_argument("--to", metavar="OWNER/NAME", help="upload it to this repository of the Hugging Face Hub")

    sub = stage("fetch", "Get back what `diffsiam publish` uploaded.", **unruled)
    sub.add_argument("repository", metavar="OWNER/NAME", help="of the Hugging Face Hub")
    sub.add_argument("--revision", required=True, metavar="SHA", help="the commit, 40 hexadecimal digits")

    stage("crate", "Describe a run as an RO-Crate: ro-crate-metadata.json beside the Snakefile.", **unruled)
    return parser


if __name__ == "__main__":
    sys.exit(main())
