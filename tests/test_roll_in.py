"""Scheduled roll-in: which inputs are replaced and by what, against plain loops; what must stay as it was; its exactness in every experiment."""

import functools
import importlib.util
import json
import signal
import sys
from types import SimpleNamespace

import pytest
import torch
from conftest import ROOT, assert_same_run, flags_of, metrics, results
from test_closed_loop import CORES, gru_step, reservoir_step, with_weights

from common import experiment as common_experiment
from common import roll_in
from common.errors import BadInput
from common.reservoir import draw_reservoir
from common.results import changed_settings, load_results
from common.rollout import Rollout
from common.run import fingerprint_of, load_checkpoint, pack_checkpoint

BPTT, RANK = "moving-mnist-bptt-baseline", "rank-space-es"
SCRIPT = ROOT / BPTT / "moving_mnist_bptt_baseline.py"
SMALL = {
    "preset": "smoke", "hidden-size": 48, "in-degree": 4, "sequence-length": 4, "train-sequences": 64,
    "validation-sequences": 16, "test-sequences": 16, "iterations": 4, "batch-size": 21, "learning-rate": 0.01,
    "evaluate-every": 2, "checkpoint-every": 1, "standardise": "none", "roll-in": 1.0,
}  # fmt: skip
FORWARD = {"decoder-warmup": 10, "decoder-batch-size": 8, "decoder-steps": 2}
# Of each experiment, and the rollouts of its 4 iterations: those without a roll-in, and those that it adds.
OWN = {
    BPTT: ({}, 4 * 21, 4 * 21),
    "reservoir-readout-only": ({"decoder-steps": 5}, 4 * 5 * 21, 4 * 5 * 21),
    "moving-mnist-es-reservoir": (
        {**FORWARD, "batch-size": 3, "population-pairs": 9, "rank": 2}, 4 * 2 * 9 * 3 + (10 + 4 * 2) * 8, 4 * (3 + 2 * 8),
    ),
    "truncated-es": (
        {**FORWARD, "window": 2, "members": 4, "rank": 2}, 4 * 21 * 5 + (10 + 4 * 2) * 8, 4 * (21 + 2 * 8),
    ),
    RANK: (
        {**FORWARD, "window": 1, "probes": 2, "rank": 2, "trains": "both"}, 4 * 21 * 3 + (10 + 4 * 2) * 8, 4 * (21 + 2 * 8),
    ),
}  # fmt: skip

flags = functools.partial(flags_of, SMALL)


@functools.cache
def module_of(slug):
    path = ROOT / slug / f"{slug.replace('-', '_')}.py"
    specification = importlib.util.spec_from_file_location(f"roll_in_{path.stem}", path)
    module = sys.modules[specification.name] = importlib.util.module_from_spec(specification)
    specification.loader.exec_module(module)
    return module


def words_of(slug, folder, **changes):
    return [*flags_of({**SMALL, **OWN[slug][0]}, **changes), "--run-dir", str(folder)]


def run_of(slug, folder, *more, **changes):
    """The folder of a finished run."""
    threads = torch.get_num_threads()
    try:
        assert module_of(slug).main([*words_of(slug, folder, **changes), *more]) == 0
    finally:
        torch.set_num_threads(threads)
    return folder


def config_of(share, iterations=4, length=21):
    return SimpleNamespace(roll_in=share, iterations=iterations, sequence_length=length, seed=3)


# --- Which inputs ----------------------------------------------------------------------------------------------------


def test_the_share_of_predictions_rises_linearly_and_is_zero_before_the_first_iteration():
    streams, config = torch.arange(10), config_of(0.6)
    assert roll_in.replaced_inputs(config, 0, streams, 500) is None
    for iteration in range(1, 5):
        assert roll_in.probability(config, iteration) == pytest.approx(0.15 * iteration)
        replaced_LB = roll_in.replaced_inputs(config, iteration, streams, 500)
        assert replaced_LB.shape == (20, 5000) and replaced_LB.dtype == torch.bool
        # 100,000 coins: four standard deviations are 0.0063 at most. At each time, of 5,000, 0.0283.
        assert float(replaced_LB.double().mean()) == pytest.approx(0.15 * iteration, abs=0.0063)
        assert torch.all((replaced_LB.double().mean(dim=1) - 0.15 * iteration).abs() < 0.0283)
    assert roll_in.probability(config_of(0.7, iterations=49), 49) == 0.7


