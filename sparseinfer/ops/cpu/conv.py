"""Convolution on the CPU: checks arguments, allocates y, and calls native code once for all groups."""

from __future__ import annotations

from torch import Tensor

from sparseinfer._native import core
from sparseinfer.ops.cpu.call import bias_argument, numbers
from sparseinfer.ops.cpu.trust import address
from sparseinfer.ops.geometry import Geometry
from sparseinfer.ops.plan import check_packings
from sparseinfer.ops.schema import as_channels_last, in_channels_last


def run(
    x: Tensor,
    packings: list[Tensor],
    bias: Tensor | None,
    n: int,
    geometry: Geometry,
    plan: str,
    activation: str,
    *,
    parts: int = 0,
) -> Tensor:
    """y [b, n, h', w'] = activation(conv2d(x [b, c, h, w], W) + bias [n]).

    W is torch's weight.reshape(n, c / groups · kh · kw), split into `groups` matrices of n / groups rows; for
    each layout that `plan` names, `packings` holds one packing per group, in order. A token of
    the plan is a pixel of the output. x in channels_last or with any other strides is copied first; y has the
    dtype of x and is copied into channels_last where x is in it. `parts` as in `linear.run`. ValueError or
    TypeError: invalid arguments.
    """
    out_h, out_w = geometry.checked_size(x, n)
    groups = geometry.groups
    b, c, h, w = x.shape
    index, kernel, number, activation_number = numbers(plan, b * out_h * out_w, x.dtype, activation)
    check_packings(plan, (index + 1) * groups, packings)
    bias, bias_address, bias_dtype = bias_argument(bias, n, x.dtype)
    channels_last = in_channels_last(x)
    x = x.contiguous()
    y = x.new_empty((b, n, out_h, out_w))
    core.conv(
        kernel,
        (x.data_ptr(), y.data_ptr(), number, (b, c, h, w), (b, n, out_h, out_w)),
        [address(packed) for packed in packings[index * groups : (index + 1) * groups]],
        (bias_address, bias_dtype, activation_number),
        geometry[:4],
        parts,
    )
    return as_channels_last(y) if channels_last else y
