"""How time and memory of an iteration grow with members, sequences, steps, units and rank, on the CPU.

    OMP_WAIT_POLICY=PASSIVE python benchmarks/growth.py     (about two and a half minutes; writes results/growth.json)

Around the brief's problem, K = 16 pairs (32 members), B = 32 sequences, T = 20 steps, N = 2000 units and r = 32, one
size at a time changes and the others stay. An iteration is what moving-mnist-es-reservoir does with its population:
the shared minibatch's Win z + b, the members' tiles through `Workers.run_tiles` (rank-one noise drawn,
`Rollout.errors`), losses → weights (centred ranks), and the estimate from the same noise. The decoder's training and
Adam's step on θ do not depend on the population and are left out. Weights and inputs are made up; k = 50 inputs a unit
at every N. Every iteration has a number of its own, and so noise of its own, as in training.

*Time.* All sizes take turns in every round. In each round log(seconds) over log(size) is fitted by least squares; the
slope is given as median and quartiles over the rounds, and so is the slope between the two largest sizes. Expected: 1
for K, B, T and N; less for r, which is in only a part of the products. Tiles follow the rule of common/rollout.py,
which looks at K, B and N: each row says how many columns its tiles have, and the threads share them.

*Peak memory*, each size in a process of its own, with one thread, after a run of the same with two steps, whose
buffers inside libraries do not count: by how much the resident set rises (common/costs.py). Blocks from 64 kB on are
returned to the system when they are freed, so that this is memory in use.

    rollout     one tile of the population: noise drawn, rolled out, scored. Win z + b is there before
    iteration   all of it, Win z + b (T · N · B numbers) formed inside
    estimate    the update's part of an iteration alone: noise drawn in chunks of pairs, and ĝ

What has to grow with T are the inputs: z and the targets ((T + 1) · 128 · B numbers, there before) and Win z + b. Each
row counts them in bytes (`input_bytes`, `drive_bytes`) and gives the peak without Win z + b
(`peak_without_drive_bytes`). Expected: flat in T apart from the errors, a float64 for each of a tile's columns and
each step (`errors_bytes`), and one or two arrays of their size; `rollout` flat in K; `estimate` linear in K up to a
chunk, of which each thread holds one, and beyond it only what waits to be summed, 2 · 2Nr numbers a chunk.
"""

import argparse
import dataclasses
import itertools
import json
import os
import subprocess
import sys
from collections.abc import Callable, Sequence

import numpy as np
import torch
import workload
from harness import parse, parser, summary, take_turns, write
from torch import Tensor
from workload import SIGMA, Sizes, Workload

from common import es
from common.costs import peak_growth
from common.dist import Workers
from common.encoder import EMBEDDING
from common.errors import BadInput, run_main
from common.rollout import pairs_per_tile

MMAP_FROM = 65_536  # bytes
WARM_UP_STEPS = 2


# --- One iteration ---------------------------------------------------------------------------------------------------


BRIEF = workload.BRIEF.but(pairs=16)
AXES = {
    "pairs": (8, 16, 32, 64, 128),
    "batch": (8, 16, 32, 64, 128),
    "steps": (5, 10, 20, 40, 80),
    "size": (1000, 2000, 4000, 8000),
    "rank": (8, 16, 32, 64, 128),
}
MEMORY_AXES = {"steps": (20, 80, 320), "pairs": (16, 64, 256)}
ESTIMATE_PAIRS = (16, 32, 64, 256, 1024, 4096)  # the estimate alone is quick enough for them
QUICK = workload.QUICK.but(pairs=8, steps=4, size=160, in_degree=8)
QUICK_AXES = {"pairs": (8, 16), "batch": (4, 8), "steps": (4, 8), "size": (160, 320), "rank": (4, 8)}
QUICK_MEMORY_AXES = {"steps": (4, 8), "pairs": (8, 16)}
QUICK_ESTIMATE_PAIRS = (8, 16, 256, 512)


class Problem(Workload):
    """The shared workload under rank-one noise, its inputs formed anew in each iteration.

    The workload's own copy of them is there before anything is measured.
    """

    def __init__(self, sizes: Sizes):
        super().__init__(sizes)
        self.noise = es.make_noise("rank1", 0, sizes.size, sizes.rank)

    def evaluate(self, tile: int, inputs: tuple[Tensor, Tensor]) -> Tensor:
        """Losses, then failures (0 or 1), of the members of a tile: float64 (4 · pairs of a tile,)."""
        result = self._run(self.adapter(tile), inputs=inputs)  # past the population in the last tile: padding
        loss_P2 = result.error_TC.sum(dim=0).view(self.columns).mean(dim=2) / (self.sizes.steps * EMBEDDING)
        failed_P2 = result.failed_C.view(self.columns).any(dim=2)
        return torch.cat((loss_P2.flatten(), failed_P2.flatten().to(torch.float64)))


