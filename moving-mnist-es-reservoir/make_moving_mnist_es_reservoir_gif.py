"""Draw the GIF of a saved run of moving_mnist_es_reservoir: the problem and the learning. It never trains.

    python make_moving_mnist_es_reservoir_gif.py                  # the committed results, laptop preset, seed 0
    python make_moving_mnist_es_reservoir_gif.py --run runs/laptop-seed0 --out /some/folder

Left the frame that the network reads; in the middle, in the plane of the first two principal axes of the test
embeddings, the next frame's true embedding and the prediction by the model as it was at the checkpoint shown; right the
validation MSE up to that checkpoint. Nothing is interpolated: every prediction drawn was saved during training.
"""

from collections.abc import Iterator
from pathlib import Path

import numpy as np
from matplotlib.axes import Axes
from matplotlib.backends.backend_agg import FigureCanvasAgg
from matplotlib.figure import Figure
from matplotlib.lines import Line2D
from matplotlib.patches import Rectangle
from matplotlib.text import Text
from matplotlib.ticker import MaxNLocator

from common.errors import BadInput, run_main
from common.figures import (
    GREY,
    INK,
    PALE,
    VERMILION,
    SavedRun,
    draw_references,
    figure_arguments,
    label_right,
    load_run,
    near_and_far,
    pixels,
    references,
    robust_limits,
    style,
    write_gif,
)

HERE = Path(__file__).resolve().parent
COMMITTED = HERE / "results" / "laptop-seed0"

# S showcase sequences, T target frames, n checkpoints.
SHAPES = {
    "plane_target_ST2": "ST2",
    "plane_iteration_n": "n",
    "plane_prediction_nST2": "nST2",
    "plane_explained_2": "2",
    "frames_SFYX": "ST+YX",
}
TITLE = "A reservoir with an evolved adapter predicts the next frame’s embedding"
# Pixels: the figure, the side of the three panels, their left and top margin and the gap between the first two.
WIDTH, HEIGHT, GIF_DPI = 900, 372, 100
SIDE, LEFT, TOP, GAP = 256, 18, 72, 22
FRAMES, HOLD, STEP_MS, LAST_MS = 60, 4, 130, 2500
TAIL = 3  # time steps for which a trajectory stays drawn behind its head


