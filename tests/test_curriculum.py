"""The brief's schedule as one run: its rungs, what is handed on, and that it survives whatever ends it."""

import dataclasses
import functools
import json
import shutil
import signal

import numpy as np
import pytest
import torch
from conftest import ROOT, assert_same_run, flags_of, results

import common.curriculum
import common.experiment
from common.contract import run_python
from common.curriculum import steps_of
from common.curriculum_figures import WORST, curriculum, read_curricula
from common.errors import BadInput
from common.figures import VERMILION
from common.results import CURRICULUM as LOG
from common.results import curricula, publish, read_curriculum
from common.results_page import _curricula
from common.run import load_checkpoint

SCRIPT = ROOT / "rank-space-es" / "rank_space_es.py"
SMALL = {
    "preset": "smoke", "hidden-size": 32, "rank": 2, "in-degree": 4, "sequence-length": 4, "train-sequences": 24,
    "validation-sequences": 8, "test-sequences": 8, "iterations": 3, "batch-size": 9, "learning-rate": 0.02,
    "evaluate-every": 1, "checkpoint-every": 1, "window": 1, "probes": 2, "trains": "both", "u-scale": 0.2, "decoder": "ridge",
    "decoder-warmup": 4, "decoder-batch-size": 8,
}  # fmt: skip
FOLDERS = [
    "0-start", "1-two-digits", "2-length-10", "3-length-20", "4-units-80", "5-rank-4", "6-leak-scalar", "7-leak-per-unit"
]  # fmt: skip
flags = functools.partial(flags_of, SMALL)


def log(folder) -> list[dict]:
    return json.loads((folder / LOG).read_text())["rungs"]


def assert_same_curriculum(one, other) -> None:
    """Every rung in the same bits."""
    for name in FOLDERS:
        assert_same_run(one / name, other / name)
    keys = [("folder", "theta_sha256", "validation_mse", "validation_mse_taken_over", "ridge_test_mse")] * 2
    lines = [[[line.get(key) for key in k] for line in log(folder)] for folder, k in zip((one, other), keys)]
    assert lines[0] == lines[1]


@pytest.fixture
def climb(experiment, monkeypatch):
    """climb(place, *flags, **changes) → the folder `run` in that place, after the experiment has ended there with exit code 0. Paths are
    relative to it, so that two curricula agree in what their rungs start from, and a copy goes on as the original would."""

    def call(place, *more, expected=0, **changes):
        threads = torch.get_num_threads()
        monkeypatch.chdir(place)
        try:
            assert experiment.main([*flags(**changes), "--curriculum", "--run-dir", "run", *more]) == expected
        finally:
            torch.set_num_threads(threads)
        return place / "run"

    return call


@pytest.fixture(scope="module")
def made(experiment, tmp_path_factory):
    """A whole curriculum, not to be changed."""
    place, threads = tmp_path_factory.mktemp("curriculum"), torch.get_num_threads()
    with pytest.MonkeyPatch.context() as patch:
        patch.chdir(place)
        assert experiment.main([*flags(), "--curriculum", "--run-dir", "run"]) == 0
    torch.set_num_threads(threads)
    return place / "run"


@pytest.fixture
def copy(made, tmp_path):
    """A copy of it, in tmp_path."""
    return shutil.copytree(made, tmp_path / "run")


def write_launcher_of(script, tampering: str) -> None:
    """A script that starts the experiment after something has been done to it."""
    script.write_text(f"""
import importlib.util, os, sys
specification = importlib.util.spec_from_file_location("stub", {str(SCRIPT)!r})
stub = sys.modules["stub"] = importlib.util.module_from_spec(specification)
specification.loader.exec_module(stub)
{tampering}
stub.run_main(stub.main)
""")


# --- The rungs -------------------------------------------------------------------------------------------------------


def test_the_rungs_are_those_of_the_brief(experiment):
    steps = steps_of(experiment.Config())
    assert [change for _, _, change in steps] == [
        {"digits": 2},
        {"sequence_length": 50},
        {"sequence_length": 100},
        {"hidden_size": 5000, "grown_from": 2000},
        {"rank": 64},
        {"train_leak": "scalar"},
        {"train_leak": "per-unit"},
    ]


