"""Everything that a user can get wrong, in one table: every script answers it with exit code 2 and one line, and touches nothing.

A row is a command line in an empty folder and what lies in that folder. Rows run inside this process, through the same
`run_main` that every script ends in; one row of each script also runs as a user types it. Values outside their limits are
tried flag by flag in test_cli.py, and at random in test_fuzz.py.
"""

import dataclasses
import errno
import importlib
import io
import json
import os
import shutil
import subprocess
import sys
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from functools import partial
from pathlib import Path

import made_up
import numpy as np
import pytest
import torch
from conftest import PATIENCE_S, ROOT, flip_a_bit, snapshot

from common.dist import Workers
from common.errors import run_main
from common.problem import Embeddings
from common.run import load_checkpoint, pack_checkpoint

pytestmark = pytest.mark.promise("bad input")

ES, BPTT, READOUT = "moving-mnist-es-reservoir", "moving-mnist-bptt-baseline", "reservoir-readout-only"
TRUNCATED, RANK = "truncated-es", "rank-space-es"
# The data of conftest's SMALL, which are encoded once for all.
PROBLEM = """--preset smoke --device cpu --hidden-size 24 --in-degree 4 --sequence-length 3 --train-sequences 64
    --validation-sequences 16 --test-sequences 16 --iterations 3 --evaluate-every 1 --checkpoint-every 1 --batch-size 2""".split()
TINY = {
    ES: [*PROBLEM, *"--rank 2 --population-pairs 2 --decoder-warmup 2 --decoder-batch-size 2".split()],
    BPTT: [*PROBLEM, *"--rank 2".split()],
    READOUT: [*PROBLEM, *"--decoder-steps 2".split()],
    TRUNCATED: [*PROBLEM, *"--rank 2 --window 3 --members 2 --decoder-warmup 2 --decoder-batch-size 2".split()],
    RANK: [*PROBLEM, *"--rank 2 --window 1 --probes 2 --decoder-warmup 2 --decoder-batch-size 2".split()],
}
MODULE = {slug: slug.replace("-", "_") for slug in TINY}
DRAW = {slug: f"{slug}/visualize_{MODULE[slug]}.py" for slug in TINY}
GIF = {slug: f"{slug}/make_{MODULE[slug]}_gif.py" for slug in TINY}
SWEEP = f"{READOUT}/sweep_reservoir_readout_only.py"
MEMORY = f"{BPTT}/measure_memory_by_length.py"
COSINE = f"{ES}/measure_cosine_by_dimensions.py"
CATALOG, MANY = "common/catalog.py", "common/sweep.py"
STUDIES = {slug: slug.replace("-", "_") for slug in ("ablation-rank", "ablation-axes")}
LONG_NAME, LONG_PATH = "n" * 300, "/".join(["n" * 200] * 30)
DEEP = "[" * 100_000  # valid as far as it goes, and more than a parser's stack takes


def script_of(name: str) -> Path:
    """The file behind a row's script: an experiment is named by its folder."""
    return ROOT / (f"{name}/{MODULE[name]}.py" if name in MODULE else name)


@dataclasses.dataclass(frozen=True)
class Row:
    """words: the command line; to those of an experiment it is added that the configuration is tiny and the run folder `run`.

    says: what the line must hold. before: called with a World, one after another. types_it: run it as a user does, too.
    """

    name: str
    script: str
    words: str | list[str]
    says: list[str]
    before: tuple[Callable, ...] = ()
    types_it: bool = False
    needs: str = ""

    @property
    def arguments(self) -> list[str]:
        words = self.words.split() if isinstance(self.words, str) else self.words
        return [*TINY[self.script], "--run-dir", "run", *words] if self.script in TINY else words


# --- What lies in the folder -----------------------------------------------------------------------------------------


class World:
    """What a row's preparations work with; the working directory is the row's own folder."""

    def __init__(self, runs: dict[str, Path], monkeypatch):
        self.runs, self.monkeypatch = runs, monkeypatch


def saved(slug: str, name: str = "run") -> Callable:
    """A finished run of an experiment."""
    return lambda world: shutil.copytree(world.runs[slug], name)


def write(name: str, content: str | bytes) -> Callable:
    def put(world: World) -> None:
        path = Path(name)
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_bytes(content if isinstance(content, bytes) else content.encode())

    return put


def folder(name: str) -> Callable:
    """An empty folder, in the place of whatever was there."""

    def put(world: World) -> None:
        Path(name).unlink(missing_ok=True)
        Path(name).mkdir(parents=True)

    return put


def gone(*names: str) -> Callable:
    return lambda world: [Path(name).unlink() for name in names]


def link(name: str, target: str) -> Callable:
    def put(world: World) -> None:
        Path(name).unlink(missing_ok=True)
        Path(name).symlink_to(target)

    return put


def cut(name: str, share: float) -> Callable:
    """Only the first part of a file is left; of a share of 1 only the last byte is missing."""

    def damage(world: World) -> None:
        content = Path(name).read_bytes()
        Path(name).write_bytes(content[: min(int(len(content) * share), len(content) - 1)])

    return damage


def json_with(name: str, **changes) -> Callable:
    """Change keys of a JSON object, at any depth (`config__rank`); KeyError takes one out."""

    def damage(world: World) -> None:
        content = json.loads(Path(name).read_text())
        for path, value in changes.items():
            made_up.change(content, path.split("__"), value)
        Path(name).write_text(json.dumps(content))

    return damage


CHECKPOINTS = ("run/checkpoint.pt", "run/checkpoint.previous.pt")


def both(damage: Callable) -> tuple[Callable, Callable]:
    return tuple(damage(name) for name in CHECKPOINTS)


def state_with(**changes) -> tuple[Callable, Callable]:
    """Change what the checkpoints hold and save them again: good files of this configuration, but not what it needs."""

    def change(name: str) -> Callable:
        def rewrite(world: World) -> None:
            state = load_checkpoint(Path(name))
            for key, value in changes.items():
                if value is KeyError:
                    del state[key]
                else:
                    state[key] = value
            Path(name).write_bytes(pack_checkpoint(state))

        return rewrite

    return both(change)


def bit_of_theta(name: str) -> Callable:
    return lambda world: flip_a_bit(Path(name), torch.load(name, weights_only=True)["v_Nr"])


def taken_from(slug: str) -> tuple[Callable, Callable]:
    return both(lambda name: lambda world: shutil.copy(world.runs[slug] / Path(name).name, name))


def cache(place: str) -> Callable:
    return lambda world: world.monkeypatch.setenv("MOVING_MNIST_CACHE", place)


def cached(content: bytes | None) -> Callable:
    """A cache whose test set is this; None: a folder in its place."""

    def put(world: World) -> None:
        world.monkeypatch.setenv("MOVING_MNIST_CACHE", "cache")
        config = load(script_of(ES)).parse_arguments(TINY[ES])[0]
        digits = config.load_digits()
        workers = Workers(torch.device("cpu"))
        embeddings = Embeddings(config.problem(digits), digits, config.train_sequences, workers)
        for split, size in embeddings.sizes.items():
            path = embeddings._path(split)
            path.parent.mkdir(exist_ok=True)
            if split != "test":
                np.save(path, np.zeros((size, 4, 128), np.float32))
            elif content is None:
                path.mkdir()
            else:
                path.write_bytes(content)

    return put


def numpy_bytes(array: np.ndarray) -> bytes:
    buffer = io.BytesIO()
    np.save(buffer, array, allow_pickle=True)
    return buffer.getvalue()


def environment(name: str, value: str) -> Callable:
    return lambda world: world.monkeypatch.setenv(name, value)


def encrypted(world: World) -> None:
    """The bit that says "encrypted" in the directory of a zip file."""
    content = bytearray(Path("run/figures.npz").read_bytes())
    place = content.find(b"PK\x01\x02")
    while place >= 0:
        content[place + 8] |= 1
        place = content.find(b"PK\x01\x02", place + 1)
    Path("run/figures.npz").write_bytes(content)


def change_a_row(path: Path, **changes) -> None:
    """Of a file of measurements."""
    content = json.loads(path.read_text())
    content["rows"][0].update(changes)
    path.write_text(json.dumps(content))


