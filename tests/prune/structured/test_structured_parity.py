"""The same units as Torch-Pruning for l2 magnitude over whole groups."""

from __future__ import annotations

import copy
import warnings
from typing import Any

import torch
from structured_models import family
from torch import nn

from sparseinfer.prune.structured import prune_structured_

with warnings.catch_warnings():
    warnings.simplefilter("ignore")
    import torch_pruning as tp


def by_torch_pruning(
    model: nn.Module, inputs: Any, ratio: float, whole: list[nn.Module], heads: dict[nn.Module, int]
) -> nn.Module:
    """Torch-Pruning with its l2 magnitude over groups; the rows of `whole` stay, and the size of heads."""
    pruner = tp.pruner.BasePruner(
        model,
        inputs,
        importance=tp.importance.GroupMagnitudeImportance(p=2),
        pruning_ratio=ratio,
        ignored_layers=whole,
        num_heads=heads,
        prune_num_heads=bool(heads),
        prune_head_dims=False,
        head_pruning_ratio=ratio,
    )
    pruner.step()
    return model


def test_the_channels_of_a_resnet_are_those_of_torch_pruning() -> None:
    model, (x,) = family("resnet")
    theirs = copy.deepcopy(model)
    by_torch_pruning(theirs, x, 0.25, [theirs.fc], {})
    prune_structured_(model, x, ratio=0.25, round_to=1)
    ours, theirs_state = model.state_dict(), theirs.state_dict()
    for name, value in ours.items():
        assert torch.equal(value, theirs_state[name]), name


def test_the_heads_and_neurons_of_bert_are_those_of_torch_pruning() -> None:
    model, inputs = family("bert")
    theirs = copy.deepcopy(model)
    layers = theirs.bert.encoder.layer
    attentions = [layer.attention.self for layer in layers]
    heads = {m: 4 for a in attentions for m in (a.query, a.key, a.value)}
    whole = [m for layer in layers for m in (layer.attention.output.dense, layer.output.dense)]
    whole += [*theirs.bert.embeddings.modules(), theirs.bert.pooler.dense, theirs.classifier]
    by_torch_pruning(theirs, inputs, 0.25, whole, heads)
    prune_structured_(model, inputs, ratio=0.25, round_to=1, ignore=["re:.*pooler.*"])
    expected = theirs.state_dict()
    for name, value in model.state_dict().items():
        assert torch.equal(value, expected[name]), name
