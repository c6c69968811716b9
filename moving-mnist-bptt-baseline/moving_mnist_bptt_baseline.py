"""Backpropagation through time trains the adapter that evolution strategies train elsewhere: the ceiling of the comparison.

    z_t     = frozen random CNN of frame t, standardised                                                 (128)
    h_t     = (1 − α) h_{t−1} + α tanh(W0 h_{t−1} + U (Vᵀ h_{t−1}) + Win z_t + b),   h_0 = 0               (N)
    ẑ_{t+1} = Wout h_t + bout                                                                           (128)
    L       = mean over t = 1 … T, sequences and dimensions of (ẑ_{t+1} − z_{t+1})²

Frozen: the CNN, W0 (sparse), Win, b. Trained by Adam (or Muon) on the exact gradient of L through all T steps: U, V (N, r), Wout, bout.
Same data, reservoir, decoder and scoring as in every other experiment; only where the gradient comes from differs.

By flags, other bars: `--optimizer muon` steps U and V by another optimiser; `--trains v` leaves U fixed and random; `--train-leak` trains α as well, or one of each unit; `--trains all` trains Win and α as well; `--core gru` puts a
GRU of the same width in the reservoir's place and trains all of it.

Start: `python moving_mnist_bptt_baseline.py --seed 0`, or `torchrun --nproc_per_node=8 moving_mnist_bptt_baseline.py --seed 0`.
A minibatch is cut into tiles of a fixed size; ranks and threads share the tiles, and the tiles' gradients are added up in a
fixed order, so that any number of ranks ends in the same bits.
"""

import math
import time
from collections.abc import Callable
from dataclasses import dataclass

import torch
from torch import Tensor

from common import experiment, roll_in
from common.decoder import SCHEDULES, DecoderSettings, RidgeDecoder, make_decoder, scheduled
from common.dist import Workers
from common.encoder import EMBEDDING
from common.errors import BadInput, run_main
from common.evaluation import Score, inputs_and_targets, score_predictions
from common.leak import LeakSettings, TrainedLeak
from common.optimizer import OPTIMIZERS, make_optimizer
from common.philox import Purpose, gaussian
from common.problem import (
    CURRICULUM,
    FIFTY_FRAMES,
    FREE_LEAK,
    HUNDRED_FRAMES,
    TWO_DIGITS,
    Embeddings,
    Problem,
    ProblemSettings,
)
from common.rollout import Rollout
from common.run import RunSettings, setting

# --- Configuration ---------------------------------------------------------------------------------------------------


@dataclass(frozen=True)
class Config(ProblemSettings, DecoderSettings, LeakSettings, RunSettings):
    """The problem and the run folder come from common; what is listed here is this experiment's own."""

    core: str = setting(
        "reservoir", "the frozen reservoir with its adapter, or a GRU of N units", choices=("reservoir", "gru")
    )
    trains: str = setting(
        "adapter",
        "of the reservoir: U and V; V alone with U fixed and random; U, V, Win and α",
        choices=("adapter", "v", "all"),
    )
    rank: int = setting(32, "r, columns of U and V", least=1)
    iterations: int = setting(2000, "steps", least=1, most=10**9)
    batch_size: int = setting(64, "sequences of a minibatch", least=1, most=4096)
    optimizer: str = setting("adam", "what steps the core along its gradient", choices=OPTIMIZERS)
    momentum: float = setting(0.95, "of Muon", least=0, most=0.9999)
    learning_rate: float = setting(3e-3, "of the core; Muon's is on the scale of Adam's", above=0, most=1e30)
    decoder_learning_rate: float = setting(6e-3, "of the decoder's Adam", above=0, most=1e30)
    schedule: str = setting("cosine", "of both learning rates over the run", choices=SCHEDULES)
    rate_warmup: int = setting(100, "iterations in which both learning rates rise from zero", least=0)
    gradient_clip: float = setting(0.5, "the core's gradient is shortened to this norm", above=0, most=1e30)


