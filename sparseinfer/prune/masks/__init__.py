"""Masks that last: pruned weights stay zero while a model is trained, saved, loaded and copied."""

from __future__ import annotations

from sparseinfer.prune.masks.held import HeldMask
from sparseinfer.prune.masks.hold import hold_masks_, masks_of

__all__ = ["HeldMask", "hold_masks_", "masks_of"]
