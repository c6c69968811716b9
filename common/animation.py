"""The GIF of a saved run, which several experiments share: the problem and the learning.

Left the frame that the network reads; in the middle, in the plane of the first two principal axes of the test embeddings, the next
frame's true embedding and the prediction by the model as it was at the step shown; right the validation MSE up to that step. Nothing
is interpolated: every prediction drawn was saved during training.
"""

from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path

import numpy as np
from matplotlib.axes import Axes
from matplotlib.backends.backend_agg import FigureCanvasAgg
from matplotlib.figure import Figure
from matplotlib.ticker import MaxNLocator

from common.errors import BadInput
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
from common.results import module_of

# S showcase sequences, T target frames, n checkpoints.
SHAPES = {
    "plane_target_ST2": "ST2",
    "plane_iteration_n": "n",
    "plane_prediction_nST2": "nST2",
    "plane_explained_2": "2",
    "frames_SFYX": "ST+YX",
}
WIDTH, HEIGHT, GIF_DPI = 900, 372, 100  # pixels
SIDE, TOP = 256, 72  # of the square panels: a frame of 64 × 64 is enlarged to whole pixels
FRAMES, HOLD, STEP_MS, LAST_MS = 60, 4, 130, 2500
TAIL = 3  # time steps for which a path stays drawn behind its head


@dataclass(frozen=True)
class Wording:
    """What one experiment's GIF says."""

    title: str
    sizes: Mapping[str, str]  # {symbol: key of the config}, the line under the frame: integers ≥ 1
    step: str  # what the iteration shown is called, before its number
    axis: str  # and along the axis


