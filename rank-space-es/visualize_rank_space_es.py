"""Draw a saved run of rank_space_es: three figures in viz/, or up to eight (see below). Reads files only, never trains.

python visualize_rank_space_es.py                              # the committed results, laptop preset, seed 0
python visualize_rank_space_es.py --run runs/laptop-seed0 --out /some/folder

The cosine to the gradient is drawn where the run measured it, errors in closed loop where it has them (--horizon), leaks where they learn, a
curriculum where the run is a rung of one, and of the committed results the committed ones. The figure of errors by cost is not of one run: it is drawn from the committed results, of other experiments too.
"""

from pathlib import Path

import numpy as np
from matplotlib.figure import Figure

from common.comparison import agreed
from common.curriculum_figures import curriculum, read_curricula
from common.errors import run_main
from common.figures import (
    BLUE,
    GREEN,
    GREY,
    PURPLE,
    SKY,
    VERMILION,
    Reference,
    SavedRun,
    draw_references,
    figure_arguments,
    headed_figure,
    label_right,
    load_run,
    save_figures,
    style,
)
from common.results import read_result
from common.results_figures import HALO, curve_limits, curve_of, draw_curves, time_ticks
from common.run_figures import SHAPES, adapter_spectra, closed_loop_error, leaks, prediction_vs_target
from common.truncated_figures import comparable, cosine_to_gradient, machine_of, read_results, training_curves

HERE = Path(__file__).resolve().parent
ROOT = HERE.parent
COMMITTED = HERE / "results" / "laptop-seed0"
SETTINGS = ("hidden_size", "rank", "sequence_length", "batch_size", "window", "probes")
FLOOR, BACKPROPAGATION = "reservoir-readout-only", "moving-mnist-bptt-baseline"
METHODS = {  # (slug, preset): name, colour and dashes of its line
    (HERE.name, "laptop"): ("rank-space ES", VERMILION, ()),
    (HERE.name, "both"): ("rank-space ES with U by feedback", VERMILION, (4, 1.6)),
    ("truncated-es", "laptop"): ("truncated ES", PURPLE, ()),
    ("truncated-es", "both"): ("truncated ES with U by feedback", PURPLE, (4, 1.6)),
    ("moving-mnist-es-reservoir", "laptop"): ("ES on whole sequences", SKY, ()),
    ("moving-mnist-es-reservoir", "long"): ("ES on whole sequences, long", SKY, (4, 1.6)),
    (BACKPROPAGATION, "laptop"): ("BPTT on U and V", BLUE, ()),
    (BACKPROPAGATION, "v"): ("BPTT on V", BLUE, (4, 1.6)),
    (BACKPROPAGATION, "muon"): ("BPTT on U and V, Muon", GREEN, ()),
}
SHARES = (0.25, 0.5, 0.75)  # of the way from floor to ceiling


def sizes(run: SavedRun) -> str:
    window = run.config["window"]
    return f"windows of L = {window} step{'s' * (window > 1)} · M = {run.config['probes']} probes in each"


# ---------------------------------------------------------------------------------------------------------------------
# Error by cost


def seed_0(root: Path, slug: str, preset: str) -> dict | None:
    """A committed result that has its history beside it; None where one of the two is not there."""
    path = root / slug / "results" / f"{preset}-seed0.json"
    return read_result(path) if path.is_file() and path.with_suffix(".history.jsonl").is_file() else None


def end_of_scale(root: Path, slug: str, one: dict) -> float | None:
    """Floor or ceiling: mean ridge validation MSE of preset laptop's seeds, of those that compare with `one`."""
    results = [result for result in read_results(root / slug / "results", "laptop-seed*") if comparable(result, one)]
    values = [result["ridge_validation_mse"] for result in results if "ridge_validation_mse" in result]
    return float(np.mean(values)) if values else None


