"""Truncated rollouts: members against a plain loop, the estimate against autograd whose graph is cut between windows."""

import math

import pytest
import torch

from common import es
from common.encoder import EMBEDDING
from common.gradient import sequence_gradients
from common.laws import grouped_cosine, rank_one_dimensions
from common.projection import orthonormal_rows, project
from common.reservoir import draw_reservoir
from common.rollout import Rollout
from common.windows import cut, group_weights, member_errors, weighted_noise

N, R, T, B, M = 24, 3, 6, 5, 4


class Network:
    """A small network in float64, and its truncated gradient by autograd."""

    def __init__(self, size: int = N, in_degree: int = 3):
        generator = torch.Generator().manual_seed(0)
        self.rollout = Rollout(draw_reservoir(size, in_degree, seed=0), 0.7, 1.0, dtype=torch.float64)
        draw = lambda *shape: torch.randn(*shape, generator=generator, dtype=torch.float64)  # noqa: E731
        self.u, self.v = draw(size, R) * 0.3, draw(size, R) * 0.3
        self.decoder = draw(EMBEDDING, size) * 0.2, draw(EMBEDDING)
        self.z, self.target = draw(T, EMBEDDING, B), draw(T, EMBEDDING, B)
        self.size = size

    def windows(self, length: int):
        return cut(self.rollout, self.u, self.v, self.rollout.drive(self.z), self.target, length)

    def run(self, v, h, z, target):
        """Plain loop from the states h (N, B): the mean squared error of the steps given, summed over sequences, and the last state."""
        reservoir, leak, error = self.rollout.reservoir, self.rollout.leak, 0
        for z_EB, target_EB in zip(z, target, strict=True):
            x = reservoir.dense() @ h + self.u @ (v.T @ h) + reservoir.input_NE @ z_EB + reservoir.bias_N[:, None]
            h = (1 - leak) * h + leak * x.tanh()
            error = error + (self.decoder[0] @ h + self.decoder[1][:, None] - target_EB).square().mean(dim=0)
        return error, h

    def truncated_gradients(self, length: int) -> torch.Tensor:
        """dL/dV of each sequence's loss (mean over T), (B, N, r): the state that enters a window is a constant."""
        h, rows = torch.zeros(self.size, B, dtype=torch.float64), torch.zeros(B, self.size, R, dtype=torch.float64)
        for start in range(0, T, length):
            v = self.v.clone().requires_grad_()
            error_B, after = self.run(v, h, self.z[start : start + length], self.target[start : start + length])
            rows += torch.stack([torch.autograd.grad(error, v, retain_graph=True)[0] for error in error_B]) / T
            h = after.detach()
        return rows


