"""RESULTS.md of a made-up repository: its numbers, what it says of them, and that stale pages and figures are noticed."""

import json
import subprocess
import sys

import numpy as np
import pytest
import scipy.stats
from made_up import CEILING, FLOOR, PROBLEM, SLUG, build, commit, edit, result, seeds, trained_on
from PIL import Image, PngImagePlugin

from common import catalog, contract, results_figures
from common.comparison import Difference
from common.errors import BadInput
from common.results import ROOT, load_results
from common.results_page import render, stale_files, write_results


@pytest.fixture
def root(tmp_path):
    return build(tmp_path)


def row(text, first, preset):
    """Cells of the only table row that begins with `first` and has this preset."""
    rows = [[cell.strip() for cell in line.strip("|").split("|")] for line in text.splitlines()]
    (found,) = [cells for cells in rows if len(cells) > 5 and cells[0].startswith(first) and cells[1] == preset]
    return found


def cells(text, first):
    """Cells of the only table row that begins with `first`."""
    (row,) = [line for line in text.splitlines() if line.startswith(f"| {first}")]
    return [cell.strip() for cell in row.strip("|").split("|")]


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
        f"**{SLUG}, preset brief** closes of the gap: 4.0 % with its own decoder, 10.0 % under a ridge refit. Paired with the "
        "floor of its own preset over 2 seeds: −0.00400 ± 0.07624 with its own decoder (not distinguishable), −0.01000 ± "
        "0.00127 under a ridge refit (distinguishable, and better).",
        f"The reference {CEILING}, preset gru, on the budget of {CEILING}, preset brief, beats it by 0.0500 (0.5000 against 0.5500).",
    ]
    worse = render(
        [
            *floors,
            *ceiling,
            *seeds([0.6600, 0.6602], **large),
            *seeds([0.56], stub="bar", role="reference", config=trained_on(50_000)),
        ]
    )
    assert "closes of the gap: −10.1 % with its own decoder" in worse
    assert "+0.01010 ± 0.00127 with its own decoder (distinguishable, and worse)" in worse
    assert f"The reference bar, preset laptop, on the budget of {CEILING}, preset brief, does not beat it" in worse
    alone = [line for line in render(method).splitlines() if line.startswith("- ")]
    assert alone == ["- This problem has no floor and no ceiling yet: the gap closed cannot be given."]


def test_a_tiny_difference_keeps_two_digits_of_its_interval():
    assert str(Difference(-1.613e-5, 4.31e-6)) == "−0.0000161 ± 0.0000043"
    assert str(Difference(0.0031, 0.00042)) == "+0.00310 ± 0.00042"
    assert str(Difference(0.0, 0.0)) == "+0.00000 ± 0.00000"


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


def test_a_decoder_of_another_kind_than_the_floors_is_marked_wherever_it_is_compared():
    floor = seeds(
        [0.65, 0.66], stub=FLOOR, role="floor", config=trained_on(10_000)
    )  # of before there was a choice: Adam's
    ceiling = seeds([0.5], stub=CEILING, role="ceiling", config=trained_on(10_000))
    ridge = seeds([0.63, 0.64], config={**trained_on(10_000), "decoder": "ridge"})
    text = render(floor + ceiling + ridge)
    assert row(text, f"[{SLUG}]", "laptop")[3].endswith(" ‡") and "‡" not in row(text, f"[{FLOOR}]", "laptop")[3]
    (pair,) = [line for line in text.splitlines() if line.startswith(f"| [{SLUG}]") and ": " in line]
    own, refitted = pair.strip("| ").split(" | ")[3:]
    assert own.endswith(" ‡") and "‡" not in refitted
    assert "of another kind than the floor's" in text and "‡ Its own decoder" in text
    same = render(floor + ceiling + seeds([0.63, 0.64], config={**trained_on(10_000), "decoder": "adam"}))
    assert "another kind" not in same and "‡ Its" not in same


# ---------------------------------------------------------------------------------------------------------------------
# what it costs to close the gap


def ends(floors=(0.5, 1.0), ceilings=(0.125, 0.375), count=10_000, **changes):
    """Results of a floor and a ceiling; by default their means 0.75 and 0.25 ask for 0.625, 0.5 and 0.375."""
    results = []
    for stub, role, errors in ((FLOOR, "floor", floors), (CEILING, "ceiling", ceilings)):
        config = trained_on(count)
        results += [
            result(stub, seed=s, role=role, config=config, ridge_validation_mse=error, **changes)
            for s, error in enumerate(errors)
        ]
    return results


def make_experiment(root, slug):
    """A folder with a script of its own name, which is what makes an experiment."""
    (root / slug).mkdir(exist_ok=True)
    (root / slug / f"{slug.replace('-', '_')}.py").touch()


def method(seed=0, count=10_000, **changes):
    """A result; that its ridge refits and its final model are at the ceiling has no bearing on what it costs."""
    config = trained_on(count) if count else {"rank": 32}
    return result(seed=seed, config=config, validation_mse=0.1, ridge_validation_mse=0.1, **changes)


