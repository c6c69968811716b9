"""The experiment with truncated members: its step against a float64 estimate put together by hand, its exactness, that it learns."""

import functools
import json
import math
import sys

import pytest
import torch
from conftest import ROOT, assert_same_run, flags_of, results

from common.laws import grouped_cosine
from common.problem import ProblemSettings
from common.run import RunSettings
from common.supervised import DecoderTrainingSettings

SCRIPT = ROOT / "truncated-es" / "truncated_es.py"
# 21 sequences in tiles of 6, the last half padding, three of them side by side; no three ranks get equal shares.
SMALL = {
    "preset": "smoke", "hidden-size": 48, "rank": 2, "in-degree": 4, "sequence-length": 4, "window": 2, "members": 4,
    "train-sequences": 64, "validation-sequences": 16, "test-sequences": 16, "iterations": 6, "batch-size": 21,
    "learning-rate": 0.01, "decoder-warmup": 10, "decoder-batch-size": 8, "evaluate-every": 2, "checkpoint-every": 1,
}  # fmt: skip


flags = functools.partial(flags_of, SMALL)


# --- The estimate ----------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("shaping", ["raw", "standardised"])
@pytest.mark.parametrize("window", [1, 2, 4])
def test_an_estimate_is_what_its_members_make_by_hand(training_of, window, shaping):
    """Every member run by itself in float64 with its whole weights V + σ c dᵀ, projections by QR; padding and the tiles' order told
    apart from nothing but the members' numbers."""
    training = training_of(window=window, fitness_shaping=shaping, sigma=0.01)
    training.v_Nr.copy_(torch.randn(48, 2, generator=torch.Generator().manual_seed(0)) * 0.1)
    tiling, config, members = training.tiling, training.config, training.config.members
    assert (tiling.tile, tiling.at_once) == (6, 3)
    decoder = training.decoder.frozen_copy()
    weight, bias = (x.double() for x in decoder)
    reservoir = training.problem.reservoir().to("cpu", torch.float64)
    u, theta, leak = training.u_Nr.double(), training.v_Nr.double(), config.leak

    def step(v, h, z):
        x = reservoir.dense() @ h + u @ (v.T @ h) + reservoir.input_NE @ z + reservoir.bias_N
        return (1 - leak) * h + leak * x.tanh()

    total, losses = torch.zeros(48, 2, dtype=torch.float64), []
    for sequence in range(21):
        tile, place = divmod(sequence, tiling.tile)
        input_TEB, target_TEB = training.minibatch(1, torch.tensor([training.OWN + tile]), tiling.tile)
        z, target = input_TEB[:, :, place].double(), target_TEB[:, :, place].double()
        group = sequence // tiling.at_once
        _, _, c, d = training.noise.draw(1, torch.arange(group * members, (group + 1) * members))
        h = torch.zeros(48, dtype=torch.float64)
        for start in range(0, 4, window):
            loss, visited = torch.zeros(members, dtype=torch.float64), []
            for member in range(members):
                v, state = theta + 0.01 * torch.outer(c[member], d[member]).double(), h
                for t in range(start, start + window):
                    state = step(v, state, z[t])
                    loss[member] += (weight @ state + bias - target[t]).square().mean() / window
            for t in range(start, start + window):
                visited.append(h)
                h = step(theta, h, z[t])
            losses.append(loss.mean())
            if loss.std() < 1e-12:  # the one step from the zero state, which V has no part in
                continue
            w = (loss - loss.mean()) * members / (members - 1)
            w /= loss.std() if shaping == "standardised" else 0.01
            basis = torch.linalg.qr(torch.stack([x for x in visited if x.any()], dim=1)).Q
            total += basis @ (basis.T @ (w[:, None] * c.double()).T) @ d.double()
    halves, _, loss, left_out = training._estimate(1, decoder)
    counting = 21 * (4 // window) - (21 if window == 1 else 0)
    assert left_out == pytest.approx(1 - counting / (21 * (4 // window)))
    got, expected = halves.sum(dim=0).double(), total / (counting * members)
    # Losses in float32 differ by a thousandth of themselves between members.
    assert float((got - expected).norm() / expected.norm()) < 2e-3
    kept = [x for i, x in enumerate(losses) if window > 1 or i % 4]
    assert loss == pytest.approx(float(torch.stack(kept).mean()), rel=1e-5)


def test_halves_are_the_even_and_the_odd_tiles(training_of):
    training = training_of()
    decoder = training.decoder.frozen_copy()
    training.before_tiles(1, decoder)
    rows = [training._tile(tile, 1, decoder)[:-3].view(2, 48, 2) for tile in range(4)]
    assert all(not row[1 - tile % 2].any() and row[tile % 2].any() for tile, row in enumerate(rows))
    halves, *_ = training._estimate(1, decoder)
    expected = sum(row for row in rows)
    assert torch.allclose(halves / halves.norm(), expected / expected.norm(), atol=1e-6)


def test_a_measurement_compares_with_both_gradients(training_of, monkeypatch):
    """Handed the truncated gradient itself, the meter says 1 to it, and to the whole gradient their cosine."""
    training = training_of(window=2)
    training.v_Nr.copy_(torch.randn(48, 2, generator=torch.Generator().manual_seed(0)) * 0.1)
    decoder = training.decoder.frozen_copy()
    everything = torch.arange(64)
    monkeypatch.setattr(training, "minibatch_index", lambda *arguments: everything)
    whole = training.meter.sums(everything, training.u_Nr, training.v_Nr, decoder).gradient_D
    truncated = training.meter.sums(everything, training.u_Nr, training.v_Nr, decoder, window=2).gradient_D
    got = training._measure(truncated.view(48, 2), 1, decoder)
    between = float(whole @ truncated / whole.norm() / truncated.norm())
    # Cosines are to expectations, whose norms are known from a finite number of sequences.
    assert got["cosine_truncated"] == pytest.approx(1, abs=0.1)
    assert got["cosine_gradient"] / between == pytest.approx(1, abs=0.1)
    assert between < 0.999
    # Windows of two steps count for (2 + 2) · 2 dimensions.
    assert got["cosine_truncated_law"] == pytest.approx(grouped_cosine(21, 4, 8, got["batch_noise"]))


def test_a_failed_iteration_leaves_v_as_it_was(training_of, monkeypatch):
    training = training_of()
    training.iterate()
    before = training.v_Nr.clone()
    monkeypatch.setattr(
        sys.modules["truncated_es"], "member_errors", lambda *arguments: torch.full((2, 4, 6), math.nan)
    )
    metrics = training.iterate()
    assert math.isnan(metrics["train_loss"]) and metrics["left_out_fraction"] == 1
    assert torch.equal(training.v_Nr, before)


# --- The run ---------------------------------------------------------------------------------------------------------


def test_a_stopped_run_resumes_in_the_bits_of_a_whole_one(experiment, run, tmp_path, monkeypatch, stop_after):
    changes = {"decoder": "ridge", "decoder_refit": 2}
    whole = run("whole", **changes)
    stop_after(3)
    assert experiment.main([*flags(**changes), "--run-dir", str(tmp_path / "stopped")]) == 130
    monkeypatch.undo()
    assert_same_run(run("stopped", "--resume", **changes), whole)


@pytest.mark.parametrize("ranks", [2, 3, pytest.param(8, marks=pytest.mark.slow)])
def test_ranks_and_threads_do_not_change_a_bit(run, torchrun, tmp_path, ranks):
    whole = run("whole", threads=1, decoder="ridge")
    folder, words = tmp_path / "ranks", flags(decoder="ridge")
    code, _, stderr = torchrun(ranks, *words, "--run-dir", folder, "--threads", 2, script=SCRIPT).end()
    assert code == 0, stderr
    assert_same_run(folder, whole)


def test_measuring_changes_nothing(run):
    measured = run("measured", measure_cosine_every=2)
    assert results(measured)["theta_sha256"] == results(run("whole"))["theta_sha256"]
    lines = [json.loads(line) for line in (measured / "metrics.jsonl").read_text().splitlines()]
    assert [line["iteration"] for line in lines if "cosine_truncated" in line] == [2, 4, 6]


def test_it_makes_the_core_better_and_its_control_does_not(run):
    """On a small problem, under the same ridge readout; members run for two of eight steps."""
    got = results(run("run", hidden_size=100, in_degree=10, rank=8, sequence_length=8, train_sequences=600, window=2,
                      members=8, iterations=400, batch_size=32, learning_rate=0.03, validation_sequences=64,
                      test_sequences=64, evaluate_every=100, checkpoint_every=100, decoder="ridge",
                      decoder_batch_size=16))  # fmt: skip
    assert got["ridge_test_mse"] < 0.995 * got["ridge_test_mse_at_start"]
    assert got["ridge_test_mse"] < got["ridge_test_mse_shuffled"]
    assert "role" not in got
    # Members have been through every step of 400 · 32 sequences eight times, the unperturbed V once; the decoder has its own.
    assert got["rollouts"] == 400 * 32 * 9 + (10 + 400) * 16


@pytest.mark.parametrize(
    ("words", "said"),
    [
        (["--rank", "49"], "--rank must not exceed"),
        (["--window", "3"], "--window must divide --sequence-length: 4 is not a multiple of 3"),
        (["--members", "1"], "--members"),
        (
            ["--members", "1024", "--sequence-length", "100", "--window", "1"],
            "102,400 columns side by side; at most 65,536",
        ),
        (["--sequence-length", "1", "--window", "1"], "--sequence-length must be at least 2"),
        (["--fitness-shaping", "sign"], "--fitness-shaping"),
    ],
)
def test_bad_input(experiment, words, said):
    with pytest.raises(Exception, match=said) as caught:
        experiment.parse_arguments([*flags(), *words])
    assert type(caught.value).__name__ == "BadInput"


def test_no_setting_of_its_own_hides_one_that_all_experiments_have(experiment):
    """A field of the same name would be the problem's, too."""
    shared = {*ProblemSettings.__annotations__, *RunSettings.__annotations__, *DecoderTrainingSettings.__annotations__}
    assert not shared & set(experiment.Config.__annotations__)
