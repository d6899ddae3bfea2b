"""The operator as torch sees it: schema, fake, autograd. No kernel is named here."""

from __future__ import annotations

import torch
from torch import Tensor

LINEAR = "linear(Tensor x, Tensor[] packings, Tensor? bias, int n, str plan, str activation) -> Tensor"

library = torch.library.Library("sparseinfer", "DEF")


def linear_fake(
    x: Tensor, packings: list[Tensor], bias: Tensor | None, n: int, plan: str, activation: str
) -> Tensor:
    """y [..., n] like x [..., k]."""
    return x.new_empty((*x.shape[:-1], n))


def define() -> None:
    library.define(LINEAR)
    torch.library.register_fake("sparseinfer::linear", linear_fake, lib=library)
    # Inference only. Gradients would be dropped without a word, so SparseLinear refuses them aloud.
    library.impl("linear", torch.library.fallthrough_kernel, "Autograd")