LAPTOP = dict(iterations=1500, evaluate_every=50)
MUON = dict(optimizer="muon", learning_rate=5e-3, decoder="ridge")
BRIEF_MUON = dict(iterations=8000, train_sequences=50_000, decoder_memory=10_000.0, evaluate_every=100)
PRESETS = {
    # Seconds, for tests.
    "smoke": dict(
        hidden_size=64, in_degree=8, rank=4, sequence_length=6, train_sequences=256, validation_sequences=64,
        test_sequences=64, iterations=40, batch_size=16, rate_warmup=5, evaluate_every=10,
    ),
    # The brief's problem in under five minutes on two CPU cores.
    "laptop": LAPTOP,
    # The brief's problem, to convergence.
    "brief": dict(
        iterations=20_000, learning_rate=2e-3, train_sequences=50_000, evaluate_every=200, patience=15,
    ),
    # The brief's problem without a shortage of data, for 8 GPUs.
    "h200": dict(
        iterations=20_000, batch_size=512, learning_rate=2e-3, train_sequences=1_000_000, evaluate_every=200, patience=15,
    ),
    # The second problem: α chosen outside the brief's range.
    "free-leak": dict(**LAPTOP, **FREE_LEAK),
    # Other bars on the laptop's budget: V alone, everything, a GRU.
    "v": dict(**LAPTOP, trains="v"),
    "all": dict(**LAPTOP, trains="all"),
    "gru": dict(**LAPTOP, core="gru"),
    # Ceiling and V alone by another optimiser, with the decoder that evolution strategies have; and both without a shortage of data.
    "muon": {**LAPTOP, **MUON},
    # As `muon`; of the inputs ever more are predictions, half of them in the end. Scored in closed loop, too. Not run yet.
    "roll-in": {**LAPTOP, **MUON, "roll_in": 0.5, "horizon": 20},
    "v-muon": {**LAPTOP, **MUON, "trains": "v"},
    "brief-muon": {**MUON, **BRIEF_MUON},
    "brief-v-muon": {**MUON, **BRIEF_MUON, "trains": "v", "iterations": 4000},
    # The leak learns as well: one α, or one of each unit.
    "scalar-leak": {**LAPTOP, **MUON, "train_leak": "scalar"},
    "unit-leaks": {**LAPTOP, **MUON, "train_leak": "per-unit"},
    # Rungs of the brief's schedule, one at a time, and V alone on each: with Muon.
    "two-digits": {**LAPTOP, **MUON, **TWO_DIGITS},
    "two-digits-v": {**LAPTOP, **MUON, **TWO_DIGITS, "trains": "v"},
    "fifty-frames": {**LAPTOP, **MUON, **FIFTY_FRAMES, "iterations": 1000},
    "fifty-frames-v": {**LAPTOP, **MUON, **FIFTY_FRAMES, "iterations": 1000, "trains": "v"},
    "hundred-frames": {**LAPTOP, **MUON, **HUNDRED_FRAMES, "iterations": 600},
    "hundred-frames-v": {**LAPTOP, **MUON, **HUNDRED_FRAMES, "iterations": 600, "trains": "v"},
    # Small enough to climb the whole schedule: --curriculum. A rung ends at a plateau of five scores.
    "curriculum": {
        **MUON, **CURRICULUM, "rank": 8, "iterations": 400, "batch_size": 32, "rate_warmup": 20, "evaluate_every": 20, "patience": 5,
    },
}  # fmt: skip

TILE = {"cpu": 32, "cuda": 64}  # sequences: 8 GPUs share a minibatch of 512, two cores one of 64