def schedule(steps: int, checkpoints: int) -> Iterator[tuple[int, int]]:
    """(time step, checkpoint) of every GIF frame.

    The sequence plays over and over, about FRAMES frames in all; the first checkpoint stays for HOLD frames, the others
    follow at an even pace, and the last one has the last third.
    """
    total = max(1, round(FRAMES / steps)) * steps
    moving = max(1, total * 2 // 3 - HOLD)
    for i in range(total):
        share = min(max(i - HOLD, 0) / moving, 1.0)
        yield i % steps, round(share * (checkpoints - 1))


class Scene:
    """The drawing; `draw(step, checkpoint)` gives one GIF frame, uint8 (HEIGHT, WIDTH, 3)."""

    def __init__(self, run: SavedRun, sequence: int):
        self.frames_FYX = run.arrays["frames_SFYX"][sequence]
        self.target_T2 = run.arrays["plane_target_ST2"][sequence]
        self.prediction_nT2 = run.arrays["plane_prediction_nST2"][:, sequence]
        self.iteration_n = run.arrays["plane_iteration_n"]
        self.evaluated, self.validation = run.column("validation_mse")
        self.figure = Figure(figsize=(WIDTH / GIF_DPI, HEIGHT / GIF_DPI), dpi=GIF_DPI)
        FigureCanvasAgg(self.figure)
        self.figure.text(LEFT / WIDTH, 1 - 12 / HEIGHT, TITLE, fontsize=12.5, fontweight="bold", va="top")
        self._left(run.config)
        self._plane(run.arrays["plane_explained_2"])
        self._curve(run)

    def _left(self, config: dict) -> None:
        self.read = self._caption(LEFT, "")
        frame = (LEFT / WIDTH, 1 - (TOP + SIDE) / HEIGHT, SIDE / WIDTH, SIDE / HEIGHT)
        self.figure.add_artist(Rectangle(frame[:2], *frame[2:], fc="black", ec="none"))
        sizes = f"N = {config['hidden_size']:,} · r = {config['rank']} · K = {config['population_pairs']:,} pairs"
        self.figure.text(LEFT / WIDTH, self._below(14), sizes, fontsize=8.5, color=GREY, va="center")

    def _caption(self, left: float, text: str) -> Text:
        return self.figure.text(left / WIDTH, 1 - (TOP - 9) / HEIGHT, text, fontsize=10, va="bottom")

    def _below(self, points: int) -> float:
        """Figure coordinate `points` pixels under the panels."""
        return 1 - (TOP + SIDE + points) / HEIGHT

    def _axes(self, left: int, width: int) -> Axes:
        return self.figure.add_axes((left / WIDTH, 1 - (TOP + SIDE) / HEIGHT, width / WIDTH, SIDE / HEIGHT))

    def _plane(self, explained_2: np.ndarray) -> None:
        axes = self._axes(LEFT + SIDE + GAP, SIDE)
        self._caption(LEFT + SIDE + GAP, "Embedding of the next frame")
        points = np.concatenate([self.target_T2, self.prediction_nT2.reshape(-1, 2)])
        middle = (points.max(0) + points.min(0)) / 2
        reach = 0.5 * (points.max(0) - points.min(0)).max() * 1.1 or 1.0
        (left, bottom), (right, top) = middle - reach, middle + reach
        axes.set(xlim=(left, right), ylim=(bottom, top), aspect="equal", xticks=[], yticks=[])
        axes.set_xlabel(f"two principal axes ({explained_2.sum():.0%} of the variance)", fontsize=8.5, color=GREY)
        for spine in axes.spines.values():
            spine.set(visible=True, color=PALE)
        axes.plot(*self.target_T2.T, color="#BDBDBD", ls="none", marker="o", ms=4, mew=0)
        (self.faint,) = axes.plot([], [], color="#EDB48C", ls="none", marker="o", ms=4, mew=0)
        (self.link,) = axes.plot([], [], color=GREY, lw=1.0, ls=(0, (2, 2)))
        self.tails = [axes.plot([], [], color=colour, lw=2.2)[0] for colour in (INK, VERMILION)]
        self.heads = [self._dot(axes, colour, 9) for colour in (INK, VERMILION)]
        for left, colour, name in ((58, INK, "● true"), (118, VERMILION, "● predicted")):
            place = (LEFT + SIDE + GAP + left) / WIDTH, self._below(32)
            self.figure.text(*place, name, color=colour, fontsize=9.5, fontweight="bold", va="center")

    def _curve(self, run: SavedRun) -> None:
        left = LEFT + 2 * SIDE + GAP + 64
        axes = self._axes(left, WIDTH - left - 134)
        self.progress = self._caption(left, "")
        low, high = float(self.validation.min()), float(self.validation.max())
        near, far = near_and_far([x for x in references(run.results) if x.short != "trained core"], low, high)
        limits = robust_limits([low, high, *(x.value for x in near)], share=1.0, pad=0.09)
        axes.set(xlim=(0, max(self.evaluated[-1], 1)), ylim=limits)
        axes.tick_params(labelsize=8)
        axes.xaxis.set_major_locator(MaxNLocator(4, integer=True, steps=[1, 2, 5, 10]))
        axes.yaxis.set_major_locator(MaxNLocator(6, steps=[1, 2, 2.5, 5, 10]))
        axes.set_xlabel("ES iteration", fontsize=9)
        draw_references(axes, near)
        labels = [(x.value, f"{x.short} {x.value:.4f}", x.colour) for x in near]
        label_right(axes, [*labels, *((x.value, f"↑ {x.short} {x.value:.2f}", x.colour) for x in far)], size=8)
        marker = "o" if len(self.evaluated) <= 40 else ""
        (self.curve,) = axes.plot([], [], color=VERMILION, lw=2, marker=marker, ms=3.5)
        self.head = self._dot(axes, VERMILION, 8)

    @staticmethod
    def _dot(axes: Axes, colour: str, size: float) -> Line2D:
        (dot,) = axes.plot([], [], color=colour, marker="o", ms=size, mec="white", mew=1.2, clip_on=False, zorder=6)
        return dot

    def draw(self, step: int, checkpoint: int) -> np.ndarray:
        """The model of `checkpoint` reads frame `step` + 1 and predicts the one after it."""
        iteration = self.iteration_n[checkpoint]
        self.read.set_text(f"Frame {step + 1} is read")
        self.faint.set_data(*self.prediction_nT2[checkpoint].T)
        tail = slice(max(0, step - TAIL), step + 1)
        paths = (self.target_T2, self.prediction_nT2[checkpoint])
        for path_T2, line, head in zip(paths, self.tails, self.heads, strict=True):
            line.set_data(*path_T2[tail].T)
            head.set_data(*path_T2[step : step + 1].T)
        self.link.set_data(*np.stack([self.target_T2[step], self.prediction_nT2[checkpoint, step]]).T)
        done = self.evaluated <= iteration
        self.curve.set_data(self.evaluated[done], self.validation[done])
        self.head.set_data(self.evaluated[done][-1:], self.validation[done][-1:])
        score = f": validation MSE {self.validation[done][-1]:.4f}" if done.any() else ""
        self.progress.set_text(f"Iteration {iteration:,}{score}")
        picture = pixels(self.figure)
        frame = self.frames_FYX[step]
        # The digits are pasted pixel by pixel, each enlarged to a whole number of pixels, so that they stay crisp.
        scale = max(1, SIDE // max(frame.shape))
        enlarged = frame.repeat(scale, 0).repeat(scale, 1)[:SIDE, :SIDE, None]
        picture[TOP : TOP + enlarged.shape[0], LEFT : LEFT + enlarged.shape[1]] = enlarged
        return picture


def main(argv: list[str] | None = None) -> int:
    def more(parser):
        parser.add_argument(
            "--sequence", type=int, default=1, metavar="S", help="showcase sequence, from 1 (default 1)"
        )

    options = figure_arguments(__doc__.splitlines()[0], HERE, "the GIF", argv, more)
    run = load_run(options.run, COMMITTED, SHAPES, needs=("validation_mse",))
    sequences, steps, _ = run.arrays["plane_target_ST2"].shape
    if not 1 <= options.sequence <= sequences:
        raise BadInput(f"--sequence {options.sequence}: must be in 1 … {sequences}")
    with style():
        scene = Scene(run, options.sequence - 1)
        frames = [scene.draw(*moment) for moment in schedule(steps, len(run.arrays["plane_iteration_n"]))]
    milliseconds = [STEP_MS] * (len(frames) - 1) + [LAST_MS]
    target = options.out / "moving_mnist_es_reservoir.gif"
    print(write_gif(target, frames, milliseconds))
    return 0


if __name__ == "__main__":
    run_main(main)
