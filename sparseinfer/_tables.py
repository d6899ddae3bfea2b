"""Tables of rich as plain text, for `str()` of what a user is given."""

from __future__ import annotations

import io
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from rich.table import Table


def as_text(table: Table, width: int) -> str:
    """In at most so many columns, without colours and without spaces at the ends of lines."""
    from rich.console import Console

    text = io.StringIO()
    Console(file=text, width=width, color_system=None).print(table)
    return "\n".join(line.rstrip() for line in text.getvalue().splitlines())
