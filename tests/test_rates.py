"""The probe of the machine, and how its rates are remembered."""

from __future__ import annotations

import json
import math
import os
import signal
import threading
from pathlib import Path
from typing import Any

import pytest

from sparseinfer import _machine, _rates, ops
from sparseinfer._native import core
from sparseinfer._rates import Rates, rates

CACHES = {"L1": 32 << 10, "L2": 1 << 20, "L3": 16 << 20}


@pytest.fixture(autouse=True)
def folder(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    path = tmp_path / "not yet there"
    monkeypatch.setenv("SPARSEINFER_CACHE_DIR", str(path))
    monkeypatch.setattr(_rates, "cache_bytes", lambda: CACHES)
    rates.cache_clear()
    return path


class Probe:
    """Stands in for the measurement, and counts how often it is made."""

    def __init__(self) -> None:
        self.count = 0

    def __call__(self, isa: str, sizes: list[int], seconds: float) -> tuple[dict[str, float], list[float]]:
        self.count += 1
        return {"clock": 2.0, "fma": 50.0, "dot": 90.0}, [400.0 / (i + 1) for i, _ in enumerate(sizes)]


@pytest.fixture
def probe(monkeypatch: pytest.MonkeyPatch) -> Probe:
    probe = Probe()
    monkeypatch.setattr(_rates.core, "probe", probe)
    return probe


def again() -> Rates:
    """As another process would get them."""
    rates.cache_clear()
    return rates("avx2")


def stored(folder: Path) -> Path:
    (path,) = folder.iterdir()
    return path


@pytest.mark.parametrize("isa", core.isa_levels())
def test_the_probe_measures_every_level(isa: str) -> None:
    sizes = [4096, 1 << 16]
    units, reads = core.probe(isa, sizes, 0.01)
    assert {"clock", "fma"} <= units.keys() <= {"clock", *ops.UNITS}
    assert len(reads) == len(sizes)
    assert all(0 < rate < math.inf for rate in (*units.values(), *reads))
    # No CPU runs beyond 10 GHz, multiplies 64 fp32 a cycle in vectors, or loads 256 bytes.
    assert 0.1 < units["clock"] < 10
    assert units["fma"] < 64 * units["clock"]
    assert max(reads) < 256 * units["clock"]
    assert ("dot" in units) == any(
        row.native for row in ops.kernels() if (row.isa, row.storage) == (isa, "bf16")
    )


def test_wider_vectors_multiply_faster() -> None:
    if not {"avx2", "avx512"} <= set(core.isa_levels()):
        pytest.skip("this machine has no AVX-512")
    narrow, wide = (core.probe(isa, [], 0.05)[0]["fma"] for isa in ("scalar", "avx512"))
    assert wide > 2 * narrow


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (("unheard of", [4096], 0.01), "isa: expected one of"),
        (("scalar", [4095], 0.01), "sizes: expected bytes from 4096 to 1073741824, got 4095"),
        (("scalar", [(1 << 30) + 1], 0.01), "sizes: expected bytes from"),
        (("scalar", [-1], 0.01), "sizes: expected bytes from"),
        (("scalar", [4096], 0.0), "seconds: expected"),
        (("scalar", [4096], math.nan), "seconds: expected"),
        (("scalar", [4096], math.inf), "seconds: expected"),
    ],
    ids=str,
)
def test_bad_arguments(arguments: Any, message: str) -> None:
    with pytest.raises(ValueError, match=message):
        core.probe(*arguments)


def test_a_level_of_another_machine() -> None:
    missing = {row.isa for row in ops.kernels()} - set(core.isa_levels())
    for isa in missing:
        with pytest.raises(ValueError, match="isa: expected a level of this machine"):
            core.probe(isa, [4096], 0.01)
        assert core.isa_refusal(isa)
    assert not any(core.isa_refusal(isa) for isa in core.isa_levels())


def test_it_can_be_interrupted() -> None:
    # A process in the background ignores the signal.
    before = signal.signal(signal.SIGINT, signal.default_int_handler)
    timer = threading.Timer(0.2, os.kill, (os.getpid(), signal.SIGINT))
    timer.start()
    try:
        with pytest.raises(KeyboardInterrupt):
            core.probe("scalar", [4096], 60.0)
    finally:
        timer.join()
        signal.signal(signal.SIGINT, before)


def test_measured_once(probe: Probe, folder: Path) -> None:
    first = rates("avx2")
    assert rates("avx2") is first
    assert again() == first
    assert probe.count == 1
    assert stored(folder).name.startswith("rates-")
    rates("scalar")
    assert probe.count == 2
    assert len(list(folder.iterdir())) == 2


