"""A made-up repository: its results compared and rendered, publishing, and a contract check that notices breaches."""

import copy
import json
import subprocess
import sys

import numpy as np
import pytest
import scipy.stats
from PIL import Image, PngImagePlugin

from common import catalog, contract, results_figures
from common.errors import BadInput
from common.results import (
    HISTORY_LINES,
    LARGEST_FILE,
    ROOT,
    load_results,
    publish,
    render,
    stale_files,
    thin_history,
    write_results,
)
from common.scaffold import new

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


def commit(root, content, name=None):
    """Put a result where published results are, with a history beside it."""
    folder = root / content["stub"] / "results"
    folder.mkdir(parents=True, exist_ok=True)
    path = folder / (name or f"{content['preset']}-seed{content['seed']}.json")
    path.write_text(json.dumps(content))
    lines = [
        {"iteration": i, "validation_mse": 0.9 - i / 10, "rollouts": 100 * i, "wallclock_s": 20.0 * i} for i in range(3)
    ]
    path.with_suffix(".history.jsonl").write_text("".join(json.dumps(line) + "\n" for line in lines))
    return path


def seeds(errors, ridge=None, first=0, **changes):
    """Results of seeds first, first + 1, … with these test errors (and ridge errors)."""
    ridge = ridge or [0.6] * len(errors)
    pairs = enumerate(zip(errors, ridge), start=first)
    return [result(seed=seed, test_mse=error, ridge_test_mse=refit, **changes) for seed, (error, refit) in pairs]


def trained_on(count):
    return {"rank": 32, "train_sequences": count}


def row(text, first, preset):
    """Cells of the only table row that begins with `first` and has this preset."""
    rows = [[cell.strip() for cell in line.strip("|").split("|")] for line in text.splitlines()]
    (found,) = [cells for cells in rows if len(cells) > 5 and cells[0].startswith(first) and cells[1] == preset]
    return found


def cells(text, first):
    """Cells of the only table row that begins with `first`."""
    (row,) = [line for line in text.splitlines() if line.startswith(f"| {first}")]
    return [cell.strip() for cell in row.strip("|").split("|")]


def edit(path, old, new):
    text = path.read_text()
    assert old in text
    path.write_text(text.replace(old, new))


@pytest.fixture
def root(tmp_path):
    """A repository with one experiment that keeps the contract."""
    stub = tmp_path / SLUG
    (stub / "viz").mkdir(parents=True)
    (tmp_path / "common").mkdir()
    (tmp_path / "common" / "es.py").write_text("import math\n")
    (tmp_path / "Makefile").write_text("results:\n\ttrue\n")
    (tmp_path / "README.md").write_text("# A catalog\n\n```bash\nmake results\n```\n")
    (tmp_path / "SPEC.md").write_text("# The contract\n")
    (stub / f"{MODULE}.py").write_text(SCRIPT)
    (stub / f"visualize_{MODULE}.py").write_text(DRAWING_SCRIPT)
    (stub / f"make_{MODULE}_gif.py").write_text(DRAWING_SCRIPT)
    (stub / "README.md").write_text(README)
    frames = [Image.new("L", (8, 8), shade) for shade in (0, 255)]
    for name in ("training_curves", "adapter_spectrum"):
        frames[0].save(stub / "viz" / f"{name}.png")
    frames[0].save(stub / f"{MODULE}.gif", save_all=True, append_images=frames[1:])
    commit(tmp_path, result())
    write_results(tmp_path)
    return tmp_path


# ---------------------------------------------------------------------------------------------------------------------
# RESULTS.md


def test_rows_give_mean_and_sample_standard_deviation_over_seeds():
    # Mean of 0.60, 0.63, 0.66 is 0.63; deviations −0.03, 0, 0.03, so s = √(0.0018 / 2) = 0.03.
    text = render(seeds([0.60, 0.63, 0.66], ridge=[0.5, 0.6, 0.7], config=trained_on(10_000)))
    row = cells(text, f"[{SLUG}]({SLUG}/README.md)")
    assert row[1:6] == ["laptop", "0, 1, 2", "0.6300 ± 0.0300", "0.6100 ± 0.0000", "0.6000 ± 0.1000"]
    assert row[6:11] == ["—", "—", "10,000", "51,200", "2 min 30 s"]
    assert row[11:] == ["a small CPU, 2 threads", "abcdef012", "partial"]
    assert "frame 21 MSE" in text and "1 digit, T = 20, N = 2000" in text


