"""A run that was stopped, anyhow and anywhere, and continued ends in the bits of one that was never stopped."""

import json
import os
import random
import shutil
import signal
from pathlib import Path

import pytest
import torch
from conftest import LONG, assert_same_run, flags, flip_a_bit, last_iteration, metrics, results, snapshot

from common import run

pytestmark = pytest.mark.promise("killed and resumed")


@pytest.fixture
def finished(reference, tmp_path) -> Path:
    """A finished run that a test may spoil."""
    return Path(shutil.copytree(reference(), tmp_path / "finished"))


class Killed(BaseException):
    """Stands for the end of the process: nothing in the program catches it."""


@pytest.fixture
def killed_at(monkeypatch):
    """killed_at(k): the process dies at its k-th change of a file, which is not made, or half made where it is appended."""

    def arrange(count: int) -> None:
        left = [count]
        replace, log = os.replace, run.RunFolder.log

        def counted(change, half_made=lambda *arguments: None):
            def step(*arguments):
                left[0] -= 1
                if left[0] == 0:
                    half_made(*arguments)
                if left[0] <= 0:
                    raise Killed
                return change(*arguments)

            return step

        def half_a_line(folder, line):
            with open(folder.metrics, "a") as file:
                file.write(json.dumps(line)[:20])

        monkeypatch.setattr(run.os, "replace", counted(replace))
        monkeypatch.setattr(run.RunFolder, "log", counted(log, half_a_line))

    return arrange


def killed(main, *arguments) -> bool:
    try:
        assert main(*arguments) == 0
    except Killed:
        return True
    return False


def resume_if_begun(folder: Path) -> list[str]:
    """What a user would do: --resume, or the same command again where nothing had been saved."""
    return ["--resume"] if (folder / "checkpoint.pt").exists() else []


# --- Killed at every possible place ----------------------------------------------------------------------------------


def test_killed_at_any_change_of_a_file_and_resumed(main, reference, tmp_path, killed_at, monkeypatch):
    """Every write of a short run in turn is its last: config, metrics, both checkpoints, figures, results."""
    changes = {"iterations": 2, "decoder_warmup": 2, "evaluate_every": 1}
    expected, count = reference(**changes), 1
    while True:
        folder = tmp_path / str(count)
        killed_at(count)
        was_killed = killed(main, *flags(**changes), "--run-dir", folder)
        monkeypatch.undo()
        monkeypatch.setenv("TQDM_DISABLE", "1")
        if not was_killed:
            break
        assert main(*flags(**changes), "--run-dir", folder, *resume_if_begun(folder)) == 0, f"killed at change {count}"
        assert_same_run(folder, expected)
        count += 1
    # config, metrics; start, warmed up, two iterations: 4 checkpoints and 3 copies of the one before; 3 lines; 2 results
    assert count - 1 == 2 + 4 + 3 + 3 + 2


def test_killed_again_and_again(main, reference, tmp_path, killed_at, monkeypatch):
    """Each life of the process lasts a few writes only, and starts from what the last one left."""
    expected = reference(iterations=8)
    folder, lives, words = tmp_path / "run", 0, flags(iterations=8)
    while True:
        killed_at(10)
        was_killed = killed(main, *words, "--run-dir", folder, *resume_if_begun(folder))
        monkeypatch.undo()
        lives += 1
        assert lives < 20, "the run does not get on"
        if not was_killed:
            break
    assert lives == 5
    assert_same_run(folder, expected)


# --- Real signals ----------------------------------------------------------------------------------------------------


def test_ctrl_c_then_kill_9_and_resume_on_another_number_of_threads(command, main, reference, tmp_path, capsys):
    folder = tmp_path / "run"
    words = [*flags(**LONG), "--run-dir", folder]

    first = command(*words, "--threads", 2)
    first.wait_for_iteration(folder, 5)
    first.interrupt()
    code, stdout, stderr = first.end()
    assert code == 130, stderr
    stopped = last_iteration(folder)
    assert 5 <= stopped < LONG["iterations"]
    # Ctrl-C saves where it stops, whatever --checkpoint-every says, and tells how to go on.
    assert torch.load(folder / "checkpoint.pt", weights_only=True)["iteration"] == stopped
    assert f"stopped after iteration {stopped}; --resume continues {folder}" in stderr
    assert "Traceback" not in stderr and not (folder / "results.json").exists()

    second = command(*words, "--resume", "--threads", 1)
    second.wait_for_iteration(folder, stopped + random.randint(1, 30))
    second.popen.send_signal(signal.SIGKILL)
    assert second.end()[0] == -signal.SIGKILL

    capsys.readouterr()
    assert main(*words, "--resume", "--threads", 3) == 0
    printed = capsys.readouterr()
    assert f"saved in {folder}" in printed.out and "damaged" not in printed.err
    assert_same_run(folder, reference(**LONG))


