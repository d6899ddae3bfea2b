"""A pruned model comes back from its file, in another process, bit for bit."""

from __future__ import annotations

import copy
import json
import subprocess
import sys
from pathlib import Path

import pytest
import torch
from structured_models import FAMILIES, OF_TRANSFORMERS, family
from test_structured_exact import first

import sparseinfer as si
from sparseinfer._running import run
from sparseinfer.io.manifest import Manifest, parse_manifest
from sparseinfer.prune.structured import prune_structured_
from sparseinfer.prune.structured.structure import structure_of

OTHER = """
import sys, torch
import sparseinfer as si
from structured_models import family
from test_structured_exact import first
from sparseinfer._running import run
for name in sys.argv[2:]:
    dense, inputs = family(name)
    file = f"{sys.argv[1]}/{name}"
    loaded = si.load(file, lambda: family(name, 1)[0])
    expected = torch.load(f"{file}.pt")
    assert torch.equal(first(run(loaded, inputs)), expected), name
"""


def in_another_process(code: str, *args: str) -> None:
    here = Path(__file__).parent
    run = subprocess.run(
        [sys.executable, "-c", f"import sys; sys.path.insert(0, {str(here)!r})\n{code}", *args],
        capture_output=True,
        text=True,
        check=False,
    )
    assert run.returncode == 0, run.stderr


def test_files_restore_every_family_in_another_process(tmp_path: Path) -> None:
    for name in FAMILIES:
        model, inputs = family(name)
        prune_structured_(model, inputs, "random", ratio=0.3)
        si.save(model, tmp_path / name)
        torch.save(first(run(model, inputs)), tmp_path / f"{name}.pt")
    in_another_process(OTHER, str(tmp_path), *FAMILIES)


FOLDERS = OTHER.replace(
    "si.load(file, lambda: family(name, 1)[0])",
    "type(dense).from_pretrained(file)",
)


def test_folders_restore_every_family_in_another_process(tmp_path: Path) -> None:
    for name in OF_TRANSFORMERS:
        model, inputs = family(name)
        # Of two groups alone: no config can say it.
        names = [g.name for g in prune_structured_(copy.deepcopy(model), inputs, ratio=0.3).groups][-2:]
        prune_structured_(model, inputs, ratio=dict(zip(names, (0.5, 0.25), strict=True)))
        si.save_pretrained(model, tmp_path / name)
        torch.save(first(run(model, inputs)), tmp_path / f"{name}.pt")
    in_another_process(FOLDERS, str(tmp_path), *OF_TRANSFORMERS)


def test_a_config_that_can_say_it_all_needs_no_sparseinfer(tmp_path: Path) -> None:
    model, inputs = family("llama")
    prune_structured_(model, inputs, ratio=0.5)
    model.save_pretrained(tmp_path)
    loaded = type(model).from_pretrained(tmp_path)
    assert torch.equal(first(run(loaded, inputs)), first(run(model, inputs)))
    assert loaded.config.num_key_value_heads == 2


def test_a_pruned_model_is_pruned_again_and_saved(tmp_path: Path) -> None:
    model, inputs = family("gpt2")
    prune_structured_(model, inputs, ratio=0.25)
    prune_structured_(model, inputs, ratio=0.34)
    si.save(model, tmp_path / "file")
    loaded = si.load(tmp_path / "file", lambda: family("gpt2")[0])
    assert torch.equal(first(run(loaded, inputs)), first(run(model, inputs)))
    assert structure_of(loaded) == structure_of(model)
    si.save(loaded, tmp_path / "again")
    again = si.load(tmp_path / "again", lambda: family("gpt2")[0])
    assert torch.equal(first(run(again, inputs)), first(run(model, inputs)))


def test_structured_then_unstructured_then_int8_is_one_file(tmp_path: Path) -> None:
    model, inputs = family("bert")
    prune_structured_(model, inputs, ratio=0.5)
    si.prune_(model, si.Magnitude(0.8), keep_masks=False)
    si.quantize_(model, si.RoundToNearest())
    fast = si.convert(model, example_inputs=inputs)
    si.save(fast, tmp_path / "file")
    loaded = si.load(tmp_path / "file", lambda: family("bert")[0])
    assert torch.equal(first(run(loaded, inputs)), first(run(fast, inputs)))


def test_files_of_version_1_have_no_structure() -> None:
    content = json.loads(Manifest().to_text())
    del content["structure"]
    manifest = parse_manifest(json.dumps({**content, "version": 1}), 1000)
    assert not manifest.structure


@pytest.mark.parametrize(
    ("part", "value", "expected"),
    [
        ("shapes", {"fc.weight": [-1, 2]}, "a shape"),
        ("shapes", {"fc.weight": [99, 999]}, "a shape within"),
        ("shapes", {"fc.nothing": [1]}, "a tensor of the model"),
        ("shapes", {"nothing.weight": [1]}, "a module of the model"),
        ("attributes", {"fc": {"in_features": "a"}}, "sizes by name"),
        ("attributes", {"fc": {"nothing": 3}}, "an attribute 'nothing'"),
        ("blocks", {"blocks": {"count": 4, "kept": [5]}}, "blocks that are left"),
        ("blocks", {"blocks": {"count": 9, "kept": [5]}}, "9 modules"),
        ("blocks", {"fc": {"count": 9, "kept": [5]}}, "a list of modules"),
    ],
)
def test_damaged_structures_are_refused(tmp_path: Path, part: str, value: object, expected: str) -> None:
    model, inputs = family("resnet")
    prune_structured_(model, inputs, ratio=0.3)
    held = vars(model)["_sparseinfer_structure"]
    file = si.save(model, tmp_path / "file")
    content = file.read_bytes()
    old = json.dumps(held, separators=(",", ":"))
    new = json.dumps({**held, part: value}, separators=(",", ":"))
    old, new = json.dumps(old)[1:-1].encode(), json.dumps(new)[1:-1].encode()
    assert old in content
    length = int.from_bytes(content[:8], "little") + len(new) - len(old)
    file.write_bytes(length.to_bytes(8, "little") + content[8:].replace(old, new))
    dense = family("resnet")[0]
    before = copy.deepcopy(dense.state_dict())
    with pytest.raises(ValueError, match=expected):
        si.load(file, dense)
    assert all(torch.equal(before[key], value) for key, value in dense.state_dict().items())
    assert dense.fc.in_features == before["fc.weight"].shape[1]
