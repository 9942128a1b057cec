"""The page of all results: what is there with its claim, what is not with its command, and nothing from elsewhere."""

from __future__ import annotations

import re
import shutil
import subprocess
from html.parser import HTMLParser
from pathlib import Path

import pytest
from PIL import Image

from diffsiam.errors import UserError
from diffsiam.report import entries, page
from diffsiam.report.entries import NAMES, SECTIONS

EMPTY = {"meta", "img", "br", "hr", "link"}  # elements of HTML without an end
ROWS = [("simsiam", "sprites", 60.0), ("simsiam", "digits", 40.0), ("simsiam", "photos", 51.0)]
ROWS += [("diffsiam_hier", "sprites", 61.0), ("diffsiam_hier", "digits", 50.0), ("diffsiam_hier", "photos", 53.0)]


class Reader(HTMLParser):
    """Addresses, rows of tables and text of a page; an element that is closed wrongly fails."""

    def __init__(self, html: str) -> None:
        super().__init__()
        self.open: list[str] = []
        self.links: list[str] = []
        self.ids: list[str] = []
        self.text = ""
        self.rows: list[list[str]] = []
        self.feed(html)
        assert self.open == []

    def handle_starttag(self, tag: str, attrs: list[tuple[str, str | None]]) -> None:
        self.links += [value or "" for name, value in attrs if name in ("href", "src")]
        self.ids += [value or "" for name, value in attrs if name == "id"]
        if tag == "tr":
            self.rows.append([])
        elif tag in ("td", "th"):
            self.rows[-1].append("")
        if tag not in EMPTY:
            self.open.append(tag)

    def handle_endtag(self, tag: str) -> None:
        assert self.open.pop() == tag

    def handle_data(self, data: str) -> None:
        self.text += data
        if self.open and self.open[-1] in ("td", "th", "strong") and self.rows and {"td", "th"} & {*self.open}:
            self.rows[-1][-1] += data


@pytest.fixture
def results(tmp_path: Path) -> Path:
    """Table 4.1 over two seeds, Figure 4.1 and provenance."""
    folder = tmp_path / "results"
    (folder / "figures").mkdir(parents=True)
    lines = [f"{m},{d},{seed},{accuracy + seed}" for m, d, accuracy in ROWS for seed in (0, 1)]
    (folder / "table4_1.csv").write_text("\n".join(["method,dataset,seed,accuracy", *lines, ""]))
    table = ["**Table 4.1.**", "", "|  | digits |", "|---|---:|", "| SimSiam | **40.50 ± 1.00** |", "", "Seeds: 0, 1."]
    (folder / "table4_1.md").write_text("\n".join(table))
    (folder / "provenance.md").write_text(
        "| Data set | From |\n|---|---|\n| birds | /home/<script>alert(1)</script> |\n"
    )
    (folder / "figures/fig4_1.png").write_bytes(b"\x89PNG")
    (folder / "figures/fig4_1.pdf").write_bytes(b"%PDF")
    (folder / "figures/fig4_1.rst").write_text("**This run** (sprites): 3.5 grey levels.\n")
    return folder


def made(results: Path, pretrain: str = "sprites") -> str:
    page.run(results, pretrain, results / "index.html")
    return (results / "index.html").read_text()


def plain(markdown: str) -> str:
    return " ".join(markdown.replace("**", "").split())


def test_a_table_and_a_figure_stand_with_what_is_claimed_and_what_this_run_shows(results: Path) -> None:
    found = Reader(made(results))
    text = " ".join(found.text.split())
    for name in ("table4_1", "fig4_1"):
        caption = entries.caption(name)
        assert name in found.ids
        assert caption.title in text
        assert plain(caption.claim) in text
    assert ["SimSiam", "40.50 ± 1.00"] in found.rows
    assert "This run (sprites): 3.5 grey levels." in text
    assert "trained without labels on sprites (2 seeds) and tested on sprites, digits, photos" in text


def test_the_averages_are_those_worked_out_by_hand(results: Path) -> None:
    text = " ".join(Reader(made(results)).text.split())
    assert "average over digits, photos: SimSiam 46.0, DiffSiam hier 52.0 " in text
    assert "on sprites, where all were trained: SimSiam 60.5, DiffSiam hier 61.5 " in text


def test_each_number_of_shots_has_an_average_of_its_own(results: Path) -> None:
    lines = [f"{shots},simsiam,digits,0,{accuracy}" for shots, accuracy in ((1, 20), (5, 30), (10, 40))]
    (results / "table4_2.csv").write_text("\n".join(["shots,method,dataset,seed,accuracy", *lines, ""]))
    (results / "table4_2.md").write_text("**Table 4.2.**\n")
    text = " ".join(Reader(made(results)).text.split())
    assert "1-shot, average over digits: SimSiam 20.0 5-shot, average over digits: SimSiam 30.0 10-shot," in text


def test_the_verdict_of_the_summary_stands_beside_its_claim_and_not_below_the_table(results: Path) -> None:
    (results / "summary.md").write_text("**Methods.**\n\n**The order A > B.** On the average: not seen\nin Linear.\n")
    html = made(results)
    assert html.count("not seen") == 1
    assert re.search(r'<div class="ours"><p><strong>This run</strong> on the order A &gt; B: On the average: not', html)


