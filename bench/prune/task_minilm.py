"""Sentence embeddings of all-MiniLM-L6-v2: the 36 linear layers of its encoder are pruned."""

from __future__ import annotations

import torch
import torch.nn.functional as F
from task import Task
from torch import Tensor, nn

from sparseinfer.demo import minilm
from sparseinfer.demo.experiment import sentences

# As many as the demo trains with. Chosen by the demo.
_SENTENCES = 40_000
CALIBRATION = 20


def task() -> Task:
    model = minilm.load_model()
    batch = minilm.tokenize(sentences())
    with torch.no_grad():
        dense = minilm.embed(model, batch)
    return Task(
        model=model,
        calibration=lambda seed: minilm.training_batches(_SENTENCES, seed)[:CALIBRATION],
        measure=lambda model: cosine(model, batch, dense),
        metric="cosine to the embeddings of the dense model, mean of 32 sentences",
        calibration_text=f"{CALIBRATION} x 32 sentences of the demo's corpus, drawn by the seed",
        test_text="the demo's 32 sentences",
        ignore=("re:(?!encoder)",),
    )


@torch.no_grad()
def cosine(model: nn.Module, batch: minilm.Batch, dense: Tensor) -> float:
    return float(F.cosine_similarity(minilm.embed(model, batch), dense).mean())


def recovered(model: nn.Module, steps: int) -> nn.Module:
    """A copy, pruned to 0.8 and trained as the demo does it, for so many steps without a limit of time."""
    texts = minilm.training_batches(_SENTENCES)
    pruned = minilm.pruned(model, 0.8, minilm.calibration(model, texts))
    minilm.recover(pruned, model, texts, steps=steps, seconds=None)
    return pruned
