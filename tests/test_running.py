"""Models that are run once to be looked at: afterwards, they are as if they had not run."""

from __future__ import annotations

import random
import threading
from collections import OrderedDict, deque
from collections.abc import Callable
from typing import Any

import numpy as np
import pytest
import torch
from convert_helpers import K
from fusion_helpers import ints, square
from torch import Tensor, nn

from sparseinfer import convert, convert_
from sparseinfer._running import preserved, run

pytestmark = pytest.mark.usefixtures("script")

Action = Callable[[Any, Tensor], object]


class Thing:
    def __init__(self) -> None:
        self.count, self.items = 0, [1]


class Locked:
    """It cannot be copied."""

    def __init__(self) -> None:
        self.lock, self.count = threading.Lock(), 0


class Net(nn.Module):
    """A test says what its forward does besides."""

    def __init__(self, action: Action) -> None:
        super().__init__()
        self.fc, self.act, self.drop, self.inner = (
            square(),
            nn.ReLU(),
            nn.Dropout(0.5),
            nn.Sequential(square(3)),
        )
        self.register_buffer("steps", torch.zeros(2))
        self.register_buffer("whole", torch.zeros(2, dtype=torch.long))
        self.register_buffer("bytes", torch.zeros(4, dtype=torch.uint8))
        self.register_buffer("flags", torch.zeros(2, dtype=torch.bool), persistent=False)
        self.register_buffer("nothing", None)
        self.number, self.text, self.listed, self.mapped = 0, "a", [1, [2]], {"a": [1]}
        self.ordered, self.queue, self.chosen = OrderedDict(a=1), deque([1, 2]), {1, 2}
        self.array, self.thing, self.locked = np.zeros(3), Thing(), Locked()
        self.tensor, self.grown = torch.zeros(3), torch.ones(3, requires_grad=True) * 2
        self.rng, self.cache = np.random.default_rng(0), {}
        self.alias = self.listed
        self.modules_in_a_list = [self.fc, self.act]
        object.__setattr__(self, "action", action)

    def forward(self, x: Tensor) -> Tensor:
        self.action(self, x)
        return self.inner(self.act(self.fc(x)))


def graph_of_own(net: Any, x: Tensor) -> None:
    with torch.enable_grad():
        net.grown = net.grown * 2 + net.fc.bias.sum()


ACTIONS: dict[str, Action] = {
    "nothing": lambda net, x: None,
    "buffer in place": lambda net, x: net.steps.add_(1),
    "buffer of integers": lambda net, x: net.whole.add_(1),
    "buffer of bytes": lambda net, x: net.bytes.add_(1),
    "buffer of flags": lambda net, x: net.flags.logical_not_(),
    "buffer replaced": lambda net, x: setattr(net, "steps", net.steps + 1),
    "buffer set": lambda net, x: setattr(net, "nothing", torch.ones(1)),
    "buffer removed": lambda net, x: delattr(net, "steps"),
    "buffer added": lambda net, x: net.register_buffer("more", torch.ones(1)),
    "number": lambda net, x: setattr(net, "number", net.number + 1),
    "text": lambda net, x: setattr(net, "text", net.text + "b"),
    "list": lambda net, x: net.listed.append(x),
    "list within a list": lambda net, x: net.listed[1].append(x),
    "dict": lambda net, x: net.mapped.update(b=2),
    "list in a dict": lambda net, x: net.mapped["a"].append(2),
    "ordered": lambda net, x: net.ordered.popitem(),
    "queue": lambda net, x: net.queue.rotate(),
    "set": lambda net, x: net.chosen.clear(),
    "array": lambda net, x: net.array.__iadd__(1),
    "object": lambda net, x: setattr(net.thing, "count", net.thing.count + 1),
    "list in an object": lambda net, x: net.thing.items.append(3),
    "what cannot be copied is replaced": lambda net, x: setattr(net, "locked", None),
    "tensor": lambda net, x: net.tensor.add_(1),
    "tensor replaced": lambda net, x: setattr(net, "tensor", x),
    "tensor with a graph": graph_of_own,
    "attribute added": lambda net, x: setattr(net, "last", x),
    "attribute removed": lambda net, x: delattr(net, "number"),
    "module added": lambda net, x: net.add_module("more", nn.Linear(2, 2)),
    "module replaced": lambda net, x: setattr(net, "act", nn.GELU()),
    "module removed": lambda net, x: delattr(net, "drop"),
    "parameter added": lambda net, x: net.register_parameter("more", nn.Parameter(torch.ones(1))),
    "parameter replaced": lambda net, x: setattr(net.fc, "bias", nn.Parameter(net.fc.bias + 0)),
    "in a module within": lambda net, x: setattr(net.inner[0], "counted", 1),
    "training": lambda net, x: net.train(),
    "training of one": lambda net, x: net.drop.train(),
    "generator of its own": lambda net, x: net.rng.random(),
    "random numbers of torch": lambda net, x: torch.rand(3),
    "random numbers of numpy": lambda net, x: np.random.rand(3),
    "random numbers of Python": lambda net, x: random.random(),
    "a seed": lambda net, x: (torch.manual_seed(5), np.random.seed(5), random.seed(5)),
    "a cache by shape": lambda net, x: net.cache.setdefault(tuple(x.shape), x.clone()),
}


