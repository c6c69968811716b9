"""Run an experiment many times, through its own command line: every combination of some settings.

    python -m common.sweep truncated-es --folder runs/ranks --preset laptop --vary rank=8,16,32 --vary seed=0,1,2 -- --iterations 100

Each combination is a run in a folder of its own under --folder, with what it printed beside it. A sweep that was stopped or killed
goes on with the same command: finished runs are kept, one that had begun is resumed. With several GPUs as many runs go side by side,
each on one of them. After each run `sweep.json` is written anew, all that a table or a figure needs:

    stub, preset, varied   what was asked for: {setting: its values}
    config                 the configuration, as far as all runs share it
    rows                   of each finished run: `values` of the settings that were varied, `config` as far as runs differ in it, from its
                           results.json what is in KEPT, its `curve` [[rollouts, seconds, validation MSE], …], and the
                           `singular_values` of its adapter
    failed                 of each run that ended with a fault: `values` and the last line that it said
"""

import argparse
import contextlib
import ctypes
import itertools
import json
import os
import shlex
import signal
import subprocess
import sys
import time
import zipfile
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

import numpy as np

try:
    import fcntl
except ImportError:  # not on Windows
    fcntl = None

from tqdm import tqdm

from common.contract import ask
from common.errors import BadInput, Parser, folder, reason, run_main
from common.files import require_writable, write_json
from common.results import ROOT, changed_settings, module_of, stubs
from common.stop import Interrupted

KEPT = (
    "seed", "problem_id", "test_mse", "test_mse_last_frame", "validation_mse", "ridge_test_mse", "ridge_validation_mse",
    "ridge_test_mse_at_start", "ridge_test_mse_shuffled", "role", "reproduces", "iterations", "rollouts", "wallclock_s",
    "theta_sha256", "closed_loop_test_mse", "trivial_closed_loop_test_mse", "environment", "source",
)  # fmt: skip
OWN_FLAGS = ("--preset", "--run-dir", "--resume", "--overwrite", "--evaluate", "--dry-run")
SIGNALS = [getattr(signal, name) for name in ("SIGINT", "SIGTERM", "SIGHUP") if hasattr(signal, name)]
PATIENCE_S = 30  # for runs that were asked to stop
MOST_RUNS = 10_000
LONGEST_NAME = 200  # bytes, of a run's folder
IN_USE = "is in use by"  # says an experiment of a folder that another process writes


@dataclass(frozen=True)
class Run:
    """One combination. values: {setting: text} of what is varied. words: of its command line. config: what these make."""

    values: dict[str, str]
    folder: Path
    words: list[str]
    config: dict

    @property
    def name(self) -> str:
        return self.folder.name

    @property
    def log(self) -> Path:
        return self.folder.with_name(self.name + ".log")


def parse_arguments(argv: Sequence[str] | None) -> argparse.Namespace:
    """Command line; what follows a lone -- are flags of the experiment. Raises BadInput."""

    def setting(text: str) -> tuple[str, list[str]]:
        name, found, values = text.partition("=")
        values = list(dict.fromkeys(values.split(",")))
        if not (found and name and all(values)):
            raise argparse.ArgumentTypeError(f"must be NAME=VALUE,VALUE,…, not {text!r}")
        name = name.replace("_", "-")
        if f"--{name}" in OWN_FLAGS:
            raise argparse.ArgumentTypeError(f"cannot be about {name}, which is the sweep's own")
        return name, values

    words = list(sys.argv[1:] if argv is None else argv)
    own, more = (words[: words.index("--")], words[words.index("--") + 1 :]) if "--" in words else (words, [])
    parser = Parser(prog="python -m common.sweep", description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)  # fmt: skip
    parser.add_argument("stub", help="the experiment, by its folder's name")
    parser.add_argument("--folder", type=folder, required=True, help="where runs and sweep.json are written")
    parser.add_argument("--preset", default="laptop", help="of all runs (default: laptop)")
    parser.add_argument("--vary", type=setting, action="append", required=True, metavar="NAME=V,V,…",
                        help="a setting and its values; may be repeated, for all combinations")  # fmt: skip
    parser.add_argument("--at-once", type=int, default=0, help="runs side by side; 0: one for each GPU, on a CPU one")
    parser.add_argument("--dry-run", action="store_true", help="print the command lines; write nothing")
    parser.add_argument("--root", type=Path, default=ROOT, help="another copy of the repository")
    arguments = parser.parse_args(own)
    arguments.flags = more
    if not 0 <= arguments.at_once <= 1024:
        raise BadInput("--at-once must be a whole number from 0 to 1024")
    names = [name for name, _ in arguments.vary]
    for name in names:
        if names.count(name) > 1:
            raise BadInput(f"--vary {name} is given twice")
    for word in more:
        if word.split("=")[0] in (*OWN_FLAGS, *(f"--{name}" for name in names)):
            raise BadInput(f"{word.split('=')[0]} behind --: is given by the sweep itself")
    return arguments


