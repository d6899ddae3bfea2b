"""What one watched run of a model tells: shapes, inputs that several layers share, who reads a result."""

from __future__ import annotations

import pytest
import torch
from torch import Tensor, nn
from torch.nn import functional as F

from sparseinfer.convert.recording import Recording, record, spread


class Net(nn.Module):
    """Two Linears and an activation; a test says what happens to the input."""

    def __init__(self, run: object = None) -> None:
        super().__init__()
        self.a, self.b, self.act = nn.Linear(4, 4), nn.Linear(4, 4), nn.ReLU()
        self.drop, self.inplace = nn.Dropout(0.5), nn.ReLU(inplace=True)
        self.run = run

    def forward(self, x: Tensor) -> object:
        return self.run(self, x)


def recorded(run: object, x: object = None, *, train: bool = False) -> tuple[Net, Recording]:
    net = Net(run).train(train)
    return net, record(net, [net.a, net.b], torch.ones(3, 4) if x is None else x)


def of_a(run: object) -> object:
    """`run` is also given the result of `a`."""
    return lambda net, x: run(net, x, net.a(x))


class TestShapes:
    def test_each_once_in_order_of_the_calls(self) -> None:
        def run(net: Net, x: Tensor) -> Tensor:
            return net.a(x) + net.a(x[:1]) + net.a(x) + net.b(input=x[0])

        net, seen = recorded(run)
        assert seen.shapes[net.a] == ((3, 4), (1, 4))
        assert seen.shapes[net.b] == ((4,),)

    def test_empty_inputs_and_unused_modules_have_none(self) -> None:
        net, seen = recorded(lambda net, x: net.a(x[:0]))
        assert not seen.shapes.get(net.a)
        assert not seen.shapes.get(net.b)

    @pytest.mark.parametrize(
        ("inputs", "rows"),
        [((torch.ones(2, 4),), 2), ([torch.ones(3, 4)], 3), ({"x": torch.ones(5, 4)}, 5)],
    )
    def test_forms_of_example_inputs(self, inputs: object, rows: int) -> None:
        net, seen = recorded(lambda net, x: net.a(x), inputs)
        assert seen.shapes[net.a] == ((rows, 4),)

    @pytest.mark.parametrize(
        ("counts", "expected"),
        [((), ()), ((7,), (7,)), (tuple(range(1, 41)), (1, 14, 27, 40)), ((1, 2, 3, 4), (1, 2, 3, 4))],
    )
    def test_spread(self, counts: tuple[int, ...], expected: tuple[int, ...]) -> None:
        assert spread(counts) == expected


class TestShared:
    @pytest.mark.parametrize(
        "run",
        [
            lambda net, x: net.a(x) + net.b(x),
            lambda net, x: net.b(net.drop(x)) + net.a(x),
            lambda net, x: net.a(input=x) + net.b(x),
        ],
        ids=["both", "dropout in eval mode gives its input back", "by keyword"],
    )
    def test_the_same_tensor(self, run: object) -> None:
        net, seen = recorded(run)
        assert seen.shared[net.a] == seen.shared[net.b]

    def test_the_same_tensors_at_every_call(self) -> None:
        def run(net: Net, x: Tensor) -> Tensor:
            for _ in range(3):
                x = net.a(x) + net.b(x)
            return x

        net, seen = recorded(run)
        assert seen.shared[net.a] == seen.shared[net.b]
        assert len(set(seen.shared[net.a])) == 3

    @pytest.mark.parametrize(
        "run",
        [
            lambda net, x: net.a(x) + net.b(x.clone()),
            lambda net, x: net.a(x) + net.b(x.view(3, 4)),
            lambda net, x: net.a(x) + net.b(x.detach()),
            lambda net, x: net.a(x) + net.b(x.add_(1)),
            lambda net, x: net.a(x) + net.b(net.inplace(x)),
            lambda net, x: (net.a(x), x[0].zero_(), net.b(x)),
            lambda net, x: net.a(x) + net.b(x) + net.b(x + 1),
            lambda net, x: net.a(x) + net.b(net.a(x)),
            lambda net, x: (net.a(x + 1) is None, net.b(x + 2)),
        ],
        ids=[
            "copy",
            "view",
            "alias",
            "written",
            "written by a module",
            "written through a view",
            "one more call",
            "chained",
            "a dead tensor's place",
        ],
    )
    def test_other_tensors_and_other_values(self, run: object) -> None:
        net, seen = recorded(run)
        assert seen.shared[net.a] != seen.shared[net.b]


