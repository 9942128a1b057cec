"""SimSiam (Chen & He 2021): heads, loss and the measures of collapse."""

from __future__ import annotations

import torch
from torch import Tensor, nn
from torch.nn import functional
from torch.nn.modules.batchnorm import _BatchNorm

from diffsiam.models.batch_norm import norm_relu, of_views


class Head(nn.Sequential):
    """Layers with batch norm among them, on a batch of one or several views: see `norm_relu`."""

    def forward(self, x: Tensor, views: int = 1) -> Tensor:
        """(N, d) -> (N, d'), float32."""
        for layer in self:
            x = norm_relu(x, layer, relu=False, views=views) if isinstance(layer, _BatchNorm) else layer(x)
        return x.float()


class Heads(nn.Module):
    """SimSiam's CIFAR heads on a representation of ``dim`` = d numbers: a projector of two layers, 4d wide, batch norm
    after both, and a predictor 4d -> d -> 4d, batch norm and ReLU after its first layer only.

    The last batch norm has no scale and shift, as in the authors' code.
    """

    def __init__(self, dim: int) -> None:
        super().__init__()
        wide = 4 * dim
        self.projector = Head(
            nn.Linear(dim, wide, bias=False),
            nn.BatchNorm1d(wide),
            nn.ReLU(),
            nn.Linear(wide, wide, bias=False),
            nn.BatchNorm1d(wide, affine=False),
        )
        self.predictor = Head(nn.Linear(wide, dim, bias=False), nn.BatchNorm1d(dim), nn.ReLU(), nn.Linear(dim, wide))

    def forward(self, z1: Tensor, z2: Tensor) -> tuple[Tensor, Tensor]:
        """Eq. 3.9 for the representations (N, d) of two views; returns the loss and the first view's projection."""
        h1, h2 = of_views(self.projector, z1, z2)
        p1, p2 = of_views(self.predictor, h1, h2)
        return 0.5 * negative_cosine(p1, h2) + 0.5 * negative_cosine(p2, h1), h1.detach()


def negative_cosine(prediction: Tensor, target: Tensor) -> Tensor:
    """D of Eq. 3.10, mean over the batch, with stop-gradient on the target's side; in [-1, 1]."""
    return -functional.cosine_similarity(prediction, target.detach(), dim=1).mean()


@torch.no_grad()
def spread(z: Tensor) -> Tensor:
    """sqrt(d) times the mean per-dimension standard deviation of z / |z|, (N, d) -> scalar: 0 is collapse, 1 an even
    spread over the sphere (rectified features, all on one side, stay below 1)."""
    return functional.normalize(z.float(), dim=1).std(dim=0).mean() * z.shape[1] ** 0.5


@torch.no_grad()
def participation_ratio(z: Tensor) -> Tensor:
    """(sum l)^2 / sum l^2 of the eigenvalues l of the covariance of z, (N, d) -> float64 scalar: in how many directions
    z varies, from 1 to min(d, N - 1); 0 where all rows are equal. `spread` does not see that rank.

    sum l is the squared norm of the centred rows X and sum l^2 that of X'X or of XX', whichever is smaller: a product,
    in a precision that autocast leaves alone, where a decomposition could not be captured.
    """
    x = z.double() - z.double().mean(dim=0)
    products = x @ x.T if len(x) < x.shape[1] else x.T @ x
    return x.square().sum().square() / products.square().sum().clamp_min(torch.finfo(x.dtype).tiny)
