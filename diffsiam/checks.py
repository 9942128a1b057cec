"""What the schema has no words for: values of params.yaml that contradict each other, or what is known beforehand of
the data sets. All of it is refused before anything is planned.

Every rule takes parameters that have passed the schema, nested as in params.yaml, and yields a line for each mistake:
the key, the value met, the values allowed, what to do.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator

from diffsiam import schema, search
from diffsiam.data import sources
from diffsiam.errors import UserError
from diffsiam.sections import Raw, dimensions, plain, section
from diffsiam.training.methods import METHODS, snapshot_steps

CODED_SIZES = (8, 16, 32, 64)  # of `diffsiam.models.encoder.STRIDED`

Of = Callable[[str], Raw]  # the parameters as they stand for one data set, with its overrides


def experiment(raw: Raw, of: Of) -> list[str]:
    """The mistakes between sections, and between them and the data sets."""
    rules = (
        *(_own, _image_sizes, _codes, _snapshots, _search, _unets, _frozen, _classes, _validation, _attributes),
        *(_map, _heads, _disentanglement, _ranges, _figures, _pairs),
    )
    return list(dict.fromkeys(line for rule in rules for line in rule(raw, of)))  # a data set may be used twice


# ---------------------------------------------------------------------------------- between sections and data sets
def _own(raw: Raw, of: Of) -> Iterator[str]:
    """Images of one's own are in the tables where they have classes; a CSV says itself whether it has labels."""
    for name, entry in raw["datasets"].items():
        if "layout" in entry and entry["path"].lower().endswith(".csv"):
            yield f"datasets.{name}.layout: a CSV has labels where it has a column label. Leave layout out."
        elif entry.get("layout") == "flat" and name in raw["transfer"]:
            yield (
                f"datasets.{name}.layout: flat images have no labels, but transfer has {name}. Take it out there, or "
                "sort the images into folders of classes."
            )


def _image_sizes(raw: Raw, of: Of) -> Iterator[str]:
    """A data set of the tables has one image size."""
    for name in _resized(raw):
        yield (
            f"overrides.{name}.data: the tables use {name} at data.image_size. Take {name} out of pretrain and "
            "transfer, or drop this override."
        )


def _resized(raw: Raw) -> list[str]:
    """Data sets of the tables with an image size of their own."""
    tables = dict.fromkeys((raw["pretrain"], *raw["transfer"]))
    return [name for name in tables if "data" in raw["overrides"].get(name, {})]


def _codes(raw: Raw, of: Of) -> Iterator[str]:
    """Methods with codes have them, on images that their encoder takes."""
    scored = raw["disentanglement"]
    wanted = {"methods": (raw["methods"], [raw["pretrain"]])}
    wanted |= {"disentanglement.methods": (scored["methods"], scored["datasets"])}
    wanted |= {"search.grid": ([entry["method"] for entry in raw["search"]["grid"]], [raw["pretrain"]])}
    for key, (names, datasets) in wanted.items():
        for dataset in datasets:
            mine = of(dataset)
            size, codes = mine["data"]["image_size"], mine["representation"]["codes"]
            rows = 2 * mine["diffusion"]["unet"]["channels"][0]  # of the orthogonal matrix: half the time embedding
            trained = mine["diffusion"]["source"] == "pretrain"
            if codes and codes["embedding"] == "orthogonal" and trained and codes["count"] > rows:
                yield (
                    f"representation.codes.count: met {codes['count']} on {dataset}, but the orthogonal embedding of a "
                    f"diffusion model of {rows // 2} channels has {rows} rows. Choose at most {rows}, or embedding: "
                    "learned."
                )
            if codes and size not in CODED_SIZES:
                yield (
                    f"data.image_size: met {size} on {dataset}, whose representation.codes ask for an encoder of "
                    f"{', '.join(map(str, CODED_SIZES))} pixels. Choose one of these, or set codes to null."
                )
            for name in names:
                if METHODS[name].coded and not codes:
                    yield (
                        f"{key}: {name} needs representation.codes, which is null on {dataset}. Give it in "
                        f"overrides.{dataset}, as workflow/presets/disdiff-cpu.yaml does, or take {name} out."
                    )


