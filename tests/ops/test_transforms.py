"""torch.func, forward mode, autocast, tracing, export and compilation, held against the dense module."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import pytest
import torch
from contract_helpers import ALL, COMPOSITES, MATRICES, Only, Pair, called, close, linear, outputs
from torch import Tensor, nn
from torch.autograd import forward_ad
from torch.utils.checkpoint import checkpoint

from sparseinfer import ops
from sparseinfer.formats import CSR
from sparseinfer.modules import ChannelsLastMaxPool2d, SparseLinear

pytestmark = [
    pytest.mark.filterwarnings("ignore:.*torch.jit.*:DeprecationWarning"),
    pytest.mark.filterwarnings("ignore:LSTM with projections is not supported:UserWarning"),
    pytest.mark.filterwarnings("ignore::torch.jit.TracerWarning"),
    # torch says it of its own recurrent layers under vmap.
    pytest.mark.filterwarnings("ignore:There is a performance drop:UserWarning"),
]

every = pytest.mark.parametrize("make", ALL.values(), ids=ALL)


@pytest.fixture(autouse=True)
def fresh_dynamo() -> None:
    torch._dynamo.reset()


def formulas(pair: Pair) -> nn.Module:
    """The dense module, put together of nn.Linears where torch's own has no derivatives in forward mode."""
    kind: Any = type(pair.sparse)
    if not hasattr(kind, "from_rnn") and not hasattr(kind, "from_attention"):
        return pair.dense
    made: nn.Module = (kind.from_rnn if hasattr(kind, "from_rnn") else kind.from_attention)(pair.dense)
    assert close(outputs(made, pair.x), outputs(pair.dense, pair.x))
    return made.requires_grad_(False)


@every
class TestDerivatives:
    def test_forward_mode(self, make: Callable[[], Pair]) -> None:
        pair = make()
        # Of few bits, like x, so that bfloat16 holds it and its products too.
        tangent = torch.randint(-8, 9, pair.x.shape, generator=torch.Generator().manual_seed(0)) / 8
        want = torch.func.jvp(called(formulas(pair)), (pair.x,), (tangent,))
        got = torch.func.jvp(called(pair.sparse), (pair.x,), (tangent,))
        assert all(map(close, got, want))
        assert float(want[1].abs().max()) > 0
        with forward_ad.dual_level():
            y, dy = forward_ad.unpack_dual(outputs(pair.sparse, forward_ad.make_dual(pair.x, tangent)))
            assert dy is not None
            assert close(y, want[0])
            assert close(dy, want[1])

    def test_jacobians_of_jacobians(self, make: Callable[[], Pair]) -> None:
        pair = make()

        def f(module: nn.Module) -> Callable[[Tensor], Tensor]:
            return lambda scale: torch.tanh(outputs(module, pair.x * scale)).sum()

        at = torch.tensor(0.25)  # exact in bfloat16
        want, got = (
            torch.func.jacfwd(torch.func.jacfwd(f(module)))(at) for module in (formulas(pair), pair.sparse)
        )
        assert float(want.abs()) > 0
        assert abs(float(got - want)) <= 1e-3 * max(1.0, float(want.abs()))

    @pytest.mark.parametrize(
        "transform",
        [
            torch.func.jacrev,
            torch.func.hessian,
            lambda f: torch.func.grad(lambda x: f(x).sum()),
            lambda f: torch.func.grad(lambda x: torch.func.vmap(f)(x[None]).sum()),
            lambda f: lambda x: torch.func.vjp(f, x)[1](f(x)),
            lambda f: lambda x: f(x.clone().requires_grad_()),
        ],
        ids=["jacrev", "hessian", "grad", "grad of vmap", "vjp", "requires_grad"],
    )
    def test_reverse_mode_is_refused(self, make: Callable[[], Pair], transform: Any) -> None:
        pair = make()
        with pytest.raises(RuntimeError, match="expected an input without gradients"):
            transform(called(pair.sparse))(pair.x)

    def test_a_layer_below_a_trainable_head(self, make: Callable[[], Pair]) -> None:
        pair = make()
        y = outputs(pair.sparse, pair.x)
        assert not y.requires_grad
        head = nn.Linear(y.shape[-1], 2)
        head(y).sum().backward()
        assert head.weight.grad is not None


