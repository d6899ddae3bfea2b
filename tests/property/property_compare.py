"""Runs a model and its converted copy, and compares all that can be seen of it."""

from __future__ import annotations

import math
import threading
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, field
from typing import Any

import torch
from property_cases import Case, Inputs, Run, inputs, prepared, quiet, skeleton, tensors
from torch import Tensor, nn

# Relative to the norm of the right result. float32: half an eps for each of up to 2048 products, whose errors
# add up as their root, is 3e-6; 1e-5 leaves room for a few layers. bfloat16: half of its eps, 4e-3, for each
# of some layers. What exceeds it is held against the dense model's own error, by the same model in double.
_TOLERANCE = {torch.float32: 1e-5, torch.bfloat16: 1e-2, torch.float64: 1e-12}
_ROUNDED = 2e-2  # weights in bfloat16: 2**-9 for each weight
_TIMES_NOISE = 8.0
_FLOOR = 1e-6  # for results that cancel: their terms are about 1
# Which share of truth values, indices and NaNs may differ, one at least: rounding pushes some over an edge.
_PUSHED = {True: 0.02, False: 0.002}  # by whether anything is bfloat16


class Mismatch(AssertionError):
    """The converted model is wrong; `kind` says what differs."""

    def __init__(self, kind: str, text: str) -> None:
        super().__init__(f"{kind}: {text}")
        self.kind = kind


class Refused(Exception):
    """The dense model does not take what the case says: there is nothing to compare."""


@dataclass
class Outcome:
    """What one call gave, and what could be seen of it."""

    given: Inputs
    result: Any = None
    error: Exception | None = None
    seen: list[tuple[str, Any]] = field(default_factory=list)
    first: list[Tensor] = field(default_factory=list)  # a copy of the result, before anything else ran


@dataclass
class Subject:
    """A model with the hooks that watch it."""

    model: nn.Module
    seen: list[tuple[str, Any]] = field(default_factory=list)

    def watch(self, names: Sequence[str], *, altering: bool) -> None:
        """Hooks that see what the modules are given and return, and may return twice as much."""
        for name in names:

            def look(module: nn.Module, args: Any, y: Any, name: str = name) -> Any:
                self.seen.append((f"{name}'s input", args))
                self.seen.append((f"{name}'s result", y))
                self.seen.append((f"{name}'s result then", [t.clone() for t in tensors(y)]))
                return 2 * y if altering and isinstance(y, Tensor) else None

            self.model.get_submodule(name).register_forward_hook(look)

    def run(self, case: Case, run: Run, number: int, before: Inputs | None, **how: Any) -> Outcome:
        with mode(run.mode):
            outcome = Outcome(inputs(case, run, number, before, **how))
        self.seen = []
        torch.manual_seed(number)
        worker = threading.Thread(target=self._run, args=(outcome, run))
        if run.mode == "thread":
            worker.start()
            worker.join()
        else:
            self._run(outcome, run)
        outcome.seen = self.seen
        if outcome.error is None:
            outcome.first = [t.detach().clone() for t in tensors(outcome.result)]
        return outcome

    def _run(self, outcome: Outcome, run: Run) -> None:
        x, rest, flags = outcome.given.x, outcome.given.args[1:], outcome.given.flags

        def forward(x: Tensor) -> Any:
            return self.model(x, *rest, **flags)

        try:
            with mode(run.mode), quiet():
                if run.mode == "vmap":
                    outcome.result = torch.func.vmap(forward)(torch.stack([x, -x]))
                elif run.mode == "jvp":
                    outcome.result = torch.func.jvp(forward, (x,), (torch.ones_like(x),))
                elif run.mode == "trace":
                    outcome.result = torch.jit.trace(self.model, x, check_trace=False)(x)
                else:
                    outcome.result = forward(x)
        except Exception as error:
            outcome.error = error


@contextmanager
def mode(name: str) -> Iterator[None]:
    with torch.inference_mode() if name == "inference_mode" else torch.set_grad_enabled(name == "jvp"):
        yield


