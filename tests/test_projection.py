"""Noise projected on the visited states: against a QR factorisation, and for what it promises."""

import pytest
import torch

from common import es
from common.encoder import EMBEDDING
from common.projection import VisitedStates, project
from common.reservoir import draw_reservoir
from common.rollout import Rollout, SharedAdapter

N, R, T, P = 60, 3, 6, 4
SIGMA, LEAK = 1e-3, 0.5


def tile(batch: int):
    """A small population on data of its own in float64: run(factors) → (losses (P, 2), states of the pairs, all states),
    the factors of its noise, and the tile's columns."""
    generator = torch.Generator().manual_seed(0)

    def draw(*shape):
        return torch.randn(*shape, generator=generator, dtype=torch.float64)

    u, v, z = draw(N, R) * 0.3, draw(N, R) / N**0.5, draw(T + 1, EMBEDDING, P * batch)
    weight, bias = draw(EMBEDDING, N) * 0.1, draw(EMBEDDING) * 0.1
    rollout = Rollout(draw_reservoir(N, 5, seed=1), LEAK, 0.95, dtype=torch.float64)
    noise, ids, columns = es.RankOneNoise(7, N, R), torch.arange(P), (P, 2, batch)
    drive, target = (x.unflatten(2, (P, 1, batch)) for x in (rollout.drive(z[:-1]), z[1:]))

    def run(draw_abcd):
        factors = [factor.to(torch.float64) for factor in draw_abcd]
        adapter, seen = es.RankOneAdapter(u, v, *factors, SIGMA), []
        visited = VisitedStates(T, N, columns, torch.float64)

        def watch(step, h_NC):
            seen.append(h_NC.clone())
            visited(step, h_NC)

        result = rollout.errors(adapter, drive, target, weight, bias, columns, watch=watch)
        loss_P2 = result.error_TC.sum(dim=0).view(P, 2, batch).mean(dim=2)
        return loss_P2, visited.of_pairs().clone(), torch.stack(seen)

    return run, noise.draw(1, ids), columns


@pytest.mark.parametrize("batch", [1, 3])
def test_projection_is_that_of_a_qr_factorisation(batch):
    run, (a, b, c, d), columns = tile(batch)
    states_PMN = run((a, b, c, d))[1]
    assert states_PMN.shape == (P, (T - 1) * batch, N)
    basis_PNM = torch.linalg.qr(states_PMN.mT).Q
    expected = torch.bmm(basis_PNM, torch.bmm(basis_PNM.mT, c.to(torch.float64).unsqueeze(2))).squeeze(2)
    got = project(states_PMN, c)
    assert got.dtype == torch.float32
    assert torch.allclose(got.to(torch.float64), expected, atol=1e-5)
    # It is a projection: what is left is orthogonal to every visited state, and it is the smaller part.
    assert (expected.norm(dim=1) ** 2 / N).mean() == pytest.approx((T - 1) * batch / N, rel=0.5)


def test_visited_states_are_the_means_of_the_two_signs_by_pair_and_sequence():
    run, factors, columns = tile(batch=3)
    _, got, states_TNC = run(factors)
    assert len(states_TNC) == T
    for pair in range(P):
        for step in range(T - 1):
            for sequence in range(3):
                plus, minus = (states_TNC[step][:, (pair * 2 + sign) * 3 + sequence] for sign in (0, 1))
                assert torch.equal(got[pair, step * 3 + sequence], (plus + minus) * 0.5)


def test_losses_know_nothing_of_the_part_that_is_left_out():
    """With c replaced by its projection the difference of a pair's losses stays, to first order in σ; with what was left out
    in its place it vanishes. Noise of U off, so that V's alone is seen."""
    run, (a, b, c, d), columns = tile(batch=1)
    a = torch.zeros_like(a)

    def differences(c_PN):
        loss_P2 = run((a, b, c_PN, d))[0]
        return loss_P2[:, 0] - loss_P2[:, 1]

    c = c.to(torch.float64)
    inside = project(run((a, b, c, d))[1], c)
    whole = differences(c)
    assert torch.allclose(differences(inside), whole, rtol=1e-3)
    assert (differences(c - inside).abs() < 1e-3 * whole.abs()).all()


def test_a_pair_that_failed_gets_nan_one_that_visited_nothing_zero_and_others_do_not_notice():
    generator = torch.Generator().manual_seed(0)
    states, vectors = torch.randn(4, 3, N, generator=generator), torch.randn(4, N, generator=generator)
    expected = project(states, vectors)
    states[1, 2, 5] = torch.nan
    states[3] = 0  # as Vᵀh is while V = 0
    got = project(states, vectors)
    assert torch.equal(got[[0, 2]], expected[[0, 2]]) and got[1].isnan().all() and not got[3].any()


def test_a_watched_tile_is_not_ended_early():
    rollout = Rollout(draw_reservoir(N, 5, seed=1), LEAK, 0.95)
    none, seen = torch.zeros(N, 1), []
    rollout.errors(
        SharedAdapter(none, none), torch.full((T, N, 1, 1, 2), torch.nan), torch.zeros(T, EMBEDDING, 1, 1, 2),
        torch.zeros(EMBEDDING, N), torch.zeros(EMBEDDING), (1, 1, 2), watch=lambda step, h: seen.append(step),
    )  # fmt: skip
    assert seen == list(range(T))
