"""What operators do to axes: element by element, products, norms, and lookups. rules_shapes.py has views."""

from __future__ import annotations

from collections.abc import Sequence
from math import prod

import numpy as np
from torch import Tensor

from sparseinfer.prune.structured.labels import Axis
from sparseinfer.prune.structured.rules_shapes import SHAPES
from sparseinfer.prune.structured.tracing import (
    CHANNELS,
    HEADS,
    UNCHECKED,
    WIDTH,
    Axes,
    Op,
    Rule,
    Work,
    tensors,
)


def rule_of(name: str) -> Rule | None:
    """The rule of an operator of aten; of one that writes into its input it is that of the other."""
    return _RULES.get(name) or _RULES.get(name.removesuffix("_"))


def elementwise(op: Op) -> None:
    """Tensors are aligned at their last axes; axes of size 1 are repeated."""
    outs = tensors(op.out)
    merged: Axes = [None] * outs[0].dim()
    sources = tensors((op.args, dict(op.kwargs)))
    for i in range(1, outs[0].dim() + 1):
        aligned = [op.axes(t)[-i] for t in sources if t.dim() >= i and t.shape[-i] == outs[0].shape[-i]]
        merged[-i] = _all_same(op, aligned) if outs[0].shape[-i] > 1 else next(iter(aligned), None)
    for t in outs:
        if t.shape == outs[0].shape:
            op.put(merged, t)


def _all_same(op: Op, axes: Sequence[Axis]) -> Axis:
    known = [axis for axis in axes if axis is not None]
    if not known:
        return None
    for axis in axes:
        op.labels.same(known[0], axis, op.reason(f"{op.name} takes it with something of a fixed size"))
    return known[0]


def _like_first(op: Op) -> None:
    """The axes of the first input, for outputs that have its shape."""
    for t in tensors(op.out):
        source = op.args[0]
        op.put(op.axes(source) if t.shape == source.shape else [None] * t.dim(), t)


def _made(op: Op) -> None:
    """A tensor of constants. An axis as long as its module has heads is made for them, as T5's positions are;
    if it is something else of that length, it meets axes that stay.
    """
    sizes = op.out.shape
    op.put([op.labels.fresh(n) if n > 1 and op.tracer.counts_heads(n) else None for n in sizes])


def _along(op: Op) -> None:
    """Something over one axis, such as softmax: that axis stays."""
    source, dim = op.args[0], op.arg(1, -1)
    axes = list(op.axes(source))
    for i in [dim] if isinstance(dim, int) else dim:
        op.labels.pin(axes[i], op.reason(f"{op.name} is over it"))
        axes[i] = None
    op.put(axes)


def _reduced(op: Op) -> None:
    """Means, sums and variances. What they sum over may be shortened: a mean is that of what is left."""
    source = op.args[0]
    dims = op.arg(1, op.kwargs.get("dim"))
    axes = list(op.axes(source))
    chosen = range(source.dim()) if dims is None or dims == [] else dims
    over = {i % source.dim() for i in ([chosen] if isinstance(chosen, int) else chosen)}
    for i in over:
        if op.name in ("sum", "mean", "var", "std", "linalg_vector_norm", "var_mean", "native_norm", "norm"):
            op.labels.tag(axes[i], WIDTH)
        else:
            op.labels.pin(axes[i], op.reason(f"{op.name} is over it"))
    for t in tensors(op.out):
        kept = t.dim() == source.dim()
        op.put([None if i in over else a for i, a in enumerate(axes) if kept or i not in over], t)


def _mm(op: Op) -> None:
    *added, a, b = [t for t in op.args if isinstance(t, Tensor)]
    _contracted(op, a, b, added)


def _contracted(op: Op, a: Tensor, b: Tensor, added: Sequence[Tensor] = ()) -> None:
    """[rows, k] times [k, columns], plus what is added."""
    (rows, k), (other, columns) = op.axes(a), op.axes(b)
    op.labels.same(k, other, op.reason("a product takes it with something of a fixed size"))
    out: Axes = [rows, columns]
    for t in added:
        for i in range(1, min(t.dim(), 2) + 1):
            if t.shape[-i] > 1:
                reason = op.reason("a bias of a fixed size is added")
                op.labels.same(out[-i], op.axes(t)[-i], reason)
    op.put(out)
    second = op.tracer.weight_of(b)
    weight = op.tracer.weight_of(a) if second is None else second
    op.tracer.read(weight, k if second is None else other)
    _work(op, (a.shape[0], a.shape[1], b.shape[1]), (rows, k if k is not None else other, columns), weight)


