"""Every way to build a wrong CSR or BSR, and the words it is refused with."""

from __future__ import annotations

import re

import numpy as np
import pytest
import scipy.sparse
import torch
from generators import values

from sparseinfer.formats import BSR, CSR

DTYPES = "float32 or bfloat16 or float16 or int8"


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
        f"values: expected dtype {DTYPES}, got float64 (convert it with .to(torch.float32))",
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
            f"weight: expected dtype {DTYPES}, got int64 (convert it with .to(torch.float32))",
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
            f"values: expected dtype {DTYPES}, got float64 (convert it with .to(torch.float32))",
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
