"""Text as it comes: nothing is taken back, and stops are never part of it."""

from __future__ import annotations

import random
from collections.abc import Sequence

import pytest

from sparseinfer.serve.server.text import Spelling, Text


class Bytes(Text):
    """One id for each byte: parts of characters come alone."""

    def __init__(self) -> None:
        pass

    def text(self, ids: Sequence[int]) -> str:
        return bytes(ids).decode("utf-8", errors="replace")


def spelled(text: str, stops: Sequence[str], cuts: random.Random) -> tuple[str, bool]:
    spelling, ids, found, at = Spelling(Bytes(), stops), text.encode(), "", 0
    while at < len(ids) and not spelling.stopped:
        count = cuts.choice((1, 1, 2, 5))
        found += spelling.add(list(ids[at : at + count]), last=at + count >= len(ids))
        at += count
    return found, spelling.stopped


@pytest.mark.parametrize("text", ["plain", "Grüße, 世界 🙂 end", "\ufffd a real one", "", "🙂🙂🙂"])
def test_pieces_are_the_text(text: str) -> None:
    for seed in range(20):
        assert spelled(text, (), random.Random(seed)) == (text, False)


@pytest.mark.parametrize(
    ("stops", "expected"),
    [
        (("END",), "aaEN b "),
        (("EN",), "aa"),
        (("b", "a"), ""),
        (("ENx", "D🙂"), "aaEN b EN"),
        (("no",), None),
    ],
)
def test_the_first_stop_ends_it(stops: Sequence[str], expected: str | None) -> None:
    text = "aaEN b END🙂 c"
    for seed in range(20):
        whole = (text, False) if expected is None else (expected, True)
        assert spelled(text, stops, random.Random(seed)) == whole
