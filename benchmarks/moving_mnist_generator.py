"""Moving-MNIST generators on the CPU: `frames` and `frames_torch` against the classic loop over frames.

    python benchmarks/moving_mnist_generator.py     (15 seconds; writes results/moving_mnist_generator.json)

The reference is how public generators draw: for every sequence, digit and frame,
`canvas[y:y+28, x:x+28] = maximum(canvas[y:y+28, x:x+28], digit)`. It starts from the same vectorised trajectories,
whose time counts on both sides. A second loop is tuned: offsets as Python integers, the
maximum written in place. All generators take turns in every round, so that a busy machine slows them together; a
ratio is taken within a round, and the median and quartiles over the rounds are reported.
"""

import argparse
import json
import os
import platform
import time
from pathlib import Path

import numpy as np
import torch

from common.digits import load_digits
from common.moving_mnist import CANVAS, DIGIT, MovingMNIST

RESULTS = Path(__file__).parent / "results" / "moving_mnist_generator.json"
LENGTH = 21
SPLIT = "train"


def classic_loop(data: MovingMNIST, indices: np.ndarray) -> np.ndarray:
    """uint8 (B, length, 64, 64), a frame at a time."""
    image_BD, offset_BTDC = data.trajectories(SPLIT, indices)
    pool = data.digits.images[SPLIT]
    frames = np.zeros((len(indices), data.length, CANVAS, CANVAS), dtype=np.uint8)
    for b in range(len(indices)):
        for d in range(data.number_of_digits):
            digit = pool[image_BD[b, d]]
            for t in range(data.length):
                y, x = offset_BTDC[b, t, d]
                canvas = frames[b, t]
                canvas[y : y + DIGIT, x : x + DIGIT] = np.maximum(canvas[y : y + DIGIT, x : x + DIGIT], digit)
    return frames


def in_place_loop(data: MovingMNIST, indices: np.ndarray) -> np.ndarray:
    """The classic loop, tuned: offsets as Python integers, the maximum written straight into the canvas."""
    image_BD, offset_BTDC = data.trajectories(SPLIT, indices)
    pool = data.digits.images[SPLIT]
    frames = np.zeros((len(indices), data.length, CANVAS, CANVAS), dtype=np.uint8)
    for b in range(len(indices)):
        for d in range(data.number_of_digits):
            digit = pool[image_BD[b, d]]
            for t, (y, x) in enumerate(offset_BTDC[b, :, d].tolist()):
                window = frames[b, t, y : y + DIGIT, x : x + DIGIT]
                np.maximum(window, digit, out=window)
    return frames


def numpy_frames(data: MovingMNIST, indices: np.ndarray) -> np.ndarray:
    return data.frames(SPLIT, indices)


def torch_frames(data: MovingMNIST, indices: np.ndarray) -> np.ndarray:
    return data.frames_torch(SPLIT, torch.from_numpy(indices)).numpy()


GENERATORS = {
    "classic_loop": classic_loop,
    "in_place_loop": in_place_loop,
    "frames": numpy_frames,
    "frames_torch": torch_frames,
}


def summary(values: np.ndarray) -> dict[str, float]:
    low, median, high = np.percentile(values, [25, 50, 75])
    return {"median": float(f"{median:.4g}"), "quartiles": [float(f"{low:.4g}"), float(f"{high:.4g}")]}


def measure(data: MovingMNIST, batch: int, rounds: int) -> dict:
    indices = np.arange(batch)
    expected = classic_loop(data, indices)
    for name, generate in GENERATORS.items():
        assert np.array_equal(generate(data, indices), expected), f"{name} draws other pixels than the classic loop"
    del expected
    seconds = {name: [] for name in GENERATORS}
    for _ in range(rounds):
        for name, generate in GENERATORS.items():
            start = time.perf_counter()
            generate(data, indices)
            seconds[name].append(time.perf_counter() - start)
    by_name = {name: np.array(values) for name, values in seconds.items()}
    return {
        "digits": data.number_of_digits,
        "batch": batch,
        "length": data.length,
        "rounds": rounds,
        "microseconds_a_frame": {n: summary(s / (batch * data.length) * 1e6) for n, s in by_name.items()},
        "classic_loop_over": {n: summary(by_name["classic_loop"] / s) for n, s in by_name.items() if "loop" not in n},
        "in_place_loop_over": {n: summary(by_name["in_place_loop"] / s) for n, s in by_name.items() if "loop" not in n},
    }


def cpu_model() -> str:
    try:
        lines = Path("/proc/cpuinfo").read_text().splitlines()
    except OSError:
        return platform.processor() or platform.machine()
    return next((line.split(":", 1)[1].strip() for line in lines if line.startswith("model name")), platform.machine())


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--rounds", type=int, default=15, help="interleaved repeats, at least 7 (default %(default)s)")
    parser.add_argument("--output", type=Path, default=RESULTS)
    arguments = parser.parse_args()
    if arguments.rounds < 7:
        parser.error("--rounds must be at least 7")

    torch.set_num_threads(1)
    digits = load_digits()
    columns = " ".join(f"{name:>13}" for name in GENERATORS)
    print(f"digits batch {columns}  µs a frame; `frames` against the classic loop (quartiles), the tuned loop")
    results = []
    for number_of_digits in (1, 2):
        for batch in (64, 1000):
            data = MovingMNIST(digits, number_of_digits, LENGTH, seed=0)
            row = measure(data, batch, arguments.rounds)
            results.append(row)
            times = " ".join(f"{row['microseconds_a_frame'][name]['median']:13.2f}" for name in GENERATORS)
            classic, tuned = row["classic_loop_over"]["frames"], row["in_place_loop_over"]["frames"]
            low, high = classic["quartiles"]
            ratios = f"{classic['median']:.1f} × ({low:.1f} to {high:.1f}), {tuned['median']:.1f} ×"
            print(f"{number_of_digits:6} {batch:5} {times}  {ratios}", flush=True)

    report = {
        "benchmark": "moving_mnist_generator",
        "hardware": {"cpu": cpu_model(), "cpus": os.cpu_count(), "threads": 1},
        "software": {"python": platform.python_version(), "numpy": np.__version__, "torch": torch.__version__},
        "results": results,
    }
    arguments.output.parent.mkdir(parents=True, exist_ok=True)
    partial = arguments.output.with_suffix(".tmp")
    partial.write_text(json.dumps(report, indent=1) + "\n")
    os.replace(partial, arguments.output)


if __name__ == "__main__":
    main()
