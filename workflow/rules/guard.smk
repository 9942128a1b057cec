# Files and records must agree before anything is planned; see diffsiam/records.py. Included after all rules.
import atexit
import hashlib

import snakemake.persistence

from diffsiam import records, runtime, stopping
from diffsiam.data import download

# What the run was planned on. A submitted job reads parameters and code again when it starts, and its results are
# recorded under those of the plan: it must refuse others. The variable travels with `sbatch`.
PLANNED = hashlib.sha256(json.dumps([config, [*map(digest.digest, digest.STAGE_MODULES)]], sort_keys=True).encode()).hexdigest()

# Jobs run the package of this checkout, wherever `pip install -e` pointed: the digests in the records are of its code.
os.environ |= {"PYTHONPATH": os.pathsep.join(filter(None, [CHECKOUT, os.environ.get("PYTHONPATH")]))}


def made():
    """Outputs of jobs that have left some, job by job: those that exist and those that do not."""
    files = [path.as_posix() for path in Path("results").rglob("*") if path.is_file()]
    for each in workflow.rules:
        found = (pattern.match(file) for pattern in each.output for file in files)
        for wildcards in {tuple(match.groupdict().items()) for match in found if match}:
            yield [pattern.apply_wildcards(dict(wildcards)) for pattern in each.output]


if workflow.is_main_process:
    # Under a cluster's executor, which counts nodes, jobs run elsewhere: a login node has no GPU. Nor does a report run any.
    runs_here = workflow.resource_settings.nodes is None and not any(word.startswith("--report") for word in sys.argv)
    os.environ |= {"DIFFSIAM_PLANNED": PLANNED}
    records.clear_dead_locks()
    try:
        if runs_here and (config["runtime"]["device"] == "cuda" or config["runtime"]["graph"] is True):
            rt = params.section(config, params.Runtime)
            runtime.use_graph(rt, runtime.select_device(rt))
        records.check(made(), snakemake.persistence.RECORD_FORMAT_VERSION)
    except UserError as e:
        print(e, file=sys.stderr)
        sys.exit(2)
    # All at once, before the first of them fails: a machine without a network cannot fetch any.
    rows = [sources.get(name, config["datasets"]) for name in DATA_SETS if not Path(f"results/data/{name}/meta.json").exists()]
    if lines := [line for line in (download.absent(row, DATA_ROOT) for row in rows) if line]:
        print("Not here yet, and needed:", *lines, sep="\n  ", file=sys.stderr)
    # Snakemake makes a missing file only where a job reads it that is to run, so as not to train for a lost intermediate.
    if missing := records.removed(f"results/data/{name}/meta.json" for name in DATA_SETS):
        print(
            f"Not here any more: {', '.join(missing)}. `dvc pull`, or `snakemake --cores all data_sets`, brings the data sets "
            "back; where they then differ from before, what is made of them runs again.",
            file=sys.stderr,
        )

    def seal():
        try:
            records.seal(made())
        except UserError as e:  # too late for another exit status, which is Snakemake's
            print(e, file=sys.stderr)

    atexit.register(seal)
elif os.environ.get("DIFFSIAM_PLANNED", PLANNED) != PLANNED:
    print(
        "params.yaml or the code was edited after this run was planned; the job was not started. Stop Snakemake, and run "
        "the same command again for the edited version, or undo the edit.",
        file=sys.stderr,
    )
    sys.exit(2)


onstart:
    stopping.pass_on(cancel=not workflow.local_exec)
