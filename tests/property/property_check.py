"""Whether a converted model is right for every input that the dense one takes."""

from __future__ import annotations

import copy
import dataclasses
from typing import Any

import torch
from property_cases import Case, Run, inputs, prepared, quiet, tensors
from property_compare import (
    Mismatch,
    Outcome,
    Refused,
    Subject,
    close,
    equal_states,
    error_of,
    evaluated,
    mode,
    same,
    snapshot,
)
from torch import nn

import sparseinfer as si

_LAYOUT = ("view size", "single memory location")


def check(case: Case) -> None:
    """Mismatch: the converted model is wrong. Refused: the case says nothing."""
    threads = torch.get_num_threads()
    torch.set_num_threads(case.threads)
    try:
        with quiet():
            _check(case)
    finally:
        torch.set_num_threads(threads)


def _check(case: Case) -> None:
    try:
        model = prepared(case)
        [model.get_submodule(name) for name in case.watched]
    except Exception as error:  # it cannot be trained, or not be traced
        raise Refused from error
    _check_example(case)
    state, modes = snapshot(model.state_dict()), {n: m.training for n, m in model.named_modules()}
    fast = _converted(case, model)
    for name, module in fast.named_modules():
        if name in modes and module.training != modes[name]:
            raise Mismatch("training flag", f"{name or 'the model'} is {module.training}")
    if not case.in_place:
        equal_states("changes the model", state, model.state_dict())
    if case.copied:
        try:
            copy.deepcopy(prepared(case))
        except RuntimeError as error:  # it holds a tensor of the training's graph
            raise Refused from error
        fast = copy.deepcopy(fast)
    dense = Subject(prepared(case))
    outcomes = _check_runs(case, dense, Subject(fast))
    if not case.in_place:
        _check_original(case, Subject(evaluated(case, model)), outcomes[0])
    state = snapshot(fast.state_dict())
    if case.default_device:
        with torch.device(case.default_device):
            equal_states("state elsewhere", state, fast.state_dict())
    if not str(si.explain(fast)):
        raise Mismatch("explain", "is empty")
    _check_merged(case, fast)
    _check_dense_again(case, fast)


def _check_example(case: Case) -> None:
    if case.example is None:
        return
    with torch.no_grad():
        outcome = Subject(prepared(case).eval()).run(case, _plain(case.example), 0, None)
    if outcome.error is not None:
        raise Refused from outcome.error


def _plain(run: Run) -> Run:
    return dataclasses.replace(run, mode="no_grad", x="new")


def _converted(case: Case, model: nn.Module) -> nn.Module:
    options = {
        key: getattr(torch, value) if key in ("weights", "activations") else value
        for key, value in case.options.items()
    }
    expected = None
    if case.example is not None:
        given, expected = inputs(case, _plain(case.example)), inputs(case, _plain(case.example))
        options["example_inputs"] = (*given.args, *given.flags.values())
        if case.by_name or given.flags:
            names = ("x", *case.takes)
            options["example_inputs"] = {**dict(zip(names, given.args, strict=True)), **given.flags}
    torch.set_default_dtype(getattr(torch, case.default_dtype))
    try:
        fast = (si.convert_ if case.in_place else si.convert)(model, measure=False, **options)
    except Exception as error:
        raise Mismatch("convert raises", f"{type(error).__name__}: {error}") from error
    finally:
        torch.set_default_dtype(torch.float32)
    if expected is not None:
        with torch.no_grad():
            trial, model = copy.deepcopy(expected), prepared(case).eval()
            model(*trial.args, **trial.flags)
        if same(trial.x, expected.x) and not same(given.x, expected.x):
            raise Mismatch("convert changes its example", "x is another")
    return fast


def _check_runs(case: Case, dense: Subject, fast: Subject) -> list[Outcome]:
    for subject in (dense, fast):
        evaluated(case, subject.model)
        subject.watch(case.watched, altering=case.altering)
    done: list[tuple[Outcome, Outcome]] = []
    for number, run in enumerate(case.runs):
        wanted, got = (
            subject.run(case, run, number, done[-1][side].given if done else None)
            for side, subject in enumerate((dense, fast))
        )
        where = f"run {number}, {run}"
        done.append((wanted, got))
        if wanted.error is not None:
            _compare_errors(run, where, wanted.error, got.error)
            if not number:
                raise Refused from wanted.error
            break
        if got.error is not None:
            if run.mode == "jvp" and type(got.error) is RuntimeError:
                break
            what = f"{type(got.error).__name__}: {got.error}"
            raise Mismatch("raises", f"{where}: {what}") from got.error
        _compare(case, number, where, wanted, got)
        _compare_kept(case, number, where, dense.model, fast.model)
    for number, (wanted, got) in enumerate(done):
        if wanted.error is None and got.error is None:
            close(case, number, "an earlier result", f"run {number}", wanted.result, got.result)
            for a, b in zip(tensors(wanted.result), tensors(got.result), strict=True):
                if a.is_contiguous() and not b.is_contiguous():
                    raise Mismatch("strides", f"run {number}: {b.stride()}, not {a.stride()}")
    _compare_written(case, *done[-1])
    return [wanted for wanted, _ in done]


