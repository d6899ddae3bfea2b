"""Every kernel of the registry, at every level this machine has, forced by name and compared with fp64.

A new row in csrc/cpu/kernels.inc is tested here without a new line; those of int8 in test_int8_kernels.py.
"""

from __future__ import annotations

import pytest
import torch
from torch import Tensor

from sparseinfer import ops
from sparseinfer.formats import BSR, CSR
from sparseinfer.ops.cpu import linear as cpu

# By packing; of grouplist those whose groups have 16, 4 and 1 rows.
BLOCKS = {
    "bsr": [(1, 4), (4, 1), (2, 2), (4, 4), (3, 5), (8, 8), (16, 16), (32, 32), (64, 64)],
    "grouplist": [(16, 1), (4, 4), (3, 5), (1, 1)],
    "grouptile": [(16, 1), (16, 4), (48, 5), (32, 32)],
}

F32, BF16, F16 = torch.float32, torch.bfloat16, torch.float16
# Weight and activation dtypes that each storage takes. Pairs of bf16 round fp32 activations to bf16.
DTYPES = {
    "f32": [(F32, F32), (BF16, BF16), (F16, F16), (BF16, F32)],
    "bf16": [(BF16, BF16), (BF16, F32)],
    "wbf16": [(BF16, F32), (BF16, BF16), (BF16, F16)],
    "wf16": [(F16, F32), (F16, F16)],
}
INT8 = ("i8", "wi8")
AVAILABLE = [k for k in ops.kernels() if k.available and k.storage not in INT8]

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


def weight_for(kernel: ops.KernelInfo, n: int, k: int, sparsity: float, *, integers: bool = False) -> Tensor:
    """Zeros in blocks of 16 where the kernel reads blocks, else anywhere."""
    if kernel.format == "bsr" and n % 8 == 0 and k % 8 == 0:
        return block_weight(n, k, (8, 8), sparsity, integers=integers)
    return weight(n, k, sparsity, integers=integers)


def small_block(kernel: ops.KernelInfo) -> tuple[int, int]:
    return next(b for b in ((4, 4), (16, 4)) if kernel.takes_block(b))


def formats_for(kernel: ops.KernelInfo, w: Tensor) -> list[CSR | BSR]:
    if kernel.format != "bsr":
        return [CSR.from_dense(w)]
    n, k = w.shape
    blocks = [b for b in BLOCKS[kernel.packing] if n % b[0] == 0 and k % b[1] == 0 and kernel.takes_block(b)]
    return [BSR.from_dense(w, b) for b in blocks]


def forced(
    kernel: ops.KernelInfo,
    fmt: CSR | BSR,
    x: Tensor,
    bias: Tensor | None = None,
    activation: str = "none",
    *,
    panel: int = 0,
    parts: int = 0,
) -> Tensor:
    """Run exactly this kernel; a plan with the full name cannot run another one."""
    packed = ops.pack(fmt, kernel.packing, storage=kernel.storage, isa=kernel.isa, panel=panel)
    return cpu.run(x, [packed], bias, fmt.shape[0], f"*:0:{kernel.name}", activation, parts=parts)


def bound(x: Tensor, fmt: CSR | BSR, bias: Tensor | None = None) -> Tensor:
    """|y - ref| <= 2 eps (nnz_row + 2) (|x| |W|ᵀ + |bias|), a sum in any order, and y's own rounding.

    A bf16 dot product may flush what is below the smallest normal fp32 to zero.
    """
    w = fmt.to_dense().double()
    magnitude = x.double().abs() @ w.abs().T
    terms = (w != 0).sum(1) + 2
    if bias is not None:
        magnitude = magnitude + bias.double().abs()
    rounding = torch.finfo(x.dtype).eps / 2 if x.dtype != F32 else 0.0
    reference = ops.reference_linear(x, fmt, bias).abs()
    smallest = torch.finfo(x.dtype).smallest_normal * torch.finfo(x.dtype).eps  # subnormal y
    return 2 * torch.finfo(F32).eps * terms * magnitude + rounding * reference + smallest + terms * 1.2e-38


def assert_close(y: Tensor, x: Tensor, fmt: CSR | BSR, bias: Tensor | None = None) -> None:
    error = (y.double() - ops.reference_linear(x, fmt, bias)).abs()
    assert (error <= bound(x, fmt, bias)).all(), f"largest error {error.max():.3g}"


def integer_x(m: int, k: int, dtype: torch.dtype = F32) -> Tensor:
    return torch.randint(-3, 4, (m, k), generator=torch.Generator().manual_seed(m)).to(dtype)


