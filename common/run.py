"""What every experiment does around its training: command line, run folder, checkpoints, results.

A Config is a dataclass of `setting(...)` fields; each is a flag in kebab case, checked against its limits. A preset
changes defaults, a flag overrides both. A run lives in one folder:

    config.json  metrics.jsonl  checkpoint.pt  checkpoint.previous.pt  results.json  figures.npz

Only rank 0 touches it. Files are replaced atomically, so that a run may be killed at any moment.
"""

import argparse
import contextlib
import dataclasses
import hashlib
import io
import json
import math
import os
import platform
import shutil
import socket
import subprocess
import sys
import types
import typing
import weakref
from collections.abc import Callable
from pathlib import Path

import numpy as np
import torch

try:
    import fcntl
except ImportError:  # not on Windows
    fcntl = None

from common.dist import BACKENDS, TRAINING_TIMEOUT_S, Workers, differences
from common.errors import BadInput, Fault, Parser, folder
from common.files import check_folder, copy_atomically, finite_or_none, flush_to_disk, write_atomically, write_json
from common.results import CURRICULUM, FIRST_RUNG

SCHEMA = 1
DTYPES = ("float32", "float64", "float16")
GPU_MEMORY_FOR_H200_PRESET = 40e9  # bytes


# --- Command line ----------------------------------------------------------------------------------------------------


def setting(
    default,
    help: str,  # noqa: A002, argparse's own name for it
    *,
    least: float | None = None,
    above: float | None = None,
    most: float | None = None,
    choices: tuple | None = None,
    changes_result: bool = True,
):
    """A Config field: its default, what --help says, and what is allowed (≥ least, > above, ≤ most, or one of choices).

    changes_result: False for a field on which no number depends (threads, say): a run may be resumed with another value.
    """
    metadata = {"help": help, "least": least, "above": above, "most": most, "choices": choices}
    metadata["changes_result"] = changes_result
    return dataclasses.field(default=default, metadata=metadata)


def _allowed(metadata, kind: type) -> str:
    if metadata["choices"]:
        return "one of " + ", ".join(str(choice) for choice in metadata["choices"])
    limits = [
        f"{sign} {metadata[name]:g}"
        for name, sign in (("least", "≥"), ("above", ">"), ("most", "≤"))
        if metadata[name] is not None
    ]
    return {int: "a whole number", float: "a finite number", str: "text"}[kind] + (
        " " + " and ".join(limits) if limits else ""
    )


def _converter(kind: type, metadata) -> Callable[[str], object]:
    """Text → value, or one clear line; argparse puts the flag's name before it."""

    def convert(text: str):
        # Not a BadInput: argparse replaces the message of any other ValueError by one of its own.
        problem = argparse.ArgumentTypeError(f"must be {_allowed(metadata, kind)}, not {text!r}")
        try:
            value = kind(text)
        except ValueError:
            raise problem from None
        if not _is_allowed(value, kind, metadata):
            raise problem
        return value

    return convert


def _is_allowed(value, kind: type, metadata) -> bool:
    if type(value) is not kind or (kind is str and not value):  # '' comes of a shell variable that is not set
        return False
    if metadata["choices"]:
        return value in metadata["choices"]
    if kind not in (int, float):
        return True
    return (
        (kind is int or math.isfinite(value))  # a whole number may be too large for a float
        and (metadata["least"] is None or value >= metadata["least"])
        and (metadata["above"] is None or value > metadata["above"])
        and (metadata["most"] is None or value <= metadata["most"])
    )


@dataclasses.dataclass(frozen=True)
class RunSettings:
    """The part of every experiment's Config that says where and how it runs."""

    ADDED: typing.ClassVar[tuple[str, ...]] = ("roll_in",)  # settings that came after there were runs, see `added_to`

    seed: int = setting(0, "of everything that a run draws: minibatches, noise, start", least=0, most=2**63 - 1)
    device: str = setting("auto", "where to compute", choices=("auto", "cpu", "cuda"))
    dtype: str = setting("float32", "of the rollouts; float16 on CUDA only", choices=DTYPES)
    backend: str = setting(
        "auto", "of torch.distributed; auto: nccl on GPUs, gloo on CPUs", choices=BACKENDS, changes_result=False
    )
    threads: int = setting(
        0, "CPU threads of a rank; 0: its share of the cores", least=0, most=1024, changes_result=False
    )
    rank_timeout: float = setting(
        TRAINING_TIMEOUT_S, "seconds a rank waits for the others in training", above=0, most=1e6, changes_result=False
    )
    checkpoint_every: int = setting(50, "iterations between checkpoints", least=1, changes_result=False)
    evaluate_every: int = setting(10, "iterations between scores on the validation set", least=1)
    patience: int = setting(
        0,
        "stop after so many scores in a row that are no better than the best since the first iteration; 0: never",
        least=0,
    )
    roll_in: float = setting(
        0.0,
        "share of inputs that are predictions in the last iteration, rising from 0; 0: teacher forcing",
        least=0,
        most=1,
    )
    start_from: str | None = setting(
        None,
        "folder of a run whose adapter, leak and readout this one begins with; more units and columns may be added",
    )
    tensorboard: bool = setting(False, "also write TensorBoard events into the run folder", changes_result=False)


