"""Greedy decode of language models with a cache of fixed size, each step one graph of torch.compile."""

from __future__ import annotations

import copy
from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor, nn

from sparseinfer import _packages


class CompiledDecode:
    """Generates `count` tokens after prompts [batch, length] by a causal model of transformers.

    The prompt is run eagerly; every step after it is one graph, without breaks, for these shapes alone. The
    first call compiles. Weights are constants of the graph, so that torch may lay them out for oneDNN.
    """

    def __init__(self, model: nn.Module, count: int) -> None:
        self._model, self._count = model, count
        self._caches: dict[tuple[int, ...], Any] = {}
        self._step: Callable[..., Tensor] = torch.compile(
            self._logits, fullgraph=True, dynamic=False, options={"freezing": True}
        )

    def __call__(self, ids: Tensor) -> Tensor:
        """The tokens [batch, count] of highest logits."""
        return self._run(ids, None)[0]

    def logits(self, ids: Tensor, forced: Tensor) -> Tensor:
        """The logits [batch, count, vocabulary] of each step if the tokens before it are those `forced`."""
        return torch.stack(self._run(ids, forced)[1], 1)

    def _run(self, ids: Tensor, forced: Tensor | None) -> tuple[Tensor, list[Tensor]]:
        cache = self._cache(ids)
        positions = torch.arange(ids.shape[1])[None]
        logits = [self._logits(ids, positions, cache)]
        tokens = [logits[0].argmax(-1) if forced is None else forced[:, 0]]
        for i in range(1, self._count):
            at = torch.tensor([[ids.shape[1] + i - 1]])
            step = self._step(tokens[-1][:, None], at, cache)
            logits.append(step if forced is None else step.clone())
            tokens.append(step.argmax(-1) if forced is None else forced[:, i])
        return torch.stack(tokens, 1), logits

    def _cache(self, ids: Tensor) -> Any:
        transformers = _packages.transformers("model", "models")
        if tuple(ids.shape) not in self._caches:
            length, config = ids.shape[1] + self._count, self._model.config
            self._caches[tuple(ids.shape)] = transformers.StaticCache(config=config, max_cache_len=length)
        cache = self._caches[tuple(ids.shape)]
        cache.reset()
        return cache

    def _logits(self, ids: Tensor, positions: Tensor, cache: Any) -> Tensor:
        got = self._model(input_ids=ids, position_ids=positions, past_key_values=cache, use_cache=True)
        last: Tensor = got.logits[:, -1]
        return last


@dataclass(frozen=True)
class LogitErrors:
    """‖logits − those of the same weights in float32‖ / ‖those‖ over all steps, with the same tokens before
    each: of the converted model, compiled, and of the dense one, eager, in its own dtype."""

    converted: float
    dense: float


def logit_errors(decode: CompiledDecode, dense: nn.Module, ids: Tensor, forced: Tensor) -> LogitErrors:
    """Compares a converted model with the dense one of the same weights, for tokens that the dense one chose.

    Where tokens differ although both errors are alike, the two highest logits were nearer than that.
    """
    given = torch.cat([ids, forced[:, :-1]], 1)

    def all_logits(model: nn.Module) -> Tensor:
        logits: Tensor = model(input_ids=given, use_cache=False).logits
        return logits[:, ids.shape[1] - 1 :].float()

    reference = all_logits(copy.deepcopy(dense).float())
    norm = reference.norm()
    got = (decode.logits(ids, forced).float(), all_logits(dense))
    return LogitErrors(*(float((logits - reference).norm() / norm) for logits in got))
