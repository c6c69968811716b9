"""What the figures of studies share: means over seeds along a setting, shades for its values, one scale for the error."""

from collections.abc import Callable, Collection, Iterable, Iterator, Sequence
from pathlib import Path

import matplotlib
import numpy as np
from matplotlib.axes import Axes
from matplotlib.ticker import NullFormatter

from common.errors import BadInput
from common.figures import figure_arguments, robust_limits, style, write_gif
from common.results import module_of
from common.study_data import ROLLOUTS, Study, curves, studies_in

LAST_MS = 2500  # that the last frame of a GIF stays


def shades(count: int) -> list[tuple]:
    """Colours for `count` values in their order, from dark to light, all readable on white."""
    return [matplotlib.colormaps["viridis"](share) for share in np.linspace(0, 0.85, max(count, 1))][:count]


def mean_with_seeds(
    axes: Axes,
    x: Sequence[float],
    values: Sequence[Sequence[float]],
    colour: str,
    dashes: tuple = (),
    joined: bool = True,
) -> None:
    """A line through the means of `values`, one list of seeds for each x; the seeds as dots, their range as a band. Empty lists are gaps.

    joined: False where x has no order: then there are dots alone.
    """
    kept = [(place, seeds) for place, seeds in zip(x, values) if len(seeds)]
    if kept and joined:
        x = [place for place, _ in kept]
        axes.fill_between(x, [min(s) for _, s in kept], [max(s) for _, s in kept], color=colour, alpha=0.15, lw=0)
        axes.plot(x, [np.mean(s) for _, s in kept], color=colour, ls=(0, dashes) if dashes else "-", lw=1.9, zorder=4)
    for place, seeds in kept:
        axes.plot([place] * len(seeds), seeds, "o", ms=4.5, color=colour, mew=0, alpha=0.8, zorder=5, clip_on=False)


def draw_runs(axes: Axes, rows: Iterable[dict], colour, dashes: tuple = ()) -> None:
    """Validation MSE against rollouts, a line for each run: the first bold."""
    for number, curve in enumerate(curves(rows)):
        x, y = (np.array([point[i] for point in curve]) for i in (ROLLOUTS, 2))
        shown = x > 0  # what cost nothing has no place on a logarithmic axis
        look = {"lw": 1.7, "zorder": 4} if number == 0 else {"lw": 0.9, "alpha": 0.4, "zorder": 3}
        axes.plot(x[shown], y[shown], color=colour, ls=(0, dashes) if dashes else "-", **look)


def rollouts_axis(axes: Axes) -> None:
    """Rollouts on a logarithmic axis, named at powers of ten alone."""
    axes.set(xscale="log", xlabel="rollouts in training")
    axes.xaxis.set_minor_formatter(NullFormatter())


def error_limits(rows: Iterable[dict], more: Iterable[float] = ()) -> tuple[float, float]:
    """Limits that show where the runs end, and the second half of how they got there; `more` is inside, too."""
    shown = [point[2] for curve in curves(rows) for point in curve[len(curve) // 2 :]]
    return robust_limits([*shown, *more], share=1.0)


def about(study: Study, name: str) -> str:
    """Sizes that all runs of a sweep share, preset and seeds, in one line."""
    sweep = study.content["sweeps"][name]
    names = (("N", "hidden_size"), ("k", "in_degree"), ("r", "rank"), ("T", "sequence_length"))
    parts = [f"{symbol} = {sweep['config'][key]:,}" for symbol, key in names if key in sweep["config"]]
    if "train_sequences" in sweep["config"]:
        parts.append(f"{sweep['config']['train_sequences']:,} training sequences")
    seeds = sweep["varied"].get("seed", [])
    return " · ".join([*parts, f"preset {study.preset}", f"seed{'s' * (len(seeds) > 1)} {', '.join(seeds)}"])


def study_gif(
    argv: list[str] | None,
    description: str,
    here: Path,
    shown: Callable[[Study], Collection],
    animate: Callable[[Study], Iterator[np.ndarray]],
    step_ms: int,
) -> int:
    """The whole of a script that draws a study's GIF; returns the exit code. Raises BadInput, also where there is nothing to be `shown`.

    here: the study's folder. animate: its frames, uint8 (height, width, 3), each step_ms long.
    """
    options = figure_arguments(description.splitlines()[0], here, "the GIF", argv)
    study = studies_in(here, options.run)[""]
    if not shown(study):
        raise BadInput(f"{options.run or here / 'measurements'}: no run is finished")
    with style():
        frames = list(animate(study))
    milliseconds = [step_ms] * (len(frames) - 1) + [LAST_MS]
    print(write_gif(options.out / f"{module_of(here.name)}.gif", frames, milliseconds))
    return 0
