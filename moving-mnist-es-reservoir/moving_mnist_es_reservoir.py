"""Evolution strategies train a low-rank adapter inside a frozen reservoir to predict the next Moving-MNIST embedding.

    z_t     = frozen random CNN of frame t, standardised                                                 (128)
    h_t     = (1 − α) h_{t−1} + α tanh(W0 h_{t−1} + U (Vᵀ h_{t−1}) + Win z_t + b),   h_0 = 0               (N)
    ẑ_{t+1} = Wout h_t + bout                                                                           (128)
    L       = mean over t = 1 … T, sequences and dimensions of (ẑ_{t+1} − z_{t+1})²

Frozen: the CNN, W0 (sparse), Win, b. Trained by evolution strategies, with forward passes only: θ = (U, V), U and V of
shape (N, r). Trained by ordinary supervision on the unperturbed θ: Wout, bout. One iteration:

    1. a minibatch; K noise vectors ε_i, each used twice: θ + σ ε_i and θ − σ ε_i
    2. all 2K members run forward on the same minibatch, each returns one number, its loss
    3. losses → utilities u → ĝ = 1/(2Kσ) Σ_i (u_i⁺ − u_i⁻) ε_i
    4. SGD or Adam steps θ along ĝ; meanwhile Adam has stepped the decoder

Start: `python moving_mnist_es_reservoir.py --seed 0`, or the same program on every GPU of a node:
`torchrun --nproc_per_node=8 moving_mnist_es_reservoir.py --seed 0`. Ranks share the members; they gather 2K losses, and
each forms the same update from regenerated noise, so that any number of ranks ends in the same bits.
"""

import dataclasses
import io
import math
import sys
import time
from dataclasses import dataclass

import numpy as np
import torch
from torch import Tensor
from tqdm import tqdm

from common import es
from common.decoder import SCHEDULES, DecoderTraining, scheduled
from common.dist import Workers, choose_device
from common.encoder import EMBEDDING
from common.errors import BadInput
from common.evaluation import inputs_and_targets, ridge_score, score, trivial_scores
from common.moving_mnist import load_public_test_set
from common.philox import Purpose, gaussian, integers
from common.problem import Embeddings, Problem, ProblemSettings
from common.reservoir import spectral_radius
from common.rollout import Rollout, pairs_per_tile
from common.run import (
    INTERRUPTED,
    SCHEMA,
    RunFolder,
    RunSettings,
    StopRequest,
    environment,
    identity_of,
    parse_config,
    run_main,
    saved_config,
    setting,
    sha256_of_tensors,
    source,
    write_atomically,
    write_json,
)

# --- Configuration ---------------------------------------------------------------------------------------------------


@dataclass(frozen=True)
class Config(ProblemSettings, RunSettings):
    """The defaults are the brief's problem with the brief's population; presets below change them, flags change both."""

    train_sequences: int = setting(10_000, "different training sequences", least=1, most=2**31 - 1)
    # The adapter
    rank: int = setting(32, "r, columns of U and V", least=1)
    adapter_start: str = setting("zero-u", "U = 0 and V ~ N(0, 1/N), or two small factors", choices=("zero-u", "small"))
    # Evolution strategies
    iterations: int = setting(2000, "ES iterations", least=1, most=10**9)
    population_pairs: int = setting(32, "K, antithetic pairs an iteration", least=1, most=10**8)
    batch_size: int = setting(32, "sequences of a minibatch", least=1, most=4096)
    own_data: bool = setting(False, "give each pair sequences of its own instead of one shared minibatch")
    noise: str = setting("gaussian", "full Gaussian noise, or ±1 outer products", choices=es.NOISES)
    sigma: float = setting(0.01, "σ, size of the noise", above=0)
    sigma_schedule: str = setting("fixed", "fixed, a cosine to --sigma-end, or adapted", choices=es.SIGMA_SCHEDULES)
    sigma_end: float = setting(0.002, "σ at the end of a cosine schedule", above=0)
    fitness_shaping: str = setting("raw", "losses → utilities", choices=es.SHAPINGS)
    failure: str = setting("remove", "a failed member takes its pair out, or gets --failure-loss", choices=es.FAILURES)
    failure_loss: float = setting(10.0, "loss of a failed member under --failure penalise", above=0)
    loss_clip: float = setting(10.0, "members' losses are clipped here before shaping", above=0)
    guard: float = setting(0.95, "a member fails when RMS(h) exceeds this", above=0)
    optimizer: str = setting("adam", "what steps θ along the estimate", choices=("sgd", "adam"))
    learning_rate: float = setting(1e-4, "of θ", above=0)
    momentum: float = setting(0.9, "of SGD", least=0, most=0.999)
    # The decoder
    decoder_learning_rate: float = setting(1e-3, "of the decoder's Adam", above=0)
    decoder_warmup: int = setting(1000, "decoder steps before the first ES iteration", least=0)
    decoder_steps: int = setting(1, "decoder steps an ES iteration, each on a minibatch", least=1)
    schedule: str = setting("cosine", "of both learning rates over the run", choices=SCHEDULES)
    # Evaluation on data of others
    public_test_file: str | None = setting(
        None, "also score on this mnist_test_seq.npy (two digits)", changes_result=False
    )


