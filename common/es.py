"""Evolution strategies: noise, fitness shaping, the estimate, and the step size of the noise. Ask → evaluate → tell.

    ĝ = 1/(2Kσ) Σ_i (u_i⁺ − u_i⁻) ε_i          u = shaped losses of θ ± σ ε_i,   θ = (U, V)

(Salimans et al. 2017, arXiv:1703.03864; antithetic pairs as in the brief.) K counts the pairs that survived: a pair with
a failed member leaves the sum. Noise is addressed by (seed, iteration, global pair id): it is formed for a tile when the tile
is evaluated, and formed again, on every rank alike, for the update. What lies between is at most the bits of a few hundred
pairs of ±1 noise, half a kilobyte a pair (`_packed_signs`). Only noise that is projected on what a pair visited
(common/projection.py) cannot be formed again: there each tile adds up its own part of the sum.
"""

import math
from dataclasses import dataclass, field, replace
from functools import lru_cache

import torch
from torch import Tensor

from common.philox import Purpose, gaussian, pack_signs, signs, stream_words, unpack_signs
from common.rollout import GaussianAdapter, RankOneAdapter

NOISES = ("gaussian", "rank1")
PERTURBED = ("both", "v")
PROJECTIONS = ("none", "visited")
SHAPINGS = ("raw", "zscore", "centered-rank", "sign", "normal-score")
FAILURES = ("remove", "penalise")
SIGMA_SCHEDULES = ("fixed", "cosine", "adaptive")
CHUNKS_AT_ONCE = 2  # of pairs whose sums wait to be added


# --- Noise -----------------------------------------------------------------------------------------------------------


@dataclass(frozen=True)
class GaussianNoise:
    """ε ~ N(0, I) in all D = 2Nr coordinates: the brief's noise."""

    seed: int
    size: int
    rank: int
    perturbs: str = "both"  # or V alone: ε_U = 0

    CHUNK = 4  # pairs a task of `weighted_sum`: 4 MB at N = 2000, r = 32

    def draw(self, iteration: int, pairs_P: Tensor) -> tuple[Tensor, Tensor]:
        """(ε_U, ε_V), each float32 (P, N, r), for global pair ids int64 (P,)."""
        half = self.size * self.rank
        draw_PD = gaussian(self.seed, Purpose.NOISE, (pairs_P, iteration), 2 * half, pairs_P.device)
        if self.perturbs == "v":
            draw_PD[:, :half] = 0
        shape = (len(pairs_P), self.size, self.rank)
        return draw_PD[:, :half].reshape(shape), draw_PD[:, half:].reshape(shape)

    def adapter(self, u_Nr: Tensor, v_Nr: Tensor, iteration: int, pairs_P: Tensor, sigma: float):
        """The members θ ± σε of these pairs, ready for a rollout tile."""
        e_u_PNr, e_v_PNr = self.draw(iteration, pairs_P)
        return GaussianAdapter(u_Nr, v_Nr, e_u_PNr.to(u_Nr.dtype), e_v_PNr.to(u_Nr.dtype), sigma)

    def weighted_sum(self, weights_GK: Tensor, iteration: int, map_tasks=map) -> tuple[Tensor, Tensor]:
        """Σ_i w_gi ε_i for G rows of weights at once: float32 (G, K) → (G, N, r) for U and for V."""

        def partial(chunk):
            pairs_P, weights_GP = chunk
            return [torch.einsum("gp,pnr->gnr", weights_GP, e_PNr) for e_PNr in self.draw(iteration, pairs_P)]

        return _sum_chunks(partial, weights_GK, self.CHUNK, (self.size, self.rank), map_tasks)


