"""What learns by feedback beside V, in both experiments that have it: against autograd in which a state before a step is a constant."""

import functools
import json

import pytest
import torch
from conftest import ROOT, assert_same_run, experiment_at, flags_of, results

from common.errors import BadInput
from common.run import fingerprint_of, load_checkpoint, pack_checkpoint

# 21 sequences in tiles of 6, the last half padding.
COMMON = {
    "preset": "smoke", "hidden-size": 48, "rank": 2, "in-degree": 4, "sequence-length": 4, "window": 2,
    "train-sequences": 64, "validation-sequences": 16, "test-sequences": 16, "iterations": 6, "batch-size": 21,
    "learning-rate": 0.01, "decoder-warmup": 10, "decoder-batch-size": 8, "evaluate-every": 2, "checkpoint-every": 1,
}  # fmt: skip
OWN = {"rank_space_es": {"probes": 2}, "truncated_es": {"members": 4}}


@pytest.fixture(scope="module", params=OWN)
def experiment(request):
    """Each of the two as a module."""
    return experiment_at(ROOT / request.param.replace("_", "-") / f"{request.param}.py")


@pytest.fixture
def build(experiment, training_of):
    """build(**changes) → a Training, with a V that is not zero."""

    def call(**changes):
        training = training_of(**OWN[experiment.__name__], **changes)
        training.v_Nr.copy_(torch.randn(48, 2, generator=torch.Generator().manual_seed(0)) * 0.1)
        return training

    return call


flags = functools.partial(flags_of, COMMON)


@pytest.mark.parametrize(
    ("window", "feedback_probes", "train_leak"), [(1, 0, "scalar"), (1, 64, "per-unit"), (2, 0, "per-unit"), (4, 64, "scalar")]
)  # fmt: skip
def test_feedback_is_the_gradient_of_the_next_prediction(build, window, feedback_probes, train_leak):
    """Of U and α; with Wout read backwards and with all there is to probe. However long V's windows are, the state before a step is a
    constant, and the loss the mean over the predictions of all windows that count."""
    raw = {"fitness_shaping": "raw"} if feedback_probes else {}
    training = build(
        trains="both", window=window, dtype="float64", feedback_probes=feedback_probes, train_leak=train_leak, **raw
    )
    training.leak.step(torch.randn(training.leak.alpha_X1.shape, generator=torch.Generator().manual_seed(2)), 0.5)
    decoder = training.decoder.frozen_copy()
    *_, rest, _, left_out = training._estimate(1, decoder)
    weight, bias = (x.double() for x in decoder)
    reservoir = training.problem.reservoir().to("cpu", torch.float64)
    u, v, total, steps = training.u_Nr.double().requires_grad_(), training.v_Nr.double(), 0.0, 0
    leak = training.rollout.leak.clone().requires_grad_()
    assert leak.shape == ((48, 1) if train_leak == "per-unit" else (1, 1))
    for tile in range(4):
        real = min(6, 21 - 6 * tile)
        input_TEB, target_TEB = (
            x.double()[..., :real] for x in training.minibatch(1, torch.tensor([training.OWN + tile]), 6)
        )
        h = torch.zeros(48, real, dtype=torch.float64)
        for z, target in zip(input_TEB, target_TEB):
            x = reservoir.dense() @ h + u @ (v.T @ h) + reservoir.input_NE @ z + reservoir.bias_N[:, None]
            counts = window > 1 or bool(h.any())  # a window of the first step alone, from the zero state, does not
            h = (1 - leak) * h + leak * x.tanh()
            if counts:
                steps += real
                total = total + (weight @ h + bias[:, None] - target).square().mean(dim=0).sum() / training.scale
            h = h.detach()
    parts = {"u": training.other_gradients(rest)["u"][0], "leak": training.leak_gradient(rest)}
    for part, expected in zip(parts.values(), torch.autograd.grad(total / steps, (u, leak)), strict=True):
        assert torch.allclose(part.double(), expected, rtol=1e-4, atol=1e-5 * float(expected.abs().max()))


def test_probes_of_the_readout_count_a_step_each(experiment):
    """33 of them are as much as nine sequences of four steps."""
    without, with_them = (
        experiment.parse_arguments(flags(trains="both", feedback_probes=probes, **OWN[experiment.__name__]))[0]
        for probes in (0, 33)
    )
    rollouts = experiment.Training.rollouts_per_iteration
    assert rollouts(with_them) == rollouts(without) + 9 and rollouts(without) % 21 == 0


