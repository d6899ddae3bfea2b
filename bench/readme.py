"""The table and the charts of the README for this machine, in less than ten minutes on two cores.

    python bench/readme.py [--kind zen5] [STEP ...]      all steps, or those named; then the summary of all

Each step is one call of `sparseinfer bench` and writes bench/results/KIND/STEP.json; the summary
is README.md and charts beside them. KIND is made from the CPU's name unless it is given. Other engines take
part where they are installed, here or by `make bench-peers`.
"""

from __future__ import annotations

import argparse
import os
import re
import sys
import time
from collections.abc import Iterator
from pathlib import Path

from readme_summary import write_summary

from sparseinfer._machine import cpu_model
from sparseinfer.bench.peers.process import interpreter
from sparseinfer.bench.peers.worker import ENGINES
from sparseinfer.cli import main as command

RESULTS = Path(__file__).parent / "results"
THREADS = str(min(2, os.cpu_count() or 1))
FAMILIES = ("bert", "vit", "llama")
LAYERS = ("--tokens", "1", "16", "128", "--sparsity", "0.5", "0.8", "0.9", "--budget", "0.25", "--quiet")
MODELS = ("--sparsity", "0.8", "0.9", "--dtype", "f32", "bf16", "--budget", "2")
STEPS: dict[str, tuple[str, ...]] = {
    **{f"layers_{name}": ("--layers", name, *LAYERS) for name in FAMILIES},
    "bert-base": ("--model", "bert-base", *MODELS),
    "resnet-50": ("--model", "resnet-50", "--sparsity", "0.8", "0.9", "--budget", "2"),
    "minilm": ("--model", "minilm", "--sparsity", "0", "0.5", "0.7", "0.8", "0.9", "--budget", "1"),
}


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawTextHelpFormatter)
    parser.add_argument("steps", nargs="*", metavar="STEP", help=", ".join(STEPS))
    parser.add_argument(
        "--kind", default=_slug(cpu_model()), help="name of the folder (default: %(default)s)"
    )
    options = parser.parse_args()
    if unknown := set(options.steps) - set(STEPS):
        parser.error(f"steps: expected some of {', '.join(STEPS)}, got {', '.join(sorted(unknown))}")
    folder = RESULTS / options.kind
    folder.mkdir(exist_ok=True)
    start = time.perf_counter()
    for name in options.steps or STEPS:
        fixed = (
            "--threads",
            THREADS,
            "--peers",
            ",".join(_peers(name)),
            "--json",
            str(folder / f"{name}.json"),
        )
        if status := command(["bench", *STEPS[name], *fixed]):
            sys.exit(status)
    seconds = time.perf_counter() - start
    write_summary(folder, STEPS, FAMILIES)
    sys.stdout.write(f"{folder}: {seconds:.0f} s\n")


def _peers(step: str) -> Iterator[str]:
    yield "torch"
    if step.startswith("layers"):
        yield "torch-csr"
    for engine in ENGINES:
        try:
            interpreter(engine)
        except ValueError:
            continue
        yield engine


def _slug(cpu: str) -> str:
    return re.sub(r"[^a-z0-9]+", "_", cpu.lower()).strip("_")


if __name__ == "__main__":
    main()
