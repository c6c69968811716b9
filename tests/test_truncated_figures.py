"""Figures and GIF of the experiment with truncated members, and what it shares of them with backpropagation through time."""

import importlib.util
import json
import shutil
import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest
import torch
from conftest import ROOT
from made_up import edit, result
from PIL import Image

from common import animation, figures, run_figures
from common.errors import BadInput

SLUG, BPTT = "truncated-es", "moving-mnist-bptt-baseline"
PNGS = {"training_curves", "prediction_vs_target", "adapter_spectra"}
SMALL = {
    "preset": "smoke", "hidden-size": 24, "rank": 2, "in-degree": 4, "sequence-length": 4, "window": 2, "members": 4,
    "train-sequences": 32, "validation-sequences": 8, "test-sequences": 8, "iterations": 6, "batch-size": 12,
    "decoder-warmup": 5, "decoder-batch-size": 4, "evaluate-every": 2, "measure-cosine-every": 2,
    "standardise": "none",  # for speed
}  # fmt: skip
COMMITTED_AS = {"results.json": ".json", "metrics.jsonl": ".history.jsonl", "figures.npz": ".figures.npz"}
COSINES = ("cosine_truncated", "cosine_truncated_law", "cosine_gradient")


def script_of(kind: str, slug: str = SLUG) -> Path:
    name = slug.replace("-", "_")
    return ROOT / slug / {"run": f"{name}.py", "draw": f"visualize_{name}.py", "gif": f"make_{name}_gif.py"}[kind]


def load(kind: str, slug: str = SLUG):
    path = script_of(kind, slug)
    specification = importlib.util.spec_from_file_location(path.stem, path)
    module = importlib.util.module_from_spec(specification)
    sys.modules[path.stem] = module
    specification.loader.exec_module(module)
    return module


@pytest.fixture(scope="module")
def measured(tmp_path_factory) -> Path:
    """A finished run whose estimates were compared with gradients in iterations 2, 4 and 6."""
    folder, threads = tmp_path_factory.mktemp("measured") / "run", torch.get_num_threads()
    words = [word for name, value in SMALL.items() for word in (f"--{name}", str(value))]
    assert load("run").main([*words, "--run-dir", str(folder)]) == 0
    torch.set_num_threads(threads)
    return folder


def change_lines(folder: Path, change) -> None:
    path = folder / "metrics.jsonl"
    lines = [change(json.loads(line)) for line in path.read_text().splitlines()]
    path.write_text("".join(json.dumps(line) + "\n" for line in lines))


def without(*keys):
    return lambda line: {key: value for key, value in line.items() if key not in keys}


@pytest.fixture
def plain(measured, tmp_path) -> Path:
    """The same run, had nothing been compared."""
    shutil.copytree(measured, tmp_path / "plain")
    change_lines(tmp_path / "plain", without(*COSINES, "batch_noise"))
    return tmp_path / "plain"


@pytest.fixture
def draw(tmp_path, monkeypatch):
    """The drawing script, with a folder of committed results of its own, which is not there yet."""
    module = load("draw")
    for name in ("RESULTS", "COMMITTED"):
        monkeypatch.setattr(module, name, tmp_path / SLUG / "results" / getattr(module, name).name)
    monkeypatch.setattr(module, "RESULTS", module.COMMITTED.parent)
    return module


def commit(run: Path, name: Path, **changes) -> None:
    name.parent.mkdir(parents=True, exist_ok=True)
    for file, end in COMMITTED_AS.items():
        shutil.copy(run / file, name.with_name(name.name + end))
    path = name.with_name(f"{name.name}.json")
    path.write_text(json.dumps(json.loads(path.read_text()) | changes))


def run_of(draw, folder: Path) -> figures.SavedRun:
    return figures.load_run(folder, draw.COMMITTED, draw.SHAPES, settings=draw.SETTINGS)


def drawn_in(folder: Path) -> set[str]:
    return {path.stem for path in (folder / "viz").iterdir()}


def curves(axes) -> list[tuple[list, list]]:
    """Data of the curves, without horizontal lines across the axes."""
    lines = [line for line in axes.lines if line.get_transform() == axes.transData]
    return [(list(line.get_xdata()), list(line.get_ydata())) for line in lines]


