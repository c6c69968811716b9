"""Draw a saved run of moving_mnist_bptt_baseline: four figures in viz/. Reads files only, never trains.

python visualize_moving_mnist_bptt_baseline.py                 # the committed results, laptop preset, seed 0
python visualize_moving_mnist_bptt_baseline.py --run runs/laptop-seed0 --out /some/folder

The figure of memory against T is not of a run: it is drawn from measurements/memory_by_length.json.
"""

from pathlib import Path

import numpy as np
from matplotlib.axes import Axes
from matplotlib.figure import Figure
from matplotlib.lines import Line2D
from matplotlib.patches import Circle
from matplotlib.ticker import FuncFormatter, LogLocator, MaxNLocator, NullLocator

from common.errors import BadInput, run_main
from common.figures import (
    BLUE,
    GREEN,
    GREY,
    INK,
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
    save_png,
    style,
)
from common.text import duration, in_words

HERE = Path(__file__).resolve().parent
COMMITTED = HERE / "results" / "laptop-seed0"
PAIRS = 32  # the brief's population
MEASUREMENT = HERE / "measurements" / "memory_by_length.json"

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
}


# ---------------------------------------------------------------------------------------------------------------------
# 1. Training curves


def training_curves(run: SavedRun) -> Figure:
    """Validation MSE between its reference lines, the loss on the minibatches, gradient, learning rate and norms."""
    evaluated, validation = run.column("validation_mse")
    last = run.history["iteration"][-1]
    test, device = float(run.results["test_mse"]), run.results.get("environment", {}).get("device_name", "")
    title = f"Validation MSE {validation[0]:.4f} → {validation[-1]:.4f} in {last:,.0f} Adam steps; test MSE {test:.4f}"
    (_, rollouts), (_, seconds) = run.column("rollouts"), run.column("wallclock_s")
    effort = f"{in_words(rollouts[-1])} sequences, forward and backward, in {duration(seconds[-1])} on {device}"
    figure = headed_figure(10.5, 10.8, title, f"{describe(run.results)}\n{effort}", legend_rows=1)
    grid = figure.add_gridspec(4, 1, height_ratios=[0.42, 2.2, 1.25, 1.05])

    # The first scores, of a decoder that knows nothing yet, share the upper strip with the references far above.
    settled = validation[evaluated >= 0.05 * last] if len(validation) > 2 else validation
    near, far = near_and_far(references(run.results), min(settled), max(settled))
    axes, strip = broken_axes(figure, grid, 0, [line.value for line in far])
    marker = "o" if len(evaluated) <= 40 else ""
    for part, lines in ((axes, near), (strip, far)):
        if part:
            draw_references(part, lines)
            part.plot(evaluated, validation, color=VERMILION, marker=marker, ms=4.5, lw=2, zorder=4)
    inside = [*settled, *(line.value for line in near)]
    axes.set(xlim=(0, last), ylim=robust_limits(inside, share=1.0), ylabel="MSE (standardised embedding)")
    axes.tick_params(labelbottom=False)

    losses = figure.add_subplot(grid[2], sharex=axes)
    iteration, loss = run.column("train_loss")
    window = odd_window(len(loss), share=0.05)
    curve_with_mean(losses, iteration, loss, SKY, window)
    losses.plot(evaluated, validation, color=VERMILION, lw=1.4, zorder=4)
    shown = np.concatenate([loss[iteration >= 0.05 * last], settled])
    losses.set(ylim=robust_limits(shown, share=0.998), ylabel="MSE", xlabel="Adam step")
    losses.set_title(f"On the training minibatches (pale: one step, bold: mean of {window} recorded ones)")
    _state_panels(figure, grid[3].subgridspec(1, 3), run)

    header_legend(
        figure,
        [
            Line2D([], [], color=VERMILION, marker=marker, ms=4, label="validation MSE"),
            Line2D([], [], color=GREY, dashes=(5, 2), lw=1.3, label="validation MSE of …"),
            Line2D([], [], color=SKY, label="train loss"),
        ],
    )
    ends = [(line.value, f"{line.name} {line.value:.4f}", line.colour) for line in near]
    label_right(axes, [*ends, (validation[-1], f"this run {validation[-1]:.4f}", VERMILION)])
    if strip:
        label_right(strip, [(line.value, f"{line.name} {line.value:.4f}", line.colour) for line in far])
    return figure


