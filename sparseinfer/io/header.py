"""The header of a safetensors file: written with aligned tensors, and read without trusting it.

8 bytes: the header's length, little endian. The header: a JSON object, padded by spaces, that gives for each
tensor its dtype, shape and the range of its bytes, and under "__metadata__" texts. Then the bytes of the
tensors, without gaps. What is not a multiple of 64 bytes is followed by a tensor of zeros, so that every
other tensor begins at a multiple of 64 bytes of the file.
"""

from __future__ import annotations

import json
from collections.abc import Iterable, Mapping
from dataclasses import dataclass
from math import prod
from typing import Any, NoReturn

import torch

ALIGNMENT = 64
PADDING = "__padding__."

_METADATA = "__metadata__"
_LENGTH_BYTES = 8
# As the safetensors library has it.
_MOST_HEADER_BYTES = 100_000_000
# What Python's objects take at most for each mark of JSON, and how much they may in any case: a file of 4 KB
# may well hold some hundred names. Together they bound what a lying header makes us allocate.
_BYTES_PER_MARK = 120
_ALWAYS_ALLOWED = 64 << 20
# No file has so many bytes, and a product of two sizes is still an int64.
_LIMIT = 2**60

DTYPES = {
    "F64": torch.float64,
    "F32": torch.float32,
    "F16": torch.float16,
    "BF16": torch.bfloat16,
    "F8_E4M3": torch.float8_e4m3fn,
    "F8_E5M2": torch.float8_e5m2,
    "I64": torch.int64,
    "I32": torch.int32,
    "I16": torch.int16,
    "I8": torch.int8,
    "U64": torch.uint64,
    "U32": torch.uint32,
    "U16": torch.uint16,
    "U8": torch.uint8,
    "BOOL": torch.bool,
}
DTYPE_NAMES = {dtype: name for name, dtype in DTYPES.items()}


@dataclass(frozen=True)
class Entry:
    """A tensor of the file: bytes [begin, end) from the end of the header."""

    dtype: torch.dtype
    shape: tuple[int, ...]
    begin: int
    end: int

    @property
    def nbytes(self) -> int:
        return self.end - self.begin


@dataclass(frozen=True)
class Header:
    """entries   by name, in the order of the file, without padding
    metadata  texts by name
    start     where the bytes of the tensors begin
    """

    entries: Mapping[str, Entry]
    metadata: Mapping[str, str]
    start: int


def header_bytes(
    tensors: Iterable[tuple[str, torch.dtype, tuple[int, ...]]], metadata: Mapping[str, str]
) -> bytes:
    """The beginning of a file that holds these tensors in this order, each followed by `padding_after` it."""
    content: dict[str, Any] = {_METADATA: dict(metadata)}
    at = 0
    for name, dtype, shape in tensors:
        nbytes = prod(shape) * dtype.itemsize
        content[name] = _entry(DTYPE_NAMES[dtype], shape, at, at + nbytes)
        at += nbytes
        if gap := padding_after(nbytes):
            content[f"{PADDING}{at}"] = _entry("U8", (gap,), at, at + gap)
            at += gap
    text = json.dumps(content, separators=(",", ":"), ensure_ascii=False).encode()
    text += b" " * padding_after(_LENGTH_BYTES + len(text))
    return len(text).to_bytes(_LENGTH_BYTES, "little") + text


def padding_after(nbytes: int) -> int:
    """Bytes up to the next multiple of ALIGNMENT."""
    return -nbytes % ALIGNMENT


