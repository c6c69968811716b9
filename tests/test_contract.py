"""This repository keeps its own contract: what SPEC.md promises and a machine can see, for every experiment in it."""

import ast
import dataclasses
import hashlib
import json
import os
import shutil
import subprocess
import sys

import pytest
import torch

from common import contract
from common.problem import ProblemSettings, fingerprint
from common.results import OF_THE_MACHINE, ROOT, load_results, run_name, stubs, studies
from common.results_page import results_are_stale
from common.run import RunSettings
from common.scaffold import new

STUBS, STUDIES = stubs(), studies()


def test_the_main_experiment_is_there():
    assert "moving-mnist-es-reservoir" in STUBS


@pytest.mark.parametrize("look", contract.STUB_CHECKS, ids=lambda look: look.__name__)
@pytest.mark.parametrize("slug", STUBS)
def test_every_experiment_keeps_the_contract(slug, look):
    assert look(ROOT, slug) == []


@pytest.mark.parametrize("look", contract.STUDY_CHECKS, ids=lambda look: look.__name__)
@pytest.mark.parametrize("slug", STUDIES)
def test_every_study_keeps_the_contract(slug, look):
    assert look(ROOT, slug) == []


def test_every_command_of_the_first_page_is_one_that_exists():
    assert (ROOT / "README.md").is_file()
    assert contract.check_commands(ROOT, ROOT / "README.md") == []


@pytest.mark.parametrize("page", ["README.md", "SPEC.md", "RESULTS.md"])
def test_every_link_of_a_page_leads_somewhere(page):
    assert contract.check_links(ROOT, ROOT / page) == []


def test_results_page_is_what_the_committed_results_say():
    assert not results_are_stale(), "run `make results`"


def test_problem_ids_are_the_hash_of_their_problem():
    for result in load_results():
        assert result["problem_id"] == fingerprint(result["problem"]), run_name(result)


def test_settings_in_which_seeds_may_differ_are_those_on_which_no_number_depends(stub):
    fields = [f for settings in (ProblemSettings, RunSettings, stub.Config) for f in dataclasses.fields(settings)]
    assert OF_THE_MACHINE == {"seed", "device"} | {f.name for f in fields if not f.metadata["changes_result"]}


def test_the_results_page_needs_no_torch():
    code = "import sys, common.catalog; print(*sys.modules)"
    done = subprocess.run([sys.executable, "-c", code], cwd=ROOT, capture_output=True, text=True)
    assert "common.results_page" in done.stdout.split() and "torch" not in done.stdout.split()


def test_common_imports_no_experiment():
    assert contract.check_common(ROOT) == []


def test_common_imports_only_what_is_declared():
    # A second look at the dependency direction that does not go through the checker: names in the import statements.
    declared = {"torch", "numpy", "scipy", "matplotlib", "PIL", "tqdm", "common"}
    optional = {"tensorboard", "triton"}
    for path in (ROOT / "common").glob("*.py"):
        for node in ast.walk(ast.parse(path.read_text(encoding="utf-8"))):
            names = [alias.name for alias in node.names] if isinstance(node, ast.Import) else []
            names += [node.module] if isinstance(node, ast.ImportFrom) and node.module else []
            first = {name.split(".")[0] for name in names}
            assert first <= declared | optional | set(sys.stdlib_module_names), f"{path.name}: {first}"


def test_no_committed_file_is_over_2_mb():
    assert contract.check_sizes(ROOT) == []


def test_every_make_target_of_the_readme_runs_dry():
    # `make -n` reads the Makefile as make does: a missing prerequisite or a syntax error fails here.
    for target in ("help", "demo", "test", "figures", "results", "lint", "clean", "new"):
        done = subprocess.run(["make", "-n", target], cwd=ROOT, capture_output=True, text=True)
        assert done.returncode == 0, done.stderr


def test_a_new_experiment_keeps_the_contract_from_its_first_minute(tmp_path, monkeypatch):
    # The real thing: copies the template, trains its smoke preset, publishes, draws. Ten to twenty seconds.
    monkeypatch.setenv("MOVING_MNIST_CACHE", os.environ.get("MOVING_MNIST_CACHE", str(tmp_path / "cache")))
    root = tmp_path / "copy"
    shutil.copytree(ROOT, root, ignore=shutil.ignore_patterns(".git", ".venv", "runs", "__pycache__", ".*_cache"))
    folder = new("my-idea", root)
    assert contract.check(root, ["my-idea"]) == []
    result = json.loads((folder / "results" / "smoke-seed0.json").read_text())
    assert result["stub"] == "my-idea"
    assert result["ridge_test_mse"] == result["ridge_test_mse_at_start"], "its core stays frozen"
    readout = torch.load(folder / "runs" / "smoke-seed0" / "checkpoint.pt", weights_only=True)["decoder"]["linear"]
    trained = readout["weight"].numpy().tobytes() + readout["bias"].numpy().tobytes()
    assert result["theta_sha256"] == hashlib.sha256(trained).hexdigest(), "what is trained is the readout"
    assert not results_are_stale(root)
    leftovers = [p for p in folder.rglob("*") if p.suffix in (".py", ".md") and "xperiment" in p.name]
    assert leftovers == []
