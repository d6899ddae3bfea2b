"""Applies quantization to a model: computes and checks everything first, then writes it together."""

from __future__ import annotations

from collections.abc import Iterator, Mapping

import torch
from torch import Tensor, nn

from sparseinfer._int8 import integers_of, products, scale_name
from sparseinfer.prune.calibration.statistics import CalibrationStats, LayerStats, check_stats
from sparseinfer.prune.layers.kinds import kinds_of
from sparseinfer.prune.layers.layer import Layer
from sparseinfer.prune.layers.unlooked import UNKNOWN, UNSEEN, all_weights
from sparseinfer.prune.report import UnlookedWeight
from sparseinfer.quantize.inputs import StaticInputs
from sparseinfer.quantize.methods.quantizer import Prepared, Quantizer, Rounded
from sparseinfer.quantize.report import QuantizedLayer, QuantizeReport

# A row is uneven where the rounding of its other weights, a twelfth of the squared scale on average, is more
# than this part of their mean square. Chosen: at 0.01 a row loses what int8 activations lose.
_UNEVEN = 0.01


class Changes:
    """All changes that quantization makes to a model: weights, other parameters, and buffers."""

    def __init__(self, model: nn.Module) -> None:
        self._model = model
        self._weights: list[tuple[nn.Parameter, Tensor]] = []
        self._buffers: list[tuple[nn.Module, str, Tensor]] = []
        self._layers: list[QuantizedLayer] = []
        self._unprepared: Mapping[str, str] = {}

    def compute(
        self,
        layers: Mapping[str, Layer],
        method: Quantizer,
        stats: CalibrationStats | None,
        inputs: StaticInputs | None,
    ) -> None:
        """Run the method on these layers. ValueError: bad weights or statistics; nothing is written."""
        check_stats(stats, layers, method.needs | ({"ranges"} if inputs else set()), inputs or method)
        for layer in layers.values():
            _check_weight(layer)
        prepared = method.prepare(self._model, layers, stats)
        self._unprepared = prepared.unprepared
        self._weights += prepared.parameters.values()
        for fqn, result in method.round(prepared.layers, prepared.stats).items():
            self._add(layers[fqn], fqn, result, prepared, inputs)
        for module, name, _ in self._buffers:
            if name not in module._buffers and hasattr(module, name):
                got = type(getattr(module, name)).__name__
                raise ValueError(
                    f"{name}: expected a name that is free, got a {got} of {type(module).__name__}"
                )

    def write(self) -> None:
        for weight, content in self._weights:
            weight.copy_(content)
        for module, name, buffer in self._buffers:
            module.register_buffer(name, buffer, persistent=False)

    def finish(self, unseen: Mapping[str, Layer], unlooked: Mapping[str, nn.Parameter]) -> QuantizeReport:
        """The report. `unseen`: layers whose inputs calibration cannot record; `unlooked`: of other kinds."""
        weights = all_weights(self._model)
        why = dict.fromkeys(unlooked, UNKNOWN) | {layer.name: UNSEEN for layer in unseen.values()}
        skipped = (
            UnlookedWeight(name, tuple(weights[name].shape), why[name]) for name in weights if name in why
        )
        return QuantizeReport(tuple(self._layers), tuple(skipped), self._unprepared)

    def _add(
        self, layer: Layer, fqn: str, result: Rounded, prepared: Prepared, inputs: StaticInputs | None
    ) -> None:
        rounded = prepared.layers[fqn]
        stats = None if prepared.stats is None else prepared.stats.get(fqn)
        wide = torch.promote_types(layer.weight.dtype, torch.float32)
        quantized = products(result.integers, result.scale, wide)
        weight = layer.unmatrix(quantized.to(layer.weight.dtype))
        self._weights.append((layer.weight, weight))
        buffers = {scale_name(layer.parameter): result.scale.flatten()}
        if inputs is not None:
            assert stats is not None
            buffers |= inputs.buffers(layer.parameter, stats)
        for module in _owners(self._model, layer):
            self._buffers += [(module, name, buffer) for name, buffer in buffers.items()]
        self._layers.append(_entry(rounded, result, quantized, stats))


def _check_weight(layer: Layer) -> None:
    weight = layer.weight.detach()
    if weight.numel() and not torch.stack(weight.aminmax()).isfinite().all():
        raise ValueError(
            f"{layer.name}: expected finite weights, got {int(weight.isinf().sum())} infinite ones"
        )
    if integers_of(layer.module, layer.parameter) is not None:
        hint = "quantize the original weights instead"
        raise ValueError(
            f"{layer.name}: expected a weight to round, got one that is quantized already ({hint})"
        )


def _owners(model: nn.Module, layer: Layer) -> Iterator[nn.Module]:
    """The modules that hold the layer's weight under the same name, as a weight."""
    for module in model.modules():
        if module._parameters.get(layer.parameter) is layer.weight and layer.parameter in kinds_of(module):
            yield module


def _entry(layer: Layer, result: Rounded, quantized: Tensor, stats: LayerStats | None) -> QuantizedLayer:
    """The report of a layer with the weight that was rounded; `quantized` is the product of the result."""
    matrix = layer.matrix().to(quantized.dtype)
    norm, change = _squares(matrix), _squares(matrix - quantized)
    used = result.scale[result.integers.any(-1)]
    has_gram = stats is not None and stats.gram is not None
    nnz = int(result.integers.count_nonzero())
    return QuantizedLayer(
        layer.fqn,
        tuple(layer.weight.shape),
        nnz,
        int(matrix.count_nonzero()) - nnz,
        change / norm if norm else 0.0,
        stats.relative_error(matrix, quantized) if has_gram and stats is not None else None,
        (float(used.min()), float(used.max())) if used.numel() else (1.0, 1.0),
        _uneven_rows(matrix, result.scale),
    )


def _squares(matrix: Tensor) -> float:
    """The sum of squares; of each row in its own dtype, which saves a copy in float64."""
    return float(torch.linalg.vector_norm(matrix, dim=-1).double().square().sum())


def _uneven_rows(matrix: Tensor, scale: Tensor) -> tuple[int, ...]:
    """Rows, counted over all groups, whose other weights are small beside the largest one."""
    if not matrix.shape[-1]:
        return ()
    peak = torch.linalg.vector_norm(matrix, torch.inf, -1)
    others = (matrix.count_nonzero(-1) - 1).clamp(min=0)
    shares = matrix / peak.clamp(min=torch.finfo(matrix.dtype).tiny)[..., None]
    energy = torch.linalg.vector_norm(shares, dim=-1).square() - 1
    noise = (scale / peak).square() / 12 * others
    uneven = (others > 0) & (noise > _UNEVEN * energy.clamp(min=0))
    return tuple(uneven.flatten().nonzero().flatten().tolist())