class TestReader:
    @pytest.mark.parametrize(
        "run",
        [
            lambda net, x: net.act(net.a(x)),
            lambda net, x: net.act(input=net.a(x)),
            lambda net, x: net.act(net.a(x)) + net.act(net.a(x + 1)),
            of_a(lambda net, x, y: net.act(y if y.shape[0] == 3 and y.dtype and y.dim() else x)),
        ],
        ids=["plain", "by keyword", "at both calls", "its shape is asked for"],
    )
    def test_an_activation_that_alone_reads_the_result(self, run: object) -> None:
        net, seen = recorded(run)
        assert seen.reader[net.a] is net.act

    def test_an_activation_in_place(self) -> None:
        net, seen = recorded(lambda net, x: net.b(net.inplace(net.a(x))))
        assert seen.reader[net.a] is net.inplace
        assert seen.reader[net.inplace] is net.b

    def test_dropout_in_eval_mode_returns_what_it_was_given(self) -> None:
        net, seen = recorded(lambda net, x: net.act(net.drop(net.a(x))), train=True)
        assert seen.reader[net.a] is net.drop
        assert seen.reader[net.drop] is net.act

    @pytest.mark.parametrize(
        "run",
        [
            of_a(lambda net, x, y: net.act(y) + y),
            of_a(lambda net, x, y: (net.act(y), y)),
            of_a(lambda net, x, y: {"kept": y, "got": net.act(y)}),
            of_a(lambda net, x, y: net.act(y) + net.b(y)),
            of_a(lambda net, x, y: net.act(y) + y.T.sum()),
            of_a(lambda net, x, y: net.act(y) + y[0]),
            of_a(lambda net, x, y: y.view(12).sum() + net.act(y)),
            of_a(lambda net, x, y: net.act(y) + float(y.sum())),
            of_a(lambda net, x, y: net.act(y) + y.tolist()[0][0]),
            of_a(lambda net, x, y: net.act(y) + F.linear(x, y).sum()),
            of_a(lambda net, x, y: net.act(y) + torch.cat([x, y])[3:]),
            lambda net, x: net.act(net.a(x)) + net.a(x),
            lambda net, x: net.act(net.a(x)) + net.act(net.b(x)),
            lambda net, x: net.act(net.a(x)) + net.act(x),
            lambda net, x: net.act(net.a(x) + 1),
            of_a(lambda net, x, y: net.act(y) + net.act(y)),
            lambda net, x: net.a(x),
        ],
        ids=[
            "added",
            "returned",
            "returned in a mapping",
            "another module",
            "transposed",
            "indexed",
            "viewed before",
            "summed",
            "listed",
            "as a weight",
            "in a list",
            "at one call only",
            "activation of two layers",
            "activation of something else too",
            "something between",
            "twice",
            "nobody",
        ],
    )
    def test_results_that_others_read_too(self, run: object) -> None:
        net, seen = recorded(run)
        assert net.a not in seen.reader

    def test_a_result_that_is_kept(self) -> None:
        kept = []
        net, seen = recorded(of_a(lambda net, x, y: kept.append(y) or net.act(y)))
        assert net.a not in seen.reader


