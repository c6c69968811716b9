"""The fused kernel against the equation in float64, one member at a time.

Where there is no GPU the kernel runs in Triton's interpreter. That is decided when Triton is imported, and torch
imports it on its own (`torch._dynamo`), so it is asked for here, while tests are still being collected. On a GPU the
same tests run compiled (`pytest -m gpu`).
"""

import math
import os
import re
import subprocess
import sys
from importlib.metadata import version
from importlib.util import find_spec

import numpy as np
import pytest
import torch

if find_spec("triton") is None:
    pytest.skip("Triton is not installed", allow_module_level=True)

DEVICE = "cuda" if torch.cuda.is_available() else "cpu"
with pytest.MonkeyPatch.context() as patch:  # taken back at once: processes that other tests start should not find it
    if DEVICE == "cpu":
        patch.setenv("TRITON_INTERPRET", "1")
    from common import epilogue, fused

from common import es  # noqa: E402
from common import rollout as rollouts  # noqa: E402
from common.encoder import EMBEDDING  # noqa: E402
from common.reservoir import draw_reservoir, rollout_reference  # noqa: E402

OLD = DEVICE == "cpu" and tuple(map(int, version("triton").split(".")[:2])) < (3, 7)
pytestmark = [
    pytest.mark.skipif(OLD, reason="before Triton 3.7 the interpreter does not take NumPy 2.4"),
    pytest.mark.skipif(not fused.available(DEVICE), reason="Triton was imported before it could be told to interpret"),
    # float16 in the interpreter is NumPy's, which warns where exp(2x) is infinite as intended, and where data are NaN.
    pytest.mark.filterwarnings("ignore::RuntimeWarning"),
]
if DEVICE == "cuda":
    pytestmark.append(pytest.mark.gpu)


class ExactNumpy:
    """NumPy for the interpreter, its products summed in float64. In float32 the order of a sum, on some processors, depends on where in a matrix a
    column stands; in the kernel it does not."""

    def __getattr__(self, name):
        return getattr(np, name)

    @staticmethod
    def matmul(a, b, dtype):
        return np.matmul(a.astype(np.float64), b.astype(np.float64)).astype(dtype)


@pytest.fixture(autouse=True)
def interpreting(monkeypatch):
    if DEVICE == "cpu":
        monkeypatch.setenv("TRITON_INTERPRET", "1")
        monkeypatch.setattr("triton.runtime.interpreter.np", ExactNumpy())


N, K, R, T, B, E = 150, 6, 5, 4, 3, 20  # two blocks of units, the second not full; nothing here is a power of two
SIGMA, LEAK, GUARD = 0.05, 0.4, 0.95
TOLERANCE = {torch.float32: 2e-6, torch.float16: 2e-3}  # some ten times what the interpreter was off


class Problem:
    """A small network away from any special point, in float64, with P pairs of rank-one noise."""

    def __init__(self, pairs=3, own_data=False, size=N, rank=R, batch=B, outputs=E, input_scale=1.0):
        generator = torch.Generator().manual_seed(0)

        def draw(*shape):
            return torch.randn(*shape, generator=generator, dtype=torch.float64)

        self.pairs, self.size, self.rank, self.batch = pairs, size, rank, batch
        self.depth = pairs if own_data else 1
        self.reservoir = draw_reservoir(size, K, seed=1).to("cpu", torch.float64)
        self.u, self.v = draw(size, rank) * 0.3, draw(size, rank) / math.sqrt(size)
        self.weight, self.bias = draw(outputs, size) * 0.1, draw(outputs) * 0.1
        self.inputs_TEDB = draw(T, 128, self.depth, batch) * input_scale
        self.target_TEDB = draw(T, outputs, self.depth, batch)
        self.drive_TNDB = torch.einsum("ne,tedb->tndb", self.reservoir.input_NE, self.inputs_TEDB)
        self.factors = [draw(pairs, entries).sign() for entries in (size, rank, size, rank)]

    def run(
        self,
        dtype=torch.float32,
        sigma=SIGMA,
        noise=True,
        first=0,
        last=None,
        guard=GUARD,
        drive=None,
        target=None,
        **options,
    ):
        """fused_errors of pairs first … last − 1 on DEVICE, brought back: error (T, columns), failed (columns,)."""
        drive = self.drive_TNDB if drive is None else drive
        target = self.target_TEDB if target is None else target
        some = slice(first, last)
        own = some if self.depth > 1 else slice(None)

        def move(tensor):
            return tensor.to(DEVICE, dtype)

        factors = [f[some].to(DEVICE) for f in self.factors] if noise else [None] * 4
        error, failed = fused.fused_errors(
            self.reservoir.index_Nk.to(DEVICE), move(self.reservoir.value_Nk), move(self.u), move(self.v), *factors,
            sigma, move(drive[:, :, own]), target[:, :, own].float().to(DEVICE), move(self.weight),
            self.bias.float().to(DEVICE), LEAK, guard**2, self.batch, **options,
        )  # fmt: skip
        assert error.dtype == torch.float32 and failed.dtype == torch.bool
        return error.cpu(), failed.cpu()

    def each_member(self, measure, sigma=SIGMA):
        """measure(states (T, B, N), target (T, B, E)) → (T, B), of every member by itself in float64: (T, P, 2, B)."""
        rows = []
        for pair, (a, b, c, d) in enumerate(zip(*(factor.to(torch.float64) for factor in self.factors), strict=True)):
            place = pair if self.depth > 1 else 0
            inputs_TBE = self.inputs_TEDB[:, :, place].permute(0, 2, 1)
            target_TBE = self.target_TEDB[:, :, place].permute(0, 2, 1)
            for s in (sigma, -sigma):
                u, v = self.u + s * torch.outer(a, b), self.v + s * torch.outer(c, d)
                rows.append(measure(rollout_reference(self.reservoir, u, v, LEAK, inputs_TBE), target_TBE))
        return torch.stack(rows, dim=1).unflatten(1, (self.pairs, 2))

    def expected(self, sigma=SIGMA):
        """Squared errors (T, P, 2, B)."""

        def error(states_TBN, target_TBE):
            return (states_TBN @ self.weight.T + self.bias - target_TBE).square().sum(dim=2)

        return self.each_member(error, sigma)


