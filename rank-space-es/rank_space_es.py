"""Evolution strategies in the adapter's r activities: what is perturbed is p = Vᵀ h, not V.

    z_t     = frozen random CNN of frame t, standardised                                                 (128)
    h_t     = (1 − α) h_{t−1} + α tanh(W0 h_{t−1} + U p_t + Win z_t + b),   p_t = Vᵀ h_{t−1},   h_0 = 0    (N)
    ẑ_{t+1} = Wout h_t + bout                                                                           (128)
    L       = mean over t = 1 … T, sequences and dimensions of (ẑ_{t+1} − z_{t+1})²

Frozen: the CNN, W0 (sparse), Win, b, and U ~ N(0, u²/N) as it is drawn. Trained by evolution strategies, with forward passes
only: V (N, r), from 0. Trained by ordinary supervision on the unperturbed V: Wout, bout; at --trains both U as well, along the gradient of the
next prediction's error alone, for which Wout is read backwards (`feedback`). One iteration:

    1. the unperturbed V runs through a few sequences, each cut into windows of --window steps
    2. in each window --probes probes leave from the state there with σ ξ_t added to p_t, ξ_t of ±1 in r dimensions; each returns the errors
       of its predictions, step by step
    3. error less that of the unperturbed V, summed over the rest of the window, times ξ_t / σ, mean of the probes → q̂_t, an estimate of ∂L/∂p_t;
       ĝ = Σ_t h_{t−1} q̂_tᵀ
    4. Muon steps V along ĝ; meanwhile the decoder has learned (--decoder)

Start: `python rank_space_es.py --seed 0`, or the same program on every GPU of a node:
`torchrun --nproc_per_node=8 rank_space_es.py --seed 0`. Ranks share the sequences of an iteration in tiles of one fixed size and
add up the tiles' parts of ĝ in their order, so that any number of ranks ends in the same bits.
"""

import time
from dataclasses import dataclass

import torch
from torch import Tensor

from common import experiment
from common.activity_noise import (
    KINDS,
    ActivityNoise,
    ActivitySigns,
    activity_gradients,
    credited,
    full_set,
)
from common.decoder import make_decoder
from common.dist import Workers
from common.encoder import EMBEDDING
from common.errors import BadInput, run_main
from common.feedback import FeedbackSettings, FeedbackTraining, add_feedback, settled
from common.laws import inflated_cosine
from common.problem import CURRICULUM, FIFTY_FRAMES, FREE_LEAK, HUNDRED_FRAMES, TWO_DIGITS, Problem, ProblemSettings
from common.roll_in import extra_passes
from common.rollout import Rollout, columns_per_tile
from common.run import RunSettings, setting
from common.truncated import (
    SHAPINGS,
    TilePart,
    Tiling,
    TruncatedSettings,
    require_windows,
    start_adapter,
)
from common.windows import SAME, Windows, cut, member_errors

SIDE_BY_SIDE = 8  # sequences that the unperturbed V runs through together: a product of W0 with four takes as long
MOST_NUMBERS = 2**31  # in the states and in the noise of a tile

# --- Configuration ---------------------------------------------------------------------------------------------------


@dataclass(frozen=True)
class Config(ProblemSettings, TruncatedSettings, FeedbackSettings, RunSettings):
    """Problem, decoder, V's training and run folder come from common; what is listed here is this experiment's own."""

    window: int = setting(
        1, "L, steps that a probe runs and is credited for; must divide --sequence-length", least=1, most=10**6
    )
    probes: int = setting(32, "M, probes in each window", least=2, most=1024)
    noise: str = setting("orthogonal", "rows of a Hadamard matrix, or independent signs", choices=KINDS)
    discount: float = setting(
        1.0, "γ, by which a step's error counts less for the noise one step before", least=0, most=1
    )
    sigma: float = setting(0.01, "σ, size of the noise in each of the r activities", above=0, most=1000)
    fitness_shaping: str = setting(
        "raw", "differences of errors as they are, or divided by their standard deviation in a window", choices=SHAPINGS
    )


