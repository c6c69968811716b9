"""Three benchmarks at sizes where nothing is slow: what they write and what they count. No test looks at a time."""

import importlib
import json
import math
import os
import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest
import torch

from common.dist import Workers
from common.errors import BadInput

BENCHMARKS = Path(__file__).resolve().parent.parent / "benchmarks"
CPU = torch.device("cpu")


def load(name: str):
    with pytest.MonkeyPatch.context() as patch:
        patch.syspath_prepend(str(BENCHMARKS))
        return importlib.import_module(name)


@pytest.fixture(autouse=True)
def threads():
    """Workers set torch's threads in this process; that is undone."""
    before = torch.get_num_threads()
    yield
    torch.set_num_threads(before)


@pytest.fixture(scope="module")
def results(tmp_path_factory):
    """results(name) → what `--quick` writes; each benchmark runs once."""
    found = {}

    def run(name: str) -> dict:
        if name not in found:
            path = tmp_path_factory.mktemp(name) / "out.json"
            assert load(name).main(["--quick", "--output", str(path)]) == 0
            report = json.loads(path.read_text())
            assert report["benchmark"] == name and report["quick"] is True and report["rounds"] == 2
            assert {"cpu", "cores"} <= report["hardware"].keys() and "commit" in report["source"]
            found[name] = report["results"]
        return found[name]

    return run


def assert_summary(found: dict, least: float = 0.0) -> None:
    low, high = found["quartiles"]
    assert least < low <= found["median"] <= high


# --- One step of the reservoir ---------------------------------------------------------------------------------------


def test_reservoir_step_compares_with_the_fastest_setting(results):
    pytest.importorskip("reservoirpy")
    step, found = load("reservoir_step"), results("reservoir_step")
    assert len(found["batches"]) == 2
    for row in found["batches"]:
        times = row["microseconds_a_sequence_step"]
        assert sum(row["tile_columns"]) == row["batch"]
        assert max(row["largest_difference"].values()) < step.AGREEMENT
        assert {"ours", "with adapter", "private step", row["fastest_setting"]} <= times.keys()
        tried = [name for name in step.SETTINGS if name in times]
        assert row["fastest_setting"] == min(tried, key=lambda name: times[name]["median"])
        assert row["fastest_over_ours"] == row["over_ours"][row["fastest_setting"]]
        for found_summary in times.values():
            assert_summary(found_summary)
    assert set(step.SETTINGS) <= found["batches"][0]["over_ours"].keys(), "the smallest batch tries all of them"


def test_other_states_are_refused():
    step = load("reservoir_step")
    states = torch.full((2, 3, 4), 0.5)
    assert step.check({"a": lambda: states, "b": lambda: states + 1e-6}, "a")["b"] < step.AGREEMENT
    with pytest.raises(RuntimeError, match="other states than those of a: b"):
        step.check({"a": lambda: states, "b": lambda: states + 1e-4}, "a")
    with pytest.raises(RuntimeError, match="other states"):
        step.check({"a": lambda: states, "b": lambda: states * math.nan}, "a")
    with pytest.raises(RuntimeError, match="asleep or saturated"):
        step.check({"a": lambda: states * 0}, "a")


# --- Growth ----------------------------------------------------------------------------------------------------------


def test_slopes_are_exponents():
    sizes = np.array([2.0, 4.0, 16.0])
    seconds_SR = np.stack((3 * sizes, 0.1 * sizes**0.5, np.full(3, 7.0)), axis=1)
    np.testing.assert_allclose(load("growth").slopes(sizes, seconds_SR), [1.0, 0.5, 0.0], atol=1e-12)


def test_an_iteration_has_the_same_bits_on_any_number_of_threads():
    growth = load("growth")
    problem = growth.Problem(growth.QUICK)
    estimates = []
    for threads in (1, 3):
        with Workers(CPU, threads=threads) as workers:
            losses_K2, failed_K2 = growth.population(problem, 1, workers)
            estimates.append(growth.iteration(problem, 1, workers))
        assert losses_K2.shape == (growth.QUICK.pairs, 2) and not failed_K2.any()
        assert len(losses_K2.unique()) == losses_K2.numel(), "every member has a loss of its own"
    assert torch.equal(estimates[0].grad_u_Nr, estimates[1].grad_u_Nr)
    assert torch.equal(estimates[0].grad_v_Nr, estimates[1].grad_v_Nr)


def test_growth_has_a_slope_and_a_row_for_every_size(results):
    growth, found = load("growth"), results("growth")
    assert found["time"].keys() == {"pairs", "batch", "steps", "size", "rank"}
    for axis, part in found["time"].items():
        assert [row["value"] for row in part["rows"]] == list(growth.QUICK_AXES[axis])
        assert_summary(part["slope"], least=-math.inf)
        for row in part["rows"]:
            assert_summary(row["seconds"])
            batch = row["value"] if axis == "batch" else growth.QUICK.batch
            pairs = row["value"] if axis == "pairs" else growth.QUICK.pairs
            assert row["tiles"] * row["tile_columns"] >= 2 * pairs * batch


def test_growth_counts_what_has_to_grow_with_length(results):
    growth, memory = load("growth"), results("growth")["memory"]
    quick = growth.QUICK
    kinds = [row["what"] for row in memory["rows"]]
    assert kinds.count("rollout") == kinds.count("iteration") == 3  # the starting point is on both axes
    assert kinds.count("estimate") == len(growth.QUICK_ESTIMATE_PAIRS)
    for row in memory["rows"]:
        drive = 4 * row["steps"] * quick.size * quick.batch
        if row["what"] == "estimate":
            assert row["drive_bytes"] == row["input_bytes"] == row["errors_bytes"] == 0
        else:
            assert row["drive_bytes"] == drive
            assert row["input_bytes"] == 4 * (row["steps"] + 1) * 128 * quick.batch
        inside = drive if row["what"] == "iteration" else 0
        assert row["peak_without_drive_bytes"] == row["peak_bytes"] - inside
    assert memory["noise_bytes_a_pair"] == 8 * (quick.size + quick.rank)


