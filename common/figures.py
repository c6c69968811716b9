"""One plot style, one reader of saved runs and one GIF writer for every experiment.

The scripts that use this module draw what a run has saved and never train. Figures are built without pyplot, so nothing
is registered globally and nothing has to be closed: a figure goes away with its last reference.

    with style():
        figure = headed_figure(10, 6, "What the figure says", describe(run.results))
        axes = figure.subplots()
        ...
        save_png(figure, path)

Every problem of a saved file (missing, truncated, wrong shape) raises `BadInput` with one line that names the file.
"""

import argparse
import json
import math
import os
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path

import numpy as np
from matplotlib import style as matplotlib_style
from matplotlib.axes import Axes
from matplotlib.backends.backend_agg import FigureCanvasAgg
from matplotlib.figure import Figure
from matplotlib.gridspec import GridSpec
from matplotlib.lines import Line2D
from matplotlib.text import Text
from PIL import Image

from common.errors import BadInput, Parser, folder, reason
from common.files import check_folder, write_atomically
from common.results import CLOSED_LOOP, require_valid

# The palette of Okabe and Ito (2008), which readers with any common colour vision can tell apart, and three greys.
BLACK, ORANGE, SKY, GREEN, YELLOW, BLUE, VERMILION, PURPLE = (
    "#000000", "#E69F00", "#56B4E9", "#009E73", "#F0E442", "#0072B2", "#D55E00", "#CC79A7",
)  # fmt: skip
INK, GREY, PALE = "#262626", "#6E6E6E", "#D9D9D9"
DIVERGING = "RdBu_r"

DPI = 150
GIF_LIMIT = 2_000_000

STYLE = {
    "figure.dpi": DPI,
    "savefig.dpi": DPI,
    "figure.facecolor": "white",
    "font.size": 10,
    "text.color": INK,
    "axes.titlesize": 11,
    "axes.titlelocation": "left",
    "axes.titlepad": 7,
    "axes.labelsize": 10,
    "axes.labelcolor": INK,
    "axes.edgecolor": GREY,
    "axes.linewidth": 0.8,
    "axes.spines.top": False,
    "axes.spines.right": False,
    "axes.axisbelow": True,
    "axes.grid": True,
    "axes.formatter.useoffset": False,
    "axes.formatter.limits": (-5, 6),
    "axes.formatter.use_mathtext": True,
    "grid.color": "#E8E8E8",
    "grid.linewidth": 0.7,
    "xtick.color": GREY,
    "ytick.color": GREY,
    "xtick.labelcolor": INK,
    "ytick.labelcolor": INK,
    "xtick.labelsize": 9,
    "ytick.labelsize": 9,
    "lines.linewidth": 1.7,
    "lines.solid_capstyle": "round",
    "legend.frameon": False,
    "legend.fontsize": 9.5,
    "legend.handlelength": 1.8,
    "image.interpolation": "nearest",
    "path.simplify": True,
}


def style():
    """Context manager: matplotlib's defaults plus this catalog's style, whatever the reader's matplotlibrc says."""
    return matplotlib_style.context(["default", STYLE])


# ---------------------------------------------------------------------------------------------------------------------
# Reading saved runs


def read_json(path: Path) -> dict:
    """The JSON object in `path`. BadInput where it is missing, unreadable or not an object."""
    try:
        value = json.loads(Path(path).read_text(encoding="utf-8"))
    except OSError as error:
        raise BadInput(f"{path}: cannot be read ({reason(error)})") from None
    except (ValueError, RecursionError) as error:
        raise BadInput(f"{path}: is not JSON ({reason(error)})") from None
    if not isinstance(value, dict):
        raise BadInput(f"{path}: is not a JSON object")
    return value


