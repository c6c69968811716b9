"""How good an ES estimate can be: the cosine laws that every choice of population follows from.

With antithetic noise in D dimensions and ρ = |g_B|² / |g|², how much longer a minibatch's gradient is than the true one:
an estimate from K pairs is ĝ = (1/K) Σ ε (ε·g), with E ĝ = g and E|ĝ|² ≈ |g|² (K + D) / K. Fitness shaping by ranks and
curvature of the loss within σ lower the cosine a little.
"""

import math
from collections.abc import Mapping


def expected_cosine(pairs: float, dimensions: int, batch_noise: float = 1.0, own_data: bool = False) -> float:
    """Cosine of ĝ to the gradient of the expected loss.

    Shared minibatch: √(K / (ρ (K + D))); own data for each pair: √(K / (K + D ρ)). With batch_noise ρ = 1 it is the
    cosine to the minibatch's own gradient.
    """
    if own_data:
        return math.sqrt(pairs / (pairs + dimensions * batch_noise))
    return math.sqrt(pairs / (batch_noise * (pairs + dimensions)))


def grouped_cosine(groups: int, members: int, dimensions: int, batch_noise: float) -> float:
    """Cosine of ĝ to the gradient of the expected loss where each of `groups` sets of data is seen by M members, each with a noise
    vector of its own and held against the mean of the others: E|ĝ|² = |g|² (1 + (ρ (1 + D / (M − 1)) − 1) / groups).

    M − 1 members so tell as much of a gradient as M − 1 antithetic pairs, with half the rollouts.
    """
    return inflated_cosine(groups, 1 + dimensions / (members - 1), batch_noise)


def inflated_cosine(groups: int, inflation: float, batch_noise: float) -> float:
    """Cosine of the mean of `groups` independent estimates, each of the gradient of one set of data, to the gradient of the expected loss;
    inflation: E|ĝ_i|² / E|g_i|²."""
    return 1 / math.sqrt(1 + (batch_noise * inflation - 1) / groups)


def rank_one_dimensions(states: int, rank: int) -> int:
    """How many dimensions noise c dᵀ on V counts for in the laws, where S states are visited: (S + 2) r.

    Its inner products with the states are normal, all multiplied by the same ±1 of d: E|ε|²(ε·g)² = (S + 2) r |g|², where full
    Gaussian noise has S r + 2. It matters where the states are few; `perturbed_dimensions`, of whole sequences, leaves it out.
    """
    return (states + 2) * rank


SIGN_COST = math.pi / 2  # times as many dimensions: E[ε sign(g·ε)] = √(2/π) g/|g|, and each term has the length of ε


def minibatch_cosine(pairs: float, dimensions: int, batch_noise: float, own_data: bool) -> float:
    """Cosine of ĝ to the gradient on the sequences that it is made from.

    Shared minibatch: √(K / (K + D)). Own data: the mean of K gradients is longer than that of all, by 1 + (ρ − 1)/K:
    √((K + ρ − 1) / (K + ρ − 1 + D ρ)).
    """
    if not own_data:
        return expected_cosine(pairs, dimensions)
    return math.sqrt((pairs + batch_noise - 1) / (pairs + batch_noise - 1 + dimensions * batch_noise))


def perturbed_dimensions(config: Mapping) -> tuple[int, int]:
    """D of the noise of a configuration, and how many of them a pair's losses can know of: what the law has to count where the
    rest is left out of the estimate (`noise_projection` "visited"). Both are the same without a projection.

    E_V acts through E_Vᵀ h_t only, for the (T − 1)·B states that a pair carries on, and E_U on their Vᵀh alone.
    """
    size, rank, both = config["hidden_size"], config["rank"], config.get("perturbs", "both") == "both"
    visited = (config["sequence_length"] - 1) * config["batch_size"]
    rows_u = (config.get("u_directions", 0) or size) if both else 0
    every = (size + rows_u) * rank
    if config.get("noise_projection", "none") == "none":
        return every, every
    return every, rank * min(size, visited) + rows_u * min(rank, visited)


def half_population_cosine(pairs: int, dimensions: int) -> float:
    """Expected cosine between the estimates of the two halves of a population on one minibatch.

    Each has the cosine c of K/2 pairs to the minibatch's gradient, and what is left of each is independent of the other:
    c². Where pairs have data of their own it is lower, by the noise of the batch.
    """
    return expected_cosine(pairs / 2, dimensions) ** 2
