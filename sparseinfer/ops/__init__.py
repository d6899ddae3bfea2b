"""Operators: packings, kernels, `torch.ops.sparseinfer.linear` and `torch.ops.sparseinfer.conv`.

Importing this package registers the operators' schemas, their fakes and their CPU and CUDA implementations.

As everywhere in sparseinfer, a module whose name begins with "_" is private to its package, and such a name
private to its module; `sparseinfer._native` may be imported everywhere in sparseinfer.
"""

import torch

from sparseinfer.ops import backend as _backend
from sparseinfer.ops import schema as _schema
from sparseinfer.ops import transforms as _transforms
from sparseinfer.ops.backend import describe, unpack
from sparseinfer.ops.candidates import (
    all_layouts,
    candidate_layouts,
    compact_layout,
    kernels_for,
    layouts,
    may_win,
    min_sparsity,
)
from sparseinfer.ops.cpu.attention import attention
from sparseinfer.ops.cpu.block import Product, ResidualNorm, linear_block
from sparseinfer.ops.cpu.held import held_fake, held_linear, held_operator
from sparseinfer.ops.cpu.kernels import KernelInfo, active_isa, isa_levels, kernel_info, kernels, kernels_at
from sparseinfer.ops.cpu.packing import pack
from sparseinfer.ops.cpu.parts import linear_parts
from sparseinfer.ops.cpu.trust import check_packing
from sparseinfer.ops.cuda.kernels import CudaKernel, cuda_kernels
from sparseinfer.ops.cuda.kernels import refusal as cuda_refusal
from sparseinfer.ops.eager import eager_conv as _eager_conv
from sparseinfer.ops.eager import eager_linear as _eager_linear
from sparseinfer.ops.eager import watched
from sparseinfer.ops.geometry import Geometry
from sparseinfer.ops.layout import CUDA_LIMITS, FEW_TOKENS, Layout, default_kernel, token_limits
from sparseinfer.ops.names import ACTIVATIONS, DTYPE_NAMES, DTYPES, UNITS
from sparseinfer.ops.packed import PackedInfo
from sparseinfer.ops.plan import Bucket, Plan, format_plan, parse_plan
from sparseinfer.ops.reference import quantize_tokens, reference_conv, reference_int8, reference_linear
from sparseinfer.ops.same import Kept

_schema.define()
_backend.register()
_transforms.register()

linear = _eager_linear(torch.ops.sparseinfer.linear.default)
conv = _eager_conv(torch.ops.sparseinfer.conv.default)

__all__ = [
    "ACTIVATIONS",
    "CUDA_LIMITS",
    "DTYPES",
    "DTYPE_NAMES",
    "FEW_TOKENS",
    "UNITS",
    "Bucket",
    "CudaKernel",
    "Geometry",
    "Kept",
    "KernelInfo",
    "Layout",
    "PackedInfo",
    "Plan",
    "Product",
    "ResidualNorm",
    "active_isa",
    "all_layouts",
    "attention",
    "candidate_layouts",
    "check_packing",
    "compact_layout",
    "conv",
    "cuda_kernels",
    "cuda_refusal",
    "default_kernel",
    "describe",
    "format_plan",
    "held_fake",
    "held_linear",
    "held_operator",
    "isa_levels",
    "kernel_info",
    "kernels",
    "kernels_at",
    "kernels_for",
    "layouts",
    "linear",
    "linear_block",
    "linear_parts",
    "may_win",
    "min_sparsity",
    "pack",
    "parse_plan",
    "quantize_tokens",
    "reference_conv",
    "reference_int8",
    "reference_linear",
    "token_limits",
    "unpack",
    "watched",
]
