"""The kinds of modules that convert takes: what matrices they hold, and what takes their place."""

from __future__ import annotations

import copy
import math
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from typing import Any

import torch
from torch import nn

from sparseinfer._select import is_transposed_linear
from sparseinfer.convert.weights import Weights, class_of, read
from sparseinfer.modules import (
    ChannelsLastMaxPool2d,
    FoldedLayer,
    PrepackedLinear,
    SharedInputLinear,
    SparseConv1d,
    SparseConv2d,
    SparseGRU,
    SparseLinear,
    SparseLSTM,
    SparseMultiheadAttention,
    SparseRNN,
)
from sparseinfer.modules._parts import dense_bias, dense_linear, dense_weight
from sparseinfer.modules._stand_in import ORIGIN
from sparseinfer.modules.recurrent import suffixes

Shape = tuple[int, ...]


@dataclass(frozen=True, eq=False)
class Part:
    """One matrix of a module. `tokens(shape)`: how many rows an input of that shape brings to it."""

    weights: Weights
    tokens: Callable[[Shape], int]


@dataclass(frozen=True)
class Kind:
    """How modules of a class come apart and together.

    parts         the module's matrices by name, or why it has to stay dense
    assemble      the module that takes its place, from modules that multiply by those matrices, each a
                  SparseLinear, a PrepackedLinear or an nn.Linear
    fuses         its only part may do an activation that follows
    shares_input  its only part may be one matrix with others of the same input
    """

    parts: Callable[[nn.Module], Mapping[str, Part] | str]
    assemble: Callable[[nn.Module, Mapping[str, nn.Module]], nn.Module]
    fuses: bool = False
    shares_input: bool = False


def kind_of(module: nn.Module) -> Kind | None:
    """None for a class that convert does not know. Subclasses, which may compute something else, are none."""
    if is_transposed_linear(module):
        return _TRANSPOSED_LINEAR
    return _KINDS.get(class_of(module))


def restored(module: nn.Module) -> nn.Module | None:
    """The dense module whose place this one took; None if it took none."""
    if isinstance(module, FoldedLayer):
        return restored(module.plain) or copy.deepcopy(module.plain)
    if isinstance(module, ChannelsLastMaxPool2d):
        return module.to_pool()
    if isinstance(module, SparseMultiheadAttention):
        return module.to_attention()
    if isinstance(module, (SparseLSTM, SparseGRU, SparseRNN)):
        return module.to_rnn()
    if isinstance(module, (SparseConv1d, SparseConv2d)):
        return module.to_conv(activation=False)
    if isinstance(module, (SparseLinear, PrepackedLinear, SharedInputLinear)):
        weight = dense_weight(module).to(module.dtype)
        linear = dense_linear(weight, dense_bias(module)).train(module.training)
        origin = getattr(module, ORIGIN, None)
        return linear if origin is None else _transposed(linear, origin)
    return None


def _rows(shape: Shape) -> int:
    return math.prod(shape[:-1])


def _only(weights: Weights | str, tokens: Callable[[Shape], int]) -> Mapping[str, Part] | str:
    return weights if isinstance(weights, str) else {"": Part(weights, tokens)}


def _all(found: Mapping[str, tuple[Weights | str, Callable[[Shape], int]]]) -> Mapping[str, Part] | str:
    """Parts, or the first reason against one."""
    for weights, _ in found.values():
        if isinstance(weights, str):
            return weights
    return {
        name: Part(weights, tokens)
        for name, (weights, tokens) in found.items()
        if not isinstance(weights, str)
    }


def _the_part(module: nn.Module, parts: Mapping[str, nn.Module]) -> nn.Module:
    return parts[""]


def _linear_parts(module: nn.Module) -> Mapping[str, Part] | str:
    return _only(read(module), _rows)


def _transposed_parts(module: nn.Module) -> Mapping[str, Part] | str:
    return _only(read(module, as_matrix=lambda weight: weight.t().contiguous()), _rows)