def test_a_single_seed_shows_no_spread():
    assert cells(render([result()]), f"[{SLUG}]")[3] == "0.6300"


def test_rendering_does_not_depend_on_the_order_of_files(root):
    for seed in (2, 1):
        commit(root, result(seed=seed, test_mse=0.6 + seed / 100))
    commit(root, result(preset="smoke", problem_id="000000000000", problem={**PROBLEM, "hidden_size": 64}))
    results = load_results(root)
    assert [(r["preset"], r["seed"]) for r in results] == [("laptop", 0), ("laptop", 1), ("laptop", 2), ("smoke", 0)]
    text = render(results)
    assert text.index("0123456789ab") < text.index("000000000000"), "smoke problems come last"
    assert render(results[::-1]) == render(results[1:] + results[:1]) == text
    # Machines may round a trivial predictor differently; which of the values is printed must not depend on the order.
    pair = [
        result(seed=s, trivial_test_mse={"mean": {"all": v, "last_frame": v}}) for s, v in ((0, 0.70004), (1, 0.70006))
    ]
    assert render(pair) == render(pair[::-1])


def test_trivial_predictors_and_the_frozen_core_are_rows_of_the_same_ladder():
    trivial = {
        n: {"all": v, "last_frame": v + 0.01}
        for n, v in [("mean", 1.0), ("copy_last", 1.4), ("ar1", 0.656), ("ar3", 0.65)]
    }
    text = render([result(trivial_test_mse=trivial, ridge_test_mse_at_start=0.64)])
    rows = [line.split("|")[1].strip() for line in text.splitlines() if line.startswith("| ")][2:]
    assert rows == [
        f"[{SLUG}]({SLUG}/README.md)",
        "frozen core, ridge readout",
        "AR(3) ridge",
        "AR(1) ridge",
        "mean embedding",
        "copy last frame",
    ]
    assert cells(text, "copy last frame")[3:6] == ["1.4000", "1.4100", "—"]
    assert cells(text, "frozen core")[3] == "0.6400"


def test_results_of_one_problem_must_agree_on_its_trivial_predictors():
    pair = [result(seed=s, trivial_test_mse={"mean": {"all": v, "last_frame": 1.0}}) for s, v in ((0, 1.0), (1, 1.01))]
    with pytest.raises(BadInput, match="disagree on trivial_test_mse.mean.all"):
        render(pair)
    with pytest.raises(BadInput, match="'problem'"):
        render([result(), result(seed=1, problem={**PROBLEM, "hidden_size": 1})])


def test_seeds_of_one_row_must_share_their_settings():
    render([result(config={"rank": 32, "threads": 2}), result(seed=1, config={"rank": 32, "threads": 4})])
    with pytest.raises(BadInput, match="differ in config: rank"):
        render([result(config={"rank": 32}), result(seed=1, config={"rank": 16})])


def test_gap_closed_is_measured_between_the_best_floor_and_the_best_ceiling_on_each_scale():
    # Own decoders: floor min(0.70, 0.65), ceiling min(0.55, 0.60): (0.65 − 0.63) / 0.10 = 20 %.
    # Ridge: floor min(0.62, 0.64), ceiling min(0.54, 0.50), of the other preset: (0.62 − 0.65) / 0.12 = −25 %.
    # Seeds of one group average: 0.60 and 0.66 are 0.63.
    text = render(
        [
            *seeds([0.60, 0.66], ridge=[0.64, 0.66]),
            *seeds([0.70], ridge=[0.62], stub=FLOOR, preset="laptop", role="floor"),
            *seeds([0.65], ridge=[0.64], stub=FLOOR, preset="brief", role="floor"),
            *seeds([0.55], ridge=[0.54], stub=CEILING, preset="brief", role="ceiling"),
            *seeds([0.60], ridge=[0.50], stub=CEILING, preset="laptop", role="ceiling"),
            *seeds([0.45], ridge=[0.40], stub=CEILING, preset="gru", role="reference"),
        ]
    )
    assert row(text, f"[{SLUG}]", "laptop")[6:8] == ["20.0 %", "−25.0 %"]
    assert row(text, f"[{FLOOR}]", "laptop")[6:8] == ["−50.0 %", "0.0 %"]
    assert row(text, f"[{FLOOR}]", "brief")[6:8] == ["0.0 %", "−16.7 %"]
    assert row(text, f"[{CEILING}]", "brief")[6:8] == ["100.0 %", "66.7 %"]
    assert row(text, f"[{CEILING}]", "laptop")[6:8] == ["50.0 %", "100.0 %"]
    assert row(text, f"[{CEILING}]", "gru")[6:8] == ["200.0 %", "183.3 %"], "a reference is never the ceiling"
    assert row(text, f"[{CEILING}]", "gru")[0].endswith("(reference)")
    assert row(text, f"[{FLOOR}]", "brief")[0].endswith("(floor)")
    order = [line.split("|")[4].strip() for line in text.splitlines() if line.startswith("| [")][:6]
    assert order == sorted(order), "lowest test MSE first"


