"""Figures that several experiments draw of a saved run, and the panels that their own figures are made of.

What all of them share below this, style, reading and labels, is in figures.py.
"""

from collections.abc import Mapping

import numpy as np
from matplotlib.axes import Axes
from matplotlib.figure import Figure
from matplotlib.gridspec import GridSpec
from matplotlib.lines import Line2D
from matplotlib.patches import Circle
from matplotlib.ticker import LogLocator, MaxNLocator, NullFormatter, StrMethodFormatter

from common.figures import (
    BLUE,
    GREY,
    INK,
    PALE,
    PREDICTORS,
    VERMILION,
    SavedRun,
    broken_axes,
    describe,
    downsample,
    draw_references,
    headed_figure,
    header_legend,
    label_right,
    near_and_far,
    predictor,
    references,
    robust_limits,
)

# S showcase sequences, T target frames, n checkpoints, N units, r rank, k predictors.
SHAPES = {
    "frames_SFYX": "ST+YX",
    "plane_target_ST2": "ST2",
    "plane_prediction_nST2": "nST2",
    "plane_explained_2": "2",
    "mse_by_frame_T": "T",
    "trivial_names": "k",
    "trivial_mse_by_frame_kT": "kT",
    "eigenvalues_frozen": "N",
    "eigenvalues_trained": "N",
    "singular_values_start": "r",
    "singular_values_final": "r",
    "leak_A": "?A",
}


# ---------------------------------------------------------------------------------------------------------------------
# Panels of training curves


def validation_panel(
    figure: Figure, grid: GridSpec, run: SavedRun, settled: np.ndarray
) -> tuple[Axes, list[Line2D], list[tuple[Axes, list]]]:
    """Validation MSE between its reference lines, in rows 0 and 1 of `grid`; what lies far above is in the upper one.

    settled: the scores that the lower row must hold. Returns its axes, entries for a legend, and [(axes, labels)] for
    `label_right` once the whole figure is there.
    """
    evaluated, validation = run.column("validation_mse")
    near, far = near_and_far(references(run.results), min(settled), max(settled))
    axes, strip = broken_axes(figure, grid, 0, [line.value for line in far])
    marker = "o" if len(evaluated) <= 40 else ""
    for part, lines in ((axes, near), (strip, far)):
        if part:
            draw_references(part, lines)
        if part is axes or part and max(validation) > max(settled):
            part.plot(evaluated, validation, color=VERMILION, marker=marker, ms=4.5, lw=2, zorder=4)
    inside, last = [*settled, *(line.value for line in near)], run.history["iteration"][-1]
    axes.set(xlim=(0, last), ylim=robust_limits(inside, share=1.0), ylabel="MSE (standardised embedding)")
    axes.tick_params(labelbottom=False)
    handles = [
        Line2D([], [], color=VERMILION, marker=marker, ms=4, label="validation MSE"),
        Line2D([], [], color=GREY, dashes=(5, 2), lw=1.3, label="validation MSE of …"),
    ]
    names = [[(line.value, f"{line.name} {line.value:.4f}", line.colour) for line in lines] for lines in (near, far)]
    names[0].append((validation[-1], f"this run {validation[-1]:.4f}", VERMILION))
    return axes, handles, [(part, labels) for part, labels in zip((axes, strip), names) if part]


def measured_curve(axes: Axes, run: SavedRun, key: str, colour: str, name: str, dashed: bool = False) -> Line2D:
    """Draw what a run measured now and then, with a mark for each value, or a law of it, dashed; its legend entry, with its mean."""
    x, y = run.column(key)
    mark = {"marker": "_" if dashed and len(x) == 1 else "" if dashed or len(x) > 150 else "."}  # one value has no line
    look = {"color": colour, "ms": 7} | mark
    if dashed:
        look |= {"lw": 1.6, "dashes": (5, 2), "mew": 1.6, "zorder": 4}
    else:
        look |= {"lw": 1.0, "mew": 0, "alpha": 0.45 if len(x) > 150 else 1.0}  # the law must be seen through them
    axes.plot(*downsample(x, y), **look, clip_on=False)
    value = f"mean {y.mean():.3g}".replace("-", "−") if len(y) else "not known"
    return Line2D([], [], **look, label=f"{name}: {value}")


