"""ConvertOptions: the options of `convert`, their defaults and the checks of their values."""

from __future__ import annotations

import inspect
import math
import operator
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, fields, replace
from typing import Any, NamedTuple, TypeAlias, TypedDict, TypeVar

import torch

from sparseinfer import ops
from sparseinfer.formats.dtypes import DTYPE_NAMES

# Named values of `memory`, as `ConvertOptions.memory_limit` gives them.
SPEED = math.inf
COMPACT = 0.0
_NAMED_MEMORY = {"speed": SPEED, "compact": COMPACT}

# "speed", "compact", or how many times the dense weight's bytes the packings of a layer may take.
Memory: TypeAlias = "str | float"

# Weights that are rounded are rounded to fewer bits than float32 has.
_WEIGHTS = (None, *(dtype for dtype in DTYPE_NAMES if dtype != torch.float32))

# A kernel whose storage has a dtype's own name multiplies activations of that dtype, too.
_STORAGES = frozenset(kernel.storage for kernel in ops.kernels())
_ACTIVATIONS = (None, *(dtype for dtype in _WEIGHTS if dtype is not None and DTYPE_NAMES[dtype] in _STORAGES))

F = TypeVar("F", bound=Callable[..., Any])


class Rounding(NamedTuple):
    """What a layer may be computed in: dtypes of sparse weights and of what kernels read of x; None: its own.

    Where both may be the same shorter dtype, a dense product may have it, too.
    """

    weights: torch.dtype | None = None
    activations: torch.dtype | None = None


KEEP = "keep"
_BF16 = (Rounding(torch.bfloat16), Rounding(torch.bfloat16, torch.bfloat16))
# What each word allows; which of it a layer gets is measured. "keep": what `weights` and `activations` say.
PRECISIONS: Mapping[str, tuple[Rounding, ...]] = {
    KEEP: (),
    "bf16": (Rounding(), *_BF16),
    "int8": (Rounding(), *_BF16, Rounding(torch.int8), Rounding(torch.int8, torch.uint8)),
    "int8-weights": (Rounding(), Rounding(torch.bfloat16), Rounding(torch.int8)),
}


class TimingKeywords(TypedDict, total=False):
    """The keywords for computing and timing a layer, for type checkers; see ConvertOptions."""

    precision: str
    weights: torch.dtype | None
    activations: torch.dtype | None
    memory: Memory
    measure: bool


class ConvertKeywords(TimingKeywords, total=False):
    """All keywords of ConvertOptions, for type checkers."""

    tokens: Sequence[int] | None
    budget_s: float
    fuse: bool
    fold_batch_norm: bool
    regions: bool


@dataclass(frozen=True, kw_only=True)
class ConvertOptions:
    """How to convert a model; the docstring of `convert` explains each option.

    Checked on construction and by dataclasses.replace. `tokens` becomes a tuple of distinct counts,
    ascending. TypeError or ValueError that names the option, the expected and the given value.
    """

    tokens: Sequence[int] | None = None
    precision: str = KEEP
    weights: torch.dtype | None = None
    activations: torch.dtype | None = None
    memory: Memory = 1.0
    measure: bool = True
    budget_s: float = 60.0
    fuse: bool = True
    fold_batch_norm: bool = False
    regions: bool = True

    def __post_init__(self) -> None:
        _check_one_of("weights", self.weights, _WEIGHTS)
        _check_one_of("activations", self.activations, _ACTIVATIONS)
        if self.activations is not None and self.weights != self.activations:
            name = str(self.activations).removeprefix("torch.")
            hint = f"kernels multiply {name} activations by weights of the same dtype"
            got = f"expected {self.activations} with these activations, got {self.weights} ({hint})"
            raise ValueError(f"weights: {got}")
        _check_precision(self.precision, {"weights": self.weights, "activations": self.activations})
        if not isinstance(self.budget_s, (int, float)) or not self.budget_s >= 0:
            raise ValueError(f"budget_s: expected a number of seconds from 0, got {self.budget_s!r}")
        if self.tokens is not None:
            object.__setattr__(self, "tokens", _checked_tokens(self.tokens))
        _check_memory(self.memory)

    @property
    def memory_limit(self) -> float:
        """`memory` as a number: SPEED means no limit, COMPACT the smallest packing."""
        return _NAMED_MEMORY[self.memory] if isinstance(self.memory, str) else float(self.memory)

    @property
    def roundings(self) -> tuple[Rounding, ...]:
        """What a layer of a float32 model may be computed in, the least rounded first."""
        return PRECISIONS[self.precision] or (Rounding(self.weights, self.activations),)

    @property
    def permitted(self) -> frozenset[torch.dtype]:
        """All dtypes that something may be rounded to."""
        return frozenset(dtype for rounding in self.roundings for dtype in rounding if dtype is not None)

    def unfused(self) -> ConvertOptions:
        """The same, with every layer by itself."""
        return replace(self, fuse=False, fold_batch_norm=False, regions=False)

    def unfolded(self) -> ConvertOptions:
        """The same, without folding batch norms."""
        return replace(self, fold_batch_norm=False)

    def exact(self) -> ConvertOptions:
        """The same options without rounding."""
        return replace(self, precision=KEEP, weights=None, activations=None)


