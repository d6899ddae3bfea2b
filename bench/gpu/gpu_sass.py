"""Instructions per weight of the tiled CUDA kernels, counted in their machine code: needs no GPU.

    make cuda-build
    python bench/gpu/gpu_sass.py --json bench/results/gpu_sass.json

Per weight means per weight of the dense matrix: of a tile of 64 x 64 a lane has 128. sass_counts.py says what
is counted, and how often. Of bfloat16 alone: float16 has the same kernels but for the type of the product.
"""

from __future__ import annotations

import argparse
import json
import re
import shutil
import subprocess
import sys
from collections import Counter
from collections.abc import Iterable, Iterator, Mapping, Sequence
from importlib.util import find_spec
from pathlib import Path
from typing import Any

from gpu_model import sample
from gpu_native import BUILD, console
from rich.box import MARKDOWN, SIMPLE_HEAD
from rich.table import Table
from sass import Function, functions
from sass_counts import PIPES, Counts, count, pipe

from sparseinfer.ops.cuda.kernels import kernels

# Lane-operations per weight for which an H100 has time while the bytes of W arrive, by sparsity.
BUDGETS = {0.5: 11.2, 0.7: 7.2, 0.8: 5.1, 0.9: 3.0}
LANE_WEIGHTS = 128

_KERNEL = re.compile(r"spmm_tiled_(?:bulk|mma)I13__nv_bfloat16L\w+KindE(?P<kind>\d)ELi(?P<tokens>\d+)E")
_COUNTED = ("spmm", "bf16")
# Kinds as in csrc/include/sparseinfer/gpu_packings.h.
_PACKINGS = {"2": "bitmap", "3": "delta4", "4": "delta8"}


def disassembled(tool: Path, binary: Path) -> Iterator[Function]:
    command = [str(tool), "-sass", str(binary)]
    yield from functions(subprocess.run(command, check=True, capture_output=True, text=True).stdout)


def cuobjdump(given: Path | None) -> Path | None:
    """The tool: as given, on the PATH, of the CUDA toolkit or of Triton."""
    places = [given, shutil.which("cuobjdump"), "/usr/local/cuda/bin/cuobjdump"]
    if triton := find_spec("triton"):
        places += [
            Path(folder) / "backends/nvidia/bin/cuobjdump"
            for folder in triton.submodule_search_locations or ()
        ]
    return next((Path(path) for path in places if path and Path(path).exists()), None)


def report(compiled: Iterable[Function]) -> list[dict[str, Any]]:
    """One row per tiled kernel: its counts, and what a weight takes at each sparsity."""
    names = {(k.packing, k.tile_tokens, k.arch): k.name for k in kernels() if (k.op, k.dtype) == _COUNTED}
    rows = []
    for function in compiled:
        match = _KERNEL.search(function.name)
        if match is None:
            continue
        packing, tokens = _PACKINGS[match["kind"]], int(match["tokens"])
        arch = "sm90" if function.arch.startswith("sm_9") else "sm80"
        counts = count(function, tokens)
        per_weight = {}
        for sparsity in BUDGETS:
            tile = sample(packing, sparsity)
            per_weight[str(sparsity)] = _per_weight(counts.at(tile.pairs, tile.nbytes))
        rows.append(
            {
                "kernel": names[packing, tokens, arch],
                "per_weight": per_weight,
                "counts": {name: _rounded(code) for name, code in vars(counts).items()},
            }
        )
    return sorted(rows, key=lambda row: row["kernel"])


def _rounded(code: Mapping[str, float]) -> dict[str, float]:
    return {opcode: round(often, 3) for opcode, often in sorted(code.items())}


def _per_weight(tile: Mapping[str, float]) -> dict[str, float]:
    """All instructions, and those of each pipe."""
    by_pipe = Counter({"issued": sum(tile.values())} | dict.fromkeys(PIPES, 0.0))
    for opcode, often in tile.items():
        by_pipe[pipe(opcode)] += often
    return {name: round(often / LANE_WEIGHTS, 2) for name, often in by_pipe.items()}


def table(rows: Sequence[Mapping[str, Any]]) -> Table:
    """Instructions issued per weight, and of these the ALU's, of which half as many can be."""
    table = Table(box=MARKDOWN)
    table.add_column("kernel", no_wrap=True)
    for sparsity, budget in BUDGETS.items():
        table.add_column(f"{sparsity:.0%} of {budget}", justify="right")
        table.add_column(f"ALU of {budget / 2:.1f}", justify="right")
    for row in rows:
        cells = []
        for sparsity, budget in BUDGETS.items():
            figures = row["per_weight"][str(sparsity)]
            for name, limit in (("issued", budget), ("ALU", budget / 2)):
                text = f"{figures[name]:.2f}"
                cells.append(text if figures[name] <= limit else f"[red]{text}")
        table.add_row(row["kernel"], *cells)
    return table


def opcodes(rows: Sequence[Mapping[str, Any]], sparsity: float) -> Table:
    """What the instructions of a tile are, of the kernels for 8 tokens."""
    table = Table(box=SIMPLE_HEAD, title=f"instructions of a tile at {sparsity:.0%}, by opcode")
    table.add_column("kernel", no_wrap=True)
    table.add_column("")
    by_name = {kernel.name: kernel for kernel in kernels()}
    for row in rows:
        kernel = by_name[row["kernel"]]
        if kernel.tile_tokens == 8:
            tile, short = sample(kernel.packing, sparsity), Counter[str]()
            for opcode, often in Counts.loaded(row["counts"]).at(tile.pairs, tile.nbytes).items():
                short[opcode.split(".")[0]] += often
            table.add_row(
                row["kernel"], "  ".join(f"{name} {often:.0f}" for name, often in short.most_common())
            )
    return table


def main() -> int:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument(
        "--cuobjdump", type=Path, help="by default on the PATH, in the CUDA toolkit or Triton"
    )
    parser.add_argument("--json", type=Path)
    arguments = parser.parse_args()
    tool, binaries = cuobjdump(arguments.cuobjdump), sorted(BUILD.glob("_cuda.*.so"))
    if tool is None or not binaries:
        console.print(
            "no cuobjdump (name it by --cuobjdump)" if tool is None else "run `make cuda-build` first"
        )
        return 2
    rows = report(disassembled(tool, binaries[0]))
    console.print(table(rows))
    console.print(opcodes(rows, 0.5))
    console.print(opcodes(rows, 0.8))
    if arguments.json:
        lines = ",\n".join(json.dumps(row) for row in rows)
        arguments.json.write_text(f'{{"budgets": {json.dumps(BUDGETS)}, "rows": [\n{lines}\n]}}\n')
    return 0


if __name__ == "__main__":
    sys.exit(main())
