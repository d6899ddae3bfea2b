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

DENSE, OTHER, SPARSE = "dense", "other", "sparse"


@dataclass(frozen=True)
class Entry:
    """One row of a benchmark.

    `kind` is "dense", "other" (another library's sparse product, or dense in another dtype) or "sparse"
    (ours; only it has a `layout`). `dtype` is that of x and y. `multiplies` counts the weights that take
    part, `nbytes` what they occupy.
    """

    name: str
    kind: str
    layout: str
    dtype: torch.dtype
    multiplies: int
    nbytes: int
    make: Callable[[], Runner]


def dense_entries(weight: Tensor, bias: Tensor, tokens: int) -> Iterator[Entry]:
    """All that torch offers for a dense weight [n, k] and bias [n], laid out for `tokens`.

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

            yield Entry(name + suffix, kind, "", dtype, w.numel(), w.nbytes, make)


def sparse_entries(
    weight: Tensor,
    bias: Tensor,
    tokens: int,
    *,
    block: tuple[int, int] | None = None,
    isas: Sequence[str] = (),
) -> Iterator[Entry]:
    """Other libraries, in float32, then the layouts here that serve `tokens`, at the levels `isas`.

    No `isas`: the active level alone. `block` adds the block-sparse kernels.
    """
    yield from _torch_csr(weight.float(), bias.float())
    yield from _scipy_csr(weight.float(), bias.float())
    fmt = CSR.from_dense(weight)
    for isa in isas or (ops.active_isa(),):
        for layout in ops.layouts(weight.dtype, weight.dtype, tokens):
            yield _sparse(layout, layout.pack(fmt, isa=isa), bias, tokens, isa)
        if block is not None:
            storage = "bf16" if weight.dtype == torch.bfloat16 and block[1] % 2 == 0 else "f32"
            layout = ops.Layout("bsr", storage)
            yield _sparse(layout, layout.pack(BSR.from_dense(weight, block), isa=isa), bias, tokens, isa)


def _sparse(layout: ops.Layout, packed: Tensor, bias: Tensor, tokens: int, isa: str) -> Entry:
    info = ops.describe(packed)
    kernel = f"{layout.kernel(tokens)}__{isa}"
    plan = ops.format_plan((ops.Bucket(None, 0, kernel),))

    def make() -> Runner:
        blob = packed.clone()
        return lambda x: ops.linear(x, [blob], bias, info.n, plan, "none")

    name = f"{kernel} p{layout.panel}" if layout.panel else kernel
    return Entry(name, SPARSE, str(layout), bias.dtype, info.nnz, info.nbytes, make)


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

    nbytes = crow.nbytes + col.nbytes + values.nbytes
    yield Entry("torch csr", OTHER, "", torch.float32, values.numel(), nbytes, make)


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

    nbytes = crow.nbytes + col.nbytes + values.nbytes
    yield Entry("scipy csr", OTHER, "", torch.float32, values.size, nbytes, make)


def _csr_parts(weight: Tensor) -> tuple[Tensor, Tensor, Tensor]:
    """Row offsets [n + 1] int32, columns [nnz] int32, values [nnz]: both libraries are fastest with int32."""
    kept = weight != 0
    crow = torch.zeros(weight.shape[0] + 1, dtype=torch.int32)
    crow[1:] = kept.sum(1).cumsum(0)
    return crow, kept.nonzero()[:, 1].to(torch.int32), weight[kept]


def _short(dtype: torch.dtype) -> str:
    return str(dtype).removeprefix("torch.")
