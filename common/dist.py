"""Who evaluates what: torchrun's ranks, and threads within a rank.

Work comes in tiles with global numbers. Tile i belongs to rank i mod world size, and within a rank the tiles go through a
thread pool, one thread an operation. Neither changes a bit of a tile's result, and results are put back in tile order, so
any number of ranks and threads gives the same run. A plain `python` start is the world of size one.
"""

import os
from collections.abc import Callable, Sequence
from concurrent.futures import Future, ThreadPoolExecutor
from datetime import timedelta
from typing import TypeVar

import torch
import torch.distributed as dist
from torch import Tensor
from torch.distributed.rendezvous import rendezvous

from common.errors import BadInput

BACKENDS = ("auto", "nccl", "gloo")
TIMEOUT = timedelta(minutes=30)  # the longest honest wait: one rank encodes a training set, the others wait for it

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


class Workers:
    """This rank's place among the ranks, and its thread pool.

    threads: of the pool on a CPU (0: the cores divided by the ranks of this node); a CUDA rank has none. Use as a context.
    """

    def __init__(self, device: torch.device, backend: str = "auto", threads: int = 0):
        self.device = device
        self.distributed = "RANK" in os.environ and "WORLD_SIZE" in os.environ
        self.rank = int(os.environ["RANK"]) if self.distributed else 0
        self.world_size = int(os.environ["WORLD_SIZE"]) if self.distributed else 1
        self.local_rank = int(os.environ.get("LOCAL_RANK", 0)) if self.distributed else 0
        ranks_here = int(os.environ.get("LOCAL_WORLD_SIZE", 1)) if self.distributed else 1
        self.backend = backend if backend != "auto" else "nccl" if device.type == "cuda" else "gloo"
        if self.backend == "nccl" and device.type != "cuda":
            raise BadInput("--backend nccl needs --device cuda; on a CPU choose gloo")
        cores = len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count() or 1
        self.threads = threads or max(1, cores // ranks_here)
        self.node_threads = max(self.threads, min(cores, self.threads * ranks_here))
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
            options = {"device_id": self.device} if self.backend == "nccl" else {}
            dist.init_process_group(self.backend, timeout=TIMEOUT, **self._meeting_place(), **options)
        return self

    def __exit__(self, kind, value, trace) -> None:
        if self._pool is not None:
            self._pool.shutdown(cancel_futures=True)
        # After a fault or Ctrl-C other ranks may be inside a collective that will not end: leave, torchrun ends them.
        if self.distributed and (kind is None or issubclass(kind, BadInput | SystemExit)):
            dist.destroy_process_group()

    @staticmethod
    def _meeting_place() -> dict:
        """Where ranks find each other. By default torchrun keeps one store over its restarts: there the addresses of the
        ranks that died still stand, so that every attempt needs names of its own."""
        attempt = int(os.environ.get("TORCHELASTIC_RESTART_COUNT", 0))
        if attempt == 0:
            return {}
        store, rank, world_size = next(rendezvous("env://", timeout=TIMEOUT))
        return {"store": dist.PrefixStore(f"attempt {attempt}", store), "rank": rank, "world_size": world_size}

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
    ) -> Tensor:
        """Evaluate `tiles` numbered tiles across all ranks.

        evaluate(tile) → (width,) on any device. Returns (tiles, width) in `dtype` on `device`, the same on every rank.
        """
        mine = range(self.rank, tiles, self.world_size)
        rows = [row.to(device, dtype) for row in self.map(evaluate, mine)]
        if not self.distributed:
            return torch.stack(rows)
        most = -(-tiles // self.world_size)
        local = torch.zeros(most, width, dtype=dtype, device=device)
        for place, row in enumerate(rows):
            local[place] = row
        local = local.to(self._collective_device)
        gathered = [torch.empty_like(local) for _ in range(self.world_size)]
        dist.all_gather(gathered, local)
        # gathered[rank][j] is tile j · world_size + rank
        return torch.stack(gathered, dim=1).flatten(0, 1)[:tiles].to(device)

    def sum_tiles(self, evaluate: Callable[[int], Tensor], tiles: int, width: int) -> Tensor:
        """Σ evaluate(tile), float32 (width,) on the workers' device, added up in the order of the tiles: a gradient has the
        same bits on any number of ranks."""
        rows = self.run_tiles(evaluate, tiles, width, torch.float32, self.device)
        total = rows[0].clone()
        for row in rows[1:]:
            total += row
        return total

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
            dist.broadcast_object_list(outcome, src=0, device=self._collective_device)
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
            dist.all_gather_object(complaints, complaint)
        for text in complaints:
            if text is not None:
                raise BadInput(text)
        return result

    def require_equal(self, fingerprint: str, what: str) -> None:
        """Raise RuntimeError, on every rank, where one rank's fingerprint differs from rank 0's."""
        if not self.distributed:
            return
        seen: list[str] = [""] * self.world_size
        dist.all_gather_object(seen, fingerprint)
        if differing := [rank for rank, other in enumerate(seen) if other != seen[0]]:
            raise RuntimeError(f"{what} of rank(s) {', '.join(map(str, differing))} differ from those of rank 0")

    def any(self, flag: bool) -> bool:
        """True on every rank if it is true on one."""
        if not self.distributed:
            return flag
        flags = torch.tensor([float(flag)], device=self._collective_device)
        dist.all_reduce(flags, op=dist.ReduceOp.MAX)
        return bool(flags.item())

    def barrier(self) -> None:
        if self.distributed:
            dist.barrier()
