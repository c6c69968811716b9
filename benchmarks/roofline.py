"""Where the time of a rollout goes, and how far it is from what the machine could do.

    python benchmarks/roofline.py     (a minute on one CPU core; --device cuda for a GPU)

One tile of the brief's population, rank-one noise, on one thread. The ceilings are measured in the same run: the best rate of a
large matrix product in the rollout's number format, of a copy of a large array (memory), and in arrays of half the
tile's state (the cache that the state should stay in) of a copy, bytes read and written, or of a scalar product, which only
reads, whichever is faster.

Three times are set side by side for each part of a time step, in microseconds for each column and step:

    in the loop   as it runs: each operator of a whole rollout is timed where it stands, weights and state in whatever cache they are
    alone         the same operator on the same shapes again and again, everything it needs in the nearest cache
    ceiling       the larger of its operations at the rate of the large product and its bytes at the rate of the cache

Operations are counted: 2 for a multiplication with its addition, 1 for any other element-wise one (a tanh too). Bytes by the
rule in common/costs.py, a sparse product with its gathered rows. "Bookkeeping" is what a rollout takes beyond its operators:
Python, and torch's way from the call to the work. Timing each operator adds to the bookkeeping, which is therefore the
difference to an untimed rollout.

On a GPU operators run behind the program's back; there only whole rollouts are timed and set against the ceilings.
"""

import argparse
import time
import warnings
from collections import defaultdict
from functools import partial

import torch
from harness import add_kernel_flags, parse, parser, ratios, summary, synchronise, take_turns, write
from torch import Tensor
from torch.nn.functional import embedding_bag
from torch.utils._python_dispatch import TorchDispatchMode
from torch.utils.flop_counter import FlopCounterMode
from workload import BRIEF, QUICK, Sizes, Workload

from common.costs import BytesMoved
from common.dist import Workers, choose_device
from common.encoder import EMBEDDING
from common.errors import run_main
from common.reservoir import draw_reservoir
from common.rollout import columns_per_tile

VIEWS = ("view", "expand", "unsqueeze", "select", "slice", "_unsafe_view", "diagonal", "t", "alias", "detach")


class TimedOperators(TorchDispatchMode):
    """Within this context: for each (operator, shape of its result), seconds, bytes and one example of its arguments."""

    def __init__(self):
        super().__init__()
        self.seconds: defaultdict[tuple, float] = defaultdict(float)
        self.calls: defaultdict[tuple, int] = defaultdict(int)
        self.example: dict[tuple, tuple] = {}

    def __torch_dispatch__(self, function, types, args=(), kwargs=None):
        kwargs = kwargs or {}
        started = time.perf_counter()
        result = function(*args, **kwargs)
        elapsed = time.perf_counter() - started
        first = result[0] if isinstance(result, tuple | list) else result
        name = function._schema.name.removeprefix("aten::")
        if isinstance(first, Tensor) and name not in VIEWS:
            key = (name, tuple(first.shape))
            self.seconds[key] += elapsed
            self.calls[key] += 1
            self.example.setdefault(key, (function, args, kwargs))
        return result


def part_of(name: str, shape: tuple[int, ...], sizes: Sizes, columns: int) -> str:
    """Which part of a time step an operator belongs to, by its name and the shape of its result."""
    state = shape in ((sizes.size, columns), (sizes.size, *shape[1:])) and len(shape) > 1
    if name.startswith("_embedding_bag") or (name == "mm" and state):
        return "W0 h"
    if name == "addmm_" and state:
        return "U (…)"
    if name == "mm" and shape[0] > sizes.rank and shape[0] < EMBEDDING:
        return "Vᵀ h, c·h"
    if name == "addmm" and shape[0] == EMBEDDING:
        return "decoder"
    if name == "add_" and state:
        return "+ Win z"
    if name == "tanh_":
        return "tanh"
    if name == "lerp_":
        return "leak"
    if (name in ("square", "pow") and state) or name == "mean":
        return "guard"
    if name in ("mul_", "addmm_", "mm") and len(shape) == 2:
        return "corrections"
    if shape and shape[-1] in (columns, sizes.batch) and EMBEDDING in shape:
        return "loss"
    return "other"


