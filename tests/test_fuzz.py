"""Command lines, configurations and damage that nobody thought of: a run ends well or is refused, and nothing else happens.

The default run draws the same examples every time. `pytest -m slow` draws many more, new ones each time, and prints the seed
that draws them again: `FUZZ_SEED=… pytest -m slow tests/test_fuzz.py`.
"""

import dataclasses
import importlib
import json
import math
import os
import random
import shutil
import tempfile
import types
import typing
from pathlib import Path

import pytest
import torch
from conftest import ROOT, results, snapshot
from hypothesis import HealthCheck, configuration, given, seed, settings
from hypothesis import strategies as st

from common.encoder import Encoder
from common.errors import BadInput, Fault
from common.results import read_result

pytestmark = pytest.mark.promise("bad input")

ES, BPTT, READOUT = "moving-mnist-es-reservoir", "moving-mnist-bptt-baseline", "reservoir-readout-only"
TRUNCATED, RANK = "truncated-es", "rank-space-es"
SLUGS = st.sampled_from([ES, BPTT, READOUT, TRUNCATED, RANK])
EXAMPLES = pytest.mark.parametrize("many", [False, pytest.param(True, marks=pytest.mark.slow)], ids=["few", "many"])

# By default it is the working directory.
configuration.set_hypothesis_home_dir(Path(tempfile.gettempdir()) / "hypothesis")


def check_all(check, strategy, examples: int, new: bool) -> None:
    """check(value) for so many values of the strategy; a value that fails is made as small as can be and shown.

    new: not the same examples as last time.
    """
    options = {"max_examples": examples, "deadline": None, "database": None, "report_multiple_bugs": False}
    options["suppress_health_check"] = [HealthCheck.too_slow, HealthCheck.data_too_large]
    run = settings(**options, derandomize=not new)(given(strategy)(check))
    if new:
        number = int(os.environ.get("FUZZ_SEED") or random.SystemRandom().randrange(2**32))
        print(f"FUZZ_SEED={number}")
        run = seed(number)(run)
    run()


def load(slug: str):
    """An experiment as a module."""
    with pytest.MonkeyPatch.context() as patch:
        patch.syspath_prepend(str(ROOT / slug))
        return importlib.import_module(slug.replace("-", "_"))


def start(slug: str, words: list[str]) -> int:
    """Exit code of a run in this process. A run sets the number of torch's threads; that is undone."""
    threads = torch.get_num_threads()
    try:
        return load(slug).main(words)
    finally:
        torch.set_num_threads(threads)


@pytest.fixture(autouse=True)
def one_calibration(monkeypatch):
    """The encoder is calibrated once and not for each new size of a data set: that takes two seconds and gives the same numbers,
    for data and encoder have the same seeds throughout this file."""
    calibrate, known = Encoder.calibrate, []

    def once(self, data, *arguments) -> None:
        assert data.seed == 0
        if not known:
            calibrate(self, data, *arguments)
            known.extend((self.shift_E, self.scale_E))
        self.shift_E, self.scale_E = known

    monkeypatch.setattr(Encoder, "calibrate", once)


# --- What a Config allows --------------------------------------------------------------------------------------------


@dataclasses.dataclass(frozen=True)
class Field:
    """A setting of a Config, as the command line sees it."""

    name: str
    kind: type
    least: float | None
    above: float | None
    most: float | None
    choices: tuple | None

    @property
    def flag(self) -> str:
        return "--" + self.name.replace("_", "-")

    def allows(self, value) -> bool:
        if type(value) is not self.kind or (self.kind is float and not math.isfinite(value)):
            return False
        return (
            (self.choices is None or value in self.choices)
            and (self.least is None or value >= self.least)
            and (self.above is None or value > self.above)
            and (self.most is None or value <= self.most)
        )

    def words(self, value) -> list[str]:
        if self.kind is bool:
            return [self.flag if value else self.flag.replace("--", "--no-", 1)]
        return [] if value is None else [f"{self.flag}={value}"]


