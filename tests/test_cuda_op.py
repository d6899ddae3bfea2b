"""The operator on CUDA up to the launch: a stand-in for the native module computes what it is told to."""

from __future__ import annotations

import ctypes
from types import SimpleNamespace
from typing import Any

import numpy as np
import pytest
import torch
from generators import tokens, weight
from torch import Tensor

from sparseinfer.formats import CSR
from sparseinfer.modules._packed import split_rows
from sparseinfer.ops import cuda, cuda_conv, cuda_packing, cuda_registry
from sparseinfer.ops.cuda_registry import CudaKernel
from sparseinfer.ops.packing import DTYPES
from sparseinfer.ops.reference import ACTIVATIONS, reference_conv, reference_linear

F32, BF16, F16 = torch.float32, torch.bfloat16, torch.float16
STREAM = 77


def at(address: int, shape: tuple[int, ...], stride: tuple[int, ...], dtype: torch.dtype) -> Tensor:
    """Memory at an address, as the native module would see it."""
    length = sum((size - 1) * step for size, step in zip(shape, stride, strict=True)) + 1
    raw = np.ctypeslib.as_array((ctypes.c_uint8 * (length * dtype.itemsize)).from_address(address))
    return torch.from_numpy(raw).view(dtype).as_strided(shape, stride)


class Native:
    """Computes in float64 from the addresses of a call; holds the calls."""

    def __init__(self) -> None:
        self.calls: list[str] = []
        names = [
            ("spmm", d, t, most)
            for d in DTYPES
            for t, most in (("t4", 4), ("t32" if d == "f32" else "t64", 0))
        ]
        names += [("decompress", d, "p480", 0) for d in DTYPES]
        self.rows = [
            {"name": f"{op}_csr_{d}_{tile}__simt", "op": op, "packing": "csr", "dtype": d, "tile": tile}
            | {"arch": "simt", "block": 1, "max_tokens": most}
            for op, d, tile, most in names
        ]

    def kernels(self) -> list[dict[str, Any]]:
        return self.rows

    def runs_on(self, kernel: int, index: int) -> bool:
        return True

    def _weight(self, header: int, packed: int, nbytes: int) -> Tensor:
        assert torch.equal(at(header, (128,), (1,), torch.uint8), at(packed, (128,), (1,), torch.uint8))
        return cuda_packing.unpack(at(packed, (nbytes,), (1,), torch.uint8).clone()).to_dense()

    def spmm(self, *args: int) -> None:
        (
            kernel,
            _,
            stream,
            header,
            packed,
            nbytes,
            x,
            x_dtype,
            m,
            k,
            ldx,
            bias,
            bias_dtype,
            y,
            n,
            activation,
        ) = args
        assert stream == STREAM
        self.calls.append(self.rows[kernel]["name"])
        w = self._weight(header, packed, nbytes)
        dtypes = list(DTYPES.values())
        rows = at(x, (m, k), (ldx, 1), dtypes[x_dtype]).double()
        result = rows @ w.double().T
        if bias:
            result = result + at(bias, (n,), (1,), dtypes[bias_dtype]).double()
        at(y, (m, n), (n, 1), w.dtype).copy_(list(ACTIVATIONS.values())[activation](result))

    def decompress(self, *args: int) -> None:
        kernel, _, stream, header, packed, nbytes, y, ldy = args
        assert stream == STREAM
        assert ldy % 8 == 0
        self.calls.append(self.rows[kernel]["name"])
        w = self._weight(header, packed, nbytes)
        at(y, tuple(w.shape), (ldy, 1), w.dtype).copy_(w)


@pytest.fixture
def native(monkeypatch: pytest.MonkeyPatch) -> Native:
    module = Native()
    rows = tuple(CudaKernel(**row) for row in module.rows)
    for place in (cuda, cuda_registry):
        monkeypatch.setattr(place, "cuda", lambda: module)
        monkeypatch.setattr(place, "cuda_kernels", lambda: rows)
    monkeypatch.setattr(torch.cuda, "current_stream", lambda device: SimpleNamespace(cuda_stream=STREAM))
    cuda_registry.cuda_kernel_id.cache_clear()
    cuda.choices.cache_clear()
    return module


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


@pytest.mark.parametrize("groups", [1, 2])
def test_convolutions_are_unfolded(native: Native, groups: int) -> None:
    w = weight("random", 8, 4 // groups * 6, 0.5, integer=True)
    fmt = CSR.from_dense(w)
    packings = [cuda_packing.pack(part, "cpu") for part in split_rows(fmt, groups)]
    x, bias = tokens(3, 4 * 7 * 9, integer=True).view(3, 4, 7, 9), torch.arange(8.0)
    how = {"stride": [2, 1], "padding": [1, 2], "dilation": [1, 2], "groups": groups}
    y = cuda_conv.run(x, packings, bias, 8, [2, 3], **how, plan=plan_for("f32"), activation="relu")
    wanted = reference_conv(x, w.view(8, 4 // groups, 2, 3), bias, "relu", **how)
    assert torch.equal(y.double(), wanted)
    assert y.is_contiguous()
    with pytest.raises(ValueError, match="packings: expected at least"):
        cuda_conv.run(x, packings[1:], bias, 8, [2, 3], **how, plan=plan_for("f32"), activation="relu")
    assert len(native.calls) == groups


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
