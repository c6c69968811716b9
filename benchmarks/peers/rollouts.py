"""Rollouts that a user of the peers in `machines.py` would write: all members of a population on one minibatch.

Members go through in groups of 8, the state of a group as (N, 8·B): of 2, 4, 8, 16 and 64 members the fastest at N = 2000,
B = 32. W0 h by embedding_bag is a little faster than by a CSR product, and twice as fast as a dense one; in JAX the BCSR
product is faster than a gather or a dense product. A member's parameters are a row (U, V) of the population, flattened.
"""

from collections.abc import Callable
from dataclasses import dataclass

import torch
from torch import Tensor
from torch.nn import functional

GROUP = 8


@dataclass(frozen=True)
class Work:
    """The frozen reservoir, one minibatch and the decoder. index_Nk int32, all else float32.

    input_TEB (T, 128, B): z_1 … z_T; target_TEB (T, 128, B): z_2 … z_{T+1}. weight_EN (128, N), bias_E (128,): the decoder.
    """

    index_Nk: Tensor
    value_Nk: Tensor
    input_NE: Tensor
    bias_N: Tensor
    input_TEB: Tensor
    target_TEB: Tensor
    weight_EN: Tensor
    bias_E: Tensor
    leak: float
    rank: int

    def drive(self) -> Tensor:
        """Win z_t + b for all steps, (T, N, B)."""
        return self.input_NE @ self.input_TEB + self.bias_N[:, None]


def _group_losses(work: Work, drive_TNB: Tensor, members: int, adapter: Callable[[Tensor], Tensor]) -> Tensor:
    """Losses (G,) of G members side by side. adapter: h (N, G·B) → U Vᵀ h of each member, (N, G, B)."""
    steps, size, batch = drive_TNB.shape
    h_NC = torch.zeros(size, members * batch)
    losses_G = torch.zeros(members)
    for drive_NB, target_EB in zip(drive_TNB, work.target_TEB):
        recurrent_NC = functional.embedding_bag(work.index_Nk, h_NC, mode="sum", per_sample_weights=work.value_Nk)
        x_NGB = recurrent_NC.view(size, members, batch) + adapter(h_NC) + drive_NB[:, None]
        h_NC = torch.lerp(h_NC, torch.tanh(x_NGB).view(size, -1), work.leak)
        prediction_EC = work.weight_EN @ h_NC + work.bias_E[:, None]
        error_EGB = prediction_EC.view(-1, members, batch) - target_EB[:, None]
        losses_G += error_EGB.square().mean(dim=(0, 2))
    return losses_G / steps


def full_members(work: Work, population_MD: Tensor, group: int = GROUP) -> Tensor:
    """Losses (M,) of members with weights of their own, by batched products with U and V."""
    drive_TNB = work.drive()
    size, batch = drive_TNB.shape[1:]

    def losses(group_GD: Tensor) -> Tensor:
        members = len(group_GD)
        u_GNr, v_GNr = group_GD.view(members, 2, size, work.rank).unbind(dim=1)

        def adapter(h_NC: Tensor) -> Tensor:
            low_GrB = torch.bmm(v_GNr.transpose(1, 2), h_NC.view(size, members, batch).transpose(0, 1))
            return torch.bmm(u_GNr, low_GrB).transpose(0, 1)

        return _group_losses(work, drive_TNB, members, adapter)

    return torch.cat([losses(group_GD) for group_GD in population_MD.split(group)])


def all_full_members(work: Work, population_MD: Tensor) -> Tensor:
    """The same with the whole population side by side, as one writes it first."""
    return full_members(work, population_MD, len(population_MD))


def low_rank_members(work: Work, handed: tuple, group: int = GROUP) -> Tensor:
    """Losses (M,) of members U + σ B_u A_u, V + σ B_v A_v with rank-one factors (see machines.EvoXVirtualLoRA).

    What is shared goes through one product for all members of a group; no member's weights are formed.
    """
    center_D, (factors_u, factors_v), sigma = handed
    drive_TNB = work.drive()
    size, batch = drive_TNB.shape[1:]
    u_Nr, v_Nr = center_D.view(2, size, work.rank)

    def losses(a_u_G1r: Tensor, b_u_GN1: Tensor, a_v_G1r: Tensor, b_v_GN1: Tensor) -> Tensor:
        members = len(a_u_G1r)

        def adapter(h_NC: Tensor) -> Tensor:
            h_GNB = h_NC.view(size, members, batch).transpose(0, 1)
            low_GrB = (v_Nr.T @ h_NC).view(work.rank, members, batch).transpose(0, 1)
            low_GrB = low_GrB + sigma * a_v_G1r.transpose(1, 2) * torch.bmm(b_v_GN1.transpose(1, 2), h_GNB)
            shared_NGB = (u_Nr @ low_GrB.transpose(0, 1).reshape(work.rank, -1)).view(size, members, batch)
            return shared_NGB + (sigma * b_u_GN1 * torch.bmm(a_u_G1r, low_GrB)).transpose(0, 1)

        return _group_losses(work, drive_TNB, members, adapter)

    groups = zip(*(factor.split(group) for factor in (*factors_u, *factors_v)))
    return torch.cat([losses(*factors) for factors in groups])


