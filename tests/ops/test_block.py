"""`ops.linear_block`: products with the bits of `ops.linear`, and the layer norm of a residual sum."""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any

import pytest
import torch
from test_kernels import AVAILABLE, BF16, DTYPES, F16, F32, formats_for, weight_for
from test_parts import packed_for, plan_of
from torch import Tensor
from torch.nn import functional as F

from sparseinfer import _core, ops
from sparseinfer.formats import CSR

kernel = pytest.mark.parametrize("kernel", AVAILABLE, ids=lambda k: k.name)

K, HIDDEN, N = 40, 64, 24
TOKENS = (0, 1, 5, 16, 63, 64, 65, 200)
EPS = {F32: 2.0**-23, F16: 2.0**-10, BF16: 2.0**-7}


@pytest.fixture(autouse=True)
def threads() -> Iterator[None]:
    before = torch.get_num_threads()
    yield
    torch.set_num_threads(before)


def product(
    kernel: ops.KernelInfo, n: int, k: int, w_dtype: torch.dtype, bias: Tensor | None, activation: str
) -> ops.Product:
    fmt = formats_for(kernel, weight_for(kernel, n, k, 0.7).to(w_dtype))[0]
    return ops.Product([packed_for(kernel, fmt)], bias, n, plan_of(kernel), activation)


def one_by_one(x: Tensor, products: list[ops.Product]) -> Tensor:
    for p in products:
        x = ops.linear(x, list(p.packings), p.bias, p.n, p.plan, p.activation)
    return x


def assert_normed(got: Tensor, y: Tensor, norm: ops.ResidualNorm) -> None:
    """Of the product y as the kernel rounds it: within the rounding of the sum and of the result."""
    n = y.shape[-1]
    weight, bias = (None if t is None else t.double() for t in (norm.weight, norm.bias))
    s = y.double() + norm.residual.double()
    expected = F.layer_norm(s, [n], weight, bias, norm.eps)
    if not y.numel():
        assert got.shape == y.shape
        return
    deviation = (s.var(-1, correction=0, keepdim=True) + norm.eps).sqrt()
    factor = 1.0 if weight is None else float(weight.abs().max())
    fp32 = 2.0**-23 * (n + 8) * factor * (s.abs().amax(-1, keepdim=True) / deviation + 1)
    stored = EPS[got.dtype] * expected.abs() + 2.0**-23 * (0.0 if bias is None else float(bias.abs().max()))
    assert got.dtype == y.dtype
    assert bool(((got.double() - expected).abs() <= fp32 + stored).all())