def test_the_registry_covers_every_packing_at_every_level_but_that_of_tiles() -> None:
    levels = {k.isa for k in ops.kernels()} - {"amx"}
    for packing in ("csr", "sell", "bitmap", "rowgroup", "rowlist", "bsr", "grouplist"):
        assert {k.isa for k in ops.kernels() if k.packing == packing} - {"amx"} == levels
    for storage in (*DTYPES, *INT8):
        assert {k.isa for k in ops.kernels() if k.storage == storage} - {"amx"} == levels
    assert len({k.name for k in ops.kernels()}) == len(ops.kernels())
    assert {k.isa for k in AVAILABLE} == set(ops.isa_levels())
    assert {k.storage for k in AVAILABLE} == set(DTYPES)


@kernel
@pytest.mark.parametrize("m", [1, 2, 3, 4, 5, 8, 9, 15, 16, 17, 31, 33, 48, 63, 64, 65, 129])
def test_integers_are_exact_at_every_token_count(kernel: ops.KernelInfo, m: int) -> None:
    w = weight_for(kernel, 48, 40, 0.6, integers=True)
    bias = torch.randint(-3, 4, (48,)).float()
    x = integer_x(m, 40)
    for w_dtype, x_dtype in DTYPES[kernel.storage]:
        for fmt in formats_for(kernel, w.to(w_dtype)):
            y = forced(kernel, fmt, x.to(x_dtype), bias)
            assert y.dtype == x_dtype
            assert torch.equal(y.double(), ops.reference_linear(x, fmt, bias).to(x_dtype).double())


LARGE_RAGGED = [(64, 64), (1, 1000), (1000, 2), (33, 2500)]


@kernel
@pytest.mark.parametrize(
    "size", [(1, 1), (3, 127), (4, 128), (5, 129), (15, 255), (16, 256), (17, 257), *LARGE_RAGGED]
)
def test_integers_are_exact_at_ragged_sizes(kernel: ops.KernelInfo, size: tuple[int, int]) -> None:
    n, k = size
    w_dtype, x_dtype = DTYPES[kernel.storage][0]
    for sparsity in (0.5, 0.95):
        w = weight(n, k, sparsity, integers=True).to(w_dtype)
        for m in (1, 7, 16, 70):
            x = integer_x(m, k)
            for fmt in formats_for(kernel, w):
                y = forced(kernel, fmt, x.to(x_dtype))
                assert torch.equal(y.double(), ops.reference_linear(x, fmt).to(x_dtype).double())


@kernel
@pytest.mark.parametrize("panel", [16, 48, 384])
def test_integers_are_exact_at_every_panel(kernel: ops.KernelInfo, panel: int) -> None:
    if kernel.format == "bsr" or not kernel.panelled:
        panel = 0  # of blocks, or none to choose
    w_dtype, x_dtype = DTYPES[kernel.storage][0]
    w = weight_for(kernel, 40, 800, 0.6, integers=True).to(w_dtype)
    for m in (1, 16, 70):
        x = integer_x(m, 800)
        for fmt in formats_for(kernel, w):
            y = forced(kernel, fmt, x.to(x_dtype), panel=panel)
            assert torch.equal(y.double(), ops.reference_linear(x, fmt).to(x_dtype).double())


@kernel
def test_more_columns_than_16_bits_count(kernel: ops.KernelInfo) -> None:
    k = (1 << 16) + 200
    w = torch.zeros(16, k)
    for row in range(16):
        w[row, row :: 997 + row] = 1.0
    w[:, -8:] = 2.0
    w_dtype, x_dtype = DTYPES[kernel.storage][0]
    fmt: CSR | BSR = (
        BSR.from_dense(w.to(w_dtype), small_block(kernel))
        if kernel.format == "bsr"
        else CSR.from_dense(w.to(w_dtype))
    )
    x = integer_x(3, k)
    y = forced(kernel, fmt, x.to(x_dtype))
    assert torch.equal(y.double(), ops.reference_linear(x, fmt).to(x_dtype).double())


@kernel
def test_blocks_of_every_size(kernel: ops.KernelInfo) -> None:
    w_dtype, x_dtype = DTYPES[kernel.storage][0]
    x = torch.randn(20, 320).to(x_dtype)
    for block in [b for b in BLOCKS.get(kernel.packing, []) if kernel.takes_block(b)] or [(1, 1)]:
        n, k = 3 * 64 // block[0] * block[0], 320 // block[1] * block[1]
        w = block_weight(n, k, block, 0.7).to(w_dtype)
        fmt = BSR.from_dense(w, block) if kernel.format == "bsr" else CSR.from_dense(w)
        assert_close(forced(kernel, fmt, x[:, :k]), x[:, :k], fmt)


