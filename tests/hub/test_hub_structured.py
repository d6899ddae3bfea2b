"""`sparseinfer prune --structured`: smaller models in folders, alone, with zeros, and in int8."""

from __future__ import annotations

from pathlib import Path

import pytest
import torch
from hub_helpers import SIZES, saved, transformers

from sparseinfer.cli import main
from sparseinfer.hub.folder import load


def tiny(name: str, folder: Path) -> Path:
    torch.manual_seed(0)
    if name == "llama":
        config = transformers.LlamaConfig(**SIZES, num_key_value_heads=2, tie_word_embeddings=True)
        return saved(transformers.LlamaForCausalLM(config).to(torch.bfloat16), folder)
    if name == "t5":
        config = transformers.T5Config(
            vocab_size=96, d_model=32, d_kv=8, d_ff=48, num_layers=2, num_heads=4, decoder_start_token_id=0
        )
        return saved(transformers.T5ForConditionalGeneration(config), folder)
    return saved(transformers.BertModel(transformers.BertConfig(**SIZES)), folder)


@pytest.mark.parametrize("name", ["llama", "bert", "t5"])
def test_a_smaller_model(name: str, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    folder, out = tiny(name, tmp_path / "model"), tmp_path / "out"
    assert main(["prune", str(folder), "--out", str(out), "--structured", "0.5"]) == 0
    printed = capsys.readouterr().out
    assert "flops: " in printed
    assert "48 -> 24 neurons" in printed
    before, after = load(folder).model, load(out).model
    # Whole layers are halved; embeddings stay.
    smaller = {name: p.numel() for name, p in after.named_parameters() if p.dim() > 1}
    halved = [name for name, p in before.named_parameters() if smaller.get(name) == p.numel() // 2]
    assert len(halved) >= 12
    loaded = type(before).from_pretrained(out)
    state = loaded.state_dict()
    for key, value in after.state_dict().items():
        assert torch.equal(value, state[key].float()), key
    ids = {"input_ids": torch.arange(2, 9)[None]}
    if name == "t5":
        ids["decoder_input_ids"] = ids["input_ids"]
    with torch.no_grad():
        assert loaded(**ids)[0].isfinite().all()


def test_then_zeros_then_int8(words: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    out = tmp_path / "out"
    options = ["--structured", "0.5", "--importance", "wanda", "--update", "--method", "magnitude"]
    options += ["--sparsity", "0.5", "--quantize", "nearest", "--calibration", str(words), "--length", "16"]
    assert main(["prune", str(tiny("llama", tmp_path / "model")), "--out", str(out), *options]) == 0
    printed = capsys.readouterr().out
    for name in ("-> 1 heads", "with fewer units", "in int8", "sparsity"):
        assert name in printed
    down = load(out).model.model.layers[0].mlp.down_proj
    assert down.in_features == 24
    assert float((down.weight == 0).float().mean()) == pytest.approx(0.5, abs=0.02)


@pytest.mark.parametrize(
    ("options", "message"),
    [
        (["--structured", "1.5"], "structured: expected a number in [0, 1), got 1.5"),
        (["--structured", "0.5", "--importance", "best"], "importance: expected one of magnitude"),
        (["--structured", "0.5", "--update"], "calibration: expected a text for magnitude or --update"),
    ],
)
def test_bad_options(
    options: list[str], message: str, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    folder, out = tiny("bert", tmp_path / "model"), tmp_path / "out"
    assert main(["prune", str(folder), "--out", str(out), *options]) != 0
    assert message in capsys.readouterr().err
    assert not out.exists()
