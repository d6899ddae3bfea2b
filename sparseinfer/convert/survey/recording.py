"""Records one run of the model: which layers it calls, with what shapes, and which get the same input.

This decides what to plan, and for how many tokens. What holds for this run need not hold for the next one, so
correctness never depends on it.
"""

from __future__ import annotations

import itertools
import weakref
from collections import defaultdict
from collections.abc import Iterable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, field
from typing import Any, TypeVar

import torch
from torch import Tensor, nn

from sparseinfer._running import run
from sparseinfer.ops.schema import in_channels_last

T = TypeVar("T")


@dataclass(frozen=True)
class Recording:
    """The result of the recorded run.

    called  modules that were called
    shapes  module -> shapes of its first input, in order of the calls, each listed once
    shared  module -> ids of its inputs; two modules with equal ids got the same tensors
    channels_last   modules whose input [b, c, h, w] was in channels_last at every call
    result  what the model returned: its floating-point tensors
    """

    called: frozenset[nn.Module] = frozenset()
    shapes: Mapping[nn.Module, tuple[tuple[int, ...], ...]] = field(default_factory=dict)
    shared: Mapping[nn.Module, tuple[object, ...]] = field(default_factory=dict)
    channels_last: frozenset[nn.Module] = frozenset()
    result: Sequence[Tensor] = ()


def record(model: nn.Module, modules: Iterable[nn.Module], example_inputs: Any) -> Recording:
    """Runs the model once and records the calls of these modules.

    `example_inputs` is a tuple or list of positional arguments, a mapping of keyword arguments, or the only
    argument itself. ValueError, with the model's own error as the cause, if the run fails.
    """
    recorder = _Recorder()
    # Not inference mode: its tensors do not tell whether they were written to.
    with recorder.watching(dict.fromkeys(modules)), torch.inference_mode(False):
        try:
            result = run(model, example_inputs)
        except Exception as error:
            got = f"{type(error).__name__}: {error}"
            raise ValueError(f"example_inputs: expected inputs that the model accepts, got {got}") from error
    return recorder.finished(tensors_of(result))


class _Recorder:
    def __init__(self) -> None:
        self._called: set[nn.Module] = set()
        self._shapes: defaultdict[nn.Module, dict[tuple[int, ...], None]] = defaultdict(dict)
        self._channels_last: dict[nn.Module, bool] = {}
        self._marks: defaultdict[nn.Module, list[object]] = defaultdict(list)
        self._inputs: dict[int, tuple[weakref.ref[Tensor], int]] = {}
        self._serial = itertools.count()

    @contextmanager
    def watching(self, modules: Iterable[nn.Module]) -> Iterator[None]:
        handles = []
        try:
            for module in modules:
                handles.append(module.register_forward_pre_hook(self._before, with_kwargs=True))
            yield
        finally:
            for handle in handles:
                handle.remove()

    def finished(self, result: Sequence[Tensor]) -> Recording:
        return Recording(
            frozenset(self._called),
            {module: tuple(shapes) for module, shapes in self._shapes.items()},
            {module: tuple(marks) for module, marks in self._marks.items()},
            frozenset(module for module, always in self._channels_last.items() if always),
            result,
        )

    def _before(self, module: nn.Module, args: tuple[Any, ...], kwargs: dict[str, Any]) -> None:
        self._called.add(module)
        x = args[0] if args else next(iter(kwargs.values()), None)
        if not isinstance(x, Tensor):
            self._marks[module].append(next(self._serial))
            return
        if x.numel():
            self._shapes[module][tuple(x.shape)] = None
            is_last = x.dim() == 4 and in_channels_last(x)
            self._channels_last[module] = self._channels_last.get(module, True) and is_last
        self._marks[module].append(self._mark(x))

    def _mark(self, x: Tensor) -> object:
        """The same for the same tensor with the same values, as far as that can be known."""
        seen = self._inputs.get(id(x))
        if seen is None or seen[0]() is not x:  # another tensor may have had this address before
            seen = self._inputs[id(x)] = (weakref.ref(x), next(self._serial))
        return seen[1], next(self._serial) if x.is_inference() else x._version


def tensors_of(value: Any) -> list[Tensor]:
    """Floating-point tensors in a model's result: itself, in lists, tuples, mappings and other objects."""
    return [t for t in _tensors([value], set()) if t.is_floating_point()]


def _tensors(values: Iterable[Any], seen: set[int]) -> Iterator[Tensor]:
    for value in values:
        if isinstance(value, Tensor):
            yield value
        elif id(value) in seen or isinstance(value, nn.Module):
            continue
        elif isinstance(value, Mapping):
            seen.add(id(value))
            yield from _tensors(value.values(), seen)
        elif isinstance(value, (tuple, list)):
            seen.add(id(value))
            yield from _tensors(value, seen)
        elif hasattr(value, "__dict__") and not isinstance(value, type):
            seen.add(id(value))
            yield from _tensors(vars(value).values(), seen)


def spread(items: Sequence[T], most: int = 4) -> tuple[T, ...]:
    """At most that many of the items, evenly spaced."""
    if len(items) <= most:
        return tuple(items)
    last = len(items) - 1
    return tuple(items[round(i * last / (most - 1))] for i in range(most))