def parse_arguments(argv: list[str] | None):
    """Command line → (Config, options). Raises BadInput; common/run.py has the options that every experiment has."""
    config, options = experiment.parse(Config, PRESETS, argv, __doc__)
    if config.rank > config.hidden_size:
        raise BadInput(f"--rank must not exceed --hidden-size: {config.rank} > {config.hidden_size}")
    if config.core == "gru" and config.trains != "adapter":
        raise BadInput(
            f"--trains {config.trains} is about the reservoir's parts; a GRU (--core gru) is trained as a whole"
        )
    if config.optimizer == "muon" and (config.core == "gru" or config.trains == "all"):
        raise BadInput("--optimizer muon steps matrices only: U and V of the reservoir (--trains adapter or v)")
    if config.train_leak != "no" and (config.core == "gru" or config.trains == "all"):
        raise BadInput(
            "--train-leak is about the reservoir, and --trains all has one α already: choose --trains adapter or v"
        )
    if config.dtype != "float32":
        raise BadInput(f"--dtype {config.dtype}: gradients are taken in float32 here")
    return config, options


# --- Model -----------------------------------------------------------------------------------------------------------


class ReservoirCore:
    """The reservoir and its gradient. `parameters`: what is trained, the last of it α where that learns beside the adapter
    (`rollout.leak` is a tensor then); input_TEB (T, 128, B) → states (T, N, B)."""

    def __init__(self, rollout: Rollout, u_Nr: Tensor, v_Nr: Tensor, trains: str):
        self.rollout, self.trains = rollout, trains
        self.u_Nr, self.v_Nr = u_Nr.detach(), v_Nr.detach()  # the same memory, with a gradient of its own
        self.input_NE = rollout.reservoir.input_NE.clone()
        # α as a sigmoid stays between 0 and 1; of α = 1 the logit would be infinite.
        if trains == "all":
            self.leak_logit = torch.logit(torch.tensor(rollout.leak, device=rollout.device), eps=1e-3)
            self.parameters = [self.u_Nr, self.v_Nr, self.input_NE, self.leak_logit]
        else:
            self.parameters = [self.v_Nr] if trains == "v" else [self.u_Nr, self.v_Nr]
            if isinstance(rollout.leak, Tensor):
                self.parameters.append(rollout.leak)
        for tensor in self.parameters:
            tensor.requires_grad_()

    def __call__(self, input_TEB: Tensor) -> Tensor:
        return ThroughTime.apply(self, self.drive(input_TEB), self.u_Nr, self.v_Nr, self.leak)

    def drive(self, z_TEB: Tensor) -> Tensor:
        """Win z + b, (T, 128, B) → (T, N, B)."""
        if self.trains == "all":
            return self.input_NE @ z_TEB + self.rollout.reservoir.bias_N[:, None]
        return self.rollout.drive(z_TEB)

    @property
    def leak(self) -> Tensor | float:
        return torch.sigmoid(self.leak_logit) if self.trains == "all" else self.rollout.leak

    def step(self, h_NB: Tensor, z_EB: Tensor) -> Tensor:
        """The state after one more input, (N, B) and (128, B) → (N, B), without a gradient."""
        return self.rollout.step(self.u_Nr, self.v_Nr, h_NB, self.drive(z_EB), self.leak)


