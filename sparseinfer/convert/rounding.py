"""How far rounding alone moves the results of a model.

A copy is run with the weights of the layers in question changed at random, by somewhat more than what
another order of summation, or rounding to a permitted dtype, changes: a product in floating point is the
exact one of weights that differ by so little (Higham, Accuracy and Stability of Numerical Algorithms, 3.1).
Where a model chooses by its results, as argmax, top-k, quantizers and non-maximum suppression do, this may
change everything; what a conversion changes can then not be told from it.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Iterator
from typing import Any

import torch
from torch import Tensor, nn

from sparseinfer._running import deep_copy
from sparseinfer.convert.options import ConvertOptions

# How many times the rounding, and how often. Chosen, not measured: what rounding may decide then changes in
# about every second run, and in one of some 250 cases in none.
_MARGIN = 4.0
_RUNS = 8


def moved_by_rounding(
    model: nn.Module,
    layers: Iterable[nn.Module],
    options: ConvertOptions,
    difference: Callable[[nn.Module], float],
) -> Iterator[float]:
    """How far the results of a model are from its own, with the weights of these layers moved in other ways.

    difference   how far another model's results are from those of the model
    """
    copies: dict[int, Any] = {}
    other = deep_copy(model, copies)
    pairs = {
        parameter: copies[id(parameter)]
        for layer in layers
        for parameter in layer.parameters()
        if parameter.dim() > 1 and parameter.is_floating_point() and id(parameter) in copies
    }
    for seed in range(_RUNS):
        generator = torch.Generator().manual_seed(seed)
        for parameter, copied in pairs.items():
            # In place: whoever else in the model knows the weight sees the same.
            copied.data.copy_(_moved(parameter.detach(), options, generator))
        yield difference(other)


def _moved(weight: Tensor, options: ConvertOptions, generator: torch.Generator) -> Tensor:
    signs = torch.randint(0, 2, weight.shape, generator=generator, dtype=torch.int8).to(weight.device) * 2 - 1
    dtypes = {weight.dtype, *options.permitted}
    exact = weight.double() if weight.dtype == torch.float64 else weight.float()
    # Sums of k values in float32 are off by the square root of k roundings, if these are independent.
    relative = torch.finfo(torch.float32).eps / 2 * weight[0].numel() ** 0.5
    relative = max(relative, *(torch.finfo(dtype).eps / 2 for dtype in dtypes if dtype.is_floating_point))
    by = _MARGIN * relative * exact
    if not all(dtype.is_floating_point for dtype in dtypes):
        # Half a step of 8 bits, over the largest of each row: of weights, and as much again of inputs.
        largest = exact.abs().flatten(1).amax(1).view(-1, *[1] * (weight.dim() - 1))
        by = torch.where(exact == 0, 0.0, _MARGIN * largest / 255)
    return (exact + signs * by).to(weight.dtype)
