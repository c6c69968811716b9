"""The frozen reservoir: how it is drawn, and one plain step of it.

    h_t = (1 − α) h_{t−1} + α tanh(W0 h_{t−1} + U (Vᵀ h_{t−1}) + Win z_t + b),     h_0 = 0
    ẑ_{t+1} = Wout h_t + bout

W0 and Win are drawn once from Philox and stay; the adapter (U, V) is what an experiment trains. `rollout_reference` is the
equation written down as a loop over time, in any dtype and under autograd: what everything faster is tested against.
"""

from dataclasses import dataclass

import torch
from torch import Tensor
from torch.nn import functional

from common.encoder import EMBEDDING
from common.errors import BadInput
from common.philox import MASK, Purpose, gaussian, stream_words

TOPOLOGIES = ("fixed-in-degree", "erdos-renyi")
WEIGHT_SCALES = ("std", "variance")


@dataclass(frozen=True)
class Reservoir:
    """A frozen draw.

    index_Nk int64 (N, k), value_Nk float32 (N, k): row i of W0 holds value[i, j] at column index[i, j]. An Erdős–Rényi draw
    pads its rows to the longest with value 0 at column 0. input_NE float32 (N, 128): Win. bias_N float32 (N,).
    """

    index_Nk: Tensor
    value_Nk: Tensor
    input_NE: Tensor
    bias_N: Tensor

    @property
    def size(self) -> int:
        return self.index_Nk.shape[0]

    def dense(self) -> Tensor:
        """W0 as float32 (N, N)."""
        weight_NN = torch.zeros(self.size, self.size, dtype=self.value_Nk.dtype, device=self.value_Nk.device)
        return weight_NN.scatter_add_(1, self.index_Nk, self.value_Nk)

    def to(self, device: torch.device | str, dtype: torch.dtype) -> "Reservoir":
        """The same draw elsewhere; weights are rounded to `dtype`."""
        return Reservoir(
            self.index_Nk.to(device),
            self.value_Nk.to(device, dtype),
            self.input_NE.to(device, dtype),
            self.bias_N.to(device, dtype),
        )


def draw_reservoir(
    size: int,
    in_degree: int,
    seed: int,
    gain: float = 0.8,
    input_scale: float = 0.03,
    topology: str = "fixed-in-degree",
    weight_scale: str = "std",
) -> Reservoir:
    """Draw W0 and Win on the CPU.

    weight_scale: "std" gives W0's entries a standard deviation of gain/√k (spectral radius ≈ gain); "variance" reads the
    brief's "variance scaled by 1/√k" literally (variance gain/√k).
    Raises BadInput if in_degree > size.
    """
    if in_degree > size:
        raise BadInput(f"--in-degree must not exceed --hidden-size: {in_degree} > {size}")
    rows = torch.arange(size)
    if topology == "fixed-in-degree":
        index_Nk = torch.cat([_distinct_columns(rows[i : i + 256], size, in_degree, seed) for i in range(0, size, 256)])
        present_Nk = torch.ones_like(index_Nk, dtype=torch.float32)
    else:
        index_Nk, present_Nk = _bernoulli_columns(rows, size, in_degree, seed)
    std = gain / in_degree**0.5 if weight_scale == "std" else (gain / in_degree**0.5) ** 0.5
    value_Nk = gaussian(seed, Purpose.RESERVOIR_VALUE, (rows, 0), index_Nk.shape[1]) * std * present_Nk
    input_NE = gaussian(seed, Purpose.INPUT_WEIGHTS, (rows, 0), EMBEDDING) * input_scale
    return Reservoir(index_Nk, value_Nk, input_NE, torch.zeros(size))


def grown(old: Reservoir, new: Reservoir) -> Reservoir:
    """`new` with the units of `old` as its first: these hear one another as before and none of the others, which hear all.

    Whatever state the others are in, the first are in that of `old`.
    """
    width = max(old.index_Nk.shape[1], new.index_Nk.shape[1])

    def joined(old_NX: Tensor, new_NX: Tensor) -> Tensor:  # rows are padded by value 0 at column 0
        both = (functional.pad(x_NX, (0, width - x_NX.shape[1])) for x_NX in (old_NX, new_NX[old.size :]))
        return torch.cat(tuple(both))

    return Reservoir(
        joined(old.index_Nk, new.index_Nk),
        joined(old.value_Nk, new.value_Nk),
        torch.cat((old.input_NE, new.input_NE[old.size :])),
        torch.cat((old.bias_N, new.bias_N[old.size :])),
    )


def _distinct_columns(rows_M: Tensor, size: int, in_degree: int, seed: int) -> Tensor:
    """int64 (M, k): k distinct columns a row, ascending. Each column gets a random word, the k smallest are taken."""
    words_MN = stream_words(seed, Purpose.RESERVOIR_INDEX, (rows_M, 0), size)
    unique_MN = words_MN * size + torch.arange(size)  # ties between words fall to the lower column
    return (unique_MN.topk(in_degree, dim=1, largest=False).values % size).sort(dim=1).values


def _bernoulli_columns(rows_N: Tensor, size: int, in_degree: int, seed: int) -> tuple[Tensor, Tensor]:
    """Erdős–Rényi: each entry is present with probability k/N. Returns index (N, longest) and presence (N, longest)."""
    threshold = round(in_degree / size * (MASK + 1))
    present_NN = torch.cat(
        [
            stream_words(seed, Purpose.RESERVOIR_INDEX, (rows_N[i : i + 256], 0), size) < threshold
            for i in range(0, size, 256)
        ]
    )
    longest = max(int(present_NN.sum(dim=1).max()), 1)
    index_Nk = present_NN.to(torch.int8).sort(dim=1, descending=True, stable=True).indices[:, :longest]
    present_Nk = present_NN.gather(1, index_Nk)
    return index_Nk * present_Nk, present_Nk.to(torch.float32)


def spectral_radius(eigenvalues_N: Tensor) -> float:
    """Largest modulus among complex eigenvalues (N,)."""
    return float(eigenvalues_N.abs().max())


def rollout_reference(reservoir: Reservoir, u_Nr: Tensor, v_Nr: Tensor, leak: float, z_TBE: Tensor) -> Tensor:
    """States h_1 … h_T as (T, B, N), by the equation above, one step after another.

    z_TBE (T, B, 128): the inputs z_1 … z_T. Any dtype and device (all arguments alike); differentiable in u, v and z.
    """
    weight_NN = reservoir.dense()
    h_BN = z_TBE.new_zeros(z_TBE.shape[1], reservoir.size)
    states = []
    for z_BE in z_TBE:
        drive_BN = h_BN @ weight_NN.T + (h_BN @ v_Nr) @ u_Nr.T + z_BE @ reservoir.input_NE.T + reservoir.bias_N
        h_BN = (1 - leak) * h_BN + leak * torch.tanh(drive_BN)
        states.append(h_BN)
    return torch.stack(states)
