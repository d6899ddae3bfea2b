"""Groups are right: units whose outgoing weights are zero go without a trace; what is left trains."""

from __future__ import annotations

import copy
from typing import Any

import pytest
import torch
from structured_models import FAMILIES, build, family, qwen3
from torch import Tensor, nn

from sparseinfer._running import call, run
from sparseinfer.prune.structured import prune_structured_
from sparseinfer.prune.structured.apply import find_groups
from sparseinfer.prune.structured.importance import Context, RandomUnits
from sparseinfer.prune.structured.kinds import input_axis

ALL = {**FAMILIES, "qwen3": qwen3}


def first(output: Any) -> Tensor:
    return output if isinstance(output, Tensor) else output.logits if "logits" in output else output[0]


def close_units(model: nn.Module, inputs: Any, ratio: float, importance: RandomUnits) -> int:
    """Set the weights to zero that read the units which will be removed; returns how many these are."""
    found = find_groups(model, inputs, ("heads", "neurons", "channels"))
    context = Context(model, dict(model.named_parameters()), {}, None)
    count = 0
    for group in found.groups:
        order = importance.scores(group, context).argsort().tolist()
        gone = order[: group.size - int(group.size * (1 - ratio) + 1e-9)]
        count += len(gone)
        read = 0
        for member in group.members:
            owner, _, name = member.weight.rpartition(".")
            module = model.get_submodule(owner)
            transposed = isinstance(module, nn.modules.conv._ConvTransposeNd)
            grouped = getattr(module, "groups", 1) > 1 and member.axis == (0 if transposed else 1)
            if grouped or input_axis(module, name) == member.axis:
                weight = module.get_parameter(name)
                with torch.no_grad():
                    weight.movedim(member.axis, 0)[member.indices[gone].reshape(-1)] = 0
                read += 1
        assert read, f"{group.name}: nothing reads it"
    return count


@pytest.mark.parametrize("name", ALL)
def test_units_whose_outgoing_weights_are_zero_change_nothing(name: str) -> None:
    model, inputs = build(ALL[name])
    model, importance = model.double(), RandomUnits(3)
    inputs = _doubled(inputs)
    assert close_units(model, inputs, 0.3, importance) > 4
    expected = first(run(model, inputs))
    report = prune_structured_(model, inputs, importance, ratio=0.3, round_to=1)
    assert sum(group.before - group.after for group in report.groups) > 4
    got = first(run(model, inputs))
    # Sums in another order: far below the 1e-5 of fp32.
    assert (got - expected).abs().max() <= 1e-10 * expected.abs().max()
    assert report.flops[1] < report.flops[0]
    assert report.parameters[1] == sum(p.numel() for p in model.parameters()) < report.parameters[0]


@pytest.mark.parametrize("name", FAMILIES)
def test_pruned_models_train(name: str) -> None:
    model, inputs = family(name)
    prune_structured_(model, inputs, ratio=0.3)
    model.train()
    optimizer = torch.optim.SGD(model.parameters(), lr=1e-2)
    first(call(model, inputs)).square().mean().backward()
    assert all(p.grad is None or p.grad.shape == p.shape for p in model.parameters())
    before = copy.deepcopy(model.state_dict())
    optimizer.step()
    assert any(not torch.equal(before[key], value) for key, value in model.state_dict().items())


@pytest.mark.parametrize("name", ["gpt2", "llama", "t5", "whisper"])
def test_generation_with_a_cache_equals_that_without(name: str) -> None:
    model, inputs = family(name)
    prune_structured_(model, inputs, ratio=0.3)
    given = (
        {"input_features": inputs["input_features"]}
        if name == "whisper"
        else {"input_ids": inputs["input_ids"] if isinstance(inputs, dict) else inputs[0]}
    )
    with torch.no_grad():
        made = [
            model.generate(**given, max_new_tokens=6, do_sample=False, use_cache=cached)
            for cached in (True, False)
        ]
    assert torch.equal(*made)


@pytest.mark.parametrize("name", ["resnet", "bert", "llama"])
def test_the_width_of_embeddings_goes_too(name: str) -> None:
    model, inputs = family(name)
    shape = first(run(model, inputs)).shape
    units = ("heads", "neurons", "channels", "width")
    report = prune_structured_(model, inputs, ratio=0.25, units=units)
    assert all(group.after < group.before for group in report.groups)
    output = first(run(model, inputs))
    assert output.shape == shape
    assert output.isfinite().all()


def _doubled(inputs: Any) -> Any:
    if isinstance(inputs, dict):
        return {key: _doubled(value) for key, value in inputs.items()}
    if isinstance(inputs, tuple):
        return tuple(map(_doubled, inputs))
    return inputs.double() if inputs.is_floating_point() else inputs
