"""How a model is scored: errors by target frame, a refitted ridge readout, and the predictors that know no reservoir.

Every predictor is scored on the same targets, frames 2 … T+1, and on frame T+1 alone. Errors are mean squared errors over
sequences and the 128 standardised dimensions, divided by `Embeddings.error_scale`.
"""

from collections.abc import Callable, Iterable
from dataclasses import dataclass

import numpy as np
import torch
from torch import Tensor
from tqdm import tqdm

from common.dist import Workers
from common.encoder import EMBEDDING
from common.moving_mnist import load_public_test_set
from common.problem import Embeddings
from common.ridge import NormalEquations
from common.rollout import Rollout, SharedAdapter

SCORED = ("validation", "test")
TILE = 128  # sequences
RIDGE_TILE = 64
GRAM_BYTES = 2**28  # of Gram matrices that are held at a time: 8 of them at N = 2000, one or two from N = 4000 on
RIDGE_SEQUENCES = 50_000  # at most
TRIVIAL_SEQUENCES = 4000  # at most: 384 coefficients a dimension need no more
PENALTIES = tuple(10.0**power for power in range(-6, 1))  # relative to the mean diagonal of the Gram matrix


@dataclass(frozen=True)
class Score:
    """by_frame_T float64 (T,): MSE on target frames 2 … T+1."""

    by_frame_T: Tensor

    @property
    def mse(self) -> float:
        return float(self.by_frame_T.mean())

    @property
    def last_frame(self) -> float:
        return float(self.by_frame_T[-1])


def sequence_tiles(count: int, size: int) -> list[tuple[Tensor, int]]:
    """Index tiles of one fixed size: (int64 (size,), number that count). The last tile repeats its last index as padding."""
    starts = range(0, count, size)
    return [(torch.arange(s, s + size).clamp(max=count - 1), min(size, count - s)) for s in starts]


def inputs_and_targets(z_BFE: Tensor) -> tuple[Tensor, Tensor]:
    """(B, T+1, 128) → inputs z_1 … z_T and targets z_2 … z_{T+1}, each (T, 128, B)."""
    z_FEB = z_BFE.permute(1, 2, 0).contiguous()
    return z_FEB[:-1], z_FEB[1:]


def score(
    rollout: Rollout,
    u_Nr: Tensor,
    v_Nr: Tensor,
    decoder: torch.nn.Linear,
    embeddings: Embeddings,
    split: str,
    workers: Workers,
) -> Score:
    """Score the unperturbed parameters with their decoder on a whole split, its tiles shared among all ranks."""
    tiles = sequence_tiles(embeddings.sizes[split], TILE)
    u_Nr, v_Nr = u_Nr.to(rollout.dtype), v_Nr.to(rollout.dtype)

    def evaluate(tile: int) -> Tensor:
        index_B, valid = tiles[tile]
        input_TEB, target_TEB = inputs_and_targets(embeddings.get(split, index_B))
        drive_TNDSB = rollout.drive(input_TEB)[:, :, None, None]
        adapter = SharedAdapter(u_Nr, v_Nr)
        target_TEDSB, columns = target_TEB[:, :, None, None], (1, 1, TILE)
        # Outside the guard or not, what the network predicts is scored.
        result = rollout.errors(
            adapter, drive_TNDSB, target_TEDSB, decoder.weight, decoder.bias, columns, end_early=False
        )
        return result.error_TC[:, :valid].sum(dim=1)

    steps = embeddings.problem.sequence_length
    total_T = workers.run_tiles(evaluate, len(tiles), steps).sum(dim=0)
    return Score(total_T / (embeddings.sizes[split] * EMBEDDING * embeddings.error_scale))


def score_predictions(
    predict: Callable[[Tensor], Tensor], embeddings: Embeddings, split: str, workers: Workers
) -> Score:
    """As `score`, for any model: predict takes inputs (T, 128, B) to predictions (T, 128, B)."""
    tiles = sequence_tiles(embeddings.sizes[split], TILE)

    def evaluate(tile: int) -> Tensor:
        index_B, valid = tiles[tile]
        input_TEB, target_TEB = inputs_and_targets(embeddings.get(split, index_B))
        error_TB = (predict(input_TEB) - target_TEB).square_().sum(dim=1)
        return error_TB[:, :valid].to(torch.float64).sum(dim=1)

    total_T = workers.run_tiles(evaluate, len(tiles), embeddings.problem.sequence_length).sum(dim=0)
    return Score(total_T / (embeddings.sizes[split] * EMBEDDING * embeddings.error_scale))


