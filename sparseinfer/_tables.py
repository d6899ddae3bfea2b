"""Renders rich tables as plain text, for `str()` of results, and as Markdown."""

from __future__ import annotations

import io
from collections.abc import Iterable
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from rich.table import Table


def as_text(table: Table, width: int) -> str:
    """The table in at most that many columns, without colours and trailing spaces."""
    from rich.console import Console

    text = io.StringIO()
    Console(file=text, width=width, color_system=None).print(table)
    return "\n".join(line.rstrip() for line in text.getvalue().splitlines())


def as_markdown(table: Table) -> str:
    """The table in GitHub's Markdown, under its title in bold."""

    def line(cells: Iterable[object]) -> str:
        return f"| {' | '.join(str(cell).replace('|', '&#124;') for cell in cells)} |"

    rules = ("---:" if column.justify == "right" else "---" for column in table.columns)
    rows = zip(*(column.cells for column in table.columns), strict=True)
    head = [f"**{table.title}**", ""] if table.title else []
    lines = [line(column.header for column in table.columns), line(rules), *map(line, rows)]
    return "\n".join([*head, *lines, ""])
