"""Truncated rollouts: members leave from states of the unperturbed parameters and run for the steps of one window.

A sequence of T steps is cut into T / L windows of L steps. The unperturbed parameters run through all of it once. In each window
the M members of a *group* start from the state there, with M different noises on V, and are scored on the window's L
predictions: what a member's noise does beyond its window nobody looks at. That is a truncated unroll (as in truncated
backpropagation through time), with two gains: a window has L·r dimensions for a loss to depend on in place of (T − 1)·r, and
members need no second one of the opposite sign, for their group's mean loss is known (`group_weights`).

All windows of a few sequences go side by side: G = (T / L)·B windows and M·G columns in the order (member, window, sequence). They
share the M noise vectors (those of V). That leaves the mean of the estimate as it is; errors of different windows are then no longer independent, which
matters as far as their gradients agree: not where these are mostly noise, by some tens of per cent of the variance early in a run. Hence
`MOST_SHARING`. The first step's W0 h + U Vᵀh + Win z + b
are known from the unperturbed run, the same for a whole group.
"""

from collections.abc import Callable
from dataclasses import dataclass
from typing import Protocol

import torch
from torch import Tensor

from common.projection import orthonormal_rows
from common.rollout import Rollout, columns_per_tile

SAME = 1e-7  # relative spread of losses below which they are the same, but for rounding
MOST_SHARING = 4  # sequences that share noise vectors


