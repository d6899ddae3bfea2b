"""What quantize_ reports, refuses, and leaves alone."""

from __future__ import annotations

import re

import numpy as np
import pytest
import torch
from generators import values
from prune_helpers import snapshot
from quantize_helpers import numpy_nearest, numpy_scales, pruned_linear
from torch import nn

from sparseinfer.prune import calibrate
from sparseinfer.quantize import GPTQ, QuantizeReport, RoundToNearest, SmoothQuant, StaticInputs, quantize_
from sparseinfer.quantize.registry import quantizers


def model() -> nn.Sequential:
    torch.manual_seed(0)
    return nn.Sequential(nn.Linear(8, 12), nn.GELU(), nn.Linear(12, 5))


def batches(seed: int = 0) -> list[torch.Tensor]:
    return [values(40, 8, seed=seed)]


class TestReport:
    def test_errors(self) -> None:
        layer, x = pruned_linear(10, 16), values(90, 16, seed=4, dtype=torch.float64)
        w = layer.weight.detach().numpy().copy()
        (entry,) = quantize_(layer, stats=calibrate(layer, [x], progress=False)).layers
        scales = numpy_scales(w)
        change = w - numpy_nearest(w, scales) * scales[:, None].astype(np.float64)
        assert entry.weight_error == pytest.approx((change**2).sum() / (w**2).sum(), rel=1e-9)
        outputs = ((x.numpy() @ change.T) ** 2).sum() / ((x.numpy() @ w.T) ** 2).sum()
        assert entry.error == pytest.approx(outputs, rel=1e-6)
        assert entry.scales == (scales.min(), scales.max())
        assert entry.uneven == ()

    def test_weights_that_round_to_zero_count_as_pruned(self) -> None:
        layer = nn.Linear(4, 2, bias=False)
        layer.weight.data.copy_(torch.tensor([[127.0, 0.4, 0.0, 3.0], [0.0, 0.0, 0.0, 0.0]]))
        report = quantize_(layer)
        assert layer.weight.tolist() == [[127.0, 0.0, 0.0, 3.0], [0.0] * 4]
        assert layer.weight_scale.tolist() == [1.0, 1.0]
        assert (report.made_zero, report.layers[0].nnz, report.sparsity) == (1, 2, 0.75)
        assert "1 weights rounded to zero" in str(report)

    def test_a_row_of_one_huge_weight_is_named(self) -> None:
        layer = nn.Linear(64, 4, bias=False)
        layer.weight.data.copy_(values(4, 64, seed=1))
        layer.weight.data[2, 7] = 1e4
        layer.weight.data[1] = 0
        layer.weight.data[1, 3] = 1e4  # alone: nothing beside it is rounded
        report = quantize_(layer)
        assert report.layers[0].uneven == (2,)
        assert "one huge weight in row 2" in str(report)

    def test_what_it_skips(self) -> None:
        lstm = nn.ModuleDict({"words": nn.Embedding(9, 8), "lstm": nn.LSTM(8, 6)})
        report = quantize_(lstm)
        assert [weight.name for weight in report.unlooked] == ["words.weight"]
        assert "not looked at: words.weight" in str(report)

    def test_layers_whose_inputs_are_not_recorded(self) -> None:
        lstm = nn.LSTM(8, 6)
        stats = calibrate(lstm, [(values(30, 2, 8),)], progress=False)
        report = quantize_(lstm, GPTQ(), stats=stats)
        assert [entry.fqn for entry in report.layers] == ["weight_ih_l0"]
        assert [weight.name for weight in report.unlooked] == ["weight_hh_l0"]
        assert not hasattr(lstm, "weight_hh_l0_scale")

    def test_of_nothing(self) -> None:
        assert str(QuantizeReport(())) == "0 layers in int8, 0 weights rounded to zero; sparsity 0.0000"

    def test_of_a_weight_without_elements(self) -> None:
        (entry,) = quantize_(nn.Linear(0, 3)).layers
        assert (entry.numel, entry.sparsity, entry.weight_error) == (0, 0.0, 0.0)


class TestSelection:
    def test_ignore_and_targets(self) -> None:
        first, second = model(), model()
        assert [entry.fqn for entry in quantize_(first, ignore="2").layers] == ["0"]
        assert [entry.fqn for entry in quantize_(second, targets="2").layers] == ["2"]
        assert not hasattr(first[2], "weight_scale")

    def test_names(self) -> None:
        assert list(quantizers()) == ["gptq", "nearest", "smoothquant"]


