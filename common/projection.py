"""Noise projected on the states that a pair visited: the part of it that the losses can know about.

The noise of V acts on a rollout only through E_Vᵀ h_t. Its part orthogonal to every state that the pair visited had no
influence on the pair's losses; in the estimate (L⁺ − L⁻) E_V it is noise without signal. Left out, the estimate keeps its
expectation and its variance falls by about N / (number of visited states).

With rank-one noise E_V = c dᵀ the projection concerns c alone: P_H c = H (HᵀH)⁻¹ Hᵀ c, where the columns of H (N, M) are the
visited states. Gram matrices and solves are small (M, M) and batched over the pairs of a tile.
"""

import torch
from torch import Tensor


def visited_states(states_TNC: Tensor, columns: tuple[int, int, int]) -> Tensor:
    """What each pair of a tile visited, (P, N, M) with M = (T − 1)·B: the mean of the states of θ + σε and θ − σε.

    states_TNC (T, N, C) with C = P·2·B columns in the order (pair, sign, sequence), as `Rollout.errors(…, keep_states=True)`
    returns them. The last state never goes through V. The mean stands for both states of a pair, which differ by O(σ): the
    projection is exact to first order in σ.
    """
    pairs, _, sequences = columns
    plus_TNPB, minus_TNPB = states_TNC[:-1].unflatten(2, columns).unbind(3)
    mean_TNPB = torch.add(plus_TNPB, minus_TNPB).mul_(0.5)
    return mean_TNPB.permute(2, 1, 0, 3).reshape(pairs, states_TNC.shape[1], -1)


def project(states_PNM: Tensor, vector_PN: Tensor, ridge: float = 1e-9) -> Tensor:
    """P_H c for each pair: its vector (P, N) projected on the span of its states (P, N, M); returns (P, N) in its dtype.

    Gram matrices and solves are in float64, for successive states are nearly parallel. ridge: added to the Gram matrix,
    relative to its mean diagonal; directions in which the states hardly extend are so left out rather than blown up.
    Raises torch.linalg.LinAlgError if a Gram matrix is not positive definite or not finite.
    """
    states_PNM = states_PNM.to(torch.float64)
    gram_PMM = torch.bmm(states_PNM.transpose(1, 2), states_PNM)
    diagonal_PM = gram_PMM.diagonal(dim1=1, dim2=2)
    diagonal_PM += ridge * diagonal_PM.mean(dim=1, keepdim=True)
    right_PM1 = torch.bmm(states_PNM.transpose(1, 2), vector_PN.to(torch.float64).unsqueeze(2))
    weight_PM1 = torch.cholesky_solve(right_PM1, torch.linalg.cholesky(gram_PMM))
    return torch.bmm(states_PNM, weight_PM1).squeeze(2).to(vector_PN.dtype)
