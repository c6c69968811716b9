"""Studies: several sweeps under one command, what is published of them, and their contract; against made-up experiments, and real ones."""

import importlib.util
import json
import os
import signal
import statistics
import subprocess
import sys
import time

import numpy as np
import pytest
from conftest import PATIENCE_S, ROOT, snapshot
from made_up import STUDY, STUDY_MODULE, STUDY_SCRIPT, TRAINER, add_study, build, change, edit, study_content
from PIL import Image

from common import catalog, contract, study, sweep
from common.errors import BadInput, Fault
from common.results import LARGEST_FILE, stubs, studies
from common.results_page import render
from common.study_data import CURVE_POINTS, Study, all_at_cost, at_cost, reached, read_study, studies_in
from common.study_figures import error_limits, shades
from common.sweep import plan


def load(path, monkeypatch):
    """A script as a module, which may import its neighbours."""
    monkeypatch.syspath_prepend(str(path.parent))
    specification = importlib.util.spec_from_file_location(path.stem, path)
    module = importlib.util.module_from_spec(specification)
    monkeypatch.setitem(sys.modules, path.stem, module)
    specification.loader.exec_module(module)
    return module


# ---------------------------------------------------------------------------------------------------------------------
# Running, against a made-up experiment


@pytest.fixture
def root(tmp_path, monkeypatch):
    """A repository with one experiment and a study of it; its folder is the working directory."""
    for slug, script in (("made-up", TRAINER), (STUDY, STUDY_SCRIPT)):
        (tmp_path / "root" / slug).mkdir(parents=True)
        (tmp_path / "root" / slug / f"{slug.replace('-', '_')}.py").write_text(script)
    monkeypatch.setattr(sweep, "gpus", lambda: 0)
    monkeypatch.chdir(tmp_path / "root" / STUDY)
    return tmp_path / "root"


@pytest.fixture
def toy(root, monkeypatch):
    return load(root / STUDY / f"{STUDY_MODULE}.py", monkeypatch)


def content(root, name="runs/laptop/study.json"):
    return json.loads((root / STUDY / name).read_text())


def ranks(sweep):
    return [(row["values"]["rank"], row["values"]["seed"]) for row in sweep["rows"]]


def starts(root, name):
    return len((root / STUDY / "runs" / "laptop" / name / "starts").read_text().splitlines())


def test_studies_are_no_experiments(root):
    assert stubs(root) == ["made-up"] and studies(root) == [STUDY]


def test_all_sweeps_are_run_and_gathered_in_one_file(root, toy, capsys):
    assert toy.main([]) == 0
    measured = content(root)
    assert {name: ranks(sweep) for name, sweep in measured["sweeps"].items()} == {
        "first": [("4", "0"), ("4", "1"), ("8", "0"), ("8", "1")],
        "second": [("16", "0")],
    }
    assert measured["study"] == STUDY and measured["preset"] == "laptop"
    command = (
        "python -m common.sweep made-up --folder runs/laptop/first --preset laptop --vary rank=4,8 --vary seed=0,1"
    )
    assert measured["sweeps"]["first"]["command"] == command
    said = capsys.readouterr()
    assert "5 of 5 runs are finished" in said.out
    assert "/5 [" in said.err  # one bar over the runs of both sweeps
    assert not (root / STUDY / "measurements").exists()


def test_publishing_runs_nothing_again_and_its_tables_are_printed(root, toy, capsys):
    assert toy.main(["--only", "second"]) == 0
    assert toy.main(["--publish"]) == 0
    assert starts(root, "second/rank=16,seed=0") == 1
    assert content(root, "measurements/laptop.json")["sweeps"].keys() == {"first", "second"}
    capsys.readouterr()
    assert toy.main(["--tables"]) == 0
    errors = {rank: [1 / (rank + seed) for seed in (0, 1)] for rank in (4, 8)}
    lines = [f"| {r} | {statistics.fmean(e):.4f} ± {statistics.stdev(e):.4f} |" for r, e in errors.items()]
    assert capsys.readouterr().out.splitlines()[2:] == [*lines, f"| 16 | {1 / 16:.4f} |"]


def test_a_part_is_run_and_the_rest_left_out(root, toy):
    assert toy.main(["--only", "second"]) == 0
    assert [len(sweep["rows"]) for sweep in content(root)["sweeps"].values()] == [0, 1]
    assert not (root / STUDY / "runs" / "laptop" / "first").exists()


