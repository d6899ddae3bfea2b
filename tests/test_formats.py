"""Formats against scipy, numpy and torch, and every way to build a wrong one."""

from __future__ import annotations

import copy
import pickle
import re

import numpy as np
import pytest
import scipy.sparse
import torch
from generators import (
    PATTERNS,
    SPARSITIES,
    block_weight,
    noncontiguous,
    values,
    weight,
)

from sparseinfer.formats import BSR, CSR

DTYPES = (torch.float32, torch.bfloat16, torch.float16)
FLOATS = "float32 or bfloat16 or float16"
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
        for copied in (copy.deepcopy(fmt), pickle.loads(pickle.dumps(fmt))):
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


def csr_parts(**changes):
    parts = {
        "values": values(4),
        "crow_indices": torch.tensor([0, 2, 2, 4]),
        "col_indices": torch.tensor([0, 3, 1, 2], dtype=torch.int32),
        "shape": (3, 5),
    }
    return parts | changes


def bsr_parts(**changes):
    return csr_parts(values=values(4, 2, 3), shape=(6, 15)) | changes


def int32(*items: int) -> torch.Tensor:
    return torch.tensor(items, dtype=torch.int32)


BAD_PARTS = {
    "values not a tensor": ({"values": [1.0, 2.0]}, TypeError, "values: expected a torch.Tensor, got list"),
    "values float64": (
        {"values": torch.ones(4, dtype=torch.float64)},
        TypeError,
        f"values: expected dtype {FLOATS}, got float64 (convert it with .to(torch.float32))",
    ),
    "values on meta": (
        {"values": torch.ones(4, device="meta")},
        ValueError,
        "values: expected a tensor on cpu, got meta (materialise it first)",
    ),
    "values sparse": (
        {"values": torch.ones(4).to_sparse()},
        TypeError,
        "values: expected a dense tensor, got torch.sparse_coo (from_torch takes sparse tensors)",
    ),
    "crow int32": (
        {"crow_indices": int32(0, 2, 2, 4)},
        TypeError,
        "crow_indices: expected dtype int64, got int32 (convert it with .to(torch.int64))",
    ),
    "crow rank": (
        {"crow_indices": torch.tensor([[0, 2, 2, 4]])},
        ValueError,
        "crow_indices: expected 1 dimension, got shape (1, 4)",
    ),
    "crow too short": (
        {"crow_indices": torch.tensor([0, 2, 4])},
        ValueError,
        "crow_indices: expected 4 elements (rows + 1), got 3",
    ),
    "crow empty": (
        {"crow_indices": torch.tensor([], dtype=torch.int64)},
        ValueError,
        "crow_indices: expected 4 elements (rows + 1), got 0",
    ),
    "col int64": (
        {"col_indices": torch.tensor([0, 3, 1, 2])},
        TypeError,
        "col_indices: expected dtype int32, got int64 (convert it with .to(torch.int32))",
    ),
    "col too short": (
        {"col_indices": int32(0, 3, 1)},
        ValueError,
        "col_indices: expected 4 elements (values.shape[0]), got 3",
    ),
    "shape of one": ({"shape": (3,)}, TypeError, "shape: expected two integers, got (3,)"),
    "shape of three": ({"shape": (3, 5, 1)}, TypeError, "shape: expected two integers, got (3, 5, 1)"),
    "shape not a tuple": ({"shape": 3}, TypeError, "shape: expected two integers, got 3"),
    "shape of floats": ({"shape": (3.0, 5.0)}, TypeError, "shape: expected two integers, got (3.0, 5.0)"),
    "shape negative": ({"shape": (-1, 5)}, ValueError, "shape: expected two integers >= 0, got (-1, 5)"),
}

BAD_OFFSETS = {
    (1, 2, 2, 4): "expected the first entry to be 0, got 1",
    (0, 2, 2, 3): "expected the last entry to be the number of stored values 4, got 3",
    (0, 2, 2, 5): "expected the last entry to be the number of stored values 4, got 5",
    (0, 3, 2, 4): "expected a non-decreasing sequence, got 2 after 3 at row 1",
    (0, 2**62, 2, 4): f"expected a non-decreasing sequence, got 2 after {2**62} at row 1",
    (0, -(2**62), 2, 4): f"expected a non-decreasing sequence, got {-(2**62)} after 0 at row 0",
}
BAD_COLUMNS = {
    (0, 5, 1, 2): "expected values in [0, 5), got 5",
    (0, 2**31 - 1, 1, 2): f"expected values in [0, 5), got {2**31 - 1}",
    (-1, 3, 1, 2): "expected values in [0, 5), got -1",
    (3, 0, 1, 2): "expected ascending columns without repeats, got 0 after 3 in row 0",
    (0, 3, 2, 2): "expected ascending columns without repeats, got 2 after 2 in row 2",
}
BAD_INDICES = [
    ({"crow_indices": torch.tensor(bad)}, f"crow_indices: {text}") for bad, text in BAD_OFFSETS.items()
]
BAD_INDICES += [({"col_indices": int32(*bad)}, f"col_indices: {text}") for bad, text in BAD_COLUMNS.items()]


@pytest.mark.parametrize(("fmt", "parts"), [(CSR, csr_parts), (BSR, bsr_parts)], ids=("csr", "bsr"))
def test_good_parts_are_good(fmt, parts):
    assert fmt(**parts()).nnz == parts()["values"].numel()


@pytest.mark.parametrize("case", BAD_PARTS)
def test_bad_csr_parts(case):
    changes, error, message = BAD_PARTS[case]
    with pytest.raises(error) as raised:
        CSR(**csr_parts(**changes))
    assert str(raised.value) == message


