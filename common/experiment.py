"""What every experiment does around its own training step: start, log, validate, checkpoint, stop, resume, score, report.

A stub subclasses `Training` (its model, one `iterate`) and hands it to `launch` with its Config and presets. All methods
are so scored in the same way on the same problem, and every one of them can be interrupted, resumed and spread over ranks.
"""

import argparse
import contextlib
import dataclasses
import io
import json
import math
import os
import signal
import sys
from collections.abc import Callable
from pathlib import Path

import numpy as np
import torch
from torch import Tensor
from tqdm import tqdm

from common.curriculum import Log, Rung, rungs_of
from common.decoder import make_decoder
from common.dist import Stopped, Workers, choose_device, differences
from common.errors import BadInput, Fault, reason
from common.evaluation import (
    SCORED,
    Score,
    closed_loop_errors,
    inputs_and_targets,
    public_score,
    ridge_scores,
    score,
    trivial_closed_loop_errors,
    trivial_predictors,
    trivial_scores,
)
from common.figure_data import Showcase, figure_data, singular_values
from common.leak import TrainedLeak
from common.moving_mnist import load_public_test_set
from common.philox import Purpose, integers, permutation
from common.problem import Embeddings, Problem
from common.results import CURRICULUM
from common.roll_in import probability, replaced_inputs, require_roll_in, rolled_in
from common.rollout import Rollout
from common.run import (
    SCHEMA,
    RunFolder,
    added_to,
    bits_depend_on,
    environment,
    fingerprint_of,
    identity_of,
    load_checkpoint,
    parse_config,
    saved_config,
    sha256_of_tensors,
    source,
)
from common.stop import Interrupted, StopRequest
from common.text import duration

CHECK_EVERY = 10  # iterations between comparisons of what the ranks have trained
MOST_FAILED = 10  # iterations in a row without a finite training loss, before a run is given up
TRIVIAL_NAMES = {"mean": "mean", "copy_last": "copy-last", "ar1": "AR(1) ridge", "ar3": "AR(3) ridge"}


