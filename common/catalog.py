"""The catalog: committed result files become RESULTS.md, and the contract of SPEC.md is checked.

    python -m common.catalog results [--check]   write RESULTS.md (or say whether the one on disk is stale)
    python -m common.catalog check [STUB ...]    print every breach of the contract that a machine can see
    python -m common.catalog publish RUN_DIR     copy what is worth keeping of a finished run to <stub>/results/
    python -m common.catalog figures [STUB ...]  redraw the committed figures and GIFs from committed results
    python -m common.catalog new NAME            start an experiment from template/

Nothing here trains or imports an experiment: this module reads files and starts experiments by their command line.
"""

import argparse
import ast
import importlib.util
import json
import keyword
import math
import os
import re
import shlex
import shutil
import statistics
import subprocess
import sys
from collections import defaultdict
from pathlib import Path

from common.errors import BadInput

ROOT = Path(__file__).resolve().parent.parent
LARGEST_FILE = 2_000_000  # bytes
HISTORY_LINES = 200
LAPTOP_SECONDS = 300
FLOOR, CEILING = "reservoir-readout-only", "moving-mnist-bptt-baseline"
TRIVIAL = {"mean": "mean embedding", "copy_last": "copy last frame", "ar1": "AR(1) ridge", "ar3": "AR(3) ridge"}
SECTIONS = [
    "Problem",
    "Files",
    "Running",
    "Results",
    "Visualizations",
    "Deviations from the original",
    "Open questions",
]


# ---------------------------------------------------------------------------------------------------------------------
# experiments and their results


def module_of(slug: str) -> str:
    """The module name of an experiment: `my-idea` is `my_idea`."""
    return slug.replace("-", "_")


def stubs(root: Path = ROOT) -> list[str]:
    """Slugs of all experiments: the folders at the root that hold a script of their own name, sorted."""
    return sorted(f.name for f in Path(root).iterdir() if f.is_dir() and (f / f"{module_of(f.name)}.py").is_file())


def _integer(value) -> bool:
    return isinstance(value, int) and not isinstance(value, bool) and value >= 0


def _number(value) -> bool:
    return isinstance(value, (int, float)) and not isinstance(value, bool) and math.isfinite(value) and value >= 0


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
    "command": TEXT,
    "validation_mse": NUMBER,
    "ridge_test_mse_at_start": NUMBER,
    "public_test_mse": NUMBER,
    "spectral_radius": NUMBER,
    "trivial_test_mse": TABLE,
    **{f"trivial_test_mse.{name}": TABLE for name in TRIVIAL},
    **{f"trivial_test_mse.{name}.{part}": NUMBER for name in TRIVIAL for part in ("all", "last_frame")},
}
# Settings on which no number depends; seeds of one row of RESULTS.md may differ in them.
OF_THE_MACHINE = {
    "seed",
    "device",
    "backend",
    "threads",
    "checkpoint_every",
    "tensorboard",
    "mnist_dir",
    "public_test_file",
}
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
        result = json.loads(Path(path).read_text(encoding="utf-8"), parse_constant=reject)
    except (OSError, ValueError) as error:
        raise BadInput(f"{path}: cannot be read as JSON: {error}") from None
    if not isinstance(result, dict):
        raise BadInput(f"{path}: must be a JSON object")
    for key, (expected, valid) in {**SCHEMA_1, **OPTIONAL}.items():
        value = _look_up(result, key)
        if value is _MISSING and (key in OPTIONAL):
            continue
        if value is _MISSING:
            raise BadInput(f"{path}: key '{key}' is missing (must be {expected})")
        if not valid(value):
            raise BadInput(f"{path}: key '{key}' must be {expected}, is {json.dumps(value)[:60]}")
    return result


def load_results(root: Path = ROOT) -> list[dict]:
    """All committed results, `<stub>/results/*.json`, in the order stub, preset, seed; each validated.

    Raises BadInput naming file and key, also where a file's place disagrees with its content.
    """
    results = []
    for slug in stubs(root):
        for path in (Path(root) / slug / "results").glob("*.json"):
            result = read_result(path)
            if result["stub"] != slug:
                raise BadInput(f"{path}: key 'stub' is {result['stub']}, but the folder is {slug}")
            if path.name != f"{run_name(result)}.json":
                raise BadInput(f"{path}: keys 'preset' and 'seed' ask for the name {run_name(result)}.json")
            results.append(result)
    return sorted(results, key=lambda r: (r["stub"], r["preset"], r["seed"]))


def run_name(result: dict) -> str:
    """`<preset>-seed<seed>`, the name that a run's folder and its published files share."""
    return f"{result['preset']}-seed{result['seed']}"


