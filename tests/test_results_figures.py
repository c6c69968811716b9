"""The figures of RESULTS.md: numbers stand where they belong, no text covers another, inputs are named."""

import json

import numpy as np
import pytest
from matplotlib.colors import to_hex
from PIL import Image

from common import results_figures
from common.comparison import groups_of
from common.errors import BadInput
from common.figures import BLUE, GREEN, style
from common.results_page import drawn_from

TRIVIAL = {"mean": 1.06, "copy_last": 1.51, "ar1": 0.709, "ar3": 0.702}
# Slug, preset, role, test MSE, ridge test MSE, seeds, rollouts and seconds of training, validation MSE at the start.
ROWS = [
    ("reservoir-readout-only", "laptop", "floor", 0.660, 0.653, 5, 67_200, 60, 0.95),
    ("reservoir-readout-only", "brief", "floor", 0.651, 0.649, 5, 960_000, 700, 0.95),
    ("moving-mnist-bptt-baseline", "laptop", "ceiling", 0.570, 0.565, 5, 48_000, 250, 1.0),
    ("moving-mnist-bptt-baseline", "brief", "ceiling", 0.529, 0.527, 5, 640_000, 9000, 1.0),
    ("moving-mnist-bptt-baseline", "gru", "reference", 0.495, 0.500, 5, 640_000, 7000, 1.0),
    ("moving-mnist-es-reservoir", "laptop", None, 0.659, 0.653, 5, 614_400, 117, 0.7),
    ("moving-mnist-es-reservoir", "brief", None, 0.6505, 0.6488, 5, 4_096_000, 839, 0.7),
    ("moving-mnist-node-perturbation", "laptop", None, 0.621, 0.617, 5, 1_024_000, 280, 0.7),
    ("a-method-that-failed", "laptop", None, 1.32, 1.2, 5, 1_024_000, 280, 1.5),
]


def committed(root, rows):
    """Results of the rows, their files under root; seeds lie 0.0005 apart around the row's error."""
    results = []
    for stub, preset, role, error, ridge, seeds, rollouts, seconds, start in rows:
        for seed in range(seeds):
            shift = 0.0005 * (seed - (seeds - 1) / 2)
            result = {
                "stub": stub,
                "preset": preset,
                "seed": seed,
                "problem_id": "0123456789ab",
                "problem": {"digits": 1, "sequence_length": 20, "hidden_size": 2000, "leak": 0.5},
                "config": {"train_sequences": 10_000},
                "test_mse": error + shift,
                "ridge_test_mse": ridge + shift / 5,
                "validation_mse": error + shift - 0.006,
                "environment": {"world_size": 1, "device_name": "a small CPU", "threads": 2, "device": "cpu"},
                "trivial_test_mse": {name: {"all": value} for name, value in TRIVIAL.items()},
                "trivial_validation_mse": {"mean": {"all": 1.04}},
                **({"role": role} if role else {}),
            }
            results.append(result)
            folder = root / stub / "results"
            folder.mkdir(parents=True, exist_ok=True)
            (folder / f"{preset}-seed{seed}.json").write_text(json.dumps(result))
            share = np.linspace(0, 1, 20)
            curve = result["validation_mse"] + (start - error) * np.exp(-5 * share) * (1 - share)
            lines = [
                {
                    "iteration": 2 * i,
                    "validation_mse": y,
                    "rollouts": x * rollouts,
                    "wallclock_s": 5 + x * (seconds - 5),
                }
                for i, (x, y) in enumerate(zip(share, curve))
            ]
            lines.insert(3, {"iteration": 5, "train_loss": 0.5, "rollouts": 1.0, "wallclock_s": 1.0})
            text = "".join(json.dumps(line) + "\n" for line in lines)
            (folder / f"{preset}-seed{seed}.history.jsonl").write_text(text)
    return results


@pytest.fixture
def results(tmp_path):
    return committed(tmp_path, ROWS)


def drawing(kind, results, root):
    draw = {"floor-to-ceiling": results_figures.floor_to_ceiling, "mse-against-cost": results_figures.mse_against_cost}
    with style():
        figure = draw[kind](results, root)
        figure.canvas.draw()
    return figure


