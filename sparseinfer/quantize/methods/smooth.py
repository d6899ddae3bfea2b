"""SmoothQuant: moves the outliers of activations into the weights, through the norm before them."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import KW_ONLY, dataclass, field, replace
from numbers import Real

import torch
from torch import Tensor, nn

from sparseinfer.prune.calibration.statistics import CalibrationStats, LayerStats
from sparseinfer.prune.layers.layer import Layer
from sparseinfer.quantize.folding import Fold, folds
from sparseinfer.quantize.methods.nearest import RoundToNearest
from sparseinfer.quantize.methods.quantizer import Prepared, Quantizer, Rounded, check_quantizer

# Exponents of the powers of two that inputs are divided by. Chosen: beyond them an input is an accident.
_EXPONENTS = (-10, 10)


@dataclass(frozen=True)
class SmoothQuant(Quantizer):
    """Divide inputs by max|x|^strength / max|w|^(1 - strength), multiply the weights by it, then round.

    Xiao et al. 2023, "SmoothQuant: Accurate and Efficient Post-Training Quantization for Large Language
    Models". The division is folded into the LayerNorm or RMSNorm whose result the inputs are, where it is
    proven that only these layers read it (see sparseinfer.quantize.folding); the report names all others.
    The factors are rounded to powers of two, so that the model before rounding returns the same bits.

    strength  in [0, 1]: how much of the outliers goes into the weights; 0.5 as in the paper
    rounding  the quantizer that rounds the new weights

    ValueError if nothing can be folded in this model; it says why.
    """

    name = "smoothquant"
    _: KW_ONLY
    strength: float = 0.5
    rounding: Quantizer = field(default_factory=RoundToNearest)

    def __post_init__(self) -> None:
        if isinstance(self.strength, bool) or not isinstance(self.strength, Real):
            raise TypeError(f"strength: expected a float, got {type(self.strength).__name__}")
        if not 0 <= self.strength <= 1:
            raise ValueError(f"strength: expected a number in [0, 1], got {self.strength}")
        check_quantizer(self.rounding)
        if isinstance(self.rounding, SmoothQuant):
            raise TypeError("rounding: expected a quantizer that rounds, got SmoothQuant")

    @property
    def needs(self) -> frozenset[str]:  # type: ignore[override]
        return frozenset({"ranges"}) | self.rounding.needs

    def prepare(
        self, model: nn.Module, layers: Mapping[str, Layer], stats: CalibrationStats | None
    ) -> Prepared:
        assert stats is not None
        found, refused = folds(model, layers)
        if layers and not found:
            fqn, why = next(iter(refused.items()))
            raise ValueError(f"method: expected a norm to fold scales into, got none: {fqn!r}: {why}")
        new_layers, new_stats = dict(layers), dict(stats)
        parameters: dict[str, tuple[nn.Parameter, Tensor]] = {}
        for fold in found:
            factors = self._factors(fold, stats)
            for name, parameter in fold.norm.named_parameters(recurse=False):
                parameters[f"{fold.fqn}.{name}"] = (
                    parameter,
                    parameter.detach() / factors.to(parameter.dtype),
                )
            for layer in fold.layers:
                scaled = layer.matrix() * factors.to(layer.weight.dtype)
                if not scaled.isfinite().all():
                    raise ValueError(
                        f"{layer.name}: expected weights that can be scaled, got infinite products"
                    )
                new_layers[layer.fqn] = replace(layer, weight=nn.Parameter(layer.unmatrix(scaled)))
                new_stats[layer.fqn] = _divided(stats[layer.fqn], factors)
        return Prepared(new_layers, CalibrationStats(new_stats), parameters, refused)

    def round(self, layers: Mapping[str, Layer], stats: CalibrationStats | None) -> dict[str, Rounded]:
        return self.rounding.round(layers, stats)

    def _factors(self, fold: Fold, stats: CalibrationStats) -> Tensor:
        """[k] float32, powers of two; 1 for an input that is always zero or that no weight reads."""
        inputs = torch.stack([_largest_inputs(stats[layer.fqn]) for layer in fold.layers]).amax(0)
        weights = torch.stack([layer.matrix().abs().amax((0, 1)).float() for layer in fold.layers]).amax(0)
        exponents = self.strength * inputs.log2() - (1 - self.strength) * weights.log2()
        return torch.where(
            (inputs > 0) & (weights > 0), exponents.round().clamp(*_EXPONENTS).exp2(), torch.ones_like(inputs)
        )


def _largest_inputs(stats: LayerStats) -> Tensor:
    """[k] the largest magnitude of each input, of all groups: they read the same norm."""
    assert stats.low is not None
    assert stats.high is not None
    return torch.maximum(-stats.low, stats.high).amax(0)


def _divided(stats: LayerStats, factors: Tensor) -> LayerStats:
    """The statistics of inputs divided by the factors. How often each value occurred is not known of them."""
    assert stats.low is not None
    assert stats.high is not None
    gram = stats.gram
    wide = factors.to(torch.float64)
    return replace(
        stats,
        sum_x=stats.sum_x / wide,
        sq=stats.sq / wide.square(),
        gram=None if gram is None else gram / (factors * factors[:, None]).to(gram.dtype),
        low=stats.low / factors,
        high=stats.high / factors,
        counts=None,
    )
