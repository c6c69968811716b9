"""Noise projected on the states that a pair visited: the part of it that the losses can know about.

The noise of V acts on a rollout only through E_Vᵀ h_t. Its part orthogonal to every state that the pair visited had no
influence on the pair's losses; in the estimate (L⁺ − L⁻) E_V it is noise without signal. Left out, the estimate keeps its
expectation (to first order in σ) and its variance falls by about N / (number of visited states).

With rank-one noise E_V = c dᵀ the projection concerns c alone: P_H c = H (HᵀH)⁻¹ Hᵀ c, where the columns of H (N, M) are the
visited states (in code its rows, (M, N)). Gram matrices and solves are small (M, M) and batched over the pairs of a tile.
"""

import torch
from torch import Tensor

from common.rollout import RankOneAdapter


class VisitedStates:
    """What each pair of a tile visited, (P, M, N) with M = (T − 1)·B: the mean of the states of θ + σε and θ − σε.

    Pass it to `Rollout.errors` as `watch`, then take `of_pairs()`; the same object serves one tile after another. The last
    state never goes through V and is left out. The mean stands for both states of a pair, which differ by O(σ): the
    projection is exact to first order in σ.
    """

    def __init__(self, steps: int, size: int, columns: tuple[int, int, int], dtype=torch.float32, device="cpu"):
        """columns: (P, 2, B), in the order (pair, sign, sequence)."""
        self.columns = columns
        self.rows_TCN = torch.empty(steps - 1, columns[0] * columns[2], size, dtype=dtype, device=device)

    def __call__(self, step: int, h_NC: Tensor) -> None:
        """Keep the state after a 0-based step."""
        if step < len(self.rows_TCN):
            plus_NPB, minus_NPB = h_NC.unflatten(1, self.columns).unbind(2)
            mean_NC = torch.add(plus_NPB, minus_NPB).mul_(0.5).flatten(1)
            self.rows_TCN[step].copy_(mean_NC.T)  # rows, for Gram matrices go along the units

    def of_pairs(self) -> Tensor:
        """(P, M, N), the states of a pair in the order (step, sequence). A view where B = 1; the next tile overwrites it."""
        pairs, _, sequences = self.columns
        return self.rows_TCN.unflatten(1, (pairs, sequences)).transpose(0, 1).flatten(1, 2)


def _gram_root(states_PMN: Tensor, ridge: float) -> tuple[Tensor, Tensor]:
    """L with L Lᵀ = H Hᵀ + ridge for each P's rows H, (P, M, M), and whether there is none, int (P,)."""
    gram_PMM = torch.bmm(states_PMN, states_PMN.mT)
    diagonal_PM = gram_PMM.diagonal(dim1=1, dim2=2)
    mean_P1 = diagonal_PM.mean(dim=1, keepdim=True)
    # Of no states at all the span is zero: of Vᵀh while V = 0, and of a window of the zero state alone.
    diagonal_PM += torch.where(mean_P1 == 0, 1.0, ridge * mean_P1)
    return torch.linalg.cholesky_ex(gram_PMM)


def orthonormal_rows(states_PMN: Tensor, ridge: float = 1e-9) -> Tensor:
    """Q (P, M, N), in the dtype of the states, with P_H = Qᵀ Q for the span of each P's rows H (P, M, N): L⁻¹ H.

    As precise, and with the same ridge, as `project`. Where there are no such rows (all zero) or none can be had, zero or NaN.
    """
    rows_PMN = states_PMN.to(torch.float64)
    root_PMM, failed_P = _gram_root(rows_PMN, ridge)
    basis_PMN = torch.linalg.solve_triangular(root_PMM, rows_PMN, upper=False)
    return basis_PMN.masked_fill_((failed_P != 0)[:, None, None], torch.nan).to(states_PMN.dtype)


def project(states_PMN: Tensor, vector_PN: Tensor, ridge: float = 1e-9) -> Tensor:
    """P_H c for each pair: its vector (P, N) projected on the span of its states (P, M, N); returns (P, N) in its dtype.

    Gram matrices and solves are in float64, for successive states are nearly parallel. ridge: added to the Gram matrix,
    relative to its mean diagonal; directions in which the states hardly extend are so left out rather than blown up.
    States that are all zero leave nothing. A pair whose Gram matrix is not positive definite or not finite, for a member has
    failed, gets NaN; the others are as they would be without it.
    """
    states_PMN = states_PMN.to(torch.float64)
    right_PM1 = torch.bmm(states_PMN, vector_PN.to(torch.float64).unsqueeze(2))
    root_PMM, failed_P = _gram_root(states_PMN, ridge)
    weight_PM1 = torch.cholesky_solve(right_PM1, root_PMM)
    projected_PN = torch.bmm(weight_PM1.mT, states_PMN).squeeze(1)
    failed_P = (failed_P != 0) | ~projected_PN.isfinite().all(dim=1)
    return projected_PN.masked_fill_(failed_P[:, None], torch.nan).to(vector_PN.dtype)


def project_noise(adapter: RankOneAdapter, states_PMN: Tensor, v_Nr: Tensor) -> tuple[Tensor, ...]:
    """The factors a, b, c, d of a tile's rank-one noise, float32, without what the losses of a pair cannot know of: c projected
    on the states that the pair visited (P, M, N), b on their Vᵀh. A pair whose states are not numbers gets NaN."""
    _, _, a_PN, b_Pr, c_PN, d_Pr = (factor.to(torch.float32) for factor in adapter.factors())
    if adapter.perturbs_u:
        b_Pr = project(states_PMN @ v_Nr, b_Pr)
    return a_PN, b_Pr, project(states_PMN, c_PN), d_Pr
