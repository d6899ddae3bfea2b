"""bench/gpu/gpu_model.py: what it predicts, and how it stands beside what was measured."""

from __future__ import annotations

import io
import json
from pathlib import Path

import gpu_model
import numpy as np
import pytest
from rich.console import Console


@pytest.mark.parametrize("sparsity", [0.5, 0.8])
def test_a_sample_has_the_bytes_of_random_zeros(sparsity: float) -> None:
    """delta8 has no fillers there: each lane gets an even share of a binomial number, rounded up to pairs."""
    tile = gpu_model.sample("delta8", sparsity)
    entries = np.random.default_rng(0).binomial(4096, 1 - sparsity, 10_000)
    assert tile.pairs == pytest.approx(np.ceil(entries / 64).mean(), rel=0.01)
    # Bits, values, and what lanes wait for each other.
    least = 4096 / 8 + 2 * 4096 * (1 - sparsity)
    assert least < gpu_model.sample("bitmap", sparsity).nbytes < 1.15 * least


def test_more_zeros_are_faster_and_more_tokens_are_not() -> None:
    us = [[gpu_model.predict(4096, 4096, m, s, {}).us for m in (1, 16, 64)] for s in (0.5, 0.8, 0.9)]
    assert all(few > many for few, many in zip(us[0], us[-1], strict=True))
    assert all(row == sorted(row) for row in us)


def test_measured_times_stand_beside(tmp_path: Path) -> None:
    predicted = gpu_model.predict(4096, 4096, 8, 0.5, {})
    about = {"n": 4096, "k": 4096, "m": 8, "sparsity": 0.5}
    rows = [
        {**about, "kind": "sparse", "candidate": predicted.kernel, "us": 3 * predicted.us, "x_dense": 1.25},
        {**about, "kind": "sparse", "candidate": "another", "error": "no"},
        {**about, "kind": "dense", "candidate": "cublas linear", "us": 1.0, "x_dense": 1.0},
        {"cell": "left out", "left_out": True},
    ]
    report = tmp_path / "report.json"
    report.write_text(json.dumps({"times": rows}))
    times = gpu_model.measured(report)
    us = 3 * predicted.us
    assert times == {(4096, 4096, 8, 0.5, predicted.kernel): (us, pytest.approx(1.25 * us))}
    shown = io.StringIO()
    Console(file=shown, width=200).print(gpu_model.table([predicted], times))
    (line,) = (line for line in shown.getvalue().splitlines() if predicted.kernel in line)
    assert line.split()[-3:] == [f"{us:.1f}", "3.00", "1.25"]
