"""How a model is scored: errors by target frame, a refitted ridge readout, and the predictors that know no reservoir.

Every predictor is scored on the same targets, frames 2 … T+1, and on frame T+1 alone; and, in closed loop, on frames T+1 … T+H,
where it has read frames 1 … T and goes on with its own predictions. Errors are mean squared errors over sequences and the 128
standardised dimensions, divided by `Embeddings.error_scale`.
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


def closed_loop_errors(predict: Callable[[Tensor], Tensor], embeddings: Embeddings, workers: Workers) -> Tensor:
    """Test MSE by horizon, float64 (H,): entry k − 1 is that of frame T+k. Tiles are shared among all ranks.

    predict: frames 1 … T, float32 (T, 128, B), to predictions of frames T+1 … T+H, float32 (H, 128, B).
    """
    steps, tiles = embeddings.problem.sequence_length, sequence_tiles(embeddings.sizes["test"], TILE)

    def evaluate(tile: int) -> Tensor:
        index_B, valid = tiles[tile]
        z_FEB = embeddings.longer.get("test", index_B).permute(1, 2, 0).contiguous()
        error_HB = (predict(z_FEB[:steps]) - z_FEB[steps:]).square_().sum(dim=1)
        return error_HB[:, :valid].to(torch.float64).sum(dim=1)

    total_H = workers.run_tiles(evaluate, len(tiles), embeddings.horizon).sum(dim=0)
    return total_H / (embeddings.sizes["test"] * EMBEDDING * embeddings.error_scale)


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


def trivial_predictors(embeddings: Embeddings) -> dict[str, Tensor]:
    """{"mean", "copy_last", "ar1", "ar3"} → weights, float64 (order · 128 + 1, 128), of the features `lagged` and, in the last row, of 1.

    Means and regressions are taken from the first TRIVIAL_SEQUENCES training sequences.
    """
    z_BFE = embeddings.get("train", torch.arange(min(TRIVIAL_SEQUENCES, embeddings.sizes["train"]))).cpu()
    target_EM = z_BFE[:, 1:].permute(2, 1, 0).flatten(1).to(torch.float64)
    mean_1E, none_EE = target_EM.mean(dim=1)[None], torch.zeros(EMBEDDING, EMBEDDING, dtype=torch.float64)
    predictors = {
        "mean": torch.cat((none_EE, mean_1E)),
        "copy_last": torch.cat((torch.eye(EMBEDDING, dtype=torch.float64), none_EE[:1])),
    }
    for order in (1, 3):
        products = NormalEquations.products(lagged(z_BFE, order, mean_1E[0]), target_EM)
        predictors[f"ar{order}"], _ = fit_ridge(
            [products],
            lambda candidates: [score.mse for score in affine_scores(candidates, mean_1E[0], embeddings, "validation")],
            order * EMBEDDING,
        )
    return predictors


def trivial_scores(embeddings: Embeddings, predictors: dict[str, Tensor]) -> dict[str, dict[str, Score]]:
    """{"validation", "test"} → {name of a predictor → Score}; predictors: as of `trivial_predictors`."""
    before_E = predictors["mean"][-1]
    return {
        split: {name: affine_scores([w], before_E, embeddings, split)[0] for name, w in predictors.items()}
        for split in SCORED
    }


def affine_scores(candidates: list[Tensor], before_E: Tensor, embeddings: Embeddings, split: str) -> list[Score]:
    """Scores of predictors of one order, given by weights as of `trivial_predictors`; before_E: what stands before frame 1."""
    z_BFE = embeddings.get(split, torch.arange(embeddings.sizes[split])).cpu()
    features_FM = lagged(z_BFE, len(candidates[0]) // EMBEDDING, before_E)
    target_EM = z_BFE[:, 1:].permute(2, 1, 0).flatten(1).to(torch.float64)

    def score_of(weights_FE: Tensor) -> Score:
        prediction_EM = weights_FE[:-1].T @ features_FM + weights_FE[-1][:, None]
        error_TB = (prediction_EM - target_EM).square().mean(dim=0).view(z_BFE.shape[1] - 1, -1)
        return Score(error_TB.mean(dim=1) / embeddings.error_scale)

    return [score_of(weights_FE) for weights_FE in candidates]


def trivial_closed_loop_errors(embeddings: Embeddings, predictors: dict[str, Tensor]) -> dict[str, Tensor]:
    """`closed_loop_errors` of the same predictors: {name → test MSE by horizon, float64 (H,)}. Runs on one rank."""
    steps, before_E, errors = embeddings.problem.sequence_length, predictors["mean"][-1], {}
    z_BFE = embeddings.longer.get("test", torch.arange(embeddings.sizes["test"])).cpu()
    for name, weights_FE in predictors.items():
        order = len(weights_FE) // EMBEDDING
        last_BFE = z_BFE[:, max(steps - order, 0) : steps + 1]
        features_FB = lagged(last_BFE, order, before_E)[:, -len(z_BFE) :]  # those of the last step
        errors_H = []
        for target_BE in z_BFE[:, steps:].unbind(dim=1):
            prediction_EB = weights_FE[:-1].T @ features_FB + weights_FE[-1][:, None]
            errors_H.append((prediction_EB.T - target_BE).square().mean())
            features_FB = torch.cat((prediction_EB, features_FB[:-EMBEDDING]))
        errors[name] = torch.stack(errors_H) / embeddings.error_scale
    return errors


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
