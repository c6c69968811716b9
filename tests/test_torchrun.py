"""torchrun: any number of ranks ends in the bits of a plain run, and no rank outlives the others.

The default set runs every number of ranks on one case, and others on two or three; `pytest -m slow` runs the whole table.
"""

import os
import signal
import subprocess
import sys

import pytest
import torch
from conftest import (
    LONG,
    assert_same_run,
    children_of,
    flags,
    last_iteration,
    results,
    snapshot,
    wait_until_gone,
    write_launcher,
)

pytestmark = [
    pytest.mark.promise("any number of ranks"),
    pytest.mark.skipif(sys.platform != "linux", reason="looks at processes through /proc"),
]


# --- The same bits ---------------------------------------------------------------------------------------------------


def test_two_ranks_end_in_the_bits_of_a_plain_run(torchrun, reference, tmp_path):
    changes = {"noise": "gaussian", "own_data": True}
    code, stdout, stderr = torchrun(2, *flags(**changes), "--run-dir", tmp_path / "run").end()
    assert code == 0, stderr
    assert_same_run(tmp_path / "run", reference(**changes))
    assert stdout.count("saved in") == 1  # only rank 0 speaks
    where = results(tmp_path / "run")["environment"]
    assert (where["world_size"], where["device"]) == (2, "cuda" if torch.cuda.is_available() else "cpu")


def test_started_plain_stopped_and_resumed_on_three_ranks(command, torchrun, reference, tmp_path):
    folder = tmp_path / "run"
    words = [*flags(**LONG), "--run-dir", folder]
    plain = command(*words)
    plain.wait_for_iteration(folder, 8)
    plain.interrupt()
    assert plain.end()[0] == 130
    code, _, stderr = torchrun(3, *words, "--resume").end()
    assert code == 0, stderr
    assert_same_run(folder, reference(**LONG))
    assert results(folder)["environment"]["world_size"] == 3


@pytest.mark.parametrize("ranks", [2, pytest.param(3, marks=pytest.mark.slow), pytest.param(8, marks=pytest.mark.slow)])
def test_projected_noise_is_added_up_in_the_order_of_the_tiles(torchrun, reference, tmp_path, ranks):
    """Its estimate is made of what each tile keeps, and not drawn again by every rank."""
    changes = {"noise_projection": "visited", "own_data": True, "batch_size": 1, "fitness_shaping": "sign"}
    changes |= {"decoder": "ridge", "decoder_refit": 2, "u_directions": 3, "u_sigma_ratio": 2.0, "u_rate_ratio": 0.5}
    changes |= {"train_leak": "per-unit"}
    code, _, stderr = torchrun(ranks, *flags(**changes), "--run-dir", tmp_path / "run").end()
    assert code == 0, stderr
    assert_same_run(tmp_path / "run", reference(**changes))


@pytest.mark.parametrize("ranks", [1, 2, 3, 4, 8])
@pytest.mark.parametrize(
    ("noise", "own_data"),
    [
        ("rank1", False),
        pytest.param("rank1", True, marks=pytest.mark.slow),
        pytest.param("gaussian", False, marks=pytest.mark.slow),
        pytest.param("gaussian", True, marks=pytest.mark.slow),
    ],
)
def test_any_number_of_ranks_and_threads(torchrun, reference, tmp_path, ranks, own_data, noise):
    changes = {"noise": noise, "own_data": own_data}
    threads = 1 + ranks % 2
    code, _, stderr = torchrun(ranks, *flags(**changes), "--run-dir", tmp_path / "run", "--threads", threads).end()
    assert code == 0, stderr
    assert_same_run(tmp_path / "run", reference(**changes))
    assert results(tmp_path / "run")["environment"]["threads"] == threads


def test_openmp_gets_no_threads_of_its_own(stub_environment, tmp_path):
    """Idle OpenMP threads spin and fight the pool, unless OMP_WAIT_POLICY says otherwise; here there are none to spin."""
    script = tmp_path / "count.py"
    write_launcher(
        script,
        "import time\ncode = stub.main(None)\ntime.sleep(0.5)  # threads that have ended need a moment to be gone\nprint('threads:', len(os.listdir('/proc/self/task')))\nsys.exit(code)",
    )
    done = subprocess.run(
        [sys.executable, script, *flags(threads=2), "--run-dir", tmp_path / "run"],
        env={**stub_environment, "OMP_NUM_THREADS": "8"},
        capture_output=True,
        text=True,
    )
    assert done.returncode == 0, done.stderr
    assert int(done.stdout.split("threads:")[1]) <= 4  # this one, two of the pool, and perhaps the progress bar's


# --- Faults ----------------------------------------------------------------------------------------------------------


@pytest.mark.promise("killed and resumed")
@pytest.mark.parametrize("victim", [pytest.param(0, marks=pytest.mark.slow), 1])
def test_when_a_rank_is_killed_none_is_left_behind(torchrun, reference, main, tmp_path, victim):
    folder = tmp_path / "run"
    words = [*flags(**LONG), "--run-dir", folder]
    process = torchrun(2, *words)
    process.wait_for_iteration(folder, 12)
    ranks = children_of(process.pid)  # torchrun starts them in order
    assert len(ranks) == 2
    os.kill(ranks[victim], signal.SIGKILL)
    assert process.end()[0] != 0
    wait_until_gone(ranks)
    assert last_iteration(folder) < LONG["iterations"]
    # And what it leaves is a run like any other.
    assert main(*words, "--resume") == 0
    assert_same_run(folder, reference(**LONG))


