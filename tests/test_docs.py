"""What the documents say of the package."""

from __future__ import annotations

import re
from pathlib import Path

import sparseinfer

ROOT = Path(__file__).parents[1]


def test_the_package_exports_what_the_documents_name() -> None:
    pages = [ROOT / "README.md", *(ROOT / "docs").glob("*.md")]
    text = "\n".join(page.read_text(encoding="utf-8") for page in pages)
    examples = re.findall(r"^```python\n(.*?)^```$", text, re.MULTILINE | re.DOTALL)
    used = {name for example in examples for name in re.findall(r"\bsi\.(\w+)", example)}
    named = {word for span in re.findall(r"`([^`\n]+)`", text) for word in re.findall(r"\w+", span)}
    assert used
    assert all(hasattr(sparseinfer, name) for name in used)
    assert set(sparseinfer.__all__) - used - named == {"__version__"}