# ---------------------------------------------------------------------------------------------------------------------
# RESULTS.md

HEADER = """# Results

Generated from the committed files `*/results/*.json` by `make results` (`python -m common.catalog results`); edits are
lost.

Errors are standardised mean squared errors on the problem's test sequences: 1.0 is what predicting the mean embedding
scores, lower is better. They are given as mean ± sample standard deviation over seeds. Errors compare only within one
problem: same data, encoder, reservoir and test set (the same `problem_id`). "Ridge refit" replaces the trained readout
by a ridge regression on the final states, which tells the core from its decoder. SPEC.md defines every column.
"""
LAST_FRAME = "last frame MSE"
COLUMNS = ["experiment", "preset", "seeds", "test MSE", LAST_FRAME, "ridge refit", "gap closed"]
COLUMNS += ["rollouts", "wallclock", "hardware", "source", "Reproduces?"]


def mean_and_spread(values: list[float]) -> str:
    """`0.6512 ± 0.0031 (3 seeds)`: mean and sample standard deviation (n − 1); no spread for a single value."""
    if len(values) == 1:
        return f"{values[0]:.4f} (1 seed)"
    return f"{statistics.fmean(values):.4f} ± {statistics.stdev(values):.4f} ({len(values)} seeds)"


def _range(values: list) -> str:
    """One number where all agree to four decimals, else the smallest and largest."""
    low, high = f"{min(values):.4f}", f"{max(values):.4f}"
    return low if low == high else f"{low} – {high}"


def _duration(seconds: float) -> str:
    """Seconds in the largest unit that keeps the number readable: `48 s`, `4.2 min`, `3.1 h`."""
    if seconds < 90:
        return f"{seconds:.0f} s"
    return f"{seconds / 60:.1f} min" if seconds < 5400 else f"{seconds / 3600:.1f} h"


def _distinct(values) -> list:
    return list(dict.fromkeys(values))


def _hardware(result: dict) -> str:
    environment = result["environment"]
    ranks, name = environment["world_size"], environment["device_name"]
    if environment["device"].startswith("cuda"):
        return f"{ranks} × {name}"
    return (
        f"{name}, {ranks} × {environment['threads']} threads"
        if ranks > 1
        else f"{name}, {environment['threads']} threads"
    )


def _uncommitted(result: dict) -> bool:
    """True unless the code is known to have been as committed."""
    return result["source"]["dirty"] is not False


def _source(results: list[dict]) -> str:
    sources = [(r["source"]["commit"] or "unknown")[:9] + ("†" if _uncommitted(r) else "") for r in results]
    return ", ".join(_distinct(sources))


def _verdict(results: list[dict]) -> str:
    verdicts = [r["reproduces"] for r in results]
    if len(set(verdicts)) == 1:
        return verdicts[0]
    return ", ".join(f"{v} ({verdicts.count(v)})" for v in ("yes", "partial", "no") if v in verdicts)


def describe_problem(problem: dict) -> str:
    """One line of `key value` pairs; nested objects joined by dots, hashes shortened."""

    def flat(prefix, value):
        if isinstance(value, dict):
            for key in sorted(value):
                yield from flat(f"{prefix}.{key}" if prefix else key, value[key])
        else:
            text = value if isinstance(value, str) else json.dumps(value)
            yield f"{prefix.replace('_', ' ')} {text[:12] if _sha256(value) else text}"

    return ", ".join(flat("", problem))


def _best(groups: dict, slug: str) -> float | None:
    """Lowest mean test MSE among a stub's presets on one problem; None where it has no result yet."""
    return min(
        (statistics.fmean(r["test_mse"] for r in g) for (stub, _), g in groups.items() if stub == slug), default=None
    )


def _agreed(results: list[dict], path: str, tolerance: float = 1e-3) -> float | None:
    """The value under `path` that all results of a problem share (rounding between machines aside), or None."""
    values = [v for v in (_look_up(r, path) for r in results) if v is not _MISSING]
    if values and max(values) - min(values) > tolerance * max(values):
        raise BadInput(
            f"results of problem {results[0]['problem_id']} disagree on {path}: {min(values)} and {max(values)}"
        )
    return values[0] if values else None


def _changed_settings(saved: dict, other: dict) -> list[str]:
    """Settings of a saved config that another config has too, with another value; those of the machine aside."""
    return sorted(k for k in saved.keys() & other.keys() - OF_THE_MACHINE if saved[k] != other[k])


