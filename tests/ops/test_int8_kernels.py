"""Every int8 kernel at every level this machine has, to the last bit of the reference in integers."""

from __future__ import annotations

import re

import pytest
import torch
from torch import Tensor

from sparseinfer import ops
from sparseinfer.formats import BSR, CSR
from sparseinfer.ops.cpu import conv as cpu_conv
from sparseinfer.ops.cpu import linear as cpu
from sparseinfer.ops.geometry import Geometry

F32, BF16, F16, I8 = torch.float32, torch.bfloat16, torch.float16, torch.int8
BLOCKS = [(1, 4), (4, 4), (2, 8), (3, 4), (16, 1), (16, 64)]
KERNELS = [k for k in ops.kernels() if k.available and k.storage in ("i8", "wi8")]
ROUNDING = [k for k in KERNELS if k.storage == "i8"]

every = pytest.mark.parametrize("kernel", KERNELS, ids=lambda k: k.name)
rounding = pytest.mark.parametrize("kernel", ROUNDING, ids=lambda k: k.name)


def matrix(n: int, k: int, sparsity: float, block: tuple[int, int] = (1, 1)) -> tuple[Tensor, Tensor]:
    """int8 [n, k] of all values, -128 too, and scales [n]."""
    g = torch.Generator().manual_seed(n + k)
    mask = torch.rand(n // block[0], k // block[1], generator=g) >= sparsity
    mask = mask.repeat_interleave(block[0], 0).repeat_interleave(block[1], 1)
    return (torch.randint(-128, 128, (n, k), generator=g) * mask).to(I8), torch.rand(n, generator=g) + 0.01


def formats(kernel: ops.KernelInfo, n: int, k: int, sparsity: float) -> list[CSR | BSR]:
    """In every block that the kernel takes and the size allows."""
    if kernel.format == "csr":
        return [CSR.from_dense(*matrix(n, k, sparsity))]
    blocks = [b for b in BLOCKS if n % b[0] == 0 and k % b[1] == 0 and kernel.takes_block(b)]
    return [BSR.from_dense(w, b, scales) for b in blocks for w, scales in [matrix(n, k, sparsity, b)]]


def forced(
    kernel: ops.KernelInfo, fmt: CSR | BSR, x: Tensor, bias: Tensor | None = None, activation: str = "none",
    *, parts: int = 0, panel: int = 0,
) -> Tensor:  # fmt: skip
    packed = ops.pack(fmt, kernel.packing, storage=kernel.storage, isa=kernel.isa, panel=panel)
    return cpu.run(x, [packed], bias, fmt.shape[0], f"*:0:{kernel.name}", activation, parts=parts)


def numpy_like_reference(x: Tensor, fmt: CSR | BSR) -> Tensor:
    """The definition, one token after another, independent of `ops.reference_int8`."""
    assert fmt.scales is not None
    ones = torch.ones_like(fmt.scales)
    w = type(fmt)(fmt.values, fmt.crow_indices, fmt.col_indices, fmt.shape, ones).to_dense().to(torch.int64)
    y = torch.empty(x.shape[0], w.shape[0])
    for t, token in enumerate(x.float()):
        low, high = min(0.0, *token.tolist()), max(0.0, *token.tolist())
        scale = torch.tensor((high - low) / 255.0)
        zero = int(torch.floor(0.5 - torch.tensor(low) * (1.0 / scale)))
        q = ((token * (1.0 / scale)).round().long() + zero).clamp(0, 255)
        sums = (w * (q - zero)).sum(1)
        assert int(sums.abs().max()) < 2**31
        y[t] = sums.float() * fmt.scales * scale
    return y


def test_the_reference_is_the_definition() -> None:
    fmt, signed, positive = CSR.from_dense(*matrix(17, 90, 0.5)), torch.randn(20, 90), torch.rand(20, 90)
    for x in (signed, positive + 3.0, -positive, signed * 1e-30):
        assert torch.equal(ops.reference_int8(x, fmt), numpy_like_reference(x, fmt))
        q, zero, scale = ops.quantize_tokens(x)
        half = scale.double() * (0.5 + 2**-14)
        assert ((scale.double() * (q - zero) - x.double()).abs() <= half).all()
        assert (q.amin(-1) >= 0).all()
        assert (q.amax(-1) <= 255).all()


@rounding
@pytest.mark.parametrize("size", [(24, 40), (1, 1), (3, 127), (17, 257), (64, 64), (130, 1100)])
def test_equal_to_the_reference_at_ragged_sizes(kernel: ops.KernelInfo, size: tuple[int, int]) -> None:
    n, k = size
    bias = torch.randn(n)
    for sparsity in (0.0, 0.8, 1.0):
        for fmt in formats(kernel, n, k, sparsity):
            for m in (1, 3, 16, 17, 33, 65):
                x = torch.randn(m, k)
                for dtype in (F32, BF16, F16) if m == 17 else (F32,):
                    y = forced(kernel, fmt, x.to(dtype), bias)
                    assert torch.equal(y, ops.reference_int8(x.to(dtype), fmt, bias).to(dtype))


@rounding
def test_the_largest_products_do_not_saturate(kernel: ops.KernelInfo) -> None:
    """255 times 127 or -128 everywhere, and signs that alternate: pairs of these exceed 16 bits."""
    k = 4096
    w = torch.full((16, k), 127, dtype=I8)
    w[1], w[2, ::2], w[3, 1::2], w[4, k // 2 :] = -128, -128, -127, -128
    fmt: CSR | BSR = CSR.from_dense(w, torch.ones(16))
    if kernel.format == "bsr":
        fmt = BSR.from_dense(w, (4, 4) if kernel.takes_block((4, 4)) else (16, 4), torch.ones(16))
    x = torch.full((70, k), 255.0)
    x[1], x[2, ::2], x[3, 1::2], x[4] = -255.0, 0.0, -255.0, 0.0
    y = forced(kernel, fmt, x)
    assert torch.equal(y, ops.reference_int8(x, fmt))
    assert torch.equal(y.double()[:3], (x.double() @ w.double().T)[:3].float().double())


@every
@pytest.mark.parametrize("m", [3, 100, 600])
def test_results_do_not_depend_on_splits_or_threads(kernel: ops.KernelInfo, m: int) -> None:
    fmt = formats(kernel, 592, 320, 0.7)[0]
    x = torch.randn(m, 320)
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


@every
@pytest.mark.parametrize("panel", [16, 48, 512, 1024])
def test_every_panel(kernel: ops.KernelInfo, panel: int) -> None:
    x = torch.randn(70, 800)
    for fmt in formats(kernel, 48, 800, 0.6):
        allowed = panel if kernel.panelled and kernel.format == "csr" else 0
        y = forced(kernel, fmt, x, panel=allowed)
        if kernel.storage == "i8":
            assert torch.equal(y, ops.reference_int8(x, fmt))
        else:
            assert_close(y, x, fmt)


def assert_close(y: Tensor, x: Tensor, fmt: CSR | BSR, bias: Tensor | None = None) -> None:
    """As test_kernels.bound: sums of fp32 in any order, then a scale, then y's own rounding."""
    w = fmt.to_dense().double()
    magnitude = x.double().abs() @ w.abs().T + (0.0 if bias is None else bias.double().abs())
    reference = ops.reference_linear(x, fmt, bias)
    rounded = torch.finfo(x.dtype).eps / 2 if x.dtype != F32 else 0.0
    smallest = torch.finfo(x.dtype).smallest_normal * torch.finfo(x.dtype).eps  # subnormal y
    allowed = 2 * torch.finfo(F32).eps * ((w != 0).sum(1) + 4) * magnitude + rounded * reference.abs()
    assert ((y.double() - reference).abs() <= allowed + smallest).all()


@pytest.mark.parametrize("kernel", [k for k in KERNELS if k.storage == "wi8"], ids=lambda k: k.name)
def test_widened_weights_do_not_round_x(kernel: ops.KernelInfo) -> None:
    for n, k, sparsity in ((48, 40, 0.5), (160, 320, 0.9), (17, 257, 0.0)):
        bias = torch.randn(n)
        for fmt in formats(kernel, n, k, sparsity):
            for m in (1, 2, 5, 8, 17, 65):
                for dtype in (F32, BF16, F16):
                    x = torch.randn(m, k).to(dtype)
                    assert_close(forced(kernel, fmt, x, bias), x, fmt, bias)


@pytest.mark.parametrize(
    "kernel", [k for k in KERNELS if k.conv and k.storage == "wi8"], ids=lambda k: k.name
)
def test_convolutions(kernel: ops.KernelInfo) -> None:
    fmt = formats(kernel, 48, 36, 0.5)[0]
    packed = ops.pack(fmt, kernel.packing, storage=kernel.storage, isa=kernel.isa)
    x, bias = torch.randn(2, 4, 9, 11), torch.randn(48)
    geometry = Geometry((3, 3), (1, 1), (1, 1), (1, 1), 1)
    y = cpu_conv.run(x, [packed], bias, 48, geometry, f"*:0:{kernel.name}", "none")
    dense = fmt.to_dense().reshape(48, 4, 3, 3)
    wanted = ops.reference_conv(x, dense, bias, padding=1)
    magnitude = ops.reference_conv(x.abs(), dense.abs(), bias.abs(), padding=1)
    assert ((y.double() - wanted).abs() <= 2 * torch.finfo(F32).eps * 40 * magnitude).all()


@every
@pytest.mark.parametrize("activation", ["relu", "gelu", "gelu_tanh", "silu"])
def test_activations(kernel: ops.KernelInfo, activation: str) -> None:
    fmt, x, bias = formats(kernel, 48, 64, 0.7)[0], torch.randn(40, 64), torch.randn(48)
    y = forced(kernel, fmt, x, bias, activation)
    plain = forced(kernel, fmt, x, bias)
    wanted = ops.ACTIVATIONS[activation](plain.double())
    assert ((y.double() - wanted).abs() <= 4 * torch.finfo(F32).eps * plain.double().abs() + 1e-6).all()


@rounding
def test_tokens_that_are_not_finite_give_nan_and_no_other_does(kernel: ops.KernelInfo) -> None:
    fmt, x = formats(kernel, 48, 64, 0.7)[0], torch.randn(40, 64)
    clean = forced(kernel, fmt, x)
    odd = {2: float("nan"), 5: float("inf"), 17: float("-inf"), 39: float("nan")}
    for token, value in odd.items():
        x[token, token] = value
    y = forced(kernel, fmt, x)
    for token in range(40):
        assert y[token].isnan().all() if token in odd else torch.equal(y[token], clean[token])


@every
def test_zeros_and_extremes(kernel: ops.KernelInfo) -> None:
    """Tokens and rows of zeros, scales of zero, the largest and smallest x, one huge weight in a row."""
    w, scales = matrix(48, 64, 0.7, (16, 4))
    w[16:32], scales[5] = 0, 0.0
    w[40, :4] = torch.tensor([1, 1, 127, 1], dtype=I8)
    fmt: CSR | BSR = CSR.from_dense(w, scales)
    if kernel.format == "bsr":
        fmt = BSR.from_dense(w, (1, 4) if kernel.takes_block((1, 4)) else (16, 4), scales)
    x, bias, largest = torch.randn(20, 64), torch.randn(48), torch.finfo(F32).max
    x[0], x[1], x[2], x[3] = 0.0, 1e-45, 1e-39, torch.where(torch.arange(64) % 2 == 0, 1e34, -1e34)
    x[4] = x[4] * 1e-36
    y = forced(kernel, fmt, x, bias)
    assert torch.equal(y[0], bias)
    assert torch.equal(y[:, 16:32], bias[16:32].expand(20, 16))
    assert torch.equal(y[:, 5], bias[5].expand(20))
    assert y.isfinite().all()
    if kernel.storage == "i8":
        x[3, 0], x[3, 1] = largest, -largest
        fmt = type(fmt)(fmt.values, fmt.crow_indices, fmt.col_indices, fmt.shape, fmt.scales * 1e-5)
        assert torch.equal(forced(kernel, fmt, x, bias), ops.reference_int8(x, fmt, bias))


@every
def test_packing_is_exact_both_ways_and_keeps_stored_zeros(kernel: ops.KernelInfo) -> None:
    for fmt in formats(kernel, 48, 320, 0.7):
        values = fmt.values.clone()
        values.view(-1)[::7] = 0
        fmt = type(fmt)(values, fmt.crow_indices, fmt.col_indices, fmt.shape, fmt.scales)
        back = ops.unpack(ops.pack(fmt, kernel.packing, storage=kernel.storage, isa=kernel.isa))
        for part in ("values", "crow_indices", "col_indices", "scales"):
            assert torch.equal(getattr(back, part), getattr(fmt, part))


def test_rows_whose_sums_may_not_fit_are_refused() -> None:
    k = 2**31 // 255 // 127 + 2
    w = torch.full((2, k), 127, dtype=I8)
    w[0, 5:] = 0
    message = re.escape("values: expected magnitudes of int8 that add up to at most 8421504 in a row")
    with pytest.raises(ValueError, match=message + r", .* got 8421\d\d\d in row 1"):
        ops.pack(CSR.from_dense(w, torch.ones(2)), "rowlist", storage="i8")
    w[1, ::2] = 0
    packed = ops.pack(CSR.from_dense(w, torch.ones(2)), "rowlist", storage="i8")
    y = ops.linear(torch.full((1, k), 255.0), [packed], None, 2, "*:0:spmm_rowlist_i8_r1", "none")
    assert torch.equal(y.double(), (255.0 * w.double().sum(1)[None]).float().double())


@pytest.mark.parametrize("packing", sorted({kernel.packing for kernel in KERNELS}))
def test_every_packing_refuses_rows_whose_sums_may_not_fit(packing: str) -> None:
    kernel = next(kernel for kernel in KERNELS if kernel.packing == packing)
    for fmt in formats(kernel, 16, 2**16 + 2**10, 0.0):
        full = type(fmt)(
            torch.full_like(fmt.values, -127), fmt.crow_indices, fmt.col_indices, fmt.shape, fmt.scales
        )
        with pytest.raises(ValueError, match="values: expected magnitudes of int8 that add up to at most"):
            ops.pack(full, packing, storage=kernel.storage, isa=kernel.isa)


def test_int8_has_storages_of_its_own() -> None:
    fmt = CSR.from_dense(*matrix(8, 8, 0.5))
    for storage in ("f32", "bf16", "wf16"):
        with pytest.raises(ValueError, match="storage: expected one that holds i8 values exactly"):
            ops.pack(fmt, "bitmap", storage=storage)
    with pytest.raises(ValueError, match="storage: expected one that packing csr has kernels for"):
        ops.pack(fmt, "csr", storage="i8")
    with pytest.raises(ValueError, match="block_size: expected a number of columns divisible by 4"):
        ops.pack(BSR.from_dense(*[matrix(8, 8, 0.5)[0], (2, 2), torch.ones(8)]), "bsr", storage="i8")
    assert ops.describe(ops.pack(fmt, "rowgroup")).storage == "i8"


def test_kernels_are_offered_where_rounding_is_allowed() -> None:
    assert {k.storage for k in ops.kernels_for("cpu", I8, torch.uint8)} == {"i8", "wi8"}
    assert {k.storage for k in ops.kernels_for("cpu", I8, F32)} == {"wi8"}
    for dtype in (F32, BF16, F16):
        assert not {k.storage for k in ops.kernels_for("cpu", dtype, dtype)} & {"i8", "wi8"}
        assert not {k.storage for k in ops.kernels_for("cpu", dtype, torch.uint8)} & {"i8", "wi8"}
    for tokens in (1, 16, 100):
        for x_dtype in (torch.uint8, F32):
            assert ops.candidate_layouts("cpu", I8, x_dtype, tokens, 0.8)