def _state_panels(figure: Figure, grid, run: SavedRun) -> None:
    """Small multiples: norm of the core's gradient with the norm that it is cut to, learning rate, norms of U and V."""
    panels = [figure.add_subplot(grid[i]) for i in range(3)]
    iteration, norm = run.column("gradient_norm")
    iteration, norm = (
        iteration[norm > 0],
        norm[norm > 0],
    )  # at the first step the decoder is zero, and so is the gradient
    clip = run.config.get("gradient_clip")
    if len(norm):
        curve_with_mean(panels[0], iteration, norm, BLUE, odd_window(len(norm), share=0.05))
        panels[0].set(yscale="log", ylim=(0.7 * np.quantile(norm, 0.01), 2.5 * max(norm.max(), clip or 0)))
    if clip:
        panels[0].axhline(clip, color=INK, lw=1, dashes=(4, 3))
        panels[0].text(0.98, clip, "cut to this", transform=panels[0].get_yaxis_transform(), ha="right", va="bottom",
                       fontsize=8.5)  # fmt: skip
    panels[0].set_title("Norm of the core’s gradient", fontsize=10)
    panels[1].plot(*run.column("learning_rate"), color=INK, lw=1.4, clip_on=False)
    panels[1].set_title("Learning rate of the core", fontsize=10)
    norms = [
        (name, colour, *run.column(key)) for name, colour, key in (("‖U‖", GREEN, "u_norm"), ("‖V‖", BLUE, "v_norm"))
    ]
    for _, colour, x, y in norms:
        panels[2].plot(x, y, color=colour, lw=1.6, clip_on=False)
    panels[2].set_title("Norms of the adapter (Frobenius)", fontsize=10)
    for axes in panels:
        axes.set(xlim=(0, run.history["iteration"][-1]), xlabel="Adam step")
        axes.xaxis.set_major_locator(MaxNLocator(4, steps=[1, 2, 5, 10]))
    for axes in panels[1:]:
        axes.set_ylim(0, None)
    label_right(panels[2], [(y[-1], name, colour) for name, colour, _, y in norms if len(y)])


# ---------------------------------------------------------------------------------------------------------------------
# 2. Prediction against target


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
        _film_strip(figure.add_subplot(grid[0, s]), frames[s], f"Test sequence {s + 1}")
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
    _error_by_frame(figure, lower.subgridspec(2, 1, height_ratios=[0.45, 1.9]), run)
    header_legend(
        figure,
        [
            Line2D([], [], color=INK, lw=1.2, marker="o", ms=3, label="true embedding"),
            Line2D([], [], color=VERMILION, lw=2, label="predicted, after training"),
            Line2D([], [], color=PALE, lw=1.8, label="predicted, before"),
        ],
    )
    return figure


def _film_strip(axes: Axes, frames_FYX: np.ndarray, title: str) -> None:
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


def _error_by_frame(figure: Figure, grid, run: SavedRun) -> None:
    """Test MSE by target frame, trained model against trivial predictors, in the two rows of `grid`."""
    ours = run.arrays["mse_by_frame_T"]
    curves = zip(run.arrays["trivial_names"], run.arrays["trivial_mse_by_frame_kT"])
    curves = [(predictor(name, mse.max()), mse) for name, mse in curves]
    near, far = near_and_far([line for line, _ in curves], float(ours.min()), float(ours.max()))
    beyond = [value for line, mse in curves if line in far for value in (mse.min(), mse.max())]
    axes, strip = broken_axes(figure, grid, 0, beyond)
    frame = np.arange(2, len(ours) + 2)
    for line, mse in curves:
        (strip if line in far else axes).plot(frame, mse, color=line.colour, lw=1.4, dashes=line.dashes)
    axes.plot(frame, ours, color=VERMILION, lw=2.2, marker="o", ms=4, zorder=4)
    inside = np.concatenate([ours, *(mse for line, mse in curves if line in near)])
    axes.set(xlim=(1.8, len(ours) + 1.2), ylim=robust_limits(inside, share=1.0), xlabel="target frame", ylabel="MSE")
    axes.xaxis.set_major_locator(MaxNLocator(11, integer=True))
    (strip or axes).set_title("Error by target frame, whole test set")
    ends = [(float(mse[-1]), line.name, line.colour) for line, mse in curves if line in near]
    label_right(axes, [(float(ours[-1]), "this run", VERMILION), *ends])
    if strip:
        label_right(strip, [(float(mse[-1]), line.name, line.colour) for line, mse in curves if line in far])


# ---------------------------------------------------------------------------------------------------------------------
# 3. What the adapter does to the spectrum


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
    text = "|1 − α + αλ| = 1" + " for the α of the start" * (run.config.get("trains") == "all")
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


# ---------------------------------------------------------------------------------------------------------------------
# 4. Memory and memory traffic against T


def read_measurement(path: Path) -> tuple[dict[str, dict[str, np.ndarray]], dict]:
    """({method: {"sequence_length", "peak_bytes", …: (lengths,)}}, the whole file). BadInput where it is not as expected."""
    content = read_json(path)
    names = ("sequence_length", "peak_bytes", "kept_bytes", "moved_bytes", "moved_bytes_of_drive")
    try:
        rows = sorted(content["rows"], key=lambda row: row["sequence_length"])
        methods = {
            method: {name: np.array([row[name] for row in rows if row["method"] == method], float) for name in names}
            for method in ("bptt", "forward", "streamed", "pair")
        }
        lengths = methods["bptt"]["sequence_length"]
        for columns in methods.values():
            if not (
                len(lengths)
                and np.array_equal(columns["sequence_length"], lengths)
                and (columns["peak_bytes"] > 0).all()
            ):
                raise ValueError
        sizes = {name: int(content["sizes"][name]) for name in ("hidden_size", "in_degree", "rank", "batch_size")}
        return methods, {**sizes, "device": content["environment"]["device_name"]}
    except (KeyError, TypeError, ValueError, AttributeError, OverflowError):
        raise BadInput(f"{path}: is no file of measure_memory_by_length.py") from None