def test_both_factors_learn_where_both_are_trained(build):
    for trains in ("v", "both"):
        training = build(trains=trains, **({"u_rate_ratio": 0.5} if trains == "both" else {}))
        before = training.u_Nr.clone(), training.v_Nr.clone()
        metrics = training.iterate()
        moved_u, moved_v = (float((now - then).norm()) for now, then in zip((training.u_Nr, training.v_Nr), before))
        assert moved_v > 0 and (moved_u > 0) == (trains == "both") == ("u_norm" in metrics)
    assert moved_u / moved_v == pytest.approx(0.5, rel=0.3)


def test_what_v_learns_is_the_same_with_feedback_and_without(build):
    """In the first iteration; after it U is another."""
    halves = [build(trains=trains)._estimate for trains in ("v", "both")]
    decoder = build().decoder.frozen_copy()
    (alone, *_), (beside, *_) = (estimate(1, decoder) for estimate in halves)
    assert torch.equal(alone, beside) and alone.any()


def test_the_leak_alone_may_learn_beside_v(build):
    training = build(train_leak="scalar", leak_rate=0.1)
    metrics = training.iterate()
    assert abs(float(torch.logit(training.leak.alpha_X1))) == pytest.approx(0.1, rel=1e-3)
    assert metrics["leak_mean"] == float(training.leak.alpha_X1) and "u_norm" not in metrics


def test_a_preset_that_trains_both_may_be_told_to_train_v_alone(experiment):
    """What it says of U is no matter then; what the user says of it is."""
    config, _ = experiment.parse_arguments(["--preset", "both", "--trains", "v"])
    assert (config.trains, config.u_rate_ratio, config.feedback_probes) == ("v", type(config).u_rate_ratio, 0)
    for flag in ("--u-rate-ratio", "--feedback-probes"):
        with pytest.raises(BadInput, match=flag):
            experiment.parse_arguments(["--preset", "both", "--trains", "v", f"{flag}=1"])


def test_a_stopped_run_resumes_in_the_bits_of_a_whole_one(experiment, run, tmp_path, monkeypatch, stop_after):
    changes = {
        "trains": "both",
        "feedback_probes": 16,
        "train_leak": "scalar",
        "optimizer": "muon",
        "patience": 9,
        **OWN[experiment.__name__],
    }
    whole = run("whole", **changes)
    stop_after(3)
    assert experiment.main([*flags(**changes), "--run-dir", str(tmp_path / "stopped")]) == 130
    monkeypatch.undo()
    lowest = [
        load_checkpoint(run("stopped", "--resume", **changes) / "checkpoint.pt")["lowest"],
        load_checkpoint(whole / "checkpoint.pt")["lowest"],
    ]
    assert_same_run(tmp_path / "stopped", whole)
    assert lowest[0] == lowest[1] and lowest[0]["iteration"] > 0


def test_a_run_from_before_there_was_feedback_goes_on(experiment, run, tmp_path):
    """Of truncated ES; rank-space ES had it from the beginning."""
    if experiment.__name__ != "truncated_es":
        assert "trains" not in experiment.Config.ADDED
        return
    own = OWN[experiment.__name__]
    folder = run("old", **own)
    before = results(folder)["theta_sha256"]
    config = json.loads((folder / "config.json").read_text())
    later = ("trains", "u_rate_ratio", "feedback_probes", "train_leak", "leak_rate", "roll_in")
    old = {name: value for name, value in config.items() if name not in later}
    assert len(old) == len(config) - len(later)
    (folder / "config.json").write_text(json.dumps(old))
    state = load_checkpoint(folder / "checkpoint.pt")
    content = pack_checkpoint({**state, "identity": fingerprint_of(old)})
    (folder / "checkpoint.pt").write_bytes(content)
    assert results(run("old", "--resume", **own))["theta_sha256"] == before
    with pytest.raises(BadInput, match="trains is 'v' there"):
        experiment.main([*flags(trains="both", **own), "--run-dir", str(folder), "--resume"])


@pytest.mark.parametrize("ranks", [3])
def test_ranks_and_threads_do_not_change_a_bit_of_what_is_fed_back(experiment, run, torchrun, tmp_path, ranks):
    changes = {
        "trains": "both",
        "feedback_probes": 16,
        "train_leak": "per-unit",
        "decoder": "ridge",
        **OWN[experiment.__name__],
    }
    whole = run("whole", threads=1, **changes)
    folder, script = tmp_path / "ranks", ROOT / experiment.__name__.replace("_", "-") / f"{experiment.__name__}.py"
    code, _, stderr = torchrun(ranks, *flags(**changes), "--run-dir", folder, "--threads", 2, script=script).end()
    assert code == 0, stderr
    assert_same_run(folder, whole)
