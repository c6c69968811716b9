"""A core that is trained by forward passes, and beside it the decoder by ordinary supervision.

What experiments share whose members are scored with the decoder of an iteration's start: the decoder learns on minibatches of its own
from the states of the unperturbed parameters, alone at first (`prepare`), then while a population runs (`beside_decoder`).
"""

import contextlib
import copy
import time
from collections.abc import Callable
from dataclasses import dataclass
from typing import TypeVar

import torch
from torch import Tensor
from tqdm import tqdm

from common import experiment
from common.decoder import SCHEDULES, Decoder, DecoderSettings, scheduled
from common.dist import Stopped
from common.roll_in import extra_passes
from common.run import setting

Result = TypeVar("Result")


@dataclass(frozen=True)
class DecoderTrainingSettings(DecoderSettings):
    """The part of a Config that says what the decoder learns from, beside a population."""

    decoder_learning_rate: float = setting(3e-3, "of the decoder's Adam", above=0, most=1e30)
    decoder_batch_size: int = setting(32, "sequences of the decoder's minibatches", least=1, most=4096)
    decoder_warmup: int = setting(1000, "decoder steps before the first ES iteration", least=0, most=10**9)
    decoder_steps: int = setting(1, "decoder steps an ES iteration, each on a minibatch", least=1, most=10**6)
    schedule: str = setting("cosine", "of both learning rates over the run", choices=SCHEDULES)


class ForwardTraining(experiment.Training):
    """Training of the adapter by a population, of the decoder by supervision on the unperturbed θ."""

    # Minibatch streams of an iteration: from SHARED on those of the decoder, the first of which a population may share; that of a
    # measurement; from OWN on one for each part of a population that has sequences of its own.
    SHARED, MEASURED, OWN = 0, (1 << 20) - 1, 1 << 20

    def __init__(self, *arguments, **options):
        super().__init__(*arguments, **options)
        self.warmed_up = 0  # decoder steps taken before the first iteration

    @property
    def decoder_rollouts(self) -> int:
        """Sequences that the decoder has learned from so far; rolled in, each counts twice."""
        steps = self.warmed_up + self.iteration * self.config.decoder_steps * (1 + extra_passes(self.config))
        return steps * self.config.decoder_batch_size

    def _states(self, iteration: int, stream: int) -> tuple[Tensor, Tensor]:
        """States (N, T, B) of the unperturbed θ on a minibatch of the decoder, and its targets."""
        input_TEB, target_TEB = self.minibatch(iteration, torch.tensor([stream]), self.config.decoder_batch_size)
        return self.rollout.states(self.u_Nr, self.v_Nr, self.rollout.drive(input_TEB)), target_TEB

    def prepare(self, progress: bool) -> bool:
        """Train the decoder alone: a population scored by an untrained decoder would be told nothing about θ.

        θ stands still meanwhile, so that the states of several minibatches can be computed side by side.
        """
        total, group = self.config.decoder_warmup, 8
        bar = tqdm(total=total, initial=self.warmed_up, desc="decoder", unit="step", disable=not progress, leave=False)
        with bar:
            while self.warmed_up < total:
                if self.workers.meet():
                    return False
                started = time.perf_counter()
                steps = range(self.warmed_up, min(self.warmed_up + group, total))
                for states_NTB, target_TEB in self.workers.map(lambda step: self._states(0, step), steps):
                    loss = self.decoder.step(states_NTB, target_TEB, self._decoder_rate(0, self.warmed_up))
                    self.warmed_up += 1
                self.seconds += time.perf_counter() - started
                bar.set_postfix_str(f"loss {loss / self.scale:.4f}")
                bar.update(len(steps))
        return True

    def _decoder_rate(self, iteration: int, step: int) -> float:
        """One schedule over all of the decoder's steps, those of the warm-up (iteration 0) included."""
        config = self.config
        before = config.decoder_warmup + (iteration - 1) * config.decoder_steps if iteration else 0
        total = config.decoder_warmup + config.iterations * config.decoder_steps
        return scheduled(config.decoder_learning_rate, config.schedule, (before + step) / total)

    def _train_decoder(self, decoder: Decoder, iteration: int) -> tuple[float, float]:
        """This iteration's steps of a decoder; returns the loss on the first minibatch before its step, and RMS(h) there."""
        for step in range(self.config.decoder_steps):
            if self.workers.stop_agreed:  # the iteration is dropped already
                raise Stopped
            states_NTB, target_TEB = self._states(iteration, self.SHARED + step)
            loss = decoder.step(states_NTB, target_TEB, self._decoder_rate(iteration, step)) / self.scale
            if step == 0:
                first_loss, h_rms = loss, float(states_NTB.to(torch.float32).square().mean().sqrt())
        return first_loss, h_rms

    def beside_decoder(self, iteration: int, evaluate: Callable[[], Result]) -> tuple[Result, float, float]:
        """evaluate() while the decoder trains for an iteration: what it returns, the decoder's loss, RMS(h).

        It is a copy that trains, so that an iteration that is dropped (`Stopped`) leaves no trace.
        """
        trained = copy.deepcopy(self.decoder)
        task = self.workers.submit(lambda: self._train_decoder(trained, iteration))
        try:
            population = evaluate()
        except Stopped:
            with contextlib.suppress(Stopped):
                task.result()
            raise
        decoder_loss, h_rms = task.result()
        self.decoder = trained
        return population, decoder_loss, h_rms

    def state_dict(self) -> dict:
        return {**super().state_dict(), "warmed_up": self.warmed_up}

    def load_state_dict(self, state: dict) -> None:
        super().load_state_dict(state)
        self.warmed_up = state["warmed_up"]
