"""Truncated evolution strategies: the adapter inside a frozen reservoir learns from members that run for a few steps only.

    z_t     = frozen random CNN of frame t, standardised                                                 (128)
    h_t     = (1 − α) h_{t−1} + α tanh(W0 h_{t−1} + U (Vᵀ h_{t−1}) + Win z_t + b),   h_0 = 0               (N)
    ẑ_{t+1} = Wout h_t + bout                                                                           (128)
    L       = mean over t = 1 … T, sequences and dimensions of (ẑ_{t+1} − z_{t+1})²

Frozen: the CNN, W0 (sparse), Win, b, and U ~ N(0, u²/N) as it is drawn. Trained by evolution strategies, with forward passes
only: V (N, r), from 0. Trained by ordinary supervision on the unperturbed V: Wout, bout; at --trains both (presets both, brief-both, h200) U as well, and at
--train-leak α, along the gradient of the next prediction's error alone, for which forward passes probe the readout or Wout is read
backwards (common/feedback.py). One iteration:

    1. the unperturbed V runs through a few sequences, each cut into windows of --window steps
    2. in each window --members members start from the state there, with different noise on V: V + σ c dᵀ, c and d of ±1; each
       returns one number, its loss in the window
    3. loss less the mean of its window's members, in standard deviations → weight w; ĝ = Σ over windows of P Σ_m w_m c_m d_mᵀ / σ, where
       P projects on the states of the window, for of the rest of c_m its losses know nothing
    4. Adam steps V along ĝ (where U learns as well, Muon both factors); meanwhile the decoder has learned (--decoder)

With --window as long as a sequence it is evolution strategies on whole sequences, each loss held against its group's mean.

Start: `python truncated_es.py --seed 0`, or the same program on every GPU of a node:
`torchrun --nproc_per_node=8 truncated_es.py --seed 0`. Ranks share the sequences of an iteration in tiles of one fixed size and
add up the tiles' parts of ĝ in their order, so that any number of ranks ends in the same bits.
"""

import time
from dataclasses import dataclass

import torch
from torch import Tensor

from common import es, experiment
from common.decoder import make_decoder
from common.dist import Workers
from common.encoder import EMBEDDING
from common.errors import BadInput, run_main
from common.feedback import FeedbackSettings, FeedbackTraining, add_feedback, settled
from common.laws import grouped_cosine, rank_one_dimensions
from common.problem import FREE_LEAK, Problem, ProblemSettings
from common.roll_in import extra_passes
from common.rollout import Rollout
from common.run import RunSettings, setting
from common.truncated import (
    SHAPINGS,
    TilePart,
    Tiling,
    TruncatedSettings,
    require_windows,
    start_adapter,
)
from common.windows import cut, group_weights, member_errors, sequences_at_once, weighted_noise

MOST_COLUMNS = 2**16  # of a sequence's windows and members

# --- Configuration ---------------------------------------------------------------------------------------------------


@dataclass(frozen=True)
class Config(ProblemSettings, TruncatedSettings, FeedbackSettings, RunSettings):
    """Problem, decoder, V's training and run folder come from common; what is listed here is this experiment's own."""

    ADDED = (*RunSettings.ADDED, "trains", "u_rate_ratio", "feedback_probes", "train_leak", "leak_rate")

    window: int = setting(4, "L, steps that a member runs; must divide --sequence-length", least=1, most=10**6)
    members: int = setting(16, "M, members of a group: noise vectors in each window", least=2, most=1024)
    sigma: float = setting(0.0025, "σ, size of the noise", above=0, most=1000)
    fitness_shaping: str = setting(
        "standardised", "losses less their group's mean; divided by its standard deviation or raw", choices=SHAPINGS
    )