def test_ctrl_c_while_the_decoder_warms_up(command, main, reference, tmp_path):
    folder, changes = tmp_path / "run", {"decoder_warmup": 2000}
    process = command(*flags(**changes), "--run-dir", folder)
    process.wait_for(lambda: (folder / "checkpoint.pt").exists())  # saved when the warm-up begins
    process.interrupt()
    code, _, stderr = process.end()
    assert code == 130, stderr
    state = torch.load(folder / "checkpoint.pt", weights_only=True)
    assert state["iteration"] == 0 and state["warmed_up"] < 2000
    assert "--resume continues" in stderr
    assert main(*flags(**changes), "--run-dir", folder, "--resume") == 0
    assert_same_run(folder, reference(**changes))


def test_ctrl_c_before_training_leaves_nothing(main, stub, tmp_path, monkeypatch):
    """Sequences are still being encoded: there is nothing to resume, and the same command may be given again."""

    def interrupted(self, workers):
        raise KeyboardInterrupt

    with monkeypatch.context() as patch:
        patch.setattr(stub.Embeddings, "prepare", interrupted)
        with pytest.raises(KeyboardInterrupt):
            main(*flags(), "--run-dir", tmp_path / "run")
    assert not (tmp_path / "run").exists()


def test_an_old_run_stays_until_its_successor_begins(main, stub, finished, monkeypatch):
    """--overwrite, and then Ctrl-C while sequences are being encoded."""

    def interrupted(self, workers):
        raise KeyboardInterrupt

    monkeypatch.setattr(stub.Embeddings, "prepare", interrupted)
    before = snapshot(finished)
    with pytest.raises(KeyboardInterrupt):
        main(*flags(), "--run-dir", finished, "--overwrite")
    assert snapshot(finished) == before


# --- Damaged checkpoints ---------------------------------------------------------------------------------------------


@pytest.fixture
def stopped(main, finished, killed_at, monkeypatch) -> Path:
    """A run that was killed in its third iteration, with two good checkpoints."""
    # config, metrics; checkpoint of the start; line 0, copy, checkpoint; twice a line, copy, checkpoint; the third line
    killed_at(2 + 1 + 3 + 2 * 3 + 1)
    assert killed(main, *flags(), "--run-dir", finished, "--overwrite")
    monkeypatch.undo()
    states = [torch.load(finished / f"checkpoint{which}.pt", weights_only=True) for which in (".previous", "")]
    assert [state["iteration"] for state in states] == [1, 2]
    return finished


def damage(path: Path, how: str, other: Path) -> None:
    if how == "truncated":
        path.write_bytes(path.read_bytes()[:3000])
    elif how == "one bit flipped":
        flip_a_bit(path, torch.load(path, weights_only=True)["v_Nr"])
    else:
        shutil.copy(other, path)


@pytest.mark.promise("checkpoints")
@pytest.mark.parametrize("how", ["truncated", "one bit flipped", "of another run"])
def test_the_previous_good_checkpoint_is_used_and_said(main, reference, stopped, capsys, how):
    damage(stopped / "checkpoint.pt", how, reference(seed=1) / "checkpoint.pt")
    capsys.readouterr()
    assert main(*flags(), "--run-dir", stopped, "--resume") == 0
    said = capsys.readouterr().err
    what = "belongs to another run" if how == "of another run" else "is damaged"
    assert f"{stopped / 'checkpoint.pt'} {what}" in said
    assert f"continuing from {stopped / 'checkpoint.previous.pt'}, iteration 1" in said
    assert_same_run(stopped, reference())


@pytest.mark.promise("checkpoints")
def test_a_damaged_checkpoint_never_replaces_the_good_one(main, reference, stopped, killed_at, monkeypatch):
    """Killed at the first save after the fallback: the only good checkpoint must still be there."""
    (stopped / "checkpoint.pt").write_bytes(b"damaged")
    good = (stopped / "checkpoint.previous.pt").read_bytes()
    killed_at(3)  # metrics cut back, a line, and the checkpoint that is not written any more
    assert killed(main, *flags(), "--run-dir", stopped, "--resume")
    monkeypatch.undo()
    assert (stopped / "checkpoint.previous.pt").read_bytes() == good
    assert main(*flags(), "--run-dir", stopped, "--resume") == 0
    assert_same_run(stopped, reference())