@pytest.mark.parametrize("in_degree", [3, 20], ids=["gather", "dense"])
@pytest.mark.parametrize("length", [1, 2, 6])
def test_a_member_is_a_plain_loop_from_the_state_at_its_window(length, in_degree):
    net, sigma = Network(in_degree=in_degree), 0.3  # far from small: no first-order argument could hide here
    noise = es.RankOneNoise(1, N, R, "v")
    adapter = noise.adapter(net.u, net.v, 1, torch.arange(M), sigma)
    got = member_errors(net.rollout, adapter, net.windows(length), *net.decoder)
    assert got.shape == (length, M, T // length * B) and got.dtype == torch.float64
    _, _, c, d = (x.double() for x in noise.draw(1, torch.arange(M)))
    h = torch.zeros(N, B, dtype=torch.float64)
    for window, start in enumerate(range(0, T, length)):
        for member in range(M):
            v, state = net.v + sigma * torch.outer(c[member], d[member]), h
            for step in range(length):
                t = slice(start + step, start + step + 1)
                expected, state = net.run(v, state, net.z[t], net.target[t])
                assert torch.allclose(got[step, member].view(-1, B)[window], expected * EMBEDDING, rtol=1e-9)
        _, h = net.run(net.v, h, net.z[start : start + length], net.target[start : start + length])


def test_windows_of_some_sequences_are_those_of_the_whole_tile():
    net = Network()
    whole, some = net.windows(2), net.windows(2).of_sequences(B, 1, 3)
    for of_whole, of_some in zip(vars(whole).values(), vars(some).values(), strict=True):
        assert torch.equal(of_some, of_whole.unflatten(-1, (-1, B))[..., 1:4].flatten(-2))


@pytest.mark.parametrize("length", [1, 2, 6])
def test_the_gradient_that_ends_with_its_window_is_that_of_autograd(length):
    net = Network()
    expected = net.truncated_gradients(length)
    got = sequence_gradients(net.rollout, net.u, net.v, net.decoder, net.z, net.target, "v", window=length)
    for i, row in enumerate(torch.eye(B, dtype=torch.float64)):
        assert torch.allclose(got.weighted_sum(row).view(N, R), expected[i], rtol=1e-9, atol=1e-14)
    if length == T:
        whole = sequence_gradients(net.rollout, net.u, net.v, net.decoder, net.z, net.target, "v")
        assert torch.equal(got.q_BMr, whole.q_BMr)


def estimate(net: Network, length: int, iteration: int, members: int, sigma: float = 1e-4) -> torch.Tensor:
    """One raw estimate of the mean sequence's gradient, float64 (N, r)."""
    noise, windows, ids = es.RankOneNoise(3, net.size, R, "v"), net.windows(length), torch.arange(members)
    error = member_errors(net.rollout, noise.adapter(net.u, net.v, iteration, ids, sigma), windows, *net.decoder)
    weight, counts = group_weights(error.sum(dim=0) / (T * EMBEDDING), standardise=False)
    assert int(counts.sum()) == counts.numel() - (B if length == 1 else 0)  # of a first step from zero V has no part
    _, _, c, d = noise.draw(iteration, ids)
    return weighted_noise(windows, weight / (members * sigma * B), c, d).double()


@pytest.mark.parametrize("length", [1, 2, 6])
def test_the_estimate_is_unbiased(length):
    """The mean of many estimates on the same sequences comes as near to autograd's gradient as their spread allows."""
    net, times = Network(size=150, in_degree=10), 300
    expected = net.truncated_gradients(length).mean(dim=0)
    estimates = torch.stack([estimate(net, length, i, M) for i in range(times)])
    error = (estimates - expected).square().sum(dim=(1, 2)).mean()
    bias = (estimates.mean(dim=0) - expected).square().sum()
    assert bias < 2 * error / times + 1e-6 * expected.square().sum()
    assert error / times < 0.1 * expected.square().sum()  # so that another gradient would not pass


def test_one_estimate_is_as_noisy_as_the_law_says():
    """One sequence, one window, S = T − 1 states, for the first is zero. M members held against each other are a sample covariance of
    loss and noise, whose variance is exact: E|ĝ − g|² = |g|² ((S + 2) r − 1 − (2r − 2)/M) / (M − 1)."""
    net = Network(size=150, in_degree=10)
    net.z, net.target = net.z[:, :, :1], net.target[:, :, :1]
    h, v = torch.zeros(150, 1, dtype=torch.float64), net.v.clone().requires_grad_()
    expected = torch.autograd.grad(net.run(v, h, net.z, net.target)[0].sum() / T, v)[0]
    errors = torch.stack([(estimate(net, T, i, M) * B - expected).square().sum() for i in range(3000)])
    predicted = expected.square().sum() * (rank_one_dimensions(T - 1, R) - 1 - (2 * R - 2) / M) / (M - 1)
    spread = float(errors.std() / len(errors) ** 0.5 / predicted)
    assert spread < 0.04  # so that full Gaussian noise, at 16 where this is 19, would not pass
    assert float(errors.mean() / predicted) == pytest.approx(1, abs=3 * spread)


def test_members_are_held_against_the_others_of_their_group():
    generator = torch.Generator().manual_seed(0)
    loss = torch.rand(M, 3, generator=generator, dtype=torch.float64)
    raw, counts = group_weights(loss, standardise=False)
    for member in range(M):
        others = [i for i in range(M) if i != member]
        assert torch.allclose(raw[member], loss[member] - loss[others].mean(dim=0))
    assert counts.all()
    standardised, _ = group_weights(loss * torch.tensor([1.0, 100.0, 1e-6]))
    assert torch.allclose(standardised, group_weights(loss)[0], rtol=1e-6)


def test_a_group_with_a_failed_member_or_without_differences_does_not_count():
    loss = torch.rand(M, 4, generator=torch.Generator().manual_seed(0), dtype=torch.float64)
    expected, _ = group_weights(loss)
    loss[1, 0], loss[2, 1], loss[:, 2] = math.nan, math.inf, 0.5
    weight, counts = group_weights(loss)
    assert counts.tolist() == [False, False, False, True]
    assert not weight[:, :3].any() and torch.equal(weight[:, 3], expected[:, 3])
    net = Network()
    windows = net.windows(T)
    windows.state_LNG[2, 5, 0] = math.nan  # of a group that does not count
    _, _, c, d = es.RankOneNoise(1, N, R, "v").draw(1, torch.arange(M))
    weight = torch.rand(M, B, dtype=torch.float64)
    weight[:, 0] = 0
    assert weighted_noise(windows, weight, c, d).isfinite().all()


def test_orthonormal_rows_span_the_states():
    states = torch.randn(4, 3, N, generator=torch.Generator().manual_seed(0), dtype=torch.float64)
    vectors = torch.randn(4, N, dtype=torch.float64)
    basis = orthonormal_rows(states)
    assert torch.allclose(basis @ basis.mT, torch.eye(3, dtype=torch.float64), atol=1e-7)
    assert torch.allclose(
        torch.einsum("pmn,pm->pn", basis, torch.einsum("pmn,pn->pm", basis, vectors)), project(states, vectors)
    )
    states[1], states[2, 0, 0] = 0, math.nan
    basis = orthonormal_rows(states)
    assert not basis[1].any() and basis[2].isnan().any() and basis[[0, 3]].isfinite().all()


def test_the_law_of_groups_meets_that_of_pairs():
    """With own data for every group of two it is the law of one pair a sequence, but for terms that the latter leaves out."""
    assert grouped_cosine(500, 2, 608, 100.0) == pytest.approx(math.sqrt(500 / (500 + 100 * 608)), rel=0.01)
    assert grouped_cosine(1, 10**9, 608, 1.0) == pytest.approx(1)
    assert grouped_cosine(32, 10**9, 608, 100.0) == pytest.approx(math.sqrt(32 / (32 + 99)))
