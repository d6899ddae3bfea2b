"""What one watched run of a model tells: layers it calls, their shapes, inputs that several share."""

from __future__ import annotations

import pytest
import torch
from torch import Tensor, nn

from sparseinfer.convert.survey.recording import Recording, record, spread


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


class TestCalled:
    def test_those_that_were_called(self) -> None:
        net, seen = recorded(lambda net, x: net.a(x))
        assert seen.called == {net.a}

    def test_also_with_an_empty_input_or_none_at_all(self) -> None:
        class Silent(nn.Module):
            def forward(self) -> None:
                return None

        net = Net(lambda net, x: (net.a(x[:0]), net.silent()))
        net.silent = Silent()
        seen = record(net, [net.a, net.b, net.silent], torch.ones(3, 4))
        assert seen.called == {net.a, net.silent}
        assert net.silent not in seen.shapes

    def test_inside_another_function(self) -> None:
        net, seen = recorded(lambda net, x: [net.b(row) for row in x])
        assert seen.called == {net.b}
        assert seen.shapes[net.b] == ((4,),)

    def test_only_those_that_were_asked_for(self) -> None:
        net, seen = recorded(lambda net, x: net.act(net.a(x)))
        assert net.act not in seen.called


class TestResult:
    def test_every_floating_point_tensor(self) -> None:
        class Holder:
            def __init__(self, t: Tensor) -> None:
                self.t, self.again = t, self

        def run(net: Net, x: Tensor) -> object:
            return {"a": x, "b": [x + 1, (x + 2, 7)], "c": Holder(x + 3), "d": x.long(), "e": None, "f": net}

        _, seen = recorded(run)
        assert [float(t[0, 0]) for t in seen.result] == [1, 2, 3, 4]

    def test_does_not_change_with_what_the_model_does_later(self) -> None:
        net = Net(lambda net, x: net.buffer)
        net.register_buffer("buffer", torch.ones(2))
        seen = record(net, [net.a], torch.ones(1, 4))
        net.buffer.add_(1)
        assert seen.result[0].tolist() == [1, 1]


class TestChannelsLast:
    @pytest.mark.parametrize(
        ("run", "expected"),
        [
            (lambda conv, x: conv(x.to(memory_format=torch.channels_last)), True),
            (lambda conv, x: conv(x), False),
            (lambda conv, x: conv(x) + conv(x.to(memory_format=torch.channels_last)), False),
            (lambda conv, x: conv(x.to(memory_format=torch.channels_last)) + conv(x), False),
            (lambda conv, x: conv(x[0]), False),
        ],
        ids=["always", "never", "second", "first", "unbatched"],
    )
    def test_at_every_call(self, run: object, expected: bool) -> None:
        class Conv(nn.Module):
            def __init__(self) -> None:
                super().__init__()
                self.conv = nn.Conv2d(3, 3, 3)

            def forward(self, x: Tensor) -> Tensor:
                return run(self.conv, x)

        model = Conv()
        seen = record(model, [model.conv], torch.randn(2, 3, 8, 8))
        assert (model.conv in seen.channels_last) is expected


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

    def test_one_run_does_not_see_another(self) -> None:
        """Marks count on: the same tensor in two runs was not given to both at once."""
        net = Net(lambda net, x: net.a(x))
        x = torch.ones(3, 4)
        first, second = (record(net, [net.a], x) for _ in range(2))
        assert first.shapes == second.shapes
        assert self.hooks(net) == 0


class TestInferenceMode:
    def test_tells_the_same(self) -> None:
        """Also where the example was made there: its tensors do not count what is written to them."""

        def run(net: Net, x: Tensor) -> Tensor:
            return net.act(net.a(x)) + net.b(x)

        with torch.inference_mode():
            net, seen = recorded(run)
            assert torch.is_inference_mode_enabled()
        assert seen.called == {net.a, net.b}
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
