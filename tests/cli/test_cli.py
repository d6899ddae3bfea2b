from __future__ import annotations

import json
import subprocess
import sys
from pathlib import Path

import pytest
import torch
from torch import nn

from sparseinfer import _rates, ops
from sparseinfer._rates import Rates
from sparseinfer.bench import candidates, models, whole_model
from sparseinfer.cli import doctor, main
from sparseinfer.demo import experiment

BENCH = ["bench", "--shape", "32x16", "--tokens", "2", "--sparsity", "0.5", "--budget", "0.001"]


def test_doctor(capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["doctor"]) == 0
    out = capsys.readouterr().out
    for topic in ("versions", "instruction sets", "kernels", "threads", "cuda"):
        assert topic in out


def test_doctor_names_every_kernel_that_runs_here() -> None:
    facts = doctor.facts()
    assert ops.active_isa() in facts["instruction sets"]
    for kernel in ops.kernels():
        assert kernel.base_name in facts["kernels"] or not kernel.available
    for isa in {kernel.isa for kernel in ops.kernels()} - set(ops.isa_levels()):
        assert f"{isa} (this CPU does not have" in facts["instruction sets"]
    assert facts["cuda"].startswith(("yes: ", "no: "))


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


@pytest.fixture
def tiny(monkeypatch: pytest.MonkeyPatch) -> list[int]:
    """A stand-in for the models of `bench --model`, and the batches that it was asked for."""
    batches: list[int] = []

    def inputs(batch: int) -> tuple[torch.Tensor]:
        batches.append(batch)
        return (torch.ones(batch, 64),)

    def build() -> nn.Module:
        torch.manual_seed(0)
        return nn.Sequential(nn.Linear(64, 96), nn.ReLU(), nn.Linear(96, 8)).eval()

    spec = models.Model(build, inputs, lambda model, given: model(*given), ignore=["2"], tokens=3)
    monkeypatch.setattr(models, "MODELS", {"tiny": spec})
    return batches


MODEL = ["bench", "--model", "tiny", "--sparsity", "0.9", "--budget", "0.001"]


def test_bench_model(tiny: list[int], capsys: pytest.CaptureFixture[str], tmp_path: Path) -> None:
    path = tmp_path / "out.json"
    options = ["--batch", "1", "3", "--dtype", "f32", "bf16w", "bf16", "--json", str(path)]
    before = torch.get_num_threads()
    assert main([*MODEL, *options]) == 0
    assert torch.get_num_threads() == before
    assert tiny == [1, 3]
    out = capsys.readouterr().out
    for column in ("speed-up", "max diff", "sparse layers", "tokens/s", "tiny"):
        assert column in out
    document = json.loads(path.read_text())
    assert document["machine"]["cpu"]
    rows = [whole_model.Measurement(**row) for row in document["rows"]]
    cells = [(row.batch, row.dtype, row.sparsity, row.threads) for row in rows]
    assert cells == [(batch, dtype, 0.9, 1) for batch in (1, 3) for dtype in ("f32", "bf16w", "bf16")]
    for row in rows:
        # Rounded or not, next to what the pruned model gives; the layer that was not pruned stays dense.
        assert row.max_diff < {"f32": 1e-6, "bf16w": 2**-8, "bf16": 2**-7}[row.dtype]
        assert row.layers == 2
        assert row.sparse_layers <= 1
        assert row.dense_nbytes == (64 * 96 + 96 + 96 * 8 + 8) * 4
        assert row.nbytes < row.dense_nbytes or not row.sparse_layers
        assert 0 < row.sparse_ms <= row.sparse_median_ms
        assert 0 < row.dense_ms <= row.dense_median_ms
        assert row.speed_up == pytest.approx(row.dense_ms / row.sparse_ms)
        assert row.tokens_per_s == pytest.approx(3 * row.batch * 1e3 / row.sparse_ms)


def test_bench_model_takes_the_faster_memory_format(tiny: list[int], monkeypatch: pytest.MonkeyPatch) -> None:
    conv = models.Model(
        lambda: nn.Sequential(nn.Conv2d(4, 8, 3)).eval(),
        lambda batch: (torch.ones(batch, 4, 9, 9),),
        lambda model, given: model(*given),
        memory_formats=("default", "channels_last"),
    )
    monkeypatch.setattr(models, "MODELS", {"conv": conv})
    (row,) = whole_model.run(whole_model.ModelSettings(("conv",), sparsities=(0.0,), budget_s=1e-3))
    assert row.dense in ("default", "channels_last")
    assert row.tokens_per_s == 0


