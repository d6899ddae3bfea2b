"""Operators: packings, kernels and `torch.ops.sparseinfer.linear`.

Importing this package registers the operator's schema, its fake and its CPU implementation.
"""

import torch

from sparseinfer.ops import cpu as _cpu
from sparseinfer.ops import schema as _schema
from sparseinfer.ops.eager import eager_linear as _eager_linear
from sparseinfer.ops.kernels import KernelInfo, active_isa, isa_levels, kernels
from sparseinfer.ops.layouts import (
    FEW_TOKENS,
    Layout,
    compact_layout,
    default_kernel,
    layouts,
    may_win,
)
from sparseinfer.ops.packing import PackedInfo, describe, pack, unpack
from sparseinfer.ops.plan import Bucket, Plan, format_plan, parse_plan
from sparseinfer.ops.reference import reference_linear

_schema.define()
_cpu.register()

linear = _eager_linear(torch.ops.sparseinfer.linear.default)

__all__ = [
    "FEW_TOKENS",
    "Bucket",
    "KernelInfo",
    "Layout",
    "PackedInfo",
    "Plan",
    "active_isa",
    "compact_layout",
    "default_kernel",
    "describe",
    "format_plan",
    "isa_levels",
    "kernels",
    "layouts",
    "linear",
    "may_win",
    "pack",
    "parse_plan",
    "reference_linear",
    "unpack",
]