def render_problem(results: list[dict]) -> str:
    """The Markdown section of one problem: description, then all predictors and experiments, lowest test MSE first.

    results: all results with one problem_id. Raises BadInput where they disagree on the problem or a trivial one.
    """
    problem = results[0]["problem"]
    if any(r["problem"] != problem for r in results):
        raise BadInput(f"results of problem {results[0]['problem_id']} disagree on the key 'problem'")
    groups = defaultdict(list)
    for result in results:
        groups[result["stub"], result["preset"]].append(result)
    floor, ceiling = _best(groups, FLOOR), _best(groups, CEILING)
    scaled = floor is not None and ceiling is not None and floor > ceiling

    rows = []  # (test MSE to sort by, cells)
    for (slug, preset), group in groups.items():
        for other in group[1:]:
            if changed := _changed_settings(group[0]["config"], other["config"]):
                names = f"{slug}/results/{run_name(group[0])}.json and {run_name(other)}.json"
                raise BadInput(f"{names} are one preset but differ in config: {', '.join(changed)}")
        test = [r["test_mse"] for r in group]
        rollouts = _distinct(f"{r['rollouts']:,}" for r in group)
        cells = [f"[{slug}]({slug}/README.md)", preset, ", ".join(str(r["seed"]) for r in group), mean_and_spread(test)]
        cells += [_range([r[key] for r in group]) for key in ("test_mse_last_frame", "ridge_test_mse")]
        cells += [f"{(floor - statistics.fmean(test)) / (floor - ceiling):.0%}" if scaled else "—"]
        cells += [" – ".join((rollouts[0], rollouts[-1]) if len(rollouts) > 1 else rollouts)]
        cells += [
            _duration(statistics.fmean(r["wallclock_s"] for r in group)),
            "; ".join(_distinct(map(_hardware, group))),
        ]
        rows.append((statistics.fmean(test), [*cells, _source(group), _verdict(group)]))
    for name, title in TRIVIAL.items():
        value = _agreed(results, f"trivial_test_mse.{name}.all")
        if value is not None:
            last = _agreed(results, f"trivial_test_mse.{name}.last_frame")
            rows.append((value, [title, "—", "—", f"{value:.4f}", f"{last:.4f}"]))
    start = [r["ridge_test_mse_at_start"] for r in results if "ridge_test_mse_at_start" in r]
    if start:
        rows.append((min(start), ["frozen core, ridge readout", "—", "—", _range(start)]))

    length, digits, size = (problem.get(key) for key in ("sequence_length", "digits", "hidden_size"))
    title = f"Problem `{results[0]['problem_id']}`"
    if _integer(length) and _integer(digits) and _integer(size):
        title += f": {digits} digit{'s' * (digits > 1)}, T = {length}, N = {size}"
    last_frame = f"frame {length + 1} MSE" if _integer(length) else LAST_FRAME
    columns = [last_frame if column == LAST_FRAME else column for column in COLUMNS]
    table = [columns, ["---"] * len(columns)]
    table += [cells + ["—"] * (len(columns) - len(cells)) for _, cells in sorted(rows)]
    lines = [f"## {title}", "", describe_problem(problem) + ".", ""] + ["| " + " | ".join(row) + " |" for row in table]
    if scaled:
        lines += [
            "",
            f"Gap closed: 0 % is the floor {floor:.4f} ({FLOOR}), 100 % the ceiling {ceiling:.4f} ({CEILING}).",
        ]
    else:
        lines += [
            "",
            f"Gap closed needs a floor ({FLOOR}) and a lower ceiling ({CEILING}) on this problem: not there yet.",
        ]
    if any(_uncommitted(r) for r in results):
        lines += [
            "",
            "† Code was not, or not known to be, as committed when this ran; the result file holds its hashes.",
        ]
    return "\n".join(lines) + "\n"


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
    path = Path(root) / "RESULTS.md"
    return not path.is_file() or path.read_text(encoding="utf-8") != render(load_results(root))


def _write(path: Path, content: bytes) -> None:
    """Write atomically: a reader sees the old file or the new one."""
    temporary = path.with_name(path.name + ".tmp")
    temporary.write_bytes(content)
    os.replace(temporary, path)


def write_results(root: Path = ROOT) -> None:
    """Render RESULTS.md."""
    _write(Path(root) / "RESULTS.md", render(load_results(root)).encode())


