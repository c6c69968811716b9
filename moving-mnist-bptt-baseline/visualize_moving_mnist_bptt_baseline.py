"""Draw a saved run of moving_mnist_bptt_baseline: four figures in viz/. Reads files only, never trains.

python visualize_moving_mnist_bptt_baseline.py                 # the committed results, laptop preset, seed 0
python visualize_moving_mnist_bptt_baseline.py --run runs/laptop-seed0 --out /some/folder

The figure of memory against T is not of a run: it is drawn from measurements/memory_by_length.json. Errors in closed loop are
one figure more, drawn where the run has them (--horizon).
"""

from pathlib import Path

import numpy as np
from matplotlib.axes import Axes
from matplotlib.figure import Figure
from matplotlib.lines import Line2D
from matplotlib.ticker import FuncFormatter, LogLocator, MaxNLocator, NullLocator

from common.curriculum_figures import curriculum, read_curricula
from common.errors import BadInput, run_main
from common.figures import (
    BLUE,
    GREEN,
    INK,
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
    read_json,
    robust_limits,
    save_figures,
    style,
)
from common.run_figures import SHAPES, adapter_spectra, closed_loop_error, leaks, prediction_vs_target, validation_panel
from common.text import duration, in_words

HERE = Path(__file__).resolve().parent
COMMITTED = HERE / "results" / "laptop-seed0"
PAIRS = 32  # the brief's population
MEASUREMENT = HERE / "measurements" / "memory_by_length.json"

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
    axes, handles, labels = validation_panel(figure, grid, run, settled)

    losses = figure.add_subplot(grid[2], sharex=axes)
    iteration, loss = run.column("train_loss")
    window = odd_window(len(loss), share=0.05)
    curve_with_mean(losses, iteration, loss, SKY, window)
    losses.plot(evaluated, validation, color=VERMILION, lw=1.4, zorder=4)
    shown = np.concatenate([loss[iteration >= 0.05 * last], settled])
    losses.set(ylim=robust_limits(shown, share=0.998), ylabel="MSE", xlabel="Adam step")
    losses.set_title(f"On the training minibatches (pale: one step, bold: mean of {window} recorded ones)")
    _state_panels(figure, grid[3].subgridspec(1, 3), run)

    header_legend(figure, [*handles, Line2D([], [], color=SKY, label="train loss")])
    for part, names in labels:
        label_right(part, names)
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
# 2. Memory and memory traffic against T


def read_measurement(path: Path) -> tuple[dict[str, dict[str, np.ndarray]], dict]:
    """({method: {"sequence_length", "peak_bytes", …: (lengths,)}}, the whole file). BadInput where it is not as expected."""
    content = read_json(path)
    names = ("sequence_length", "peak_bytes", "kept_bytes", "moved_bytes", "moved_bytes_of_drive")
    try:
        rows = sorted(content["rows"], key=lambda row: row["sequence_length"])
        methods = {
            method: {name: np.array([row[name] for row in rows if row["method"] == method], float) for name in names}
            for method in ("bptt", "forward", "streamed", "pair", "probes")
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
    bptt, forward, streamed, pair, probes = methods.values()
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
        (left, probes, "peak_bytes", PURPLE, "-", "rank-space ES,\ntiles of 8"),
        (left, streamed, "peak_bytes", SKY, "-", "the same,\ninput streamed"),
        (right, bptt, "moved_bytes", VERMILION, "-", "a step of BPTT"),
        (right, forward, "moved_bytes", BLUE, "-", "a forward pass"),
        (right, probes, "moved_bytes", PURPLE, "-", "rank-space ES"),
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
        figures["closed_loop_error"] = closed_loop_error(run)
        figures["leaks"] = leaks(run)
        figures["memory_by_length"] = memory_by_length(*measurement)
        figures["curriculum"] = curriculum(
            read_curricula(options.run, COMMITTED.parents[1]), "backpropagation through time"
        )
        save_figures(figures, options.out / "viz")
    return 0


if __name__ == "__main__":
    run_main(main)
