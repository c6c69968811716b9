"""Committed results: which experiments there are, schema 1 of SPEC.md, reading, and publishing a finished run.

Nothing here imports an experiment or needs torch: it reads files. Results are compared in comparison.py and become
RESULTS.md in results_page.py.
"""

import json
import math
import os
import re
from collections.abc import Iterable, Iterator
from pathlib import Path

from common.errors import BadInput
from common.files import require_writable, write_atomically

ROOT = Path(__file__).resolve().parent.parent
LARGEST_FILE = 2_000_000  # bytes
HISTORY_LINES = 200
STUDY = "ablation-"  # begins the name of a study's folder
CURRICULUM, FIRST_RUNG = "curriculum.json", "0-start"  # log and first run in the run folder of one, see curriculum.py
ROLES = ("floor", "ceiling", "reference")
TRIVIAL = {"mean": "mean embedding", "copy_last": "copy last frame", "ar1": "AR(1) ridge", "ar3": "AR(3) ridge"}


# --- Experiments and their results -----------------------------------------------------------------------------------


def module_of(slug: str) -> str:
    """The module name of an experiment: `my-idea` is `my_idea`."""
    return slug.replace("-", "_")


def _scripts(root: Path) -> list[str]:
    """Folders at the root that hold a script of their own name, sorted."""
    return sorted(f.name for f in root.iterdir() if f.is_dir() and (f / f"{module_of(f.name)}.py").is_file())


def is_study(slug: str) -> bool:
    """Whether a folder of this name starts experiments and trains nothing itself."""
    return slug.startswith(STUDY)


def stubs(root: Path = ROOT) -> list[str]:
    """Slugs of all experiments: the folders at the root that hold a script of their own name and are no studies, sorted."""
    return [slug for slug in _scripts(root) if not is_study(slug)]


def studies(root: Path = ROOT) -> list[str]:
    """Slugs of all studies, sorted: they start experiments by their command lines and keep what came of them in measurements/."""
    return [slug for slug in _scripts(root) if is_study(slug)]


def _integer(value) -> bool:
    return isinstance(value, int) and not isinstance(value, bool) and value >= 0


def _number(value) -> bool:
    return (
        isinstance(value, int | float) and not isinstance(value, bool) and 0 <= value < math.inf and _is_a_float(value)
    )


def _is_a_float(value) -> bool:
    try:
        float(value)
    except OverflowError:  # JSON's whole numbers have no end
        return False
    return True


def _text(value) -> bool:
    return isinstance(value, str) and value != ""


def is_sha256(value) -> bool:
    return isinstance(value, str) and re.fullmatch(r"[0-9a-f]{64}", value) is not None


def _numbers(value) -> bool:
    return isinstance(value, list) and len(value) > 0 and all(map(_number, value))


