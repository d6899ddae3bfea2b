"""Where the time of a converted encoder goes, with its layers run as blocks and one by one.

    python bench/profile_blocks.py FILE --sparsity 0.8 0.9 --batch 1 16

Milliseconds of the fastest of the runs, which take turns. torch's profiler would not do: it has to see every
operator, so under it nothing runs as a block. `rest` is all that is not one of the functions named.
"""

from __future__ import annotations

import argparse
import json
import time
from collections import defaultdict
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any
from unittest import mock

import torch
from rich.console import Console
from torch.nn import functional as F

from sparseinfer import Magnitude, convert, ops, prune_
from sparseinfer._machine import describe_machine
from sparseinfer._timing import num_threads
from sparseinfer.bench.models import MODELS
from sparseinfer.modules import chain, normed
from sparseinfer.modules.products import products_of
from sparseinfer.ops.cpu.network import Network

NETWORK = "network"
# What is timed, and the name of each call of it.
_TIMED: tuple[tuple[Any, str, Callable[..., str]], ...] = (
    (ops, "linear_block", lambda x, products, norm=None: f"{len(products)} products and layer norm"),
    (ops, "linear_parts", lambda *args: "q, k and v"),
    (ops, "linear", lambda *args: "one product"),
    (ops, "attention", lambda *args: "attention"),
    (F, "linear", lambda *args: "one product"),
    (F, "layer_norm", lambda *args: "layer norm"),
    (Network, "run", lambda *args: NETWORK),
)


@contextmanager
def timed(spent: defaultdict[str, float]) -> Iterator[None]:
    """Adds the seconds in each of the functions to `spent`."""

    def wrapped(function: Callable[..., Any], name: Callable[..., str]) -> Callable[..., Any]:
        def call(*args: Any, **kwargs: Any) -> Any:
            begin = time.perf_counter()
            result = function(*args, **kwargs)
            spent[name(*args, **kwargs)] += time.perf_counter() - begin
            return result

        return call

    patches = [mock.patch.object(at, name, wrapped(getattr(at, name), of)) for at, name, of in _TIMED]
    for patch in patches:
        patch.start()
    try:
        yield
    finally:
        for patch in patches:
            patch.stop()


def profile(run: Callable[[], object], *, blocks: bool) -> tuple[float, dict[str, float]]:
    """Milliseconds of one run, and of what is in it."""
    spent: defaultdict[str, float] = defaultdict(float)
    products = products_of if blocks else lambda *args: None
    with (
        mock.patch.object(normed, "products_of", products),
        mock.patch.object(chain, "products_of", products),
        timed(spent),
    ):
        begin = time.perf_counter()
        run()
        whole = time.perf_counter() - begin
    spent["rest"] = whole - sum(spent.values())
    largest = sorted(spent, key=lambda name: -spent[name])
    return 1e3 * whole, {name: round(1e3 * spent[name], 2) for name in largest}


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawTextHelpFormatter)
    parser.add_argument("file", type=Path)
    parser.add_argument("--model", choices=MODELS, default="bert-base")
    parser.add_argument("--sparsity", type=float, nargs="+", default=[0.8, 0.9])
    parser.add_argument("--batch", type=int, nargs="+", default=[1, 16])
    parser.add_argument("--threads", type=int, default=2)
    parser.add_argument("--budget", type=float, default=4.0, help="seconds for each row")
    options = parser.parse_args()
    spec, rows = MODELS[options.model], []
    with num_threads(options.threads), torch.inference_mode():
        for sparsity in options.sparsity:
            dense = spec.build()
            prune_(dense, Magnitude(sparsity), ignore=spec.ignore, keep_masks=False, progress=False)
            for batch in options.batch:
                inputs = spec.inputs(batch)
                fast = convert(dense, example_inputs=spec.example(inputs), **spec.options)
                best: dict[bool, tuple[float, dict[str, float]]] = {}
                end = time.perf_counter() + options.budget
                while time.perf_counter() < end:
                    for blocks in (False, True):
                        one = profile(lambda: spec.run(fast, inputs), blocks=blocks)  # noqa: B023
                        best[blocks] = min(best.get(blocks, one), one, key=lambda pair: pair[0])
                for blocks, (ms, parts) in best.items():
                    which = "blocks" if blocks else "one by one"
                    row = {"batch": batch, "sparsity": sparsity, "which": which, "ms": round(ms, 2)}
                    rows.append({**row, "parts": parts})
                    Console().print(rows[-1])
    about = {"model": options.model, "threads": options.threads, "dtype": "float32"}
    content = {"machine": describe_machine(ops.active_isa()), **about, "rows": rows}
    options.file.write_text(json.dumps(content, indent=1) + "\n", encoding="utf-8")


if __name__ == "__main__":
    main()