def costs(root, results, first=f"[{SLUG}]", preset="laptop"):
    """The three costs in the row of a group, whose histories are committed under root (those of the ends: any)."""
    for end in (r for r in results if r.get("role")):
        commit(root, end)
    table = render(results, root).split("| cost of closing the gap |")[1]
    found = row(table, first, preset)
    assert len(found) == 6 and found[2] == "10,000"
    return found[3:]


def test_a_cost_is_that_of_the_first_evaluation_at_or_below_the_level(tmp_path):
    # 0.625 is undershot and lost again, 0.5 is met to the digit, 0.375 is never reached.
    path = commit(
        tmp_path,
        method(),
        evaluations=[(0.75, 0, 0.0), (0.626, 300, 6.0), (0.62, 400, 9.0), (0.63, 800, 20.0), (0.5, 1200, 30.0)],
    )
    history = path.with_suffix(".history.jsonl")
    other = '{"iteration": 90, "train_loss": 0.1}\n{"iteration": 91, "validation_mse": null, "train_loss": 0.1}\n'
    history.write_text(other + history.read_text())
    assert costs(tmp_path, [*ends(), method()]) == ["400 · 9.0 s", "1,200 · 30 s", "—"]
    lines = history.read_text().splitlines()
    history.write_text("\n".join(lines[::-1]))  # in the order of training, whatever that of the lines
    assert costs(tmp_path, [*ends(), method()]) == ["400 · 9.0 s", "1,200 · 30 s", "—"]


def test_costs_are_medians_over_the_seeds_that_get_there(tmp_path):
    last = [(0.375, 9000, 500), (0.4, 9000, 500), (0.374, 2_000_000, 700), (0.38, 9000, 500), (0.39, 9000, 500)]
    half = [(0.5, 5000, 150), (0.5, 4000, 160), (0.51, 4000, 130), (0.5, 7000, 120), (0.5, 8000, 110)]
    for seed, (second, third) in enumerate(zip(half, last)):
        # Rollouts 100, 200, 300, 400, 1000 have the median 300; the seconds 80, 90, 100, 110, 120, of other seeds, 100.
        first = [(400, 80), (200, 90), (1000, 100), (100, 110), (300, 120)][seed]
        commit(tmp_path, method(seed), evaluations=[(0.6, *first), second, third])
    found = costs(tmp_path, [*ends(), *map(method, range(5))])
    # Half the gap: seed 2 gets there with its last evaluation only, at 2,000,000 rollouts and 700 s.
    assert found == ["300 · 1 min 40 s", "7,000 · 1 min 50 s – 11 min 40 s §", "1 million · 10 min 00 s (2 of 5)"]


def test_times_that_differ_by_more_than_a_factor_of_two_are_a_range(tmp_path):
    for seed, seconds in enumerate((10.0, 12.0, 20.0)):
        commit(tmp_path, method(seed), evaluations=[(0.6, 100, seconds), (0.5, 200, 10 * seconds + seed)])
    found = costs(tmp_path, [*ends(), *map(method, range(3))])
    assert found == ["100 · 12 s", "200 · 1 min 40 s – 3 min 22 s §", "—"]
    results = [*ends(), *map(method, range(3))]
    assert "\n\n§ The range" in render(results, tmp_path)
    commit(tmp_path, method(2), evaluations=[(0.6, 100, 12.0), (0.5, 200, 120.0)])
    assert "§" not in render(results, tmp_path)


def test_floor_and_ceiling_of_a_cost_have_seen_as_much_data_and_may_bear_any_preset_name(tmp_path):
    better = ends(floors=[0.45], ceilings=[0.05], count=50_000, preset="brief")
    worse = ends(floors=[0.9], ceilings=[0.7], preset="worse")  # of several with equal data, the best counts
    commit(tmp_path, method(preset="window-1"), evaluations=[(0.62, 400, 9.0), (0.49, 1200, 30.0)])
    results = [*ends(), *worse, *better, method(preset="window-1")]
    assert costs(tmp_path, results, preset="window-1") == ["400 · 9.0 s", "1,200 · 30 s", "—"]
    text = render(results, tmp_path)
    assert f"0.6250, 0.5000, 0.3750 on 10,000 training sequences, from floor 0.7500 ({FLOOR}, preset laptop)" in text
    assert f"0.3500, 0.2500, 0.1500 on 50,000 training sequences, from floor 0.4500 ({FLOOR}, preset brief)" in text
    table = text.split("| cost of closing the gap |")[1]
    assert row(table, f"[{CEILING}]", "brief")[2] == "50,000", "a ceiling has its row, too"
    assert f"| [{FLOOR}]" not in table, "a floor trains no core"