def test_a_run_that_fails_does_not_stop_the_others(root, toy, capsys):
    toy.FLAGS += ["--what", "fail"]  # rank 8 does
    assert toy.main(["--publish"]) == 1
    first, second = content(root, "measurements/laptop.json")["sweeps"].values()
    assert ranks(first) == [("4", "0"), ("4", "1")] and ranks(second) == [("16", "0")]
    assert [failure["said"] for failure in first["failed"]] == ["it broke"] * 2
    assert "first: rank=8,seed=0: exit code 1: it broke" in capsys.readouterr().err


def test_where_all_fail_nothing_is_published(root, toy):
    toy.FLAGS += ["--what", "fail"]
    toy.PRESETS["laptop"] = {"first": sweep.Sweep("made-up", "laptop", {"rank": ["8"], "seed": ["0"]}, toy.FLAGS)}
    with pytest.raises(Fault, match="not one run is finished"):
        toy.main(["--publish"])
    assert not list((root / STUDY / "measurements").iterdir())


@pytest.mark.parametrize("number", [signal.SIGTERM, signal.SIGKILL])
def test_a_study_that_is_stopped_goes_on(root, toy, number):
    script, folder = root / STUDY / f"{STUDY_MODULE}.py", root / STUDY / "runs" / "laptop"
    edit(script, "FLAGS = []", 'FLAGS = ["--what", "wait"]')
    environment = {**os.environ, "CUDA_VISIBLE_DEVICES": ""}
    process = subprocess.Popen([sys.executable, script], env=environment, stderr=subprocess.PIPE, start_new_session=True)  # fmt: skip
    deadline = time.monotonic() + PATIENCE_S
    while not (folder / "first" / "rank=4,seed=0" / "starts").exists():
        assert time.monotonic() < deadline and process.poll() is None
        time.sleep(0.05)
    time.sleep(0.2)  # its handler
    process.send_signal(number)
    process.communicate(timeout=PATIENCE_S)
    assert process.returncode == (-number if number == signal.SIGKILL else 128 + number)
    for name in ("first", "second"):
        (folder / name).mkdir(exist_ok=True)
        (folder / name / "go").touch()
    toy.FLAGS += ["--what", "wait"]
    assert toy.main([]) == 0
    assert starts(root, "first/rank=4,seed=0") == 2 and starts(root, "second/rank=16,seed=0") == 1


def test_a_dry_run_writes_nothing(root, toy, capsys):
    toy.main(["--only", "second"])
    capsys.readouterr()
    before = snapshot(root)
    assert toy.main(["--dry-run"]) == 0
    lines = capsys.readouterr().out.splitlines()
    assert lines[0].startswith("python made_up.py --preset laptop --rank=4 --seed=0 --run-dir ")
    assert lines[4].endswith("# finished") and lines[5] == "# 1 of 5 runs are finished"
    assert snapshot(root) == before


@pytest.mark.parametrize(
    ("words", "said"),
    [
        (["--preset", "huge"], "invalid choice: 'huge'"),
        (["--only", "third"], "--only third: no such sweep in preset laptop; there are first, second"),
        (["--preset", "smoke", "--only", "second"], "no such sweep in preset smoke"),
        (["--at-once", "-1"], "--at-once must be a whole number"),
        (["--publish", "--dry-run"], "--publish and --dry-run: choose one"),
        (["--tables", "--only", "first"], "--only is about what is run"),
        (["--tables"], "measurements/laptop.json: cannot be read"),
        (["--tables", "--run-dir", "nowhere"], "nowhere/study.json: cannot be read"),
        (["--run-dir", ""], "must name a folder"),
        (["--run-dir", "ablation_toy.py"], "--run-dir ablation_toy.py"),
        (["--frobnicate"], "--frobnicate"),
    ],
    ids=lambda value: value if isinstance(value, str) else "",
)
def test_bad_input_is_refused_and_nothing_is_written(root, toy, words, said):
    before = snapshot(root)
    with pytest.raises(BadInput) as refusal:
        toy.main(words)
    assert said in str(refusal.value)
    assert snapshot(root) == before


def test_a_setting_that_the_experiment_refuses(root, toy):
    toy.FLAGS += ["--colour", "red"]
    before = snapshot(root)
    with pytest.raises(BadInput, match="--colour red"):
        toy.main([])
    assert snapshot(root) == before


