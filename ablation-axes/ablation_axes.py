"""What else do the results hang on? One setting is varied at a time, all else stays; nothing is trained here.

    size        N, units                                        in-degree   k, entries of a row of W0
    gain        scale of W0: below, at and above 1              length      T, frames of a sequence
    digits      one against two                                 leak        fixed; one α that learns; α_i of each unit
    encoder     the draw of the frozen CNN                      data        the draw of the sequences
    roll-in     how many inputs are predictions in the end of training; scored up to 20 frames ahead, too

At each value two experiments are run: rank-space-es, U and V (evolution strategies), and moving-mnist-bptt-baseline, U and V with Muon
(the gradient through time). The floor of a run is its own core before training: the same ridge readout on the frozen reservoir. All
errors are test errors under a ridge readout, so that cores are compared and not decoders.

Start: `python ablation_axes.py --preset laptop --publish`; what its flags do stands in common/study.py.
"""

import statistics
from dataclasses import dataclass

from common.errors import run_main
from common.results import TRIVIAL
from common.results_page import MISSING, markdown_table, mean_and_spread, percent
from common.study import study_main
from common.study_data import Study, column
from common.sweep import Sweep

# --- What is run -----------------------------------------------------------------------------------------------------


@dataclass(frozen=True)
class Axis:
    """setting: the flag that is varied, without its dashes. name: in tables and figures. draws: its values are draws, not sizes.

    more: (flag, value) beside those of the other axes.
    """

    setting: str
    name: str
    draws: bool = False
    more: tuple[tuple[str, str], ...] = ()


AXES = {
    "size": Axis("hidden-size", "N, units"),
    "in-degree": Axis("in-degree", "k, entries of a row of W0"),
    "gain": Axis("gain", "gain of W0"),
    "length": Axis("sequence-length", "T, frames"),
    "digits": Axis("digits", "digits"),
    "leak": Axis("train-leak", "whether α learns"),
    "roll-in": Axis("roll-in", "share of inputs that are predictions", more=(("horizon", "20"),)),
    "encoder": Axis("encoder-seed", "draw of the frozen CNN", draws=True),
    "data": Axis("data-seed", "draw of the sequences", draws=True),
}
METHODS = {  # end of a sweep's name: (experiment, name in tables and figures)
    "es": ("rank-space-es", "ES in activities"),
    "bptt": ("moving-mnist-bptt-baseline", "BPTT"),
}
LEAKS, ROLL_INS = "no,scalar,per-unit", "0.0,0.5,1.0"
AHEAD = (1, 2, 3, 5, 10, 20)  # frames, of the table
# Of each preset: sizes of all runs; values of each axis; seeds of those that are no draws; the experiments' presets and what sets their budget.
TABLE = {
    "smoke": (
        "hidden-size=40 in-degree=4 sequence-length=4 train-sequences=64 validation-sequences=16 test-sequences=16 batch-size=8 rank=2",
        {"size": "24,40", "in-degree": "2,8", "gain": "0.8,1.2", "length": "3,5", "digits": "1,2", "leak": "no,per-unit", "roll-in": "0.0,1.0", "encoder": "0,1", "data": "0,1"},
        "0",
        {
            "es": ("smoke", "window=1 trains=both probes=4 noise=independent iterations=4 evaluate-every=1"),
            "bptt": ("smoke", "optimizer=muon iterations=40 evaluate-every=4"),
        },
    ),
    "laptop": (
        "hidden-size=256 train-sequences=2000 validation-sequences=500 test-sequences=1000 batch-size=16",
        {
            "size": "256,500,1000,2000,5000", "in-degree": "5,50,200", "gain": "0.5,0.8,1.0,1.2", "length": "20,50,100",
            "digits": "1,2", "leak": LEAKS, "roll-in": ROLL_INS, "encoder": "0,1,2,3,4", "data": "0,1,2,3,4",
        },
        "0,1,2",
        {"es": ("both", "iterations=200 evaluate-every=10"), "bptt": ("muon", "iterations=1200 evaluate-every=60")},
    ),
    # Not run yet.
    "h200": (
        "",
        {
            "size": "256,500,1000,2000,5000", "in-degree": "5,20,50,200", "gain": "0.5,0.8,1.0,1.2,1.5", "length": "20,50,100",
            "digits": "1,2", "leak": LEAKS, "roll-in": ROLL_INS, "encoder": "0,1,2,3,4", "data": "0,1,2,3,4",
        },
        "0,1,2",
        {"es": ("brief-both", ""), "bptt": ("brief-muon", "")},
    ),
}  # fmt: skip


