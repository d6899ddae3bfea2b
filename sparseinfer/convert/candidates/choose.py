"""Chooses the candidates for a product, and the token counts to plan it for."""

from __future__ import annotations

from collections.abc import Sequence

import torch
from torch import nn

from sparseinfer.convert.candidates.any_dtype import AnyDtype
from sparseinfer.convert.candidates.base import Candidates, Timed
from sparseinfer.convert.candidates.conv import ConvCandidates
from sparseinfer.convert.candidates.cuda_conv import CudaConvCandidates
from sparseinfer.convert.candidates.cuda_linear import CudaLinearCandidates
from sparseinfer.convert.candidates.linear import LinearCandidates
from sparseinfer.convert.options import KEEP, ConvertOptions, Rounding
from sparseinfer.convert.survey.recording import Recording, spread
from sparseinfer.convert.survey.survey import Product
from sparseinfer.convert.survey.weights import Weights

# Where no run says it: one token, as in decode, a few, and a prefill.
DEFAULT_TOKENS = (1, 16, 128)

# More tokens than this take the same kernels in the same loops: times per token no longer change.
MAX_TOKENS = 256


def candidates_of(
    product: Product, recording: Recording, options: ConvertOptions
) -> tuple[Timed | str, tuple[int, ...]]:
    """The product's candidates and the token counts to plan it for, or why it cannot be planned."""
    counts: tuple[int, ...] = ()
    variants: list[Candidates] = []
    for weights, activations in _roundings(product.weights, options).items():
        sparse = product.weights if weights is None else product.weights.rounded(weights)
        if not isinstance(sparse, str):
            found, counts = _of_one_dtype(product, sparse, activations, recording, options)
            if not isinstance(found, str):
                variants.append(found)
                continue
            sparse = found
        if not variants:
            return sparse, ()
    return variants[0] if len(variants) == 1 else AnyDtype(variants), counts


def _roundings(dense: Weights, options: ConvertOptions) -> dict[torch.dtype | None, list[torch.dtype | None]]:
    """For each dtype that sparse weights may have the dtypes that x may be rounded to, the longest first."""
    # What is permitted, not asked for, is worth it in float32 only; on a GPU it has never been measured.
    shortens = options.precision != KEEP and (dense.on_gpu or dense.weight.dtype != torch.float32)
    by_weights: dict[torch.dtype | None, list[torch.dtype | None]] = {}
    for weights, activations in (Rounding(),) if shortens else options.roundings:
        by_weights.setdefault(weights, []).append(activations)
    return by_weights


def _of_one_dtype(
    product: Product,
    sparse: Weights,
    activations: Sequence[torch.dtype | None],
    recording: Recording,
    options: ConvertOptions,
) -> tuple[Candidates | str, tuple[int, ...]]:
    """With sparse weights of one dtype."""
    site, dense = product.sites[0], product.weights
    matrix, shapes = site.matrices[product.name], recording.shapes.get(site.module, ())
    conv = site.module
    if isinstance(conv, (nn.Conv1d, nn.Conv2d)):
        if not shapes:
            return "no example input reached it: the size of its maps is not known", ()
        by_tokens = {matrix.tokens(shape): shape for shape in shapes}
        counts = spread(sorted(by_tokens))
        if not dense.on_gpu:
            rounded_x = torch.uint8 if torch.uint8 in activations else None
            return ConvCandidates(dense, sparse, conv, by_tokens, rounded_x=rounded_x), counts
        return CudaConvCandidates(dense, sparse, conv, by_tokens, conv in recording.channels_last), counts
    asked = {matrix.tokens(shape) for shape in shapes} | set(options.tokens or ())
    counts = spread(sorted({min(count, MAX_TOKENS) for count in asked})) or DEFAULT_TOKENS
    x_dtype, *shorter = (dtype or dense.weight.dtype for dtype in activations)
    if dense.on_gpu:
        return CudaLinearCandidates(dense, sparse, x_dtype), counts
    return LinearCandidates(dense, sparse, x_dtype, *shorter), counts