class ThroughTime(torch.autograd.Function):
    """The recurrence and, by hand, its adjoint: with y_t = tanh(x_t) and λ_t = dL/dh_t along all paths,

        δ_t     = dL/dx_t = α λ_t ⊙ (1 − y_t²)
        λ_{t−1} = ∂L/∂h_{t−1} + (1 − α) λ_t + W0ᵀ δ_t + V (Uᵀ δ_t)
        dL/dU   = Σ_t δ_t (Vᵀ h_{t−1})ᵀ        dL/dV = Σ_t h_{t−1} (Uᵀ δ_t)ᵀ        dL/dα = Σ_t λ_t · (y_t − h_{t−1})

    which takes half the time of what autograd makes of the same loop, and what has to be kept is plain to see: h_t and y_t of
    all T steps.
    """

    @staticmethod
    def forward(context, core: ReservoirCore, drive_TNB: Tensor, u_Nr: Tensor, v_Nr: Tensor, leak) -> Tensor:
        states_TNB, y_TNB = torch.empty_like(drive_TNB), torch.empty_like(drive_TNB)
        v_rN, h_NB = v_Nr.T.contiguous(), torch.zeros_like(drive_TNB[0])
        for step, drive_NB in enumerate(drive_TNB):
            x_NB = drive_NB
            if step > 0:  # before the first step the state is zero, and so are both products
                x_NB = core.rollout.recurrent(h_NB).add_(drive_NB).addmm_(u_Nr, v_rN @ h_NB)
            torch.tanh(x_NB, out=y_TNB[step])
            h_NB = torch.lerp(h_NB, y_TNB[step], leak, out=states_TNB[step])
        context.core, context.leak = core, leak
        context.save_for_backward(states_TNB, y_TNB, u_Nr, v_Nr)
        return states_TNB

    @staticmethod
    def backward(context, grad_TNB: Tensor):
        states_TNB, y_TNB, u_Nr, v_Nr = context.saved_tensors
        core, leak = context.core, context.leak
        grad_u_Nr, grad_v_Nr = torch.zeros_like(u_Nr), torch.zeros_like(v_Nr)
        _, needs_drive, needs_u, _, needs_leak = context.needs_input_grad
        grad_leak = torch.zeros_like(leak) if needs_leak else None
        delta_TNB = torch.empty_like(grad_TNB) if needs_drive else None
        u_rN, v_rN = u_Nr.T.contiguous(), v_Nr.T.contiguous()
        lambda_NB = torch.zeros_like(states_TNB[0])
        for step in reversed(range(len(states_TNB))):
            lambda_NB = lambda_NB.add_(grad_TNB[step])
            delta_NB = torch.addcmul(lambda_NB, lambda_NB * y_TNB[step], y_TNB[step], value=-1).mul_(leak)
            if needs_drive:
                delta_TNB[step] = delta_NB
            if needs_leak:
                before_NB = states_TNB[step - 1] if step > 0 else torch.zeros_like(lambda_NB)
                grad_leak += (lambda_NB * (y_TNB[step] - before_NB)).sum_to_size(leak.shape)
            if step == 0:
                break
            h_NB, q_rB = states_TNB[step - 1], u_rN @ delta_NB
            grad_v_Nr.addmm_(h_NB, q_rB.T)
            if needs_u:
                grad_u_Nr.addmm_(delta_NB, (v_rN @ h_NB).T)
            lambda_NB = core.rollout.recurrent_transposed(delta_NB).add_(lambda_NB.mul_(1 - leak)).addmm_(v_Nr, q_rB)
        return None, delta_TNB, grad_u_Nr if needs_u else None, grad_v_Nr, grad_leak


class GRUCore:
    """torch's GRU of N units, all of it trained; input_TEB (T, 128, B) → states (T, N, B)."""

    def __init__(self, size: int, seed: int, device: torch.device):
        with torch.random.fork_rng(devices=[]):  # what it draws is replaced below
            self.gru = torch.nn.GRU(EMBEDDING, size).to(device)
        self.parameters = list(self.gru.parameters())
        with torch.no_grad():
            for number, weight in enumerate(self.parameters):  # W_ih, W_hh, b_ih, b_hh
                rows = torch.arange(weight.shape[0])
                if weight.ndim == 1:
                    weight.zero_()
                else:
                    draw = gaussian(seed, Purpose.ADAPTER_START, (rows, number), weight.shape[1])
                    weight.copy_(draw / math.sqrt(weight.shape[1]))

    def __call__(self, input_TEB: Tensor) -> Tensor:
        return self.gru(input_TEB.transpose(1, 2))[0].transpose(1, 2)

    def step(self, h_NB: Tensor, z_EB: Tensor) -> Tensor:
        """The state after one more input, (N, B) and (128, B) → (N, B)."""
        return self.gru(z_EB.T[None], h_NB.T[None].contiguous())[1][0].T