class Training:
    """The state of a run: adapter U, V (N, r), decoder, counters. A stub's own training derives from it.

    A subclass sets `label` (progress bar), gives `iterate`, and where it has more state extends the state dictionary.
    Without an adapter of its own the core stays frozen: U = V = 0.
    """

    label = "training"
    advice = "try a smaller learning rate"  # said when a run is given up because nothing is finite any more

    def __init__(self, config, problem: Problem, embeddings: Embeddings, workers: Workers, guard: float = 1.0):
        """guard: see Rollout; the default can never be exceeded."""
        self.config, self.problem, self.embeddings, self.workers = config, problem, embeddings, workers
        dtype = getattr(torch, config.dtype)
        kernel = getattr(config, "kernel", "torch")
        self.rollout = Rollout(problem.reservoir(), config.leak, guard, workers.device, dtype, kernel)
        self.u_Nr, self.v_Nr = (factor.to(workers.device) for factor in self.start_adapter(config))
        self.leak: TrainedLeak | None = None
        if getattr(config, "train_leak", "no") != "no":
            self.leak = TrainedLeak(self.rollout, config.train_leak, config.leak, config.leak_rate)
        self.decoder = make_decoder(config, config.hidden_size, workers.device)
        self.showcase = Showcase(embeddings)
        self.scale = embeddings.error_scale
        self.iteration = 0
        self.seconds = 0.0  # of training, without data, scoring and figures
        self.validation = math.nan
        self.best: dict | None = None  # with --patience: iteration, validation and parameters of the best score so far
        self.lowest: dict | None = None  # the same without parameters and without the score before the first iteration
        self.failed_in_a_row = 0  # iterations without a finite training loss
        self.begun_with: dict = {}  # code, torch and processor of the run's first start
        self.begun_from: dict | None = None  # of another run: singular values (r,) of its adapter, and its score here
        self.mixed = False  # whether it went on with others, so that its bits are not those of one uninterrupted run

    # What a stub gives

    @staticmethod
    def start_adapter(config) -> tuple[Tensor, Tensor]:
        """U, V float32 (N, r) at the start, on the CPU."""
        return torch.zeros(config.hidden_size, 1), torch.zeros(config.hidden_size, 1)

    @staticmethod
    def derived(config, workers: Workers) -> dict:
        """Choices that a written rule makes and that change numbers: stored in config.json, and a resumed run must agree."""
        return {}

    @staticmethod
    def costs(config, problem: Problem, workers: Workers) -> list[str]:
        """Lines for --dry-run: rollouts, memory, expected time."""
        return []

    @property
    def rollouts(self) -> int:
        """Rollouts so far; one parameter set on one sequence counts one."""
        raise NotImplementedError

    def prepare(self, progress: bool) -> bool:
        """What comes before the first iteration. False if a stop was asked for and it is not done yet."""
        return True

    def iterate(self) -> dict:
        """One iteration: raise `iteration`, add to `seconds`, return the line of metrics, "train_loss" in it; where that is not
        finite, nothing has been learned.

        Where it takes long it may raise `Stopped`, everything being as it was before (`Workers.run_tiles(may_stop=True)`).
        """
        raise NotImplementedError

    def trained_tensors(self) -> tuple[Tensor, ...]:
        """What theta_sha256 is the hash of: the adapter, or what a stub trains in its place."""
        return self.u_Nr, self.v_Nr, *self.trained_leak()

    def trained_leak(self) -> tuple[Tensor, ...]:
        """α (1, 1) or (N, 1), where it learns."""
        return (self.leak.alpha_X1,) if self.leak else ()

    @staticmethod
    def role(config) -> str | None:
        """What a result stands for in its problem: "floor", "ceiling", "reference" (a bar outside the comparison), or None
        for a method that is held against them."""
        return None

    def states(self, input_TEB: Tensor) -> Tensor:
        """States of the core as it is now, (T, 128, B) → (N, T, B)."""
        return self.rollout.states(self.u_Nr, self.v_Nr, self.rollout.drive(input_TEB))

    def step(self, h_NB: Tensor, z_EB: Tensor) -> Tensor:
        """The state of that core after one more input: (N, B), which stays as it is, and (128, B) → (N, B)."""
        return self.rollout.step(self.u_Nr, self.v_Nr, h_NB, self.rollout.drive(z_EB))

    @property
    def starts_from_reservoir(self) -> bool:
        """Whether the core before training was the problem's reservoir: then the trained core is held against it."""
        return True

    def core_is_frozen(self) -> bool:
        """Whether the core is still the problem's reservoir: then its ridge readout is fitted once."""
        return self.leak is None and not (self.u_Nr.any() and self.v_Nr.any())

    def control(self) -> Callable[[Tensor], Tensor] | None:
        """States of the control beside the trained core: an adapter of the same size and singular values whose directions
        mean nothing, U with its rows in random order. None where there is no adapter to shuffle."""
        return self.shuffled("u")

    def shuffled(self, factor: str) -> Callable[[Tensor], Tensor]:
        """States with the rows of one factor, "u" or "v", in random order. It should be one that was trained: to shuffle what was
        drawn at random is to draw it again."""
        order_N = permutation(self.config.seed, Purpose.CONTROL, len(self.u_Nr)).to(self.workers.device)
        u_Nr, v_Nr = (self.u_Nr[order_N], self.v_Nr) if factor == "u" else (self.u_Nr, self.v_Nr[order_N])
        return lambda input_TEB: self.rollout.states(u_Nr, v_Nr, self.rollout.drive(input_TEB))

    def progress(self, metrics: dict) -> str:
        """The changing part of the progress line."""
        return f"validation {self.validation:.4f}"

    def reproduces(self, results: dict) -> str:
        """ "yes": training made the core itself better: with a ridge readout it is at least 1 % better than the frozen core
        with one. "partial": not that, but the model predicts better than every trivial predictor. "no": neither.

        A stub with another claim has a rule of its own."""
        if results["ridge_test_mse"] < 0.99 * results.get("ridge_test_mse_at_start", 0):
            return "yes"
        best_trivial = min(entry["all"] for entry in results["trivial_test_mse"].values())
        return "partial" if results["test_mse"] < best_trivial else "no"

    # What is the same for all

    def minibatch(
        self,
        iteration: int,
        streams: Tensor,
        batch_size: int | None = None,
        decoder: tuple[Tensor, Tensor] | None = None,
    ) -> tuple[Tensor, Tensor]:
        """Inputs and targets, each (T, 128, S·B), of S streams of an iteration: int64 (S,) ids, B sequences each (default:
        --batch-size).

        Sequences are drawn with replacement; iteration 0 is what comes before the first one. With --roll-in some inputs are
        predictions; decoder: as of `roll_in`.
        """
        batch_size = batch_size or self.config.batch_size
        index_B = self.minibatch_index(iteration, streams, batch_size)
        input_TEB, target_TEB = inputs_and_targets(self.embeddings.get("train", index_B))
        replaced_LB = replaced_inputs(self.config, iteration, streams, batch_size, input_TEB.device)
        return self.roll_in(input_TEB, replaced_LB, decoder), target_TEB

    def minibatch_index(self, iteration: int, streams: Tensor, batch_size: int) -> Tensor:
        """Training sequences of `minibatch`: int64 (S·B,)."""
        config = self.config
        index_SB = integers(config.seed, Purpose.MINIBATCH, (streams, iteration), batch_size, config.train_sequences)
        return index_SB.flatten()

    def roll_in(
        self, input_TEB: Tensor, replaced_LB: Tensor | None, decoder: tuple[Tensor, Tensor] | None = None
    ) -> Tensor:
        """Inputs (T, 128, B), some of them predictions (see `common.roll_in`) of the core and decoder as they are now. decoder: Wout and bout
        to be taken in its place, where it learns within an iteration."""
        if replaced_LB is None:
            return input_TEB
        linear, batch = self.decoder.linear, input_TEB.shape[2]
        h_NB = torch.zeros(self.config.hidden_size, batch, dtype=self.rollout.dtype, device=input_TEB.device)
        return rolled_in(input_TEB, replaced_LB, h_NB, self.step, decoder or (linear.weight, linear.bias))

    def score(self, split: str) -> Score:
        """Score of the unperturbed parameters with their decoder; every rank takes part and gets it."""
        return score(self.rollout, self.u_Nr, self.v_Nr, self.decoder.linear, self.embeddings, split, self.workers)

    def predict(self, input_TEB: Tensor) -> Tensor:
        """ẑ of frames 2 … T+1, (T, 128, B) → (T, 128, B)."""
        return self.decoder.predict(self.states(input_TEB))

    def predict_ahead(self, input_TEB: Tensor) -> Tensor:
        """ẑ of frames T+1 … T+H in closed loop, (T, 128, B) → (H, 128, B): a prediction is read where its frame would be."""
        h_NB = self.states(input_TEB)[:, -1]
        prediction_1EB = self.decoder.predict(h_NB[:, None])
        predictions = [prediction_1EB]
        while len(predictions) < self.config.horizon:
            h_NB = self.step(h_NB, prediction_1EB[0])
            prediction_1EB = self.decoder.predict(h_NB[:, None])
            predictions.append(prediction_1EB)
        return torch.cat(predictions)

    def closed_loop_errors(self) -> Tensor | None:
        """Test MSE by horizon, float64 (H,), None without --horizon; every rank takes part and gets it."""
        return closed_loop_errors(self.predict_ahead, self.embeddings, self.workers) if self.config.horizon else None

    def validate(self) -> None:
        """Score on the validation set, and remember the showcase predictions of this iteration for the GIF."""
        self.validation = self.score("validation").mse
        self.showcase.add(self.iteration, self.predict(self.showcase.input_TES))
        if not self.config.patience:
            return
        if self.iteration and (self.lowest is None or self.validation < self.lowest["validation"]):
            self.lowest = {"iteration": self.iteration, "validation": self.validation}
        if self.best is None or self.validation < self.best["validation"]:
            kept = [tensor.detach().clone() for tensor in self.parameters()]
            self.best = {"iteration": self.iteration, "validation": self.validation, "parameters": kept}
            self.best["model"] = {name: tensor.detach().clone() for name, tensor in self.model().items()}

    def parameters(self) -> list[Tensor]:
        """All that predictions depend on and training changes: what early stopping keeps of the best iteration."""
        return [self.u_Nr, self.v_Nr, *self.trained_leak(), self.decoder.linear.weight, self.decoder.linear.bias]

    def model(self) -> dict[str, Tensor]:
        """The same by name, of an adapter: what another run can begin with."""
        leak = {"logit": self.leak.logit_X1} if self.leak else {}
        linear = self.decoder.linear
        return {"u_Nr": self.u_Nr, "v_Nr": self.v_Nr, "weight": linear.weight, "bias": linear.bias, **leak}

    @property
    def finished(self) -> bool:
        """All iterations are done, or --patience scores in a row have brought nothing better. (Better than those since the first iteration: a run
        that goes on from another takes large steps at first, and is worse for a while than what it began with.)"""
        config = self.config
        waited = self.iteration - self.lowest["iteration"] if self.lowest else 0
        stalled = config.patience and waited >= config.patience * config.evaluate_every
        return self.iteration >= config.iterations or bool(stalled)

    @torch.no_grad()
    def restore_best(self) -> None:
        """With --patience, go back to the parameters of the best validation score."""
        if self.best is not None:
            for tensor, kept in zip(self.parameters(), self.best["parameters"]):
                tensor.copy_(kept)
            self.validation = self.best["validation"]

    def state_dict(self) -> dict:
        """Everything that a resumed run needs; plain types and tensors only."""
        return {
            "iteration": self.iteration,
            "seconds": self.seconds,
            "validation": self.validation,
            "best": self.best,
            "lowest": self.lowest,
            "failed_in_a_row": self.failed_in_a_row,
            "begun_with": self.begun_with,
            "mixed": self.mixed,
            "begun_from": self.begun_from,
            "u_Nr": self.u_Nr,
            "v_Nr": self.v_Nr,
            "decoder": self.decoder.state_dict(),
            **({"leak": self.leak.state_dict()} if self.leak else {}),
            "showcase": self.showcase.state_dict(),
            "seeds": {
                name: getattr(self.config, name) for name in ("seed", "data_seed", "encoder_seed", "reservoir_seed")
            },
        }

    @torch.no_grad()
    def take_over(self, state: dict) -> None:
        """Begin with adapter, leak and readout as `load_start` has them, of as many units and columns or fewer; what is predicted stays as
        it was there: of new columns U Vᵀ is 0, and new units are not heard (V is 0)."""
        units, columns = state["u_Nr"].shape
        u_Nr, v_Nr = (factor.to(self.u_Nr.device) for factor in self.start_adapter(self.config))
        if u_Nr.any():
            v_Nr[:, columns:] = 0
        v_Nr[units:] = 0
        for factor_Nr, start_Nr, name in ((self.u_Nr, u_Nr, "u_Nr"), (self.v_Nr, v_Nr, "v_Nr")):
            factor_Nr.copy_(start_Nr)
            factor_Nr[:units, :columns] = state[name].to(factor_Nr.device)
        self.decoder.take_over(state["decoder"])
        if self.leak and "leak" in state:
            self.leak.take_over(state["leak"]["logit"])
        self.begun_from = {"singular_values": singular_values(self.u_Nr, self.v_Nr)}

    @torch.no_grad()
    def load_state_dict(self, state: dict) -> None:
        self.iteration, self.seconds, self.validation = state["iteration"], state["seconds"], state["validation"]
        self.best = state["best"]
        # Checkpoints from before it was kept: the best score, unless that is the start's.
        of_best = {key: self.best[key] for key in ("iteration", "validation")} if self.best else {"iteration": 0}
        self.lowest = state.get("lowest", of_best if of_best["iteration"] else None)
        self.failed_in_a_row = state["failed_in_a_row"]
        self.begun_with, self.mixed = state["begun_with"], state["mixed"]
        self.begun_from = state["begun_from"]
        self.u_Nr.copy_(state["u_Nr"])
        self.v_Nr.copy_(state["v_Nr"])
        self.decoder.load_state_dict(state["decoder"])
        if self.leak:
            self.leak.load_state_dict(state["leak"])
        self.showcase.load_state_dict(state["showcase"])


