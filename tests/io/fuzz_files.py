"""Mutated files, many of them: python tests/io/fuzz_files.py --files 100000 --seed 0; ends at the first
fault.

The process may take 256 MiB more than at the start: whoever believes a size in a file of some 30 KB takes
more. With --atheris the fuzzer of that name, if it is installed, finds the bytes.
"""

from __future__ import annotations

import argparse
import random
import resource
import sys
import tempfile
import time
import types
from collections.abc import Iterator
from pathlib import Path

from file_mutations import Small, is_clear, mutated, original

_ROOM = 256 << 20


def main() -> int:
    parser = argparse.ArgumentParser()
    parser.add_argument("--files", type=int, default=100_000)
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--atheris", action="store_true")
    options, rest = parser.parse_known_args()
    with tempfile.TemporaryDirectory() as folder:
        data, file, model = original(Path(folder)), Path(folder) / "mutated.safetensors", Small()
        _limit_memory()
        if options.atheris:
            return _atheris(data, file, rest)
        start, refused = time.monotonic(), 0
        for number in range(options.files):
            chance = random.Random(f"{options.seed} {number}")
            clear = is_clear(mutated(data, chance), file, model)
            refused += clear
            if not clear:
                model = Small()  # it was filled
            if number % 5000 == 4999:
                seconds = time.monotonic() - start
                print(f"{number + 1} files, {refused} refused, {seconds:.0f} s", flush=True)  # noqa: T201
    return 0


def _limit_memory() -> None:
    pages = int(Path("/proc/self/statm").read_text().split()[0])
    limit = pages * resource.getpagesize() + _ROOM
    resource.setrlimit(resource.RLIMIT_AS, (limit, limit))


def _functions() -> Iterator[types.FunctionType]:
    """Those that read files and make formats."""
    for name, module in list(sys.modules.items()):
        if name.startswith(("sparseinfer.io", "sparseinfer.formats")):
            for value in list(vars(module).values()):
                held = vars(value).values() if isinstance(value, type) else (value,)
                yield from (f for f in held if isinstance(f, types.FunctionType) and f.__module__ == name)


def _atheris(data: bytes, file: Path, arguments: list[str]) -> int:
    import atheris

    corpus = file.parent / "corpus"
    corpus.mkdir()
    (corpus / "original").write_bytes(data)

    def one(data: bytes) -> None:
        is_clear(data, file, Small())

    for function in _functions():  # all of torch and numpy would take minutes
        atheris.instrument_func(function)
    atheris.Setup([sys.argv[0], str(corpus), *arguments], one)
    atheris.Fuzz()
    return 0


if __name__ == "__main__":
    sys.exit(main())
