"""Which leak, gain and input scale give the frozen reservoir its best ridge readout? Chosen on the validation set alone.

    python sweep_reservoir_readout_only.py

Two rounds. A grid over leak, gain and input scale, each setting with a ridge readout fitted on --train-sequences; then the
best --finalists of the brief's range (α from 0.2 to 0.5) and as many of all leaks, fitted on --final-sequences. The file
is written after every setting, and a sweep that was stopped goes on where it was. Without a GPU: about 25 minutes on two
CPU cores.

The winner of the brief's range is the default of every experiment, and that of all leaks the preset `free-leak`.
"""

import argparse
import itertools
import json
import sys
import time
from dataclasses import replace
from pathlib import Path

import torch
from tqdm import tqdm

from common.dist import Workers, choose_device
from common.errors import BadInput, Parser, run_main
from common.evaluation import ridge_scores
from common.files import require_writable, write_json
from common.problem import Embeddings, ProblemSettings
from common.rollout import Rollout
from common.run import environment, source

HERE = Path(__file__).resolve().parent
LEAKS = (0.2, 0.3, 0.4, 0.5, 0.7, 0.85, 1.0)
BRIEF_LEAKS = (0.2, 0.5)  # "e.g., 0.2–0.5"
GAINS = (0.2, 0.4, 0.6, 0.8, 0.9, 1.0)
INPUT_SCALES = (0.02, 0.03, 0.04, 0.05)


def parse_arguments(argv: list[str] | None) -> argparse.Namespace:
    """Command line; raises BadInput."""

    def numbers(text: str) -> list[float]:
        return list(dict.fromkeys(float(word) for word in text.split(",")))

    parser = Parser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--leaks", type=numbers, default=LEAKS, metavar="A,B,…", help="each > 0 and ≤ 1")
    parser.add_argument("--gains", type=numbers, default=GAINS, metavar="A,B,…", help="each > 0")
    parser.add_argument("--input-scales", type=numbers, default=INPUT_SCALES, metavar="A,B,…", help="each > 0")
    parser.add_argument("--train-sequences", type=int, default=2000, help="of the grid's readouts (default: 2000)")
    parser.add_argument("--final-sequences", type=int, default=10_000, help="of the finalists' (default: 10000)")
    parser.add_argument("--finalists", type=int, default=12, help="settings of each kind in round two (default: 12)")
    parser.add_argument("--hidden-size", type=int, default=2000, help="N (default: 2000)")
    parser.add_argument("--validation-sequences", type=int, default=1000, help="default: 1000")
    parser.add_argument("--device", choices=("auto", "cpu", "cuda"), default="auto")
    parser.add_argument("--threads", type=int, default=0, help="CPU threads; 0: all cores")
    parser.add_argument("--out", type=Path, default=HERE / "measurements" / "sweep.json", help="file to write")
    arguments = parser.parse_args(argv)
    for flag in ("leaks", "gains", "input_scales"):
        if not all(0 < value <= (1 if flag == "leaks" else 1e6) for value in getattr(arguments, flag)):
            raise BadInput(f"--{flag.replace('_', '-')} must be numbers > 0" + " and ≤ 1" * (flag == "leaks"))
    counts = {"train_sequences": 1, "final_sequences": 1, "finalists": 1, "validation_sequences": 1, "threads": 0}
    for flag, least in {**counts, "hidden_size": ProblemSettings.in_degree}.items():
        if not least <= getattr(arguments, flag) <= 1_000_000:
            raise BadInput(f"--{flag.replace('_', '-')} must be a whole number from {least} to 1,000,000")
    return arguments


def best(rows: list[dict], count: int, leaks: tuple[float, float]) -> list[dict]:
    """The `count` rows of lowest validation error with a leak in the closed range."""
    return sorted((r for r in rows if leaks[0] <= r["leak"] <= leaks[1]), key=lambda r: r["validation_mse"])[:count]


