"""The fast rollout: many columns, each a pair of (parameters, sequence), go through the reservoir side by side.

The state of a tile is (N, C), one column for each member and sequence, so that the frozen weights are read once for all
columns. A tile's columns are ordered (pair, sign, sequence) and a tile always has the same, padded number of them: matrix
products of other widths can differ in the last bit. Columns never mix, so a member that overflows harms itself only.

What differs between members is the adapter, and there is one small class for each way to apply it:
`SharedAdapter` (all columns alike), `RankOneAdapter` (EGGROLL-like noise, no member's weights ever formed) and
`GaussianAdapter` (a full noise matrix a pair). CPU tiles run one thread each; parallelism is over tiles (see dist.py).

The time loop is a dozen calls into torch a step, in place and into buffers that are made before it; only embedding_bag takes no
buffer, and gets the block of memory that the last step gave back. At the brief's size a step takes a
millisecond, and two threads that both came back to Python some thirty times a step would wait for each other.

On a GPU W0 is dense, and there are four ways to run a tile (`KERNELS`):

    torch      the same calls as on a CPU, one after another
    graph      the same, all T steps captured once as a CUDA graph and launched as a whole
    epilogue   graph, with everything after W0 h in one kernel (common/epilogue.py)
    fused      rank-one tiles in one kernel for all steps, W0 sparse, the state on chip (common/fused.py)

Only what has been measured to be faster becomes the default, and on a GPU nothing has been yet: `torch`.
"""

import copy
from collections.abc import Callable
from dataclasses import dataclass
from functools import cached_property

import torch
from torch import Tensor
from torch.nn import functional

from common.errors import BadInput
from common.reservoir import Reservoir

STATE_BYTES = 2**20  # of a CPU tile: it stays in a core's L2 cache, which the sparse product reads k times a step
LEAST_COLUMNS, MOST_COLUMNS = 32, 1024  # narrower products are slow, wider ones gain nothing
# Of a GPU tile: state and pre-activation stay in an H200's 50 MB of L2 beside W0. N = 2000 in float16: 4,096 columns.
CUDA_STATE_BYTES, CUDA_MOST_COLUMNS = 2**24, 2**14
GPUS_PER_NODE = 8
MOST_PAIRS = 32  # rank-one corrections ride along as extra columns of the adapter; beyond r of them they would dominate
# Share of non-zero weights up to which W0 h is gathered by embedding_bag. Measured on a CPU (benchmarks/roofline.py), a gather
# takes as long as a dense product at a fifth (N ≤ 500) to a third (N ≥ 1000). Torch's CSR product is slower from N = 1000 on,
# and where it is not, by a fifth faster at most: not worth a third way.
SPARSE_BELOW = 1 / 5
KERNELS = ("torch", "graph", "epilogue", "fused")
MOST_UNGUARDED = 1000  # steps; a guard of 1 or more can never be left
SCORED_AT_ONCE = 4  # steps whose predictions are scored together


