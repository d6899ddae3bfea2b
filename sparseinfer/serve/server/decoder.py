"""Generates for many requests at once: a step adds a token to all that run, and new ones join in between.

A prompt is computed in pieces, so that a long one does not hold up the others for long. Steps of one token
are compiled: their tensors have the same sizes for any request, except the number of rows and how far back
they look, which the compiled code takes as they come.
"""

from __future__ import annotations

from collections import deque
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor

from sparseinfer.serve.server.messages import Answer, Generate, Tokens
from sparseinfer.serve.server.slots import Slots

# Chosen, not measured: tokens of prompts that are computed between two steps; `convert` plans for as many.
_PIECE = 128
# How far steps look back is a multiple of this: few different sizes of masks.
_STRETCH = 64


@dataclass
class _Running:
    """A generation. ids: the prompt and what came after; done: how many of them its slot holds."""

    uid: str
    request: Generate
    generator: torch.Generator
    ids: list[int]
    done: int = 0


class Decoder:
    """Calls of `step` generate for the requests that `add` took. Everything runs in one thread, in
    torch.inference_mode.
    """

    def __init__(self, model: Any, slots: int, max_length: int, *, compiled: bool) -> None:
        """model: a causal model of transformers, in eval mode, that `check` accepts.
        slots: requests that run at the same time. max_length: tokens of each, with its prompt.
        """
        self._model, self._slots, self._max_length = model, slots, max_length
        generation = getattr(model, "generation_config", None) or model.config
        ends = generation.eos_token_id
        self._ends = set(ends) if isinstance(ends, list) else {ends}
        # A stretch more than steps look back: a graph that may see all of a slot is one of that size alone.
        length = _stretched(max_length) + _STRETCH
        # The last is for a prompt on its way.
        self._held = Slots(_head_shapes(model), slots + 1, length, model.dtype)
        self._next = torch.compile(self._first_slots, fullgraph=True) if compiled else self._first_slots
        self._waiting: deque[_Running] = deque()
        self._joining: _Running | None = None
        self._running: list[_Running] = []

    def add(self, uid: str, request: Generate) -> None:
        """ValueError: more tokens than `max_length`."""
        if not request.ids or len(request.ids) + request.max_tokens > self._max_length:
            got = f"{len(request.ids)} and {request.max_tokens} more"
            raise ValueError(f"ids: expected 1 to {self._max_length} tokens with those to come, got {got}")
        generator = torch.Generator()
        if request.seed is None:
            generator.seed()
        else:
            generator.manual_seed(request.seed)
        self._waiting.append(_Running(uid, request, generator, list(request.ids)))

    def cancel(self, uid: str) -> None:
        self._waiting = deque(r for r in self._waiting if r.uid != uid)
        if self._joining is not None and self._joining.uid == uid:
            self._joining = None
        for running in [r for r in self._running if r.uid == uid]:
            self._free(running)

    def uids(self) -> list[str]:
        """All requests that are not answered."""
        joining = [] if self._joining is None else [self._joining]
        return [r.uid for r in (*self._running, *joining, *self._waiting)]

    def load(self) -> tuple[int, int]:
        """Requests that run, and that wait."""
        return len(self._running), len(self._waiting) + (self._joining is not None)

    def step(self) -> tuple[list[tuple[str, Answer]], int]:
        """Prompts for a piece, and one more token of each that runs: what is new, and tokens computed."""
        rows = list(self._running)
        logits = [] if not rows else list(self._decode(rows))
        prompts = 0
        while prompts < _PIECE and (joining := self._join()) is not None:
            before = joining.done
            last = self._prefill(joining, _PIECE - prompts)
            prompts += joining.done - before
            if joining.done == len(joining.ids):
                self._held.move(self._slots, len(self._running), joining.done)
                self._running.append(joining)
                self._joining = None
                rows.append(joining)
                logits.append(last)
        pairs = zip(rows, logits, strict=True)
        new: list[tuple[str, Answer]] = [(r.uid, self._advance(r, row)) for r, row in pairs]
        return new, len(rows) + prompts

    def warm_up(self) -> None:
        """Compiles what steps of one row and of more need. Errors of the compiler come through."""
        any_request = Generate([0], 1, 0.0, 1.0, 0)
        for rows in {1, min(2, self._slots)}:
            self._decode([_Running("", any_request, torch.Generator(), [0]) for _ in range(rows)])

    def _join(self) -> _Running | None:
        """The next prompt to compute, if there is one and a slot for it."""
        if self._joining is None and self._waiting and len(self._running) < self._slots:
            self._joining = self._waiting.popleft()
        return self._joining

    def _decode(self, rows: Sequence[_Running]) -> Tensor:
        """Logits [rows, vocabulary] after the last token of each, which are those of the first slots."""
        ids = torch.tensor([[r.ids[-1]] for r in rows])
        positions = torch.tensor([[r.done] for r in rows])
        seen = _stretched(1 + max(r.done for r in rows))
        mask = (torch.arange(seen) <= positions)[:, None, None]
        if self._next is not self._first_slots:
            torch._dynamo.mark_dynamic(mask, 3)
            for t in (ids, positions, mask) if len(rows) > 1 else ():
                torch._dynamo.mark_dynamic(t, 0)
        logits = self._next(ids, positions, mask)
        for r in rows:
            r.done += 1
        return logits

    def _first_slots(self, ids: Tensor, positions: Tensor, mask: Tensor) -> Tensor:
        return self._call(0, ids, positions, mask)

    def _prefill(self, joining: _Running, tokens: int) -> Tensor:
        """Logits [vocabulary] after the next `tokens` of a prompt, or all that are left."""
        first, last = joining.done, min(joining.done + tokens, len(joining.ids))
        positions = torch.arange(first, last)[None]
        mask = torch.arange(last) <= positions[0, :, None]
        logits = self._call(self._slots, torch.tensor([joining.ids[first:last]]), positions, mask[None, None])
        joining.done = last
        return logits[0]

    def _call(self, slot: int, ids: Tensor, positions: Tensor, mask: Tensor) -> Tensor:
        """Logits [rows, vocabulary] after the last of ids [rows, tokens], in slots from `slot` on."""
        cache = self._held.cache(slot, ids.shape[0], positions, mask.shape[-1])
        logits: Tensor = self._model(
            input_ids=ids,
            attention_mask=mask,
            position_ids=positions,
            past_key_values=cache,
            use_cache=True,
            logits_to_keep=1,
        ).logits
        return logits[:, -1]

    def _advance(self, running: _Running, logits: Tensor) -> Tokens:
        token = _draw(logits, running.request, running.generator)
        if token in self._ends:
            self._free(running)
            return Tokens([], "stop")
        running.ids.append(token)
        full = len(running.ids) - len(running.request.ids) == running.request.max_tokens
        if full:
            self._free(running)
        return Tokens([token], "length" if full else None)

    def _free(self, running: _Running) -> None:
        """The last that runs moves into the slot."""
        slot, last = self._running.index(running), self._running.pop()
        if last is not running:
            self._held.move(len(self._running), slot, last.done)
            self._running[slot] = last


