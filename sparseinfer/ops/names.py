"""Maps dtypes, weight storages and activations between native code, torch and user-visible names.

Dtypes are defined in `formats.dtypes` and re-exported here.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from sparseinfer._native import core
from sparseinfer.formats.dtypes import DTYPE_NAMES, DTYPE_NUMBERS, DTYPES, one_of_dtypes

__all__ = [
    "ACTIVATIONS",
    "ACTIVATION_NUMBERS",
    "DTYPES",
    "DTYPE_NAMES",
    "DTYPE_NUMBERS",
    "STORAGES",
    "UNITS",
    "one_of_activations",
    "one_of_dtypes",
]


@dataclass(frozen=True, slots=True)
class Activation:
    """An activation that kernels can apply, and the functions and modules that compute it in models.

    function   computes it on y in any dtype; used by references, in float64, and for forward-mode derivatives
    calls      torch functions of one tensor that compute it
    modules    torch modules that compute it, each recognised by its forward
    keyword    argument and value that select it, where calls and modules compute other activations too
    attributes of a module, and their values, that select it beside the keyword
    formulas   classes of transformers.activations that compute it by a formula, equal up to rounding
    """

    function: Callable[[Tensor], Tensor]
    calls: tuple[object, ...] = ()
    modules: tuple[type[nn.Module], ...] = ()
    keyword: tuple[str, str] = ("", "")
    formulas: tuple[str, ...] = ()
    attributes: tuple[tuple[str, object], ...] = ()

    def __call__(self, y: Tensor) -> Tensor:
        return self.function(y)


# By the name that native code has for it (SI_ACTIVATIONS in csrc/include/sparseinfer/dtypes.h).
ACTIVATIONS: dict[str, Activation] = {
    "none": Activation(lambda y: y),
    "relu": Activation(torch.relu, (F.relu, torch.relu), (nn.ReLU,)),
    "gelu": Activation(F.gelu, (F.gelu,), (nn.GELU,), ("approximate", "none"), ("GELUActivation",)),
    "gelu_tanh": Activation(
        lambda y: F.gelu(y, approximate="tanh"),
        (F.gelu,),
        (nn.GELU,),
        ("approximate", "tanh"),
        ("NewGELUActivation", "FastGELUActivation", "AccurateGELUActivation"),
    ),
    "silu": Activation(F.silu, (F.silu,), (nn.SiLU,)),
    # nn.ReLU6 has the forward of nn.Hardtanh.
    "relu6": Activation(F.relu6, (F.relu6,), (nn.Hardtanh,), attributes=(("min_val", 0.0), ("max_val", 6.0))),
    "hardswish": Activation(F.hardswish, (F.hardswish,), (nn.Hardswish,)),
    "sigmoid": Activation(torch.sigmoid, (torch.sigmoid, F.sigmoid), (nn.Sigmoid,)),
    "hardsigmoid": Activation(F.hardsigmoid, (F.hardsigmoid,), (nn.Hardsigmoid,)),
}
ACTIVATION_NUMBERS = {name: core.activations.index(name) for name in ACTIVATIONS}


@dataclass(frozen=True, slots=True)
class Storage:
    """How a packing of the CPU's kernels holds its weights (csrc/include/sparseinfer/dtypes.h).

    holds    weight dtypes that it represents exactly
    x_dtype  dtype that x is rounded to, uint8 with a scale of each token; None: x is widened to fp32
    nbytes   bytes per weight
    unit     what multiplies, a key of UNITS, at levels that have it
    """

    holds: tuple[torch.dtype, ...]
    x_dtype: torch.dtype | None
    nbytes: int
    unit: str = "fma"

    def takes(self, dtype: torch.dtype, x_dtype: torch.dtype) -> bool:
        """Whether kernels multiply weights of `dtype` and x of `x_dtype` from it without rounding either."""
        return dtype in self.holds and self.x_dtype in (None, x_dtype)


# The units of a CPU that multiply, by the probe's names (csrc/include/sparseinfer/probe_loop.h).
UNITS = {
    "fma": "FMA",
    "dot": "bf16 dot",
    "vnni": "int8 dot",
    "tile_bf16": "AMX bf16",
    "tile_int8": "AMX int8",
}

STORAGES = {
    "f32": Storage(tuple(DTYPE_NAMES), None, 4),
    "bf16": Storage((torch.bfloat16,), torch.bfloat16, 2, "dot"),
    "wbf16": Storage((torch.bfloat16,), None, 2),
    "wf16": Storage((torch.float16,), None, 2),
    "i8": Storage((torch.int8,), torch.uint8, 1, "vnni"),
    "wi8": Storage((torch.int8,), None, 1),
}


def one_of_activations() -> str:
    """The names of all activations, for an error message."""
    return ", ".join(ACTIVATIONS)