# --- Ranks -----------------------------------------------------------------------------------------------------------


def test_bytes_of_a_gather():
    """The brief's K = 32 in tiles of two pairs: 16 tiles, eight numbers each, after a header of three."""
    ranks = load("ranks")
    assert ranks.gathered_bytes(32, 2, 8) == {
        "useful": 1024, "sent_by_a_rank": 152, "received_by_a_rank": 1064, "held_by_a_rank": 1216
    }  # fmt: skip
    padded = ranks.gathered_bytes(9, 2, 3)  # five tiles, two on the busiest rank, the last half empty
    assert padded == {"useful": 288, "sent_by_a_rank": 152, "received_by_a_rank": 304, "held_by_a_rank": 456}


def test_ranks_are_measured_under_torchrun(results):
    found = results("ranks")
    (row,) = found["ranks"]
    assert row["ranks"] == 2 and row["threads_a_rank"] >= 1
    assert row["bytes_counted"] == {name: row["bytes"][name] for name in row["bytes_counted"]}
    assert row["bytes"]["useful"] == 32 * found["pairs"]
    for name in ("waiting_s", "collective_alone_s", "checksum_s", "barrier_s"):
        assert_summary(row[name]["mean"])
        assert row[name]["least"]["median"] <= row[name]["mean"]["median"]
    for name in ("waiting_share", "collective_alone_share"):
        assert 0 < row[name]["median"] < 1
    assert [gather["pairs"] for gather in row["collective_alone_by_pairs"]] == [8, 32]
    for part in found["redundant"]["rows"]:
        shares = [part["share_of_an_iteration_by_ranks"][count]["median"] for count in ("1", "8", "64")]
        assert 0 < shares[0] < shares[1] < shares[2] < 1


def test_the_model_is_given_with_its_assumptions(results):
    ranks, model = load("ranks"), results("ranks")["model"]
    assert set(model["rows"]) == set(model["assumptions"]["machines"]) == set(ranks.MACHINES)
    assert model["assumptions"]["update_bytes_a_chunk"] > 0 and model["assumptions"]["update_calls_a_chunk"] > 0
    for name, machine in ranks.MACHINES.items():
        rows = model["rows"][name]
        assert len(rows) == len(ranks.POPULATIONS) * len(ranks.THROUGHPUTS)
        for row in rows:
            least, most = row["communication_share"]
            assert 0 < least < most < 1
            assert 0 < min(row["speed_up"]) <= max(row["speed_up"]) <= machine.ranks
            assert row["iteration_s"][0] == pytest.approx(
                row["rollout_s"] + row["redundant_s"] + row["communication_s"][0]
            )
        for throughput in ranks.THROUGHPUTS:
            shares = [row["communication_share"][1] for row in rows if row["throughput"] == throughput]
            # Up to K = 512 some GPUs of 64 have no work, and more pairs cost nothing.
            assert shares[1:] == sorted(shares[1:], reverse=True) and shares[-1] < shares[0] / 5
    brief = model["rows"]["64 GPUs, 8 nodes"][0]
    assert (brief["pairs"], brief["tiles"], brief["idle_ranks"]) == (32, 8, 56)


# --- The command line ------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("name", "words", "complaint"),
    [
        ("growth", ["--rounds", "0"], "--rounds"),
        ("growth", ["--measure", "{"], "--measure"),
        ("ranks", ["--throughputs", "1e6,0"], "--throughputs"),
        ("ranks", ["--throughputs", "fast"], "--throughputs"),
        ("reservoir_step", ["--colour", "red"], "--colour"),
    ],
)
def test_bad_flags_are_refused_by_name(name, words, complaint, tmp_path):
    with pytest.raises(BadInput, match=complaint):
        load(name).main([*words, "--output", str(tmp_path / "out.json")])


def test_ranks_does_not_run_under_torchrun(monkeypatch, tmp_path):
    monkeypatch.setenv("RANK", "0")
    with pytest.raises(BadInput, match="start it with python"):
        load("ranks").main(["--quick", "--output", str(tmp_path / "out.json")])


@pytest.mark.parametrize(
    ("script", "arguments", "says"),
    [
        ("ranks", ["--rounds", "0"], "--rounds must be a whole number ≥ 1"),
        ("efficiency", ["--threads", "-3"], "--threads must be a whole number ≥ 0"),
        ("roofline", ["--kernel", "fused"], "--kernel fused needs a CUDA device"),
        ("roofline", ["--dtype", "float64"], "--dtype"),
    ],
)
def test_bad_input_gets_one_line_and_code_2(script, arguments, says, tmp_path):
    if "fused" in arguments and torch.cuda.is_available():
        pytest.skip("fused can run here")
    command = [sys.executable, str(BENCHMARKS / f"{script}.py"), *arguments, "--output", str(tmp_path / "out.json")]
    environment = {**os.environ, "PYTHONPATH": str(BENCHMARKS.parent)}
    done = subprocess.run(command, cwd=tmp_path, env=environment, capture_output=True, text=True)
    assert done.returncode == 2 and len(done.stderr.splitlines()) == 1 and says in done.stderr
    assert done.stdout == "" and not list(tmp_path.iterdir())