LAPTOP = dict(
    iterations=1200, learning_rate=2e-3, evaluate_every=20,
    decoder="ridge", decoder_batch_size=32, decoder_warmup=100, decoder_steps=1,
)  # fmt: skip
# Both factors learn at one rate, from where neither is large.
BOTH = dict(trains="both", u_scale=0.2, u_rate_ratio=1.0, sigma=0.0075, optimizer="muon", learning_rate=5e-3)
BRIEF = dict(train_sequences=50_000, decoder_memory=10_000.0, evaluate_every=100)
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
    # U as well, by what a full set of forward passes tells of the readout.
    "both": {**LAPTOP, **BOTH, "feedback_probes": 2048},
    # The brief's problem on a laptop in an hour, without a shortage of data.
    "brief": {**LAPTOP, **BRIEF, "iterations": 16_000, "learning_rate": 1.5e-3},
    "brief-both": {**LAPTOP, **BRIEF, **BOTH, "feedback_probes": 2048, "iterations": 4000, "learning_rate": 4e-3},
    # For GPUs; not run yet. Both factors.
    "h200": {
        **LAPTOP, **BOTH, "feedback_probes": 2048, "iterations": 4000, "batch_size": 1024, "learning_rate": 4e-3,
        "train_sequences": 1_000_000, "decoder_batch_size": 256, "decoder_memory": 30_000.0, "evaluate_every": 100,
    },
    # The second problem, its α chosen outside the brief's range, on the laptop's budget.
    "free-leak": dict(**LAPTOP, **FREE_LEAK),
}  # fmt: skip


def parse_arguments(argv: list[str] | None):
    """Command line → (Config, options). Raises BadInput; common/run.py has the options that every experiment has."""
    config, options = experiment.parse(Config, PRESETS, argv, __doc__)
    require_windows(config)
    config = settled(config, options.words)
    columns = config.members * config.sequence_length // config.window
    if columns > MOST_COLUMNS:
        raise BadInput(
            f"--members {config.members} in each of {config.sequence_length // config.window:,} windows (--window) are {columns:,} "
            f"columns side by side; at most {MOST_COLUMNS:,}"
        )
    return config, options


# --- Training --------------------------------------------------------------------------------------------------------


