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


@pytest.mark.parametrize("train_leak", ["scalar", "per-unit"])
def test_the_estimate_of_the_leak_is_the_gradient_that_autograd_finds(training_of, monkeypatch, train_leak):
    """Of α's logit, through time; θ's noise so small that losses know of nothing else."""
    training, problem = training_of(
        hidden_size=24, batch_size=8, population_pairs=2000, fitness_shaping="raw", sigma=1e-12, adapter_start="small",
        dtype="float64", decoder_warmup=10, train_leak=train_leak, leak_sigma=1e-3,
    )  # fmt: skip
    logit = training.leak.logit_X1.double().requires_grad_()
    weight, bias = training.decoder.frozen_copy()
    inputs, targets = training.minibatch(1, torch.tensor([0]))
    reservoir = problem.reservoir().to("cpu", torch.float64)
    adapter = training.u_Nr.double(), training.v_Nr.double()
    states = rollout_reference(reservoir, *adapter, torch.sigmoid(logit).T, inputs.double().permute(0, 2, 1))
    loss = (states @ weight.double().T + bias.double() - targets.double().permute(0, 2, 1)).square().mean()
    expected = torch.autograd.grad(loss, logit)[0]
    steps = []
    monkeypatch.setattr(training.leak, "step_logit", lambda gradient, rate: steps.append((gradient, rate)))
    training.iterate()
    (got, rate), dimensions = steps[0], len(logit)
    assert got.shape == logit.shape and rate == training.config.leak_rate
    cosine = torch.nn.functional.cosine_similarity(got.double().flatten(), expected.flatten(), dim=0)
    assert float(cosine) == pytest.approx(laws.expected_cosine(2000, dimensions - 1), abs=0.01)
    assert float((got.double() * expected).sum() / expected.square().sum()) == pytest.approx(1, abs=0.1)


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
    [
        dict(topology="erdos-renyi"),
        dict(weight_scale="variance"),
        dict(adapter_start="small"),
        dict(optimizer="sgd"),
        dict(train_leak="scalar"),
    ],
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


@pytest.mark.parametrize("perturbs", es.PERTURBED)
def test_projected_noise_has_the_expectation_of_autograd_and_less_variance(training_of, perturbs):
    """Pairs on sequences of their own: the mean over many estimates is the gradient of the mean loss, with the noise whole or
    projected; and a single projected estimate is much nearer to it."""
    changes = dict(
        own_data=True, batch_size=1, hidden_size=64, sequence_length=4, population_pairs=400, fitness_shaping="raw", sigma=1e-3,
        adapter_start="small", dtype="float64", noise="rank1", perturbs=perturbs,
    )  # fmt: skip
    angles = {}
    for projection in es.PROJECTIONS:
        training, problem = training_of(**changes, noise_projection=projection)
        factors = [x.double().clone().requires_grad_() for x in (training.u_Nr, training.v_Nr)]
        weight, bias = training.decoder.frozen_copy()
        reservoir = problem.reservoir().to("cpu", torch.float64)
        gradient, estimates = 0, []
        for iteration in range(1, 9):
            inputs, targets = training.minibatch(iteration, training.OWN + torch.arange(400), 1)
            states = rollout_reference(reservoir, *factors, problem.leak, inputs.double().permute(0, 2, 1))
            errors = states @ weight.double().T + bias.double() - targets.double().permute(0, 2, 1)
            both = torch.autograd.grad(errors.square().mean(), factors)
            gradient = gradient + torch.cat([g.flatten() * (perturbs == "both" or i == 1) for i, g in enumerate(both)])
            losses, failed = training._evaluate_population(iteration, 1e-3, (weight, bias))
            weights = es.pair_weights(losses, failed, "raw")
            got = training._estimate(weights, iteration, 1e-3)
            estimates.append(torch.cat((got.grad_u_Nr.flatten(), got.grad_v_Nr.flatten())).double())
            if perturbs == "v":
                assert not got.grad_u_Nr.any()
        mean, gradient = torch.stack(estimates).mean(0), gradient / 8
        angles[projection] = [float(x @ gradient / x.norm() / gradient.norm()) for x in (mean, estimates[0])]
        assert float(mean @ gradient / gradient.norm() ** 2) == pytest.approx(1, abs=0.2), "the length along it"
    assert angles["visited"][0] > 0.9 and angles["visited"][0] > angles["none"][0]
    # By the law √(D / D_eff): 2·64·2 against 64·2 + 3·2 dimensions, or 128 against 6; less where little noise is left.
    assert angles["visited"][1] > {"both": 1.25, "v": 1.5}[perturbs] * angles["none"][1]


