"""The floor: a frozen core, Adam's readout beside the exact one, and the sweep that chooses leak, gain and input scale."""

import contextlib
import gc
import importlib.util
import json
import sys
from pathlib import Path
from types import SimpleNamespace

import pytest
import torch
from conftest import ROOT, assert_same_run, last_iteration, metrics, results
from PIL import Image

from common import run
from common.errors import BadInput

STUB = ROOT / "reservoir-readout-only"
SMALL = ["--preset", "smoke", "--iterations", 6, "--decoder-steps", 5, "--evaluate-every", 2, "--checkpoint-every", 1,
         "--patience", 2]  # fmt: skip


def load(name: str):
    specification = importlib.util.spec_from_file_location(name, STUB / f"{name}.py")
    module = importlib.util.module_from_spec(specification)
    sys.modules[name] = module
    specification.loader.exec_module(module)
    return module


@pytest.fixture(scope="module")
def readout():
    return load("reservoir_readout_only")


@pytest.fixture(scope="module")
def sweep():
    return load("sweep_reservoir_readout_only")


@contextlib.contextmanager
def own_threads():
    """A run sets the number of torch's threads: undo that, and let a run that was cut short go of its folder."""
    threads = torch.get_num_threads()
    try:
        yield
    finally:
        torch.set_num_threads(threads)
        gc.collect()


@pytest.fixture(scope="module")
def main(readout):
    """main(*flags) → exit code, inside this process."""

    def call(*arguments) -> int:
        with own_threads():
            return readout.main([str(word) for word in arguments])

    return call


@pytest.fixture(scope="module")
def smoke(main, tmp_path_factory) -> Path:
    """The finished run of the smoke preset."""
    folder = tmp_path_factory.mktemp("smoke") / "run"
    assert main("--preset", "smoke", "--run-dir", folder) == 0
    return folder


@pytest.fixture(scope="module")
def small(main, tmp_path_factory) -> Path:
    """A run of a second, never stopped."""
    folder = tmp_path_factory.mktemp("small") / "run"
    assert main(*SMALL, "--run-dir", folder, "--threads", 2) == 0
    return folder


# --- The run ---------------------------------------------------------------------------------------------------------


def test_adams_readout_approaches_the_exact_one(smoke):
    """It starts with predicting the mean, more than 10 % away."""
    result, start = results(smoke), metrics(smoke)[0]
    assert start["validation_mse"] > 1.1 * result["ridge_validation_mse"]
    assert result["validation_mse"] < 1.005 * result["ridge_validation_mse"]
    assert result["test_mse"] < 1.01 * result["ridge_test_mse"]


def test_the_core_stays_frozen_and_the_readout_is_what_is_trained(smoke):
    result, state = results(smoke), torch.load(smoke / "checkpoint.pt", weights_only=True)
    assert not state["u_Nr"].any() and not state["v_Nr"].any()
    assert result["ridge_test_mse"] == result["ridge_test_mse_at_start"]
    assert "ridge_test_mse_shuffled" not in result
    *_, weight_EN, bias_E = state["best"]["parameters"]  # early stopping goes back to them
    assert result["theta_sha256"] == run.sha256_of_tensors(weight_EN, bias_E)
    assert result["best_iteration"] == state["best"]["iteration"]


def test_it_is_the_floor_of_its_problem(smoke, readout):
    assert results(smoke)["role"] == "floor"
    for preset in readout.PRESETS:
        config, _ = readout.parse_arguments(["--preset", preset])
        assert readout.Training.role(config) == "floor"


def test_a_rollout_is_a_sequence_that_was_read(small):
    assert results(small)["rollouts"] == last_iteration(small) * 5 * 16


@pytest.mark.parametrize(
    ("adam", "ridge", "expected"),
    [(0.66, 0.66, "yes"), (0.65, 0.66, "yes"), (0.665, 0.66, "yes"), (0.668, 0.66, "partial"), (0.69, 0.71, "partial"),
     (0.70, 0.66, "no"), (0.71, 0.71, "no")],
)  # fmt: skip
def test_reproduces(readout, adam, ridge, expected):
    trivial = {"mean": {"all": 1.0}, "ar3": {"all": 0.70}}
    found = {"test_mse": adam, "ridge_test_mse": ridge, "trivial_test_mse": trivial}
    assert readout.Training.reproduces(SimpleNamespace(), found) == expected


