"""Noise on the adapter's r activities p_t = Vᵀ h_{t−1}: node perturbation in the latent space that V feeds.

V acts through r numbers a step, and ∂L/∂V = Σ_t h_{t−1} (∂L/∂p_t)ᵀ. What has to be estimated by rollouts is ∂L/∂p_t, and of
nothing else is the noise: M probes leave from each window's first state (common/windows.py) with σ ξ_t added to p_t, ξ_t of ±1 in r
dimensions and fresh at each of the window's L steps. With δ_t the error of a probe's prediction at step t less that of the unperturbed V,

    q̂_t = 1/(σ M) Σ_m ξ_mt Σ_{s ≥ t} γ^{s − t} δ_ms         E q̂_t = Σ_{s ≥ t} γ^{s − t} ∂L_s/∂p_t, to first order in σ

of which the sum ends with the window. ξ and −ξ are equally likely and the even part of the loss cancels on average: the bias is O(σ²).

*Orthogonal* probes have the first M rows of a Hadamard matrix, the sign of each column drawn at random: E ξξᵀ = 1 as before. For powers
of two M ≤ L r, and a loss that knows all of a window's noise, E|q̂|² = |q|² L r / M in place of |q|² (1 + (L r − 1)/M) for *independent* ones
(`inflation` has other numbers); with M = L r probes q̂ = q but for O(σ): the even part of the error, which falls on one activity, with a
random sign. (Orthogonal directions in evolution strategies: Choromanski et al., arXiv:1804.02395; simultaneous perturbation with
Hadamard matrices: Bhatnagar et al. 2003.)
"""

from dataclasses import dataclass
from functools import lru_cache

import torch
from torch import Tensor

from common.philox import Purpose, signs
from common.rollout import SharedAdapter

KINDS = ("orthogonal", "independent")
CPU = torch.device("cpu")


def full_set(dimensions: int) -> int:
    """How many orthogonal probes there are: the least power of two that is no less than the dimensions."""
    return 1 << (dimensions - 1).bit_length()


@lru_cache(maxsize=16)
def hadamard_rows(members: int, dimensions: int, device: torch.device = CPU) -> Tensor:
    """First M rows and D columns of the Hadamard matrix of the least power of two that has them, float32 ±1 (M, D): Sylvester's. Kept: not to be
    written to.

    Its rows below a power of two repeat their columns with that period, so that no more than M by M of it is ever formed.
    """
    rows = torch.ones(1, 1, device=device)
    while len(rows) < members:
        rows = torch.cat((torch.cat((rows, rows), dim=1), torch.cat((rows, -rows), dim=1)))
    return rows[:members].repeat(1, -(-dimensions // len(rows)))[:, :dimensions].contiguous()


@dataclass(frozen=True)
class ActivitySigns:
    """ξ of M probes in each window of L steps: ±1, E ξξᵀ = 1 over all L r of a probe."""

    seed: int
    length: int
    rank: int
    members: int
    kind: str = "orthogonal"

    @property
    def dimensions(self) -> int:
        return self.length * self.rank

    def draw(self, iteration: int, ids_G: Tensor) -> Tensor:
        """float32 (L, r, M, G) for global window ids int64 (G,)."""
        drawn = self.dimensions * (self.members if self.kind == "independent" else 1)
        sign_GX = signs(self.seed, Purpose.NOISE, (ids_G, iteration), drawn, ids_G.device)
        sign_DMG = sign_GX.T.reshape(self.dimensions, -1, len(ids_G))
        if self.kind == "orthogonal":
            sign_DMG = hadamard_rows(self.members, self.dimensions, ids_G.device).T[:, :, None] * sign_DMG
        return sign_DMG.unflatten(0, (self.length, self.rank))

    def inflation(self) -> float:
        """E|q̂|² / |q|², the mean over directions of q: how much longer an estimate is than what it estimates, where the loss knows all
        of the window's noise. (Credit for later steps alone, in windows of several, leaves some of it out.)"""
        if self.kind == "independent":
            return 1 + (self.dimensions - 1) / self.members
        rows_MD = hadamard_rows(self.members, self.dimensions).to(torch.float64)
        return float((rows_MD.T @ rows_MD / self.members).square().sum() / self.dimensions)


class ActivityNoise:
    """U (Vᵀh + kick) for M members in G windows: a `windows.GroupAdapter`. kick_LrMG: what is added in each step, one after another."""

    def __init__(self, u_Nr: Tensor, v_Nr: Tensor, kick_LrMG: Tensor):
        self.u_Nr, self.v_Nr, self.kick_LrMG = u_Nr, v_Nr, kick_LrMG

    def first_kick(self, h_NG: Tensor) -> Tensor:
        return self.kick_LrMG[0]

    def prepare(self, columns: tuple[int, int, int]) -> None:
        self.step, self.shared = 0, SharedAdapter(self.u_Nr, self.v_Nr)
        self.shared.prepare(columns)

    def add_to(self, x_NC: Tensor, h_NC: Tensor) -> None:
        self.step += 1
        x_NC.addmm_(self.u_Nr, self.shared.inner(h_NC).add_(self.kick_LrMG[self.step].flatten(1)))


def credited(excess_LMG: Tensor, discount: float) -> Tensor:
    """Σ_{s ≥ t} γ^{s − t} δ_s at each step t of a window, (L, M, G) as given."""
    credit_LMG = excess_LMG.clone()
    for step in reversed(range(len(credit_LMG) - 1)):
        credit_LMG[step] += discount * credit_LMG[step + 1]
    return credit_LMG


def activity_gradients(sign_LrMG: Tensor, credit_LMG: Tensor, sigma: float) -> Tensor:
    """q̂ (L, r, G): 1/(σ M) Σ_m ξ_m times what it is credited with."""
    members = sign_LrMG.shape[2]
    return (sign_LrMG * credit_LMG[:, None].to(sign_LrMG.dtype)).sum(dim=2) / (sigma * members)


def probed_readout(seed: int, iteration: int, weight_EN: Tensor, probes: int) -> Tensor:
    """An estimate of Wout, float32 (E, N), from M forward passes through the readout alone: no weight is read but by what it makes of activity.

    1/M Σ_m (Wout ξ_m) ξ_mᵀ for M rows of a Hadamard matrix with random column signs: what a unit's activity does to each output, as the
    unit itself could learn it from noise (weight mirrors: Akrout et al., arXiv:1904.05391; from node perturbation: Lansdell, Prakash, Kording,
    arXiv:1906.00889). Unbiased; exact but for rounding where M is the least power of two ≥ N, for a readout is linear."""
    size = weight_EN.shape[1]
    sign_1N = signs(seed, Purpose.FEEDBACK, (torch.zeros(1, dtype=torch.int64), iteration), size, weight_EN.device)
    probe_MN = hadamard_rows(probes, size, weight_EN.device) * sign_1N
    response_EM = weight_EN @ probe_MN.T
    return (response_EM @ probe_MN).div_(probes)
