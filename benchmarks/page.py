"""benchmarks/README.md and its plots, made from the committed results alone.

    python benchmarks/page.py            write the page, and the plots that are stale
    python benchmarks/page.py --check    exit code 1, and one line, where one of them is not what results/*.json say

Prose stands here, numbers in the files. A goal is met or not by what was measured and is judged anew at each rendering. A file
that is missing is "not run"; one of a quick run is refused; one whose code was not as committed bears a mark.
`<name>-cuda.json` is the same benchmark on a GPU.
"""

import argparse
import hashlib
import json
import os
import sys
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path

from common.errors import BadInput, Parser, reason, run_main
from common.files import write_atomically
from common.results_page import MISSING, percent
from common.results_page import _inputs_of as inputs_of
from common.results_page import markdown_table as table

HERE = Path(__file__).resolve().parent
GPU = "-cuda"
MARK = "†"
NOT_RUN = "not run"

HEADER = """# Benchmarks

Generated from `results/*.json` by `python benchmarks/page.py`; edits are lost. `make benchmarks` measures everything anew.

Candidates take turns within one run, ratios are taken within a round, and the median over the rounds is given with its
quartiles in brackets: single times differ between machines and between days. "Ours" is the code in `common/`. The brief's
problem: N = 2000 units with 50 inputs each, rank r = 32, T = 20 steps, K = 32 pairs (64 members) on B = 32 sequences.
A rollout is one member on one sequence.
"""

# --- Reading ---------------------------------------------------------------------------------------------------------


@dataclass(frozen=True)
class Report:
    """A file of results. digest: SHA-256 of its bytes, which a plot of it carries."""

    name: str
    content: dict
    digest: str

    @property
    def results(self):
        return self.content["results"]

    @property
    def dirty(self) -> bool:
        """True unless the code is known to have been as committed."""
        return self.content.get("source", {}).get("dirty") is not False


def load(folder: Path = HERE) -> dict[str, Report]:
    """{name: report} of the results that are there. Raises BadInput for one that cannot stand on the page."""
    names = [name + suffix for name in SECTIONS for suffix in ("", GPU)]
    return {name: _read(path) for name in names if (path := folder / "results" / f"{name}.json").is_file()}


def _read(path: Path) -> Report:
    try:
        written = path.read_bytes()
        content = json.loads(written)
    except (OSError, ValueError, RecursionError) as error:
        raise BadInput(f"{path}: cannot be read ({reason(error)})") from None
    if not isinstance(content, dict) or content.get("benchmark") != path.stem.removesuffix(GPU):
        raise BadInput(f"{path}: holds no results of {path.stem.removesuffix(GPU)}")
    if content.get("quick"):
        raise BadInput(f"{path}: is of a quick run, whose numbers mean nothing")
    if path.stem.endswith(GPU) and "gpu" not in (content.get("hardware") or ()):
        raise BadInput(f"{path}: was not measured on a GPU")
    return Report(path.stem, content, hashlib.sha256(written).hexdigest())


# --- Numbers as text -------------------------------------------------------------------------------------------------


def number(value: float | None) -> str:
    """Three digits or more: 0.123, 1.23, 12.3, 1,234; a dash for None."""
    if value is None:
        return MISSING
    size = abs(value)
    digits = 0 if size >= 100 or size == 0 else 1 if size >= 10 else 2 if size >= 1 else 3
    return f"{value:,.{digits}f}".replace("-", "−")


def spread(found: dict, scale: float = 1.0, form: Callable[[float], str] = number) -> str:
    """`1.23 (1.20–1.31)`: median and quartiles, each multiplied by `scale`."""
    low, high = (value * scale for value in found["quartiles"])
    ends = form(low).removesuffix(" %"), form(high).removesuffix(" %")
    return f"{form(found['median'] * scale)} ({(' to ' if low < 0 else '–').join(ends)})"


def share(found: dict) -> str:
    return spread(found, form=percent)


def median(found: dict, scale: float = 1.0) -> str:
    return number(found["median"] * scale)


def listed(texts) -> str:
    """`a, b and c`."""
    *most, last = texts
    return f"{', '.join(most)} and {last}" if most else last


def between(values) -> str:
    """`1.2 to 3.4`, or one number where both read the same."""
    values = list(values)
    return " to ".join(dict.fromkeys((number(min(values)), number(max(values)))))


# --- Goals -----------------------------------------------------------------------------------------------------------


