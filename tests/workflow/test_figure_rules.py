"""Rule `figures`: what it plans at the thesis's scale, what it makes, and the report, opened in a browser."""

from __future__ import annotations

import base64
import json
import re
import shutil
import sys
from pathlib import Path
from typing import Any

import pytest
import yaml

from diffsiam.evaluation import hub
from tests.dvc.clones import Clone, merged, working_tree

JOBS = Path(__file__).resolve().parents[1] / "dvc" / "jobs.py"
FIGURES = ["1_1", "3_1", *(f"4_{i}" for i in range(1, 10))]
SMALL = {  # over the clones' own parameters: networks that learn nothing, and few pictures
    "representation": {"segments": 32},
    "probmask": {"steps": 20},
    "generation": {"steps": 2, "measured": 4, "classifier": {"width": 4, "steps": 2}},
}


def planned(clone: Clone, *targets: str) -> list[dict[str, Any]]:
    return json.loads(clone.run(sys.executable, str(JOBS), *targets).stdout.splitlines()[-1])


# ----------------------------------------------------------------------------------------- the thesis's scale
@pytest.fixture(scope="module")
def thesis(tmp_path_factory: pytest.TempPathFactory) -> list[dict[str, Any]]:
    """Every job of `figures` under the thesis preset."""
    clone = working_tree(tmp_path_factory.mktemp("thesis"), tmp_path_factory.mktemp("scratch"))
    shutil.copy(clone.root / "workflow/presets/thesis.yaml", clone.root / "params.yaml")
    return planned(clone, "figures")


def own(jobs: list[dict[str, Any]], rule: str, **wildcards: str) -> dict[str, Any]:
    """The parameters of the one job of ``rule`` with these wildcards."""
    (job,) = [j for j in jobs if j["rule"] == rule and wildcards.items() <= j["wildcards"].items()]
    return json.loads(job["params"]["own"])


def test_an_edit_trains_anew_the_methods_that_have_the_term_it_belongs_to(
    tmp_path: Path, tmp_path_factory: pytest.TempPathFactory
) -> None:
    clone = working_tree(tmp_path, tmp_path_factory.mktemp("scratch"))
    path = clone.root / "params.yaml"
    names = ["untrained", "simsiam", "pdae", "diffsiam_hier"]
    base = merged(yaml.safe_load(path.read_text()), {"methods": names, "seeds": [0]})

    def shares(edit: dict[str, Any]) -> dict[str, Any]:
        path.write_text(yaml.safe_dump(merged(base, {"representation": edit})))
        jobs = planned(clone, "tables")
        return {name: own(jobs, f"representation_{name}") for name in names}

    before = shares({})
    for edit, trained in (
        ({"diffusion_weight": 7.0}, {"pdae", "diffsiam_hier"}),
        ({"ssl_weight": 7.0}, {"simsiam", "diffsiam_hier"}),
        ({"batch_size": 7}, set(names)),
    ):
        after = shares(edit)
        assert {name for name in names if after[name] != before[name]} == trained, edit


def test_published_weights_that_arrive_make_the_numbers_anew_and_those_that_go_do_not(
    tmp_path: Path, tmp_path_factory: pytest.TempPathFactory
) -> None:
    pytest.importorskip("torch_fidelity", reason="torch-fidelity is optional: `pip install torch-fidelity`")
    clone, home = working_tree(tmp_path, tmp_path_factory.mktemp("scratch")), tmp_path_factory.mktemp("home")
    clone = Clone(clone.root, clone.env | {"TORCH_HOME": str(home)})
    file = home / "hub" / "checkpoints" / hub.METRICS["fid"].url.rsplit("/", 1)[1]
    file.parent.mkdir(parents=True)

    def recorded() -> set[tuple[str, str]]:
        jobs = planned(clone, "results/generation/sprites/numbers_pdae.csv")
        return {(job["rule"], job["params"]["weights"]) for job in jobs if "weights" in job["params"]}

    assert recorded() == {("generate_numbers", "none")}
    file.touch()
    assert recorded() == {("generate_numbers", "fid")}
    file.unlink()
    assert recorded() == {("generate_numbers", "fid")}


