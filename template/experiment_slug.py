"""Experiment title: a readout on a frozen reservoir predicts the next Moving-MNIST embedding. Nothing recurrent is trained.

    z_t     = frozen random CNN of frame t, standardised                                (128)
    h_t     = (1 − α) h_{t−1} + α tanh(W0 h_{t−1} + Win z_t + b),   h_0 = 0               (N)
    ẑ_{t+1} = Wout h_t + bout                                                          (128)
    L       = mean over t = 1 … T, sequences and dimensions of (ẑ_{t+1} − z_{t+1})²

Frozen: the CNN, W0 (sparse), Win, b. Trained by Adam: Wout, bout.

Start: `python experiment_slug.py --seed 0`, or `torchrun --nproc_per_node=8 experiment_slug.py --seed 0`: every rank takes the
same training steps, and the ranks share the scoring.
"""

import dataclasses
import io
import sys
import time
from dataclasses import dataclass

import numpy as np
import torch
from torch import Tensor
from tqdm import tqdm

from common.decoder import SCHEDULES, DecoderTraining, scheduled
from common.dist import Workers, choose_device
from common.encoder import EMBEDDING
from common.errors import BadInput
from common.evaluation import inputs_and_targets, ridge_score, score, trivial_scores
from common.philox import Purpose, integers
from common.problem import Embeddings, Problem, ProblemSettings
from common.rollout import Rollout
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

GUARD = 1.0  # RMS(h) cannot exceed 1 in a leaky tanh network: nothing is masked


# --- Configuration ---------------------------------------------------------------------------------------------------


@dataclass(frozen=True)
class Config(ProblemSettings, RunSettings):
    """The problem and the run folder come from common; what is listed here is this experiment's own."""

    train_sequences: int = setting(10_000, "different training sequences", least=1, most=2**31 - 1)
    iterations: int = setting(2000, "Adam steps", least=1, most=10**9)
    batch_size: int = setting(32, "sequences of a minibatch", least=1, most=4096)
    learning_rate: float = setting(1e-3, "of Adam", above=0)
    schedule: str = setting("cosine", "of the learning rate over the run", choices=SCHEDULES)


PRESETS = {
    # Seconds, for tests.
    "smoke": dict(
        hidden_size=64, in_degree=8, sequence_length=6, train_sequences=256, validation_sequences=64, test_sequences=64,
        iterations=300, batch_size=16, learning_rate=5e-3, evaluate_every=30,
    ),
    # The brief's problem in under five minutes on two CPU cores.
    "laptop": dict(iterations=2000, evaluate_every=100),
    # The brief's problem without a shortage of data.
    "h200": dict(iterations=20_000, batch_size=256, train_sequences=1_000_000, evaluate_every=500),
}  # fmt: skip


def parse_arguments(argv: list[str] | None):
    """Command line → (Config, options). Raises BadInput; see common/run.py for the options every experiment has."""
    config, options = parse_config(Config, PRESETS, argv, __doc__)
    if config.in_degree > config.hidden_size:
        raise BadInput(f"--in-degree must not exceed --hidden-size: {config.in_degree} > {config.hidden_size}")
    if config.dtype == "float16" and choose_device(config.device).type != "cuda":
        raise BadInput("--dtype float16 needs a CUDA device; on a CPU choose float32 or float64")
    if config.tensorboard:
        raise BadInput("--tensorboard is not offered by this experiment; metrics.jsonl holds every number")
    return config, options


# --- Training --------------------------------------------------------------------------------------------------------