def read_history(path: Path) -> dict[str, np.ndarray]:
    """Columns of a metrics.jsonl: {key: float64 (lines,)}, NaN where a line holds no number under the key.

    Every line must have its `iteration`; the columns are sorted by it, and of two lines with the same one the later
    counts. BadInput for a file that is missing, empty or has a broken line (numbered from 1).
    """
    rows = {}
    try:
        lines = Path(path).read_text(encoding="utf-8").splitlines()
    except OSError as error:
        raise BadInput(f"{path}: cannot be read ({reason(error)})") from None
    except ValueError as error:
        raise BadInput(f"{path}: is not text ({reason(error)})") from None
    for number, line in enumerate(lines, start=1):
        if not line.strip():
            continue
        try:
            row = json.loads(line)
            row = {key: float(value) if isinstance(value, (int, float)) else math.nan for key, value in row.items()}
            rows[int(row["iteration"])] = row
        except (ValueError, TypeError, AttributeError, KeyError, OverflowError, RecursionError):
            raise BadInput(f"{path}: line {number} is not a metrics line with an iteration") from None
    if not rows:
        raise BadInput(f"{path}: holds no metrics")
    ordered = [rows[iteration] for iteration in sorted(rows)]
    keys = dict.fromkeys(key for row in ordered for key in row)
    return {key: np.array([row.get(key, math.nan) for row in ordered]) for key in keys}


def read_arrays(path: Path, shapes: Mapping[str, str]) -> dict[str, np.ndarray]:
    """The arrays of an .npz named in `shapes`, checked.

    shapes: {name: one letter a dimension}, for instance {"target_STE": "STE"}. A letter stands for the same size in
    every array of the file, a digit for that size; "+" behind either is one more; "?" before them says that a run may lack it. float16
    comes back as float32.
    BadInput where the file, an array or a size is not as told, or a number is not finite.
    """
    arrays, known = {}, {str(digit): digit for digit in range(10)}
    try:
        with np.load(path, allow_pickle=False) as archive:
            missing = [name for name in shapes if name not in archive.files]
            if needed := [name for name in missing if not shapes[name].startswith("?")]:
                raise BadInput(f"{path}: lacks the array {needed[0]}")
            shapes = {name: letters.removeprefix("?") for name, letters in shapes.items() if name not in missing}
            arrays = {name: archive[name] for name in shapes}
    except OSError as error:
        raise BadInput(f"{path}: cannot be read ({reason(error)})") from None
    except BadInput:
        raise
    except Exception as error:  # damaged bytes come out of zip, zlib and the array header as a dozen kinds
        raise BadInput(f"{path}: is damaged or not an .npz file ({reason(error)})") from None
    for name, letters in shapes.items():
        dimensions = [(letter, letters[i + 1 : i + 2] == "+") for i, letter in enumerate(letters) if letter != "+"]
        shape = arrays[name].shape
        if len(shape) != len(dimensions) or 0 in shape:
            raise BadInput(f"{path}: {name} has shape {shape}, expected dimensions {letters}")
        for size, (letter, more) in zip(shape, dimensions, strict=True):
            expected = known.setdefault(letter, size - more) + more
            if size != expected:
                raise BadInput(f"{path}: {name} has shape {shape}, expected {expected} along {letter}{'+1' * more}")
        if arrays[name].dtype.kind in "fc" and not np.isfinite(arrays[name]).all():
            raise BadInput(f"{path}: {name} holds numbers that are not finite")
        if arrays[name].dtype == np.float16:
            arrays[name] = arrays[name].astype(np.float32)
    return arrays


@dataclass(frozen=True)
class SavedRun:
    """What the plots know of a run: `history` as of `read_history`, `arrays` as of `read_arrays`, results.json."""

    results: dict
    history: dict[str, np.ndarray]
    arrays: dict[str, np.ndarray]

    @property
    def config(self) -> dict:
        return self.results["config"]

    def column(self, key: str) -> tuple[np.ndarray, np.ndarray]:
        """(iteration, value) of the lines that hold a finite value of `key`; both (n,), n may be 0."""
        value = self.history.get(key, np.full_like(self.history["iteration"], np.nan))
        keep = np.isfinite(value)
        return self.history["iteration"][keep], value[keep]


