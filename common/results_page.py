"""RESULTS.md, made from the committed results and histories alone: its tables, what they say in sentences, and when it is stale.

Its figures are drawn in results_figures.py; here they have their names, and the digests that tell whether they are stale.
"""

import hashlib
import json
import statistics
from collections import defaultdict
from collections.abc import Iterable
from pathlib import Path

from common.comparison import (
    Cost,
    Evaluation,
    Group,
    Scale,
    agreed,
    ceiling_like,
    cost_of,
    equal_data_scale,
    floor_like,
    groups_of,
    only_smoke,
    paired_difference,
    problems_of,
    scale_of,
    shared_seeds,
)
from common.errors import BadInput
from common.files import write_atomically
from common.results import (
    ROOT,
    TRIVIAL,
    curricula,
    is_sha256,
    load_results,
    place,
    read_curriculum,
    run_name,
    scores_in,
    stubs,
    studies,
)
from common.text import duration, in_words

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
trained by Adam or, where marked ‡, by recursive least squares. Under *ridge refit* the decoder of every model is replaced by a ridge regression on its final states,
in float64, fitted on all training sequences of the run (50,000 at most), its penalty chosen on validation: this
compares cores, whatever their decoders. Rows with other numbers of training sequences differ in it, too.

**Pairs.** The controlled comparison is with the floor of the same preset name and training sequences. Differences are
method − floor for each seed that both have; their mean is given ± half its 95 % t interval. An interval without zero
("lower", "higher") says that on this problem the method's mean over seeds differs from the floor's; as all seeds
share one reservoir and one test set, it says nothing about others. Only the ridge column compares cores alone: under *test MSE* a
difference is also that of how the decoders were trained, wherever one is marked ‡, and for a ceiling, whose decoder learns in
the same step as its core. SPEC.md defines every column.
"""
UNCOMMITTED = "† Code was not, or not known to be, as committed when this ran; the result file holds its hashes."
OTHER_DECODER = "‡ Its own decoder is a recursive ridge regression; all others are trained by Adam."
OUTSIDE = {"floor": " (floor)", "ceiling": " (ceiling)", "reference": " (reference)", None: ""}
MISSING = "—"
SHARES = (0.25, 0.5, 0.75)  # of the gap, whose cost is given
COSTS = (
    "Rollouts · time of training up to the first evaluation whose validation MSE is at or below floor − share × (floor − "
    "ceiling), medians over the seeds that get there: “2 of 5” where not all do, — where none does. The curves are under a "
    "method's own decoder, floor and ceiling under a ridge refit on as many training sequences, so shares come out slightly "
    "low and costs slightly high; a rollout of backpropagation is a forward and a backward pass, of evolution strategies a "
    "forward pass alone, and times compare only on the same hardware."
)
UNEVEN = (
    "§ The range of times instead of their median: one seed took more than twice as long as another, as it does on other "
    "hardware or beside other work."
)


def mean_and_spread(values: list[float]) -> str:
    """`0.6512 ± 0.0031`: mean and sample standard deviation (n − 1); no spread for a single value."""
    spread = f" ± {statistics.stdev(values):.4f}" if len(values) > 1 else ""
    return f"{statistics.fmean(values):.4f}{spread}"


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


def _link(group: Group) -> str:
    return f"[{group.stub}]({group.stub}/README.md){OUTSIDE[group.role]}"


def _listed_seeds(seeds: Iterable[int]) -> str:
    return ", ".join(map(str, seeds))


def markdown_table(columns: list[str], rows: list[list[str]]) -> str:
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
    return markdown_table(columns, [cells for _, cells in sorted(rows)])


def _cells(group: Group, scales: list[Scale]) -> list[str]:
    """The row of a group in the table of its problem."""
    return [
        _link(group),
        group.preset,
        _listed_seeds(group.seeds),
        mean_and_spread(group.values("test_mse")) + _decoder_mark(group),
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


def _decoder_mark(group: Group) -> str:
    return "" if group.decoder == "adam" else " ‡"


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
                mark = _decoder_mark(group) if key == "test_mse" and group.decoder != floor.decoder else ""
                cells.append(f"{difference}: {difference.verdict}{mark}")
            rows.append(cells)
    if not any(group.role == "floor" for group in groups):
        return []
    columns = ["method − floor of the same preset", "preset", "seeds", "test MSE", "ridge refit MSE"]
    return [markdown_table(columns, rows)] * bool(rows) + [f"Not paired: {'; '.join(alone)}."] * bool(alone)


def _costs(groups: list[Group], root: Path) -> list[str]:
    """Paragraphs: what it costs each group that trains a core to close shares of the gap on equal data, and which are left out.

    Empty without a floor or a ceiling. Raises BadInput where the history of a row is missing or broken.
    """
    if not {"floor", "ceiling"} <= {group.role for group in groups}:
        return []
    rows, alone, levels = [], [], {}
    for group in sorted(groups, key=lambda g: g.train_sequences or 0):
        if group.role == "floor":
            continue
        scale = equal_data_scale(group, groups)
        if scale is None:
            alone.append(group.name)
            continue
        histories = [_evaluations(result, root) for result in group.results]
        costs = [_cost_cell(cost_of(scale.level(share), histories)) for share in SHARES]
        rows.append([_link(group), group.preset, f"{group.train_sequences:,}", *costs])
        levels[group.train_sequences] = scale
    paragraphs = []
    if rows:
        columns = ["cost of closing the gap", "preset", "training sequences"]
        columns += [f"{100 * share:.0f} % of the gap" for share in SHARES]
        ends = "; ".join(_levels(count, scale) for count, scale in levels.items())
        paragraphs += [markdown_table(columns, rows), f"{COSTS} Validation MSE at these shares: {ends}."]
        paragraphs += [UNEVEN] * any("§" in cell for row in rows for cell in row)
    if alone:
        why = "there is no floor and ceiling with as many training sequences and validation errors under a ridge refit, the "
        paragraphs.append(f"No cost is given where {why}ceiling's the lower: {'; '.join(alone)}.")
    return paragraphs


def _cost_cell(cost: Cost | None) -> str:
    """`83,840 · 30 s (2 of 5)`; a dash for None."""
    if cost is None:
        return MISSING
    uneven = cost.slowest > 2 * cost.fastest  # a median of such times would be that of what else the machines did
    time = f"{duration(cost.fastest)} – {duration(cost.slowest)} §" if uneven else duration(cost.seconds)
    few = f" ({cost.reached} of {cost.seeds})" if cost.reached < cost.seeds else ""
    return f"{in_words(cost.rollouts)} · {time}{few}"


def _levels(count: int, scale: Scale) -> str:
    """The errors that closing the shares asks for, and between which groups."""
    floor, ceiling = (f"{group.mean(scale.key):.4f} ({group.name})" for group in (scale.floor, scale.ceiling))
    shares = ", ".join(f"{scale.level(share):.4f}" for share in SHARES)
    return f"{shares} on {count:,} training sequences, from floor {floor} to ceiling {ceiling}"


def _findings(results: list[dict], groups: list[Group], scales: list[Scale]) -> list[str]:
    """Sentences that the numbers carry, each by a rule; where numbers are missing there is no sentence."""
    sentences = [*_lengths(scales), *_of_the_readout(results, groups, scales)]
    for group in groups:
        if group.role is None and any(scale.length for scale in scales):
            sentences.append(_of_a_method(group, groups, scales))
    for group in groups:
        if group.role == "reference" and (ceiling := ceiling_like(group, groups)):
            error, bar = group.mean("test_mse"), ceiling.mean("test_mse")
            beats = f"beats it by {bar - error:.4f}" if error < bar else "does not beat it"
            sentences.append(
                f"The reference {group.name}, on the budget of {ceiling.name}, {beats} ({error:.4f} against {bar:.4f})."
            )
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
    """The gaps that a method closes, and whether it can be told from the floor of its own preset."""
    gaps = {
        where: scale.gap_closed(group)
        for scale, where in zip(scales, ("with its own decoder", "under a ridge refit"))
        if scale.gap_closed(group) is not None
    }
    closed = ", ".join(f"{percent(gap)} {where}" for where, gap in gaps.items())
    sentences = [f"**{group.name}** closes of the gap: {closed}."]
    best = scales[0].floor
    if best and best.train_sequences != group.train_sequences:
        sentences.append(
            f"The best floor has seen {best.train_sequences or 0:,} training sequences, this method {group.train_sequences or 0:,}."
        )
    floor = floor_like(group, groups)
    if floor and len(seeds := shared_seeds(group, floor)) >= 2:
        told = {"lower": "distinguishable, and better", "higher": "distinguishable, and worse"}
        parts = []
        for scale, where in zip(scales, ("with its own decoder", "under a ridge refit")):
            difference = paired_difference(group, floor, scale.key)
            parts.append(f"{difference} {where} ({told.get(difference.verdict, 'not distinguishable')})")
        sentences.append(f"Paired with the floor of its own preset over {len(seeds)} seeds: {', '.join(parts)}.")
        if group.decoder != floor.decoder:
            sentences.append(
                "Its own decoder is of another kind than the floor's: only the ridge refits compare cores."
            )
    return " ".join(sentences)


def render_problem(
    results: list[dict], main: list[dict] | None = None, figures: Iterable[str] = (), root: Path | None = None
) -> str:
    """The Markdown section of one problem: what follows from its numbers, all rows, pairs, costs, and its description.

    results: all results with one problem_id. main: those of the main problem, where this is another; figures: Markdown
    that shows this problem's figures; root: where the histories are committed, without which no costs are given. Raises
    BadInput where results disagree on what they should share, or a history that is needed is missing or broken.
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
        *([OTHER_DECODER] if any(group.decoder != "adam" for group in groups) else []),
        *_pairs(groups),
        *(_costs(groups, root) if root else []),
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
    return text[:12] if is_sha256(text) else text


