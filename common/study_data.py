"""What a study has measured: reading its file, and the arithmetic that its tables and figures share.

A study is a folder `ablation-…` that trains nothing itself: it starts other experiments, many times each (common/study.py), and
keeps what came of them in `measurements/<preset>.json`, schema 1:

    study, preset, command   which study and preset, and what makes the file anew
    sweeps                   {name: what common/sweep.py gathers of a sweep, and its `command`}, its curves thinned to CURVE_POINTS

Rows may be missing: of runs that failed, or were not started. What is there is compared.
"""

import json
import math
from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from pathlib import Path

from common.errors import BadInput, reason
from common.results import NUMBER, TEXT

CURVE_POINTS = 60
ROLLOUTS, SECONDS = 0, 1  # columns of a curve; the third is the validation MSE under the own decoder


@dataclass(frozen=True)
class Study:
    """A study's measurement, as its file has it."""

    content: dict

    @property
    def preset(self) -> str:
        return self.content["preset"]

    def rows(self, name: str, **values: str) -> list[dict]:
        """Finished runs of a sweep, in its order; of those only that were given these values. Empty where the sweep is not there."""
        rows = self.content["sweeps"].get(name, {"rows": []})["rows"]
        return [row for row in rows if all(row["values"].get(key) == value for key, value in values.items())]

    def points(self, name: str, setting: str) -> dict[str, list[dict]]:
        """Rows of a sweep by the value of a setting that it varies, in the order in which the values were asked for: the rows of one
        differ in their seed. Values without a finished run are left out."""
        values = self.content["sweeps"].get(name, {"varied": {}})["varied"].get(setting, [])
        points = {value: self.rows(name, **{setting: value}) for value in values}
        return {value: rows for value, rows in points.items() if rows}

    def config(self, name: str, row: dict) -> dict:
        """The configuration of a row's run."""
        return {**self.content["sweeps"][name]["config"], **row["config"]}


def read_study(path: Path, slug: str) -> Study:
    """A measurement of the study `slug`, checked. Raises BadInput naming the file and what is wrong with it."""

    def reject(constant):
        raise ValueError(f"{constant} is not a number")

    def require(right: bool, what: str) -> None:
        if not right:
            raise BadInput(f"{path}: {what}")

    try:
        content = json.loads(path.read_text(encoding="utf-8"), parse_constant=reject)
    except OSError as error:
        raise BadInput(f"{path}: cannot be read ({reason(error)})") from None
    except (ValueError, RecursionError) as error:
        raise BadInput(f"{path}: is not JSON ({reason(error)})") from None
    require(isinstance(content, dict) and content.get("schema") == 1, "key 'schema' must be the integer 1")
    require(content.get("study") == slug, f"key 'study' must be {slug}")
    require(TEXT[1](content.get("preset")), "key 'preset' must be a text")
    sweeps = content.get("sweeps")
    require(isinstance(sweeps, dict) and sweeps, "key 'sweeps' must be an object that is not empty")
    for name, sweep in sweeps.items():
        try:
            require(_is_sweep(sweep), f"sweep '{name}' is none of common/sweep.py")
            for number, row in enumerate(sweep["rows"], start=1):
                require(_is_row(row, sweep["varied"]), f"sweep '{name}': row {number} is damaged")
        except (KeyError, TypeError, AttributeError):
            raise BadInput(f"{path}: sweep '{name}' is damaged") from None
    return Study(content)


def _is_sweep(sweep: dict) -> bool:
    texts = all(TEXT[1](sweep[key]) for key in ("stub", "preset", "command"))
    varied = all(isinstance(values, list) and all(map(TEXT[1], values)) for values in sweep["varied"].values())
    return texts and varied and isinstance(sweep["config"], dict) and isinstance(sweep["rows"], list)


def _is_row(row: dict, varied: dict) -> bool:
    number = NUMBER[1]
    values = row["values"].keys() == varied.keys() and all(row["values"][key] in varied[key] for key in varied)
    scores = number(row["ridge_test_mse"]) and number(row.get("ridge_test_mse_at_start", 0.0))
    curve = all(len(point) == 3 and all(map(number, point)) for point in row["curve"])
    ahead = row.get("closed_loop_test_mse", [])
    trivial = list(row.get("trivial_closed_loop_test_mse", {}).values()) if ahead else []
    closed_loop = all(len(errors_H) == len(ahead) and all(map(number, errors_H)) for errors_H in [ahead, *trivial])
    own = all(map(number, row["singular_values"])) and isinstance(row["config"], dict)
    return values and scores and curve and closed_loop and own and (not ahead or bool(trivial))


def studies_in(folder: Path, run: Path | None = None) -> dict[str, Study]:
    """What a drawing script draws: {end of its files' names: study}. Of the run folder where one is given; else of every committed
    measurement, preset laptop first (else the first by name), which has no end. Raises BadInput where there is none."""
    if run is not None:
        return {"": read_study(run / "study.json", folder.name)}
    paths = sorted((folder / "measurements").glob("*.json"), key=lambda path: (path.stem != "laptop", path.stem))
    if not paths:
        raise BadInput(f"{folder / 'measurements'}: holds no *.json; `--publish` puts one there")
    return {f"_{path.stem}" * (number > 0): read_study(path, folder.name) for number, path in enumerate(paths)}


# --- Arithmetic ------------------------------------------------------------------------------------------------------


def column(rows: Iterable[dict], key: str) -> list[float]:
    """The values of a key, of the rows that have it."""
    return [row[key] for row in rows if row.get(key) is not None]


def curves(rows: Iterable[dict]) -> list[list[list[float]]]:
    """Of the rows that were ever scored."""
    return [row["curve"] for row in rows if row["curve"]]


def reached(rows: Iterable[dict], cost: int) -> float:
    """What all of the rows spent on training: the least rollouts, or seconds, of their last scores. ∞ of no rows."""
    return min((curve[-1][cost] for curve in curves(rows)), default=math.inf)


def at_cost(curve: Sequence[Sequence[float]], cost: int, limit: float) -> float | None:
    """The validation MSE of the last score for which no more than `limit` was spent; None where there was none yet."""
    return next((point[2] for point in reversed(curve) if point[cost] <= limit), None)


def all_at_cost(rows: Iterable[dict], cost: int, limit: float) -> list[float]:
    """`at_cost` of every row that has a score by then."""
    found = (at_cost(curve, cost, limit) for curve in curves(rows))
    return [error for error in found if error is not None]