def sweeps_of(preset: str) -> dict[str, Sweep]:
    """The sweeps of a preset, by name: `size-es`, `size-bptt`, …"""
    sizes, values, seeds, budgets = TABLE[preset]
    sweeps = {}
    for axis, choices in values.items():
        for method, (base, budget) in budgets.items():
            flags = dict(word.split("=") for word in f"{sizes} {budget}".split())
            flags |= dict(AXES[axis].more)
            flags.pop(AXES[axis].setting, None)
            vary = {AXES[axis].setting: choices.split(","), "seed": ["0"] if AXES[axis].draws else seeds.split(",")}
            words = [f"--{name}={value}" for name, value in flags.items()]
            sweeps[f"{axis}-{method}"] = Sweep(METHODS[method][0], base, vary, words)
    return sweeps


PRESETS = {preset: sweeps_of(preset) for preset in TABLE}

# --- What is compared ------------------------------------------------------------------------------------------------


def axes_of(study: Study) -> list[str]:
    """The axes of which there is a finished run."""
    return [axis for axis in AXES if values_of(study, axis)]


def values_of(study: Study, axis: str) -> list[str]:
    """The values at which there is a finished run, in the order in which they were asked for."""
    points = [study.points(f"{axis}-{method}", AXES[axis].setting) for method in METHODS]
    asked = [sweep["varied"][AXES[axis].setting] for name, sweep in study.content["sweeps"].items() if name.rpartition("-")[0] == axis]  # fmt: skip
    return list(dict.fromkeys(value for values in asked for value in values if any(value in p for p in points)))


def errors(study: Study, axis: str, value: str) -> dict[str, list[float]]:
    """Test MSE under a ridge readout at one value: `floor`, of the core before training, the same in all runs (their mean, but for
    rounding), and of each method."""
    rows = {method: study.rows(f"{axis}-{method}", **{AXES[axis].setting: value}) for method in METHODS}
    floor = [error for method in METHODS for error in column(rows[method], "ridge_test_mse_at_start")]
    return {
        "floor": [statistics.fmean(floor)] if floor else [],
        **{method: column(rows[method], "ridge_test_mse") for method in METHODS},
    }


def share(found: dict[str, list[float]]) -> float | None:
    """How far ES has come on the way from the frozen core to BPTT; None where one of them is missing, or BPTT has not gained."""
    if not all(found.values()):
        return None
    floor, es, bptt = (statistics.fmean(found[name]) for name in ("floor", "es", "bptt"))
    return (floor - es) / (floor - bptt) if bptt < floor else None


# --- Tables ----------------------------------------------------------------------------------------------------------


def tables(study: Study) -> str:
    """The Markdown tables of README §Results, one an axis, and one of predictions several frames ahead."""
    return "\n\n".join([*(_table(study, axis) for axis in axes_of(study)), *_ahead(study)])


def _table(study: Study, axis: str) -> str:
    columns = [f"{study.preset}: {AXES[axis].name}", "frozen core", *(name for _, name in METHODS.values()), "ES, of the way to BPTT"]  # fmt: skip
    points = {value: errors(study, axis, value) for value in values_of(study, axis)}
    rows = [[value, *map(_cell, found.values()), percent(share(found))] for value, found in points.items()]
    if AXES[axis].draws and len(points) > 1:
        draws = {name: [error for found in points.values() for error in found[name]] for name in ("floor", *METHODS)}
        rows.append([f"all {len(points)} draws", *map(_cell, draws.values()), percent(share(draws))])
    return markdown_table(columns, rows)


def closed_loop(study: Study) -> dict[str, list[list[float]]]:
    """Test MSE by frames ahead, in closed loop, under the own decoder: of each predictor that knows no reservoir one list, of `es 0.5` (method and
    share of inputs that were predictions) one for each seed. Empty where nothing has been scored so."""
    found: dict[str, list[list[float]]] = {}
    for method in METHODS:
        for value, rows in study.points(f"roll-in-{method}", "roll-in").items():
            scored = [row for row in rows if row.get("closed_loop_test_mse")]
            for row in scored[:1]:
                found = {name: [errors_H] for name, errors_H in row["trivial_closed_loop_test_mse"].items()} | found
            if scored:
                found[f"{method} {value}"] = column(scored, "closed_loop_test_mse")
    return found


def name_of(line: str) -> str:
    """A line of `closed_loop` for reading."""
    method, _, value = line.partition(" ")
    return f"{METHODS[method][1]}, {value}" if method in METHODS else TRIVIAL[line]


def _ahead(study: Study) -> list[str]:
    found = closed_loop(study)
    if not found:
        return []
    horizon = min(len(errors_H) for lists in found.values() for errors_H in lists)
    ahead = [count for count in AHEAD if count <= horizon]
    columns = [f"{study.preset}: test MSE in closed loop, frames ahead", *map(str, ahead)]
    rows = [[name_of(line), *(_cell([errors_H[count - 1] for errors_H in lists]) for count in ahead)] for line, lists in found.items()]  # fmt: skip
    return [markdown_table(columns, rows)]


def _cell(values: list[float]) -> str:
    return mean_and_spread(values) if values else MISSING


def main(argv: list[str] | None = None) -> int:
    return study_main(argv, __file__, __doc__, PRESETS, tables)


if __name__ == "__main__":
    run_main(main)