def _work(op: Op, sizes: Sequence[int], axes: Sequence[Axis], weight: Tensor | None) -> None:
    fixed = prod(size for size, axis in zip(sizes, axes, strict=True) if axis is None)
    op.tracer.trace.works.append(Work(fixed, tuple(a for a in axes if a is not None), weight))


def _bmm(op: Op) -> None:
    *added, a, b = [t for t in op.args if isinstance(t, Tensor)]
    (batch, rows, k), (batch_b, k_b, columns) = op.axes(a), op.axes(b)
    op.labels.same(batch, batch_b, op.reason("a batch of products takes it with something of a fixed size"))
    op.labels.same(k, k_b, op.reason("a product takes it with something of a fixed size"))
    batch = batch if batch is not None else batch_b
    if batch is not None:
        op.labels.tag(batch, HEADS)
        # A product for each head: heads go, their size stays.
        for axis in (rows, k, k_b, columns):
            op.labels.pin(axis, op.reason("it is the size of a head"))
    op.put([batch, rows, columns])
    for t in added:
        for i in range(1, t.dim() + 1):
            if t.shape[-i] == op.out.shape[-i] > 1:
                reason = op.reason("something of a fixed size is added")
                op.labels.same([batch, rows, columns][-i], op.axes(t)[-i], reason)
    op.tracer.read(op.tracer.weight_of(b), k_b)
    sizes = (*a.shape, b.shape[2])
    _work(op, sizes, (batch, rows, k, columns), op.tracer.weight_of(b))


