"""A problem: what every method is measured on, and nothing of how it trains.

Two runs whose problems agree in every field share a `problem_id` and may be compared: same sequences, same embeddings, same
reservoir, same test set. The training budget (number of training sequences, population, iterations) is not part of it.

`Embeddings` turns sequence indices into embeddings. On the CPU encoding costs more than small populations do, so each split
is encoded once and kept outside the repository in a file named after what it holds; on a GPU training sequences are
encoded at the start and held in its memory, or, where they do not fit, generated and encoded on the fly.
"""

import contextlib
import math
import os
import uuid
from collections.abc import Iterable
from dataclasses import asdict, dataclass, fields, replace
from functools import cached_property
from pathlib import Path

import numpy as np
import torch
from torch import Tensor
from tqdm import tqdm

from common.digits import SOURCES, Digits, load_digits
from common.dist import Workers
from common.encoder import CALIBRATION_FRAMES, CALIBRATION_SEQUENCES, CHANNELS, EMBEDDING, Encoder
from common.errors import BadInput, reason
from common.moving_mnist import MovingMNIST
from common.reservoir import TOPOLOGIES, WEIGHT_SCALES, Reservoir, draw_reservoir, grown
from common.run import fingerprint_of, setting

RULE_VERSION = 1  # raise it when data, encoder or reservoir draw change their numbers
STANDARDISE = ("calibration", "none")
MOST_SEED = 2**63 - 1
MOST_AHEAD = 100  # frames, five times as many as the brief's sequences have
CHUNK = 64  # sequences encoded at a time
HELD_SHARE = 1 / 4  # of a GPU's memory for the training set's embeddings: 3 million sequences of 21 frames on an H200
# Other problems, for presets of the same name. The second one has α chosen freely, as the defaults below are chosen; the others are
# rungs of the brief's schedule, one change at a time.
FREE_LEAK = dict(leak=1.0, gain=0.6, input_scale=0.03)
TWO_DIGITS = dict(digits=2)
FIFTY_FRAMES = dict(sequence_length=50)
HUNDRED_FRAMES = dict(sequence_length=100)
# Where the whole schedule begins that a laptop can climb in minutes (--curriculum): N = 400 → 1000, T = 20 → 100.
CURRICULUM = dict(hidden_size=400, train_sequences=2000, validation_sequences=500, test_sequences=1000)


@dataclass(frozen=True)
class ProblemSettings:
    """The part of every experiment's Config that says what is predicted, from what, by which frozen network.

    Gain, input scale and leak are those whose ridge readout is best on the validation set, α kept in the brief's range
    (reservoir-readout-only/sweep_reservoir_readout_only.py). The last three fields are not part of the problem: how much
    there is to train on, and two more things to score.
    """

    digits: int = setting(1, "digits in a sequence", choices=(1, 2))
    digit_source: str = setting("embedded", "5,000 digits that come with the code, or all of MNIST", choices=SOURCES)
    mnist_dir: str | None = setting(None, "folder of the MNIST files, for --digit-source mnist", changes_result=False)
    sequence_length: int = setting(20, "T, inputs of a sequence; frame T + 1 is the last target", least=1, most=10_000)
    standardise: str = setting(
        "calibration", "affine map behind the encoder; none: pooled features", choices=STANDARDISE
    )
    hidden_size: int = setting(2000, "N, units of the reservoir", least=2, most=100_000)
    grown_from: int = setting(
        0, "units, the first ones, that are those of a reservoir of this size and hear none of the others; 0: none",
        least=0, most=100_000,
    )  # fmt: skip
    in_degree: int = setting(50, "k, entries of a row of W0", least=1)
    topology: str = setting("fixed-in-degree", "how the entries of W0 are placed", choices=TOPOLOGIES)
    weight_scale: str = setting("std", "whether gain/√k is W0's standard deviation or variance", choices=WEIGHT_SCALES)
    gain: float = setting(0.8, "scale of W0", above=0, most=1000)
    input_scale: float = setting(0.03, "standard deviation of Win", above=0, most=1000)
    leak: float = setting(0.5, "α of the leaky units", above=0, most=1)
    data_seed: int = setting(0, "of the sequences", least=0, most=MOST_SEED)
    encoder_seed: int = setting(0, "of the frozen CNN", least=0, most=MOST_SEED)
    reservoir_seed: int = setting(0, "of W0 and Win", least=0, most=MOST_SEED)
    validation_sequences: int = setting(1000, "size of the validation set", least=1, most=1_000_000)
    test_sequences: int = setting(2000, "size of the test set", least=1, most=1_000_000)
    train_sequences: int = setting(10_000, "different training sequences", least=1, most=2**31 - 1)
    public_test_file: str | None = setting(None, "also score on this mnist_test_seq.npy", changes_result=False)
    horizon: int = setting(
        0, "H, also score predictions up to H frames ahead, made from predictions in place of frames; 0: do not",
        least=0, most=MOST_AHEAD, changes_result=False,
    )  # fmt: skip

    def load_digits(self) -> Digits:
        """Raises BadInput for digit files that are missing or damaged."""
        return load_digits(self.digit_source, self.mnist_dir)

    def problem(self, digits: Digits) -> "Problem":
        """The problem that these settings and these digit images name. Raises BadInput for one that cannot be scored."""
        if not errors_are_standardised(self) and self.test_sequences * self.sequence_length < 2:
            raise BadInput(
                "--test-sequences 1 with --sequence-length 1: errors are divided by the variance of a single target"
            )
        values = {f.name: getattr(self, f.name) for f in fields(Problem) if f.name != "digits_sha256"}
        return Problem(**values, digits_sha256=digits.sha256)