def error_by_cost(root: Path) -> Figure | None:
    """Validation MSE over training against rollouts and seconds; None where there are fewer than two lines.

    A line each for seed 0 of METHODS, as far as they are committed under `root` and were trained on the problem of this experiment's preset
    laptop and on as many sequences.
    """
    one = seed_0(root, HERE.name, "laptop")
    if one is None:
        return None
    found = {method: seed_0(root, *method) for method in METHODS}
    found = {method: result for method, result in found.items() if result and comparable(result, one)}
    curves = {method: curve_of(root, result) for method, result in found.items()}
    curves = {method: curve for method, curve in curves.items() if len(curve["validation_mse"])}
    if len(curves) < 2:
        return None
    title, about, levels = "Validation error against what it took", [_about(one, [found[m] for m in curves])], []
    floor, ceiling = (end_of_scale(root, slug, one) for slug in (FLOOR, BACKPROPAGATION))
    if floor is not None and ceiling is not None and ceiling < floor:
        ends = {m: (floor - curve["validation_mse"][-1]) / (floor - ceiling) for m, curve in [*curves.items()][:2]}
        shares = (f"{METHODS[m][0]} " + f"{end:.0%}".replace("-", "−") for m, end in ends.items())
        title = f"Of the way from floor to ceiling: {', '.join(shares)}"
        about.append(
            f"floor {floor:.4f}: the frozen core; ceiling {ceiling:.4f}: BPTT on U and V; "
            "both validation MSE under a ridge readout, mean of the seeds"
        )
        for share in SHARES:
            levels.append(Reference(f"{share:.0%} of the way", floor - share * (floor - ceiling), GREY, (5, 2), ""))
    figure = headed_figure(11.5, 5.8, title, "\n".join(about))
    panels = figure.subplots(1, 2, sharey=True)
    for axes, cost in zip(panels, ("rollouts", "wallclock_s")):
        axes.set_xscale("log")
        draw_references(axes, levels)
        for method in reversed(curves):
            draw_curves(axes, [curves[method]], cost, *METHODS[method][1:])
    worst = agreed([one], "trivial_validation_mse.mean.all")
    scores = [curve["validation_mse"] for curve in curves.values()]
    panels[0].set_ylim(curve_limits(scores, [level.value for level in levels], worst))
    panels[0].set(
        xlabel="rollouts in training (of BPTT: forward and backward)", ylabel="validation MSE (standardised embedding)"
    )
    panels[1].set_xlabel("wallclock of training")
    time_ticks(panels[1])
    figure.align_xlabels(panels)
    for level in levels:
        place = {"xycoords": ("axes fraction", "data"), "textcoords": "offset points", "zorder": 6}
        look = {"color": level.colour, "fontsize": 9, "va": "bottom", "path_effects": HALO}
        panels[0].annotate(level.name, (0, level.value), (4, 2), **place, **look)
    labels = []
    for method, curve in curves.items():
        (name, colour, dashes), end = METHODS[method], float(curve["validation_mse"][-1])
        labels.append((end, f"{name}{' (dashed)' * bool(dashes)} {end:.4f}", colour))
    label_right(panels[1], labels)
    return figure


def _about(one: dict, results: list[dict]) -> str:
    """What all lines have in common."""
    problem = one["problem"]
    parts = [f"N = {problem['hidden_size']:,}", f"T = {problem['sequence_length']}"]
    if "train_sequences" in one["config"]:
        parts.append(f"{one['config']['train_sequences']:,} training sequences")
    return " · ".join([*parts, "seed 0", f"on {machine_of(results)}"])


def main(argv: list[str] | None = None) -> int:
    options = figure_arguments(__doc__.splitlines()[0], HERE, "viz/", argv)
    needs = ("train_loss", "decoder_loss", "validation_mse")
    run = load_run(options.run, COMMITTED, SHAPES, needs=needs, settings=SETTINGS)
    with style():
        figures = {
            "training_curves": training_curves(run, sizes(run), "probes"),
            "prediction_vs_target": prediction_vs_target(run),
            "closed_loop_error": closed_loop_error(run),
            "leaks": leaks(run),
            "adapter_spectra": adapter_spectra(run),
            "cosine_to_gradient": cosine_to_gradient(run, sizes(run)),
            "error_by_cost": error_by_cost(ROOT),
            "curriculum": curriculum(read_curricula(options.run, COMMITTED.parents[1]), "rank-space ES"),
        }
        save_figures(figures, options.out / "viz")
    return 0


if __name__ == "__main__":
    run_main(main)
