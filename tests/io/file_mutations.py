"""Mutated files: bits, bytes, sizes, and the fields of header and manifest."""

from __future__ import annotations

import json
import random
import warnings
from collections.abc import Callable
from pathlib import Path
from typing import Any

import torch
from torch import nn

import sparseinfer as si
from sparseinfer.formats import BSR, CSR, NM

LENGTH = 8
# What a mutated file may raise: anything else is a fault.
CLEAR = (ValueError,)

_NUMBERS = (
    0,
    1,
    -1,
    2,
    3,
    7,
    63,
    64,
    65,
    255,
    2**31 - 1,
    2**31,
    2**32,
    2**61,
    2**63,
    2**64,
    10**30,
    0.5,
    1e308,
)
_VALUES = (
    *_NUMBERS,
    None,
    True,
    False,
    "",
    "a",
    "bitmap",
    "csr",
    "bsr",
    "nm",
    "F32",
    "I8",
    "U8",
    "I64",
    [],
    {},
    [[]],
)


class Small(nn.Module):
    """Its weights lie in every format, and a batch norm is folded."""

    def __init__(self) -> None:
        super().__init__()
        self.conv, self.bn = nn.Conv2d(4, 16, 3), nn.BatchNorm2d(16)
        self.a, self.b, self.c = nn.Linear(16, 64), nn.Linear(16, 64), nn.Linear(64, 64)
        self.d, self.e = nn.Linear(64, 128), nn.Linear(128, 63)

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        x = self.bn(self.conv(x)).flatten(2).transpose(1, 2)
        return self.e(self.d(self.c(self.a(x) * self.b(x))))


def small() -> nn.Module:
    """The converted model of the files."""
    torch.manual_seed(0)
    model = Small().eval()
    si.prune_(model, si.Magnitude(0.8), keep_masks=False)
    with torch.no_grad():
        model.c.weight.zero_()[:16, :32] = 1.0
        model.d.weight.copy_((torch.arange(64) - torch.arange(128)[:, None]) % 8 == 0)
        model.e.weight.zero_()[5, 7] = 3.0
    x = torch.zeros(1, 4, 5, 5)
    options = si.ConvertOptions(memory="compact", fold_batch_norm=True, measure=False)
    return si.convert(model, example_inputs=(x,), options=options)


def original(folder: Path) -> bytes:
    """The file that is mutated; of CSR, BSR, NM and bitmap there is at least one."""
    from sparseinfer.io import File

    file = si.save(small(), folder / "model.safetensors", progress=False)
    kinds = {type(File(file).format(name)) for name in File(file).sparse}
    assert kinds >= {CSR, BSR, NM, si.formats.Bitmap}
    return file.read_bytes()


def is_clear(data: bytes, file: Path, model: nn.Module) -> bool:
    """Whether the file loads, or is refused by a clear error that names it. Other errors are raised."""
    file.write_bytes(data)
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        try:
            si.load(file, model, "stored")
        except CLEAR as error:
            if str(file) in str(error):
                return True
            raise
    return False


def mutated(data: bytes, chance: random.Random) -> bytes:
    """A damaged copy, mostly by one change, sometimes by several."""
    for _ in range(1 + (chance.random() < 0.2) + (chance.random() < 0.1)):
        data = chance.choice(_MUTATIONS)(data, chance)
    return data


def _bits(data: bytes, chance: random.Random) -> bytes:
    changed = bytearray(data)
    for _ in range(chance.choice((1, 1, 2, 8))):
        if changed:
            changed[chance.randrange(len(changed))] ^= 1 << chance.randrange(8)
    return bytes(changed)


def _size(data: bytes, chance: random.Random) -> bytes:
    at = chance.randrange(len(data) + 1)
    choices = (
        data[:at],
        data + bytes(chance.randrange(1, 200)),
        data[:at] + data[at + chance.randrange(64) :],
    )
    return chance.choice((*choices, data[:at] + chance.randbytes(8) + data[at:]))


def _length(data: bytes, chance: random.Random) -> bytes:
    length = chance.choice(
        (0, 1, 7, 8, len(data), len(data) - 8, 2**31, 2**63, 2**64 - 1, chance.randrange(len(data) + 1))
    )
    return length.to_bytes(LENGTH, "little") + data[LENGTH:]


def _splice(data: bytes, chance: random.Random) -> bytes:
    """Something else within the header's text."""
    length = min(int.from_bytes(data[:LENGTH], "little"), len(data) - LENGTH)
    at = LENGTH + chance.randrange(max(1, length))
    new = chance.choice(
        (b"{", b"}", b"[", b'"', b",", b":", b"9", b"-", b"e9", b"null", b"\\u0000", b"\xff", b"[" * 50)
    )
    return data[:at] + new + data[at + len(new) :]


def _header(data: bytes, chance: random.Random) -> bytes:
    return _edited(data, chance, lambda content: content)


def _manifest(data: bytes, chance: random.Random) -> bytes:
    return _edited(data, chance, None)


def _edited(data: bytes, chance: random.Random, part: Callable[[Any], Any] | None) -> bytes:
    """Another value somewhere in the header, or in the manifest, with the length that then is right."""
    length = int.from_bytes(data[:LENGTH], "little")
    try:
        header = json.loads(data[LENGTH : LENGTH + length])
        if part is None:
            manifest = json.loads(header["__metadata__"]["sparseinfer"])
            _change(manifest, chance)
            header["__metadata__"]["sparseinfer"] = json.dumps(manifest)
        else:
            _change(part(header), chance)
    except (ValueError, KeyError, TypeError, RecursionError):
        return data  # an earlier change has damaged it
    text = json.dumps(header).encode()
    return len(text).to_bytes(LENGTH, "little") + text + data[LENGTH + length :]


def _change(content: Any, chance: random.Random) -> None:
    """Walk to a random place, and put something else there."""
    while True:
        keys = list(content) if isinstance(content, dict) else list(range(len(content)))
        if not keys:
            return
        key = chance.choice(keys)
        inner = content[key]
        if isinstance(inner, (dict, list)) and inner and chance.random() < 0.85:
            content = inner
            continue
        other = content[chance.choice(keys)]
        if isinstance(content, dict) and chance.random() < 0.2:
            del content[key]
        else:
            content[key] = chance.choice((*_VALUES, other, other))
            if isinstance(inner, int) and chance.random() < 0.5:
                content[key] = inner + chance.choice((-64, -8, -1, 1, 8, 64))
        return


_MUTATIONS = (_bits, _bits, _size, _length, _splice, _header, _header, _manifest, _manifest, _manifest)