PRESETS = {
    # Seconds, for tests: every part runs, nothing is learned.
    "smoke": dict(
        hidden_size=64, in_degree=8, rank=4, sequence_length=6, train_sequences=256, validation_sequences=64,
        test_sequences=64, iterations=6, population_pairs=10, batch_size=8, noise="rank1", fitness_shaping="centered-rank",
        decoder_warmup=20, evaluate_every=2, checkpoint_every=2,
    ),
    # The brief's problem with what two CPU cores do in under five minutes.
    "laptop": dict(
        iterations=200, population_pairs=64, batch_size=32, noise="rank1", fitness_shaping="centered-rank",
        decoder_warmup=1000, decoder_steps=4, learning_rate=1e-4, evaluate_every=10,
    ),
    # The brief to the letter: 32 antithetic pairs, Gaussian noise, the plain estimate, a fixed large loss on failure.
    "brief": dict(
        iterations=2000, population_pairs=32, batch_size=32, noise="gaussian", fitness_shaping="raw", failure="penalise",
        train_sequences=50_000, decoder_steps=4, evaluate_every=50,
    ),
    # The brief's problem with the population that eight H200s afford.
    "h200": dict(
        iterations=2000, population_pairs=8192, batch_size=64, noise="rank1", fitness_shaping="centered-rank",
        train_sequences=1_000_000, decoder_steps=4, evaluate_every=20, learning_rate=1e-3,
    ),
}  # fmt: skip


def parse_arguments(argv: list[str] | None):
    """Command line → (Config, options). Raises BadInput; see common/run.py for the options every experiment has."""
    config, options = parse_config(Config, PRESETS, argv, __doc__)
    if config.rank > config.hidden_size:
        raise BadInput(f"--rank must not exceed --hidden-size: {config.rank} > {config.hidden_size}")
    if config.in_degree > config.hidden_size:
        raise BadInput(f"--in-degree must not exceed --hidden-size: {config.in_degree} > {config.hidden_size}")
    if config.dtype == "float16" and choose_device(config.device).type != "cuda":
        raise BadInput("--dtype float16 needs a CUDA device; on a CPU choose float32 or float64")
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
    return u_Nr * (0.2 * unit), v_Nr * (0.2 * unit)  # |UVᵀ| ≈ 0.04 in the spectral norm, against 1.8 of W0


# --- Training --------------------------------------------------------------------------------------------------------


