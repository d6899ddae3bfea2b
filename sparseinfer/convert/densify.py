"""`densify_`: turns a converted model back into a dense one."""

from __future__ import annotations

from torch import nn

from sparseinfer.convert.assembly.assemble import restored
from sparseinfer.convert.assembly.places import replace_
from sparseinfer.convert.assembly.surroundings import return_to_nested_tensors, unfinish_
from sparseinfer.convert.record import detach_record
from sparseinfer.convert.report import detach


def densify_(model: nn.Module) -> nn.Module:
    """Replace every layer that `convert` inserted by a dense one, in place; returns the model.

    The weights are the converted ones, bit for bit, except that negative zeros become positive; weights
    that `convert` rounded (`weights=torch.bfloat16`) stay rounded. Fused activations, folded batch norms
    are separate modules again. ValueError if the model itself is a converted layer; TypeError: not a module.
    """
    if not isinstance(model, nn.Module):
        raise TypeError(f"model: expected a torch.nn.Module, got {type(model).__name__}")
    if restored(model) is not None:
        raise ValueError(f"model: expected a module that holds layers, got {type(model).__name__} itself")
    replacements: dict[nn.Module, nn.Module] = {}
    _collect(model, replacements)
    replace_(model, replacements)
    unfinish_(model)
    return_to_nested_tensors(model)
    detach(model)
    detach_record(model)
    return model


def _collect(model: nn.Module, replacements: dict[nn.Module, nn.Module]) -> None:
    """Outermost first: what a converted module holds goes with it."""
    for child in model.children():
        if child in replacements:
            continue
        dense = restored(child)
        if dense is None:
            _collect(child, replacements)
        else:
            replacements[child] = dense
