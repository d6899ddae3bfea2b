"""Settings of Sphinx: `make docs` builds the pages of this folder and the reference from docstrings."""

from __future__ import annotations

import re
from importlib.metadata import version as installed_version

project = "sparseinfer"
author = "the sparseinfer developers"
project_copyright = "the sparseinfer developers, Apache-2.0"
version = release = installed_version("sparseinfer")

extensions = ["myst_parser", "sphinx.ext.autodoc", "sphinx.ext.viewcode", "sphinx_copybutton"]
exclude_patterns = ["_build"]
html_theme = "furo"
html_title = "sparseinfer"

# GitHub's way of writing: links to headings by their text, tables, and lists of definitions.
myst_enable_extensions = ["deflist"]
myst_heading_anchors = 3

# What a class inherits from torch, torch documents.
autodoc_inherit_docstrings = False
autodoc_member_order = "bysource"
autodoc_class_signature = "mixed"
maximum_signature_line_length = 80
default_role = "code"
# Prompts stay out of what the button copies, and so does what a command prints.
copybutton_prompt_text = "$ "
copybutton_only_copy_prompt_lines = True

linkcheck_anchors = False

_ROW = re.compile(r"^(\S+(?: \S+)*)\s{2,}(\S.*)$")


def _inline(text: str) -> str:
    """Text of a docstring for reStructuredText: code stays code, and no other sign means anything."""
    parts = text.split("`")
    plain = [re.sub(r"([\\*|_])", r"\\\1", part) for part in parts[::2]]
    code = [f"``{part}``" for part in parts[1::2]]
    spaced = [
        after if not before or not after or not after[0].isalnum() else f"\\ {after}"
        for before, after in zip(["", *code], plain, strict=False)
    ]
    return "".join(a + b for a, b in zip(spaced, [*code, ""], strict=False))


def _block(lines: list[str]) -> list[str]:
    """A paragraph, or the list of arguments that docstrings align in two columns."""
    if not _ROW.match(lines[0]):
        return [_inline(" ".join(line.strip() for line in lines))]
    entries: list[list[str]] = []
    for line in lines:
        row = _ROW.match(line)
        if row and not line.startswith(" "):
            entries.append([row[1], row[2]])
        else:
            entries[-1].append(line.strip())
    written = []
    for name, *text in entries:
        written += [f"``{name}``", "    " + _inline(" ".join(text)), ""]
    return written


def _docstring(app: object, what: str, name: str, obj: object, options: object, lines: list[str]) -> None:
    """Docstrings here are plain text: paragraphs and columns, with `code` between backquotes."""
    blocks = [block.split("\n") for block in re.split(r"\n\s*\n", "\n".join(lines).strip()) if block]
    lines[:] = [line for block in blocks for line in (*_block(block), "")]


def setup(app: object) -> None:
    app.connect("autodoc-process-docstring", _docstring)  # type: ignore[attr-defined]
