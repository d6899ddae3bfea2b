"""Converts a pruned dense model to one that runs faster, planned per layer and measured on this machine.

The steps of a conversion; no step imports a later one:

    survey      finds the layers, their weights and what follows them, in one run
    candidates  lists what can compute each product
    timing      gets the time of each candidate: measured, cached or predicted
    plan        chooses a candidate per number of tokens (plan.py for one product, decisions.py for all)
    assembly    makes the modules that replace layers
    accept      checks that the converted model returns the same result
    whole       times it against the original; what makes it slower is left out
    report      records what was decided, and why (report.py, rows.py)
    apply       convert, convert_, densify_ and latency_table, which call the steps in this order
"""

from __future__ import annotations

from sparseinfer.convert.apply import convert, convert_
from sparseinfer.convert.densify import densify_
from sparseinfer.convert.latency import latency_table
from sparseinfer.convert.options import ConvertOptions
from sparseinfer.convert.report import Explanation, LayerReport, explain

__all__ = [
    "ConvertOptions",
    "Explanation",
    "LayerReport",
    "convert",
    "convert_",
    "densify_",
    "explain",
    "latency_table",
]
