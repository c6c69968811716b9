"""Draw what ablation_rank has measured: four figures in viz/. Reads files only, never trains.

python visualize_ablation_rank.py                              # every committed measurement
python visualize_ablation_rank.py --run runs/laptop --out /some/folder

Figures of preset laptop have plain names, those of other presets end in theirs.
"""

import math
from pathlib import Path

import numpy as np
from ablation_rank import (
    FLOOR,
    MEASURES,
    METHODS,
    SCORES,
    at_end,
    floor_of,
    limit,
    means,
    methods_of,
    rank_needed,
    ranks_of,
)
from matplotlib.axes import Axes
from matplotlib.colors import Normalize
from matplotlib.figure import Figure
from matplotlib.lines import Line2D
from matplotlib.ticker import MaxNLocator, NullLocator

from common.errors import run_main
from common.figures import (
    BLUE,
    GREEN,
    PURPLE,
    VERMILION,
    figure_arguments,
    headed_figure,
    header_legend,
    label_right,
    robust_limits,
    save_figures,
    style,
)
from common.run_figures import effective_rank
from common.study_data import ROLLOUTS, SECONDS, Study, studies_in
from common.study_figures import about, draw_runs, error_limits, mean_with_seeds, rollouts_axis, shades
from common.text import duration, in_words

HERE = Path(__file__).resolve().parent
LOOKS = {  # colour and dashes
    "parameter-noise": (PURPLE, ()),
    "rank-space": (VERMILION, (4, 1.6)),
    "rank-space-both": (VERMILION, ()),
    "bptt-v": (BLUE, (4, 1.6)),
    "bptt": (BLUE, ()),
}


def rank_axis(axes: Axes, ranks: list[int]) -> None:
    """r on a logarithmic axis, with a tick for each."""
    axes.set_xscale("log", base=2)
    axes.set_xticks(ranks, [str(rank) for rank in ranks])
    axes.xaxis.set_minor_locator(NullLocator())
    axes.set_xlim(ranks[0] / 1.25, ranks[-1] * 1.25)
    axes.set_xlabel("r, columns of the adapter")


def legend_of(figure: Figure, names: list[str], floor: bool, columns: int | None = None) -> None:
    handles = [
        Line2D([], [], color=LOOKS[name][0], ls=(0, LOOKS[name][1]) if LOOKS[name][1] else "-", label=METHODS[name][1])
        for name in names
    ]
    handles += [Line2D([], [], color=GREEN, dashes=(1, 1.5), label="r = 0: the readout alone")] * floor
    header_legend(figure, handles, columns)


def heading(study: Study, measure: str = "at the end") -> str:
    """The answer in a line: of each method, the rank that brings 95 % of its best gain."""
    floor, parts = floor_of(study, MEASURES[measure][1]), []
    for name in methods_of(study) if floor else []:
        needed = rank_needed(means(study, name, measure), float(np.mean(floor)))
        if needed is not None:
            parts.append(f"{METHODS[name][1]}: {needed}")
    return f"The r that brings 95 % of the best gain over r = 0. {'; '.join(parts)}" if parts else "Error by rank"


def error_heatmap(study: Study) -> Figure:
    """Methods × r: test MSE under a ridge readout, mean over seeds."""
    names, ranks, floor = methods_of(study), ranks_of(study), floor_of(study, ridge=True)
    rows = [{rank: float(np.mean(v)) for rank in ranks if (v := at_end(study, name, rank))} for name in names]
    values = np.array([[row.get(rank, np.nan) for rank in ranks] for row in rows])
    if floor:
        values = np.concatenate([np.full((1, len(ranks)), np.mean(floor)), values])
    labels = ["r = 0: the readout alone"] * bool(floor) + [METHODS[name][1] for name in names]
    figure = headed_figure(2.8 + 1.05 * len(ranks), 1.6 + 0.55 * len(labels), f"Which rank, which way to train: {SCORES[True]}", about(study, names[0]))  # fmt: skip
    axes = figure.subplots()
    low, high = np.nanmin(values), np.nanmax(values)
    image = axes.imshow(
        values, cmap="viridis_r", norm=Normalize(low, high if high > low else low + 1e-9), aspect="auto"
    )
    for (i, j), value in np.ndenumerate(values):
        if np.isfinite(value):
            dark = image.norm(value) > 0.5
            axes.text(j, i, f"{value:.4f}", ha="center", va="center", color="white" if dark else "black", fontsize=9)
    axes.set_xticks(range(len(ranks)), [f"r = {rank}" for rank in ranks])
    axes.set_yticks(range(len(labels)), labels)
    axes.tick_params(length=0)
    axes.grid(False)
    axes.spines[:].set_visible(False)
    return figure


