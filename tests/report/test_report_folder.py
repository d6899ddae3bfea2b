"""`sparseinfer report` of folders and files: what `prune` and `convert` left in them, measured and told."""

from __future__ import annotations

from pathlib import Path

import pytest
import torch
from hub_helpers import SIZES, saved, text, transformers

from sparseinfer._timing import num_threads
from sparseinfer.cli import main
from sparseinfer.hub import history
from sparseinfer.report.collect import ReportJob, collect


@pytest.fixture(scope="module")
def folders(tmp_path_factory: pytest.TempPathFactory) -> dict[str, Path]:
    """A dense decoder, pruned, converted; and a text."""
    root = tmp_path_factory.mktemp("report")
    found = {name: root / name for name in ("dense", "pruned", "converted")}
    found["text"] = root / "text.txt"
    torch.manual_seed(0)
    with num_threads(1):
        saved(transformers.LlamaForCausalLM(transformers.LlamaConfig(**SIZES)).eval(), found["dense"])
        found["text"].write_text(text(40))
        asked = ["--sparsity", "0.75", "--calibration", str(found["text"])]
        assert main(["prune", str(found["dense"]), "--out", str(found["pruned"]), *asked]) == 0
        made = ["--tokens", "1", "16", "--predict"]
        assert main(["convert", str(found["pruned"]), "--out", str(found["converted"]), *made]) == 0
    return found


FAST = {"tokens": (1, 8), "budget_s": 0.01}


def test_a_converted_folder(folders: dict[str, Path], tmp_path: Path) -> None:
    content = collect(ReportJob(folders["converted"], tmp_path / "r.html", **FAST))
    assert content.kind == "LlamaForCausalLM"
    assert not content.converted_here
    assert [one.about for one in content.latencies] == ["1 token", "8 tokens"]
    for one in content.latencies:
        assert one.compared.max_rel_diff < 1e-5
    assert content.pruning is not None
    assert content.pruning.options["method"] == "sparsegpt"
    assert {row.layer for row in content.layers} >= {one.name for one in content.pruning.layers}
    assert content.quality is not None
    assert list(content.quality.steps) == ["dense", "pruned"]
    assert content.quality.low_is_good


def test_a_pruned_folder_is_converted_for_the_page(folders: dict[str, Path], tmp_path: Path) -> None:
    page = tmp_path / "r.html"
    options = ["--tokens", "4", "--budget", "0.01"]
    assert main(["report", str(folders["pruned"]), "--out", str(page), *options]) == 0
    told = page.read_text(encoding="utf-8")
    assert "It was converted for this report" in told
    assert "model.layers.*.mlp.down_proj" in told


def test_quality_is_measured_on_a_text(folders: dict[str, Path], tmp_path: Path) -> None:
    job = ReportJob(
        folders["converted"], tmp_path / "r", evaluation=folders["text"], dense=folders["dense"], **FAST
    )
    quality = collect(job).quality
    assert quality is not None
    assert (quality.name, list(quality.steps)) == ("perplexity", ["dense", "this model"])
    assert all(value > 1 for value in quality.steps.values())


def test_files_are_read_and_not_run(folders: dict[str, Path], tmp_path: Path) -> None:
    read = collect(ReportJob(folders["converted"] / "model.safetensors", tmp_path / "r"))
    assert read.latencies == ()
    assert read.layers == collect(ReportJob(folders["converted"], tmp_path / "r", **FAST)).layers
    assert read.pruning == history.read(folders["pruned"])
    # Nothing is known of how a dense folder was pruned.
    dense = collect(ReportJob(folders["dense"], tmp_path / "r", read_only=True))
    assert (dense.layers, dense.pruning, dense.quality) == ((), None, None)


@pytest.mark.parametrize(
    ("asked", "message"),
    [
        (["nowhere", "--out", "r.html"], "nowhere"),
        (["converted", "--out", "missing/r.html"], "out: expected a file in an existing folder"),
        (["converted", "--out", "r.html", "--dense", "dense"], "eval: expected a text to compare"),
        (["converted", "--out", "r.html", "--read-only", "--eval", "text.txt"], "evaluation: expected none"),
    ],
    ids=["no model", "no folder", "no text", "not run"],
)
def test_what_cannot_be_is_refused(
    folders: dict[str, Path],
    asked: list[str],
    message: str,
    monkeypatch: pytest.MonkeyPatch,
    capsys: pytest.CaptureFixture[str],
) -> None:
    monkeypatch.chdir(folders["dense"].parent)
    assert main(["report", *asked, *(["--budget", "0.01"] if "--read-only" not in asked else [])]) == 1
    assert message in capsys.readouterr().err
    assert not Path("r.html").exists()