@kernel
@pytest.mark.parametrize("sparsity", [0.0, 0.5, 0.8, 0.9, 0.95, 0.99, 1.0])
def test_close_to_fp64(kernel: ops.KernelInfo, sparsity: float) -> None:
    w = weight_for(kernel, 192, 320, sparsity)
    bias = torch.randn(192)
    for w_dtype, x_dtype in DTYPES[kernel.storage]:
        for m in (1, 5, 40, 100):
            x = torch.randn(m, 320).to(x_dtype)
            if kernel.storage == "bf16":
                x = x.to(BF16).to(x_dtype)
            for fmt in formats_for(kernel, w.to(w_dtype))[:4]:
                assert_close(forced(kernel, fmt, x, bias), x, fmt, bias)


@pytest.mark.parametrize("k", [1, 7, 63, 64, 65, 320])
@kernel
def test_kernels_of_bf16_round_x_like_torch(kernel: ops.KernelInfo, k: int) -> None:
    if kernel.storage != "bf16":
        return
    for m in (1, 5, 16, 33, 100):
        x = torch.randn(m, k + 3)[:, :k]
        for fmt in formats_for(kernel, weight_for(kernel, 64, k, 0.5).to(BF16))[:1]:
            assert torch.equal(forced(kernel, fmt, x), forced(kernel, fmt, x.to(BF16).float()))


@kernel
def test_bias_in_the_dtype_of_x(kernel: ops.KernelInfo) -> None:
    bias = torch.randint(-3, 4, (48,)).float()
    for w_dtype, x_dtype in DTYPES[kernel.storage]:
        fmt = formats_for(kernel, weight_for(kernel, 48, 40, 0.6, integers=True).to(w_dtype))[0]
        for m in (1, 20):
            x = integer_x(m, 40).to(x_dtype)
            wanted = ops.reference_linear(x, fmt, bias).to(x_dtype)
            for bias_dtype in (x_dtype, BF16):
                assert torch.equal(forced(kernel, fmt, x, bias.to(bias_dtype)), wanted)


@pytest.mark.parametrize("kernel", [k for k in AVAILABLE if k.storage == "bf16"], ids=lambda k: k.name)
def test_pairs_round_x_and_nothing_else(kernel: ops.KernelInfo) -> None:
    fmt = formats_for(kernel, weight_for(kernel, 48, 320, 0.6).to(BF16))[0]
    bias = torch.randn(48)
    for m in (1, 5, 100):
        x = torch.randn(m, 320)
        rounded = x.to(BF16).float()
        y = forced(kernel, fmt, x, bias)
        assert_close(y, rounded, fmt, bias)
        assert torch.equal(y, forced(kernel, fmt, rounded, bias))
        assert torch.equal(y.to(BF16), forced(kernel, fmt, rounded.to(BF16), bias))
        wide = torch.full((m, 640), float("nan"))
        wide[:, ::2] = x
        assert torch.equal(y, forced(kernel, fmt, wide[:, ::2], bias))
        assert torch.equal(y, forced(kernel, fmt, x.T.contiguous().T, bias))


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
    w_dtype, x_dtype = DTYPES[kernel.storage][0]
    x = torch.randn(50, k).to(x_dtype)
    for w in (empty_rows, one_dense_row, one_dense_column, triangle):
        for fmt in formats_for(kernel, w.to(w_dtype)):
            assert_close(forced(kernel, fmt, x), x, fmt)


@kernel
@pytest.mark.parametrize("m", [3, 100, 600])
def test_results_do_not_depend_on_splits_or_threads(kernel: ops.KernelInfo, m: int) -> None:
    w_dtype, x_dtype = DTYPES[kernel.storage][0]
    w = weight(608, 320, 0.7).to(w_dtype)
    x = torch.randn(m, 320).to(x_dtype)
    fmt: CSR | BSR = BSR.from_dense(w, small_block(kernel)) if kernel.format == "bsr" else CSR.from_dense(w)
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
    w_dtype, x_dtype = DTYPES[kernel.storage][0]
    fmt = formats_for(kernel, torch.eye(16).to(w_dtype))[0]
    x = torch.linspace(-30, 30, 16 * 500).reshape(-1, 16).to(x_dtype)
    y = forced(kernel, fmt, x, None, activation)
    error = (y.double() - ops.reference_linear(x, fmt, None, activation)).abs()
    rounding = torch.finfo(x_dtype).eps / 2 if x_dtype != F32 else 0.0
    allowed = (4 * torch.finfo(F32).eps + rounding) * x.abs().double()
    assert (error <= allowed).all(), f"largest error {error.max():.3g}"


