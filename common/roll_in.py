"""Scheduled roll-in: in training a network reads some of its own predictions in place of frames.

    z̃_1 = z_1        z̃_t = ẑ_t with probability p, else z_t,   t = 2 … T        ẑ_t = Wout h_{t−1} + bout,   h_{t−1} of z̃_1 … z̃_{t−1}

p rises linearly over the iterations, from 0 before the first to --roll-in in the last one: scheduled sampling (Bengio, Vinyals, Jaitly,
Shazeer 2015, arXiv:1506.03099), with a coin for each input. Under teacher forcing (p = 0) a network never reads what it will read in closed
loop (--horizon). The remedy is a biased one (Huszár 2015, arXiv:1511.05101): targets stay the true frames whatever has been read in their
place, and where a sequence may go on in several ways, p = 1 rewards a network for forgetting what it has read.

The predictions are made beforehand, step by step, by the unperturbed network with the decoder that it has when the iteration begins: one
more forward pass of each training sequence, a rollout like any other. All that learns from a sequence reads the same mixed inputs, and no
gradient goes through them.
"""

import time
from collections.abc import Callable

import torch
from torch import Tensor
from torch.nn import functional

from common.encoder import EMBEDDING
from common.errors import BadInput
from common.philox import Purpose, stream_words


def require_roll_in(config) -> None:
    """Raises BadInput where a configuration has nothing to roll in, or measures what does not know of it."""
    if config.roll_in and config.sequence_length < 2:
        raise BadInput("--roll-in needs a --sequence-length of at least 2: the first input is always the true one")
    if config.roll_in and getattr(config, "measure_cosine_every", 0):
        raise BadInput("--measure-cosine-every compares with the gradient under teacher forcing: it needs --roll-in 0")


def probability(config, iteration: int) -> float:
    """p of an iteration; 0 of what comes before the first one."""
    return config.roll_in * (iteration / config.iterations)


def extra_passes(config) -> int:
    """Forward passes, so rollouts, that each training sequence costs beside those that learn from it."""
    return int(config.roll_in > 0)


def replaced_inputs(
    config, iteration: int, streams: Tensor, batch_size: int, device: torch.device | str = "cpu"
) -> Tensor | None:
    """Which inputs are to be predictions: bool (T − 1, S·B), of z_2 … z_T of the sequences of `Training.minibatch`. None where none are."""
    later, share = config.sequence_length - 1, probability(config, iteration)
    if not share:
        return None
    words_SM = stream_words(config.seed, Purpose.ROLL_IN, (streams, iteration), batch_size * later, device)
    return (words_SM < int(share * 2**32)).reshape(-1, later).T


@torch.no_grad()
def rolled_in(
    input_TEB: Tensor,
    replaced_LB: Tensor,
    h_NB: Tensor,
    step: Callable[[Tensor, Tensor], Tensor],
    decoder: tuple[Tensor, Tensor],
) -> Tensor:
    """Inputs (T, 128, B) with predictions in place of those that `replaced_LB`, bool (T − 1, B), says; a new tensor.

    h_NB: the state before the first step. step: a state and an input (128, B) → the next state. decoder: Wout, bout.
    """
    weight_EN, bias_E = decoder
    inputs = [input_TEB[0]]
    for replaced_B, z_EB in zip(replaced_LB, input_TEB[1:], strict=True):
        h_NB = step(h_NB, inputs[-1])
        # This way round: of four columns the product is four times as fast on a CPU, of 32 and more no slower.
        prediction_BE = functional.linear(h_NB.T.to(weight_EN.dtype), weight_EN, bias_E)
        inputs.append(torch.where(replaced_B, prediction_BE.T, z_EB))
    return torch.stack(inputs)


def costs(config, columns: int, step: Callable[[Tensor, Tensor], Tensor], decoder: tuple[Tensor, Tensor]):
    """For --dry-run: seconds that the extra pass of so many sequences side by side takes, timed here on made-up input, and a line that
    says so; 0 and none without a roll-in."""
    if not config.roll_in:
        return 0.0, []
    device, seconds = decoder[0].device, []
    z_TEB = torch.ones(config.sequence_length, EMBEDDING, columns, device=device)
    h_NB = torch.zeros(config.hidden_size, columns, dtype=getattr(torch, config.dtype), device=device)
    for _ in range(3):
        started = time.perf_counter()
        rolled_in(z_TEB, z_TEB[1:, 0] > 0, h_NB, step, decoder).sum().item()  # on a GPU: wait for it
        seconds.append(time.perf_counter() - started)
    line = f"roll-in: one more rollout of each training sequence; of {columns} side by side it took {min(seconds):.3g} s here"
    return min(seconds), [line]
