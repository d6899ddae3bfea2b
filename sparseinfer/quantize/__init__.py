"""Post-training quantization: int8 weights that keep their zeros. Pure torch, without the native module.

Modules import only what is below them in this list:

    apply       `quantize_`; changes.py writes its results to a model
    methods     quantizers: they choose integers and scales
    folding     which norms feed only linear layers, so that scales of inputs can be folded into them
    inputs      static scales of activations, from the ranges of a calibration

Also clip, report, registry (what can be selected by name), and simulate: activations in int8 by torch, to
measure quality. The arithmetic of int8 rows is `sparseinfer._int8`; layers, statistics and the loop over
columns are those of `sparseinfer.prune`.
"""

from __future__ import annotations

from sparseinfer.quantize.apply import quantize_
from sparseinfer.quantize.inputs import StaticInputs
from sparseinfer.quantize.methods import GPTQ, Prepared, Quantizer, Rounded, RoundToNearest, SmoothQuant
from sparseinfer.quantize.report import QuantizedLayer, QuantizeReport
from sparseinfer.quantize.simulate import simulated

__all__ = [
    "GPTQ",
    "Prepared",
    "QuantizeReport",
    "QuantizedLayer",
    "Quantizer",
    "RoundToNearest",
    "Rounded",
    "SmoothQuant",
    "StaticInputs",
    "quantize_",
    "simulated",
]
