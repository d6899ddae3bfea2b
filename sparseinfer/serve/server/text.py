"""Text to ids and back, in the server's process."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import Any

from sparseinfer import _packages

# What a tokenizer writes for bytes that are no character yet.
_INCOMPLETE = "\ufffd"
# Tokens before the next one that its text can depend on, as a space between words does. Chosen, not measured.
_CONTEXT = 8


class Text:
    """The tokenizer of a model folder. ValueError: there is none that transformers can load."""

    def __init__(self, folder: Path) -> None:
        transformers = _packages.transformers("serve", "serve")
        try:
            self._tokenizer: Any = transformers.AutoTokenizer.from_pretrained(folder)
        except Exception as error:
            got = f"{type(error).__name__}: {error}"
            raise ValueError(f"model: expected a folder with a tokenizer, got {got}") from error
        # The first call turns off what its file says of padding; others, on several threads, change nothing.
        self.ids("")

    def ids(self, text: str) -> list[int]:
        # Long texts are refused by the caller, not by a warning.
        return list(self._tokenizer(text, verbose=False)["input_ids"])

    def chat_ids(self, messages: Sequence[dict[str, str]]) -> list[int]:
        """The prompt by the tokenizer's template. ValueError: it has none, or refuses these messages."""
        if not self._tokenizer.chat_template:
            raise ValueError(
                "messages: expected a model with a chat template, got one without (use /v1/completions)"
            )
        try:
            text = self._tokenizer.apply_chat_template(
                list(messages), tokenize=False, add_generation_prompt=True
            )
        except Exception as error:  # what a template raises is up to its author
            raise ValueError(f"messages: expected what the chat template takes, got {error}") from error
        return list(self._tokenizer(text, add_special_tokens=False, verbose=False)["input_ids"])

    def text(self, ids: Sequence[int]) -> str:
        return str(self._tokenizer.decode(ids, skip_special_tokens=True, clean_up_tokenization_spaces=False))


class Spelling:
    """The text of ids that come one after the other; what `add` returns is never taken back."""

    def __init__(self, text: Text, stops: Sequence[str]) -> None:
        """stops: texts at which it ends; they are not part of it."""
        self._text, self._stops = text, stops
        self._ids: list[int] = []
        # The first `_known` ids have been spelled; they are looked back on from `_from`.
        self._from = self._known = 0
        self._held = ""
        self.stopped = False

    def add(self, ids: Sequence[int], *, last: bool) -> str:
        """The text that these add, without a beginning of a stop or a part of a character at its end, which
        come later, or, with `last`, now.
        """
        self._ids += ids
        before = self._text.text(self._ids[self._from : self._known])
        after = self._text.text(self._ids[self._from :])
        if last or not after.endswith(_INCOMPLETE):
            self._held += after[len(before) :]
            self._known = len(self._ids)
            self._from = max(self._from, self._known - _CONTEXT)
        found = [at for stop in self._stops if (at := self._held.find(stop)) >= 0]
        if found:
            self.stopped = True
            return self._held[: min(found)]
        safe = len(self._held) if last else len(self._held) - self._beginning()
        new, self._held = self._held[:safe], self._held[safe:]
        return new

    def _beginning(self) -> int:
        """How many characters at the end may be the beginning of a stop."""
        longest = max((len(stop) - 1 for stop in self._stops), default=0)
        counts = range(min(longest, len(self._held)), 0, -1)
        return next((n for n in counts if any(stop.startswith(self._held[-n:]) for stop in self._stops)), 0)
