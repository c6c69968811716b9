"""A made-up repository, which several tests share: results of any kind, and one experiment that keeps the contract."""

import json

from PIL import Image

from common.results_page import write_results

SLUG, MODULE = "toy-experiment", "toy_experiment"
FLOOR, CEILING = "only-the-readout", "through-time"  # any slugs: what counts is the key 'role'

SCRIPT = '''"""An experiment that trains nothing."""
import argparse
from dataclasses import dataclass


class BadInput(ValueError):
    pass


@dataclass
class Config:
    rank: int = 32


def parse_arguments(argv):
    parser = argparse.ArgumentParser(exit_on_error=False)
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--preset", choices=["smoke", "laptop"], default="laptop")
    try:
        return Config(), parser.parse_args(argv)
    except argparse.ArgumentError as error:
        raise BadInput(str(error))
'''

DRAWING_SCRIPT = """import argparse

parser = argparse.ArgumentParser()
parser.add_argument("--run")
parser.parse_args()
"""

README = f"""# Toy experiment

After nobody (2020).

![a square that moves]({MODULE}.gif)

## Problem
None.

## Files
[the script]({MODULE}.py)

## Running
```bash
# a comment, an assignment, a continued line
OMP_WAIT_POLICY=PASSIVE python {MODULE}.py --seed 0 \\
    --preset smoke && python visualize_{MODULE}.py --run runs/smoke-seed0
for seed in 0 1 2; do torchrun --nproc_per_node=8 {MODULE}.py --seed $seed > log.txt; done
make results  # from the root
python -m common.catalog publish runs/smoke-seed0
```

## Results
Mean test MSE 0.6300.

## Visualizations
![curves](viz/training_curves.png)

## Deviations from the original
None.

## Open questions
All.
"""


# An experiment that does what sweeps rely on, without torch. "wait" waits for a file, "meet" until as many runs have begun, "fail" ends with a fault.
TRAINER = """
import argparse, dataclasses, io, json, os, pathlib, signal, sys, time

@dataclasses.dataclass
class Config:
    rank: int = 4
    seed: int = 0
    what: str = "nothing"
    device: str = "auto"

def parse_arguments(argv):
    parser = argparse.ArgumentParser()
    for name in ("preset", "run-dir", "threads"):
        parser.add_argument("--" + name)
    parser.add_argument("--resume", action="store_true")
    for field in dataclasses.fields(Config):
        parser.add_argument("--" + field.name, type=field.type, default=field.default)
    options = parser.parse_args(argv)
    config = Config(**{field.name: getattr(options, field.name) for field in dataclasses.fields(Config)})
    if config.rank > 64:
        raise ValueError(f"--rank must be at most 64, not {config.rank}")
    return config, options

if __name__ == "__main__":
    config, options = parse_arguments(sys.argv[1:])
    folder = pathlib.Path(options.run_dir)
    folder.mkdir(parents=True, exist_ok=True)
    (folder / "checkpoint.pt").touch()
    with open(folder / "starts", "a") as file:
        file.write(json.dumps({"resume": options.resume, "threads": options.threads, "gpu": os.environ.get("CUDA_VISIBLE_DEVICES")}) + "\\n")
    signal.signal(signal.SIGTERM, lambda *_: sys.exit(143))
    while config.what == "wait" and not (folder.parent / "go").exists():
        time.sleep(0.02)
    deadline = time.monotonic() + 60
    while config.what == "meet" and len(list(folder.parent.glob("*/starts"))) < 2:
        assert time.monotonic() < deadline
        time.sleep(0.02)
    if config.what == "fail" and config.rank == 8:
        print("working"); sys.exit("it broke")
    import numpy as np
    lines = [{"iteration": i, "rollouts": 10 * i, "wallclock_s": i / 2, "validation_mse": 1 - config.rank / 100 if i % 2 == 0 else None} for i in range(4)]
    (folder / "metrics.jsonl").write_text("".join(json.dumps(line) + "\\n" for line in lines))
    np.savez(folder / "figures.npz", singular_values_final=np.arange(config.rank, dtype=float))
    result = {"config": dataclasses.asdict(config), "seed": config.seed, "test_mse": 1 / config.rank,
              "ridge_test_mse": 1 / (config.rank + config.seed), "ridge_test_mse_at_start": 0.5, "source": {"commit": "abc"}}
    (folder / "results.json").write_text(json.dumps(result))
"""

