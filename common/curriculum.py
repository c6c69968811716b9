"""The brief's schedule as one run: problems that grow harder, each begun with what the one before has learned (--curriculum).

    two digits → T = 50 → T = 100 → N = 5000 → r = 64 → one α that learns → an α of each unit

Each rung changes one thing more, and all before it stay changed. The sizes are the brief's where the run starts as the brief does (T = 20,
N = 2000, r = 32), else they grow by as much. A rung that an experiment has no setting for, or that the start has climbed already, is left
out. A rung ends with its --iterations, or, with --patience P, at a plateau: P scores on the validation set in a row without a better one since
its first iteration. (Learning rates begin anew in each rung, whose first steps make it worse than what it took over.) What is handed on are
the parameters of the best, which may be those that were taken over.

Every rung is a run of its own, in a folder of its own in the run folder, and starts from the one before it (`--start-from`), so that what is
predicted stays as it was where T, N, r or the leak grow. It knows the hash of the adapter that it began with: one that began with another than
the rung before has now is run anew. `curriculum.json` in the run folder has a line for each rung that is finished.
"""

import contextlib
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path

from common.errors import BadInput, reason
from common.files import write_json
from common.results import CURRICULUM, FIRST_RUNG, evenly, read_result, scores_in
from common.run import RunFolder, load_checkpoint

CURVE_POINTS = 60
# Of a rung's results.json, what its line says.
KEPT = (
    "problem_id", "problem", "iterations", "best_iteration", "rollouts", "wallclock_s", "validation_mse_taken_over", "validation_mse",
    "test_mse", "test_mse_last_frame", "ridge_test_mse", "ridge_test_mse_at_start", "trivial_test_mse", "reproduces", "theta_sha256",
    "environment", "source",
)  # fmt: skip


@dataclass(frozen=True)
class Rung:
    """name: what is new in it. folder: its name in the run folder. config: with everything that has changed so far."""

    name: str
    folder: str
    config: object


