"""Committed results: their schema, how a run gets there, how they compare, and RESULTS.md, made from them alone.

Nothing here imports an experiment or needs torch: it reads files. The figures of RESULTS.md are drawn in
results_figures.py.
"""

import hashlib
import json
import math
import re
import statistics
from collections import defaultdict
from collections.abc import Iterable
from dataclasses import dataclass
from pathlib import Path

from common.errors import BadInput
from common.files import write_atomically
from common.text import duration

ROOT = Path(__file__).resolve().parent.parent
LARGEST_FILE = 2_000_000  # bytes
HISTORY_LINES = 200
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
    "config.train_sequences": INTEGER,
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
    return sorted(results, key=_place)


def _place(result: dict) -> tuple[str, str, int]:
    """Where a result stands in every list of results."""
    return result["stub"], result["preset"], result["seed"]


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


# --- Comparing within a problem --------------------------------------------------------------------------------------


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

    key: str  # "test_mse" under the model's own decoder, "ridge_test_mse" under refitted ones
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
        return f"{_signed(self.mean)} ± {self.half_width:.5f}"


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
    for result in sorted(results, key=_place):
        problems[result["problem_id"]].append(result)
    for name, members in problems.items():
        if any(r["problem"] != members[0]["problem"] for r in members):
            raise BadInput(f"results of problem {name} disagree on the key 'problem'")
    return sorted(problems.values(), key=lambda p: (_only_smoke(p), -len(p), p[0]["problem_id"]))


def _only_smoke(results: list[dict]) -> bool:
    return all(r["preset"] == "smoke" for r in results)


# --- RESULTS.md ------------------------------------------------------------------------------------------------------

HEADER = """# Results

Generated from the committed files `*/results/*` by `make results` (`python -m common.catalog results`); edits are lost.
Lower errors are better; [how to read this page](#how-to-read-this-page) stands at its end.
"""
HOW_TO_READ = """## How to read this page

Errors are standardised mean squared errors on the problem's test sequences: 1.0 is what predicting the mean embedding
scores, lower is better. They are given as mean ± sample standard deviation over seeds. Errors compare only within one
problem: same data, encoder, reservoir and test set (the same `problem_id`).

**Floor and ceiling.** A floor is a frozen reservoir of which only the readout is trained; a ceiling trains the
adapter by backpropagation through time; a reference is a bar outside the comparison. *Gap closed* is 0 % at the best
floor and 100 % at the best ceiling, on two scales. Under *test MSE* every model is scored with its own decoder,
trained by Adam. Under *ridge refit* the decoder of every model is replaced by a ridge regression on its final states,
in float64, fitted on all training sequences of the run (50,000 at most), its penalty chosen on validation: this
compares cores, whatever their decoders. Rows with other numbers of training sequences differ in it, too.

**Pairs.** The controlled comparison is with the floor of the same preset name and training sequences. Differences are
method − floor for each seed that both have; their mean is given ± half its 95 % t interval. An interval without zero
("lower", "higher") says that on this problem the method's mean over seeds differs from the floor's; as all seeds
share one reservoir and one test set, it says nothing about others. SPEC.md defines every column.
"""
UNCOMMITTED = "† Code was not, or not known to be, as committed when this ran; the result file holds its hashes."
OUTSIDE = {"floor": " (floor)", "ceiling": " (ceiling)", "reference": " (reference)", None: ""}
MISSING = "—"


def mean_and_spread(values: list[float]) -> str:
    """`0.6512 ± 0.0031`: mean and sample standard deviation (n − 1); no spread for a single value."""
    spread = f" ± {statistics.stdev(values):.4f}" if len(values) > 1 else ""
    return f"{statistics.fmean(values):.4f}{spread}"


def _signed(value: float) -> str:
    """`−0.00310`: differences of refitted readouts can be small."""
    return f"{value:+.5f}".replace("-", "−")


def percent(share: float | None) -> str:
    """`−3.1 %`; a dash for None."""
    return MISSING if share is None else f"{round(100 * share, 1) + 0.0:.1f} %".replace("-", "−")


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