def columns_per_tile(size: int, dtype: torch.dtype, device_type: str) -> int:
    """Columns that a tile aims at: the power of two whose state just fits `STATE_BYTES` or `CUDA_STATE_BYTES`."""
    state_bytes, most = (STATE_BYTES, MOST_COLUMNS) if device_type == "cpu" else (CUDA_STATE_BYTES, CUDA_MOST_COLUMNS)
    fitting = max(state_bytes // (size * dtype.itemsize), 1)
    return min(max(1 << (fitting.bit_length() - 1), LEAST_COLUMNS), most)


def pairs_per_tile(
    population_pairs: int,
    batch_size: int,
    size: int,
    dtype: torch.dtype,
    device_type: str,
    kernel: str = "torch",
) -> int:
    """How many pairs share a tile. A rule over the shape alone, never over speed or the number of ranks.

    As many as fill the device's column target, but no more than an eighth of the population, so that eight ranks all have
    work at the brief's K = 32.
    """
    fitting = columns_per_tile(size, dtype, device_type) // (2 * batch_size)
    most = fitting if kernel == "fused" else MOST_PAIRS
    return max(1, min(fitting, -(-population_pairs // GPUS_PER_NODE), most))


def require_kernel(kernel: str, device_type: str, dtype: str, size: int = 0) -> None:
    """Raises BadInput where a tile of `size` units cannot be run that way."""
    if kernel == "torch":
        return
    if device_type != "cuda":
        raise BadInput(f"--kernel {kernel} needs a CUDA device; on a CPU choose torch")
    if kernel in ("epilogue", "fused"):
        if dtype not in ("float16", "float32"):
            raise BadInput(f"--kernel {kernel} takes --dtype float16 or float32, not {dtype}")
        from common.fused import available

        if not available(device_type):
            raise BadInput(f"--kernel {kernel} needs the package triton, which is not installed")
    if kernel == "fused" and dtype == "float16" and size > 2**15:
        raise BadInput(f"--kernel fused with --dtype float16 takes a --hidden-size of at most {2**15}, not {size}")


class SharedAdapter:
    """U (Vᵀ h) with the same U, V (N, r) for every column."""

    inputs = ("left_NA", "right_AN")

    def __init__(self, u_Nr: Tensor, v_Nr: Tensor):
        self.left_NA, self.right_AN = u_Nr, v_Nr.T.contiguous()

    def prepare(self, columns: tuple[int, int, int]) -> None:
        """Make the buffers for a tile of (P, S, B) columns."""
        pairs, signs, sequences = columns
        self.w_AC = self.left_NA.new_empty(self.left_NA.shape[1], pairs * signs * sequences)

    def inner(self, h_NC: Tensor) -> Tensor:
        """w (A, C) of U Vᵀ h = L w."""
        return torch.mm(self.right_AN, h_NC, out=self.w_AC)

    def add_to(self, x_NC: Tensor, h_NC: Tensor) -> None:
        """x += U Vᵀ h, in place."""
        x_NC.addmm_(self.left_NA, self.inner(h_NC))


class RankOneAdapter:
    """(U + sσ a bᵀ)(V + sσ c dᵀ)ᵀ h for P pairs with signs s = ±1, without forming any member's weights.

        p = Vᵀ h + sσ d (c·h)          U p + sσ a (b·p)

    The shared products and each pair's inner product with c go through one matrix product with [V | c_1 … c_P]; the way
    back, with [U | a_1 … a_P], likewise. Every column then has a number for each of the P pairs, of which only that of its
    own pair counts: multiplied by sσ, and the others by 0. a, c: (P, N); b, d: (P, r), entries ±1. Exact: no term of σ² is
    dropped.
    """

    inputs = ("left_NA", "right_AN", "b_Pr", "d_rP", "sigma")

    def __init__(self, u_Nr, v_Nr, a_PN, b_Pr, c_PN, d_Pr, sigma: float, perturbs_u: bool = True):
        """perturbs_u: where it is False, a = 0, and the way back is through U alone."""
        self.rank, self.sigma, self.sigma_value = u_Nr.shape[1], u_Nr.new_full((), sigma), sigma
        self.perturbs_u = perturbs_u
        self.left_NA = torch.cat((u_Nr, a_PN.T), dim=1) if perturbs_u else u_Nr
        self.right_AN = torch.cat((v_Nr.T, c_PN))
        self.b_Pr, self.d_rP = b_Pr.contiguous(), d_Pr.T.contiguous()

    def prepare(self, columns: tuple[int, int, int]) -> None:
        """Make the buffers for a tile of (P, 2, B) columns; or of (P, 1, B), all with sign +."""
        pairs, signs, sequences = columns
        scale_PPSB = self.left_NA.new_zeros(pairs, pairs, signs, sequences)
        diagonal_SBP = scale_PPSB.diagonal()
        diagonal_SBP[0], diagonal_SBP[1:] = self.sigma, -self.sigma
        self.scale_PC = scale_PPSB.flatten(1)
        self.w_AC = self.left_NA.new_empty(self.rank + pairs, self.scale_PC.shape[1])
        self.p_rC, self.own_PC = self.w_AC[: self.rank], self.w_AC[self.rank :]

    def inner(self, h_NC: Tensor) -> Tensor:
        """w (A, C) such that L w is what each member's adapter makes of h."""
        torch.mm(self.right_AN, h_NC, out=self.w_AC)
        self.own_PC.mul_(self.scale_PC)
        self.p_rC.addmm_(self.d_rP, self.own_PC)
        if not self.perturbs_u:
            return self.p_rC
        torch.mm(self.b_Pr, self.p_rC, out=self.own_PC)
        self.own_PC.mul_(self.scale_PC)
        return self.w_AC

    def add_to(self, x_NC: Tensor, h_NC: Tensor) -> None:
        """x += what each member's adapter makes of h, in place."""
        x_NC.addmm_(self.left_NA, self.inner(h_NC))

    @property
    def u_Nr(self) -> Tensor:
        return self.left_NA[:, : self.rank]

    def first_kick(self, h_NG: Tensor) -> Tensor:
        """Of noise on V alone, in states that all members share: σ d (c·h), which is added to Vᵀh, (r, P, G)."""
        assert not self.perturbs_u
        return self.d_rP[:, :, None] * (self.sigma * (self.right_AN[self.rank :] @ h_NG))

    def factors(self) -> tuple[Tensor, ...]:
        """U, V, a, b, c, d as they were given."""
        a_NP = (
            self.left_NA[:, self.rank :] if self.perturbs_u else self.u_Nr.new_zeros(len(self.left_NA), len(self.b_Pr))
        )
        v_rN, c_PN = self.right_AN.split((self.rank, len(self.b_Pr)))
        return self.u_Nr, v_rN.T, a_NP.T, self.b_Pr, c_PN, self.d_rP.T


class GaussianAdapter:
    """(U + sσ E_U)(V + sσ E_V)ᵀ h, each member with weights of its own: e_u, e_v (P, N, r)."""

    inputs = ("u_MNr", "v_MrN")

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
    failed_C bool (C,): the state left the guard or stopped being finite at some step."""

    error_TC: Tensor
    failed_C: Tensor


class Captured:
    """A function of tensors as a CUDA graph: launched as a whole, in place of hundreds of operators one by one.

    inputs: tensors of the shapes and dtypes that all calls will have. The function returns a tuple of tensors and must never
    wait for the GPU.
    """

    def __init__(self, function: Callable[..., tuple[Tensor, ...]], inputs: list[Tensor]):
        self.inputs = [tensor.clone() for tensor in inputs]
        side = torch.cuda.Stream()
        side.wait_stream(torch.cuda.current_stream())
        with torch.cuda.stream(side):
            for _ in range(2):  # libraries make their workspaces and Triton compiles, neither of which may be captured
                function(*self.inputs)
        torch.cuda.current_stream().wait_stream(side)
        self.graph = torch.cuda.CUDAGraph()
        with torch.cuda.graph(self.graph):
            self.outputs = function(*self.inputs)

    def __call__(self, inputs: list[Tensor]) -> tuple[Tensor, ...]:
        for held, given in zip(self.inputs, inputs):
            held.copy_(given)
        self.graph.replay()
        return tuple(tensor.clone() for tensor in self.outputs)


class Rollout:
    """A frozen reservoir ready to run on one device.

    guard: a column fails once RMS(h) over units exceeds it, or is not a number. kernel: how a GPU runs a tile, see above. leak: α; in
    place of the number may be set a tensor (1, 1) or (N, 1), one that learns (common/leak.py), for the kernel "torch".
    """

    def __init__(
        self,
        reservoir: Reservoir,
        leak: float,
        guard: float,
        device: torch.device | str = "cpu",
        dtype: torch.dtype = torch.float32,
        kernel: str = "torch",
    ):
        self.device, self.dtype, self.kernel = torch.device(device), dtype, kernel
        self.reservoir = reservoir.to(self.device, dtype)
        self.size = reservoir.size
        self.leak: float | Tensor = leak
        self.guard, self.guard_square = guard, guard * guard  # which may be infinite; guard**2 raises
        sparse = self.device.type == "cpu" and reservoir.index_Nk.shape[1] < SPARSE_BELOW * self.size
        self.dense_NN = None if sparse else reservoir.dense().to(self.device, dtype)
        self.index_Nk = self.reservoir.index_Nk.to(torch.int32)  # half the bytes that a sparse product has to read
        self.captured: dict[tuple, Captured] = {}  # by kind of adapter and shapes

    def steps_within_guard(self, rms: float, fastest: float | None = None) -> int:
        """For how many more steps no state of at most this RMS can leave the guard: they need not be looked at. fastest: the largest leak
        of the members, where they have their own.

        |tanh| < 1, so RMS(h_t) ≤ (1 − α) RMS(h_{t−1}) + α: its distance to 1 shrinks by 1 − α a step at most. (A number that
        is not one shows in the error of its step as well.) On a GPU to ask would be to wait: there every step is looked at.
        """
        if self.device.type != "cpu":
            return 0
        leak = fastest
        if leak is None:
            leak = float(self.leak.max()) if isinstance(self.leak, Tensor) else self.leak
        # Half a thousandth of the distance is kept for rounding.
        steps, distance = 0, (1 - rms) * (1 - leak) * 0.9995
        while distance >= 1 - self.guard and steps < MOST_UNGUARDED:
            steps, distance = steps + 1, distance * (1 - leak)
        return steps

    def drive(self, z_TEB: Tensor) -> Tensor:
        """Win z_t + b for all steps, hoisted out of the time loop: (T, 128, B) → (T, N, B)."""
        return (self.reservoir.input_NE @ z_TEB.to(self.dtype)).add_(self.reservoir.bias_N[:, None])

    def recurrent(self, h_NC: Tensor) -> Tensor:
        """W0 h, a new (N, C)."""
        if self.dense_NN is not None:
            return self.dense_NN @ h_NC
        return functional.embedding_bag(self.index_Nk, h_NC, mode="sum", per_sample_weights=self.reservoir.value_Nk)

    def recurrent_transposed(self, g_NC: Tensor) -> Tensor:
        """W0ᵀ g, a new (N, C), for gradients. A gather of rows on a CPU, as W0 h is, but W0's columns differ in length."""
        if self.dense_NN is not None:
            return self.dense_NN.T @ g_NC
        row_M, value_M, offset_N = self._by_column
        return functional.embedding_bag(row_M, g_NC, offset_N, mode="sum", per_sample_weights=value_M)

    @cached_property
    def _by_column(self) -> tuple[Tensor, Tensor, Tensor]:
        """Rows and values of W0's entries (M,) in the order of their columns, and where each column begins (N,)."""
        index_Nk, value_Nk = self.reservoir.index_Nk, self.reservoir.value_Nk
        order_M = index_Nk.flatten().argsort(stable=True)
        order_M = order_M[value_Nk.flatten()[order_M] != 0]  # without the padding of an Erdős–Rényi draw
        counts_N = torch.bincount(index_Nk.flatten()[order_M], minlength=self.size)
        return order_M // index_Nk.shape[1], value_Nk.flatten()[order_M], counts_N.cumsum(0) - counts_N

    def steps(self, adapter, drive_TNDSB: Tensor, columns: tuple[int, int, int], leak_XPS1: Tensor | None = None):
        """Yield (h_t, square) for t = 1 … T: the state (N, C), which the next step overwrites, and the mean of h² over units
        (C,) where the kernel has it at hand, else None.

        columns: (P, S, B) with C = P·S·B. drive_TNDSB (T, N, D, 1, B): D = 1 where all pairs see the same sequences, else P.
        leak_XPS1: members' own leaks, X = 1 or N; kernel "torch" only.
        """
        adapter.prepare(columns)
        epilogue = self.kernel == "epilogue" and hasattr(adapter, "inner")
        if epilogue:
            from common.epilogue import finish_step  # where it is needed: Triton takes its time to import
        h_NC = torch.zeros(self.size, columns[0] * columns[1] * columns[2], dtype=self.dtype, device=self.device)
        x_NC = torch.zeros_like(h_NC)  # before the first step the state is zero, and so are both products
        for step, drive_NDSB in enumerate(drive_TNDSB):
            if epilogue:
                back = None
                if step > 0:
                    torch.mm(self.dense_NN, h_NC, out=x_NC)
                    back = adapter.left_NA, adapter.inner(h_NC)
                square_C = finish_step(x_NC, h_NC, back, drive_NDSB, columns, self.leak)
                yield h_NC, square_C
                continue
            if step > 0:
                if self.dense_NN is not None:
                    torch.mm(self.dense_NN, h_NC, out=x_NC)
                else:
                    del x_NC  # so that its memory, still in the cache, serves again
                    x_NC = self.recurrent(h_NC)
                adapter.add_to(x_NC, h_NC)
            x_NC.unflatten(1, columns).add_(drive_NDSB)
            # (1 − α) h + α tanh(·)
            if leak_XPS1 is None:
                h_NC.lerp_(x_NC.tanh_(), self.leak)
            else:
                h_NC.unflatten(1, columns).lerp_(x_NC.tanh_().unflatten(1, columns), leak_XPS1)
            yield h_NC, None

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
        watch: Callable[[int, Tensor], object] | None = None,
        leak_XPS1: Tensor | None = None,
    ) -> TileResult:
        """Run a tile and score its predictions; nothing but errors is kept.

        target_TEDSB (T, 128, D, 1, B) float32: embeddings of frames 2 … T+1. weight_EN, bias_E: the decoder.
        end_early: on a CPU, stop once every column has failed; the errors of later steps are then zero and mean nothing.
        watch: called with (t − 1, h_t) after each step; h_t (N, C) is overwritten by the next. What the columns visit can so be
        had tile by tile (common/projection.py). Such a tile is never captured, nor run by the fused kernel, nor ended early.
        leak_XPS1: as of `steps`.
        """
        given = (drive_TNDSB, target_TEDSB, weight_EN, bias_E)
        if self.kernel == "torch" or watch is not None:
            return self._errors(adapter, *given, columns, end_early and watch is None, watch, leak_XPS1)
        if self.kernel == "fused" and isinstance(adapter, RankOneAdapter):
            return self._fused_errors(adapter, *given, columns)
        inputs = [*(getattr(adapter, name) for name in adapter.inputs), *given]
        key = (type(adapter), columns, *((tensor.shape, tensor.dtype) for tensor in inputs))
        if key not in self.captured:
            own = copy.copy(adapter)

            def run(*tensors: Tensor) -> tuple[Tensor, Tensor]:
                vars(own).update(zip(own.inputs, tensors))
                result = self._errors(own, *tensors[len(own.inputs) :], columns)
                return result.error_TC, result.failed_C

            self.captured[key] = Captured(run, inputs)
        return TileResult(*self.captured[key](inputs))

    def _fused_errors(
        self, adapter: RankOneAdapter, drive_TNDSB, target_TEDSB, weight_EN, bias_E, columns
    ) -> TileResult:
        from common.fused import fused_errors

        frozen = self.reservoir
        error_TC, failed_C = fused_errors(
            frozen.index_Nk,
            frozen.value_Nk,
            *adapter.factors(),
            adapter.sigma_value,
            drive_TNDSB.squeeze(3),
            target_TEDSB.squeeze(3),
            weight_EN,
            bias_E,
            self.leak,
            self.guard_square,
            columns[2],
        )
        return TileResult(error_TC.to(torch.float64), failed_C)

    def _errors(
        self,
        adapter,
        drive_TNDSB,
        target_TEDSB,
        weight_EN,
        bias_E,
        columns,
        end_early=False,
        watch=None,
        leak_XPS1=None,
    ) -> TileResult:
        steps, count = len(drive_TNDSB), columns[0] * columns[1] * columns[2]
        error_TC = torch.zeros(steps, count, dtype=torch.float64, device=self.device)
        failed_C = torch.zeros(count, dtype=torch.bool, device=self.device)
        weight_EN, bias_E1 = weight_EN.to(self.dtype), bias_E.to(self.dtype)[:, None]
        prediction_SEC = torch.empty(SCORED_AT_ONCE, len(bias_E), count, dtype=self.dtype, device=self.device)
        # To ask a GPU would be to wait for it, and nothing there is skipped.
        asks = leak_XPS1 is not None and self.device.type == "cpu"
        fastest = float(leak_XPS1.max()) if asks else None
        unguarded = self.steps_within_guard(0.0, fastest)
        for step, (h_NC, square_C) in enumerate(self.steps(adapter, drive_TNDSB, columns, leak_XPS1)):
            if watch is not None:
                watch(step, h_NC)
            place = step % SCORED_AT_ONCE
            torch.addmm(bias_E1, weight_EN, h_NC, out=prediction_SEC[place])
            if unguarded > 0:
                unguarded -= 1
            else:
                if square_C is None:
                    square_C = h_NC.square().mean(dim=0)
                failed_C |= ~(square_C <= self.guard_square)  # negated, so that not a number fails too
                if self.device.type == "cpu":
                    rms = float(square_C.masked_fill_(failed_C, 0).max()) ** 0.5
                    unguarded = self.steps_within_guard(rms, fastest)
            if place < SCORED_AT_ONCE - 1 and step < steps - 1:
                continue
            first = step - place
            difference = prediction_SEC[: place + 1].to(target_TEDSB.dtype).unflatten(2, columns)
            difference -= target_TEDSB[first : step + 1]
            error_TC[first : step + 1] = difference.square_().flatten(2).sum(dim=1)
            failed_C |= ~error_TC[first : step + 1].isfinite().all(dim=0)
            if end_early and self.device.type == "cpu" and bool(failed_C.all()):
                break
        return TileResult(error_TC, failed_C)

    @torch.no_grad()
    def states(self, u_Nr: Tensor, v_Nr: Tensor, drive_TNB: Tensor) -> Tensor:
        """All states of the unperturbed parameters, (N, T, B)."""
        steps, _, batch = drive_TNB.shape
        states_NTB = torch.empty(self.size, steps, batch, dtype=self.dtype, device=self.device)
        adapter = SharedAdapter(u_Nr.to(self.dtype), v_Nr.to(self.dtype))
        for step, (h_NC, _) in enumerate(self.steps(adapter, drive_TNB[:, :, None, None], (1, 1, batch))):
            states_NTB[:, step] = h_NC
        return states_NTB

    @torch.no_grad()
    def step(
        self, u_Nr: Tensor, v_Nr: Tensor, h_NB: Tensor, drive_NB: Tensor, leak: Tensor | float | None = None
    ) -> Tensor:
        """The state after one more step of the unperturbed parameters, a new (N, B): how `states` is continued from its last.

        leak: in the place of this rollout's, where α was trained.
        """
        u_Nr, v_Nr = u_Nr.to(self.dtype), v_Nr.to(self.dtype)
        x_NB = self.recurrent(h_NB).addmm_(u_Nr, v_Nr.T @ h_NB).add_(drive_NB)
        return h_NB.lerp(x_NB.tanh_(), self.leak if leak is None else leak)
