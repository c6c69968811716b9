"""Whatever happens to a run, at most the work since its last checkpoint is lost, and the result is the same bits.

Real processes, real signals, real torchrun; most of it is slow (`pytest -m slow tests/test_stability.py`). Which promise is
tested where is told in docs/stability.md. What concerns a single process is in test_resume.py and test_stop.py.
"""

import os
import random
import signal
import sys
import threading
import time

import pytest
import torch
from conftest import (
    LONG,
    ROOT,
    STUB,
    Process,
    assert_same_run,
    children_of,
    flags,
    last_iteration,
    metrics,
    parent_of,
    results,
    wait_until_gone,
    write_launcher,
)

from common.dist import Workers
from common.errors import Fault

pytestmark = [
    pytest.mark.skipif(sys.platform != "linux", reason="looks at processes through /proc"),
    pytest.mark.skipif(torch.cuda.is_available(), reason="written for processes on a CPU"),
]


def traceback_of_ours(stderr: str) -> bool:
    """torchrun ends with a traceback of its own whenever a rank has failed; none may lead through this repository."""
    return any(f'File "{ROOT / folder}' in stderr for folder in ("common", STUB.parent.name))


# --- Any number of ranks ---------------------------------------------------------------------------------------------


@pytest.mark.promise("any number of ranks")
@pytest.mark.slow
@pytest.mark.parametrize("rendezvous", ["static", "c10d"])
def test_two_agents_end_in_the_bits_of_a_plain_run(two_agents, reference, tmp_path, rendezvous):
    """Two nodes of two ranks, on the loopback interface."""
    agents = two_agents(2, *flags(), "--run-dir", tmp_path / "run", rendezvous=rendezvous)
    for agent in agents:
        code, _, stderr = agent.end()
        assert code == 0, stderr
    assert_same_run(tmp_path / "run", reference())
    assert results(tmp_path / "run")["environment"]["world_size"] == 4


@pytest.mark.promise("any number of ranks")
@pytest.mark.slow
@pytest.mark.parametrize(("pairs", "ranks"), [(1, 2), (1, 8), (2, 3), (17, 4), (33, 8)])
def test_populations_that_do_not_divide(torchrun, reference, tmp_path, pairs, ranks):
    """More ranks than tiles, too: some have nothing to do."""
    changes = {"population_pairs": pairs}
    code, _, stderr = torchrun(ranks, *flags(**changes), "--run-dir", tmp_path / "run").end()
    assert code == 0, stderr
    assert_same_run(tmp_path / "run", reference(**changes))


# --- Killed at random, resumed elsewhere -----------------------------------------------------------------------------

KILLS = 32
CHAIN = {"iterations": 4000, "evaluate_every": 100, "checkpoint_every": 7}
ITSELF = "while writing a checkpoint"  # the process kills itself
PLAIN = ("SIGKILL", "SIGTERM", "SIGINT", ITSELF)
RANKS = ("SIGKILL of one rank", "SIGKILL of torchrun", "SIGKILL of all", "SIGTERM to torchrun", "SIGTERM to all",
         "SIGUSR1 to one rank", ITSELF)  # fmt: skip
# Rank 0 dies in the middle of writing a checkpoint: half of it is on the disk.
WRITING = """from common import files
flush, left = files.flush_to_disk, [int(os.environ["SAVES"])]
def half(path):
    if path.name == "checkpoint.pt.tmp":
        left[0] -= 1
        if left[0] == 0:
            os.truncate(path, path.stat().st_size // 2)
            os.kill(os.getpid(), 9)
    flush(path)
files.flush_to_disk = half
"""


def kill(process: Process, ranks: list[int], how: str, chance: random.Random) -> None:
    torchrun = process.pid
    if how in ("SIGKILL", "SIGTERM", "SIGINT"):
        process.popen.send_signal(getattr(signal, how))
    elif how in ("SIGKILL of one rank", "SIGUSR1 to one rank"):
        os.kill(chance.choice(ranks), getattr(signal, how.split()[0]))
    elif how in ("SIGKILL of torchrun", "SIGTERM to torchrun"):
        os.kill(torchrun, getattr(signal, how.split()[0]))
    elif how in ("SIGKILL of all", "SIGTERM to all"):
        for pid in (torchrun, *ranks):
            os.kill(pid, getattr(signal, how.split()[0]))


