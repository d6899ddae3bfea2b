"""Smaller cases that fail in the same way."""

from __future__ import annotations

import dataclasses
import re
import time
from collections.abc import Callable, Iterator
from typing import Any

from property_cases import Case
from property_check import check
from property_compare import Mismatch, Refused


def failure(case: Case) -> Mismatch | None:
    try:
        check(case)
    except Mismatch as mismatch:
        return mismatch
    except Refused:
        return None
    return None


def reduced(case: Case, kind: str, *, seconds: float = 20.0) -> Case:
    """What is left of a case if all goes that it can fail without; at best, the time allows no more."""
    end = time.monotonic() + seconds
    before = None
    while before != case and time.monotonic() < end:
        before = case
        for smaller in (_runs, _fields, _lines):
            case = _descended(case, kind, smaller, end)
    return case


def _descended(case: Case, kind: str, smaller: Callable[[Case], Iterator[Case]], end: float) -> Case:
    progress = True
    while progress:
        progress = False
        for candidate in smaller(case):
            if time.monotonic() > end:
                return case
            if _fails(candidate, kind):
                case, progress = candidate, True
                break
    return case


def _fails(case: Case, kind: str) -> bool:
    try:
        mismatch = failure(case)
    except Exception:  # what is left is no model
        return False
    return mismatch is not None and mismatch.kind == kind


def _runs(case: Case) -> Iterator[Case]:
    for i in range(len(case.runs)):
        if len(case.runs) > 1:
            yield dataclasses.replace(case, runs=case.runs[:i] + case.runs[i + 1 :])
    for i, run in enumerate(case.runs):
        for simpler in _simpler(run):
            yield dataclasses.replace(case, runs=(*case.runs[:i], simpler, *case.runs[i + 1 :]))
    if case.example is not None:
        for simpler in _simpler(case.example):
            yield dataclasses.replace(case, example=simpler)


def _simpler(thing: Any) -> Iterator[Any]:
    """One field after the other as it is by default."""
    for each in dataclasses.fields(thing):
        if each.name in ("source", "x", "d", "takes") and isinstance(thing, Case):
            continue
        default: Any = each.default
        if each.default_factory is not dataclasses.MISSING:
            default = each.default_factory()
        value = getattr(thing, each.name)
        if value == default or each.name == "runs":
            continue
        yield dataclasses.replace(thing, **{each.name: default})
        if isinstance(value, dict):
            for key in value:
                rest = {other: value[other] for other in value if other != key}
                yield dataclasses.replace(thing, **{each.name: rest})


def _fields(case: Case) -> Iterator[Case]:
    yield from _simpler(case)


def _lines(case: Case) -> Iterator[Case]:
    """Without one line, the last ones first; or with a value that is an earlier one."""
    lines = case.source.split("\n")
    for i in reversed(range(len(lines))):
        if not lines[i].strip() or lines[i].lstrip().startswith(("class ", "def ", "super()")):
            continue
        yield dataclasses.replace(case, source="\n".join(lines[:i] + lines[i + 1 :]))
    for i in reversed(range(len(lines))):
        assigned = re.match(r"(\s+)(v\d+) = (.*)", lines[i])
        found = re.findall(r"\b(v\d+|x)\b", assigned[3]) if assigned else []
        if assigned and found and assigned[3] != found[0]:
            text = f"{assigned[1]}{assigned[2]} = {found[0]}"
            yield dataclasses.replace(case, source="\n".join([*lines[:i], text, *lines[i + 1 :]]))
    for old, new in re.findall(r"(return [(\[{]?(v\d+).*)", case.source):
        if old != f"return {new}":
            yield dataclasses.replace(case, source=case.source.replace(old, f"return {new}"))
    for old, new in re.findall(r"(v\d+) = (v\d+|x)\n", case.source):
        source = re.sub(rf"\s+{old} = {new}\n", "\n", case.source)
        yield dataclasses.replace(case, source=re.sub(rf"\b{old}\b", new, source))
