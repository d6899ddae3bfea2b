"""Pruning: sets weights to zero, before, during or after training. Pure torch, without the native module.

Modules import only what is below them in this list:

    training      pruning during training, and recovery
    structured    `prune_structured_`: heads, neurons, channels and blocks go, a smaller dense model is left
    apply         `prune_`; changes.py writes its results to a model
    solvers       methods that give kept weights new values
    methods       criteria, and the base of all methods
    budgets       sparsities that differ from layer to layer
    calibration   statistics of the inputs of layers
    masks         keep pruned weights at zero; finalize removes them
    layers        selects the weights of a model, each viewed as matrices

Also patterns, importance, checks, and registry: what can be selected by name.
"""

from __future__ import annotations

from sparseinfer.prune.apply import prune_
from sparseinfer.prune.budgets.budget import Budget
from sparseinfer.prune.budgets.erk import ERK
from sparseinfer.prune.budgets.latency import LatencyBudget
from sparseinfer.prune.budgets.latency_table import LatencyTable
from sparseinfer.prune.budgets.owl import OWL
from sparseinfer.prune.budgets.sensitivity import Sensitivity
from sparseinfer.prune.calibration.calibrate import calibrate
from sparseinfer.prune.calibration.statistics import CalibrationStats, LayerStats
from sparseinfer.prune.finalize import finalize_
from sparseinfer.prune.layers.layer import Layer
from sparseinfer.prune.layers.selection import prunable_layers
from sparseinfer.prune.masks.hold import hold_masks_, masks_of
from sparseinfer.prune.masks.torch_prune import from_torch_prune_, to_torch_prune_
from sparseinfer.prune.methods.criteria import (
    RIA,
    DiagonalHessian,
    Gradient,
    Magnitude,
    Random,
    Taylor,
    Wanda,
)
from sparseinfer.prune.methods.criterion import Criterion
from sparseinfer.prune.methods.method import Method, Pruned
from sparseinfer.prune.methods.sparse import SparseMethod
from sparseinfer.prune.patterns import NM, Block, Column, Pattern, Row, Unstructured
from sparseinfer.prune.report import PrunedLayer, PruneReport, UnlookedWeight
from sparseinfer.prune.solvers import ADMM, Reconstruct, SparseGPT
from sparseinfer.prune.structured import (
    PrunedGroup,
    Structured,
    StructuredReport,
    prune_blocks_,
    prune_structured_,
)
from sparseinfer.prune.training.at_init import snip_, synflow_
from sparseinfer.prune.training.corrections import correct_bias_, reestimate_batch_norm_
from sparseinfer.prune.training.pruner import Pruner
from sparseinfer.prune.training.recovery import History, cosine_loss, distillation_loss, recover_
from sparseinfer.prune.training.rigl import RigL
from sparseinfer.prune.training.schedules import Cubic, Geometric, Linear, OneShot, Schedule

__all__ = [
    "ADMM",
    "ERK",
    "NM",
    "OWL",
    "RIA",
    "Block",
    "Budget",
    "CalibrationStats",
    "Column",
    "Criterion",
    "Cubic",
    "DiagonalHessian",
    "Geometric",
    "Gradient",
    "History",
    "LatencyBudget",
    "LatencyTable",
    "Layer",
    "LayerStats",
    "Linear",
    "Magnitude",
    "Method",
    "OneShot",
    "Pattern",
    "PruneReport",
    "Pruned",
    "PrunedGroup",
    "PrunedLayer",
    "Pruner",
    "Random",
    "Reconstruct",
    "RigL",
    "Row",
    "Schedule",
    "Sensitivity",
    "SparseGPT",
    "SparseMethod",
    "Structured",
    "StructuredReport",
    "Taylor",
    "UnlookedWeight",
    "Unstructured",
    "Wanda",
    "calibrate",
    "correct_bias_",
    "cosine_loss",
    "distillation_loss",
    "finalize_",
    "from_torch_prune_",
    "hold_masks_",
    "masks_of",
    "prunable_layers",
    "prune_",
    "prune_blocks_",
    "prune_structured_",
    "recover_",
    "reestimate_batch_norm_",
    "snip_",
    "synflow_",
    "to_torch_prune_",
]
