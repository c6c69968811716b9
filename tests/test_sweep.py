"""Sweeps: all combinations, each once; what is stopped, killed or fails; against a made-up experiment, and one real."""

import json
import os
import signal
import subprocess
import sys
import time

import pytest
from conftest import PATIENCE_S, ROOT
from made_up import TRAINER

from common import sweep
from common.errors import BadInput


@pytest.fixture
def root(tmp_path):
    place = tmp_path / "root" / "made-up"
    place.mkdir(parents=True)
    (place / "made_up.py").write_text(TRAINER)
    return tmp_path / "root"


@pytest.fixture
def call(root, tmp_path, monkeypatch):
    """call("--vary", "rank=4", …) → (exit code, sweep.json)."""
    monkeypatch.setattr(sweep, "gpus", lambda: 0)

    def run(*words, more=()):
        folder = tmp_path / "sweep"
        code = sweep.main(["made-up", "--root", str(root), "--folder", str(folder), *words, "--", *more])
        return code, json.loads((folder / "sweep.json").read_text())

    return run


def starts(tmp_path, name) -> list[dict]:
    return [json.loads(line) for line in (tmp_path / "sweep" / name / "starts").read_text().splitlines()]


def test_all_combinations_stand_in_one_file(call):
    code, content = call("--vary", "rank=4,8", "--vary", "seed=0,1,2", more=["--what", "something"])
    assert code == 0 and not content["failed"]
    assert [row["values"] for row in content["rows"]] == [
        {"rank": rank, "seed": seed} for rank in ("4", "8") for seed in ("0", "1", "2")
    ]
    assert content["varied"] == {"rank": ["4", "8"], "seed": ["0", "1", "2"]}
    assert content["config"] == {"what": "something", "device": "auto"}  # what all have in common
    row = content["rows"][3]
    assert row["config"] == {"rank": 8, "seed": 0} and row["test_mse"] == 1 / 8 and row["source"] == {"commit": "abc"}
    assert row["curve"] == [[0, 0.0, 0.92], [20, 1.0, 0.92]]  # evaluations alone
    assert row["singular_values"] == list(range(8))


def test_what_is_finished_is_not_run_again(call, tmp_path):
    call("--vary", "rank=4,8")
    _, content = call("--vary", "rank=16,4")
    assert [row["values"]["rank"] for row in content["rows"]] == ["16", "4"]
    assert len(starts(tmp_path, "rank=4")) == len(starts(tmp_path, "rank=16")) == 1


def test_a_run_that_fails_is_named_and_the_others_go_on(call, tmp_path, capsys):
    code, content = call("--vary", "rank=4,8,16", more=["--what", "fail"])
    assert code == 1
    assert [row["values"]["rank"] for row in content["rows"]] == ["4", "16"]
    assert content["failed"] == [{"values": {"rank": "8"}, "said": "it broke"}]
    assert "rank=8: exit code 1: it broke" in capsys.readouterr().err
    code, content = call("--vary", "rank=4,8,16", more=["--what", "fail"])  # is tried again, from its checkpoint
    assert code == 1 and [line["resume"] for line in starts(tmp_path, "rank=8")] == [False, True]