def _with_negative_values_joined(argv: list[str]) -> list[str]:
    """`--sigma -1e-3` → `--sigma=-1e-3`: argparse takes -1e-3 and -inf for flags, and would complain of a missing value."""
    joined: list[str] = []
    for text in argv:
        previous = joined[-1] if joined else ""
        if text.startswith("-") and _is_number(text) and previous.startswith("--") and "=" not in previous:
            joined[-1] = f"{previous}={text}"
        else:
            joined.append(text)
    return joined


def _is_number(text: str) -> bool:
    try:
        float(text)
    except ValueError:
        return False
    return True


def parse_config(config_class: type, presets: dict[str, dict], argv: list[str] | None, description: str):
    """Command line → (Config, options), options being the flags that are not part of the configuration:
    preset, run_dir, resume, overwrite, evaluate, dry_run, curriculum; and `words`, the command line itself.

    Raises BadInput for an unknown flag or preset and for a value outside its limits. `--preset auto` is resolved here.
    """
    parser = Parser(description=description, formatter_class=argparse.RawDescriptionHelpFormatter)
    names = ("auto", *presets)
    parser.add_argument("--preset", default="auto", metavar="{" + ",".join(names) + "}",
                        type=_converter(str, {"choices": names, "least": None, "above": None, "most": None}),
                        help="defaults for a purpose; auto: h200 on a CUDA device of 40 GB or more, else laptop")  # fmt: skip
    parser.add_argument("--run-dir", type=folder, help="the run's folder (default: runs/<preset>-seed<seed>)")
    parser.add_argument("--resume", action="store_true", help="continue the run in the run folder")
    parser.add_argument("--overwrite", action="store_true", help="delete the run in the run folder and start anew")
    parser.add_argument("--evaluate", action="store_true", help="score the saved run on the test set; change nothing")
    parser.add_argument(
        "--dry-run", action="store_true", help="print rollouts, memory and expected time; write nothing"
    )
    parser.add_argument("--curriculum", action="store_true",
                        help="go on to two digits, longer sequences, more units, a higher rank and a leak that learns")  # fmt: skip
    hints = typing.get_type_hints(config_class)
    for field in dataclasses.fields(config_class):
        flag, kind = "--" + field.name.replace("_", "-"), hints[field.name]
        kind = _without_none(kind)
        text = field.metadata["help"].replace("%", "%%")
        if kind is bool:
            parser.add_argument(flag, action=argparse.BooleanOptionalAction, default=None, help=text)
            continue
        allowed = "" if kind is str and not field.metadata["choices"] else f"; {_allowed(field.metadata, kind)}"
        parser.add_argument(flag, type=_converter(kind, field.metadata), default=None,
                            metavar=kind.__name__.upper(), help=f"{text}{allowed} (default: {field.default})")  # fmt: skip
    words = list(sys.argv[1:] if argv is None else argv)
    options = parser.parse_args(_with_negative_values_joined(words))
    given = vars(options)
    flags = {f.name: given.pop(f.name) for f in dataclasses.fields(config_class)}
    flags = {name: value for name, value in flags.items() if value is not None}
    options.preset_from_auto = options.preset == "auto"
    if options.preset_from_auto:
        options.preset = _auto_preset(flags.get("device", "auto"), presets)
    config = config_class(**{**presets[options.preset], **flags})
    if options.resume and options.overwrite:
        raise BadInput("--resume continues the run and --overwrite deletes it: choose one")
    if options.evaluate and (options.resume or options.overwrite):
        other = "--resume" if options.resume else "--overwrite"
        raise BadInput(f"--evaluate changes nothing and {other} does: choose one")
    if options.evaluate and options.curriculum:
        raise BadInput("--evaluate scores one run: name the folder of a rung (--run-dir), and leave --curriculum out")
    if options.run_dir is None:
        options.run_dir = Path("runs") / f"{options.preset}-seed{config.seed}{'-curriculum' * options.curriculum}"
    options.words = words
    return config, options


