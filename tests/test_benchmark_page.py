"""The page of the benchmarks is what their committed results say; one command runs them all. Nothing is measured here."""

import importlib
import json
from pathlib import Path

import pytest

from common.errors import BadInput

BENCHMARKS = Path(__file__).resolve().parent.parent / "benchmarks"


@pytest.fixture(scope="module", autouse=True)
def importable():
    """The benchmarks import each other by their plain names."""
    with pytest.MonkeyPatch.context() as patch:
        patch.syspath_prepend(str(BENCHMARKS))
        yield


@pytest.fixture(scope="module")
def page(importable):
    return importlib.import_module("page")


@pytest.fixture(scope="module")
def run(importable):
    return importlib.import_module("run")


# --- Made-up results -------------------------------------------------------------------------------------------------


def around(median: float, by: float = 0.05) -> dict:
    return {"median": median, "quartiles": [median * (1 - by), median * (1 + by)]}


def efficiency(rank1: float = 0.95, device: str = "cpu") -> dict:
    kinds = {"shared": ("rank1", "gaussian", "states"), "own": ("rank1", "states", "projected")}
    parts = {
        data: {
            "pairs": 32,
            "batch": 32,
            "tile_columns": 128,
            "efficiency": {kind: around(rank1 if kind == "rank1" else 0.5, 0.01) for kind in of},
            "rollouts_per_s": {kind: around(4000) for kind in ("inference", *of)},
        }
        for data, of in kinds.items()
    }
    return {"device": device, "dtype": "float32", "kernel": "torch", "threads": 2, **parts}


def iteration(data: float = 0.04) -> dict:
    parts = {"data": data, "rollout": 0.9, "rest": 0.1 - data}
    found = {part: {"share": around(of), "seconds": around(of)} for part, of in parts.items()}
    return {"presets": {"laptop": {"iteration_s": around(0.2), "parts": found}}}


def peer_loop() -> dict:
    names = ("straightforward", "in groups", "ours, gaussian", "ours, rank1")
    return {
        "rollouts_per_s": {name: around(2000) for name in names},
        "times_ours_rank1": {name: around(1.8) for name in names[:3]},
        "times_ours_gaussian": {name: around(1.6) for name in (*names[:2], names[3])},
    }


def es_machinery(slowest: float = 30.0) -> dict:
    peers = {"ours_gaussian": 5.0, "evotorch_pgpe": 12.0, "torch_randn": slowest}

    def row(members: int, **more: float) -> dict:
        ratios = {**peers, **more}
        seconds = {name: around(ratio * 1e-3) for name, ratio in {"ours_rank1": 1.0, **ratios}.items()}
        return {
            "members": members,
            "seconds": seconds,
            "over_ours_rank1": {name: around(ratio) for name, ratio in ratios.items()},
        }

    def memory(members: int) -> dict:
        peak = {"ours_rank1": 10**6, **{name: int(ratio * 1e6) for name, ratio in peers.items()}}
        return {"members": members, "peak_bytes": peak, "over_ours_rank1": peers}

    return {
        "peers": {"evotorch": "0.6.1"},
        "left_out": {"evox_open_es": "not installed: evox"},
        "threads": 2,
        "sizes": {"dimensions": 128_000},
        "machinery": [row(64), row(1024)],
        "memory": [memory(64), memory(1024)],
        "iteration": {
            "vmap": "rollout alone",
            "largest_relative_difference_of_losses": 3e-6,
            **row(64, vmap_16_at_a_time=40.0, vmap_2_at_a_time=10.2),
        },
    }


def roofline() -> dict:
    part = {"in_the_loop_us": around(2.0), "alone_us": 1.5, "ceiling_us": 1.0, "operations": 100, "bytes": 200.0}
    return {
        "dtype": "float32",
        "kernel": "torch",
        "ceilings": {"operations_per_s": 1e11, "memory_bytes_per_s": 1e10, "cache_bytes_per_s": 3e10},
        "rollout": {
            "columns": 128,
            "us_per_column_step": around(9.0),
            "rollouts_per_s": around(5000),
            "share_of_operations_ceiling": around(0.3),
            "times_faster_than_dense_at_the_ceiling": around(2.0),
        },
        "parts": {"W0 h": part, "tanh": part, "other": {**part, "ceiling_us": 0.0}},
        "bookkeeping_us": -0.1,  # a difference of two measurements
    }


