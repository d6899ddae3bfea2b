"""Pruning: where to put zeros. Pure torch; nothing here needs the native module."""

from __future__ import annotations

from sparseinfer.prune.apply import prune_
from sparseinfer.prune.at_init import snip_, synflow_
from sparseinfer.prune.budgets import ERK, OWL
from sparseinfer.prune.calibrate import calibrate
from sparseinfer.prune.corrections import correct_bias_, reestimate_batch_norm_
from sparseinfer.prune.criteria import RIA, DiagonalHessian, Gradient, Magnitude, Random, Taylor, Wanda
from sparseinfer.prune.latency import LatencyBudget, LatencyTable
from sparseinfer.prune.layers import Layer, prunable_layers
from sparseinfer.prune.masks import finalize_, hold_masks_, masks_of
from sparseinfer.prune.methods import Criterion, Method, Pruned, SparseMethod
from sparseinfer.prune.patterns import NM, Block, Column, Pattern, Row, Unstructured
from sparseinfer.prune.pruner import Pruner
from sparseinfer.prune.recovery import History, cosine_loss, distillation_loss, recover_
from sparseinfer.prune.report import PrunedLayer, PruneReport, UnlookedWeight
from sparseinfer.prune.rigl import RigL
from sparseinfer.prune.schedules import Cubic, Geometric, Linear, OneShot, Schedule
from sparseinfer.prune.sensitivity import Sensitivity
from sparseinfer.prune.solvers import ADMM, Reconstruct, SparseGPT
from sparseinfer.prune.sparsity import Budget
from sparseinfer.prune.statistics import CalibrationStats, LayerStats
from sparseinfer.prune.torch_prune import from_torch_prune_, to_torch_prune_

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
    "recover_",
    "reestimate_batch_norm_",
    "snip_",
    "synflow_",
    "to_torch_prune_",
]
