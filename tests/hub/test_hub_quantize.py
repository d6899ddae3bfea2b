"""Model folders pruned and rounded to int8 by the command line."""

from __future__ import annotations

from pathlib import Path

import pytest
import torch
from hub_helpers import SIZES, saved, transformers
from torch import nn

from sparseinfer import Magnitude, calibrate, prune_, quantize_
from sparseinfer.cli import main
from sparseinfer.hub.folder import load
from sparseinfer.hub.text import drawn, held_out, samples_of
from sparseinfer.quantize.registry import quantizers


@pytest.fixture(params=[torch.float32, torch.bfloat16])
def llama(tmp_path: Path, request: pytest.FixtureRequest) -> Path:
    torch.manual_seed(0)
    config = transformers.LlamaConfig(**SIZES, num_key_value_heads=2)
    return saved(transformers.LlamaForCausalLM(config).to(request.param), tmp_path / "llama")


def linears(folder: Path) -> dict[str, torch.Tensor]:
    model = load(folder).model
    return {
        fqn: module.weight.detach()
        for fqn, module in model.named_modules()
        if isinstance(module, nn.Linear) and fqn != "lm_head"
    }


@pytest.mark.parametrize("method", list(quantizers()))
def test_prune_and_quantize(
    method: str, llama: Path, words: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    out = tmp_path / "out"
    options = ["--method", "magnitude", "--sparsity", "0.5", "--length", "16", "--samples", "5"]
    options += ["--calibration", str(words), "--quantize", method]
    assert main(["prune", str(llama), "--out", str(out), *options]) == 0
    printed = capsys.readouterr().out
    assert " after, " in printed
    assert " in int8\n" in printed
    assert "14 layers in int8" in printed

    checkpoint = load(llama)
    calibration, _ = held_out(samples_of("text", checkpoint, words.read_text(), 16))
    prune_(checkpoint.model, Magnitude(0.5), ignore="lm_head", keep_masks=False)
    stats = calibrate(checkpoint.model, drawn(calibration, 5, 0), ranges=True, ignore="lm_head")
    quantize_(checkpoint.model, quantizers()[method](), stats=stats, ignore="lm_head")
    found = linears(out)
    for fqn, weight in found.items():
        module = checkpoint.model.get_submodule(fqn)
        assert torch.equal(weight, module.weight.to(checkpoint.dtype).float()), fqn
        quotient = weight / module.weight_scale[:, None]
        assert torch.equal(quotient.round(), (module.weight / module.weight_scale[:, None]).round())
        assert (weight == 0).float().mean() >= 0.5


def test_without_a_text(llama: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    out, other = tmp_path / "out", tmp_path / "other"
    options = ["--method", "magnitude", "--sparsity", "0"]
    assert main(["prune", str(llama), "--out", str(out), *options, "--quantize", "nearest"]) == 0
    checkpoint = load(llama)
    quantize_(checkpoint.model, ignore="lm_head")
    for fqn, weight in linears(out).items():
        expected = checkpoint.model.get_submodule(fqn).weight.to(checkpoint.dtype).float()
        assert torch.equal(weight, expected), fqn
    assert main(["prune", str(llama), "--out", str(other), *options, "--quantize", "gptq"]) == 1
    assert "calibration: expected a text for gptq, got none" in capsys.readouterr().err
    assert main(["prune", str(llama), "--out", str(other), *options, "--quantize", "int4"]) == 1
    assert "quantize: expected one of gptq, nearest, smoothquant, got 'int4'" in capsys.readouterr().err
    assert not other.exists()
