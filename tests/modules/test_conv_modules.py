"""SparseConv2d and SparseConv1d: the same layers as the dense ones, in every way a module is used."""

from __future__ import annotations

import copy
import re
from typing import Any

import pytest
import torch
from copies import by_pickle
from generators import values, weight
from torch import nn
from torch.nn import functional as F

from sparseinfer import ops
from sparseinfer.formats import BSR
from sparseinfer.modules import SparseConv1d, SparseConv2d
from sparseinfer.modules.groups import join_rows, pack_groups, split_rows

# What torch says of itself.
pytestmark = [
    pytest.mark.filterwarnings("ignore:`torch.jit:DeprecationWarning"),
    pytest.mark.filterwarnings("ignore:Using padding='same' with even kernel lengths:UserWarning"),
]

PARTS = ("values", "crow_indices", "col_indices")


def filled(conv: Any, seed: int = 0) -> Any:
    """Integer-valued, so that every result is exact and compared with equality."""
    shape = conv.weight.shape
    flat = weight("random", shape[0], conv.weight[0].numel(), 0.6, integer=True, seed=seed)
    conv.weight = nn.Parameter(flat.reshape(shape))
    if conv.bias is not None:
        conv.bias = nn.Parameter(values(shape[0], integer=True, seed=seed))
    return conv


def dense2d(seed: int = 0, **options: Any) -> nn.Conv2d:
    settings = {"in_channels": 4, "out_channels": 12, "kernel_size": 3, **options}
    return filled(nn.Conv2d(**settings), seed)


def sparse(conv: Any, *arguments: Any, **options: Any) -> Any:
    kind = SparseConv2d if isinstance(conv, nn.Conv2d) else SparseConv1d
    return kind.from_conv(conv, *arguments, **options)


def assert_same_layer(layer: Any, conv: Any, x: torch.Tensor | None = None) -> None:
    assert torch.equal(layer.weight, conv.weight)
    assert (layer.bias is None) == (conv.bias is None)
    if x is None:
        size = (9, 11) if isinstance(conv, nn.Conv2d) else (23,)
        x = values(2, conv.in_channels, *size, integer=True, seed=3)
    with torch.no_grad():
        y = layer(x)
        wanted = copy.deepcopy(conv).double()(x.double())
    assert y.shape == wanted.shape
    assert torch.equal(y.double(), wanted)


OPTIONS: list[dict[str, Any]] = [
    {},
    {"bias": False},
    {"kernel_size": 1},
    {"kernel_size": (2, 5), "padding": (1, 3)},
    {"stride": 2, "padding": 1},
    {"stride": (1, 3), "padding": (0, 2)},
    {"dilation": (2, 1), "padding": 2},
    {"padding": "valid"},
    {"padding": "same"},
    {"padding": "same", "kernel_size": (4, 2), "dilation": (1, 3)},
    {"padding": 1, "padding_mode": "reflect"},
    {"padding": (1, 2), "padding_mode": "replicate", "stride": 2},
    {"padding": (2, 1), "padding_mode": "circular"},
    {"padding": "same", "padding_mode": "circular", "kernel_size": 4},
    {"groups": 2, "padding": 1},
    {"groups": 4, "out_channels": 4},
    {"groups": 4, "padding": "same", "padding_mode": "reflect"},
]


