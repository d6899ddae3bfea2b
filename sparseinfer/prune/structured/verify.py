"""Checks a smaller model against the one before it: the same, as if the units' outgoing weights were zero.

Tracing cannot see a number in a forward that happens to fit, such as the 4 of x[..., :4]. This can.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from typing import Any

import torch
from torch import Tensor, nn

from sparseinfer._running import run
from sparseinfer.prune.structured.groups import Group
from sparseinfer.prune.structured.tracing import named_tensors, returned, run_watched

# How far results may be apart, of the largest value. What is wrong by a slice is off by about 1; sums in
# another order are some rounding errors off, more in a deep model. Chosen, not measured.
_TOLERANCES = {torch.float64: 1e-6, torch.float32: 1e-3}
_OF_SHORTER = 5e-2


def closed_outputs(
    model: nn.Module, example_inputs: Any, groups: Sequence[Group], removed: Mapping[str, Sequence[int]]
) -> list[Tensor] | None:
    """What the model returns with all weights at zero that read these units; None: not all have such ones."""
    touched = [group for group in groups if removed.get(group.name)]
    if not touched or not all(group.is_exact for group in touched):
        return None
    with _closed(model, touched, removed):
        return returned(run(model, example_inputs))


@contextmanager
def _closed(
    model: nn.Module, groups: Sequence[Group], removed: Mapping[str, Sequence[int]]
) -> Iterator[None]:
    tensors = dict(named_tensors(model))
    before: dict[str, Tensor] = {}
    try:
        for group in groups:
            for member in group.members:
                if member.reads:
                    weight = tensors[member.weight]
                    if member.weight not in before:
                        before[member.weight] = weight.data
                        weight.data = weight.data.clone()
                    indices = member.indices[list(removed[group.name])].reshape(-1)
                    weight.data.movedim(member.axis, 0)[torch.from_numpy(indices).to(weight.device)] = 0
        yield
    finally:
        for name, data in before.items():
            tensors[name].data = data


def check_runs(
    model: nn.Module, example_inputs: Any, shapes: Sequence[Any], closed: Sequence[Tensor] | None, names: str
) -> None:
    """RuntimeError: the smaller model does not run, or returns other shapes, or other values than `closed`.

    names  of the groups to blame for other values
    """
    outputs = returned(run_watched(model, example_inputs))
    got = [tuple(t.shape) for t in outputs]
    if got != list(shapes):
        raise RuntimeError(f"{type(model).__name__}: expected outputs of shapes {list(shapes)}, got {got}")
    for before, after in zip(closed or (), outputs, strict=False):
        if before.is_floating_point() and not _are_close(before, after):
            hint = "its forward has sizes written into it; ignore=... leaves it as it is"
            raise RuntimeError(f"{names}: expected units that go without a trace, got others ({hint})")


def _are_close(before: Tensor, after: Tensor) -> bool:
    if not before.numel():
        return True
    tolerance = _TOLERANCES.get(before.dtype, _OF_SHORTER)
    known = before.isfinite() & after.isfinite()
    a, b = (torch.where(known, t, 0).double() for t in (before, after))
    return float((a - b).abs().max()) <= tolerance * float(a.abs().max().clamp_min(1e-30))
