"""Figures and GIF of the experiments whose members run for a few steps, and what they share with backpropagation through time."""

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
from common.results import module_of

TRUNCATED, RANK = "truncated-es", "rank-space-es"
ES, BPTT, READOUT = "moving-mnist-es-reservoir", "moving-mnist-bptt-baseline", "reservoir-readout-only"
PNGS = {"training_curves", "prediction_vs_target", "adapter_spectra"}
SMALL = {
    "preset": "smoke", "hidden-size": 24, "rank": 2, "in-degree": 4, "sequence-length": 4, "window": 2,
    "train-sequences": 32, "validation-sequences": 8, "test-sequences": 8, "iterations": 6, "batch-size": 12,
    "decoder-warmup": 5, "decoder-batch-size": 4, "evaluate-every": 2, "measure-cosine-every": 2,
    "standardise": "none",  # for speed
}  # fmt: skip
MEMBERS = {TRUNCATED: "members", RANK: "probes"}  # what each calls those that run with noise
OWN = {TRUNCATED: "error_by_window", RANK: "error_by_cost"}
only_truncated = pytest.mark.parametrize("slug", [TRUNCATED], indirect=True)
only_rank = pytest.mark.parametrize("slug", [RANK], indirect=True)
COMMITTED_AS = {"results.json": ".json", "metrics.jsonl": ".history.jsonl", "figures.npz": ".figures.npz"}
COSINES = ("cosine_truncated", "cosine_truncated_law", "cosine_gradient")


def script_of(kind: str, slug: str) -> Path:
    name = slug.replace("-", "_")
    return ROOT / slug / {"run": f"{name}.py", "draw": f"visualize_{name}.py", "gif": f"make_{name}_gif.py"}[kind]


def load(kind: str, slug: str):
    path = script_of(kind, slug)
    specification = importlib.util.spec_from_file_location(path.stem, path)
    module = importlib.util.module_from_spec(specification)
    sys.modules[path.stem] = module
    specification.loader.exec_module(module)
    return module


@pytest.fixture(scope="module", params=MEMBERS)
def slug(request) -> str:
    """Each of the experiments in turn: what is not of `only_truncated` or `only_rank` holds for both."""
    return request.param


@pytest.fixture(scope="module")
def measured(slug, tmp_path_factory) -> Path:
    """A finished run whose estimates were compared with gradients in iterations 2, 4 and 6."""
    folder, threads = tmp_path_factory.mktemp("measured") / "run", torch.get_num_threads()
    words = [word for name, value in (SMALL | {MEMBERS[slug]: 4}).items() for word in (f"--{name}", str(value))]
    assert load("run", slug).main([*words, "--run-dir", str(folder)]) == 0
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
def draw(slug, tmp_path, monkeypatch):
    """The drawing script, with a folder of committed results of its own, which is not there yet."""
    module = load("draw", slug)
    monkeypatch.setattr(module, "COMMITTED", tmp_path / slug / "results" / module.COMMITTED.name)
    moved = {TRUNCATED: ("RESULTS", module.COMMITTED.parent), RANK: ("ROOT", tmp_path)}
    monkeypatch.setattr(module, *moved[slug])
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


def legend_of(figure) -> list[str]:
    return [text.get_text() for text in figure.legends[0].get_texts()]


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


def test_committed_results_are_drawn_with_all_five(measured, slug, draw, tmp_path, monkeypatch):
    commit(measured, draw.COMMITTED, preset="laptop")
    if slug == TRUNCATED:  # its own figure is of two lengths of a window
        longer = json.loads((measured / "results.json").read_text())
        longer["config"]["window"], longer["preset"] = 4, "window-4"
        (draw.RESULTS / "window-4-seed0.json").write_text(json.dumps(longer))
    else:  # and of two methods
        commit(measured, draw.ROOT / TRUNCATED / "results" / "laptop-seed0", preset="laptop", stub=TRUNCATED)
    saved = {}
    monkeypatch.setattr(draw, "save_figures", lambda drawn, folder: saved.update(drawn))
    assert draw.main(["--out", str(tmp_path / "out")]) == 0
    drawn = {name for name, figure in saved.items() if figure is not None}
    assert drawn == PNGS | {"cosine_to_gradient", OWN[slug]}
    assert f"train loss (mean of the {MEMBERS[slug]})" in legend_of(saved["training_curves"])