def _draw(logits: Tensor, request: Generate, generator: torch.Generator) -> int:
    if request.temperature == 0:
        return int(logits.argmax())
    probabilities, order = torch.softmax(logits.float() / request.temperature, 0).sort(descending=True)
    # Those that come before `top_p` is reached, and the one that reaches it.
    probabilities[probabilities.cumsum(0) - probabilities >= request.top_p] = 0
    return int(order[torch.multinomial(probabilities, 1, generator=generator)])


def _stretched(seen: int) -> int:
    return -(-seen // _STRETCH) * _STRETCH


def _head_shapes(model: Any) -> list[tuple[int, int, int]]:
    """For each layer the number of heads of keys, and the sizes of a key and a value."""
    cache = model(input_ids=torch.zeros(1, 1, dtype=torch.int64), use_cache=True).past_key_values
    return [(layer.keys.shape[1], layer.keys.shape[3], layer.values.shape[3]) for layer in cache.layers]


def check(model: Any, max_length: int) -> None:
    """ValueError unless the model computes with our slots what it does without.

    A short text shows it; a window, which changes nothing there, is refused where texts can be longer.
    """
    window = getattr(model.config, "sliding_window", None) or max_length
    kinds = set(getattr(model.config, "layer_types", None) or ())
    if kinds - {"full_attention", "sliding_attention"} or window < max_length:
        raise ValueError(_refusal(model, f"window {window}, kinds {', '.join(kinds) or 'unknown'}"))
    ids = [i % model.config.vocab_size for i in (3, 1, 4, 1, 5)]
    expected = model(input_ids=torch.tensor([ids])).logits[0, -1].float()
    try:
        off = (_with_slots(model, ids) - expected).abs().max()
    except Exception as error:
        raise ValueError(_refusal(model, f"{type(error).__name__}: {error}")) from error
    # Sums of as many products as a token is wide, in another order; a wrong position or mask is far off.
    if not off <= 64 * torch.finfo(model.dtype).eps * expected.abs().max():
        raise ValueError(_refusal(model, f"with keys at given positions its results are off by {off:.3g}"))


def _with_slots(model: Any, ids: list[int]) -> Tensor:
    """Logits [2, vocabulary] after ids, in two slots, the last token in a step of its own."""
    decoder = Decoder(model, 2, _STRETCH, compiled=False)
    request = Generate(ids[:-1], 1, 0.0, 1.0, 0)
    rows = [_Running(str(slot), request, torch.Generator(), ids[:-1]) for slot in range(2)]
    for slot, row in enumerate(rows):
        decoder._prefill(row, _PIECE)
        decoder._held.move(2, slot, row.done)
        row.ids.append(ids[-1])
    return decoder._decode(rows).float()


def _refusal(model: Any, reason: str) -> str:
    name = type(model).__name__
    hint = "vLLM and Ray serve it"
    return f"model: expected a decoder whose tokens see all before them, got {name}: {reason} ({hint})"