class TestBadInput:
    """After each error every bit of the model is as before, and no buffer was added."""

    @staticmethod
    def refused(
        bad: nn.Module, text: str, *args: object, kind: type[Exception] = ValueError, **how: object
    ) -> None:
        before, buffers = snapshot(bad), [name for name, _ in bad.named_buffers()]
        with pytest.raises(kind, match=re.escape(text)):
            quantize_(bad, *args, **how)
        assert snapshot(bad) == before
        assert [name for name, _ in bad.named_buffers()] == buffers

    @pytest.mark.parametrize("value", [float("nan"), float("inf"), -float("inf")])
    def test_not_finite(self, value: float) -> None:
        bad = model()
        bad[2].weight.data[1, 1] = value
        self.refused(bad, "2.weight: expected ")

    def test_already_quantized(self) -> None:
        bad = model()
        quantize_(bad, targets="2")
        self.refused(bad, "2.weight: expected a weight to round, got one that is quantized already")

    def test_integers(self) -> None:
        bad = model()
        bad[2].weight = nn.Parameter(torch.ones(5, 12, dtype=torch.int8), requires_grad=False)
        self.refused(bad, "2.weight: expected a dense floating-point weight, got torch.int8", kind=TypeError)

    def test_beyond_float32(self) -> None:
        bad = nn.Linear(3, 2, dtype=torch.float64)
        bad.weight.data[1, 1] = 1e300
        self.refused(bad, "weight: expected weights within 127 scales of float32, got 1e+300")

    def test_no_statistics(self) -> None:
        hint = "stats: expected calibration statistics for GPTQ, got None"
        self.refused(model(), hint, GPTQ())

    def test_statistics_without_grams(self) -> None:
        bad = model()
        stats = calibrate(bad, batches(), gram=False, progress=False)
        self.refused(bad, "stats: expected a Gram matrix of '0', got None", GPTQ(), stats=stats)

    def test_statistics_without_ranges(self) -> None:
        bad = model()
        stats = calibrate(bad, batches(), progress=False)
        text = "stats: expected ranges of the inputs of '0', got None (calibrate with ranges=True)"
        self.refused(bad, text, stats=stats, inputs=StaticInputs())

    def test_statistics_of_another_model(self) -> None:
        bad = model()
        stats = calibrate(
            nn.Sequential(nn.Linear(8, 3), nn.GELU(), nn.Linear(3, 1)), batches(), progress=False
        )
        self.refused(bad, "stats: expected norms of '2' of shape (1, 12), got (1, 3)", stats=stats)

    def test_a_name_that_is_taken(self) -> None:
        bad = model()
        bad[2].weight_scale = 3
        self.refused(bad, "weight_scale: expected a name that is free, got a int of Linear")

    @pytest.mark.parametrize("method", ["gptq", RoundToNearest, None])
    def test_no_method(self, method: object) -> None:
        self.refused(model(), "method: expected a quantizer, got ", method, kind=TypeError)

    def test_no_inputs(self) -> None:
        self.refused(model(), "inputs: expected StaticInputs or None, got str", inputs="u8", kind=TypeError)

    def test_no_model(self) -> None:
        with pytest.raises(TypeError, match=r"model: expected a torch\.nn\.Module, got int"):
            quantize_(3)

    @pytest.mark.parametrize(
        ("make", "text"),
        [
            (lambda: RoundToNearest(clip="percentile"), "clip: expected one of none, mse, got 'percentile'"),
            (lambda: GPTQ(damping=-1.0), "damping: expected a finite number of at least 0"),
            (lambda: GPTQ(block_size=0), "block_size: expected at least 1, got 0"),
            (lambda: GPTQ(act_order=1), "act_order: expected a bool, got int"),
            (lambda: SmoothQuant(strength=1.5), "strength: expected a number in [0, 1], got 1.5"),
            (lambda: SmoothQuant(strength="half"), "strength: expected a float, got str"),
            (lambda: SmoothQuant(rounding=SmoothQuant()), "rounding: expected a quantizer that rounds"),
            (
                lambda: StaticInputs(percentile=20),
                "percentile: expected a number above 50, at most 100, got 20",
            ),
            (lambda: StaticInputs(percentile="99"), "percentile: expected a float, got str"),
            (lambda: StaticInputs(signed=0), "signed: expected a bool, got int"),
        ],
    )
    def test_bad_options(self, make: object, text: str) -> None:
        with pytest.raises((TypeError, ValueError), match=re.escape(text)):
            make()