class Training:
    """θ, the decoder and everything else that changes while the run goes on."""

    SHARED, OWN = 0, 1 << 20  # minibatch streams: the shared one, extra ones of the decoder, then one for each pair

    def __init__(self, config: Config, problem: Problem, embeddings: Embeddings, workers: Workers):
        self.config, self.embeddings, self.workers = config, embeddings, workers
        self.rollout = Rollout(
            problem.reservoir(), config.leak, config.guard, workers.device, getattr(torch, config.dtype)
        )
        u_Nr, v_Nr = start_adapter(config)
        self.u_Nr, self.v_Nr = u_Nr.to(workers.device), v_Nr.to(workers.device)
        if config.optimizer == "adam":
            self.optimizer = torch.optim.Adam([self.u_Nr, self.v_Nr], lr=config.learning_rate, foreach=False)
        else:
            self.optimizer = torch.optim.SGD(
                [self.u_Nr, self.v_Nr], lr=config.learning_rate, momentum=config.momentum, foreach=False
            )
        self.decoder = DecoderTraining(config.hidden_size, workers.device)
        self.noise = es.make_noise(config.noise, config.seed, config.hidden_size, config.rank)
        self.sigma = es.Sigma(config.sigma_schedule, config.sigma, config.sigma_end, config.iterations)
        self.tile_pairs = tile_pairs(config, workers)
        self.scale = embeddings.error_scale()
        self.warmed_up = 0  # decoder steps taken before the first iteration
        self.iteration = 0
        self.seconds = 0.0  # of training, without data, scoring and figures
        self.validation = math.nan
        self.showcase = Showcase(embeddings)

    @property
    def rollouts(self) -> int:
        """Member rollouts so far: one member on one sequence counts one."""
        return self.iteration * 2 * self.config.population_pairs * self.config.batch_size

    def minibatch(self, iteration: int, streams: Tensor) -> tuple[Tensor, Tensor]:
        """Inputs and targets, each (T, 128, S·B), of S streams of this iteration; sequences are drawn with replacement."""
        index_SB = integers(
            self.config.seed,
            Purpose.MINIBATCH,
            (streams, iteration),
            self.config.batch_size,
            self.config.train_sequences,
        )
        return inputs_and_targets(self.embeddings.get("train", index_SB.flatten()))

    # The decoder

    def _states(self, iteration: int, stream: int) -> tuple[Tensor, Tensor]:
        """States (N, T, B) of the unperturbed θ on a minibatch, and its targets."""
        input_TEB, target_TEB = self.minibatch(iteration, torch.tensor([stream]))
        return self.rollout.states(self.u_Nr, self.v_Nr, self.rollout.drive(input_TEB)), target_TEB

    def warm_up_decoder(self, stop: StopRequest, progress: bool) -> None:
        """Train the decoder alone: a population scored by an untrained decoder would be told nothing about θ.

        θ stands still meanwhile, so that the states of several minibatches can be computed side by side.
        """
        total, group = self.config.decoder_warmup, 8
        bar = tqdm(total=total, initial=self.warmed_up, desc="decoder", unit="step", disable=not progress, leave=False)
        with bar:
            while self.warmed_up < total and not self.workers.any(stop.requested):
                started = time.perf_counter()
                steps = range(self.warmed_up, min(self.warmed_up + group, total))
                for states_NTB, target_TEB in self.workers.map(lambda step: self._states(0, step), steps):
                    loss = self.decoder.step(states_NTB, target_TEB, self.config.decoder_learning_rate)
                self.warmed_up += len(steps)
                self.seconds += time.perf_counter() - started
                bar.set_postfix_str(f"loss {loss / self.scale:.4f}")
                bar.update(len(steps))

    def _train_decoder(self, iteration: int) -> tuple[float, float]:
        """This iteration's decoder steps; returns the loss on the population's minibatch, and RMS(h) there."""
        done = (iteration - 1) / self.config.iterations
        rate = scheduled(self.config.decoder_learning_rate, self.config.schedule, done)
        for stream in range(self.config.decoder_steps):
            states_NTB, target_TEB = self._states(iteration, self.SHARED + stream)
            loss = self.decoder.step(states_NTB, target_TEB, rate) / self.scale
            if stream == self.SHARED:
                shared_loss, h_rms = loss, float(states_NTB.to(torch.float32).square().mean().sqrt())
        return shared_loss, h_rms

    # The population

    def _evaluate_population(
        self, iteration: int, sigma: float, decoder: tuple[Tensor, Tensor]
    ) -> tuple[Tensor, Tensor]:
        """Losses float64 (K, 2) of θ + σε and θ − σε, and which of them failed, on every rank."""
        config, device = self.config, self.workers.device
        pairs, batch = self.tile_pairs, config.batch_size
        columns = (pairs, 2, batch)
        u_Nr, v_Nr = self.u_Nr.to(self.rollout.dtype), self.v_Nr.to(self.rollout.dtype)
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
            adapter = self.noise.adapter(u_Nr, v_Nr, iteration, pairs_P.to(device), sigma, batch)
            drive_TNDSB, target_TEDSB = shared if shared else load(self.OWN + pairs_P)
            result = self.rollout.errors(adapter, drive_TNDSB, target_TEDSB, *decoder, columns)
            loss_P2 = result.error_TC.sum(dim=0).view(columns).mean(dim=2) / per_member
            failed_P2 = result.failed_C.view(columns).any(dim=2)
            return torch.cat((loss_P2.flatten(), failed_P2.flatten().to(torch.float64)))

        tiles = -(-config.population_pairs // pairs)
        rows = self.workers.run_tiles(evaluate, tiles, 4 * pairs)
        losses_K2 = rows[:, : 2 * pairs].reshape(-1, 2)[: config.population_pairs]
        failed_K2 = rows[:, 2 * pairs :].reshape(-1, 2)[: config.population_pairs] > 0
        return losses_K2, failed_K2

    def iterate(self) -> dict:
        """One ES iteration; returns its line of metrics."""
        started = time.perf_counter()
        config, iteration = self.config, self.iteration + 1
        sigma = self.sigma.at(iteration)
        # The decoder trains beside the population, which is scored with the decoder of the iteration's start.
        decoder = self.decoder.frozen_copy()
        decoder_task = self.workers.submit(lambda: self._train_decoder(iteration))
        losses_K2, failed_K2 = self._evaluate_population(iteration, sigma, decoder)
        decoder_loss, h_rms = decoder_task.result()

        weights = es.pair_weights(
            losses_K2, failed_K2, config.fitness_shaping, config.failure, config.failure_loss, config.loss_clip
        )
        rate = scheduled(config.learning_rate, config.schedule, (iteration - 1) / config.iterations)
        norm = half_cosine = update_ratio = math.nan
        if weights.surviving_K.any():  # else there is no estimate, and θ stays
            estimate = es.estimate_gradient(
                self.noise, weights, iteration, sigma, self.workers.device, self.workers.map
            )
            norm, half_cosine = estimate.norm, estimate.half_cosine
            update_ratio = self._step_adapter(estimate, rate)
        failed_share = float(failed_K2.to(torch.float64).mean())
        self.sigma.update(decoder_loss, failed_share)

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
            "h_rms": h_rms,
            "gradient_norm": norm,
            "half_cosine": half_cosine,
            "update_ratio": update_ratio,
            "rollouts": self.rollouts,
            "rollouts_per_s": 2 * config.population_pairs * config.batch_size / seconds,
            "wallclock_s": self.seconds,
        }

    def _step_adapter(self, estimate: es.Estimate, rate: float) -> float:
        """Step θ along −ĝ; returns |Δθ| / |θ|."""
        before = (self.u_Nr.clone(), self.v_Nr.clone())
        self.u_Nr.grad, self.v_Nr.grad = estimate.grad_u_Nr, estimate.grad_v_Nr
        for group in self.optimizer.param_groups:
            group["lr"] = rate
        self.optimizer.step()
        change = math.hypot(float((self.u_Nr - before[0]).norm()), float((self.v_Nr - before[1]).norm()))
        return change / math.hypot(float(self.u_Nr.norm()), float(self.v_Nr.norm()))

    # Evaluation and saving

    def score(self, split: str):
        """Score of the unperturbed θ with its decoder; every rank takes part and gets it."""
        return score(self.rollout, self.u_Nr, self.v_Nr, self.decoder.linear, self.embeddings, split, self.workers)

    def validate(self) -> None:
        """Score on the validation set, and remember the showcase predictions of this iteration for the GIF."""
        self.validation = self.score("validation").mse
        self.showcase.add(
            self.iteration, self.decoder.predict(self.rollout, self.u_Nr, self.v_Nr, self.showcase.input_TES)
        )

    def state_dict(self) -> dict:
        return {
            "iteration": self.iteration,
            "warmed_up": self.warmed_up,
            "seconds": self.seconds,
            "validation": self.validation,
            "u_Nr": self.u_Nr,
            "v_Nr": self.v_Nr,
            "optimizer": self.optimizer.state_dict(),
            "decoder": self.decoder.state_dict(),
            "sigma": self.sigma.state_dict(),
            "showcase": self.showcase.state_dict(),
            "seeds": {
                name: getattr(self.config, name) for name in ("seed", "data_seed", "encoder_seed", "reservoir_seed")
            },
        }

    @torch.no_grad()
    def load_state_dict(self, state: dict) -> None:
        for name in ("iteration", "warmed_up", "seconds", "validation"):
            setattr(self, name, state[name])
        self.u_Nr.copy_(state["u_Nr"])
        self.v_Nr.copy_(state["v_Nr"])
        self.optimizer.load_state_dict(state["optimizer"])
        self.decoder.load_state_dict(state["decoder"])
        self.sigma.load_state_dict(state["sigma"])
        self.showcase.load_state_dict(state["showcase"])