@dataclass(frozen=True)
class Goal:
    """What a benchmark has to show: every one of `values(results)` at least (or at most) the bound.

    values: {what: summary, or a number without spread}; empty where the results do not hold it. aside: what else is said.
    """

    text: str
    report: str
    bound: float
    values: Callable[[dict], dict]
    most: bool = False
    aside: Callable[[dict], str] = lambda results: ""
    form: Callable[[float], str] = number

    def row(self, reports: dict[str, Report]) -> list[str]:
        """Text, what was measured, verdict."""
        report = reports.get(self.report)
        values = _asked(report, self.values) if report else {}
        values = {what: _with_quartiles(found) for what, found in values.items()}
        if not values:
            return [self.text, MISSING, NOT_RUN]
        ordered = sorted(values, key=lambda what: values[what]["median"], reverse=self.most)
        worst, best = ordered[0], ordered[-1]
        text = self._stated(values[worst])
        if len(values) > 1:
            extreme = ("greatest", "least") if self.most else ("least", "most")
            text = f"{extreme[0]} {text}, {worst}; {extreme[1]} {self._stated(values[best])}, {best}"
        if more := _asked(report, self.aside):
            text += f". {more}"
        return [self.text, text + MARK * report.dirty, self.verdict(values.values(), _left_out(report))]

    def verdict(self, values, left_out: list[str]) -> str:
        """By the medians; "narrowly" where the quartiles that decide it lie on the other side of the goal."""

        def reached(value: float) -> bool:
            return value <= self.bound if self.most else value >= self.bound

        met = all(reached(found["median"]) for found in values)
        if met:
            narrow = not all(reached(end) for found in values for end in found["quartiles"])
        else:
            narrow = all(any(map(reached, found["quartiles"])) for found in values)
        absent = f", without {listed(left_out)}" if left_out else ""
        return f"**{'met' if met else 'not met'}**{', narrowly' * narrow}{absent}"

    def _stated(self, found: dict) -> str:
        exact = found["quartiles"][0] == found["quartiles"][1] == found["median"]
        return self.form(found["median"]) if exact else spread(found, form=self.form)


def _asked(report: Report, question: Callable):
    """question(results). Raises BadInput where the file lacks what is asked for."""
    try:
        return question(report.results)
    except (KeyError, IndexError, TypeError, AttributeError) as error:
        raise BadInput(f"results/{report.name}.json: is not as the page expects it ({error!r})") from None


def _with_quartiles(found: dict | float) -> dict:
    return found if isinstance(found, dict) else {"median": found, "quartiles": [found, found]}


def _left_out(report: Report) -> list[str]:
    """Candidates that this measurement did without, for they were not installed."""
    left_out = report.results.get("left_out", {}) if isinstance(report.results, dict) else {}
    return [name_of(name) for name in left_out if name in NAMES]


def goals_table(reports: dict[str, Report]) -> str:
    rows = [goal.row(reports) for goal in GOALS]
    notes = []
    if any("narrowly" in row[2] for row in rows):
        notes.append("Narrowly: the goal lies between the median and one of the quartiles.")
    if any(MARK in row[1] for row in rows):
        notes.append(f"{MARK} The code was not, or is not known to have been, as committed.")
    return "\n\n".join(["## Goals", table(["goal", "measured", "verdict"], rows), *notes])


# --- Efficiency ------------------------------------------------------------------------------------------------------

KINDS = {
    "inference": "inference",
    "rank1": "rank-one noise",
    "gaussian": "Gaussian noise",
    "states": "rank-one noise, visited states kept",
    "projected": "rank-one noise, states kept, V's noise projected on them",
}
DATA = {"shared": "all pairs on one minibatch", "own": "own sequences for each pair"}


def efficiency(results: dict) -> str:
    rows = []
    for data, words in DATA.items():
        found = results[data]
        sizes = f"{words} (K = {found['pairs']:,}, B = {found['batch']})"
        for kind, speed in found["rollouts_per_s"].items():
            of_inference = spread(found["efficiency"][kind]) if kind in found["efficiency"] else "1"
            rows.append([sizes, KINDS.get(kind, kind), of_inference, median(speed)])
            sizes = ""  # stands in the first row alone
    shared, own = (results[data]["efficiency"] for data in DATA)
    says = (
        f"On a shared minibatch a population with rank-one noise runs at {spread(shared['rank1'])} of inference, with full "
        f"Gaussian noise at {median(shared['gaussian'])}, and keeping visited states leaves {median(shared['states'])}. "
        f"Where every pair has sequences of its own, it is {median(own['rank1'])}, {median(own['states'])} with states, and "
        f"{median(own['projected'])} with all that a projected update needs. Sarkar et al. (2025) state 0.91 for EGGROLL on "
        f"their task."
    )
    of = f"{results['device'].upper()}, {results['dtype']}, {results['threads']} threads, kernel {results['kernel']}."
    return "\n\n".join([table(["data", "candidate", "of inference", "rollouts/s"], rows), of, says])


def efficiency_aside(results: dict) -> str:
    shared, own = (results[data]["efficiency"] for data in DATA)
    return (
        f"With visited states kept {median(shared['states'])}; own data {median(own['rank1'])}, "
        f"with states {median(own['states'])}, projected {median(own['projected'])}"
    )


# --- A whole iteration -----------------------------------------------------------------------------------------------


SETTINGS = {"population_pairs": "K", "batch_size": "B"}


def iteration(results: dict) -> str:
    presets = results["presets"]
    parts = list(next(iter(presets.values()))["parts"])
    rows, sentences = [], []
    for name, found in presets.items():
        settings = found.get("settings", {})
        sizes = [f"{symbol} = {settings[key]:,}" for key, symbol in SETTINGS.items() if key in settings]
        shares = {part: found["parts"][part]["share"] for part in parts}
        largest = max(shares, key=lambda part: shares[part]["median"])
        rows.append([", ".join([name, *sizes]), spread(found["iteration_s"], 1e3), *map(share, shares.values())])
        sentences.append(
            f"In preset {name} the largest part is {largest} ({percent(shares[largest]['median'])}); data is "
            f"{percent(shares['data']['median'])}."
        )
    return "\n\n".join([table(["preset", "iteration, ms", *parts], rows), " ".join(sentences)])


