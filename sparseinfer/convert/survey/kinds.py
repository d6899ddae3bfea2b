"""The kinds of modules that convert supports: their matrices, and how many tokens each matrix gets."""

from __future__ import annotations

import math
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from typing import Any

import torch
from torch import nn

from sparseinfer._transposed import is_transposed_linear
from sparseinfer.convert.survey.weights import Weights, class_of, read
from sparseinfer.modules.recurrent import matrix_names, suffixes

Shape = tuple[int, ...]
TokensOf = Callable[[Shape], int]

# Matrices by name; "" where a module has only one.
Matrices = Mapping[str, "Matrix"]


@dataclass(frozen=True, eq=False)
class Matrix:
    """One matrix of a module. `tokens(shape)`: number of rows it multiplies for an input of that shape."""

    weights: Weights
    tokens: TokensOf


@dataclass(frozen=True)
class Kind:
    """How convert handles a class of modules; `assembly/assemble.py` builds and restores them.

    matrices      the module's matrices, or why it has to stay dense
    fuses         an activation that follows may be fused into its only matrix
    shares_input  its only matrix may be stacked with others that get the same input
    """

    matrices: Callable[[nn.Module], Matrices | str]
    fuses: bool = False
    shares_input: bool = False


def kind_of(module: nn.Module) -> Kind | None:
    """The Kind of a module; None for unknown classes and for subclasses, which may compute something else."""
    if is_transposed_linear(module):
        return _TRANSPOSED_LINEAR
    return _KINDS.get(class_of(module))


def types_in(model: nn.Module) -> tuple[type[nn.Module], ...]:
    """The classes that convert looks for in a model."""
    return (
        *_KINDS,
        nn.MaxPool2d,
        *{type(module) for module in model.modules() if is_transposed_linear(module)},
    )


def _rows(shape: Shape) -> int:
    return math.prod(shape[:-1])


def _one(weights: Weights | str, tokens: TokensOf) -> Matrices | str:
    return _all({"": (weights, tokens)})


def _all(matrices: Mapping[str, tuple[Weights | str, TokensOf]]) -> Matrices | str:
    """The matrices, or the first reason against one."""
    read_weights = {}
    for name, (weights, tokens) in matrices.items():
        if isinstance(weights, str):
            return weights
        read_weights[name] = Matrix(weights, tokens)
    return read_weights


def _of_linear(module: nn.Module) -> Matrices | str:
    return _one(read(module), _rows)


def _of_transposed_linear(module: nn.Module) -> Matrices | str:
    return _one(read(module, as_matrix=lambda weight: weight.t().contiguous()), _rows)


def _of_convolution(module: Any) -> Matrices | str:
    weights = read(module, as_matrix=lambda weight: weight.flatten(1))
    if module.groups > 1 and module.groups == module.in_channels:
        return "it is depthwise: one channel of x for each row of the weight"

    def pixels(shape: Shape) -> int:
        x = torch.empty(shape, device="meta", dtype=module.weight.dtype)
        y = module._conv_forward(x, module.weight.detach().to("meta"), None)
        return y.numel() // module.out_channels

    return _one(weights, pixels)


def _of_attention(module: Any) -> Matrices | str:
    if module.in_proj_weight is None:
        return "its keys or values have a size of their own"
    # out_proj is called by nobody: its weight and bias are read.
    in_proj, out_proj = read(module, "in_proj_weight", "in_proj_bias"), read(module.out_proj)
    return _all({"in_proj": (in_proj, _rows), "out_proj": (out_proj, _rows)})


def _of_recurrent(module: Any) -> Matrices | str:
    def batch(shape: Shape) -> int:
        return 1 if len(shape) == 2 else shape[0 if module.batch_first else 1]

    matrices = {}
    for suffix in suffixes(module.num_layers, module.bidirectional):
        for name in matrix_names(module):
            weights = read(module, f"weight_{name}_{suffix}", f"bias_{name}_{suffix}")
            matrices[f"{name}_{suffix}"] = weights, _rows if name == "ih" else batch
    return _all(matrices)


_TRANSPOSED_LINEAR = Kind(_of_transposed_linear, fuses=True)
_KINDS: dict[type[nn.Module], Kind] = {
    nn.Linear: Kind(_of_linear, fuses=True, shares_input=True),
    nn.Conv1d: Kind(_of_convolution, fuses=True),
    nn.Conv2d: Kind(_of_convolution, fuses=True),
    nn.MultiheadAttention: Kind(_of_attention),
    **dict.fromkeys((nn.LSTM, nn.GRU, nn.RNN), Kind(_of_recurrent)),
}