def reservoir_step() -> dict:
    def row(batch: int) -> dict:
        times = {"ours": 2.0, "csr float32": 9.0, "private step": 4.0}
        return {
            "batch": batch,
            "microseconds_a_sequence_step": {name: around(time) for name, time in times.items()},
            "fastest_setting": "csr float32",
            "fastest_over_ours": around(4.1),
            "private_step_over_ours": around(2.0),
            "over_ours": {"csr float32": around(4.1), "private step": around(2.0)},
        }

    return {"reservoirpy": "0.4.2", "left_out": {}, "batches": [row(32), row(64)]}


def moving_mnist_generator() -> dict:
    over = {"frames": around(4.0), "frames_torch": around(2.0)}
    times = {name: around(1.0) for name in ("classic_loop", "in_place_loop", "frames", "frames_torch")}
    row = {"digits": 1, "batch": 64, "length": 21, "rounds": 15, "microseconds_a_frame": times}
    return {"threads": 1, "rows": [{**row, "classic_loop_over": over, "in_place_loop_over": over}]}


def growth() -> dict:
    start = {"pairs": 16, "batch": 32, "steps": 20, "size": 2000, "rank": 32}
    time = {}
    for axis, value in start.items():
        rows = [{"value": factor * value, "seconds": around(0.3 * factor)} for factor in (1, 2)]
        time[axis] = {"slope": around(1.0), "slope_of_largest_two": around(1.0), "rows": rows}
    rows = [
        {
            "what": what,
            "pairs": pairs,
            "steps": steps,
            "peak_bytes": 2_000_000,
            "drive_bytes": 256_000 * steps,
            "errors_bytes": 1024 * steps,
            "peak_without_drive_bytes": 0
            if what == "rollout"
            else 1_000_000,  # zero has no place on a logarithmic axis
        }
        for what in ("rollout", "iteration", "estimate")
        for pairs, steps in ((16, 20), (16, 80), (64, 20))
    ]
    memory = {
        "rows": rows,
        "bytes_a_step": {"rollout": 1000.0, "iteration": None},
        "errors_bytes_a_step": {"rollout": 1024},
        "bytes_a_pair": {
            "rollout": -3.0,
            "iteration": 5.0,
            "estimate_within_a_chunk": 16_000.0,
            "estimate_beyond_a_chunk": None,
        },
        "noise_bytes_a_pair": 16_256,
        "chunk_pairs": 1024,
    }
    return {"start": start, "threads": 2, "time": time, "memory": memory}


def ranks() -> dict:
    share = {"communication_share": [0.001, 0.02], "redundant_share": [0.1, 0.1], "speed_up": [7.0, 7.5]}
    rows = [{"pairs": pairs, "batch": 32, "throughput": 1e6, **share} for pairs in (32, 512)]
    measured = {
        "ranks": 2,
        "threads_a_rank": 1,
        "oversubscribed": False,
        "bytes": {"sent_by_a_rank": 512},
        "iteration_s": around(0.5),
        "collective_alone_s": {"mean": around(2e-4)},
        "collective_alone_share": around(0.001),
        "waiting_share": around(0.05),
    }
    of_ranks = {"1": around(0.01), "8": around(0.1)}
    redundant = {"pairs": 32, "redundant_s": around(0.001), "divided_s": around(0.5)}
    return {
        "backend": "gloo",
        "pairs": 32,
        "batch": 32,
        "ranks": [measured, {**measured, "ranks": 4, "oversubscribed": True}],
        "redundant": {"rows": [{**redundant, "share_of_an_iteration_by_ranks": of_ranks}]},
        "model": {"assumptions": {"throughputs": [1e6]}, "rows": {"8 H200, one node": rows}},
    }


MADE_UP = {
    "efficiency": efficiency,
    "iteration": iteration,
    "peer_loop": peer_loop,
    "es_machinery": es_machinery,
    "roofline": roofline,
    "reservoir_step": reservoir_step,
    "moving_mnist_generator": moving_mnist_generator,
    "growth": growth,
    "ranks": ranks,
}


def put(folder: Path, name: str, results: dict | None = None, **changes) -> Path:
    """Write a file of results as the harness does, made up where none are given."""
    base = name.removesuffix("-cuda")
    hardware = {"cpu": "a small CPU", "cores": 2, **({"gpu": "a large GPU"} if base != name else {})}
    content = {
        "benchmark": base,
        "quick": False,
        "rounds": 9,
        "hardware": hardware,
        "software": {"python": "3.11", "torch": "2.13"},
        "source": {"commit": "0123456789abcdef", "dirty": False},
        "results": MADE_UP[base]() if results is None else results,
        **changes,
    }
    path = folder / "results" / f"{name}.json"
    path.parent.mkdir(exist_ok=True)
    path.write_text(json.dumps(content))
    return path