@pytest.mark.parametrize("change", ["cpu", "version", "caches"])
def test_measured_anew_elsewhere(probe: Probe, monkeypatch: pytest.MonkeyPatch, change: str) -> None:
    rates("avx2")
    if change == "cpu":
        monkeypatch.setattr(_rates, "cpu_model", lambda: "another")
    elif change == "version":
        monkeypatch.setattr(_rates.core, "__version__", "99")
    else:
        monkeypatch.setattr(_rates, "cache_bytes", lambda: {**CACHES, "L2": 2 << 20})
    again()
    assert probe.count == 2


GOOD = {"clock": 2.0, "fma": 50.0}


@pytest.mark.parametrize(
    "content",
    [
        "",
        "{",
        "[]",
        "null",
        "[" * 100_000,
        json.dumps({"units": GOOD}),
        json.dumps({"units": GOOD, "reads": []}),
        json.dumps({"units": GOOD, "reads": [1.0] * 3}),
        json.dumps({"units": GOOD, "reads": 3}),
        json.dumps({"units": [], "reads": [1.0] * 7}),
        json.dumps({"units": {"fma": 1.0}, "reads": [1.0] * 7}),
        json.dumps({"units": {**GOOD, "fma": 0}, "reads": [1.0] * 7}),
        json.dumps({"units": {**GOOD, "fma": "x"}, "reads": [1.0] * 7}),
        json.dumps({"units": {**GOOD, "fma": math.nan}, "reads": [1.0] * 7}),
        json.dumps({"units": {**GOOD, "fma": 10**400}, "reads": [1.0] * 7}),
    ],
    ids=lambda text: text[:60],
)
def test_a_broken_file_is_replaced(probe: Probe, folder: Path, content: str) -> None:
    first = rates("avx2")
    stored(folder).write_text(content)
    assert again() == first
    assert probe.count == 2
    assert again() == first
    assert probe.count == 2


def test_bytes_that_are_no_text(probe: Probe, folder: Path) -> None:
    first = rates("avx2")
    stored(folder).write_bytes(b"\xff\xfe\xfd")
    assert again() == first
    assert probe.count == 2


def test_a_folder_that_cannot_be_written(
    probe: Probe, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    (tmp_path / "a file").write_text("")
    monkeypatch.setenv("SPARSEINFER_CACHE_DIR", str(tmp_path / "a file"))
    assert again() == again()
    assert probe.count == 2
    assert (tmp_path / "a file").read_text() == ""


def test_an_interruption_leaves_nothing_behind(folder: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    def interrupted(*arguments: object) -> None:
        raise KeyboardInterrupt

    monkeypatch.setattr(_rates.core, "probe", interrupted)
    with pytest.raises(KeyboardInterrupt):
        rates("avx2")
    assert not folder.exists()


def test_reading_more_is_never_faster(probe: Probe) -> None:
    found = rates("avx2")
    sizes = [2**power for power in range(8, 34)]
    speeds = [found.read_rate(size) for size in sizes]
    assert speeds == sorted(speeds, reverse=True)
    # What fits a private cache is read at its rate, and the last rate holds beyond.
    assert found.read_rate(1) == found.read_rate(28 << 10) == 400.0
    assert found.read_rate(64 << 10) == found.read_rate(896 << 10) == 200.0
    assert found.read_rate(1 << 40) == found.reads[-1][1] == min(rate for _, rate in found.reads)
    assert found.measured[0] == (16 << 10, 400.0)
    assert len(found.measured) == 7


@pytest.mark.parametrize(
    "caches", [{"L1": 4 << 10}, {"L1": 1 << 14, "L2": 1 << 20}, {"L1": 1, "L3": 1 << 33}]
)
def test_unusual_caches(probe: Probe, monkeypatch: pytest.MonkeyPatch, caches: dict[str, int]) -> None:
    monkeypatch.setattr(_rates, "cache_bytes", lambda: caches)
    found = rates("avx2")
    assert all(core_size >= 4096 for core_size, _ in found.measured)
    assert 0 < found.read_rate(100) <= 400.0


def test_caches_of_this_machine(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    sizes = list(_machine.cache_bytes().values())
    assert sizes
    assert sizes == sorted(sizes)
    assert _machine.private_bytes() in sizes
    for index, (level, kind, size) in enumerate(
        [("1", "Data", "48K"), ("1", "Instruction", "32K"), ("2", "Unified", "2M"), ("3", "Unified", "x")]
    ):
        folder = tmp_path / f"index{index}"
        folder.mkdir()
        for name, text in (("level", level), ("type", kind), ("size", size)):
            (folder / name).write_text(f"{text}\n")
    monkeypatch.setattr(_machine, "_CACHES", tmp_path)
    _machine.cache_bytes.cache_clear()
    try:
        assert _machine.cache_bytes() == {"L1": 48 << 10, "L2": 2 << 20}
        assert _machine.private_bytes() == 48 << 10
        monkeypatch.setattr(_machine, "_CACHES", tmp_path / "none")
        _machine.cache_bytes.cache_clear()
        assert _machine.last_level_cache_bytes() == 32 << 20
    finally:
        _machine.cache_bytes.cache_clear()