class Showcase:
    """Three test sequences whose predictions are kept along the run, projected on the plane that shows most of the targets.

    The plane is spanned by the first two principal axes of the test targets.
    """

    SEQUENCES = 3

    def __init__(self, embeddings: Embeddings):
        count = min(self.SEQUENCES, embeddings.sizes["test"])
        self.index_S = torch.arange(count)
        self.input_TES, self.target_TES = inputs_and_targets(embeddings.get("test", self.index_S))
        targets_ME = embeddings.stored["test"][:, 1:].flatten(0, 1).to("cpu", torch.float64)
        centred_ME = targets_ME - targets_ME.mean(dim=0)
        variance_E, axes_EE = torch.linalg.eigh(centred_ME.T @ centred_ME)
        axes_E2 = axes_EE[:, -2:].flip(1)
        self.axes_E2 = (axes_E2 * axes_E2.sum(dim=0).sign()).to(torch.float32)  # eigenvectors come with any sign
        self.explained_2 = (variance_E[-2:].flip(0) / variance_E.sum()).to(torch.float32)
        self.iterations: list[int] = []
        self.planes: list[Tensor] = []

    def project(self, z_TES: Tensor) -> Tensor:
        """(T, 128, S) → (S, T, 2)."""
        return (z_TES.cpu().permute(2, 0, 1) @ self.axes_E2).contiguous()

    def add(self, iteration: int, prediction_TES: Tensor) -> None:
        self.iterations.append(iteration)
        self.planes.append(self.project(prediction_TES))

    def state_dict(self) -> dict:
        return {"iterations": list(self.iterations), "planes": list(self.planes)}

    def load_state_dict(self, state: dict) -> None:
        self.iterations, self.planes = list(state["iterations"]), list(state["planes"])


