"""Runs a user's model on inputs of any form in eval mode, and restores the model's state afterwards."""

from __future__ import annotations

import copy
import random
import warnings
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager
from typing import Any, TypeVar

import numpy as np
import torch
from torch import Tensor, nn
from torch.overrides import TorchFunctionMode

T = TypeVar("T")

# What nn.Module keeps of itself; all else in a module is the model's own.
OWN = frozenset(vars(nn.Module()))


def call(model: nn.Module, inputs: Any) -> Any:
    """Calls the model with a tuple or list of arguments, a mapping of keyword arguments, or one argument."""
    if isinstance(inputs, Mapping):
        return model(**inputs)
    if isinstance(inputs, (tuple, list)):
        return model(*inputs)
    return model(inputs)


def run(model: nn.Module, inputs: Any) -> Any:
    """The model's result, in eval mode and without gradients; the run leaves no trace in the model.

    The model gets copies of the inputs, which it may change, for example a key-value cache. Its
    modes, buffers and attributes are restored, and so are the states of torch's, numpy's and Python's random
    number generators: two runs draw the same numbers.
    """
    with for_a_run(model):
        return call(model, copied(inputs, model))


@contextmanager
def for_a_run(model: nn.Module) -> Iterator[None]:
    """A block in which the model may be called, as `run` does it."""
    with evaluating(model), preserved(model), _same_random_numbers(model), torch.no_grad():
        yield


def copied(inputs: Any, model: nn.Module) -> Any:
    """A copy of inputs for the model, which they may hold parts of. Warns where they cannot be copied."""
    try:
        return deep_copy(inputs, _kept(model))
    except Exception as error:
        got = f"{type(error).__name__}: {error} (the model runs on them as they are, more than once)"
        warnings.warn(
            f"example_inputs: expected inputs that can be copied, got {got}", UserWarning, stacklevel=2
        )
        return inputs


@contextmanager
def evaluating(model: nn.Module) -> Iterator[None]:
    """The model in eval mode: batch-norm statistics stay, no dropout. The mode of each module is restored."""
    training = {module: module.training for module in model.modules()}
    model.eval()
    try:
        yield
    finally:
        for module, mode in training.items():
            module.training = mode


@contextmanager
def preserved(model: nn.Module) -> Iterator[None]:
    """Restores the model's buffers, attributes and registries at the end of the block.

    In the block they are copies. An attribute that cannot be copied is not protected, nor are parameters,
    which are too large, and nothing that runs in eval mode writes to them. What our own layers hold is not
    copied: they do not change it, it is as large as weights, and hooks know of it.
    """
    own = [module for module in model.modules() if not isinstance(module, torch.jit.ScriptModule)]
    before = [(module, dict(vars(module)), _registries(module)) for module in own]
    memo = _kept(model)
    for module, attributes, _ in before:
        if type(module).__module__.startswith("sparseinfer.modules."):
            continue
        for name, value in attributes.items():
            if name not in OWN:
                vars(module)[name] = _copied_if_possible(value, memo)
        for name, buffer in module._buffers.items():
            if buffer is not None:
                module._buffers[name] = _copied_if_possible(buffer, memo)
    try:
        yield
    finally:
        for module, attributes, registries in before:
            vars(module).clear()
            vars(module).update(attributes)
            for registry, content in registries:
                registry.clear()
                registry.update(content)


def deep_copy(value: T, memo: dict[int, Any] | None = None) -> T:
    """copy.deepcopy that also copies tensors with a graph and inference tensors, as plain tensors."""
    with _CopiesTensors():
        return copy.deepcopy(value, memo)


class _CopiesTensors(TorchFunctionMode):
    """Copies the tensors that torch does not: results of an autograd graph, and those of inference mode."""

    def __torch_function__(
        self, func: Callable[..., Any], types: Any, args: tuple[Any, ...] = (), kwargs: Any = None
    ) -> Any:
        if func is Tensor.__deepcopy__:
            t, memo = args
            if t.is_inference() or (t.grad_fn is not None and t.requires_grad):
                with torch.inference_mode(False):
                    memo[id(t)] = t.detach().clone()
                return memo[id(t)]
        return func(*args, **(kwargs or {}))


def _copied_if_possible(value: T, memo: dict[int, Any]) -> T:
    # A bare object is a mark that is compared by identity.
    if isinstance(value, (str, int, float, type, type(None))) or type(value) is object:
        return value
    attempt = dict(memo)
    try:
        made = deep_copy(value, attempt)
    except Exception:
        return value
    memo.update(attempt)
    # deepcopy keeps things alive in its memo, under the memo's own address.
    memo.setdefault(id(memo), []).append(attempt)
    return made


def _kept(model: nn.Module) -> dict[int, Any]:
    """For deep_copy: modules and parameters of the model stand for themselves."""
    return {id(held): held for held in (*model.modules(), *model.parameters())}


def _registries(module: nn.Module) -> list[tuple[dict[str, Any], dict[str, Any]]]:
    held: Any = (module._buffers, module._parameters, module._modules)
    return [(registry, dict(registry)) for registry in held]


@contextmanager
def _same_random_numbers(model: nn.Module) -> Iterator[None]:
    python, legacy = random.getstate(), np.random.get_state()
    devices = {t.device.index for t in model.parameters() if t.is_cuda}
    with torch.random.fork_rng(sorted(devices)):
        try:
            yield
        finally:
            random.setstate(python)
            np.random.set_state(legacy)
