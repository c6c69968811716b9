"""What only a CUDA device can show. Run with `pytest -m gpu`; everything here has a CPU counterpart elsewhere."""

import json
import os
import subprocess
import sys
from pathlib import Path

import pytest
import torch

from common import es, fused
from common.dist import Workers
from common.encoder import Encoder
from common.reservoir import draw_reservoir
from common.rollout import Rollout

pytestmark = [pytest.mark.gpu, pytest.mark.skipif(not torch.cuda.is_available(), reason="needs a CUDA device")]

ROOT = Path(__file__).resolve().parents[1]
SIZE, RANK, STEPS, BATCH, PAIRS = 500, 8, 20, 16, 4


def losses(device, dtype, kind, sigma=0.02, kernel="torch"):
    """Member losses (PAIRS, 2) of one made-up network on a device."""
    generator = torch.Generator().manual_seed(0)
    u, v = (torch.randn(SIZE, RANK, generator=generator) * 0.05 for _ in range(2))
    weight, bias = torch.randn(128, SIZE, generator=generator) * 0.05, torch.zeros(128)
    z = torch.randn(STEPS + 1, 128, BATCH, generator=generator)
    rollout = Rollout(draw_reservoir(SIZE, 30, seed=0), 0.5, 0.95, device, dtype, kernel)
    ids = torch.arange(PAIRS, device=device)
    adapter = es.make_noise(kind, 1, SIZE, RANK).adapter(u.to(device, dtype), v.to(device, dtype), 1, ids, sigma)
    drive, target = rollout.drive(z[:-1].to(device))[:, :, None, None], z[1:].to(device)[:, :, None, None]
    result = rollout.errors(adapter, drive, target, weight.to(device), bias.to(device), (PAIRS, 2, BATCH))
    assert not result.failed_C.any()
    return result.error_TC.sum(dim=0).view(PAIRS, 2, BATCH).mean(dim=2).cpu() / (STEPS * 128)


@pytest.mark.parametrize("kind", es.NOISES)
@pytest.mark.parametrize(("dtype", "tolerance"), [(torch.float64, 1e-10), (torch.float32, 1e-4), (torch.float16, 1e-2)])
def test_cuda_losses_are_those_of_the_cpu_in_float64(kind, dtype, tolerance):
    expected = losses("cpu", torch.float64, kind)
    assert torch.allclose(losses("cuda", dtype, kind), expected, rtol=tolerance)


@pytest.mark.parametrize("kernel", ["graph", "epilogue", "fused"])
@pytest.mark.parametrize("dtype", [torch.float32, torch.float16])
def test_every_kernel_repeats_itself_and_gives_the_losses_of_plain_calls(kernel, dtype):
    plain, first, again = (losses("cuda", dtype, "rank1", kernel=name) for name in ("torch", kernel, kernel))
    assert torch.equal(first, again)
    assert torch.allclose(first, plain, rtol={torch.float32: 1e-4, torch.float16: 1e-2}[dtype])


@pytest.mark.parametrize("chain", [1, 5])
def test_the_fused_rollout_at_the_briefs_size_repeats_itself_and_is_that_of_float32(chain):
    generator = torch.Generator(device="cuda").manual_seed(0)

    def draw(*shape):
        return torch.randn(*shape, generator=generator, device="cuda")

    size, rank, pairs, steps = 2000, 32, 3000, 20  # 6,000 columns: more tiles than multiprocessors
    frozen = draw_reservoir(size, 50, seed=0).to("cuda", torch.float32)
    u, v, weight = draw(size, rank) * 0.02, draw(size, rank) / size**0.5, draw(128, size) * 0.05
    signs = [draw(pairs, n).sign() for n in (size, rank, size, rank)]
    drive, target = draw(steps, size, pairs, 1) * 0.3, draw(steps, 128, pairs, 1)

    def run(dtype, chain):
        weights = frozen.index_Nk, frozen.value_Nk.to(dtype), u, v, *signs, 0.01
        decoder = weight, torch.zeros(128, device="cuda")
        return fused.fused_errors(*weights, drive.to(dtype), target, *decoder, 0.5, 0.95**2, 1, chain=chain)

    (error, failed), (again, _), (exact, _) = (
        run(torch.float16, chain),
        run(torch.float16, chain),
        run(torch.float32, 1),
    )
    assert torch.equal(error, again) and not failed.any()
    assert torch.allclose(error, exact, rtol=1e-2)


@pytest.mark.parametrize("kind", es.NOISES)
def test_noise_has_the_same_bits_on_both_devices(kind):
    noise = es.make_noise(kind, 3, SIZE, RANK)
    for here, there in zip(noise.draw(2, torch.arange(5)), noise.draw(2, torch.arange(5, device="cuda")), strict=True):
        assert torch.equal(here, there.cpu())


def test_embeddings_are_those_of_the_cpu():
    """Not TF32: the embeddings are the problem, and one problem_id must stand for one problem."""
    frames = torch.randint(0, 256, (200, 64, 64), generator=torch.Generator().manual_seed(0), dtype=torch.uint8)
    with Workers(torch.device("cuda")):
        there = Encoder(0, "cuda").encode(frames.cuda()).cpu()
    assert torch.allclose(there, Encoder(0).encode(frames), rtol=1e-4, atol=1e-6)


def smoke_run(folder: Path, slug: str, words: list[str], *launcher: str) -> dict:
    command = [
        sys.executable,
        *launcher,
        f"{slug.replace('-', '_')}.py",
        "--preset",
        "smoke",
        "--device",
        "cuda",
        *words,
    ]
    subprocess.run(
        [*command, "--backend", "gloo", "--run-dir", str(folder)], cwd=ROOT / slug, check=True, env=os.environ
    )
    last = folder / "7-leak-per-unit" if "--curriculum" in words else folder
    return json.loads((last / "results.json").read_text())


@pytest.mark.parametrize(
    ("slug", "words"),
    [
        ("moving-mnist-es-reservoir", []),
        ("moving-mnist-bptt-baseline", ["--batch-size", "150"]),  # three tiles, the last one padded
        ("moving-mnist-bptt-baseline", ["--trains", "all", "--batch-size", "150"]),
        ("moving-mnist-bptt-baseline", ["--core", "gru", "--batch-size", "150"]),
        ("reservoir-readout-only", []),
        ("truncated-es", ["--decoder", "ridge"]),
        ("truncated-es", ["--trains", "both", "--feedback-probes", "64", "--train-leak", "per-unit"]),
        ("rank-space-es", ["--decoder", "ridge"]),
        ("rank-space-es", ["--decoder", "ridge", "--roll-in", "1"]),
        ("moving-mnist-bptt-baseline", ["--roll-in", "1", "--batch-size", "150"]),
        ("rank-space-es", ["--window", "1", "--trains", "both", "--probes", "2", "--curriculum"]),
    ],
)
def test_one_run_on_a_gpu_repeats_itself_and_two_ranks_may_share_it(tmp_path, slug, words):
    plain = smoke_run(tmp_path / "plain", slug, words)
    again = smoke_run(tmp_path / "again", slug, words)
    two = smoke_run(tmp_path / "two", slug, words, "-m", "torch.distributed.run", "--nproc_per_node=2")
    assert plain["environment"]["device"] == "cuda"
    assert plain["theta_sha256"] == again["theta_sha256"] == two["theta_sha256"]
