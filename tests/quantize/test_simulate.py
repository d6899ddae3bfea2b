"""int8 activations by torch: against integer arithmetic in numpy; static scales from a calibration."""

from __future__ import annotations

import numpy as np
import pytest
import torch
from generators import values
from prune_helpers import KINDS
from quantize_helpers import layer_of, pruned_linear
from torch import Tensor, nn

from sparseinfer._int8 import integers_of
from sparseinfer.prune import CalibrationStats, Layer, calibrate, prunable_layers
from sparseinfer.quantize import StaticInputs, quantize_, simulated
from sparseinfer.quantize.simulate import integer_product, quantized_tokens


def numpy_tokens(x: np.ndarray, signed: bool) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
    """Of rows [tokens, k] float32: integers, scales and zero points [tokens, 1], in float32 as in kernels."""
    if signed:
        scale = (np.abs(x).max(1, keepdims=True) / np.float32(127)).astype(np.float32)
        scale[scale == 0] = 1
        return np.clip(np.rint(x / scale), -127, 127), scale, np.zeros_like(scale)
    low, high = np.minimum(x.min(1, keepdims=True), 0), np.maximum(x.max(1, keepdims=True), 0)
    scale = high / np.float32(255) - low / np.float32(255)
    scale[scale == 0] = 1
    zero = np.rint(-low / scale)
    return np.clip(np.rint(x / scale) + zero, 0, 255), scale, zero


class TestTokens:
    @pytest.mark.parametrize("signed", [False, True])
    def test_integers(self, signed: bool) -> None:
        x = values(50, 33, seed=1) + torch.linspace(-3, 3, 50)[:, None]
        x[7] = 0
        x[8], x[9] = x[8].abs(), -x[9].abs()
        q, scale, zero = quantized_tokens(x, signed=signed)
        for got, expected in zip((q, scale, zero), numpy_tokens(x.numpy(), signed), strict=True):
            assert np.array_equal(got.numpy(), expected)
        assert ((q - zero) * scale - x).abs().max() <= scale.max() * 0.51
        assert not ((q - zero) * scale)[x == 0].any()

    @pytest.mark.parametrize("signed", [False, True])
    def test_the_largest_numbers(self, signed: bool) -> None:
        most = torch.finfo(torch.float32).max
        q, scale, zero = quantized_tokens(torch.tensor([[-most, most, 0.0]]), signed=signed)
        assert scale.isfinite().all()
        assert (q - zero).tolist()[0][2] == 0

    @pytest.mark.parametrize("bad", [float("nan"), float("inf"), -float("inf")])
    def test_what_is_not_finite_makes_its_token_nan(self, bad: float) -> None:
        x = values(3, 5)
        x[1, 2] = bad
        weight = (torch.full((4, 5), 127, dtype=torch.int8), torch.ones(4))
        y = integer_product(quantized_tokens(x), weight)
        assert y.isnan().all(1).tolist() == [False, True, False]
        assert y.isfinite().all(1).tolist() == [True, False, True]

    def test_products_are_exact(self) -> None:
        q = torch.full((1, 50_000), 255.0)
        weight = torch.full((1, 50_000), -127, dtype=torch.int8)
        y = integer_product((q, torch.ones(1, 1), torch.zeros(1, 1)), (weight, torch.ones(1)))
        assert float(y) == np.float32(-127 * 255 * 50_000)


class TestSimulated:
    @pytest.mark.parametrize("signed", [False, True])
    @pytest.mark.parametrize("kind", [*KINDS, "transposed"])
    def test_every_kind(self, kind: str, signed: bool) -> None:
        """What it returns is the product of integers, by the layer's own forward."""
        layer = layer_of(kind)
        quantize_(layer)
        shape = KINDS[kind][1] if kind in KINDS else (3, 4, 8)
        x = values(*shape, seed=5)
        with simulated(layer, signed=signed, dtype=torch.float64) as others:
            y = layer(x).detach()
        assert others == []
        (seen,) = prunable_layers(layer).values()
        matrix = seen.matrix().double().numpy()
        rows = seen.unfold(x).numpy()
        parts = []
        for g in range(len(matrix)):
            q, scale, zero = numpy_tokens(rows[g], signed)
            parts.append(((q - zero) * scale.astype(np.float64)) @ matrix[g].T)
        expected = torch.from_numpy(np.stack(parts))
        plain = layer(x).detach()
        exact = seen.unfold(x).double() @ seen.matrix().double().mT
        flat = _as_output(expected - exact, plain, seen, x.dim())
        assert torch.allclose(y - plain, flat.to(plain.dtype), atol=1e-5)
        assert (y - plain).abs().max() > 1e-4
        assert torch.equal(layer(x).detach(), plain)

    def test_other_layers_are_named(self) -> None:
        model = nn.ModuleDict({"lstm": nn.LSTM(4, 4), "linear": nn.Linear(4, 4), "other": nn.Linear(4, 4)})
        quantize_(model, ignore="other")
        with simulated(model) as others:
            assert others == ["lstm.weight_ih_l0", "lstm.weight_hh_l0"]

    def test_after_an_error_no_hook_is_left(self) -> None:
        layer = pruned_linear(4, 6, torch.float32)
        quantize_(layer)
        with pytest.raises(ZeroDivisionError), simulated(layer):
            raise ZeroDivisionError
        assert not layer._forward_hooks


