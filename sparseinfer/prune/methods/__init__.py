"""Pruning methods: immutable, checked descriptions of how `prune_` prunes."""

from __future__ import annotations

from sparseinfer.prune.methods.criterion import Criterion
from sparseinfer.prune.methods.method import Method, Pruned
from sparseinfer.prune.methods.sparse import SparseMethod

__all__ = ["Criterion", "Method", "Pruned", "SparseMethod"]