def _snapshots(raw: Raw, of: Of) -> Iterator[str]:
    """The encoders that a method keeps on the way are named by their steps, for all data sets alike."""
    kept = raw["representation"]["snapshots"]
    steps = {name: of(name)["representation"]["steps"] for name in (raw["pretrain"], *raw["overrides"])}
    if kept and len({tuple(snapshot_steps(count, kept)) for count in steps.values()}) > 1:
        met = ", ".join(f"{count} on {name}" for name, count in steps.items())
        yield (
            f"representation.snapshots: met {kept}, but trainings have different numbers of steps: {met}. Encoders are "
            "kept at the same steps on every data set: give overrides the same, or set snapshots to 0."
        )


def _search(raw: Raw, of: Of) -> Iterator[str]:
    """Trials are of settings that a method may have, and their seeds are not those that they choose for."""
    if both := sorted({*raw["search"]["seeds"]} & {*raw["seeds"]}):
        yield (
            f"search.seeds: met {', '.join(map(str, both))}, which seeds has too. Choose others: what chooses settings "
            "is no test of them."
        )
    for trial in search.trials(raw):
        where, given = f"search.grid: {trial.method}, {trial.name}", search.nested(trial.settings)
        try:
            schema.check({"by_method": {trial.method: given}}, complete=False)
        except UserError as e:
            yield from (f"{where}: {line.strip()}" for line in str(e).removeprefix("params: ").splitlines())
            continue
        own = (raw["by_method"].get(trial.method, {}), search.tried(raw, trial)["by_method"][trial.method])
        before, after = (
            section("representation", schema.merge(of(raw["pretrain"]), mine)["representation"]) for mine in own
        )
        yield from (f"{where}: {line}" for line in after if line not in before)


def _unets(raw: Raw, of: Of) -> Iterator[str]:
    """The U-Nets that are trained here fit the images that they are trained on."""
    seen: list[Raw] = []
    factors = raw["disentanglement"]["datasets"]
    names = dict.fromkeys((raw["pretrain"], *raw["overrides"], *raw["figures"]["datasets"].values(), *factors))
    for name in (name for name in names if name not in _resized(raw)):
        mine = of(name)
        cfg, size = mine["diffusion"]["unet"], mine["data"]["image_size"]
        if mine["diffusion"]["source"] != "pretrain" or (found := {**cfg, "size": size}) in seen:
            continue
        seen.append(found)
        channels, groups = cfg["channels"], cfg["norm_groups"]
        if size % 2 ** len(channels):  # sizes are powers of 2, and the last level is of 2 or more
            yield (
                f"diffusion.unet.channels: met {channels}, but {name}'s images of {size}x{size} do not fit "
                f"{len(channels)} levels: each after the first halves them, to 2 or more. Give at most "
                f"{size.bit_length() - 1} widths."
            )
        if odd := [width for width in channels if width % groups]:
            yield (
                f"diffusion.unet.norm_groups: {groups} does not divide the width {odd[0]} of channels {channels}. "
                "Choose a divisor of every width."
            )


def _frozen(raw: Raw, of: Of) -> Iterator[str]:
    """The frozen model has the block that is named, or the images something to choose one by."""
    block, scored = raw["frozen_dm"]["block"], raw["disentanglement"]
    names = [raw["pretrain"]] if "frozen_dm" in raw["methods"] else []
    for name in (*names, *(scored["datasets"] if "frozen_dm" in scored["methods"] else [])):
        row, diffusion = sources.get(name, raw["datasets"]), of(name)["diffusion"]
        count = len(diffusion["unet"]["channels"]) * (diffusion["unet"]["layers_per_block"] + 1)
        if block is not None and diffusion["source"] == "pretrain" and block > count:
            yield (
                f"frozen_dm.block: met {block}, but the way up of {name}'s diffusion model has {count} blocks. Choose "
                f"1 to {count}, or null for the best on validation images."
            )
        if block is None and not (row.labelled or row.factors or row.attributes or row.tabled):
            yield (
                f"frozen_dm.block: met null, but {name} has neither classes, factors nor attributes to choose a block "
                "by. Give block and level, or take frozen_dm out of methods."
            )


