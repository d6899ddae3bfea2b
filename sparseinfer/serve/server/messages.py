"""What the two processes tell each other: plain data, so that neither needs the other's imports."""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np


@dataclass(frozen=True)
class Embed:
    """Asks for a vector for each list of ids."""

    texts: list[list[int]]


@dataclass(frozen=True)
class Generate:
    """Asks for what follows `ids`.

    temperature  0: the likeliest token each time, else what logits are divided by
    top_p        share of the probability that tokens are drawn from, the likeliest first
    seed         of the draws; None: any
    """

    ids: list[int]
    max_tokens: int
    temperature: float
    top_p: float
    seed: int | None


@dataclass(frozen=True)
class Cancel:
    """Nobody waits for this request any more."""

    uid: str


@dataclass(frozen=True)
class Vectors:
    """The answer to Embed: float32 [texts, size]."""

    values: np.ndarray


@dataclass(frozen=True)
class Tokens:
    """Next tokens of a Generate. finish: None, there are more; "stop", an end token came; "length"."""

    ids: list[int]
    finish: str | None


@dataclass(frozen=True)
class Refused:
    """The request raised an error, which says `text`."""

    text: str


@dataclass(frozen=True)
class Ready:
    """The first that a worker says.

    generates   a decoder; otherwise texts become vectors
    max_length  tokens of a text, with what is generated
    vocabulary  number of ids
    note        what an operator should know
    """

    generates: bool
    max_length: int
    vocabulary: int
    note: str = ""


@dataclass(frozen=True)
class Failed:
    """The worker could not load the model, and ends."""

    text: str


@dataclass(frozen=True)
class Load:
    """What a worker does now: requests that it computes, that wait, and tokens since it said so before."""

    running: int
    waiting: int
    tokens: int


Request = Embed | Generate
Answer = Vectors | Tokens | Refused
