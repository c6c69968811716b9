"""The ask → evaluate → tell machinery of the peers of `es_machinery.py`.

Each class takes a start θ float32 (D,) and the number of members M, an even number. `iterate(evaluate)` is one generation: a
population is made and handed to `evaluate`, which returns its M losses in the library's own kind of array (`native`), and the
centre of the search is moved by Adam. σ is fixed. Libraries are imported where they are used: none of them has to be
installed. How each was set up, and what is not the same:

    EvoTorch   the functional PGPE: symmetric sampling, centred ranks. (The class of the same name took longer.) It estimates
               the gradient of σ too; there is no switch for it, its learning rate is zero.
    evosax     Open_ES: antithetic sampling, centred ranks, optax's Adam; ask and tell are compiled, as they come. It also
               keeps the best member. (JAX's own generator: with "rbg", its faster one elsewhere, it took longer.)
    EvoX       OpenES: mirrored sampling, raw losses (it has no ranks). Eager: torch.compile needs a C++ compiler, and where
               there is one it took longer.
    EvoX       VirtualLoRAES with rank-one factors, of all peers the nearest to common/es.py: Gaussian factors from Philox, drawn
               once by the evaluation and once by the update. No mirrored sampling, so M members are M directions.
    torch      what one writes without a library: torch.randn, one matrix product, torch.optim.Adam, centred ranks.
"""

from collections.abc import Callable

import torch
from torch import Tensor

SIGMA, LEARNING_RATE = 0.01, 1e-3


class EvoTorchPGPE:
    needs = ("evotorch",)

    def __init__(self, theta_D: Tensor, members: int, shapes: list[tuple[int, int]]):
        from evotorch.algorithms import functional

        self.strategy, self.members = functional, members
        self.state = functional.pgpe(
            center_init=theta_D,
            center_learning_rate=LEARNING_RATE,
            stdev_learning_rate=0.0,
            stdev_init=SIGMA,
            stdev_max_change=None,
            objective_sense="min",
            ranking_method="centered",
            optimizer="adam",
            symmetric=True,
        )

    native = staticmethod(lambda losses_M: losses_M)

    def iterate(self, evaluate: Callable) -> None:
        population_MD = self.strategy.pgpe_ask(self.state, popsize=self.members)
        self.state = self.strategy.pgpe_tell(self.state, population_MD, evaluate(population_MD))


class EvosaxOpenES:
    needs = ("evosax", "jax", "optax")

    def __init__(self, theta_D: Tensor, members: int, shapes: list[tuple[int, int]]):
        import jax
        import optax
        from evosax.algorithms import Open_ES

        start_D = self.native(theta_D)
        self.jax, self.key = jax, jax.random.key(0)
        self.strategy = Open_ES(
            population_size=members,
            solution=start_D,
            use_antithetic_sampling=True,
            optimizer=optax.adam(LEARNING_RATE),
            std_schedule=optax.constant_schedule(SIGMA),
        )
        self.parameters = self.strategy.default_params
        self.state = self.strategy.init(self.key, start_D, self.parameters)

    @staticmethod
    def native(losses_M: Tensor):
        import jax

        return jax.numpy.asarray(losses_M.numpy())

    def iterate(self, evaluate: Callable) -> None:
        self.key, for_ask, for_tell = self.jax.random.split(self.key, 3)
        population_MD, state = self.strategy.ask(for_ask, self.state, self.parameters)
        losses_M = evaluate(population_MD)
        state, _ = self.strategy.tell(for_tell, population_MD, losses_M, state, self.parameters)
        self.state = self.jax.block_until_ready(state)


class EvoXOpenES:
    needs = ("evox",)

    def __init__(self, theta_D: Tensor, members: int, shapes: list[tuple[int, int]]):
        from evox.algorithms import OpenES

        self.algorithm = OpenES(members, theta_D, LEARNING_RATE, SIGMA, optimizer="adam", mirrored_sampling=True)

    native = staticmethod(lambda losses_M: losses_M)

    def iterate(self, evaluate: Callable) -> None:
        self.algorithm.evaluate = evaluate
        self.algorithm.step()


class EvoXVirtualLoRA:
    """Hands over, for each block of parameters, B (M, N, 1) and A (M, 1, r): a member's block is centre + σ B A.

    The library itself hands over (centre, seeds, σ), and a problem regenerates the factors from the seeds, as is done here.
    """

    needs = ("evox",)

    def __init__(self, theta_D: Tensor, members: int, shapes: list[tuple[int, int]]):
        from evox.algorithms.so.es_variants.virtual_lora_es import VirtualLoRAES
        from evox.triton_kernels.kernels import lora_noise

        self.shapes, self.draw = shapes, lora_noise.generate_lora_factors
        self.offsets = lora_noise.compute_counter_offsets(shapes, 1)
        self.algorithm = VirtualLoRAES(shapes, 1, members, theta_D, LEARNING_RATE, SIGMA, optimizer="adam")

    native = staticmethod(lambda losses_M: losses_M)

    def iterate(self, evaluate: Callable) -> None:
        def evaluate_seeds(handed: tuple[Tensor, Tensor, float]) -> Tensor:
            center_D, seeds_M, sigma = handed
            factors = [self.draw(seeds_M, shape, 1, offset) for shape, offset in zip(self.shapes, self.offsets)]
            return evaluate((center_D, factors, sigma))

        self.algorithm.evaluate = evaluate_seeds
        self.algorithm.step()


class PlainTorch:
    needs = ()

    def __init__(self, theta_D: Tensor, members: int, shapes: list[tuple[int, int]]):
        self.theta_D, self.members = theta_D.clone().requires_grad_(), members
        self.optimizer = torch.optim.Adam([self.theta_D], lr=LEARNING_RATE)

    native = staticmethod(lambda losses_M: losses_M)

    def iterate(self, evaluate: Callable) -> None:
        pairs, theta_D = self.members // 2, self.theta_D.detach()
        noise_KD = torch.randn(pairs, len(theta_D))
        population_MD = torch.cat((theta_D + SIGMA * noise_KD, theta_D - SIGMA * noise_KD))
        losses_M = evaluate(population_MD)
        rank_M = losses_M.argsort().argsort() / (self.members - 1) - 0.5
        self.theta_D.grad = (rank_M[:pairs] - rank_M[pairs:]) @ noise_KD / (2 * pairs * SIGMA)
        self.optimizer.step()
