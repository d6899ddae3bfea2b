"""Folders of models with an encoder and a decoder, pruned by the command line."""

from __future__ import annotations

import math
from pathlib import Path

import pytest
import torch
import torch.nn.functional as F
from hub_helpers import SIZES, saved, sparsities, transformers

from sparseinfer import Magnitude, prune_
from sparseinfer.cli import main
from sparseinfer.hub.folder import load

SEQ2SEQ = {
    "t5": lambda: transformers.T5ForConditionalGeneration(
        transformers.T5Config(
            vocab_size=96, d_model=32, d_kv=8, d_ff=48, num_layers=2, num_heads=4, decoder_start_token_id=0
        )
    ),
    "t5-without-a-start": lambda: transformers.T5ForConditionalGeneration(
        transformers.T5Config(vocab_size=96, d_model=32, d_kv=8, d_ff=48, num_layers=2, num_heads=4)
    ),
    "bart": lambda: transformers.BartForConditionalGeneration(BART()),
    "pair": lambda: transformers.EncoderDecoderModel(
        transformers.EncoderDecoderConfig.from_encoder_decoder_configs(
            transformers.BertConfig(**SIZES),
            transformers.BertConfig(**SIZES),
            decoder_start_token_id=0,
            pad_token_id=0,
            architectures=["EncoderDecoderModel"],
        )
    ),
}
HEADLESS = {
    "t5": lambda: transformers.T5Model(
        transformers.T5Config(vocab_size=96, d_model=32, d_kv=8, d_ff=48, num_layers=2, num_heads=4)
    ),
    "bart": lambda: transformers.BartModel(BART()),
    "t5-answers": lambda: transformers.T5ForQuestionAnswering(
        transformers.T5Config(vocab_size=96, d_model=32, d_kv=8, d_ff=48, num_layers=2, num_heads=4)
    ),
}


def BART():
    halves = {f"{half}_{name}": n for half in ("encoder", "decoder") for name, n in BART_HALF.items()}
    return transformers.BartConfig(
        vocab_size=96,
        d_model=32,
        max_position_embeddings=32,
        decoder_start_token_id=2,
        init_std=0.5,  # so that layers matter beside the embeddings
        **halves,
    )


BART_HALF = {"layers": 2, "attention_heads": 4, "ffn_dim": 48}


def saved_folder(make, folder: Path) -> Path:
    torch.manual_seed(0)
    return saved(make(), folder)


@pytest.mark.parametrize("method", ["magnitude", "taylor", "wanda", "sparsegpt"])
@pytest.mark.parametrize("kind", SEQ2SEQ)
@pytest.mark.filterwarnings("ignore:Version v4.12.0 introduces:FutureWarning")
@pytest.mark.filterwarnings("ignore:stats. expected at least as many tokens:UserWarning")
def test_an_encoder_with_a_decoder(
    kind: str, method: str, words: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    """Quality is the model's own loss of the second half of each window, by the first."""
    dense, out = saved_folder(SEQ2SEQ[kind], tmp_path / kind), tmp_path / "out"
    options = ["--method", method, "--sparsity", "0.5", "--length", "16", "--samples", "6"]
    assert main(["prune", str(dense), "--out", str(out), *options, "--calibration", str(words)]) == 0
    printed = capsys.readouterr().out
    before, after = load(dense), load(out)
    if kind.endswith("start"):  # all T5 begin with the padding word
        for checkpoint in (before, after):
            assert not hasattr(checkpoint.model.config, "decoder_start_token_id")
            checkpoint.model.config.decoder_start_token_id = 0
    assert type(after.model) is type(before.model)
    found = sparsities(out)
    # As dense as it was: its row of the padding word may be zeros.
    assert found.pop(before.head) == sparsities(dense)[before.head]
    assert set(found.values()) == {0.5}
    perplexities = []
    for checkpoint in (before, after):
        losses = []
        ids = torch.tensor(checkpoint.tokenizer(words.read_text())["input_ids"]).split(16)
        # 400 words are 25 windows, the last five to evaluate on.
        for window in ids[20:]:
            with torch.no_grad():
                outputs = checkpoint.model(input_ids=window[None, :8], labels=window[None, 8:])
            losses.append(float(outputs.loss))
        perplexities.append(math.exp(sum(losses) / len(losses)))
    assert f"perplexity: {perplexities[0]:.3f} before, {perplexities[1]:.3f} after" in printed
    assert perplexities[0] != perplexities[1]
    assert "not looked at: " in printed
    assert transformers.AutoTokenizer.from_pretrained(out)("w3 w5")["input_ids"] == [5, 7]


@pytest.mark.parametrize("kind", HEADLESS)
def test_a_decoder_without_words(
    kind: str, words: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    dense, out = saved_folder(HEADLESS[kind], tmp_path / kind), tmp_path / "out"
    options = ["--method", "wanda", "--sparsity", "0.7", "--calibration", str(words)]
    assert main(["prune", str(dense), "--out", str(out), *options]) == 0
    cosines = []
    for line in words.read_text().splitlines()[16:]:
        ids = load(dense).tokenizer(line, return_tensors="pt")["input_ids"]
        with torch.no_grad():
            a, b = (
                load(folder).model(input_ids=ids, decoder_input_ids=ids, output_hidden_states=True)
                for folder in (dense, out)
            )
        cosines.append(F.cosine_similarity(*(o.decoder_hidden_states[-1].mean(1) for o in (a, b))))
    expected = float(torch.cat(cosines).mean())
    assert expected < 0.999
    assert f"cosine to dense: 1.000 before, {expected:.3f} after" in capsys.readouterr().out
    report = prune_(load(dense).model, Magnitude(0.7, scope="row"))
    assert sparsities(out) == {layer.fqn: pytest.approx(layer.sparsity) for layer in report.layers}


def test_a_window_of_one_token_has_nothing_to_predict(
    words: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    dense, out = saved_folder(SEQ2SEQ["bart"], tmp_path / "bart"), tmp_path / "out"
    options = ["--method", "wanda", "--sparsity", "0.5", "--length", "1", "--calibration", str(words)]
    assert main(["prune", str(dense), "--out", str(out), *options]) == 1
    assert "length: expected at least 2 tokens, one to read and one to predict" in capsys.readouterr().err
    assert not out.exists()
