"""Applies quantization to a model: computes and checks everything first, then writes it together."""

from __future__ import annotations

from collections.abc import Iterator, Mapping

import torch
from torch import Tensor, nn

from sparseinfer._int8 import integers_of, products, row_blocks, row_peaks, scale_name
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
        stats = None if prepared.stats is None else prepared.stats.get(fqn)
        weight, entry = _quantized(prepared.layers[fqn], layer.weight.dtype, result, stats)
        self._weights.append((layer.weight, layer.unmatrix(weight)))
        buffers = {scale_name(layer.parameter): result.scale.flatten()}
        if inputs is not None:
            assert stats is not None
            buffers |= inputs.buffers(layer.parameter, stats)
        for module in _owners(self._model, layer):
            self._buffers += [(module, name, buffer) for name, buffer in buffers.items()]
        self._layers.append(entry)


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


def _quantized(
    layer: Layer, dtype: torch.dtype, result: Rounded, stats: LayerStats | None
) -> tuple[Tensor, QuantizedLayer]:
    """The result as a weight [groups, n, k] of this dtype, and the report; `layer` has what was rounded."""
    matrix = layer.matrix()
    wide = torch.promote_types(dtype, torch.float32)
    weight = torch.empty_like(result.integers, dtype=dtype)
    norms, changes = matrix.new_empty((2, *matrix.shape[:-1]), dtype=wide)
    uneven = torch.empty_like(norms, dtype=torch.bool)
    nnz = made_zero = 0
    # All that reads a row while it is in the cache.
    for rows, integers, scale, written, norm, change, is_uneven in row_blocks(
        matrix, result.integers, result.scale, weight, norms, changes, uneven
    ):
        rows = rows.to(wide)
        quantized = products(integers, scale, wide)
        written.copy_(quantized)
        norm.copy_(torch.linalg.vector_norm(rows, dim=-1))
        change.copy_(torch.linalg.vector_norm(rows - quantized, dim=-1))
        is_uneven.copy_(_uneven(rows, scale))
        before, left = (int(_filled(part).double().sum()) for part in (rows, quantized))
        nnz, made_zero = nnz + left, made_zero + before - left
    used = result.scale[row_peaks(result.integers) > 0]
    square = _squares(norms)
    error = None
    if stats is not None and stats.gram is not None:
        error = stats.relative_error(matrix.to(wide), products(result.integers, result.scale, wide))
    entry = QuantizedLayer(
        layer.fqn,
        tuple(layer.weight.shape),
        nnz,
        made_zero,
        _squares(changes) / square if square else 0.0,
        error,
        (float(used.min()), float(used.max())) if used.numel() else (1.0, 1.0),
        tuple(uneven.flatten().nonzero().flatten().tolist()),
    )
    return weight, entry


def _squares(norms: Tensor) -> float:
    return float(norms.double().square().sum())


def _filled(rows: Tensor) -> Tensor:
    """How many elements of each row [..., k] are not zero: four times as fast as count_nonzero(-1).

    Sums of ones are exact, in float32 up to 2^24 columns.
    """
    return rows.sign().abs_().sum(-1)


def _uneven(rows: Tensor, scale: Tensor) -> Tensor:
    """Whether the other weights of each row are small beside the largest one."""
    peak = row_peaks(rows)
    others = (_filled(rows) - 1).clamp(min=0)
    shares = rows / peak.clamp(min=torch.finfo(rows.dtype).tiny)[..., None]
    energy = torch.linalg.vector_norm(shares, dim=-1).square() - 1
    noise = (scale / peak).square() / 12 * others
    return (others > 0) & (noise > _UNEVEN * energy.clamp(min=0))
