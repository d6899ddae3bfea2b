"""Turns texts into vectors, those of many requests in one call of the model."""

from __future__ import annotations

import json
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from sparseinfer.ops.plan import parse_plan
from sparseinfer.serve.server.messages import Answer, Embed, Vectors

# Tokens of one call where no layer is planned for a number of them. Chosen, not measured.
_TOKENS = 512


@dataclass
class _Text:
    """One of the texts of a request, which is done when `vector` is there."""

    uid: str
    ids: list[int]
    vector: Tensor | None = None


class Encoder:
    """Calls of `step` compute for the requests that `add` took. Everything runs in one thread, in
    torch.inference_mode.
    """

    def __init__(
        self, model: Any, pool: Callable[[Tensor, Tensor], Tensor], *, texts: int, tokens: int
    ) -> None:
        """model: an encoder of transformers in eval mode. texts, tokens: of one call, at most; one text may
        have more tokens.
        pool: hidden states [texts, tokens, size] and mask [texts, tokens] -> vectors [texts, size]
        """
        self._model, self._pool, self._texts, self._tokens = model, pool, texts, tokens
        self._requests: dict[str, list[_Text]] = {}
        self._waiting: list[_Text] = []

    def add(self, uid: str, request: Embed) -> None:
        self._requests[uid] = [_Text(uid, ids) for ids in request.texts]
        self._waiting += self._requests[uid]

    def cancel(self, uid: str) -> None:
        self._requests.pop(uid, None)
        self._waiting = [text for text in self._waiting if text.uid != uid]

    def uids(self) -> list[str]:
        """All requests that are not answered."""
        return list(self._requests)

    def load(self) -> tuple[int, int]:
        """Requests that run, and that wait."""
        return 0, len(self._requests)

    def step(self) -> tuple[list[tuple[str, Answer]], int]:
        """One call of the model: the requests that are complete now, and tokens computed."""
        batch = self._take()
        if not batch:
            return [], 0
        longest = max(len(text.ids) for text in batch)
        ids = torch.zeros(len(batch), longest, dtype=torch.int64)
        mask = torch.zeros_like(ids)
        for row, text in enumerate(batch):
            ids[row, : len(text.ids)] = torch.tensor(text.ids)
            mask[row, : len(text.ids)] = 1
        vectors = self._pool(self._model(input_ids=ids, attention_mask=mask)[0], mask)
        for text, vector in zip(batch, vectors, strict=True):
            text.vector = vector
        new: list[tuple[str, Answer]] = []
        for uid in dict.fromkeys(text.uid for text in batch):
            done = [text.vector for text in self._requests[uid] if text.vector is not None]
            if len(done) == len(self._requests[uid]):
                del self._requests[uid]
                new.append((uid, Vectors(torch.stack(done).float().numpy())))
        return new, ids.numel()

    def _take(self) -> list[_Text]:
        """The text that waits longest, with those of nearest length: little is padding, nobody starves."""
        if not self._waiting:
            return []
        first = self._waiting[0]
        nearest = sorted(self._waiting, key=lambda text: abs(len(text.ids) - len(first.ids)))
        batch, longest = [first], len(first.ids)
        for text in nearest:
            longest = max(longest, len(text.ids))
            if len(batch) == self._texts or longest * (len(batch) + 1) > self._tokens:
                break
            if text is not first:
                batch.append(text)
        taken = {id(text) for text in batch}
        self._waiting = [text for text in self._waiting if id(text) not in taken]
        return batch


def planned_tokens(model: torch.nn.Module) -> int:
    """Tokens of one call: where the last bucket of the sparse layers' plans begins, times four, so that its
    kernel, which is for many tokens, has enough of them; a call of more is not faster for each.
    """
    limits = [
        bucket.max_tokens
        for module in model.modules()
        if isinstance(plan := getattr(module, "plan", None), str)
        for bucket in parse_plan(plan)
        if bucket.max_tokens is not None
    ]
    return max(4 * max(limits, default=0), _TOKENS)


def pooling(folder: Path) -> Callable[[Tensor, Tensor], Tensor]:
    """How hidden states become a vector, as a folder of sentence-transformers says: the mean of all tokens or
    the first token, normalized or not; by default the normalized mean. ValueError: another way.
    """
    file = folder / "modules.json"
    listed = json.loads(file.read_text(encoding="utf-8")) if file.is_file() else []
    kinds = [str(module["type"]).rpartition(".")[2] for module in listed] or ["Pooling", "Normalize"]
    if others := set(kinds) - {"Transformer", "Pooling", "Normalize"}:
        raise ValueError(
            f"{file}: expected Transformer, Pooling and Normalize, got {', '.join(sorted(others))}"
        )
    ways = {"pooling_mode_mean_tokens": True}
    for module in listed:
        if str(module["type"]).endswith("Pooling"):
            file = folder / module["path"] / "config.json"
            ways = json.loads(file.read_text(encoding="utf-8"))
    used = [name for name, on in ways.items() if name.startswith("pooling_mode_") and on]
    if used not in (["pooling_mode_mean_tokens"], ["pooling_mode_cls_token"]):
        raise ValueError(f"{file}: expected mean_tokens or cls_token, got {', '.join(used)}")
    first, normalized = used == ["pooling_mode_cls_token"], "Normalize" in kinds

    def pool(hidden: Tensor, mask: Tensor) -> Tensor:
        weights = mask.unsqueeze(2).to(hidden.dtype)
        vectors = hidden[:, 0] if first else (hidden * weights).sum(1) / weights.sum(1)
        return torch.nn.functional.normalize(vectors, dim=1) if normalized else vectors

    return pool
