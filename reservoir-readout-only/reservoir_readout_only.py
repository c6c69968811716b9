"""A frozen reservoir predicts the next Moving-MNIST embedding through a linear readout: the floor of the comparison.

    z_t     = frozen random CNN of frame t, standardised                          (128)
    h_t     = (1 − α) h_{t−1} + α tanh(W0 h_{t−1} + Win z_t + b),   h_0 = 0        (N)
    ẑ_{t+1} = Wout h_t + bout                                                    (128)
    L       = mean over t = 1 … T, sequences and dimensions of (ẑ_{t+1} − z_{t+1})²

Only Wout and bout are trained, and the problem is convex. Two readouts of the same states are told apart:

    ridge   Wout = Y Xᵀ (X Xᵀ + λ I)⁻¹ with X, Y the states and targets of all training sequences: exact, in float64,
            summed as they stream by, λ chosen on the validation set. Computed at the end of every run: `ridge_test_mse`
    Adam    minibatches and a learning rate that falls: the decoder that every other experiment trains beside its core.
            `test_mse`

Start: `python reservoir_readout_only.py --seed 0`. Under torchrun every rank takes the same steps, and scoring is shared.
"""

import time
from collections import deque
from collections.abc import Iterator
from concurrent.futures import Future
from dataclasses import dataclass

import torch
from torch import Tensor

from common import experiment, roll_in
from common.decoder import SCHEDULES, DecoderSettings, make_decoder, scheduled
from common.dist import Workers
from common.encoder import EMBEDDING
from common.errors import run_main
from common.problem import FIFTY_FRAMES, FREE_LEAK, HUNDRED_FRAMES, TWO_DIGITS, Problem, ProblemSettings
from common.rollout import Rollout
from common.run import RunSettings, setting

# --- Configuration ---------------------------------------------------------------------------------------------------


@dataclass(frozen=True)
class Config(ProblemSettings, DecoderSettings, RunSettings):
    """The problem and the run folder come from common; what is listed here is this experiment's own."""

    iterations: int = setting(210, "of --decoder-steps each", least=1, most=10**9)
    decoder_steps: int = setting(
        10, "Adam steps of an iteration, each on a minibatch of its own", least=1, most=1 << 20
    )
    batch_size: int = setting(32, "sequences of a minibatch", least=1, most=4096)
    learning_rate: float = setting(6e-3, "of Adam", above=0, most=1e30)
    schedule: str = setting("cosine", "of the learning rate over the run", choices=SCHEDULES)


LAPTOP = dict(iterations=168, decoder_steps=50, batch_size=8, learning_rate=1e-2, evaluate_every=8)
PRESETS = {
    # Seconds, for tests.
    "smoke": dict(
        hidden_size=64, in_degree=8, sequence_length=6, train_sequences=256, validation_sequences=64, test_sequences=64,
        iterations=40, decoder_steps=10, batch_size=16, evaluate_every=2, patience=10,
    ),
    # The brief's problem in under five minutes on two CPU cores; the decoder sees as much as that of the ES experiment.
    "laptop": LAPTOP,
    # The brief's problem, five times the data, to convergence.
    "brief": dict(iterations=1200, decoder_steps=25, train_sequences=50_000, evaluate_every=20, patience=10),
    # The brief's problem without a shortage of data.
    "h200": dict(iterations=400, decoder_steps=50, batch_size=256, train_sequences=1_000_000),
    # The second problem, its α chosen outside the brief's range, on the laptop's budget.
    "free-leak": dict(**LAPTOP, **FREE_LEAK),
    # Rungs of the brief's schedule, one at a time.
    "two-digits": dict(**LAPTOP, **TWO_DIGITS),
    "fifty-frames": dict(**LAPTOP, **FIFTY_FRAMES),
    "hundred-frames": dict(**LAPTOP, **HUNDRED_FRAMES),
}  # fmt: skip


def parse_arguments(argv: list[str] | None):
    """Command line → (Config, options). Raises BadInput; common/run.py has the options that every experiment has."""
    return experiment.parse(Config, PRESETS, argv, __doc__)


# --- Training --------------------------------------------------------------------------------------------------------


def _in_flight(workers: Workers) -> int:
    """Minibatches whose states are held at a time: enough for no CPU thread to wait; a GPU computes them when asked."""
    return 1 + 2 * workers.threads if workers.device.type == "cpu" else 1