def render(results: list[dict], root: Path | None = None) -> str:
    """RESULTS.md as text: a function of the committed results and histories (no clock, no machine, no order of files).

    root: where the histories are committed; without it the page has no costs.
    """
    problems = problems_of(results)
    if not problems:
        return f"{HEADER}\nNo results are committed yet.\n"
    main, *others = problems
    sections = [HEADER, *(f"{line}\n" for line in _shown(main, main)), render_problem(main, root=root)]
    sections += [render_problem(results, main, _shown(results, main), root) for results in others]
    sections += [*_curricula(root), *_memory(root), *_studies(root)] if root else []
    return "\n".join([*sections, HOW_TO_READ])


def _curricula(root: Path) -> list[str]:
    """The section about committed curricula: rungs down, experiments across. Raises BadInput for a damaged file."""
    found = defaultdict(list)
    for slug in stubs(root):
        for path in curricula(root / slug):
            content = read_curriculum(path)
            found[content["preset"], slug].append(content)
    sections = []
    for preset in sorted({preset for preset, _ in found}):
        columns = {slug: contents for (of, slug), contents in sorted(found.items()) if of == preset}
        planned = max((content["planned"] for contents in columns.values() for content in contents), key=len)
        rows = []
        for name in planned:
            rungs = {
                s: [r for c in contents for r in c["rungs"] if r["name"] == name] for s, contents in columns.items()
            }
            of_rung = [rung for some in rungs.values() for rung in some]
            if not of_rung:
                continue
            frozen = statistics.fmean(rung["ridge_test_mse_at_start"] for rung in of_rung)
            cells = [
                mean_and_spread([rung["ridge_test_mse"] for rung in some]) if some else "" for some in rungs.values()
            ]
            rows.append([name, f"{frozen:.4f}", *cells])
        seeds = sorted({content["seed"] for contents in columns.values() for content in contents})
        rungs = [rung for contents in columns.values() for content in contents for rung in content["rungs"]]
        machines = sorted({rung["environment"]["device_name"] for rung in rungs})
        sections += [
            f"## Up the brief's schedule, preset {preset}\n",
            markdown_table(["rung", "frozen core", *(f"[{slug}]({slug}/README.md)" for slug in columns)], rows) + "\n",
            f"Test MSE under a ridge readout, mean ± standard deviation of the seeds ({_listed_seeds(seeds)}). Each rung changes one thing more and begins "
            f"with what the one before has learned (`--preset {preset} --curriculum`); rungs are other problems, so that errors compare along a row and "
            f"not along a column. On {', '.join(machines)}.\n",
            *([f"{UNCOMMITTED}\n"] if any(map(_uncommitted, rungs)) else []),
        ]
    return sections


