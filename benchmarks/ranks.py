"""What more ranks cost: communication at 2, 4 and 8 ranks, the update that every rank repeats, and a model for GPUs.

    OMP_WAIT_POLICY=PASSIVE python benchmarks/ranks.py     (about a minute; writes results/ranks.json)

*Measured, ranks.* For each number of ranks this script starts itself under torchrun, with gloo and the cores divided
by the ranks as threads, one at least. Every rank runs whole iterations (benchmarks/growth.py) of the brief's problem,
K = 32 pairs on B = 32 sequences. A barrier is put before the all-gather in `Workers.run_tiles`, which tells two things
apart that an all-gather alone mixes:

    waiting             time in that barrier: for ranks with more tiles or slower cores, and its own (`barrier_s`)
    collective alone    time in the all-gather, all ranks there

Where there are fewer cores than ranks (`oversubscribed`), ranks take turns on a core: an iteration is then no faster,
waiting means little, and even the collective alone waits for ranks to be given a core. `mean` is over the ranks,
`least` is that of the fastest rank. The collective alone is measured by itself as well, with what is sent at K = 32,
512 and 8192. Whether a rank was asked to stop goes along in the same all-gather, and every tenth iteration a checksum
of what was trained, whose making is measured too.

*Counted, bytes.* A tile's row is two losses and two flags a pair, all float64; a rank sends a header and as many rows as
the rank with the most tiles, the last one padded. Counted at the all-gather, and again by formula; both have to agree.

*Measured, one rank.* Every rank draws the noise of all K pairs and forms the whole update from it: Amdahl's term. It
is measured as `estimate_gradient` of an iteration whose noise has not been drawn yet, at K = 32, 512 and 8192. What is
left of an iteration, the population, is measured at K = 32 and multiplied by K / 32 (growth.py measures that it is
linear).

*Model, not measured.* Communication and the redundant update on 8 H200s and on 64 GPUs, as shares of an iteration.
Every assumption is a named number below with its source, and stands in the file; the rollouts a second that a GPU does
are a parameter (--throughputs). What the update moves and how many operators it calls are counted. An iteration is

    tiles of the busiest rank · time of a tile  +  redundant update  +  communication

without the decoder's training, which runs beside the population.
"""

import argparse
import itertools
import json
import os
import socket
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from unittest import mock

import growth
import numpy as np
import torch
import torch.distributed as dist
from harness import cores, parse, parser, summary, take_turns, write
from torch import Tensor
from workload import BRIEF, SIGMA, Sizes

from common import es, philox
from common.costs import BytesMoved
from common.dist import HEADER, Workers, checksum
from common.encoder import EMBEDDING
from common.errors import BadInput, run_main
from common.files import write_json
from common.rollout import pairs_per_tile

QUICK = growth.QUICK
RANKS, QUICK_RANKS = (2, 4, 8), (2,)
GATHERED_PAIRS = (32, 512, 8192)  # of the collective alone, and of the redundant update
QUICK_GATHERED_PAIRS = (8, 32)
REPEATS, QUICK_REPEATS = 100, 5  # of the collective alone
PATIENCE_S = 600  # for one number of ranks

# --- Assumptions of the model ----------------------------------------------------------------------------------------


@dataclass(frozen=True)
class Machine:
    ranks: int
    latency_s: tuple[float, float]  # of a collective with a small message: least and most
    bytes_per_s: float  # at which what a rank gathers arrives
    source: str


MACHINES = {
    "8 H200, one node": Machine(
        8,
        (20e-6, 40e-6),
        0.5 * 450e9,
        "latency assumed; an all-reduce of 8 to 128 bytes on A100s of one node took 19 to 21 µs "
        "(github.com/NVIDIA/nccl-tests issue 150). NVLink 450 GB/s each way (900 GB/s both, NVIDIA's "
        "H200 data sheet), half of it assumed reached",
    ),
    "64 GPUs, 8 nodes": Machine(
        64,
        (50e-6, 100e-6),
        46e9,
        "latency assumed; an all-reduce of 128 bytes in a cluster of H100s took 62 µs "
        "(github.com/NVIDIA/nccl issue 1453). One 400 Gb/s InfiniBand card a GPU, 46 to 48 GB/s in practice "
        "(github.com/NVIDIA/nccl-tests issue 290)",
    ),
}
COLLECTIVES = 1  # an iteration: the all-gather of losses, with the stop flag in its header (common/dist.py)
HOST_COPIES, HOST_COPY_S = 3, 10e-6  # header and rows to the GPU, what was gathered back; seconds each assumed
LAUNCH_S = 5e-6  # of a kernel from Python, assumed
CALLS_A_STEP = 19  # kernels a step of the rollout on a GPU, guard and scoring among them: counted in common/rollout.py
MEMORY_BYTES_PER_S = 0.5 * 4.8e12  # H200's 4.8 TB/s (NVIDIA's data sheet), half of it assumed reached
THROUGHPUTS = (3e5, 1e6, 3e6)  # rollouts of T = 20 steps a second and GPU, assumed: the result is given for each
POPULATIONS = ((32, 32), (512, 32), (8192, 64), (65536, 64))  # K and B: the brief's, two between, and beyond