@pytest.mark.promise("killed and resumed")
@pytest.mark.slow
def test_killed_at_random_and_resumed_on_other_numbers_of_ranks(
    torchrun, start, main, reference, tmp_path, record_property, monkeypatch
):
    """One run of many lives. STABILITY_SEED repeats the kills of another session, as far as times can be repeated."""
    seed = int(os.environ.get("STABILITY_SEED", time.time_ns() % 10**6))
    print(f"STABILITY_SEED={seed}")
    record_property("seed", seed)
    chance, folder, script = random.Random(seed), tmp_path / "run", tmp_path / "writing.py"
    write_launcher(script, WRITING)
    words = [*flags(**CHAIN), "--run-dir", folder]
    for life in range(KILLS):
        ranks = chance.choice((0, 1, 2, 2, 3, 4))  # 0: plain python
        how = chance.choice(RANKS if ranks else PLAIN)
        began, resume = last_iteration(folder), ["--resume"] if (folder / "checkpoint.pt").exists() else []
        monkeypatch.setenv("SAVES", str(chance.randint(1, 8)))
        program = script if how == ITSELF else STUB
        threads = ["--threads", chance.randint(1, 2)]
        if ranks:
            process = torchrun(ranks, *words, *resume, *threads, script=program)
        else:
            process = start([sys.executable, program, *words, *resume, *threads])
        early = how != ITSELF and chance.random() < 0.15  # while starting, or at work
        if early:
            time.sleep(chance.uniform(0, 4))
        else:
            until = began + chance.randint(1, 100)
            while last_iteration(folder) < until and process.popen.poll() is None:
                time.sleep(0.005)
        children = children_of(process.pid) if ranks else []
        if how != ITSELF:
            assert process.popen.poll() is None, f"it should be alive to be killed:\n{process.end()[2]}"
            if ranks and not children:  # there is no rank yet
                how = "SIGKILL of torchrun"
            kill(process, children, how, chance)
        asked = time.monotonic()
        code, _, stderr = process.end()
        assert code != 0 and f"{STUB.name}: error: " not in stderr, stderr
        assert early or not traceback_of_ours(stderr), stderr
        wait_until_gone(children)
        took = time.monotonic() - asked
        record_property(how, 1)
        reached = last_iteration(folder)
        print(f"life {life}: {ranks} rank(s), {how}, iterations {began} to {reached}, ended after {took:.1f} s")
        assert reached < CHAIN["iterations"], "the run ended before it was killed 30 times: make it longer"
        if "SIGTERM" in how:
            assert took < 10, stderr
        if how == "SIGKILL of torchrun":  # its ranks have to notice first
            assert took < 12, stderr
    assert main(*words, "--resume") == 0
    assert_same_run(folder, reference(**CHAIN))


