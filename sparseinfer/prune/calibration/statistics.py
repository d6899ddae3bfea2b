"""The statistics of a calibration: sums over inputs and gradients, with saving and loading."""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from dataclasses import dataclass, fields
from os import PathLike
from typing import Any

import torch
from torch import Tensor

from sparseinfer.prune.layers.layer import Layer

_FORMAT = "sparseinfer calibration 1"


@dataclass(frozen=True, eq=False)
class LayerStats:
    """Sums over all tokens in one layer's inputs, on its weight's device; not divided by `tokens`.

    tokens   how many rows [k] the unfolded inputs had, in each group
    sum_x    [groups, k] float64, Σ x
    sq       [groups, k] float64, Σ x²: the squared norm of each input, and the diagonal of the Gram matrix
    gram     [groups, k, k] float32 (float64 for float64 inputs), Σ x·xᵀ; None if not requested.
             Layers that get the same tensor hold the same Gram matrix.
    grad     shape of the weight, float32 or float64, Σ ∂loss/∂w over the batches; None without a loss
    low      [groups, k] float32, the smallest value of each input; `high` the largest; None if not requested
    counts   [65536] int64, how often an input had each value of bfloat16, by its bits; None like `low`
    """

    tokens: int
    sum_x: Tensor
    sq: Tensor
    gram: Tensor | None = None
    grad: Tensor | None = None
    low: Tensor | None = None
    high: Tensor | None = None
    counts: Tensor | None = None

    def relative_error(self, weight: Tensor, pruned: Tensor) -> float:
        """‖X·(W - Ŵ)ᵀ‖² / ‖X·Wᵀ‖² over the calibration tokens, from the Gram matrix; 0.0 where ‖X·Wᵀ‖ is 0.

        weight, pruned  [groups, n, k]
        """
        if self.gram is None:
            raise ValueError("gram: expected a Gram matrix, got None (calibrate with gram=True)")
        w = weight.to(self.gram.dtype)
        change = w - pruned.to(self.gram.dtype)
        norm = float((w @ self.gram * w).sum(dtype=torch.float64))
        error = float((change @ self.gram * change).sum(dtype=torch.float64))
        return max(error, 0.0) / norm if norm > 0 else 0.0


class CalibrationStats(Mapping[str, LayerStats]):
    """The statistics of each layer, by its module's name, in the order of the model."""

    def __init__(self, layers: Mapping[str, LayerStats]) -> None:
        self._layers = dict(layers)

    def __getitem__(self, fqn: str) -> LayerStats:
        return self._layers[fqn]

    def __iter__(self) -> Iterator[str]:
        return iter(self._layers)

    def __len__(self) -> int:
        return len(self._layers)

    @property
    def nbytes(self) -> int:
        """Bytes of all tensors; a Gram matrix that several layers hold counts once."""
        values = [value for layer in self.values() for value in vars(layer).values()]
        return sum({id(value): value.nbytes for value in values if isinstance(value, Tensor)}.values())

    def save(self, path: str | PathLike[str]) -> None:
        """Write everything into one file, a shared Gram matrix once."""
        layers = {fqn: vars(layer) for fqn, layer in self.items()}
        torch.save({"format": _FORMAT, "layers": layers}, path)

    @classmethod
    def load(cls, path: str | PathLike[str], device: torch.device | str = "cpu") -> CalibrationStats:
        """What `save` wrote, to the same bits. ValueError: a file of another kind."""
        content: Any = torch.load(path, map_location=device, weights_only=True)
        if not isinstance(content, dict) or content.get("format") != _FORMAT:
            raise ValueError(f"path: expected a file written by CalibrationStats.save, got {str(path)!r}")
        names = {field.name for field in fields(LayerStats)}
        return cls(
            {
                fqn: LayerStats(**{name: value for name, value in layer.items() if name in names})
                for fqn, layer in content["layers"].items()
            }
        )


def check_stats(
    stats: CalibrationStats | None, layers: Mapping[str, Layer], needs: frozenset[str], reader: object
) -> None:
    """ValueError names the first layer without statistics, with another shape, or lacking one of `needs`.

    needs   of "gram", "norms", "gradients" and "ranges"; if empty, statistics may be missing, but not of
            other shapes
    reader  what needs them, for error messages
    """
    if stats is None:
        if needs:
            hint = "pass stats=calibrate(model, batches)"
            raise ValueError(
                f"stats: expected calibration statistics for {type(reader).__name__}, got None ({hint})"
            )
        return
    for fqn, layer in layers.items():
        if fqn not in stats and not layer.is_seen and "gradients" not in needs:
            continue
        if fqn not in stats:
            hint = "they are of another model, or of other layers"
            raise ValueError(f"stats: expected statistics of {fqn!r}, got none ({hint})")
        layer_stats = stats[fqn]
        groups, _, k = layer.shape
        _check_shape(f"norms of {fqn!r}", (groups, k), layer_stats.sq)
        if "gram" in needs and layer_stats.gram is None:
            hint = "calibrate with gram=True"
            raise ValueError(f"stats: expected a Gram matrix of {fqn!r}, got None ({hint})")
        if "gradients" in needs and layer_stats.grad is None:
            hint = "calibrate with a loss_fn"
            raise ValueError(f"stats: expected gradients of {fqn!r}, got None ({hint})")
        if "ranges" in needs and layer_stats.low is None:
            hint = "calibrate with ranges=True"
            raise ValueError(f"stats: expected ranges of the inputs of {fqn!r}, got None ({hint})")
        if layer_stats.grad is not None:
            _check_shape(f"gradients of {fqn!r}", tuple(layer.weight.shape), layer_stats.grad)


def _check_shape(what: str, expected: tuple[int, ...], tensor: Tensor) -> None:
    got = tuple(tensor.shape)
    if got != expected:
        raise ValueError(f"stats: expected {what} of shape {expected}, got {got} (they are of another model)")