def train(training: Training, folder: RunFolder, writer) -> bool:
    """Run to the end, or to a stop that the user asked for (False). Rank 0 logs, saves and shows progress."""
    config, workers = training.config, training.workers
    main_rank = workers.is_main

    def save() -> None:
        if main_rank:
            folder.save(training.state_dict())

    def log(metrics: dict) -> None:
        if main_rank:
            folder.log(metrics)
            for name, value in metrics.items() if writer else ():
                writer.add_scalar(name, value, metrics["iteration"])

    if main_rank:
        folder.truncate_metrics(training.iteration)
    with StopRequest() as stop:
        if training.iteration == 0:
            if training.warmed_up == 0:
                save()
            training.warm_up_decoder(stop, main_rank)
            if training.warmed_up < config.decoder_warmup:
                save()
                return False
            training.validate()
            log({"iteration": 0, "validation_mse": training.validation, "rollouts": 0, "wallclock_s": training.seconds})
            save()
        bar = tqdm(
            total=config.iterations, initial=training.iteration, desc="ES", unit="it", disable=not main_rank,
            mininterval=0.5 if sys.stderr.isatty() else 15, dynamic_ncols=True,
        )  # fmt: skip
        while training.iteration < config.iterations:
            metrics = training.iterate()
            last = training.iteration == config.iterations
            if training.iteration % config.evaluate_every == 0 or last:
                training.validate()
                metrics["validation_mse"] = training.validation
            log(metrics)
            bar.set_postfix_str(
                f"train {metrics['train_loss']:.4f}, validation {training.validation:.4f}, "
                f"exploded {metrics['exploded_fraction']:.0%}, {metrics['rollouts_per_s']:,.0f} rollouts/s",
                refresh=False,
            )
            bar.update()
            stopping = workers.any(stop.requested)
            if training.iteration % config.checkpoint_every == 0 or last or stopping:
                save()
            if stopping and not last:
                bar.close()
                return False
        bar.close()
    return True


# --- Evaluation ------------------------------------------------------------------------------------------------------


def evaluate(training: Training) -> dict:
    """The results that every rank can know: test and validation errors of the trained model."""
    test, validation = training.score("test"), training.score("validation")
    return {
        "test_mse": test.mse,
        "test_mse_last_frame": test.last_frame,
        "validation_mse": validation.mse,
        "mse_by_frame_T": test.by_frame_T,
    }


