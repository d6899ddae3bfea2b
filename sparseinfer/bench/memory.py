"""What runs take of memory: their peak above what was there, and page faults of those that are warm."""

from __future__ import annotations

import ctypes
import gc
import resource
import statistics
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path

_WARM_RUNS, _RUNS = 3, 9


@dataclass(frozen=True)
class MemoryOfRuns:
    """Of the runs of one model, in a process of its own.

    before   bytes that were resident before the first run: weights, code, all else
    above    bytes by which the peak of the runs exceeded them
    faults   minor page faults of a run after the first ones, the median of some
    """

    before: int
    above: int
    faults: float


def memory_of(run: Callable[[], object]) -> MemoryOfRuns:
    """Measures `run`, whose code should have run before, on other inputs: libraries fault their pages in.

    A process that has done anything large before holds memory that the runs may reuse unseen; as far as the
    C library can, it is given back first. RuntimeError: not Linux, or a kernel that does not reset the peak.
    """
    gc.collect()
    try:
        ctypes.CDLL(None).malloc_trim(0)
        Path("/proc/self/clear_refs").write_text("5")  # the peak is what is resident now
    except (OSError, AttributeError) as error:
        raise RuntimeError(f"memory: expected Linux with /proc/self/clear_refs, got {error}") from None
    before = _status("VmRSS")
    for _ in range(_WARM_RUNS):
        run()
    above = _status("VmHWM") - before
    faults = [_faults_of(run) for _ in range(_RUNS)]
    return MemoryOfRuns(before, max(0, above), statistics.median(faults))


def _faults_of(run: Callable[[], object]) -> int:
    faults = resource.getrusage(resource.RUSAGE_SELF).ru_minflt
    run()
    return resource.getrusage(resource.RUSAGE_SELF).ru_minflt - faults


def _status(name: str) -> int:
    """Bytes of a line of /proc/self/status."""
    for line in Path("/proc/self/status").read_text(encoding="utf-8").splitlines():
        if line.startswith(f"{name}:"):
            return int(line.split()[1]) << 10
    raise RuntimeError(f"memory: expected {name} in /proc/self/status, got none")
