"""Who evaluates what: torchrun's ranks, and threads within a rank.

Work comes in tiles with global numbers. Tile i belongs to rank i mod world size, and within a rank the tiles go through a
thread pool, one thread an operation. Neither changes a bit of a tile's result, and results are put back in tile order, so
any number of ranks and threads gives the same run. A plain `python` start is the world of size one.

All that ranks have to tell one another while they train goes along with the results of the tiles, in one exchange: whether one
of them was asked to stop (then all stop at the same place), and now and then a checksum of what they have trained, for each forms
its own update. A rank that does not answer in time is named, as far as can be told, and the others end; torchrun starts them
again.
"""

import os
import time
from collections import Counter
from collections.abc import Callable, Iterable, Sequence
from concurrent.futures import Future, ThreadPoolExecutor
from contextlib import contextmanager
from datetime import timedelta
from typing import NoReturn, TypeVar

import torch
import torch.distributed as dist
from torch import Tensor
from torch.distributed.rendezvous import rendezvous

from common.errors import BadInput, Fault, reason
from common.stop import StopRequest

BACKENDS = ("auto", "nccl", "gloo")
# The longest honest waits, in seconds: outside of training one rank encodes or scores while the others wait for it.
MEETING_TIMEOUT_S = 300.0
TIMEOUT_S = 1800.0
TRAINING_TIMEOUT_S = 300.0  # the default of --rank-timeout
ROLL_CALL_S = 10.0  # for the others to say that they are still there, once a rank has waited in vain
HEADER = 3  # int64 numbers before the tiles of an exchange: stop asked for; iteration and checksum of `announce`

Task = TypeVar("Task")
Result = TypeVar("Result")


def choose_device(name: str) -> torch.device:
    """ "auto" is CUDA where there is one. Under torchrun a rank takes GPU number LOCAL_RANK mod the number of GPUs.

    Raises BadInput for "cuda" without CUDA.
    """
    if name == "cuda" and not torch.cuda.is_available():
        raise BadInput("--device cuda: no CUDA device is available to this torch; choose cpu or auto")
    if name == "cpu" or not torch.cuda.is_available():
        return torch.device("cpu")
    return torch.device("cuda", int(os.environ.get("LOCAL_RANK", 0)) % torch.cuda.device_count())


class Stopped(Exception):
    """A stop was asked for, of this rank or another, and tiles were left out: the iteration has to be dropped."""


def checksum(tensors: Iterable[Tensor]) -> Tensor:
    """Of the bits of tensors of 4 or 8 bytes a number: int64 (), on their device, where nothing has to wait for it.

    Σ bits_i · w_i modulo 2⁶⁴ with odd, irregular weights: whole numbers, so that the order of the sum does not matter, and one
    number that differs is always seen. Good against faults, not against malice.
    """
    bits_M = torch.cat([tensor.detach().flatten().view(torch.int32) for tensor in tensors]).to(torch.int64)
    weight_M = torch.arange(len(bits_M), device=bits_M.device) * -7046029254386353131  # 2⁶⁴ / golden ratio
    weight_M = (weight_M ^ (weight_M >> 29)) * -4658895280553007687
    return (bits_M * ((weight_M ^ (weight_M >> 32)) | 1)).sum()


def differences(theirs: dict, ours: dict, where: str) -> str:
    """Which keys of two descriptions differ, and how; empty if none does."""
    keys = sorted(key for key in theirs.keys() | ours.keys() if theirs.get(key) != ours.get(key))
    return ", ".join(f"{key} is {theirs.get(key)!r} {where}, {ours.get(key)!r} here" for key in keys)


def cores() -> int:
    """Of this process."""
    return len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count() or 1


