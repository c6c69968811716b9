"""The fast rollout: many columns, each a pair of (parameters, sequence), go through the reservoir side by side.

The state of a tile is (N, C), one column for each member and sequence, so that the frozen weights are read once for all
columns. A tile's columns are ordered (pair, sign, sequence) and a tile always has the same, padded number of them: matrix
products of other widths can differ in the last bit. Columns never mix, so a member that overflows harms itself only.

What differs between members is the adapter, and there is one small class for each way to apply it:
`SharedAdapter` (all columns alike), `RankOneAdapter` (EGGROLL-like noise, no member's weights ever formed) and
`GaussianAdapter` (a full noise matrix a pair). CPU tiles run one thread each; parallelism is over tiles (see dist.py).
"""

from dataclasses import dataclass

import torch
from torch import Tensor
from torch.nn import functional

from common.reservoir import Reservoir

COLUMNS = {"cpu": 128, "cuda": 4096}  # a CPU tile's state at N = 2000 is 1 MB: it stays in a core's L2 cache
GPUS_PER_NODE = 8
MOST_PAIRS = 32  # rank-one corrections ride along as extra columns of the adapter; beyond r of them they would dominate


def pairs_per_tile(population_pairs: int, batch_size: int, device_type: str) -> int:
    """How many pairs share a tile. A rule over the shape alone, never over speed or the number of ranks.

    As many as fill the device's column target, but no more than an eighth of the population, so that eight ranks all have
    work at the brief's K = 32.
    """
    fitting = COLUMNS[device_type] // (2 * batch_size)
    return max(1, min(fitting, -(-population_pairs // GPUS_PER_NODE), MOST_PAIRS))


class SharedAdapter:
    """U (Vᵀ h) with the same U, V (N, r) for every column."""

    def __init__(self, u_Nr: Tensor, v_Nr: Tensor):
        self.u_Nr, self.v_rN = u_Nr, v_Nr.T.contiguous()

    def add_to(self, x_NC: Tensor, h_NC: Tensor) -> None:
        x_NC.addmm_(self.u_Nr, self.v_rN @ h_NC)


class RankOneAdapter:
    """(U + sσ a bᵀ)(V + sσ c dᵀ)ᵀ h for P pairs with signs s = ±1, without forming any member's weights.

        p = Vᵀ h + sσ d (c·h)          U p + sσ a (b·p)

    The shared products and each pair's inner product with c go through one matrix product with [V | c_1 … c_P]; the way
    back, with [U | a_1 … a_P], likewise. a, c: (P, N); b, d: (P, r), entries ±1. Exact: no term of σ² is dropped.
    """

    def __init__(self, u_Nr, v_Nr, a_PN, b_Pr, c_PN, d_Pr, sigma: float, sequences: int):
        self.rank, self.pairs = u_Nr.shape[1], len(a_PN)
        self.left_NA = torch.cat((u_Nr, a_PN.T), dim=1).contiguous()
        self.right_AN = torch.cat((v_Nr.T, c_PN)).contiguous()
        self.b_rP1, self.d_rP1 = b_Pr.T.unsqueeze(-1).contiguous(), d_Pr.T.unsqueeze(-1).contiguous()
        sign_S = torch.ones(2 * sequences, dtype=u_Nr.dtype, device=u_Nr.device)
        sign_S[sequences:] = -1
        self.step_S = sign_S * sigma  # sσ of a pair's columns: first those of θ + σε, then those of θ − σε

    def add_to(self, x_NC: Tensor, h_NC: Tensor) -> None:
        w_AC = self.right_AN @ h_NC
        p_rPS = w_AC[: self.rank].view(self.rank, self.pairs, -1)
        inner_PPS = w_AC[self.rank :].view(self.pairs, self.pairs, -1)  # c of one pair with the state of another
        diagonal_SP = inner_PPS.diagonal()  # a view: what each pair has with itself
        own_PS = diagonal_SP.T * self.step_S
        p_rPS += self.d_rP1 * own_PS
        back_PS = (self.b_rP1 * p_rPS).sum(dim=0) * self.step_S
        inner_PPS.zero_()
        diagonal_SP.copy_(back_PS.T)
        x_NC.addmm_(self.left_NA, w_AC)


class GaussianAdapter:
    """(U + sσ E_U)(V + sσ E_V)ᵀ h, each member with weights of its own: e_u, e_v (P, N, r)."""

    def __init__(self, u_Nr, v_Nr, e_u_PNr, e_v_PNr, sigma: float, sequences: int):
        both = torch.tensor([sigma, -sigma], dtype=u_Nr.dtype, device=u_Nr.device).view(1, 2, 1, 1)
        self.u_MNr = (u_Nr + both * e_u_PNr.unsqueeze(1)).flatten(0, 1)
        self.v_MrN = (v_Nr + both * e_v_PNr.unsqueeze(1)).flatten(0, 1).transpose(1, 2).contiguous()
        self.sequences = sequences

    def add_to(self, x_NC: Tensor, h_NC: Tensor) -> None:
        h_MNB = h_NC.unflatten(1, (-1, self.sequences)).transpose(0, 1)
        p_MrB = torch.bmm(self.v_MrN, h_MNB)
        x_NC.unflatten(1, (-1, self.sequences)).transpose(0, 1).add_(torch.bmm(self.u_MNr, p_MrB))


@dataclass
class TileResult:
    """error_TC float64 (T, C): squared error of each column at each step, summed over the 128 dimensions.
    failed_C bool (C,): the state left the guard or stopped being finite at some step."""

    error_TC: Tensor
    failed_C: Tensor


class Rollout:
    """A frozen reservoir ready to run on one device.

    guard: a column fails once RMS(h) over units exceeds it, or is not a number.
    """

    def __init__(
        self,
        reservoir: Reservoir,
        leak: float,
        guard: float,
        device: torch.device | str = "cpu",
        dtype: torch.dtype = torch.float32,
    ):
        self.device, self.dtype = torch.device(device), dtype
        self.reservoir = reservoir.to(self.device, dtype)
        self.size, self.leak = reservoir.size, leak
        self.guard_square = guard**2
        # Measured on CPUs: a dense product does about ten times the multiplications of a gather in the same time.
        sparse = self.device.type == "cpu" and reservoir.index_Nk.shape[1] * 10 < self.size
        self.dense_NN = None if sparse else reservoir.dense().to(self.device, dtype)

    def drive(self, z_TEB: Tensor) -> Tensor:
        """Win z_t + b for all steps, hoisted out of the time loop: (T, 128, B) → (T, N, B)."""
        return (self.reservoir.input_NE @ z_TEB.to(self.dtype)).add_(self.reservoir.bias_N[:, None])

    def recurrent(self, h_NC: Tensor) -> Tensor:
        """W0 h, a new (N, C)."""
        if self.dense_NN is not None:
            return self.dense_NN @ h_NC
        r = self.reservoir
        return functional.embedding_bag(r.index_Nk, h_NC, mode="sum", per_sample_weights=r.value_Nk)

    def steps(self, adapter, drive_TNDSB: Tensor, columns: tuple[int, int, int]):
        """Yield h_t (N, C) for t = 1 … T. The tensor is overwritten by the next step.

        columns: (P, S, B) with C = P·S·B. drive_TNDSB (T, N, D, 1, B): D = 1 where all pairs see the same sequences, else P.
        """
        h_NC = torch.zeros(self.size, columns[0] * columns[1] * columns[2], dtype=self.dtype, device=self.device)
        x_NC = torch.zeros_like(h_NC)  # before the first step the state is zero, and so are both products
        for step, drive_NDSB in enumerate(drive_TNDSB):
            if step > 0:
                x_NC = self.recurrent(h_NC)
                adapter.add_to(x_NC, h_NC)
            x_NC.unflatten(1, columns).add_(drive_NDSB)
            h_NC.lerp_(x_NC.tanh_(), self.leak)  # (1 − α) h + α tanh(·)
            yield h_NC

    def outside_guard(self, h_NC: Tensor) -> Tensor:
        """bool (C,): RMS(h) above the guard, or not a number (hence the negated comparison)."""
        return ~(h_NC.square().mean(dim=0) <= self.guard_square)

    @torch.no_grad()
    def errors(
        self, adapter, drive_TNDSB: Tensor, target_TEDSB: Tensor, weight_EN, bias_E, columns, end_early: bool = True
    ) -> TileResult:
        """Run a tile and score its predictions; nothing but errors is kept.

        target_TEDSB (T, 128, D, 1, B) float32: embeddings of frames 2 … T+1. weight_EN, bias_E: the decoder.
        end_early: on a CPU, stop once every column has failed; the errors of later steps are then zero and mean nothing.
        """
        count = columns[0] * columns[1] * columns[2]
        error_TC = torch.zeros(len(drive_TNDSB), count, dtype=torch.float64, device=self.device)
        failed_C = torch.zeros(count, dtype=torch.bool, device=self.device)
        weight_EN, bias_E1 = weight_EN.to(self.dtype), bias_E.to(self.dtype)[:, None]
        for step, h_NC in enumerate(self.steps(adapter, drive_TNDSB, columns)):
            failed_C |= self.outside_guard(h_NC)
            if end_early and self.device.type == "cpu" and bool(failed_C.all()):
                break
            prediction_EC = torch.addmm(bias_E1, weight_EN, h_NC).to(target_TEDSB.dtype)
            difference = prediction_EC.unflatten(1, columns).sub_(target_TEDSB[step])
            error_TC[step] = difference.square_().flatten(1).sum(dim=0)
        return TileResult(error_TC, failed_C | ~error_TC.isfinite().all(dim=0))

    @torch.no_grad()
    def states(self, u_Nr: Tensor, v_Nr: Tensor, drive_TNB: Tensor) -> Tensor:
        """All states of the unperturbed parameters, (N, T, B)."""
        steps, _, batch = drive_TNB.shape
        states_NTB = torch.empty(self.size, steps, batch, dtype=self.dtype, device=self.device)
        adapter = SharedAdapter(u_Nr.to(self.dtype), v_Nr.to(self.dtype))
        for step, h_NC in enumerate(self.steps(adapter, drive_TNB[:, :, None, None], (1, 1, batch))):
            states_NTB[:, step] = h_NC
        return states_NTB