def test_a_folder_with_other_runs_is_refused(root, toy):
    toy.main(["--only", "second"])
    toy.FLAGS += ["--what", "else"]
    with pytest.raises(BadInput, match="^--run-dir: .*holds a run with another what; name another folder"):
        toy.main([])


def test_long_curves_are_thinned_and_large_files_refused(root, toy, tmp_path):
    toy.main([])
    metrics = root / STUDY / "runs" / "laptop" / "second" / "rank=16,seed=0" / "metrics.jsonl"
    lines = [{"iteration": i, "rollouts": i, "wallclock_s": i, "validation_mse": 1 / (i + 1)} for i in range(500)]
    metrics.write_text("".join(f"{json.dumps(line)}\n" for line in lines))
    toy.main([])
    curve = content(root)["sweeps"]["second"]["rows"][0]["curve"]
    assert len(curve) == CURVE_POINTS and curve[0] == [0, 0, 1.0] and curve[-1] == [499, 499, 1 / 500]
    large = study_content(first={(4, 0): 0.25})
    large["command"] = "x" * LARGEST_FILE
    with pytest.raises(BadInput, match="would be 2,000,"):
        study.write_study(tmp_path / "large.json", large)
    assert not (tmp_path / "large.json").exists()


def test_a_run_whose_error_is_no_number_has_failed(root, toy):
    toy.main([])
    path = root / STUDY / "runs" / "laptop" / "second" / "rank=16,seed=0" / "results.json"
    result = json.loads(path.read_text())
    path.write_text(json.dumps({**result, "ridge_test_mse": None}))
    toy.main(["--publish"])
    second = content(root, "measurements/laptop.json")["sweeps"]["second"]
    assert second["rows"] == [] and second["failed"][0]["said"] == study.NOT_FINITE


# ---------------------------------------------------------------------------------------------------------------------
# Reading


@pytest.mark.parametrize(
    ("keys", "value", "said"),
    [
        (["schema"], 2, "'schema' must be"),
        (["study"], "ablation-else", "'study' must be ablation-toy"),
        (["preset"], KeyError, "'preset' must be"),
        (["sweeps"], {}, "'sweeps' must be"),
        (["sweeps", "first"], [], "'first'"),
        (["sweeps", "first", "stub"], KeyError, "'first'"),
        (["sweeps", "first", "varied"], {"rank": "4"}, "'first'"),
        (["sweeps", "first", "rows"], [{}], "'first'"),
        (["sweeps", "first", "rows", 0, "values", "rank"], "5", "row 1 is damaged"),
        (["sweeps", "first", "rows", 0, "ridge_test_mse"], None, "row 1 is damaged"),
        (["sweeps", "first", "rows", 0, "curve"], [[1, 2]], "row 1 is damaged"),
        (["sweeps", "first", "rows", 0, "curve"], 1, "'first'"),
        (["sweeps", "first", "rows", 0, "singular_values"], ["a"], "row 1 is damaged"),
    ],
)
def test_a_measurement_that_is_damaged_is_refused(tmp_path, keys, value, said):
    damaged = study_content(first={(4, 0): 0.25})
    change(damaged, keys, value)
    (tmp_path / "laptop.json").write_text(json.dumps(damaged))
    with pytest.raises(BadInput) as refusal:
        read_study(tmp_path / "laptop.json", STUDY)
    assert said in str(refusal.value) and "laptop.json" in str(refusal.value)


@pytest.mark.parametrize("text", ["", "[]", "{", "[" * 100_000, '{"schema": NaN}'])
def test_a_measurement_that_is_no_json_object_is_refused(tmp_path, text):
    (tmp_path / "laptop.json").write_text(text)
    with pytest.raises(BadInput, match="laptop.json"):
        read_study(tmp_path / "laptop.json", STUDY)


def test_a_curve_is_read_where_so_much_was_spent():
    curve = [[0, 0.0, 1.0], [10, 2.0, 0.9], [20, 3.0, 0.95]]
    assert [at_cost(curve, 0, limit) for limit in (-1, 0, 9, 10, 100)] == [None, 1.0, 1.0, 0.9, 0.95]
    assert at_cost(curve, 1, 2.5) == 0.9
    rows = [{"curve": curve}, {"curve": curve[:2]}, {"curve": []}]
    assert reached(rows, 0) == 10 and all_at_cost(rows, 0, 20) == [0.95, 0.9] and all_at_cost(rows, 0, -1) == []


