"""Int8Linear: nn.Linear with a dense weight of int8 in oneDNN's layout, for inference on the CPU."""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor
from torch.nn import functional as F

from sparseinfer import ops
from sparseinfer._int8 import products, rounded, row_peaks, row_scales
from sparseinfer.formats.checks import INT32_MAX, WrongDtype
from sparseinfer.modules._tracing import constant, is_observed
from sparseinfer.modules.rearranged import RearrangedLinear
from sparseinfer.ops.dense import linear_int8, multiplies_int8, prepack_int8, quantized
from sparseinfer.ops.transforms import refuse_gradients


class Int8Linear(RearrangedLinear):
    """y = activation(x · Wᵀ + bias) with W [n, k] of int8, a scale for each row; x [..., k] -> y [..., n].

    x, y and bias are float32; each token of x is rounded to 8 bits, as by the kernels of storage "i8", from
    which results differ by the rounding of sums to float32. `weight` and `state_dict()` are the products of
    integers and scales, under the keys of nn.Linear; a weight that is loaded is rounded by the largest
    magnitude of each row, which gives the same integers back.

    Never trainable. Under torch.compile, torch.export and jit.trace, where the CPU has no instructions for
    it, and where 32 bits might not hold a sum, the same is computed in float32: x is rounded to 8 bits and
    multiplied by a copy of the weight.
    """

    def __init__(
        self,
        weight: Tensor,
        bias: Tensor | None = None,
        *,
        tokens: int | None = None,
        activation: str = "none",
    ) -> None:
        """Round and reorder a float32 weight [n, k], and copy bias [n].

        tokens       the number of rows of x to lay the weight out for; any other works too
        activation   applied to y: a name in `sparseinfer.ops.ACTIVATIONS`, such as "relu"; "none" leaves y

        TypeError, ValueError: another dtype or shape of the weight or bias, an unknown activation, a weight
        with values that int8 cannot hold.
        """
        super().__init__(weight, bias, activation=activation)
        if weight.dtype != torch.float32:
            raise TypeError(f"weight: expected torch.float32, got {weight.dtype}")
        self.tokens = tokens
        self._hold(weight)

    def _hold(self, weight: Tensor) -> None:
        weight = _finite(weight.detach().to(torch.float32), "weight")
        self._scales = row_scales(row_peaks(weight), weight.dtype)
        integers = rounded(weight, self._scales)
        self._sums = integers.sum(1, dtype=torch.int64).to(torch.float32)
        fits = int(integers.abs().sum(1, dtype=torch.int64).max()) * 255 <= INT32_MAX
        self._is_rearranged = multiplies_int8(weight) and fits
        self._held = (prepack_int8(integers, self.tokens) if self._is_rearranged else integers,)
        self._times_held += 1

    def activated(self, x: Tensor, activation: str) -> Tensor:
        """Calls the layer with this activation instead of its own; see `modules.chain`."""
        bias = self._parameters["bias"]
        refuse_gradients(x=x, bias=bias)
        autocast = torch.is_autocast_enabled("cpu") and x.is_floating_point() and x.dtype != torch.float64
        if autocast:
            x = x.to(torch.get_autocast_dtype("cpu")).to(torch.float32)
        if x.dtype != torch.float32 or x.device != self._scales.device:
            expected = f"{torch.float32} on {self._scales.device}"
            raise WrongDtype(f"x: expected {expected}, got {x.dtype} on {x.device}")
        if x.shape[-1:] != (self.in_features,):
            raise ValueError(f"x: expected shape [..., {self.in_features}], got {tuple(x.shape)}")
        if torch.compiler.is_compiling():
            y = self._product(x, constant(self, self._times_held))
        elif is_observed() or not self._is_rearranged:
            y = self._product(x, self.constant_matrix())
        else:
            y = linear_int8(x, self._held[0], self._scales, self._sums)
            y = y if bias is None else y.add_(bias)
        y = ops.ACTIVATIONS[activation](y)
        return y.to(torch.get_autocast_dtype("cpu")) if autocast else y

    def _product(self, x: Tensor, weight: Tensor) -> Tensor:
        integers, zero, scale = quantized(x)
        return F.linear((integers - zero) * scale, weight, self._parameters["bias"])

    def _form_in(self, state_dict: dict[str, Any], prefix: str) -> Tensor:
        return _finite(super()._form_in(state_dict, prefix), f"{prefix}weight")

    def constant_matrix(self) -> Tensor:
        (held,) = self._held
        integers = held.to_dense().t() if self._is_rearranged else held
        return products(integers.contiguous(), self._scales, torch.float32)

    @property
    def hidden_nbytes(self) -> int:
        return self.out_features * (self.in_features + self._scales.itemsize)

    def extra_repr(self) -> str:
        return f"{super().extra_repr()}, int8"


def _finite(weight: Tensor, name: str) -> Tensor:
    if not bool(weight.isfinite().all()):
        raise ValueError(f"{name}: expected finite values, which int8 can hold, got others")
    return weight