def test_runs_go_side_by_side_and_share_the_cores(call, tmp_path):
    """Each waits for the other to begin."""
    code, _ = call("--vary", "rank=4,8", "--at-once", "2", more=["--what", "meet"])
    assert code == 0
    share = str(max(1, len(os.sched_getaffinity(0)) // 2))
    assert [starts(tmp_path, f"rank={rank}")[0]["threads"] for rank in (4, 8)] == [share, share]


@pytest.mark.parametrize(("visible", "expected"), [(None, {"0", "1"}), ("5,3", {"5", "3"})])
def test_each_gpu_has_one_run_at_a_time(call, tmp_path, monkeypatch, visible, expected):
    monkeypatch.setattr(sweep, "gpus", lambda: 2)
    monkeypatch.delenv("CUDA_VISIBLE_DEVICES", raising=False)
    if visible:
        monkeypatch.setenv("CUDA_VISIBLE_DEVICES", visible)
    code, _ = call("--vary", "rank=4,8", more=["--what", "meet"])
    assert code == 0
    assert {starts(tmp_path, f"rank={rank}")[0]["gpu"] for rank in (4, 8)} == expected


@pytest.mark.parametrize("number", [signal.SIGTERM, signal.SIGINT, signal.SIGKILL])
def test_a_sweep_that_is_stopped_goes_on(call, root, tmp_path, number):
    folder = tmp_path / "sweep"
    command = [sys.executable, "-m", "common.sweep", "made-up", "--root", root, "--folder", folder, "--vary", "rank=4,8", "--", "--what", "wait"]  # fmt: skip
    environment = {**os.environ, "PYTHONPATH": str(ROOT), "CUDA_VISIBLE_DEVICES": ""}
    process = subprocess.Popen(command, env=environment, stderr=subprocess.PIPE, text=True, start_new_session=True)
    deadline = time.monotonic() + PATIENCE_S
    while not (folder / "rank=4" / "starts").exists():
        assert time.monotonic() < deadline and process.poll() is None
        time.sleep(0.05)
    time.sleep(0.2)  # its handler
    process.send_signal(number)
    _, said = process.communicate(timeout=PATIENCE_S)
    if number == signal.SIGKILL:
        assert process.returncode == -signal.SIGKILL
    else:
        assert process.returncode == 128 + number and "the same command goes on" in said
        assert not (folder / "rank=8").exists()
    (folder / "go").touch()
    code, content = call("--vary", "rank=4,8", more=["--what", "wait"])
    assert code == 0 and len(content["rows"]) == 2
    assert [line["resume"] for line in starts(tmp_path, "rank=4")] == [False, True]


@pytest.mark.parametrize(
    ("words", "said"),
    [
        (["--vary", "rank"], "--vary: must be NAME=VALUE"),
        (["--vary", "rank=4,,8"], "--vary: must be NAME=VALUE"),
        (["--vary", "=4"], "--vary: must be NAME=VALUE"),
        (["--vary", "rank=4", "--vary", "rank=8"], "--vary rank is given twice"),
        (["--vary", "rank=4,99"], "--rank must be at most 64, not 99"),
        (["--vary", "colour=red"], "--colour=red"),
        (["--vary", "rank=4", "--at-once", "-1"], "--at-once must be a whole number"),
        (["--vary", "rank=4", "--", "--rank", "8"], "--rank behind --"),
        (["--vary", "rank=4", "--", "--run-dir=x"], "--run-dir behind --"),
        (["--vary", "rank=" + ",".join(map(str, range(1, 200))), "--vary", "seed=" + ",".join(map(str, range(200)))], "at most 10,000"),
    ],
    ids=lambda value: value if isinstance(value, str) else "",
)  # fmt: skip
def test_bad_input_is_refused_before_anything_runs(root, tmp_path, words, said):
    with pytest.raises(BadInput) as refusal:
        sweep.main(["made-up", "--root", str(root), "--folder", str(tmp_path / "sweep"), *words])
    assert said in str(refusal.value)
    assert not (tmp_path / "sweep").exists()


def test_an_experiment_that_is_not_there(root, tmp_path):
    with pytest.raises(BadInput, match="no such stub; there are made-up"):
        sweep.main(["other", "--root", str(root), "--folder", str(tmp_path), "--vary", "rank=4"])


def test_a_folder_with_other_runs_is_refused(call, tmp_path):
    call("--vary", "rank=4")
    with pytest.raises(BadInput, match="holds a run with another what; name another folder"):
        call("--vary", "rank=4", more=["--what", "else"])
    (tmp_path / "sweep" / "rank=4" / "results.json").write_text("{")
    with pytest.raises(BadInput, match="results.json is damaged"):
        call("--vary", "rank=4")


def test_a_dry_run_prints_commands_that_a_shell_reads(call, root, tmp_path, capsys):
    call("--vary", "rank=4")
    capsys.readouterr()
    words = ["--vary", "rank=4,8", "--dry-run", "--", "--what", "two words"]
    sweep.main(["made-up", "--root", str(root), "--folder", str(tmp_path / "other"), *words])
    first, second = capsys.readouterr().out.splitlines()
    assert first == f"python made_up.py --preset laptop --rank=4 --what 'two words' --run-dir {tmp_path}/other/rank=4"
    assert "rank=8" in second and not (tmp_path / "other").exists()
    sweep.main(["made-up", "--root", str(root), "--folder", str(tmp_path / "sweep"), "--vary", "rank=4", "--dry-run"])
    assert capsys.readouterr().out.endswith("# finished\n")


def test_of_a_real_experiment(tmp_path):
    words = ["--vary", "rank=2,3", "--", "--hidden-size", "40", "--iterations", "2", "--in-degree", "4"]
    words = ["moving-mnist-bptt-baseline", "--folder", str(tmp_path / "sweep"), "--preset", "smoke", *words]
    assert sweep.main(words) == 0
    content = json.loads((tmp_path / "sweep" / "sweep.json").read_text())
    for rank, row in zip((2, 3), content["rows"], strict=True):
        result = json.loads((tmp_path / "sweep" / f"rank={rank}" / "results.json").read_text())
        assert row["theta_sha256"] == result["theta_sha256"] and row["ridge_test_mse"] == result["ridge_test_mse"]
        assert len(row["singular_values"]) == rank and row["curve"][-1][2] == pytest.approx(result["validation_mse"])
        assert row["config"]["rank"] == rank and "hidden_size" in content["config"]
