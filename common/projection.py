"""Noise projected on the states that a pair visited: the part of it that the losses can know about.

The noise of V acts on a rollout only through E_Vᵀ h_t. Its part orthogonal to every state that the pair visited had no
influence on the pair's losses; in the estimate (L⁺ − L⁻) E_V it is noise without signal. Left out, the estimate keeps its
expectation and its variance falls by about N / (number of visited states).

With rank-one noise E_V = c dᵀ the projection concerns c alone: P_H c = H (HᵀH)⁻¹ Hᵀ c, where the columns of H (N, M) are the
visited states (in code its rows, (M, N)). Gram matrices and solves are small (M, M) and batched over the pairs of a tile.
"""

import torch
from torch import Tensor


def visited_states(states_TNC: Tensor, columns: tuple[int, int, int]) -> Tensor:
    """What each pair of a tile visited, (P, M, N) with M = (T − 1)·B: the mean of the states of θ + σε and θ − σε.

    states_TNC (T, N, C) with C = P·2·B columns in the order (pair, sign, sequence), as `Rollout.errors(…, keep_states=True)`
    returns them. The last state never goes through V. The mean stands for both states of a pair, which differ by O(σ): the
    projection is exact to first order in σ.
    """
    pairs, _, sequences = columns
    steps, size = len(states_TNC) - 1, states_TNC.shape[1]
    rows_TCN = states_TNC.new_empty(steps, pairs * sequences, size)
    for rows_CN, states_NC in zip(rows_TCN, states_TNC):
        plus_NPB, minus_NPB = states_NC.unflatten(1, columns).unbind(2)
        mean_NC = torch.add(plus_NPB, minus_NPB).mul_(0.5).flatten(1)
        rows_CN.copy_(
            mean_NC.T
        )  # matrix by matrix: torch transposes those four times as fast as one block of all steps
    return rows_TCN.unflatten(1, (pairs, sequences)).transpose(0, 1).flatten(1, 2)


def project(states_PMN: Tensor, vector_PN: Tensor, ridge: float = 1e-9) -> Tensor:
    """P_H c for each pair: its vector (P, N) projected on the span of its states (P, M, N); returns (P, N) in its dtype.

    Gram matrices and solves are in float64, for successive states are nearly parallel. ridge: added to the Gram matrix,
    relative to its mean diagonal; directions in which the states hardly extend are so left out rather than blown up.
    Raises torch.linalg.LinAlgError if a Gram matrix is not positive definite or not finite.
    """
    states_PMN = states_PMN.to(torch.float64)
    gram_PMM = torch.bmm(states_PMN, states_PMN.mT)
    diagonal_PM = gram_PMM.diagonal(dim1=1, dim2=2)
    diagonal_PM += ridge * diagonal_PM.mean(dim=1, keepdim=True)
    right_PM1 = torch.bmm(states_PMN, vector_PN.to(torch.float64).unsqueeze(2))
    weight_PM1 = torch.cholesky_solve(right_PM1, torch.linalg.cholesky(gram_PMM))
    return torch.bmm(weight_PM1.mT, states_PMN).squeeze(1).to(vector_PN.dtype)
