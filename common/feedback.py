"""U and the leak by feedback of the next prediction's error, beside a V that learns by evolution strategies.

Noise does not bring U to learn (lab book, 10, 15, 18): its activities are N a step, V's are r. But the decoder, which learns by supervision, knows
what each unit does to a prediction, and with that the error of the next prediction tells each unit what it should have been:

    e_t = ẑ_{t+1} − z_{t+1}      λ_t = (2/128) Bᵀ e_t      y_t = tanh(x_t)
    δ_t = α (1 − y_t²) ⊙ λ_t     ∂L_t/∂U ≈ δ_t (Vᵀ h_{t−1})ᵀ     ∂L_t/∂α ≈ (y_t − h_{t−1}) ⊙ λ_t

with B = Wout it is the gradient of the next prediction's error alone: nothing goes back through time or W0. That is the delta rule on the states; where
`--feedback-probes` M is given, B is what M forward passes through the readout tell of Wout (`activity_noise.probed_readout`), so that no weight
is read backwards.
"""

import dataclasses
import math
from collections.abc import Callable, Sequence
from dataclasses import dataclass

import torch
from torch import Tensor

from common.activity_noise import full_set, probed_readout
from common.encoder import EMBEDDING
from common.errors import BadInput
from common.leak import LeakSettings
from common.rollout import Rollout
from common.run import setting
from common.truncated import TruncatedTraining
from common.windows import Windows

MOST_NUMBERS = 2**31  # in the probes of a readout


@dataclass(frozen=True)
class FeedbackSettings(LeakSettings):
    """The part of a Config that says what learns by feedback."""

    trains: str = setting("v", "V alone; or U too, by feedback of the next prediction's error", choices=("v", "both"))
    u_rate_ratio: float = setting(0.3, "learning rate of U as a multiple of --learning-rate", above=0, most=1e6)
    feedback_probes: int = setting(
        0, "forward passes through the readout, an iteration, that tell U and α the way back; 0: Wout is read backwards",
        least=0, most=2**17,
    )  # fmt: skip


def has_feedback(config: FeedbackSettings) -> bool:
    """Whether anything learns along the gradient of the next prediction's error."""
    return config.trains == "both" or config.train_leak != "no"


def settled(config: FeedbackSettings, words: Sequence[str]) -> FeedbackSettings:
    """The configuration without what a preset says of feedback where nothing learns by it. Raises BadInput where the user says so (words: of the
    command line), or where settings do not go together."""
    typed = {word.partition("=")[0] for word in words}
    if config.trains == "v" and config.u_rate_ratio != FeedbackSettings.u_rate_ratio:
        if "--u-rate-ratio" in typed:
            raise BadInput("--u-rate-ratio is about U, which --trains v does not train")
        config = dataclasses.replace(config, u_rate_ratio=FeedbackSettings.u_rate_ratio)
    if config.feedback_probes and not has_feedback(config):
        if "--feedback-probes" in typed:
            raise BadInput("--feedback-probes needs something that learns by feedback: --trains both, or --train-leak")
        config = dataclasses.replace(config, feedback_probes=0)
    if config.feedback_probes > full_set(config.hidden_size):
        raise BadInput(
            f"--feedback-probes {config.feedback_probes:,} are more than there are orthogonal ones in {config.hidden_size:,} dimensions "
            f"(--hidden-size): at most {full_set(config.hidden_size):,}"
        )
    if config.feedback_probes * config.hidden_size > MOST_NUMBERS:
        raise BadInput(
            f"--feedback-probes {config.feedback_probes:,} of {config.hidden_size:,} units (--hidden-size) are more than {MOST_NUMBERS:,} numbers"
        )
    return config


