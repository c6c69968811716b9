"""All benchmarks, one after another, each in a process of its own; then the page.

    OMP_WAIT_POLICY=PASSIVE python benchmarks/run.py     (about a quarter of an hour on 2 CPU cores; leave the machine alone)

One that fails does not stop the others; what failed is said at the end, and the exit code is 1. Peers that are not
installed are left out by es_machinery.py itself. With --quick nothing is kept: results go to a temporary folder, and no
page is written.
"""

import argparse
import os
import subprocess
import sys
import tempfile
import time
from pathlib import Path

from page import HERE, SECTIONS

from common.errors import BadInput, Parser, run_main
from common.text import duration


def parse_arguments(argv: list[str] | None) -> argparse.Namespace:
    def names(text: str) -> list[str]:
        return [name.strip() for name in text.split(",")]

    parser = Parser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--quick", action="store_true", help="tiny sizes: do they run? Keeps nothing")
    parser.add_argument("--only", type=names, metavar="NAME,NAME", help=f"of {', '.join(SECTIONS)}")
    arguments = parser.parse_args(argv)
    if unknown := [name for name in arguments.only or [] if name not in SECTIONS]:
        raise BadInput(f"--only: there is no {unknown[0]!r} among {', '.join(SECTIONS)}")
    return arguments


def run(script: Path, *words: str) -> int:
    """Exit code of a script in a process of its own, which writes to this terminal."""
    settings = {"OMP_WAIT_POLICY": "PASSIVE", **os.environ}
    return subprocess.run([sys.executable, str(script), *words], env=settings).returncode


def main(argv: list[str] | None = None, folder: Path = HERE) -> int:
    """folder: where the scripts are, and where results and page are written."""
    arguments = parse_arguments(argv)
    chosen = [name for name in SECTIONS if not arguments.only or name in arguments.only]
    failed = []
    with tempfile.TemporaryDirectory() as temporary:
        for number, name in enumerate(chosen, start=1):
            print(f"[{number}/{len(chosen)}] {name}", flush=True)
            started = time.monotonic()
            output = Path(temporary) if arguments.quick else folder / "results"
            words = ["--output", str(output / f"{name}.json"), *["--quick"] * arguments.quick]
            code = run(folder / f"{name}.py", *words)
            failed += [name] * bool(code)
            ended = f"failed with code {code}" if code else "done"
            print(f"[{number}/{len(chosen)}] {name} {ended} after {duration(time.monotonic() - started)}", flush=True)
    if not arguments.quick and run(HERE / "page.py", "--folder", str(folder)):
        failed.append("page")
    if failed:
        print(f"run.py: failed: {', '.join(failed)}", file=sys.stderr)
    return int(bool(failed))


if __name__ == "__main__":
    run_main(main)
