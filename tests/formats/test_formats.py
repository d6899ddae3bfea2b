"""Formats against scipy, numpy and torch."""

from __future__ import annotations

import copy

import numpy as np
import pytest
import scipy.sparse
import torch
from copies import by_pickle
from generators import (
    PATTERNS,
    SPARSITIES,
    block_weight,
    noncontiguous,
    weight,
)

from sparseinfer.formats import BSR, CSR

DTYPES = (torch.float32, torch.bfloat16, torch.float16)
SHAPES = ((1, 1), (1, 7), (7, 1), (5, 17), (33, 64))
EMPTY_SHAPES = ((0, 0), (0, 5), (5, 0))
BLOCKS = ((1, 1), (1, 4), (4, 1), (4, 4), (3, 5), (16, 16))


def bits(t: torch.Tensor) -> torch.Tensor:
    return t.view({2: torch.int16, 4: torch.int32}[t.element_size()])


def assert_csr_is(csr: CSR, reference: scipy.sparse.csr_array) -> None:
    np.testing.assert_array_equal(csr.values.numpy(), reference.data)
    np.testing.assert_array_equal(csr.crow_indices.numpy(), reference.indptr)
    np.testing.assert_array_equal(csr.col_indices.numpy(), reference.indices)
    assert csr.shape == reference.shape


@pytest.mark.parametrize("pattern", PATTERNS)
@pytest.mark.parametrize("sparsity", SPARSITIES)
def test_csr_from_dense_is_scipys(pattern, sparsity):
    for n, k in SHAPES:
        w = weight(pattern, n, k, sparsity)
        assert_csr_is(CSR.from_dense(w), scipy.sparse.csr_array(w.numpy()))


@pytest.mark.parametrize("block", BLOCKS, ids=str)
@pytest.mark.parametrize("sparsity", SPARSITIES)
def test_bsr_from_dense_is_scipys(block, sparsity):
    w = block_weight(6 * block[0], 5 * block[1], block, sparsity)
    bsr = BSR.from_dense(w, block)
    # scipy drops all-zero blocks too, but only when it starts from a matrix without stored zeros
    reference = scipy.sparse.csr_array(w.numpy()).tobsr(block)
    reference.sort_indices()
    np.testing.assert_array_equal(bsr.values.numpy(), reference.data)
    np.testing.assert_array_equal(bsr.crow_indices.numpy(), reference.indptr)
    np.testing.assert_array_equal(bsr.col_indices.numpy(), reference.indices)
    assert (bsr.block_size, bsr.nnz) == (block, reference.data.size)


@pytest.mark.parametrize("block", BLOCKS)
def test_blocks_value_by_value_are_scipys(block):
    n, k = 3 * block[0], 5 * block[1]
    w = block_weight(n, k, block, 0.5)
    w[: block[0]][w[: block[0]] > 1] = 0  # zeros that stay stored
    bsr = BSR.from_dense(w, block)
    stored = bsr.values.numpy(), bsr.col_indices.numpy(), bsr.crow_indices.numpy()
    reference = scipy.sparse.bsr_array(stored, shape=(n, k), blocksize=block).tocsr()
    reference.sort_indices()
    assert_csr_is(bsr.to_csr(), reference)
    assert bsr.to_csr().nnz == bsr.nnz


@pytest.mark.parametrize("dtype", DTYPES, ids=str)
@pytest.mark.parametrize("pattern", PATTERNS)
def test_round_trips_are_bit_exact(pattern, dtype):
    w = weight(pattern, 12, 20, 0.7, dtype=dtype)
    for fmt in (CSR.from_dense(w), BSR.from_dense(w, (3, 4))):
        assert fmt.dtype == dtype
        assert torch.equal(bits(fmt.to_dense()), bits(w))
        there = fmt.to_torch_sparse()
        assert there.layout == fmt._layout
        assert there.shape == w.shape
        assert torch.equal(bits(there.to_dense()), bits(w))
        back = type(fmt).from_torch(there)
        for name in ("values", "crow_indices", "col_indices"):
            assert torch.equal(getattr(back, name), getattr(fmt, name))
        assert back.shape == fmt.shape


@pytest.mark.parametrize("shape", EMPTY_SHAPES, ids=str)
def test_empty_shapes(shape):
    w = torch.zeros(shape)
    csr = CSR.from_dense(w)
    assert_csr_is(csr, scipy.sparse.csr_array(shape, dtype=np.float32))
    for fmt in (csr, BSR.from_dense(w, (1, 1)), BSR.from_dense(w, (5, 5))):
        assert (fmt.nnz, fmt.density, fmt.sparsity) == (0, 1.0, 0.0)
        assert fmt.to_dense().shape == shape
        assert type(fmt).from_torch(fmt.to_torch_sparse()).shape == shape
    assert CSR.from_scipy(scipy.sparse.csr_array(shape, dtype=np.float32)).shape == shape


