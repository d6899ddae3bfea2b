"""Chooses the candidates for a product, and the token counts to plan it for."""

from __future__ import annotations

from torch import nn

from sparseinfer.convert.candidates.base import Candidates
from sparseinfer.convert.candidates.conv import ConvCandidates
from sparseinfer.convert.candidates.cuda_conv import CudaConvCandidates
from sparseinfer.convert.candidates.cuda_linear import CudaLinearCandidates
from sparseinfer.convert.candidates.linear import LinearCandidates
from sparseinfer.convert.options import ConvertOptions
from sparseinfer.convert.survey.recording import Recording, spread
from sparseinfer.convert.survey.survey import Product

# Where no run says it: one token, as in decode, a few, and a prefill.
DEFAULT_TOKENS = (1, 16, 128)

# More tokens than this take the same kernels in the same loops: times per token no longer change.
MAX_TOKENS = 256


def candidates_of(
    product: Product, recording: Recording, options: ConvertOptions
) -> tuple[Candidates | str, tuple[int, ...]]:
    """The product's candidates and the token counts to plan it for, or why it cannot be planned."""
    site = product.sites[0]
    matrix, shapes = site.matrices[product.name], recording.shapes.get(site.module, ())
    dense = product.weights
    sparse = dense if options.weights is None else dense.rounded(options.weights)
    if isinstance(sparse, str):
        return sparse, ()
    conv = site.module
    if isinstance(conv, (nn.Conv1d, nn.Conv2d)):
        if not shapes:
            return "no example input reached it: the size of its maps is not known", ()
        by_tokens = {matrix.tokens(shape): shape for shape in shapes}
        counts = spread(sorted(by_tokens))
        if not dense.on_gpu:
            return ConvCandidates(dense, sparse, conv, by_tokens), counts
        return CudaConvCandidates(dense, sparse, conv, by_tokens, conv in recording.channels_last), counts
    asked = {matrix.tokens(shape) for shape in shapes} | set(options.tokens or ())
    counts = spread(sorted({min(count, MAX_TOKENS) for count in asked})) or DEFAULT_TOKENS
    x_dtype = options.activations or dense.weight.dtype
    return (CudaLinearCandidates if dense.on_gpu else LinearCandidates)(dense, sparse, x_dtype), counts
