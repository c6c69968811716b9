"""A leak that learns: α of each unit in every loop that has one, against plain float64; and the step of its logit."""

import math

import numpy as np
import pytest
import torch
from test_windows import B, N, Network, T

from common import figures, run_figures
from common.encoder import EMBEDDING
from common.errors import BadInput
from common.gradient import sequence_gradients
from common.leak import LeakNoise, TrainedLeak
from common.reservoir import rollout_reference
from common.rollout import Rollout, SharedAdapter
from common.windows import cut, member_errors

SHAPES = {"scalar": (1, 1), "per-unit": (N, 1)}


class Leaky(Network):
    """The network of test_windows with leaks of its own."""

    def __init__(self, kind: str):
        super().__init__()
        self.leak = TrainedLeak(self.rollout, kind, 0.5, 0.1)
        generator = torch.Generator().manual_seed(1)
        self.leak.step(torch.randn(SHAPES[kind], generator=generator), 0.5)
        self.alpha = self.leak.alpha_X1

    def states(self, u, v, alpha) -> torch.Tensor:
        """(T, B, N), by the reference."""
        return rollout_reference(self.rollout.reservoir, u, v, alpha.T, self.z.transpose(1, 2))


@pytest.mark.parametrize("kind", SHAPES)
def test_every_loop_has_the_leak_of_each_unit(kind):
    """All states, windows, and members of windows."""
    net = Leaky(kind)
    assert net.alpha.shape == SHAPES[kind] and net.rollout.leak is net.alpha
    if kind == "per-unit":
        assert float(net.alpha.std()) > 0.05
    expected = net.states(net.u, net.v, net.alpha)
    drive = net.rollout.drive(net.z)
    assert torch.allclose(net.rollout.states(net.u, net.v, drive).permute(1, 2, 0), expected, rtol=1e-10)
    windows = cut(net.rollout, net.u, net.v, drive, net.target, 1)
    assert torch.allclose(windows.state_LNG[0].unflatten(1, (T, B))[:, 1:].permute(1, 2, 0), expected[:-1], rtol=1e-10)

    class Nothing:
        u_Nr = net.u

        def first_kick(self, h_NG):
            return torch.zeros(net.u.shape[1], 2, h_NG.shape[1], dtype=torch.float64)

    got = member_errors(net.rollout, Nothing(), windows, *net.decoder)
    weight, bias = net.decoder
    error = (expected @ weight.T + bias - net.target.transpose(1, 2)).square().sum(dim=2)
    for member in range(2):
        assert torch.allclose(got[0, member].view(T, B), error, rtol=1e-9)


@pytest.mark.parametrize("kind", SHAPES)
def test_the_gradient_of_v_goes_through_the_leak_of_each_unit(kind):
    net = Leaky(kind)
    v = net.v.clone().requires_grad_()
    weight, bias = net.decoder
    loss = (net.states(net.u, v, net.alpha) @ weight.T + bias - net.target.transpose(1, 2)).square().sum()
    expected = torch.autograd.grad(loss / (T * EMBEDDING), v)[0]
    got = sequence_gradients(net.rollout, net.u, net.v, net.decoder, net.z, net.target, "v")
    assert torch.allclose(got.weighted_sum(torch.ones(B, dtype=torch.float64)).view_as(v), expected, rtol=1e-9)


@pytest.mark.parametrize("kind", SHAPES)
def test_members_have_leaks_of_their_own(kind):
    """Pairs with α of a ± σ ξ, each held against the reference; a guard that the fastest unit would leave first is not missed."""
    net, pairs = Leaky(kind), 3
    noise = LeakNoise(7, len(net.alpha), 0.5)
    leak_XPS1 = noise.members(net.leak.logit_X1, 4, torch.arange(pairs)).double()
    assert leak_XPS1.shape == (len(net.alpha), pairs, 2, 1)
    assert torch.equal(leak_XPS1[:, 1:2], noise.members(net.leak.logit_X1, 4, torch.tensor([1])).double())
    adapter, columns = SharedAdapter(net.u, net.v), (pairs, 2, B)
    drive, target = (x[:, :, None, None] for x in (net.rollout.drive(net.z), net.target))
    got = net.rollout.errors(adapter, drive, target, *net.decoder, columns, leak_XPS1=leak_XPS1)
    xi = noise.draw(4, torch.arange(pairs)).double()
    weight, bias = net.decoder
    for pair in range(pairs):
        for place, sign in enumerate((1, -1)):
            alpha = torch.sigmoid(net.leak.logit_X1.double() + sign * 0.5 * xi[pair, :, None])
            expected = (net.states(net.u, net.v, alpha) @ weight.T + bias - net.target.transpose(1, 2)).square().sum(2)
            assert torch.allclose(got.error_TC.view(T, *columns)[:, pair, place], expected, rtol=1e-5)