def memory_by_length(methods: dict[str, dict[str, np.ndarray]], about: dict) -> Figure:
    """Peak memory and bytes moved of one minibatch against T, on log axes."""
    bptt, forward, streamed, pair = (methods[name] for name in ("bptt", "forward", "streamed", "pair"))
    longest, drive = int(bptt["sequence_length"][-1]), pair["moved_bytes_of_drive"]
    # The population shares one minibatch, so that Win z_t + b is formed once.
    population = {**pair, "moved_bytes": drive + PAIRS * (pair["moved_bytes"] - drive)}
    title = (
        f"At T = {longest} backpropagation holds {size(bptt['peak_bytes'][-1])}, "
        f"a forward pass can do with {size(streamed['peak_bytes'][-1])}"
    )
    sizes = f"One minibatch: N = {about['hidden_size']:,} · k = {about['in_degree']} · r = {about['rank']} · B = {about['batch_size']}"
    figure = headed_figure(11.5, 5.6, title, f"{sizes} · on {about['device']}", legend_rows=0)
    left, right = figure.subplots(1, 2)
    curves = (
        (left, bptt, "peak_bytes", VERMILION, "-", "a step of BPTT"),
        (left, bptt, "kept_bytes", VERMILION, ":", "of it kept for\nthe way back"),
        (left, forward, "peak_bytes", BLUE, "-", "a forward pass"),
        (left, streamed, "peak_bytes", SKY, "-", "the same,\ninput streamed"),
        (right, bptt, "moved_bytes", VERMILION, "-", "a step of BPTT"),
        (right, forward, "moved_bytes", BLUE, "-", "a forward pass"),
        (right, population, "moved_bytes", GREEN, "-", f"{PAIRS} pairs of ES"),
    )
    labels: dict[Axes, list] = {left: [], right: []}
    for axes, columns, name, colour, dashes, label in curves:
        marker = "o" if dashes == "-" else ""
        axes.plot(columns["sequence_length"], columns[name], color=colour, ls=dashes, marker=marker, ms=5, lw=2)
        labels[axes].append((columns[name][-1], f"{label} {size(columns[name][-1])}", colour))
    for axes, what in ((left, "Peak memory above what was there before"), (right, "Bytes moved, counted by operator")):
        axes.set(xscale="log", yscale="log", xlabel="T, steps of a sequence", title=what)
        axes.set_xticks(bptt["sequence_length"], [f"{steps:.0f}" for steps in bptt["sequence_length"]])
        axes.xaxis.set_minor_locator(NullLocator())
        axes.yaxis.set_major_locator(LogLocator(subs=(1, 3)))
        axes.yaxis.set_major_formatter(FuncFormatter(lambda value, _: size(value).replace(".0 ", " ")))
        axes.yaxis.set_minor_locator(NullLocator())
        low, high = axes.get_ylim()
        axes.set_ylim(low / 1.3, high * 1.3)
        label_right(axes, labels[axes], gap=2.6 if axes is left else 1.35)
    return figure


def size(count: float) -> str:
    """Bytes for reading: 850 kB, 7.4 MB, 31 MB, 2.1 GB."""
    for unit, name in ((1e9, "GB"), (1e6, "MB"), (1e3, "kB")):
        if count >= unit:
            return f"{count / unit:.0f} {name}" if count >= 9.95 * unit else f"{count / unit:.1f} {name}"
    return f"{count:.0f} B"


def main(argv: list[str] | None = None) -> int:
    def more(parser):
        parser.add_argument(
            "--measurement",
            type=Path,
            metavar="FILE",
            default=MEASUREMENT,
            help="what measure_memory_by_length.py wrote",
        )

    options = figure_arguments(__doc__.splitlines()[0], HERE, "viz/", argv, more)
    settings = ("hidden_size", "rank", "sequence_length", "batch_size")
    run = load_run(
        options.run, COMMITTED, SHAPES, needs=("train_loss", "validation_mse", "wallclock_s"), settings=settings
    )
    measurement = read_measurement(options.measurement)
    with style():
        figures = {"training_curves": training_curves(run), "prediction_vs_target": prediction_vs_target(run)}
        if run.config.get("core", "reservoir") == "reservoir":  # a GRU has no adapter
            figures["adapter_spectra"] = adapter_spectra(run)
        figures["memory_by_length"] = memory_by_length(*measurement)
        for name, figure in figures.items():
            print(save_png(figure, options.out / "viz" / f"{name}.png"))
    return 0


if __name__ == "__main__":
    run_main(main)
