"""Model folders pruned by the command line: tiny models of transformers, saved, pruned, loaded again."""

from __future__ import annotations

import math
import shutil
import sys
from pathlib import Path

import pytest
import torch
import torch.nn.functional as F
from hub_helpers import SIZES, saved, sparsities, text, transformers

from sparseinfer import Magnitude, prune_
from sparseinfer.cli import main
from sparseinfer.hub.folder import load
from sparseinfer.hub.quality import Quality
from sparseinfer.hub.text import drawn, held_out, samples_of
from sparseinfer.prune import Wanda, calibrate, registry

safetensors = pytest.importorskip("safetensors.torch")


@pytest.fixture
def llama(tmp_path: Path) -> Path:
    torch.manual_seed(0)
    config = transformers.LlamaConfig(**SIZES, num_key_value_heads=2, tie_word_embeddings=True)
    return saved(transformers.LlamaForCausalLM(config).to(torch.bfloat16), tmp_path / "llama")


@pytest.fixture
def bert(tmp_path: Path) -> Path:
    torch.manual_seed(0)
    return saved(transformers.BertForMaskedLM(transformers.BertConfig(**SIZES)), tmp_path / "bert")


@pytest.mark.parametrize("method", registry.methods())
def test_a_causal_model(
    method: str, llama: Path, words: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    out = tmp_path / "out"
    options = ["--method", method, "--sparsity", "0.5", "--calibration", str(words), "--length", "16"]
    assert main(["prune", str(llama), "--out", str(out), *options]) == 0
    printed = capsys.readouterr().out
    for name in ("sparsity", "error", "model.layers.*.mlp.down_proj", "all", "perplexity: "):
        assert name in printed
    found = sparsities(out)
    assert found.pop("lm_head") == 0
    assert set(found.values()) == {0.5}
    config = transformers.AutoConfig.from_pretrained(out)
    assert config.dtype == torch.bfloat16
    assert transformers.AutoTokenizer.from_pretrained(out)("w3 w5")["input_ids"] == [5, 7]


def test_it_is_what_prune_makes(llama: Path, words: Path, tmp_path: Path) -> None:
    """The same weights, bit for bit, as by hand."""
    out = tmp_path / "out"
    options = ["--method", "wanda", "--sparsity", "0.6", "--length", "16", "--samples", "5", "--seed", "3"]
    assert main(["prune", str(llama), "--out", str(out), *options, "--calibration", str(words)]) == 0
    checkpoint = load(llama)
    samples = samples_of("text", checkpoint, words.read_text(), 16)
    assert [sample["input_ids"].shape for sample in samples] == [(1, 16)] * 25
    calibration, evaluation = held_out(samples)
    assert len(evaluation) == 5
    stats = calibrate(checkpoint.model, drawn(calibration, 5, 3), ignore="lm_head")
    prune_(checkpoint.model, Wanda(0.6), stats=stats, ignore="lm_head")
    got, expected = load(out).model.state_dict(), checkpoint.model.state_dict()
    for name, t in got.items():
        assert torch.equal(t, expected[name].to(torch.bfloat16).float()), name


def test_an_encoder(bert: Path, words: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    """Its head stays, and stays dense; quality is the likeness to the dense embeddings."""
    out, other = tmp_path / "out", tmp_path / "other.txt"
    other.write_text(text(6, seed=1))
    options = ["--method", "wanda", "--sparsity", "0.7", "--budget", "erk"]
    arguments = ["--out", str(out), *options, "--calibration", str(words), "--eval", str(other)]
    assert main(["prune", str(bert), *arguments]) == 0
    printed = capsys.readouterr().out
    dense, pruned = load(bert), load(out)
    assert type(pruned.model) is transformers.BertForMaskedLM
    cosines = []
    for line in other.read_text().splitlines():
        inputs = dense.tokenizer(line, return_tensors="pt")
        with torch.no_grad():
            a, b = (m.model.bert(**inputs).last_hidden_state.mean(1) for m in (dense, pruned))
        cosines.append(float(F.cosine_similarity(a, b)))
    assert f"cosine to dense: 1.000 before, {sum(cosines) / 6:.3f} after" in printed
    found = sparsities(out)
    # Tied to the embeddings, whose row of the padding word is zeros.
    assert found.pop("cls.predictions.decoder") == pytest.approx(1 / 96)
    assert len(set(found.values())) > 1
    assert "cls.predictions.transform.dense" in found


def test_perplexity(llama: Path, words: Path) -> None:
    """Against log-softmax, token by token, in float64."""
    checkpoint = load(llama)
    samples = samples_of("text", checkpoint, words.read_text(), 16)[:3]
    quality = Quality.of(checkpoint, samples)
    nats = []
    for sample in samples:
        with torch.no_grad():
            logits = checkpoint.model(**sample).logits[0].double()
        for i in range(15):
            row = logits[i]
            nats.append(float(row.logsumexp(0) - row[sample["input_ids"][0, i + 1]]))
    assert quality.name == "perplexity"
    assert quality.measure() == pytest.approx(math.exp(sum(nats) / 45), rel=1e-5)


@pytest.mark.parametrize(
    ("options", "expected"),
    [
        (["--pattern", "2:4"], {0.5}),
        (["--sparsity", "0.5", "--pattern", "4x4"], {0.5}),
        (["--sparsity", "0.5", "--scope", "row"], {0.5}),
        (["--sparsity", "0.25", "--pattern", "row"], {0.25}),
        (["--sparsity", "0.25", "--pattern", "column", "--ignore", "re:.*mlp", "lm_head"], {0.25, 0.0}),
    ],
    ids=str,
)
def test_patterns_without_a_text(
    options: list[str], expected: set[float], llama: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    out = tmp_path / "out"
    assert main(["prune", str(llama), "--out", str(out), "--method", "magnitude", *options]) == 0
    found = sparsities(out)
    assert found.pop("lm_head") == 0
    assert set(found.values()) == expected
    assert "perplexity" not in capsys.readouterr().out


def test_sequential(llama: Path, words: Path, tmp_path: Path) -> None:
    out = tmp_path / "out"
    options = ["--method", "wanda", "--sparsity", "0.5", "--length", "16", "--calibration", str(words)]
    assert main(["prune", str(llama), "--out", str(out), *options, "--sequential"]) == 0
    assert set(sparsities(out).values()) == {0.0, 0.5}
    assert main(["prune", str(llama), "--out", str(tmp_path / "owl"), *options, "--budget", "owl"]) == 0
    counts = sparsities(tmp_path / "owl")
    assert len(set(counts.values())) > 2


def test_bad_input_is_one_line_and_nothing_written(
    llama: Path,
    bert: Path,
    words: Path,
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    capsys: pytest.CaptureFixture[str],
) -> None:
    out, empty, short = tmp_path / "out", tmp_path / "empty.txt", tmp_path / "short.txt"
    empty.write_text(" \n")
    short.write_text("w1")
    binary = tmp_path / "binary"
    binary.write_bytes(b"\xff\xfe\x00")
    broken = tmp_path / "broken"
    broken.mkdir()
    (broken / "config.json").write_text("{")
    gone = shutil.copytree(llama, tmp_path / "gone")
    weights = safetensors.load_file(gone / "model.safetensors")
    del weights["model.norm.weight"]
    safetensors.save_file(weights, gone / "model.safetensors", metadata={"format": "pt"})
    half, given = ["--sparsity", "0.5", "--method", "wanda"], ["--calibration", str(words)]
    nm = ["--pattern", "2:4"]
    cases = [
        (tmp_path / "none", half, "model: expected a folder, got"),
        (tmp_path, half, "model: expected a Hugging Face model folder, got"),
        (broken, half, "model: expected a folder that transformers can load, got OSError"),
        (gone, half, "model: expected all weights of LlamaForCausalLM, got no 'model.norm.weight'"),
        (llama, half, "calibration: expected a text for wanda, got none"),
        (llama, [*half, "--calibration", str(empty)], "calibration: expected text, got the empty file"),
        (llama, [*half, "--calibration", str(short)], "calibration: expected a text of at least 2 tokens"),
        (llama, [*half, "--calibration", str(binary)], "calibration: expected a text file, got"),
        (llama, [*half, "--eval", str(tmp_path / "no")], "eval: expected a text file, got"),
        (llama, [*half, "--sparsity", "1.5"], "sparsity: expected a number in [0, 1), got 1.5"),
        (llama, ["--method", "wanda"], "sparsity: expected a fraction, got none"),
        (llama, ["--method", "wand", "--sparsity", "0.5"], "method: expected one of magnitude, "),
        (llama, [*half, "--budget", "all"], "budget: expected one of uniform, erk, owl, sens"),
        (llama, [*nm, "--budget", "erk"], "budget: expected uniform with NM(n=2, m=4), got 'erk'"),
        (llama, [*nm, "--sparsity", "0.5"], "sparsity: expected None with NM(n=2, m=4), got 0.5"),
        (llama, [*half, "--pattern", "5x7", *given], "model.layers.0.self_attn.q_proj.weight: expected a"),
        (bert, [*half, "--method", "taylor", *given], "method: expected one without gradients"),
    ]
    for folder, options, message in cases:
        assert main(["prune", str(folder), "--out", str(out), *options]) == 1, message
        err = capsys.readouterr().err
        assert f"error: {message}" in err
        assert not out.exists()
    full = tmp_path / "full"
    full.mkdir()
    (full / "precious").write_text("")
    assert main(["prune", str(llama), "--out", str(full), *half]) == 1
    assert "out: expected a new or an empty folder, got" in capsys.readouterr().err
    monkeypatch.setitem(sys.modules, "transformers", None)
    assert main(["prune", str(llama), "--out", str(out), *half, "--calibration", str(words)]) == 1
    assert "prune: expected the package transformers, got none (pip install" in capsys.readouterr().err


@pytest.mark.parametrize("pattern", ["2/4", "16", "0x4", "3:2", "diagonal"])
def test_bad_patterns_are_bad_usage(pattern: str, capsys: pytest.CaptureFixture[str]) -> None:
    with pytest.raises(SystemExit) as caught:
        main(["prune", "model", "--out", "out", "--pattern", pattern])
    assert caught.value.code == 2
    assert "argument --pattern: " in capsys.readouterr().err


def test_magnitude_global(llama: Path, tmp_path: Path) -> None:
    """Compared over all layers: the counts differ, and the total is that of prune_."""
    out = tmp_path / "out"
    options = ["--method", "magnitude", "--sparsity", "0.5", "--scope", "global"]
    assert main(["prune", str(llama), "--out", str(out), *options]) == 0
    model = load(llama).model
    report = prune_(model, Magnitude(0.5, scope="global"), ignore="lm_head")
    found = sparsities(out)
    assert {layer.fqn: found[layer.fqn] for layer in report.layers} == pytest.approx(
        {layer.fqn: layer.sparsity for layer in report.layers}
    )
