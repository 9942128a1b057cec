from __future__ import annotations

import pytest
import torch

from diffsiam.data import pixels


def test_to_float_maps_0_to_minus_1_and_255_to_1_in_channels_first_order() -> None:
    images = torch.tensor([[[[0, 51, 255], [255, 204, 0]]]], dtype=torch.uint8)  # one image of 1 x 2 pixels
    expected = torch.tensor([[[[-1.0, 1.0]], [[-0.6, 0.6]], [[1.0, -1.0]]]])
    torch.testing.assert_close(pixels.to_float(images), expected)


def test_to_float_gives_channels_last_memory_and_leaves_its_input_alone() -> None:
    images = torch.randint(0, 256, (2, 5, 4, 3), dtype=torch.uint8)
    before = images.clone()
    out = pixels.to_float(images)
    assert out.shape == (2, 3, 5, 4)
    assert out.dtype == torch.float32
    assert out.is_contiguous(memory_format=torch.channels_last)
    assert torch.equal(images, before)


def test_to_float_of_a_non_contiguous_selection_is_channels_last_too() -> None:
    images = torch.randint(0, 256, (2, 8, 8, 3), dtype=torch.uint8)
    out = pixels.to_float(images[:, ::2, 1:5])
    assert out.is_contiguous(memory_format=torch.channels_last)
    assert out[1, 2, 3, 0] == images[1, 6, 1, 2] / 127.5 - 1


def test_every_stored_value_survives_the_round_trip() -> None:
    images = torch.arange(256, dtype=torch.uint8).reshape(1, 16, 16, 1).expand(1, 16, 16, 3)
    assert torch.equal(pixels.to_uint8(pixels.to_float(images)), images)


@pytest.mark.parametrize(
    ("value", "stored"),
    [(-1.7, 0), (1.2, 255), (float("inf"), 255), (0.0, 128), (-1 + 0.49 / 127.5, 0), (-1 + 0.51 / 127.5, 1)],
)
def test_to_uint8_clamps_and_rounds(value: float, stored: int) -> None:
    out = pixels.to_uint8(torch.full((1, 3, 2, 2), value))
    assert out.shape == (1, 2, 2, 3)
    assert out.is_contiguous()
    assert (out == stored).all()


def test_to_uint8_of_half_precision_rounds_in_single_precision() -> None:
    values = torch.linspace(-1, 1, 64).reshape(1, 1, 8, 8).to(torch.bfloat16)
    expected = ((values.double() + 1) * 127.5).round().to(torch.uint8).permute(0, 2, 3, 1)
    assert torch.equal(pixels.to_uint8(values), expected)


def test_float_images_are_refused_because_their_scale_is_unknown() -> None:
    with pytest.raises(TypeError, match="uint8"):
        pixels.to_float(torch.zeros(1, 2, 2, 3))
