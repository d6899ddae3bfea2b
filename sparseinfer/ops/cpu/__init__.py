"""The operators on the CPU. `ops.backend` says what the rooms of a device hold."""

from __future__ import annotations

from sparseinfer.ops.cpu import conv, kernels, layouts, linear, packing

__all__ = ["conv", "kernels", "layouts", "linear", "packing"]
