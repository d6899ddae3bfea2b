"""From a pruned dense model to one that runs faster: planned per layer, measured on this machine.

A model goes one way through here, and no step imports a later one:

    survey      what is there: layers, their weights, what follows them, one run
    candidates  what could compute each product
    timing      how long that takes, measured, remembered or predicted
    plan        which candidate serves how many tokens (plan.py for one product, decisions.py for all)
    build       what takes the place of layers
    report      what was decided, and why (report.py, rows.py)
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
