"""Solvers: methods that also adjust the kept weights to minimise the change of each layer's output."""

from __future__ import annotations

from sparseinfer.prune.solvers.admm import ADMM
from sparseinfer.prune.solvers.reconstruct import Reconstruct
from sparseinfer.prune.solvers.solver import Solver
from sparseinfer.prune.solvers.sparsegpt import SparseGPT

__all__ = ["ADMM", "Reconstruct", "Solver", "SparseGPT"]