def repository(**changes) -> Callable:
    """A made-up repository with one result, and a finished run beside it; changes are of the run's result."""

    def put(world: World) -> None:
        root = Path("repository")
        (root / "common").mkdir(parents=True)
        made_up.commit(root, made_up.result())
        (root / made_up.SLUG / f"{made_up.MODULE}.py").write_text(made_up.SCRIPT)
        Path("run").mkdir()
        Path("run/results.json").write_text(json.dumps(made_up.result(seed=1, **changes)))
        Path("run/metrics.jsonl").write_text('{"iteration": 0, "validation_mse": 0.7}\n')

    return put


COMMITTED = f"repository/{made_up.SLUG}/results/laptop-seed0.json"

# --- The table -------------------------------------------------------------------------------------------------------

VALUES = [
    Row("a seed below zero", ES, "--seed -1", ["--seed", "a whole number ≥ 0", "'-1'"], types_it=True),
    Row("a seed below zero for the floor", READOUT, "--seed=-1", ["--seed", "≥ 0"]),
    Row("a seed in hexadecimal", ES, "--seed 0x10", ["--seed", "whole number", "'0x10'"]),
    Row("a seed with a point", BPTT, "--seed 1.0", ["--seed", "whole number", "'1.0'"]),
    Row("a seed as superscript", ES, "--seed ²", ["--seed", "whole number", "'²'"]),
    Row("an empty seed", READOUT, ["--seed", ""], ["--seed", "whole number", "''"]),
    Row("a seed of two lines", ES, ["--seed", "1\n2"], ["--seed", r"'1\n2'"]),
    Row("a seed of 5,000 digits", BPTT, ["--seed", "9" * 5000], ["--seed", "whole number"]),
    Row("a seed beyond 63 bits", READOUT, ["--seed", str(2**63)], ["--seed", "whole number"]),
    Row("a horizon in the past", ES, "--horizon -1", ["--horizon", "≥ 0 and ≤ 100", "'-1'"], types_it=True),
    Row("half a frame ahead", BPTT, "--horizon 2.5", ["--horizon", "whole number", "'2.5'"]),
    Row("a horizon without end", RANK, ["--horizon", "1" + "0" * 400], ["--horizon", "≤ 100"]),
    Row("a run scored up to a word", READOUT, "--evaluate --horizon x", ["--horizon", "'x'"], (saved(READOUT),)),
    Row("a share of predictions below zero", ES, "--roll-in -1", ["--roll-in", "≥ 0 and ≤ 1", "'-1'"]),
    Row("more predictions than inputs", BPTT, "--roll-in 2", ["--roll-in", "≥ 0 and ≤ 1", "'2'"], types_it=True),
    Row("a share that is not a number", TRUNCATED, "--roll-in nan", ["--roll-in", "finite", "'nan'"]),
    Row(
        "no input but the first",
        READOUT,
        "--roll-in 0.5 --sequence-length 1",
        ["--roll-in", "--sequence-length of at least 2"],
        types_it=True,
    ),
    Row(
        "a gradient that knows of no roll-in",
        RANK,
        "--roll-in 0.5 --measure-cosine-every 1",
        ["--measure-cosine-every", "--roll-in 0"],
    ),
    Row("two threads and a half", BPTT, "--threads 2.5", ["--threads", "whole number"]),
    Row("more threads than make sense", READOUT, "--threads 1025", ["--threads", "1024"]),
    Row("σ of nothing", ES, "--sigma 0", ["--sigma", "> 0"]),
    Row("σ with a decimal comma", ES, "--sigma 0,1", ["--sigma", "'0,1'"]),
    Row("an infinite learning rate", BPTT, "--learning-rate inf", ["--learning-rate", "finite"]),
    Row("a learning rate that overflows", READOUT, "--learning-rate 1e999", ["--learning-rate", "finite"]),
    Row("a negative exponent's negative rate", ES, "--learning-rate -1e-3", ["--learning-rate", "'-1e-3'"]),
    Row("a leak above one", READOUT, "--leak 1.01", ["--leak", "≤ 1"]),
    Row("a gradient clip of zero", BPTT, "--gradient-clip 0", ["--gradient-clip", "> 0"]),
    Row("no decoder step", READOUT, "--decoder-steps 0", ["--decoder-steps", "≥ 1"]),
    Row("three digits", BPTT, "--digits 3", ["--digits", "one of 1, 2"]),
    Row("a sequence of no frame", READOUT, "--sequence-length 0", ["--sequence-length", "≥ 1"]),
    Row("a preset that is not there", ES, "--preset huge", ["--preset", "laptop", "'huge'"]),
    Row("a preset of the other experiment", READOUT, "--preset gru", ["--preset", "'gru'"]),
    Row("an empty preset", BPTT, "--preset=", ["--preset", "''"]),
    Row("a device in full-width letters", ES, "--device ｃｐｕ", ["--device", "auto, cpu, cuda"]),
    Row("a choice in capitals", ES, "--noise Gaussian", ["--noise", "gaussian, rank1"]),
    Row("a value that is not UTF-8", ES, ["--noise", "\udcff"], ["--noise", "gaussian, rank1"], types_it=True),
    Row(
        "windows that do not fit",
        TRUNCATED,
        "--window 2",
        ["--window must divide", "3 is not a multiple of 2"],
        types_it=True,
    ),
    Row("a group of one", TRUNCATED, "--members 1", ["--members", "≥ 2"]),
    Row(
        "more orthogonal probes than there are",
        RANK,
        "--probes 3",
        ["--probes 3", "2 dimensions", "at most 2, or --noise independent"],
        types_it=True,
    ),
    Row("feedback for nothing that learns by it", RANK, "--feedback-probes 2", ["--feedback-probes", "--trains both"]),
    Row(
        "feedback for a V alone", TRUNCATED, "--feedback-probes 2", ["--feedback-probes", "--train-leak"], types_it=True
    ),
    Row(
        "a leak of a network without one",
        BPTT,
        "--core gru --train-leak scalar",
        ["--train-leak", "--trains adapter"],
        types_it=True,
    ),
    Row("a leak of every member on a kernel with one", ES, "--train-leak scalar --kernel fused", ["--kernel"]),
    Row("noise of a leak that stays", ES, "--leak-sigma 0.2", ["--leak-sigma", "--train-leak"], types_it=True),
    Row("a second leak", BPTT, "--trains all --train-leak per-unit", ["--train-leak", "--trains adapter"]),
    Row("a leak of another kind", BPTT, "--train-leak each", ["--train-leak", "no, scalar, per-unit"]),
    Row("a rate for a U that stays", RANK, "--u-rate-ratio 0.5", ["--u-rate-ratio", "--trains v"]),
    Row(
        "probes of the readout beyond a full set",
        RANK,
        "--trains both --feedback-probes 131072",
        ["--feedback-probes 131,072", "at most"],
    ),
    Row("matrices only", BPTT, "--optimizer muon --trains all", ["--optimizer muon", "matrices only"], types_it=True),
    Row("an optimiser that is not there", TRUNCATED, "--optimizer lion", ["adam, muon"]),
    Row("a single dimension", RANK, "--rank 1", ["--noise orthogonal", "independent"]),
    Row("more states than memory", RANK, "--hidden-size 100000 --batch-size 1000000", ["--batch-size", "at most"]),
    Row("credit that grows", RANK, "--discount 1.5", ["--discount", "≤ 1"]),
    Row("windows that do not fit, of probes", RANK, "--window 2", ["--window must divide"]),
    Row("a shaping of the other experiment", TRUNCATED, "--fitness-shaping normal-score", ["raw, standardised"]),
    # To be refused before it is tried: nobody lives to see the end of it, and no progress bar can count so far.
    Row("a warm-up without end", ES, ["--dry-run", "--decoder-warmup", "1" + "0" * 400], ["--decoder-warmup", "≤"]),
]

