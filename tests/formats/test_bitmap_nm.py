"""Bitmap and NM against numpy, and every way to build a wrong one."""

from __future__ import annotations

import copy
import re

import numpy as np
import pytest
import torch
from copies import by_pickle
from generators import PATTERNS, noncontiguous, weight

from sparseinfer.formats import CSR, NM, Bitmap

DTYPES = (torch.float32, torch.bfloat16, torch.float16)
SHAPES = ((1, 1), (1, 7), (7, 1), (5, 17), (33, 64), (3, 130), (0, 0), (0, 5), (5, 0))
NM_PATTERNS = ((1, 1), (1, 2), (2, 4), (4, 4), (3, 8), (1, 16), (5, 17), (2, 256))


def bits(t: torch.Tensor) -> torch.Tensor:
    return t.contiguous().view({1: torch.int8, 2: torch.int16, 4: torch.int32}[t.element_size()])


def integers(n: int, k: int) -> tuple[torch.Tensor, torch.Tensor]:
    """int8 [n, k] with zeros, and scales [n]."""
    generator = torch.Generator().manual_seed(3)
    values = torch.randint(-127, 128, (n, k), generator=generator).to(torch.int8)
    kept = torch.rand(n, k, generator=generator) > 0.7
    return values * kept, torch.rand(n, generator=generator) + 0.1


def nm_weight(n: int, groups: int, pattern: tuple[int, int], dtype: torch.dtype) -> torch.Tensor:
    """Of each M weights N or fewer are not zero, at random places."""
    most, m = pattern
    generator = torch.Generator().manual_seed(m)
    places = torch.rand(n, groups, m, generator=generator).argsort(dim=2)
    kept = (places < most) & (torch.rand(n, groups, m, generator=generator) > 0.2)
    w = torch.randn(n, groups, m, generator=generator) + 3
    return w.where(kept, 0.0).to(dtype).view(n, groups * m)


@pytest.mark.parametrize("dtype", DTYPES, ids=str)
@pytest.mark.parametrize("pattern", PATTERNS)
def test_bitmap_is_numpys(pattern: str, dtype: torch.dtype) -> None:
    for n, k in SHAPES:
        w = weight(pattern, n, k, 0.7, dtype=dtype)
        fmt = Bitmap.from_dense(w)
        kept = (w != 0).numpy()
        np.testing.assert_array_equal(fmt.mask.numpy(), np.packbits(kept, axis=-1, bitorder="little"))
        assert torch.equal(bits(fmt.values), bits(w)[torch.from_numpy(kept)])
        assert torch.equal(bits(fmt.to_dense()), bits(w))
        assert (fmt.shape, fmt.dtype, fmt.nnz) == ((n, k), dtype, int(kept.sum()))