def test_the_laptop_is_drawn_first_and_others_after_it(tmp_path):
    folder = tmp_path / STUDY
    (folder / "measurements").mkdir(parents=True)
    with pytest.raises(BadInput, match="holds no"):
        studies_in(folder)
    for preset in ("smoke", "laptop", "h200"):
        text = json.dumps({**study_content(first={(4, 0): 0.25}), "preset": preset})
        (folder / "measurements" / f"{preset}.json").write_text(text)
    assert {end: study.preset for end, study in studies_in(folder).items()} == {"": "laptop", "_h200": "h200", "_smoke": "smoke"}  # fmt: skip


def test_shades_are_as_many_as_asked():
    assert [len(set(shades(count))) for count in (0, 1, 7)] == [0, 1, 7]
    assert error_limits([]) == (0.0, 1.0)


# ---------------------------------------------------------------------------------------------------------------------
# The contract


@pytest.fixture
def repository(tmp_path):
    return add_study(build(tmp_path / "repository"))


def test_a_study_that_keeps_the_contract_has_no_problems(repository):
    assert contract.check(repository) == [] and contract.check(repository, [STUDY]) == []
    assert f"- [{STUDY}]({STUDY}/README.md): Why a toy?" in render(catalog_results(repository), repository)


def catalog_results(root):
    return contract.load_results(root)


README = f"{STUDY}/README.md"
BREACHES = {
    "no measurement": (lambda r: (r / STUDY / "measurements/laptop.json").unlink(), "measurements/ holds no *.json"),
    "a mean that is not printed": (
        lambda r: edit(r / README, "0.2250", "0.2251"),
        "§Results does not print, of measurements/laptop.json: | 4 | 0.2250 ± 0.0354 |",
    ),
    "another preset": (lambda r: edit(r / STUDY / "measurements/laptop.json", '"laptop", "command"', '"h200", "command"'), "asks for the name h200.json"),
    "damaged measurement": (lambda r: edit(r / STUDY / "measurements/laptop.json", '"schema": 1', '"schema": 3'), "'schema' must be"),
    "tables that fail": (lambda r: edit(r / STUDY / f"{STUDY_MODULE}.py", "def tables(study):", "def tables(study):\n    1 / 0\n"), "ZeroDivisionError"),
    "no training curves": (lambda r: (r / STUDY / "viz/training_curves.png").unlink(), "no PNG of training curves"),
    "no singular values of several ranks": (lambda r: (r / STUDY / "viz/singular_values.png").unlink(), "no PNG of weights"),
    "still GIF": (lambda r: Image.new("L", (8, 8)).save(r / STUDY / f"{STUDY_MODULE}.gif"), "does not move"),
    "section empty": (lambda r: edit(r / README, "\nAll.\n", "\n"), "'Open questions' is empty"),
    "unknown flag": (lambda r: edit(r / README, "--dry-run", "--dry"), "--dry"),
    "unknown preset": (lambda r: edit(r / README, "--preset smoke", "--preset huge"), "invalid choice"),
    "imports an experiment": (lambda r: edit(r / STUDY / f"{STUDY_MODULE}.py", "from common.sweep", "import toy_experiment\nfrom common.sweep"), "imports toy_experiment of stub"),
    "another question": (lambda r: edit(r / README, "Why a toy?", "Why not?"), "RESULTS.md is stale"),
}  # fmt: skip


@pytest.mark.parametrize("name", BREACHES)
def test_every_breach_is_noticed(repository, name):
    breach, message = BREACHES[name]
    breach(repository)
    assert any(message in problem for problem in contract.check(repository)), contract.check(repository)


def test_singular_values_are_not_asked_of_one_rank(repository):
    (repository / STUDY / "viz/singular_values.png").unlink()
    path = repository / STUDY / "measurements/laptop.json"
    path.write_text(json.dumps(study_content(first={(4, 0): 0.25})))
    assert not any("PNG" in problem for problem in contract.check(repository, [STUDY]))


def test_the_catalog_draws_studies_and_makes_none(repository):
    assert catalog.main(["figures", STUDY, "--root", str(repository)]) == 0
    with pytest.raises(BadInput, match="no such stub or study; there are toy-experiment, ablation-toy"):
        catalog.main(["figures", "ablation-other", "--root", str(repository)])
    with pytest.raises(BadInput, match="what studies are called"):
        catalog.main(["new", "ablation-mine", "--root", str(repository)])


