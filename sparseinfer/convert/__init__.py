"""From a pruned dense model to one that runs faster: planned per layer, measured on this machine."""

from __future__ import annotations

from sparseinfer.convert.apply import convert, convert_
from sparseinfer.convert.densify import densify_
from sparseinfer.convert.latency import latency_table
from sparseinfer.convert.report import Explanation, LayerReport, explain

__all__ = ["Explanation", "LayerReport", "convert", "convert_", "densify_", "explain", "latency_table"]