def data_shares(results: dict) -> dict:
    """{preset: summary}"""
    return {name: found["parts"]["data"]["share"] for name, found in results["presets"].items()}


# --- Against the straightforward loop --------------------------------------------------------------------------------

LOOPS = {
    "straightforward": "straightforward loop",
    "in groups": "the same, embedding_bag, groups of 8",
    "ours, gaussian": "ours, Gaussian noise",
    "ours, rank1": "ours, rank-one noise",
}


def peer_loop(results: dict) -> str:
    low, full = results["times_ours_rank1"], results["times_ours_gaussian"]
    rows = [
        [
            LOOPS.get(name, name),
            spread(speed),
            spread(full[name]) if name in full else "1",
            spread(low[name]) if name in low else "1",
        ]
        for name, speed in results["rollouts_per_s"].items()
    ]
    says = (
        f"The straightforward loop takes {spread(full['straightforward'])} × the time of ours with the same Gaussian members "
        f"on both sides, and {spread(low['straightforward'])} × that of rank-one noise, which the experiments run. Its better "
        f"form takes {median(full['in groups'])} × and {median(low['in groups'])} ×."
    )
    columns = ["candidate", "rollouts/s", "time / ours, Gaussian", "time / ours, rank-one"]
    return "\n\n".join([table(columns, rows), says])


def peer_loop_aside(results: dict) -> str:
    return (
        f"With the same Gaussian members on both sides {median(results['times_ours_gaussian']['straightforward'])}; "
        f"the loop's better form {median(results['times_ours_rank1']['in groups'])}"
    )


# --- The machinery of evolution strategies ---------------------------------------------------------------------------

OURS = ("ours_rank1", "ours_gaussian")
NAMES = {
    "ours_rank1": "ours, rank-one noise",
    "ours_gaussian": "ours, Gaussian noise",
    "evotorch_pgpe": "EvoTorch PGPE",
    "evosax_open_es": "evosax Open_ES",
    "evox_open_es": "EvoX OpenES",
    "evox_virtual_lora": "EvoX VirtualLoRAES",
    "torch_randn": "plain torch",
    "torch_randn_all_at_once": "plain torch, no groups",
}
MEMBERS = 1024  # of the goals


def name_of(candidate: str) -> str:
    if candidate.startswith("vmap_"):
        return f"torch.vmap, {candidate.removeprefix('vmap_').replace('_', ' ')} (rollout alone)"
    return NAMES.get(candidate, candidate)


def peers_in(ratios: dict) -> dict:
    """Ratios to the peers, by their names on the page: neither ours nor torch.vmap."""
    return {name_of(name): found for name, found in ratios.items() if name not in OURS and not name.startswith("vmap")}


def at_members(rows: list[dict], members: int) -> dict:
    """Ratios to the peers at this size; empty where it was not measured."""
    return next((peers_in(row["over_ours_rank1"]) for row in rows if row["members"] == members), {})


def es_machinery(results: dict) -> str:
    def by_members(rows: list[dict], cell: Callable[[dict, str], str]) -> str:
        names = list(dict.fromkeys(name for row in rows for name in _measured(row)))
        cells = [[name_of(name), *(cell(row, name) for row in rows)] for name in names]
        return table(["candidate", *(f"{row['members']:,} members" for row in rows)], cells)

    def _measured(row: dict) -> dict:
        return row["seconds"] if "seconds" in row else row["peak_bytes"]

    def time(row: dict, name: str) -> str:
        ratio = row["over_ours_rank1"].get(name)
        return median(row["seconds"][name], 1e3) + (f" · {spread(ratio)} ×" if ratio else "")

    def memory(row: dict, name: str) -> str:
        if name not in row["peak_bytes"]:
            return MISSING
        ratio = row["over_ours_rank1"].get(name)
        return number(row["peak_bytes"][name] / 1e6) + (f" · {number(ratio)} ×" if ratio is not None else "")

    whole, largest, memories = results["iteration"], results["machinery"][-1], results["memory"]
    ratios = peers_in(largest["over_ours_rank1"])
    bytes_ = at_members(memories, largest["members"]).values()
    wholes = peers_in(whole["over_ours_rank1"])
    says = (
        f"At {largest['members']:,} members the peers' machinery takes {between(x['median'] for x in ratios.values())} × the "
        f"time of ours with rank-one noise{f' and {between(bytes_)} × its peak memory' if bytes_ else ''}. A whole "
        f"iteration of {whole['members']} members takes them {between(x['median'] for x in wholes.values())} × the time of "
        f"ours. All rollouts agree in their losses, to {whole['largest_relative_difference_of_losses']:.0e}."
    )
    left_out = [f"{name_of(name)} ({why})" for name, why in results["left_out"].items()]
    return "\n\n".join(
        [
            "Machinery alone, ms (and times ours, rank-one):",
            by_members(results["machinery"], time),
            "Peak memory of it, MB (and times ours, rank-one):",
            by_members(memories, memory),
            f"Whole iteration, ms (torch.vmap: {whole['vmap']}):",
            by_members([whole], time),
            *([f"Left out: {listed(left_out)}."] if left_out else []),
            says,
        ]
    )