class TestNoTrace:
    def hooks(self, net: Net) -> int:
        return sum(len(m._forward_hooks) + len(m._forward_pre_hooks) for m in net.modules())

    def test_hooks_and_modes_are_put_back(self) -> None:
        net = Net(lambda net, x: net.act(net.a(x))).train()
        net.b.eval()
        before = [module.training for module in net.modules()]
        net.a.register_forward_hook(lambda *args: None)
        record(net, [net.a], torch.ones(1, 4))
        assert [module.training for module in net.modules()] == before
        assert self.hooks(net) == 1
        assert torch.is_grad_enabled()

    def test_after_a_failure_too(self) -> None:
        net = Net(lambda net, x: net.act(net.a(x)) @ x).train()
        with pytest.raises(ValueError, match="inputs that the model accepts, got RuntimeE") as e:
            record(net, [net.a], torch.ones(1, 4))
        assert isinstance(e.value.__cause__, RuntimeError)
        assert all(module.training for module in net.modules())
        assert self.hooks(net) == 0
        assert torch.overrides._get_current_function_mode_stack() == []

    def test_runs_in_eval_mode_without_gradients(self) -> None:
        seen = []
        recorded(lambda net, x: seen.append((net.training, torch.is_grad_enabled())), train=True)
        assert seen == [(False, False)]


class TestInferenceMode:
    def test_tells_the_same(self) -> None:
        """Also where the example was made there: its tensors do not count what is written to them."""

        def run(net: Net, x: Tensor) -> Tensor:
            return net.act(net.a(x)) + net.b(x)

        with torch.inference_mode():
            net, seen = recorded(run)
            assert torch.is_inference_mode_enabled()
        assert seen.reader[net.a] is net.act
        assert seen.shared[net.a] == seen.shared[net.b]

    def test_an_example_that_the_model_writes_to(self) -> None:
        with torch.inference_mode():
            x = torch.ones(3, 4)
            net, seen = recorded(lambda net, x: net.a(x) + net.b(x.add_(1)), {"x": x})
        assert seen.shared[net.a] != seen.shared[net.b]

    def test_tensors_that_a_model_makes_there_itself(self) -> None:
        def run(net: Net, x: Tensor) -> Tensor:
            with torch.inference_mode():
                y = x + 1
                return net.a(y) + net.b(y.add_(1))

        net, seen = recorded(run)
        assert seen.shared[net.a] != seen.shared[net.b]


class TestLast:
    """Who was the last to need the memory of its input; `of_a` says what happens to the input of `act`."""

    @pytest.mark.parametrize(
        "run",
        [
            lambda net, x, y: net.act(y),
            lambda net, x, y: net.act(y + x),
            lambda net, x, y: y.sum() + net.act(y),  # read before, not after
            lambda net, x, y: net.act(y.view(12)),  # all of the memory, seen otherwise
            lambda net, x, y: net.act(net.b(net.act(y))),  # at both calls
        ],
    )
    def test_nothing_needs_it_later(self, run: object) -> None:
        net, seen = recorded(of_a(run))
        assert net.act in seen.last

    @pytest.mark.parametrize(
        "run",
        [
            lambda net, x, y: net.act(y) + y,
            lambda net, x, y: net.act(y) + net.b(y),
            lambda net, x, y: (net.act(y), y),
            lambda net, x, y: net.act(x) + y,  # the caller's
            lambda net, x, y: net.act(y.view(12)).sum() + y,
            lambda net, x, y: (lambda alias: net.act(y) + alias)(y.detach()),
            lambda net, x, y: (lambda alias: net.act(y).T + alias)(y.T),
            lambda net, x, y: net.act(y[1:]),  # a part of something
            lambda net, x, y: net.act(y.T),
            lambda net, x, y: net.act(y.sum(0, keepdim=True).expand(3, 4)),
            lambda net, x, y: net.act(net.b(y)) + net.act(y) + y,  # at one of two calls
            lambda net, x, y: net.act(net.a.weight[:3]) + y,
        ],
    )
    def test_it_is_needed_later(self, run: object) -> None:
        net, seen = recorded(of_a(run))
        assert net.act not in seen.last
