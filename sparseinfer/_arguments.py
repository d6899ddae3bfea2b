"""Command-line options as dataclass fields: each field's metadata holds its flag, help and type."""

from __future__ import annotations

import re
from collections.abc import Callable, Mapping
from dataclasses import dataclass, fields
from typing import Any


@dataclass(frozen=True)
class Argument:
    """The command-line option of a field. A field whose default is False is a switch.

    help        what the option sets, and what None means; the default is appended
    flag        its name on the command line; None: the field's name
    metavar     name of its value in the usage line
    read        text -> one value; raises ValueError for invalid text
    positional  given without a flag
    several     takes several values after one flag
    repeated    takes several values, each after its own flag
    """

    help: str
    flag: str | None = None
    metavar: str | None = None
    read: Callable[[str], Any] = str
    positional: bool = False
    several: bool = False
    repeated: bool = False


def argument(help: str, **how: Any) -> Mapping[str, Argument]:
    """Metadata for a dataclass field that is an option; parameters as in Argument."""
    return {"argument": Argument(help, **how)}


def arguments(settings: type) -> dict[str, Argument]:
    """The Arguments of a dataclass by field name; fields without one are left out."""
    return {
        field.name: field.metadata["argument"] for field in fields(settings) if "argument" in field.metadata
    }


def positive(text: str) -> int:
    """`read` for an integer of at least 1."""
    if not text.isdecimal() or int(text) < 1:
        raise ValueError(f"expected an integer of at least 1, got {text!r}")
    return int(text)


def size(text: str) -> tuple[int, int]:
    """`read` for two sizes, as in "3072x768"."""
    match = re.fullmatch(r"(\d+)[x×](\d+)", text)
    if not match:
        raise ValueError(f"expected two sizes such as 3072x768, got {text!r}")
    return int(match[1]), int(match[2])