def _verdict(group: Group) -> str:
    verdicts = [r["reproduces"] for r in group.results]
    if len(set(verdicts)) == 1:
        return verdicts[0]
    return ", ".join(f"{v} ({verdicts.count(v)})" for v in ("yes", "partial", "no") if v in verdicts)


def agreed(results: list[dict], path: str, tolerance: float = 1e-3) -> float | None:
    """The value under `path` that all results of a problem share (rounding between machines aside), or None.

    Raises BadInput where they do not.
    """
    values = [v for v in (_look_up(r, path) for r in results) if v is not _MISSING]
    if values and max(values) - min(values) > tolerance * max(values):
        raise BadInput(
            f"results of problem {results[0]['problem_id']} disagree on {path}: {min(values)} and {max(values)}"
        )
    return values[0] if values else None


def _link(group: Group) -> str:
    return f"[{group.stub}]({group.stub}/README.md){OUTSIDE[group.role]}"


def _listed_seeds(seeds: Iterable[int]) -> str:
    return ", ".join(map(str, seeds))


def _table(columns: list[str], rows: list[list[str]]) -> str:
    """A Markdown table; short rows are filled with dashes."""
    rows = [columns, ["---"] * len(columns), *(row + [MISSING] * (len(columns) - len(row)) for row in rows)]
    return "\n".join("| " + " | ".join(row) + " |" for row in rows)


def _ladder(results: list[dict], groups: list[Group], scales: list[Scale]) -> str:
    """The table of a problem: all experiments and trivial predictors, lowest test MSE first."""
    rows = [(group.mean("test_mse"), _cells(group, scales)) for group in groups]
    for key, title in TRIVIAL.items():
        test = agreed(results, f"trivial_test_mse.{key}.all")
        if test is not None:
            last = agreed(results, f"trivial_test_mse.{key}.last_frame")
            rows.append((test, [title, MISSING, MISSING, f"{test:.4f}", f"{last:.4f}"]))
    start = [r["ridge_test_mse_at_start"] for r in results if "ridge_test_mse_at_start" in r]
    if start and not any(group.role == "floor" for group in groups):  # the ridge refit of a floor is the same
        rows.append((min(start), ["frozen core, ridge readout", MISSING, MISSING, _range(start)]))
    frame = results[0]["problem"]["sequence_length"] + 1
    columns = ["experiment", "preset", "seeds", "test MSE", f"frame {frame} MSE", "ridge refit MSE"]
    columns += ["gap closed (Adam floor)", "gap closed (ridge floor)", "training sequences", "rollouts", "wallclock"]
    columns += ["hardware", "source", "Reproduces?"]
    return _table(columns, [cells for _, cells in sorted(rows)])


def _cells(group: Group, scales: list[Scale]) -> list[str]:
    """The row of a group in the table of its problem."""
    return [
        _link(group),
        group.preset,
        _listed_seeds(group.seeds),
        mean_and_spread(group.values("test_mse")),
        mean_and_spread(group.values("test_mse_last_frame")),
        mean_and_spread(group.values("ridge_test_mse")),
        *(percent(scale.gap_closed(group)) for scale in scales),
        MISSING if group.train_sequences is None else f"{group.train_sequences:,}",
        _range(group.values("rollouts"), ","),
        duration(group.mean("wallclock_s")),
        _listed(map(hardware, group.results), "; "),
        _listed(map(_source, group.results)),
        _verdict(group),
    ]


def _pairs(groups: list[Group]) -> list[str]:
    """Paragraphs: every group paired with the floor of its preset, and why others are not. Empty without a floor."""
    rows, alone = [], []
    for group in groups:
        floor = floor_like(group, groups)
        if group.role == "floor":
            continue
        if floor is None:
            alone.append(f"{group.name} (there is no floor of this preset and number of training sequences)")
        elif len(seeds := shared_seeds(group, floor)) < 2:
            alone.append(f"{group.name} (fewer than two seeds in common with its floor)")
        else:
            cells = [_link(group), group.preset, _listed_seeds(seeds)]
            for key in ("test_mse", "ridge_test_mse"):
                difference = paired_difference(group, floor, key)
                cells.append(f"{difference}: {difference.verdict}")
            rows.append(cells)
    if not any(group.role == "floor" for group in groups):
        return []
    columns = ["method − floor of the same preset", "preset", "seeds", "test MSE", "ridge refit MSE"]
    return [_table(columns, rows)] * bool(rows) + [f"Not paired: {'; '.join(alone)}."] * bool(alone)


