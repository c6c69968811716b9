"""Comparing within a problem: groups of seeds, the scale from floor to ceiling, the gap closed, what closing it costs,
and paired differences.

All of it follows from the results and histories alone. Errors of different problems are never compared.
"""

import math
import statistics
from collections import defaultdict
from collections.abc import Sequence
from dataclasses import dataclass
from typing import NamedTuple

from common.errors import BadInput
from common.results import ABSENT, changed_settings, look_up, place, run_name


@dataclass(frozen=True, eq=False)
class Group:
    """The committed seeds of one stub and preset in one problem: a row of RESULTS.md."""

    results: tuple[dict, ...]  # by seed

    @property
    def stub(self) -> str:
        return self.results[0]["stub"]

    @property
    def preset(self) -> str:
        return self.results[0]["preset"]

    @property
    def role(self) -> str | None:
        return self.results[0].get("role")

    @property
    def name(self) -> str:
        return f"{self.stub}, preset {self.preset}"

    @property
    def train_sequences(self) -> int | None:
        return self.results[0]["config"].get("train_sequences")

    @property
    def decoder(self) -> str:
        """How its own decoder is trained; results of before there was a choice are of Adam's."""
        return self.results[0]["config"].get("decoder", "adam")

    @property
    def seeds(self) -> tuple[int, ...]:
        return tuple(r["seed"] for r in self.results)

    def values(self, key: str) -> list[float]:
        """One for each seed; empty where a result lacks the key."""
        return [r[key] for r in self.results] if all(key in r for r in self.results) else []

    def mean(self, key: str) -> float:
        return statistics.fmean(self.values(key))


def groups_of(results: list[dict]) -> list[Group]:
    """Groups of one problem's results, lowest mean test MSE first.

    Raises BadInput where seeds of a group differ in their settings or their role.
    """
    members = defaultdict(list)
    for result in sorted(results, key=lambda r: r["seed"]):
        members[result["stub"], result["preset"]].append(result)
    for first, *others in members.values():
        for other in others:
            names = f"{first['stub']}/results/{run_name(first)}.json and {run_name(other)}.json"
            if changed := changed_settings(first["config"], other["config"]):
                raise BadInput(f"{names} are one preset but differ in config: {', '.join(changed)}")
            if first.get("role") != other.get("role"):
                raise BadInput(f"{names} are one preset but differ in the key 'role'")
    groups = [Group(tuple(seeds)) for seeds in members.values()]
    return sorted(groups, key=lambda group: (group.mean("test_mse"), group.stub, group.preset))


@dataclass(frozen=True)
class Scale:
    """From floor to ceiling of a problem under one kind of error: of each role, the group of lowest mean error."""

    key: str  # "test_mse" under the model's own decoder, "ridge_test_mse" (or "ridge_validation_mse") under refitted ones
    floor: Group | None
    ceiling: Group | None

    @property
    def length(self) -> float | None:
        """Floor − ceiling; None where one of them is missing or the ceiling is not below the floor."""
        if not (self.floor and self.ceiling):
            return None
        length = self.floor.mean(self.key) - self.ceiling.mean(self.key)
        return length if length > 0 else None

    def gap_closed(self, group: Group) -> float | None:
        """0 at the floor, 1 at the ceiling; None where the scale has no length."""
        return (self.floor.mean(self.key) - group.mean(self.key)) / self.length if self.length else None

    def level(self, share: float) -> float | None:
        """The error at which this share of the gap is closed; None where the scale has no length."""
        return self.floor.mean(self.key) - share * self.length if self.length else None


def scale_of(groups: list[Group], key: str) -> Scale:
    """The scale of a problem under the error `key`."""

    def best(role: str) -> Group | None:
        return min((g for g in groups if g.role == role), key=lambda g: g.mean(key), default=None)

    return Scale(key, best("floor"), best("ceiling"))


def floor_like(group: Group, groups: list[Group]) -> Group | None:
    """The floor of the same preset name and number of training sequences (the best of several), or None."""
    known = group.train_sequences is not None
    same = [g for g in groups if (g.preset, g.train_sequences) == (group.preset, group.train_sequences)]
    return next((g for g in same if known and g.role == "floor"), None)


def ceiling_like(group: Group, groups: list[Group]) -> Group | None:
    """The lowest ceiling with as many training sequences and rollouts: a bar on the same budget. None where there is none."""
    key = (group.train_sequences, group.mean("rollouts"))
    same = [g for g in groups if g.role == "ceiling" and (g.train_sequences, g.mean("rollouts")) == key]
    return min(same, key=lambda g: g.mean("test_mse"), default=None)


