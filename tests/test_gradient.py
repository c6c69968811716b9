"""The gradient through time of single sequences, and what is told of many, against autograd and plain sums in float64."""

import math

import pytest
import torch

from common.encoder import EMBEDDING
from common.gradient import GradientSums, sequence_gradients
from common.reservoir import draw_reservoir, rollout_reference
from common.rollout import Rollout

N, R, T, B = 24, 3, 5, 7


@pytest.fixture(params=["sparse", "dense"])
def case(request):
    """A network in float64 and, by autograd, the gradient of each sequence's loss: (B, N, r) of U and of V."""
    generator = torch.Generator().manual_seed(0)
    reservoir = draw_reservoir(N, 3 if request.param == "sparse" else 20, seed=0)
    rollout = Rollout(reservoir, 0.7, 1.0, dtype=torch.float64)
    assert (rollout.dense_NN is None) == (request.param == "sparse")
    draw = lambda *shape: torch.randn(*shape, generator=generator, dtype=torch.float64)  # noqa: E731
    u, v, weight, bias = draw(N, R) * 0.3, draw(N, R) * 0.3, draw(EMBEDDING, N) * 0.2, draw(EMBEDDING)
    z, target = draw(T, EMBEDDING, B), draw(T, EMBEDDING, B)
    leaves = [u.clone().requires_grad_(), v.clone().requires_grad_()]
    states = rollout_reference(rollout.reservoir, *leaves, rollout.leak, z.transpose(1, 2))  # (T, B, N)
    losses = (states @ weight.T + bias - target.transpose(1, 2)).square().mean(dim=(0, 2))
    rows = [torch.autograd.grad(loss, leaves, retain_graph=True) for loss in losses]
    expected = [torch.stack(part) for part in zip(*rows)]
    return sequence_gradients, (rollout, u, v, (weight, bias), z, target), expected


@pytest.mark.parametrize("perturbs", ["both", "v"])
def test_each_sequence_has_its_gradient(case, perturbs):
    gradients_of, arguments, expected = case
    rows = torch.cat([x.flatten(1) for x in (expected if perturbs == "both" else expected[1:])], dim=1)
    got = gradients_of(*arguments, perturbs)
    for i in range(B):
        assert torch.allclose(got.weighted_sum(torch.eye(B, dtype=torch.float64)[i]), rows[i], rtol=1e-9, atol=1e-14)
    assert torch.allclose(got.squared_norms(), rows.square().sum(dim=1), rtol=1e-9)


def test_sums_of_tiles_tell_noise_agreement_and_cosines(case):
    """Two tiles, the second padded, against the definitions: means over all ordered pairs of different sequences."""
    gradients_of, (*network, z, target), expected = case
    rows = torch.cat([x.flatten(1) for x in expected], dim=1)[:6]
    first = gradients_of(*network, z[:, :, :4], target[:, :, :4])
    second = gradients_of(*network, z[:, :, [4, 5, 5, 5]], target[:, :, [4, 5, 5, 5]])
    sums = GradientSums(GradientSums.of(first, 4) + GradientSums.of(second, 2))

    def products(x):
        return sum(float(x[i] @ x[j]) for i in range(6) for j in range(6) if i != j) / 30

    unit = rows / rows.norm(dim=1, keepdim=True)
    square, agreement = products(rows), products(unit)
    assert sums.count == 6
    assert sums.agreement == pytest.approx(agreement, rel=1e-5)
    assert sums.batch_noise == pytest.approx(float(rows.square().sum(dim=1).mean()) / square, rel=1e-5)
    estimate = torch.randn(rows.shape[1], generator=torch.Generator().manual_seed(1), dtype=torch.float64)
    to_gradient, to_units = sums.cosines(estimate)
    assert to_gradient == pytest.approx(float(rows.mean(0) @ estimate / estimate.norm()) / math.sqrt(square), rel=1e-5)
    assert to_units == pytest.approx(float(unit.mean(0) @ estimate / estimate.norm()) / math.sqrt(agreement), rel=1e-5)