@torch.no_grad()
def feedback(
    rollout: Rollout, v_Nr: Tensor, windows: Windows, decoder: tuple[Tensor, Tensor], back_EN: Tensor
) -> tuple[Tensor, Tensor, Tensor]:
    """Of each prediction's mean squared error, in G windows of L steps, C = L·G columns in the order (step, window): δ (N, C) and p = Vᵀh (r, C),
    of which ∂/∂U is Σ_c δ_c p_cᵀ, and ∂/∂α of each unit (N, C); float32. back_EN: B, which is Wout or what is known of it."""
    weight_EN, bias_E = decoder
    h_NC, x_NC = (x.transpose(0, 1).flatten(1).to(torch.float32) for x in (windows.state_LNG, windows.inner_LNG))
    leak = rollout.leak.to(torch.float32) if isinstance(rollout.leak, Tensor) else rollout.leak
    y_NC = x_NC.tanh()
    target_EC = windows.target_LEG.transpose(0, 1).flatten(1)
    error_EC = torch.addmm(bias_E[:, None], weight_EN, h_NC.lerp(y_NC, leak)) - target_EC
    lambda_NC = (back_EN.T @ error_EC).mul_(2 / EMBEDDING)
    return (1 - y_NC.square()).mul_(lambda_NC).mul_(leak), v_Nr.to(torch.float32).T @ h_NC, lambda_NC * (y_NC - h_NC)


def parts_of(rest: Tensor, config) -> tuple[Tensor | None, Tensor | None]:
    """U's part (N, r) and α's (1, 1) or (N, 1) of what learns by feedback, flat; None for what does not."""
    shape = (config.hidden_size, config.rank)
    size = math.prod(shape) if config.trains == "both" else 0
    return rest[:size].view(shape) if size else None, rest[size:, None] if len(rest) > size else None


@torch.no_grad()
def add_feedback(
    rest: Tensor,
    config,
    rollout: Rollout,
    v_Nr: Tensor,
    windows: Windows,
    counts_G: Tensor,
    decoder: tuple[Tensor, Tensor],
    back_EN: Tensor,
) -> None:
    """Add to `rest` what learns by feedback, summed over the windows that count, bool (G,): U's Σ δ pᵀ and α's gradient, flat."""
    if not has_feedback(config):
        return
    sum_u_Nr, sum_leak_X1 = parts_of(rest, config)
    left_out_C = ~counts_G.repeat(len(windows.state_LNG))
    delta_NC, p_rC, of_leak_NC = (
        x.masked_fill(left_out_C, 0) for x in feedback(rollout, v_Nr, windows, decoder, back_EN)
    )
    if sum_u_Nr is not None:
        sum_u_Nr += delta_NC @ p_rC.T
    if sum_leak_X1 is not None:
        sum_leak_X1 += of_leak_NC.sum_to_size(*sum_leak_X1.shape)


class FeedbackTraining(TruncatedTraining):
    """V under evolution strategies in windows; by feedback U, or the leak, or both, if the configuration says so."""

    @staticmethod
    def feedback_rollouts(config) -> int:
        """Of an iteration: a probe of the readout counts a step."""
        return -(-config.feedback_probes // config.sequence_length)

    def learning(self) -> dict[str, Tensor]:
        return {"v": self.v_Nr, "u": self.u_Nr} if self.config.trains == "both" else {"v": self.v_Nr}

    @staticmethod
    def rest_size(config) -> int:
        of_leak = {"no": 0, "scalar": 1, "per-unit": config.hidden_size}[config.train_leak]
        return of_leak + (config.hidden_size * config.rank if config.trains == "both" else 0)

    def before_tiles(self, iteration: int, decoder: tuple[Tensor, Tensor]) -> None:
        self.back_EN, probes = decoder[0], self.config.feedback_probes
        if probes:
            self.back_EN = probed_readout(self.config.seed, iteration, self.back_EN, probes)

    def other_gradients(self, rest: Tensor) -> dict[str, tuple[Tensor, float]]:
        grad_u_Nr, _ = parts_of(rest, self.config)
        return {} if grad_u_Nr is None else {"u": (grad_u_Nr, self.config.u_rate_ratio)}

    def leak_gradient(self, rest: Tensor) -> Tensor:
        return parts_of(rest, self.config)[1]

    def control(self) -> Callable[[Tensor], Tensor]:
        return self.shuffled("u" if self.config.trains == "both" else "v")

    @classmethod
    def cost_lines(cls, config, *arguments) -> list[str]:
        probes = 2 * config.feedback_probes * config.hidden_size * 4 / 1e6
        more = [f"probes of the readout: {probes:,.1f} MB"] if probes else []
        return [*super().cost_lines(config, *arguments), *more]