def test_gap_closed_needs_floor_and_ceiling_of_the_same_problem_in_the_right_order():
    floor = result(stub=FLOOR, test_mse=0.65, role="floor")
    elsewhere = {"problem_id": "fedcba987654", "problem": {**PROBLEM, "hidden_size": 256}}
    text = render([result(), floor, result(stub=CEILING, test_mse=0.55, role="ceiling", **elsewhere)])
    assert row(text, f"[{SLUG}]", "laptop")[6:8] == ["—", "—"]
    assert "no ceiling yet" in text and "no floor yet" in text
    text = render([result(), floor, result(stub=CEILING, test_mse=0.65, role="ceiling")])
    assert row(text, f"[{SLUG}]", "laptop")[6:8] == ["—", "—"] and "wrong order" in text


def test_roles_and_not_names_make_floor_and_ceiling():
    text = render([result(stub="reservoir-readout-only"), result(stub="moving-mnist-bptt-baseline", test_mse=0.5)])
    assert "no floor and no ceiling yet" in text and "(floor)" not in text
    with pytest.raises(BadInput, match="differ in the key 'role'"):
        render([result(role="floor"), result(seed=1)])


def test_the_frozen_core_is_a_row_only_where_no_floor_has_it():
    frozen = {"ridge_test_mse_at_start": 0.64}
    assert "| frozen core, ridge readout |" in render([result(**frozen)])
    assert "frozen core, ridge readout" not in render([result(**frozen), result(stub=FLOOR, role="floor")])


def test_paired_differences_have_the_t_interval_over_shared_seeds():
    rng = np.random.default_rng(1)
    shift = rng.normal(0.65, 0.01, 6)  # differs between seeds, not between method and floor: only pairing removes it
    floor, method = shift[:5], shift - 0.003 + rng.normal(0, 0.001, 6)
    ridge = rng.normal(0.6, 0.001, 6)
    common = {"config": trained_on(10_000)}
    text = render(
        [
            *seeds(list(method[1:]), ridge=list(ridge[1:]), first=1, **common),  # seeds 1 … 5
            *seeds(list(floor), ridge=[0.6] * 5, stub=FLOOR, role="floor", **common),  # seeds 0 … 4
            *seeds(list(floor - 1e-4), stub=FLOOR, preset="brief", role="floor", config=trained_on(50_000)),
        ]
    )
    (pair,) = [line for line in text.splitlines() if line.startswith(f"| [{SLUG}]") and "1, 2, 3, 4 |" in line]
    found = [cell.strip() for cell in pair.strip("|").split("|")]
    expected = []
    for mine, its in ((method[1:5], floor[1:5]), (ridge[1:5], np.full(4, 0.6))):
        interval = scipy.stats.ttest_rel(mine, its).confidence_interval(0.95)
        centre, half = (interval.low + interval.high) / 2, (interval.high - interval.low) / 2
        verdict = "not distinguishable" if interval.low <= 0 <= interval.high else "lower" if centre < 0 else "higher"
        expected.append(f"{centre:+.5f} ± {half:.5f}: {verdict}".replace("-", "−"))
    assert found == [f"[{SLUG}]({SLUG}/README.md)", "laptop", "1, 2, 3, 4", *expected]
    assert [cell.split(": ")[1] for cell in expected] == ["lower", "not distinguishable"], "the case tests both"