@kernel
def test_every_kernel(kernel: ops.KernelInfo) -> None:
    turn = 0
    for w_dtype, x_dtype in DTYPES[kernel.storage]:
        bias = torch.randn(HIDDEN)
        first = product(kernel, HIDDEN, K, w_dtype, bias, "gelu")
        second = product(kernel, N, HIDDEN, w_dtype, None, "none")
        vectors: list[Any] = [None, torch.randn(N), torch.randn(N).to(x_dtype)]
        for m in TOKENS:
            turn += 1
            torch.set_num_threads(1 + turn % 2)
            x = torch.randn(m, K).to(x_dtype)
            y = one_by_one(x, [first, second])
            assert torch.equal(ops.linear_block(x, [first, second]), y)
            assert torch.equal(ops.linear_block(x, [first]), one_by_one(x, [first]))
            residual = torch.randn(m, N).to(x_dtype)
            norm = ops.ResidualNorm(residual, vectors[turn % 3], vectors[(turn + turn // 3) % 3], 1e-5)
            assert_normed(ops.linear_block(x, [first, second], norm), y, norm)


@kernel
def test_any_number_of_threads(kernel: ops.KernelInfo) -> None:
    """1100 tokens: passes of a thread's own, and a rest that threads share."""
    w_dtype, x_dtype = DTYPES[kernel.storage][0]
    products = [
        product(kernel, HIDDEN, K, w_dtype, None, "relu"),
        product(kernel, N, HIDDEN, w_dtype, None, "none"),
    ]
    for m in (1100, 300):
        x, residual = torch.randn(m, K).to(x_dtype), torch.randn(m, N).to(x_dtype)
        norm = ops.ResidualNorm(residual, torch.randn(N), torch.randn(N), 1e-12)
        for given in (None, norm):
            results = []
            for count in (1, 2, 3):
                torch.set_num_threads(count)
                results.append(ops.linear_block(x, products, given))
            assert torch.equal(results[0], results[1])
            assert torch.equal(results[0], results[2])
        assert_normed(results[0], one_by_one(x, products), norm)


def case(n: int = N, k: int = K) -> ops.Product:
    packed = ops.pack(CSR.from_dense(torch.randn(n, k) * (torch.rand(n, k) > 0.6)), "rowgroup")
    return ops.Product([packed], torch.randn(n), n, f"*:0:{ops.default_kernel(packed, 4)}", "none")


@pytest.mark.parametrize("n", [1, 2, 3, 7, 8, 15, 16, 17, 31, 33, 63, 64, 65, 100, 129, 768])
def test_rows_of_any_length(n: int) -> None:
    p, x = case(n), torch.randn(9, K)
    norm = ops.ResidualNorm(torch.randn(9, n) + 100.0, torch.randn(n), None, 1e-5)
    assert_normed(ops.linear_block(x, [p], norm), one_by_one(x, [p]), norm)


def test_nan_stays_in_its_row() -> None:
    p, x, residual = case(), torch.randn(9, K), torch.randn(9, N)
    residual[4, 3], residual[5, 0] = float("nan"), float("inf")
    got = ops.linear_block(x, [p], ops.ResidualNorm(residual, None, None, 1e-5))
    assert got.isnan().any(-1).tolist() == [row in (4, 5) for row in range(9)]
    assert bool(got[4].isnan().all())


@pytest.mark.parametrize("shape", [(K,), (1, K), (2, 3, K), (0, K), (2, 0, K), (3, 1, 1, K)])
def test_leading_dimensions_and_strides(shape: tuple[int, ...]) -> None:
    p = case()
    residual = torch.randn(*shape[:-1], 2 * N)[..., :N]
    for x in (torch.randn(shape), torch.randn(*shape[:-1], 2 * K)[..., ::2], torch.randn(1).expand(shape)):
        norm = ops.ResidualNorm(residual, torch.randn(N), torch.randn(N), 1e-5)
        got = ops.linear_block(x, [p], norm)
        assert got.shape == (*shape[:-1], N)
        assert got.is_contiguous()
        assert_normed(got, one_by_one(x, [p]), norm)


class TestErrors:
    @pytest.mark.parametrize(
        ("change", "error", "match"),
        [
            ({"x": torch.ones(3, K + 1)}, ValueError, f"x: expected {K} in_features"),
            ({"x": torch.ones(3, K, dtype=torch.float64)}, TypeError, "x: expected dtype"),
            ({"x": torch.ones(3, K, device="meta")}, ValueError, "x: expected a tensor on the CPU"),
            ({"products": []}, ValueError, "products: expected one or two, got 0"),
            ({"products": [case(), case()]}, ValueError, f"x: expected {K} in_features"),
            ({"residual": torch.ones(3, N + 1)}, ValueError, "residual: expected a tensor like the result"),
            ({"residual": torch.ones(4, N)}, ValueError, "residual: expected a tensor like the result"),
            ({"residual": torch.ones(N)}, ValueError, "residual: expected a tensor like the result"),
            ({"residual": torch.ones(3, N, dtype=BF16)}, ValueError, "residual: expected a tensor like"),
            ({"residual": torch.ones(3, N, device="meta")}, ValueError, "residual: expected a tensor like"),
            ({"weight": torch.ones(N + 1)}, ValueError, "expected shape"),
            ({"weight": torch.ones(N, dtype=torch.int32)}, TypeError, "expected dtype"),
        ],
        ids=range(12),
    )
    def test_are_named(self, change: dict[str, Any], error: Any, match: str) -> None:
        good = {"x": torch.ones(3, K), "products": [case()], "residual": torch.ones(3, N), "weight": None}

        def call(x: Tensor, products: list[ops.Product], residual: Tensor, weight: Tensor | None) -> None:
            ops.linear_block(x, products, ops.ResidualNorm(residual, weight, None, 1e-5))

        call(**good)  # type: ignore[arg-type]
        with pytest.raises(error, match=match):
            call(**{**good, **change})

    def test_the_native_call(self) -> None:
        p, x, y = case(), torch.ones(3, K), torch.empty(3, N)
        kernel = next(i for i, k in enumerate(ops.kernels()) if k.available and k.name.startswith(p.plan[4:]))
        packed = p.packings[0].data_ptr()
        tokens, first = (x.data_ptr(), 0, 3, K, K), (kernel, packed, 0, 0, 0, N)
        _core.block(tokens, first, None, None, y.data_ptr())
        for change, match in (
            ({"first": (-1, *first[1:])}, "kernel: expected the id"),
            ({"first": (*first[:5], N + 1)}, "out_features"),
            ({"second": first}, "in_features"),
            ({"norm": (y.data_ptr(), N, 0, 0, 77, 1e-5)}, "bias: expected fp32"),
            ({"first": (*first[:4], 99, N)}, "activation: expected"),
        ):
            given: dict[str, Any] = {"first": first, "second": None, "norm": None, **change}
            with pytest.raises(ValueError, match=match):
                _core.block(tokens, *given.values(), y.data_ptr())
