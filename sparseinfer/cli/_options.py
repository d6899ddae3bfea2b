"""Derives a command's options from the fields of a dataclass (see `sparseinfer._arguments`)."""

from __future__ import annotations

import argparse
from collections.abc import Callable
from dataclasses import MISSING, fields
from typing import Any, TypeVar

from sparseinfer._arguments import Argument, arguments

Filled = TypeVar("Filled")


def add_options(parser: argparse.ArgumentParser, settings: type) -> None:
    """Adds an option for each argument of the dataclass.

    An option that is not given is left out of the namespace, so that the dataclass's default applies.
    """
    defaults = {field.name: field.default for field in fields(settings)}
    for name, argument in arguments(settings).items():
        default = defaults[name]
        how: dict[str, Any] = {"help": "; ".join(filter(None, (argument.help, _told(default))))}
        if default is False:
            how["action"] = "store_true"
        else:
            how |= {"type": _type_of(argument.read), "metavar": argument.metavar or _metavar(name, argument)}
        if argument.several:
            how["nargs"] = "+"
        if argument.repeated:
            how["action"] = "append"
        if argument.positional:
            parser.add_argument(name, **how)
        else:
            required = default is MISSING
            flag = f"--{argument.flag or name}"
            parser.add_argument(flag, dest=name, default=argparse.SUPPRESS, required=required, **how)


def filled(settings: type[Filled], options: argparse.Namespace) -> Filled:
    """An instance of the dataclass from the options that were given."""
    names = [field.name for field in fields(settings)]  # type: ignore[arg-type]
    return settings(**{name: getattr(options, name) for name in names if hasattr(options, name)})


def _metavar(name: str, argument: Argument) -> str:
    return (argument.flag or name).upper()


def _type_of(read: Callable[[str], Any]) -> Callable[[str], Any]:
    """`type` of argparse, which shows the text of an ArgumentTypeError only."""
    if isinstance(read, type):
        return read

    def checked(text: str) -> Any:
        try:
            return read(text)
        except ValueError as error:
            raise argparse.ArgumentTypeError(str(error)) from None

    return checked


def _told(default: object) -> str:
    """Nothing for a default that stands for something else, such as the active level: the help says that."""
    if default is MISSING or default is None or default is False or default == ():
        return ""
    return "default: " + " ".join(map(_text, default if isinstance(default, tuple) else (default,)))


def _text(value: object) -> str:
    """As it would be typed."""
    if isinstance(value, tuple):
        return "x".join(map(str, value))
    return f"{value:g}" if isinstance(value, float) else str(value)
