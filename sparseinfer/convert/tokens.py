"""How many tokens each layer sees."""

from __future__ import annotations

import operator
from collections import defaultdict
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from functools import partial
from typing import Any

import torch
from torch import Tensor, nn

DEFAULT_TOKENS = (1, 16, 128)
# A layer that was seen with more token counts than this is planned for as many of them, spread evenly.
_MAX_COUNTS = 4


def checked_tokens(tokens: Sequence[int] | None) -> tuple[int, ...]:
    """Distinct counts, ascending; the default for None.

    TypeError or ValueError unless it is a sequence of positive integers.
    """
    if tokens is None:
        return DEFAULT_TOKENS
    try:
        counts = sorted({operator.index(count) for count in tokens})
    except TypeError:
        raise TypeError(f"tokens: expected a sequence of integers, got {tokens!r}") from None
    if not counts or counts[0] < 1:
        raise ValueError(f"tokens: expected positive integers, got {tokens!r}")
    return tuple(counts)


def observed_tokens(
    model: nn.Module, modules: Mapping[str, nn.Module], example_inputs: Any
) -> dict[str, tuple[int, ...]]:
    """fqn -> numbers of tokens that one run of the model brings to the module, ascending, 0 left out.

    `example_inputs` is a tuple or list of positional arguments, a mapping of keyword arguments, or the only
    argument itself. The model runs in eval mode and without gradients; its modes and hooks are put back.
    ValueError, with the model's own error as the cause, if the run fails.
    """
    seen: defaultdict[str, set[int]] = defaultdict(set)
    with _recording(modules, seen), _eval_mode(model), torch.no_grad():
        try:
            _call(model, example_inputs)
        except Exception as error:
            got = f"{type(error).__name__}: {error}"
            raise ValueError(f"example_inputs: expected inputs that the model accepts, got {got}") from error
    return {fqn: _spread(sorted(counts)) for fqn, counts in seen.items()}


def _call(model: nn.Module, example_inputs: Any) -> None:
    if isinstance(example_inputs, Mapping):
        model(**example_inputs)
    elif isinstance(example_inputs, (tuple, list)):
        model(*example_inputs)
    else:
        model(example_inputs)


@contextmanager
def _recording(modules: Mapping[str, nn.Module], seen: Mapping[str, set[int]]) -> Iterator[None]:
    def record(counts: set[int], module: nn.Module, args: tuple[Any, ...], kwargs: dict[str, Any]) -> None:
        x = args[0] if args else kwargs.get("input")
        if isinstance(x, Tensor) and x.ndim and x.numel():
            counts.add(x.numel() // x.shape[-1])

    handles = [
        module.register_forward_pre_hook(partial(record, seen[fqn]), with_kwargs=True)
        for fqn, module in modules.items()
    ]
    try:
        yield
    finally:
        for handle in handles:
            handle.remove()


@contextmanager
def _eval_mode(model: nn.Module) -> Iterator[None]:
    """Eval mode: a run then changes no batch-norm statistics and draws no dropout. Restored by module."""
    training = [module for module in model.modules() if module.training]
    model.eval()
    try:
        yield
    finally:
        for module in training:
            module.training = True


def _spread(counts: Sequence[int]) -> tuple[int, ...]:
    if len(counts) <= _MAX_COUNTS:
        return tuple(counts)
    last = len(counts) - 1
    return tuple(counts[round(i * last / (_MAX_COUNTS - 1))] for i in range(_MAX_COUNTS))