FLAGS = [
    Row("a flag that is not there", BPTT, "--frobnicate", ["--frobnicate"], types_it=True),
    Row("a flag of the other experiment", READOUT, "--rank 2", ["--rank"], types_it=True),
    Row("momentum where there is none", READOUT, "--momentum 0.5", ["--momentum"]),
    Row("a flag cut short", ES, "--popul 3", ["--popul"]),
    Row("a flag with one hyphen", ES, "-seed 3", ["-seed"]),
    Row("a flag with a line break", READOUT, ["--seed\n", "1"], ["--seed"]),
    Row("a flag that is not UTF-8", BPTT, ["--\udcff"], ["--"]),
    Row("a word without a flag", ES, "laptop", ["laptop"]),
    Row("an empty word", ES, [""], ["arguments"]),
    Row("a flag without its value", READOUT, "--seed", ["--seed", "expected one argument"]),
    Row("two hyphens for a value", ES, "--seed=--", ["--seed", "expected one argument"]),
    Row("a flag where a value should be", BPTT, "--seed --resume", ["--seed", "expected one argument"]),
    Row("a value for a switch", ES, "--own-data=yes", ["--own-data"]),
    Row("continue and delete", READOUT, "--resume --overwrite", ["--resume", "--overwrite"], (saved(READOUT),)),
    Row("score and delete", ES, "--evaluate --overwrite", ["--evaluate", "--overwrite"], (saved(ES),)),
    Row("score and continue", ES, "--evaluate --resume", ["--evaluate", "--resume"], (saved(ES),)),
    Row("a rank above the size", ES, "--rank 25", ["--rank", "--hidden-size", "25 > 24"]),
    Row("a rank above the size for the ceiling", BPTT, "--rank 25", ["--rank", "--hidden-size", "25 > 24"]),
    # A GRU has no adapter, but U and V are made for it all the same.
    Row("a rank that fills the memory", BPTT, "--core gru --rank 1000000000000000", ["--rank"]),
    Row("more entries than a row has", READOUT, "--in-degree 25", ["--in-degree", "--hidden-size", "25 > 24"]),
    Row("a GRU and parts of the reservoir", BPTT, "--core gru --trains v", ["--trains v", "--core gru"]),
    Row("gradients in double precision", BPTT, "--dtype float64", ["--dtype float64"]),
    Row("half precision on a CPU", READOUT, "--dtype float16", ["--dtype float16", "CUDA"]),
    Row("directions for U where V alone is trained", ES, "--perturbs v --adapter-start zero-v --u-directions 3", ["--u-directions", "--perturbs both"]),
    Row("directions for U in Gaussian noise", ES, "--noise gaussian --u-directions 3", ["--u-directions", "--noise rank1"]),
    Row("more directions for U than units", ES, "--noise rank1 --hidden-size 16 --u-directions 17", ["--u-directions", "--hidden-size", "17 > 16"]),
    Row("a rate for a U that is not trained", ES, "--perturbs v --adapter-start small --u-rate-ratio 0.5", ["--u-rate-ratio", "--perturbs v"]),
    Row("projected noise and a loss for failed members", ES, "--noise-projection visited --failure penalise", ["--failure penalise", "--noise-projection none"]),
    Row("projected noise and a kernel that keeps no states", ES, "--noise-projection visited --kernel graph", ["--noise-projection visited", "--kernel torch", "graph"]),
    Row("projected Gaussian noise", ES, "--noise-projection visited --noise gaussian", ["--noise-projection", "rank1"]),
    Row("noise of V where U is zero", ES, "--perturbs v", ["--perturbs v", "zero-v"]),
    Row("a GPU's kernel on a CPU", ES, "--kernel fused", ["--kernel fused", "CUDA"]),
    Row("NCCL on a CPU", BPTT, "--backend nccl", ["--backend nccl", "gloo"]),
    Row("a GPU that is not there", READOUT, "--device cuda", ["--device cuda", "choose cpu"], needs="no CUDA"),
    Row(
        "two digits without any variance", ES, "--digits 2 --test-sequences 1 --sequence-length 1",
        ["--test-sequences", "variance"],
    ),
]  # fmt: skip

PLACES = [
    Row("an empty run folder's name", ES, ["--run-dir", ""], ["--run-dir"]),
    Row("a run folder that is a file", BPTT, [], ["--run-dir run", "Not a directory"], (write("run", ""),)),
    Row("a run folder below a file", READOUT, "--run-dir file/run", ["--run-dir file/run", "cannot be written"], (write("file", ""),),
        types_it=True),
    Row("a run folder below a device", ES, "--run-dir /dev/null/x", ["--run-dir /dev/null/x", "Not a directory"]),
    # Encoding these sequences takes seconds and writes the cache: the folder has to be looked at before.
    Row("a dangling link", ES, "--test-sequences 5", ["--run-dir run"], (link("run", "nowhere"),), types_it=True),
    Row("a link to a file", READOUT, [], ["--run-dir run"], (write("file", ""), link("run", "file"))),
    Row("a link to itself", BPTT, "--test-sequences 5", ["--run-dir run"], (link("run", "run"),)),
    Row("a name that is too long", ES, ["--run-dir", LONG_NAME], ["--run-dir nnn", os.strerror(errno.ENAMETOOLONG)]),
    Row("a path that is too long", BPTT, ["--run-dir", LONG_PATH], ["--run-dir nnn", os.strerror(errno.ENAMETOOLONG)]),
    Row("a path with a line break", READOUT, ["--run-dir", "fi\nle/run"], ["fi le/run"], (write("fi\nle", ""),)),
    Row("a path that is not UTF-8", ES, ["--run-dir", "fi\udcff/run"], ["cannot be written"],
        (lambda world: Path("fi\udcff").touch(),), types_it=True),
    Row("to delete a file", ES, "--overwrite", ["--run-dir run"], (write("run", "important"),)),
    Row("nothing to continue", READOUT, "--resume", ["--run-dir run", "holds no run"], types_it=True),
    Row("nothing to score", BPTT, "--evaluate", ["--run-dir run", "holds no run"]),
    Row("an empty folder to continue", ES, "--resume", ["--run-dir run", "holds no run"], (folder("run"),)),
    Row("a folder that holds a run", READOUT, [], ["already holds a run", "--resume", "--overwrite"], (saved(READOUT),)),
    # The line is the only one: not a word about which preset is the automatic one.
    Row("a folder that holds a run, and the automatic preset", ES, "--preset auto", ["already holds a run"], (saved(ES),),
        types_it=True),
    Row("a folder with results alone", BPTT, [], ["already holds a run"],
        (saved(BPTT), gone("run/metrics.jsonl", *CHECKPOINTS))),
    Row("a folder with a checkpoint alone", ES, [], ["already holds a run"], (write("run/checkpoint.pt", ""),)),
]  # fmt: skip

