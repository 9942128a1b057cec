"""The numbers of all methods in one table."""

from __future__ import annotations

from pathlib import Path

import pandas as pd

from diffsiam.report import numbers

HEAD = "dataset,method,seed,measure,subject,attribute,metric,value,images\n"


def test_methods_stand_side_by_side_and_a_gap_stays_empty(tmp_path: Path) -> None:
    rows = {"pdae": ["round_trip,conditioned,,mse,0.5,32"], "diffsiam_hier": ["round_trip,conditioned,,mse,0.25,32"]}
    rows["diffsiam_hier"].append("counterfactual,0-2,Red,intended,0.125,32")
    files = []
    for method, lines in rows.items():
        files.append(tmp_path / f"numbers_{method}.csv")
        files[-1].write_text(HEAD + "".join(f"sprites,{method},0,{line}\n" for line in lines))
    numbers.run(files, tmp_path / "generation.csv")
    assert len(pd.read_csv(tmp_path / "generation.csv")) == 3
    assert (tmp_path / "generation.md").read_text().splitlines() == [
        "| dataset | measure | subject | attribute | metric | pdae | diffsiam_hier |",
        "|---|---|---|---|---|---:|---:|",
        "| sprites | round_trip | conditioned |  | mse | 0.5 | 0.25 |",
        "| sprites | counterfactual | 0-2 | Red | intended |  | 0.125 |",
    ]


def test_a_method_with_several_seeds_stands_with_their_mean(tmp_path: Path) -> None:
    path = tmp_path / "numbers.csv"
    rows = (f"sprites,pdae,{seed},round_trip,conditioned,,mse,{value},32\n" for seed, value in enumerate((0.5, 1, 3)))
    path.write_text(HEAD + "".join(rows))
    numbers.run([path], tmp_path / "generation.csv")
    last = (tmp_path / "generation.md").read_text().splitlines()[-1]
    assert last == "| sprites | round_trip | conditioned | mse | 1.5 |"