def _findings(results: list[dict], groups: list[Group], scales: list[Scale]) -> list[str]:
    """Sentences that the numbers carry, each by a rule; where numbers are missing there is no sentence."""
    sentences = [*_lengths(scales), *_of_the_readout(results, groups, scales)]
    for group in groups:
        if group.role is None and any(scale.length for scale in scales):
            sentences.append(_of_a_method(group, groups, scales))
    for group in groups:
        if group.role == "reference" and (ceiling := scales[0].ceiling):
            error, bar = group.mean("test_mse"), ceiling.mean("test_mse")
            beats = f"beats the ceiling by {bar - error:.4f}" if error < bar else "does not beat the ceiling"
            sentences.append(f"The reference {group.name} {beats} ({error:.4f} against {bar:.4f}).")
    return sentences


def _lengths(scales: list[Scale]) -> list[str]:
    """How far floor and ceiling are apart on each scale, or why that is not known."""
    if lacking := [role for role in ("floor", "ceiling") if getattr(scales[0], role) is None]:
        return [f"This problem has no {' and no '.join(lacking)} yet: the gap closed cannot be given."]
    sentences = []
    for scale, name in zip(scales, ("With their own decoders", "With ridge refits")):
        floor, ceiling = scale.floor.mean(scale.key), scale.ceiling.mean(scale.key)
        ends = f"{name}, floor {floor:.4f} ({scale.floor.name}) and ceiling {ceiling:.4f} ({scale.ceiling.name}) are"
        if scale.length:
            sentences.append(f"{ends} {scale.length:.4f} apart: {percent(scale.length / floor)} of the floor's error.")
        else:
            sentences.append(f"{ends} in the wrong order: the gap closed cannot be given.")
    return sentences


def _of_the_readout(results: list[dict], groups: list[Group], scales: list[Scale]) -> list[str]:
    """What the frozen reservoir's readout gains over AR(3), and what more training sequences bring it."""
    sentences = []
    bar = agreed(results, "trivial_test_mse.ar3.all")
    if bar is not None and scales[0].floor:
        adam, ridge = (scale.floor.mean(scale.key) for scale in scales)
        gains = [
            f"{abs(bar - error):.4f} ({percent(abs(bar - error) / bar)}) {'below' if error < bar else 'above'}"
            for error in (adam, ridge)
        ]
        sentences.append(
            f"The readout alone is {gains[0]} AR(3), which knows no reservoir ({bar:.4f}); "
            f"refitted by ridge, {gains[1]}."
        )
    floors = [g for g in groups if g.role == "floor" and g.train_sequences]
    floors.sort(key=lambda g: (g.stub, g.train_sequences))
    for less, more in zip(floors, floors[1:]):
        if less.train_sequences < more.train_sequences and less.stub == more.stub:
            changes = [f"{less.mean(s.key):.4f} → {more.mean(s.key):.4f}" for s in scales]
            sentences.append(
                f"From {less.train_sequences:,} to {more.train_sequences:,} training sequences "
                f"(presets {less.preset} and {more.preset}) the readout of {less.stub} goes {changes[0]}, its ridge refit {changes[1]}."
            )
    return sentences