def evaluate_public(training: Training, path: str) -> float:
    """MSE on the public two-digit test file: 20 frames, so its targets are frames 2 … 20. Divided by its own variance."""
    frames = load_public_test_set(path)
    embeddings, total, squares, sums, count = (
        training.embeddings,
        0.0,
        0.0,
        torch.zeros(EMBEDDING, dtype=torch.float64),
        0,
    )
    for start in tqdm(range(0, len(frames), 100), desc="public test set", unit="×100 seq", leave=False):
        z_BFE = embeddings.encode_frames(torch.from_numpy(np.ascontiguousarray(frames[start : start + 100])))
        input_TEB, target_TEB = inputs_and_targets(z_BFE)
        prediction_TEB = training.decoder.predict(training.rollout, training.u_Nr, training.v_Nr, input_TEB)
        total += float((prediction_TEB - target_TEB).to(torch.float64).square().sum())
        squares += float(target_TEB.to(torch.float64).square().sum())
        sums += target_TEB.to("cpu", torch.float64).sum(dim=(0, 2))
        count += target_TEB.shape[0] * target_TEB.shape[2]
    variance = squares / (count * EMBEDDING) - float((sums / count).square().mean())
    return total / (count * EMBEDDING) / variance


def reproduces(results: dict) -> str:
    """ "yes": ES made the core itself better: with a ridge readout it is at least 1 % better than the frozen core with one.
    "partial": it predicts better than every trivial predictor, as the frozen core does too. "no": otherwise."""
    best_trivial = min(entry["all"] for entry in results["trivial_test_mse"].values())
    if not results["test_mse"] < best_trivial:
        return "no"
    return "yes" if results["ridge_test_mse"] < 0.99 * results["ridge_test_mse_at_start"] else "partial"


def finish(training: Training, folder: RunFolder, options, problem: Problem) -> None:
    """Score the trained model, write results.json and figures.npz, print the headline."""
    config, workers = training.config, training.workers
    scores = evaluate(training)
    if workers.is_main:
        on_node = workers.map_on_node
        progress = tqdm(total=4, desc="scoring", leave=False)
        progress.set_postfix_str("ridge readout of the trained core")
        ridge = ridge_score(training.rollout, training.u_Nr, training.v_Nr, training.embeddings, on_node)
        progress.update()
        progress.set_postfix_str("ridge readout of the frozen core")
        start_u_Nr, start_v_Nr = (factor.to(workers.device) for factor in start_adapter(config))
        ridge_start = ridge_score(training.rollout, start_u_Nr, start_v_Nr, training.embeddings, on_node)
        progress.update()
        progress.set_postfix_str("trivial predictors")
        trivial = trivial_scores(training.embeddings)
        progress.update()
        progress.set_postfix_str("spectra")
        figures = figure_data(training, scores["mse_by_frame_T"], trivial)
        progress.update()
        progress.close()
        results = {
            "schema": SCHEMA,
            "stub": "moving-mnist-es-reservoir",
            "seed": config.seed,
            "preset": options.preset,
            "problem_id": problem.id,
            "problem": problem.description,
            "config": dataclasses.asdict(config),
            "command": "python moving_mnist_es_reservoir.py " + " ".join(sys.argv[1:]),
            "test_mse": scores["test_mse"],
            "test_mse_last_frame": scores["test_mse_last_frame"],
            "validation_mse": scores["validation_mse"],
            "ridge_test_mse": ridge.mse,
            "ridge_test_mse_at_start": ridge_start.mse,
            "trivial_test_mse": {name: {"all": s.mse, "last_frame": s.last_frame} for name, s in trivial.items()},
            "spectral_radius": spectral_radius(torch.from_numpy(figures["eigenvalues_frozen"])),
            "iterations": training.iteration,
            "rollouts": training.rollouts,
            "wallclock_s": training.seconds,
            "theta_sha256": sha256_of_tensors(training.u_Nr, training.v_Nr),
            "environment": environment(workers),
            "source": source(__file__),
        }
        if config.public_test_file:
            results["public_test_mse"] = evaluate_public(training, config.public_test_file)
        results["reproduces"] = reproduces(results)
        buffer = io.BytesIO()
        np.savez_compressed(buffer, **figures)
        write_atomically(folder.path / "figures.npz", buffer.getvalue())
        write_json(folder.path / "results.json", results)
        print_headline(results, folder)
    workers.barrier()