def operations(sizes: Sizes, columns: int, dense: bool, pairs: int) -> dict[str, float]:
    """Counted operations of each part for one column and step, on average over the steps; pairs: of a tile.

    In the first step the state is zero, and nothing is multiplied by it. The guard, which looks at few steps, is left out.
    """
    size, rank, later = sizes.size, sizes.rank, (sizes.steps - 1) / sizes.steps
    return {
        "W0 h": later * 2 * size * (size if dense else sizes.in_degree),
        "Vᵀ h, c·h": later * 2 * size * (rank + pairs),
        "corrections": later * (2 * pairs * rank * 2 + 2 * pairs),
        "U (…)": later * 2 * size * (rank + pairs),
        "+ Win z": size,
        "tanh": size,
        "leak": 3 * size,
        "guard": 0,
        "decoder": 2 * size * EMBEDDING,
        "loss": 3 * EMBEDDING,
    }


def needed(sizes: Sizes) -> float:
    """Operations that the rollout of one column needs a step, however it is done: no redundant products, W0 sparse."""
    size, rank, later = sizes.size, sizes.rank, (sizes.steps - 1) / sizes.steps
    member = 2 * 2 * size * (rank + 1) + 2 * 2 * rank
    return later * (2 * size * sizes.in_degree + member) + 5 * size + 2 * size * EMBEDDING + 3 * EMBEDDING


