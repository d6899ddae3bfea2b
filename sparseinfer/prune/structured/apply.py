"""`prune_structured_`: a smaller dense model, in place; after an error the model is unchanged."""

from __future__ import annotations

import warnings
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from typing import Any

from torch import Tensor, nn
from torch.nn.parameter import is_lazy
from torch.optim import Optimizer

from sparseinfer.prune.calibration.statistics import CalibrationStats
from sparseinfer.prune.checks import check_fraction, check_int, check_module, check_positive
from sparseinfer.prune.layers.layer import Layer
from sparseinfer.prune.layers.selection import prunable_layers
from sparseinfer.prune.masks.held import all_held_masks
from sparseinfer.prune.structured.amounts import Chooser, Chosen, flops, least_ratio, rounding, works_left
from sparseinfer.prune.structured.config import update_config
from sparseinfer.prune.structured.groups import NEURONS, Group, Refused, groups_of
from sparseinfer.prune.structured.importance import Context, Importance, importance_of
from sparseinfer.prune.structured.kinds import fixed_weights
from sparseinfer.prune.structured.labels import Solution
from sparseinfer.prune.structured.latency import Clock
from sparseinfer.prune.structured.report import PrunedGroup, StructuredReport
from sparseinfer.prune.structured.rules import rule_of
from sparseinfer.prune.structured.shrink import Shrinking
from sparseinfer.prune.structured.tracing import (
    CHANNELS,
    HEADS,
    WIDTH,
    Trace,
    named_tensors,
    shapes_of,
    traced,
)
from sparseinfer.prune.structured.update import refitted
from sparseinfer.prune.structured.verify import check_runs, closed_outputs
from sparseinfer.select import Patterns, select_modules

UNITS = (HEADS, NEURONS, CHANNELS, WIDTH)
SCOPES = ("group", "global")


def prune_structured_(
    model: nn.Module,
    example_inputs: Any,
    importance: str | Importance = "magnitude",
    *,
    ratio: float | Mapping[str, float] | None = None,
    flops: float | None = None,
    latency: float | None = None,
    scope: str = "group",
    round_to: int | None = None,
    units: Sequence[str] = (HEADS, NEURONS, CHANNELS),
    stats: CalibrationStats | None = None,
    update: bool = False,
    optimizer: Optimizer | None = None,
    targets: Patterns = None,
    ignore: Patterns = None,
) -> StructuredReport:
    """Remove whole heads, neurons and channels from a model, in place; returns a report.

    What belongs together is found by running the model once on the example inputs: what is added, joined,
    normalised or multiplied with what. Afterwards each weight is smaller, and modules and the model's config
    know of it. The model still is one of plain torch: train it, compile it, export it, save it with `si.save`
    or `si.save_pretrained`.

    example_inputs   as of `convert`: a tensor, a tuple of arguments, or a mapping of keywords
    importance       which units matter least: magnitude, taylor, wanda, variance, reconstruction, batch_norm,
                     random, or an Importance
    ratio            the part of the units that go, in [0, 1); or one for each group, by its name; or
    flops            the part of the multiplications that stays, in (0, 1); or
    latency          milliseconds that one run with the example inputs may take on this machine, at its number
                     of threads; it is searched for with measured times of layers, and measured at the end
    scope            "group": the same part of each group of units; "global": the units of all groups are
                     compared, each score divided by the mean of its group
    round_to         the number of units left is a multiple of it. None: of neurons and channels of 64 bytes,
                     a vector of the machine's dense kernels, less in groups of few units
    units            kinds that may go: "heads" (with grouped queries: of keys and values, with their
                     queries), "neurons", "channels", "width" (of embeddings, and all that is added to them)
    stats            of `calibrate`, for importances that read inputs or gradients, and for update
    update           whether the weights that read what is left are fitted anew by least squares
    optimizer        that is given the smaller parameters, with what it keeps of them
    targets, ignore  which groups: names of modules whose weights have their units, as in `prune_`

    What cannot be removed is listed in the report, with the reason. Outputs of the model keep their shape.
    Smaller parameters are new objects.

    After an error the model is as before. TypeError or ValueError: an argument of the wrong kind; a target
    that cannot be pruned, by its name, with the reason; a model with masks of `prune_`, see `finalize_`; no
    amount that meets the target. RuntimeError: the smaller model does not run on the example inputs, with the
    module's name.
    """
    check_module(model)
    criterion = importance_of(importance)
    _check_amounts(ratio, flops, latency)
    _check_options(scope, round_to, units)
    _check_weights(model)
    found = find_groups(model, example_inputs, units, targets, ignore)
    amount = _Amount(ratio, flops, latency)
    plan = _Plan(model, example_inputs, found, _context(model, stats, criterion, update), criterion, amount)
    chosen, predicted = plan.choose(scope, round_to)
    shrinking = Shrinking(model)
    before = sum(p.numel() for p in model.parameters())
    with undone_on_error(shrinking):
        if update:
            shrinking.rewrite(refitted(found.groups, chosen, plan.context, damping=0.01))
        closed = closed_outputs(model, example_inputs, found.groups, chosen)
        shrinking.remove(found.groups, chosen, optimizer)
        shrinking.add_undo(update_config(model, found.groups, chosen))
        check_runs(model, example_inputs, found.shapes, closed, _blamed(found.groups, chosen))
    after = sum(p.numel() for p in model.parameters())
    return StructuredReport(
        [PrunedGroup(g.name, g.kind, g.size, g.size - len(chosen.get(g.name, ()))) for g in found.groups],
        found.refused,
        (plan.flops({}), plan.flops(chosen)),
        (before, after),
        None if predicted is None else (predicted, plan.clock.whole(model)),
    )