def test_at_the_end_of_a_full_roll_in_every_input_is_a_prediction_and_of_none_no_coin_is_drawn(monkeypatch):
    assert roll_in.replaced_inputs(config_of(1.0), 4, torch.arange(3), 50).all()
    assert not roll_in.replaced_inputs(config_of(1.0), 3, torch.arange(3), 50).all()
    monkeypatch.setattr(roll_in, "stream_words", None)
    assert roll_in.replaced_inputs(config_of(0.0), 4, torch.arange(3), 50) is None


def test_a_coin_depends_on_seed_iteration_stream_and_sequence_and_not_on_the_batch():
    config = config_of(0.5, iterations=2)
    whole = roll_in.replaced_inputs(config, 1, torch.arange(4), 6)
    assert torch.equal(roll_in.replaced_inputs(config, 1, torch.tensor([2]), 6), whole[:, 12:18])
    assert torch.equal(roll_in.replaced_inputs(config, 1, torch.tensor([2]), 3), whole[:, 12:15])
    assert len({tuple(column) for column in whole.T.tolist()}) == 24
    # At the same share of a quarter, in another iteration, and of another seed.
    later, other = config_of(0.25, iterations=2), config_of(0.5, iterations=2)
    other.seed = 4
    for config, iteration in ((later, 2), (other, 1)):
        assert roll_in.probability(config, iteration) == 0.25
        assert not torch.equal(roll_in.replaced_inputs(config, iteration, torch.arange(4), 6), whole)


# --- By what ---------------------------------------------------------------------------------------------------------


def test_mixed_inputs_are_those_of_a_loop_over_single_sequences():
    generator = torch.Generator().manual_seed(0)
    reservoir = draw_reservoir(40, 4, seed=1)
    rollout = Rollout(reservoir, 0.4, 1.0, dtype=torch.float64)
    u, v = (torch.randn(40, 3, generator=generator, dtype=torch.float64) * 0.3 for _ in range(2))
    weight, bias = (torch.randn(*shape, generator=generator, dtype=torch.float64) for shape in ((128, 40), (128,)))
    z_TEB = torch.randn(6, 128, 9, generator=generator, dtype=torch.float64)
    given, replaced_LB = z_TEB.clone(), torch.rand(5, 9, generator=generator) < 0.5
    got = roll_in.rolled_in(
        z_TEB, replaced_LB, torch.zeros(40, 9, dtype=torch.float64),
        lambda h, z: rollout.step(u, v, h, rollout.drive(z)), (weight, bias),
    )  # fmt: skip
    assert torch.equal(z_TEB, given)
    recurrent = reservoir.dense().double() + u @ v.T
    w_in, b = reservoir.input_NE.double(), reservoir.bias_N.double()
    for sequence in range(9):
        h, z = torch.zeros(40, dtype=torch.float64), given[0, :, sequence]
        assert torch.equal(got[0, :, sequence], z)
        for t in range(1, 6):
            h = 0.6 * h + 0.4 * torch.tanh(recurrent @ h + w_in @ z + b)
            z = weight @ h + bias if replaced_LB[t - 1, sequence] else given[t, :, sequence]
            assert torch.allclose(got[t, :, sequence], z, rtol=1e-10, atol=1e-12)
    assert torch.equal(got[1:].transpose(1, 2)[~replaced_LB], given[1:].transpose(1, 2)[~replaced_LB])


@pytest.mark.parametrize("changes", CORES, ids=str)
def test_a_minibatch_reads_what_each_core_predicts_and_is_to_predict_the_true_frames(training_of, changes):
    training = with_weights(training_of(roll_in=0.5, **changes))
    plain = with_weights(training_of(roll_in=0, **changes))
    step = gru_step(training) if "core" in changes else reservoir_step(training)
    weight, bias = (x.detach().double() for x in training.decoder.linear.parameters())
    streams = torch.tensor([0, 5])
    (mixed_TEB, target_TEB), (input_TEB, true_TEB) = (x.minibatch(3, streams, 7) for x in (training, plain))
    replaced_LB = roll_in.replaced_inputs(training.config, 3, streams, 7)
    assert torch.equal(target_TEB, true_TEB) and torch.equal(mixed_TEB[0], input_TEB[0])
    assert replaced_LB.shape == (3, 14) and replaced_LB.any() and not replaced_LB.all()
    for sequence in range(14):
        h, z = torch.zeros(48, dtype=torch.float64), input_TEB[0, :, sequence].double()
        for t in range(1, 4):
            h = step(h, z)
            z = weight @ h + bias if replaced_LB[t - 1, sequence] else input_TEB[t, :, sequence].double()
            assert torch.allclose(mixed_TEB[t, :, sequence].double(), z, rtol=1e-4, atol=1e-4)


