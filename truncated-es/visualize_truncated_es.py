"""Draw a saved run of truncated_es: three figures in viz/, or five (see 2. and 3.). Reads files only, never trains.

python visualize_truncated_es.py                               # the committed results, laptop preset, seed 0
python visualize_truncated_es.py --run runs/laptop-seed0 --out /some/folder

The figure of errors by window is not of one run: it is drawn from the committed results.
"""

import math
from collections.abc import Sequence
from pathlib import Path

import numpy as np
from matplotlib.axes import Axes
from matplotlib.figure import Figure
from matplotlib.lines import Line2D
from matplotlib.ticker import MaxNLocator, NullLocator

from common.errors import BadInput, run_main
from common.figures import (
    BLUE,
    GREEN,
    GREY,
    INK,
    ORANGE,
    PURPLE,
    SKY,
    VERMILION,
    SavedRun,
    curve_with_mean,
    describe,
    figure_arguments,
    headed_figure,
    header_legend,
    label_right,
    load_run,
    odd_window,
    robust_limits,
    running_mean,
    save_png,
    style,
)
from common.results import changed_settings, read_result, run_name
from common.run_figures import (
    SHAPES,
    adapter_spectra,
    measured_curve,
    measured_on_log_axis,
    prediction_vs_target,
    validation_panel,
)
from common.text import duration, in_words

HERE = Path(__file__).resolve().parent
RESULTS = HERE / "results"
BACKPROPAGATION = HERE.parent / "moving-mnist-bptt-baseline" / "results"  # not there: its lines are left out
COMMITTED = RESULTS / "laptop-seed0"
MACHINE = ("device_name", "threads", "world_size")  # what times compare on
SETTINGS = ("hidden_size", "rank", "sequence_length", "batch_size", "window", "members")


# ---------------------------------------------------------------------------------------------------------------------
# 1. Training curves


def training_curves(run: SavedRun) -> Figure:
    """Validation MSE between its reference lines, the losses on the minibatches, ‖V‖, agreement of ĝ's halves, learning rate."""
    evaluated, validation = run.column("validation_mse")
    last, test = run.history["iteration"][-1], float(run.results["test_mse"])
    title = (
        f"Validation MSE {validation[0]:.4f} → {validation[-1]:.4f} in {last:,.0f} ES iterations; test MSE {test:.4f}"
    )
    figure = headed_figure(10.5, 10.8, title, f"{describe(run.results)}\n{_effort(run)}", legend_rows=1)
    grid = figure.add_gridspec(4, 1, height_ratios=[0.42, 2.2, 1.25, 1.05])
    axes, handles, labels = validation_panel(figure, grid, run, validation)

    losses = figure.add_subplot(grid[2], sharex=axes)
    # The two often differ by less than a line's width: the lower one is drawn wider.
    curves = (
        ("train_loss", SKY, 3.6, "train loss (mean of the members)"),
        ("decoder_loss", BLUE, 1.5, "decoder loss (V without noise)"),
    )
    raw = []
    for key, colour, width, name in curves:
        x, y = run.column(key)
        window = odd_window(len(y), share=0.05)
        curve_with_mean(losses, x, y, colour, window).set_linewidth(width)
        handles.append(Line2D([], [], color=colour, lw=width, label=name))
        raw += [*y]
    losses.plot(evaluated, validation, color=VERMILION, lw=1.4, zorder=4)
    low, high = robust_limits([*robust_limits(raw, share=0.99), *validation], share=1.0, pad=0.03)
    losses.set(ylim=(low, high), xlabel="ES iteration", ylabel="MSE")
    outside = sum(not low <= value <= high for value in raw)
    pale = f"one iteration, {outside} beyond the axis" if outside else "one iteration"
    losses.set_title(f"On the training minibatches (pale: {pale}; bold: mean of {window} recorded ones)")
    _state_panels(figure, grid[3].subgridspec(1, 3), run)

    header_legend(figure, handles)
    for part, names in labels:
        label_right(part, names)
    return figure


def _effort(run: SavedRun) -> str:
    """Windows and members, what the run cost, and whether windows were left out."""
    config, (_, rollouts), (_, seconds) = run.config, run.column("rollouts"), run.column("wallclock_s")
    device = run.results.get("environment", {}).get("device_name")
    cost = [f"{in_words(rollouts[-1])} rollouts"] if len(rollouts) else []
    cost += [f"in {duration(seconds[-1])}"] if len(seconds) else []
    cost += [f"on {device}"] if device else []
    parts = [f"windows of L = {config['window']} steps", f"M = {config['members']} members in each", " ".join(cost)]
    left_out = run.column("left_out_fraction")[1].max(initial=0)
    parts += [f"at most {left_out:.2%} of an iteration’s windows did not count"] * bool(left_out)
    return " · ".join(filter(None, parts))


