"""The linear decoder ẑ_{t+1} = Wout h_t + bout and its supervised training, the same in every experiment.

A convex problem, and two ways to it. `AdamDecoder` steps along the gradient of one minibatch after another, as the brief
has it: simple, and slow along the many directions in which states hardly vary. `RidgeDecoder` is recursive least squares: it
adds every minibatch to sums over all that it has read, old ones fading where the core moves on, and solves them now and then.
Neither sends a gradient into the states: nothing here goes back through time.
"""

import math
from dataclasses import dataclass

import torch
from torch import Tensor

from common.encoder import EMBEDDING
from common.ridge import NormalEquations
from common.run import setting

SCHEDULES = ("constant", "cosine")
LONG_READ = 1025  # minibatches, after which a ridge decoder is solved every `refit` of them alone, for a thousand more
DECODERS = ("adam", "ridge")


def scheduled(rate: float, schedule: str, done: float) -> float:
    """Learning rate after a share `done` ∈ [0, 1] of the run: constant, or half a cosine down to a hundredth."""
    if schedule == "constant":
        return rate
    return rate * (0.01 + 0.99 * (1 + math.cos(math.pi * min(done, 1.0))) / 2)


@dataclass(frozen=True)
class DecoderSettings:
    """The part of a Config that says how the decoder is trained; the last three belong to "ridge"."""

    decoder: str = setting("adam", "Adam steps, or recursive least squares with a ridge penalty", choices=DECODERS)
    decoder_penalty: float = setting(0.01, "of ridge, relative to the states' mean square", above=0, most=1e6)
    decoder_memory: float = setting(3000.0, "sequences after which ridge has forgotten all but 1/e", above=0, most=1e12)
    decoder_refit: int = setting(20, "minibatches from one solve of ridge to the next", least=1, most=10**9)


class Decoder:
    """Wout (128, N) and bout (128,), float32, from zero. A subclass says how a minibatch changes them."""

    def __init__(self, size: int, device: torch.device | str = "cpu"):
        self.linear = torch.nn.utils.skip_init(torch.nn.Linear, size, EMBEDDING, device=device)
        torch.nn.init.zeros_(self.linear.weight)
        torch.nn.init.zeros_(self.linear.bias)

    def step(self, states_NTB: Tensor, target_TEB: Tensor, rate: float) -> float:
        """Learn from a minibatch of states (N, T, B) and targets (T, 128, B); returns the loss before it.

        A loss that is not finite teaches nothing: then everything stays as it is, and the decoder usable.
        """
        raise NotImplementedError

    def frozen_copy(self) -> tuple[Tensor, Tensor]:
        """(Wout, bout) as they are now, detached: what a population is scored with while the decoder trains on."""
        return self.linear.weight.detach().clone(), self.linear.bias.detach().clone()

    @torch.no_grad()
    def predict(self, states_NTB: Tensor) -> Tensor:
        """ẑ of frames 2 … T+1 from the states that have read frames 1 … T: (N, T, B) → (T, 128, B)."""
        return self.linear(states_NTB.to(torch.float32).permute(1, 2, 0)).transpose(1, 2)

    @torch.no_grad()
    def take_over(self, state: dict) -> None:
        """Begin with the weights of a readout of as many units or fewer, from its `state_dict`; of the other units they are 0."""
        weight_EN, bias_E = state["linear"]["weight"], state["linear"]["bias"]
        self.linear.weight.zero_()
        self.linear.weight[:, : weight_EN.shape[1]] = weight_EN.to(self.linear.weight.device)
        self.linear.bias.copy_(bias_E)

    def state_dict(self) -> dict:
        return {"linear": self.linear.state_dict()}

    def load_state_dict(self, state: dict) -> None:
        self.linear.load_state_dict(state["linear"])


class AdamDecoder(Decoder):
    """Adam on the mean squared error of minibatches. The gradient of a linear layer is one product of states already computed."""

    def __init__(self, size: int, device: torch.device | str = "cpu"):
        super().__init__(size, device)
        self.optimizer = torch.optim.Adam(self.linear.parameters(), foreach=False)

    def step(self, states_NTB: Tensor, target_TEB: Tensor, rate: float) -> float:
        """One Adam step; see `Decoder.step`."""
        target_ME = target_TEB.permute(0, 2, 1).flatten(0, 1)
        prediction_ME = self.linear(states_NTB.flatten(1).T.to(torch.float32))
        loss = torch.nn.functional.mse_loss(prediction_ME, target_ME)
        value = float(loss.detach())
        if math.isfinite(value):
            self.update(torch.autograd.grad(loss, (self.linear.weight, self.linear.bias)), rate)
        return value

    def update(self, gradients: tuple[Tensor, Tensor], rate: float) -> None:
        """One Adam step along given gradients of Wout and bout."""
        for group in self.optimizer.param_groups:
            group["lr"] = rate
        self.linear.weight.grad, self.linear.bias.grad = gradients
        self.optimizer.step()

    def state_dict(self) -> dict:
        return {**super().state_dict(), "optimizer": self.optimizer.state_dict()}

    def load_state_dict(self, state: dict) -> None:
        super().load_state_dict(state)
        self.optimizer.load_state_dict(state["optimizer"])


