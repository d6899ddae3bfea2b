"""Converting whole modules for a GPU: a stand-in multiplies, and the CPU is taken for a GPU."""

from __future__ import annotations

from collections.abc import Iterator
from functools import partial
from typing import Any

import pytest
import torch
from convert_helpers import K, Script, assert_restored, kinds, linear, pruned
from cuda_native import Native, pretend_to_be_a_gpu
from generators import tokens, values, weight
from torch import Tensor, nn

from sparseinfer import (
    SparseConv1d,
    SparseConv2d,
    SparseLinear,
    SparseMultiheadAttention,
    convert,
    explain,
)
from sparseinfer.convert.assembly import replacements
from sparseinfer.convert.survey.recording import Recording
from sparseinfer.convert.timing import whole_layers
from sparseinfer.convert.timing.ranking import Ranking
from sparseinfer.modules import SparseGRU, SparseLSTM, SparseRNN

# A layer of integers: every sum is exact.
exact = partial(pruned, integer=True)

pytestmark = pytest.mark.usefixtures("script")


@pytest.fixture(autouse=True)
def gpu(monkeypatch: pytest.MonkeyPatch) -> Iterator[Native]:
    module = pretend_to_be_a_gpu(monkeypatch)
    with torch.no_grad():
        yield module


@pytest.mark.parametrize("last", [False, True])
@pytest.mark.parametrize(
    "options",
    [
        {"kernel_size": 1},
        {"kernel_size": 1, "stride": 2},
        {"kernel_size": 3, "padding": 1, "stride": 2, "groups": 2},
        {"kernel_size": (2, 3), "dilation": 2, "padding": "same"},
    ],
)
def test_conv2d(gpu: Native, options: dict[str, Any], last: bool) -> None:
    dense = nn.Sequential(exact(nn.Conv2d(8, 16, **options)), nn.ReLU()).eval()
    x = values(2, 8, 9, 7, integer=True)
    x = x.to(memory_format=torch.channels_last) if last else x
    fast = convert(dense, example_inputs=x, memory="speed")
    assert isinstance(fast[0], SparseConv2d)
    assert explain(fast).rows[0].reason.endswith("with relu")
    assert torch.equal(fast(x), dense(x))
    assert fast(x).is_contiguous(memory_format=torch.channels_last if last else torch.contiguous_format)
    assert set(gpu.calls) == {"spmm_csr_f32_t32__simt"}
    assert_restored(fast, dense)


@pytest.mark.parametrize("batched", [True, False])
def test_conv1d(gpu: Native, batched: bool) -> None:
    dense = nn.Sequential(exact(nn.Conv1d(8, 16, 5, padding=2, stride=2)))
    x = values(*((3,) if batched else ()), 8, 50, integer=True)
    fast = convert(dense, example_inputs=x)
    assert kinds(fast) == [SparseConv1d]
    assert torch.equal(fast(x), dense(x))
    assert gpu.calls
    assert_restored(fast, dense)