def population(problem: Problem, number: int, workers: Workers) -> tuple[Tensor, Tensor]:
    """Losses float64 (K, 2) of θ + σε and θ − σε, and which of them failed, on every rank."""
    problem.iteration = number
    pairs, inputs = problem.tile_pairs, problem.inputs()
    rows = workers.run_tiles(lambda tile: problem.evaluate(tile, inputs), problem.tiles, 4 * pairs)
    losses_K2 = rows[:, : 2 * pairs].reshape(-1, 2)[: problem.sizes.pairs]
    failed_K2 = rows[:, 2 * pairs :].reshape(-1, 2)[: problem.sizes.pairs] > 0
    return losses_K2, failed_K2


def estimate(noise, losses_K2: Tensor, failed_K2: Tensor, number: int, workers: Workers) -> es.Estimate:
    weights = es.pair_weights(losses_K2, failed_K2, "centered-rank")
    return es.estimate_gradient(noise, weights, number, SIGMA, workers.device, workers.map)


def iteration(problem: Problem, number: int, workers: Workers) -> es.Estimate:
    """What a population costs from the minibatch to ĝ, as `iterate` of moving-mnist-es-reservoir has it."""
    return estimate(problem.noise, *population(problem, number, workers), number, workers)


# --- Time ------------------------------------------------------------------------------------------------------------


def slopes(sizes: Sequence[int], seconds_SR: np.ndarray) -> np.ndarray:
    """Exponents (R,) of seconds ~ size^slope, round by round, by least squares over the logarithms."""
    x_S, y_SR = np.log(np.asarray(sizes, dtype=float)), np.log(seconds_SR)
    x_S = x_S - x_S.mean()
    return x_S @ y_SR / (x_S @ x_S)


def measure_time(start: Sizes, axes: dict[str, Sequence[int]], rounds: int, workers: Workers) -> dict:
    """{axis: slope with its spread, and a row for each size}."""
    points = {axis: [start.but(**{axis: value}) for value in axes[axis]] for axis in axes}
    problems = {point: Problem(point) for axis in axes for point in points[axis]}
    number = itertools.count(1)
    runs = {
        point: lambda problem=problem: iteration(problem, next(number), workers) for point, problem in problems.items()
    }
    seconds = take_turns(runs, rounds, say=lambda text: print(f"  {text}", flush=True))
    found = {}
    for axis, values in axes.items():
        seconds_SR = np.stack([seconds[point] for point in points[axis]])
        found[axis] = {
            "slope": summary(slopes(values, seconds_SR)),
            "slope_of_largest_two": summary(slopes(values[-2:], seconds_SR[-2:])),
            "rows": [
                {
                    "value": value,
                    "tiles": problems[point].tiles,
                    "tile_columns": 2 * problems[point].tile_pairs * point.batch,
                    "seconds": summary(seconds[point]),
                    "rollouts_per_s": summary(2 * point.pairs * point.batch / seconds[point]),
                }
                for value, point in zip(values, points[axis])
            ],
        }
    return found


# --- Memory ----------------------------------------------------------------------------------------------------------


def memory_step(what: str, sizes: Sizes, number: int, workers: Workers) -> Callable[[], object]:
    """The work whose peak is measured, as of iteration `number`; its inputs are made here."""
    if what == "estimate":
        noise = es.make_noise("rank1", 0, sizes.size, sizes.rank)
        losses_K2 = torch.rand(sizes.pairs, 2, dtype=torch.float64, generator=torch.Generator().manual_seed(0))
        failed_K2 = torch.zeros(sizes.pairs, 2, dtype=torch.bool)
        return lambda: estimate(noise, losses_K2, failed_K2, number, workers)
    problem = Problem(sizes)
    if what == "iteration":
        return lambda: iteration(problem, number, workers)
    problem.iteration, inputs = number, problem.inputs()
    return lambda: workers.map(lambda tile: problem.evaluate(tile, inputs), range(1))


def measure_memory(what: str, sizes: Sizes, workers: Workers) -> dict:
    """One row. In a process that has done other things before, the peak may miss what they left behind."""
    memory_step(what, sizes.but(steps=WARM_UP_STEPS), 1, workers)()
    step = memory_step(what, sizes, 2, workers)
    peak = peak_growth(step, torch.device("cpu"))
    tile_pairs = pairs_per_tile(sizes.pairs, sizes.batch, sizes.size, torch.float32, "cpu")
    counted = {
        "drive_bytes": 4 * sizes.steps * sizes.size * sizes.batch,
        "input_bytes": 4 * (sizes.steps + 1) * EMBEDDING * sizes.batch,
        "errors_bytes": 8 * sizes.steps * 2 * tile_pairs * sizes.batch,
    }
    return {
        "what": what,
        "pairs": sizes.pairs,
        "steps": sizes.steps,
        "peak_bytes": peak,
        **{name: 0 if what == "estimate" else size for name, size in counted.items()},
        "peak_without_drive_bytes": peak - (counted["drive_bytes"] if what == "iteration" else 0),
    }


def measure_memory_apart(what: str, sizes: Sizes, output: str) -> dict:
    """`measure_memory` in a process of its own."""
    task = json.dumps({"what": what, "sizes": dataclasses.asdict(sizes)})
    settings = {**os.environ, "MALLOC_MMAP_THRESHOLD_": str(MMAP_FROM)}
    command = [sys.executable, __file__, "--measure", task, "--output", output]
    done = subprocess.run(command, env=settings, capture_output=True, text=True)
    if done.returncode:
        raise RuntimeError(f"{task} ended with code {done.returncode}: {done.stderr.strip()[-500:]}")
    return json.loads(done.stdout)