@dataclass(frozen=True)
class RankOneNoise:
    """ε_U = a bᵀ, ε_V = c dᵀ with independent ±1 entries: 2(N + r) random bits a pair in place of 2Nr Gaussians.

    Mean zero and identity covariance, which is all that the estimate's first order needs. The idea of low-rank noise is
    EGGROLL's (Sarkar et al. 2025, "Evolution strategies at the hyperscale").
    """

    seed: int
    size: int
    rank: int
    perturbs: str = "both"  # or V alone: a = 0
    u_size: float = 1.0  # a has entries of this size
    basis_Nk: Tensor | None = field(
        default=None, compare=False
    )  # orthonormal: a = √(N/k) Q s with ±1 entries of s (k,)

    # Pairs whose bits are made together, and a task of `weighted_sum`. A GPU is asked for few, large operations.
    CHUNK = {"cpu": 64, "cuda": 4096}

    def draw(self, iteration: int, pairs_P: Tensor) -> tuple[Tensor, Tensor, Tensor, Tensor]:
        """a (P, N), b (P, r), c (P, N), d (P, r), float32 ±1, for global pair ids int64 (P,)."""
        count = 2 * (self.size + self.rank)
        chunk = self.CHUNK["cpu"]
        chunks_P = pairs_P // chunk
        # On a GPU to look at the ids would be to wait for it, and a hundred small operations are queued ahead of the work.
        if pairs_P.device.type == "cpu" and (chunks_P == chunks_P[0]).all():
            octets = _packed_signs(self.seed, iteration, int(chunks_P[0]), chunk, count)
            draw = unpack_signs(octets[pairs_P % chunk], count)
        else:
            draw = signs(self.seed, Purpose.NOISE, (pairs_P, iteration), count, pairs_P.device)
        a_PN, b_Pr, c_PN, d_Pr = draw.split((self.size, self.rank, self.size, self.rank), dim=1)
        if self.perturbs == "v":
            return torch.zeros_like(a_PN), b_Pr, c_PN, d_Pr
        if self.basis_Nk is not None:
            directions = self.basis_Nk.shape[1]
            a_PN = a_PN[:, :directions] @ (self.basis_Nk.T * math.sqrt(self.size / directions))
        return a_PN if self.u_size == 1 else a_PN * self.u_size, b_Pr, c_PN, d_Pr

    def within(self, basis_Nk: Tensor) -> "RankOneNoise":
        """The same noise with that of U confined to the span of orthonormal columns, float32 (N, k), and as long as before."""
        return replace(self, basis_Nk=basis_Nk)

    def for_update(self, factors: tuple[Tensor, ...]) -> tuple[Tensor, ...]:
        """Factors by which the weighted sum is an estimate of the gradient, where those of the perturbation have another size: of
        U's its projection on the basis."""
        share = 1.0 if self.basis_Nk is None else self.basis_Nk.shape[1] / self.size
        scale = share / self.u_size**2
        return factors if scale == 1 else (factors[0] * scale, *factors[1:])

    def adapter(self, u_Nr: Tensor, v_Nr: Tensor, iteration: int, pairs_P: Tensor, sigma: float):
        """The members θ ± σε of these pairs, ready for a rollout tile."""
        factors = (factor.to(u_Nr.dtype) for factor in self.draw(iteration, pairs_P))
        return RankOneAdapter(u_Nr, v_Nr, *factors, sigma, perturbs_u=self.perturbs == "both")

    def weighted_sum(self, weights_GK: Tensor, iteration: int, map_tasks=map) -> tuple[Tensor, Tensor]:
        """Σ_i w_gi ε_i for G rows of weights at once: float32 (G, K) → (G, N, r) for U and for V, as thin products."""

        def partial(chunk):
            pairs_P, weights_GP = chunk
            return weighted_outer(weights_GP, self.for_update(self.draw(iteration, pairs_P)))

        chunk = self.CHUNK[weights_GK.device.type]
        return _sum_chunks(partial, weights_GK, chunk, (self.size, self.rank), map_tasks)


