"""What every experiment does around its training: command line, run folder, checkpoints, results.

A Config is a dataclass of `setting(...)` fields; each is a flag in kebab case, checked against its limits. A preset
changes defaults, a flag overrides both. A run lives in one folder:

    config.json  metrics.jsonl  checkpoint.pt  checkpoint.previous.pt  results.json  figures.npz

Only rank 0 touches it. Files are replaced atomically, so that a run may be killed at any moment.
"""

import argparse
import dataclasses
import hashlib
import io
import json
import math
import os
import platform
import signal
import subprocess
import sys
import types
import typing
from collections.abc import Callable
from pathlib import Path

import numpy as np
import torch

from common.dist import BACKENDS, Workers
from common.errors import BadInput

SCHEMA = 1
DTYPES = ("float32", "float64", "float16")
INTERRUPTED = 130  # exit code after Ctrl-C, as shells have it
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


def _converter(kind: type, metadata, flag: str) -> Callable[[str], object]:
    """Text → value, or one clear line."""

    def convert(text: str):
        problem = BadInput(f"{flag}: must be {_allowed(metadata, kind)}, not {text!r}")
        try:
            value = kind(text)
        except ValueError:
            raise problem from None
        if kind is not str:
            outside = (
                not math.isfinite(value)
                or (metadata["least"] is not None and value < metadata["least"])
                or (metadata["above"] is not None and value <= metadata["above"])
                or (metadata["most"] is not None and value > metadata["most"])
            )
            if outside:
                raise problem
        if metadata["choices"] and value not in metadata["choices"]:
            raise problem
        return value

    return convert


@dataclasses.dataclass(frozen=True)
class RunSettings:
    """The part of every experiment's Config that says where and how it runs."""

    seed: int = setting(0, "of everything that a run draws: minibatches, noise, start", least=0, most=2**63 - 1)
    device: str = setting("auto", "where to compute", choices=("auto", "cpu", "cuda"))
    dtype: str = setting("float32", "of the rollouts; float16 on CUDA only", choices=DTYPES)
    backend: str = setting(
        "auto", "of torch.distributed; auto: nccl on GPUs, gloo on CPUs", choices=BACKENDS, changes_result=False
    )
    threads: int = setting(
        0, "CPU threads of a rank; 0: its share of the cores", least=0, most=1024, changes_result=False
    )
    checkpoint_every: int = setting(50, "iterations between checkpoints", least=1, changes_result=False)
    evaluate_every: int = setting(10, "iterations between scores on the validation set", least=1)
    tensorboard: bool = setting(False, "also write TensorBoard events into the run folder", changes_result=False)


class _Parser(argparse.ArgumentParser):
    def error(self, message: str):
        raise BadInput(message)


def parse_config(config_class: type, presets: dict[str, dict], argv: list[str] | None, description: str):
    """Command line → (Config, options), options being the flags that are not part of the configuration:
    preset, run_dir, resume, overwrite, evaluate, dry_run.

    Raises BadInput for an unknown flag or preset and for a value outside its limits. `--preset auto` is resolved here.
    """
    parser = _Parser(description=description, allow_abbrev=False, formatter_class=argparse.RawDescriptionHelpFormatter)
    names = ("auto", *presets)
    parser.add_argument("--preset", default="auto", metavar="{" + ",".join(names) + "}",
                        type=_converter(str, {"choices": names, "least": None, "above": None, "most": None}, "--preset"),
                        help="defaults for a purpose; auto: h200 on a CUDA device of 40 GB or more, else laptop")  # fmt: skip
    parser.add_argument("--run-dir", type=Path, help="the run's folder (default: runs/<preset>-seed<seed>)")
    parser.add_argument("--resume", action="store_true", help="continue the run in the run folder")
    parser.add_argument("--overwrite", action="store_true", help="delete the run in the run folder and start anew")
    parser.add_argument("--evaluate", action="store_true", help="score the saved run on the test set; change nothing")
    parser.add_argument(
        "--dry-run", action="store_true", help="print rollouts, memory and expected time; write nothing"
    )
    hints = typing.get_type_hints(config_class)
    for field in dataclasses.fields(config_class):
        flag, kind = "--" + field.name.replace("_", "-"), hints[field.name]
        if isinstance(kind, types.UnionType):  # "str | None": a flag that may be left out altogether
            kind = next(member for member in typing.get_args(kind) if member is not types.NoneType)
        text = field.metadata["help"].replace("%", "%%")
        if kind is bool:
            parser.add_argument(flag, action=argparse.BooleanOptionalAction, default=None, help=text)
            continue
        allowed = "" if kind is str and not field.metadata["choices"] else f"; {_allowed(field.metadata, kind)}"
        parser.add_argument(flag, type=_converter(kind, field.metadata, flag), default=None,
                            metavar=kind.__name__.upper(), help=f"{text}{allowed} (default: {field.default})")  # fmt: skip
    options = parser.parse_args(argv)
    given = vars(options)
    flags = {f.name: given.pop(f.name) for f in dataclasses.fields(config_class)}
    flags = {name: value for name, value in flags.items() if value is not None}
    if options.preset == "auto":
        options.preset = _auto_preset(flags.get("device", "auto"), presets)
    config = config_class(**{**presets[options.preset], **flags})
    if options.resume and options.overwrite:
        raise BadInput("--resume continues the run and --overwrite deletes it: choose one")
    if options.run_dir is None:
        options.run_dir = Path("runs") / f"{options.preset}-seed{config.seed}"
    return config, options