def test_only_a_floor_of_the_same_preset_and_training_sequences_is_a_pair():
    floor = seeds([0.65, 0.66], stub=FLOOR, role="floor", config=trained_on(10_000))
    floor += seeds([0.65, 0.66], stub=FLOOR, role="floor", preset="unknown")
    methods = [
        *seeds([0.64, 0.65], stub="another-preset", preset="brief", config=trained_on(10_000)),
        *seeds([0.64, 0.65], stub="more-data", config=trained_on(50_000)),
        *seeds([0.64, 0.65], stub="unknown-data", preset="unknown"),
        *seeds([0.64, 0.65], stub="other-seeds", first=1, config=trained_on(10_000)),
    ]
    text = render(floor + methods)
    (line,) = [line for line in text.splitlines() if line.startswith("Not paired: ")]
    no_floor, too_few = "there is no floor of this preset and number", "fewer than two seeds in common"
    reasons = dict(part.strip().split(", preset ") for part in line.removeprefix("Not paired: ").split(";"))
    assert all(no_floor in reasons[stub] for stub in ("another-preset", "more-data", "unknown-data")), reasons
    assert too_few in reasons["other-seeds"] and "± " not in text.split("Not paired")[1].split("## How")[0]
    assert "Not paired" not in render(methods), "without any floor there is nothing to say"


def test_sentences_say_what_the_numbers_carry_and_no_more():
    small, large = {"config": trained_on(10_000)}, {"preset": "brief", "config": trained_on(50_000)}
    trivial = {"trivial_test_mse": {"ar3": {"all": 0.75, "last_frame": 0.7}}}
    floors = [
        *seeds([0.70, 0.71], ridge=[0.7, 0.7], stub=FLOOR, role="floor", **small, **trivial),
        *seeds([0.65, 0.65], ridge=[0.66, 0.66], stub=FLOOR, role="floor", **large),
    ]
    ceiling = seeds([0.55], ridge=[0.56], stub=CEILING, role="ceiling", **large)
    method = seeds([0.640, 0.652], ridge=[0.6501, 0.6499], **large)
    gru = seeds([0.5], stub=CEILING, preset="gru", role="reference", config=trained_on(50_000))
    text = render([*floors, *ceiling, *method, *gru])
    said = [line.removeprefix("- ") for line in text.splitlines() if line.startswith("- ")]
    assert said == [
        f"With their own decoders, floor 0.6500 ({FLOOR}, preset brief) and ceiling 0.5500 ({CEILING}, preset brief) are "
        "0.1000 apart: 15.4 % of the floor's error.",
        f"With ridge refits, floor 0.6600 ({FLOOR}, preset brief) and ceiling 0.5600 ({CEILING}, preset brief) are "
        "0.1000 apart: 15.2 % of the floor's error.",
        "The readout alone is 0.1000 (13.3 %) below AR(3), which knows no reservoir (0.7500); refitted by ridge, 0.0900 "
        "(12.0 %) below.",
        f"From 10,000 to 50,000 training sequences (presets laptop and brief) the readout of {FLOOR} goes "
        "0.7050 → 0.6500, its ridge refit 0.7000 → 0.6600.",
        # Differences −0.010, 0.002: s = 0.012 / √2, t(0.975, 1) = 12.7062, half = 12.7062 · 0.006 = 0.07624.
        # Ridge −0.0099, −0.0101: half = 12.7062 · 0.0001 = 0.00127.
        f"**{SLUG}, preset brief** closes 4.0 % of the gap (paired difference −0.00400 ± 0.07624 over 2 seeds: not "
        "distinguishable from the floor); 10.0 % under ridge refits (paired difference −0.01000 ± 0.00127 over 2 seeds: "
        "distinguishable from the floor).",
        f"The reference {CEILING}, preset gru beats the ceiling by 0.0500 (0.5000 against 0.5500).",
    ]
    worse = render([*floors, *ceiling, *seeds([0.6600, 0.6602], **large), *seeds([0.56], stub="bar", role="reference")])
    assert (
        "closes −10.1 % of the gap (paired difference +0.01010 ± 0.00127 over 2 seeds: worse than the floor)" in worse
    )
    assert "The reference bar, preset laptop does not beat the ceiling (0.5600 against 0.5500)." in worse
    alone = [line for line in render(method).splitlines() if line.startswith("- ")]
    assert alone == ["- This problem has no floor and no ceiling yet: the gap closed cannot be given."]


def test_the_main_problem_comes_first_and_others_say_how_they_differ():
    other = {"problem_id": "000000000000", "problem": {**PROBLEM, "leak": 1.0, "hidden_size": 256}}
    main = [result(seed=seed, problem={**PROBLEM, "leak": 0.5}) for seed in range(2)]
    headings = [line for line in render([result(stub=FLOOR, **other), *main]).splitlines() if line.startswith("## P")]
    assert headings == [
        "## Problem `0123456789ab`: 1 digit, T = 20, N = 2000",
        "## Problem `000000000000`: hidden size 256 instead of 2000, leak 1.0 instead of 0.5",
    ]


