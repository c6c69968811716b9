"""A run that begins with what another has learned: what it predicts stays as it was, also where units and columns are added."""

import dataclasses
import json
import shutil

import pytest
import torch
from conftest import ROOT, assert_same_run, flags_of, results

from common.contract import run_python
from common.errors import BadInput
from common.experiment import load_start
from common.problem import ProblemSettings
from common.reservoir import draw_reservoir, grown, rollout_reference
from common.run import load_checkpoint

BPTT, RANK = "moving-mnist-bptt-baseline", "rank-space-es"
COMMON = {
    "preset": "smoke", "hidden-size": 40, "rank": 2, "in-degree": 4, "sequence-length": 4, "train-sequences": 64,
    "validation-sequences": 16, "test-sequences": 16, "iterations": 3, "batch-size": 9, "learning-rate": 0.02,
    "evaluate-every": 1, "checkpoint-every": 1,
}  # fmt: skip
OF = {
    BPTT: {"decoder": "ridge"},
    RANK: {"window": 1, "probes": 2, "trains": "both", "u-scale": 0.2, "decoder": "ridge", "decoder-warmup": 4, "decoder-batch-size": 8},
}  # fmt: skip
SCRIPT = ROOT / RANK / "rank_space_es.py"


def flags(**changes) -> list[str]:
    return flags_of({**COMMON, **OF[RANK]}, **changes)


# --- The reservoir ---------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("topology", ["fixed-in-degree", "erdos-renyi"])
def test_in_a_reservoir_that_has_grown_the_first_units_do_as_before(topology):
    old, new = (draw_reservoir(size, 4, 0, topology=topology) for size in (30, 50))
    both = grown(old, new)
    weight = both.dense()
    assert torch.equal(weight[:30, :30], old.dense()) and not weight[:30, 30:].any()
    assert torch.equal(weight[30:], new.dense()[30:]) and bool(weight[30:, :30].any())
    z = torch.randn(6, 3, 128, generator=torch.Generator().manual_seed(0))
    none = [torch.zeros(size, 1) for size in (30, 50)]
    alone, within = (rollout_reference(r, x, x, 0.5, z) for r, x in zip((old, both), none))
    assert torch.allclose(within[..., :30], alone, atol=1e-6)


def test_a_reservoir_that_has_grown_is_another_problem_and_one_that_has_not_is_none():
    settings = ProblemSettings(hidden_size=50, in_degree=4)
    digits = settings.load_digits()
    plain, of_30 = (ProblemSettings(hidden_size=50, in_degree=4, grown_from=size).problem(digits) for size in (0, 30))
    assert "grown_from" not in plain.description and of_30.description["grown_from"] == 30
    assert plain.id == settings.problem(digits).id != of_30.id
    assert torch.equal(of_30.reservoir().dense()[:30, :30], draw_reservoir(30, 4, 0).dense())


# --- What is taken over ----------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    "changes",
    [
        {},
        {"rank": 5},
        {"hidden_size": 56, "grown_from": 40},
        {"hidden_size": 56, "grown_from": 40, "rank": 5, "train_leak": "per-unit", "sequence_length": 7},
    ],
    ids=str,
)
def test_what_is_predicted_stays_as_it_was(run, training_of, changes):
    """Before the readout learns on; the leak of one number becomes one of each unit."""
    first = run("first", **({"train_leak": "scalar"} if "train_leak" in changes else {}))
    training = training_of(start_from=first, **changes)
    training.take_over(load_start(training.config))
    state = load_checkpoint(first / "checkpoint.pt")
    u, v, decoder = state["u_Nr"], state["v_Nr"], state["decoder"]["linear"]
    assert u.any() and v.any()
    leak = torch.sigmoid(state["leak"]["logit"]).T if "leak" in state else 0.5
    z_TEB, _ = training.minibatch(1, torch.tensor([5]))
    reservoir = draw_reservoir(40, 4, 0)
    states_TBN = rollout_reference(reservoir, u, v, leak, z_TEB.transpose(1, 2))
    expected_TEB = (states_TBN @ decoder["weight"].T + decoder["bias"]).transpose(1, 2)
    assert torch.allclose(training.predict(z_TEB), expected_TEB, atol=2e-5)
    # What is new can learn: of a product that is zero not both factors are.
    assert training.u_Nr.any(dim=0).all() or training.v_Nr.any(dim=0).all()
    if "train_leak" in changes:
        assert float(training.leak.alpha_X1[40:].mean()) == pytest.approx(float(leak), abs=1e-6)