def steps_of(config) -> list[tuple[str, str, dict]]:
    """(name, short name, changed settings) of the rungs after the first, for an experiment with this configuration."""
    length, units, rank = config.sequence_length, config.hidden_size, getattr(config, "rank", 0)
    leaks = ("no", "scalar", "per-unit")
    climbed = leaks.index(config.train_leak) if hasattr(config, "train_leak") else len(leaks)
    steps = [("two digits", "two-digits", {"digits": 2})] if config.digits == 1 else []
    steps += [(f"T = {long}", f"length-{long}", {"sequence_length": long}) for long in (length * 5 // 2, length * 5)]
    wide = units * 5 // 2
    steps.append((f"N = {wide}", f"units-{wide}", {"hidden_size": wide, "grown_from": units}))
    if rank:
        steps.append((f"r = {2 * rank}", f"rank-{2 * rank}", {"rank": 2 * rank}))
    for kind, name in (("scalar", "one α learns"), ("per-unit", "an α of each unit")):
        if climbed < leaks.index(kind):
            steps.append((name, f"leak-{kind}", {"train_leak": kind}))
    return steps


def rungs_of(config, words: list[str], run_dir: Path, parse_arguments: Callable) -> list[Rung]:
    """All rungs. words: of the command line, to which each rung adds its own; parse_arguments: the experiment's, which refuses what it
    cannot do. Raises BadInput."""
    if config.grown_from:
        raise BadInput("--grown-from is a rung of --curriculum: leave it out")
    if getattr(config, "core", "reservoir") != "reservoir" or getattr(config, "trains", "") == "all":
        raise BadInput("--curriculum hands on an adapter of the reservoir: choose another --core or --trains")
    rungs, changes = [Rung("start", FIRST_RUNG, config)], {}
    for number, (name, short, change) in enumerate(steps_of(config), start=1):
        changes |= change
        more = [f"--{key.replace('_', '-')}={value}" for key, value in changes.items()]
        try:
            of_rung, _ = parse_arguments([*words, *more, f"--start-from={run_dir / rungs[-1].folder}"])
        except BadInput as error:
            raise BadInput(f"--curriculum, rung {number} ({name}): {error}") from None
        rungs.append(Rung(name, f"{number}-{short}", of_rung))
    return rungs


class Log:
    """The rungs of a run folder, and `curriculum.json`, which is made from what they have left. On rank 0 only."""

    def __init__(self, run_dir: Path, rungs: list[Rung]):
        self.run_dir, self.rungs = run_dir, rungs
        self.lines: list[dict] = []

    def folder(self, number: int) -> RunFolder:
        return RunFolder(self.run_dir / self.rungs[number].folder, {})

    def require_free(self, replaces: bool) -> None:
        """Raises BadInput where another run is in the way. replaces: a curriculum may be there."""
        if RunFolder(self.run_dir, {}).holds_run:
            raise BadInput(f"--run-dir {self.run_dir} holds a run that is no curriculum: name another folder")
        if (self.run_dir / CURRICULUM).is_dir():
            raise BadInput(f"--run-dir {self.run_dir} cannot be written: {CURRICULUM} is a folder")
        if not replaces and any(self.folder(number).holds_run for number in range(len(self.rungs))):
            raise BadInput(
                f"--run-dir {self.run_dir} already holds a curriculum; --resume continues it, --overwrite deletes it"
            )

    def state(self, number: int) -> str:
        """Of a rung whose predecessors have their lines: "finished", "begun", or "new". A run that began with another adapter than the rung before has
        now is neither of the first two. Raises BadInput for a damaged result."""
        folder, rung = self.folder(number), self.rungs[number]
        if not folder.holds_run:
            return "new"
        begun_with = self.lines[number - 1]["theta_sha256"] if number else None
        if (folder.path / "results.json").is_file():
            result = read_result(folder.path / "results.json")
            if number and result.get("start_theta_sha256") != begun_with:
                return "new"
            # One that was not scored as far ahead is scored again, when it is resumed.
            scored = len(result.get("closed_loop_test_mse", [])) == rung.config.horizon
            return "finished" if scored else "begun"
        return "begun" if not number or _begun_with(folder) in (begun_with, None) else "new"

    def add(self, number: int) -> None:
        """Write down that a rung is finished."""
        rung, folder = self.rungs[number], self.folder(number).path
        result = read_result(folder / "results.json")
        metrics = folder / "metrics.jsonl"
        try:
            curve = list(map(list, scores_in(metrics.read_text(encoding="utf-8").splitlines())))
        except (OSError, ValueError) as error:
            raise BadInput(f"{metrics}: {reason(error)}") from None
        ended = "budget" if result["iterations"] >= rung.config.iterations else "plateau"
        kept = {key: result[key] for key in KEPT if key in result}
        line = {"name": rung.name, "folder": rung.folder, "ended": ended, **kept, "curve": evenly(curve, CURVE_POINTS)}
        self.lines = [*self.lines[:number], line]
        content = {
            "schema": 1,
            **{key: result[key] for key in ("stub", "preset", "seed")},
            "config": read_result(self.folder(0).path / "results.json")["config"],
            "planned": [rung.name for rung in self.rungs],
            "rungs": self.lines,
        }
        write_json(self.run_dir / CURRICULUM, content)

    def table(self) -> str:
        """The finished rungs, one a line: what was taken over, what became of it, and the frozen core under a ridge readout."""
        columns = {"validation_mse_taken_over": "taken over", "validation_mse": "validation", "test_mse": "test"}
        columns |= {"ridge_test_mse": "ridge", "ridge_test_mse_at_start": "frozen"}
        lines = [f"{'validation MSE, then test MSE':30}" + "".join(f"{name:>12}" for name in columns.values())]
        for line in self.lines:
            cells = (f"{line[key]:.4f}" if key in line else "" for key in columns)
            lines.append(f"{line['name']:30}" + "".join(f"{cell:>12}" for cell in cells))
        return "\n".join(lines)


def _begun_with(folder: RunFolder) -> str | None:
    """The hash of the adapter that an unfinished rung began with; None where its checkpoints do not tell."""
    for path in (folder.checkpoint, folder.previous):
        with contextlib.suppress(BadInput):
            return (load_checkpoint(path).get("begun_from") or {}).get("theta_sha256")
    return None
