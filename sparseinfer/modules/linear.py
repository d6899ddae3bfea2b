"""SparseLinear: nn.Linear with the weight held as packings, for inference."""

from __future__ import annotations

from collections.abc import Sequence

import torch
from torch import Tensor, nn

from sparseinfer import ops
from sparseinfer.formats import BSR, CSR
from sparseinfer.modules._held_weight import LinearLike
from sparseinfer.modules.groups import as_layouts, pack_groups
from sparseinfer.modules.packed import PackedLayer
from sparseinfer.ops.transforms import refuse_gradients


class SparseLinear(LinearLike, PackedLayer):
    """y = x · Wᵀ + bias with a sparse W [n, k]; x [..., k] -> y [..., n]; n = out_features, k = in_features.

    The weight lives only in its packings, uint8 buffers `packing_0`, ... that `state_dict()` leaves out:
    it holds `values`, `crow_indices`, `col_indices` and `bias` instead, bit for bit. `plan` says which
    packing and kernel serve how many tokens. float32, bfloat16, float16 or int8, never trainable. One
    instance may serve several threads at once.

    `.to("cuda")` and `.to("cpu")` pack the weight again for the kernels there, as CSR where these do not read
    its blocks (BSR). The weight tensors in `state_dict()` are in CPU memory.
    """

    def __init__(
        self,
        packings: Sequence[Tensor],
        bias: Tensor | None = None,
        *,
        buckets: Sequence[ops.Bucket] | None = None,
        activation: str = "none",
        dtype: torch.dtype | None = None,
    ) -> None:
        """Keep packings of one weight, made by `ops.pack`, and a copy of bias [n].

        buckets      which packing and kernel serve up to how many tokens; default: the first packing for all
        activation   applied to y: a name in `sparseinfer.ops.ACTIVATIONS`, such as "relu"; "none" leaves y
        dtype        of the bias and of the dense layer; default: that of the weight

        ValueError: no packings, packings of different matrices, a bucket without a packing, a bias of another
        shape. TypeError: a bias of another dtype.
        """
        super().__init__(packings, bias, buckets, activation, dtype)
        self.out_features, self.in_features = self.matrix_shape

    @classmethod
    def from_format(
        cls,
        fmt: CSR | BSR,
        bias: Tensor | None = None,
        *,
        packings: Sequence[str | ops.Layout] | None = None,
        buckets: Sequence[ops.Bucket] | None = None,
        activation: str = "none",
    ) -> SparseLinear:
        """Pack fmt [n, k] in each layout; a name means fp32, of int8 i8; default: "rowgroup", for BSR "bsr".

        Of int8, storage "i8" also rounds each token of x to 8 bits, "wi8" does not.
        """
        layouts = [ops.Layout.on_cpu(fmt)] if packings is None else as_layouts(packings, fmt)
        return cls(pack_groups(fmt, layouts), bias, buckets=buckets, activation=activation)

    @classmethod
    def from_linear(
        cls,
        linear: nn.Linear,
        packings: Sequence[str | ops.Layout] | None = None,
        buckets: Sequence[ops.Bucket] | None = None,
    ) -> SparseLinear:
        """The layer `linear` with its weight packed, without zeros; arguments as in `from_format`."""
        fmt = CSR.from_dense(linear.weight)
        layer = cls.from_format(fmt, linear.bias, packings=packings, buckets=buckets)
        return layer.train(linear.training)

    def forward(self, input: Tensor) -> Tensor:
        return self.activated(input, self.activation)

    def activated(self, x: Tensor, activation: str) -> Tensor:
        """Calls the layer with this activation instead of its own; see `modules.chain`."""
        # Straight from the dicts: nn.Module.__getattr__ costs 0.7 us a buffer, a tenth of a small call.
        buffers = self._buffers
        packings = [buffers[name] for name in self._packing_names]
        return ops.linear(x, packings, self._parameters["bias"], self.out_features, self.plan, activation)

    def product(self, activation: str) -> ops.Product:
        """The layer with this activation, for `ops.linear_block`."""
        packings = [self._buffers[name] for name in self._packing_names]
        bias = self._parameters["bias"]
        return ops.Product(packings, bias, self.out_features, self.plan, activation)  # type: ignore[arg-type]

    def parts(self, x: Tensor, sizes: Sequence[int], wanted: Sequence[bool]) -> list[Tensor | None]:
        """The layer's result as separate tensors [..., size]; None for those not wanted."""
        refuse_gradients(x=x, bias=self.bias)
        packings = [self._buffers[name] for name in self._packing_names]
        return ops.linear_parts(x, packings, self.bias, sizes, wanted, self.plan)  # type: ignore[arg-type]

    def extra_repr(self) -> str:
        return f"in_features={self.in_features}, out_features={self.out_features}, {self._figures()}"
