"""Whoever looks at a layer or an activation of a converted model sees what the dense one shows."""

from __future__ import annotations

import copy
from collections.abc import Callable
from typing import Any

import pytest
import torch
from fusion_helpers import assert_same, chain, converted, ints, square, watch
from torch import Tensor, nn
from torch.nn.modules import module as torch_module

from sparseinfer import SparseLinear

pytestmark = pytest.mark.usefixtures("script")


HOOKS: dict[str, Callable[[Any, Any], Any]] = {
    "forward": lambda m, kept: m.register_forward_hook(
        lambda m, a, y: kept.append((a[0].clone(), y.clone()))
    ),
    "forward pre": lambda m, kept: m.register_forward_pre_hook(lambda m, a: kept.append(a[0].clone())),
    "with kwargs": lambda m, kept: m.register_forward_hook(
        lambda m, a, k, y: kept.append((a[0].clone(), y.clone())), with_kwargs=True
    ),
    "changes": lambda m, kept: m.register_forward_hook(lambda m, a, y: y * 2 + 1),
    "changes before": lambda m, kept: m.register_forward_pre_hook(lambda m, a: (a[0] + 1,)),
}


def tensors_equal(got: Any, wanted: Any) -> bool:
    if isinstance(got, Tensor):
        return got.shape == wanted.shape and torch.equal(got, wanted)
    return len(got) == len(wanted) and all(map(tensors_equal, got, wanted))


class TestHooks:
    @pytest.mark.parametrize("hook", HOOKS)
    @pytest.mark.parametrize("where", ["first", "act"])
    @pytest.mark.parametrize("when", ["before", "after"])
    def test_see_what_the_dense_model_shows(self, where: str, hook: str, when: str) -> None:
        """Integers: a hook sees the same bits."""
        kept: list[list[Any]] = []
        results = []
        dense = nn.Sequential()
        dense.add_module("first", square())
        dense.add_module("act", nn.ReLU())
        dense.add_module("last", square(3))
        dense.eval()
        for fast in (False, True):
            seen: list[Any] = []
            module: Any = copy.deepcopy(dense)
            if when == "before":
                HOOKS[hook](getattr(module, where), seen)
            if fast:
                module = converted(module)
            if when == "after":
                HOOKS[hook](getattr(module, where), seen)
            seen.clear()
            with torch.no_grad():
                results.append(module(ints()))
            kept.append(seen)
        assert tensors_equal(*results)
        assert tensors_equal(*kept)
        assert bool(kept[0]) is ("changes" not in hook)

    def test_removed_again(self, monkeypatch: pytest.MonkeyPatch) -> None:
        fast = converted(chain(nn.ReLU()))
        handle = fast[1].register_forward_hook(lambda *args: None)
        done = watch(monkeypatch)
        fast(ints())
        handle.remove()
        fast(ints())
        assert done == ["F.relu", "relu"]

    @pytest.mark.parametrize(
        "register",
        [torch_module.register_module_forward_hook, torch_module.register_module_forward_pre_hook],
        ids=lambda f: f.__name__,
    )
    def test_of_all_modules(self, register: Any) -> None:
        dense = chain(nn.ReLU())
        fast = converted(dense)
        seen: list[str] = []
        names = {SparseLinear: "Linear"}
        handle = register(lambda module, *args: seen.append(names.get(type(module), type(module).__name__)))
        try:
            dense(ints())
            wanted = list(seen)
            seen.clear()
            fast(ints())
        finally:
            handle.remove()
        assert seen == wanted
        assert seen.count("ReLU") == 1

    def test_of_gradients(self) -> None:
        """Registered, they see the activation called, though there are no gradients for them here."""
        fast = converted(chain(nn.ReLU()))
        for register in (nn.Module.register_full_backward_hook, nn.Module.register_full_backward_pre_hook):
            handle = register(fast[1], lambda *args: None)
            with torch.no_grad():
                assert torch.equal(fast(ints()), chain(nn.ReLU())(ints()))
            handle.remove()

    def test_a_forward_of_the_instance(self) -> None:
        dense = chain(nn.ReLU())
        fast = converted(dense)
        for module in (dense, fast):
            module[1].forward = lambda input: input * 2
        assert_same(fast, dense, ints())

    def test_a_compiled_activation(self) -> None:
        torch._dynamo.reset()
        dense = chain(nn.ReLU())
        fast = converted(dense)
        fast[1].compile(backend="eager")
        assert_same(fast, dense, ints())
