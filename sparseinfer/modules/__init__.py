"""Modules that hold a packed sparse weight and take the place of torch's dense ones."""

from __future__ import annotations

from sparseinfer.modules.linear import SparseLinear

__all__ = ["SparseLinear"]