def plan(arguments: argparse.Namespace) -> list[Run]:
    """All runs, in the order of the settings' values, the last setting fastest. Raises BadInput where the experiment would refuse one."""
    root, slug = arguments.root.resolve(), arguments.stub
    if slug not in stubs(root):
        raise BadInput(f"{slug}: no such stub; there are {', '.join(stubs(root)) or 'none'}")
    names, choices = zip(*arguments.vary)
    if (count := int(np.prod([len(values) for values in choices], dtype=float))) > MOST_RUNS:
        raise BadInput(f"--vary: {count:,} combinations; at most {MOST_RUNS:,}")
    runs, commands = [], []
    for values in itertools.product(*choices):
        chosen = dict(zip(names, values))
        words = [
            "--preset",
            arguments.preset,
            *(f"--{name}={value}" for name, value in chosen.items()),
            *arguments.flags,
        ]
        place = arguments.folder.absolute() / ",".join(
            f"{name}={value}".replace("/", "_") for name, value in chosen.items()
        )
        commands.append(words)
        runs.append((chosen, place, words))
    places = [place for _, place, _ in runs]
    if len(set(places)) < len(places) or any(len(place.name.encode()) > LONGEST_NAME for place in places):
        raise BadInput(f"--vary: values must differ in more than / and _, and be at most {LONGEST_NAME} bytes together")
    answers = ask(root, slug, commands)
    for words, (refusal, config) in zip(commands, answers):
        if config is None:
            raise BadInput(f"{slug} {shlex.join(words)}: {refusal or 'is no run'}")
    return [Run(*run, config) for run, (_, config) in zip(runs, answers)]


# --- What a run has left ---------------------------------------------------------------------------------------------


def result_of(run: Run) -> dict | None:
    """results.json of a finished run; None where there is none yet, or not all of it. Raises BadInput where it is of another configuration."""
    path = run.folder / "results.json"
    try:
        result = json.loads(path.read_text(encoding="utf-8"))
        changed = changed_settings(result["config"], run.config)
        if result["seed"] != run.config["seed"]:
            changed.append("seed")
    except FileNotFoundError:
        return None
    except (OSError, ValueError, KeyError, TypeError, AttributeError):
        raise BadInput(f"--folder: {path} is damaged") from None
    if changed:
        raise BadInput(f"--folder: {run.folder} holds a run with another {', '.join(changed)}; name another folder")
    # A finished run that was not scored as far ahead is scored again, when it is resumed.
    return result if len(result.get("closed_loop_test_mse", [])) == run.config.get("horizon", 0) else None


def row_of(run: Run, result: dict, shared: dict) -> dict:
    """A finished run's row of sweep.json. shared: what of its configuration stands there once. Raises BadInput for a damaged file."""
    curve, values = [], []
    try:
        for line in (run.folder / "metrics.jsonl").read_text(encoding="utf-8").splitlines():
            metrics = json.loads(line)
            if metrics.get("validation_mse") is not None:
                curve.append([metrics["rollouts"], round(metrics["wallclock_s"], 2), metrics["validation_mse"]])
        with np.load(run.folder / "figures.npz", allow_pickle=False) as arrays:
            if "singular_values_final" in arrays.files:
                values = [round(float(value), 6) for value in arrays["singular_values_final"] if np.isfinite(value)]
    except (OSError, ValueError, KeyError, TypeError, AttributeError, EOFError, zipfile.BadZipFile) as error:
        raise BadInput(f"--folder: {run.folder} has a damaged metrics.jsonl or figures.npz ({reason(error)})") from None
    own = {name: value for name, value in run.config.items() if name not in shared}
    kept = {name: result[name] for name in KEPT if name in result}
    return {"values": run.values, "config": own, **kept, "curve": curve, "singular_values": values}


