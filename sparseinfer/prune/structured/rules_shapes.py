"""What views, concatenations and lookups of rows do to axes."""

from __future__ import annotations

from collections.abc import Sequence
from math import prod
from typing import Any

import numpy as np
import torch

from sparseinfer.prune.structured.labels import Axis
from sparseinfer.prune.structured.tracing import SLICED, Axes, Op, Rule


def _view(op: Op) -> None:
    """Runs of axes with the same number of elements before and after belong together."""
    axes, before, after = op.axes(op.args[0]), op.args[0].shape, op.out.shape
    out: Axes = [None] * len(after)
    if not op.out.numel():
        for axis in axes:
            op.labels.pin(axis, op.reason("it is viewed without elements"))
        return op.put(out)
    i = j = 0
    while i < len(before) or j < len(after):
        ins, outs = [i] if i < len(before) else [], [j] if j < len(after) else []
        i, j = i + 1, j + 1
        while (a := prod(before[n] for n in ins)) != (b := prod(after[n] for n in outs)):
            if a < b:
                ins.append(i)
                i += 1
            else:
                outs.append(j)
                j += 1
        ins, outs = [n for n in ins if n < len(before)], [n for n in outs if n < len(after)]
        long_ins = [n for n in ins if before[n] != 1]
        long_outs = [n for n in outs if after[n] != 1]
        made = _run(
            op, [axes[n] for n in long_ins], [before[n] for n in long_ins], [after[n] for n in long_outs]
        )
        for n, axis in zip(long_outs, made, strict=True):
            out[n] = axis
    return op.put(out)


def _run(op: Op, axes: Sequence[Axis], before: Sequence[int], after: Sequence[int]) -> Sequence[Axis]:
    """Axes of sizes `before` laid out anew as axes of sizes `after`."""
    if all(axis is None for axis in axes):
        return [None] * len(after)
    if list(before) == list(after):
        return axes
    flat = axes[0] if len(axes) == 1 else op.labels.fresh(prod(before))
    if len(axes) > 1:
        op.labels.product(flat, axes, before)
    if len(after) == 1:
        return [flat]
    made = [op.labels.fresh(size) for size in after]
    op.labels.product(flat, made, after)
    return made


def _expand(op: Op) -> None:
    source, out = op.args[0], op.out
    new = out.dim() - source.dim()
    old = zip(op.axes(source), source.shape, out.shape[new:], strict=True)
    op.put([*[None] * new, *[axis if before == after else None for axis, before, after in old]])


def _permute(op: Op) -> None:
    axes = op.axes(op.args[0])
    op.put([axes[i] for i in op.args[1]])


def _transpose(op: Op) -> None:
    axes, (i, j) = list(op.axes(op.args[0])), op.args[1:3]
    if axes:
        axes[i], axes[j] = axes[j], axes[i]
    op.put(axes)


def _t(op: Op) -> None:
    op.put(op.axes(op.args[0])[::-1])
    op.tracer.put_view(op.out, op.args[0])


def _squeeze(op: Op) -> None:
    source, dims = op.args[0], op.arg(1)
    every = range(source.dim()) if dims is None else [dims] if isinstance(dims, int) else dims
    gone = {i % source.dim() for i in every if source.shape[i] == 1}
    op.put([axis for i, axis in enumerate(op.axes(source)) if i not in gone])


def _unsqueeze(op: Op) -> None:
    axes, dim = list(op.axes(op.args[0])), op.args[1]
    axes.insert(dim % (len(axes) + 1), None)
    op.put(axes)


def _slice(op: Op) -> None:
    source = op.args[0]
    dim, start, end, step = (op.arg(i, default) for i, default in ((1, 0), (2, None), (3, None), (4, 1)))
    axes = list(op.axes(source))
    if (axis := axes[dim]) is not None:
        axes[dim] = axis[slice(start, end, step)]
        if axes[dim].size < axis.size:
            op.labels.tag(axis, SLICED)
    op.put(axes)


def _select(op: Op) -> None:
    source, dim = op.args[0], op.args[1]
    axes = list(op.axes(source))
    op.labels.pin(axes.pop(dim), op.reason("one index of it is selected"))
    op.put(axes)


def _unbind(op: Op) -> None:
    source, dim = op.args[0], op.arg(1, 0)
    axes = list(op.axes(source))
    op.labels.pin(axes.pop(dim), op.reason("it is taken apart"))
    for t in op.out:
        op.put(axes, t)


def _split(op: Op) -> None:
    source, dim = op.args[0], op.arg(2, op.kwargs.get("dim", 0))
    op.labels.tag(op.axes(source)[dim], SLICED)
    start = 0
    for t in op.out:
        axes = list(op.axes(source))
        if (axis := axes[dim]) is not None:
            axes[dim] = axis[start : start + t.shape[dim]]
        op.put(axes, t)
        start += t.shape[dim]


def _cat(op: Op) -> None:
    parts, dim = [t for t in op.args[0] if t.numel() or t.dim() > 1], op.arg(1, op.kwargs.get("dim", 0))
    dim %= op.out.dim()
    axes = [op.axes(t) for t in parts]
    merged: Axes = []
    for i in range(op.out.dim()):
        here = [each[i] for each in axes]
        if i == dim:
            merged.append(_chained(op, here, [t.shape[i] for t in parts]))
        else:
            merged.append(_aligned(op, here))
    op.put(merged)


