"""`finalize_`: removes the masks of a pruned model and keeps the zeros."""

from __future__ import annotations

from torch import nn

from sparseinfer.prune.checks import check_module
from sparseinfer.prune.masks.held import all_held_masks


def finalize_(model: nn.Module) -> nn.Module:
    """Remove masks, buffers and hooks; weights keep their zeros. In place, returns the model.

    Further training may change the zeros. A model without masks stays unchanged.
    """
    check_module(model)
    for held in all_held_masks(model):
        held.remove()
    return model
