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