@pytest.mark.parametrize("projection", es.PROJECTIONS)
def test_noise_of_u_in_first_directions_estimates_the_gradients_part_in_them(training_of, projection):
    """And nothing outside them; V's part, whose noise has another size, is as it would be without."""
    training, problem = training_of(
        hidden_size=32, sequence_length=4, population_pairs=6000, fitness_shaping="raw", sigma=1e-3, adapter_start="small",
        dtype="float64", noise="rank1", own_data=True, batch_size=1, noise_projection=projection, u_directions=5, u_sigma_ratio=0.3,
    )  # fmt: skip
    with torch.no_grad():
        for factor in (training.u_Nr, training.v_Nr):  # so that neither gradient drowns in the noise of the other
            factor.mul_(5)
    decoder = weight, bias = training.decoder.frozen_copy()
    inputs, targets = training.minibatch(1, training.OWN + torch.arange(6000), 1)
    factors = [x.double().clone().requires_grad_() for x in (training.u_Nr, training.v_Nr)]
    reservoir = problem.reservoir().to("cpu", torch.float64)
    states = rollout_reference(reservoir, *factors, problem.leak, inputs.double().permute(0, 2, 1))
    errors = states @ weight.double().T + bias.double() - targets.double().permute(0, 2, 1)
    gradient_u, gradient_v = torch.autograd.grad(errors.square().mean(), factors)
    losses, failed = training._evaluate_population(1, 1e-3, decoder)
    got = training._estimate(es.pair_weights(losses, failed, "raw"), 1, 1e-3)
    directions = torch.linalg.svd(weight.double()).Vh[:5].T
    within = directions @ (directions.T @ gradient_u)
    for estimate, expected in ((got.grad_u_Nr.double(), within), (got.grad_v_Nr.double(), gradient_v)):
        assert float((estimate * expected).sum() / expected.square().sum()) == pytest.approx(1, abs=0.15)
        assert float((estimate * expected).sum() / expected.norm() / estimate.norm()) > 0.8
    assert torch.allclose(directions @ (directions.T @ got.grad_u_Nr.double()), got.grad_u_Nr.double(), atol=1e-5)


def test_a_failed_pair_leaves_the_projected_estimate(training_of):
    """As a plain loop over the surviving pairs has it."""
    training, _ = training_of(
        own_data=True, batch_size=1, noise_projection="visited", fitness_shaping="sign", guard=0.3
    )
    with torch.no_grad():
        training.u_Nr.normal_(generator=torch.Generator().manual_seed(1))  # large: some states leave the guard
    losses, failed = training._evaluate_population(1, 0.3, training.decoder.frozen_copy())
    weights = es.pair_weights(losses, failed, "sign")
    assert 0 < weights.surviving_K.sum() < len(losses)
    factors = [
        torch.cat(parts)[: len(losses)] for parts in zip(*(training.factors[t] for t in sorted(training.factors)))
    ]
    expected = sum(
        float(weights.difference_K[i]) * torch.outer(factors[2][i], factors[3][i])
        for i in range(len(losses)) if weights.surviving_K[i]
    ) / (2 * int(weights.surviving_K.sum()) * 0.3)  # fmt: skip
    got = training._estimate(weights, 1, 0.3)
    assert torch.allclose(got.grad_v_Nr, expected, rtol=1e-4, atol=1e-6)
    assert not training.factors  # nothing is kept longer than it is needed


@pytest.mark.parametrize("perturbs", es.PERTURBED)
@pytest.mark.parametrize("own_data", [False, True])
def test_the_meter_compares_an_estimate_with_what_it_estimates(training_of, own_data, perturbs):
    """With autograd's gradient of the shared minibatch; or, where signs of own sequences are taken, the mean of each one's
    gradient divided by its length."""
    training, problem = training_of(
        own_data=own_data, batch_size=1 if own_data else 8, perturbs=perturbs, adapter_start="small", sigma=1e-3,
        fitness_shaping="sign" if own_data else "raw", noise="rank1", population_pairs=12,
    )  # fmt: skip
    decoder = weight, bias = training.decoder.frozen_copy()
    losses, failed = training._evaluate_population(1, 1e-3, decoder)
    weights = es.pair_weights(losses, failed, training.config.fitness_shaping)
    estimate = training._estimate(weights, 1, 1e-3)
    measured = training._measure(estimate, 1, decoder)

    streams = training.OWN + torch.arange(12) if own_data else torch.tensor([training.SHARED])
    inputs, targets = training.minibatch(1, streams)
    factors = [x.double().clone().requires_grad_() for x in (training.u_Nr, training.v_Nr)]
    reservoir = problem.reservoir().to("cpu", torch.float64)
    states = rollout_reference(reservoir, *factors, problem.leak, inputs.double().permute(0, 2, 1))
    errors = states @ weight.double().T + bias.double() - targets.double().permute(0, 2, 1)
    estimates = [estimate.grad_u_Nr, estimate.grad_v_Nr]
    if perturbs == "v":
        factors, estimates = factors[1:], estimates[1:]
    total = 0
    for loss in errors.square().mean(dim=(0, 2)):
        gradient = torch.cat([g.flatten() for g in torch.autograd.grad(loss, factors, retain_graph=True)])
        total = total + (gradient / gradient.norm() if own_data else gradient)
    got = torch.cat([x.double().flatten() for x in estimates])
    expected = float(got @ total / got.norm() / total.norm())
    assert measured["cosine_minibatch"] == pytest.approx(expected, rel=1e-4)


def test_measuring_changes_nothing_but_the_metrics(main, reference, tmp_path):
    results, lines = run(main, tmp_path / "run", measure_cosine_every=2)
    assert results["theta_sha256"] == json.loads((reference() / "results.json").read_text())["theta_sha256"]
    assert ["cosine_expected" in line for line in lines[1:]] == [line["iteration"] % 2 == 0 for line in lines[1:]]


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