def _transposed_assemble(module: nn.Module, parts: Mapping[str, nn.Module]) -> nn.Module:
    setattr(parts[""], ORIGIN, type(module))
    return parts[""]


def _transposed(linear: nn.Linear, origin: type[nn.Module]) -> nn.Module:
    layer: Any = origin(1, 1)
    layer.nf, layer.nx = linear.out_features, linear.in_features
    layer.weight = nn.Parameter(linear.weight.detach().t().contiguous())
    bias = linear.bias
    layer.bias = nn.Parameter(linear.weight.new_zeros(linear.out_features) if bias is None else bias.detach())
    transposed: nn.Module = layer.train(linear.training)
    return transposed


def _conv_parts(module: Any) -> Mapping[str, Part] | str:
    weights = read(module, as_matrix=lambda weight: weight.flatten(1))
    if module.groups > 1 and module.groups == module.in_channels:
        return "it is depthwise: one channel of x for each row of the weight"

    def pixels(shape: Shape) -> int:
        x = torch.empty(shape, device="meta", dtype=module.weight.dtype)
        y = module._conv_forward(x, module.weight.detach().to("meta"), None)
        return y.numel() // module.out_channels

    return _only(weights, pixels)


def _attention_parts(module: Any) -> Mapping[str, Part] | str:
    if module.in_proj_weight is None:
        return "its keys or values have a size of their own"
    # out_proj is called by nobody: its weight and bias are read.
    found = {"in_proj": read(module, "in_proj_weight", "in_proj_bias"), "out_proj": read(module.out_proj)}
    return _all({name: (weights, _rows) for name, weights in found.items()})


def _attention_assemble(module: Any, parts: Mapping[str, nn.Module]) -> nn.Module:
    return SparseMultiheadAttention.from_attention(module, parts["in_proj"], parts["out_proj"])


def _recurrent_parts(module: Any) -> Mapping[str, Part] | str:
    def batch(shape: Shape) -> int:
        return 1 if len(shape) == 2 else shape[0 if module.batch_first else 1]

    found = {}
    for suffix in suffixes(module.num_layers, module.bidirectional):
        for name in ("ih", "hh", *(["hr"] if module.proj_size else [])):
            weights = read(module, f"weight_{name}_{suffix}", f"bias_{name}_{suffix}")
            found[f"{name}_{suffix}"] = weights, _rows if name == "ih" else batch
    return _all(found)


def _recurrent_assemble(module: Any, parts: Mapping[str, nn.Module]) -> nn.Module:
    names = ("ih", "hh", *(["hr"] if module.proj_size else []))
    cells = [
        [parts[f"{name}_{suffix}"] for name in names]
        for suffix in suffixes(module.num_layers, module.bidirectional)
    ]
    return _RECURRENT[class_of(module)].from_rnn(module, cells)


_TRANSPOSED_LINEAR = Kind(_transposed_parts, _transposed_assemble, fuses=True)
_RECURRENT = {nn.LSTM: SparseLSTM, nn.GRU: SparseGRU, nn.RNN: SparseRNN}
_KINDS: dict[type[nn.Module], Kind] = {
    nn.Linear: Kind(_linear_parts, _the_part, fuses=True, shares_input=True),
    nn.Conv1d: Kind(_conv_parts, _the_part, fuses=True),
    nn.Conv2d: Kind(_conv_parts, _the_part, fuses=True),
    nn.MultiheadAttention: Kind(_attention_parts, _attention_assemble),
    **dict.fromkeys(_RECURRENT, Kind(_recurrent_parts, _recurrent_assemble)),
}


def types_in(model: nn.Module) -> tuple[type[nn.Module], ...]:
    """The classes that convert looks for in a model."""
    return (
        *_KINDS,
        nn.MaxPool2d,
        *{type(module) for module in model.modules() if is_transposed_linear(module)},
    )
