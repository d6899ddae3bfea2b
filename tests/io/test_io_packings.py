"""Packings of a file that are kept for its next load: when they are used, and when they must not be."""

from __future__ import annotations

import os
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import Tensor, nn

import sparseinfer as si
from sparseinfer import _cache_files, ops
from sparseinfer.io import packings
from sparseinfer.io.mapped import Mapped


def net() -> nn.Sequential:
    return nn.Sequential(nn.Linear(96, 64), nn.ReLU(), nn.Linear(64, 48), nn.Linear(48, 32)).eval()


def x() -> Tensor:
    return torch.randn(3, 96, generator=torch.Generator().manual_seed(2))


def saved(path: Path, seed: int = 0, **options: Any) -> Tensor:
    """Saves a converted model, and returns its result."""
    torch.manual_seed(seed)
    model = net()
    si.prune_(model, si.Magnitude(0.8), keep_masks=False)
    options = {"measure": False, "memory": "compact", **options}
    fast = si.convert(model, example_inputs=(x(),), **options)
    si.save(fast, path, progress=False)
    return result(fast)


@torch.no_grad()
def result(model: nn.Module) -> Tensor:
    y: Tensor = model(x())
    return y


def kept() -> list[Path]:
    return sorted(_cache_files.directory().glob("packings-*"))


@pytest.fixture(autouse=True)
def settled(monkeypatch: pytest.MonkeyPatch) -> None:
    """Files need not be some seconds old."""
    monkeypatch.setattr(packings, "_SETTLED_S", 0.0)


@pytest.fixture
def packed(monkeypatch: pytest.MonkeyPatch) -> list[ops.Layout]:
    """What is packed from now on."""
    done: list[ops.Layout] = []
    pack = ops.Layout.pack

    def noted(layout: ops.Layout, *arguments: Any, **keywords: Any) -> Tensor:
        done.append(layout)
        return pack(layout, *arguments, **keywords)

    monkeypatch.setattr(ops.Layout, "pack", noted)
    return done


@pytest.mark.parametrize(
    "options", [{}, {"weights": torch.bfloat16}, {"precision": "int8"}, {"tokens": (1, 64)}], ids=str
)
def test_a_second_load_packs_nothing(tmp_path: Path, packed: list[Any], options: dict[str, Any]) -> None:
    expected = saved(tmp_path / "m.safetensors", **options)
    first = si.load(tmp_path / "m.safetensors", net)
    assert len(kept()) == 1
    packed.clear()
    second = si.load(tmp_path / "m.safetensors", net)
    assert packed == []
    assert torch.equal(result(first), expected)
    assert torch.equal(result(second), expected)
    for name, t in first.state_dict().items():
        assert torch.equal(second.state_dict()[name], t)
    assert str(si.explain(second)) == str(si.explain(first))


def test_a_model_that_is_given_is_filled_too(tmp_path: Path, packed: list[Any]) -> None:
    expected = saved(tmp_path / "m.safetensors")
    si.load(tmp_path / "m.safetensors", net)
    packed.clear()
    with torch.inference_mode():
        model = si.load(tmp_path / "m.safetensors", net())
    assert packed == []
    assert torch.equal(result(model), expected)
    # A kept packing is memory of this process when it is written to; it is checked again then.
    layer = next(m for m in model.modules() if isinstance(m, si.SparseLinear))
    layer.get_buffer("packing_0").zero_()
    with pytest.raises(ValueError, match="packed: expected"):
        result(model)
    assert torch.equal(result(si.load(tmp_path / "m.safetensors", net)), expected)


def rewritten(file: Path) -> None:
    """One weight gets the other sign, in place, and the file the time that it had."""
    before, mapped = file.stat(), Mapped(file)
    at = mapped.header.nbytes + mapped.entries["0.weight.values"].begin
    with file.open("r+b") as to:
        to.seek(at + 3)
        last = to.read(1)[0]
        to.seek(at + 3)
        to.write(bytes([last ^ 0x80]))
    os.utime(file, ns=(before.st_atime_ns, before.st_mtime_ns))
    assert file.stat().st_ino == before.st_ino


def replaced(file: Path) -> None:
    saved(file, seed=1)


@pytest.mark.parametrize("change", [rewritten, replaced])
def test_another_file_under_the_name(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, change: Callable[[Path], None]
) -> None:
    file = tmp_path / "m.safetensors"
    before = saved(file)
    si.load(file, net)
    time.sleep(0.02)  # times of files are no finer than some milliseconds
    change(file)
    got = result(si.load(file, net))
    monkeypatch.setenv(packings.LIMIT, "0")
    assert torch.equal(got, result(si.load(file, net)))
    assert not torch.equal(got, before)


