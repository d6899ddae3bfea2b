"""Regions take no more memory than the dense model, and once warm no pages from the operating system."""

from __future__ import annotations

import json
import os
import subprocess
import sys
from pathlib import Path

import pytest

FOLDER = Path(__file__).parent


def measured(which: str, batch: int) -> dict[str, float]:
    paths = os.pathsep.join((str(FOLDER), str(FOLDER.parents[1])))
    done = subprocess.run(
        [sys.executable, str(FOLDER / "region_memory.py"), which, str(batch)],
        env={**os.environ, "PYTHONPATH": paths},
        stdout=subprocess.PIPE,
        text=True,
        check=True,
        timeout=300,
    )
    found: dict[str, float] = json.loads(done.stdout)
    return found


@pytest.mark.skipif(not os.access("/proc/self/clear_refs", os.W_OK), reason="needs Linux's peak of a process")
def test_a_region_takes_less_memory_than_the_dense_model_and_faults_no_pages() -> None:
    dense, fast = measured("dense", 4), measured("converted", 4)
    assert dense["above"] > 8 << 20  # or nothing was measured: its largest result has 6.4 MB
    assert fast["above"] <= dense["above"]
    assert fast["faults"] == 0
