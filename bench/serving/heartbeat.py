"""Gaps that a thread of Python sees while another one is in sparse calls of a tenth of a second.

    python bench/serving/heartbeat.py --json bench/results/heartbeat_zen5.json

One that held Python's lock would make gaps as long as the calls. On one thread of torch's, so that a core is
left for the heart, and on all.
"""

from __future__ import annotations

import argparse
import json
import sys
import threading
import time
from pathlib import Path

import numpy as np
import torch
from torch import nn

import sparseinfer as si
from sparseinfer._machine import describe_machine
from sparseinfer.ops import active_isa

_CALL_S = 0.1


def main() -> int:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--seconds", type=float, default=10)
    parser.add_argument("--json", type=Path)
    given = parser.parse_args()
    layer = nn.Linear(4096, 4096)
    si.prune_(layer, si.Magnitude(0.8), keep_masks=False)
    call = si.SparseLinear.from_linear(layer)
    rows = [measured(call, threads, given.seconds) for threads in sorted({1, torch.get_num_threads()})]
    text = json.dumps({"machine": describe_machine(active_isa()), "rows": rows}, indent=2)
    sys.stdout.write(text + "\n")
    if given.json:
        given.json.write_text(text + "\n", encoding="utf-8")
    return 0


def measured(call: nn.Module, threads: int, seconds: float) -> dict[str, float]:
    torch.set_num_threads(threads)
    with torch.inference_mode():
        x = torch.randn(64, 4096)
        call(x)
        start = time.perf_counter()
        call(x)
        x = x.repeat(max(1, round(_CALL_S / (time.perf_counter() - start))), 1)
        call(x)
        gaps: list[float] = []
        over = threading.Event()

        def beat() -> None:
            last = time.perf_counter()
            while not over.is_set():
                time.sleep(0.001)
                now = time.perf_counter()
                gaps.append(now - last)
                last = now

        heart = threading.Thread(target=beat)
        heart.start()
        time.sleep(seconds / 4)
        idle, gaps[:] = list(gaps), []
        calls = []
        end = time.perf_counter() + seconds
        while time.perf_counter() < end:
            start = time.perf_counter()
            call(x)
            calls.append(time.perf_counter() - start)
        over.set()
        heart.join()
    p50, p99 = np.percentile(gaps, [50, 99])
    return {
        "threads": threads,
        "call_ms": 1e3 * float(np.median(calls)),
        "idle_gap_p99_ms": 1e3 * float(np.percentile(idle, 99)),
        "gap_p50_ms": 1e3 * float(p50),
        "gap_p99_ms": 1e3 * float(p99),
        "gap_max_ms": 1e3 * max(gaps),
    }


if __name__ == "__main__":
    sys.exit(main())
