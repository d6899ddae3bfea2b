"""Text as what a model takes: samples of one sequence each, without padding."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import TypeAlias

import torch
from torch import Tensor

from sparseinfer.hub.folder import Checkpoint

# Keyword arguments of the model: input_ids [1, tokens] int64, and what else its tokenizer makes.
Sample: TypeAlias = "dict[str, Tensor]"


def read(name: str, path: Path) -> str:
    """The file's text. ValueError, with the argument's name, if it has none."""
    try:
        text = path.read_text(encoding="utf-8")
    except (OSError, UnicodeDecodeError) as error:
        raise ValueError(f"{name}: expected a text file, got {str(path)!r} ({error})") from error
    if not text.strip():
        raise ValueError(f"{name}: expected text, got the empty file {str(path)!r}")
    return text


def samples_of(name: str, checkpoint: Checkpoint, text: str, length: int) -> list[Sample]:
    """All of the text: for a causal model windows of `length` tokens, for an encoder its lines.

    Both are cut to what the model takes. The last window is dropped if it is shorter than the others.
    ValueError, with the argument's name, if a causal model finds no token to predict.
    """
    length = min(length, checkpoint.max_length)
    if not checkpoint.is_causal:
        lines = [line for line in text.splitlines() if line.strip()]
        encode = checkpoint.tokenizer
        return [dict(encode(line, truncation=True, max_length=length, return_tensors="pt")) for line in lines]
    ids = torch.tensor(checkpoint.tokenizer(text)["input_ids"])
    if len(ids) < 2:
        raise ValueError(f"{name}: expected a text of at least 2 tokens, got {len(ids)}")
    windows = ids.split(length)
    return [{"input_ids": window[None]} for window in windows if len(window) == len(windows[0])]


def held_out(samples: Sequence[Sample]) -> tuple[list[Sample], list[Sample]]:
    """The samples but for the last fifth, and that fifth. ValueError if there is only one."""
    if len(samples) < 2:
        hint = "give more text, a smaller length, or another text to evaluate on"
        raise ValueError(f"calibration: expected at least 2 samples, one to evaluate on, got 1 ({hint})")
    count = max(1, len(samples) // 5)
    return list(samples[:-count]), list(samples[-count:])


def drawn(samples: Sequence[Sample], count: int, seed: int) -> list[Sample]:
    """So many of them, or all if there are fewer, at random, in the order of the text."""
    order = torch.randperm(len(samples), generator=torch.Generator().manual_seed(seed))
    return [samples[i] for i in sorted(order[:count].tolist())]
