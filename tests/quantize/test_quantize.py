"""quantize_: exact integers, exact zeros, on every kind of layer, against plain transcriptions in numpy."""

from __future__ import annotations

import copy

import numpy as np
import pytest
import torch
from generators import values
from quantize_helpers import (
    ALL_KINDS,
    inputs,
    layer_of,
    numpy_gptq,
    numpy_nearest,
    numpy_scales,
    pruned_linear,
)
from torch import nn

from sparseinfer._int8 import integers_of, products, rounded, row_scales
from sparseinfer.prune import calibrate, masks_of, prunable_layers, prune_
from sparseinfer.prune.methods.criteria import Magnitude
from sparseinfer.quantize import GPTQ, RoundToNearest, quantize_
from sparseinfer.quantize.registry import quantizers

DTYPES = (torch.float32, torch.float64, torch.bfloat16, torch.float16)


def integers(module: nn.Module, parameter: str = "weight") -> np.ndarray:
    found = integers_of(module, parameter)
    assert found is not None
    return found[0].numpy()


class TestTheGrid:
    """Every integer, at scales from the smallest to the largest, comes back exactly."""

    @staticmethod
    def scales(dtype: torch.dtype) -> torch.Tensor:
        generator = torch.Generator().manual_seed(0)
        top = min(torch.finfo(dtype).max, torch.finfo(torch.float32).max)
        exponents = torch.linspace(-140, float(np.log2(top)), 400, dtype=torch.float64)
        peaks = exponents.exp2() * (0.5 + torch.rand(400, generator=generator, dtype=torch.float64) / 2)
        return row_scales(torch.cat([peaks, torch.tensor([top, 0.0], dtype=torch.float64)]), dtype)

    @pytest.mark.parametrize("dtype", DTYPES)
    def test_integers_come_back(self, dtype: torch.dtype) -> None:
        scale = self.scales(dtype)
        every = torch.arange(-127, 128, dtype=torch.int8).expand(len(scale), -1)
        weight = products(every, scale, dtype)
        assert weight.isfinite().all()
        assert torch.equal((weight.double() / scale[:, None].double()).round(), every.double())
        assert torch.equal(rounded(weight, scale), every)
        if dtype in (torch.float32, torch.float64):
            assert torch.equal(weight.double(), every.double() * scale[:, None].double())

    def test_integers_come_back_after_a_cast(self) -> None:
        layer = nn.Linear(255, 300, bias=False)
        scale = row_scales(values(300, seed=1).abs() + 1e-3, torch.float32)
        every = torch.arange(-127, 128, dtype=torch.int8).expand(300, -1)
        layer.weight.data.copy_(products(every, scale, torch.float32))
        layer.register_buffer("weight_scale", scale, persistent=False)
        assert np.array_equal(integers(layer), every.numpy())
        layer.to(torch.bfloat16)
        assert layer.weight_scale.dtype == torch.bfloat16
        assert np.array_equal(integers(layer), every.numpy())

    def test_a_weight_that_was_written_to_is_not_quantized(self) -> None:
        layer = pruned_linear(6, 8, torch.float32)
        quantize_(layer)
        assert integers_of(layer) is not None
        with torch.no_grad():
            layer.weight[2, 3] += layer.weight_scale[2] / 3
        assert integers_of(layer) is None
        quantize_(layer)  # and may be again
        assert integers_of(layer) is not None


