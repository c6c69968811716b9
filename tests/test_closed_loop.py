"""Prediction in closed loop: a network that reads its own predictions, each core of the ceiling against a plain loop in float64."""

import functools
import importlib.util
import math
from types import SimpleNamespace

import numpy as np
import pytest
import torch
from conftest import ROOT, assert_same_run, flags_of, results, snapshot
from test_evaluation import MadeUpEmbeddings, T

from common import evaluation, figures, run_figures
from common.encoder import EMBEDDING
from common.errors import Fault
from common.problem import Embeddings

BPTT = ROOT / "moving-mnist-bptt-baseline"
SCRIPT = BPTT / "moving_mnist_bptt_baseline.py"
# 150 test sequences are one whole tile and a padded one. Raw features: without a calibration, and with an error scale that is not 1.
SMALL = {
    "preset": "smoke", "hidden-size": 48, "rank": 2, "in-degree": 4, "sequence-length": 3, "train-sequences": 64,
    "validation-sequences": 16, "test-sequences": 150, "iterations": 4, "batch-size": 21, "learning-rate": 0.01,
    "evaluate-every": 2, "checkpoint-every": 1, "standardise": "none", "horizon": 5,
}  # fmt: skip
CORES = [{}, {"trains": "all"}, {"core": "gru"}]

flags = functools.partial(flags_of, SMALL)


# --- The model -------------------------------------------------------------------------------------------------------


def with_weights(training):
    """All that predictions depend on moved away from zero, as training would; a drift of the biases tells them apart, too."""
    generator = torch.Generator().manual_seed(0)
    with torch.no_grad():
        for weight in training.parameters():
            weight += 0.2 * torch.randn(weight.shape, generator=generator)
    return training


def reservoir_step(training):
    """h, z → h of the core in float64, from its weights alone."""
    core, frozen = training.core, training.problem.reservoir()
    u, v, w_in = (x.detach().double() for x in (core.u_Nr, core.v_Nr, core.input_NE))
    recurrent, bias = frozen.dense().double() + u @ v.T, frozen.bias_N.double()
    leak = torch.sigmoid(core.leak_logit).item() if training.config.trains == "all" else training.config.leak
    return lambda h, z: (1 - leak) * h + leak * torch.tanh(recurrent @ h + w_in @ z + bias)


def gru_step(training):
    w_in, w, b_in, b = (x.detach().double() for x in training.core.parameters)

    def step(h, z):
        (reset_z, update_z, new_z), (reset_h, update_h, new_h) = (w_in @ z + b_in).split(48), (w @ h + b).split(48)
        update, new = torch.sigmoid(update_z + update_h), torch.tanh(new_z + torch.sigmoid(reset_z + reset_h) * new_h)
        return (1 - update) * new + update * h

    return step


@pytest.mark.parametrize("changes", CORES, ids=str)
def test_errors_ahead_are_those_of_a_loop_over_single_sequences(training_of, changes):
    training = with_weights(training_of(**changes))
    step = gru_step(training) if "core" in changes else reservoir_step(training)
    weight, bias = (x.detach().double() for x in training.decoder.linear.parameters())
    errors = torch.zeros(5, dtype=torch.float64)
    truth = training.embeddings.longer.stored["test"].double()
    assert truth.shape == (150, 3 + 5, EMBEDDING)
    for frames in truth:
        h = torch.zeros(48, dtype=torch.float64)
        for z in frames[:3]:
            h = step(h, z)
        for ahead, target in enumerate(frames[3:]):
            prediction = weight @ h + bias
            errors[ahead] += (prediction - target).square().mean()
            h = step(h, prediction)
    expected = errors / 150 / training.embeddings.error_scale
    assert training.embeddings.error_scale != 1
    assert torch.allclose(training.closed_loop_errors(), expected, rtol=1e-4)


@pytest.mark.parametrize("changes", CORES, ids=str)
def test_one_frame_ahead_is_the_last_frame_of_every_other_score(training_of, changes):
    training = with_weights(training_of(horizon=1, **changes))
    (ahead,) = training.closed_loop_errors().tolist()
    assert ahead == pytest.approx(training.score("test").last_frame, rel=1e-5)