MEMORY = "measurements/memory_by_length.json"  # in the folder of the experiment whose script measures it
WAYS = {
    "bptt": "a step of backpropagation through time",
    "pair": "a pair of parameter-space ES",
    "probes": "rank-space ES, in tiles of a few sequences",
    "forward": "a forward pass",
    "streamed": "a forward pass, its input formed step by step",
}


def _memory(root: Path) -> list[str]:
    """The section about memory against T, where it has been measured. Raises BadInput for a file that is none of its script's."""
    sections = []
    for path in sorted(root.glob(f"*/{MEMORY}")):
        try:
            content = json.loads(path.read_text(encoding="utf-8"))
            peaks = {(row["method"], row["sequence_length"]): row["peak_bytes"] / 1e6 for row in content["rows"]}
            lengths = sorted({length for _, length in peaks})
            rows = [
                [name, *(f"{peaks[way, length]:,.1f}" for length in lengths)]
                for way, name in WAYS.items()
                if all((way, length) in peaks for length in lengths)
            ]
            sizes, device = content["sizes"], content["environment"]["device_name"]
            problem = f"N = {sizes['hidden_size']:,}, r = {sizes['rank']}, {sizes['batch_size']} sequences"
        except (OSError, ValueError, KeyError, TypeError, AttributeError):
            raise BadInput(f"{path.relative_to(root).as_posix()}: is no measurement of memory against T") from None
        sections += [
            "## Memory against T\n",
            markdown_table(["peak memory, MB", *(f"T = {length}" for length in lengths)], rows) + "\n",
            f"Of one minibatch ({problem}), above what was there before; one thread of {device}. How it is measured stands in "
            f"[{path.parent.parent.name}]({path.parent.parent.name}/README.md), the numbers in [{path.name}]({path.relative_to(root).as_posix()}).\n",
        ]
    return sections


