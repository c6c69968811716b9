"""Evolution strategies train a low-rank adapter inside a frozen reservoir to predict the next Moving-MNIST embedding.

    z_t     = frozen random CNN of frame t, standardised                                                 (128)
    h_t     = (1 − α) h_{t−1} + α tanh(W0 h_{t−1} + U (Vᵀ h_{t−1}) + Win z_t + b),   h_0 = 0               (N)
    ẑ_{t+1} = Wout h_t + bout                                                                           (128)
    L       = mean over t = 1 … T, sequences and dimensions of (ẑ_{t+1} − z_{t+1})²

Frozen: the CNN, W0 (sparse), Win, b. Trained by evolution strategies, with forward passes only: θ = (U, V), U and V of
shape (N, r); at --train-leak α as well, by noise in its logit. Trained by ordinary supervision on the unperturbed θ: Wout, bout. One iteration:

    1. a minibatch, or sequences for each pair; K noise vectors ε_i, each used twice: θ + σ ε_i and θ − σ ε_i
    2. all 2K members run forward, the two of a pair on the same sequences; each returns one number, its loss
    3. losses → utilities u → ĝ = 1/(2Kσ) Σ_i (u_i⁺ − u_i⁻) ε_i. E_V acts only through E_Vᵀ h: what of ε_i was orthogonal to
       all states that its pair visited may be left out of the sum (--noise-projection visited)
    4. SGD or Adam steps θ along ĝ; meanwhile the decoder has learned, by Adam or by recursive least squares (--decoder)

Start: `python moving_mnist_es_reservoir.py --seed 0`, or the same program on every GPU of a node:
`torchrun --nproc_per_node=8 moving_mnist_es_reservoir.py --seed 0`. Ranks share the members; they gather 2K losses, and
each forms the same update from regenerated noise (or, projected, from the sums of the tiles), so that any number of ranks ends
in the same bits.
"""

import dataclasses
import math
import time
from collections.abc import Callable
from dataclasses import dataclass

import torch
from torch import Tensor

from common import es, experiment, roll_in
from common.decoder import make_decoder, scheduled
from common.dist import Workers, choose_device
from common.encoder import EMBEDDING
from common.errors import BadInput, run_main
from common.gradient import GradientMeter
from common.laws import SIGN_COST, expected_cosine, minibatch_cosine, perturbed_dimensions
from common.leak import LeakNoise, LeakSettings
from common.philox import Purpose, gaussian
from common.problem import CURRICULUM, FREE_LEAK, Embeddings, Problem, ProblemSettings
from common.projection import VisitedStates, project_noise
from common.rollout import KERNELS, Rollout, pairs_per_tile, require_kernel
from common.run import RunSettings, setting
from common.supervised import DecoderTrainingSettings, ForwardTraining

# --- Configuration ---------------------------------------------------------------------------------------------------