# ---------------------------------------------------------------------------------------------------------------------
# publish


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
    run_dir = Path(run_dir)
    if not (run_dir / "results.json").is_file():
        raise BadInput(f"{run_dir}: holds no results.json; only a finished run can be published")
    result = read_result(run_dir / "results.json")
    if result["stub"] not in stubs(root):
        raise BadInput(f"{run_dir}: its stub {result['stub']!r} is no experiment under {root}")
    if not (run_dir / "metrics.jsonl").is_file():
        raise BadInput(f"{run_dir}: holds no metrics.jsonl")
    history = thin_history((run_dir / "metrics.jsonl").read_text(encoding="utf-8").splitlines())

    files = {
        ".json": (run_dir / "results.json").read_bytes(),
        ".history.jsonl": "".join(f"{h}\n" for h in history).encode(),
    }
    if result["seed"] == 0 and (run_dir / "figures.npz").is_file():
        files[".figures.npz"] = (run_dir / "figures.npz").read_bytes()
    for suffix, content in files.items():
        if len(content) > LARGEST_FILE:
            raise BadInput(
                f"{run_dir}: {suffix[1:]} would be {len(content):,} bytes; at most {LARGEST_FILE:,} are committed"
            )

    folder = Path(root) / result["stub"] / "results"
    folder.mkdir(exist_ok=True)
    for suffix in (".history.jsonl", ".figures.npz", ".json"):  # the result last: it is what others look for
        target = folder / (run_name(result) + suffix)
        if suffix in files:
            _write(target, files[suffix])
        else:
            target.unlink(missing_ok=True)  # of an earlier run under this name
    return [folder / (run_name(result) + suffix) for suffix in files]


# ---------------------------------------------------------------------------------------------------------------------
# the contract, as far as a machine can check it; every function returns a list of problems


def check_files(root: Path, slug: str) -> list[str]:
    """Files that a stub folder must hold, and that images are what their names say."""
    from PIL import Image

    folder, module = Path(root) / slug, module_of(slug)
    wanted = [f"{module}.py", f"visualize_{module}.py", f"make_{module}_gif.py", f"{module}.gif", "README.md"]
    problems = [f"{slug}: {name} is missing" for name in wanted if not (folder / name).is_file()]
    if not list((folder / "results").glob("*.json")):
        problems.append(f"{slug}: results/ holds no *.json")

    pngs = sorted((folder / "viz").glob("*.png"))
    kinds = {"training curves": "training|curve", "weights or states": "weight|spectr|adapter|singular|hidden|state"}
    for kind, pattern in kinds.items():
        if not any(re.search(pattern, p.name) for p in pngs):
            problems.append(f"{slug}: viz/ holds no PNG of {kind} (a name with one of {pattern.replace('|', ', ')})")
    for path in [*pngs, *folder.glob("*.gif")]:
        try:
            with Image.open(path) as image:
                actual, frames = image.format, getattr(image, "n_frames", 1)
        except OSError:
            actual, frames = None, 0
        if actual != path.suffix[1:].upper():
            problems.append(f"{slug}: {path.name} is not a {path.suffix[1:].upper()}")
        elif path.suffix == ".gif" and frames < 2:
            problems.append(f"{slug}: {path.name} does not move (one frame)")
        if path.stat().st_size > LARGEST_FILE:
            problems.append(f"{slug}: {path.name} is over 2 MB")
    return problems


def _outside_fences(text: str) -> str:
    return re.sub(r"^```.*?^```[^\n]*$", "", text, flags=re.MULTILINE | re.DOTALL)


def sections_of(text: str) -> list[tuple[str, str]]:
    """(heading, body) of a README: first its header (all before the first `## `, heading ""), then each section."""
    sections, fenced = [("", [])], False
    for line in text.splitlines():
        fenced ^= line.startswith("```")
        if line.startswith("## ") and not fenced:
            sections.append((line[3:].strip(), []))
        else:
            sections[-1][1].append(line)
    return [(heading, "\n".join(body).strip()) for heading, body in sections]


def check_readme(root: Path, slug: str) -> list[str]:
    """The eight sections in order and none empty; title, citation and GIF in the header; links lead somewhere."""
    path = Path(root) / slug / "README.md"
    if not path.is_file():
        return []  # said by check_files
    text = path.read_text(encoding="utf-8")
    (_, header), *rest = sections_of(text)
    problems = []
    if not re.match(r"# \S", header):
        problems.append(f"{slug}: README.md must begin with a title, '# …'")
    if not re.search(r"\b(19|20)\d\d\b", header):
        problems.append(f"{slug}: README.md cites nothing (no year) above its first section")
    if not re.search(rf"!\[[^\]]+\]\({module_of(slug)}\.gif\)", header):
        problems.append(
            f"{slug}: README.md does not show {module_of(slug)}.gif (with a text for those who cannot see it) in its header"
        )
    if [heading for heading, _ in rest] != SECTIONS:
        problems.append(f"{slug}: README.md must have exactly the sections {SECTIONS}, has {[h for h, _ in rest]}")
    problems += [f"{slug}: README.md, section '{heading}' is empty" for heading, body in rest if not body]
    return problems + check_links(root, path)


