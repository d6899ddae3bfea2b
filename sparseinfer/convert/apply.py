"""`convert` and `convert_`: everything is planned and packed before the first module changes its place."""

from __future__ import annotations

import copy
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

from torch import Tensor, nn

from sparseinfer._select import FilterFn, Patterns, select_modules
from sparseinfer.convert.planner import Memory, Plan, checked_memory, plan
from sparseinfer.convert.report import LayerReport, attach, kernels
from sparseinfer.convert.tokens import checked_tokens, observed_tokens
from sparseinfer.convert.weights import Weights, read, refusals, require_inference
from sparseinfer.modules import SparseLinear


def convert(
    model: nn.Module,
    *,
    example_inputs: Any = None,
    tokens: Sequence[int] | None = None,
    memory: Memory = "speed",
    filter_fn: FilterFn | None = None,
    targets: Patterns = None,
    ignore: Patterns = None,
) -> nn.Module:
    """A copy of the model for inference in which every nn.Linear that gains by it is a SparseLinear.

    example_inputs  inputs of one typical run: a tuple of arguments, a mapping of keyword arguments, or the
                    only argument; each layer is planned for the token counts that this run brings to it
    tokens          token counts to plan for where `example_inputs` says nothing; default (1, 16, 128)
    memory          "speed": a layer may hold a packing for few tokens and another for many, whichever are
                    fastest; "compact": it holds one, the smallest, and is sparse wherever that saves bytes
    filter_fn, targets, ignore   which modules: see `sparseinfer._select.select_modules`

    Zeros count however they came: in the weight itself, by torch.nn.utils.prune or by a parametrization; the
    last two are resolved and do not come along. Each layer is measured on this machine with its own shape,
    zeros and current thread count, against the best dense that torch offers, and stays as it was if dense is
    faster. `explain` says which and why. Weights are float32, bfloat16 or float16 on the CPU, and inputs of
    the same dtype; other layers stay dense.

    The model itself is unchanged, and weights that became sparse are not copied. TypeError or ValueError: an
    argument of the wrong kind, example inputs that the model does not accept, a parameter without data
    (meta) or a gradient left on one in training mode.
    """
    modules = select_modules(model, (nn.Linear,), filter_fn, targets, ignore)
    conversion = _prepare(model, modules, example_inputs, tokens, memory)
    converted: nn.Module = copy.deepcopy(model, {**_recomputed(model, conversion), **conversion.memo()})
    attach(converted, conversion.rows)
    return converted


def convert_(
    model: nn.Module,
    *,
    example_inputs: Any = None,
    tokens: Sequence[int] | None = None,
    memory: Memory = "speed",
    filter_fn: FilterFn | None = None,
    targets: Patterns = None,
    ignore: Patterns = None,
) -> nn.Module:
    """`convert` in place; returns the same model. After any error the model is as it was before.

    ValueError also if the model itself is the nn.Linear: there is nothing to put another module into.
    """
    modules = select_modules(model, (nn.Linear,), filter_fn, targets, ignore)
    if model in modules.values():
        got = f"{type(model).__name__} itself (use convert)"
        raise ValueError(f"model: expected a module that holds Linears, got {got}")
    conversion = _prepare(model, modules, example_inputs, tokens, memory)
    for parent in list(model.modules()):
        for name, child in parent._modules.items():
            if child is not None and child in conversion.replacements:
                parent._modules[name] = conversion.replacements[child]
    attach(model, conversion.rows)
    return model


@dataclass(frozen=True)
class _Conversion:
    replacements: Mapping[nn.Module, SparseLinear]
    rows: tuple[LayerReport, ...]

    def memo(self) -> dict[int, Any]:
        """For deepcopy: what to put in the place of each dense layer instead of a copy of it."""
        return {id(old): new for old, new in self.replacements.items()}


def _prepare(
    model: nn.Module,
    modules: Mapping[str, nn.Module],
    example_inputs: Any,
    tokens: Sequence[int] | None,
    memory: Memory,
) -> _Conversion:
    """Plan and pack every layer; nothing in the model changes."""
    default_tokens = checked_tokens(tokens)
    memory = checked_memory(memory)
    require_inference(modules)
    refused = refusals(model, modules)
    observed: Mapping[str, Sequence[int]] = {}
    if example_inputs is not None:
        convertible = {fqn: module for fqn, module in modules.items() if fqn not in refused}
        observed = observed_tokens(model, convertible, example_inputs)

    replacements: dict[nn.Module, SparseLinear] = {}
    rows = []
    for fqn, module in modules.items():
        weights = refused.get(fqn) or read(module)
        if isinstance(weights, str):
            rows.append(_refused(fqn, module, weights))
            continue
        decision = plan(weights, observed.get(fqn) or default_tokens, memory)
        replacement = None
        if decision.is_sparse:
            replacement = SparseLinear(decision.packings, weights.bias, buckets=decision.buckets)
            replacements[module] = replacement.train(module.training)
        rows.append(_planned(fqn, weights, decision, replacement))
    return _Conversion(replacements, tuple(rows))


def _refused(fqn: str, module: nn.Module, reason: str) -> LayerReport:
    assert isinstance(module, nn.Linear)
    nbytes = sum(parameter.nbytes for parameter in module.parameters())
    shape = (module.out_features, module.in_features)
    return LayerReport(fqn, shape, None, "dense", reason, dense_nbytes=nbytes, nbytes=nbytes)


def _planned(fqn: str, weights: Weights, decision: Plan, replacement: SparseLinear | None) -> LayerReport:
    n, k = weights.weight.shape
    return LayerReport(
        layer=fqn,
        shape=(n, k),
        sparsity=weights.sparsity,
        decision="dense" if replacement is None else "sparse",
        reason=decision.reason,
        kernels=() if replacement is None else kernels(replacement.plan),
        tokens=tuple(times.tokens for times in decision.times),
        dense_us=tuple(times.dense_us for times in decision.times),
        sparse_us=tuple(
            times.sparse[layout] for times, layout in zip(decision.times, decision.chosen, strict=True)
        ),
        dense_nbytes=weights.nbytes,
        nbytes=weights.nbytes if replacement is None else replacement.nbytes,
    )


def _recomputed(model: nn.Module, conversion: _Conversion) -> dict[int, Any]:
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
