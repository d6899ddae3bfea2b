"""The operator of vLLM's compiled graphs: the call is looked up by its handle each time a graph runs."""

from __future__ import annotations

import pytest
import torch
from torch import Tensor, nn

from sparseinfer import ops
from sparseinfer.modules import SparseLinear
from sparseinfer.serve.vllm.operator import Held, handle_of, held_call

N, K = 24, 16


def held_of(seed: int) -> tuple[Held, Tensor]:
    """A sparse layer of integers, and its dense weight."""
    weight = torch.randint(-3, 4, (N, K), generator=torch.Generator().manual_seed(seed)).float()
    weight[weight.abs() < 2] = 0
    layer = nn.Linear(K, N, bias=False)
    layer.weight = nn.Parameter(weight)
    sparse = SparseLinear.from_linear(layer)
    packings = list(sparse.buffers())
    return Held(lambda x, bias: ops.linear(x, packings, bias, N, sparse.plan, "none")), weight


class Layer(nn.Module):
    """As a layer of vLLM: it knows its handle."""

    def __init__(self, held: Held) -> None:
        super().__init__()
        self.held = held
        self.register_buffer("handle", handle_of(held), persistent=False)

    def forward(self, x: Tensor, bias: Tensor | None = None) -> Tensor:
        return held_call(x, self.handle, bias, N)


def integers(*shape: int) -> Tensor:
    return torch.randint(-4, 5, shape, generator=torch.Generator().manual_seed(9)).float()


@pytest.mark.parametrize("shape", [(1, K), (5, K), (2, 3, K), (0, K)])
@torch.inference_mode()
def test_the_result_is_that_of_the_layer(shape: tuple[int, ...]) -> None:
    held, weight = held_of(0)
    x, bias = integers(*shape), integers(N)
    assert torch.equal(Layer(held)(x), x @ weight.T)
    assert torch.equal(Layer(held)(x, bias), x @ weight.T + bias)


def test_opcheck() -> None:
    held, _ = held_of(0)
    tests = ("test_schema", "test_faketensor")
    torch.library.opcheck(held_call, (integers(3, K), handle_of(held), None, N), test_utils=tests)


@torch.inference_mode()
def test_one_graph_serves_all_layers() -> None:
    graphs = []

    def backend(graph: torch.fx.GraphModule, inputs: object) -> object:
        graphs.append(graph)
        return graph.forward

    (first, weight), (second, other) = held_of(0), held_of(1)
    x = integers(4, K)
    layer = Layer(first)
    compiled = torch.compile(layer, backend=backend, fullgraph=True)
    assert torch.equal(compiled(x), x @ weight.T)
    layer.handle.copy_(handle_of(second))
    assert torch.equal(compiled(x), x @ other.T)
    assert len(graphs) == 1
    assert not any(isinstance(argument, str) for node in graphs[0].graph.nodes for argument in node.args)


@torch.inference_mode()
def test_a_handle_whose_layer_is_gone() -> None:
    held, _ = held_of(0)
    handle = handle_of(held)
    del held
    with pytest.raises(ValueError, match="handle: expected one of a layer of this process, got"):
        held_call(integers(1, K), handle, None, N)