def _map(raw: Raw, of: Of) -> Iterator[str]:
    """An embedded data set has the test images that its sheets take."""
    row, cfg = sources.get(raw["pretrain"], raw["datasets"]), raw["sheets"]
    if not row.embedded:
        return
    for key, needed in {
        "queries": cfg["queries"],
        "neighbours": cfg["neighbours"],
        "perplexity": 3 * cfg["perplexity"],
    }.items():
        if needed >= row.test:
            most = row.test / 3 if key == "perplexity" else row.test
            yield f"sheets.{key}: met {cfg[key]:g}, but {row.name} has {row.test} test images. Choose below {most:g}."


def _classes(raw: Raw, of: Of) -> Iterator[str]:
    """Every data set of the tables has the classes of an episode, and those of known sizes the images."""
    ways, shots, queries = (raw["fewshot"][key] for key in ("ways", "shots", "queries"))
    needed = max(shots) + queries
    for name in raw["transfer"]:
        row = sources.get(name, raw["datasets"])
        if row.own is not None:  # its classes are counted by the jobs
            continue
        usable = sum(size >= needed for size in row.test_sizes)
        if ways > row.classes:
            yield (
                f"fewshot.ways: met {ways}, but {name} has {row.classes} classes. Choose at most {row.classes}, or "
                f"leave {name} out of transfer."
            )
        elif row.test_sizes and usable < ways:
            most = sorted(row.test_sizes)[-ways] - queries
            remedy = f"at most {most} shots work" if most > 0 else "none work: lower fewshot.queries"
            yield (
                f"fewshot.shots: {ways} classes with {max(shots)} support and {queries} query test images each are "
                f"needed; {usable} of {name} have that many. With these ways and queries {remedy}; or leave {name} out "
                "of transfer."
            )


def _validation(raw: Raw, of: Of) -> Iterator[str]:
    fraction = raw["data"]["val_fraction"]
    for name in dict.fromkeys((raw["pretrain"], *raw["transfer"])):
        if (row := sources.get(name, raw["datasets"])).embedded and not round(fraction * row.train):
            yield (
                f"data.val_fraction: {fraction:g} of {name}'s {row.train} training images is none. Choose at least "
                f"{1 / row.train:.1g}."
            )


def _attributes(raw: Raw, of: Of) -> Iterator[str]:
    """Attribute classifiers are of attributes that there are, and of no more dimensions than z has."""
    data_sets = sources.table(raw["datasets"])
    for i, row in enumerate(raw["probmask"]["attributes"]):
        where, name, dims = f"probmask.attributes.{i}", row["dataset"], row["dims"]
        known, dim = data_sets[name].attributes, dimensions(of(name)["representation"])
        if dims > dim:
            yield f"{where}.dims: met {dims} for {row['name']}, but z has d = {dim} on {name}. Choose 1 to {dim}."
        if not known and not data_sets[name].tabled:
            having = ", ".join(n for n, other in data_sets.items() if other.attributes or other.tabled)
            yield f"{where}.dataset: {name} has no attributes. Those with attributes: {having}."
        elif known and plain(row["name"]) not in map(plain, known):
            yield f"{where}.name: {name} has no attribute {row['name']!r}. There are: {', '.join(known)}."


def _heads(raw: Raw, of: Of) -> Iterator[str]:
    """Heads are on labels that there are, of images that the encoders of the tables take."""
    rows = sources.table(raw["datasets"])
    labelled = {
        "attributes_on": ("attributes", [name for name, row in rows.items() if row.attributes]),
        "regression_on": ("continuous labels", [name for name, row in rows.items() if row.targets]),
    }
    size = of(raw["pretrain"])["data"]["image_size"]
    for key, (what, known) in labelled.items():
        for name in raw["heads"][key]:
            if name not in known:
                yield f"heads.{key}: {name} has no {what}. Those with {what}: {', '.join(known)}."
            elif (own := of(name)["data"]["image_size"]) != size:
                yield (
                    f"heads.{key}: images of {name} are {own}x{own}, those of {raw['pretrain']}, which encoders are "
                    f"trained on, {size}x{size}. Give both one size in overrides, or leave {name} out."
                )