def test_what_the_start_has_climbed_or_an_experiment_lacks_is_left_out(experiment):
    names = [name for name, _, _ in steps_of(experiment.Config(digits=2, train_leak="scalar"))]
    assert names == ["T = 50", "T = 100", "N = 5000", "r = 64", "an α of each unit"]

    @dataclasses.dataclass
    class Frozen:
        digits, sequence_length, hidden_size = 1, 20, 2000

    assert [name for name, _, _ in steps_of(Frozen())] == ["two digits", "T = 50", "T = 100", "N = 5000"]


def test_each_rung_changes_one_thing_more(made):
    configs = [json.loads((made / name / "config.json").read_text()) for name in FOLDERS]
    wanted = [("digits", 2), ("sequence_length", 10), ("sequence_length", 20), ("hidden_size", 80), ("rank", 4),
              ("train_leak", "scalar"), ("train_leak", "per-unit")]  # fmt: skip
    of_problem = {"problem_id", "start_from", "tile_sequences", "sequences_at_once", "windows_at_once"}
    for before, config, (name, value) in zip(configs[:-1], configs[1:], wanted, strict=True):
        changed = {key for key in config if config[key] != before[key]} - of_problem
        assert config[name] == value and changed == ({name, "grown_from"} if name == "hidden_size" else {name})
    starts = [config["start_from"] for config in configs]
    assert starts == [None, *(f"../{name}" for name in FOLDERS[:-1])]


# --- What is handed on -----------------------------------------------------------------------------------------------


def test_what_has_been_learned_is_handed_on(made):
    """Where the sequences stay as they are, what is predicted does, too; the scores that the log has are those of the runs."""
    lines = log(made)
    assert [line["folder"] for line in lines] == FOLDERS and "validation_mse_taken_over" not in lines[0]
    for before, line in list(zip(lines, lines[1:]))[3:]:
        assert line["validation_mse_taken_over"] == pytest.approx(before["validation_mse"], rel=1e-5), line["name"]
    for line in lines:
        result = results(made / line["folder"])
        assert {key: result.get(key) for key in line if key in result} == {k: v for k, v in line.items() if k in result}
        assert line["curve"][-1][3] == result["validation_mse"] and line["ended"] == "budget"


def test_a_rung_is_the_run_that_starts_from_the_one_before(copy, run, monkeypatch):
    monkeypatch.chdir(copy.parent)
    alone, rung = results(run("alone", digits=2, start_from="run/0-start")), results(copy / "1-two-digits")
    for key in {key for key in rung if "_mse" in key} | {"theta_sha256", "start_theta_sha256", "problem_id"}:
        assert alone[key] == rung[key], key
    assert rung["start_theta_sha256"] == results(copy / "0-start")["theta_sha256"]


def test_a_rung_ends_at_a_plateau_and_hands_on_its_best(experiment, climb, tmp_path, monkeypatch):
    """Scores that grow worse after the second: each rung waits for two of them."""
    score, asked = experiment.Training.score, []

    def told(training, split):
        got = score(training, split)
        if split != "validation":
            return got
        asked.append(training.iteration)
        return dataclasses.replace(got, by_frame_T=torch.full_like(got.by_frame_T, 0.5 + abs(training.iteration - 1)))

    monkeypatch.setattr(experiment.Training, "score", told)
    folder = climb(tmp_path, iterations=50, patience=2)
    lines = log(folder)
    assert [line["ended"] for line in lines] == ["plateau"] * len(FOLDERS)
    assert [(line["iterations"], line["best_iteration"]) for line in lines] == [(3, 1)] * len(FOLDERS)
    best = load_checkpoint(folder / "5-rank-4" / "checkpoint.pt")["best"]["model"]["v_Nr"]
    begun = load_checkpoint(folder / "6-leak-scalar" / "checkpoint.pt")["begun_from"]["singular_values"]
    u = load_checkpoint(folder / "5-rank-4" / "checkpoint.pt")["best"]["model"]["u_Nr"]
    assert torch.allclose(
        begun.double().sort().values, torch.linalg.svdvals((u @ best.T).double())[:4].sort().values, atol=1e-5
    )


def test_what_a_new_start_costs_is_no_plateau(experiment, climb, tmp_path, monkeypatch):
    """The first steps of a rung are large: worse than what it began with, it gets better for three scores before the plateau comes."""
    score, scores = experiment.Training.score, [0.5, 0.9, 0.8, 0.7, 0.95, 0.96, 0.4]

    def told(training, split):
        got = score(training, split)
        if split != "validation":
            return got
        return dataclasses.replace(got, by_frame_T=torch.full_like(got.by_frame_T, scores[training.iteration]))

    monkeypatch.setattr(experiment.Training, "score", told)
    lines = log(climb(tmp_path, iterations=50, patience=2))
    assert [(line["iterations"], line["best_iteration"]) for line in lines] == [(5, 0)] * len(FOLDERS)


