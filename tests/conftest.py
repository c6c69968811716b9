"""What the tests of the command line share: one cache of encoded sequences, a tiny configuration, and ways to start a run.

A run is started in one of three ways: inside the test process (`main`, a quarter of a second), as a user does (`command`,
three seconds, most of them spent importing torch), or by torchrun (`torchrun`).
"""

import contextlib
import functools
import gc
import importlib.util
import io
import json
import os
import signal
import socket
import subprocess
import sys
import time
from pathlib import Path

import numpy as np
import pytest
import torch

from common.dist import Workers
from common.files import write_json
from common.problem import Embeddings
from common.run import environment, source

ROOT = Path(__file__).resolve().parent.parent
STUB = ROOT / "moving-mnist-es-reservoir" / "moving_mnist_es_reservoir.py"
PATIENCE_S = 120  # for a process that is expected to end or to get somewhere; a test that waits so long has failed

# Every part runs, nothing is learned. 9 pairs in tiles of 2: the last tile is half empty, and no two or three ranks get
# equal shares.
SMALL = {
    "preset": "smoke", "hidden-size": 48, "rank": 2, "in-degree": 4, "sequence-length": 3, "train-sequences": 64,
    "validation-sequences": 16, "test-sequences": 16, "iterations": 4, "population-pairs": 9, "decoder-warmup": 10, "decoder-batch-size": 8,
    "learning-rate": 0.01, "evaluate-every": 2, "checkpoint-every": 1,
}  # fmt: skip
LONG = {"iterations": 120, "evaluate_every": 5, "checkpoint_every": 10}  # a second or two, to be interrupted
TIMES = {"rollouts_per_s", "wallclock_s"}


def flags_of(small: dict, **changes) -> list[str]:
    """A configuration as command line flags: flags_of(SMALL, own_data=True, rank=3). None leaves a flag out."""
    settings = {**small, **{name.replace("_", "-"): value for name, value in changes.items()}}
    words = []
    for name, value in settings.items():
        if value is True:
            words.append(f"--{name}")
        elif value is not None and value is not False:
            words += [f"--{name}", str(value)]
    return words


flags = functools.partial(flags_of, SMALL)


# --- An experiment in this process: of a test file that has SCRIPT, its path, and `flags`, its tiny configuration ------


@pytest.fixture(scope="module")
def experiment(request):
    """SCRIPT as a module."""
    return experiment_at(request.module.SCRIPT)


def experiment_at(path: Path):
    """The script of an experiment as a module."""
    specification = importlib.util.spec_from_file_location(path.stem, path)
    module = importlib.util.module_from_spec(specification)
    sys.modules[path.stem] = module
    specification.loader.exec_module(module)
    return module


@pytest.fixture
def run(experiment, request, tmp_path):
    """run(name, **changes) → folder of a finished run."""

    def call(name, *more, **changes):
        threads = torch.get_num_threads()
        try:
            assert experiment.main([*request.module.flags(**changes), "--run-dir", str(tmp_path / name), *more]) == 0
        finally:
            torch.set_num_threads(threads)
        return tmp_path / name

    return call


@pytest.fixture
def stop_after(experiment, monkeypatch):
    """stop_after(iteration): Ctrl-C comes as soon as a run has done it, until `monkeypatch.undo()`."""

    def call(number):
        iterate = experiment.Training.iterate

        def interrupt(training):
            line = iterate(training)
            if training.iteration == number:
                signal.raise_signal(signal.SIGINT)
            return line

        monkeypatch.setattr(experiment.Training, "iterate", interrupt)

    return call


@pytest.fixture
def training_of(experiment, request):
    """training_of(**changes) → a Training, prepared, before its first iteration."""
    with Workers(torch.device("cpu")) as workers:

        def build(**changes):
            config, _ = experiment.parse_arguments(request.module.flags(**changes))
            digits = config.load_digits()
            problem = config.problem(digits)
            embeddings = Embeddings(problem, digits, config.train_sequences, workers, config.horizon)
            embeddings.prepare(workers)
            training = experiment.Training(config, problem, embeddings, workers)
            assert training.prepare(progress=False)
            return training

        yield build


