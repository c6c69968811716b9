"""A made-up repository: rendering its results, publishing, and a contract check that notices every breach."""

import copy
import json
import subprocess
import sys

import pytest
from PIL import Image

from common import catalog, contract
from common.errors import BadInput
from common.results import (
    CEILING,
    FLOOR,
    HISTORY_LINES,
    LARGEST_FILE,
    ROOT,
    load_results,
    publish,
    render,
    thin_history,
    write_results,
)
from common.scaffold import new

SLUG, MODULE = "toy-experiment", "toy_experiment"

SCRIPT = '''"""An experiment that trains nothing."""
import argparse
from dataclasses import dataclass


class BadInput(ValueError):
    pass


@dataclass
class Config:
    rank: int = 32


def parse_arguments(argv):
    parser = argparse.ArgumentParser(exit_on_error=False)
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--preset", choices=["smoke", "laptop"], default="laptop")
    try:
        return Config(), parser.parse_args(argv)
    except argparse.ArgumentError as error:
        raise BadInput(str(error))
'''

DRAWING_SCRIPT = """import argparse

parser = argparse.ArgumentParser()
parser.add_argument("--run")
parser.parse_args()
"""

README = f"""# Toy experiment

After nobody (2020).

![a square that moves]({MODULE}.gif)

## Problem
None.

## Files
[the script]({MODULE}.py)

## Running
```bash
# a comment, an assignment, a continued line
OMP_WAIT_POLICY=PASSIVE python {MODULE}.py --seed 0 \\
    --preset smoke && python visualize_{MODULE}.py --run runs/smoke-seed0
for seed in 0 1 2; do torchrun --nproc_per_node=8 {MODULE}.py --seed $seed > log.txt; done
make results  # from the root
python -m common.catalog publish runs/smoke-seed0
```

## Results
Mean test MSE 0.6300.

## Visualizations
![curves](viz/training_curves.png)

## Deviations from the original
None.

## Open questions
All.
"""


PROBLEM = {"digits": 1, "sequence_length": 20, "hidden_size": 2000, "digits_sha256": "ab" * 32}


def result(stub=SLUG, preset="laptop", seed=0, test_mse=0.63, **changes):
    """A valid result; changes are set at the top level."""
    return {
        "schema": 1,
        "stub": stub,
        "seed": seed,
        "preset": preset,
        "problem_id": "0123456789ab",
        "problem": PROBLEM,
        "config": {"rank": 32},
        "test_mse": test_mse,
        "test_mse_last_frame": 0.61,
        "ridge_test_mse": 0.6,
        "reproduces": "partial",
        "iterations": 100,
        "rollouts": 51200,
        "wallclock_s": 150.0,
        "theta_sha256": "0" * 64,
        "environment": {
            "device": "cpu",
            "device_name": "a small CPU",
            "torch": "2.13.0",
            "python": "3.11.7",
            "platform": "Linux",
            "world_size": 1,
            "threads": 2,
        },
        "source": {"commit": "abcdef0123456789", "dirty": False, "stub_sha256": "1" * 64, "common_sha256": "2" * 64},
        **changes,
    }


def commit(root, content, name=None):
    """Put a result where published results are."""
    folder = root / content["stub"] / "results"
    folder.mkdir(parents=True, exist_ok=True)
    path = folder / (name or f"{content['preset']}-seed{content['seed']}.json")
    path.write_text(json.dumps(content))
    return path


def cells(text, first):
    """Cells of the only table row that begins with `first`."""
    (row,) = [line for line in text.splitlines() if line.startswith(f"| {first}")]
    return [cell.strip() for cell in row.strip("|").split("|")]


@pytest.fixture
def root(tmp_path):
    """A repository with one experiment that keeps the contract."""
    stub = tmp_path / SLUG
    (stub / "viz").mkdir(parents=True)
    (tmp_path / "common").mkdir()
    (tmp_path / "common" / "es.py").write_text("import math\n")
    (tmp_path / "Makefile").write_text("results:\n\ttrue\n")
    (tmp_path / "README.md").write_text("# A catalog\n\n```bash\nmake results\n```\n")
    (tmp_path / "SPEC.md").write_text("# The contract\n")
    (stub / f"{MODULE}.py").write_text(SCRIPT)
    (stub / f"visualize_{MODULE}.py").write_text(DRAWING_SCRIPT)
    (stub / f"make_{MODULE}_gif.py").write_text(DRAWING_SCRIPT)
    (stub / "README.md").write_text(README)
    frames = [Image.new("L", (8, 8), shade) for shade in (0, 255)]
    for name in ("training_curves", "adapter_spectrum"):
        frames[0].save(stub / "viz" / f"{name}.png")
    frames[0].save(stub / f"{MODULE}.gif", save_all=True, append_images=frames[1:])
    commit(tmp_path, result())
    write_results(tmp_path)
    return tmp_path


