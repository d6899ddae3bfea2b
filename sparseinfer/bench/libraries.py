"""The sparse products of other libraries, in float32 and CSR: torch's and scipy's."""

from __future__ import annotations

import warnings
from collections.abc import Callable, Iterator, Mapping, Sequence

import numpy as np
import torch
from torch import Tensor

from sparseinfer.bench.candidate import OTHER, Candidate, Runner


def library_candidates(weight: Tensor, bias: Tensor, names: Sequence[str]) -> Iterator[Candidate]:
    """Candidates for a float32 weight [n, k] and bias [n]; scipy's only if it is installed."""
    for name in names:
        yield from LIBRARIES[name](weight, bias)


def _torch_csr(weight: Tensor, bias: Tensor) -> Iterator[Candidate]:
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
    yield Candidate("torch csr", OTHER, "", torch.float32, values.numel(), nbytes, make)


def _scipy_csr(weight: Tensor, bias: Tensor) -> Iterator[Candidate]:
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
    yield Candidate("scipy csr", OTHER, "", torch.float32, values.size, nbytes, make)


def _csr_parts(weight: Tensor) -> tuple[Tensor, Tensor, Tensor]:
    """Row offsets [n + 1] int32, columns [nnz] int32, values [nnz]: both libraries are fastest with int32."""
    kept = weight != 0
    crow = torch.zeros(weight.shape[0] + 1, dtype=torch.int32)
    crow[1:] = kept.sum(1).cumsum(0)
    return crow, kept.nonzero()[:, 1].to(torch.int32), weight[kept]


# By their names on the command line.
LIBRARIES: Mapping[str, Callable[[Tensor, Tensor], Iterator[Candidate]]] = {
    "torch-csr": _torch_csr,
    "scipy": _scipy_csr,
}
