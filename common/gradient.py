"""The gradient through time, kept apart for each sequence: what an estimate is measured against. Nothing here trains anything.

With y_t = tanh(x_t), q_t = Uᵀ δ_t, p_t = Vᵀ h_{t−1} and λ_t = dL/dh_t along all paths, the loss of a sequence has

    δ_t = α λ_t ⊙ (1 − y_t²)        λ_{t−1} = ∂L/∂h_{t−1} + (1 − α) λ_t + W0ᵀ δ_t + V q_t
    dL/dU = Σ_t δ_t p_tᵀ            dL/dV = Σ_t h_{t−1} q_tᵀ                                   t = 2 … T

and the products over t are not formed before they are summed over sequences: a gradient of one sequence has 2Nr numbers, its
factors 2(T − 1)(N + r).
"""

import math
from dataclasses import dataclass
from functools import cached_property

import torch
from torch import Tensor

from common.dist import Workers
from common.encoder import EMBEDDING
from common.evaluation import inputs_and_targets
from common.problem import Embeddings
from common.rollout import Rollout, SharedAdapter


@dataclass(frozen=True)
class SequenceGradients:
    """Gradients of the losses of B sequences in factors, each (B, T − 1, N) or (B, T − 1, r): of U delta pᵀ, of V h qᵀ.

    perturbs: "both", or "v" where U is not looked at.
    """

    delta_BMN: Tensor
    p_BMr: Tensor
    h_BMN: Tensor
    q_BMr: Tensor
    perturbs: str = "both"

    def _factors(self) -> list[tuple[Tensor, Tensor]]:
        factors = [(self.delta_BMN, self.p_BMr), (self.h_BMN, self.q_BMr)]
        return factors if self.perturbs == "both" else factors[1:]

    def squared_norms(self) -> Tensor:
        """float32 (B,): |g_i|², by Gram matrices over the steps: |Σ_t a_t b_tᵀ|² = Σ_st (a_s·a_t)(b_s·b_t)."""
        return sum((a @ a.mT * (b @ b.mT)).sum(dim=(1, 2)) for a, b in self._factors())

    def weighted_sum(self, weight_B: Tensor) -> Tensor:
        """Σ_i w_i g_i, float32 (2Nr,) or, of V alone, (Nr,): U before V, each by rows."""
        sums = [(a * weight_B[:, None, None]).flatten(0, 1).T @ b.flatten(0, 1) for a, b in self._factors()]
        return torch.cat([x_Nr.flatten() for x_Nr in sums])


@torch.no_grad()
def sequence_gradients(
    rollout: Rollout,
    u_Nr: Tensor,
    v_Nr: Tensor,
    decoder: tuple[Tensor, Tensor],
    input_TEB: Tensor,
    target_TEB: Tensor,
    perturbs: str = "both",
    window: int = 0,
) -> SequenceGradients:
    """Gradients of each sequence's mean squared error over steps and dimensions. decoder: (Wout, bout).

    window: credit ends with every `window` steps, as in truncated backpropagation; 0: with the sequence.
    """
    weight_EN, bias_E = decoder
    drive_TNB = rollout.drive(input_TEB)
    adapter = SharedAdapter(u_Nr, v_Nr)
    columns = (1, 1, drive_TNB.shape[2])
    states_TNB = torch.stack([h_NB.clone() for h_NB, _ in rollout.steps(adapter, drive_TNB[:, :, None, None], columns)])
    before_TNB = torch.cat((torch.zeros_like(states_TNB[:1]), states_TNB[:-1]))
    y_TNB = (states_TNB - (1 - rollout.leak) * before_TNB) / rollout.leak
    error_TEB = weight_EN @ states_TNB + bias_E[:, None] - target_TEB
    direct_TNB = weight_EN.T @ error_TEB * (2 / (len(input_TEB) * EMBEDDING))
    delta_TNB, lambda_NB = torch.empty_like(states_TNB), torch.zeros_like(states_TNB[0])
    for step in reversed(range(len(states_TNB))):
        if window and (step + 1) % window == 0:
            lambda_NB.zero_()
        lambda_NB += direct_TNB[step]
        delta_TNB[step] = rollout.leak * lambda_NB * (1 - y_TNB[step].square())
        back_NB = rollout.recurrent_transposed(delta_TNB[step]) + v_Nr @ (u_Nr.T @ delta_TNB[step])
        lambda_NB = (1 - rollout.leak) * lambda_NB + back_NB
    h_BMN, delta_BMN = (x_MNB.permute(2, 0, 1).contiguous() for x_MNB in (states_TNB[:-1], delta_TNB[1:]))
    return SequenceGradients(delta_BMN, h_BMN @ v_Nr, h_BMN, delta_BMN @ u_Nr, perturbs)


