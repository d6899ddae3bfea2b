"""Runs a model once and follows the axes of its weights through every operator that torch calls.

The run is a real one, on the example inputs, under a dispatch mode that sees the operators below autograd:
what Python code is around them does not matter. rules.py says what each operator does to axes.
"""

from __future__ import annotations

import dataclasses
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, field
from typing import Any, TypeAlias

import numpy as np
import numpy.typing as npt
import torch
from torch import Tensor, nn
from torch.nn.modules.module import register_module_forward_hook, register_module_forward_pre_hook
from torch.utils._python_dispatch import TorchDispatchMode
from torch.utils._pytree import tree_leaves
from torch.utils.weak import WeakIdKeyDictionary

from sparseinfer._running import call, copied, for_a_run
from sparseinfer.prune.structured import kinds
from sparseinfer.prune.structured.labels import Axis, Labels

# Of a tensor.
Axes: TypeAlias = "list[Axis]"


# Tags of labels: they are heads; something is computed of all of them, such as a norm; they are channels; a
# part of them is taken, by numbers; not only weights of the model sum over them.
HEADS, WIDTH, CHANNELS, SLICED, UNCHECKED = "heads", "width", "channels", "sliced", "unchecked"


@dataclass(frozen=True)
class Work:
    """Multiplications of one product, `fixed` times the lengths of these axes.

    weight  the parameter that is one of its factors; None: a product of activations, as in attention
    """

    fixed: int
    axes: tuple[npt.NDArray[np.int64], ...]
    weight: Tensor | None


@dataclass
class Trace:
    """labels   of all axes
    weights  parameters and buffers, by their first names, and the labels of their axes
    works    the products of the run
    reads    the axes of weights that meet what their product is given: (id of the weight, axis)
    """

    labels: Labels = field(default_factory=Labels)
    weights: dict[str, tuple[Tensor, Axes]] = field(default_factory=dict)
    works: list[Work] = field(default_factory=list)
    reads: set[tuple[int, int]] = field(default_factory=set)


class Tracer(TorchDispatchMode):
    """The axes of each tensor of a run; for rules.py."""

    def __init__(self, trace: Trace, rule_of: Callable[[str], Rule | None], modules: _Running) -> None:
        super().__init__()
        self.trace, self.labels = trace, trace.labels
        self._rule_of, self._modules = rule_of, modules
        self._axes: Any = WeakIdKeyDictionary()
        self._weights: Any = WeakIdKeyDictionary()
        self._names: Any = WeakIdKeyDictionary()

    def __torch_dispatch__(
        self, func: Any, types: Any, args: tuple[Any, ...] = (), kwargs: Any = None
    ) -> Any:
        kwargs = kwargs or {}
        inputs = [self.axes(t) for t in tensors((args, kwargs))]
        out = func(*args, **kwargs)
        name = func.overloadpacket.__name__
        rule = self._rule_of(name)
        if rule is None and torch.Tag.pointwise in func.tags:
            rule = self._rule_of("add")
        if any(axis is not None for axes in inputs for axis in axes):
            if rule is None:
                self._unknown(name, inputs, out)
            else:
                rule(Op(self, name, args, kwargs, out))
        elif rule is not None and not inputs:
            rule(Op(self, name, args, kwargs, out))
        return out

    def axes(self, t: Tensor) -> Axes:
        known: Axes | None = self._axes.get(t)
        return [None] * t.dim() if known is None else known

    def put(self, t: Tensor, axes: Axes) -> None:
        assert len(axes) == t.dim()
        for axis, size in zip(axes, t.shape, strict=True):
            assert axis is None or axis.size == size
        self._axes[t] = list(axes)

    def put_weight(self, name: str, t: Tensor) -> None:
        """A parameter or buffer of the model. A module sees the same tensor under each of its names."""
        if t not in self._axes:
            axes: Axes = [self.labels.fresh(size) if size else None for size in t.shape]
            self.put(t, axes)
            self.trace.weights[name] = (t, axes)
            self._weights[t] = t
            self._names[t] = name

    def weight_of(self, t: Tensor) -> Tensor | None:
        """The parameter of which this is a view."""
        held: Tensor | None = self._weights.get(t)
        return held

    def read(self, weight: Tensor | None, axis: Axis) -> None:
        """A product sums over this axis, of one of the model's weights; of others nothing is checked."""
        axes = self.trace.weights[self._names[weight]][1] if weight is not None else []
        found = [i for i, own in enumerate(axes) if own is axis]
        if weight is not None and found:
            self.trace.reads.add((id(weight), found[0]))
        else:
            self.labels.tag(axis, UNCHECKED)

    def put_view(self, view: Tensor, of: Tensor) -> None:
        if (weight := self._weights.get(of)) is not None:
            self._weights[view] = weight

    @property
    def where(self) -> str:
        return self._modules.innermost

    def counts_heads(self, number: int) -> bool:
        """Whether the module whose forward runs has this number as that of its heads."""
        held = self._modules.innermost_module
        return held is not None and any(vars(held).get(name) == number for name in kinds.HEADS)

    def _unknown(self, name: str, inputs: Sequence[Axes], out: Any) -> None:
        for axes in inputs:
            for axis in axes:
                self.labels.pin(axis, f"{self.where}: pruning does not know what {name} does to it")
        for t in tensors(out):
            self.put(t, [None] * t.dim())