# ---------------------------------------------------------------------------------------------------------------------
# The studies that there are


def test_experiments_accept_every_run_of_every_study(monkeypatch, tmp_path):
    """All presets at once: each experiment is asked once."""
    sweeps = {}
    for slug in studies():
        module = load(ROOT / slug / f"{slug.replace('-', '_')}.py", monkeypatch)
        assert {"smoke", "laptop", "h200"} <= module.PRESETS.keys()
        for preset, named in module.PRESETS.items():
            sweeps |= {tmp_path / slug / preset / name: sweep for name, sweep in named.items()}
    runs = [run for planned in plan(sweeps, ROOT) for run in planned.runs]
    assert len(runs) > 100
    for run in runs:  # no flag behind it says otherwise
        assert {name: str(run.config[name.replace("-", "_")]) for name in run.values} == run.values


@pytest.fixture
def rank(monkeypatch):
    return load(ROOT / "ablation-rank" / "ablation_rank.py", monkeypatch)


def made_up_ranks() -> Study:
    """Two seeds, ranks 1, 4, 32, some missing; a floor of 0.7."""
    errors = {
        "rank-space": {(1, 0): 0.65, (1, 1): 0.66, (4, 0): 0.6, (4, 1): 0.601, (32, 0): 0.5999},
        "bptt": {(1, 0): 0.64, (4, 0): 0.5, (4, 1): 0.51, (32, 0): 0.4, (32, 1): 0.41},
    }
    content = {**study_content(**errors), "study": "ablation-rank"}
    for part in content["sweeps"].values():
        part["config"] = {"hidden_size": 500, "train_sequences": 4000}
    floor = json.loads(json.dumps(content["sweeps"]["bptt"]))
    floor["varied"] = {"seed": ["0", "1"]}
    floor["rows"] = [
        {**row, "values": {"seed": str(seed)}, "ridge_test_mse": 0.7} for seed, row in enumerate(floor["rows"][:2])
    ]
    content["sweeps"]["floor"] = floor
    return Study(content)


def test_the_rank_that_is_needed(rank):
    assert rank.rank_needed({1: 0.66, 4: 0.605, 32: 0.6}, floor=0.7) == 4  # 95 % of 0.1
    assert rank.rank_needed({1: 0.66, 4: 0.606, 32: 0.6}, floor=0.7) == 32
    assert rank.rank_needed({1: 0.6, 4: 0.65}, floor=0.7) == 1
    assert rank.rank_needed({1: 0.7, 4: 0.8}, floor=0.7) is None and rank.rank_needed({}, floor=0.7) is None


def test_tables_of_the_rank_are_plain_arithmetic(rank):
    study = made_up_ranks()
    cells = [[cell.strip() for cell in line.strip("|").split("|")] for line in rank.tables(study).splitlines() if line]
    by_name = {}
    for name, *values in cells:
        by_name.setdefault(name, []).append(values)
    ends, rollouts, seconds, answers = by_name["ES in activities, V"]
    spread = statistics.stdev([0.65, 0.66])
    assert ends == [f"0.6550 ± {spread:.4f}", f"0.6005 ± {statistics.stdev([0.6, 0.601]):.4f}", "0.5999"]
    # Curves begin at 1 and end at 100 r rollouts, after r / 2 s, at twice the ridge error: those of r = 1 are the shortest.
    assert rollouts == seconds == [f"1.3100 ± {2 * spread:.4f}", "1.0000 ± 0.0000", "1.0000"]
    assert by_name["rollouts spent, at most"] == [["100", "100", "100"]]
    assert by_name["time spent, at most"] == [["0.5 s", "0.5 s", "0.5 s"]]
    assert answers[0] == "4 (32)" and by_name["BPTT, U and V"][3][0] == "32 (32)"
    assert by_name["r = 0: the readout alone"][0] == ["0.7000 ± 0.0000"] * 3