def identity_of(config) -> dict:
    """The part of a Config on which a run's numbers depend."""
    return {f.name: getattr(config, f.name) for f in dataclasses.fields(config) if f.metadata["changes_result"]}


def added_to(config) -> dict:
    """Settings that came after there were runs of an experiment, with the value that all runs before them had: the default."""
    return {name: getattr(type(config), name) for name in config.ADDED}


def _without_none(kind) -> type:
    """str of "str | None": a flag that may be left out altogether."""
    if isinstance(kind, types.UnionType):
        return next(member for member in typing.get_args(kind) if member is not types.NoneType)
    return kind


def saved_config(path: Path, config):
    """The Config of the run in a folder; fields on which no number depends are taken from `config`.

    Raises BadInput if there is no readable config.json.
    """
    try:
        saved = {**added_to(config), **json.loads((path / "config.json").read_text())}
        hints = typing.get_type_hints(type(config))
        for field in dataclasses.fields(config):
            kind = _without_none(hints[field.name])
            if not field.metadata["changes_result"] or (field.default is None and saved[field.name] is None):
                continue
            if not _is_allowed(saved[field.name], kind, field.metadata):
                raise ValueError(field.name)
        return dataclasses.replace(config, **{name: saved[name] for name in identity_of(config)})
    except FileNotFoundError:
        raise BadInput(f"--run-dir {path} holds no run (config.json is missing)") from None
    except (OSError, ValueError, KeyError, TypeError, RecursionError):
        raise BadInput(f"{path / 'config.json'} is damaged or of another experiment") from None


def _auto_preset(device: str, presets: dict) -> str:
    large = device != "cpu" and torch.cuda.is_available()
    large = large and torch.cuda.get_device_properties(0).total_memory >= GPU_MEMORY_FOR_H200_PRESET
    return "h200" if large and "h200" in presets else "laptop"


# --- Run folder ------------------------------------------------------------------------------------------------------