@dataclass(frozen=True)
class Found:
    """What tracing found of a model; `shapes` are those of its outputs."""

    groups: list[Group]
    refused: list[Refused]
    trace: Trace
    solution: Solution
    shapes: Any


def find_groups(
    model: nn.Module,
    example_inputs: Any,
    units: Sequence[str] = UNITS,
    targets: Patterns = None,
    ignore: Patterns = None,
) -> Found:
    """The groups that may be pruned. ValueError: a target without one, with the reason."""
    output, trace = traced(model, example_inputs, rule_of, fixed_weights(model), outputs_stay=True)
    solution = trace.labels.solve()
    groups, refused = groups_of(model, trace, solution)
    allowed = _selected(model, [group for group in groups if group.kind in units], refused, targets, ignore)
    return Found(allowed, refused, trace, solution, shapes_of(output))


def _selected(
    model: nn.Module,
    groups: Sequence[Group],
    refused: Sequence[Refused],
    targets: Patterns,
    ignore: Patterns,
) -> list[Group]:
    """Groups made by targeted modules, if there are targets, of which no part is ignored."""
    kept = select_modules(model, (nn.Module,), None, None, ignore, stacklevel=6)
    groups = [group for group in groups if all(module in kept for module in group.modules)]
    if targets is None:
        return list(groups)
    targeted = select_modules(model, (nn.Module,), None, targets, ignore, stacklevel=6)
    makers = {group.maker for group in groups}
    for each in refused:
        owner = each.name.rpartition(".")[0]
        if owner in targeted and owner not in makers:
            raise ValueError(f"{each.name}: expected units that can be removed, got none: {each.reason}")
    return [group for group in groups if group.maker in targeted]


def _blamed(groups: Sequence[Group], removed: Mapping[str, Sequence[int]]) -> str:
    """Names of groups of which a forward takes parts, or else of all that lost units."""
    touched = [group for group in groups if removed.get(group.name)]
    sliced = [group for group in touched if group.is_sliced]
    return ", ".join(group.maker for group in sliced or touched)


@contextmanager
def undone_on_error(shrinking: Shrinking) -> Iterator[None]:
    try:
        yield
    except BaseException:
        shrinking.undo()
        raise


@dataclass(frozen=True)
class _Amount:
    ratio: float | Mapping[str, float] | None
    flops: float | None
    latency: float | None


