"""Generates random training sentences from the patterns and words of corpus.txt.

They mean little, but words appear in plausible contexts, and any number can be generated. A
line of that file is `slot: text; text; ...`; {slot} in a text stands for any one of that slot's texts, and
{Slot} for one with a capital. The sentences that the demo measures, sentences.txt, are not made of it.
"""

from __future__ import annotations

import random
import re
from collections import defaultdict
from importlib import resources


def sentences(count: int, seed: int = 0) -> list[str]:
    """`count` sentences, the same ones for the same seed."""
    slots = _slots()
    source = random.Random(seed)

    def fill(slot: str) -> str:
        text = source.choice(slots[slot.lower()])
        text = re.sub(r"\{(\w+)\}", lambda inner: fill(inner[1]), text)
        return text[0].upper() + text[1:] if slot[0].isupper() else text

    return [re.sub(r"\ba (?=[aeiou])", "an ", fill("Sentence")) for _ in range(count)]


def _slots() -> dict[str, list[str]]:
    text = resources.files(__package__).joinpath("corpus.txt").read_text(encoding="utf-8")
    slots: defaultdict[str, list[str]] = defaultdict(list)
    for line in text.splitlines():
        slot, _, texts = line.partition(": ")
        slots[slot] += texts.split("; ")
    verbs = slots["act"]  # regular ones
    slots["acting"] = [f"{verb.removesuffix('e')}ing" for verb in verbs]
    slots["did"] = [f"{verb.removesuffix('e')}ed" for verb in verbs]
    slots["changes"] = [
        f"{verb}es" if verb.endswith(("s", "sh", "ch", "x")) else f"{verb}s" for verb in verbs
    ]
    slots["things"] = [f"{noun}s" for noun in slots["thing"] if not noun.endswith(("s", "x", "f", "ch"))]
    return slots
