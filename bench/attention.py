"""Times native attention against torch's, both fed with views of projections [batch, tokens, hidden].

    python bench/attention.py FILE --batch 1 4 16 --tokens 8 32 128 384 512 --heads 12 --dim 64

Milliseconds of the fastest of runs that take turns; `ratio` is torch's time by that of the native kernel,
which `sparseinfer/modules/attended.py` takes for the sizes that are stated there.
"""

from __future__ import annotations

import argparse
import itertools
import json
from functools import partial
from pathlib import Path

import torch
from rich.console import Console
from torch import Tensor
from torch.nn import functional as F

from sparseinfer import ops
from sparseinfer._machine import describe_machine
from sparseinfer._timing import interleave, num_threads


def fastest(q: Tensor, k: Tensor, v: Tensor, mask: Tensor | None, budget: float) -> tuple[float, float]:
    """Milliseconds of torch's attention and of the native one."""
    calls = {
        "torch": [partial(F.scaled_dot_product_attention, q, k, v, mask)],
        "native": [partial(ops.attention, q, k, v, mask, q.shape[-1] ** -0.5)],
    }
    times = interleave(calls, budget_s=budget)
    return times["torch"].min_us / 1e3, times["native"].min_us / 1e3


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawTextHelpFormatter)
    parser.add_argument("file", type=Path)
    parser.add_argument("--batch", type=int, nargs="+", default=[1, 4, 16])
    parser.add_argument("--tokens", type=int, nargs="+", default=[1, 8, 16, 32, 64, 128, 197, 384, 512])
    parser.add_argument("--heads", type=int, nargs="+", default=[12])
    parser.add_argument("--dim", type=int, nargs="+", default=[32, 64, 80, 128])
    parser.add_argument("--keys", type=int, nargs="+", default=[0], help="0: as many as queries")
    parser.add_argument("--masks", choices=("none", "keys", "pairs"), nargs="+", default=["none", "pairs"])
    parser.add_argument("--threads", type=int, default=2)
    parser.add_argument("--budget", type=float, default=0.2, help="seconds for each row")
    options = parser.parse_args()
    rows = []
    sizes = (options.batch, options.tokens, options.keys, options.heads, options.dim, options.masks)
    with num_threads(options.threads), torch.inference_mode():
        for batch, queries, keys, heads, dim, kind in itertools.product(*sizes):
            keys = keys or queries
            q, k, v = (
                torch.randn(batch, tokens, heads * dim).view(batch, tokens, heads, dim).transpose(1, 2)
                for tokens in (queries, keys, keys)
            )
            shape = {"none": None, "keys": (batch, 1, 1, keys), "pairs": (batch, 1, queries, keys)}[kind]
            mask = None if shape is None else torch.ones(shape, dtype=torch.bool)
            torchs, native = fastest(q, k, v, mask, options.budget)
            row = {"batch": batch, "queries": queries, "keys": keys, "heads": heads, "dim": dim, "mask": kind}
            row |= {"torch_ms": round(torchs, 4), "native_ms": round(native, 4)}
            rows.append(row | {"ratio": round(torchs / native, 2)})
            Console().print(*rows[-1].values())
    content = {"machine": describe_machine(ops.active_isa()), "threads": options.threads, "rows": rows}
    options.file.write_text(json.dumps(content, indent=1) + "\n", encoding="utf-8")


if __name__ == "__main__":
    main()
