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

Several sweeps go one after another under one progress bar: a study's (common/study.py).
"""

import argparse
import contextlib
import ctypes
import itertools
import json
import math
import os
import shlex
import signal
import subprocess
import sys
import time
import zipfile
from collections import defaultdict
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
from common.results import ROOT, changed_settings, module_of, scores_in, stubs
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
class Sweep:
    """What is asked for: every combination of the values of `vary`, {setting: its values as text}, of one experiment.

    flags: more words of every run's command line.
    """

    stub: str
    preset: str
    vary: dict[str, list[str]]
    flags: list[str]

    def command(self, folder: Path) -> str:
        """As a user types it."""
        vary = [word for name, values in self.vary.items() for word in ("--vary", f"{name}={','.join(values)}")]
        more = ["--", *self.flags] if self.flags else []
        words = [self.stub, "--folder", folder.as_posix(), "--preset", self.preset, *vary, *more]
        return shlex.join(["python", "-m", "common.sweep", *words])


@dataclass(frozen=True)
class Run:
    """One combination. values: {setting: text} of what is varied. words: of its command line. config: what these make."""

    stub: str
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

    @property
    def command(self) -> str:
        """As a user types it in the experiment's folder."""
        return f"python {module_of(self.stub)}.py {shlex.join([*self.words, '--run-dir', str(self.folder)])}"


@dataclass(frozen=True)
class Plan:
    """A sweep, the folder in which its runs lie, and these, in the order of the settings' values, the last setting fastest."""

    sweep: Sweep
    folder: Path
    runs: list[Run]


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


def combinations(sweep: Sweep, folder: Path) -> list[tuple[dict[str, str], Path, list[str]]]:
    """(values, folder, words) of every run. Raises BadInput."""
    if (count := math.prod(len(values) for values in sweep.vary.values())) > MOST_RUNS:
        raise BadInput(f"--vary: {count:,} combinations; at most {MOST_RUNS:,}")
    runs = []
    for values in itertools.product(*sweep.vary.values()):
        chosen = dict(zip(sweep.vary, values))
        words = ["--preset", sweep.preset, *(f"--{name}={value}" for name, value in chosen.items()), *sweep.flags]
        name = ",".join(f"{name}={value}".replace("/", "_") for name, value in chosen.items())
        runs.append((chosen, folder.absolute() / name, words))
    places = [place for _, place, _ in runs]
    if len(set(places)) < len(places) or any(len(place.name.encode()) > LONGEST_NAME for place in places):
        raise BadInput(f"--vary: values must differ in more than / and _, and be at most {LONGEST_NAME} bytes together")
    return runs


def plan(sweeps: dict[Path, Sweep], root: Path) -> list[Plan]:
    """All runs of sweeps, each of which has a folder of its own. Raises BadInput where an experiment would refuse one."""
    for sweep in sweeps.values():
        if sweep.stub not in stubs(root):
            raise BadInput(f"{sweep.stub}: no such stub; there are {', '.join(stubs(root)) or 'none'}")
    wanted = {folder: combinations(sweep, folder) for folder, sweep in sweeps.items()}
    commands = defaultdict(list)  # an experiment is asked once, whatever the number of its sweeps
    for where, sweep in sweeps.items():
        commands[sweep.stub] += [words for _, _, words in wanted[where]]
    answers = {slug: iter(ask(root, slug, lists)) for slug, lists in commands.items()}
    plans = []
    for where, sweep in sweeps.items():
        runs = []
        for (values, place, words), (refusal, config) in zip(wanted[where], answers[sweep.stub]):
            if config is None:
                raise BadInput(f"{sweep.stub} {shlex.join(words)}: {refusal or 'is no run'}")
            runs.append(Run(sweep.stub, values, place, words, config))
        plans.append(Plan(sweep, where, runs))
    return plans


# --- What a run has left ---------------------------------------------------------------------------------------------


def result_of(run: Run) -> dict | None:
    """results.json of a finished run; None where there is none yet, or not all of it. Raises BadInput where it is of another configuration."""
    path = run.folder / "results.json"
    try:
        result = json.loads(path.read_text(encoding="utf-8"))
        changed = changed_settings(result["config"], run.config)
        asked = {word[2:].partition("=")[0].replace("-", "_") for word in run.words if word.startswith("--")}
        changed += sorted(
            asked & run.config.keys() - result["config"].keys()
        )  # a run from before there was such a setting
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
    values = []
    try:
        lines = (run.folder / "metrics.jsonl").read_text(encoding="utf-8").splitlines()
        curve = [[rollouts, round(seconds, 2), score] for _, rollouts, seconds, score in scores_in(lines)]
        with np.load(run.folder / "figures.npz", allow_pickle=False) as arrays:
            if "singular_values_final" in arrays.files:
                values = [round(float(value), 6) for value in arrays["singular_values_final"] if np.isfinite(value)]
    except (OSError, ValueError, EOFError, zipfile.BadZipFile) as error:
        raise BadInput(f"--folder: {run.folder} has a damaged metrics.jsonl or figures.npz ({reason(error)})") from None
    own = {name: value for name, value in run.config.items() if name not in shared}
    kept = {name: result[name] for name in KEPT if name in result}
    return {"values": run.values, "config": own, **kept, "curve": curve, "singular_values": values}


