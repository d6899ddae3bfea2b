"""Times on a GPU: candidates take turns, each a CUDA graph whose calls read different copies of a weight."""

from __future__ import annotations

import statistics
from collections.abc import Callable, Mapping
from dataclasses import dataclass

import torch

Call = Callable[[], object]
Maker = Callable[[], Call]

# A graph reads more than this before it comes back to the same weights: five times the L2 of an H100.
COLD_BYTES = 256 << 20
MAX_COPIES = 64
_WARM_UPS = 3


@dataclass(frozen=True)
class GpuTiming:
    """Microseconds per call; not `captured`: no graph could be made, and calls were launched one by one."""

    min_us: float
    median_us: float
    captured: bool


class _Candidate:
    def __init__(self, make: Maker, nbytes: int) -> None:
        copies = max(2, min(MAX_COPIES, -(-COLD_BYTES // max(nbytes, 1))))
        self._calls = [make() for _ in range(copies)]
        self._graph = self._capture()
        self.samples: list[float] = []

    @property
    def captured(self) -> bool:
        return self._graph is not None

    def _run(self) -> None:
        for call in self._calls:
            call()

    def _capture(self) -> torch.cuda.CUDAGraph | None:
        stream = torch.cuda.Stream()
        stream.wait_stream(torch.cuda.current_stream())
        with torch.cuda.stream(stream):
            for _ in range(_WARM_UPS):
                self._run()
        torch.cuda.current_stream().wait_stream(stream)
        graph = torch.cuda.CUDAGraph()
        try:
            with torch.cuda.graph(graph):
                self._run()
        except RuntimeError:  # some libraries allocate or wait in their calls
            torch.cuda.synchronize()
            return None
        return graph

    def timing(self) -> GpuTiming:
        return GpuTiming(min(self.samples), statistics.median(self.samples), self.captured)

    def sample(self) -> None:
        begin, end = (torch.cuda.Event(enable_timing=True) for _ in range(2))
        begin.record()
        if self._graph is None:
            self._run()
        else:
            self._graph.replay()
        end.record()
        end.synchronize()
        self.samples.append(begin.elapsed_time(end) * 1e3 / len(self._calls))


def time_all(candidates: Mapping[str, tuple[Maker, int]], rounds: int) -> dict[str, GpuTiming | str]:
    """Candidates by name, each a maker of calls with weights of their own, and the bytes of one copy.

    One that this torch or this GPU cannot run has its error for a result.
    """
    prepared: dict[str, _Candidate] = {}
    errors: dict[str, GpuTiming | str] = {}
    for name, (make, nbytes) in candidates.items():
        try:
            prepared[name] = _Candidate(make, nbytes)
        except (RuntimeError, NotImplementedError) as error:
            errors[name] = str(error).splitlines()[0]
    for _ in range(rounds):
        for candidate in prepared.values():
            candidate.sample()
    return errors | {name: c.timing() for name, c in prepared.items()}
