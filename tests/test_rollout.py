"""The fast rollout against the equation in float64, one member at a time."""

import dataclasses
import math

import pytest
import torch

from common import es
from common.encoder import EMBEDDING
from common.reservoir import draw_reservoir, rollout_reference
from common.rollout import (
    LEAST_COLUMNS,
    MOST_COLUMNS,
    MOST_PAIRS,
    RankOneAdapter,
    Rollout,
    SharedAdapter,
    columns_per_tile,
    pairs_per_tile,
)

N, R, T, B = 120, 3, 5, 4
SIGMA, LEAK = 0.05, 0.4


def made_up(dtype=torch.float64, batch=B):
    """A small network away from any special point: U and V both of ordinary size, a random decoder."""
    generator = torch.Generator().manual_seed(0)

    def draw(*shape):
        return torch.randn(*shape, generator=generator, dtype=torch.float64).to(dtype)

    u, v = draw(N, R) * 0.3, draw(N, R) / math.sqrt(N)
    weight, bias = draw(EMBEDDING, N) * 0.1, draw(EMBEDDING) * 0.1
    return u, v, weight, bias, draw(T, EMBEDDING, batch), draw(T, EMBEDDING, batch)


def plain_member_losses(reservoir, u, v, weight, bias, inputs_TEB, target_TEB):
    """Squared error (T, B) of one member, by the reference rollout in float64."""
    states = rollout_reference(reservoir.to("cpu", torch.float64), u, v, LEAK, inputs_TEB.permute(0, 2, 1))
    prediction = states @ weight.T + bias
    return (prediction - target_TEB.permute(0, 2, 1)).square().sum(dim=2)


def dense_noise(kind, factors):
    """(ε_U, ε_V) of each pair as full float64 matrices."""
    factors = [f.to(torch.float64) for f in factors]
    if kind == "gaussian":
        return factors
    a, b, c, d = factors
    return torch.einsum("pn,pr->pnr", a, b), torch.einsum("pn,pr->pnr", c, d)


@pytest.mark.parametrize("in_degree", [5, 60], ids=["gather", "dense"])
@pytest.mark.parametrize("kind", es.NOISES)
@pytest.mark.parametrize("own_data", [False, True], ids=["shared", "own"])
@pytest.mark.parametrize("dtype", [torch.float64, torch.float32])
def test_population_equals_a_loop_over_members(kind, own_data, dtype, in_degree):
    pairs = 3
    depth = pairs if own_data else 1
    u, v, weight, bias, inputs, target = made_up(batch=depth * B)
    reservoir = draw_reservoir(N, in_degree, seed=1)
    noise = es.make_noise(kind, 7, N, R)
    ids = torch.tensor([4, 5, 6])
    e_u, e_v = dense_noise(kind, noise.draw(2, ids))

    rollout = Rollout(reservoir, LEAK, 0.95, "cpu", dtype)
    assert (rollout.dense_NN is None) == (in_degree == 5)
    drive = rollout.drive(inputs.to(dtype)).unflatten(2, (depth, 1, B))
    adapter = noise.adapter(u.to(dtype), v.to(dtype), 2, ids, SIGMA)
    result = rollout.errors(adapter, drive, target.to(dtype).unflatten(2, (depth, 1, B)), weight, bias, (pairs, 2, B))
    got = result.error_TC.view(T, pairs, 2, B)

    for pair in range(pairs):
        own = slice(pair * B, (pair + 1) * B) if own_data else slice(None)
        for s, sign in enumerate((1, -1)):
            member_u, member_v = u + sign * SIGMA * e_u[pair], v + sign * SIGMA * e_v[pair]
            expected = plain_member_losses(
                reservoir, member_u, member_v, weight, bias, inputs[..., own], target[..., own]
            )
            assert torch.allclose(got[:, pair, s], expected, rtol=1e-11 if dtype == torch.float64 else 2e-5)
    assert not result.failed_C.any()


def test_states_and_shared_adapter_follow_the_equation():
    u, v, _, _, inputs, _ = made_up()
    reservoir = draw_reservoir(N, 5, seed=1)
    rollout = Rollout(reservoir, LEAK, 0.95, dtype=torch.float64)
    states = rollout.states(u, v, rollout.drive(inputs))
    expected = rollout_reference(reservoir.to("cpu", torch.float64), u, v, LEAK, inputs.permute(0, 2, 1))
    assert torch.allclose(states.permute(1, 2, 0), expected, atol=1e-13)