def points(axes, marker):
    """(x, y) of every plotted marker of a kind."""
    lines = [line for line in axes.lines if line.get_marker() == marker]
    return [(float(x), float(y)) for line in lines for x, y in zip(line.get_xdata(), line.get_ydata())]


def vertical_lines(axes):
    """{colour: x} of dashed lines from bottom to top."""
    found = [line for line in axes.lines if list(line.get_ydata()) == [0, 1] and len(set(line.get_xdata())) == 1]
    return {to_hex(line.get_color()).upper(): float(line.get_xdata()[0]) for line in found}


def test_every_seed_and_mean_stands_at_its_error_between_floor_and_ceiling(results, tmp_path):
    figure = drawing("floor-to-ceiling", results, tmp_path)
    groups = [group for group in groups_of(results) if group.mean("test_mse") < 1]
    for axes, key in zip(figure.axes, ("test_mse", "ridge_test_mse"), strict=True):
        seeds, means = points(axes, "o"), points(axes, "D")
        assert sorted(x for x, _ in seeds) == pytest.approx(sorted(v for g in groups for v in g.values(key)))
        rows = {round(y): x for x, y in means[: len(groups)]}
        assert [rows[row] for row in sorted(rows)] == pytest.approx([g.mean(key) for g in groups]), "best on top"
        near = [TRIVIAL["ar3"], TRIVIAL["ar1"]]
        assert sorted(x for x, _ in means[len(groups) :]) == pytest.approx(near)
        floor = min(g.mean(key) for g in groups if g.role == "floor")
        ceiling = min(g.mean(key) for g in groups if g.role == "ceiling")
        assert vertical_lines(axes) == {GREEN: pytest.approx(floor), BLUE: pytest.approx(ceiling)}
        texts = [text.get_text() for text in axes.texts]
        assert f"floor {floor:.4f}" in texts and f"ceiling {ceiling:.4f}" in texts
        arrows = points(axes, ">")
        assert len(arrows) == 3 and {x for x, _ in arrows} == {axes.get_xlim()[1]}, "far ones are arrows at the edge …"
        failed = f"{next(g for g in groups_of(results) if g not in groups and g.mean(key) > 1).mean(key):.4f}"
        assert {failed, "1.0600", "1.5100"} <= set(texts), "… with their number"


def test_curves_run_to_their_cost_and_seed_0_is_bold(results, tmp_path):
    figure = drawing("mse-against-cost", results, tmp_path)
    for axes, cost in zip(figure.axes, (6, 7), strict=True):
        assert axes.get_xscale() == "log"
        curves = [line for line in axes.lines if len(line.get_xdata()) > 2]
        assert len(curves) == sum(row[5] for row in ROWS)
        assert sorted({float(line.get_xdata()[-1]) for line in curves}) == sorted({float(row[cost]) for row in ROWS})
        bold = [line for line in curves if line.get_linewidth() > 1.5]
        ends = sorted(float(line.get_ydata()[-1]) for line in bold)
        assert ends == pytest.approx(sorted(row[3] - 0.001 - 0.006 for row in ROWS)), "seed 0 ends there"
        assert all(line.get_alpha() < 0.5 for line in curves if line not in bold)
        assert all(len(line.get_xdata()) == 20 - (cost == 6) for line in curves), (
            "evaluations alone; none at 0 rollouts"
        )
        level = {to_hex(line.get_color()).upper(): line.get_ydata()[0] for line in axes.lines[:2]}
        assert level == {GREEN: pytest.approx(0.645), BLUE: pytest.approx(0.523)}
    low, high = figure.axes[0].get_ylim()
    assert low < min(row[3] for row in ROWS) - 0.007 and high < 1.0, "the failed method does not flatten the others"
    names = {text.get_text() for text in figure.axes[1].texts}
    assert {f"{row[0]} · {row[1]}" for row in ROWS[:-1]} | {"a-method-that-failed · laptop ↑"} == names