@pytest.mark.parametrize("chain", [1, 4])
@pytest.mark.parametrize("dtype", [torch.float32, torch.float16], ids=["fp32", "fp16"])
@pytest.mark.parametrize("own_data", [False, True], ids=["shared", "own"])
def test_columns_equal_a_loop_over_members(own_data, dtype, chain):
    problem = Problem(own_data=own_data)
    error, failed = problem.run(dtype, chain=chain)  # K = 6 inputs are filled up to 8
    assert torch.allclose(error.view(T, 3, 2, B).double(), problem.expected(), rtol=TOLERANCE[dtype])
    assert not failed.any()


@pytest.mark.parametrize(
    "sizes",
    [
        {"rank": 1, "pairs": 1, "batch": 1},
        {"rank": 17, "pairs": 17, "batch": 1, "own_data": True},  # as many pairs as a tile can meet, and one more
        {"size": 128, "batch": 32, "pairs": 2, "outputs": 128},  # everything fills its blocks
        {"size": 16, "batch": 21, "pairs": 2},  # a pair that lies across tiles
    ],
    ids=["ones", "many-pairs", "exact", "across"],
)
def test_sizes_that_do_and_do_not_fill_their_blocks(sizes):
    problem = Problem(**sizes)
    error, failed = problem.run()
    got = error.view(T, problem.pairs, 2, problem.batch).double()
    assert torch.allclose(got, problem.expected(), rtol=TOLERANCE[torch.float32])
    assert not failed.any()


def test_the_guard_fails_the_columns_whose_state_left_it():
    problem = Problem(own_data=True, input_scale=20.0)
    rms_TPSB = problem.each_member(lambda states, _: states.square().mean(dim=2).sqrt())
    guard = rms_TPSB.amax(dim=0).median().item() * (1 + 1e-4)  # between two columns, and not at the last step of all
    expected = (rms_TPSB > guard).any(dim=0)
    assert expected.any() and not expected.all()
    error, failed = problem.run(guard=guard)
    assert torch.equal(failed.view(3, 2, B), expected)
    # Its errors are still those of the equation.
    assert torch.allclose(error.view(T, 3, 2, B).double(), problem.expected(), rtol=TOLERANCE[torch.float32])


def test_no_noise_is_the_unperturbed_network_and_so_is_sigma_zero():
    problem = Problem()
    plain, failed = problem.run(noise=False)
    assert plain.shape == (T, B) and not failed.any()
    assert torch.allclose(plain.double(), problem.expected(sigma=0.0)[:, 0, 0], rtol=TOLERANCE[torch.float32])
    still = problem.run(sigma=0.0)[0].view(T, 3, 2, B)
    assert torch.equal(still[:, :, 0], still[:, :, 1])
    assert torch.allclose(still, plain[:, None, None].expand_as(still), rtol=1e-5)


@pytest.mark.parametrize("own_data", [False, True], ids=["shared", "own"])
def test_a_column_does_not_depend_on_what_else_is_in_the_launch(own_data):
    problem = Problem(pairs=7, own_data=own_data)  # 42 columns: two tiles
    error, _ = problem.run()
    error = error.view(T, 7, 2, B)
    assert torch.equal(problem.run(programs=2)[0].view_as(error), error)
    assert torch.equal(problem.run()[0].view_as(error), error)
    for first, last in ((0, 1), (2, 5), (6, 7)):
        assert torch.equal(problem.run(first=first, last=last)[0].view(T, -1, 2, B), error[:, first:last])


