"""The operator on CUDA up to the launch: a stand-in for the native module computes what it is told to."""

from __future__ import annotations

from typing import Any

import pytest
import torch
from cuda_native import Native
from generators import tokens, weight

from sparseinfer.formats import CSR
from sparseinfer.ops import Layout, format_plan
from sparseinfer.ops.cuda import kernels as cuda_registry
from sparseinfer.ops.cuda import linear as cuda
from sparseinfer.ops.cuda import packing as cuda_packing
from sparseinfer.ops.cuda.tiles import TILED
from sparseinfer.ops.names import ACTIVATIONS, DTYPES
from sparseinfer.ops.reference import reference_linear

F32, BF16, F16 = torch.float32, torch.bfloat16, torch.float16

PLAN = "4:0:spmm_csr_{0}_t4,255:0:spmm_csr_{0}_{1},*:0:decompress_csr_{0}_p480"


def plan_for(dtype: str) -> str:
    return PLAN.format(dtype, "t32" if dtype == "f32" else "t64")


@pytest.mark.parametrize("dtype", list(DTYPES))
def test_the_plan_chooses_by_tokens_and_results_are_the_product(native: Native, dtype: str) -> None:
    w = weight("random", 24, 500, 0.8, integer=True, dtype=DTYPES[dtype])
    packed = cuda_packing.pack(CSR.from_dense(w), "cpu")
    bias = torch.arange(24.0)
    for m in (1, 4, 5, 64, 300):
        x = tokens(m, 500, integer=True, dtype=DTYPES[dtype])
        y = cuda.run(x, [packed], bias, 24, plan_for(dtype), "relu")
        assert y.dtype == x.dtype
        wanted = reference_linear(x, CSR.from_dense(w), bias, "relu")
        assert torch.equal(y, wanted.to(x.dtype))
    few, many, dense = f"spmm_csr_{dtype}_t4", f"spmm_csr_{dtype}_t", f"decompress_csr_{dtype}_p480"
    assert [
        call.startswith(name) for call, name in zip(native.calls, (few, few, many, many, dense), strict=True)
    ]
    assert native.calls[-1].startswith(dense)
    assert not any(call.startswith(few) for call in native.calls[2:])


@pytest.mark.parametrize("activation", list(ACTIVATIONS))
def test_activations_that_no_epilogue_computes_follow_it(native: Native, activation: str) -> None:
    fmt = CSR.from_dense(weight("random", 24, 500, 0.8))
    x, bias = tokens(4, 500), torch.arange(24.0)
    y = cuda.run(x, [cuda_packing.pack(fmt, "cpu")], bias, 24, plan_for("f32"), activation)
    wanted = reference_linear(x, fmt, bias, activation)
    assert (y - wanted).abs().max() <= 1e-5 * wanted.abs().max()


@pytest.mark.parametrize("packing", TILED)
def test_tiles_take_the_smallest_tile_of_tokens_that_holds_them(native: Native, packing: str) -> None:
    w = weight("random", 70, 100, 0.7, integer=True, dtype=BF16)
    layout = Layout(packing, "bf16", device="cuda")
    packed = layout.pack(CSR.from_dense(w), device=torch.device("cpu"))
    assert Layout.of(cuda_packing.describe(packed)) == layout
    plan, wide = format_plan(layout.buckets(0)), tokens(300, 104, integer=True, dtype=BF16)
    tiles = {1: "t8", 8: "t8", 9: "t16", 17: "t32", 32: "t32", 33: "t64", 255: "t64", 256: "p64"}
    for m, tile in tiles.items():
        # Rows that begin at multiples of 16 bytes, then three kinds that do not.
        for x in (wide[:m, :100], wide[:m, :100].contiguous(), wide[:m, 1:101], wide[:m, :100].float()):
            y = cuda.run(x, [packed], None, 70, plan, "none")
            assert torch.equal(y, reference_linear(x.to(BF16), CSR.from_dense(w)).to(y.dtype))
            assert native.calls.pop() == f"{'decompress' if m > 255 else 'spmm'}_{packing}_bf16_{tile}__simt"