class TestForward:
    @pytest.mark.parametrize("options", OPTIONS, ids=str)
    def test_equals_the_dense_2d_layer(self, options: dict[str, Any]) -> None:
        conv = dense2d(**options)
        assert_same_layer(sparse(conv), conv)

    @pytest.mark.parametrize("options", OPTIONS, ids=str)
    def test_equals_the_dense_1d_layer(self, options: dict[str, Any]) -> None:
        one = {name: v[1] if isinstance(v, tuple) else v for name, v in options.items()}
        conv = filled(nn.Conv1d(**{"in_channels": 4, "out_channels": 12, "kernel_size": 3, **one}))
        assert_same_layer(sparse(conv), conv)

    @pytest.mark.parametrize("options", [{}, {"padding": "same", "kernel_size": 4}, {"groups": 2}], ids=str)
    def test_without_a_batch(self, options: dict[str, Any]) -> None:
        conv = dense2d(**options)
        assert_same_layer(sparse(conv), conv, values(4, 9, 11, integer=True))
        line = filled(nn.Conv1d(4, 8, 3))
        assert_same_layer(sparse(line), line, values(4, 30, integer=True))

    def test_other_layouts_of_memory(self) -> None:
        conv = dense2d(padding=1)
        x = values(2, 4, 9, 11, integer=True)
        assert_same_layer(sparse(conv), conv, x.contiguous(memory_format=torch.channels_last))
        assert_same_layer(sparse(conv), conv, x.transpose(2, 3))

    @pytest.mark.parametrize("packing", ["rowgroup", "rowlist", "bitmap"])
    def test_layouts(self, packing: str) -> None:
        conv = dense2d(padding=1, groups=2)
        assert_same_layer(sparse(conv, [packing]), conv)

    @pytest.mark.parametrize("size", [(4, 4), (20, 20)])
    def test_buckets(self, size: tuple[int, int]) -> None:
        conv = dense2d(padding=1, groups=2)
        assert_same_layer(two_buckets(conv), conv, values(1, 4, *size, integer=True))

    def test_blocks(self) -> None:
        conv = dense2d(in_channels=8, padding=1)
        fmt = BSR.from_dense(conv.weight.detach().flatten(1), (4, 4))
        layer = SparseConv2d([ops.pack(fmt, "bsr")], conv.bias, kernel_size=3, padding=1)
        assert_same_layer(layer, conv)
        assert_same_layer(by_pickle(layer), conv)

    @pytest.mark.parametrize(("name", "function"), [("relu", F.relu), ("silu", F.silu)])
    def test_activation(self, name: str, function: Any) -> None:
        conv = dense2d()
        layer = sparse(conv, activation=name)
        x = values(2, 4, 9, 11)
        with torch.no_grad():
            torch.testing.assert_close(layer(x), function(conv(x)))
        with pytest.raises(ValueError, match="activation: expected 'none'"):
            layer.to_conv()

    @pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float16])
    def test_halves(self, dtype: torch.dtype) -> None:
        conv = dense2d(padding=1).to(dtype)
        layer = sparse(conv)
        x = values(2, 4, 9, 11, integer=True, dtype=dtype)
        with torch.no_grad():
            wanted = copy.deepcopy(conv).double()(x.double()).to(dtype)
            assert torch.equal(layer(x), wanted)

    def test_bad_input(self) -> None:
        layer = sparse(dense2d())
        with pytest.raises(ValueError, match=r"x: expected 3 or 4 dimensions, got shape \(9, 11\)"):
            layer(torch.ones(9, 11))
        with pytest.raises(ValueError, match="x: expected 36 weights a row as packed"):
            layer(torch.ones(2, 5, 9, 11))
        with pytest.raises(RuntimeError, match="x: expected an input without gradients"):
            layer(torch.ones(2, 4, 9, 11, requires_grad=True))


def two_buckets(conv: nn.Conv2d) -> SparseConv2d:
    layouts = [ops.Layout("rowgroup"), ops.Layout("rowlist")]
    buckets = [
        ops.Bucket(63, 0, layouts[0].kernel(64)),
        ops.Bucket(None, 1, layouts[1].kernel(64)),
    ]
    return SparseConv2d.from_conv(conv, layouts, buckets)