def test_linears_that_share_their_input(gpu: Native) -> None:
    class Both(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.a, self.b = linear(), linear(seed=1)

        def forward(self, x: Tensor) -> Tensor:
            return self.a(x) * self.b(x)

    dense = Both().eval()
    x = tokens(9, K, integer=True)
    fast = convert(dense, example_inputs=x)
    gpu.calls.clear()
    assert torch.equal(fast(x), dense(x))
    assert gpu.calls == ["spmm_csr_f32_t32__simt"]
    assert_restored(fast, dense)


def test_attention(gpu: Native) -> None:
    class Self(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.attention = nn.MultiheadAttention(16, 2, batch_first=True)

        def forward(self, x: Tensor) -> Tensor:
            return self.attention(x, x, x, need_weights=False)[0]

    dense = Self().eval()
    for name, parameter in dense.named_parameters():
        if name.endswith("weight"):
            parameter.mul_(weight("random", *parameter.shape, 0.8) != 0)
    x = tokens(12, 16).view(2, 6, 16)
    fast = convert(dense, example_inputs=x)
    assert kinds(fast) == [SparseMultiheadAttention]
    assert {type(part) for part in fast.attention.children()} == {SparseLinear}
    assert (fast(x) - dense(x)).abs().max() <= 1e-5 * dense(x).abs().max()
    assert gpu.calls
    assert_restored(fast, dense)


@pytest.mark.parametrize(
    ("kind", "sparse"), [(nn.LSTM, SparseLSTM), (nn.GRU, SparseGRU), (nn.RNN, SparseRNN)]
)
def test_recurrent(
    gpu: Native, monkeypatch: pytest.MonkeyPatch, kind: type[nn.RNNBase], sparse: type[nn.Module]
) -> None:
    dense = nn.Sequential(kind(16, 32, 2, batch_first=True, bidirectional=True)).eval()
    for parameter in dense.parameters():
        if parameter.dim() == 2:
            parameter.mul_(weight("random", *parameter.shape, 0.8) != 0)
    x = tokens(15, 16).view(3, 5, 16)
    compared = []

    def compare(own: nn.Module, other: nn.Module, recording: Recording, *, on_gpu: bool) -> None:
        assert on_gpu
        compared.append((type(own), type(other), recording.shapes[own]))

    monkeypatch.setattr(replacements, "slower_than_torch", compare)
    fast = convert(dense, example_inputs=x)
    assert compared == [(kind, sparse, ((3, 5, 16),))]
    assert kinds(fast) == [sparse]
    for found, wanted in zip(_flat(fast(x)), _flat(dense(x)), strict=True):
        assert (found - wanted).abs().max() <= 1e-5 * wanted.abs().max()
    assert gpu.calls
    assert_restored(fast, dense)


@pytest.mark.parametrize("measure", [True, False])
def test_recurrent_layers_that_cudnn_computes_faster_stay(
    monkeypatch: pytest.MonkeyPatch, measure: bool
) -> None:
    monkeypatch.setattr(torch.cuda, "synchronize", lambda device: None)
    monkeypatch.setattr(replacements, "slower_than_torch", whole_layers.slower_than_torch)
    slow = Ranking({"dense": 10.0, "layer": 12.0}, is_sure=True)
    monkeypatch.setattr(whole_layers, "rank", lambda calls, **how: slow)
    dense = nn.Sequential(exact(nn.GRU(16, 32)))
    fast = convert(dense, example_inputs=tokens(15, 16).view(5, 3, 16), measure=measure)
    assert kinds(fast) == [nn.GRU]
    rows = explain(fast).rows
    reason = "cuDNN's layer is faster: 1.2x" if measure else "cuDNN's layer is compared by measuring only"
    assert [(row.decision, row.reason, row.kernels) for row in rows] == [("dense", reason, ())] * 2
    assert all(row.nbytes == row.dense_nbytes for row in rows)
    compact = convert(dense, example_inputs=tokens(15, 16).view(5, 3, 16), measure=measure, memory="compact")
    assert kinds(compact) == [SparseGRU]


def test_recurrent_layers_that_are_faster_sparse(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(torch.cuda, "synchronize", lambda device: None)
    monkeypatch.setattr(replacements, "slower_than_torch", whole_layers.slower_than_torch)
    ran: list[object] = []

    def rank(calls: Any, **how: Any) -> Ranking:
        ran.append([[call() for call in own] for own in calls.values()])
        return Ranking({"dense": 10.0, "layer": 9.0}, is_sure=True)

    monkeypatch.setattr(whole_layers, "rank", rank)
    dense = nn.Sequential(exact(nn.GRU(16, 32)))
    assert kinds(convert(dense, example_inputs=tokens(15, 16).view(5, 3, 16))) == [SparseGRU]
    assert len(ran) == 1
    assert kinds(convert(dense, tokens=(3,))) == [nn.GRU]  # nothing to compare with


def _flat(result: Any) -> list[Tensor]:
    return [result] if isinstance(result, Tensor) else [t for part in result for t in _flat(part)]


def test_transposed_linear(gpu: Native) -> None:
    conv1d = pytest.importorskip("transformers.pytorch_utils").Conv1D
    dense = nn.Sequential(exact(conv1d(24, 40)))
    x = tokens(9, 40, integer=True)
    fast = convert(dense, example_inputs=x)
    assert kinds(fast) == [SparseLinear]
    assert torch.equal(fast(x), dense(x))
    assert gpu.calls
    assert_restored(fast, dense)


def test_convolutions_that_are_faster_dense_stay(script: Script) -> None:
    script.ratio = lambda layout, m: 1.5
    dense = nn.Sequential(exact(nn.Conv2d(8, 16, 3)))
    fast = convert(dense, example_inputs=values(2, 8, 9, 7))
    assert kinds(fast) == [nn.Conv2d]
    (row,) = explain(fast).rows
    assert row.decision == "dense"
    assert row.reason.startswith("dense is faster")
