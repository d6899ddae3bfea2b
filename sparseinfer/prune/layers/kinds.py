"""The parameters of each kind of module that can be pruned, and how each is viewed as matrices."""

from __future__ import annotations

import copy
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor, nn
from torch.nn.parameter import is_lazy

from sparseinfer._transposed import is_transposed_linear

# What a module is called with -> what its weight is multiplied by, as `Layer.unfold` takes it.
Read = Callable[[tuple[Any, ...], Mapping[str, Any]], Tensor]

# Searched for in every model, so that messages name them.
_ALWAYS = (nn.Linear, nn.Conv1d, nn.Conv2d)
# Searched for where a model holds one, by the base class.
_OTHERS = (nn.MultiheadAttention, nn.RNNBase, nn.RNNCellBase)


@dataclass(frozen=True)
class Kind:
    """How a parameter is viewed as [groups, n, k].

    groups      number of consecutive matrices in it, each with its own inputs
    transposed  whether each is held as [k, n]
    read        gets its input from a call's arguments; None if no call of the module has it
    """

    groups: int = 1
    transposed: bool = False
    read: Read | None = None


def kinds_of(module: nn.Module) -> dict[str, Kind]:
    """The Kinds by parameter name, in the module's order; {} for a module without prunable weights.

    The projections of nn.MultiheadAttention into queries, keys and values are three matrices of one
    parameter, because in general each reads another tensor; the gates of a recurrent layer, which read the
    same, are one. Experts of transformers are a matrix each, [experts, n, k]; of some models [experts, k, n].
    """
    if is_transposed_linear(module):
        return {"weight": Kind(transposed=True, read=_first)}
    if isinstance(module, (nn.Conv1d, nn.Conv2d)):
        return {"weight": Kind(groups=module.groups, read=_first)}
    if isinstance(module, nn.Linear):
        return {"weight": Kind(read=_first)}
    if isinstance(module, nn.MultiheadAttention):
        return _attention_kinds(module)
    if isinstance(module, nn.RNNBase):
        names = [name for name in module._flat_weights_names if name.startswith("weight_")]
        # What the second layer and the recurrent products are given stays inside of torch.
        first = ("weight_ih_l0", "weight_ih_l0_reverse")
        return {name: Kind(read=_first if name in first else None) for name in names}
    if isinstance(module, nn.RNNCellBase):
        return {"weight_ih": Kind(read=_first), "weight_hh": Kind(read=_state_of(module.hidden_size))}
    return _expert_kinds(module)


def prunable_types(model: nn.Module) -> tuple[type[nn.Module], ...]:
    """The classes to look for in a model: linear layers, convolutions, and others that it contains."""
    types: list[type[nn.Module]] = [*_ALWAYS]
    for module in model.modules():
        if kinds_of(module) and not isinstance(module, tuple(types)):
            types.append(next((base for base in _OTHERS if isinstance(module, base)), type(module)))
    return tuple(types)


def attention_outputs(model: nn.Module) -> dict[nn.Module, nn.MultiheadAttention]:
    """Output projections that are never called, because torch's attention reads their weights, and whose."""
    return {
        module.out_proj: module
        for module in model.modules()
        if isinstance(module, nn.MultiheadAttention) and _has_torchs_forward(module)
    }


def output_inputs(
    attention: nn.MultiheadAttention, args: tuple[Any, ...], kwargs: Mapping[str, Any]
) -> Tensor:
    """The inputs of the output projection in a call of its attention.

    They are the result of the same call with the identity instead of the projection.
    """
    weight, bias = attention.out_proj.weight, attention.out_proj.bias
    bare: Any = copy.copy(attention)
    bare._modules = {"out_proj": nn.Module()}
    bare.out_proj.weight = torch.eye(len(weight), dtype=weight.dtype, device=weight.device)
    bare.out_proj.bias = None if bias is None else torch.zeros_like(bias)
    return _flat(nn.MultiheadAttention.forward(bare, *args, **kwargs)[0])


