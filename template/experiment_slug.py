"""Experiment title: a readout on a frozen reservoir predicts the next Moving-MNIST embedding. Nothing recurrent is trained.

    z_t     = frozen random CNN of frame t, standardised                                (128)
    h_t     = (1 − α) h_{t−1} + α tanh(W0 h_{t−1} + Win z_t + b),   h_0 = 0               (N)
    ẑ_{t+1} = Wout h_t + bout                                                          (128)
    L       = mean over t = 1 … T, sequences and dimensions of (ẑ_{t+1} − z_{t+1})²

Frozen: the CNN, W0 (sparse), Win, b. Trained by Adam: Wout, bout.

Start: `python experiment_slug.py --seed 0`, or `torchrun --nproc_per_node=8 experiment_slug.py --seed 0`: every rank takes the
same training steps, and the ranks share the scoring.
"""

import time
from dataclasses import dataclass

import torch
from torch import Tensor

from common import experiment, roll_in
from common.decoder import SCHEDULES, DecoderSettings, make_decoder, scheduled
from common.dist import Workers
from common.encoder import EMBEDDING
from common.errors import run_main
from common.problem import Problem, ProblemSettings
from common.rollout import Rollout
from common.run import RunSettings, setting

# --- Configuration ---------------------------------------------------------------------------------------------------


@dataclass(frozen=True)
class Config(ProblemSettings, DecoderSettings, RunSettings):
    """The problem and the run folder come from common; what is listed here is this experiment's own."""

    iterations: int = setting(2000, "Adam steps", least=1, most=10**9)
    batch_size: int = setting(32, "sequences of a minibatch", least=1, most=4096)
    learning_rate: float = setting(1e-3, "of Adam", above=0, most=1e30)
    schedule: str = setting("cosine", "of the learning rate over the run", choices=SCHEDULES)


PRESETS = {
    # Seconds, for tests.
    "smoke": dict(
        hidden_size=64, in_degree=8, sequence_length=6, train_sequences=256, validation_sequences=64, test_sequences=64,
        iterations=300, batch_size=16, learning_rate=5e-3, evaluate_every=10,
    ),
    # The brief's problem in under five minutes on two CPU cores.
    "laptop": dict(iterations=2000, evaluate_every=100),
    # The brief's problem without a shortage of data.
    "h200": dict(iterations=20_000, batch_size=256, train_sequences=1_000_000, evaluate_every=500),
}  # fmt: skip


def parse_arguments(argv: list[str] | None):
    """Command line → (Config, options). Raises BadInput; common/run.py has the options that every experiment has."""
    return experiment.parse(Config, PRESETS, argv, __doc__)


# --- Training --------------------------------------------------------------------------------------------------------


class Training(experiment.Training):
    """The readout under Adam; the core keeps ΔW = U Vᵀ = 0."""

    label = "readout"

    @property
    def rollouts(self) -> int:
        """One for each training sequence that the reservoir has read; two where it is rolled in before."""
        return self.iteration * self.config.batch_size * (1 + roll_in.extra_passes(self.config))

    def trained_tensors(self) -> tuple[Tensor, ...]:
        return self.decoder.linear.weight, self.decoder.linear.bias

    def iterate(self) -> dict:
        """One Adam step on one minibatch; returns its line of metrics."""
        started = time.perf_counter()
        config, iteration = self.config, self.iteration + 1
        input_TEB, target_TEB = self.minibatch(iteration, torch.zeros(1, dtype=torch.int64))
        states_NTB = self.rollout.states(self.u_Nr, self.v_Nr, self.rollout.drive(input_TEB))
        rate = scheduled(config.learning_rate, config.schedule, self.iteration / config.iterations)
        loss = self.decoder.step(states_NTB, target_TEB, rate) / self.scale

        self.iteration = iteration
        self.seconds += time.perf_counter() - started
        return {
            "iteration": iteration,
            "train_loss": loss,
            "learning_rate": rate,
            "h_rms": float(states_NTB.to(torch.float32).square().mean().sqrt()),
            "readout_norm": float(self.decoder.linear.weight.detach().norm()),
            "rollouts": self.rollouts,
            "wallclock_s": self.seconds,
        }

    def reproduces(self, results: dict) -> str:
        """ "yes": better than every trivial predictor. "partial": better than predicting the mean. "no": otherwise."""
        trivial = {name: entry["all"] for name, entry in results["trivial_test_mse"].items()}
        if results["test_mse"] < min(trivial.values()):
            return "yes"
        return "partial" if results["test_mse"] < trivial["mean"] else "no"

    @staticmethod
    def costs(config: Config, problem: Problem, workers: Workers) -> list[str]:
        """From training steps timed here on made-up input."""
        rollout = Rollout(problem.reservoir(), config.leak, 1.0, workers.device, getattr(torch, config.dtype))
        decoder = make_decoder(config, config.hidden_size, workers.device)
        none_N1 = torch.zeros(config.hidden_size, 1, device=workers.device)
        z_TEB = torch.ones(config.sequence_length, EMBEDDING, config.batch_size, device=workers.device)
        seconds = []
        for _ in range(3):
            started = time.perf_counter()
            states_NTB = rollout.states(none_N1, none_N1, rollout.drive(z_TEB))
            decoder.step(states_NTB, z_TEB, config.learning_rate)
            seconds.append(time.perf_counter() - started)
        rolling_s, rolling = roll_in.costs(
            config,
            config.batch_size,
            lambda h_NB, z_EB: rollout.step(none_N1, none_N1, h_NB, rollout.drive(z_EB)),
            decoder.frozen_copy(),
        )
        step_s = min(seconds) + rolling_s
        rollouts = config.iterations * config.batch_size * (1 + roll_in.extra_passes(config))
        sequences = config.train_sequences + config.validation_sequences + config.test_sequences
        encoded = sequences * (config.sequence_length + 1) * EMBEDDING * 4
        return [
            f"{config.iterations:,} steps, {rollouts:,} rollouts",
            *rolling,
            f"expected {step_s:.3g} s a step, {step_s * config.iterations / 60:.3g} min of training",
            f"memory: states of a minibatch {states_NTB.nbytes / 1e6:,.1f} MB; "
            f"encoded sequences (on a CPU they are cached on disk) {encoded / 1e6:,.1f} MB",
        ]


# --- Main ------------------------------------------------------------------------------------------------------------


def main(argv: list[str] | None = None) -> int:
    return experiment.launch(*parse_arguments(argv), Training, __file__, parse_arguments)


if __name__ == "__main__":
    run_main(main)
