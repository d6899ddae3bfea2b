"""What native code, torch and users call one thing: dtypes, storages of weights, activations.

Dtypes are in `formats.dtypes`, one layer below, and are read from here too.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass

import torch
from torch import Tensor
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
    "one_of_activations",
    "one_of_dtypes",
]

# By the name that native code has for it (csrc/core/names.cpp): what each does to y in any dtype. References
# compute with these in float64, forward-mode derivatives come from them.
ACTIVATIONS: dict[str, Callable[[Tensor], Tensor]] = {
    "none": lambda y: y,
    "relu": torch.relu,
    "gelu": F.gelu,
    "gelu_tanh": lambda y: F.gelu(y, approximate="tanh"),
    "silu": F.silu,
}
ACTIVATION_NUMBERS = {name: core.activations.index(name) for name in ACTIVATIONS}


@dataclass(frozen=True, slots=True)
class Storage:
    """How a packing of the CPU's kernels holds its weights (csrc/include/sparseinfer/dtypes.h).

    holds    weight dtypes that it holds exactly
    x_dtype  what x is rounded to; None: x in any dtype is widened to fp32
    nbytes   of a weight
    """

    holds: tuple[torch.dtype, ...]
    x_dtype: torch.dtype | None
    nbytes: int

    def takes(self, dtype: torch.dtype, x_dtype: torch.dtype) -> bool:
        """Whether kernels multiply weights of `dtype` and x of `x_dtype` from it without rounding either."""
        return dtype in self.holds and self.x_dtype in (None, x_dtype)


STORAGES = {
    "f32": Storage(tuple(DTYPE_NAMES), None, 4),
    "bf16": Storage((torch.bfloat16,), torch.bfloat16, 2),
    "wbf16": Storage((torch.bfloat16,), None, 2),
    "wf16": Storage((torch.float16,), None, 2),
}


def one_of_activations() -> str:
    """Their names for an error message."""
    return ", ".join(ACTIVATIONS)
