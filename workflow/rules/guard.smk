# Files and records must agree before anything is planned; see diffsiam/records.py. Included after all rules.
import atexit
import hashlib

import snakemake.persistence

from diffsiam import records, runtime

# What the run was planned on. A submitted job reads parameters and code again when it starts, and its results are
# recorded under those of the plan: it must refuse others. The variable travels with `sbatch`.
PLANNED = hashlib.sha256(json.dumps([config, [*map(digest.digest, digest.STAGE_MODULES)]], sort_keys=True).encode()).hexdigest()

# Jobs run the package of this checkout, wherever `pip install -e` pointed: the digests in the records are of its code.
os.environ |= {"PYTHONPATH": os.pathsep.join(filter(None, [workflow.basedir, os.environ.get("PYTHONPATH")]))}


def made():
    """Outputs of rules that exist."""
    patterns = [pattern for rule in workflow.rules for pattern in rule.output]
    files = (path.as_posix() for path in Path("results").rglob("*") if path.is_file())
    return [file for file in files if any(pattern.match(file) for pattern in patterns)]


if workflow.is_main_process:
    # Under a cluster's executor, which counts nodes, jobs run elsewhere: a login node has no GPU. Nor does a report run any.
    local = workflow.resource_settings.nodes is None and not any(word.startswith("--report") for word in sys.argv)
    os.environ |= {"DIFFSIAM_PLANNED": PLANNED}
    records.clear_dead_locks()
    try:
        if local and config["runtime"]["device"] == "cuda":
            runtime.select_device(params.section(config, params.Runtime))
        records.check(made(), snakemake.persistence.RECORD_FORMAT_VERSION)
    except UserError as e:
        print(e, file=sys.stderr)
        sys.exit(2)

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
