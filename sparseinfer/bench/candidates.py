"""Everything that can compute one linear layer here: dense, other sparse libraries, and this package.

An entry makes runners. A runner is the whole op, x [m, k] row-major in and y [m, n] row-major out, bias
added, and holds a copy of the weights of its own: several runners of one entry touch different memory.
"""

from __future__ import annotations

import warnings
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass

import numpy as np
import torch
from torch import Tensor

from sparseinfer import ops
from sparseinfer.formats import BSR, CSR
from sparseinfer.ops.dense import dense_candidates

Runner = Callable[[Tensor], Tensor]

CSR_PACKINGS = ("csr", "sell", "rowgroup", "rowlist")
DENSE, OTHER, SPARSE = "dense", "other", "sparse"


@dataclass(frozen=True)
class Entry:
    """One row of a benchmark.

    `kind` is "dense", "other" (another library's sparse product) or "sparse" (ours; only it has a `packing`).
    `multiplies` counts the weights that take part, `nbytes` what they occupy.
    """

    name: str
    kind: str
    packing: str
    multiplies: int
    nbytes: int
    make: Callable[[], Runner]


def dense_entries(weight: Tensor, bias: Tensor, tokens: int) -> Iterator[Entry]:
    """All that torch offers for a dense float32 weight [n, k] and bias [n], laid out for `tokens`."""
    for name in dense_candidates(weight, bias, tokens=tokens):

        def make(name: str = name) -> Runner:
            return dense_candidates(weight.clone(), bias, tokens=tokens)[name]

        yield Entry(name, DENSE, "", weight.numel(), weight.nbytes, make)


def sparse_entries(
    weight: Tensor, bias: Tensor, *, block: tuple[int, int] | None = None, isas: Sequence[str] = ()
) -> Iterator[Entry]:
    """Other libraries, then every kernel here that can read this weight [n, k], at the levels `isas`.

    No `isas`: the active level alone. `block` adds the block-sparse kernels.
    """
    yield from _torch_csr(weight, bias)
    yield from _scipy_csr(weight, bias)
    isas = isas or (ops.active_isa(),)
    fmt = CSR.from_dense(weight)
    for packing in CSR_PACKINGS:
        yield from _sparse(ops.pack(fmt, packing), bias, isas)
    if block is not None:
        yield from _sparse(ops.pack(BSR.from_dense(weight, block), "bsr"), bias, isas)


def _sparse(packed: Tensor, bias: Tensor, isas: Sequence[str]) -> Iterator[Entry]:
    info = ops.describe(packed)
    for kernel in ops.kernels():
        if (kernel.packing, kernel.dtype) != (info.packing, info.dtype) or kernel.isa not in isas:
            continue
        plan = ops.format_plan((ops.Bucket(None, 0, kernel.name),))

        def make(plan: str = plan) -> Runner:
            blob = packed.clone()
            return lambda x: torch.ops.sparseinfer.linear(x, [blob], bias, info.n, plan, "none")

        yield Entry(kernel.name, SPARSE, info.packing, info.nnz, info.nbytes, make)


def _torch_csr(weight: Tensor, bias: Tensor) -> Iterator[Entry]:
    crow, col, values = _csr_parts(weight)
    size = weight.shape

    def make() -> Runner:
        parts = crow.clone(), col.clone(), values.clone()
        with warnings.catch_warnings():
            warnings.filterwarnings("ignore", "Sparse CSR tensor support is in beta", UserWarning)
            copy = torch.sparse_csr_tensor(*parts, size, check_invariants=False)
        # Four times faster than F.linear on the same tensor.
        return lambda x: torch.add((copy @ x.t()).t(), bias, out=x.new_empty(x.shape[0], size[0]))

    yield Entry("torch csr", OTHER, "", values.numel(), crow.nbytes + col.nbytes + values.nbytes, make)


def _scipy_csr(weight: Tensor, bias: Tensor) -> Iterator[Entry]:
    try:
        from scipy.sparse import csr_array
    except ImportError:
        return
    crow, col, values = (part.numpy() for part in _csr_parts(weight))
    shape = tuple(weight.shape)

    def make() -> Runner:
        copy = csr_array((values.copy(), col.copy(), crow.copy()), shape=shape)

        def run(x: Tensor) -> Tensor:
            y = np.empty((x.shape[0], shape[0]), np.float32)
            np.add((copy @ x.numpy().T).T, bias.numpy(), out=y)
            return torch.from_numpy(y)

        return run

    yield Entry("scipy csr", OTHER, "", values.size, crow.nbytes + col.nbytes + values.nbytes, make)


def _csr_parts(weight: Tensor) -> tuple[Tensor, Tensor, Tensor]:
    """Row offsets [n + 1] int32, columns [nnz] int32, values [nnz]: both libraries are fastest with int32."""
    kept = weight != 0
    crow = torch.zeros(weight.shape[0] + 1, dtype=torch.int32)
    crow[1:] = kept.sum(1).cumsum(0)
    return crow, kept.nonzero()[:, 1].to(torch.int32), weight[kept]
