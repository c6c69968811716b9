"""Truncated evolution strategies: the adapter inside a frozen reservoir learns from members that run for a few steps only.

    z_t     = frozen random CNN of frame t, standardised                                                 (128)
    h_t     = (1 − α) h_{t−1} + α tanh(W0 h_{t−1} + U (Vᵀ h_{t−1}) + Win z_t + b),   h_0 = 0               (N)
    ẑ_{t+1} = Wout h_t + bout                                                                           (128)
    L       = mean over t = 1 … T, sequences and dimensions of (ẑ_{t+1} − z_{t+1})²

Frozen: the CNN, W0 (sparse), Win, b, and U ~ N(0, u²/N) as it is drawn. Trained by evolution strategies, with forward passes
only: V (N, r), from 0. Trained by ordinary supervision on the unperturbed V: Wout, bout. One iteration:

    1. the unperturbed V runs through a few sequences, each cut into windows of --window steps
    2. in each window --members members start from the state there, with different noise on V: V + σ c dᵀ, c and d of ±1; each
       returns one number, its loss in the window
    3. loss less the mean of its window's members, in standard deviations → weight w; ĝ = Σ over windows of P Σ_m w_m c_m d_mᵀ / σ, where
       P projects on the states of the window, for of the rest of c_m its losses know nothing
    4. Adam steps V along ĝ; meanwhile the decoder has learned (--decoder)

With --window as long as a sequence it is evolution strategies on whole sequences, each loss held against its group's mean.

Start: `python truncated_es.py --seed 0`, or the same program on every GPU of a node:
`torchrun --nproc_per_node=8 truncated_es.py --seed 0`. Ranks share the sequences of an iteration in tiles of one fixed size and
add up the tiles' parts of ĝ in their order, so that any number of ranks ends in the same bits.
"""

import math
import time
from collections.abc import Callable
from dataclasses import dataclass

import torch
from torch import Tensor

from common import es, experiment
from common.decoder import make_decoder, scheduled
from common.dist import Workers
from common.encoder import EMBEDDING
from common.errors import BadInput, run_main
from common.gradient import GradientMeter
from common.laws import grouped_cosine, rank_one_dimensions
from common.philox import Purpose, gaussian
from common.problem import FREE_LEAK, Embeddings, Problem, ProblemSettings
from common.rollout import GPUS_PER_NODE, Rollout
from common.run import RunSettings, setting
from common.supervised import DecoderTrainingSettings, ForwardTraining
from common.windows import cut, group_weights, member_errors, sequences_at_once, weighted_noise

SHAPINGS = ("raw", "standardised")
MEASURED_SEQUENCES = 2048  # whose gradient an estimate is compared with
MOST_COLUMNS = 2**16  # of a sequence's windows and members

# --- Configuration ---------------------------------------------------------------------------------------------------


@dataclass(frozen=True)
class Config(ProblemSettings, DecoderTrainingSettings, RunSettings):
    """Problem, decoder and run folder come from common; what is listed here is this experiment's own."""

    rank: int = setting(32, "r, columns of U and V", least=1)
    u_scale: float = setting(3.0, "length of U's columns", above=0, most=1e6)
    iterations: int = setting(1000, "ES iterations", least=1, most=10**9)
    batch_size: int = setting(32, "sequences of an iteration", least=1, most=10**6)
    window: int = setting(4, "L, steps that a member runs; must divide --sequence-length", least=1, most=10**6)
    members: int = setting(16, "M, members of a group: noise vectors in each window", least=2, most=1024)
    sigma: float = setting(0.0025, "σ, size of the noise", above=0, most=1000)
    fitness_shaping: str = setting(
        "standardised", "losses less their group's mean; divided by its standard deviation or raw", choices=SHAPINGS
    )
    measure_cosine_every: int = setting(
        0, "iterations from one comparison of ĝ with the gradient through time to the next; 0: never",
        least=0, most=10**9, changes_result=False,
    )  # fmt: skip
    learning_rate: float = setting(3e-3, "of V's Adam", above=0, most=1e30)


