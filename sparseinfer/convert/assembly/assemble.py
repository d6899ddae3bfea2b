"""Assembles the replacement of a layer from modules that multiply by its matrices; restores the layer."""

from __future__ import annotations

import copy
from collections.abc import Callable, Mapping
from typing import Any

from torch import nn

from sparseinfer._transposed import is_transposed_linear
from sparseinfer.convert.survey.weights import class_of
from sparseinfer.modules import (
    ChannelsLastMaxPool2d,
    FoldedLayer,
    SharedInputLinear,
    SparseConv1d,
    SparseConv2d,
    SparseGRU,
    SparseLinear,
    SparseLSTM,
    SparseMultiheadAttention,
    SparseRNN,
)
from sparseinfer.modules.parts import dense_bias, dense_linear, dense_weight
from sparseinfer.modules.rearranged import RearrangedLinear
from sparseinfer.modules.recurrent import matrix_names, suffixes
from sparseinfer.modules.stand_in import ORIGIN

# By the names of `survey.kinds`; each multiplies by one matrix of the layer.
Multipliers = Mapping[str, nn.Module]


def assemble(layer: nn.Module, multipliers: Multipliers) -> nn.Module:
    """The replacement of a dense layer; each multiplier is sparse, prepacked or an nn.Linear."""
    if is_transposed_linear(layer):
        # By which `restored` knows whose place it took.
        setattr(multipliers[""], ORIGIN, type(layer))
    return _ASSEMBLE.get(class_of(layer), _the_only_one)(layer, multipliers)


def is_replacement(module: nn.Module) -> bool:
    """Whether it took the place of a layer, which `restored` makes again."""
    return isinstance(module, _REPLACEMENTS)


def restored(module: nn.Module) -> nn.Module | None:
    """The dense layer that this module replaced; None if it is no replacement."""
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
    if isinstance(module, (SparseLinear, RearrangedLinear, SharedInputLinear)):
        weight = dense_weight(module).to(module.dtype)
        linear = dense_linear(weight, dense_bias(module)).train(module.training)
        origin = getattr(module, ORIGIN, None)
        return linear if origin is None else _transposed(linear, origin)
    return None


def _transposed(linear: nn.Linear, origin: type[nn.Module]) -> nn.Module:
    layer: Any = origin(1, 1)
    layer.nf, layer.nx = linear.out_features, linear.in_features
    layer.weight = nn.Parameter(linear.weight.detach().t().contiguous())
    bias = linear.bias
    layer.bias = nn.Parameter(linear.weight.new_zeros(linear.out_features) if bias is None else bias.detach())
    transposed: nn.Module = layer.train(linear.training)
    return transposed


def _the_only_one(layer: nn.Module, multipliers: Multipliers) -> nn.Module:
    return multipliers[""]


def _attention(layer: Any, multipliers: Multipliers) -> nn.Module:
    return SparseMultiheadAttention.from_attention(layer, multipliers["in_proj"], multipliers["out_proj"])


def _recurrent(layer: Any, multipliers: Multipliers) -> nn.Module:
    cells = [
        [multipliers[f"{name}_{suffix}"] for name in matrix_names(layer)]
        for suffix in suffixes(layer.num_layers, layer.bidirectional)
    ]
    return _RECURRENT[class_of(layer)].from_rnn(layer, cells)


_REPLACEMENTS = (
    *(FoldedLayer, ChannelsLastMaxPool2d, SparseMultiheadAttention, SparseLSTM, SparseGRU, SparseRNN),
    *(SparseConv1d, SparseConv2d, SparseLinear, RearrangedLinear, SharedInputLinear),
)
_RECURRENT: dict[type[nn.Module], Any] = {nn.LSTM: SparseLSTM, nn.GRU: SparseGRU, nn.RNN: SparseRNN}
# Layers of several matrices; one of a single matrix is replaced by what multiplies by it.
_ASSEMBLE: dict[type[nn.Module], Callable[[nn.Module, Multipliers], nn.Module]] = {
    nn.MultiheadAttention: _attention,
    **dict.fromkeys(_RECURRENT, _recurrent),
}
