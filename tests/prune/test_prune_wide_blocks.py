"""The patterns of zeros that vector and tile kernels gain from, by every method that has a name."""

from __future__ import annotations

import copy

import pytest
import torch
from generators import values
from prune_helpers import linear
from torch import nn

from sparseinfer.convert.survey.weights import Weights
from sparseinfer.prune import Block, CalibrationStats, calibrate, prune_, registry
from sparseinfer.prune.methods.sparse import SparseMethod

METHODS = list(registry.methods().values())
BLOCKS = [Block(16, 1), Block(4, 1), Block(16, 32)]
N, K = 48, 96

methods = pytest.mark.parametrize("method", METHODS, ids=lambda method: method.name)


def net(n: int = N, k: int = K) -> nn.Sequential:
    return nn.Sequential(linear(n, k))


def statistics(model: nn.Module, k: int = K) -> CalibrationStats:
    return calibrate(model, [values(128, k, seed=7)], loss_fn=lambda y, x: y.square().mean(), progress=False)


@methods
@pytest.mark.parametrize("block", BLOCKS, ids=str)
def test_whole_blocks_are_pruned_as_many_as_asked_for(method: type[SparseMethod], block: Block) -> None:
    model, how = net(), method(0.75, pattern=block)
    prune_(model, how, stats=statistics(model), keep_masks=False)
    weight = model[0].weight.detach()
    kept = (weight != 0).view(N // block.r, block.r, K // block.c, block.c)
    assert torch.equal(kept.any(3).any(1), kept.all(3).all(1))
    rows, columns = N // block.r, K // block.c
    counted = (rows, columns) if how.scope == "row" else (1, rows * columns)
    assert int(kept.any(3).any(1).sum()) == counted[0] * (counted[1] - round(0.75 * counted[1]))
    found = Weights(weight, None).block
    assert found == ((16, block.c) if block.r == 16 else None)


@methods
@pytest.mark.parametrize("block", BLOCKS, ids=str)
def test_a_matrix_that_blocks_do_not_divide_is_refused(method: type[SparseMethod], block: Block) -> None:
    for n, k in ((block.r * 3 + 1, 96), *([(48, 100)] if block.c > 1 else [])):
        model = net(n, k)
        before = copy.deepcopy(model.state_dict())
        with pytest.raises(
            ValueError, match=rf"0.weight: expected a multiple of {block.r} rows and {block.c} "
        ):
            prune_(model, method(0.5, pattern=block), stats=statistics(model, k))
        assert all(torch.equal(t, before[name]) for name, t in model.state_dict().items())