# --- Stopped, killed, resumed ----------------------------------------------------------------------------------------


@pytest.mark.parametrize("rung", [0, pytest.param(3, marks=pytest.mark.slow)])
def test_a_stopped_curriculum_goes_on_to_the_same_bits(experiment, climb, made, tmp_path, monkeypatch, rung):
    iterate, folder = experiment.Training.iterate, tmp_path / "run"

    def interrupt_the_second(training):
        line = iterate(training)
        if training.iteration == 2 and (folder / FOLDERS[rung]).exists():
            signal.raise_signal(signal.SIGINT)
        return line

    monkeypatch.setattr(experiment.Training, "iterate", interrupt_the_second)
    climb(tmp_path, expected=130)
    monkeypatch.setattr(experiment.Training, "iterate", iterate)
    assert not (folder / FOLDERS[rung + 1]).exists()
    assert len(log(folder)) == rung if rung else not (folder / LOG).exists()
    assert_same_curriculum(climb(tmp_path, "--resume"), made)


@pytest.mark.parametrize(
    "when",
    [
        "before the line",
        *(pytest.param(w, marks=pytest.mark.slow) for w in ("before the score", "before the next rung")),
    ],
)
def test_killed_between_two_rungs(climb, made, monkeypatch, tmp_path, when):
    """A kill is an exception that nothing handles, at a moment between two files; here in the third rung or behind the second."""

    class Killed(BaseException):
        pass

    counted = []

    def kill_the_third(original):
        def call(*arguments, **options):
            counted.append(1)
            if len(counted) == 3:
                raise Killed
            return original(*arguments, **options)

        return call

    place, name = {
        "before the score": (common.experiment, "finish"),
        "before the line": (common.curriculum.Log, "add"),
        "before the next rung": (common.experiment, "_run"),
    }[when]
    original = getattr(place, name)
    monkeypatch.setattr(place, name, kill_the_third(original))
    with pytest.raises(Killed):
        climb(tmp_path)
    monkeypatch.setattr(place, name, original)
    assert len(log(tmp_path / "run")) == 2
    assert_same_curriculum(climb(tmp_path, "--resume"), made)


def test_what_a_later_rung_had_learned_from_another_start_is_not_used(experiment, climb, copy, made, tmp_path):
    """The start is run anew by hand, with another number of iterations; then all begins with what it has now."""
    before = (copy / "3-length-20" / "results.json").stat().st_mtime_ns
    shutil.rmtree(copy / "0-start")
    with pytest.raises(BadInput, match="holds a curriculum"):  # a plain run does not go into its folder
        experiment.main([*flags(seed=1), "--run-dir", str(copy), "--overwrite"])
    assert experiment.main([*flags(seed=1), "--run-dir", str(copy / "0-start")]) == 0
    shutil.rmtree(copy / "2-length-10")
    climb(tmp_path, "--resume", seed=1)
    assert (copy / "3-length-20" / "results.json").stat().st_mtime_ns > before
    thetas = [line["theta_sha256"] for line in log(copy)]
    assert [results(copy / name).get("start_theta_sha256") for name in FOLDERS] == [None, *thetas[:-1]]
    assert all(line["theta_sha256"] not in thetas for line in log(made))


@pytest.mark.parametrize("how", ["lost", "damaged", "of another rung"])
def test_the_log_is_made_anew_from_what_the_rungs_have_left(climb, copy, made, tmp_path, how):
    if how == "lost":
        (copy / LOG).unlink()
    else:
        (copy / LOG).write_text("[" if how == "damaged" else json.dumps({"rungs": log(copy)[:1]}))
    before = {path: path.stat().st_mtime_ns for path in copy.rglob("results.json")}
    climb(tmp_path, "--resume")
    assert {path: path.stat().st_mtime_ns for path in copy.rglob("results.json")} == before
    assert (copy / LOG).read_bytes() == (made / LOG).read_bytes()


def test_a_folder_that_was_moved_goes_on(experiment, copy, made, tmp_path):
    shutil.rmtree(copy / FOLDERS[-1])
    moved = copy.rename(tmp_path / "elsewhere")
    assert experiment.main([*flags(), "--curriculum", "--resume", "--run-dir", str(moved)]) == 0
    assert results(moved / FOLDERS[-1])["theta_sha256"] == results(made / FOLDERS[-1])["theta_sha256"]


