"""The command line: what it refuses, how it says so, and that it then has touched nothing.

Flag by flag, and for what a table cannot prepare; all other mistakes are rows of test_bad_input.py, where it is also checked
that a refusal becomes one line on stderr and exit code 2.
"""

import contextlib
import dataclasses
import importlib.util
import io
import json
import os
import re
import shutil
import signal
import subprocess
import sys
import typing
from pathlib import Path

import numpy as np
import pytest
import torch
from conftest import ROOT, flags, metrics, results, saved_bytes, snapshot

from common import digits
from common.dist import Workers
from common.errors import BadInput, Fault, run_main
from common.run import RunFolder, load_checkpoint
from common.stop import Interrupted

pytestmark = pytest.mark.promise("bad input")

NO_CUDA = pytest.mark.skipif(torch.cuda.is_available(), reason="this machine has CUDA")


def refused(*fragments):
    """BadInput with every fragment in its message, in order."""
    return pytest.raises(BadInput, match=".*".join(re.escape(str(fragment)) for fragment in fragments))


@pytest.fixture
def finished(reference, tmp_path) -> Path:
    """A finished run that a test may spoil."""
    return Path(shutil.copytree(reference(), tmp_path / "finished"))


@pytest.fixture
def nothing_written(tmp_path, monkeypatch):
    """Within it no file may come, go or change in the working directory, where run folders are, or in the cache."""
    monkeypatch.chdir(tmp_path)

    @contextlib.contextmanager
    def check():
        folders = (tmp_path, Path(os.environ["MOVING_MNIST_CACHE"]))
        before = snapshot(*folders)
        yield
        assert snapshot(*folders) == before

    return check


# --- Values ----------------------------------------------------------------------------------------------------------

POSITIVE_INTEGERS = """hidden-size rank in-degree population-pairs batch-size sequence-length iterations train-sequences
    validation-sequences test-sequences decoder-steps decoder-batch-size decoder-refit checkpoint-every
    evaluate-every""".split()
INTEGERS_FROM_ZERO = """seed data-seed encoder-seed reservoir-seed threads decoder-warmup patience
    measure-cosine-every u-directions horizon grown-from""".split()
POSITIVE_NUMBERS = """sigma u-scale sigma-end learning-rate decoder-learning-rate gain input-scale guard loss-clip
    failure-loss rank-timeout decoder-penalty decoder-memory u-sigma-ratio u-rate-ratio leak-rate leak-sigma""".split()
NO_INTEGER = ("x", "", "1.5", "1e3", "nan", "inf", "-inf", "-1", "-3.5", "-1e3")
NO_NUMBER = ("x", "", "nan", "inf", "-inf", "-1", "-0.01", "-1e-3", "1e999")


@pytest.mark.parametrize(
    ("flag", "value", "allowed"),
    [
        *((flag, value, "a whole number ≥ ") for flag in POSITIVE_INTEGERS for value in (*NO_INTEGER, "0")),
        *((flag, value, "a whole number ≥ 0") for flag in INTEGERS_FROM_ZERO for value in NO_INTEGER),
        *((flag, value, "a finite number > 0") for flag in POSITIVE_NUMBERS for value in (*NO_NUMBER, "0")),
        *(("leak", value, "a finite number > 0 and ≤ 1") for value in (*NO_NUMBER, "0", "1.0001", "2")),
        *(("roll-in", value, "a finite number ≥ 0 and ≤ 1") for value in (*NO_NUMBER, "1.0001", "2")),
        *(("momentum", value, "a finite number ≥ 0 and ≤ 0.999") for value in (*NO_NUMBER, "1")),
        ("hidden-size", "1", "a whole number ≥ 2"),  # the embedding of a single unit is no recurrent core
        ("hidden-size", "9" * 400, "a whole number"),  # larger than any float
        ("seed", str(2**63), "a whole number ≥ 0"),
        ("horizon", "101", "a whole number ≥ 0 and ≤ 100"),
        ("digits", "3", "one of 1, 2"),
        ("digits", "0", "one of 1, 2"),
        ("digits", "one", "one of 1, 2"),
        ("preset", "huge", "one of auto, smoke, laptop, brief, h200"),
        ("noise", "cauchy", "one of gaussian, rank1"),
        ("fitness-shaping", "Raw", "one of raw, zscore, centered-rank, sign, normal-score"),
        ("decoder", "rls", "one of adam, ridge"),
        ("optimizer", "adamw", "one of sgd, adam"),
        ("failure", "ignore", "one of remove, penalise"),
        ("device", "tpu", "one of auto, cpu, cuda"),
        ("dtype", "bfloat16", "one of float32, float64, float16"),
        ("backend", "mpi", "one of auto, nccl, gloo"),
        ("digit-source", "fashion", "one of embedded, mnist"),
        ("topology", "ring", "one of "),
        ("schedule", "linear", "one of "),
    ],
)
def test_a_value_outside_its_limits_is_refused_with_the_flag_and_the_limits(stub, flag, value, allowed):
    with refused(f"--{flag}: must be {allowed}", f"not {value!r}"):
        stub.parse_arguments(["--preset", "smoke", f"--{flag}", value])
    with refused(f"--{flag}: must be {allowed}", f"not {value!r}"):
        stub.parse_arguments(["--preset", "smoke", f"--{flag}={value}"])


