"""Draw a saved run of truncated_es: three figures in viz/, or up to eight (see below). Reads files only, never trains.

python visualize_truncated_es.py                               # the committed results, laptop preset, seed 0
python visualize_truncated_es.py --run runs/laptop-seed0 --out /some/folder

The cosine to the gradient is drawn where the run measured it, errors in closed loop where it has them (--horizon), leaks where they learn, a
curriculum where the run is a rung of one. The figure of errors by window is not of one run: it is drawn from the committed results.
"""

from collections.abc import Sequence
from pathlib import Path

import numpy as np
from matplotlib.axes import Axes
from matplotlib.figure import Figure
from matplotlib.lines import Line2D
from matplotlib.ticker import NullLocator

from common.curriculum_figures import curriculum, read_curricula
from common.errors import BadInput, run_main
from common.figures import (
    GREEN,
    GREY,
    INK,
    ORANGE,
    PURPLE,
    SKY,
    VERMILION,
    SavedRun,
    describe,
    figure_arguments,
    headed_figure,
    header_legend,
    label_right,
    load_run,
    robust_limits,
    save_figures,
    style,
)
from common.results import changed_settings, run_name
from common.run_figures import SHAPES, adapter_spectra, closed_loop_error, leaks, prediction_vs_target
from common.truncated_figures import comparable, cosine_to_gradient, machine_of, read_results, training_curves

HERE = Path(__file__).resolve().parent
RESULTS = HERE / "results"
BACKPROPAGATION = HERE.parent / "moving-mnist-bptt-baseline" / "results"  # not there: its lines are left out
COMMITTED = RESULTS / "laptop-seed0"
SETTINGS = ("hidden_size", "rank", "sequence_length", "batch_size", "window", "members")


def sizes(run: SavedRun) -> str:
    return f"windows of L = {run.config['window']} steps · M = {run.config['members']} members in each"


# ---------------------------------------------------------------------------------------------------------------------
# Errors and cost by window


def by_window(results: Sequence[dict]) -> dict[int, list[dict]]:
    """{L: results of its seeds}, L ascending: those of preset laptop and what differs from them in its window and seed alone."""
    of_preset = [result for result in results if result["preset"] == "laptop"]
    if not of_preset:
        return {}
    first, groups = of_preset[0], {}
    for result in results:
        for key in SETTINGS:
            value = result["config"].get(key)
            if not isinstance(value, int) or isinstance(value, bool) or value < 1:
                raise BadInput(f"{result['stub']}, {run_name(result)}: config holds no valid {key}")
        same = not set(changed_settings(result["config"], first["config"])) - {"window"}
        if same and result["problem_id"] == first["problem_id"]:
            groups.setdefault(result["config"]["window"], []).append(result)
    return dict(sorted(groups.items()))