def goals(page, folder: Path) -> dict[str, list[str]]:
    """{report: its verdicts}."""
    reports, found = page.load(folder), {}
    for goal in page.GOALS:
        found.setdefault(goal.report, []).append(goal.row(reports)[2])
    return found


# --- The page --------------------------------------------------------------------------------------------------------


def test_page_and_plots_are_what_the_committed_results_say(page, capsys):
    assert page.main(["--check"]) == 0, capsys.readouterr().err


def test_every_benchmark_of_the_page_is_there(page):
    for name, section in page.SECTIONS.items():
        script = BENCHMARKS / f"{name}.py"
        assert script.is_file()
        text = script.read_text(encoding="utf-8")
        assert any(word in text for word in ('"--device"', "add_kernel_flags(")) == section.gpu, name


def test_a_whole_page(page, tmp_path):
    for name in MADE_UP:
        put(tmp_path, name)
    assert MADE_UP.keys() == page.SECTIONS.keys()
    page.write_page(tmp_path)
    assert page.stale_files(tmp_path) == []
    text = (tmp_path / "README.md").read_text(encoding="utf-8")
    assert text.count("commit 012345678<") == len(MADE_UP) and page.MARK not in text
    plots = {path.stem for path in (tmp_path / "plots").glob("*.png")}
    assert plots == {name for name, section in page.SECTIONS.items() if section.plot}
    assert all(f"](plots/{name}.png)" in text for name in plots)
    assert "nan" not in text and "None" not in text and "**Not run.**" not in text
    widths = [line.count("|") for line in text.splitlines() if line.startswith("| ---")]
    assert widths and all(width > 2 for width in widths)
    assert text.count("met** |") + text.count("narrowly |") + text.count("without EvoX OpenES |") >= 9


def test_goals_are_judged_by_the_numbers(page, tmp_path):
    for name in MADE_UP:
        put(tmp_path, name)
    found = goals(page, tmp_path)
    assert found["efficiency"] == found["moving_mnist_generator"] == found["iteration"] == ["**met**"]
    assert found["reservoir_step"] == ["**met**, narrowly"], "4.1 with a quartile below 4"
    without = ", without EvoX OpenES"
    assert found["es_machinery"] == [f"**met**{without}"] * 3 + [f"**met**, narrowly{without}"]
    put(tmp_path, "efficiency", efficiency(0.905))
    put(tmp_path, "iteration", iteration(data=0.2))
    put(tmp_path, "es_machinery", es_machinery(slowest=0.9))
    found = goals(page, tmp_path)
    assert found["efficiency"] == ["**not met**, narrowly"]
    assert found["iteration"] == ["**not met**"]
    assert [verdict.split(",")[0] for verdict in found["es_machinery"]] == ["**not met**"] * 3 + ["**met**"]
    row = next(goal for goal in page.GOALS if goal.report == "iteration").row(page.load(tmp_path))
    assert row[1] == "20.0 % (19.0–21.0)"


def test_machinery_at_other_sizes_says_nothing_about_the_goal(page, tmp_path):
    results = es_machinery()
    results["machinery"], results["memory"] = results["machinery"][:1], results["memory"][:1]
    put(tmp_path, "es_machinery", results)
    assert goals(page, tmp_path)["es_machinery"][:2] == ["not run", "not run"]


def test_what_is_missing_is_not_run(page, tmp_path):
    text = page.render(page.load(tmp_path))
    assert text.count("**Not run.**") == len(page.SECTIONS)
    assert text.count("| not run |") == len(page.GOALS) and "met**" not in text
    page.write_page(tmp_path)
    assert not (tmp_path / "plots").exists() and page.stale_files(tmp_path) == []


def test_a_gpu_has_its_own_file_and_goals(page, tmp_path):
    put(tmp_path, "efficiency-cuda", efficiency(0.8, "cuda"))
    without_parts = {key: value for key, value in roofline().items() if key not in ("parts", "bookkeeping_us")}
    put(tmp_path, "roofline-cuda", without_parts)
    text = page.render(page.load(tmp_path))
    assert text.count("### On a GPU: a large GPU") == 2 and text.count("On a GPU: not run.") == 1
    found = goals(page, tmp_path)
    assert found["efficiency-cuda"] == ["**not met**"] and found["efficiency"] == ["not run"]
    assert not page.plots_of(page.load(tmp_path)), "plots are of the CPU's files"