class Training(FeedbackTraining):
    """V under truncated evolution strategies, the decoder by ordinary supervision."""

    label = "truncated ES"

    def __init__(self, config: Config, problem: Problem, embeddings, workers: Workers):
        super().__init__(config, problem, embeddings, workers)
        self.noise = es.RankOneNoise(config.seed, config.hidden_size, config.rank, "v")

    @staticmethod
    def tiling_of(config: Config, workers: Workers) -> Tiling:
        """Windows that go side by side share their noise vectors."""
        dtype, windows = getattr(torch, config.dtype), max(1, config.sequence_length // config.window)
        at_once = sequences_at_once(config.members, windows, config.hidden_size, dtype, workers.device.type)
        return Tiling.of(config.batch_size, at_once)

    def tile(self, tile: int, iteration: int, decoder: tuple[Tensor, Tensor]) -> TilePart:
        """Its sum of weighted noise, of which each window has P Σ_m w_m c_m d_mᵀ."""
        config, tiling, device = self.config, self.tiling, self.workers.device
        input_TEB, target_TEB, real_B = self.tile_data(tile, iteration)
        u_Nr, v_Nr = self.u_Nr.to(self.rollout.dtype), self.v_Nr.to(self.rollout.dtype)
        windows = cut(self.rollout, u_Nr, v_Nr, self.rollout.drive(input_TEB), target_TEB, config.window)
        sum_Nr, totals_3 = torch.zeros_like(self.v_Nr), torch.zeros(3, dtype=torch.float64, device=device)
        rest = torch.zeros(Training.rest_size(config), device=device)
        for first in range(0, tiling.tile, tiling.at_once):
            some = windows.of_sequences(tiling.tile, first, tiling.at_once)
            real_G = real_B[first : first + tiling.at_once].repeat(config.sequence_length // config.window)
            group = (tile * tiling.tile + first) // tiling.at_once
            ids_M = torch.arange(group * config.members, (group + 1) * config.members, device=device)
            adapter = self.noise.adapter(u_Nr, v_Nr, iteration, ids_M, config.sigma)
            loss_MG = member_errors(self.rollout, adapter, some, *decoder).sum(dim=0)
            loss_MG /= config.window * EMBEDDING * self.scale
            weight_MG, counts_G = group_weights(loss_MG, config.fitness_shaping == "standardised")
            # In a single step from the zero state V has no part, whatever rounding makes of it.
            counts_G &= real_G & (some.state_LNG != 0).any(dim=1).any(dim=0)
            weight_MG = weight_MG.masked_fill(~counts_G, 0)
            _, _, _, _, c_MN, d_Mr = (factor.to(torch.float32) for factor in adapter.factors())
            sum_Nr += weighted_noise(some, weight_MG, c_MN, d_Mr)
            add_feedback(rest, config, self.rollout, v_Nr, some, counts_G, decoder, self.back_EN)
            loss = loss_MG.mean(dim=0).masked_fill(~counts_G, 0).sum()
            totals_3 += torch.stack((loss, counts_G.sum(), real_G.sum()))
        # What is summed is divided by V's unit; a prediction's gradient is to be the mean over all.
        return TilePart(sum_Nr, *totals_3, rest=rest * (self.unit() / config.window / self.scale))

    def unit(self) -> float:
        return self.config.members * (self.config.sigma if self.config.fitness_shaping == "raw" else 1)

    @staticmethod
    def rollouts_per_iteration(config: Config) -> int:
        return config.batch_size * (config.members + 1 + extra_passes(config)) + Training.feedback_rollouts(config)

    @staticmethod
    def dimensions(config: Config) -> int:
        """What a window's noise counts for in the laws. The first state of a sequence is zero, and V has no part in it."""
        return rank_one_dimensions(min(config.window, config.sequence_length - 1), config.rank)

    @staticmethod
    def law(config: Config, batch_noise: float) -> float:
        return grouped_cosine(config.batch_size, config.members, Training.dimensions(config), batch_noise)

    @staticmethod
    def costs(config: Config, problem: Problem, workers: Workers) -> list[str]:
        """What a run will cost, from one tile of the population timed here on made-up input."""
        rollout = Rollout(problem.reservoir(), config.leak, 1.0, workers.device, getattr(torch, config.dtype))
        noise = es.RankOneNoise(config.seed, config.hidden_size, config.rank, "v")
        tiling = Training.tiling_of(config, workers)
        u_Nr, v_Nr = (factor.to(workers.device, rollout.dtype) for factor in start_adapter(config))
        z_TEB = torch.ones(config.sequence_length, EMBEDDING, tiling.tile, device=workers.device)
        decoder = make_decoder(config, config.hidden_size, workers.device).frozen_copy()
        ids_M, seconds = torch.arange(config.members, device=workers.device), []
        rest = torch.zeros(Training.rest_size(config), device=workers.device)
        for _ in range(3):
            started = time.perf_counter()
            windows = cut(rollout, u_Nr, v_Nr, rollout.drive(z_TEB), z_TEB, config.window)
            for first in range(0, tiling.tile, tiling.at_once):
                some = windows.of_sequences(tiling.tile, first, tiling.at_once)
                adapter = noise.adapter(u_Nr, v_Nr, 1, ids_M, config.sigma)
                weight_MG, counts_G = group_weights(member_errors(rollout, adapter, some, *decoder).sum(dim=0))
                sum_Nr = weighted_noise(some, weight_MG, *noise.draw(1, ids_M)[2:])
                add_feedback(rest, config, rollout, v_Nr, some, counts_G, decoder, decoder[0])
                (sum_Nr.sum() + rest.sum()).item()  # on a GPU: wait for it
            seconds.append(time.perf_counter() - started)
        columns = config.members * config.sequence_length // config.window * tiling.at_once
        return [
            f"{config.members} members, {Training.dimensions(config):,} dimensions a window, {config.batch_size:,} sequences: cosine of at most "
            f"{Training.law(config, 1.0):.3f} to the truncated gradient, by the law; less, the more sequences differ",
            *Training.cost_lines(config, workers, columns, min(seconds), rollout, decoder),
        ]


# --- Main ------------------------------------------------------------------------------------------------------------


def main(argv: list[str] | None = None) -> int:
    return experiment.launch(*parse_arguments(argv), Training, __file__, parse_arguments)


if __name__ == "__main__":
    run_main(main)