def test_the_table_above_forgets_no_number(stub):
    hints = typing.get_type_hints(stub.Config)
    numbers = {f.name.replace("_", "-") for f in dataclasses.fields(stub.Config) if hints[f.name] in (int, float)}
    assert numbers == {
        *POSITIVE_INTEGERS,
        *INTEGERS_FROM_ZERO,
        *POSITIVE_NUMBERS,
        "leak",
        "roll-in",
        "momentum",
        "digits",
    }


@pytest.mark.parametrize(
    ("arguments", "fragments"),
    [
        (["--frobnicate"], ["--frobnicate"]),
        (["--population", "8"], ["--population"]),  # no abbreviations: a new flag could change their meaning
        (["laptop"], ["laptop"]),
        (["--sigma"], ["--sigma", "expected one argument"]),
        (["--own-data=yes"], ["--own-data"]),
        (["--hidden-size", "16", "--rank", "17", "--in-degree", "4"], ["--rank", "--hidden-size", "17 > 16"]),
        (["--hidden-size", "16", "--rank", "4", "--in-degree", "17"], ["--in-degree", "--hidden-size", "17 > 16"]),
        (["--hidden-size", "3"], ["--hidden-size", "8 > 3"]),  # the preset's in-degree counts as well
        (["--resume", "--overwrite"], ["--resume", "--overwrite"]),
        pytest.param(["--dtype", "float16"], ["--dtype float16", "CUDA"], marks=NO_CUDA),
        pytest.param(["--kernel", "fused"], ["--kernel fused", "CUDA", "choose torch"], marks=NO_CUDA),
        (["--kernel", "cuda"], ["--kernel", "one of torch, graph, epilogue, fused"]),
    ],
)
def test_flags_that_cannot_be_are_refused(stub, arguments, fragments):
    with refused(*fragments):
        stub.parse_arguments(["--preset", "smoke", *arguments])


def test_limits_themselves_are_allowed(stub):
    words = "--hidden-size 2 --rank 2 --in-degree 2 --leak 1 --momentum 0 --decoder-warmup 0 --sigma 1e-3".split()
    config, options = stub.parse_arguments(["--preset", "smoke", *words])
    assert (config.hidden_size, config.rank, config.in_degree, config.leak, config.sigma) == (2, 2, 2, 1.0, 1e-3)
    assert stub.parse_arguments(["--seed", str(2**63 - 1)])[0].seed == 2**63 - 1
    assert options.run_dir == Path("runs/smoke-seed0")


def test_a_flag_overrides_the_preset_and_the_preset_the_default(stub):
    config, _ = stub.parse_arguments(["--preset", "smoke", "--batch-size", "5"])
    assert config.batch_size == 5
    assert config.hidden_size == stub.PRESETS["smoke"]["hidden_size"] != stub.Config().hidden_size
    assert config.leak == stub.Config().leak


# --- Files and devices -----------------------------------------------------------------------------------------------


@pytest.mark.parametrize("damage", ["missing", "truncated", "changed"])
def test_embedded_digits_missing_or_corrupt(main, nothing_written, tmp_path, monkeypatch, damage):
    path = tmp_path / "digits.npz"
    monkeypatch.setattr(digits, "EMBEDDED_PATH", path)
    if damage == "truncated":
        path.write_bytes(Path(digits.__file__).with_name("data").joinpath("mnist_5k.npz").read_bytes()[:1000])
    if damage == "changed":
        images, labels = np.zeros((5000, 28, 28), np.uint8), np.zeros(5000, np.uint8)
        np.savez(path, images=images, labels=labels)
    with nothing_written(), refused(path, digits.EMBEDDED_IMAGES_SHA256):
        main(*flags(), "--run-dir", "run")


@pytest.mark.skipif(importlib.util.find_spec("tensorboard") is not None, reason="tensorboard is installed")
def test_tensorboard_that_is_not_installed(main, nothing_written, finished):
    with nothing_written(), refused("--tensorboard", "pip install"):
        main(*flags(), "--run-dir", "run", "--tensorboard")
    with nothing_written(), refused("--tensorboard"):  # the old run is still there, although it was to be overwritten
        main(*flags(), "--run-dir", finished, "--tensorboard", "--overwrite")