# ---------------------------------------------------------------------------------------------------------------------
# RESULTS.md


def test_rows_give_mean_and_sample_standard_deviation_over_seeds():
    # Mean of 0.60, 0.63, 0.66 is 0.63; deviations −0.03, 0, 0.03, so s = √(0.0018 / 2) = 0.03.
    text = render([result(seed=s, test_mse=m) for s, m in enumerate((0.60, 0.63, 0.66))])
    row = cells(text, f"[{SLUG}]({SLUG}/README.md)")
    assert row[1:4] == ["laptop", "0, 1, 2", "0.6300 ± 0.0300 (3 seeds)"]
    assert row[7:] == ["51,200", "2 min 30 s", "a small CPU, 2 threads", "abcdef012", "partial"]
    assert "frame 21 MSE" in text and "1 digit, T = 20, N = 2000" in text


def test_a_single_seed_shows_no_spread():
    assert cells(render([result()]), f"[{SLUG}]")[3] == "0.6300 (1 seed)"


def test_rendering_does_not_depend_on_the_order_of_files(root):
    for seed in (2, 1):
        commit(root, result(seed=seed, test_mse=0.6 + seed / 100))
    commit(root, result(preset="smoke", problem_id="000000000000", problem={**PROBLEM, "hidden_size": 64}))
    results = load_results(root)
    assert [(r["preset"], r["seed"]) for r in results] == [("laptop", 0), ("laptop", 1), ("laptop", 2), ("smoke", 0)]
    text = render(results)
    assert text.index("0123456789ab") < text.index("000000000000"), "smoke problems come last"


def test_trivial_predictors_and_the_frozen_core_are_rows_of_the_same_ladder():
    trivial = {
        n: {"all": v, "last_frame": v + 0.01}
        for n, v in [("mean", 1.0), ("copy_last", 1.4), ("ar1", 0.656), ("ar3", 0.65)]
    }
    text = render([result(trivial_test_mse=trivial, ridge_test_mse_at_start=0.64)])
    rows = [line.split("|")[1].strip() for line in text.splitlines() if line.startswith("| ")][2:]
    assert rows == [
        f"[{SLUG}]({SLUG}/README.md)",
        "frozen core, ridge readout",
        "AR(3) ridge",
        "AR(1) ridge",
        "mean embedding",
        "copy last frame",
    ]
    assert cells(text, "copy last frame")[3:6] == ["1.4000", "1.4100", "—"]
    assert cells(text, "frozen core")[3] == "0.6400"


def test_results_of_one_problem_must_agree_on_its_trivial_predictors():
    pair = [result(seed=s, trivial_test_mse={"mean": {"all": v, "last_frame": 1.0}}) for s, v in ((0, 1.0), (1, 1.01))]
    with pytest.raises(BadInput, match="disagree on trivial_test_mse.mean.all"):
        render(pair)
    with pytest.raises(BadInput, match="'problem'"):
        render([result(), result(seed=1, problem={**PROBLEM, "hidden_size": 1})])


def test_seeds_of_one_row_must_share_their_settings():
    render([result(config={"rank": 32, "threads": 2}), result(seed=1, config={"rank": 32, "threads": 4})])
    with pytest.raises(BadInput, match="differ in config: rank"):
        render([result(config={"rank": 32}), result(seed=1, config={"rank": 16})])


def test_gap_closed_needs_floor_and_ceiling_of_the_same_problem():
    floor, ceiling = result(stub=FLOOR, test_mse=0.65), result(stub=CEILING, test_mse=0.55)
    text = render([result(test_mse=0.63), floor, ceiling])
    # (0.65 − 0.63) / (0.65 − 0.55) = 0.2
    assert [cells(text, f"[{slug}]")[6] for slug in (SLUG, FLOOR, CEILING)] == ["20%", "0%", "100%"]

    elsewhere = result(stub=CEILING, test_mse=0.55, problem_id="fedcba987654", problem={**PROBLEM, "hidden_size": 256})
    text = render([result(), floor, elsewhere])
    assert cells(text, f"[{SLUG}]")[6] == "—" and "not there yet" in text


