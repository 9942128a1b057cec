"""The evaluator against numbers that others published, by their protocol to the letter: `make calibrate`.

Each row of the reference is evaluated (`diffsiam evaluate`: weights and data are fetched), and set beside what was
published. Exit code 1 where a score is further away than the row allows.
"""

from __future__ import annotations

import argparse
import csv
import json
import sys
from pathlib import Path

from diffsiam import cli
from diffsiam.report.summary import aligned

# linusericsson/ssl-transfer: 45 penalties from 1e-6 to 1e5, which preset thesis has too, and what it leaves open.
PROTOCOL = {
    "data": {"resize": "short_side", "val_fraction": 0.2, "val_draw": "uniform", "split_seed": 0},
    "linear": {"standardize": False, "solver": "capped"},
}


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--reference", type=Path, required=True, help="published numbers, CSV")
    parser.add_argument("--out", type=Path, required=True, help="folder of what is evaluated")
    parser.add_argument("--params", action="append", default=[], help="as of diffsiam evaluate, over preset thesis")
    args = parser.parse_args()
    with open(args.reference, newline="") as f:
        rows = list(csv.DictReader(f))
    table = [["Encoder", "Data", "C here", "published", "Accuracy here", "published", "Difference", "Allowed"]]
    wrong = 0
    for row in rows:
        out = args.out / row["name"]
        which = ["--encoder", row["encoder"], "--weights", row["weights"], "--image-size", row["image_size"]]
        given = [word for text in ("thesis", json.dumps(PROTOCOL), *args.params) for word in ("--params", text)]
        if status := cli.main(["evaluate", *which, "--data", row["data"], "--out", str(out), *given]):
            return status
        found = json.loads((out / "linear" / f"{row['data']}.json").read_text())
        difference = found["accuracy"] - float(row["accuracy"])
        wrong += abs(difference) > float(row["within"])
        cells = [f"{1 / found['l2']:.3f}", row["C"], f"{found['accuracy']:.2f}", row["accuracy"], f"{difference:+.2f}"]
        table.append([row["name"], row["data"], *cells, row["within"]])
    print(*aligned(table), sep="\n")
    if wrong:
        print(
            f"calibrate: {wrong} of {len(rows)} further away than allowed: the evaluator is not theirs.",
            file=sys.stderr,
        )
    return int(wrong > 0)


if __name__ == "__main__":
    sys.exit(main())