class Sweep:
    """The two rounds and their file: rows of {leak, gain, input_scale, train_sequences, validation_mse, …}."""

    def __init__(self, arguments: argparse.Namespace, workers: Workers):
        self.arguments, self.workers = arguments, workers
        self.settings = ProblemSettings(
            hidden_size=arguments.hidden_size, validation_sequences=arguments.validation_sequences
        )
        self.sources: list[dict] = []  # of all processes that have added rows
        self.rows: list[dict] = self._saved_rows()
        if (mine := source(__file__)) not in self.sources:
            self.sources.append(mine)

    def _identity(self) -> dict:
        """What rows must share to stand in one file. The leak, gain and input scale of a problem are what is swept."""
        problem = self.settings.problem(self.settings.load_digits()).description
        return {name: value for name, value in problem.items() if name not in ("leak", "gain", "input_scale")}

    def _saved_rows(self) -> list[dict]:
        path = self.arguments.out
        require_writable(path, "--out")
        if not path.exists():
            return []
        try:
            saved = json.loads(path.read_text())
            problem, rows, self.sources = saved["problem"], saved["rows"], saved["sources"]
            for row in rows:
                for name in ("leak", "gain", "input_scale", "train_sequences", "validation_mse"):
                    float(row[name])
        except (OSError, ValueError, KeyError, TypeError, OverflowError, RecursionError):
            raise BadInput(f"--out {path} is no file of this sweep; name another one") from None
        if problem != self._identity():
            raise BadInput(f"--out {path} holds a sweep of another problem; name another file")
        return rows

    def measure(self, settings: list[tuple[float, float, float]], train_sequences: int) -> list[dict]:
        """Rows of (leak, gain, input scale), those that the file has already from there."""
        done = {
            (r["leak"], r["gain"], r["input_scale"]): r for r in self.rows if r["train_sequences"] == train_sequences
        }
        missing = [setting for setting in settings if setting not in done]
        if missing:
            digits = self.settings.load_digits()
            # A tiny test set is never looked at: a choice made on it could not be trusted afterwards.
            problem = replace(self.settings, test_sequences=1).problem(digits)
            embeddings = Embeddings(problem, digits, train_sequences, self.workers)
            embeddings.prepare(self.workers)
        for setting in tqdm(missing, desc=f"{train_sequences:,} sequences", unit="setting"):
            done[setting] = self._row(setting, embeddings, train_sequences)
            self.rows.append(done[setting])
            self._save()
        return [done[setting] for setting in settings]

    def _row(self, setting: tuple[float, float, float], embeddings: Embeddings, train_sequences: int) -> dict:
        leak, gain, input_scale = setting
        started = time.perf_counter()
        problem = replace(embeddings.problem, leak=leak, gain=gain, input_scale=input_scale)
        rollout = Rollout(problem.reservoir(), leak, guard=1.0, device=self.workers.device)
        none_N1 = torch.zeros(rollout.size, 1, device=self.workers.device)

        def states(input_TEB: torch.Tensor) -> torch.Tensor:
            return rollout.states(none_N1, none_N1, rollout.drive(input_TEB))

        scores, penalty = ridge_scores(states, rollout.size, embeddings, self.workers.map)
        some = torch.arange(min(64, embeddings.sizes["validation"]))
        some_TEB = embeddings.get("validation", some)[:, :-1].permute(1, 2, 0)
        return {
            "leak": leak,
            "gain": gain,
            "input_scale": input_scale,
            "train_sequences": train_sequences,
            "validation_mse": scores["validation"].mse,
            "validation_mse_last_frame": scores["validation"].last_frame,
            "penalty": penalty,
            "h_rms": float(states(some_TEB).square().mean().sqrt()),
            "seconds": time.perf_counter() - started,
        }

    def _save(self) -> None:
        content = {
            "problem": self._identity(),
            "rows": self.rows,
            "environment": environment(self.workers),
            "sources": self.sources,
        }
        write_json(self.arguments.out, content)

    def run(self) -> None:
        arguments = self.arguments
        ranges = {"α of the brief": BRIEF_LEAKS, "α free": (0.0, 1.0)}
        grid = list(itertools.product(arguments.leaks, arguments.gains, arguments.input_scales))
        first = self.measure(grid, arguments.train_sequences)
        finalists = [r for leaks in ranges.values() for r in best(first, arguments.finalists, leaks)]
        keys = dict.fromkeys((r["leak"], r["gain"], r["input_scale"]) for r in finalists)
        final = self.measure(list(keys), arguments.final_sequences)
        for name, leaks in ranges.items():
            for row in best(final, 1, leaks):
                print(
                    f"{name}: leak {row['leak']}, gain {row['gain']}, input scale {row['input_scale']}: "
                    f"validation MSE {row['validation_mse']:.4f}"
                )


def main(argv: list[str] | None = None) -> int:
    arguments = parse_arguments(argv)
    device = choose_device(arguments.device)
    with Workers(device, threads=arguments.threads) as workers:
        if workers.distributed:
            raise BadInput("the sweep runs as one process: start it with python, not torchrun")
        sys.stdout.reconfigure(line_buffering=True)
        Sweep(arguments, workers).run()
    return 0


if __name__ == "__main__":
    run_main(main)
