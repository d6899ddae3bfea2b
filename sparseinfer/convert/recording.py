"""One run of the model, watched: what a layer is given, who else is given it, and who reads its result."""

from __future__ import annotations

import itertools
import weakref
from collections import defaultdict
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, field, replace
from typing import Any, TypeVar

import torch
from torch import Tensor, nn
from torch.multiprocessing.reductions import StorageWeakRef
from torch.overrides import TorchFunctionMode
from torch.utils._pytree import tree_map

from sparseinfer._running import call, evaluating
from sparseinfer.ops.schema import in_channels_last

T = TypeVar("T")

# Reading these of a tensor tells nothing of its values.
_METHODS = frozenset({"size", "dim", "numel", "stride", "is_contiguous", "is_floating_point", "__len__"})
_ATTRIBUTES = frozenset(
    {"shape", "dtype", "device", "ndim", "layout", "requires_grad", "is_cuda", "_version"}
)


@dataclass(frozen=True)
class Recording:
    """What one run showed.

    shapes  module -> shapes of its first input, in order of the calls, each listed once
    shared  module -> marks of its inputs; two modules with equal marks were given the same tensors
    reader  module -> the module that alone read its results, at every call; and read nothing else
    channels_last   modules whose images [b, c, h, w] came in channels_last at every call
    last    modules that were the last to read the memory of their input, at every call: it was free after
    result  what the model returned: its floating-point tensors
    """

    shapes: Mapping[nn.Module, tuple[tuple[int, ...], ...]] = field(default_factory=dict)
    shared: Mapping[nn.Module, tuple[object, ...]] = field(default_factory=dict)
    reader: Mapping[nn.Module, nn.Module] = field(default_factory=dict)
    channels_last: frozenset[nn.Module] = frozenset()
    last: frozenset[nn.Module] = frozenset()
    result: Sequence[Tensor] = ()


def record(model: nn.Module, modules: Iterable[nn.Module], example_inputs: Any) -> Recording:
    """`run`s the model once, watching it.

    `modules` are those to learn about, besides all that have no children. `example_inputs` is a tuple or
    list of positional arguments, a mapping of keyword arguments, or the only argument itself. ValueError,
    with the model's own error as the cause, if the run fails.
    """
    leaves = (module for module in model.modules() if not any(module.children()))
    recorder = _Recorder(dict.fromkeys([*leaves, *modules]))
    # Not inference mode: its tensors do not tell whether they were written to.
    with recorder.watching(), torch.inference_mode(False):
        example_inputs = tree_map(_normal, example_inputs)
        try:
            with recorder:
                result = run(model, example_inputs)
        except Exception as error:
            got = f"{type(error).__name__}: {error}"
            raise ValueError(f"example_inputs: expected inputs that the model accepts, got {got}") from error
    # What the model returns is alive here: it has a reader outside.
    return replace(recorder.finished(), result=tensors_of(result))


def run(model: nn.Module, example_inputs: Any) -> Any:
    """The model's result, in eval mode and without gradients; its modes are put back."""
    with evaluating(model), torch.no_grad():
        return call(model, example_inputs)


@dataclass
class _Result:
    """A tensor that a module returned, and who looked at it since."""

    producer: nn.Module
    tensor: weakref.ref[Tensor]
    readers: list[nn.Module] = field(default_factory=list)
    used_elsewhere: bool = False
    overwritten: bool = False

    def only_reader(self) -> nn.Module | None:
        # Alive after the run: somebody kept it. A module that works in place keeps it under its own name.
        escaped = self.tensor() is not None and not self.overwritten
        return None if self.used_elsewhere or escaped or len(self.readers) != 1 else self.readers[0]


@dataclass
class _Reading:
    """A module's call on a tensor, and whether anyone needed the tensor's memory afterwards."""

    module: nn.Module
    memory: Any  # StorageWeakRef, which no other storage equals as long as it is held
    needed_later: bool

    def was_last(self) -> bool:
        return not self.needed_later and self.memory.expired()