def test_a_step_leaves_the_state_that_it_starts_from(training_of):
    for changes in CORES:
        training = with_weights(training_of(**changes))
        h_NB, z_EB = torch.rand(48, 7), torch.rand(EMBEDDING, 7)
        before = h_NB.clone()
        assert not torch.equal(training.step(h_NB, z_EB), before) and torch.equal(h_NB, before)


# --- The data --------------------------------------------------------------------------------------------------------


def test_the_longer_test_set_begins_with_the_test_set_and_is_that_of_a_longer_problem(experiment, training_of):
    training = training_of()
    embeddings, longer = training.embeddings, training.embeddings.longer
    assert torch.equal(
        longer.stored["test"][:, :4], embeddings.stored["test"]
    )  # to the bit, though tiles of frames shift
    config, _ = experiment.parse_arguments(flags(sequence_length=3 + 5 - 1, horizon=0))
    digits = config.load_digits()
    of_longer_problem = Embeddings(config.problem(digits), digits, 64, training.workers)
    assert longer._path("test") == of_longer_problem._path("test")
    assert torch.equal(
        longer.stored["test"][[0, 77]], of_longer_problem.encode_sequences("test", torch.tensor([0, 77]))
    )
    assert training.problem.id == training_of(horizon=0).problem.id


# --- Predictors without a reservoir ----------------------------------------------------------------------------------


@pytest.mark.parametrize("steps", [T, 2], ids=["frames for all lags", "fewer frames than lags"])
def test_trivial_predictors_read_their_own_predictions(steps):
    embeddings = MadeUpEmbeddings(train=200, validation=20, test=30)
    embeddings.stored = {split: z_BFE[:, : steps + 1] for split, z_BFE in embeddings.stored.items()}
    ahead_BHE = torch.randn(30, 3, EMBEDDING, generator=torch.Generator().manual_seed(3))
    longer_BFE = torch.cat((embeddings.stored["test"], ahead_BHE), dim=1)
    embeddings.longer = SimpleNamespace(get=lambda split, index_B: longer_BFE[index_B])
    embeddings.problem, embeddings.error_scale = SimpleNamespace(sequence_length=steps), 0.5
    predictors = evaluation.trivial_predictors(embeddings)
    got = evaluation.trivial_closed_loop_errors(embeddings, predictors)

    mean = embeddings.stored["train"][:, 1:].double().mean(dim=(0, 1)).numpy()
    known, future = longer_BFE[:, :steps].double().numpy(), longer_BFE[:, steps:].double().numpy()
    assert np.allclose(got["mean"], ((future - mean) ** 2).mean(axis=(0, 2)) / 0.5)
    assert np.allclose(got["copy_last"], ((future - known[:, -1:]) ** 2).mean(axis=(0, 2)) / 0.5)
    for name, order in (("ar1", 1), ("ar3", 3)):
        weights, errors = predictors[name].numpy(), np.zeros(future.shape[1])
        for sequence, targets in zip(known, future):
            seen = [mean, mean, *sequence]
            for k, target in enumerate(targets):
                lags = np.concatenate([seen[-1 - lag] for lag in range(order)])
                seen.append(lags @ weights[:-1] + weights[-1])
                errors[k] += ((seen[-1] - target) ** 2).mean() / 30 / 0.5
        assert np.allclose(got[name], errors), name
    scores = evaluation.trivial_scores(embeddings, predictors)["test"]
    for name, score in scores.items():
        assert float(got[name][0]) == pytest.approx(score.last_frame, rel=1e-9)


# --- The run ---------------------------------------------------------------------------------------------------------


