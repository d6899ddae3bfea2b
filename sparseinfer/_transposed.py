"""Recognises transformers' Conv1D, a Linear that holds its weight transposed."""

from __future__ import annotations

from torch import nn


def is_transposed_linear(module: nn.Module) -> bool:
    """Whether it is transformers' Conv1D: a Linear that holds its weight as [k, n], not [n, k].

    Compares the class name, so that transformers need not be installed.
    """
    return type(module).__name__ == "Conv1D" and type(module).__module__ == "transformers.pytorch_utils"