def test_a_run_begins_where_another_ended(run):
    """Without a warm-up of the readout the first score is the other's last; what recursive least squares has read is kept."""
    first = run("first")
    second = run("second", start_from=first, decoder_warmup=0)
    lines = [[json.loads(line) for line in (f / "metrics.jsonl").read_text().splitlines()] for f in (first, second)]
    assert lines[1][0]["validation_mse"] == pytest.approx(lines[0][-1]["validation_mse"], rel=1e-6)
    plain = run("plain", decoder_warmup=0)
    assert results(second)["ridge_test_mse"] != results(plain)["ridge_test_mse"]
    sums = [load_checkpoint(f / "checkpoint.pt")["decoder"]["equations"]["gram_FF"][-1, -1] for f in (second, plain)]
    assert float(sums[0]) > 1.5 * float(sums[1])


def test_another_experiment_may_begin_with_it(run, tmp_path):
    first, second = run("first"), tmp_path / "second"
    words = [*flags_of({**COMMON, **OF[BPTT]}), "--start-from", first, "--run-dir", second]
    done = run_python([f"{BPTT.replace('-', '_')}.py", *words], ROOT / BPTT, ROOT, capture_output=True, text=True)
    assert done.returncode == 0, done.stderr
    lines = [[json.loads(line) for line in (f / "metrics.jsonl").read_text().splitlines()] for f in (first, second)]
    assert lines[1][0]["validation_mse"] == pytest.approx(lines[0][-1]["validation_mse"], rel=1e-6)


def test_of_a_run_that_kept_its_best_parameters_those_are_taken_over(experiment, run, training_of, monkeypatch):
    """Its checkpoint holds the last ones as well, which were worse."""
    scores, score = iter([0.9, 0.5, 0.7, 0.8, *[1.0] * 5]), experiment.Training.score

    def told(training, split):
        got = score(training, split)
        return dataclasses.replace(got, by_frame_T=got.by_frame_T * 0 + next(scores)) if split == "validation" else got

    monkeypatch.setattr(experiment.Training, "score", told)
    first = run("first", patience=5, train_leak="per-unit")
    monkeypatch.undo()
    best = load_checkpoint(first / "checkpoint.pt")["best"]
    assert best["iteration"] == 1
    training = training_of(start_from=first, train_leak="per-unit", patience=5)
    training.take_over(load_start(training.config))
    for got, expected in zip(training.parameters(), best["parameters"], strict=True):
        assert torch.allclose(got, expected, atol=1e-6)


@pytest.mark.parametrize("grows", [False, True])
def test_what_a_ridge_readout_has_read_is_not_lost(run, training_of, grows):
    """After one more minibatch its weights are nearly what they were, of the units that there were."""
    first = run("first", decoder_warmup=200)
    changes = {"hidden_size": 56, "grown_from": 40} if grows else {}
    training = training_of(start_from=first, decoder_warmup=0, decoder_refit=1, **changes)
    training.take_over(load_start(training.config))
    before = training.decoder.linear.weight.detach().clone()
    z_TEB, target_TEB = training.minibatch(1, torch.tensor([5]), 8)
    training.decoder.step(training.states(z_TEB), target_TEB)
    change = (training.decoder.linear.weight.detach() - before)[:, :40].norm() / before.norm()
    assert 0 < float(change) < 0.3


def test_a_ridge_readout_after_one_by_adam_reads_before_it_solves(training_of, run):
    first = run("first", decoder="adam", iterations=1)
    training = training_of(start_from=first, decoder_refit=7)
    training.take_over(load_start(training.config))
    before, solved = training.decoder.linear.weight.clone(), []
    for step in range(1, 9):
        z_TEB, target_TEB = training.minibatch(1, torch.tensor([5 + step]), 8)
        training.decoder.step(training.states(z_TEB), target_TEB)
        if not torch.equal(training.decoder.linear.weight, before):
            solved.append(step)
            before = training.decoder.linear.weight.detach().clone()
    assert solved == [7]


