"""Operators: packings, kernels, `torch.ops.sparseinfer.linear` and `torch.ops.sparseinfer.conv`.

Importing this package registers the operators' schemas, their fakes and their CPU implementations.
"""

import torch

from sparseinfer.ops import cpu as _cpu
from sparseinfer.ops import cpu_conv as _cpu_conv
from sparseinfer.ops import schema as _schema
from sparseinfer.ops.eager import eager as _eager
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
from sparseinfer.ops.reference import ACTIVATIONS, reference_conv, reference_linear

_schema.define()
_cpu.register()
_cpu_conv.register()

linear = _eager(torch.ops.sparseinfer.linear.default, _cpu.run)
conv = _eager(torch.ops.sparseinfer.conv.default, _cpu_conv.run)

__all__ = [
    "ACTIVATIONS",
    "FEW_TOKENS",
    "Bucket",
    "KernelInfo",
    "Layout",
    "PackedInfo",
    "Plan",
    "active_isa",
    "compact_layout",
    "conv",
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
    "reference_conv",
    "reference_linear",
    "unpack",
]