def _as_output(products: Tensor, output: Tensor, layer: Layer, dimensions: int) -> Tensor:
    """[groups, tokens, n] in the output's shape, pixel by pixel."""
    if not layer.is_conv:
        return products.reshape(output.shape)
    images = torch.zeros(output.shape, dtype=torch.float64)
    view = images if dimensions == layer.weight.dim() else images[None]
    groups, _, n = products.shape
    flat = view.reshape(len(view), groups, n, -1)
    for token in range(products.shape[1]):
        image, pixel = divmod(token, flat.shape[-1])
        flat[image, :, :, pixel] = products[:, token]
    return flat.reshape(output.shape)


class TestStaticInputs:
    @staticmethod
    def stats(x: Tensor) -> CalibrationStats:
        return calibrate(nn.Linear(x.shape[1], 3), list(x.split(10)), ranges=True, progress=False)

    def test_ranges(self) -> None:
        x = values(60, 7, seed=2)
        stats = self.stats(x)[""]
        assert torch.equal(stats.low, x.amin(0)[None])
        assert torch.equal(stats.high, x.amax(0)[None])
        assert stats.counts.sum() == x.numel()
        bits = x.to(torch.bfloat16).view(torch.int16).long().flatten() % 2**16
        assert torch.equal(stats.counts, bits.bincount(minlength=2**16))

    def test_layers_that_share_an_input_share_ranges_until_they_differ(self) -> None:
        class Two(nn.Module):
            def __init__(self) -> None:
                super().__init__()
                self.a, self.b, self.calls = nn.Linear(4, 2), nn.Linear(4, 2), 0

            def forward(self, x: Tensor) -> Tensor:
                self.calls += 1
                return self.a(x) + self.b(x if self.calls < 2 else 3 * x)

        x = values(20, 4)
        found = calibrate(Two(), [x, x], ranges=True, progress=False)
        assert torch.equal(found["a"].high, x.amax(0)[None])
        assert torch.equal(found["b"].high, 3 * x.amax(0)[None])
        assert found["b"].counts.sum() == 2 * x.numel() == found["a"].counts.sum()

    def test_saved_and_loaded(self, tmp_path) -> None:
        stats = self.stats(values(30, 5))
        stats.save(tmp_path / "stats.pt")
        again = CalibrationStats.load(tmp_path / "stats.pt")[""]
        assert all(torch.equal(getattr(again, n), getattr(stats[""], n)) for n in ("low", "high", "counts"))

    @pytest.mark.parametrize("signed", [False, True])
    def test_scales(self, signed: bool) -> None:
        x = values(60, 7, seed=2).abs() - 0.5
        layer = nn.Linear(7, 3)
        quantize_(layer, stats=self.stats(x), inputs=StaticInputs(signed=signed))
        low, high = float(x.min()), float(x.max())
        scale = high / 127 if signed else (high - low) / 255
        assert float(layer.input_scale) == pytest.approx(scale, rel=1e-6)
        assert int(layer.input_zero_point) == (0 if signed else round(-low / scale))
        with simulated(layer, static=True, signed=signed):
            y = layer(x).detach()
        assert 0 < (y - layer(x)).abs().max() < 7 * scale

    def test_percentiles(self) -> None:
        x = torch.linspace(-1, 1, 2000).reshape(200, 10)
        x[0, 0], x[1, 1] = -50, 80
        layer = nn.Linear(10, 3)
        quantize_(layer, stats=self.stats(x), inputs=StaticInputs(percentile=99))
        assert float(layer.input_scale) * 255 == pytest.approx(1.98, rel=0.01)

    def test_inputs_that_are_always_zero(self) -> None:
        layer = nn.Linear(4, 3)
        quantize_(layer, stats=self.stats(torch.zeros(20, 4)), inputs=StaticInputs())
        assert (float(layer.input_scale), int(layer.input_zero_point)) == (1.0, 0)

    def test_names_of_other_weights(self) -> None:
        attention = nn.MultiheadAttention(8, 2)
        stats = calibrate(attention, [(values(5, 2, 8),) * 3], ranges=True, progress=False)
        quantize_(attention, stats=stats, inputs=StaticInputs())
        buffers = {name for name, _ in attention.named_buffers()}
        assert {"in_proj_weight_scale", "in_proj_input_scale", "out_proj.input_zero_point"} <= buffers
        assert integers_of(attention, "in_proj_weight") is not None