def _disentanglement(raw: Raw, of: Of) -> Iterator[str]:
    """Factors are known, draws are enough for each of their values, and there are codes to tell apart."""
    cfg = raw["disentanglement"]
    for i, name in enumerate(cfg["datasets"]):
        if not (factors := sources.get(name, raw["datasets"]).factors):
            having = ", ".join(n for n, other in sources.DATASETS.items() if other.factors)
            yield f"disentanglement.datasets.{i}: {name} has no grid of known factors. Those that have: {having}."
            continue
        factor, largest = max(factors, key=lambda pair: pair[1])
        if cfg["draws"]["train"] < 20 * largest:
            yield (
                f"disentanglement.draws.train: met {cfg['draws']['train']}, but {factor} of {name} has {largest} "
                f"values, and each needs some draws. Choose at least {20 * largest} (20 each); published are 10000."
            )
        if (segments := of(name)["representation"]["segments"]) < 2:
            yield (
                f"representation.segments: met {segments}, but disentanglement on {name} compares the segments of z. "
                "Choose two or more."
            )


def _ranges(raw: Raw, of: Of) -> Iterator[str]:
    for i, row in enumerate(raw["generation"]["ranges"]):
        n = of(row["dataset"])["representation"]["segments"]
        for j, (start, stop) in enumerate(row["ranges"]):
            if not start <= stop <= n:
                yield (
                    f"generation.ranges.{i}.ranges.{j}: met [{start}, {stop}], but z has {n} segments on "
                    f"{row['dataset']}. Give two numbers from 0 to {n}, the smaller first: half-open, [0, {n}] is all "
                    "of z."
                )


def _figures(raw: Raw, of: Of) -> Iterator[str]:
    """What a figure shows is made."""
    figures, generation = raw["figures"], raw["generation"]
    if figures["method"] not in generation["methods"]:
        yield (
            f"figures.method: {figures['method']} is not among generation.methods: {', '.join(generation['methods'])}. "
            "Choose one of them, or add it there."
        )
    rows = {"generation.ranges": generation["ranges"], "probmask.attributes": raw["probmask"]["attributes"]}
    for number, key in enumerate(4 * ["generation.ranges"] + 3 * ["probmask.attributes"], start=1):
        known = dict.fromkeys(row["dataset"] for row in rows[key])
        if (name := figures["datasets"][f"fig4_{number}"]) not in known:
            yield (
                f"figures.datasets.fig4_{number}: {name} has no row in {key}, which has {', '.join(known) or 'none'}. "
                "Add one, or choose one of these."
            )
    name = figures["datasets"]["fig4_2"]
    made = [span for row in generation["ranges"] if row["dataset"] == name for span in row["ranges"]]
    everything = [0, of(name)["representation"]["segments"]]
    for i, span in enumerate(figures["early_middle_late"]):
        if made and span not in (*made, everything):
            yield (
                f"figures.early_middle_late.{i}: {span} is not among generation.ranges of {name}, which Figure 4.2 "
                f"shows: {', '.join(map(str, made))}. Choose one of them, or add it there."
            )


def _pairs(raw: Raw, of: Of) -> Iterator[str]:
    """Embedded data sets have the test images that the figures show."""
    pairs, shown = raw["generation"]["pairs"], ("fig1_1", *(f"fig4_{number}" for number in range(1, 8)))
    highest = max(map(max, pairs["indices"])) if pairs["indices"] else 2 * pairs["count"] - 1
    key = "indices" if pairs["indices"] else "count"
    for name in dict.fromkeys(raw["figures"]["datasets"][figure] for figure in shown):
        if (row := sources.get(name, raw["datasets"])).embedded and highest >= row.test:
            yield (
                f"generation.pairs.{key}: {highest + 1} test images are needed, {name} has {row.test}. Choose fewer "
                f"pairs, or indices from 0 to {row.test - 1}."
            )