def fields_of(slug: str) -> list[Field]:
    config_class, fields = load(slug).Config, []
    hints = typing.get_type_hints(config_class)
    for field in dataclasses.fields(config_class):
        kind = hints[field.name]
        if isinstance(kind, types.UnionType):
            kind = next(member for member in typing.get_args(kind) if member is not types.NoneType)
        limits = {name: field.metadata[name] for name in ("least", "above", "most", "choices")}
        fields.append(Field(field.name, kind, **limits))
    return fields


# --- Any words -------------------------------------------------------------------------------------------------------

ODD = ["", " ", "-", "--", "-1", "0", "1", "2", "1e3", "1e999", "-1e-3", "nan", "-inf", "٣", "1_000", " 7 ", "0x1", "1.0", "\n", "ﬁ",
       "=", "--seed", "-h", "--help", "None", "True", "9" * 30, "1" * 5000, "auto", "cpu", "smoke", "float64", "rank1"]  # fmt: skip
TEXTS = st.one_of(
    st.sampled_from(ODD),
    st.text(max_size=6),
    st.integers().map(str),
    st.integers(0, 100).map(str),
    st.floats().map(repr),
)


@st.composite
def any_words(draw) -> tuple[str, list[str]]:
    """An experiment and up to six flags with values that may be anything."""
    slug, words = draw(SLUGS), ["--preset", "smoke"]
    fields = fields_of(slug)
    for field in draw(st.lists(st.sampled_from(fields), max_size=6)):
        choices = st.sampled_from([str(choice) for choice in field.choices or ("3",)])
        text = draw(st.one_of(TEXTS, choices))
        if field.kind is bool and draw(st.booleans()):
            words += field.words(draw(st.booleans()))
        elif field.kind is bool or draw(st.booleans()):
            words.append(f"{field.flag}={text}")
        else:
            words += [field.flag, text]
    return slug, words


@EXAMPLES
def test_any_flags_give_a_configuration_within_its_limits_or_one_line_that_names_a_flag(many):
    def check(drawn) -> None:
        slug, words = drawn
        try:
            config, options = load(slug).parse_arguments(words)
        except BadInput as error:
            line = " ".join(str(error).split())  # as `run_main` prints it
            flags = {word.split("=")[0] for word in words if word.startswith("--")}
            # Where a value looks like a flag, or like the end of all flags, it is the one that is named.
            assert any(name and name in line for name in flags | {" ".join(word.split()) for word in words})
            return
        fields = fields_of(slug)
        for field in fields:
            value = getattr(config, field.name)
            assert field.allows(value) or (value is None and field.kind is str), field.name
        again = [word for field in fields for word in field.words(getattr(config, field.name))]
        assert load(slug).parse_arguments(["--preset", options.preset, *again])[0] == config

    check_all(check, any_words(), 3000 if many else 200, many)


# --- Any configuration that is allowed -------------------------------------------------------------------------------

# Settings that say how much there is to do, and those that would take another machine or other files.
SIZES = {
    "hidden_size": st.integers(2, 24), "grown_from": st.sampled_from([0, 5, 9]), "rank": st.integers(1, 24), "in_degree": st.integers(1, 24),
    "sequence_length": st.sampled_from([1, 2, 4]), "train_sequences": st.sampled_from([1, 2, 9]),
    "validation_sequences": st.sampled_from([1, 2]), "test_sequences": st.sampled_from([1, 2]),
    "iterations": st.integers(1, 2), "population_pairs": st.sampled_from([1, 2, 3, 9]), "batch_size": st.integers(1, 4),
    "decoder_batch_size": st.integers(1, 4), "decoder_warmup": st.sampled_from([0, 1, 9]), "decoder_steps": st.integers(1, 3),
    "horizon": st.sampled_from([0, 1, 3]), "window": st.sampled_from([1, 2, 4]), "members": st.sampled_from([2, 3, 9]),
    "threads": st.sampled_from([0, 1, 3]), "dtype": st.sampled_from(["float32", "float64"]),
}  # fmt: skip
LEFT_ALONE = {
    "data_seed", "encoder_seed", "digit_source", "mnist_dir", "public_test_file", "device", "backend", "kernel", "tensorboard",
    "rank_timeout", "start_from",
}  # fmt: skip
SCALES = [1e-300, 1e-40, 1e-12, 1e-3, 0.1, 0.5, 1.0, 3.0, 1e3, 1e12, 1e30, 1e300]