# --- What was tested, for docs/stability.md ---------------------------------------------------------------------------


def pytest_addoption(parser) -> None:
    parser.addoption(
        "--record", metavar="FILE", help="write how many tests of each promise passed, and what they measured"
    )


class Recorder:
    """Counts tests by their closest marker `promise`, and collects what they gave to `record_property`."""

    def __init__(self, path: Path):
        self.path, self.began = path, time.time()
        self.promises: dict[str, dict] = {}
        self.measured: dict[str, list] = {}

    @pytest.hookimpl(wrapper=True)
    def pytest_runtest_makereport(self, item, call):
        report = yield
        marker = item.get_closest_marker("promise")
        if marker and (report.when == "call" or report.outcome != "passed"):
            counts = self.promises.setdefault(marker.args[0], {"passed": 0, "failed": 0, "skipped": 0, "seconds": 0.0})
            counts[report.outcome] += 1
            counts["seconds"] = round(counts["seconds"] + report.duration, 1)
            for name, value in report.user_properties:
                self.measured.setdefault(name, []).append(value)
        return report

    def pytest_sessionfinish(self) -> None:
        with Workers(torch.device("cpu")) as workers:
            where = environment(workers)
        write_json(
            self.path,
            {
                "environment": where,
                "source": source(STUB),
                "seconds": round(time.time() - self.began),
                "promises": dict(sorted(self.promises.items())),
                "measured": dict(sorted(self.measured.items())),
            },
        )


def pytest_configure(config) -> None:
    if path := config.getoption("--record"):
        config.pluginmanager.register(Recorder(Path(path)))


@pytest.fixture(scope="session", autouse=True)
def stub_environment(tmp_path_factory):
    """Environment of every run: a cache of its own for the whole session, and nothing of a torchrun around the tests."""
    torchrun = "RANK WORLD_SIZE LOCAL_RANK LOCAL_WORLD_SIZE TORCHELASTIC_RUN_ID TORCHELASTIC_RESTART_COUNT".split()
    paths = [str(ROOT), *filter(None, [os.environ.get("PYTHONPATH")])]
    with pytest.MonkeyPatch.context() as patch:
        for name in torchrun:
            patch.delenv(name, raising=False)
        patch.setenv("MOVING_MNIST_CACHE", str(tmp_path_factory.mktemp("cache")))
        patch.setenv("PYTHONPATH", os.pathsep.join(paths))
        patch.setenv("OMP_WAIT_POLICY", "PASSIVE")
        yield dict(os.environ)


@pytest.fixture(scope="session")
def stub():
    """The main experiment as a module."""
    specification = importlib.util.spec_from_file_location(STUB.stem, STUB)
    module = importlib.util.module_from_spec(specification)
    sys.modules[STUB.stem] = module
    specification.loader.exec_module(module)
    return module


@pytest.fixture(scope="session")
def main(stub):
    """main(*flags) → exit code, inside this process. A run sets the number of torch's threads; that is undone."""

    def call(*arguments) -> int:
        threads = torch.get_num_threads()
        try:
            return stub.main([str(word) for word in arguments])
        finally:
            torch.set_num_threads(threads)
            gc.collect()  # a run that was cut short lets go of its folder

    return call


@pytest.fixture(scope="session")
def reference(main, tmp_path_factory):
    """reference(**changes) → folder of the uninterrupted run of that configuration, made once a session."""
    made = {}

    def folder(**changes) -> Path:
        key = json.dumps(changes, sort_keys=True)
        if key not in made:
            made[key] = tmp_path_factory.mktemp("reference") / "run"
            assert main(*flags(**changes), "--run-dir", made[key]) == 0
        return made[key]

    return folder


def write_launcher(script: Path, tampering: str) -> None:
    """A script that starts the main experiment after something has been done to `stub`, its module, or to `sys`."""
    script.write_text(f"""
import importlib.util, os, sys
specification = importlib.util.spec_from_file_location("stub", {str(STUB)!r})
stub = sys.modules["stub"] = importlib.util.module_from_spec(specification)
specification.loader.exec_module(stub)
{tampering}
stub.run_main(stub.main)
""")


