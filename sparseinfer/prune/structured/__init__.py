"""Structured pruning: whole heads, neurons, channels and blocks go, and a smaller dense model is left.

Modules import only what is below them in this list:

    method        `Structured`, for `Pruner`
    apply, depth  `prune_structured_`, and `prune_blocks_` for whole blocks
    verify        compares the smaller model with the one before it
    latency       searches units to remove for a latency
    shrink        removes them; config, update (least squares)
    amounts       how many units go, and which
    importance    scores of units
    groups        units with all their slices of weights
    rules         what operators do to axes; rules_shapes
    tracing       a run that follows axes through operators
    labels        which indices of axes go together
    structure     how a pruned model differs from what its class builds; kinds (sizes that modules keep)
"""

from __future__ import annotations

from sparseinfer.prune.structured.apply import prune_structured_
from sparseinfer.prune.structured.depth import prune_blocks_
from sparseinfer.prune.structured.importance import Importance
from sparseinfer.prune.structured.method import Structured
from sparseinfer.prune.structured.report import PrunedGroup, StructuredReport

__all__ = [
    "Importance",
    "PrunedGroup",
    "Structured",
    "StructuredReport",
    "prune_blocks_",
    "prune_structured_",
]