def test_gif_moves_and_says_whose_it_is(measured, slug, tmp_path, monkeypatch):
    gif, shown, file = load("gif", slug), [], tmp_path / f"{module_of(slug)}.gif"
    monkeypatch.setattr(animation, "FRAMES", 12)
    monkeypatch.setattr(animation, "pixels", lambda figure: shown.append(texts(figure)) or figures.pixels(figure))
    assert gif.main(["--run", str(measured), "--out", str(tmp_path), "--sequence", "2"]) == 0
    with Image.open(file) as image:
        assert image.n_frames == 12
        assert image.size == (animation.WIDTH, animation.HEIGHT)
    assert file.stat().st_size <= 2_000_000
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
        PNGS | {"memory_by_length", "curriculum", "moving_mnist_bptt_baseline"}
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


def damage_members(folder):
    content = json.loads((folder / "results.json").read_text())
    content["config"][MEMBERS[content["stub"]]] = 0
    (folder / "results.json").write_text(json.dumps(content))


def damage_stub(folder):
    content = json.loads((folder / "results.json").read_text())
    (folder / "results.json").write_text(json.dumps(content | {"stub": BPTT}))


def damage_scores(folder):
    change_lines(folder, without("validation_mse"))


@pytest.mark.parametrize(
    ("damage", "named"),
    [
        (damage_results, "results.json"),
        (damage_line, "is not a metrics line"),
        (damage_arrays, "figures.npz"),
        (damage_window, "window"),
        (damage_members, "members|probes"),
        (damage_stub, BPTT),
        (damage_scores, "validation_mse"),
    ],
)
@pytest.mark.parametrize("kind", ["draw", "gif"])
def test_a_broken_run_is_refused_in_one_line(damage, named, kind, plain, slug, tmp_path, capsys):
    damage(plain)
    with pytest.raises(BadInput, match=named) as raised:
        load(kind, slug).main(["--run", str(plain), "--out", str(tmp_path / "out")])
    assert "\n" not in str(raised.value) and capsys.readouterr().out == ""
    assert not (tmp_path / "out").exists()


@pytest.mark.parametrize("kind", ["draw", "gif"])
def test_a_broken_run_ends_with_two_where_a_user_types_it(kind, plain, slug, tmp_path):
    damage_line(plain)
    script = script_of(kind, slug)
    words = [sys.executable, script, "--run", plain, "--out", tmp_path / "out"]
    done = subprocess.run(words, capture_output=True, text=True)
    assert (done.returncode, done.stdout) == (2, "")
    assert done.stderr.startswith(f"{script.name}: error: ") and done.stderr.count("\n") == 1
    assert not (tmp_path / "out").exists()


def test_a_sequence_that_is_not_there_is_refused(plain, slug, tmp_path):
    with pytest.raises(BadInput, match="--sequence 4: must be in 1 … 3"):
        load("gif", slug).main(["--run", str(plain), "--out", str(tmp_path), "--sequence", "4"])


def test_a_broken_committed_result_is_refused(plain, draw, tmp_path):
    commit(plain, draw.COMMITTED, preset="laptop", test_mse=-1)
    with pytest.raises(BadInput, match="laptop-seed0.json: key 'test_mse'"):
        draw.main(["--run", str(plain), "--out", str(tmp_path / "out")])
    assert not (tmp_path / "out").exists()


# --- what the figures show -------------------------------------------------------------------------------------------


