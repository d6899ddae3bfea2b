"""Finds the weights of a model that can be pruned, and views each as one matrix per group."""

from __future__ import annotations

from sparseinfer.prune.layers.layer import Layer
from sparseinfer.prune.layers.selection import prunable_layers

__all__ = ["Layer", "prunable_layers"]