def test_disagreeing_seeds_and_dirty_sources_are_shown():
    dirty = {"commit": None, "dirty": True, "stub_sha256": "1" * 64, "common_sha256": "2" * 64}
    text = render([result(), result(seed=1, reproduces="no", source=dirty)])
    assert cells(text, f"[{SLUG}]")[12:] == ["abcdef012, unknown†", "partial (1), no (1)"]
    assert "† Code was not" in text
    assert "†" not in render([result()])


def test_a_stale_results_page_is_noticed(root):
    assert catalog.main(["results", "--check", "--root", str(root)]) == 0
    commit(root, result(seed=1, test_mse=0.7))
    assert catalog.main(["results", "--check", "--root", str(root)]) == 1
    assert catalog.main(["results", "--root", str(root)]) == 0
    assert catalog.main(["results", "--check", "--root", str(root)]) == 0
    assert "| 0.6650 ± 0.0495 |" in (root / "RESULTS.md").read_text()  # s of two values is |a − b| / √2


def mark(path, text):
    """Write a picture of nothing that carries `text` where figures carry their digest."""
    metadata = PngImagePlugin.PngInfo()
    metadata.add_text("Inputs", text)
    Image.new("L", (8, 8)).save(path, pnginfo=metadata)


@pytest.fixture
def drawn(root, monkeypatch):
    """A repository with two rows to compare, its figures replaced by pictures of nothing with the right digest."""

    def draw(root, name, results):
        (root / name).parent.mkdir(exist_ok=True)
        mark(root / name, results_figures.drawn_from(results, root))

    monkeypatch.setattr(results_figures, "draw", draw)
    commit(root, result(preset="brief"))
    write_results(root)
    return root


FIGURE = "viz/floor-to-ceiling.png"
OTHER_FIGURE = "viz/mse-against-cost.png"
STALE = {
    "none": (lambda r: None, []),
    "history": (
        lambda r: edit(r / SLUG / "results/brief-seed0.history.jsonl", "0.7", "0.71"),
        [FIGURE, OTHER_FIGURE],
    ),
    "result": (
        lambda r: edit(r / SLUG / "results/brief-seed0.json", "0.63", "0.64"),
        ["RESULTS.md", FIGURE, OTHER_FIGURE],
    ),
    "missing": (lambda r: (r / FIGURE).unlink(), [FIGURE]),
    "no digest": (lambda r: Image.new("L", (8, 8)).save(r / OTHER_FIGURE), [OTHER_FIGURE]),
    "other digest": (lambda r: mark(r / FIGURE, "0" * 64), [FIGURE]),
    "no picture": (lambda r: (r / FIGURE).write_text("no"), [FIGURE]),
    "left over": (
        lambda r: mark(r / "viz/floor-to-ceiling-000000000000.png", ""),
        ["viz/floor-to-ceiling-000000000000.png"],
    ),
    "page": (lambda r: edit(r / "RESULTS.md", "0.63", "0.62"), ["RESULTS.md"]),
}


@pytest.mark.parametrize("name", STALE)
def test_stale_pages_and_figures_are_named_and_mended(drawn, name, capsys):
    change, stale = STALE[name]
    change(drawn)
    assert stale_files(drawn) == stale
    assert catalog.main(["results", "--check", "--root", str(drawn)]) == bool(stale)
    lines = [f"{path} is stale: run `make results`" for path in stale]
    assert capsys.readouterr().out.splitlines() == lines
    assert [problem for problem in contract.check(drawn) if "is stale" in problem] == lines
    write_results(drawn)
    assert stale_files(drawn) == []


def test_only_make_results_redraws_what_is_fresh(drawn):
    before = (drawn / FIGURE).stat().st_mtime_ns
    write_results(drawn)
    assert (drawn / FIGURE).stat().st_mtime_ns == before, (
        "another version of matplotlib must not change committed bytes"
    )
    catalog.main(["results", "--root", str(drawn)])
    assert (drawn / FIGURE).stat().st_mtime_ns > before


def test_a_result_without_its_history_cannot_be_drawn(drawn):
    (drawn / SLUG / "results/brief-seed0.history.jsonl").unlink()
    with pytest.raises(BadInput, match="brief-seed0.history.jsonl: cannot be read"):
        stale_files(drawn)