# --- Ridge -----------------------------------------------------------------------------------------------------------


def fit_ridge(
    train: Iterable[tuple[Tensor, Tensor]],
    validation_errors: Callable[[list[Tensor]], list[float]],
    features: int,
    map_tiles: Callable = map,
) -> tuple[Tensor, float]:
    """Fit on the products of `train`, choose the penalty by `validation_errors` of all candidates; (weights, penalty)."""
    equations = NormalEquations(features)
    for products in train:
        equations.add(products)
    at_once = map_tiles if equations.gram_FF.nbytes <= GRAM_BYTES else map
    candidates = list(at_once(equations.solve, PENALTIES))
    errors = validation_errors(candidates)
    best = min(range(len(candidates)), key=errors.__getitem__)
    return candidates[best], PENALTIES[best]


def ridge_scores(
    states: Callable[[Tensor], Tensor], size: int, embeddings: Embeddings, map_tiles: Callable
) -> tuple[dict[str, Score], float]:
    """Scores on "validation" and "test" of a ridge readout refitted on the states of a core, and its relative penalty.

    states: inputs (T, 128, B) → states (size, T, B). Fitted on all training sequences, or the first RIDGE_SEQUENCES of
    them, penalty chosen on validation. Runs on one rank.
    """

    def states_and_targets(split: str, index_B: Tensor) -> tuple[Tensor, Tensor]:
        input_TEB, target_TEB = inputs_and_targets(embeddings.get(split, index_B))
        states_NTB = states(input_TEB)
        dtype = torch.promote_types(states_NTB.dtype, torch.float32)  # half precision would blur errors
        return states_NTB.to(dtype), target_TEB.transpose(0, 1).to(dtype)

    def products(tile: tuple[Tensor, int]) -> tuple[Tensor, Tensor]:
        states_NTB, target_ETB = states_and_targets("train", tile[0][: tile[1]])
        return NormalEquations.products(states_NTB.flatten(1), target_ETB.flatten(1))

    def errors(candidates: list[Tensor], split: str) -> list[Score]:
        def tile_errors(tile: tuple[Tensor, int]) -> Tensor:
            states_NTB, target_ETB = states_and_targets(split, tile[0])
            rows = []
            for weights_FE in candidates:
                weights_FE = weights_FE.to(states_NTB.device, states_NTB.dtype)
                prediction_EM = torch.addmm(weights_FE[-1][:, None], weights_FE[:-1].T, states_NTB.flatten(1))
                error_TB = (prediction_EM - target_ETB.flatten(1)).square_().sum(dim=0).view(states_NTB.shape[1:])
                rows.append(error_TB[:, : tile[1]].to(torch.float64).sum(dim=1).cpu())
            return torch.stack(rows)

        tiles = sequence_tiles(embeddings.sizes[split], RIDGE_TILE)
        total_KT = torch.stack(list(map_tiles(tile_errors, tiles))).sum(dim=0)
        scale = embeddings.sizes[split] * EMBEDDING * embeddings.error_scale
        return [Score(total_T / scale) for total_T in total_KT]

    train_tiles = sequence_tiles(min(RIDGE_SEQUENCES, embeddings.sizes["train"]), RIDGE_TILE)
    group = max(1, GRAM_BYTES // (8 * (size + 1) ** 2))
    groups = (train_tiles[start : start + group] for start in range(0, len(train_tiles), group))
    train = (result for group in groups for result in map_tiles(products, group))
    weights_FE, penalty = fit_ridge(train, lambda w: [score.mse for score in errors(w, "validation")], size, map_tiles)
    return {split: errors([weights_FE], split)[0] for split in SCORED}, penalty


# --- Predictors without a reservoir ----------------------------------------------------------------------------------


def lagged(z_BFE: Tensor, order: int, before_E: Tensor) -> Tensor:
    """Features of an AR(order) predictor, float64 (order · 128, T · B): z_t, z_{t−1}, …, and `before_E` before frame 1."""
    inputs_EFB = z_BFE[:, :-1].permute(2, 1, 0).to(torch.float64)
    padding_EFB = before_E[:, None, None].expand(-1, order - 1, inputs_EFB.shape[2])
    padded_EFB, steps = torch.cat((padding_EFB, inputs_EFB), dim=1), inputs_EFB.shape[1]
    return torch.cat([padded_EFB[:, order - 1 - lag :][:, :steps] for lag in range(order)]).flatten(1)


def trivial_scores(embeddings: Embeddings) -> dict[str, dict[str, Score]]:
    """{"validation", "test"} → {"mean", "copy_last", "ar1", "ar3"} → Score.

    Means and regressions are taken from the first TRIVIAL_SEQUENCES training sequences.
    """
    count = min(TRIVIAL_SEQUENCES, embeddings.sizes["train"])
    z = {
        "train": embeddings.get("train", torch.arange(count)),
        "validation": embeddings.get("validation", torch.arange(embeddings.sizes["validation"])),
        "test": embeddings.get("test", torch.arange(embeddings.sizes["test"])),
    }
    z = {split: z_BFE.cpu() for split, z_BFE in z.items()}
    target_EM = {split: z_BFE[:, 1:].permute(2, 1, 0).flatten(1).to(torch.float64) for split, z_BFE in z.items()}
    steps = embeddings.problem.sequence_length

    def score_of(prediction_EM: Tensor, split: str) -> Score:
        error_TB = (prediction_EM - target_EM[split]).square().mean(dim=0).view(steps, -1)
        return Score(error_TB.mean(dim=1) / embeddings.error_scale)

    mean_E1 = target_EM["train"].mean(dim=1, keepdim=True)
    scores = {
        split: {"mean": score_of(mean_E1, split), "copy_last": score_of(lagged(z[split], 1, mean_E1[:, 0]), split)}
        for split in SCORED
    }
    for order in (1, 3):
        features = {split: lagged(z_BFE, order, mean_E1[:, 0]) for split, z_BFE in z.items()}

        def predicted_score(weights_FE: Tensor, split: str, features=features) -> Score:
            return score_of(weights_FE[:-1].T @ features[split] + weights_FE[-1][:, None], split)

        products = NormalEquations.products(features["train"], target_EM["train"])
        weights_FE, _ = fit_ridge(
            [products],
            lambda candidates, score=predicted_score: [score(w, "validation").mse for w in candidates],
            order * EMBEDDING,
        )
        for split in SCORED:
            scores[split][f"ar{order}"] = predicted_score(weights_FE, split)
    return scores


def public_score(path: str, embeddings: Embeddings, predict: Callable[[Tensor], Tensor]) -> float:
    """MSE on the public two-digit test file, divided by the variance of its targets.

    predict: inputs (T, 128, B) → predictions (T, 128, B). The file has 20 frames: targets are frames 2 … 20.
    """
    frames = load_public_test_set(path)
    errors, count = 0.0, 0
    total_E, squares_E = torch.zeros(EMBEDDING, dtype=torch.float64), torch.zeros(EMBEDDING, dtype=torch.float64)
    for start in tqdm(range(0, len(frames), 100), desc="public test set", unit="00 seq", leave=False):
        frames_BFYX = torch.from_numpy(np.array(frames[start : start + 100]))
        input_TEB, target_TEB = inputs_and_targets(embeddings.encode_frames(frames_BFYX))
        target_EM = target_TEB.transpose(0, 1).flatten(1).to("cpu", torch.float64)
        prediction_EM = predict(input_TEB).transpose(0, 1).flatten(1).to("cpu", torch.float64)
        errors += float((prediction_EM - target_EM).square().sum())
        total_E += target_EM.sum(dim=1)
        squares_E += target_EM.square().sum(dim=1)
        count += target_EM.shape[1]
    variance = float((squares_E / count - (total_E / count).square()).mean())
    return errors / (count * EMBEDDING) / variance
