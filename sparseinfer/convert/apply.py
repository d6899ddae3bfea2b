"""`convert` and `convert_`: plan and pack everything, then replace the layers."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import dataclass, replace
from typing import TYPE_CHECKING, Any

from torch import Tensor, nn

from sparseinfer._running import deep_copy
from sparseinfer.convert.accept import accepted, without_wrong_parts
from sparseinfer.convert.assembly.places import replace_
from sparseinfer.convert.assembly.regions import layers_in_regions
from sparseinfer.convert.assembly.replacements import Build, build
from sparseinfer.convert.assembly.surroundings import finish_, leave_nested_tensors, unfinish_
from sparseinfer.convert.decisions import Decision, decide
from sparseinfer.convert.options import ConvertKeywords, ConvertOptions, options_of, shows_keywords
from sparseinfer.convert.record import attach_record, record_of
from sparseinfer.convert.report import attach
from sparseinfer.convert.rows import in_regions, rows_of
from sparseinfer.convert.survey.kinds import types_in
from sparseinfer.convert.survey.survey import Survey, products_of, survey_of
from sparseinfer.convert.whole import Whole, regions_pay, without_slower_parts
from sparseinfer.prune import finalize_
from sparseinfer.prune.masks import nncf_masks_merged
from sparseinfer.select import FilterFn, Patterns, select_modules

if TYPE_CHECKING:
    from typing_extensions import Unpack


@dataclass(frozen=True)
class _Attempt:
    """A conversion that is ready to be applied; it may fuse and fold less than the options ask for.

    last   no attempt with less fusing follows
    """

    options: ConvertOptions
    decisions: Sequence[Decision]
    built: Build
    last: bool


@shows_keywords(ConvertKeywords)
def convert(
    model: nn.Module,
    *,
    example_inputs: Any = None,
    filter_fn: FilterFn | None = None,
    targets: Patterns = None,
    ignore: Patterns = None,
    options: ConvertOptions | None = None,
    **keywords: Unpack[ConvertKeywords],
) -> nn.Module:
    """A copy of the model for inference in which every layer that is faster sparse is sparse.

    Layers are nn.Linear, nn.Conv1d, nn.Conv2d, nn.MultiheadAttention, nn.LSTM, nn.GRU, nn.RNN, and the
    transposed Linear of transformers (Conv1D).

    example_inputs   inputs of one typical run: a tuple of arguments, a mapping of keyword arguments, or the
                     only argument. Each layer is planned for the input shapes it gets in this run
    tokens           more token counts to plan Linears for; default (1, 16, 128) if there is no run. A layer
                     that is slower than its best dense form at one of them stays dense, unless `memory` lets
                     it hold both: for decode alone, say so. A convolution needs `example_inputs`
    precision        "bf16": layers of a float32 model on the CPU may be computed in bfloat16, sparse or
                     dense, weights alone or inputs too; each gets what is fastest, and returns float32.
                     "int8": layers may also hold int8 weights, rounded by the largest magnitude of each row
                     or as `quantize_` left them, and round each token of their inputs to 8 bits, sparse
                     convolutions each image (an image with NaN or inf then gives NaN everywhere).
                     "int8-weights": the weights alone, to bfloat16 or int8.
                     "keep": only what `weights` and `activations` say is rounded; not with "bf16"
    weights          torch.bfloat16 or torch.float16: round the sparse weights to it; default: keep them
    activations      torch.bfloat16: sparse Linears round their inputs to it as well (and sum in float32);
                     what they return keeps the model's dtype. With bfloat16 weights only
    memory           how many times its dense bytes a layer may take: packings for few tokens and others for
                     many and, from some 1.6 on, the dense weight for token counts at which it is faster;
                     "speed": whatever is fastest; "compact": one packing, the smallest, and sparse wherever
                     that saves bytes
    measure          time the candidates on this machine, or use cached times; False: predict times
    budget_s         seconds to measure layers for, at most; what is left is predicted. Comparing whole models
                     takes at most half of it
    fuse             with `example_inputs`: layers are fused with an activation or a residual addition and
                     nn.LayerNorm that alone read their result, the two Linears of an MLP, and Linears of one
                     input; other activations work in place. If the model's result then differs, nothing is
    fold_batch_norm  with `example_inputs`: a batch norm that alone reads a layer's result is folded into
                     a second copy of the layer's weight; the layer by itself keeps the original one
    regions          convolutions and what lies between them run as one native call where that is not slower
    filter_fn        which modules to look at: those for which filter_fn(module, fqn) is true
    targets          only these: fully qualified names, class names, or "re:" and a regular expression that is
                     matched against the start of the name; also layers that the example does not call
    ignore           layers to leave out, in the same form; see sparseinfer.select.select_modules
    options          a ConvertOptions instead of the keywords from `tokens` to `regions`

    With `example_inputs`, `measure` and on the CPU, the converted model is at last compared as a whole with
    its best dense form and with the original, unless twenty calls take longer than there is time; layers that
    make it slower stay dense. Layers that change its results by more than its own rounding explains do so,
    too, with a warning.

    Zeros may come from the weight itself, torch.nn.utils.prune, a parametrization or nncf.prune; the copy has
    none of the last three, nor masks of prune_. A layer that is faster dense stays dense, in the fastest
    layout. `explain` says which and why; `densify_` restores dense layers. Weights are float32, bfloat16 or
    float16, and inputs of the same dtype; other layers stay unchanged. A model on a GPU is planned for the
    CUDA kernels.

    The model itself is unchanged, and weights that became sparse are not copied. TypeError or ValueError: an
    argument of the wrong kind, example inputs that the model does not accept, a parameter without data
    (meta) or a gradient left on one in training mode.
    """
    options = options_of("convert", options, keywords, ConvertKeywords)
    with nncf_masks_merged(model, keep=False):
        modules = select_modules(model, _types(model), filter_fn, targets, ignore)
        survey = survey_of(model, modules, example_inputs, named=targets is not None)
        for attempt in _attempts(model, survey, options):
            trial, result = _trial(model, attempt.built, attempt.options), survey.recording.result
            if accepted(trial, example_inputs, result, attempt.built, attempt.options, last=attempt.last):
                break
        else:
            attempt = _without_wrong_parts(model, survey, attempt, example_inputs)
        attempt, whole = _compared(model, survey, attempt, example_inputs)
        converted = _copy(model, whole.built)
        finish_(converted, whole.built, attempt.options)
        return _finished(converted, survey, attempt, whole)


@shows_keywords(ConvertKeywords)
def convert_(
    model: nn.Module,
    *,
    example_inputs: Any = None,
    filter_fn: FilterFn | None = None,
    targets: Patterns = None,
    ignore: Patterns = None,
    options: ConvertOptions | None = None,
    **keywords: Unpack[ConvertKeywords],
) -> nn.Module:
    """`convert` in place; returns the same model. After any error the model is as it was before.

    ValueError also if the model itself is a layer: there is nothing to put another module into.
    """
    options = options_of("convert_", options, keywords, ConvertKeywords)
    with nncf_masks_merged(model, keep=True):
        modules = select_modules(model, _types(model), filter_fn, targets, ignore)
        if model in modules.values():
            got = f"{type(model).__name__} itself (use convert)"
            raise ValueError(f"model: expected a module that holds layers, got {got}")
        survey = survey_of(model, modules, example_inputs, named=targets is not None)
        for attempt in _attempts(model, survey, options):
            replacements, is_accepted = attempt.built.replacements, False
            try:
                replace_(model, replacements)
                finish_(model, attempt.built, attempt.options)
                result = survey.recording.result
                is_accepted = accepted(
                    model, example_inputs, result, attempt.built, attempt.options, last=attempt.last
                )
            finally:
                unfinish_(model)
                replace_(model, {new: old for old, new in replacements.items()})
            if is_accepted:
                break
        else:
            attempt = _without_wrong_parts(model, survey, attempt, example_inputs)
        attempt, whole = _compared(model, survey, attempt, example_inputs)
        whole.built.point_to_norms({})
        replace_(model, whole.built.replacements)
        finish_(model, whole.built, attempt.options)
        return _finished(model, survey, attempt, whole)


def _attempts(model: nn.Module, survey: Survey, options: ConvertOptions) -> Iterator[_Attempt]:
    """Conversions with these options, then without folding, then also without fusing."""
    plainer = list(dict.fromkeys([options, options.unfolded(), options.unfused()]))
    decisions: list[Decision] = []
    for attempt in plainer:
        products = products_of(model, survey, fuse=attempt.fuse, fold=attempt.fold_batch_norm)
        decisions = decide(products, survey, attempt, earlier=decisions)
        built = build(model, survey, decisions, attempt)
        yield _Attempt(attempt, decisions, built, last=attempt is plainer[-1])


def _without_wrong_parts(
    model: nn.Module, survey: Survey, attempt: _Attempt, example_inputs: Any
) -> _Attempt:
    """The last attempt without parts that change what the model returns."""

    def trial(built: Build) -> nn.Module:
        return _trial(model, built, attempt.options)

    built = without_wrong_parts(
        model, survey, attempt.decisions, attempt.built, trial, example_inputs, attempt.options
    )
    return replace(attempt, built=built)


def _compared(
    model: nn.Module, survey: Survey, attempt: _Attempt, example_inputs: Any
) -> tuple[_Attempt, Whole]:
    """The conversion without parts, or without regions, that make the whole model slower."""
    options = attempt.options
    plainer = replace(options, regions=False)

    def trial(built: Build) -> nn.Module:
        return _trial(model, built, options)

    whole = without_slower_parts(
        model, survey, attempt.decisions, attempt.built, trial, example_inputs, options
    )
    if example_inputs is None or not options.regions or not options.measure:
        return attempt, whole
    pay = regions_pay(
        lambda: trial(whole.built), lambda: _trial(model, whole.built, plainer), example_inputs, options
    )
    return attempt if pay else replace(attempt, options=plainer), whole


def _finished(model: nn.Module, survey: Survey, attempt: _Attempt, whole: Whole) -> nn.Module:
    finalize_(model)
    leave_nested_tensors(model)
    rows = in_regions(rows_of(survey, whole.decisions, whole.built), layers_in_regions(model))
    attach(model, rows)
    attach_record(model, record_of(survey, whole.decisions, whole.built, attempt.options, rows))
    return model


def _types(model: nn.Module) -> tuple[type[nn.Module], ...]:
    return types_in(model) if isinstance(model, nn.Module) else ()


def _trial(model: nn.Module, built: Build, options: ConvertOptions) -> nn.Module:
    """A converted model to be run and forgotten, which shares its tensors with the original."""
    trial = _copy(model, built, [*model.parameters(), *model.buffers()])
    finish_(trial, built, options)
    leave_nested_tensors(trial)
    return trial


def _copy(model: nn.Module, built: Build, shared: Sequence[Tensor] = ()) -> nn.Module:
    """A converted copy, with these tensors of the model itself."""
    # For deepcopy: what to put in the place of a thing instead of a copy of it.
    memo: dict[int, Any] = {id(old): new for old, new in built.replacements.items()}
    memo |= {id(t): t for t in shared}
    training = {fqn: module.training for fqn, module in model.named_modules(remove_duplicate=False)}
    converted: nn.Module = deep_copy(model, memo)
    for fqn, module in converted.named_modules(remove_duplicate=False):
        # A copy may be made by a constructor, which leaves it in training mode.
        module.training = training.get(fqn, module.training)
    built.point_to_norms(memo)
    return converted
