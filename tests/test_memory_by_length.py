"""Memory against T: bytes are counted by the rule that is written down, and only backpropagation keeps anything."""

import importlib
import json
import subprocess
import sys
from pathlib import Path

import pytest
import torch
from torch.nn import functional

from common.errors import BadInput

STUB = Path(__file__).resolve().parent.parent / "moving-mnist-bptt-baseline"
SIZES = ["--hidden-size", "24", "--in-degree", "4", "--rank", "3", "--batch-size", "5"]
N, B, E = 24, 5, 128


@pytest.fixture(scope="module")
def script():
    with pytest.MonkeyPatch.context() as patch:
        patch.syspath_prepend(str(STUB))
        yield importlib.import_module("measure_memory_by_length")


def moved(script, step) -> dict:
    with script.BytesMoved() as counter:
        step()
    return dict(counter.by_operator)


# --- the counting rule -----------------------------------------------------------------------------------------------


def test_an_operator_reads_its_inputs_and_writes_its_outputs_once(script):
    a_34, b_45 = torch.ones(3, 4), torch.ones(4, 5)
    assert moved(script, lambda: a_34 @ b_45) == {"mm": 4 * (12 + 20 + 15)}
    assert moved(script, lambda: a_34.double()) == {"_to_copy": 12 * (4 + 8)}


def test_views_and_allocations_are_free_and_an_expanded_dimension_is_read_once(script):
    a_34 = torch.ones(3, 4)
    assert moved(script, lambda: (a_34.T, a_34[1:].unsqueeze(0), a_34.reshape(12), torch.empty(9))) == {}
    product = moved(script, lambda: torch.ones(3, 4) @ torch.ones(2, 4, 5))  # bmm and a view that hides as an operator
    assert product == {"ones": 4 * (12 + 40), "bmm": 4 * (12 + 40 + 30)}
    row_54 = torch.ones(1, 4).expand(5, 4)
    assert moved(script, lambda: row_54.clone()) == {"clone": 4 * (4 + 20)}


def test_in_place_reads_and_writes_its_target_unless_it_only_writes(script):
    a_34, b_34 = torch.ones(3, 4), torch.ones(3, 4)
    assert moved(script, lambda: a_34.add_(b_34)) == {"add_": 4 * (12 + 12 + 12)}
    assert moved(script, lambda: a_34.copy_(b_34)) == {"copy_": 4 * (12 + 12)}
    assert moved(script, lambda: a_34.zero_()) == {"zero_": 4 * 12}
    assert moved(script, lambda: torch.tanh(b_34, out=a_34)) == {"tanh": 4 * (12 + 12)}


def test_embedding_bag_gathers_a_row_for_each_entry(script):
    table_74, index_23, value_23 = torch.ones(7, 4), torch.zeros(2, 3, dtype=torch.int64), torch.ones(2, 3)
    counted = moved(
        script, lambda: functional.embedding_bag(index_23, table_74, mode="sum", per_sample_weights=value_23)
    )
    rows, entries, bags, output = 6 * 4 * 4, 6 * (8 + 4), 2 * 8, 2 * 4 * 4
    sizes_of_bags = 2 * 2 * 8  # two more outputs of the operator, one number a bag each
    assert counted["_embedding_bag_forward_only"] == rows + entries + bags + output + sizes_of_bags


def test_the_backward_of_a_hand_written_function_is_counted(script):
    class Double(torch.autograd.Function):
        @staticmethod
        def forward(context, x):
            return x.exp()

        @staticmethod
        def backward(context, grad):
            return grad.sin()

    x_34 = torch.ones(3, 4, requires_grad=True)
    y_34 = Double.apply(x_34)
    counted = moved(script, lambda: torch.autograd.grad(y_34, x_34, torch.ones(3, 4)))
    assert counted["sin"] == 4 * (12 + 12)
    assert moved(script, lambda: Double.apply(x_34)) == {"exp": 4 * (12 + 12)}


# --- what is measured ------------------------------------------------------------------------------------------------