@pytest.mark.parametrize("packing", ["csr", *TILED])
def test_a_packing_is_written_out_densely(native: Native, packing: str) -> None:
    for n, k in ((70, 100), (3, 0)):
        w = weight("random", n, k, 0.7, dtype=F16)
        dense = cuda.decompress(cuda_packing.pack(CSR.from_dense(w), "cpu", packing))
        assert torch.equal(dense, w)
        assert dense.stride(0) % 8 == 0


def test_any_strides_and_leading_dimensions(native: Native) -> None:
    fmt = CSR.from_dense(weight("random", 24, 40, 0.6, integer=True))
    packed = cuda_packing.pack(fmt, "cpu")
    wide = tokens(6, 100, integer=True)
    for x in (
        tokens(1, 40, integer=True)[0],
        tokens(6, 40, integer=True).view(2, 3, 40),
        wide[:, 7:47],
        wide[:, ::2][:, :40],
        tokens(40, 9, integer=True).T,
        tokens(1, 40, integer=True).expand(5, 40),
        torch.zeros(0, 40),
    ):
        if x.numel() == 0:
            continue
        y = cuda.run(x, [packed], None, 24, plan_for("f32"), "none")
        assert y.shape == (*x.shape[:-1], 24)
        assert torch.equal(y.double(), reference_linear(x, fmt))


def test_float32_is_rounded_to_a_packing_of_16_bits_and_back(native: Native) -> None:
    fmt = CSR.from_dense(weight("random", 24, 40, 0.6, dtype=BF16))
    x = tokens(3, 40)
    y = cuda.run(x, [cuda_packing.pack(fmt, "cpu")], None, 24, plan_for("bf16"), "none")
    assert y.dtype == F32
    assert torch.equal(y, reference_linear(x.to(BF16), fmt).to(BF16).float())


@pytest.mark.parametrize(
    ("change", "error", "message"),
    [
        (
            {"x": torch.randn(3, 40, dtype=F16)},
            TypeError,
            "x: expected dtype torch.float32 .*got torch.float16",
        ),
        ({"x": torch.tensor(1.0)}, ValueError, "x: expected at least 1 dimension"),
        ({"bias": torch.randn(23)}, ValueError, r"bias: expected shape \(24,\)"),
        ({"bias": torch.randn(24).double()}, TypeError, "bias: expected dtype torch.float32"),
        (
            {"bias": torch.empty(24, device="meta")},
            ValueError,
            "bias: expected a tensor on cpu, where x is, got one on meta",
        ),
        ({"plan": "*:1:spmm_csr_f32_t32"}, ValueError, "packings: expected at least 2"),
        ({"plan": "*:0:spmm_nothing_f32_r4"}, ValueError, "kernel: expected one of"),
        ({"activation": "tanh"}, ValueError, "activation: expected one of none, relu"),
        ({"x": torch.randn(3, 41), "plan": "*:0:decompress_csr_f32_p480"}, ValueError, "x: expected"),
    ],
)
def test_bad_arguments(native: Native, change: dict[str, Any], error: type[Exception], message: str) -> None:
    packed = cuda_packing.pack(CSR.from_dense(torch.eye(24, 40)), "cpu")
    arguments = {
        "x": torch.randn(3, 40),
        "bias": None,
        "plan": plan_for("f32"),
        "activation": "none",
    } | change
    with pytest.raises(error, match=message):
        cuda.run(arguments["x"], [packed], arguments["bias"], 24, arguments["plan"], arguments["activation"])
    assert native.calls == []


def test_a_build_without_cuda_says_so(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(cuda_registry, "cuda_module", lambda: None)
    with pytest.raises(RuntimeError, match="cuda: expected a build with CUDA kernels, got one without"):
        cuda_registry.cuda()
    cuda_registry.refusal.cache_clear()
    assert cuda_registry.refusal(0) == "this build has no CUDA kernels"
    cuda_registry.refusal.cache_clear()