CONFIG = "run/config.json"
RUNS = [
    Row("another seed", ES, "--resume --seed 7", ["another configuration", "seed is 0", "7 here"], (saved(ES),),
        types_it=True),
    Row("another gain", READOUT, "--resume --gain 0.7", ["another configuration", "gain"], (saved(READOUT),)),
    Row("other parts trained", BPTT, "--resume --trains v", ["another configuration", "trains"], (saved(BPTT),)),
    Row("the ceiling's run continued", ES, "--resume", ["another configuration"], (saved(BPTT),)),
    Row("the floor's run continued", BPTT, "--resume", ["another configuration"], (saved(READOUT),)),
    Row("the method's run continued", READOUT, "--resume", ["another configuration"], (saved(ES),)),
    Row("the floor's run scored", ES, "--evaluate", ["config.json", "another experiment"], (saved(READOUT),)),
    Row("the method's run scored", BPTT, "--evaluate", ["config.json", "another experiment"], (saved(ES),)),
    Row("the ceiling's run scored", READOUT, "--evaluate", ["config.json"], (saved(BPTT),)),
    *(
        Row(f"{action}, config.json {what}", slug, action, ["run"], (saved(slug), damage))
        for action in ("--resume", "--evaluate")
        for slug, what, damage in (
            (ES, "is missing", gone(CONFIG)),
            (BPTT, "is empty", write(CONFIG, "")),
            (READOUT, "is a list", write(CONFIG, "[1, 2]")),
            (ES, "is cut short", write(CONFIG, "{")),
            (BPTT, "is a zero byte", write(CONFIG, b"\0")),
            (READOUT, "holds the seed alone", write(CONFIG, '{"seed": 0}')),
            (ES, "is a number", write(CONFIG, "3")),
            (BPTT, "is null", write(CONFIG, "null")),
            (READOUT, "is not UTF-8", write(CONFIG, b'{"seed": "\xff"}')),
            (ES, "is nested without end", write(CONFIG, DEEP)),
            (BPTT, "is a folder", folder(CONFIG)),
            (READOUT, "is a dangling link", link(CONFIG, "nowhere")),
            (ES, "lacks a key", json_with(CONFIG, sigma=KeyError)),
            (BPTT, "has one more key", json_with(CONFIG, frobnicate=1)),
            (READOUT, "holds NaN", json_with(CONFIG, gain=float("nan"))),
            (ES, "has a text for a number", json_with(CONFIG, batch_size="2")),
            (BPTT, "has a list for a number", json_with(CONFIG, hidden_size=[24])),
            (READOUT, "has null for a number", json_with(CONFIG, decoder_steps=None)),
            (ES, "has no members", json_with(CONFIG, population_pairs=0)),
            (ES, "has an unknown dtype", json_with(CONFIG, dtype="float31")),
            (ES, "has an empty minibatch", json_with(CONFIG, batch_size=0)),
            (BPTT, "has a device for a number", json_with(CONFIG, device=3)),
            (ES, "has a huge size", json_with(CONFIG, hidden_size=10**40)),
            (READOUT, "has another digit source", json_with(CONFIG, digit_source="fashion")),
            (BPTT, "has another problem", json_with(CONFIG, problem_id="0123456789ab")),
            (TRUNCATED, "has windows longer than its sequences", json_with(CONFIG, window=9)),
            (RANK, "has more probes than dimensions", json_with(CONFIG, probes=9)),
        )
    ),
    *(
        Row(f"both checkpoints cut to {share:.2%}", slug, "--resume", ["run holds no usable checkpoint", *CHECKPOINTS],
            (saved(slug), *both(lambda name, share=share: cut(name, share))))
        for slug, share in ((ES, 0), (BPTT, 0.001), (READOUT, 0.1), (ES, 0.3), (BPTT, 0.5), (READOUT, 0.7), (ES, 0.9),
                            (BPTT, 0.98), (READOUT, 1))
    ),
    Row("a checkpoint that ends early, to be scored", READOUT, "--evaluate", ["no usable checkpoint"],
        (saved(READOUT), *both(lambda name: cut(name, 0.6)))),
    Row("one bit of θ is wrong", BPTT, "--resume", ["no usable checkpoint", "damaged"],
        (saved(BPTT), *both(bit_of_theta))),
    Row("text in the place of checkpoints", ES, "--evaluate", ["no usable checkpoint", "no checkpoint"],
        (saved(ES), *both(lambda name: write(name, "seed: 0\n" * 99)))),
    Row("checkpoints of another experiment", ES, "--resume", ["no usable checkpoint", "another run"],
        (saved(ES), *taken_from(BPTT)), types_it=True),
    Row("checkpoints of another experiment, to be scored", READOUT, "--evaluate", ["another run"],
        (saved(READOUT), *taken_from(ES))),
    Row("a checkpoint that lacks a part", ES, "--resume", ["checkpoint"], (saved(ES), *state_with(u_Nr=KeyError))),
    Row("a checkpoint of another shape", BPTT, "--evaluate", ["checkpoint"],
        (saved(BPTT), *state_with(u_Nr=torch.zeros(3, 2)))),
    Row("a checkpoint with a text for a number", READOUT, "--resume", ["checkpoint"],
        (saved(READOUT), *state_with(iteration="3"))),
    Row("no checkpoint is left", BPTT, "--resume", ["no usable checkpoint"], (saved(BPTT), gone(*CHECKPOINTS))),
    Row("folders in the place of checkpoints", READOUT, "--resume", ["checkpoint.pt"],
        (saved(READOUT), *both(folder))),
    # The one before it is good, but the next could not be saved.
    Row("a folder in the place of the newest checkpoint", ES, "--resume", ["checkpoint.pt"],
        (saved(ES), folder("run/checkpoint.pt"))),
    Row("a folder in the place of what is to be deleted", BPTT, "--overwrite", ["checkpoint.pt"],
        (saved(BPTT), folder("run/checkpoint.pt"))),
    Row("a folder in the place of metrics", ES, "--resume", ["run"], (saved(ES), folder("run/metrics.jsonl"))),
    Row("a folder in the place of results", READOUT, "--resume", ["run"], (saved(READOUT), folder("run/results.json"))),
    Row("a folder in the place of figures", BPTT, "--resume", ["run"], (saved(BPTT), folder("run/figures.npz"))),
]  # fmt: skip

MNIST = ["--digit-source", "mnist", "--mnist-dir"]
IMAGES = "train-images-idx3-ubyte"
FILES = [
    Row("MNIST without a folder", ES, "--digit-source mnist", ["--digit-source mnist", "--mnist-dir"]),
    Row("a folder without MNIST", READOUT, "--mnist-dir .", ["--mnist-dir", "--digit-source mnist"]),
    Row("MNIST in an empty folder", BPTT, [*MNIST, "."], ["--mnist-dir", IMAGES, "6bbc9ace898e44ae57da46a324031adb"]),
    Row("MNIST nowhere", ES, [*MNIST, "nowhere"], ["--mnist-dir nowhere", "is not a directory"]),
    Row("MNIST in a file", READOUT, [*MNIST, "file"], ["--mnist-dir file"], (write("file", ""),)),
    Row("MNIST behind a long name", BPTT, [*MNIST, LONG_NAME], ["--mnist-dir nnn"]),
    Row("MNIST behind a line break", ES, [*MNIST, "no\nwhere"], ["--mnist-dir no where"]),
    Row("MNIST with a wrong file", READOUT, [*MNIST, "."], [IMAGES, "MD5"], (write(IMAGES, b"\0\0\x08\x03"),)),
    Row("MNIST with a folder for a file", BPTT, [*MNIST, "."], [IMAGES], (folder(IMAGES),)),
    Row("MNIST badly compressed", ES, [*MNIST, "."], [f"{IMAGES}.gz", "f68b3c2dcbeaaa9fbdd348bbdeb94873"], (write(f"{IMAGES}.gz", b"\x1f\x8b"),)),
    Row("an empty name for MNIST", READOUT, [*MNIST, ""], ["--mnist-dir"]),
    Row("no public test file", ES, "--public-test-file nowhere.npy", ["nowhere.npy", "missing", "be083ec986bfe91a449d63653c411eb2"],
        types_it=True),
    Row("an empty name of the public test file", BPTT, ["--public-test-file", ""], ["--public-test-file"]),
    Row("a folder as public test file", READOUT, "--public-test-file .", ["public test set"]),
    Row("another public test file", BPTT, "--public-test-file a.npy", ["a.npy", "be083ec986bfe91a449d63653c411eb2"],
        (write("a.npy", numpy_bytes(np.zeros((20, 3, 64, 64), np.uint8))),)),
    Row("a long name of the public test file", ES, ["--public-test-file", LONG_NAME], ["public test set", "nnn"]),
    Row("a cache that is a file", ES, [], ["MOVING_MNIST_CACHE"], (write("file", ""), cache("file"))),
    Row("a cache below a file", BPTT, [], ["MOVING_MNIST_CACHE"], (write("file", ""), cache("file/cache"))),
    Row("a cache below a file, and a run to delete", ES, "--overwrite", ["file/cache", "MOVING_MNIST_CACHE"],
        (saved(ES), write("file", ""), cache("file/cache"))),
    Row("a cache with a long name", READOUT, [], ["MOVING_MNIST_CACHE"], (cache(LONG_NAME),)),
    Row("a cache behind a dangling link", ES, [], ["MOVING_MNIST_CACHE"], (link("cache", "nowhere"), cache("cache"))),
    Row("an empty file in the cache", ES, [], ["cache/test-", "damaged"], (cached(b""),)),
    Row("a truncated file in the cache", ES, [], ["cache/test-", "damaged"],
        (cached(numpy_bytes(np.zeros((16, 4, 128), np.float32))[:-1]),)),
    Row("another shape in the cache", ES, [], ["cache/test-", "damaged"],
        (cached(numpy_bytes(np.zeros((16, 3, 128), np.float32))),)),
    Row("another type in the cache", ES, [], ["cache/test-", "damaged"], (cached(numpy_bytes(np.zeros((16, 4, 128)))),)),
    Row("objects in the cache", ES, [], ["cache/test-", "damaged"], (cached(numpy_bytes(np.array([None]))),)),
    Row("a broken header in the cache", ES, [], ["cache/test-", "damaged"],
        (cached(numpy_bytes(np.zeros((16, 4, 128), np.float32)).replace(b"(16, 4, 128)", b"(16, 4, 128(")),)),
    Row("a folder in the cache", ES, [], ["cache/test-"], (cached(None),)),
]  # fmt: skip

