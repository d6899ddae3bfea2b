"""What a model that is run once is given: copies, of whatever a model takes."""

from __future__ import annotations

import copy
import threading
from typing import Any

import pytest
import torch
from torch import Tensor, nn

from sparseinfer._running import call, deep_copy, run


class TestInputs:
    @pytest.mark.parametrize("mode", [torch.no_grad, torch.inference_mode])
    def test_may_be_changed_by_the_model(self, mode: Any) -> None:
        class Cache:
            def __init__(self) -> None:
                self.keys: list[Tensor] = []

        class Caching(nn.Module):
            def forward(self, x: Tensor, cache: Cache, more: list[int], named: dict[str, Any]) -> Tensor:
                cache.keys.append(x.add_(1))
                more.append(1)
                named["x"] = x
                return x

        with mode():
            x, cache, more, named = torch.zeros(3), Cache(), [0], {"a": 1}
            got = run(Caching(), (x, cache, more, named))
            assert x.tolist() == [0, 0, 0]
        assert got.tolist() == [1, 1, 1]
        assert (cache.keys, more, named) == ([], [0], {"a": 1})

    def test_that_are_one_object_stay_one(self) -> None:
        seen: list[bool] = []

        class Both(nn.Module):
            def forward(self, x: Tensor, y: Tensor, view: Tensor) -> Tensor:
                x.add_(1)
                seen.append(x is y)
                seen.append(bool((view == 1).all()))
                return x

        x = torch.zeros(4)
        run(Both(), (x, x, x[1:3]))
        assert seen == [True, True]

    def test_with_a_graph(self) -> None:
        seen: list[Any] = []
        x = torch.ones(3, requires_grad=True) * 2

        class Looks(nn.Module):
            def forward(self, x: Tensor) -> Tensor:
                seen.append((x.grad_fn, x.tolist()))
                return x

        run(Looks(), x)
        assert seen == [(None, [2, 2, 2])]
        assert x.grad_fn is not None

    def test_that_are_parameters_of_the_model(self) -> None:
        class Tied(nn.Module):
            def __init__(self) -> None:
                super().__init__()
                self.fc = nn.Linear(2, 2)

            def forward(self, weight: Tensor) -> Tensor:
                return torch.tensor(weight is self.fc.weight)

        model = Tied()
        assert run(model, model.fc.weight)

    @pytest.mark.parametrize(
        ("inputs", "expected"),
        [((1, 2), "12"), ([1, 2], "12"), ({"b": 2, "a": 1}, "12"), (3, "3None"), ("ab", "abNone")],
    )
    def test_forms(self, inputs: Any, expected: str) -> None:
        class Joins(nn.Module):
            def forward(self, a: Any, b: Any = None) -> str:
                return f"{a}{b}"

        assert call(Joins(), inputs) == run(Joins(), inputs) == expected

    def test_that_cannot_be_copied_are_given_as_they_are(self) -> None:
        """A model may take a lock, or a generator of random numbers, as it takes anything else."""

        class Takes(nn.Module):
            def forward(self, x: Tensor, lock: Any) -> Tensor:
                with lock:
                    return x + 1

        with pytest.warns(UserWarning, match="inputs that can be copied, got TypeError"):
            assert run(Takes(), (torch.zeros(2), threading.Lock())).tolist() == [1, 1]


class TestDeepCopy:
    def test_tensors_that_torch_does_not_copy(self) -> None:
        grown = torch.ones(3, requires_grad=True) * 2
        with torch.inference_mode():
            inferred = torch.ones(3)
        for t in (grown, inferred):
            made = deep_copy([t, t, {"a": t}])
            assert made[0] is made[1] is made[2]["a"] is not t
            assert torch.equal(made[0], t)
            assert made[0].grad_fn is None
            assert not made[0].is_inference()
            assert made[0].data_ptr() != t.data_ptr()

    def test_others_are_as_torch_copies_them(self) -> None:
        leaf, whole = torch.ones(3, requires_grad=True), torch.arange(6.0)
        made = deep_copy([leaf, whole, whole[2:4], nn.Parameter(torch.ones(2))])
        assert made[0].requires_grad
        assert made[2].untyped_storage().data_ptr() == made[1].untyped_storage().data_ptr()
        assert type(made[3]) is nn.Parameter
        wanted = copy.deepcopy([leaf, whole, whole[2:4]])
        assert all(a.stride() == b.stride() for a, b in zip(made, wanted, strict=False))

    def test_leaves_no_mode_behind(self) -> None:
        with pytest.raises(TypeError, match="cannot pickle"):
            deep_copy([threading.Lock()])
        assert torch.overrides._get_current_function_mode_stack() == []
