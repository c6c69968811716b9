"""The ceiling: its gradient against autograd's, its forward pass against that of the evolution strategies, its exactness."""

import dataclasses
import functools
import json

import pytest
import torch
from conftest import ROOT, assert_same_run, flags_of, results

from common import es
from common.evaluation import inputs_and_targets
from common.leak import TrainedLeak
from common.reservoir import draw_reservoir, rollout_reference
from common.rollout import Rollout

SCRIPT = ROOT / "moving-mnist-bptt-baseline" / "moving_mnist_bptt_baseline.py"
# 21 sequences are no multiple of a tile of 8, and three tiles give two ranks unequal shares.
SMALL = {
    "preset": "smoke", "hidden-size": 48, "rank": 2, "in-degree": 4, "sequence-length": 3, "train-sequences": 64,
    "validation-sequences": 16, "test-sequences": 16, "iterations": 6, "batch-size": 21, "learning-rate": 0.01,
    "evaluate-every": 2, "checkpoint-every": 1,
}  # fmt: skip


flags = functools.partial(flags_of, SMALL)


# --- The gradient ----------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("topology", ["fixed-in-degree", "erdos-renyi"])
@pytest.mark.parametrize("size", [40, 90], ids=["dense", "gather"])
def test_the_adjoint_by_hand_is_the_gradient_that_autograd_finds(experiment, topology, size):
    generator = torch.Generator().manual_seed(0)
    reservoir = draw_reservoir(size, 4, 0, topology=topology)
    rollout = Rollout(reservoir, 0.4, 1.0, dtype=torch.float64)
    u, v = (torch.randn(size, 3, dtype=torch.float64, generator=generator) * 0.3 for _ in range(2))
    z = torch.randn(6, 128, 5, dtype=torch.float64, generator=generator)
    weight = torch.randn(6, size, 5, dtype=torch.float64, generator=generator)  # some dL/dh_t along the decoder
    core = experiment.ReservoirCore(rollout, u, v, "all")
    core.leak_logit.data = core.leak_logit.data.double()
    got = torch.autograd.grad((core(z) * weight).sum(), core.parameters)

    leaves = [x.detach().double().clone().requires_grad_() for x in core.parameters]
    plain = dataclasses.replace(rollout.reservoir, input_NE=leaves[2])
    states = rollout_reference(plain, leaves[0], leaves[1], torch.sigmoid(leaves[3]), z.transpose(1, 2))
    expected = torch.autograd.grad((states.transpose(1, 2) * weight).sum(), leaves)
    for ours, theirs in zip(got, expected, strict=True):
        assert torch.allclose(ours, theirs, rtol=1e-9, atol=1e-12)


@pytest.mark.parametrize("kind", ["scalar", "per-unit"])
@pytest.mark.parametrize("trains", ["adapter", "v"])
def test_the_adjoint_has_the_gradient_of_a_leak_that_learns(experiment, kind, trains):
    generator = torch.Generator().manual_seed(0)
    rollout = Rollout(draw_reservoir(40, 4, 0), 0.4, 1.0, dtype=torch.float64)
    leak = TrainedLeak(rollout, kind, 0.4, 0.1)
    leak.step(torch.randn(leak.alpha_X1.shape, generator=generator), 0.5)
    u, v = (torch.randn(40, 3, dtype=torch.float64, generator=generator) * 0.3 for _ in range(2))
    z = torch.randn(6, 128, 5, dtype=torch.float64, generator=generator)
    weight = torch.randn(6, 40, 5, dtype=torch.float64, generator=generator)
    core = experiment.ReservoirCore(rollout, u, v, trains)
    got = torch.autograd.grad((core(z) * weight).sum(), core.parameters)
    leaves = [x.detach().clone().requires_grad_() for x in (u, v, leak.alpha_X1)]
    states = rollout_reference(rollout.reservoir, leaves[0], leaves[1], leaves[2].T, z.transpose(1, 2))
    expected = torch.autograd.grad((states.transpose(1, 2) * weight).sum(), leaves)
    for ours, theirs in zip(got, expected if trains == "adapter" else expected[1:], strict=True):
        assert torch.allclose(ours, theirs, rtol=1e-9, atol=1e-12)


