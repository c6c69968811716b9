"""All T steps of many columns in one kernel launch: `Rollout.errors` with a rank-one adapter, in Triton.

A program takes 32 columns from the first step to the last. Nothing of theirs is written for others to read but squared
errors, and W0 is used as it is, k inputs a unit, where the dense product of common/rollout.py multiplies N. The
equations are those of common/reservoir.py and `RankOneAdapter`:

    x = W0 h + U p + sσ a q + drive_t        h ← (1 − α) h + α tanh(x),    h_0 = 0
    p = Vᵀ h + sσ d (c·h),    q = b·p        error_t = Σ_e (Wout h + bout − target_t)²

A step is two passes over the units: one makes the new state, one multiplies it by V, c and Wout. As one pass they would
ask for the state in three layouts at once: Triton 3.7 then forms tanh once for each of them, and spills registers.

**Columns.** The caller's order is (pair, sign, sequence). Inside, a tile is 16 consecutive (pair, sequence) items,
first all with s = +1, then the same with s = −1: both signs share what they read, data of neighbouring columns lie side
by side, and a tile never meets more than 16 pairs. What belongs to a pair goes through matrix products (a times sσq in
the row of the column's pair; c·h of all pairs of the tile, of which a column keeps its own), as in `RankOneAdapter`, so
that no thread loads single signs. Columns never mix: a number that is not finite stays in its own.

**Where the state is.** Two halves, old and new, of (N, 32) in a global buffer of the program's own. The old half, which
a step reads k times, is 128 kB at N = 2000 in float16 and fits the SM's 256 kB of L1 beside the 42 kB of shared memory
that the compiled kernel asks for; the new half goes through to L2. Triton has no better place. A tensor in registers
cannot be indexed, but by `tl.gather`, which copies all 128 kB into shared memory before each of the k gathers and then
reads two bytes a thread: about three times the traffic. Shared memory itself can be gathered from in Gluon only
(`shared_memory_descriptor.gather`, Triton 3.7), which neither runs in the interpreter nor exists in the Triton 3.6 of
torch 2.11. What is read once a step in the first pass goes past the L1 (`.cg`), so as not to drive out the state. How
much of the 256 kB is L1 the driver decides; Triton has no way to ask for it.

**Order of memory.** Between the passes of a step, and between tiles, stands `tl.debug_barrier()`, a `bar.sync` of the
program's threads. By PTX's rules it makes what they wrote visible to each other, and no other program touches the
buffer. Triton itself puts no barrier between a store and a load of the same global memory (triton-lang/triton issue
10924), so these are not for debugging. State is read by plain `ld.global`, never by `ld.global.nc`, which may be stale:
tests/test_fused.py looks at the PTX.

Everything has one order: no atomics, block sizes by the rule below and never by stopwatch. A column's result depends on
its own data and pair alone, not on what else is in the launch or how many programs work at a time.

Triton is optional: without it this module can be imported, and `available` says no. `traffic` counts what a step costs.
"""

import torch
from torch import Tensor
from torch.nn import functional

try:
    import triton
    import triton.language as tl
except ImportError:
    triton = None

BLOCK_COLUMNS = 32  # half of them would read every weight twice as often; with 64 the state would not fit an L1
BLOCK_UNITS = 128  # of the first pass: a warp has 8 units × 32 columns, a thread eight columns: a 16-byte load
BLOCK_INNER = 64  # units at a time in the products of the second pass
STAGES = 2  # of which the next is fetched meanwhile; a third would take shared memory, which is taken from the L1
WARPS = 16
SMALLEST = 16  # side of the smallest block that tl.dot takes; also the most pairs that a tile can meet
UNROLL = 10  # gathers that a thread has in flight


def available(device: torch.device | str) -> bool:
    """Whether `fused_errors` can run there: with Triton, on a GPU or wherever it interprets (TRITON_INTERPRET=1)."""
    return triton is not None and (torch.device(device).type == "cuda" or _interprets())


def _interprets() -> bool:
    # Both were decided at import: this kernel with this module, Triton's own functions with Triton.
    return not any(isinstance(function, triton.runtime.JITFunction) for function in (_rollout_kernel, tl.sum))