class RunFolder:
    """The folder of one run: `open` it, `begin`, then `log` and `save`. All but `open` is called on rank 0 only."""

    LOCK = ".lock"  # never deleted: who waits for a lock on a deleted file waits for nothing
    FILES = ("config.json", "metrics.jsonl", "checkpoint.pt", "checkpoint.previous.pt", "results.json", "figures.npz")

    def __init__(self, path: Path, identity: dict, within: "RunFolder | None" = None, added: dict | None = None):
        """within: the folder of the curriculum that this run is a rung of, which is locked with it. added: settings that a configuration from
        before there were such may lack, with their values then."""
        self.path, self.identity, self.within, self.added = path, finite_or_none(identity), within, added or {}
        self.checkpoint, self.previous = path / "checkpoint.pt", path / "checkpoint.previous.pt"
        self.metrics = path / "metrics.jsonl"
        self._fresh, self._overwrite, self._lock_file = True, False, None
        self._checkpoint_is_good = False  # as far as this process knows

    @classmethod
    def open(
        cls,
        path: Path,
        identity: dict,
        resume: bool,
        overwrite: bool,
        workers: Workers,
        within: "RunFolder | None" = None,
        added: dict | None = None,
    ):
        """(folder, checkpoint or None), the same on every rank. Nothing is written or deleted yet: that is for `begin`.

        identity: everything the run's numbers depend on; it is config.json, and a resumed run must agree with it.
        Raises BadInput where the folder holds a run and neither flag is given, where --resume finds no usable checkpoint or
        another configuration, where the folder cannot be written or another process is writing it, and where ranks disagree
        on the identity.
        """
        folder = cls(path, identity, within, added)
        folder._overwrite = overwrite
        # torchrun starts ranks again after a fault: then the run goes on by itself, or starts where nothing was saved.
        # Of several nodes not all need to have counted it.
        restarted = workers.any(int(os.environ.get("TORCHELASTIC_RESTART_COUNT", 0)) > 0)
        # Each node has its own command line, and one may have been mistyped.
        workers.require_equal(folder.identity, "was started with another configuration")

        def prepare() -> dict | None:
            folder._check_writable()
            if within is None and ((path / CURRICULUM).exists() or cls(path / FIRST_RUNG, {}).holds_run):
                raise BadInput(f"--run-dir {path} holds a curriculum: name another folder, or say --curriculum")
            for place in filter(None, (within, folder)):
                place.claim()
            if not resume and not (restarted and folder._has_checkpoint()):
                folder._refuse_to_replace_a_run()
                return None
            try:
                state = folder.load()
            except BadInput:
                if restarted and overwrite:  # the run that was to be overwritten is still there
                    return None
                raise
            folder._fresh = False
            return state

        return folder, workers.from_main(prepare)

    def begin(self, iteration: int) -> None:
        """Make the folder ready for a new run, or forget what a run resumed after `iteration` writes again.

        At iteration 0 these are all metrics: line 0, which comes before the first iteration, is written again too.
        Raises BadInput if the folder cannot be written, or has been taken since `open`.
        """
        try:
            self.path.mkdir(parents=True, exist_ok=True)
            if self.within:
                self.within._lock(make=True)
            self._lock(make=True)
            if self._fresh:
                self._refuse_to_replace_a_run()
                if (
                    self.within and self._overwrite and self.path.name == FIRST_RUNG
                ):  # the first rung: the whole curriculum is replaced
                    self.within.delete_rungs()
                self.delete()
                write_json(self.path / "config.json", self.identity)
            self._truncate_metrics(iteration)
        except OSError as error:
            raise self._unwritable(error) from None

    def delete(self) -> None:
        """Delete the run in this folder, if there is one; of other files in it none."""
        for name in self.FILES:
            (self.path / name).unlink(missing_ok=True)
            (self.path / (name + ".tmp")).unlink(missing_ok=True)  # of a writer that was killed
        shutil.rmtree(self.path / "tensorboard", ignore_errors=True)

    def claim(self) -> None:
        """Lock the folder, if it is there and has been in use before. Raises BadInput where another process has it."""
        if self.path.is_dir():
            try:
                self._lock(make=False)
            except OSError as error:
                raise self._unwritable(error) from None

    def delete_rungs(self) -> None:
        """Delete the curriculum in this folder: its log, then its runs."""
        (self.path / CURRICULUM).unlink(missing_ok=True)
        for path in self.path.glob("[0-9]-*"):
            RunFolder(path, {}).delete()

    def _has_checkpoint(self) -> bool:
        return self.checkpoint.exists() or self.previous.exists()

    @property
    def holds_run(self) -> bool:
        """A folder without checkpoint and results is no run: a start that was killed at once may be repeated."""
        return self._has_checkpoint() or (self.path / "results.json").exists()

    def _refuse_to_replace_a_run(self) -> None:
        if not self._overwrite and self.holds_run:
            raise BadInput(f"--run-dir {self.path} already holds a run; --resume continues it, --overwrite deletes it")

    def _unwritable(self, error: OSError) -> BadInput:
        return BadInput(f"--run-dir {self.path} cannot be written: {error.strerror or error}")

    def _check_writable(self) -> None:
        """As far as can be told without writing."""
        try:
            check_folder(self.path)
        except OSError as error:
            raise self._unwritable(error) from None
        for name in (*self.FILES, self.LOCK):
            if (self.path / name).is_dir():
                raise BadInput(f"--run-dir {self.path} cannot be written: {name} is a folder")

    def _lock(self, make: bool) -> None:
        """Two processes must not write one run. The lock goes with the process that holds it, however it ends; what the file says
        is only for people.

        make: create the file where there is none, and write into it who this is.
        """
        path = self.path / self.LOCK
        if fcntl is None or not (make or path.exists()):
            return
        if self._lock_file is None:
            # Not deleted, appended to or emptied before it is ours. For writing: else NFS gives no lock.
            descriptor = os.open(path, os.O_RDWR | os.O_CREAT, 0o666)
            self._lock_file = os.fdopen(descriptor, "r+")
            weakref.finalize(self, self._lock_file.close)
            try:
                fcntl.flock(descriptor, fcntl.LOCK_EX | fcntl.LOCK_NB)
            except BlockingIOError:
                owner = self._lock_file.read(200).strip() or "another process"
                self._lock_file.close()
                self._lock_file = None
                raise BadInput(f"--run-dir {self.path} is in use by {owner}") from None
            except OSError:  # a file system without locks
                pass
        if make:
            # Past the buffer, which on a full disk would be written again, and complain again, when the file is closed.
            os.ftruncate(self._lock_file.fileno(), 0)
            os.pwrite(self._lock_file.fileno(), f"process {os.getpid()} on {socket.gethostname()}\n".encode(), 0)

    def _configuration(self) -> dict:
        """config.json."""
        try:
            saved = json.loads((self.path / "config.json").read_text())
        except FileNotFoundError:
            raise BadInput(f"--run-dir {self.path} holds no run (config.json is missing)") from None
        except (OSError, ValueError, RecursionError):
            saved = None
        if not isinstance(saved, dict):
            raise BadInput(f"--run-dir: {self.path / 'config.json'} is damaged")
        return saved

    def require_configuration(self, settings: dict) -> None:
        """Raises BadInput where the run in this folder has another value for one of the settings."""
        saved = self._configuration()
        self._require_same({name: saved.get(name) for name in settings}, finite_or_none(settings))

    def _require_same(self, saved: dict, wanted: dict) -> None:
        if differing := differences(saved, wanted, "there"):
            raise BadInput(f"--run-dir {self.path} holds another configuration: {differing}")

    def load(self) -> dict:
        """The newest good checkpoint. A damaged one is named on stderr and the one before it is used."""
        saved = self._configuration()
        self._require_same({**self.added, **saved}, self.identity)
        complaints = []
        for path in (self.checkpoint, self.previous):
            if not path.exists():
                continue
            try:
                state = load_checkpoint(path)
            except BadInput as error:
                complaints.append(str(error))
                continue
            if state["identity"] not in (fingerprint_of(self.identity), fingerprint_of(saved)):
                complaints.append(f"{path} belongs to another run")
                continue
            if complaints:
                print(
                    f"{'; '.join(complaints)}; continuing from {path}, iteration {state['iteration']}", file=sys.stderr
                )
            self._checkpoint_is_good = path == self.checkpoint
            return state
        raise BadInput("; ".join([f"--run-dir {self.path} holds no usable checkpoint", *complaints]))

    def save(self, state: dict) -> None:
        """Replace the checkpoint; the one before it stays as checkpoint.previous.pt.

        state: what `torch.load(weights_only=True)` can read, with its "iteration".
        """
        content = pack_checkpoint({**state, "identity": fingerprint_of(self.identity)})
        with self.writing(f"the checkpoint of iteration {state['iteration']:,}"):
            if self.metrics.exists():  # a checkpoint must not be ahead of its lines, not even after a power cut
                flush_to_disk(self.metrics)
            # A copy, so that at no moment there is no checkpoint under the main name; and never of a damaged one over a good one.
            if self._checkpoint_is_good:
                copy_atomically(self.checkpoint, self.previous)
            write_atomically(self.checkpoint, content)
        self._checkpoint_is_good = True

    @contextlib.contextmanager
    def writing(self, what: str):
        """A Fault where a file cannot be written: a full disk, most likely. What was saved before is left as it was."""
        try:
            yield
        except OSError as error:
            left = "what was saved before is whole, and --resume continues from there"
            left = left if self._has_checkpoint() else "nothing had been saved before"
            raise Fault(f"--run-dir {self.path}: {what} cannot be written: {error.strerror or error}; {left}") from None

    def _truncate_metrics(self, iteration: int) -> None:
        kept = []
        for line in self.metrics.read_text(errors="replace").splitlines() if self.metrics.exists() else []:
            try:
                if json.loads(line)["iteration"] <= iteration and iteration > 0:
                    kept.append(line)
            except (ValueError, KeyError, TypeError):
                break  # the line that was being written when the run was killed
        write_atomically(self.metrics, "".join(line + "\n" for line in kept).encode())
        if len(kept) != iteration + 1 and iteration > 0:
            print(f"{self.metrics} has {len(kept)} good lines of {iteration + 1}: the others are lost", file=sys.stderr)

    def log(self, metrics: dict) -> None:
        """Append one line to metrics.jsonl."""
        with self.writing("metrics.jsonl"), open(self.metrics, "a") as file:
            file.write(json.dumps(finite_or_none(metrics)) + "\n")

    def finish(self, figures: bytes, results: dict) -> None:
        """Write figures.npz and results.json."""
        with self.writing("the result"):
            write_atomically(self.path / "figures.npz", figures)
            write_json(self.path / "results.json", results)