INTEGER, NUMBER, TEXT = ("an integer ≥ 0", _integer), ("a finite number ≥ 0", _number), ("a text", _text)
NUMBERS = ("a list of finite numbers ≥ 0", _numbers)
TABLE, SHA256 = ("an object", lambda value: isinstance(value, dict)), ("64 hexadecimal digits", is_sha256)
SCHEMA_1 = {
    "schema": ("the integer 1", lambda value: _integer(value) and value == 1),
    "stub": TEXT,
    "seed": INTEGER,
    "preset": (
        "letters, digits, _, . and -",
        lambda value: _text(value) and re.fullmatch(r"[\w.-]+", value) is not None,
    ),
    "problem_id": TEXT,
    "problem": TABLE,
    "problem.digits": INTEGER,
    "problem.sequence_length": INTEGER,
    "problem.hidden_size": INTEGER,
    "config": TABLE,
    "test_mse": NUMBER,
    "test_mse_last_frame": NUMBER,
    "ridge_test_mse": NUMBER,
    "reproduces": ("one of yes, partial, no", lambda value: value in ("yes", "partial", "no")),
    "iterations": INTEGER,
    "rollouts": INTEGER,
    "wallclock_s": NUMBER,
    "theta_sha256": SHA256,
    "environment": TABLE,
    "environment.device": TEXT,
    "environment.device_name": TEXT,
    "environment.torch": TEXT,
    "environment.python": TEXT,
    "environment.platform": TEXT,
    "environment.world_size": INTEGER,
    "environment.threads": INTEGER,
    "source": TABLE,
    "source.commit": ("a text or null", lambda value: value is None or _text(value)),
    "source.dirty": ("true, false or null", lambda value: value is None or isinstance(value, bool)),
    "source.stub_sha256": SHA256,
    "source.common_sha256": SHA256,
}
OPTIONAL = {
    "validation_mse": NUMBER,
    "ridge_validation_mse": NUMBER,
    "validation_mse_taken_over": NUMBER,
    "start_theta_sha256": SHA256,
    "ridge_test_mse_at_start": NUMBER,
    "ridge_validation_mse_at_start": NUMBER,
    "ridge_test_mse_shuffled": NUMBER,
    "ridge_validation_mse_shuffled": NUMBER,
    "public_test_mse": NUMBER,
    "spectral_radius": NUMBER,
    "ridge_penalty": NUMBER,
    "best_iteration": INTEGER,
    "config.train_sequences": INTEGER,
    "role": ("one of floor, ceiling, reference", lambda value: value in ROLES),
}
for _table in ("trivial_test_mse", "trivial_validation_mse"):
    OPTIONAL |= {_table: TABLE, **{f"{_table}.{name}": TABLE for name in TRIVIAL}}
    OPTIONAL |= {f"{_table}.{name}.{part}": NUMBER for name in TRIVIAL for part in ("all", "last_frame")}
CLOSED_LOOP = {
    "closed_loop_test_mse": NUMBERS,
    "trivial_closed_loop_test_mse": TABLE,
    **{f"trivial_closed_loop_test_mse.{name}": NUMBERS for name in TRIVIAL},
}
OPTIONAL |= CLOSED_LOOP
# Settings in which seeds of one row of RESULTS.md may differ: on none of the others does a number depend.
OF_THE_MACHINE = {
    "seed", "device", "backend", "threads", "checkpoint_every", "measure_cosine_every", "tensorboard", "mnist_dir", "public_test_file",
    "rank_timeout",
    "horizon",
}  # fmt: skip
ABSENT = object()  # no value at all, where null is one


def look_up(result: dict, path: str):
    """The value under `a.b.c`, or ABSENT."""
    for key in path.split("."):
        if not isinstance(result, dict) or key not in result:
            return ABSENT
        result = result[key]
    return result


def _json_object(path: Path) -> dict:
    """A JSON file that holds an object, without NaN. Raises BadInput."""

    def reject(constant):
        raise ValueError(f"{constant} is not a number")

    try:
        content = json.loads(path.read_text(encoding="utf-8"), parse_constant=reject)
    except (OSError, ValueError, RecursionError) as error:
        raise BadInput(f"{path}: cannot be read as JSON: {error}") from None
    if not isinstance(content, dict):
        raise BadInput(f"{path}: must be a JSON object")
    return content


def _require_all(path: Path, content: dict, schema: dict, optional: dict) -> None:
    """Raises BadInput where a key of `schema` is missing, or one of both has a value that is not allowed."""
    for key, (expected, _) in schema.items():
        if look_up(content, key) is ABSENT:
            raise BadInput(f"{path}: key '{key}' is missing (must be {expected})")
    require_valid(path, content, schema | optional)


def read_result(path: Path) -> dict:
    """Read one results.json and validate it against schema 1 (SPEC.md). Raises BadInput naming file and key."""
    result = _json_object(path)
    _require_all(path, result, SCHEMA_1, OPTIONAL)
    return result


def require_valid(path: Path, result: dict, schema: dict) -> None:
    """Raises BadInput naming the file and the first key of `schema` whose value in `result` breaks it; a missing one does not."""
    for key, (expected, valid) in schema.items():
        value = look_up(result, key)
        if value is not ABSENT and not valid(value):
            raise BadInput(f"{path}: key '{key}' must be {expected}, is {json.dumps(value)[:60]}")


def run_name(result: dict) -> str:
    """`<preset>-seed<seed>`, the name that a run's folder and its published files share."""
    return f"{result['preset']}-seed{result['seed']}"