def write_sweep(arguments: argparse.Namespace, runs: list[Run], failed: dict[str, str]) -> None:
    """Write sweep.json from what the runs have left."""
    first = runs[0].config
    shared = {name: value for name, value in first.items() if all(run.config[name] == value for run in runs)}
    finished = [(run, result_of(run)) for run in runs]
    content = {
        "schema": 1,
        "stub": arguments.stub,
        "preset": arguments.preset,
        "varied": dict(arguments.vary),
        "config": shared,
        "rows": [row_of(run, result, shared) for run, result in finished if result],
        "failed": [{"values": run.values, "said": failed[run.name]} for run in runs if run.name in failed],
    }
    write_json(arguments.folder / "sweep.json", content)


# --- Running ---------------------------------------------------------------------------------------------------------


def gpus() -> int:
    """How many there are for this process."""
    import torch  # takes a second, and only a sweep that runs needs to know

    return torch.cuda.device_count()


@contextlib.contextmanager
def only_one(folder: Path):
    """While one sweep runs in a folder no other can. Raises BadInput."""
    with open(folder / ".lock", "a") as file:
        if fcntl is not None:
            try:
                fcntl.flock(file, fcntl.LOCK_EX | fcntl.LOCK_NB)
            except BlockingIOError:
                raise BadInput(f"--folder {folder} {IN_USE} another sweep") from None
            except OSError:  # a file system without locks
                pass
        yield


