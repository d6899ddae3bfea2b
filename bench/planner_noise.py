"""Decisions of `convert` on a quiet machine against those made while another process burns one core.

    python bench/planner_noise.py [--runs N] [--threads N] [--json FILE]

The model has BERT-base's shape with random weights and its pooler: 73 Linears, 80 % pruned at random, for
128 tokens. Every conversion begins without remembered times. A layer's decision is its candidate for
each number of tokens; it counts as equal only if it is the very same. Where it differs, `loss` says how many
times the quiet time of the quiet decision the other one takes, by the times of the quiet conversion.
"""

from __future__ import annotations

import argparse
import json
import os
import subprocess
import sys
import tempfile
import time
from collections import Counter
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager, nullcontext
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from rich.console import Console
from rich.table import Table
from torch import nn

from sparseinfer import convert, explain
from sparseinfer._cache_files import DIRECTORY
from sparseinfer._machine import describe_machine
from sparseinfer.convert import apply
from sparseinfer.convert.decisions import Decision
from sparseinfer.convert.whole import REASON
from sparseinfer.ops import active_isa

SPARSITY, TOKENS = 0.8, 128
# Candidates that differ by less are equal to the planner, too.
EQUAL = 1.02


@dataclass(frozen=True)
class Run:
    """One conversion. `choices`: by layer its candidates; `us`: by layer the times of all, by tokens."""

    seconds: float
    choices: Mapping[str, tuple[str, ...]]
    us: Mapping[str, tuple[Mapping[str, float], ...]]

    def share(self, other: Run, within: float = 1.0) -> float:
        """Of the layers: those decided alike, or whose decision there costs at most so much more here."""
        return sum(self.loss(other, name) <= within for name in self.choices) / len(self.choices)

    def loss(self, other: Run, name: str) -> float:
        """Time that the other decision takes here over that of the own one; 1.0 if they are the same."""
        mine, theirs = self.choices[name], other.choices[name]
        if mine == theirs:
            return 1.0
        if len(mine) != len(theirs) or not all(c in us for c, us in zip(theirs, self.us[name], strict=True)):
            return float("inf")
        us = [sum(t[c] for c, t in zip(each, self.us[name], strict=True)) for each in (theirs, mine)]
        # Never exactly 1.0, which says that they are the same.
        return max(us[0] / us[1], 1.0 + 1e-9)


def bert() -> nn.Module:
    import transformers

    torch.manual_seed(0)
    model: nn.Module = transformers.BertModel(transformers.BertConfig()).eval()
    for module in model.modules():
        if isinstance(module, nn.Linear):
            module.weight.data *= torch.rand_like(module.weight) >= SPARSITY
    return model


def converted(model: nn.Module, inputs: Mapping[str, Any]) -> Run:
    taken: list[Decision] = []
    decide = apply.decide

    def noting(*args: Any, **options: Any) -> list[Decision]:
        taken[:] = decide(*args, **options)
        return taken

    apply.decide = noting
    try:
        with tempfile.TemporaryDirectory() as folder:
            os.environ[DIRECTORY] = folder
            start = time.perf_counter()
            fast = convert(model, example_inputs=inputs)
            seconds = time.perf_counter() - start
    finally:
        apply.decide = decide
    left = {row.layer for row in explain(fast).rows if row.reason == REASON}
    choices, us = {}, {}
    for decision in taken:
        plan = decision.plan
        names = (
            [str(layout) for layout in plan.chosen] if plan.is_sparse else [plan.dense_way] * len(plan.times)
        )
        for site in decision.product.sites:
            choices[site.fqn] = ("left",) * len(names) if site.fqn in left else tuple(names)
            us[site.fqn] = tuple(times.by_name for times in plan.times)
    return Run(seconds, choices, us)


@contextmanager
def burning() -> Iterator[None]:
    """Another process that never sleeps, as long as this one lives."""
    code = "import os; parent = os.getppid()\nwhile os.getppid() == parent: pass"
    process = subprocess.Popen([sys.executable, "-c", code])
    try:
        yield
    finally:
        process.kill()
        process.wait()


def compare(runs: Sequence[tuple[str, Run]], quiet: Run) -> list[dict[str, object]]:
    rows = []
    for machine, run in runs:
        other = Counter(
            f"{quiet.choices[name]} -> {run.choices[name]}, loss {quiet.loss(run, name):.3f}"
            for name in quiet.choices
            if quiet.loss(run, name) != 1.0
        )
        rows.append(
            {
                "machine": machine,
                "seconds": round(run.seconds, 1),
                "layers": len(run.choices),
                "equal": quiet.share(run),
                "equal_or_within_2_percent": quiet.share(run, EQUAL),
                "different": dict(other),
            }
        )
    return rows


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--runs", type=int, default=8, help="conversions, disturbed and quiet in turns")
    parser.add_argument("--threads", type=int, default=2)
    parser.add_argument("--json", type=Path)
    options = parser.parse_args()
    torch.set_num_threads(options.threads)
    model, inputs = bert(), {"input_ids": torch.arange(TOKENS).expand(1, -1)}
    quiet, runs, console = converted(model, inputs), [], Console()
    for number in range(options.runs):
        with nullcontext() if number % 2 else burning():
            runs.append(("quiet" if number % 2 else "one core burning", converted(model, inputs)))
        rows = compare(runs, quiet)
        console.print(rows[-1])
        if options.json:
            content = json.loads(options.json.read_text()) if options.json.exists() else {}
            content["machine"] = describe_machine(active_isa())
            content[f"threads {options.threads}"] = rows
            options.json.write_text(json.dumps(content, indent=1) + "\n")
    table = Table(title=f"decisions equal to those of a quiet conversion, {options.threads} thread(s)")
    for name in ("machine", "seconds", "equal", "or within 2 %"):
        table.add_column(name)
    for row in rows:
        shares = (f"{row[name]:.1%}" for name in ("equal", "equal_or_within_2_percent"))
        table.add_row(str(row["machine"]), str(row["seconds"]), *shares)
    console.print(table)


if __name__ == "__main__":
    main()