class _Recorder(TorchFunctionMode):
    def __init__(self, modules: Iterable[nn.Module]) -> None:
        super().__init__()
        self._modules = tuple(modules)
        self._shapes: defaultdict[nn.Module, dict[tuple[int, ...], None]] = defaultdict(dict)
        self._channels_last: dict[nn.Module, bool] = {}
        self._marks: defaultdict[nn.Module, list[object]] = defaultdict(list)
        self._sources: defaultdict[nn.Module, list[_Result | None]] = defaultdict(list)
        self._results: list[_Result] = []
        self._live: dict[int, _Result] = {}
        self._inputs: dict[int, tuple[weakref.ref[Tensor], int]] = {}
        self._readings: list[_Reading] = []
        self._latest: dict[int, _Reading] = {}
        self._serial = itertools.count()
        self._running: list[nn.Module] = []

    @contextmanager
    def watching(self) -> Iterator[None]:
        handles = []
        try:
            for module in self._modules:
                handles.append(module.register_forward_pre_hook(self._before, with_kwargs=True))
                handles.append(module.register_forward_hook(self._after))
            yield
        finally:
            for handle in handles:
                handle.remove()

    def finished(self) -> Recording:
        readers: defaultdict[nn.Module, set[nn.Module | None]] = defaultdict(set)
        for result in self._results:
            readers[result.producer].add(result.only_reader())
        reader = {}
        for module, found in readers.items():
            only = next(iter(found)) if len(found) == 1 else None
            if only is not None and all(s is not None and s.producer is module for s in self._sources[only]):
                reader[module] = only
        return Recording(
            {module: tuple(found) for module, found in self._shapes.items()},
            {module: tuple(marks) for module, marks in self._marks.items()},
            reader,
            frozenset(module for module, found in self._channels_last.items() if found),
            frozenset(reading.module for reading in self._readings)
            - frozenset(reading.module for reading in self._readings if not reading.was_last()),
        )

    def _before(self, module: nn.Module, args: tuple[Any, ...], kwargs: dict[str, Any]) -> None:
        x = args[0] if args else next(iter(kwargs.values()), None)
        with torch._C.DisableTorchFunction():  # what is asked of tensors here is not a use of them
            self._given(module, x)

    def _given(self, module: nn.Module, x: object) -> None:
        self._running.append(module)
        if not isinstance(x, Tensor):
            self._sources[module].append(None)
            return
        if x.numel():
            self._shapes[module][tuple(x.shape)] = None
            last = x.dim() == 4 and in_channels_last(x)
            self._channels_last[module] = self._channels_last.get(module, True) and last
        self._marks[module].append(self._mark(x))
        source = self._found(x)
        if source is not None:
            source.readers.append(module)
        self._sources[module].append(source)
        self._needed(x)
        if x.layout == torch.strided:
            storage = x.untyped_storage()
            memory = StorageWeakRef(storage)
            # Only what is all of its memory, every number in a cell of its own, is the module's to write to.
            whole = x.is_contiguous() and x.nbytes == storage.nbytes()
            reading = _Reading(module, memory, needed_later=not whole)
            self._readings.append(reading)
            self._latest[memory.cdata] = reading

    def _after(self, module: nn.Module, args: tuple[Any, ...], output: Any) -> None:
        self._running.pop()
        if isinstance(output, Tensor):
            earlier = self._found(output)
            if earlier is not None:
                earlier.overwritten = True
            result = _Result(module, weakref.ref(output))
            self._results.append(result)
            self._live[id(output)] = result

    def __torch_function__(
        self, func: Callable[..., Any], types: Any, args: tuple[Any, ...] = (), kwargs: Any = None
    ) -> Any:
        kwargs = kwargs or {}
        if not _reads_metadata(func):
            for t in _tensors((*args, *kwargs.values())):
                self._needed(t)
                result = self._found(t)
                if result is not None and not (self._running and self._running[-1] in result.readers):
                    result.used_elsewhere = True
        return func(*args, **kwargs)

    def _found(self, t: Tensor) -> _Result | None:
        result = self._live.get(id(t))
        return result if result is not None and result.tensor() is t else None

    def _needed(self, t: Tensor) -> None:
        reading = self._latest.get(t.untyped_storage()._cdata) if t.layout == torch.strided else None
        if reading is not None and reading.module not in self._running:
            reading.needed_later = True

    def _mark(self, x: Tensor) -> object:
        """The same for the same tensor with the same values, as far as that can be known."""
        known = self._inputs.get(id(x))
        if known is None or known[0]() is not x:
            known = self._inputs[id(x)] = (weakref.ref(x), next(self._serial))
        return known[1], next(self._serial) if x.is_inference() else x._version


def _normal(value: Any) -> Any:
    return value.clone() if isinstance(value, Tensor) and value.is_inference() else value


def _reads_metadata(func: Callable[..., Any]) -> bool:
    name = getattr(func, "__name__", "")
    if name == "__get__":
        return getattr(getattr(func, "__self__", None), "__name__", "") in _ATTRIBUTES
    return name in _METHODS


def tensors_of(value: Any) -> list[Tensor]:
    """Floating-point tensors in a model's result: itself, or in lists, tuples and mappings."""
    return [t for t in _tensors([value]) if t.is_floating_point()]


def _tensors(values: Iterable[Any]) -> Iterator[Tensor]:
    for value in values:
        if isinstance(value, Tensor):
            yield value
        elif isinstance(value, Mapping):
            yield from _tensors(value.values())
        elif isinstance(value, (tuple, list)):
            yield from _tensors(value)


def spread(items: Sequence[T], most: int = 4) -> tuple[T, ...]:
    """At most so many of the items, evenly."""
    if len(items) <= most:
        return tuple(items)
    last = len(items) - 1
    return tuple(items[round(i * last / (most - 1))] for i in range(most))