def test_training_curves_show_the_columns_of_a_run(plain, slug, draw):
    change_lines(plain, lambda line: line | {"left_out_fraction": 0.25} if line["iteration"] == 3 else line)
    run = run_of(draw, plain)
    with figures.style():
        figure = draw.training_curves(run, draw.sizes(run), MEMBERS[slug])
    drawn = [curve for axes in figure.axes for curve in curves(axes)]
    for key in ("validation_mse", "train_loss", "decoder_loss", "v_norm", "half_cosine", "learning_rate"):
        iteration, values = run.column(key)
        assert (list(iteration), list(values)) in drawn, key
    assert f"{run.column('validation_mse')[1][-1]:.4f} in 6 ES iterations" in title_of(figure)
    about = figure.texts[1].get_text().replace("\n", " ")
    assert f"windows of L = 2 steps · M = 4 {MEMBERS[slug]} in each" in about
    assert f"train loss (mean of the {MEMBERS[slug]})" in legend_of(figure)
    assert "at most 25.00% of an iteration’s windows did not count" in about


def test_cosines_are_drawn_beside_their_law(measured, draw):
    change = {"cosine_truncated": [0.2, 0.3, 0.25], "cosine_truncated_law": [0.22, 0.23, 0.24],
              "cosine_gradient": [0.1, -0.1, 0.2], "batch_noise": [40.0, 50.0, 60.0]}  # fmt: skip
    run = run_of(draw, measured)
    at = np.isin(run.history["iteration"], [2, 4, 6])
    for key, values in change.items():
        run.history[key][at] = values
    with figures.style():
        figure = draw.cosine_to_gradient(run, draw.sizes(run))
    top, bottom = figure.axes
    assert curves(top) == [([2, 4, 6], change[key]) for key in COSINES]
    assert [line.is_dashed() for line in top.lines if line.get_transform() == top.transData] == [False, True, False]
    assert curves(bottom) == [([2, 4, 6], change["batch_noise"])] and bottom.get_yscale() == "log"
    assert title_of(figure) == "Cosine of ĝ to the truncated gradient: 0.2500 ± 0.0289 seen, 0.2300 by the law"
    assert draw.sizes(run) in figure.texts[1].get_text()


# Errors by window, of truncated members


def of_window(window: int, seed: int = 0, preset: str = "laptop", error: float = 0.6, **changes) -> dict:
    config = {"hidden_size": 2000, "rank": 32, "sequence_length": 20, "batch_size": 32, "members": 16, "window": window}
    config |= {"seed": seed, "threads": seed, "train_sequences": 10000, "iterations": 100, **changes.pop("config", {})}
    more = {
        "stub": TRUNCATED,
        "config": config,
        "ridge_test_mse_at_start": 0.66,
        "ridge_test_mse": error - 0.01,
        **changes,
    }
    return result(preset=preset, seed=seed, test_mse=error, **more)


@only_truncated
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


@only_truncated
def test_there_are_no_errors_by_window_of_one_length_or_without_the_preset(draw):
    assert draw.error_by_window([], {}) is None
    assert draw.error_by_window([of_window(4, seed) for seed in range(3)], {}) is None
    assert draw.error_by_window([of_window(4, preset="brief"), of_window(2, preset="short")], {}) is None


@only_truncated
def test_errors_by_window_do_without_lines_that_are_not_known(draw):
    results = [of_window(4), of_window(5, preset="other")]
    for each in results:
        del each["ridge_test_mse_at_start"]
    with figures.style():
        figure = draw.error_by_window(results, {"on V": []})
    assert levels(figure.axes[0]) == []
    assert draw.read_results(Path("nowhere")) == []


@only_truncated
def test_a_committed_result_without_its_window_is_refused(draw):
    with pytest.raises(BadInput, match="truncated-es, laptop-seed0: config holds no valid window"):
        draw.by_window([of_window(0)])


# Errors by cost, of noise on activities

METHODS = [
    (RANK, "laptop"), (RANK, "both"), (TRUNCATED, "laptop"), (TRUNCATED, "both"), (ES, "laptop"), (ES, "long"), (BPTT, "laptop"),
    (BPTT, "v"), (BPTT, "muon"),
]  # fmt: skip


