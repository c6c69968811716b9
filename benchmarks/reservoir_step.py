"""Driving the frozen reservoir with many sequences: the rollout of `common` against reservoirpy, on the CPU.

    OMP_WAIT_POLICY=PASSIVE python benchmarks/reservoir_step.py    (about 2 minutes; writes results/reservoir_step.json)

Both sides are given the same weights and the same made-up inputs, B sequences of T steps of 128 numbers, and return
all states, as one new array:

    x_t = W0 h_{t−1} + Win z_t + b        h_t = (1 − α) h_{t−1} + α tanh(x_t),    h_0 = 0

Every step counts on both sides, Win z_t + b too. All candidates have to agree to 1e-5 in every state.

Ours, in float32:

    ours          `Rollout.steps` without an adapter: exactly the equation above, and the row that is compared
    with adapter  `Rollout.states` with U = 0 at rank r = 32, as the experiments call it: U (Vᵀ h) is formed as well

The sequences are split evenly over the threads into tiles of 32 columns at least, below which products are slow, and
no more than the rollout's own rule has: 32 sequences keep one core busy.

reservoirpy (0.4 or later) runs one sequence after another through `Node.run`. Its settings are tried in the same run,
and the fastest one is what is compared: W as a dense array or as scipy's CSR; weights, inputs and first state in
float64 (its default) or float32; one worker, or as many as there are cores, as processes (joblib's default) or as
threads. Those that took more than SLOW times as long as the fastest at the smallest B are not measured at the larger
ones. NumPy's own threads are left as they are. Its other backend needs jax, which this project does not install: left
out.

    private step  not a setting: `Reservoir._step`, private and meant for one sequence, happens to accept a matrix of
                  states. CSR and float32. Shown beside, to tell apart what comes of running sequences side by side

Candidates take turns in every round; ratios are taken within a round.
"""

import importlib.metadata
from collections.abc import Callable

import joblib
import numpy as np
import torch
from harness import cores, parse, parser, ratios, summary, take_turns, write
from scipy.sparse import csr_array
from torch import Tensor
from workload import BRIEF, LEAK

from common.dist import Workers
from common.encoder import EMBEDDING
from common.errors import BadInput, run_main
from common.reservoir import Reservoir, draw_reservoir
from common.rollout import LEAST_COLUMNS, Rollout, columns_per_tile

try:
    from reservoirpy.nodes import Reservoir as TheirReservoir
except ImportError:
    TheirReservoir = None

STEPS, RANK = BRIEF.steps, BRIEF.rank
BATCHES = (32, 64, 128)
QUICK = dict(size=200, in_degree=10, batches=(4, 68))
AGREEMENT = 1e-5  # of a state, which lies in (−1, 1)
SLOW = 3

# W, dtype, workers ("all": one for each core) and how joblib runs them
SETTINGS = {
    "dense float64": ("dense", np.float64, 1, "loky"),
    "dense float32": ("dense", np.float32, 1, "loky"),
    "csr float64": ("csr", np.float64, 1, "loky"),
    "csr float32": ("csr", np.float32, 1, "loky"),
    "csr float32, threads": ("csr", np.float32, "all", "threading"),
    "csr float32, processes": ("csr", np.float32, "all", "loky"),
    "dense float32, processes": ("dense", np.float32, "all", "loky"),
}


# --- Ours ------------------------------------------------------------------------------------------------------------


class NoAdapter:
    """ΔW = 0, without the work of finding that out."""

    def prepare(self, columns: tuple[int, int, int]) -> None:
        pass

    def add_to(self, x_NC: Tensor, h_NC: Tensor) -> None:
        pass


