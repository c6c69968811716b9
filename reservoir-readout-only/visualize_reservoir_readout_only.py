"""Draw a saved run of reservoir_readout_only, and the sweep of leak, gain and input scale: four figures in viz/. It never
trains.

    python visualize_reservoir_readout_only.py                    # the committed results, laptop preset, seed 0
    python visualize_reservoir_readout_only.py --run runs/laptop-seed0 --out /some/folder

Errors in closed loop are one figure more, drawn where the run has them (--horizon).
"""

import argparse
import math
from pathlib import Path

import numpy as np
from matplotlib.axes import Axes
from matplotlib.figure import Figure
from matplotlib.lines import Line2D
from matplotlib.patches import Circle, Rectangle
from matplotlib.ticker import FuncFormatter, LogLocator, MaxNLocator, NullFormatter, PercentFormatter

from common.errors import BadInput, run_main
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
    predictor,
    read_json,
    references,
    robust_limits,
    save_figures,
    seriation,
    style,
)
from common.run_figures import closed_loop_error
from common.text import duration, in_words

HERE = Path(__file__).resolve().parent
COMMITTED = HERE / "results" / "laptop-seed0"
SWEEP = HERE / "measurements" / "sweep.json"
BRIEF_LEAKS = (0.2, 0.5)  # "e.g., 0.2–0.5"

# T target frames, N units, k predictors, M units shown, b bins.
SHAPES = {
    "mse_by_frame_T": "T",
    "trivial_names": "k",
    "trivial_mse_by_frame_kT": "kT",
    "eigenvalues_frozen": "N",
    "hidden_TM": "TM",
    "hidden_rms_T": "T",
    "hidden_histogram": "b",
    "hidden_edges": "b+",
}


# ---------------------------------------------------------------------------------------------------------------------
# 1. Training curves


