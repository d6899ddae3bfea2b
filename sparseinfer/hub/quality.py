"""Measures quality on a text: perplexity if the model predicts tokens, else similarity to the dense model."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor

from sparseinfer.hub.folder import Checkpoint
from sparseinfer.hub.text import Sample


@dataclass(frozen=True)
class Quality:
    """A quality measure and its name; `measure()` evaluates the model in its present state."""

    name: str
    measure: Callable[[], float]

    @classmethod
    def of(cls, checkpoint: Checkpoint, samples: Sequence[Sample]) -> Quality:
        """Perplexity of a model that predicts tokens, else mean cosine to the embeddings it computes now."""
        model: Any = checkpoint.model
        if checkpoint.predicts:
            return cls("perplexity", lambda: perplexity(model, samples))
        dense = embeddings(model, samples)
        return cls(
            "cosine to dense",
            lambda: float(F.cosine_similarity(embeddings(model, samples), dense).mean()),
        )


def token_loss(logits: Tensor, sample: Sample) -> Tensor:
    """Mean cross entropy, in nats, of what the model is to predict: the labels, where the sample has some, or
    each of its ids but the first; logits [1, tokens, words].
    """
    if "labels" in sample:
        return F.cross_entropy(logits[0].float(), sample["labels"][0])
    return F.cross_entropy(logits[0, :-1].float(), sample["input_ids"][0, 1:])


@torch.inference_mode()
def perplexity(model: Any, samples: Sequence[Sample]) -> float:
    """exp of the mean cross entropy of all labels, or all tokens that have one before them in a sample."""
    nats, tokens = 0.0, 0
    for sample in samples:
        count = sample["labels"].shape[1] if "labels" in sample else sample["input_ids"].shape[1] - 1
        nats += count * float(token_loss(model(**sample, use_cache=False).logits, sample))
        tokens += count
    # Of a tensor: infinity, where math.exp raises.
    return float(torch.tensor(nats / tokens, dtype=torch.float64).exp())


@torch.inference_mode()
def embeddings(model: Any, samples: Sequence[Sample]) -> Tensor:
    """[samples, hidden]: token means of the last hidden states (of the decoder, if any), without a head."""
    means = []
    for sample in samples:
        output = model.base_model(**sample, output_hidden_states=True)
        # A model with a head may be its own base, as T5ForQuestionAnswering is.
        last = output.get("last_hidden_state")
        means.append((output.decoder_hidden_states[-1] if last is None else last).mean(1))
    return torch.cat(means)