@pytest.mark.parametrize(
    ("dataset", "size", "steps"), [("CelebA", 64, 290_000), ("FFHQ", 128, 500_000), ("Bedroom", 128, 540_000)]
)
def test_the_thesis_preset_trains_both_methods_on_each_data_set_as_printed(
    dataset: str, size: int, steps: int, thesis: list[dict[str, Any]]
) -> None:
    assert own(thesis, "data", dataset=dataset)["data"]["image_size"] == size
    diffusion = own(thesis, "diffusion", pretrain=dataset)["diffusion"]
    assert (diffusion["source"], diffusion["fetch"]["format"]) == ("fetch", "guided")
    assert dataset.lower() in diffusion["fetch"]["location"]
    for method in ("pdae", "diffsiam_hier"):
        cfg = own(thesis, f"representation_{method}", pretrain=dataset)["representation"]
        assert (cfg["steps"], cfg["batch_size"], cfg["encoder_width"]) == (steps, 128, 64)
        assert cfg.get("segments") == (None if method == "pdae" else 64)
        for part in ("optimizer", "decoder_optimizer"):
            assert (cfg[part]["name"], cfg[part]["learning_rate"]) == ("adam", 1e-4)


def test_the_thesis_preset_has_the_ranges_scales_and_attributes_of_the_captions(thesis: list[dict[str, Any]]) -> None:
    cfgs = [
        own(thesis, "generate_counterfactual", pretrain=d, method="pdae")["generation"] for d in ("FFHQ", "Bedroom")
    ]
    ranges = {row["dataset"]: row["ranges"] for cfg in cfgs for row in cfg["ranges"]}
    assert ranges["FFHQ"] == [[0, 2], [0, 4], [0, 6], [6, 10], [16, 24], [24, 32], [32, 64]]
    assert ranges["Bedroom"] == [[0, 8], [8, 16], [24, 28]]
    assert cfgs[0]["scales"] == [1 / 4, 2 / 4, 3 / 4, 1]
    names = [f"probmask_{dataset}" for dataset in ("CelebA", "Bedroom")]
    attributes = [row for name in names for row in own(thesis, name, method="diffsiam_hier")["probmask"]["attributes"]]
    dims = {(row["dataset"], row["name"]): row["dims"] for row in attributes}
    assert dims["CelebA", "Wearing Hat"] == 128
    assert {d for (dataset, name), d in dims.items() if dataset == "CelebA" and name != "Wearing Hat"} == {16}
    bedroom = {name: d for (dataset, name), d in dims.items() if dataset == "Bedroom"}
    assert bedroom == dict.fromkeys(("indoor lighting", "rusty", "cluttered space", "carpet"), 32)


def test_each_figure_shows_the_data_set_of_its_caption(thesis: list[dict[str, Any]]) -> None:
    shown = {job["rule"]: job["params"]["dataset"] for job in thesis if job["rule"].startswith("fig") and job["params"]}
    printed = {"1_1": "CelebA", "4_1": "FFHQ", "4_2": "Bedroom", "4_3": "FFHQ", "4_4": "Bedroom"}
    printed |= {"4_5": "CelebA", "4_6": "Bedroom", "4_7": "CelebA"}
    assert {number: shown[f"fig{number}"] for number in printed} == printed


def test_only_bedroom_takes_its_attributes_from_a_table(thesis: list[dict[str, Any]]) -> None:
    inputs = {job["wildcards"]["dataset"]: job["input"] for job in thesis if job["rule"] == "data"}
    assert inputs.pop("Bedroom") == ["results/attributes/Bedroom.csv"]
    assert list(inputs.values()) == [[]] * 3


# ------------------------------------------------------------------------------------------------ a small run
@pytest.fixture(scope="module")
def drawn(tmp_path_factory: pytest.TempPathFactory) -> Clone:
    """A run of `figures` and `tables`, and its report. Not to be changed by a test."""
    clone = working_tree(tmp_path_factory.mktemp("figures"), tmp_path_factory.mktemp("scratch"))
    path = clone.root / "params.yaml"
    path.write_text(yaml.safe_dump(merged(yaml.safe_load(path.read_text()), SMALL), sort_keys=False))
    clone.run("snakemake", "--cores", "all", "figures", "tables")
    clone.run("snakemake", "--report", "results/report.html", "figures", "tables")
    return clone


@pytest.mark.slow
def test_every_figure_and_the_numbers_are_made_and_then_there_is_nothing_to_do(drawn: Clone) -> None:
    for number in FIGURES:
        assert (drawn.root / f"results/figures/fig{number}.png").read_bytes()[:4] == b"\x89PNG"
        assert (drawn.root / f"results/figures/fig{number}.pdf").read_bytes()[:4] == b"%PDF"
    numbers = (drawn.root / "results/generation.csv").read_text().splitlines()
    assert numbers[0] == "dataset,method,seed,measure,subject,attribute,metric,value,ci95,images"
    assert {line.split(",")[1] for line in numbers[1:]} == {"pdae", "diffsiam_hier"}
    assert drawn.planned("figures") == {}


