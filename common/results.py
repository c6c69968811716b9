"""Committed results: their schema, how a run gets there, and RESULTS.md, which is made from them alone.

Nothing here imports an experiment or needs torch: it reads files.
"""

import json
import math
import re
import statistics
from collections import defaultdict
from collections.abc import Iterable
from pathlib import Path

from common.errors import BadInput
from common.files import write_atomically
from common.text import duration

ROOT = Path(__file__).resolve().parent.parent
LARGEST_FILE = 2_000_000  # bytes
HISTORY_LINES = 200
FLOOR, CEILING = "reservoir-readout-only", "moving-mnist-bptt-baseline"
ROLES = ("floor", "ceiling", "reference")
TRIVIAL = {"mean": "mean embedding", "copy_last": "copy last frame", "ar1": "AR(1) ridge", "ar3": "AR(3) ridge"}


# --- Experiments and their results -----------------------------------------------------------------------------------


def module_of(slug: str) -> str:
    """The module name of an experiment: `my-idea` is `my_idea`."""
    return slug.replace("-", "_")


def stubs(root: Path = ROOT) -> list[str]:
    """Slugs of all experiments: the folders at the root that hold a script of their own name, sorted."""
    return sorted(f.name for f in root.iterdir() if f.is_dir() and (f / f"{module_of(f.name)}.py").is_file())


def _integer(value) -> bool:
    return isinstance(value, int) and not isinstance(value, bool) and value >= 0


def _number(value) -> bool:
    return isinstance(value, int | float) and not isinstance(value, bool) and math.isfinite(value) and value >= 0


def _text(value) -> bool:
    return isinstance(value, str) and value != ""


def _sha256(value) -> bool:
    return isinstance(value, str) and re.fullmatch(r"[0-9a-f]{64}", value) is not None


INTEGER, NUMBER, TEXT = ("an integer ≥ 0", _integer), ("a finite number ≥ 0", _number), ("a text", _text)
TABLE, SHA256 = ("an object", lambda value: isinstance(value, dict)), ("64 hexadecimal digits", _sha256)
SCHEMA_1 = {
    "schema": ("the integer 1", lambda value: _integer(value) and value == 1),
    "stub": TEXT,
    "seed": INTEGER,
    "preset": TEXT,
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
    "ridge_test_mse_at_start": NUMBER,
    "ridge_validation_mse_at_start": NUMBER,
    "ridge_test_mse_shuffled": NUMBER,
    "ridge_validation_mse_shuffled": NUMBER,
    "public_test_mse": NUMBER,
    "spectral_radius": NUMBER,
    "ridge_penalty": NUMBER,
    "best_iteration": INTEGER,
    "role": ("one of floor, ceiling, reference", lambda value: value in ROLES),
}
for _table in ("trivial_test_mse", "trivial_validation_mse"):
    OPTIONAL |= {_table: TABLE, **{f"{_table}.{name}": TABLE for name in TRIVIAL}}
    OPTIONAL |= {f"{_table}.{name}.{part}": NUMBER for name in TRIVIAL for part in ("all", "last_frame")}
# Settings in which seeds of one row of RESULTS.md may differ: on none of the others does a number depend.
OF_THE_MACHINE = {
    "seed", "device", "backend", "threads", "checkpoint_every", "tensorboard", "mnist_dir", "public_test_file",
}  # fmt: skip
_MISSING = object()


def _look_up(result: dict, path: str):
    for key in path.split("."):
        if not isinstance(result, dict) or key not in result:
            return _MISSING
        result = result[key]
    return result


