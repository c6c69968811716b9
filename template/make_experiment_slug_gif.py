"""Draw the GIF of a saved run of experiment_slug: the problem and the learning. Reads files only, never trains.

python make_experiment_slug_gif.py                        # the committed results
python make_experiment_slug_gif.py --run runs/laptop-seed0 --out /some/folder

Left a test sequence, over and over; right the validation MSE, growing.
"""

from collections.abc import Iterator
from pathlib import Path

import numpy as np
from matplotlib.backends.backend_agg import FigureCanvasAgg
from matplotlib.figure import Figure

from common.errors import run_main
from common.figures import VERMILION, SavedRun, figure_arguments, load_run, pixels, style, write_gif

HERE = Path(__file__).resolve().parent
COMMITTED = HERE / "results" / "smoke-seed0"  # laptop-seed0 once that is published
STEP_MS, LAST_MS, MOST_FRAMES = 150, 2000, 60


def animate(run: SavedRun) -> Iterator[np.ndarray]:
    """uint8 (height, width, 3), one for each validation score (at most MOST_FRAMES of them)."""
    frames_FYX = run.arrays["frames_SFYX"][0]
    iteration, validation = run.column("validation_mse")
    figure = Figure(figsize=(7, 3), dpi=100, layout="constrained")
    FigureCanvasAgg(figure)
    left, right = figure.subplots(1, 2, width_ratios=[1, 1.4])
    left.set(xticks=[], yticks=[])
    left.grid(False)
    image = left.imshow(frames_FYX[0], cmap="gray", vmin=0, vmax=255)
    (curve,) = right.plot([], [], color=VERMILION, marker="o", ms=3)
    low, high = validation.min(), validation.max()
    margin = 0.05 * (high - low) or 0.05
    right.set(xlabel="Adam step", ylabel="validation MSE", xlim=(0, iteration[-1]), ylim=(low - margin, high + margin))
    shown = np.linspace(0, len(iteration) - 1, min(len(iteration), MOST_FRAMES)).round().astype(int)
    for moment, score in enumerate(shown):
        frame = moment % len(frames_FYX)
        image.set_data(frames_FYX[frame])
        left.set_title(f"frame {frame + 1}")
        curve.set_data(iteration[: score + 1], validation[: score + 1])
        right.set_title(f"step {iteration[score]:,.0f}: {validation[score]:.4f}")
        yield pixels(figure)


def main(argv: list[str] | None = None) -> int:
    options = figure_arguments(__doc__.splitlines()[0], HERE, "the GIF", argv)
    run = load_run(
        options.run, COMMITTED, {"frames_SFYX": "SFYX"}, needs=("validation_mse",), settings=("hidden_size",)
    )
    with style():
        frames = list(animate(run))
    print(write_gif(options.out / "experiment_slug.gif", frames, [STEP_MS] * (len(frames) - 1) + [LAST_MS]))
    return 0


if __name__ == "__main__":
    run_main(main)