# As many probes as there are dimensions: what is left to chance is which sequences an iteration gets.
LAPTOP = dict(
    iterations=400, batch_size=32, optimizer="muon", learning_rate=5e-3, evaluate_every=25,
    decoder="ridge", decoder_batch_size=32, decoder_warmup=100, decoder_steps=1,
)  # fmt: skip
# Both factors learn at one rate, from where neither is large.
BOTH = dict(trains="both", u_scale=0.2, u_rate_ratio=1.0, sigma=0.03)
BRIEF = dict(
    iterations=2400,
    batch_size=64,
    learning_rate=4e-3,
    train_sequences=50_000,
    decoder_memory=10_000.0,
    evaluate_every=100,
)
PRESETS = {
    # Seconds, for tests: every part runs.
    "smoke": dict(
        hidden_size=64, in_degree=8, rank=4, sequence_length=6, train_sequences=256, validation_sequences=64,
        test_sequences=64, iterations=6, batch_size=10, window=3, probes=6, optimizer="muon", decoder_warmup=20, evaluate_every=2,
        checkpoint_every=2,
    ),
    # The brief's problem with what two CPU cores do in under five minutes.
    "laptop": LAPTOP,
    # U as well, by the readout's transpose.
    "both": {**LAPTOP, **BOTH},
    # The same with forward passes only: a full set of orthogonal probes tells what the readout is.
    "both-forward": {**LAPTOP, **BOTH, "feedback_probes": 2048},
    # The leak learns as well, by the same feedback: one α, or one of each unit.
    "scalar-leak": {**LAPTOP, **BOTH, "train_leak": "scalar"},
    "unit-leaks": {**LAPTOP, **BOTH, "train_leak": "per-unit"},
    # As `both`; of the inputs ever more are predictions, half of them in the end. Scored in closed loop, too. Not run yet.
    "roll-in": {**LAPTOP, **BOTH, "roll_in": 0.5, "horizon": 20},
    # Five times the iterations.
    "long": {**LAPTOP, "iterations": 2000, "evaluate_every": 50},
    # The brief's problem on a laptop in an hour, without a shortage of data.
    "brief": {**LAPTOP, **BRIEF},
    "brief-both": {**LAPTOP, **BRIEF, **BOTH},
    # What stays of it where probes have independent signs, and with Adam.
    "independent": {**LAPTOP, "noise": "independent"},
    "adam": {**LAPTOP, "optimizer": "adam", "learning_rate": 3e-3},
    # Credit for four steps in place of one.
    "window-4": {**LAPTOP, "window": 4, "iterations": 200},
    # Rungs of the brief's schedule, one at a time: problems whose credit may reach further.
    "two-digits": {**LAPTOP, **TWO_DIGITS},
    "fifty-frames": {**LAPTOP, **FIFTY_FRAMES, "iterations": 240},
    "hundred-frames": {**LAPTOP, **HUNDRED_FRAMES, "iterations": 240, "batch_size": 16, "evaluate_every": 40},
    # Small enough to climb the whole schedule: --curriculum. A rung ends at a plateau of five scores.
    "curriculum": {
        **LAPTOP, **BOTH, **CURRICULUM, "rank": 8, "probes": 8, "iterations": 150, "batch_size": 16, "evaluate_every": 10, "patience": 5,
    },
    # For GPUs; not run yet. Both factors, with forward passes only.
    "h200": {
        **LAPTOP, **BRIEF, **BOTH, "feedback_probes": 2048, "iterations": 10_000, "batch_size": 1024, "train_sequences": 1_000_000,
        "decoder_batch_size": 256, "decoder_memory": 30_000.0,
    },
    # The second problem, its α chosen outside the brief's range, on the laptop's budget.
    "free-leak": dict(**LAPTOP, **FREE_LEAK),
}  # fmt: skip


