"""Noise on the adapter's activities: probes against a plain loop, estimates against autograd, their spread against the laws."""

import math

import pytest
import torch
from test_windows import B, N, Network, R, T

from common.activity_noise import (
    KINDS,
    ActivityNoise,
    ActivitySigns,
    activity_gradients,
    credited,
    full_set,
    hadamard_rows,
    probed_readout,
)
from common.encoder import EMBEDDING
from common.windows import Windows, member_errors

# --- The signs -------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(("members", "dimensions"), [(1, 1), (2, 2), (8, 8), (64, 64), (3, 32), (5, 6), (12, 7)])
def test_rows_of_a_hadamard_matrix(members, dimensions):
    rows = hadamard_rows(members, dimensions)
    assert rows.shape == (members, dimensions) and bool((rows.abs() == 1).all())
    order = 1 << (max(members, dimensions) - 1).bit_length()
    whole = hadamard_rows(order, order)
    assert torch.equal(whole @ whole.T, order * torch.eye(order))
    assert torch.equal(rows, whole[:members, :dimensions])


def test_few_rows_of_many_columns_are_made_without_the_whole_matrix():
    assert hadamard_rows(4, 2**21).shape == (4, 2**21)  # the whole matrix has 4 · 10¹² entries


@pytest.mark.parametrize("kind", KINDS)
def test_signs_are_fair_and_belong_to_their_window(kind):
    noise, ids = ActivitySigns(seed=3, length=2, rank=3, members=5, kind=kind), torch.arange(4000)
    sign = noise.draw(7, ids)
    assert sign.shape == (2, 3, 5, 4000) and sign.dtype == torch.float32
    assert torch.equal(sign[..., 40:43], noise.draw(7, torch.tensor([40, 41, 42])))  # whoever draws them
    assert not torch.equal(sign, noise.draw(8, ids))
    flat_DMG = sign.flatten(0, 1)
    # Mean 0 and E ξξᵀ = 1, for every probe, within four standard errors.
    assert float(flat_DMG.mean(dim=2).abs().max()) < 4.5 / math.sqrt(4000)
    covariance = torch.einsum("img,jmg->mij", flat_DMG, flat_DMG) / 4000
    assert float((covariance - torch.eye(6)).abs().max()) < 4.5 / math.sqrt(4000)


@pytest.mark.parametrize(
    ("kind", "members", "length", "rank", "expected"),
    [
        ("orthogonal", 16, 4, 4, 1.0),  # as many probes as dimensions: nothing is left to chance
        ("orthogonal", 4, 4, 4, 4.0),  # D / M
        ("orthogonal", 32, 1, 24, 1.0),  # more than dimensions: no less than 1
        ("orthogonal", 6, 3, 4, None),  # no powers of two: neither D / M nor 1
        ("independent", 4, 4, 4, 1 + 15 / 4),
        ("independent", 16, 4, 4, 1 + 15 / 16),
    ],
)
def test_inflation_is_what_a_linear_loss_shows(kind, members, length, rank, expected):
    """E|q̂|²/|q|² of losses q·ξ with q in all directions, over many draws of signs."""
    noise, draws = ActivitySigns(seed=0, length=length, rank=rank, members=members, kind=kind), 20_000
    expected = expected or noise.inflation()
    assert noise.inflation() == pytest.approx(expected)
    sign_LrMG = noise.draw(1, torch.arange(draws))
    q_Lr = torch.ones(length, rank)
    # One loss at the end of the window, that knows all of the noise before it.
    loss_MG = torch.einsum("lr,lrmg->mg", q_Lr, sign_LrMG)
    excess_LMG = torch.cat((torch.zeros(length - 1, *loss_MG.shape), loss_MG[None]))
    got_LrG = activity_gradients(sign_LrMG, credited(excess_LMG, 1.0), sigma=1.0)
    assert float(got_LrG.square().sum() / draws / q_Lr.square().sum()) == pytest.approx(expected, rel=0.02)
    error = (got_LrG.mean(dim=2) - q_Lr).norm() / q_Lr.norm()
    assert float(error) < 4 * math.sqrt((expected - 1) / draws) + 1e-5


