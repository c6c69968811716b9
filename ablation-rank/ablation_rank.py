"""What rank does the task need, and what rank can evolution strategies afford? r is varied, all else stays; nothing is trained here.

    floor            reservoir-readout-only: r = 0, ΔW = 0, the readout alone
    parameter-noise  truncated-es: noise in V's N r weights; V alone
    rank-space       rank-space-es: noise of independent signs in the adapter's r activities, 32 probes whatever r; V alone
    rank-space-both  the same, U as well by feedback of the error
    bptt-v           moving-mnist-bptt-baseline: the gradient through time, with Muon; V alone
    bptt             the same, U and V

An adapter's ΔW = U Vᵀ has N r numbers in each factor. What the task needs shows where the gradient is exact, in bptt; noise has more
to find out the larger r is, and the same number of probes or members to do it with. Runs are compared in three ways: at their
end, by the test error of a ridge readout refitted on the final core; and by the validation error under their own decoders at the largest
number of rollouts, and of seconds of training, that all runs have spent.

Start: `python ablation_rank.py --preset laptop --publish`; what its flags do stands in common/study.py.
"""

import math
import statistics
from collections.abc import Callable

from common.errors import run_main
from common.results_page import MISSING, markdown_table, mean_and_spread
from common.study import study_main
from common.study_data import ROLLOUTS, SECONDS, Study, all_at_cost, column, curves, reached
from common.sweep import Sweep
from common.text import duration, in_words

# --- What is run -----------------------------------------------------------------------------------------------------

FLOOR = "floor"
METHODS = {  # sweep: (experiment, name in tables and figures)
    "parameter-noise": ("truncated-es", "ES in weights, V"),
    "rank-space": ("rank-space-es", "ES in activities, V"),
    "rank-space-both": ("rank-space-es", "ES in activities, U by feedback"),
    "bptt-v": ("moving-mnist-bptt-baseline", "BPTT, V"),
    "bptt": ("moving-mnist-bptt-baseline", "BPTT, U and V"),
}
NOISE = ["--noise", "independent"]  # orthogonal probes would need r ≥ 32
# Of each preset: sizes of all runs; values of r; seeds; and of each sweep the experiment's preset and the flags that set its budget.
# The laptop's iterations are such that at r = 32 all methods train for about as long.
TABLE = {
    "smoke": (
        "--hidden-size 40 --in-degree 4 --sequence-length 4 --train-sequences 64 --validation-sequences 16 --test-sequences 16",
        "1,2",
        "0",
        {
            FLOOR: ("smoke", "--iterations 4 --evaluate-every 1"),
            "parameter-noise": ("smoke", "--window 2 --iterations 4 --evaluate-every 1"),
            "rank-space": ("smoke", "--window 1 --trains v --iterations 4 --evaluate-every 1"),
            "rank-space-both": ("smoke", "--window 1 --trains both --iterations 4 --evaluate-every 1"),
            "bptt-v": ("smoke", "--trains v --optimizer muon --iterations 60 --evaluate-every 6"),
            "bptt": ("smoke", "--optimizer muon --iterations 60 --evaluate-every 6"),
        },
    ),
    "laptop": (
        "--hidden-size 256 --in-degree 50 --train-sequences 2000 --validation-sequences 500 --test-sequences 1000",
        "1,2,4,8,16,32,64",
        "0,1,2",
        {
            FLOOR: ("laptop", "--iterations 60 --evaluate-every 4"),
            "parameter-noise": ("laptop", "--iterations 400 --batch-size 16 --evaluate-every 10"),
            "rank-space": ("laptop", "--iterations 320 --batch-size 16 --evaluate-every 8"),
            "rank-space-both": ("both", "--iterations 300 --batch-size 16 --evaluate-every 6"),
            "bptt-v": ("v-muon", "--iterations 1400 --batch-size 32 --evaluate-every 35"),
            "bptt": ("muon", "--iterations 1400 --batch-size 32 --evaluate-every 35"),
        },
    ),
    "laptop-2000": (
        "",
        "8,32,128",
        "0",
        {
            FLOOR: ("laptop", ""),
            "parameter-noise": ("laptop", ""),
            "rank-space": ("laptop", ""),
            "rank-space-both": ("both", ""),
            "bptt-v": ("v-muon", ""),
            "bptt": ("muon", ""),
        },
    ),
    # Not run yet.
    "h200": (
        "",
        "1,2,4,8,16,32,64,128",
        "0,1,2",
        {
            FLOOR: ("brief", ""),
            "parameter-noise": ("brief", ""),
            "rank-space": ("brief", ""),
            "rank-space-both": ("brief-both", ""),
            "bptt-v": ("brief-v-muon", ""),
            "bptt": ("brief-muon", ""),
        },
    ),
}