# --- Bytes -----------------------------------------------------------------------------------------------------------


def gathered_bytes(pairs: int, tile_pairs: int, ranks: int) -> dict[str, int]:
    """What one all-gather of `Workers.run_tiles` moves for K pairs."""
    tiles = -(-pairs // tile_pairs)
    sent = 8 * HEADER + -(-tiles // ranks) * 4 * tile_pairs * 8
    return {
        "useful": 4 * pairs * 8,  # 2K losses and 2K flags, float64
        "sent_by_a_rank": sent,
        "received_by_a_rank": (ranks - 1) * sent,
        "held_by_a_rank": ranks * sent,
    }


# --- On a rank -------------------------------------------------------------------------------------------------------


class TimedGather:
    """Stands in for torch.distributed.all_gather: a barrier, then the real one, both timed, and its bytes counted."""

    def __init__(self):
        self.original, self.waiting_s, self.collective_s, self.sent, self.held = dist.all_gather, 0.0, 0.0, 0, 0

    def __call__(self, gathered: list[Tensor], local: Tensor, **options) -> None:
        start = time.perf_counter()
        dist.barrier()
        met = time.perf_counter()
        self.original(gathered, local, **options)
        self.waiting_s, self.collective_s = met - start, time.perf_counter() - met
        self.sent, self.held = local.nbytes, sum(tensor.nbytes for tensor in gathered)


def alone(collective: Callable[[], object], repeats: int) -> list[float]:
    """Seconds of each repeat on this rank, the ranks synchronised before each."""
    seconds = []
    for repeat in range(repeats + 3):
        dist.barrier()
        started = time.perf_counter()
        collective()
        if repeat >= 3:
            seconds.append(time.perf_counter() - started)
    return seconds


def of_all_ranks(values: list[float]) -> np.ndarray:
    """(ranks, measurements), on every rank."""
    gathered = [None] * dist.get_world_size()
    dist.all_gather_object(gathered, values)
    return np.array(gathered)


def over_ranks(seconds_RM: np.ndarray) -> dict:
    """Of each measurement the mean over the ranks and the least; median and quartiles over the measurements."""
    return {"mean": summary(seconds_RM.mean(axis=0)), "least": summary(seconds_RM.min(axis=0))}


def measure_rank(sizes: Sizes, gathered_pairs: tuple[int, ...], repeats: int, rounds: int, workers: Workers):
    """What one rank does; the same results on every rank."""
    problem, ranks = growth.Problem(sizes), workers.world_size
    rows = []
    for number in range(rounds + 1):  # the first does not count
        dist.barrier()
        started = time.perf_counter()
        with mock.patch.object(dist, "all_gather", TimedGather()) as times:
            growth.iteration(problem, number, workers)
        rows.append((time.perf_counter() - started, times.waiting_s, times.collective_s))
    counted = {"sent_by_a_rank": times.sent, "held_by_a_rank": times.held}
    iteration_RM, waiting_RM, collective_RM = (of_all_ranks(list(column)) for column in zip(*rows[1:]))

    gathers = []
    for pairs in gathered_pairs:
        tile_pairs = pairs_per_tile(pairs, sizes.batch, sizes.size, torch.float32, "cpu")
        bytes_ = gathered_bytes(pairs, tile_pairs, ranks)
        local = torch.zeros(bytes_["sent_by_a_rank"], dtype=torch.uint8)
        gathered = [torch.empty_like(local) for _ in range(ranks)]
        seconds = of_all_ranks(alone(lambda local=local, into=gathered: dist.all_gather(into, local), repeats))
        gathers.append({"pairs": pairs, "bytes": bytes_, "seconds": over_ranks(seconds)})
    trained = [torch.zeros(2, sizes.size, sizes.rank), torch.zeros(EMBEDDING, sizes.size)]  # U and V, the decoder
    checksums = of_all_ranks(alone(lambda: checksum(trained), repeats))
    barrier = of_all_ranks(alone(dist.barrier, repeats))

    predicted = gathered_bytes(sizes.pairs, problem.tile_pairs, ranks)
    if any(predicted[name] != found for name, found in counted.items()):
        raise RuntimeError(f"the all-gather moved {counted} bytes where the formula has {predicted}")
    iteration_M = iteration_RM.max(axis=0)
    return {
        "ranks": ranks,
        "threads_a_rank": workers.threads,
        "oversubscribed": ranks * workers.threads > cores(),
        "tiles": problem.tiles,
        "bytes": predicted,
        "bytes_counted": counted,
        "iteration_s": summary(iteration_M),
        "waiting_s": over_ranks(waiting_RM),
        "collective_alone_s": over_ranks(collective_RM),
        "waiting_share": summary(waiting_RM.mean(axis=0) / iteration_M),
        "collective_alone_share": summary(collective_RM.mean(axis=0) / iteration_M),
        "collective_alone_by_pairs": gathers,
        "checksum_s": over_ranks(checksums),
        "barrier_s": over_ranks(barrier),
    }


def start_ranks(ranks: int, arguments: argparse.Namespace) -> dict:
    """This script under torchrun; what its rank 0 reports."""
    with socket.socket() as listener:
        listener.bind(("127.0.0.1", 0))
        port = listener.getsockname()[1]
    with tempfile.TemporaryDirectory() as folder:
        report = Path(folder) / "report.json"
        command = [sys.executable, "-m", "torch.distributed.run", f"--nproc_per_node={ranks}", f"--master_port={port}"]
        command += [__file__, "--rank-report", str(report), "--rounds", str(arguments.rounds)]
        command += ["--output", str(arguments.output), *(["--quick"] if arguments.quick else [])]
        # Without OMP_NUM_THREADS torchrun sets it to 1 as well, and prints a notice of many lines.
        environment = {**os.environ, "OMP_NUM_THREADS": "1"}
        process = subprocess.Popen(
            command, env=environment, stdout=subprocess.PIPE, stderr=subprocess.STDOUT, text=True
        )
        try:
            output, _ = process.communicate(timeout=PATIENCE_S)
        finally:
            if process.poll() is None:  # Ctrl-C, or they hang: torchrun ends its ranks before it goes
                process.terminate()
                process.wait()
        if process.returncode:
            raise RuntimeError(f"{ranks} ranks ended with code {process.returncode}: {output.strip()[-1000:]}")
        return json.loads(report.read_text())


# --- The redundant update --------------------------------------------------------------------------------------------


def measure_redundant(
    sizes: Sizes, pairs_of: tuple[int, ...], ranks_of: tuple[int, ...], rounds: int, workers: Workers
) -> dict:
    """What every rank repeats, timed on one rank with all of this machine's threads, and the rest of an iteration."""
    problem, number = growth.Problem(sizes), itertools.count(1)
    runs = {"iteration": lambda: growth.iteration(problem, next(number), workers)}
    for pairs in {sizes.pairs, *pairs_of}:
        losses_K2 = torch.rand(pairs, 2, dtype=torch.float64, generator=torch.Generator().manual_seed(0))
        failed_K2 = torch.zeros(pairs, 2, dtype=torch.bool)
        runs[pairs] = lambda losses_K2=losses_K2, failed_K2=failed_K2: growth.estimate(
            problem.noise, losses_K2, failed_K2, next(number), workers
        )
    seconds = take_turns(runs, rounds, say=lambda text: print(f"  {text}", flush=True))
    rows = []
    for pairs in pairs_of:
        redundant = seconds[pairs]
        divided = (seconds["iteration"] - seconds[sizes.pairs]) * pairs / sizes.pairs
        # With every rank as fast as this machine and nothing else in the way.
        shares = {str(ranks): summary(redundant / (redundant + divided / ranks)) for ranks in ranks_of}
        rows.append(
            {
                "pairs": pairs,
                "redundant_s": summary(redundant),
                "divided_s": summary(divided),
                "divided_measured": pairs == sizes.pairs,
                "share_of_an_iteration_by_ranks": shares,
            }
        )
    return {"threads": workers.threads, "batch": sizes.batch, "rows": rows}


class Counted(BytesMoved):
    """Bytes by operator, and the number of operators called, views among them."""

    calls = 0

    def __torch_dispatch__(self, function, types, args=(), kwargs=None):
        self.calls += 1
        return super().__torch_dispatch__(function, types, args, kwargs)


def count_update(sizes: Sizes, pairs: int) -> dict[str, int]:
    """Bytes that the update of these pairs moves, by the rule in common/costs.py, and how many operators it calls.

    Along the path that a GPU takes: on a CPU random words come from NumPy, where nothing can be counted.
    """

    def draw(noise, number: int, pairs_P: Tensor):
        count = 2 * (noise.size + noise.rank)
        words = philox._stream_words_torch(noise.seed, philox.Purpose.NOISE, (pairs_P, number), -(-count // 32), "cpu")
        return philox._signs_torch(words, count).split((noise.size, noise.rank, noise.size, noise.rank), dim=1)

    noise = es.make_noise("rank1", 0, sizes.size, sizes.rank)
    weights = es.PairWeights(torch.ones(pairs, dtype=torch.float64), torch.ones(pairs, dtype=torch.bool))
    chunks = mock.patch.dict(es.RankOneNoise.CHUNK, cpu=es.RankOneNoise.CHUNK["cuda"])
    with mock.patch.object(es.RankOneNoise, "draw", draw), chunks, Counted() as counted:
        es.estimate_gradient(noise, weights, 1, SIGMA, torch.device("cpu"))
    return {"bytes": counted.total, "calls": counted.calls}


# --- The model -------------------------------------------------------------------------------------------------------


def model(machine: Machine, sizes: Sizes, throughput: float, update: dict[str, float]) -> dict:
    """Predicted seconds of one iteration and where they go; least and most by the latency assumed.

    throughput: rollouts a second of a GPU with a full tile. update: bytes and calls of a chunk of the redundant update.
    """
    tile_pairs = pairs_per_tile(sizes.pairs, sizes.batch, sizes.size, torch.float16, "cuda")
    tiles = -(-sizes.pairs // tile_pairs)
    busiest = -(-tiles // machine.ranks)
    # A tile cannot be done sooner than its kernels are launched; its noise takes about as many as a chunk of ĝ.
    launches = sizes.steps * CALLS_A_STEP + update["calls"]
    tile_s = max(2 * tile_pairs * sizes.batch / throughput, launches * LAUNCH_S)
    chunk = es.RankOneNoise.CHUNK["cuda"]
    launched_s = -(-sizes.pairs // chunk) * update["calls"] * LAUNCH_S
    redundant_s = max(launched_s, sizes.pairs / chunk * update["bytes"] / MEMORY_BYTES_PER_S)
    bytes_ = gathered_bytes(sizes.pairs, tile_pairs, machine.ranks)
    moving_s = bytes_["received_by_a_rank"] / machine.bytes_per_s + HOST_COPIES * HOST_COPY_S
    communication = [COLLECTIVES * latency + moving_s for latency in machine.latency_s]
    totals = [busiest * tile_s + redundant_s + seconds for seconds in communication]
    return {
        "pairs": sizes.pairs,
        "batch": sizes.batch,
        "throughput": throughput,
        "tiles": tiles,
        "tiles_of_the_busiest_rank": busiest,
        "idle_ranks": max(0, machine.ranks - tiles),
        "bytes": bytes_,
        "rollout_s": busiest * tile_s,
        "redundant_s": redundant_s,
        "communication_s": communication,
        "iteration_s": totals,
        "communication_share": [seconds / total for seconds, total in zip(communication, totals)],
        "redundant_share": [redundant_s / total for total in totals],
        # Against one GPU with the same tiles and no communication.
        "speed_up": [(tiles * tile_s + redundant_s) / total for total in totals],
    }


def predictions(throughputs: tuple[float, ...]) -> dict:
    chunk = count_update(BRIEF, es.RankOneNoise.CHUNK["cuda"])
    populations = [BRIEF.but(pairs=pairs, batch=batch) for pairs, batch in POPULATIONS]
    return {
        "assumptions": {
            "machines": {name: vars(machine) for name, machine in MACHINES.items()},
            "collectives_an_iteration": COLLECTIVES,
            "host_copies_an_iteration": HOST_COPIES,
            "host_copy_s": HOST_COPY_S,
            "kernel_launch_s": LAUNCH_S,
            "calls_a_step_of_the_rollout": CALLS_A_STEP,
            "memory_bytes_per_s": MEMORY_BYTES_PER_S,
            "throughputs": list(throughputs),
            "update_bytes_a_chunk": chunk["bytes"],  # counted
            "update_calls_a_chunk": chunk["calls"],  # counted
            "chunk_pairs": es.RankOneNoise.CHUNK["cuda"],
        },
        "rows": {
            name: [model(machine, *point, chunk) for point in itertools.product(populations, throughputs)]
            for name, machine in MACHINES.items()
        },
    }


# --- Main ------------------------------------------------------------------------------------------------------------


def parse_arguments(argv: list[str] | None) -> argparse.Namespace:
    def throughputs(text: str) -> tuple[float, ...]:
        numbers = tuple(float(word) for word in text.split(","))
        if not all(0 < value < float("inf") for value in numbers):
            raise argparse.ArgumentTypeError(f"must be numbers > 0, not {text!r}")
        return numbers

    made = parser(__doc__, "ranks", rounds=9)
    made.add_argument(
        "--throughputs",
        type=throughputs,
        default=THROUGHPUTS,
        metavar="R,R,…",
        help="of the model: rollouts a second and GPU (default: 3e5,1e6,3e6)",
    )
    made.add_argument(
        "--rank-report", type=Path, help=argparse.SUPPRESS
    )  # this is a rank; rank 0 writes its report there
    if "RANK" in os.environ and "--rank-report" not in (sys.argv if argv is None else argv):
        raise BadInput("this starts torchrun by itself: start it with python")
    return parse(made, argv)


def main(argv: list[str] | None = None) -> int:
    arguments = parse_arguments(argv)
    cpu = torch.device("cpu")
    sizes, ranks_of, pairs_of, repeats = (
        (QUICK, QUICK_RANKS, QUICK_GATHERED_PAIRS, QUICK_REPEATS)
        if arguments.quick
        else (BRIEF, RANKS, GATHERED_PAIRS, REPEATS)
    )
    if arguments.rank_report:
        with Workers(cpu, backend="gloo") as workers:
            found = measure_rank(sizes, pairs_of, repeats, arguments.rounds, workers)
            if workers.is_main:
                write_json(arguments.rank_report, found)
        return 0
    print("the redundant update on one rank", flush=True)
    with Workers(cpu) as workers:
        redundant = measure_redundant(sizes, pairs_of, (1, 8, 64), arguments.rounds, workers)
    for row in redundant["rows"]:
        share = {ranks: found["median"] for ranks, found in row["share_of_an_iteration_by_ranks"].items()}
        print(
            f"  K = {row['pairs']}: {row['redundant_s']['median'] * 1e3:.1f} ms, {share['1']:.2%} of an iteration "
            f"(with 8 ranks as fast {share['8']:.2%}, with 64 {share['64']:.2%})"
        )
    measured = []
    for ranks in ranks_of:
        print(f"{ranks} ranks under torchrun …", flush=True)
        measured.append(start_ranks(ranks, arguments))
        row = measured[-1]
        print(
            f"  iteration {row['iteration_s']['median'] * 1e3:.0f} ms, "
            f"{row['bytes']['sent_by_a_rank']} bytes from each rank: "
            f"collective alone {row['collective_alone_s']['mean']['median'] * 1e3:.2f} ms "
            f"({row['collective_alone_share']['median']:.2%}), waiting {row['waiting_share']['median']:.1%}"
            f"{'; more ranks than cores' if row['oversubscribed'] else ''}",
            flush=True,
        )
    predicted = predictions(arguments.throughputs)
    print("predicted, not measured: communication as a share of an iteration")
    for name, rows in predicted["rows"].items():
        for row in rows:
            least, most = row["communication_share"]
            print(
                f"  {name}, K = {row['pairs']:6}, {row['throughput']:9,.0f} rollouts/s a GPU: {least:.2%} to {most:.2%}"
                f"; redundant update {row['redundant_share'][0]:.1%}"
            )
    results = {
        "pairs": sizes.pairs,
        "batch": sizes.batch,
        "steps": sizes.steps,
        "size": sizes.size,
        "rank": sizes.rank,
        "backend": "gloo",
        "ranks": measured,
        "redundant": redundant,
        "model": predicted,
    }
    write(arguments.output, "ranks", arguments, results)
    return 0


if __name__ == "__main__":
    run_main(main)
