"""int8 weights: integers from -127 to 127 and one scale per row, held in a floating-point weight.

`quantize_` writes integers times scale into a weight of any dtype, and the scales into a buffer beside it;
`integers_of` gives the same integers back. They are exact:

A scale is a number of bfloat16: it has 8 significant bits and an integer 7, so that their product is exact
in float32, and `model.to(torch.bfloat16)` leaves the scale as it is. In bfloat16 the product is rounded by at
most 1 / 257 of its value, which moves the quotient of weight and scale by 127 / 257 < 1/2: it still rounds to
the integer. The largest weight of a row becomes 127 in spite of the rounded scale, for the same reason.
"""

from __future__ import annotations

from collections.abc import Iterator

import torch
from torch import Tensor, nn

from sparseinfer._transposed import is_transposed_linear

LARGEST = 127
# Elements for each thread of a block of rows. Chosen, not measured: 256 KB in float32, so that a block and
# what is made of it stay in a core's L2 cache.
_BLOCK = 2**16
# What the bits of the next smaller number of bfloat16 are less, as a float32.
_STEP = 2**16


def scale_name(parameter: str) -> str:
    """The buffer that holds the scales of a parameter: "weight_scale" of "weight"."""
    return f"{parameter}_scale"


def buffer_names(parameter: str) -> tuple[str, str, str]:
    """What `quantize_` leaves beside a parameter: its scales, and the scale and zero point of its inputs."""
    stem = parameter.replace("weight", "input")
    return scale_name(parameter), f"{stem}_scale", f"{stem}_zero_point"


def row_peaks(matrix: Tensor) -> Tensor:
    """The largest magnitude of each row of a matrix [..., n, k]; 0 where k is 0."""
    peaks = matrix.new_zeros(matrix.shape[:-1])
    if matrix.shape[-1]:
        for rows, result in row_blocks(matrix, peaks):
            result.copy_(rows.abs().amax(-1))
    return peaks


def row_scales(peak: Tensor, dtype: torch.dtype) -> Tensor:
    """float32 scales of rows whose largest magnitudes are these, [...]; 1 for rows of zeros.

    dtype  of the weight. Twice its smallest number is the smallest scale: integers times a smaller one could
           not be told apart. Infinite where a scale is beyond float32
    """
    least = max(2 * _smallest(dtype), torch.finfo(torch.float32).tiny)
    scale = (peak.double() / LARGEST).to(torch.float32).clamp(min=least).to(torch.bfloat16).float()
    # No product may exceed the largest number of the dtype.
    too_large = scale.isfinite() & (LARGEST * scale.double() > torch.finfo(dtype).max)
    scale = torch.where(too_large, (scale.view(torch.int32) - _STEP).view(torch.float32), scale)
    return torch.where(peak == 0, 1.0, scale)


def rounded(matrix: Tensor, scale: Tensor) -> Tensor:
    """int8, the nearest multiples of the scales, half to even: matrix [..., n, k], scale [..., n]."""
    dtype = torch.promote_types(matrix.dtype, torch.float32)
    integers = torch.empty_like(matrix, dtype=torch.int8)
    for rows, scales, result in row_blocks(matrix, scale, integers):
        quotient = rows.to(dtype) / scales[..., None].to(dtype)
        result.copy_(quotient.round_().clamp_(-LARGEST, LARGEST))
    return integers


def row_blocks(matrix: Tensor, *others: Tensor) -> Iterator[tuple[Tensor, ...]]:
    """Views of some rows at a time of matrix [..., n, k] and of the others [..., n, ...], in their order.

    Several passes over a block cost little more than one: it is in the cache.
    """
    tensors = (matrix, *others)
    limit = _BLOCK * torch.get_num_threads()
    if matrix.numel() <= limit or matrix.device.type != "cpu":
        yield tensors
    elif matrix.dim() == 2:
        step = max(1, limit // matrix.shape[1])
        yield from zip(*(tensor.split(step) for tensor in tensors), strict=True)
    elif all(tensor.is_contiguous() for tensor in tensors):
        yield from row_blocks(*(tensor.flatten(0, matrix.dim() - 2) for tensor in tensors))
    else:
        for parts in zip(*tensors, strict=True):
            yield from row_blocks(*parts)


def products(integers: Tensor, scale: Tensor, dtype: torch.dtype) -> Tensor:
    """Integers [..., n, k] times scales [..., n], in this dtype; exact before it is rounded to a half."""
    wide = torch.promote_types(dtype, torch.float32)
    return (integers.to(wide) * scale[..., None].to(wide)).to(dtype)


def rows_of(module: nn.Module, parameter: str = "weight") -> Tensor:
    """A weight with its outputs first, as `scale_name` counts them: of transformers' Conv1D [n, k]."""
    weight: Tensor = module.get_parameter(parameter).detach()
    return weight.mT if is_transposed_linear(module) else weight


def integers_of(module: nn.Module, parameter: str = "weight") -> tuple[Tensor, Tensor] | None:
    """The integers, int8 [rows, k], and scales, float32 [rows], that the weight consists of at present.

    None if the module has no scales of it, or if it was written to since they were made. Rows are those of
    all outputs, of experts [experts, n] one after the other; columns are in the weight's own order.
    """
    scale = module._buffers.get(scale_name(parameter))
    weight = module._parameters.get(parameter)
    if scale is None or weight is None or weight.is_meta or scale.is_meta or not weight.numel():
        return None
    return on_grid(rows_of(module, parameter), scale)


def on_grid(weight: Tensor, scale: Tensor) -> tuple[Tensor, Tensor] | None:
    """`integers_of` of a weight [n, ...] or [experts, n, k]; None unless it is a multiple of the scales."""
    rows = weight.reshape(len(scale), -1)
    scales = scale.to(torch.float32)
    if not bool((scales > 0).all()) or not bool(torch.stack(rows.aminmax()).isfinite().all()):
        return None
    integers = rounded(rows, scales)
    half, tiny = torch.finfo(weight.dtype).eps / 2, _smallest(weight.dtype) / 2
    wide = torch.promote_types(weight.dtype, torch.float32)
    for some, scale_of, integer in row_blocks(rows, scales, integers):
        exact = products(integer, scale_of, wide)
        # What rounding the products to the dtype of the weight explains.
        near = (some - exact).abs_() <= (exact.abs_() * half).add_(tiny)
        if not bool(near.all()):
            return None
    return integers, scales


def _smallest(dtype: torch.dtype) -> float:
    """The smallest positive number of a dtype."""
    limits = torch.finfo(dtype)
    return limits.tiny * limits.eps