def ceilings(device: torch.device, dtype: torch.dtype, state_bytes: int, rounds: int, quick: bool) -> dict[str, float]:
    """Best rates seen: operations a second of a large product, bytes a second in memory and in the cache."""
    side = 256 if quick else 2048 if device.type == "cpu" else 8192
    large = 2**20 if quick else 2**28 if device.type == "cpu" else 2**31
    a, b = (torch.randn(side, side, device=device).to(dtype) for _ in range(2))
    product = torch.empty_like(a)
    wide, small = (torch.ones(n // dtype.itemsize, dtype=dtype, device=device) for n in (large, state_bytes // 2))
    wide_to, small_to = torch.empty_like(wide), torch.empty_like(small)
    repeat = 50

    def copies() -> None:
        for _ in range(repeat):
            small_to.copy_(small)

    def reads() -> None:
        for _ in range(repeat):
            torch.dot(small, small_to)

    seconds = take_turns(
        {
            "product": lambda: torch.mm(a, b, out=product),
            "memory": lambda: wide_to.copy_(wide),
            "cache copy": copies,
            "cache read": reads,
        },
        max(rounds, 5),
        device,
    )
    return {
        "operations_per_s": 2 * side**3 / float(seconds["product"].min()),
        "memory_bytes_per_s": 2 * wide.nbytes / float(seconds["memory"].min()),
        "cache_bytes_per_s": 2
        * repeat
        * small.nbytes
        / float(min(seconds["cache copy"].min(), seconds["cache read"].min())),
    }


def parts(load: Workload, rounds: int, ceiling: dict[str, float]) -> tuple[dict[str, dict], float]:
    """{part: times and counts for each column and step}, and microseconds of bookkeeping."""
    sizes, (pairs, signs, batch) = load.sizes, load.columns
    columns = pairs * signs * batch
    per_step = columns * sizes.steps
    adapter = load.adapter(0)
    run = lambda: load._run(adapter)  # noqa: E731
    run()
    in_loop: defaultdict[str, list[float]] = defaultdict(list)
    whole: list[float] = []
    for _ in range(rounds):
        started = time.perf_counter()
        run()
        whole.append(time.perf_counter() - started)
        with TimedOperators() as timed:
            run()
        round_s: defaultdict[str, float] = defaultdict(float)
        for key, seconds in timed.seconds.items():
            round_s[part_of(*key, sizes, columns)] += seconds
        for part, seconds in round_s.items():
            in_loop[part].append(seconds)
    alone_s: defaultdict[str, float] = defaultdict(float)
    moved: defaultdict[str, float] = defaultdict(float)
    for key, (function, args, kwargs) in timed.example.items():
        part = part_of(*key, sizes, columns)
        with BytesMoved() as counter:
            function(*args, **kwargs)
        moved[part] += counter.total * timed.calls[key]
        best = min(_time(function, args, kwargs) for _ in range(max(5, rounds)))
        alone_s[part] += best * timed.calls[key]
    counted = operations(sizes, columns, load.rollout.dense_NN is not None, pairs)
    found = {}
    for part in (*counted, "other"):
        count, bytes_moved = counted.get(part, 0) * per_step, moved[part]
        limit = max(count / ceiling["operations_per_s"], bytes_moved / ceiling["cache_bytes_per_s"])
        found[part] = {
            "in_the_loop_us": summary([1e6 * s / per_step for s in in_loop[part]]),
            "alone_us": round(1e6 * alone_s[part] / per_step, 4),
            "ceiling_us": round(1e6 * limit / per_step, 4),
            "operations": counted.get(part, 0),
            "bytes": round(bytes_moved / per_step, 1),
        }
    total = sum(float(torch.tensor(values).median()) for values in in_loop.values())
    return found, 1e6 * (float(torch.tensor(whole).median()) - total) / per_step


@torch.no_grad()
def _time(function, args, kwargs, calls: int = 10) -> float:
    function(*args, **kwargs)
    started = time.perf_counter()
    for _ in range(calls):
        function(*args, **kwargs)
    return (time.perf_counter() - started) / calls


def addmm_in_place(into, left, right, **_) -> int:
    """Operations of an addmm_, which torch's counter leaves out, from the shapes of its arguments."""
    return 2 * left[0] * left[1] * right[1]


def whole_rollout(load: Workload, rounds: int, ceiling: dict[str, float]) -> dict:
    """A tile's rollout against the ceilings. Counted matrix operations are checked by torch's own counter."""
    sizes, (pairs, signs, batch) = load.sizes, load.columns
    columns = pairs * signs * batch
    per_step = columns * sizes.steps
    adapter, dense = load.adapter(0), load.rollout.dense_NN is not None
    counted = operations(sizes, columns, dense, pairs)
    result = {"columns": columns, "operations": sum(counted.values()), "operations_needed": needed(sizes)}
    if load.rollout.kernel == "torch":
        with FlopCounterMode(display=False, custom_mapping={torch.ops.aten.addmm_: addmm_in_place}) as flops:
            load._run(adapter)
        products = ("Vᵀ h, c·h", "U (…)", "decoder", "corrections", *(("W0 h",) if dense else ()))
        scaling = 2 * pairs * (sizes.steps - 1) / sizes.steps  # by sσ, which is no product
        ours, by_torch = sum(counted[part] for part in products) - scaling, flops.get_total_flops() / per_step
        if abs(ours / by_torch - 1) > 1e-9:
            raise RuntimeError(f"products make {ours} operations a column and step by our count, {by_torch} by torch's")
        result["matrix_operations"] = ours
        with BytesMoved() as moved:
            load._run(adapter)
        result["bytes"] = moved.total / per_step
    seconds = take_turns({"tile": lambda: load._run(adapter)}, rounds, load.device)["tile"]
    rate = result["operations"] * per_step / seconds
    dense_limit_s = operations(sizes, columns, True, pairs)["W0 h"] * per_step / ceiling["operations_per_s"]
    return result | {
        "us_per_column_step": summary(1e6 * seconds / per_step),
        "rollouts_per_s": summary(columns / seconds),
        "share_of_operations_ceiling": summary(rate / ceiling["operations_per_s"]),
        "times_faster_than_dense_at_the_ceiling": summary(dense_limit_s / seconds),
    }


def products(rounds: int, quick: bool) -> list[dict]:
    """W0 h three ways over sizes and densities: what the rule `SPARSE_BELOW` in common/rollout.py rests on."""
    warnings.filterwarnings("ignore", "Sparse CSR tensor support is in beta")
    rows = []
    for size in (64,) if quick else (64, 250, 500, 1000, 2000, 4000):
        columns = columns_per_tile(size, torch.float32, "cpu")
        h_NC, dense_NN = torch.randn(size, columns), torch.randn(size, size)
        for density in (0.05, 0.1, 0.2, 0.3):
            degree = max(1, round(density * size))
            frozen = draw_reservoir(size, degree, seed=0)
            index_Nk, value_Nk = frozen.index_Nk.to(torch.int32), frozen.value_Nk
            starts = torch.arange(0, size * degree + 1, degree, dtype=torch.int32)
            entries = index_Nk.flatten(), value_Nk.flatten()
            csr_NN = torch.sparse_csr_tensor(starts, *entries, (size, size), check_invariants=True)
            seconds = take_turns(
                {
                    "dense": partial(torch.mm, dense_NN, h_NC),
                    "gather": partial(embedding_bag, index_Nk, h_NC, mode="sum", per_sample_weights=value_Nk),
                    "csr": partial(torch.mm, csr_NN, h_NC),
                },
                max(rounds, 5),
            )
            row = {"size": size, "columns": columns, "density": density}
            rows.append(row | {f"{name}_over_dense": ratio for name, ratio in ratios(seconds, "dense").items()})
    return rows


def parse_arguments(argv: list[str] | None) -> argparse.Namespace:
    made = parser(__doc__, "roofline", rounds=15)
    add_kernel_flags(made)
    return parse(made, argv)


@torch.no_grad()
def main(argv: list[str] | None = None) -> int:
    arguments = parse_arguments(argv)
    device = choose_device(arguments.device)
    dtype = getattr(torch, arguments.dtype)
    sizes = QUICK if arguments.quick else BRIEF if device.type == "cpu" else BRIEF.but(pairs=1024, batch=64)
    with Workers(device, threads=1):
        load = Workload(sizes, device, dtype, kernel=arguments.kernel)
        columns = 2 * load.tile_pairs * sizes.batch
        ceiling = ceilings(device, dtype, sizes.size * columns * dtype.itemsize, arguments.rounds, arguments.quick)
        results = {
            "device": device.type,
            "dtype": str(dtype).removeprefix("torch."),
            "kernel": arguments.kernel,
            "ceilings": ceiling,
            "rollout": whole_rollout(load, arguments.rounds, ceiling),
        }
        if device.type == "cpu":
            results["parts"], results["bookkeeping_us"] = parts(load, arguments.rounds, ceiling)
            results["products"] = products(arguments.rounds, arguments.quick)
        synchronise(device)
    print(
        f"ceilings: {ceiling['operations_per_s'] / 1e9:,.0f} GFLOP/s, memory {ceiling['memory_bytes_per_s'] / 1e9:,.1f} GB/s, "
        f"cache {ceiling['cache_bytes_per_s'] / 1e9:,.1f} GB/s"
    )
    for part, found in results.get("parts", {}).items():
        print(
            f"{part:12} {found['in_the_loop_us']['median']:7.3f} µs in the loop, {found['alone_us']:7.3f} alone, "
            f"{found['ceiling_us']:7.3f} by the ceilings"
        )
    rollout = results["rollout"]
    print(
        f"{rollout['us_per_column_step']['median']:.3f} µs a column and step, "
        f"{rollout['rollouts_per_s']['median']:,.0f} rollouts/s, "
        f"{rollout['share_of_operations_ceiling']['median']:.0%} of the rate of a large product, "
        f"{rollout['times_faster_than_dense_at_the_ceiling']['median']:.2f} × as fast as a dense W0 alone could be"
    )
    write(arguments.output, "roofline", arguments, results, device)
    return 0


if __name__ == "__main__":
    run_main(main)
