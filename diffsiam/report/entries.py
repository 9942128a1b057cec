"""What the first page of the results and Snakemake's report show: a row per table and figure. Standard library only:
Snakemake reads it whenever it plans."""

from __future__ import annotations

import hashlib
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path

from diffsiam import schema

CAPTIONS = schema.WORKFLOW / "report"


@dataclass(frozen=True)
class Entry:
    """A table or figure.

    Attributes:
        name: of its caption in workflow/report; its anchor on the page.
        target: what Snakemake makes it by.
        table: its Markdown, below results/; "" for a figure.
        picture: its PNG, below results/; "" for a table.
        shows: what this run shows, in words, below results/; "" where the table says it.
        files: what is linked beside it, below results/.
    """

    name: str
    target: str
    table: str = ""
    picture: str = ""
    shows: str = ""
    files: tuple[str, ...] = ()

    def made(self, results: Path) -> bool:
        """Whether all that the page shows of it is there."""
        return all((results / file).is_file() for file in (self.table, self.picture, self.shows) if file)


@dataclass(frozen=True)
class Caption:
    """The parts of workflow/report/<name>.rst; all but the title are paragraphs in what Markdown and reStructuredText
    have in common."""

    title: str
    about: str
    claim: str


def _table(name: str, target: str, stem: str = "") -> Entry:
    stem = stem or name
    return Entry(name, target, table=f"{stem}.md", files=(f"{stem}.csv", f"{stem}.tex"))


def _figure(name: str, target: str = "figures") -> Entry:
    stem = f"figures/{name}"
    return Entry(name, target, picture=f"{stem}.png", shows=f"{stem}.rst", files=(f"{stem}.pdf",))


SECTIONS: dict[str, tuple[Entry, ...]] = {
    "Tables": (
        Entry("summary", "tables", table="summary.md", files=("paired.csv",)),
        Entry("paired", "tables", picture="paired.png", files=("paired.csv", "paired.pdf")),
        _table("table4_1", "tables"),
        _table("table4_2", "tables"),
    ),
    "Attributes": (_table("table_attributes", "attributes_tables"),),
    "Figures": (
        *(_figure(f"fig{number}") for number in ("1_1", "3_1", *(f"4_{i}" for i in range(1, 10)))),
        Entry("numbers", "figures", table="generation.md", files=("generation.csv",)),
        _figure("frozen_grid"),
    ),
    "Codes and factors": (
        _table("table_disentanglement", "disentanglement"),
        _figure("factors", "disentanglement"),
        _figure("swaps", "disentanglement"),
    ),
    "Encoders at a glance": tuple(
        _figure(word, "sheets")
        for word in ("neighbours", "embedding", "confusion", "segments_attributes", "accuracy_hours")
    ),
    "Over training": (Entry("curve", "curve", picture="curve.png", files=("curve.csv", "curve.pdf")),),
    "Settings tried": (Entry("search", "search", table="search.md", files=("search.csv",)),),
}
NAMES = [entry.name for section in SECTIONS.values() for entry in section]


def caption(name: str) -> Caption:
    """Title, description and claim of a table or figure."""
    title, *rest = (CAPTIONS / f"{name}.rst").read_text(encoding="utf-8").strip().split("\n\n")
    claims = [i for i, paragraph in enumerate(rest) if "claim" in paragraph.partition("\n")[0]]
    first = claims[0] if claims else len(rest)
    claim = rest[first] if claims else ""
    return Caption(title, "\n\n".join(rest[:first]), claim)


def beside(results: Path) -> Iterator[str]:
    """What is there beside the tables, each with a digest of its words: what the page of these results depends on."""
    for entry in (entry for section in SECTIONS.values() for entry in section if entry.target != "tables"):
        if entry.made(results):
            words = b"".join((results / file).read_bytes() for file in (entry.table, entry.shows) if file)
            yield f"{entry.name} {hashlib.sha256(words).hexdigest()[:16]}"