@kernel
def test_nan_and_inf_reach_only_their_own_outputs(kernel: ops.KernelInfo) -> None:
    w_dtype, x_dtype = DTYPES[kernel.storage][0]
    w = torch.zeros(64, 64)
    w[3, 5], w[7, 9], w[20, 63] = 1.0, 2.0, 3.0
    x = torch.ones(20, 64)
    x[4, 5], x[6, 9], x[8, 11] = float("nan"), float("inf"), float("nan")
    x[9, 0], x[10, 63] = float("nan"), float("nan")
    fmt = formats_for(kernel, w.to(w_dtype))[0]
    y = forced(kernel, fmt, x.to(x_dtype))
    assert y[4, 3].isnan()
    assert y[6, 7] == float("inf")
    assert y[10, 20].isnan()
    if kernel.format != "bsr":  # a block holds zeros, and zero times NaN is NaN
        assert y.isfinite().sum() == y.numel() - 3
        assert not y[8].isnan().any()


@kernel
def test_tokens_that_are_not_finite_change_no_bit_of_others(kernel: ops.KernelInfo) -> None:
    w_dtype, x_dtype = DTYPES[kernel.storage][0]
    fmt = formats_for(kernel, weight_for(kernel, 24, 2504, 0.5).to(w_dtype))[0]
    x = torch.randn(12, 2504).to(x_dtype)  # kernels take 8 of them together, and 4
    y = forced(kernel, fmt, x)
    odd = torch.tensor([3, 11])
    x[odd, odd] = float("inf")
    others = ~torch.isin(torch.arange(12), odd)
    assert torch.equal(forced(kernel, fmt, x)[others], y[others])


@kernel
def test_packing_is_exact_both_ways(kernel: ops.KernelInfo) -> None:
    w = weight(192, 320, 0.7)
    w[0, 0], w[5, 7] = float("nan"), float("-inf")
    w[9, 9], w[9, 10] = -1e-40, 6e-8
    for w_dtype in {w_dtype for w_dtype, _ in DTYPES[kernel.storage]}:
        for fmt in formats_for(kernel, w.to(w_dtype)):
            back = ops.unpack(ops.pack(fmt, kernel.packing, storage=kernel.storage, isa=kernel.isa))
            assert back.dtype == w_dtype
            assert torch.equal(back.values.view(torch.int8), fmt.values.view(torch.int8))
            assert torch.equal(back.crow_indices, fmt.crow_indices)
            assert torch.equal(back.col_indices, fmt.col_indices)
            assert back.shape == fmt.shape


@kernel
@pytest.mark.parametrize("shape", [(0, 8), (16, 0), (0, 0), (16, 8)])
def test_empty_sizes(kernel: ops.KernelInfo, shape: tuple[int, int]) -> None:
    n, k = shape
    w_dtype, x_dtype = DTYPES[kernel.storage][0]
    w = torch.zeros(n, k, dtype=w_dtype)
    fmt = BSR.from_dense(w, small_block(kernel)) if kernel.format == "bsr" else CSR.from_dense(w)
    bias = torch.arange(n).float()
    for m in (0, 1, 17):
        y = forced(kernel, fmt, torch.randn(m, k).to(x_dtype), bias)
        assert torch.equal(y.float(), bias.expand(m, n))


@kernel
def test_a_kernel_refuses_another_packing(kernel: ops.KernelInfo) -> None:
    other = "rowlist" if kernel.packing != "rowlist" else "rowgroup"
    packed = ops.pack(CSR.from_dense(weight(8, 8, 0.5)), other)
    with pytest.raises(ValueError, match=f"kernel: expected a {kernel.packing} packing"):
        cpu.run(torch.randn(2, 8), [packed], None, 8, f"*:0:{kernel.name}", "none")


@kernel
def test_a_kernel_refuses_activations_it_would_have_to_round(kernel: ops.KernelInfo) -> None:
    accepted = {x_dtype for _, x_dtype in DTYPES[kernel.storage]}
    w = torch.eye(16).to(DTYPES[kernel.storage][0][0])
    for x_dtype in {F32, F16} - accepted if kernel.storage == "bf16" else set():
        with pytest.raises(ValueError, match=f"x: expected fp32 or bf16 for {kernel.name}"):
            forced(kernel, formats_for(kernel, w)[0], torch.ones(2, 16, dtype=x_dtype))