def _first(args: tuple[Any, ...], kwargs: Mapping[str, Any]) -> Tensor:
    x: Any = (args or tuple(kwargs.values()))[0]
    if isinstance(x, nn.utils.rnn.PackedSequence):
        return x.data
    return _flat(x) if x.is_nested else x


def _state_of(size: int) -> Read:
    """The hidden state that a recurrent cell is given; zeros where it is given none."""

    def read(args: tuple[Any, ...], kwargs: Mapping[str, Any]) -> Tensor:
        state = args[1] if len(args) > 1 else kwargs.get("hx")
        if state is None:
            x = _first(args, kwargs)
            return x.new_zeros(*x.shape[:-1], size)
        hidden: Tensor = state[0] if isinstance(state, tuple) else state
        return hidden

    return read


def _flat(x: Tensor) -> Tensor:
    """[..., k] as [rows, k]; nested tensors too, which nn.TransformerEncoder makes where there is padding."""
    if x.is_nested:
        return torch.cat([rows.flatten(0, -2) for rows in x.unbind()])
    return x.reshape(-1, x.shape[-1])


def _has_torchs_forward(module: nn.MultiheadAttention) -> bool:
    return type(module).forward is nn.MultiheadAttention.forward


def _attention_kinds(module: nn.MultiheadAttention) -> dict[str, Kind]:
    names = ("query", "key", "value")

    def given(args: tuple[Any, ...], kwargs: Mapping[str, Any]) -> list[Tensor]:
        by_name = dict(zip(names, args, strict=False)) | dict(kwargs)
        return [by_name[name] for name in names]

    def stacked(args: tuple[Any, ...], kwargs: Mapping[str, Any]) -> Tensor:
        query, key, value = given(args, kwargs)
        if query is key and key is value:
            return _flat(query).expand(3, -1, -1)
        rows = [_flat(x) for x in (query, key, value)]
        longest = max(map(len, rows))
        # Rows of zeros change no sum.
        return torch.stack([F.pad(x, (0, 0, 0, longest - len(x))) for x in rows])

    def only(i: int) -> Read:
        return lambda args, kwargs: _flat(given(args, kwargs)[i])

    # What a subclass does with its arguments is not known.
    readable = _has_torchs_forward(module)
    kinds = {f"{name}_proj_weight": Kind(read=only(i) if readable else None) for i, name in enumerate("qkv")}
    if module._qkv_same_embed_dim:
        kinds = {"in_proj_weight": Kind(groups=3, read=stacked if readable else None)}
    # Classes of torch.ao that are based on it keep them elsewhere.
    return {name: kind for name, kind in kinds.items() if getattr(module, name, None) is not None}


def _expert_kinds(module: nn.Module) -> dict[str, Kind]:
    """Experts are known by the name that transformers gives their class: it need not be installed."""
    if not type(module).__name__.endswith("Experts"):
        return {}
    weights = {
        _pruned_name(module, name): weight
        for name, weight in module._parameters.items()
        if weight is not None and not is_lazy(weight) and weight.dim() == 3
    }
    transposed = getattr(module, "is_transposed", None)
    if transposed is None:
        transposed = _looks_transposed(weights)
    return {name: Kind(groups=len(weight), transposed=transposed) for name, weight in weights.items()}


def _pruned_name(module: nn.Module, name: str) -> str:
    """Under torch.nn.utils.prune "weight_orig" is the parameter: the name that it had before, "weight"."""
    before = name.removesuffix("_orig")
    return before if f"{before}_mask" in module._buffers else name


def _looks_transposed(weights: Mapping[str, Tensor]) -> bool:
    """Whether experts that do not say it, such as Llama 4's, hold [k, n]: by the sizes of up and down."""
    up, down = weights.get("gate_up_proj"), weights.get("down_proj")
    return up is not None and down is not None and up.shape[1:] == (down.shape[2], 2 * down.shape[1])
