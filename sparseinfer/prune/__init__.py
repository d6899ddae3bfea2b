"""Pruning: where to put zeros. Pure torch; nothing here needs the native module."""

from __future__ import annotations

from sparseinfer.prune.apply import prune_
from sparseinfer.prune.methods import Magnitude, Method
from sparseinfer.prune.report import PrunedLayer, PruneReport

__all__ = ["Magnitude", "Method", "PruneReport", "PrunedLayer", "prune_"]