def values_of(field: Field) -> st.SearchStrategy:
    if field.name in SIZES:
        return SIZES[field.name]
    if field.kind is bool:
        return st.booleans()
    if field.choices:
        return st.sampled_from(field.choices)
    if field.kind is int:
        small = st.integers(int(field.least), int(field.least) + 3)
        return small if field.most is None else st.one_of(small, st.just(int(field.most)))
    assert field.kind is float, f"{field.name}: say here what it may be"
    scales = [value for value in SCALES if field.allows(value)]
    return st.sampled_from(scales + [float(limit) for limit in (field.least, field.most) if limit is not None])


@st.composite
def any_configuration(draw) -> tuple[str, list[str]]:
    """Every setting is left as it is or drawn: at first most are left, as a mistake shows best alone."""
    slug = draw(SLUGS)
    values = {
        field.name: draw(st.none() | values_of(field)) for field in fields_of(slug) if field.name not in LEFT_ALONE
    }
    tiny = {"hidden_size": 12, "sequence_length": 2, "train_sequences": 2, "validation_sequences": 2, "test_sequences": 2,
            "iterations": 2, "batch_size": 2, "rank": 2, "in_degree": 3, "decoder_warmup": 1, "decoder_steps": 1,
            "population_pairs": 2, "window": 1, "members": 2, "patience": 0}  # fmt: skip
    values = {name: tiny.get(name) if value is None else value for name, value in values.items()}
    values |= {name: min(values[name], values["hidden_size"]) for name in ("rank", "in_degree") if name in values}
    words = [word for field in fields_of(slug) if field.name in values for word in field.words(values[field.name])]
    return slug, ["--preset=smoke", "--device=cpu", *words]


def without_nan(path: Path) -> list:
    """The JSON lines or the JSON object of a file; a number that JSON does not have is an error."""

    def reject(constant):
        raise AssertionError(f"{path.name} holds {constant}")

    text = path.read_text()
    return [
        json.loads(line, parse_constant=reject) for line in (text.splitlines() if path.suffix == ".jsonl" else [text])
    ]


def ends_well_or_says_why_not(slug: str, words: list[str]) -> None:
    """Every file of a run that has ended is whole. A run may be refused before it begins, or given up by rule."""
    with tempfile.TemporaryDirectory() as place:
        folder = Path(place) / "run"
        try:
            assert start(slug, [*words, "--run-dir", str(folder)]) == 0
        except BadInput:
            assert not folder.exists()
        except Fault:
            assert (folder / "checkpoint.pt").exists() and not (folder / "results.json").exists()
        else:
            without_nan(folder / "results.json")
            lines = without_nan(folder / "metrics.jsonl")
            result = read_result(folder / "results.json")
            assert [line["iteration"] for line in lines] == list(range(result["iterations"] + 1))


@EXAMPLES
def test_any_configuration_that_is_allowed_ends_well(many):
    check_all(lambda drawn: ends_well_or_says_why_not(*drawn), any_configuration(), 1500 if many else 40, many)


TINY = """--preset smoke --device cpu --hidden-size 12 --in-degree 3 --sequence-length 2 --train-sequences 2 --validation-sequences 2
    --test-sequences 2 --iterations 3 --batch-size 2 --evaluate-every 1 --checkpoint-every 1""".split()
OWN = {
    ES: "--rank 2 --population-pairs 2 --decoder-warmup 1 --decoder-batch-size 2".split(),
    BPTT: "--rank 2".split(),
    READOUT: "--decoder-steps 2".split(),
    TRUNCATED: "--rank 2 --window 1 --members 2 --decoder-warmup 1 --decoder-batch-size 2".split(),
    RANK: "--rank 2 --window 1 --probes 2 --decoder-warmup 1 --decoder-batch-size 2".split(),
}