IN_REPOSITORY = ["--root", "repository"]
PUBLISH = ["publish", "run", *IN_REPOSITORY]
RESULTS = [
    Row("a sweep of nothing", MANY, [RANK, "--folder", "runs", "--vary", "rank"], ["--vary", "NAME=VALUE"], types_it=True),
    Row("a sweep nowhere", MANY, [RANK, "--vary", "rank=2"], ["--folder"]),
    Row("a sweep of no experiment", MANY, ["no-such", "--folder", "runs", "--vary", "rank=2"], ["no-such: no such stub", RANK]),
    Row("a sweep that an experiment refuses", MANY, [RANK, "--folder", "runs", "--vary", "window=1,3"], ["--window must divide"]),
    Row("no command", CATALOG, [], ["command"]),
    Row("a command that is not there", CATALOG, "bake", ["bake"], types_it=True),
    Row("no repository", CATALOG, "results --check --root nowhere", ["--root", "nowhere"]),
    Row("a repository behind a long name", CATALOG, ["check", "--root", LONG_NAME], ["--root", "nnn"]),
    Row("a repository behind a circle of links", CATALOG, "check --root loop", ["--root"], (link("loop", "loop"),)),
    Row("an experiment that is not there", CATALOG, ["check", "no-such", *IN_REPOSITORY], ["no-such", made_up.SLUG],
        (repository(),)),
    Row("figures of no experiment", CATALOG, ["figures", "no-such", *IN_REPOSITORY], ["no-such"], (repository(),)),
    Row("no run to publish", CATALOG, ["publish", "nowhere", *IN_REPOSITORY], ["nowhere", "results.json"],
        (repository(),)),
    Row("a run behind a long name", CATALOG, ["publish", LONG_NAME, *IN_REPOSITORY], ["nnn"], (repository(),)),
    Row("a run that is not finished", CATALOG, PUBLISH, ["holds no results.json", "finished"],
        (repository(), gone("run/results.json"))),
    Row("a run without metrics", CATALOG, PUBLISH, ["holds no metrics.jsonl"], (repository(), gone("run/metrics.jsonl"))),
    Row("a result that is a list", CATALOG, PUBLISH, ["run/results.json", "object"],
        (repository(), write("run/results.json", "[]"))),
    Row("a result that is not JSON", CATALOG, PUBLISH, ["run/results.json", "JSON"],
        (repository(), write("run/results.json", "{"))),
    Row("a result nested without end", CATALOG, PUBLISH, ["run/results.json", "JSON"],
        (repository(), write("run/results.json", DEEP))),
    Row("a result that is not UTF-8", CATALOG, PUBLISH, ["run/results.json", "JSON"],
        (repository(), write("run/results.json", b"\xff"))),
    Row("a result that has diverged", CATALOG, PUBLISH, ["run/results.json", "'test_mse'"], (repository(test_mse=None),)),
    Row("an error beyond every float", CATALOG, PUBLISH, ["'test_mse'", "finite"], (repository(test_mse=10**400),)),
    Row("a wallclock of NaN", CATALOG, PUBLISH, ["NaN is not a number"], (repository(wallclock_s=float("nan")),)),
    Row("an error for each frame ahead that is no list", CATALOG, PUBLISH, ["'closed_loop_test_mse'", "a list of"],
        (repository(closed_loop_test_mse=0.5),)),
    Row("a result of no experiment", CATALOG, PUBLISH, ["'elsewhere'"], (repository(stub="elsewhere"),)),
    Row("a preset that leads elsewhere", CATALOG, PUBLISH, ["'preset'"], (repository(preset="../../elsewhere"),)),
    Row("a preset of two lines", CATALOG, PUBLISH, ["'preset'"], (repository(preset="lap\ntop"),)),
    Row("metrics that are not UTF-8", CATALOG, PUBLISH, ["run", "metrics.jsonl"],
        (repository(), write("run/metrics.jsonl", b"\xff\n"))),
    Row("metrics with a broken line", CATALOG, PUBLISH, ["metrics.jsonl", "line 2"],
        (repository(), write("run/metrics.jsonl", '{"iteration": 0}\n{"iter'))),
    Row("metrics nested without end", CATALOG, PUBLISH, ["metrics.jsonl", "line 1"],
        (repository(), write("run/metrics.jsonl", DEEP))),
    Row("a file where results should go", CATALOG, PUBLISH, ["results"],
        (repository(), lambda world: shutil.rmtree(f"repository/{made_up.SLUG}/results"),
         write(f"repository/{made_up.SLUG}/results", ""))),
    Row("a folder where a result should go", CATALOG, PUBLISH, ["laptop-seed1"],
        (repository(), folder(f"repository/{made_up.SLUG}/results/laptop-seed1.json"))),
    Row("a committed result in the wrong place", CATALOG, ["results", *IN_REPOSITORY], [COMMITTED, "'stub'"],
        (repository(), json_with(COMMITTED, stub="elsewhere"))),
    Row("a committed result of another seed", CATALOG, ["results", "--check", *IN_REPOSITORY], [COMMITTED, "seed3.json"],
        (repository(), json_with(COMMITTED, seed=3))),
    Row("a committed result that lacks a key", CATALOG, ["results", *IN_REPOSITORY], [COMMITTED, "'source.commit'"],
        (repository(), json_with(COMMITTED, source__commit=KeyError))),
    Row("an experiment with a capital", CATALOG, ["new", "My-Idea", *IN_REPOSITORY], ["'My-Idea'"], (repository(),)),
    Row("an experiment without a name", CATALOG, ["new", "", *IN_REPOSITORY], ["NAME ''"], (repository(),)),
    Row("an experiment of two lines", CATALOG, ["new", "my\nidea", *IN_REPOSITORY], ["NAME"], (repository(),)),
    Row("an experiment with a long name", CATALOG, ["new", LONG_NAME, *IN_REPOSITORY], ["NAME nnn"], (repository(),)),
    Row("an experiment that is there", CATALOG, ["new", made_up.SLUG, *IN_REPOSITORY], ["exists already"], (repository(),)),
]  # fmt: skip