class TestModule:
    @pytest.mark.parametrize("options", OPTIONS, ids=str)
    def test_to_conv_is_exact(self, options: dict[str, Any]) -> None:
        conv = dense2d(**options).eval()
        layer = sparse(conv).eval()
        before = torch.get_rng_state()
        back = layer.to_conv()
        assert torch.equal(torch.get_rng_state(), before)
        assert type(back) is nn.Conv2d
        assert repr(back) == repr(conv)
        assert back.training == conv.training
        assert torch.equal(back.weight, conv.weight)
        assert back.weight.requires_grad
        assert_same_layer(layer, back)

    def test_to_conv_of_one_dimension(self) -> None:
        conv = filled(nn.Conv1d(4, 8, 5, stride=2, padding=2, groups=2))
        back = sparse(conv).to_conv()
        assert type(back) is nn.Conv1d
        assert repr(back) == repr(conv)
        assert torch.equal(back.weight, conv.weight)

    @pytest.mark.parametrize("groups", [1, 2, 4])
    def test_state_dict_speaks_the_format(self, groups: int) -> None:
        conv = dense2d(groups=groups, seed=1)
        state = nn.Sequential(two_buckets(conv)).state_dict()
        assert set(state) == {f"0.{part}" for part in (*PARTS, "bias")}
        assert state["0.crow_indices"].shape == (13,)
        target = nn.Sequential(two_buckets(dense2d(groups=groups, seed=2)))
        target.load_state_dict(state)
        assert_same_layer(target[0], conv)

    def test_what_does_not_fit_changes_nothing(self) -> None:
        conv = dense2d(groups=2)
        layer = sparse(conv)
        for other in (dense2d(), dense2d(groups=2, out_channels=8), dense2d(groups=2).half()):
            with pytest.raises(RuntimeError, match="expected"):
                layer.load_state_dict(sparse(other).state_dict())
        assert_same_layer(layer, conv)

    def test_copies(self) -> None:
        conv = dense2d(groups=2, padding="same", kernel_size=4)
        layer = two_buckets(conv)
        for twin in (copy.deepcopy(layer), by_pickle(layer), copy.copy(layer)):
            assert_same_layer(twin, conv)
            assert twin.plan == layer.plan
        deep = copy.deepcopy(layer)
        assert {b.data_ptr() for b in deep.buffers()}.isdisjoint(b.data_ptr() for b in layer.buffers())
        assert "packing_0" not in layer.__getstate__()["_buffers"]

    def test_moves(self) -> None:
        conv = dense2d()
        layer = sparse(conv)
        assert_same_layer(layer.float().cpu(), conv)
        with pytest.raises(TypeError, match=r"SparseConv2d: expected to stay torch.float32 on cpu.*convert"):
            layer.half()
        # Strides of a dense layer's parameters; there is nothing here that could follow.
        assert_same_layer(layer.to(memory_format=torch.channels_last), conv)

    def test_figures(self) -> None:
        conv = dense2d(groups=2, padding=1)
        layer = two_buckets(conv)
        assert layer.nnz == int(conv.weight.count_nonzero())
        assert layer.sparsity == pytest.approx(1 - layer.nnz / conv.weight.numel())
        assert layer.dense_nbytes == 4 * (conv.weight.numel() + 12)
        assert layer.nbytes == sum(held.nbytes for held in (*layer.parameters(), *layer.buffers()))
        assert [name for name, _ in layer.named_parameters()] == ["bias"]
        shown = repr(layer)
        assert "4, 12, kernel_size=(3, 3), stride=(1, 1), padding=(1, 1)" in shown
        assert re.search(r"packings=\[rowgroup_f32_p\d+, rowlist_f32_p\d+\]", shown)

    def test_bad_arguments(self) -> None:
        conv = dense2d()
        blobs = pack_groups(sparse(conv).to_format(), [ops.Layout("rowgroup")])
        for options, message in [
            ({"kernel_size": 5}, "kernel_size: expected a size that divides 36 columns"),
            ({"kernel_size": (3, 3, 3)}, "kernel_size: expected 2 numbers of at least 1"),
            ({"kernel_size": 3, "stride": 0}, "stride: expected 2 numbers of at least 1"),
            ({"kernel_size": 3, "padding": -1}, "padding: expected 2 numbers of at least 0"),
            ({"kernel_size": 3, "padding": "some"}, "padding: expected numbers, 'same' or 'valid'"),
            ({"kernel_size": 3, "padding": "same", "stride": 2}, "stride: expected 1 for padding='same'"),
            ({"kernel_size": 3, "padding_mode": "mirror"}, "padding_mode: expected one of zeros, reflect"),
            ({"kernel_size": 3, "groups": 2}, "packings: expected one of each layout for 2 groups, got 1"),
            (
                {"kernel_size": 3, "buckets": [ops.Bucket(None, 0, "spmm_csr_f32_r1")]},
                "buckets: expected kernels that take a convolution",
            ),
        ]:
            with pytest.raises(ValueError, match=message):
                SparseConv2d(blobs, **options)
        with pytest.raises(ValueError, match="packings: expected groups of one shape in one layout"):
            SparseConv2d([blobs[0], sparse(dense2d(), ["rowlist"]).packing_0], kernel_size=3, groups=2)
        with pytest.raises(TypeError, match=r"conv: expected nn.Conv2d, got Conv1d"):
            SparseConv2d.from_conv(nn.Conv1d(4, 4, 3))  # type: ignore[arg-type]
        with pytest.raises(TypeError, match=r"conv: expected nn.Conv2d, got ConvTranspose2d"):
            SparseConv2d.from_conv(nn.ConvTranspose2d(4, 4, 3))  # type: ignore[arg-type]

    def test_rows_split_and_join(self) -> None:
        fmt = sparse(dense2d()).to_format()
        for groups in (1, 2, 3, 12):
            back = join_rows(split_rows(fmt, groups))
            assert all(torch.equal(getattr(back, part), getattr(fmt, part)) for part in PARTS)
        with pytest.raises(ValueError, match="groups: expected a divisor of 12 rows"):
            split_rows(fmt, 5)