STUDY, STUDY_MODULE = "ablation-toy", "ablation_toy"
STUDY_SCRIPT = '''"""A study of `made-up`, which is TRAINER."""
from common.errors import run_main
from common.results_page import markdown_table, mean_and_spread
from common.study import study_main
from common.study_data import column
from common.sweep import Sweep

FLAGS = []
PRESETS = {
    "laptop": {
        "first": Sweep("made-up", "laptop", {"rank": ["4", "8"], "seed": ["0", "1"]}, FLAGS),
        "second": Sweep("made-up", "laptop", {"rank": ["16"], "seed": ["0"]}, FLAGS),
    },
    "smoke": {"first": Sweep("made-up", "smoke", {"rank": ["2"], "seed": ["0"]}, FLAGS)},
}


def tables(study):
    points = [point for name in ("first", "second") for point in study.points(name, "rank").items()]
    return markdown_table(["r", "error"], [[r, mean_and_spread(column(rows, "ridge_test_mse"))] for r, rows in points])


def main(argv=None):
    return study_main(argv, __file__, __doc__, PRESETS, tables)


if __name__ == "__main__":
    run_main(main)
'''

PROBLEM = {"digits": 1, "sequence_length": 20, "hidden_size": 2000, "digits_sha256": "ab" * 32}


def result(stub=SLUG, preset="laptop", seed=0, test_mse=0.63, **changes):
    """A valid result; changes are set at the top level."""
    return {
        "schema": 1,
        "stub": stub,
        "seed": seed,
        "preset": preset,
        "problem_id": "0123456789ab",
        "problem": PROBLEM,
        "config": {"rank": 32},
        "test_mse": test_mse,
        "test_mse_last_frame": 0.61,
        "ridge_test_mse": 0.6,
        "reproduces": "partial",
        "iterations": 100,
        "rollouts": 51200,
        "wallclock_s": 150.0,
        "theta_sha256": "0" * 64,
        "environment": {
            "device": "cpu",
            "device_name": "a small CPU",
            "torch": "2.13.0",
            "python": "3.11.7",
            "platform": "Linux",
            "world_size": 1,
            "threads": 2,
        },
        "source": {"commit": "abcdef0123456789", "dirty": False, "stub_sha256": "1" * 64, "common_sha256": "2" * 64},
        **changes,
    }


def commit(root, content, name=None, evaluations=((0.9, 0, 0.0), (0.8, 100, 20.0), (0.7, 200, 40.0))):
    """Put a result where published results are, with a history of (validation MSE, rollouts, seconds) beside it."""
    folder = root / content["stub"] / "results"
    folder.mkdir(parents=True, exist_ok=True)
    path = folder / (name or f"{content['preset']}-seed{content['seed']}.json")
    path.write_text(json.dumps(content))
    keys = ("iteration", "validation_mse", "rollouts", "wallclock_s")
    lines = [dict(zip(keys, (i, *evaluation))) for i, evaluation in enumerate(evaluations)]
    path.with_suffix(".history.jsonl").write_text("".join(json.dumps(line) + "\n" for line in lines))
    return path


def seeds(errors, ridge=None, first=0, **changes):
    """Results of seeds first, first + 1, … with these test errors (and ridge errors)."""
    ridge = ridge or [0.6] * len(errors)
    pairs = enumerate(zip(errors, ridge), start=first)
    return [result(seed=seed, test_mse=error, ridge_test_mse=refit, **changes) for seed, (error, refit) in pairs]


def trained_on(count):
    return {"rank": 32, "train_sequences": count}


