"""A predictor of sentence embeddings, as docs/engines.md shows it, and sentences for it."""

from __future__ import annotations

import os
import random
from pathlib import Path
from typing import Any

import numpy as np
import torch

import sparseinfer as si
from sparseinfer.bench.models import minilm_folder
from sparseinfer.demo import corpus, minilm

# Embeddings have length 1; padding changes how many tokens a kernel is given and so the order of its sums.
TOLERANCE = 1e-5


class Encoder:
    """Texts -> embeddings of length 1: the mean of the hidden states of a text's tokens."""

    def __init__(self, folder: str) -> None:
        os.environ["HF_HUB_OFFLINE"] = "1"
        from transformers import AutoTokenizer

        self.model = si.load(folder)
        self.tokenizer = AutoTokenizer.from_pretrained(folder)

    def __call__(self, texts: list[str]) -> np.ndarray:
        if not all(isinstance(text, str) for text in texts):
            raise TypeError("texts: expected strings, got another type")
        batch = self.tokenizer(texts, padding=True, truncation=True, max_length=256, return_tensors="pt")
        with torch.inference_mode():
            hidden = self.model(**batch).last_hidden_state
            mask = batch["attention_mask"].unsqueeze(-1)
            means = (hidden * mask).sum(1) / mask.sum(1)
            return torch.nn.functional.normalize(means).numpy()


def save_encoder(folder: Path, sparsity: float) -> None:
    from transformers import AutoTokenizer

    model: Any = minilm.load_model()
    si.prune_(model, si.Magnitude(sparsity), targets=minilm.LAYERS, keep_masks=False)
    si.save_pretrained(si.convert(model, tokens=(16, 256), measure=False), folder)
    AutoTokenizer.from_pretrained(minilm_folder("demo")).save_pretrained(folder)


def sentences(count: int, seed: int = 0) -> list[str]:
    """Different sentences of different lengths."""
    words = random.Random(seed)
    drawn = corpus.sentences(count, seed)
    return [" ".join(text.split()[: words.randint(3, 40)]) + f" {i}" for i, text in enumerate(drawn)]
