"""Models in files: safetensors with sparse weights, and with what `convert` decided."""

from __future__ import annotations

from sparseinfer.io.load import load
from sparseinfer.io.reader import File
from sparseinfer.io.save import save

__all__ = ["File", "load", "save"]
