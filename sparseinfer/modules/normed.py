"""Calls sparse Linears together with the residual addition and layer norm of their result."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

from torch import Tensor, nn

from sparseinfer import ops
from sparseinfer.modules.chain import chain
from sparseinfer.modules.products import norm_of, products_of
from sparseinfer.modules.unwatched import is_unwatched

# The attribute of a class with a `Whole`.
WHOLE = "_sparseinfer_whole"


@dataclass(frozen=True)
class Whole:
    """What the whole forward of a class is: `norm(chain(steps, x) + residual)`, or `chain(steps, x)`.

    Its arguments are x and, with a norm, residual; `steps` and `norm` are names of its modules.
    """

    steps: tuple[str, ...]
    norm: str = ""


def normed_sum(
    steps: tuple[Any, ...], args: Any, kwargs: Any, norm: Any, residual: Any, *, residual_first: bool
) -> Any:
    """norm(chain(steps, *args, **kwargs) + residual), in one pass where the result is the same.

    steps            callables: a layer, and what is applied to its result
    residual_first   the sum is residual + chain(...)

    Every call checks types, hooks and tensors, so this can replace the nested calls anywhere.
    """
    x: Any = args[0] if len(args) == 1 and not kwargs else None
    block = _block(steps, x, norm, residual)
    if block is not None:
        return block
    y = chain(steps, *args, **kwargs)
    return norm(residual + y if residual_first else y + residual)


def one_after_another(first: Any, second: Any, x: Any, residual: Any) -> Any:
    """second(first(x), residual): in one pass if both are `Whole`, and together such a `normed_sum`."""
    one, two = getattr(type(first), WHOLE, None), getattr(type(second), WHOLE, None)
    if one is not None and two is not None and not one.norm and two.norm and _are_plain(first, second):
        steps = [first._modules.get(name) for name in one.steps]
        steps += [second._modules.get(name) for name in two.steps]
        block = _block(steps, x, second._modules.get(two.norm), residual)
        if block is not None:
            return block
    return second(first(x), residual)


def _block(steps: Sequence[Any], x: Any, norm: Any, residual: Any) -> Tensor | None:
    """norm(steps(x) + residual) as one block; None: it is something else, or may not be fused now."""
    products = products_of(steps, x)
    row_norm = None if products is None else norm_of(norm, residual, x, products[-1].n)
    if products is None or row_norm is None:
        return None
    return ops.linear_block(x, products, row_norm)


def _are_plain(*modules: nn.Module) -> bool:
    return all(is_unwatched(module) for module in modules)