def _attention(op: Op) -> None:
    """Fused attention of q [batch, heads, tokens, size], k and v, which may have fewer heads."""
    q, k, v = op.args[:3]
    heads = op.axes(q)[-3]
    reason = op.reason("it is the size of a head, by which scores are divided")
    for t in (q, k, v):
        op.labels.pin(op.axes(t)[-1], reason)
        op.labels.pin(op.axes(t)[-2], op.reason("attention is over it"))
        op.labels.tag(op.axes(t)[-3], HEADS)
    fixed = op.reason("its heads attend to something with a fixed number of heads")
    for t in (k, v):
        theirs = op.axes(t)[-3]
        if theirs is not None and q.shape[-3] != t.shape[-3]:
            theirs = np.repeat(theirs, q.shape[-3] // t.shape[-3])
        op.labels.same(heads, theirs, fixed)
    outs = tensors(op.out)
    op.put([*op.axes(q)[:-3], heads, None, op.axes(v)[-1]], outs[0])
    for mask in [t for t in tensors((op.args[3:], dict(op.kwargs))) if t.dim() >= 3 and t.shape[-3] > 1]:
        op.labels.same(heads, op.axes(mask)[-3], op.reason("the mask has a fixed number of heads"))
    sizes = (q.shape[:-3].numel(), q.shape[-3], q.shape[-2], k.shape[-2], 2 * q.shape[-1])
    _work(op, sizes, (None, heads, None, None, None), None)


def _linear(op: Op) -> None:
    x, weight, *bias = [t for t in op.args if isinstance(t, Tensor)]
    n, k = op.axes(weight)
    op.labels.same(op.axes(x)[-1], k, op.reason("a product takes it with something of a fixed size"))
    for t in bias:
        op.labels.same(n, op.axes(t)[0], op.reason("a bias of a fixed size is added"))
    op.put([*op.axes(x)[:-1], n])
    op.tracer.read(op.tracer.weight_of(weight), k)
    _work(op, (x.shape[:-1].numel(), *weight.shape), (None, n, k), op.tracer.weight_of(weight))


def _convolution(op: Op) -> None:
    x, weight, bias = op.args[:3]
    transposed, groups = bool(op.args[6]), int(op.args[8])
    batch, channels, *pixels = op.axes(x)
    first, second, *kernel = op.axes(weight)
    labels, reason = op.labels, op.reason("it meets something of a fixed size")
    for axis in (*pixels, *kernel):
        labels.pin(axis, op.reason("a convolution is over it"))
    assert first is not None
    assert second is not None
    out: Axis = second if transposed else first
    if groups > 1:
        given = first if transposed else channels
        out = _grouped(op, x, weight, groups, given, transposed)
    else:
        labels.same(channels, first if transposed else second, reason)
    if bias is not None:
        labels.same(op.axes(bias)[0], out, reason)
    labels.tag(out, CHANNELS)
    if not 1 < groups == x.shape[1]:
        op.tracer.read(op.tracer.weight_of(weight), first if transposed else second)
    op.put([batch, out, *[None] * len(pixels)])
    inside = weight.shape[0] // groups if transposed else weight.shape[1]
    taken = None if groups > 1 else first if transposed else second
    # A transposed convolution multiplies its kernel with each pixel of its input, others of their output.
    positions = (x if transposed else op.out)[:, 0].numel() * weight.shape[2:].numel()
    _work(op, (positions, op.out.shape[1], inside), (None, out, taken), op.tracer.weight_of(weight))


def _grouped(op: Op, x: Tensor, weight: Tensor, groups: int, given: Axis, transposed: bool) -> Axis:
    """The output channels of a grouped convolution; the same channels go from each of its groups."""
    labels = op.labels
    first, second = op.axes(weight)[:2]
    reason = op.reason("it meets something of a fixed size")
    channels, inputs = op.axes(x)[1], x.shape[1]
    assert first is not None
    assert second is not None
    if groups == inputs and not transposed:
        # Depthwise: a channel goes with its filters, and with one of them all.
        rows = first.reshape(inputs, -1)
        for filters in rows.T:
            labels.same(channels, filters, reason)
        labels.pin(second, op.reason("it is the one input of a filter"))
        return first
    members = weight.shape[0] // groups
    inside = labels.fresh(members)
    labels.product(first, [None, inside], [groups, members])
    if transposed:
        labels.same(channels, first, reason)
        out = labels.fresh(groups * second.size)
        labels.product(out, [None, second], [groups, second.size])
        return out
    if channels is None:
        labels.pin(second, reason)
    else:
        labels.product(channels, [None, second], [groups, second.size])
    return first


def _batch_norm(op: Op) -> None:
    x = op.args[0]
    for t in op.args[1:5]:
        if isinstance(t, Tensor):
            op.labels.same(op.axes(x)[1], op.axes(t)[0], op.reason("a batch norm has a fixed size"))
    op.put(op.axes(x), tensors(op.out)[0])


def _last_axes_norm(op: Op) -> None:
    """Layer norm and RMS norm: (x, shape, weight, bias, …)."""
    x, shape = op.args[0], op.args[1]
    axes = op.axes(x)
    if not any(isinstance(t, Tensor) for t in op.args[2:4]):
        for axis in axes[-len(shape) :]:
            op.labels.pin(axis, op.reason("a norm without weights has a fixed size"))
    for i in range(1, len(shape) + 1):
        op.labels.tag(axes[-i], WIDTH)
        for t in op.args[2:4]:
            if isinstance(t, Tensor):
                op.labels.same(axes[-i], op.axes(t)[-i], op.reason("a norm has a fixed size"))
    op.put(axes, tensors(op.out)[0])


def _group_norm(op: Op) -> None:
    x, weight, bias, groups = op.args[0], op.args[1], op.args[2], int(op.args[6])
    channels = op.axes(x)[1]
    if channels is not None and groups > 1:
        # The same channels of each group, so that their number stays.
        inside = op.labels.fresh(channels.size // groups)
        op.labels.product(channels, [None, inside], [groups, inside.size])
    op.labels.tag(channels, UNCHECKED)  # the mean is one of fewer channels
    for t in (weight, bias):
        if isinstance(t, Tensor):
            op.labels.same(channels, op.axes(t)[0], op.reason("a norm has a fixed size"))
    op.put(op.axes(x), tensors(op.out)[0])


def _weight_norm(op: Op) -> None:
    v, g, dim = op.args[0], op.args[1], op.arg(2, 0)
    axes = op.axes(v)
    for i, axis in enumerate(axes):
        if i == dim % v.dim():
            op.labels.same(axis, op.axes(g)[i], op.reason("a weight norm has a fixed size"))
        else:
            op.labels.tag(axis, UNCHECKED)  # the norm is one of fewer weights
    op.put(axes, op.out[0])
    op.put(op.axes(g), op.out[1])


def _embedding(op: Op) -> None:
    weight, ids = op.args[:2]
    words, size = op.axes(weight)
    op.labels.pin(words, op.reason("a lookup needs every row"))
    op.labels.tag(size, WIDTH)
    op.put([*[None] * ids.dim(), size])


def _glu(op: Op) -> None:
    x, dim = op.args[0], op.arg(1, -1)
    axes = list(op.axes(x))
    if (axis := axes[dim]) is not None:
        half = axis.size // 2
        op.labels.same(axis[:half], axis[half:], "")
        axes[dim] = axis[:half]
    op.put(axes)


def _resampled(op: Op) -> None:
    """Pooling and interpolation: [batch, channels, …], or [channels, …] for some of them."""
    x = op.args[0]
    spatial = {"1d": 1, "2d": 2, "3d": 3}.get(next((s for s in ("1d", "2d", "3d") if s in op.name), ""), 1)
    lead = x.dim() - spatial
    for axis in op.axes(x)[lead:]:
        op.labels.pin(axis, op.reason(f"{op.name} is over it"))
    for t in tensors(op.out):
        op.put([*op.axes(x)[:lead], *[None] * (t.dim() - lead)], t)


_POOLS = ("max_pool", "avg_pool", "adaptive_max_pool", "adaptive_avg_pool", "_adaptive_avg_pool")
_UPSAMPLES = ("nearest1d", "nearest2d", "nearest3d", "_nearest_exact1d", "_nearest_exact2d", "linear1d")
_SAME_SHAPE = (
    *("clone", "detach", "_to_copy", "alias", "lift_fresh", "lift_fresh_copy", "contiguous", "fill", "zero"),
    *("zeros_like", "ones_like", "full_like", "empty_like", "rand_like", "randn_like", "bernoulli"),
    *("native_dropout", "triu", "tril"),
)
_ATTENTIONS = (
    "_scaled_dot_product_flash_attention_for_cpu",
    "_scaled_dot_product_flash_attention",
    "_scaled_dot_product_efficient_attention",
    "_scaled_dot_product_cudnn_attention",
    "_scaled_dot_product_fused_attention_overrideable",
)
_RULES: dict[str, Rule] = {
    **SHAPES,
    **dict.fromkeys(("add", "masked_fill", "where", "copy", "_prelu_kernel", "lerp", "addcmul"), elementwise),
    **dict.fromkeys(_SAME_SHAPE, _like_first),
    **dict.fromkeys(("zeros", "ones", "full", "new_zeros", "new_ones", "new_full"), _made),
    **dict.fromkeys(("_softmax", "_log_softmax", "cumsum", "_safe_softmax"), _along),
    **dict.fromkeys(("sum", "mean", "var", "std", "var_mean", "linalg_vector_norm", "norm"), _reduced),
    **dict.fromkeys(("amax", "amin", "argmax", "argmin", "any", "all", "prod", "logsumexp"), _reduced),
    **dict.fromkeys(("mm", "addmm"), _mm),
    **dict.fromkeys(("bmm", "baddbmm"), _bmm),
    "linear": _linear,
    "convolution": _convolution,
    **dict.fromkeys(
        ("native_batch_norm", "_native_batch_norm_legit_no_training", "cudnn_batch_norm"), _batch_norm
    ),
    **dict.fromkeys(("native_layer_norm", "_fused_rms_norm"), _last_axes_norm),
    "native_group_norm": _group_norm,
    "_weight_norm_interface": _weight_norm,
    "embedding": _embedding,
    "glu": _glu,
    **{f"{name}{n}d": _resampled for name in _POOLS for n in (1, 2, 3)},
    **{f"max_pool{n}d_with_indices": _resampled for n in (2, 3)},
    **{f"upsample_{name}": _resampled for name in (*_UPSAMPLES, "bilinear2d", "bicubic2d", "trilinear3d")},
    **dict.fromkeys(_ATTENTIONS, _attention),
}
