"""The base of layers that hold a dense weight in a special layout for one of torch's faster products."""

from __future__ import annotations

from collections.abc import Callable
from typing import TYPE_CHECKING, Any

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from sparseinfer import ops
from sparseinfer.formats.checks import WrongDtype
from sparseinfer.modules._held_weight import LinearLike, checked_bias, destination
from sparseinfer.modules._tracing import constant, unseen
from sparseinfer.ops.transforms import refuse_gradients

if TYPE_CHECKING:
    from typing_extensions import Self

_INTEGERS = {1: torch.uint8, 2: torch.int16, 4: torch.int32, 8: torch.int64}


class RearrangedLinear(LinearLike):
    """y = activation(x · Wᵀ + bias) with a dense W [n, k]; x [..., k] -> y [..., n], of the layer's dtype.

    The weight is rearranged once, when the layer is made, and held only in this layout; `weight` and
    `state_dict()` return it bit for bit, under the keys of nn.Linear. A weight that torch cannot rearrange,
    or cannot restore exactly, is held unchanged. Never trainable.

    The weight's dtype may be shorter than that of the layer, `dtype`: then x is rounded to it, too, and so is
    their product, before it is widened.

    Subclasses define the layout in `_rearranged`.
    """

    _weight_keys = ("weight",)

    def __init__(
        self,
        weight: Tensor,
        bias: Tensor | None = None,
        *,
        activation: str = "none",
        dtype: torch.dtype | None = None,
    ) -> None:
        """Check weight [n, k] and copy bias [n]; the subclass then holds the weight."""
        super().__init__()
        if not isinstance(weight, Tensor) or not weight.is_floating_point():
            got = str(weight.dtype) if isinstance(weight, Tensor) else type(weight).__name__
            raise TypeError(f"weight: expected a floating-point tensor, got {got}")
        if weight.dim() != 2 or weight.device.type not in ("cpu", "cuda"):
            got = f"{tuple(weight.shape)} on {weight.device}"
            raise ValueError(f"weight: expected [n, k] on cpu or cuda, got {got}")
        if dtype not in (None, weight.dtype, torch.float32):
            raise TypeError(f"dtype: expected torch.float32 or that of the weight, got {dtype}")
        self.dtype: torch.dtype = weight.dtype if dtype is None else dtype
        self.weight_dtype = weight.dtype
        bias = checked_bias(bias, weight.shape[0], self.dtype, weight.device)
        if activation not in ops.ACTIVATIONS:
            known = ", ".join(ops.ACTIVATIONS)
            raise ValueError(f"activation: expected one of {known}, got {activation!r}")
        self.out_features, self.in_features = weight.shape
        self.activation = activation
        self._register_bias(bias, self.dtype, weight.device)

    @classmethod
    def from_linear(cls, linear: nn.Linear, **options: Any) -> Self:
        """The layer `linear` followed by an activation; options as in the constructor."""
        return cls(linear.weight, linear.bias, **options).train(linear.training)

    def _rearranged(self, weight: Tensor) -> Tensor | None:
        """weight [n, k], contiguous, in the layer's layout; None where torch cannot have it like that."""
        raise NotImplementedError

    def _hold(self, weight: Tensor) -> None:
        """Keep a weight [n, k], in the dtype of the one that the layer was made with."""
        weight = weight.detach().to(self.weight_dtype).contiguous()
        rearranged = self._rearranged(weight)
        if rearranged is not None and not _same_bits(rearranged.to_dense(), weight):
            rearranged = None
        self._is_rearranged = rearranged is not None
        # In a tuple, where torch.export does not look for constants to put into its graph.
        self._held = (weight.clone() if rearranged is None else rearranged,)
        self._times_held += 1

    def forward(self, input: Tensor) -> Tensor:
        return self.activated(input, self.activation)

    def activated(self, x: Tensor, activation: str) -> Tensor:
        """Calls the layer with this activation instead of its own; see `modules.chain`."""
        refuse_gradients(x=x, bias=self._parameters["bias"])
        compiling = torch.compiler.is_compiling()
        weight = constant(self, self._times_held) if compiling else self._held[0]
        return ops.ACTIVATIONS[activation](self._product(x, weight))

    def _product(self, x: Tensor, weight: Tensor) -> Tensor:
        """x · weightᵀ + bias with a weight [n, k] that F.linear takes."""
        bias = self._parameters["bias"]
        # Under autocast torch chooses the dtypes itself.
        if self.weight_dtype == self.dtype or torch.is_autocast_enabled(x.device.type):
            return F.linear(x, weight, bias)
        if x.dtype != self.dtype:
            raise WrongDtype(f"x: expected {self.dtype}, got {x.dtype}")
        y = F.linear(x.to(self.weight_dtype), weight).to(self.dtype)
        return y if bias is None else y + bias

    def dense_matrix(self) -> Tensor:
        """A new dense weight [n, k]."""
        return self.constant_matrix().to(self.dtype)

    def constant_matrix(self) -> Tensor:
        """The same in the dtype that it is held in."""
        (held,) = self._held
        with unseen():
            return held.to_dense() if self._is_rearranged else held.clone()

    @property
    def hidden_nbytes(self) -> int:
        """Bytes of the weight, which is neither a parameter nor a buffer."""
        return self.out_features * self.in_features * self.weight_dtype.itemsize

    @property
    def nbytes(self) -> int:
        """Bytes of weight and bias as nn.Linear holds them; torch's padding of the weight is not counted."""
        return self.hidden_nbytes + (0 if self.bias is None else self.bias.nbytes)

    def extra_repr(self) -> str:
        rounded = "" if self.weight_dtype == self.dtype else f", rounded to {self.weight_dtype}"
        return (
            f"in_features={self.in_features}, out_features={self.out_features}, "
            f"bias={self.bias is not None}, activation={self.activation}{rounded}"
        )

    def _apply(self, fn: Callable[[Tensor], Tensor], recurse: bool = True) -> Self:
        target = destination(self, self.dtype, fn)
        # What torch rearranged cannot be moved itself.
        moved = fn(self.dense_matrix()) if target != self._held[0].device else None
        super()._apply(fn, recurse)
        if moved is not None:
            self._hold(moved)
        return self

    def _save_to_state_dict(self, destination: dict[str, Any], prefix: str, keep_vars: bool) -> None:
        destination[prefix + "weight"] = self.dense_matrix()
        super()._save_to_state_dict(destination, prefix, keep_vars)

    def _form_in(self, state_dict: dict[str, Any], prefix: str) -> Tensor:
        key, shape = prefix + "weight", (self.out_features, self.in_features)
        weight = state_dict[key]
        if not isinstance(weight, Tensor) or weight.shape != shape:
            got = tuple(weight.shape) if isinstance(weight, Tensor) else type(weight).__name__
            raise ValueError(f"size mismatch for {key}: expected shape {shape}, got {got}")
        return weight

    def _take_form(self, form: Tensor) -> None:
        self._hold(form.to(self._held[0].device))

    def __getstate__(self) -> dict[str, Any]:
        """For pickle and copy: the dense weight, because a rearranged one supports neither."""
        state = self.__dict__.copy()
        state["_held"] = self.constant_matrix()
        return state

    def __setstate__(self, state: dict[str, Any]) -> None:
        weight = state.pop("_held")
        super().__setstate__(state)
        self._hold(weight)


def _same_bits(a: Tensor, b: Tensor) -> bool:
    integer = _INTEGERS[b.dtype.itemsize]
    return a.dtype == b.dtype and a.shape == b.shape and torch.equal(a.view(integer), b.view(integer))
