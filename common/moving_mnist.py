"""Moving MNIST by index: a sequence is a function of (seed, split, index) alone, equal to the pixel on every device.

The rule is that of Srivastava, Mansimov and Salakhutdinov (2015), "Unsupervised Learning of Video Representations using
LSTMs", arXiv:1502.04681, as their generator has it: digits of 28 × 28 on a canvas of 64 × 64, a start drawn uniformly
from the 36 × 36 px that a corner can reach, a uniform direction, 3.6 px a frame, one step taken before the first
frame, a bounce off the walls, positions truncated to whole pixels, digits overlaid by their maximum.

Here the numbers are integers, so that no rounding can differ. A position is a fraction of the 36 px with 24 bits
(ONE = 2^24 is the far wall) and there are 2^16 directions. Digit number d of a sequence takes the four words of

    Philox4x32-10(counter = (index low, index high, d, split), key = (seed low, seed high))
    image = (w0 · pool size) >> 32      y = w1 >> 8      x = w2 >> 8      direction = w3 >> 16

and at every frame `p += v; where p ≤ 0 or p ≥ ONE: clamp p to [0, ONE] and negate v; offset = (36 p) >> 24`.
"""

import hashlib
from functools import lru_cache
from pathlib import Path

import numpy as np
import torch

from common.digits import POOLS, SIDE, Digits
from common.errors import BadInput
from common.philox import MASK, Purpose, key_of, philox_4x32

CANVAS = 64
DIGIT = SIDE
SPLITS = POOLS
PURPOSE = dict(zip(SPLITS, (Purpose.TRAIN, Purpose.VALIDATION, Purpose.TEST), strict=True))

REACH = CANVAS - DIGIT  # the last offset at which a digit fits, px
FRACTION_BITS = 24
ONE = 1 << FRACTION_BITS
STEP = 0.1  # of REACH, a frame
DIRECTIONS = 1 << 16

# A canvas is laid out row by row, so a digit drawn on it is one run of bytes: 28 rows, 36 empty pixels between two.
FRAME_BYTES = CANVAS * CANVAS
STRIP_BYTES = (DIGIT - 1) * CANVAS + DIGIT
LAST_OFFSET = REACH * CANVAS + REACH
# Frames written before the next digit is overlaid on them: few enough to be still in the cache (1 MB).
FRAMES_A_TILE = 256

PUBLIC_TEST_MD5 = "be083ec986bfe91a449d63653c411eb2"


@lru_cache(maxsize=8)
def direction_table(device: str | None = None) -> np.ndarray | torch.Tensor:
    """int64 (2^16, 2): the (y, x) step of direction k, rint(0.1 · 2^24 · (sin, cos)(2πk/2^16)), in 1/ONE of 36 px.

    A NumPy array, or a tensor on `device`. Computed in float64, whose error is five orders below the distance of any
    entry from a rounding boundary, so every platform has the same table.
    """
    if device is not None:
        return torch.tensor(direction_table(), device=device)
    angle = 2 * np.pi * np.arange(DIRECTIONS) / DIRECTIONS
    table = np.rint(STEP * ONE * np.stack((np.sin(angle), np.cos(angle)), axis=-1)).astype(np.int64)
    table.flags.writeable = False
    return table


