"""Draw the GIF of a saved run of reservoir_readout_only: the problem and the learning. Reads files only, never trains.

    python make_reservoir_readout_only_gif.py                     # the committed results, laptop preset, seed 0
    python make_reservoir_readout_only_gif.py --run runs/laptop-seed0 --out /some/folder

Left the frame that the network reads; in the middle, in the plane of the first two principal axes of the test embeddings,
the next frame's true embedding and the prediction by the readout as it was at the checkpoint shown; right the validation
MSE up to that checkpoint, above that of the exact readout. Every prediction drawn was saved during training.
"""

from collections.abc import Iterator
from pathlib import Path

import numpy as np
from matplotlib.axes import Axes
from matplotlib.backends.backend_agg import FigureCanvasAgg
from matplotlib.figure import Figure
from matplotlib.ticker import MaxNLocator

from common.errors import run_main
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
    "frames_SFYX": "ST+YX",
    "plane_target_ST2": "ST2",
    "plane_iteration_n": "n",
    "plane_prediction_nST2": "nST2",
    "plane_explained_2": "2",
}
TITLE = "A frozen reservoir and a linear readout predict the next frame’s embedding"
FRAMES, STEP_MS, LAST_MS = 60, 130, 2500
TAIL = 3  # time steps for which a path stays drawn behind its head
SEQUENCE = 0


def moments(steps: int, checkpoints: int) -> Iterator[tuple[int, int]]:
    """(time step, checkpoint) of every GIF frame: the sequence plays over and over, about FRAMES frames in all, while the
    checkpoints pass by; the last one has the last third."""
    total = max(1, round(FRAMES / steps)) * steps
    for i in range(total):
        yield i % steps, round(min(1.5 * i / total, 1.0) * (checkpoints - 1))


def plane(axes: Axes, target_T2: np.ndarray, prediction_nT2: np.ndarray, explained: float) -> None:
    """The plane of the embeddings, with all true points of the sequence in grey."""
    points = np.concatenate([target_T2, prediction_nT2.reshape(-1, 2)])
    middle, reach = (points.max(0) + points.min(0)) / 2, 0.55 * float(np.ptp(points, axis=0).max()) or 1.0
    axes.set(xlim=(middle[0] - reach, middle[0] + reach), ylim=(middle[1] - reach, middle[1] + reach), aspect="equal")
    axes.set(xticks=[], yticks=[], title="Embedding of the next frame")
    axes.set_xlabel(f"two principal axes ({explained:.0%} of the variance)", fontsize=8.5, color=GREY)
    for spine in axes.spines.values():
        spine.set(visible=True, color=PALE)
    axes.plot(*target_T2.T, color="#BDBDBD", ls="none", marker="o", ms=4, mew=0)
    for place, colour, name in ((0.03, INK, "● true"), (0.25, VERMILION, "● predicted")):
        axes.text(place, 0.96, name, color=colour, fontsize=9, fontweight="bold", transform=axes.transAxes, va="top")


def animate(run: SavedRun) -> Iterator[np.ndarray]:
    """uint8 (height, width, 3), one for each of `moments`."""
    frames_FYX, target_T2 = run.arrays["frames_SFYX"][SEQUENCE], run.arrays["plane_target_ST2"][SEQUENCE]
    prediction_nT2, iteration_n = run.arrays["plane_prediction_nST2"][:, SEQUENCE], run.arrays["plane_iteration_n"]
    steps, (evaluated, validation) = run.config["decoder_steps"], run.column("validation_mse")
    figure = Figure(figsize=(9.4, 3.7), dpi=100, layout="constrained")
    FigureCanvasAgg(figure)
    figure.suptitle(TITLE, x=0.01, ha="left", fontsize=12.5, fontweight="bold")
    left, centre, right = figure.subplots(1, 3, width_ratios=[1, 1, 1.15])

    left.set(xticks=[], yticks=[])
    left.grid(False)
    left.set_xlabel(f"N = {run.config['hidden_size']:,} units, none of them trained", fontsize=8.5, color=GREY)
    image = left.imshow(frames_FYX[0], cmap="gray", vmin=0, vmax=255)
    plane(centre, target_T2, prediction_nT2, float(run.arrays["plane_explained_2"].sum()))
    (link,) = centre.plot([], [], color=GREY, lw=1.0, ls=(0, (2, 2)))
    tails = [centre.plot([], [], color=colour, lw=2.2)[0] for colour in (INK, VERMILION)]
    heads = [centre.plot([], [], color=colour, marker="o", ms=9, mec="white")[0] for colour in (INK, VERMILION)]

    lines = [line for line in references(run.results) if line.name != "trained core, ridge"]  # the core is frozen
    learned = validation[validation <= np.quantile(validation, 0.85)]  # the first, far above, are cut off
    near, far = near_and_far(lines, learned.min(), learned.max())
    limits = robust_limits([*learned, *(line.value for line in near)], share=1.0, pad=0.09)
    right.set(xlim=(0, max(evaluated[-1] * steps, 1)), ylim=limits, xlabel="Adam step")
    right.xaxis.set_major_locator(MaxNLocator(4, integer=True, steps=[1, 2, 2.5, 5, 10]))
    right.tick_params(labelsize=8)
    draw_references(right, near)
    labels = [(x.value, f"{x.short} {x.value:.4f}".replace("frozen core", "exact"), x.colour) for x in near]
    label_right(right, [*labels, *((x.value, f"↑ {x.short} {x.value:.2f}", x.colour) for x in far)], size=8)
    (curve,) = right.plot([], [], color=VERMILION, lw=2, marker="o", ms=3)

    for step, checkpoint in moments(len(target_T2), len(iteration_n)):
        image.set_data(frames_FYX[step])
        left.set_title(f"Frame {step + 1} is read")
        paths = (target_T2, prediction_nT2[checkpoint])
        for path_T2, tail, head in zip(paths, tails, heads):
            tail.set_data(*path_T2[max(0, step - TAIL) : step + 1].T)
            head.set_data(*path_T2[step : step + 1].T)
        link.set_data(*np.stack([path_T2[step] for path_T2 in paths]).T)
        done = evaluated <= iteration_n[checkpoint]
        curve.set_data(evaluated[done] * steps, validation[done])
        right.set_title(f"Step {iteration_n[checkpoint] * steps:,}: validation MSE {validation[done][-1]:.4f}")
        yield pixels(figure)


def main(argv: list[str] | None = None) -> int:
    options = figure_arguments(__doc__.splitlines()[0], HERE, "the GIF", argv)
    run = load_run(options.run, COMMITTED, SHAPES, ("validation_mse",), settings=("hidden_size", "decoder_steps"))
    with style():
        frames = list(animate(run))
    milliseconds = [STEP_MS] * (len(frames) - 1) + [LAST_MS]
    print(write_gif(options.out / "reservoir_readout_only.gif", frames, milliseconds))
    return 0


if __name__ == "__main__":
    run_main(main)
