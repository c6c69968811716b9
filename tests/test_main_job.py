"""The main experiment as a whole: the direction of its step, its variants, what it calls a reproduction."""

import json
import math

import numpy as np
import pytest
import torch

from common import es, experiment, laws
from common.dist import Workers
from common.evaluation import inputs_and_targets, public_score
from common.problem import Embeddings
from common.reservoir import rollout_reference
from common.run import sha256_of_tensors
from tests.conftest import flags


@pytest.fixture
def training_of(stub):
    """training_of(**changes) → (Training of the main experiment, its problem), with the decoder warmed up."""
    with Workers(torch.device("cpu")) as workers:

        def build(**changes):
            config, _ = stub.parse_arguments([str(word) for word in flags(**changes)])
            digits = config.load_digits()
            problem = config.problem(digits)
            embeddings = Embeddings(problem, digits, config.train_sequences, workers)
            embeddings.prepare(workers)
            training = stub.Training(config, problem, embeddings, workers)
            assert training.prepare(progress=False)
            return training, problem

        yield build


@pytest.mark.parametrize("noise", es.NOISES)
@pytest.mark.parametrize("hidden_size", [16, 64], ids=["dense", "gather"])
def test_an_iteration_steps_down_the_gradient_that_autograd_finds(training_of, noise, hidden_size):
    """Many pairs, small σ, plain SGD with rate 1: Δθ ≈ −∂L/∂θ of the iteration's own minibatch, in direction and length."""
    pairs = 3000
    training, problem = training_of(
        noise=noise, hidden_size=hidden_size, batch_size=8, population_pairs=pairs, fitness_shaping="raw", sigma=1e-3,
        optimizer="sgd", momentum=0, learning_rate=1, schedule="constant", decoder_warmup=10, adapter_start="small",
        dtype="float64", iterations=1,
    )  # fmt: skip
    assert (training.rollout.dense_NN is None) == (hidden_size == 64)
    before = [x.double().clone().requires_grad_() for x in (training.u_Nr, training.v_Nr)]
    weight, bias = training.decoder.frozen_copy()
    inputs, targets = training.minibatch(1, torch.tensor([0]))
    reservoir = problem.reservoir().to("cpu", torch.float64)
    states = rollout_reference(reservoir, *before, problem.leak, inputs.double().permute(0, 2, 1))
    errors = states @ weight.double().T + bias.double() - targets.double().permute(0, 2, 1)
    errors.square().mean().backward()
    gradient = torch.cat([x.grad.flatten() for x in before])

    training.iterate()
    after = (training.u_Nr, training.v_Nr)
    step = torch.cat([(new.double() - old.detach()).flatten() for new, old in zip(after, before, strict=True)])
    cosine = float(-step @ gradient / step.norm() / gradient.norm())
    assert cosine == pytest.approx(laws.expected_cosine(pairs, len(gradient)), abs=0.02)
    assert float(-step @ gradient / gradient.square().sum()) == pytest.approx(1, abs=0.15)


def run(main, folder, **changes):
    assert main(*flags(**changes), "--run-dir", folder) == 0
    lines = [json.loads(line) for line in (folder / "metrics.jsonl").read_text().splitlines()]
    return json.loads((folder / "results.json").read_text()), lines


@pytest.mark.parametrize("changes", [dict(digits=2), dict(standardise="none")], ids=["two digits", "raw features"])
def test_an_error_of_one_means_predicting_the_mean(main, tmp_path, changes):
    # 16 test sequences of few digits: the training mean is not quite theirs.
    results, _ = run(main, tmp_path / "run", **changes)
    assert results["trivial_test_mse"]["mean"]["all"] == pytest.approx(1, abs=0.3)
    assert 0 < results["ridge_test_mse"] < 1.1