def equal_data_scale(group: Group, groups: list[Group]) -> Scale | None:
    """Validation error under ridge refits, from the floor to the ceiling with as many training sequences as the group.

    None where the group's number is not known, one of the two is missing, or the ceiling is not below the floor.
    """
    key, count = "ridge_validation_mse", group.train_sequences
    scale = scale_of([g for g in groups if g.train_sequences == count and g.values(key)], key)
    return scale if count is not None and scale.length else None


class Evaluation(NamedTuple):
    """A validation error in a run's history, and what training had cost by then."""

    validation_mse: float  # under the model's own decoder
    rollouts: float
    seconds: float  # of training


@dataclass(frozen=True)
class Cost:
    """What it took the seeds of a group to come down to an error; all numbers are of the seeds that got there."""

    rollouts: float  # median
    seconds: float  # median
    fastest: float  # seconds
    slowest: float  # seconds
    reached: int  # seeds that got there, at least 1
    seeds: int


def first_at(level: float, evaluations: Sequence[Evaluation]) -> Evaluation | None:
    """The first evaluation, in the order of training, at or below an error; None where the run never gets there."""
    return next((e for e in evaluations if e.validation_mse <= level), None)


def cost_of(level: float, seeds: Sequence[Sequence[Evaluation]]) -> Cost | None:
    """The cost of coming down to an error, from the evaluations of each seed; None where no seed gets there."""
    found = [e for evaluations in seeds if (e := first_at(level, evaluations))]
    if not found:
        return None
    seconds = [e.seconds for e in found]
    rollouts = statistics.median(e.rollouts for e in found)
    return Cost(rollouts, statistics.median(seconds), min(seconds), max(seconds), len(found), len(seeds))


def shared_seeds(group: Group, other: Group) -> list[int]:
    """Seeds that both groups have."""
    return [seed for seed in group.seeds if seed in other.seeds]


@dataclass(frozen=True)
class Difference:
    """Mean of paired differences with half the width of its 95 % confidence interval."""

    mean: float
    half_width: float

    @property
    def verdict(self) -> str:
        """What the interval says: "lower", "higher", or that it holds zero."""
        if abs(self.mean) <= self.half_width:
            return "not distinguishable"
        return "lower" if self.mean < 0 else "higher"

    def __str__(self) -> str:
        """`−0.00310 ± 0.00042`; with more decimals where the half width is smaller: differences of refits can be tiny."""
        tiny = 0 < self.half_width < 1e-4
        decimals = min(1 - math.floor(math.log10(self.half_width)), 9) if tiny else 5
        return f"{self.mean:+.{decimals}f} ± {self.half_width:.{decimals}f}".replace("-", "−")


def paired_difference(group: Group, other: Group, key: str) -> Difference:
    """group − other over the seeds that both have (at least 2), with Student's t interval."""
    from scipy.stats import t  # half a second that only a page with pairs needs

    seeds = shared_seeds(group, other)
    mine, its = (dict(zip(g.seeds, g.values(key))) for g in (group, other))
    differences = [mine[seed] - its[seed] for seed in seeds]
    error = statistics.stdev(differences) / math.sqrt(len(seeds))
    return Difference(statistics.fmean(differences), float(t.ppf(0.975, len(seeds) - 1)) * error)


def problems_of(results: list[dict]) -> list[list[dict]]:
    """Results by problem: the main problem (most results) first, smoke runs, which only test the code, last."""
    problems = defaultdict(list)
    for result in sorted(results, key=place):
        problems[result["problem_id"]].append(result)
    for name, members in problems.items():
        if any(r["problem"] != members[0]["problem"] for r in members):
            raise BadInput(f"results of problem {name} disagree on the key 'problem'")
    return sorted(problems.values(), key=lambda p: (only_smoke(p), -len(p), p[0]["problem_id"]))


def only_smoke(results: list[dict]) -> bool:
    """True where all are smoke runs."""
    return all(r["preset"] == "smoke" for r in results)


def agreed(results: list[dict], path: str, tolerance: float = 1e-3) -> float | None:
    """The value under `path` that all results of a problem share (rounding between machines aside), or None.

    Raises BadInput where they do not.
    """
    values = [v for v in (look_up(r, path) for r in results) if v is not ABSENT]
    if values and max(values) - min(values) > tolerance * max(values):
        raise BadInput(
            f"results of problem {results[0]['problem_id']} disagree on {path}: {min(values)} and {max(values)}"
        )
    return values[0] if values else None
