"""Files that do not fit, and damaged ones: an error that says what is wrong, and an unchanged model."""

from __future__ import annotations

import json
import re
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
from file_models import Everything, assert_same_state, everything
from torch import nn

import sparseinfer as si
from sparseinfer.io import File
from sparseinfer.io.header import PADDING
from sparseinfer.io.manifest import VERSION

LENGTH = 8


def small() -> nn.Module:
    torch.manual_seed(0)
    return nn.Sequential(nn.Linear(64, 64), nn.ReLU(), nn.Linear(64, 3))


@pytest.fixture
def file(tmp_path: Path) -> Path:
    model = small().eval()
    si.prune_(model, si.Magnitude(0.8), keep_masks=False)
    return si.save(si.convert(model, memory="compact", measure=False), tmp_path / "model.safetensors")


def parts_of(file: Path) -> tuple[dict[str, Any], dict[str, Any], bytes]:
    """Header, manifest, and the bytes of the tensors."""
    data = file.read_bytes()
    length = int.from_bytes(data[:LENGTH], "little")
    header = json.loads(data[LENGTH : LENGTH + length])
    return header, json.loads(header["__metadata__"]["sparseinfer"]), data[LENGTH + length :]


def write(file: Path, header: dict[str, Any], manifest: dict[str, Any], tensors: bytes) -> None:
    header["__metadata__"]["sparseinfer"] = json.dumps(manifest)
    text = json.dumps(header).encode()
    text += b" " * (-(LENGTH + len(text)) % 64)
    file.write_bytes(len(text).to_bytes(LENGTH, "little") + text + tensors)


def refused(file: Path, message: str, model: nn.Module | None = None) -> None:
    """The file is refused with its name and this message, and the model is unchanged."""
    model = small() if model is None else model
    before = {name: t.clone() for name, t in model.state_dict().items()}
    held = [*model.parameters(), *model.buffers(), *model.modules()]
    modes = [module.training for module in model.modules()]
    with pytest.raises(ValueError, match=f"^{re.escape(str(file))}: .*{re.escape(message)}"):
        si.load(file, model)
    now = [*model.parameters(), *model.buffers(), *model.modules()]
    assert all(a is b for a, b in zip(held, now, strict=True))
    assert modes == [module.training for module in model.modules()]
    assert all(torch.equal(t, before[name]) for name, t in model.state_dict().items())


def test_a_newer_version(file: Path) -> None:
    header, manifest, tensors = parts_of(file)
    write(file, header, {**manifest, "version": 7}, tensors)
    refused(file, f"manifest: expected a version up to {VERSION}, got 7 (install a newer sparseinfer)")


MODELS: dict[str, tuple[Callable[[], nn.Module], str]] = {
    "missing": (
        lambda: nn.Sequential(*small(), nn.Linear(3, 3)),
        "3.weight: expected it in the file, got none (the file is of Sequential, the model Sequential)",
    ),
    "more": (
        lambda: small()[:1],
        "2.bias: expected a tensor of the model, got another (the file is of Sequential, the model",
    ),
    "shape": (
        lambda: nn.Sequential(nn.Linear(64, 64), nn.ReLU(), nn.Linear(64, 4)),
        "2.weight: expected torch.float32 (4, 64), got torch.float32 (3, 64)",
    ),
    "dtype": (
        lambda: small().to(torch.bfloat16),
        "0.weight: expected torch.bfloat16 (64, 64), got torch.float32 (64, 64)",
    ),
    "another": (
        Everything,
        "expected it in the file, got none (the file is of Sequential, the model Everything)",
    ),
    "kind": (
        lambda: nn.Sequential(type("Mine", (nn.Linear,), {})(64, 64), nn.ReLU(), nn.Linear(64, 3)),
        "0: expected a layer that was converted, got one that cannot be",
    ),
}


@pytest.mark.parametrize("name", MODELS)
def test_another_model(file: Path, name: str) -> None:
    make, message = MODELS[name]
    refused(file, message, make())


def test_a_converted_model_is_not_filled(file: Path) -> None:
    converted = si.load(file, small)
    with pytest.raises(ValueError, match=r"expected a dense model, got one with converted layers"):
        si.load(file, converted)


def test_a_tied_model_wants_one_tensor(tmp_path: Path) -> None:
    apart = nn.Sequential(nn.Linear(8, 8, bias=False), nn.Linear(8, 8, bias=False))
    file = si.save(apart, tmp_path / "model.safetensors")
    tied = nn.Sequential(nn.Linear(8, 8, bias=False), nn.Linear(8, 8, bias=False))
    tied[1].weight = tied[0].weight
    refused(file, "1.weight: expected the same values, got others than those of 0.weight", tied)
    apart[1].weight = nn.Parameter(apart[0].weight.detach().clone())
    assert torch.equal(si.load(si.save(apart, file), tied)[1].weight, apart[0].weight)


