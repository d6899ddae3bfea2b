"""doctor explains every machine: what keeps it from being faster, and what helps."""

from __future__ import annotations

import os
from typing import Any

import pytest
import torch

from sparseinfer import _core
from sparseinfer.cli import doctor


class Core:
    """Another build of the native module."""

    def __init__(self, *, parallel: bool = True, tiles: bool = False) -> None:
        self.emulates_tiles = tiles
        self._parallel = parallel

    def has_parallel_for(self) -> bool:
        return self._parallel

    def __getattr__(self, name: str) -> Any:
        return getattr(_core, name)


@pytest.fixture
def machine(monkeypatch: pytest.MonkeyPatch) -> pytest.MonkeyPatch:
    """Four cores, all used, at the level avx2."""
    monkeypatch.setattr(doctor.ops, "isa_levels", lambda: ["scalar", "avx2"])
    monkeypatch.setattr(doctor.ops, "active_isa", lambda: "avx2")
    monkeypatch.setattr(os, "cpu_count", lambda: 4)
    monkeypatch.setattr(os, "sched_getaffinity", lambda pid: set(range(4)), raising=False)
    monkeypatch.setattr(torch, "get_num_threads", lambda: 4)
    monkeypatch.setattr(doctor, "core", Core())
    return monkeypatch


def test_nothing_to_advise(machine: pytest.MonkeyPatch) -> None:
    assert doctor.advice() == []


@pytest.mark.parametrize(
    ("change", "advice"),
    [
        ((doctor.ops, "isa_levels", lambda: ["scalar"]), "they run as plain C"),
        ((doctor.ops, "active_isa", lambda: "scalar"), "unset SPARSEINFER_ISA: kernels of avx2 are faster"),
        ((os, "sched_getaffinity", lambda pid: {0, 1}), "this process may use 2 of 4 cores"),
        ((torch, "get_num_threads", lambda: 1), "torch uses one thread of 4 cores: torch.set_num_threads"),
        ((torch, "get_num_threads", lambda: 8), "more threads than cores wait for each other"),
        ((doctor, "core", Core(parallel=False)), "torch_parallel_for"),
        ((doctor, "core", Core(tiles=True)), "this one is for tests"),
    ],
    ids=lambda value: value[1] if isinstance(value, tuple) else None,
)
def test_what_is_wrong_is_named(machine: pytest.MonkeyPatch, change: tuple[Any, ...], advice: str) -> None:
    machine.setattr(*change)
    assert any(advice in line for line in doctor.advice())


def test_optional_packages_are_told_with_their_use(monkeypatch: pytest.MonkeyPatch) -> None:
    told = doctor._optional()
    for name in doctor._OPTIONAL:
        assert name in told
    monkeypatch.setattr(doctor, "_OPTIONAL", {"no-such-package": "nothing"})
    assert doctor._optional() == "no-such-package, not installed: nothing"
