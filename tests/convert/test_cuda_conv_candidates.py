"""Planning convolutions for a GPU, on paper. Weights lie on the CPU, packed as they would be on a GPU."""

from __future__ import annotations

from typing import Any

import pytest
import torch
from cuda_native import pretend_to_be_a_gpu
from generators import block_weight, values, weight
from torch import Tensor, nn

from sparseinfer._timing import Call
from sparseinfer.convert.candidates import cuda_conv
from sparseinfer.convert.candidates.cuda_conv import CHANNELS_LAST, CudaConvCandidates
from sparseinfer.convert.plan import Plan, plan
from sparseinfer.convert.survey.recording import record
from sparseinfer.convert.survey.weights import Weights
from sparseinfer.convert.timing.timer import Timer
from sparseinfer.ops import Layout
from sparseinfer.ops.cuda import packing as cuda_packing
from sparseinfer.ops.dense import PLAIN

BF16 = torch.bfloat16
CSR = Layout("csr", "f32", device="cuda")


def case(conv: Any, matrix: Tensor, x: tuple[int, ...], channels_last: bool = False) -> CudaConvCandidates:
    conv.weight = nn.Parameter(matrix.reshape(conv.weight.shape))
    conv.to(matrix.dtype)
    weights = Weights(matrix, None if conv.bias is None else conv.bias.detach())
    pixels = conv(torch.zeros(x, dtype=matrix.dtype)).numel() // conv.out_channels
    return CudaConvCandidates(weights, weights, conv, {pixels: x}, channels_last)


def planned(found: CudaConvCandidates) -> Plan:
    return plan(found, list(found.shapes), Timer(measure=False), 1.0)


def test_few_weights_of_a_kernel_of_one_become_sparse() -> None:
    conv = nn.Conv2d(2048, 2048, 1, bias=False)
    found = planned(case(conv, weight("random", 2048, 2048, 0.98), (8, 2048, 7, 7)))
    assert [(b.max_tokens, b.kernel) for b in found.buckets] == [(None, "spmm_csr_f32_t32")]
    assert [len(packings) for packings in found.packings] == [1]


def test_few_zeros_stay_dense() -> None:
    conv = nn.Conv2d(64, 64, 3)
    for sparsity, reason in ((0.2, "too dense to win"), (0.6, "dense is faster")):
        found = planned(case(conv, weight("random", 64, 576, sparsity), (4, 64, 16, 16)))
        assert not found.is_sparse
        assert found.reason.startswith(reason)
        assert found.dense_kind == "dense"


def test_unfolding_costs() -> None:
    one = case(nn.Conv2d(576, 64, 1), weight("random", 64, 576, 0.9), (4, 576, 16, 16))
    nine = case(nn.Conv2d(64, 64, 3, padding=1), weight("random", 64, 576, 0.9), (4, 64, 16, 16))
    (tokens,) = one.shapes
    assert one.predict(PLAIN, tokens) == nine.predict(CHANNELS_LAST, tokens)
    linear = one._by_group[0].predict(CSR, tokens)
    assert nine.predict(CSR, tokens) == one.predict(CSR, tokens) > linear


def test_every_group_has_its_packing() -> None:
    matrix = weight("random", 32, 16, 0.9)
    found = case(nn.Conv1d(32, 32, 1, groups=2), matrix, (4, 32, 100))
    assert found.dense_names == (PLAIN,)
    assert found.layouts(400) == (CSR,)
    for packed, rows in zip(found.packed(CSR), matrix.chunk(2), strict=True):
        assert torch.equal(packed, cuda_packing.pack_dense(rows))


def test_blocks_have_to_fit_every_group() -> None:
    blocks = block_weight(64, 64, (32, 32), 0.5, dtype=BF16)
    layout = Layout("bsr", "bf16", 32, "cuda")
    found = case(nn.Conv2d(128, 128, 1, groups=2), torch.cat([blocks, blocks]), (1, 128, 8, 8))
    assert layout in found.layouts(64)
    assert len(found.packed(layout)) == 2
    scattered = torch.cat([blocks, weight("random", 64, 64, 0.9, dtype=BF16)])
    found = case(nn.Conv2d(128, 128, 1, groups=2), scattered, (1, 128, 8, 8))
    assert [one.packing for one in found.layouts(64)] == [
        "bitmap",
        "delta4",
        "delta8",
    ]  # 82 % of zeros together
    for one in found.layouts(64):
        assert 0 < found.predict(one, 64) < float("inf")


@pytest.mark.parametrize("last", [False, True])
def test_every_way_computes_the_convolution(monkeypatch: pytest.MonkeyPatch, last: bool) -> None:
    pretend_to_be_a_gpu(monkeypatch)
    waited_for: list[torch.device] = []

    def called(call: Call, device: torch.device) -> Call:
        waited_for.append(device)
        return call

    monkeypatch.setattr(cuda_conv, "waited_for", called)
    conv = nn.Conv2d(4, 8, 3, padding=1)
    conv.bias = nn.Parameter(values(8, integer=True))
    found = case(conv, weight("random", 8, 36, 0.8, integer=True), (2, 4, 6, 5), last)
    x = found._x(60)
    assert x.is_contiguous(memory_format=torch.channels_last) == last
    assert ("channels_last" in found.shape) == last
    ways = {**found.dense(60), str(CSR): found.sparse(CSR, 60)}
    assert list(ways) == [PLAIN, CHANNELS_LAST, str(CSR)]
    with torch.no_grad():
        for make in ways.values():
            y: Any = make()()
            assert torch.allclose(y, conv(x), atol=1e-4)
    assert len(waited_for) == 3


def test_the_run_shows_how_images_lie() -> None:
    model = nn.Sequential(nn.Conv2d(4, 8, 3), nn.Flatten(), nn.Linear(8, 2)).eval()
    x = values(2, 4, 3, 3)
    assert record(model, [model[0]], (x,)).channels_last == frozenset()
    last = x.to(memory_format=torch.channels_last)
    assert record(model, [model[0]], (last,)).channels_last == {model[0]}

    class Twice(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.conv = nn.Conv2d(4, 8, 3)

        def forward(self, x: Tensor) -> Tensor:
            return self.conv(x) + self.conv(x.contiguous())

    assert record(Twice(), [], (last,)).channels_last == frozenset()