def sweeps_of(preset: str) -> dict[str, Sweep]:
    """The sweeps of a preset, by name."""
    sizes, ranks, seeds, budgets = TABLE[preset]
    sweeps = {}
    for name, (base, budget) in budgets.items():
        stub = "reservoir-readout-only" if name == FLOOR else METHODS[name][0]
        vary = {} if name == FLOOR else {"rank": ranks.split(",")}
        noise = NOISE if stub == "rank-space-es" else []
        sweeps[name] = Sweep(stub, base, {**vary, "seed": seeds.split(",")}, [*sizes.split(), *budget.split(), *noise])
    return sweeps


PRESETS = {preset: sweeps_of(preset) for preset in TABLE}

# --- What is compared ------------------------------------------------------------------------------------------------


def ranks_of(study: Study) -> list[int]:
    """All r of which a method has a finished run."""
    return sorted({int(r) for name in METHODS for r in study.points(name, "rank")})


def methods_of(study: Study) -> list[str]:
    """The methods of which there is a finished run."""
    return [name for name in METHODS if study.rows(name)]


def limit(study: Study, cost: int) -> float:
    """The most rollouts, or seconds, that every run of every method has spent: one number for all r, so that errors compare along r as well. ∞ where
    no run was ever scored."""
    return min(reached(study.rows(name), cost) for name in METHODS)


def at_end(study: Study, name: str, rank: int) -> list[float]:
    """Test MSE of each seed's final core under a ridge readout."""
    return column(study.rows(name, rank=str(rank)), "ridge_test_mse")


def at_equal(cost: int) -> Callable[[Study, str, int], list[float]]:
    """Validation MSE of each seed, under its own decoder, at the `limit`."""
    return lambda study, name, rank: all_at_cost(study.rows(name, rank=str(rank)), cost, limit(study, cost))


def floor_of(study: Study, ridge: bool) -> list[float]:
    """The frozen core's error of each seed: test MSE under a ridge readout, or validation MSE under its own decoder at its end."""
    rows = study.rows(FLOOR)
    return column(rows, "ridge_test_mse") if ridge else [curve[-1][2] for curve in curves(rows)]


# What is compared, and whether it is under a ridge readout.
MEASURES = {
    "at the end": (at_end, True),
    "at equal rollouts": (at_equal(ROLLOUTS), False),
    "at equal time": (at_equal(SECONDS), False),
}
SCORES = {True: "test MSE under a ridge readout", False: "validation MSE under its own decoder"}
ENOUGH = 0.95  # of the best gain over the floor


def means(study: Study, name: str, measure: str) -> dict[int, float]:
    """Mean over seeds by r, as far as there is one."""
    errors = {rank: MEASURES[measure][0](study, name, rank) for rank in ranks_of(study)}
    return {rank: statistics.fmean(values) for rank, values in errors.items() if values}


def rank_needed(errors: dict[int, float], floor: float) -> int | None:
    """The smallest r that brings ENOUGH of the best gain over the floor; None where there is no gain."""
    best = max((floor - error for error in errors.values()), default=0.0)
    return next((r for r in sorted(errors) if floor - errors[r] >= ENOUGH * best), None) if best > 0 else None


# --- Tables ----------------------------------------------------------------------------------------------------------


def tables(study: Study) -> str:
    """The Markdown tables of README §Results."""
    parts = [_errors(study, measure) for measure in MEASURES]
    return "\n\n".join([*parts, _answer(study)])


def _errors(study: Study, measure: str) -> str:
    """Methods × r: mean and standard deviation over seeds."""
    of, ridge = MEASURES[measure]
    ranks, floor = ranks_of(study), floor_of(study, ridge)
    columns = [f"{study.preset}, {measure}: {SCORES[ridge]}", *(f"r = {rank}" for rank in ranks)]
    rows = []
    if floor:
        rows.append(["r = 0: the readout alone", *[mean_and_spread(floor)] * len(ranks)])
    for name in methods_of(study):
        errors = [of(study, name, rank) for rank in ranks]
        rows.append([METHODS[name][1], *(mean_and_spread(values) if values else MISSING for values in errors)])
    for word, cost, text in (("rollouts", ROLLOUTS, in_words), ("time", SECONDS, duration)):
        if word in measure:
            most = limit(study, cost)
            rows.append([f"{word} spent, at most", *[text(most) if math.isfinite(most) else MISSING] * len(ranks)])
    return markdown_table(columns, rows)


def _answer(study: Study) -> str:
    """Of each method the r it needs, and the r at which its error is lowest."""
    columns = [f"{study.preset}: r that brings 95 % of the best gain (r of the lowest error)", *MEASURES]
    rows = []
    for name in methods_of(study):
        rows.append([METHODS[name][1]])
        for measure, (_, ridge) in MEASURES.items():
            errors, floor = means(study, name, measure), floor_of(study, ridge)
            if not (errors and floor):
                rows[-1].append(MISSING)
            elif needed := rank_needed(errors, statistics.fmean(floor)):
                rows[-1].append(f"{needed} ({min(errors, key=errors.get)})")
            else:
                rows[-1].append("no gain")
    return markdown_table(columns, rows)


def main(argv: list[str] | None = None) -> int:
    return study_main(argv, __file__, __doc__, PRESETS, tables)


if __name__ == "__main__":
    run_main(main)
