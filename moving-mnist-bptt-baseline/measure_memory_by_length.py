"""Memory and memory traffic against T: one step of backpropagation through time beside a forward pass.

    python measure_memory_by_length.py

One minibatch of B sequences is gone through in five ways, in the first four with all of it side by side in one tile:

    bptt      forward, loss with the decoder, backward of core and decoder: one step of this experiment
    forward   scored with nothing kept, by common's Rollout.errors: what evaluating one parameter set costs
    streamed  the same, but with Win z_t + b formed at each step and not for all steps ahead of the loop
    pair      θ + σε and θ − σε with rank-one noise side by side, as an evolution strategy runs them: two parameter sets
    probes    the estimate of rank-space-es: r probes from every state, a few sequences after others, as many as its tiles have

Each way and length is measured in a fresh process with one thread, after a warm-up of two time steps, on made-up inputs (no
number below depends on their values). The minibatch, the weights and W0 are there before; neither counts:

    peak   CPU: how far the resident set rises during the step above what it was before (VmHWM, cleared before; where that
           cannot be had, ru_maxrss). Blocks from 64 kB on are returned to the system as soon as they are free, so that this
           is memory in use. CUDA: the growth of torch.cuda.max_memory_allocated.
    kept   what autograd saves on the way forward for the way back, each storage once.
    moved  bytes that operators read and write, counted and not timed, by the rule in common/costs.py. A dense W0 (CUDA) is
           read once a step.

Without a GPU: about two minutes at the default size. On a CPU the numbers do not depend on which one.
"""

import argparse
import dataclasses
import json
import os
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path

import torch
from moving_mnist_bptt_baseline import Config, ReservoirCore, start_adapter
from torch import Tensor
from tqdm import tqdm

from common.activity_noise import ActivityNoise, activity_gradients
from common.costs import BytesMoved, peak_growth, storage
from common.decoder import AdamDecoder
from common.dist import Workers, choose_device
from common.encoder import EMBEDDING
from common.errors import BadInput, Parser, run_main
from common.files import require_writable, write_json
from common.reservoir import draw_reservoir
from common.rollout import RankOneAdapter, Rollout, SharedAdapter
from common.run import environment, source
from common.windows import cut, member_errors

HERE = Path(__file__).resolve().parent
LENGTHS = (20, 50, 100, 200)
WARM_UP_STEPS = 2
MMAP_FROM = 65_536  # bytes
# Of rank-space-es at the default sizes on a CPU: sequences of a tile, windows of one step whose probes go side by side.
PROBED_SEQUENCES, PROBED_WINDOWS = 8, 15


def parse_arguments(argv: list[str] | None) -> argparse.Namespace:
    """Command line; raises BadInput."""

    def lengths(text: str) -> tuple[int, ...]:
        return tuple(int(word) for word in text.split(","))

    parser = Parser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--lengths", type=lengths, default=LENGTHS, metavar="T,T,…", help="default: 20,50,100,200")
    parser.add_argument("--hidden-size", type=int, default=2000, help="N (default: 2000)")
    parser.add_argument("--in-degree", type=int, default=50, help="k, entries of a row of W0 (default: 50)")
    parser.add_argument("--rank", type=int, default=32, help="r (default: 32)")
    parser.add_argument("--batch-size", type=int, default=64, help="B, sequences of the minibatch (default: 64)")
    parser.add_argument("--device", choices=("auto", "cpu", "cuda"), default="auto")
    parser.add_argument("--only", choices=METHODS, help="measure this way alone, here, and print its numbers as JSON")
    parser.add_argument(
        "--out", type=Path, default=HERE / "measurements" / "memory_by_length.json", help="file to write"
    )
    arguments = parser.parse_args(argv)
    most = {field.name: field.metadata["most"] for field in dataclasses.fields(Config)}
    if not all(1 <= length <= most["sequence_length"] for length in arguments.lengths):
        raise BadInput(f"--lengths must be whole numbers from 1 to {most['sequence_length']}")
    for flag, least in (("hidden_size", 2), ("in_degree", 1), ("rank", 1), ("batch_size", 1)):
        largest = most[flag] or most["hidden_size"]
        if not least <= getattr(arguments, flag) <= largest:
            raise BadInput(f"--{flag.replace('_', '-')} must be a whole number from {least} to {largest}")
    for flag in ("in_degree", "rank"):
        if getattr(arguments, flag) > arguments.hidden_size:
            raise BadInput(f"--{flag.replace('_', '-')} must not exceed --hidden-size")
    choose_device(arguments.device)
    return arguments