@dataclass(frozen=True)
class Problem:
    """Every choice that changes what is predicted or from what. Field names are those of the stubs' flags."""

    digits: int
    digit_source: str
    digits_sha256: str
    sequence_length: int
    standardise: str
    hidden_size: int
    grown_from: int
    in_degree: int
    topology: str
    weight_scale: str
    gain: float
    input_scale: float
    leak: float
    data_seed: int
    encoder_seed: int
    reservoir_seed: int
    validation_sequences: int
    test_sequences: int

    @property
    def description(self) -> dict:
        values = asdict(self)
        if not self.grown_from:  # a reservoir that is drawn as a whole, as all are but those
            del values["grown_from"]
        return {"rule_version": RULE_VERSION, **values}

    @property
    def id(self) -> str:
        return fingerprint(self.description)

    def reservoir(self) -> Reservoir:
        def of_size(size: int) -> Reservoir:
            return draw_reservoir(
                size,
                self.in_degree,
                self.reservoir_seed,
                self.gain,
                self.input_scale,
                self.topology,
                self.weight_scale,
            )

        whole = of_size(self.hidden_size)
        return grown(of_size(self.grown_from), whole) if self.grown_from else whole


def errors_are_standardised(problem: "Problem | ProblemSettings") -> bool:
    """Whether the targets have a variance of 1 as they are."""
    return problem.digits == 1 and problem.standardise == "calibration"


def fingerprint(description: dict) -> str:
    """First 12 hex digits of the SHA-256 of a JSON-able description, keys in any order."""
    return fingerprint_of(description)[:12]


def cache_directory() -> Path:
    """Where encoded sequences are kept: $MOVING_MNIST_CACHE, else $XDG_CACHE_HOME or ~/.cache, in a folder of our own."""
    if own := os.environ.get("MOVING_MNIST_CACHE"):
        return Path(own)
    return Path(os.environ.get("XDG_CACHE_HOME") or Path.home() / ".cache") / "moving-mnist-es-reservoir"


