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
    rows = (f"sprites,pdae,{seed},segments,0-2,,coarseness,{value},0.1,32\n" for seed, value in enumerate((0.5, 1, 3)))
    path.write_text(HEAD.replace("value", "value,ci95") + "".join(rows))
    numbers.run([path], tmp_path / "generation.csv")  # the interval is of one seed's images
    assert "| 1.5 |" in (tmp_path / "generation.md").read_text()


def test_a_number_has_its_interval_beside_it_and_the_segments_claim_its_verdict(tmp_path: Path) -> None:
    """A file of a version before has no column of intervals."""
    new, before = tmp_path / "numbers_pdae.csv", tmp_path / "numbers_diti.csv"
    trends = (("segments", 0.5, 0.25), ("counterfactual", -0.5, 0.25))
    lines = ["segments,0-2,,coarseness,0.75,0.125,16", "round_trip,conditioned,,mse,0.5,,16"]
    lines += [f"{what},early to late,,coarseness_trend,{value},{half},16" for what, value, half in trends]
    new.write_text(HEAD.replace("value", "value,ci95") + "".join(f"sprites,pdae,0,{line}\n" for line in lines))
    before.write_text(HEAD + "sprites,diti,0,round_trip,conditioned,,mse,0.25,16\n")
    numbers.run([new, before], tmp_path / "generation.csv")
    table = (tmp_path / "generation.md").read_text()
    assert "| sprites | segments | 0-2 | coarseness | 0.75 ± 0.12 |  |" in table
    assert "| sprites | round_trip | conditioned | mse | 0.5 | 0.25 |" in table
    assert "- PDAE, seed 0, sprites, segments: +0.50 ± 0.25, holds" in table
    assert "- PDAE, seed 0, sprites, counterfactual: -0.50 ± 0.25, the opposite" in table
    new.write_text(new.read_text().replace("0.5,0.25,16", "0.2,0.25,16"))
    numbers.run([new], tmp_path / "generation.csv")
    assert "sprites, segments: +0.20 ± 0.25, undecided" in (tmp_path / "generation.md").read_text()
    numbers.run([before], tmp_path / "generation.csv")
    assert "claim" not in (tmp_path / "generation.md").read_text()
