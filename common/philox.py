"""Counter-based random numbers: the same bits on any device, for any number of ranks and any split of a batch.

Philox4x32-10 (Salmon, Moraes, Dror, Shaw, "Parallel random numbers: as easy as 1, 2, 3", SC 2011) turns a 128-bit counter
and a 64-bit key into 128 random bits. Nothing is drawn "next": every number is addressed by what it is for. Here the key
is a seed and the last counter word is the purpose, so two uses of one seed never meet; the other three words are the
global ids of whatever is drawn (sequence, pair, iteration, block), never a rank or the order of calls.

The arithmetic is written once with operators that NumPy and torch share. Words live in int64 (torch has no full uint32
arithmetic): the product of two 32-bit words wraps modulo 2^64 with the right bit pattern, and masking after the
shift removes the copies of the sign.
"""

from enum import IntEnum
from functools import lru_cache
from statistics import NormalDist

import numpy as np
import torch

MASK = 0xFFFFFFFF
MULTIPLIER_0, MULTIPLIER_1 = 0xD2511F53, 0xCD9E8D57
WEYL_0, WEYL_1 = 0x9E3779B9, 0xBB67AE85


class Purpose(IntEnum):
    """Last counter word. 0–2 are the data splits; from 16 on, everything that is noise or an initial draw."""

    TRAIN = 0
    VALIDATION = 1
    TEST = 2
    MINIBATCH = 16
    NOISE = 17
    ADAPTER_START = 18
    DECODER_START = 19
    RESERVOIR_INDEX = 20
    RESERVOIR_VALUE = 21
    INPUT_WEIGHTS = 22
    ENCODER = 23
    CONTROL = 24
    FEEDBACK = 25
    LEAK_NOISE = 26
    ROLL_IN = 27


def philox_4x32(counter, key):
    """Philox4x32-10.

    counter: four int64 arrays or tensors (or ints) that broadcast together, words in [0, 2^32); at least one is an array.
    key: two ints in [0, 2^32).
    Returns four int64 arrays of the broadcast shape, words in [0, 2^32).
    """
    c0, c1, c2, c3 = counter
    k0, k1 = key
    for _ in range(10):
        product_0, product_1 = c0 * MULTIPLIER_0, c2 * MULTIPLIER_1
        c0, c1, c2, c3 = (
            ((product_1 >> 32) & MASK) ^ c1 ^ k0,
            product_1 & MASK,
            ((product_0 >> 32) & MASK) ^ c3 ^ k1,
            product_0 & MASK,
        )
        k0, k1 = (k0 + WEYL_0) & MASK, (k1 + WEYL_1) & MASK
    return c0, c1, c2, c3


def key_of(seed: int) -> tuple[int, int]:
    """Split a seed in [0, 2^64) into the two key words."""
    return seed & MASK, (seed >> 32) & MASK


def stream_words(
    seed: int, purpose: Purpose, ids: tuple, count: int, device: torch.device | str = "cpu"
) -> torch.Tensor:
    """`count` consecutive 32-bit words of the streams named by `ids`.

    ids: two entries (low, high), each an int or an int64 tensor (M,): for instance (pair, iteration).
    Returns int64 (M, count) with words in [0, 2^32); M = 1 where both ids are ints.
    """
    if torch.device(device).type == "cpu":
        return _stream_words_numpy(seed, purpose, ids, count)
    return _stream_words_torch(seed, purpose, ids, count, device)


