"""The estimator's mathematics, each law against an independent computation."""

import math
import random
import statistics

import numpy as np
import pytest
import scipy.stats
import torch

from common import es, laws, philox
from common.reservoir import draw_reservoir, rollout_reference
from common.rollout import Rollout

N, R = 40, 3
D = 2 * N * R


def full_noise(noise, iteration, pairs):
    """ε as float64 (P, D), θ ordered U then V."""
    factors = [f.to(torch.float64) for f in noise.draw(iteration, torch.arange(pairs))]
    if isinstance(noise, es.RankOneNoise):
        a, b, c, d = factors
        factors = [torch.einsum("pn,pr->pnr", a, b), torch.einsum("pn,pr->pnr", c, d)]
    return torch.cat([f.flatten(1) for f in factors], dim=1)


def flat(estimate):
    return torch.cat((estimate.grad_u_Nr.flatten(), estimate.grad_v_Nr.flatten())).to(torch.float64)


def quadratic(theta):
    """L(θ) = ½ Σ c_i (θ_i − i-dependent target)² with curvatures from 0.5 to 1.5; θ (…, D) float64."""
    index = torch.arange(D, dtype=torch.float64)
    curvature, target = 0.5 + index / D, torch.sin(index)
    return 0.5 * (curvature * (theta - target) ** 2).sum(dim=-1), curvature * (theta - target)


def evaluate_pairs(noise, theta, sigma, pairs, iteration=1):
    epsilon = full_noise(noise, iteration, pairs)
    return torch.stack((quadratic(theta + sigma * epsilon)[0], quadratic(theta - sigma * epsilon)[0]), dim=1)


def no_failures(pairs):
    return torch.zeros(pairs, 2, dtype=torch.bool)


def cosine(x, y):
    return float(x @ y / (x.norm() * y.norm()))


# --- Noise -----------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("kind", es.NOISES)
def test_noise_has_mean_zero_and_identity_covariance(kind):
    pairs = 4000
    epsilon = full_noise(es.make_noise(kind, 0, 10, 2), 1, pairs)
    spread = 1 / math.sqrt(pairs)
    assert epsilon.mean(dim=0).abs().max() < 5 * spread
    covariance = epsilon.T @ epsilon / pairs
    assert (covariance - torch.eye(40, dtype=torch.float64)).abs().max() < 6 * math.sqrt(2) * spread


@pytest.mark.parametrize("kind", es.NOISES)
def test_noise_is_addressed_by_pair_and_iteration_alone(kind):
    noise = es.make_noise(kind, 5, N, R)
    together = noise.draw(3, torch.arange(10))
    alone = noise.draw(3, torch.tensor([7]))
    assert all(torch.equal(t[7:8], a) for t, a in zip(together, alone, strict=True))
    assert not torch.equal(noise.draw(4, torch.tensor([7]))[0], alone[0])
    assert not torch.equal(es.make_noise(kind, 6, N, R).draw(3, torch.tensor([7]))[0], alone[0])


@pytest.mark.parametrize("kind", es.NOISES)
def test_weighted_sum_is_the_sum_over_full_noise_matrices(kind):
    pairs = 1030 if kind == "rank1" else 9  # more than a chunk, and no multiple of one
    noise = es.make_noise(kind, 1, N, R)
    weights = torch.randn(2, pairs, generator=torch.Generator().manual_seed(0))
    sums = torch.cat([s.flatten(1) for s in noise.weighted_sum(weights, 4)], dim=1)
    expected = weights.to(torch.float64) @ full_noise(noise, 4, pairs)
    assert torch.allclose(sums.to(torch.float64), expected, atol=1e-4 * expected.abs().max().item())


# --- The estimate ----------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("kind", es.NOISES)
def test_estimate_is_the_briefs_formula(kind):
    """ĝ = 1/(2Kσ) Σ (L⁺ − L⁻) ε, written out as a loop over pairs."""
    pairs, sigma, noise = 11, 0.1, es.make_noise(kind, 0, N, R)
    losses = evaluate_pairs(noise, torch.zeros(D, dtype=torch.float64), sigma, pairs)
    weights = es.pair_weights(losses, no_failures(pairs), "raw", loss_clip=math.inf)
    got = flat(es.estimate_gradient(noise, weights, 1, sigma, "cpu"))
    expected = torch.zeros(D, dtype=torch.float64)
    for pair, epsilon in enumerate(full_noise(noise, 1, pairs)):
        expected += (losses[pair, 0] - losses[pair, 1]) * epsilon / (2 * pairs * sigma)
    assert torch.allclose(got, expected, rtol=1e-4, atol=1e-4 * expected.abs().max().item())