LAPTOP = dict(
    iterations=1200, learning_rate=2e-3, evaluate_every=20,
    decoder="ridge", decoder_batch_size=32, decoder_warmup=100, decoder_steps=1,
)  # fmt: skip
PRESETS = {
    # Seconds, for tests: every part runs.
    "smoke": dict(
        hidden_size=64, in_degree=8, rank=4, sequence_length=6, train_sequences=256, validation_sequences=64,
        test_sequences=64, iterations=6, batch_size=10, window=3, members=6, decoder_warmup=20, evaluate_every=2,
        checkpoint_every=2,
    ),
    # The brief's problem with what two CPU cores do in under five minutes.
    "laptop": LAPTOP,
    # The same with other windows; the last is a whole sequence: what truncation costs and brings.
    **{f"window-{steps}": {**LAPTOP, "window": steps} for steps in (1, 2, 10, 20)},
    # The brief's problem on a laptop in half an hour, without a shortage of data.
    "brief": {
        **LAPTOP, "iterations": 8000, "learning_rate": 1.5e-3, "train_sequences": 50_000, "decoder_memory": 10_000.0,
        "evaluate_every": 100,
    },
    # For GPUs; not run yet.
    "h200": {
        **LAPTOP, "iterations": 10_000, "batch_size": 512, "train_sequences": 1_000_000, "decoder_batch_size": 256,
        "decoder_memory": 30_000.0, "evaluate_every": 100,
    },
    # The second problem, its α chosen outside the brief's range, on the laptop's budget.
    "free-leak": dict(**LAPTOP, **FREE_LEAK),
}  # fmt: skip


def parse_arguments(argv: list[str] | None):
    """Command line → (Config, options). Raises BadInput; common/run.py has the options that every experiment has."""
    config, options = experiment.parse(Config, PRESETS, argv, __doc__)
    if config.rank > config.hidden_size:
        raise BadInput(f"--rank must not exceed --hidden-size: {config.rank} > {config.hidden_size}")
    if config.sequence_length % config.window:
        raise BadInput(
            f"--window must divide --sequence-length: {config.sequence_length} is not a multiple of {config.window}"
        )
    if config.sequence_length < 2:
        raise BadInput("--sequence-length must be at least 2: V acts from the second step on")
    columns = config.members * config.sequence_length // config.window
    if columns > MOST_COLUMNS:
        raise BadInput(
            f"--members {config.members} in each of {config.sequence_length // config.window:,} windows (--window) are {columns:,} "
            f"columns side by side; at most {MOST_COLUMNS:,}"
        )
    if config.dtype == "float16":
        raise BadInput("--dtype float16: what members differ by is lost in its rounding; choose float32 or float64")
    return config, options


# --- Model -----------------------------------------------------------------------------------------------------------


def start_adapter(config: Config) -> tuple[Tensor, Tensor]:
    """U as it stays and V at its start, float32 (N, r)."""
    shape = (config.hidden_size, config.rank)
    draw_1D = gaussian(config.seed, Purpose.ADAPTER_START, (torch.zeros(1, dtype=torch.int64), 0), math.prod(shape))
    return draw_1D[0].reshape(shape) * (config.u_scale / math.sqrt(config.hidden_size)), torch.zeros(shape)


