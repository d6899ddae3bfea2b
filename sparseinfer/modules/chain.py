"""Calls a layer together with the batch norm or activation applied directly to its result."""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor, nn

from sparseinfer import ops
from sparseinfer.modules._tracing import is_observed
from sparseinfer.modules.activations import activation_name
from sparseinfer.modules.conv import SparseConv1d, SparseConv2d
from sparseinfer.modules.int8 import Int8Linear
from sparseinfer.modules.linear import SparseLinear
from sparseinfer.modules.packed import PackedLayer
from sparseinfer.modules.prepacked import PrepackedLinear
from sparseinfer.modules.products import products_of
from sparseinfer.modules.semi_structured import SemiStructuredLinear
from sparseinfer.modules.sparse_or_dense import SparseOrDenseLinear
from sparseinfer.modules.unwatched import is_unwatched

# The tensors that a batch norm computes with; it has eps besides.
_AFFINE = ("running_mean", "running_var", "weight", "bias")

# Layers whose kernels can apply an activation to their results.
_ACTIVATING = frozenset(
    {
        *(SparseLinear, SparseOrDenseLinear, SparseConv1d, SparseConv2d),
        *(PrepackedLinear, SemiStructuredLinear, Int8Linear),
    }
)


def chain(steps: tuple[Any, ...], *args: Any, **kwargs: Any) -> Any:
    """steps[-1](... steps[0](*args, **kwargs)), in fewer passes over memory where the result is the same.

    steps   callables, mostly modules: a layer, then a batch norm or an activation or both

    Every call checks the type and hooks of each step, so this can replace the nested calls anywhere.
    """
    layer = steps[0]
    later = [i for i in range(2, len(steps)) if type(steps[i]) is SparseLinear] if len(steps) > 2 else None
    if later:
        return _products(steps, later, args, kwargs)
    # Its only argument, by name or not; hooks are given it as it came.
    x: Any = None
    if len(args) + len(kwargs) == 1:
        x = args[0] if args else kwargs.get("input")
    joinable = len(steps) > 1 and type(x) in _TENSORS
    # torch.compile joins the steps by itself.
    if joinable and type(layer) in CHAINING and is_unwatched(layer) and not torch.compiler.is_compiling():
        if type(layer) is FoldedLayer and layer.holds(steps[1], x):
            return _activated(layer._modules["folded"], x, steps, 2)
        return _activated(layer, x, steps, 1)
    return _rest(layer(*args, **kwargs), steps, 1)


def chain_in_order(layer: Any, args: Any, kwargs: Any, followers: tuple[Any, ...]) -> Any:
    """`chain` with its arguments in the order in which consecutive statements evaluate them."""
    return chain((layer, *followers), *args, **kwargs)


def _products(steps: tuple[Any, ...], later: list[int], args: Any, kwargs: Any) -> Any:
    """All steps, the first two products as one block if they may; others begin at `later`."""
    stop = later[1] if len(later) > 1 else len(steps)
    products = products_of(steps[:stop], args[0]) if len(args) == 1 and not kwargs else None
    if products is None:
        stop = later[0]
        y = chain(steps[:stop], *args, **kwargs)
    else:
        y = ops.linear_block(args[0], products)
    return chain(steps[stop:], y) if stop < len(steps) else y


def _activated(layer: Any, x: Tensor, steps: tuple[Any, ...], done: int) -> Any:
    """All steps, of which `layer` does the first `done` and, if it can, an activation that comes next."""
    if len(steps) > done and type(layer) in _ACTIVATING and layer.activation == "none":
        name = activation_name(steps[done]) if _is_plain(steps[done]) else "none"
        if name != "none":
            return _rest(layer.activated(x, name), steps, done + 1)
    return _rest(layer(x), steps, done)


def _rest(y: Any, steps: tuple[Any, ...], done: int) -> Any:
    for step in steps[done:]:
        y = step(y)
    return y


def _is_plain(step: object) -> bool:
    """Whether a call of it computes what its class says and nothing else, such as hooks."""
    return not isinstance(step, nn.Module) or is_unwatched(step)