def read_result(path: Path) -> dict:
    """Read one results.json and validate it against schema 1 (SPEC.md). Raises BadInput naming file and key."""

    def reject(constant):
        raise ValueError(f"{constant} is not a number")

    try:
        result = json.loads(path.read_text(encoding="utf-8"), parse_constant=reject)
    except (OSError, ValueError) as error:
        raise BadInput(f"{path}: cannot be read as JSON: {error}") from None
    if not isinstance(result, dict):
        raise BadInput(f"{path}: must be a JSON object")
    for key, (expected, valid) in {**SCHEMA_1, **OPTIONAL}.items():
        value = _look_up(result, key)
        if value is _MISSING and key not in OPTIONAL:
            raise BadInput(f"{path}: key '{key}' is missing (must be {expected})")
        if value is not _MISSING and not valid(value):
            raise BadInput(f"{path}: key '{key}' must be {expected}, is {json.dumps(value)[:60]}")
    return result


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
    return sorted(results, key=lambda r: (r["stub"], r["preset"], r["seed"]))


def changed_settings(saved: dict, other: dict) -> list[str]:
    """Settings of a saved config that another config has too, with another value; those of the machine aside."""
    return sorted(k for k in saved.keys() & other.keys() - OF_THE_MACHINE if saved[k] != other[k])


# --- Publishing ------------------------------------------------------------------------------------------------------