def levels(axes) -> list[float]:
    """Heights of the horizontal lines across the axes."""
    return [
        line.get_ydata()[0] for line in axes.lines if line.get_transform() == axes.get_yaxis_transform(which="grid")
    ]


def title_of(figure) -> str:
    return figure.texts[0].get_text().replace("\n", " ")


# --- the scripts -----------------------------------------------------------------------------------------------------


def test_a_run_is_drawn_without_the_figures_that_it_has_no_numbers_for(plain, draw, tmp_path, capsys):
    assert draw.main(["--run", str(plain), "--out", str(tmp_path / "out")]) == 0
    assert drawn_in(tmp_path / "out") == PNGS
    for line in capsys.readouterr().out.split():
        with Image.open(line) as picture:
            assert picture.size[0] > 1000 and picture.size[1] > 500
            assert len(np.unique(np.asarray(picture.convert("L")))) > 20, "an empty picture"


def test_committed_results_are_drawn_with_all_five(measured, draw, tmp_path, monkeypatch):
    commit(measured, draw.COMMITTED, preset="laptop")
    longer = json.loads((measured / "results.json").read_text())
    longer["config"]["window"], longer["preset"] = 4, "window-4"
    (draw.RESULTS / "window-4-seed0.json").write_text(json.dumps(longer))
    saved = {}
    monkeypatch.setattr(draw, "save_png", lambda figure, path: saved.setdefault(path.stem, figure))
    assert draw.main(["--out", str(tmp_path / "out")]) == 0
    assert set(saved) == PNGS | {"cosine_to_gradient", "error_by_window"}


def test_gif_moves_and_says_whose_it_is(measured, tmp_path, monkeypatch):
    gif, shown = load("gif"), []
    monkeypatch.setattr(animation, "FRAMES", 12)
    monkeypatch.setattr(animation, "pixels", lambda figure: shown.append(texts(figure)) or figures.pixels(figure))
    assert gif.main(["--run", str(measured), "--out", str(tmp_path), "--sequence", "2"]) == 0
    with Image.open(tmp_path / "truncated_es.gif") as image:
        assert image.n_frames == 12
        assert image.size == (animation.WIDTH, animation.HEIGHT)
    assert (tmp_path / "truncated_es.gif").stat().st_size <= 2_000_000
    for words in (gif.WORDING.title, "N = 24 · r = 2 · L = 2 · M = 4", "ES iteration"):
        assert words in shown[0]
    scores = {line["iteration"]: line["validation_mse"] for line in lines_of(measured) if "validation_mse" in line}
    assert f"Iteration 0: validation MSE {scores[0]:.4f}" in shown[0]
    assert f"Iteration 6: validation MSE {scores[6]:.4f}" in shown[-1]


def lines_of(folder: Path) -> list[dict]:
    return [json.loads(line) for line in (folder / "metrics.jsonl").read_text().splitlines()]


def texts(figure) -> set[str]:
    """All that is written in the figure's header, titles and under its axes."""
    written = {text.get_text() for text in figure.texts}
    return written | {text for axes in figure.axes for text in (axes.get_title(loc="left"), axes.get_xlabel())}


def test_backpropagation_is_drawn_by_the_same_code(tmp_path, monkeypatch, capsys):
    monkeypatch.setattr(animation, "FRAMES", 3)
    gif, draw, shown = load("gif", BPTT), load("draw", BPTT), []
    monkeypatch.setattr(animation, "pixels", lambda figure: shown.append(texts(figure)) or figures.pixels(figure))
    assert draw.adapter_spectra is run_figures.adapter_spectra
    for script in (gif, draw):
        assert script.main(["--out", str(tmp_path)]) == 0
    assert {Path(line).stem for line in capsys.readouterr().out.split()} == (
        PNGS | {"memory_by_length", "moving_mnist_bptt_baseline"}
    )
    assert {gif.WORDING.title, "N = 2,000 · r = 32 · B = 64", "Adam step"} <= shown[0]
    assert any(text.startswith("Step 0: validation MSE ") for text in shown[0])