if triton is not None:

    @triton.jit
    def _rollout_kernel(
        word_ptr,  # (blocks, k, BLOCK_N), from pack_words
        u_ptr,  # (N, r)
        v_ptr,  # (r, N)
        a_ptr,  # (P, N) int8, as c
        b_ptr,  # (P, r) int8, as d
        c_ptr,
        d_ptr,
        drive_ptr,  # (T, N, data)
        target_ptr,  # (T, E, data)
        weight_ptr,  # (E, N)
        bias_ptr,  # (E,)
        state_ptr,  # (programs, 2, N, BLOCK_C)
        error_ptr,  # (T, columns)
        failed_ptr,  # (columns,)
        steps,
        size,
        pairs,
        sequences,
        items,  # P · B, or data where there is no noise
        data,  # D · B: columns of drive and target
        columns,
        tiles,
        sigma,
        leak,
        guard_square,
        OWN: tl.constexpr,
        ALIGNED: tl.constexpr,
        NOISE: tl.constexpr,
        DEGREE: tl.constexpr,  # a multiple of CHAIN
        RANK: tl.constexpr,
        OUTPUTS: tl.constexpr,
        BLOCK_N: tl.constexpr,
        BLOCK_C: tl.constexpr,
        BLOCK_R: tl.constexpr,
        BLOCK_E: tl.constexpr,
        BLOCK_P: tl.constexpr,
        BLOCK_K: tl.constexpr,
        STAGES: tl.constexpr,
        CHAIN: tl.constexpr,
        UNROLL: tl.constexpr,
    ):
        """Programs walk over tiles of BLOCK_C columns. Suffixes: N units of a block, C columns of a tile, P its
        pairs."""
        number = state_ptr.dtype.element_ty
        BITS: tl.constexpr = number.primitive_bitwidth
        bits_type = tl.int16 if BITS == 16 else tl.int32
        BLOCK_I: tl.constexpr = BLOCK_C // 2 if NOISE else BLOCK_C  # items of a tile
        half = size * BLOCK_C
        home_ptr = state_ptr + tl.program_id(0).to(tl.int64) * 2 * half

        column_C = tl.arange(0, BLOCK_C)
        unit_N = tl.arange(0, BLOCK_N)
        rank_R = tl.arange(0, BLOCK_R)
        output_E = tl.arange(0, BLOCK_E)
        slot_P = tl.arange(0, BLOCK_P)
        inner_K = tl.arange(0, BLOCK_K)
        drive_step = tl.cast(data, tl.int64) * size  # 64 bits: the drive may have more than 2³¹ elements
        target_step = tl.cast(data, tl.int64) * OUTPUTS
        error_step = tl.cast(columns, tl.int64)
        bias_E = tl.load(bias_ptr + output_E, mask=output_E < OUTPUTS, other=0.0).to(tl.float32)

        for tile in range(tl.program_id(0), tiles, tl.num_programs(0)):
            item_C = tile * BLOCK_I + column_C % BLOCK_I
            live_C = item_C < items
            pair_C = item_C // sequences
            if NOISE:
                place_C = (2 * pair_C + column_C // BLOCK_I) * sequences + item_C % sequences
                step_C = tl.where(column_C < BLOCK_I, sigma, -sigma)  # sσ
                first_pair = tile * BLOCK_I // sequences
                pair_P = first_pair + slot_P
                here_P = pair_P < pairs
                own_PC = slot_P[:, None] == (pair_C - first_pair)[None, :]  # the pair of each column
                sign_RC = pair_C[None, :] * RANK + rank_R[:, None]
                known_RC = live_C[None, :] & (rank_R < RANK)[:, None]
                b_RC = tl.load(b_ptr + sign_RC, mask=known_RC, other=0).to(tl.float32)
                d_RC = tl.load(d_ptr + sign_RC, mask=known_RC, other=0).to(tl.float32)
            else:
                place_C = item_C
            if OWN:
                data_C = item_C
            elif ALIGNED:  # said so that the compiler sees neighbouring columns side by side
                data_C = tl.multiple_of(tile * BLOCK_I % sequences, BLOCK_I) + column_C % BLOCK_I
            else:
                data_C = item_C % sequences

            p_RC = tl.zeros((BLOCK_R, BLOCK_C), number)  # Vᵀh + …, of the state before this step
            back_PC = tl.zeros((BLOCK_P, BLOCK_C), number)  # sσ b·p in the row of the column's pair
            failed_C = tl.zeros((BLOCK_C,), tl.int1)
            for step in range(steps):
                old_ptr = home_ptr + (step + 1) % 2 * half
                new_ptr = home_ptr + step % 2 * half
                drive_step_ptr = drive_ptr + step * drive_step
                square_C = tl.zeros((BLOCK_C,), tl.float32)
                for start in range(0, size, BLOCK_N):
                    row_N = start + unit_N
                    within_N = row_N < size
                    spot_NC = row_N[:, None] * BLOCK_C + column_C[None, :]
                    x_NC = tl.load(
                        drive_step_ptr + row_N.to(tl.int64)[:, None] * data + data_C[None, :],
                        mask=within_N[:, None] & live_C[None, :],
                        other=0.0,
                        cache_modifier=".cg",
                    ).to(tl.float32)
                    h_NC = tl.zeros((BLOCK_N, BLOCK_C), tl.float32)
                    if step > 0:  # before the first step the state is zero, and so are all products with it
                        u_NR = tl.load(
                            u_ptr + row_N[:, None] * RANK + rank_R[None, :],
                            mask=within_N[:, None] & (rank_R < RANK)[None, :],
                            other=0.0,
                            cache_modifier=".cg",
                        )
                        low_NC = tl.dot(u_NR, p_RC, input_precision="ieee")
                        if NOISE:
                            a_NP = tl.load(
                                a_ptr + pair_P.to(tl.int64)[None, :] * size + row_N[:, None],
                                mask=here_P[None, :] & within_N[:, None],
                                other=0,
                                cache_modifier=".cg",
                            ).to(number)
                            low_NC = tl.dot(a_NP, back_PC, low_NC, input_precision="ieee")
                        word_block_ptr = word_ptr + start * DEGREE
                        for first in tl.range(0, DEGREE, CHAIN, loop_unroll_factor=UNROLL):
                            if CHAIN > 1:
                                part_NC = tl.zeros((BLOCK_N, BLOCK_C), number)
                            for j in tl.static_range(CHAIN):
                                # Past the L1: these words are more than it holds and would drive out the state.
                                word_N = tl.load(word_block_ptr + (first + j) * BLOCK_N + unit_N, cache_modifier=".cg")
                                source_N = (word_N >> BITS).to(tl.int32)
                                value_N = word_N.to(bits_type).to(number, bitcast=True)
                                input_NC = tl.load(old_ptr + source_N[:, None] * BLOCK_C + column_C[None, :])
                                if CHAIN > 1:
                                    part_NC += value_N[:, None] * input_NC
                                else:
                                    x_NC += value_N.to(tl.float32)[:, None] * input_NC.to(tl.float32)
                            if CHAIN > 1:
                                x_NC += part_NC.to(tl.float32)
                        x_NC += low_NC
                        h_NC = tl.load(old_ptr + spot_NC, mask=within_N[:, None], other=0.0).to(tl.float32)
                    # tanh without overflow: exp(2x) may be infinite or zero, and then this is ±1. NaN stays NaN.
                    h_NC += leak * (1 - 2 / (tl.exp(2 * x_NC) + 1) - h_NC)
                    h_NC = tl.where(within_N[:, None], h_NC, 0.0).to(number)
                    tl.store(new_ptr + spot_NC, h_NC, mask=within_N[:, None])
                    wide_NC = h_NC.to(tl.float32)
                    square_C += tl.sum(wide_NC * wide_NC, axis=0)
                # The new half is complete. And nobody reads the old one any more, which the next step overwrites.
                tl.debug_barrier()

                reach_RC = tl.zeros((BLOCK_R, BLOCK_C), tl.float32)  # Vᵀh
                inner_PC = tl.zeros((BLOCK_P, BLOCK_C), tl.float32)  # c·h of every pair of the tile with every column
                output_EC = tl.zeros((BLOCK_E, BLOCK_C), tl.float32)  # Wout h
                for start in tl.range(0, size, BLOCK_K, num_stages=STAGES):
                    row_K = start + inner_K
                    within_K = row_K < size
                    h_KC = tl.load(
                        new_ptr + row_K[:, None] * BLOCK_C + column_C[None, :], mask=within_K[:, None], other=0.0
                    )
                    v_RK = tl.load(
                        v_ptr + rank_R[:, None] * size + row_K[None, :],
                        mask=(rank_R < RANK)[:, None] & within_K[None, :],
                        other=0.0,
                    )
                    weight_EK = tl.load(
                        weight_ptr + output_E[:, None] * size + row_K[None, :],
                        mask=(output_E < OUTPUTS)[:, None] & within_K[None, :],
                        other=0.0,
                    )
                    output_EC = tl.dot(weight_EK, h_KC, output_EC, input_precision="ieee")
                    reach_RC = tl.dot(v_RK, h_KC, reach_RC, input_precision="ieee")
                    if NOISE:
                        c_PK = tl.load(
                            c_ptr + pair_P.to(tl.int64)[:, None] * size + row_K[None, :],
                            mask=here_P[:, None] & within_K[None, :],
                            other=0,
                        ).to(number)
                        inner_PC = tl.dot(c_PK, h_KC, inner_PC, input_precision="ieee")

                if NOISE:
                    inner_C = tl.sum(tl.where(own_PC, inner_PC, 0.0), axis=0)
                    reach_RC += d_RC * (step_C * inner_C)[None, :]
                    back_C = step_C * tl.sum(b_RC * reach_RC, axis=0)
                    back_PC = tl.where(own_PC, back_C[None, :], 0.0).to(number)
                p_RC = reach_RC.to(number)

                aim_EC = tl.load(
                    target_ptr + step * target_step + output_E[:, None] * data + data_C[None, :],
                    mask=(output_E < OUTPUTS)[:, None] & live_C[None, :],
                    other=0.0,
                ).to(tl.float32)
                difference_EC = output_EC + bias_E[:, None] - aim_EC
                error_C = tl.sum(difference_EC * difference_EC, axis=0)
                tl.store(error_ptr + step * error_step + place_C, error_C, mask=live_C)
                # Both comparisons are written so that NaN fails.
                failed_C = failed_C | ~(square_C / size <= guard_square) | ~(error_C < float("inf"))
            tl.debug_barrier()  # the next tile begins in half 0, which slower threads may still be reading
            tl.store(failed_ptr + place_C, failed_C, mask=live_C)


def pack_words(index_Nk: Tensor, value_Nk: Tensor, chain: int = 1) -> Tensor:
    """Index and weight of each input in one word, so that one load fetches both: (blocks of BLOCK_UNITS units, k,
    unit).

    index_Nk int64 (N, k), value_Nk float16 or float32 (N, k). The index is the high half of a word, the weight's bits
    the low half: int32 for float16, int64 for float32. Words of zero, the first unit times 0, fill up the last block,
    and k to a multiple of `chain`. Raises ValueError where N does not fit a signed half.
    """
    size, degree = index_Nk.shape
    bits, word = (16, torch.int32) if value_Nk.dtype == torch.float16 else (32, torch.int64)
    if size > 1 << (bits - 1):
        raise ValueError(f"{size} units do not fit an index of {bits} bits with a sign")
    value_bits = value_Nk.contiguous().view(torch.int16 if bits == 16 else torch.int32).to(word) & ((1 << bits) - 1)
    word_Nk = (index_Nk.to(word) << bits) | value_bits
    padded_Nk = functional.pad(word_Nk, (0, -degree % chain, 0, -size % BLOCK_UNITS))
    return padded_Nk.view(-1, BLOCK_UNITS, padded_Nk.shape[1]).transpose(1, 2).contiguous()


@torch.no_grad()
def fused_errors(
    index_Nk: Tensor,
    value_Nk: Tensor,
    u_Nr: Tensor,
    v_Nr: Tensor,
    a_PN: Tensor | None,
    b_Pr: Tensor | None,
    c_PN: Tensor | None,
    d_Pr: Tensor | None,
    sigma: float,
    drive_TNDB: Tensor,
    target_TEDB: Tensor,
    weight_EN: Tensor,
    bias_E: Tensor,
    leak: float,
    guard_square: float,
    sequences: int,
    chain: int = 1,
    programs: int | None = None,
) -> tuple[Tensor, Tensor]:
    """Errors of all columns of P antithetic pairs: what `Rollout.errors` makes of a `RankOneAdapter`.

    index_Nk int64, value_Nk (N, k): W0. Its dtype, float16 or float32, is that of state and products; sums are float32.
    u_Nr, v_Nr (N, r). a, c (P, N), b, d (P, r): noise factors ±1 in any dtype; all four None: the unperturbed network,
    whose columns are (D, B), without signs. sigma: σ. drive_TNDB (T, N, D, B): Win z + bias, D = 1 where all pairs see
    the same sequences, else P. target_TEDB (T, E, D, B). weight_EN, bias_E: the decoder. guard_square: a column fails
    once the mean of h² over the units exceeds it, or is not a number. sequences: B.
    chain: so many products of W0 h are summed in the dtype of the state before they go to float32. With 5 instead of 1
    the gather takes 14.2 instead of 24 instructions (see `traffic`), but sums of float16 are rounded as they grow.
    programs: how many work at a time, the GPU's multiprocessors if None; no result depends on it.

    Returns error_TC float32 (T, C): squared error of a column at a step, summed over E, columns ordered (pair, sign,
    sequence); failed_C bool (C,): out of the guard at some step, or an error that is not finite.
    Raises RuntimeError where the kernel cannot run (see `available`), ValueError for shapes and dtypes that it does not
    take.
    """
    device, dtype = value_Nk.device, value_Nk.dtype
    if not available(device):
        raise RuntimeError(
            f"the fused rollout needs Triton and a GPU, or TRITON_INTERPRET=1 in the environment; not {device}"
        )
    if chain < 1:
        raise ValueError(f"chain should be at least 1, not {chain}")
    if dtype not in (torch.float16, torch.float32):
        raise ValueError(f"the fused rollout takes float16 or float32, not {dtype}")
    factors = (a_PN, b_Pr, c_PN, d_Pr)
    noise = a_PN is not None
    if any((factor is not None) != noise for factor in factors):
        raise ValueError("either all four factors of the noise or none")
    size, degree = index_Nk.shape
    rank, outputs = u_Nr.shape[1], len(weight_EN)
    steps, _, depth, _ = drive_TNDB.shape
    pairs = len(a_PN) if noise else depth
    expected = {
        "value_Nk": (value_Nk, (size, degree)),
        "u_Nr": (u_Nr, (size, rank)),
        "v_Nr": (v_Nr, (size, rank)),
        "drive_TNDB": (drive_TNDB, (steps, size, depth, sequences)),
        "target_TEDB": (target_TEDB, (steps, outputs, depth, sequences)),
        "weight_EN": (weight_EN, (outputs, size)),
        "bias_E": (bias_E, (outputs,)),
    }
    if noise:
        expected |= {"a_PN": (a_PN, (pairs, size)), "b_Pr": (b_Pr, (pairs, rank))}
        expected |= {"c_PN": (c_PN, (pairs, size)), "d_Pr": (d_Pr, (pairs, rank))}
    for name, (tensor, shape) in expected.items():
        if tuple(tensor.shape) != shape:
            raise ValueError(f"{name} should be {shape}, not {tuple(tensor.shape)}")
        if tensor.device != device:
            raise ValueError(f"{name} is on {tensor.device}, value_Nk on {device}")
    if depth not in (1, pairs):
        raise ValueError(f"drive_TNDB holds the data of {depth} pairs, which is neither 1 nor {pairs}")

    # ±1 in one byte: with own data 2 kB a column-step from L2 at N = 2000, where float16 would take 4 (see `traffic`).
    nothing = torch.zeros(1, dtype=torch.int8, device=device)
    a, b, c, d = (f.to(torch.int8).contiguous() if noise else nothing for f in factors)
    items = pairs * sequences
    columns = items * 2 if noise else items
    tiles = -(-columns // BLOCK_COLUMNS)
    if programs is None:
        interprets = device.type != "cuda"
        programs = 1 if interprets else torch.cuda.get_device_properties(device).multi_processor_count
    programs = min(programs, tiles)
    state = torch.empty(programs, 2, size, BLOCK_COLUMNS, dtype=dtype, device=device)
    error_TC = torch.empty(steps, columns, dtype=torch.float32, device=device)
    failed_C = torch.empty(columns, dtype=torch.bool, device=device)
    if columns == 0 or steps == 0:
        return error_TC, failed_C.zero_()
    word = pack_words(index_Nk, value_Nk, chain)
    with torch.cuda.device_of(value_Nk):  # Triton launches on the current device
        _rollout_kernel[(programs,)](
            word,
            u_Nr.to(dtype).contiguous(),
            v_Nr.to(dtype).T.contiguous(),
            a,
            b,
            c,
            d,
            drive_TNDB.to(dtype).contiguous(),
            target_TEDB.contiguous(),
            weight_EN.to(dtype).contiguous(),
            bias_E.contiguous(),
            state,
            error_TC,
            failed_C,
            steps,
            size,
            pairs,
            sequences,
            items,
            depth * sequences,
            columns,
            tiles,
            float(sigma),
            float(leak),
            float(guard_square),
            OWN=depth == pairs and depth > 1,
            ALIGNED=sequences % (BLOCK_COLUMNS // 2 if noise else BLOCK_COLUMNS) == 0,
            NOISE=noise,
            DEGREE=word.shape[1],
            RANK=rank,
            OUTPUTS=outputs,
            BLOCK_N=BLOCK_UNITS,
            BLOCK_C=BLOCK_COLUMNS,
            BLOCK_R=max(SMALLEST, triton.next_power_of_2(rank)),
            BLOCK_E=max(SMALLEST, triton.next_power_of_2(outputs)),
            BLOCK_P=SMALLEST,
            BLOCK_K=BLOCK_INNER,
            STAGES=STAGES,
            CHAIN=chain,
            UNROLL=max(UNROLL // chain, 1),
            num_warps=WARPS,
            num_stages=1,  # pipelined loads would need shared memory, which is taken from the L1
        )
    return error_TC, failed_C


# --- What it should cost ---------------------------------------------------------------------------------------------

MULTIPROCESSORS, CLOCK = 132, 1.75e9  # an H200
L1_BYTES_PER_CLOCK, ISSUES_PER_CLOCK = 128, 4  # of a multiprocessor: bytes of loads that hit, instructions of a warp
L2_BYTES_PER_SECOND = 5.5e12
DENSE_FLOPS = 800e12  # float16 matrix products, as measured on one
# Of a warp for one input of its 8 units × 32 columns, by chain; counted in the sm_90 code of Triton 3.6.0 and 3.7.1.
INSTRUCTIONS = {1: 24.0, 5: 14.2}


def traffic(
    size: int = 2000, degree: int = 50, rank: int = 32, outputs: int = 128, pairs: int = 16, chain: int = 1
) -> dict[str, float]:
    """Bytes of one column in one step in float16 by level, and the seconds that follow on one H200.

    A PREDICTION from counts and peak rates; nothing of it was run on a GPU. chain: 1 or 5. pairs: how many a tile
    meets: 16 with own data and B = 1, one or two with a shared minibatch of 16 or more.

    Bytes: l1_gather: N k states. l2_state_pass: words of W0, U, a, drive, the state written, and read once until it is
    in the L1. l2_product_pass: Wout, V, c and the state once more. A tile's 32 columns share each weight. Seconds of
    the whole GPU a column-step, each at 100 % of its peak: l1_s, issue_s (instructions of the gather), l2_state_s,
    l2_product_s; fused_s: the largest of the first three, which overlap, plus the last, which comes after them;
    dense_s: 2 N² operations at DENSE_FLOPS, the product with a dense W0 alone, without its adapter, decoder and
    element-wise passes.

    At the defaults: 200 kB from L1, 27.8 + 25 = 53 kB from L2; gather 6.8 ns by bytes and 10.4 by instructions; fused
    14.9 ns (chain 5: 11.3) against a dense 10.0. So this kernel does not beat the dense product as such, even at its
    best; it can beat the dense *path*, whose other passes move the state some fifteen times (60 kB at L2's rate are
    another 11 ns).
    """
    units = -(-size // BLOCK_UNITS) * BLOCK_UNITS
    inputs = -(-degree // chain) * chain
    items = BLOCK_COLUMNS // 2
    state = 2 * size
    l1_gather = size * inputs * 2
    l2_state_pass = (4 * units * inputs + size * (2 * rank + pairs + 2 * items)) / BLOCK_COLUMNS + 2 * state
    l2_product_pass = size * (2 * outputs + 2 * rank + pairs) / BLOCK_COLUMNS + state
    clocks = MULTIPROCESSORS * CLOCK
    seconds = {
        "l1_s": l1_gather / (L1_BYTES_PER_CLOCK * clocks),
        "issue_s": units * inputs / 256 * INSTRUCTIONS[chain] / (ISSUES_PER_CLOCK * clocks),
        "l2_state_s": l2_state_pass / L2_BYTES_PER_SECOND,
        "l2_product_s": l2_product_pass / L2_BYTES_PER_SECOND,
    }
    fused_s = max(seconds["l1_s"], seconds["issue_s"], seconds["l2_state_s"]) + seconds["l2_product_s"]
    return {
        "l1_gather": l1_gather,
        "l2_state_pass": l2_state_pass,
        "l2_product_pass": l2_product_pass,
        **seconds,
        "fused_s": fused_s,
        "dense_s": 2 * size**2 / DENSE_FLOPS,
    }