@dataclass(frozen=True)
class Op:
    """One call of an operator."""

    tracer: Tracer
    name: str
    args: tuple[Any, ...]
    kwargs: Mapping[str, Any]
    out: Any

    @property
    def labels(self) -> Labels:
        return self.tracer.labels

    def arg(self, position: int, default: Any = None) -> Any:
        return self.args[position] if position < len(self.args) else default

    def axes(self, t: Tensor) -> Axes:
        return self.tracer.axes(t)

    def put(self, axes: Axes, out: Tensor | None = None) -> None:
        self.tracer.put(self.out if out is None else out, axes)

    def reason(self, text: str) -> str:
        return f"{self.tracer.where}: {text}"


Rule: TypeAlias = "Callable[[Op], None]"


class _Running:
    """Names of the modules whose forwards run."""

    def __init__(self, model: nn.Module) -> None:
        self._names = {module: fqn or type(model).__name__ for fqn, module in model.named_modules()}
        self._stack: list[nn.Module] = []

    @property
    def innermost(self) -> str:
        known = (self._names[module] for module in reversed(self._stack) if module in self._names)
        return next(known, "the model")

    @property
    def innermost_module(self) -> nn.Module | None:
        return self._stack[-1] if self._stack else None

    @contextmanager
    def watched(self) -> Iterator[None]:
        def enter(module: nn.Module, args: Any) -> None:
            self._stack.append(module)

        def leave(module: nn.Module, args: Any, output: Any) -> None:
            self._stack.pop()

        handles = [register_module_forward_pre_hook(enter), register_module_forward_hook(leave)]
        try:
            yield
        finally:
            for handle in handles:
                handle.remove()


def traced(
    model: nn.Module,
    example_inputs: Any,
    rule_of: Callable[[str], Rule | None],
    fixed: Mapping[str, str],
    *,
    outputs_stay: bool,
) -> tuple[Any, Trace]:
    """Run the model and follow its axes; returns its output, too.

    fixed         names of weights whose axes stay, each with the reason
    outputs_stay  whether what the model returns keeps its shape
    """
    trace, running = Trace(), _Running(model)
    tracer = Tracer(trace, rule_of, running)
    fastpath = torch.backends.mha.get_fastpath_enabled()
    # One operator for a whole layer of attention, that says nothing of its axes.
    torch.backends.mha.set_fastpath_enabled(False)
    try:
        with for_a_run(model), running.watched():
            for name, t in named_tensors(model):
                tracer.put_weight(name, t)
            # Of several reasons the first is told.
            for name, reason in fixed.items():
                for axis in trace.weights[name][1] if name in trace.weights else ():
                    trace.labels.pin(axis, reason)
            inputs = copied(example_inputs, model)
            with tracer:
                output = call(model, inputs)
    finally:
        torch.backends.mha.set_fastpath_enabled(fastpath)
    if outputs_stay:
        for t in returned(output):
            for axis in tracer.axes(t):
                trace.labels.pin(axis, "the model returns it")
    return output, trace


def run_watched(model: nn.Module, example_inputs: Any) -> Any:
    """The model's output. RuntimeError that names the innermost module that failed."""
    running = _Running(model)
    with for_a_run(model), running.watched():
        try:
            return call(model, copied(example_inputs, model))
        except Exception as error:
            text = f"{type(error).__name__}: {error}"
            raise RuntimeError(
                f"{running.innermost}: expected it to run with fewer units, got {text} (ignore=... leaves it)"
            ) from error


def shapes_of(output: Any) -> list[tuple[int, ...]]:
    """Of the tensors that the model returns."""
    return [tuple(t.shape) for t in returned(output)]


def named_tensors(model: nn.Module) -> Iterator[tuple[str, Tensor]]:
    """Parameters and buffers, each once, by the first of its names."""
    yield from model.named_parameters()
    yield from model.named_buffers()


def tensors(values: Any) -> list[Tensor]:
    return [leaf for leaf in tree_leaves(values) if isinstance(leaf, Tensor)]


def returned(output: Any) -> list[Tensor]:
    """Tensors that callers of the model rely on: of a model with a head its logits, of others all of them. A
    cache, which is an object of its own, is for the model itself.
    """
    if isinstance(output, Tensor):
        return [output]
    if isinstance(output, Mapping):
        if "logits" in output:
            return returned(output["logits"])
        return [t for value in output.values() for t in returned(value)]
    if isinstance(output, (tuple, list)):
        return [t for value in output for t in returned(value)]
    if dataclasses.is_dataclass(output):
        return returned(vars(output))
    return []