def test_a_run_is_the_same_but_for_the_errors_ahead_and_can_be_scored_later(experiment, run, tmp_path, capsys):
    plain, ahead = results(run("plain", horizon=0)), results(run("ahead"))
    ours, trivial = ahead.pop("closed_loop_test_mse"), ahead.pop("trivial_closed_loop_test_mse")
    assert len(ours) == 5 and ours[0] == pytest.approx(ahead["test_mse_last_frame"], rel=1e-5)
    for name, errors in trivial.items():
        assert len(errors) == 5
        assert errors[0] == pytest.approx(ahead["trivial_test_mse"][name]["last_frame"], rel=1e-9)
    assert plain["config"].pop("horizon") == 0 and ahead["config"].pop("horizon") == 5
    assert plain.keys() == ahead.keys()
    for key in plain.keys() - {"wallclock_s"}:
        assert plain[key] == ahead[key], key  # theta_sha256 and the errors, to the bit
    assert (tmp_path / "plain/config.json").read_bytes() == (tmp_path / "ahead/config.json").read_bytes()

    before = snapshot(tmp_path / "plain")
    capsys.readouterr()
    words = ["--preset", "smoke", "--evaluate", "--run-dir", str(tmp_path / "plain"), "--horizon"]
    assert experiment.main([*words, "5"]) == 0
    table = [line.split() for line in capsys.readouterr().out.splitlines()[-5:]]
    columns = [*(trivial[name] for name in ("mean", "copy_last", "ar1", "ar3")), ours]
    assert table == [[str(k + 1), *(f"{errors[k]:.4f}" for errors in columns)] for k in range(5)]
    assert experiment.main([*words, "0"]) == 0
    assert capsys.readouterr().out.count("\n") == 1
    assert snapshot(tmp_path / "plain") == before
    # Resuming a finished run scores it again.
    assert results(run("plain", "--resume"))["closed_loop_test_mse"] == ours


@pytest.mark.parametrize("changes", [{}, {"core": "gru"}], ids=str)
def test_ranks_and_threads_do_not_change_a_bit(run, torchrun, tmp_path, changes):
    whole = run("whole", threads=1, **changes)
    code, stdout, stderr = torchrun(
        2, *flags(**changes), "--run-dir", tmp_path / "ranks", "--threads", 2, script=SCRIPT
    ).end()
    assert code == 0, stderr
    assert stdout.count("frames ahead") == 1
    assert len(results(tmp_path / "ranks")["closed_loop_test_mse"]) == 5
    assert_same_run(tmp_path / "ranks", whole)


def test_no_result_holds_an_error_that_is_not_finite(experiment, run, tmp_path, monkeypatch):
    monkeypatch.setattr(experiment.Training, "closed_loop_errors", lambda self: torch.tensor([0.5, math.inf]))
    with pytest.raises(Fault, match="closed_loop_test_mse is not finite"):
        run("run", horizon=2)
    assert not (tmp_path / "run/results.json").exists()


# --- The figure ------------------------------------------------------------------------------------------------------


def saved_run(**results) -> figures.SavedRun:
    return figures.SavedRun({"config": {"hidden_size": 48}, "preset": "smoke", "seed": 0, **results}, {}, {})


def test_the_figure_draws_every_error_and_a_run_without_any_has_none():
    assert run_figures.closed_loop_error(saved_run()) is None
    ours, trivial = [0.5, 0.7, 0.9], {"mean": [1.0, 1.1, 1.0], "copy_last": [1.4, 9.0, 1.6], "ar1": [0.7, 0.7, 0.8]}
    with figures.style():
        figure = run_figures.closed_loop_error(
            saved_run(closed_loop_test_mse=ours, trivial_closed_loop_test_mse=trivial)
        )
    drawn = {tuple(line.get_ydata()): list(line.get_xdata()) for axes in figure.axes for line in axes.lines}
    for errors in (ours, *trivial.values()):
        assert drawn[tuple(errors)] == [1, 2, 3]
    assert figure.texts[0].get_text() == "In closed loop: test MSE 0.500 one frame ahead, 0.900 at 3 frames"
    labels = [text.get_text() for axes in figure.axes for text in axes.texts]
    assert {"this run", "copy last frame", "predict the mean", "AR(1) ridge"} <= set(labels)


def test_a_run_with_one_error_alone_is_drawn():
    with figures.style():
        figure = run_figures.closed_loop_error(saved_run(closed_loop_test_mse=[0.5]))
    assert figure.texts[0].get_text() == "In closed loop: test MSE 0.500 one frame ahead"


def test_it_is_drawn_beside_the_other_figures_of_a_run(run, tmp_path):
    specification = importlib.util.spec_from_file_location(
        "visualize", BPTT / "visualize_moving_mnist_bptt_baseline.py"
    )
    draw = importlib.util.module_from_spec(specification)
    specification.loader.exec_module(draw)
    assert draw.main(["--run", str(run("run")), "--out", str(tmp_path)]) == 0
    assert {path.stem for path in (tmp_path / "viz").iterdir()} == {
        "training_curves", "prediction_vs_target", "adapter_spectra", "closed_loop_error", "memory_by_length",
    }  # fmt: skip