def options_of(
    function: str, options: ConvertOptions | None, keywords: Mapping[str, Any], names: type[Any]
) -> ConvertOptions:
    """The options passed to the function named `function`: as an object, or as keywords of these names.

    TypeError for an unknown keyword, in Python's own words, and for both forms at once.
    """
    for name in keywords:
        if name not in _names(names):
            raise TypeError(f"{function}() got an unexpected keyword argument {name!r}")
    if options is None:
        return ConvertOptions(**keywords)
    if not isinstance(options, ConvertOptions):
        raise TypeError(f"options: expected ConvertOptions, got {type(options).__name__}")
    if keywords:
        raise TypeError(f"options: expected either options or keywords, got both ({', '.join(keywords)})")
    return options


def shows_keywords(names: type[Any]) -> Callable[[F], F]:
    """Decorator for a function with such keywords: help() lists them with the defaults of ConvertOptions."""

    def shown(function: F) -> F:
        signature = inspect.signature(function)
        listed = [p for p in signature.parameters.values() if p.kind is not p.VAR_KEYWORD]
        taken = {parameter.name for parameter in listed}
        for option in fields(ConvertOptions):
            if option.name in _names(names) and option.name not in taken:
                kind = inspect.Parameter.KEYWORD_ONLY
                listed.append(
                    inspect.Parameter(option.name, kind, default=option.default, annotation=option.type)
                )
        target: Any = function
        target.__signature__ = signature.replace(parameters=listed)
        return function

    return shown


def _names(keywords: type[Any]) -> frozenset[str]:
    return frozenset(keywords.__annotations__)


def _check_one_of(name: str, dtype: object, expected: Sequence[torch.dtype | None]) -> None:
    if dtype not in expected:
        *others, last = map(str, expected)
        raise ValueError(f"{name}: expected {', '.join(others)} or {last}, got {dtype!r}")


def _check_precision(precision: object, dtypes: Mapping[str, torch.dtype | None]) -> None:
    if not isinstance(precision, str) or precision not in PRECISIONS:
        expected = " or ".join(map(repr, PRECISIONS))
        raise ValueError(f"precision: expected {expected}, got {precision!r}")
    for name, dtype in dtypes.items():
        if dtype is not None and precision != KEEP:
            hint = f"precision={precision!r} says what may be rounded, {name} what is"
            raise ValueError(f"{name}: expected None, got {dtype} ({hint})")


def _checked_tokens(tokens: Sequence[int]) -> tuple[int, ...]:
    """Distinct counts, ascending. TypeError or ValueError unless it is a sequence of positive integers."""
    try:
        counts = sorted({operator.index(count) for count in tokens})
    except TypeError:
        raise TypeError(f"tokens: expected a sequence of integers, got {tokens!r}") from None
    if not counts or counts[0] < 1:
        raise ValueError(f"tokens: expected positive integers, got {tokens!r}")
    return tuple(counts)


def _check_memory(memory: Memory) -> None:
    if isinstance(memory, str) and memory in _NAMED_MEMORY:
        return
    if isinstance(memory, (bool, str)) or not isinstance(memory, (int, float)) or not memory > 0:
        raise ValueError(f"memory: expected 'speed', 'compact' or a positive number, got {memory!r}")
