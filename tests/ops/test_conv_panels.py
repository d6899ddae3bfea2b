"""Convolutions the rows of which are finished in the last panel of W: rows that it does not hold."""

from __future__ import annotations

import pytest
import torch
from generators import values
from test_conv import DTYPES, Case, forced, kernel

from sparseinfer import ops


@kernel
@pytest.mark.parametrize(
    "case",
    [
        Case(b=2, c=60, size=(10, 8), n=24),
        Case(b=3, c=20, size=(16, 16), n=30),
        Case(kernel=(1, 1), padding=(0, 0), size=(16, 16), c=9, n=530),
    ],
    ids=["panels", "images", "chunks"],
)
def test_rows_that_not_every_panel_holds(kernel: ops.KernelInfo, case: Case) -> None:
    """Rows that end early, begin late, or are empty, among whole tiles and others."""
    w = case.w(sparsity=0.5)
    w[::3, case.c // 2 :] = 0
    w[1::3, : case.c // 2] = 0
    w[::5] = 0
    bias = values(case.n, integer=True)
    w_dtype, x_dtype = DTYPES[kernel.storage][0]
    y = forced(kernel, case, case.x().to(x_dtype), w.to(w_dtype), bias, "relu")
    wanted = ops.reference_conv(case.x(), w, bias, **case.geometry).relu()
    assert torch.equal(y, wanted.to(x_dtype))