class Training:
    """The readout and everything else that changes while the run goes on."""

    def __init__(self, config: Config, problem: Problem, embeddings: Embeddings, workers: Workers):
        self.config, self.embeddings, self.workers = config, embeddings, workers
        dtype = getattr(torch, config.dtype)
        self.rollout = Rollout(problem.reservoir(), config.leak, GUARD, workers.device, dtype)
        self.no_adapter = (torch.zeros(config.hidden_size, 1, device=workers.device),) * 2  # U = V = 0: ΔW = 0
        self.decoder = DecoderTraining(config.hidden_size, workers.device)
        self.iteration = 0
        self.seconds = 0.0  # of training, without data, scoring and figures

    def states(self, input_TEB: Tensor) -> Tensor:
        """(T, 128, B) → (N, T, B)."""
        return self.rollout.states(*self.no_adapter, self.rollout.drive(input_TEB))

    def iterate(self) -> dict:
        """One Adam step on one minibatch; returns its line of metrics."""
        started = time.perf_counter()
        config = self.config
        drawn = (0, self.iteration + 1), config.batch_size, config.train_sequences
        index_1B = integers(config.seed, Purpose.MINIBATCH, *drawn)
        input_TEB, target_TEB = inputs_and_targets(self.embeddings.get("train", index_1B[0]))
        states_NTB = self.states(input_TEB)
        rate = scheduled(config.learning_rate, config.schedule, self.iteration / config.iterations)
        loss = self.decoder.step(states_NTB, target_TEB, rate) / self.embeddings.error_scale()
        self.iteration += 1
        self.seconds += time.perf_counter() - started
        return {
            "iteration": self.iteration,
            "train_loss": loss,
            "learning_rate": rate,
            "h_rms": float(states_NTB.to(torch.float32).square().mean().sqrt()),
            "readout_norm": float(self.decoder.linear.weight.detach().norm()),
            "rollouts": self.iteration * config.batch_size,
            "wallclock_s": self.seconds,
        }

    def score(self, split: str):
        """Score on a whole split; every rank takes part and gets it."""
        return score(self.rollout, *self.no_adapter, self.decoder.linear, self.embeddings, split, self.workers)

    def state_dict(self) -> dict:
        return {"iteration": self.iteration, "seconds": self.seconds, "decoder": self.decoder.state_dict()}

    def load_state_dict(self, state: dict) -> None:
        self.iteration, self.seconds = state["iteration"], state["seconds"]
        self.decoder.load_state_dict(state["decoder"])


def train(training: Training, folder: RunFolder) -> bool:
    """Run to the end, or to a stop that the user asked for (False). Rank 0 logs, saves and shows progress."""
    config, workers = training.config, training.workers

    def record(metrics: dict, save: bool) -> None:
        if workers.is_main:
            folder.log(metrics)
            if save:
                folder.save(training.state_dict())

    if workers.is_main:
        folder.truncate_metrics(training.iteration)
    with StopRequest() as stop:
        if training.iteration == 0:
            record({"iteration": 0, "validation_mse": training.score("validation").mse, "wallclock_s": 0.0}, save=True)
        bar = tqdm(
            total=config.iterations, initial=training.iteration, desc="readout", unit="step", disable=not workers.is_main,
            mininterval=0.5 if sys.stderr.isatty() else 15, dynamic_ncols=True,
        )  # fmt: skip
        with bar:
            while training.iteration < config.iterations:
                metrics = training.iterate()
                last = training.iteration == config.iterations
                if training.iteration % config.evaluate_every == 0 or last:
                    metrics["validation_mse"] = training.score("validation").mse
                    bar.set_postfix_str(f"validation {metrics['validation_mse']:.4f}", refresh=False)
                bar.update()
                stopping = workers.any(stop.requested)
                record(metrics, save=training.iteration % config.checkpoint_every == 0 or last or stopping)
                if stopping and not last:
                    return False
    return True


# --- Evaluation ------------------------------------------------------------------------------------------------------


def reproduces(test_mse: float, trivial: dict) -> str:
    """ "yes": better than every trivial predictor. "partial": better than predicting the mean. "no": otherwise."""
    if test_mse < min(s.mse for s in trivial.values()):
        return "yes"
    return "partial" if test_mse < trivial["mean"].mse else "no"


def finish(training: Training, folder: RunFolder, options, problem: Problem) -> None:
    """Score the trained readout, write results.json and figures.npz, print the headline."""
    config, workers, embeddings = training.config, training.workers, training.embeddings
    test, validation = training.score("test"), training.score("validation")
    if workers.is_main:
        ridge = ridge_score(training.rollout, *training.no_adapter, embeddings, workers.map_on_node)
        trivial = trivial_scores(embeddings)
        results = {
            "schema": SCHEMA,
            "stub": "experiment-slug",
            "seed": config.seed,
            "preset": options.preset,
            "problem_id": problem.id,
            "problem": problem.description,
            "config": dataclasses.asdict(config),
            "command": "python experiment_slug.py " + " ".join(sys.argv[1:]),
            "test_mse": test.mse,
            "test_mse_last_frame": test.last_frame,
            "validation_mse": validation.mse,
            "ridge_test_mse": ridge.mse,
            "ridge_test_mse_at_start": ridge.mse,  # the core does not change
            "trivial_test_mse": {name: {"all": s.mse, "last_frame": s.last_frame} for name, s in trivial.items()},
            "reproduces": reproduces(test.mse, trivial),
            "iterations": training.iteration,
            "rollouts": training.iteration * config.batch_size,
            "wallclock_s": training.seconds,
            "theta_sha256": sha256_of_tensors(training.decoder.linear.weight, training.decoder.linear.bias),
            "environment": environment(workers),
            "source": source(__file__),
        }
        buffer = io.BytesIO()
        np.savez_compressed(buffer, **figure_data(training))
        write_atomically(folder.path / "figures.npz", buffer.getvalue())
        write_json(folder.path / "results.json", results)
        best = min(trivial, key=lambda name: trivial[name].mse)
        print(
            f"test MSE {test.mse:.4f} (1 = predicts the mean); best trivial predictor ({best}) {trivial[best].mse:.4f}, "
            f"ridge readout {ridge.mse:.4f}; reproduces: {results['reproduces']}; saved in {folder.path}"
        )
    workers.barrier()