# --- Roofline --------------------------------------------------------------------------------------------------------


def roofline(results: dict) -> str:
    ceilings, rollout, paragraphs = results["ceilings"], results["rollout"], []
    sentences = [
        f"A rollout takes {spread(rollout['us_per_column_step'])} µs a column and step "
        f"({median(rollout['rollouts_per_s'])} rollouts/s): its operations come at "
        f"{share(rollout['share_of_operations_ceiling'])} of the rate of a large product. A dense W0 alone at that rate would "
        f"take {median(rollout['times_faster_than_dense_at_the_ceiling'])} × as long as the whole."
    ]
    if "parts" in results:  # on a GPU operators are not timed apart
        parts = {
            part: (found["in_the_loop_us"]["median"], found["alone_us"], found["ceiling_us"])
            for part, found in results["parts"].items()
        }
        loop, alone, limit = (sum(column) for column in zip(*parts.values()))
        rows = [
            [
                part,
                spread(found["in_the_loop_us"]),
                *map(number, parts[part][1:]),
                number(parts[part][0] / parts[part][2] if parts[part][2] else None),
                f"{found['operations']:,.0f}",
                f"{found['bytes']:,.0f}",
            ]
            for part, found in results["parts"].items()
        ]
        rows.append(["bookkeeping", number(results["bookkeeping_us"])])
        rows.append(["**all operators**", *map(number, (loop, alone, limit, loop / limit))])
        columns = ["part", "in the loop, µs", "alone, µs", "ceiling, µs", "loop / ceiling", "operations", "bytes"]
        paragraphs.append(table(columns, rows))
        largest = sorted(parts, key=lambda part: -parts[part][0])[:2]
        sentences.append(
            f"Its operators take {number(loop)} µs in the loop, {number(alone)} µs alone and {number(limit)} µs by the ceilings; "
            f"{listed(largest)} take {percent(sum(parts[part][0] for part in largest) / loop)} of their time in the loop."
        )
    paragraphs.append(
        f"Ceilings: {number(ceilings['operations_per_s'] / 1e9)} GFLOP/s, memory "
        f"{number(ceilings['memory_bytes_per_s'] / 1e9)} GB/s, cache {number(ceilings['cache_bytes_per_s'] / 1e9)} GB/s "
        f"({results['dtype']}, tile of {rollout['columns']:,} columns, kernel {results['kernel']})."
    )
    paragraphs.append(" ".join(sentences))
    if "products" in results:
        densities = list(dict.fromkeys(row["density"] for row in results["products"]))
        rows = []
        for size in dict.fromkeys(row["size"] for row in results["products"]):
            found = [row for row in results["products"] if row["size"] == size]
            cells = (f"{median(row['gather_over_dense'])} · {median(row['csr_over_dense'])}" for row in found)
            rows.append([f"{size:,}", f"{found[0]['columns']:,}", *cells])
        columns = ["N", "columns", *(f"{percent(density)} of W0" for density in densities)]
        paragraphs.append(
            "W0 h by density, time over that of a dense product: embedding_bag, then torch's CSR product. A gather is "
            "taken up to a fifth of non-zero weights (`SPARSE_BELOW` in `common/rollout.py`)."
        )
        paragraphs.append(table(columns, rows))
    return "\n\n".join(paragraphs)


# --- A step of the reservoir -----------------------------------------------------------------------------------------


def reservoir_step(results: dict) -> str:
    batches = results["batches"]
    names = list(dict.fromkeys(name for row in batches for name in row["microseconds_a_sequence_step"]))

    def cell(row: dict, name: str) -> str:
        if name not in row["microseconds_a_sequence_step"]:
            return MISSING
        ratio = row["over_ours"].get(name)
        best = "**" * (name == row["fastest_setting"])
        time = median(row["microseconds_a_sequence_step"][name])
        return f"{best}{time}{best}" + (f" · {spread(ratio)} ×" if ratio else "")

    rows = [[name, *(cell(row, name) for row in batches)] for name in names]
    fastest = listed(
        f"{spread(row['fastest_over_ours'])} × at B = {row['batch']} ({row['fastest_setting']})" for row in batches
    )
    private = listed(f"{median(row['private_step_over_ours'])} ×" for row in batches)
    left_out = "; ".join(f"{name} ({why})" for name, why in results["left_out"].items())
    says = (
        f"Against ours, reservoirpy's fastest setting (bold) takes {fastest}. Its private step, which happens to take "
        f"sequences side by side and is shown to tell apart what comes of that, takes {private}."
    )
    columns = ["µs a sequence and step (and times ours)", *(f"B = {row['batch']}" for row in batches)]
    return "\n\n".join([table(columns, rows), f"{says} Left out: {left_out}." if left_out else says])


