"""Quantizers: methods that choose the integers and the scales of weights."""

from __future__ import annotations

from sparseinfer.quantize.methods.gptq import GPTQ
from sparseinfer.quantize.methods.nearest import RoundToNearest
from sparseinfer.quantize.methods.quantizer import Prepared, Quantizer, Rounded
from sparseinfer.quantize.methods.smooth import SmoothQuant

__all__ = ["GPTQ", "Prepared", "Quantizer", "RoundToNearest", "Rounded", "SmoothQuant"]
