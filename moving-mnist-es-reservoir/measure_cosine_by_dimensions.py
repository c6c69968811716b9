"""The cosine laws against what is seen: how near an estimate comes to the gradient as its noise has more dimensions.

    python measure_cosine_by_dimensions.py

θ and the decoder stand still: two small factors and the decoder's warm-up, anew for each rank; or those of a saved run (--run, at
its own rank only). Each case is a kind of population. Several of them, which differ in noise and sequences, give an estimate each,
held against what it estimates as along a run (`Training._measure`): the gradient through time on the sequences that it was made
from, and that in expectation.

    seen   mean of the cosines, and the standard error of that mean
    law    common/laws.py, from K, D and how much the sequences' gradients differ (ρ₁, κ)

Of the training set the first 10,000 sequences are all that are drawn from here: the expectation is their mean, and nothing about it is
left to chance. σ is so small that estimates are of first order; the laws say nothing of what a larger one adds.

Cases that differ only in what is made of the losses share their populations: what happened by chance in one happened in the other
too. Pairs on sequences of their own are cheap and their cosines noisy: cases with fewer than 1,024 of them have so many more
populations that they come to the same number of pairs.

Writes measurements/cosine_by_dimensions.json and viz/cosine_by_dimensions.png. Two CPU cores: about seven minutes.
"""

import argparse
import dataclasses
import itertools
import math
import statistics
import time
from pathlib import Path

import torch
from matplotlib.axes import Axes
from matplotlib.figure import Figure
from matplotlib.lines import Line2D
from moving_mnist_es_reservoir import Config, Training
from moving_mnist_es_reservoir import parse_arguments as parse_experiment
from torch import Tensor
from tqdm import tqdm

from common import es
from common.dist import Workers, choose_device
from common.errors import BadInput, Fault, Parser, folder, reason, run_main
from common.figures import BLUE, GREY, INK, VERMILION, headed_figure, header_legend, read_json, save_png, style
from common.files import require_writable, write_json
from common.gradient import GradientSums
from common.laws import perturbed_dimensions
from common.problem import Embeddings
from common.run import environment, load_checkpoint, saved_config, sha256_of_tensors, source

HERE = Path(__file__).resolve().parent
NAME = "cosine_by_dimensions"
MOST_SEQUENCES = 10_000
PAIRS_IN_ALL = 1024  # on sequences of their own, times --populations
OWN = {"own_data": True, "batch_size": 1}
SHARED = {"own_data": False, "batch_size": 32, "fitness_shaping": "raw", "noise_projection": "none"}
LOSSES = (
    "perturbs",
    "noise",
    "own_data",
    "batch_size",
)  # settings of a case on which its losses depend, beside K and r
FACTORS = {"v": "V", "both": "U and V"}
TARGETS = {"own_sequences": "minibatch", "expectation": "expected"}  # our names, and those of `Training._measure`


def parse_arguments(argv: list[str] | None) -> tuple[argparse.Namespace, Config]:
    """Command line → (options, Config of the start); raises BadInput."""
    parser = Parser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--run", type=folder, metavar="DIR", help="θ and decoder of this run (default: a fresh start)")
    parser.add_argument("--preset", choices=("laptop", "smoke"), default="laptop", help="problem of a fresh start")
    parser.add_argument("--seed", default="0", help="of a fresh start (default: 0)")
    parser.add_argument("--populations", type=int, default=8, help="estimates of a case, 2 or more (default: 8)")
    parser.add_argument("--sigma", default="1e-3", help="σ, size of the noise (default: 1e-3)")
    parser.add_argument("--device", choices=("auto", "cpu", "cuda"), default="auto")
    parser.add_argument("--out", type=folder, default=HERE, metavar="DIR", help="holds measurements/ and viz/")
    parser.add_argument("--redraw", action="store_true", help="measure nothing, draw what --out holds")
    options = parser.parse_args(argv)
    if not 2 <= options.populations <= 10_000:
        raise BadInput(f"--populations must be a whole number from 2 to 10,000, not {options.populations}")
    flags = [f"--{name}={getattr(options, name)}" for name in ("preset", "seed", "sigma", "device")]
    config, _ = parse_experiment([*flags, "--adapter-start=small"])
    if options.run:
        try:
            saved = saved_config(options.run, config)
        except BadInput as error:
            raise BadInput(str(error).replace("--run-dir", "--run")) from None
        fewer = min(saved.train_sequences, MOST_SEQUENCES)
        config = dataclasses.replace(saved, sigma=config.sigma, train_sequences=fewer, dtype="float32", kernel="torch")
    return options, dataclasses.replace(config, device=choose_device(options.device).type)