def load_results(root: Path = ROOT) -> list[dict]:
    """All committed results, `<stub>/results/*.json`, in the order stub, preset, seed; each validated.

    Raises BadInput naming file and key, also where a file's place disagrees with its content.
    """
    results = []
    for slug in stubs(root):
        for path in (root / slug / "results").glob("*.json"):
            result = read_result(path)
            if result["stub"] != slug:
                raise BadInput(f"{path}: key 'stub' is {result['stub']}, but the folder is {slug}")
            if path.name != f"{run_name(result)}.json":
                raise BadInput(f"{path}: keys 'preset' and 'seed' ask for the name {run_name(result)}.json")
            results.append(result)
    return sorted(results, key=place)


def place(result: dict) -> tuple[str, str, int]:
    """Where a result stands in every list of results."""
    return result["stub"], result["preset"], result["seed"]


def changed_settings(saved: dict, other: dict) -> list[str]:
    """Settings of a saved config that another config has too, with another value; those of the machine aside."""
    return sorted(k for k in saved.keys() & other.keys() - OF_THE_MACHINE if saved[k] != other[k])


# --- Publishing ------------------------------------------------------------------------------------------------------


def scores_in(lines: Iterable[str]) -> Iterator[tuple[int, int, float, float]]:
    """(iteration, rollouts, seconds, validation MSE) of those lines of a metrics.jsonl, or of a committed history, that have a score.

    Raises BadInput naming the first line that is no metrics line with its cost."""
    for number, line in enumerate(lines, start=1):
        try:
            row = json.loads(line)
            if row.get("validation_mse") is not None:
                score, seconds = float(row["validation_mse"]), float(row["wallclock_s"])
                yield int(row["iteration"]), int(row["rollouts"]), seconds, score
        except (ValueError, TypeError, AttributeError, KeyError, OverflowError, RecursionError):
            raise BadInput(f"line {number} is not a metrics line with its cost") from None