def test_what_fewer_rollouts_bring_is_read_from_the_curve(rank):
    study = made_up_ranks()
    for name in ("rank-space", "bptt"):  # without the shortest
        sweep = study.content["sweeps"][name]
        sweep["rows"] = [row for row in sweep["rows"] if row["values"]["rank"] != "1"]
    for row in study.rows("bptt", rank="4"):
        row["curve"] = [
            [0, 0.0, 1.0],
            [100, 1.0, 0.8],
            [200, 9.0, 0.7],
        ]  # fewer rollouts and more time than the other's 400, 2 s
    assert rank.limit(study, 0) == 200 and rank.limit(study, 1) == 2.0
    assert rank.at_equal(0)(study, "bptt", 4) == [0.7, 0.7] and rank.at_equal(1)(study, "bptt", 4) == [0.8, 0.8]
    assert rank.at_equal(0)(study, "rank-space", 4) == [1.0, 1.0]  # not scored between 0 and 400


def test_runs_that_were_never_scored_are_left_out(rank, monkeypatch, tmp_path):
    study = made_up_ranks()
    for row in [*study.rows("bptt", rank="1"), *study.rows("rank-space", rank="1")]:
        row["curve"] = []
    assert "| rollouts spent, at most | 400 | 400 | 400 |" in rank.tables(study)
    (tmp_path / "study.json").write_text(json.dumps(study.content))
    module = load(ROOT / "ablation-rank" / "visualize_ablation_rank.py", monkeypatch)
    assert module.main(["--run", str(tmp_path), "--out", str(tmp_path / "drawn")]) == 0


def test_figures_and_gif_are_drawn_of_what_is_there(rank, monkeypatch, tmp_path):
    content = made_up_ranks().content
    (tmp_path / "study.json").write_text(json.dumps(content))
    folder = ROOT / "ablation-rank"
    for name in ("visualize_ablation_rank", "make_ablation_rank_gif"):
        module = load(folder / f"{name}.py", monkeypatch)
        assert module.main(["--run", str(tmp_path), "--out", str(tmp_path / "drawn")]) == 0
    names = {"error_heatmap", "error_by_rank", "training_curves", "singular_values"}
    assert {path.stem for path in (tmp_path / "drawn" / "viz").glob("*.png")} == names
    with Image.open(tmp_path / "drawn" / "ablation_rank.gif") as gif:
        assert gif.n_frames > 20


def test_the_rank_of_real_experiments(rank, monkeypatch, tmp_path, capsys):
    """Two sweeps of the smallest preset."""
    monkeypatch.setattr(sweep, "gpus", lambda: 0)
    words = ["--preset", "smoke", "--run-dir", str(tmp_path), "--only", "floor", "--only", "rank-space"]
    assert rank.main(words) == 0
    study = read_study(tmp_path / "study.json", "ablation-rank")
    assert [len(study.rows(name)) for name in ("floor", "rank-space", "bptt")] == [1, 2, 0]
    for row in study.rows("rank-space"):
        values = row["values"]
        folder = tmp_path / "rank-space" / f"rank={values['rank']},seed={values['seed']}"
        result = json.loads((folder / "results.json").read_text())
        assert row["ridge_test_mse"] == result["ridge_test_mse"] and result["config"]["noise"] == "independent"
        assert len(row["singular_values"]) == int(values["rank"])
    capsys.readouterr()
    assert rank.main(["--tables", "--run-dir", str(tmp_path)]) == 0
    assert f"{study.rows('floor')[0]['ridge_test_mse']:.4f}" in capsys.readouterr().out


# ---------------------------------------------------------------------------------------------------------------------
# ablation-axes


@pytest.fixture
def axes(monkeypatch):
    return load(ROOT / "ablation-axes" / "ablation_axes.py", monkeypatch)


def made_up_axes() -> Study:
    """The gain and the encoder; BPTT at one gain only."""

    def part(setting, errors, start):
        rows = study_content(first={(1, n): error for n, error in enumerate(errors.values())})["sweeps"]["first"][
            "rows"
        ]
        for row, (value, seed) in zip(rows, errors):
            row |= {
                "values": {setting: value, "seed": seed},
                "config": {setting: value},
                "ridge_test_mse_at_start": start,
            }
        varied = {setting: list(dict.fromkeys(v for v, _ in errors)), "seed": ["0", "1"]}
        empty = study_content(first={})["sweeps"]["first"]
        return {**empty, "varied": varied, "config": {"hidden_size": 500}, "rows": rows}

    sweeps = {
        "gain-es": part("gain", {("0.8", "0"): 0.6, ("0.8", "1"): 0.62, ("1.2", "0"): 0.7}, 0.8),
        "gain-bptt": part("gain", {("0.8", "0"): 0.5}, 0.8),
        "encoder-es": part("encoder-seed", {("0", "0"): 0.5, ("1", "0"): 0.4}, 0.6),
        "encoder-bptt": part("encoder-seed", {("0", "0"): 0.4, ("1", "0"): 0.2}, 0.6),
    }
    return Study({**study_content(), "study": "ablation-axes", "sweeps": sweeps})


