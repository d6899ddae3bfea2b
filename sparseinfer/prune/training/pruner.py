"""`Pruner`: prunes during training, at once, gradually, or in rounds with rewinding."""

from __future__ import annotations

import copy
from collections.abc import Callable, Mapping
from dataclasses import replace
from typing import Any

import torch
from torch import Tensor, nn
from torch.optim import Optimizer

from sparseinfer.prune.apply import prune_layers
from sparseinfer.prune.budgets.budget import Budget
from sparseinfer.prune.calibration.statistics import CalibrationStats
from sparseinfer.prune.layers.names import parameter_name
from sparseinfer.prune.layers.selection import layers_named, prunable_layers
from sparseinfer.prune.layers.unlooked import unknown_weights
from sparseinfer.prune.masks.held import all_held_masks, held_masks
from sparseinfer.prune.methods.method import Method, check_method
from sparseinfer.prune.methods.sparse import SparseMethod
from sparseinfer.prune.report import PruneReport
from sparseinfer.prune.structured import Structured, StructuredReport
from sparseinfer.prune.training.schedules import OneShot, Schedule
from sparseinfer.select import FilterFn, Patterns


class Pruner:
    """Prunes a model during training, by a schedule. Call `step()` after each `optimizer.step()`.

        pruner = Pruner(model, Magnitude(0.9), Cubic(begin=100, end=2000, every=100))
        for x, y in data:
            ...
            optimizer.step()
            pruner.step()
        finalize_(model)

    method       the method with the final sparsity: of all layers, of each (a mapping), or of a budget such
                 as ERK(0.9). Before the end the schedule sets the sparsity. A `Structured` removes units
                 instead, of those that the model has now
    schedule     when to prune, and to which sparsity: OneShot, Linear, Cubic or Geometric
    calibration  () -> CalibrationStats, called before each pruning, for methods that need them, such as
                 lambda: calibrate(model, batches)
    rewind_to    a step before the first pruning: after each pruning the kept weights and buffers are reset
                 to their values after that step (0: now). Frankle et al., "Linear Mode
                 Connectivity and the Lottery Ticket Hypothesis" (2020)
    optimizer    with rewind_to: its state is rewound too; with Structured: its state gets smaller too
    filter_fn, targets, ignore  which layers, default all: see sparseinfer.select.select_modules

    The masks are those of `prune_`: they stay on the model until `finalize_`. To resume, hold the saved masks
    (`hold_masks_(model, masks_of(state))`), load the model's state, and give `load_state_dict` this one's.
    TypeError or ValueError: an argument of the wrong kind, a method without a sparsity to schedule, or a
    rewind to a step at or after the first pruning, or with Structured.
    """

    def __init__(
        self,
        model: nn.Module,
        method: Method | Structured,
        schedule: Schedule,
        *,
        calibration: Callable[[], CalibrationStats] | None = None,
        rewind_to: int | None = None,
        optimizer: Optimizer | None = None,
        filter_fn: FilterFn | None = None,
        targets: Patterns = None,
        ignore: Patterns = None,
    ) -> None:
        _check_method(method, schedule)
        if calibration is not None and not callable(calibration):
            got = type(calibration).__name__
            raise TypeError(f"calibration: expected a callable () -> CalibrationStats, got {got}")
        first = schedule.events[0]
        if rewind_to is not None and not 0 <= rewind_to < first:
            raise ValueError(f"rewind_to: expected a step from 0 to {first - 1}, got {rewind_to}")
        structured = isinstance(method, Structured)
        if structured and rewind_to is not None:
            raise ValueError(
                "rewind_to: expected None with Structured, got a step (weights change their shapes)"
            )
        if optimizer is not None and rewind_to is None and not structured:
            raise ValueError("optimizer: expected None without rewind_to, got one")
        self._model = model
        self._method = method
        self._schedule = schedule
        self._calibration = calibration
        self._rewind_to = rewind_to
        self._optimizer = optimizer
        self._targets, self._ignore = targets, ignore
        self._sizes: dict[str, int] = {}
        self._layers: frozenset[str] = frozenset()
        if isinstance(method, Structured):
            if filter_fn is not None:
                raise ValueError("filter_fn: expected None with Structured, got one (use targets or ignore)")
            self._sizes = method.sizes(model, targets, ignore)
        else:
            self._layers = frozenset(prunable_layers(model, filter_fn, targets, ignore))
        self._step = 0
        self._snapshot: dict[str, Any] | None = None
        self._take_snapshot()

    @property
    def done(self) -> bool:
        """Whether the last pruning is done."""
        return self._step >= self._schedule.events[-1]

    def step(self) -> PruneReport | StructuredReport | None:
        """Count one training step, and prune if scheduled: returns the report, else None."""
        self._step += 1
        self._take_snapshot()
        if self._step not in self._schedule.events:
            return None
        stats = None if self._calibration is None else self._calibration()
        method = _at(self._method, self._schedule, self._step)
        if isinstance(method, Structured):
            return method.prune(
                self._model,
                self._sizes,
                stats=stats,
                optimizer=self._optimizer,
                targets=self._targets,
                ignore=self._ignore,
            )
        layers = layers_named(self._model, self._layers)
        unlooked = unknown_weights(self._model, self._ignore)
        report = prune_layers(self._model, layers, method, stats=stats, unlooked=unlooked)
        self._rewind()
        return report

    def state_dict(self) -> dict[str, Any]:
        """The step and the values to rewind to. Masks are in the model's state_dict."""
        return {"step": self._step, "snapshot": copy.deepcopy(self._snapshot), "sizes": dict(self._sizes)}

    def load_state_dict(self, state: Mapping[str, Any]) -> None:
        """Continue from the state of another Pruner with the same arguments."""
        self._step = int(state["step"])
        self._snapshot = copy.deepcopy(state["snapshot"])
        self._sizes = dict(state.get("sizes", {}))

    def _take_snapshot(self) -> None:
        if self._step == self._rewind_to:
            optimizer = None if self._optimizer is None else copy.deepcopy(self._optimizer.state_dict())
            weights = {name: tensor.clone() for name, tensor in self._weights().items()}
            self._snapshot = {"model": weights, "optimizer": optimizer}

    @torch.no_grad()
    def _rewind(self) -> None:
        if self._snapshot is None:
            return
        for name, tensor in self._weights().items():
            tensor.copy_(self._snapshot["model"][name])
        for held in all_held_masks(self._model):
            held.enforce()
        if self._optimizer is not None:
            self._optimizer.load_state_dict(copy.deepcopy(self._snapshot["optimizer"]))

    def _weights(self) -> dict[str, Tensor]:
        """Every tensor of the model's state but masks."""
        masks = {
            parameter_name(fqn, held.buffer)
            for fqn, module in self._model.named_modules(remove_duplicate=False)
            for held in held_masks(module)
        }
        return {
            name: value
            for name, value in self._model.state_dict().items()
            if isinstance(value, Tensor) and name not in masks
        }


