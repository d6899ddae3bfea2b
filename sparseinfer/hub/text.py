"""Tokenizes a text into samples for a model: one sequence each, without padding."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import TypeAlias

import torch
from torch import Tensor

from sparseinfer.hub.folder import Checkpoint

# Keyword arguments of the model: input_ids [1, tokens] int64, and what else its tokenizer makes; those of a
# decoder, or labels [1, tokens], which it is to predict.
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
    """The whole text as samples: windows of `length` tokens if the model predicts tokens, else lines.

    A causal model predicts each token of a window from those before it. An encoder reads the first half of
    a window, and its decoder predicts the other one, the labels. A decoder without a head is given the line
    that its encoder reads. All are cut to what the model takes. The last window is dropped if it is shorter
    than the others. ValueError, with the argument's name, if there is no token to predict.
    """
    length = min(length, checkpoint.max_length)
    if not checkpoint.predicts:
        lines = [line for line in text.splitlines() if line.strip()]
        encode = checkpoint.tokenizer
        samples = [
            dict(encode(line, truncation=True, max_length=length, return_tensors="pt")) for line in lines
        ]
        return [_decoded(sample) for sample in samples] if checkpoint.has_decoder else samples
    # What ends a text of its own would stand in the middle of one here.
    special = {"add_special_tokens": False} if checkpoint.is_seq2seq else {}
    ids = torch.tensor(checkpoint.tokenizer(text, **special)["input_ids"])
    if len(ids) < 2:
        raise ValueError(f"{name}: expected a text of at least 2 tokens, got {len(ids)}")
    windows = [window for window in ids.split(length) if len(window) == min(length, len(ids))]
    if checkpoint.is_causal:
        return [{"input_ids": window[None]} for window in windows]
    half = min(length, len(ids)) // 2
    if not half:
        raise ValueError("length: expected at least 2 tokens, one to read and one to predict, got 1")
    samples = [{"input_ids": window[None, :half], "labels": window[None, half:]} for window in windows]
    start = checkpoint.start_of_labels(samples[0]["labels"])
    return samples if start is None else [_started(sample, start) for sample in samples]


def _started(sample: Sample, start: int) -> Sample:
    """With what the decoder reads: `start`, and then all labels but the last."""
    shifted = sample["labels"].roll(1, dims=1)
    shifted[:, 0] = start
    return {**sample, "decoder_input_ids": shifted}


def _decoded(sample: Sample) -> Sample:
    """With a decoder that reads what the encoder does."""
    return {**sample, "decoder_input_ids": sample["input_ids"]}


def any_sample(checkpoint: Checkpoint) -> Sample:
    """A sample of a few ids, to run the model with."""
    ids = torch.arange(1, 9)[None]
    if checkpoint.is_seq2seq:
        return {"input_ids": ids, "decoder_input_ids": ids}
    return _decoded({"input_ids": ids}) if checkpoint.has_decoder else {"input_ids": ids}


def held_out(samples: Sequence[Sample]) -> tuple[list[Sample], list[Sample]]:
    """The samples without the last fifth, and that fifth. ValueError if there is only one sample."""
    if len(samples) < 2:
        hint = "give more text, a smaller length, or another text to evaluate on"
        raise ValueError(f"calibration: expected at least 2 samples, one to evaluate on, got 1 ({hint})")
    count = max(1, len(samples) // 5)
    return list(samples[:-count]), list(samples[-count:])


def drawn(samples: Sequence[Sample], count: int, seed: int) -> list[Sample]:
    """A random choice of `count` samples, or all if there are fewer, in the order of the text."""
    order = torch.randperm(len(samples), generator=torch.Generator().manual_seed(seed))
    return [samples[i] for i in sorted(order[:count].tolist())]