def test_an_adapter_that_does_nothing_leaves_the_start_as_it_is(experiment, run, training_of, monkeypatch):
    """Of a frozen core's run U = V = 0, from where nothing would ever be learned."""
    first = run("first", iterations=1)
    state = load_checkpoint(first / "checkpoint.pt")
    state["u_Nr"].zero_()
    state["v_Nr"].zero_()
    training = training_of(start_from=first)
    monkeypatch.setattr("common.experiment.load_checkpoint", lambda path: state)
    training.take_over(load_start(training.config))
    start_u, _ = experiment.Training.start_adapter(training.config)
    assert torch.equal(training.u_Nr, start_u) and not training.v_Nr.any()


def test_a_run_that_began_so_can_be_scored_later(experiment, run):
    first = run("first", iterations=1)
    second = run("second", start_from=first)
    for folder, changes in ((first, {}), (second, {"start_from": first})):
        assert experiment.main([*flags(**changes), "--run-dir", str(folder), "--evaluate"]) == 0


def test_stopped_and_resumed_without_what_it_began_with(experiment, run, tmp_path, monkeypatch):
    first = run("first")
    whole = run("whole", start_from=first, rank=3)
    iterate, stopped = experiment.Training.iterate, tmp_path / "stopped"

    def fail_at_the_second(training):
        if training.iteration == 1:
            raise KeyboardInterrupt
        return iterate(training)

    monkeypatch.setattr(experiment.Training, "iterate", fail_at_the_second)
    with pytest.raises(KeyboardInterrupt):
        run("stopped", start_from=first, rank=3)
    monkeypatch.undo()
    shutil.rmtree(first)
    assert experiment.main([*flags(start_from=first, rank=3), "--run-dir", str(stopped), "--resume"]) == 0
    assert_same_run(stopped, whole)


# --- Bad input -------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("before", "now", "said"),
    [
        ({}, {"hidden_size": 56}, "say --grown-from 40"),
        ({"hidden_size": 56}, {}, "has 56 units"),
        ({"rank": 3}, {}, "has 3 columns"),
        ({}, {"gain": 0.5, "in_degree": 3}, "has another --in-degree, --gain"),
        ({"train_leak": "per-unit"}, {"train_leak": "scalar"}, "--train-leak"),
        ({"train_leak": "scalar"}, {}, "--train-leak"),
        ({"hidden_size": 56, "grown_from": 40}, {"hidden_size": 56}, "another --grown-from: 40"),
        ({"hidden_size": 56, "grown_from": 40}, {"hidden_size": 70, "grown_from": 56}, "another --grown-from: 40"),
    ],
    ids=str,
)
def test_what_cannot_be_a_beginning_is_refused(experiment, run, tmp_path, before, now, said):
    first = run("first", iterations=1, **before)
    with pytest.raises(BadInput, match=said) as refusal:
        experiment.main([*flags(start_from=first, **now), "--run-dir", str(tmp_path / "run")])
    assert str(refusal.value).startswith("--start-from") and "\n" not in str(refusal.value)
    assert not (tmp_path / "run").exists()


@pytest.mark.parametrize(
    "how", ["no folder", "no config", "damaged config", "no checkpoint", "damaged checkpoint", "gru", "of another run"]
)
def test_what_is_no_run_is_refused(experiment, run, tmp_path, how):
    first = run("first", iterations=1)
    config, checkpoint = first / "config.json", first / "checkpoint.pt"
    if how == "no folder":
        shutil.rmtree(first)
    elif how == "no config":
        config.unlink()
    elif how == "damaged config":
        config.write_text("[]")
    elif how == "no checkpoint":
        checkpoint.unlink()
    elif how == "damaged checkpoint":
        checkpoint.write_bytes(checkpoint.read_bytes()[:-100])
    else:
        other = {"core": "gru"} if how == "gru" else {"sigma": 0.5}
        config.write_text(json.dumps({**json.loads(config.read_text()), **other}))
    with pytest.raises(BadInput) as refusal:
        experiment.main([*flags(start_from=first), "--run-dir", str(tmp_path / "run")])
    assert str(first) in str(refusal.value) and "\n" not in str(refusal.value)
    assert not (tmp_path / "run").exists()


@pytest.mark.parametrize("grown_from", [3, 40, 41])
def test_a_reservoir_cannot_have_grown_from_any_size(experiment, grown_from):
    with pytest.raises(BadInput, match="--grown-from must be below --hidden-size and no less than --in-degree"):
        experiment.parse_arguments(flags(grown_from=grown_from))