# --- Processes -------------------------------------------------------------------------------------------------------


class Process:
    """A run in a process group of its own, to which Ctrl-C is sent as a terminal does it."""

    def __init__(self, words: list[str], cwd: Path | None = None, **environment: str):
        self.popen = subprocess.Popen(
            words, cwd=cwd, env={**os.environ, **environment}, stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True,
            start_new_session=True,
        )  # fmt: skip
        self.pid = self.popen.pid

    def interrupt(self) -> None:
        os.killpg(self.pid, signal.SIGINT)

    def end(self) -> tuple[int, str, str]:
        """(exit code, stdout, stderr) once it has ended by itself."""
        stdout, stderr = self.popen.communicate(timeout=PATIENCE_S)
        return self.popen.returncode, stdout, stderr

    def wait_for(self, condition) -> None:
        """Until condition() holds, while the process is still at work."""
        deadline = time.monotonic() + PATIENCE_S
        while not condition():
            assert self.popen.poll() is None, f"ended too early:\n{self.popen.communicate()[1]}"
            assert time.monotonic() < deadline, "nothing happened"
            time.sleep(0.005)

    def wait_for_iteration(self, folder: Path, iteration: int) -> None:
        self.wait_for(lambda: last_iteration(folder) >= iteration)

    def clean_up(self) -> None:
        if self.popen.poll() is None:
            for pid in (*children_of(self.pid), self.pid):  # torchrun puts each rank into a group of its own
                with contextlib.suppress(ProcessLookupError):
                    os.kill(pid, signal.SIGKILL)
        self.popen.communicate(timeout=PATIENCE_S)


@pytest.fixture
def start(request):
    """start(words) → Process; whatever is left of it ends with the test."""

    def begin(words: list, cwd: Path | None = None, **environment: str) -> Process:
        process = Process([str(word) for word in words], cwd, **environment)
        request.addfinalizer(process.clean_up)
        return process

    return begin


@pytest.fixture
def command(start):
    """command(*flags) → Process running the experiment as a user starts it."""
    return lambda *arguments, cwd=None: start([sys.executable, STUB, *arguments], cwd)


def free_port() -> int:
    with socket.socket() as listener:
        listener.bind(("127.0.0.1", 0))
        return listener.getsockname()[1]


@pytest.fixture
def torchrun(start):
    """torchrun(ranks, *flags) → Process running the experiment on several ranks of this machine.

    `script` replaces the experiment, `options` are further flags of torchrun itself.
    """

    def begin(ranks: int, *arguments, script: Path = STUB, options: tuple = (), **environment: str) -> Process:
        launcher = [sys.executable, "-m", "torch.distributed.run", f"--nproc_per_node={ranks}"]
        if not any("rdzv" in option or "master_port" in option for option in options):
            launcher += [f"--master_port={free_port()}"]
        # Without OMP_NUM_THREADS torchrun sets it to 1 as well, and prints a notice of many lines.
        return start([*launcher, *options, script, *arguments], OMP_NUM_THREADS="1", **environment)

    return begin


@pytest.fixture
def two_agents(torchrun):
    """two_agents(ranks, *flags, rendezvous="static" or "c10d") → two Processes, as if on two nodes with `ranks` ranks each."""

    def begin(ranks: int, *arguments, rendezvous: str, options: tuple = ()) -> list[Process]:
        port, environment = free_port(), {}
        if rendezvous == "c10d":
            where = [("--rdzv_backend=c10d", f"--rdzv_endpoint=127.0.0.1:{port}", "--rdzv_id=test")] * 2
            environment["TORCH_DISABLE_SHARE_RDZV_TCP_STORE"] = "1"  # see docs/stability.md
        else:
            where = [(f"--node_rank={node}", "--master_addr=127.0.0.1", f"--master_port={port}") for node in range(2)]
        return [torchrun(ranks, *arguments, options=("--nnodes=2", *w, *options), **environment) for w in where]

    return begin


