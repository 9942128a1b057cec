"""What each stage runs: the options and parameters of a command line, handed to the part of the package that does the
work. Parts are imported when they are called: `diffsiam --help` need not wait for PyTorch."""

from __future__ import annotations

import argparse
from collections.abc import Callable
from pathlib import Path
from typing import Any

from diffsiam import params, schema
from diffsiam.errors import UserError


def _data(args: argparse.Namespace, raw: dict[str, Any]) -> None:
    from diffsiam.data import prepare

    cfg = params.section(raw, params.Data)
    prepare.run(args.dataset, cfg, args.out, args.attributes, raw.get("datasets"))


def _attributes(args: argparse.Namespace, raw: dict[str, Any]) -> None:
    from diffsiam.data import scene_attributes

    sections = params.section(raw, params.Data), params.section(raw, params.Runtime)
    scene_attributes.run(args.dataset, args.names, *sections, args.out)


def _diffusion(args: argparse.Namespace, raw: dict[str, Any]) -> None:
    from diffsiam.training import diffusion

    cfg, rt = params.section(raw, params.Diffusion), params.section(raw, params.Runtime)
    diffusion.run(cfg, rt, args.data, args.out, args.checkpoint, _root(raw), args.events)


def _representation(args: argparse.Namespace, raw: dict[str, Any]) -> None:
    from diffsiam.training import methods, representation

    rt = params.section(raw, params.Runtime)
    if methods.lookup(args.method).frozen:
        from diffsiam.evaluation import frozen

        cfg = params.section(raw, params.FrozenDm)
        return frozen.run(cfg, rt, args.data, args.diffusion, args.out, seed=args.seed, root=_root(raw))
    trained = params.section(raw, params.Representation)
    folders = (args.data, args.diffusion, args.out, args.checkpoint)
    return representation.run(args.method, trained, rt, *folders, seed=args.seed, events=args.events, root=_root(raw))


def _root(raw: dict[str, Any]) -> Path:
    """Folder of the raw data sets."""
    return params.place(raw.get("data", {}).get("root", "resources"))


def _features(args: argparse.Namespace, raw: dict[str, Any]) -> None:
    from diffsiam.evaluation import features

    cfg, rt = params.section(raw, params.Features), params.section(raw, params.Runtime)
    features.run(args.encoder, args.data, cfg, rt, args.out, mirror=args.mirror)


def _linear(args: argparse.Namespace, raw: dict[str, Any]) -> None:
    from diffsiam.evaluation import linear

    cfg = params.section(raw, params.Linear)
    linear.run(args.features, args.meta, cfg, args.out, method=args.method, seed=args.seed)


def _fewshot(args: argparse.Namespace, raw: dict[str, Any]) -> None:
    from diffsiam.evaluation import fewshot

    cfg = params.section(raw, params.FewShot)
    fewshot.run(args.features, args.meta, cfg, args.out, method=args.method, seed=args.seed)


def _probmask(args: argparse.Namespace, raw: dict[str, Any]) -> None:
    from diffsiam.evaluation import probmask

    cfg, rt = params.section(raw, params.ProbMask), params.section(raw, params.Runtime)
    if args.dims is not None and args.attribute is None:
        raise UserError("--dims: those of --attribute. Name one, or edit probmask.attributes.")
    which = {"attribute": args.attribute, "dims": args.dims or 16}
    probmask.run(args.encoder, args.data, cfg, rt, args.out, root=_root(raw), **which)


def _heads(args: argparse.Namespace, raw: dict[str, Any]) -> None:
    from diffsiam.evaluation import heads

    cfg, whose = params.section(raw, params.Heads), {"method": args.method, "seed": args.seed}
    heads.run(args.protocol, args.data, cfg, args.out, features=args.features, **whose)


def _disentanglement(args: argparse.Namespace, raw: dict[str, Any]) -> None:
    from diffsiam.evaluation import disentanglement

    cfg = params.section(raw, params.Disentanglement)
    count = raw.get("representation", {}).get("segments", 0)  # of this data set; what else is there may be another's
    whose = {"method": args.method, "seed": args.seed}
    disentanglement.run(args.features, args.meta, args.config, cfg, args.out, count=count, **whose)


def _disentangled(args: argparse.Namespace, raw: dict[str, Any]) -> None:
    from diffsiam.report import disentangled

    disentangled.run(args.results, args.reference, args.out)


