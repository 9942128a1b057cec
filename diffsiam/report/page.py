"""results/index.html: every table and figure that is there on one page, each with its claim and what this run shows."""

from __future__ import annotations

import os
from pathlib import Path
from typing import Any

import jinja2
import markdown
from markupsafe import Markup

from diffsiam import runtime, schema
from diffsiam.errors import UserError
from diffsiam.report.entries import CAPTIONS, SECTIONS, Entry, caption
from diffsiam.training import methods

_VERDICT = "**The order "  # how the paragraph of summary.md on the thesis's order begins
_DOCS = {  # the pages that tell what the numbers are
    "README.md": "what this is",
    "docs/concepts.md": "how the method works, in one picture",
    "docs/measured/README.md": "what was measured at larger scales",
    "docs/data.md": "the data sets and their terms",
}


def run(results: Path, pretrain: str, out: Path) -> None:
    """Write the page.

    Args:
        results: the folder of the tables; what else is there of `SECTIONS` is shown too, and what is not is named with
            the command that makes it.
        pretrain: the data set that the encoders of the tables were trained on.
        out: the .html to write, from which pictures and files are linked by relative paths.
    Raises:
        UserError: there is nothing to show.
    """
    here = os.path.relpath(results, out.parent)
    sections: dict[str, list[dict[str, Any]]] = {}
    missing: dict[str, list[str]] = {}
    for title, entries in SECTIONS.items():
        made = [_shown(entry, results, pretrain, here) for entry in entries if entry.made(results)]
        if made:
            sections[title] = made
        for entry in entries:
            if not entry.made(results):
                missing.setdefault(entry.target, []).append(caption(entry.name).title)
    if not sections:
        raise UserError(
            f"--results {results}: holds no table and no figure. `snakemake --cores all tables` makes some."
        )
    provenance = results / "provenance.md"
    template = jinja2.Template(
        (CAPTIONS / "index.html.jinja").read_text(encoding="utf-8"),
        autoescape=True,
        trim_blocks=True,
        lstrip_blocks=True,
        undefined=jinja2.StrictUndefined,
    )
    page = template.render(
        experiment=_experiment(results / "table4_1.csv", pretrain),
        sections=sections,
        missing=missing,
        provenance=_html(_read(provenance)) if provenance.is_file() else "",
        docs=_docs(out.parent),
    )
    runtime.write_text(out, f"{page}\n")


def _shown(entry: Entry, results: Path, pretrain: str, here: str) -> dict[str, Any]:
    """What the template shows of a table or figure."""
    said = caption(entry.name)
    table = _read(results / entry.table) if entry.table else ""
    words = _read(results / entry.shows) if entry.shows else ""
    if entry.name in ("table4_1", "table4_2"):
        words = _averages(results / entry.files[0], pretrain)
    elif _VERDICT in table:
        table, _, verdict = table.partition(_VERDICT)
        words = f"**This run** on the order {verdict.replace('.**', ':', 1)}"
    links = {file: Path(here, file).as_posix() for file in (entry.picture, *entry.files) if file}
    return {
        "name": entry.name,
        "title": said.title,
        "about": _html(said.about),
        "claim": _html(said.claim),
        "words": _html(words),
        "table": _html(table),
        "picture": links.get(entry.picture, ""),
        "files": [(Path(file).name, links[file]) for file in entry.files if (results / file).is_file()],
    }


def _read(path: Path) -> str:
    """Text to be shown, whatever an editor made of it."""
    return path.read_text(encoding="utf-8", errors="replace")


def _html(text: str) -> Markup:
    """Markdown as HTML, in which whatever looks like HTML is text; a wide table scrolls in a box of its own."""
    reader = markdown.Markdown(extensions=["tables"])
    reader.preprocessors.deregister("html_block")
    reader.inlinePatterns.deregister("html")
    html = reader.convert(text)
    html = html.replace("<table>", '<div class="wide" tabindex="0"><table>').replace("</table>", "</table></div>")
    return Markup(html)


def _averages(path: Path, pretrain: str) -> str:
    """A line for each part of Table 4.1 or 4.2: each method's mean accuracy, over the transfer sets and on the data set
    of pretraining."""
    frame = runtime.read_csv(path)
    frame["shots"] = frame["shots"].map("{:.0f}-shot, ".format) if "shots" in frame else ""
    transfer = ", ".join(name for name in frame["dataset"].unique() if name != pretrain)
    frame["place"] = f"on {pretrain}, where all were trained"
    frame.loc[frame["dataset"] != pretrain, "place"] = f"average over {transfer}"
    lines = ["**This run**, means over seeds:", ""]
    for (shots, place), part in frame.groupby(["shots", "place"], sort=False):
        means = part.groupby("method", sort=False)["accuracy"].mean()
        lines.append(f"- {shots}{place}: {', '.join(f'{_title(name)} {mean:.1f}' for name, mean in means.items())}")
    return "\n".join(lines)


def _title(method: Any) -> str:
    return methods.lookup(str(method)).title.rstrip(".")


def _experiment(path: Path, pretrain: str) -> str:
    """What was compared, in a sentence; "" where there is no Table 4.1."""
    if not path.is_file():
        return ""
    frame = runtime.read_csv(path)
    titles = [_title(name) for name in frame["method"].unique()]
    seeds = sorted(frame["seed"].unique())
    return (
        f"Encoders of {len(titles)} methods ({', '.join(titles)}), trained without labels on {pretrain} "
        f"({len(seeds)} seed{'s' if len(seeds) > 1 else ''}) and tested on {', '.join(frame['dataset'].unique())}."
    )


def _docs(folder: Path) -> list[tuple[str, str]]:
    """Links from ``folder`` to the documentation of this checkout; none where a wheel was installed."""
    root = schema.WORKFLOW.parent
    return [
        (text, Path(os.path.relpath(root / file, folder)).as_posix())
        for file, text in _DOCS.items()
        if (root / file).is_file()
    ]
