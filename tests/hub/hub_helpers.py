"""What the tests of model folders share: tiny models of transformers, saved with a tokenizer, and text."""

from __future__ import annotations

from pathlib import Path

import pytest
import torch
from torch import nn

from sparseinfer.hub.folder import load

transformers = pytest.importorskip(
    "transformers", reason="transformers is not installed (pip install 'sparseinfer[demo]')"
)
tokenizers = pytest.importorskip("tokenizers")

WORDS = [f"w{i}" for i in range(90)]
SIZES = {
    "vocab_size": 96,
    "hidden_size": 32,
    "intermediate_size": 48,
    "num_hidden_layers": 2,
    "num_attention_heads": 4,
    "max_position_embeddings": 32,
}


def tokenizer(length: int = 32):
    """Of words "w0" to "w89", which have the ids from 2 on, for texts of so many tokens."""
    vocab = {word: i for i, word in enumerate(["[PAD]", "[UNK]", *WORDS])}
    words = tokenizers.Tokenizer(tokenizers.models.WordLevel(vocab, unk_token="[UNK]"))
    words.pre_tokenizer = tokenizers.pre_tokenizers.Whitespace()
    return transformers.PreTrainedTokenizerFast(
        tokenizer_object=words, pad_token="[PAD]", unk_token="[UNK]", model_max_length=length
    )


def text(lines: int, seed: int = 0) -> str:
    drawn = torch.randint(90, (lines, 20), generator=torch.Generator().manual_seed(seed)).tolist()
    return "\n".join(" ".join(WORDS[i] for i in line) for line in drawn)


def saved(model: nn.Module, folder: Path) -> Path:
    model.save_pretrained(folder)
    tokenizer().save_pretrained(folder)
    return folder


def sparsities(folder: Path) -> dict[str, float]:
    model = load(folder).model
    return {
        fqn: float((module.weight == 0).float().mean())
        for fqn, module in model.named_modules()
        if isinstance(module, nn.Linear)
    }