def test_credit_is_a_discounted_sum_over_the_rest_of_the_window():
    excess_LMG = torch.randn(5, 2, 3, generator=torch.Generator().manual_seed(0), dtype=torch.float64)
    got = credited(excess_LMG, 0.7)
    for step in range(5):
        expected = sum(0.7 ** (later - step) * excess_LMG[later] for later in range(step, 5))
        assert torch.allclose(got[step], expected, rtol=1e-12)
    assert torch.equal(credited(excess_LMG, 0.0), excess_LMG)


# --- Probes ----------------------------------------------------------------------------------------------------------


def kicks(net: Network, length: int, members: int, sigma: float, seed: int = 0):
    """(windows, ξ, σ ξ with a first member that has none), float64."""
    windows = net.windows(length)
    ids = torch.arange(windows.state_LNG.shape[2])
    sign = ActivitySigns(seed, length, R, members).draw(1, ids).double()
    return windows, sign, torch.cat((torch.zeros_like(sign[:, :, :1]), sigma * sign), dim=2)


@pytest.mark.parametrize("in_degree", [3, 20], ids=["gather", "dense"])
@pytest.mark.parametrize("length", [1, 2, 6])
def test_a_probe_is_a_plain_loop(length, in_degree):
    net = Network(in_degree=in_degree)
    windows, _, kick = kicks(net, length, 3, 0.3)  # far from small: no first-order argument could hide here
    got = member_errors(net.rollout, ActivityNoise(net.u, net.v, kick), windows, *net.decoder)
    reservoir, leak = net.rollout.reservoir, net.rollout.leak
    h = torch.zeros(N, B, dtype=torch.float64)
    for window, start in enumerate(range(0, T, length)):
        own = slice(window * B, (window + 1) * B)
        for member in range(4):
            state = h
            for step in range(length):
                p = net.v.T @ state + kick[step, :, member, own]
                x = reservoir.dense() @ state + net.u @ p + reservoir.bias_N[:, None]
                x = x + reservoir.input_NE @ net.z[start + step]
                state = (1 - leak) * state + leak * x.tanh()
                error = net.decoder[0] @ state + net.decoder[1][:, None] - net.target[start + step]
                assert torch.allclose(got[step, member, own], error.square().sum(dim=0), rtol=1e-9)
        _, h = net.run(net.v, h, net.z[start : start + length], net.target[start : start + length])


@pytest.mark.parametrize("length", [1, 2, 6])
def test_a_full_set_of_orthogonal_probes_has_the_gradient(length):
    """With as many probes as dimensions a power of two, Σ_t h q̂ᵀ is autograd's truncated gradient, but for O(σ): no expectation needed."""
    net, rank = Network(), 4
    generator = torch.Generator().manual_seed(1)
    net.u, net.v = (torch.randn(N, rank, generator=generator, dtype=torch.float64) * 0.3 for _ in range(2))
    dimensions = length * rank
    members = 1 << (dimensions - 1).bit_length()
    h, expected = torch.zeros(N, B, dtype=torch.float64), torch.zeros(N, rank, dtype=torch.float64)
    for start in range(0, T, length):
        v = net.v.clone().requires_grad_()
        error_B, after = net.run(v, h, net.z[start : start + length], net.target[start : start + length])
        expected += torch.autograd.grad(error_B.sum(), v)[0]
        h = after.detach()
    windows = net.windows(length)
    ids = torch.arange(windows.state_LNG.shape[2])
    sign = ActivitySigns(0, length, rank, members).draw(1, ids).double()
    kick = torch.cat((torch.zeros_like(sign[:, :, :1]), 1e-5 * sign), dim=2)
    error = member_errors(net.rollout, ActivityNoise(net.u, net.v, kick), windows, *net.decoder) / EMBEDDING
    q = activity_gradients(sign, credited(error[:, 1:] - error[:, :1], 1.0), 1e-5)
    got = torch.einsum("lng,lrg->nr", windows.state_LNG, q)
    assert float((got - expected).norm() / expected.norm()) < 1e-3


