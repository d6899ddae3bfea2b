"""Searches the units to remove for a latency: by measured times of layers, corrected by the whole model."""

from __future__ import annotations

import copy
from collections.abc import Callable, Sequence
from typing import Any, TypeAlias

import torch
from torch import Tensor, nn

from sparseinfer._running import call, copied, for_a_run
from sparseinfer._timing import interleave, sample
from sparseinfer.prune.structured.amounts import Chosen, least_ratio
from sparseinfer.prune.structured.groups import Group
from sparseinfer.prune.structured.kinds import input_axis, is_conv1d, sizes_of
from sparseinfer.prune.structured.shrink import Shrinking
from sparseinfer.prune.structured.tracing import named_tensors

# Seconds for each size of a layer, and for the whole model. Chosen, not measured: a layer of a small model
# takes some 100 us, so that its least time is of a hundred samples.
_LAYER_S, _MODEL_S = 0.03, 1.0
# How often the search is corrected by a measured model, and how close to its target it may stop.
_CORRECTIONS, _CLOSE = 4, 0.03
Called: TypeAlias = "tuple[str, nn.Module, Tensor]"
_TIMED = (nn.Linear, nn.Conv1d, nn.Conv2d, nn.Conv3d)


class Clock:
    """The times of a model and of its layers at any size, on this machine, in milliseconds."""

    def __init__(self, model: nn.Module, example_inputs: Any) -> None:
        self._model, self._inputs = model, example_inputs
        self._times: dict[object, float] = {}

    def whole(self, model: nn.Module) -> float:
        """Of one run with the example inputs."""
        with for_a_run(model):
            inputs = copied(self._inputs, model)
            timing = interleave({"": [lambda: call(model, inputs)]}, budget_s=_MODEL_S)
        return timing[""].min_us / 1000

    def search(
        self, groups: Sequence[Group], choose: Callable[[float], Chosen], target: float
    ) -> tuple[Chosen, float]:
        """The fewest units whose removal meets the target, and the milliseconds predicted for what is left.

        What is not in layers of matrices is taken to cost what it costs in the dense model. A model of the
        size found is measured: what it takes beyond the prediction is added to the next one, a few times. Of
        the sizes measured the one nearest to the target counts.
        """
        calls = self._calls()
        rest = self.whole(self._model) - self._layers(calls, groups, {})
        nearest: tuple[float, Chosen, float] | None = None
        for _ in range(_CORRECTIONS):

            def cost(chosen: Chosen, rest: float = rest) -> float:
                return self._layers(calls, groups, chosen) + rest

            chosen = least_ratio(choose, cost, target, "latency", 1.0)
            smaller = copy.deepcopy(self._model)
            Shrinking(smaller).remove(groups, chosen)
            measured, predicted = self.whole(smaller), cost(chosen)
            if nearest is None or abs(measured - target) < nearest[0]:
                nearest = abs(measured - target), chosen, predicted
            if nearest[0] <= _CLOSE * target or not any(chosen.values()):
                break
            rest += measured - predicted
        assert nearest is not None
        return nearest[1:]

    def _calls(self) -> list[Called]:
        """The calls of layers in a run: name, module, and an input of that shape."""
        calls: list[Called] = []
        handles = []
        for fqn, module in self._model.named_modules():
            if isinstance(module, _TIMED) or is_conv1d(module):

                def note(module: nn.Module, args: Any, fqn: str = fqn) -> None:
                    if args and isinstance(args[0], Tensor):
                        calls.append((f"{fqn}.weight".removeprefix("."), module, args[0].detach()))

                handles.append(module.register_forward_pre_hook(note))
        try:
            with for_a_run(self._model):
                call(self._model, copied(self._inputs, self._model))
        finally:
            for handle in handles:
                handle.remove()
        return calls

    def _layers(
        self, calls: Sequence[tuple[str, nn.Module, Tensor]], groups: Sequence[Group], gone: Chosen
    ) -> float:
        """Milliseconds of all calls together, with these units removed."""
        lost: dict[tuple[str, int], int] = {}
        for group in groups:
            count = len(gone.get(group.name, ()))
            for member in group.members:
                at = (member.weight, member.axis)
                lost[at] = lost.get(at, 0) + count * member.indices.shape[1]
        first = {id(t): name for name, t in named_tensors(self._model)}
        total = 0.0
        for name, module, x in calls:
            weight: Any = module.weight
            own = first.get(id(weight), name)
            shape = tuple(size - lost.get((own, i), 0) for i, size in enumerate(weight.shape))
            key = (type(module), shape, tuple(weight.shape), tuple(x.shape), weight.dtype, _settings(module))
            if key not in self._times:
                self._times[key] = _time(module, shape, x)
            total += self._times[key]
        return total


def _settings(module: nn.Module) -> tuple[Any, ...]:
    """What besides shapes decides how long a layer takes."""
    names = ("stride", "padding", "dilation", "groups", "padding_mode")
    return tuple(getattr(module, name, None) for name in names)


@torch.no_grad()
def _time(module: nn.Module, shape: tuple[int, ...], x: Tensor) -> float:
    """Milliseconds of a layer whose weight has this shape, with an input like x but for its channels."""
    layer: Any = copy.deepcopy(module)
    old = layer.weight
    like = {"dtype": old.dtype, "device": old.device}
    layer.weight = nn.Parameter(torch.zeros(shape, **like), requires_grad=False)
    vars(layer).update(sizes_of(layer))
    outputs = layer.nf if is_conv1d(layer) else shape[0]
    if layer.bias is not None:
        layer.bias = nn.Parameter(
            torch.zeros(outputs, dtype=old.dtype, device=old.device), requires_grad=False
        )
    axis = input_axis(layer, "weight")
    channels = layer.in_channels if hasattr(layer, "in_channels") else shape[1 if axis is None else axis]
    at = x.dim() - len(layer.kernel_size) - 1 if hasattr(layer, "kernel_size") else x.dim() - 1
    sizes = [channels if i == at else size for i, size in enumerate(x.shape)]
    given = sample(sizes, x.dtype).to(x.device)
    return interleave({"": [lambda: layer(given)]}, budget_s=_LAYER_S)[""].min_us / 1000
