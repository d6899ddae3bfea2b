"""Files of models with layers that hold packings and a dense copy, or a dense weight of int8."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest
import torch
from convert_helpers import Script, linear
from generators import tokens
from torch import nn

import sparseinfer as si
from sparseinfer.convert.record import from_json, recorded, to_json
from sparseinfer.modules import Int8Linear, SparseOrDenseLinear
from sparseinfer.ops.dense import PLAIN, PREPACKED, PREPACKED_INT8


def model() -> nn.Sequential:
    return nn.Sequential(linear(), nn.ReLU()).eval()


@pytest.mark.parametrize("way", [PLAIN, PREPACKED])
@pytest.mark.parametrize("planning", ["stored", "predict"])
def test_a_dense_copy(script: Script, tmp_path: Path, way: str, planning: Any) -> None:
    script.ratio = lambda layout, m: 0.5 if m <= 4 else 1.5
    script.dense = lambda m: {PLAIN: 10.0 if way == PLAIN else 20.0, PREPACKED: 10.5}
    fast = si.convert(model(), tokens=(1, 128), memory="speed")
    assert fast[0].dense_way == way
    si.save(fast, tmp_path / "model.safetensors")
    loaded: Any = si.load(tmp_path / "model.safetensors", model(), planning)
    assert isinstance(loaded[0], SparseOrDenseLinear)
    assert (loaded[0].plan, loaded[0].dense_way, loaded[0].dense_at) == (
        fast[0].plan,
        fast[0].dense_way,
        fast[0].dense_at,
    )
    for m in (1, 128):
        x = tokens(m, 40, integer=True)
        with torch.no_grad():
            assert torch.equal(loaded(x), fast(x))


def test_dense_int8(script: Script, tmp_path: Path) -> None:
    script.ratio = lambda layout, m: 2.0
    script.dense = lambda m: {PLAIN: 10.0, PREPACKED_INT8: 4.0}
    fast = si.convert(model(), precision="int8")
    si.save(fast, tmp_path / "model.safetensors")
    loaded: Any = si.load(tmp_path / "model.safetensors", model())
    assert isinstance(loaded[0], Int8Linear)
    x = tokens(9, 40)
    with torch.no_grad():
        assert torch.equal(loaded(x), fast(x))


@pytest.mark.parametrize(
    "damage", [{"dense_at": [9]}, {"dense_at": ["x"]}, {"dense_way": "2:4"}, {"dense_at": [-1]}]
)
def test_damaged_records_are_refused(script: Script, damage: dict[str, Any]) -> None:
    script.ratio = lambda layout, m: 0.5 if m <= 4 else 1.5
    (record,) = recorded(si.convert(model(), tokens=(1, 128), memory="speed"))
    content = to_json(record)
    assert from_json(content).decisions == record.decisions
    content["decisions"][0]["plan"] |= damage
    with pytest.raises(ValueError, match="conversion: expected a record of convert"):
        from_json(content)


def test_records_from_before_there_was_a_dense_copy(script: Script) -> None:
    (record,) = recorded(si.convert(model()))
    content = to_json(record)
    for decision in content["decisions"]:
        del decision["plan"]["dense_at"]
    assert from_json(content).decisions == record.decisions