def schedule(steps: int, checkpoints: int) -> Iterator[tuple[int, int]]:
    """(time step, checkpoint) of every GIF frame: the sequence plays over and over; the first checkpoint stays for HOLD
    frames, the others follow at an even pace, and the last one has the last third."""
    total = max(1, round(FRAMES / steps)) * steps
    moving = max(1, total * 2 // 3 - HOLD)
    for i in range(total):
        share = min(max(i - HOLD, 0) / moving, 1.0)
        yield i % steps, round(share * (checkpoints - 1))


def animate(run: SavedRun, sequence: int, wording: Wording) -> Iterator[np.ndarray]:
    """uint8 (HEIGHT, WIDTH, 3), one for each moment of `schedule`."""
    target_T2, prediction_nT2 = (
        run.arrays["plane_target_ST2"][sequence],
        run.arrays["plane_prediction_nST2"][:, sequence],
    )
    evaluated, validation = run.column("validation_mse")
    figure = Figure(figsize=(WIDTH / GIF_DPI, HEIGHT / GIF_DPI), dpi=GIF_DPI)
    FigureCanvasAgg(figure)
    figure.text(18 / WIDTH, 1 - 12 / HEIGHT, wording.title, fontsize=12.5, fontweight="bold", va="top")
    frame, plane, curve = (_panel(figure, *place) for place in ((18, SIDE), (296, SIDE), (616, 150)))
    for axes in (frame, plane):
        axes.set(xticks=[], yticks=[])
        axes.grid(False)
    frame.spines[:].set_visible(False)
    image = frame.imshow(run.arrays["frames_SFYX"][sequence, 0], cmap="gray", vmin=0, vmax=255)
    sizes = (f"{symbol} = {run.config[key]:,}" for symbol, key in wording.sizes.items())
    frame.set_xlabel(" · ".join(sizes), fontsize=8.5, color=GREY)

    points = np.concatenate([target_T2, prediction_nT2.reshape(-1, 2)])
    middle, reach = (points.max(0) + points.min(0)) / 2, 0.55 * (points.max(0) - points.min(0)).max() or 1.0
    plane.set(xlim=(middle[0] - reach, middle[0] + reach), ylim=(middle[1] - reach, middle[1] + reach))
    plane.spines[:].set(visible=True, color=PALE)
    share = run.arrays["plane_explained_2"].sum()
    plane.set_xlabel(f"two principal axes ({share:.0%} of the variance)", fontsize=8.5, color=GREY)
    for x, colour, name in ((0.2, INK, "● true"), (0.44, VERMILION, "● predicted")):
        plane.text(x, -0.145, name, color=colour, fontsize=9.5, fontweight="bold", transform=plane.transAxes)
    plane.plot(*target_T2.T, color="#BDBDBD", ls="none", marker="o", ms=4, mew=0)
    (faint,) = plane.plot([], [], color="#EDB48C", ls="none", marker="o", ms=4, mew=0)
    (link,) = plane.plot([], [], color=GREY, lw=1, ls=(0, (2, 2)))
    tails = [plane.plot([], [], color=colour, lw=2.2)[0] for colour in (INK, VERMILION)]
    heads = [plane.plot([], [], color=c, marker="o", ms=9, mec="white", mew=1.2, zorder=6)[0] for c in (INK, VERMILION)]

    _references(curve, run, wording.axis)
    (line,) = curve.plot([], [], color=VERMILION, lw=2)
    (head,) = curve.plot([], [], color=VERMILION, marker="o", ms=8, mec="white", mew=1.2, clip_on=False, zorder=6)

    for step, checkpoint in schedule(len(target_T2), len(prediction_nT2)):
        iteration, prediction_T2 = run.arrays["plane_iteration_n"][checkpoint], prediction_nT2[checkpoint]
        image.set_data(run.arrays["frames_SFYX"][sequence, step])
        frame.set_title(f"Frame {step + 1} is read", fontsize=10)
        plane.set_title("Embedding of the next frame", fontsize=10)
        faint.set_data(*prediction_T2.T)
        link.set_data(*np.stack([target_T2[step], prediction_T2[step]]).T)
        for path_T2, tail, dot in zip((target_T2, prediction_T2), tails, heads):
            tail.set_data(*path_T2[max(0, step - TAIL) : step + 1].T)
            dot.set_data(*path_T2[step : step + 1].T)
        done = evaluated <= iteration
        line.set_data(evaluated[done], validation[done])
        head.set_data(evaluated[done][-1:], np.minimum(validation[done][-1:], curve.get_ylim()[1]))
        score = f": validation MSE {validation[done][-1]:.4f}" if done.any() else ""
        curve.set_title(f"{wording.step} {iteration:,}{score}", fontsize=10)
        yield pixels(figure)


def _panel(figure: Figure, left: int, width: int) -> Axes:
    return figure.add_axes((left / WIDTH, 1 - (TOP + SIDE) / HEIGHT, width / WIDTH, SIDE / HEIGHT))


def _references(axes: Axes, run: SavedRun, label: str) -> None:
    """Limits and horizontal lines of the validation curve; what starts far above them comes in from the upper edge."""
    evaluated, validation = run.column("validation_mse")
    settled = validation[evaluated >= 0.05 * evaluated[-1]] if len(validation) > 2 else validation
    lines = [line for line in references(run.results) if line.short != "trained core"]  # known only after the last step
    near, far = near_and_far(lines, settled.min(), settled.max())
    limits = robust_limits([*settled, *(line.value for line in near)], share=1.0, pad=0.09)
    axes.set(xlim=(0, max(evaluated[-1], 1)), ylim=limits)
    axes.set_xlabel(label, fontsize=9)
    axes.tick_params(labelsize=8)
    axes.xaxis.set_major_locator(MaxNLocator(3, integer=True, steps=[1, 2, 5, 10]))
    axes.yaxis.set_major_locator(MaxNLocator(6, steps=[1, 2, 2.5, 5, 10]))
    draw_references(axes, near)
    labels = [(line.value, f"{line.short} {line.value:.4f}", line.colour) for line in near]
    label_right(axes, [*labels, *((x.value, f"↑ {x.short} {x.value:.2f}", x.colour) for x in far)], size=8)


def gif_main(argv: Sequence[str] | None, description: str, committed: Path, wording: Wording) -> int:
    """The whole of a script that draws such a GIF: `--run`, `--out` and `--sequence`; it is named after the stub.

    committed: the run that is drawn where none is given, as for `load_run`: <stub>/results/<name>.
    """

    def more(parser):
        parser.add_argument(
            "--sequence", type=int, default=1, metavar="S", help="showcase sequence, from 1 (default 1)"
        )

    stub = committed.parent.parent
    options = figure_arguments(description, stub, "the GIF", argv, more)
    run = load_run(options.run, committed, SHAPES, needs=("validation_mse",), settings=tuple(wording.sizes.values()))
    sequences = len(run.arrays["plane_target_ST2"])
    if not 1 <= options.sequence <= sequences:
        raise BadInput(f"--sequence {options.sequence}: must be in 1 … {sequences}")
    with style():
        frames = list(animate(run, options.sequence - 1, wording))
    milliseconds = [STEP_MS] * (len(frames) - 1) + [LAST_MS]
    print(write_gif(options.out / f"{module_of(stub.name)}.gif", frames, milliseconds))
    return 0
