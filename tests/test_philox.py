"""The random numbers against published answers, plain Python integers, and the laws of the distributions."""

from statistics import NormalDist

import numpy as np
import pytest
import torch

from common import philox
from common.philox import Purpose, gaussian, integers, key_of, permutation, philox_4x32, signs, stream_words

FULL = 0xFFFFFFFF

# counter, key, result: the known answers of Philox4x32-10 that its authors publish with Random123.
KNOWN_ANSWERS = [
    ((0, 0, 0, 0), (0, 0), (0x6627E8D5, 0xE169C58D, 0xBC57AC4C, 0x9B00DBD8)),
    ((FULL,) * 4, (FULL,) * 2, (0x408F276D, 0x41C83B0E, 0xA20BC7C6, 0x6D5451FD)),
    (
        (0x243F6A88, 0x85A308D3, 0x13198A2E, 0x03707344),
        (0xA4093822, 0x299F31D0),
        (0xD16CFE09, 0x94FDCCEB, 0x5001E420, 0x24126EA1),
    ),
]


def philox_in_python(counter, key):
    """Philox4x32-10 with Python's unbounded integers, where nothing can wrap."""
    a, b, c, d = counter
    for i in range(10):
        k0, k1 = ((key[0] + i * 0x9E3779B9) % 2**32, (key[1] + i * 0xBB67AE85) % 2**32)
        high0, low0 = divmod(0xD2511F53 * a, 2**32)
        high1, low1 = divmod(0xCD9E8D57 * c, 2**32)
        a, b, c, d = high1 ^ b ^ k0, low1, high0 ^ d ^ k1, low0
    return a, b, c, d


@pytest.mark.parametrize(("counter", "key", "answer"), KNOWN_ANSWERS)
def test_known_answers(counter, key, answer):
    assert philox_in_python(counter, key) == answer
    for make in (np.array, torch.tensor):
        words = philox_4x32([make([word]) for word in counter], key)
        assert tuple(int(word[0]) for word in words) == answer


def test_numpy_torch_and_python_integers_agree_on_random_counters():
    generator = np.random.default_rng(0)
    counters = generator.integers(0, 2**32, size=(4, 200))
    key = (0xDEADBEEF, 0x80000001)
    in_numpy = np.stack(philox_4x32(counters, key))
    in_torch = torch.stack(philox_4x32(torch.from_numpy(counters), key)).numpy()
    in_python = np.array([philox_in_python(map(int, counter), key) for counter in counters.T]).T
    assert in_numpy.dtype == np.int64
    np.testing.assert_array_equal(in_numpy, in_python)
    np.testing.assert_array_equal(in_torch, in_python)


def test_counters_broadcast():
    rows, columns = np.arange(3)[:, None], np.arange(5)[None]
    words = philox_4x32((rows, 7, columns, 9), (1, 2))
    assert all(word.shape == (3, 5) for word in words)
    assert tuple(int(word[2, 4]) for word in words) == philox_in_python((2, 7, 4, 9), (1, 2))


def test_stream_words_are_the_blocks_of_the_stream_in_order():
    seed, low, high = 0x123456789ABCDEF0, 5, 2**31 + 11
    words = stream_words(seed, Purpose.NOISE, (low, high), 10)
    expected = [w for block in range(3) for w in philox_in_python((block, low, high, 17), (0x9ABCDEF0, 0x12345678))]
    assert words.tolist() == [expected[:10]]


def test_key_of_splits_a_seed_into_its_words():
    assert key_of(0) == (0, 0)
    assert key_of(2**64 - 1) == (FULL, FULL)
    assert key_of(2**32 + 5) == (5, 1)


@pytest.mark.parametrize("draw", [stream_words, gaussian, signs, lambda *a: integers(*a, 1000)])
def test_a_draw_depends_on_its_ids_alone_not_on_the_batch(draw):
    pairs = torch.arange(12)
    whole = draw(3, Purpose.NOISE, (pairs, 4), 37)
    order = torch.tensor([7, 0, 11, 3])
    torch.testing.assert_close(draw(3, Purpose.NOISE, (pairs[order], 4), 37), whole[order], rtol=0, atol=0)
    for i in (0, 5):
        torch.testing.assert_close(draw(3, Purpose.NOISE, (i, 4), 37), whole[i : i + 1], rtol=0, atol=0)
    torch.testing.assert_close(draw(3, Purpose.NOISE, (pairs, 4), 9), whole[:, :9], rtol=0, atol=0)


def test_seed_purpose_and_each_id_change_the_words():
    draws = [
        stream_words(seed, purpose, ids, 8)
        for seed in (0, 1, 2**32)
        for purpose in (Purpose.NOISE, Purpose.MINIBATCH, Purpose.TRAIN)
        for ids in ((0, 0), (1, 0), (0, 1))
    ]
    assert len({tuple(words[0].tolist()) for words in draws}) == len(draws)
    assert len(set(Purpose)) == len(Purpose.__members__)


def test_words_are_uniform_and_streams_uncorrelated():
    words_MC = stream_words(0, Purpose.NOISE, (torch.arange(64), 0), 4096).to(torch.float64) / 2**32
    count = words_MC.numel()
    counts = torch.histc(words_MC, bins=64, min=0, max=1)
    chi_squared = float(((counts - count / 64) ** 2 / (count / 64)).sum())
    assert 63 - 5 * np.sqrt(126) < chi_squared < 63 + 5 * np.sqrt(126)
    correlation = torch.corrcoef(words_MC) - torch.eye(64)
    assert float(correlation.abs().max()) < 5.5 / np.sqrt(4096)