def _studies(root: Path) -> list[str]:
    """The section that names the studies, each with the first sentence of its README, the question."""
    lines = []
    for slug in studies(root):
        path = root / slug / "README.md"
        text = path.read_text(encoding="utf-8").splitlines() if path.is_file() else []
        question = next((line.strip() for line in text if line.strip() and not line.startswith("#")), "")
        lines.append(f"- [{slug}]({slug}/README.md): {question or MISSING}\n")
    return (
        [
            "## Studies\n",
            "Experiments above, started many times; each has its tables and figures in its own README.\n",
            "".join(lines),
        ]
        if lines
        else []
    )


# --- Figures of RESULTS.md -------------------------------------------------------------------------------------------

FIGURES = ("floor-to-ceiling", "mse-against-cost")


def figures_of(results: list[dict]) -> dict[str, list[dict]]:
    """Path under the root → the results that the figure is drawn from."""
    main, *others = problems_of(results) or [[]]
    return {_figure(kind, p, main): p for p in (main, *others) if _has_figures(p) for kind in FIGURES}


def _has_figures(results: list[dict]) -> bool:
    """Smoke runs are not drawn, nor is a problem with fewer than two rows to compare."""
    return not only_smoke(results) and len(groups_of(results)) > 1


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


def _committed(result: dict, suffix: str, root: Path) -> tuple[Path, bytes]:
    """One of a result's committed files, and what is in it. Raises BadInput where it cannot be read."""
    path = root / result["stub"] / "results" / (run_name(result) + suffix)
    try:
        return path, path.read_bytes()
    except OSError as error:
        raise BadInput(f"{path}: cannot be read ({error.strerror})") from None


def _evaluations(result: dict, root: Path) -> list[Evaluation]:
    """The evaluations in a committed history, by iteration. Raises BadInput where it is missing or has a broken line.

    Here and not by figures.read_history, as a check of the page need not wait for matplotlib.
    """
    path, content = _committed(result, ".history.jsonl", root)
    try:
        found = {
            i: Evaluation(score, rollouts, seconds) for i, rollouts, seconds, score in scores_in(content.splitlines())
        }
    except BadInput as error:
        raise BadInput(f"{path}: {error}") from None
    return [found[iteration] for iteration in sorted(found)]


def drawn_from(results: list[dict], root: Path = ROOT) -> str:
    """SHA-256 over the result and history files of `results`: what a figure of them is drawn from.

    Raises BadInput where a history is missing.
    """
    digest = hashlib.sha256()
    for result in sorted(results, key=place):
        for suffix in (".json", ".history.jsonl"):
            path, content = _committed(result, suffix, root)
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
    fresh = page.is_file() and page.read_text(encoding="utf-8") == render(results, root)
    return ["RESULTS.md"] * (not fresh) + _stale_figures(root, results) + _left_over(root, results)


def results_are_stale(root: Path = ROOT) -> bool:
    """True where RESULTS.md or one of its figures is not what the committed results say."""
    return bool(stale_files(root))


def write_results(root: Path = ROOT, redraw: bool = False) -> None:
    """Write RESULTS.md and its figures: those that are stale, or all of them (`redraw`)."""
    results = load_results(root)
    text = render(results, root)  # before anything is written: it may refuse
    names = list(figures_of(results)) if redraw else _stale_figures(root, results)
    if names:
        from common.results_figures import draw  # matplotlib takes a second that a check need not wait for

        for name in names:
            draw(root, name, figures_of(results)[name])
    for name in _left_over(root, results):
        (root / name).unlink()
    write_atomically(root / "RESULTS.md", text.encode())