def _check_method(method: Method | Structured, schedule: Schedule) -> None:
    if not isinstance(method, Structured):
        check_method(method)
    if not isinstance(schedule, Schedule):
        raise TypeError(f"schedule: expected one such as Cubic(100, 1000, 100), got {schedule!r}")
    if not isinstance(schedule, OneShot):
        _at(method, schedule, schedule.events[0])


def _at(method: Method | Structured, schedule: Schedule, step: int) -> Method | Structured:
    """The method with the sparsity of this step."""
    if isinstance(schedule, OneShot):
        return method
    if isinstance(method, Structured):
        return method.at(schedule.sparsity(step, method.sparsity))
    final = method.sparsity if isinstance(method, SparseMethod) else None
    scheduled: float | Mapping[str, float] | Budget
    if isinstance(final, Mapping):
        scheduled = {fqn: schedule.sparsity(step, float(fraction)) for fqn, fraction in final.items()}
    elif isinstance(final, Budget) and hasattr(final, "sparsity"):
        budget: Any = final
        scheduled = replace(budget, sparsity=schedule.sparsity(step, budget.sparsity))
    elif final is None or isinstance(final, Budget):
        raise ValueError(f"method: expected a sparsity to schedule, got {method!r} (OneShot() needs none)")
    else:
        scheduled = schedule.sparsity(step, float(final))
    return replace(method, sparsity=scheduled)  # type: ignore[type-var]