@pytest.mark.parametrize("changes", CORES, ids=str)
def test_the_last_iteration_of_a_full_roll_in_reads_the_closed_loop(training_of, changes):
    training = with_weights(training_of(horizon=3, **changes))
    (mixed_TEB, _), (input_TEB, _) = (x.minibatch(4, torch.tensor([0])) for x in (training, training_of(roll_in=0)))
    assert torch.equal(mixed_TEB[0], input_TEB[0])
    assert torch.allclose(mixed_TEB[1:], training.predict_ahead(input_TEB[:1]), rtol=1e-5, atol=1e-6)


@pytest.mark.parametrize("decoder", ["adam", "ridge"])
@pytest.mark.parametrize("changes", CORES, ids=str)
def test_tiles_of_the_ceiling_read_what_the_whole_minibatch_does(training_of, changes, decoder):
    """Its tiles are drawn by index: 21 sequences in tiles of 8, the last one padded."""
    training = with_weights(training_of(decoder=decoder, **changes))
    training.tile, training.iteration = 8, 2
    input_TEB, target_TEB = training.minibatch(3, torch.zeros(1, dtype=torch.int64))
    expected = float((training.predict(input_TEB) - target_TEB).square().mean()) / training.scale
    assert training.iterate()["train_loss"] == pytest.approx(expected, rel=1e-5)


def test_a_population_and_its_decoder_learn_from_mixed_inputs(tmp_path, monkeypatch):
    """What is read is recorded at the one place through which all of it goes."""
    seen, minibatch = [], common_experiment.Training.minibatch

    def record(self, iteration, streams, *arguments, **options):
        input_TEB, target_TEB = minibatch(self, iteration, streams, *arguments, **options)
        same = torch.equal(input_TEB[1:], target_TEB[:-1])
        seen.append((iteration, int(streams[0]) >= 1 << 20, same))
        return input_TEB, target_TEB

    monkeypatch.setattr(common_experiment.Training, "minibatch", record)
    run_of(RANK, tmp_path / "run", threads=1)
    # Inputs are the targets one frame before: with a roll-in no more.
    assert {same for iteration, _, same in seen if iteration == 0} == {True}
    assert {(own, same) for iteration, own, same in seen if iteration > 0} == {(True, False), (False, False)}


# --- What stays as it was --------------------------------------------------------------------------------------------


def before_there_was_a_roll_in(monkeypatch):
    def minibatch(self, iteration, streams, batch_size=None, decoder=None):
        index_B = self.minibatch_index(iteration, streams, batch_size or self.config.batch_size)
        return common_experiment.inputs_and_targets(self.embeddings.get("train", index_B))

    monkeypatch.setattr(common_experiment.Training, "minibatch", minibatch)
    monkeypatch.setattr(common_experiment.Training, "roll_in", lambda self, input_TEB, *_: input_TEB)
    monkeypatch.setattr(roll_in, "stream_words", None)


@pytest.mark.parametrize("slug", OWN)
def test_teacher_forcing_has_the_bits_that_it_had_and_a_roll_in_others(tmp_path, monkeypatch, slug):
    rolled = run_of(slug, tmp_path / "rolled")
    plain = run_of(slug, tmp_path / "plain", roll_in=0)
    with monkeypatch.context() as patch:
        before_there_was_a_roll_in(patch)
        assert_same_run(plain, run_of(slug, tmp_path / "before", roll_in=0))
    assert results(rolled)["theta_sha256"] != results(plain)["theta_sha256"]
    # The line before the first iteration: warm-up and validation are teacher-forced.
    assert metrics(rolled)[0] == metrics(plain)[0]
    assert [line.get("roll_in") for line in metrics(rolled)] == [None, 0.25, 0.5, 0.75, 1.0]
    assert not any("roll_in" in line for line in metrics(plain))
    _, without, added = OWN[slug]
    assert results(plain)["rollouts"] == without and results(rolled)["rollouts"] == without + added


def test_a_score_is_teacher_forced(training_of):
    ours, plain = (with_weights(training_of(roll_in=share)).score("validation") for share in (1, 0))
    assert torch.equal(ours.by_frame_T, plain.by_frame_T)