@pytest.mark.parametrize(
    ("slug", "words"),
    [
        (ES, "--population-pairs 1 --batch-size 1 --rank 1 --decoder-warmup 0 --decoder-batch-size 1"),
        (ES, "--train-sequences 1 --validation-sequences 1 --test-sequences 1 --sequence-length 1"),
        (ES, "--topology erdos-renyi --in-degree 1 --weight-scale variance"),
        (ES, "--own-data --patience 1 --digits 2 --standardise none"),
        # Noise that vanishes in float32, and noise in which every state is saturated.
        (ES, "--sigma 1e-300"),
        (ES, "--sigma 1000 --failure penalise --failure-loss 1e300 --guard 1e-5"),
        (ES, "--sigma-schedule cosine --sigma-end 1e-300 --dtype float64"),
        (ES, "--loss-clip 1e-300 --fitness-shaping zscore"),
        (ES, "--guard 1e-9"),  # every member fails
        (ES, "--optimizer sgd --learning-rate 1e30 --momentum 0.999"),
        (ES, "--learning-rate 1e30 --noise gaussian"),
        (ES, "--decoder-learning-rate 1e30"),
        (BPTT, "--learning-rate 1e30"),
        (BPTT, "--decoder-learning-rate 1e30"),
        (BPTT, "--trains all --learning-rate 1e30"),
        (BPTT, "--core gru --learning-rate 1e30"),
        (BPTT, "--gradient-clip 1e-300"),
        (BPTT, "--trains v --rank 12 --digits 2 --batch-size 1"),
        (BPTT, "--input-scale 1000 --gain 1000 --leak 1"),
        (READOUT, "--learning-rate 1e30"),
        (TRUNCATED, "--sigma 1e-300"),
        (TRUNCATED, "--learning-rate 1e-30"),
        (TRUNCATED, "--sigma 1000 --fitness-shaping raw --learning-rate 1e30"),
        (TRUNCATED, "--batch-size 1 --rank 1 --decoder-warmup 0 --u-scale 1e-300"),
        (TRUNCATED, "--dtype float64 --measure-cosine-every 1 --decoder ridge"),
        (RANK, "--sigma 1e-300"),
        (RANK, "--sigma 1000 --learning-rate 1e30"),
        (RANK, "--batch-size 1 --rank 1 --decoder-warmup 0 --u-scale 1e-300 --optimizer adam"),
        (
            RANK,
            "--dtype float64 --measure-cosine-every 1 --decoder ridge --fitness-shaping standardised --noise independent",
        ),
        (ES, "--roll-in 1 --own-data --learning-rate 1e30"),
        (ES, "--roll-in 1 --decoder-learning-rate 1e30 --guard 1e-9"),
        (BPTT, "--roll-in 1 --core gru --learning-rate 1e30"),
        (BPTT, "--roll-in 1 --trains all --decoder-learning-rate 1e30"),
        (READOUT, "--roll-in 1 --learning-rate 1e30"),
        (TRUNCATED, "--roll-in 1e-300 --dtype float64"),
        (TRUNCATED, "--trains both --train-leak per-unit --feedback-probes 64 --learning-rate 1e30"),
        (TRUNCATED, "--trains both --optimizer muon --u-scale 1e-300 --train-leak scalar --leak-rate 1e30"),
        (RANK, "--roll-in 1 --learning-rate 1e30 --trains both --train-leak per-unit"),
        (ES, "--horizon 100 --dtype float64"),
        (TRUNCATED, "--horizon 1 --digits 2"),
        (RANK, "--horizon 3 --standardise none"),
        (READOUT, "--horizon 3 --sequence-length 1"),
        # States that are zero in float32: a ridge readout has nothing to be fitted on.
        (READOUT, "--input-scale 1e-50"),
        (READOUT, "--leak 1e-300"),
        (READOUT, "--leak 1e-160 --dtype float64"),
        (BPTT, "--trains all --leak 1e-300"),
        (READOUT, "--gain 1e-50 --seed 9223372036854775807 --reservoir-seed 9223372036854775807"),
    ],
)
def test_settings_at_the_edge_end_well(slug, words):
    ends_well_or_says_why_not(slug, [*TINY, *OWN[slug], *words.split()])