def put(root: Path, slug: str, preset: str = "laptop", seed: int = 0, scores=(0.7, 0.6), each=1000, **changes) -> Path:
    """Commit a made-up result under root: `scores` after 0, 1, 2 … times `each` rollouts and a hundredth as many seconds."""
    config = {"train_sequences": 10000, **changes.pop("config", {})}
    path = root / slug / "results" / f"{preset}-seed{seed}.json"
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_text(json.dumps(result(stub=slug, preset=preset, seed=seed, config=config, **changes)))
    lines = [
        {"iteration": i, "validation_mse": score, "rollouts": i * each, "wallclock_s": i * each / 100}
        for i, score in enumerate(scores)
    ]
    path.with_suffix(".history.jsonl").write_text("".join(json.dumps(line) + "\n" for line in lines))
    return path


def put_ends(root: Path) -> None:
    """A floor of 0.66 and a ceiling of 0.50, the mean of two seeds."""
    put(root, READOUT, ridge_validation_mse=0.66, role="floor")
    put(root, BPTT, ridge_validation_mse=0.49, role="ceiling", scores=(1.0, 0.7, 0.52), each=500)
    put(root, BPTT, seed=1, ridge_validation_mse=0.51, role="ceiling")


def cost_of(draw, root: Path):
    with figures.style():
        return draw.error_by_cost(root)


def drawn_lines(axes) -> list[tuple[list, list]]:
    """Lines of more than one point: their last ones have a dot of their own."""
    return sorted(curve for curve in curves(axes) if len(curve[0]) > 1)


def labels_right(axes) -> set[str]:
    return {text.get_text() for text in axes.texts}


@only_rank
def test_errors_by_cost_are_the_histories_of_all_methods(draw, tmp_path):
    put_ends(tmp_path)
    scores = {method: [0.7, 0.68 - i / 100, 0.60 - i / 100] for i, method in enumerate(METHODS)}
    for i, method in enumerate(METHODS):
        ends = {"ridge_validation_mse": 0.49} if method == (BPTT, "laptop") else {}
        put(tmp_path, *method, scores=scores[method], each=1000 * (i + 1), **ends)
    put(tmp_path, RANK, seed=1, scores=(0.9, 0.8, 0.7))  # other seeds are not drawn
    figure = cost_of(draw, tmp_path)
    rollouts, seconds = figure.axes
    for axes, unit in ((rollouts, 1000), (seconds, 10)):
        # Before the first rollout there is nothing on a log axis.
        expected = [([unit * (i + 1), 2 * unit * (i + 1)], scores[m][1:]) for i, m in enumerate(METHODS)]
        assert drawn_lines(axes) == sorted(expected) and axes.get_xscale() == "log"
    assert labels_right(seconds) == {
        "rank-space ES 0.6000", "rank-space ES with U by feedback (dashed) 0.5900", "truncated ES 0.5800",
        "truncated ES with U by feedback (dashed) 0.5700", "ES on whole sequences 0.5600", "ES on whole sequences, long (dashed) 0.5500",
        "BPTT on U and V 0.5400", "BPTT on V (dashed) 0.5300", "BPTT on U and V, Muon 0.5200",
    }  # fmt: skip
    dashed = {line.get_xdata()[0] for line in rollouts.lines if line.is_dashed() and len(line.get_xdata()) == 2}
    assert dashed - {0} == {2000, 4000, 6000, 8000}, "both, long and v, beside lines across the axes"
    assert "10,000 training sequences · seed 0 · on a small CPU" in figure.texts[1].get_text()


@only_rank
def test_errors_by_cost_say_how_far_it_is_from_floor_to_ceiling(draw, tmp_path):
    put_ends(tmp_path)
    put(tmp_path, RANK, scores=(0.7, 0.62, 0.54))
    put(tmp_path, TRUNCATED, scores=(0.7, 0.65, 0.668))
    figure = cost_of(draw, tmp_path)
    for axes in figure.axes:
        assert levels(axes) == pytest.approx([0.62, 0.58, 0.54]), "a quarter, a half, three quarters from 0.66 to 0.50"
    assert labels_right(figure.axes[0]) == {"25% of the way", "50% of the way", "75% of the way"}
    low, high = figure.axes[0].get_ylim()
    assert low < 0.52 and high > 0.668, "all lines end inside"
    assert title_of(figure) == "Of the way from floor to ceiling: rank-space ES 75%, truncated ES −5%"
    assert "floor 0.6600" in figure.texts[1].get_text() and "ceiling 0.5000" in figure.texts[1].get_text()


