"""Budgets: distribute one overall sparsity over the layers, more to those that tolerate it.

A float is the uniform budget: every layer gets that fraction. The budgets here give each layer its own. All
layers together then hold exactly `round(sparsity * numel)` zeros where single weights are pruned by layer;
with a scope of rows, or units of several weights, each layer's count is rounded to what those allow.
"""

from __future__ import annotations

from sparseinfer.prune.budgets.erk import ERK
from sparseinfer.prune.budgets.owl import OWL

# The names that this package had as a module. Those of all budgets are in sparseinfer.prune.
__all__ = ["ERK", "OWL"]
