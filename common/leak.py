"""A leak that learns: one α for all units, or α_i for each.

    h_t = (1 − α) h_{t−1} + α y_t        ∂L/∂α = Σ λ_t (y_t − h_{t−1}),  λ_t = dL/dh_t        α = 1 / (1 + e^{−a})

It is a, from −∞ to ∞, that Adam steps along ∂L/∂a = α (1 − α) ∂L/∂α: α stays between 0 and 1 whatever the steps. The brief has this as
the last rung of its schedule.
"""

from dataclasses import dataclass

import torch
from torch import Tensor

from common.philox import Purpose, signs
from common.rollout import Rollout
from common.run import setting

TRAINED_LEAKS = ("no", "scalar", "per-unit")


@dataclass(frozen=True)
class LeakSettings:
    """The part of a Config that says whether the leak learns."""

    train_leak: str = setting(
        "no", "whether the leak learns as well, from --leak: one α, or one of each unit", choices=TRAINED_LEAKS
    )
    leak_rate: float = setting(1e-2, "learning rate of α's logit", above=0, most=1e30)


class TrainedLeak:
    """α (1, 1) or (N, 1), in (0, 1), which is `rollout.leak` from now on, the same memory; its logit in float32, and Adam.

    A start of 1 has no logit: within a thousandth of 0 and 1 it is moved to there.
    """

    def __init__(self, rollout: Rollout, kind: str, start: float, rate: float):
        shape = (rollout.size if kind == "per-unit" else 1, 1)
        self.logit_X1 = torch.logit(torch.full(shape, start, device=rollout.device), eps=1e-3)
        self.alpha_X1 = rollout.leak = torch.sigmoid(self.logit_X1).to(rollout.dtype)
        self.optimizer = torch.optim.Adam([self.logit_X1], lr=rate, foreach=False)

    @torch.no_grad()
    def step(self, gradient_X1: Tensor, rate: float) -> None:
        """One step along ∂L/∂α, of α's shape."""
        alpha_X1 = self.alpha_X1.detach().to(torch.float32)
        self.step_logit(gradient_X1.to(torch.float32) * alpha_X1 * (1 - alpha_X1), rate)

    @torch.no_grad()
    def step_logit(self, gradient_X1: Tensor, rate: float) -> None:
        """One step along ∂L/∂a, float32, of α's shape."""
        self.logit_X1.grad = gradient_X1
        self.optimizer.param_groups[0]["lr"] = rate
        self.optimizer.step()
        self.alpha_X1.copy_(torch.sigmoid(self.logit_X1))

    @torch.no_grad()
    def take_over(self, logit_X1: Tensor) -> None:
        """Begin with what has been learned elsewhere: of each of the first units, or one α for all."""
        count = len(logit_X1) if len(logit_X1) > 1 else len(self.logit_X1)
        self.logit_X1[:count] = logit_X1.to(self.logit_X1.device)
        self.alpha_X1.copy_(torch.sigmoid(self.logit_X1))

    def metrics(self) -> dict[str, float]:
        """What a line of metrics says of it."""
        alpha_X1 = self.alpha_X1.detach()
        return {
            "leak_mean": float(alpha_X1.mean()),
            "leak_least": float(alpha_X1.min()),
            "leak_most": float(alpha_X1.max()),
        }

    def state_dict(self) -> dict:
        return {"logit": self.logit_X1, "optimizer": self.optimizer.state_dict()}

    @torch.no_grad()
    def load_state_dict(self, state: dict) -> None:
        self.logit_X1.copy_(state["logit"])
        self.alpha_X1.copy_(torch.sigmoid(self.logit_X1))
        self.optimizer.load_state_dict(state["optimizer"])


@dataclass(frozen=True)
class LeakNoise:
    """±1 noise ξ in the logit of α, for a population of pairs: a ± σ ξ, with ξ of one number or of N.

    As any noise in parameters: ĝ = 1/(2Kσ) Σ_i (u_i⁺ − u_i⁻) ξ_i.
    """

    seed: int
    size: int
    sigma: float

    def draw(self, iteration: int, pairs_P: Tensor) -> Tensor:
        """ξ float32 (P, X), for global pair ids int64 (P,)."""
        return signs(self.seed, Purpose.LEAK_NOISE, (pairs_P, iteration), self.size, pairs_P.device)

    def members(self, logit_X1: Tensor, iteration: int, pairs_P: Tensor) -> Tensor:
        """α of the members, float32 (X, P, 2, 1): of each pair with + and −."""
        kick_XP = self.draw(iteration, pairs_P).T * self.sigma
        return torch.sigmoid(torch.stack((logit_X1 + kick_XP, logit_X1 - kick_XP), dim=2))[..., None]

    def estimate(self, weight_K: Tensor, iteration: int) -> Tensor:
        """ĝ of the logit, float32 (X, 1), from what each pair's noise is multiplied by: (u⁺ − u⁻)/(2 K), float32 (K,)."""
        pairs_K = torch.arange(len(weight_K), device=weight_K.device)
        return (self.draw(iteration, pairs_K).T @ weight_K[:, None]) / self.sigma
