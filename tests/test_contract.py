"""This repository keeps its own contract: what SPEC.md promises and a machine can see, for every experiment in it."""

import ast
import json
import shutil
import subprocess
import sys

import pytest

from common import catalog
from common.problem import fingerprint

STUBS = catalog.stubs()
PER_STUB = [catalog.check_files, catalog.check_readme, catalog.check_results, catalog.check_presets, catalog.check_code]


def test_the_main_experiment_is_there():
    assert "moving-mnist-es-reservoir" in STUBS


@pytest.mark.parametrize("look", PER_STUB, ids=lambda look: look.__name__)
@pytest.mark.parametrize("slug", STUBS)
def test_every_experiment_keeps_the_contract(slug, look):
    assert look(catalog.ROOT, slug) == []


@pytest.mark.parametrize("readme", ["README.md", *(f"{slug}/README.md" for slug in STUBS)])
def test_every_command_of_a_readme_is_one_that_exists(readme):
    assert (catalog.ROOT / readme).is_file()
    assert catalog.check_commands(catalog.ROOT, catalog.ROOT / readme) == []


@pytest.mark.parametrize("page", ["README.md", "SPEC.md", "RESULTS.md"])
def test_every_link_of_a_page_leads_somewhere(page):
    assert catalog.check_links(catalog.ROOT, catalog.ROOT / page) == []


def test_results_page_is_what_the_committed_results_say():
    assert not catalog.results_are_stale(), "run `make results`"


def test_problem_ids_are_the_hash_of_their_problem():
    for result in catalog.load_results():
        assert result["problem_id"] == fingerprint(result["problem"]), catalog.run_name(result)


def test_common_imports_no_experiment():
    assert catalog.check_common(catalog.ROOT) == []


def test_common_imports_only_what_is_declared():
    # A second look at the dependency direction that does not go through the checker: names in the import statements.
    declared = {"torch", "numpy", "matplotlib", "imageio", "PIL", "tqdm", "common"}
    optional = {"tensorboard"}
    for path in (catalog.ROOT / "common").glob("*.py"):
        for node in ast.walk(ast.parse(path.read_text(encoding="utf-8"))):
            names = [alias.name for alias in node.names] if isinstance(node, ast.Import) else []
            names += [node.module] if isinstance(node, ast.ImportFrom) and node.module else []
            first = {name.split(".")[0] for name in names}
            assert first <= declared | optional | set(sys.stdlib_module_names), f"{path.name}: {first}"


def test_no_committed_file_is_over_2_mb():
    assert catalog.check_sizes(catalog.ROOT) == []


def test_every_make_target_of_the_readme_runs_dry():
    # `make -n` reads the Makefile as make does: a missing prerequisite or a syntax error fails here.
    for target in ("help", "demo", "test", "figures", "results", "lint", "clean", "new"):
        done = subprocess.run(["make", "-n", target], cwd=catalog.ROOT, capture_output=True, text=True)
        assert done.returncode == 0, done.stderr


@pytest.mark.slow
def test_a_new_experiment_keeps_the_contract_from_its_first_minute(tmp_path):
    root = tmp_path / "copy"
    shutil.copytree(
        catalog.ROOT, root, ignore=shutil.ignore_patterns(".git", ".venv", "runs", "__pycache__", ".*_cache")
    )
    folder = catalog.new("my-idea", root)
    assert catalog.check(root, ["my-idea"]) == []
    (path,) = (folder / "results").glob("*.json")
    assert json.loads(path.read_text())["stub"] == "my-idea"
    assert not catalog.results_are_stale(root)
    leftovers = [p for p in folder.rglob("*") if p.suffix in (".py", ".md") and "xperiment" in p.name]
    assert leftovers == []