def damage_results(folder):
    (folder / "results.json").unlink()


def damage_line(folder):
    with (folder / "metrics.jsonl").open("a") as file:
        file.write('{"iteration": 7, "train_')


def damage_arrays(folder):
    data = (folder / "figures.npz").read_bytes()
    (folder / "figures.npz").write_bytes(data[: len(data) // 2])


def damage_window(folder):
    edit(folder / "results.json", '"window": 2', '"window": "2"')


def damage_stub(folder):
    edit(folder / "results.json", f'"{SLUG}"', f'"{BPTT}"')


def damage_scores(folder):
    change_lines(folder, without("validation_mse"))


@pytest.mark.parametrize(
    ("damage", "named"),
    [
        (damage_results, "results.json"),
        (damage_line, "is not a metrics line"),
        (damage_arrays, "figures.npz"),
        (damage_window, "window"),
        (damage_stub, BPTT),
        (damage_scores, "validation_mse"),
    ],
)
@pytest.mark.parametrize("kind", ["draw", "gif"])
def test_a_broken_run_is_refused_in_one_line(damage, named, kind, plain, tmp_path, capsys):
    damage(plain)
    with pytest.raises(BadInput, match=named) as raised:
        load(kind).main(["--run", str(plain), "--out", str(tmp_path / "out")])
    assert "\n" not in str(raised.value) and capsys.readouterr().out == ""
    assert not (tmp_path / "out").exists()


@pytest.mark.parametrize("kind", ["draw", "gif"])
def test_a_broken_run_ends_with_two_where_a_user_types_it(kind, plain, tmp_path):
    damage_line(plain)
    words = [sys.executable, script_of(kind), "--run", plain, "--out", tmp_path / "out"]
    done = subprocess.run(words, capture_output=True, text=True)
    assert (done.returncode, done.stdout) == (2, "")
    assert done.stderr.startswith(f"{script_of(kind).name}: error: ") and done.stderr.count("\n") == 1
    assert not (tmp_path / "out").exists()


def test_a_sequence_that_is_not_there_is_refused(plain, tmp_path):
    with pytest.raises(BadInput, match="--sequence 4: must be in 1 … 3"):
        load("gif").main(["--run", str(plain), "--out", str(tmp_path), "--sequence", "4"])


def test_a_broken_committed_result_is_refused(plain, draw, tmp_path):
    commit(plain, draw.COMMITTED, preset="laptop", test_mse=-1)
    with pytest.raises(BadInput, match="laptop-seed0.json: key 'test_mse'"):
        draw.main(["--run", str(plain), "--out", str(tmp_path / "out")])
    assert not (tmp_path / "out").exists()


# --- what the figures show -------------------------------------------------------------------------------------------


def test_training_curves_show_the_columns_of_a_run(plain, draw):
    change_lines(plain, lambda line: line | {"left_out_fraction": 0.25} if line["iteration"] == 3 else line)
    run = run_of(draw, plain)
    with figures.style():
        figure = draw.training_curves(run)
    drawn = [curve for axes in figure.axes for curve in curves(axes)]
    for key in ("validation_mse", "train_loss", "decoder_loss", "v_norm", "half_cosine", "learning_rate"):
        iteration, values = run.column(key)
        assert (list(iteration), list(values)) in drawn, key
    assert f"{run.column('validation_mse')[1][-1]:.4f} in 6 ES iterations" in title_of(figure)
    about = figure.texts[1].get_text().replace("\n", " ")
    assert "windows of L = 2 steps · M = 4 members in each" in about
    assert "at most 25.00% of an iteration’s windows did not count" in about


def test_cosines_are_drawn_beside_their_law(measured, draw):
    change = {"cosine_truncated": [0.2, 0.3, 0.25], "cosine_truncated_law": [0.22, 0.23, 0.24],
              "cosine_gradient": [0.1, -0.1, 0.2], "batch_noise": [40.0, 50.0, 60.0]}  # fmt: skip
    run = run_of(draw, measured)
    at = np.isin(run.history["iteration"], [2, 4, 6])
    for key, values in change.items():
        run.history[key][at] = values
    with figures.style():
        figure = draw.cosine_to_gradient(run)
    top, bottom = figure.axes
    assert curves(top) == [([2, 4, 6], change[key]) for key in COSINES]
    assert [line.is_dashed() for line in top.lines if line.get_transform() == top.transData] == [False, True, False]
    assert curves(bottom) == [([2, 4, 6], change["batch_noise"])] and bottom.get_yscale() == "log"
    assert title_of(figure) == "Cosine of ĝ to the truncated gradient: 0.2500 ± 0.0289 seen, 0.2300 by the law"


def of_window(window: int, seed: int = 0, preset: str = "laptop", error: float = 0.6, **changes) -> dict:
    config = {"hidden_size": 2000, "rank": 32, "sequence_length": 20, "batch_size": 32, "members": 16, "window": window}
    config |= {"seed": seed, "threads": seed, "train_sequences": 10000, "iterations": 100, **changes.pop("config", {})}
    more = {"stub": SLUG, "config": config, "ridge_test_mse_at_start": 0.66, "ridge_test_mse": error - 0.01, **changes}
    return result(preset=preset, seed=seed, test_mse=error, **more)


def test_errors_by_window_are_of_one_configuration(draw):
    results = [
        of_window(2, 0, "short", error=0.61),
        of_window(2, 0, "quick", error=0.7, config={"iterations": 50}),
        of_window(4, 0, error=0.58),
        of_window(4, 1, error=0.60),
        of_window(20, 0, "window-20", error=0.64),
        of_window(5, 0, "free-leak", error=0.5, problem_id="ba9876543210"),
    ]
    groups = draw.by_window(results)
    assert {window: [r["seed"] for r in group] for window, group in groups.items()} == {2: [0], 4: [0, 1], 20: [0]}
    through_time = {
        "on V": [of_window(1, seed, error=error) for seed, error in enumerate((0.55, 0.57))],
        "on more sequences": [of_window(1, error=0.51, config={"train_sequences": 50000})],
    }
    with figures.style():
        figure = draw.error_by_window(results, through_time)
    errors, seconds = figure.axes
    assert title_of(figure) == "Least ridge test MSE 0.5800, in windows of 4 steps; 0.6300 in whole sequences"
    assert "1 at L = 2, 2 at L = 4, 1 at L = 20" in figure.texts[1].get_text()
    assert levels(errors) == pytest.approx([0.66, 0.55])
    means = [y for x, y in curves(errors) if x == [2, 4, 20]]
    np.testing.assert_allclose(means, [[0.61, 0.59, 0.64], [0.60, 0.58, 0.63]])
    assert ([4, 4], [0.58, 0.60]) in curves(errors), "single seeds"
    assert ([2, 4, 20], [150.0] * 3) in curves(seconds) and seconds.get_ylim()[0] == 0
    for axes in figure.axes:
        assert axes.get_xscale() == "log"
        assert [label.get_text() for label in axes.get_xticklabels()] == ["2", "4", "20\n= T"]


def test_there_are_no_errors_by_window_of_one_length_or_without_the_preset(draw):
    assert draw.error_by_window([], {}) is None
    assert draw.error_by_window([of_window(4, seed) for seed in range(3)], {}) is None
    assert draw.error_by_window([of_window(4, preset="brief"), of_window(2, preset="short")], {}) is None


def test_errors_by_window_do_without_lines_that_are_not_known(draw):
    results = [of_window(4), of_window(5, preset="other")]
    for each in results:
        del each["ridge_test_mse_at_start"]
    with figures.style():
        figure = draw.error_by_window(results, {"on V": []})
    assert levels(figure.axes[0]) == []
    assert draw.read_results(Path("nowhere")) == []


def test_a_committed_result_without_its_window_is_refused(draw):
    with pytest.raises(BadInput, match="truncated-es, laptop-seed0: config holds no valid window"):
        draw.by_window([of_window(0)])


def test_effective_rank():
    assert run_figures.effective_rank(np.ones(5)) == pytest.approx(5)
    assert run_figures.effective_rank(np.array([3.0, 0, 0])) == pytest.approx(1)
    assert run_figures.effective_rank(np.zeros(4)) == 0