@pytest.mark.skipif(importlib.util.find_spec("tensorboard") is None, reason="tensorboard is not installed")
def test_tensorboard_holds_what_metrics_hold(main, tmp_path):
    from tensorboard.backend.event_processing.event_accumulator import EventAccumulator

    assert main(*flags(), "--run-dir", tmp_path / "run", "--tensorboard") == 0
    lines = [json.loads(line) for line in (tmp_path / "run" / "metrics.jsonl").read_text().splitlines()]
    events = EventAccumulator(str(tmp_path / "run" / "tensorboard"))
    events.Reload()
    written = [(event.step, event.value) for event in events.Scalars("train_loss")]
    assert written == [(x["iteration"], pytest.approx(x["train_loss"])) for x in lines if "train_loss" in x]


# --- Run folders -----------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("changes", [{"seed": 7}, {"sigma": 0.5}, {"rank": 3}, {"own_data": True}])
def test_a_run_of_another_configuration_is_not_resumed(main, nothing_written, finished, changes):
    name = next(iter(changes))
    with nothing_written(), refused("another configuration", f"{name} is ", f"{changes[name]} here"):
        main(*flags(**changes), "--run-dir", finished, "--resume")


class Trap:
    """What a hostile pickle does when it is loaded without weights_only."""

    def __reduce__(self):
        return (os.mkdir, ("trap",))