def start_adapter(config: Config) -> tuple[Tensor, Tensor]:
    """U, V float32 (N, r): ΔW = 0 at the start. U = 0 and V ~ N(0, 1/N); where V alone is trained, U ~ N(0, 1/r) and V = 0."""
    shape, ids = (config.hidden_size, config.rank), torch.arange(2)
    draw_2D = gaussian(config.seed, Purpose.ADAPTER_START, (ids, 0), config.hidden_size * config.rank)
    if config.trains == "v":
        return draw_2D[0].reshape(shape) / math.sqrt(config.rank), torch.zeros(shape)
    return torch.zeros(shape), draw_2D[1].reshape(shape) / math.sqrt(config.hidden_size)


# --- Training --------------------------------------------------------------------------------------------------------


class Training(experiment.Training):
    """The core under Adam or Muon with the gradient through time; the decoder under Adam, or by recursive least squares."""

    label = "BPTT"
    start_adapter = staticmethod(start_adapter)

    def __init__(self, config: Config, problem: Problem, embeddings: Embeddings, workers: Workers):
        super().__init__(config, problem, embeddings, workers)
        if config.core == "gru":
            self.core = GRUCore(config.hidden_size, config.seed, workers.device)
        else:
            self.core = ReservoirCore(self.rollout, self.u_Nr, self.v_Nr, config.trains)
        self.stepped = [weight for weight in self.core.parameters if weight is not self.rollout.leak]  # α has its own
        self.optimizer = make_optimizer(config.optimizer, self.stepped, config.learning_rate, config.momentum)
        self.tile = TILE[workers.device.type]

    @staticmethod
    def derived(config: Config, workers: Workers) -> dict:
        return {"tile_sequences": TILE[workers.device.type]}

    @staticmethod
    def role(config: Config) -> str:
        """The ceiling is the adapter trained as a whole; the others are bars beside it."""
        return "ceiling" if config.core == "reservoir" and config.trains == "adapter" else "reference"

    @property
    def rollouts(self) -> int:
        """One for each training sequence, though each is also gone through backward; two where it is rolled in before."""
        return self.iteration * self.config.batch_size * (1 + roll_in.extra_passes(self.config))

    # One step

    def _gradient(self, index_B: Tensor, replaced_LB: Tensor | None) -> tuple[float, float, list[Tensor], list[Tensor]]:
        """Mean loss of a minibatch before the step, RMS(h), the gradients of the core, and what the decoder learns from: its
        gradients, or the products of states and targets for a ridge. replaced_LB: which inputs are rolled in."""
        batch = len(index_B)
        ridge = isinstance(self.decoder, RidgeDecoder)
        index_B = torch.cat((index_B, index_B[-1:].expand(-batch % self.tile)))  # tiles are always full
        if replaced_LB is not None:
            replaced_LB = torch.cat((replaced_LB, replaced_LB[:, -1:].expand(-1, -batch % self.tile)), dim=1)
        core, (weight_EN, bias_E) = self.core.parameters, self.decoder.linear.parameters()
        weights = core if ridge else [*core, weight_EN, bias_E]
        per_sequence = self.config.sequence_length * EMBEDDING * batch * self.scale

        def evaluate(tile: int) -> Tensor:
            part = slice(tile * self.tile, (tile + 1) * self.tile)
            valid = min(self.tile, batch - tile * self.tile)
            input_TEB, target_TEB = inputs_and_targets(self.embeddings.get("train", index_B[part]))
            input_TEB = self.roll_in(input_TEB, None if replaced_LB is None else replaced_LB[:, part])
            with torch.enable_grad():
                states_TNB = self.core(input_TEB)
                prediction_TEB = weight_EN @ states_TNB + bias_E[:, None]
                loss = (prediction_TEB - target_TEB)[:, :, :valid].square().sum() / per_sequence
                gradients = torch.autograd.grad(loss, weights)
            states_TNB = states_TNB.detach()[:, :, :valid]
            energy = states_TNB.square().mean() * (valid / batch)
            if ridge:
                states_NM, target_EM = (
                    x_TXB.transpose(0, 1).flatten(1) for x_TXB in (states_TNB, target_TEB[:, :, :valid])
                )
                gradients += self.decoder.products(states_NM, target_EM)
            return torch.cat([torch.stack((loss.detach(), energy)), *(g.flatten() for g in gradients)])

        size = self.config.hidden_size + 1
        shapes = [w.shape for w in core] + (
            [(size, size), (size, EMBEDDING)] if ridge else [weight_EN.shape, bias_E.shape]
        )
        counts = [math.prod(shape) for shape in shapes]
        total = self.workers.sum_tiles(evaluate, len(index_B) // self.tile, 2 + sum(counts), may_stop=True)
        pieces = [piece.view(shape) for piece, shape in zip(total[2:].split(counts), shapes)]
        return float(total[0]), math.sqrt(float(total[1])), pieces[: len(core)], pieces[len(core) :]

    def iterate(self) -> dict:
        """One step on one minibatch; returns its line of metrics."""
        started = time.perf_counter()
        config, iteration = self.config, self.iteration + 1
        here = (iteration, torch.zeros(1, dtype=torch.int64), config.batch_size)
        replaced_LB = roll_in.replaced_inputs(config, *here, self.workers.device)
        loss, h_rms, core_gradients, for_decoder = self._gradient(self.minibatch_index(*here), replaced_LB)
        for weight, gradient in zip(self.core.parameters, core_gradients):
            weight.grad = gradient
        norm = torch.nn.utils.clip_grad_norm_(self.core.parameters, config.gradient_clip, foreach=False)
        rate = self._rate(config.learning_rate)
        if math.isfinite(loss) and norm.isfinite():  # else the step would make everything not a number, for good
            for group in self.optimizer.param_groups:
                group["lr"] = rate
            self.optimizer.step()
            if self.leak:
                self.leak.step(self.rollout.leak.grad, self._rate(config.leak_rate))
            if isinstance(self.decoder, RidgeDecoder):
                self.decoder.read(for_decoder, config.batch_size)
            else:
                self.decoder.update(for_decoder, self._rate(config.decoder_learning_rate))

        self.iteration = iteration
        self.seconds += time.perf_counter() - started
        return {
            "iteration": iteration,
            "train_loss": loss,
            "gradient_norm": float(norm),
            "learning_rate": rate,
            "u_norm": float(self.u_Nr.detach().norm()),
            "v_norm": float(self.v_Nr.detach().norm()),
            **(self.leak.metrics() if self.leak else {}),
            "h_rms": h_rms,
            "rollouts": self.rollouts,
            "wallclock_s": self.seconds,
        }

    def _rate(self, peak: float) -> float:
        """Learning rate of the iteration that follows `iteration` finished ones."""
        config = self.config
        rising = min(1.0, (self.iteration + 1) / (config.rate_warmup + 1))
        return rising * scheduled(peak, config.schedule, self.iteration / config.iterations)

    # State and evaluation

    def is_adapter(self) -> bool:
        """Whether the core is the frozen reservoir with (U, V): then common's rollout runs and scores it."""
        return self.config.core == "reservoir" and self.config.trains != "all"

    def trained_tensors(self) -> tuple[Tensor, ...]:
        return super().trained_tensors() if self.is_adapter() else tuple(self.core.parameters)

    def parameters(self) -> list[Tensor]:
        return [*self.core.parameters, self.decoder.linear.weight, self.decoder.linear.bias]

    @torch.no_grad()
    def states(self, input_TEB: Tensor) -> Tensor:
        return super().states(input_TEB) if self.is_adapter() else self.core(input_TEB).transpose(0, 1).contiguous()

    @torch.no_grad()
    def step(self, h_NB: Tensor, z_EB: Tensor) -> Tensor:
        return self.core.step(h_NB, z_EB)

    def score(self, split: str) -> Score:
        if self.is_adapter():
            return super().score(split)
        return score_predictions(self.predict, self.embeddings, split, self.workers)

    @property
    def starts_from_reservoir(self) -> bool:
        return self.config.core == "reservoir"

    def core_is_frozen(self) -> bool:
        return self.is_adapter() and super().core_is_frozen()

    def control(self) -> Callable[[Tensor], Tensor] | None:
        return super().control() if self.is_adapter() else None

    def progress(self, metrics: dict) -> str:
        return f"train {metrics['train_loss']:.4f}, validation {self.validation:.4f}"

    def state_dict(self) -> dict:
        core = [weight.detach() for weight in self.core.parameters]
        return {**super().state_dict(), "core": core, "optimizer": self.optimizer.state_dict()}

    @torch.no_grad()
    def load_state_dict(self, state: dict) -> None:
        super().load_state_dict(state)
        for weight, saved in zip(self.core.parameters, state["core"]):
            weight.copy_(saved)
        self.optimizer.load_state_dict(state["optimizer"])

    @staticmethod
    def costs(config: Config, problem: Problem, workers: Workers) -> list[str]:
        """What a run will cost, from one tile timed here on made-up input."""
        tile, steps = TILE[workers.device.type], config.sequence_length
        if config.core == "gru":
            core = GRUCore(config.hidden_size, config.seed, workers.device)
        else:
            factors = (factor.to(workers.device) for factor in start_adapter(config))
            rollout = Rollout(problem.reservoir(), config.leak, 1.0, workers.device)
            if config.train_leak != "no":
                TrainedLeak(rollout, config.train_leak, config.leak, config.leak_rate)
            core = ReservoirCore(rollout, *factors, config.trains)
        z_TEB = torch.ones(steps, EMBEDDING, tile, device=workers.device)
        seconds, saved = [], []
        for _ in range(3):
            saved.clear()
            started = time.perf_counter()
            with torch.autograd.graph.saved_tensors_hooks(lambda x: saved.append(x) or x, lambda x: x):
                loss = core(z_TEB).square().sum()
            float(torch.autograd.grad(loss, core.parameters)[0].sum())  # on a GPU: wait for it
            seconds.append(time.perf_counter() - started)
        kept = sum({x.data_ptr(): x.nbytes for x in saved}.values())
        tiles = -(-config.batch_size // tile)
        lanes = workers.world_size * (workers.threads if workers.device.type == "cpu" else 1)
        decoder = make_decoder(config, config.hidden_size, workers.device).frozen_copy()
        rolling_s, rolling = roll_in.costs(config, tile, core.step, decoder)
        step_s = -(-tiles // lanes) * (min(seconds) + rolling_s)
        trained = sum(weight.numel() for weight in core.parameters)
        rollouts = config.iterations * config.batch_size * (1 + roll_in.extra_passes(config))
        sequences = config.train_sequences + config.validation_sequences + config.test_sequences
        return [
            f"{trained:,} parameters of the core and {EMBEDDING * (config.hidden_size + 1):,} of the decoder",
            f"{config.iterations:,} steps, {rollouts:,} rollouts, forward and backward",
            f"{tiles:,} tiles of {tile} sequences a step; one took {min(seconds):.3g} s here without the decoder",
            *rolling,
            f"expected {step_s:.3g} s a step, {step_s * config.iterations / 60:.3g} min of training",
            f"memory: {kept / 1e6:,.1f} MB kept for the way back in each tile; {tiles * trained * 4 / 1e6:,.1f} MB of gradients "
            f"of the core, one from each tile; encoded sequences (on disk on a CPU) "
            f"{sequences * (steps + 1) * EMBEDDING * 4 / 1e6:,.1f} MB",
        ]


# --- Main ------------------------------------------------------------------------------------------------------------


def main(argv: list[str] | None = None) -> int:
    return experiment.launch(*parse_arguments(argv), Training, __file__, parse_arguments)


if __name__ == "__main__":
    run_main(main)