@dataclass(frozen=True)
class Config(ProblemSettings, DecoderTrainingSettings, LeakSettings, RunSettings):
    """The defaults are the brief's problem with the brief's population; presets below change them, flags change both."""

    # The adapter
    rank: int = setting(32, "r, columns of U and V", least=1)
    adapter_start: str = setting(
        "zero-u",
        "U = 0 and V ~ N(0, 1/N); two small factors; or U ~ N(0, --u-scale²/N) and V = 0",
        choices=("zero-u", "small", "zero-v"),
    )
    u_scale: float = setting(1.5, "length of U's columns at --adapter-start zero-v", above=0, most=1e6)
    # Evolution strategies
    iterations: int = setting(2000, "ES iterations", least=1, most=10**9)
    population_pairs: int = setting(32, "K, antithetic pairs an iteration", least=1, most=10**8)
    batch_size: int = setting(32, "sequences of a minibatch", least=1, most=4096)
    own_data: bool = setting(False, "give each pair sequences of its own instead of one shared minibatch")
    noise: str = setting("gaussian", "full Gaussian noise, or ±1 outer products", choices=es.NOISES)
    perturbs: str = setting(
        "both", "what the noise is added to, and ES trains: U and V, or V alone", choices=es.PERTURBED
    )
    u_directions: int = setting(
        0, "confine U's noise to so many first singular directions of Woutᵀ; 0: to none", least=0, most=EMBEDDING
    )
    u_sigma_ratio: float = setting(1.0, "σ of U's noise as a multiple of --sigma", above=0, most=1e6)
    noise_projection: str = setting(
        "none", "visited: leave out of the estimate what of a pair's noise met no state", choices=es.PROJECTIONS
    )
    sigma: float = setting(0.01, "σ, size of the noise", above=0, most=1000)
    sigma_schedule: str = setting("fixed", "fixed, a cosine to --sigma-end, or adapted", choices=es.SIGMA_SCHEDULES)
    sigma_end: float = setting(0.002, "σ at the end of a cosine schedule", above=0, most=1000)
    fitness_shaping: str = setting("raw", "losses → utilities", choices=es.SHAPINGS)
    failure: str = setting("remove", "a failed member takes its pair out, or gets --failure-loss", choices=es.FAILURES)
    failure_loss: float = setting(10.0, "loss of a failed member under --failure penalise", above=0)
    loss_clip: float = setting(10.0, "members' losses are clipped here before shaping", above=0)
    kernel: str = setting("torch", "how a GPU runs a tile, see common/rollout.py", choices=KERNELS)
    measure_cosine_every: int = setting(
        0, "iterations from one comparison of the estimate with the gradient through time to the next; 0: never",
        least=0, most=10**9, changes_result=False,
    )  # fmt: skip
    guard: float = setting(0.95, "a member fails when RMS(h) exceeds this", above=0)
    optimizer: str = setting("adam", "what steps θ along the estimate", choices=("sgd", "adam"))
    learning_rate: float = setting(1e-4, "of θ", above=0, most=1e30)
    u_rate_ratio: float = setting(1.0, "learning rate of U as a multiple of --learning-rate", above=0, most=1e6)
    momentum: float = setting(0.9, "of SGD", least=0, most=0.999)
    leak_sigma: float = setting(0.1, "size of the noise in α's logit, where the leak learns", above=0, most=1000)


# V alone, U random; each pair on a sequence of its own, its noise projected on the states that it visited; normal scores of the
# pairs' differences, for sequences differ much in how steep they are.
LAPTOP = dict(
    iterations=600, population_pairs=256, batch_size=1, own_data=True, noise="rank1", perturbs="v", adapter_start="zero-v",
    u_scale=3.0, noise_projection="visited", fitness_shaping="normal-score", sigma=0.011, learning_rate=3e-3, evaluate_every=20,
    decoder="ridge", decoder_batch_size=32, decoder_warmup=100, decoder_steps=1,
)  # fmt: skip
# Where its decoder is Adam's, a preset of the floor's name (reservoir-readout-only) trains it as long as the floor does.
PRESETS = {
    # Seconds, for tests: every part runs, nothing is learned.
    "smoke": dict(
        hidden_size=64, in_degree=8, rank=4, sequence_length=6, train_sequences=256, validation_sequences=64,
        test_sequences=64, iterations=6, population_pairs=10, batch_size=8, noise="rank1", fitness_shaping="centered-rank",
        decoder_warmup=20, evaluate_every=2, checkpoint_every=2,
    ),
    # The brief's problem with what two CPU cores do in under five minutes.
    "laptop": LAPTOP,
    # The brief to the letter: 32 antithetic pairs, Gaussian noise, the plain estimate, a fixed large loss on failure.
    "brief": dict(
        iterations=2000, population_pairs=32, batch_size=32, noise="gaussian", fitness_shaping="raw", failure="penalise",
        adapter_start="small", train_sequences=50_000, evaluate_every=50,
        decoder_warmup=10_000, decoder_steps=10, decoder_learning_rate=6e-3,
    ),
    # The laptop's estimator with a population that GPUs afford, and without a shortage of data. Not run yet.
    "h200": {
        **LAPTOP, "iterations": 4000, "population_pairs": 16_384, "learning_rate": 1.2e-3, "train_sequences": 1_000_000,
        "evaluate_every": 50, "decoder_batch_size": 256, "decoder_memory": 30_000.0,
    },
    # The laptop's preset for twenty minutes: twice the pairs, five times the iterations. The learning rate falls as one over the
    # root of their number, so that the noise in V adds up to no more.
    "long": {**LAPTOP, "iterations": 3000, "population_pairs": 512, "learning_rate": 1.4e-3, "evaluate_every": 50},
    # The laptop's budget with all of the noise in the estimate: what the projection is worth.
    "plain-noise": {**LAPTOP, "noise_projection": "none"},
    # The leak learns as well: one α, or one of each unit.
    "scalar-leak": {**LAPTOP, "train_leak": "scalar"},
    "unit-leaks": {**LAPTOP, "train_leak": "per-unit"},
    # Small enough to climb the whole schedule: --curriculum. A rung ends at a plateau of five scores.
    "curriculum": {**LAPTOP, **CURRICULUM, "rank": 8, "iterations": 150, "population_pairs": 128, "evaluate_every": 10, "patience": 5},
    # The second problem, its α chosen outside the brief's range, on the laptop's budget.
    "free-leak": dict(**LAPTOP, **FREE_LEAK),
}  # fmt: skip


