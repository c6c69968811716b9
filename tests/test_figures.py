"""Plots and GIFs are drawn from a saved run alone, say what the files say, and refuse damaged files in one line."""

import importlib.util
import json
import math
import os
import re
import subprocess
import sys
from pathlib import Path

import matplotlib
import matplotlib.colors
import numpy as np
import pytest
from matplotlib.figure import Figure
from PIL import Image

from common import figures, laws
from common.errors import BadInput

ROOT = Path(__file__).resolve().parents[1]
STUB = ROOT / "moving-mnist-es-reservoir"
VISUALIZE = STUB / "visualize_moving_mnist_es_reservoir.py"
MAKE_GIF = STUB / "make_moving_mnist_es_reservoir_gif.py"
PNGS = {"training_curves", "prediction_vs_target", "adapter_spectra", "hidden_activity", "gradient_quality"}
GIF = "moving_mnist_es_reservoir.gif"
ENVIRONMENT = {**os.environ, "PYTHONPATH": str(ROOT)}

N, RANK, T, E, S, PAIRS, ITERATIONS = 24, 3, 6, 10, 3, 8, 12


def synthetic_run(folder: Path) -> Path:
    """A run folder with plausible small numbers; ΔW = 0 at the start, as in the real experiment."""
    rng = np.random.default_rng(0)
    folder.mkdir(parents=True, exist_ok=True)
    target = rng.normal(size=(S, T, E))
    prediction = 0.5 * target + rng.normal(scale=0.3, size=(S, T, E))
    frozen = rng.normal(scale=N**-0.5, size=(N, N))
    adapter = rng.normal(size=(N, RANK)) @ rng.normal(scale=0.1, size=(RANK, N))
    evaluations = np.array([0, 4, 8, 12])
    hidden = np.tanh(rng.normal(size=(T, 64)))
    histogram, edges = np.histogram(hidden, 50, (-1, 1))
    frames = np.zeros((S, T + 1, 64, 64), np.uint8)
    for t in range(T + 1):
        frames[:, t, 10 + t : 20 + t, 20:30] = 200
    np.savez_compressed(
        folder / "figures.npz",
        frames_SFYX=frames,
        target_STE=target.astype(np.float16),
        prediction_STE=prediction.astype(np.float16),
        plane_target_ST2=target[..., :2].astype(np.float32),
        plane_iteration_n=evaluations,
        plane_prediction_nST2=np.stack([prediction[..., :2] * (i / 12) for i in evaluations]).astype(np.float32),
        plane_explained_2=np.array([0.3, 0.2], np.float32),
        mse_by_frame_T=np.linspace(0.7, 0.6, T, dtype=np.float32),
        trivial_names=np.array(["mean", "copy_last", "ar1", "ar3"]),
        trivial_mse_by_frame_kT=np.repeat([[1.0], [1.4], [0.66], [0.655]], T, axis=1).astype(np.float32),
        eigenvalues_frozen=np.linalg.eigvals(frozen).astype(np.complex64),
        eigenvalues_trained=np.linalg.eigvals(frozen + adapter).astype(np.complex64),
        singular_values_start=np.zeros(RANK),
        singular_values_final=np.linalg.svd(adapter)[1][:RANK],
        hidden_TM=hidden.astype(np.float16),
        hidden_rms_T=np.sqrt((hidden**2).mean(1)).astype(np.float32),
        hidden_histogram=histogram,
        hidden_edges=edges.astype(np.float32),
    )
    lines = [{"iteration": 0, "validation_mse": 0.68}]
    for i in range(1, ITERATIONS + 1):
        lines.append(
            {
                "iteration": i,
                "train_loss": 0.7 - 0.002 * i,
                "decoder_loss": 0.69 - 0.002 * i,
                "exploded_fraction": 0.0,
                "sigma": 0.02,
                "learning_rate": 0.01,
                "u_norm": 0.1 * i,
                "v_norm": 1.7,
                "h_rms": 0.3,
                "gradient_norm": 0.2,
                "half_cosine": None if i == 3 else 0.05 * (-1) ** i,
                "update_ratio": None if i == 1 else 0.01,
                "rollouts": 2 * PAIRS * 4 * i,
                "rollouts_per_s": 100.0,
                "wallclock_s": 0.5 * i,
                **({"validation_mse": 0.68 - 0.002 * i} if i % 4 == 0 else {}),
            }
        )
    (folder / "metrics.jsonl").write_text("".join(json.dumps(line) + "\n" for line in lines))
    config = {
        "hidden_size": N,
        "rank": RANK,
        "sequence_length": T,
        "population_pairs": PAIRS,
        "batch_size": 4,
        "noise": "rank1",
        "fitness_shaping": "centered-rank",
        "own_data": False,
    }
    trivial = {"mean": 1.0, "copy_last": 1.4, "ar1": 0.66, "ar3": 0.655}
    results = {
        "schema": 1,
        "seed": 0,
        "preset": "smoke",
        "config": config,
        "test_mse": 0.6571,
        "ridge_test_mse": 0.7489,  # the curves are of validation errors, and so must be the lines around them
        "ridge_validation_mse": 0.6489,
        "ridge_validation_mse_at_start": 0.6532,
        "trivial_validation_mse": {name: {"all": value, "last_frame": value} for name, value in trivial.items()},
        "environment": {"device_name": "a small computer"},
    }
    (folder / "results.json").write_text(json.dumps(results))
    (folder / "config.json").write_text(json.dumps(config))
    return folder


