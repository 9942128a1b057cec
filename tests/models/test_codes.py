"""The decoder of codes against the decoder of z, called for one code at a time."""

from __future__ import annotations

import pytest
import torch
from tiny_unets import noisy_images, unet
from torch import nn

from diffsiam.errors import UserError
from diffsiam.models import codes
from diffsiam.models.codes import CodeDecoder
from diffsiam.models.unet import DiffusionModel

N, DIM = 3, 4


def make(embedding: str = "orthogonal") -> tuple[DiffusionModel, CodeDecoder]:
    model = DiffusionModel(unet("ho")).requires_grad_(False)
    torch.manual_seed(1)
    decoder = CodeDecoder(model.unet, N, DIM, embedding)
    nn.init.normal_(decoder.decoder.unet.conv_out.weight, std=0.1)
    return model, decoder


@pytest.mark.parametrize("embedding", ["orthogonal", "learned", "none"])
def test_each_field_is_the_decoder_on_one_code_told_the_time_plus_its_embedding(embedding: str) -> None:
    model, decoder = make(embedding)
    x, t = noisy_images()[:2], torch.tensor([1, 500])
    trunk, z = model.trunk(x, t), torch.randn(2, N * DIM)
    fields, told = decoder.fields(z, trunk), decoder.embeddings()
    assert fields.shape == (2, N, *x.shape[1:])
    for i in range(2):
        for c in range(N):
            time = trunk.time[i : i + 1] if told is None else trunk.time[i : i + 1] + told[c]
            alone = trunk._replace(
                time=time, skips=tuple(s[i : i + 1] for s in trunk.skips), hidden=trunk.hidden[i : i + 1]
            )
            expected = decoder.decoder(z[i : i + 1, c * DIM : (c + 1) * DIM], alone)[0]
            assert torch.allclose(fields[i, c], expected, rtol=1e-4, atol=1e-5)
            assert torch.allclose(decoder.field(z, trunk, torch.full((2,), c))[i], expected, rtol=1e-4, atol=1e-5)
    assert (fields[:, 0] - fields[:, 1]).abs().max() > 1e-3


def test_the_sum_is_of_all_fields_or_of_those_named() -> None:
    model, decoder = make()
    trunk, z = model.trunk(noisy_images()[:2], torch.tensor([1, 500])), torch.randn(2, N * DIM)
    fields = decoder.fields(z, trunk)
    assert torch.allclose(decoder(z, trunk), fields[:, 0] + fields[:, 1] + fields[:, 2], atol=1e-6)
    assert torch.allclose(codes.Only(decoder, (2, 0))(z, trunk), fields[:, 2] + fields[:, 0], rtol=1e-4, atol=1e-5)


def test_an_orthogonal_embedding_is_a_linear_map_of_the_codes_row_and_there_are_as_many_as_rows() -> None:
    model, decoder = make()
    assert decoder.table is not None
    rows = torch.matrix_exp((decoder.table - decoder.table.T).double())[:N].float()
    expected = rows @ decoder.projection.weight.T + decoder.projection.bias
    told = decoder.embeddings()
    assert told is not None
    assert torch.allclose(told, expected, rtol=1e-4, atol=1e-5)
    most = told.shape[1] // 2
    every = CodeDecoder(model.unet, most, DIM, "orthogonal").embeddings()
    assert every is not None
    assert len(every) == most
    with pytest.raises(UserError, match=f"met {most + 1}, but the orthogonal embedding .* has {most} rows"):
        CodeDecoder(model.unet, most + 1, DIM, "orthogonal")


def test_fields_start_at_zero() -> None:
    model = DiffusionModel(unet("ho"))
    decoder = CodeDecoder(model.unet, N, DIM, "orthogonal")
    assert not decoder.fields(torch.randn(2, N * DIM), model.trunk(noisy_images()[:2], torch.tensor([1, 500]))).any()


@pytest.mark.parametrize("scale", [1.0, 5.0])
def test_the_orthogonal_matrix_is_pytorchs_exponential(scale: float) -> None:
    w = scale * torch.randn(64, 64, generator=torch.Generator().manual_seed(0))
    q = codes.orthogonal(w)
    assert torch.allclose(q.double(), torch.matrix_exp((w - w.T).double()), atol=1e-6)
    assert torch.allclose(q @ q.T, torch.eye(64), atol=1e-5)


def test_the_matrix_stays_orthogonal_while_it_is_trained() -> None:
    model, decoder = make()
    optimizer = torch.optim.Adam(decoder.parameters(), 0.1)
    trunk, z = model.trunk(noisy_images()[:2], torch.tensor([1, 500])), torch.randn(2, N * DIM)
    assert decoder.table is not None
    before = decoder.table.detach().clone()
    for _ in range(10):
        optimizer.zero_grad()
        (decoder(z, trunk) - 1).square().mean().backward()
        optimizer.step()
    q = codes.orthogonal(decoder.table.detach())
    assert not torch.allclose(decoder.table, before)
    assert torch.allclose(q @ q.T, torch.eye(len(q)), atol=1e-5)