def sequences_at_once(members: int, windows: int, size: int, dtype: torch.dtype, device_type: str) -> int:
    """Sequences whose windows are run side by side: as many as fill five quarters of the device's column target (measured to be no loss),
    one at least and `MOST_SHARING` at most. By rule, never by stopwatch."""
    columns = 5 * columns_per_tile(size, dtype, device_type) // 4
    return max(1, min(columns // (members * windows), MOST_SHARING))


@dataclass(frozen=True)
class Windows:
    """G windows of L steps, those of B sequences in the order (window, sequence).

    state_LNG: the unperturbed parameters' state h before each step. inner_LNG: their W0 h + U Vᵀh + Win z + b in it. drive_LNG: Win z + b.
    target_LEG: what is to be predicted.
    """

    state_LNG: Tensor
    inner_LNG: Tensor
    drive_LNG: Tensor
    target_LEG: Tensor

    def of_sequences(self, sequences: int, first: int, count: int) -> "Windows":
        """The windows of `count` of the `sequences`, from the `first` on."""
        return self._map(lambda x: x.unflatten(-1, (-1, sequences))[..., first : first + count].flatten(-2))

    def groups(self, first: int, count: int) -> "Windows":
        """`count` windows from the `first` on."""
        return self._map(lambda x: x[..., first : first + count])

    def _map(self, choose: Callable[[Tensor], Tensor]) -> "Windows":
        return Windows(*(choose(x) for x in (self.state_LNG, self.inner_LNG, self.drive_LNG, self.target_LEG)))


@torch.no_grad()
def cut(rollout: Rollout, u_Nr: Tensor, v_Nr: Tensor, drive_TNB: Tensor, target_TEB: Tensor, length: int) -> Windows:
    """Run the unperturbed parameters through B sequences and cut them into windows of `length` steps, which must divide T."""
    u_Nr, v_Nr = u_Nr.to(rollout.dtype), v_Nr.to(rollout.dtype)
    state_TNB, inner_TNB = torch.zeros_like(drive_TNB), torch.empty_like(drive_TNB)
    for step, drive_NB in enumerate(drive_TNB):
        h_NB = state_TNB[step]
        x_NB = rollout.recurrent(h_NB).addmm_(u_Nr, v_Nr.T @ h_NB).add_(drive_NB)
        inner_TNB[step] = x_NB
        if step + 1 < len(drive_TNB):
            torch.lerp(h_NB, x_NB.tanh_(), rollout.leak, out=state_TNB[step + 1])

    def windows(x_TXB: Tensor) -> Tensor:
        x_WLXB = x_TXB.unflatten(0, (-1, length))
        return x_WLXB.permute(1, 2, 0, 3).flatten(2)

    return Windows(*(windows(x_TXB) for x_TXB in (state_TNB, inner_TNB, drive_TNB, target_TEB)))


class GroupAdapter(Protocol):
    """What M members, each in G windows, make of their states: `rollout.RankOneAdapter` of V alone, or `activity_noise.ActivityNoise`."""

    u_Nr: Tensor

    def first_kick(self, h_NG: Tensor) -> Tensor:
        """In the first step, where a group's members are in one state: by how much each differs in Vᵀh, (r, M, G)."""

    def prepare(self, columns: tuple[int, int, int]) -> None:
        """Make the buffers for the steps after it, of (M, 1, G) columns."""

    def add_to(self, x_NC: Tensor, h_NC: Tensor) -> None:
        """x += what each member's adapter makes of h, in place; called once for each step after the first."""


@torch.no_grad()
def member_errors(
    rollout: Rollout,
    adapter: GroupAdapter,
    windows: Windows,
    weight_EN: Tensor,
    bias_E: Tensor,
) -> Tensor:
    """Squared errors of M members at each step of G windows, summed over dimensions: float64 (L, M, G).

    A state that is not a number makes an error that is none.
    """
    length, _, groups = windows.drive_LNG.shape
    leak, h_NG = rollout.leak, windows.state_LNG[0]
    kick_rMG = adapter.first_kick(h_NG)
    members = kick_rMG.shape[1]
    # x + U kick for each group's x: one product, in which a group's columns choose it.
    own_GMG = torch.eye(groups, dtype=h_NG.dtype, device=h_NG.device)[:, None].expand(-1, members, -1)
    left_NA, right_AC = (
        torch.cat((adapter.u_Nr, windows.inner_LNG[0]), dim=1),
        torch.cat((kick_rMG, own_GMG)).flatten(1),
    )
    y_NC = (left_NA @ right_AC).tanh_()
    weight_EN, bias_E1 = weight_EN.to(rollout.dtype), bias_E.to(rollout.dtype)[:, None]
    # Of (1 − α) h + α y the first part is the same for a group. α is a number, or one of each unit: then it goes to the weights.
    leak_of_weight = leak.T if isinstance(leak, Tensor) else leak
    shared_EG = torch.addmm(bias_E1, weight_EN * (1 - leak_of_weight), h_NG)
    error_EC = (weight_EN * leak_of_weight) @ y_NC
    error_EC.unflatten(1, (members, groups)).add_(shared_EG[:, None])
    error_LMG = torch.empty(length, members, groups, dtype=torch.float64, device=rollout.device)
    if length > 1:
        adapter.prepare((members, 1, groups))
        h_NC = h_NG.repeat(1, members).lerp_(y_NC, leak)
    for step in range(length):
        if step > 0:
            x_NC = rollout.recurrent(h_NC)
            adapter.add_to(x_NC, h_NC)
            x_NC.unflatten(1, (members, groups)).add_(windows.drive_LNG[step][:, None])
            h_NC.lerp_(x_NC.tanh_(), leak)
            error_EC = torch.addmm(bias_E1, weight_EN, h_NC)
        error_EMG = error_EC.to(windows.target_LEG.dtype).unflatten(1, (members, groups))
        error_LMG[step] = error_EMG.sub_(windows.target_LEG[step][:, None]).square_().sum(dim=0)
    return error_LMG


def group_weights(loss_MG: Tensor, standardise: bool = True) -> tuple[Tensor, Tensor]:
    """Losses of a group's members, float64 (M, G), to weights (M, G), and which groups count, bool (G,).

    A loss less its group's mean, times M / (M − 1): less the mean of the *other* members, which knows nothing of this one's noise, so that
    the weighted sum of noise stays unbiased (the leave-one-out baseline of REINFORCE; Kool, van Hoof, Welling 2019).
    standardise: then divided by the group's standard deviation, so that windows count nearly alike, however steep they are (Shao et al.
    2024, arXiv:2402.03300, do so with the rewards of a group of answers). It is no longer unbiased, for the divisor knows each member:
    shorter by a few per cent at M = 16, and along g_w to a thousandth. A group does not count, and has weights 0, where a loss
    is not finite or all are the same as far as float32 can tell.
    """
    members, mean_G, spread_G = len(loss_MG), loss_MG.mean(dim=0), loss_MG.std(dim=0)
    counts_G = loss_MG.isfinite().all(dim=0) & (spread_G > SAME * mean_G.abs())
    weight_MG = (loss_MG - mean_G) * (members / (members - 1))
    if standardise:
        weight_MG = weight_MG / spread_G
    return weight_MG.masked_fill(~counts_G, 0), counts_G


def weighted_noise(windows: Windows, weight_MG: Tensor, c_MN: Tensor, d_Mr: Tensor) -> Tensor:
    """Σ_g P_g Σ_m w_mg c_m d_mᵀ, float32 (N, r): noise projected on the L states that its window went through, weighted.

    A window's losses know nothing of the rest of c_m (common/projection.py). Its weights must be 0 where a state is not finite.
    """
    basis_GLN = orthonormal_rows(windows.state_LNG.permute(2, 0, 1).to(torch.float32))
    basis_GLN = torch.where((weight_MG != 0).any(dim=0)[:, None, None], basis_GLN, 0)
    inner_GLM = basis_GLN @ c_MN.T
    inner_GLM *= weight_MG.T[:, None].to(torch.float32)
    return basis_GLN.flatten(0, 1).T @ (inner_GLM.flatten(0, 1) @ d_Mr)