def pack_checkpoint(state: dict) -> bytes:
    """What torch.load reads, with the SHA-256 of all of it in the zip archive's comment, which ends the file."""
    buffer = io.BytesIO()
    torch.save(state, buffer)
    content = buffer.getvalue()[:-2]  # the last two bytes are the length of the comment, zero
    digest = hashlib.sha256(content).hexdigest().encode()
    return content + len(digest).to_bytes(2, "little") + digest


def load_checkpoint(path: Path) -> dict:
    """Read a checkpoint with weights_only=True. Raises BadInput if it is missing, truncated, damaged or something else."""
    try:
        content = path.read_bytes()
    except FileNotFoundError:
        raise BadInput(f"{path} does not exist") from None
    except OSError as error:
        raise BadInput(f"{path} cannot be read: {error.strerror or error}") from None
    # torch.load does not look at any checksum: a flipped bit of θ would pass unseen.
    content, digest = content[:-66], content[-64:]
    if hashlib.sha256(content).hexdigest().encode() != digest:
        raise BadInput(f"{path} is damaged or no checkpoint (its checksum is wrong)")
    try:
        state = torch.load(io.BytesIO(content + b"\0\0"), map_location="cpu", weights_only=True)
    except Exception as error:  # torch raises half a dozen kinds for what it does not want to read
        raise BadInput(f"{path} is damaged or no checkpoint ({type(error).__name__})") from None
    if not isinstance(state, dict) or "identity" not in state or type(state.get("iteration")) is not int:
        raise BadInput(f"{path} is not a checkpoint of this catalog")
    return state


