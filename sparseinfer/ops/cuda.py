"""The operator on CUDA: checks with messages, memory of torch's allocator, then one native launch.

Launches go to torch's current stream of the device that x is on. They neither allocate nor wait, so that a
call can be captured in a CUDA graph; y and the scratch of a decompressed weight come from torch's allocator,
which knows about captures.
"""

from __future__ import annotations

from functools import lru_cache
from math import inf

import torch
from torch import Tensor
from torch.nn import functional as F

from sparseinfer.formats._checks import DTYPE_NAMES, WrongDtype, address
from sparseinfer.ops.cpu import ACTIVATIONS
from sparseinfer.ops.cuda_blob import Resident
from sparseinfer.ops.cuda_packing import resident
from sparseinfer.ops.cuda_registry import DTYPE_NUMBERS, cuda, cuda_kernel_id, cuda_kernels
from sparseinfer.ops.packing import DTYPES
from sparseinfer.ops.plan import parse_plan
from sparseinfer.ops.reference import ACTIVATIONS as APPLIED
from sparseinfer.ops.schema import library

# Rows that are copied begin at multiples of so many elements: of 16 bytes in every dtype.
_PITCH = 8


@lru_cache(maxsize=4096)
def choices(plan: str, index: int) -> tuple[tuple[float, int, int], ...]:
    """(max_tokens, packing, kernel id) of each bucket, for one GPU."""
    return tuple(
        (inf if b.max_tokens is None else b.max_tokens, b.packing, cuda_kernel_id(b.kernel, index))
        for b in parse_plan(plan)
    )


def run(x: Tensor, packings: list[Tensor], bias: Tensor | None, n: int, plan: str, activation: str) -> Tensor:
    """y [..., n] = activation(x [..., k] · Wᵀ + bias [n]), with W [n, k] in the packing that `plan` names.

    Any leading dimensions and strides of x; y has the dtype of x. float32 x is rounded to the dtype of a
    packing of 16 bits, and so is y. ValueError and TypeError say what was expected; RuntimeError: no kernel
    for this GPU, or the launch was refused.
    """
    if x.ndim == 0:
        raise ValueError("x: expected at least 1 dimension, got a scalar")
    index = x.device.index
    k = x.shape[-1]
    rows = x.reshape(-1, k) if k else x.reshape(x.shape[:-1].numel(), 0)
    m = rows.shape[0]
    _, packing, kernel = next(choice for choice in choices(plan, index) if m <= choice[0])
    if packing >= len(packings):
        raise ValueError(f"packings: expected at least {packing + 1} for plan {plan}, got {len(packings)}")
    if activation not in ACTIVATIONS:
        raise ValueError(f"activation: expected one of {', '.join(ACTIVATIONS)}, got {activation!r}")
    packed = packings[packing]
    for name, tensor in (("packings", packed), ("bias", bias)):
        if tensor is not None and tensor.device != x.device:
            raise ValueError(
                f"{name}: expected a tensor on {x.device}, where x is, got one on {tensor.device}"
            )
    known = resident(packed)
    rows = _rows(rows, known)
    bias = _bias(bias, n, rows.dtype)
    if cuda_kernels()[kernel].op == "decompress":
        y = _decompressed(kernel, rows, packed, known, bias, n, activation)
    else:
        y = rows.new_empty(m, n)
        cuda().spmm(
            kernel,
            (index, torch.cuda.current_stream(x.device).cuda_stream),
            (address("header", known.header), packed.data_ptr(), known.info.nbytes),
            (rows.data_ptr(), DTYPE_NUMBERS[known.info.dtype], m, k, max(rows.stride(0), k)),
            (
                0 if bias is None else bias.data_ptr(),
                0 if bias is None else DTYPE_NUMBERS[DTYPE_NAMES[bias.dtype]],
                ACTIVATIONS[activation],
            ),
            (y.data_ptr(), n),
        )
    return y.to(x.dtype).view(*x.shape[:-1], n)


def decompress(packed: Tensor) -> Tensor:
    """The dense weight [n, k] of any packing but "bsr" on a GPU, its rows a multiple of 16 bytes apart."""
    known = resident(packed)
    name = f"decompress_{known.info.packing}_{known.info.dtype}_p{known.info.panel}"
    return _scratch(cuda_kernel_id(name, packed.device.index), packed, known)


def _scratch(kernel: int, packed: Tensor, known: Resident) -> Tensor:
    dense = _aligned(known.info.n, known.info.k, DTYPES[known.info.dtype], packed.device)
    stream = torch.cuda.current_stream(packed.device).cuda_stream
    header, device = address("header", known.header), packed.device.index
    cuda().decompress(
        kernel,
        (device, stream),
        (header, packed.data_ptr(), known.info.nbytes),
        (dense.data_ptr(), dense.stride(0)),
    )
    return dense


def _aligned(rows: int, columns: int, dtype: torch.dtype, device: torch.device) -> Tensor:
    """Memory for a matrix whose rows are a multiple of 16 bytes apart, with zeros between them."""
    pitch = -(-max(columns, 1) // _PITCH) * _PITCH
    make = torch.empty if pitch == columns else torch.zeros
    return make(rows, pitch, dtype=dtype, device=device)[:, :columns]


def _decompressed(
    kernel: int, rows: Tensor, packed: Tensor, known: Resident, bias: Tensor | None, n: int, activation: str
) -> Tensor:
    if (n, rows.shape[1]) != (known.info.n, known.info.k):
        raise ValueError(
            f"x: expected [m, {known.info.k}] for {known.info.n} outputs, got {rows.shape[1]}, {n}"
        )
    weight = _scratch(kernel, packed, known)
    return APPLIED[activation](F.linear(rows, weight, None if bias is None else bias.to(rows.dtype)))


def _rows(rows: Tensor, known: Resident) -> Tensor:
    """x [m, k] in the dtype of the packing, with rows that the kernels can read."""
    wanted = DTYPES[known.info.dtype]
    if rows.dtype not in (wanted, torch.float32):
        raise WrongDtype(f"x: expected dtype {wanted} or torch.float32, got {rows.dtype}")
    rows = rows.to(wanted)
    stride, step = rows.stride()
    fits = step == 1 and stride >= rows.shape[1]
    if known.info.packing != "csr":  # the others read x 16 bytes at a time, and nothing else may lie in them
        fits = fits and rows.data_ptr() % 16 == 0 and stride % _PITCH == 0 and rows.shape[1] % _PITCH == 0
    if fits or not rows.numel():
        return rows
    return _aligned(rows.shape[0], rows.shape[1], rows.dtype, rows.device).copy_(rows)


def _bias(bias: Tensor | None, n: int, dtype: torch.dtype) -> Tensor | None:
    if bias is None:
        return None
    if bias.shape != (n,):
        raise ValueError(f"bias: expected shape ({n},), got {tuple(bias.shape)}")
    if bias.dtype not in DTYPE_NAMES:
        raise TypeError(
            f"bias: expected dtype torch.float32, torch.bfloat16 or torch.float16, got {bias.dtype}"
        )
    return (bias if bias.dtype in (torch.float32, dtype) else bias.to(torch.float32)).contiguous()


def register() -> None:
    library.impl("linear", run, "CUDA")