def state_of(value: Any, seen: dict[int, int] | None = None) -> Any:
    """All that can be known of a value, for ==; objects that were met before are what they were then."""
    seen = {} if seen is None else seen
    plain = int, float, str, bytes, type(None), type
    if isinstance(value, plain) or (callable(value) and not isinstance(value, nn.Module)):
        return value
    if id(value) in seen:
        return "again", seen[id(value)]
    seen[id(value)] = len(seen)
    if isinstance(value, Tensor):
        return "tensor", value.dtype, value.detach().tolist(), value.requires_grad, value.grad_fn is not None
    if isinstance(value, np.ndarray):
        return "array", value.tolist()
    if isinstance(value, np.random.Generator):
        return "generator", str(value.bit_generator.state)
    if isinstance(value, dict):
        return type(value), [(k, state_of(v, seen)) for k, v in value.items()]
    if isinstance(value, (list, tuple, deque)):
        return type(value), [state_of(v, seen) for v in value]
    if isinstance(value, (set, frozenset)):
        return type(value), sorted(map(str, value))
    if type(value).__name__ == "lock":
        return "lock"
    return type(value), state_of(vars(value), seen)


def random_numbers() -> Any:
    return torch.get_rng_state().tolist(), str(np.random.get_state()), random.getstate()


def everything(net: nn.Module) -> Any:
    return state_of(net), random_numbers()


def identities(net: nn.Module) -> dict[str, int]:
    """Of every attribute, buffer, parameter and module: which object it is."""
    found = {}
    for name, module in net.named_modules():
        for holder in (vars(module), module._buffers, module._parameters, module._modules):
            found.update({f"{name}.{key}": id(value) for key, value in holder.items()})
    return found