@pytest.mark.parametrize(
    "changes",
    [dict(topology="erdos-renyi"), dict(weight_scale="variance"), dict(adapter_start="small"), dict(optimizer="sgd")],
    ids=lambda changes: next(iter(changes.values())),
)
def test_variants_run_and_train(main, tmp_path, changes):
    results, lines = run(main, tmp_path / "run", **changes)
    assert math.isfinite(results["test_mse"]) and all(line["update_ratio"] > 0 for line in lines[1:])


def test_when_all_members_fail_theta_stays_and_the_run_goes_on(main, stub, tmp_path):
    # With a guard this low every state is outside it.
    results, lines = run(main, tmp_path / "run", guard=1e-3)
    config, _ = stub.parse_arguments([str(word) for word in flags()])
    assert results["theta_sha256"] == sha256_of_tensors(*stub.start_adapter(config))
    assert [line["exploded_fraction"] for line in lines[1:]] == [1.0] * (len(lines) - 1)
    # What the network predicts is scored all the same, and as it would be with any other guard.
    frozen, _ = run(main, tmp_path / "penalised", guard=1e-3, failure="penalise")
    assert frozen["test_mse"] == results["test_mse"]
    assert frozen["theta_sha256"] == results["theta_sha256"]  # equal losses: no direction


def test_rollouts_are_those_of_the_members_and_of_the_decoder(main, tmp_path):
    results, lines = run(main, tmp_path / "run", decoder_batch_size=5, decoder_steps=3)
    warm_up, iteration = 10 * 5, 2 * 9 * 8 + 3 * 5  # 10 steps; 9 pairs × 8 sequences, 3 steps
    assert [line["rollouts"] for line in lines] == [warm_up + i * iteration for i in range(5)]
    assert results["rollouts"] == lines[-1]["rollouts"]


def test_failing_members_shrink_an_adaptive_sigma(main, tmp_path):
    _, lines = run(main, tmp_path / "run", guard=1e-3, sigma_schedule="adaptive", evaluate_every=1, iterations=3)
    sigma = [line["sigma"] for line in lines[1:]]
    # Halved in the iteration, since all of them failed, and then adapted when it is scored.
    assert sigma == pytest.approx([sigma[0], 0.35 * sigma[0], 0.35**2 * sigma[0]])


def test_public_score_is_the_error_over_the_variance_of_the_targets(training_of, tmp_path, monkeypatch):
    training, problem = training_of()
    frames = training.embeddings.data.frames("test", np.arange(7))
    monkeypatch.setattr("common.evaluation.load_public_test_set", lambda path: frames)
    got = public_score("file", training.embeddings, training.predict)
    z = training.embeddings.encode_frames(torch.from_numpy(frames))
    inputs, targets = inputs_and_targets(z)
    u, v = training.u_Nr.double(), training.v_Nr.double()
    reservoir = problem.reservoir().to("cpu", torch.float64)
    states = rollout_reference(reservoir, u, v, problem.leak, inputs.double().permute(0, 2, 1))
    weight, bias = training.decoder.frozen_copy()
    prediction = states @ weight.double().T + bias.double()
    targets = targets.double().permute(0, 2, 1)
    variance = targets.flatten(0, 1).var(dim=0, correction=0).mean()
    assert got == pytest.approx(float((prediction - targets).square().mean() / variance), rel=1e-4)


@pytest.mark.parametrize(
    ("test_mse", "ridge", "verdict"), [(0.6, 0.5, "yes"), (0.9, 0.5, "yes"), (0.6, 0.599, "partial"), (0.8, 0.6, "no")]
)
def test_what_counts_as_a_reproduction(stub, test_mse, ridge, verdict):
    results = {
        "test_mse": test_mse,
        "ridge_test_mse": ridge,
        "ridge_test_mse_at_start": 0.6,
        "trivial_test_mse": {"mean": {"all": 1.0}, "ar1": {"all": 0.7}},
    }
    assert stub.Training.reproduces(None, results) == verdict


def test_an_experiment_without_an_adapter_of_its_own_is_frozen(stub):
    config, _ = stub.parse_arguments([])
    assert all(not factor.any() for factor in experiment.Training.start_adapter(config))
