"""`finalize_`: from held masks to plain weights with zeros."""

from __future__ import annotations

from torch import nn

from sparseinfer.prune.checks import check_module
from sparseinfer.prune.masks.held import all_held_masks


def finalize_(model: nn.Module) -> nn.Module:
    """Bake the masks in: plain weights with zeros, without buffers and hooks; in place, returns the model.

    Training on may fill the zeros. A model without masks is left as it is.
    """
    check_module(model)
    for held in all_held_masks(model):
        held.remove()
    return model
