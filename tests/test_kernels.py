"""Every kernel of the registry, at every level this machine has, forced by name and compared with fp64.

A new row in csrc/cpu/kernels.inc is tested here without a new line.
"""

from __future__ import annotations

import pytest
import torch
from torch import Tensor

from sparseinfer import ops
from sparseinfer.formats import BSR, CSR
from sparseinfer.ops import cpu

AVAILABLE = [k for k in ops.kernels() if k.available]
EPS = torch.finfo(torch.float32).eps
BLOCKS = [(1, 4), (4, 1), (2, 2), (4, 4), (3, 5), (8, 8), (16, 16), (32, 32), (64, 64)]

kernel = pytest.mark.parametrize("kernel", AVAILABLE, ids=lambda k: k.name)


def weight(n: int, k: int, sparsity: float, *, integers: bool = False, seed: int = 0) -> Tensor:
    g = torch.Generator().manual_seed(seed)
    w = torch.randint(-4, 5, (n, k), generator=g).float() if integers else torch.randn(n, k, generator=g)
    return w * (torch.rand(n, k, generator=g) >= sparsity)


def block_weight(
    n: int, k: int, block: tuple[int, int], sparsity: float, *, integers: bool = False
) -> Tensor:
    kept = weight(n // block[0], k // block[1], sparsity, seed=1) != 0
    mask = kept.repeat_interleave(block[0], 0).repeat_interleave(block[1], 1)
    return weight(n, k, 0.0, integers=integers) * mask


def formats_for(kernel: ops.KernelInfo, w: Tensor) -> list[CSR | BSR]:
    if kernel.packing != "bsr":
        return [CSR.from_dense(w)]
    n, k = w.shape
    return [BSR.from_dense(w, b) for b in BLOCKS if n % b[0] == 0 and k % b[1] == 0]


def forced(kernel: ops.KernelInfo, fmt: CSR | BSR, x: Tensor, *args: object, **options: int) -> Tensor:
    """Run exactly this kernel; a plan with the full name cannot run another one."""
    packed = ops.pack(fmt, kernel.packing)
    return cpu.run(x, [packed], *(args or (None, fmt.shape[0])), f"*:0:{kernel.name}", "none", **options)


def assert_close(y: Tensor, x: Tensor, fmt: CSR | BSR, bias: Tensor | None = None) -> None:
    """|y - ref| <= 2 eps (nnz_row + 2) (|x| |W|ᵀ + |bias|): the bound of a sum in any order."""
    w = fmt.to_dense().double()
    magnitude = x.double().abs() @ w.abs().T
    terms = (w != 0).sum(1) + 2
    if bias is not None:
        magnitude = magnitude + bias.double().abs()
    error = (y.double() - ops.reference_linear(x, fmt, bias)).abs()
    assert (error <= 2 * EPS * terms * magnitude + 1e-37).all(), f"largest error {error.max():.3g}"


def test_the_registry_covers_every_packing_at_every_level() -> None:
    levels = {k.isa for k in ops.kernels()}
    for packing in ("csr", "sell", "rowgroup", "rowlist", "bsr"):
        assert {k.isa for k in ops.kernels() if k.packing == packing} == levels
    assert len({k.name for k in ops.kernels()}) == len(ops.kernels())
    assert {k.isa for k in AVAILABLE} == set(ops.isa_levels())


@kernel
@pytest.mark.parametrize("m", [1, 2, 3, 15, 16, 17, 31, 33, 48, 63, 64, 65, 129])
def test_integers_are_exact_at_every_token_count(kernel: ops.KernelInfo, m: int) -> None:
    w = (
        weight(24, 40, 0.6, integers=True)
        if kernel.packing != "bsr"
        else block_weight(24, 40, (8, 8), 0.6, integers=True)
    )
    x = torch.randint(-3, 4, (m, 40)).float()
    bias = torch.randint(-3, 4, (24,)).float()
    for fmt in formats_for(kernel, w):
        assert torch.equal(forced(kernel, fmt, x, bias, 24).double(), ops.reference_linear(x, fmt, bias))


@kernel
@pytest.mark.parametrize(
    "size",
    [(1, 1), (3, 127), (4, 128), (5, 129), (15, 255), (16, 256), (17, 257), (64, 64), (1, 1000), (1000, 1)],
)
def test_integers_are_exact_at_ragged_sizes(kernel: ops.KernelInfo, size: tuple[int, int]) -> None:
    n, k = size
    for sparsity in (0.5, 0.95):
        w = weight(n, k, sparsity, integers=True)
        for m in (1, 16, 70):
            x = torch.randint(-3, 4, (m, k)).float()
            for fmt in formats_for(kernel, w):
                assert torch.equal(forced(kernel, fmt, x).double(), ops.reference_linear(x, fmt))


@kernel
def test_blocks_of_every_size(kernel: ops.KernelInfo) -> None:
    x = torch.randn(20, 320)
    for block in BLOCKS if kernel.packing == "bsr" else [(1, 1)]:
        n, k = 3 * 64 // block[0] * block[0], 320 // block[1] * block[1]
        w = block_weight(n, k, block, 0.7)
        fmt = BSR.from_dense(w, block) if kernel.packing == "bsr" else CSR.from_dense(w)
        assert_close(forced(kernel, fmt, x[:, :k]), x[:, :k], fmt)


@kernel
@pytest.mark.parametrize("sparsity", [0.0, 0.5, 0.8, 0.9, 0.95, 0.99, 1.0])
def test_close_to_fp64(kernel: ops.KernelInfo, sparsity: float) -> None:
    w = weight(192, 320, sparsity) if kernel.packing != "bsr" else block_weight(192, 320, (16, 16), sparsity)
    bias = torch.randn(192)
    for m in (1, 5, 40, 100):
        x = torch.randn(m, 320)
        for fmt in formats_for(kernel, w):
            assert_close(forced(kernel, fmt, x, bias, 192), x, fmt, bias)


@kernel
def test_odd_distributions_of_rows(kernel: ops.KernelInfo) -> None:
    n, k = 320, 192
    empty_rows = weight(n, k, 0.7)
    empty_rows[::3] = 0
    empty_rows[:64] = 0
    one_dense_row = torch.zeros(n, k)
    one_dense_row[161] = torch.randn(k)
    one_dense_column = torch.zeros(n, k)
    one_dense_column[:, k - 1] = torch.randn(n)
    triangle = weight(n, k, 0.3).tril()
    x = torch.randn(50, k)
    for w in (empty_rows, one_dense_row, one_dense_column, triangle):
        for fmt in formats_for(kernel, w):
            assert_close(forced(kernel, fmt, x), x, fmt)


@kernel
@pytest.mark.parametrize("m", [3, 100])
def test_results_do_not_depend_on_splits_or_threads(kernel: ops.KernelInfo, m: int) -> None:
    w = weight(600, 320, 0.7)
    x = torch.randn(m, 320)
    fmt: CSR | BSR = BSR.from_dense(w, (4, 4)) if kernel.packing == "bsr" else CSR.from_dense(w)
    whole = forced(kernel, fmt, x, parts=1)
    for parts in (2, 7):
        assert torch.equal(forced(kernel, fmt, x, parts=parts), whole)
    before = torch.get_num_threads()
    try:
        for threads in (1, 2, 3):
            torch.set_num_threads(threads)
            assert torch.equal(forced(kernel, fmt, x), whole)
    finally:
        torch.set_num_threads(before)


@kernel
@pytest.mark.parametrize("activation", ["relu", "gelu", "gelu_tanh", "silu"])
def test_activations(kernel: ops.KernelInfo, activation: str) -> None:
    fmt = formats_for(kernel, torch.eye(16))[0]
    x = torch.linspace(-30, 30, 16 * 500).reshape(-1, 16)
    y = cpu.run(x, [ops.pack(fmt, kernel.packing)], None, 16, f"*:0:{kernel.name}", activation)
    error = (y.double() - ops.reference_linear(x, fmt, None, activation)).abs()
    assert (error <= 4 * EPS * x.abs().double()).all(), f"largest error {error.max():.3g}"


@kernel
def test_nan_and_inf_reach_only_their_own_outputs(kernel: ops.KernelInfo) -> None:
    w = torch.zeros(64, 64)
    w[3, 5], w[7, 9] = 1.0, 2.0
    x = torch.ones(20, 64)
    x[4, 5], x[6, 9], x[8, 11] = float("nan"), float("inf"), float("nan")
    fmt = formats_for(kernel, w)[0]
    y = forced(kernel, fmt, x)
    assert y[4, 3].isnan()
    assert y[6, 7] == float("inf")
    if kernel.packing != "bsr":  # a block holds zeros, and zero times NaN is NaN
        assert y.isfinite().sum() == y.numel() - 2
        assert not y[8].isnan().any()


@kernel
def test_packing_is_exact_both_ways(kernel: ops.KernelInfo) -> None:
    w = weight(192, 320, 0.7)
    w[0, 0], w[5, 7] = float("nan"), float("-inf")
    for fmt in formats_for(kernel, w):
        back = ops.unpack(ops.pack(fmt, kernel.packing))
        assert torch.equal(back.values.view(torch.int32), fmt.values.view(torch.int32))
        assert torch.equal(back.crow_indices, fmt.crow_indices)
        assert torch.equal(back.col_indices, fmt.col_indices)
        assert back.shape == fmt.shape


@kernel
@pytest.mark.parametrize("shape", [(0, 8), (8, 0), (0, 0), (8, 8)])
def test_empty_sizes(kernel: ops.KernelInfo, shape: tuple[int, int]) -> None:
    n, k = shape
    w = torch.zeros(n, k)
    fmt = BSR.from_dense(w, (4, 4)) if kernel.packing == "bsr" else CSR.from_dense(w)
    bias = torch.arange(n).float()
    for m in (0, 1, 17):
        y = forced(kernel, fmt, torch.randn(m, k), bias, n)
        assert torch.equal(y, bias.expand(m, n))


@kernel
def test_a_kernel_refuses_another_packing(kernel: ops.KernelInfo) -> None:
    other = "rowlist" if kernel.packing != "rowlist" else "rowgroup"
    packed = ops.pack(CSR.from_dense(weight(8, 8, 0.5)), other)
    with pytest.raises(ValueError, match=f"kernel: expected a {kernel.packing} packing"):
        cpu.run(torch.randn(2, 8), [packed], None, 8, f"*:0:{kernel.name}", "none")