def test_a_leak_that_learns_takes_its_own_step(training_of):
    """Adam on the logit, and the rollout that scores the core has it."""
    training = training_of(train_leak="per-unit", leak_rate=0.1, rate_warmup=0, schedule="constant", trains="v")
    training.iterate()  # V leaves zero, and so does the decoder, without which α has no gradient
    assert training.rollout.leak is training.leak.alpha_X1 and len(training.stepped) == 1
    metrics = training.iterate()
    logit = torch.logit(training.leak.alpha_X1.detach())
    # The second step of Adam whose first gradient was zero: the means of what it has seen of gradient and square, without their bias.
    expected = 0.1 * ((1 - 0.9) / (1 - 0.9**2)) / ((1 - 0.999) / (1 - 0.999**2)) ** 0.5
    assert float(logit.abs().median()) == pytest.approx(expected, rel=1e-2)
    assert metrics["leak_least"] < 0.5 < metrics["leak_most"]
    z_TEB, _ = training.minibatch(1, torch.zeros(1, dtype=torch.int64))
    expected = training.core(z_TEB).transpose(0, 1)
    assert torch.allclose(training.states(z_TEB), expected, atol=1e-6)
    assert any(tensor is training.leak.alpha_X1 for tensor in training.trained_tensors())


@pytest.mark.parametrize("trains", ["adapter", "v"])
def test_a_step_is_adam_on_the_gradient_of_the_whole_minibatch(training_of, trains):
    """Three tiles, the last one padded, against one float64 pass over the 21 sequences."""
    training = training_of(trains=trains, rate_warmup=0, schedule="constant", gradient_clip=1e9, learning_rate=0.25)
    training.tile = 8
    training.iterate()  # V, or U, leaves zero
    weights = [training.u_Nr, training.v_Nr, training.decoder.linear.weight, training.decoder.linear.bias]
    before = [w.detach().double().clone().requires_grad_() for w in weights]
    input_TEB, target_TEB = training.minibatch(2, torch.zeros(1, dtype=torch.int64))
    reservoir = training.problem.reservoir().to("cpu", torch.float64)
    states = rollout_reference(
        reservoir, before[0], before[1], training.config.leak, input_TEB.double().transpose(1, 2)
    )
    loss = (states @ before[2].T + before[3] - target_TEB.double().transpose(1, 2)).square().mean()
    expected = torch.autograd.grad(loss, before)
    metrics = training.iterate()
    assert metrics["train_loss"] == pytest.approx(loss.item(), rel=1e-5)
    core = training.core.parameters
    for weight, gradient in zip(core, expected[: len(core)] if trains == "adapter" else expected[1:2], strict=True):
        assert torch.allclose(weight.grad.double(), gradient, rtol=1e-4, atol=1e-8)
    assert torch.allclose(training.decoder.linear.weight.grad.double(), expected[2], rtol=1e-4, atol=1e-8)
    if trains == "v":
        assert torch.equal(training.u_Nr, training.start_adapter(training.config)[0])


def test_a_ridge_decoder_reads_all_tiles_and_no_padding(training_of):
    training = training_of(decoder="ridge", decoder_memory=1e12, decoder_penalty=0.1)
    training.tile = 8  # three tiles, the last one padded
    input_TEB, target_TEB = training.minibatch(1, torch.zeros(1, dtype=torch.int64))
    reservoir = training.problem.reservoir().to("cpu", torch.float64)
    u, v = training.u_Nr.double(), training.v_Nr.double()
    states = rollout_reference(reservoir, u, v, training.config.leak, input_TEB.double().transpose(1, 2))
    training.iterate()
    x, y = states.flatten(0, 1), target_TEB.double().transpose(1, 2).flatten(0, 1)
    x = torch.cat((x, torch.ones(len(x), 1)), dim=1)
    penalty = torch.ones(x.shape[1]) * 0.1 * x[:, :-1].square().sum(dim=0).mean()
    penalty[-1] = 0
    expected = torch.linalg.solve(x.T @ x + penalty.diag(), x.T @ y)
    assert torch.allclose(training.decoder.linear.weight.double(), expected[:-1].T, atol=1e-4)
    assert torch.allclose(training.decoder.linear.bias.double(), expected[-1], atol=1e-4)


