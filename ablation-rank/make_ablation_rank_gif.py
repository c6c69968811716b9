"""Draw the GIF of what ablation_rank has measured: the error by rank, as rollouts are spent. Reads files only, never trains.

python make_ablation_rank_gif.py                              # the committed measurement of preset laptop
python make_ablation_rank_gif.py --run runs/laptop --out /some/folder

Nothing is interpolated: drawn is the last score for which a run had spent no more rollouts than are shown; mean of the seeds.
"""

from collections.abc import Iterator
from pathlib import Path

import numpy as np
from ablation_rank import METHODS, floor_of, methods_of, ranks_of
from visualize_ablation_rank import LOOKS, legend_of, rank_axis

from common.errors import run_main
from common.figures import GREEN, headed_figure, pixels
from common.study_data import ROLLOUTS, Study, all_at_cost, curves
from common.study_figures import about, error_limits, study_gif
from common.text import in_words

HERE = Path(__file__).resolve().parent
FRAMES, STEP_MS, GIF_DPI = 48, 120, 90


def budgets(study: Study) -> list[float]:
    """Rollouts that are shown, one for each frame: evenly on a logarithmic scale, from the first score to the last."""
    spent = [
        point[ROLLOUTS] for name in METHODS for curve in curves(study.rows(name)) for point in curve if point[ROLLOUTS]
    ]
    return [*np.geomspace(min(spent), max(spent), FRAMES)[:-1], max(spent)] if spent else []


def animate(study: Study) -> Iterator[np.ndarray]:
    """uint8 (height, width, 3), one for each of `budgets`."""
    names, ranks, floor = methods_of(study), ranks_of(study), floor_of(study, ridge=False)
    figure = headed_figure(
        8.6, 4.7, "What rank can be afforded, as rollouts are spent", about(study, names[0]), legend_rows=2
    )
    figure.set_dpi(GIF_DPI)
    legend_of(figure, names, bool(floor), columns=3)
    axes = figure.subplots()
    rank_axis(axes, ranks)
    rows = [row for name in names for row in study.rows(name)]
    axes.set(ylabel="validation MSE, own decoder", ylim=error_limits(rows, floor))
    for value in floor:
        axes.axhline(value, color=GREEN, lw=1.3, dashes=(1, 1.5))
    lines = {}
    for name in names:
        colour, dashes = LOOKS[name]
        look = {"color": colour, "ls": (0, dashes) if dashes else "-", "marker": "o", "ms": 5, "lw": 1.9}
        (lines[name],) = axes.plot([], [], **look)
    for budget in budgets(study):
        for name, line in lines.items():
            errors = {rank: all_at_cost(study.rows(name, rank=str(rank)), ROLLOUTS, budget) for rank in ranks}
            found = [(rank, np.mean(values)) for rank, values in errors.items() if values]
            line.set_data(*np.array(found).reshape(-1, 2).T)
        axes.set_title(f"{in_words(budget)} rollouts")
        yield pixels(figure)


def main(argv: list[str] | None = None) -> int:
    return study_gif(argv, __doc__, HERE, budgets, animate, STEP_MS)


if __name__ == "__main__":
    run_main(main)
