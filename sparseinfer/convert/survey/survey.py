"""Planning and packing of every layer; nothing in the model changes here."""

from __future__ import annotations

import copy
import itertools
from collections import defaultdict
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field, replace
from typing import Any

import torch
from torch import Tensor, nn

from sparseinfer._machine import last_level_cache_bytes
from sparseinfer._progress import Progress
from sparseinfer._running import evaluating, preserved
from sparseinfer.convert.cases import Case, ConvCase, LinearCase
from sparseinfer.convert.cuda_case import CudaLinearCase
from sparseinfer.convert.cuda_conv_case import CudaConvCase
from sparseinfer.convert.cudnn import slower_than_cudnn
from sparseinfer.convert.fusion import NOBODY, Followers, folded, followers
from sparseinfer.convert.kinds import Kind, Part, kind_of
from sparseinfer.convert.measure import MAX_TOKENS, SOURCES, Timer
from sparseinfer.convert.options import COMPACT, DEFAULT_TOKENS, Options
from sparseinfer.convert.planner import Plan, plan
from sparseinfer.convert.pooling import faster_pool
from sparseinfer.convert.recording import Recording, record, spread
from sparseinfer.convert.report import LayerReport
from sparseinfer.convert.weights import Weights, refusals, require_inference
from sparseinfer.modules import (
    FoldedLayer,
    PrepackedLinear,
    SharedInputLinear,
    SparseLinear,
    SparseMultiheadAttention,
)
from sparseinfer.modules._parts import dense_linear
from sparseinfer.modules.chain import held_bytes


@dataclass(frozen=True)
class Conversion:
    """What to put in whose place, and what `explain` will say.

    shared     parts of one matrix each, and the name of the module in whose forward they take turns
    expected   what the model returned before, for the example inputs
    """

    replacements: Mapping[nn.Module, nn.Module]
    rows: tuple[LayerReport, ...]
    shared: Sequence[tuple[str, SharedInputLinear]]
    expected: Sequence[Tensor]

    @property
    def folds(self) -> bool:
        return any(isinstance(module, FoldedLayer) for module in self.replacements.values())


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
    followers: Followers = NOBODY

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
            _decide(unit, survey, options, timer, found)
            progress.advance()
    for layer in survey.layers:
        if replacement := _assembled(layer, found):
            if reason := _cudnn_wins(layer, replacement, survey.recording, options):
                found.rows[layer.fqn] = [row.left_dense(reason) for row in found.rows[layer.fqn]]
            else:
                found.replacements[layer.module] = replacement
    _leave_fast_paths(model, found)
    on_gpu = any(t.is_cuda for t in survey.recording.result)
    for fqn, pool in pools.items():
        if options.measure and not on_gpu and (faster := faster_pool(fqn, pool, survey.recording)):
            found.replacements[pool], row = faster
            found.rows[fqn].append(row)
    for fqn, reason in survey.refused.items():
        found.rows[fqn].append(_refused_row(fqn, modules[fqn], reason))
    rows = tuple(row for fqn in (*modules, *pools) for row in found.rows[fqn])
    return Conversion(found.replacements, rows, found.shared, survey.recording.result)


def surveyed(
    model: nn.Module, modules: Mapping[str, nn.Module], example_inputs: Any, options: Options
) -> Survey:
    """Looks at the modules and runs the model once. ValueError: the model is not ready for inference."""
    require_inference(modules)
    # A parametrization may compute another weight in training mode, and write to buffers of its own.
    with evaluating(model), preserved(model):
        layers, refused = _read(modules, refusals(model, modules))
    recording = None
    if example_inputs is not None:
        pools = [module for module in model.modules() if isinstance(module, nn.MaxPool2d)]
        recording = record(model, [*(layer.module for layer in layers), *pools], example_inputs)
        if not options.targeted:
            layers = _called(layers, recording, refused)
    return Survey(layers, refused, recording or Recording(), _units(model, layers, recording, options))


@dataclass
class _Found:
    parts: dict[tuple[nn.Module, str], nn.Module] = field(default_factory=dict)
    replacements: dict[nn.Module, nn.Module] = field(default_factory=dict)
    rows: defaultdict[str, list[LayerReport]] = field(default_factory=lambda: defaultdict(list))
    shared: list[tuple[str, SharedInputLinear]] = field(default_factory=list)


