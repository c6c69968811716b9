"""Draw a saved run of moving_mnist_es_reservoir: five figures in viz/, or six (see 6.). Reads files only, never trains.

python visualize_moving_mnist_es_reservoir.py                  # the committed results, laptop preset, seed 0
python visualize_moving_mnist_es_reservoir.py --run runs/laptop-seed0 --out /some/folder

Errors in closed loop are one figure more, drawn where the run has them (--horizon).
"""

import math
from pathlib import Path

import numpy as np
from matplotlib.axes import Axes
from matplotlib.figure import Figure
from matplotlib.lines import Line2D
from matplotlib.patches import Circle, Patch
from matplotlib.ticker import MaxNLocator, PercentFormatter

from common.curriculum_figures import curriculum, read_curricula
from common.errors import run_main
from common.figures import (
    BLUE,
    DIVERGING,
    GREEN,
    GREY,
    INK,
    ORANGE,
    PALE,
    SKY,
    VERMILION,
    SavedRun,
    broken_axes,
    curve_with_mean,
    describe,
    draw_references,
    figure_arguments,
    headed_figure,
    header_legend,
    label_right,
    load_run,
    near_and_far,
    odd_window,
    references,
    robust_limits,
    running_mean,
    save_figures,
    seriation,
    style,
)
from common.laws import half_population_cosine, perturbed_dimensions
from common.run_figures import (
    closed_loop_error,
    effective_rank,
    error_by_frame,
    film_strip,
    leaks,
    measured_curve,
    measured_on_log_axis,
)
from common.text import duration, in_words

HERE = Path(__file__).resolve().parent
COMMITTED = HERE / "results" / "laptop-seed0"

# S showcase sequences, T target frames, E embedding dimensions, N units, r rank, k predictors, M units shown, b bins.
SHAPES = {
    "target_STE": "STE",
    "prediction_STE": "STE",
    "mse_by_frame_T": "T",
    "trivial_names": "k",
    "trivial_mse_by_frame_kT": "kT",
    "eigenvalues_frozen": "N",
    "eigenvalues_trained": "N",
    "singular_values_start": "r",
    "singular_values_final": "r",
    "hidden_TM": "TM",
    "hidden_rms_T": "T",
    "hidden_histogram": "b",
    "hidden_edges": "b+",
    "frames_SFYX": "ST+YX",
    "leak_A": "?A",
}


# ---------------------------------------------------------------------------------------------------------------------
# 1. Training curves


def training_curves(run: SavedRun) -> Figure:
    """Validation MSE against the reference lines, the losses on the minibatches, and the run's state beneath."""
    evaluated, validation = run.column("validation_mse")
    test = float(run.results["test_mse"])
    last = run.history["iteration"][-1]
    title = (
        f"Validation MSE {validation[0]:.4f} → {validation[-1]:.4f} in {last:,.0f} ES iterations; test MSE {test:.4f}"
    )
    figure = headed_figure(10.5, 11.4, title, f"{describe(run.results)}\n{_effort(run)}", legend_rows=1)
    grid = figure.add_gridspec(4, 1, height_ratios=[0.42, 1.85, 1.35, 1.9])

    near, far = near_and_far(references(run.results), min(validation), max(validation))
    axes, strip = broken_axes(figure, grid, 0, [line.value for line in far])
    draw_references(axes, near)
    marker = "o" if len(evaluated) <= 40 else ""
    axes.plot(evaluated, validation, color=VERMILION, marker=marker, ms=4.5, lw=2, zorder=4)
    inside = [*validation, *(line.value for line in near)]
    axes.set(xlim=(0, last), ylim=robust_limits(inside, share=1.0), ylabel="MSE (standardised embedding)")
    axes.tick_params(labelbottom=False)
    if strip:
        draw_references(strip, far)
    _rollouts_on_top(strip or axes, run)

    losses = figure.add_subplot(grid[2], sharex=axes)
    # The two often differ by less than a line's width: the lower one is drawn wider.
    for key, colour, width in (("train_loss", SKY, 3.6), ("decoder_loss", BLUE, 1.5)):
        x, y = run.column(key)
        curve_with_mean(losses, x, y, colour, odd_window(len(y))).set_linewidth(width)
    losses.plot(evaluated, validation, color=VERMILION, lw=1.4, zorder=4)
    raw = np.concatenate([run.column("train_loss")[1], run.column("decoder_loss")[1]])
    low, high = robust_limits(raw, share=0.99)
    losses.set_ylim(robust_limits([low, high, *validation], share=1.0, pad=0.03))
    losses.set(
        title=f"On the training minibatches (pale: one iteration, bold: mean of {odd_window(len(y))})",
        xlabel="ES iteration",
        ylabel="MSE",
    )
    _state_panels(figure, grid[3].subgridspec(2, 3), run)

    header_legend(
        figure,
        [
            Line2D([], [], color=VERMILION, marker=marker, ms=4, label="validation MSE"),
            Line2D([], [], color=GREY, dashes=(5, 2), lw=1.3, label="validation MSE of …"),
            Line2D([], [], color=SKY, lw=3.6, label="train loss (mean of the population)"),
            Line2D([], [], color=BLUE, label="decoder loss (unperturbed θ)"),
        ],
    )
    ends = [(x.value, f"{x.name} {x.value:.4f}", x.colour) for x in near]
    label_right(axes, [*ends, (validation[-1], f"this run {validation[-1]:.4f}", VERMILION)])
    if strip:
        label_right(strip, [(x.value, f"{x.name} {x.value:.4f}", x.colour) for x in far])
    return figure


