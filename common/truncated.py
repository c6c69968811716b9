"""Training by members that run for a few steps: what experiments share in which V learns from windows of sequences.

U is random, and stays so where an experiment does not say otherwise. The sequences of an iteration are cut into windows (common/windows.py) and shared out in tiles of a
fixed size; an experiment says what a tile's part of the estimate is (`tile`), everything after that is here: parts are added up
in the order of the tiles, V takes a step along the sum, the decoder learns beside it, and the estimate can be held against the gradient.
"""

import math
import time
from collections.abc import Callable
from dataclasses import dataclass

import torch
from torch import Tensor

from common import es, roll_in
from common.decoder import scheduled
from common.dist import Workers
from common.encoder import EMBEDDING
from common.errors import BadInput
from common.gradient import GradientMeter
from common.optimizer import OPTIMIZERS, make_optimizer
from common.philox import Purpose, gaussian
from common.rollout import GPUS_PER_NODE, Rollout
from common.run import setting
from common.supervised import DecoderTrainingSettings, ForwardTraining

SHAPINGS = ("raw", "standardised")
MEASURED_SEQUENCES = 2048  # whose gradient an estimate is compared with


@dataclass(frozen=True)
class TruncatedSettings(DecoderTrainingSettings):
    """The part of a Config that such experiments have in common."""

    rank: int = setting(32, "r, columns of U and V", least=1)
    u_scale: float = setting(3.0, "length of U's columns", above=0, most=1e6)
    iterations: int = setting(1000, "ES iterations", least=1, most=10**9)
    batch_size: int = setting(32, "sequences of an iteration", least=1, most=10**6)
    optimizer: str = setting("adam", "what steps V along the estimate", choices=OPTIMIZERS)
    momentum: float = setting(0.95, "of Muon", least=0, most=0.9999)
    learning_rate: float = setting(3e-3, "of V; Muon's is on the scale of Adam's", above=0, most=1e30)
    measure_cosine_every: int = setting(
        0, "iterations from one comparison of ĝ with the gradient through time to the next; 0: never",
        least=0, most=10**9, changes_result=False,
    )  # fmt: skip


def require_windows(config) -> None:
    """Raises BadInput where a configuration cannot be cut into windows."""
    if config.rank > config.hidden_size:
        raise BadInput(f"--rank must not exceed --hidden-size: {config.rank} > {config.hidden_size}")
    if config.sequence_length % config.window:
        raise BadInput(
            f"--window must divide --sequence-length: {config.sequence_length} is not a multiple of {config.window}"
        )
    if config.sequence_length < 2:
        raise BadInput("--sequence-length must be at least 2: V acts from the second step on")
    if config.dtype == "float16":
        raise BadInput("--dtype float16: what members differ by is lost in its rounding; choose float32 or float64")


def start_adapter(config) -> tuple[Tensor, Tensor]:
    """U as it stays and V at its start, float32 (N, r)."""
    shape = (config.hidden_size, config.rank)
    draw_1D = gaussian(config.seed, Purpose.ADAPTER_START, (torch.zeros(1, dtype=torch.int64), 0), math.prod(shape))
    return draw_1D[0].reshape(shape) * (config.u_scale / math.sqrt(config.hidden_size)), torch.zeros(shape)


