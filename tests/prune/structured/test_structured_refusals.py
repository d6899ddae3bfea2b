"""What cannot be pruned is refused by name, and after any error the model is as it was."""

from __future__ import annotations

import copy
from typing import Any

import pytest
import torch
from structured_models import family
from torch import Tensor, nn

import sparseinfer as si
from sparseinfer.prune.structured import prune_structured_


class Counted(nn.Module):
    """Its forward has the number of its channels in it."""

    def __init__(self) -> None:
        super().__init__()
        self.first = nn.Linear(6, 16)
        self.inner = nn.Module()
        self.second = nn.Linear(16, 4)

    def forward(self, x: Tensor) -> Tensor:
        return self.second(torch.relu(self.first(x)).reshape(len(x), 16))


class Recurrent(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.before, self.lstm = nn.Linear(6, 8), nn.LSTM(8, 8, batch_first=True)
        self.attention = nn.MultiheadAttention(8, 2, batch_first=True)
        self.wide, self.out = nn.Linear(8, 32), nn.Linear(32, 8)

    def forward(self, x: Tensor) -> Tensor:
        x = self.lstm(self.before(x))[0]
        x = x + self.attention(x, x, x)[0]
        return self.out(torch.relu(self.wide(x)))


def everything(model: nn.Module) -> dict[str, Any]:
    values: dict[str, Any] = {f"state {key}": value.clone() for key, value in model.state_dict().items()}
    for fqn, module in model.named_modules():
        for key, value in vars(module).items():
            if type(value) in (int, tuple, str, float, dict) and not key.startswith("_"):
                values[f"{fqn} {key}"] = copy.deepcopy(value)
    if hasattr(model, "config"):
        values["config"] = model.config.to_dict()
    return values


def assert_same(before: dict[str, Any], after: dict[str, Any]) -> None:
    assert before.keys() == after.keys()
    for key, value in before.items():
        assert torch.equal(value, after[key]) if isinstance(value, Tensor) else value == after[key], key


def test_a_forward_that_counts_is_refused_and_nothing_is_changed() -> None:
    model = Counted()
    before, parameters = everything(model), list(model.parameters())
    with pytest.raises(RuntimeError, match="Counted: expected it to run with fewer units"):
        prune_structured_(model, torch.randn(3, 6), ratio=0.5, round_to=1)
    assert_same(before, everything(model))
    assert all(a is b for a, b in zip(parameters, model.parameters(), strict=True))


@pytest.mark.parametrize("name", ["mobilenet", "gpt2", "llama", "t5"])
def test_an_error_at_the_end_takes_everything_back(name: str, monkeypatch: pytest.MonkeyPatch) -> None:
    model, inputs = family(name)
    optimizer = torch.optim.Adam(model.parameters())
    for parameter in model.parameters():
        parameter.grad = torch.ones_like(parameter)
    optimizer.step()
    before, state = everything(model), copy.deepcopy(optimizer.state_dict())

    def fails(*args: object) -> None:
        assert model.state_dict()  # all has been changed by now
        assert any(a.shape != before[f"state {key}"].shape for key, a in model.state_dict().items())
        raise RuntimeError("stop")

    monkeypatch.setattr("sparseinfer.prune.structured.apply.check_runs", fails)
    with pytest.raises(RuntimeError, match="stop"):
        prune_structured_(model, inputs, ratio=0.5, optimizer=optimizer)
    assert_same(before, everything(model))
    assert all(p.grad.shape == p.shape for p in model.parameters())
    for key, values in optimizer.state_dict()["state"].items():
        for what, value in values.items():
            assert torch.equal(value, state["state"][key][what])


def test_what_stays_is_named_with_the_reason() -> None:
    model, x = Recurrent(), torch.randn(2, 5, 6)
    report = prune_structured_(model, x, ratio=0.5)
    reasons = {each.name: each.reason for each in report.refused}
    assert "lstm" in reasons["before.weight"]
    assert "as many rows as its embedding is wide" in reasons["attention.out_proj.weight"]
    assert reasons["out.weight"] == "the model returns it"
    assert [(g.name, g.before, g.after) for g in report.groups] == [("wide.weight", 32, 16)]
    assert "before.weight stays: " in str(report)


def test_torchs_attention_cannot_run_with_fewer_heads() -> None:
    """Why its heads stay: its forward reads 3 · embed_dim rows of in_proj, however many heads there are."""
    attention, x = nn.MultiheadAttention(8, 2, batch_first=True), torch.randn(2, 5, 8)
    attention.num_heads = 1
    attention.in_proj_weight = nn.Parameter(torch.randn(3 * 4, 8))
    attention.in_proj_bias = nn.Parameter(torch.randn(3 * 4))
    attention.out_proj.weight = nn.Parameter(torch.randn(8, 4))
    with pytest.raises(RuntimeError, match="12"):
        attention(x, x, x)


def test_a_target_that_cannot_be_pruned_is_an_error() -> None:
    model, x = Recurrent(), torch.randn(2, 5, 6)
    before = everything(model)
    with pytest.raises(
        ValueError, match=r"before.weight: expected units that can be removed, got none: lstm"
    ):
        prune_structured_(model, x, ratio=0.5, targets=["before"])
    assert_same(before, everything(model))


def test_targets_and_ignore_choose_groups() -> None:
    model, inputs = family("bert")
    report = prune_structured_(model, inputs, ratio=0.5, targets=["re:.*intermediate.*"])
    assert {g.kind for g in report.groups} == {"neurons"}
    model, inputs = family("bert")
    report = prune_structured_(model, inputs, ratio=0.5, ignore=["re:.*layer.0.*", "re:.*pooler.*"])
    assert [g.name for g in report.groups] == [
        "bert.encoder.layer.1.attention.self.query.weight",
        "bert.encoder.layer.1.intermediate.dense.weight",
    ]


@pytest.mark.parametrize(
    ("options", "error", "message"),
    [
        ({}, ValueError, "ratio: expected one of ratio, flops and latency"),
        ({"ratio": 0.5, "flops": 0.5}, ValueError, "ratio: expected one of"),
        ({"ratio": 1.0}, ValueError, r"ratio: expected a number in \[0, 1\)"),
        ({"ratio": {"nothing": 0.5}}, ValueError, "ratio: expected names of groups, got 'nothing'"),
        ({"ratio": 0.5, "round_to": 0}, ValueError, "round_to: expected at least 1"),
        ({"ratio": 0.5, "scope": "layer"}, ValueError, "scope: expected one of group, global"),
        ({"ratio": 0.5, "units": ["head"]}, ValueError, "units: expected some of heads"),
        ({"ratio": 0.5, "importance": "best"}, ValueError, "importance: expected one of magnitude"),
        ({"ratio": 0.5, "importance": 3}, TypeError, "importance: expected a name"),
        ({"ratio": 0.5, "importance": "wanda"}, ValueError, "stats: expected calibration statistics"),
        ({"ratio": 0.5, "update": True}, ValueError, "stats: expected calibration statistics for update"),
        ({"flops": 0.001}, ValueError, "flops: expected at least"),
        ({"latency": -1}, ValueError, "latency: expected a positive number"),
        ({"ratio": 0.5, "importance": "batch_norm"}, ValueError, "importance: expected one that has scores"),
    ],
)
def test_bad_arguments(options: dict[str, Any], error: type[Exception], message: str) -> None:
    model, inputs = family("bert")
    before = everything(model)
    with pytest.raises(error, match=message):
        prune_structured_(model, inputs, **options)
    assert_same(before, everything(model))


def test_masks_of_prune_and_weights_without_data_are_refused() -> None:
    model, inputs = family("resnet")
    si.prune_(model, si.Magnitude(0.5))
    with pytest.raises(ValueError, match="finalize_ first"):
        prune_structured_(model, inputs, ratio=0.5)
    si.finalize_(model)
    prune_structured_(model, inputs, ratio=0.5)
    with pytest.raises(ValueError, match="expected a weight with data"):
        prune_structured_(model.to("meta"), inputs, ratio=0.5)
    with pytest.raises(TypeError, match="model: expected"):
        prune_structured_(3, inputs, ratio=0.5)  # type: ignore[arg-type]
