"""Print Snakemake's own DAG as JSON: every job with its rule, wildcards, input, output, params and dependencies.

``python jobs.py TARGET...`` in a clone.
"""

from __future__ import annotations

import json
import sys
from pathlib import Path
from typing import Any

from snakemake.api import ConfigSettings, DAGSettings, OutputSettings, ResourceSettings, SnakemakeApi
from snakemake.settings.enums import Quietness


def jobs(targets: set[str]) -> list[dict[str, Any]]:
    with SnakemakeApi(OutputSettings(quiet={Quietness.ALL})) as api:
        workflow = api.workflow(
            resource_settings=ResourceSettings(cores=1),
            config_settings=ConfigSettings(),
            snakefile=Path("Snakefile"),
        )
        workflow.dag(DAGSettings(targets=targets, forceall=True)).execute_workflow(executor="dryrun")
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
            }
            for job in number
        ]


if __name__ == "__main__":
    found = jobs(set(sys.argv[1:]))
    print(json.dumps(found, default=str))