class Lanes:
    """Runs side by side, each a process of its own, with a GPU of its own where there are several, else with a share of the cores."""

    def __init__(self, root: Path, slug: str, at_once: int, on_cpu: bool):
        """at_once: lanes; 0: one for each GPU, or one. on_cpu: no run wants a GPU."""
        self.gpus = 0 if on_cpu else gpus()
        self.at_once = at_once or max(1, self.gpus)
        self.root, self.script = root, root / slug / f"{module_of(slug)}.py"
        self.free = list(range(self.at_once))
        self.running: dict[int, tuple[Run, subprocess.Popen]] = {}

    def start(self, run: Run) -> None:
        lane = self.free.pop(0)
        path = os.pathsep.join(filter(None, [str(self.root), os.environ.get("PYTHONPATH")]))
        environment = {**os.environ, "PYTHONPATH": path, "OMP_WAIT_POLICY": "PASSIVE"}
        words = [*run.words, "--run-dir", str(run.folder)]
        if self.gpus and self.at_once > 1:
            visible = (
                os.environ.get("CUDA_VISIBLE_DEVICES", "").split(",") if "CUDA_VISIBLE_DEVICES" in os.environ else None
            )
            environment["CUDA_VISIBLE_DEVICES"] = (visible or [str(i) for i in range(self.gpus)])[lane % self.gpus]
        elif self.at_once > 1 and not any(word.split("=")[0] == "--threads" for word in words):
            from common.dist import cores  # with torch, see `gpus`

            words += ["--threads", str(max(1, cores() // self.at_once))]
        if (run.folder / "checkpoint.pt").exists():
            words.append("--resume")
        with open(run.log, "ab") as log:
            # In a session of its own: Ctrl-C reaches the sweep alone, which then asks its runs to stop.
            process = subprocess.Popen(
                [sys.executable, str(self.script), *words], env=environment, start_new_session=True,
                stdin=subprocess.DEVNULL, stdout=log, stderr=subprocess.STDOUT, preexec_fn=_end_with_parent,
            )  # fmt: skip
        self.running[lane] = run, process

    def finished(self) -> list[tuple[Run, int]]:
        """Runs that have ended since the last call, with their exit codes."""
        ended = [(lane, run, process.poll()) for lane, (run, process) in self.running.items()]
        for lane, _, code in ended:
            if code is not None:
                del self.running[lane]
                self.free.append(lane)
        return [(run, code) for _, run, code in ended if code is not None]

    def stop(self) -> None:
        """Ask all that run to stop, which leaves them to be resumed, and wait for it."""
        for _, process in self.running.values():
            process.send_signal(signal.SIGTERM)
        deadline = time.monotonic() + PATIENCE_S
        for _, process in self.running.values():
            try:
                process.wait(max(0.0, deadline - time.monotonic()))
            except subprocess.TimeoutExpired:
                process.kill()
                process.wait()
        self.running.clear()


def _end_with_parent() -> None:
    """In a run, before it begins: ask the system for SIGTERM when the sweep ends, even where it is killed. On Linux; elsewhere such
    runs go on to their end."""
    if sys.platform == "linux":
        ctypes.CDLL(None).prctl(1, signal.SIGTERM)  # PR_SET_PDEATHSIG


def last_words(run: Run) -> str:
    """The last line that a run has said."""
    lines = run.log.read_text(encoding="utf-8", errors="replace").replace("\r", "\n").split("\n")
    return next((line.strip() for line in reversed(lines) if line.strip()), "nothing")[:300]


def sweep(arguments: argparse.Namespace, runs: list[Run]) -> dict[str, str]:
    """Run what is not finished yet; returns what failed: {name: its last line}. Raises Interrupted."""
    todo, failed, asked = [run for run in runs if result_of(run) is None], {}, []
    waited = dict.fromkeys((run.name for run in runs), 0)
    on_cpu = all(run.config.get("device") == "cpu" for run in runs)
    lanes = Lanes(arguments.root.resolve(), arguments.stub, arguments.at_once, on_cpu)
    bar = tqdm(
        total=len(runs), initial=len(runs) - len(todo), desc=arguments.stub, unit="run",
        mininterval=0.5 if sys.stderr.isatty() else 15, dynamic_ncols=True,
    )  # fmt: skip
    # A signal is only noted: at no moment is there a run that nobody would stop.
    before = {number: signal.signal(number, lambda number, frame: asked.append(number)) for number in SIGNALS}
    try:
        with bar:
            while (todo or lanes.running) and not asked:
                while todo and lanes.free and not asked:
                    lanes.start(todo.pop(0))
                    bar.set_postfix_str("; ".join(run.name for run, _ in lanes.running.values()))
                for run, code in lanes.finished():
                    said = last_words(run) if code or result_of(run) is None else None
                    # In use by a run of a sweep that was killed, on its way out.
                    if said and IN_USE in said and waited[run.name] < PATIENCE_S:
                        waited[run.name] += 1
                        todo.append(run)
                        time.sleep(1)
                        continue
                    if said:
                        failed[run.name] = said
                        bar.write(f"{run.name}: exit code {code}: {said}", file=sys.stderr)
                    write_sweep(arguments, runs, failed)
                    bar.update()
                time.sleep(0.1)
    finally:
        lanes.stop()
        for number, handler in before.items():
            signal.signal(number, handler)
    if asked:
        print("stopped; the same command goes on", file=sys.stderr)
        raise Interrupted(asked[0])
    write_sweep(arguments, runs, failed)
    return failed


def main(argv: Sequence[str] | None = None) -> int:
    """Run the command line; returns the exit code: 1 where a run has failed. Raises BadInput."""
    arguments = parse_arguments(argv)
    runs = plan(arguments)
    missing = [run for run in runs if result_of(run) is None]
    if arguments.dry_run:
        for run in runs:
            done = "" if run in missing else "  # finished"
            print(
                f"python {module_of(arguments.stub)}.py {shlex.join([*run.words, '--run-dir', str(run.folder)])}{done}"
            )
        return 0
    require_writable(arguments.folder / "sweep.json", "--folder")
    arguments.folder.mkdir(parents=True, exist_ok=True)
    with only_one(arguments.folder):
        failed = sweep(arguments, runs)
    print(f"{len(runs) - len(failed)} of {len(runs)} runs are finished: {arguments.folder / 'sweep.json'}")
    return 1 if failed else 0


if __name__ == "__main__":
    run_main(main)
