"""A made-up repository: the schema of its results, publishing, and a contract check that notices breaches."""

import copy
import json
import subprocess
import sys

import pytest
from made_up import MODULE, SLUG, build, change, commit, edit, result
from PIL import Image

from common import catalog, contract
from common.errors import BadInput
from common.results import HISTORY_LINES, LARGEST_FILE, ROOT, load_results, publish, thin_history
from common.scaffold import new


@pytest.fixture
def root(tmp_path):
    return build(tmp_path)


# ---------------------------------------------------------------------------------------------------------------------
# the schema of results


@pytest.mark.parametrize(
    "path, value, message",
    [
        ("schema", 2, "'schema' must be the integer 1"),
        ("seed", True, "'seed' must be an integer"),
        ("test_mse", None, "'test_mse' must be a finite number"),
        ("reproduces", "maybe", "'reproduces' must be one of"),
        ("role", "roof", "'role' must be one of floor, ceiling, reference, is \"roof\""),
        ("role", None, "'role' must be one of"),
        ("config.train_sequences", "many", "'config.train_sequences' must be an integer"),
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
    change(content, path.split("."), value)
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
    lines = history(1000, evaluations)
    lines[333] = json.dumps({"iteration": 333, "cosine_gradient": 0.1})  # an estimate was compared with a gradient
    assert 333 in [json.loads(line)["iteration"] for line in thin_history(lines)]
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
