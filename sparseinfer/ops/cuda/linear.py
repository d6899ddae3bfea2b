"""The linear operator on CUDA: checks arguments, allocates by torch, and launches one kernel.

Kernels are launched on torch's current stream of x's device, without allocating or synchronizing, so that a
call can be captured in a CUDA graph; y and the buffer of a decompressed weight come from torch's allocator,
which supports captures.
"""

from __future__ import annotations

import torch
from torch import Tensor
from torch.nn import functional as F

from sparseinfer.formats.checks import WrongDtype, address
from sparseinfer.ops.arguments import as_rows, check_bias_shape, number_of_activation, readable_bias
from sparseinfer.ops.cuda.blob import Resident
from sparseinfer.ops.cuda.kernels import chosen, cuda, cuda_kernel_id, cuda_kernels, kernels
from sparseinfer.ops.cuda.packing import resident
from sparseinfer.ops.names import ACTIVATIONS, DTYPE_NUMBERS, DTYPES
from sparseinfer.ops.plan import check_packings

# Rows that are copied begin at multiples of so many elements: of 16 bytes in every dtype.
_PITCH = 8


def run(x: Tensor, packings: list[Tensor], bias: Tensor | None, n: int, plan: str, activation: str) -> Tensor:
    """y [..., n] = activation(x [..., k] · Wᵀ + bias [n]), with W [n, k] in the packing that `plan` names.

    Any leading dimensions and strides of x; y has the dtype of x. float32 x is rounded to the dtype of a
    packing of 16 bits, and so is y. ValueError or TypeError: invalid arguments; RuntimeError: no kernel for
    this GPU, or the launch failed.
    """
    packing, kernel = chosen(plan, x.shape[:-1].numel(), x.device.index)
    check_packings(plan, packing + 1, packings)
    return product(x, packings[packing], bias, n, kernel, activation)


def product(x: Tensor, packed: Tensor, bias: Tensor | None, n: int, kernel: int, activation: str) -> Tensor:
    """Like `run`, with the kernel of this id."""
    index, number = x.device.index, number_of_activation(activation)
    for name, tensor in (("packings", packed), ("bias", bias)):
        if tensor is not None and tensor.device != x.device:
            raise ValueError(
                f"{name}: expected a tensor on {x.device}, where x is, got one on {tensor.device}"
            )
    held = resident(packed)
    rows = _rows(as_rows(x, x.shape), held)
    bias = _bias(bias, n, rows.dtype)
    m, k = rows.shape
    if cuda_kernels()[kernel].op == "decompress":
        y = _decompressed(kernel, rows, packed, held, bias, n, activation)
    else:
        y = rows.new_empty(m, n)
        native = cuda()
        is_fused = number < native.activations
        address_of_bias = (0, 0) if bias is None else (bias.data_ptr(), DTYPE_NUMBERS[bias.dtype])
        native.spmm(
            kernel,
            (index, torch.cuda.current_stream(x.device).cuda_stream),
            (address("header", held.header), packed.data_ptr(), held.info.nbytes),
            (rows.data_ptr(), DTYPE_NUMBERS[rows.dtype], m, k, max(rows.stride(0), k)),
            (*address_of_bias, number if is_fused else 0),
            (y.data_ptr(), n),
        )
        y = y if is_fused else ACTIVATIONS[activation](y)
    return y.to(x.dtype).view(*x.shape[:-1], n)


def decompress(packed: Tensor) -> Tensor:
    """The dense weight [n, k] of any packing but "bsr" on a GPU, its rows a multiple of 16 bytes apart."""
    held = resident(packed)
    wanted = ("decompress", held.info.packing, held.info.dtype)
    row = next(row for row in kernels() if (row.op, row.packing, row.dtype) == wanted)
    return _scratch(cuda_kernel_id(row.base_name, packed.device.index), packed, held)


def _scratch(kernel: int, packed: Tensor, held: Resident) -> Tensor:
    dense = _aligned(held.info.n, held.info.k, DTYPES[held.info.dtype], packed.device)
    stream = torch.cuda.current_stream(packed.device).cuda_stream
    header, device = address("header", held.header), packed.device.index
    cuda().decompress(
        kernel,
        (device, stream),
        (header, packed.data_ptr(), held.info.nbytes),
        (dense.data_ptr(), dense.stride(0)),
    )
    return dense


def _aligned(rows: int, columns: int, dtype: torch.dtype, device: torch.device) -> Tensor:
    """Memory for a matrix whose rows are a multiple of 16 bytes apart, with zeros between them."""
    pitch = -(-max(columns, 1) // _PITCH) * _PITCH
    make = torch.empty if pitch == columns else torch.zeros
    return make(rows, pitch, dtype=dtype, device=device)[:, :columns]


def _decompressed(
    kernel: int, rows: Tensor, packed: Tensor, held: Resident, bias: Tensor | None, n: int, activation: str
) -> Tensor:
    if (n, rows.shape[1]) != (held.info.n, held.info.k):
        raise ValueError(
            f"x: expected [m, {held.info.k}] for {held.info.n} outputs, got {rows.shape[1]}, {n}"
        )
    weight = _scratch(kernel, packed, held)
    return ACTIVATIONS[activation](F.linear(rows, weight, None if bias is None else bias.to(rows.dtype)))


def _rows(rows: Tensor, held: Resident) -> Tensor:
    """x [m, k] in the dtype of the packing, with rows that the kernels can read."""
    wanted = DTYPES[held.info.dtype]
    if rows.dtype not in (wanted, torch.float32):
        raise WrongDtype(f"x: expected dtype {wanted} or torch.float32, got {rows.dtype}")
    rows = rows.to(wanted)
    stride, step = rows.stride()
    fits = step == 1 and stride >= rows.shape[1]
    if held.info.packing != "csr":  # the others read x 16 bytes at a time, and nothing else may lie in them
        fits = fits and rows.data_ptr() % 16 == 0 and stride % _PITCH == 0 and rows.shape[1] % _PITCH == 0
    if fits or not rows.numel():
        return rows
    return _aligned(rows.shape[0], rows.shape[1], rows.dtype, rows.device).copy_(rows)


def _bias(bias: Tensor | None, n: int, dtype: torch.dtype) -> Tensor | None:
    if bias is None:
        return None
    check_bias_shape(bias, n)
    return readable_bias(bias, dtype)