# --- Start -----------------------------------------------------------------------------------------------------------


def parse(config_class: type, presets: dict[str, dict], argv: list[str] | None, description: str):
    """Command line → (Config, options), with the checks that every experiment shares. Raises BadInput."""
    config, options = parse_config(config_class, presets, argv, description)
    if config.in_degree > config.hidden_size:
        raise BadInput(f"--in-degree must not exceed --hidden-size: {config.in_degree} > {config.hidden_size}")
    fixed = getattr(config, "train_leak", "yes") == "no" and not options.curriculum
    if fixed and config.leak_rate != type(config).leak_rate:
        raise BadInput("--leak-rate is about a leak that learns: --train-leak scalar or per-unit")
    if config.grown_from >= config.hidden_size or 0 < config.grown_from < config.in_degree:
        raise BadInput(
            f"--grown-from must be below --hidden-size and no less than --in-degree: {config.grown_from}, with "
            f"{config.hidden_size} and {config.in_degree}"
        )
    require_roll_in(config)
    if config.dtype == "float16" and choose_device(config.device).type != "cuda":
        raise BadInput("--dtype float16 needs a CUDA device; on a CPU choose float32 or float64")
    return config, options


def launch(config, options, training_class: type[Training], stub_file: str, parse_arguments: Callable) -> int:
    """Run an experiment as the command line asks; returns the exit code. Raises BadInput, Fault, Interrupted.

    parse_arguments: the experiment's, which says what the rungs of a curriculum are."""
    if options.evaluate:
        config = saved_config(options.run_dir, config)
    rungs = rungs_of(config, options.words, options.run_dir, parse_arguments) if options.curriculum else []
    device = choose_device(config.device)
    with StopRequest() as stop, Workers(device, config.backend, config.threads, config.rank_timeout, stop) as workers:
        # A rank without the flag would take part in other exchanges.
        workers.require_equal({"curriculum": [rung.folder for rung in rungs]}, "was started with another configuration")
        if rungs:
            return _climb(rungs, options, training_class, stub_file, workers)
        return _run(config, options, training_class, stub_file, workers)


