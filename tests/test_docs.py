"""The examples of the documents run, one after the other, and do what the text says."""

from __future__ import annotations

import re
from pathlib import Path
from typing import Any

import pytest
import torch

import sparseinfer

ROOT = Path(__file__).parents[1]

# At the top of the package though the README does not name them: they were there before the rule.
BEFORE_THE_RULE = {
    "CalibrationStats",
    "Comparison",
    "Explanation",
    "SparseConv1d",
    "SparseConv2d",
    "SparseLinear",
    "SparseMultiheadAttention",
    "Unstructured",
    "__version__",
    "formats",
    "latency_table",
}


def run(path: Path) -> dict[str, Any]:
    """The names that the Python examples of a document leave behind; errors tell the document's lines."""
    found: dict[str, Any] = {"__name__": "examples"}
    text = path.read_text(encoding="utf-8")
    for match in re.finditer(r"^```python\n(.*?)^```$", text, re.MULTILINE | re.DOTALL):
        lines = "\n" * text[: match.start(1)].count("\n")
        exec(compile(lines + match[1], str(path), "exec"), found)
    return found


def sparsity(model: torch.nn.Module) -> float:
    weights = [parameter for parameter in model.parameters() if parameter.ndim == 2]
    return sum(int((w == 0).sum()) for w in weights) / sum(w.numel() for w in weights)


def test_pruning(capsys: pytest.CaptureFixture[str]) -> None:
    state = torch.get_rng_state()
    try:
        found = run(ROOT / "docs/pruning.md")
    finally:
        torch.set_rng_state(state)
    assert "sparsity 0.5000" in capsys.readouterr().out
    assert sparsity(found["dense"]) == 0
    assert sparsity(found["model"]) == 0.5
    # By an exact count over all layers.
    assert found["pruner"].done
    assert sparsity(found["student"]) == pytest.approx(0.9, abs=1e-4)
    assert sparsity(found["recovered"]) == pytest.approx(0.8, abs=1e-4)
    assert isinstance(found["fast"], torch.nn.Sequential)


def test_quantization(capsys: pytest.CaptureFixture[str]) -> None:
    state = torch.get_rng_state()
    try:
        found = run(ROOT / "docs/quantization.md")
    finally:
        torch.set_rng_state(state)
    assert "made zero" in capsys.readouterr().out
    assert sparsity(found["model"]) >= sparsity(found["pruned"]) == 0.5
    assert list(found["report"].unprepared) == ["3"]
    assert 0 < found["error"].abs().max() < 0.1


def test_the_package_exports_what_the_readme_names() -> None:
    text = (ROOT / "README.md").read_text(encoding="utf-8")
    examples = re.findall(r"^```python\n(.*?)^```$", text, re.MULTILINE | re.DOTALL)
    used = {name for example in examples for name in re.findall(r"\bsi\.(\w+)", example)}
    named = {word for span in re.findall(r"`([^`\n]+)`", text) for word in re.findall(r"\w+", span)}
    assert used
    assert used <= set(sparseinfer.__all__)
    assert set(sparseinfer.__all__) - used - named == BEFORE_THE_RULE
