"""Planning and packing of every layer; nothing in the model changes here."""

from __future__ import annotations

import copy
from collections import defaultdict
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any

import torch
from torch import Tensor, nn

from sparseinfer._machine import last_level_cache_bytes
from sparseinfer._progress import Progress
from sparseinfer.convert.cases import Case, ConvCase, LinearCase
from sparseinfer.convert.cuda_case import CudaLinearCase
from sparseinfer.convert.cuda_conv_case import CudaConvCase
from sparseinfer.convert.cudnn import slower_than_cudnn
from sparseinfer.convert.fusion import UNFUSED, Chain, chain, folded
from sparseinfer.convert.inplace import in_place
from sparseinfer.convert.kinds import Kind, Part, kind_of
from sparseinfer.convert.measure import MAX_TOKENS, SOURCES, Timer
from sparseinfer.convert.options import COMPACT, DEFAULT_TOKENS, Options
from sparseinfer.convert.planner import Plan, plan
from sparseinfer.convert.pooling import faster_pool
from sparseinfer.convert.recording import Recording, record, spread
from sparseinfer.convert.report import LayerReport
from sparseinfer.convert.weights import Weights, refusals, require_inference
from sparseinfer.modules import (
    Fused,
    PrepackedLinear,
    SharedInputLinear,
    SparseLinear,
    SparseMultiheadAttention,
)
from sparseinfer.modules._parts import dense_linear


@dataclass(frozen=True)
class Conversion:
    """What to put in whose place, and what `explain` will say.

    `fuses`: an activation moved into a layer or works in place, or several layers became one matrix;
    `expected` is what the model returned before.
    """

    replacements: Mapping[nn.Module, nn.Module]
    rows: tuple[LayerReport, ...]
    fuses: bool
    expected: Sequence[Tensor]


@dataclass(frozen=True, eq=False)
class Layer:
    """A module that convert may replace, by its matrices."""

    fqn: str
    module: nn.Module
    kind: Kind
    parts: Mapping[str, Part]


@dataclass(frozen=True, eq=False)
class Unit:
    """What is planned as one matrix: one part of a layer, or Linears that are given the same input."""

    layers: tuple[Layer, ...]
    part: str
    weights: Weights
    chain: Chain = UNFUSED

    @property
    def sizes(self) -> list[int]:
        return [layer.parts[self.part].weights.weight.shape[0] for layer in self.layers]


@dataclass(frozen=True)
class Survey:
    """What there is to plan: layers and their units, names of modules that stay dense with the reason."""

    layers: Sequence[Layer]
    refused: Mapping[str, str]
    recording: Recording
    units: Sequence[Unit]

    @property
    def cold(self) -> bool:
        """Whether the weights exceed the last-level cache, so that a run reads them from memory."""
        return sum(unit.weights.nbytes for unit in self.units) > last_level_cache_bytes()


def prepare(
    model: nn.Module,
    modules: Mapping[str, nn.Module],
    example_inputs: Any,
    options: Options,
) -> Conversion:
    """Plans every layer and packs the sparse ones."""
    pools = {fqn: module for fqn, module in modules.items() if isinstance(module, nn.MaxPool2d)}
    modules = {fqn: module for fqn, module in modules.items() if fqn not in pools}
    survey = surveyed(model, modules, example_inputs, options)

    found = _Found()
    with Progress("planning", len(survey.units)) as progress:
        timer = Timer(
            measure=options.measure,
            budget_s=options.budget_s,
            cold=survey.cold,
            on_case=progress.describe,
        )
        for unit in survey.units:
            _decide(unit, survey.recording, options, timer, found)
            progress.advance()
    for layer in survey.layers:
        if replacement := _assembled(layer, found):
            if reason := _cudnn_wins(layer, replacement, survey.recording, options):
                found.rows[layer.fqn] = [row.left_dense(reason) for row in found.rows[layer.fqn]]
            else:
                found.replacements[layer.module] = replacement
    _leave_fast_paths(model, found)
    if options.fuse:
        _work_in_place(model, survey.recording, found)
    on_gpu = any(t.is_cuda for t in survey.recording.result)
    for fqn, pool in pools.items():
        if options.measure and not on_gpu and (faster := faster_pool(fqn, pool, survey.recording)):
            found.replacements[pool], row = faster
            found.rows[fqn].append(row)
    for fqn, reason in survey.refused.items():
        found.rows[fqn].append(_refused_row(fqn, modules[fqn], reason))
    rows = tuple(row for fqn in (*modules, *pools) for row in found.rows[fqn])
    return Conversion(found.replacements, rows, found.fuses, survey.recording.result)


