"""Figures of runs whose members run for a few steps, and what their comparisons with other experiments' results need.

`sizes` says of every run drawn what is perturbed and how much of it, for instance "windows of L = 4 steps · M = 16 members in each".
"""

import math
from collections.abc import Sequence
from pathlib import Path

import numpy as np
from matplotlib.figure import Figure
from matplotlib.lines import Line2D
from matplotlib.ticker import MaxNLocator

from common.figures import (
    BLUE,
    GREEN,
    GREY,
    INK,
    ORANGE,
    SKY,
    VERMILION,
    SavedRun,
    curve_with_mean,
    describe,
    headed_figure,
    header_legend,
    label_right,
    odd_window,
    robust_limits,
    running_mean,
)
from common.results import read_result
from common.run_figures import measured_curve, measured_on_log_axis, validation_panel
from common.text import duration, in_words

MACHINE = ("device_name", "threads", "world_size")  # what times compare on

# ---------------------------------------------------------------------------------------------------------------------
# 1. Training curves


def training_curves(run: SavedRun, sizes: str, members: str = "members") -> Figure:
    """Validation MSE between its reference lines, the losses on the minibatches, ‖V‖, agreement of ĝ's halves, learning rate.

    members: what an experiment calls those that run with noise.
    """
    evaluated, validation = run.column("validation_mse")
    last, test = run.history["iteration"][-1], float(run.results["test_mse"])
    title = (
        f"Validation MSE {validation[0]:.4f} → {validation[-1]:.4f} in {last:,.0f} ES iterations; test MSE {test:.4f}"
    )
    figure = headed_figure(10.5, 10.8, title, f"{describe(run.results)}\n{_effort(run, sizes)}", legend_rows=1)
    grid = figure.add_gridspec(4, 1, height_ratios=[0.42, 2.2, 1.25, 1.05])
    axes, handles, labels = validation_panel(figure, grid, run, validation)

    losses = figure.add_subplot(grid[2], sharex=axes)
    # The two often differ by less than a line's width: the lower one is drawn wider.
    curves = (
        ("train_loss", SKY, 3.6, f"train loss (mean of the {members})"),
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


def _effort(run: SavedRun, sizes: str) -> str:
    """Its sizes, what the run cost, and whether windows were left out."""
    (_, rollouts), (_, seconds) = run.column("rollouts"), run.column("wallclock_s")
    device = run.results.get("environment", {}).get("device_name")
    cost = [f"{in_words(rollouts[-1])} rollouts"] if len(rollouts) else []
    cost += [f"in {duration(seconds[-1])}"] if len(seconds) else []
    cost += [f"on {device}"] if device else []
    parts = [sizes, " ".join(cost)]
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


def cosine_to_gradient(run: SavedRun, sizes: str) -> Figure | None:
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
# 3. Committed results beside one another


def read_results(folder: Path, pattern: str = "*") -> list[dict]:
    """The committed results in a folder, by name; none where it is not there. BadInput where one breaks the schema."""
    return [read_result(path) for path in sorted(folder.glob(f"{pattern}.json"))]


def comparable(other: dict, one: dict) -> bool:
    """Whether two results are of the same problem, trained on equally many sequences."""
    count = [result["config"].get("train_sequences") for result in (other, one)]
    return other["problem_id"] == one["problem_id"] and count[0] == count[1]


def machine_of(results: Sequence[dict]) -> str:
    """Where they were trained, for a figure of times: only those of one machine compare."""
    machines = {tuple(result["environment"][key] for key in MACHINE) for result in results}
    return "different machines" if len(machines) > 1 else results[0]["environment"]["device_name"]
