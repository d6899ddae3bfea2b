"""Finds the largest modules of a converted model whose forward runs as a region of native networks."""

from __future__ import annotations

from dataclasses import dataclass

from torch import nn

from sparseinfer.convert.assembly.joining import hold_region_, leave_region_, region_of
from sparseinfer.modules import FoldedLayer, SparseConv2d
from sparseinfer.modules.regions import Refused, is_layer
from sparseinfer.ops.cpu.network import Step


@dataclass(frozen=True)
class InRegion:
    """Where a layer runs.

    region  name of the module whose forward it is; "" is the model itself
    step    that multiplies in its stead; None: it is part of another layer's
    """

    region: str
    step: Step | None


def capture_all_(model: nn.Module) -> None:
    """Let every module run as a region that can, the outermost first."""
    if not _captured(model):
        for child in model.children():
            capture_all_(child)


def _captured(module: nn.Module) -> bool:
    """Whether the module has a region now."""
    channels = _input_channels(module)
    followed = not is_layer(module) or isinstance(module, nn.Sequential)
    if channels is None or not followed or isinstance(module, FoldedLayer):
        return False
    holder = hold_region_(module)
    if holder is None:
        return False
    try:
        holder.capture(module, channels)
    except Refused:
        leave_region_(module)
        return False
    return True


def _input_channels(module: nn.Module) -> int | None:
    """Of its first sparse or dense convolution; None if it has no sparse one."""
    layers = list(module.modules())
    if not any(isinstance(layer, SparseConv2d) for layer in layers):
        return None
    first = next(layer for layer in layers if isinstance(layer, (SparseConv2d, nn.Conv2d)))
    return first.in_channels


def layers_in_regions(model: nn.Module) -> dict[str, InRegion]:
    """Of each layer that is in a region, by its name."""
    names = {module: name for name, module in model.named_modules()}
    return {
        names[layer]: InRegion(name, step)
        for module, name in names.items()
        if (holder := region_of(module)) is not None
        for layer, step in holder.layers()
        if layer in names
    }
