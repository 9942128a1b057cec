"""Algorithm 3: scale 0 is the reconstruction, any other moves z by s sigma w / |w|."""

from __future__ import annotations

import numpy as np
import torch

from diffsiam.evaluation.probmask import Classifier
from diffsiam.generation.manipulation import direction, manipulate
from tests.generation import tiny_guided


def classifier() -> Classifier:
    rng = np.random.default_rng(0)
    weight = np.zeros(tiny_guided.DIM, np.float32)
    weight[[1, 5, 6]] = [3, -4, 12]
    mean, std = rng.random((2, tiny_guided.DIM)).astype(np.float32)
    return Classifier("Red", weight, 0.5, mean, std, masked=True)


def test_every_scale_is_algorithm_3_by_hand() -> None:
    model, c = tiny_guided.model(), classifier()
    z, x_T = model.latents(tiny_guided.images(2))
    scales = [-6.8, 0.0, 3.4]
    got = manipulate(model, (z, x_T), c, torch.tensor(scales))
    assert got.shape == (2, 3, 3, tiny_guided.SIDE, tiny_guided.SIDE)
    for j, s in enumerate(scales):
        edited = z + s * torch.from_numpy(c.std * c.weight / 13)  # |(3, -4, 12)| = 13
        assert torch.allclose(got[:, j], model.sample(x_T, edited), atol=1e-3)
    assert torch.allclose(got[:, 1], model.sample(x_T, z), atol=1e-3)
    assert not torch.allclose(got[:, 2], got[:, 1], atol=1e-2)


def test_a_sampler_that_masks_step_by_step_manipulates_with_all_of_z() -> None:
    masked, plain, c = tiny_guided.model(mask_by_step=True), tiny_guided.model(), classifier()
    z, x_T = 4 * torch.ones(2, tiny_guided.DIM), tiny_guided.images(2)
    edited = z + torch.from_numpy(c.std * c.weight / 13)
    got = manipulate(masked, (z, x_T), c, torch.tensor([1.0]))[:, 0]
    assert torch.allclose(got, plain.sample(x_T, edited), atol=1e-4)
    assert not torch.allclose(got, masked.sample(x_T, edited), atol=1e-2)


def test_only_the_classifiers_dimensions_move() -> None:
    assert torch.nonzero(direction(classifier())).flatten().tolist() == [1, 5, 6]