class MovingMNIST:
    """Sequences of moving digits, drawn by index from the pools of `digits`.

    number_of_digits: 1 or 2 digits a sequence.
    length: frames a sequence, ≥ 1. A longer sequence begins with the frames of a shorter one.
    seed: in [0, 2^64).

    Raises BadInput for an argument out of its range; the methods do so for an unknown split and for indices
    that are not integers in [0, 2^63).
    """

    def __init__(self, digits: Digits, number_of_digits: int, length: int, seed: int):
        if number_of_digits not in (1, 2):
            raise BadInput(f"number of digits must be 1 or 2, not {number_of_digits!r}")
        if length < 1:
            raise BadInput(f"a sequence needs at least 1 frame, not {length!r}")
        if not 0 <= seed < 2**64:
            raise BadInput(f"the seed of the data must be in [0, 2^64), not {seed!r}")
        self.digits = digits
        self.number_of_digits = int(number_of_digits)
        self.length = int(length)
        self.seed = int(seed)
        self._images_on: dict[tuple[str, str], torch.Tensor] = {}

    def trajectories(self, split: str, indices):
        """Which digits a sequence shows, and where.

        indices: integers (B,), a NumPy array (or list) or a tensor.
        Returns image int64 (B, D), rows of `digits.images[split]`, and offset int64 (B, length, D, 2), the pixel (y, x)
        of each digit's top left corner, 0 … 36; of the kind and on the device of `indices`.
        """
        indices = _checked(indices)
        pool = self._pool(split)
        if isinstance(indices, torch.Tensor):
            stack, table = torch.stack, direction_table(str(indices.device))
            digit_1D = torch.arange(self.number_of_digits, device=indices.device)[None]
        else:
            stack, table = np.stack, direction_table()
            digit_1D = np.arange(self.number_of_digits)[None]

        index_B1 = indices[:, None]
        counter = (index_B1 & MASK, index_B1 >> 32, digit_1D, int(PURPOSE[split]))
        w0, w1, w2, w3 = philox_4x32(counter, key_of(self.seed))
        image_BD = (w0 * len(pool)) >> 32
        position = stack((w1, w2), -1) >> 8
        velocity = table[w3 >> 16]

        positions = []
        for _ in range(self.length):
            position = position + velocity
            bounced = (position <= 0) | (position >= ONE)
            position = position.clip(0, ONE)
            velocity = velocity * (1 - 2 * bounced)
            positions.append(position)
        return image_BD, (REACH * stack(positions, 1)) >> FRACTION_BITS

    def frames(self, split: str, indices) -> np.ndarray:
        """Frames as uint8 (B, length, 64, 64), on the CPU. indices: integers (B,).

        A digit's strip of bytes is one item of a NumPy void type. Seen as a sliding window of such items, one beginning
        at every byte, the canvases of a tile take all strips in a single indexed assignment. The second digit gathers
        what it will cover and writes the maximum.
        """
        image_BD, offset_BTDC = self.trajectories(split, np.asarray(indices))
        start_BTD = offset_BTDC[..., 0] * CANVAS + offset_BTDC[..., 1]
        pool = self._pool(split)
        frames = np.zeros((len(start_BTD), self.length, CANVAS, CANVAS), dtype=np.uint8)
        sequences = max(1, FRAMES_A_TILE // self.length)
        for first in range(0, len(frames), sequences):
            tile = slice(first, first + sequences)
            _draw(frames[tile], pool[image_BD[tile]], start_BTD[tile])
        return frames

    def frames_torch(self, split: str, indices: torch.Tensor) -> torch.Tensor:
        """The same pixels as a uint8 tensor (B, length, 64, 64) on the device of `indices` (B,), made there.

        A frame is a window of FRAME_BYTES bytes on the digit's strip with zeros before and after it, so all frames are
        one `index_select` of windows. It needs room for one more batch of frames where there are two digits.
        """
        if not isinstance(indices, torch.Tensor):
            raise BadInput("frames_torch takes its indices as a tensor")
        image_BD, offset_BTDC = self.trajectories(split, indices)
        start_BTD = offset_BTDC[..., 0] * CANVAS + offset_BTDC[..., 1]
        images = self._images(split, indices.device)
        frames = None
        for d in range(self.number_of_digits):
            rows = torch.nn.functional.pad(images[image_BD[:, d]], (0, CANVAS - DIGIT)).flatten(1)
            padded_BP = torch.nn.functional.pad(rows[:, :STRIP_BYTES], (LAST_OFFSET, LAST_OFFSET))
            begin = torch.arange(len(padded_BP), device=indices.device)[:, None] * padded_BP.shape[1]
            window = (begin + LAST_OFFSET - start_BTD[..., d]).flatten()
            if len(window) == 0:
                return images.new_zeros((0, self.length, CANVAS, CANVAS))
            drawn = padded_BP.flatten().unfold(0, FRAME_BYTES, 1).index_select(0, window)
            frames = drawn if frames is None else torch.maximum(frames, drawn, out=frames)
        return frames.view(-1, self.length, CANVAS, CANVAS)

    def _pool(self, split: str) -> np.ndarray:
        if split not in SPLITS:
            raise BadInput(f"split {split!r} is not one of {', '.join(SPLITS)}")
        return self.digits.images[split]

    def _images(self, split: str, device: torch.device) -> torch.Tensor:
        """The split's pool as a tensor, copied to each device once."""
        key = (split, str(device))
        if key not in self._images_on:
            self._images_on[key] = torch.tensor(self._pool(split), device=device)
        return self._images_on[key]


def _checked(indices):
    """`indices` as int64 (B,), a tensor where it was one, else an array."""
    if isinstance(indices, torch.Tensor):
        whole = not (indices.is_floating_point() or indices.is_complex() or indices.dtype == torch.bool)
        signed = indices.to(torch.int64) if whole else indices
    else:
        indices = np.asarray(indices)
        whole = indices.dtype.kind in "iu"
        signed = indices.astype(np.int64) if whole else indices
    if not whole or indices.ndim != 1:
        raise BadInput(f"sequence indices must be integers (B,), not {indices.dtype} {tuple(indices.shape)}")
    # An unsigned index beyond int64 wraps to a negative one.
    if len(signed) and int(signed.min()) < 0:
        raise BadInput("sequence indices must be in [0, 2^63)")
    return signed


def _draw(frames_BTYX: np.ndarray, images_BDyx: np.ndarray, start_BTD: np.ndarray) -> None:
    """Overlay digits on empty canvases, in place. start_BTD: the byte of a canvas at which a digit's strip begins."""
    sequences, length = frames_BTYX.shape[:2]
    rows = np.zeros((sequences, DIGIT, CANVAS), dtype=np.uint8)
    windows = np.ndarray(
        (frames_BTYX.size - STRIP_BYTES + 1,), dtype=f"V{STRIP_BYTES}", buffer=frames_BTYX, strides=(1,)
    )
    frame_BT = np.arange(sequences * length).reshape(sequences, length) * FRAME_BYTES
    for d in range(images_BDyx.shape[1]):
        rows[:, :, :DIGIT] = images_BDyx[:, d]
        strip_BS = np.ascontiguousarray(rows.reshape(sequences, -1)[:, :STRIP_BYTES])
        start_BT = frame_BT + start_BTD[..., d]
        if d == 0:
            windows[start_BT] = strip_BS.view(windows.dtype)
        else:
            covered_BTS = windows[start_BT].view(np.uint8).reshape(sequences, length, STRIP_BYTES)
            np.maximum(covered_BTS, strip_BS[:, None], out=covered_BTS)
            windows[start_BT] = covered_BTS.view(windows.dtype)[..., 0]


def load_public_test_set(path: str | Path, md5: str = PUBLIC_TEST_MD5) -> np.ndarray:
    """The fixed public test file of the Moving-MNIST paper, mnist_test_seq.npy: 10,000 × 20 frames, two digits.

    Returns uint8 (10000, 20, 64, 64), sequences first, as a read-only view on the memory-mapped file, which has frames
    first; copy a slice before working on it at length. Twenty frames give 19 predictions. Its digits are MNIST's
    and may occur in the training pools of `load_digits`.

    Raises BadInput, naming the path and the expected MD5, for a missing file, another one, or one of another shape.
    """
    path = Path(path)
    expected = f"expected MD5 {md5}"
    try:
        with path.open("rb") as file:
            found = hashlib.file_digest(file, lambda: hashlib.md5(usedforsecurity=False)).hexdigest()
        if found != md5:
            raise BadInput(f"public test set: {path} has MD5 {found}, {expected}")
        frames_TBYX = np.load(path, mmap_mode="r", allow_pickle=False)
    except FileNotFoundError:
        raise BadInput(f"public test set missing: {path} ({expected})") from None
    except BadInput:
        raise
    except (OSError, ValueError, EOFError) as error:
        raise BadInput(f"public test set unreadable: {path} ({error}; {expected})") from None
    shape = getattr(frames_TBYX, "shape", ())
    if len(shape) != 4 or shape[2:] != (CANVAS, CANVAS) or frames_TBYX.dtype != np.uint8:
        raise BadInput(f"public test set: {path} is not uint8 (frames, sequences, {CANVAS}, {CANVAS}) ({expected})")
    return frames_TBYX.transpose(1, 0, 2, 3)
