"""The work that benchmarks time: tiles of a population on the brief's network, with made-up weights and inputs.

Nothing here depends on what the numbers are, so that nothing has to be trained, encoded or read.
"""

import dataclasses
import threading
from dataclasses import dataclass

import torch
from torch import Tensor

from common import es
from common.dist import Workers
from common.encoder import EMBEDDING
from common.projection import VisitedStates, project
from common.reservoir import draw_reservoir
from common.rollout import Rollout, SharedAdapter, TileResult, pairs_per_tile

LEAK, GUARD, SIGMA = 0.5, 0.95, 0.01


@dataclass(frozen=True)
class Sizes:
    """The brief's: N units with k inputs each, rank r, T steps, K pairs on B sequences."""

    size: int = 2000
    in_degree: int = 50
    rank: int = 32
    steps: int = 20
    batch: int = 32
    pairs: int = 32

    @property
    def columns(self) -> int:
        """Rollouts of an evaluation: 2 K B."""
        return 2 * self.pairs * self.batch

    def but(self, **changes) -> "Sizes":
        return dataclasses.replace(self, **changes)


BRIEF = Sizes()
QUICK = Sizes(size=200, in_degree=10, rank=4, steps=5, batch=4, pairs=16)


class Workload:
    """A population on one device. own_data: each pair has sequences of its own, else all share B."""

    def __init__(
        self,
        sizes: Sizes,
        device: torch.device | str = "cpu",
        dtype: torch.dtype = torch.float32,
        own_data: bool = False,
        kernel: str = "torch",
    ):
        self.sizes, self.device, self.dtype, self.own_data = sizes, torch.device(device), dtype, own_data
        self.rollout = Rollout(draw_reservoir(sizes.size, sizes.in_degree, seed=0), LEAK, GUARD, device, dtype, kernel)
        self.tile_pairs = pairs_per_tile(sizes.pairs, sizes.batch, sizes.size, dtype, self.device.type, kernel)
        self.tiles = -(-sizes.pairs // self.tile_pairs)
        self.iteration = 1
        self.of_thread = threading.local()
        self.columns = (self.tile_pairs, 2, sizes.batch)
        self.depth = self.tile_pairs if own_data else 1
        generator = torch.Generator().manual_seed(0)

        def draw(*shape: int) -> Tensor:
            return torch.randn(*shape, generator=generator).to(self.device)

        self.u_Nr = (draw(sizes.size, sizes.rank) * 0.01).to(dtype)
        self.v_Nr = (draw(sizes.size, sizes.rank) / sizes.size**0.5).to(dtype).T.contiguous().T
        self.weight_EN, self.bias_E = draw(EMBEDDING, sizes.size) / sizes.size**0.5, draw(EMBEDDING) * 0.1
        self.z_TEB = draw(sizes.steps + 1, EMBEDDING, self.depth * sizes.batch)
        self.drive_TNDSB, self.target_TEDSB = self.inputs()

    def inputs(self) -> tuple[Tensor, Tensor]:
        """Win z + b (T, N, D, 1, B), formed anew, and the targets (T, 128, D, 1, B). D = 1 where all pairs share them."""
        shape = (self.depth, 1, self.sizes.batch)
        return self.rollout.drive(self.z_TEB[:-1]).unflatten(2, shape), self.z_TEB[1:].unflatten(2, shape)

    def _run(self, adapter, watch=None, inputs: tuple[Tensor, Tensor] | None = None) -> TileResult:
        decoder = self.weight_EN, self.bias_E
        inputs = inputs or (self.drive_TNDSB, self.target_TEDSB)
        return self.rollout.errors(adapter, *inputs, *decoder, self.columns, watch=watch)

    def inference(self, tile: int) -> TileResult:
        """As many columns as a tile of the population has, all through the unperturbed network."""
        return self._run(SharedAdapter(self.u_Nr, self.v_Nr))

    def members(self, tile: int, kind: str = "rank1", watch=None) -> TileResult:
        """A tile of the population, its noise drawn here as in training."""
        return self._run(self.adapter(tile, kind), watch)

    def adapter(self, tile: int, kind: str = "rank1"):
        noise = es.make_noise(kind, 0, self.sizes.size, self.sizes.rank)
        pairs_P = torch.arange(tile * self.tile_pairs, (tile + 1) * self.tile_pairs, device=self.device)
        return noise.adapter(self.u_Nr, self.v_Nr, self.iteration, pairs_P, SIGMA)

    def members_visiting(self, tile: int) -> Tensor:
        """The same with rank-one noise, and what each pair visited: (P, M, N), until this thread takes its next tile."""
        if not hasattr(self.of_thread, "visited"):
            visited = VisitedStates(self.sizes.steps, self.sizes.size, self.columns, self.dtype, self.device)
            self.of_thread.visited = visited
        self.members(tile, watch=self.of_thread.visited)
        return self.of_thread.visited.of_pairs()

    def members_projected(self, tile: int) -> Tensor:
        """Beyond that, V's noise factor of each pair projected on the states that it visited: (P, N)."""
        noise = es.RankOneNoise(0, self.sizes.size, self.sizes.rank)
        pairs_P = torch.arange(tile * self.tile_pairs, (tile + 1) * self.tile_pairs, device=self.device)
        return project(self.members_visiting(tile), noise.draw(self.iteration, pairs_P)[2])

    def all_tiles(self, run, workers: Workers) -> list:
        """run(tile) for the whole population, on the workers' threads: another iteration, with noise of its own."""
        self.iteration += 1
        return workers.map(run, range(self.tiles))
