"""The machinery of the evolution strategies in `common` against that of EvoTorch, evosax, EvoX and plain torch, on the CPU.

    OMP_WAIT_POLICY=PASSIVE python benchmarks/es_machinery.py     (about 5 minutes; writes results/es_machinery.json)
    pip install -r benchmarks/requirements-peers.txt              (the peers; one that is not installed is left out)

Every candidate does the same work: it moves θ = (U, V), both (N, r), by Adam along the estimate from M members around θ.

 1. *Machinery*: an iteration without the rollout. Losses are made up, the same for all. What counts is making the population
    in the form in which a rollout can use it, and the update. A peer hands over the whole population as one array (M, D) and
    needs it, or its noise, again for the update. Here a rollout takes the population tile by tile, as adapters that are drawn when
    their tile's turn comes and dropped after it, and the update forms the noise again: so it is measured, all tiles, formed
    twice. (The random bits of at most 512 pairs, half a kilobyte each, are kept in between; beyond, they are drawn twice.) (EvoX's VirtualLoRAES hands over and draws again likewise; see peers/machines.py for how each peer is set up.)
 2. *Peak memory* of the same, each candidate in a process of its own: by how much the resident set rises above what it is
    after two iterations, in the next two (VmHWM, cleared in between; Linux). So state, libraries and compiled code do
    not count. Blocks from 64 kB on are returned to the system when they are freed.
 3. *Whole iteration* at the brief's 32 pairs, 32 sequences and 20 steps: ours, with the rollout of common/rollout.py, and each
    peer's with a rollout as its user would write it (peers/rollouts.py). Two rows beside: plain torch with all members side
    by side in place of groups; and the rollout alone, without any machinery, of a function of one member under torch.vmap:
    of 16 members, and its time multiplied to 64. All rollouts are given the same members first and have to agree in their
    losses, to 1e-4 of the loss.

Candidates take turns in every round, and ratios are taken within a round (harness.py). The first round, in which compilers run,
does not count. Each candidate may use all cores. Ours has a thread a core, each with one thread inside torch's operations
(common/dist.py). They take tiles, but in 1 with rank-one noise: without a rollout between them the adapters of the tiles, 0.2 ms
each, come faster from one thread than from two that wait for each other's Python. For the peers, torch has as many threads
inside its operations as there are cores, set before each turn; JAX keeps its own pool.
"""

import argparse
import importlib.metadata
import importlib.util
import json
import os
import subprocess
import sys
from collections.abc import Callable
from contextlib import suppress
from dataclasses import dataclass
from functools import partial
from pathlib import Path

import harness
import numpy as np
import torch
import workload
from peers import machines, rollouts
from torch import Tensor
from workload import LEAK

from common import es
from common.costs import peak_growth
from common.dist import Workers
from common.encoder import EMBEDDING
from common.errors import BadInput, run_main
from common.reservoir import draw_reservoir
from common.rollout import Rollout, pairs_per_tile

MMAP_FROM = 65_536  # bytes; see 2
TOLERANCE = 1e-4
GUARD = 10.0  # no column fails: |h| ≤ 1


# --- Sizes and candidates --------------------------------------------------------------------------------------------


@dataclass(frozen=True)
class Sizes(workload.Sizes):
    """members: of each measurement of the machinery alone; a whole iteration has 2K. mapped: under torch.vmap."""

    members: tuple[int, ...] = (64, 256, 1024)
    mapped: int = 16

    @property
    def whole(self) -> int:
        return 2 * self.pairs

    @property
    def dimensions(self) -> int:
        return 2 * self.size * self.rank


QUICK = Sizes(
    size=96, rank=4, in_degree=8, steps=3, batch=4, pairs=8, members=(16, 32), mapped=8
)  # seconds, for a test; its numbers mean nothing


def start(sizes: Sizes) -> tuple[Tensor, Tensor]:
    """U, V float32 (N, r), neither of them zero, so that both matter to a loss."""
    random = torch.Generator().manual_seed(0)
    scale = sizes.size**-0.5
    u_Nr, v_Nr = (torch.randn(sizes.size, sizes.rank, generator=random) * scale for _ in range(2))
    return 0.2 * u_Nr, v_Nr