def test_what_has_no_floor_and_ceiling_on_equal_data_has_no_cost_and_is_named(tmp_path):
    lonely = ends(count=40_000, preset="no-refit")
    for end in lonely:
        del end["ridge_validation_mse"]
    reversed_ends = ends(floors=[0.3], ceilings=[0.3], count=30_000, preset="no-gap")
    others = [
        method(preset="more-data", count=50_000),
        method(preset="unknown-data", count=None),
        method(preset="no-refits", count=40_000),
        method(preset="no-order", count=30_000),
    ]
    unknown = [{**end, "config": {"rank": 32}} for end in ends(preset="unknown")]
    results = [*ends(), *lonely, *reversed_ends, *unknown, *others, method()]
    commit(tmp_path, method())
    costs(tmp_path, results)
    (line,) = [line for line in render(results, tmp_path).splitlines() if line.startswith("No cost is given")]
    named = {text.split(", preset ")[1] for text in line.rstrip(".").split(": ")[1].split("; ")}
    assert named == {"unknown", "unknown-data", "no-gap", "no-order", "no-refit", "no-refits", "more-data"}
    assert "the ceiling's the lower" in line
    only = render([*lonely, others[2]], tmp_path)
    assert "No cost is given" in only and "cost of closing the gap" not in only
    assert "No cost" not in render([method(), *ends()[:2]], tmp_path), "without any ceiling, no gap: it is said above"


def test_a_missing_or_broken_history_is_named(tmp_path):
    results = [*ends(), method()]
    path = commit(tmp_path, method()).with_suffix(".history.jsonl")
    costs(tmp_path, results)
    for content in ("no JSON", "[]", '{"iteration": 0, "validation_mse": 0.5, "rollouts": 1}'):
        path.write_text('{"iteration": 0}\n' + content)
        with pytest.raises(BadInput, match=r"laptop-seed0\.history\.jsonl: line 2 is not a metrics line with its cost"):
            render(results, tmp_path)
    path.unlink()
    with pytest.raises(BadInput, match=rf"{SLUG}/results/laptop-seed0\.history\.jsonl: cannot be read"):
        render(results, tmp_path)
    assert "cost of closing" not in render(results), "a page of results alone"


def test_the_page_is_stale_where_a_history_tells_another_cost(drawn):
    for content in (*ends(preset="more"), method(preset="more")):
        make_experiment(drawn, content["stub"])
        commit(drawn, content, evaluations=[(0.9, 0, 0.0), (0.6, 100, 20.0)])
    write_results(drawn)
    assert f"| [{SLUG}]({SLUG}/README.md) | more | 10,000 | 100 · 20 s | — | — |" in (drawn / "RESULTS.md").read_text()
    edit(drawn / SLUG / "results/more-seed0.history.jsonl", "20.0", "30.0")
    assert stale_files(drawn) == ["RESULTS.md", FIGURE, OTHER_FIGURE]


def test_a_stale_results_page_is_noticed(root):
    assert catalog.main(["results", "--check", "--root", str(root)]) == 0
    commit(root, result(seed=1, test_mse=0.7))
    assert catalog.main(["results", "--check", "--root", str(root)]) == 1
    assert catalog.main(["results", "--root", str(root)]) == 0
    assert catalog.main(["results", "--check", "--root", str(root)]) == 0
    assert "| 0.6650 ± 0.0495 |" in (root / "RESULTS.md").read_text()  # s of two values is |a − b| / √2


# ---------------------------------------------------------------------------------------------------------------------
# stale pages and figures


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
    for content in (*ends(floors=[0.8], ceilings=[0.4]), method(preset="costed")):  # so histories are read, too
        make_experiment(drawn, content["stub"])
        commit(drawn, content)
    write_results(drawn)
    assert "cost of closing the gap" in (drawn / "RESULTS.md").read_text()
    code = (
        "import sys, pathlib, common.results_page as r; print(r.stale_files(pathlib.Path(sys.argv[1])), *sys.modules)"
    )
    done = subprocess.run([sys.executable, "-c", code, drawn], cwd=ROOT, capture_output=True, text=True)
    assert done.stdout.startswith("[]") and not {"torch", "matplotlib", "scipy"} & set(done.stdout.split())


# --- Memory ----------------------------------------------------------------------------------------------------------


def measured(root, rows) -> str:
    """The page with a measurement of memory: rows of (way, T, bytes)."""
    path = root / SLUG / "measurements" / "memory_by_length.json"
    path.parent.mkdir(exist_ok=True)
    rows = [{"method": way, "sequence_length": length, "peak_bytes": peak} for way, length, peak in rows]
    sizes = {"hidden_size": 2000, "rank": 32, "batch_size": 64}
    path.write_text(json.dumps({"rows": rows, "sizes": sizes, "environment": {"device_name": "Abacus"}}))
    return render(load_results(root), root)


def test_memory_stands_in_a_table_against_length(root):
    text = measured(root, [("bptt", 50, 107.2e6), ("bptt", 20, 44.96e6), ("probes", 20, 13e6), ("probes", 50, 31.8e6)])
    assert "| peak memory, MB | T = 20 | T = 50 |" in text
    assert cells(text, "a step of backpropagation")[1:] == ["45.0", "107.2"]
    assert cells(text, "rank-space ES")[1:] == ["13.0", "31.8"]
    assert "N = 2,000, r = 32, 64 sequences" in text and "one thread of Abacus" in text
    assert "a pair of" not in text  # was not measured
    assert "Memory against T" not in render(load_results(root))


def test_a_broken_measurement_of_memory_is_named(root):
    with pytest.raises(BadInput, match="memory_by_length.json: is no measurement"):
        measured(root, [("bptt", 20, "much")])
