"""The linear decoder ẑ_{t+1} = Wout h_t + bout and its supervised training, the same in every experiment."""

import math

import torch
from torch import Tensor

from common.encoder import EMBEDDING

SCHEDULES = ("constant", "cosine")


def scheduled(rate: float, schedule: str, done: float) -> float:
    """Learning rate after a share `done` ∈ [0, 1] of the run: constant, or half a cosine down to a hundredth."""
    if schedule == "constant":
        return rate
    return rate * (0.01 + 0.99 * (1 + math.cos(math.pi * min(done, 1.0))) / 2)


class DecoderTraining:
    """Wout (128, N) and bout (128,), float32, from zero, with Adam on the mean squared error (a convex problem).

    The gradient of a linear layer is one product of states already computed; autograd forms it, and no gradient flows into
    the states: nothing here goes back through time.
    """

    def __init__(self, size: int, device: torch.device | str = "cpu"):
        self.linear = torch.nn.utils.skip_init(torch.nn.Linear, size, EMBEDDING, device=device)
        torch.nn.init.zeros_(self.linear.weight)
        torch.nn.init.zeros_(self.linear.bias)
        self.optimizer = torch.optim.Adam(self.linear.parameters(), foreach=False)

    def frozen_copy(self) -> tuple[Tensor, Tensor]:
        """(Wout, bout) as they are now, detached: what a population is scored with while the decoder trains on."""
        return self.linear.weight.detach().clone(), self.linear.bias.detach().clone()

    def step(self, states_NTB: Tensor, target_TEB: Tensor, rate: float) -> float:
        """One Adam step on a minibatch of states (N, T, B) and targets (T, 128, B); returns the loss before it.

        A loss that is not finite is no direction to go: then no step is taken, and the decoder stays usable.
        """
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

    @torch.no_grad()
    def predict(self, states_NTB: Tensor) -> Tensor:
        """ẑ of frames 2 … T+1 from the states that have read frames 1 … T: (N, T, B) → (T, 128, B)."""
        return self.linear(states_NTB.to(torch.float32).permute(1, 2, 0)).transpose(1, 2)

    def state_dict(self) -> dict:
        return {"linear": self.linear.state_dict(), "optimizer": self.optimizer.state_dict()}

    def load_state_dict(self, state: dict) -> None:
        self.linear.load_state_dict(state["linear"])
        self.optimizer.load_state_dict(state["optimizer"])
