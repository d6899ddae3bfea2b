from __future__ import annotations

import json
import subprocess
import sys
from pathlib import Path

import pytest

from sparseinfer.bench import candidates, demo
from sparseinfer.cli import main

BENCH = ["bench", "--shape", "32x16", "--tokens", "2", "--sparsity", "0.5", "--budget", "0.001"]


def test_doctor(capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["doctor"]) == 0
    out = capsys.readouterr().out
    for topic in ("versions", "instruction sets", "kernels", "threads", "cuda"):
        assert topic in out


def test_the_module_is_the_command() -> None:
    done = subprocess.run(
        [sys.executable, "-m", "sparseinfer", "doctor"],
        capture_output=True,
        text=True,
        check=True,
        timeout=120,
    )
    assert "sparseinfer doctor" in done.stdout
    assert done.stderr == ""


def test_bench_prints_tables_and_writes_json(capsys: pytest.CaptureFixture[str], tmp_path: Path) -> None:
    path = tmp_path / "out.json"
    assert main([*BENCH, "--json", str(path)]) == 0
    out = capsys.readouterr().out
    for column in (
        "us",
        "GFLOP/s",
        "eff GFLOP/s",
        "GB/s",
        "x dense",
        "x dense (least), f32, 1 thread, warm weights",
    ):
        assert column in out
    assert "warm weights" in out
    keys = {"machine", "settings", "geometric_mean", "columns", "rows"}
    assert keys == json.loads(path.read_text()).keys()


def test_bench_quiet_prints_the_means_only(capsys: pytest.CaptureFixture[str]) -> None:
    assert main([*BENCH, "--quiet"]) == 0
    out = capsys.readouterr().out
    assert "x dense (least)" in out
    assert "eff GFLOP/s" not in out


def test_bench_draws_a_plot(tmp_path: Path) -> None:
    pytest.importorskip("matplotlib")
    path = tmp_path / "out.png"
    assert main([*BENCH, "--quiet", "--plot", str(path)]) == 0
    assert path.stat().st_size > 0


def test_bench_fails_on_wrong_numbers(
    monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    original = candidates.dense_candidates

    def wrong(*args, **kwargs):
        return {name: lambda x, run=run: run(x) + 1 for name, run in original(*args, **kwargs).items()}

    monkeypatch.setattr(candidates, "dense_candidates", wrong)
    assert main(BENCH) == 1
    assert "F.linear: expected" in capsys.readouterr().err


@pytest.mark.parametrize(
    ("argv", "message"),
    [
        ([], "required"),
        (["bench", "--shape", "3072"], "expected two sizes such as 3072x768, got '3072'"),
        (["bench", "--tokens", "0"], "expected an integer of at least 1"),
        (["bench", "--threads", "many"], "expected an integer of at least 1"),
        (["bench", "--json", "/nonexistent/out.json"], "expected a file in an existing folder"),
        (["frobnicate"], "invalid choice"),
    ],
)
def test_bad_usage_is_status_2(argv: list[str], message: str, capsys: pytest.CaptureFixture[str]) -> None:
    with pytest.raises(SystemExit) as caught:
        main(argv)
    assert caught.value.code == 2
    assert message in capsys.readouterr().err


@pytest.mark.parametrize(
    ("argv", "message"),
    [
        (["bench", "--sparsity", "nan"], "sparsities: expected fractions in [0, 1), got nan"),
        (["bench", "--isa", "mmx"], "isas: expected one of scalar"),
        (["bench", "--block", "7x7"], "block: expected a divisor of 768x768, got 7x7"),
    ],
)
def test_bad_values_are_one_line_on_stderr(
    argv: list[str], message: str, capsys: pytest.CaptureFixture[str]
) -> None:
    assert main(argv) == 1
    err = capsys.readouterr().err
    assert err.startswith("error: ")
    assert message in err
    assert err.count("\n") == 1


@pytest.mark.parametrize(("difference", "status"), [(1e-6, 0), (1e-3, 1), (float("nan"), 1)])
def test_demo_fails_when_the_converted_model_differs(
    difference: float, status: int, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    row = demo.Row(800, 0.9, 0.2, difference, 200.0, 50.0, 4.0, 10, 100, 36, 36)
    monkeypatch.setattr(demo, "run", lambda *args, **kwargs: [row])
    assert main(["demo"]) == status
    out = capsys.readouterr().out
    assert "speed-up" in out
    assert ("wrong:" in out) == bool(status)
