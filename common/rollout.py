"""The fast rollout: many columns, each a pair of (parameters, sequence), go through the reservoir side by side.

The state of a tile is (N, C), one column for each member and sequence, so that the frozen weights are read once for all
columns. A tile's columns are ordered (pair, sign, sequence) and a tile always has the same, padded number of them: matrix
products of other widths can differ in the last bit. Columns never mix, so a member that overflows harms itself only.

What differs between members is the adapter, and there is one small class for each way to apply it:
`SharedAdapter` (all columns alike), `RankOneAdapter` (EGGROLL-like noise, no member's weights ever formed) and
`GaussianAdapter` (a full noise matrix a pair). CPU tiles run one thread each; parallelism is over tiles (see dist.py).

The time loop is a dozen calls into torch a step, in place and into buffers that are made before it: at the brief's size a
step takes a millisecond, and two threads that both came back to Python some thirty times a step would wait for each other.
"""

from dataclasses import dataclass

import torch
from torch import Tensor
from torch.nn import functional

from common.reservoir import Reservoir

STATE_BYTES = 2**20  # of a CPU tile: it stays in a core's L2 cache, which the sparse product reads k times a step
LEAST_COLUMNS, MOST_COLUMNS = 32, 1024  # narrower products are slow, wider ones gain nothing
CUDA_COLUMNS = 4096  # N = 2000 in float16: state and pre-activation are 16 MB each and stay in an H200's L2 beside W0
GPUS_PER_NODE = 8
MOST_PAIRS = 32  # rank-one corrections ride along as extra columns of the adapter; beyond r of them they would dominate
SPARSE_BELOW = (
    1 / 10
)  # share of non-zero weights; measured on CPUs: a dense product does ten times the work in the same time
SCORED_AT_ONCE = 4  # steps whose predictions are scored together


