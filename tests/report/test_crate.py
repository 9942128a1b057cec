"""A run's RO-Crate: every file is there and is what it says, and the profile's own validator finds nothing required."""

from __future__ import annotations

import base64
import hashlib
import io
import json
import urllib.request
import urllib.response
from email.message import Message
from pathlib import Path
from typing import Any

import pytest
import rocrate

from diffsiam import cli

TABLE, META = "results/table4_1.csv", "results/data/digits/meta.json"


@pytest.fixture
def run(tmp_path: Path) -> Path:
    """A folder in which Snakemake ran: a table of 100 seconds, a data set of 50 before it, and what a hand wrote."""
    for file in ("Snakefile", "params.yaml", "README.md", "workflow/rules/data.smk", TABLE, META, "results/stray.csv"):
        (tmp_path / file).parent.mkdir(parents=True, exist_ok=True)
        (tmp_path / file).write_text(f"{file}\n")
    record(tmp_path, TABLE, rule="table4_1", starttime=1000.0, endtime=1100.0)
    record(tmp_path, META, rule="data", starttime=950.0, endtime=1000.0)
    (tmp_path / "results" / "mine.csv").touch()
    record(tmp_path, "results/mine.csv", rule="by hand", starttime=1.0, endtime=9999.0)
    return tmp_path


def record(root: Path, output: str, **facts: Any) -> None:
    """As Snakemake names its records: the path in base64."""
    place = root / ".snakemake" / "metadata" / base64.urlsafe_b64encode(output.encode()).decode()
    place.parent.mkdir(parents=True, exist_ok=True)
    place.write_text(json.dumps(facts))


def made(root: Path) -> dict[str, dict[str, Any]]:
    out = root / "ro-crate-metadata.json"
    assert cli.main(["crate", "--out", str(out)]) == 0
    return {entity["@id"]: entity for entity in json.loads(out.read_text())["@graph"]}


def references(value: Any) -> list[str]:
    if isinstance(value, dict):
        return [value["@id"]] if set(value) == {"@id"} else [id_ for v in value.values() for id_ in references(v)]
    return [id_ for v in value for id_ in references(v)] if isinstance(value, list) else []


def test_every_file_is_there_with_its_checksum_and_every_reference_leads_to_something(run: Path) -> None:
    entities = made(run)
    files = [e for e in entities.values() if "File" in e["@type"] and e["@id"] != "Snakefile"]
    assert {e["@id"] for e in files} == {"params.yaml", "README.md", "workflow/rules/data.smk", TABLE, META}
    for entity in files:
        assert entity["sha256"] == hashlib.sha256((run / entity["@id"]).read_bytes()).hexdigest()
    for entity in entities.values():
        assert [id_ for id_ in references(entity) if id_ not in entities and not id_.startswith("http")] == []


def test_the_run_is_an_action_from_the_parameters_to_what_snakemake_made_and_nothing_else(run: Path) -> None:
    entities = made(run)
    action = entities["#run"]
    assert (action["instrument"], action["object"]) == ({"@id": "Snakefile"}, {"@id": "params.yaml"})
    assert {result["@id"] for result in action["result"]} == {TABLE, META}
    assert (action["startTime"], action["endTime"]) == ("1970-01-01T00:15:50+00:00", "1970-01-01T00:18:20+00:00")
    assert entities["./"]["mainEntity"] == {"@id": "Snakefile"}
    conforms = {profile["@id"] for profile in entities["./"]["conformsTo"]}
    assert "https://w3id.org/ro/wfrun/workflow/0.5" in conforms


class Contexts(urllib.request.BaseHandler):
    """Answers the validator's question for the JSON-LD context of RO-Crate 1.1 by the copy that the package rocrate has
    of 1.3's, which names Bioschemas' types by other addresses."""

    handler_order = 100

    def https_open(self, request: urllib.request.Request) -> urllib.response.addinfourl:
        content = (Path(rocrate.__file__).parent / "data" / "ro-crate.jsonld").read_bytes()
        content = content.replace(b"https://bioschemas.org/terms/", b"https://bioschemas.org/")
        headers = Message()
        headers["Content-Type"] = "application/ld+json"
        answer = urllib.response.addinfourl(io.BytesIO(content), headers, request.full_url, 200)
        answer.msg = "OK"  # type: ignore[attr-defined]
        return answer


def test_the_validator_of_workflow_run_crates_finds_all_that_is_required(
    run: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    services = pytest.importorskip("rocrate_validator.services", reason="pip install roc-validator")
    monkeypatch.setattr(urllib.request, "_opener", urllib.request.build_opener(Contexts))
    made(run)
    fetching = ["ro-crate-1.1_3.1", "ro-crate-1.1_3.2"]  # whether the context's address answers
    settings = {"profile_identifier": "workflow-run-crate-0.5", "skip_checks": fetching}
    result = services.validate(services.ValidationSettings(rocrate_uri=str(run), **settings))
    assert [f"{issue.check.identifier}: {issue.message}" for issue in result.get_issues()] == []
    (run / TABLE).unlink()
    assert services.validate(services.ValidationSettings(rocrate_uri=str(run), **settings)).has_issues()


@pytest.mark.parametrize(
    ("file", "out", "said"),
    [
        ("Snakefile", "ro-crate-metadata.json", "Snakefile: no such file. Give --out in the folder that was cloned"),
        ("params.yaml", "ro-crate-metadata.json", "params.yaml: no such file"),
        (
            ".snakemake",
            "ro-crate-metadata.json",
            "nothing that Snakemake made. Run `snakemake --cores all tables` first",
        ),
        (None, "crate.json", "the file of an RO-Crate is called ro-crate-metadata.json"),
    ],
)
def test_what_is_no_run_is_refused(
    run: Path, capsys: pytest.CaptureFixture[str], file: str | None, out: str, said: str
) -> None:
    if file:
        (run / file).rename(run / "elsewhere")
    assert cli.main(["crate", "--out", str(run / out)]) == 2
    assert said in capsys.readouterr().err
    assert not (run / out).exists()