def parse_arguments(argv: list[str] | None):
    """Command line → (Config, options). Raises BadInput; common/run.py has the options that every experiment has."""
    config, options = experiment.parse(Config, PRESETS, argv, __doc__)
    require_windows(config)
    config = settled(config, options.words)
    dimensions = config.window * config.rank
    if dimensions == 1 and config.noise == "orthogonal":
        raise BadInput("--noise orthogonal needs more than one dimension (--window times --rank): choose independent")
    if config.noise == "orthogonal" and config.probes > full_set(dimensions):
        raise BadInput(
            f"--probes {config.probes} are more than there are orthogonal ones in {dimensions:,} dimensions (--window times --rank): at most "
            f"{full_set(dimensions):,}, or --noise independent"
        )
    tile = (
        -(-config.batch_size // Tiling.MOST_TILES)
        * config.sequence_length
        * (config.hidden_size + dimensions * config.probes)
    )
    if tile > MOST_NUMBERS:
        raise BadInput(
            f"--batch-size {config.batch_size:,} in at most {Tiling.MOST_TILES} tiles: the states and the noise of one would be {tile:,} numbers; "
            f"at most {MOST_NUMBERS:,}"
        )
    return config, options


# --- The estimate ----------------------------------------------------------------------------------------------------


def groups_at_once(config: Config, device_type: str) -> int:
    """Windows whose probes go side by side: as many as fill four times the device's column target. (A step here is two products of matrices and
    little else, so that wide ones pay: measured to take two thirds of the time.) By rule, never by stopwatch."""
    columns = 4 * columns_per_tile(config.hidden_size, getattr(torch, config.dtype), device_type)
    return max(1, columns // (config.probes + 1))


@torch.no_grad()
def probe(
    config: Config, rollout: Rollout, u_Nr: Tensor, v_Nr: Tensor, windows: Windows, sign_LrMG: Tensor, decoder: tuple
) -> tuple[Tensor, Tensor]:
    """Probes of G windows: estimates q̂ of what each step's activities are to be changed by, float32 (L, r, G), and the mean loss of each window's
    probes, float64 (G,), both for errors in mean squares over dimensions.

    q̂ is not a number in a window in which an error is none; and at --fitness-shaping standardised where all errors are the same."""
    # The first member of a group is the unperturbed V, rounded as the others are.
    kick_LrMG = torch.cat((torch.zeros_like(sign_LrMG[:, :, :1]), sign_LrMG * config.sigma), dim=2).to(rollout.dtype)
    error_LMG = member_errors(rollout, ActivityNoise(u_Nr, v_Nr, kick_LrMG), windows, *decoder) / EMBEDDING
    excess_LMG = error_LMG[:, 1:] - error_LMG[:, :1]
    if config.fitness_shaping == "standardised":
        whole_MG = excess_LMG.sum(dim=0)
        spread_G = whole_MG.std(dim=0)
        spread_G[spread_G <= SAME * error_LMG[:, 0].sum(dim=0)] = torch.nan
        excess_LMG = excess_LMG * (config.sigma / spread_G)
    q_LrG = activity_gradients(sign_LrMG, credited(excess_LMG, config.discount), config.sigma)
    return q_LrG, error_LMG[:, 1:].mean(dim=(0, 1))


def sum_windows(
    config: Config,
    rollout: Rollout,
    u_Nr: Tensor,
    v_Nr: Tensor,
    windows: Windows,
    sign_LrMG: Tensor,
    real_G: Tensor,
    decoder: tuple[Tensor, Tensor],
    back_EN: Tensor,
) -> tuple[Tensor, ...]:
    """Over the windows of a tile, some side by side: Σ h q̂ᵀ over their steps, float32 (N, r), and what learns by feedback, flat: U's Σ δ pᵀ
    and α's gradient, if they do; their losses, how many windows count, and how many there are: real_G bool (G,) says which are no padding."""
    device = real_G.device
    sum_Nr, rest = torch.zeros(u_Nr.shape, device=device), torch.zeros(Training.rest_size(config), device=device)
    totals_3, at_once = torch.zeros(3, dtype=torch.float64, device=device), groups_at_once(config, device.type)
    # A single step from the zero state is none that V has a part in.
    start = len(real_G) // config.sequence_length if config.window == 1 else 0
    for first in range(start, len(real_G), at_once):
        some, here = windows.groups(first, at_once), slice(first, first + at_once)
        q_LrG, loss_G = probe(config, rollout, u_Nr, v_Nr, some, sign_LrMG[..., here], decoder)
        counts_G = real_G[here] & q_LrG.isfinite().all(dim=1).all(dim=0) & loss_G.isfinite()
        h_LNG = some.state_LNG.to(torch.float32).masked_fill(~counts_G, 0)
        sum_Nr += torch.einsum("lng,lrg->nr", h_LNG, q_LrG.to(torch.float32).masked_fill(~counts_G, 0))
        add_feedback(rest, config, rollout, v_Nr, some, counts_G, decoder, back_EN)
        loss = loss_G.masked_fill(~counts_G, 0).sum()
        totals_3 += torch.stack((loss, counts_G.sum(), real_G[here].sum()))
    return sum_Nr, rest, *totals_3


# --- Training --------------------------------------------------------------------------------------------------------


class Training(FeedbackTraining):
    """V under evolution strategies in its activities, the decoder by ordinary supervision."""

    label = "rank-space ES"

    def __init__(self, config: Config, problem: Problem, embeddings, workers: Workers):
        super().__init__(config, problem, embeddings, workers)
        self.signs = Training.signs_of(config)

    @staticmethod
    def signs_of(config: Config) -> ActivitySigns:
        return ActivitySigns(config.seed, config.window, config.rank, config.probes, config.noise)

    @staticmethod
    def tiling_of(config: Config, workers: Workers) -> Tiling:
        """A window has noise of its own: what goes side by side does not matter to the estimate."""
        return Tiling.of(config.batch_size, SIDE_BY_SIDE)

    def tile(self, tile: int, iteration: int, decoder: tuple[Tensor, Tensor]) -> TilePart:
        """Σ over its windows and their steps of h q̂ᵀ; as the rest, what learns by feedback."""
        config, sequences, device = self.config, self.tiling.tile, self.workers.device
        input_TEB, target_TEB, real_B = self.tile_data(tile, iteration)
        u_Nr, v_Nr = self.u_Nr.to(self.rollout.dtype), self.v_Nr.to(self.rollout.dtype)
        windows = cut(self.rollout, u_Nr, v_Nr, self.rollout.drive(input_TEB), target_TEB, config.window)
        count = config.sequence_length // config.window
        ids_WB = torch.arange(count, device=device)[:, None] + count * (
            tile * sequences + torch.arange(sequences, device=device)
        )
        sign_LrMG, real_G = self.signs.draw(iteration, ids_WB.flatten()), real_B.repeat(count)
        sum_Nr, rest, loss, counting, real = sum_windows(
            config, self.rollout, u_Nr, v_Nr, windows, sign_LrMG, real_G, decoder, self.back_EN
        )
        raw = config.fitness_shaping == "raw"
        return TilePart(
            sum_Nr / self.scale if raw else sum_Nr, loss / self.scale, counting, real, rest=rest / self.scale
        )

    def unit(self) -> float:
        return self.config.window

    @classmethod
    def derived(cls, config: Config, workers: Workers) -> dict:
        return {**super().derived(config, workers), "windows_at_once": groups_at_once(config, workers.device.type)}

    @staticmethod
    def rollouts_per_iteration(config: Config) -> int:
        passes = config.probes + 1 + extra_passes(config)
        return config.batch_size * passes + Training.feedback_rollouts(config)

    @staticmethod
    def law(config: Config, batch_noise: float) -> float:
        """As if a sequence's windows had gradients of no common direction, so that what is said of q̂ holds for the sequence: exact where
        the inflation is 1."""
        return inflated_cosine(config.batch_size, Training.signs_of(config).inflation(), batch_noise)

    @staticmethod
    def costs(config: Config, problem: Problem, workers: Workers) -> list[str]:
        """What a run will cost, from one tile of the population timed here on made-up input."""
        rollout = Rollout(problem.reservoir(), config.leak, 1.0, workers.device, getattr(torch, config.dtype))
        sequences, at_once = Training.tiling_of(config, workers).tile, groups_at_once(config, workers.device.type)
        u_Nr, v_Nr = (factor.to(workers.device, rollout.dtype) for factor in start_adapter(config))
        z_TEB = torch.ones(config.sequence_length, EMBEDDING, sequences, device=workers.device)
        decoder = make_decoder(config, config.hidden_size, workers.device).frozen_copy()
        groups, seconds = config.sequence_length // config.window * sequences, []
        for _ in range(3):
            started = time.perf_counter()
            windows = cut(rollout, u_Nr, v_Nr, rollout.drive(z_TEB), z_TEB, config.window)
            sign_LrMG = Training.signs_of(config).draw(1, torch.arange(groups, device=workers.device))
            real_G = torch.ones(groups, dtype=torch.bool, device=workers.device)
            sum_Nr, *_ = sum_windows(config, rollout, u_Nr, v_Nr, windows, sign_LrMG, real_G, decoder, decoder[0])
            sum_Nr.sum().item()  # on a GPU: wait for it
            seconds.append(time.perf_counter() - started)
        return [
            f"{config.probes} probes in {config.window * config.rank:,} dimensions, {config.batch_size:,} sequences: cosine of at most "
            f"{Training.law(config, 1.0):.3f} to the truncated gradient, by the law; less, the more sequences differ",
            *Training.cost_lines(config, workers, at_once * (config.probes + 1), min(seconds), rollout, decoder),
        ]


# --- Main ------------------------------------------------------------------------------------------------------------


def main(argv: list[str] | None = None) -> int:
    return experiment.launch(*parse_arguments(argv), Training, __file__, parse_arguments)


if __name__ == "__main__":
    run_main(main)