def gaussian_value(half_word):
    """The quantile at the middle of the half word's interval, before the table is scaled to variance one."""
    return NormalDist().inv_cdf((half_word + 0.5) / 65536)


def test_gaussian_reads_the_low_half_word_first_and_gives_normal_quantiles():
    words = stream_words(9, Purpose.NOISE, (2, 3), 50)[0].tolist()
    halves = [half for word in words for half in (word % 65536, word // 65536)]
    drawn = gaussian(9, Purpose.NOISE, (2, 3), 99)
    assert drawn.dtype == torch.float32 and drawn.shape == (1, 99)
    # The scale is that of 2^16 quantiles, whose variance falls short of one by about 10^-4.
    np.testing.assert_allclose(drawn[0].numpy(), [gaussian_value(h) for h in halves[:99]], rtol=2e-4, atol=2e-6)


def test_gaussian_takes_65536_values_that_are_the_normal_quantiles_at_variance_one():
    """Two million draws meet every value; they lie on a grid of 2^-20 so that no platform's last bit shows."""
    values = np.unique(gaussian(0, Purpose.NOISE, (torch.arange(1024), 0), 2048).numpy().astype(np.float64))
    assert len(values) == 65536
    np.testing.assert_array_equal(values * 2**20, np.rint(values * 2**20))
    np.testing.assert_array_equal(values, -values[::-1])
    assert values.max() == pytest.approx(-gaussian_value(0), rel=2e-4)
    assert abs(np.mean(values**2) - 1) < 1e-7
    quantiles = np.array([gaussian_value(i) for i in range(65536)])
    assert np.abs(values - quantiles / quantiles.std()).max() < 2**-21 * 1.001


def test_gaussian_moments_and_quantiles():
    drawn = gaussian(1, Purpose.NOISE, (torch.arange(64), 5), 16384).to(torch.float64).flatten()
    root_n = np.sqrt(len(drawn))
    assert abs(drawn.mean()) * root_n < 4
    assert abs(drawn.pow(2).mean() - 1) * root_n / np.sqrt(2) < 4
    assert abs(drawn.pow(3).mean()) * root_n / np.sqrt(15) < 4
    assert abs(drawn.pow(4).mean() - 3) * root_n / np.sqrt(96) < 4
    # Kolmogorov-Smirnov: sqrt(n) times the largest distance exceeds 1.95 once in a thousand samples.
    rank = (torch.arange(len(drawn), dtype=torch.float64) + 0.5) / len(drawn)
    distance = (torch.special.ndtr(drawn.sort().values) - rank).abs().max()
    assert distance * root_n < 1.95
    # The two numbers that share a word.
    assert abs((drawn[0::2] * drawn[1::2]).mean()) * root_n / np.sqrt(2) < 4


def test_signs_are_exactly_one_and_the_bits_of_the_words():
    drawn = signs(2, Purpose.ADAPTER_START, (torch.arange(40), 1), 1000)
    assert drawn.dtype == torch.float32 and drawn.shape == (40, 1000)
    assert set(drawn.unique().tolist()) == {-1.0, 1.0}
    words = stream_words(2, Purpose.ADAPTER_START, (torch.arange(40), 1), 32)[3].tolist()
    bits = [word >> i & 1 for word in words for i in range(32)]
    assert drawn[3].tolist() == [2 * bit - 1 for bit in bits[:1000]]
    assert abs(drawn.to(torch.float64).mean()) * np.sqrt(drawn.numel()) < 4


@pytest.mark.parametrize("bound", [1, 2, 10, 4000, 2**31])
def test_integers_are_in_range_and_fill_it(bound):
    drawn = integers(4, Purpose.MINIBATCH, (torch.arange(10), 0), 4000, bound)
    assert drawn.dtype == torch.int64
    assert int(drawn.min()) >= 0 and int(drawn.max()) < bound
    words = stream_words(4, Purpose.MINIBATCH, (0, 0), 20)[0].tolist()
    assert drawn[0, :20].tolist() == [word * bound // 2**32 for word in words]
    if bound <= 10:
        frequency = torch.bincount(drawn.flatten(), minlength=bound) / drawn.numel()
        assert float((frequency - 1 / bound).abs().max()) < 5 / np.sqrt(bound * drawn.numel())


def test_permutation_is_one_and_follows_its_seed():
    order = permutation(3, Purpose.CONTROL, 1000)
    assert sorted(order.tolist()) == list(range(1000))
    assert order.tolist() == permutation(3, Purpose.CONTROL, 1000).tolist()
    assert order.tolist() != permutation(4, Purpose.CONTROL, 1000).tolist()
    # Spearman's correlation of a random order with the identity has standard deviation 1/√999.
    assert abs(np.corrcoef(order.numpy(), np.arange(1000))[0, 1]) < 5 / np.sqrt(999)


@pytest.mark.parametrize(
    "ids", [(torch.arange(5), 7), (3, 4), (torch.tensor([2**31, 2**32 - 1]), torch.tensor([5, 6]))]
)
@pytest.mark.parametrize("count", [1, 4, 33])
def test_what_a_gpu_computes_is_what_a_cpu_computes(ids, count):
    """The two implementations side by side on a CPU; that a GPU's integers agree with a CPU's is in test_gpu.py."""
    here = philox._stream_words_numpy(12345678901, Purpose.NOISE, ids, count)
    there = philox._stream_words_torch(12345678901, Purpose.NOISE, ids, count, "cpu")
    assert here.dtype == there.dtype == torch.int64 and torch.equal(here, there)
    for bits in (1, 32 * count - 3):
        assert torch.equal(philox.unpack_signs(philox.pack_signs(here), bits), philox._signs_torch(there, bits))
    assert torch.equal(philox._halves_numpy(here).long(), philox._halves_torch(there))