def error_by_rank(study: Study) -> Figure:
    """Error against r at the end, at equal rollouts and at equal time; the floor as a line."""
    names, ranks = methods_of(study), ranks_of(study)
    figure = headed_figure(13, 5.4, heading(study), f"{about(study, names[0])}; dots are seeds", legend_rows=1)
    legend_of(figure, names, bool(study.rows(FLOOR)))
    panels = figure.subplots(1, len(MEASURES))
    for axes, (measure, (of, ridge)) in zip(panels, MEASURES.items()):
        shown = []
        for name in names:
            errors = [of(study, name, rank) for rank in ranks]
            mean_with_seeds(axes, ranks, errors, *LOOKS[name])
            shown += [error for values in errors for error in values]
        for floor in floor_of(study, ridge):
            axes.axhline(floor, color=GREEN, lw=1.3, dashes=(1, 1.5), zorder=2)
            shown.append(floor)
        rank_axis(axes, ranks)
        axes.set(ylim=robust_limits(shown, share=1.0), ylabel=SCORES[ridge], title=measure[0].upper() + measure[1:])
    for axes, cost, text in zip(panels[1:], (ROLLOUTS, SECONDS), (in_words, duration)):
        spent = limit(study, cost)
        axes.set_title(f"{axes.get_title(loc='left')}: {text(spent) if math.isfinite(spent) else 'not known'}")
    return figure


def training_curves(study: Study) -> Figure:
    """Validation MSE against rollouts, a panel for each method, a shade for each r."""
    names, ranks = methods_of(study), ranks_of(study)
    rows = [row for name in names for row in study.rows(name)]
    title = "Validation error over training, by rank"
    subtitle = f"{about(study, names[0])}; first seed bold. The learning rates fall over a run; errors are under the runs' own decoders"
    figure = headed_figure(max(3.1 * len(names), 8), 4.6, title, subtitle, legend_rows=1)
    colours = dict(zip(ranks, shades(len(ranks))))
    header_legend(figure, [Line2D([], [], color=colour, label=f"r = {rank}") for rank, colour in colours.items()])
    panels = np.atleast_1d(figure.subplots(1, len(names), sharex=True, sharey=True))
    for axes, name in zip(panels, names):
        for rank in ranks:
            draw_runs(axes, study.rows(name, rank=str(rank)), colours[rank])
        rollouts_axis(axes)
        axes.set_title(METHODS[name][1], fontsize=9.5)
    panels[0].set(ylabel="validation MSE", ylim=error_limits(rows, floor_of(study, ridge=False)))
    return figure


def singular_values(study: Study) -> Figure | None:
    """Singular values of the learned ΔW, of the first seed, a panel for each method, a line for each r."""
    names = [name for name in methods_of(study) if any(row["singular_values"] for row in study.rows(name))]
    if not names:
        return None
    ranks = ranks_of(study)
    title = "Singular values of the learned ΔW = U Vᵀ, by rank"
    figure = headed_figure(max(3.1 * len(names), 8), 4.6, title, f"{about(study, names[0])}; of the first seed; numbers: effective ranks", legend_rows=1)  # fmt: skip
    colours = dict(zip(ranks, shades(len(ranks))))
    header_legend(figure, [Line2D([], [], color=colour, label=f"r = {rank}") for rank, colour in colours.items()])
    panels, labels = np.atleast_1d(figure.subplots(1, len(names), sharey=True)), []
    for axes, name in zip(panels, names):
        labels.append([])
        for rank in ranks:
            row = next((row for row in study.rows(name, rank=str(rank)) if any(row["singular_values"])), None)
            if row is not None:
                values = np.sort([value for value in row["singular_values"] if value > 0])[::-1]
                axes.plot(np.arange(1, len(values) + 1), values, color=colours[rank], marker=".", ms=5, lw=1.2)
                labels[-1].append((float(values[-1]), f"{effective_rank(values):.1f}", colours[rank]))
        axes.set(yscale="log", xlabel="singular value, by size", xlim=(0, ranks[-1] + 1))
        axes.xaxis.set_major_locator(MaxNLocator(5, integer=True))
        axes.set_title(METHODS[name][1], fontsize=9.5)
    panels[0].set_ylabel("singular value")
    for axes, words in zip(panels, labels):
        label_right(axes, words, size=8)
    return figure


FIGURES = (error_heatmap, error_by_rank, training_curves, singular_values)


def main(argv: list[str] | None = None) -> int:
    options = figure_arguments(__doc__.splitlines()[0], HERE, "viz/", argv)
    with style():
        for end, study in studies_in(HERE, options.run).items():
            drawn = {f"{draw.__name__}{end}": draw(study) for draw in FIGURES} if methods_of(study) else {}
            save_figures(drawn, options.out / "viz")
    return 0


if __name__ == "__main__":
    run_main(main)