def content_of(plan: Plan, failed: dict[Path, str]) -> dict:
    """sweep.json, from what the runs have left. failed: {folder: last line} of runs that ended with a fault. Raises BadInput."""
    first, finished = plan.runs[0].config, [(run, result_of(run)) for run in plan.runs]
    shared = {name: value for name, value in first.items() if all(run.config[name] == value for run in plan.runs)}
    return {
        "schema": 1,
        "stub": plan.sweep.stub,
        "preset": plan.sweep.preset,
        "varied": plan.sweep.vary,
        "config": shared,
        "rows": [row_of(run, result, shared) for run, result in finished if result],
        "failed": [{"values": run.values, "said": failed[run.folder]} for run in plan.runs if run.folder in failed],
    }


def write_sweep(plan: Plan, failed: dict[Path, str]) -> None:
    """Write sweep.json."""
    write_json(plan.folder / "sweep.json", content_of(plan, failed))


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

    def __init__(self, root: Path, at_once: int, on_cpu: bool):
        """at_once: lanes; 0: one for each GPU, or one. on_cpu: no run wants a GPU."""
        self.gpus = 0 if on_cpu else gpus()
        self.at_once = at_once or max(1, self.gpus)
        self.root = root
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
        script = self.root / run.stub / f"{module_of(run.stub)}.py"
        with open(run.log, "ab") as log:
            # In a session of its own: Ctrl-C reaches the sweep alone, which then asks its runs to stop.
            process = subprocess.Popen(
                [sys.executable, str(script), *words], env=environment, start_new_session=True,
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


def run_all(plans: list[Plan], root: Path, at_once: int = 0, title: str = "") -> dict[Path, str]:
    """Run what is not finished yet, one sweep after another under one progress bar; returns what failed: {folder: its last line}.

    Raises BadInput where another process runs one of them, Interrupted.
    """
    with contextlib.ExitStack() as locks:
        for plan in plans:
            require_writable(plan.folder / "sweep.json", "--folder")
            locks.enter_context(only_one(plan.folder))
        return _run_all(plans, root, at_once, title)


def _run_all(plans: list[Plan], root: Path, at_once: int, title: str) -> dict[Path, str]:
    runs = {run.folder: (plan, run) for plan in plans for run in plan.runs}
    todo, failed, asked = [run for _, run in runs.values() if result_of(run) is None], {}, []
    waited = dict.fromkeys(runs, 0)
    on_cpu = all(run.config.get("device") == "cpu" for _, run in runs.values())
    lanes = Lanes(root, at_once, on_cpu)
    bar = tqdm(
        total=len(runs), initial=len(runs) - len(todo), desc=title, unit="run",
        mininterval=0.5 if sys.stderr.isatty() else 15, dynamic_ncols=True,
    )  # fmt: skip

    def name(run: Run) -> str:
        return run.name if len(plans) == 1 else f"{run.folder.parent.name}: {run.name}"

    # A signal is only noted: at no moment is there a run that nobody would stop.
    before = {number: signal.signal(number, lambda number, frame: asked.append(number)) for number in SIGNALS}
    try:
        with bar:
            while (todo or lanes.running) and not asked:
                while todo and lanes.free and not asked:
                    lanes.start(todo.pop(0))
                    bar.set_postfix_str("; ".join(name(run) for run, _ in lanes.running.values()))
                for run, code in lanes.finished():
                    said = last_words(run) if code or result_of(run) is None else None
                    # In use by a run of a sweep that was killed, on its way out.
                    if said and IN_USE in said and waited[run.folder] < PATIENCE_S:
                        waited[run.folder] += 1
                        todo.append(run)
                        time.sleep(1)
                        continue
                    if said:
                        failed[run.folder] = said
                        bar.write(f"{name(run)}: exit code {code}: {said}", file=sys.stderr)
                    write_sweep(runs[run.folder][0], failed)
                    bar.update()
                time.sleep(0.1)
    finally:
        lanes.stop()
        for number, handler in before.items():
            signal.signal(number, handler)
    if asked:
        print("stopped; the same command goes on", file=sys.stderr)
        raise Interrupted(asked[0])
    for plan in plans:
        write_sweep(plan, failed)
    return failed


def finished(plans: list[Plan]) -> int:
    """How many runs are. Raises BadInput where a folder holds another run than the one that is planned."""
    return sum(result_of(run) is not None for plan in plans for run in plan.runs)


def print_commands(plans: list[Plan]) -> None:
    """What would be run, a line each."""
    for run in (run for plan in plans for run in plan.runs):
        print(f"{run.command}{'  # finished' if result_of(run) else ''}")


def main(argv: Sequence[str] | None = None) -> int:
    """Run the command line; returns the exit code: 1 where a run has failed. Raises BadInput."""
    arguments = parse_arguments(argv)
    root = arguments.root.resolve()
    sweep = Sweep(arguments.stub, arguments.preset, dict(arguments.vary), arguments.flags)
    plans = plan({arguments.folder: sweep}, root)
    finished(plans)  # refuses before anything is written
    if arguments.dry_run:
        print_commands(plans)
        return 0
    failed = run_all(plans, root, arguments.at_once, sweep.stub)
    total = len(plans[0].runs)
    print(f"{total - len(failed)} of {total} runs are finished: {arguments.folder / 'sweep.json'}")
    return 1 if failed else 0


if __name__ == "__main__":
    run_main(main)
