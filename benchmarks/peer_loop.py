"""The rollout of a population against the loop that one writes first.

    python benchmarks/peer_loop.py     (half a minute on 2 CPU cores)

The straightforward loop holds all 64 members side by side as (N, M·B): W0 as torch's CSR matrix, each member's own U and V in
batched products, everything out of place, all cores inside torch's operations. Ours takes the same members as 32 antithetic
pairs in tiles of 128 columns, a thread a tile. Both sides are given: members' weights are formed outside the time for the
straightforward loop, while ours draws its noise inside. Gaussian noise is the like-for-like comparison (the same full
members on both sides), rank-one noise what the experiments run. The losses must agree to 1e-4, or the benchmark fails.

Beside it the same loop in its best form that is still a plain loop: embedding_bag for CSR, members in groups of 8.
"""

import argparse
import warnings

import torch
from harness import cores, parse, parser, ratios, summary, take_turns, threads_within_operations, write
from torch import Tensor
from torch.nn import functional
from workload import BRIEF, LEAK, QUICK, SIGMA, Workload

from common import es
from common.dist import Workers
from common.errors import run_main

GROUP = 8  # members


def straightforward(load: Workload, u_MNr: Tensor, v_MNr: Tensor, csr_NN: Tensor | None) -> Tensor:
    """Losses (M,) of members with weights of their own, all in one piece. csr_NN: W0; without it by embedding_bag."""
    members, size, _ = u_MNr.shape
    batch, steps = load.sizes.batch, load.sizes.steps
    frozen = load.rollout.reservoir
    h_NC = torch.zeros(size, members * batch)
    total_M = torch.zeros(members)
    for step in range(steps):
        if csr_NN is not None:
            x_NC = csr_NN @ h_NC
        else:
            x_NC = functional.embedding_bag(load.rollout.index_Nk, h_NC, mode="sum", per_sample_weights=frozen.value_Nk)
        h_MNB = h_NC.view(size, members, batch).transpose(0, 1)
        adapter_MNB = torch.bmm(u_MNr, torch.bmm(v_MNr.transpose(1, 2), h_MNB))
        x_NMB = x_NC.view(size, members, batch) + adapter_MNB.transpose(0, 1) + load.drive_TNDSB[step].flatten(1, 2)
        h_NC = (1 - LEAK) * h_NC + LEAK * torch.tanh(x_NMB).reshape(size, -1)
        prediction_EC = load.weight_EN @ h_NC + load.bias_E[:, None]
        error_EMB = prediction_EC.view(-1, members, batch) - load.target_TEDSB[step].flatten(1, 2)
        total_M = total_M + error_EMB.square().mean(dim=(0, 2))
    return total_M / steps


def in_groups(load: Workload, u_MNr: Tensor, v_MNr: Tensor) -> Tensor:
    groups = zip(u_MNr.split(GROUP), v_MNr.split(GROUP))
    return torch.cat([straightforward(load, u_GNr, v_GNr, None) for u_GNr, v_GNr in groups])


def formed(load: Workload, kind: str, iteration: int) -> tuple[Tensor, Tensor]:
    """The weights of every member of an iteration, (M, N, r) for U and V, in the order (pair, sign)."""
    noise = es.make_noise(kind, 0, load.sizes.size, load.sizes.rank)
    draw = noise.draw(iteration, torch.arange(load.sizes.pairs))
    if kind == "rank1":
        a_PN, b_Pr, c_PN, d_Pr = draw
        draw = torch.einsum("pn,pr->pnr", a_PN, b_Pr), torch.einsum("pn,pr->pnr", c_PN, d_Pr)
    both = torch.tensor([SIGMA, -SIGMA]).view(1, 2, 1, 1)
    return tuple(
        (factor_Nr + both * noise_PNr[:, None]).flatten(0, 1)
        for factor_Nr, noise_PNr in zip((load.u_Nr, load.v_Nr), draw)
    )


def ours(load: Workload, workers: Workers, kind: str) -> Tensor:
    """Losses (M,) in the order (pair, sign)."""
    results = load.all_tiles(lambda tile: load.members(tile, kind).error_TC, workers)
    error_TPSB = torch.cat([error_TC.unflatten(1, load.columns) for error_TC in results], dim=1)
    return error_TPSB.mean(dim=(0, 3)).flatten()[: 2 * load.sizes.pairs] / load.weight_EN.shape[0]


def parse_arguments(argv: list[str] | None) -> argparse.Namespace:
    return parse(parser(__doc__, "peer_loop", rounds=9), argv)


def main(argv: list[str] | None = None) -> int:
    arguments = parse_arguments(argv)
    load = Workload(QUICK if arguments.quick else BRIEF)
    frozen, sizes = load.rollout.reservoir, load.sizes
    starts = torch.arange(0, sizes.size * sizes.in_degree + 1, sizes.in_degree, dtype=torch.int32)
    entries = frozen.index_Nk.flatten().to(torch.int32), frozen.value_Nk.flatten()
    warnings.filterwarnings("ignore", "Sparse CSR tensor support is in beta")
    csr_NN = torch.sparse_csr_tensor(starts, *entries, (sizes.size, sizes.size), check_invariants=True)
    with Workers(torch.device("cpu")) as workers, torch.no_grad():
        # Each evaluation of ours is an iteration of its own; the first two are those that are compared member by member.
        full, low = formed(load, "gaussian", load.iteration + 1), formed(load, "rank1", load.iteration + 2)
        candidates = {
            "straightforward": lambda: straightforward(load, *full, csr_NN),
            "in groups": lambda: in_groups(load, *full),
            "ours, gaussian": lambda: ours(load, workers, "gaussian"),
            "ours, rank1": lambda: ours(load, workers, "rank1"),
        }
        expected = {"gaussian": candidates["straightforward"](), "rank1": straightforward(load, *low, csr_NN)}
        for kind, losses in expected.items():
            difference = (candidates[f"ours, {kind}"]() / losses - 1).abs().max()
            if not difference < 1e-4:
                raise RuntimeError(f"{kind}: losses differ from those of the straightforward loop by {difference:.1e}")
        count = cores()
        with threads_within_operations(1):
            seconds = take_turns(
                candidates,
                arguments.rounds,
                before=lambda name: torch.set_num_threads(1 if name.startswith("ours") else count),
            )
    results = {
        "members": 2 * sizes.pairs,
        "batch": sizes.batch,
        "rollouts_per_s": {name: summary(sizes.columns / values) for name, values in seconds.items()},
        "times_ours_rank1": ratios(seconds, "ours, rank1"),
        "times_ours_gaussian": ratios(seconds, "ours, gaussian"),
    }
    for name, found in results["rollouts_per_s"].items():
        print(f"{name:16} {found['median']:8,.0f} rollouts/s")
    print(f"straightforward loop: {results['times_ours_rank1']['straightforward']['median']:.2f} × the time of ours")
    write(arguments.output, "peer_loop", arguments, results)
    return 0


if __name__ == "__main__":
    run_main(main)