@dataclass(frozen=True)
class Tiling:
    """How an iteration's sequences are shared out; a rule over the shape alone, never over speed or the number of ranks.

    at_once: sequences whose windows go side by side and share noise vectors. tile: sequences that belong together, a multiple of
    it: enough of them for the unperturbed V to run through side by side, for narrower products are slow, and for no more than
    MOST_TILES tiles, each of which hands over a sum as large as V. (Below some thirty sequences not all of eight ranks get one.)
    """

    at_once: int
    tile: int

    LEAST, MOST_TILES = 4, 64

    @classmethod
    def of(cls, config: Config, workers: Workers) -> "Tiling":
        dtype, windows = getattr(torch, config.dtype), max(1, config.sequence_length // config.window)
        at_once = sequences_at_once(config.members, windows, config.hidden_size, dtype, workers.device.type)
        at_once = min(at_once, -(-config.batch_size // GPUS_PER_NODE))
        tile = max(min(cls.LEAST, config.batch_size), -(-config.batch_size // cls.MOST_TILES))
        return cls(at_once, at_once * -(-tile // at_once))


# --- Training --------------------------------------------------------------------------------------------------------


class Training(ForwardTraining):
    """V under truncated evolution strategies, the decoder by ordinary supervision."""

    label = "truncated ES"
    advice = "try a smaller --learning-rate, or another --sigma"

    start_adapter = staticmethod(start_adapter)

    def __init__(self, config: Config, problem: Problem, embeddings: Embeddings, workers: Workers):
        super().__init__(config, problem, embeddings, workers)
        self.optimizer = torch.optim.Adam([self.v_Nr], lr=config.learning_rate, foreach=False)
        self.noise = es.RankOneNoise(config.seed, config.hidden_size, config.rank, "v")
        self.tiling = Tiling.of(config, workers)
        self.meter = GradientMeter(self.rollout, embeddings, workers, "v")

    @staticmethod
    def derived(config: Config, workers: Workers) -> dict:
        tiling = Tiling.of(config, workers)
        return {"tile_sequences": tiling.tile, "sequences_at_once": tiling.at_once}

    @property
    def rollouts(self) -> int:
        """So far, the decoder's among them. A member in all windows of one sequence counts one: it has taken T steps."""
        return self.iteration * self.config.batch_size * (self.config.members + 1) + self.decoder_rollouts

    # The population

    def _tile(self, tile: int, iteration: int, decoder: tuple[Tensor, Tensor]) -> Tensor:
        """A tile's part of the estimate, float32 (2Nr + 3,): its sum of weighted noise, in the first place if the tile's number is even,
        else in the second; loss of its windows, how many of them count, and how many there are."""
        config, tiling, device = self.config, self.tiling, self.workers.device
        input_TEB, target_TEB = self.minibatch(iteration, torch.tensor([self.OWN + tile]), tiling.tile)
        # What lies beyond the last sequence is padding.
        real_B = torch.arange(tiling.tile, device=device) < config.batch_size - tile * tiling.tile
        u_Nr, v_Nr = self.u_Nr.to(self.rollout.dtype), self.v_Nr.to(self.rollout.dtype)
        windows = cut(self.rollout, u_Nr, v_Nr, self.rollout.drive(input_TEB), target_TEB, config.window)
        sum_Nr, totals_3 = torch.zeros_like(self.v_Nr), torch.zeros(3, dtype=torch.float64, device=device)
        for first in range(0, tiling.tile, tiling.at_once):
            some = windows.of_sequences(tiling.tile, first, tiling.at_once)
            real_G = real_B[first : first + tiling.at_once].repeat(config.sequence_length // config.window)
            group = (tile * tiling.tile + first) // tiling.at_once
            ids_M = torch.arange(group * config.members, (group + 1) * config.members, device=device)
            adapter = self.noise.adapter(u_Nr, v_Nr, iteration, ids_M, config.sigma)
            loss_MG = member_errors(self.rollout, adapter, some, *decoder) / (config.window * EMBEDDING * self.scale)
            weight_MG, counts_G = group_weights(loss_MG, config.fitness_shaping == "standardised")
            # In a single step from the zero state V has no part, whatever rounding makes of it.
            counts_G &= real_G & (some.state_LNG != 0).any(dim=1).any(dim=0)
            weight_MG = weight_MG.masked_fill(~counts_G, 0)
            _, _, _, _, c_MN, d_Mr = (factor.to(torch.float32) for factor in adapter.factors())
            sum_Nr += weighted_noise(some, weight_MG, c_MN, d_Mr)
            loss = loss_MG.mean(dim=0).masked_fill(~counts_G, 0).sum()
            totals_3 += torch.stack((loss, counts_G.sum(), real_G.sum()))
        halves_2Nr = torch.zeros(2, *sum_Nr.shape, device=device)
        halves_2Nr[tile % 2] = sum_Nr
        return torch.cat((halves_2Nr.flatten(), totals_3.to(torch.float32)))

    def _estimate(self, iteration: int, decoder: tuple[Tensor, Tensor]) -> tuple[Tensor, float, float]:
        """ĝ in its two halves (2, N, r), the members' mean loss, and the share of windows that did not count."""
        tiles = -(-self.config.batch_size // self.tiling.tile)
        width = 2 * self.v_Nr.numel() + 3
        total = self.workers.sum_tiles(lambda tile: self._tile(tile, iteration, decoder), tiles, width, may_stop=True)
        loss, counting, windows = total[-3:].tolist()
        halves_2Nr = total[:-3].view(2, *self.v_Nr.shape)
        if counting:
            raw = self.config.fitness_shaping == "raw"
            halves_2Nr /= counting * self.config.members * (self.config.sigma if raw else 1)
        return halves_2Nr, loss / counting if counting else math.nan, 1 - counting / windows

    def iterate(self) -> dict:
        """One ES iteration; returns its line of metrics."""
        started = time.perf_counter()
        config, iteration = self.config, self.iteration + 1
        decoder = self.decoder.frozen_copy()
        (halves_2Nr, train_loss, left_out), decoder_loss, h_rms = self.beside_decoder(
            iteration, lambda: self._estimate(iteration, decoder)
        )
        estimate = es.estimate_of(torch.zeros_like(halves_2Nr), halves_2Nr)
        rate = scheduled(config.learning_rate, config.schedule, (iteration - 1) / config.iterations)
        measured, update_ratio = {}, math.nan
        if config.measure_cosine_every and iteration % config.measure_cosine_every == 0:
            paused = time.perf_counter()
            measured = self._measure(estimate.grad_v_Nr, iteration, decoder)
            started += time.perf_counter() - paused  # it trains nothing
        if math.isfinite(train_loss) and math.isfinite(estimate.norm):
            before_Nr, self.v_Nr.grad = self.v_Nr.clone(), estimate.grad_v_Nr
            self.optimizer.param_groups[0]["lr"] = rate
            self.optimizer.step()
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
            "v_norm": float(self.v_Nr.norm()),
            "h_rms": h_rms,
            "gradient_norm": estimate.norm,
            "half_cosine": estimate.half_cosine,
            "update_ratio": update_ratio,
            **measured,
            "rollouts": self.rollouts,
            "rollouts_per_s": config.batch_size * (config.members + 1) / seconds,
            "wallclock_s": self.seconds,
        }

    def _measure(self, estimate_Nr: Tensor, iteration: int, decoder: tuple[Tensor, Tensor]) -> dict:
        """How good ĝ is: its cosine to the gradient through all time and to the truncated one, and the law of the latter.

        Of raw losses ĝ estimates the truncated gradient; of standardised ones the mean of g_w/|g_w|, for which the law does not speak."""
        config = self.config
        index_B = self.minibatch_index(iteration, torch.tensor([self.MEASURED]), MEASURED_SEQUENCES)
        here = (index_B, self.u_Nr, self.v_Nr, decoder)
        whole, truncated = self.meter.sums(*here), self.meter.sums(*here, window=config.window)
        noise, law = truncated.batch_noise, math.nan
        if noise > 0:  # few sequences of little agreement may seem to cancel
            law = grouped_cosine(config.batch_size, config.members, self.dimensions(config), noise)
        return {
            "cosine_gradient": whole.cosines(estimate_Nr.flatten())[0],
            "cosine_truncated": truncated.cosines(estimate_Nr.flatten())[0],
            "cosine_truncated_law": law,
            "batch_noise": noise,
        }

    @staticmethod
    def dimensions(config: Config) -> int:
        """What a window's noise counts for in the laws. The first state of a sequence is zero, and V has no part in it."""
        return rank_one_dimensions(min(config.window, config.sequence_length - 1), config.rank)

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

    @staticmethod
    def costs(config: Config, problem: Problem, workers: Workers) -> list[str]:
        """What a run will cost, from one tile of the population timed here on made-up input."""
        rollout = Rollout(problem.reservoir(), config.leak, 1.0, workers.device, getattr(torch, config.dtype))
        noise, tiling = es.RankOneNoise(config.seed, config.hidden_size, config.rank, "v"), Tiling.of(config, workers)
        u_Nr, v_Nr = (factor.to(workers.device, rollout.dtype) for factor in start_adapter(config))
        z_TEB = torch.ones(config.sequence_length, EMBEDDING, tiling.tile, device=workers.device)
        decoder = make_decoder(config, config.hidden_size, workers.device).frozen_copy()
        ids_M, seconds = torch.arange(config.members, device=workers.device), []
        for _ in range(3):
            started = time.perf_counter()
            windows = cut(rollout, u_Nr, v_Nr, rollout.drive(z_TEB), z_TEB, config.window)
            for first in range(0, tiling.tile, tiling.at_once):
                some = windows.of_sequences(tiling.tile, first, tiling.at_once)
                adapter = noise.adapter(u_Nr, v_Nr, 1, ids_M, config.sigma)
                weight_MG, _ = group_weights(member_errors(rollout, adapter, some, *decoder))
                weighted_noise(some, weight_MG, *noise.draw(1, ids_M)[2:]).sum().item()  # on a GPU: wait for it
            seconds.append(time.perf_counter() - started)
        tiles = -(-config.batch_size // tiling.tile)
        lanes = workers.world_size * (workers.threads if workers.device.type == "cpu" else 1)
        iteration_s, element = -(-tiles // lanes) * min(seconds), rollout.dtype.itemsize
        rollouts = config.batch_size * (config.members + 1)
        columns = config.members * config.sequence_length // config.window * tiling.at_once
        sequences = config.train_sequences + config.validation_sequences + config.test_sequences
        inputs = config.sequence_length * config.hidden_size * tiling.tile
        megabytes = {
            "the state of windows side by side": config.hidden_size * columns * element / 1e6,
            "states and driving input of a tile": 2 * inputs * element / 1e6,
            "the tiles' parts of the estimate": 2 * tiles * 2 * config.hidden_size * config.rank * 4 / 1e6,
            "θ, its gradient and Adam's moments": 5 * config.hidden_size * config.rank * 4 / 1e6,
            "encoded sequences (on disk on a CPU)": sequences * (config.sequence_length + 1) * EMBEDDING * 4 / 1e6,
        }
        if config.decoder == "ridge":
            megabytes["the decoder's sums and a copy of them"] = 2 * (config.hidden_size + 1) ** 2 * 4 / 1e6
        dimensions = Training.dimensions(config)
        law = grouped_cosine(config.batch_size, config.members, dimensions, 1.0)
        return [
            f"{config.members} members, {dimensions:,} dimensions a window, {config.batch_size:,} sequences: cosine of at most "
            f"{law:.3f} to the truncated gradient, by the law; less, the more sequences differ",
            f"{rollouts:,} rollouts an iteration, {rollouts * config.iterations:,} in {config.iterations:,} iterations",
            f"{tiles:,} tiles of {tiling.tile} sequences ({columns} columns side by side); one took {min(seconds):.3g} s here",
            f"expected {iteration_s:.3g} s an iteration, {iteration_s * config.iterations / 60:.3g} min for the population",
            "memory: " + ", ".join(f"{name} {size:,.1f} MB" for name, size in megabytes.items()),
        ]


# --- Main ------------------------------------------------------------------------------------------------------------


def main(argv: list[str] | None = None) -> int:
    return experiment.launch(*parse_arguments(argv), Training, __file__)


if __name__ == "__main__":
    run_main(main)