# --- What autograd keeps ---------------------------------------------------------------------------------------------


class Kept:
    """What autograd saves while this context is open: `bytes`, each storage once, those of `known` tensors not at all."""

    def __init__(self, known: list[Tensor]):
        self.known, self.sizes = {storage(tensor) for tensor in known}, {}
        self.hooks = torch.autograd.graph.saved_tensors_hooks(self._pack, lambda tensor: tensor)

    def _pack(self, tensor: Tensor) -> Tensor:
        if storage(tensor) not in self.known:
            self.sizes[storage(tensor)] = tensor.untyped_storage().nbytes()
        return tensor

    @property
    def bytes(self) -> int:
        return sum(self.sizes.values())

    def __enter__(self) -> "Kept":
        self.hooks.__enter__()
        return self

    def __exit__(self, *exception) -> None:
        self.hooks.__exit__(*exception)


# --- What is measured ------------------------------------------------------------------------------------------------


class Minibatch:
    """B made-up sequences of T steps, and the five ways to go through them."""

    def __init__(self, config: Config, rollout: Rollout, steps: int):
        device = rollout.device
        self.rollout, self.batch, self.rank = rollout, config.batch_size, config.rank
        random = torch.Generator().manual_seed(0)
        z_FEB = torch.randn(steps + 1, EMBEDDING, config.batch_size, generator=random).to(device)
        self.input_TEB, self.target_TEB = z_FEB[:-1], z_FEB[1:]
        self.u_Nr, self.v_Nr = (factor.to(device) for factor in start_adapter(config))
        self.linear = AdamDecoder(config.hidden_size, device).linear
        self.core = ReservoirCore(rollout, self.u_Nr, self.v_Nr, config.trains)
        signs = torch.randn(2, config.hidden_size + config.rank, generator=random).sign().to(device)
        self.a_1N, self.b_1r, self.c_1N, self.d_1r = (
            part for row in signs for part in row[None].split([config.hidden_size, config.rank], dim=1)
        )

    def known(self) -> list[Tensor]:
        """Tensors that are there whether or not there is a way back."""
        return [self.input_TEB, self.u_Nr, self.v_Nr, self.linear.weight, self.linear.bias]

    def bptt(self) -> None:
        """As the training step of this experiment, on one tile that holds the whole minibatch."""
        weights = [*self.core.parameters, self.linear.weight, self.linear.bias]
        states_TNB = self.core(self.input_TEB)
        prediction_TEB = self.linear.weight @ states_TNB + self.linear.bias[:, None]
        loss = (prediction_TEB - self.target_TEB).square().sum() / self.target_TEB.numel()
        torch.autograd.grad(loss, weights)

    def forward(self) -> None:
        self._errors(SharedAdapter(self.u_Nr, self.v_Nr), 1, self.rollout.drive(self.input_TEB)[:, :, None, None])

    def streamed(self) -> None:
        self._errors(SharedAdapter(self.u_Nr, self.v_Nr), 1, Streamed(self.rollout, self.input_TEB))

    def pair(self) -> None:
        noise = self.a_1N, self.b_1r, self.c_1N, self.d_1r
        adapter = RankOneAdapter(self.u_Nr, self.v_Nr, *noise, sigma=0.01)
        self._errors(adapter, 2, self.rollout.drive(self.input_TEB)[:, :, None, None])

    @torch.no_grad()
    def probes(self) -> None:
        """Of nothing but a tile and of the estimate, (N, r), is there more than of one step's probes."""
        decoder, sum_Nr = (self.linear.weight, self.linear.bias), torch.zeros_like(self.v_Nr)
        for first in range(0, self.batch, PROBED_SEQUENCES):
            some = slice(first, first + PROBED_SEQUENCES)
            drive_TNB, target_TEB = self.rollout.drive(self.input_TEB[:, :, some]), self.target_TEB[:, :, some]
            windows = cut(self.rollout, self.u_Nr, self.v_Nr, drive_TNB, target_TEB, 1)
            for group in range(0, windows.state_LNG.shape[2], PROBED_WINDOWS):
                here = windows.groups(group, PROBED_WINDOWS)
                sign_1rMG = torch.ones(1, self.rank, self.rank, here.state_LNG.shape[2], device=sum_Nr.device)
                kick_1rMG = torch.cat((torch.zeros_like(sign_1rMG[:, :, :1]), 0.01 * sign_1rMG), dim=2)
                error_1MG = member_errors(self.rollout, ActivityNoise(self.u_Nr, self.v_Nr, kick_1rMG), here, *decoder)
                q_1rG = activity_gradients(sign_1rMG, error_1MG[:, 1:] - error_1MG[:, :1], 0.01)
                sum_Nr += here.state_LNG[0] @ q_1rG[0].T

    @torch.no_grad()
    def _errors(self, adapter, signs: int, drive_TNDSB) -> None:
        target_TEDSB, columns = self.target_TEB[:, :, None, None], (1, signs, self.batch)
        self.rollout.errors(adapter, drive_TNDSB, target_TEDSB, self.linear.weight, self.linear.bias, columns)


