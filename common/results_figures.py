"""The figures of RESULTS.md: where every experiment stands between floor and ceiling, and what it took to get there.

Drawn from the committed results and histories alone, by `make results`.
"""

from collections.abc import Mapping, Sequence
from pathlib import Path

import numpy as np
from matplotlib.axes import Axes
from matplotlib.figure import Figure
from matplotlib.patheffects import withStroke
from matplotlib.ticker import MaxNLocator

from common.comparison import Group, Scale, agreed, groups_of, scale_of
from common.figures import (
    BLACK,
    BLUE,
    DPI,
    GREEN,
    GREY,
    INK,
    ORANGE,
    PALE,
    PREDICTORS,
    PURPLE,
    SKY,
    VERMILION,
    Reference,
    draw_references,
    headed_figure,
    label_right,
    read_history,
    spread,
    style,
)
from common.files import write_atomically
from common.results import run_name
from common.results_page import FIGURES, OUTSIDE, drawn_from, hardware, problem_title

COLOURS = {"floor": GREEN, "ceiling": BLUE, "reference": BLACK}
METHOD_COLOURS = (VERMILION, PURPLE, ORANGE, SKY)
HALO = [withStroke(linewidth=2.5, foreground="white")]  # keeps a number legible where a line runs through it
DASHES = ((), (4, 1.6), (1.2, 1.2), (6, 1.5, 1.2, 1.5))  # of the first, second … group of one colour
SCALES = {"test_mse": "test MSE, its own decoder", "ridge_test_mse": "test MSE, ridge refit on its final states"}
MINUTE, HOUR, DAY = 60, 3600, 86400
BETWEEN = {3: "3 s", 30: "30 s", 3 * MINUTE: "3 min", 30 * MINUTE: "30 min", 3 * HOUR: "3 h", DAY: "1 d"}
TIMES = {1: "1 s", 10: "10 s", MINUTE: "1 min", 10 * MINUTE: "10 min", HOUR: "1 h", 10 * HOUR: "10 h", 4 * DAY: "4 d"}
TIMES = dict(sorted((TIMES | BETWEEN).items()))  # those in BETWEEN are for short axes


def draw(root: Path, name: str, results: list[dict]) -> Path:
    """Draw one figure of `results_page.figures_of` to root/name; it carries the digest of what it was drawn from."""
    kind = next(kind for kind in FIGURES if Path(name).name.startswith(kind))
    inputs = drawn_from(results, root)
    with style():
        figure = {"floor-to-ceiling": floor_to_ceiling, "mse-against-cost": mse_against_cost}[kind](results, root)
        path = root / name
        path.parent.mkdir(exist_ok=True)
        metadata = {"Software": None, "Inputs": inputs}
        write_atomically(path, lambda to: figure.savefig(to, format="png", dpi=DPI, metadata=metadata))
    return path


def looks(groups: Sequence[Group]) -> dict[Group, tuple[str, tuple]]:
    """Colour and dashes of every group: a colour for each stub (floors, ceilings and references have theirs)."""
    methods = sorted({group.stub for group in groups if group.role is None})
    found, used = {}, {}
    for group in sorted(groups, key=lambda g: (g.stub, g.preset)):
        colour = COLOURS.get(group.role) or METHOD_COLOURS[methods.index(group.stub) % len(METHOD_COLOURS)]
        found[group] = colour, DASHES[used.get(colour, 0) % len(DASHES)]
        used[colour] = used.get(colour, 0) + 1
    return found


# ---------------------------------------------------------------------------------------------------------------------
# 1. From floor to ceiling


def floor_to_ceiling(results: list[dict], root: Path) -> Figure:
    """Test errors of all groups and trivial predictors, a row each: under their own decoders and under ridge refits."""
    groups = groups_of(results)
    trivial = {key: agreed(results, f"trivial_test_mse.{key}.all") for key in PREDICTORS}
    trivial = dict(sorted(((k, v) for k, v in trivial.items() if v is not None), key=lambda item: item[1]))
    scales = [scale_of(groups, key) for key in SCALES]
    whole = scales[0].length is not None
    title = "Where every experiment stands between floor and ceiling" if whole else "Test error of every experiment"
    subtitle = f"{_of_the_problem(results)}. Lower is better. Diamonds: means; dots below: the seeds."
    rows = len(groups) + 0.62 * len(trivial)
    figure = headed_figure(10.5, 1.95 + 0.47 * rows, title, subtitle)
    panels = figure.subplots(1, 2, sharey=True)
    heights = np.arange(len(groups), dtype=float)
    trivial_heights = len(groups) + 0.15 + 0.62 * np.arange(len(trivial))
    limits, look = _limits(groups, trivial), looks(groups)
    for axes, scale in zip(panels, scales):
        axes.set_xlim(limits)
        axes.set_ylim([*heights, *trivial_heights][-1] + 0.6, -0.6)
        axes.set_xlabel(SCALES[scale.key])
        axes.xaxis.set_major_locator(MaxNLocator(5))
        axes.grid(axis="y", visible=False)
        axes.tick_params(axis="y", length=0)
        axes.spines["left"].set_visible(False)
        _draw_scale(axes, scale)
        for height, group in zip(heights, groups):
            axes.axhline(height, color=PALE, lw=0.6, zorder=0.5)
            _draw_seeds(axes, height, group.values(scale.key), look[group][0])
        for height, value in zip(trivial_heights, trivial.values()):
            _draw_seeds(axes, height, [value], GREY)
    panels[0].set_yticks([*heights, *trivial_heights], [""] * (len(groups) + len(trivial)))
    for height, group in zip(heights, groups):
        _name_row(panels[0], height, group, look[group][0])
    for height, key in zip(trivial_heights, trivial):
        _row_text(panels[0], height, PREDICTORS[key][0], color=GREY, fontsize=9, va="center")
    return figure


