"""The commands that write and show files of models."""

from __future__ import annotations

import json
from pathlib import Path

import pytest
import torch
from hub_helpers import SIZES, saved, transformers

import sparseinfer as si
from sparseinfer.cli import main
from sparseinfer.hub.folder import load
from sparseinfer.io.summary import summary_of

BIG = {**SIZES, "hidden_size": 64, "intermediate_size": 128}


@pytest.fixture
def llama(tmp_path: Path) -> Path:
    torch.manual_seed(0)
    config = transformers.LlamaConfig(**BIG, num_key_value_heads=2, tie_word_embeddings=True)
    return saved(transformers.LlamaForCausalLM(config).to(torch.bfloat16), tmp_path / "llama")


def test_prune_convert_inspect(llama: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    pruned, converted = tmp_path / "pruned", tmp_path / "converted"
    options = ["--method", "magnitude", "--sparsity", "0.8", "--compress"]
    assert main(["prune", str(llama), "--out", str(pruned), *options]) == 0
    assert load(pruned).dtype == torch.bfloat16
    ids = torch.tensor([[1, 2, 3]])
    with torch.no_grad():
        expected = load(pruned).model(ids).logits
    options = ["--tokens", "1", "8", "--memory", "compact", "--predict"]
    assert main(["convert", str(pruned), "--out", str(converted), *options]) == 0
    model = load(converted).model
    assert [module for module in model.modules() if isinstance(module, si.SparseLinear)]
    with torch.no_grad():
        torch.testing.assert_close(model(ids).logits, expected, rtol=1e-4, atol=1e-4)
    capsys.readouterr()
    report = tmp_path / "report.json"
    assert main(["inspect", str(converted), "--json", str(report)]) == 0
    told = capsys.readouterr().out
    assert "a LlamaForCausalLM, converted" in told
    assert "bitmap" in told
    content = json.loads(report.read_text())
    assert content["nbytes"] < content["dense_nbytes"]
    layers = [t for t in content["tensors"] if t["name"].endswith("up_proj.weight")]
    assert {t["format"] for t in layers} == {"bitmap"}
    assert all(abs(t["sparsity"] - 0.8) < 0.01 for t in layers)
    assert sum(content["histogram"]) > 0


def test_convert_to_int8(tmp_path: Path) -> None:
    torch.manual_seed(0)
    config = transformers.LlamaConfig(**BIG, num_key_value_heads=2)
    llama = saved(transformers.LlamaForCausalLM(config), tmp_path / "llama")
    pruned, converted = tmp_path / "pruned", tmp_path / "converted"
    options = ["--method", "magnitude", "--sparsity", "0.8"]
    assert main(["prune", str(llama), "--out", str(pruned), *options]) == 0
    # Only int8 is allowed to be smaller here, so that "compact" has to choose it.
    options = ["--precision", "int8-weights", "--memory", "compact", "--predict"]
    assert main(["convert", str(pruned), "--out", str(converted), *options]) == 0
    entries = [entry for entry in summary_of(converted).tensors if entry.name.endswith("up_proj.weight")]
    assert entries
    assert {entry.stored for entry in entries} == {"int8"}


def test_an_unknown_precision_is_refused(
    llama: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    assert main(["convert", str(llama), "--out", str(tmp_path / "out"), "--precision", "int4"]) != 0
    assert "precision: expected" in capsys.readouterr().err
    assert not (tmp_path / "out").exists()


def test_a_file_is_stored_smaller(llama: Path, tmp_path: Path) -> None:
    pruned, out = tmp_path / "pruned", tmp_path / "out"
    options = ["--method", "magnitude", "--sparsity", "0.8"]
    assert main(["prune", str(llama), "--out", str(pruned), *options]) == 0
    file = pruned / "model.safetensors"
    assert main(["convert", str(file), "--out", str(out)]) == 0
    before, after = summary_of(file), summary_of(out)
    assert after.nbytes < 0.7 * before.nbytes
    assert {t.name: t.sparsity for t in after.tensors} == {t.name: t.sparsity for t in before.tensors}


def test_plot(llama: Path, tmp_path: Path) -> None:
    pytest.importorskip("matplotlib")
    assert main(["inspect", str(llama), "--all", "--plot", str(tmp_path / "plot.png")]) == 0
    assert (tmp_path / "plot.png").stat().st_size > 1000


def test_nothing_to_inspect(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["inspect", str(tmp_path)]) == 1
    assert "expected a folder with files of safetensors, got none" in capsys.readouterr().err
    (tmp_path / "model.safetensors").write_bytes(b"no")
    assert main(["inspect", str(tmp_path)]) == 1
    assert "expected a safetensors file, got 2 bytes" in capsys.readouterr().err


@pytest.mark.parametrize(
    ("option", "text"),
    [("--weights", "expected one of bf16, f16, got 'x'"), ("--tokens", "expected an integer")],
)
def test_bad_options(
    llama: Path, tmp_path: Path, option: str, text: str, capsys: pytest.CaptureFixture[str]
) -> None:
    with pytest.raises(SystemExit):
        main(["convert", str(llama), "--out", str(tmp_path / "out"), option, "x"])
    assert text in capsys.readouterr().err


def test_how_vectors_are_made_is_kept(tmp_path: Path) -> None:
    """What sentence-transformers has beside the model; nothing outside of the folder is copied."""
    bert = saved(transformers.BertModel(transformers.BertConfig(**BIG)), tmp_path / "bert")
    (bert / "1_Pooling").mkdir()
    (bert / "1_Pooling" / "config.json").write_text('{"pooling_mode_cls_token": true}')
    outside = bert.parent / "outside"
    outside.mkdir()
    paths = ["", "1_Pooling", "../outside", "missing"]
    (bert / "modules.json").write_text(json.dumps([{"path": path, "type": "a.Pooling"} for path in paths]))
    pruned, converted = tmp_path / "pruned", tmp_path / "converted"
    assert main(["prune", str(bert), "--out", str(pruned), "--sparsity", "0.5", "--method", "magnitude"]) == 0
    assert main(["convert", str(pruned), "--out", str(converted), "--predict"]) == 0
    for name in ("modules.json", "1_Pooling/config.json"):
        assert (converted / name).read_bytes() == (bert / name).read_bytes()
    assert not (converted / "outside").exists()
