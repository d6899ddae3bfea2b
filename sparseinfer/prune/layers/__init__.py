"""The layers that can be pruned: which weights of a model, and each as one matrix per group."""

from __future__ import annotations

from sparseinfer.prune.layers.layer import Layer
from sparseinfer.prune.layers.selection import prunable_layers

__all__ = ["Layer", "prunable_layers"]