def test_dry_run_tells_the_costs_and_writes_nothing(main, tmp_path, capsys):
    assert main(*SMALL, "--dry-run", "--run-dir", tmp_path / "run") == 0
    assert "30 Adam steps, 480 rollouts" in capsys.readouterr().out
    assert not (tmp_path / "run").exists()


# --- The same bits, however it is run --------------------------------------------------------------------------------


@pytest.mark.parametrize("threads", [1, 3])
def test_the_number_of_threads_changes_no_bit(main, small, tmp_path, threads):
    assert main(*SMALL, "--run-dir", tmp_path / "run", "--threads", threads) == 0
    assert_same_run(tmp_path / "run", small)


@pytest.mark.parametrize("iteration", [0, 3, 5])
def test_killed_and_resumed(main, small, tmp_path, monkeypatch, iteration):
    """Killed while it writes the metrics of an iteration, whose work is then lost."""

    class Killed(BaseException):
        pass

    log = run.RunFolder.log

    def mortal(folder, line):
        if line["iteration"] == iteration:
            raise Killed
        log(folder, line)

    folder = tmp_path / "run"
    with monkeypatch.context() as patch:
        patch.setattr(run.RunFolder, "log", mortal)
        with pytest.raises(Killed):
            main(*SMALL, "--run-dir", folder)
    assert not (folder / "results.json").exists()
    assert main(*SMALL, "--run-dir", folder, "--resume") == 0
    assert_same_run(folder, small)


@pytest.mark.slow
def test_the_number_of_ranks_changes_no_bit(torchrun, small, tmp_path):
    process = torchrun(2, *SMALL, "--run-dir", tmp_path / "run", script=STUB / "reservoir_readout_only.py")
    code, _, stderr = process.end()
    assert code == 0, stderr
    assert_same_run(tmp_path / "run", small)


# --- The sweep -------------------------------------------------------------------------------------------------------

GRID = ["--leaks", "0.4,0.5,0.9", "--gains", "0.5,1", "--input-scales", "0.05", "--finalists", 2, "--hidden-size", 64,
        "--train-sequences", 64, "--final-sequences", 96, "--validation-sequences", 64]  # fmt: skip


def made_up(leak: float, gain: float, train_sequences: int) -> float:
    """More data changes the order: gain 1 is best in the first round, 0.5 in the second; leak 0.9 is best in both."""
    best_gain = 1.0 if train_sequences == 64 else 0.5
    return abs(leak - 0.9) + 0.1 * abs(gain - best_gain)


@pytest.fixture
def sweep_main(sweep, monkeypatch):
    """sweep_main(out, dies_after) → settings measured. Their errors are made up; it dies at a setting past `dies_after`."""

    def call(out: Path, dies_after: int = 1000) -> list[tuple]:
        measured = []

        def row(self, setting, embeddings, train_sequences):
            if len(measured) == dies_after:
                raise KeyboardInterrupt
            measured.append((*setting, train_sequences))
            leak, gain, input_scale = setting
            error = made_up(leak, gain, train_sequences)
            return {"leak": leak, "gain": gain, "input_scale": input_scale, "train_sequences": train_sequences,
                    "validation_mse": error}  # fmt: skip

        monkeypatch.setattr(sweep.Sweep, "_row", row)
        monkeypatch.setattr(sweep.Embeddings, "prepare", lambda self, workers: None)  # nobody looks at them
        with own_threads(), contextlib.suppress(KeyboardInterrupt):
            sweep.main([*map(str, GRID), "--out", str(out)])
        return measured

    return call