class Embeddings:
    """Standardised embeddings by (split, index).

    Results live on the workers' device. On the CPU every split is read from the cache, which
    `prepare` fills; a GPU encodes them at the start and holds them, training sequences only if they fit (else on the fly).

    horizon: H. Where it is not 0, `longer` holds, once `prepare` is done, the test set with frames 1 … T+H.
    """

    def __init__(self, problem: Problem, digits: Digits, train_sequences: int, workers: Workers, horizon: int = 0):
        self.data = MovingMNIST(digits, problem.digits, problem.sequence_length + 1, problem.data_seed)
        self.problem = problem
        self.horizon, self.longer = horizon, None
        self.sizes = {
            "train": train_sequences,
            "validation": problem.validation_sequences,
            "test": problem.test_sequences,
        }
        self.device = workers.device
        self.map_tiles = workers.map_on_node
        self.encoder = Encoder(problem.encoder_seed, self.device)
        self.calibrated = False
        self.stored: dict[str, Tensor] = {}

    # What the bytes of a split depend on: the file's name is a hash of this.
    def _description(self, split: str) -> dict:
        problem = self.problem
        return {
            "rule_version": RULE_VERSION,
            "split": split,
            "sequences": self.sizes[split],
            "frames": problem.sequence_length + 1,
            "digits": problem.digits,
            "digits_sha256": problem.digits_sha256,
            "data_seed": problem.data_seed,
            "encoder_seed": problem.encoder_seed,
            "channels": CHANNELS,
            "standardise": problem.standardise,
            "calibration": [CALIBRATION_SEQUENCES, CALIBRATION_FRAMES],
        }

    def _path(self, split: str) -> Path:
        return cache_directory() / f"{split}-{fingerprint(self._description(split))}.npy"

    def _shape(self, split: str) -> tuple[int, int, int]:
        return self.sizes[split], self.problem.sequence_length + 1, EMBEDDING

    def prepare(self, workers: Workers) -> None:
        """Encode what is not cached yet. On CPUs one rank of a node writes while the others wait, then read.

        Raises BadInput if the cache folder cannot be written.
        """
        first = self.device.type != "cpu" or workers.local_rank == 0
        workers.together(lambda: self._prepare(progress=workers.is_main) if first else None)
        if not self.stored:
            self._prepare(progress=False)
        if self.horizon:
            self.longer = self._longer(workers)
            self.longer.prepare(workers)

    def _longer(self, workers: Workers) -> "Embeddings":
        """The test set of a problem whose sequences are longer and which is else the same: sequences that begin with this one's,
        from the same encoder."""
        problem = replace(self.problem, sequence_length=self.problem.sequence_length + self.horizon - 1)
        longer = Embeddings(problem, self.data.digits, 0, workers)
        longer.sizes = {"test": self.sizes["test"]}
        longer.encoder, longer.calibrated = self.encoder, self.calibrated
        return longer

    def _prepare(self, progress: bool) -> None:
        # os.path: Path.exists raises for a name that is too long, of which `_write` complains.
        cached = [s for s in self.sizes if os.path.exists(self._path(s))] if self.device.type == "cpu" else []
        for split in self.sizes:
            if self.device.type != "cpu":
                if split != "train" or self._device_holds(split):
                    self.stored[split] = self._encoded(split, progress)
                continue
            if split not in cached:
                self._write(self._path(split), self._shape(split), self._encoded_chunks(split, progress))
            self.stored[split] = torch.from_numpy(self._open(self._path(split), self._shape(split)))

    def _device_holds(self, split: str) -> bool:
        """Whether a GPU keeps a split's embeddings. Encoding a frame anew costs more than all else that a decoder does with it."""
        memory = torch.cuda.get_device_properties(self.device).total_memory
        return math.prod(self._shape(split)) * 4 <= HELD_SHARE * memory

    def _encoded(self, split: str, progress: bool) -> Tensor:
        """All of a split, float32 (M, T+1, 128) on the device."""
        z_MFE = torch.empty(self._shape(split), device=self.device)
        start = 0
        for z_BFE in self._encoded_chunks(split, progress):
            z_MFE[start : start + len(z_BFE)] = z_BFE
            start += len(z_BFE)
        return z_MFE

    def _encoded_chunks(self, split: str, progress: bool):
        """Tensors (≤ CHUNK, T+1, 128) in order of the index."""
        count = self.sizes[split]
        with tqdm(total=count, desc=f"encoding {split}", unit="seq", disable=not progress, leave=False) as bar:
            for start in range(0, count, CHUNK):
                index_B = np.arange(start, min(start + CHUNK, count))
                yield self.encode_sequences(split, torch.from_numpy(index_B).to(self.device))
                bar.update(len(index_B))

    def encode_sequences(self, split: str, index_B: Tensor) -> Tensor:
        """Generate and encode: int64 (B,) → float32 (B, T+1, 128)."""
        if self.device.type == "cpu":
            frames = torch.from_numpy(self.data.frames(split, index_B.numpy()))
        else:
            frames = self.data.frames_torch(split, index_B)
        return self.encode_frames(frames)

    def encode_frames(self, frames_BFYX: Tensor) -> Tensor:
        """uint8 (B, F, 64, 64) → float32 (B, F, 128). The first call calibrates: a run on cached splits need not."""
        if not self.calibrated and self.problem.standardise == "calibration":
            self._calibrate()
        self.calibrated = True
        return self.encoder.encode(frames_BFYX.flatten(0, 1), self.map_tiles).unflatten(0, frames_BFYX.shape[:2])

    def _calibrate(self) -> None:
        """Calibrate the encoder. It is the same for problems of any length and number of digits: on a CPU it is kept beside the splits."""
        of_split = {"sequences", "split", "frames", "digits", "standardise"}
        description = {name: value for name, value in self._description("test").items() if name not in of_split}
        path, shape = cache_directory() / f"calibration-{fingerprint(description)}.npy", (2, EMBEDDING)
        if self.device.type == "cpu" and os.path.exists(path):
            self.encoder.shift_E, self.encoder.scale_E = torch.from_numpy(np.array(self._open(path, shape)))
            return
        self.encoder.calibrate(self.data, self.map_tiles)
        if self.device.type == "cpu":
            self._write(path, shape, [torch.stack((self.encoder.shift_E, self.encoder.scale_E))])

    def _write(self, path: Path, shape: tuple[int, ...], parts: Iterable[Tensor]) -> None:
        """A float32 array whose parts, along its first axis, come one after another."""
        temporary = path.with_suffix(f".{uuid.uuid4().hex}.tmp")  # nodes may share the folder, and even process ids
        try:
            path.parent.mkdir(parents=True, exist_ok=True)
            # Not through a memory map: on a full disk that ends in a signal and without a word.
            with open(temporary, "wb") as file:
                header = {"descr": "<f4", "fortran_order": False, "shape": shape}
                np.lib.format.write_array_header_1_0(file, header)
                for part in parts:
                    file.write(np.ascontiguousarray(part.numpy(), "<f4"))
                file.flush()
                os.fsync(file.fileno())
            os.replace(temporary, path)
        except OSError as error:
            raise BadInput(
                f"cannot write the cache of encoded sequences {path}: {error.strerror or error}; "
                "the environment variable MOVING_MNIST_CACHE names another folder"
            ) from None
        finally:
            with contextlib.suppress(OSError):  # gone already, or never made
                temporary.unlink()

    @staticmethod
    def _open(path: Path, shape: tuple[int, ...]) -> np.ndarray:
        # Copy-on-write, so that torch may hold it as a tensor; nobody writes to it.
        try:
            array = np.lib.format.open_memmap(path, mode="c")
        except Exception as error:  # a damaged header comes out of numpy as half a dozen kinds
            raise BadInput(f"the cache file {path} is damaged ({reason(error)}); delete it and start again") from None
        if array.shape != shape or array.dtype != np.float32:
            raise BadInput(f"the cache file {path} is damaged (shape {array.shape}); delete it and start again")
        return array

    def get(self, split: str, index_B: Tensor) -> Tensor:
        """Embeddings of frames 1 … T+1: int64 (B,) → float32 (B, T+1, 128) on `device`."""
        if split in self.stored:
            return self.stored[split][index_B.to(self.stored[split].device)]
        return self.encode_sequences(split, index_B.to(self.device))

    @cached_property
    def error_scale(self) -> float:
        """What squared errors are divided by. 1 for one digit; for two digits or raw features, the test variance.

        The standardisation comes from one-digit sequences at every rung, so that a model can be carried over; with two
        digits the variance of its targets is no longer 1, and dividing by it keeps "MSE 1 = predicts the mean" true.
        """
        if errors_are_standardised(self.problem):
            return 1.0
        target_ME = self.stored["test"][:, 1:].flatten(0, 1).to("cpu", torch.float64)
        return float(target_ME.var(dim=0, correction=0).mean())
