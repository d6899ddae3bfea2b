"""Peak memory and page faults of a model's runs, dense and converted, each in a process of its own.

    python bench/memory.py FILE --model resnet-50 --batch 16 --sparsity 0.8

`before` are bytes that are resident before the runs, `above` those of their peak above them, `faults` the
minor page faults of a warm run.
"""

from __future__ import annotations

import argparse
import json
import subprocess
import sys
from dataclasses import asdict
from pathlib import Path

import torch
from rich.console import Console

from sparseinfer import Magnitude, convert, prune_
from sparseinfer._machine import describe_machine
from sparseinfer._timing import num_threads
from sparseinfer.bench.memory import memory_of
from sparseinfer.bench.models import MODELS
from sparseinfer.ops import active_isa


def measure(which: str, options: argparse.Namespace) -> None:
    """Prints the figures of one model as JSON. Dense ones are in torch's default memory format."""
    spec = MODELS[options.model]
    model, inputs = spec.build(), spec.inputs(options.batch)
    if which == "converted":
        prune_(model, Magnitude(options.sparsity), ignore=spec.ignore, keep_masks=False, progress=False)
        model = convert(model, example_inputs=spec.example(inputs), **spec.options)
    spec.run(model, spec.inputs(1))
    figures = asdict(memory_of(lambda: spec.run(model, inputs)))
    sys.stdout.write(json.dumps({"which": which, **figures}))


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawTextHelpFormatter)
    parser.add_argument("file", type=Path)
    parser.add_argument("--model", choices=MODELS, default="resnet-50")
    parser.add_argument("--batch", type=int, default=16)
    parser.add_argument("--sparsity", type=float, default=0.8)
    parser.add_argument("--threads", type=int, default=2)
    parser.add_argument("--only", choices=("dense", "converted"), help=argparse.SUPPRESS)
    options = parser.parse_args()
    if options.only:
        with num_threads(options.threads), torch.inference_mode():
            measure(options.only, options)
        return
    rows = []
    for which in ("dense", "converted"):
        command = [sys.executable, *sys.argv, "--only", which]
        done = subprocess.run(command, stdout=subprocess.PIPE, text=True, check=True)
        rows.append(json.loads(done.stdout.splitlines()[-1]))
        Console().print(rows[-1])
    about = {name: getattr(options, name) for name in ("model", "batch", "sparsity", "threads")}
    content = {"machine": describe_machine(active_isa()), **about, "rows": rows}
    options.file.write_text(json.dumps(content, indent=1) + "\n", encoding="utf-8")


if __name__ == "__main__":
    main()
