"""The noise schedule and every weight that is computed from it (Eq. 3.2, 3.11; PDAE's weights).

Every ``t`` here is a paper step: 1..T, with ``abar_0 = 1``. Networks are fed the index ``t - 1`` (0..T-1); only
`diffsiam.models.unet` does that shift.
"""

from __future__ import annotations

import math

import torch
from torch import Tensor, nn

TIMESTEPS = 1000
BETA_START, BETA_END = 1e-4, 0.02
PDAE_GAMMA = 0.1  # PDAE's exponent of the signal-to-noise ratio in the loss weight


class Schedule(nn.Module):
    """Linear beta schedule of Ho et al.; tables are computed in float64 and kept in float32, T + 1 entries each.

    Methods take ``t`` as an int64 tensor of shape (N,) and return float32 of shape (N, 1, 1, 1).
    """

    abar: Tensor  # \bar\alpha_t
    _signal: Tensor
    _sigma: Tensor
    _guidance: Tensor
    _weight: Tensor
    _noise_shift: Tensor
    _noise_weight: Tensor

    def __init__(self) -> None:
        super().__init__()
        beta = torch.zeros(TIMESTEPS + 1, dtype=torch.float64, device="cpu")
        beta[1:] = torch.linspace(BETA_START, BETA_END, TIMESTEPS, dtype=torch.float64, device="cpu")
        alpha = 1 - beta
        abar = alpha.cumprod(0)
        before = torch.cat([abar[:1], abar[:-1]])  # \bar\alpha_{t-1}; entry 0 is never asked for
        snr = abar / (1 - abar).clamp_min(torch.finfo(torch.float64).tiny)
        tables = {
            "abar": abar,
            "_signal": abar.sqrt(),
            "_sigma": (1 - abar).sqrt(),
            "_guidance": (1 - before) / before.sqrt(),
            "_weight": snr * snr**PDAE_GAMMA / (1 + snr),
            "_noise_shift": -alpha.sqrt() * (1 - before) / (1 - abar).sqrt(),
            "_noise_weight": snr**PDAE_GAMMA / (1 + snr),
        }
        for name, table in tables.items():
            self.register_buffer(name, table.float(), persistent=False)
        self._on_host = self.abar.tolist()

    def half_log_snr(self, t: int) -> float:
        """log(SNR_t) / 2, for ``t`` in 1..T; a number of the host's, which no device is asked for."""
        return 0.5 * math.log(self._on_host[t] / (1 - self._on_host[t]))

    def signal(self, t: Tensor) -> Tensor:
        r"""sqrt(\bar\alpha_t), for ``t`` in 0..T."""
        return self._signal[t][:, None, None, None]

    def sigma(self, t: Tensor) -> Tensor:
        r"""sqrt(1 - \bar\alpha_t), for ``t`` in 0..T."""
        return self._sigma[t][:, None, None, None]

    def guidance(self, t: Tensor) -> Tensor:
        r"""w_t = (1 - \bar\alpha_{t-1}) / sqrt(\bar\alpha_{t-1}), the compensation strength of Eq. 3.11."""
        return self._guidance[t][:, None, None, None]

    def weight(self, t: Tensor) -> Tensor:
        r"""\lambda_t = SNR_t * SNR_t**0.1 / (1 + SNR_t), PDAE's weight moved from noise space to x0 space."""
        return self._weight[t][:, None, None, None]

    def noise_shift(self, t: Tensor) -> Tensor:
        r"""-sqrt(\alpha_t) (1 - \bar\alpha_{t-1}) / sqrt(1 - \bar\alpha_t): what g_phi adds to the noise where it adds
        w_t to x0 (PDAE's posterior-mean shift)."""
        return self._noise_shift[t][:, None, None, None]

    def noise_weight(self, t: Tensor) -> Tensor:
        """SNR_t**0.1 / (1 + SNR_t): the loss weight in noise space."""
        return self._noise_weight[t][:, None, None, None]

    def q_sample(self, x0: Tensor, t: Tensor, noise: Tensor) -> Tensor:
        r"""Sample q(x_t | x_0) (Eq. 3.2) with given ``noise``; images (N, C, H, W) in [-1, 1]."""
        return self.signal(t) * x0 + self.sigma(t) * noise

    def x0_from_noise(self, x_t: Tensor, t: Tensor, noise: Tensor) -> Tensor:
        r"""x0 = (x_t - sqrt(1 - \bar\alpha_t) eps) / sqrt(\bar\alpha_t), at the noise level ``t`` of ``x_t``."""
        return (x_t - self.sigma(t) * noise) / self.signal(t)

    def noise_from_x0(self, x_t: Tensor, t: Tensor, x0: Tensor) -> Tensor:
        """The inverse of `x0_from_noise`, for ``t`` in 1..T."""
        return (x_t - self.signal(t) * x0) / self.sigma(t)