@pytest.mark.promise("killed and resumed")
@pytest.mark.slow
def test_torchrun_heals_a_rank_that_dies_three_times(torchrun, reference, tmp_path):
    folder, changes = tmp_path / "run", {"iterations": 600, "evaluate_every": 50, "checkpoint_every": 10}
    process = torchrun(2, *flags(**changes), "--run-dir", folder, options=("--max-restarts=3",))
    dead: set[int] = set()
    for until in (40, 80, 120):
        process.wait_for_iteration(folder, until)
        ranks = children_of(process.pid)
        assert len(ranks) == 2 and not dead & set(ranks), "not those that were started in their place"
        dead |= set(ranks)
        os.kill(ranks[until // 40 % 2], signal.SIGKILL)
        wait_until_gone(ranks)
    code, _, stderr = process.end()
    assert code == 0, stderr
    assert_same_run(folder, reference(**changes))


@pytest.mark.promise("killed and resumed")
@pytest.mark.slow
@pytest.mark.parametrize("rendezvous", ["static", "c10d"])
def test_two_agents_heal_a_rank_that_dies(two_agents, reference, tmp_path, rendezvous):
    folder, changes = tmp_path / "run", {"iterations": 400, "evaluate_every": 50, "checkpoint_every": 10}
    agents = two_agents(2, *flags(**changes), "--run-dir", folder, rendezvous=rendezvous, options=("--max-restarts=3",))
    agents[0].wait_for_iteration(folder, 40)
    os.kill(children_of(agents[1].pid)[0], signal.SIGKILL)
    for agent in agents:
        code, _, stderr = agent.end()
        assert code == 0, stderr
    assert_same_run(folder, reference(**changes))


# --- Preemption at the brief's scale ---------------------------------------------------------------------------------


@pytest.mark.promise("preemption")
@pytest.mark.slow
@pytest.mark.parametrize("how", ["SIGTERM to torchrun", "SIGTERM to all", "SIGUSR1 to one rank"])
def test_preempted_at_the_scale_of_the_brief(torchrun, tmp_path, how, record_property):
    """N = 2000, r = 32, T = 20; an iteration takes several seconds here, and is dropped."""
    folder = tmp_path / "run"
    words = """--preset brief --population-pairs 512 --train-sequences 256 --validation-sequences 64 --test-sequences 64
        --decoder-warmup 8 --decoder-steps 1 --checkpoint-every 1000""".split()
    process = torchrun(2, *words, "--run-dir", folder)
    process.wait_for_iteration(folder, 1)
    time.sleep(1)
    assert last_iteration(folder) == 1, "too fast to be stopped in the middle of an iteration"
    chance, pids = random.Random(0), children_of(process.pid)
    asked = time.monotonic()
    kill(process, pids, how, chance)
    code, _, stderr = process.end()
    wait_until_gone(pids)
    took = time.monotonic() - asked
    record_property("seconds to stop at the brief's scale", round(took, 1))
    assert code != 0 and took < 10, stderr
    assert torch.load(folder / "checkpoint.pt", weights_only=True)["iteration"] == last_iteration(folder) == 1
    assert "stopped after iteration 1; --resume continues" in stderr


@pytest.mark.slow
@pytest.mark.promise("preemption")
@pytest.mark.parametrize("rendezvous", ["one agent", "static", "c10d"])
def test_one_rank_that_is_asked_stops_all_and_torchrun_does_not_start_them_again(
    torchrun, two_agents, tmp_path, rendezvous
):
    """A rank that ends is a fault for torchrun, of which --max-restarts allows some: it has to be told."""
    folder, words = tmp_path / "run", flags(**{**LONG, "iterations": 5000, "checkpoint_every": 1000})
    words, restarts = [*words, "--run-dir", folder], ("--max-restarts=3",)
    if rendezvous == "one agent":
        agents = [torchrun(2, *words, options=restarts)]
    else:
        agents = two_agents(2, *words, rendezvous=rendezvous, options=restarts)
    agents[0].wait_for_iteration(folder, 20)
    ranks = [pid for agent in agents for pid in children_of(agent.pid)]
    os.kill(ranks[-1], signal.SIGUSR1)
    for agent in agents:
        assert agent.end()[0] != 0
    wait_until_gone(ranks)
    reached = last_iteration(folder)
    assert 20 <= reached < 5000 and not (folder / "results.json").exists()
    assert torch.load(folder / "checkpoint.pt", weights_only=True)["iteration"] == reached


# --- A rank that hangs -----------------------------------------------------------------------------------------------


@pytest.mark.promise("a rank that hangs")
@pytest.mark.slow
def test_a_rank_that_hangs_is_named_and_replaced(torchrun, reference, tmp_path):
    folder, changes = tmp_path / "run", {"iterations": 400, "evaluate_every": 50, "checkpoint_every": 10}
    process = torchrun(3, *flags(**changes), "--run-dir", folder, "--rank-timeout", 4, options=("--max-restarts=1",))
    process.wait_for_iteration(folder, 40)
    os.kill(children_of(process.pid)[1], signal.SIGSTOP)  # it holds its connections, and does nothing
    code, _, stderr = process.end()
    assert code == 0, stderr
    for rank in (0, 2):
        assert f"rank {rank}: an exchange with the other ranks failed" in stderr
    assert "rank(s) 1 died or hung" in stderr and "rank(s) 1, " not in stderr and not traceback_of_ours(stderr)
    assert_same_run(folder, reference(**changes))


def test_ranks_that_fail_one_exchange_apart_see_each_other(monkeypatch):
    """The rank that hangs may have answered one of the others, which is then one exchange further."""
    monkeypatch.setattr("common.dist.ROLL_CALL_S", 1.0)
    store, complaints = torch.distributed.HashStore(), {}

    def fail(rank: int) -> None:
        workers = Workers(torch.device("cpu"))
        workers.store, workers.rank, workers.world_size, workers.exchanges = store, rank, 3, 40 + rank
        try:
            workers._roll_call(RuntimeError("timed out"))
        except Fault as fault:
            complaints[rank] = str(fault)

    threads = [threading.Thread(target=fail, args=(rank,)) for rank in (0, 2)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert sorted(complaints) == [0, 2]
    assert all("rank(s) 1 died or hung" in complaint for complaint in complaints.values())


# --- Ranks that come apart -------------------------------------------------------------------------------------------


@pytest.mark.promise("ranks that come apart")
@pytest.mark.slow
@pytest.mark.parametrize("what", ["u_Nr", "decoder.linear.bias"])
def test_a_rank_whose_parameters_differ_is_named(torchrun, reference, main, tmp_path, what):
    """One bit of one number, on one rank."""
    folder, script = tmp_path / "run", tmp_path / "altered.py"
    write_launcher(
        script,
        f"""iterate = stub.Training.iterate
def altered(self):
    line = iterate(self)
    if os.environ["RANK"] == "2" and self.iteration == 23:
        tensor = self.{what}.detach().view(stub.torch.int32).flatten()
        tensor[0] ^= 1
    return line
stub.Training.iterate = altered
""",
    )
    words = [*flags(**{**LONG, "checkpoint_every": 20}), "--run-dir", folder]
    code, _, stderr = torchrun(3, *words, script=script).end()
    assert code != 0
    assert "what rank(s) 2 had trained after iteration 30 differs from what rank 0 had" in stderr
    assert not traceback_of_ours(stderr)
    assert torch.load(folder / "checkpoint.pt", weights_only=True)["iteration"] == 20  # from before it happened
    assert main(*words, "--resume") == 0
    assert_same_run(folder, reference(**{**LONG, "checkpoint_every": 20}))


@pytest.mark.promise("ranks that come apart")
@pytest.mark.slow
def test_a_rank_with_other_code_is_refused(torchrun, tmp_path):
    """As on a node whose copy of the repository is older."""
    other, script = tmp_path / "other", tmp_path / "older.py"
    for path in [*ROOT.glob("common/**/*"), *ROOT.glob("common/*"), STUB]:
        if path.is_file() and "__pycache__" not in path.parts:
            copy = other / path.relative_to(ROOT)
            copy.parent.mkdir(parents=True, exist_ok=True)
            copy.write_bytes(path.read_bytes())
    with open(other / "common" / "es.py", "a") as file:
        file.write("\n# an older version\n")
    script.write_text(f"""
import os, runpy, sys
root = {str(other)!r} if os.environ["RANK"] == "1" else {str(ROOT)!r}
sys.path.insert(0, root)
sys.argv[0] = os.path.join(root, {str(STUB.relative_to(ROOT))!r})
runpy.run_path(sys.argv[0], run_name="__main__")
""")
    code, _, stderr = torchrun(2, *flags(), "--run-dir", tmp_path / "run", script=script).end()
    assert code != 0
    assert "rank 1 does not run the same program: code of common is" in stderr
    assert not traceback_of_ours(stderr) and not (tmp_path / "run").exists()


# --- Members that fail -----------------------------------------------------------------------------------------------

# By construction, in about every second tile: one member returns no number, one an infinite one, one leaves the guard.
FAULTY = """errors = stub.Rollout.errors
def faulty(self, adapter, *arguments, **options):
    result = errors(self, adapter, *arguments, **options)
    columns = arguments[-1]
    error_TPSB = result.error_TC.view(-1, *columns)
    if hasattr(adapter, "b_Pr") and adapter.b_Pr[0, 0] > 0:  # a tile of members, by its noise one of two
        error_TPSB[0, 0, 0, 0] = float("nan")
        error_TPSB[1, -1, 1, 1] = float("inf")
        result.failed_C.view(columns)[0, 1, 2] = True
        result.failed_C |= ~result.error_TC.isfinite().all(dim=0)
    return result
stub.Rollout.errors = faulty
"""


@pytest.mark.promise("guardrails")
@pytest.mark.slow
@pytest.mark.parametrize("failure", ["remove", "penalise"])
def test_members_that_fail_are_the_same_on_any_number_of_ranks(start, torchrun, tmp_path, failure):
    script = tmp_path / "faulty.py"
    write_launcher(script, FAULTY)
    words = flags(failure=failure, iterations=20)
    plain = start([sys.executable, script, *words, "--run-dir", tmp_path / "plain"])
    code, _, stderr = plain.end()
    assert code == 0, stderr
    counted = [line["exploded_fraction"] for line in metrics(tmp_path / "plain")[1:]]
    assert 0 < sum(counted) / len(counted) < 1 and len(set(counted)) > 1
    for count in (2, 3):
        code, _, stderr = torchrun(count, *words, "--run-dir", tmp_path / str(count), script=script).end()
        assert code == 0, stderr
        assert_same_run(tmp_path / str(count), tmp_path / "plain")


@pytest.mark.promise("guardrails")
def test_when_all_members_fail_sigma_shrinks_until_they_live(main, tmp_path):
    """The guard lies where the noise decides: at first all leave it."""
    code = main(*flags(sigma=64, guard=0.4, iterations=14, learning_rate=1e-9), "--run-dir", tmp_path / "run")
    assert code == 0
    lines = metrics(tmp_path / "run")[1:]
    failed = [line["exploded_fraction"] == 1 for line in lines]
    assert failed[0] and not failed[-1]
    shrunk = failed.index(False)
    assert [line["sigma"] for line in lines[: shrunk + 1]] == [64 / 2**i for i in range(shrunk + 1)]


@pytest.mark.promise("guardrails")
def test_a_run_of_which_all_members_fail_is_given_up(command, reference, tmp_path):
    folder, words = tmp_path / "run", flags(guard=1e-3, iterations=50, checkpoint_every=100)
    code, stdout, stderr = command(*words, "--run-dir", folder).end()
    assert code == 1 and "Traceback" not in stderr
    assert "given up after iteration 10: 10 iterations in a row without a finite training loss" in stderr
    assert "--sigma" in stderr and str(folder) in stderr
    lines = metrics(folder)[1:]
    assert [line["sigma"] for line in lines] == [0.01 / 2**i for i in range(10)]
    state = torch.load(folder / "checkpoint.pt", weights_only=True)
    assert state["iteration"] == 10 and state["u_Nr"].isfinite().all()
    code, _, stderr = command(*words, "--run-dir", folder, "--resume").end()
    assert code == 1 and "given up after iteration 11: 11 iterations in a row" in stderr


@pytest.mark.promise("guardrails")
@pytest.mark.slow
def test_five_thousand_iterations_with_faults_take_no_more_of_anything(torchrun, tmp_path, record_property):
    """Memory, open files, threads and processes of both ranks, after 500 and after 5,000 iterations."""
    folder, script = tmp_path / "run", tmp_path / "faulty.py"
    write_launcher(script, FAULTY)
    words = flags(iterations=5000, evaluate_every=20, checkpoint_every=10)
    process = torchrun(2, *words, "--run-dir", folder, script=script)

    def usage() -> list[dict]:
        assert len(children_of(process.pid)) == 2
        return [usage_of(pid) for pid in children_of(process.pid)]

    process.wait_for_iteration(folder, 500)
    before, most = usage(), [0, 0]
    while last_iteration(folder) < 4950:
        assert process.popen.poll() is None, process.end()[2]
        most = [max(a, b["MB"]) for a, b in zip(most, usage())]
        time.sleep(0.5)
    after = usage()
    code, _, stderr = process.end()
    assert code == 0, stderr
    print("after 500:", before, "after 4,950:", after)
    record_property("soak: MB after 500 iterations", [x["MB"] for x in before])
    record_property("soak: MB after 4,950 iterations", [x["MB"] for x in after])
    for early, late, highest in zip(before, after, most):
        assert late["files"] <= early["files"] and late["threads"] <= early["threads"]
        assert late["children"] == early["children"] == 0
        assert highest - early["MB"] < 8  # metrics.jsonl grows on the disk; a list of all lines would take as much
    lines = metrics(folder)[1:]
    assert len(lines) == 5000
    failed = [line["exploded_fraction"] for line in lines]
    record_property("soak: members that failed, %", round(100 * sum(failed) / len(failed), 1))
    assert 0 < min(sum(failed), 1)


def usage_of(pid: int) -> dict:
    status = dict(line.split(":", 1) for line in open(f"/proc/{pid}/status").read().splitlines())
    return {
        "MB": int(status["VmRSS"].split()[0]) / 1000,
        "threads": int(status["Threads"]),
        "files": len(os.listdir(f"/proc/{pid}/fd")),
        "children": len([child for child in children_of(pid) if parent_of(child) is not None]),
    }