def test_tables_of_the_axes_are_plain_arithmetic(axes):
    lines = axes.tables(made_up_axes()).splitlines()
    spread = statistics.stdev([0.6, 0.62])
    assert f"| 0.8 | 0.8000 | 0.6100 ± {spread:.4f} | 0.5000 | {100 * 0.19 / 0.3:.1f} % |" in lines
    assert "| 1.2 | 0.8000 | 0.7000 | — | — |" in lines
    assert "| 1 | 0.6000 | 0.4000 | 0.2000 | 50.0 % |" in lines
    draws = f"| all 2 draws | 0.6000 ± 0.0000 | 0.4500 ± {statistics.stdev([0.5, 0.4]):.4f} | 0.3000 ± {statistics.stdev([0.4, 0.2]):.4f} | 50.0 % |"
    assert draws in lines


def with_horizons() -> Study:
    """Scored two frames ahead, two seeds of ES that read half of its predictions in training and one of BPTT that read none."""
    content = made_up_axes().content
    trivial = {name: [0.9, 1.0] for name in ("mean", "copy_last", "ar1", "ar3")}
    for name, value, seeds in (("es", "0.5", ([0.5, 0.6], [0.52, 0.7])), ("bptt", "0", ([0.4, 0.45],))):
        sweep = json.loads(json.dumps(content["sweeps"]["gain-es"]))
        row = sweep["rows"][0]
        rows = [{**row, "values": {"roll-in": value, "seed": str(n)}, "config": {}, "closed_loop_test_mse": errors,
                 "trivial_closed_loop_test_mse": trivial} for n, errors in enumerate(seeds)]  # fmt: skip
        content["sweeps"][f"roll-in-{name}"] = {
            **sweep,
            "varied": {"roll-in": [value], "seed": ["0", "1"]},
            "rows": rows,
        }
    return Study(content)


def test_a_table_of_errors_by_frames_ahead(axes, monkeypatch, tmp_path):
    study = with_horizons()
    lines = axes.tables(study).splitlines()
    spread = [statistics.stdev(pair) for pair in ((0.5, 0.52), (0.6, 0.7))]
    assert f"| ES in activities, 0.5 | 0.5100 ± {spread[0]:.4f} | 0.6500 ± {spread[1]:.4f} |" in lines
    assert "| BPTT, 0 | 0.4000 | 0.4500 |" in lines and "| copy last frame | 0.9000 | 1.0000 |" in lines
    figure = load(ROOT / "ablation-axes" / "visualize_ablation_axes.py", monkeypatch).draw_closed_loop(study)
    means = [line.get_ydata() for line in figure.axes[0].lines]
    assert any(np.allclose(mean, [0.51, 0.65]) for mean in means)
    (tmp_path / "study.json").write_text(json.dumps(study.content))
    assert read_study(tmp_path / "study.json", "ablation-axes").content == study.content
    study.content["sweeps"]["roll-in-es"]["rows"][0]["closed_loop_test_mse"] = [0.5, "x"]
    (tmp_path / "study.json").write_text(json.dumps(study.content))
    with pytest.raises(BadInput, match="roll-in-es': row 1 is damaged"):
        read_study(tmp_path / "study.json", "ablation-axes")


def test_figures_of_the_axes_are_drawn_of_what_is_there(axes, monkeypatch, tmp_path):
    (tmp_path / "study.json").write_text(json.dumps(made_up_axes().content))
    for name in ("visualize_ablation_axes", "make_ablation_axes_gif"):
        module = load(ROOT / "ablation-axes" / f"{name}.py", monkeypatch)
        assert module.main(["--run", str(tmp_path), "--out", str(tmp_path / "drawn")]) == 0
    assert {path.stem for path in (tmp_path / "drawn" / "viz").glob("*.png")} == {"gain", "encoder", "training_curves"}
    with Image.open(tmp_path / "drawn" / "ablation_axes.gif") as gif:
        assert gif.n_frames > 1
