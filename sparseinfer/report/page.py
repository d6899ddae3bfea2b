"""The page itself: one HTML file with its style, readable on a phone, light and dark, without scripts."""

from __future__ import annotations

import datetime
from functools import cache
from pathlib import Path

from jinja2 import Environment, FileSystemLoader, StrictUndefined, Template
from markupsafe import Markup

from sparseinfer.report import figures
from sparseinfer.report.content import Content

_FOLDER = Path(__file__).parent
# Of the strip that shows each layer's sparsity: its height, and the width of a layer.
_STRIP_HEIGHT, _STEP = 60, 6


@cache
def _template() -> Template:
    """All that is put into it is escaped."""
    environment = Environment(
        loader=FileSystemLoader(_FOLDER),
        autoescape=True,
        undefined=StrictUndefined,
        trim_blocks=True,
        lstrip_blocks=True,
    )
    for name in ("percent", "number", "milliseconds", "microseconds", "size"):
        environment.filters[name] = getattr(figures, name)
    return environment.get_template("page.html")


def html(content: Content) -> str:
    """The page of a content."""
    # Nothing in it is from a model or a file: it needs no escaping.
    style = Markup((_FOLDER / "page.css").read_text(encoding="utf-8"))
    return _template().render(
        content=content,
        style=style,
        figures=figures,
        tiles=figures.tiles_of(content),
        groups=figures.groups_of(content.layers),
        strip=_strip(content),
        today=datetime.date.today().isoformat(),
    )


def _strip(content: Content) -> Markup | None:
    """A column for each layer, in the order of the model, as high as its sparsity; None without layers."""
    rows = [row for row in content.layers if row.sparsity is not None]
    if not rows:
        return None
    columns = Markup("").join(
        Markup(
            '<rect class="{}" x="{}" y="{:.1f}" width="{}" height="{:.1f}"><title>{}: {}, {}</title></rect>'
        ).format(
            "is-" + row.decision.replace(":", "-"),
            i * _STEP,
            _STRIP_HEIGHT * (1 - (row.sparsity or 0)),
            _STEP - 1,
            max(1.0, _STRIP_HEIGHT * (row.sparsity or 0)),
            row.layer,
            figures.percent(row.sparsity or 0),
            row.decision,
        )
        for i, row in enumerate(rows)
    )
    return Markup(
        '<svg class="strip" viewBox="0 0 {} {}" preserveAspectRatio="none" role="img" '
        'aria-label="sparsity of each layer">{}</svg>'
    ).format(len(rows) * _STEP, _STRIP_HEIGHT, columns)
