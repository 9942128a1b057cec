"""A run as an RO-Crate: ro-crate-metadata.json, by the profile Workflow Run Crate (https://w3id.org/ro/wfrun/workflow)."""

from __future__ import annotations

import datetime
import mimetypes
from importlib import metadata
from pathlib import Path
from typing import TYPE_CHECKING, Any

from diffsiam import records, runtime
from diffsiam.errors import UserError

if TYPE_CHECKING:
    from rocrate.rocrate import ROCrate

NAME = "ro-crate-metadata.json"
_PROFILES = {  # address: name, version
    "https://w3id.org/ro/wfrun/process/0.5": ("Process Run Crate", "0.5"),
    "https://w3id.org/ro/wfrun/workflow/0.5": ("Workflow Run Crate", "0.5"),
    "https://w3id.org/workflowhub/workflow-ro-crate/1.0": ("Workflow RO-Crate", "1.0"),
}
_CODE = ("workflow/rules/*.smk", "workflow/schemas/*.yaml")
_RESULTS = {  # what a run makes that a reader opens; arrays and weights are named by checksums in these
    "tables and pages": "*",
    "figures": "figures/*",
    "data sets": "data/*/meta.json",
    "diffusion models": "diffusion/*/training.json",
    "encoders": "representation/*/*/*/config.json",
}


def run(out: Path) -> None:
    """Describe the run in the folder of ``out``: workflow, parameters, and what Snakemake recorded as made by it.

    Args:
        out: ro-crate-metadata.json beside the Snakefile.
    Raises:
        UserError: another name, no Snakefile or params.yaml beside it, nothing that Snakemake made, or the package
            rocrate is not installed.
    """
    try:
        from rocrate.rocrate import ROCrate
    except ImportError:
        raise UserError("The package rocrate is not installed. Run `pip install rocrate`.") from None
    root = out.parent
    if out.name != NAME:
        raise UserError(f"--out {out}: the file of an RO-Crate is called {NAME}. Name it so, beside the Snakefile.")
    for file in ("Snakefile", "params.yaml"):
        if not (root / file).is_file():
            raise UserError(f"{root / file}: no such file. Give --out in the folder that was cloned and run.")
    made = {kind: _made(root, pattern) for kind, pattern in _RESULTS.items()}
    times = [time for files in made.values() for time in files.values()]
    if not times:
        raise UserError(f"{root / 'results'}: nothing that Snakemake made. Run `snakemake --cores all tables` first.")
    crate = ROCrate(version="1.1")  # what the profile is built on
    _describe(crate, max(end for _, end in times))
    _action(crate, root, made, times)
    runtime.write_json(out, crate.metadata.generate())


def _made(root: Path, pattern: str) -> dict[str, tuple[float, float]]:
    """Files of the results that a rule made, from ``root``, with when it began and ended."""
    paths = sorted(path for path in (root / "results").glob(pattern) if path.is_file())
    found = {path.relative_to(root).as_posix(): records.times(root, path) for path in paths}
    return {path: time for path, time in found.items() if time is not None}


def _describe(crate: ROCrate, ended: float) -> None:
    crate.name = "A run of DiffSiam, reproduced"
    crate.description = (
        'Tables and figures of the thesis "Unsupervised Learning with Diffusion Models" (DiffSiam), as a run of this '
        "workflow made them, with its parameters and code."
    )
    crate.datePublished = _iso(ended)
    terms = {
        "@type": "CreativeWork",
        "name": "Terms",
        "description": "The workflow is under Apache-2.0 (LICENSE). What was made of a data set may be bound by the "
        "terms of that data set (docs/data.md, Terms).",
    }
    crate.license = _add(crate, "#terms", terms)
    for uri, (name, version) in _PROFILES.items():
        profile = _add(crate, uri, {"@type": "CreativeWork", "name": name, "version": version})
        crate.root_dataset.append_to("conformsTo", profile)


def _action(
    crate: ROCrate, root: Path, made: dict[str, dict[str, tuple[float, float]]], times: list[tuple[float, float]]
) -> None:
    """The workflow, what it takes and gives, and the run as an action upon these."""
    version = metadata.version("snakemake")
    workflow = crate.add_workflow("Snakefile", "Snakefile", main=True, lang="snakemake", lang_version=version)
    workflow["name"], workflow["version"] = "DiffSiam, reproduced", metadata.version("diffsiam")
    workflow["license"], workflow["encodingFormat"] = "https://spdx.org/licenses/Apache-2.0", "text/plain"
    workflow["conformsTo"] = {"@id": "https://bioschemas.org/profiles/ComputationalWorkflow/1.0-RELEASE"}
    for path in sorted(path for pattern in _CODE for path in root.glob(pattern)):
        workflow.append_to("hasPart", _file(crate, root, path.relative_to(root).as_posix()))
    params = crate.add_formal_parameter("params.yaml", "File", "#params", "the parameters", valueRequired=True)
    workflow["input"] = params
    taken = _file(crate, root, "params.yaml", exampleOfWork=params)
    given = []
    for i, (kind, files) in enumerate(made.items()):
        if files:
            parameter = crate.add_formal_parameter(kind, "File", f"#output-{i}", properties={"multipleValues": True})
            workflow.append_to("output", parameter)
            given += [_file(crate, root, path, exampleOfWork=parameter) for path in files]
    properties = {
        "name": "snakemake",
        "description": "What the files that it made say of it: from the first of their jobs to the end of the last.",
        "startTime": _iso(min(start for start, _ in times)),
        "endTime": _iso(max(end for _, end in times)),
        "actionStatus": "http://schema.org/CompletedActionStatus",
    }
    action = crate.add_action(workflow, "#run", object=taken, result=given, properties=properties)
    crate.root_dataset["mentions"] = action
    if (root / "README.md").is_file():
        _file(crate, root, "README.md", about=crate.root_dataset)


def _file(crate: ROCrate, root: Path, path: str, **links: Any) -> Any:
    """A file of the crate by its path from ``root``."""
    place = root / path
    form = mimetypes.guess_type(path)[0] or "text/plain"
    facts = {"name": path, "encodingFormat": form, "contentSize": str(place.stat().st_size)}
    entity = crate.add_file(str(place), path, properties={**facts, "sha256": runtime.sha256(place)})
    for name, value in links.items():
        entity[name] = value
    return entity


def _add(crate: ROCrate, identifier: str, properties: dict[str, Any]) -> Any:
    from rocrate.model.contextentity import ContextEntity

    return crate.add(ContextEntity(crate, identifier, properties=properties))


def _iso(seconds: float) -> str:
    return datetime.datetime.fromtimestamp(seconds, datetime.UTC).isoformat(timespec="seconds")