def memory_tasks(start: Sizes, axes: dict[str, Sequence[int]], estimate_pairs: Sequence[int]) -> list:
    points = {start.but(**{axis: value}): None for axis in axes for value in axes[axis]}  # each once
    tasks = [(what, point) for what in ("rollout", "iteration") for point in points]
    return tasks + [("estimate", start.but(pairs=pairs)) for pairs in estimate_pairs]


def per_unit(rows: list[dict], axis: str, least: int = 0, most: float = float("inf")) -> float | None:
    """Bytes that one more adds to the peak without Win z + b, by least squares; None from fewer than two sizes."""
    rows = [row for row in rows if least <= row[axis] <= most]
    if len({row[axis] for row in rows}) < 2:
        return None
    values = [row[axis] for row in rows]
    return round(float(np.polyfit(values, [row["peak_without_drive_bytes"] for row in rows], 1)[0]), 1)


def summarise_memory(rows: list[dict], start: Sizes) -> dict:
    """Growth of each kind of work with T and with K, in bytes a step and bytes a pair, beside the rows."""

    def along(what: str, axis: str) -> list[dict]:
        other = "steps" if axis == "pairs" else "pairs"
        return [row for row in rows if row["what"] == what and row[other] == getattr(start, other)]

    chunk = es.RankOneNoise.CHUNK["cpu"]
    return {
        "rows": rows,
        "bytes_a_step": {what: per_unit(along(what, "steps"), "steps") for what in ("rollout", "iteration")},
        "errors_bytes_a_step": {
            what: along(what, "steps")[0]["errors_bytes"] // start.steps for what in ("rollout", "iteration")
        },
        "bytes_a_pair": {
            "rollout": per_unit(along("rollout", "pairs"), "pairs"),
            "iteration": per_unit(along("iteration", "pairs"), "pairs"),
            "estimate_within_a_chunk": per_unit(along("estimate", "pairs"), "pairs", most=chunk),
            "estimate_beyond_a_chunk": per_unit(along("estimate", "pairs"), "pairs", least=chunk),
        },
        "chunk_pairs": chunk,
        "noise_bytes_a_pair": 4 * 2 * (start.size + start.rank),  # ±1 as float32, drawn for one chunk at a time
    }


# --- Main ------------------------------------------------------------------------------------------------------------


def parse_arguments(argv: list[str] | None) -> argparse.Namespace:
    made = parser(__doc__, "growth", rounds=9)
    made.add_argument("--measure", type=json.loads, help=argparse.SUPPRESS)  # one row of memory, here, printed as JSON
    return parse(made, argv)


def main(argv: list[str] | None = None) -> int:
    arguments = parse_arguments(argv)
    cpu = torch.device("cpu")
    if arguments.measure:
        with Workers(cpu, threads=1) as workers:
            print(json.dumps(measure_memory(arguments.measure["what"], Sizes(**arguments.measure["sizes"]), workers)))
        return 0
    start, axes, memory_axes, estimate_pairs = (
        (QUICK, QUICK_AXES, QUICK_MEMORY_AXES, QUICK_ESTIMATE_PAIRS)
        if arguments.quick
        else (BRIEF, AXES, MEMORY_AXES, ESTIMATE_PAIRS)
    )
    with Workers(cpu) as workers:
        if workers.distributed:
            raise BadInput("measurements run as one process: start them with python, not torchrun")
        threads = workers.threads
        print(f"time of an iteration, {threads} threads", flush=True)
        time = measure_time(start, axes, arguments.rounds, workers)
    for axis, found in time.items():
        low, high = found["slope"]["quartiles"]
        seconds = ", ".join(f"{row['value']}: {row['seconds']['median']:.3g} s" for row in found["rows"])
        print(f"  {axis:5} slope {found['slope']['median']:.2f} ({low:.2f} to {high:.2f})   {seconds}", flush=True)

    print("peak memory, one thread", flush=True)
    rows = []
    with Workers(cpu, threads=1) as workers:
        for number, (what, sizes) in enumerate(memory_tasks(start, memory_axes, estimate_pairs)):
            # A quick run looks at one process; for the rest its own will do.
            here = arguments.quick and number > 0
            row = (
                measure_memory(what, sizes, workers)
                if here
                else measure_memory_apart(what, sizes, str(arguments.output))
            )
            rows.append(row)
            print(f"  {what:9} K {row['pairs']:5} T {row['steps']:4}  {row['peak_bytes'] / 1e6:8.2f} MB", flush=True)
    memory = summarise_memory(rows, start)
    print(f"  bytes a step: {memory['bytes_a_step']}, a pair: {memory['bytes_a_pair']}")
    results = {"start": dataclasses.asdict(start), "noise": "rank1", "dtype": "float32", "threads": threads}
    write(arguments.output, "growth", arguments, {**results, "time": time, "memory": memory})
    return 0


if __name__ == "__main__":
    run_main(main)
