"""Moving MNIST: both fast paths against a plain loop over integers, and the rule against its float64 original."""

import hashlib
import math
import re

import numpy as np
import pytest
import torch

from common import moving_mnist as module
from common.digits import load_digits
from common.errors import BadInput
from common.moving_mnist import SPLITS, MovingMNIST, direction_table, load_public_test_set

LARGEST = 2**63 - 1


@pytest.fixture(scope="module")
def digits():
    return load_digits()


# ---------------------------------------- the rule, in plain Python


def philox(counter, key):
    """Philox4x32-10 with Python's unbounded integers."""
    a, b, c, d = counter
    for i in range(10):
        k0, k1 = ((key[0] + i * 0x9E3779B9) % 2**32, (key[1] + i * 0xBB67AE85) % 2**32)
        high0, low0 = divmod(0xD2511F53 * a, 2**32)
        high1, low1 = divmod(0xCD9E8D57 * c, 2**32)
        a, b, c, d = high1 ^ b ^ k0, low1, high0 ^ d ^ k1, low0
    return a, b, c, d


def words_of(seed, split, index, number):
    counter = (index % 2**32, index // 2**32, number, ("train", "validation", "test").index(split))
    return philox(counter, (seed % 2**32, seed // 2**32))


def step(position, velocity, one):
    """One coordinate of one step: move, then clip and turn round at a wall."""
    position += velocity
    if position <= 0:
        return 0, -velocity
    if position >= one:
        return one, -velocity
    return position, velocity


def sequence_by_loop(images, seed, split, index, number_of_digits, length):
    """One sequence (length, 64, 64), a pixel row at a time; the only float is the direction, rounded at once."""
    frames = [[bytearray(64) for _ in range(64)] for _ in range(length)]
    for number in range(number_of_digits):
        w0, w1, w2, w3 = words_of(seed, split, index, number)
        image = images[w0 * len(images) // 2**32].tolist()
        y, x = w1 // 256, w2 // 256
        angle = 2 * math.pi * (w3 // 65536) / 65536
        vy, vx = round(0.1 * 2**24 * math.sin(angle)), round(0.1 * 2**24 * math.cos(angle))
        for frame in frames:
            y, vy = step(y, vy, 2**24)
            x, vx = step(x, vx, 2**24)
            top, left = 36 * y // 2**24, 36 * x // 2**24
            for row in range(28):
                for column in range(28):
                    old = frame[top + row][left + column]
                    frame[top + row][left + column] = max(old, image[row][column])
    return np.array([[list(row) for row in frame] for frame in frames], dtype=np.uint8)


@pytest.mark.parametrize(
    ("number_of_digits", "length", "split", "seed", "indices"),
    [
        (1, 21, "train", 0, [0, 1, 2, 3]),
        (2, 21, "train", 0, [0, 1, 2, 3]),
        (1, 1, "validation", 7, [5, 5, 0]),
        (2, 1, "validation", 2**64 - 1, [11]),
        (1, 60, "test", 2**32, [2**31, 2**32 - 1]),
        (2, 60, "test", 123456789123456789, [2**32, LARGEST]),
        (2, 300, "train", 1, [9]),
    ],
)
def test_both_paths_draw_the_pixels_of_a_plain_loop(digits, number_of_digits, length, split, seed, indices):
    data = MovingMNIST(digits, number_of_digits, length, seed)
    images = digits.images[split]
    expected = np.stack([sequence_by_loop(images, seed, split, i, number_of_digits, length) for i in indices])
    by_numpy = data.frames(split, np.array(indices))
    by_torch = data.frames_torch(split, torch.tensor(indices))
    assert by_numpy.dtype == np.uint8 and by_torch.dtype == torch.uint8
    assert by_numpy.flags.c_contiguous and by_torch.is_contiguous()
    np.testing.assert_array_equal(by_numpy, expected)
    np.testing.assert_array_equal(by_torch.numpy(), expected)


@pytest.mark.parametrize("number_of_digits", [1, 2])
def test_numpy_and_torch_agree_over_many_sequences_and_hit_every_wall(digits, number_of_digits):
    data = MovingMNIST(digits, number_of_digits, 25, 3)
    indices = np.arange(100, 300)
    by_numpy = data.frames("train", indices)
    np.testing.assert_array_equal(by_numpy, data.frames_torch("train", torch.from_numpy(indices)).numpy())
    image, offset = data.trajectories("train", indices)
    assert image.shape == (200, number_of_digits) and offset.shape == (200, 25, number_of_digits, 2)
    assert offset.min() == 0 and offset.max() == 36
    assert all((offset[..., axis] == wall).any() for axis in (0, 1) for wall in (0, 36))


@pytest.mark.gpu
@pytest.mark.skipif(not torch.cuda.is_available(), reason="needs a CUDA device")
@pytest.mark.parametrize("number_of_digits", [1, 2])
def test_cuda_draws_the_same_pixels(digits, number_of_digits):
    data = MovingMNIST(digits, number_of_digits, 21, 3)
    indices = torch.arange(1500)
    on_gpu = data.frames_torch("train", indices.cuda())
    assert on_gpu.is_cuda
    np.testing.assert_array_equal(on_gpu.cpu().numpy(), data.frames("train", indices.numpy()))


# ---------------------------------------- a function of (seed, split, index)


@pytest.mark.parametrize("number_of_digits", [1, 2])
def test_a_sequence_does_not_depend_on_the_batch_around_it(digits, number_of_digits):
    data = MovingMNIST(digits, number_of_digits, 20, 0)
    indices = np.array([4, 900, 2, 31, 7, 55, 2**40, 1, 0, 13, 26, 300, 8, 77])
    whole = data.frames("train", indices)
    for size in (1, 3, 13):
        parts = [data.frames("train", indices[i : i + size]) for i in range(0, len(indices), size)]
        np.testing.assert_array_equal(np.concatenate(parts), whole)
    order = np.random.default_rng(0).permutation(len(indices))
    np.testing.assert_array_equal(data.frames("train", indices[order]), whole[order])
    np.testing.assert_array_equal(data.frames_torch("train", torch.from_numpy(indices[3:8])).numpy(), whole[3:8])


def test_seed_split_index_and_digit_number_each_change_the_draw(digits):
    draws = set()
    for seed in (0, 1, 2**32, 2**63):
        for split in SPLITS:
            image, offset = MovingMNIST(digits, 2, 1, seed).trajectories(split, [0, 1, 2**32])
            draws |= {tuple(pair) for pair in offset.reshape(-1, 2).tolist()}
    # 72 digits on 37 × 37 places: a few coincide by chance, none would be left apart if an id were ignored.
    assert len(draws) >= 66


def test_a_longer_sequence_begins_with_the_shorter_one(digits):
    long, short = (MovingMNIST(digits, 2, length, 5).frames("test", [3, 4]) for length in (40, 12))
    np.testing.assert_array_equal(long[:, :12], short)


def test_two_digits_are_overlaid_by_their_maximum(digits):
    one = MovingMNIST(digits, 1, 21, 0).frames("train", np.arange(50)).astype(int)
    data = MovingMNIST(digits, 2, 21, 0)
    two = data.frames("train", np.arange(50)).astype(int)
    assert (two >= one).all()
    image, offset = data.trajectories("train", np.arange(50))
    ink = digits.images["train"][image].astype(int).sum((-1, -2))
    apart = (np.abs(offset[:, :, 0] - offset[:, :, 1]) >= 28).any(-1)
    assert apart.any() and not apart.all()
    total = two.sum((-1, -2))
    assert (total[apart] == np.broadcast_to(ink.sum(1)[:, None], total.shape)[apart]).all()
    assert (total <= ink.sum(1)[:, None]).all() and (total >= ink.max(1)[:, None]).all()


def test_each_split_shows_digits_of_its_own_pool_only(digits):
    for split in SPLITS:
        data = MovingMNIST(digits, 1, 2, 0)
        frames = data.frames(split, np.arange(100))
        image, offset = data.trajectories(split, np.arange(100))
        pool = {picture.tobytes() for picture in digits.images[split]}
        for b in range(100):
            y, x = offset[b, 1, 0]
            assert frames[b, 1, y : y + 28, x : x + 28].tobytes() in pool
            assert frames[b, 1].sum() == digits.images[split][image[b, 0]].sum()


# ---------------------------------------- the motion


def test_motion_is_the_float64_rule_of_the_paper(digits):
    """The rule with real numbers: position in [0, 1)², step 0.1, clip and turn at the walls, offset = floor(36 p)."""
    number, length, seed = 300, 40, 0
    _, offset = MovingMNIST(digits, 1, length, seed).trajectories("train", np.arange(number))
    words = np.array([words_of(seed, "train", index, 0) for index in range(number)], dtype=np.float64)
    position = words[:, 1:3] // 256 / 2**24
    angle = 2 * np.pi * (words[:, 3] // 65536) / 65536
    velocity = 0.1 * np.stack((np.sin(angle), np.cos(angle)), -1)
    sure = 0
    for t in range(length):
        position = position + velocity
        velocity = np.where((position <= 0) | (position >= 1), -velocity, velocity)
        position = np.clip(position, 0, 1)
        # A step is off by at most half a unit of 2^-24; where truncation could tell, no statement is made.
        slack = 36 * (t + 1) * 2**-24
        pixel = 36 * position
        clear = (np.abs(pixel - np.rint(pixel)) > slack) | (position == 0) | (position == 1)
        np.testing.assert_array_equal(offset[:, t, 0][clear], np.floor(pixel)[clear].astype(int))
        sure += clear.sum()
    assert sure > 0.999 * 2 * number * length


def test_digits_move_3_6_pixels_a_frame_between_the_walls(digits):
    _, offset = MovingMNIST(digits, 1, 21, 8).trajectories("train", np.arange(2000))
    path = offset[:, :, 0]
    steps = 6
    free = np.stack([path[:, t : t + steps + 1] for t in range(21 - steps)], axis=1)
    inside = ((free > 0) & (free < 36)).all((-1, -2))
    # A wall is touched only where an offset is 0 or 36, so these flights are straight.
    flight = (free[..., -1, :] - free[..., 0, :])[inside] / steps
    speed = np.hypot(flight[:, 0], flight[:, 1])
    assert len(speed) > 1000
    assert np.abs(speed - 3.6).max() < math.sqrt(2) / steps
    assert abs(speed.mean() - 3.6) < 0.02


def test_digits_bounce(digits):
    _, offset = MovingMNIST(digits, 1, 60, 2).trajectories("train", np.arange(200))
    y = offset[:, :, 0, 0]
    sequence, t = np.nonzero(y[:, 1:-1] == 36)
    moving = y[sequence, t] < 36
    assert moving.sum() > 50
    assert (y[sequence, t + 2][moving] < 36).all()


@pytest.mark.parametrize("kind", [np.array, torch.tensor])
def test_a_digit_that_lands_exactly_on_a_wall_turns_round(digits, kind, monkeypatch):
    """Chosen words: starts one step short of the far and of the near wall, and straight towards it."""
    one_step = 1677722  # 0.1 · 2^24, rounded
    start, quarter_turn = [2**24 - one_step, one_step], [16384, 49152]
    words = [[0, 0], [s << 8 for s in start], [0, 0], [k << 16 for k in quarter_turn]]
    monkeypatch.setattr(module, "philox_4x32", lambda counter, key: [kind(word)[:, None] for word in words])
    _, offset = MovingMNIST(digits, 1, 3, 0).trajectories("train", kind([0, 1]))
    assert offset[:, :, 0, 0].tolist() == [[36, 32, 28], [0, 3, 7]]
    assert offset[:, :, 0, 1].tolist() == [[0, 0, 0], [0, 0, 0]]


def test_starts_and_digits_are_uniform(digits):
    count = 20_000
    image, offset = MovingMNIST(digits, 1, 1, 4).trajectories("train", np.arange(count))
    per_class = np.bincount(digits.labels["train"][image[:, 0]], minlength=10)
    assert np.abs(per_class / count - 0.1).max() < 4 * math.sqrt(0.09 / count)
    inner = offset[:, 0, 0]
    inner = inner[((inner >= 4) & (inner < 32)).all(-1)]
    counts, _, _ = np.histogram2d(inner[:, 0], inner[:, 1], bins=7)
    chi_squared = ((counts - counts.mean()) ** 2 / counts.mean()).sum()
    assert abs(chi_squared - 48) < 4.5 * math.sqrt(2 * 48)


def test_direction_table_is_the_same_on_every_platform():
    """Integers of length 0.1 · 2^24 in equal angles, and no entry so near to ½ that a last float bit could round it."""
    table = direction_table()
    assert table.shape == (65536, 2) and table.dtype == np.int64
    assert table[[0, 16384, 32768, 49152]].tolist() == [[0, 1677722], [1677722, 0], [0, -1677722], [-1677722, 0]]
    assert np.abs(np.hypot(table[:, 0], table[:, 1]) - 1677721.6).max() < 0.75
    assert [math.radians(45), math.radians(135)] == pytest.approx(np.arctan2(*table[[8192, 24576]].T), abs=1e-6)
    angles = [2 * math.pi * k / 65536 for k in range(65536)]
    exact = 0.1 * 2**24 * np.array([(math.sin(a), math.cos(a)) for a in angles])
    assert np.abs(table - exact).max() <= 0.5 - 1e-5
    np.testing.assert_array_equal(direction_table("cpu").numpy(), table)


# ---------------------------------------- arguments


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        ((0, 20, 0), "1 or 2"),
        ((3, 20, 0), "1 or 2"),
        ((-1, 20, 0), "1 or 2"),
        ((1, 0, 0), "at least 1 frame"),
        ((1, -5, 0), "at least 1 frame"),
        ((1, 20, -1), "seed"),
        ((1, 20, 2**64), "seed"),
    ],
)
def test_bad_arguments(digits, arguments, message):
    with pytest.raises(BadInput, match=message):
        MovingMNIST(digits, *arguments)


@pytest.mark.parametrize(
    "indices", [np.array([3, -1]), np.array([2**63], np.uint64), np.array([0.0]), np.array([True]), np.array([[1]]), 3]
)
def test_bad_indices(digits, indices):
    with pytest.raises(BadInput, match="indices"):
        MovingMNIST(digits, 1, 2, 0).frames("train", indices)
    if getattr(indices, "dtype", None) != np.uint64:
        with pytest.raises(BadInput, match="indices"):
            MovingMNIST(digits, 1, 2, 0).frames_torch("train", torch.as_tensor(indices))


def test_bad_split_and_indices_of_the_wrong_kind(digits):
    data = MovingMNIST(digits, 1, 2, 0)
    for call in (data.frames, data.trajectories):
        with pytest.raises(BadInput, match="'dev' is not one of train, validation, test"):
            call("dev", [0])
    with pytest.raises(BadInput, match="tensor"):
        data.frames_torch("train", np.arange(3))


@pytest.mark.parametrize("number_of_digits", [1, 2])
def test_an_empty_batch_is_a_batch(digits, number_of_digits):
    data = MovingMNIST(digits, number_of_digits, 21, 0)
    assert data.frames("train", np.zeros(0, np.int64)).shape == (0, 21, 64, 64)
    assert data.frames_torch("train", torch.zeros(0, dtype=torch.int64)).shape == (0, 21, 64, 64)


# ---------------------------------------- the public test file


def save(path, array, **options):
    np.save(path, array, **options)
    return hashlib.md5(path.read_bytes()).hexdigest()


def test_public_test_set_is_returned_sequences_first(tmp_path):
    raw = np.random.default_rng(0).integers(0, 256, (20, 3, 64, 64), dtype=np.uint8)
    path = tmp_path / "mnist_test_seq.npy"
    loaded = load_public_test_set(path, md5=save(path, raw))
    assert loaded.shape == (3, 20, 64, 64) and loaded.dtype == np.uint8
    for sequence in range(3):
        np.testing.assert_array_equal(loaded[sequence], raw[:, sequence])


def test_public_test_set_missing_or_another_file_is_refused(tmp_path):
    path = tmp_path / "mnist_test_seq.npy"
    expected = re.escape(str(path)) + ".*be083ec986bfe91a449d63653c411eb2"
    with pytest.raises(BadInput, match="missing.*" + expected):
        load_public_test_set(path)
    save(path, np.zeros((20, 1, 64, 64), np.uint8))
    with pytest.raises(BadInput, match=expected):
        load_public_test_set(path)
    with pytest.raises(BadInput, match="unreadable"):
        load_public_test_set(tmp_path)


@pytest.mark.parametrize(
    "array",
    [np.zeros((20, 64, 64), np.uint8), np.zeros((2, 1, 64, 32), np.uint8), np.zeros((2, 1, 64, 64), np.float32)],
)
def test_public_test_set_of_another_shape_is_refused(tmp_path, array):
    path = tmp_path / "mnist_test_seq.npy"
    with pytest.raises(BadInput, match=re.escape(str(path))):
        load_public_test_set(path, md5=save(path, array))


def test_public_test_set_is_never_unpickled(tmp_path):
    path = tmp_path / "mnist_test_seq.npy"
    with pytest.raises(BadInput, match="unreadable"):
        load_public_test_set(path, md5=save(path, np.array([{}], dtype=object), allow_pickle=True))
    path.write_bytes(b"not an array")
    with pytest.raises(BadInput, match="unreadable"):
        load_public_test_set(path, md5=hashlib.md5(b"not an array").hexdigest())