def parent_of(pid: int) -> int | None:
    """None for a process that is gone, or that is dead and waits for its parent to notice. Linux only."""
    try:
        state, parent = Path(f"/proc/{pid}/stat").read_text().rpartition(")")[2].split()[:2]
    except (FileNotFoundError, ProcessLookupError):
        return None
    return None if state == "Z" else int(parent)


def children_of(pid: int) -> list[int]:
    processes = [int(path.name) for path in Path("/proc").glob("[0-9]*")]
    return sorted(process for process in processes if parent_of(process) == pid)


def wait_until_gone(pids: list[int]) -> None:
    deadline = time.monotonic() + PATIENCE_S
    while any(parent_of(pid) is not None for pid in pids):
        assert time.monotonic() < deadline, f"still there: {pids}"
        time.sleep(0.05)


# --- Looking at runs -------------------------------------------------------------------------------------------------


def last_iteration(folder: Path) -> int:
    """Of the last whole line of metrics.jsonl; −1 if there is none."""
    try:
        lines = (folder / "metrics.jsonl").read_text().split("\n")[:-1]
    except FileNotFoundError:
        return -1
    return json.loads(lines[-1])["iteration"] if lines else -1


def metrics(folder: Path) -> list[dict]:
    """Every line of metrics.jsonl, apart from times."""
    lines = (folder / "metrics.jsonl").read_text().splitlines()
    return [{name: value for name, value in json.loads(line).items() if name not in TIMES} for line in lines]


def results(folder: Path) -> dict:
    return json.loads((folder / "results.json").read_text())


def snapshot(*folders: Path) -> dict:
    """Every file in the folders with its bytes and time of change, every folder in them with nothing."""
    paths = [path for folder in folders for path in [folder, *sorted(folder.rglob("*"))] if path.exists()]
    return {p: (p.read_bytes(), p.stat().st_mtime_ns) if p.is_file() else None for p in paths}


def leaves(state, name: str = "") -> dict:
    """Nested dicts and lists as one flat dict."""
    if isinstance(state, dict):
        return {k: v for key, entry in state.items() for k, v in leaves(entry, f"{name}.{key}").items()}
    if isinstance(state, list | tuple):
        return {k: v for i, entry in enumerate(state) for k, v in leaves(entry, f"{name}.{i}").items()}
    return {name: state}


def assert_same_run(folder: Path, expected: Path) -> None:
    """Two finished runs agree in every bit that is not a time: θ, decoder, optimisers, metrics, results, figures."""
    ours, theirs = results(folder), results(expected)
    for key in ("theta_sha256", "problem_id", "iterations", "rollouts", "reproduces"):
        assert ours[key] == theirs[key], key
    for key in {key for key in theirs if "_mse" in key}:
        assert ours[key] == theirs[key], key  # equal, not close
    assert metrics(folder) == metrics(expected)
    ours, theirs = (leaves(torch.load(f / "checkpoint.pt", weights_only=True)) for f in (folder, expected))
    assert ours.keys() == theirs.keys()
    for name in ours.keys() - {".seconds"}:
        same = torch.equal(ours[name], theirs[name]) if torch.is_tensor(ours[name]) else ours[name] == theirs[name]
        assert same, f"checkpoint{name}"
    with np.load(folder / "figures.npz") as ours, np.load(expected / "figures.npz") as theirs:
        assert set(ours) == set(theirs)
        for name in theirs:
            assert np.array_equal(ours[name], theirs[name]), f"figures.npz, {name}"


def flip_a_bit(path: Path, tensor: torch.Tensor) -> None:
    """Damage a file in the middle of a tensor that it holds, where no format is broken by it."""
    content = bytearray(path.read_bytes())
    place = content.find(tensor.contiguous().numpy().tobytes())
    assert place > 0
    content[place + 2] ^= 0x10
    path.write_bytes(content)


def saved_bytes(state) -> bytes:
    buffer = io.BytesIO()
    torch.save(state, buffer)
    return buffer.getvalue()