@pytest.mark.parametrize("poison", [math.nan, math.inf, 1e30])
@pytest.mark.parametrize("dtype", [torch.float32, torch.float16], ids=["fp32", "fp16"])
def test_a_failing_column_is_named_and_harms_nobody(poison, dtype):
    # Undefined, or large enough to saturate every unit. One sequence of one pair is poisoned, from the second step on.
    problem = Problem(own_data=True)
    healthy, failed = problem.run(dtype, guard=0.5)
    assert not failed.any()
    drive = problem.drive_TNDB.clone()
    drive[1:, :, 1, 2] = poison
    sick, failed = problem.run(dtype, guard=0.5, drive=drive)
    expected = torch.zeros(3, 2, B, dtype=torch.bool)
    expected[1, :, 2] = True
    assert torch.equal(failed.view(3, 2, B), expected)
    assert torch.equal(sick[:, ~failed], healthy[:, ~failed])


def test_the_guard_is_a_threshold_on_the_rms_of_the_state():
    # After one step without bias and adapter the state is α tanh(drive); a drive of ±10 makes its RMS α.
    problem = Problem()
    drive = torch.full_like(problem.drive_TNDB, 10.0)
    drive[:, ::2] = -10.0
    drive, target = drive[:1], problem.target_TEDB[:1]
    assert not problem.run(guard=LEAK + 1e-4, drive=drive, target=target)[1].any()
    assert problem.run(guard=LEAK - 1e-4, drive=drive, target=target)[1].all()


def test_words_hold_index_and_weight():
    problem = Problem()
    for dtype in (torch.float16, torch.float32):
        value = problem.reservoir.value_Nk.to(dtype)
        word = fused.pack_words(problem.reservoir.index_Nk, value)
        bits = 16 if dtype == torch.float16 else 32
        flat_kN = word.transpose(0, 1).flatten(1)
        assert torch.equal((flat_kN >> bits)[:, :N].T.long(), problem.reservoir.index_Nk)
        low = flat_kN.contiguous().view(dtype)[:, ::2]  # little-endian: the low half comes first
        assert torch.equal(low[:, :N].T, value)
        assert not flat_kN[:, N:].any()
    with pytest.raises(ValueError, match="40000 units"):
        fused.pack_words(torch.zeros(40000, 1, dtype=torch.int64), torch.zeros(40000, 1, dtype=torch.float16))


def test_what_it_does_not_take_is_refused():
    problem = Problem()
    with pytest.raises(ValueError, match="float64"):
        problem.run(torch.float64)
    with pytest.raises(ValueError, match="drive_TNDB should be"):
        problem.run(drive=problem.drive_TNDB[:, 1:])
    with pytest.raises(ValueError, match="target_TEDB should be"):
        problem.run(drive=problem.drive_TNDB[1:])


COMPILE = """
import sys
from triton.backends.compiler import GPUTarget
from triton.compiler import ASTSource, compile
from common.fused import _rollout_kernel

sizes = dict(OWN=True, ALIGNED=False, NOISE=True, DEGREE=50, RANK=32, OUTPUTS=128, BLOCK_N=128, BLOCK_C=32, BLOCK_R=32,
             BLOCK_E=128, BLOCK_P=16, BLOCK_K=64, STAGES=2, CHAIN=1, UNROLL=10)
types = {"word_ptr": "*i32", "target_ptr": "*fp32", "bias_ptr": "*fp32", "error_ptr": "*fp32", "failed_ptr": "*i1"}
types |= dict.fromkeys(("a_ptr", "b_ptr", "c_ptr", "d_ptr"), "*i8")
types |= dict.fromkeys(("sigma", "leak", "guard_square"), "fp32")
names = _rollout_kernel.arg_names
signature = {n: "constexpr" if n in sizes else types.get(n, "*fp16" if n.endswith("_ptr") else "i32") for n in names}
aligned = {(i,): [["tt.divisibility", 16]] for i, n in enumerate(names) if n.endswith("_ptr") or n in ("size", "data")}
source = ASTSource(_rollout_kernel, signature, {(names.index(n),): value for n, value in sizes.items()}, aligned)
made = compile(source, target=GPUTarget("cuda", 90, 32), options={"num_warps": 16, "num_stages": 1})
sys.stdout.write(made.asm["ptx"])
"""


