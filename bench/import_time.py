"""What `import sparseinfer` costs beyond `import torch`: the least of several fresh processes, in seconds."""

from __future__ import annotations

import argparse
import json
import os
import subprocess
import sys
from dataclasses import asdict, dataclass
from pathlib import Path

# Importing a package that torch has loaded already is free, so the two figures add up.
_CODE = """
import time
start = time.perf_counter()
import torch
between = time.perf_counter()
import sparseinfer
print(between - start, time.perf_counter() - between)
"""


@dataclass(frozen=True)
class ImportTime:
    """Seconds: of `import torch`, and of `import sparseinfer` after it."""

    torch_s: float
    sparseinfer_s: float


def measure(processes: int) -> ImportTime:
    """The least of each figure over so many fresh processes, after one that writes the bytecode."""
    samples = [_sample() for _ in range(processes + 1)][1:]
    return ImportTime(min(s.torch_s for s in samples), min(s.sparseinfer_s for s in samples))


def _sample() -> ImportTime:
    # An installed package has its bytecode; a checkout whose user forbids to write it would be compiled anew.
    environment = {name: text for name, text in os.environ.items() if name != "PYTHONDONTWRITEBYTECODE"}
    command = [sys.executable, "-c", _CODE]
    shown = subprocess.run(command, check=True, capture_output=True, text=True, env=environment).stdout
    torch_s, sparseinfer_s = map(float, shown.split())
    return ImportTime(torch_s, sparseinfer_s)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--processes", type=int, default=7, help="fresh processes to time (default: 7)")
    parser.add_argument("--json", type=Path, help="also write the figures to this file")
    args = parser.parse_args()
    if args.processes < 1:
        parser.error(f"--processes: expected a positive number, got {args.processes}")
    result = measure(args.processes)
    lines = (
        f"torch                    {result.torch_s:.3f} s",
        f"sparseinfer, after torch {result.sparseinfer_s:.3f} s",
    )
    sys.stdout.write("\n".join(lines) + "\n")
    if args.json is not None:
        args.json.write_text(json.dumps(asdict(result), indent=2) + "\n", encoding="utf-8")


if __name__ == "__main__":
    main()