def _chained(op: Op, axes: Sequence[Axis], sizes: Sequence[int]) -> Axis:
    if all(axis is None for axis in axes):
        return None
    return np.concatenate([_placed(op, axis, size) for axis, size in zip(axes, sizes, strict=True)])


def _placed(op: Op, axis: Axis, size: int) -> np.ndarray[Any, np.dtype[np.int64]]:
    """The axis, or one of this size that stays."""
    if axis is None:
        axis = op.labels.fresh(size)
        op.labels.pin(axis, op.reason("it is joined with something of a fixed size"))
    return axis


def _aligned(op: Op, axes: Sequence[Axis]) -> Axis:
    known = next((axis for axis in axes if axis is not None), None)
    if known is not None:
        for axis in axes:
            op.labels.same(known, axis, op.reason("it is joined with something of a fixed size"))
    return known


def _stack(op: Op) -> None:
    parts, dim = op.args[0], op.arg(1, op.kwargs.get("dim", 0))
    axes = [op.axes(t) for t in parts]
    merged = [_aligned(op, [each[i] for each in axes]) for i in range(parts[0].dim())]
    merged.insert(dim % op.out.dim(), None)
    op.put(merged)


def _pad(op: Op) -> None:
    source, pads = op.args[0], op.args[1]
    axes = list(op.axes(source))
    for i in range(len(pads) // 2):
        axis, (left, right) = axes[-1 - i], pads[2 * i : 2 * i + 2]
        if axis is not None and (left or right):
            if min(left, right) < 0:
                op.labels.pin(axis, op.reason("it is cropped"))
                axes[-1 - i] = None
            else:
                ends = [_placed(op, None, size) for size in (left, right)]
                axes[-1 - i] = np.concatenate([ends[0], axis, ends[1]])
    op.put(axes)


def _index(op: Op) -> None:
    """x[indices]: what is indexed stays. Indices that are not side by side put their axes first."""
    source, indices = op.args[0], list(op.args[1])
    axes = op.axes(source)
    used = [i for i, index in enumerate(indices) if index is not None]
    masks = any(indices[i].dtype in (torch.bool, torch.uint8) for i in used)
    plain = not masks and used == list(range(used[0], used[-1] + 1))
    for i, axis in enumerate(axes):
        if not plain or i in used:
            op.labels.pin(axis, op.reason("it is indexed"))
    if not plain:
        op.put([None] * op.out.dim())
        return
    rest = [axis for i, axis in enumerate(axes) if i not in used]
    new: Axes = [None] * (op.out.dim() - len(rest))
    op.put([*rest[: used[0]], *new, *rest[used[0] :]])


def _index_select(op: Op) -> None:
    source, dim = op.args[0], op.args[1]
    axes = list(op.axes(source))
    op.labels.pin(axes[dim], op.reason("it is indexed"))
    axes[dim] = None
    op.put(axes)


def _index_add(op: Op) -> None:
    target, dim, _, source = op.args[:4]
    a, b = list(op.axes(target)), op.axes(source)
    for i in range(target.dim()):
        if i == dim % target.dim():
            op.labels.pin(a[i], op.reason("it is indexed"))
            a[i] = None
        elif a[i] is not None or b[i] is not None:
            op.labels.same(a[i], b[i], op.reason("it is added to something of a fixed size"))
            a[i] = a[i] if a[i] is not None else b[i]
    op.put(a)


def _flip(op: Op) -> None:
    axes = list(op.axes(op.args[0]))
    for i in op.args[1]:
        if (axis := axes[i]) is not None:
            axes[i] = axis[::-1].copy()
    op.put(axes)


def _roll(op: Op) -> None:
    source, dims = op.args[0], op.arg(2, ())
    axes = list(op.axes(source))
    for i in dims or range(source.dim()):
        op.labels.pin(axes[i], op.reason("it is rolled"))
        axes[i] = None
    op.put(axes)


def _repeat(op: Op) -> None:
    source, times = op.args[0], op.args[1]
    axes: Axes = [*[None] * (len(times) - source.dim()), *op.axes(source)]
    for i, (axis, count) in enumerate(zip(axes, times, strict=True)):
        if axis is not None and count != 1:
            axes[i] = np.tile(axis, count)
    op.put(axes)


def _pixel_shuffle(op: Op) -> None:
    source, factor = op.args[:2]
    axes = list(op.axes(source))
    if (channels := axes[-3]) is not None:
        new = op.labels.fresh(op.out.shape[-3])
        op.labels.product(channels, [new, None, None], [new.size, factor, factor])
        axes[-3] = new
    op.put([*axes[:-2], None, None])


SHAPES: dict[str, Rule] = {
    **dict.fromkeys(("view", "_unsafe_view", "reshape", "_reshape_copy", "_reshape_alias"), _view),
    "expand": _expand,
    "permute": _permute,
    "transpose": _transpose,
    "t": _t,
    "squeeze": _squeeze,
    "unsqueeze": _unsqueeze,
    "slice": _slice,
    "select": _select,
    "unbind": _unbind,
    **dict.fromkeys(("split", "split_with_sizes", "chunk", "tensor_split"), _split),
    "cat": _cat,
    "stack": _stack,
    "constant_pad_nd": _pad,
    "index": _index,
    "index_select": _index_select,
    "index_add": _index_add,
    "flip": _flip,
    "roll": _roll,
    "repeat": _repeat,
    "pixel_shuffle": _pixel_shuffle,
}
