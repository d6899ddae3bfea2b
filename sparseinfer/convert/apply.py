"""`convert` and `convert_`: everything is planned and packed before the first module changes its place."""

from __future__ import annotations

import warnings
from collections.abc import Iterator, Sequence
from typing import Any

import torch
from torch import Tensor, nn

from sparseinfer._running import deep_copy, run
from sparseinfer._select import FilterFn, Patterns, select_modules
from sparseinfer.convert.chains import part_
from sparseinfer.convert.conversion import Conversion, prepare
from sparseinfer.convert.fusion import join_all_
from sparseinfer.convert.kinds import types_in
from sparseinfer.convert.options import Memory, Options
from sparseinfer.convert.places import replace_
from sparseinfer.convert.recording import tensors_of
from sparseinfer.convert.report import attach
from sparseinfer.convert.undisturbed import undisturbed
from sparseinfer.modules import FoldedLayer, SparseMultiheadAttention
from sparseinfer.modules.shared import share_in, unshare_in
from sparseinfer.prune import finalize_

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
        targeted=targets is not None,
    )
    modules = select_modules(model, _types(model), filter_fn, targets, ignore)
    for attempt, last in _attempts(options):
        conversion = prepare(model, modules, example_inputs, attempt)
        converted = _copy(model, conversion)
        finish_(converted, conversion, fuse=attempt.fuse)
        if _accepted(converted, example_inputs, conversion, attempt, last=last):
            break
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
        targeted=targets is not None,
    )
    modules = select_modules(model, _types(model), filter_fn, targets, ignore)
    if model in modules.values():
        got = f"{type(model).__name__} itself (use convert)"
        raise ValueError(f"model: expected a module that holds layers, got {got}")
    for attempt, last in _attempts(options):
        conversion = prepare(model, modules, example_inputs, attempt)
        accepted = False
        try:
            replace_(model, conversion.replacements)
            finish_(model, conversion, fuse=attempt.fuse)
            accepted = _accepted(model, example_inputs, conversion, attempt, last=last)
        finally:
            if not accepted:
                unfinish_(model)
                replace_(model, {new: old for old, new in conversion.replacements.items()})
        if accepted:
            break
    finalize_(model)
    leave_nested_tensors(model)
    attach(model, conversion.rows)
    return model


def finish_(model: nn.Module, conversion: Conversion, *, fuse: bool) -> None:
    """What converted layers need of the modules around them."""
    for fqn, part in conversion.shared:
        parent = model.get_submodule(fqn)
        while isinstance(parent, (nn.ModuleList, nn.ModuleDict)):  # which are never called
            fqn = fqn.rpartition(".")[0]
            parent = model.get_submodule(fqn)
        share_in(parent, part, checked=not undisturbed(parent, part.all_in(parent)))
    if fuse or conversion.folds:
        join_all_(model, fuse=fuse)


def unfinish_(model: nn.Module) -> None:
    """Undo `finish_`."""
    for module in model.modules():
        part_(module)
        unshare_in(module)


def _attempts(options: Options) -> Iterator[tuple[Options, bool]]:
    """The options, then plainer ones where their result is not the model's; and whether they are the last."""
    plainer = [options, options.unfolded(), options.unfused()]
    distinct = list(dict.fromkeys(plainer))
    for attempt in distinct:
        yield attempt, attempt is distinct[-1]


def _types(model: nn.Module) -> tuple[type[nn.Module], ...]:
    return types_in(model) if isinstance(model, nn.Module) else ()


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


def _accepted(
    model: nn.Module, example_inputs: Any, conversion: Conversion, options: Options, *, last: bool
) -> bool:
    """Whether the converted model may be kept: it returns what it did before, but for rounding.

    Nothing that is fused depends on this; it is a second look. A folded batch norm needs it: its weights are
    other ones. If results differ though nothing is fused or folded, they are the model's own, and it is said.
    """
    if example_inputs is None or not conversion.replacements:
        return True
    try:
        got = tensors_of(run(model, example_inputs))
        difference = _difference(conversion.expected, got, options)
    except Exception as error:
        if last:
            raise
        difference = f"{type(error).__name__}: {error}"
    if not conversion.expected and conversion.folds:
        return False  # nothing to compare
    if difference and last:
        message = (
            f"model: expected the converted model to return for example_inputs what it did, got {difference}"
        )
        warnings.warn(message, UserWarning, stacklevel=3)
    return last or not difference


def _difference(expected: Sequence[Tensor], got: Sequence[Tensor], options: Options) -> str:
    """What is not equal; "" if all is, but for rounding."""
    if [t.shape for t in got] != [t.shape for t in expected]:
        return f"shapes {[tuple(t.shape) for t in got]} instead of {[tuple(t.shape) for t in expected]}"
    for a, b in zip(expected, got, strict=True):
        a, b = a.double(), b.double()
        finite = a.isfinite()
        if not torch.equal(a[~finite].nan_to_num(nan=0.5), b[~finite].nan_to_num(nan=0.5)):
            return "other infinite values"
        a, b = a[finite], b[finite]
        error, norm = float((b - a).norm()), float(a.norm())
        if not error <= options.tolerance(got[0].dtype) * norm:
            return f"a relative difference of {error / norm if norm else error:.2g}"
    return ""


def _copy(model: nn.Module, conversion: Conversion) -> nn.Module:
    # For deepcopy: what to put in the place of a module instead of a copy of it.
    memo: dict[int, Any] = {id(old): new for old, new in conversion.replacements.items()}
    training = {fqn: module.training for fqn, module in model.named_modules(remove_duplicate=False)}
    converted: nn.Module = deep_copy(model, memo)
    for fqn, module in converted.named_modules(remove_duplicate=False):
        # A copy may be made by a constructor, which leaves it in training mode.
        module.training = training.get(fqn, module.training)
        if isinstance(module, FoldedLayer):
            norm = module.__dict__["batch_norm"]
            object.__setattr__(module, "batch_norm", memo.get(id(norm), norm))
    return converted