def fingerprint_of(identity: dict) -> str:
    """SHA-256 of a JSON-able dictionary, keys in any order."""
    return hashlib.sha256(json.dumps(identity, sort_keys=True).encode()).hexdigest()


# --- Results ---------------------------------------------------------------------------------------------------------


def sha256_of_tensors(*tensors: torch.Tensor) -> str:
    """Of the bytes of the tensors, one after another, as float32."""
    digest = hashlib.sha256()
    for tensor in tensors:
        digest.update(np.ascontiguousarray(tensor.detach().to("cpu", torch.float32).numpy()).tobytes())
    return digest.hexdigest()


def environment(workers: Workers) -> dict:
    """Where a result was made."""
    if workers.device.type == "cuda":
        name = torch.cuda.get_device_name(workers.device)
    else:
        name = platform.processor() or platform.machine()
        cpuinfo = Path("/proc/cpuinfo")
        models = (
            [line for line in cpuinfo.read_text().splitlines() if line.startswith("model name")]
            if cpuinfo.exists()
            else []
        )
        name = models[0].split(":", 1)[1].strip() if models else name
    return {
        "device": workers.device.type,
        "device_name": name,
        "torch": torch.__version__,
        "python": platform.python_version(),
        "platform": f"{platform.system()} {platform.machine()}",
        "world_size": workers.world_size,
        "threads": workers.threads if workers.device.type == "cpu" else 1,
    }


def bits_depend_on(workers: Workers, stub_file: str) -> dict:
    """What has to be the same, beside the configuration, for two processes to compute the same bits: code, torch, processor."""
    stub = Path(stub_file).resolve().parent
    if workers.device.type == "cuda":
        processor = torch.cuda.get_device_name(workers.device)
    else:
        processor = f"CPU with {torch.backends.cpu.get_cpu_capability()}"  # which decides about the order of sums
    return {
        "code of the experiment": _sha256_of_sources(stub)[:12],
        "code of common": _sha256_of_sources(Path(__file__).resolve().parent)[:12],
        "torch": str(torch.__version__),
        "processor": processor,
    }


def _sha256_of_sources(folder: Path) -> str:
    digest = hashlib.sha256()
    for path in sorted(folder.glob("*.py")):
        digest.update(path.name.encode() + b"\0" + path.read_bytes())
    return digest.hexdigest()


def source(stub_file: str, mixed: bool = False) -> dict:
    """Which code made a result: commit, whether code differed from it, and hashes of the stub and of common.

    mixed: the run went on with other code, torch or processor than it was begun with: it is made by no one commit.
    """
    stub = Path(stub_file).resolve().parent
    common = Path(__file__).resolve().parent

    def git(*arguments: str) -> str | None:
        try:
            return subprocess.run(
                ("git", *arguments), cwd=stub, capture_output=True, text=True, check=True
            ).stdout.strip()
        except (OSError, subprocess.CalledProcessError):
            return None

    commit = git("rev-parse", "HEAD")
    changed = git("status", "--porcelain", "--untracked-files=all", "--", str(common), f"{stub}/*.py")
    return {
        "commit": commit,
        "dirty": bool(changed) or mixed if changed is not None else None,
        "stub_sha256": _sha256_of_sources(stub),
        "common_sha256": _sha256_of_sources(common),
    }
