"""Checks every CUDA kernel on this machine's GPU, then times them: one call, less than 8 minutes.

    python bench/gpu/gpu_report.py --json bench/results/gpu_h100.json
    python bench/gpu/gpu_report.py --dry-run                       what would be done; needs no GPU
    compute-sanitizer --tool memcheck python bench/gpu/gpu_report.py --check-only

Run it from the checkout. Where the native modules are not installed it builds them, which needs nvcc, cmake
and pybind11. Every launch is compared with fp64, its output poisoned before. Then all candidates of a product
take turns, each a CUDA graph that reads more different copies of the weights than the L2 cache holds; the
baseline is the best of three ways to call cuBLAS.
"""

from __future__ import annotations

import argparse
import json
import sys
import time
from collections.abc import Sequence
from dataclasses import asdict
from pathlib import Path
from typing import Any

import torch
from gpu_native import console, load_native, machine
from rich.box import SIMPLE_HEAD
from rich.table import Table

# Seconds that all of it may take, chosen to stay within 8 minutes, and those of them to write the report in.
BUDGET_S = 470.0
RESERVE_S = 20.0
# Samples of each candidate: chosen, not measured; no GPU has run this yet.
ROUNDS = 15


def ceilings() -> dict[str, float]:
    """What this GPU does at best: a copy, bytes read and written per second, and a large product in bf16."""
    from gpu_timing import time_all

    a, b = (torch.empty(1 << 30, dtype=torch.uint8, device="cuda") for _ in range(2))
    x, w = (torch.randn(8192, 8192, device="cuda").bfloat16() for _ in range(2))
    times = time_all(
        {"copy": (lambda: lambda: b.copy_(a), a.nbytes), "product": (lambda: lambda: x @ w, w.nbytes)},
        rounds=5,
    )
    work = {"copy": ("copy_bytes_per_s", 2 * a.nbytes), "product": ("bf16_flops_per_s", 2 * 8192**3)}
    return {
        work[name][0]: work[name][1] / timing.min_us * 1e6
        for name, timing in times.items()
        if not isinstance(timing, str)
    }


def check_all(limit_s: float) -> dict[str, Any]:
    """Every kernel that runs here; the first failures in words."""
    from gpu_checks import checks, failure

    from sparseinfer.ops.cuda.kernels import cuda, cuda_kernels

    begin, device = time.perf_counter(), torch.cuda.current_device()
    generator = torch.Generator().manual_seed(0)
    ran: dict[str, int] = {}
    failures: list[str] = []
    left_out = 0
    for check in checks():
        name = check.kernel.name
        if not cuda().runs_on(cuda_kernels().index(check.kernel), device):
            continue
        if time.perf_counter() - begin > limit_s:
            left_out += 1
            continue
        ran[name] = ran.get(name, 0) + 1
        if wrong := failure(check, generator):
            failures.append(f"{name} n={check.n} k={check.k} m={check.m}: {wrong}")
    console.print(
        f"{sum(ran.values())} checks of {len(ran)} kernels, {len(failures)} failed, {left_out} left out"
    )
    for text in failures[:20]:
        console.print(f"  FAILED {text}")
    return {"ran": ran, "failures": failures, "left_out": left_out}


def time_cells(deadline: float) -> list[dict[str, Any]]:
    """One row per candidate; cells for which there is no time left are listed without rows."""
    from gpu_cells import candidates, cells
    from gpu_timing import time_all

    from sparseinfer.bench.candidate import DENSE

    rows: list[dict[str, Any]] = []
    for cell in cells():
        about = {"cell": str(cell), **asdict(cell)}
        if time.perf_counter() > deadline:
            rows.append({**about, "left_out": True})
            continue
        offered = candidates(cell)
        times = time_all({name: (make, nbytes) for name, (_, make, nbytes) in offered.items()}, ROUNDS)
        good = {name: timing for name, timing in times.items() if not isinstance(timing, str)}
        best = min(
            good[name].min_us for name, (kind, *_) in offered.items() if kind == DENSE and name in good
        )
        for name, (kind, _, nbytes) in offered.items():
            if name not in good:
                rows.append({**about, "candidate": name, "kind": kind, "error": times[name]})
                continue
            us = good[name].min_us
            rows.append(
                {
                    **about,
                    "candidate": name,
                    "kind": kind,
                    "us": us,
                    "median_us": good[name].median_us,
                    "captured": good[name].captured,
                    "eff_tflops": cell.flops / us * 1e-6,
                    "tflops": cell.flops * (1 if kind == DENSE else 1 - cell.sparsity) / us * 1e-6,
                    "gb_per_s": nbytes / us * 1e-3,
                    "x_dense": best / us,
                }
            )
        torch.cuda.empty_cache()
    return rows


def table(rows: Sequence[dict[str, Any]]) -> Table:
    shown = Table(box=SIMPLE_HEAD)
    for name in ("product", "candidate"):
        shown.add_column(name, no_wrap=True)
    for name in ("us", "TFLOP/s", "eff TFLOP/s", "GB/s", "x dense"):
        shown.add_column(name, justify="right")
    previous = ""
    for row in rows:
        first = row["cell"] if row["cell"] != previous else ""
        previous = row["cell"]
        if "us" not in row:
            shown.add_row(first, f"{row['candidate']}: {row['error']}" if "error" in row else "no time left")
            continue
        name = row["candidate"] + ("" if row["captured"] else " (no graph)")
        figures = (row["us"], row["tflops"], row["eff_tflops"], row["gb_per_s"], row["x_dense"])
        shown.add_row(first, name, *(f"{figure:.2f}" for figure in figures))
    return shown


def dry_run() -> None:
    """Everything that would run, and the least time of each product on an H100: bytes or operations."""
    from gpu_cells import cells
    from gpu_checks import checks

    listed = list(checks())
    console.print(f"{len(listed)} checks of {len({check.kernel.name for check in listed})} kernels, then:")
    for cell in cells():
        console.print(f"  {cell}: at least {cell.least_us:.1f} us", highlight=False)


def main() -> int:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--dry-run", action="store_true")
    parser.add_argument("--check-only", action="store_true")
    parser.add_argument("--json", type=Path)
    arguments = parser.parse_args()
    begin = time.perf_counter()
    if arguments.dry_run:
        load_native(build=False)
        dry_run()
        return 0
    load_native(build=True)
    from sparseinfer import ops

    if reason := ops.cuda_refusal(torch.cuda.current_device() if torch.cuda.is_available() else 0):
        console.print(f"no GPU to report on: {reason}")
        return 2
    report: dict[str, Any] = {"machine": machine()}
    console.print_json(json.dumps(report["machine"]))
    report["checks"] = check_all(BUDGET_S / 3 if not arguments.check_only else float("inf"))
    if not arguments.check_only:
        report["ceilings"] = ceilings()
        report["times"] = time_cells(begin + BUDGET_S - RESERVE_S)
        console.print(table(report["times"]))
    if arguments.json:
        arguments.json.write_text(json.dumps(report, indent=1))
    return 1 if report["checks"]["failures"] else 0


if __name__ == "__main__":
    sys.exit(main())
