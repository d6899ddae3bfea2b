"""The operators on the CPU; `ops.backend` describes the modules of this package."""

from __future__ import annotations

from sparseinfer.ops.cpu import conv, kernels, layouts, linear, packing

__all__ = ["conv", "kernels", "layouts", "linear", "packing"]