@pytest.mark.parametrize("kind", es.NOISES)
def test_estimate_of_a_quadratic_is_unbiased(kind):
    """For a quadratic the pair difference is exactly 2σ ε·g, so that E ĝ = g at any σ."""
    pairs, sigma, noise = 16_000, 0.5, es.make_noise(kind, 2, N, R)
    theta = torch.cos(torch.arange(D, dtype=torch.float64))
    gradient = quadratic(theta)[1]
    total = torch.zeros(D, dtype=torch.float64)
    chunk = 4000
    for iteration in range(1, pairs // chunk + 1):
        losses = evaluate_pairs(noise, theta, sigma, chunk, iteration)
        weights = es.pair_weights(losses, no_failures(chunk), "raw", loss_clip=math.inf)
        total += flat(es.estimate_gradient(noise, weights, iteration, sigma, "cpu"))
    mean = total / (pairs // chunk)
    # Var of a coordinate is about |g|²/K: the whole error vector has length √(D/K)|g|, here 0.12 |g|.
    assert (mean - gradient).norm() < 1.3 * math.sqrt(D / pairs) * gradient.norm()
    assert float(mean @ gradient / gradient.square().sum()) == pytest.approx(1, abs=5 * math.sqrt(2 / pairs))


@pytest.mark.parametrize("kind", es.NOISES)
def test_antithetic_pairs_cancel_the_even_part(kind):
    """Adding an even function of ε to both members of a pair changes nothing, and swapping the members flips ĝ."""
    pairs, noise = 20, es.make_noise(kind, 0, N, R)
    losses = evaluate_pairs(noise, torch.ones(D, dtype=torch.float64), 0.1, pairs)
    even = torch.rand(pairs, 1, dtype=torch.float64, generator=torch.Generator().manual_seed(1)) * 100

    def estimate(values):
        weights = es.pair_weights(values, no_failures(pairs), "raw", loss_clip=math.inf)
        return flat(es.estimate_gradient(noise, weights, 1, 0.1, "cpu"))

    reference = estimate(losses)
    assert torch.allclose(estimate(losses + even), reference, rtol=1e-5, atol=1e-5 * reference.abs().max().item())
    assert torch.equal(estimate(losses.flip(1)), -reference)


@pytest.mark.parametrize("kind", es.NOISES)
@pytest.mark.parametrize("pairs", [8, 32, 128, 512])
def test_cosine_to_the_minibatch_gradient_follows_the_law(kind, pairs):
    """cos(ĝ, g) = √(K / (K + D)), averaged over iterations."""
    noise = es.make_noise(kind, 3, N, R)
    theta = torch.zeros(D, dtype=torch.float64)
    gradient = quadratic(theta)[1]
    seen = []
    for iteration in range(1, 31):
        losses = evaluate_pairs(noise, theta, 1e-3, pairs, iteration)
        weights = es.pair_weights(losses, no_failures(pairs), "raw", loss_clip=math.inf)
        seen.append(cosine(flat(es.estimate_gradient(noise, weights, iteration, 1e-3, "cpu")), gradient))
    spread = (sum((c - sum(seen) / 30) ** 2 for c in seen) / 29 / 30) ** 0.5
    assert sum(seen) / 30 == pytest.approx(laws.expected_cosine(pairs, D), abs=4 * spread + 0.02)


@pytest.mark.parametrize("own_data", [False, True])
def test_cosine_laws_with_batch_noise(own_data):
    """Shared minibatch: √(K/(ρ(K + D))). Own data: √(K/(K + Dρ)). Gradients of pairs are g plus noise of energy (ρ−1)|g|²."""
    pairs, rho, dimensions, repeats = 200, 5.0, 400, 60
    generator = torch.Generator().manual_seed(0)
    gradient = torch.randn(dimensions, generator=generator, dtype=torch.float64)
    seen = []
    for _ in range(repeats):
        epsilon = torch.randn(pairs, dimensions, generator=generator, dtype=torch.float64)
        rows = pairs if own_data else 1
        batch_noise = torch.randn(rows, dimensions, generator=generator, dtype=torch.float64)
        of_pair = gradient + batch_noise * gradient.norm() * math.sqrt((rho - 1) / dimensions)
        estimate = ((epsilon * of_pair).sum(dim=1, keepdim=True) * epsilon).mean(dim=0)
        seen.append(cosine(estimate, gradient))
    assert sum(seen) / repeats == pytest.approx(laws.expected_cosine(pairs, dimensions, rho, own_data), rel=0.06)


@pytest.mark.parametrize("kind", es.NOISES)
def test_half_cosine_estimates_the_square_of_a_halfs_cosine(kind):
    pairs, noise = 400, es.make_noise(kind, 8, N, R)
    theta = torch.zeros(D, dtype=torch.float64)
    seen = []
    for iteration in range(1, 41):
        losses = evaluate_pairs(noise, theta, 1e-3, pairs, iteration)
        weights = es.pair_weights(losses, no_failures(pairs), "raw", loss_clip=math.inf)
        seen.append(es.estimate_gradient(noise, weights, iteration, 1e-3, "cpu").half_cosine)
    assert sum(seen) / len(seen) == pytest.approx(laws.expected_cosine(pairs // 2, D) ** 2, rel=0.1)


@pytest.mark.parametrize("kind", es.NOISES)
def test_es_through_the_rollout_agrees_with_autograd(kind):
    """On a small net, many pairs and small σ: the whole chain points along the gradient that autograd finds."""
    size, rank, batch, pairs, sigma = 30, 2, 4, 6000, 1e-3
    generator = torch.Generator().manual_seed(0)
    reservoir = draw_reservoir(size, 5, seed=0)
    u = (torch.randn(size, rank, generator=generator, dtype=torch.float64) * 0.3).requires_grad_()
    v = (torch.randn(size, rank, generator=generator, dtype=torch.float64) * 0.3).requires_grad_()
    z = torch.randn(5, 128, batch, generator=generator, dtype=torch.float64)
    weight = torch.randn(128, size, generator=generator, dtype=torch.float64) * 0.1
    bias = torch.zeros(128, dtype=torch.float64)
    states = rollout_reference(reservoir.to("cpu", torch.float64), u, v, 0.5, z[:-1].permute(0, 2, 1))
    ((states @ weight.T - z[1:].permute(0, 2, 1)) ** 2).mean().backward()
    gradient = torch.cat((u.grad.flatten(), v.grad.flatten()))

    rollout = Rollout(reservoir, 0.5, 0.95, dtype=torch.float64)
    noise = es.make_noise(kind, 0, size, rank)
    drive, aim = rollout.drive(z[:-1])[:, :, None, None], z[1:][:, :, None, None]
    losses = []
    for ids in torch.arange(pairs).split(500):
        adapter = noise.adapter(u.detach(), v.detach(), 1, ids, sigma)
        error = rollout.errors(adapter, drive, aim, weight, bias, (500, 2, batch)).error_TC
        losses.append(error.sum(dim=0).view(500, 2, batch).mean(dim=2) / (4 * 128))
    weights = es.pair_weights(torch.cat(losses), no_failures(pairs), "raw")
    got = flat(es.estimate_gradient(noise, weights, 1, sigma, "cpu"))
    dimensions = 2 * size * rank
    assert cosine(got, gradient) == pytest.approx(laws.expected_cosine(pairs, dimensions), abs=0.01)
    assert float(got @ gradient / gradient.square().sum()) == pytest.approx(1, abs=0.08)  # its length too


# --- Shaping and failures --------------------------------------------------------------------------------------------


def plain_centered_ranks(losses):
    """Ranks with ties sharing their mean, by counting, scaled to [−½, ½]."""
    ranks = []
    for x in losses:
        below, equal = sum(y < x for y in losses), sum(y == x for y in losses)
        ranks.append(below + (equal - 1) / 2)
    return [rank / (len(losses) - 1) - 0.5 for rank in ranks]


def test_centered_ranks_with_ties():
    random.seed(0)
    for _ in range(20):
        losses = [random.choice([0.1, 0.2, 0.3, random.random()]) for _ in range(17)]
        got = es.shape_fitness(torch.tensor(losses, dtype=torch.float64), "centered-rank")
        assert got.tolist() == pytest.approx(plain_centered_ranks(losses))
        assert abs(float(got.sum())) < 1e-12


def test_zscore_and_raw():
    losses = torch.tensor([1.0, 2.0, 4.0, 9.0], dtype=torch.float64)
    shaped = es.shape_fitness(losses, "zscore").tolist()
    mean, std = 4.0, math.sqrt((9 + 4 + 0 + 25) / 4)
    assert shaped == pytest.approx([(x - mean) / std for x in (1, 2, 4, 9)])
    assert torch.equal(es.shape_fitness(losses, "raw"), losses)
    assert es.shape_fitness(torch.ones(4, dtype=torch.float64), "zscore").tolist() == [0, 0, 0, 0]


def test_normal_scores_are_quantiles_of_the_half_normal_distribution():
    """By scipy, for ranks counted by hand: ties share their mean rank, a zero has no sign, a failed pair no rank."""
    losses = torch.tensor([[1.0, 1.5], [3.0, 2.0], [2.0, 2.0], [0.5, 1.0], [9.0, 0.0], [7.0, 3.0]], dtype=torch.float64)
    failed = no_failures(6)
    failed[4, 0] = True
    got = es.pair_weights(losses, failed, "normal-score").difference_K
    ranks = np.array([1.5, 3, 0, 1.5, 4])  # of |d| = 0.5, 1, 0, 0.5, 4
    expected = scipy.stats.halfnorm.ppf((ranks + 0.5) / 5) * [-1, 1, 0, -1, 1]
    assert np.allclose(got[[0, 1, 2, 3, 5]].numpy(), expected) and got[4] == 0


def test_normal_scores_are_near_the_better_of_differences_and_signs_with_any_tails():
    """Cosine of Σ w_i ε_i to the common direction of linear losses, sequences' gradients of one length or of very different ones."""
    generator, pairs, dimensions = torch.Generator().manual_seed(0), 2000, 100
    cosines = {}
    for tails in ("normal", "heavy"):
        for shaping in ("raw", "sign", "normal-score"):
            seen = []
            for _ in range(20):
                eps = torch.randn(pairs, dimensions, generator=generator, dtype=torch.float64)
                length = torch.ones(pairs, dtype=torch.float64)
                if tails == "heavy":
                    length = torch.randn(pairs, generator=generator, dtype=torch.float64).mul(2).exp()
                noise = torch.randn(pairs, generator=generator, dtype=torch.float64)
                difference = length * (0.2 * eps[:, 0] + noise)
                losses = torch.stack((difference, torch.zeros_like(difference)), dim=1)
                estimate = es.pair_weights(losses, no_failures(pairs), shaping).difference_K @ eps
                seen.append(float(estimate[0] / estimate.norm()))
            cosines[tails, shaping] = statistics.fmean(seen)
    assert cosines["normal", "normal-score"] > 0.97 * cosines["normal", "raw"] > 1.05 * cosines["normal", "sign"]
    assert cosines["heavy", "normal-score"] > max(1.5 * cosines["heavy", "raw"], 0.93 * cosines["heavy", "sign"])


def test_sign_counts_every_pair_alike():
    losses = torch.tensor([[0.1, 0.2], [90.0, 10.0], [0.5, 0.5], [3.0, 3.1]], dtype=torch.float64)
    assert es.pair_weights(losses, no_failures(4), "sign").difference_K.tolist() == [-1, 1, 0, -1]


@pytest.mark.parametrize("kind", es.NOISES)
def test_noise_of_v_alone_is_that_of_both_without_that_of_u(kind):
    both, alone = es.make_noise(kind, 5, N, R), es.make_noise(kind, 5, N, R, "v")
    weights = torch.randn(2, 7, generator=torch.Generator().manual_seed(0))
    u_both, v_both = both.weighted_sum(weights, 3)
    u_alone, v_alone = alone.weighted_sum(weights, 3)
    assert torch.equal(v_alone, v_both) and not u_alone.any() and u_both.any()


@pytest.mark.parametrize("shaping", es.SHAPINGS)
def test_equal_losses_move_nothing(shaping):
    losses = torch.full((5, 2), 0.7, dtype=torch.float64)
    assert es.pair_weights(losses, no_failures(5), shaping).difference_K.tolist() == [0] * 5


@pytest.mark.parametrize("shaping", es.SHAPINGS)
def test_a_failed_pair_leaves_as_if_it_had_never_been_drawn(shaping):
    generator = torch.Generator().manual_seed(3)
    losses = torch.rand(6, 2, generator=generator, dtype=torch.float64)
    broken, failed = losses.clone(), no_failures(6)
    broken[2, 1], failed[2, 1] = math.nan, True
    broken[4], failed[4] = math.inf, True
    weights = es.pair_weights(broken, failed, shaping)
    kept = [0, 1, 3, 5]
    assert weights.surviving_K.tolist() == [i in kept for i in range(6)]
    assert weights.difference_K[[2, 4]].tolist() == [0, 0]
    alone = es.pair_weights(losses[kept], no_failures(4), shaping)
    assert weights.difference_K[kept].tolist() == pytest.approx(alone.difference_K.tolist())
    # … and the estimate divides by the four that are left.
    noise = es.make_noise("gaussian", 0, N, R)
    epsilon = full_noise(noise, 1, 6)
    expected = sum(float(weights.difference_K[i]) * epsilon[i] for i in kept) / (2 * 4 * 0.1)
    got = flat(es.estimate_gradient(noise, weights, 1, 0.1, "cpu"))
    assert torch.allclose(got, expected, atol=1e-5 * expected.abs().max().item())


def test_penalise_gives_the_fixed_loss_and_keeps_the_pair():
    losses = torch.tensor([[1.0, 2.0], [math.nan, 3.0]], dtype=torch.float64)
    failed = torch.tensor([[False, False], [True, False]])
    weights = es.pair_weights(losses, failed, "raw", "penalise", failure_loss=10.0)
    assert weights.difference_K.tolist() == [-1.0, 7.0] and weights.surviving_K.all()


def test_a_failure_loss_above_the_clip_is_not_clipped():
    losses = torch.tensor([[20.0, 1.0], [math.nan, 3.0]], dtype=torch.float64)
    failed = torch.tensor([[False, False], [True, False]])
    weights = es.pair_weights(losses, failed, "raw", "penalise", failure_loss=100.0, loss_clip=10.0)
    assert weights.difference_K.tolist() == [9.0, 97.0]


def test_losses_are_clipped_before_shaping():
    losses = torch.tensor([[1.0, 50.0], [2.0, 3.0]], dtype=torch.float64)
    assert es.pair_weights(losses, no_failures(2), "raw", loss_clip=5.0).difference_K.tolist() == [-4.0, -1.0]


def test_when_all_pairs_fail_there_is_no_estimate():
    failed = torch.ones(3, 2, dtype=torch.bool)
    weights = es.pair_weights(torch.full((3, 2), math.nan, dtype=torch.float64), failed, "centered-rank")
    assert not weights.surviving_K.any() and weights.difference_K.tolist() == [0, 0, 0]


# --- σ ---------------------------------------------------------------------------------------------------------------


def test_sigma_fixed_and_cosine():
    fixed = es.Sigma("fixed", 0.1, 0.01, 100)
    fixed.iterated(1.0)
    fixed.validated(1.0)
    assert fixed.at(1) == fixed.at(100) == 0.1
    cosine_schedule = es.Sigma("cosine", 0.1, 0.02, 101)
    assert cosine_schedule.at(1) == pytest.approx(0.1)
    assert cosine_schedule.at(51) == pytest.approx(0.06)
    assert cosine_schedule.at(101) == pytest.approx(0.02)


def adapted(errors, failed_share):
    """σ after each validation, five iterations apart, with these validation errors."""
    sigma = es.Sigma("adaptive", 1.0, 0.1, 10**6)
    sigma.validated(errors[0])
    values = []
    for error in errors[1:]:
        for _ in range(5):
            sigma.iterated(failed_share)
        sigma.validated(error)
        values.append(sigma.at(1))
    return values


def test_sigma_adapts_up_when_progress_stalls_and_down_when_members_fail():
    assert adapted([1.0, 1.0, 1.0], 0.0) == pytest.approx([1.1, 1.21])
    assert adapted([1.0, 0.99, 0.98], 0.05) == [1.0, 1.0]
    assert adapted([1.0, 0.9, 0.8], 0.5) == pytest.approx([0.7, 0.49])
    assert adapted([1.0, math.nan], 0.0) == pytest.approx([1.1])  # no progress can be told
    assert adapted([1.0] * 100, 1.0)[-1] == pytest.approx(0.1)  # never below a tenth of its start
    assert adapted([1.0] * 100, 0.0)[-1] == pytest.approx(10)  # nor above ten times


def test_sigma_state_survives_a_checkpoint():
    whole, first, second = (es.Sigma("adaptive", 1.0, 0.1, 100) for _ in range(3))
    for sigma in (whole, first):
        sigma.validated(1.0)
        sigma.iterated(0.0)
    second.load_state_dict(first.state_dict())
    for sigma in (whole, second):
        sigma.iterated(0.3)
        sigma.validated(0.9)
    assert whole.state_dict() == second.state_dict() and whole.at(1) == pytest.approx(0.7)


@pytest.mark.parametrize("ids", [[0], [5, 3], [62, 63, 64, 65], [64], [2**31 + 7]])
def test_rank_one_noise_is_addressed_by_the_pair_whatever_is_drawn_beside_it(ids):
    noise, count = es.RankOneNoise(11, 50, 3), 2 * (50 + 3)
    drawn = torch.cat(noise.draw(4, torch.tensor(ids)), dim=1)
    for row, pair in zip(drawn, ids):
        assert torch.equal(row, philox.signs(11, philox.Purpose.NOISE, (pair, 4), count)[0])


@pytest.mark.parametrize(
    ("changes", "expected"),
    [
        ({}, (128_000, 128_000)),
        ({"perturbs": "v"}, (64_000, 64_000)),
        ({"perturbs": "v", "noise_projection": "visited"}, (64_000, 19 * 32)),
        ({"noise_projection": "visited"}, (128_000, 2000 * 19 + 19 * 32)),
        ({"noise_projection": "visited", "batch_size": 200}, (128_000, 128_000)),  # it visits everything
        ({"noise_projection": "visited", "u_directions": 8}, (64_000 + 256, 19 * 32 + 8 * 19)),
    ],
)
def test_the_dimensions_that_the_laws_count(changes, expected):
    """The brief's problem, a sequence a pair."""
    config = {"hidden_size": 2000, "rank": 32, "sequence_length": 20, "batch_size": 1, **changes}
    assert laws.perturbed_dimensions(config) == expected


@pytest.mark.parametrize("own_data", [False, True])
@pytest.mark.parametrize("sign", [False, True])
def test_laws_with_batch_noise_on_made_up_gradients(sign, own_data):
    """Linear losses, so that the laws are all there is: sequence i has the gradient m + n_i, of a fixed length where signs
    are taken; the estimate of 300 pairs in 200 dimensions, many times."""
    generator, pairs, dimensions, count = torch.Generator().manual_seed(0), 300, 200, 40
    mean = torch.zeros(dimensions, dtype=torch.float64)
    mean[0] = 1.0
    noise = 9.0 if own_data else 3.0  # ρ − 1
    seen = []
    for _ in range(count):
        eps = torch.randn(pairs, dimensions, generator=generator, dtype=torch.float64)
        spread = torch.randn(pairs if own_data else 1, dimensions, generator=generator, dtype=torch.float64)
        gradients = mean + spread * math.sqrt(noise / dimensions)
        difference = (eps * gradients).sum(dim=1)
        estimate = (eps * (difference.sign() if sign else difference)[:, None]).mean(dim=0)
        if sign and own_data:
            gradients = gradients / gradients.norm(dim=1, keepdim=True)
        seen.append(
            [float(torch.nn.functional.cosine_similarity(estimate, to, dim=0)) for to in (gradients.mean(0), mean)]
        )
    law = (pairs, dimensions * (laws.SIGN_COST if sign else 1), 1 + noise, own_data)
    # One K of the law √(K / (K + D)) is what is left of ε(ε·g) along g; a sign leaves less of it.
    assert statistics.fmean(x for x, _ in seen) == pytest.approx(laws.minibatch_cosine(*law), rel=0.06)
    assert statistics.fmean(x for _, x in seen) == pytest.approx(laws.expected_cosine(*law), rel=0.06)
