"""The operators on CUDA. `ops.backend` says what the rooms of a device hold."""

from __future__ import annotations

from sparseinfer.ops.cuda import conv, kernels, layouts, linear, packing

__all__ = ["conv", "kernels", "layouts", "linear", "packing"]