def test_sizes_and_fractions():
    csr = CSR.from_dense(torch.tensor([[1.0, 0.0, 2.0, 0.0], [0.0, 0.0, 3.0, 0.0]]))
    assert (csr.shape, csr.nnz, csr.density, csr.sparsity) == ((2, 4), 3, 3 / 8, 5 / 8)
    assert csr.nbytes == 3 * 4 + 3 * 8 + 3 * 4
    assert repr(csr) == "CSR(shape=(2, 4), nnz=3, sparsity=0.6250, dtype=torch.float32)"
    bsr = BSR.from_dense(csr.to_dense(), (2, 2))
    assert (bsr.nnz, bsr.density, bsr.block_size) == (8, 1.0, (2, 2))
    assert bsr.nbytes == 8 * 4 + 2 * 8 + 2 * 4
    assert "block_size=(2, 2)" in repr(bsr)


@pytest.mark.parametrize("layout", ["transposed", "strided", "expanded"])
def test_non_contiguous_input_is_read_by_its_strides(layout):
    w = weight("random", 8, 12)
    view = {
        "transposed": w.T.contiguous().T,
        "strided": noncontiguous(w),
        "expanded": w[:1].expand(8, 12),
    }[layout]
    assert not view.is_contiguous()
    assert_csr_is(CSR.from_dense(view), scipy.sparse.csr_array(view.numpy()))
    assert torch.equal(BSR.from_dense(view, (4, 4)).to_dense(), view)


def test_non_contiguous_and_trainable_parts_are_made_plain():
    interleaved = torch.arange(1.0, 7.0).requires_grad_()[::2]
    csr = CSR(
        interleaved, torch.tensor([0, 9, 2, 9, 3])[::2], torch.tensor([0, 1, 0], dtype=torch.int32), (2, 2)
    )
    assert csr.values.is_contiguous()
    assert csr.crow_indices.is_contiguous()
    assert not csr.values.requires_grad
    assert csr.to_dense().tolist() == [[1.0, 3.0], [5.0, 0.0]]
    assert not CSR.from_dense(torch.nn.Parameter(torch.eye(3))).values.requires_grad


def test_nan_and_inf_are_values_and_minus_zero_is_not():
    w = torch.tensor([[float("nan"), 0.0, -0.0], [float("inf"), float("-inf"), 0.0]])
    csr = CSR.from_dense(w)
    assert csr.nnz == 3
    assert csr.col_indices.tolist() == [0, 0, 1]
    assert torch.equal(bits(csr.to_dense()), bits(w.where(w != 0, 0.0)))
    assert BSR.from_dense(w, (1, 3)).nnz == 6


def test_stored_zeros_stay_stored():
    reference = scipy.sparse.csr_array(np.eye(3, dtype=np.float32))
    reference.data[1] = 0.0
    csr = CSR.from_scipy(reference)
    assert csr.nnz == 3
    assert CSR.from_torch(csr.to_torch_sparse()).nnz == 3


@pytest.mark.parametrize("make", [scipy.sparse.csr_array, scipy.sparse.csr_matrix])
@pytest.mark.parametrize("dtype", [np.float32, np.float16])
def test_from_scipy(make, dtype):
    dense = weight("random", 9, 14).numpy().astype(dtype)
    # scipy carries float16 values but cannot convert a float16 matrix
    source = make(dense.astype(np.float32))
    source.data = source.data.astype(dtype)
    csr = CSR.from_scipy(source)
    np.testing.assert_array_equal(csr.to_dense().numpy(), dense)
    source.data[:] = 0
    source.indices[:] = 0
    np.testing.assert_array_equal(csr.to_dense().numpy(), dense)


def test_from_torch_copies_and_takes_int32_indices():
    w = weight("random", 6, 10)
    t = w.to_sparse_csr()
    crow, col = t.crow_indices().int(), t.col_indices().int()
    narrow = torch.sparse_csr_tensor(crow, col, t.values(), t.shape, check_invariants=True)
    csr = CSR.from_torch(narrow)
    assert csr.crow_indices.dtype == torch.int64
    assert csr.col_indices.dtype == torch.int32
    narrow.values().zero_()
    assert torch.equal(csr.to_dense(), w)
    assert not csr.values._is_view()


def test_deepcopy_and_pickle():
    for fmt in (CSR.from_dense(weight("random", 4, 6)), BSR.from_dense(weight("random", 4, 6), (2, 3))):
        for copied in (copy.deepcopy(fmt), by_pickle(fmt)):
            assert torch.equal(copied.to_dense(), fmt.to_dense())
            assert copied.values.data_ptr() != fmt.values.data_ptr()


def test_frozen_and_compared_by_identity():
    csr = CSR.from_dense(torch.eye(2))
    with pytest.raises(AttributeError):
        csr.shape = (3, 3)
    assert csr == csr
    assert csr != CSR.from_dense(torch.eye(2))


def test_validate_sees_later_writes():
    csr = CSR.from_dense(torch.eye(3))
    csr.validate()
    csr.col_indices[0] = 77
    with pytest.raises(ValueError, match="col_indices"):
        csr.validate()
