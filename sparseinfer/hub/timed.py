"""A Hugging Face folder as a model of `sparseinfer bench --model`."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn

from sparseinfer.bench.models import Model
from sparseinfer.hub.folder import load

# As many tokens as the other models get that read text; fewer where the model takes no more.
_TOKENS = 128


def timed_model(folder: Path) -> Model:
    """The folder's model on random tokens, one call for all of them; an embedding of text or logits.

    Errors as of `folder.load`; ValueError too for an encoder-decoder.
    """
    checkpoint = load(folder)
    if checkpoint.has_decoder:
        raise ValueError("model: expected an encoder or a decoder, got an encoder-decoder")
    count = min(_TOKENS, checkpoint.max_length)
    network: Any = checkpoint.model

    def inputs(batch: int) -> dict[str, Tensor]:
        generator = torch.Generator().manual_seed(0)
        return {"input_ids": torch.randint(network.config.vocab_size, (batch, count), generator=generator)}

    def run(model: nn.Module, given: Any) -> Tensor:
        return next(iter(model(**given, **_keywords(checkpoint.is_causal)).values()))

    ignore = (checkpoint.head,) if checkpoint.head else ()
    return Model(lambda: checkpoint.model, inputs, run, ignore=ignore)


def _keywords(is_causal: bool) -> dict[str, bool]:
    return {"use_cache": False} if is_causal else {}