RUN = ["--run", "run", "--out", "out"]
ANOTHER = {ES: BPTT, BPTT: ES, READOUT: ES, TRUNCATED: RANK, RANK: TRUNCATED}
DRAWINGS = [
    *(
        Row(f"{name}: {what}", script, words, says, (saved(slug), *damage), types_it=what == "a flag that is not there")
        for kind in (DRAW, GIF)
        for slug, script in kind.items()
        for name in (Path(script).stem,)
        for what, words, says, damage in (
            ("a flag that is not there", [*RUN, "--colour", "red"], ["--colour"], ()),
            ("a run of another experiment", ["--run", "other", "--out", "out"], ["other/results.json"],
             (saved(ANOTHER[slug], "other"),)),
            ("a run that is not finished", RUN, ["run/results.json", "cannot be read"], (gone("run/results.json"),)),
            ("a run without figures", RUN, ["run/figures.npz"], (gone("run/figures.npz"),)),
        )
    ),
    *(
        Row(f"{Path(script).stem}: {what}", script, words, says, damage)
        for script, what, words, says, damage in (
            (DRAW[ES], "no run", RUN, ["--run run", "is not a folder"], ()),
            (GIF[BPTT], "a file for a run", RUN, ["--run run"], (write("run", ""),)),
            (DRAW[READOUT], "a run behind a long name", ["--run", LONG_NAME, "--out", "out"], ["--run nnn"], ()),
            (DRAW[BPTT], "an empty name of a run", ["--run", "", "--out", "out"], ["--run"], ()),
            (GIF[ES], "an empty name of the output", ["--run", "run", "--out", ""], ["--out"], (saved(ES),)),
            (DRAW[ES], "a file for the output", RUN, ["--out out"], (saved(ES), write("out", ""))),
            (GIF[READOUT], "an output below a file", ["--run", "run", "--out", "a/b"], ["--out a/b"],
             (saved(READOUT), write("a", ""))),
            (GIF[BPTT], "an output behind a long name", ["--run", "run", "--out", LONG_NAME], ["--out nnn"],
             (saved(BPTT),)),
            (DRAW[BPTT], "a result that is a list", RUN, ["run/results.json", "object"],
             (saved(BPTT), write("run/results.json", "[]"))),
            (DRAW[ES], "a result nested without end", RUN, ["run/results.json"],
             (saved(ES), write("run/results.json", DEEP))),
            (GIF[ES], "a result that is not UTF-8", RUN, ["run/results.json"],
             (saved(ES), write("run/results.json", b"\xff"))),
            (DRAW[READOUT], "an error beyond every float", RUN, ["run/results.json", "test_mse"],
             (saved(READOUT), json_with("run/results.json", test_mse=10**400))),
            (GIF[BPTT], "a run that has diverged", RUN, ["run/results.json", "test_mse"],
             (saved(BPTT), json_with("run/results.json", test_mse=None))),
            (GIF[ES], "a size that is a text", RUN, ["run/results.json", "hidden_size"],
             (saved(ES), json_with("run/results.json", config__hidden_size="24"))),
            (GIF[READOUT], "no configuration", RUN, ["run/results.json"],
             (saved(READOUT), json_with("run/results.json", config=KeyError))),
            (DRAW[ES], "metrics that are not UTF-8", RUN, ["run/metrics.jsonl"],
             (saved(ES), write("run/metrics.jsonl", b"\xff"))),
            (DRAW[BPTT], "metrics of nothing", RUN, ["run/metrics.jsonl", "no metrics"],
             (saved(BPTT), write("run/metrics.jsonl", ""))),
            (GIF[ES], "metrics nested without end", RUN, ["run/metrics.jsonl", "line 1"],
             (saved(ES), write("run/metrics.jsonl", DEEP))),
            (DRAW[READOUT], "metrics beyond every float", RUN, ["run/metrics.jsonl", "line 1"],
             (saved(READOUT), write("run/metrics.jsonl", f'{{"iteration": 0, "train_loss": {10**400}}}\n'))),
            (GIF[READOUT], "an iteration that is no number", RUN, ["run/metrics.jsonl", "line 1"],
             (saved(READOUT), write("run/metrics.jsonl", '{"iteration": "none"}\n'))),
            (GIF[BPTT], "an iteration without end", RUN, ["run/metrics.jsonl", "line 1"],
             (saved(BPTT), write("run/metrics.jsonl", '{"iteration": 1e999}\n'))),
            (DRAW[READOUT], "truncated figures", RUN, ["run/figures.npz"], (saved(READOUT), cut("run/figures.npz", 0.5))),
            (GIF[ES], "figures of nothing", RUN, ["run/figures.npz"], (saved(ES), write("run/figures.npz", ""))),
            (DRAW[ES], "encrypted figures", RUN, ["run/figures.npz"], (saved(ES), encrypted)),
            (GIF[READOUT], "a plain array for figures", RUN, ["run/figures.npz"],
             (saved(READOUT), write("run/figures.npz", numpy_bytes(np.zeros(3))))),
            (DRAW[BPTT], "errors ahead in words", RUN, ["run/results.json", "'closed_loop_test_mse'"],
             (saved(BPTT), json_with("run/results.json", closed_loop_test_mse=["x"]))),
            (DRAW[READOUT], "no errors ahead", RUN, ["run/results.json", "'trivial_closed_loop_test_mse.ar3'"],
             (saved(READOUT), json_with("run/results.json", closed_loop_test_mse=[1.0],
                                        trivial_closed_loop_test_mse={"ar3": []}))),
            (GIF[ES], "sequence zero", [*RUN, "--sequence", "0"], ["--sequence 0", "1 … 3"], (saved(ES),)),
            (GIF[BPTT], "a sequence too many", [*RUN, "--sequence", "4"], ["--sequence 4", "1 … 3"], (saved(BPTT),)),
            (GIF[BPTT], "a sequence in words", [*RUN, "--sequence", "one"], ["--sequence", "'one'"], (saved(BPTT),)),
            (DRAW[BPTT], "no measurement", [*RUN, "--measurement", "a.json"], ["a.json"], (saved(BPTT),)),
            (DRAW[BPTT], "an empty measurement", [*RUN, "--measurement", "a.json"], ["a.json"],
             (saved(BPTT), write("a.json", '{"rows": [], "sizes": {}, "environment": {"device_name": "x"}}'))),
            (DRAW[BPTT], "a measurement beyond every float", [*RUN, "--measurement", "a.json"], ["a.json"],
             (saved(BPTT), write("a.json", (ROOT / BPTT / "measurements/memory_by_length.json").read_text()),
              lambda world: change_a_row(Path("a.json"), peak_bytes=10**400))),
            (DRAW[BPTT], "a measurement without its sizes", [*RUN, "--measurement", "a.json"], ["a.json"],
             (saved(BPTT), write("a.json", (ROOT / BPTT / "measurements/memory_by_length.json").read_text()),
              json_with("a.json", sizes={}))),
            (DRAW[BPTT], "a measurement with a row too few", [*RUN, "--measurement", "a.json"], ["a.json"],
             (saved(BPTT), write("a.json", (ROOT / BPTT / "measurements/memory_by_length.json").read_text()),
              lambda world: change_a_row(Path("a.json"), method="rtrl"))),
            (DRAW[READOUT], "a sweep of nothing", [*RUN, "--sweep", "a.json"], ["a.json"],
             (saved(READOUT), write("a.json", '{"problem": {}, "rows": []}'))),
            (DRAW[READOUT], "a sweep beyond every float", [*RUN, "--sweep", "a.json"], ["a.json"],
             (saved(READOUT), write("a.json", json.dumps({"problem": {}, "rows": [dict.fromkeys(
                 ("leak", "gain", "input_scale", "train_sequences", "validation_mse"), 10**400)]})))),
            (DRAW[READOUT], "a folder for a sweep", [*RUN, "--sweep", "."], ["cannot be read"], (saved(READOUT),)),
        )
    ),
]  # fmt: skip