def change(content, keys, value):
    """Set a key in nested dictionaries, in place: keys from the outermost in. The value KeyError takes the key out."""
    *parents, key = keys
    for parent in parents:
        content = content[parent]
    if value is KeyError:
        del content[key]
    else:
        content[key] = value


def edit(path, old, new):
    text = path.read_text()
    assert old in text
    path.write_text(text.replace(old, new))


def build(root):
    """A repository with one experiment that keeps the contract."""
    stub = root / SLUG
    (stub / "viz").mkdir(parents=True)
    (root / "common").mkdir()
    (root / "common" / "es.py").write_text("import math\n")
    (root / "Makefile").write_text("results:\n\ttrue\n")
    (root / "README.md").write_text("# A catalog\n\n```bash\nmake results\n```\n")
    (root / "SPEC.md").write_text("# The contract\n")
    (stub / f"{MODULE}.py").write_text(SCRIPT)
    (stub / f"visualize_{MODULE}.py").write_text(DRAWING_SCRIPT)
    (stub / f"make_{MODULE}_gif.py").write_text(DRAWING_SCRIPT)
    (stub / "README.md").write_text(README)
    frames = [Image.new("L", (8, 8), shade) for shade in (0, 255)]
    for name in ("training_curves", "adapter_spectrum"):
        frames[0].save(stub / "viz" / f"{name}.png")
    frames[0].save(stub / f"{MODULE}.gif", save_all=True, append_images=frames[1:])
    commit(root, result())
    write_results(root)
    return root


def study_content(**sweeps):
    """A valid measurement: {name: {(rank, seed): ridge test MSE}}."""

    def row(rank, seed, error):
        curve = [[0, 0.0, 1.0], [100 * rank, rank / 2, 2 * error]]
        values = {"rank": str(rank), "seed": str(seed)}
        return {
            "values": values,
            "config": {"rank": rank},
            "ridge_test_mse": error,
            "curve": curve,
            "singular_values": [0.5],
        }

    def sweep(errors):
        varied = {"rank": [str(r) for r, _ in errors], "seed": [str(s) for _, s in errors]}
        varied = {name: list(dict.fromkeys(values)) for name, values in varied.items()}
        rows = [row(*place, error) for place, error in errors.items()]
        return {"command": "python -m x", "stub": "made-up", "preset": "laptop", "varied": varied, "config": {}, "rows": rows, "failed": []}  # fmt: skip

    sweeps = {name: sweep(errors) for name, errors in sweeps.items()}
    return {"schema": 1, "study": STUDY, "preset": "laptop", "command": "python x", "sweeps": sweeps}


def add_study(root):
    """Put a study that keeps the contract into a made-up repository."""
    place = root / STUDY
    (place / "viz").mkdir(parents=True)
    (place / "measurements").mkdir()
    (place / f"{STUDY_MODULE}.py").write_text(STUDY_SCRIPT)
    for name in (f"visualize_{STUDY_MODULE}.py", f"make_{STUDY_MODULE}_gif.py"):
        (place / name).write_text(DRAWING_SCRIPT)
    frames = [Image.new("L", (8, 8), shade) for shade in (0, 255)]
    for name in ("training_curves", "singular_values"):
        frames[0].save(place / "viz" / f"{name}.png")
    frames[0].save(place / f"{STUDY_MODULE}.gif", save_all=True, append_images=frames[1:])
    content = study_content(first={(4, 0): 0.25, (4, 1): 0.2, (8, 0): 0.125}, second={(16, 0): 0.0625})
    (place / "measurements" / "laptop.json").write_text(json.dumps(content))
    text = README.replace(MODULE, STUDY_MODULE).replace("--seed 0", "--dry-run").replace("--seed $seed", "--only first")
    tables = "| r | error |\n| --- | --- |\n| 4 | 0.2250 ± 0.0354 |\n| 8 | 0.1250 |\n| 16 | 0.0625 |"
    text = text.replace("Mean test MSE 0.6300.", tables).replace("After nobody", "Why a toy?\n\nAfter nobody")
    (place / "README.md").write_text(text)
    write_results(root)
    return root