@pytest.mark.parametrize(("changes", "message"), BAD_INDICES)
@pytest.mark.parametrize(("fmt", "parts"), [(CSR, csr_parts), (BSR, bsr_parts)], ids=("csr", "bsr"))
def test_bad_indices(fmt, parts, changes, message):
    with pytest.raises(ValueError, match=re.escape(message)):
        fmt(**parts(**changes))


@pytest.mark.parametrize(("changes", "message"), BAD_INDICES)
def test_bad_indices_from_torch_and_scipy(changes, message):
    parts = csr_parts(**changes)
    t = torch.sparse_csr_tensor(
        parts["crow_indices"],
        parts["col_indices"].long(),
        parts["values"],
        parts["shape"],
        check_invariants=False,
    )
    with pytest.raises(ValueError, match=re.escape(message)):
        CSR.from_torch(t)
    matrix = scipy.sparse.csr_array(np.eye(3, 5, dtype=np.float32))
    matrix.data, matrix.indices = parts["values"].numpy(), parts["col_indices"].numpy()
    matrix.indptr = parts["crow_indices"].numpy()
    with pytest.raises(ValueError, match=re.escape(message)):
        CSR.from_scipy(matrix)


def test_a_column_that_would_wrap_into_range():
    t = torch.sparse_csr_tensor(
        torch.tensor([0, 1]), torch.tensor([2**32 + 1]), torch.ones(1), (1, 3), check_invariants=False
    )
    message = re.escape(f"col_indices: expected values in [0, 3), got {2**32 + 1}")
    with pytest.raises(ValueError, match=message):
        CSR.from_torch(t)


@pytest.mark.parametrize(
    ("call", "error", "message"),
    [
        (lambda: CSR.from_dense(np.eye(3)), TypeError, "weight: expected a torch.Tensor, got ndarray"),
        (lambda: CSR.from_dense(torch.ones(3)), ValueError, "weight: expected 2 dimensions, got shape (3,)"),
        (
            lambda: CSR.from_dense(torch.ones(2, 2, dtype=torch.int64)),
            TypeError,
            f"weight: expected dtype {FLOATS}, got int64 (convert it with .to(torch.float32))",
        ),
        (
            lambda: CSR.from_dense(torch.ones(2, 2, device="meta")),
            ValueError,
            "weight: expected a tensor on cpu, got meta (materialise it first)",
        ),
        (
            lambda: CSR.from_torch(torch.eye(2)),
            TypeError,
            "tensor: expected layout torch.sparse_csr, got torch.strided (from_dense takes dense tensors)",
        ),
        (
            lambda: BSR.from_torch(torch.eye(2).to_sparse_csr()),
            TypeError,
            "tensor: expected layout torch.sparse_bsr, got torch.sparse_csr (from_dense takes dense tensors)",
        ),
        (
            lambda: CSR.from_torch(torch.ones(2, 3, 4).to_sparse_csr()),
            ValueError,
            "tensor: expected 2 dimensions, got shape (2, 3, 4)",
        ),
        (
            lambda: CSR.from_torch(torch.eye(2, dtype=torch.float64).to_sparse_csr()),
            TypeError,
            f"values: expected dtype {FLOATS}, got float64 (convert it with .to(torch.float32))",
        ),
        (
            lambda: CSR.from_scipy(np.eye(3)),
            TypeError,
            "matrix: expected a scipy.sparse CSR matrix, got ndarray (convert it with .tocsr())",
        ),
        (
            lambda: CSR.from_scipy(scipy.sparse.coo_array(np.eye(3))),
            TypeError,
            "matrix: expected a scipy.sparse CSR matrix, got coo_array (convert it with .tocsr())",
        ),
        (
            lambda: CSR.from_scipy(scipy.sparse.csr_array(np.eye(3))),
            TypeError,
            "matrix: expected dtype float32 or float16, got float64 (convert it with .astype(numpy.float32))",
        ),
        (
            lambda: BSR.from_dense(torch.eye(6), (4, 3)),
            ValueError,
            "block_size: expected (r, c) that divides the shape (6, 6), got (4, 3)",
        ),
        (
            lambda: BSR.from_dense(torch.eye(6), (0, 3)),
            ValueError,
            "block_size: expected two integers >= 1, got (0, 3)",
        ),
        (lambda: BSR.from_dense(torch.eye(6), 2), TypeError, "block_size: expected two integers, got 2"),
        (
            lambda: BSR(**bsr_parts(shape=(6, 16))),
            ValueError,
            "block_size: expected (r, c) that divides the shape (6, 16), got (2, 3)",
        ),
        (
            lambda: BSR(**bsr_parts(values=values(4, 0, 3))),
            ValueError,
            "block_size: expected two integers >= 1, got (0, 3)",
        ),
        (
            lambda: BSR(**bsr_parts(values=values(4))),
            ValueError,
            "values: expected 3 dimensions, got shape (4,)",
        ),
        (
            lambda: CSR(values(0), torch.zeros(2, dtype=torch.int64), int32(), (1, 2**31)),
            ValueError,
            "shape: expected at most 2147483647 columns, got 2147483648",
        ),
    ],
)
def test_bad_arguments(call, error, message):
    with pytest.raises(error) as raised:
        call()
    assert str(raised.value) == message


@pytest.mark.skipif(not torch.cuda.is_available(), reason="needs a CUDA device")
def test_cuda_tensors_are_refused():
    for call in (lambda w: CSR.from_dense(w), lambda w: CSR.from_torch(w.to_sparse_csr())):
        with pytest.raises(
            ValueError, match=r"expected a tensor on cpu, got cuda:0 \(move it with .cpu\(\) first\)"
        ):
            call(torch.eye(3, device="cuda"))
