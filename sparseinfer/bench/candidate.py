"""Defines what a benchmark times: one way to compute a linear layer."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass

import torch
from torch import Tensor

# The whole layer: x [m, k] row-major in, y [m, n] row-major out, bias added.
Runner = Callable[[Tensor], Tensor]

DENSE, OTHER, SPARSE = "dense", "other", "sparse"


@dataclass(frozen=True)
class Candidate:
    """One way to compute a linear layer.

    name        of the kernel, or of the library's product
    kind        "dense"; "sparse", a kernel of this package; "other", another library's sparse product, or a
                dense one in another dtype
    layout      of this package's weights; "" for all others
    dtype       of x and y
    multiplies  number of weights that take part in the product
    nbytes      that one copy of the weights occupies
    make        creates a runner with its own copy of the weights, so that runners read different memory
    planned     whether `convert` would time it for this layer at the active instruction-set level
    rounded     what of x one scale rounds to 8 bits: "token", "tensor" or, where x is not rounded, ""
    own_clock   whether its runner is a `PeerLayer`, which times itself in another process
    """

    name: str
    kind: str
    layout: str
    dtype: torch.dtype
    multiplies: int
    nbytes: int
    make: Callable[[], Runner]
    planned: bool = False
    rounded: str = ""
    own_clock: bool = False