@pytest.fixture(scope="module")
def rows(script):
    """{(method, T): row} of a tiny problem, in this process: peaks are not looked at."""
    config = script.Config(hidden_size=N, in_degree=4, rank=3, batch_size=B)
    threads = torch.get_num_threads()
    torch.set_num_threads(1)
    cpu = torch.device("cpu")
    measured = {(m, t): script.measure(m, config, t, cpu) for m in script.METHODS for t in (4, 8, 12)}
    torch.set_num_threads(threads)
    return measured


def test_backpropagation_keeps_every_step_and_a_forward_pass_nothing(script, rows):
    kept = [rows["bptt", steps]["kept_bytes"] for steps in (4, 8, 12)]
    assert kept[2] - kept[1] == kept[1] - kept[0] > 0, "linear in T"
    a_step = (kept[1] - kept[0]) // 4
    assert a_step >= 4 * B * (2 * N + E), "h, y and the error of the prediction, at least"
    assert not any(
        rows[method, steps]["kept_bytes"] for method in script.METHODS if method != "bptt" for steps in (4, 8, 12)
    )


def test_bytes_moved_grow_linearly_and_backpropagation_moves_more(rows):
    for method in ("bptt", "forward", "streamed", "pair"):
        first, second, third = (rows[method, steps]["moved_bytes"] for steps in (4, 8, 12))
        assert third - second == second - first > 0, method
        assert sum(rows[method, 8]["moved_bytes_by_operator"].values()) == second
    assert (
        rows["bptt", 8]["moved_bytes"]
        > 2 * rows["forward", 8]["moved_bytes"] - rows["forward", 8]["moved_bytes_of_drive"]
    )
    assert rows["forward", 8]["moved_bytes"] < rows["pair", 8]["moved_bytes"] < 2.5 * rows["forward", 8]["moved_bytes"]


def test_streamed_and_hoisted_input_give_the_same_errors(script):
    config = script.Config(hidden_size=N, in_degree=4, rank=3, batch_size=B)
    rollout = script.Rollout(script.draw_reservoir(N, 4, 0), 0.5, 1.0)
    minibatch, seen = script.Minibatch(config, rollout, 6), []
    rollout.errors = lambda *arguments: seen.append(script.Rollout.errors(rollout, *arguments).error_TC)
    minibatch.forward()
    minibatch.streamed()
    torch.testing.assert_close(*seen)


def test_the_file_says_what_was_measured_and_where(script, rows, tmp_path, monkeypatch, capsys):
    monkeypatch.setattr(script, "measure_apart", lambda method, steps, arguments: rows[method, steps])
    out = tmp_path / "measurements" / "memory.json"
    threads = torch.get_num_threads()
    assert script.main([*SIZES, "--lengths", "4,8", "--device", "cpu", "--out", str(out)]) == 0
    torch.set_num_threads(threads)
    content = json.loads(out.read_text())
    assert content["sizes"] == {"hidden_size": N, "in_degree": 4, "rank": 3, "batch_size": B}
    assert len(content["rows"]) == 10 and {"environment", "source"} <= content.keys()
    assert content["environment"]["threads"] == 1
    assert len(capsys.readouterr().out.splitlines()) == 11


# --- the command line ------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("flag", "value"),
    [
        ("--lengths", "20,0"),
        ("--lengths", "20;50"),
        ("--hidden-size", "1"),
        ("--rank", "3000"),
        ("--in-degree", "3000"),
        ("--batch-size", "0"),
        ("--only", "rtrl"),
        ("--colour", "red"),
    ],
)
def test_bad_flags_are_refused_by_name(script, flag, value):
    with pytest.raises(BadInput, match=flag):
        script.parse_arguments([flag, value])


def test_a_bad_flag_is_one_line_and_exit_code_two(tmp_path):
    command = [sys.executable, STUB / "measure_memory_by_length.py", "--rank", "0", "--out", tmp_path / "a.json"]
    done = subprocess.run(command, capture_output=True, text=True)
    assert done.returncode == 2 and done.stdout == ""
    assert done.stderr.count("\n") == 1 and "--rank" in done.stderr
    assert not list(tmp_path.iterdir())
