"""Draw a saved run of experiment_slug: two figures in viz/. Reads files only, never trains.

python visualize_experiment_slug.py                       # the committed results
python visualize_experiment_slug.py --run runs/laptop-seed0 --out /some/folder
"""

import sys
from collections.abc import Sequence
from pathlib import Path

from matplotlib.figure import Figure

from common.figures import (
    BLUE,
    DIVERGING,
    GREEN,
    SKY,
    VERMILION,
    SavedRun,
    curve_with_mean,
    describe,
    draw_references,
    figure_arguments,
    headed_figure,
    label_right,
    load_run,
    odd_window,
    references,
    report_bad_input,
    save_png,
    style,
)

HERE = Path(__file__).resolve().parent
COMMITTED = HERE / "results" / "smoke-seed0"  # laptop-seed0 once that is published

# T target frames, E embedding dimensions, M units shown, e singular values.
SHAPES = {"hidden_TM": "TM", "error_TE": "TE", "readout_singular_values": "e"}


def training_curves(run: SavedRun) -> Figure:
    """Losses against iteration, and what other predictors reach on the test set."""
    iteration, train = run.column("train_loss")
    evaluated, validation = run.column("validation_mse")
    test = run.results["test_mse"]
    figure = headed_figure(9, 5, f"Test MSE {test:.4f} after {iteration[-1]:,.0f} steps", describe(run.results))
    axes = figure.subplots()
    curve_with_mean(axes, iteration, train, SKY, odd_window(len(train)))
    axes.plot(evaluated, validation, color=VERMILION, marker="o", ms=4)
    axes.set(xlabel="Adam step", ylabel="MSE (standardised embedding)", xlim=(0, iteration[-1]))
    lines = [line for line in references(run.results) if line.name != "trained core, ridge"]  # the core is frozen
    draw_references(axes, lines)
    ends = [(train[-1], "train loss", SKY), (validation[-1], f"validation {validation[-1]:.3f}", VERMILION)]
    label_right(axes, [*((x.value, f"{x.name} {x.value:.3f}", x.colour) for x in lines), *ends])
    return figure


def hidden_states(run: SavedRun) -> Figure:
    """Activity on one test sequence, the error of its predictions, and the readout's singular values."""
    figure = headed_figure(9, 7, "What the frozen reservoir does with one test sequence", describe(run.results))
    top, middle, bottom = figure.subplots(3, 1, height_ratios=[2, 1, 1])
    hidden_TM, error_TE = run.arrays["hidden_TM"], run.arrays["error_TE"]
    steps = range(1, len(hidden_TM) + 1)
    image = top.imshow(
        hidden_TM.T, aspect="auto", cmap=DIVERGING, vmin=-1, vmax=1, extent=(0.5, len(hidden_TM) + 0.5, 0, 1)
    )
    top.set(xlabel="frame read", yticks=[], ylabel=f"{hidden_TM.shape[1]} units")
    top.grid(False)
    figure.colorbar(image, ax=top, label="activity h")
    middle.plot(steps, (error_TE**2).mean(1), color=BLUE, marker="o", ms=4)
    middle.set(xlabel="frame read", ylabel="squared error", ylim=(0, None))
    values = run.arrays["readout_singular_values"]
    bottom.plot(range(1, len(values) + 1), values, color=GREEN)
    bottom.set(xlabel="index", ylabel="singular values\nof the readout", ylim=(0, None))
    return figure


FIGURES = {"training_curves": training_curves, "hidden_states": hidden_states}


def main(argv: Sequence[str] | None = None) -> None:
    options = figure_arguments(__doc__.splitlines()[0], HERE, "viz/", argv)
    run = load_run(options.run, COMMITTED, SHAPES, needs=("train_loss", "validation_mse"), settings=("hidden_size",))
    with style():
        for name, draw in FIGURES.items():
            print(save_png(draw(run), options.out / "viz" / f"{name}.png"))


if __name__ == "__main__":
    sys.exit(report_bad_input(main))