def edited(name: str, **changes: Any) -> Callable[[dict[str, Any], dict[str, Any]], None]:
    return lambda header, manifest: header[name].update(changes)


def of_manifest(**changes: Any) -> Callable[[dict[str, Any], dict[str, Any]], None]:
    return lambda header, manifest: manifest.update(changes)


def of_weight(**changes: Any) -> Callable[[dict[str, Any], dict[str, Any]], None]:
    return lambda header, manifest: manifest["sparse"]["0.weight"].update(changes)


LIES = {
    "overlap": (edited("0.weight.mask", data_offsets=[0, 512]), "a gap or an overlap"),
    "beyond": (edited("0.weight.mask", data_offsets=[2**40, 2**40 + 512]), "a gap or an overlap"),
    "negative": (edited("0.weight.mask", data_offsets=[-512, 0]), "expected the two ends of its bytes"),
    "backwards": (edited("0.weight.mask", data_offsets=[512, 0]), "expected the two ends of its bytes"),
    "huge shape": (edited("0.weight.mask", shape=[2**20, 2**20]), "expected as many bytes as"),
    "shape": (edited("0.weight.mask", shape=[32, 16]), "mask: expected shape (64, 8), got (32, 16)"),
    "bool": (edited("0.weight.mask", shape=[64, True]), "expected a shape of sizes from 0"),
    "float": (edited("0.weight.mask", shape=[64, 8.0]), "expected a shape of sizes from 0"),
    "dtype": (edited("0.weight.mask", dtype="I8"), "mask: expected dtype uint8, got int8"),
    "no dtype": (edited("0.weight.mask", dtype="X1"), "0.weight.mask: expected a dtype of"),
    "nested": (edited("0.weight.mask", shape=[[64], 8]), "expected a shape of sizes from 0"),
    "more fields": (edited("0.weight.mask", more=1), "expected dtype, shape and data_offsets"),
    "values": (edited("0.weight.values", dtype="I32"), "0.weight: expected values of"),
    "fields": (of_manifest(more=1), "manifest: expected the fields"),
    "version": (of_manifest(version=True), "manifest: expected a version from 1"),
    "alias": (of_manifest(aliases={"a": "b"}), "a: expected another name of a tensor"),
    "derived": (of_manifest(derived=["a"]), "a: expected a tensor that the manifest names"),
    "channels": (of_manifest(channels_last=["0.weight"]), "0.weight: expected a tensor of four dimensions"),
    "extra": (of_manifest(extra={"0._extra_state": 1}), "0._extra_state: expected an extra state, got none"),
    "conversion": (
        of_manifest(conversions={"": [{"options": {}}]}),
        "conversion: expected a record of convert",
    ),
    "records": (of_manifest(conversions={"": {}}), "manifest: expected a list of records"),
    "part": (of_manifest(conversions={"7": []}), "7: "),
    "format": (of_weight(format="zip"), "0.weight: expected a format of"),
    "matrix": (
        of_weight(shape=[64, 65]),
        "0.weight: expected torch.float32 (64, 64), got torch.float32 (64, 65)",
    ),
    "long": (of_weight(shape=[2**31, 1]), "0.weight: expected a shape of two sizes or more"),
    "pattern": (of_weight(pattern=[2, 4]), "0.weight: expected a pattern (N, M) for nm only"),
    "scales": (of_weight(scales=True), "0.weight: expected its scales, got none"),
    "nm": (of_weight(format="nm", pattern=[2, 4]), "0.weight: expected its positions, got none"),
    "weight dtype": (of_weight(dtype="I64"), "0.weight: expected values of"),
}


@pytest.mark.parametrize("name", LIES)
def test_lies(file: Path, name: str) -> None:
    change, message = LIES[name]
    header, manifest, tensors = parts_of(file)
    change(header, manifest)
    write(file, header, manifest, tensors)
    refused(file, message)


def test_damaged_bytes_of_a_mask(file: Path) -> None:
    header, manifest, tensors = parts_of(file)
    at = header["0.weight.mask"]["data_offsets"][0]
    write(file, header, manifest, tensors[:at] + bytes([tensors[at] ^ 1]) + tensors[at + 1 :])
    refused(file, "0.weight: mask: expected one bit for each of")