@pytest.mark.promise("killed and resumed")
def test_an_error_on_one_rank_ends_all(torchrun, tmp_path):
    """A fault inside a pool thread of rank 1, while rank 0 waits for its losses."""
    script = tmp_path / "faulty.py"
    write_launcher(
        script,
        """errors = stub.Rollout.errors
def faulty(self, *arguments, **options):
    if os.environ["RANK"] == "1":
        raise RuntimeError("rank 1 has a fault")
    return errors(self, *arguments, **options)
stub.Rollout.errors = faulty
""",
    )
    process = torchrun(2, *flags(), "--run-dir", tmp_path / "run", script=script)
    process.wait_for(lambda: len(children_of(process.pid)) == 2)
    ranks = children_of(process.pid)
    code, _, stderr = process.end()
    assert code != 0
    assert "rank 1 has a fault" in stderr
    wait_until_gone(ranks)


@pytest.mark.promise("bad input")
def test_bad_input_is_said_once(torchrun, reference, tmp_path):
    folder = reference()
    before = snapshot(folder)
    code, stdout, stderr = torchrun(2, *flags(seed=1), "--run-dir", folder, "--resume").end()
    assert code != 0 and stdout == ""
    assert stderr.count("moving_mnist_es_reservoir.py: error: ") == 1
    assert "another configuration: seed is 0 there, 1 here" in stderr
    assert snapshot(folder) == before


@pytest.mark.slow
@pytest.mark.promise("bad input")
@pytest.mark.parametrize("where", ["command line", "cache"])
def test_bad_input_before_the_ranks_meet_or_on_one_of_them_is_said_once(torchrun, tmp_path, monkeypatch, where):
    words = [*flags(), "--run-dir", tmp_path / "run"]
    if where == "command line":
        words += ["--sigma", "nan"]
    else:  # only rank 0 writes the cache
        (tmp_path / "file").write_text("")
        monkeypatch.setenv("MOVING_MNIST_CACHE", str(tmp_path / "file" / "cache"))
    code, _, stderr = torchrun(3, *words).end()
    assert code != 0
    assert stderr.count("moving_mnist_es_reservoir.py: error: ") == 1
    assert not (tmp_path / "run").exists()


@pytest.mark.slow
@pytest.mark.promise("ranks that come apart")
@pytest.mark.parametrize(
    ("flag", "here", "there"),
    [("sigma", 0.01, 0.5), ("checkpoint_every", 7, 5), ("measure_cosine_every", 0, 3)],  # the last two: when ranks meet
)
def test_ranks_that_disagree_are_told(torchrun, tmp_path, flag, here, there):
    """On several nodes each has its own command line."""
    script = tmp_path / "mistyped.py"
    words = ["--" + flag.replace("_", "-"), str(there)]
    write_launcher(
        script,
        f"""sys.argv += {words} if os.environ["RANK"] == "1" else []
""",
    )
    code, _, stderr = torchrun(2, *flags(**{flag: here}), "--run-dir", tmp_path / "run", script=script).end()
    assert code != 0
    assert f"rank 1 was started with another configuration: {flag} is {here} on rank 0, {there} here" in stderr
    assert not (tmp_path / "run").exists()


# --- Stops and restarts ----------------------------------------------------------------------------------------------


@pytest.mark.promise("preemption")
def test_ctrl_c_saves_where_it_stops(torchrun, main, reference, tmp_path):
    """torchrun passes it on to the ranks, and gives them half a minute."""
    folder = tmp_path / "run"
    words = [*flags(**{**LONG, "checkpoint_every": 1000}), "--run-dir", folder]
    process = torchrun(2, *words)
    process.wait_for_iteration(folder, 8)
    ranks = children_of(process.pid)
    process.interrupt()
    code, _, stderr = process.end()
    assert code != 0
    wait_until_gone(ranks)
    stopped = last_iteration(folder)
    assert 8 <= stopped < LONG["iterations"]
    assert torch.load(folder / "checkpoint.pt", weights_only=True)["iteration"] == stopped
    assert f"stopped after iteration {stopped}; --resume continues" in stderr
    assert main(*words, "--resume") == 0
    assert_same_run(folder, reference(**LONG))


@pytest.mark.slow
@pytest.mark.promise("killed and resumed")
def test_torchrun_starts_again_and_the_run_goes_on(torchrun, reference, tmp_path):
    folder = tmp_path / "run"
    process = torchrun(2, *flags(**LONG), "--run-dir", folder, options=("--max_restarts=1",))
    process.wait_for_iteration(folder, 12)
    os.kill(children_of(process.pid)[-1], signal.SIGKILL)
    code, _, stderr = process.end()
    assert code == 0, stderr
    assert_same_run(folder, reference(**LONG))