def fastest_of_reservoirpy(results: dict) -> dict:
    return {f"B = {row['batch']}": row["fastest_over_ours"] for row in results["batches"]}


# --- Moving-MNIST generator ------------------------------------------------------------------------------------------


def generator_rows(results: dict | list) -> list[dict]:
    return results if isinstance(results, list) else results["rows"]  # files before benchmarks shared one format


def moving_mnist_generator(results: dict | list) -> str:
    names = ("classic_loop", "in_place_loop", "frames", "frames_torch")
    found = generator_rows(results)
    rows = [
        [
            f"{row['digits']}",
            f"{row['batch']:,}",
            *(median(row["microseconds_a_frame"][name]) for name in names),
            spread(row["classic_loop_over"]["frames"]),
            spread(row["in_place_loop_over"]["frames"]),
        ]
        for row in found
    ]
    columns = ["digits", "sequences", "classic, µs", "in place, µs", "`frames`, µs", "`frames_torch`, µs"]
    columns += ["classic / `frames`", "in place / `frames`"]
    classic, in_place = (
        between(row[f"{loop}_over"]["frames"]["median"] for row in found) for loop in ("classic_loop", "in_place_loop")
    )
    says = f"A frame by the classic loop takes {classic} × as long as by `frames`, by the tuned loop {in_place} ×."
    return "\n\n".join(
        [table(columns, rows), f"µs a frame, one thread, {found[0]['length']} frames a sequence. {says}"]
    )


def classic_over_frames(results: dict | list) -> dict:
    found = {}
    for row in generator_rows(results):
        name = f"{row['digits']} digit{'s' * (row['digits'] > 1)}, {row['batch']:,} sequences"
        found[name] = row["classic_loop_over"]["frames"]
    return found


# --- Growth ----------------------------------------------------------------------------------------------------------

AXES = {"pairs": "K, pairs", "batch": "B, sequences", "steps": "T, steps", "size": "N, units", "rank": "r, rank"}


def growth(results: dict) -> str:
    start, memory = results["start"], results["memory"]
    rows = []
    for axis, found in results["time"].items():
        times = ", ".join(f"{row['value']:,}: {median(row['seconds'])}" for row in found["rows"])
        rows.append([AXES[axis], spread(found["slope"]), spread(found["slope_of_largest_two"]), times])
    memory_rows = [
        [
            row["what"],
            f"{row['pairs']:,}",
            f"{row['steps']:,}" if row["what"] != "estimate" else MISSING,
            *(number(row[key] / 1e6) for key in ("peak_bytes", "peak_without_drive_bytes")),
            *(number(row[key] / 1e6) if row["what"] != "estimate" else MISSING for key in ("drive_bytes", "errors_bytes")),
        ]
        for row in memory["rows"]
    ]  # fmt: skip
    powers = listed(f"{AXES[axis].split(',')[0]}^{median(found['slope'])}" for axis, found in results["time"].items())
    steps, pairs = memory["bytes_a_step"], memory["bytes_a_pair"]
    says = (
        f"Time of an iteration grows as {powers}. One more step changes the peak of a tile's rollout by "
        f"{_kilobytes(steps['rollout'])} and that of an iteration, without the Win z + b of its minibatch, by "
        f"{_kilobytes(steps['iteration'])}; its errors are {_kilobytes(memory['errors_bytes_a_step']['rollout'])} a step. One more pair "
        f"changes them by {_kilobytes(pairs['rollout'])} and {_kilobytes(pairs['iteration'])}; the estimate's noise, "
        f"{_kilobytes(memory['noise_bytes_a_pair'])} a pair, is held for at most {memory['chunk_pairs']:,} pairs a thread "
        f"({_kilobytes(pairs['estimate_within_a_chunk'])} a pair up to there, {_kilobytes(pairs['estimate_beyond_a_chunk'])} beyond)."
    )
    around = ", ".join(f"{AXES[axis].split(',')[0]} = {start[axis]:,}" for axis in AXES)
    columns = ["work", "K", "T", "peak, MB", "without Win z + b", "Win z + b, MB", "errors, MB"]
    return "\n\n".join(
        [
            f"Around {around}; {results['threads']} threads:",
            table(["size", "slope", "slope of the two largest", "seconds of an iteration at each"], rows),
            "Peak memory, one thread:",
            table(columns, memory_rows),
            says,
        ]
    )


def _kilobytes(value: float | None) -> str:
    return MISSING if value is None else f"{number(value / 1e3)} kB"


# --- Ranks -----------------------------------------------------------------------------------------------------------