def test_without_noise_a_member_of_the_population_has_the_loss_of_the_forward_pass(training_of):
    """The rollout that scores ES members and the forward pass that BPTT differentiates are the same function."""
    training = training_of()
    for _ in range(3):
        training.iterate()
    batch, index_B = 21, torch.arange(21)
    input_TEB, target_TEB = inputs_and_targets(training.embeddings.get("train", index_B))
    with torch.no_grad():
        prediction_TEB = training.decoder.predict(training.core(input_TEB).transpose(0, 1))
    expected = float((prediction_TEB - target_TEB).double().square().mean())
    for name in es.NOISES:
        noise = es.make_noise(name, 0, 48, 2)
        adapter = noise.adapter(training.u_Nr, training.v_Nr, 1, torch.arange(2), 0.0)
        drive_TNDSB = training.rollout.drive(input_TEB)[:, :, None, None]
        result = training.rollout.errors(
            adapter, drive_TNDSB, target_TEB[:, :, None, None], *training.decoder.frozen_copy(), (2, 2, batch)
        )
        loss_M = result.error_TC.view(3, 4, batch).mean(dim=(0, 2)) / 128
        assert loss_M.tolist() == pytest.approx([expected] * 4, rel=1e-6)


# --- The run ---------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    "changes", [{}, {"trains": "v"}, {"trains": "all"}, {"train_leak": "per-unit"}, {"core": "gru"}], ids=str
)
def test_a_stopped_run_resumes_in_the_bits_of_a_whole_one(experiment, run, tmp_path, monkeypatch, stop_after, changes):
    whole = run("whole", **changes)
    stop_after(3)
    assert experiment.main([*flags(**changes), "--run-dir", str(tmp_path / "stopped")]) == 130
    monkeypatch.undo()
    assert_same_run(run("stopped", "--resume", **changes), whole)


@pytest.mark.parametrize("ranks", [2, 3])
def test_ranks_and_threads_do_not_change_a_bit(run, torchrun, tmp_path, ranks):
    # 70 sequences: three tiles of 32.
    whole = run("whole", batch_size=70, threads=1)
    folder = tmp_path / "ranks"
    code, _, stderr = torchrun(ranks, *flags(batch_size=70), "--run-dir", folder, "--threads", 2, script=SCRIPT).end()
    assert code == 0, stderr
    assert_same_run(folder, whole)


def test_patience_stops_the_run_and_keeps_the_best_parameters(run):
    # A rate at which it gets worse sooner or later.
    folder = run("run", iterations=60, patience=3, learning_rate=0.5, schedule="constant", rate_warmup=0)
    lines = [json.loads(line) for line in (folder / "metrics.jsonl").read_text().splitlines()]
    scores = {line["iteration"]: line["validation_mse"] for line in lines if "validation_mse" in line}
    best = min(scores, key=scores.get)
    got = results(folder)
    assert got["best_iteration"] == best
    assert got["validation_mse"] == scores[best]  # what is scored at the end is what was best
    assert got["iterations"] == best + 3 * 2 < 60  # three scores, one every two iterations
    assert got["iterations"] == max(scores)


def test_bptt_makes_the_core_better_and_its_control_does_not(run):
    """On a small problem, under the same ridge readout."""
    got = results(run("run", hidden_size=100, in_degree=10, rank=8, sequence_length=8, train_sequences=600,
                      iterations=400, batch_size=32, learning_rate=3e-3, validation_sequences=64, test_sequences=64,
                      evaluate_every=100, checkpoint_every=100))  # fmt: skip
    assert got["ridge_test_mse"] < got["ridge_test_mse_at_start"]
    assert got["ridge_test_mse"] < got["ridge_test_mse_shuffled"]
    assert got["role"] == "ceiling"


def test_other_bars_are_references(experiment):
    roles = [
        experiment.Training.role(experiment.parse_arguments(words)[0])
        for words in ([], ["--trains", "v"], ["--core", "gru"])
    ]
    assert roles == ["ceiling", "reference", "reference"]


def test_a_model_without_common_rollout_is_scored_alike(training_of):
    """Win and α trained: predictions come from the core's own forward pass; before the first step both ways must agree."""
    ours, theirs = training_of(trains="all").score("test"), training_of().score("test")
    assert torch.allclose(ours.by_frame_T, theirs.by_frame_T, rtol=1e-5)


@pytest.mark.parametrize(
    ("words", "said"),
    [
        (["--rank", "49"], "--rank must not exceed"),
        (["--core", "gru", "--trains", "v"], "--trains v"),
        (["--dtype", "float64"], "--dtype float64"),
        (["--trains", "w"], "--trains"),
    ],
)
def test_bad_input(experiment, words, said):
    with pytest.raises(Exception, match=said) as caught:
        experiment.parse_arguments([*flags(), *words])
    assert type(caught.value).__name__ == "BadInput"
