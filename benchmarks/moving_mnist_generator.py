"""Moving-MNIST generators on the CPU: `frames` and `frames_torch` against the classic loop over frames.

    python benchmarks/moving_mnist_generator.py     (15 seconds; writes results/moving_mnist_generator.json)

The reference is how public generators draw: for every sequence, digit and frame,
`canvas[y:y+28, x:x+28] = maximum(canvas[y:y+28, x:x+28], digit)`. It starts from the same vectorised trajectories,
whose time counts on both sides. A second loop is tuned: offsets as Python integers, the
maximum written in place. All generators take turns in every round, so that a busy machine slows them together; a
ratio is taken within a round, and the median and quartiles over the rounds are reported.
"""

import numpy as np
import torch
from harness import parse, parser, ratios, summary, take_turns, threads_within_operations, write

from common.digits import load_digits
from common.errors import run_main
from common.moving_mnist import CANVAS, DIGIT, MovingMNIST

LENGTH = 21
SPLIT = "train"
BATCHES, QUICK_BATCHES = (64, 1000), (4, 8)


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


def measure(data: MovingMNIST, batch: int, rounds: int) -> dict:
    indices = np.arange(batch)
    expected = classic_loop(data, indices)
    for name, generate in GENERATORS.items():
        if not np.array_equal(generate(data, indices), expected):
            raise RuntimeError(f"{name} draws other pixels than the classic loop")
    del expected
    runs = {name: lambda generate=generate: generate(data, indices) for name, generate in GENERATORS.items()}
    seconds = take_turns(runs, rounds)
    ours = {name: ratios(seconds, over=name) for name in GENERATORS if "loop" not in name}
    return {
        "digits": data.number_of_digits,
        "batch": batch,
        "length": data.length,
        "rounds": rounds,
        "microseconds_a_frame": {n: summary(s / (batch * data.length) * 1e6) for n, s in seconds.items()},
        "classic_loop_over": {name: found["classic_loop"] for name, found in ours.items()},
        "in_place_loop_over": {name: found["in_place_loop"] for name, found in ours.items()},
    }


def main(argv: list[str] | None = None) -> int:
    arguments = parse(parser(__doc__, "moving_mnist_generator", rounds=15), argv)
    digits = load_digits()
    columns = " ".join(f"{name:>13}" for name in GENERATORS)
    print(f"digits batch {columns}  µs a frame; `frames` against the classic loop (quartiles), the tuned loop")
    rows = []
    with threads_within_operations(1):
        for number_of_digits in (1, 2):
            for batch in QUICK_BATCHES if arguments.quick else BATCHES:
                data = MovingMNIST(digits, number_of_digits, LENGTH, seed=0)
                rows.append(measure(data, batch, arguments.rounds))
                print(line(rows[-1]), flush=True)
    write(arguments.output, "moving_mnist_generator", arguments, {"threads": 1, "rows": rows})
    return 0


def line(row: dict) -> str:
    """A row for a terminal."""
    times = " ".join(f"{row['microseconds_a_frame'][name]['median']:13.2f}" for name in GENERATORS)
    classic, tuned = row["classic_loop_over"]["frames"], row["in_place_loop_over"]["frames"]
    low, high = classic["quartiles"]
    against = f"{classic['median']:.1f} × ({low:.1f} to {high:.1f}), {tuned['median']:.1f} ×"
    return f"{row['digits']:6} {row['batch']:5} {times}  {against}"


if __name__ == "__main__":
    run_main(main)
