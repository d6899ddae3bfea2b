"""Options that fill a dataclass of settings: its fields say which there are, and what they default to."""

from __future__ import annotations

import argparse
from collections.abc import Callable, Mapping
from dataclasses import dataclass, fields
from typing import Any, TypeVar

Filled = TypeVar("Filled")


@dataclass(frozen=True)
class Option:
    """How one field is written on the command line.

    type        makes one value of its text
    help        without the default, which is added
    metavar     stands for a value in the help; "": the flag in capitals
    repeatable  several values are given by repeating the flag, not one after the other
    """

    flag: str
    type: Callable[[str], object] = str
    help: str = ""
    metavar: str = ""
    repeatable: bool = False


def add_options(parser: argparse.ArgumentParser, settings: type, options: Mapping[str, Option]) -> None:
    """An option for each field of the dataclass `settings` that `options` names.

    A field whose default is a tuple takes several values. An option that is not given leaves nothing in the
    namespace, so that the dataclass's own default holds. KeyError: no field has that name.
    """
    defaults = {field.name: field.default for field in fields(settings)}
    for name, option in options.items():
        default = defaults[name]
        arguments: dict[str, Any] = {}
        if isinstance(default, tuple):
            arguments = {"action": "append"} if option.repeatable else {"nargs": "+"}
        parser.add_argument(
            option.flag,
            dest=name,
            type=option.type,
            default=argparse.SUPPRESS,
            metavar=option.metavar or option.flag.strip("-").upper(),
            help="; ".join(filter(None, (option.help, _told(default)))),
            **arguments,
        )


def filled(settings: type[Filled], given: argparse.Namespace) -> Filled:
    """The dataclass with the values of the options that were given."""
    names = [field.name for field in fields(settings)]  # type: ignore[arg-type]
    return settings(**{name: getattr(given, name) for name in names if hasattr(given, name)})


def _told(default: object) -> str:
    """Nothing for a default that is no value, such as "the active level": the help says those in words."""
    if default is None or default == ():
        return ""
    return "default: " + " ".join(map(_text, default if isinstance(default, tuple) else (default,)))


def _text(value: object) -> str:
    """As it would be typed."""
    if isinstance(value, tuple):
        return "x".join(map(str, value))
    return f"{value:g}" if isinstance(value, float) else str(value)