def weighted_outer(weights_GP: Tensor, factors: tuple[Tensor, ...]) -> tuple[Tensor, ...]:
    """Σ_p w_gp a_p b_pᵀ and Σ_p w_gp c_p d_pᵀ, each (G, N, r), for the factors a, b, c, d of P pairs; or for two alone the one."""

    def weighted(long_PN: Tensor, short_Pr: Tensor) -> Tensor:
        right_PGr = weights_GP.T[:, :, None] * short_Pr[:, None]
        return (long_PN.T @ right_PGr.flatten(1)).unflatten(1, right_PGr.shape[1:]).transpose(0, 1)

    return tuple(weighted(*factors[start : start + 2]) for start in range(0, len(factors), 2))


@lru_cache(maxsize=8)
def _packed_signs(seed: int, iteration: int, chunk: int, pairs: int, count: int) -> Tensor:
    """Eight signs a byte, uint8 (pairs, count / 8), of a chunk of pairs: half a kilobyte a pair at N = 2000, r = 32.

    A hundred small operations make the words of two pairs in the time of a hundred: neighbouring tiles share them.
    """
    pairs_P = torch.arange(chunk * pairs, (chunk + 1) * pairs)
    return pack_signs(stream_words(seed, Purpose.NOISE, (pairs_P, iteration), -(-count // 32)))


def _sum_chunks(partial, weights_GK: Tensor, chunk: int, shape: tuple[int, int], map_tasks) -> tuple[Tensor, Tensor]:
    """Sum `partial((pairs_P, weights_GP))` over chunks of pairs, always in the order of the pairs."""
    pairs_K = torch.arange(weights_GK.shape[1], device=weights_GK.device)
    tasks = list(zip(pairs_K.split(chunk), weights_GK.split(chunk, dim=1), strict=True))
    sum_u_GNr = torch.zeros((len(weights_GK), *shape), device=weights_GK.device)
    sum_v_GNr = torch.zeros_like(sum_u_GNr)
    for start in range(0, len(tasks), CHUNKS_AT_ONCE):  # not all at once: each holds a matrix for U and for V
        for part_u_GNr, part_v_GNr in map_tasks(partial, tasks[start : start + CHUNKS_AT_ONCE]):
            sum_u_GNr += part_u_GNr
            sum_v_GNr += part_v_GNr
    return sum_u_GNr, sum_v_GNr


def make_noise(
    kind: str, seed: int, size: int, rank: int, perturbs: str = "both", u_size: float = 1.0
) -> GaussianNoise | RankOneNoise:
    """u_size: of U's noise relative to V's; rank-one noise only."""
    if kind == "gaussian":
        return GaussianNoise(seed, size, rank, perturbs)
    return RankOneNoise(seed, size, rank, perturbs, u_size)


def first_directions(weight_EN: Tensor, count: int) -> Tensor:
    """Orthonormal float32 (N, count): the right singular vectors of Wout (E, N) of the largest singular values.

    By the eigenvectors of Wout Woutᵀ in float64, E × E. U's gradient Σ δ pᵀ lies near them, for δ comes from Woutᵀ times an
    error first of all. Noise of a subspace that is likely to hold the gradient: Maheswaranathan et al. 2019, arXiv:1806.10230.
    """
    weight_EN = weight_EN.to(torch.float64)
    vectors_EE = torch.linalg.eigh(weight_EN @ weight_EN.T).eigenvectors
    return torch.linalg.qr(weight_EN.T @ vectors_EE[:, -count:].flip(1)).Q.to(torch.float32)


# --- Fitness shaping -------------------------------------------------------------------------------------------------


def shape_fitness(losses_M: Tensor, method: str) -> Tensor:
    """Losses of the surviving members, finite float64 (M,), to utilities (M,); lower loss gives lower utility.

    raw: the losses. zscore: (L − mean) / std. centered-rank: rank / (M − 1) − ½, ties sharing their mean rank.
    """
    if method == "raw":
        return losses_M.clone()
    if method == "zscore":
        spread = losses_M.std(correction=0)
        return (losses_M - losses_M.mean()) / spread if spread > 0 else torch.zeros_like(losses_M)
    return _ranks(losses_M) / max(len(losses_M) - 1, 1) - 0.5


def _ranks(values_M: Tensor) -> Tensor:
    """Ranks from 0, float64 (M,). The mean rank of ties is (number below + number not above − 1) / 2, whatever order a sort would
    leave them in."""
    ordered_M = values_M.sort().values
    below_M = torch.searchsorted(ordered_M, values_M, side="left")
    not_above_M = torch.searchsorted(ordered_M, values_M, side="right")
    return (below_M + not_above_M - 1).to(torch.float64) / 2


def shape_differences(difference_P: Tensor, method: str) -> Tensor:
    """Differences L⁺ − L⁻ of the surviving pairs, float64 (P,), to weights (P,) of the same signs.

    sign: their signs, which count all pairs alike. normal-score: sign(d) Φ⁻¹(½ + (rank(|d|) + ½) / 2P), the normal scores of
    signed ranks (van der Waerden 1952; Fraser 1957): as efficient as the differences themselves where these are normal, and
    no single pair weighs much more than others where their tails are heavy.
    """
    if method == "sign":
        return difference_P.sign()
    share_P = (_ranks(difference_P.abs()) + 0.5) / len(difference_P)
    return difference_P.sign() * math.sqrt(2) * torch.erfinv(share_P)


@dataclass(frozen=True)
class PairWeights:
    """difference_K float64 (K,): u_i⁺ − u_i⁻, zero for pairs that left the update. surviving_K bool (K,)."""

    difference_K: Tensor
    surviving_K: Tensor


def pair_weights(
    losses_K2: Tensor,
    failed_K2: Tensor,
    shaping: str,
    failure: str = "remove",
    failure_loss: float = 10.0,
    loss_clip: float = math.inf,
) -> PairWeights:
    """From the members' losses, float64 (K, 2) with signs (+, −), to each pair's weight in the estimate.

    failure "remove": a pair with a failed member (failed_K2) leaves the update. "penalise": a failed member gets
    `failure_loss`, as in the brief, and takes part. Measured losses are clipped at `loss_clip` before shaping.
    shaping: of `shape_fitness`, or of `shape_differences`. The latter are for pairs that have sequences of their own: those of some
    differ a hundred times as much as those of others, and sequences differ more than the members of a pair.
    """
    losses_K2 = losses_K2.clamp(max=loss_clip)
    if failure == "penalise":
        losses_K2 = torch.where(failed_K2, failure_loss, losses_K2)
        surviving_K = torch.ones(len(losses_K2), dtype=torch.bool)
    else:
        surviving_K = ~failed_K2.any(dim=1)
    difference_K = torch.zeros(len(losses_K2), dtype=torch.float64)
    if surviving_K.any():
        survivors_P2 = losses_K2[surviving_K]
        if shaping in ("sign", "normal-score"):
            difference_K[surviving_K] = shape_differences(survivors_P2[:, 0] - survivors_P2[:, 1], shaping)
        else:
            utilities_P2 = shape_fitness(survivors_P2.flatten(), shaping).unflatten(0, (-1, 2))
            difference_K[surviving_K] = utilities_P2[:, 0] - utilities_P2[:, 1]
    return PairWeights(difference_K, surviving_K)


# --- The estimate ----------------------------------------------------------------------------------------------------


@dataclass(frozen=True)
class Estimate:
    """grad_u_Nr, grad_v_Nr float32 (N, r): ĝ. norm: |ĝ|. half_cosine: cosine between the estimates of the even and of
    the odd pairs (NaN where a half is zero); its expectation is in common/laws.py.
    """

    grad_u_Nr: Tensor
    grad_v_Nr: Tensor
    norm: float
    half_cosine: float


def estimate_gradient(noise, weights: PairWeights, iteration: int, sigma: float, device, map_tasks=map) -> Estimate:
    """ĝ of this iteration, formed from regenerated noise; the same bits on every rank.

    Raises ZeroDivisionError if no pair survived: the caller has to skip the update.
    """
    return estimate_of(*noise.weighted_sum(half_weights(weights, sigma, device), iteration, map_tasks))


def half_weights(weights: PairWeights, sigma: float, device) -> Tensor:
    """What each pair's noise is multiplied by in the sum of the even and of the odd pairs: float32 (2, K).

    Raises ZeroDivisionError if no pair survived.
    """
    surviving = int(weights.surviving_K.sum())
    scaled_K = weights.difference_K / (2 * surviving * sigma)
    even_K = torch.arange(len(scaled_K)) % 2 == 0
    return torch.stack((scaled_K * even_K, scaled_K * ~even_K)).to(device, torch.float32)


def estimate_of(sum_u_GNr: Tensor, sum_v_GNr: Tensor) -> Estimate:
    """ĝ from the weighted sums of the even and of the odd pairs, each (2, N, r)."""
    halves_GD = torch.cat((sum_u_GNr.flatten(1), sum_v_GNr.flatten(1)), dim=1).to(torch.float64)
    (even_even, even_odd), (_, odd_odd) = (halves_GD @ halves_GD.T).tolist()
    norms = math.sqrt(even_even * odd_odd)
    return Estimate(
        grad_u_Nr=sum_u_GNr[0] + sum_u_GNr[1],
        grad_v_Nr=sum_v_GNr[0] + sum_v_GNr[1],
        norm=math.sqrt(even_even + 2 * even_odd + odd_odd),
        half_cosine=even_odd / norms if norms > 0 else math.nan,
    )


# --- The size of the noise -------------------------------------------------------------------------------------------


class Sigma:
    """σ over the run: fixed; a cosine from `start` to `end`; or adapted to what happens.

    Adaptive, looked at whenever the validation set is scored: more than `failing` of the members failed since the last
    look → σ is multiplied by `down`; else, if the validation error is not below its last value by a share of `progress` →
    multiplied by `up`. (Minibatch losses would not do: they differ by more than the progress looked for.) σ stays within a
    factor of ten of its start.

    Whatever the schedule, an iteration in which all members failed halves σ for good: nothing was learned from it, and smaller
    noise is what may save the next. State is plain numbers, so that a checkpoint can hold it.
    """

    def __init__(
        self,
        schedule: str,
        start: float,
        end: float,
        iterations: int,
        failing: float = 0.1,
        progress: float = 0.001,
        down: float = 0.7,
        up: float = 1.1,
    ):
        self.schedule, self.start, self.end, self.iterations = schedule, start, end, iterations
        self.failing, self.progress, self.down, self.up = failing, progress, down, up
        self.value = start
        self.reduction = 1.0  # by iterations in which all members failed
        self.failed: list[float] = []
        self.last_error: float | None = None

    def at(self, iteration: int) -> float:
        """σ of a 1-based iteration."""
        if self.schedule == "cosine":
            done = (iteration - 1) / max(self.iterations - 1, 1)
            return self.reduction * (self.end + (self.start - self.end) * (1 + math.cos(math.pi * done)) / 2)
        return self.reduction * self.value

    def all_failed(self) -> None:
        """Tell it that no member of an iteration survived."""
        self.reduction /= 2

    def iterated(self, failed_share: float) -> None:
        """Tell it which share of an iteration's members failed."""
        if self.schedule == "adaptive":
            self.failed.append(failed_share)

    def validated(self, error: float) -> None:
        """Tell it the error on the validation set, and let it adapt. The first call, before any iteration, only records."""
        if self.schedule != "adaptive":
            return
        if self.failed:
            if math.fsum(self.failed) / len(self.failed) > self.failing:
                self.value = max(self.value * self.down, self.start / 10)
            elif not error < self.last_error * (1 - self.progress):
                self.value = min(self.value * self.up, self.start * 10)
        self.last_error, self.failed = error, []

    def state_dict(self) -> dict:
        return {"value": self.value, "reduction": self.reduction, "failed": self.failed, "last_error": self.last_error}

    def load_state_dict(self, state: dict) -> None:
        self.value, self.reduction = state["value"], state["reduction"]
        self.failed, self.last_error = list(state["failed"]), state["last_error"]