class Ours:
    """All states of a batch in float32, its sequences spread over the workers' threads."""

    def __init__(self, reservoir: Reservoir, workers: Workers):
        self.rollout, self.workers = Rollout(reservoir, LEAK, guard=1.0), workers
        self.zero_Nr = torch.zeros(reservoir.size, RANK)

    def tiles(self, batch: int) -> list[slice]:
        widest = columns_per_tile(self.rollout.size, self.rollout.dtype, "cpu")
        width = min(widest, max(LEAST_COLUMNS, -(-batch // self.workers.threads)))
        return [slice(first, first + width) for first in range(0, batch, width)]

    @torch.no_grad()
    def plain(self, z_TEB: Tensor) -> Tensor:
        """(T, N, B): a step writes one piece of memory."""
        states_TNB = torch.empty(len(z_TEB), self.rollout.size, z_TEB.shape[2])

        @torch.no_grad()  # a thread of the pool does not inherit it
        def run(tile: slice) -> None:
            drive_TNB = self.rollout.drive(z_TEB[:, :, tile])
            columns = (1, 1, drive_TNB.shape[2])
            for step, (h_NC, *_) in enumerate(self.rollout.steps(NoAdapter(), drive_TNB[:, :, None, None], columns)):
                states_TNB[step, :, tile] = h_NC

        self.workers.map(run, self.tiles(z_TEB.shape[2]))
        return states_TNB

    def with_adapter(self, z_TEB: Tensor) -> Tensor:
        """(N, T, B)."""

        def run(tile: slice) -> Tensor:
            return self.rollout.states(self.zero_Nr, self.zero_Nr, self.rollout.drive(z_TEB[:, :, tile]))

        return torch.cat(self.workers.map(run, self.tiles(z_TEB.shape[2])), dim=2)


# --- Theirs ----------------------------------------------------------------------------------------------------------


class Theirs:
    """reservoirpy's node with our weights; states (B, T, N)."""

    def __init__(self, reservoir: Reservoir, form: str, dtype: type):
        weight_NN = reservoir.dense().numpy().astype(dtype)
        self.dtype, self.size = dtype, reservoir.size
        self.node = TheirReservoir(
            W=csr_array(weight_NN) if form == "csr" else weight_NN,
            Win=reservoir.input_NE.numpy().astype(dtype),
            bias=reservoir.bias_N.numpy().astype(dtype),
            lr=LEAK,
        )

    def run(self, z_BTE: np.ndarray, workers: int, backend: str) -> np.ndarray:
        """Through the public interface."""
        if not self.node.initialized:
            self.node.initialize(z_BTE)
        # A run starts from where the last one ended, and a float64 state would make every product one of float64.
        self.node.state = {"out": np.zeros(self.size, self.dtype)}
        with joblib.parallel_config(backend=backend):
            return self.node.run(z_BTE, workers=workers)

    def private_step(self, z_BTE: np.ndarray) -> np.ndarray:
        """All sequences side by side, (N, B), outside the public interface."""
        self.node.bias = self.node.bias.reshape(-1, 1)
        batch, steps, _ = z_BTE.shape
        states_BTN = np.empty((batch, steps, self.size), self.dtype)
        state = {"out": np.zeros((self.size, batch), self.dtype)}
        for step in range(steps):
            state = self.node._step(state, z_BTE[:, step].T)
            states_BTN[:, step] = state["out"].T
        return states_BTN


# --- Measurement -----------------------------------------------------------------------------------------------------


def candidates(
    reservoir: Reservoir, workers: Workers, batch: int, settings: list[str]
) -> dict[str, Callable[[], Tensor]]:
    """{name: run}, each run returning all states as (B, T, N)."""
    random = np.random.default_rng(0)
    # About as large and as slow as standardised embeddings.
    z_BTE = random.standard_normal((batch, STEPS, EMBEDDING)).cumsum(axis=1) * 0.2
    z_TEB = torch.from_numpy(z_BTE).to(torch.float32).permute(1, 2, 0).contiguous()
    ours = Ours(reservoir, workers)
    runs = {
        "ours": lambda: ours.plain(z_TEB).permute(2, 0, 1),
        "with adapter": lambda: ours.with_adapter(z_TEB).permute(2, 1, 0),
    }
    for name in settings:
        form, dtype, count, backend = SETTINGS[name]
        node, inputs = Theirs(reservoir, form, dtype), z_BTE.astype(dtype)
        count = workers.threads if count == "all" else count
        runs[name] = lambda node=node, inputs=inputs, count=count, backend=backend: node.run(inputs, count, backend)
    node, inputs = Theirs(reservoir, "csr", np.float32), z_BTE.astype(np.float32)
    runs["private step"] = lambda: node.private_step(inputs)
    return {name: lambda run=run: torch.as_tensor(run()) for name, run in runs.items()}


def check(runs: dict[str, Callable[[], Tensor]], reference: str) -> dict[str, float]:
    """Largest difference of any state from the reference's. Raises RuntimeError above AGREEMENT."""
    expected_BTN = runs[reference]()
    rms = float(expected_BTN.square().mean().sqrt())
    if not 0.05 < rms < 0.95:
        raise RuntimeError(
            f"the reservoir is asleep or saturated (RMS of its states {rms:.3f}): agreement would be cheap"
        )
    found = {name: float((run() - expected_BTN).abs().max()) for name, run in runs.items()}
    if differing := [name for name, difference in found.items() if not difference < AGREEMENT]:
        raise RuntimeError(f"other states than those of {reference}: {', '.join(differing)}")
    return found


def measure(reservoir: Reservoir, workers: Workers, batch: int, settings: list[str], rounds: int) -> dict:
    runs = candidates(reservoir, workers, batch, settings)
    # A float64 setting is the reference where there is one; two roundings to float32 also agree to 1e-5.
    reference = next((name for name in settings if "float64" in name), settings[0])
    differences = check(runs, reference)
    print(f"B = {batch}: all {len(runs)} candidates agree to {max(differences.values()):.1e}", flush=True)
    seconds = take_turns(runs, rounds, say=lambda text: print(f"  {text}", flush=True))
    fastest = min(settings, key=lambda name: np.median(seconds[name]))
    over_ours = ratios(seconds, over="ours")
    return {
        "batch": batch,
        "tile_columns": [min(tile.stop, batch) - tile.start for tile in Ours(reservoir, workers).tiles(batch)],
        "reference": reference,
        "largest_difference": differences,
        "microseconds_a_sequence_step": {
            name: summary(values / (batch * STEPS) * 1e6) for name, values in seconds.items()
        },
        "fastest_setting": fastest,
        "fastest_over_ours": over_ours[fastest],
        "fastest_over_with_adapter": summary(seconds[fastest] / seconds["with adapter"]),
        "private_step_over_ours": over_ours["private step"],
        "over_ours": over_ours,
    }


def main(argv: list[str] | None = None) -> int:
    arguments = parse(parser(__doc__, "reservoir_step", rounds=9), argv)
    if TheirReservoir is None:
        raise BadInput("reservoirpy is not installed: pip install 'reservoirpy>=0.4'")
    sizes = QUICK if arguments.quick else dict(size=BRIEF.size, in_degree=BRIEF.in_degree, batches=BATCHES)
    reservoir = draw_reservoir(sizes["size"], sizes["in_degree"], seed=0)
    with Workers(torch.device("cpu")) as workers:
        if workers.distributed:
            raise BadInput("measurements run as one process: start them with python, not torchrun")
        rows, settings = [], list(SETTINGS)
        for batch in sizes["batches"]:
            row = measure(reservoir, workers, batch, settings, arguments.rounds)
            rows.append(row)
            print(lines(row), flush=True)
            times = {name: row["microseconds_a_sequence_step"][name]["median"] for name in settings}
            settings = [name for name in settings if times[name] <= SLOW * min(times.values())]
        results = {
            "size": reservoir.size,
            "in_degree": sizes["in_degree"],
            "inputs": EMBEDDING,
            "steps": STEPS,
            "leak": LEAK,
            "rank_of_with_adapter": RANK,
            "threads": workers.threads,
            "cores": cores(),
            "reservoirpy": importlib.metadata.version("reservoirpy"),
            "left_out": {"reservoirpy.jax": "needs jax, which this project does not install"},
            "batches": rows,
        }
    write(arguments.output, "reservoir_step", arguments, results)
    return 0


def lines(row: dict) -> str:
    """A batch size for a terminal."""
    times = row["microseconds_a_sequence_step"]
    table = "\n".join(f"  {name:26} {found['median']:9.2f} µs a sequence and step" for name, found in times.items())
    low, high = row["fastest_over_ours"]["quartiles"]
    return (
        f"{table}\n  fastest setting of reservoirpy: {row['fastest_setting']}, "
        f"{row['fastest_over_ours']['median']:.1f} × ours ({low:.1f} to {high:.1f})"
    )


if __name__ == "__main__":
    run_main(main)