MEASURED_SEQUENCES = 2048  # whose gradient an estimate is compared with


def parse_arguments(argv: list[str] | None):
    """Command line → (Config, options). Raises BadInput; common/run.py has the options that every experiment has."""
    config, options = experiment.parse(Config, PRESETS, argv, __doc__)
    if config.rank > config.hidden_size:
        raise BadInput(f"--rank must not exceed --hidden-size: {config.rank} > {config.hidden_size}")
    if config.noise_projection == "visited" and config.noise != "rank1":
        raise BadInput(f"--noise-projection visited needs --noise rank1, not {config.noise}")
    if config.noise_projection == "visited" and config.failure == "penalise":
        raise BadInput(
            "--failure penalise needs --noise-projection none: of a failed pair it is not known what it visited"
        )
    if config.noise_projection == "visited" and config.kernel != "torch":
        raise BadInput(f"--noise-projection visited needs --kernel torch: {config.kernel} does not keep the states")
    of_noise = config.u_directions or config.u_sigma_ratio != 1
    if of_noise and (config.noise != "rank1" or config.perturbs != "both"):
        raise BadInput(
            "--u-directions and --u-sigma-ratio are about rank-one noise of U: --noise rank1 --perturbs both"
        )
    if config.perturbs == "v" and config.u_rate_ratio != 1:
        raise BadInput("--u-rate-ratio is about U, which --perturbs v does not train")
    if config.u_directions > config.hidden_size:
        raise BadInput(f"--u-directions must not exceed --hidden-size: {config.u_directions} > {config.hidden_size}")
    if config.perturbs == "v" and config.adapter_start == "zero-u":
        raise BadInput(
            "--perturbs v leaves U as it starts; at --adapter-start zero-u that is 0: choose zero-v or small"
        )
    if config.train_leak != "no" and config.kernel != "torch":
        raise BadInput(f"--train-leak needs --kernel torch: {config.kernel} knows one leak, a number")
    if config.train_leak == "no" and config.leak_sigma != Config.leak_sigma:
        raise BadInput("--leak-sigma is about a leak that learns: --train-leak scalar or per-unit")
    require_kernel(config.kernel, choose_device(config.device).type, config.dtype, config.hidden_size)
    return config, options


# --- Model -----------------------------------------------------------------------------------------------------------