def test_a_finished_one_is_scored_further_ahead(climb, copy, tmp_path):
    climb(tmp_path, "--resume", horizon=2)
    assert all(len(results(copy / name)["closed_loop_test_mse"]) == 2 for name in FOLDERS)


@pytest.mark.slow
def test_ranks_that_do_not_all_climb_are_refused(torchrun, tmp_path):
    script = tmp_path / "differ.py"
    write_launcher_of(script, "import sys\nif os.environ['RANK'] == '1': sys.argv.remove('--curriculum')")
    code, _, stderr = torchrun(2, *flags(), "--curriculum", "--run-dir", tmp_path / "run", script=script).end()
    assert code == 1 and "rank 1 was started with another configuration: curriculum" in stderr
    assert not (tmp_path / "run").exists()


def test_a_finished_curriculum_is_left_as_it_is(climb, copy, tmp_path, capsys):
    before = {path: path.stat().st_mtime_ns for path in copy.glob("*/*.json*")}
    climb(tmp_path, "--resume")
    assert {path: path.stat().st_mtime_ns for path in copy.glob("*/*.json*")} == before
    assert "an α of each unit" in capsys.readouterr().out


def test_an_overwritten_one_is_gone_from_the_first_iteration_on(experiment, climb, copy, tmp_path, monkeypatch):
    def stop(training):
        raise KeyboardInterrupt

    monkeypatch.setattr(experiment.Training, "iterate", stop)
    with pytest.raises(KeyboardInterrupt):
        climb(tmp_path, "--overwrite", seed=1)
    assert not (copy / LOG).exists() and not list(copy.glob("*/results.json"))


def test_overwritten_by_ranks_that_are_started_again(climb, copy, made, tmp_path, monkeypatch):
    """With another seed, and before anything was overwritten: what is there is not in the way."""
    monkeypatch.setenv("TORCHELASTIC_RESTART_COUNT", "1")
    climb(tmp_path, "--overwrite", seed=1)
    assert all(results(copy / name)["seed"] == 1 for name in FOLDERS)


@pytest.mark.slow
def test_overwritten(climb, copy, made, tmp_path):
    climb(tmp_path, "--overwrite", seed=1)
    with pytest.raises(AssertionError):
        assert_same_curriculum(copy, made)
    assert_same_curriculum(climb(tmp_path, "--overwrite"), made)


@pytest.mark.slow
def test_two_ranks_climb_to_the_same_bits(torchrun, made, tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    words = [*flags(), "--curriculum", "--run-dir", "run"]
    code, _, stderr = torchrun(2, *words, script=SCRIPT).end()
    assert code == 0, stderr
    assert_same_curriculum(tmp_path / "run", made)


@pytest.mark.slow
def test_torchrun_starts_a_dead_rank_again_in_a_later_rung(torchrun, made, tmp_path, monkeypatch):
    """The rungs before are not run again, although nobody said --resume."""
    monkeypatch.chdir(tmp_path)
    script, mark = tmp_path / "dies.py", tmp_path / "died"
    write_launcher_of(
        script,
        f"""iterate = stub.Training.iterate
def dies(self):
    if os.environ["RANK"] == "1" and self.config.rank == 4 and self.iteration == 2 and not os.path.exists({str(mark)!r}):
        open({str(mark)!r}, "w").close()
        os._exit(9)
    return iterate(self)
stub.Training.iterate = dies
""",
    )
    words = [*flags(), "--curriculum", "--run-dir", "run"]
    code, _, stderr = torchrun(2, *words, script=script, options=("--max-restarts=1",)).end()
    assert code == 0 and mark.exists(), stderr
    assert stderr.count("rung 2 of 8") == 1 and stderr.count("rung 6 of 8") == 2
    assert_same_curriculum(tmp_path / "run", made)


# --- Other experiments -----------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("slug", "more", "rungs"),
    [
        ("moving-mnist-bptt-baseline", ["--batch-size=9"], 8),
        pytest.param("moving-mnist-es-reservoir", ["--population-pairs=4"], 8, marks=pytest.mark.slow),
        pytest.param("truncated-es", ["--window=2"], 8, marks=pytest.mark.slow),
        ("reservoir-readout-only", [], 5),
    ],
)
def test_other_experiments_climb_what_they_can(tmp_path, slug, more, rungs):
    same = (
        "preset",
        "hidden-size",
        "in-degree",
        "sequence-length",
        "train-sequences",
        "validation-sequences",
        "test-sequences",
    )
    words = [*flags_of({name: SMALL[name] for name in same}), "--iterations=2", "--evaluate-every=1", *more]
    words += ["--rank=2"] if slug != "reservoir-readout-only" else []
    script, folder = f"{slug.replace('-', '_')}.py", tmp_path / "run"
    done = run_python(
        [script, *words, "--curriculum", "--run-dir", folder], ROOT / slug, ROOT, capture_output=True, text=True
    )
    assert done.returncode == 0, done.stderr
    assert len(log(folder)) == rungs and all(line["reproduces"] for line in log(folder))