WHOLE = {
    "empty": (lambda data: b"", "expected a safetensors file, got an empty one"),
    "short": (lambda data: data[:5], "expected a safetensors file, got 5 bytes"),
    "truncated": (lambda data: data[:-1], "(is the file whole?)"),
    "longer": (lambda data: data + b"x", "(is the file whole?)"),
    "header": (lambda data: (2**63).to_bytes(8, "little") + data[8:], "with a header of 9223372036854775808"),
    "not json": (lambda data: data[:8] + b"}" + data[9:], "header: expected JSON"),
    "deep": (lambda data: (100_000).to_bytes(8, "little") + b"[" * 100_000, "header: expected JSON"),
    "list": (lambda data: (2).to_bytes(8, "little") + b"[]", "header: expected a JSON object, got list"),
    "twice": (lambda data: (15).to_bytes(8, "little") + b'{"a":1, "a": 2}', "a key twice"),
    "constant": (lambda data: (9).to_bytes(8, "little") + b'{"a":NaN}', "the constant NaN"),
    "digits": (
        lambda data: (10_006).to_bytes(8, "little") + b'{"a":' + b"1" * 10_000 + b"}",
        "expected JSON",
    ),
    "texts": (lambda data: (22).to_bytes(8, "little") + b'{"__metadata__":{"a":1', "expected"),
}


@pytest.mark.parametrize("name", WHOLE)
def test_other_bytes(file: Path, name: str) -> None:
    change, message = WHOLE[name]
    file.write_bytes(change(file.read_bytes()))
    refused(file, message)


def test_a_header_of_many_items_is_not_parsed(tmp_path: Path) -> None:
    text = b"[" + b"[]," * 3_000_000 + b"[]]"
    file = tmp_path / "model.safetensors"
    file.write_bytes(len(text).to_bytes(LENGTH, "little") + text)
    refused(file, "header: expected JSON that fits the file's")


def test_names_that_files_keep_for_themselves(tmp_path: Path) -> None:
    model = nn.Module()
    model.add_module(PADDING.removesuffix("."), nn.Linear(2, 2))
    with pytest.raises(ValueError, match="expected another name"):
        si.save(model, tmp_path / "model.safetensors")


BAD_SAVES = {
    "meta": (lambda: nn.Linear(2, 2, device="meta"), ValueError, "weight: expected a tensor with data"),
    "complex": (
        lambda: holding(torch.ones(2, dtype=torch.complex64)),
        TypeError,
        "t: expected a plain dense tensor",
    ),
    "sparse": (lambda: holding(torch.eye(2).to_sparse()), TypeError, "t: expected a plain dense tensor"),
    "no module": (lambda: {"a": 1}, TypeError, "model: expected a torch.nn.Module, got dict"),
}


def holding(t: torch.Tensor) -> nn.Module:
    model = nn.Module()
    model.register_buffer("t", t)
    return model


@pytest.mark.parametrize("name", BAD_SAVES)
def test_what_cannot_be_saved(tmp_path: Path, name: str) -> None:
    make, error, message = BAD_SAVES[name]
    with pytest.raises(error, match=re.escape(message)):
        si.save(make(), tmp_path / "model.safetensors")
    assert list(tmp_path.iterdir()) == []


def test_other_arguments(file: Path) -> None:
    with pytest.raises(ValueError, match="plan: expected one of stored, predict, measure, got 'fast'"):
        si.load(file, small, "fast")
    with pytest.raises(
        TypeError, match=r"model: expected a torch\.nn\.Module or a function that makes one, got int"
    ):
        si.load(file, 3)
    with pytest.raises(TypeError, match=r"expected a function that makes a torch\.nn\.Module, got dict"):
        si.load(file, dict)
    with pytest.raises(OSError, match="No such file"):
        si.load(file.with_name("other"), small)


def test_an_error_while_layers_are_made_takes_all_back(file: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    from sparseinfer.convert import reload

    def fail(*args: object, **kwargs: object) -> None:
        raise RuntimeError("no")

    for name in ("pack_groups", "finish_"):
        monkeypatch.setattr(reload, name, fail)
        model = small()
        held = [*model.parameters(), *model.modules()]
        with pytest.raises(RuntimeError, match="no"):
            si.load(file, model)
        now = [*model.parameters(), *model.modules()]
        assert all(a is b for a, b in zip(held, now, strict=True))
        assert model.training
        monkeypatch.undo()


def test_kernels_that_are_not_here_are_planned_anew(tmp_path: Path) -> None:
    model, x = everything()
    converted = si.convert(model, example_inputs=x, memory="compact", measure=False)
    file = si.save(converted, tmp_path / "model.safetensors")
    header, manifest, tensors = parts_of(file)
    for decision in manifest["conversions"][""][0]["decisions"]:
        plan = decision["plan"]
        plan["buckets"] = re.sub(r":spmm_\w+", ":spmm_of_tomorrow", plan["buckets"])
    write(file, header, manifest, tensors)
    loaded = si.load(file, Everything)
    with torch.no_grad():
        torch.testing.assert_close(loaded(*x), converted(*x), rtol=1e-4, atol=1e-5)
    assert_same_state(si.densify_(loaded), si.densify_(converted))
    assert File(file).is_ours
