"""PrepackedLinear: nn.Linear with the weight held only as oneDNN wants to read it, for inference."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import torch
from torch import Tensor, nn
from torch.autograd import forward_ad
from torch.nn import functional as F

from sparseinfer.formats.checks import WrongDtype
from sparseinfer.modules._parts import (
    constant,
    dense_linear,
    destination,
    refuse_gradients,
    unseen,
)
from sparseinfer.modules._read_only import ReadOnlyTensor
from sparseinfer.modules._stand_in import LinearNames
from sparseinfer.ops.dense import prepack_available, semi_structured_available

# Of `torch.ops.mkldnn._linear_pointwise`: attr and algorithm.
_FUSED = {
    "none": ("none", ""),
    "relu": ("relu", ""),
    "gelu": ("gelu", "none"),
    "gelu_tanh": ("gelu", "tanh"),
    "silu": ("swish", ""),
}
_PLAIN: dict[str, Callable[[Tensor], Tensor]] = {
    "none": lambda y: y,
    "relu": F.relu,
    "gelu": F.gelu,
    "gelu_tanh": lambda y: F.gelu(y, approximate="tanh"),
    "silu": F.silu,
}
_tracing, _transforms = torch._C._is_tracing, torch._C._functorch.peek_interpreter_stack
_INTEGERS = {1: torch.uint8, 2: torch.int16, 4: torch.int32, 8: torch.int64}


class PrepackedLinear(LinearNames):
    """y = activation(x · Wᵀ + bias) with a dense W [n, k]; x [..., k] -> y [..., n], of the dtype of W.

    The weight is reordered once, when the layer is made, and held only like that. `weight` and `state_dict()`
    give it back exact to the bit, under the keys of nn.Linear, so that checkpoints go both ways. Where torch
    cannot reorder a weight, or not back again exactly, it is held as it was (`prepacked` says which).

    Never trainable. On a GPU the weight is held in torch's 2:4 form where its zeros lie like that, else as it
    was. Under torch.compile, torch.export and torch.jit.trace the layer is F.linear by a constant that is a
    copy of the weight, because a reordered weight cannot be in a graph.
    """

    bias: Tensor | None

    def __init__(
        self,
        weight: Tensor,
        bias: Tensor | None = None,
        *,
        tokens: int | None = None,
        activation: str = "none",
    ) -> None:
        """Reorder weight [n, k] and copy bias [n].

        tokens       the number of rows of x to lay the weight out for; any other works too
        activation   applied to y: "none", "relu", "gelu", "gelu_tanh" or "silu"

        TypeError: a weight that is not floating point, a bias of another dtype. ValueError: a weight that is
        not [n, k] on the CPU, a bias of another shape, an unknown activation, tokens that are not positive.
        """
        super().__init__()
        if not isinstance(weight, Tensor) or not weight.is_floating_point():
            got = str(weight.dtype) if isinstance(weight, Tensor) else type(weight).__name__
            raise TypeError(f"weight: expected a floating-point tensor, got {got}")
        if weight.dim() != 2 or weight.device.type not in ("cpu", "cuda"):
            got = f"{tuple(weight.shape)} on {weight.device}"
            raise ValueError(f"weight: expected [n, k] on cpu or cuda, got {got}")
        if bias is not None and bias.dtype != weight.dtype:
            raise TypeError(f"bias: expected dtype {weight.dtype}, got {bias.dtype}")
        if bias is not None and (bias.shape != weight.shape[:1] or bias.device != weight.device):
            got = f"{tuple(bias.shape)} on {bias.device}"
            raise ValueError(f"bias: expected shape ({weight.shape[0]},) on {weight.device}, got {got}")
        if activation not in _FUSED:
            raise ValueError(f"activation: expected one of {', '.join(_FUSED)}, got {activation!r}")
        if tokens is not None and tokens < 1:
            raise ValueError(f"tokens: expected a positive number or None, got {tokens}")
        self.out_features, self.in_features = weight.shape
        self.activation = activation
        self.tokens = tokens
        self.dtype: torch.dtype = weight.dtype
        if bias is not None:
            bias = bias.detach().clone(memory_format=torch.contiguous_format)
        self._register_bias(bias, self.dtype, weight.device)
        self._hold(weight)

    @classmethod
    def from_linear(
        cls, linear: nn.Linear, *, tokens: int | None = None, activation: str = "none"
    ) -> PrepackedLinear:
        """The same layer as `linear`, and then an activation; arguments as in the constructor."""
        layer = cls(linear.weight, linear.bias, tokens=tokens, activation=activation)
        return layer.train(linear.training)

    def _hold(self, weight: Tensor) -> None:
        """Keep a weight [n, k] of this layer's dtype."""
        weight = weight.detach().contiguous()
        held = None
        if semi_structured_available(weight):
            held = torch.sparse.to_sparse_semi_structured(weight)
        elif _multipliable(weight):
            held = torch.ops.mkldnn._reorder_linear_weight(weight, self.tokens)
        if held is not None and not _same_bits(held.to_dense(), weight):
            held = None
        self.prepacked = held is not None
        # In a tuple, where torch.export does not look for constants to put into its graph. A compiled graph
        # is guarded by the count: its copy of the weight is out of date when another one is held.
        self._held = (weight.clone() if held is None else held,)
        self._times_held = getattr(self, "_times_held", 0) + 1

    def forward(self, input: Tensor) -> Tensor:
        return self.activated(input, self.activation)

    def activated(self, x: Tensor, activation: str) -> Tensor:
        """The layer with this activation instead of its own; see `modules.chain`."""
        bias = self._parameters["bias"]
        if torch.is_grad_enabled() and (x.requires_grad or (bias is not None and bias.requires_grad)):
            refuse_gradients(x=x, bias=bias)
        if torch.compiler.is_compiling():
            return _PLAIN[activation](F.linear(x, constant(self, self._times_held), bias))
        if not self.prepacked or self._held[0].is_cuda:
            return _PLAIN[activation](F.linear(x, self._held[0], bias))
        # `is_observed` in line: products with a reordered weight are nothing that torch could look into.
        if _tracing() or _transforms() or forward_ad._current_level >= 0:
            refuse_gradients(x=x, bias=bias)
            return _PLAIN[activation](F.linear(x, self.dense_matrix(), bias))
        autocast = torch._C._is_any_autocast_enabled() and torch.is_autocast_enabled("cpu")
        if autocast and x.is_floating_point() and x.dtype != torch.float64:
            x = x.to(torch.get_autocast_dtype("cpu")).to(self.dtype)
        # Nothing below checks this.
        if x.dtype != self.dtype or not x.is_cpu:
            raise WrongDtype(f"x: expected {self.dtype} on cpu, got {x.dtype} on {x.device}")
        if x.shape[-1:] != (self.in_features,):
            raise ValueError(f"x: expected shape [..., {self.in_features}], got {tuple(x.shape)}")
        attr, algorithm = _FUSED[activation]
        y: Tensor = torch.ops.mkldnn._linear_pointwise(x, self._held[0], bias, attr, [], algorithm)
        return y.to(torch.get_autocast_dtype("cpu")) if autocast else y

    def dense_matrix(self) -> Tensor:
        """The dense weight [n, k], made anew."""
        held = self._held[0]
        with unseen():
            return held.to_dense() if self.prepacked else held.clone()

    constant_matrix = dense_matrix

    @property
    def weight(self) -> Tensor:
        """The dense weight [n, k], made anew at every access: for inspection, not for speed; read only."""
        matrix = constant(self, self._times_held) if torch.compiler.is_compiling() else self.dense_matrix()
        return ReadOnlyTensor.of(self._as_weight(matrix))

    @property
    def hidden_nbytes(self) -> int:
        """Bytes of the weight, which is neither a parameter nor a buffer."""
        return self.out_features * self.in_features * self.dtype.itemsize

    @property
    def nbytes(self) -> int:
        """Bytes of weight and bias; oneDNN's padding of the weight is not counted."""
        numel = self.out_features * (self.in_features + (self.bias is not None))
        return numel * self.dtype.itemsize

    def to_linear(self) -> nn.Linear:
        """The dense layer, exact to the bit. ValueError if an activation was fused into this one."""
        if self.activation != "none":
            raise ValueError(f"activation: expected 'none', got {self.activation!r} (nn.Linear has none)")
        bias = None if self.bias is None else self.bias.clone()
        return dense_linear(self.dense_matrix(), bias).train(self.training)

    def extra_repr(self) -> str:
        return (
            f"in_features={self.in_features}, out_features={self.out_features}, "
            f"bias={self.bias is not None}, activation={self.activation}, prepacked={self.prepacked}"
        )

    def _apply(self, fn: Callable[[Tensor], Tensor], recurse: bool = True) -> PrepackedLinear:
        target = destination(self, self.dtype, fn)
        # What oneDNN reordered cannot be moved itself.
        moved = fn(self.dense_matrix()) if target != self._held[0].device else None
        super()._apply(fn, recurse)
        if moved is not None:
            self._hold(moved)
        return self

    def _save_to_state_dict(self, destination: dict[str, Any], prefix: str, keep_vars: bool) -> None:
        destination[prefix + "weight"] = self.dense_matrix()
        super()._save_to_state_dict(destination, prefix, keep_vars)

    def _load_from_state_dict(
        self,
        state_dict: dict[str, Any],
        prefix: str,
        local_metadata: dict[str, Any],
        strict: bool,
        missing_keys: list[str],
        unexpected_keys: list[str],
        error_msgs: list[str],
    ) -> None:
        """Reorders again. A weight or bias that does not fit becomes an error message and changes nothing."""
        key = prefix + "weight"
        weight = state_dict.get(key)
        shape = (self.out_features, self.in_features)
        errors: list[str] = []
        if weight is None:
            missing_keys.append(key)
        elif not isinstance(weight, Tensor) or weight.shape != shape:
            got = tuple(weight.shape) if isinstance(weight, Tensor) else type(weight).__name__
            errors.append(f"size mismatch for {key}: expected shape {shape}, got {got}")
        if not errors:
            # Nothing is assigned: a weight is not the tensor that is given, so a bias shall not be either.
            metadata = {**local_metadata, "assign_to_params_buffers": False}
            unexpected: list[str] = []
            super()._load_from_state_dict(
                state_dict, prefix, metadata, strict, missing_keys, unexpected, errors
            )
            unexpected_keys.extend(name for name in unexpected if name != key)
        if isinstance(weight, Tensor) and not errors:
            self._hold(weight.to(self._held[0].device, self.dtype))
        error_msgs.extend(errors)

    def __getstate__(self) -> dict[str, Any]:
        """For pickle and copy: the dense weight, because a reordered one supports neither."""
        state = self.__dict__.copy()
        state["_held"] = self.dense_matrix()
        return state

    def __setstate__(self, state: dict[str, Any]) -> None:
        weight = state.pop("_held")
        super().__setstate__(state)
        self._hold(weight)


def _multipliable(weight: Tensor) -> bool:
    """Whether oneDNN can reorder this weight and this CPU can multiply by it then."""
    return prepack_available(weight) and (
        weight.dtype != torch.bfloat16 or torch.ops.mkldnn._is_mkldnn_bf16_supported()
    )


def _same_bits(a: Tensor, b: Tensor) -> bool:
    integer = _INTEGERS[b.dtype.itemsize]
    return a.dtype == b.dtype and a.shape == b.shape and torch.equal(a.view(integer), b.view(integer))