class Training(experiment.Training):
    """The readout under Adam; the core keeps ΔW = U Vᵀ = 0."""

    label = "readout"

    @staticmethod
    def role(config: Config) -> str:
        return "floor"

    @property
    def rollouts(self) -> int:
        """One for each training sequence that the reservoir has read; two where it is rolled in before."""
        sequences = self.iteration * self.config.decoder_steps * self.config.batch_size
        return sequences * (1 + roll_in.extra_passes(self.config))

    def trained_tensors(self) -> tuple[Tensor, ...]:
        return self.decoder.linear.weight, self.decoder.linear.bias

    def _minibatch_states(
        self, iteration: int, step: int, readout: tuple[Tensor, Tensor] | None
    ) -> tuple[Tensor, Tensor]:
        """States (N, T, B) of the reservoir on a step's minibatch, and its targets (T, 128, B). readout: what rolls in."""
        input_TEB, target_TEB = self.minibatch(iteration, torch.tensor([step]), decoder=readout)
        return self.states(input_TEB), target_TEB

    def _in_advance(self, iteration: int) -> Iterator[tuple[Tensor, Tensor]]:
        """States and targets of the iteration's minibatches in order, computed by the threads while the readout trains."""
        ahead: deque[Future] = deque()
        most = _in_flight(self.workers) - 1
        # The readout learns meanwhile, and how far it has come would depend on the threads.
        readout = self.decoder.frozen_copy() if self.config.roll_in else None
        for step in range(self.config.decoder_steps):
            ahead.append(self.workers.submit(lambda step=step: self._minibatch_states(iteration, step, readout)))
            if len(ahead) > most:
                yield ahead.popleft().result()
        while ahead:
            yield ahead.popleft().result()

    def iterate(self) -> dict:
        """--decoder-steps Adam steps; returns a line of metrics."""
        started = time.perf_counter()
        config, before = self.config, self.iteration * self.config.decoder_steps
        total, losses = config.iterations * config.decoder_steps, []
        for step, (states_NTB, target_TEB) in enumerate(self._in_advance(self.iteration + 1)):
            rate = scheduled(config.learning_rate, config.schedule, (before + step) / total)
            losses.append(self.decoder.step(states_NTB, target_TEB, rate) / self.scale)
        self.iteration += 1
        self.seconds += time.perf_counter() - started
        return {
            "iteration": self.iteration,
            "train_loss": sum(losses) / len(losses),
            "learning_rate": rate,
            "h_rms": float(states_NTB.to(torch.float32).square().mean().sqrt()),
            "readout_norm": float(self.decoder.linear.weight.detach().norm()),
            "rollouts": self.rollouts,
            "wallclock_s": self.seconds,
        }

    def progress(self, metrics: dict) -> str:
        return f"train {metrics['train_loss']:.4f}, validation {self.validation:.4f}"

    # Evaluation

    def reproduces(self, results: dict) -> str:
        """ "yes": both readouts beat every trivial predictor, and Adam's is at most 1 % behind the exact one, or better.
        "partial": Adam's beats every trivial predictor. "no": it does not."""
        best_trivial = min(entry["all"] for entry in results["trivial_test_mse"].values())
        adam, ridge = results["test_mse"], results["ridge_test_mse"]
        if max(adam, ridge) < best_trivial and adam <= 1.01 * ridge:
            return "yes"
        return "partial" if adam < best_trivial else "no"

    @staticmethod
    def costs(config: Config, problem: Problem, workers: Workers) -> list[str]:
        """What a run will cost, from training steps timed here on made-up input."""
        rollout = Rollout(problem.reservoir(), config.leak, 1.0, workers.device, getattr(torch, config.dtype))
        decoder = make_decoder(config, config.hidden_size, workers.device)
        none_N1 = torch.zeros(config.hidden_size, 1, device=workers.device)
        z_TEB = torch.ones(config.sequence_length, EMBEDDING, config.batch_size, device=workers.device)
        seconds = []
        for _ in range(3):
            started = time.perf_counter()
            states_NTB = rollout.states(none_N1, none_N1, rollout.drive(z_TEB))
            halfway = time.perf_counter()
            decoder.step(states_NTB, z_TEB, config.learning_rate)
            seconds.append((halfway - started, time.perf_counter() - halfway))
        states_s, step_s = (min(column) for column in zip(*seconds))
        # Adam's steps follow one another on one thread; the states come from the others.
        lanes = workers.threads if workers.device.type == "cpu" else 1
        rolling_s, rolling = roll_in.costs(
            config,
            config.batch_size,
            lambda h_NB, z_EB: rollout.step(none_N1, none_N1, h_NB, rollout.drive(z_EB)),
            decoder.frozen_copy(),
        )
        expected_s = max(step_s, (rolling_s + states_s + step_s) / lanes)
        steps = config.iterations * config.decoder_steps
        rollouts = steps * config.batch_size * (1 + roll_in.extra_passes(config))
        sequences = config.train_sequences + config.validation_sequences + config.test_sequences
        encoded = sequences * (config.sequence_length + 1) * EMBEDDING * 4
        return [
            f"{steps:,} Adam steps, {rollouts:,} rollouts",
            *rolling,
            f"expected {expected_s:.3g} s a step, {expected_s * steps / 60:.3g} min of training",
            f"memory: states of a minibatch {states_NTB.nbytes / 1e6:,.1f} MB, {_in_flight(workers)} minibatches at a time; "
            f"encoded sequences (on a CPU they are cached on disk) {encoded / 1e6:,.1f} MB",
        ]


# --- Main ------------------------------------------------------------------------------------------------------------


def main(argv: list[str] | None = None) -> int:
    return experiment.launch(*parse_arguments(argv), Training, __file__, parse_arguments)


if __name__ == "__main__":
    run_main(main)