@pytest.mark.slow
def test_figures_are_drawn_anew_from_stored_arrays_without_sampling(drawn: Clone, tmp_path: Path) -> None:
    copy = Clone(tmp_path / "repo", drawn.env)
    shutil.copytree(drawn.root, copy.root, symlinks=True)
    shutil.rmtree(copy.root / "results/figures")
    plan = copy.planned("figures")
    assert {rule for rule in plan if not rule.startswith("fig")} == set()
    assert len([rule for rule in plan if rule.startswith("fig") and rule != "figures"]) == len(FIGURES)


@pytest.mark.slow
def test_the_page_of_results_takes_in_figures_that_are_there_and_never_makes_them(drawn: Clone, tmp_path: Path) -> None:
    copy = Clone(tmp_path / "repo", drawn.env)
    shutil.copytree(drawn.root, copy.root, symlinks=True)
    page = copy.root / "results/index.html"
    copy.run("snakemake", "--cores", "all", "page")  # where it was made before the last figure
    assert copy.planned("figures", "tables") == {}
    assert page.read_text().count("<img") == len(FIGURES) + 1  # and the paired differences
    shutil.rmtree(copy.root / "results/figures")
    assert copy.planned("tables") == {"page": 1}
    copy.run("snakemake", "--cores", "all", "tables")
    assert page.read_text().count("<img") == 1
    assert "<dt><code>snakemake --cores all figures</code></dt>" in page.read_text()
    assert not (copy.root / "results/figures").exists()
    assert copy.planned("tables") == {}


@pytest.mark.slow
def test_the_report_holds_every_table_and_figure_with_claim_and_outcome(drawn: Clone) -> None:
    page = (drawn.root / "results/report.html").read_text()
    for number in FIGURES:
        picture = base64.b64encode((drawn.root / f"results/figures/fig{number}.png").read_bytes()).decode()
        assert picture in page, number
        shows = (drawn.root / f"results/figures/fig{number}.rst").read_text()
        assert shows.startswith("**This run** (sprites)")
        assert f"Figure {number.replace('_', '.')}." in page
    for name in ("table4_1.csv", "table4_2.csv", "paired.csv", "paired.png", "generation.csv"):
        assert f"results/{name}" in page
    assert page.count("The thesis claims") == len(FIGURES) + 5
    assert page.count("This run") == len(FIGURES) + 5


@pytest.mark.slow
@pytest.mark.parametrize(
    ("category", "rows"),
    [
        ("Figures", [*(number.replace("_", ".") for number in FIGURES), "numbers"]),
        ("Tables", ["results/table4_1.csv", "results/table4_2.csv", "results/paired.csv", "results/paired.png"]),
        ("Tables", ["Table 4.1. Linear classification on frozen features", "Methods side by side"]),
        ("Figures", ["Counterfactuals on ranges of segments", "The numbers beside the figures"]),
        ("All on one page", ["results/index.html"]),
    ],
)
def test_a_browser_lists_the_tables_and_figures_of_the_report(
    category: str, rows: list[str], drawn: Clone, tmp_path: Path
) -> None:
    browser = shutil.which("chromium") or shutil.which("google-chrome") or shutil.which("chromium-browser")
    if browser is None:
        pytest.skip("no Chromium on PATH: the page is tested as text only")
    page = (drawn.root / "results/report.html").read_text()
    end = page.rindex("</body>")
    click = f"[...document.querySelectorAll('a')].find(a => a.textContent.trim() === '{category}').click()"
    (tmp_path / "page.html").write_text(f"{page[:end]}<script>setTimeout(() => {click}, 1500)</script>{page[end:]}")
    flags = ["--headless", "--no-sandbox", "--disable-gpu", "--disable-background-networking", "--no-first-run"]
    flags += ["--virtual-time-budget=9000", "--dump-dom"]
    text = drawn.run(browser, *flags, f"file://{tmp_path / 'page.html'}").stdout
    shown = text[text.rindex('<div id="app"') :]
    cells = re.findall(r">([^<>]+)</td>", shown)
    assert [row for row in rows if row not in cells] == []