@pytest.mark.parametrize(("dirty", "words"), [(True, "with uncommitted changes"), (None, "changes not known")])
def test_code_that_was_not_committed_bears_a_mark(page, tmp_path, dirty, words):
    put(tmp_path, "peer_loop", source={"commit": "0123456789abcdef", "dirty": dirty})
    text = page.render(page.load(tmp_path))
    assert words in text and text.count(page.MARK) == 3, "at the number, under the goals, under the table"


@pytest.mark.parametrize(
    ("changes", "complaint"),
    [
        ({"quick": True}, "quick run"),
        ({"benchmark": "growth"}, "holds no results of peer_loop"),
        ({"results": {}}, "not as the page expects"),
    ],
)
def test_a_file_that_cannot_stand_on_the_page_is_refused_by_name(page, tmp_path, changes, complaint):
    put(tmp_path, "peer_loop", **changes)
    with pytest.raises(BadInput, match=f"peer_loop.json: .*{complaint}"):
        page.write_page(tmp_path)
    assert not (tmp_path / "README.md").exists()


def test_a_changed_result_makes_page_and_plot_stale(page, tmp_path, capsys):
    put(tmp_path, "ranks")
    page.write_page(tmp_path)
    path = put(tmp_path, "ranks", rounds=11)
    assert page.stale_files(tmp_path) == ["README.md", "plots/ranks.png"]
    assert page.main(["--check", "--folder", str(tmp_path)]) == 1
    assert capsys.readouterr().err.count("\n") == 1
    page.write_page(tmp_path)
    assert page.stale_files(tmp_path) == []
    path.unlink()
    assert page.stale_files(tmp_path) == ["README.md", "plots/ranks.png"], "the plot is left over"
    page.write_page(tmp_path)
    assert page.stale_files(tmp_path) == [] and not list((tmp_path / "plots").iterdir())


# --- All of them by one command --------------------------------------------------------------------------------------

# A benchmark that measures nothing: it keeps the words that it was called with, and fails where it is told to.
STAND_IN = """
import json, os, sys
name, output = os.path.basename(__file__), sys.argv[sys.argv.index("--output") + 1]
with open(os.path.join(os.path.dirname(__file__), "calls"), "a") as calls:
    print(json.dumps([name, *sys.argv[1:], os.environ["OMP_WAIT_POLICY"]]), file=calls)
open(output, "w").write("{}")
sys.exit(3 if name == "growth.py" else 0)
"""


@pytest.fixture
def stand_ins(tmp_path, monkeypatch):
    monkeypatch.setenv("OMP_WAIT_POLICY", "PASSIVE")
    (tmp_path / "results").mkdir()
    for name in MADE_UP:
        (tmp_path / f"{name}.py").write_text(STAND_IN)
    return tmp_path


def calls(folder: Path) -> list[list[str]]:
    return [json.loads(line) for line in (folder / "calls").read_text().splitlines()]


def test_a_quick_run_of_all_keeps_nothing(run, stand_ins, capfd):
    assert run.main(["--quick"], stand_ins) == 1
    found = calls(stand_ins)
    assert [name.removesuffix(".py") for name, *_ in found] == list(MADE_UP), "one that fails does not stop the others"
    for _, flag, output, quick, policy in found:
        assert (flag, quick, policy) == ("--output", "--quick", "PASSIVE")
        assert stand_ins not in Path(output).parents and not Path(output).exists()
    assert not list((stand_ins / "results").iterdir()) and not (stand_ins / "README.md").exists()
    printed = capfd.readouterr()
    assert "growth failed with code 3" in printed.out and printed.err == "run.py: failed: growth\n"
    assert printed.out.count(" done after ") == len(MADE_UP) - 1


def test_only_some_then_the_page(run, stand_ins, monkeypatch, capfd):
    started = []
    real = run.run
    monkeypatch.setattr(run, "run", lambda script, *words: started.append((script.name, words)) or real(script, *words))
    assert run.main(["--only", "ranks,efficiency"], stand_ins) == 1
    results = stand_ins / "results"
    assert [call[:3] for call in calls(stand_ins)] == [
        [f"{name}.py", "--output", str(results / f"{name}.json")] for name in ("efficiency", "ranks")
    ]
    assert started[-1] == ("page.py", ("--folder", str(stand_ins)))
    assert capfd.readouterr().err.endswith("run.py: failed: page\n"), "{} is nothing that a page can show"


def test_an_unknown_name_is_refused_before_anything_runs(run, stand_ins):
    with pytest.raises(BadInput, match="--only: there is no 'grow'"):
        run.main(["--only", "ranks,grow"], stand_ins)
    assert not (stand_ins / "calls").exists()
