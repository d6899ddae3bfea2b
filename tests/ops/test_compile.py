"""torch.library.opcheck, torch.compile, torch.export, and several threads on one model."""

from __future__ import annotations

from concurrent.futures import ThreadPoolExecutor

import pytest
import torch
from generators import tokens, values, weight
from torch import Tensor, nn

from sparseinfer import ops
from sparseinfer.formats import CSR
from sparseinfer.modules import SparseLinear

# torch says this about itself when inductor is loaded.
pytestmark = pytest.mark.filterwarnings("ignore:`torch.jit:DeprecationWarning")

N, K = 24, 40


@pytest.fixture(autouse=True)
def fresh_dynamo() -> None:
    torch._dynamo.reset()


def model() -> nn.Sequential:
    """Two sparse layers with two buckets each; integer-valued, so that results are compared with equality."""
    return nn.Sequential(_layer(N, K, bias=True), nn.ReLU(), _layer(K, N, bias=False)).eval()


def _layer(n: int, k: int, *, bias: bool) -> SparseLinear:
    fmt = CSR.from_dense(weight("random", n, k, integer=True))
    packings = [ops.pack(fmt, name) for name in ("csr", "rowlist")]
    buckets = [
        ops.Bucket(15, 0, ops.default_kernel(packings[0])),
        ops.Bucket(None, 1, ops.default_kernel(packings[1])),
    ]
    return SparseLinear(packings, values(n, integer=True) if bias else None, buckets=buckets)


@pytest.mark.parametrize("shape", [(K,), (3, K), (2, 9, K), (0, K)])
@pytest.mark.parametrize("bias", [True, False])
def test_opcheck(shape: tuple[int, ...], bias: bool) -> None:
    layer = _layer(N, K, bias=bias)
    packings = [layer.packing_0, layer.packing_1]
    args = (values(*shape), packings, layer.bias, N, layer.plan, "none")
    torch.library.opcheck(torch.ops.sparseinfer.linear.default, args)


@pytest.mark.slow
@pytest.mark.parametrize("dynamic", [False, True, None])
@pytest.mark.parametrize("mode", [torch.no_grad, torch.inference_mode])
def test_compile(dynamic: bool | None, mode: type) -> None:
    eager = model()
    compiled = torch.compile(eager, fullgraph=True, dynamic=dynamic, backend="inductor")
    with mode():
        for m in (1, 3, 16, 33):
            x = tokens(m, K, integer=True)
            assert torch.equal(compiled(x), eager(x))
            assert torch.equal(compiled(x[None]), eager(x[None]))


def test_compile_traces_without_a_gradient() -> None:
    eager = model()
    compiled = torch.compile(eager, fullgraph=True, backend="eager")
    x = tokens(5, K, integer=True)
    assert torch.equal(compiled(x), eager(x))
    with pytest.raises(RuntimeError, match="gradients"):
        torch.compile(eager, backend="eager")(x.clone().requires_grad_())


@pytest.mark.parametrize("strict", [False, True])
def test_export(strict: bool) -> None:
    eager = model()
    program = torch.export.export(eager, (tokens(5, K),), strict=strict)
    x = tokens(5, K, integer=True)
    assert torch.equal(program.module()(x), eager(x))


@pytest.mark.parametrize("strict", [False, True])
def test_export_with_any_number_of_tokens(strict: bool) -> None:
    eager = model()
    count = torch.export.Dim("tokens", min=1, max=4096)
    program = torch.export.export(eager, (tokens(5, K),), dynamic_shapes=({0: count},), strict=strict)
    targets = [node.target for node in program.graph.nodes if node.op == "call_function"]
    assert targets.count(torch.ops.sparseinfer.linear.default) == 2
    for m in (1, 15, 16, 70):
        x = tokens(m, K, integer=True)
        assert torch.equal(program.module()(x), eager(x))


def test_threads_share_one_model() -> None:
    eager = model()
    inputs = [tokens(m, K, integer=True, seed=m) for m in (1, 7, 16, 33, 64)] * 8
    with torch.inference_mode():
        expected = [eager(x) for x in inputs]

    def run(x: Tensor) -> Tensor:
        with torch.inference_mode():
            return eager(x)

    with ThreadPoolExecutor(4) as pool:
        results = list(pool.map(run, inputs))
    assert all(torch.equal(got, want) for got, want in zip(results, expected, strict=True))
