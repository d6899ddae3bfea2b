"""Products, residual sums and layer norms that convert joins: what runs as one block, and what must not."""

from __future__ import annotations

import copy
import pickle
from collections.abc import Callable
from typing import Any, ClassVar

import pytest
import torch
from convert_helpers import K
from fusion_helpers import square
from torch import Tensor, nn
from torch.nn import functional as F

from sparseinfer import Magnitude, convert, densify_, explain, ops, prune_

M = 5


class Out(nn.Module):
    """As the end of a sublayer in BERT."""

    def __init__(self, seed: int = 0) -> None:
        super().__init__()
        self.dense, self.dropout, self.norm = square(seed), nn.Dropout(0.5), nn.LayerNorm(K)
        nn.init.normal_(self.norm.weight)
        nn.init.normal_(self.norm.bias)

    def forward(self, h: Tensor, residual: Tensor) -> Tensor:
        h = self.dense(h)
        h = self.dropout(h)
        h = self.norm(h + residual)
        return h  # noqa: RET504


class Up(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.dense, self.act = square(1), nn.GELU()

    def forward(self, h: Tensor) -> Tensor:
        h = self.dense(h)
        return self.act(h)


class Layer(nn.Module):
    """As a layer of BERT: the second half is in a method of its own."""

    def __init__(self) -> None:
        super().__init__()
        self.attention, self.up, self.out = Out(2), Up(), Out(3)

    def forward(self, x: Tensor, y: Tensor) -> Tensor:
        return self.half(self.attention(x, y))

    def half(self, x: Tensor) -> Tensor:
        h = self.up(x)
        h = self.out(h, x)
        return h  # noqa: RET504


@pytest.fixture
def blocks(monkeypatch: pytest.MonkeyPatch) -> list[tuple[int, bool]]:
    """(products, whether normed) of every block that runs."""
    done: list[tuple[int, bool]] = []
    run = ops.linear_block

    def counted(x: Tensor, products: Any, norm: Any = None) -> Tensor:
        done.append((len(products), norm is not None))
        return run(x, products, norm)

    monkeypatch.setattr(ops, "linear_block", counted)
    return done


def given(m: int = M) -> tuple[Tensor, Tensor]:
    return torch.randn(m, K), torch.randn(m, K)


def fast_of(dense: nn.Module) -> Any:
    return convert(dense.eval(), example_inputs=given(), memory="compact", measure=False)


def assert_close(fast: Any, dense: Any, *inputs: Tensor, within: float = 1e-5) -> None:
    with torch.no_grad():
        got = fast(*inputs)
        expected = copy.deepcopy(dense).double()(*(t.double() for t in inputs))
    assert got.shape == expected.shape
    assert float((got.double() - expected).norm()) <= within * float(expected.norm()) + 1e-12


@pytest.mark.parametrize("m", [0, 1, 5, 64, 200])
def test_a_layer_of_an_encoder_is_two_blocks(m: int, blocks: list[Any]) -> None:
    dense = Layer()
    fast = fast_of(dense)
    blocks.clear()
    assert_close(fast, dense, *given(m))
    assert blocks == [(1, True), (2, True)]


def test_copies_and_pickles_run_blocks_and_densify_does_not(blocks: list[Any]) -> None:
    dense = Layer()
    fast = fast_of(dense)
    for other in (copy.deepcopy(fast), pickle.loads(pickle.dumps(fast))):
        blocks.clear()
        assert_close(other, dense, *given())
        assert len(blocks) == 2
    blocks.clear()
    assert_close(densify_(fast), dense, *given())
    assert blocks == []
    assert type(fast.out) is Out
    assert type(fast) is Layer


class Nested(Out):
    def forward(self, h: Tensor, residual: Tensor) -> Tensor:
        return self.norm(residual + self.dropout(self.dense(h)))


class Activated(Out):
    def __init__(self) -> None:
        super().__init__()
        self.act = nn.ReLU()

    def forward(self, h: Tensor, residual: Tensor) -> Tensor:
        return self.norm(self.act(self.dense(input=h)) + residual)


class Two(Out):
    def __init__(self) -> None:
        super().__init__()
        self.act, self.other = nn.ReLU(), square(7)

    def forward(self, h: Tensor, residual: Tensor) -> Tensor:
        h = self.dropout(self.act(self.dense(h)))
        h = self.other(h)
        return self.norm(h + residual)


class Feed(Two):
    def forward(self, h: Tensor, residual: Tensor) -> Tensor:
        h = self.other(self.dropout(self.act(self.dense(h))))
        return h * residual


@pytest.mark.parametrize(
    ("kind", "done"), [(Nested, [(1, True)]), (Activated, []), (Two, [(2, True)]), (Feed, [(2, False)])]
)
def test_forms(kind: Any, done: list[Any], blocks: list[Any]) -> None:
    dense = kind()
    fast = fast_of(dense)
    blocks.clear()
    assert_close(fast, dense, *given())
    assert blocks == done


class Read(Out):
    def forward(self, h: Tensor, residual: Tensor) -> Tensor:
        h = self.dense(h)
        return self.norm(h + residual) + h


class Late(Out):
    """The residual is computed after the product, which may change it."""

    def forward(self, h: Tensor, residual: Tensor) -> Tensor:
        return self.norm(self.dense(h) + residual.add_(1.0))


class Doubled(Out):
    def forward(self, h: Tensor, residual: Tensor) -> Tensor:
        h = self.dense(h)
        return self.norm(h + h)


class Difference(Out):
    def forward(self, h: Tensor, residual: Tensor) -> Tensor:
        return self.norm(self.dense(h) - residual)


@pytest.mark.parametrize("kind", [Read, Late, Doubled, Difference])
def test_other_forms_stay_as_they_are(kind: Any, blocks: list[Any]) -> None:
    dense = kind()
    fast = fast_of(dense)
    blocks.clear()
    x, y = given()
    with torch.no_grad():
        got = fast(x, y.clone())
        expected = copy.deepcopy(dense).double()(x.double(), y.double())
    assert torch.allclose(got.double(), expected, atol=1e-4)
    assert blocks == []


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


def test_explain_says_what_is_fused() -> None:
    rows = {row.layer: row.reason for row in explain(fast_of(Layer())).rows}
    assert rows["out.dense"].endswith("with residual and layer norm")
    assert rows["up.dense"].endswith("with gelu")
    assert "layer norm" not in rows["up.dense"]


class Told(nn.Module):
    """A base that wraps the forward of every class derived from it, as the layers of transformers have."""

    classes: ClassVar[list[type]] = []

    def __init_subclass__(cls, **kwargs: Any) -> None:
        super().__init_subclass__(**kwargs)
        Told.classes.append(cls)
        forward = cls.forward
        setattr(cls, "forward", lambda self, *args: forward(self, *args))  # noqa: B010


class ToldLayer(Layer, Told):
    pass


def test_a_base_that_is_told_of_classes_learns_of_none(blocks: list[Any]) -> None:
    dense = ToldLayer()
    fast = fast_of(dense)
    for model in (fast, copy.deepcopy(fast), pickle.loads(pickle.dumps(fast))):
        blocks.clear()
        assert_close(model, dense, *given())
        assert blocks == [(1, True), (2, True)]
        assert isinstance(model, ToldLayer)
        assert type(model).forward is ToldLayer.forward
    assert Told.classes == [ToldLayer]


def test_bert(blocks: list[Any]) -> None:
    transformers = pytest.importorskip("transformers", reason="transformers is not installed")
    sizes = {"vocab_size": 64, "hidden_size": 32, "intermediate_size": 48, "num_hidden_layers": 2}
    config = transformers.BertConfig(**sizes, num_attention_heads=2)
    dense = transformers.BertModel(config, add_pooling_layer=False).eval()
    prune_(dense, Magnitude(0.8), keep_masks=False, progress=False)
    ids = {"input_ids": torch.randint(0, 64, (3, 9))}
    fast: Any = convert(dense, example_inputs=ids, memory="compact", measure=False)
    blocks.clear()
    with torch.no_grad():
        got, expected = fast(**ids).last_hidden_state, dense.double()(**ids).last_hidden_state
    assert float((got.double() - expected).norm()) <= 1e-5 * float(expected.norm())
    assert blocks == [(1, True), (2, True)] * 2
