"""The table of supported dtypes of weights and activations, for formats, packings, operators and tests."""

from __future__ import annotations

import torch

from sparseinfer._native import core

# By the name that native code has for it (SI_DTYPES in csrc/include/sparseinfer/dtypes.h).
DTYPES = {"f32": torch.float32, "bf16": torch.bfloat16, "f16": torch.float16}
DTYPE_NAMES = {dtype: name for name, dtype in DTYPES.items()}
DTYPE_NUMBERS = {dtype: core.dtypes.index(name) for name, dtype in DTYPES.items()}
VALUE_DTYPES = tuple(DTYPE_NAMES)

# Those of formats and packings: int8 besides, of which every row has a scale (SI_WEIGHT_DTYPES).
WEIGHT_DTYPES = {**DTYPES, "i8": torch.int8}
WEIGHT_DTYPE_NAMES = {dtype: name for name, dtype in WEIGHT_DTYPES.items()}


def one_of_dtypes() -> str:
    """The dtypes for an error message: "torch.float32, torch.bfloat16 or torch.float16"."""
    *first, last = map(str, VALUE_DTYPES)
    return f"{', '.join(first)} or {last}"
