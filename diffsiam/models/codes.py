"""DisDiff's decoder: one gradient field on the frozen diffusion model for each code of z."""

from __future__ import annotations

from collections.abc import Sequence

import torch
from diffusers import UNet2DModel
from torch import Tensor, nn

from diffsiam.errors import UserError
from diffsiam.models.decoder import Decoder
from diffsiam.models.unet import Trunk


class CodeDecoder(nn.Module):
    r"""G_psi: PDAE's decoder on one code at a time, told which one by an embedding p^c that is added to the time's.

    p^c is a linear map of row c of an orthogonal matrix, exp(W - W^T) (``orthogonal``), of a learned vector
    (``learned``), or nothing (``none``), as in the authors' code; the paper's Table 2 compares them.

    Args:
        unet: the frozen network.
        count: N, number of codes; with ``orthogonal`` at most half of the time embedding's E numbers.
        dim: numbers in a code.
    """

    def __init__(self, unet: UNet2DModel, count: int, dim: int, embedding: str) -> None:
        super().__init__()
        self.count = count
        self.decoder = Decoder(unet, dim)
        width = unet.time_embedding.linear_2.out_features
        self.table: nn.Parameter | None = None
        if embedding == "orthogonal":
            if count > width // 2:
                raise UserError(
                    f"representation.codes.count: met {count}, but the orthogonal embedding of this diffusion model "
                    f"has {width // 2} rows. Choose at most that many, or embedding: learned."
                )
            self.table, self.projection = (
                nn.Parameter(torch.randn(width // 2, width // 2)),
                nn.Linear(width // 2, width),
            )
        elif embedding == "learned":
            self.table = nn.Parameter(torch.randn(count, dim))
            self.projection = nn.Linear(dim, width)
        self.orthogonal = embedding == "orthogonal"

    def embeddings(self) -> Tensor | None:
        """p, (N, E)."""
        if self.table is None:
            return None
        rows = orthogonal(self.table)[: self.count] if self.orthogonal else self.table
        return self.projection(rows)

    def fields(self, z: Tensor, trunk: Trunk) -> Tensor:
        """g^c(x_t, z^c, t) of every code in one pass: z (B, N * dim) and the `Trunk` of (x_t, t) to
        (B, N, 3, H, W), float32."""
        told, repeated = self.embeddings(), _repeated(trunk, self.count)
        if told is not None:
            repeated = repeated._replace(time=repeated.time + told.repeat(len(z), 1))
        return self.decoder(z.reshape(len(z) * self.count, -1), repeated).unflatten(0, (len(z), self.count))

    def field(self, z: Tensor, trunk: Trunk, codes: Tensor) -> Tensor:
        """g^c of one code for each image, ``codes`` (B,) in 0..N-1: (B, 3, H, W)."""
        told = self.embeddings()
        if told is not None:
            trunk = trunk._replace(time=trunk.time + told[codes])
        own = z.unflatten(1, (self.count, -1))[torch.arange(len(z), device=z.device), codes]
        return self.decoder(own, trunk)

    def forward(self, z: Tensor, trunk: Trunk) -> Tensor:
        """The sum of the fields of all codes, (B, 3, H, W): what z adds (Eq. 7)."""
        return self.fields(z, trunk).sum(1)


class Only(nn.Module):
    """A code decoder in which only the codes ``which``, one at least, guide: what a part of z adds (Eq. 7)."""

    def __init__(self, decoder: CodeDecoder, which: Sequence[int]) -> None:
        super().__init__()
        self.decoder, self.which = decoder, which

    def forward(self, z: Tensor, trunk: Trunk) -> Tensor:
        """The sum of their fields, (B, 3, H, W)."""
        fields = [self.decoder.field(z, trunk, torch.full((len(z),), c, device=z.device)) for c in self.which]
        return torch.stack(fields).sum(0)


def orthogonal(w: Tensor) -> Tensor:
    """exp(W - W^T), an orthogonal matrix, for any square W.

    By Taylor's series of the 1024th part and ten squarings in float64, exact to rounding for norms up to hundreds:
    `torch.matrix_exp` chooses both by looking at the numbers, for which a GPU has to wait.
    """
    power = part = (w - w.T).double() / 1024
    total = torch.eye(len(w), dtype=torch.float64, device=w.device) + power
    for order in range(2, 13):
        power = power @ part / order
        total = total + power
    for _ in range(10):
        total = total @ total
    return total.to(w.dtype)


def _repeated(trunk: Trunk, count: int) -> Trunk:
    """Each image's trunk ``count`` times, in the order of z's codes."""

    def repeat(x: Tensor) -> Tensor:
        return x.movedim(1, -1).repeat_interleave(count, 0).movedim(-1, 1)  # pixels as rows: channels-last stays so

    return Trunk(repeat(trunk.time), tuple(map(repeat, trunk.skips)), repeat(trunk.hidden))
