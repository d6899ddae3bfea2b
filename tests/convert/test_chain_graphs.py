"""Joined modules in what torch makes of models: Sequentials, graphs, compiled and traced models."""

from __future__ import annotations

from typing import Any

import pytest
import torch
from convert_helpers import K
from fusion_helpers import Block, Net, assert_same, converted, ints, square
from torch import Tensor, fx, nn

from sparseinfer import SparseLinear, convert_

pytestmark = pytest.mark.usefixtures("script")


class Named(nn.Sequential):
    """A Sequential of another name."""


class Backwards(nn.Sequential):
    """May run what it holds from the last to the first."""

    back = False

    def __iter__(self) -> Any:
        return iter(list(self._modules.values())[:: -1 if self.back else 1])


class TestSequential:
    @pytest.mark.parametrize("kind", [nn.Sequential, Named, Backwards])
    def test_subclasses(self, kind: Any) -> None:
        steps = (square(), nn.SiLU(), square(3), nn.ReLU())
        dense = kind(*steps).eval()
        fast = converted(dense)
        assert isinstance(fast, kind)
        assert_same(fast, dense, ints())
        for module in (dense, fast):
            module.back = True
        assert_same(fast, dense, ints())

    @pytest.mark.parametrize(
        "change",
        [
            lambda m: m.append(nn.ReLU()),
            lambda m: m.insert(1, nn.ReLU()),
            lambda m: m.insert(1, nn.Identity()),
            lambda m: m.extend([nn.ReLU(), nn.Tanh()]),
            lambda m: m.__setitem__(1, nn.Tanh()),
            lambda m: m.__setitem__(1, nn.Dropout()),
            lambda m: m.__delitem__(1),
            lambda m: m.pop(1),
            lambda m: m.pop(0),
            lambda m: m[:1],
            lambda m: m[:2],
            lambda m: m[1:],
            lambda m: m + nn.Sequential(nn.ReLU()),
            lambda m: m * 2,
            lambda m: nn.Sequential(*m, nn.ReLU()),
            lambda m: nn.Sequential(*list(m)[::-1]),
            lambda m: m.add_module("end", nn.ReLU()),
            lambda m: nn.Sequential(m[0], m[3], m[2], m[1]),
        ],
        ids=range(18),
    )
    def test_changed_after_conversion(self, change: Any) -> None:
        dense = nn.Sequential(square(), nn.SiLU(), square(3), nn.ReLU()).eval()
        fast = converted(dense)
        results = []
        for module in (fast, dense):
            made = change(module)
            results.append((made if isinstance(made, nn.Sequential) else module).eval())
        assert_same(*results, ints())

    def test_every_part_alone(self) -> None:
        dense = nn.Sequential(square(), nn.SiLU()).eval()
        fast = converted(dense)
        x = ints()
        with torch.no_grad():
            assert torch.equal(fast[0](x), dense[0](x))
            assert torch.equal(fast[1](dense[0](x)), dense(x))


class TestLeftAlone:
    def test_graph_modules(self) -> None:
        graph = fx.symbolic_trace(Net()).eval()
        fast = converted(graph)
        assert type(fast).forward.__code__ == type(graph).forward.__code__
        assert_same(fast, graph, ints())

    def test_a_forward_of_the_instance(self) -> None:
        dense = Net().eval()
        block = dense.block
        block.forward = lambda x: block.fc(x) * 2  # type: ignore[method-assign]
        fast = convert_(dense, example_inputs=ints())
        assert type(fast.block) is Block
        x = ints()
        with torch.no_grad():
            assert torch.equal(fast.block(x), square()(x) * 2)

    def test_scripted_modules(self) -> None:
        class Holder(nn.Module):
            def __init__(self) -> None:
                super().__init__()
                self.scripted, self.fc, self.act = torch.jit.trace(Net().eval(), ints()), square(), nn.SiLU()

            def forward(self, x: Tensor) -> Tensor:
                return self.scripted(self.act(self.fc(x)).round())

        with pytest.warns(DeprecationWarning, match="torch.jit"):
            dense = Holder().eval()
        fast = converted(dense)
        assert type(fast.fc) is SparseLinear
        assert_same(fast, dense, ints())

    def test_nothing_to_join(self) -> None:
        dense = nn.Sequential(square(), nn.Tanh(), square(3)).eval()
        assert type(converted(dense)) is nn.Sequential
        assert type(converted(Net(), fuse=False).block) is Block


class OfSource(nn.Module):
    """Its activation is a module that is known by its source."""

    class Act(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.function = nn.functional.silu

        def forward(self, x: Tensor) -> Tensor:
            return self.function(x)

    def __init__(self) -> None:
        super().__init__()
        self.fc, self.act = square(), self.Act()

    def forward(self, x: Tensor) -> Tensor:
        return self.act(self.fc(x))


@pytest.mark.parametrize("kind", [Net, OfSource])
class TestGraphs:
    def test_compile(self, kind: Any) -> None:
        torch._dynamo.reset()
        dense = kind().eval()
        compiled = torch.compile(converted(dense), fullgraph=True, backend="eager")
        with torch.no_grad():
            compiled(ints())
        for m in (6, 9):
            assert_same(compiled, dense, ints(m))

    def test_export(self, kind: Any) -> None:
        dense = kind().eval()
        exported = torch.export.export(converted(dense), (ints(),)).module()
        assert_same(exported, dense, ints(seed=4))

    @pytest.mark.filterwarnings("ignore:.torch.jit.trace:DeprecationWarning")
    def test_trace(self, kind: Any) -> None:
        dense = kind().eval()
        traced = torch.jit.trace(converted(dense), (ints(),))
        assert_same(traced, dense, ints(seed=4))

    def test_symbolic_trace(self, kind: Any) -> None:
        class Tracer(fx.Tracer):
            def is_leaf_module(self, m: nn.Module, name: str) -> bool:
                return isinstance(m, SparseLinear) or super().is_leaf_module(m, name)

        dense = kind().eval()
        fast = converted(dense)
        graph = Tracer().trace(fast)
        called = [node.target for node in graph.nodes if node.op == "call_module"]
        assert [name for name in called if "fc" in name] != []
        assert_same(fx.GraphModule(fast, graph), dense, ints(seed=4))

    def test_compiled_in_place(self, kind: Any) -> None:
        torch._dynamo.reset()
        dense = kind().eval()
        fast = converted(dense)
        fast.compile(backend="eager", fullgraph=True)
        assert_same(fast, dense, ints())


def test_a_model_compiled_before_its_activation_changes() -> None:
    torch._dynamo.reset()
    dense = Block().eval()
    fast = converted(dense)
    compiled = torch.compile(fast, fullgraph=True, backend="eager")
    with torch.no_grad():
        compiled(ints())
    for module in (dense, fast):
        module.act = nn.ReLU()
    assert_same(compiled, dense, ints())


def test_shapes() -> None:
    dense = Net().eval()
    fast = converted(dense)
    for x in (torch.ones(K), ints(6).view(2, 3, K), torch.ones(0, K), ints(6).T.contiguous().T):
        assert_same(fast, dense, x) if x.numel() else None
        assert fast(x).shape == dense(x).shape
