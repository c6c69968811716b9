"""The catalog's command line: committed results become RESULTS.md and its figures, the contract of SPEC.md is checked.

    python -m common.catalog results [--check]   write RESULTS.md and its figures (or name those on disk that are stale)
    python -m common.catalog check [STUB ...]    print every breach of the contract that a machine can see
    python -m common.catalog publish RUN_DIR     copy what is worth keeping of a finished run to <stub>/results/
    python -m common.catalog figures [STUB ...]  redraw the committed figures and GIFs from committed results and measurements
    python -m common.catalog new NAME            start an experiment from template/

Exit codes: 0 done, 1 problems found, 2 bad input. Nothing here trains or imports an experiment: it reads files and starts
experiments by their command line.
"""

import argparse
import os
from pathlib import Path

from common.contract import check, known_slugs, require_known
from common.errors import BadInput, Parser, run_main
from common.results import ROOT, module_of, publish
from common.results_page import stale_files, write_results
from common.scaffold import draw_figures, new


def _results(arguments: argparse.Namespace, root: Path) -> list[str]:
    if arguments.check:
        return [f"{name} is stale: run `make results`" for name in stale_files(root)]
    write_results(root, redraw=True)
    return []


def _check(arguments: argparse.Namespace, root: Path) -> list[str]:
    return check(root, arguments.stub)


def _publish(arguments: argparse.Namespace, root: Path) -> list[str]:
    for path in publish(arguments.run_dir, root):
        print(path)
    return []


def _figures(arguments: argparse.Namespace, root: Path) -> list[str]:
    for slug in arguments.stub or known_slugs(root):
        require_known(root, slug)
        draw_figures(root, slug)
    return []


def _new(arguments: argparse.Namespace, root: Path) -> list[str]:
    name = new(arguments.name, root).name
    problems = check(root, [name])
    if problems:
        print(f"\n{name}/ is there; it breaks the contract:")
    else:
        print(f"""
{name}/ is there and keeps the contract. Next:
  1. write the question and its source at the head of {name}/README.md
  2. change what is trained, and how, in {name}/{module_of(name)}.py
  3. python {module_of(name)}.py --seed 0 (in its folder), then python -m common.catalog publish runs/laptop-seed0
  4. make figures results test""")
    return problems


def main(argv: list[str] | None = None) -> int:
    """Run the command line; returns the exit code. Raises BadInput."""
    parser = Parser(prog="python -m common.catalog", description="Results, contract and template of the catalog.")
    commands = parser.add_subparsers(dest="command", required=True)

    def add(name: str, run, help: str) -> argparse.ArgumentParser:  # noqa: A002, argparse's own name for it
        command = commands.add_parser(name, help=help)
        command.add_argument("--root", type=Path, default=ROOT, help="another copy of the repository")
        command.set_defaults(run=run)
        return command

    command = add("results", _results, "write RESULTS.md and its figures from the committed results")
    command.add_argument("--check", action="store_true", help="write nothing; exit code 1 where one of them is stale")
    command = add("check", _check, "check the contract of SPEC.md")
    command.add_argument("stub", nargs="*", help="only these (default: the whole repository)")
    command = add("publish", _publish, "copy a finished run to its stub's results/")
    command.add_argument("run_dir", type=Path)
    command = add("figures", _figures, "redraw figures and GIFs from committed results and measurements")
    command.add_argument("stub", nargs="*", help="only these (default: all)")
    command = add("new", _new, "start an experiment from template/")
    command.add_argument("name")

    arguments = parser.parse_args(argv)
    root = Path(os.path.abspath(arguments.root))  # Path.resolve raises for links in a circle
    if not os.path.isdir(root / "common"):
        raise BadInput(f"--root {root}: not this repository (install with pip install -e, or name the folder)")
    problems = arguments.run(arguments, root)
    for problem in problems:
        print(problem)
    return 1 if problems else 0


if __name__ == "__main__":
    run_main(main)
