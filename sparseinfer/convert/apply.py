"""`convert` and `convert_`: everything is planned and packed before the first module changes its place."""

from __future__ import annotations

import copy
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from typing import Any

import torch
from torch import Tensor, nn

from sparseinfer._select import FilterFn, Patterns, select_modules
from sparseinfer.convert.conversion import Conversion, prepare
from sparseinfer.convert.kinds import types_in
from sparseinfer.convert.options import Memory, Options
from sparseinfer.convert.recording import run, tensors_of
from sparseinfer.convert.report import attach
from sparseinfer.modules import SparseMultiheadAttention
from sparseinfer.prune.masks import finalize_

# On an encoder that used nested tensors before.
_NESTED = "_sparseinfer_used_nested_tensors"


def convert(
    model: nn.Module,
    *,
    example_inputs: Any = None,
    tokens: Sequence[int] | None = None,
    weights: torch.dtype | None = None,
    activations: torch.dtype | None = None,
    memory: Memory = 1.0,
    measure: bool = True,
    budget_s: float = 60.0,
    fuse: bool = True,
    fold_batch_norm: bool = False,
    filter_fn: FilterFn | None = None,
    targets: Patterns = None,
    ignore: Patterns = None,
) -> nn.Module:
    """A copy of the model for inference in which every layer that gains by it is sparse.

    Layers are nn.Linear, nn.Conv1d, nn.Conv2d, nn.MultiheadAttention, nn.LSTM, nn.GRU, and the transposed
    Linear of transformers (Conv1D).

    example_inputs   inputs of one typical run: a tuple of arguments, a mapping of keyword arguments, or the
                     only argument. Each layer is planned for the shapes that this run brings to it
    tokens           token counts to plan Linears for besides; default (1, 16, 128) where no run says it.
                     A convolution needs `example_inputs`
    weights          torch.bfloat16 or torch.float16: round the sparse weights to it; default: keep them
    activations      torch.bfloat16: sparse Linears round their inputs to it as well (and sum in float32);
                     what they return keeps the model's dtype. With bfloat16 weights only
    memory           how many times its dense bytes a layer's packings may take, one for few tokens and
                     another for many; "speed": whatever is fastest; "compact": one packing, the smallest,
                     and sparse wherever that saves bytes
    measure          time the candidates on this machine, or remember an earlier time; False: predict
    budget_s         seconds to measure for, at most; what is left is predicted
    fuse             with `example_inputs`: an activation that alone reads a layer's result moves into the
                     layer, one that is the last to read its input works in place, and Linears that are
                     given the same input become one matrix. If the model then returns something else for
                     these inputs, nothing is fused
    fold_batch_norm  with `example_inputs`: a batch norm that alone reads a layer's result is folded into
                     its weights, which are then no longer those of the model
    filter_fn, targets, ignore   which modules: see `sparseinfer._select.select_modules`

    Zeros count however they came: in the weight itself, by torch.nn.utils.prune or by a parametrization; the
    last two are resolved and do not come along, nor do masks that prune_ left. A layer that is faster dense
    stays dense, in the layout that is fastest. `explain` says which and why; `densify_` goes back. Weights
    are float32, bfloat16 or float16, and inputs of the same dtype; other layers stay as they are. A model on
    a GPU is planned for its kernels there.

    The model itself is unchanged, and weights that became sparse are not copied. TypeError or ValueError: an
    argument of the wrong kind, example inputs that the model does not accept, a parameter without data
    (meta) or a gradient left on one in training mode.
    """
    options = Options.checked(
        tokens=tokens,
        weights=weights,
        activations=activations,
        memory=memory,
        measure=measure,
        budget_s=budget_s,
        fuse=fuse,
        fold_batch_norm=fold_batch_norm,
    )
    modules = select_modules(model, _types(model), filter_fn, targets, ignore)
    conversion = prepare(model, modules, example_inputs, options)
    converted = _copy(model, conversion)
    if conversion.fuses and not _agrees(converted, example_inputs, conversion, options):
        conversion = prepare(model, modules, example_inputs, options.unfused())
        converted = _copy(model, conversion)
    finalize_(converted)
    leave_nested_tensors(converted)
    attach(converted, conversion.rows)
    return converted


