"""Draw what ablation_axes has measured: a figure for each axis and the training curves, in viz/. Reads files only, never trains.

python visualize_ablation_axes.py                              # every committed measurement
python visualize_ablation_axes.py --run runs/laptop --out /some/folder

Figures of preset laptop have plain names, those of other presets end in theirs.
"""

from pathlib import Path

import numpy as np
from ablation_axes import AXES, METHODS, axes_of, closed_loop, errors, name_of, share, values_of
from matplotlib.axes import Axes
from matplotlib.figure import Figure
from matplotlib.lines import Line2D
from matplotlib.ticker import MaxNLocator

from common.errors import run_main
from common.figures import (
    BLUE,
    GREEN,
    GREY,
    INK,
    VERMILION,
    figure_arguments,
    headed_figure,
    header_legend,
    label_right,
    robust_limits,
    save_figures,
    style,
)
from common.study_data import Study, studies_in
from common.study_figures import about, draw_runs, error_limits, mean_with_seeds, rollouts_axis, shades

HERE = Path(__file__).resolve().parent
LOOKS = {"floor": (GREEN, (1, 1.5)), "es": (VERMILION, ()), "bptt": (BLUE, ())}
NAMES = {"floor": "frozen core", **{method: name for method, (_, name) in METHODS.items()}}


def value_axis(axes: Axes, axis: str, values: list[str]) -> None:
    """The values of an axis side by side, evenly, whatever their size."""
    axes.set_xticks(range(len(values)), values)
    axes.set_xlim(-0.4, len(values) - 0.6)
    axes.set_xlabel(AXES[axis].name)


def legend_of(figure: Figure) -> None:
    handles = [
        Line2D([], [], color=colour, ls=(0, dashes) if dashes else "-", marker="o", ms=4, label=NAMES[name])
        for name, (colour, dashes) in LOOKS.items()
    ]
    header_legend(figure, handles)


def sweep_of(study: Study, axis: str) -> str:
    """The name of a sweep along an axis."""
    return next(f"{axis}-{method}" for method in METHODS if study.rows(f"{axis}-{method}"))


def draw_axis(study: Study, axis: str) -> Figure:
    """Left test errors of the frozen core, of ES and of BPTT along an axis; right how far ES has come from the one to the other."""
    values = values_of(study, axis)
    found = {value: errors(study, axis, value) for value in values}
    shares = [share(found[value]) for value in values]
    title = f"{AXES[axis].name[0].upper()}{AXES[axis].name[1:]}: {', '.join(values)}"
    subtitle = f"{about(study, sweep_of(study, axis))}; dots are runs"
    figure = headed_figure(10, 4.6, title, subtitle, legend_rows=1)
    legend_of(figure)
    left, right = figure.subplots(1, 2, width_ratios=[1.4, 1])
    for name, (colour, dashes) in LOOKS.items():
        lists = [found[value][name] for value in values]
        mean_with_seeds(left, range(len(values)), lists, colour, dashes, joined=not AXES[axis].draws)
    shown = [error for value in values for errors_of in found[value].values() for error in errors_of]
    left.set(ylim=robust_limits(shown, share=1.0), ylabel="test MSE under a ridge readout")
    for place, part in enumerate(shares):
        if part is not None:
            right.bar(place, 100 * part, width=0.55, color=VERMILION)
            right.annotate(f"{100 * part:.0f} %".replace("-", "−"), (place, 100 * max(part, 0)), (0, 3), textcoords="offset points", ha="center", color=INK, fontsize=9)  # fmt: skip
    right.axhline(100, color=BLUE, lw=1.3)
    right.axhline(0, color=GREEN, lw=1.3, dashes=(1, 1.5))
    parts = [100 * part for part in shares if part is not None]
    right.set(ylim=(max(min([0.0, *parts]) - 8, -100), min(max([100.0, *parts]) + 12, 250)), ylabel="%")
    right.set_title("ES, of the way from frozen core to BPTT")
    for panel in (left, right):
        value_axis(panel, axis, values)
    return figure


