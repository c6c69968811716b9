"""Cosine laws against what is seen: what the file holds, that its laws are those of common, and what the figure shows of it."""

import dataclasses
import importlib
import json
import math
import shutil
import subprocess
import sys

import pytest
import torch
from PIL import Image

from common import laws
from common.dist import Workers
from common.errors import BadInput
from common.figures import style
from common.files import write_json
from common.gradient import GradientSums
from common.problem import Embeddings
from tests.conftest import STUB, flags

N, R, T, M = 48, 8, 3, 64
SIZES = {
    "hidden_size": N, "in_degree": 4, "rank": R, "sequence_length": T, "train_sequences": M, "validation_sequences": 16,
    "test_sequences": 16,
}  # fmt: skip
FILE, FIGURE = "measurements/cosine_by_dimensions.json", "viz/cosine_by_dimensions.png"


@pytest.fixture(scope="module")
def script():
    with pytest.MonkeyPatch.context() as patch:
        patch.syspath_prepend(str(STUB.parent))
        threads = torch.get_num_threads()
        yield importlib.import_module("measure_cosine_by_dimensions")
        torch.set_num_threads(threads)


@pytest.fixture(scope="module")
def small(script):
    """small(*flags) → (options, Config): the command line's, of a smaller problem than any preset's."""
    parse = script.parse_arguments

    def parsed(arguments):
        options, config = parse(["--preset", "smoke", "--device", "cpu", *arguments])
        return options, dataclasses.replace(config, **SIZES)

    return parsed


@pytest.fixture(scope="module")
def measured(script, small, tmp_path_factory):
    """The folder that a measurement has written."""
    folder = tmp_path_factory.mktemp("measured")
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(script, "parse_arguments", small)
        patch.setattr(script, "PAIRS_IN_ALL", 256)
        assert script.main(["--populations", "2", "--out", str(folder)]) == 0
    return folder


@pytest.fixture
def content(measured):
    return json.loads((measured / FILE).read_text())


@pytest.fixture
def still_of(script, small):
    """still_of(case, known) → populations around one θ."""
    _, config = small([])
    with Workers(torch.device("cpu")) as workers:
        digits = config.load_digits()
        problem = config.problem(digits)
        embeddings = Embeddings(problem, digits, config.train_sequences, workers)
        embeddings.prepare(workers)
        start = script.begin(config, problem, embeddings, workers, None)
        yield lambda case, known: script.Still(dataclasses.replace(config, **case), start, known)


# --- what is measured ------------------------------------------------------------------------------------------------