def evaluated(case: Case, model: nn.Module) -> nn.Module:
    return model if case.stays else model.eval()


def close(case: Case, number: int, kind: str, where: str, wanted: Any, got: Any) -> None:
    if skeleton(wanted) != skeleton(got):
        raise Mismatch(f"{kind} structure", f"{where}: {skeleton(got)}, not {skeleton(wanted)}")
    for i, (a, b) in enumerate(zip(tensors(wanted), tensors(got), strict=True)):
        allowed = _TOLERANCE.get(a.dtype, 0.0)
        if case.options.get("weights") is not None:
            allowed = max(allowed, _ROUNDED)
        error = error_of(a, b, _PUSHED[case.dtype == "bfloat16" or "weights" in case.options])
        if error <= allowed or same(a, b):
            continue
        noise = _noise(case, number, i) if a.is_floating_point() else 0.0
        if error > max(allowed, _TIMES_NOISE * noise):
            raise Mismatch(kind, f"{where}: tensor {i} {tuple(a.shape)}: relative error {error:.2g}")


def error_of(a: Tensor, b: Tensor, share: float = 0.0) -> float:
    """The norm of the difference over that of a; infinite if more than a share differs in kind."""
    with torch.no_grad():
        if not a.is_floating_point():
            return 0.0 if int((a != b).sum()) <= max(share * a.numel(), share > 0) else float("inf")
        a, b = a.detach().double(), b.detach().double()
        equal = (a == b) | (a.isnan() & b.isnan())
        finite = a.isfinite() & b.isfinite()
        if int((~equal & ~finite).sum()) > max(share * a.numel(), share > 0):
            return float("inf")
        a, b = a[finite], b[finite]
        difference = max(float((a - b).norm()) - _FLOOR * max(a.numel(), 1) ** 0.5, 0.0)
        return difference / (float(a.norm()) or 1.0) if difference else 0.0


def same(a: Tensor, b: Tensor) -> bool:
    return a.dtype == b.dtype and bool(torch.equal(a.nan_to_num(7.25), b.nan_to_num(7.25)))


def _noise(case: Case, number: int, tensor: int) -> float:
    """How far the dense model itself lies from right, or moves with rounded weights: the worst result.

    A result that is moved by more than its norm says nothing of the others, only of itself: the derivative of
    a logarithm near zero, for example. `tensor` is the number of the one in question, in the last run.
    """
    exact, dense = Subject(prepared(case)), Subject(prepared(case))
    rounded = case.options.get("weights") is not None
    if rounded:
        for p in exact.model.parameters():
            p.data = p.data.bfloat16().to(p.dtype) if p.dim() > 1 else p.data
    else:
        exact.model.double()
    for subject in (exact, dense):
        subject.watch(case.watched, altering=case.altering)
    before: list[Inputs | None] = [None, None]
    worst = 0.0
    for i, run in enumerate(case.runs[: number + 1]):
        outcomes = []
        for side, subject in enumerate((exact, dense)):
            evaluated(case, subject.model)
            how = {"wide": side == 0 and not rounded}
            outcomes.append(subject.run(case, run, i, before[side], **how))
            before[side] = outcomes[-1].given
        if any(outcome.error is not None for outcome in outcomes):
            return worst
        for j, (a, b) in enumerate(zip(*(tensors(o.result) for o in outcomes), strict=True)):
            error = error_of(a, b)
            counts = error < 1 or (i == number and j == tensor and error < math.inf)
            worst = max(worst, error if counts else 0.0)
    return worst


def snapshot(state: dict[str, Any]) -> dict[str, Any]:
    return {name: t.clone() if isinstance(t, Tensor) else t for name, t in state.items()}


def equal_states(kind: str, before: dict[str, Any], after: dict[str, Any]) -> None:
    if list(before) != list(after):
        raise Mismatch(kind, f"names {list(after)}, not {list(before)}")
    for name, t in before.items():
        if isinstance(t, Tensor) and not same(t, after[name]):
            raise Mismatch(kind, name)