def identity_of(config) -> dict:
    """The part of a Config on which a run's numbers depend."""
    return {f.name: getattr(config, f.name) for f in dataclasses.fields(config) if f.metadata["changes_result"]}


def saved_config(path: Path, config):
    """The Config of the run in a folder; fields on which no number depends are taken from `config`.

    Raises BadInput if there is no readable config.json.
    """
    try:
        saved = json.loads((path / "config.json").read_text())
        return dataclasses.replace(config, **{name: saved[name] for name in identity_of(config)})
    except FileNotFoundError:
        raise BadInput(f"--run-dir {path} holds no run (config.json is missing)") from None
    except (OSError, ValueError, KeyError, TypeError):
        raise BadInput(f"{path / 'config.json'} is damaged or of another experiment") from None


def _auto_preset(device: str, presets: dict) -> str:
    large = device != "cpu" and torch.cuda.is_available()
    large = large and torch.cuda.get_device_properties(0).total_memory >= GPU_MEMORY_FOR_H200_PRESET
    return "h200" if large and "h200" in presets else "laptop"


def run_main(main: Callable[[list[str] | None], int]) -> typing.NoReturn:
    """Call main(argv) and leave with the promised exit codes: 0 done, 2 bad input (one line on stderr), 130 Ctrl-C."""
    try:
        code = main(None)
    except BadInput as error:
        if int(os.environ.get("RANK", 0)) == 0:
            print(f"{Path(sys.argv[0]).name}: error: {' '.join(str(error).split())}", file=sys.stderr)
        code = 2
    except KeyboardInterrupt:
        code = INTERRUPTED
    sys.stdout.flush()
    sys.exit(code)


# --- Run folder ------------------------------------------------------------------------------------------------------


def write_atomically(path: Path, content: bytes) -> None:
    """Write beside, flush to disk, rename over: a reader sees the old file or the new one."""
    temporary = path.with_name(path.name + ".tmp")
    with open(temporary, "wb") as file:
        file.write(content)
        file.flush()
        os.fsync(file.fileno())
    os.replace(temporary, path)


def write_json(path: Path, content: dict) -> None:
    write_atomically(path, (json.dumps(finite_or_none(content), indent=2) + "\n").encode())


def finite_or_none(value):
    """JSON has no NaN: undefined numbers become null, at any depth."""
    if isinstance(value, dict):
        return {key: finite_or_none(entry) for key, entry in value.items()}
    if isinstance(value, list | tuple):
        return [finite_or_none(entry) for entry in value]
    if isinstance(value, float) and not math.isfinite(value):
        return None
    return value