def measured_on_log_axis(axes: Axes, run: SavedRun, key: str, colour: str, title: str, label: str) -> None:
    """The same on a log axis; the title says how many values are not positive, which estimates of such a quantity can be."""
    x, y = run.column(key)
    positive = y > 0
    beyond = f"  ({np.count_nonzero(~positive):,} of {len(y):,} values ≤ 0)" if not positive.all() else ""
    axes.set_title(title + beyond)
    axes.set_ylabel(label)
    if not positive.any():
        axes.text(0.5, 0.5, "not known", transform=axes.transAxes, ha="center", va="center", color=GREY)
        return
    x, y = x[positive], y[positive]
    axes.plot(*downsample(x, y), color=colour, lw=1.0, marker="." if len(x) <= 150 else "", ms=7, mew=0, clip_on=False)
    # A factor of 2.5 is as far as neighbours of 1, 2 and 5 are apart: there is always a tick.
    low, high = y.min() / 1.6, y.max() * 1.6
    axes.set(yscale="log", ylim=(low, high))
    axes.yaxis.set_major_locator(LogLocator(subs=(1, 2, 5) if high < 60 * low else (1,)))
    axes.yaxis.set_major_formatter(StrMethodFormatter("{x:g}"))
    axes.yaxis.set_minor_formatter(NullFormatter())


# ---------------------------------------------------------------------------------------------------------------------
# Prediction against target


def prediction_vs_target(run: SavedRun) -> Figure:
    """Showcase sequences along the two principal axes of the targets, at the first and the last score; error by frame."""
    frames, target = run.arrays["frames_SFYX"], run.arrays["plane_target_ST2"]
    first, final = run.arrays["plane_prediction_nST2"][[0, -1]]
    sequences, steps, _ = target.shape
    ours, share = run.arrays["mse_by_frame_T"], run.arrays["plane_explained_2"]
    title = f"One step ahead: test MSE {ours[0]:.3f} after one frame, {ours[-1]:.3f} after {steps}"
    figure = headed_figure(11.5, 8.6, title, describe(run.results), legend_rows=1)
    upper, lower = figure.add_gridspec(2, 1, height_ratios=[3.2, 1.75])
    grid = upper.subgridspec(3, sequences, height_ratios=[0.62, 1.25, 1.25])
    frame = np.arange(2, steps + 2)
    limits = [robust_limits(np.concatenate([target[..., axis], final[..., axis]]), share=1.0) for axis in (0, 1)]
    for s in range(sequences):
        film_strip(figure.add_subplot(grid[0, s]), frames[s], f"Test sequence {s + 1}")
        for axis in (0, 1):
            axes = figure.add_subplot(grid[1 + axis, s])
            axes.plot(frame, first[s, :, axis], color=PALE, lw=1.8)
            axes.plot(frame, target[s, :, axis], color=INK, lw=1.2, marker="o", ms=3)
            axes.plot(frame, final[s, :, axis], color=VERMILION, lw=2)
            axes.set(xlim=(1.5, steps + 1.5), ylim=limits[axis])
            axes.xaxis.set_major_locator(MaxNLocator(6, integer=True))
            axes.tick_params(labelleft=s == 0, labelbottom=axis == 1)
            if s == 0:
                axes.set_ylabel(f"principal axis {axis + 1}\n({share[axis]:.0%} of the variance)")
            if axis == 1:
                axes.set_xlabel("target frame")
    error_by_frame(figure, lower.subgridspec(2, 1, height_ratios=[0.45, 1.9]), run)
    header_legend(
        figure,
        [
            Line2D([], [], color=INK, lw=1.2, marker="o", ms=3, label="true embedding"),
            Line2D([], [], color=VERMILION, lw=2, label="predicted, after training"),
            Line2D([], [], color=PALE, lw=1.8, label="predicted, before"),
        ],
    )
    return figure


def film_strip(axes: Axes, frames_FYX: np.ndarray, title: str) -> None:
    """Six frames side by side, numbered."""
    count, height, width = frames_FYX.shape
    chosen = np.unique(np.linspace(1, count - 1, min(6, count - 1)).round().astype(int))
    strip = np.full((height, len(chosen) * (width + 4) - 4), np.nan)
    for i, f in enumerate(chosen):
        left = i * (width + 4)
        strip[:, left : left + width] = frames_FYX[f]
        look = {"textcoords": "offset points", "ha": "center", "fontsize": 8.5, "color": GREY}
        axes.annotate(f"frame {f + 1}" if i == 0 else f"{f + 1}", (left + width / 2, 0), (0, 3), **look)
    axes.imshow(strip, cmap="gray", vmin=0, vmax=255)
    axes.set_title(title, fontweight="bold", pad=14)
    axes.set_axis_off()


