"""Calls of one layer by a number: an operator for compiled graphs that are kept, which know no plan.

A graph gets only a handle, a tensor of one number, as another input beside x; which packings and kernels it
stands for is looked up when the graph runs, without Python.
"""

from __future__ import annotations

from collections.abc import Sequence
from functools import cache

import torch
from torch import Tensor

from sparseinfer._native import core, torch_function
from sparseinfer.ops.cpu.kernels import kernel_id
from sparseinfer.ops.cpu.trust import address
from sparseinfer.ops.plan import check_packings, parse_plan
from sparseinfer.ops.schema import library


def held_linear(packings: Sequence[Tensor], plan: str) -> core.HeldLinear:
    """What `torch.ops.sparseinfer.held_linear(x, handle, bias, n)` computes for a handle of its `number`.

    The number is valid in this process as long as the result is kept; nothing may write to the packings.
    ValueError: an invalid plan or packing, an unknown kernel.
    """
    buckets = parse_plan(plan)
    check_packings(plan, max(bucket.packing for bucket in buckets) + 1, packings)
    return core.HeldLinear(
        [
            (-1 if b.max_tokens is None else b.max_tokens, kernel_id(b.kernel), address(packings[b.packing]))
            for b in buckets
        ],
        list(packings),
    )


def held_fake(x: Tensor, handle: Tensor, bias: Tensor | None, n: int) -> Tensor:
    """y [..., n] like x [..., k]."""
    return x.new_empty((*x.shape[:-1], n))


@cache
def held_operator() -> torch._ops.OpOverload | None:
    """held_linear(x [..., k], handle, bias [n] or None, n) -> y [..., n]; None: torch lacks what it needs."""
    addresses = [torch_function(name) for name in core.torch_call_names()]
    if not all(addresses):
        return None
    library.define("held_linear(Tensor x, Tensor handle, Tensor? bias, int n) -> Tensor")
    core.register_held_linear(addresses)
    torch.library.register_fake("sparseinfer::held_linear", held_fake, lib=library)
    return torch.ops.sparseinfer.held_linear.default
