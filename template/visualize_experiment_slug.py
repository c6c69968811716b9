"""Draw a saved run of experiment_slug: two figures in viz/. Reads files only, never trains.

python visualize_experiment_slug.py                       # the committed results
python visualize_experiment_slug.py --run runs/laptop-seed0 --out /some/folder

Errors in closed loop are one figure more, drawn where the run has them (--horizon).
"""

from pathlib import Path

import numpy as np
from matplotlib.figure import Figure

from common.errors import run_main
from common.figures import (
    DIVERGING,
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
    predictor,
    references,
    save_figures,
    style,
)
from common.run_figures import closed_loop_error

HERE = Path(__file__).resolve().parent
COMMITTED = HERE / "results" / "smoke-seed0"  # laptop-seed0 once that is published

# T target frames, M units shown, k predictors; common/figure_data.py has more.
SHAPES = {"hidden_TM": "TM", "mse_by_frame_T": "T", "trivial_names": "k", "trivial_mse_by_frame_kT": "kT"}


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
    """Activity on one test sequence, and the error on the test set after each frame."""
    figure = headed_figure(
        9, 7, "What the frozen reservoir does, and what its readout gets wrong", describe(run.results)
    )
    top, bottom = figure.subplots(2, 1)
    hidden_TM, error_T = run.arrays["hidden_TM"], run.arrays["mse_by_frame_T"]
    steps, units = hidden_TM.shape
    image = top.imshow(hidden_TM.T, aspect="auto", cmap=DIVERGING, vmin=-1, vmax=1, extent=(0.5, steps + 0.5, 0, 1))
    top.set(xlabel="frame read", yticks=[], ylabel=f"{units} units, one test sequence")
    top.grid(False)
    figure.colorbar(image, cax=top.inset_axes((1.02, 0, 0.02, 1)), label="activity h")
    frame, labels = np.arange(2, steps + 2), [(error_T[-1], "this run", VERMILION)]
    bottom.plot(frame, error_T, color=VERMILION, marker="o", ms=4)
    for name, trivial_T in zip(run.arrays["trivial_names"], run.arrays["trivial_mse_by_frame_kT"]):
        look = predictor(name, trivial_T[-1])
        bottom.plot(frame, trivial_T, color=look.colour, dashes=look.dashes)
        labels.append((look.value, look.name, look.colour))
    bottom.set(xlabel="target frame", ylabel="test MSE")
    label_right(bottom, labels)
    return figure


FIGURES = {
    "training_curves": training_curves,
    "hidden_states": hidden_states,
    "closed_loop_error": closed_loop_error,  # of a run with --horizon
}


def main(argv: list[str] | None = None) -> int:
    options = figure_arguments(__doc__.splitlines()[0], HERE, "viz/", argv)
    run = load_run(options.run, COMMITTED, SHAPES, needs=("train_loss", "validation_mse"), settings=("hidden_size",))
    with style():
        save_figures({name: draw(run) for name, draw in FIGURES.items()}, options.out / "viz")
    return 0


if __name__ == "__main__":
    run_main(main)