def _of_the_problem(results: list[dict]) -> str:
    problem = results[0]["problem"]
    leak = [f"leak {problem['leak']}"] if "leak" in problem else []
    return ", ".join([problem_title(problem), *leak, f"problem {results[0]['problem_id']}"])


def _limits(groups: Sequence[Group], trivial: Mapping[str, float]) -> tuple[float, float]:
    """Limits of the error axis, for all groups better than the mean predictor and trivial predictors not far off."""
    values = [value for group in groups for key in SCALES for value in group.values(key)]
    inside = [value for value in values if value <= trivial.get("mean", value)] or values
    low, high = min(inside), max(inside)
    high = max([high, *(value for value in trivial.values() if value <= high + 0.75 * (high - low))])
    span = high - low or 0.05 * high
    return low - 0.07 * span, high + 0.3 * span  # on the right there is room for numbers


def _draw_seeds(axes: Axes, height: float, values: Sequence[float], colour: str) -> None:
    """Dots, a diamond at their mean and its number; an arrow at the edge where the mean is off the axis."""
    mean, (low, high) = float(np.mean(values)), axes.get_xlim()
    words = {"fontsize": 9, "color": colour if colour != GREY else INK, "va": "center_baseline", "path_effects": HALO}
    if mean > high - 0.12 * (high - low):
        axes.plot(high, height, marker=">", ms=6, color=colour, clip_on=False, ls="none")
        axes.annotate(f"{mean:.4f}", (high, height), (-9, 0), textcoords="offset points", ha="right", **words)
        return
    if len(values) > 1:
        axes.plot(values, [height + 0.27] * len(values), "o", ms=4, color=colour, alpha=0.45, mew=0, zorder=3)
    axes.plot(mean, height, "D", ms=6.5, color=colour, mec="white", mew=0.8, zorder=4)
    axes.annotate(f"{mean:.4f}", (mean, height), (9, 0), textcoords="offset points", zorder=5, **words)


def _draw_scale(axes: Axes, scale: Scale) -> None:
    """Vertical lines at floor and ceiling, their names above the axes, and the gap between them shaded."""
    ends = [(role, getattr(scale, role)) for role in ("ceiling", "floor")]
    ends = [(role, group.mean(scale.key)) for role, group in ends if group]
    for role, value in ends:
        axes.axvline(value, color=COLOURS[role], lw=1.4, dashes=(5, 2), zorder=1.5)
    if scale.length:
        axes.axvspan(*(value for _, value in ends), color="#F4F6F8", zorder=0)
    low, high = axes.get_xlim()
    places = [(value - low) / (high - low) for _, value in ends]
    for (role, value), place in zip(ends, spread(places, 0.33, 0.15, 0.85)):
        words = {"color": COLOURS[role], "fontsize": 9.5, "ha": "center", "va": "baseline"}
        axes.text(place, 1.015, f"{role} {value:.4f}", transform=axes.transAxes, **words)


def _name_row(axes: Axes, height: float, group: Group, colour: str) -> None:
    """The stub's name over its preset, data and number of seeds, left of the axes."""
    parts = [group.preset, f"{len(group.seeds)} seed{'s' * (len(group.seeds) > 1)}"]
    if group.train_sequences:
        parts.insert(1, f"{group.train_sequences:,} sequences")
    _row_text(axes, height, group.stub + OUTSIDE[group.role], color=colour, fontsize=9.5, offset=1, va="bottom")
    _row_text(axes, height, " · ".join(parts), color=GREY, fontsize=8.5, offset=-1, va="top")


def _row_text(axes: Axes, height: float, text: str, offset: float = 0, **look) -> None:
    axes.annotate(
        text,
        (0, height),
        (-8, offset),
        xycoords=("axes fraction", "data"),
        textcoords="offset points",
        ha="right",
        **look,
    )


