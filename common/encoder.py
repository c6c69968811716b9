"""The frozen encoder: a random CNN that turns a frame into 128 numbers, and the standardisation of those numbers.

    frame (64×64, in [0, 1]) → 3 × [conv 3×3, stride 2, padding 1 → ReLU] → global average pool → z ∈ R^128 → (z − mean) / std

The weights are Kaiming-normal (He et al. 2015, std = √(2 / fan-in)) with zero bias, drawn from Philox by `seed`, and never
trained. Mean and standard deviation per dimension come from a calibration set that is the same for every problem: one
digit, 21 frames, the first sequences of the training split. An MSE near 1.0 therefore means "predicts the mean".

Frames are encoded in tiles of one fixed, padded size: results of a convolution depend on the batch size in the last bits.
"""

from collections.abc import Callable

import numpy as np
import torch
from torch import Tensor
from torch.nn import functional

from common.moving_mnist import CANVAS, MovingMNIST
from common.philox import Purpose, gaussian

CHANNELS = (1, 32, 64, 128)
EMBEDDING = CHANNELS[-1]
TILE = 128  # frames
CALIBRATION_SEQUENCES = 1000
CALIBRATION_FRAMES = 21


class Encoder:
    """The frozen CNN with an affine map behind it.

    weights: three float32 (out, in, 3, 3). shift_E, scale_E: float32 (128,), z = (pooled − shift) · scale.
    """

    def __init__(self, seed: int, device: torch.device | str = "cpu"):
        self.device = torch.device(device)
        self.weights = []
        for layer, (fan_in, fan_out) in enumerate(zip(CHANNELS[:-1], CHANNELS[1:], strict=True)):
            draw = gaussian(seed, Purpose.ENCODER, (layer, 0), fan_out * fan_in * 9)
            weight = (draw * (2 / (fan_in * 9)) ** 0.5).reshape(fan_out, fan_in, 3, 3)
            self.weights.append(weight.to(self.device).contiguous(memory_format=torch.channels_last))
        self.shift_E = torch.zeros(EMBEDDING, device=self.device)
        self.scale_E = torch.ones(EMBEDDING, device=self.device)

    @torch.no_grad()
    def encode_tile(self, frames_BYX: Tensor) -> Tensor:
        """uint8 (TILE, 64, 64) → float32 (TILE, 128)."""
        x = (
            frames_BYX.to(self.device, torch.float32)
            .div_(255)
            .unsqueeze(1)
            .contiguous(memory_format=torch.channels_last)
        )
        for weight in self.weights:
            x = functional.relu_(functional.conv2d(x, weight, stride=2, padding=1))
        return (x.mean(dim=(2, 3)) - self.shift_E) * self.scale_E

    def encode(self, frames_MYX: Tensor, map_tiles: Callable = map) -> Tensor:
        """uint8 (M, 64, 64) → float32 (M, 128), in tiles of TILE frames, the last one padded with black frames.

        `map_tiles` runs the tiles: `map`, or the `map` of a thread pool.
        """
        count = len(frames_MYX)
        padded = -(-count // TILE) * TILE
        if padded != count:
            frames_MYX = torch.cat((frames_MYX, frames_MYX.new_zeros(padded - count, CANVAS, CANVAS)))
        return torch.cat(list(map_tiles(self.encode_tile, frames_MYX.split(TILE))))[:count]

    def calibrate(self, data: MovingMNIST, map_tiles: Callable = map) -> None:
        """Set shift and scale from the calibration set. A channel that never varies keeps scale 1: its z is 0."""
        calibration = MovingMNIST(data.digits, 1, CALIBRATION_FRAMES, data.seed)
        frames = torch.from_numpy(calibration.frames("train", np.arange(CALIBRATION_SEQUENCES)))
        z_ME = self.encode(frames.flatten(0, 1), map_tiles).to("cpu", torch.float64)
        mean_E, std_E = z_ME.mean(dim=0), z_ME.std(dim=0, correction=0)
        alive_E = std_E > 1e-6 * std_E.max()
        self.shift_E = mean_E.to(self.device, torch.float32)
        self.scale_E = torch.where(alive_E, 1 / std_E.clamp_min(1e-30), 1.0).to(self.device, torch.float32)
