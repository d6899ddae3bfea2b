"""Dataclasses that a command line fills: a field says beside its default how it is asked for."""

from __future__ import annotations

import re
from collections.abc import Callable, Mapping
from dataclasses import dataclass, fields
from typing import Any


@dataclass(frozen=True)
class Argument:
    """How a command line asks for a field. A field whose default is False is a switch.

    help        what it is, and what None stands for; the default is told beside it
    flag        its name there; None: the field's
    metavar     what stands for its value in the usage
    read        text -> one value; ValueError: it is no such text
    positional  given without its name
    several     a sequence of values, one after the other
    repeated    a sequence of values, each after the flag
    """

    help: str
    flag: str | None = None
    metavar: str | None = None
    read: Callable[[str], Any] = str
    positional: bool = False
    several: bool = False
    repeated: bool = False


def argument(help: str, **how: Any) -> Mapping[str, Argument]:
    """The metadata of a field."""
    return {"argument": Argument(help, **how)}


def arguments(settings: type) -> dict[str, Argument]:
    """Of a dataclass, by the names of their fields; fields without one are no arguments."""
    return {
        field.name: field.metadata["argument"] for field in fields(settings) if "argument" in field.metadata
    }


def positive(text: str) -> int:
    """For `read`: an integer of at least 1."""
    if not text.isdecimal() or int(text) < 1:
        raise ValueError(f"expected an integer of at least 1, got {text!r}")
    return int(text)


def size(text: str) -> tuple[int, int]:
    """For `read`: two sizes."""
    match = re.fullmatch(r"(\d+)[x×](\d+)", text)
    if not match:
        raise ValueError(f"expected two sizes such as 3072x768, got {text!r}")
    return int(match[1]), int(match[2])
