"""Runs one or two Linears and a layer norm of their result on the CPU, in one native call."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import torch
from torch import Tensor

from sparseinfer._native import core
from sparseinfer.ops.arguments import as_rows, number_of_dtype
from sparseinfer.ops.cpu.call import bias_argument, numbers
from sparseinfer.ops.cpu.trust import address
from sparseinfer.ops.plan import check_packings


@dataclass(frozen=True, slots=True)
class Product:
    """activation(x · Wᵀ + bias) with W [n, k]; the arguments of `torch.ops.sparseinfer.linear`."""

    packings: Sequence[Tensor]
    bias: Tensor | None
    n: int
    plan: str
    activation: str


@dataclass(frozen=True, slots=True)
class ResidualNorm:
    """layer_norm(y + residual, [n], weight, bias, eps): residual [..., n]; weight and bias [n] or None."""

    residual: Tensor
    weight: Tensor | None
    bias: Tensor | None
    eps: float


def linear_block(x: Tensor, products: Sequence[Product], norm: ResidualNorm | None = None) -> Tensor:
    """The last product of ... the first product of x [..., k], then `norm`: [..., n] in x's dtype.

    One or two products. A thread takes some tokens through all of it while they are in its cache; the bits
    of the products are those of `linear`. Not for autograd, and not seen by torch's dispatcher.

    ValueError, TypeError: arguments that do not fit each other, or are not on the CPU.
    """
    if not 1 <= len(products) <= 2:
        raise ValueError(f"products: expected one or two, got {len(products)}")
    if not x.is_cpu:
        raise ValueError(f"x: expected a tensor on the CPU, got one on {x.device}")
    rows = x if x.dim() == 2 else as_rows(x, x.shape)
    m, k = rows.shape
    stride, step = rows.stride()
    if step != 1 and m and k:
        rows, stride = rows.contiguous(), k
    calls, kept = zip(*[_product(product, m, x.dtype) for product in products], strict=True)
    y = x.new_empty((*x.shape[:-1], products[-1].n))
    normed, held = (None, ()) if norm is None else _norm(norm, y)
    tokens = (rows.data_ptr(), number_of_dtype(x.dtype), m, k, stride)
    core.block(tokens, calls[0], calls[1] if len(calls) > 1 else None, normed, y.data_ptr())
    del kept, held  # what the addresses belong to, until here
    return y


def _product(
    product: Product, m: int, dtype: torch.dtype
) -> tuple[tuple[int, int, int, int, int, int], Tensor | None]:
    index, kernel, _, activation = numbers(product.plan, m, dtype, product.activation)
    check_packings(product.plan, index + 1, product.packings)
    bias, bias_address, bias_dtype = bias_argument(product.bias, product.n, dtype)
    packing = address(product.packings[index])
    return (kernel, packing, bias_address, bias_dtype, activation, product.n), bias


def _norm(
    norm: ResidualNorm, y: Tensor
) -> tuple[tuple[int, int, int, int, int, float], tuple[Tensor | None, ...]]:
    residual, n = norm.residual, y.shape[-1]
    if residual.shape != y.shape or residual.dtype != y.dtype or not residual.is_cpu:
        expected = f"a tensor like the result, {y.dtype} {list(y.shape)} on the CPU"
        got = f"{residual.dtype} {list(residual.shape)} on {residual.device}"
        raise ValueError(f"residual: expected {expected}, got {got}")
    residual = residual.contiguous()
    weight, weight_address, weight_dtype = bias_argument(norm.weight, n, y.dtype)
    bias, bias_address, bias_dtype = bias_argument(norm.bias, n, y.dtype)
    if weight is not None and bias is not None and weight_dtype != bias_dtype:
        weight, weight_address, weight_dtype = bias_argument(weight.float(), n, y.dtype)
        bias, bias_address, bias_dtype = bias_argument(bias.float(), n, y.dtype)
    dtype = weight_dtype if weight is not None else bias_dtype
    numbered = (residual.data_ptr(), n, weight_address, bias_address, dtype, float(norm.eps))
    return numbered, (residual, weight, bias)