@only_rank
@pytest.mark.parametrize("broken", ["no floor", "no ceiling", "a ceiling above the floor"])
def test_errors_by_cost_do_without_a_scale_that_has_no_length(broken, draw, tmp_path):
    put_ends(tmp_path)
    put(tmp_path, RANK)
    put(tmp_path, TRUNCATED)
    if broken == "a ceiling above the floor":
        put(tmp_path, READOUT, ridge_validation_mse=0.49)
    else:
        shutil.rmtree(tmp_path / (READOUT if broken == "no floor" else BPTT))
    figure = cost_of(draw, tmp_path)
    assert [levels(axes) for axes in figure.axes] == [[], []]
    assert title_of(figure) == "Validation error against what it took"


@only_rank
@pytest.mark.parametrize(
    "changes",
    [{"problem_id": "ba9876543210"}, {"config": {"train_sequences": 50000}}, {"scores": ()}],
    ids=["another problem", "more sequences", "no score"],
)
def test_errors_by_cost_leave_out_what_does_not_compare(changes, draw, tmp_path):
    put(tmp_path, RANK)
    put(tmp_path, ES)
    if changes == {"scores": ()}:
        path = put(tmp_path, TRUNCATED).with_suffix(".history.jsonl")
        path.write_text('{"iteration": 1, "train_loss": 0.5}\n')
    else:
        put(tmp_path, TRUNCATED, **changes)
        put(tmp_path, READOUT, ridge_validation_mse=0.66, **changes)
        put(tmp_path, BPTT, ridge_validation_mse=0.50, **changes)
    figure = cost_of(draw, tmp_path)
    assert labels_right(figure.axes[1]) == {"rank-space ES 0.6000", "ES on whole sequences 0.6000"}
    assert levels(figure.axes[0]) == []


@only_rank
def test_errors_by_cost_need_this_experiment_and_another(draw, tmp_path):
    assert draw.error_by_cost(tmp_path) is None
    other = put(tmp_path, TRUNCATED), put(tmp_path, ES)
    assert draw.error_by_cost(tmp_path) is None, "what compares is what compares with this experiment"
    put(tmp_path, RANK)
    assert draw.error_by_cost(tmp_path) is not None
    other[0].unlink()
    other[1].with_suffix(".history.jsonl").unlink()
    assert draw.error_by_cost(tmp_path) is None


@only_rank
def test_times_of_several_machines_are_said_to_be_so(draw, tmp_path):
    put(tmp_path, RANK)
    put(tmp_path, TRUNCATED, environment=result()["environment"] | {"threads": 1})
    assert "on different machines" in cost_of(draw, tmp_path).texts[1].get_text()


@only_rank
def test_a_broken_history_of_another_experiment_is_refused(draw, tmp_path):
    put(tmp_path, RANK)
    put(tmp_path, TRUNCATED).with_suffix(".history.jsonl").write_text("{")
    with pytest.raises(BadInput, match="truncated-es/results/laptop-seed0.history.jsonl: line 1"):
        draw.error_by_cost(tmp_path)


@only_rank
def test_a_window_of_one_step_is_not_called_steps(draw):
    run = figures.SavedRun({"config": {"window": 1, "probes": 16}}, {}, {})
    assert draw.sizes(run) == "windows of L = 1 step · M = 16 probes in each"


def test_effective_rank():
    assert run_figures.effective_rank(np.ones(5)) == pytest.approx(5)
    assert run_figures.effective_rank(np.array([3.0, 0, 0])) == pytest.approx(1)
    assert run_figures.effective_rank(np.zeros(4)) == 0