class GradientSums:
    """Sums over many sequences, (2D + 2,), and what follows from them.

    Layout: Σ g_i, Σ g_i/|g_i|, Σ |g_i|², number of sequences.
    """

    def __init__(self, total: Tensor):
        dimensions = (len(total) - 2) // 2
        self.gradient_D, self.unit_D, rest = total.split((dimensions, dimensions, 2))
        self.squares, self.count = rest.tolist()

    @staticmethod
    def of(gradients: SequenceGradients, valid: int) -> Tensor:
        """The sums over the first `valid` sequences of a tile."""
        square_B = gradients.squared_norms()
        valid_B = (torch.arange(len(square_B), device=square_B.device) < valid).to(square_B.dtype)
        rest = torch.stack(((square_B * valid_B).sum(), valid_B.sum()))
        unit_B = valid_B * square_B.clamp_min(torch.finfo(square_B.dtype).tiny).rsqrt()
        return torch.cat((gradients.weighted_sum(valid_B), gradients.weighted_sum(unit_B), rest))

    def _unbiased(self, sum_D: Tensor, squares: float) -> float:
        """|E x|² from Σ x_i and Σ |x_i|²: without the products of a sequence with itself."""
        square = float(sum_D.to(torch.float64).square().sum())
        return (square - squares) / (self.count * (self.count - 1)) if self.count > 1 else math.nan

    @property
    def batch_noise(self) -> float:
        """ρ₁ = E|g_i|² / |E g_i|²: how much longer the gradient of one sequence is than that of all."""
        square = self._unbiased(self.gradient_D, self.squares)
        return self.squares / self.count / square if square > 0 else math.nan

    @property
    def agreement(self) -> float:
        """κ = |E g_i/|g_i||²: 1 where all sequences pull in one direction, 0 where they cancel."""
        return self._unbiased(self.unit_D, self.count)

    def cosines(self, estimate_D: Tensor) -> tuple[float, float]:
        """Of an estimate, to E g_i and to E g_i/|g_i|. With the expectations' unbiased norms: no lower for being known from a
        finite number of sequences."""
        pairs = [(self.gradient_D, self.squares), (self.unit_D, self.count)]
        return tuple(
            _cosine(sum_D / self.count, self._unbiased(sum_D, squares), estimate_D) for sum_D, squares in pairs
        )

    def cosines_to_these(self, estimate_D: Tensor) -> tuple[float, float]:
        """As `cosines`, to the sums over these very sequences."""
        sums = (self.gradient_D, self.unit_D)
        return tuple(_cosine(sum_D, float(sum_D.to(torch.float64).square().sum()), estimate_D) for sum_D in sums)


def _cosine(vector_D: Tensor, square: float, estimate_D: Tensor) -> float:
    """Between a vector whose squared length is told and an estimate; NaN where one of them has no direction."""
    vector_D, estimate_D = vector_D.to(torch.float64), estimate_D.to(torch.float64)
    scale = math.sqrt(max(square, 0.0)) * float(estimate_D.norm())
    return float(vector_D @ estimate_D) / scale if scale > 0 else math.nan


class GradientMeter:
    """Gradients of any training sequences at any θ, their tiles shared among the ranks; always in float32."""

    TILE = 64  # sequences

    def __init__(self, rollout: Rollout, embeddings: Embeddings, workers: Workers, perturbs: str):
        self._rollout, self.embeddings, self.workers, self.perturbs = rollout, embeddings, workers, perturbs

    @property
    def rollout(self) -> Rollout:
        """The training's own; or where that runs in another dtype one in float32, made when it is first used, with the leak as it is now."""
        if self._rollout.dtype == torch.float32:
            return self._rollout
        leak = self._rollout.leak
        self._in_float32.leak = leak.detach().to(torch.float32) if isinstance(leak, Tensor) else leak
        return self._in_float32

    @cached_property
    def _in_float32(self) -> Rollout:
        return Rollout(self.embeddings.problem.reservoir(), 0.5, 1.0, self._rollout.device)

    def sums(
        self, index_B: Tensor, u_Nr: Tensor, v_Nr: Tensor, decoder: tuple[Tensor, Tensor], window: int = 0
    ) -> GradientSums:
        """Over the training sequences int64 (B,), with credit that ends with each window, if there are any; every rank takes part
        and gets it."""
        count = len(index_B)
        index_B = torch.cat((index_B, index_B[-1:].expand(-count % self.TILE)))  # tiles are always full
        rollout = self.rollout  # made here, and not by several threads at once

        def evaluate(tile: int) -> Tensor:
            start = tile * self.TILE
            z_BFE = self.embeddings.get("train", index_B[start : start + self.TILE])
            arguments = (rollout, u_Nr, v_Nr, decoder, *inputs_and_targets(z_BFE), self.perturbs, window)
            return GradientSums.of(sequence_gradients(*arguments), min(self.TILE, count - start))

        dimensions = v_Nr.numel() * (2 if self.perturbs == "both" else 1)
        return GradientSums(self.workers.sum_tiles(evaluate, len(index_B) // self.TILE, 2 * dimensions + 2))
