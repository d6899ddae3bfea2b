"""Lists everything that can compute one linear layer here: dense, other libraries and all kernels."""

from __future__ import annotations

from collections.abc import Iterator, Sequence

import torch
from torch import Tensor

from sparseinfer import ops
from sparseinfer.bench.candidate import DENSE, OTHER, SPARSE, Candidate, Runner
from sparseinfer.bench.kernel_rows import KernelRow, kernel_rows
from sparseinfer.bench.libraries import LIBRARIES, library_candidates
from sparseinfer.formats import BSR, CSR
from sparseinfer.ops.dense import dense_candidates
from sparseinfer.ops.names import STORAGES


def all_candidates(
    weight: Tensor,
    bias: Tensor,
    tokens: int,
    *,
    block: tuple[int, int] | None = None,
    isas: Sequence[str] = (),
    scales: Tensor | None = None,
    libraries: Sequence[str] = tuple(LIBRARIES),
) -> list[Candidate]:
    """All candidates for a weight [n, k] and bias [n] of one dtype, and `tokens` rows of x.

    block   of the zeros (r, c): adds the kernels for BSR
    scales  of a weight of int8; bias and x are float32
    isas    instruction-set levels of the kernels; none: the active one
    libraries   names of `LIBRARIES`
    """
    dense = weight if scales is None else weight * scales[:, None]
    formats: dict[str, CSR | BSR] = {"csr": CSR.from_dense(weight, scales)}
    if block is not None:
        formats["bsr"] = BSR.from_dense(weight, block, scales)
    return [
        *_dense(dense, bias, tokens),
        *library_candidates(dense.float(), bias.float(), libraries),
        *_kernels(formats, bias, tokens, block, isas or (ops.active_isa(),)),
    ]


def _dense(weight: Tensor, bias: Tensor, tokens: int) -> Iterator[Candidate]:
    """All that torch offers for the dense weight, laid out for `tokens`.

    Of kind "dense" in the weight's own dtype; in float32 and bfloat16, where that is another one, "other".
    """
    for dtype in dict.fromkeys((weight.dtype, torch.float32, torch.bfloat16)):
        w, b = weight.to(dtype), bias.to(dtype)
        exact = torch.equal(w.to(torch.float32), weight.to(torch.float32))
        if not exact:
            continue  # it would compute something else
        suffix = "" if dtype == weight.dtype else f" {_short(dtype)}"
        kind = OTHER if suffix else DENSE
        for name in dense_candidates(w, b, tokens=tokens):

            def make(name: str = name, w: Tensor = w, b: Tensor = b) -> Runner:
                return dense_candidates(w.clone(), b, tokens=tokens)[name]

            yield Candidate(name + suffix, kind, "", dtype, w.numel(), w.nbytes, make)


def _kernels(
    formats: dict[str, CSR | BSR],
    bias: Tensor,
    tokens: int,
    block: tuple[int, int] | None,
    isas: Sequence[str],
) -> Iterator[Candidate]:
    """Every kernel at these levels that can compute the layer, with each layout that it reads."""
    dtype = formats["csr"].dtype
    for isa in isas:
        packed: dict[ops.Layout, Tensor] = {}
        for row in kernel_rows(dtype, tokens, isa, block):
            if row.layout not in packed:
                packed[row.layout] = row.layout.pack(formats[row.kernel.format], isa=isa)
            yield _kernel(row, packed[row.layout], bias, tokens, dtype)


def _kernel(row: KernelRow, packed: Tensor, bias: Tensor, tokens: int, dtype: torch.dtype) -> Candidate:
    info = ops.describe(packed)
    plan = ops.format_plan((ops.Bucket(None, 0, row.kernel.name),))

    def make() -> Runner:
        blob = packed.clone()
        return lambda x: ops.linear(x, [blob], bias, info.n, plan, "none")

    planned = row.planned(dtype, tokens, info.sparsity)
    rounded = "token" if STORAGES[row.kernel.storage].x_dtype == torch.uint8 else ""
    layout = str(row.layout)
    return Candidate(row.name, SPARSE, layout, bias.dtype, info.nnz, info.nbytes, make, planned, rounded)


def _short(dtype: torch.dtype) -> str:
    return str(dtype).removeprefix("torch.")
