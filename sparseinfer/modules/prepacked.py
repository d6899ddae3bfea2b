"""PrepackedLinear: nn.Linear with its dense weight in oneDNN's own layout, for inference on the CPU."""

from __future__ import annotations

import torch
from torch import Tensor
from torch.autograd import forward_ad

from sparseinfer import ops
from sparseinfer.formats.checks import WrongDtype
from sparseinfer.modules.rearranged import RearrangedLinear
from sparseinfer.ops.dense import multiplies_bf16, prepack_available
from sparseinfer.ops.transforms import refuse_gradients

# Activations that oneDNN does with the product: attr and algorithm of `torch.ops.mkldnn._linear_pointwise`.
# Any other of `ops.ACTIVATIONS` follows it.
_FUSED = {
    "none": ("none", ""),
    "relu": ("relu", ""),
    "gelu": ("gelu", "none"),
    "gelu_tanh": ("gelu", "tanh"),
    "silu": ("swish", ""),
}
_tracing, _transforms = torch._C._is_tracing, torch._C._functorch.peek_interpreter_stack


class PrepackedLinear(RearrangedLinear):
    """y = activation(x · Wᵀ + bias) with a dense W [n, k]; x [..., k] -> y [..., n], of the layer's dtype.

    The weight is reordered once, when the layer is made, and held only in this order. `weight` and
    `state_dict()` return it bit for bit, under the keys of nn.Linear, so that checkpoints are compatible both
    ways. A weight that torch cannot reorder, as on a GPU, or cannot restore exactly, is held unchanged (see
    `prepacked`).

    Never trainable. Under torch.compile, torch.export and torch.jit.trace the layer is F.linear with a
    constant copy of the weight, because a reordered weight cannot be in a graph.
    """

    def __init__(
        self,
        weight: Tensor,
        bias: Tensor | None = None,
        *,
        tokens: int | None = None,
        activation: str = "none",
        dtype: torch.dtype | None = None,
    ) -> None:
        """Reorder weight [n, k] and copy bias [n].

        tokens       the number of rows of x to lay the weight out for; any other works too
        activation   applied to y: a name in `sparseinfer.ops.ACTIVATIONS`, such as "relu"; "none" leaves y
        dtype        of x, y and bias: that of the weight, which is the default, or torch.float32; x and the
                     product with it are then rounded to the weight's dtype

        TypeError: a weight that is not floating point, another dtype of the layer or the bias. ValueError: a
        weight that is not [n, k] on cpu or cuda, a bias of another shape, an unknown activation, tokens that
        are not positive.
        """
        super().__init__(weight, bias, activation=activation, dtype=dtype)
        if tokens is not None and tokens < 1:
            raise ValueError(f"tokens: expected a positive number or None, got {tokens}")
        self.tokens = tokens
        self._hold(weight)

    @property
    def prepacked(self) -> bool:
        """Whether the weight is held reordered."""
        return self._is_rearranged

    def _rearranged(self, weight: Tensor) -> Tensor | None:
        if not _multipliable(weight):
            return None
        reordered: Tensor = torch.ops.mkldnn._reorder_linear_weight(weight, self.tokens)
        return reordered

    def activated(self, x: Tensor, activation: str) -> Tensor:
        """Calls the layer with this activation instead of its own; see `modules.chain`."""
        if torch.compiler.is_compiling() or not self._is_rearranged:
            return super().activated(x, activation)
        bias = self._parameters["bias"]
        if torch.is_grad_enabled() and (x.requires_grad or (bias is not None and bias.requires_grad)):
            refuse_gradients(x=x, bias=bias)
        # `is_observed` in line: products with a reordered weight are nothing that torch could look into.
        if _tracing() or _transforms() or forward_ad._current_level >= 0:
            refuse_gradients(x=x, bias=bias)
            return ops.ACTIVATIONS[activation](self._product(x, self.constant_matrix()))
        autocast = torch._C._is_any_autocast_enabled() and torch.is_autocast_enabled("cpu")
        if autocast and x.is_floating_point() and x.dtype != torch.float64:
            x = x.to(torch.get_autocast_dtype("cpu")).to(self.dtype)
        # Nothing below checks this.
        if x.dtype != self.dtype or not x.is_cpu:
            raise WrongDtype(f"x: expected {self.dtype} on cpu, got {x.dtype} on {x.device}")
        if x.shape[-1:] != (self.in_features,):
            raise ValueError(f"x: expected shape [..., {self.in_features}], got {tuple(x.shape)}")
        attr, algorithm = _FUSED.get(activation, ("none", ""))
        widens = self.weight_dtype != self.dtype
        if widens:
            x = x.to(self.weight_dtype)
        y = torch.ops.mkldnn._linear_pointwise(x, self._held[0], bias, attr, [], algorithm)
        if widens:
            y = y.to(self.dtype)
        if activation not in _FUSED:
            y = ops.ACTIVATIONS[activation](y)
        return y.to(torch.get_autocast_dtype("cpu")) if autocast else y

    def extra_repr(self) -> str:
        return f"{super().extra_repr()}, prepacked={self.prepacked}"


def _multipliable(weight: Tensor) -> bool:
    """Whether oneDNN can reorder this weight and this CPU can multiply by it then."""
    return multiplies_bf16(weight) if weight.dtype == torch.bfloat16 else prepack_available(weight)