def test_figures_of_every_problem_with_rows_to_compare_are_shown_with_a_text(drawn):
    other = {"problem_id": "fedcba987654", "problem": {**PROBLEM, "leak": 1.0}}
    commit(drawn, result(preset="small", **other))
    write_results(drawn)
    assert sorted(p.name for p in (drawn / "viz").iterdir()) == ["floor-to-ceiling.png", "mse-against-cost.png"]
    commit(drawn, result(preset="free", **other))
    write_results(drawn)
    text = (drawn / "RESULTS.md").read_text()
    for name in (FIGURE, OTHER_FIGURE):
        for path in (name, name.replace(".png", "-fedcba987654.png")):
            (line,) = [line for line in text.splitlines() if line.endswith(f"]({path})")]
            assert line.startswith("![") and len(line) > 200 and (drawn / path).is_file()


def test_checking_needs_neither_torch_nor_matplotlib(drawn):
    code = "import sys, pathlib, common.results as r; print(r.stale_files(pathlib.Path(sys.argv[1])), *sys.modules)"
    done = subprocess.run([sys.executable, "-c", code, drawn], cwd=ROOT, capture_output=True, text=True)
    assert done.stdout.startswith("[]") and not {"torch", "matplotlib", "scipy"} & set(done.stdout.split())


@pytest.mark.parametrize(
    "path, value, message",
    [
        ("schema", 2, "'schema' must be the integer 1"),
        ("seed", True, "'seed' must be an integer"),
        ("test_mse", None, "'test_mse' must be a finite number"),
        ("reproduces", "maybe", "'reproduces' must be one of"),
        ("role", "roof", "'role' must be one of floor, ceiling, reference, is \"roof\""),
        ("role", None, "'role' must be one of"),
        ("config.train_sequences", "many", "'config.train_sequences' must be an integer"),
        ("theta_sha256", "abc", "'theta_sha256' must be 64"),
        ("environment.world_size", "8", "'environment.world_size' must be an integer"),
        ("source.dirty", "no", "'source.dirty' must be true, false or null"),
        ("source.commit", KeyError, "'source.commit' is missing"),
        ("config", KeyError, "'config' is missing"),
        ("problem.sequence_length", KeyError, "'problem.sequence_length' is missing"),
        ("trivial_test_mse", {"mean": {"all": "low"}}, "'trivial_test_mse.mean.all' must be"),
    ],
)
def test_a_result_that_breaks_the_schema_is_refused_by_file_and_key(root, path, value, message):
    content = copy.deepcopy(result(seed=1))
    *parents, key = path.split(".")
    place = content
    for parent in parents:
        place = place[parent]
    if value is KeyError:
        del place[key]
    else:
        place[key] = value
    commit(root, content, name="laptop-seed1.json")
    with pytest.raises(BadInput, match=message) as error:
        load_results(root)
    assert "laptop-seed1.json" in str(error.value)


def test_a_result_must_be_json_and_lie_where_it_says(root):
    path = commit(root, result(seed=1))
    path.write_text(path.read_text().replace("0.63", "NaN"))
    with pytest.raises(BadInput, match="NaN is not a number"):
        load_results(root)
    path.unlink()
    commit(root, result(seed=1), name="laptop-seed7.json")
    with pytest.raises(BadInput, match="laptop-seed1.json"):
        load_results(root)


# ---------------------------------------------------------------------------------------------------------------------
# publish


def history(count, evaluations):
    return [json.dumps({"iteration": i, "validation_mse": 0.7 if i in evaluations else None}) for i in range(count)]


def test_history_is_thinned_but_keeps_evaluations_and_both_ends():
    evaluations = {7, 501, 998}
    kept = [json.loads(line)["iteration"] for line in thin_history(history(1000, evaluations))]
    assert len(kept) == HISTORY_LINES
    assert evaluations | {0, 999} <= set(kept)
    assert kept == sorted(set(kept))
    assert max(b - a for a, b in zip(kept, kept[1:])) <= 7  # 1000 lines, 200 kept: about every fifth
    assert thin_history(history(150, {3})) == history(150, {3})
    assert thin_history([]) == []


def test_too_many_evaluations_are_thinned_evenly():
    kept = [json.loads(line)["iteration"] for line in thin_history(history(1000, set(range(1000))))]
    assert len(kept) == HISTORY_LINES and kept[0] == 0 and kept[-1] == 999