def _sheet(args: argparse.Namespace, raw: dict[str, Any]) -> None:
    from diffsiam.evaluation import sheets

    cfg = params.section(raw, params.Sheets)
    sheets.run(args.kind, args.data, cfg, args.out, method=args.method, features=args.features)


def _generate(args: argparse.Namespace, raw: dict[str, Any]) -> None:
    if args.what == "swaps":
        return _swaps(args, raw)
    from diffsiam.generation import figures

    sections = params.section(raw, params.Generation), params.section(raw, params.Runtime)
    rest = {"representation": args.representation, "probmask": args.probmask, "classifier": args.classifier}
    rest["segments"] = params.section(raw, params.Representation).segments
    figures.run(args.what, *sections, args.data, args.diffusion, args.out, root=_root(raw), **rest)
    return None


def _swaps(args: argparse.Namespace, raw: dict[str, Any]) -> None:
    from diffsiam.generation import swaps

    sections = params.section(raw, params.Generation), params.section(raw, params.Runtime)
    rest: dict[str, Any] = {"representation": args.representation, "classifier": args.classifier}
    rest["segments"] = params.section(raw, params.Representation).segments
    settings = params.section(raw, params.Disentanglement).swaps
    swaps.run(*sections, settings, args.data, args.diffusion, args.out, root=_root(raw), **rest)


def _counterfactual(args: argparse.Namespace, raw: dict[str, Any]) -> None:
    from diffsiam.generation import pictures

    pictures.counterfactual(args.pictures, args.segments, _trained(args, raw), args.out, scales=args.scales)


def _manipulate(args: argparse.Namespace, raw: dict[str, Any]) -> None:
    from diffsiam.generation import pictures

    which = {"attribute": args.attribute, "dims": args.dims, "scales": args.scale}
    pictures.manipulate(args.picture, _trained(args, raw), args.out, **which)


def _restore(args: argparse.Namespace, raw: dict[str, Any]) -> None:
    from diffsiam.generation import pictures
    from diffsiam.report import save, strips

    pictures.check_png(args.out)
    trained = _trained(args, raw)
    made = pictures.restored(args.picture, args.segments, args.levels, trained, noise_seed=args.noise_seed)
    save.save(strips.restored(made, trained.method, trained.pretrain), args.out)


def _samples(args: argparse.Namespace, raw: dict[str, Any]) -> None:
    from diffsiam.generation import pictures, samples
    from diffsiam.report import save, strips

    pictures.check_png(args.out)
    sections = params.section(raw, params.Generation), params.section(raw, params.Runtime)
    name = args.pretrain or raw.get("pretrain", "")
    folders = args.results / "data" / name, args.results / "diffusion" / name
    made = samples.draw(*sections, *folders, count=args.count, seed=args.noise_seed, root=_root(raw))
    save.save(strips.samples(made, name), args.out)
    print(samples.summary(made))


def _trained(args: argparse.Namespace, raw: dict[str, Any]) -> Any:
    """The trained networks that the options name."""
    from diffsiam.generation import pictures

    sections = params.section(raw, params.Generation), params.section(raw, params.Runtime)
    return pictures.Trained(args.results, args.pretrain or raw.get("pretrain", ""), args.method, args.seed, *sections)


def _table(args: argparse.Namespace, raw: dict[str, Any]) -> None:
    from diffsiam.report import attributes, tables

    if args.table == "attributes":
        reference = args.reference or _reference("diti_attributes.csv")
        return attributes.run(args.results, args.meta, args.config, reference, args.pretrain, args.out)
    reference = args.reference or _reference(f"thesis_table{args.table}.csv")
    tables.run(args.table, args.results, args.meta, args.config, reference, args.out)


def _reference(file: str) -> Path:
    """Published numbers, as they come with the package."""
    return schema.WORKFLOW / "reference" / file


def _numbers(args: argparse.Namespace, raw: dict[str, Any]) -> None:
    from diffsiam.report import numbers

    numbers.run(args.results, args.out)


def _figure(args: argparse.Namespace, raw: dict[str, Any]) -> None:
    from diffsiam.report import captions, figures

    ranges = raw.get("figures", {}).get("early_middle_late", [])
    inputs = figures.Inputs(args.dataset, dict(args.input), [(start, stop) for start, stop in ranges])
    figures.run(args.figure, inputs, args.out)
    captions.write(args.figure, inputs, args.out.with_suffix(".rst"))