@pytest.mark.parametrize(
    ("options", "message"),
    [
        (["--model", "bret"], "model: expected one of tiny, got 'bret'"),
        (
            ["--model", "tiny", "--dtype", "f16"],
            "dtypes: expected some of f32, bf16w, bf16, int8, bf16-model, got",
        ),
    ],
)
def test_bench_model_refuses(
    tiny: list[int], options: list[str], message: str, capsys: pytest.CaptureFixture[str]
) -> None:
    assert main(["bench", *options]) == 1
    assert message in capsys.readouterr().err


def test_bench_model_without_its_package(
    monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.setitem(sys.modules, "transformers", None)
    assert main(["bench", "--model", "bert-base"]) == 1
    assert "expected the package transformers, got none (pip install" in capsys.readouterr().err


@pytest.mark.parametrize(
    ("argv", "message"),
    [
        ([], "required"),
        (["bench", "--shape", "3072"], "expected two sizes such as 3072x768, got '3072'"),
        (["bench", "--tokens", "0"], "expected an integer of at least 1"),
        (["bench", "--threads", "many"], "expected an integer of at least 1"),
        (["bench", "--json", "/nonexistent/out.json"], "expected a file in an existing folder"),
        (["bench", "--model", "bert-base", "--batch", "0"], "expected an integer of at least 1"),
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
    row = experiment.Measurement(800, 0.9, 0.2, None, difference, 200.0, 50.0, 4.0, 10, 100, 36, 36)
    monkeypatch.setattr(experiment, "run", lambda *args, **kwargs: [row])
    assert main(["demo"]) == status
    out = capsys.readouterr().out
    assert "speed-up" in out
    assert ("wrong:" in out) == bool(status)


def test_bench_model_against_other_dense_models(tiny: list[int], tmp_path: Path) -> None:
    path = tmp_path / "out.json"
    rivals = ["f32", "bf16", "f32-prepacked", "bf16-prepacked"]
    options = ["--dense", *rivals, "--block", "4x8", "--dtype", "f32", "bf16-model", "--json", str(path)]
    assert main([*MODEL, *options]) == 0
    rows = json.loads(path.read_text())["rows"]
    assert [row["dtype"] for row in rows] == ["f32", "bf16-model"]
    for row in rows:
        assert row["pattern"] == "4x8"
        assert list(row["dense_by_name"]) == ["default", "f32 prepacked", "default bf16", "bf16 prepacked"]
        assert row["dense"] in row["dense_by_name"]
        assert row["dense_ms"] == min(row["dense_by_name"].values()) == row["dense_by_name"][row["dense"]]
        # Against the pruned model in the dtype of the pruned model itself.
        assert row["max_diff"] < {"f32": 1e-6, "bf16-model": 2**-7}[row["dtype"]]
        assert row["dense_nbytes"] == (64 * 96 + 96 + 96 * 8 + 8) * {"f32": 4, "bf16-model": 2}[row["dtype"]]
    (row,) = whole_model.run(
        whole_model.ModelSettings(("tiny",), sparsities=(0.5,), dense=("bf16",), budget_s=1e-3)
    )
    assert row.dense == "default bf16"
    assert row.pattern == "unstructured"
    with pytest.raises(ValueError, match="dense: expected some of f32, bf16"):
        whole_model.ModelSettings(("tiny",), dense=("int8",))


def test_doctor_shows_what_the_machine_can_do(monkeypatch: pytest.MonkeyPatch) -> None:
    def rates(isa: str) -> Rates:
        return Rates(2.5, {"fma": 40.0, "vnni": 160.0, "unheard of": 1.0}, ((1 << 14, 300.0),), 1 << 20)

    monkeypatch.setattr(doctor, "rates", rates)
    monkeypatch.setattr(_rates, "_sizes", lambda: [1 << 14])
    told = doctor.facts()["rates"]
    for part in ("2.5 GHz", "FMA 80", "int8 dot 320", "unheard of 2", "16 KiB 300"):
        assert part in told


def test_doctor_says_which_level_is_not_used(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(doctor.ops, "isa_levels", lambda: ["slow", "fast"])
    monkeypatch.setattr(doctor.ops, "active_isa", lambda: "slow")
    assert "in use: slow, as SPARSEINFER_ISA asks, not fast" in doctor._isa()
    monkeypatch.setattr(doctor.ops, "active_isa", lambda: "fast")
    assert "SPARSEINFER_ISA" not in doctor._isa()
