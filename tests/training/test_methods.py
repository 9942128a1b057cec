"""The table of methods says what METHOD.md says."""

from __future__ import annotations

import subprocess
import sys

import pytest

from diffsiam.errors import UserError
from diffsiam.training import methods

EXPECTED = {  # mask, segment, SimSiam term, trained
    "untrained": (None, None, False, False),
    "frozen_dm": (None, None, False, False),
    "simsiam": (None, None, True, True),
    "pdae": ("full", None, False, True),
    "pdae_simsiam": ("full", None, True, True),
    "diti": ("hierarchical", "timestep", False, True),
    "seq_alone": ("sequential", "extra_steps", False, True),
    "diffsiam_seq": ("sequential", "extra_steps", True, True),
    "diffsiam_hier": ("hierarchical", "extra_steps", True, True),
    "diffsiam_hier_detach": ("hierarchical_detach", "extra_steps", True, True),
    "disdiff_plain": (None, None, False, True),
    "disdiff": (None, None, False, True),
}


def test_rows_mask_and_weigh_as_the_method_says() -> None:
    rows = {name: (m.mask, m.segment, m.ssl, m.trained) for name, m in methods.METHODS.items()}
    assert rows == EXPECTED


def test_families_and_the_disentangling_loss_are_disdiffs_alone() -> None:
    assert {n: m.disentangle for n, m in methods.METHODS.items() if m.coded} == {
        "disdiff_plain": False,
        "disdiff": True,
    }
    assert {n for n, m in methods.METHODS.items() if m.frozen} == {"frozen_dm"}
    assert {m.family for m in methods.METHODS.values() if not m.coded and not m.frozen} == {"diffsiam"}
    assert not any(m.disentangle for m in methods.METHODS.values() if not m.coded)


def test_each_method_leaves_the_weights_of_what_it_trains() -> None:
    files = {name: set(m.weights) - {"encoder", "encoder_ema"} for name, m in methods.METHODS.items()}
    assert files == {
        "untrained": set(),
        "frozen_dm": set(),
        "simsiam": {"heads"},
        "pdae": {"decoder_ema"},
        "pdae_simsiam": {"decoder_ema", "heads"},
        "diti": {"decoder_ema"},
        "seq_alone": {"decoder_ema"},
        "diffsiam_seq": {"decoder_ema", "heads"},
        "diffsiam_hier": {"decoder_ema", "heads"},
        "diffsiam_hier_detach": {"decoder_ema", "heads"},
        "disdiff_plain": {"decoder_ema"},
        "disdiff": {"decoder_ema"},
    }
    assert all({"encoder", "encoder_ema"} <= set(m.weights) for m in methods.METHODS.values())


def test_a_method_reads_no_setting_of_what_it_does_not_have() -> None:
    disentangling = {"codes.weight", "codes.least_signal", "codes.weighting", "codes.encoder_gradient"}
    warning, simsiam = {"collapse_below"}, {"ssl_weight", "fixed_predictor_rate", "views"}
    term, resnet = {"diffusion_weight", "loss_space", "flip"}, {"stem", "zero_init_residual", "last_relu"}
    codes, diffusion = (
        {"codes.embedding", "codes.reconstruction"} | disentangling,
        term | {"decoder_optimizer"},
    )
    segments, diffsiam, diti = {"segments"}, {"time_input"}, {"diti"}
    training = {"steps", "optimizer", "grad_clip", "ema_decay", "snapshots"}
    unused = {name: {leaf.removeprefix("representation.") for leaf in m.unused} for name, m in methods.METHODS.items()}
    assert unused == {
        "untrained": warning | codes | simsiam | diffusion | segments | diffsiam | diti | training,
        "frozen_dm": set(),  # it reads nothing of representation
        "simsiam": warning | codes | diffusion | segments | diffsiam | diti,
        "pdae": warning | codes | simsiam | segments | diffsiam | diti,
        "pdae_simsiam": warning | codes | segments | diffsiam | diti,
        "diti": warning | codes | simsiam | diffsiam,
        "seq_alone": warning | codes | simsiam | diti,
        "diffsiam_seq": warning | codes | diti,
        "diffsiam_hier": warning | codes | diti,
        "diffsiam_hier_detach": warning | codes | diti,
        "disdiff_plain": warning | disentangling | simsiam | term | resnet | segments | diffsiam | diti,
        "disdiff": warning | simsiam | term | resnet | segments | diffsiam | diti,
    }


def test_titles_are_all_different() -> None:
    assert len({m.title for m in methods.METHODS.values()}) == len(methods.METHODS)


def test_snapshots_are_evenly_spaced_and_end_with_the_run() -> None:
    assert methods.snapshot_steps(600, 8) == [75, 150, 225, 300, 375, 450, 525, 600]
    assert methods.snapshot_steps(10, 3) == [4, 7, 10]
    assert methods.snapshot_steps(2, 5) == [1, 2]
    assert methods.snapshot_steps(600, 0) == []


def test_an_unknown_method_is_refused_with_the_list() -> None:
    assert methods.lookup("pdae") is methods.METHODS["pdae"]
    with pytest.raises(UserError, match="'diffsiam'") as error:
        methods.lookup("diffsiam")
    assert all(name in str(error.value) for name in EXPECTED)


def test_the_table_is_read_without_pytorch() -> None:
    """Snakemake imports it at every start."""
    code = "import sys, diffsiam.training.methods; print(sorted({'torch', 'numpy', 'diffusers'} & set(sys.modules)))"
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True, timeout=60)
    assert done.stdout.strip() == "[]"