def finished_run(root, content, figures=b"arrays"):
    run = root / SLUG / "runs" / "some-run"
    run.mkdir(parents=True, exist_ok=True)
    (run / "results.json").write_text(json.dumps(content))
    (run / "metrics.jsonl").write_text("\n".join(history(1000, {500})) + "\n")
    (run / "figures.npz").write_bytes(figures)
    return run


def test_publish_copies_result_history_and_figures_of_seed_0(root):
    run = finished_run(root, result(test_mse=0.5))
    history, figures, numbers = publish(run, root)
    names = ["laptop-seed0.history.jsonl", "laptop-seed0.figures.npz", "laptop-seed0.json"]
    assert [history.name, figures.name, numbers.name] == names
    assert sorted(p.name for p in (root / SLUG / "results").iterdir()) == sorted(names)
    assert json.loads(numbers.read_text())["test_mse"] == 0.5
    assert len(history.read_text().splitlines()) == HISTORY_LINES
    assert figures.read_bytes() == b"arrays"


def test_publish_leaves_the_figures_of_other_seeds_out(root):
    old = root / SLUG / "results" / "laptop-seed1.figures.npz"
    old.write_bytes(b"of an earlier run")
    names = [p.name for p in publish(finished_run(root, result(seed=1)), root)]
    assert names == ["laptop-seed1.history.jsonl", "laptop-seed1.json"] and not old.exists()


def test_publish_refuses_what_is_unfinished_foreign_or_too_large_and_writes_nothing(root):
    before = sorted((root / SLUG / "results").iterdir())
    large = finished_run(root, result(seed=0, preset="brief"), figures=bytes(LARGEST_FILE + 1))
    with pytest.raises(BadInput, match="figures.npz would be 2,000,001 bytes"):
        publish(large, root)
    with pytest.raises(BadInput, match="no experiment"):
        publish(finished_run(root, result(stub="elsewhere")), root)
    unfinished = root / SLUG / "runs" / "some-run"
    (unfinished / "results.json").unlink()
    with pytest.raises(BadInput, match="only a finished run"):
        catalog.main(["publish", str(unfinished), "--root", str(root)])
    assert sorted((root / SLUG / "results").iterdir()) == before


# ---------------------------------------------------------------------------------------------------------------------
# the contract


def test_an_experiment_that_keeps_the_contract_has_no_problems(root):
    assert contract.check(root) == []


BREACHES = {
    "missing file": (lambda r: (r / SLUG / f"make_{MODULE}_gif.py").unlink(), f"make_{MODULE}_gif.py is missing"),
    "no training curves": (lambda r: (r / SLUG / "viz/training_curves.png").unlink(), "no PNG of training curves"),
    "no weight figure": (lambda r: (r / SLUG / "viz/adapter_spectrum.png").unlink(), "no PNG of weights or states"),
    "not a PNG": (lambda r: (r / SLUG / "viz/state.png").write_text("no"), "state.png is not a PNG"),
    "still GIF": (lambda r: Image.new("L", (8, 8)).save(r / SLUG / f"{MODULE}.gif"), "does not move"),
    "GIF over 2 MB": (lambda r: (r / SLUG / f"{MODULE}.gif").open("ab").write(bytes(2_000_000)), ".gif is over 2 MB"),
    "section missing": (
        lambda r: edit(r / SLUG / "README.md", "## Open questions\nAll.\n", ""),
        "exactly the sections",
    ),
    "section empty": (lambda r: edit(r / SLUG / "README.md", "\nAll.\n", "\n"), "'Open questions' is empty"),
    "GIF not shown": (
        lambda r: edit(r / SLUG / "README.md", f"({MODULE}.gif)", "(x.gif)"),
        f"does not show {MODULE}.gif",
    ),
    "no citation": (lambda r: edit(r / SLUG / "README.md", "(2020)", ""), "cites nothing"),
    "dead link": (lambda r: edit(r / SLUG / "README.md", f"]({MODULE}.py)", "](gone.py)"), "links to gone.py"),
    "unknown flag": (lambda r: edit(r / SLUG / "README.md", "--seed 0", "--sed 0"), "--sed"),
    "unknown preset": (lambda r: edit(r / SLUG / "README.md", "--preset smoke", "--preset huge"), "invalid choice"),
    "unknown flag of a drawing script": (
        lambda r: edit(r / SLUG / "README.md", "--run ", "--from "),
        "unknown flag --from",
    ),
    "unknown make target": (lambda r: edit(r / SLUG / "README.md", "make results", "make gold"), "no such make target"),
    "no such script": (lambda r: edit(r / SLUG / "README.md", f"python {MODULE}.py", "python gone.py"), "no such file"),
    "unreadable command": (lambda r: edit(r / SLUG / "README.md", "--seed 0", "--seed '0"), "cannot be parsed"),
    "unknown catalog command": (lambda r: edit(r / SLUG / "README.md", "publish runs", "print runs"), "invalid choice"),
    "typed number": (lambda r: edit(r / SLUG / "README.md", "0.6300", "0.6200"), "does not print 0.6300"),
    "slow laptop run": (lambda r: commit(r, result(wallclock_s=301.0)), "took 301 s"),
    "not its preset": (lambda r: commit(r, result(config={"rank": 8})), "is not what its preset runs now: rank"),
    "bad result": (lambda r: commit(r, result(test_mse="good")), "'test_mse' must be"),
    "no results": (lambda r: (r / SLUG / "results/laptop-seed0.json").unlink(), "results/ holds no *.json"),
    "undone work": (lambda r: edit(r / SLUG / f"{MODULE}.py", "    pass\n", "    pass  # TODO\n"), "holds TODO"),
    "empty function": (
        lambda r: edit(r / SLUG / f"{MODULE}.py", "class BadInput", 'def f():\n    """Later."""\n\n\nclass BadInput'),
        "function f is empty",
    ),
    "common imports a stub": (
        lambda r: (r / "common/es.py").write_text(f"def f():\n    from {MODULE} import parse_arguments\n"),
        f"common/es.py: imports {MODULE}",
    ),
    "stale results page": (lambda r: commit(r, result(seed=1)), "RESULTS.md is stale"),
}