def _effort(run: SavedRun) -> str:
    """What the run cost, as far as it is recorded: rollouts, wallclock, hardware."""
    _, rollouts = run.column("rollouts")
    _, seconds = run.column("wallclock_s")
    device = run.results.get("environment", {}).get("device_name")
    parts = [f"{in_words(rollouts[-1])} rollouts"] if len(rollouts) else []
    parts += [f"in {duration(seconds[-1])}"] if len(seconds) else []
    parts += [f"on {device}"] if device else []
    return " ".join(parts)


def _rollouts_on_top(axes: Axes, run: SavedRun) -> None:
    """A second x axis with the cumulative number of rollouts, which need not grow in proportion to iterations."""
    iteration, rollouts = run.column("rollouts")
    if len(iteration) < 2 or rollouts[-1] <= rollouts[0]:
        return
    unit, name = next(
        (unit, name)
        for unit, name in ((1e9, "billions"), (1e6, "millions"), (1e3, "thousands"), (0, ""))
        if rollouts[-1] >= 2 * unit
    )
    unit = unit or 1
    ticks = [
        tick
        for tick in MaxNLocator(6, steps=[1, 2, 2.5, 5, 10]).tick_values(0, rollouts[-1] / unit)
        if 0 <= tick <= rollouts[-1] / unit
    ]
    known = np.concatenate([[0.0], rollouts[iteration > 0] / unit]), np.concatenate([[0.0], iteration[iteration > 0]])
    second = axes.secondary_xaxis("top")
    second.set_xticks(np.interp(ticks, *known), [f"{tick:g}" for tick in ticks])
    second.set_xlabel(f"rollouts ({name})" if name else "rollouts")
    second.spines["top"].set_visible(False)