def test_two_signs_of_zero_noise_are_the_unperturbed_network():
    # With σ = 0 every member's loss is that of the plain forward pass, bit for bit between the signs.
    u, v, weight, bias, inputs, target = made_up(torch.float32)
    rollout = Rollout(draw_reservoir(N, 5, seed=1), LEAK, 0.95)
    drive, aim = rollout.drive(inputs)[:, :, None, None], target[:, :, None, None]
    for kind in es.NOISES:
        adapter = es.make_noise(kind, 0, N, R).adapter(u, v, 1, torch.arange(2), 0.0)
        error = rollout.errors(adapter, drive, aim, weight, bias, (2, 2, B)).error_TC.view(T, 2, 2, B)
        assert torch.equal(error[:, :, 0], error[:, :, 1])
        plain = rollout.errors(SharedAdapter(u, v), drive, aim, weight, bias, (1, 1, B)).error_TC
        assert torch.allclose(error[:, 0, 0], plain, rtol=1e-5)


def test_a_members_loss_does_not_depend_on_its_tile_mates():
    u, v, weight, bias, inputs, target = made_up(torch.float32)
    rollout = Rollout(draw_reservoir(N, 5, seed=1), LEAK, 0.95)
    noise = es.make_noise("rank1", 3, N, R)

    def losses(ids):
        adapter = noise.adapter(u, v, 1, torch.tensor(ids), SIGMA)
        tile = rollout.errors(
            adapter, rollout.drive(inputs)[:, :, None, None], target[:, :, None, None], weight, bias, (2, 2, B)
        )
        return tile.error_TC.view(T, 2, 2, B)

    assert torch.equal(losses([0, 1])[:, 0], losses([0, 5])[:, 0])


@pytest.mark.parametrize("poison", [math.nan, math.inf, 1e30])
@pytest.mark.parametrize("kind", es.NOISES)
def test_a_failing_member_is_named_and_harms_nobody(kind, poison):
    # Every pair has its own data and that of pair 1 is poison: undefined, or large enough to saturate every unit.
    pairs = 3
    u, v, weight, bias, inputs, target = made_up(torch.float32, batch=pairs * B)
    rollout = Rollout(draw_reservoir(N, 5, seed=1), leak=0.9, guard=0.9)
    noise = es.make_noise(kind, 3, N, R)

    def run(drive_TNB):
        adapter = noise.adapter(u, v, 1, torch.arange(pairs), SIGMA)
        shape = (pairs, 1, B)
        return rollout.errors(
            adapter, drive_TNB.unflatten(2, shape), target.unflatten(2, shape), weight, bias, (pairs, 2, B)
        )

    drive = rollout.drive(inputs)
    poisoned = drive.clone()
    poisoned[1:, :, B : 2 * B] = poison
    healthy, sick = run(drive), run(poisoned)
    failed = sick.failed_C.view(pairs, 2, B)
    assert failed[1].all() and not failed[0].any() and not failed[2].any()
    assert not healthy.failed_C.any()
    for pair in (0, 2):
        assert torch.equal(sick.error_TC.view(T, pairs, 2, B)[:, pair], healthy.error_TC.view(T, pairs, 2, B)[:, pair])


def test_a_tile_in_which_all_have_failed_ends_early(monkeypatch):
    u, v, weight, bias, inputs, target = made_up(torch.float32)
    rollout = Rollout(draw_reservoir(N, 5, seed=1), LEAK, 0.95)
    drive = rollout.drive(inputs * math.nan)
    steps = []
    original = rollout.recurrent
    monkeypatch.setattr(rollout, "recurrent", lambda h: (steps.append(1), original(h))[1])
    monkeypatch.setattr("common.rollout.SCORED_AT_ONCE", 2)
    result = rollout.errors(
        SharedAdapter(u, v), drive[:, :, None, None], target[:, :, None, None], weight, bias, (1, 1, B)
    )
    assert result.failed_C.all() and len(steps) == 1  # two of five steps, and the first has no product