def _climb(rungs: list[Rung], options, training_class: type[Training], stub_file: str, workers: Workers) -> int:
    """Run the rungs of a curriculum that are not finished yet; returns the exit code."""
    within, log = RunFolder(options.run_dir, {}), Log(options.run_dir, rungs)
    restarted = workers.any(int(os.environ.get("TORCHELASTIC_RESTART_COUNT", 0)) > 0)
    goes_on = options.resume or restarted

    def begin() -> None:
        within.claim()
        log.require_free(replaces=goes_on or options.overwrite)

    def state(number: int) -> str:
        """Of a rung, on rank 0; a finished one has its line then."""
        if number == 0 and not goes_on:
            return "new"
        try:
            state = log.state(number)
            if state == "finished":
                settings = identity_of(dataclasses.replace(rungs[number].config, device=workers.device.type))
                log.folder(number).require_configuration(_of_rung(settings, within))
                with log.folder(number).writing(CURRICULUM):
                    log.add(number)
        except BadInput:
            if restarted and options.overwrite:  # what was to be overwritten is still there
                return "new"
            raise
        if state == "new" and number:
            log.folder(
                number
            ).delete()  # what began with something else, and a rank that is started again would take for its own
        return state

    if not options.dry_run:
        workers.from_main(begin)
    for number, rung in enumerate(rungs):
        now = "new" if options.dry_run else workers.from_main(lambda: state(number))  # noqa: B023, called at once
        if now == "finished":
            continue
        if workers.is_main:
            said = f"rung {number + 1} of {len(rungs)}: {rung.name}"
            print(said, file=sys.stdout if options.dry_run else sys.stderr, flush=True)
        own = {
            "run_dir": log.folder(number).path,
            "resume": now == "begun" or (number == 0 and options.resume),
            "overwrite": options.overwrite and number == 0,
            "preset_from_auto": options.preset_from_auto and number == 0,
            "planned": options.dry_run and number > 0,
        }
        of_rung = argparse.Namespace(**{**vars(options), **own})
        if code := _run(rung.config, of_rung, training_class, stub_file, workers, within):
            return code
        if not options.dry_run:
            with log.folder(number).writing(CURRICULUM):
                workers.from_main(lambda: log.add(number))  # noqa: B023
    if workers.is_main and not options.dry_run:
        print("\n" + log.table() + f"\nsaved in {options.run_dir / CURRICULUM}")
    return 0


