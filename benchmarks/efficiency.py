"""What the perturbation of a population costs: its throughput over that of pure inference.

    python benchmarks/efficiency.py     (about a minute on 2 CPU cores; --device cuda for a GPU)

Both sides run as many columns through the same network for T steps, in the same tiles on the same threads, with adapter,
decoder, loss and guard; on one side every pair of columns has weights of its own, drawn anew as in training. Efficiency is
time of inference / time of the population: 1 would mean that perturbed members cost nothing extra. (Sarkar et al. 2025 state
91 % of pure inference for EGGROLL on their task.)

    rank1       ±1 rank-one noise: shared products and corrections
    gaussian    full noise, per-member products with U and V
    states      rank1, and the states that each pair visited are handed over tile by tile
    projected   rank1 with states, and V's noise projected on what each pair visited: what a projected update needs

`shared`: all pairs on one minibatch of B sequences. `own`: one own sequence for each pair, where no column shares an input.
"""

import argparse
from collections.abc import Callable

import torch
from harness import add_kernel_flags, parse, parser, summary, take_turns, write
from workload import BRIEF, QUICK, Workload

from common.dist import Workers, choose_device
from common.errors import run_main


def parse_arguments(argv: list[str] | None) -> argparse.Namespace:
    made = parser(__doc__, "efficiency", rounds=15)
    add_kernel_flags(made)
    made.add_argument("--threads", type=int, default=0, help="tiles side by side on a CPU (default: all cores)")
    return parse(made, argv)


def candidates(load: Workload, workers: Workers, kinds: tuple[str, ...]) -> dict[str, Callable[[], object]]:
    runs = {
        "inference": load.inference,
        "rank1": load.members,
        "gaussian": lambda tile: load.members(tile, "gaussian"),
        "states": load.members_visiting,
        "projected": load.members_projected,
    }
    return {kind: lambda run=runs[kind]: load.all_tiles(run, workers) for kind in ("inference", *kinds)}


def measure(load: Workload, workers: Workers, rounds: int, kinds: tuple[str, ...]) -> dict:
    """{kind: efficiency with quartiles}, and rollouts a second of all."""
    seconds = take_turns(candidates(load, workers, kinds), rounds, load.device)
    rollouts = load.tiles * 2 * load.tile_pairs * load.sizes.batch
    return {
        "pairs": load.sizes.pairs,
        "batch": load.sizes.batch,
        "tile_columns": 2 * load.tile_pairs * load.sizes.batch,
        "efficiency": {kind: summary(seconds["inference"] / seconds[kind]) for kind in kinds},
        "rollouts_per_s": {kind: summary(rollouts / values) for kind, values in seconds.items()},
    }


def main(argv: list[str] | None = None) -> int:
    arguments = parse_arguments(argv)
    device = choose_device(arguments.device)
    dtype = getattr(torch, arguments.dtype)
    sizes = QUICK if arguments.quick else BRIEF if device.type == "cpu" else BRIEF.but(pairs=1024, batch=64)
    results = {"device": device.type, "dtype": str(dtype).removeprefix("torch."), "kernel": arguments.kernel}
    with Workers(device, threads=arguments.threads) as workers:
        results["threads"] = workers.threads
        for data, size, kinds in (
            ("shared", sizes, ("rank1", "gaussian", "states")),
            ("own", sizes.but(pairs=sizes.columns // 2, batch=1), ("rank1", "states", "projected")),
        ):
            load = Workload(size, device, dtype, own_data=data == "own", kernel=arguments.kernel)
            results[data] = measure(load, workers, arguments.rounds, kinds)
            for kind, found in results[data]["efficiency"].items():
                low, high = found["quartiles"]
                speed = results[data]["rollouts_per_s"][kind]["median"]
                print(
                    f"{data:6} {kind:9} {found['median']:.3f} ({low:.3f}–{high:.3f}) of inference, {speed:,.0f} rollouts/s"
                )
    write(arguments.output, "efficiency", arguments, results, device)
    return 0


if __name__ == "__main__":
    run_main(main)