def check_links(root: Path, path: Path) -> list[str]:
    """Relative links and images of a Markdown file that lead to nothing."""
    targets = re.findall(r"\]\(([^)\s]+)\)", _outside_fences(path.read_text(encoding="utf-8")))
    local = [t.split("#")[0] for t in targets if not re.match(r"[a-z]+:", t)]
    name = path.relative_to(root)
    return [
        f"{name}: links to {target}, which does not exist" for target in local if not (path.parent / target).exists()
    ]


def check_results(root: Path, slug: str) -> list[str]:
    """Schema of the results, the laptop preset's time, and that README §Results prints the means of the files."""
    try:
        results = [r for r in load_results(root) if r["stub"] == slug]
    except BadInput as error:
        return [str(error)]
    path = Path(root) / slug / "README.md"
    section = dict(sections_of(path.read_text(encoding="utf-8"))).get("Results", "") if path.is_file() else ""
    problems, groups = [], defaultdict(list)
    for result in results:
        groups[result["problem_id"], result["preset"]].append(result)
        seconds, device = result["wallclock_s"], result["environment"]["device"]
        if result["preset"] == "laptop" and device == "cpu" and seconds > LAPTOP_SECONDS:
            problems.append(
                f"{slug}: {run_name(result)} took {seconds:.0f} s; the laptop preset has {LAPTOP_SECONDS} s"
            )
    for (_, preset), group in groups.items():
        mean = f"{statistics.fmean(r['test_mse'] for r in group):.4f}"
        if mean not in section:
            problems.append(f"{slug}: README.md §Results does not print {mean}, the mean test MSE of preset {preset}")
    return problems


def _trees(folder: Path) -> list[tuple[Path, ast.Module]]:
    return [(p, ast.parse(p.read_text(encoding="utf-8"), str(p))) for p in sorted(folder.glob("*.py"))]


def _imported(tree: ast.Module) -> set[str]:
    """First parts of the names of all modules that a file imports, wherever in it."""
    names = set()
    for node in ast.walk(tree):
        if isinstance(node, ast.Import):
            names |= {alias.name.split(".")[0] for alias in node.names}
        elif isinstance(node, ast.ImportFrom) and node.module and not node.level:
            names.add(node.module.split(".")[0])
    return names


def check_code(root: Path, slug: str) -> list[str]:
    """Nothing left undone in a stub's code, no warning of it in comments, and no import of another stub."""
    folder = Path(root) / slug
    foreign = {p.stem: other for other in stubs(root) if other != slug for p in (Path(root) / other).glob("*.py")}
    problems = []
    for path, tree in _trees(folder):
        name = f"{slug}/{path.name}"
        for word in re.findall(r"\b(TODO|FIXME|NotImplementedError)\b", path.read_text(encoding="utf-8")):
            problems.append(f"{name}: holds {word}")
        for node in ast.walk(tree):
            if isinstance(node, (ast.FunctionDef, ast.AsyncFunctionDef)):
                body = [n for n in node.body if not (isinstance(n, ast.Expr) and isinstance(n.value, ast.Constant))]
                if all(isinstance(n, ast.Pass) for n in body):
                    problems.append(f"{name}: function {node.name} is empty")
        own = {p.stem for p in folder.glob("*.py")}
        problems += [f"{name}: imports {m} of stub {foreign[m]}" for m in sorted(_imported(tree) & set(foreign) - own)]
    return problems


def check_common(root: Path) -> list[str]:
    """`common` imports no stub."""
    modules = {p.stem for slug in stubs(root) for p in (Path(root) / slug).glob("*.py")}
    trees = _trees(Path(root) / "common")
    return [
        f"common/{p.name}: imports {m}, part of a stub" for p, tree in trees for m in sorted(_imported(tree) & modules)
    ]


def check_sizes(root: Path) -> list[str]:
    """No file under version control over 2 MB (nothing to say outside a git work tree)."""
    listing = subprocess.run(["git", "ls-files", "-z"], cwd=root, capture_output=True, text=True)
    paths = [Path(root) / name for name in listing.stdout.split("\0") if name] if listing.returncode == 0 else []
    return [f"{p.relative_to(root)}: over 2 MB" for p in paths if p.is_file() and p.stat().st_size > LARGEST_FILE]


# Programs that a README may call besides python, torchrun and make; their arguments are not looked at.
OTHER_PROGRAMS = set(". cd source export git pip tensorboard sbatch scontrol head tail cat ls for done".split())