def parse_header(data: memoryview) -> Header:
    """The header of a whole file. ValueError: it is none, or does not describe the file exactly."""
    size = len(data)
    length = int.from_bytes(data[:_LENGTH_BYTES], "little")
    if size < _LENGTH_BYTES or length > size - _LENGTH_BYTES:
        raise ValueError(f"header: expected a safetensors file, got {size} bytes with a header of {length}")
    if length > _MOST_HEADER_BYTES:
        raise ValueError(f"header: expected at most {_MOST_HEADER_BYTES} bytes, got {length}")
    start = _LENGTH_BYTES + length
    content = parse_json("header", bytes(data[_LENGTH_BYTES:start]), size)
    if not isinstance(content, dict):
        raise ValueError(f"header: expected a JSON object, got {type(content).__name__}")
    metadata = content.pop(_METADATA, {})
    if not isinstance(metadata, dict) or not all(isinstance(text, str) for text in metadata.values()):
        raise ValueError("header: expected texts under __metadata__, got others")
    entries = {name: _parsed(name, entry) for name, entry in content.items()}
    in_order = dict(sorted(entries.items(), key=lambda item: (item[1].begin, item[1].end)))
    at = 0
    for name, entry in in_order.items():
        if entry.begin != at:
            raise ValueError(f"{name}: expected bytes from {at} on, got {entry.begin} (a gap or an overlap)")
        at = entry.end
    if at != size - start:
        raise ValueError(f"header: expected tensors of {size - start} bytes, got {at} (is the file whole?)")
    shown = {name: entry for name, entry in in_order.items() if not name.startswith(PADDING)}
    return Header(shown, metadata, start)


def parse_json(what: str, text: bytes | str, file_bytes: int) -> Any:
    """JSON of a file of that size. ValueError: it is none, has a key twice, or would take too much memory."""
    marks = text if isinstance(text, bytes) else text.encode("utf-8", "surrogatepass")
    count = sum(marks.count(mark) for mark in (b",", b"[", b"{", b":"))
    if count * _BYTES_PER_MARK > max(4 * file_bytes, _ALWAYS_ALLOWED):
        raise ValueError(f"{what}: expected JSON that fits the file's {file_bytes} bytes, got {count} items")
    try:
        return json.loads(text, object_pairs_hook=_unique, parse_constant=_refuse_constant)
    except (ValueError, RecursionError) as error:
        raise ValueError(f"{what}: expected JSON, got {type(error).__name__}: {str(error)[:200]}") from None


def _unique(pairs: list[tuple[str, Any]]) -> dict[str, Any]:
    content = dict(pairs)
    if len(content) != len(pairs):
        raise ValueError("a key twice")
    return content


def _refuse_constant(text: str) -> NoReturn:
    raise ValueError(f"the constant {text}")


def _entry(dtype: str, shape: tuple[int, ...], begin: int, end: int) -> dict[str, Any]:
    return {"dtype": dtype, "shape": list(shape), "data_offsets": [begin, end]}


def _parsed(name: str, entry: Any) -> Entry:
    if not isinstance(entry, dict) or set(entry) != {"dtype", "shape", "data_offsets"}:
        raise ValueError(f"{name}: expected dtype, shape and data_offsets, got {str(entry)[:80]}")
    dtype, shape, offsets = entry["dtype"], entry["shape"], entry["data_offsets"]
    if not isinstance(dtype, str) or dtype not in DTYPES:
        raise ValueError(f"{name}: expected a dtype of {', '.join(DTYPES)}, got {str(dtype)[:80]!r}")
    if not _are_sizes(shape) or len(shape) > 64 or prod(max(size, 1) for size in shape) >= _LIMIT:
        raise ValueError(f"{name}: expected a shape of sizes from 0, got {str(shape)[:80]}")
    if not _are_sizes(offsets) or len(offsets) != 2 or offsets[0] > offsets[1]:
        raise ValueError(f"{name}: expected the two ends of its bytes, got {str(offsets)[:80]}")
    expected = prod(shape) * DTYPES[dtype].itemsize
    if offsets[1] - offsets[0] != expected:
        # Sizes may be absurd: their product is not printed, which could take long.
        raise ValueError(
            f"{name}: expected as many bytes as {str(shape)[:80]} has, got {offsets[1] - offsets[0]}"
        )
    return Entry(DTYPES[dtype], tuple(shape), offsets[0], offsets[1])


def _are_sizes(value: Any) -> bool:
    return isinstance(value, list) and all(type(size) is int and 0 <= size < _LIMIT for size in value)