def test_a_file_that_changes_while_it_is_read_keeps_nothing(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    saved(tmp_path / "m.safetensors")
    store = packings.Packings.store

    def late(self: packings.Packings) -> None:
        os.utime(tmp_path / "m.safetensors")
        store(self)

    monkeypatch.setattr(packings.Packings, "store", late)
    si.load(tmp_path / "m.safetensors", net)
    assert kept() == []


def test_a_file_that_was_just_written_keeps_nothing(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(packings, "_SETTLED_S", 3600.0)
    saved(tmp_path / "m.safetensors")
    si.load(tmp_path / "m.safetensors", net)
    assert kept() == []


def truncated(file: Path) -> None:
    file.write_bytes(file.read_bytes()[:-64])


def garbage(file: Path) -> None:
    file.write_bytes(b"\xff" * 4096)


def empty(file: Path) -> None:
    file.write_bytes(b"")


def damaged(file: Path) -> None:
    """Row splits beyond the matrix: the first numbers behind the first packing's header."""
    content = bytearray(file.read_bytes())
    start = Mapped(file).header.nbytes
    content[start + 256 : start + 512] = b"\x7f" * 256
    file.write_bytes(content)


def of_another(file: Path) -> None:
    """What was kept for another file, by a name that is the same by chance."""
    others = file.parent / "other.safetensors"
    saved(others, seed=1)
    si.load(others, net)
    other = next(path for path in kept() if path != file)
    other.replace(file)


@pytest.mark.parametrize("spoil", [truncated, garbage, empty, damaged, of_another])
def test_what_is_damaged_is_made_anew(
    tmp_path: Path, packed: list[Any], spoil: Callable[[Path], None]
) -> None:
    expected = saved(tmp_path / "m.safetensors")
    si.load(tmp_path / "m.safetensors", net)
    (file,) = kept()
    intact = file.read_bytes()
    spoil(file)
    packed.clear()
    assert torch.equal(result(si.load(tmp_path / "m.safetensors", net)), expected)
    assert packed != []
    assert file.read_bytes() == intact


def test_other_machines_and_levels_have_files_of_their_own(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    saved(tmp_path / "m.safetensors")
    si.load(tmp_path / "m.safetensors", net)
    for name, other in (("active_isa", lambda: "another"), ("build_of", lambda module: [1, 2])):
        with monkeypatch.context() as patch:
            patch.setattr(packings.ops if name == "active_isa" else packings, name, other)
            files = [Mapped(tmp_path / "m.safetensors")]
            assert packings.Packings(files).get("0 0+") == []
    assert packings.Packings([Mapped(tmp_path / "m.safetensors")]).get("0 0+") != []


@pytest.mark.parametrize("plan", ["predict", "measure"])
def test_what_is_planned_anew_is_packed_anew(tmp_path: Path, plan: Any) -> None:
    saved(tmp_path / "m.safetensors")
    si.load(tmp_path / "m.safetensors", net, plan)
    assert kept() == []


def test_none_are_kept_on_demand(tmp_path: Path, packed: list[Any], monkeypatch: pytest.MonkeyPatch) -> None:
    expected = saved(tmp_path / "m.safetensors")
    si.load(tmp_path / "m.safetensors", net)
    monkeypatch.setenv(packings.LIMIT, "0")
    packed.clear()
    assert torch.equal(result(si.load(tmp_path / "m.safetensors", net)), expected)
    assert packed != []
    monkeypatch.setenv(packings.LIMIT, "many")
    with pytest.raises(
        ValueError, match="SPARSEINFER_PACKINGS_MB: expected a number of megabytes, got 'many'"
    ):
        si.load(tmp_path / "m.safetensors", net)


def test_a_folder_that_cannot_be_written(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    expected = saved(tmp_path / "m.safetensors")
    (tmp_path / "no folder").write_text("")
    monkeypatch.setenv(_cache_files.DIRECTORY, str(tmp_path / "no folder" / "cache"))
    assert torch.equal(result(si.load(tmp_path / "m.safetensors", net)), expected)


class TestSize:
    def test_the_longest_unused_go_first(self, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
        for name in "abc":
            saved(tmp_path / name)
        si.load(tmp_path / "a", net)
        (a,) = kept()
        si.load(tmp_path / "b", net)
        (b,) = set(kept()) - {a}
        os.utime(a, (1, 1))
        os.utime(b, (2, 2))
        si.load(tmp_path / "a", net)  # used again
        abandoned, fresh = (a.with_name(f".packings-{name}.safetensors.0.tmp") for name in ("old", "new"))
        for file in (abandoned, fresh):
            file.touch()
        os.utime(abandoned, (1, 1))
        monkeypatch.setattr(packings, "_limit_bytes", lambda: 5 * a.stat().st_size // 2)
        si.load(tmp_path / "c", net)
        assert len(kept()) == 2
        assert a in kept()
        assert b not in kept()
        assert not abandoned.exists()
        assert fresh.exists()

    def test_what_is_larger_than_all_is_not_kept(
        self, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
    ) -> None:
        saved(tmp_path / "a")
        si.load(tmp_path / "a", net)
        monkeypatch.setattr(packings, "_limit_bytes", lambda: 1000)
        saved(tmp_path / "b")
        si.load(tmp_path / "b", net)
        assert len(kept()) == 1


def test_folders_of_transformers(tmp_path: Path, packed: list[Any]) -> None:
    transformers = pytest.importorskip("transformers")
    sizes = {"hidden_size": 64, "intermediate_size": 128, "num_hidden_layers": 2, "num_attention_heads": 4}
    config = transformers.LlamaConfig(**sizes, vocab_size=96, bos_token_id=1)
    torch.manual_seed(0)
    model = transformers.LlamaForCausalLM(config).eval()
    si.prune_(model, si.Magnitude(0.8), ignore=["lm_head"], keep_masks=False)
    ids = {"input_ids": torch.tensor([[1, 5, 9]])}
    fast = si.convert(model, example_inputs=ids, measure=False, memory="compact")
    si.save_pretrained(fast, tmp_path, max_shard_size="60KB")

    transformers.AutoModelForCausalLM.from_pretrained(tmp_path)
    assert len(kept()) == 1
    packed.clear()
    loaded = transformers.AutoModelForCausalLM.from_pretrained(tmp_path)
    assert packed == []
    with torch.no_grad():
        assert torch.equal(loaded(**ids).logits, fast(**ids).logits)