def error_by_frame(figure: Figure, grid, run: SavedRun) -> None:
    """Test MSE by target frame, trained model against trivial predictors, in the two rows of `grid`."""
    curves = dict(zip(run.arrays["trivial_names"], run.arrays["trivial_mse_by_frame_kT"]))
    title = "Error by target frame, whole test set"
    against_trivial(figure, grid, run.arrays["mse_by_frame_T"], curves, 2, "target frame", title)


def closed_loop_error(run: SavedRun) -> Figure | None:
    """Test MSE by horizon of predictions made from predictions, model against trivial predictors; None where a run has none."""
    if "closed_loop_test_mse" not in run.results:
        return None
    ours = np.array(run.results["closed_loop_test_mse"], dtype=float)
    trivial = run.results.get("trivial_closed_loop_test_mse", {})
    title = f"In closed loop: test MSE {ours[0]:.3f} one frame ahead"
    title += f", {ours[-1]:.3f} at {len(ours)} frames" if len(ours) > 1 else ""
    figure = headed_figure(9, 5.4, title, describe(run.results))
    curves = {name: np.array(trivial[name], dtype=float) for name in PREDICTORS if name in trivial}
    grid = figure.add_gridspec(2, 1, height_ratios=[0.45, 1.9])
    against_trivial(figure, grid, ours, curves, 1, "frames ahead of the last one that was read", "Whole test set")
    return figure


def against_trivial(
    figure: Figure, grid, ours: np.ndarray, trivial: Mapping[str, np.ndarray], first: int, xlabel: str, title: str
) -> None:
    """Errors of a model and of trivial predictors over `first`, first + 1, …, in the two rows of `grid`."""
    curves = [(predictor(name, mse.max()), mse) for name, mse in trivial.items()]
    near, far = near_and_far([line for line, _ in curves], float(ours.min()), float(ours.max()))
    beyond = [value for line, mse in curves if line in far for value in (mse.min(), mse.max())]
    axes, strip = broken_axes(figure, grid, 0, beyond)
    for line, mse in curves:
        where = np.arange(first, first + len(mse))
        (strip if line in far else axes).plot(where, mse, color=line.colour, lw=1.4, dashes=line.dashes)
    axes.plot(np.arange(first, first + len(ours)), ours, color=VERMILION, lw=2.2, marker="o", ms=4, zorder=4)
    inside = np.concatenate([ours, *(mse for line, mse in curves if line in near)])
    axes.set(xlim=(first - 0.2, first + len(ours) - 0.8), ylim=robust_limits(inside, share=1.0))
    axes.set(xlabel=xlabel, ylabel="MSE")
    axes.xaxis.set_major_locator(MaxNLocator(11, integer=True))
    (strip or axes).set_title(title)
    ends = [(float(mse[-1]), line.name, line.colour) for line, mse in curves if line in near]
    label_right(axes, [(float(ours[-1]), "this run", VERMILION), *ends])
    if strip:
        label_right(strip, [(float(mse[-1]), line.name, line.colour) for line, mse in curves if line in far])


# ---------------------------------------------------------------------------------------------------------------------
# What becomes of a leak that learns