def print_headline(results: dict, folder: RunFolder) -> None:
    names = {"mean": "mean", "copy_last": "copy-last", "ar1": "AR(1) ridge", "ar3": "AR(3) ridge"}
    rows = [(names[name], entry["all"], entry["last_frame"]) for name, entry in results["trivial_test_mse"].items()]
    rows += [("frozen core, ridge readout", results["ridge_test_mse_at_start"], None)]
    rows += [("ES-trained core, ridge readout", results["ridge_test_mse"], None)]
    rows += [("ES-trained core, its decoder", results["test_mse"], results["test_mse_last_frame"])]
    last_frame = results["config"]["sequence_length"] + 1
    print(f"\n{'test MSE (1 = predicts the mean)':34}  frames 2–{last_frame}  frame {last_frame}")
    for name, everywhere, last in rows:
        print(f"{name:34}  {everywhere:11.4f}" + (f"  {last:8.4f}" if last is not None else ""))
    minutes, seconds = divmod(round(results["wallclock_s"]), 60)
    print(
        f"seed {results['seed']}, {results['iterations']} iterations, {results['rollouts']:,} rollouts, "
        f"{minutes} min {seconds} s of training; reproduces: {results['reproduces']}; saved in {folder.path}"
    )


@torch.no_grad()
def figure_data(training: Training, mse_by_frame_T: Tensor, trivial: dict) -> dict[str, np.ndarray]:
    """Everything the figures show that metrics.jsonl does not hold."""
    show, rollout, embeddings = training.showcase, training.rollout, training.embeddings
    u_Nr, v_Nr = training.u_Nr.cpu(), training.v_Nr.cpu()
    start_u_Nr, start_v_Nr = start_adapter(training.config)
    prediction_TES = training.decoder.predict(rollout, training.u_Nr, training.v_Nr, show.input_TES)
    some = torch.arange(min(256, embeddings.sizes["test"]))
    input_TEB, _ = inputs_and_targets(embeddings.get("test", some))
    states_NTB = rollout.states(training.u_Nr, training.v_Nr, rollout.drive(input_TEB)).to("cpu", torch.float32)
    histogram, edges = np.histogram(states_NTB.numpy(), bins=50, range=(-1, 1))
    weight_NN = training.rollout.reservoir.dense().to("cpu", torch.float32)
    units = torch.linspace(0, len(u_Nr) - 1, min(64, len(u_Nr))).long()

    def for_file(z_TES: Tensor) -> np.ndarray:
        return z_TES.permute(2, 0, 1).cpu().numpy().astype(np.float16)

    return {
        "frames_SFYX": embeddings.data.frames("test", show.index_S.numpy()),
        "target_STE": for_file(show.target_TES),
        "prediction_STE": for_file(prediction_TES),
        "plane_target_ST2": show.project(show.target_TES).numpy(),
        "plane_iteration_n": np.array(show.iterations, dtype=np.int64),
        "plane_prediction_nST2": torch.stack(show.planes).numpy(),
        "plane_explained_2": show.explained_2.numpy(),
        "mse_by_frame_T": mse_by_frame_T.numpy().astype(np.float32),
        "trivial_names": np.array(list(trivial)),
        "trivial_mse_by_frame_kT": np.stack([s.by_frame_T.numpy().astype(np.float32) for s in trivial.values()]),
        "eigenvalues_frozen": torch.linalg.eigvals(weight_NN).numpy().astype(np.complex64),
        "eigenvalues_trained": torch.linalg.eigvals(weight_NN + u_Nr @ v_Nr.T).numpy().astype(np.complex64),
        "singular_values_start": torch.linalg.svdvals(start_u_Nr @ start_v_Nr.T)[: u_Nr.shape[1]].numpy(),
        "singular_values_final": torch.linalg.svdvals(u_Nr @ v_Nr.T)[: u_Nr.shape[1]].numpy(),
        "hidden_TM": states_NTB[units, :, 0].T.numpy().astype(np.float16),
        "hidden_rms_T": states_NTB.square().mean(dim=(0, 2)).sqrt().numpy(),
        "hidden_histogram": histogram,
        "hidden_edges": edges.astype(np.float32),
    }


# --- Main ------------------------------------------------------------------------------------------------------------