def _state_panels(figure: Figure, grid, run: SavedRun) -> None:
    """Small multiples: failed members, σ, learning rate, and the norms of U, V and h."""
    panels = (
        ("exploded_fraction", "Exploded members", VERMILION, "share of members"),
        ("sigma", "Noise scale σ", INK, "σ"),
        ("learning_rate", "Learning rate", INK, "step size"),
        ("u_norm", "Norm of U", GREEN, "‖U‖ (Frobenius)"),
        ("v_norm", "Norm of V", GREEN, "‖V‖ (Frobenius)"),
        ("h_rms", "Hidden state", ORANGE, "RMS(h)"),
    )
    first = None
    for i, (key, title, colour, label) in enumerate(panels):
        axes = figure.add_subplot(grid[i // 3, i % 3], sharex=first)
        first = first or axes
        x, y = run.column(key)
        axes.set_title(title, fontsize=10)
        axes.set_ylabel(label, fontsize=9)
        axes.yaxis.set_major_locator(MaxNLocator(4, steps=[1, 2, 2.5, 5, 10]))
        if len(x):
            axes.plot(x, y, color=colour, lw=1.4, clip_on=False)
        else:
            axes.text(0.5, 0.5, "not recorded", transform=axes.transAxes, ha="center", va="center", color=GREY)
        if key == "exploded_fraction":
            axes.yaxis.set_major_formatter(PercentFormatter(1.0, decimals=None))
            axes.set_ylim(0, max(0.01, 1.1 * y.max(initial=0.0)))
            if len(y) and not y.any():
                axes.text(0.5, 0.5, "none", transform=axes.transAxes, ha="center", va="center", color=GREY)
        elif key == "u_norm" or (len(y) and y.max() > 2 * y.min()):
            axes.set_ylim(0, None)
        elif len(y):
            # A constant would otherwise fill the panel with rounding errors.
            width, size = y.max() - y.min(), np.abs(y).max()
            middle, half = (y.max() + y.min()) / 2, 0.55 * width if width > 1e-4 * size else 0.5 * size or 1.0
            axes.set_ylim(middle - half, middle + half)
        axes.set_xlim(0, run.history["iteration"][-1])
        if i // 3 == 1:
            axes.set_xlabel("ES iteration", fontsize=9)
        else:
            axes.tick_params(labelbottom=False)


# ---------------------------------------------------------------------------------------------------------------------
# 2. Prediction against target


def prediction_vs_target(run: SavedRun) -> Figure:
    """Showcase sequences: frames, true and predicted embeddings and their difference; error by frame."""
    frames, target, prediction = (run.arrays[name] for name in ("frames_SFYX", "target_STE", "prediction_STE"))
    sequences, steps, dimensions = target.shape
    squared = (prediction - target) ** 2
    test = float(run.results["test_mse"])
    figure = headed_figure(
        11.5,
        14,
        f"One step ahead, {sequences} test sequences: MSE {', '.join(f'{x:.3f}' for x in squared.mean((1, 2)))}"
        f" (whole test set {test:.3f})",
        describe(run.results),
    )
    order = seriation(target.reshape(-1, dimensions))
    limit = float(np.quantile(np.abs(target), 0.99)) or 1.0
    # Sequences share one grid, so that their columns line up; the row of 0.12 is a gap.
    upper, lower = figure.add_gridspec(2, 1, height_ratios=[7.9, 2.3])
    grid = upper.subgridspec(8, sequences, height_ratios=[0.62, 1.6, 1.6, 1.6, 0.12, 0.75, 0.75, 0.75])
    rows = (("true", target), ("predicted", prediction), ("predicted − true", prediction - target))
    shown, image = [], None
    for s in range(sequences):
        film_strip(figure.add_subplot(grid[0, s]), frames[s], f"Sequence {s + 1}")
        for row, (name, values) in enumerate(rows, start=1):
            axes = figure.add_subplot(grid[row, s])
            extent = (1.5, steps + 1.5, dimensions + 0.5, 0.5)
            image = axes.imshow(
                values[s][:, order].T, aspect="auto", cmap=DIVERGING, vmin=-limit, vmax=limit, extent=extent
            )
            axes.grid(False)
            axes.xaxis.set_major_locator(MaxNLocator(6, integer=True))
            axes.tick_params(labelbottom=row == 3, labelleft=s == 0)
            if s == 0:
                axes.set_ylabel(f"{name}\ndimension (sorted)")
            if row == 3:
                axes.set_xlabel("target frame")
            shown.append(axes)
    bar = figure.colorbar(image, ax=shown, shrink=0.6, aspect=32, pad=0.012, extend="both")
    bar.set_label("standardised embedding (standard deviations)")
    bar.outline.set_visible(False)
    _single_dimensions(figure, grid, 5, target, prediction)
    error_by_frame(figure, lower.subgridspec(2, 1, height_ratios=[0.5, 1.9]), run)
    return figure


def _single_dimensions(figure: Figure, grid, row: int, target_STE: np.ndarray, prediction_STE: np.ndarray) -> None:
    """The dimension predicted best, the median one and the worst, each in a row of `grid` from `row`."""
    sequences, steps, dimensions = target_STE.shape
    error_E = ((prediction_STE - target_STE) ** 2).mean((0, 1))
    ranked = np.argsort(error_E, kind="stable")
    frame = np.arange(2, steps + 2)
    chosen = (("Best", ranked[0]), ("Median", ranked[dimensions // 2]), ("Worst", ranked[-1]))
    for i, (name, e) in enumerate(chosen):
        first = None
        for s in range(sequences):
            axes = figure.add_subplot(grid[row + i, s], sharey=first)
            first = first or axes
            axes.plot(frame, target_STE[s, :, e], color=INK, lw=1.3, marker="o", ms=2.6, label="true")
            axes.plot(frame, prediction_STE[s, :, e], color=VERMILION, lw=1.9, label="predicted")
            axes.set_xlim(1.5, steps + 1.5)
            axes.xaxis.set_major_locator(MaxNLocator(6, integer=True))
            axes.tick_params(labelleft=s == 0, labelbottom=i == 2)
            if s == 0:
                axes.set_title(f"{name} dimension (no. {e + 1}): MSE {error_E[e]:.2f}", fontsize=10)
                axes.set_ylabel("sd", fontsize=9)
            if i == 2:
                axes.set_xlabel("target frame")
            if i == 0 and s == sequences - 1:
                axes.legend(loc="lower right", bbox_to_anchor=(1.0, 0.98), ncols=2, borderaxespad=0, columnspacing=1.4)


# ---------------------------------------------------------------------------------------------------------------------
# 3. What the adapter does to the spectrum


def adapter_spectra(run: SavedRun) -> Figure:
    """Eigenvalues of W0 and W0 + UVᵀ, the largest moduli, and the singular values of UVᵀ."""
    frozen, trained = run.arrays["eigenvalues_frozen"], run.arrays["eigenvalues_trained"]
    start, final = (np.sort(run.arrays[f"singular_values_{when}"])[::-1].astype(float) for when in ("start", "final"))
    before, after = np.abs(frozen).max(), np.abs(trained).max()
    title = (
        f"Spectral radius {before:.3f} without the adapter, {after:.3f} with it; "
        f"UVᵀ has effective rank {effective_rank(final):.1f} of {len(final)}"
    )
    figure = headed_figure(13.2, 5.25, title, describe(run.results))
    left, right = figure.add_gridspec(1, 2, width_ratios=[2, 0.9])
    planes = left.subgridspec(1, 2)
    reach = 1.07 * max(1.0, before, after)
    for column, (name, values, colour) in enumerate(
        (("W₀, frozen", frozen, BLUE), ("W₀ + UVᵀ, trained", trained, VERMILION))
    ):
        axes = figure.add_subplot(planes[column])
        if column:
            axes.scatter(frozen.real, frozen.imag, s=5, color=PALE, lw=0)
        axes.scatter(values.real, values.imag, s=6, color=colour, alpha=0.55, lw=0)
        axes.add_patch(Circle((0, 0), 1, fill=False, ec=INK, lw=1, ls=(0, (4, 3))))
        axes.set_title(f"{name}: |λ| ≤ {np.abs(values).max():.3f}" + ("  (grey: W₀)" if column else ""))
        axes.set(
            xlim=(-reach, reach), ylim=(-reach, reach), aspect="equal", xlabel="Re λ", ylabel="" if column else "Im λ"
        )
        for axis in (axes.xaxis, axes.yaxis):
            axis.set_major_locator(MaxNLocator(6, steps=[1, 2, 5, 10]))
        axes.tick_params(labelleft=not column)
    side = right.subgridspec(2, 1)
    _largest_moduli(figure.add_subplot(side[0]), frozen, trained)
    _singular_values(figure.add_subplot(side[1]), start, final)
    return figure


def _largest_moduli(axes: Axes, frozen: np.ndarray, trained: np.ndarray, count: int = 60) -> None:
    labels = []
    for values, colour, name in ((frozen, BLUE, "frozen"), (trained, VERMILION, "trained")):
        modulus = np.sort(np.abs(values))[::-1][:count]
        axes.plot(np.arange(1, len(modulus) + 1), modulus, color=colour, marker=".", ms=4, lw=1.2)
        labels.append((float(modulus[-1]), name, colour))
    axes.axhline(1, color=INK, lw=1, dashes=(4, 3), zorder=1)
    axes.set_title(f"The {len(modulus)} largest eigenvalues")
    axes.set(xlabel="eigenvalue, by modulus", ylabel="|λ|", xlim=(0, len(modulus) + 1))
    label_right(axes, [*labels, (1.0, "unit circle", INK)])


def _singular_values(axes: Axes, start: np.ndarray, final: np.ndarray) -> None:
    """Both spectra, from 0 or, where they span more than a decade, on a log axis; a spectrum of zeros (the start with
    U = 0) is said in words."""
    index = np.arange(1, len(final) + 1)
    tiny = 1e-7 * max(final.max(), start.max(), 1e-30)
    labels = []
    for values, colour, name in ((start, BLUE, "start"), (final, VERMILION, "trained")):
        if (values > tiny).any():
            drawn = np.where(values > tiny, values, np.nan)
            axes.plot(index, drawn, color=colour, marker=".", ms=5, lw=1.2)
            labels.append((float(drawn[np.isfinite(drawn)][-1]), name, colour))
    zero = [name for values, name in ((start, "at the start"), (final, "after training")) if not (values > tiny).any()]
    axes.set_title(f"Singular values of UVᵀ ({' and '.join(zero)} all 0)" if zero else "Singular values of UVᵀ")
    axes.set(xlabel="singular value, by size", ylabel="singular value", xlim=(0, len(final) + 1))
    axes.xaxis.set_major_locator(MaxNLocator(6, integer=True))
    drawn = np.concatenate([start[start > tiny], final[final > tiny]])
    if len(drawn) and drawn.max() > 10 * drawn.min():
        axes.set_yscale("log")
    else:
        axes.set_ylim(0, 1.08 * drawn.max(initial=0.0) or 1.0)
    label_right(axes, labels)


# ---------------------------------------------------------------------------------------------------------------------
# 4. Hidden activity


def hidden_activity(run: SavedRun) -> Figure:
    """Activity of some units over one sequence, the distribution of all activities and their RMS by step."""
    hidden, rms = run.arrays["hidden_TM"], run.arrays["hidden_rms_T"]
    counts, edges = run.arrays["hidden_histogram"].astype(float), run.arrays["hidden_edges"].astype(float)
    steps, units = hidden.shape
    share = counts / max(counts.sum(), 1.0)
    centres = (edges[1:] + edges[:-1]) / 2
    saturated = share[np.abs(centres) > 0.9].sum()
    title = (
        f"Hidden activity: RMS(h) {rms[0]:.2f} after one frame, {rms[-1]:.2f} after {steps}; "
        f"{saturated:.1%} of activities beyond ±0.9"
    )
    figure = headed_figure(12, 5.6, title, describe(run.results))
    left, right = figure.add_gridspec(1, 2, width_ratios=[1.5, 1])
    axes = figure.add_subplot(left)
    limit = float(np.quantile(np.abs(hidden), 0.995)) or 1.0
    ordered = hidden[:, seriation(hidden)].T
    image = axes.imshow(
        ordered, aspect="auto", cmap=DIVERGING, vmin=-limit, vmax=limit, extent=(0.5, steps + 0.5, units + 0.5, 0.5)
    )
    axes.grid(False)
    axes.set_title(f"{units} units on test sequence 1, sorted by likeness")
    axes.set(xlabel="time step t (h has read frame t)", ylabel="unit (sorted)")
    axes.xaxis.set_major_locator(MaxNLocator(10, integer=True))
    bar = figure.colorbar(image, ax=axes, pad=0.015, aspect=32, extend="both")
    bar.set_label("activity h")
    bar.outline.set_visible(False)
    side = right.subgridspec(2, 1)
    axes = figure.add_subplot(side[0])
    density = share / np.diff(edges)
    axes.stairs(density, edges, fill=True, color=SKY, alpha=0.85)
    axes.stairs(density, edges, color=BLUE, lw=1)
    axes.set_title("All activities on test sequences")
    axes.set(xlabel="activity h", ylabel="density", xlim=(edges[0], edges[-1]), ylim=(0, None))
    axes.xaxis.set_major_locator(MaxNLocator(5, steps=[1, 5, 10]))
    axes = figure.add_subplot(side[1])
    axes.plot(np.arange(1, steps + 1), rms, color=ORANGE, marker="o", ms=4, lw=2)
    axes.set_title("RMS over units and test sequences")
    axes.set(xlabel="time step t", ylabel="RMS(h)", xlim=(0.5, steps + 0.5), ylim=(0, 1.12 * float(rms.max()) or 1.0))
    axes.xaxis.set_major_locator(MaxNLocator(10, integer=True))
    return figure


# ---------------------------------------------------------------------------------------------------------------------
# 5. Gradient quality


def gradient_quality(run: SavedRun) -> Figure:
    """|ĝ|, the half-population cosine with its law and noise band, and |Δθ|/|θ| against iteration."""
    config = run.config
    parameters, seen = perturbed_dimensions(config)
    pairs = config["population_pairs"]
    expected = half_population_cosine(pairs, seen)
    bound = config.get("own_data", False)  # the noise of the batch then comes on top
    iteration, cosine = run.column("half_cosine")
    window = odd_window(len(cosine), 0.2)
    # Of projected noise it is not known in how many dimensions the halves could differ: those of all states that are visited.
    projected = seen < parameters and len(cosine) > 1
    noise = float(cosine.std(ddof=1)) if projected else 1 / math.sqrt(parameters)
    count = max(len(cosine), 1)
    mean = f"{cosine.mean():.4f} ± {noise / math.sqrt(count):.4f}".replace("-", "−") if len(cosine) else "not recorded"
    title = (
        f"Cosine between the gradients of half-populations: {mean}, {'at most' if bound else 'expected'} {expected:.4f}"
    )
    known = f", of which a pair's losses know {seen:,}" if seen < parameters else ""
    figure = headed_figure(
        10.5, 8.6, title, f"{parameters:,} dimensions of noise{known} · {describe(run.results)}", legend_rows=2
    )
    top, middle, bottom = figure.subplots(3, 1, sharex=True, height_ratios=[1, 1.9, 1])

    # Shaping replaces losses by ranks or z-scores: |ĝ| is then no size of the loss's gradient.
    label = "|ĝ|" if config.get("fitness_shaping", "raw") == "raw" else "|ĝ| of shaped losses"
    _size_panel(top, *run.column("gradient_norm"), BLUE, "Size of the gradient estimate", label)
    middle.axhspan(-noise, noise, color=PALE, alpha=0.55, lw=0)
    middle.axhline(0, color=GREY, lw=0.8)
    spread = noise / math.sqrt(window)
    if not bound:
        middle.axhspan(expected - spread, expected + spread, color=GREEN, alpha=0.18, lw=0)
    middle.axhline(expected, color=GREEN, lw=1.6, dashes=(5, 2))
    middle.plot(iteration, cosine, color=VERMILION, ls="none", marker=".", ms=6, alpha=0.55, mew=0, clip_on=False)
    middle.plot(iteration, running_mean(cosine, window), color=VERMILION, lw=2)
    middle.set_title("Agreement of the two halves of the population", fontsize=11)
    middle.set_ylabel("cosine")
    marks = [-1.6 * noise, 1.6 * noise] + ([] if bound else [expected * 1.08])  # a bound may lie far above
    low, high = robust_limits(np.append(cosine, marks), share=1.0)
    middle.set_ylim(low, high)
    _size_panel(bottom, *run.column("update_ratio"), GREEN, "Size of the step relative to the parameters", "|Δθ| / |θ|")
    bottom.set(xlabel="ES iteration", xlim=(0, run.history["iteration"][-1]))
    law = "upper bound (own data adds batch noise)" if bound else "law"
    handles = [
        Line2D([], [], color=VERMILION, ls="none", marker=".", ms=8, alpha=0.7, label="one iteration"),
        Line2D([], [], color=VERMILION, lw=2, label=f"mean of {window} values"),
        Patch(
            color=PALE,
            alpha=0.55,
            label=f"spread of one iteration: ±{noise:.2g}"
            if projected
            else f"chance for one iteration: ±1/√D = ±{noise:.2g}",
        ),
        Line2D([], [], color=GREEN, dashes=(5, 2), label=f"{law}: (K/2) / (K/2 + D) = {expected:.3g}"),
    ]
    if not bound:
        handles.append(Patch(color=GREEN, alpha=0.18, label=f"law ± 1/√({window} D)"))
    header_legend(figure, handles, columns=3)
    return figure


def _size_panel(axes: Axes, x: np.ndarray, y: np.ndarray, colour: str, title: str, label: str) -> None:
    """A quantity ≥ 0, raw and smoothed: from 0, or on a log axis without its zeros where it spans a factor 30."""
    axes.set_title(title)
    axes.set_ylabel(label)
    if not len(y):
        axes.text(0.5, 0.5, "not recorded", transform=axes.transAxes, ha="center", va="center", color=GREY)
        return
    positive = y > 0
    logarithmic = positive.any() and y.max() > 30 * y[positive].min()
    if logarithmic:
        x, y = x[positive], y[positive]
        axes.set_yscale("log")
    curve_with_mean(axes, x, y, colour, odd_window(len(y)))
    axes.set_ylim(*((y.min() / 1.3, y.max() * 1.3) if logarithmic else (0, 1.08 * y.max() or 1.0)))


# ---------------------------------------------------------------------------------------------------------------------
# 6. The estimate against the gradient through time


def cosine_to_gradient(run: SavedRun) -> Figure | None:
    """Cosines of ĝ to what it estimates, seen and by the laws, over ρ₁ and κ, which the laws need; None where the run
    measured none."""
    if not len(run.column("cosine_expected")[0]):
        return None
    nowhere = np.full_like(run.history["iteration"], np.nan)
    expected, law, gradient = (
        run.history.get(key, nowhere) for key in ("cosine_expected", "cosine_expected_law", "cosine_gradient")
    )
    # Signs of single sequences' differences estimate the mean of unit gradients; all else the gradient of the mean loss.
    units = bool(np.isfinite(gradient).any()) and not np.array_equal(gradient, expected, equal_nan=True)
    both = np.isfinite(expected) & np.isfinite(law)
    seen = expected[both] if both.any() else expected[np.isfinite(expected)]
    mean = f"{seen.mean():.4f}"
    if len(seen) > 1:
        mean += f" ± {seen.std(ddof=1) / math.sqrt(len(seen)):.4f}"
    by_law = f", {law[both].mean():.4f} by the law" if both.any() else ""
    count = f"mean ± standard error of {len(seen):,} measurements" if len(seen) > 1 else "one measurement"
    figure = headed_figure(
        10.5,
        8.6,
        f"Cosine of ĝ to the mean {'unit ' * units}gradient: {mean.replace('-', '−')} seen{by_law}",
        f"{count} · {describe(run.results)}",
        legend_rows=2,
    )
    top, middle, bottom = figure.subplots(3, 1, sharex=True, height_ratios=[1.9, 1, 1])

    curves = [
        ("cosine_minibatch", BLUE, "on its own sequences"),
        ("cosine_expected", VERMILION, "in expectation"),
    ]
    handles, drawn = [], [0.0]
    top.axhline(0, color=GREY, lw=0.8)
    for key, colour, name in curves:
        handles.append(measured_curve(top, run, key, colour, name))
        handles.append(measured_curve(top, run, f"{key}_law", colour, "law", dashed=True))
        drawn += [*run.column(key)[1], *run.column(f"{key}_law")[1]]
    if units:
        handles.append(measured_curve(top, run, "cosine_gradient", GREEN, "to the gradient of the mean loss"))
        drawn += [*run.column("cosine_gradient")[1]]
    top.set_title(f"Cosine of ĝ to what it estimates: the mean over sequences of {'gᵢ/|gᵢ|' if units else 'gᵢ'}")
    top.set(ylabel="cosine", ylim=robust_limits(drawn, share=1.0))
    measured_on_log_axis(
        middle, run, "batch_noise", ORANGE, "Noise of one sequence's gradient: ρ₁ = E|gᵢ|² / |E gᵢ|²", "ρ₁"
    )
    measured_on_log_axis(bottom, run, "agreement", INK, "Agreement of the sequences' directions: κ = |E gᵢ/|gᵢ||²", "κ")
    bottom.set(xlabel="ES iteration", xlim=(0, run.history["iteration"][-1]))
    header_legend(figure, handles, columns=(len(handles) + 1) // 2)
    return figure


FIGURES = {
    "training_curves": training_curves,
    "prediction_vs_target": prediction_vs_target,
    "closed_loop_error": closed_loop_error,
    "leaks": leaks,
    "adapter_spectra": adapter_spectra,
    "hidden_activity": hidden_activity,
    "gradient_quality": gradient_quality,
    "cosine_to_gradient": cosine_to_gradient,
}


def main(argv: list[str] | None = None) -> int:
    options = figure_arguments(__doc__.splitlines()[0], HERE, "viz/", argv)
    run = load_run(options.run, COMMITTED, SHAPES, needs=("train_loss", "decoder_loss", "validation_mse"))
    with style():
        figures = {name: draw(run) for name, draw in FIGURES.items()}
        figures["curriculum"] = curriculum(
            read_curricula(options.run, COMMITTED.parents[1]), "evolution strategies in parameters"
        )
        save_figures(figures, options.out / "viz")
    return 0


if __name__ == "__main__":
    run_main(main)