class FoldedLayer(nn.Module):
    """A layer and a copy of it with the following batch norm folded in, for `chain`.

    plain        the layer by itself; calling this module calls it
    folded       batch_norm(plain(x)) as one layer, valid if `holds(..., x)`

    The batch norm stays in the model for other callers; this module only refers to it. Other attributes are
    those of `plain`.
    """

    plain: nn.Module
    folded: nn.Module

    def __init__(self, plain: nn.Module, folded: nn.Module, batch_norm: nn.Module) -> None:
        super().__init__()
        self.plain, self.folded = plain, folded
        # Not a submodule: it would be saved twice.
        object.__setattr__(self, "batch_norm", batch_norm)
        # What was multiplied in, to be held against what the batch norm is later.
        norm: Any = batch_norm
        self._eps: float = norm.eps
        for name in _AFFINE:
            t = getattr(norm, name)
            self.register_buffer(f"norm_{name}", None if t is None else t.detach().clone())
        # Dimensions of an input whose result has its channels in dimension 1.
        self._dims = 4 if isinstance(plain, SparseConv2d) else 3 if isinstance(plain, SparseConv1d) else 2
        self._checked: bool | None = True
        self._kept: ops.Kept | None = None

    def forward(self, *args: Any, **kwargs: Any) -> Any:
        return self.plain(*args, **kwargs)

    def holds(self, step: Any, x: Tensor) -> bool:
        """Whether `folded` may replace the layer followed by `step`, for this x."""
        norm = self.__dict__["batch_norm"]
        # A transform of torch wraps the tensors made under it, and what is kept here outlives it.
        if step is not norm or norm.training or is_observed():
            return False
        # The norm's channels are dimension 1: those of a matrix, or of a batch of images or sequences.
        if x.dim() != self._dims or not is_unwatched(norm) or self._checked is False:
            return False
        if self._checked is None:
            self._checked = self._is_product()
        # Values: torch's own batch norm writes to its statistics without counting it.
        buffers, parameters = norm._buffers, norm._parameters
        if self._kept is None:
            self._kept = ops.Kept(self._folded_by())
        same = self._kept.holds(
            buffers.get("running_mean"),
            buffers.get("running_var"),
            parameters.get("weight"),
            parameters.get("bias"),
        )
        return same and self._checked and norm.eps == self._eps

    def _folded_by(self) -> Any:
        """Mean, variance, weight and bias of the batch norm that was multiplied in."""
        return tuple(self._buffers[f"norm_{name}"] for name in _AFFINE)

    def _is_product(self) -> bool:
        """Whether `folded` is made of `plain`, which it may not be after a state was loaded in part."""
        mean, variance, factor, term = self._folded_by()
        scale, shift = affine(mean, variance, factor, term, self._eps)
        plain: Any = self.plain
        folded: Any = self.folded
        dtype = plain.weight.dtype
        weight = (plain.weight.double() * scale.view(-1, *[1] * (plain.weight.dim() - 1))).to(dtype)
        bias = shift if plain.bias is None else plain.bias.double() * scale + shift
        stored = folded.to_format().dtype if isinstance(folded, PackedLayer) else dtype
        same = torch.equal(weight.to(stored).to(dtype), folded.weight.to(dtype))
        return same and torch.equal(bias.to(folded.bias.dtype), folded.bias)

    def __getattr__(self, name: str) -> Any:
        try:
            return super().__getattr__(name)
        except AttributeError:
            plain = self.__dict__.get("_modules", {}).get("plain")
            if plain is None or name.startswith("__"):
                raise
            return getattr(plain, name)

    @property
    def nbytes(self) -> int:
        """Bytes of both layers."""
        return sum(held_bytes(layer) for layer in (self.plain, self.folded))

    def _load_from_state_dict(self, *args: Any) -> None:
        self._checked = self._kept = None
        super()._load_from_state_dict(*args)

    def _apply(self, *args: Any, **kwargs: Any) -> Any:
        self._kept = None
        return super()._apply(*args, **kwargs)

    def __getstate__(self) -> dict[str, Any]:
        return {**self.__dict__, "_kept": None}


def held_bytes(module: nn.Module) -> int:
    """Bytes of the weights of a module, sparse or dense."""
    nbytes = getattr(module, "nbytes", None)
    return nbytes if isinstance(nbytes, int) else sum(parameter.nbytes for parameter in module.parameters())


def affine(
    running_mean: Tensor, running_var: Tensor, weight: Tensor | None, bias: Tensor | None, eps: float
) -> tuple[Tensor, Tensor]:
    """scale and shift [n] in float64: in eval mode a batch norm is scale · y + shift for each channel."""
    scale = (running_var.detach().double() + eps).rsqrt()
    if weight is not None:
        scale = scale * weight.detach().double()
    shift = -running_mean.detach().double() * scale
    return scale, shift if bias is None else shift + bias.detach().double()


def affine_of(norm: Any) -> tuple[Tensor, Tensor]:
    """`affine` of a batch norm in its present state."""
    return affine(**{name: getattr(norm, name) for name in _AFFINE}, eps=norm.eps)


# The layers with which a chain may begin.
CHAINING = frozenset({*_ACTIVATING, FoldedLayer})
# The types of x for which an activation is torch's: a subclass may override it.
_TENSORS = (Tensor, nn.Parameter)