# --- Any damage ------------------------------------------------------------------------------------------------------


@pytest.fixture(scope="module")
def finished(tmp_path_factory) -> dict[str, Path]:
    """A finished run of each experiment."""
    made = {slug: tmp_path_factory.mktemp("finished") / slug for slug in OWN}
    for slug, folder in made.items():
        assert start(slug, [*TINY, *OWN[slug], "--run-dir", str(folder)]) == 0
    return made


@dataclasses.dataclass(frozen=True)
class Damage:
    """What is done to a saved run, and how it is then started."""

    slug: str
    action: str
    interrupted: bool  # one iteration is left to do
    names: tuple[str, ...]
    edits: tuple[tuple[str, float, bytes], ...]
    setting: tuple[str, object] | None  # of config.json, which is valid JSON afterwards


VALUES = st.one_of(
    st.none(),
    st.booleans(),
    st.integers(-2, 40),
    st.just(10**400),
    st.floats(),
    st.text(max_size=3),
    st.just([]),
    st.just({}),
)
DAMAGES = st.builds(
    Damage,
    slug=SLUGS,
    action=st.sampled_from(["--resume", "--evaluate"]),
    interrupted=st.booleans(),
    names=st.sampled_from([
        ("config.json",), ("metrics.jsonl",), ("checkpoint.pt",), ("checkpoint.pt", "checkpoint.previous.pt"),
        ("config.json", "metrics.jsonl", "checkpoint.pt"),
    ]),
    edits=st.lists(
        st.tuples(st.sampled_from(["flip", "cut", "insert"]), st.floats(0, 1), st.binary(min_size=1, max_size=9)),
        min_size=1, max_size=3,
    ).map(tuple),
    setting=st.none() | st.tuples(st.sampled_from([f.name for slug in OWN for f in fields_of(slug)]), VALUES),
)  # fmt: skip


def damage(folder: Path, how: Damage) -> None:
    if how.setting:
        config = json.loads((folder / "config.json").read_text())
        (folder / "config.json").write_text(json.dumps({**config, how.setting[0]: how.setting[1]}))
        return
    for name in how.names:
        content = bytearray((folder / name).read_bytes())
        for kind, share, new in how.edits:
            place = int(share * len(content))
            if kind == "cut":
                del content[place:]
            elif kind == "insert":
                content[place:place] = new
            elif place < len(content):
                content[place] ^= 1 << (new[0] % 8)
        (folder / name).write_bytes(content)


@EXAMPLES
def test_a_damaged_run_is_refused_or_ends_as_if_it_were_whole(many, finished):
    def check(how: Damage) -> None:
        with tempfile.TemporaryDirectory() as place:
            folder = Path(shutil.copytree(finished[how.slug], Path(place) / "run"))
            if how.interrupted:
                shutil.copy(folder / "checkpoint.previous.pt", folder / "checkpoint.pt")
                (folder / "results.json").unlink()
            damage(folder, how)
            before = seen(folder)
            try:
                assert start(how.slug, [*TINY, *OWN[how.slug], "--run-dir", str(folder), how.action]) == 0
            except BadInput as error:
                assert str(folder) in str(error)
                assert seen(folder) == before
                return
            if how.action == "--evaluate":
                assert seen(folder) == before
            else:
                assert results(folder)["theta_sha256"] == results(finished[how.slug])["theta_sha256"]

    check_all(check, DAMAGES, 1500 if many else 60, many)


def seen(folder: Path) -> dict:
    """Every file of a run but the one that says who is at work."""
    return {path: content for path, content in snapshot(folder).items() if path.name != ".lock"}
