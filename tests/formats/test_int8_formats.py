"""Formats of int8 values with a scale for each row, and layers that hold them."""

from __future__ import annotations

import pickle

import pytest
import torch
from torch import Tensor, nn

from sparseinfer import ops
from sparseinfer.formats import BSR, CSR
from sparseinfer.modules import SparseLinear

I8 = torch.int8


def matrix(n: int = 24, k: int = 64, sparsity: float = 0.7) -> tuple[Tensor, Tensor]:
    w = torch.randint(-127, 128, (n, k)) * (torch.rand(n, k) >= sparsity)
    return w.to(I8), torch.rand(n) + 0.1


def test_dense_is_values_times_scales() -> None:
    w, scales = matrix()
    for fmt in (CSR.from_dense(w, scales), BSR.from_dense(w, (4, 8), scales)):
        assert fmt.dtype == I8
        assert torch.equal(fmt.to_dense(), w.float() * scales[:, None])
        assert fmt.scales is not None
        assert fmt.nbytes >= fmt.values.numel() + 4 * 24
        with pytest.raises(TypeError, match="values: expected a dtype without scales, got int8"):
            fmt.to_torch_sparse()
    assert CSR.from_dense(w, scales).nnz == int((w != 0).sum())


def test_scales_belong_to_int8_and_to_every_row() -> None:
    w, scales = matrix()
    with pytest.raises(ValueError, match="scales: expected one of each row for int8 values, got none"):
        CSR.from_dense(w)
    with pytest.raises(ValueError, match=r"scales: expected none for torch\.float32 values, got some"):
        CSR.from_dense(w.float(), scales)
    with pytest.raises(ValueError, match=r"scales: expected 24 elements \(rows\), got 23"):
        CSR.from_dense(w, scales[1:])
    with pytest.raises(TypeError, match="scales: expected dtype float32, got float64"):
        CSR.from_dense(w, scales.double())
    for bad in (float("nan"), float("inf"), -1.0):
        scales = scales.clone()
        scales[3] = bad
        with pytest.raises(ValueError, match="scales: expected finite numbers from 0, got others"):
            BSR.from_dense(w, (1, 4), scales)


@pytest.mark.parametrize("storage", ["i8", "wi8"])
def test_a_layer_holds_int8(storage: str) -> None:
    w, scales = matrix()
    fmt, bias, x = CSR.from_dense(w, scales), torch.randn(24), torch.randn(3, 64)
    packing = "rowlist" if storage == "i8" else "bitmap"
    layer = SparseLinear.from_format(fmt, bias, packings=[ops.Layout(packing, storage)])
    assert layer.dtype == torch.float32
    assert torch.equal(layer.weight, fmt.to_dense())
    y = layer(x)
    if storage == "i8":
        assert torch.equal(y, ops.reference_int8(x, fmt, bias))
    state = layer.state_dict()
    assert set(state) == {"values", "crow_indices", "col_indices", "scales", "bias"}
    for name in ("values", "crow_indices", "col_indices", "scales"):
        assert torch.equal(state[name], getattr(fmt, name))
    other = SparseLinear.from_format(CSR.from_dense(*matrix()), torch.zeros(24), packings=layer._layouts())
    other.load_state_dict(state)
    assert torch.equal(other(x), y)
    assert torch.equal(pickle.loads(pickle.dumps(layer))(x), y)
    dense = layer.to_linear()
    assert isinstance(dense, nn.Linear)
    assert torch.equal(dense.weight, fmt.to_dense())
    with pytest.raises(RuntimeError, match=r"Missing key.*scales"):
        other.load_state_dict({name: t for name, t in state.items() if name != "scales"})
    floats = SparseLinear.from_format(CSR.from_dense(fmt.to_dense()), bias)
    with pytest.raises(RuntimeError, match="values"):
        floats.load_state_dict(state)


def test_blocks_and_default_layouts() -> None:
    w, scales = matrix()
    for fmt in (CSR.from_dense(w, scales), BSR.from_dense(w, (1, 4), scales)):
        layer = SparseLinear.from_format(fmt)
        for m in (1, 20, 100):
            x = torch.randn(m, 64)
            assert torch.equal(layer(x), ops.reference_int8(x, fmt))
        assert torch.equal(torch.compile(layer, backend="eager", fullgraph=True)(x), layer(x))
