"""What steps a core along its gradient, however that was come by."""

from collections.abc import Iterable

import torch
from torch import Tensor

OPTIMIZERS = ("adam", "muon")


def make_optimizer(name: str, factors: Iterable[Tensor], rate: float, momentum: float) -> torch.optim.Optimizer:
    """Adam, or Muon (Jordan et al. 2024): momentum whose singular values are all made about 1 before it is stepped along, so that all
    columns of a matrix learn at once, where its gradient is nearly of rank one. (Torch makes them so in five steps of an iteration in bfloat16:
    between about 0.5 and 1.5, and those below some thousandths of the gradient's norm stay smaller.)

    Each factor is a group with a learning rate of its own. Muon's is scaled so that a step's root mean square is a fifth of the rate (Liu et al. 2025,
    arXiv:2502.16982); Adam has no use for `momentum`, and Muon takes matrices only.
    """
    groups = [{"params": [factor]} for factor in factors]
    if name == "adam":
        return torch.optim.Adam(groups, lr=rate, foreach=False)
    # Whatever the gradient's size: it is divided by its norm, or by eps where that is larger.
    eps = torch.finfo(torch.float32).tiny
    return torch.optim.Muon(
        groups, lr=rate, momentum=momentum, weight_decay=0.0, adjust_lr_fn="match_rms_adamw", eps=eps
    )