def bash_commands(text: str) -> list[list[list[str]]]:
    """The ```bash blocks of a Markdown text, each as a list of commands, each a list of words.

    Comments and redirections are dropped, continued lines joined, lists (`a && b; c | d`) taken apart, environment
    assignments and shell keywords before a program removed, shell variables replaced by 0. Raises ValueError for a line
    that a shell could not read.
    """
    blocks = []
    for block in re.findall(r"^```(?:bash|sh)\n(.*?)^```", text, flags=re.MULTILINE | re.DOTALL):
        commands = []
        for line in block.replace("\\\n", " ").splitlines():
            lexer = shlex.shlex(line, posix=True, punctuation_chars=True)
            lexer.whitespace_split = True
            words = [[]]
            for word in lexer:
                if set(word) <= set("();<>|&"):
                    if set(word) & set("<>"):
                        next(lexer, None)
                    else:
                        words.append([])
                else:
                    words[-1].append(re.sub(r"\$(\w+|\{\w+\})?", "0", word))
            commands += words
        plain = []
        for command in commands:
            while command and (re.match(r"\w+=", command[0]) or command[0] in ("do", "time", "srun")):
                command = command[1:]
            if command:
                plain.append(command)
        blocks.append(plain)
    return blocks


_PROBE = """
import dataclasses, importlib, json, sys
module, commands = json.load(sys.stdin)
sys.path.insert(0, "")
module = importlib.import_module(module)
answers = []
for arguments in commands:
    try:
        config, options = module.parse_arguments(arguments)
        answers.append(["", dataclasses.asdict(config)])
    except SystemExit as exit:
        answers.append(["" if not exit.code else f"exit code {exit.code}", None])
    except ValueError as error:
        answers.append([str(error), None])
print(json.dumps(answers))
"""


def _run(arguments: list, folder: Path, root: Path, **options) -> subprocess.CompletedProcess:
    """Run a Python program in `folder` with this repository's `common` in front of any installed one."""
    path = os.pathsep.join(filter(None, [str(Path(root).resolve()), os.environ.get("PYTHONPATH")]))
    environment = {**os.environ, "PYTHONPATH": path, "OMP_WAIT_POLICY": "PASSIVE", "MPLBACKEND": "Agg"}
    return subprocess.run([sys.executable, *map(str, arguments)], cwd=folder, env=environment, **options)


def _ask(root: Path, slug: str, commands: list[list[str]]) -> list[tuple[str, dict | None]]:
    """(why refused or "", configuration or None) of a stub's `parse_arguments` for each list of arguments."""
    asked = json.dumps([module_of(slug), commands])
    answer = _run(["-c", _PROBE], Path(root) / slug, root, input=asked, capture_output=True, text=True)
    if answer.returncode:
        return [(f"cannot be asked: {answer.stderr.strip()[-200:]}", None)] * len(commands)
    return [tuple(pair) for pair in json.loads(answer.stdout.splitlines()[-1])]


def check_presets(root: Path, slug: str) -> list[str]:
    """That every committed result ran with its preset as the script has it now: `--preset` and `--seed` alone repeat it."""
    try:
        results = [r for r in load_results(root) if r["stub"] == slug]
    except BadInput:
        return []  # said by check_results
    answers = _ask(root, slug, [["--preset", r["preset"], "--seed", str(r["seed"])] for r in results])
    problems = []
    for result, (refusal, config) in zip(results, answers):
        changed = [refusal] if config is None else _changed_settings(result["config"], config)
        if changed:
            problems.append(f"{slug}: {run_name(result)} is not what its preset runs now: {', '.join(changed)}")
    return problems


def _refused(root: Path, script: Path, commands: list[list[str]]) -> list[str]:
    """For each argument list an empty text, or why the script would refuse it.

    A stub's own script is asked through its `parse_arguments`; of any other script the flags must stand in its --help.
    """
    if script.stem == module_of(script.parent.name):
        return [refusal for refusal, _ in _ask(root, script.parent.name, commands)]
    flags = [[word.split("=")[0] for word in command if word.startswith("--")] for command in commands]
    captured = {"capture_output": True, "text": True}
    text = _run([script, "--help"], script.parent, root, **captured).stdout if any(flags) else ""
    known = set(re.findall(r"--[\w-]+", text))
    return [", ".join(f"unknown flag {flag}" for flag in f if flag not in known) for f in flags]