@dataclass
class _Plan:
    """Chooses the units that go."""

    model: nn.Module
    example_inputs: Any
    found: Found
    context: Context
    importance: Importance
    amount: _Amount

    def __post_init__(self) -> None:
        self.clock = Clock(self.model, self.example_inputs)

    def choose(self, scope: str, round_to: int | None) -> tuple[Chosen, float | None]:
        """The units that go, and the milliseconds predicted, with `latency`."""
        groups = self.found.groups
        scores = {}
        for group in groups:
            values = self.importance.scores(group, self.context)
            if values is not None:
                if not values.isfinite().all():
                    raise ValueError(f"{group.name}: expected finite scores, got NaN or infinite ones")
                scores[group.name] = values
        if groups and not scores:
            name = type(self.importance).__name__
            raise ValueError(f"importance: expected one that has scores for this model, got {name}")
        tensors = self.context.weights
        steps = {g.name: rounding(g, tensors[g.name].dtype, round_to) for g in groups}
        chooser = Chooser(groups, scores, steps)
        by_ratio: Callable[[float], Chosen] = chooser.together if scope == "global" else chooser.per_group
        amount = self.amount
        if isinstance(amount.ratio, Mapping):
            return chooser.each(amount.ratio), None
        if amount.ratio is not None:
            return by_ratio(float(amount.ratio)), None
        if amount.flops is not None:
            dense = self.flops({})
            return least_ratio(by_ratio, self.flops, amount.flops * dense, "flops", dense), None
        assert amount.latency is not None
        return self.clock.search(groups, by_ratio, amount.latency)

    def flops(self, removed: Mapping[str, Sequence[int]]) -> int:
        trace, found = self.found.trace, self.found
        return flops(trace.works, works_left(trace.works, found.solution, found.groups, removed))


def _context(
    model: nn.Module, stats: CalibrationStats | None, importance: Importance, update: bool
) -> Context:
    needs = importance.needs | ({"gram"} if update else set())
    if needs and stats is None:
        what = type(importance).__name__ if importance.needs else "update"
        hint = "pass stats=calibrate(model, batches)"
        raise ValueError(f"stats: expected calibration statistics for {what}, got None ({hint})")
    layers: dict[str, Layer] = {}
    if stats is not None:
        names = {id(t): name for name, t in named_tensors(model)}
        with warnings.catch_warnings():
            # That weights are tied does not matter here: all their owners get smaller.
            warnings.simplefilter("ignore")
            layers = {names[id(layer.weight)]: layer for layer in prunable_layers(model).values()}
        for layer in layers.values():
            held = stats.get(layer.fqn)
            if held is not None and held.sq.shape[-1] != layer.shape[2]:
                raise ValueError(f"stats: expected those of this model, got others of {layer.fqn!r}")
    weights: dict[str, Tensor] = dict(named_tensors(model))
    return Context(model, weights, layers, stats)


def _check_amounts(ratio: Any, flops_left: Any, latency: Any) -> None:
    given = {"ratio": ratio, "flops": flops_left, "latency": latency}
    if sum(value is not None for value in given.values()) != 1:
        raise ValueError(f"ratio: expected one of ratio, flops and latency, got {given}")
    if ratio is not None:
        for value in ratio.values() if isinstance(ratio, Mapping) else [ratio]:
            check_fraction("ratio", value)
    if flops_left is not None:
        check_fraction("flops", flops_left)
        check_positive("flops", flops_left)
    if latency is not None:
        check_positive("latency", latency, finite=True)


def _check_options(scope: str, round_to: int | None, units: Sequence[str]) -> None:
    if scope not in SCOPES:
        raise ValueError(f"scope: expected one of {', '.join(SCOPES)}, got {scope!r}")
    if round_to is not None:
        check_int("round_to", round_to, 1)
    if isinstance(units, str) or not set(units) <= set(UNITS):
        raise ValueError(f"units: expected some of {', '.join(UNITS)}, got {units!r}")


def _check_weights(model: nn.Module) -> None:
    if held := next(iter(all_held_masks(model)), None):
        hint = "call finalize_ first"
        raise ValueError(f"model: expected no masks of prune_, got one of {held.name!r} ({hint})")
    memory: dict[int, str] = {}
    for name, t in named_tensors(model):
        if t.is_meta or is_lazy(t):
            raise ValueError(f"{name}: expected a weight with data, got one without")
        if isinstance(t, nn.Parameter) and t.numel():
            if t.data_ptr() in memory:
                raise ValueError(f"{name}: expected memory of its own, got that of {memory[t.data_ptr()]}")
            memory[t.data_ptr()] = name