def ranks(results: dict) -> str:
    rows = [
        [
            f"{row['ranks']}" + "\\*" * row["oversubscribed"],
            f"{row['threads_a_rank']}",
            median(row["iteration_s"], 1e3),
            f"{row['bytes']['sent_by_a_rank']:,}",
            spread(row["collective_alone_s"]["mean"], 1e3),
            share(row["collective_alone_share"]),
            share(row["waiting_share"]),
        ]
        for row in results["ranks"]
    ]
    columns = ["ranks", "threads", "iteration, ms", "bytes sent by a rank", "all-gather alone, ms"]
    measured = table([*columns, "its share", "waiting for others"], rows)
    of_ranks = list(results["redundant"]["rows"][0]["share_of_an_iteration_by_ranks"])
    redundant = table(
        ["K", "update on every rank, ms", "rest, ms", *(f"its share, ranks: {count}" for count in of_ranks)],
        [
            [
                f"{row['pairs']:,}",
                spread(row["redundant_s"], 1e3),
                median(row["divided_s"], 1e3),
                *(percent(row["share_of_an_iteration_by_ranks"][count]["median"]) for count in of_ranks),
            ]
            for row in results["redundant"]["rows"]
        ],
    )
    model = results["model"]
    throughputs = model["assumptions"]["throughputs"]
    predicted = table(
        ["machine", "K", "B", *(f"at {speed / 1e6:g} M rollouts/s a GPU" for speed in throughputs), "speed-up"],
        _predicted_rows(model, throughputs),
    )
    ends = []
    for machine, found in model["rows"].items():
        for end in (min, max):
            pairs = end(row["pairs"] for row in found)
            predicted_share = _range(x for row in found if row["pairs"] == pairs for x in row["communication_share"])
            ends.append(f"{predicted_share} at K = {pairs:,} on {machine.replace(', ', ' / ')}")
    worst = max(results["ranks"], key=lambda row: row["collective_alone_share"]["median"])
    says = (
        f"Measured here, the all-gather alone is at most {percent(worst['collective_alone_share']['median'])} of an iteration "
        f"({worst['ranks']} ranks{', more than cores' * worst['oversubscribed']}). Predicted, not measured: communication is {listed(ends)}."
    )
    starred = any(row["oversubscribed"] for row in results["ranks"])
    return "\n\n".join(
        [
            f"Measured, {results['backend']}, K = {results['pairs']:,}, B = {results['batch']}:",
            measured,
            *(["\\* More ranks than cores: they take turns, so times and shares say little."] if starred else []),
            "Measured on one rank: the update that every rank repeats, and its share if all ranks were as fast:",
            redundant,
            "Predicted, **not measured**: communication as a share of an iteration. Every assumption is named with its source "
            "in `ranks.py` and in the results:",
            predicted,
            says,
        ]
    )


def _predicted_rows(model: dict, throughputs: list[float]) -> list[list[str]]:
    rows = []
    for machine, found in model["rows"].items():
        for pairs, batch in dict.fromkeys((row["pairs"], row["batch"]) for row in found):
            of = {row["throughput"]: row for row in found if (row["pairs"], row["batch"]) == (pairs, batch)}
            cells = [_range(of[speed]["communication_share"]) for speed in throughputs]
            gain = between(value for row in of.values() for value in row["speed_up"])
            rows.append([machine, f"{pairs:,}", f"{batch}", *cells, f"{gain} ×"])
    return rows


def _range(shares) -> str:
    values = list(shares)
    ends = [f"{100 * end:#.2g}" if end < 0.0995 else f"{100 * end:.0f}" for end in (min(values), max(values))]
    return f"{'–'.join(dict.fromkeys(ends))} %"


# --- Sections and goals ----------------------------------------------------------------------------------------------


@dataclass(frozen=True)
class Section:
    """compares: what is set beside what. body(results): tables and what they say. plot: text for those who cannot see it."""

    title: str
    compares: str
    body: Callable[[dict], str]
    plot: str = ""
    gpu: bool = False
    needs: str = ""


