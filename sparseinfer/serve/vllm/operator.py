"""The operators that compiled graphs of vLLM call for a sparse Linear, whatever its plan is.

vLLM keeps compiled graphs on disk. Plans depend on measurements, and may be others in the next process: a
graph that named one could be run with packings of another. So graphs get only a handle, a tensor of one
number, as another input beside x; the call that it stands for is looked up when the graph runs. For the same
reason equal layers share one graph.

`ops.held_operator` is called without Python. This one is for layers that call vLLM's product for some numbers
of tokens, and for a torch that lacks what that one needs.
"""

from __future__ import annotations

import itertools
from collections.abc import Callable
from dataclasses import dataclass
from weakref import WeakValueDictionary

import torch
from torch import Tensor

from sparseinfer.ops import held_fake


@dataclass(frozen=True, eq=False)
class Held:
    """What a handle stands for: run(x [..., k], bias [n] or None) -> y [..., n]."""

    run: Callable[[Tensor, Tensor | None], Tensor]


_numbers = itertools.count()
_held: WeakValueDictionary[int, Held] = WeakValueDictionary()
_library = torch.library.Library("sparseinfer", "FRAGMENT")


def handle_of(held: Held) -> Tensor:
    """A new handle, int64 of no dimensions, valid in this process as long as `held` is kept."""
    number = next(_numbers)
    _held[number] = held
    return torch.tensor(number, dtype=torch.int64, device="cpu")


def _run(x: Tensor, handle: Tensor, bias: Tensor | None, n: int) -> Tensor:
    held = _held.get(int(handle.item()))
    if held is None:
        raise ValueError(f"handle: expected one of a layer of this process, got {int(handle.item())}")
    return held.run(x, bias)


_library.define("held_call(Tensor x, Tensor handle, Tensor? bias, int n) -> Tensor")
_library.impl("held_call", _run, "CPU")
torch.library.register_fake("sparseinfer::held_call", held_fake, lib=_library)

held_call = torch.ops.sparseinfer.held_call.default