def columns_per_tile(size: int, dtype: torch.dtype, device_type: str) -> int:
    """Columns that a tile aims at: on a CPU the power of two whose state just fits `STATE_BYTES`."""
    if device_type != "cpu":
        return CUDA_COLUMNS
    fitting = max(STATE_BYTES // (size * dtype.itemsize), 1)
    return min(max(1 << (fitting.bit_length() - 1), LEAST_COLUMNS), MOST_COLUMNS)


def pairs_per_tile(population_pairs: int, batch_size: int, size: int, dtype: torch.dtype, device_type: str) -> int:
    """How many pairs share a tile. A rule over the shape alone, never over speed or the number of ranks.

    As many as fill the device's column target, but no more than an eighth of the population, so that eight ranks all have
    work at the brief's K = 32.
    """
    fitting = columns_per_tile(size, dtype, device_type) // (2 * batch_size)
    return max(1, min(fitting, -(-population_pairs // GPUS_PER_NODE), MOST_PAIRS))


class SharedAdapter:
    """U (Vᵀ h) with the same U, V (N, r) for every column."""

    def __init__(self, u_Nr: Tensor, v_Nr: Tensor):
        self.u_Nr, self.v_rN = u_Nr, v_Nr.T.contiguous()

    def prepare(self, columns: tuple[int, int, int]) -> None:
        """Make the buffers for a tile of (P, S, B) columns."""
        pairs, signs, sequences = columns
        self.p_rC = self.u_Nr.new_empty(self.u_Nr.shape[1], pairs * signs * sequences)

    def add_to(self, x_NC: Tensor, h_NC: Tensor) -> None:
        """x += U Vᵀ h, in place."""
        torch.mm(self.v_rN, h_NC, out=self.p_rC)
        x_NC.addmm_(self.u_Nr, self.p_rC)


class RankOneAdapter:
    """(U + sσ a bᵀ)(V + sσ c dᵀ)ᵀ h for P pairs with signs s = ±1, without forming any member's weights.

        p = Vᵀ h + sσ d (c·h)          U p + sσ a (b·p)

    The shared products and each pair's inner product with c go through one matrix product with [V | c_1 … c_P]; the way
    back, with [U | a_1 … a_P], likewise. Every column then has a number for each of the P pairs, of which only that of its
    own pair counts: multiplied by sσ, and the others by 0. a, c: (P, N); b, d: (P, r), entries ±1. Exact: no term of σ² is
    dropped.
    """

    def __init__(self, u_Nr, v_Nr, a_PN, b_Pr, c_PN, d_Pr, sigma: float):
        self.rank, self.sigma = u_Nr.shape[1], sigma
        self.left_NA = torch.cat((u_Nr, a_PN.T), dim=1)
        self.right_AN = torch.cat((v_Nr.T, c_PN))
        self.b_Pr, self.d_rP = b_Pr.contiguous(), d_Pr.T.contiguous()

    def prepare(self, columns: tuple[int, int, int]) -> None:
        """Make the buffers for a tile of (P, 2, B) columns."""
        pairs, _, sequences = columns
        scale_PPSB = self.left_NA.new_zeros(pairs, pairs, 2, sequences)
        diagonal_SBP = scale_PPSB.diagonal()
        diagonal_SBP[0], diagonal_SBP[1] = self.sigma, -self.sigma
        self.scale_PC = scale_PPSB.flatten(1)
        self.w_AC = self.left_NA.new_empty(self.rank + pairs, self.scale_PC.shape[1])
        self.p_rC, self.own_PC = self.w_AC[: self.rank], self.w_AC[self.rank :]

    def add_to(self, x_NC: Tensor, h_NC: Tensor) -> None:
        """x += what each member's adapter makes of h, in place."""
        torch.mm(self.right_AN, h_NC, out=self.w_AC)
        self.own_PC.mul_(self.scale_PC)
        self.p_rC.addmm_(self.d_rP, self.own_PC)
        torch.mm(self.b_Pr, self.p_rC, out=self.own_PC)
        self.own_PC.mul_(self.scale_PC)
        x_NC.addmm_(self.left_NA, self.w_AC)


class GaussianAdapter:
    """(U + sσ E_U)(V + sσ E_V)ᵀ h, each member with weights of its own: e_u, e_v (P, N, r)."""

    def __init__(self, u_Nr, v_Nr, e_u_PNr, e_v_PNr, sigma: float):
        both = torch.tensor([sigma, -sigma], dtype=u_Nr.dtype, device=u_Nr.device).view(1, 2, 1, 1)
        self.u_MNr = (u_Nr + both * e_u_PNr.unsqueeze(1)).flatten(0, 1)
        self.v_MrN = (v_Nr + both * e_v_PNr.unsqueeze(1)).flatten(0, 1).transpose(1, 2).contiguous()

    def prepare(self, columns: tuple[int, int, int]) -> None:
        """Make the buffers for a tile of (P, 2, B) columns."""
        self.sequences = columns[2]
        self.p_MrB = self.u_MNr.new_empty(len(self.u_MNr), self.u_MNr.shape[2], self.sequences)
        self.back_MNB = self.u_MNr.new_empty(*self.u_MNr.shape[:2], self.sequences)

    def add_to(self, x_NC: Tensor, h_NC: Tensor) -> None:
        """x += what each member's adapter makes of h, in place."""
        h_MNB = h_NC.unflatten(1, (-1, self.sequences)).transpose(0, 1)
        torch.bmm(self.v_MrN, h_MNB, out=self.p_MrB)
        torch.bmm(self.u_MNr, self.p_MrB, out=self.back_MNB)
        x_NC.unflatten(1, (-1, self.sequences)).transpose(0, 1).add_(self.back_MNB)


@dataclass
class TileResult:
    """error_TC float64 (T, C): squared error of each column at each step, summed over the 128 dimensions.
    failed_C bool (C,): the state left the guard or stopped being finite at some step.
    states_TNC (T, N, C) in the rollout's dtype: the states that each column visited; only on request, else None."""

    error_TC: Tensor
    failed_C: Tensor
    states_TNC: Tensor | None = None


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
        sparse = self.device.type == "cpu" and reservoir.index_Nk.shape[1] < SPARSE_BELOW * self.size
        self.dense_NN = None if sparse else reservoir.dense().to(self.device, dtype)
        self.index_Nk = self.reservoir.index_Nk.to(torch.int32)  # half the bytes that a sparse product has to read

    def drive(self, z_TEB: Tensor) -> Tensor:
        """Win z_t + b for all steps, hoisted out of the time loop: (T, 128, B) → (T, N, B)."""
        return (self.reservoir.input_NE @ z_TEB.to(self.dtype)).add_(self.reservoir.bias_N[:, None])

    def recurrent(self, h_NC: Tensor) -> Tensor:
        """W0 h, a new (N, C)."""
        if self.dense_NN is not None:
            return self.dense_NN @ h_NC
        return functional.embedding_bag(self.index_Nk, h_NC, mode="sum", per_sample_weights=self.reservoir.value_Nk)

    def steps(self, adapter, drive_TNDSB: Tensor, columns: tuple[int, int, int], states_TNC: Tensor | None = None):
        """Yield (h_t, scratch), each (N, C), for t = 1 … T. Scratch may be overwritten; the next step overwrites both.

        columns: (P, S, B) with C = P·S·B. drive_TNDSB (T, N, D, 1, B): D = 1 where all pairs see the same sequences, else P.
        states_TNC: where given, the states are written there and stay.
        """
        adapter.prepare(columns)
        h_NC = torch.zeros(self.size, columns[0] * columns[1] * columns[2], dtype=self.dtype, device=self.device)
        x_NC = torch.zeros_like(h_NC)  # before the first step the state is zero, and so are both products
        for step, drive_NDSB in enumerate(drive_TNDSB):
            if step > 0:
                del x_NC  # so that its memory, still in the cache, serves again
                x_NC = self.recurrent(h_NC)
                adapter.add_to(x_NC, h_NC)
            x_NC.unflatten(1, columns).add_(drive_NDSB)
            next_NC = h_NC if states_TNC is None else states_TNC[step]
            torch.lerp(h_NC, x_NC.tanh_(), self.leak, out=next_NC)  # (1 − α) h + α tanh(·)
            h_NC = next_NC
            yield h_NC, x_NC

    @torch.no_grad()
    def errors(
        self,
        adapter,
        drive_TNDSB: Tensor,
        target_TEDSB: Tensor,
        weight_EN: Tensor,
        bias_E: Tensor,
        columns: tuple[int, int, int],
        end_early: bool = True,
        keep_states: bool = False,
    ) -> TileResult:
        """Run a tile and score its predictions; nothing but errors is kept, and on request the states.

        target_TEDSB (T, 128, D, 1, B) float32: embeddings of frames 2 … T+1. weight_EN, bias_E: the decoder.
        end_early: on a CPU, stop once every column has failed; the errors of later steps are then zero and mean nothing.
        """
        steps, count = len(drive_TNDSB), columns[0] * columns[1] * columns[2]
        error_TC = torch.zeros(steps, count, dtype=torch.float64, device=self.device)
        failed_C = torch.zeros(count, dtype=torch.bool, device=self.device)
        states_TNC = torch.empty(steps, self.size, count, dtype=self.dtype, device=self.device) if keep_states else None
        weight_EN, bias_E1 = weight_EN.to(self.dtype), bias_E.to(self.dtype)[:, None]
        prediction_SEC = torch.empty(SCORED_AT_ONCE, len(bias_E), count, dtype=self.dtype, device=self.device)
        square_SC = torch.empty(SCORED_AT_ONCE, count, dtype=self.dtype, device=self.device)
        for step, (h_NC, scratch_NC) in enumerate(self.steps(adapter, drive_TNDSB, columns, states_TNC)):
            place = step % SCORED_AT_ONCE
            torch.addmm(bias_E1, weight_EN, h_NC, out=prediction_SEC[place])
            torch.mean(torch.mul(h_NC, h_NC, out=scratch_NC), dim=0, out=square_SC[place])
            if place < SCORED_AT_ONCE - 1 and step < steps - 1:
                continue
            first = step - place
            difference = prediction_SEC[: place + 1].to(target_TEDSB.dtype).unflatten(2, columns)
            difference -= target_TEDSB[first : step + 1]
            error_TC[first : step + 1] = difference.square_().flatten(2).sum(dim=1)
            # Negated, so that not a number fails too.
            failed_C |= ~(square_SC[: place + 1] <= self.guard_square).all(dim=0)
            if end_early and self.device.type == "cpu" and bool(failed_C.all()):
                break
        return TileResult(error_TC, failed_C | ~error_TC.isfinite().all(dim=0), states_TNC)

    @torch.no_grad()
    def states(self, u_Nr: Tensor, v_Nr: Tensor, drive_TNB: Tensor) -> Tensor:
        """All states of the unperturbed parameters, (N, T, B)."""
        steps, _, batch = drive_TNB.shape
        states_NTB = torch.empty(self.size, steps, batch, dtype=self.dtype, device=self.device)
        adapter = SharedAdapter(u_Nr.to(self.dtype), v_Nr.to(self.dtype))
        for step, (h_NC, _) in enumerate(self.steps(adapter, drive_TNB[:, :, None, None], (1, 1, batch))):
            states_NTB[:, step] = h_NC
        return states_NTB