OUT, OUTPUT = ["--out", "new/a.json"], ["--quick", "--output", "new/a.json"]
FEW = "--leaks 0.5 --gains 0.5 --input-scales 0.1 --hidden-size 50 --train-sequences 2 --final-sequences 2".split()
MEASUREMENTS = [
    Row("sweep: a flag that is not there", SWEEP, [*FEW, *OUT, "--frobnicate"], ["--frobnicate"], types_it=True),
    Row("sweep: a leak above one", SWEEP, [*FEW, *OUT, "--leaks", "0.5,1.5"], ["--leaks", "≤ 1"]),
    Row("sweep: no leaks", SWEEP, [*FEW, *OUT, "--leaks", ""], ["--leaks"]),
    Row("sweep: a gain of NaN", SWEEP, [*FEW, *OUT, "--gains", "nan"], ["--gains"]),
    Row("sweep: other separators", SWEEP, [*FEW, *OUT, "--input-scales", "1;2"], ["--input-scales", "1;2"]),
    Row("sweep: no finalist", SWEEP, [*FEW, *OUT, "--finalists", "0"], ["--finalists", "from 1"]),
    Row("sweep: fewer units than entries", SWEEP, [*FEW, *OUT, "--hidden-size", "49"], ["--hidden-size", "from 50"]),
    Row("sweep: a GPU that is not there", SWEEP, [*FEW, *OUT, "--device", "cuda"], ["--device cuda"], needs="no CUDA"),
    Row("sweep: a folder for the file", SWEEP, [*FEW, "--out", "."], ["--out .", "cannot be written"]),
    Row("sweep: a file below a file", SWEEP, [*FEW, "--out", "a/b"], ["--out a/b"], (write("a", ""),)),
    Row("sweep: an empty name", SWEEP, [*FEW, "--out", ""], ["--out"]),
    Row("sweep: a long name", SWEEP, [*FEW, "--out", LONG_NAME], ["--out nnn"]),
    Row("sweep: another file", SWEEP, [*FEW, "--out", "a.json"], ["--out a.json"], (write("a.json", "[]"),)),
    Row("sweep: a file nested without end", SWEEP, [*FEW, "--out", "a.json"], ["--out a.json"], (write("a.json", DEEP),)),
    Row("sweep: a file that is not UTF-8", SWEEP, [*FEW, "--out", "a.json"], ["--out a.json"], (write("a.json", b"\xff"),)),
    Row("sweep: rows that are no rows", SWEEP, [*FEW, "--out", "a.json"], ["--out a.json"],
        (write("a.json", '{"problem": {}, "sources": [], "rows": [[]]}'),)),
    Row("sweep: of another problem", SWEEP, [*FEW, "--out", "a.json"], ["--out a.json", "another problem"],
        (write("a.json", '{"problem": {}, "sources": [], "rows": []}'),)),
    Row("sweep: under torchrun", SWEEP, [*FEW, *OUT], ["with python, not torchrun"], (
        environment("RANK", "0"), environment("WORLD_SIZE", "1"), environment("MASTER_ADDR", "127.0.0.1"),
        environment("MASTER_PORT", "0"))),
    Row("cosine: a flag that is not there", COSINE, [*OUT, "--frobnicate"], ["--frobnicate"], types_it=True),
    Row("cosine: a single population", COSINE, [*OUT, "--populations", "1"], ["--populations", "from 2"]),
    Row("cosine: a negative σ", COSINE, [*OUT, "--sigma", "-1"], ["--sigma"]),
    Row("cosine: no such run", COSINE, [*OUT, "--run", "nowhere"], ["--run", "nowhere"]),
    Row("cosine: nothing to redraw", COSINE, [*OUT, "--redraw"], ["cosine_by_dimensions.json"]),
    Row("memory: a flag that is not there", MEMORY, [*OUT, "--frobnicate"], ["--frobnicate"], types_it=True),
    Row("memory: a length of zero", MEMORY, [*OUT, "--lengths", "20,0"], ["--lengths", "from 1"]),
    Row("memory: a comma too many", MEMORY, [*OUT, "--lengths", "20,"], ["--lengths", "20,"]),
    Row("memory: a way that is not there", MEMORY, [*OUT, "--only", "rtrl"], ["--only", "rtrl"]),
    Row("memory: a rank above the size", MEMORY, [*OUT, "--hidden-size", "24", "--in-degree", "4", "--rank", "25"],
        ["--rank", "--hidden-size"]),
    Row("memory: more units than fit anywhere", MEMORY, [*OUT, "--hidden-size", "9" * 15], ["--hidden-size"]),
    Row("memory: more sequences than fit anywhere", MEMORY, [*OUT, "--batch-size", "9" * 15], ["--batch-size"]),
    Row("memory: more steps than fit anywhere", MEMORY, [*OUT, "--lengths", "9" * 15], ["--lengths"]),
    Row("memory: a folder for the file", MEMORY, "--out .", ["--out .", "cannot be written"]),
    Row("memory: a file below a file", MEMORY, "--out a/b", ["--out a/b"], (write("a", ""),)),
    *(
        Row(f"benchmark {name}: a flag that is not there", f"benchmarks/{name}.py", [*OUTPUT, "--frobnicate"],
            ["--frobnicate"], types_it=True, needs="reservoirpy" if name == "reservoir_step" else "")
        for name in ("efficiency", "es_machinery", "growth", "iteration", "moving_mnist_generator", "peer_loop", "ranks",
                     "reservoir_step", "roofline")
    ),
    *(
        Row(f"benchmark {name}: {what}", f"benchmarks/{name}.py", words, says, before)
        for name, what, words, says, before in (
            ("peer_loop", "no round", [*OUTPUT, "--rounds", "0"], ["--rounds", "≥ 1"], ()),
            ("roofline", "rounds in words", [*OUTPUT, "--rounds", "ten"], ["--rounds", "'ten'"], ()),
            ("moving_mnist_generator", "a folder for the file", ["--quick", "--output", "."], ["--output ."], ()),
            ("growth", "a file below a file", ["--quick", "--output", "a/b"], ["--output a/b"], (write("a", ""),)),
            ("efficiency", "an empty name", ["--quick", "--output", ""], ["--output"], ()),
            ("peer_loop", "a long name", ["--quick", "--output", LONG_NAME], ["--output nnn"], ()),
            ("efficiency", "threads below zero", [*OUTPUT, "--threads", "-3"], ["--threads", "≥ 0"], ()),
            ("roofline", "a GPU's kernel", [*OUTPUT, "--kernel", "fused"], ["--kernel fused", "CUDA"], ()),
            ("roofline", "another dtype", [*OUTPUT, "--dtype", "float64"], ["--dtype", "float64"], ()),
            ("ranks", "a throughput of zero", [*OUTPUT, "--throughputs", "1e6,0"], ["--throughputs", "> 0"], ()),
            ("ranks", "a throughput in words", [*OUTPUT, "--throughputs", "fast"], ["--throughputs", "fast"], ()),
            ("ranks", "under torchrun", OUTPUT, ["start it with python"], (environment("RANK", "0"),)),
            ("iteration", "a preset that is not there", ["--output", "new/a.json", "--presets", "huge"],
             ["--presets", "'huge'"], ()),
            ("es_machinery", "another file in its place", ["--quick", "--output", "a.json"], ["--output a.json"],
             (write("a.json", "{"),)),
            ("es_machinery", "a list in its place", ["--quick", "--output", "a.json"], ["--output a.json"],
             (write("a.json", "[]"),)),
            ("run", "a flag that is not there", ["--quick", "--frobnicate"], ["--frobnicate"], ()),
            ("run", "a benchmark that is not there", ["--quick", "--only", "ranks,grow"], ["--only", "'grow'"], ()),
            ("run", "no benchmark", ["--quick", "--only", ""], ["--only", "''"], ()),
            ("page", "a flag that is not there", ["--folder", ".", "--frobnicate"], ["--frobnicate"], ()),
            ("page", "no folder", ["--folder", "nowhere"], ["--folder nowhere"], ()),
            ("page", "no folder to check", ["--check", "--folder", "nowhere"], ["--folder nowhere"], ()),
            ("page", "a result that is not JSON", ["--folder", "."], ["results/ranks.json"],
             (write("results/ranks.json", "{"),)),
            ("page", "a result nested without end", ["--folder", "."], ["results/ranks.json"],
             (write("results/ranks.json", DEEP),)),
            ("page", "a result of another benchmark", ["--folder", "."], ["results/ranks.json"],
             (write("results/ranks.json", '{"benchmark": "growth"}'),)),
            ("page", "a result without content", ["--folder", "."], ["ranks.json"],
             (write("results/ranks.json", '{"benchmark": "ranks"}'),)),
            ("page", "a GPU's result without hardware", ["--folder", "."], ["roofline-cuda.json"],
             (write("results/roofline-cuda.json", '{"benchmark": "roofline"}'),)),
        )
    ),
]  # fmt: skip