def test_the_sweep_finds_the_best_of_each_range_in_two_rounds(sweep_main, tmp_path, capsys):
    measured = sweep_main(tmp_path / "sweep.json")
    assert measured[:6] == [(leak, gain, 0.05, 64) for leak in (0.4, 0.5, 0.9) for gain in (0.5, 1.0)]
    # The best two of the brief's range and the best two of all, measured again.
    assert measured[6:] == [(leak, gain, 0.05, 96) for leak in (0.5, 0.9) for gain in (1.0, 0.5)]
    inside, free = capsys.readouterr().out.splitlines()
    assert "leak 0.5, gain 0.5, input scale 0.05" in inside and "0.4000" in inside
    assert "leak 0.9, gain 0.5, input scale 0.05" in free and "0.0000" in free


@pytest.mark.parametrize("dies_after", [3, 8])
def test_a_sweep_that_was_stopped_goes_on_where_it_was(sweep_main, tmp_path, capsys, dies_after):
    """In the first round, and in the second."""
    whole = sweep_main(tmp_path / "whole.json")
    expected = capsys.readouterr().out
    first = sweep_main(tmp_path / "stopped.json", dies_after)
    assert capsys.readouterr().out == ""
    assert first + sweep_main(tmp_path / "stopped.json") == whole
    assert capsys.readouterr().out == expected
    rows = [json.loads((tmp_path / name).read_text())["rows"] for name in ("whole.json", "stopped.json")]
    assert rows[0] == rows[1]
    with pytest.raises(BadInput, match="another problem"), own_threads():
        load("sweep_reservoir_readout_only").main(["--out", str(tmp_path / "whole.json"), "--hidden-size", "65"])


def test_a_setting_of_the_sweep_is_scored_as_a_run_scores_its_core(sweep, main, tmp_path):
    out = tmp_path / "sweep.json"
    with own_threads():
        words = ["--leaks", 0.5, "--gains", 0.9, "--input-scales", 0.05, "--hidden-size", 64, "--train-sequences", 64,
                 "--final-sequences", 64, "--validation-sequences", 64, "--out", out]  # fmt: skip
        assert sweep.main([str(word) for word in words]) == 0
    (row,) = json.loads(out.read_text())["rows"]
    problem = ["--preset", "laptop", "--hidden-size", 64, "--train-sequences", 64, "--validation-sequences", 64,
               "--test-sequences", 1, "--leak", 0.5, "--gain", 0.9, "--input-scale", 0.05]  # fmt: skip
    assert main(*problem, "--iterations", 1, "--run-dir", tmp_path / "run") == 0
    assert row["validation_mse"] == results(tmp_path / "run")["ridge_validation_mse"]


# --- Figures ---------------------------------------------------------------------------------------------------------


def test_figures_and_gif_are_drawn_from_a_run_and_a_sweep(smoke, sweep_main, tmp_path):
    sweep_main(tmp_path / "sweep.json")
    words = ["--run", str(smoke), "--out", str(tmp_path)]
    assert load("visualize_reservoir_readout_only").main([*words, "--sweep", str(tmp_path / "sweep.json")]) == 0
    assert {path.stem for path in (tmp_path / "viz").iterdir()} == {
        "training_curves", "hidden_states", "readout", "sweep",
    }  # fmt: skip
    make_gif = load("make_reservoir_readout_only_gif")
    make_gif.FRAMES = 12  # fewer, for speed
    assert make_gif.main(words) == 0
    with Image.open(tmp_path / "reservoir_readout_only.gif") as image:
        assert image.n_frames == 12


@pytest.mark.parametrize("content", [None, "{}", '{"problem": {}, "rows": [{"leak": 0.5}]}'])
def test_figures_refuse_a_missing_or_damaged_sweep_in_one_line(smoke, tmp_path, content):
    path = tmp_path / "sweep.json"
    if content:
        path.write_text(content)
    with pytest.raises(BadInput, match="sweep.json") as raised:
        load("visualize_reservoir_readout_only").main(
            ["--run", str(smoke), "--out", str(tmp_path / "out"), "--sweep", str(path)]
        )
    assert "\n" not in str(raised.value)
    assert not (tmp_path / "out").exists()
