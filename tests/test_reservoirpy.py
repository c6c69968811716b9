"""Parity with reservoirpy (0.4), an independent implementation of echo state networks: same weights, same states and readout.

Its equation is x ← (1 − lr) x + lr · tanh(W x + Win u + bias), with the leak outside of tanh as in ours; its matrices map
from their second axis to their first, as ours; every sequence of a batch starts from x = 0.
"""

import pytest
import torch
from reservoirpy.nodes import Reservoir as TheirReservoir
from reservoirpy.nodes import Ridge
from scipy.sparse import csr_array

from common.encoder import EMBEDDING
from common.reservoir import draw_reservoir
from common.ridge import NormalEquations
from common.rollout import Rollout

STEPS, SEQUENCES = 21, 5
CASES = {
    "gather": dict(size=200, in_degree=10, seed=3, gain=0.9, input_scale=0.05),
    "dense": dict(size=60, in_degree=20, seed=4, gain=0.9, input_scale=0.05),
    "erdos-renyi": dict(size=200, in_degree=8, seed=5, gain=0.8, input_scale=0.05, topology="erdos-renyi"),
    "variance": dict(size=200, in_degree=10, seed=6, gain=0.3, input_scale=0.05, weight_scale="variance"),
}


def inputs() -> torch.Tensor:
    """float64 (T, 128, B), about as large and as slow as standardised embeddings."""
    generator = torch.Generator().manual_seed(0)
    return torch.randn(STEPS, EMBEDDING, SEQUENCES, generator=generator, dtype=torch.float64).cumsum(dim=0) * 0.2


def their_states(reservoir, leak: float, z_TEB: torch.Tensor, sparse: bool) -> torch.Tensor:
    """float64 (N, T, B)."""
    weights_NN = reservoir.dense().double().numpy()
    node = TheirReservoir(
        W=csr_array(weights_NN) if sparse else weights_NN,
        Win=reservoir.input_NE.double().numpy(),
        bias=reservoir.bias_N.double().numpy(),
        lr=leak,
    )
    states_BTN = node.run(z_TEB.permute(2, 0, 1).numpy())
    return torch.from_numpy(states_BTN).permute(2, 1, 0)


def our_states(reservoir, leak: float, z_TEB: torch.Tensor, dtype: torch.dtype) -> torch.Tensor:
    """(N, T, B) by the fast rollout."""
    rollout = Rollout(reservoir, leak, guard=1.0, dtype=dtype)
    none_N1 = torch.zeros(reservoir.size, 1)
    return rollout.states(none_N1, none_N1, rollout.drive(z_TEB))


@pytest.mark.parametrize("leak", [0.2, 0.5, 1.0])
@pytest.mark.parametrize("case", CASES)
def test_states_agree(case, leak):
    """In float64 to rounding errors of a few steps, in float32 to 1e-6 of a state that lies in (−1, 1)."""
    reservoir, z_TEB = draw_reservoir(**CASES[case]), inputs()
    expected = their_states(reservoir, leak, z_TEB, sparse=case != "dense")
    assert 0.1 < expected.square().mean().sqrt() < 0.95  # neither asleep nor saturated
    assert (our_states(reservoir, leak, z_TEB, torch.float64) - expected).abs().max() < 1e-13
    assert (our_states(reservoir, leak, z_TEB, torch.float32) - expected).abs().max() < 1e-6


@pytest.mark.parametrize("relative", [1e-6, 1e-3, 1.0])
def test_ridge_readouts_agree(relative):
    """Both leave the constant unpenalised; reservoirpy's penalty is absolute, ours relative to the mean diagonal."""
    generator = torch.Generator().manual_seed(1)
    reservoir, z_TEB = draw_reservoir(**CASES["dense"]), inputs()
    x_NTB = our_states(reservoir, 0.5, z_TEB, torch.float64)
    y_ETB = torch.randn(7, STEPS, SEQUENCES, generator=generator, dtype=torch.float64) + 3.0

    equations = NormalEquations(reservoir.size, targets=7)
    for b in range(SEQUENCES):  # streaming, one sequence after another
        equations.add(NormalEquations.products(x_NTB[:, :, b], y_ETB[:, :, b]))
    ours_FE = equations.solve(relative)

    penalty = relative * float(equations.gram_FF.diagonal()[:-1].mean())
    theirs = Ridge(ridge=penalty).fit(list(x_NTB.permute(2, 1, 0).numpy()), list(y_ETB.permute(2, 1, 0).numpy()))
    scale = ours_FE.abs().max()
    assert (ours_FE[:-1] - torch.from_numpy(theirs.Wout)).abs().max() < 1e-8 * scale
    assert (ours_FE[-1] - torch.from_numpy(theirs.bias)).abs().max() < 1e-8 * scale
