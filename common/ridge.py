"""Ridge regression from normal equations: sums over samples that can be streamed, weighted and solved at any time."""

import torch
from torch import Tensor

from common.encoder import EMBEDDING


class NormalEquations:
    """Ridge regression y ≈ W x + c from (x 1)(x 1)ᵀ and (x 1) yᵀ summed over samples in `dtype`, solved in float64.

    A Gram matrix is symmetric: only its blocks on and above the diagonal are multiplied out, which halves the time.
    """

    BLOCKS = 4

    def __init__(
        self, features: int, targets: int = EMBEDDING, dtype=torch.float64, device: torch.device | str = "cpu"
    ):
        self.gram_FF = torch.zeros(
            features + 1, features + 1, dtype=dtype, device=device
        )  # valid on and above the diagonal
        self.cross_FE = torch.zeros(features + 1, targets, dtype=dtype, device=device)

    @classmethod
    def products(cls, x_FM: Tensor, y_EM: Tensor, dtype=torch.float64) -> tuple[Tensor, Tensor]:
        """(x 1)(x 1)ᵀ on and above the diagonal, and (x 1) yᵀ, of M samples; features and targets along the first axis."""
        x_FM = torch.cat((x_FM, x_FM.new_ones(1, x_FM.shape[1]))).to(dtype)
        gram_FF = x_FM.new_zeros(len(x_FM), len(x_FM))
        edges = [round(block * len(x_FM) / cls.BLOCKS) for block in range(cls.BLOCKS + 1)]
        for start, stop in zip(edges, edges[1:]):
            torch.mm(x_FM[start:stop], x_FM[start:].T, out=gram_FF[start:stop, start:])
        return gram_FF, x_FM @ y_EM.to(dtype).T

    def add(self, products: tuple[Tensor, Tensor], keep: float = 1.0) -> None:
        """Add the products of more samples to `keep` times those so far; keep < 1 forgets exponentially."""
        self.gram_FF.mul_(keep).add_(products[0].to(self.gram_FF.device))
        self.cross_FE.mul_(keep).add_(products[1].to(self.cross_FE.device))

    def solve(self, penalty: float) -> Tensor:
        """float64 (F+1, E), the last row the constant; the constant is not penalised.

        penalty: added to the diagonal, relative to its mean.
        """
        gram_FF = self.gram_FF.to(torch.float64).triu()
        gram_FF.add_(gram_FF.triu(1).T)
        diagonal_F = gram_FF.diagonal()[:-1]
        size = float(diagonal_F.mean())
        # States that are next to nothing get no weight: what would make something of them is no number in float32.
        diagonal_F += penalty * size if not size < 1e-60 else 1.0
        return torch.linalg.solve(gram_FF, self.cross_FE.to(torch.float64))