def _evenly(items: list, count: int) -> list:
    """`count` of the items, evenly spaced, the first and the last among them (all of them where there are fewer)."""
    if len(items) <= count:
        return items
    if count <= 1:
        return items[-1:] * count
    return [items[i * (len(items) - 1) // (count - 1)] for i in range(count)]


def thin_history(lines: list[str], limit: int = HISTORY_LINES) -> list[str]:
    """At most `limit` of the lines of a metrics.jsonl, in order: first, last and evaluation lines before all others.

    An evaluation line is one whose `validation_mse` is a number. Where these alone exceed the limit they are
    thinned evenly. Raises BadInput naming the first line that is not a JSON object.
    """
    kept = {0, len(lines) - 1} if lines else set()
    for number, line in enumerate(lines):
        try:
            if json.loads(line).get("validation_mse") is not None:
                kept.add(number)
        except (ValueError, AttributeError):
            raise BadInput(f"metrics.jsonl, line {number + 1}: not a JSON object") from None
    kept = set(_evenly(sorted(kept), limit))
    kept |= set(_evenly([n for n in range(len(lines)) if n not in kept], limit - len(kept)))
    return [lines[n] for n in sorted(kept)]


def publish(run_dir: Path, root: Path = ROOT) -> list[Path]:
    """Copy a finished run's result, thinned history and (seed 0) figure data to `<stub>/results/<preset>-seed<seed>.*`.

    All of it is checked before anything is written. Returns the written paths. Raises BadInput for an unfinished run,
    an unknown stub, a result that breaks the schema, or a file over 2 MB.
    """
    for name in ("results.json", "metrics.jsonl"):
        if not (run_dir / name).is_file():
            raise BadInput(f"{run_dir}: holds no {name}; only a finished run can be published")
    result = read_result(run_dir / "results.json")
    if result["stub"] not in stubs(root):
        raise BadInput(f"{run_dir}: its stub {result['stub']!r} is no experiment under {root}")
    history = thin_history((run_dir / "metrics.jsonl").read_text(encoding="utf-8").splitlines())
    files = {".history.jsonl": "".join(f"{line}\n" for line in history).encode()}
    if result["seed"] == 0 and (run_dir / "figures.npz").is_file():
        files[".figures.npz"] = (run_dir / "figures.npz").read_bytes()
    files[".json"] = (run_dir / "results.json").read_bytes()  # written last: it is what others look for
    for suffix, content in files.items():
        if len(content) > LARGEST_FILE:
            raise BadInput(f"{run_dir}: {suffix[1:]} would be {len(content):,} bytes; at most {LARGEST_FILE:,} may be")

    folder = root / result["stub"] / "results"
    folder.mkdir(exist_ok=True)
    if ".figures.npz" not in files:
        (folder / f"{run_name(result)}.figures.npz").unlink(missing_ok=True)  # of an earlier run under this name
    for suffix, content in files.items():
        write_atomically(folder / (run_name(result) + suffix), content)
    return [folder / (run_name(result) + suffix) for suffix in files]


# --- RESULTS.md ------------------------------------------------------------------------------------------------------

HEADER = """# Results

Generated from the committed files `*/results/*.json` by `make results` (`python -m common.catalog results`); edits are
lost.

Errors are standardised mean squared errors on the problem's test sequences: 1.0 is what predicting the mean embedding
scores, lower is better. They are given as mean ± sample standard deviation over seeds. Errors compare only within one
problem: same data, encoder, reservoir and test set (the same `problem_id`). "Ridge refit" replaces the trained readout
by a ridge regression on the final states, which tells the core from its decoder; it is fitted on 4,000 training sequences
at most, and a decoder trained on more can be better. SPEC.md defines every column.
"""
UNCOMMITTED = "† Code was not, or not known to be, as committed when this ran; the result file holds its hashes."


def mean_and_spread(values: list[float]) -> str:
    """`0.6512 ± 0.0031 (3 seeds)`: mean and sample standard deviation (n − 1); no spread for a single value."""
    if len(values) == 1:
        return f"{values[0]:.4f} (1 seed)"
    return f"{statistics.fmean(values):.4f} ± {statistics.stdev(values):.4f} ({len(values)} seeds)"


def _range(values: Iterable, form: str = ".4f") -> str:
    """The smallest and the largest value, or one where they read the same."""
    values = list(values)
    return " – ".join(dict.fromkeys((format(min(values), form), format(max(values), form))))


def _listed(texts: Iterable[str], separator: str = ", ") -> str:
    return separator.join(dict.fromkeys(texts))


def hardware(result: dict) -> str:
    """What a run ran on, for a table cell."""
    environment = result["environment"]
    ranks, name, threads = environment["world_size"], environment["device_name"], environment["threads"]
    if environment["device"].startswith("cuda"):
        return f"{ranks} × {name}"
    return f"{name}, {f'{ranks} × ' if ranks > 1 else ''}{threads} threads"


def _uncommitted(result: dict) -> bool:
    """True unless the code is known to have been as committed."""
    return result["source"]["dirty"] is not False


def _source(result: dict) -> str:
    return (result["source"]["commit"] or "unknown")[:9] + "†" * _uncommitted(result)


def _verdict(group: list[dict]) -> str:
    verdicts = [r["reproduces"] for r in group]
    if len(set(verdicts)) == 1:
        return verdicts[0]
    return ", ".join(f"{v} ({verdicts.count(v)})" for v in ("yes", "partial", "no") if v in verdicts)


def _mean_test(group: list[dict]) -> float:
    return statistics.fmean(r["test_mse"] for r in group)


def _agreed(results: list[dict], path: str, tolerance: float = 1e-3) -> float | None:
    """The value under `path` that all results of a problem share (rounding between machines aside), or None."""
    values = [v for v in (_look_up(r, path) for r in results) if v is not _MISSING]
    if values and max(values) - min(values) > tolerance * max(values):
        raise BadInput(
            f"results of problem {results[0]['problem_id']} disagree on {path}: {min(values)} and {max(values)}"
        )
    return values[0] if values else None


def _cells(group: list[dict], gap: str) -> list[str]:
    """The row of one stub and preset; `group` holds its seeds. Raises BadInput where they differ in more than the seed."""
    first = group[0]
    for other in group[1:]:
        if changed := changed_settings(first["config"], other["config"]):
            names = f"{first['stub']}/results/{run_name(first)}.json and {run_name(other)}.json"
            raise BadInput(f"{names} are one preset but differ in config: {', '.join(changed)}")
    return [
        f"[{first['stub']}]({first['stub']}/README.md)",
        first["preset"],
        ", ".join(str(r["seed"]) for r in group),
        mean_and_spread([r["test_mse"] for r in group]),
        _range(r["test_mse_last_frame"] for r in group),
        _range(r["ridge_test_mse"] for r in group),
        gap,
        _range((r["rollouts"] for r in group), ","),
        duration(statistics.fmean(r["wallclock_s"] for r in group)),
        _listed(map(hardware, group), "; "),
        _listed(map(_source, group)),
        _verdict(group),
    ]


def render_problem(results: list[dict]) -> str:
    """The Markdown section of one problem: description, then all predictors and experiments, lowest test MSE first.

    results: all results with one problem_id. Raises BadInput where they disagree on the problem or a trivial one.
    """
    name, problem = results[0]["problem_id"], results[0]["problem"]
    if any(r["problem"] != problem for r in results):
        raise BadInput(f"results of problem {name} disagree on the key 'problem'")
    groups = defaultdict(list)
    for result in results:
        groups[result["stub"], result["preset"]].append(result)
    best = {}  # lowest mean test MSE of each stub
    for (slug, _), group in groups.items():
        best[slug] = min(_mean_test(group), best.get(slug, math.inf))
    floor, ceiling = best.get(FLOOR, -math.inf), best.get(CEILING, math.inf)

    rows = []  # (test MSE to sort by, cells)
    for group in groups.values():
        test = _mean_test(group)
        gap = f"{(floor - test) / (floor - ceiling):.0%}" if floor > ceiling else "—"
        rows.append((test, _cells(group, gap)))
    for key, title in TRIVIAL.items():
        test = _agreed(results, f"trivial_test_mse.{key}.all")
        if test is not None:
            last = _agreed(results, f"trivial_test_mse.{key}.last_frame")
            rows.append((test, [title, "—", "—", f"{test:.4f}", f"{last:.4f}"]))
    start = [r["ridge_test_mse_at_start"] for r in results if "ridge_test_mse_at_start" in r]
    if start:
        rows.append((min(start), ["frozen core, ridge readout", "—", "—", _range(start)]))

    length, digits, size = (problem[key] for key in ("sequence_length", "digits", "hidden_size"))
    columns = ["experiment", "preset", "seeds", "test MSE", f"frame {length + 1} MSE", "ridge refit", "gap closed"]
    columns += ["rollouts", "wallclock", "hardware", "source", "Reproduces?"]
    table = [columns, ["---"] * len(columns)]
    table += [cells + ["—"] * (len(columns) - len(cells)) for _, cells in sorted(rows)]
    if floor > ceiling:
        scale = f"Gap closed: 0 % is the floor {floor:.4f} ({FLOOR}), 100 % the ceiling {ceiling:.4f} ({CEILING})."
    else:
        scale = f"Gap closed needs a floor ({FLOOR}) and a lower ceiling ({CEILING}) on this problem: not there yet."
    paragraphs = [
        f"## Problem `{name}`: {digits} digit{'s' * (digits > 1)}, T = {length}, N = {size}",
        describe_problem(problem) + ".",
        "\n".join("| " + " | ".join(row) + " |" for row in table),
        scale,
        *([UNCOMMITTED] if any(map(_uncommitted, results)) else []),
    ]
    return "\n\n".join(paragraphs) + "\n"


def describe_problem(problem: dict) -> str:
    """One line of `key value` pairs; hashes are shortened."""
    texts = {key: value if isinstance(value, str) else json.dumps(value) for key, value in sorted(problem.items())}
    return ", ".join(f"{key.replace('_', ' ')} {text[:12] if _sha256(text) else text}" for key, text in texts.items())


def render(results: list[dict]) -> str:
    """RESULTS.md as text: a function of the committed results alone (no clock, no machine, no order of files)."""
    problems = defaultdict(list)
    for result in results:
        problems[result["problem_id"]].append(result)
    # Smoke runs exist to test the code; their problems come last.
    ordered = sorted(problems.items(), key=lambda item: (all(r["preset"] == "smoke" for r in item[1]), item[0]))
    sections = [render_problem(group) for _, group in ordered] or ["No results are committed yet.\n"]
    return "\n".join([HEADER, *sections])


def results_are_stale(root: Path = ROOT) -> bool:
    """True where RESULTS.md is missing or is not what the committed results render to."""
    path = root / "RESULTS.md"
    return not path.is_file() or path.read_text(encoding="utf-8") != render(load_results(root))


def write_results(root: Path = ROOT) -> None:
    """Render RESULTS.md."""
    write_atomically(root / "RESULTS.md", render(load_results(root)).encode())