def load_run(
    run: Path | None,
    committed: Path,
    shapes: Mapping[str, str],
    needs: Sequence[str] = (),
    settings: Sequence[str] = ("hidden_size", "rank", "sequence_length", "population_pairs", "batch_size"),
) -> SavedRun:
    """A run folder (`run`), or, where that is None, the committed results `<committed>.json`, `.history.jsonl` and
    `.figures.npz` (for instance results/laptop-seed0).

    shapes: the arrays wanted, as for `read_arrays`. needs: history columns that must hold at least one number.
    settings: integers ≥ 1 that the config must hold. BadInput for anything missing, damaged or of another experiment.
    """
    if run is None:
        paths = [committed.with_name(committed.name + end) for end in (".json", ".history.jsonl", ".figures.npz")]
    else:
        if not os.path.isdir(run):  # Path.is_dir raises for a name that is too long
            raise BadInput(f"--run {run}: is not a folder")
        paths = [Path(run) / name for name in ("results.json", "metrics.jsonl", "figures.npz")]
    results, stub = read_json(paths[0]), committed.parent.parent.name
    if run is not None and results.get("stub", stub) != stub:
        raise BadInput(f"{paths[0]}: is of the experiment {results['stub']}, not of {stub}")
    config = results.get("config")
    for key in settings:
        value = config.get(key) if isinstance(config, dict) else None
        if not isinstance(value, int) or isinstance(value, bool) or value < 1:
            raise BadInput(f"{paths[0]}: config holds no valid {key}")
    if not _is_number(results.get("test_mse")):
        raise BadInput(f"{paths[0]}: holds no test_mse")
    require_valid(paths[0], results, CLOSED_LOOP)
    history = read_history(paths[1])
    saved = SavedRun(results, history, read_arrays(paths[2], shapes))
    for key in needs:
        if not len(saved.column(key)[0]):
            raise BadInput(f"{paths[1]}: holds no {key}")
    return saved


def _is_number(value) -> bool:
    try:
        return isinstance(value, (int, float)) and not isinstance(value, bool) and math.isfinite(value)
    except OverflowError:  # JSON's whole numbers have no end
        return False


def describe(results: Mapping) -> str:
    """The run in one line: sizes, noise, preset, seed; parts that the results lack are left out."""
    config = results.get("config", {})
    parts = [
        f"{symbol} = {config[key]:,}{unit}"
        for symbol, key, unit in (
            ("N", "hidden_size", ""),
            ("r", "rank", ""),
            ("T", "sequence_length", ""),
            ("K", "population_pairs", " pairs"),
            ("B", "batch_size", ""),
        )
        if key in config
    ]
    parts += [f"{config['noise']} noise"] if "noise" in config else []
    parts += [f"{results['preset']} preset, seed {results['seed']}"] if {"preset", "seed"} <= results.keys() else []
    return " · ".join(parts)


# ---------------------------------------------------------------------------------------------------------------------
# Arithmetic behind the drawings


