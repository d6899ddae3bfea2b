"""Convolution on the CPU: checks with messages, memory, then one native call for all groups."""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor

from sparseinfer._native import core
from sparseinfer.formats._checks import WrongDtype
from sparseinfer.ops.conv_shapes import checked_size
from sparseinfer.ops.cpu import ACTIVATIONS, X_DTYPES, address, checked_bias, choices, of_plain_tensors
from sparseinfer.ops.schema import as_channels_last, in_channels_last, library


def run(
    x: Tensor,
    packings: list[Tensor],
    bias: Tensor | None,
    n: int,
    kernel_size: list[int],
    stride: list[int],
    padding: list[int],
    dilation: list[int],
    groups: int,
    plan: str,
    activation: str,
    *,
    parts: int = 0,
) -> Tensor:
    """y [b, n, h', w'] = activation(conv2d(x [b, c, h, w], W) + bias [n]).

    W is torch's weight.reshape(n, c / groups · kh · kw), cut into `groups` matrices of n / groups rows; of
    each layout that `plan` names, `packings` holds one packing for each group, one after another. A token of
    the plan is a pixel of the output. x in channels_last or with any other strides is copied first; y has the
    dtype of x and is copied into channels_last where x is in it. `parts` as in `cpu.run`. ValueError and
    TypeError say what was expected.
    """
    if not x.is_cpu:
        # Called from plain Python; the dispatcher knows who computes on that device.
        return torch.ops.sparseinfer.conv.default(
            x, packings, bias, n, kernel_size, stride, padding, dilation, groups, plan, activation
        )
    out_h, out_w = checked_size(x, n, kernel_size, stride, padding, dilation, groups)
    dtype = x.dtype
    number = X_DTYPES.get(dtype)
    if number is None:
        raise WrongDtype(f"x: expected dtype torch.float32, torch.bfloat16 or torch.float16, got {dtype}")
    if activation not in ACTIVATIONS:
        raise ValueError(f"activation: expected one of {', '.join(ACTIVATIONS)}, got {activation!r}")
    b, c, h, w = x.shape
    tokens = b * out_h * out_w
    for choice in choices(plan):
        if tokens <= choice[0]:
            break
    _, index, kernel = choice
    if (index + 1) * groups > len(packings):
        raise ValueError(
            f"packings: expected at least {(index + 1) * groups} for plan {plan}, got {len(packings)}"
        )
    bias_address = bias_dtype = 0
    if bias is not None:
        bias = checked_bias(bias, n, dtype)
        bias_address, bias_dtype = bias.data_ptr(), X_DTYPES[bias.dtype]
    channels_last = in_channels_last(x)
    x = x.contiguous()
    y = x.new_empty((b, n, out_h, out_w))
    core.conv(
        kernel,
        (x.data_ptr(), y.data_ptr(), number, (b, c, h, w), (b, n, out_h, out_w)),
        [address(packed) for packed in packings[index * groups : (index + 1) * groups]],
        (bias_address, bias_dtype, ACTIVATIONS[activation]),
        (kernel_size, stride, padding, dilation),
        parts,
    )
    return as_channels_last(y) if channels_last else y


def vmapped(op: Any, x: Tensor, *rest: Any) -> Tensor:
    """y [v, b, n, h', w'] for x [v, b, c, h, w]: more images."""
    y: Tensor = op(x.flatten(0, 1), *rest)
    return y.unflatten(0, x.shape[:2])


def register() -> None:
    library.impl("conv", of_plain_tensors(run), "CPU")