def surveyed(
    model: nn.Module, modules: Mapping[str, nn.Module], example_inputs: Any, options: Options
) -> Survey:
    """Looks at the modules and runs the model once. ValueError: the model is not ready for inference."""
    require_inference(modules)
    layers, refused = _read(modules, refusals(model, modules))
    recording = Recording()
    if example_inputs is not None:
        recording = record(model, [layer.module for layer in layers], example_inputs)
    return Survey(layers, refused, recording, _units(layers, recording, options))


@dataclass
class _Found:
    parts: dict[tuple[nn.Module, str], nn.Module] = field(default_factory=dict)
    replacements: dict[nn.Module, nn.Module] = field(default_factory=dict)
    rows: defaultdict[str, list[LayerReport]] = field(default_factory=lambda: defaultdict(list))
    fuses: bool = False


def _read(modules: Mapping[str, nn.Module], refused: Mapping[str, str]) -> tuple[list[Layer], dict[str, str]]:
    """The layers that can be replaced, and why the others cannot."""
    layers, reasons = [], dict(refused)
    projections = {id(m.out_proj) for m in modules.values() if isinstance(m, nn.MultiheadAttention)}
    for fqn, module in modules.items():
        if fqn in reasons or id(module) in projections:
            continue
        kind = kind_of(module)
        if kind is None:
            reasons[fqn] = f"{type(module).__name__} is a subclass that may compute something else"
            continue
        parts = kind.parts(module)
        if isinstance(parts, str):
            reasons[fqn] = parts
        else:
            layers.append(Layer(fqn, module, kind, parts))
    return layers, reasons


def _units(layers: Sequence[Layer], recording: Recording, options: Options) -> list[Unit]:
    groups: defaultdict[object, list[Layer]] = defaultdict(list)
    for layer in layers:
        marks = recording.shared.get(layer.module)
        together = options.fuse and marks and layer.kind.shares_input
        groups[(marks, layer.parts[""].weights.weight.dtype) if together else layer].append(layer)
    units = []
    for group in groups.values():
        if len(group) > 1:
            units.append(Unit(tuple(group), "", _stacked([layer.parts[""].weights for layer in group])))
            continue
        (layer,) = group
        for name, part in layer.parts.items():
            found = UNFUSED
            if layer.kind.fuses:
                fold, fuse = options.fold_batch_norm, options.fuse
                found = chain(layer.module, recording, fold_batch_norm=fold, fuse=fuse)
            weights = part.weights if found.batch_norm is None else folded(part.weights, found.batch_norm)
            units.append(Unit((layer,), name, weights, found))
    return units


def _stacked(weights: Sequence[Weights]) -> Weights:
    weight = torch.cat([each.weight for each in weights])
    if all(each.bias is None for each in weights):
        return Weights(weight, None)
    biases = [weight.new_zeros(len(w.weight)) if w.bias is None else w.bias for w in weights]
    return Weights(weight, torch.cat(biases))


def _decide(unit: Unit, recording: Recording, options: Options, timer: Timer, found: _Found) -> None:
    """Plan one unit; what takes the place of its modules goes to `found`."""
    case, tokens = case_of(unit, recording, options)
    if isinstance(case, str):
        _report(unit, Plan(case), [None] * len(unit.layers), found)
        return
    decision = plan(case, tokens, timer, options.memory)
    modules: list[nn.Module | None] = [None] * len(unit.layers)
    if len(unit.layers) == 1:
        module = case.module(decision, unit.chain)
        modules = [module]
        if module is not None:
            done = unit.chain.modules[: case.applied(decision, unit.chain)]
            found.replacements.update({each: Fused(each).train(each.training) for each in done})
            found.fuses |= unit.chain.activation != "none"
    elif decision.is_sparse:
        whole = case.module(decision, unit.chain)
        assert isinstance(whole, SparseLinear)
        biased = [layer.parts[unit.part].weights.bias is not None for layer in unit.layers]
        modules = list(SharedInputLinear.share(whole, unit.sizes, biased))
        found.fuses = True
    elif decision.prepack:
        each = [layer.parts[unit.part].weights for layer in unit.layers]
        modules = [PrepackedLinear(w.weight, w.bias) for w in each]
    _report(unit, decision, modules, found)
    for layer, module in zip(unit.layers, modules, strict=True):
        if module is not None:
            found.parts[layer.module, unit.part] = module