def visible_texts(figure):
    """All texts but labels of ticks outside the limits, which matplotlib keeps without drawing them."""
    texts = list(figure.texts)
    for axes in figure.axes:
        texts += [*axes.texts, axes.xaxis.label, axes.yaxis.label]
        for axis in (axes.xaxis, axes.yaxis):
            low, high = sorted(axis.get_view_interval())
            ticks = [*axis.get_major_ticks(), *axis.get_minor_ticks()]
            texts += [tick.label1 for tick in ticks if low <= tick.get_loc() <= high]
    return [text for text in texts if text.get_text().strip() and text.get_visible()]


@pytest.mark.parametrize("kind", ["floor-to-ceiling", "mse-against-cost"])
@pytest.mark.parametrize("count", [2, 9])
def test_no_text_covers_another_or_leaves_the_figure(kind, count, tmp_path):
    figure = drawing(kind, committed(tmp_path, ROWS[9 - count :]), tmp_path)
    boxes = [(t.get_text(), t.get_window_extent()) for t in visible_texts(figure)]
    frame = figure.bbox
    for number, (text, box) in enumerate(boxes):
        assert box.x0 >= -1 and box.y0 >= -1 and box.x1 <= frame.x1 + 1 and box.y1 <= frame.y1 + 1, text
        for other, its in boxes[number + 1 :]:
            width = min(box.x1, its.x1) - max(box.x0, its.x0)
            height = min(box.y1, its.y1) - max(box.y0, its.y0)
            assert width <= 1 or height <= 3, f"{text!r} covers {other!r}"  # boxes have room for accents and descenders


def test_floor_and_ceiling_close_together_keep_their_names_apart(tmp_path):
    rows = [
        ("a", "laptop", "floor", 0.651, 0.65, 2, 100, 60, 0.9),
        ("b", "laptop", "ceiling", 0.6509, 0.649, 2, 100, 60, 1),
    ]
    results = committed(tmp_path, rows)
    for kind in ("floor-to-ceiling", "mse-against-cost"):
        axes = drawing(kind, results, tmp_path).axes[0]
        first, second = [t.get_window_extent() for t in axes.texts if t.get_text().split()[0] in ("floor", "ceiling")]
        assert not first.overlaps(second)


def test_one_seed_and_no_roles_can_be_drawn(tmp_path):
    rows = [(stub, "laptop", None, 0.65, 0.65, 1, 100, 60, 0.9) for stub in ("a", "b")]
    figure = drawing("floor-to-ceiling", committed(tmp_path, rows), tmp_path)
    assert vertical_lines(figure.axes[0]) == {} and points(figure.axes[0], "o") == []
    drawing("mse-against-cost", committed(tmp_path, rows), tmp_path)


def test_groups_can_be_told_apart(results):
    groups = groups_of(results)
    looks = results_figures.looks(groups)
    assert len(set(looks.values())) == len(groups), "no two groups have the same colour and dashes"
    assert {looks[g][0] for g in groups if g.role == "floor"} == {GREEN}
    by_stub = {}
    for group in groups:
        by_stub.setdefault((group.stub, group.role), set()).add(looks[group][0])
    assert all(len(colours) == 1 for colours in by_stub.values())


def test_a_drawn_figure_carries_the_digest_of_results_and_histories(results, tmp_path):
    path = results_figures.draw(tmp_path, "viz/mse-against-cost.png", results[:10])
    with Image.open(path) as image:
        assert image.info["Inputs"] == drawn_from(results[:10], tmp_path) == drawn_from(results[9::-1], tmp_path)
        assert image.width > 1200 and "Software" not in image.info
    assert drawn_from(results[:9], tmp_path) != drawn_from(results[:10], tmp_path)


def test_a_damaged_history_is_refused_by_name(results, tmp_path):
    (tmp_path / "reservoir-readout-only" / "results" / "laptop-seed3.history.jsonl").write_text("{}\n")
    with pytest.raises(BadInput, match="laptop-seed3.history.jsonl"):
        results_figures.draw(tmp_path, "viz/mse-against-cost.png", results)
    assert not (tmp_path / "viz" / "mse-against-cost.png").exists()