def mapped_members(work: Work, population_MD: Tensor, chunk: int, dense: bool = False) -> Tensor:
    """Losses (M,) by torch.vmap over a function of one member, `chunk` members at a time; W0 h gathers and sums, or is a
    dense product."""
    drive_TNB = work.drive()
    size, batch = drive_TNB.shape[1:]
    dense_NN = torch.zeros(size, size).scatter_add_(1, work.index_Nk.to(torch.int64), work.value_Nk) if dense else None

    def loss(theta_D: Tensor) -> Tensor:
        u_Nr, v_Nr = theta_D.view(2, size, work.rank)
        h_NB = torch.zeros(size, batch)
        total = torch.zeros(())
        for drive_NB, target_EB in zip(drive_TNB, work.target_TEB):
            if dense:
                recurrent_NB = dense_NN @ h_NB
            else:
                recurrent_NB = (h_NB[work.index_Nk] * work.value_Nk[:, :, None]).sum(dim=1)
            x_NB = recurrent_NB + u_Nr @ (v_Nr.T @ h_NB) + drive_NB
            h_NB = torch.lerp(h_NB, torch.tanh(x_NB), work.leak)
            prediction_EB = work.weight_EN @ h_NB + work.bias_E[:, None]
            total = total + (prediction_EB - target_EB).square().mean()
        return total / len(drive_TNB)

    return torch.vmap(loss, chunk_size=chunk)(population_MD)


def jax_members(work: Work) -> Callable:
    """A compiled function: population, a JAX array (M, D) → losses (M,)."""
    import jax
    from jax import lax
    from jax import numpy as jnp
    from jax.experimental.sparse import BCSR

    size, in_degree = work.index_Nk.shape
    starts = jnp.arange(0, size * in_degree + 1, in_degree, dtype=jnp.int32)
    entries = jnp.asarray(work.value_Nk.flatten().numpy()), jnp.asarray(work.index_Nk.flatten().numpy())
    frozen_NN = BCSR((*entries, starts), shape=(size, size))
    names = ("input_NE", "bias_N", "input_TEB", "target_TEB", "weight_EN", "bias_E")
    input_NE, bias_N, input_TEB, target_TEB, weight_EN, bias_E = (
        jnp.asarray(getattr(work, name).numpy()) for name in names
    )
    batch = input_TEB.shape[2]

    def losses(group_GD, drive_TNB):
        u_GNr, v_GNr = jnp.moveaxis(group_GD.reshape(-1, 2, size, work.rank), 1, 0)

        def step(h_NGB, inputs):
            drive_NB, target_EB = inputs
            low_GrB = jnp.einsum("gnr,ngb->grb", v_GNr, h_NGB)
            recurrent_NGB = (frozen_NN @ h_NGB.reshape(size, -1)).reshape(h_NGB.shape)
            x_NGB = recurrent_NGB + jnp.einsum("gnr,grb->ngb", u_GNr, low_GrB) + drive_NB[:, None]
            h_NGB = (1 - work.leak) * h_NGB + work.leak * jnp.tanh(x_NGB)
            error_EGB = jnp.tensordot(weight_EN, h_NGB, 1) + bias_E[:, None, None] - target_EB[:, None]
            return h_NGB, jnp.square(error_EGB).mean(axis=(0, 2))

        start_NGB = jnp.zeros((size, len(group_GD), batch))
        return lax.scan(step, start_NGB, (drive_TNB, target_TEB))[1].mean(axis=0)

    @jax.jit
    def all_losses(population_MD):
        drive_TNB = input_NE @ input_TEB + bias_N[:, None]
        groups_MGD = population_MD.reshape(-1, min(GROUP, len(population_MD)), population_MD.shape[1])
        return lax.map(lambda group_GD: losses(group_GD, drive_TNB), groups_MGD).reshape(-1)

    return all_losses