def case_of(unit: Unit, recording: Recording, options: Options) -> tuple[Case | str, tuple[int, ...]]:
    """What to plan and for which token counts, or why it cannot be planned."""
    layer = unit.layers[0]
    part, shapes = layer.parts[unit.part], recording.shapes.get(layer.module, ())
    dense = unit.weights
    sparse = dense if options.weights is None else dense.rounded(options.weights)
    if isinstance(sparse, str):
        return sparse, ()
    if isinstance(layer.module, (nn.Conv1d, nn.Conv2d)):
        if not shapes:
            return "no example input reached it: the size of its maps is not known", ()
        by_tokens = {part.tokens(shape): shape for shape in shapes}
        counts = spread(sorted(by_tokens))
        if not dense.on_gpu:
            return ConvCase(dense, sparse, layer.module, by_tokens), counts
        channels_last = layer.module in recording.channels_last
        return CudaConvCase(dense, sparse, layer.module, by_tokens, channels_last), counts
    # More tokens than MAX_TOKENS take the same kernels in the same loops.
    seen = {part.tokens(shape) for shape in shapes} | set(options.tokens or ())
    counts = spread(sorted({min(count, MAX_TOKENS) for count in seen})) or DEFAULT_TOKENS
    x_dtype = options.activations or dense.weight.dtype
    return (CudaLinearCase if dense.on_gpu else LinearCase)(dense, sparse, x_dtype), counts


def _assembled(layer: Layer, found: _Found) -> nn.Module | None:
    """What takes the layer's place; None if all its parts stay as they are."""
    parts = {name: found.parts.get((layer.module, name)) for name in layer.parts}
    if all(part is None for part in parts.values()):
        return None
    whole = {name: part or _dense_copy(layer.parts[name].weights) for name, part in parts.items()}
    return layer.kind.assemble(layer.module, whole).train(layer.module.training)


def _cudnn_wins(layer: Layer, replacement: nn.Module, recording: Recording, options: Options) -> str | None:
    """Why a recurrent layer on a GPU stays torch's own: its parts were compared with Linears one by one."""
    on_gpu = any(part.weights.on_gpu for part in layer.parts.values())
    if not on_gpu or not isinstance(layer.module, nn.RNNBase) or options.memory == COMPACT:
        return None
    if not options.measure:
        return "cuDNN's layer is compared by measuring only"
    return slower_than_cudnn(layer.module, replacement, recording)


def _dense_copy(weights: Weights) -> nn.Linear:
    copied = weights.copied()
    return dense_linear(copied.weight, copied.bias)


def _leave_fast_paths(model: nn.Module, found: _Found) -> None:
    """torch's TransformerEncoderLayer reads weights and calls no module while its attention is torch's."""
    for module in model.modules():
        if not isinstance(module, nn.TransformerEncoderLayer) or module.self_attn in found.replacements:
            continue
        if module.linear1 in found.replacements or module.linear2 in found.replacements:
            dense = SparseMultiheadAttention.from_attention(copy.deepcopy(module.self_attn))
            found.replacements[module.self_attn] = dense.train(module.self_attn.training)


def _work_in_place(model: nn.Module, recording: Recording, found: _Found) -> None:
    for module in model.modules():
        if module not in found.replacements and (twin := in_place(module, recording)):
            found.replacements[module] = twin
            found.fuses = True


def _refused_row(fqn: str, module: nn.Module, reason: str) -> LayerReport:
    parameters = list(module.parameters())
    nbytes = sum(parameter.nbytes for parameter in parameters)
    shape = tuple(parameters[0].shape) if parameters else ()
    return LayerReport(fqn, shape, None, "dense", reason, dense_nbytes=nbytes, nbytes=nbytes)


def _report(unit: Unit, decision: Plan, modules: Sequence[nn.Module | None], found: _Found) -> None:
    """One row for each layer of the unit, with its share."""
    n, k = unit.weights.weight.shape
    for layer, module, size in zip(unit.layers, modules, unit.sizes, strict=True):
        weights, share = layer.parts[unit.part].weights, size / n
        reason = decision.reason
        if isinstance(module, SharedInputLinear):
            others = ", ".join(other.fqn.rsplit(".", 1)[-1] for other in unit.layers if other is not layer)
            reason = f"{reason}, one matrix with {others}"
        row = LayerReport(
            layer=f"{layer.fqn}:{unit.part}" if unit.part else layer.fqn,
            shape=(size, k),
            sparsity=weights.sparsity,
            pattern=weights.pattern,
            decision="sparse" if decision.is_sparse else decision.dense_kind,
            reason=reason,
            kernels=tuple((bucket.max_tokens, bucket.kernel) for bucket in decision.buckets),
            tokens=tuple(times.tokens for times in decision.times),
            dense_us=tuple(times.dense_us * share for times in decision.times),
            sparse_us=tuple(
                times.sparse[layout] * share
                for times, layout in zip(decision.times, decision.chosen, strict=False)
            ),
            source=max((times.source for times in decision.times), key=SOURCES.index, default=""),
            dense_nbytes=weights.nbytes,
            nbytes=weights.nbytes if module is None else _held(module),
        )
        found.rows[layer.fqn].append(row)


def _held(module: nn.Module) -> int:
    """Bytes of all that takes the layer's place."""
    nbytes = getattr(module, "nbytes", None)
    return nbytes if isinstance(nbytes, int) else sum(parameter.nbytes for parameter in module.parameters())