SECTIONS = {
    "efficiency": Section(
        "What a population costs over inference",
        "The same number of columns through the same network, in the same tiles on the same threads: on one side through "
        "unperturbed weights, on the other every pair of columns through weights of its own, drawn anew as in training. "
        "Of inference: time of inference / time of the population.",
        efficiency,
        gpu=True,
    ),
    "iteration": Section(
        "The parts of an iteration",
        "The main experiment's own training at the sizes of its presets, each part timed where it stands, as a share of all threads "
        "together. Data: embeddings read and Win z + b formed, for population and decoder. Noise: drawn, and made into adapters. "
        "Rollout: the time loops with decoder, loss and guard. Decoder: its own training steps. Update: from losses to Adam's "
        "step. Rest: what none of these holds, as threads that wait for the last tile.",
        iteration,
        gpu=True,
    ),
    "peer_loop": Section(
        "Against the loop that one writes first",
        "64 members side by side, W0 as torch's CSR matrix, each member's U and V in batched products, all cores inside "
        "torch's operations. The loop is given its members; ours draws its noise inside the time. Losses have to agree to 1e-4.",
        peer_loop,
    ),
    "es_machinery": Section(
        "The machinery of evolution strategies",
        "Making a population in the form in which a rollout can use it, and the update, losses made up; then whole "
        "iterations, the peers' with a rollout as their users would write it. `peers/` says how each peer was set up.",
        es_machinery,
        "Two line plots on logarithmic axes, against the number of members: time of an iteration of the machinery, and its "
        "peak memory, for ours and for every peer.",
        needs="pip install -r requirements-peers.txt",
    ),
    "roofline": Section(
        "Where the time of a rollout goes",
        "One tile on one thread. Each part of a time step as it runs in the loop, alone on the same shapes with all it needs in "
        "the nearest cache, and by ceilings that are measured in the same run. Numbers are for each column and step.",
        roofline,
        "Horizontal bars for each part of a time step: microseconds in the loop, alone, and by the measured ceilings.",
        gpu=True,
    ),
    "reservoir_step": Section(
        "Driving a reservoir",
        "The frozen reservoir on B sequences, all states returned: ours in float32 against reservoirpy, of whose settings "
        "the fastest counts. All candidates agree to 1e-5 in every state.",
        reservoir_step,
    ),
    "moving_mnist_generator": Section(
        "The Moving-MNIST generator",
        "`frames` (NumPy, used on a CPU) and `frames_torch` (used on a GPU, timed here on the CPU) against the loop over "
        "sequences, digits and frames that most public generators are. *Classic* adds a digit to each canvas with "
        "`np.maximum`; *in place* is the same loop tuned. All draw the same pixels, which is checked.",
        moving_mnist_generator,
    ),
    "growth": Section(
        "How time and memory grow",
        "One size at a time changes, the others stay. Slopes are exponents of time ~ size^slope: 1 is linear, and r, which is "
        "in only a part of the products, should stay below. Memory: a *rollout* of one tile, a whole *iteration*, "
        "and the *estimate* alone.",
        growth,
        "Left: time of an iteration against each size, both relative to the starting point, with fitted slopes. Right: peak "
        "memory against steps and pairs.",
    ),
    "ranks": Section(
        "What more ranks cost",
        "Whole iterations under torchrun, a barrier before the all-gather telling waiting from communication; the update that "
        "every rank repeats; and a model for GPUs.",
        ranks,
        "Predicted communication and redundant update as shares of an iteration against pairs, for two machines.",
    ),
}  # fmt: skip


def vmap_aside(results: dict) -> str:
    found = results["iteration"]["over_ours_rank1"].get("vmap_dense_2_at_a_time")
    return f"With a dense W0 in place of the gather {median(found)}" if found else ""


def better_of_two(results: dict) -> dict[str, dict]:
    """A GPU's rollout by the one of its two goals that it is nearer to, as a multiple of that goal."""
    share, faster = (
        results["rollout"][name] for name in ("share_of_operations_ceiling", "times_faster_than_dense_at_the_ceiling")
    )
    dense = {"median": share["median"] / 0.6, "quartiles": [quartile / 0.6 for quartile in share["quartiles"]]}
    name, found = max(("dense", dense), ("sparse", faster), key=lambda entry: entry[1]["median"])
    return {f"{name}, of its goal": found}


GOALS = (
    Goal(
        "Rank-one population on a shared minibatch: ≥ 0.91 of inference",
        "efficiency",
        0.91,
        lambda results: {"rank-one": results["shared"]["efficiency"]["rank1"]},
        aside=efficiency_aside,
    ),
    Goal(
        "Rollout ≥ 1.5 × as fast as the straightforward torch loop",
        "peer_loop",
        1.5,
        lambda results: {"straightforward": results["times_ours_rank1"]["straightforward"]},
        aside=peer_loop_aside,
    ),
    Goal(
        f"ES machinery ≥ 10 × as fast as each peer's, {MEMBERS:,} members",
        "es_machinery",
        10,
        lambda results: at_members(results["machinery"], MEMBERS),
    ),
    Goal(
        f"its memory ≤ 1/10 of each peer's (peer / ours ≥ 10), {MEMBERS:,} members",
        "es_machinery",
        10,
        lambda results: at_members(results["memory"], MEMBERS),
    ),
    Goal(
        "Whole iteration faster than each peer's (peer / ours > 1)",
        "es_machinery",
        1,
        lambda results: peers_in(results["iteration"]["over_ours_rank1"]),
    ),
    Goal(
        "Whole iteration ≥ 10 × as fast as the rollout alone under torch.vmap, each member gathering",
        "es_machinery",
        10,
        lambda results: {
            name_of(name).removesuffix(" (rollout alone)"): found
            for name, found in results["iteration"]["over_ours_rank1"].items()
            if name.startswith("vmap") and "dense" not in name
        },
        aside=vmap_aside,
    ),
    Goal(
        "Reservoir step ≥ 4 × as fast as reservoirpy's best NumPy setting", "reservoir_step", 4, fastest_of_reservoirpy
    ),
    Goal("Generator ≥ 2.5 × as fast as the classic loop", "moving_mnist_generator", 2.5, classic_over_frames),
    Goal("Data ≤ 10 % of an iteration", "iteration", 0.1, data_shares, most=True, form=percent),
    Goal(
        "GPU: rank-one population ≥ 0.91 of inference",
        "efficiency" + GPU,
        0.91,
        lambda results: {"rank-one": results["shared"]["efficiency"]["rank1"]},
        aside=efficiency_aside,
    ),
    Goal(
        "GPU: ≥ 0.6 of the rate of a large product, or a sparse rollout as fast as a dense W0 alone could be there",
        "roofline" + GPU,
        1,
        better_of_two,
    ),
    Goal("GPU: data ≤ 10 % of an iteration", "iteration" + GPU, 0.1, data_shares, most=True, form=percent),
)


