"""The frozen parts: reservoir draw and encoder."""

import math

import numpy as np
import pytest
import torch

from common.digits import load_digits
from common.encoder import CHANNELS, EMBEDDING, TILE, Encoder
from common.errors import BadInput
from common.moving_mnist import MovingMNIST
from common.reservoir import draw_reservoir, rollout_reference


def test_fixed_in_degree_rows_hold_k_distinct_columns():
    reservoir = draw_reservoir(300, 17, seed=3)
    assert reservoir.index_Nk.shape == (300, 17)
    for row in reservoir.index_Nk.tolist():
        assert len(set(row)) == 17 and 0 <= min(row) and max(row) < 300


def test_columns_of_w0_are_uniform():
    # Each of N columns is expected N·k/N = k times; a χ² statistic with N − 1 degrees of freedom.
    reservoir = draw_reservoir(400, 20, seed=0)
    count = np.bincount(reservoir.index_Nk.flatten().numpy(), minlength=400)
    statistic = ((count - 20) ** 2 / 20).sum()
    assert abs(statistic - 399) < 5 * math.sqrt(2 * 399)


@pytest.mark.parametrize(("scale", "std"), [("std", 0.9 / math.sqrt(50)), ("variance", math.sqrt(0.9 / math.sqrt(50)))])
def test_weight_scale_is_a_standard_deviation_or_a_variance(scale, std):
    value = draw_reservoir(500, 50, seed=1, gain=0.9, weight_scale=scale).value_Nk
    assert value.std().item() == pytest.approx(std, rel=0.02)
    assert abs(value.mean().item()) < 5 * std / math.sqrt(value.numel())


def test_spectral_radius_follows_the_circular_law():
    # Girko: entries of variance gain²/N on average fill a disc of radius gain.
    weight = draw_reservoir(300, 50, seed=0, gain=0.9).dense().numpy()
    assert np.abs(np.linalg.eigvals(weight)).max() == pytest.approx(0.9, rel=0.1)


def test_erdos_renyi_has_binomial_in_degrees():
    reservoir = draw_reservoir(500, 40, seed=5, topology="erdos-renyi")
    present = reservoir.value_Nk != 0
    degrees = present.sum(dim=1).to(torch.float64)
    assert degrees.mean().item() == pytest.approx(40, abs=5 * math.sqrt(40 / 500))
    assert degrees.var().item() == pytest.approx(40 * (1 - 40 / 500), rel=0.35)
    # The padding adds nothing: as many non-zero entries in the dense matrix as in the list.
    assert int((reservoir.dense() != 0).sum()) == int(present.sum())


def test_a_draw_is_a_function_of_its_seed():
    first, again, other = (draw_reservoir(100, 10, seed=s) for s in (7, 7, 8))
    assert torch.equal(first.value_Nk, again.value_Nk) and torch.equal(first.index_Nk, again.index_Nk)
    assert not torch.equal(first.value_Nk, other.value_Nk)


def test_more_entries_than_units_is_bad_input():
    with pytest.raises(BadInput, match="--in-degree"):
        draw_reservoir(10, 11, seed=0)


def test_reference_rollout_is_the_equation_unit_by_unit():
    torch.manual_seed(0)
    reservoir = draw_reservoir(6, 2, seed=0).to("cpu", torch.float64)
    u, v = torch.randn(6, 2, dtype=torch.float64), torch.randn(6, 2, dtype=torch.float64)
    z = torch.randn(3, 1, EMBEDDING, dtype=torch.float64)
    states = rollout_reference(reservoir, u, v, 0.3, z)
    h = [0.0] * 6
    for t in range(3):
        new = []
        for i in range(6):
            drive = sum(float(w) * h[int(j)] for j, w in zip(reservoir.index_Nk[i], reservoir.value_Nk[i], strict=True))
            drive += sum(float(u[i, c]) * sum(float(v[j, c]) * h[j] for j in range(6)) for c in range(2))
            drive += sum(float(reservoir.input_NE[i, e]) * float(z[t, 0, e]) for e in range(EMBEDDING))
            new.append(0.7 * h[i] + 0.3 * math.tanh(drive))
        h = new
        assert states[t, 0].tolist() == pytest.approx(h, abs=1e-12)


# --- Encoder ---------------------------------------------------------------------------------------------------------


def plain_encoder(encoder: Encoder, frames: np.ndarray) -> np.ndarray:
    """The CNN by loops over output positions, float64: (M, 64, 64) → (M, 128)."""
    x = frames[:, None].astype(np.float64) / 255
    for weight in encoder.weights:
        kernel = weight.numpy().astype(np.float64)
        padded = np.pad(x, ((0, 0), (0, 0), (1, 1), (1, 1)))
        side = x.shape[2] // 2
        out = np.empty((len(x), len(kernel), side, side))
        for i in range(side):
            for j in range(side):
                patch = padded[:, :, 2 * i : 2 * i + 3, 2 * j : 2 * j + 3]
                out[:, :, i, j] = np.einsum("mcyx,ocyx->mo", patch, kernel)
        x = np.maximum(out, 0)
    return x.mean(axis=(2, 3))


@pytest.fixture(scope="module")
def data():
    return MovingMNIST(load_digits(), 1, 4, seed=0)


def test_encoder_is_three_strided_convolutions_and_a_pool(data):
    encoder = Encoder(seed=0)
    frames = data.frames("train", np.arange(2)).reshape(-1, 64, 64)
    expected = plain_encoder(encoder, frames)
    got = encoder.encode(torch.from_numpy(frames)).numpy()
    assert np.abs(got - expected).max() < 1e-5 * np.abs(expected).max()


def test_encoder_weights_are_kaiming_normal():
    for weight, fan_in in zip(Encoder(seed=2).weights, CHANNELS[:-1], strict=True):
        assert weight.std().item() == pytest.approx(math.sqrt(2 / (9 * fan_in)), rel=0.1)


def test_an_embedding_does_not_depend_on_its_neighbours(data):
    # Whole tiles, part tiles and single frames give the same bits: what is cached must not depend on how it was made.
    encoder = Encoder(seed=0)
    frames = torch.from_numpy(data.frames("train", np.arange(TILE // 2))).flatten(0, 1)
    together = encoder.encode(frames)
    assert torch.equal(together[5:6], encoder.encode(frames[5:6]))
    assert torch.equal(together[TILE : TILE + 3], encoder.encode(frames[TILE : TILE + 3]))


def test_calibration_makes_mean_zero_and_variance_one(data, monkeypatch):
    monkeypatch.setattr("common.encoder.CALIBRATION_SEQUENCES", 100)
    encoder = Encoder(seed=0)
    encoder.calibrate(data)
    frames = MovingMNIST(data.digits, 1, 21, 0).frames("train", np.arange(100))
    z = encoder.encode(torch.from_numpy(frames).flatten(0, 1))
    alive = z.std(dim=0) > 0
    assert alive.sum() > 100
    assert z.mean(dim=0).abs().max() < 1e-3
    assert (z[:, alive].std(dim=0, correction=0) - 1).abs().max() < 1e-3