@pytest.fixture(scope="module")
def run_folder(tmp_path_factory) -> Path:
    return synthetic_run(tmp_path_factory.mktemp("run"))


def script(path: Path, *arguments) -> subprocess.CompletedProcess:
    command = [sys.executable, str(path), *map(str, arguments)]
    return subprocess.run(command, capture_output=True, text=True, env=ENVIRONMENT)


def load_stub(path: Path):
    """A stub's script as a module; its folder's name is not a Python name."""
    spec = importlib.util.spec_from_file_location(path.stem, path)
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    return module


# --- the scripts -----------------------------------------------------------------------------------------------------


def test_visualize_writes_every_figure_and_nothing_else(run_folder, tmp_path):
    done = script(VISUALIZE, "--run", run_folder, "--out", tmp_path)
    assert (done.returncode, done.stderr) == (0, "")
    assert {p.relative_to(tmp_path).as_posix() for p in tmp_path.rglob("*.*")} == {f"viz/{name}.png" for name in PNGS}
    for name in PNGS:
        with Image.open(tmp_path / "viz" / f"{name}.png") as picture:
            assert picture.size[0] > 1000 and picture.size[1] > 500
            assert picture.info["dpi"][0] == pytest.approx(150, abs=0.1)
            assert len(np.unique(np.asarray(picture.convert("L")))) > 20, "an empty picture"


def test_gif_moves_loops_and_has_one_palette(run_folder, tmp_path):
    done = script(MAKE_GIF, "--run", run_folder, "--out", tmp_path)
    assert (done.returncode, done.stderr) == (0, "")
    path = tmp_path / GIF
    assert path.stat().st_size <= 2_000_000
    with Image.open(path) as gif:
        assert 720 <= gif.width <= 900
        assert 40 <= gif.n_frames <= 64
        assert gif.info["loop"] == 0
        pictures = []
        for i in range(gif.n_frames):
            gif.seek(i)
            pictures.append(np.asarray(gif.convert("RGB")))
        assert gif.info["duration"] >= 1000, "the last frame stays for a while"
    assert all((a != b).any() for a, b in zip(pictures[:-1], pictures[1:], strict=True)), (
        "every frame changes something"
    )
    # The digit (here a square that moves down one pixel a frame) is enlarged fourfold with hard edges.
    rows = [np.flatnonzero((p[72:328, 18 + 4 * 25] > 100).any(-1)) for p in pictures[:T]]
    assert [(r[0], r[-1]) for r in rows] == [(4 * (10 + t), 4 * (20 + t) - 1) for t in range(T)]
    assert local_palettes(path) == 0