class TestEveryKind:
    @pytest.mark.parametrize("dtype", DTYPES)
    @pytest.mark.parametrize("kind", ALL_KINDS)
    def test_nearest(self, kind: str, dtype: torch.dtype) -> None:
        module = layer_of(kind).to(dtype)
        before = copy.deepcopy(module)
        report = quantize_(module)
        layers = prunable_layers(module)
        assert [entry.fqn for entry in report.layers] == list(layers)
        for (fqn, layer), entry in zip(layers.items(), report.layers, strict=True):
            old = prunable_layers(before)[fqn].matrix().flatten(0, 1).double().numpy()
            scales = numpy_scales(old)
            expected = numpy_nearest(old, scales)
            found = integers_of(layer.module, layer.parameter)
            assert found is not None
            assert np.array_equal(found[1].numpy(), scales)
            new = layer.matrix().flatten(0, 1)
            assert torch.equal(new, torch.from_numpy(expected * scales[:, None].astype(np.float64)).to(dtype))
            matrix = layer.matrix(
                found[0].view_as(layer.weight.mT if kind == "transposed" else layer.weight).mT
                if kind == "transposed"
                else found[0].view_as(layer.weight)
            )
            assert np.array_equal(matrix.flatten(0, 1).numpy(), expected)
            assert (old == 0).sum() >= old.size // 3
            assert not expected[old == 0].any()
            assert entry.made_zero == (expected == 0).sum() - (old == 0).sum()
            assert entry.nnz == np.count_nonzero(expected)
        assert list(module.state_dict()) == list(before.state_dict())
        before.load_state_dict(module.state_dict())
        module.load_state_dict(before.state_dict())

    @pytest.mark.parametrize("name", [name for name in quantizers() if name != "smoothquant"])
    @pytest.mark.parametrize("kind", ["linear", "conv2d-groups", "conv1d", "transposed", "attention"])
    def test_every_quantizer_keeps_zeros(self, kind: str, name: str) -> None:
        torch.manual_seed(1)
        module = layer_of(kind)
        shape = {"conv2d-groups": (20, 4, 9, 8), "conv1d": (20, 4, 11)}.get(kind, (20, 7, 8))
        batch = (torch.randn(shape),) * (3 if kind == "attention" else 1)
        stats = calibrate(module, [batch], progress=False)
        zeros = {fqn: layer.weight.detach() == 0 for fqn, layer in prunable_layers(module).items()}
        report = quantize_(module, quantizers()[name](), stats=stats)
        for fqn, layer in prunable_layers(module).items():
            assert zeros[fqn].any()
            assert not layer.weight.detach()[zeros[fqn]].any()
            assert integers_of(layer.module, layer.parameter) is not None
        assert all(entry.error is not None and entry.error < 1e-3 for entry in report.layers)


class TestGPTQ:
    @pytest.mark.parametrize("block_size", [7, 128])
    @pytest.mark.parametrize("act_order", [False, True])
    def test_is_the_published_algorithm(self, act_order: bool, block_size: int) -> None:
        layer, x = pruned_linear(24, 40), inputs(300, 40)
        w, gram = layer.weight.detach().numpy().copy(), (x.T @ x).numpy()
        stats = calibrate(layer, [x], progress=False)
        quantize_(layer, GPTQ(act_order=act_order, block_size=block_size), stats=stats)
        scales = numpy_scales(w)
        order = np.argsort(-np.diag(gram), kind="stable") if act_order else np.arange(40)
        expected, nearest = numpy_gptq(w, gram, scales, order), numpy_nearest(w, scales)

        def errors(q: np.ndarray) -> np.ndarray:
            change = w - q * scales.astype(np.float64)[:, None]
            return np.einsum("nk,kl,nl->n", change, gram, change)

        better = errors(expected) < errors(nearest)
        assert better.sum() > 8
        assert np.array_equal(integers(layer), np.where(better[:, None], expected, nearest))

    def test_no_row_gets_worse(self) -> None:
        layer, x = pruned_linear(32, 64), inputs(200, 64, seed=3)
        stats = calibrate(layer, [x], progress=False)
        other = copy.deepcopy(layer)
        gptq, nearest = quantize_(layer, GPTQ(), stats=stats), quantize_(other, stats=stats)
        assert gptq.mean_error is not None
        assert nearest.mean_error is not None
        assert gptq.mean_error < 0.9 * nearest.mean_error

    def test_an_input_that_was_always_zero(self) -> None:
        layer, x = pruned_linear(8, 16), inputs(100, 16)
        x[:, 5] = 0
        expected = numpy_nearest(w := layer.weight.detach().numpy().copy(), numpy_scales(w))
        quantize_(layer, GPTQ(), stats=calibrate(layer, [x], progress=False))
        assert np.array_equal(integers(layer)[:, 5], expected[:, 5])


def test_clipping_lowers_the_error_of_rows_with_outliers() -> None:
    layer = nn.Linear(64, 16)
    layer.weight.data.copy_(values(16, 64, seed=2)).mul_(0.1)
    layer.weight.data[::2, 0] = 0.9
    other = copy.deepcopy(layer)
    clipped, plain = quantize_(layer, RoundToNearest(clip="mse")), quantize_(other)
    assert clipped.mean_weight_error <= plain.mean_weight_error
    assert np.abs(integers(layer)).max(1).tolist() == [127] * 16


def test_masks_stay() -> None:
    layer = nn.Linear(32, 16)
    prune_(layer, Magnitude(0.5))
    mask = masks_of(layer)[""].clone()
    quantize_(layer)
    assert torch.equal(masks_of(layer)[""], mask)
    layer(torch.randn(3, 32))
    assert integers_of(layer) is not None


def test_a_shared_weight_is_rounded_once() -> None:
    model = nn.Sequential(nn.Linear(8, 8), nn.Linear(8, 8), nn.Linear(8, 8))
    model[2].weight = model[0].weight
    report = quantize_(model)
    assert [entry.fqn for entry in report.layers] == ["0", "1"]
    assert model[2].weight_scale is model[0].weight_scale
