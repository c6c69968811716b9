"""The figure of a curriculum: what each rung took over, what became of it, and where the frozen core stands. Reads files only."""

from collections.abc import Sequence
from pathlib import Path

from matplotlib.figure import Figure

from common.figures import BLACK, GREEN, GREY, PALE, VERMILION, headed_figure, header_legend
from common.results import CURRICULUM, curricula, read_curriculum

WORST = 1.02  # in units in which the mean predictor has 1: scores above it are cut off


def read_curricula(run: Path | None, folder: Path) -> list[dict]:
    """The curriculum that a run folder is a rung of; without one those that are committed in an experiment's folder, by seed, of the preset that is
    named after them or else the first one. Raises BadInput."""
    paths = curricula(folder) if run is None else [run.parent / CURRICULUM]
    found = [read_curriculum(path) for path in paths if path.is_file()]
    presets = sorted({content["preset"] for content in found}, key=lambda preset: (preset != "curriculum", preset))
    return sorted((c for c in found if c["preset"] == presets[0]), key=lambda content: content["seed"])


def curriculum(found: Sequence[dict], label: str) -> Figure | None:
    """Validation MSE over the rungs, which have the same width each, a line for each seed; and of each rung the test MSE under a ridge readout of
    the trained and of the frozen core. None where there is no curriculum. label: of the experiment."""
    if not found:
        return None
    first = found[0]
    names, config = [rung["name"] for rung in first["rungs"]], first["config"]
    start = f"begun at T = {config['sequence_length']}, N = {config['hidden_size']:,}" + (
        f", r = {config['rank']}" if "rank" in config else ""
    )
    seeds = f"seed{'s' * (len(found) > 1)} {', '.join(str(content['seed']) for content in found)}"
    figure = headed_figure(
        11.5, 5.2, f"Up the brief's schedule: {label}",
        f"Each rung changes one thing more and begins with what the one before has learned; {start}; {seeds}.", legend_rows=1,
    )  # fmt: skip
    axes = figure.subplots()
    handles: dict[str, object] = {}
    for place in range(1, len(names)):
        axes.axvline(place, color=PALE, lw=1, zorder=0.5)
    for content in reversed(found):
        bold = content is first
        for place, rung in enumerate(content["rungs"]):
            scores = [min(score, WORST) for *_, score in rung["curve"]]
            share = [place + (i + 1) / (len(scores) + 1) for i in range(len(scores))]
            look = {"color": VERMILION, "lw": 1.8 if bold else 1.0, "alpha": 1 if bold else 0.35}
            (line,) = axes.plot(share, scores, **look)
            handles["validation MSE, own decoder"] = line
            if "validation_mse_taken_over" in rung:
                taken = min(rung["validation_mse_taken_over"], WORST)
                (dot,) = axes.plot(
                    place + 0.02, taken, "o", ms=5, mfc="white", mec=BLACK, alpha=look["alpha"], zorder=4
                )
                handles["as taken over"] = dot
            ends = (place + 0.08, place + 0.92)
            frozen = [rung["ridge_test_mse_at_start"]] * 2
            (floor,) = axes.plot(ends, frozen, color=GREEN, lw=1.6, ls=(0, (4, 1.6)), alpha=look["alpha"])
            (trained,) = axes.plot(place + 0.94, rung["ridge_test_mse"], "D", ms=5, color=GREY, alpha=look["alpha"])
            handles["frozen core, ridge readout, test"] = floor
            handles["trained core, ridge readout, test"] = trained
    axes.set_xlim(0, len(names))
    axes.set_xticks([place + 0.5 for place in range(len(names))], names)
    axes.tick_params(axis="x", length=0)
    axes.grid(axis="x", visible=False)
    axes.set(ylabel="MSE (1: predicts the mean)")
    for handle, name in zip(handles.values(), handles):
        handle.set_label(name)
    header_legend(figure, list(handles.values()), columns=4)
    return figure
