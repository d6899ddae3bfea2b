"""Products, residual sums and layer norms that convert joins: what runs as one block, and what must not."""

from __future__ import annotations

import copy
import pickle
from typing import Any, ClassVar

import pytest
import torch
from fusion_helpers import square
from normed_helpers import Layer, Out, assert_close, fast_of, given, watched_blocks
from torch import Tensor, nn

from sparseinfer import Magnitude, convert, densify_, explain, prune_


@pytest.fixture
def blocks(monkeypatch: pytest.MonkeyPatch) -> list[tuple[int, bool]]:
    return watched_blocks(monkeypatch)


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
