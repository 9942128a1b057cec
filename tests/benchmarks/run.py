"""`python -m tests.benchmarks.run [NAME ...]`: run benchmarks and merge their rows into results/benchmarks.csv."""

from __future__ import annotations

import sys
from pathlib import Path

import pandas as pd

from diffsiam import runtime
from tests.benchmarks import bench_ddim, bench_fewshot, bench_linear, bench_training

OUT = Path("results/benchmarks.csv")
BENCHES = {**bench_ddim.BENCHES, **bench_fewshot.BENCHES, **bench_linear.BENCHES, **bench_training.BENCHES}


def main(names: list[str]) -> int:
    """Run the benchmarks called ``names``, or all; each row is written as soon as it is there."""
    unknown = sorted(set(names) - set(BENCHES))
    if unknown:
        print(f"no benchmark {', '.join(unknown)}; there are {', '.join(BENCHES)}", file=sys.stderr)
        return 2
    for name in names or BENCHES:
        rows = {row["name"]: row for row in pd.read_csv(OUT).to_dict("records")} if OUT.exists() else {}
        for row in BENCHES[name]():
            rows[row["name"]] = row
            print(f"{row['name']}: {row['ratio']:.2f} ({row['note']})", flush=True)
        with runtime.atomic(OUT) as temporary:
            pd.DataFrame(rows.values()).to_csv(temporary, index=False, float_format="%.6g")
    return 0


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