def test_noise_of_the_leak_estimates_the_gradient():
    """Of a linear loss g·a, from all pairs: g up to what the noise's directions have in common."""
    noise, pairs, slope = LeakNoise(7, 5, 0.1), 20_000, torch.tensor([1.0, -2.0, 0.5, 0.0, 3.0])
    difference_K = 2 * 0.1 * (noise.draw(1, torch.arange(pairs)) @ slope)
    got = noise.estimate(difference_K / (2 * pairs), 1)
    assert got.shape == (5, 1)
    assert float((got.flatten() - slope).norm() / slope.norm()) < 3 * (5 / pairs) ** 0.5


def test_a_step_is_adam_on_the_logit():
    """By hand: Adam's first step is the rate, against the sign of the gradient, which α (1 − α) does not change."""
    rollout = Rollout(Network().rollout.reservoir, 0.3, 1.0)
    leak = TrainedLeak(rollout, "per-unit", 0.3, 1.0)
    gradient = torch.linspace(-1, 1, N)[:, None]
    leak.step(gradient, 0.2)
    expected = 1 / (1 + torch.exp(-(math.log(0.3 / 0.7) - 0.2 * gradient.sign())))
    assert torch.allclose(leak.alpha_X1, expected, atol=1e-6)
    assert rollout.leak is leak.alpha_X1


def test_no_step_takes_the_leak_out_of_its_bounds():
    for start in (0.001, 0.5, 1.0):
        rollout = Rollout(Network().rollout.reservoir, start, 1.0)
        leak = TrainedLeak(rollout, "scalar", start, 1.0)
        assert float(leak.alpha_X1) == pytest.approx(min(start, 0.999))
        for sign in (1, -1):
            for _ in range(100):
                leak.step(torch.full((1, 1), sign * 1e6), 1.0)
            assert 0 <= float(leak.alpha_X1) <= 1
        assert rollout.states(torch.zeros(N, 1), torch.zeros(N, 1), torch.ones(T, N, 1)).isfinite().all()


def test_the_guard_counts_with_the_fastest_unit():
    """No state leaves the guard in as many steps as need not be looked at."""
    rollout = Rollout(Network().rollout.reservoir, 0.2, guard=0.95)
    plain = rollout.steps_within_guard(0.0)
    leak = TrainedLeak(rollout, "per-unit", 0.2, 1.0)
    assert rollout.steps_within_guard(0.0) == plain
    leak.step(torch.cat((-torch.ones(1, 1), torch.zeros(N - 1, 1))), 3.0)
    steps = rollout.steps_within_guard(0.0)
    assert steps < plain
    fastest = float(leak.alpha_X1.max())
    assert 1 - (1 - fastest) ** steps <= 0.95


def test_a_saved_leak_goes_on_in_the_same_bits():
    def made() -> TrainedLeak:
        return TrainedLeak(Rollout(Network().rollout.reservoir, 0.4, 1.0), "per-unit", 0.4, 0.1)

    generator = torch.Generator().manual_seed(0)
    gradients = torch.randn(6, N, 1, generator=generator)
    whole, first, second = made(), made(), made()
    for gradient in gradients:
        whole.step(gradient, 0.1)
    for gradient in gradients[:3]:
        first.step(gradient, 0.1)
    second.load_state_dict(first.state_dict())
    assert torch.equal(second.alpha_X1, first.alpha_X1)
    for gradient in gradients[3:]:
        second.step(gradient, 0.1)
    assert torch.equal(second.alpha_X1, whole.alpha_X1)


# --- The figure ------------------------------------------------------------------------------------------------------


def saved_run(alpha: np.ndarray | None) -> figures.SavedRun:
    iteration = np.arange(0.0, 30, 10)
    history = {"iteration": iteration, **{f"leak_{name}": iteration / 100 for name in ("mean", "least", "most")}}
    results = {"config": {"hidden_size": 48, "leak": 0.5}, "preset": "smoke", "seed": 0}
    return figures.SavedRun(results, history, {} if alpha is None else {"leak_A": alpha})


def test_the_figure_shows_the_leaks_of_units_and_a_run_without_has_none():
    assert run_figures.leaks(saved_run(None)) is None
    with figures.style():
        one = run_figures.leaks(saved_run(np.array([0.25])))
        each = run_figures.leaks(saved_run(np.linspace(0.2, 0.6, 9)))
    assert len(one.axes) == 1 and "0.5 → 0.250" in one.texts[0].get_text()
    assert len(each.axes) == 2 and "The leak of 9 units: 0.5 → 0.400" in each.texts[0].get_text()
    assert sum(patch.get_height() for patch in each.axes[1].patches) == 9  # every unit stands somewhere


def test_an_array_that_only_some_runs_have(tmp_path):
    np.savez(tmp_path / "figures.npz", here_X=np.ones(3))
    read = figures.read_arrays(tmp_path / "figures.npz", {"here_X": "X", "leak_A": "?A"})
    assert set(read) == {"here_X"}
    np.savez(tmp_path / "figures.npz", here_X=np.ones(3), leak_A=np.ones((2, 2)))
    with pytest.raises(BadInput, match="leak_A has shape"):
        figures.read_arrays(tmp_path / "figures.npz", {"here_X": "X", "leak_A": "?A"})