def training_curves(run: SavedRun) -> Figure:
    """Validation MSE of Adam's readout between that of the exact one and those of the trivial predictors; how far behind
    the exact one it is; loss on the minibatches, learning rate and size of the readout."""
    steps = run.config["decoder_steps"]  # of an iteration
    evaluated, validation = run.column("validation_mse")
    evaluated, last = evaluated * steps, run.history["iteration"][-1] * steps
    ridge = float(run.results["ridge_validation_mse"])
    behind = float(run.results["validation_mse"]) / ridge - 1
    title = (
        f"Adam’s readout ends {abs(behind):.2%} {'above' if behind > 0 else 'below'} the exact one in {last:,.0f} steps"
    )
    figure = headed_figure(10.5, 9.6, title, f"{describe(run.results)}\n{_effort(run)}", legend_rows=1)
    grid = figure.add_gridspec(4, 1, height_ratios=[0.42, 2.2, 1.5, 1.1])

    lines = [line for line in references(run.results) if line.name != "trained core, ridge"]  # the core is frozen
    # Of the first half, in which the learning rate is high, only what fits is shown; the panel beneath has all of it.
    learned = validation[len(validation) // 2 :]
    near, far = near_and_far(lines, min(learned), max(learned))
    axes, strip = broken_axes(figure, grid, 0, [line.value for line in far])
    draw_references(axes, near)
    if strip:
        draw_references(strip, far)
    marker = "o" if len(evaluated) <= 40 else ""
    axes.plot(evaluated, validation, color=VERMILION, marker=marker, ms=4.5, lw=2, zorder=4)
    inside = [*learned, *(line.value for line in near)]
    axes.set(xlim=(0, last), ylim=robust_limits(inside, share=1.0), ylabel="MSE (standardised embedding)")
    axes.tick_params(labelbottom=False)

    excess = figure.add_subplot(grid[2], sharex=axes)
    above = np.where(validation > ridge, validation / ridge - 1, np.nan)
    excess.plot(evaluated, above, color=VERMILION, marker=marker, ms=4, lw=1.8)
    excess.set_yscale("log")
    excess.yaxis.set_major_locator(LogLocator(subs=(1, 2, 5)))
    excess.yaxis.set_major_formatter(FuncFormatter(lambda share, _: f"{100 * share:.3g} %"))
    excess.yaxis.set_minor_formatter(NullFormatter())
    excess.set_title("How far the validation MSE is above that of the exact (ridge) readout")
    excess.set(xlabel="Adam step", ylabel="above ridge")
    _state_panels(figure, grid[3].subgridspec(1, 3), run, steps)

    header_legend(
        figure,
        [
            Line2D([], [], color=VERMILION, marker=marker, ms=4, label="validation MSE, Adam’s readout"),
            Line2D([], [], color=GREY, dashes=(5, 2), lw=1.3, label="validation MSE of …"),
        ],
    )
    ends = [(x.value, f"{x.name} {x.value:.4f}", x.colour) for x in near]
    label_right(axes, [*ends, (validation[-1], f"this run {validation[-1]:.4f}", VERMILION)])
    if strip:
        label_right(strip, [(x.value, f"{x.name} {x.value:.4f}", x.colour) for x in far])
    return figure


def _effort(run: SavedRun) -> str:
    """What the run cost, as far as it is recorded: sequences read, wallclock, hardware."""
    _, rollouts = run.column("rollouts")
    _, seconds = run.column("wallclock_s")
    device = run.results.get("environment", {}).get("device_name")
    parts = [f"{in_words(rollouts[-1])} sequences read"] if len(rollouts) else []
    parts += [f"in {duration(seconds[-1])}"] if len(seconds) else []
    parts += [f"on {device}"] if device else []
    return " ".join(parts)


def _state_panels(figure: Figure, grid, run: SavedRun, steps: int) -> None:
    """Small multiples: loss on the minibatches, learning rate, norm of the readout."""
    panels = (
        ("train_loss", "Loss on the minibatches", SKY, "MSE"),
        ("learning_rate", "Learning rate", INK, "step size"),
        ("readout_norm", "Norm of Wout", GREEN, "‖Wout‖ (Frobenius)"),
    )
    for column, (key, title, colour, label) in enumerate(panels):
        axes = figure.add_subplot(grid[column])
        axes.set_title(title, fontsize=10)
        axes.set_ylabel(label, fontsize=9)
        axes.set_xlabel("Adam step", fontsize=9)
        axes.xaxis.set_major_locator(MaxNLocator(4, steps=[1, 2, 2.5, 5, 10]))
        x, y = run.column(key)
        if key == "train_loss":
            curve_with_mean(axes, x * steps, y, colour, odd_window(len(y)))
            axes.set_ylim(robust_limits(y, share=0.97))
        else:
            axes.plot(x * steps, y, color=colour, lw=1.4, clip_on=False)
            axes.set_ylim(0, None)
        axes.set_xlim(0, run.history["iteration"][-1] * steps)


# ---------------------------------------------------------------------------------------------------------------------
# 2. Hidden activity


def hidden_states(run: SavedRun) -> Figure:
    """Activity of some units over one sequence, the distribution of all activities, their RMS by step, eigenvalues of W0."""
    hidden, rms = run.arrays["hidden_TM"], run.arrays["hidden_rms_T"]
    counts, edges = run.arrays["hidden_histogram"].astype(float), run.arrays["hidden_edges"].astype(float)
    eigenvalues = run.arrays["eigenvalues_frozen"]
    steps, units = hidden.shape
    share = counts / max(counts.sum(), 1.0)
    saturated = share[np.abs((edges[1:] + edges[:-1]) / 2) > 0.9].sum()
    title = (
        f"The frozen reservoir: RMS(h) {rms[0]:.2f} after one frame, {rms[-1]:.2f} after {steps}; "
        f"{saturated:.1%} of activities beyond ±0.9"
    )
    figure = headed_figure(13.2, 5.6, title, describe(run.results))
    left, middle, right = figure.add_gridspec(1, 3, width_ratios=[1.5, 0.85, 1.05])
    axes = figure.add_subplot(left)
    limit = float(np.quantile(np.abs(hidden), 0.995)) or 1.0
    ordered = hidden[:, seriation(hidden)].T
    extent = (0.5, steps + 0.5, units + 0.5, 0.5)
    image = axes.imshow(ordered, aspect="auto", cmap=DIVERGING, vmin=-limit, vmax=limit, extent=extent)
    axes.grid(False)
    axes.set_title(f"{units} units on test sequence 1, sorted by likeness")
    axes.set(xlabel="time step t (h has read frame t)", ylabel="unit (sorted)")
    axes.xaxis.set_major_locator(MaxNLocator(10, integer=True))
    bar = figure.colorbar(image, ax=axes, pad=0.015, aspect=32, extend="both")
    bar.set_label("activity h")
    bar.outline.set_visible(False)

    side = middle.subgridspec(2, 1)
    axes = figure.add_subplot(side[0])
    density = share / np.diff(edges)
    axes.stairs(density, edges, fill=True, color=SKY, alpha=0.85)
    axes.stairs(density, edges, color=BLUE, lw=1)
    axes.set_title("Activities on test sequences")
    axes.set(xlabel="activity h", ylabel="density", xlim=(edges[0], edges[-1]), ylim=(0, None))
    axes = figure.add_subplot(side[1])
    axes.plot(np.arange(1, steps + 1), rms, color=ORANGE, marker="o", ms=4, lw=2)
    axes.set_title("RMS over units and sequences")
    axes.set(xlabel="time step t", ylabel="RMS(h)", xlim=(0.5, steps + 0.5), ylim=(0, 1.12 * float(rms.max()) or 1.0))
    axes.xaxis.set_major_locator(MaxNLocator(6, integer=True))

    axes = figure.add_subplot(right)
    radius = float(np.abs(eigenvalues).max())
    reach = 1.07 * max(1.0, radius)
    axes.scatter(eigenvalues.real, eigenvalues.imag, s=5, color=BLUE, alpha=0.55, lw=0)
    axes.add_patch(Circle((0, 0), 1, fill=False, ec=INK, lw=1, ls=(0, (4, 3))))
    axes.set_title(f"Eigenvalues of W₀: |λ| ≤ {radius:.3f}")
    axes.set(xlim=(-reach, reach), ylim=(-reach, reach), aspect="equal", xlabel="Re λ", ylabel="Im λ")
    for axis in (axes.xaxis, axes.yaxis):
        axis.set_major_locator(MaxNLocator(6, steps=[1, 2, 5, 10]))
    return figure


# ---------------------------------------------------------------------------------------------------------------------
# 3. Error by frame


def readout(run: SavedRun) -> Figure:
    """Test MSE of Adam's readout by target frame beside those of the trivial predictors, and what it gains on AR(3)."""
    ours, results = run.arrays["mse_by_frame_T"], run.results
    trivial = dict(zip(run.arrays["trivial_names"].tolist(), run.arrays["trivial_mse_by_frame_kT"], strict=True))
    looks = [predictor(name, mse.max()) for name, mse in trivial.items()]
    curves = list(zip(looks, trivial.values(), strict=True))
    title = (
        f"Test MSE {results['test_mse']:.4f} with Adam’s readout, {results['ridge_test_mse']:.4f} with the exact one"
    )
    figure = headed_figure(9.5, 7.4, title, describe(results))
    grid = figure.add_gridspec(3, 1, height_ratios=[0.45, 2.2, 1.5])
    frame = np.arange(2, len(ours) + 2)
    near, far = near_and_far(looks, float(ours.min()), float(ours.max()))
    beyond = [value for line, mse in curves if line in far for value in (mse.min(), mse.max())]
    axes, strip = broken_axes(figure, grid, 0, beyond)
    for line, mse in curves:
        (strip if line in far else axes).plot(frame, mse, color=line.colour, lw=1.4, dashes=line.dashes)
    axes.plot(frame, ours, color=VERMILION, lw=2.2, marker="o", ms=4, zorder=4)
    inside = np.concatenate([ours, *(mse for line, mse in curves if line in near)])
    axes.set(xlim=(1.8, len(ours) + 1.2), ylim=robust_limits(inside, share=1.0), ylabel="test MSE")
    axes.xaxis.set_major_locator(MaxNLocator(11, integer=True))
    axes.tick_params(labelbottom=False)
    (strip or axes).set_title("Error by target frame, whole test set")

    gain = figure.add_subplot(grid[2], sharex=axes)
    best = min((mse for line, mse in curves), key=lambda mse: float(mse.mean()))
    name = next(line.name for line, mse in curves if mse is best)
    gain.plot(frame, 1 - ours / best, color=VERMILION, lw=2, marker="o", ms=4)
    gain.axhline(0, color=GREY, lw=0.8)
    gain.set_title(f"How much less than {name}")
    gain.set(xlabel="target frame", ylabel="1 − ratio of the errors")
    gain.yaxis.set_major_formatter(PercentFormatter(1.0, decimals=1))

    ends = [(float(mse[-1]), line.name, line.colour) for line, mse in curves if line in near]
    label_right(axes, [(float(ours[-1]), "Adam’s readout", VERMILION), *ends])
    if strip:
        label_right(strip, [(float(mse[-1]), line.name, line.colour) for line, mse in curves if line in far])
    return figure


# ---------------------------------------------------------------------------------------------------------------------
# 4. The sweep


def load_sweep(path: Path) -> dict:
    """What sweep_reservoir_readout_only.py has written. Raises BadInput where it is missing or no such file."""
    saved = read_json(path)
    numbers = ("leak", "gain", "input_scale", "train_sequences", "validation_mse")
    rows = saved.get("rows")
    valid = isinstance(rows, list) and rows and isinstance(saved.get("problem"), dict)
    if not valid or not all(isinstance(row, dict) and all(_is_finite(row.get(n)) for n in numbers) for row in rows):
        raise BadInput(f"{path}: is no file of sweep_reservoir_readout_only.py")
    return saved


def _is_finite(value) -> bool:
    try:
        return isinstance(value, int | float) and math.isfinite(value)
    except OverflowError:  # JSON's whole numbers have no end
        return False


def _key(row: dict) -> tuple[float, float, float]:
    return row["leak"], row["gain"], row["input_scale"]


def _in_words(row: dict) -> str:
    return f"α {row['leak']:g}, gain {row['gain']:g}, input {row['input_scale']:g}"


def sweep(saved: dict) -> Figure:
    """One heat map (gain × input scale) a leak, on one scale of colours; beneath, the settings measured a second time."""
    sizes = sorted({row["train_sequences"] for row in saved["rows"]})
    first = [row for row in saved["rows"] if row["train_sequences"] == sizes[0]]
    final = [row for row in saved["rows"] if row["train_sequences"] == sizes[-1]]
    inside = [row for row in final if BRIEF_LEAKS[0] <= row["leak"] <= BRIEF_LEAKS[1]]
    winners = [
        (name, min(rows, key=lambda row: row["validation_mse"]), colour)
        for name, rows, colour in (("best with α of the brief", inside, VERMILION), ("of all", final, INK))
        if rows
    ]
    leaks, gains, scales = (sorted({row[k] for row in first}) for k in ("leak", "gain", "input_scale"))
    columns = min(4, len(leaks))
    grid_rows = -(-len(leaks) // columns)
    second = len(sizes) > 1
    title = "; ".join(f"{name}: {_in_words(row)}" for name, row, _ in winners)
    size = saved["problem"].get("hidden_size", "?")
    subtitle = (
        f"Validation MSE of ridge readouts of the frozen reservoir (N = {size}) on {sizes[0]:,} training sequences"
    )
    height = 1.35 + 2.55 * grid_rows + (0.19 * len({_key(row) for row in final}) + 0.9 if second else 0)
    figure = headed_figure(12, height, title[0].upper() + title[1:], subtitle)
    upper, *lower = figure.add_gridspec(
        1 + second, 1, height_ratios=[2.55 * grid_rows, height - 2.55 * grid_rows - 1.2][: 1 + second]
    )
    panels = upper.subgridspec(grid_rows, columns)
    values = np.array([row["validation_mse"] for row in first])
    # The bad corner would use up the colours: they show the better three quarters, the rest is darkest.
    low, high = values.min(), max(float(np.quantile(values, 0.75)), values.min() + 1e-9)
    shown = []
    for i, leak in enumerate(leaks):
        axes = figure.add_subplot(panels[i // columns, i % columns])
        image = _heat_map(axes, [row for row in first if row["leak"] == leak], gains, scales, low, high)
        axes.set_title(f"α = {leak:g}" + ("  (the brief’s range)" if BRIEF_LEAKS[0] <= leak <= BRIEF_LEAKS[1] else ""))
        axes.set_xlabel("input scale" if i + columns >= len(leaks) else "")
        axes.set_ylabel("gain of W₀" if i % columns == 0 else "")
        for _, row, colour in winners:
            if row["leak"] == leak:
                corner = scales.index(row["input_scale"]) - 0.5, gains.index(row["gain"]) - 0.5
                axes.add_patch(Rectangle(corner, 1, 1, fill=False, ec=colour, lw=2.6, zorder=5, clip_on=False))
        shown.append(axes)
    bar = figure.colorbar(image, ax=shown, aspect=30, pad=0.012, shrink=0.8, extend="max")
    bar.set_label("validation MSE")
    bar.outline.set_visible(False)
    if second:
        _finalists(figure.add_subplot(lower[0]), first, final, sizes, winners)
    return figure


def _heat_map(axes: Axes, rows: list[dict], gains: list[float], scales: list[float], low: float, high: float):
    """One leak: gain upwards, input scale to the right, each square with its error; what is not measured stays grey."""
    table = np.full((len(gains), len(scales)), np.nan)
    for row in rows:
        table[gains.index(row["gain"]), scales.index(row["input_scale"])] = row["validation_mse"]
    image = axes.imshow(table, origin="lower", aspect="auto", cmap="viridis_r", vmin=low, vmax=high)
    axes.set_facecolor(PALE)
    axes.grid(False)
    axes.set_xticks(range(len(scales)), [f"{scale:g}" for scale in scales])
    axes.set_yticks(range(len(gains)), [f"{gain:g}" for gain in gains])
    for (y, x), value in np.ndenumerate(table):
        if np.isfinite(value):
            dark = value > low + 0.5 * (high - low)
            text = f"{value:.3f}".removeprefix("0")
            axes.text(x, y, text, ha="center", va="center", fontsize=7.5, color="white" if dark else INK)
    return image


def _finalists(axes: Axes, first: list[dict], final: list[dict], sizes: list[int], winners: list) -> None:
    """Each setting that was measured again: its error with few and with many training sequences, best at the top."""
    before = {_key(row): row["validation_mse"] for row in first}
    ranked = sorted(final, key=lambda row: row["validation_mse"])
    for place, row in enumerate(ranked):
        colour = next((colour for _, winner, colour in winners if winner is row), GREY)
        if _key(row) in before:
            axes.plot([row["validation_mse"], before[_key(row)]], [place, place], color=PALE, lw=1.4, zorder=1)
            axes.plot(before[_key(row)], place, color=colour, marker="s", ms=5, ls="none")
        axes.plot(row["validation_mse"], place, color=colour, marker="o", ms=6.5, ls="none")
        text = f"{row['validation_mse']:.4f}"
        axes.annotate(text, (row["validation_mse"], place), (-8, 0), textcoords="offset points", ha="right", va="center",
                      fontsize=8.5, color=colour)  # fmt: skip
    axes.set_yticks(range(len(ranked)), [_in_words(row) for row in ranked])
    axes.set(ylim=(len(ranked) - 0.4, -0.6), xlabel="validation MSE")
    axes.set_title(f"The finalists: {sizes[0]:,} (squares) and {sizes[-1]:,} training sequences (circles)")
    axes.margins(x=0.1)


# ---------------------------------------------------------------------------------------------------------------------

FIGURES = {
    "training_curves": training_curves,
    "hidden_states": hidden_states,
    "readout": readout,
    "closed_loop_error": closed_loop_error,
}


def main(argv: list[str] | None = None) -> int:
    def more(parser: argparse.ArgumentParser) -> None:
        parser.add_argument(
            "--sweep", type=Path, metavar="FILE", default=SWEEP, help="sweep to draw (default: the committed one)"
        )

    options = figure_arguments(__doc__.splitlines()[0], HERE, "viz/", argv, more)
    needs = ("train_loss", "validation_mse", "learning_rate", "readout_norm")
    run = load_run(options.run, COMMITTED, SHAPES, needs, settings=("hidden_size", "decoder_steps", "batch_size"))
    measured = load_sweep(options.sweep)
    with style():
        save_figures(
            {name: draw(run) for name, draw in FIGURES.items()} | {"sweep": sweep(measured)}, options.out / "viz"
        )
    return 0


if __name__ == "__main__":
    run_main(main)