@pytest.mark.parametrize("discount", [1.0, 0.5])
def test_few_probes_have_it_in_expectation(discount):
    """The mean of many draws comes as near to autograd's q as their spread allows; σ is not small, for the even part of the loss cancels."""
    net, length, members, times, sigma = Network(), 3, 2, 3000, 1e-3
    generator = torch.Generator().manual_seed(2)
    h = torch.randn(N, 1, generator=generator, dtype=torch.float64) * 0.3
    net.z, net.target = net.z[:length, :, :1], net.target[:length, :, :1]
    zeros = [torch.zeros(R, 1, dtype=torch.float64, requires_grad=True) for _ in range(length)]
    reservoir, leak, state, errors = net.rollout.reservoir, net.rollout.leak, h, []
    for step in range(length):
        x = reservoir.dense() @ state + net.u @ (net.v.T @ state + zeros[step]) + reservoir.bias_N[:, None]
        state = (1 - leak) * state + leak * (x + reservoir.input_NE @ net.z[step]).tanh()
        errors.append((net.decoder[0] @ state + net.decoder[1][:, None] - net.target[step]).square().sum())
    expected = []
    for step in range(length):
        later = sum(discount ** (s - step) * errors[s] for s in range(step, length))
        expected.append(torch.autograd.grad(later, zeros[step], retain_graph=True)[0][:, 0])
    expected_Lr = torch.stack(expected)

    drive = net.rollout.drive(net.z)
    first = reservoir.dense() @ h + net.u @ (net.v.T @ h) + drive[0]
    # What the unperturbed V would have made of later steps is nothing to a member.
    columns = {
        "state_LNG": h.expand(length, N, 1),
        "inner_LNG": first.expand(length, N, 1),
        "drive_LNG": drive,
        "target_LEG": net.target,
    }
    windows = Windows(**{name: x.repeat(1, 1, times) for name, x in columns.items()})
    sign = ActivitySigns(0, length, R, members).draw(1, torch.arange(times)).double()
    kick = torch.cat((torch.zeros_like(sign[:, :, :1]), sigma * sign), dim=2)
    error = member_errors(net.rollout, ActivityNoise(net.u, net.v, kick), windows, *net.decoder)
    got_LrG = activity_gradients(sign, credited(error[:, 1:] - error[:, :1], discount), sigma)
    spread = float((got_LrG - expected_Lr[..., None]).square().sum(dim=(0, 1)).mean())
    bias = float((got_LrG.mean(dim=2) - expected_Lr).square().sum())
    assert bias < 2 * spread / times
    assert spread / times < 0.01 * float(expected_Lr.square().sum())  # so that another gradient would not pass


# --- The readout -----------------------------------------------------------------------------------------------------


def test_a_full_set_of_probes_tells_the_readout():
    weight_EN = torch.randn(EMBEDDING, 50, generator=torch.Generator().manual_seed(0))
    assert [full_set(n) for n in (1, 2, 3, 50, 64)] == [1, 2, 4, 64, 64]
    got = probed_readout(3, 1, weight_EN, full_set(50))
    assert torch.allclose(got, weight_EN, rtol=0, atol=1e-5)


def test_few_probes_tell_the_readout_on_average():
    """Unbiased, and E|B − Wout|² = (N/M − 1) |Wout|² for the first M rows of a full matrix."""
    weight_EN, draws = torch.randn(EMBEDDING, 64, generator=torch.Generator().manual_seed(0)), 2000
    mean_EN, spread = torch.zeros_like(weight_EN), 0.0
    for iteration in range(draws):
        error_EN = probed_readout(3, iteration, weight_EN, 8) - weight_EN
        mean_EN += error_EN / draws
        spread += float(error_EN.square().sum() / weight_EN.square().sum()) / draws
    assert spread == pytest.approx(64 / 8 - 1, rel=0.02)
    assert float(mean_EN.norm() / weight_EN.norm()) == pytest.approx(math.sqrt(spread / draws), rel=0.2)