def cases(config: Config, ranks: bool) -> list[Config]:
    """Populations over some orders of magnitude of D and K; all else of them is as in the experiment's defaults. ranks: also at an
    eighth of the rank. Projected ones come first: the others can do with their losses."""
    signs = {"perturbs": "v", "noise_projection": "visited", "fitness_shaping": "sign", **OWN}
    changes = [
        {"perturbs": perturbs, "noise_projection": projection, "fitness_shaping": shaping, **OWN}
        for perturbs, projection, shaping in itertools.product(FACTORS, ("visited", "none"), ("raw", "sign"))
    ]
    changes += [{**signs, "population_pairs": 1024}]
    changes += [{"perturbs": perturbs, **SHARED, "population_pairs": 64} for perturbs in FACTORS]
    changes += [{"perturbs": "both", **SHARED, "population_pairs": 32, "noise": "gaussian"}]  # the brief's
    few = [{**signs, "fitness_shaping": "raw"}, signs, {**signs, "noise_projection": "none"}]
    few += [{"perturbs": "v", **SHARED, "batch_size": 8, "population_pairs": pairs} for pairs in (64, 256, 1024)]
    changes += [{**change, "rank": max(1, config.rank // 8)} for change in few] if ranks else []
    usual = {
        field.name: field.default
        for field in dataclasses.fields(Config)
        if field.name in vars(Config)["__annotations__"] and field.name not in ("rank", "sigma")
    }
    usual |= {"noise": "rank1", "population_pairs": 256}
    return [dataclasses.replace(config, **{**usual, **change}) for change in changes]


# --- What is measured ------------------------------------------------------------------------------------------------


class WholeSet(GradientSums):
    """Over all sequences that there are: their mean is the expectation and no estimate of it."""

    def __init__(self, sums: GradientSums):
        vars(self).update(vars(sums))

    def _unbiased(self, sum_D: Tensor, squares: float) -> float:
        return float(sum_D.to(torch.float64).square().sum()) / self.count**2


class Still(Training):
    """Populations around a θ that no estimate moves. known: what such trainings at one θ need compute only once, gradients of
    sequences and losses of populations; whoever shares it empties it."""

    def __init__(self, config: Config, start: Training, known: dict):
        super().__init__(config, start.problem, start.embeddings, start.workers)
        self.u_Nr, self.v_Nr, self.decoder, self.known = start.u_Nr, start.v_Nr, start.decoder, known
        self.all_B = torch.arange(config.train_sequences)
        self.gradients, self.meter = self.meter, self  # `_measure` asks this class

    def minibatch_index(self, iteration: int, streams: Tensor, batch_size: int) -> Tensor:
        """As for any training, but that what stands for all sequences are all of them."""
        return self.all_B if self.MEASURED in streams else super().minibatch_index(iteration, streams, batch_size)

    def sums(self, index_B: Tensor, *here) -> GradientSums:
        """Those of the meter."""
        whole = torch.equal(index_B, self.all_B)
        key = (self.config.perturbs, *(["all"] if whole else index_B.tolist()))
        if key not in self.known:
            sums = self.gradients.sums(index_B, *here)
            self.known[key] = WholeSet(sums) if whole else sums
        return self.known[key]

    def measured(self, population: int) -> dict:
        """Form the estimate of one population, and hold it against the gradient. Raises Fault where all of it fails."""
        config, decoder = self.config, self.decoder.frozen_copy()
        key = ("losses", population, config.population_pairs, *(getattr(config, name) for name in LOSSES))
        if key not in self.known or config.noise_projection == "visited" and not self.known[key][2]:
            self.known[key] = (*self._evaluate_population(population, config.sigma, decoder), self.factors)
        losses_K2, failed_K2, factors = self.known[key]
        self.factors = dict(factors)
        how = (config.fitness_shaping, config.failure, config.failure_loss, config.loss_clip)
        weights = es.pair_weights(losses_K2, failed_K2, *how)
        if not weights.surviving_K.any():
            raise Fault(f"all members fail at --sigma {config.sigma:g}: there is nothing to measure")
        return self._measure(self._estimate(weights, population, config.sigma), population, decoder)

    def row(self, measured: list[dict]) -> dict:
        """This case in the file, from what its populations gave."""
        config, first = self.config, measured[0]
        data = "own data" if config.own_data else f"shared minibatch of {config.batch_size}"
        projected = ", projected" if config.noise_projection == "visited" else ""
        name = f"{config.noise} noise of {FACTORS[config.perturbs]}{projected}; {data}, {config.fitness_shaping}; r = {config.rank}"
        dimensions, seen = perturbed_dimensions(dataclasses.asdict(config))
        row = {"name": name, "pairs": config.population_pairs, "dimensions": dimensions, "dimensions_seen": seen}
        row |= {name: getattr(config, name) for name in ("rank", *LOSSES, "noise_projection", "fitness_shaping")}
        row |= {"batch_noise": first["batch_noise"], "agreement": first["agreement"], "populations": len(measured)}
        for name, key in TARGETS.items():
            values = [one[f"cosine_{key}"] for one in measured]
            error = statistics.stdev(values) / math.sqrt(len(values))
            row[name] = {"law": first[f"cosine_{key}_law"], "seen": statistics.fmean(values), "standard_error": error}
        return row


def begin(config: Config, problem, embeddings: Embeddings, workers: Workers, run: Path | None) -> Training:
    """θ and decoder: fresh, the decoder warmed up; or those of a run."""
    start = Training(config, problem, embeddings, workers)
    if run is None:
        start.prepare(progress=True)
        return start
    try:
        start.load_state_dict(load_checkpoint(run / "checkpoint.pt"))
    except (KeyError, TypeError, ValueError, RuntimeError, AttributeError) as error:
        raise BadInput(f"--run {run}: its checkpoint cannot be used ({reason(error)})") from None
    return start


def measure(config: Config, todo: list[Config], populations: int, workers: Workers, run: Path | None = None) -> dict:
    """The content of the file, but for environment and source."""
    digits = config.load_digits()
    problem = config.problem(digits)
    embeddings = Embeddings(problem, digits, config.train_sequences, workers)
    embeddings.prepare(workers)
    more = [max(1, PAIRS_IN_ALL // case.population_pairs) if case.own_data else 1 for case in todo]
    counts = [populations * times for times in more]
    began, starts, rows = time.perf_counter(), [], {}
    with tqdm(total=sum(counts), desc="populations", dynamic_ncols=True) as bar:
        for rank in dict.fromkeys(case.rank for case in todo):
            start, known = begin(dataclasses.replace(config, rank=rank), problem, embeddings, workers, run), {}
            hashed = sha256_of_tensors(start.u_Nr, start.v_Nr, *start.decoder.frozen_copy())
            starts.append({"rank": rank, "iteration": start.iteration, "theta_and_decoder_sha256": hashed})
            here = [(Still(case, start, known), count, []) for case, count in zip(todo, counts) if case.rank == rank]
            for population in range(1, max(count for _, count, _ in here) + 1):
                for training, _, measured in (one for one in here if population <= one[1]):
                    measured.append(training.measured(population))
                    bar.update()
                for key in [key for key in known if key[1] != "all"]:
                    del known[key]
            rows |= {training.config: training.row(measured) for training, _, measured in here}
    return {
        "problem_id": problem.id,
        "seed": config.seed,
        "sigma": config.sigma,
        "start": "saved run" if run else "two small factors, decoder warmed up",
        "starts": starts,
        "sizes": {name: getattr(config, name) for name in ("hidden_size", "sequence_length", "train_sequences")},
        "cases": [rows[case] for case in todo],
        "seconds": time.perf_counter() - began,
    }


# --- The figure ------------------------------------------------------------------------------------------------------

COLOURS = {"v": BLUE, "both": VERMILION}
MARKERS = {"own sequences, raw": "^", "own sequences, sign": "o", "shared sequences, raw": "s"}


def kind_of(row: dict) -> str:
    return f"{'own' if row['own_data'] else 'shared'} sequences, {row['fitness_shaping']}"


def read_measurement(path: Path) -> dict:
    """The file, without cosines that are not known. BadInput where it is not one of this script."""
    content = read_json(path)
    try:
        for row in content["cases"]:
            for target in TARGETS:
                if None in (cosine := [row[target][name] for name in ("law", "seen", "standard_error")]):
                    row[target] = None
                elif not 0 < cosine[0] <= 1 or not all(map(math.isfinite, cosine)):
                    raise ValueError
            COLOURS[row["perturbs"]], MARKERS[kind_of(row)], row["name"].encode(), row["noise_projection"].encode()
            int(row["pairs"] + row["dimensions_seen"] + row["populations"])
        int(content["sizes"]["hidden_size"] + content["sizes"]["sequence_length"] + float(content["sigma"]))
        content["start"].encode(), content["environment"]["device_name"].encode(), content["cases"][0]
    except (LookupError, TypeError, ValueError, AttributeError, OverflowError):
        raise BadInput(f"{path}: is no file of measure_{NAME}.py") from None
    return content


def draw(content: dict) -> Figure:
    """Seen against law on log axes, on an estimate's own sequences (left) and in expectation (right)."""
    rows, sizes = content["cases"], content["sizes"]
    points = {target: [row for row in rows if row[target]] for target in TARGETS}
    shown = [row[target] for target in TARGETS for row in points[target]]
    floor = min([cosine["law"] for cosine in shown] or [0.1]) / 2
    ceiling = min(1.4 * max([max(cosine["law"], cosine["seen"]) for cosine in shown] or [1]), 1.1)
    agree = sum(abs(cosine["seen"] - cosine["law"]) <= 2 * cosine["standard_error"] for cosine in shown)
    faint = sum(cosine["seen"] <= 2 * cosine["standard_error"] for cosine in shown)
    title = f"{agree} of {len(shown)} cosines are within two standard errors of the law; {faint} cannot be told from 0"
    counts, spans = ([row[name] for row in rows] for name in ("populations", "dimensions_seen"))
    parts = [
        f"N = {sizes['hidden_size']:,} · T = {sizes['sequence_length']} · D from {min(spans):,} to {max(spans):,}",
        f"σ = {content['sigma']:g} · {content['start']}",
        f"bars: ± 2 standard errors of {min(counts):,} to {max(counts):,} estimates",
    ]
    figure = headed_figure(11.5, 7.0, title, " · ".join(parts), legend_rows=2)
    titles = ("Cosine to the gradient of the sequences it was made from", "Cosine to the gradient in expectation")
    for axes, (target, some), text in zip(figure.subplots(1, 2, sharex=True, sharey=True), points.items(), titles):
        axes.plot([floor / 10, 1], [floor / 10, 1], color=GREY, lw=1.2, dashes=(5, 2), zorder=1)
        for row in some:
            _point(axes, row, target, floor)
        axes.set(
            xscale="log",
            yscale="log",
            xlim=(floor, ceiling),
            ylim=(floor, ceiling),
            box_aspect=1,
            title=text,
            xlabel="law",
        )
    figure.axes[0].set_ylabel("seen")
    look = {"ls": "none", "color": INK, "ms": 7}
    handles = [Line2D([], [], color=COLOURS[key], lw=5, label=f"noise of {text}") for key, text in FACTORS.items()]
    handles += [Line2D([], [], marker=marker, label=kind, **look) for kind, marker in MARKERS.items()]
    handles += [
        Line2D([], [], marker="D", label="filled: projected noise", **look),
        Line2D([], [], marker="v", mfc="white", label="upper end of a bar whose mean is below the axis", **look),
        Line2D([], [], color=GREY, lw=1.2, dashes=(5, 2), label="seen = law"),
    ]
    header_legend(figure, handles, columns=4)
    return figure


def _point(axes: Axes, row: dict, target: str, floor: float) -> None:
    """A mean with its bar, which the axis cuts where it reaches 0; of a mean that the axis cannot show, the bar's upper end."""
    law, seen, error = (row[target][name] for name in ("law", "seen", "standard_error"))
    colour, below = COLOURS[row["perturbs"]], seen < floor
    low, high = max(seen - 2 * error, floor / 10), max(seen + 2 * error, 1.1 * floor)
    axes.plot([law, law], [low, high], color=colour, lw=1.3, solid_capstyle="butt", zorder=2)
    look = {"marker": "v" if below else MARKERS[kind_of(row)], "ms": 7, "mec": colour, "mew": 1.5, "clip_on": False}
    filled = row["noise_projection"] == "visited" and not below
    axes.plot(law, high if below else seen, ls="none", mfc=colour if filled else "white", zorder=3, **look)


def table(content: dict) -> str:
    """The measurement as lines for a terminal."""
    lines = [f"{'D':>7} {'K':>5}  {'law':>6}  {'seen on own sequences':22}  {'law':>6}  {'seen in expectation':22}"]
    for row in content["cases"]:
        line = f"{row['dimensions_seen']:7,} {row['pairs']:5}"
        for cosine in (row[target] for target in TARGETS):
            text = "{law:6.4f}  {seen:7.4f} ± {standard_error:.4f}".format(**cosine) if cosine else "not known"
            line += f"  {text:30}"
        lines.append(line + row["name"])
    return "\n".join(lines)


def main(argv: list[str] | None = None) -> int:
    options, config = parse_arguments(argv)
    path = options.out / "measurements" / f"{NAME}.json"
    if not options.redraw:
        with Workers(choose_device(options.device)) as workers:
            if workers.distributed:
                raise BadInput("measurements run as one process: start them with python, not torchrun")
            require_writable(path, "--out")
            content = measure(config, cases(config, not options.run), options.populations, workers, options.run)
            write_json(path, {**content, "environment": environment(workers), "source": source(__file__)})
    content = read_measurement(path)
    with style():
        figure = save_png(draw(content), options.out / "viz" / f"{NAME}.png")
    print(table(content), figure, sep="\n")
    return 0


if __name__ == "__main__":
    run_main(main)
