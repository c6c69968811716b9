"""Draw the GIF of what ablation_axes has measured: errors along every axis, as training goes on. Reads files only, never trains.

python make_ablation_axes_gif.py                              # the committed measurement of preset laptop
python make_ablation_axes_gif.py --run runs/laptop --out /some/folder

Nothing is interpolated: drawn is the last score for which a run had spent no more than the share shown of its own rollouts; mean of
the seeds.
"""

from collections.abc import Iterator
from pathlib import Path

import numpy as np
from ablation_axes import AXES, METHODS, axes_of, values_of
from visualize_ablation_axes import LOOKS, NAMES, value_axis

from common.errors import run_main
from common.figures import headed_figure, header_legend, pixels
from common.study_data import ROLLOUTS, Study, at_cost, curves
from common.study_figures import error_limits, study_gif

HERE = Path(__file__).resolve().parent
FRAMES, STEP_MS, GIF_DPI = 40, 130, 80


def at_share(rows: list[dict], share: float) -> list[float]:
    """Validation MSE of each run when it had spent this share of the rollouts between its first and its last score."""
    errors = []
    for curve in curves(rows):
        first, last = curve[0][ROLLOUTS], curve[-1][ROLLOUTS]
        errors.append(at_cost(curve, ROLLOUTS, first + share * (last - first)))
    return errors


def animate(study: Study) -> Iterator[np.ndarray]:
    """uint8 (height, width, 3), FRAMES of them."""
    shown = axes_of(study)
    rows = -(-len(shown) // 4)
    figure = headed_figure(10.5, 1.1 + 2.3 * rows, "One setting at a time, as training goes on", f"validation MSE under the own decoder; preset {study.preset}", legend_rows=1)  # fmt: skip
    figure.set_dpi(GIF_DPI)
    panels = figure.subplots(rows, min(len(shown), 4), squeeze=False).flatten()
    for panel in panels[len(shown) :]:
        panel.set_visible(False)
    lines = {}
    for panel, axis in zip(panels, shown):
        value_axis(panel, axis, values_of(study, axis))
        panel.set_xlabel(panel.get_xlabel(), fontsize=8.5)
        panel.tick_params(labelsize=7.5)
        panel.set_ylim(error_limits([row for method in METHODS for row in study.rows(f"{axis}-{method}")]))
        for method in METHODS:
            look = {"color": LOOKS[method][0], "marker": "o", "ms": 4, "ls": "" if AXES[axis].draws else "-"}
            (lines[axis, method],) = panel.plot([], [], label=NAMES[method], **look)
    header_legend(figure, [lines[shown[0], method] for method in METHODS])
    for share in np.linspace(0, 1, FRAMES):
        for (axis, method), line in lines.items():
            points = [study.rows(f"{axis}-{method}", **{AXES[axis].setting: value}) for value in values_of(study, axis)]
            found = [(place, np.mean(e)) for place, rows in enumerate(points) if (e := at_share(rows, share))]
            line.set_data(*np.array(found).reshape(-1, 2).T)
        panels[0].set_title(f"{100 * share:.0f} % of the training", fontsize=10)
        yield pixels(figure)


def main(argv: list[str] | None = None) -> int:
    return study_gif(argv, __doc__, HERE, axes_of, animate, STEP_MS)


if __name__ == "__main__":
    run_main(main)
