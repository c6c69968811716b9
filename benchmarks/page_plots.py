"""The plots of benchmarks/README.md, each drawn from one file of results, whose digest it carries (see page.py)."""

from collections.abc import Callable, Sequence
from pathlib import Path

import numpy as np
from matplotlib.axes import Axes
from matplotlib.figure import Figure
from matplotlib.lines import Line2D
from matplotlib.ticker import FuncFormatter, LogLocator, NullFormatter
from page import AXES, OURS, Report, name_of

from common.figures import (
    BLACK,
    BLUE,
    DPI,
    GREEN,
    GREY,
    ORANGE,
    PALE,
    PURPLE,
    SKY,
    VERMILION,
    headed_figure,
    header_legend,
    label_right,
    style,
)
from common.files import write_atomically

COLOURS = (VERMILION, BLUE, GREEN, PURPLE, ORANGE, SKY, BLACK, GREY)
CANDIDATES = {
    "ours_rank1": VERMILION,
    "ours_gaussian": ORANGE,
    "evotorch_pgpe": BLUE,
    "evosax_open_es": GREEN,
    "evox_open_es": PURPLE,
    "evox_virtual_lora": SKY,
    "torch_randn": BLACK,
}


def draw(path: Path, report: Report) -> None:
    """Draw the plot of a report; it carries the digest of the file it was drawn from."""
    with style():
        figure = FIGURES[report.name](report.results)
        path.parent.mkdir(exist_ok=True)
        metadata = {"Software": None, "Inputs": report.digest}
        write_atomically(path, lambda to: figure.savefig(to, format="png", dpi=DPI, metadata=metadata))


def logarithmic(axes: Axes, ticks: Sequence[float] = ()) -> None:
    """Both axes logarithmic, ticks in plain numbers; those of x may be named."""
    axes.set(xscale="log", yscale="log")
    plain = FuncFormatter(lambda value, _: f"{value:,.10g}")
    for axis in (axes.xaxis, axes.yaxis):
        axis.set_major_formatter(plain)
        axis.set_minor_formatter(NullFormatter())
    if len(ticks):
        axes.set_xticks(ticks)
    low, high = axes.get_ylim()
    if high < 300 * low:
        axes.yaxis.set_major_locator(LogLocator(subs=(1, 2, 5)))
    axes.minorticks_off()


def line(
    axes: Axes, x: Sequence[float], y: Sequence[float], colour: str, dashes: tuple = (), marker: str = "o"
) -> None:
    """A line through what a logarithmic axis can show."""
    x, y = np.asarray(x, dtype=float), np.asarray(y, dtype=float)
    shown = y > 0
    axes.plot(x[shown], y[shown], marker=marker, ms=4, color=colour, ls=(0, dashes) if dashes else "-")


# --- Growth ----------------------------------------------------------------------------------------------------------

WORK = {"rollout": (BLUE, "a tile's rollout"), "iteration": (VERMILION, "iteration"), "estimate": (GREEN, "estimate")}


def growth(results: dict) -> Figure:
    """Time and peak memory against sizes, relative to the starting point."""
    start = results["start"]
    subtitle = ", ".join(f"{AXES[axis].split(',')[0]} = {start[axis]:,}" for axis in AXES)
    title = "Time and memory of an iteration as one size grows"
    figure = headed_figure(
        11, 5.2, title, f"Starting point: {subtitle}. Time on {results['threads']} threads, memory on one."
    )
    time, memory = figure.subplots(1, 2)
    labels, ends = [], [1.0]
    for (axis, found), colour in zip(results["time"].items(), COLOURS):
        base = next(row["seconds"]["median"] for row in found["rows"] if row["value"] == start[axis])
        x = [row["value"] / start[axis] for row in found["rows"]]
        y = [row["seconds"]["median"] / base for row in found["rows"]]
        line(time, x, y, colour)
        labels.append((y[-1], f"{axis if axis != 'size' else 'units'}: slope {found['slope']['median']:.2f}", colour))
        ends += x
    logarithmic(time, sorted({2.0 ** round(np.log2(x)) for x in ends}))
    reach = np.array([min(ends), max(ends)])
    time.plot(reach, reach, color=PALE, lw=4, zorder=0.5)
    time.set(title="Time (grey: linear)", xlabel="size / starting point", ylabel="time / starting point")
    _memory(memory, results["memory"]["rows"], start)
    label_right(time, labels, size=9)
    return figure


def _memory(axes: Axes, rows: list[dict], start: dict) -> None:
    """Peak memory without Win z + b, against steps (solid) and pairs (dashed); Win z + b itself, dotted."""
    labels, ends = [], [1.0]
    for what, (colour, words) in WORK.items():
        for along, fixed, symbol, dashes in (("steps", "pairs", "T", ()), ("pairs", "steps", "K", (4, 1.6))):
            some = [row for row in rows if row["what"] == what and (what == "estimate" or row[fixed] == start[fixed])]
            some.sort(key=lambda row: row[along])
            x = [row[along] / start[along] for row in some]
            if len(set(x)) < 2:
                continue
            y = [row["peak_without_drive_bytes"] / 1e6 for row in some]
            line(axes, x, y, colour, dashes)
            ends += x
            if y[-1] > 0:
                labels.append((y[-1], f"{words}, {symbol}", colour))
    drives = sorted(
        {(row["steps"] / start["steps"], row["drive_bytes"] / 1e6) for row in rows if row["what"] == "iteration"}
    )
    line(axes, *zip(*drives), GREY, (1, 1.2), "")
    labels.append((drives[-1][1], "Win z + b itself, T", GREY))
    logarithmic(axes, sorted({4.0 ** round(np.log2(x) / 2) for x in ends}))
    axes.set(
        title="Peak memory without Win z + b (T solid, K dashed)",
        xlabel="steps T, pairs K / starting point",
        ylabel="MB",
    )
    label_right(axes, labels, size=9)


