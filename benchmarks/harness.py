"""What every benchmark shares: candidates that take turns, medians with their spread, the hardware, the file.

A single time says little: machines differ, and one machine differs from day to day and from second to second. So candidates
take turns in every round, ratios are taken within a round, and the median over the rounds is given with its quartiles.
"""

import argparse
import contextlib
import os
import platform
import time
from collections.abc import Callable, Iterator, Sequence
from pathlib import Path

import numpy as np
import torch

from common.dist import choose_device
from common.errors import BadInput, Parser
from common.files import require_writable, write_json
from common.rollout import KERNELS, require_kernel
from common.run import source

RESULTS = Path(__file__).resolve().parent / "results"
QUICK_ROUNDS = 2


def parser(description: str, name: str, rounds: int) -> Parser:
    """A command line with the flags that every benchmark has."""
    made = Parser(description=description, formatter_class=argparse.RawDescriptionHelpFormatter)
    made.add_argument(
        "--rounds", type=int, default=rounds, help="repeats, in which all take turns (default %(default)s)"
    )
    made.add_argument(
        "--quick", action="store_true", help="tiny sizes, two rounds: does it run? The numbers mean nothing"
    )
    made.add_argument("--output", type=Path, default=RESULTS / f"{name}.json", help="default: %(default)s")
    return made


def add_kernel_flags(made: Parser) -> None:
    """The flags of a benchmark that runs tiles on either kind of device."""
    made.add_argument("--device", choices=("cpu", "cuda"), default="cpu")
    made.add_argument(
        "--dtype", choices=("float16", "float32"), default=None, help="float32 on a CPU, float16 on a GPU"
    )
    made.add_argument("--kernel", choices=KERNELS, default="torch", help="how a GPU runs a tile")


def parse(made: Parser, argv: Sequence[str] | None) -> argparse.Namespace:
    """Raises BadInput. A quick run never takes the place of the committed file."""
    arguments = made.parse_args(argv)
    if arguments.rounds < 1:
        raise BadInput("--rounds must be a whole number ≥ 1")
    if getattr(arguments, "threads", 0) < 0:
        raise BadInput("--threads must be a whole number ≥ 0")
    if hasattr(arguments, "kernel"):
        device = choose_device(arguments.device).type
        arguments.dtype = arguments.dtype or ("float32" if device == "cpu" else "float16")
        require_kernel(arguments.kernel, device, arguments.dtype)
    if arguments.quick:
        arguments.rounds = QUICK_ROUNDS
        if arguments.output == made.get_default("output"):
            arguments.output = arguments.output.with_name(f"quick-{arguments.output.name}")
    require_writable(arguments.output, "--output")
    return arguments


def take_turns(
    candidates: dict[str, Callable[[], object]],
    rounds: int,
    device: torch.device | str = "cpu",
    before: Callable[[str], object] = lambda name: None,
    say: Callable[[str], object] = lambda text: None,
) -> dict[str, np.ndarray]:
    """Seconds of each candidate in each round, float64 (rounds,), after one round that does not count.

    before(name) is called, outside the time, before a candidate's turn: the place to set its number of threads.
    """
    seconds: dict[str, list[float]] = {name: [] for name in candidates}
    for number in range(rounds + 1):
        for name, run in candidates.items():
            before(name)
            synchronise(device)
            started = time.perf_counter()
            run()
            synchronise(device)
            if number > 0:
                seconds[name].append(time.perf_counter() - started)
        say(f"round {number} of {rounds}" if number else "warmed up")
    return {name: np.array(values) for name, values in seconds.items()}


def synchronise(device: torch.device | str) -> None:
    """Wait for a GPU; a CPU is never ahead."""
    if torch.device(device).type == "cuda":
        torch.cuda.synchronize(device)


def summary(values: Sequence[float] | np.ndarray) -> dict[str, float | list[float]]:
    """Median and quartiles, to four digits."""
    low, median, high = np.percentile(np.asarray(values, dtype=np.float64), [25, 50, 75])
    return {"median": _short(median), "quartiles": [_short(low), _short(high)]}


def _short(value: float) -> float:
    return float(f"{value:.4g}")


def ratios(seconds: dict[str, np.ndarray], over: str) -> dict[str, dict]:
    """How many times as long as `over` each other candidate took, round by round: {name: summary}."""
    return {name: summary(values / seconds[over]) for name, values in seconds.items() if name != over}


def cpu_model() -> str:
    with contextlib.suppress(OSError):
        for line in Path("/proc/cpuinfo").read_text().splitlines():
            if line.startswith("model name"):
                return line.split(":", 1)[1].strip()
    return platform.processor() or platform.machine()


def hardware(device: torch.device | str = "cpu") -> dict:
    """What it ran on, as results name it."""
    found = {"cpu": cpu_model(), "cores": cores(), "platform": platform.platform()}
    if torch.device(device).type == "cuda":
        found["gpu"] = torch.cuda.get_device_name(device)
    return found


def cores() -> int:
    return len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count() or 1


def write(
    path: Path, name: str, arguments: argparse.Namespace, results: dict, device: torch.device | str = "cpu"
) -> None:
    """Write a report atomically: what was measured, where, by which code and how often."""
    report = {
        "benchmark": name,
        "quick": arguments.quick,
        "rounds": arguments.rounds,
        "hardware": hardware(device),
        "software": {"python": platform.python_version(), "numpy": np.__version__, "torch": torch.__version__},
        "source": source(Path(__file__).resolve()),
        "results": results,
    }
    write_json(path, report)
    print(f"written to {path}")


@contextlib.contextmanager
def threads_within_operations(count: int) -> Iterator[None]:
    """Let a peer's operations use `count` threads; our own tiles use one each."""
    before = torch.get_num_threads()
    torch.set_num_threads(count)
    try:
        yield
    finally:
        torch.set_num_threads(before)