def test_disagreeing_seeds_and_dirty_sources_are_shown():
    dirty = {"commit": None, "dirty": True, "stub_sha256": "1" * 64, "common_sha256": "2" * 64}
    text = render([result(), result(seed=1, reproduces="no", source=dirty)])
    assert cells(text, f"[{SLUG}]")[10:] == ["abcdef012, unknown†", "partial (1), no (1)"]
    assert "† Code was not" in text
    assert "†" not in render([result()])


def test_a_stale_results_page_is_noticed(root):
    assert catalog.main(["results", "--check", "--root", str(root)]) == 0
    commit(root, result(seed=1, test_mse=0.7))
    assert catalog.main(["results", "--check", "--root", str(root)]) == 1
    assert catalog.main(["results", "--root", str(root)]) == 0
    assert catalog.main(["results", "--check", "--root", str(root)]) == 0
    assert "0.6650 ± 0.0495 (2 seeds)" in (root / "RESULTS.md").read_text()  # s of two values is |a − b| / √2


@pytest.mark.parametrize(
    "path, value, message",
    [
        ("schema", 2, "'schema' must be the integer 1"),
        ("seed", True, "'seed' must be an integer"),
        ("test_mse", None, "'test_mse' must be a finite number"),
        ("reproduces", "maybe", "'reproduces' must be one of"),
        ("theta_sha256", "abc", "'theta_sha256' must be 64"),
        ("environment.world_size", "8", "'environment.world_size' must be an integer"),
        ("source.dirty", "no", "'source.dirty' must be true, false or null"),
        ("source.commit", KeyError, "'source.commit' is missing"),
        ("config", KeyError, "'config' is missing"),
        ("problem.sequence_length", KeyError, "'problem.sequence_length' is missing"),
        ("trivial_test_mse", {"mean": {"all": "low"}}, "'trivial_test_mse.mean.all' must be"),
    ],
)
def test_a_result_that_breaks_the_schema_is_refused_by_file_and_key(root, path, value, message):
    content = copy.deepcopy(result(seed=1))
    *parents, key = path.split(".")
    place = content
    for parent in parents:
        place = place[parent]
    if value is KeyError:
        del place[key]
    else:
        place[key] = value
    commit(root, content, name="laptop-seed1.json")
    with pytest.raises(BadInput, match=message) as error:
        load_results(root)
    assert "laptop-seed1.json" in str(error.value)


def test_a_result_must_be_json_and_lie_where_it_says(root):
    path = commit(root, result(seed=1))
    path.write_text(path.read_text().replace("0.63", "NaN"))
    with pytest.raises(BadInput, match="NaN is not a number"):
        load_results(root)
    path.unlink()
    commit(root, result(seed=1), name="laptop-seed7.json")
    with pytest.raises(BadInput, match="laptop-seed1.json"):
        load_results(root)


# ---------------------------------------------------------------------------------------------------------------------
# publish


def history(count, evaluations):
    return [json.dumps({"iteration": i, "validation_mse": 0.7 if i in evaluations else None}) for i in range(count)]


def test_history_is_thinned_but_keeps_evaluations_and_both_ends():
    evaluations = {7, 501, 998}
    kept = [json.loads(line)["iteration"] for line in thin_history(history(1000, evaluations))]
    assert len(kept) == HISTORY_LINES
    assert evaluations | {0, 999} <= set(kept)
    assert kept == sorted(set(kept))
    assert max(b - a for a, b in zip(kept, kept[1:])) <= 7  # 1000 lines, 200 kept: about every fifth
    assert thin_history(history(150, {3})) == history(150, {3})
    assert thin_history([]) == []


def test_too_many_evaluations_are_thinned_evenly():
    kept = [json.loads(line)["iteration"] for line in thin_history(history(1000, set(range(1000))))]
    assert len(kept) == HISTORY_LINES and kept[0] == 0 and kept[-1] == 999


def finished_run(root, content, figures=b"arrays"):
    run = root / SLUG / "runs" / "some-run"
    run.mkdir(parents=True, exist_ok=True)
    (run / "results.json").write_text(json.dumps(content))
    (run / "metrics.jsonl").write_text("\n".join(history(1000, {500})) + "\n")
    (run / "figures.npz").write_bytes(figures)
    return run