OF_STUDIES = [
    Row(f"{Path(script).stem}: {what}", script, words, says, before, types_it=what == "a flag that is not there")
    for slug, module in STUDIES.items()
    for script, rows in {
        f"{slug}/{module}.py": (
            ("a flag that is not there", ["--frobnicate"], ["--frobnicate"], ()),
            ("a preset that is not there", ["--preset", "huge"], ["--preset", "'huge'"], ()),
            ("a sweep that is not there", ["--only", "colour"], ["--only colour", "no such sweep in preset laptop"], ()),
            ("a run and a half at once", ["--at-once", "1.5"], ["--at-once"], ()),
            ("two things to do", ["--dry-run", "--tables"], ["--dry-run and --tables: choose one"], ()),
            ("tables of nothing", ["--tables", "--run-dir", "nowhere"], ["nowhere/study.json", "cannot be read"], ()),
            ("tables of no JSON", ["--tables", "--run-dir", "run"], ["run/study.json"], (write("run/study.json", DEEP),)),
            ("tables of another study", ["--tables", "--run-dir", "run"], ["run/study.json", slug],
             (write("run/study.json", json.dumps(made_up.study_content(first={(4, 0): 0.5}))),)),
            ("an empty run folder", ["--run-dir", ""], ["--run-dir"], ()),
            ("runs below a file", ["--preset", "smoke", "--run-dir", "a/b"], ["--run-dir a/b"], (write("a", ""),)),
        ),
        **{
            f"{slug}/{name}.py": (
                ("a flag that is not there", ["--run", "run", "--colour", "red"], ["--colour"], ()),
                ("no run", ["--run", "nowhere"], ["nowhere/study.json", "cannot be read"], ()),
                ("a study that is a list", ["--run", "run", "--out", "out"], ["run/study.json"], (write("run/study.json", "[]"),)),
                ("a file for the output", ["--run", "run", "--out", "out"], ["--out out"], (write("out", ""),)),
            )
            for name in (f"visualize_{module}", f"make_{module}_gif")
        },
    }.items()
    for what, words, says, before in rows
]  # fmt: skip

TABLE = [*VALUES, *FLAGS, *PLACES, *RUNS, *FILES, *RESULTS, *DRAWINGS, *MEASUREMENTS, *OF_STUDIES]
# The default run types one row of the scripts that people start most; that of the others takes two seconds a script.
SELDOM = ("benchmarks/", "visualize_moving_mnist_bptt", "visualize_reservoir", "visualize_ablation", "gif")
TYPED = [row for row in TABLE if row.types_it]


# --- The tests -------------------------------------------------------------------------------------------------------


def load(path: Path):
    """A script as a module, loaded once."""
    if path.parent.name == "common":
        return importlib.import_module(f"common.{path.stem}")
    with pytest.MonkeyPatch.context() as patch:
        patch.syspath_prepend(str(path.parent))
        return importlib.import_module(path.stem)


@pytest.fixture(scope="module")
def runs(tmp_path_factory) -> dict[str, Path]:
    """A finished run of each experiment, of three iterations."""
    made = {}
    for slug, words in TINY.items():
        made[slug] = tmp_path_factory.mktemp("runs") / slug
        threads = torch.get_num_threads()
        assert load(script_of(slug)).main([*words, "--run-dir", str(made[slug])]) == 0
        torch.set_num_threads(threads)
    return made


def prepare(row: Row, place: Path, runs: dict[str, Path], monkeypatch) -> Callable[[], dict]:
    """Make the row's folder the working directory and put into it what the row needs; a function that sees what there is."""
    if row.needs == "no CUDA" and torch.cuda.is_available():
        pytest.skip("this machine has CUDA")
    if row.needs not in ("", "no CUDA"):
        pytest.importorskip(row.needs)
    look = partial(what_there_is, place, Path(os.environ["MOVING_MNIST_CACHE"]).absolute())
    place.mkdir()
    monkeypatch.chdir(place)
    for step in row.before:
        step(World(runs, monkeypatch))
    return look


def what_there_is(place: Path, cache_of_the_session: Path) -> dict:
    """Every file that a row might touch; links are what they point to, as text."""
    links = {path: os.readlink(path) for path in place.rglob("*") if path.is_symlink()}
    return {**snapshot(place, cache_of_the_session), **links}


def assert_refused(row: Row, code: int, stdout: str, stderr: str) -> None:
    assert code == 2, stderr
    assert stdout == ""
    assert stderr.count("\n") == 1 and stderr.endswith("\n"), stderr
    assert stderr.startswith(f"{script_of(row.script).name}: error: "), stderr
    for fragment in row.says:
        assert fragment in stderr


@pytest.mark.parametrize("row", TABLE, ids=lambda row: row.name)
def test_it_is_refused_in_one_line_and_nothing_is_touched(row, runs, tmp_path, monkeypatch, capsys):
    module, threads = load(script_of(row.script)), torch.get_num_threads()
    look = prepare(row, tmp_path / "here", runs, monkeypatch)
    before = look()
    monkeypatch.setattr(sys, "argv", [str(script_of(row.script)), *row.arguments])
    capsys.readouterr()
    sys.stderr.reconfigure(errors="backslashreplace")  # as Python's own
    try:
        with pytest.raises(SystemExit) as ended:
            run_main(module.main)
    finally:
        torch.set_num_threads(threads)
    assert_refused(row, ended.value.code, *capsys.readouterr())
    assert look() == before


def seldom(row: Row) -> bool:
    return any(part in row.script for part in SELDOM)


@pytest.mark.parametrize(
    "rows",
    [
        pytest.param([row for row in TYPED if not seldom(row)], id="experiments, catalog, measurements"),
        pytest.param([row for row in TYPED if seldom(row)], id="drawings, benchmarks", marks=pytest.mark.slow),
    ],
)
def test_so_it_is_where_a_user_types_it(rows, runs, tmp_path, monkeypatch):
    """Side by side, and looked at together: two processes at a time."""
    looks = [prepare(row, tmp_path / str(number), runs, monkeypatch) for number, row in enumerate(rows)]
    before = [look() for look in looks]

    def type_it(number: int) -> subprocess.CompletedProcess:
        script, words = script_of(rows[number].script), [os.fsencode(word) for word in rows[number].arguments]
        program = ["-m", f"common.{script.stem}"] if rows[number].script in (CATALOG, MANY) else [script]
        return subprocess.run(
            [sys.executable, *program, *words], cwd=tmp_path / str(number), capture_output=True, timeout=PATIENCE_S
        )

    with ThreadPoolExecutor(2) as pool:
        ends = list(pool.map(type_it, range(len(rows))))
    for row, end in zip(rows, ends):
        assert_refused(row, end.returncode, end.stdout.decode(), end.stderr.decode())
    assert [look() for look in looks] == before


def test_every_script_has_a_row_that_is_typed():
    """Whoever adds a script with a command line adds rows."""
    scripts = [
        path
        for folder in (*TINY, *STUDIES, "benchmarks", "common")
        for path in (ROOT / folder).glob("*.py")
        if "\n    run_main(" in path.read_text()
    ]
    typed = {script_of(row.script) for row in TYPED} | {ROOT / "benchmarks" / f"{name}.py" for name in ("run", "page")}
    assert set(scripts) == typed


def test_no_two_rows_have_one_name():
    names = [row.name for row in TABLE]
    assert len(set(names)) == len(names) and len(names) > 200


# --- What is no mistake ----------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("words", "name", "value"),
    [("--seed 1_000", "seed", 1000), ("--seed ٣", "seed", 3), ("--seed +5", "seed", 5), ("--sigma 1_0.5", "sigma", 10.5),
     ("--leak .5", "leak", 0.5), ("--hidden-size 0064", "hidden_size", 64)],
)  # fmt: skip
def test_a_number_is_what_python_takes_for_one(words, name, value):
    """Underscores between digits and the digits of any script mean one number only, and config.json says which."""
    config, _ = load(script_of(ES)).parse_arguments(["--preset", "smoke", *words.split()])
    assert getattr(config, name) == value


def test_of_a_flag_given_twice_the_last_counts():
    """As everywhere: a script may append what the user has typed."""
    config, _ = load(script_of(READOUT)).parse_arguments("--preset laptop --seed 1 --preset smoke --seed 2".split())
    assert (config.seed, config.hidden_size) == (2, 64)
