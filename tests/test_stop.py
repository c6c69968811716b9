"""How a run is asked to stop: which signal does what, when, and that a stop comes whatever the main thread is doing."""

import gc
import os
import signal
import subprocess
import sys
import threading
import time
from pathlib import Path

import pytest
import torch
from conftest import LONG, assert_same_run, flags, last_iteration, metrics, write_launcher

from common import stop as stop_module
from common.dist import Stopped, Workers
from common.stop import GRACE_S, Interrupted, StopRequest

pytestmark = pytest.mark.promise("preemption")


@pytest.fixture(autouse=True)
def ctrl_c():
    """Ctrl-C as in a terminal; a shell that starts the tests in the background has them ignore it."""
    before = signal.signal(signal.SIGINT, signal.default_int_handler)
    yield
    signal.signal(signal.SIGINT, before)


# --- In this process -------------------------------------------------------------------------------------------------


def test_first_ctrl_c_asks_and_the_second_insists(capfd):
    with StopRequest() as stop, stop.while_training():
        assert not stop.requested
        signal.raise_signal(signal.SIGINT)
        assert stop.requested and stop.signal == signal.SIGINT
        assert "Ctrl-C again" in capfd.readouterr().err
        with pytest.raises(KeyboardInterrupt):
            signal.raise_signal(signal.SIGINT)
    with pytest.raises(KeyboardInterrupt):  # and afterwards it is as it was
        signal.raise_signal(signal.SIGINT)


def test_under_torchrun_one_ctrl_c_may_arrive_twice(monkeypatch):
    monkeypatch.setenv("TORCHELASTIC_RUN_ID", "none")
    with StopRequest() as stop, stop.while_training():
        signal.raise_signal(signal.SIGINT)
        signal.raise_signal(signal.SIGINT)
        assert stop.requested


@pytest.mark.parametrize("number", [signal.SIGTERM, signal.SIGUSR1])
def test_a_scheduler_may_ask_more_than_once(number):
    before = signal.getsignal(number)
    with StopRequest() as stop, stop.while_training():
        signal.raise_signal(number)
        signal.raise_signal(number)
        assert stop.signal == number
    assert signal.getsignal(number) == before


@pytest.mark.parametrize("number", [signal.SIGINT, signal.SIGTERM, signal.SIGUSR1])
def test_outside_of_training_there_is_nothing_to_save(number):
    with pytest.raises(Interrupted) as ended, StopRequest():
        signal.raise_signal(number)
    assert ended.value.signal == number


def test_nothing_is_left_of_a_request(tmp_path):
    """No thread, no open file: a program may make many."""
    gc.collect()  # what earlier tests left open is not counted
    before = len(os.listdir("/proc/self/fd"))
    for _ in range(20):
        with StopRequest():
            assert [thread.name for thread in threading.enumerate()].count("stop") == 1
    assert "stop" not in [thread.name for thread in threading.enumerate()]
    assert len(os.listdir("/proc/self/fd")) <= before


def test_tiles_that_are_not_begun_are_left_out():
    done = []
    with StopRequest() as stop, Workers(torch.device("cpu"), threads=1, stop=stop) as workers, stop.while_training():

        def evaluate(tile):
            done.append(tile)
            if tile == 2:
                os.kill(os.getpid(), signal.SIGTERM)
            time.sleep(0.01)  # the handler belongs to another thread
            return torch.zeros(1)

        with pytest.raises(Stopped):
            workers.run_tiles(evaluate, 100, 1, may_stop=True)
        assert workers.stop_agreed and 3 <= len(done) < 10
        assert workers.run_tiles(evaluate, 4, 1).shape == (4, 1)  # who may not stop is not stopped


def test_a_rank_whose_torchrun_was_gone_before_it_came_stops(monkeypatch):
    """Killed while its ranks still imported torch: init is their parent then."""
    monkeypatch.setenv("TORCHELASTIC_RUN_ID", "none")
    monkeypatch.setattr(stop_module.os, "getppid", lambda: 1)
    monkeypatch.setattr(stop_module, "_command_line", lambda pid: b"/sbin/init")
    with StopRequest() as stop, stop.while_training():
        deadline = time.monotonic() + 5
        while not stop.requested and time.monotonic() < deadline:
            time.sleep(0.05)
        assert stop.signal == signal.SIGTERM


