"""Computes calls of torch's `scaled_dot_product_attention` natively, where the result is the same.

`attended` takes the place of a call in a forward, of torch's function or of one that calls it, such as the
attention functions of transformers. What decides is checked at every call.
"""

from __future__ import annotations

import ast
import types
from functools import lru_cache
from typing import Any

import torch
from torch import Tensor
from torch.nn import functional as F

from sparseinfer import ops
from sparseinfer._source import is_path, resolved, source_of

# What rewritten source calls.
ATTENDED = "_sparseinfer_attended"

# As it is at import: somebody who replaces it later means something else.
_TORCHS = F.scaled_dot_product_attention
# What torch's own choice says where it takes the kernel that never writes the matrix of scores; only its
# results have the strides and the treatment of masked rows that the native ones have.
_FUSED = 1
_choice: Any = getattr(torch, "_fused_sdp_choice", None)

# Where the native kernel was faster (bench/results/attention_zen5.json, but for one cell of 7 us): it
# prepares all keys first, which a few queries do not pay for.
_LEAST_QUERIES, _MOST_KEYS, _MOST_DIM, _MOST_KEYS_OF_A_QUERY = 8, 512, 128, 4
_LEVELS = frozenset({"avx512", "avx512vnni", "avx512bf16", "amx"})


def attended(function: Any, *args: Any, **kwargs: Any) -> Any:
    """function(*args, **kwargs); natively where that is torch's attention, or calls it in its source."""
    if torch.compiler.is_compiling():
        return function(*args, **kwargs)
    if function is _TORCHS:
        native = _native(*args, **kwargs)
        return function(*args, **kwargs) if native is None else native
    if type(function) is types.FunctionType:
        function = _rewritten(function) or function
    return function(*args, **kwargs)


def is_attention(path: ast.expr, function: types.FunctionType) -> bool:
    """Whether an expression in a function's source is a name of torch's attention."""
    return is_path(path) and resolved(path, None, function) is _TORCHS


class Attended(ast.NodeTransformer):
    """Makes `attended(f, ...)` of calls `f(...)` of torch's attention, and of functions given by a local name
    that are called with `owner` and three more arguments."""

    def __init__(self, function: types.FunctionType, owner: str = "") -> None:
        self._function, self._owner = function, owner
        self.found = False

    def visit_Call(self, node: ast.Call) -> ast.AST:
        self.generic_visit(node)
        if is_attention(node.func, self._function) or self._is_given(node):
            self.found = True
            call = ast.Call(ast.Name(ATTENDED, ast.Load()), [node.func, *node.args], node.keywords)
            return ast.copy_location(call, node)
        return node

    def _is_given(self, node: ast.Call) -> bool:
        first = node.args[0] if len(node.args) >= 4 else None
        code = self._function.__code__
        return (
            isinstance(node.func, ast.Name)
            and node.func.id in code.co_varnames
            and isinstance(first, ast.Name)
            and first.id == self._owner != ""
        )


@lru_cache(maxsize=256)
def _rewritten(function: types.FunctionType) -> types.FunctionType | None:
    """The function with its calls of torch's attention computed by `attended`; None: it has none."""
    source = source_of(function)
    if source is None:
        return None
    rewriter = Attended(function)
    definition = rewriter.visit(source.copy())
    if not rewriter.found:
        return None
    return source.compiled(ast.fix_missing_locations(definition), {ATTENDED: attended})


def _native(
    query: Any,
    key: Any,
    value: Any,
    attn_mask: Any = None,
    dropout_p: Any = 0.0,
    is_causal: Any = False,
    *,
    scale: Any = None,
    enable_gqa: Any = False,
) -> Tensor | None:
    """What torch's function returns, whose names and defaults these are; None: not computed natively."""
    if dropout_p == 0.0 and not is_causal and not enable_gqa and _fits(query, key, value, attn_mask):
        factor = query.shape[-1] ** -0.5 if scale is None else scale
        if type(factor) is float and _choice(query, key, value, attn_mask, scale=scale) == _FUSED:
            return ops.attention(query, key, value, attn_mask, factor)
    return None


def _fits(q: Any, k: Any, v: Any, mask: Any) -> bool:
    """Whether the native kernel computes this, faster, and nobody watches or wants gradients."""
    tensors = (q, k, v) if mask is None else (q, k, v, mask)
    if _choice is None or any(type(x) is not Tensor or not x.is_cpu for x in tensors) or ops.watched(q):
        return False
    if torch.is_grad_enabled() and any(x.requires_grad for x in tensors):
        return False
    if any(x.dtype != torch.float32 or x.dim() != 4 for x in (q, k, v)):
        return False
    if mask is not None and (mask.dim() not in (2, 4) or mask.dtype not in (torch.bool, torch.float32)):
        return False
    batch, heads, queries, dim = q.shape
    keys = k.shape[2]
    if k.shape != (batch, heads, keys, dim) or v.shape != k.shape:
        return False
    if mask is not None and not all(
        size in (1, whole)
        for size, whole in zip(mask.shape[::-1], (keys, queries, heads, batch), strict=False)
    ):
        return False
    large = queries >= _LEAST_QUERIES and 0 < keys <= min(_MOST_KEYS, _MOST_KEYS_OF_A_QUERY * queries)
    large = large and 0 < dim <= _MOST_DIM
    return large and batch * heads > 0 and ops.active_isa() in _LEVELS