class Workers:
    """This rank's place among the ranks, and its thread pool.

    threads: of the pool on a CPU (0: the cores divided by the ranks of this node); a CUDA rank has none. timeout_s: how long a
    rank waits for the others while they train. stop: what asks to stop; without it nothing does. Use as a context.

    exchanges: how many there were; all ranks count the same. stop_agreed: as of the last exchange one rank was asked to
    stop; the same on all.
    """

    def __init__(
        self,
        device: torch.device,
        backend: str = "auto",
        threads: int = 0,
        timeout_s: float = TRAINING_TIMEOUT_S,
        stop: StopRequest | None = None,
    ):
        self.device, self.timeout_s, self.stop = device, timeout_s, stop or StopRequest()
        self.exchanges, self.stop_agreed = 0, False
        self._announced: tuple[int, Tensor | int] = (0, 0)
        # Of torch.distributed: all ranks, with a long and with a short timeout.
        self._group = self._training_group = None
        self.distributed = "RANK" in os.environ and "WORLD_SIZE" in os.environ
        self.rank = int(os.environ["RANK"]) if self.distributed else 0
        self.world_size = int(os.environ["WORLD_SIZE"]) if self.distributed else 1
        self.local_rank = int(os.environ.get("LOCAL_RANK", 0)) if self.distributed else 0
        ranks_here = int(os.environ.get("LOCAL_WORLD_SIZE", 1)) if self.distributed else 1
        self.backend = backend if backend != "auto" else "nccl" if device.type == "cuda" else "gloo"
        if self.backend == "nccl" and device.type != "cuda":
            raise BadInput("--backend nccl needs --device cuda; on a CPU choose gloo")
        self.threads = threads or max(1, cores() // ranks_here)
        self.node_threads = max(self.threads, min(cores(), self.threads * ranks_here))
        self._pool: ThreadPoolExecutor | None = None

    def __enter__(self) -> "Workers":
        # More threads inside an operation would change full sums, and two kinds of parallelism would fight over cores.
        torch.set_num_threads(1)
        if self.device.type == "cuda":
            torch.cuda.set_device(self.device)
            os.environ.setdefault("CUBLAS_WORKSPACE_CONFIG", ":4096:8")
            torch.use_deterministic_algorithms(True)
            torch.utils.deterministic.fill_uninitialized_memory = False  # every buffer is written before it is read
            # Embeddings and states are part of the problem: full float32, as on a CPU, not TF32.
            torch.backends.cudnn.allow_tf32 = False
            torch.backends.cuda.matmul.allow_tf32 = False
            # And float16 products are summed in float32, also where a library splits them.
            torch.backends.cuda.matmul.allow_fp16_reduced_precision_reduction = False
        else:
            self._wake_libraries()
            self._pool = self._make_pool(self.threads)
        if self.distributed:
            self._meet()
        return self

    def __exit__(self, kind, value, trace) -> None:
        if self._pool is not None:
            self._pool.shutdown(cancel_futures=True)
        # After a fault or a signal other ranks may be inside a collective that will not end: leave, torchrun ends them.
        if self.distributed and (kind is None or issubclass(kind, BadInput | SystemExit)):
            dist.destroy_process_group()

    def _meet(self) -> None:
        """Find the other ranks.

        A torchrun that hands its own store to the ranks keeps it over its restarts: there the addresses of ranks that died still
        stand, so that every attempt needs names of its own.
        """
        if self.backend == "nccl":
            # An operation that takes too long then raises here, as gloo's do, in place of aborting the process.
            os.environ.setdefault("TORCH_NCCL_BLOCKING_WAIT", "1")
        options = {"device_id": self.device} if self.backend == "nccl" else {}
        meeting = timedelta(seconds=MEETING_TIMEOUT_S)
        try:
            self.store, rank, world_size = next(rendezvous("env://", timeout=meeting))
            if os.environ.get("TORCHELASTIC_USE_AGENT_STORE") == "True":
                self.store = dist.PrefixStore(f"attempt {os.environ.get('TORCHELASTIC_RESTART_COUNT', 0)}", self.store)
            dist.init_process_group(
                self.backend, store=self.store, rank=rank, world_size=world_size, timeout=meeting, **options
            )
            groups = [
                dist.new_group(timeout=timedelta(seconds=seconds), backend=self.backend)
                for seconds in (TIMEOUT_S, self.timeout_s)
            ]
        except RuntimeError as error:
            raise Fault(
                f"the ranks did not find one another (within {MEETING_TIMEOUT_S:g} s): {reason(error)}"
            ) from error
        self._group, self._training_group = groups

    @contextmanager
    def while_training(self):
        """Within it ranks wait for one another `timeout_s` seconds and no longer."""
        patient, self._group = self._group, self._training_group
        try:
            yield
        finally:
            self._group = patient

    @staticmethod
    def _wake_libraries() -> None:
        """Call once, alone, what the threads of the pool would else call for the first time side by side.

        MKL finds out about the processor in the first call of a kind. When two threads made the first tanh together, one of
        them now and then (in 3 of 2,700 fresh processes) got other last bits in it, and the run another decoder.
        """
        index = torch.zeros(16, 2, dtype=torch.int32)
        for dtype in (torch.float32, torch.float64):
            square = torch.ones(16, 16, dtype=dtype)
            torch.mm(square, square).addmm_(square, square)
            torch.bmm(square[None], square[None])
            square.tanh().exp()
            torch.nn.functional.embedding_bag(index, square, mode="sum", per_sample_weights=square[:, :2])
        identity = torch.eye(16, dtype=torch.float64)  # projected noise and the ridge decoder solve in float64
        torch.cholesky_solve(identity[None], torch.linalg.cholesky_ex(identity[None]).L)
        torch.linalg.solve_triangular(identity[None], identity[None], upper=False)
        torch.linalg.solve(identity, identity)
        torch.linalg.qr(torch.linalg.eigh(identity).eigenvectors)

    @staticmethod
    def _make_pool(threads: int) -> ThreadPoolExecutor:
        return ThreadPoolExecutor(threads, initializer=torch.set_num_threads, initargs=(1,))

    @property
    def is_main(self) -> bool:
        return self.rank == 0

    def map(self, function: Callable[[Task], Result], *tasks: Sequence[Task]) -> list[Result]:
        """Results in the order of the tasks, computed by this rank's threads."""
        return list(self._pool.map(function, *tasks)) if self._pool else list(map(function, *tasks))

    def submit(self, function: Callable[[], Result]) -> Future:
        """Start a task beside the tiles; without a thread pool it runs at once."""
        if self._pool:
            return self._pool.submit(function)
        done: Future = Future()
        done.set_result(function())
        return done

    def map_on_node(self, function: Callable[[Task], Result], *tasks: Sequence[Task]) -> list[Result]:
        """The same with the threads of all ranks of the node, for work that one rank does while the others wait."""
        if self._pool is None or self.threads == self.node_threads:
            return self.map(function, *tasks)
        with self._make_pool(self.node_threads) as pool:
            return list(pool.map(function, *tasks))

    def run_tiles(
        self,
        evaluate: Callable[[int], Tensor],
        tiles: int,
        width: int,
        dtype: torch.dtype = torch.float64,
        device: torch.device | str = "cpu",
        may_stop: bool = False,
    ) -> Tensor:
        """Evaluate `tiles` numbered tiles across all ranks.

        evaluate(tile) → (width,) on any device. Returns (tiles, width) in `dtype` on `device`, the same on every rank.
        may_stop: raise Stopped, on every rank alike, if one was asked to stop; tiles not yet begun are left out.
        Raises Fault if a rank does not answer, or has trained something else (`announce`).
        """

        def evaluate_unless_stopped(tile: int) -> Tensor:
            if may_stop and self.stop.requested:
                raise Stopped
            return evaluate(tile)

        mine = range(self.rank, tiles, self.world_size)
        try:
            rows = [row.to(device, dtype) for row in self.map(evaluate_unless_stopped, mine)]
        except Stopped:
            rows = []
        most = -(-tiles // self.world_size)
        if self.distributed:
            local = torch.zeros(most, width, dtype=dtype, device=device)
            for place, row in enumerate(rows):
                local[place] = row
            gathered = self._exchange(local)
        else:
            self._exchange(None)
        if may_stop and self.stop_agreed:
            raise Stopped
        if not self.distributed:
            return torch.stack(rows)
        # gathered[rank][j] is tile j · world_size + rank
        return torch.stack(gathered, dim=1).flatten(0, 1)[:tiles].to(device)

    def sum_tiles(self, evaluate: Callable[[int], Tensor], tiles: int, width: int, may_stop: bool = False) -> Tensor:
        """Σ evaluate(tile), float32 (width,) on the workers' device, added up in the order of the tiles: a gradient has the
        same bits on any number of ranks. may_stop: as in `run_tiles`."""
        rows = self.run_tiles(evaluate, tiles, width, torch.float32, self.device, may_stop)
        total = rows[0].clone()
        for row in rows[1:]:
            total += row
        return total

    def meet(self) -> bool:
        """An exchange without tiles: whether a stop was asked for, the same on every rank."""
        self._exchange(torch.zeros(0, dtype=torch.float64))
        return self.stop_agreed

    def announce(self, iteration: int, tensors: Iterable[Tensor]) -> None:
        """Have the next exchange compare what the ranks have trained so far. Raises nothing here; the exchange does."""
        if self.distributed:
            self._announced = (iteration, checksum(tensors))

    def _exchange(self, local: Tensor | None) -> list[Tensor]:
        """The ranks' tensors, which have one shape, in the order of the ranks; `stop_agreed` and what was announced with them."""
        self.exchanges += 1
        asked = self.stop.requested
        if not self.distributed:
            self.stop_agreed |= asked
            return [local]
        device = self._collective_device
        (iteration, trained), self._announced = self._announced, (0, 0)
        header_H = torch.zeros(HEADER, dtype=torch.int64)
        header_H[0], header_H[1] = asked, iteration
        header_H = header_H.to(device)
        header_H[2] = trained
        # As bytes, so that whole numbers and the tiles' floating-point ones go in one message.
        message = torch.cat((header_H.view(torch.uint8), local.to(device).flatten().view(torch.uint8)))
        messages = [torch.empty_like(message) for _ in range(self.world_size)]
        self._collective(dist.all_gather, messages, message)
        begin = header_H.nbytes
        headers = torch.stack([message[:begin] for message in messages]).cpu().view(torch.int64).tolist()
        self.stop_agreed |= any(asked for asked, *_ in headers)
        self._require_same([tuple(trained) for _, *trained in headers])
        return [message[begin:].view(local.dtype).view(local.shape) for message in messages]

    def _require_same(self, trained: list[tuple[int, int]]) -> None:
        """trained: (iteration, checksum) of each rank."""
        if len(set(trained)) == 1:
            return
        # Which one is wrong cannot be known; where most agree, the others are named.
        (usual, _), *_ = Counter(trained).most_common()
        differing = [rank for rank, other in enumerate(trained) if other != usual]
        before = " or ".join(sorted({f"{iteration:,}" for iteration, _ in trained}))
        raise Fault(
            f"what rank(s) {', '.join(map(str, differing))} had trained after iteration {before} differs from what rank "
            f"{trained.index(usual)} had: their bits came apart; --resume continues from the last save"
        )

    def _collective(self, operation: Callable, *arguments, **options) -> None:
        """Call an operation of torch.distributed. Raises Fault if it fails, for another rank is then gone or hangs."""
        try:
            operation(*arguments, group=self._group, **options)
        except RuntimeError as error:
            self._roll_call(error)

    def _roll_call(self, error: RuntimeError) -> NoReturn:
        """Find out who is still there. torch's backends say that an operation failed, and not always because of whom.

        The names are the same at any exchange: what one rank still got of the one that hangs, another may not have got, and then
        they fail in two exchanges that follow one another. A rank ends with the roll call, so that there is one in an attempt.
        """
        names = [f"still there: rank {rank}" for rank in range(self.world_size)]
        missing = set(range(self.world_size)) - {self.rank}
        deadline = time.monotonic() + ROLL_CALL_S
        try:
            self.store.set(names[self.rank], "")
            # Asked to stop, torchrun has found the dead rank itself, and waits for this one.
            while missing and time.monotonic() < deadline and not self.stop.requested:
                missing = {rank for rank in missing if not self.store.check([names[rank]])}
                time.sleep(0.1)
        except RuntimeError:  # the store is gone, and torchrun with it
            pass
        waited = self.timeout_s if self._group is self._training_group else TIMEOUT_S
        if self.stop.requested:
            who = "this rank was asked to stop meanwhile"
        elif missing:
            who = f"rank(s) {', '.join(map(str, sorted(missing)))} died or hung"
        else:
            who = "all ranks are still there"
        raise Fault(
            f"an exchange with the other ranks failed (after {waited:g} s at most): {who}; "
            f"{self.backend} says: {reason(error)}; --resume continues from the last save"
        ) from error

    @property
    def _collective_device(self) -> torch.device:
        return self.device if self.backend == "nccl" else torch.device("cpu")

    def from_main(self, function: Callable[[], Result]) -> Result:
        """Run on rank 0 and hand the result to all; a BadInput there is raised on every rank."""
        outcome: list = [None, None]
        if self.is_main:
            try:
                outcome = [function(), None]
            except BadInput as error:
                outcome = [None, str(error)]
        if self.distributed:
            self._collective(dist.broadcast_object_list, outcome, src=0, device=self._collective_device)
        if outcome[1] is not None:
            raise BadInput(outcome[1])
        return outcome[0]

    def together(self, function: Callable[[], Result]) -> Result:
        """Run on every rank, each gets its own result; a BadInput on one rank is raised on all, once all are done."""
        result, complaint = None, None
        try:
            result = function()
        except BadInput as error:
            complaint = str(error)
        complaints = [complaint]
        if self.distributed:
            complaints = [None] * self.world_size
            self._collective(dist.all_gather_object, complaints, complaint)
        for text in complaints:
            if text is not None:
                raise BadInput(text)
        return result

    def require_equal(self, fingerprint: dict, what: str) -> None:
        """Raise BadInput, on every rank, where one rank's fingerprint differs from rank 0's: the first that does, and how."""
        if not self.distributed:
            return
        seen: list[dict] = [{}] * self.world_size
        self._collective(dist.all_gather_object, seen, fingerprint)
        for rank, other in enumerate(seen):
            if differing := differences(seen[0], other, "on rank 0"):
                raise BadInput(f"rank {rank} {what}: {differing}")

    def any(self, flag: bool) -> bool:
        """True on every rank if it is true on one."""
        if not self.distributed:
            return flag
        flags = torch.tensor([float(flag)], device=self._collective_device)
        self._collective(dist.all_reduce, flags, op=dist.ReduceOp.MAX)
        return bool(flags.item())

    def barrier(self) -> None:
        if self.distributed:
            self._collective(dist.barrier)