def _of_a_method(group: Group, groups: list[Group], scales: list[Scale]) -> str:
    """The gaps that a method closes and whether it can be told from its floor."""
    floor, parts = floor_like(group, groups), []
    for scale, where in zip(scales, ("of the gap", "under ridge refits")):
        if (gap := scale.gap_closed(group)) is None:
            continue
        part = f"{percent(gap)} {where}"
        if floor and len(seeds := shared_seeds(group, floor)) >= 2:
            difference = paired_difference(group, floor, scale.key)
            told = {"lower": "distinguishable from the floor", "higher": "worse than the floor"}
            verdict = told.get(difference.verdict, "not distinguishable from the floor")
            part += f" (paired difference {difference} over {len(seeds)} seeds: {verdict})"
        parts.append(part)
    return f"**{group.name}** closes {'; '.join(parts)}."


def render_problem(results: list[dict], main: list[dict] | None = None, figures: Iterable[str] = ()) -> str:
    """The Markdown section of one problem: what follows from its numbers, all rows, the pairs, and its description.

    results: all results with one problem_id. main: those of the main problem, where this is another; figures: Markdown
    that shows this problem's figures. Raises BadInput where results disagree on what they should share.
    """
    groups = groups_of(results)
    scales = [scale_of(groups, key) for key in ("test_mse", "ridge_test_mse")]
    problem = results[0]["problem"]
    if main is None:
        heading, description = problem_title(problem), describe_problem(problem)
    else:
        heading = changed_problem(problem, main[0]["problem"])
        description = f"{problem_title(problem)}; all else as in problem `{main[0]['problem_id']}`"
    paragraphs = [
        f"## Problem `{results[0]['problem_id']}`: {heading}",
        *figures,
        "\n".join(f"- {sentence}" for sentence in _findings(results, groups, scales)),
        _ladder(results, groups, scales),
        *([UNCOMMITTED] if any(map(_uncommitted, results)) else []),
        *_pairs(groups),
        f"The problem: {description}.",
    ]
    return "\n\n".join(paragraphs) + "\n"


def problem_title(problem: dict) -> str:
    """`1 digit, T = 20, N = 2000`."""
    length, digits, size = (problem[key] for key in ("sequence_length", "digits", "hidden_size"))
    return f"{digits} digit{'s' * (digits > 1)}, T = {length}, N = {size}"


def describe_problem(problem: dict) -> str:
    """One line of `key value` pairs; hashes are shortened."""
    return ", ".join(f"{key.replace('_', ' ')} {_short(value)}" for key, value in sorted(problem.items()))


def changed_problem(problem: dict, main: dict) -> str:
    """What distinguishes a problem from the main one: `leak 1.0 instead of 0.5`."""
    changes = []
    for key in sorted(problem.keys() | main.keys()):
        mine, its = (_short(p[key]) if key in p else "nothing" for p in (problem, main))
        if mine != its:
            changes.append(f"{key.replace('_', ' ')} {mine} instead of {its}")
    return ", ".join(changes) or "another hash of the same description"


def _short(value) -> str:
    text = value if isinstance(value, str) else json.dumps(value)
    return text[:12] if _sha256(text) else text


def render(results: list[dict]) -> str:
    """RESULTS.md as text: a function of the committed results alone (no clock, no machine, no order of files)."""
    problems = problems_of(results)
    if not problems:
        return f"{HEADER}\nNo results are committed yet.\n"
    main, *others = problems
    sections = [HEADER, *(f"{line}\n" for line in _shown(main, main)), render_problem(main)]
    sections += [render_problem(results, main, _shown(results, main)) for results in others]
    return "\n".join([*sections, HOW_TO_READ])


# --- Figures of RESULTS.md -------------------------------------------------------------------------------------------

FIGURES = ("floor-to-ceiling", "mse-against-cost")


def figures_of(results: list[dict]) -> dict[str, list[dict]]:
    """Path under the root → the results that the figure is drawn from."""
    main, *others = problems_of(results) or [[]]
    return {_figure(kind, p, main): p for p in (main, *others) if _has_figures(p) for kind in FIGURES}


def _has_figures(results: list[dict]) -> bool:
    """Smoke runs are not drawn, nor is a problem with fewer than two rows to compare."""
    return not _only_smoke(results) and len(groups_of(results)) > 1


