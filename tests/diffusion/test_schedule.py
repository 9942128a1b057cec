"""The schedule against float64 loops over the formulas as they are printed."""

from __future__ import annotations

import math

import pytest
import torch

from diffsiam.diffusion.schedule import TIMESTEPS, Schedule

STEPS = [1, 2, 3, 10, 64, 137, 500, 936, 999, 1000]


def literal_abar() -> list[float]:
    """abar_0 .. abar_T, one product at a time."""
    values = [1.0]
    for t in range(1, 1001):
        beta = 1e-4 + (0.02 - 1e-4) * (t - 1) / 999
        values.append(values[-1] * (1 - beta))
    return values


ABAR = literal_abar()


def snr(t: int) -> float:
    return ABAR[t] / (1 - ABAR[t])


@pytest.fixture(scope="module")
def table() -> Schedule:
    return Schedule()


def images(seed: int) -> torch.Tensor:
    return torch.rand(len(STEPS), 3, 4, 4, generator=torch.Generator().manual_seed(seed)) * 2 - 1


def noises(seed: int) -> torch.Tensor:
    return torch.randn(len(STEPS), 3, 4, 4, generator=torch.Generator().manual_seed(seed))


def test_abar_is_the_running_product_from_one_at_step_zero_and_small_at_the_last(table: Schedule) -> None:
    assert TIMESTEPS == 1000
    assert table.abar.tolist() == pytest.approx(ABAR, rel=1e-6)
    assert table.abar[0] == 1
    assert table.abar[1000] == pytest.approx(4.04e-5, rel=1e-2)  # the figure of Ho et al.'s schedule


@pytest.mark.parametrize("t", STEPS)
def test_every_weight_of_a_step_is_its_literal_formula(table: Schedule, t: int) -> None:
    step = torch.tensor([t])
    alpha = ABAR[t] / ABAR[t - 1]
    expected = {
        table.signal: math.sqrt(ABAR[t]),
        table.sigma: math.sqrt(1 - ABAR[t]),
        table.guidance: (1 - ABAR[t - 1]) / math.sqrt(ABAR[t - 1]),
        table.weight: snr(t) * snr(t) ** 0.1 / (1 + snr(t)),
        table.noise_shift: -math.sqrt(alpha) * (1 - ABAR[t - 1]) / math.sqrt(1 - ABAR[t]),
        table.noise_weight: snr(t) ** 0.1 / (1 + snr(t)),
    }
    for method, value in expected.items():
        got = method(step)
        assert got.shape == (1, 1, 1, 1)
        assert got.dtype == torch.float32
        assert got.item() == pytest.approx(value, rel=2e-6), method.__name__
    assert table.half_log_snr(t) == pytest.approx(0.5 * math.log(snr(t)), abs=1e-3)  # of float32 levels


def test_the_first_step_is_not_compensated_and_the_last_most(table: Schedule) -> None:
    guidance = table.guidance(torch.arange(1, 1001)).flatten()
    assert guidance[0] == 0  # abar_0 = 1
    assert (guidance.diff() > 0).all()


def test_pdaes_own_form_of_the_loss_weight_is_the_same(table: Schedule) -> None:
    """PDAE Eq. 12 writes (1 / (1 + SNR))^(1 - gamma) (SNR / (1 + SNR))^gamma, gamma = 0.1, on the noise."""
    for t in STEPS:
        pdae = (1 / (1 + snr(t))) ** 0.9 * (snr(t) / (1 + snr(t))) ** 0.1
        assert table.noise_weight(torch.tensor([t])).item() == pytest.approx(pdae, rel=2e-6)


def test_the_shift_of_the_noise_is_pdaes_posterior_mean_shift() -> None:
    """PDAE adds the posterior variance times g to the mean of q(x_{t-1} | x_t, x0) (Eq. 3.3). In x0 that is w_t g."""
    for t in STEPS[1:]:
        alpha, beta = ABAR[t] / ABAR[t - 1], 1 - ABAR[t] / ABAR[t - 1]
        variance = (1 - ABAR[t - 1]) / (1 - ABAR[t]) * beta
        per_x0 = math.sqrt(ABAR[t - 1]) * beta / (1 - ABAR[t])
        per_noise = -math.sqrt(1 - ABAR[t]) / math.sqrt(ABAR[t]) * per_x0
        step = torch.tensor([t])
        assert Schedule().guidance(step).item() == pytest.approx(variance / per_x0, rel=1e-5)
        assert Schedule().noise_shift(step).item() == pytest.approx(variance / per_noise, rel=1e-5)
        assert per_noise == pytest.approx(-beta / math.sqrt(alpha) / math.sqrt(1 - ABAR[t]), rel=1e-9)


def test_q_sample_is_equation_3_2(table: Schedule) -> None:
    x0, noise, t = images(0), noises(1), torch.tensor(STEPS)
    x = table.q_sample(x0, t, noise)
    for i, step in enumerate(STEPS):
        literal = math.sqrt(ABAR[step]) * x0[i].double() + math.sqrt(1 - ABAR[step]) * noise[i].double()
        assert torch.allclose(x[i].double(), literal, atol=1e-6)


def test_step_zero_of_q_sample_is_the_clean_image(table: Schedule) -> None:
    x0 = images(0)
    assert torch.equal(table.q_sample(x0, torch.zeros(len(x0), dtype=torch.int64), noises(1)), x0)


def test_x0_and_noise_are_recovered_from_a_noisy_image(table: Schedule) -> None:
    x0, noise, t = images(0), noises(1), torch.tensor(STEPS)
    x = table.q_sample(x0, t, noise)
    # the image is divided by sqrt(abar), the noise by sqrt(1 - abar): rounding grows by as much
    back = table.x0_from_noise(x, t, noise) - x0
    assert (back.abs().amax(dim=(1, 2, 3)) <= 1e-6 / table.signal(t).flatten()).all()
    back = table.noise_from_x0(x, t, x0) - noise
    assert (back.abs().amax(dim=(1, 2, 3)) <= 1e-6 / table.sigma(t).flatten()).all()
    assert torch.allclose(table.noise_from_x0(x, t, table.x0_from_noise(x, t, x0)), x0, atol=1e-4)


def test_both_forms_of_equation_3_11_give_the_same_number_when_noise_level_and_step_agree(table: Schedule) -> None:
    x0, noise, predicted, g, t = images(0), noises(1), noises(2), noises(3), torch.tensor(STEPS)
    x0_hat = table.x0_from_noise(table.q_sample(x0, t, noise), t, predicted)
    in_x0 = table.weight(t) * (x0 - (x0_hat + table.guidance(t) * g)).square()
    in_noise = table.noise_weight(t) * (noise - (predicted + table.noise_shift(t) * g)).square()
    assert torch.allclose(in_x0.mean(dim=(1, 2, 3)), in_noise.mean(dim=(1, 2, 3)), rtol=1e-3)


def test_nothing_of_the_schedule_is_saved_with_weights_and_tables_move_with_the_module(table: Schedule) -> None:
    assert table.state_dict() == {}
    assert {name for name, _ in table.named_buffers()} >= {"abar"}