def test_committed_results_are_still_those_of_their_presets():
    for result in load_results():
        config, _ = module_of(result["stub"]).parse_arguments(["--preset", result["preset"]])
        assert "roll_in" not in changed_settings(result["config"], vars(config))


# --- Exactness -------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("slug", OWN)
def test_threads_and_a_stop_do_not_change_a_bit(tmp_path, monkeypatch, slug):
    """Stopped after the second iteration and resumed on two threads."""
    whole = run_of(slug, tmp_path / "whole", threads=1)
    training_class = module_of(slug).Training
    iterate = training_class.iterate

    def interrupt_the_second(training):
        line = iterate(training)
        if training.iteration == 2:
            signal.raise_signal(signal.SIGINT)
        return line

    with monkeypatch.context() as patch:
        patch.setattr(training_class, "iterate", interrupt_the_second)
        assert module_of(slug).main(words_of(slug, tmp_path / "stopped", threads=1)) == 130
    assert_same_run(run_of(slug, tmp_path / "stopped", "--resume", threads=2), whole)


@pytest.mark.parametrize("slug", [BPTT, RANK])
def test_ranks_do_not_change_a_bit(torchrun, tmp_path, slug):
    whole = run_of(slug, tmp_path / "whole", threads=1)
    words = words_of(slug, tmp_path / "ranks", threads=1)
    code, _, stderr = torchrun(2, *words, script=ROOT / slug / f"{slug.replace('-', '_')}.py").end()
    assert code == 0, stderr
    assert_same_run(tmp_path / "ranks", whole)


def test_the_setting_is_part_of_a_run(tmp_path):
    folder = run_of(BPTT, tmp_path / "run")
    assert json.loads((folder / "config.json").read_text())["roll_in"] == 1.0
    with pytest.raises(BadInput, match="another configuration: roll_in is 1.0"):
        module_of(BPTT).main([*words_of(BPTT, folder, roll_in=0.5), "--resume"])


# --- What is refused, what it costs ----------------------------------------------------------------------------------


@pytest.mark.parametrize("value", ["-1", "2", "1.0001", "nan", "inf", "x", ""])
@pytest.mark.parametrize("slug", OWN)
def test_a_share_that_is_none_is_refused(slug, value):
    with pytest.raises(BadInput, match="--roll-in: must be a finite number ≥ 0 and ≤ 1"):
        module_of(slug).parse_arguments(["--preset", "smoke", f"--roll-in={value}"])


def test_what_knows_of_no_roll_in_is_refused(tmp_path):
    with pytest.raises(BadInput, match="--roll-in needs a --sequence-length of at least 2"):
        module_of(BPTT).main(words_of(BPTT, tmp_path / "run", sequence_length=1))
    with pytest.raises(BadInput, match="--measure-cosine-every .* needs --roll-in 0"):
        module_of(RANK).main(words_of(RANK, tmp_path / "run", measure_cosine_every=1))
    assert not (tmp_path / "run").exists()


@pytest.mark.parametrize("slug", OWN)
def test_a_dry_run_tells_what_it_costs(slug, tmp_path, capsys):
    said = {}
    for share in (0, 0.5):
        run_of(slug, tmp_path / "run", "--dry-run", roll_in=share)
        said[share] = capsys.readouterr().out
    assert "roll-in" not in said[0]
    assert said[0.5].count("roll-in: one more rollout of each training sequence") == 1


def test_a_run_from_before_there_was_a_roll_in_goes_on(experiment, run):
    """Its config.json does not have the setting, and its checkpoint the hash of such a configuration."""
    whole, old = (run(name, iterations=2, roll_in=0.0) for name in ("whole", "old"))
    config = json.loads((old / "config.json").read_text())
    assert config.pop("roll_in") == 0
    (old / "config.json").write_text(json.dumps(config))
    state = load_checkpoint(old / "checkpoint.pt")
    (old / "checkpoint.pt").write_bytes(pack_checkpoint({**state, "identity": fingerprint_of(config)}))
    (old / "checkpoint.previous.pt").unlink()
    assert experiment.main([*flags(iterations=2, roll_in=0.0), "--run-dir", str(old), "--evaluate"]) == 0
    (old / "results.json").unlink()
    run("old", "--resume", iterations=2, roll_in=0.0)
    assert results(old)["theta_sha256"] == results(whole)["theta_sha256"]
    with pytest.raises(BadInput, match="roll_in is 0.0 there, 0.5 here"):
        run("old", "--resume", iterations=2, roll_in=0.5)