# --- Bad input -------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("more", "changes", "said"),
    [
        (["--evaluate"], {}, "--evaluate scores one run"),
        ([], {"hidden_size": 40, "grown_from": 32}, "--grown-from is a rung"),
        ([], {"rank": 32, "hidden_size": 32, "probes": 32}, None),
        ([], {"window": 4}, "rung 2 (T = 10): --window must divide --sequence-length"),
        ([], {"start_from": "nowhere"}, "--start-from nowhere"),
        (["--dry-run"], {"start_from": "nowhere"}, "--start-from nowhere"),
    ],
    ids=str,
)  # fmt: skip
def test_what_cannot_be_climbed_is_refused_before_anything_is_written(experiment, tmp_path, more, changes, said):
    if said is None:  # 64 columns of 80 units are allowed
        experiment.main([*flags(**changes), "--curriculum", "--dry-run"])
        return
    with pytest.raises(BadInput) as refusal:
        experiment.main([*flags(**changes), *more, "--curriculum", "--run-dir", str(tmp_path / "run")])
    assert said in str(refusal.value) and "\n" not in str(refusal.value)
    assert not (tmp_path / "run").exists()


def test_how_fast_the_leak_learns_may_be_said_before_it_does(experiment):
    experiment.parse_arguments([*flags(leak_rate=0.3), "--curriculum"])
    with pytest.raises(BadInput, match="--leak-rate"):
        experiment.parse_arguments(flags(leak_rate=0.3))


def test_a_gru_has_no_rungs():
    words = ["--preset=smoke", "--core=gru", "--curriculum"]
    script = "moving_mnist_bptt_baseline.py"
    done = run_python([script, *words], ROOT / "moving-mnist-bptt-baseline", ROOT, capture_output=True, text=True)
    assert done.returncode == 2 and "--curriculum hands on an adapter" in done.stderr


def test_a_folder_that_holds_one_is_refused(climb, made, tmp_path):
    with pytest.raises(BadInput, match="already holds a curriculum; --resume continues it, --overwrite deletes it"):
        climb(made.parent)
    with pytest.raises(BadInput, match="0-start holds another configuration: learning_rate"):
        climb(made.parent, "--resume", learning_rate=0.5)
    with pytest.raises(BadInput, match="holds no run"):
        climb(tmp_path, "--resume")
    assert not (tmp_path / "run").exists()


def test_a_folder_that_holds_something_else_is_refused(experiment, run, climb, copy, tmp_path):
    with pytest.raises(BadInput, match="holds a curriculum: name another folder"):
        experiment.main([*flags(), "--run-dir", str(copy)])
    plain = run("plain").rename(tmp_path / "there")
    with pytest.raises(BadInput, match="holds a run that is no curriculum"):
        experiment.main([*flags(), "--curriculum", "--overwrite", "--run-dir", str(plain)])
    shutil.rmtree(copy)
    (copy / LOG).mkdir(parents=True)
    with pytest.raises(BadInput, match=f"{LOG} is a folder"):
        climb(tmp_path)


def test_a_damaged_result_is_named(climb, copy, tmp_path):
    (copy / "2-length-10" / "results.json").write_text("{}")
    with pytest.raises(BadInput, match="2-length-10/results.json: key 'schema' is missing"):
        climb(tmp_path, "--resume")


