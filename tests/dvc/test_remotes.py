"""Remotes: S3, against a server of its protocol on this machine; and stages that submit to a cluster."""

from __future__ import annotations

import json
import os
import re
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path

import pytest
import yaml

from tests.dvc.clones import Clone, ran

BUCKET = "thesis"


@dataclass(frozen=True)
class S3:
    url: str
    access_key: str
    secret: str


@pytest.fixture(scope="module")
def s3() -> Iterator[S3]:
    """An S3 server that knows one user and checks signatures."""
    pytest.importorskip("dvc_s3", reason="S3 needs an extra of DVC: pip install dvc-s3")
    server_module = pytest.importorskip(
        "moto.server", reason="an S3 server on this machine is needed: pip install 'moto[server]'"
    )
    import boto3
    from moto import settings

    setup = 4  # requests that the server takes before it asks who is there
    before, settings.INITIAL_NO_AUTH_ACTION_COUNT = settings.INITIAL_NO_AUTH_ACTION_COUNT, setup
    server = server_module.ThreadedMotoServer(ip_address="127.0.0.1", port=0, verbose=False)
    server.start()
    host, port = server.get_host_and_port()
    url = f"http://{host}:{port}"

    def client(service: str) -> object:
        anyone = {"aws_access_key_id": "setup", "aws_secret_access_key": "setup"}
        return boto3.client(service, endpoint_url=url, region_name="us-east-1", **anyone)

    iam = client("iam")
    iam.create_user(UserName="researcher")
    key = iam.create_access_key(UserName="researcher")["AccessKey"]
    allowed = {"Effect": "Allow", "Action": "s3:*", "Resource": "*"}
    policy = json.dumps({"Version": "2012-10-17", "Statement": [allowed]})
    iam.put_user_policy(UserName="researcher", PolicyName="storage", PolicyDocument=policy)
    client("s3").create_bucket(Bucket=BUCKET)
    yield S3(url, key["AccessKeyId"], key["SecretAccessKey"])
    server.stop()
    settings.INITIAL_NO_AUTH_ACTION_COUNT = before


def test_results_travel_through_s3_and_wrong_credentials_are_refused(pulled: Clone, s3: S3, tmp_path: Path) -> None:
    good = {"AWS_ACCESS_KEY_ID": s3.access_key, "AWS_SECRET_ACCESS_KEY": s3.secret}
    for arguments in (
        ["add", "--force", "--default", "cloud", f"s3://{BUCKET}/results"],
        ["modify", "cloud", "endpointurl", s3.url],
    ):
        pulled.dvc("remote", *arguments)
    pulled.commit()

    said = pulled.run("dvc", "push", check=False, **good | {"AWS_SECRET_ACCESS_KEY": "wrong"})
    assert said.returncode != 0
    assert "Forbidden" in said.stderr
    pulled.run("dvc", "push", **good)

    clone = pulled.clone(tmp_path / "other")
    said = clone.run("dvc", "pull", check=False, **good | {"AWS_ACCESS_KEY_ID": "wrong"})
    assert said.returncode != 0
    assert re.search(f"failed to connect to s3 .*{BUCKET}.*Forbidden", said.stderr)
    clone.run("dvc", "pull", **good)
    assert clone.changed() == {}
    assert clone.planned("all") == {}


def test_one_environment_variable_makes_every_stage_submit_its_jobs(pulled: Clone, tmp_path: Path) -> None:
    """The cluster's `sbatch` is a stand-in that writes down what it was given and has no room for it.

    tests/slurm drives the same with profiles/slurm and a real cluster.
    """
    commands, profile = tmp_path / "bin", tmp_path / "profile"
    commands.mkdir()
    profile.mkdir()
    submitted = tmp_path / "submitted"
    scripts = dict.fromkeys(["squeue", "sacct", "sshare", "sinfo", "scontrol"], "exit 0")
    scripts |= {"sbatch": f'echo "$@" >> {submitted}; echo full >&2; exit 1', "sacctmgr": "echo none"}
    for name, script in scripts.items():
        (commands / name).write_text(f"#!/bin/sh\n{script}\n")
        (commands / name).chmod(0o755)
    settings = {"executor": "slurm", "jobs": 2, "slurm-init-seconds-before-status-checks": 1}
    settings["default-resources"] = ["slurm_account=none", "slurm_partition=none"]
    (profile / "config.yaml").write_text(yaml.safe_dump(settings))

    pulled.edit("fewshot.episodes", 21)
    path = f"{commands}{os.pathsep}{pulled.env['PATH']}"
    said = pulled.run("dvc", "repro", check=False, PATH=path, SNAKEMAKE_PROFILE=str(profile))
    assert said.returncode != 0
    assert ran(said.stdout) == ["fewshot@diffsiam_hier"]
    assert "SLURM sbatch failed. The error message was 'full'" in said.stderr
    assert "--allowed-rules fewshot " in submitted.read_text()