def check_commands(root: Path, readme: Path) -> list[str]:
    """Every command in a README's bash blocks: readable by a shell, naming files, make targets and flags that exist.

    Each block starts in the README's folder, or, where its first `cd` says so, at the root.
    """
    root, name = Path(root), Path(readme).relative_to(root)
    if not readme.is_file():
        return []
    try:
        blocks = bash_commands(readme.read_text(encoding="utf-8"))
    except ValueError as error:
        return [f"{name}: a bash block cannot be parsed: {error}"]
    targets = set(re.findall(r"^([a-z][\w-]*):", (root / "Makefile").read_text(encoding="utf-8"), flags=re.MULTILINE))
    problems, scripts = [], defaultdict(list)
    for block in blocks:
        here = readme.parent
        for before, command in zip([[], *block], block):
            line, program = shlex.join(command), Path(command[0]).name
            script = next((i for i, word in enumerate(command) if word.endswith(".py")), None)
            if program == "cd":
                places = [base / command[-1] for base in (here, root) if (base / command[-1]).is_dir()]
                if places:
                    here = places[0]
                elif "clone" not in before:  # a fresh clone's folder has whatever name; it is this repository
                    problems.append(f"{name}: `{line}`: no such folder")
            elif script is not None:
                if (here / command[script]).is_file():
                    scripts[(here / command[script]).resolve()].append((line, command[script + 1 :]))
                else:
                    problems.append(f"{name}: `{line}`: no such file")
            elif program == "make":
                goals = [word for word in command[1:] if "=" not in word and not word.startswith("-")]
                problems += [f"{name}: `{line}`: no such make target" for goal in goals if goal not in targets]
            elif re.fullmatch(r"python[\d.]*", program) and command[1:3] == ["-m", "common.catalog"]:
                try:
                    parser().parse_args(command[3:])
                except (BadInput, SystemExit) as error:
                    problems.append(f"{name}: `{line}`: {error}")
            elif re.fullmatch(r"python[\d.]*", program) and command[1:2] == ["-m"]:
                if importlib.util.find_spec(command[2]) is None:
                    problems.append(f"{name}: `{line}`: no such module")
            elif program not in OTHER_PROGRAMS:
                problems.append(f"{name}: `{line}`: unknown command {program}")
    for script, uses in scripts.items():
        answers = _refused(root, script, [arguments for _, arguments in uses])
        problems += [f"{name}: `{line}`: {answer}" for (line, _), answer in zip(uses, answers) if answer]
    return problems


def check_stub(root: Path, slug: str) -> list[str]:
    """All problems of one stub."""
    problems = [
        p for look in (check_files, check_readme, check_results, check_presets, check_code) for p in look(root, slug)
    ]
    return problems + check_commands(root, Path(root) / slug / "README.md")


def check_repository(root: Path) -> list[str]:
    """Problems of what lies outside the stubs: dependency direction, sizes, README.md, freshness of RESULTS.md."""
    root = Path(root)
    problems = check_common(root) + check_sizes(root) + check_commands(root, root / "README.md")
    for name in ("README.md", "SPEC.md", "RESULTS.md"):
        problems += check_links(root, root / name) if (root / name).is_file() else [f"{name} is missing"]
    try:
        problems += ["RESULTS.md is stale: run `make results`"] if results_are_stale(root) else []
    except BadInput as error:
        problems.append(str(error))
    return problems


def check(root: Path = ROOT, slugs: list[str] | None = None) -> list[str]:
    """Problems of the given stubs, or of the whole repository. Raises BadInput for a stub that does not exist."""
    for slug in slugs or []:
        if slug not in stubs(root):
            raise BadInput(f"{slug}: no such stub; there are {', '.join(stubs(root)) or 'none'}")
    problems = [problem for slug in (slugs or stubs(root)) for problem in check_stub(root, slug)]
    return problems if slugs else problems + check_repository(root)


# ---------------------------------------------------------------------------------------------------------------------
# figures and new experiments


def draw_figures(root: Path, slug: str) -> None:
    """Redraw a stub's viz/*.png and GIF from its committed results. Raises BadInput where a script fails."""
    for script in (f"visualize_{module_of(slug)}.py", f"make_{module_of(slug)}_gif.py"):
        if _run([script], Path(root) / slug, root).returncode:
            raise BadInput(f"{slug}/{script} failed")


def check_name(root: Path, name: str) -> None:
    """Raises BadInput unless `name` can become an experiment: kebab case, unused, no clash with a Python module."""
    if not re.fullmatch(r"[a-z][a-z0-9]*(-[a-z0-9]+)*", name):
        raise BadInput(f"NAME {name!r}: use small letters and digits, joined by single hyphens, as in my-idea")
    if (Path(root) / name).exists():
        raise BadInput(f"NAME {name}: {Path(root) / name} exists already")
    module = module_of(name)
    if keyword.iskeyword(module) or importlib.util.find_spec(module) is not None:
        raise BadInput(f"NAME {name}: {module} is a name of Python or of an installed package; choose another")


