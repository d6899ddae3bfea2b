"""Masks on a model, which keep pruned weights at zero through training, saving, loading and copying."""

from __future__ import annotations

from sparseinfer.prune.masks.held import HeldMask
from sparseinfer.prune.masks.hold import hold_masks_, masks_of
from sparseinfer.prune.masks.nncf import nncf_masks_merged

__all__ = ["HeldMask", "hold_masks_", "masks_of", "nncf_masks_merged"]