def test_it_compiles_for_an_h200_and_reads_its_state_coherently():
    # No GPU is needed for that, but a process in which Triton does not interpret.
    environment = {**os.environ, "TRITON_INTERPRET": "0"}
    ptx = subprocess.run(
        [sys.executable, "-c", COMPILE], env=environment, check=True, capture_output=True, text=True
    ).stdout
    loads = re.findall(r"ld\.global[\w.:]*", ptx)
    assert "ld.global.v4.b32" in loads  # the gather: eight float16 at once
    assert not any(".nc" in load for load in loads)
    assert "bar.sync" in ptx


# --- The epilogue of a dense step ------------------------------------------------------------------------------------


@pytest.mark.parametrize("own_data", [False, True], ids=["shared", "own"])
@pytest.mark.parametrize("inner", [0, 3, 40])
@pytest.mark.parametrize("dtype", [torch.float32, torch.float16])
def test_the_epilogue_is_the_end_of_a_step(own_data, inner, dtype):
    pairs, signs, sequences, size, leak = 5, 2, 17, 70, 0.4  # 170 columns: two blocks of them, and two of units
    count = pairs * signs * sequences
    generator = torch.Generator().manual_seed(0)

    def draw(*shape):
        return torch.randn(*shape, generator=generator).to(DEVICE, dtype)

    x, h, drive = draw(size, count), draw(size, count).tanh(), draw(size, pairs if own_data else 1, 1, sequences)
    x[3, 7], x[4, 8], x[5, 9] = math.inf, -math.inf, math.nan
    back = (draw(size, inner), draw(inner, count)) if inner else None
    wide = x.double() + (back[0].double() @ back[1].double() if inner else 0)
    wide = (wide.view(size, pairs, signs, sequences) + drive.double()).view(size, count)
    expected = (1 - leak) * h.double() + leak * torch.tanh(wide)
    square = epilogue.finish_step(x, h, back, drive, (pairs, signs, sequences), leak)
    tolerance = {torch.float32: 1e-6, torch.float16: 1e-3}[dtype]
    assert torch.allclose(h.double(), expected, atol=tolerance, equal_nan=True)
    assert h[5, 9].isnan() and int(h.isnan().sum()) == 1
    assert torch.allclose(square.double(), h.double().square().mean(dim=0), rtol=1e-5, equal_nan=True)


class Again:
    """Stands in for a CUDA graph: it holds its own copies of the inputs, and runs the function on them."""

    made = 0

    def __init__(self, function, inputs):
        self.function, self.inputs = function, [tensor.clone() for tensor in inputs]
        Again.made += 1

    def __call__(self, inputs):
        for held, given in zip(self.inputs, inputs):
            held.copy_(given)
        return self.function(*self.inputs)


@pytest.mark.parametrize("kernel", ["graph", "epilogue", "fused"])
@pytest.mark.parametrize("kind", ["shared", *es.NOISES])
def test_every_kernel_gives_the_errors_of_the_plain_calls(monkeypatch, kernel, kind):
    """Through `Rollout.errors`; several tiles one after another, so that what a captured tile holds has to be replaced."""
    if DEVICE == "cpu":
        monkeypatch.setattr(rollouts, "Captured", Again)
    Again.made = 0
    size, pairs, batch, steps = 60, 3, 4, 5
    generator = torch.Generator().manual_seed(0)

    def draw(*shape):
        return torch.randn(*shape, generator=generator).to(DEVICE)

    u, v, weight, bias = draw(size, R) * 0.2, draw(size, R) / size**0.5, draw(EMBEDDING, size) * 0.1, draw(EMBEDDING)
    reservoir = draw_reservoir(size, 30, seed=1)  # so dense that no device gathers
    plain, other = (rollouts.Rollout(reservoir, LEAK, GUARD, DEVICE, kernel=k) for k in ("torch", kernel))
    for iteration in (1, 2, 3):
        z = draw(steps + 1, EMBEDDING, batch) * iteration
        drive, target = plain.drive(z[:-1])[:, :, None, None], z[1:][:, :, None, None]
        if kind == "shared":
            make = lambda: rollouts.SharedAdapter(u, v)  # noqa: B023, E731
        else:
            noise, ids = es.make_noise(kind, 3, size, R), torch.arange(pairs, device=DEVICE)
            make = lambda: noise.adapter(u, v, iteration, ids, 0.05 * iteration)  # noqa: B023, E731
        columns = (1, 1, batch) if kind == "shared" else (pairs, 2, batch)
        expected = plain.errors(make(), drive, target, weight, bias, columns)
        got = other.errors(make(), drive, target, weight, bias, columns)
        assert got.error_TC.dtype == torch.float64 and got.error_TC.shape == expected.error_TC.shape
        assert torch.allclose(got.error_TC, expected.error_TC, rtol=1e-5)
        assert torch.equal(got.failed_C, expected.failed_C)
    if DEVICE == "cpu":
        assert Again.made == (0 if (kernel, kind) == ("fused", "rank1") else 1), "one capture for each shape"