@pytest.mark.parametrize("dtype", DTYPES, ids=str)
@pytest.mark.parametrize("pattern", NM_PATTERNS, ids=str)
def test_nm_is_exact_and_dense_in_its_groups(pattern: tuple[int, int], dtype: torch.dtype) -> None:
    n, m = pattern
    for rows, groups in ((1, 1), (5, 3), (33, 8), (0, 4), (4, 0)):
        w = nm_weight(rows, groups, pattern, dtype)
        fmt = NM.from_dense(w, pattern)
        assert torch.equal(bits(fmt.to_dense()), bits(w))
        assert fmt.values.shape == (rows, groups, n)
        width = (m - 1).bit_length()
        assert fmt.positions.shape == (rows, -(-groups * n * width // 8))


def test_positions_are_little_endian_bits_in_order() -> None:
    fmt = NM.from_dense(torch.tensor([[0.0, 5.0, 0.0, 7.0, 3.0, 0.0, 0.0, 0.0]]), (2, 4))
    # Places 1, 3 and 0, and of the zero that fills up the second group: 1.
    assert fmt.positions.tolist() == [[0b01_00_11_01]]
    assert fmt.values.tolist() == [[[5.0, 7.0], [3.0, 0.0]]]


@pytest.mark.parametrize("dtype", DTYPES, ids=str)
def test_the_ways_to_csr_and_torch_and_back(dtype: torch.dtype) -> None:
    w = nm_weight(12, 5, (2, 4), dtype)
    reference = CSR.from_dense(w)
    for fmt in (Bitmap.from_dense(w), NM.from_dense(w, (2, 4)), Bitmap.from_csr(reference)):
        csr = fmt.to_csr()
        for name in ("values", "crow_indices", "col_indices"):
            assert torch.equal(getattr(csr, name), getattr(reference, name)), name
        there = fmt.to_torch_sparse()
        back = Bitmap.from_torch(there) if isinstance(fmt, Bitmap) else NM.from_torch(there, (2, 4))
        for name, part in fmt.parts().items():
            assert torch.equal(getattr(back, name), part), name


def test_integers_have_scales() -> None:
    w, scales = integers(9, 20)
    dense = w.to(torch.float32) * scales[:, None]
    for fmt in (Bitmap.from_dense(w, scales), NM.from_dense(w, (4, 4), scales)):
        assert torch.equal(fmt.to_stored(), w)
        assert torch.equal(fmt.to_dense(), dense)
        assert fmt.dtype == torch.int8
    mask_bytes = 9 * 3
    assert Bitmap.from_dense(w, scales).nbytes == int((w != 0).sum()) + mask_bytes + 9 * 4


def test_nan_and_inf_are_values_and_minus_zero_is_not() -> None:
    w = torch.tensor([[float("nan"), 0.0, -0.0, float("-inf")]])
    for fmt in (Bitmap.from_dense(w), NM.from_dense(w, (2, 4))):
        assert fmt.nnz == 2
        assert torch.equal(bits(fmt.to_dense()), bits(w.where(w != 0, 0.0)))


def test_stored_zeros_stay_stored_in_a_bitmap() -> None:
    fmt = Bitmap(torch.tensor([0.0, 1.0]), torch.tensor([[0b101]], dtype=torch.uint8), (1, 3))
    assert fmt.to_csr().nnz == Bitmap.from_csr(fmt.to_csr()).nnz == 2


def test_copies_strides_and_text() -> None:
    w = weight("random", 8, 12)
    assert torch.equal(Bitmap.from_dense(noncontiguous(w)).to_dense(), w)
    for fmt in (Bitmap.from_dense(w), NM.from_dense(w, (4, 4))):
        for copied in (copy.deepcopy(fmt), by_pickle(fmt)):
            assert torch.equal(copied.to_dense(), w)
        assert f"shape=(8, 12), nnz={fmt.nnz}" in repr(fmt)


def int8(*items: int) -> torch.Tensor:
    return torch.tensor([items], dtype=torch.uint8)


TWO = torch.ones(2)
BAD = {
    "bits": (lambda: Bitmap(TWO, int8(0b111), (1, 3)), "mask: expected one bit for each of 2 values, got 3"),
    "behind": (
        lambda: Bitmap(TWO, int8(0b1001), (1, 3)),
        "mask: expected zero bits behind column 2, got others in row 0",
    ),
    "mask shape": (lambda: Bitmap(TWO, int8(3, 0), (1, 3)), "mask: expected shape (1, 1), got (1, 2)"),
    "mask dtype": (
        lambda: Bitmap(TWO, torch.ones(1, 1), (1, 3)),
        "mask: expected dtype uint8, got float32 (convert it with .to(torch.uint8))",
    ),
    "no scales": (
        lambda: Bitmap(TWO.to(torch.int8), int8(3), (1, 3)),
        "scales: expected one of each row for int8 values, got none",
    ),
    "scales": (
        lambda: Bitmap(TWO, int8(3), (1, 3), torch.ones(1)),
        "scales: expected none for torch.float32 values, got some",
    ),
    "scales of rows": (
        lambda: Bitmap(TWO.to(torch.int8), int8(3), (1, 3), torch.ones(2)),
        "scales: expected 1 elements (rows), got 2",
    ),
    "too many": (
        lambda: NM.from_dense(torch.ones(1, 4), (2, 4)),
        "weight: expected at most 2 of each 4 that are not zero, got 4",
    ),
    "columns": (
        lambda: NM.from_dense(torch.ones(1, 6), (2, 4)),
        "pattern: expected (N, M) with M that divides 6 columns, got (2, 4)",
    ),
    "pattern": (
        lambda: NM.from_dense(torch.ones(1, 4), (5, 4)),
        "pattern: expected (N, M) with N <= M <= 256, got (5, 4)",
    ),
    "descending": (
        lambda: NM(torch.ones(1, 1, 2), int8(0b0011), (1, 4), (2, 4)),
        "positions: expected places that ascend within a group, got others",
    ),
    "outside": (
        lambda: NM(torch.ones(1, 1, 2), int8(0b1100), (1, 3), (2, 3)),
        "positions: expected places below 3, got 3",
    ),
    "padding": (
        lambda: NM(torch.ones(1, 1, 2), int8(0b10100), (1, 4), (2, 4)),
        "positions: expected zero bits behind the last place of a row, got others",
    ),
    "values": (
        lambda: NM(torch.ones(1, 1, 3), int8(0b0100), (1, 4), (2, 4)),
        "values: expected shape (1, 1, 2), got (1, 1, 3)",
    ),
}


@pytest.mark.parametrize("case", BAD)
def test_bad_parts(case: str) -> None:
    make, message = BAD[case]
    with pytest.raises((ValueError, TypeError), match=re.escape(message)):
        make()


def test_validate_sees_later_writes() -> None:
    bitmap, nm = Bitmap.from_dense(torch.eye(3)), NM.from_dense(torch.eye(4), (1, 4))
    bitmap.mask[0, 0] = 7
    nm.positions[0, 0] = 255
    for fmt in (bitmap, nm):
        with pytest.raises(ValueError, match=r"mask|positions"):
            fmt.validate()