def _of_rung(identity: dict, within: RunFolder | None) -> dict:
    """An identity, that of a rung with the place of the rung before it as seen from there: the run folder may be moved."""
    if within is None or not identity["start_from"] or Path(identity["start_from"]).parent != within.path:
        return identity
    return {**identity, "start_from": f"../{Path(identity['start_from']).name}"}


def _run(
    config,
    options,
    training_class: type[Training],
    stub_file: str,
    workers: Workers,
    within: RunFolder | None = None,
) -> int:
    """One run; returns the exit code. within: the folder of the curriculum that it is a rung of."""
    stop, device = workers.stop, workers.device
    config = dataclasses.replace(config, device=device.type)
    made_with = bits_depend_on(workers, stub_file)
    workers.require_equal(made_with, "does not run the same program")
    digits = workers.together(config.load_digits)
    problem = config.problem(digits)
    # Of several nodes not all need to have counted a restart, and all have to ask for the same.
    restarted = workers.any(int(os.environ.get("TORCHELASTIC_RESTART_COUNT", 0)) > 0)
    goes_on = options.resume or options.evaluate or restarted  # from its own checkpoint, if there is one
    planned = getattr(options, "planned", False)  # from a rung that is not there yet
    start = workers.from_main(lambda: load_start(config)) if config.start_from and not (goes_on or planned) else None
    if options.dry_run:
        lines = training_class.costs(config, problem, workers)
        if workers.is_main:
            print(f"preset {options.preset}, {workers.world_size} rank(s) on {device.type}, problem {problem.id}")
            print("\n".join(lines))
        return 0
    if config.public_test_file:
        # Only rank 0 reads it, at the end; that it is the wrong file should be known now.
        workers.from_main(lambda: load_public_test_set(config.public_test_file).shape)
    if config.tensorboard:
        _summary_writer_class()
    # No number depends on these, but all ranks have to meet at the same iterations, and over the same scores.
    meetings = {name: getattr(config, name, 0) for name in ("checkpoint_every", "measure_cosine_every", "horizon")}
    workers.require_equal(meetings, "was started with another configuration")
    identity = {
        **_of_rung(identity_of(config), within),
        **training_class.derived(config, workers),
        "problem_id": problem.id,
    }
    if options.evaluate:
        folder = RunFolder(options.run_dir, identity, added=added_to(config))
        state = workers.from_main(folder.load)
    else:
        folder, state = RunFolder.open(
            options.run_dir, identity, options.resume, options.overwrite, workers, within, added_to(config)
        )
    if state is None and start is None and config.start_from:  # a restart before anything was saved
        start = workers.from_main(lambda: load_start(config))
    # Said after the last refusal of bad input, which is one line and nothing else.
    if workers.is_main and options.preset_from_auto:
        print(f"--preset auto: {options.preset}", file=sys.stderr)
    embeddings = Embeddings(problem, digits, config.train_sequences, workers, config.horizon)
    embeddings.prepare(workers)
    training = training_class(config, problem, embeddings, workers)
    if state is None and start is not None:
        training.take_over(start)
        training.begun_from["validation_mse"] = training.score("validation").mse
        training.begun_from["theta_sha256"] = start["theta_sha256"]
    if state is not None:
        try:
            training.load_state_dict(state)
        except (KeyError, TypeError, ValueError, RuntimeError, AttributeError) as error:
            raise BadInput(
                f"--run-dir {options.run_dir}: its checkpoint does not hold what this version needs ({reason(error)})"
            ) from None
    if options.evaluate:
        _print_score(training)
        return 0
    _remember_what_made_it(training, made_with)
    with stop.while_training(), workers.while_training():
        finished = train(training, folder)
    if not finished:
        if workers.is_main:
            goes_on = within.path if within else folder.path
            print(f"stopped after iteration {training.iteration}; --resume continues {goes_on}", file=sys.stderr)
        if workers.local_rank == 0:
            stop.pass_on()
        return 128 + (stop.signal or signal.SIGTERM)
    if stop.requested:  # since the last exchange
        raise Interrupted(stop.signal)
    finish(training, folder, options.preset, stub_file)
    return 0


# Of which the core and its input are made; the seed and source of the digits, too, which calibrate the embedding.
SAME_CORE = (
    "in_degree", "topology", "weight_scale", "gain", "input_scale", "leak", "reservoir_seed", "encoder_seed", "standardise",
    "data_seed", "digit_source",
)  # fmt: skip