def leaks(run: SavedRun) -> Figure | None:
    """α over the iterations, mean and range over units, and what the units have at the end; None where it did not learn."""
    iteration, mean = run.column("leak_mean")
    if "leak_A" not in run.arrays or not len(mean):
        return None
    final = run.arrays["leak_A"].astype(float)
    start = float(mean[0] if run.config.get("start_from") else run.config["leak"])
    each = len(final) > 1
    title = f"The leak of {len(final):,} units: {start:g} → {final.mean():.3f} ± {final.std():.3f}" if each else f"The leak: {start:g} → {final[0]:.3f}"  # fmt: skip
    figure = headed_figure(11.5 if each else 7.5, 4.8, title, describe(run.results))
    axes, *others = np.atleast_1d(figure.subplots(1, 1 + each, width_ratios=[1.2, 1][: 1 + each]))
    if each:
        (_, least), (_, most) = run.column("leak_least"), run.column("leak_most")
        axes.fill_between(iteration, least, most, color=BLUE, alpha=0.18, lw=0)
    axes.plot(iteration, mean, color=BLUE, lw=2)
    axes.axhline(start, color=GREY, lw=1, dashes=(4, 3))
    axes.set(xlabel="iteration", ylabel="α", xlim=(0, iteration[-1]))
    axes.set_title("Mean and range over units" if each else "Over training")
    for panel in others:
        panel.hist(final, bins=min(60, 10 + len(final) // 20), color=BLUE)
        panel.axvline(start, color=GREY, lw=1, dashes=(4, 3))
        panel.set(xlabel="α of a unit at the end", ylabel="units", title="Distribution (dashed: the start)")
    return figure


# ---------------------------------------------------------------------------------------------------------------------
# What the adapter does to the spectrum


def adapter_spectra(run: SavedRun) -> Figure:
    """Eigenvalues of W0 and of W0 + UVᵀ with the circle inside which a leaky step is stable, singular values of UVᵀ."""
    frozen, trained = run.arrays["eigenvalues_frozen"], run.arrays["eigenvalues_trained"]
    start, final = (np.sort(run.arrays[f"singular_values_{when}"])[::-1].astype(float) for when in ("start", "final"))
    before, after = np.abs(frozen).max(), np.abs(trained).max()
    outside = int((np.abs(trained) > before).sum())
    title = (
        f"Spectral radius {before:.2f} → {after:.2f}: {outside} of {len(trained):,} eigenvalues leave the disc of W₀"
    )
    figure = headed_figure(11.5, 6.1, title, describe(run.results))
    left, right = figure.subplots(1, 2, width_ratios=[1.25, 1])
    left.scatter(frozen.real, frozen.imag, s=7, color=BLUE, lw=0, alpha=0.35)
    left.scatter(trained.real, trained.imag, s=9, color=VERMILION, lw=0, alpha=0.75)
    # Without its tanh a leaky step is h ← (1 − α) h + α W h: it grows along λ where |1 − α + αλ| > 1, outside a circle.
    leak = float(run.config["leak"])
    radius, centre = 1 / leak, -(1 - leak) / leak
    left.add_patch(Circle((centre, 0), radius, fill=False, ec=INK, lw=1, ls=(0, (4, 3))))
    name = {"ha": "center", "va": "bottom", "fontsize": 8.5}
    text = "|1 − α + αλ| = 1" + " for the α of the start" * (
        run.config.get("trains") == "all" or run.config.get("train_leak", "no") != "no"
    )
    left.annotate(text, (centre, radius), (0, 3), textcoords="offset points", **name)
    points = np.concatenate([trained, [centre + radius, centre - radius, centre + 1.07j * radius]])
    width, height = (1.07 * max(abs(x.max()), abs(x.min()), before) for x in (points.real - centre, points.imag))
    left.set(
        xlim=(centre - width, centre + width), ylim=(-height, height), aspect="equal", xlabel="Re λ", ylabel="Im λ"
    )
    left.set_title("Eigenvalues of W₀ + UVᵀ (blue: of W₀)")
    index = np.arange(1, len(final) + 1)
    labels = []
    for values, colour, name in ((start, BLUE, "start"), (final, VERMILION, "trained")):
        right.plot(index, values, color=colour, marker=".", ms=6, lw=1.3)
        labels.append((float(values[-1]), name, colour))
    right.axhline(before, color=GREY, lw=1, dashes=(4, 3), zorder=1)
    labels.append((float(before), "radius of W₀", GREY))
    right.set(xlim=(0, len(final) + 1), ylim=(0, 1.06 * max(final.max(), start.max(), before)))
    right.set(xlabel="singular value, by size", ylabel="singular value")
    right.xaxis.set_major_locator(MaxNLocator(6, integer=True))
    right.set_title(f"Singular values of UVᵀ: effective rank {effective_rank(final):.1f} of {len(final)}")
    label_right(right, labels)
    return figure


def effective_rank(singular_values: np.ndarray) -> float:
    """exp of the entropy of the normalised singular values (Roy and Vetterli 2007); 0 where all are zero."""
    share = singular_values[singular_values > 0] / max(singular_values.sum(), 1e-300)
    return float(np.exp(-(share * np.log(share)).sum())) if len(share) else 0.0