class TestCompile:
    @pytest.fixture(autouse=True)
    def fresh_dynamo(self) -> None:
        torch._dynamo.reset()

    @staticmethod
    def model() -> nn.Sequential:
        layers = [
            sparse(dense2d(padding=1, groups=2)),
            nn.ReLU(),
            sparse(dense2d(in_channels=12, out_channels=4, padding="same", kernel_size=2)),
            nn.Flatten(2),
            sparse(filled(nn.Conv1d(4, 8, 3, padding=1, padding_mode="circular"))),
        ]
        return nn.Sequential(*layers).eval()

    def test_traces_whole(self) -> None:
        eager = self.model()
        compiled = torch.compile(eager, fullgraph=True, backend="eager")
        x = values(2, 4, 9, 11, integer=True)
        assert torch.equal(compiled(x), eager(x))

    @pytest.mark.slow
    def test_inductor(self) -> None:
        eager = self.model()
        compiled = torch.compile(eager, fullgraph=True, backend="inductor")
        with torch.inference_mode():
            for b in (1, 2, 5):
                x = values(b, 4, 9, 11, integer=True)
                assert torch.equal(compiled(x), eager(x))

    @pytest.mark.parametrize("strict", [False, True])
    def test_export_with_any_batch(self, strict: bool) -> None:
        eager = self.model()
        batch = torch.export.Dim("batch", min=1, max=64)
        x = values(3, 4, 9, 11, integer=True)
        program = torch.export.export(eager, (x,), dynamic_shapes=({0: batch},), strict=strict)
        targets = [node.target for node in program.graph.nodes if node.op == "call_function"]
        assert targets.count(torch.ops.sparseinfer.conv.default) == 3
        for b in (1, 2, 7):
            x = values(b, 4, 9, 11, integer=True)
            assert torch.equal(program.module()(x), eager(x))