def start_adapter(config: Config) -> tuple[Tensor, Tensor]:
    """U, V float32 (N, r). ΔW = U Vᵀ starts at or near zero, but not at U = V = 0, where its gradient vanishes."""
    shape, ids = (config.hidden_size, config.rank), torch.arange(2)
    draw_2D = gaussian(config.seed, Purpose.ADAPTER_START, (ids, 0), config.hidden_size * config.rank)
    u_Nr, v_Nr = draw_2D[0].reshape(shape), draw_2D[1].reshape(shape)
    unit = 1 / math.sqrt(config.hidden_size)
    if config.adapter_start == "zero-u":
        return torch.zeros(shape), v_Nr * unit
    if config.adapter_start == "zero-v":
        return u_Nr * (config.u_scale * unit), torch.zeros(shape)
    return u_Nr * (0.2 * unit), v_Nr * (0.2 * unit)  # |UVᵀ| ≈ 0.04 in the spectral norm, against 1.6 of W0


def tile_pairs(config: Config, workers: Workers) -> int:
    """Pairs that are evaluated side by side; by rule, see common/rollout.py."""
    dtype, device = getattr(torch, config.dtype), workers.device.type
    return pairs_per_tile(config.population_pairs, config.batch_size, config.hidden_size, dtype, device, config.kernel)


# --- Training --------------------------------------------------------------------------------------------------------


def make_noise(config: Config) -> es.GaussianNoise | es.RankOneNoise:
    shape = (config.hidden_size, config.rank)
    return es.make_noise(config.noise, config.seed, *shape, config.perturbs, config.u_sigma_ratio)