@pytest.mark.parametrize("scored_at_once", [1, 2, 5, 7])
def test_the_guard_is_a_threshold_on_the_rms_of_the_state_at_any_step(monkeypatch, scored_at_once):
    # With leak 1 and no weights the state is tanh(drive): it can be put anywhere.
    monkeypatch.setattr("common.rollout.SCORED_AT_ONCE", scored_at_once)
    plain = draw_reservoir(N, 5, seed=1)
    rollout = Rollout(dataclasses.replace(plain, value_Nk=torch.zeros_like(plain.value_Nk)), 1.0, guard=0.5)
    for step in range(T):
        h_TNB = torch.full((T, N, 4), 0.499)
        h_TNB[step, :, 1], h_TNB[step, :, 2], h_TNB[step, 0, 3] = 0.501, -0.501, math.nan
        drive_TNDSB, none = h_TNB.atanh()[:, :, None, None], torch.zeros(N, 1)
        weight, target = torch.zeros(EMBEDDING, N), torch.zeros(T, EMBEDDING, 1, 1, 4)
        args = (SharedAdapter(none, none), drive_TNDSB, target, weight, torch.zeros(EMBEDDING), (1, 1, 4))
        assert rollout.errors(*args).failed_C.tolist() == [False, True, True, True]


@pytest.mark.parametrize("kind", es.NOISES)
def test_the_states_that_members_visit_can_be_watched(kind):
    u, v, weight, bias, inputs, target = made_up()
    reservoir = draw_reservoir(N, 5, seed=1)
    rollout = Rollout(reservoir, LEAK, 0.95, dtype=torch.float64)
    noise, ids = es.make_noise(kind, 7, N, R), torch.tensor([4, 5])
    e_u, e_v = dense_noise(kind, noise.draw(2, ids))
    drive, aim = rollout.drive(inputs)[:, :, None, None], target[:, :, None, None]

    def run(watch=None):
        adapter = noise.adapter(u, v, 2, ids, SIGMA)
        return rollout.errors(adapter, drive, aim, weight, bias, (2, 2, B), watch=watch)

    seen = {}
    watched, plain = run(lambda step, h: seen.update({step: h.clone()})), run()
    assert torch.equal(watched.error_TC, plain.error_TC) and list(seen) == list(range(T))
    states_TNC = torch.stack(list(seen.values()))
    for pair in range(2):
        for s, sign in enumerate((1, -1)):
            expected = rollout_reference(
                reservoir.to("cpu", torch.float64),
                u + sign * SIGMA * e_u[pair],
                v + sign * SIGMA * e_v[pair],
                LEAK,
                inputs.permute(0, 2, 1),
            )
            got = states_TNC.view(T, N, 2, 2, B)[:, :, pair, s]
            assert torch.allclose(got, expected.transpose(1, 2), atol=1e-12)


def test_tiles_follow_the_written_rule():
    def pairs(population, batch, size=2000, dtype=torch.float32, device="cpu"):
        return pairs_per_tile(population, batch, size, dtype, device)

    # 2,000 units × 128 columns × 4 bytes fit a megabyte of cache, 256 columns do not.
    assert columns_per_tile(2000, torch.float32, "cpu") == 128 and pairs(32, 32) == 2
    assert columns_per_tile(2000, torch.float64, "cpu") == 64 and pairs(32, 32, dtype=torch.float64) == 1
    assert columns_per_tile(64, torch.float32, "cpu") == MOST_COLUMNS
    assert columns_per_tile(10**5, torch.float32, "cpu") == LEAST_COLUMNS
    assert pairs(32, 64, dtype=torch.float16, device="cuda") == 4  # the brief's K on eight GPUs: eight members a rank
    assert pairs(1, 4096) == 1
    assert pairs(10**6, 1, device="cuda") == MOST_PAIRS


@pytest.mark.parametrize(("leak", "guard"), [(0.2, 0.95), (0.5, 0.95), (0.5, 0.3), (1.0, 0.95), (0.5, 1.0)])
def test_steps_that_are_not_looked_at_cannot_leave_the_guard(leak, guard):
    rollout = Rollout(draw_reservoir(N, 5, seed=1), leak, guard)
    for rms in (0.0, 0.2, guard - 1e-4):
        steps = rollout.steps_within_guard(rms)
        highest = rms
        for _ in range(min(steps, 50)):
            highest = (1 - leak) * highest + leak  # every unit driven to 1
        assert highest <= guard
        if guard < 1:  # and the bound is not idle: one step more could leave it
            assert (1 - leak) * highest + leak > guard - 1e-3


