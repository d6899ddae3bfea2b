"""How good a model is on a text: perplexity of a causal one, likeness to its dense self of an encoder."""

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
    """A figure by its name; `measure()` is that of the model as it is then."""

    name: str
    measure: Callable[[], float]

    @classmethod
    def of(cls, checkpoint: Checkpoint, samples: Sequence[Sample]) -> Quality:
        """Of a causal model its perplexity. Of an encoder the mean cosine to the embeddings it has now."""
        model: Any = checkpoint.model
        if checkpoint.is_causal:
            return cls("perplexity", lambda: perplexity(model, samples))
        dense = embeddings(model, samples)
        return cls(
            "cosine to dense",
            lambda: float(F.cosine_similarity(embeddings(model, samples), dense).mean()),
        )


def next_token_loss(logits: Tensor, ids: Tensor) -> Tensor:
    """Mean cross entropy, in nats, of each id but the first: logits [1, tokens, words], ids [1, tokens]."""
    return F.cross_entropy(logits[0, :-1].float(), ids[0, 1:])


@torch.inference_mode()
def perplexity(model: Any, samples: Sequence[Sample]) -> float:
    """exp of the mean cross entropy of all tokens that have one before them in their sample."""
    nats, tokens = 0.0, 0
    for sample in samples:
        ids = sample["input_ids"]
        count = ids.shape[1] - 1
        nats += count * float(next_token_loss(model(**sample, use_cache=False).logits, ids))
        tokens += count
    # Of a tensor: infinity, where math.exp raises.
    return float(torch.tensor(nats / tokens, dtype=torch.float64).exp())


@torch.inference_mode()
def embeddings(model: Any, samples: Sequence[Sample]) -> Tensor:
    """[samples, hidden]: the last hidden states of the model without its head, averaged over the tokens."""
    return torch.cat([model.base_model(**sample).last_hidden_state.mean(1) for sample in samples])