# --- Roofline --------------------------------------------------------------------------------------------------------

BARS = {"in the loop": VERMILION, "alone": ORANGE, "by the ceilings": BLUE}


def roofline(results: dict) -> Figure:
    """Bars for each part of a time step: in the loop, alone, by the ceilings."""
    parts = results["parts"]
    rows = {part: (f["in_the_loop_us"]["median"], f["alone_us"], f["ceiling_us"]) for part, f in parts.items()}
    rows = dict(sorted(rows.items(), key=lambda item: -item[1][0]))
    rows["bookkeeping"] = (max(results["bookkeeping_us"], 0.0),)
    rollout = results["rollout"]
    subtitle = (
        f"One tile of {rollout['columns']:,} columns, {results['dtype']}, one thread: {rollout['us_per_column_step']['median']:.3g} µs "
        f"a column and step, {rollout['share_of_operations_ceiling']['median']:.0%} of the rate of a large product"
    )
    figure = headed_figure(9.5, 1.9 + 0.44 * len(rows), "Where the time of a rollout goes", subtitle, legend_rows=1)
    axes = figure.subplots()
    for number, colour in enumerate(BARS.values()):
        values = [times[number] if number < len(times) else np.nan for times in rows.values()]
        places = np.arange(len(rows)) + 0.26 * (number - 1)
        axes.barh(places, values, 0.24, color=colour)
        for place, value in zip(places, values):
            if np.isfinite(value):
                axes.annotate(
                    f"{value:.2f}", (value, place), (3, 0), textcoords="offset points", va="center", fontsize=7
                )
    axes.set_yticks(np.arange(len(rows)), list(rows))
    axes.invert_yaxis()
    axes.grid(axis="y", visible=False)
    axes.set_xlabel("µs for each column and step")
    header_legend(figure, [Line2D([], [], color=colour, lw=6, label=words) for words, colour in BARS.items()])
    return figure


# --- The machinery of evolution strategies ---------------------------------------------------------------------------


def es_machinery(results: dict) -> Figure:
    """Time and peak memory of the machinery alone against members."""
    sizes = results["sizes"]
    subtitle = f"An iteration without its rollout, {sizes['dimensions']:,} parameters, {results['threads']} threads."
    figure = headed_figure(11, 5.0, "The machinery of evolution strategies against members", subtitle)
    panels = figure.subplots(1, 2)
    tables = (
        ("Time", "ms", results["machinery"], lambda row, name: row["seconds"][name]["median"] * 1e3),
        ("Peak memory", "MB", results["memory"], lambda row, name: row["peak_bytes"][name] / 1e6),
    )
    for axes, (title, unit, rows, value) in zip(panels, tables):
        labels = []
        for name, colour in CANDIDATES.items():
            found = [
                (row["members"], value(row, name)) for row in rows if name in row.get("seconds", row.get("peak_bytes"))
            ]
            if found:
                line(axes, *zip(*found), colour, () if name in OURS else (4, 1.6))
                if found[-1][1] > 0:
                    labels.append((found[-1][1], name_of(name), colour))
        logarithmic(axes, [row["members"] for row in rows])
        axes.set(title=title, xlabel="members", ylabel=unit)
        label_right(axes, labels, size=9)
    return figure


# --- Ranks -----------------------------------------------------------------------------------------------------------


def ranks(results: dict) -> Figure:
    """The model: shares of an iteration against pairs, for each machine and throughput."""
    model = results["model"]
    subtitle = "Predicted, not measured. Bands: communication, from the least to the greatest latency assumed. Dashed: the update that every rank repeats."
    figure = headed_figure(
        11, 5.0, "Communication and redundant update on many GPUs, by the model", subtitle, legend_rows=1
    )
    panels = np.atleast_1d(figure.subplots(1, len(model["rows"]), sharey=True))
    throughputs = model["assumptions"]["throughputs"]
    look = dict(zip(throughputs, COLOURS))
    for axes, (machine, found) in zip(panels, model["rows"].items()):
        for speed, colour in look.items():
            rows = sorted((row for row in found if row["throughput"] == speed), key=lambda row: row["pairs"])
            pairs = [row["pairs"] for row in rows]
            low, high = zip(*([100 * end for end in row["communication_share"]] for row in rows))
            axes.fill_between(pairs, low, high, color=colour, alpha=0.3, lw=0)
            line(axes, pairs, high, colour)
            line(axes, pairs, [100 * row["redundant_share"][0] for row in rows], colour, (4, 1.6), "")
        logarithmic(axes, pairs)
        axes.set(title=machine, xlabel="pairs K")
    panels[0].set_ylabel("% of an iteration")
    words = {speed: f"{speed / 1e6:g} M rollouts/s a GPU" for speed in throughputs}
    header_legend(figure, [Line2D([], [], color=colour, label=words[speed]) for speed, colour in look.items()])
    return figure


FIGURES: dict[str, Callable[[dict], Figure]] = {
    "growth": growth,
    "roofline": roofline,
    "es_machinery": es_machinery,
    "ranks": ranks,
}