@pytest.mark.parametrize("name", BREACHES)
def test_every_breach_is_noticed(root, name):
    breach, message = BREACHES[name]
    breach(root)
    assert any(message in problem for problem in contract.check(root)), contract.check(root)


def test_stubs_do_not_import_each_other(root):
    other = root / "other-stub"
    other.mkdir()
    (other / "other_stub.py").write_text(f"import {MODULE}.part as part\n")
    (problem,) = contract.check_code(root, "other-stub")
    assert problem == f"other-stub/other_stub.py: imports {MODULE} of stub {SLUG}"


def test_large_files_under_version_control_are_noticed(root):
    (root / "large.bin").write_bytes(bytes(LARGEST_FILE + 1))
    assert contract.check_sizes(root) == [], "not in a git work tree"
    for command in (["git", "init", "-q"], ["git", "add", "large.bin"]):
        subprocess.run(command, cwd=root, check=True)
    assert contract.check_sizes(root) == ["large.bin: over 2 MB"]


def test_bash_blocks_become_words():
    first = "a=1 srun python x.py --n \"$N\" 'two words' | tail -1  # said"
    text = f"```bash\n{first}\ncd b && make c\n```\n```text\nnot this\n```\n"
    assert contract.bash_commands(text) == [
        [["python", "x.py", "--n", "0", "two words"], ["tail", "-1"], ["cd", "b"], ["make", "c"]]
    ]


# ---------------------------------------------------------------------------------------------------------------------
# names and exit codes


@pytest.mark.parametrize(
    "name, reason",
    [
        ("My-Idea", "small letters"),
        ("my_idea", "small letters"),
        ("my--idea", "small letters"),
        ("../up", "small letters"),
        ("2-fast", "small letters"),
        (SLUG, "exists already"),
        ("numpy", "name of Python or of an installed package"),
        ("class", "name of Python or of an installed package"),
    ],
)
def test_names_that_cannot_become_an_experiment_are_refused(root, name, reason):
    before = sorted(root.rglob("*"))
    with pytest.raises(BadInput, match=reason):
        new(name, root)
    assert sorted(root.rglob("*")) == before


def test_bad_input_is_one_line_and_exit_code_2(root):
    for arguments in (
        ["check", "no-such-stub"],
        ["publish"],
        ["results", "--check", "--root", "/nonexistent"],
        ["bake"],
    ):
        done = subprocess.run(
            [sys.executable, "-m", "common.catalog", *arguments], cwd=ROOT, capture_output=True, text=True
        )
        assert (done.returncode, len(done.stderr.splitlines()), done.stdout) == (2, 1, ""), done
