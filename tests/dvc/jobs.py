"""Print Snakemake's own DAG as JSON: every job with its rule, wildcards, input, output, params and dependencies, and
whether it would run.

``python jobs.py TARGET...`` in a clone, all jobs forced. ``python jobs.py --edits FILE TARGET...``: a list of such
DAGs, unforced, one for each text of params.yaml in FILE, a JSON list; one process plans them all.
"""

from __future__ import annotations

import json
import sys
from pathlib import Path
from typing import Any

from snakemake.api import ConfigSettings, DAGSettings, OutputSettings, ResourceSettings, SnakemakeApi
from snakemake.settings.enums import Quietness


def jobs(targets: set[str], *, force: bool = True) -> list[dict[str, Any]]:
    with SnakemakeApi(OutputSettings(quiet={Quietness.ALL})) as api:
        workflow = api.workflow(
            resource_settings=ResourceSettings(cores=1),
            config_settings=ConfigSettings(),
            snakefile=Path("Snakefile"),
        )
        settings = DAGSettings(targets=targets, forceall=force, max_checksum_file_size=1 << 30)
        workflow.dag(settings).execute_workflow(executor="dryrun")
        dag = workflow._workflow.dag  # the API has no public way to the jobs
        number = {job: i for i, job in enumerate(dag.jobs)}
        return [
            {
                "rule": job.rule.name,
                "wildcards": dict(job.wildcards_dict),
                "file": str(Path(job.rule.snakefile).relative_to(Path.cwd())),
                "input": [str(file) for file in job.input],
                "output": [str(file) for file in job.output],
                "params": dict(job.params.items()),
                "needs": [number[other] for other in dag.dependencies[job]],
                "runs": dag.needrun(job),
            }
            for job in number
        ]


def plans(edits: list[str], targets: set[str]) -> list[list[dict[str, Any]]]:
    params = Path("params.yaml")
    before, found = params.read_text(), []
    for text in edits:
        params.write_text(text)
        found.append(jobs(targets, force=False))
    params.write_text(before)
    return found


if __name__ == "__main__":
    if sys.argv[1] == "--edits":
        found = plans(json.loads(Path(sys.argv[2]).read_text()), set(sys.argv[3:]))
    else:
        found = jobs(set(sys.argv[1:]))
    print(json.dumps(found, default=str))
