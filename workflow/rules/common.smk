# Shared by the rules: checked parameters, each stage's own share of them, and the digest of its code.
# Jobs that compute on a GPU where there is one say `gpu_jobs=1`: `--resources gpu_jobs=N` lets N of them share it.
import json
import os
import sys
from pathlib import Path

from diffsiam import digest, params, search, stages
from diffsiam.data import fingerprint, sources
from diffsiam.data.own import refuse_unlabelled
from diffsiam.errors import UserError
from diffsiam.evaluation import hub
from diffsiam.report import entries
from diffsiam.training.methods import METHODS, snapshot_steps

# The `diffsiam` command of this very environment, activated or not, on this machine or a compute node.
os.environ |= {"PATH": f"{Path(sys.executable).parent}{os.pathsep}{os.environ.get('PATH', '')}"}
# A container brings the environment; the package is this checkout's, whose digest rules record.
os.environ |= {"APPTAINERENV_PYTHONPATH": str(Path(CHECKOUT).resolve())}

try:
    params.check(config)
    refuse_unlabelled("params: transfer:", [sources.get(name, config["datasets"]) for name in config["transfer"]])
except UserError as e:
    print(e, file=sys.stderr)
    sys.exit(2)

# Files of the checkout, as rules name their inputs: relative, so that records mean the same in every clone.
HERE = Path(os.path.relpath(CHECKOUT))
DATA = "results/data/{dataset}"
ENCODER = "results/representation/{pretrain}/{method}/seed{seed}"
DATA_ROOT = params.place(config["data"]["root"])
THREADS = config["runtime"]["threads"]
SNAPSHOTS = {}  # method -> the steps after which its encoder is kept
for name in METHODS:
    trained = params.of(config, config["pretrain"], name)["representation"]
    SNAPSHOTS[name] = snapshot_steps(trained["steps"], trained["snapshots"]) if METHODS[name].trained else []
TRIALS = {(trial.method, trial.name): trial for trial in search.trials(config)}
# What a rule does not record reaches its command through the environment.
os.environ |= {params.VARIABLE: json.dumps({name: config[name] for name in (*params.SECTIONS, "datasets", "overrides", "by_method")})}


wildcard_constraints:
    dataset="[A-Za-z0-9]+",
    pretrain="[A-Za-z0-9]+",
    method="|".join(METHODS),
    seed="[0-9]+",
    step="[0-9]+",
    trial="[^/]+",


def own(stage, without=(), method=""):
    """The parameters that the stage's results depend on, as the command takes them, for the job's data set and what it
    trains."""

    def of_job(wildcards):
        dataset = wildcards.get("pretrain", wildcards.get("dataset", ""))
        trial = TRIALS[method, wildcards.trial] if wildcards.get("trial") and method else None
        raw = search.tried(config, trial) if trial else config
        return json.dumps(stages.share(raw, stage, dataset, without, method))

    return of_job


# Fingerprints are taken once, by the process that plans; what it records travels to the jobs.
SEEN = {} if workflow.is_main_process else json.loads(os.environ.get("DIFFSIAM_SEEN", "{}"))


def seen(source, take):
    """What the rule that reads ``source`` records of it."""
    if source not in SEEN:
        SEEN[source] = fingerprint.recorded(source, take())
        os.environ |= {"DIFFSIAM_SEEN": json.dumps(SEEN)}
    return SEEN[source]


def entry(name, file, dataset=None):
    """An entry of Snakemake's report: of a table, or with ``dataset`` of a figure. Its caption lies beside the rules'."""
    title = entries.caption(name).title
    if dataset is None:
        return report(file, caption=f"../report/{name}.rst", category="Tables", labels={"shows": title, "file": file})
    number, _, shows = title.removeprefix("Figure ").rpartition(". ")
    labels = {"figure": number or name.replace("_", " "), "shows": shows, "data set": dataset}
    return report(file, caption=f"../report/{name}.rst", category="Figures", labels=labels)


def data_seen(dataset):
    row = sources.get(dataset, config["datasets"])
    return seen(f"data/{dataset}", lambda: "embedded" if row.embedded else fingerprint.of(row, DATA_ROOT))


def attributes_seen(dataset):
    """Of the user's own table, or of the predictor's files."""
    table = DATA_ROOT / f"{dataset}_attributes.csv"
    files = [table if table.exists() else DATA_ROOT / "places365"]
    return seen(f"attributes/{dataset}", lambda: fingerprint.take(files, DATA_ROOT))


def diffusion_seen(pretrain):
    """Of weights that are fetched from this machine."""
    cfg = params.of(config, pretrain)["diffusion"]
    fetched = lambda: fingerprint.model(params.place(cfg["fetch"]["location"]))
    return seen(f"diffusion/{pretrain}", fetched if cfg["source"] == "fetch" else lambda: "trained here")


def every(pattern):
    """The pattern's files for every encoder and data set of the tables."""
    return expand(
        pattern,
        pretrain=config["pretrain"],
        method=config["methods"],
        seed=config["seeds"],
        dataset=config["transfer"],
    )


def of_first(pattern, methods, **wildcards):
    """The pattern's files for the methods' encoders of the first seed, which pictures are of."""
    return expand(pattern, pretrain=config["pretrain"], method=methods, seed=config["seeds"][0], **wildcards)
