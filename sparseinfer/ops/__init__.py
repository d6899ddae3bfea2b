"""Operators: packings, kernels, `torch.ops.sparseinfer.linear` and `torch.ops.sparseinfer.conv`.

Importing this package registers the operators' schemas, their fakes and their CPU and CUDA implementations.
"""

import torch
from torch import Tensor

from sparseinfer.formats import BSR, CSR
from sparseinfer.ops import cpu as _cpu
from sparseinfer.ops import cpu_conv as _cpu_conv
from sparseinfer.ops import cuda as _cuda
from sparseinfer.ops import cuda_conv as _cuda_conv
from sparseinfer.ops import cuda_packing as _cuda_packing
from sparseinfer.ops import packing as _packing
from sparseinfer.ops import schema as _schema
from sparseinfer.ops import transforms as _transforms
from sparseinfer.ops.cpu_parts import linear_parts
from sparseinfer.ops.cuda_layouts import CUDA_LIMITS
from sparseinfer.ops.cuda_registry import CudaKernel, cuda_kernels
from sparseinfer.ops.cuda_registry import refusal as cuda_refusal
from sparseinfer.ops.eager import eager as _eager
from sparseinfer.ops.eager import eager_conv as _eager_conv
from sparseinfer.ops.eager import watched
from sparseinfer.ops.kernels import KernelInfo, active_isa, isa_levels, kernels
from sparseinfer.ops.layouts import (
    FEW_TOKENS,
    Layout,
    compact_layout,
    default_kernel,
    layouts,
    may_win,
)
from sparseinfer.ops.packing import PackedInfo, pack
from sparseinfer.ops.plan import Bucket, Plan, format_plan, parse_plan
from sparseinfer.ops.reference import ACTIVATIONS, reference_conv, reference_linear
from sparseinfer.ops.same import Kept

_schema.define()
_cpu.register()
_cpu_conv.register()
_cuda.register()
_cuda_conv.register()
_transforms.register("linear", lambda bias: bias, lambda op, x, *rest: op(x, *rest))
_transforms.register("conv", lambda bias: bias[:, None, None], _cpu_conv.vmapped)

linear = _eager(torch.ops.sparseinfer.linear.default, _cpu.run)
conv = _eager_conv(torch.ops.sparseinfer.conv.default, _cpu_conv.run)


def describe(packed: Tensor) -> PackedInfo:
    """What a packing holds, in CPU or device memory. ValueError: not a packing."""
    return _cuda_packing.describe(packed) if packed.is_cuda else _packing.describe(packed)


def unpack(packed: Tensor) -> CSR | BSR:
    """The format a packing was made from, in CPU memory, bit for bit. ValueError: not an intact packing."""
    return _cuda_packing.unpack(packed) if packed.is_cuda else _packing.unpack(packed)


__all__ = [
    "ACTIVATIONS",
    "CUDA_LIMITS",
    "FEW_TOKENS",
    "Bucket",
    "CudaKernel",
    "Kept",
    "KernelInfo",
    "Layout",
    "PackedInfo",
    "Plan",
    "active_isa",
    "compact_layout",
    "conv",
    "cuda_kernels",
    "cuda_refusal",
    "default_kernel",
    "describe",
    "format_plan",
    "isa_levels",
    "kernels",
    "layouts",
    "linear",
    "linear_parts",
    "may_win",
    "pack",
    "parse_plan",
    "reference_conv",
    "reference_linear",
    "unpack",
    "watched",
]
