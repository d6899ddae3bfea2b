"""The parts that `bench/profile_parts.py` tells of a run."""

from __future__ import annotations

import importlib
from pathlib import Path
from typing import Any

import pytest
import torch
from region_models import ResNet, converted

BENCH = Path(__file__).parents[2] / "bench"


@pytest.fixture
def parts(monkeypatch: pytest.MonkeyPatch) -> Any:
    monkeypatch.syspath_prepend(str(BENCH))
    return importlib.import_module("profile_parts")


def test_every_kind_of_layer_is_told(parts: Any) -> None:
    torch.manual_seed(0)
    x, model = torch.randn(2, 3, 64, 64), ResNet()
    fast = converted(model, x)
    with torch.inference_mode():
        layers = {"stem", "1×1 convolution", "3×3 convolution", "pooling", "linear"}
        both = layers | {parts.OTHER}
        found = parts.converted_parts(lambda: fast(x), threads=2)
        assert {kind for kind, seconds in found.items() if seconds > 0} == both
        found = parts.dense_parts(lambda: model(x))
        assert found.keys() >= both | {"batch norm", "activation", "addition"}


def test_a_picture_is_drawn(parts: Any, tmp_path: Path) -> None:
    pytest.importorskip("matplotlib")
    rows = [
        {"model": "a", "batch": 1, "which": which, "ms": 3.0, "parts": {"stem": 1.0, "linear": 2.0}}
        for which in ("dense", "converted")
    ]
    content = {"machine": {"cpu": "a CPU"}, "threads": 2, "sparsity": 0.8, "rows": rows}
    parts.draw(content, tmp_path / "picture.png")
    assert (tmp_path / "picture.png").read_bytes().startswith(b"\x89PNG")
