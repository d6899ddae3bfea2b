"""SemiStructuredLinear: nn.Linear with a 2:4 weight, compressed for a GPU's sparse tensor cores."""

from __future__ import annotations

import torch
from torch import Tensor

from sparseinfer.modules.rearranged import RearrangedLinear
from sparseinfer.ops.dense import semi_structured_available


class SemiStructuredLinear(RearrangedLinear):
    """y = activation(x · Wᵀ + bias) with W [n, k], 2:4; x [..., k] -> y [..., n], of the dtype of W.

    2:4 means that of each four neighbours in a row of W at most two are not zero. On a GPU torch compresses
    such a weight once, when the layer is made, and multiplies by cuSPARSELt or CUTLASS. `weight` and
    `state_dict()` return it bit for bit, under the keys of nn.Linear. On other devices, and for other
    patterns, the weight is held unchanged (see `compressed`), and the layer is F.linear.

    Never trainable. Under torch.compile and torch.export the layer is F.linear with a constant dense copy
    of the weight.
    """

    def __init__(self, weight: Tensor, bias: Tensor | None = None, *, activation: str = "none") -> None:
        """Compress weight [n, k] and copy bias [n].

        activation   applied to y: a name in `sparseinfer.ops.ACTIVATIONS`, such as "relu"; "none" leaves y

        TypeError: a weight that is not floating point, a bias of another dtype. ValueError: a weight that is
        not [n, k] on cpu or cuda, a bias of another shape, an unknown activation.
        """
        super().__init__(weight, bias, activation=activation)
        self._hold(weight)

    @property
    def compressed(self) -> bool:
        """Whether the weight is held compressed."""
        return self._is_rearranged

    def _rearranged(self, weight: Tensor) -> Tensor | None:
        if not semi_structured_available(weight):
            return None
        compressed: Tensor = torch.sparse.to_sparse_semi_structured(weight)
        return compressed

    def extra_repr(self) -> str:
        return f"{super().extra_repr()}, compressed={self.compressed}"