class Streamed:
    """What `Rollout.errors` takes as drive_TNDSB, formed when its step comes."""

    def __init__(self, rollout: Rollout, input_TEB: Tensor):
        self.rollout, self.input_TEB = rollout, input_TEB

    def __len__(self) -> int:
        return len(self.input_TEB)

    def __iter__(self) -> Iterator[Tensor]:
        for z_EB in self.input_TEB:
            yield self.rollout.drive(z_EB[None])[0, :, None, None]


METHODS = ("bptt", "forward", "streamed", "pair", "probes")


def measure(method: str, config: Config, steps: int, device: torch.device) -> dict:
    """One row of the file. In a process that has done other things before, `peak_bytes` may miss what they left behind."""
    reservoir = draw_reservoir(config.hidden_size, config.in_degree, config.reservoir_seed)
    rollout = Rollout(reservoir, config.leak, 1.0, device)
    getattr(Minibatch(config, rollout, WARM_UP_STEPS), method)()
    minibatch = Minibatch(config, rollout, steps)
    step = getattr(minibatch, method)
    peak = peak_growth(step, device)
    with Kept(minibatch.known()) as kept:
        step()
    with BytesMoved() as moved:
        step()
    with BytesMoved() as drive, torch.no_grad():
        rollout.drive(minibatch.input_TEB)
    return {
        "method": method,
        "sequence_length": steps,
        "peak_bytes": peak,
        "kept_bytes": kept.bytes,
        "moved_bytes": moved.total,
        "moved_bytes_of_drive": drive.total,  # contained in the line above; a population shares it
        "moved_bytes_by_operator": dict(moved.by_operator.most_common()),
    }


def measure_apart(method: str, steps: int, arguments: argparse.Namespace) -> dict:
    """`measure` in a process of its own."""
    flags = {
        name: getattr(arguments, name.replace("-", "_")) for name in ("hidden-size", "in-degree", "rank", "batch-size")
    }
    words = [str(word) for name, value in flags.items() for word in (f"--{name}", value)]
    words += ["--only", method, "--lengths", str(steps), "--device", arguments.device]
    settings = {**os.environ, "MALLOC_MMAP_THRESHOLD_": str(MMAP_FROM)}
    done = subprocess.run([sys.executable, __file__, *words], env=settings, capture_output=True, text=True)
    if done.returncode:
        raise RuntimeError(f"{method} at T = {steps} ended with code {done.returncode}: {done.stderr.strip()[-500:]}")
    return json.loads(done.stdout)[0]


def main(argv: list[str] | None = None) -> int:
    arguments = parse_arguments(argv)
    sizes = {name: getattr(arguments, name) for name in ("hidden_size", "in_degree", "rank", "batch_size")}
    with Workers(choose_device(arguments.device), threads=1) as workers:
        if workers.distributed:
            raise BadInput("measurements run as one process: start them with python, not torchrun")
        if arguments.only:
            config = Config(**sizes)
            rows = [measure(arguments.only, config, steps, workers.device) for steps in arguments.lengths]
            print(json.dumps(rows))
            return 0
        require_writable(arguments.out, "--out")
        todo = [(method, steps) for steps in arguments.lengths for method in METHODS]
        rows = [measure_apart(*each, arguments) for each in tqdm(todo, desc="measuring", unit="process")]
        content = {"sizes": sizes, "rows": rows, "environment": environment(workers), "source": source(__file__)}
        write_json(arguments.out, content)
    print(table(rows))
    return 0


def table(rows: list[dict]) -> str:
    """The measurement as lines for a terminal."""
    lines = [f"{'T':>4}  {'':8}  {'peak':>10}  {'kept':>10}  {'moved':>10}   (MB)"]
    for row in rows:
        numbers = "  ".join(f"{row[f'{name}_bytes'] / 1e6:10,.1f}" for name in ("peak", "kept", "moved"))
        lines.append(f"{row['sequence_length']:4}  {row['method']:8}  {numbers}")
    return "\n".join(lines)


if __name__ == "__main__":
    run_main(main)