class TestNoTrace:
    @pytest.mark.parametrize("action", ACTIONS)
    @pytest.mark.parametrize("training", [False, True])
    def test_of_one_run(self, action: str, training: bool) -> None:
        net = Net(ACTIONS[action]).train(training)
        net.act.eval()
        before, objects = everything(net), identities(net)
        run(net, ints())
        assert everything(net) == before
        assert identities(net) == objects
        # A run that leaves no trace gives the same again.
        assert torch.equal(run(net, ints()), run(net, ints()))

    @pytest.mark.parametrize("action", [name for name in ACTIONS if "random" in name or "generator" in name])
    def test_two_runs_draw_the_same(self, action: str) -> None:
        drawn: list[Any] = []
        net = Net(lambda net, x: drawn.append(ACTIONS[action](net, x)))
        for _ in range(2):
            run(net, ints())
        assert np.array_equal(drawn[0], drawn[1])

    @pytest.mark.parametrize("action", ACTIONS)
    @pytest.mark.parametrize("function", [convert, convert_])
    def test_of_a_conversion(self, action: str, function: Any) -> None:
        """Neither in the model nor in the one that comes of it."""
        net, as_made = Net(ACTIONS[action]).eval(), Net(ACTIONS[action])
        net.locked = None  # convert copies the model
        with torch.no_grad():
            before = everything(net)
            fast = function(net, example_inputs=ints())
            assert random_numbers() == before[1]
            if function is convert:
                assert state_of(net) == before[0]
        for name in ("steps", "whole", "bytes", "flags", "tensor", "grown", "array"):
            assert getattr(fast, name).tolist() == getattr(as_made, name).tolist(), name
        for name in ("number", "text", "listed", "mapped", "ordered", "queue", "chosen", "cache", "nothing"):
            assert getattr(fast, name) == getattr(as_made, name), name
        assert (fast.thing.count, fast.thing.items) == (0, [1])
        assert fast.alias is fast.listed
        assert not {"more", "last"} & set(dir(fast))
        assert not hasattr(fast.inner[0], "counted")
        assert set(fast._modules) == {"fc", "act", "drop", "inner"}
        assert not any(module.training for module in fast.modules())

    def test_after_an_error(self) -> None:
        def fails(net: Any, x: Tensor) -> None:
            net.steps.add_(1)
            net.listed.append(3)
            net.more = nn.Linear(2, 2)
            torch.rand(1)
            raise RuntimeError("on purpose")

        net = Net(fails).train()
        before, objects = everything(net), identities(net)
        with pytest.raises(RuntimeError, match="on purpose"):
            run(net, ints())
        assert everything(net) == before
        assert identities(net) == objects
        net.locked = None
        with pytest.raises(ValueError, match="got RuntimeError: on purpose"):
            convert(net.eval(), example_inputs=ints())
        assert net.listed == [1, [2]]

    def test_what_cannot_be_copied_is_left_to_the_run(self) -> None:
        def counts(net: Any, x: Tensor) -> None:
            net.locked.count += 1

        net = Net(counts)
        locked = net.locked
        run(net, ints())
        assert net.locked is locked
        assert locked.count == 1

    def test_objects_that_know_each_other_do_meanwhile(self) -> None:
        kept: list[bool] = []

        def looks(net: Any, x: Tensor) -> None:
            kept.append(net.alias is net.listed)
            kept.append(net.modules_in_a_list[0] is net.fc)
            kept.append(net.mapped["module"] is net)
            kept.append(net.mapped["weight"] is net.fc.weight)
            kept.append(net.mapped["buffer"] is net.steps)

        net = Net(looks)
        net.mapped |= {"module": net, "weight": net.fc.weight, "buffer": net.steps}
        run(net, ints())
        assert kept == [True] * 5
        assert net.mapped["buffer"] is net.steps

    def test_a_scripted_module_within(self) -> None:
        class Holder(nn.Module):
            def __init__(self) -> None:
                super().__init__()
                with pytest.warns(DeprecationWarning, match="torch.jit"):
                    self.scripted = torch.jit.trace(nn.Linear(K, K), torch.ones(1, K))

            def forward(self, x: Tensor) -> Tensor:
                return self.scripted(x)

        holder = Holder().eval()
        with torch.no_grad():
            wanted = holder(ints())
            assert torch.equal(run(holder, ints()), wanted)
            assert torch.equal(holder(ints()), wanted)

    def test_a_parameter_that_is_a_buffer_too(self) -> None:
        net = Net(lambda net, x: None)
        net.register_buffer("same", net.fc.weight)
        net.inner[0].weight = net.fc.weight
        run(net, ints())
        assert net.same is net.fc.weight is net.inner[0].weight

    def test_of_many_attributes(self) -> None:
        """Each is a copy, though copies of earlier ones have come and gone."""
        seen: list[bool] = []
        things = {f"thing_{i}": Thing() for i in range(300)}

        def looks(net: Any, x: Tensor) -> None:
            for name, thing in things.items():
                mine = getattr(net, name)
                seen.append(mine is not thing and vars(mine) == {"count": 0, "items": [1]})

        net = Net(looks)
        for name, thing in things.items():
            setattr(net, name, thing)
        run(net, ints())
        assert seen == [True] * 300
        assert all(getattr(net, name) is thing for name, thing in things.items())


def test_preserved_around_what_else_runs() -> None:
    net = Net(lambda net, x: None)
    before = everything(net)
    with preserved(net):
        net.steps.add_(1)
        net.listed.append(1)
        net.act = nn.GELU()
        net.more = 1
    assert everything(net) == before