def _figure(kind: str, results: list[dict], main: list[dict]) -> str:
    return f"viz/{kind}{'' if results is main else '-' + results[0]['problem_id']}.png"


def _shown(results: list[dict], main: list[dict]) -> list[str]:
    """Markdown of a problem's figures, each with a text for those who cannot see it."""
    if not _has_figures(results):
        return []
    groups = groups_of(results)
    rows = [
        f"{g.stub} {g.preset}{OUTSIDE[g.role]} {g.mean('test_mse'):.4f} and {g.mean('ridge_test_mse'):.4f}"
        for g in groups
    ]
    ends = [f"{g.stub} {g.preset} {g.mean('validation_mse'):.4f}" for g in groups if g.values("validation_mse")]
    texts = (
        "Dot plot of test errors, one row for each experiment and preset, lowest first: left with the model's own "
        "decoder, right with a ridge readout refitted on the final states. Vertical lines mark floor and ceiling, each "
        f"seed is a dot. Means: {'; '.join(rows)}.",
        "Two line plots of the validation error over the course of training, against rollouts and against wallclock, "
        "both logarithmic, with floor and ceiling as horizontal lines; seed 0 bold, other seeds pale. Final models: "
        f"{'; '.join(ends) or 'not recorded'}.",
    )
    return [f"![{text}]({_figure(kind, results, main)})" for kind, text in zip(FIGURES, texts)]


def drawn_from(results: list[dict], root: Path = ROOT) -> str:
    """SHA-256 over the result and history files of `results`: what a figure of them is drawn from.

    Raises BadInput where a history is missing.
    """
    digest = hashlib.sha256()
    for result in sorted(results, key=_place):
        for suffix in (".json", ".history.jsonl"):
            path = root / result["stub"] / "results" / (run_name(result) + suffix)
            try:
                content = path.read_bytes()
            except OSError as error:
                raise BadInput(f"{path}: cannot be read ({error.strerror})") from None
            digest.update(f"{path.relative_to(root).as_posix()} {hashlib.sha256(content).hexdigest()}\n".encode())
    return digest.hexdigest()


def _inputs_of(path: Path) -> str | None:
    """The digest that a drawn figure carries; None where there is none."""
    from PIL import Image

    try:
        with Image.open(path) as image:
            return image.info.get("Inputs")
    except (OSError, ValueError, SyntaxError):  # not a PNG, or a broken one
        return None


def _stale_figures(root: Path, results: list[dict]) -> list[str]:
    return [name for name, shown in figures_of(results).items() if _inputs_of(root / name) != drawn_from(shown, root)]


def _left_over(root: Path, results: list[dict]) -> list[str]:
    """Figures of problems that are no longer there."""
    found = {path.relative_to(root).as_posix() for kind in FIGURES for path in (root / "viz").glob(f"{kind}*.png")}
    return sorted(found - figures_of(results).keys())


# --- Writing and checking --------------------------------------------------------------------------------------------


def stale_files(root: Path = ROOT) -> list[str]:
    """RESULTS.md and its figures, as far as missing or not made from the committed results: paths under the root."""
    results, page = load_results(root), root / "RESULTS.md"
    fresh = page.is_file() and page.read_text(encoding="utf-8") == render(results)
    return ["RESULTS.md"] * (not fresh) + _stale_figures(root, results) + _left_over(root, results)


def results_are_stale(root: Path = ROOT) -> bool:
    """True where RESULTS.md or one of its figures is not what the committed results say."""
    return bool(stale_files(root))


def write_results(root: Path = ROOT, redraw: bool = False) -> None:
    """Write RESULTS.md and its figures: those that are stale, or all of them (`redraw`)."""
    results = load_results(root)
    text = render(results)  # before anything is written: it may refuse
    names = list(figures_of(results)) if redraw else _stale_figures(root, results)
    if names:
        from common.results_figures import draw  # matplotlib takes a second that a check need not wait for

        for name in names:
            draw(root, name, figures_of(results)[name])
    for name in _left_over(root, results):
        (root / name).unlink()
    write_atomically(root / "RESULTS.md", text.encode())