@torch.no_grad()
def figure_data(training: Training) -> dict[str, np.ndarray]:
    """What the figures show that metrics.jsonl does not hold: the first test sequence and what the network makes of it."""
    first = torch.tensor([0])
    input_TEB, target_TEB = inputs_and_targets(training.embeddings.get("test", first))
    states_NTB = training.states(input_TEB).to(torch.float32)
    prediction_TEB = training.decoder.predict(training.rollout, *training.no_adapter, input_TEB)
    units = torch.linspace(0, len(states_NTB) - 1, min(64, len(states_NTB))).long()
    return {
        "frames_FYX": training.embeddings.data.frames("test", first.numpy())[0],
        "hidden_TM": states_NTB[units, :, 0].T.cpu().numpy(),
        "error_TE": (prediction_TEB - target_TEB)[:, :, 0].cpu().numpy(),
        "readout_singular_values": torch.linalg.svdvals(training.decoder.linear.weight).cpu().numpy(),
    }


# --- Main ------------------------------------------------------------------------------------------------------------


def dry_run(config: Config, options, problem: Problem, workers: Workers) -> None:
    """Print what the run will cost, from training steps timed here on made-up input."""
    rollout = Rollout(problem.reservoir(), config.leak, GUARD, workers.device, getattr(torch, config.dtype))
    decoder, zero_N1 = DecoderTraining(config.hidden_size, workers.device), torch.zeros(config.hidden_size, 1)
    z_TEB = torch.ones(config.sequence_length, EMBEDDING, config.batch_size, device=workers.device)
    seconds = []
    for _ in range(3):
        started = time.perf_counter()
        states_NTB = rollout.states(zero_N1.to(workers.device), zero_N1.to(workers.device), rollout.drive(z_TEB))
        decoder.step(states_NTB, z_TEB, config.learning_rate)
        seconds.append(time.perf_counter() - started)
    sequences = config.train_sequences + config.validation_sequences + config.test_sequences
    megabytes = {
        "states of a minibatch": states_NTB.nelement() * states_NTB.element_size() / 1e6,
        "encoded sequences (on disk on a CPU)": sequences * (config.sequence_length + 1) * EMBEDDING * 4 / 1e6,
    }
    if workers.is_main:
        print(f"preset {options.preset}, {workers.world_size} rank(s) on {workers.device.type}, problem {problem.id}")
        print(f"{config.iterations:,} steps, {config.iterations * config.batch_size:,} rollouts")
        print(f"expected {min(seconds):.3g} s a step, {min(seconds) * config.iterations / 60:.3g} min of training")
        print("memory: " + ", ".join(f"{name} {size:,.1f} MB" for name, size in megabytes.items()))


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
        identity = {**identity_of(config), "problem_id": problem.id}
        if options.evaluate:
            folder = RunFolder(options.run_dir, identity)
            state = workers.from_main(folder.load)
        else:
            folder, state = RunFolder.open(options.run_dir, identity, options.resume, options.overwrite, workers)
        embeddings = Embeddings(problem, digits, config.train_sequences, workers)
        embeddings.prepare(workers)
        training = Training(config, problem, embeddings, workers)
        if state is not None:
            training.load_state_dict(state)
        if options.evaluate:
            test = training.score("test")
            if workers.is_main:
                print(f"iteration {training.iteration}: test MSE {test.mse:.4f}, last frame {test.last_frame:.4f}")
            return 0
        if not train(training, folder):
            if workers.is_main:
                print(f"stopped after step {training.iteration}; --resume continues {folder.path}", file=sys.stderr)
            return INTERRUPTED
        finish(training, folder, options, problem)
    return 0


if __name__ == "__main__":
    run_main(main)