def new(name: str, root: Path = ROOT) -> Path:
    """Copy template/ to NAME/, run it at its smoke preset, publish, draw: an experiment that keeps the contract.

    Returns its folder; removes it again where a step fails. Raises BadInput for a bad name or a failing step.
    """
    root = Path(root)
    check_name(root, name)
    folder, module = root / name, module_of(name)
    replacements = {
        "experiment_slug": module,
        "experiment-slug": name,
        "Experiment title": name.replace("-", " ").capitalize(),
    }

    def fill(text: str, table: dict) -> str:
        for old, value in table.items():
            text = text.replace(old, value)
        return text

    try:
        for source in sorted(p for p in (root / "template").rglob("*") if p.is_file() and "__pycache__" not in p.parts):
            target = folder / fill(str(source.relative_to(root / "template")), replacements)
            target.parent.mkdir(parents=True, exist_ok=True)
            target.write_text(fill(source.read_text(encoding="utf-8"), replacements), encoding="utf-8")
        if _run([f"{module}.py", "--seed", "0", "--preset", "smoke"], folder, root).returncode:
            raise BadInput(f"{name}: the smoke run failed")
        result = read_result(publish(folder / "runs" / "smoke-seed0", root)[0])
        readme = folder / "README.md"
        measured = {
            "{test_mse}": f"{result['test_mse']:.4f}",
            "{ridge_test_mse}": f"{result['ridge_test_mse']:.4f}",
            "{wallclock}": _duration(result["wallclock_s"]),
            "{hardware}": _hardware(result),
            "{reproduces}": result["reproduces"],
        }
        readme.write_text(fill(readme.read_text(encoding="utf-8"), measured), encoding="utf-8")
        draw_figures(root, name)
    except BaseException:
        shutil.rmtree(folder, ignore_errors=True)
        raise
    write_results(root)
    return folder


# ---------------------------------------------------------------------------------------------------------------------
# command line


class _Parser(argparse.ArgumentParser):
    def error(self, message):
        raise BadInput(message)


def parser() -> argparse.ArgumentParser:
    """The command line of this module."""
    top = _Parser(prog="python -m common.catalog", description="Results, contract and template of the catalog.")
    commands = top.add_subparsers(dest="command", required=True)
    command = commands.add_parser("results", help="write RESULTS.md from the committed results")
    command.add_argument("--check", action="store_true", help="write nothing; exit code 1 where RESULTS.md is stale")
    command = commands.add_parser("check", help="check the contract of SPEC.md")
    command.add_argument("stub", nargs="*", help="only these (default: the whole repository)")
    command = commands.add_parser("publish", help="copy a finished run to its stub's results/")
    command.add_argument("run_dir", type=Path)
    command = commands.add_parser("figures", help="redraw figures and GIFs from committed results")
    command.add_argument("stub", nargs="*", help="only these (default: all)")
    command = commands.add_parser("new", help="start an experiment from template/")
    command.add_argument("name")
    for command in commands.choices.values():
        command.add_argument("--root", type=Path, default=ROOT, help="another copy of the repository")
    return top


def _say(problems: list[str]) -> int:
    for problem in problems:
        print(problem)
    return 1 if problems else 0


def _dispatch(arguments: argparse.Namespace) -> int:
    root = arguments.root.resolve()
    if not (root / "common").is_dir():
        raise BadInput(f"--root {root}: not this repository (install with pip install -e, or name the folder)")
    if arguments.command == "results" and arguments.check:
        return _say(["RESULTS.md is stale: run `make results`"] if results_are_stale(root) else [])
    if arguments.command == "results":
        write_results(root)
    elif arguments.command == "check":
        return _say(check(root, arguments.stub))
    elif arguments.command == "publish":
        for path in publish(arguments.run_dir, root):
            print(path)
    elif arguments.command == "figures":
        for slug in arguments.stub or stubs(root):
            if slug not in stubs(root):
                raise BadInput(f"{slug}: no such stub; there are {', '.join(stubs(root)) or 'none'}")
            draw_figures(root, slug)
    elif arguments.command == "new":
        folder = new(arguments.name, root)
        module = module_of(arguments.name)
        print(f"\n{folder.name}/ is there and keeps the contract. Next:")
        print(f"  1. write the question and its source at the head of {folder.name}/README.md")
        print(f"  2. change what is trained, and how, in {folder.name}/{module}.py")
        print(f"  3. python {module}.py --seed 0 (in its folder), then python -m common.catalog publish runs/<run>")
        print("  4. make figures results test")
        return _say(check(root, [arguments.name]))
    return 0


def main(argv: list[str] | None = None) -> int:
    """Run the command line; returns the exit code: 0 done, 1 problems found, 2 bad input (one line on stderr)."""
    try:
        return _dispatch(parser().parse_args(argv))
    except BadInput as error:
        print(f"catalog: {error}", file=sys.stderr)
        return 2


if __name__ == "__main__":
    sys.exit(main())