class Ours:
    """The machinery of `common`, as moving-mnist-es-reservoir drives it on one rank."""

    def __init__(self, noise: str, sizes: Sizes, members: int, workers: Workers):
        self.u_Nr, self.v_Nr = start(sizes)
        self.optimizer = torch.optim.Adam([self.u_Nr, self.v_Nr], lr=machines.LEARNING_RATE, foreach=False)
        self.noise = es.make_noise(noise, 0, sizes.size, sizes.rank)
        self.workers, self.pairs, self.iteration = workers, members // 2, 0
        self.tile_pairs = pairs_per_tile(self.pairs, sizes.batch, sizes.size, torch.float32, "cpu")
        self.tiles = -(-self.pairs // self.tile_pairs)

    def tile_ids(self, tile: int) -> Tensor:
        return torch.arange(tile * self.tile_pairs, (tile + 1) * self.tile_pairs)

    def losses(self, evaluate: Callable, map_tiles: Callable) -> Tensor:
        """float64 (K, 2). evaluate(adapter, pair ids) → losses (P, 2) of a tile; map_tiles: one after another, or by threads."""
        v_Nr = self.v_Nr.T.contiguous().T  # as Vᵀ in memory, which every tile's adapter begins with

        def evaluate_tile(tile: int) -> Tensor:
            ids_P = self.tile_ids(tile)
            adapter = self.noise.adapter(self.u_Nr, v_Nr, self.iteration, ids_P, machines.SIGMA)
            return evaluate(adapter, ids_P)

        return torch.cat(list(map_tiles(evaluate_tile, range(self.tiles))))[: self.pairs]

    def iterate(self, evaluate: Callable, map_tiles: Callable) -> None:
        self.iteration += 1
        losses_K2 = self.losses(evaluate, map_tiles)
        weights = es.pair_weights(losses_K2, torch.zeros(self.pairs, 2, dtype=torch.bool), "centered-rank")
        estimate = es.estimate_gradient(
            self.noise, weights, self.iteration, machines.SIGMA, torch.device("cpu"), self.workers.map
        )
        self.u_Nr.grad, self.v_Nr.grad = estimate.grad_u_Nr, estimate.grad_v_Nr
        self.optimizer.step()


OURS = {"ours_rank1": "rank1", "ours_gaussian": "gaussian"}
PEERS = {
    "evotorch_pgpe": machines.EvoTorchPGPE,
    "evosax_open_es": machines.EvosaxOpenES,
    "evox_open_es": machines.EvoXOpenES,
    "evox_virtual_lora": machines.EvoXVirtualLoRA,
    "torch_randn": machines.PlainTorch,
}


def missing(name: str) -> list[str]:
    """Packages that a candidate needs and that are not installed."""
    return [package for package in getattr(PEERS.get(name), "needs", ()) if not importlib.util.find_spec(package)]


def make_peer(name: str, sizes: Sizes, members: int):
    theta_D = torch.cat([factor.flatten() for factor in start(sizes)])
    return PEERS[name](theta_D, members, [(sizes.size, sizes.rank)] * 2)


def take_turns(turns: dict[str, Callable[[], object]], count: int, workers: Workers) -> dict[str, np.ndarray]:
    """Seconds of each candidate in each round, each with its own number of threads inside torch's operations."""

    def set_threads(name: str) -> None:
        torch.set_num_threads(1 if name in OURS else workers.threads)

    with torch.no_grad():
        for name in {"evosax_open_es"} & set(turns):
            turns[
                name
            ]()  # JAX compiles in the second iteration too, where the state comes from the library's own update
        return harness.take_turns(turns, count, before=set_threads)


# --- 1 and 2: the machinery alone ------------------------------------------------------------------------------------


def machinery_turn(name: str, sizes: Sizes, members: int, workers: Workers) -> Callable[[], None]:
    """One iteration of a candidate, its losses made up."""
    losses_K2 = torch.rand(members // 2, 2, generator=torch.Generator().manual_seed(1))
    if name in OURS:
        ours = Ours(OURS[name], sizes, members, workers)
        made_up_K2 = torch.cat((losses_K2, losses_K2[-1:].expand(ours.tile_pairs, 2))).to(torch.float64)  # and padding
        map_tiles = map if name == "ours_rank1" else workers.map
        return lambda: ours.iterate(lambda _, ids_P: made_up_K2[ids_P], map_tiles)
    peer = make_peer(name, sizes, members)
    made_up_M = peer.native(losses_K2.flatten())
    return lambda: peer.iterate(lambda _: made_up_M)


def measure_machinery(sizes: Sizes, members: int, names: list[str], count: int, workers: Workers) -> dict:
    seconds = take_turns({name: machinery_turn(name, sizes, members, workers) for name in names}, count, workers)
    return {
        "members": members,
        "seconds": {name: harness.summary(values) for name, values in seconds.items()},
        **{f"over_{ours}": harness.ratios(seconds, ours) for ours in OURS},
    }


def peak_here(name: str, sizes: Sizes, members: int, workers: Workers) -> int:
    """Bytes by which the third and fourth iteration raise the resident set of this process."""
    turn = machinery_turn(name, sizes, members, workers)
    torch.set_num_threads(1 if name in OURS else workers.threads)
    with torch.no_grad():
        turn()
        turn()
        return peak_growth(lambda: (turn(), turn()), torch.device("cpu"))


def peak_in_own_process(name: str, members: int, arguments: argparse.Namespace) -> int:
    """The same, measured in a fresh process."""
    words = ["--memory-of", name, "--members", str(members), "--output", str(arguments.output)]
    words += ["--quick"] if arguments.quick else []
    settings = {**os.environ, "MALLOC_MMAP_THRESHOLD_": str(MMAP_FROM)}
    done = subprocess.run([sys.executable, __file__, *words], env=settings, capture_output=True, text=True)
    if done.returncode:
        raise RuntimeError(f"memory of {name} ended with code {done.returncode}: {done.stderr.strip()[-500:]}")
    return json.loads(done.stdout.splitlines()[-1])


def measure_memory(members: int, names: list[str], arguments: argparse.Namespace) -> dict:
    peak = {name: peak_in_own_process(name, members, arguments) for name in names}
    row = {"members": members, "peak_bytes": peak}
    for ours in OURS:
        if ours in peak:
            others = {name: value / max(peak[ours], 1) for name, value in peak.items() if name != ours}
            row[f"over_{ours}"] = {name: float(f"{ratio:.4g}") for name, ratio in others.items()}
    return row


# --- 3: the whole iteration ------------------------------------------------------------------------------------------


def make_work(sizes: Sizes) -> rollouts.Work:
    """The reservoir of the problem, a made-up minibatch and a made-up decoder."""
    reservoir = draw_reservoir(sizes.size, sizes.in_degree, seed=0)
    random = torch.Generator().manual_seed(2)
    z_FEB = torch.randn(sizes.steps + 1, EMBEDDING, sizes.batch, generator=random)
    weight_EN = torch.randn(EMBEDDING, sizes.size, generator=random) * sizes.size**-0.5
    return rollouts.Work(
        index_Nk=reservoir.index_Nk.to(torch.int32),
        value_Nk=reservoir.value_Nk,
        input_NE=reservoir.input_NE,
        bias_N=reservoir.bias_N,
        input_TEB=z_FEB[:-1].contiguous(),
        target_TEB=z_FEB[1:].contiguous(),
        weight_EN=weight_EN,
        bias_E=torch.randn(EMBEDDING, generator=random) * 0.1,
        leak=LEAK,
        rank=sizes.rank,
    )


class OurRollout:
    """The only place that calls common/rollout.py."""

    def __init__(self, sizes: Sizes, work: rollouts.Work):
        self.rollout = Rollout(draw_reservoir(sizes.size, sizes.in_degree, seed=0), LEAK, GUARD)
        self.work, self.sequences = work, sizes.batch

    def on_minibatch(self) -> Callable:
        """Form the driving input, once for all tiles. Returns (adapter, pair ids) → losses float64 (P, 2)."""
        drive_TNDSB = self.rollout.drive(self.work.input_TEB)[:, :, None, None]
        target_TEDSB = self.work.target_TEB[:, :, None, None]

        def tile_losses(adapter, ids_P: Tensor) -> Tensor:
            columns = (len(ids_P), 2, self.sequences)
            decoder = self.work.weight_EN, self.work.bias_E
            result = self.rollout.errors(adapter, drive_TNDSB, target_TEDSB, *decoder, columns)
            return result.error_TC.sum(dim=0).view(columns).mean(dim=2) / (len(drive_TNDSB) * EMBEDDING)

        return tile_losses


def peer_rollouts(names: list[str], work: rollouts.Work) -> dict[str, Callable]:
    """For each peer, what evaluates the population that it hands over."""
    evaluate = {name: partial(rollouts.full_members, work) for name in names if name in PEERS}
    if "evox_virtual_lora" in names:
        evaluate["evox_virtual_lora"] = partial(rollouts.low_rank_members, work)
    if "evosax_open_es" in names:
        evaluate["evosax_open_es"] = rollouts.jax_members(work)
    return evaluate


def require_equal_losses(sizes: Sizes, work: rollouts.Work, names: list[str], workers: Workers) -> float:
    """Give all rollouts the same members; returns by how much, relative to the loss, any two of ours and theirs differ.

    Raises RuntimeError where that is more than the tolerance.
    """
    worst, members = 0.0, 16
    evaluate = peer_rollouts(names, work)
    both_2 = torch.tensor([1.0, -1.0])
    for noise in OURS.values():
        ours = Ours(noise, sizes, members, workers)
        expected_M = ours.losses(OurRollout(sizes, work).on_minibatch(), map).flatten()
        ids_K = torch.arange(members // 2)
        draw = ours.noise.draw(ours.iteration, ids_K)
        if noise == "rank1":
            a_KN, b_Kr, c_KN, d_Kr = draw
            full = a_KN[:, :, None] * b_Kr[:, None], c_KN[:, :, None] * d_Kr[:, None]
        else:
            full = draw
        noise_KD = torch.cat([e_KNr.flatten(1) for e_KNr in full], dim=1)
        center_D = torch.cat((ours.u_Nr.flatten(), ours.v_Nr.flatten()))
        population_MD = (center_D + machines.SIGMA * both_2[None, :, None] * noise_KD[:, None]).flatten(0, 1)
        found = {
            "vmap": rollouts.mapped_members(work, population_MD, chunk=2),
            "vmap, dense": rollouts.mapped_members(work, population_MD, chunk=2, dense=True),
            "all members": rollouts.all_full_members(work, population_MD),
        }
        for name, losses in evaluate.items():
            if name == "evox_virtual_lora":
                if noise == "rank1":
                    signed = [(f_KX[:, None] * both_2[:, None]).flatten(0, 1) for f_KX in (a_KN, c_KN)]
                    same = [f_KX.repeat_interleave(2, dim=0) for f_KX in (b_Kr, d_Kr)]
                    factors = [(a_Mr[:, None], b_MN[:, :, None]) for a_Mr, b_MN in zip(same, signed)]
                    found[name] = losses((center_D, factors, machines.SIGMA))
            else:
                losses_M = losses(PEERS[name].native(population_MD))
                found[name] = losses_M if isinstance(losses_M, Tensor) else torch.from_numpy(np.array(losses_M))
        for name, losses_M in found.items():
            difference = float(((losses_M - expected_M) / expected_M).abs().max())
            if not difference <= TOLERANCE:
                raise RuntimeError(
                    f"the rollout of {name} computes other losses than ours ({noise}): by {difference:.1e}"
                )
            worst = max(worst, difference)
    return worst


def whole_turns(sizes: Sizes, names: list[str], work: rollouts.Work, workers: Workers) -> dict[str, Callable]:
    """One whole iteration of each candidate, and the rollout of `mapped` members under torch.vmap."""
    turns, evaluate = {}, peer_rollouts(names, work)

    def our_turn(ours: Ours, rollout: OurRollout) -> Callable:
        return lambda: ours.iterate(rollout.on_minibatch(), workers.map)

    def peer_turn(peer, losses: Callable) -> Callable:
        return lambda: peer.iterate(losses)

    for name in names:
        if name in OURS:
            turns[name] = our_turn(Ours(OURS[name], sizes, sizes.whole, workers), OurRollout(sizes, work))
        else:
            turns[name] = peer_turn(make_peer(name, sizes, sizes.whole), evaluate[name])
    aside = make_peer("torch_randn", sizes, sizes.whole)
    turns["torch_randn_all_at_once"] = peer_turn(aside, partial(rollouts.all_full_members, work))

    theta_D = torch.cat([factor.flatten() for factor in start(sizes)])
    random = torch.Generator().manual_seed(3)
    population_MD = theta_D + machines.SIGMA * torch.randn(sizes.mapped, len(theta_D), generator=random)
    for name, chunk in ((f"vmap_{sizes.mapped}_at_a_time", sizes.mapped), ("vmap_2_at_a_time", 2)):
        turns[name] = partial(rollouts.mapped_members, work, population_MD, chunk)
    turns["vmap_dense_2_at_a_time"] = partial(rollouts.mapped_members, work, population_MD, 2, dense=True)
    return turns


def measure_whole(sizes: Sizes, names: list[str], count: int, workers: Workers) -> dict:
    work = make_work(sizes)
    with torch.no_grad():
        difference = require_equal_losses(sizes, work, names, workers)
    print(f"all rollouts agree in their losses, to {difference:.1e}", flush=True)
    seconds = take_turns(whole_turns(sizes, names, work, workers), count, workers)
    seconds = {n: s * (sizes.whole / sizes.mapped) if n.startswith("vmap") else s for n, s in seconds.items()}
    return {
        "members": sizes.whole,
        "vmap": f"rollout alone; {sizes.mapped} members, time multiplied by {sizes.whole // sizes.mapped}",
        "largest_relative_difference_of_losses": float(f"{difference:.2g}"),
        "seconds": {name: harness.summary(values) for name, values in seconds.items()},
        **{f"over_{ours}": harness.ratios(seconds, ours) for ours in OURS},
    }


# --- Main ------------------------------------------------------------------------------------------------------------


def parse_arguments(argv: list[str] | None) -> argparse.Namespace:
    parser = harness.parser(__doc__, "es_machinery", rounds=5)
    parser.add_argument("--memory-of", choices=(*OURS, *PEERS), help=argparse.SUPPRESS)
    parser.add_argument("--members", type=int, help=argparse.SUPPRESS)
    return harness.parse(parser, argv)


def versions() -> dict[str, str]:
    found = {}
    for package in ("evotorch", "evosax", "jax", "jaxlib", "optax", "evox"):
        with suppress(importlib.metadata.PackageNotFoundError):
            found[package] = importlib.metadata.version(package)
    return found


def print_times(title: str, row: dict) -> None:
    print(title, flush=True)
    for name, seconds in row["seconds"].items():
        line = f"  {name:24} {seconds['median'] * 1e3:10.1f} ms"
        if ratio := row["over_ours_rank1"].get(name):
            low, high = ratio["quartiles"]
            line += f"  {ratio['median']:7.2f} × ours rank-1 ({low:.2f} to {high:.2f})"
        print(line, flush=True)


def print_memory(title: str, row: dict) -> None:
    print(title, flush=True)
    for name, peak in row["peak_bytes"].items():
        ratio = row["over_ours_rank1"].get(name)
        print(f"  {name:24} {peak / 1e6:10.1f} MB" + (f"  {ratio:7.2f} × ours rank-1" if ratio else ""), flush=True)


def require_peers(path: Path) -> None:
    """Raises BadInput where results with a peer that is not installed would be lost."""
    if path.exists():
        try:
            left_out = list(json.loads(path.read_text())["results"]["left_out"])
        except (OSError, ValueError, KeyError, TypeError, RecursionError):
            raise BadInput(f"--output {path} is there and no file of this benchmark; name another one") from None
        if lost := [name for name in PEERS if missing(name) and name not in left_out]:
            raise BadInput(
                f"--output {path} holds {', '.join(lost)}, not installed here: pip install -r "
                "benchmarks/requirements-peers.txt, or name another file"
            )


def main(argv: list[str] | None = None) -> int:
    arguments = parse_arguments(argv)
    if not arguments.memory_of:
        require_peers(arguments.output)
    sizes = QUICK if arguments.quick else Sizes()
    os.environ.setdefault("JAX_PLATFORMS", "cpu")
    with Workers(torch.device("cpu")) as workers:
        if workers.distributed:
            raise BadInput("the benchmark runs as one process: start it with python, not torchrun")
        if arguments.memory_of:
            print(json.dumps(peak_here(arguments.memory_of, sizes, arguments.members, workers)))
            return 0
        left_out = {name: f"not installed: {', '.join(missing(name))}" for name in PEERS if missing(name)}
        for name, why in left_out.items():
            print(f"{name} is left out, {why}", flush=True)
        names = [name for name in (*OURS, *PEERS) if name not in left_out]
        # A process for each candidate takes seconds: the quick run sees only that it works.
        measured = ["ours_rank1", "torch_randn"] if arguments.quick else names
        results = {
            "peers": versions(),
            "left_out": left_out,
            "threads": workers.threads,
            "omp_wait_policy": os.environ.get("OMP_WAIT_POLICY", "not set"),
            "sizes": {**vars(sizes), "dimensions": sizes.dimensions},
            "machinery": [],
            "memory": [],
        }
        for members in sizes.members:
            results["machinery"].append(measure_machinery(sizes, members, names, arguments.rounds, workers))
            print_times(f"machinery, {members} members", results["machinery"][-1])
        for members in sizes.members[:1] if arguments.quick else sizes.members:
            results["memory"].append(measure_memory(members, measured, arguments))
            print_memory(f"peak memory, {members} members", results["memory"][-1])
        results["iteration"] = measure_whole(sizes, names, arguments.rounds, workers)
        print_times(f"whole iteration, {sizes.whole} members", results["iteration"])
    harness.write(arguments.output, "es_machinery", arguments, results)
    return 0


if __name__ == "__main__":
    run_main(main)