def _stream_words_numpy(seed: int, purpose: Purpose, ids: tuple, count: int) -> torch.Tensor:
    """On a CPU: NumPy starts an operation in a third of torch's time, and a draw for one tile is a hundred small ones."""
    low, high = (np.asarray(i, dtype=np.int64).reshape(-1, 1) for i in ids)
    block = np.arange(-(-count // 4), dtype=np.int64).reshape(1, -1)
    words = philox_4x32((block, low, high, np.int64(purpose)), key_of(seed))
    words = np.stack(np.broadcast_arrays(*words), axis=-1)
    return torch.from_numpy(words.reshape(len(words), -1)[:, :count])


def _stream_words_torch(seed: int, purpose: Purpose, ids: tuple, count: int, device: torch.device | str):
    low, high = (torch.as_tensor(i, dtype=torch.int64, device=device).reshape(-1, 1) for i in ids)
    block = torch.arange(-(-count // 4), dtype=torch.int64, device=device).reshape(1, -1)
    words = philox_4x32((block, low, high, torch.full_like(block, int(purpose))), key_of(seed))
    return torch.stack(words, dim=-1).flatten(1)[:, :count]


@lru_cache(maxsize=8)
def _gaussian_table(device: str) -> torch.Tensor:
    """float32 (2^16,): standard normal quantiles at the mid-points (i + ½)/2^16, scaled to variance exactly one.

    A table, because log and cos of a Box–Muller transform differ between devices in the last bit, and a gather does not.
    Rounded to multiples of 2^-20 so that the last bits of a platform's libm cannot show. |value| < 4.33.
    """
    normal = NormalDist()
    half = np.array([normal.inv_cdf((i + 0.5) / 65536) for i in range(32768)])
    table = np.concatenate([half, -half[::-1]])
    table = np.rint(table / np.sqrt(np.mean(table**2)) * 2**20) / 2**20
    return torch.from_numpy(table.astype(np.float32)).to(device)


def gaussian(seed: int, purpose: Purpose, ids: tuple, count: int, device: torch.device | str = "cpu") -> torch.Tensor:
    """Standard normal float32 (M, count), two a word; `ids` as in `stream_words`."""
    words = stream_words(seed, purpose, ids, -(-count // 2), device)
    index = (_halves_numpy if words.device.type == "cpu" else _halves_torch)(words)
    table = _gaussian_table(str(device))
    return table.index_select(0, index[:, :count].flatten()).view(len(index), count)


def _halves_numpy(words: torch.Tensor) -> torch.Tensor:
    """int64 (M, W) → int32 (M, 2 W), the low 16 bits of a word first, whatever the byte order of this machine."""
    return torch.from_numpy(words.numpy().astype("<u4").view("<u2").astype(np.int32))


def _halves_torch(words: torch.Tensor) -> torch.Tensor:
    return torch.stack((words & 0xFFFF, words >> 16), dim=-1).flatten(1)


def signs(seed: int, purpose: Purpose, ids: tuple, count: int, device: torch.device | str = "cpu") -> torch.Tensor:
    """±1 as float32 (M, count): bit 1 is +1, 32 a word, the lowest bit first; exact on any device. `ids` as in
    `stream_words`."""
    words = stream_words(seed, purpose, ids, -(-count // 32), device)
    if words.device.type == "cpu":
        return unpack_signs(pack_signs(words), count)
    return _signs_torch(words, count)


def pack_signs(words: torch.Tensor) -> torch.Tensor:
    """int64 (M, W) on a CPU → uint8 (M, 4 W), the lowest byte of a word first, whatever the byte order of this machine."""
    return torch.from_numpy(words.numpy().astype("<u4").view(np.uint8))


def unpack_signs(octets: torch.Tensor, count: int) -> torch.Tensor:
    """uint8 (M, ≥ count / 8) on a CPU → ±1 as float32 (M, count), the lowest bit of a byte first."""
    bits = torch.from_numpy(np.unpackbits(octets.numpy(), axis=1, count=count, bitorder="little"))
    return bits.to(torch.float32).mul_(2).sub_(1)


def _signs_torch(words: torch.Tensor, count: int) -> torch.Tensor:
    bits = ((words.unsqueeze(-1) >> torch.arange(32, device=words.device)) & 1).flatten(1)
    return bits[:, :count].to(torch.float32).mul_(2).sub_(1)


def integers(
    seed: int, purpose: Purpose, ids: tuple, count: int, bound: int, device: torch.device | str = "cpu"
) -> torch.Tensor:
    """int64 (M, count) in [0, bound), bound ≤ 2^31, by multiply and shift (bias below bound/2^32)."""
    return (stream_words(seed, purpose, ids, count, device) * bound) >> 32


def permutation(seed: int, purpose: Purpose, count: int) -> torch.Tensor:
    """A random order of 0 … count − 1, int64 (count,), on the CPU: random words are sorted, ties fall to the lower index."""
    words = stream_words(seed, purpose, (0, 0), count)[0]
    return (words * count + torch.arange(count)).argsort()