# ---------------------------------------------------------------------------------------------------------------------
# 2. Error against cost


def mse_against_cost(results: list[dict], root: Path) -> Figure:
    """Validation error over training, against rollouts and against wallclock, a line for each seed of each group."""
    groups = groups_of(results)
    machines = "; ".join(dict.fromkeys(map(hardware, results)))
    subtitle = f"{_of_the_problem(results)}. Bold: seed 0; pale: other seeds.\nTrained on {machines}"
    figure = headed_figure(10.5, 5.6, "Validation error against what it took", subtitle)
    panels = figure.subplots(1, 2, sharey=True)
    curves = {group: [curve_of(root, result) for result in group.results] for group in groups}
    scale = scale_of(groups, "test_mse")
    lines = [
        Reference(role, group.mean("validation_mse"), COLOURS[role], (1, 1.5), role)
        for role in ("floor", "ceiling")
        if (group := getattr(scale, role)) and group.values("validation_mse")
    ]
    look = looks(groups)
    for axes, cost in zip(panels, ("rollouts", "wallclock_s")):
        axes.set_xscale("log")
        draw_references(axes, lines)
        for group in reversed(groups):
            draw_curves(axes, curves[group], cost, *look[group])
    mean = agreed(results, "trivial_validation_mse.mean.all")
    shown = [curve["validation_mse"] for seeds in curves.values() for curve in seeds]
    panels[0].set_ylim(curve_limits([y for y in shown if len(y)], [line.value for line in lines], mean))
    panels[0].set(xlabel="rollouts in training", ylabel="validation MSE (standardised embedding)")
    panels[1].set(xlabel="wallclock of training")
    time_ticks(panels[1])
    figure.align_xlabels(panels)
    for line in lines:
        above = line.name == "floor"  # and the ceiling's name is below: so they never touch
        words = {"color": line.colour, "fontsize": 9.5, "va": "bottom" if above else "top", "path_effects": HALO}
        place = {"xycoords": ("axes fraction", "data"), "textcoords": "offset points", "zorder": 6}
        panels[0].annotate(f"{line.name} {line.value:.4f}", (0, line.value), (4, 2 if above else -3), **place, **words)
    top, labels = panels[0].get_ylim()[1], []
    for group in groups:
        for end in curves[group][0]["validation_mse"][-1:].tolist():
            mark = " ↑" if end > top else ""
            labels.append((end, f"{group.stub} · {group.preset}{mark}", look[group][0]))
    label_right(panels[1], labels, size=9)
    return figure


def curve_of(root: Path, result: dict) -> dict[str, np.ndarray]:
    """Cost and validation error of the evaluations in a committed history."""
    history = read_history(root / result["stub"] / "results" / f"{run_name(result)}.history.jsonl")
    missing = np.full(len(history["iteration"]), np.nan)
    columns = {key: history.get(key, missing) for key in ("validation_mse", "rollouts", "wallclock_s")}
    return {key: column[np.isfinite(columns["validation_mse"])] for key, column in columns.items()}


def draw_curves(axes: Axes, curves: Sequence[dict], cost: str, colour: str, dashes: tuple) -> None:
    """One line a seed, the first bold. What cost nothing yet has no place on a logarithmic axis."""
    for number, curve in enumerate(curves):
        shown = curve[cost] > 0
        x, y = curve[cost][shown], curve["validation_mse"][shown]
        look = {"lw": 1.9, "zorder": 4} if number == 0 else {"lw": 1.0, "alpha": 0.35, "zorder": 3}
        axes.plot(x, y, color=colour, ls=(0, dashes) if dashes else "-", **look)
        if number == 0 and len(x):
            axes.plot(x[-1], y[-1], "o", ms=5, color=colour, zorder=5)


def curve_limits(curves: Sequence[np.ndarray], lines: Sequence[float], worst: float | None) -> tuple[float, float]:
    """Limits that show where curves end and how they got there.

    Cut off are the far higher beginnings, and curves that end above `worst`, what the mean predictor scores.
    """
    ends = [*(y[-1] for y in curves), *lines]
    ends = [end for end in ends if worst is None or end <= worst] or ends
    if not ends:
        return 0.0, 1.0
    low, high = min(ends), max(ends)
    top = max(high, min(max((y[0] for y in curves), default=high), high + 0.65 * max(high - low, 0.02 * high)))
    margin = (top - low) or 0.02 * high
    return low - 0.1 * margin, top + 0.04 * margin


def time_ticks(axes: Axes) -> None:
    """Ticks of a logarithmic axis of seconds in words."""
    low, high = axes.get_xlim()
    ticks = [time for time in TIMES if high < 100 * low or time not in BETWEEN]
    axes.set_xticks(ticks, [TIMES[time] for time in ticks])
    axes.minorticks_off()
    axes.set_xlim(low, high)