def evenly(items: list, count: int) -> list:
    """`count` of the items, evenly spaced, the first and the last among them (all of them where there are fewer)."""
    if len(items) <= count:
        return items
    if count <= 1:
        return items[-1:] * count
    return [items[i * (len(items) - 1) // (count - 1)] for i in range(count)]


def thin_history(lines: list[str], limit: int = HISTORY_LINES) -> list[str]:
    """At most `limit` of the lines of a metrics.jsonl, in order: first, last and evaluation lines before all others.

    An evaluation line is one whose `validation_mse` is a number, or that compares an estimate with a gradient (`cosine_…`).
    Where these alone exceed the limit they are thinned evenly. Raises BadInput naming the first line that is not a JSON object.
    """
    kept = {0, len(lines) - 1} if lines else set()
    for number, line in enumerate(lines):
        try:
            metrics = json.loads(line)
            if metrics.get("validation_mse") is not None or any(key.startswith("cosine_") for key in metrics):
                kept.add(number)
        except (ValueError, AttributeError, RecursionError):
            raise BadInput(f"metrics.jsonl, line {number + 1}: not a JSON object") from None
    kept = set(evenly(sorted(kept), limit))
    kept |= set(evenly([n for n in range(len(lines)) if n not in kept], limit - len(kept)))
    return [lines[n] for n in sorted(kept)]


def curricula(folder: Path) -> list[Path]:
    """The curricula that are committed in an experiment's folder."""
    return sorted((folder / "measurements").glob("curriculum-*.json"))


# Of each rung; common/curriculum.py writes more.
RUNG = {
    "name": TEXT,
    "folder": TEXT,
    "problem_id": TEXT,
    "ended": ("plateau or budget", lambda value: value in ("plateau", "budget")),
    "curve": ("a list of [iteration, rollouts, seconds, validation MSE]", lambda value: isinstance(value, list) and len(value) > 0
              and all(isinstance(point, list) and len(point) == 4 and all(map(_number, point)) for point in value)),
    **{key: SCHEMA_1[key] for key in ("iterations", "rollouts", "wallclock_s", "test_mse", "ridge_test_mse", "theta_sha256")},
    **{key: NUMBER for key in ("validation_mse", "ridge_test_mse_at_start")},
    **{key: value for key, value in SCHEMA_1.items() if key.split(".")[0] in ("environment", "source")},
}  # fmt: skip


def read_curriculum(path: Path) -> dict:
    """Read a curriculum.json and validate what is read of it elsewhere. Raises BadInput naming file and key."""
    content = _json_object(path)
    outer = {key: SCHEMA_1[key] for key in ("schema", "stub", "preset", "seed", "config")}
    outer["rungs"] = outer["planned"] = ("a list", lambda value: isinstance(value, list) and len(value) > 0)
    _require_all(path, content, outer, {})
    for number, rung in enumerate(content["rungs"], start=1):
        if not isinstance(rung, dict):
            raise BadInput(f"{path}: rung {number} must be an object")
        _require_all(path, rung, RUNG, {"validation_mse_taken_over": NUMBER})
    return content


def publish(run_dir: Path, root: Path = ROOT) -> list[Path]:
    """Copy a finished run's result, thinned history and (seed 0) figure data to `<stub>/results/<preset>-seed<seed>.*`; of a curriculum its log
    to `<stub>/measurements/curriculum-<preset>-seed<seed>.json`.

    All of it is checked before anything is written. Returns the written paths. Raises BadInput for an unfinished run,
    an unknown stub, a result that breaks the schema, or a file over 2 MB.
    """
    if os.path.isfile(run_dir / CURRICULUM):
        return _publish_curriculum(run_dir / CURRICULUM, root)
    for name in ("results.json", "metrics.jsonl"):
        if not os.path.isfile(run_dir / name):  # Path.is_file raises for a name that is too long
            raise BadInput(f"{run_dir}: holds no {name}; only a finished run can be published")
    result = read_result(run_dir / "results.json")
    if result["stub"] not in stubs(root):
        raise BadInput(f"{run_dir}: its stub {result['stub']!r} is no experiment under {root}")
    try:
        history = thin_history((run_dir / "metrics.jsonl").read_text(encoding="utf-8").splitlines())
    except (OSError, UnicodeDecodeError) as error:
        raise BadInput(f"{run_dir / 'metrics.jsonl'}: cannot be read: {error}") from None
    files = {".history.jsonl": "".join(f"{line}\n" for line in history).encode()}
    if result["seed"] == 0 and (run_dir / "figures.npz").is_file():
        files[".figures.npz"] = (run_dir / "figures.npz").read_bytes()
    files[".json"] = (run_dir / "results.json").read_bytes()  # written last: it is what others look for
    for suffix, content in files.items():
        if len(content) > LARGEST_FILE:
            raise BadInput(f"{run_dir}: {suffix[1:]} would be {len(content):,} bytes; at most {LARGEST_FILE:,} may be")

    folder = root / result["stub"] / "results"
    paths = {suffix: folder / (run_name(result) + suffix) for suffix in files}
    for path in paths.values():
        require_writable(path, "publish:")
    if ".figures.npz" not in files:
        (folder / f"{run_name(result)}.figures.npz").unlink(missing_ok=True)  # of an earlier run under this name
    for suffix, content in files.items():
        write_atomically(paths[suffix], content)
    return list(paths.values())


def _publish_curriculum(log: Path, root: Path) -> list[Path]:
    """As `publish`, of a curriculum."""
    content = read_curriculum(log)
    if content["stub"] not in stubs(root):
        raise BadInput(f"{log}: its stub {content['stub']!r} is no experiment under {root}")
    finished = [rung["name"] for rung in content["rungs"]]
    if finished != content["planned"]:
        raise BadInput(
            f"{log}: {len(finished)} of {len(content['planned'])} rungs are finished; only a whole curriculum can be published"
        )
    for rung in content["rungs"]:
        of_run = read_result(log.parent / rung["folder"] / "results.json")
        if (of_run["theta_sha256"], of_run["seed"]) != (rung["theta_sha256"], content["seed"]):
            raise BadInput(f"{log}: {rung['folder']} holds another run by now; --resume goes on with it")
    if log.stat().st_size > LARGEST_FILE:
        raise BadInput(f"{log}: is over {LARGEST_FILE:,} bytes")
    path = root / content["stub"] / "measurements" / f"curriculum-{run_name(content)}.json"
    require_writable(path, "publish:")
    write_atomically(path, log.read_bytes())
    return [path]