def _has_adapter(get: Callable) -> bool:
    """Of a configuration, by get(name, default): not a network of another kind, nor one of which more than the adapter learns."""
    return get("core", "reservoir") == "reservoir" and get("trains", "adapter") != "all"


def load_start(config) -> dict:
    """The state of the run that --start-from names, of an adapter that does nothing without columns; where --patience has kept the best
    parameters, those. Raises BadInput where it cannot be a beginning of this one."""
    path, said = Path(config.start_from), f"--start-from {config.start_from}"
    try:
        saved = json.loads((path / "config.json").read_text())
        units, grown_from = saved["hidden_size"], saved.get("grown_from", 0)
        leak = saved.get("train_leak", "no")
        adapters = [_has_adapter(saved.get), _has_adapter(lambda name, other: getattr(config, name, other))]
        differing = [name for name in SAME_CORE if saved[name] != getattr(config, name)]
    except FileNotFoundError:
        raise BadInput(f"{said}: holds no run (config.json is missing)") from None
    except (OSError, ValueError, KeyError, TypeError, AttributeError, RecursionError):
        raise BadInput(f"{said}: its config.json is damaged or of something else") from None
    if not all(adapters):
        raise BadInput(f"{said}: only an adapter of the reservoir can be taken over, and only by one")
    if differing:
        raise BadInput(f"{said}: has another {', '.join('--' + name.replace('_', '-') for name in differing)}")
    if units != config.hidden_size and units != config.grown_from:
        raise BadInput(f"{said}: has {units:,} units, and this {config.hidden_size:,}: say --grown-from {units}")
    if grown_from != (config.grown_from if units == config.hidden_size else 0):
        raise BadInput(f"{said}: has another --grown-from: {grown_from}")
    if leak != "no" and getattr(config, "train_leak", "no") not in (leak, "per-unit"):
        raise BadInput(f"{said}: its leak has learned, {leak}: so must this one's (--train-leak)")
    state = load_checkpoint(path / "checkpoint.pt")
    if state["identity"] != fingerprint_of(saved):
        raise BadInput(f"{said}: its checkpoint belongs to another run")
    try:
        if state["best"]:
            best = state["best"]["model"]
            state |= {name: best[name] for name in ("u_Nr", "v_Nr")} | {"leak": {"logit": best.get("logit")}}
            state["decoder"]["linear"] = {name: best[name] for name in ("weight", "bias")}
        columns, rank = state["u_Nr"].shape[1], getattr(config, "rank", 0)
        does_nothing = not (state["u_Nr"].any() and state["v_Nr"].any())
        needed = [state["decoder"]["linear"][name] for name in ("weight", "bias")]
        needed += [state["leak"]["logit"]] if leak != "no" else []
        if not all(isinstance(tensor, Tensor) for tensor in needed):
            raise TypeError
    except (KeyError, TypeError, AttributeError, IndexError):
        raise BadInput(f"{said}: its checkpoint holds no adapter and readout") from None
    if does_nothing:
        state["u_Nr"], state["v_Nr"] = state["u_Nr"][:, :0], state["v_Nr"][:, :0]
    elif not rank:
        raise BadInput(f"{said}: has trained an adapter, which this experiment has none of")
    elif columns > rank:
        raise BadInput(f"{said}: its adapter has {columns} columns; --rank must be no less")
    if leak == "no":
        state.pop("leak", None)
    state["theta_sha256"] = None  # of a run that is not finished
    with contextlib.suppress(OSError, ValueError, TypeError, KeyError, RecursionError):
        state["theta_sha256"] = json.loads((path / "results.json").read_text())["theta_sha256"]
    return state


def _remember_what_made_it(training: Training, made_with: dict) -> None:
    """The same bits are promised for the same code, torch and kind of processor only: say so where a resumed run has others."""
    training.begun_with = training.begun_with or made_with
    if differing := differences(training.begun_with, made_with, "where this run was begun"):
        training.mixed = True
        if training.workers.is_main:
            print(f"this run goes on, but not in the bits of an uninterrupted one: {differing}", file=sys.stderr)


def _summary_writer_class() -> Callable:
    """TensorBoard's writer. Raises BadInput if it is not installed."""
    try:
        from torch.utils.tensorboard import SummaryWriter
    except ImportError:
        raise BadInput("--tensorboard needs the package tensorboard: pip install -e .[tensorboard]") from None
    return SummaryWriter


# --- Training --------------------------------------------------------------------------------------------------------


