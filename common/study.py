"""A study: experiments started many times by their command lines, what came of them gathered in one file. It trains nothing itself.

Its script says which sweeps there are in each preset, and how their rows become tables; all else is here:

    python ablation_rank.py --preset laptop            run what is not finished yet, in runs/laptop/<sweep>/<run>/
    python ablation_rank.py --preset laptop --publish  the same, and write measurements/laptop.json
    python ablation_rank.py --preset laptop --tables   print the tables of measurements/laptop.json

Sweeps go one after another, runs of one side by side where there are several GPUs (or --at-once says so). A study that was stopped
or killed goes on with the same command; runs that end with a fault are named, and do not stop the others. What a file of
measurements holds stands in study_data.py.
"""

import argparse
import json
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path

from common.errors import BadInput, Fault, Parser, folder, reason
from common.files import check_folder, finite_or_none, require_writable, write_atomically
from common.results import LARGEST_FILE, evenly
from common.study_data import CURVE_POINTS, Study, read_study
from common.sweep import Plan, Sweep, content_of, finished, plan, print_commands, run_all

Presets = Mapping[str, Mapping[str, Sweep]]  # {preset: {name: sweep}}
NOT_FINITE = "its ridge readout has no finite error"


def parse_arguments(argv: Sequence[str] | None, description: str, presets: Presets) -> argparse.Namespace:
    """Command line of a study; raises BadInput."""
    parser = Parser(description=description, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--preset", choices=list(presets), default="laptop", help="(default: laptop)")
    parser.add_argument("--run-dir", type=folder, help="where runs are written (default: runs/<preset>)")
    parser.add_argument(
        "--only", action="append", metavar="NAME", help="run this sweep of the preset alone; may be repeated"
    )
    parser.add_argument("--at-once", type=int, default=0, help="runs side by side; 0: one for each GPU, on a CPU one")
    parser.add_argument("--publish", action="store_true", help="write what is finished to measurements/<preset>.json")
    parser.add_argument("--dry-run", action="store_true", help="print the command lines; write nothing")
    parser.add_argument("--tables", action="store_true", help="print the tables of measurements/<preset>.json, or of the run folder that --run-dir names")  # fmt: skip
    options = parser.parse_args(argv)
    known = presets[options.preset]
    for name in options.only or []:
        if name not in known:
            raise BadInput(f"--only {name}: no such sweep in preset {options.preset}; there are {', '.join(known)}")
    if not 0 <= options.at_once <= 1024:
        raise BadInput("--at-once must be a whole number from 0 to 1024")
    actions = [flag for flag in ("--publish", "--dry-run", "--tables") if getattr(options, flag[2:].replace("-", "_"))]
    if len(actions) > 1:
        raise BadInput(f"{' and '.join(actions)}: choose one")
    if options.tables and options.only:
        raise BadInput("--only is about what is run, and --tables runs nothing")
    return options


def study_main(
    argv: Sequence[str] | None, script: str, description: str, presets: Presets, tables: Callable[[Study], str]
) -> int:
    """The whole of a study's script; returns the exit code: 1 where a run has failed. Raises BadInput.

    script: its path, in a folder of this repository named after the study. tables: a measurement's tables, in Markdown.
    """
    options, here = parse_arguments(argv, description, presets), Path(script).resolve().parent
    published = here / "measurements" / f"{options.preset}.json"
    if options.tables:
        print(tables(read_study(options.run_dir / "study.json" if options.run_dir else published, here.name)))
        return 0
    if options.publish and options.only:
        raise BadInput("--only runs a part, and --publish would keep nothing else: leave one of them out")
    run_dir = options.run_dir or Path("runs") / options.preset
    try:
        check_folder(run_dir)
    except OSError as error:
        raise BadInput(f"--run-dir {run_dir} cannot be written ({reason(error)})") from None
    try:
        return _run(options, presets[options.preset], run_dir, published, here)
    except BadInput as error:  # a sweep calls its place by the name that its own command line has for it
        raise BadInput(str(error).replace("--folder", "--run-dir")) from None


def _run(options: argparse.Namespace, sweeps: Mapping[str, Sweep], run_dir: Path, published: Path, here: Path) -> int:
    """Run and gather, as the command line asks."""
    plans = dict(zip(sweeps, plan({run_dir / name: sweep for name, sweep in sweeps.items()}, here.parent)))
    chosen = [plans[name] for name in sweeps if not options.only or name in options.only]
    finished(list(plans.values()))  # refuses before anything is written
    if options.dry_run:
        print_commands(chosen)
        print(f"# {finished(chosen)} of {sum(len(p.runs) for p in chosen)} runs are finished")
        return 0
    path = published if options.publish else run_dir / "study.json"
    require_writable(path, "--publish" if options.publish else "--run-dir")
    failed = run_all(chosen, here.parent, options.at_once, here.name)
    content = content_of_study(here.name, options.preset, plans, failed)
    if not any(sweep["rows"] for sweep in content["sweeps"].values()):
        raise Fault(f"not one run is finished: {path} is not written")
    write_study(path, content)
    print(f"{finished(list(plans.values()))} of {sum(len(p.runs) for p in plans.values())} runs are finished: {path}")
    return 1 if failed else 0


def content_of_study(slug: str, preset: str, plans: Mapping[str, Plan], failed: dict[Path, str]) -> dict:
    """A measurement: what the runs of all sweeps have left."""
    return {
        "schema": 1,
        "study": slug,
        "preset": preset,
        "command": f"python {slug.replace('-', '_')}.py --preset {preset} --publish",
        "sweeps": {name: _content(preset, name, plan, failed) for name, plan in plans.items()},
    }


def _content(preset: str, name: str, plan: Plan, failed: dict[Path, str]) -> dict:
    """A sweep's part. A run whose error is no number counts as one that failed."""
    content = content_of(plan, failed)
    del content["schema"]
    rows, lost = [], []
    for row in finite_or_none(content["rows"]):
        row["curve"] = evenly(row["curve"], CURVE_POINTS)
        (lost if row.get("ridge_test_mse") is None else rows).append(row)
    content["failed"] += [{"values": row["values"], "said": NOT_FINITE} for row in lost]
    return {"command": plan.sweep.command(Path("runs") / preset / name), **content, "rows": rows}


def write_study(path: Path, content: dict) -> None:
    """Write a measurement, a row of a sweep on a line. Raises BadInput where it would be over 2 MB."""
    rows = [row for sweep in content["sweeps"].values() for row in sweep["rows"]]
    places = iter(range(len(rows)))
    sweeps = {
        name: {**sweep, "rows": [f"@{next(places)}" for _ in sweep["rows"]]}
        for name, sweep in content["sweeps"].items()
    }
    text = json.dumps(finite_or_none({**content, "sweeps": sweeps}), indent=2)
    for number, row in enumerate(rows):
        text = text.replace(f'"@{number}"', json.dumps(finite_or_none(row)), 1)
    data = f"{text}\n".encode()
    if len(data) > LARGEST_FILE:
        raise BadInput(f"{path}: would be {len(data):,} bytes; at most {LARGEST_FILE:,} may be")
    write_atomically(path, data)