class RunFolder:
    """The folder of one run. Every method but `open` is called on rank 0 only."""

    FILES = ("config.json", "metrics.jsonl", "checkpoint.pt", "checkpoint.previous.pt", "results.json", "figures.npz")

    def __init__(self, path: Path, identity: dict):
        self.path, self.identity = path, identity
        self.checkpoint, self.previous = path / "checkpoint.pt", path / "checkpoint.previous.pt"
        self.metrics = path / "metrics.jsonl"

    @classmethod
    def open(cls, path: Path, identity: dict, resume: bool, overwrite: bool, workers: Workers):
        """(folder, checkpoint or None), the same on every rank.

        identity: everything the run's numbers depend on; it is config.json, and a resumed run must agree with it.
        Raises BadInput where the folder holds a run and neither flag is given, where --resume finds no usable checkpoint or
        another configuration, and where the folder cannot be written.
        """
        folder = cls(path, finite_or_none(identity))
        # torchrun starts ranks again after a fault: then the run goes on by itself, or starts where nothing was saved.
        restarted = int(os.environ.get("TORCHELASTIC_RESTART_COUNT", 0)) > 0

        def prepare() -> dict | None:
            saved = folder.checkpoint.exists() or folder.previous.exists()
            state = None
            if resume or (restarted and saved):
                state = folder.load()
            elif saved or (path / "config.json").exists() and not restarted:
                if not overwrite:
                    raise BadInput(
                        f"--run-dir {path} already holds a run; --resume continues it, --overwrite deletes it"
                    )
            folder._make_ready(fresh=state is None)
            return state

        return folder, workers.from_main(prepare)

    def _make_ready(self, fresh: bool) -> None:
        try:
            self.path.mkdir(parents=True, exist_ok=True)
            if fresh:
                for name in self.FILES:
                    (self.path / name).unlink(missing_ok=True)
                write_json(self.path / "config.json", self.identity)
                self.metrics.touch()
            elif not os.access(self.path, os.W_OK):
                raise PermissionError(13, "Permission denied")
        except OSError as error:
            raise BadInput(f"--run-dir {self.path} cannot be written: {error.strerror or error}") from None

    def load(self) -> dict:
        """The newest good checkpoint. A damaged one is named on stderr and the one before it is used."""
        try:
            saved = json.loads((self.path / "config.json").read_text())
        except FileNotFoundError:
            raise BadInput(f"--resume: {self.path} holds no run (config.json is missing)") from None
        except (OSError, ValueError):
            raise BadInput(f"--resume: {self.path / 'config.json'} is damaged") from None
        differing = sorted(
            key for key in saved.keys() | self.identity.keys() if saved.get(key) != self.identity.get(key)
        )
        if differing:
            pairs = ", ".join(
                f"{key} is {saved.get(key)!r} there, {self.identity.get(key)!r} here" for key in differing
            )
            raise BadInput(f"--run-dir {self.path} holds another configuration: {pairs}")
        complaints = []
        for path in (self.checkpoint, self.previous):
            if not path.exists():
                continue
            try:
                state = load_checkpoint(path)
            except BadInput as error:
                complaints.append(str(error))
                continue
            if state["identity"] != fingerprint_of(self.identity):
                complaints.append(f"{path} belongs to another run")
                continue
            if complaints:
                print(
                    f"{'; '.join(complaints)}; continuing from {path}, iteration {state['iteration']}", file=sys.stderr
                )
            return state
        raise BadInput(f"--resume: no usable checkpoint in {self.path}" + "".join(f"; {line}" for line in complaints))

    def save(self, state: dict) -> None:
        """Replace the checkpoint; the one before it stays as checkpoint.previous.pt.

        state: what `torch.load(weights_only=True)` can read, with its "iteration".
        """
        buffer = io.BytesIO()
        torch.save({**state, "identity": fingerprint_of(self.identity)}, buffer)
        if self.checkpoint.exists():
            # A hard link first, so that at no moment there is no checkpoint under the main name.
            self.previous.unlink(missing_ok=True)
            os.link(self.checkpoint, self.previous)
        write_atomically(self.checkpoint, buffer.getvalue())

    def truncate_metrics(self, iteration: int) -> None:
        """Forget the lines after `iteration`: a resumed run writes them again."""
        kept = []
        for line in self.metrics.read_text().splitlines() if self.metrics.exists() else []:
            try:
                if json.loads(line)["iteration"] <= iteration:
                    kept.append(line)
            except (ValueError, KeyError, TypeError):
                break  # the line that was being written when the run was killed
        write_atomically(self.metrics, "".join(line + "\n" for line in kept).encode())

    def log(self, metrics: dict) -> None:
        """Append one line to metrics.jsonl."""
        with open(self.metrics, "a") as file:
            file.write(json.dumps(finite_or_none(metrics)) + "\n")


def load_checkpoint(path: Path) -> dict:
    """Read a checkpoint with weights_only=True. Raises BadInput if it is missing, truncated or something else."""
    try:
        state = torch.load(path, map_location="cpu", weights_only=True)
    except FileNotFoundError:
        raise BadInput(f"{path} does not exist") from None
    except Exception as error:  # torch raises half a dozen kinds for a damaged file
        raise BadInput(f"{path} is damaged or no checkpoint ({type(error).__name__})") from None
    if not isinstance(state, dict) or not {"iteration", "identity"} <= state.keys():
        raise BadInput(f"{path} is not a checkpoint of this catalog")
    return state


def fingerprint_of(identity: dict) -> str:
    return hashlib.sha256(json.dumps(identity, sort_keys=True).encode()).hexdigest()


class StopRequest:
    """Ctrl-C asks for a stop at the end of the iteration, where a checkpoint is written; a second Ctrl-C insists."""

    def __init__(self):
        self.requested = False

    def __enter__(self) -> "StopRequest":
        self._before = signal.signal(signal.SIGINT, self._ask)
        return self

    def _ask(self, number, frame) -> None:
        self.requested = True
        signal.signal(signal.SIGINT, self._before)

    def __exit__(self, *exception) -> None:
        signal.signal(signal.SIGINT, self._before)


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


def _sha256_of_sources(folder: Path) -> str:
    digest = hashlib.sha256()
    for path in sorted(folder.glob("*.py")):
        digest.update(path.name.encode() + b"\0" + path.read_bytes())
    return digest.hexdigest()


def source(stub_file: str) -> dict:
    """Which code made a result: commit, whether tracked code differed from it, and hashes of the stub and of common."""
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
        "dirty": bool(changed) if changed is not None else None,
        "stub_sha256": _sha256_of_sources(stub),
        "common_sha256": _sha256_of_sources(common),
    }
