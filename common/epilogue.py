"""The end of a time step after a dense W0 h, as one Triton kernel: adapter's way back, drive, tanh, leak and guard.

    x ← W0 h + L w + drive_t            h ← (1 − α) h + α tanh(x)

W0 h comes from a matrix product; L (N, A) and w (A, C) are the adapter's (common/rollout.py: [U | a_1 … a_P] and what goes
with it). In torch's operators these are an addmm_, add_, tanh_, lerp, mul and mean, which go over the state some fourteen times; here
it is read, with x, once and written once.

Triton is optional: without it this module imports, and `available` says no.
"""

import torch
from torch import Tensor

from common.fused import available

try:
    import triton
    import triton.language as tl
except ImportError:
    triton = None

__all__ = ["available", "finish_step"]

BLOCK_UNITS, BLOCK_COLUMNS = 64, 128
SMALLEST = 16  # side of the smallest block that tl.dot takes
WARPS = 8

if triton is not None:

    @triton.jit
    def _finish_kernel(
        x_ptr,  # (N, C)
        h_ptr,  # (N, C)
        left_ptr,  # (N, A)
        w_ptr,  # (A, C)
        drive_ptr,  # (N, D · B)
        square_ptr,  # (blocks of units, C) float32
        size,
        columns,
        sequences,
        data,  # D · B
        leak,
        WITH_ADAPTER: tl.constexpr,
        OWN: tl.constexpr,
        SIGNS: tl.constexpr,
        INNER: tl.constexpr,  # A
        BLOCK_A: tl.constexpr,
        BLOCK_N: tl.constexpr,
        BLOCK_C: tl.constexpr,
    ):
        """One program for each block of units and columns. Suffixes: N units, C columns, A inner dimension of the adapter."""
        row_N = tl.program_id(0) * BLOCK_N + tl.arange(0, BLOCK_N)
        column_C = tl.program_id(1) * BLOCK_C + tl.arange(0, BLOCK_C)
        inner_A = tl.arange(0, BLOCK_A)
        within_N, live_C = row_N < size, column_C < columns
        inside_NC = within_N[:, None] & live_C[None, :]
        spot_NC = row_N.to(tl.int64)[:, None] * columns + column_C[None, :]
        # Columns are (pair, sign, sequence), data (pair, sequence) or (sequence).
        data_C = column_C % sequences
        if OWN:
            data_C += column_C // (SIGNS * sequences) * sequences
        x_NC = tl.load(x_ptr + spot_NC, mask=inside_NC, other=0.0).to(tl.float32)
        if WITH_ADAPTER:
            left_NA = tl.load(
                left_ptr + row_N[:, None] * INNER + inner_A[None, :],
                mask=within_N[:, None] & (inner_A < INNER)[None, :],
                other=0.0,
            )
            w_AC = tl.load(
                w_ptr + inner_A[:, None] * columns + column_C[None, :],
                mask=(inner_A < INNER)[:, None] & live_C[None, :],
                other=0.0,
            )
            x_NC = tl.dot(left_NA, w_AC, x_NC, input_precision="ieee")
        x_NC += tl.load(drive_ptr + row_N.to(tl.int64)[:, None] * data + data_C[None, :], mask=inside_NC, other=0.0).to(
            tl.float32
        )
        h_NC = tl.load(h_ptr + spot_NC, mask=inside_NC, other=0.0)
        # tanh without overflow: exp(2x) may be infinite or zero, and then this is ±1. NaN stays NaN.
        wide_NC = h_NC.to(tl.float32)
        wide_NC += leak * (1 - 2 / (tl.exp(2 * x_NC) + 1) - wide_NC)
        h_NC = wide_NC.to(h_NC.dtype)
        tl.store(h_ptr + spot_NC, h_NC, mask=inside_NC)
        wide_NC = tl.where(inside_NC, h_NC.to(tl.float32), 0.0)
        square_C = tl.sum(wide_NC * wide_NC, axis=0)
        tl.store(square_ptr + tl.program_id(0) * columns + column_C, square_C, mask=live_C)


def finish_step(
    x_NC: Tensor,
    h_NC: Tensor,
    adapter_NA_AC: tuple[Tensor, Tensor] | None,
    drive_NDSB: Tensor,
    columns: tuple[int, int, int],
    leak: float,
) -> Tensor:
    """Finish a step: h (N, C) in place from x = W0 h. Returns the mean of h² over units, float32 (C,).

    x_NC, h_NC, both factors of the adapter, (N, A) and (A, C), and drive (N, D, 1, B): float16 or float32, all alike,
    contiguous; sums are float32. adapter_NA_AC: None in the first step, where the state was zero.
    columns: (P, S, B), C = P·S·B; D = 1 or P. Raises RuntimeError where Triton cannot run.
    """
    if not available(x_NC.device):
        raise RuntimeError(f"the epilogue needs Triton and a GPU, or TRITON_INTERPRET=1; not {x_NC.device}")
    size, count = x_NC.shape
    pairs, signs, sequences = columns
    depth = drive_NDSB.shape[1]
    blocks = triton.cdiv(size, BLOCK_UNITS)
    square_KC = torch.empty(blocks, count, dtype=torch.float32, device=x_NC.device)
    left_NA, w_AC = adapter_NA_AC or (x_NC, x_NC)  # not read where there is none
    inner = left_NA.shape[1] if adapter_NA_AC else SMALLEST
    _finish_kernel[(blocks, triton.cdiv(count, BLOCK_COLUMNS))](
        x_NC,
        h_NC,
        left_NA,
        w_AC,
        drive_NDSB.contiguous(),
        square_KC,
        size,
        count,
        sequences,
        depth * sequences,
        float(leak),
        WITH_ADAPTER=adapter_NA_AC is not None,
        OWN=depth > 1,
        SIGNS=signs,
        INNER=inner,
        BLOCK_A=max(SMALLEST, triton.next_power_of_2(inner)),
        BLOCK_N=BLOCK_UNITS,
        BLOCK_C=BLOCK_COLUMNS,
        num_warps=WARPS,
    )
    return square_KC.sum(dim=0).div_(size)