def _summary(args: argparse.Namespace, raw: dict[str, Any]) -> None:
    from diffsiam.report import summary

    references = args.reference or [_reference(f"thesis_table{table}.csv") for table in ("4_1", "4_2")]
    summary.run(args.linear, args.fewshot, references, args.pretrain, args.out)


def _provenance(args: argparse.Namespace, raw: dict[str, Any]) -> None:
    from diffsiam.report import provenance

    provenance.run(args.meta, args.training, args.out)


def _page(args: argparse.Namespace, raw: dict[str, Any]) -> None:
    from diffsiam.report import page

    page.run(args.results, args.pretrain, args.out)


def _curve(args: argparse.Namespace, raw: dict[str, Any]) -> None:
    from diffsiam.report import curve

    curve.run(args.linear, args.pretrain, args.out)


def _search(args: argparse.Namespace, raw: dict[str, Any]) -> None:
    from diffsiam.report import searched

    searched.run(args.linear, args.meta, args.out)


def _evaluate(args: argparse.Namespace, raw: dict[str, Any]) -> None:
    from diffsiam.data import own
    from diffsiam.evaluation import external, protocols
    from diffsiam.report import summary

    _check_sources(args)
    data, entries = own.entered(args.data, raw.get("datasets", {}))
    cfg = protocols.Settings(
        params.section(raw, params.Data),
        params.section(raw, params.Features),
        params.section(raw, params.Linear),
        params.section(raw, params.FewShot),
        params.section(raw, params.Runtime),
    )
    if args.features is not None:
        data, refused = protocols.run_features(
            args.features, cfg, args.out, metric=args.metric or "accuracy", seed=args.seed
        )
    else:
        mean, std = (None if values is None else tuple(values) for values in (args.mean, args.std))
        encoder = external.Options(args.part, args.stem or external.STEMS[0], mean, std)
        options = {"weights": args.weights, "image_size": args.image_size, "options": encoder, "seed": args.seed}
        refused = protocols.run(args.encoder, data, cfg, args.out, **options, entries=entries)
    print(summary.encoder(args.out, data, refused, args.out / "summary.md"), end="")
    if unprepared := [reason for (_, what), reason in refused.items() if what == "data"]:
        raise UserError(f"{' '.join(unprepared)} The other data sets' results stand.")


def _check_sources(args: argparse.Namespace) -> None:
    """`evaluate` has two kinds of sources, each with options of its own, which the other would pass over."""
    of_encoders = ("weights", "data", "image_size", "part", "mean", "std", "stem")
    kind, other, options = (
        ("--features", "--encoder", of_encoders) if args.features else ("--encoder", "--features", ("metric",))
    )
    if given := [f"--{name.replace('_', '-')}" for name in options if vars(args)[name]]:
        raise UserError(f"{', '.join(given)}: for {other}, and {kind} was given. Leave it out.")


def _publish(args: argparse.Namespace, raw: dict[str, Any]) -> None:
    from diffsiam import publish

    publish.publish(args.folder, args.out, args.license, args.to)


def _fetch(args: argparse.Namespace, raw: dict[str, Any]) -> None:
    from diffsiam import publish

    publish.fetch(args.repository, args.revision, args.out)


def _crate(args: argparse.Namespace, raw: dict[str, Any]) -> None:
    from diffsiam.report import crate

    crate.run(args.out)


RUN: dict[str, Callable[[argparse.Namespace, dict[str, Any]], None]] = {
    "data": _data,
    "attributes": _attributes,
    "diffusion": _diffusion,
    "representation": _representation,
    "features": _features,
    "linear": _linear,
    "fewshot": _fewshot,
    "probmask": _probmask,
    "heads": _heads,
    "disentanglement": _disentanglement,
    "sheet": _sheet,
    "disentangled": _disentangled,
    "generate": _generate,
    "counterfactual": _counterfactual,
    "manipulate": _manipulate,
    "restore": _restore,
    "samples": _samples,
    "table": _table,
    "figure": _figure,
    "numbers": _numbers,
    "summary": _summary,
    "provenance": _provenance,
    "page": _page,
    "search": _search,
    "curve": _curve,
    "evaluate": _evaluate,
    "publish": _publish,
    "fetch": _fetch,
    "crate": _crate,
}
"""By the stage's name: what it runs, given its options and the parameters as read."""