@dataclass(frozen=True)
class Tiling:
    """How an iteration's sequences are shared out; a rule over the shape alone, never over speed or the number of ranks.

    at_once: sequences whose windows go side by side. tile: sequences that belong together, a multiple of it: enough of them for the
    unperturbed V to run through side by side, for narrower products are slow, and for no more than MOST_TILES tiles, each of which hands
    over a sum as large as V. (Below some thirty sequences not all of eight ranks get one.)
    """

    at_once: int
    tile: int

    LEAST, MOST_TILES = 4, 64

    @classmethod
    def of(cls, batch_size: int, at_once: int) -> "Tiling":
        """at_once: as many as the device would like; fewer where the batch is small."""
        at_once = min(at_once, -(-batch_size // GPUS_PER_NODE))
        tile = max(min(cls.LEAST, batch_size), -(-batch_size // cls.MOST_TILES))
        return cls(at_once, at_once * -(-tile // at_once))


@dataclass(frozen=True)
class TilePart:
    """What a tile adds to the estimate: Σ over windows of estimates of ∂loss/∂V, float32 (N, r); the sum of their losses (as a share of the
    embeddings' variance), of those windows that count; how many count; how many there are, padding excluded. rest: whatever else is to be summed, flat float32."""

    sum_Nr: Tensor
    loss: Tensor
    counting: Tensor
    windows: Tensor
    rest: Tensor | None = None


class TruncatedTraining(ForwardTraining):
    """V under evolution strategies in windows, the decoder by ordinary supervision."""

    advice = "try a smaller --learning-rate, or another --sigma"
    start_adapter = staticmethod(start_adapter)

    def __init__(self, config, problem, embeddings, workers: Workers):
        super().__init__(config, problem, embeddings, workers)
        self.factors = self.learning()
        self.optimizer = make_optimizer(config.optimizer, self.factors.values(), config.learning_rate, config.momentum)
        self.tiling = self.tiling_of(config, workers)
        self.meter = GradientMeter(self.rollout, embeddings, workers, "v")

    # What an experiment gives

    @staticmethod
    def tiling_of(config, workers: Workers) -> Tiling:
        raise NotImplementedError

    def tile(self, tile: int, iteration: int, decoder: tuple[Tensor, Tensor]) -> TilePart:
        """A tile's part; its sequences are those of stream OWN + tile, as `tile_data` has them."""
        raise NotImplementedError

    def before_tiles(self, iteration: int, decoder: tuple[Tensor, Tensor]) -> None:
        """Make what all tiles of an iteration share; every rank does."""

    @staticmethod
    def rest_size(config) -> int:
        """Of TilePart.rest."""
        return 0

    def learning(self) -> dict[str, Tensor]:
        """The factors that learn, V first."""
        return {"v": self.v_Nr}

    def other_gradients(self, rest: Tensor) -> dict[str, tuple[Tensor, float]]:
        """{factor: (its estimate (N, r), its learning rate as a multiple of V's)} from the mean of what tiles gave as `rest`."""
        return {}

    def leak_gradient(self, rest: Tensor) -> Tensor:
        """∂L/∂α, of α's shape, from the same; where the leak learns."""
        raise NotImplementedError

    def unit(self) -> float:
        """What an estimate is divided by, beside the number of windows that count."""
        raise NotImplementedError

    @staticmethod
    def rollouts_per_iteration(config) -> int:
        """Without the decoder's. Members in all windows of one sequence count one rollout each: they have taken T steps. The unperturbed V's counts, too,
        and once more where it rolls in."""
        raise NotImplementedError

    @staticmethod
    def law(config, batch_noise: float) -> float:
        """Cosine of ĝ to the truncated gradient of all sequences, by the law, where single sequences' gradients have noise ρ."""
        raise NotImplementedError

    # What they share

    @classmethod
    def derived(cls, config, workers: Workers) -> dict:
        tiling = cls.tiling_of(config, workers)
        return {"tile_sequences": tiling.tile, "sequences_at_once": tiling.at_once}

    @property
    def rollouts(self) -> int:
        """So far, the decoder's among them."""
        return self.iteration * self.rollouts_per_iteration(self.config) + self.decoder_rollouts

    def tile_data(self, tile: int, iteration: int) -> tuple[Tensor, Tensor, Tensor]:
        """Input and targets (T, 128, B) of a tile's sequences, and which are real, bool (B,): what lies beyond the last is padding."""
        input_TEB, target_TEB = self.minibatch(iteration, torch.tensor([self.OWN + tile]), self.tiling.tile)
        real_B = torch.arange(self.tiling.tile, device=self.workers.device)
        return input_TEB, target_TEB, real_B < self.config.batch_size - tile * self.tiling.tile

    def _tile(self, tile: int, iteration: int, decoder: tuple[Tensor, Tensor]) -> Tensor:
        """`tile` as one row, float32 (2Nr + rest + 3,): the sum in the first place if the tile's number is even, else in the second."""
        part = self.tile(tile, iteration, decoder)
        halves_2Nr = torch.zeros(2, *part.sum_Nr.shape, device=part.sum_Nr.device)
        halves_2Nr[tile % 2] = part.sum_Nr
        totals_3 = torch.stack((part.loss, part.counting.to(part.loss.dtype), part.windows.to(part.loss.dtype)))
        rest = totals_3[:0].to(torch.float32) if part.rest is None else part.rest
        return torch.cat((halves_2Nr.flatten(), rest, totals_3.to(torch.float32)))

    def _estimate(self, iteration: int, decoder: tuple[Tensor, Tensor]) -> tuple[Tensor, Tensor, float, float]:
        """ĝ of V in its two halves (2, N, r), the rest, the mean loss of windows, and the share of windows that did not count."""
        self.before_tiles(iteration, decoder)
        tiles, size = -(-self.config.batch_size // self.tiling.tile), 2 * self.v_Nr.numel()
        width = size + self.rest_size(self.config) + 3
        total = self.workers.sum_tiles(lambda tile: self._tile(tile, iteration, decoder), tiles, width, may_stop=True)
        loss, counting, windows = total[-3:].tolist()
        if counting:
            total[:-3] /= counting * self.unit()
        halves_2Nr, rest = total[:size].view(2, *self.v_Nr.shape), total[size:-3]
        return halves_2Nr, rest, loss / counting if counting else math.nan, 1 - counting / windows

    def iterate(self) -> dict:
        """One ES iteration; returns its line of metrics."""
        started = time.perf_counter()
        config, iteration = self.config, self.iteration + 1
        decoder = self.decoder.frozen_copy()
        (halves_2Nr, rest, train_loss, left_out), decoder_loss, h_rms = self.beside_decoder(
            iteration, lambda: self._estimate(iteration, decoder)
        )
        estimate = es.estimate_of(torch.zeros_like(halves_2Nr), halves_2Nr)
        rate = scheduled(config.learning_rate, config.schedule, (iteration - 1) / config.iterations)
        measured, update_ratio = {}, math.nan
        if config.measure_cosine_every and iteration % config.measure_cosine_every == 0:
            paused = time.perf_counter()
            measured = self._measure(estimate.grad_v_Nr, iteration, decoder)
            started += time.perf_counter() - paused  # it trains nothing
        if math.isfinite(train_loss) and math.isfinite(estimate.norm) and bool(rest.isfinite().all()):
            before_Nr = self.v_Nr.clone()
            gradients = {"v": (estimate.grad_v_Nr, 1.0), **self.other_gradients(rest)}
            for (name, factor_Nr), group in zip(self.factors.items(), self.optimizer.param_groups, strict=True):
                factor_Nr.grad, ratio = gradients[name]
                group["lr"] = rate * ratio
            self.optimizer.step()
            if self.leak:
                self.leak.step(self.leak_gradient(rest), rate / config.learning_rate * config.leak_rate)
            if norm := float(self.v_Nr.norm()):
                update_ratio = float((self.v_Nr - before_Nr).norm()) / norm

        self.iteration = iteration
        seconds = time.perf_counter() - started
        self.seconds += seconds
        return {
            "iteration": iteration,
            "train_loss": train_loss,
            "decoder_loss": decoder_loss,
            "left_out_fraction": left_out,
            "learning_rate": rate,
            **{f"{name}_norm": float(factor_Nr.norm()) for name, factor_Nr in self.factors.items()},
            **(self.leak.metrics() if self.leak else {}),
            "h_rms": h_rms,
            "gradient_norm": estimate.norm,
            "half_cosine": estimate.half_cosine,
            "update_ratio": update_ratio,
            **measured,
            "rollouts": self.rollouts,
            "rollouts_per_s": self.rollouts_per_iteration(config) / seconds,
            "wallclock_s": self.seconds,
        }

    def _measure(self, estimate_Nr: Tensor, iteration: int, decoder: tuple[Tensor, Tensor]) -> dict:
        """How good ĝ is: its cosine to the gradient through all time and to the truncated one, and the law of the latter.

        Of raw losses ĝ estimates the truncated gradient; of standardised ones the mean of g_w/|g_w|, for which the law does not speak."""
        config = self.config
        index_B = self.minibatch_index(iteration, torch.tensor([self.MEASURED]), MEASURED_SEQUENCES)
        here = (index_B, self.u_Nr, self.v_Nr, decoder)
        whole, truncated = self.meter.sums(*here), self.meter.sums(*here, window=config.window)
        noise = truncated.batch_noise
        return {
            "cosine_gradient": whole.cosines(estimate_Nr.flatten())[0],
            "cosine_truncated": truncated.cosines(estimate_Nr.flatten())[0],
            # Few sequences of little agreement may seem to cancel.
            "cosine_truncated_law": self.law(config, noise) if noise > 0 else math.nan,
            "batch_noise": noise,
        }

    def progress(self, metrics: dict) -> str:
        return (
            f"train {metrics['train_loss']:.4f}, validation {self.validation:.4f}, "
            f"{metrics['rollouts_per_s']:,.0f} rollouts/s"
        )

    def control(self) -> Callable[[Tensor], Tensor]:
        return self.shuffled("v")

    def state_dict(self) -> dict:
        return {**super().state_dict(), "optimizer": self.optimizer.state_dict()}

    def load_state_dict(self, state: dict) -> None:
        super().load_state_dict(state)
        self.optimizer.load_state_dict(state["optimizer"])

    @classmethod
    def cost_lines(
        cls, config, workers: Workers, columns: int, seconds: float, rollout: Rollout, decoder: tuple[Tensor, Tensor]
    ) -> list[str]:
        """What a run will cost. columns: run side by side; seconds: that a tile of the population took, of this rollout and decoder."""
        tiling, element = cls.tiling_of(config, workers), getattr(torch, config.dtype).itemsize
        tiles = -(-config.batch_size // tiling.tile)
        lanes = workers.world_size * (workers.threads if workers.device.type == "cpu" else 1)
        u_Nr, v_Nr = (factor.to(workers.device) for factor in cls.start_adapter(config))
        rolling_s, rolling = roll_in.costs(
            config, tiling.tile, lambda h_NB, z_EB: rollout.step(u_Nr, v_Nr, h_NB, rollout.drive(z_EB)), decoder
        )
        iteration_s = -(-tiles // lanes) * (seconds + rolling_s)
        rollouts = cls.rollouts_per_iteration(config)
        sequences = config.train_sequences + config.validation_sequences + config.test_sequences
        inputs, size = config.sequence_length * config.hidden_size * tiling.tile, config.hidden_size * config.rank
        per_factor = 4 if config.optimizer == "adam" else 3  # itself, its gradient and its moments
        learning = 2 if cls.rest_size(config) >= size else 1
        megabytes = {
            "the state of windows side by side": config.hidden_size * columns * element / 1e6,
            "states and driving input of a tile": 3 * inputs * element / 1e6,
            "the tiles' parts of the estimate": 2 * tiles * (2 * size + cls.rest_size(config)) * 4 / 1e6,
            "θ, its gradient and the optimiser's moments": (per_factor * learning + 2 - learning) * size * 4 / 1e6,
            "encoded sequences (on disk on a CPU)": sequences * (config.sequence_length + 1) * EMBEDDING * 4 / 1e6,
        }
        if config.decoder == "ridge":
            megabytes["the decoder's sums and a copy of them"] = 2 * (config.hidden_size + 1) ** 2 * 4 / 1e6
        return [
            f"{rollouts:,} rollouts an iteration, {rollouts * config.iterations:,} in {config.iterations:,} iterations",
            f"{tiles:,} tiles of {tiling.tile} sequences ({columns} columns side by side); one took {seconds:.3g} s here",
            *rolling,
            f"expected {iteration_s:.3g} s an iteration, {iteration_s * config.iterations / 60:.3g} min for the population",
            "memory: " + ", ".join(f"{name} {size:,.1f} MB" for name, size in megabytes.items()),
        ]