def _compare_errors(run: Run, where: str, wanted: Exception, got: Exception | None) -> None:
    """Both fail alike; but a result of ours may lie in memory as a view or a change in place needs it."""
    if run.mode in ("vmap", "jvp", "trace") or any(text in str(wanted) for text in _LAYOUT):
        return
    if got is None:
        raise Mismatch("accepts", f"{where}: the dense model raises {wanted!r}")
    if type(got) is not type(wanted):
        raise Mismatch("another exception", f"{where}: {got!r}, not {wanted!r}")


def _compare(case: Case, number: int, where: str, wanted: Outcome, got: Outcome) -> None:
    close(case, number, "result", where, wanted.result, got.result)
    run = case.runs[number]
    with mode(run.mode):
        before = None if run.x != "new" else inputs(case, run, number)
    if before is not None and same(before.x, wanted.given.x) and not same(before.x, got.given.x):
        raise Mismatch("input changed", f"{where}: {error_of(before.x, got.given.x)}")
    close(case, number, "inputs", where, wanted.given.args, got.given.args)
    if [name for name, _ in wanted.seen] != [name for name, _ in got.seen]:
        raise Mismatch(
            "hooks called", f"{where}: {[n for n, _ in got.seen]}, not {[n for n, _ in wanted.seen]}"
        )
    for (name, a), (_, b) in zip(wanted.seen, got.seen, strict=True):
        close(case, number, "hook", f"{where}: {name}", a, b)


def _compare_kept(case: Case, number: int, where: str, dense: nn.Module, fast: nn.Module) -> None:
    """Tensors that a model keeps as attributes, and its buffers."""
    others = dict(fast.named_modules())
    for name, module in dense.named_modules():
        for key, value in vars(module).items():
            if key == "last" and name in others:
                kept = vars(others[name]).get(key)
                close(case, number, "kept", f"{where}: {name}.{key}", value, kept)
    buffers = dict(fast.named_buffers())
    for name, buffer in dense.named_buffers():
        if name in buffers:
            close(case, number, "buffer", f"{where}: {name}", buffer, buffers[name])


def _compare_written(case: Case, wanted: Outcome, got: Outcome) -> None:
    """Results that do not overlap may be written to, one by one."""
    if wanted.error is not None or got.error is not None:
        return
    run = case.runs[-1]
    for i, (a, b) in enumerate(zip(tensors(wanted.result), tensors(got.result), strict=True)):
        try:
            with mode(run.mode):
                a.add_(i + 1)
        except RuntimeError:
            return
        try:
            with mode(run.mode):
                b.add_(i + 1)
        except RuntimeError as error:
            raise Mismatch("result is read-only", str(error)) from error
    number = len(case.runs) - 1
    close(case, number, "results overlap", "after writing", wanted.result, got.result)
    close(case, number, "results overlap", "inputs", wanted.given.args, got.given.args)


def _check_original(case: Case, original: Subject, wanted: Outcome) -> None:
    if wanted.error is not None or case.altering:
        return
    got = original.run(case, case.runs[0], 0, None)
    if got.error is not None:
        raise Mismatch("breaks the model", repr(got.error))
    if not all(same(a, b) for a, b in zip(wanted.first, got.first, strict=True)):
        raise Mismatch("changes the model's results", f"{[tuple(t.shape) for t in got.first]}")


def _check_merged(case: Case, fast: nn.Module) -> None:
    """A change of a weight in place is an error, or it counts."""
    if not case.merged or case.decorate or case.watched:
        return
    dense = evaluated(case, prepared(case))
    if any(True for _ in dense.buffers()):
        return  # runs may have changed them
    for model in (dense, fast):
        layer: Any = model.get_submodule(case.merged)
        try:
            layer.weight.data.add_(0.25)
        except Exception:
            return
    run = _plain(case.runs[0])
    wanted, got = (Subject(model).run(case, run, 0, None) for model in (dense, fast))
    if got.error is None and wanted.error is None and not case.options.get("weights"):
        error = max((error_of(*t) for t in zip(wanted.first, got.first, strict=True)), default=0.0)
        if error > 0.01:
            raise Mismatch("merged", f"{case.merged}: relative error {error:.2g}")


def _check_dense_again(case: Case, fast: nn.Module) -> None:
    try:
        again = Subject(si.densify_(fast))
    except Exception as error:
        raise Mismatch("densify_ raises", repr(error)) from error
    fresh = Subject(evaluated(case, prepared(case)))
    rounds = "weights" in case.options or case.options.get("fold_batch_norm")
    if not rounds and not case.decorate and not case.stays and not case.merged:
        mine, theirs = dict(again.model.named_parameters()), dict(fresh.model.named_parameters())
        if list(mine) != list(theirs):
            raise Mismatch("densify_ names", f"{list(mine)}, not {list(theirs)}")
        equal_states("densify_ weights", theirs, mine)
    if case.merged or case.altering or any(True for _ in fresh.model.buffers()):
        return  # runs may have changed them
    wanted, got = (subject.run(case, _plain(case.runs[0]), 0, None) for subject in (fresh, again))
    if wanted.error is None:
        if got.error is not None:
            raise Mismatch("densify_ breaks", repr(got.error))
        plain = dataclasses.replace(case, runs=(_plain(case.runs[0]),))
        close(plain, 0, "densify_", "", wanted.result, got.result)
