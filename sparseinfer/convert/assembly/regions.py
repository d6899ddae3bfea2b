"""Finds the largest modules of a converted model whose forward runs as a region of native networks."""

from __future__ import annotations

from torch import nn

from sparseinfer.convert.assembly.joining import hold_region_, leave_region_, region_of
from sparseinfer.modules import FoldedLayer, SparseConv2d
from sparseinfer.modules.regions import Refused, is_layer


def capture_all_(model: nn.Module, *, dense: bool = False) -> None:
    """Let every module run as a region that can, the outermost first.

    dense   modules of dense convolutions, in a model that has no sparse one
    """
    if not _captured(model, dense):
        for child in model.children():
            capture_all_(child, dense=dense)


def has_sparse_convolutions(model: nn.Module) -> bool:
    return any(isinstance(layer, SparseConv2d) for layer in model.modules())


def _captured(module: nn.Module, dense: bool) -> bool:
    """Whether the module has a region now."""
    channels = _input_channels(module, dense)
    followed = not is_layer(module) or isinstance(module, nn.Sequential)
    if channels is None or not followed or isinstance(module, FoldedLayer):
        return False
    holder = hold_region_(module, dense=dense)
    if holder is None:
        return False
    try:
        holder.capture(module, channels)
    except Refused:
        leave_region_(module)
        return False
    return True


def _input_channels(module: nn.Module, dense: bool) -> int | None:
    """Of its first sparse or dense convolution; None if it has none of those that it is captured for."""
    if not dense and not has_sparse_convolutions(module):
        return None
    first = next((m for m in module.modules() if isinstance(m, (SparseConv2d, nn.Conv2d))), None)
    return None if first is None else first.in_channels


def layers_in_regions(model: nn.Module) -> dict[str, str]:
    """The region of each layer that is in one, both by the names of modules; "" is the model itself."""
    names = {module: name for name, module in model.named_modules()}
    return {
        names[layer]: name
        for module, name in names.items()
        if (holder := region_of(module)) is not None
        for layer in holder.layers()
        if layer in names
    }