DAMAGE = {
    "truncated": lambda content, other: content[: len(content) // 2],
    "empty": lambda content, other: b"",
    "no checkpoint": lambda content, other: b"seed: 0\n" * 100,
    "of another run": lambda content, other: other,
    "of another program": lambda content, other: saved_bytes({"model": torch.zeros(3)}),
    "a tensor": lambda content, other: saved_bytes(torch.zeros(3)),
    "hostile": lambda content, other: saved_bytes({"iteration": 1, "identity": Trap()}),
    "one bit flipped": lambda content, other: flipped(content),
}


def flipped(content: bytes) -> bytes:
    """One bit of θ, which torch.load does not notice."""
    state = torch.load(io.BytesIO(content), weights_only=True)
    place = content.find(state["v_Nr"].numpy().tobytes())
    assert place > 0
    damaged = content[: place + 2] + bytes([content[place + 2] ^ 0x10]) + content[place + 3 :]
    assert not torch.equal(torch.load(io.BytesIO(damaged), weights_only=True)["v_Nr"], state["v_Nr"])
    return damaged


@pytest.mark.parametrize("damage", DAMAGE)
def test_a_damaged_checkpoint_is_refused(main, nothing_written, finished, reference, damage):
    other = (reference(seed=1) / "checkpoint.pt").read_bytes()
    for name in ("checkpoint.pt", "checkpoint.previous.pt"):
        path = finished / name
        path.write_bytes(DAMAGE[damage](path.read_bytes(), other))
    for action in ("--resume", "--evaluate"):
        with nothing_written(), refused(f"{finished} holds no usable", "checkpoint.pt", "checkpoint.previous.pt"):
            main(*flags(), "--run-dir", finished, action)


@pytest.mark.parametrize("place", ["file/run", "file", "n" * 300])
def test_a_run_folder_that_cannot_be(main, nothing_written, tmp_path, place):
    (tmp_path / "file").write_text("")
    for action in ([], ["--overwrite"]):
        with nothing_written(), refused(f"--run-dir {tmp_path / place} cannot be written"):
            main(*flags(), "--run-dir", tmp_path / place, *action)


@pytest.mark.skipif(os.geteuid() == 0, reason="root may write everywhere")
@pytest.mark.parametrize("action", ["start", "--resume", "--overwrite"])
def test_a_run_folder_without_permission_to_write(main, nothing_written, finished, action):
    folder, more = (finished.parent / "new", []) if action == "start" else (finished, [action])
    mode = folder.parent.stat().st_mode if action == "start" else folder.stat().st_mode
    closed = folder.parent if action == "start" else folder
    closed.chmod(0o500)
    try:
        with nothing_written(), refused(f"--run-dir {folder} cannot be written"):
            main(*flags(), "--run-dir", folder, *more)
    finally:
        closed.chmod(mode)


def test_two_processes_do_not_write_one_run(main, nothing_written, finished):
    workers = Workers(torch.device("cpu"))
    writer, _ = RunFolder.open(finished, json.loads((finished / "config.json").read_text()), True, False, workers)
    for action in ("--resume", "--overwrite"):
        with nothing_written(), refused(f"--run-dir {finished} is in use"):
            main(*flags(), "--run-dir", finished, action)
    del writer
    assert main(*flags(), "--run-dir", finished, "--resume") == 0


# --- What is not refused ---------------------------------------------------------------------------------------------


def test_overwrite_leaves_nothing_of_the_old_run(main, finished, reference):
    (finished / "checkpoint.pt.tmp").write_text("of a writer that was killed")
    assert main(*flags(seed=1), "--run-dir", finished, "--overwrite") == 0
    assert results(finished)["theta_sha256"] == results(reference(seed=1))["theta_sha256"]
    assert metrics(finished) == metrics(reference(seed=1))
    assert {path.name for path in finished.iterdir()} == {*RunFolder.FILES, RunFolder.LOCK}


def test_a_start_that_got_nowhere_may_be_repeated(main, finished, reference):
    """Ctrl-C while sequences are being encoded leaves a folder with config.json but nothing to continue."""
    for name in ("checkpoint.pt", "checkpoint.previous.pt", "results.json"):
        (finished / name).unlink()
    assert main(*flags(seed=1), "--run-dir", finished) == 0
    assert metrics(finished) == metrics(reference(seed=1))


def test_dry_run_writes_nothing(main, nothing_written, finished, capsys):
    with nothing_written():
        assert main(*flags(), "--dry-run") == 0
        assert main(*flags(), "--dry-run", "--run-dir", finished) == 0
    printed = capsys.readouterr().out
    assert (
        "144 rollouts of members an iteration, 576 in 4 iterations" in printed
    )  # 9 pairs × 2 signs × 8 sequences, 4 times
    assert "memory" in printed and "expected" in printed


def test_evaluate_prints_the_saved_score_and_changes_nothing(main, nothing_written, finished, capsys):
    with nothing_written():
        # The run's configuration is read from its folder: no flag is needed, and none of the preset's values is used.
        assert main("--preset", "smoke", "--run-dir", finished, "--evaluate") == 0
    printed = capsys.readouterr().out
    for name in ("test_mse", "test_mse_last_frame", "validation_mse"):
        assert f"{results(finished)[name]:.4f}" in printed
    assert "iteration 4" in printed


def test_a_run_that_diverges_ends_like_any_other(command, tmp_path):
    """A learning rate that is far too large is a number like any other. (In a process: LAPACK may crash on NaN.)"""
    code, _, stderr = command(*flags(learning_rate=1e30), "--run-dir", tmp_path / "run").end()
    assert code == 0, stderr
    assert results(tmp_path / "run")["iterations"] == 4


# --- Through the real command ----------------------------------------------------------------------------------------


def test_help_lists_every_flag(command, stub):
    code, stdout, stderr = command("--help").end()
    assert (code, stderr) == (0, "")
    for field in dataclasses.fields(stub.Config):
        assert f"--{field.name.replace('_', '-')}" in stdout
    for flag in ("--preset", "--run-dir", "--resume", "--overwrite", "--evaluate", "--dry-run"):
        assert flag in stdout


# --- Exit codes -----------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("error", "code"),
    [
        (BadInput("two\nlines"), 2),
        (Fault("the disk is\nfull"), 1),
        (KeyboardInterrupt(), 130),
        (Interrupted(signal.SIGTERM), 143),
        (None, 0),
    ],
)
def test_exit_codes(error, code, capsys, monkeypatch):
    monkeypatch.setattr("sys.stdout", open(os.devnull, "w"))

    def main(argv):
        if error:
            raise error
        return 0

    with pytest.raises(SystemExit) as ended:
        run_main(main)
    assert ended.value.code == code
    assert capsys.readouterr().err.count("\n") == (error is not None)


def test_a_missing_checkpoint_is_named(tmp_path):
    with refused(tmp_path / "checkpoint.pt", "does not exist"):
        load_checkpoint(tmp_path / "checkpoint.pt")


@pytest.mark.parametrize("merged", [False, True])
@pytest.mark.parametrize(
    ("main", "code"),
    [("lambda words: print('line\\n' * 100_000) or 0", 128 + 13), ("lambda words: print('line') or fail()", 1)],
    ids=["in the middle", "with a last line in the buffer"],
)
def test_an_output_that_nobody_reads_any_more_ends_a_command_in_silence(main, code, merged):
    """As `| head` does, and `2>&1 | head`."""
    program = f"""
from common.errors import Fault, run_main
def fail(): raise Fault("a fault")
run_main({main})
"""
    environment = {name: value for name, value in os.environ.items() if name != "PYTHONUNBUFFERED"}
    with subprocess.Popen(
        [sys.executable, "-c", program], cwd=ROOT, env=environment, stdout=subprocess.PIPE,
        stderr=subprocess.STDOUT if merged else subprocess.PIPE,
    ) as process:  # fmt: skip
        process.stdout.close()
        said = b"" if merged else process.stderr.read()
        assert said == (b"-c: a fault\n" if code == 1 and not merged else b"")
        assert process.wait(60) == code
