"""sparseinfer: a pruned PyTorch model in, a faster model out.

import sparseinfer as si

si.prune_(model, si.Magnitude(sparsity=0.9))
fast = si.convert(model, example_inputs=(x,))
print(si.explain(fast))

This module exports the names that the README uses; everything else is in the packages:
sparseinfer.convert, .prune, .prune.solvers, .quantize, .modules, .formats, .ops, .select.
"""

from __future__ import annotations

from importlib.metadata import version as _version

from sparseinfer import formats
from sparseinfer.bench.compare import Comparison, benchmark
from sparseinfer.convert import (
    ConvertOptions,
    Explanation,
    convert,
    convert_,
    densify_,
    explain,
    latency_table,
)
from sparseinfer.io import load, save, save_pretrained
from sparseinfer.modules import SparseConv1d, SparseConv2d, SparseLinear, SparseMultiheadAttention
from sparseinfer.prune import (
    ADMM,
    ERK,
    NM,
    OWL,
    RIA,
    Block,
    CalibrationStats,
    Column,
    DiagonalHessian,
    Gradient,
    LatencyBudget,
    Magnitude,
    Random,
    Reconstruct,
    Row,
    Sensitivity,
    SparseGPT,
    Taylor,
    Unstructured,
    Wanda,
    calibrate,
    finalize_,
    prune_,
    prune_blocks_,
    prune_structured_,
)
from sparseinfer.quantize import GPTQ, RoundToNearest, SmoothQuant, StaticInputs, quantize_

__version__ = _version("sparseinfer")

__all__ = [
    "ADMM",
    "ERK",
    "GPTQ",
    "NM",
    "OWL",
    "RIA",
    "Block",
    "CalibrationStats",
    "Column",
    "Comparison",
    "ConvertOptions",
    "DiagonalHessian",
    "Explanation",
    "Gradient",
    "LatencyBudget",
    "Magnitude",
    "Random",
    "Reconstruct",
    "RoundToNearest",
    "Row",
    "Sensitivity",
    "SmoothQuant",
    "SparseConv1d",
    "SparseConv2d",
    "SparseGPT",
    "SparseLinear",
    "SparseMultiheadAttention",
    "StaticInputs",
    "Taylor",
    "Unstructured",
    "Wanda",
    "__version__",
    "benchmark",
    "calibrate",
    "convert",
    "convert_",
    "densify_",
    "explain",
    "finalize_",
    "formats",
    "latency_table",
    "load",
    "prune_",
    "prune_blocks_",
    "prune_structured_",
    "quantize_",
    "save",
    "save_pretrained",
]


def __getattr__(name: str) -> object:
    if name == "SparseInferConfig":  # of transformers, which takes seconds to import
        from sparseinfer.io.hf import SparseInferConfig

        return SparseInferConfig
    raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