def train(training: Training, folder: RunFolder) -> bool:
    """Run to the end, or to a stop that was asked for (False). Rank 0 logs, saves and shows progress.

    A stop may come in the middle of an iteration, which is then dropped. Raises Fault after MOST_FAILED iterations in a row
    that have failed, and where a file cannot be written.
    """
    config, workers = training.config, training.workers
    workers.from_main(lambda: folder.begin(training.iteration))
    writer = None
    if config.tensorboard and workers.is_main:
        # purge_step hides what a run that was killed had written beyond the checkpoint it is resumed from.
        after = training.iteration + 1 if training.iteration else 0
        writer = _summary_writer_class()(folder.path / "tensorboard", purge_step=after)

    def save() -> None:
        # Every rank forms its own update: before it is saved, make sure that they are still the same.
        workers.announce(training.iteration, training.parameters())
        workers.meet()
        if workers.is_main:
            folder.save(training.state_dict())

    def log(metrics: dict) -> None:
        if workers.is_main:
            folder.log(metrics)
            for name in metrics.keys() - {"iteration"} if writer else ():
                writer.add_scalar(name, metrics[name], metrics["iteration"])

    if training.iteration == 0:
        save()
        if not training.prepare(workers.is_main):
            save()
            return False
        training.validate()
        log({
            "iteration": 0,
            "validation_mse": training.validation,
            "rollouts": training.rollouts,
            "wallclock_s": training.seconds,
        })  # fmt: skip
        save()
    saved, exchanges = training.iteration, workers.exchanges
    bar = tqdm(
        total=config.iterations,
        initial=training.iteration,
        desc=training.label,
        unit="it",
        disable=not workers.is_main,
        mininterval=0.5 if sys.stderr.isatty() else 15,  # a log file need not hold every step of the bar
        dynamic_ncols=True,
    )
    with bar:
        while not training.finished:
            if training.iteration % CHECK_EVERY == 0:
                workers.announce(training.iteration, training.parameters())
            if workers.exchanges == exchanges:  # an experiment that shares no tiles: ranks hear of a stop nevertheless
                workers.meet()
            exchanges = workers.exchanges
            if workers.stop_agreed:
                break
            try:
                metrics = training.iterate()
            except Stopped:
                break
            if config.roll_in:
                metrics["roll_in"] = probability(config, training.iteration)
            if training.iteration % config.evaluate_every == 0 or training.iteration == config.iterations:
                training.validate()
                metrics["validation_mse"] = training.validation
            training.failed_in_a_row = 0 if math.isfinite(metrics["train_loss"]) else training.failed_in_a_row + 1
            given_up = training.failed_in_a_row >= MOST_FAILED
            log(metrics)
            bar.set_postfix_str(training.progress(metrics), refresh=False)
            bar.update()
            if training.iteration % config.checkpoint_every == 0 or training.finished or given_up:
                save()
                saved = training.iteration
            if given_up:
                raise Fault(
                    f"given up after iteration {training.iteration}: {training.failed_in_a_row} iterations in a row without a "
                    f"finite training loss, {training.advice}; what was learned before is saved in {folder.path}"
                )
        if saved < training.iteration:  # before the bar's last words, for which there may be no reader any more
            save()
    if writer:
        writer.close()
    return training.finished and not workers.stop_agreed


# --- Report ----------------------------------------------------------------------------------------------------------


def _print_score(training: Training) -> None:
    training.restore_best()
    test, validation, ahead_H = training.score("test"), training.score("validation"), training.closed_loop_errors()
    if training.workers.is_main:
        iteration = training.best["iteration"] if training.best else training.iteration
        print(
            f"iteration {iteration}: test MSE {test.mse:.4f}, last frame {test.last_frame:.4f}, "
            f"validation MSE {validation.mse:.4f}"
        )
        if path := training.config.public_test_file:
            print(f"public test set, two digits: MSE {public_score(path, training.embeddings, training.predict):.4f}")
        if ahead_H is not None:
            print_closed_loop(_closed_loop(ahead_H, training.embeddings, trivial_predictors(training.embeddings)))


def _closed_loop(ahead_H: Tensor, embeddings: Embeddings, predictors: dict[str, Tensor]) -> dict:
    """What --horizon adds to results.json."""
    trivial = trivial_closed_loop_errors(embeddings, predictors)
    return {
        "closed_loop_test_mse": ahead_H.tolist(),
        "trivial_closed_loop_test_mse": {name: errors_H.tolist() for name, errors_H in trivial.items()},
    }


def finish(training: Training, folder: RunFolder, preset: str, stub_file: str) -> None:
    """Score the trained model, write figures.npz and results.json, print the headline."""
    training.restore_best()
    test, validation, ahead_H = training.score("test"), training.score("validation"), training.closed_loop_errors()
    if training.workers.is_main:
        steps = tqdm(desc="scoring", unit="step", leave=False)
        predictors = trivial_predictors(training.embeddings)
        trivial = trivial_scores(training.embeddings, predictors)
        steps.update()
        results = _results(training, test, validation, trivial, preset, stub_file, steps)
        if ahead_H is not None:
            results |= _closed_loop(ahead_H, training.embeddings, predictors)
        figures = figure_data(training, test, trivial["test"])
        radius = float(np.abs(figures["eigenvalues_frozen"]).max())
        if np.isfinite(radius):
            results["spectral_radius"] = radius
        steps.update()
        steps.close()
        if broken := [key for key, value in results.items() if not _is_finite(value)]:
            raise Fault(
                f"{broken[0]} is not finite: {training.advice}; no result is written, the run is saved in {folder.path}"
            )
        buffer = io.BytesIO()
        np.savez_compressed(buffer, **figures)
        folder.finish(buffer.getvalue(), results)
        print_headline(results, folder.path)
    training.workers.barrier()