class Training(ForwardTraining):
    """θ = (U, V) under evolution strategies, the decoder by ordinary supervision."""

    label = "ES"
    advice = "σ halved each time: try a smaller --learning-rate or --sigma"
    start_adapter = staticmethod(start_adapter)

    def __init__(self, config: Config, problem: Problem, embeddings: Embeddings, workers: Workers):
        super().__init__(config, problem, embeddings, workers, guard=config.guard)
        factors = [{"params": [self.u_Nr]}, {"params": [self.v_Nr]}]  # each with a learning rate of its own
        if config.optimizer == "adam":
            self.optimizer = torch.optim.Adam(factors, lr=config.learning_rate, foreach=False)
        else:
            self.optimizer = torch.optim.SGD(factors, lr=config.learning_rate, momentum=config.momentum, foreach=False)
        self.noise = make_noise(config)
        self.sigma = es.Sigma(config.sigma_schedule, config.sigma, config.sigma_end, config.iterations)
        if self.leak:
            self.leak_noise = LeakNoise(config.seed, len(self.leak.logit_X1), config.leak_sigma)
        self.tile_pairs = tile_pairs(config, workers)
        self.meter = GradientMeter(self.rollout, embeddings, workers, config.perturbs)
        self.factors: dict[int, tuple[Tensor, ...]] = {}  # of this iteration's noise, projected, by tile of this rank

    @staticmethod
    def derived(config: Config, workers: Workers) -> dict:
        return {"tile_pairs": tile_pairs(config, workers)}

    @property
    def rollouts(self) -> int:
        """So far, the decoder's among them: θ + σε and θ − σε on one sequence count two, θ on one of the decoder's one, and θ that rolls
        in one on each."""
        config = self.config
        members = 2 * config.population_pairs * config.batch_size
        rolling = roll_in.extra_passes(config) * config.batch_size * (config.population_pairs if config.own_data else 1)
        return self.iteration * (members + rolling) + self.decoder_rollouts

    # The population

    def _evaluate_population(
        self, iteration: int, sigma: float, decoder: tuple[Tensor, Tensor]
    ) -> tuple[Tensor, Tensor]:
        """Losses float64 (K, 2) of θ + σε and θ − σε, and which of them failed, on every rank."""
        config, device = self.config, self.workers.device
        if config.u_directions:
            self.noise = self.noise.within(es.first_directions(decoder[0], config.u_directions))
        pairs, batch = self.tile_pairs, config.batch_size
        columns = (pairs, 2, batch)
        u_Nr = self.u_Nr.to(self.rollout.dtype)
        # As Vᵀ in memory, which every tile's adapter begins with.
        v_Nr = self.v_Nr.to(self.rollout.dtype).T.contiguous().T
        per_member = config.sequence_length * EMBEDDING * self.scale

        def load(streams: Tensor) -> tuple[Tensor, Tensor]:
            """drive (T, N, D, 1, B) and targets (T, 128, D, 1, B)."""
            input_TEB, target_TEB = self.minibatch(iteration, streams)
            drive_TNB = self.rollout.drive(input_TEB)
            shape = (len(streams), 1, batch)
            return drive_TNB.unflatten(2, shape), target_TEB.unflatten(2, shape)

        shared = None if config.own_data else load(torch.tensor([self.SHARED]))

        def evaluate(tile: int) -> Tensor:
            pairs_P = torch.arange(tile * pairs, (tile + 1) * pairs)  # past the population in the last tile: padding
            adapter = self.noise.adapter(u_Nr, v_Nr, iteration, pairs_P.to(device), sigma)
            drive_TNDSB, target_TEDSB = shared if shared else load(self.OWN + pairs_P)
            visited = None
            if config.noise_projection == "visited":
                visited = VisitedStates(config.sequence_length, config.hidden_size, columns, u_Nr.dtype, device)
            leak_XPS1 = None
            if self.leak:
                leak_XPS1 = self.leak_noise.members(self.leak.logit_X1, iteration, pairs_P.to(device)).to(u_Nr.dtype)
            result = self.rollout.errors(
                adapter, drive_TNDSB, target_TEDSB, *decoder, columns, watch=visited, leak_XPS1=leak_XPS1
            )
            loss_P2 = result.error_TC.sum(dim=0).view(columns).mean(dim=2) / per_member
            failed_P2 = result.failed_C.view(columns).any(dim=2)
            if visited is not None:
                failed_P2 |= self._keep_projected(tile, adapter, visited, failed_P2.any(dim=1))[:, None]
            return torch.cat((loss_P2.flatten(), failed_P2.flatten().to(torch.float64)))

        tiles = -(-config.population_pairs // pairs)
        rows = self.workers.run_tiles(evaluate, tiles, 4 * pairs, may_stop=True)
        losses_K2 = rows[:, : 2 * pairs].reshape(-1, 2)[: config.population_pairs]
        failed_K2 = rows[:, 2 * pairs :].reshape(-1, 2)[: config.population_pairs] > 0
        return losses_K2, failed_K2

    def _keep_projected(self, tile: int, adapter, visited: VisitedStates, failed_P: Tensor) -> Tensor:
        """Keep a tile's noise, projected, for `_estimate`; returns which pairs could not be projected, bool (P,)."""
        factors = self.noise.for_update(project_noise(adapter, visited.of_pairs().to(torch.float32), self.v_Nr))
        lost_P = ~torch.stack([x_PX.isfinite().all(dim=1) for x_PX in factors]).all(dim=0)
        # A pair that has failed is not part of the sum, and not a number times zero is not one.
        self.factors[tile] = tuple(x_PX.masked_fill((failed_P | lost_P)[:, None], 0) for x_PX in factors)
        return lost_P

    def iterate(self) -> dict:
        """One ES iteration; returns its line of metrics."""
        started = time.perf_counter()
        config, iteration = self.config, self.iteration + 1
        sigma = self.sigma.at(iteration)
        decoder = self.decoder.frozen_copy()
        (losses_K2, failed_K2), decoder_loss, h_rms = self.beside_decoder(
            iteration, lambda: self._evaluate_population(iteration, sigma, decoder)
        )
        weights = es.pair_weights(
            losses_K2, failed_K2, config.fitness_shaping, config.failure, config.failure_loss, config.loss_clip
        )
        rate = scheduled(config.learning_rate, config.schedule, (iteration - 1) / config.iterations)
        norm = half_cosine = update_ratio = math.nan
        measured = {}
        if failed_K2.all():  # there is no estimate: θ stays, and the next noise is smaller
            self.sigma.all_failed()
        elif weights.surviving_K.any():
            estimate = self._estimate(weights, iteration, sigma)
            norm, half_cosine = estimate.norm, estimate.half_cosine
            if config.measure_cosine_every and iteration % config.measure_cosine_every == 0:
                paused = time.perf_counter()
                measured = self._measure(estimate, iteration, decoder)
                started += time.perf_counter() - paused  # it trains nothing
            update_ratio = self._step_adapter(estimate, rate)
            if self.leak:
                weight_K = weights.difference_K / (2 * int(weights.surviving_K.sum()))
                leak_estimate_X1 = self.leak_noise.estimate(weight_K.to(self.workers.device, torch.float32), iteration)
                self.leak.step_logit(leak_estimate_X1, rate / config.learning_rate * config.leak_rate)
        failed_share = float(failed_K2.to(torch.float64).mean())
        self.sigma.iterated(failed_share)

        self.iteration = iteration
        seconds = time.perf_counter() - started
        self.seconds += seconds
        return {
            "iteration": iteration,
            "train_loss": float(losses_K2[~failed_K2].mean()),
            "decoder_loss": decoder_loss,
            "exploded_fraction": failed_share,
            "sigma": sigma,
            "learning_rate": rate,
            "u_norm": float(self.u_Nr.norm()),
            "v_norm": float(self.v_Nr.norm()),
            **(self.leak.metrics() if self.leak else {}),
            "h_rms": h_rms,
            "gradient_norm": norm,
            "half_cosine": half_cosine,
            "update_ratio": update_ratio,
            **measured,
            "rollouts": self.rollouts,
            "rollouts_per_s": 2 * config.population_pairs * config.batch_size / seconds,
            "wallclock_s": self.seconds,
        }

    def _estimate(self, weights: es.PairWeights, iteration: int, sigma: float) -> es.Estimate:
        """ĝ: from noise that every rank draws again; or, projected, from what each tile keeps, added up in their order."""
        device, pairs = self.workers.device, self.tile_pairs
        if self.config.noise_projection == "none":
            return es.estimate_gradient(self.noise, weights, iteration, sigma, device, self.workers.map)
        weights_GK = es.half_weights(weights, sigma, device)
        tiles = -(-weights_GK.shape[1] // pairs)
        weights_GK = torch.nn.functional.pad(weights_GK, (0, tiles * pairs - weights_GK.shape[1]))
        factors = (
            2 if self.config.perturbs == "both" else 1
        )  # U and V, or V: nothing is gathered of a U that stands still

        def partial(tile: int) -> Tensor:
            weights_GP = weights_GK[:, tile * pairs : (tile + 1) * pairs]
            sums = es.weighted_outer(weights_GP, self.factors[tile][-2 * factors :])
            return torch.cat([sum_GNr.flatten() for sum_GNr in sums])

        total = self.workers.sum_tiles(partial, tiles, 2 * factors * self.v_Nr.numel())
        self.factors.clear()
        sums = total.view(factors, 2, *self.v_Nr.shape)
        return es.estimate_of(sums[0] if factors == 2 else torch.zeros_like(sums[-1]), sums[-1])

    def _measure(self, estimate: es.Estimate, iteration: int, decoder: tuple[Tensor, Tensor]) -> dict:
        """How good an estimate is: its cosines to the gradient through time, seen and by the laws. It is compared with what it
        estimates: the mean gradient g; or, of signs of differences, the mean of the sequences' g_i/|g_i|. Normal scores and ranks
        estimate neither exactly; they are held against g, and against the law of plain differences."""
        config = self.config
        sign, pairs, batch = config.fitness_shaping == "sign", config.population_pairs, config.batch_size
        estimate_D = estimate.grad_v_Nr.flatten()
        if config.perturbs == "both":
            estimate_D = torch.cat((estimate.grad_u_Nr.flatten(), estimate_D))
        streams = self.OWN + torch.arange(pairs) if config.own_data else torch.tensor([self.SHARED])
        index_B = self.minibatch_index(iteration, streams, batch)
        here = (self.u_Nr, self.v_Nr, decoder)
        of_all = self.meter.sums(
            self.minibatch_index(iteration, torch.tensor([self.MEASURED]), MEASURED_SEQUENCES), *here
        )
        # The sign of a pair that has several sequences, or shares a minibatch, is that of their mean: no unit of theirs.
        units = sign and config.own_data and batch == 1
        cosine_minibatch = math.nan
        if len(index_B) <= MEASURED_SEQUENCES:
            cosine_minibatch = self.meter.sums(index_B, *here).cosines_to_these(estimate_D)[units]
        cosine_gradient, cosine_units = of_all.cosines(estimate_D)
        _, dimensions = perturbed_dimensions(dataclasses.asdict(config))
        noise = 1 + (of_all.batch_noise - 1) / batch
        if units:
            noise = 1 / of_all.agreement if of_all.agreement else math.nan
        law = (pairs, dimensions * (SIGN_COST if sign else 1), noise, config.own_data)
        known = noise > 0  # few sequences of little agreement may seem to cancel
        return {
            "cosine_minibatch": cosine_minibatch,
            "cosine_minibatch_law": minibatch_cosine(*law) if known else math.nan,
            "cosine_expected": cosine_units if units else cosine_gradient,
            "cosine_expected_law": expected_cosine(*law) if known else math.nan,
            "cosine_gradient": cosine_gradient,
            "batch_noise": of_all.batch_noise,
            "agreement": of_all.agreement,
        }

    def _step_adapter(self, estimate: es.Estimate, rate: float) -> float:
        """Step θ along −ĝ; returns |Δθ| / |θ|."""
        before = (self.u_Nr.clone(), self.v_Nr.clone())
        self.u_Nr.grad, self.v_Nr.grad = estimate.grad_u_Nr, estimate.grad_v_Nr
        for group, ratio in zip(self.optimizer.param_groups, (self.config.u_rate_ratio, 1.0), strict=True):
            group["lr"] = rate * ratio
        self.optimizer.step()
        change = math.hypot(float((self.u_Nr - before[0]).norm()), float((self.v_Nr - before[1]).norm()))
        return change / math.hypot(float(self.u_Nr.norm()), float(self.v_Nr.norm()))

    def validate(self) -> None:
        super().validate()
        self.sigma.validated(self.validation)

    def progress(self, metrics: dict) -> str:
        return (
            f"train {metrics['train_loss']:.4f}, validation {self.validation:.4f}, "
            f"exploded {metrics['exploded_fraction']:.0%}, {metrics['rollouts_per_s']:,.0f} rollouts/s"
        )

    def control(self) -> Callable[[Tensor], Tensor]:
        return self.shuffled("v" if self.config.perturbs == "v" else "u")

    def state_dict(self) -> dict:
        own = {"optimizer": self.optimizer.state_dict(), "sigma": self.sigma.state_dict()}
        return {**super().state_dict(), **own}

    def load_state_dict(self, state: dict) -> None:
        super().load_state_dict(state)
        self.optimizer.load_state_dict(state["optimizer"])
        self.sigma.load_state_dict(state["sigma"])

    @staticmethod
    def costs(config: Config, problem: Problem, workers: Workers) -> list[str]:
        """What a run will cost, from one tile of the population timed here on made-up input."""
        dtype = getattr(torch, config.dtype)
        rollout = Rollout(problem.reservoir(), config.leak, config.guard, workers.device, dtype, config.kernel)
        noise = make_noise(config)
        pairs, batch, steps = tile_pairs(config, workers), config.batch_size, config.sequence_length
        u_Nr, v_Nr = (factor.to(workers.device, rollout.dtype) for factor in start_adapter(config))
        depth = pairs if config.own_data else 1
        z_TEB = torch.ones(steps, EMBEDDING, depth * batch, device=workers.device)
        decoder = make_decoder(config, config.hidden_size, workers.device).frozen_copy()
        seconds = []
        for _ in range(3):
            started = time.perf_counter()
            adapter = noise.adapter(u_Nr, v_Nr, 1, torch.arange(pairs, device=workers.device), config.sigma)
            drive_TNDSB, target_TEDSB = (x.unflatten(2, (depth, 1, batch)) for x in (rollout.drive(z_TEB), z_TEB))
            visited, columns = None, (pairs, 2, batch)
            if config.noise_projection == "visited":
                visited = VisitedStates(steps, config.hidden_size, columns, rollout.dtype, workers.device)
            result = rollout.errors(adapter, drive_TNDSB, target_TEDSB, *decoder, columns, watch=visited)
            if visited is not None:
                project_noise(adapter, visited.of_pairs().to(torch.float32), v_Nr.to(torch.float32))
            result.failed_C.any().item()  # on a GPU: wait for it
            seconds.append(time.perf_counter() - started)
        tiles = -(-config.population_pairs // pairs)
        lanes = workers.world_size * (workers.threads if workers.device.type == "cpu" else 1)
        rolling_s, rolling = roll_in.costs(
            config, depth * batch, lambda h_NB, z_EB: rollout.step(u_Nr, v_Nr, h_NB, rollout.drive(z_EB)), decoder
        )
        tile_s, before_s = (min(seconds) + rolling_s, 0.0) if config.own_data else (min(seconds), rolling_s)
        iteration_s = -(-tiles // lanes) * tile_s + before_s
        rollouts = 2 * config.population_pairs * batch
        element = rollout.dtype.itemsize
        sequences = config.train_sequences + config.validation_sequences + config.test_sequences
        megabytes = {
            "one tile's state": config.hidden_size * 2 * pairs * batch * element / 1e6,
            "its driving input": steps * config.hidden_size * depth * batch * element / 1e6,
            "θ, its gradient and Adam's moments": 4 * 2 * config.hidden_size * config.rank * 4 / 1e6,
            "encoded sequences (on disk on a CPU)": sequences * (steps + 1) * EMBEDDING * 4 / 1e6,
        }
        if config.decoder == "ridge":
            megabytes["the decoder's sums and a copy of them"] = 2 * (config.hidden_size + 1) ** 2 * 4 / 1e6
        _, dimensions = perturbed_dimensions(dataclasses.asdict(config))
        law = expected_cosine(config.population_pairs, dimensions)
        return [
            f"{config.population_pairs:,} pairs in {dimensions:,} dimensions: cosine of at most {law:.3f} to the gradient, by the law; "
            "less, the more sequences differ",
            f"{rollouts:,} rollouts of members an iteration, {rollouts * config.iterations:,} in {config.iterations:,} iterations",
            f"{tiles:,} tiles of {pairs} pairs ({2 * pairs * batch} columns); one took {min(seconds):.3g} s here",
            *rolling,
            f"expected {iteration_s:.3g} s an iteration, {iteration_s * config.iterations / 60:.3g} min for the population",
            "memory: " + ", ".join(f"{name} {size:,.1f} MB" for name, size in megabytes.items()),
        ]


# --- Main ------------------------------------------------------------------------------------------------------------


def main(argv: list[str] | None = None) -> int:
    return experiment.launch(*parse_arguments(argv), Training, __file__, parse_arguments)


if __name__ == "__main__":
    run_main(main)