# --- The page --------------------------------------------------------------------------------------------------------


def origin(report: Report) -> str:
    """Hardware, versions, rounds and commit of a file."""
    content = report.content
    hardware, source = content["hardware"], content.get("source", {})
    rounds = content.get("rounds") or generator_rows(content["results"])[0]["rounds"]
    machine = [hardware["gpu"]] if "gpu" in hardware else []
    machine += [f"{hardware['cpu']}, {hardware.get('cores', hardware.get('cpus'))} cores"]
    versions = {**content["software"], **(report.results.get("peers", {}) if isinstance(report.results, dict) else {})}
    versions |= {"reservoirpy": report.results["reservoirpy"]} if report.name == "reservoir_step" else {}
    commit = f"commit {source['commit'][:9]}" if source.get("commit") else "commit not recorded"
    if source.get("dirty"):
        commit += f" **{MARK} with uncommitted changes**"
    elif report.dirty and source:
        commit += f" {MARK} changes not known"
    parts = ["; ".join(machine), ", ".join(f"{name} {version}" for name, version in versions.items())]
    return f"<sub>{'; '.join([*parts, f'{rounds} rounds', commit])}</sub>"


def render_section(name: str, reports: dict[str, Report]) -> str:
    section = SECTIONS[name]
    commands = [section.needs] * bool(section.needs) + [f"OMP_WAIT_POLICY=PASSIVE python {name}.py"]
    if section.gpu:
        commands.append(f"python {name}.py --device cuda --output results/{name}{GPU}.json")
    paragraphs = [f"## {section.title}", "\n".join(["```bash", *commands, "```"]), section.compares]
    if report := reports.get(name):
        paragraphs += [f"![{section.plot}](plots/{name}.png)"] if section.plot else []
        paragraphs += [_asked(report, section.body), origin(report)]
    else:
        paragraphs.append(f"**{NOT_RUN.capitalize()}.**")
    if report := reports.get(name + GPU):
        paragraphs += [
            f"### On a GPU: {report.content['hardware']['gpu']}",
            _asked(report, section.body),
            origin(report),
        ]
    elif section.gpu:
        paragraphs.append(f"On a GPU: {NOT_RUN}.")
    return "\n\n".join(paragraphs)


def render(reports: dict[str, Report]) -> str:
    """The page: a function of the committed results alone. Raises BadInput where a file lacks what is shown of it."""
    sections = [goals_table(reports), *(render_section(name, reports) for name in SECTIONS)]
    return "\n\n".join([HEADER.strip(), *sections]) + "\n"


def plots_of(reports: dict[str, Report]) -> dict[str, Report]:
    """{path under the folder: what it is drawn from}."""
    return {f"plots/{n}.png": reports[n] for n, section in SECTIONS.items() if section.plot and n in reports}


def stale_files(folder: Path = HERE) -> list[str]:
    """The page and its plots, as far as missing, left over or not made from the committed results."""
    reports, page = load(folder), folder / "README.md"
    fresh = page.is_file() and page.read_text(encoding="utf-8") == render(reports)
    return ["README.md"] * (not fresh) + _stale_plots(folder, reports) + _left_over(folder, reports)


def _stale_plots(folder: Path, reports: dict[str, Report]) -> list[str]:
    return [name for name, report in plots_of(reports).items() if inputs_of(folder / name) != report.digest]


def _left_over(folder: Path, reports: dict[str, Report]) -> list[str]:
    found = {path.relative_to(folder).as_posix() for path in (folder / "plots").glob("*.png")}
    return sorted(found - plots_of(reports).keys())


def write_page(folder: Path = HERE, redraw: bool = False) -> None:
    """Write the page and its plots: those that are stale, or all of them (`redraw`)."""
    reports = load(folder)
    text = render(reports)  # before anything is written: it may refuse
    names = list(plots_of(reports)) if redraw else _stale_plots(folder, reports)
    if names:
        from page_plots import draw  # matplotlib takes a second that a check need not wait for

        for name in names:
            draw(folder / name, plots_of(reports)[name])
    for name in _left_over(folder, reports):
        (folder / name).unlink()
    write_atomically(folder / "README.md", text.encode())


def main(argv: list[str] | None = None) -> int:
    parser = Parser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--check", action="store_true", help="write nothing; exit code 1 where something is stale")
    parser.add_argument("--redraw", action="store_true", help="draw all plots anew, not only those that are stale")
    parser.add_argument(
        "--folder", type=Path, default=HERE, help="where results/ is, and the page (default: %(default)s)"
    )
    arguments = parser.parse_args(argv)
    if not os.path.isdir(arguments.folder):
        raise BadInput(f"--folder {arguments.folder}: is not a folder")
    if arguments.check:
        if stale := stale_files(arguments.folder):
            print(f"stale: {', '.join(stale)}; write them with: python benchmarks/page.py", file=sys.stderr)
        return int(bool(stale))
    write_page(arguments.folder, arguments.redraw)
    print(f"written: {arguments.folder / 'README.md'}")
    return 0


if __name__ == "__main__":
    run_main(main)