def test_two_at_a_time_are_refused(experiment, climb, tmp_path, monkeypatch):
    iterate, said = experiment.Training.iterate, []

    def start_another(training):
        if training.iteration == 1 and training.config.digits == 2:
            for flag in ("--resume", "--overwrite"):
                done = run_python([SCRIPT, *flags(), "--curriculum", flag, "--run-dir", "run"], tmp_path, ROOT,
                                  capture_output=True, text=True)  # fmt: skip
                said.append((done.returncode, done.stderr))
            raise KeyboardInterrupt
        return iterate(training)

    monkeypatch.setattr(experiment.Training, "iterate", start_another)
    with pytest.raises(KeyboardInterrupt):
        climb(tmp_path)
    assert len(said) == 2 and all(code == 2 and "is in use by process" in stderr for code, stderr in said), said


def test_a_dry_run_says_what_each_rung_costs(experiment, tmp_path, capsys):
    assert experiment.main([*flags(), "--curriculum", "--dry-run", "--run-dir", str(tmp_path / "run")]) == 0
    said = capsys.readouterr().out
    assert said.count("rollouts an iteration") == 8 and "rung 5 of 8: N = 80" in said
    assert not (tmp_path / "run").exists()


# --- Committed -------------------------------------------------------------------------------------------------------


def test_a_whole_curriculum_is_published(made, tmp_path):
    place = tmp_path / "rank-space-es"
    place.mkdir()
    (place / "rank_space_es.py").touch()
    (path,) = publish(made, tmp_path)
    assert (
        path == place / "measurements" / "curriculum-smoke-seed0.json"
        and path.read_bytes() == (made / LOG).read_bytes()
    )
    assert curricula(place) == [path]


@pytest.mark.parametrize(
    ("change", "said"),
    [
        (lambda c: c["rungs"].pop(), "7 of 8 rungs are finished"),
        (lambda c: c.update(stub="another"), "is no experiment"),
        (lambda c: c["rungs"][2].update(ridge_test_mse="x"), "ridge_test_mse"),
        (lambda c: c["rungs"][2].update(curve=[[1, 2]]), "curve"),
        (lambda c: c.update(rungs=[]), "rungs"),
        (lambda c: c["rungs"].insert(0, 5), "rung 1"),
        (lambda c: c["rungs"][0].pop("environment"), "environment"),
    ],
)
def test_what_is_no_whole_curriculum_is_not_published(copy, tmp_path, change, said):
    (tmp_path / "rank-space-es").mkdir()
    (tmp_path / "rank-space-es" / "rank_space_es.py").touch()
    content = json.loads((copy / LOG).read_text())
    change(content)
    (copy / LOG).write_text(json.dumps(content))
    with pytest.raises(BadInput, match=said):
        publish(copy, tmp_path)
    assert not (tmp_path / "rank-space-es" / "measurements").exists()


def test_results_page_has_a_table_of_rungs_by_experiments(made, tmp_path):
    content = json.loads((made / LOG).read_text())
    for slug, seeds in (("one", (0, 1)), ("two", (0,))):
        (tmp_path / slug / "measurements").mkdir(parents=True)
        (tmp_path / slug / f"{slug}.py").touch()
        for seed in seeds:
            other = json.loads(json.dumps({**content, "stub": slug, "seed": seed}))
            other["rungs"][1]["ridge_test_mse"] += 0.01 * seed
            (tmp_path / slug / "measurements" / f"curriculum-smoke-seed{seed}.json").write_text(json.dumps(other))
    (page,) = [text for text in _curricula(tmp_path) if text.startswith("| rung")]
    error, frozen = (content["rungs"][1][key] for key in ("ridge_test_mse", "ridge_test_mse_at_start"))
    row = next(line for line in page.splitlines() if line.startswith("| two digits"))
    spread = 0.01 / 2**0.5  # sample standard deviation of two numbers 0.01 apart
    assert row == f"| two digits | {frozen:.4f} | {error + 0.005:.4f} ± {spread:.4f} | {error:.4f} |"


def test_the_figure_has_a_line_for_each_rung_and_seed(made):
    found = [read_curriculum(made / LOG)] * 2
    axes = curriculum(found, "test").axes[0]
    lines = [line for line in axes.lines if line.get_color() == VERMILION]
    assert len(lines) == 16 and [label.get_text() for label in axes.get_xticklabels()] == found[0]["planned"]
    scores = [min(score, WORST) for *_, score in found[0]["rungs"][-1]["curve"]]
    assert any(np.allclose(line.get_ydata(), scores) and line.get_alpha() == 1 for line in lines)
    assert curriculum([], "test") is None and read_curricula(made / FOLDERS[1], made) == found[:1]
