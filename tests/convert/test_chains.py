"""Calls in a forward that go to `chain`: results are right however they are written; the plain are joined."""

from __future__ import annotations

import copy
import functools
import traceback
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import pytest
import torch
from chain_forms import JOINED, Base, adjacent
from chain_forms_other import OTHERS
from convert_helpers import K
from fusion_helpers import assert_same, converted, ints, square, watch
from torch import Tensor, nn
from torch.nn import functional as F

from sparseinfer import convert_

pytestmark = pytest.mark.usefixtures("script")


def net(forward: Any) -> Any:
    return type("Net", (Base,), {"forward": forward})().eval()


@pytest.mark.parametrize(
    ("forward", "wanted"), {**JOINED, **OTHERS}.items(), ids=lambda value: getattr(value, "__name__", "")
)
def test_forms(forward: Any, wanted: list[str] | None, monkeypatch: pytest.MonkeyPatch) -> None:
    dense = net(forward)
    fast = converted(dense)
    for m in (1, 6):
        # A state that the forward has is that of a first call.
        assert_same(copy.deepcopy(fast), copy.deepcopy(dense), ints(m))
    done = watch(monkeypatch, functions=False)
    with torch.no_grad():
        fast(ints())
    if wanted is not None:
        assert done == wanted


@contextmanager
def catching(kept: list[Any]) -> Iterator[None]:
    try:
        yield
    except RuntimeError as error:
        kept.append(error)


class Caught(Base):
    """Goes on with what there is where a step fails."""

    def forward(self, x: Tensor) -> Tensor:
        kept: list[Any] = []
        y = x
        with catching(kept):
            y = self.fc(x)
            y = self.act(y)
        return y  # noqa: RET504


def test_a_step_that_fails_leaves_the_one_before() -> None:
    dense = Caught().eval()
    fast = converted(dense)

    def fails(*args: object) -> None:
        raise RuntimeError("a hook's own")

    for module in (dense, fast):
        module.act.register_forward_hook(fails)
    x = ints()
    with torch.no_grad():
        assert torch.equal(dense(x), dense.fc(x))
        assert torch.equal(fast(x), dense.fc(x))


class Falls(Base):
    """Its last call fails for a longer input."""

    def forward(self, x: Tensor) -> Tensor:
        y = self.fc(x)
        y = self.act(y)
        return y if len(x) < 6 else self.other(y, y)


def test_errors_point_to_their_line() -> None:
    dense = Falls().eval()
    lines = []
    for module in (dense, converted(dense)):
        with torch.no_grad(), pytest.raises(TypeError) as e:
            module(ints(6))
        frames = traceback.extract_tb(e.value.__traceback__)
        lines.append(
            [(f.lineno, f.line) for f in frames if f.name == "forward" and Path(f.filename) == Path(__file__)]
        )
    assert lines[0] == lines[1]
    assert lines[0][-1][1] == "return y if len(x) < 6 else self.other(y, y)"


def test_errors_in_a_chain_point_to_one_of_its_lines() -> None:
    fast = converted(Falls())
    with torch.no_grad(), pytest.raises(ValueError, match="in_features") as e:
        fast(torch.ones(3, K + 1))
    frames = [f for f in traceback.extract_tb(e.value.__traceback__) if Path(f.filename) == Path(__file__)]
    assert frames[-1].line == "y = self.act(y)" or frames[-1].line == "y = self.fc(x)"


class Changing(Base):
    def forward(self, x: Tensor) -> Tensor:
        return self.act(self.fc(x))


@pytest.mark.parametrize(
    "change",
    [
        lambda m: setattr(m, "act", nn.Tanh()),
        lambda m: setattr(m, "act", nn.Identity()),
        lambda m: setattr(m, "act", nn.Sequential(nn.SiLU(), nn.SiLU())),
        lambda m: setattr(m, "act", square(9)),
        lambda m: setattr(m, "fc", nn.Identity()),
        lambda m: setattr(m, "fc", square(9)),
        lambda m: (delattr(m, "act"), setattr(m, "act", torch.tanh)),
        lambda m: (delattr(m, "fc"), setattr(m, "fc", torch.tanh)),
        lambda m: (delattr(m, "fc"), setattr(m, "fc", functools.partial(F.silu))),
        lambda m: setattr(m, "forward", lambda x: x),
        lambda m: setattr(m.act, "forward", lambda input: -input),
        lambda m: setattr(m, "fc", nn.Sequential(m.fc, nn.ReLU())),
    ],
    ids=range(12),
)
def test_modules_that_change_after_conversion(change: Any) -> None:
    dense = Changing().eval()
    fast = converted(dense)
    for module in (fast, dense):
        change(module)
    assert_same(fast, dense, ints())


def test_a_subclass_of_tensor_that_has_its_own_activation() -> None:
    class Odd(Tensor):
        """Its relu is another function."""

        @classmethod
        def __torch_function__(cls, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
            if func is torch.nn.functional.silu:
                return args[0] * 3
            return super().__torch_function__(func, types, args, kwargs or {})

    dense = Changing().eval()
    fast = converted(dense)
    x = ints().as_subclass(Odd)
    with torch.no_grad():
        assert torch.equal(dense(x), dense.fc(x) * 3)
        assert torch.equal(fast(x), dense(x))
        assert type(fast(x)) is type(dense(x))


def test_in_place() -> None:
    dense = net(adjacent)
    fast = convert_(copy.deepcopy(dense), example_inputs=torch.ones(3, K))
    assert_same(fast, dense, ints())