def convert_(
    model: nn.Module,
    *,
    example_inputs: Any = None,
    tokens: Sequence[int] | None = None,
    weights: torch.dtype | None = None,
    activations: torch.dtype | None = None,
    memory: Memory = 1.0,
    measure: bool = True,
    budget_s: float = 60.0,
    fuse: bool = True,
    fold_batch_norm: bool = False,
    filter_fn: FilterFn | None = None,
    targets: Patterns = None,
    ignore: Patterns = None,
) -> nn.Module:
    """`convert` in place; returns the same model. After any error the model is as it was before.

    ValueError also if the model itself is a layer: there is nothing to put another module into.
    """
    options = Options.checked(
        tokens=tokens,
        weights=weights,
        activations=activations,
        memory=memory,
        measure=measure,
        budget_s=budget_s,
        fuse=fuse,
        fold_batch_norm=fold_batch_norm,
    )
    modules = select_modules(model, _types(model), filter_fn, targets, ignore)
    if model in modules.values():
        got = f"{type(model).__name__} itself (use convert)"
        raise ValueError(f"model: expected a module that holds layers, got {got}")
    conversion = prepare(model, modules, example_inputs, options)
    if conversion.fuses:
        with _replaced(model, conversion.replacements):
            agrees = _agrees(model, example_inputs, conversion, options)
        if not agrees:
            conversion = prepare(model, modules, example_inputs, options.unfused())
    replace_(model, conversion.replacements)
    finalize_(model)
    leave_nested_tensors(model)
    attach(model, conversion.rows)
    return model


def _types(model: nn.Module) -> tuple[type[nn.Module], ...]:
    return types_in(model) if isinstance(model, nn.Module) else ()


def replace_(model: nn.Module, replacements: Mapping[nn.Module, nn.Module]) -> None:
    """Put each value where its key is held, under every name."""
    for parent in list(model.modules()):
        for name, child in parent._modules.items():
            if child is not None and child in replacements:
                parent._modules[name] = replacements[child]


def leave_nested_tensors(model: nn.Module) -> None:
    """torch's TransformerEncoder makes them of padded inputs, for a fast path that its layers have left."""
    for encoder in _encoders(model):
        holds = any(isinstance(module, SparseMultiheadAttention) for module in encoder.modules())
        if holds and getattr(encoder, "use_nested_tensor", False):
            encoder.use_nested_tensor = False
            setattr(encoder, _NESTED, True)


def return_to_nested_tensors(model: nn.Module) -> None:
    """Undo `leave_nested_tensors`."""
    for encoder in _encoders(model):
        if hasattr(encoder, _NESTED):
            delattr(encoder, _NESTED)
            encoder.use_nested_tensor = True


def _encoders(model: nn.Module) -> list[nn.TransformerEncoder]:
    return [module for module in model.modules() if isinstance(module, nn.TransformerEncoder)]


@contextmanager
def _replaced(model: nn.Module, replacements: Mapping[nn.Module, nn.Module]) -> Iterator[None]:
    before = [(parent, dict(parent._modules)) for parent in model.modules()]
    replace_(model, replacements)
    try:
        yield
    finally:
        for parent, children in before:
            parent._modules.update(children)


def _agrees(model: nn.Module, example_inputs: Any, conversion: Conversion, options: Options) -> bool:
    """Whether the converted model takes its inputs and returns what it did before, but for rounding.

    Rows of a shared result lie apart, which a view may mind, and a result may have readers that nobody saw.
    """
    try:
        got = tensors_of(run(model, example_inputs))
    except Exception:
        return False
    expected = conversion.expected
    if [t.shape for t in got] != [t.shape for t in expected]:
        return False
    return all(
        float((b.double() - a.double()).norm()) <= options.tolerance(a.dtype) * float(a.double().norm())
        for a, b in zip(expected, got, strict=True)
    )


def _copy(model: nn.Module, conversion: Conversion) -> nn.Module:
    # For deepcopy: what to put in the place of a module instead of a copy of it.
    memo: dict[int, Any] = {id(old): new for old, new in conversion.replacements.items()}
    converted: nn.Module = copy.deepcopy(model, {**_recomputed(model, conversion), **memo})
    return converted


def _recomputed(model: nn.Module, conversion: Conversion) -> dict[int, Any]:
    """For deepcopy: detached copies of the attributes that it refuses, results of an autograd graph.

    The weight of a dense layer under torch.nn.utils.prune is one; the layer makes it anew at each forward.
    """
    return {
        id(value): value.detach().clone()
        for module in model.modules()
        if module not in conversion.replacements
        for value in vars(module).values()
        if isinstance(value, Tensor) and value.grad_fn is not None
    }
