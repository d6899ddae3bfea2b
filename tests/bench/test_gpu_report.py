"""bench/gpu/gpu_report.py without a GPU: what it would do."""

from __future__ import annotations

import re
import subprocess
import sys

from cuda_helpers import ROOT, built_module


def test_dry_run_lists_every_kernel_and_every_product() -> None:
    kernels = built_module().kernels()
    ran = subprocess.run(
        [sys.executable, str(ROOT / "bench/gpu/gpu_report.py"), "--dry-run"],
        check=True,
        capture_output=True,
        text=True,
    )
    head, *products = ran.stdout.splitlines()
    assert re.fullmatch(rf"\d+ checks of {len(kernels)} kernels, then:", head)
    assert int(head.split()[0]) >= 10 * len(kernels)
    floors = [float(re.search(r"at least ([\d.]+) us", line)[1]) for line in products]  # type: ignore[index]
    assert len(floors) >= 60
    assert min(floors) > 0
    for word in ("f32", "bf16", "scattered", "128x128", "64x64", "32x32", "16x16", "2:4"):
        assert any(word in line for line in products), word
