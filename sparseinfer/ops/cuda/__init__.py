"""The operators on CUDA; `ops.backend` describes the modules of this package."""

from __future__ import annotations

from sparseinfer.ops.cuda import conv, kernels, layouts, linear, packing

__all__ = ["conv", "kernels", "layouts", "linear", "packing"]