def test_publish_copies_result_history_and_figures_of_seed_0(root):
    run = finished_run(root, result(test_mse=0.5))
    history, figures, numbers = publish(run, root)
    names = ["laptop-seed0.history.jsonl", "laptop-seed0.figures.npz", "laptop-seed0.json"]
    assert [history.name, figures.name, numbers.name] == names
    assert sorted(p.name for p in (root / SLUG / "results").iterdir()) == sorted(names)
    assert json.loads(numbers.read_text())["test_mse"] == 0.5
    assert len(history.read_text().splitlines()) == HISTORY_LINES
    assert figures.read_bytes() == b"arrays"


def test_publish_leaves_the_figures_of_other_seeds_out(root):
    old = root / SLUG / "results" / "laptop-seed1.figures.npz"
    old.write_bytes(b"of an earlier run")
    names = [p.name for p in publish(finished_run(root, result(seed=1)), root)]
    assert names == ["laptop-seed1.history.jsonl", "laptop-seed1.json"] and not old.exists()


def test_publish_refuses_what_is_unfinished_foreign_or_too_large_and_writes_nothing(root):
    before = sorted((root / SLUG / "results").iterdir())
    large = finished_run(root, result(seed=0, preset="brief"), figures=bytes(LARGEST_FILE + 1))
    with pytest.raises(BadInput, match="figures.npz would be 2,000,001 bytes"):
        publish(large, root)
    with pytest.raises(BadInput, match="no experiment"):
        publish(finished_run(root, result(stub="elsewhere")), root)
    unfinished = root / SLUG / "runs" / "some-run"
    (unfinished / "results.json").unlink()
    with pytest.raises(BadInput, match="only a finished run"):
        catalog.main(["publish", str(unfinished), "--root", str(root)])
    assert sorted((root / SLUG / "results").iterdir()) == before


# ---------------------------------------------------------------------------------------------------------------------
# the contract


def test_an_experiment_that_keeps_the_contract_has_no_problems(root):
    assert contract.check(root) == []


def edit(path, old, new):
    text = path.read_text()
    assert old in text
    path.write_text(text.replace(old, new))


BREACHES = {
    "missing file": (lambda r: (r / SLUG / f"make_{MODULE}_gif.py").unlink(), f"make_{MODULE}_gif.py is missing"),
    "no training curves": (lambda r: (r / SLUG / "viz/training_curves.png").unlink(), "no PNG of training curves"),
    "no weight figure": (lambda r: (r / SLUG / "viz/adapter_spectrum.png").unlink(), "no PNG of weights or states"),
    "not a PNG": (lambda r: (r / SLUG / "viz/state.png").write_text("no"), "state.png is not a PNG"),
    "still GIF": (lambda r: Image.new("L", (8, 8)).save(r / SLUG / f"{MODULE}.gif"), "does not move"),
    "GIF over 2 MB": (lambda r: (r / SLUG / f"{MODULE}.gif").open("ab").write(bytes(2_000_000)), ".gif is over 2 MB"),
    "section missing": (
        lambda r: edit(r / SLUG / "README.md", "## Open questions\nAll.\n", ""),
        "exactly the sections",
    ),
    "section empty": (lambda r: edit(r / SLUG / "README.md", "\nAll.\n", "\n"), "'Open questions' is empty"),
    "GIF not shown": (
        lambda r: edit(r / SLUG / "README.md", f"({MODULE}.gif)", "(x.gif)"),
        f"does not show {MODULE}.gif",
    ),
    "no citation": (lambda r: edit(r / SLUG / "README.md", "(2020)", ""), "cites nothing"),
    "dead link": (lambda r: edit(r / SLUG / "README.md", f"]({MODULE}.py)", "](gone.py)"), "links to gone.py"),
    "unknown flag": (lambda r: edit(r / SLUG / "README.md", "--seed 0", "--sed 0"), "--sed"),
    "unknown preset": (lambda r: edit(r / SLUG / "README.md", "--preset smoke", "--preset huge"), "invalid choice"),
    "unknown flag of a drawing script": (
        lambda r: edit(r / SLUG / "README.md", "--run ", "--from "),
        "unknown flag --from",
    ),
    "unknown make target": (lambda r: edit(r / SLUG / "README.md", "make results", "make gold"), "no such make target"),
    "no such script": (lambda r: edit(r / SLUG / "README.md", f"python {MODULE}.py", "python gone.py"), "no such file"),
    "unreadable command": (lambda r: edit(r / SLUG / "README.md", "--seed 0", "--seed '0"), "cannot be parsed"),
    "unknown catalog command": (lambda r: edit(r / SLUG / "README.md", "publish runs", "print runs"), "invalid choice"),
    "typed number": (lambda r: edit(r / SLUG / "README.md", "0.6300", "0.6200"), "does not print 0.6300"),
    "slow laptop run": (lambda r: commit(r, result(wallclock_s=301.0)), "took 301 s"),
    "not its preset": (lambda r: commit(r, result(config={"rank": 8})), "is not what its preset runs now: rank"),
    "bad result": (lambda r: commit(r, result(test_mse="good")), "'test_mse' must be"),
    "no results": (lambda r: (r / SLUG / "results/laptop-seed0.json").unlink(), "results/ holds no *.json"),
    "undone work": (lambda r: edit(r / SLUG / f"{MODULE}.py", "    pass\n", "    pass  # TODO\n"), "holds TODO"),
    "empty function": (
        lambda r: edit(r / SLUG / f"{MODULE}.py", "class BadInput", 'def f():\n    """Later."""\n\n\nclass BadInput'),
        "function f is empty",
    ),
    "common imports a stub": (
        lambda r: (r / "common/es.py").write_text(f"def f():\n    from {MODULE} import parse_arguments\n"),
        f"common/es.py: imports {MODULE}",
    ),
    "stale results page": (lambda r: commit(r, result(seed=1)), "RESULTS.md is stale"),
}