@every
class TestVmap:
    def test_any_dimension(self, make: Callable[[], Pair]) -> None:
        pair = make()
        x = torch.stack([pair.x, -pair.x / 2, pair.x / 4])
        want = torch.stack([outputs(pair.dense, each) for each in x])
        for dim in range(x.dim()):
            got = torch.func.vmap(called(pair.sparse), in_dims=dim)(x.movedim(0, dim))
            assert close(got, want)

    def test_nested_and_with_derivatives(self, make: Callable[[], Pair]) -> None:
        pair = make()
        x = torch.stack([pair.x, -pair.x / 2]).unsqueeze(0).repeat(2, *[1] * (pair.x.dim() + 1))
        want = outputs(pair.dense, pair.x)
        got = torch.func.vmap(torch.func.vmap(called(pair.sparse)))(x)
        assert close(got[1, 0], want)
        tangent = torch.ones_like(x[0]) / 8
        push = torch.func.vmap(lambda p, t: torch.func.jvp(called(pair.sparse), (p,), (t,)))
        y, dy = push(x[0], tangent)
        one = torch.func.jvp(called(pair.sparse), (pair.x,), (tangent[0],))
        assert close(y[0], one[0])
        assert close(dy[0], one[1])


def test_vmap_over_weights_and_biases() -> None:
    w = [torch.randn(6, 8, generator=torch.Generator().manual_seed(i)).relu() for i in range(2)]
    packings = [ops.pack(CSR.from_dense(each.fill_diagonal_(1)), "csr") for each in w[:1] * 2]
    bias, x = torch.randn(2, 6), torch.randn(2, 3, 8)
    plan = f"*:0:{ops.default_kernel(packings[0])}"

    def call(x: Tensor, packed: Tensor, bias: Tensor) -> Tensor:
        return torch.ops.sparseinfer.linear(x, [packed], bias, 6, plan, "relu")

    got = torch.func.vmap(call)(x, torch.stack(packings), bias)
    assert torch.equal(got, torch.stack([call(*each) for each in zip(x, packings, bias, strict=True)]))
    got = torch.func.vmap(call, in_dims=(None, None, 0))(x[0], packings[0], bias)
    assert torch.equal(got, torch.stack([call(x[0], packings[0], each) for each in bias]))


@every
def test_functional_call_and_checkpoint(make: Callable[[], Pair]) -> None:
    pair = make()
    model = Only(pair.sparse)
    want = model(pair.x)
    tensors = {**dict(model.named_parameters()), **dict(model.named_buffers())}
    assert torch.equal(torch.func.functional_call(model, tensors, (pair.x,)), want)
    with torch.no_grad():
        assert torch.equal(checkpoint(model, pair.x, use_reentrant=False), want)
    biases = {name: t + 1 for name, t in model.named_parameters() if name.endswith("bias")}
    if biases:
        assert not torch.equal(torch.func.functional_call(model, biases, (pair.x,)), want)
        with pytest.raises(RuntimeError, match="without gradients"):
            torch.func.grad(lambda b: torch.func.functional_call(model, b, (pair.x,)).sum())(biases)


@every
@pytest.mark.parametrize("given", [torch.float32, torch.bfloat16])
def test_autocast(make: Callable[[], Pair], given: torch.dtype) -> None:
    pair = make()
    x = pair.x.to(given)
    with torch.no_grad(), torch.autocast("cpu", dtype=torch.bfloat16):
        got, want = outputs(pair.sparse, x), outputs(pair.dense, x)
    assert got.dtype == want.dtype
    assert got.shape == want.shape
    # bfloat16 keeps 8 bits of each of the few tens of terms.
    scale = max(1.0, float(want.abs().max()))
    assert float((got.float() - want.float()).abs().max()) <= 32 * 2**-8 * scale