def error_by_window(results: Sequence[dict], backpropagation: dict[str, Sequence[dict]]) -> Figure | None:
    """Test errors and seconds of training against the length of a window; None where fewer than two lengths were run.

    results: of this experiment. backpropagation: {name of a line: results}, of which those on the same problem count, trained on as
    many sequences.
    """
    groups = by_window(results)
    if len(groups) < 2:
        return None
    one, lengths = next(iter(groups.values()))[0], list(groups)
    whole = one["problem"]["sequence_length"]
    ridge = {window: np.mean([result["ridge_test_mse"] for result in group]) for window, group in groups.items()}
    best = min(ridge, key=ridge.get)
    title = f"Least ridge test MSE {ridge[best]:.4f}, in " + (
        "whole sequences" if best == whole else "windows of one step" if best == 1 else f"windows of {best} steps"
    )
    if whole in ridge and best != whole:
        title += f"; {ridge[whole]:.4f} in whole sequences"
    seeds = ", ".join(f"{len(group)} at L = {window}" for window, group in groups.items())
    where = machine_of([result for group in groups.values() for result in group])
    common = {key: value for key, value in one.items() if key not in ("preset", "seed")}
    about = f"{describe(common)} · M = {one['config']['members']} · {one['iterations']:,} iterations · on {where}"
    figure = headed_figure(11.5, 5.6, title, f"{about}\nseeds: {seeds}", legend_rows=1)
    left, right = figure.subplots(1, 2, width_ratios=[1.7, 1])

    lines = [("frozen core", GREEN, [one.get("ridge_test_mse_at_start")])]
    for (name, others), colour in zip(backpropagation.items(), (PURPLE, ORANGE)):
        lines.append((name, colour, [other["ridge_test_mse"] for other in others if comparable(other, one)]))
    labels, drawn = [], []
    for name, colour, values in lines:
        if values and values[0] is not None:
            drawn.append(float(np.mean(values)))
            left.axhline(drawn[-1], color=colour, lw=1.3, dashes=(5, 2), zorder=1.5)
            labels.append((drawn[-1], f"{name} {drawn[-1]:.4f}", colour))
    handles = []
    for key, colour, name in (
        ("test_mse", SKY, "test MSE with its own decoder"),
        ("ridge_test_mse", VERMILION, "test MSE under a ridge readout"),
    ):
        drawn += _means_and_seeds(left, groups, key, colour)
        handles.append(Line2D([], [], color=colour, marker="o", ms=4, lw=2, label=name))
    handles.append(Line2D([], [], color=GREY, dashes=(5, 2), lw=1.3, label="test MSE of …, under a ridge readout"))
    left.set(ylim=robust_limits(drawn, share=1.0), ylabel="test MSE (standardised embedding)", title="Error")
    seconds = _means_and_seeds(right, groups, "wallclock_s", INK)
    right.set(ylim=(0, 1.1 * max(seconds) or 1.0), ylabel="seconds", title="Time of training")
    for axes in (left, right):
        axes.set(xscale="log", xlabel="L, steps of a window", xlim=(lengths[0] / 1.25, lengths[-1] * 1.25))
        axes.set_xticks(lengths, [f"{window}\n= T" if window == whole else f"{window}" for window in lengths])
        axes.xaxis.set_minor_locator(NullLocator())
    header_legend(figure, handles)
    label_right(left, labels)
    return figure


def _means_and_seeds(axes: Axes, groups: dict[int, list[dict]], key: str, colour: str) -> list[float]:
    """The curve of means, a pale dot for each seed; returns all that was drawn."""
    for window, group in groups.items():
        values = [result[key] for result in group]
        axes.plot([window] * len(values), values, color=colour, ls="none", marker="o", ms=7, mew=0, alpha=0.35)
    means = [float(np.mean([result[key] for result in group])) for group in groups.values()]
    axes.plot(list(groups), means, color=colour, lw=2, marker="o", ms=3.5, zorder=4)
    return [*means, *(result[key] for group in groups.values() for result in group)]


def main(argv: list[str] | None = None) -> int:
    options = figure_arguments(__doc__.splitlines()[0], HERE, "viz/", argv)
    needs = ("train_loss", "decoder_loss", "validation_mse")
    run = load_run(options.run, COMMITTED, SHAPES, needs=needs, settings=SETTINGS)
    backpropagation = {
        "BPTT on V": read_results(BACKPROPAGATION, "v-seed*"),
        "BPTT on U and V": read_results(BACKPROPAGATION, "laptop-seed*"),
    }
    results = read_results(RESULTS)
    with style():
        figures = {
            "training_curves": training_curves(run, sizes(run)),
            "prediction_vs_target": prediction_vs_target(run),
            "closed_loop_error": closed_loop_error(run),
            "leaks": leaks(run),
            "adapter_spectra": adapter_spectra(run),
            "cosine_to_gradient": cosine_to_gradient(run, sizes(run)),
            "error_by_window": error_by_window(results, backpropagation),
            "curriculum": curriculum(read_curricula(options.run, COMMITTED.parents[1]), "truncated ES"),
        }
        save_figures(figures, options.out / "viz")
    return 0


if __name__ == "__main__":
    run_main(main)