@pytest.mark.parametrize("name", BREACHES)
def test_every_breach_is_noticed(root, name):
    breach, message = BREACHES[name]
    breach(root)
    assert any(message in problem for problem in contract.check(root)), contract.check(root)


def test_stubs_do_not_import_each_other(root):
    other = root / "other-stub"
    other.mkdir()
    (other / "other_stub.py").write_text(f"import {MODULE}.part as part\n")
    (problem,) = contract.check_code(root, "other-stub")
    assert problem == f"other-stub/other_stub.py: imports {MODULE} of stub {SLUG}"


def test_large_files_under_version_control_are_noticed(root):
    (root / "large.bin").write_bytes(bytes(LARGEST_FILE + 1))
    assert contract.check_sizes(root) == [], "not in a git work tree"
    for command in (["git", "init", "-q"], ["git", "add", "large.bin"]):
        subprocess.run(command, cwd=root, check=True)
    assert contract.check_sizes(root) == ["large.bin: over 2 MB"]


def test_bash_blocks_become_words():
    first = "a=1 srun python x.py --n \"$N\" 'two words' | tail -1  # said"
    text = f"```bash\n{first}\ncd b && make c\n```\n```text\nnot this\n```\n"
    assert contract.bash_commands(text) == [
        [["python", "x.py", "--n", "0", "two words"], ["tail", "-1"], ["cd", "b"], ["make", "c"]]
    ]


# ---------------------------------------------------------------------------------------------------------------------
# names and exit codes


@pytest.mark.parametrize(
    "name, reason",
    [
        ("My-Idea", "small letters"),
        ("my_idea", "small letters"),
        ("my--idea", "small letters"),
        ("../up", "small letters"),
        ("2-fast", "small letters"),
        (SLUG, "exists already"),
        ("numpy", "name of Python or of an installed package"),
        ("class", "name of Python or of an installed package"),
    ],
)
def test_names_that_cannot_become_an_experiment_are_refused(root, name, reason):
    before = sorted(root.rglob("*"))
    with pytest.raises(BadInput, match=reason):
        new(name, root)
    assert sorted(root.rglob("*")) == before


def test_bad_input_is_one_line_and_exit_code_2(root):
    for arguments in (
        ["check", "no-such-stub"],
        ["publish"],
        ["results", "--check", "--root", "/nonexistent"],
        ["bake"],
    ):
        done = subprocess.run(
            [sys.executable, "-m", "common.catalog", *arguments], cwd=ROOT, capture_output=True, text=True
        )
        assert (done.returncode, len(done.stderr.splitlines()), done.stdout) == (2, 1, ""), done