def test_the_file_says_what_was_measured_and_where(content, measured):
    assert {"environment", "source", "seed", "sigma", "problem_id", "sizes", "seconds"} <= content.keys()
    assert content["sizes"] == {"hidden_size": N, "sequence_length": T, "train_sequences": M}
    assert [start["rank"] for start in content["starts"]] == [R, R // 8]
    rows = content["cases"]
    assert len({(row["name"], row["pairs"]) for row in rows}) == len(rows)
    assert {(row["perturbs"], row["own_data"]) for row in rows} == {
        (p, o) for p in ("v", "both") for o in (True, False)
    }
    for row in rows:
        assert row["populations"] == 2
        for target in ("own_sequences", "expectation"):
            assert row[target].keys() == {"law", "seen", "standard_error"}
            assert -1 <= row[target]["seen"] <= 1 and row[target]["standard_error"] > 0
    assert Image.open(measured / FIGURE).format == "PNG"


def test_the_laws_are_those_of_common(content):
    for row in content["cases"]:
        n, r, k, batch, both = N, row["rank"], row["pairs"], row["batch_size"], row["perturbs"] == "both"
        assert row["dimensions"] == n * r * (2 if both else 1)
        states = (T - 1) * batch
        visited = r * min(n, states) + both * n * min(r, states)
        assert row["dimensions_seen"] == (visited if row["noise_projection"] == "visited" else row["dimensions"])
        sign = row["fitness_shaping"] == "sign"
        noise = 1 / row["agreement"] if sign else 1 + (row["batch_noise"] - 1) / batch
        law = (k, row["dimensions_seen"] * (math.pi / 2 if sign else 1), noise, row["own_data"])
        assert row["own_sequences"]["law"] == pytest.approx(laws.minibatch_cosine(*law))
        assert row["expectation"]["law"] == pytest.approx(laws.expected_cosine(*law))


def test_raw_estimates_follow_their_law(content):
    """Within what so few populations can tell."""
    for row in content["cases"]:
        law, seen, error = (row["own_sequences"][name] for name in ("law", "seen", "standard_error"))
        if row["fitness_shaping"] == "raw":
            assert abs(seen - law) < 5 * error + 0.05, row["name"]


def test_the_mean_of_all_sequences_is_the_expectation(script):
    rows = torch.randn(6, 5, generator=torch.Generator().manual_seed(0))
    unit = rows / rows.norm(dim=1, keepdim=True)
    rest = torch.stack((rows.square().sum(), torch.tensor(6.0)))
    whole = script.WholeSet(GradientSums(torch.cat((rows.sum(0), unit.sum(0), rest))))
    mean, mean_unit = rows.mean(0), unit.mean(0)
    assert whole.batch_noise == pytest.approx(float(rows.square().sum(1).mean() / mean.square().sum()), rel=1e-5)
    assert whole.agreement == pytest.approx(float(mean_unit.square().sum()), rel=1e-5)
    assert whole.cosines(mean) == pytest.approx((1, float(mean @ mean_unit / mean.norm() / mean_unit.norm())), rel=1e-5)


def test_cases_that_share_losses_measure_what_they_would_alone(still_of):
    shared, calls = {}, []
    kinds = [(projection, shaping) for projection in ("visited", "none") for shaping in ("raw", "sign")]
    for projection, shaping in kinds:
        case = {"noise_projection": projection, "fitness_shaping": shaping, "own_data": True, "batch_size": 1}
        training, alone = still_of(case, shared), still_of(case, {})
        before = training.u_Nr.clone(), training.v_Nr.clone()
        evaluate = training._evaluate_population
        training._evaluate_population = lambda *words, evaluate=evaluate: calls.append(words) or evaluate(*words)
        assert [training.measured(i) for i in (1, 2)] == [alone.measured(i) for i in (1, 2)]
        assert torch.equal(training.u_Nr, before[0]) and torch.equal(training.v_Nr, before[1])
    assert len(calls) == 2  # one for each population


def test_a_saved_run_is_measured_at_its_own_theta(script, main, tmp_path):
    run = tmp_path / "run"
    assert main(*flags(iterations=1), "--run-dir", run) == 0
    words = ["--run", str(run), "--populations", "2", "--device", "cpu", "--out", str(tmp_path)]
    options, config = script.parse_arguments(words)
    assert config.hidden_size == 48 and config.sigma == 1e-3
    assert len(script.cases(config, True)) == 18
    few = [case for case in script.cases(config, False) if case.own_data][:2]
    assert {case.rank for case in few} == {2}
    with Workers(torch.device("cpu")) as workers:
        content = script.measure(config, few, options.populations, workers, options.run)
        state = torch.load(run / "checkpoint.pt", weights_only=True)
    linear = state["decoder"]["linear"]
    hashed = script.sha256_of_tensors(state["u_Nr"], state["v_Nr"], linear["weight"], linear["bias"])
    assert [row["populations"] for row in content["cases"]] == [
        8,
        8,
    ]  # as many pairs in all as two populations of 1,024
    assert content["starts"] == [{"rank": 2, "iteration": 1, "theta_and_decoder_sha256": hashed}]
    (run / "checkpoint.pt").write_bytes(b"")
    with pytest.raises(BadInput, match="checkpoint.pt"), Workers(torch.device("cpu")) as workers:
        script.measure(config, few, options.populations, workers, options.run)


# --- the figure ------------------------------------------------------------------------------------------------------


def test_the_figure_is_drawn_from_the_file_alone(script, measured, tmp_path, monkeypatch):
    monkeypatch.setattr(script, "measure", None)
    (tmp_path / "measurements").mkdir()
    shutil.copy(measured / FILE, tmp_path / FILE)
    assert script.main(["--redraw", "--out", str(tmp_path)]) == 0
    assert (tmp_path / FIGURE).read_bytes() == (measured / FIGURE).read_bytes()


def test_a_mean_below_the_axis_is_an_upper_limit(script, content, tmp_path):
    content["cases"] = content["cases"][:3]
    low, none, wide = (row["expectation"] for row in content["cases"])
    low |= {"law": 0.01, "seen": -0.02, "standard_error": 0.02}
    none |= {"law": None}
    wide |= {"law": 0.02, "seen": 0.03, "standard_error": 0.05}
    write_json(tmp_path / "a.json", content)
    with style():
        axes = script.draw(script.read_measurement(tmp_path / "a.json")).axes[1]
    marks = {line.get_marker(): line.get_xydata()[0].tolist() for line in axes.lines if line.get_ls() == "None"}
    assert marks == {"v": [0.01, pytest.approx(0.02)], "^": [0.02, 0.03]}  # of the unknown one, nothing
    bars = [line.get_ydata() for line in axes.lines[1:] if line.get_ls() == "-"]
    assert all(bar[0] < axes.get_ylim()[0] for bar in bars)  # cut by the axis, for both reach 0


@pytest.mark.parametrize(
    "spoil",
    [
        lambda content: content.pop("cases"),
        lambda content: content.update(cases=[]),
        lambda content: content["cases"][0].update(perturbs="w"),
        lambda content: content["cases"][0]["expectation"].update(law="high"),
        lambda content: content["cases"][0]["own_sequences"].update(law=-0.1),
        lambda content: content["cases"][0].update(populations=None),
        lambda content: content.pop("environment"),
    ],
)
def test_another_file_is_refused_by_name(script, content, tmp_path, spoil):
    spoil(content)
    (tmp_path / "measurements").mkdir()
    write_json(tmp_path / FILE, content)
    with pytest.raises(BadInput, match="cosine_by_dimensions.json"):
        script.main(["--redraw", "--out", str(tmp_path)])


# --- the command line ------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("flag", "value"),
    [
        ("--populations", "1"),
        ("--populations", "few"),
        ("--sigma", "0"),
        ("--sigma", "nan"),
        ("--seed", "-1"),
        ("--preset", "h200"),
        ("--run", ""),
        ("--run", "nowhere"),
        ("--out", ""),
        ("--colour", "red"),
    ],
)
def test_bad_flags_are_refused_by_name(script, flag, value):
    with pytest.raises(BadInput, match=flag):
        script.parse_arguments([flag, value])


def test_a_bad_flag_is_one_line_and_exit_code_two(tmp_path):
    command = [sys.executable, STUB.parent / "measure_cosine_by_dimensions.py", "--populations", "1", "--out", tmp_path]
    done = subprocess.run(command, capture_output=True, text=True)
    assert done.returncode == 2 and done.stdout == ""
    assert done.stderr.count("\n") == 1 and "--populations" in done.stderr
    assert not list(tmp_path.iterdir())