def draw_closed_loop(study: Study) -> Figure | None:
    """Test MSE by frames ahead when a model reads its own predictions, a panel for each method, a shade for each share of inputs that were predictions
    in training, as bands over the seeds; beside them the predictors that know no reservoir. None where nothing has been scored so."""
    found = closed_loop(study)
    if not found:
        return None
    title = "Several frames ahead, from predictions in place of frames"
    figure = headed_figure(
        11, 4.6, title, f"{about(study, sweep_of(study, 'roll-in'))}; the model reads frames 1 … T, then its own predictions;\nnumbers: share of training inputs that were predictions in the end"
    )  # fmt: skip
    panels = figure.subplots(1, len(METHODS), sharey=True)
    shown = [error for lists in found.values() for errors_H in lists for error in errors_H]
    for panel, method in zip(panels, METHODS):
        labels = []
        own = [line for line in found if line.startswith(f"{method} ")]
        for line, colour in [*zip(own, shades(len(own))), *((name, GREY) for name in found if " " not in name)]:
            ahead = range(1, len(found[line][0]) + 1)
            mean_H = np.mean(found[line], axis=0)
            panel.fill_between(
                ahead, np.min(found[line], axis=0), np.max(found[line], axis=0), color=colour, alpha=0.2, lw=0
            )
            panel.plot(
                ahead, mean_H, color=colour, lw=1.9 if line in own else 1.1, ls="-" if line in own else (0, (4, 2))
            )
            labels.append((mean_H[-1], line.partition(" ")[2] or name_of(line), colour))
        panel.set(xlabel="frames ahead", title=NAMES[method], ylim=robust_limits(shown, share=1.0))
        panel.xaxis.set_major_locator(MaxNLocator(integer=True))
        label_right(panel, labels)
    panels[0].set_ylabel("test MSE (1: predicts the mean)")
    return figure


def training_curves(study: Study) -> Figure:
    """Validation MSE against rollouts: a panel for each axis, a shade for each value."""
    shown = axes_of(study)
    rows = -(-len(shown) // 4)
    title = "Validation error over training, along every axis"
    subtitle = (
        f"preset {study.preset}; values from dark to light; solid: {NAMES['es']}, dashed: {NAMES['bptt']}; first seed bold;\n"
        "errors are under the runs' own decoders"
    )
    figure = headed_figure(13, 0.9 + 3.2 * rows, title, subtitle)
    panels = figure.subplots(rows, min(len(shown), 4), squeeze=False).flatten()
    for panel in panels[len(shown) :]:
        panel.set_visible(False)
    for panel, axis in zip(panels, shown):
        values = values_of(study, axis)
        drawn = []
        for value, colour in zip(values, shades(len(values))):
            for method, dashes in (("es", ()), ("bptt", (4, 1.6))):
                runs = study.rows(f"{axis}-{method}", **{AXES[axis].setting: value})
                draw_runs(panel, runs, colour, dashes)
                drawn += runs
        rollouts_axis(panel)
        panel.set_ylim(error_limits(drawn))
        panel.set_title(f"{AXES[axis].name}: {', '.join(values)}", fontsize=9)
    for panel in panels[:: min(len(shown), 4)]:
        panel.set_ylabel("validation MSE")
    return figure


def main(argv: list[str] | None = None) -> int:
    options = figure_arguments(__doc__.splitlines()[0], HERE, "viz/", argv)
    with style():
        for end, study in studies_in(HERE, options.run).items():
            drawn = {f"{axis.replace('-', '_')}{end}": draw_axis(study, axis) for axis in axes_of(study)}
            drawn |= {f"training_curves{end}": training_curves(study)} if drawn else {}
            drawn[f"closed_loop{end}"] = draw_closed_loop(study)
            save_figures(drawn, options.out / "viz")
    return 0


if __name__ == "__main__":
    run_main(main)
