"""Compiled decode: one graph for each step, the tokens of eager decode, and logits beside float32's."""

from __future__ import annotations

import copy
from collections.abc import Callable
from typing import Any

import pytest
import torch
from torch import Tensor, nn

from sparseinfer import Magnitude, convert, prune_
from sparseinfer.bench import whole_model
from sparseinfer.bench.decode import CompiledDecode, logit_errors
from sparseinfer.modules import SparseLinear

transformers = pytest.importorskip("transformers", reason="pip install 'sparseinfer[models]'")
COUNT = 6


@pytest.fixture(autouse=True)
def eager(monkeypatch: pytest.MonkeyPatch) -> list[bool]:
    """Traces graphs as ever, and runs them without inductor, which takes a minute to compile them."""
    graphs, compile_ = [], torch.compile

    def traced(step: Callable[..., Any], *, fullgraph: bool, dynamic: bool, options: Any) -> Any:
        graphs.append(fullgraph)
        assert options == {"freezing": True}
        return compile_(step, fullgraph=fullgraph, dynamic=dynamic, backend="eager")

    monkeypatch.setattr(torch, "compile", traced)
    return graphs


@pytest.fixture(scope="module")
def pruned() -> Any:
    torch.manual_seed(0)
    sizes = {"hidden_size": 64, "intermediate_size": 96, "num_attention_heads": 2, "vocab_size": 128}
    model = transformers.LlamaForCausalLM(transformers.LlamaConfig(**sizes, num_hidden_layers=1)).eval()
    prune_(model, Magnitude(0.8), ignore=("lm_head",), keep_masks=False, progress=False)
    return model.bfloat16()


def greedy(model: Any, ids: Tensor) -> Tensor:
    tokens = []
    for _ in range(COUNT):
        tokens.append(model(input_ids=ids).logits[:, -1].argmax(-1))
        ids = torch.cat([ids, tokens[-1][:, None]], 1)
    return torch.stack(tokens, 1)


@torch.no_grad()
def test_steps_are_graphs_and_tokens_those_of_eager_runs(pruned: Any, eager: list[bool]) -> None:
    ids = torch.tensor([[3, 5, 7], [11, 13, 17]])
    fast = convert(pruned, example_inputs={"input_ids": ids[:, :1]}, memory="compact")
    assert isinstance(fast.model.layers[0].mlp.down_proj, SparseLinear)
    expected = greedy(copy.deepcopy(pruned).float(), ids)
    for model in (pruned, fast):
        decode = CompiledDecode(model, COUNT)
        for _ in range(2):  # of which the second finds a cache
            assert torch.equal(decode(ids), expected)
    assert eager == [True, True]


@torch.no_grad()
def test_logits_are_compared_with_float32(pruned: Any) -> None:
    ids = torch.tensor([[3, 5, 7]])
    forced = greedy(pruned, ids)
    errors = logit_errors(CompiledDecode(pruned, COUNT), pruned, ids, forced)
    assert 0 < errors.dense < 2e-2
    assert 0 < errors.converted < 2e-2
    wrong = copy.deepcopy(pruned)
    nn.init.zeros_(wrong.model.layers[0].mlp.down_proj.weight)
    assert logit_errors(CompiledDecode(wrong, COUNT), pruned, ids, forced).converted > 5 * errors.converted


def test_a_measurement_says_so(pruned: Any, monkeypatch: pytest.MonkeyPatch) -> None:
    def prompt(batch: int) -> Tensor:
        return torch.tensor([[3, 5, 7]]).expand(batch, -1)

    spec = whole_model.models.Model(
        lambda: copy.deepcopy(pruned),
        prompt,
        greedy,
        example=lambda ids: {"input_ids": ids[:, :1]},
        ignore=("lm_head",),
        tokens=COUNT,
    )
    other = whole_model.models.Model(nn.Identity, prompt, greedy)
    monkeypatch.setattr(whole_model.models, "MODELS", {"tiny": spec, "other": other})
    settings = whole_model.ModelSettings(
        ("tiny",), (2,), (0.5,), ("bf16-model",), ("bf16",), compiled=True, budget_s=1e-3
    )
    (row,) = whole_model.run(settings)
    assert row.compiled
    assert row.logit_errors is not None
    assert row.logit_errors.converted < 2e-2
    assert row.tokens_per_s == pytest.approx(1e3 * 2 * COUNT / row.sparse_ms)
    with pytest.raises(ValueError, match="compiled: expected a model that generates tokens, got other"):
        whole_model.ModelSettings(("other",), compiled=True)
