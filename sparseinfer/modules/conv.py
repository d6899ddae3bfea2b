"""SparseConv2d and SparseConv1d: nn.Conv2d and nn.Conv1d with the weight held as packings, for inference."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from math import prod
from typing import TYPE_CHECKING, Any, ClassVar, Generic, TypeVar

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from sparseinfer import ops
from sparseinfer.formats import CSR
from sparseinfer.modules.groups import as_layouts, pack_groups
from sparseinfer.modules.packed import PackedLayer
from sparseinfer.ops.schema import as_channels_last, in_channels_last

if TYPE_CHECKING:
    from typing_extensions import Self

Dense = TypeVar("Dense", nn.Conv1d, nn.Conv2d)

_PADDING_MODES = ("zeros", "reflect", "replicate", "circular")


class _SparseConv(PackedLayer, Generic[Dense]):
    """A convolution over the last `_dims` dimensions of x [b, c, ...] or [c, ...]."""

    _dims: ClassVar[int]
    _dense: ClassVar[Any]
    transposed = False

    def __init__(
        self,
        packings: Sequence[Tensor],
        bias: Tensor | None = None,
        *,
        kernel_size: int | Sequence[int],
        stride: int | Sequence[int] = 1,
        padding: int | Sequence[int] | str = 0,
        dilation: int | Sequence[int] = 1,
        groups: int = 1,
        padding_mode: str = "zeros",
        buckets: Sequence[ops.Bucket] | None = None,
        activation: str = "none",
        dtype: torch.dtype | None = None,
        channels_last: bool = False,
    ) -> None:
        """Keep packings of one weight as a matrix [n, c / groups * kernel's size], and a copy of bias [n].

        packings     of each layout one packing for each group's n / groups rows, one after another
        buckets      which layout and kernel serve up to how many pixels of the output, all images of a batch
                     together; default: the first layout for all
        channels_last   the dense weight was: y is in channels_last for every x, as the dense layer's

        The others are those of the dense layer. ValueError and TypeError as for SparseLinear, and for what
        the dense layer would refuse.
        """
        super().__init__(packings, bias, buckets, activation, dtype, groups)
        n, k = self.matrix_shape
        self.kernel_size = self._per_dimension("kernel_size", kernel_size, 1)
        self.stride = self._per_dimension("stride", stride, 1)
        self.dilation = self._per_dimension("dilation", dilation, 1)
        self.padding = padding if isinstance(padding, str) else self._per_dimension("padding", padding, 0)
        self.groups, self.padding_mode = groups, padding_mode
        self.channels_last = channels_last
        if k % prod(self.kernel_size):
            raise ValueError(f"kernel_size: expected a size that divides {k} columns, got {self.kernel_size}")
        self.in_channels, self.out_channels = k // prod(self.kernel_size) * groups, n
        self._check_kernels()

        self.output_padding = (0,) * self._dims
        edges = self._edges()
        # F.pad counts from the last dimension.
        sizes = [size for low_high in reversed(edges) for size in low_high]
        self._reversed_padding_repeated_twice = sizes if isinstance(padding, str) else tuple(sizes)
        symmetric = padding_mode == "zeros" and all(low == high for low, high in edges)
        # What the operator cannot pad is padded before it.
        self._pad = None if symmetric else self._reversed_padding_repeated_twice
        self._pad_mode = "constant" if padding_mode == "zeros" else padding_mode
        rows = 2 - self._dims  # one row where the layer has one dimension
        self._op_kernel_size = [1] * rows + list(self.kernel_size)
        self._op_stride = [1] * rows + list(self.stride)
        self._op_padding = [0] * rows + [low if symmetric else 0 for low, _ in edges]
        self._op_dilation = [1] * rows + list(self.dilation)

    @classmethod
    def from_conv(
        cls,
        conv: Dense,
        packings: Sequence[str | ops.Layout] | None = None,
        buckets: Sequence[ops.Bucket] | None = None,
        *,
        activation: str = "none",
    ) -> Self:
        """The layer `conv` with its weight packed, without zeros, in each layout.

        A name means that packing in fp32; default: "rowgroup". TypeError: not the kind of layer that this
        one replaces.
        """
        if not isinstance(conv, cls._dense):
            raise TypeError(f"conv: expected nn.{cls._dense.__name__}, got {type(conv).__name__}")
        fmt = CSR.from_dense(conv.weight.detach().flatten(1))
        layouts = [ops.Layout.on_cpu(fmt)] if packings is None else as_layouts(packings, fmt)
        layer = cls(
            pack_groups(fmt, layouts, conv.groups),
            conv.bias,
            buckets=buckets,
            activation=activation,
            channels_last=weight_in_channels_last(conv),
            **conv_options(conv),
        )
        return layer.train(conv.training)

    def forward(self, input: Tensor) -> Tensor:
        return self.activated(input, self.activation)

    def activated(self, x: Tensor, activation: str) -> Tensor:
        """Calls the layer with this activation instead of its own; see `modules.chain`."""
        batched = x.dim() == self._dims + 2
        if not batched:
            if x.dim() != self._dims + 1:
                raise ValueError(
                    f"x: expected {self._dims + 1} or {self._dims + 2} dimensions, got shape {tuple(x.shape)}"
                )
            x = x.unsqueeze(0)
        if self._pad is not None:
            x = F.pad(x, self._pad, self._pad_mode)
        if self._dims == 1:
            x = x.contiguous().unsqueeze(2)  # images of one row are never in channels_last
        buffers = self._buffers
        y = ops.conv(
            x,
            [buffers[name] for name in self._packing_names],
            self._parameters["bias"],
            self.out_channels,
            kernel_size=self._op_kernel_size,
            stride=self._op_stride,
            padding=self._op_padding,
            dilation=self._op_dilation,
            groups=self.groups,
            plan=self.plan,
            activation=activation,
        )
        if self.channels_last:
            y = as_channels_last(y)
        if self._dims == 1:
            y = y.squeeze(2)
        return y if batched else y.squeeze(0)

    def to_conv(self, *, activation: bool = True) -> Dense:
        """The dense layer, exact to the bit.

        ValueError if an activation was fused into this one, unless `activation` is False: then it is dropped.
        """
        if activation:
            self._check_no_activation()
        bias = None if self.bias is None else self.bias.clone()
        conv: Dense = dense_conv(self._dense, self, self._as_weight(self.dense_matrix()), bias)
        return conv.train(self.training)

    def _as_weight(self, matrix: Tensor) -> Tensor:
        """[n, c / groups, *kernel_size]."""
        shape = (self.out_channels, self.in_channels // self.groups, *self.kernel_size)
        weight = matrix.reshape(shape)
        return as_channels_last(weight) if self.channels_last else weight

    def _apply(self, fn: Callable[[Tensor], Tensor], recurse: bool = True) -> Self:
        super()._apply(fn, recurse)
        # `.to(memory_format=torch.channels_last)` changes tensors of 4 dimensions, and there are none here.
        if self._dims == 2 and not self.channels_last:
            self.channels_last = in_channels_last(fn(torch.zeros(2, 2, 2, 2, dtype=self.dtype, device="cpu")))
        return self

    def extra_repr(self) -> str:
        return (
            f"{self.in_channels}, {self.out_channels}, kernel_size={self.kernel_size}, stride={self.stride}, "
            f"padding={self.padding!r}, dilation={self.dilation}, groups={self.groups}, "
            f"padding_mode={self.padding_mode!r}, {self._figures()}"
        )

    @staticmethod
    def _default_buckets(layout: ops.Layout) -> tuple[ops.Bucket, ...]:
        return layout.conv_buckets(0)

    def _check_kernels(self) -> None:
        if self._info.device == "cuda":
            return  # there images are unfolded, for any kernel
        kernels = [kernel for kernel in ops.kernels() if kernel.conv]
        names = {kernel.base_name for kernel in kernels} | {kernel.name for kernel in kernels}
        for bucket in ops.parse_plan(self.plan):
            if bucket.kernel not in names:
                raise ValueError(f"buckets: expected kernels that take a convolution, got {bucket.kernel}")

    def _per_dimension(self, name: str, value: int | Sequence[int], least: int) -> tuple[int, ...]:
        values = (value,) * self._dims if isinstance(value, int) else tuple(value)
        if len(values) != self._dims or not all(isinstance(v, int) and v >= least for v in values):
            raise ValueError(f"{name}: expected {self._dims} numbers of at least {least}, got {value!r}")
        return values

    def _edges(self) -> list[tuple[int, int]]:
        """Padding at the two ends of each dimension."""
        if self.padding_mode not in _PADDING_MODES:
            modes = ", ".join(_PADDING_MODES)
            raise ValueError(f"padding_mode: expected one of {modes}, got {self.padding_mode!r}")
        if not isinstance(self.padding, str):
            return [(size, size) for size in self.padding]
        if self.padding not in ("same", "valid"):
            raise ValueError(f"padding: expected numbers, 'same' or 'valid', got {self.padding!r}")
        if self.padding == "valid":
            return [(0, 0)] * self._dims
        if any(step != 1 for step in self.stride):
            raise ValueError(f"stride: expected 1 for padding='same', got {self.stride}")
        totals = [d * (k - 1) for d, k in zip(self.dilation, self.kernel_size, strict=True)]
        return [(total // 2, total - total // 2) for total in totals]


class SparseConv2d(_SparseConv[nn.Conv2d]):
    """nn.Conv2d with a sparse weight: x [b, c, h, w] -> y [b, n, h', w'], or without b.

    The weight lives only in its packings, as a matrix [n, c / groups * kh * kw]; `state_dict()` holds that
    matrix as `values`, `crow_indices` and `col_indices`, and `bias`. `plan` says which packing and kernel
    serve how many pixels of the output. y is in channels_last where the dense layer's would be; on the CPU
    x and y are copied for that. float32, bfloat16 or float16, never trainable. One instance may serve several
    threads at once.
    """

    _dims = 2
    _dense = nn.Conv2d
    _conv_forward = nn.Conv2d._conv_forward  # its arguments are weights of the caller's


class SparseConv1d(_SparseConv[nn.Conv1d]):
    """nn.Conv1d with a sparse weight: x [b, c, l] -> y [b, n, l'], or without b; else like SparseConv2d."""

    _dims = 1
    _dense = nn.Conv1d
    _conv_forward = nn.Conv1d._conv_forward


def conv_options(conv: Any) -> dict[str, Any]:
    """The constructor arguments of a convolution besides its channels, dense or sparse."""
    names = ("kernel_size", "stride", "padding", "dilation", "groups", "padding_mode")
    return {name: getattr(conv, name) for name in names}


def weight_in_channels_last(conv: Any) -> bool:
    """Whether a dense convolution returns channels_last for inputs in any memory format."""
    return conv.weight.dim() == 4 and in_channels_last(conv.weight)


def dense_conv(kind: Any, like: Any, weight: Tensor, bias: Tensor | None) -> Any:
    """A convolution of class `kind` with the channels and options of `like`; nothing is copied."""
    # Without data: nothing to initialise and no random numbers drawn.
    channels, options = (like.in_channels, like.out_channels), conv_options(like)
    conv = kind(*channels, **options, bias=bias is not None, device="meta")
    conv.weight = nn.Parameter(weight)
    if bias is not None:
        conv.bias = nn.Parameter(bias)
    return conv
