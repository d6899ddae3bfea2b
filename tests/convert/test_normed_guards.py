"""What may change later, or differ at a call, so that a joined residual sum and norm are computed apart."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import pytest
import torch
from convert_helpers import K
from normed_helpers import Layer, M, Out, assert_close, fast_of, given, watched_blocks
from torch import Tensor, nn
from torch.nn import functional as F

from sparseinfer import convert


@pytest.fixture
def blocks(monkeypatch: pytest.MonkeyPatch) -> list[tuple[int, bool]]:
    return watched_blocks(monkeypatch)


def hook(*_: object) -> None:
    pass


class Norm(nn.LayerNorm):
    def forward(self, input: Tensor) -> Tensor:
        return super().forward(input) + 1.0


def changed_norm(fast: Any) -> None:
    fast.norm.__class__ = Norm


def replaced_dropout(fast: Any) -> None:
    fast.dropout = nn.AlphaDropout(0.5).eval()


def narrow_norm(fast: Any) -> None:
    """Of the last dimension alone, with weights of two."""
    fast.norm = nn.LayerNorm([M, K]).eval()


GUARDS: dict[str, Callable[[Any], Any]] = {
    "a hook on the layer": lambda fast: fast.dense.register_forward_hook(hook),
    "a hook before the norm": lambda fast: fast.norm.register_forward_pre_hook(hook),
    "a hook on dropout": lambda fast: fast.dropout.register_forward_hook(hook),
    "a forward of its own": lambda fast: setattr(fast.norm, "forward", torch.relu),
    "another class": changed_norm,
    "another dropout": replaced_dropout,
    "another shape": narrow_norm,
}


@pytest.mark.parametrize("change", GUARDS.values(), ids=GUARDS)
def test_what_changed_later_is_called(change: Callable[[Any], Any], blocks: list[Any]) -> None:
    dense = Out().eval()
    fast = fast_of(dense)
    for model in (dense, fast):
        change(model)
    blocks.clear()
    assert_close(fast, dense, *given())
    assert blocks == []


@pytest.mark.parametrize("change", GUARDS.values(), ids=GUARDS)
def test_in_the_second_of_two_modules(change: Callable[[Any], Any], blocks: list[Any]) -> None:
    dense = Layer().eval()
    fast = fast_of(dense)
    for model in (dense, fast):
        change(model.out)
    blocks.clear()
    assert_close(fast, dense, *given())
    assert (2, True) not in blocks


def test_state_of_the_norm_is_that_of_now(blocks: list[Any]) -> None:
    dense = Out().eval()
    fast = fast_of(dense)
    for model in (dense, fast):
        with torch.no_grad():
            model.norm.weight.mul_(3.0)
            model.norm.eps = 0.5
    blocks.clear()
    assert_close(fast, dense, *given())
    assert blocks == [(1, True)]
    for model in (dense, fast):
        model.norm = nn.LayerNorm(K, elementwise_affine=False)
    assert_close(fast, dense, *given())
    assert blocks == [(1, True)] * 2


def test_hooks_on_the_modules_of_a_pair_are_called(blocks: list[Any]) -> None:
    fast = fast_of(Layer())
    for module in (fast.up, fast.out):
        seen: list[Any] = []
        handle = module.register_forward_hook(lambda *args, seen=seen: seen.append(args))
        blocks.clear()
        with torch.no_grad():
            fast(*given())
        handle.remove()
        assert len(seen) == 1
        assert (2, True) not in blocks


def test_dropout_in_training(blocks: list[Any]) -> None:
    fast = fast_of(Out())
    fast.dropout.train()
    blocks.clear()
    x, y = given()
    with torch.no_grad():
        torch.manual_seed(1)
        got = fast(x, y)
        torch.manual_seed(1)
        expected = fast.norm(F.dropout(fast.dense(x), 0.5, True) + y)
    assert torch.equal(got, expected)
    assert blocks == []


RESIDUALS: dict[str, Callable[[Tensor], Tensor]] = {
    "one row": lambda y: y[:1],
    "a vector": lambda y: y[0],
    "a column": lambda y: y[:, :1],
    "more dimensions": lambda y: y[None],
    "integers": lambda y: y.int(),
    "strides": lambda y: torch.stack([y, y], -1)[..., 0],
    "expanded": lambda y: y[:1].expand(M, K),
    "transposed": lambda y: torch.randn(K, M).T,
}


@pytest.mark.parametrize("change", RESIDUALS.values(), ids=RESIDUALS)
def test_residuals_that_are_added_by_torch(change: Callable[[Tensor], Tensor], blocks: list[Any]) -> None:
    fast = fast_of(Out())
    x, y = given()
    y = change(y)
    blocks.clear()
    with torch.no_grad():
        got, expected = fast(x, y), fast.norm(fast.dense(x) + y)
    assert got.dtype == expected.dtype
    assert torch.equal(got, expected)
    assert blocks == []


def test_a_residual_that_does_not_fit() -> None:
    fast = fast_of(Out())
    x, y = given()
    with torch.no_grad(), pytest.raises(RuntimeError, match="must match the size of tensor"):
        fast(x, y[:2])


def test_gradients_reach_the_norm_and_the_residual(blocks: list[Any]) -> None:
    fast = fast_of(Out())
    x, y = given()
    blocks.clear()
    fast(x, y).sum().backward()
    assert fast.norm.weight.grad is not None
    y.requires_grad_()
    fast.norm.requires_grad_(False)
    fast(x, y).sum().backward()
    assert y.grad is not None
    assert blocks == []
    with torch.no_grad():
        fast(x, y)
    assert blocks == [(1, True)]


def test_a_residual_that_is_the_input(blocks: list[Any]) -> None:
    dense = Out()
    fast = fast_of(dense)
    x = torch.randn(130, K)
    blocks.clear()
    kept = x.clone()
    assert_close(fast, dense, x, x)
    assert torch.equal(x, kept)
    assert blocks == [(1, True)]


def test_compile_and_export_see_the_original_calls() -> None:
    dense = Layer().eval()
    fast = fast_of(dense)
    x = given()
    with torch.no_grad():
        program = torch.export.export(fast, x)
        expected = fast(*x)
        assert torch.allclose(program.module()(*x), expected, atol=1e-5)
        compiled = torch.compile(fast, backend="eager", fullgraph=True)
        assert torch.allclose(compiled(*x), expected, atol=1e-5)


def test_a_vmapped_call_and_a_profiled_one(blocks: list[Any]) -> None:
    fast = fast_of(Layer())
    x, y = given()
    with torch.no_grad():
        expected = fast(x, y)
        blocks.clear()
        mapped = torch.func.vmap(lambda a, b: fast(a[None], b[None])[0])(x, y)
        assert torch.allclose(mapped, expected, atol=1e-4)
        with torch.profiler.profile(activities=[torch.profiler.ProfilerActivity.CPU]):
            assert torch.allclose(fast(x, y), expected, atol=1e-4)
    assert blocks == []


def test_without_fuse_nothing_is_joined(blocks: list[Any]) -> None:
    dense = Layer().eval()
    fast = convert(dense, example_inputs=given(), memory="compact", measure=False, fuse=False)
    blocks.clear()
    assert_close(fast, dense, *given())
    assert blocks == []
    assert type(fast) is Layer