def _called(layers: Sequence[Layer], recording: Recording, refused: dict[str, str]) -> list[Layer]:
    """Those that the run called. The weight of another one may be read and multiplied by somebody else."""
    for layer in layers:
        if layer.module not in recording.called:
            hint = "name it in targets to convert it all the same"
            refused[layer.fqn] = f"no example input reached it ({hint})"
    return [layer for layer in layers if layer.fqn not in refused]


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


def _units(
    model: nn.Module, layers: Sequence[Layer], recording: Recording | None, options: Options
) -> list[Unit]:
    # Without a run there is nothing to hold a folded model against.
    fold = options.fold_batch_norm and recording is not None
    recording = recording or Recording()
    following = followers(model, recording, fold=fold, fuse=options.fuse)
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
            after = following.get(layer.module, NOBODY) if layer.kind.fuses else NOBODY
            weights = part.weights if after.batch_norm is None else folded(part.weights, after.batch_norm)
            units.append(Unit((layer,), name, weights, after))
    return units


def _stacked(weights: Sequence[Weights]) -> Weights:
    weight = torch.cat([each.weight for each in weights])
    if all(each.bias is None for each in weights):
        return Weights(weight, None)
    biases = [weight.new_zeros(len(w.weight)) if w.bias is None else w.bias for w in weights]
    return Weights(weight, torch.cat(biases))


def _decide(unit: Unit, survey: Survey, options: Options, timer: Timer, found: _Found) -> None:
    """Plan one unit; what takes the place of its modules goes to `found`."""
    case, tokens = case_of(unit, survey.recording, options)
    if isinstance(case, str):
        _report(unit, Plan(case), [None] * len(unit.layers), found)
        return
    decision = plan(case, tokens, timer, options.memory)
    modules: list[nn.Module | None] = [None] * len(unit.layers)
    if len(unit.layers) == 1:
        modules = [_with_norm(unit, case.module(decision), survey.recording, options)]
    elif decision.is_sparse:
        whole = case.module(decision)
        assert isinstance(whole, SparseLinear)
        biased = [layer.parts[unit.part].weights.bias is not None for layer in unit.layers]
        parts = SharedInputLinear.share(whole, unit.sizes, biased)
        found.shared.append((_parent([layer.fqn for layer in unit.layers]), parts[0]))
        modules = list(parts)
    elif decision.prepack:
        each = [layer.parts[unit.part].weights for layer in unit.layers]
        modules = [PrepackedLinear(w.weight, w.bias) for w in each]
    _report(unit, decision, modules, found)
    for layer, module in zip(unit.layers, modules, strict=True):
        if module is not None:
            found.parts[layer.module, unit.part] = module


def _with_norm(
    unit: Unit, module: nn.Module | None, recording: Recording, options: Options
) -> nn.Module | None:
    """The layer beside its product with the batch norm that follows, which `module` is; torch's own stays."""
    norm, (layer,) = unit.followers.batch_norm, unit.layers
    if norm is None or module is None:
        return module
    exact = replace(options, weights=None, activations=None)
    weights = layer.parts[unit.part].weights
    if isinstance(module, PrepackedLinear):
        return FoldedLayer(PrepackedLinear(weights.weight, weights.bias, tokens=module.tokens), module, norm)
    alone, _ = case_of(replace(unit, weights=weights), recording, exact)
    assert not isinstance(alone, str)
    return FoldedLayer(alone.compact_module(), module, norm)


def _parent(fqns: Sequence[str]) -> str:
    """The innermost module that holds all of these."""
    paths = [fqn.split(".")[:-1] for fqn in fqns]
    levels = itertools.takewhile(lambda names: len(set(names)) == 1, zip(*paths, strict=False))
    return ".".join(names[0] for names in levels)


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


def _following(after: Followers) -> str:
    names = ["its batch norm"] if after.batch_norm is not None else []
    return " and ".join([*names, *([after.activation] if after.activation != "none" else [])])


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
        if module is not None and unit.followers is not NOBODY:
            reason = f"{reason}, with {_following(unit.followers)}"
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
            nbytes=weights.nbytes if module is None else held_bytes(module),
        )
        found.rows[layer.fqn].append(row)
