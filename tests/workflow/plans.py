"""What drives Snakemake in the working directory."""

from __future__ import annotations

import subprocess
import sys


def snakemake(*arguments: str) -> subprocess.CompletedProcess[str]:
    command = [sys.executable, "-m", "snakemake", *arguments]
    return subprocess.run(command, capture_output=True, text=True, check=False, timeout=300)
