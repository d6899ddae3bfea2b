"""SparseOrDenseLinear: a SparseLinear that is dense for some numbers of tokens."""

from __future__ import annotations

import math
from collections.abc import Sequence
from typing import Any

import torch
from torch import Tensor, nn

from sparseinfer import ops
from sparseinfer.modules._tracing import unseen
from sparseinfer.modules.linear import SparseLinear
from sparseinfer.modules.parts import dense_linear
from sparseinfer.modules.prepacked import PrepackedLinear
from sparseinfer.ops.dense import DENSE_WAYS, PLAIN, PREPACKED, PREPACKED_BF16
from sparseinfer.ops.transforms import refuse_gradients

# Dense ways that a Linear may have beside packings.
BESIDE = (PLAIN, PREPACKED, PREPACKED_BF16)


class SparseOrDenseLinear(SparseLinear):
    """y = activation(x · Wᵀ + bias) as SparseLinear, but where few zeros do not pay by a dense copy of W.

    For decode a weight is read, for prefill it is multiplied by: at half of zeros the one may gain by them
    and the other lose. `state_dict()` is that of SparseLinear; the dense copy is made of the packings, so
    that both are the same weight. On a GPU, and in a graph of torch.compile, the layer is sparse for all
    numbers of tokens.
    """

    def __init__(
        self,
        packings: Sequence[Tensor],
        bias: Tensor | None = None,
        *,
        dense_way: str,
        dense_at: Sequence[int],
        tokens: int | None = None,
        **options: Any,
    ) -> None:
        """The arguments of SparseLinear, with its `buckets`, and:

        dense_way   name in `ops.dense` of the dense implementation: F.linear or one of oneDNN's
        dense_at    numbers of the buckets that it serves
        tokens      the number of rows of x to lay the dense weight out for; any other works too

        ValueError as of SparseLinear, and for another way or bucket.
        """
        super().__init__(packings, bias, **options)
        limits = [bucket.max_tokens for bucket in ops.parse_plan(self.plan)]
        if dense_way not in BESIDE:
            raise ValueError(f"dense_way: expected one of {', '.join(BESIDE)}, got {dense_way!r}")
        if not all(0 <= at < len(limits) for at in dense_at):
            raise ValueError(f"dense_at: expected numbers of {len(limits)} buckets, got {list(dense_at)}")
        self.dense_way, self.dense_at, self._tokens = dense_way, tuple(dense_at), tokens
        self._is_dense = tuple((limit, i in self.dense_at) for i, limit in enumerate(limits))
        self._copy_densely()

    def activated(self, x: Tensor, activation: str) -> Tensor:
        """Calls the layer with this activation instead of its own; see `modules.chain`."""
        if not self._dense_serves(x):
            return super().activated(x, activation)
        (dense,), bias = self._dense, self._parameters["bias"]
        refuse_gradients(x=x, bias=bias)
        dense._parameters["bias"] = bias  # it may have been given another
        if isinstance(dense, PrepackedLinear):
            return dense.activated(x, activation)
        return ops.ACTIVATIONS[activation](dense(x))

    def parts(self, x: Tensor, sizes: Sequence[int], wanted: Sequence[bool]) -> list[Tensor | None]:
        """The layer's result as separate tensors [..., size]; None for those not wanted."""
        if not self._dense_serves(x):
            return super().parts(x, sizes, wanted)
        pieces = self.activated(x, "none").split(list(sizes), dim=-1)
        form = torch.contiguous_format
        return [y.clone(memory_format=form) if want else None for y, want in zip(pieces, wanted, strict=True)]

    @property
    def nbytes(self) -> int:
        """Bytes of all that the layer holds: packings, bias, and the dense copy of the weight."""
        (dense,) = self._dense
        held = dense.hidden_nbytes if isinstance(dense, PrepackedLinear) else dense.weight.nbytes
        return super().nbytes + held

    def extra_repr(self) -> str:
        return f"{super().extra_repr()}, {self.dense_way} in buckets {list(self.dense_at)} of {self.plan}"

    def _dense_serves(self, x: Tensor) -> bool:
        # A graph holds no reordered weight, and would hold a plain one as a constant of its own.
        if torch.compiler.is_compiling() or not x.is_cpu or x.dtype != self.dtype:
            return False
        tokens = math.prod(x.shape[:-1])
        return next(dense for limit, dense in self._is_dense if limit is None or tokens <= limit)

    def _copy_densely(self) -> None:
        """Make the dense copy of what the packings hold."""
        with unseen():
            weight = self.to_format().to_dense().to("cpu", DENSE_WAYS[self.dense_way].rounds_to or self.dtype)
        dense: nn.Module
        if self.dense_way == PLAIN:
            dense = dense_linear(weight, None).requires_grad_(False)
        else:
            dense = PrepackedLinear(weight, tokens=self._tokens, dtype=self.dtype)
        # In a tuple, where nn.Module does not take it for a part: it has no state of its own.
        self._dense: tuple[Any] = (dense,)

    def _take_form(self, form: list[Tensor]) -> None:
        super()._take_form(form)
        self._copy_densely()

    def __getstate__(self) -> dict[str, Any]:
        state = super().__getstate__()
        del state["_dense"]
        return state

    def __setstate__(self, state: dict[str, Any]) -> None:
        super().__setstate__(state)
        self._copy_densely()