def test_what_is_not_there_is_named_with_the_command_that_makes_it(results: Path) -> None:
    def named(html: str) -> dict[str, str]:
        return dict(re.findall(r"<dt><code>snakemake --cores all (\w+)</code></dt>\s*<dd>(.*)</dd>", html))

    before = named(made(results))
    assert [*before] == list(dict.fromkeys(entry.target for section in SECTIONS.values() for entry in section))
    assert "Figure 4.2. " in before["figures"]
    assert "Figure 4.1. " not in before["figures"]
    (results / "figures/fig4_1.rst").unlink()  # half of it is none of it
    html = made(results)
    assert "Figure 4.1. " in named(html)["figures"]
    assert "fig4_1" not in Reader(html).ids


def test_everything_that_it_links_to_is_there_and_nothing_is_fetched_or_run(results: Path) -> None:
    html = made(results)
    found = Reader(html)
    assert {"table4_1.csv", "figures/fig4_1.png", "figures/fig4_1.pdf"} <= {*found.links}
    for link in found.links:
        if link.startswith("#"):
            assert link.removeprefix("#") in found.ids
        else:
            assert (results / link).is_file(), link
    assert not re.search(r"https?:|<script|<link|@import|url\(", html)


def test_text_that_looks_like_html_is_text(results: Path) -> None:
    assert ["birds", "/home/<script>alert(1)</script>"] in Reader(made(results)).rows


def test_the_same_results_give_the_same_bytes(results: Path) -> None:
    assert made(results) == made(results)


def test_a_folder_without_results_is_one_message_and_no_page(tmp_path: Path) -> None:
    with pytest.raises(UserError, match=r"holds no table and no figure. `snakemake --cores all tables` makes some"):
        page.run(tmp_path, "sprites", tmp_path / "index.html")
    assert list(tmp_path.iterdir()) == []


def test_every_table_and_figure_has_a_caption_with_a_claim_and_every_caption_is_of_one() -> None:
    assert len(set(NAMES)) == len(NAMES)
    assert {path.stem for path in entries.CAPTIONS.glob("*.rst")} - {"page", "overview"} == set(NAMES)
    for name in NAMES:
        caption = entries.caption(name)
        assert re.match(r"\*\*[^*]*claims", caption.claim), name
        assert caption.about, name
        assert "\n" not in caption.title, name


def test_what_the_page_depends_on_beside_the_tables_changes_with_words_and_with_what_is_there(results: Path) -> None:
    before = [*entries.beside(results)]
    assert [line.split()[0] for line in before] == ["fig4_1"]  # the tables are inputs of its rule
    (results / "figures/fig4_1.pdf").unlink()
    assert [*entries.beside(results)] == before
    (results / "figures/fig4_1.rst").write_text("**This run** (sprites): 4 grey levels.\n")
    assert [*entries.beside(results)] != before
    (results / "figures/fig4_1.png").unlink()
    assert [*entries.beside(results)] == []


def title_in_a_browser(html: str, measure: str, folder: Path, width: int) -> str:
    """What ``measure``, which sets the document's title, sets it to in Chromium."""
    browser = shutil.which("chromium") or shutil.which("google-chrome") or shutil.which("chromium-browser")
    if browser is None:
        pytest.skip("no Chromium on PATH: the page is tested as text only")
    measured = folder / "measured.html"
    measured.write_text(html.replace("</body>", f"<script>{measure}</script></body>"))
    flags = [
        "--headless",
        "--no-sandbox",
        "--disable-gpu",
        "--disable-background-networking",
        "--no-first-run",
        "--virtual-time-budget=5000",
    ]
    command = [browser, *flags, f"--window-size={width},900", "--dump-dom", f"file://{measured}"]
    shown = subprocess.run(command, capture_output=True, text=True, check=True, timeout=60).stdout
    return shown.partition("<title>")[2].partition("</title>")[0]


@pytest.mark.parametrize("width", [400, 1280])
def test_in_a_browser_wide_tables_scroll_in_their_box_and_not_the_page(results: Path, width: int) -> None:
    head = [f"| {' | '.join(['Method', *(f'Data set {i}' for i in range(30))])} |", f"|{'---|' * 31}"]
    (results / "table4_1.md").write_text("\n".join([*head, f"| {' | '.join(['12.34 ± 5.67'] * 31)} |"]))
    measure = (
        "const e = document.documentElement, w = document.querySelector('#table4_1 .wide');"
        "document.title = [e.scrollWidth > e.clientWidth, w.scrollWidth > w.clientWidth].join()"
    )
    assert title_in_a_browser(made(results), measure, results, width) == "false,true"


def test_in_a_browser_a_tall_figure_is_as_wide_as_the_page_lets_it(results: Path) -> None:
    Image.new("RGB", (2700, 7000)).save(results / "figures/fig4_1.png")
    measure = (
        "const i = document.querySelector('#fig4_1 img'); i.loading = 'eager'; i.onload = () => "
        "{ document.title = i.naturalHeight + ' ' + (i.clientWidth / i.parentNode.clientWidth > 0.99); };"
    )
    assert title_in_a_browser(made(results), measure, results, 1000) == "7000 true"