def _is_finite(value) -> bool:
    """Whether a number, or all numbers in a list or table, are finite; what is none of these counts as such."""
    if isinstance(value, dict | list):
        return all(map(_is_finite, value.values() if isinstance(value, dict) else value))
    return not isinstance(value, float) or math.isfinite(value)


def _results(
    training: Training,
    test: Score,
    validation: Score,
    trivial: dict[str, dict[str, Score]],
    preset: str,
    stub_file: str,
    steps: tqdm,
) -> dict:
    """results.json, schema 1 (see SPEC.md)."""
    config, problem, workers, embeddings = training.config, training.problem, training.workers, training.embeddings

    def ridge_of(states: Callable[[Tensor], Tensor]) -> dict[str, Score]:
        scores, penalty = ridge_scores(states, config.hidden_size, embeddings, workers.map_on_node)
        penalties.append(penalty)
        steps.update()
        return scores

    penalties: list[float] = []
    ridge = {"": ridge_of(training.states)}
    if training.core_is_frozen():
        ridge["_at_start"] = ridge[""]
    elif training.starts_from_reservoir:
        frozen = Rollout(problem.reservoir(), config.leak, 1.0, workers.device, training.rollout.dtype)
        none_N1 = torch.zeros(config.hidden_size, 1, device=workers.device)
        ridge["_at_start"] = ridge_of(lambda input_TEB: frozen.states(none_N1, none_N1, frozen.drive(input_TEB)))
        if control := training.control():
            ridge["_shuffled"] = ridge_of(control)
    results = {
        "schema": SCHEMA,
        "stub": Path(stub_file).resolve().parent.name,
        "seed": config.seed,
        "preset": preset,
        "problem_id": problem.id,
        "problem": problem.description,
        "config": dataclasses.asdict(config),
        "test_mse": test.mse,
        "test_mse_last_frame": test.last_frame,
        "validation_mse": validation.mse,
        **{f"ridge_{split}_mse{which}": scores[split].mse for which, scores in ridge.items() for split in SCORED},
        **{
            f"trivial_{split}_mse": {
                name: {"all": s.mse, "last_frame": s.last_frame} for name, s in trivial[split].items()
            }
            for split in SCORED
        },
        "ridge_penalty": penalties[0],
        "iterations": training.iteration,
        **({"best_iteration": training.best["iteration"]} if training.best else {}),
        **({"role": role} if (role := training.role(config)) else {}),
        "rollouts": training.rollouts,
        "wallclock_s": training.seconds,
        **_taken_over(training),
        "theta_sha256": sha256_of_tensors(*training.trained_tensors()),
        "environment": environment(workers),
        "source": source(stub_file, training.mixed),
    }
    if config.public_test_file:
        results["public_test_mse"] = public_score(config.public_test_file, embeddings, training.predict)
    results["reproduces"] = training.reproduces(results)
    return results


def _taken_over(training: Training) -> dict:
    """What --start-from adds to results.json."""
    begun = training.begun_from or {}
    told = {"validation_mse_taken_over": begun.get("validation_mse"), "start_theta_sha256": begun.get("theta_sha256")}
    return {key: value for key, value in told.items() if value is not None}


def print_headline(results: dict, folder: Path) -> None:
    """The trained model against the predictors that know no reservoir, and against its own frozen core."""
    last_frame = results["config"]["sequence_length"] + 1
    rows = [
        (TRIVIAL_NAMES[name], entry["all"], entry["last_frame"]) for name, entry in results["trivial_test_mse"].items()
    ]
    if "ridge_test_mse_at_start" in results:
        rows.append(("frozen core, ridge readout", results["ridge_test_mse_at_start"], None))
    rows.append(("trained core, ridge readout", results["ridge_test_mse"], None))
    rows.append(("trained core, its own decoder", results["test_mse"], results["test_mse_last_frame"]))
    print(f"\n{'test MSE (1 = predicts the mean)':34}  {f'frames 2–{last_frame}':>11}  {f'frame {last_frame}':>8}")
    for name, everywhere, last in rows:
        print(f"{name:34}  {everywhere:11.4f}" + (f"  {last:8.4f}" if last is not None else ""))
    if "closed_loop_test_mse" in results:
        print_closed_loop(results)
    print(
        f"seed {results['seed']}, {results['iterations']:,} iterations, {results['rollouts']:,} rollouts, "
        f"{duration(results['wallclock_s'])} of training; reproduces: {results['reproduces']}; saved in {folder}"
    )


def print_closed_loop(results: dict) -> None:
    """Test MSE by horizon, of the model and of the predictors that know no reservoir."""
    columns = {TRIVIAL_NAMES[name]: errors for name, errors in results["trivial_closed_loop_test_mse"].items()}
    columns["this model"] = results["closed_loop_test_mse"]
    print(f"\n{'closed loop: frames ahead':34}" + "".join(f"{name:>13}" for name in columns))
    for ahead, errors in enumerate(zip(*columns.values()), start=1):
        print(f"{ahead:<34}" + "".join(f"{error:13.4f}" for error in errors))