# --- The real command ------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(("number", "code"), [(signal.SIGTERM, 143), (signal.SIGUSR1, 128 + signal.SIGUSR1)])
def test_a_preempted_run_saves_what_it_has(command, main, reference, tmp_path, number, code):
    folder = tmp_path / "run"
    words = [*flags(**{**LONG, "checkpoint_every": 1000}), "--run-dir", folder]
    process = command(*words)
    process.wait_for_iteration(folder, 8)
    process.popen.send_signal(number)
    asked = time.monotonic()
    ended, _, stderr = process.end()
    assert ended == code, stderr
    assert time.monotonic() - asked < 10
    stopped = last_iteration(folder)
    assert 8 <= stopped < LONG["iterations"]
    assert torch.load(folder / "checkpoint.pt", weights_only=True)["iteration"] == stopped
    assert f"stopped after iteration {stopped}; --resume continues {folder}" in stderr and "Traceback" not in stderr
    assert main(*words, "--resume") == 0
    assert_same_run(folder, reference(**LONG))


def test_the_unfinished_iteration_is_dropped(command, main, reference, tmp_path):
    """Asked in the middle of an iteration, of which the decoder has already trained its part."""
    folder, script = tmp_path / "run", tmp_path / "asked.py"
    write_launcher(
        script,
        """import signal, threading
errors, tiles, lock = stub.Rollout.errors, [0], threading.Lock()
def counted(self, *arguments, **options):
    with lock:
        tiles[0] += 1
        if tiles[0] == 3 * 5 + 4:  # five tiles an iteration: the fourth of the fourth iteration
            os.kill(os.getpid(), signal.SIGTERM)
    return errors(self, *arguments, **options)
if "--resume" not in sys.argv:
    stub.Rollout.errors = counted
""",
    )
    words = [script, *flags(**LONG), "--run-dir", folder, "--threads", "2"]
    done = subprocess.run([sys.executable, *map(str, words)], capture_output=True, text=True)
    assert done.returncode == 143, done.stderr
    assert "stopped after iteration 3" in done.stderr
    assert [line["iteration"] for line in metrics(folder)] == [0, 1, 2, 3]
    state = torch.load(folder / "checkpoint.pt", weights_only=True)
    steps = {int(entry["step"]) for entry in state["decoder"]["optimizer"]["state"].values()}
    assert state["iteration"] == 3 and steps == {10 + 3}  # the warm-up, and one step an iteration
    assert main(*words[1:], "--resume") == 0
    assert_same_run(folder, reference(**LONG))


@pytest.mark.parametrize("reader", ["there", "gone", "asleep"])
def test_a_stop_comes_though_the_main_thread_hangs(tmp_path, reader):
    """A library call that returns to Python only after a minute: no handler runs, but the process ends.

    Also where nobody reads what it says, as after Ctrl-C with `2>&1 | tee log`, or where the pipe is full.
    """
    script = tmp_path / "hanging.py"
    script.write_text(f"""
import ctypes, os, sys
sys.path.insert(0, {str(Path(__file__).parent.parent)!r})
from common import stop
stop.GRACE_S = 1.0
with stop.StopRequest() as request, request.while_training():
    if {reader!r} == "asleep":
        os.set_blocking(2, False)
        try:
            while True:
                os.write(2, bytes(4096))
        except BlockingIOError:
            os.set_blocking(2, True)
    print("ready", flush=True)
    ctypes.CDLL(None).poll(None, 0, 60_000)
    while True:  # poll came back early, because of the signal: hang again
        ctypes.CDLL(None).poll(None, 0, 60_000)
""")
    process = subprocess.Popen([sys.executable, script], stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True)
    assert process.stdout.readline() == "ready\n"
    if reader == "gone":
        process.stderr.close()
    process.send_signal(signal.SIGTERM)
    assert process.wait(timeout=GRACE_S) == 143
    if reader == "there":
        assert "not stopped within 1 s: leaving" in process.stderr.read()