@pytest.mark.promise("checkpoints")
def test_only_the_previous_checkpoint_is_left(main, reference, stopped):
    (stopped / "checkpoint.pt").unlink()
    assert main(*flags(), "--run-dir", stopped, "--resume") == 0
    assert_same_run(stopped, reference())


@pytest.mark.parametrize("rest", [b'{"iteration": 3, "tr', b'{"iteration": 3}\n{"iter', b"\x00\xff\xfe\n", b"null\n"])
def test_a_last_line_that_was_being_written(main, reference, stopped, rest):
    with open(stopped / "metrics.jsonl", "ab") as file:
        file.write(rest)
    assert main(*flags(), "--run-dir", stopped, "--resume") == 0
    assert_same_run(stopped, reference())


# --- Finished runs and torchrun's restarts ---------------------------------------------------------------------------


def test_resuming_a_finished_run_scores_it_again(main, finished, reference):
    before = snapshot(finished)
    assert main(*flags(), "--run-dir", finished, "--resume") == 0
    assert_same_run(finished, reference())
    for name in ("checkpoint.pt", "checkpoint.previous.pt", "config.json"):
        assert snapshot(finished)[finished / name] == before[finished / name], name
    assert results(finished)["wallclock_s"] == results(reference())["wallclock_s"]


def test_killed_while_scoring(main, finished, reference):
    """Training was done, results were not written yet."""
    (finished / "results.json").unlink()
    (finished / "figures.npz").unlink()
    assert main(*flags(), "--run-dir", finished, "--resume") == 0
    assert_same_run(finished, reference())


def test_after_a_restart_by_torchrun_a_run_goes_on_by_itself(main, stopped, reference, monkeypatch, stub):
    monkeypatch.setenv("TORCHELASTIC_RESTART_COUNT", "1")
    done = []
    iterate = stub.Training.iterate
    monkeypatch.setattr(stub.Training, "iterate", lambda self: done.append(self.iteration + 1) or iterate(self))
    # The command line is the first one again, --overwrite included; what it overwrote was the run before.
    assert main(*flags(), "--run-dir", stopped, "--overwrite") == 0
    assert done == [3, 4]
    assert_same_run(stopped, reference())


def test_after_a_restart_by_torchrun_a_run_without_checkpoint_starts(main, tmp_path, reference, monkeypatch):
    monkeypatch.setenv("TORCHELASTIC_RESTART_COUNT", "2")
    folder = tmp_path / "run"
    folder.mkdir()
    (folder / "config.json").write_text("{")  # being written when the rank died
    assert main(*flags(), "--run-dir", folder) == 0
    assert_same_run(folder, reference())


def test_after_a_restart_an_old_run_is_still_overwritten(main, finished, reference, monkeypatch):
    """The first attempt died before it began: the folder still holds the run that was to be overwritten."""
    monkeypatch.setenv("TORCHELASTIC_RESTART_COUNT", "1")
    assert main(*flags(seed=1), "--run-dir", finished, "--overwrite") == 0
    assert_same_run(finished, reference(seed=1))


# --- What else must not matter ---------------------------------------------------------------------------------------


@pytest.mark.parametrize("changes", [{"noise": "gaussian"}, {"own_data": True}, {"optimizer": "sgd"}, {"noise_projection": "visited", "own_data": True},
                                     {"sigma_schedule": "adaptive"}, {"decoder": "ridge", "decoder_refit": 3}, {"train_leak": "scalar"}])  # fmt: skip
def test_every_state_of_training_is_saved(main, reference, tmp_path, killed_at, monkeypatch, changes):
    """Stopped and resumed half-way, on two threads instead of one."""
    expected, folder = reference(**changes), tmp_path / "run"
    killed_at(12)
    assert killed(main, *flags(**changes), "--run-dir", folder, "--threads", 1)
    monkeypatch.undo()
    assert main(*flags(**changes), "--run-dir", folder, "--resume", "--threads", 2) == 0
    assert_same_run(folder, expected)
    assert len(metrics(folder)) == 1 + 4  # line 0 and one line an iteration, none twice


def test_how_often_a_run_is_saved_is_no_part_of_it(main, reference, tmp_path):
    assert main(*flags(checkpoint_every=3), "--run-dir", tmp_path / "run") == 0
    assert_same_run(tmp_path / "run", reference())
    assert torch.load(tmp_path / "run" / "checkpoint.previous.pt", weights_only=True)["iteration"] == 3


def test_another_seed_is_another_run(reference):
    assert results(reference())["theta_sha256"] != results(reference(seed=1))["theta_sha256"]
    assert results(reference())["problem_id"] == results(reference(seed=1))["problem_id"]
