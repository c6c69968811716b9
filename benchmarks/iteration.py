"""What an iteration of the main experiment spends its time on.

    python benchmarks/iteration.py     (two minutes on 2 CPU cores, after the sequences have been encoded once)

The experiment's own training (moving-mnist-es-reservoir), at the sizes of its presets, for a few iterations; each part is timed
where it stands. Threads work side by side, so seconds are those of threads; a share is that of all of them together.

    data       minibatches of population and decoder: embeddings read (CPU), held or made (GPU), and Win z + b formed
    noise      drawn, made into the adapters of the tiles, and projected where a preset does that
    rollout    the tiles' time loops with their decoder, loss and guard
    decoder    the decoder's own training steps, with the states that they need
    update     losses to weights, the estimate, from noise drawn again or kept, Adam
    rest       what none of these holds: threads that wait for the last tile, Python
"""

import argparse
import dataclasses
import sys
import threading
import time
from collections import defaultdict
from contextlib import contextmanager
from pathlib import Path

from harness import parse, parser, summary, synchronise, write

from common.dist import Workers, choose_device
from common.errors import run_main
from common.problem import Embeddings

EXPERIMENT = Path(__file__).resolve().parent.parent / "moving-mnist-es-reservoir"
sys.path.insert(0, str(EXPERIMENT))
import moving_mnist_es_reservoir as experiment  # noqa: E402

PARTS = ("data", "noise", "rollout", "decoder", "update", "rest")


class Clock:
    """Seconds by part, over all threads. What is spent in a part within a part counts for the inner one alone."""

    def __init__(self, device):
        self.device, self.seconds, self.lock, self.thread = (
            device,
            defaultdict(float),
            threading.Lock(),
            threading.local(),
        )

    @contextmanager
    def part(self, name: str):
        within = self.thread.__dict__.setdefault("within", [0.0])  # seconds of the parts inside, for each open part
        within.append(0.0)
        started = time.perf_counter()
        try:
            yield
        finally:
            synchronise(self.device)
            elapsed = time.perf_counter() - started
            inner = within.pop()
            within[-1] += elapsed
            with self.lock:
                self.seconds[name] += elapsed - inner

    def wrap(self, name: str, owner, attribute: str) -> None:
        """Time every call of a method or function."""
        original = getattr(owner, attribute)

        def timed(*args, **kwargs):
            with self.part(name):
                return original(*args, **kwargs)

        setattr(owner, attribute, timed)


class Noise:
    """The experiment's noise, its drawing timed."""

    def __init__(self, noise, clock: Clock):
        self.noise, self.clock = noise, clock

    def adapter(self, *args):
        with self.clock.part("noise"):
            return self.noise.adapter(*args)

    def weighted_sum(self, *args):
        return self.noise.weighted_sum(*args)


def measure(preset: str, words: list[str], rounds: int, device_name: str) -> dict:
    config, _ = experiment.parse_arguments(
        ["--preset", preset, "--seed", "0", "--device", device_name, "--decoder-warmup", "0", *words]
    )
    device = choose_device(config.device)
    config = dataclasses.replace(config, device=device.type)
    with Workers(device, config.backend, config.threads) as workers:
        digits = workers.together(config.load_digits)
        problem = config.problem(digits)
        embeddings = Embeddings(problem, digits, config.train_sequences, workers)
        embeddings.prepare(workers)
        training = experiment.Training(config, problem, embeddings, workers)
        clock = Clock(device)
        training.noise = Noise(training.noise, clock)
        clock.wrap("noise", training, "_keep_projected")
        clock.wrap("decoder", training, "_train_decoder")
        clock.wrap("data", training, "minibatch")
        clock.wrap("data", training.rollout, "drive")
        clock.wrap("rollout", training.rollout, "errors")
        clock.wrap("update", training, "_estimate")
        clock.wrap("update", training, "_step_adapter")
        lanes = workers.threads if device.type == "cpu" else 1
        shares, seconds = defaultdict(list), defaultdict(list)
        for number in range(rounds + 1):
            clock.seconds.clear()
            started = time.perf_counter()
            training.iterate()
            synchronise(device)
            elapsed = time.perf_counter() - started
            if number == 0:
                continue
            parts = dict(clock.seconds)
            # The update runs on the main thread while the others have nothing to do: it holds all of them.
            parts["update"] = parts.get("update", 0.0) * lanes
            parts["rest"] = max(0.0, elapsed * lanes - sum(parts.values()))
            seconds["iteration"].append(elapsed)
            for part in PARTS:
                seconds[part].append(parts.get(part, 0.0) / lanes)
                shares[part].append(parts.get(part, 0.0) / (elapsed * lanes))
        return {
            "settings": {
                name: getattr(config, name)
                for name in (
                    "population_pairs",
                    "batch_size",
                    "noise",
                    "dtype",
                    "kernel",
                    "decoder_steps",
                    "decoder_batch_size",
                )
            },
            "device": device.type,
            "threads": workers.threads,
            "iteration_s": summary(seconds["iteration"]),
            "rollouts_per_s": summary(
                [2 * config.population_pairs * config.batch_size / s for s in seconds["iteration"]]
            ),
            "parts": {part: {"share": summary(shares[part]), "seconds": summary(seconds[part])} for part in PARTS},
        }


def parse_arguments(argv: list[str] | None) -> argparse.Namespace:
    def presets(text: str) -> list[str]:
        names = text.split(",")
        if unknown := [name for name in names if name not in experiment.PRESETS]:
            raise argparse.ArgumentTypeError(f"there is no {unknown[0]!r} among {', '.join(experiment.PRESETS)}")
        return names

    made = parser(__doc__, "iteration", rounds=9)
    made.add_argument("--device", choices=("cpu", "cuda"), default="cpu")
    made.add_argument("--presets", type=presets, metavar="P,P,…", help="default: laptop,brief on a CPU, h200 on a GPU")
    return parse(made, argv)


def main(argv: list[str] | None = None) -> int:
    arguments = parse_arguments(argv)
    presets = arguments.presets or (["laptop", "brief"] if arguments.device == "cpu" else ["h200"])
    results = {"presets": {}}
    for preset in ["smoke"] if arguments.quick else presets:
        # A training set that other presets have cached will do: no part depends on how many sequences there are.
        words = [] if preset in ("smoke", "h200") else ["--train-sequences", "10000"]
        found = measure(preset, words, arguments.rounds, arguments.device)
        results["presets"][preset] = found
        shares = ", ".join(f"{part} {found['parts'][part]['share']['median']:.1%}" for part in PARTS)
        print(f"{preset}: {found['iteration_s']['median']:.4g} s an iteration: {shares}")
    write(arguments.output, "iteration", arguments, results, arguments.device)
    return 0


if __name__ == "__main__":
    run_main(main)