def running_mean(values: np.ndarray, window: int) -> np.ndarray:
    """Centred mean of `window` (odd) neighbours; fewer at the ends and where values are NaN. (n,) → float64 (n,)."""
    if window < 1 or window % 2 == 0:
        raise ValueError(f"window must be odd and positive, not {window}")
    values = np.asarray(values, dtype=np.float64)
    finite = np.isfinite(values)
    ones = np.ones(window)
    middle = slice(window // 2, window // 2 + len(values))
    total = np.convolve(np.where(finite, values, 0.0), ones)[middle]
    count = np.rint(np.convolve(finite.astype(np.float64), ones)[middle])
    return np.divide(total, count, out=np.full(len(values), np.nan), where=count > 0)


def odd_window(count: int, share: float = 0.1, least: int = 5) -> int:
    """An odd window of about `share` of `count` values, at least `least` and at most `count`."""
    window = max(least, int(count * share))
    window = max(1, min(window, count))
    return window - 1 + window % 2


def downsample(x: np.ndarray, y: np.ndarray, most: int = 1500) -> tuple[np.ndarray, np.ndarray]:
    """About `most` points of a curve: the lowest and the highest of every bucket, so that no spike is lost.

    x, y: (n,), y finite. Returns both as given where n ≤ most.
    """
    if len(x) <= most:
        return x, y
    edges = np.linspace(0, len(x), max(most // 2, 1) + 1).astype(int)
    keep = [
        start + index
        for start, stop in zip(edges[:-1], edges[1:], strict=True)
        for index in sorted({int(np.argmin(y[start:stop])), int(np.argmax(y[start:stop]))})
    ]
    return x[keep], y[keep]


def seriation(values_TE: np.ndarray) -> np.ndarray:
    """An order of the columns that puts alike ones side by side: int64 (E,).

    Columns are sorted by the angle of their loadings on the first two principal axes of the correlation (Friendly,
    "Corrgrams", 2002), cut where the gap between neighbouring angles is widest. Constant columns come last.
    """
    centred = values_TE - values_TE.mean(0)
    scale = np.sqrt((centred**2).mean(0))
    varying = scale > 1e-12 * max(scale.max(), 1e-300)
    order = np.flatnonzero(varying)
    if len(order) > 2 and len(values_TE) > 2:
        loadings = np.linalg.svd(centred[:, order] / scale[order], full_matrices=False)[2][:2]
        angle = np.arctan2(loadings[1], loadings[0])
        by_angle = np.argsort(angle, kind="stable")
        gaps = np.diff(angle[by_angle], append=angle[by_angle[0]] + 2 * np.pi)
        order = order[np.roll(by_angle, -1 - int(np.argmax(gaps)))]
    return np.concatenate([order, np.flatnonzero(~varying)]).astype(np.int64)


def robust_limits(values: np.ndarray, share: float = 0.98, pad: float = 0.06) -> tuple[float, float]:
    """Axis limits around the middle `share` of the finite values, padded by `pad` of their range; never equal."""
    values = np.asarray(values, dtype=np.float64)
    values = values[np.isfinite(values)]
    if not len(values):
        return 0.0, 1.0
    low, high = np.quantile(values, [(1 - share) / 2, (1 + share) / 2])
    margin = pad * (high - low) if high > low else max(abs(low) * 0.05, 1e-12)
    return float(low - margin), float(high + margin)


def spread(positions: Sequence[float], gap: float, low: float, high: float) -> np.ndarray:
    """Label positions at least `gap` apart that move as little as possible (least squares) and stay in [low, high].

    positions: (n,) in any order; the order among them is kept. Where they cannot all fit, the gap shrinks.
    """
    positions = np.asarray(positions, dtype=np.float64)
    count = len(positions)
    if count == 0:
        return positions
    gap = min(gap, (high - low) / max(count - 1, 1))
    order = np.argsort(positions, kind="stable")
    # Without the gaps the task is isotonic regression: pool neighbours that would cross, then add the gaps again.
    blocks: list[list[float]] = []
    for rank, index in enumerate(order):
        blocks.append([positions[index] - rank * gap, 1.0])
        while len(blocks) > 1 and blocks[-2][0] > blocks[-1][0]:
            value, weight = blocks.pop()
            blocks[-1] = [
                (blocks[-1][0] * blocks[-1][1] + value * weight) / (blocks[-1][1] + weight),
                blocks[-1][1] + weight,
            ]
    flat = np.concatenate([np.full(int(weight), value) for value, weight in blocks])
    placed = np.empty(count)
    placed[order] = np.clip(flat, low, high - (count - 1) * gap) + np.arange(count) * gap
    return placed


# ---------------------------------------------------------------------------------------------------------------------
# Reference lines: what every experiment is compared with


@dataclass(frozen=True)
class Reference:
    """A horizontal line: an MSE that something else reaches on the same test set; `short` is for small figures."""

    name: str
    value: float
    colour: str
    dashes: tuple
    short: str


PREDICTORS = {
    "mean": ("predict the mean", "mean", GREY, (1, 1.5)),
    "copy_last": ("copy last frame", "copy last", BLACK, (1, 1.5)),
    "ar1": ("AR(1) ridge", "AR(1)", PURPLE, (5, 2)),
    "ar3": ("AR(3) ridge", "AR(3)", ORANGE, (5, 2)),
}


def predictor(name: str, value: float) -> Reference:
    """The look of a trivial predictor whose MSE is `value`; one that is not known is grey and keeps its name."""
    key = str(name).lower().replace("-", "_")
    label, short, colour, dashes = PREDICTORS.get(key, (str(name), str(name), GREY, (3, 1.5)))
    return Reference(label, float(value), colour, dashes, short)


def references(results: Mapping) -> list[Reference]:
    """What a validation curve is held against: trivial predictors, the frozen and the trained core with ridge readouts.

    All on the validation set, like the curve: test errors differ from these by as much as methods differ.
    """
    trivial = results.get("trivial_validation_mse") or {}
    lines = [predictor(name, score["all"]) for name, score in trivial.items() if _is_number(score["all"])]
    for key, core, dashes in (
        ("ridge_validation_mse_at_start", "frozen core", (5, 2)),
        ("ridge_validation_mse", "trained core", (1, 1.2)),
    ):
        if _is_number(results.get(key)):
            lines.append(Reference(f"{core}, ridge", float(results[key]), GREEN, dashes, core))
    return lines


def near_and_far(lines: Sequence[Reference], low: float, high: float, stretch: float = 3.0) -> tuple[list, list]:
    """Split references into those that share an axis with curves in [low, high] and those too far above.

    A line above is near as long as the axis that holds it is at most `stretch` times the range of the curves; lines
    below `high` are always near, for they are the bars to beat.
    """
    span = max(high - low, 0.01 * abs(high), 1e-12)
    bottom = min([low, *(line.value for line in lines)])
    ceiling = max(bottom + stretch * span, high)
    return [x for x in lines if x.value <= ceiling], [x for x in lines if x.value > ceiling]


# ---------------------------------------------------------------------------------------------------------------------
# Drawing


def headed_figure(width: float, height: float, title: str, subtitle: str = "", legend_rows: int = 0) -> Figure:
    """A figure of width × height inches with constrained layout under a header: title, subtitle and room for a legend.

    The title is wrapped to the width. `header_legend` puts a legend in the room kept by `legend_rows`.
    """
    figure = Figure(figsize=(width, height), layout="constrained")
    FigureCanvasAgg(figure)
    top, left = 0.14, 0.14
    for text, size, leading, look in (
        (title, 15, 0.27, {"fontweight": "bold", "linespacing": 1.15}),
        (subtitle, 9.5, 0.18, {"color": GREY, "linespacing": 1.3}),
    ):
        artist = figure.text(left / width, 1 - top / height, "", fontsize=size, va="top", **look)
        artist.set_in_layout(False)
        top += leading * _wrap(figure, artist, text, (width - 2 * left) * figure.dpi) + 0.04
    figure.header_legend_y = 1 - top / height
    top += 0.24 * legend_rows + 0.05
    figure.get_layout_engine().set(
        rect=(0.06 / width, 0.06 / height, 1 - 0.16 / width, 1 - (top + 0.06) / height), w_pad=0.07, h_pad=0.06
    )
    return figure


def _wrap(figure: Figure, artist: Text, text: str, width: float) -> int:
    """Set `text`, its lines broken to at most `width` pixels as they are drawn. Returns the number of lines."""
    renderer, lines = figure.canvas.get_renderer(), []
    for line in text.splitlines():
        lines.append("")
        for word in line.split(" "):
            longer = f"{lines[-1]} {word}".strip()
            artist.set_text(longer)
            if lines[-1] and artist.get_window_extent(renderer).width > width:
                lines.append(word)
            else:
                lines[-1] = longer
    artist.set_text("\n".join(lines))
    return len(lines)


def header_legend(figure: Figure, handles: Sequence, columns: int | None = None) -> None:
    """A legend between the header and the axes, where it cannot cover data."""
    legend = figure.legend(
        handles=list(handles),
        loc="upper left",
        bbox_to_anchor=(0.11 / figure.get_figwidth(), figure.header_legend_y),
        ncols=columns or len(handles),
        borderaxespad=0,
        borderpad=0.2,
        columnspacing=1.6,
    )
    legend.set_in_layout(False)


def draw_references(axes: Axes, lines: Sequence[Reference]) -> None:
    """Horizontal dashed lines across the axes, behind the data."""
    for line in lines:
        axes.axhline(line.value, color=line.colour, lw=1.3, dashes=line.dashes, zorder=1.5)


def label_right(axes: Axes, labels: Sequence[tuple[float, str, str]], size: float = 9.5, gap: float = 1.35) -> None:
    """Labels outside the right edge at their heights, moved apart where they would touch, with thin leader lines.

    labels: (height in data units, text, colour). A height outside the axes is labelled at the nearer end, without a
    leader. Call after the limits are set. Constrained layout keeps room for the text.
    """
    if not labels:
        return
    figure = axes.get_figure(root=True)
    figure.draw_without_rendering()
    labels = sorted(labels, key=lambda label: label[0])
    bottom, height = axes.bbox.y0, axes.bbox.height
    heights = [(axes.transData.transform((0, value))[1] - bottom) / height for value, _, _ in labels]
    placed = spread(np.clip(heights, 0, 1), size * gap * figure.dpi / 72 / height, 0, 1)
    point = figure.dpi / 72 / axes.bbox.width
    for (_, text, colour), start, end in zip(labels, heights, placed, strict=True):
        if -0.01 <= start <= 1.01:
            leader = Line2D([1 + 2 * point, 1 + 11 * point], [start, end], color=colour, lw=0.9, clip_on=False)
            leader.set_transform(axes.transAxes)
            axes.add_artist(leader)
        axes.annotate(
            text, (1 + 14 * point, end), xycoords="axes fraction", color=colour, fontsize=size, va="center_baseline"
        )


def broken_axes(figure: Figure, grid: GridSpec, row: int, far: Sequence[float]) -> tuple[Axes, Axes | None]:
    """Axes for curves that leave room for values far above them: (main axes, strip above or None where `far` is empty).

    They take the rows `row` (strip) and `row` + 1 (main) of `grid` over its whole width, so that they line up with
    other axes in it. The strip shares the x axis and covers the values in `far`; a mark on the left edge of both shows
    that the scale has a gap.
    """
    if not len(far):
        return figure.add_subplot(grid[row : row + 2, :]), None
    main = figure.add_subplot(grid[row + 1, :])
    strip = figure.add_subplot(grid[row, :], sharex=main)
    margin = max(0.35 * (max(far) - min(far)), 0.04 * max(far))
    strip.set_ylim(min(far) - margin, max(far) + margin)
    # The strip is low: one tick, or two where they cannot touch.
    ticks = [min(far), max(far)] if max(far) - min(far) > 0.12 * max(far) else [float(np.mean(far))]
    strip.set_yticks(ticks, [f"{tick:.2f}" for tick in ticks])
    strip.spines["bottom"].set_visible(False)
    strip.tick_params(axis="x", bottom=False, labelbottom=False)
    mark = {
        "marker": [(-1, -0.5), (1, 0.5)],
        "markersize": 7,
        "ls": "none",
        "color": GREY,
        "mew": 1.0,
        "clip_on": False,
    }
    for axes, height in ((strip, 0), (main, 1)):
        axes.plot([0], [height], transform=axes.transAxes, scalex=False, scaley=False, **mark)
    return main, strip


def curve_with_mean(axes: Axes, x: np.ndarray, y: np.ndarray, colour: str, window: int, raw_alpha: float = 0.3):
    """A noisy curve: raw values thin and pale, the running mean of `window` values on top. Returns the mean's line."""
    axes.plot(*downsample(x, y), color=colour, lw=0.8, alpha=raw_alpha)
    return axes.plot(*downsample(x, running_mean(y, window)), color=colour)[0]


def _write(path: Path, write: Callable[[Path], None]) -> Path:
    """As `write_atomically`, into a folder that need not exist yet. BadInput where this cannot be written."""
    try:
        path.parent.mkdir(parents=True, exist_ok=True)
        write_atomically(path, write)
    except OSError as error:
        raise BadInput(f"{path}: cannot be written ({reason(error)})") from None
    return path


def save_png(figure: Figure, path: Path) -> Path:
    """Save at 150 dpi, atomically; the bytes do not name the matplotlib version."""
    return _write(path, lambda to: figure.savefig(to, format="png", dpi=DPI, metadata={"Software": None}))


def save_figures(figures: Mapping[str, Figure | None], folder: Path) -> None:
    """Save each as <name>.png in `folder`, and print where; None stands for a figure of what a run does not have."""
    for name, figure in figures.items():
        if figure is not None:
            print(save_png(figure, folder / f"{name}.png"))


def pixels(figure: Figure) -> np.ndarray:
    """The drawn figure as uint8 (height, width, 3)."""
    figure.canvas.draw()
    return np.asarray(figure.canvas.buffer_rgba())[..., :3].copy()


def write_gif(
    path: Path, frames: Sequence[np.ndarray], milliseconds: Sequence[int], colours: int = 128, limit: int = GIF_LIMIT
) -> Path:
    """An endlessly looping GIF of `frames`, each uint8 (height, width, 3), with one palette for all of them.

    milliseconds: how long each frame stays. colours: size of the palette, at most 256. RuntimeError where the file would
    be larger than `limit` bytes: then nothing is written.
    """
    shared = Image.fromarray(np.concatenate(frames)).quantize(colours, method=Image.Quantize.FASTOCTREE)
    palette = np.array(shared.getpalette(), dtype=np.uint8)
    palette[palette == 254] = 255  # means over an octree's leaves are rounded down; the page around a GIF is pure white
    shared.putpalette(palette.tobytes())
    images = [Image.fromarray(frame).quantize(palette=shared, dither=Image.Dither.NONE) for frame in frames]

    def write(temporary: Path) -> None:
        # Pillow makes pixels transparent that do not change. A palette named here is written once, not for each frame.
        images[0].save(
            temporary, format="GIF", save_all=True, append_images=images[1:], duration=list(milliseconds), loop=0,
            palette=palette.tobytes(), optimize=True,
        )  # fmt: skip
        size = temporary.stat().st_size
        if size > limit:
            raise RuntimeError(
                f"{path}: the GIF would be {size:,} bytes, more than {limit:,}; use fewer frames or colours"
            )

    return _write(path, write)


# ---------------------------------------------------------------------------------------------------------------------
# The scripts' command line


def figure_arguments(
    description: str, stub: Path, writes: str, argv: Sequence[str] | None = None, extra=None
) -> argparse.Namespace:
    """Parse --run and --out, the flags of every script that draws a saved run; mistakes raise BadInput.

    stub: the stub's folder, default of --out. writes: what the script writes, for the help text. extra: called with the
    parser to add flags.
    """
    parser = Parser(description=description)
    parser.add_argument(
        "--run", type=folder, metavar="DIR", help="run folder to draw (default: the committed laptop results, seed 0)"
    )
    parser.add_argument(
        "--out",
        type=folder,
        metavar="DIR",
        default=stub,
        help=f"folder in which to write {writes} (default: beside the script)",
    )
    if extra is not None:
        extra(parser)
    options = parser.parse_args(argv)
    try:
        check_folder(options.out)  # before anything is drawn
    except OSError as error:
        raise BadInput(f"--out {options.out} cannot be written ({reason(error)})") from None
    return options