def dry_run(config: Config, options, problem: Problem, workers: Workers) -> None:
    """Print what the run will cost, from one tile of the population timed here on made-up input."""
    rollout = Rollout(problem.reservoir(), config.leak, config.guard, workers.device, getattr(torch, config.dtype))
    noise = es.make_noise(config.noise, config.seed, config.hidden_size, config.rank)
    pairs, batch, steps = tile_pairs(config, workers), config.batch_size, config.sequence_length
    u_Nr, v_Nr = (factor.to(workers.device, rollout.dtype) for factor in start_adapter(config))
    depth = pairs if config.own_data else 1
    z_TEB = torch.ones(steps, EMBEDDING, depth * batch, device=workers.device)
    decoder = DecoderTraining(config.hidden_size, workers.device).frozen_copy()
    seconds = []
    for _ in range(3):
        started = time.perf_counter()
        adapter = noise.adapter(u_Nr, v_Nr, 1, torch.arange(pairs, device=workers.device), config.sigma, batch)
        drive_TNDSB, target_TEDSB = (x.unflatten(2, (depth, 1, batch)) for x in (rollout.drive(z_TEB), z_TEB))
        rollout.errors(adapter, drive_TNDSB, target_TEDSB, *decoder, (pairs, 2, batch)).failed_C.any().item()
        seconds.append(time.perf_counter() - started)
    tiles = -(-config.population_pairs // pairs)
    lanes = workers.world_size * (workers.threads if workers.device.type == "cpu" else 1)
    iteration_s = -(-tiles // lanes) * min(seconds)
    rollouts = 2 * config.population_pairs * batch
    element = rollout.dtype.itemsize
    sequences = sum((config.train_sequences, config.validation_sequences, config.test_sequences))
    megabytes = {
        "one tile's state": config.hidden_size * 2 * pairs * batch * element / 1e6,
        "its driving input": steps * config.hidden_size * depth * batch * element / 1e6,
        "θ and its optimiser": 4 * 2 * config.hidden_size * config.rank * 4 / 1e6,
        "encoded sequences (on disk on a CPU)": sequences * (steps + 1) * EMBEDDING * 4 / 1e6,
    }
    if workers.is_main:
        print(f"preset {options.preset}, {workers.world_size} rank(s) on {workers.device.type}, problem {problem.id}")
        print(
            f"{rollouts:,} rollouts an iteration, {rollouts * config.iterations:,} in {config.iterations:,} iterations"
        )
        print(f"{tiles:,} tiles of {pairs} pairs ({2 * pairs * batch} columns); one took {min(seconds):.3g} s here")
        print(
            f"expected {iteration_s:.3g} s an iteration, {iteration_s * config.iterations / 60:.3g} min for the population"
        )
        print("memory: " + ", ".join(f"{name} {size:,.1f} MB" for name, size in megabytes.items()))


def tile_pairs(config: Config, workers: Workers) -> int:
    return pairs_per_tile(config.population_pairs, config.batch_size, workers.device.type)


def summary_writer(config: Config, folder: RunFolder):
    """A TensorBoard writer into the run folder, or None. Raises BadInput if it is asked for and not installed."""
    if not config.tensorboard:
        return None
    try:
        from torch.utils.tensorboard import SummaryWriter
    except ImportError:
        raise BadInput("--tensorboard needs the package tensorboard: pip install -e .[tensorboard]") from None
    return SummaryWriter(folder.path / "tensorboard")


def main(argv: list[str] | None = None) -> int:
    config, options = parse_arguments(argv)
    if options.evaluate:
        config = saved_config(options.run_dir, config)
    device = choose_device(config.device)
    config = dataclasses.replace(config, device=device.type)
    with Workers(device, config.backend, config.threads) as workers:
        digits = config.load_digits()
        problem = config.problem(digits)
        if options.dry_run:
            dry_run(config, options, problem, workers)
            return 0
        if config.public_test_file:
            load_public_test_set(config.public_test_file)  # a wrong file should be known now, not at the end
        identity = {**identity_of(config), "problem_id": problem.id, "tile_pairs": tile_pairs(config, workers)}
        if options.evaluate:
            folder = RunFolder(options.run_dir, identity)
            state = workers.from_main(folder.load)
        else:
            folder, state = RunFolder.open(options.run_dir, identity, options.resume, options.overwrite, workers)
        writer = summary_writer(config, folder) if workers.is_main and not options.evaluate else None
        embeddings = Embeddings(problem, digits, config.train_sequences, workers)
        embeddings.prepare(workers)
        training = Training(config, problem, embeddings, workers)
        if state is not None:
            training.load_state_dict(state)
        if options.evaluate:
            scores = evaluate(training)
            if workers.is_main:
                print(f"iteration {training.iteration}: test MSE {scores['test_mse']:.4f}, "
                      f"last frame {scores['test_mse_last_frame']:.4f}, validation {scores['validation_mse']:.4f}")  # fmt: skip
            return 0
        if not train(training, folder, writer):
            if workers.is_main:
                print(
                    f"stopped after iteration {training.iteration}; --resume continues {folder.path}", file=sys.stderr
                )
            return INTERRUPTED
        finish(training, folder, options, problem)
    return 0


if __name__ == "__main__":
    run_main(main)
