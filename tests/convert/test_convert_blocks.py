"""Zeros in blocks of 16 rows: how they are recognised, planned and held. Times are scripted."""

from __future__ import annotations

import copy
import io

import pytest
import torch
from convert_helpers import Script, assert_restored
from generators import block_mask, tokens, values
from torch import Tensor, nn

from sparseinfer import Block, Magnitude, convert, explain, finalize_, prune_
from sparseinfer.convert.candidates.conv import ConvCandidates, sparse_conv
from sparseinfer.convert.survey.weights import Weights
from sparseinfer.formats import BSR, CSR
from sparseinfer.ops import Layout

N, K = 48, 64


def block_of(weight: Tensor) -> tuple[int, int] | None:
    return Weights(weight, None).block


def blocks(n: int, k: int, block: tuple[int, int], sparsity: float = 0.8) -> Tensor:
    return values(n, k, integer=True) * block_mask(n, k, block, sparsity)


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16, torch.float16])
@pytest.mark.parametrize(
    ("block", "found"),
    [
        ((16, 1), (16, 1)),
        ((48, 1), (16, 1)),
        ((16, 2), (16, 2)),
        ((16, 32), (16, 32)),
        ((32, 64), (16, 64)),
        ((16, 3), (16, 1)),
    ],
)
def test_blocks_are_found(block: tuple[int, int], found: tuple[int, int], dtype: torch.dtype) -> None:
    k = 192
    assert block_of(blocks(96, k, block).to(dtype)) == found
    assert block_of(blocks(96, k, block).to(dtype).T.contiguous().T) == found


@pytest.mark.parametrize("block", [(1, 1), (4, 1), (8, 1), (1, 16), (4, 4), (8, 64)])
def test_other_zeros_are_no_blocks_of_16_rows(block: tuple[int, int]) -> None:
    assert block_of(blocks(96, 192, block)) is None


def test_blocks_begin_at_the_first_row_and_all_are_whole() -> None:
    weight = blocks(96, 192, (16, 1))
    assert block_of(weight.roll(8, 0)) is None
    assert block_of(torch.cat([weight, weight[:8]])) is None
    assert block_of(torch.zeros(96, 192)) is None
    assert block_of(torch.ones(96, 192)) is None


def test_some_zeros_within_blocks_are_allowed() -> None:
    weight = blocks(96, 192, (16, 1))
    kept = weight.nonzero()
    few, many = weight.clone(), weight.clone()
    few[tuple(kept[::10].T)] = 0
    many[tuple(kept[::3].T)] = 0
    assert block_of(few) == (16, 1)
    assert block_of(many) is None


def pruned(pattern: tuple[int, int] = (16, 1)) -> nn.Sequential:
    model = nn.Sequential(nn.Linear(K, N), nn.ReLU(), nn.Linear(N, 32)).eval()
    for layer in (model[0], model[2]):
        layer.weight.data = values(*layer.weight.shape, integer=True)
        layer.bias.data = values(len(layer.bias), integer=True)
    prune_(model, Magnitude(0.75, pattern=Block(*pattern)))
    return finalize_(model)


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
@pytest.mark.parametrize("m", [1, 5, 100])
def test_a_model_pruned_in_blocks_runs_on_them(script: Script, dtype: torch.dtype, m: int) -> None:
    script.ratio = lambda layout, _: 0.2 if layout.packing == "grouplist" else 0.5
    dense = pruned().to(dtype)
    x = tokens(m, K, integer=True).to(dtype)
    fast = convert(dense, example_inputs=x)
    rows = explain(fast).rows
    assert [kernel.split("_")[1] for row in rows for _, kernel in row.kernels] == ["grouplist"] * 2
    assert isinstance(fast[0].to_format(), BSR)
    assert fast[0].to_format().block_size == (16, 1)
    with torch.no_grad():
        assert torch.equal(fast(x), dense(x))
    loaded = copy.deepcopy(fast)
    loaded.load_state_dict(fast.state_dict())
    file = io.BytesIO()
    torch.save(fast, file)
    file.seek(0)
    for again in (loaded, torch.load(file, weights_only=False)):
        with torch.no_grad():
            assert torch.equal(again(x), dense(x))
    assert_restored(fast, dense)


def test_all_layouts_of_a_layer_are_made_from_one_format(script: Script) -> None:
    """sell reads CSR and grouplist BSR: one of them serves all numbers of tokens."""
    few, many = {"sell": 0.1, "grouplist": 0.3}, {"rowgroup": 0.9, "grouplist": 0.2}
    script.ratio = lambda layout, m: (few if m < 16 else many).get(layout.packing, 0.95)
    row = explain(convert(pruned(), tokens=(1, 64), memory="speed")).rows[0]
    assert {kernel.split("_")[1] for _, kernel in row.kernels} == {"grouplist"}
    few["grouplist"] = 0.8
    fast = convert(pruned(), tokens=(1, 64), memory="speed")
    assert {kernel.split("_")[1] for _, kernel in explain(fast).rows[0].kernels} == {"sell", "rowgroup"}
    assert isinstance(fast[0].to_format(), CSR)


def test_scattered_zeros_are_offered_no_layouts_of_blocks(script: Script) -> None:
    convert(pruned((4, 1)))
    assert all(layout.format == "csr" for layouts, _ in script.calls for layout in layouts)
    script.calls.clear()
    convert(pruned())
    offered = {layout for layouts, _ in script.calls for layout in layouts}
    assert {Layout("grouplist"), Layout("bsr"), Layout("sell")} <= offered


@pytest.mark.parametrize("groups", [1, 2, 4])
def test_convolutions_have_blocks_where_no_group_cuts_them(groups: int) -> None:
    conv = nn.Conv2d(16 * groups, 96, 3, groups=groups)
    conv.weight.data = blocks(96, 144, (16, 1)).view_as(conv.weight)
    weights = Weights(conv.weight.detach().flatten(1), None)
    candidates = ConvCandidates(weights, weights, conv, {64: (1, 16 * groups, 10, 10)})
    offered = [layout for layout in candidates.layouts(64) if layout.format == "bsr"]
    assert bool(offered) == (96 // groups % 16 == 0)
    x = tokens(16 * groups, 100, integer=True).view(1, 16 * groups, 10, 10)
    for layout in offered:
        packings, buckets = candidates.packed(layout), candidates.buckets(layout)
        sparse = sparse_conv(conv, packings, None, buckets, torch.float32)
        assert torch.equal(sparse(x), nn.functional.conv2d(x, conv.weight.detach(), groups=groups))