def _state_panels(figure: Figure, grid, run: SavedRun) -> None:
    """Small multiples: norm of V, cosine between ĝ's halves with its running mean, learning rate."""
    norm, halves, rate = (figure.add_subplot(grid[i]) for i in range(3))
    for axes, key, colour, title in (
        (norm, "v_norm", GREEN, "Norm of V (Frobenius)"),
        (rate, "learning_rate", INK, "Learning rate of V"),
    ):
        axes.plot(*run.column(key), color=colour, lw=1.6, clip_on=False)
        axes.set_title(title, fontsize=10)
        axes.set_ylim(0, None)
    iteration, cosine = run.column("half_cosine")
    halves.axhline(0, color=GREY, lw=0.8)
    if len(cosine):
        halves.plot(iteration, cosine, color=BLUE, ls="none", marker=".", ms=4, mew=0, alpha=0.4, clip_on=False)
        halves.plot(iteration, running_mean(cosine, odd_window(len(cosine), share=0.05)), color=BLUE, lw=1.8)
        halves.set_ylim(robust_limits([*cosine, 0], share=1.0))
    mean = f"mean {cosine.mean():.3f}".replace("-", "−") if len(cosine) else "not recorded"
    halves.set_title(f"Cosine between the halves of ĝ: {mean}", fontsize=10)
    for axes in (norm, halves, rate):
        axes.set(xlim=(0, run.history["iteration"][-1]), xlabel="ES iteration")
        axes.xaxis.set_major_locator(MaxNLocator(4, steps=[1, 2, 5, 10]))


# ---------------------------------------------------------------------------------------------------------------------
# 2. The estimate against the gradient through time


def cosine_to_gradient(run: SavedRun) -> Figure | None:
    """Cosines of ĝ to the gradient that ends with its window, seen and by the law, and to the one through all time; ρ, which the
    law needs. None where the run measured none."""
    if not len(run.column("cosine_truncated")[0]):
        return None
    nowhere = np.full_like(run.history["iteration"], np.nan)
    seen, law = (run.history.get(key, nowhere) for key in ("cosine_truncated", "cosine_truncated_law"))
    both = np.isfinite(seen) & np.isfinite(law)
    seen = seen[both] if both.any() else seen[np.isfinite(seen)]
    mean = f"{seen.mean():.4f}"
    if len(seen) > 1:
        mean += f" ± {seen.std(ddof=1) / math.sqrt(len(seen)):.4f}"
    by_law = f", {law[both].mean():.4f} by the law" if both.any() else ""
    count = f"mean ± standard error of {len(seen):,} measurements" if len(seen) > 1 else "one measurement"
    title = f"Cosine of ĝ to the truncated gradient: {mean.replace('-', '−')} seen{by_law}"
    config = run.config
    sizes = f"windows of L = {config['window']} steps · M = {config['members']} members in each"
    figure = headed_figure(10.5, 6.8, title, f"{count}\n{describe(run.results)} · {sizes}", legend_rows=1)
    top, bottom = figure.subplots(2, 1, sharex=True, height_ratios=[1.9, 1])

    top.axhline(0, color=GREY, lw=0.8)
    curves = (
        ("cosine_truncated", VERMILION, "to the truncated gradient"),
        ("cosine_truncated_law", VERMILION, "law"),
        ("cosine_gradient", BLUE, "to the gradient through all time"),
    )
    handles = [measured_curve(top, run, key, colour, name, dashed=name == "law") for key, colour, name in curves]
    top.set_title("Cosine of ĝ to gradients of the mean loss")
    drawn = np.concatenate([[0.0], *(run.column(key)[1] for key, _, _ in curves)])
    top.set(ylabel="cosine", ylim=robust_limits(drawn, share=1.0))
    title = "Noise of one sequence’s truncated gradient: ρ = E|gᵢ|² / |E gᵢ|²"
    measured_on_log_axis(bottom, run, "batch_noise", ORANGE, title, "ρ")
    bottom.set(xlabel="ES iteration", xlim=(0, run.history["iteration"][-1]))
    header_legend(figure, handles)
    return figure


# ---------------------------------------------------------------------------------------------------------------------
# 3. Errors and cost by window


def read_results(folder: Path, pattern: str = "*") -> list[dict]:
    """The committed results in a folder, by name; none where it is not there. BadInput where one breaks the schema."""
    return [read_result(path) for path in sorted(folder.glob(f"{pattern}.json"))]


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
    machines = {tuple(r["environment"][key] for key in MACHINE) for group in groups.values() for r in group}
    where = "different machines" if len(machines) > 1 else one["environment"]["device_name"]
    sizes = {key: value for key, value in one.items() if key not in ("preset", "seed")}
    about = f"{describe(sizes)} · M = {one['config']['members']} · {one['iterations']:,} iterations · on {where}"
    figure = headed_figure(11.5, 5.6, title, f"{about}\nseeds: {seeds}", legend_rows=1)
    left, right = figure.subplots(1, 2, width_ratios=[1.7, 1])

    lines = [("frozen core", GREEN, [one.get("ridge_test_mse_at_start")])]
    for (name, others), colour in zip(backpropagation.items(), (PURPLE, ORANGE)):
        lines.append((name, colour, [other["ridge_test_mse"] for other in others if _comparable(other, one)]))
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


def _comparable(other: dict, one: dict) -> bool:
    """Whether two results are of the same problem, trained on equally many sequences."""
    count = [result["config"].get("train_sequences") for result in (other, one)]
    return other["problem_id"] == one["problem_id"] and count[0] == count[1]


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
            "training_curves": training_curves(run),
            "prediction_vs_target": prediction_vs_target(run),
            "adapter_spectra": adapter_spectra(run),
            "cosine_to_gradient": cosine_to_gradient(run),
            "error_by_window": error_by_window(results, backpropagation),
        }
        for name, figure in figures.items():
            if figure is not None:
                print(save_png(figure, options.out / "viz" / f"{name}.png"))
    return 0


if __name__ == "__main__":
    run_main(main)