def local_palettes(path: Path) -> int:
    """How many frames of a GIF carry a palette of their own, by walking its blocks (GIF89a specification)."""
    data = path.read_bytes()
    assert data[10] & 0x80, "no global palette"
    place, count = 13 + 3 * 2 ** ((data[10] & 7) + 1), 0
    while data[place] != 0x3B:
        if data[place] == 0x21:
            place += 2
        else:
            assert data[place] == 0x2C
            own = data[place + 9]
            count += own >> 7
            place += 10 + (3 * 2 ** ((own & 7) + 1) if own & 0x80 else 0) + 1
        while data[place]:
            place += data[place] + 1
        place += 1
    return count


def damage_missing_results(folder):
    (folder / "results.json").unlink()


def damage_broken_line(folder):
    with (folder / "metrics.jsonl").open("a") as file:
        file.write('{"iteration": 13, "train_')


def damage_truncated_arrays(folder):
    data = (folder / "figures.npz").read_bytes()
    (folder / "figures.npz").write_bytes(data[: len(data) // 2])


def damage_wrong_shape(folder):
    with np.load(folder / "figures.npz") as archive:
        arrays = dict(archive)
    arrays["frames_SFYX"] = arrays["frames_SFYX"][:, :-1]
    np.savez(folder / "figures.npz", **arrays)


def damage_no_validation(folder):
    lines = [json.loads(line) for line in (folder / "metrics.jsonl").read_text().splitlines()]
    text = "".join(json.dumps({**line, "validation_mse": None}) + "\n" for line in lines)
    (folder / "metrics.jsonl").write_text(text)


@pytest.mark.parametrize(
    ("damage", "named"),
    [
        (damage_missing_results, "results.json"),
        (damage_broken_line, "line 14"),
        (damage_truncated_arrays, "figures.npz"),
        (damage_wrong_shape, "T+1"),
        (damage_no_validation, "validation_mse"),
    ],
)
@pytest.mark.parametrize("path", [VISUALIZE, MAKE_GIF], ids=["visualize", "gif"])
def test_damaged_input_is_one_line_and_nothing_is_written(damage, named, path, tmp_path, capsys):
    folder = synthetic_run(tmp_path / "run")
    damage(folder)
    with pytest.raises(BadInput, match=re.escape(named)) as error:
        load_stub(path).main(["--run", str(folder), "--out", str(tmp_path / "out")])
    assert "\n" not in str(error.value) and capsys.readouterr().out == ""
    assert not (tmp_path / "out").exists()


@pytest.mark.parametrize("arguments", [["--run", "no/such/folder"], ["--colour", "red"]])
def test_command_line_mistakes_exit_with_two(arguments, tmp_path):
    for path in (VISUALIZE, MAKE_GIF):
        done = script(path, *arguments, "--out", tmp_path)
        assert done.returncode == 2
        assert done.stderr.count("\n") == 1 and arguments[0] in done.stderr
    assert not list(tmp_path.iterdir())


def test_committed_names_are_read_where_no_run_is_given(run_folder, tmp_path):
    for name, end in (("results.json", ".json"), ("metrics.jsonl", ".history.jsonl"), ("figures.npz", ".figures.npz")):
        (tmp_path / f"laptop-seed0{end}").write_bytes((run_folder / name).read_bytes())
    run = figures.load_run(None, tmp_path / "laptop-seed0", {"mse_by_frame_T": "T"}, needs=("train_loss",))
    assert run.config["rank"] == RANK
    assert run.arrays["mse_by_frame_T"].shape == (T,)


def test_results_without_the_optional_parts_are_drawn(run_folder):
    visualize = load_stub(VISUALIZE)
    run = figures.load_run(run_folder, run_folder, visualize.SHAPES)
    for key in ("trivial_validation_mse", "ridge_validation_mse_at_start", "ridge_validation_mse", "environment"):
        del run.results[key]
    with figures.style():
        labels = right_labels(visualize.training_curves(run))
    assert labels == ["this run 0.6560"]


# --- numbers drawn are the file's ------------------------------------------------------------------------------------


def right_labels(figure) -> list[str]:
    return [text.get_text() for axes in figure.axes for text in axes.texts if text.get_text() != "none"]


def test_training_curves_show_the_numbers_of_the_files(run_folder):
    visualize = load_stub(VISUALIZE)
    run = figures.load_run(run_folder, run_folder, visualize.SHAPES)
    with figures.style():
        figure = visualize.training_curves(run)
    labels = right_labels(figure)
    for expected in ("0.6560", "0.6532", "0.6489", "0.6600", "0.6550", "1.0000", "1.4000"):
        assert sum(label.endswith(expected) for label in labels) == 1, (expected, labels)
    main = figure.axes[0]
    drawn = [line.get_ydata() for line in main.lines if len(line.get_ydata()) == 4]
    np.testing.assert_allclose(drawn, [[0.68, 0.672, 0.664, 0.656]])
    low, high = main.get_ylim()
    assert low < 0.6489 and 0.68 < high < 1, (
        "the axis holds the curve and the near references; the far ones have a strip"
    )
    losses = [line.get_ydata() for axes in figure.axes for line in axes.lines if len(line.get_ydata()) == ITERATIONS]
    assert any(np.allclose(y, 0.7 - 0.002 * np.arange(1, 13)) for y in losses), "train loss, raw"
    assert any(np.allclose(y, 0.69 - 0.002 * np.arange(1, 13)) for y in losses), "decoder loss, raw"
    # Rollouts grow by 64 an iteration: the top axis puts its label x at iteration x / 64.
    secondary = next(child for axes in figure.axes for child in axes.child_axes)
    for position, label in zip(secondary.get_xticks(), secondary.get_xticklabels(), strict=True):
        assert position == pytest.approx(float(label.get_text()) / 64)


def test_gradient_quality_draws_law_and_noise_band(run_folder):
    visualize = load_stub(VISUALIZE)
    run = figures.load_run(run_folder, run_folder, visualize.SHAPES)
    with figures.style():
        figure = visualize.gradient_quality(run)
    law = 4 / (4 + 2 * 24 * 3)
    levels = [line.get_ydata()[0] for line in figure.axes[1].lines if len(set(line.get_ydata())) == 1]
    assert levels == pytest.approx([0.0, law])
    assert figure.axes[0].get_ylabel() == "|ĝ| of shaped losses"
    band = figure.axes[1].patches[0]
    assert (band.get_y(), band.get_height()) == pytest.approx((-1 / 12, 2 / 12)), "±1/√144"


MEASURED = {
    "cosine_minibatch": [0.2, 0.3, 0.25],
    "cosine_minibatch_law": [0.22, 0.23, 0.24],
    "cosine_expected": [0.05, -0.01, 0.08],
    "cosine_expected_law": [0.06, 0.05, 0.04],
    "cosine_gradient": [0.03, 0.02, 0.07],
    "batch_noise": [40.0, 50.0, 60.0],
    "agreement": [0.05, 0.04, 0.03],
}


def measured_run(folder: Path, **changed) -> figures.SavedRun:
    """The synthetic run, with measurements in iterations 4, 8 and 12: those of MEASURED, or as told (None: key missing)."""
    path = synthetic_run(folder) / "metrics.jsonl"
    lines = [json.loads(line) for line in path.read_text().splitlines()]
    columns = {key: values for key, values in {**MEASURED, **changed}.items() if values is not None}
    for i in range(3):
        lines[4 * i + 4] |= {key: values[i] for key, values in columns.items()}
    path.write_text("".join(json.dumps(line) + "\n" for line in lines))
    return figures.load_run(folder, folder, load_stub(VISUALIZE).SHAPES)


def measured_figure(run: figures.SavedRun) -> Figure:
    with figures.style():
        return load_stub(VISUALIZE).cosine_to_gradient(run)


def header(figure: Figure) -> tuple[str, list[str]]:
    """Title and legend."""
    return figure.texts[0].get_text().replace("\n", " "), [text.get_text() for text in figure.legends[0].texts]


def drawn_lines(axes) -> list[tuple[list, list]]:
    """Data of the curves, without horizontal lines across the axes."""
    lines = [line for line in axes.lines if line.get_transform() == axes.transData]
    return [(list(line.get_xdata()), list(line.get_ydata())) for line in lines]


def test_a_measured_run_gets_a_figure_more(tmp_path, capsys):
    measured_run(tmp_path / "run")
    load_stub(VISUALIZE).main(["--run", str(tmp_path / "run"), "--out", str(tmp_path / "out")])
    assert {path.stem for path in (tmp_path / "out/viz").iterdir()} == PNGS | {"cosine_to_gradient"}
    assert [Path(line).stem for line in capsys.readouterr().out.split()][-1] == "cosine_to_gradient"
    with Image.open(tmp_path / "out/viz/cosine_to_gradient.png") as picture:
        assert picture.size[0] > 1000 and picture.size[1] > 500


@pytest.mark.parametrize("cosines", [None, [None] * 3, [math.nan] * 3], ids=["missing", "null", "NaN"])
def test_a_run_without_an_expected_cosine_gets_no_figure_of_it(cosines, tmp_path):
    assert measured_figure(measured_run(tmp_path, cosine_expected=cosines)) is None


def test_cosine_to_gradient_draws_the_measurements_beside_the_laws(tmp_path):
    figure = measured_figure(measured_run(tmp_path))
    cosines, noise, agreement = figure.axes
    at = [4, 8, 12]
    assert drawn_lines(cosines) == [(at, MEASURED[key]) for key in list(MEASURED)[:5]]
    dashed = [line.is_dashed() for line in cosines.lines if line.get_transform() == cosines.transData]
    assert dashed == [False, True, False, True, False], "seen with marks, laws dashed"
    assert drawn_lines(noise) == [(at, MEASURED["batch_noise"])]
    assert drawn_lines(agreement) == [(at, MEASURED["agreement"])]
    assert [axes.get_yscale() for axes in figure.axes] == ["linear", "log", "log"]
    low, high = cosines.get_ylim()
    assert -0.05 < low < -0.01 and 0.3 < high < 0.35
    title, legend = header(figure)
    assert title == "Cosine of ĝ to the mean unit gradient: 0.0400 ± 0.0265 seen, 0.0500 by the law"
    assert [text.split()[-1] for text in legend] == ["0.25", "0.23", "0.04", "0.05", "0.04"]


def test_the_gradient_has_a_curve_of_its_own_only_where_the_estimate_is_of_something_else(tmp_path):
    figure = measured_figure(measured_run(tmp_path, cosine_gradient=MEASURED["cosine_expected"]))
    assert len(drawn_lines(figure.axes[0])) == 4 and len(header(figure)[1]) == 4
    assert header(figure)[0].startswith("Cosine of ĝ to the mean gradient: 0.0400")


@pytest.mark.parametrize("ending", [None, math.nan], ids=["null", "NaN"])
def test_cosine_to_gradient_leaves_out_what_is_not_known(ending, tmp_path):
    changed = {key: [*values[:2], ending] for key, values in MEASURED.items()}
    changed |= {"cosine_minibatch": [ending] * 3, "cosine_minibatch_law": None, "agreement": [0.05, -0.01, 0.0]}
    figure = measured_figure(measured_run(tmp_path, **changed))
    cosines, noise, agreement = figure.axes
    known = [(x, y) for x, y in drawn_lines(cosines) if x]
    assert known == [([4, 8], MEASURED[key][:2]) for key in list(MEASURED)[2:5]]
    assert drawn_lines(noise) == [([4, 8], [40, 50])]
    assert drawn_lines(agreement) == [([4], [0.05])] and "2 of 3 values ≤ 0" in agreement.get_title(loc="left")
    title, legend = header(figure)
    assert "0.0200 ± 0.0300 seen, 0.0550 by the law" in title
    assert [text.endswith("not known") for text in legend] == [True, True, False, False, False]


def test_cosine_to_gradient_of_one_measurement_shows_it(tmp_path):
    one = {key: [None, values[1], None] for key, values in MEASURED.items()}
    run = measured_run(tmp_path, **one | {"batch_noise": None, "agreement": [-0.01] * 3, "cosine_expected_law": None})
    figure = measured_figure(run)
    assert header(figure)[0] == "Cosine of ĝ to the mean unit gradient: −0.0100 seen"
    lines = [line for line in figure.axes[0].lines if list(line.get_xdata()) == [8]]
    assert [line.get_marker() for line in lines] == [".", "_", ".", "."]
    assert [axes.texts[0].get_text() for axes in figure.axes[1:]] == ["not known"] * 2


def test_gif_shows_saved_checkpoints_in_order_and_holds_the_last():
    gif = load_stub(MAKE_GIF)
    moments = list(gif.schedule(20, 16))
    steps, checkpoints = zip(*moments, strict=True)
    assert len(moments) == 60
    assert steps == tuple(range(20)) * 3
    assert checkpoints[:5] == (0,) * 5 and checkpoints[-20:] == (15,) * 20
    assert sorted(set(checkpoints)) == list(range(16)) and list(checkpoints) == sorted(checkpoints)
    assert len(list(gif.schedule(100, 16))) == 100


# --- the arithmetic --------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("window", [1, 3, 7, 21])
def test_running_mean_equals_a_plain_loop(window):
    rng = np.random.default_rng(1)
    values = rng.normal(size=15)
    values[[2, 3, 4, 11]] = np.nan
    expected = []
    for i in range(15):
        near = [v for v in values[max(0, i - window // 2) : i + window // 2 + 1] if not np.isnan(v)]
        expected.append(sum(near) / len(near) if near else np.nan)
    np.testing.assert_allclose(figures.running_mean(values, window), expected, atol=1e-12)


def test_half_population_cosine_is_what_a_simulation_finds():
    dimensions, pairs, rng = 40, 30, np.random.default_rng(2)
    gradient = rng.normal(size=dimensions)
    cosines = []
    for _ in range(2000):
        noise = rng.normal(size=(2, pairs // 2, dimensions))
        first, second = np.einsum("hpd,hp->hd", noise, noise @ gradient)
        cosines.append(first @ second / np.linalg.norm(first) / np.linalg.norm(second))
    # Standard error of the mean is 0.004; the law leaves out a term of order 1/(n + D).
    assert np.mean(cosines) == pytest.approx(laws.half_population_cosine(pairs, dimensions), abs=0.02)


def test_downsample_keeps_spikes_and_order():
    x = np.arange(10_000.0)
    y = np.sin(x / 500)
    y[[1234, 7777]] = 9, -9
    few_x, few_y = figures.downsample(x, y, most=200)
    assert len(few_x) <= 200 and (np.diff(few_x) > 0).all()
    assert {9.0, -9.0} <= set(few_y)
    np.testing.assert_array_equal(few_y, y[few_x.astype(int)])


def test_spread_keeps_gaps_order_and_bounds():
    rng = np.random.default_rng(3)
    for _ in range(50):
        wanted = rng.random(6)
        placed = figures.spread(wanted, 0.15, 0, 1)
        assert (np.argsort(placed) == np.argsort(wanted)).all()
        assert (np.diff(np.sort(placed)) > 0.15 - 1e-9).all()
        assert placed.min() > -1e-9 and placed.max() < 1 + 1e-9
    np.testing.assert_allclose(figures.spread([0.2, 0.8], 0.1, 0, 1), [0.2, 0.8])
    np.testing.assert_allclose(figures.spread([0.5, 0.5], 0.1, 0, 1), [0.45, 0.55])


def test_seriation_puts_alike_columns_together():
    rng = np.random.default_rng(4)
    sources = rng.normal(size=(200, 2))
    kind = rng.integers(0, 2, 30)
    values = sources[:, kind] + rng.normal(scale=0.1, size=(200, 30))
    values[:, 7] = 3.0
    order = figures.seriation(values)
    assert sorted(order) == list(range(30)) and order[-1] == 7
    assert np.abs(np.diff(kind[order[:-1]])).sum() == 1, "two kinds, so one change"


def test_history_takes_the_later_of_two_lines_and_sorts(tmp_path):
    path = tmp_path / "metrics.jsonl"
    path.write_text('{"iteration": 2, "a": 5}\n{"iteration": 1, "a": null}\n\n{"iteration": 2, "a": 6, "b": 1}\n')
    history = figures.read_history(path)
    np.testing.assert_array_equal(history["iteration"], [1, 2])
    np.testing.assert_array_equal(history["a"], [np.nan, 6])
    np.testing.assert_array_equal(history["b"], [np.nan, 1])


# --- the GIF writer --------------------------------------------------------------------------------------------------


def test_too_large_a_gif_fails_and_keeps_the_old_one(tmp_path):
    rng = np.random.default_rng(5)
    frames = [rng.integers(0, 256, (64, 64, 3), dtype=np.uint8) for _ in range(4)]
    path = tmp_path / "noise.gif"
    path.write_bytes(b"old")
    with pytest.raises(RuntimeError, match="more than 5,000"):
        figures.write_gif(path, frames, [100] * 4, limit=5_000)
    assert path.read_bytes() == b"old" and list(tmp_path.iterdir()) == [path]


def test_few_colours_survive_exactly_where_only_some_pixels_change(tmp_path):
    palette = np.array([[round(255 * c) for c in matplotlib.colors.to_rgb(h)] for h in ("white", "#D55E00", "#0072B2")])
    frames = []
    for i in range(4):
        index = np.arange(400).reshape(20, 20) % 2
        index[3 * i : 3 * i + 5, 4:9] = 2
        frames.append(palette[index].astype(np.uint8))
    with Image.open(figures.write_gif(tmp_path / "a.gif", frames, [50, 60, 70, 80])) as gif:
        for i, frame in enumerate(frames):
            gif.seek(i)
            np.testing.assert_array_equal(np.asarray(gif.convert("RGB")), frame)
            assert gif.info["duration"] == 50 + 10 * i


def test_unwritable_folder_is_bad_input(tmp_path):
    (tmp_path / "file").write_text("in the way")
    with pytest.raises(BadInput, match="cannot be written"):
        figures.save_png(Figure(), tmp_path / "file" / "a.png")


def test_drawing_leaves_no_global_state(run_folder, tmp_path):
    visualize = load_stub(VISUALIZE)
    run = figures.load_run(run_folder, run_folder, visualize.SHAPES)
    before = dict(matplotlib.rcParams)
    with figures.style():
        figures.save_png(visualize.hidden_activity(run), tmp_path / "a.png")
    assert dict(matplotlib.rcParams) == before
    assert "matplotlib.pyplot" not in sys.modules or not sys.modules["matplotlib.pyplot"].get_fignums()


def test_scripts_start_fast_because_they_need_no_torch():
    code = (
        f"import sys; sys.path.insert(0, {str(STUB)!r}); import {VISUALIZE.stem}, {MAKE_GIF.stem}; print(*sys.modules)"
    )
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, env=ENVIRONMENT)
    assert "common.figures" in done.stdout.split() and "torch" not in done.stdout.split()