class RidgeDecoder(Decoder):
    """Recursive least squares in blocks: exponentially forgetting normal equations, solved every `refit` minibatches
    and, for a decoder to begin with, after 1, 2, 4, 8, … of them.

    The readout minimises Σ_m κ^(sequences read since m) |ẑ_m − z_m|² + λ |Wout|², κ = exp(−1/memory): what the core produced
    long ago counts no more. Sums in float32, solved in float64 (Haykin, Adaptive Filter Theory, ch. 10, has the recursive form).
    """

    def __init__(self, size: int, device: torch.device | str, penalty: float, memory: float, refit: int):
        """penalty: λ relative to the mean square of a state, summed over samples; memory: in sequences; refit: in minibatches."""
        super().__init__(size, device)
        self.penalty, self.memory, self.refit = penalty, memory, refit
        self.equations = NormalEquations(size, EMBEDDING, torch.float32, device)
        self.steps = 0

    @torch.no_grad()
    def take_over(self, state: dict) -> None:
        """As of `Decoder.take_over`; and where the other is a ridge, too, what it has read. Where it is none, this one reads `refit`
        minibatches before it solves for the first time: of fewer it would know less than it begins with."""
        super().take_over(state)
        if "equations" not in state:
            self.steps = -(-LONG_READ // self.refit) * self.refit
            return
        gram_FF, cross_FE = self.equations.gram_FF, self.equations.cross_FE
        units = len(state["equations"]["gram_FF"]) - 1
        old_F = torch.tensor([*range(units), len(gram_FF) - 1], device=gram_FF.device)  # the last is the bias
        gram_FF[old_F[:, None], old_F] = state["equations"]["gram_FF"].to(gram_FF)
        cross_FE[old_F] = state["equations"]["cross_FE"].to(cross_FE)
        self.steps = state["steps"]

    @torch.no_grad()
    def step(self, states_NTB: Tensor, target_TEB: Tensor, rate: float = 1.0) -> float:
        """Read a minibatch, and solve where it is time; see `Decoder.step`. A rate has no meaning here and is ignored."""
        states_NM = states_NTB.flatten(1).to(torch.float32)
        target_EM = target_TEB.transpose(0, 1).flatten(1)
        prediction_EM = torch.addmm(self.linear.bias[:, None], self.linear.weight, states_NM)
        loss = float(torch.nn.functional.mse_loss(prediction_EM, target_EM))
        if math.isfinite(loss):
            self.read(self.products(states_NM, target_EM), states_NTB.shape[2])
        return loss

    @staticmethod
    def products(states_NM: Tensor, target_EM: Tensor) -> tuple[Tensor, Tensor]:
        """What `read` wants of M samples, float32 (N+1, N+1) and (N+1, 128); those of parts of a minibatch may be added up."""
        return NormalEquations.products(states_NM, target_EM, torch.float32)

    def read(self, products: tuple[Tensor, Tensor], sequences: int) -> None:
        """Add a minibatch's products to those kept, and solve where it is time."""
        self.equations.add(products, keep=math.exp(-sequences / self.memory))
        self.steps += 1
        if self.steps % self.refit == 0 or self.steps & (self.steps - 1) == 0:  # powers of two: early ones too
            self.fit()

    @torch.no_grad()
    def fit(self) -> None:
        """Solve for Wout and bout now. Where too little was read for so small a penalty to give a solution, they stay."""
        try:
            weights_FE = self.equations.solve(self.penalty)
        except torch.linalg.LinAlgError:
            return
        if weights_FE.isfinite().all():
            self.linear.weight.copy_(weights_FE[:-1].T)
            self.linear.bias.copy_(weights_FE[-1])

    def state_dict(self) -> dict:
        equations = {"gram_FF": self.equations.gram_FF, "cross_FE": self.equations.cross_FE}
        return {**super().state_dict(), "equations": equations, "steps": self.steps}

    def load_state_dict(self, state: dict) -> None:
        super().load_state_dict(state)
        self.equations.gram_FF.copy_(state["equations"]["gram_FF"])
        self.equations.cross_FE.copy_(state["equations"]["cross_FE"])
        self.steps = state["steps"]


def make_decoder(config: DecoderSettings, size: int, device: torch.device | str = "cpu") -> Decoder:
    """The decoder that a Config asks for."""
    if config.decoder == "adam":
        return AdamDecoder(size, device)
    return RidgeDecoder(size, device, config.decoder_penalty, config.decoder_memory, config.decoder_refit)
