"""What a caption says about a run is what its arrays hold, worked out by hand."""

from __future__ import annotations

from pathlib import Path

import numpy as np

from diffsiam.report import captions
from diffsiam.report.figures import Inputs
from tests.report import small_pictures as small


def flat(*shape: int, value: int) -> np.ndarray:
    return np.full((*shape, 4, 4, 3), value, np.uint8)


def test_figure_1_1_tells_whether_the_error_grows(tmp_path: Path) -> None:
    images = np.stack([flat(2, value=110), flat(2, value=130), flat(2, value=120)], axis=1)
    path = tmp_path / "denoise.npz"
    np.savez(path, images=images, originals=flat(2, value=100), timesteps=np.array([100, 400, 800]))
    text = captions.SHOWS["1_1"](Inputs("sprites", {"frozen": path}))
    assert "does not grow" in text
    assert "t = 100: 10.0, t = 400: 30.0, t = 800: 20.0" in text


def test_figures_4_1_and_4_3_give_the_distance_to_the_other_image_both_ways(tmp_path: Path) -> None:
    path = small.counterfactual(tmp_path, "diffsiam_hier")
    arrays = dict(np.load(path)) | {"sources": flat(2, value=50), "targets": flat(2, value=90)}
    arrays["images"], arrays["reverse"] = flat(2, 10, 4, value=90), flat(2, 10, 4, value=50)
    arrays["images"][:, 2, -1], arrays["reverse"][:, 2, -1] = 80, 70  # range 2-4: 10 away there, 20 back
    arrays["images"][:, 0, -1] = 70  # x_T alone: 20 away there
    arrays["images"][:, 5:, -1] = 60  # own x_T: 30 away there
    arrays["scales"] = np.array([0.2, 0.4, 0.6, 0.8])
    np.savez(path, **arrays)
    inputs = Inputs("sprites", {"diffsiam_hier": path})
    for number in ("4_1", "4_3"):
        assert "the picture at scale 0.8 and" in captions.SHOWS[number](inputs)
    text = captions.SHOWS["4_1"](inputs)
    assert "DiffSiam hier., x_T exchanged: no segment: 10.0, 0-2: 0.0, 2-4: 15.0, 4-6: 0.0, 0-8: 0.0." in text
    assert "DiffSiam hier., own x_T: no segment: 15.0, 0-2: 15.0, 2-4: 15.0, 4-6: 15.0, 0-8: 15.0." in text
    expected = "DiffSiam hier., x_T exchanged: 0.0 (10.0 by x_T alone), DiffSiam hier., own x_T: 15.0."
    assert captions.SHOWS["4_3"](inputs).endswith(expected)


def test_captions_of_arrays_of_a_version_before_say_that_x_T_was_exchanged(tmp_path: Path) -> None:
    inputs = Inputs("sprites", {"pdae": small.counterfactual_of_before(tmp_path, "pdae")})
    assert "PDAE, x_T exchanged: 0-2: " in captions.SHOWS["4_1"](inputs)
    assert "x_T alone" not in captions.SHOWS["4_3"](inputs)


def test_figure_4_5_measures_from_the_scale_nearest_to_0_and_names_it(tmp_path: Path) -> None:
    path = small.manipulation(tmp_path, "pdae")
    arrays = dict(np.load(path)) | {"images": flat(4, 4, 3, value=90), "scales": np.array([0.5, 3.0, 6.0])}
    arrays["images"][[0, 2], :, -1] = 100  # the masked classifiers' ends; the reference is at the other
    np.savez(path, **arrays)
    text = captions.SHOWS["4_5"](Inputs("sprites", {"pdae": path}))
    assert "the ends (scales 0.5, 6) and the picture at scale 0.5: PDAE 5.0." in text


def test_figure_4_9_gives_the_loss_at_the_end(tmp_path: Path) -> None:
    files = {"diffsiam_hier": small.history(tmp_path, "diffsiam_hier", 1.0)}
    expected = np.mean([1 / s for s in range(91, 101)])
    text = captions.SHOWS["4_9"](Inputs("sprites", files))
    assert f"100 steps: DiffSiam hier. {expected:.4g}." in text


def test_every_caption_names_the_run_and_its_data_set(tmp_path: Path) -> None:
    edits = {"pdae": small.manipulation(tmp_path, "pdae")}
    captions.write("4_5", Inputs("CelebA", edits), tmp_path / "fig4_5.rst")
    assert (tmp_path / "fig4_5.rst").read_text().startswith("**This run** (CelebA): mean grey levels")