@pytest.mark.parametrize("make", MATRICES.values(), ids=MATRICES)
def test_autocast_leaves_float64_alone(make: Callable[[], Pair]) -> None:
    pair = make()
    with torch.autocast("cpu", dtype=torch.bfloat16), pytest.raises(RuntimeError):
        outputs(pair.dense, pair.x.double())
    with torch.autocast("cpu", dtype=torch.bfloat16), pytest.raises(RuntimeError):
        outputs(pair.sparse, pair.x.double())


@every
class TestGraphs:
    def test_jit_trace(self, make: Callable[[], Pair]) -> None:
        pair = make()
        traced = torch.jit.trace(Only(pair.sparse), pair.x, check_trace=False)
        for x in (pair.x, -pair.x / 2):
            assert close(traced(x), outputs(pair.dense, x))

    @pytest.mark.parametrize("strict", [False, True])
    def test_export_with_any_batch(self, make: Callable[[], Pair], strict: bool) -> None:
        pair = make()
        batch = getattr(pair.dense, "batch_first", True)
        count = torch.export.Dim("batch", min=2, max=64)
        program = torch.export.export(
            Only(pair.sparse), (pair.x,), dynamic_shapes=({0 if batch else 1: count},), strict=strict
        )
        for repeats in (1, 3):
            x = torch.cat([pair.x] * repeats, dim=0 if batch else 1)
            assert close(program.module()(x), outputs(pair.dense, x))

    def test_compile_with_any_batch(self, make: Callable[[], Pair]) -> None:
        pair = make()
        compiled = torch.compile(Only(pair.sparse), fullgraph=True, dynamic=True, backend="aot_eager")
        with torch.no_grad():
            for repeats in (1, 2, 3):
                x = torch.cat([pair.x] * repeats)
                assert close(compiled(x), outputs(pair.dense, x))


def test_export_of_attention_with_any_length() -> None:
    pair = COMPOSITES["attention"]()
    dims = {0: torch.export.Dim("n", min=2, max=64), 1: torch.export.Dim("length", min=2, max=64)}
    program = torch.export.export(Only(pair.sparse), (pair.x,), dynamic_shapes=(dims,))
    x = torch.randn(2, 9, 8)
    assert close(program.module()(x), outputs(pair.dense, x))


def test_a_weight_that_is_read_in_a_graph() -> None:
    """As a constant, whose dtype and values are the layer's."""

    class Reads(nn.Module):
        def __init__(self, layer: nn.Module) -> None:
            super().__init__()
            self.layer = layer

        def forward(self, x: Tensor) -> Tensor:
            layer: Any = self.layer
            return nn.functional.linear(x.to(layer.weight.dtype), layer.weight, layer.bias) - layer(x)

    for name in ("linear", "prepacked"):
        pair = MATRICES[name]()
        model = Reads(pair.sparse)
        compiled = torch.compile(model, fullgraph=True, backend="aot_eager")
        program = torch.export.export(model, (pair.x,))
        traced = torch.jit.trace(model, pair.x)
        for graph in (model, compiled, program.module(), traced):
            with torch.no_grad():
                assert float(graph(pair.x).abs().max()) <= 1e-5


def test_pooling() -> None:
    dense = nn.MaxPool2d(3, 2, padding=1)
    sparse = ChannelsLastMaxPool2d(dense)
    x = torch.randn(4, 2, 3, 9, 9)
    assert torch.equal(torch.func.vmap(sparse)(x), torch.func.vmap(dense)(x))
    tangent = (torch.ones_like(x[0]),)
    assert torch.equal(
        torch.func.jvp(sparse, (x[0],), tangent)[1], torch.func.jvp(dense, (x[0],), tangent)[1]
    )


def test_gradients_of_a_bias_are_refused() -> None:
    pair = linear(SparseLinear)
    pair.sparse.requires_grad_(True)
    with pytest.raises(RuntimeError, match="bias: expected an input without gradients"):
        pair.sparse(pair.x)
    with torch.no_grad():
        assert torch.equal(pair.sparse(pair.x), pair.dense(pair.x))
    with torch.inference_mode():
        assert torch.equal(pair.sparse(pair.x), pair.dense(pair.x))