def test_what_float16_does_to_losses_and_to_the_estimate():
    """State and matrix products in float16, as on a GPU: against float64 on the same members, N = 500, 256 pairs.

    A loss may be off, if it is off alike on both sides of a pair: what the estimate sees are differences. Measured here: losses
    off by less than 1e-4, differences by 3.3 % (rms), which is noise of a thousandth of their variance.
    """
    size, rank, batch, pairs, sigma = 500, 4, 16, 256, 0.01
    generator = torch.Generator().manual_seed(0)

    def draw(*shape):
        return torch.randn(*shape, generator=generator, dtype=torch.float64)

    u, v = draw(size, rank) * 0.02, draw(size, rank) / size**0.5
    weight, bias = draw(EMBEDDING, size) * 0.05, draw(EMBEDDING) * 0.1
    z = draw(T + 1, EMBEDDING, batch)
    reservoir, noise = draw_reservoir(size, 120, seed=1, input_scale=0.1), es.RankOneNoise(7, size, rank)

    def losses(dtype):
        rollout = Rollout(reservoir, 0.5, 0.95, dtype=dtype)
        assert rollout.dense_NN is not None
        adapter = noise.adapter(u.to(dtype), v.to(dtype), 1, torch.arange(pairs), sigma)
        drive, target = rollout.drive(z[:-1])[:, :, None, None], z[1:].float()[:, :, None, None]
        result = rollout.errors(adapter, drive, target, weight, bias, (pairs, 2, batch))
        assert not result.failed_C.any()
        return result.error_TC.sum(dim=0).view(pairs, 2, batch).mean(dim=2) / (T * EMBEDDING)

    exact, half = losses(torch.float64), losses(torch.float16)
    assert (half / exact - 1).abs().max() < 1e-4
    differences = [loss[:, 0] - loss[:, 1] for loss in (exact, half)]
    off = (differences[1] - differences[0]).square().mean().sqrt() / differences[0].square().mean().sqrt()
    assert off < 0.05, f"pair differences are off by {off:.2%} (rms)"

    # The estimate's cosine to the true gradient is that of float64, to a hundredth of it.
    leaves = u.clone().requires_grad_(), v.clone().requires_grad_()
    states = rollout_reference(reservoir.to("cpu", torch.float64), *leaves, 0.5, z[:-1].permute(0, 2, 1))
    loss = (states @ weight.T + bias - z[1:].permute(0, 2, 1)).square().mean()
    gradient = torch.cat([g.flatten() for g in torch.autograd.grad(loss, leaves)])
    cosines = []
    for difference_K in differences:
        every_K = torch.ones(pairs, dtype=torch.bool)
        estimate = es.estimate_gradient(noise, es.PairWeights(difference_K, every_K), 1, sigma, "cpu")
        flat = torch.cat((estimate.grad_u_Nr.flatten(), estimate.grad_v_Nr.flatten())).double()
        cosines.append(float(torch.nn.functional.cosine_similarity(flat, gradient, dim=0)))
    assert cosines[0] > 0.2 and abs(cosines[1] / cosines[0] - 1) < 0.01, cosines


def test_rank_one_noise_of_v_alone_needs_no_way_back_of_its_own():
    """perturbs_u=False leaves the corrections with a out: the same numbers as with a = 0."""
    generator = torch.Generator().manual_seed(4)
    size, rank, pairs, columns = 30, 3, 4, (4, 2, 2)

    def draw(*shape):
        return torch.randn(*shape, generator=generator, dtype=torch.float64)

    factors = (draw(size, rank), draw(size, rank), torch.zeros(pairs, size, dtype=torch.float64), draw(pairs, rank),
               draw(pairs, size), draw(pairs, rank))  # fmt: skip
    h_NC, made = draw(size, 16), []
    for perturbs_u in (True, False):
        adapter = RankOneAdapter(*factors, 0.1, perturbs_u=perturbs_u)
        adapter.prepare(columns)
        x_NC = torch.zeros(size, 16, dtype=torch.float64)
        adapter.add_to(x_NC, h_NC)
        made.append(x_NC)
        assert all(torch.equal(given, kept) for given, kept in zip(factors, adapter.factors()))
    assert torch.allclose(*made, rtol=1e-12)
