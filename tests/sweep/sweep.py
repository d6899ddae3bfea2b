"""Many architectures, built tiny and pruned: is the converted model equal to the dense one?

    python tests/sweep/sweep.py transformers
    python tests/sweep/sweep.py timm --only resnet10t --json /tmp

One line per architecture: its largest relative error and how many layers became sparse, or what differs. The
exit code is 1 if any differs or cannot be built.
"""

from __future__ import annotations

import argparse
import gc
import importlib
import json
import os
import resource
import signal
import sys
import tempfile
import time
import warnings
from collections.abc import Callable, Mapping
from dataclasses import asdict
from pathlib import Path
from typing import Any

import torch
from case import Case
from checks import WAYS, Checks
from rich.console import Console
from rich.markup import escape
from rich.progress import track

FAMILIES = {"transformers": "hf_models", "timm": "timm_models"}
MOST_S, MOST_BYTES = 120, 12 << 30


def main() -> int:
    options = _arguments()
    _quiet()
    torch.set_num_threads(options.threads)
    torch.set_grad_enabled(False)
    # Not the reader's verdicts; nothing is measured, but none may be remembered either.
    cache = tempfile.TemporaryDirectory()
    os.environ["SPARSEINFER_CACHE_DIR"] = cache.name
    resource.setrlimit(resource.RLIMIT_AS, (MOST_BYTES, MOST_BYTES))
    # Colours and a bar where someone looks; plain lines in a file.
    console = Console(width=None if sys.stdout.isatty() else 200, highlight=False)
    table = importlib.import_module(FAMILIES[options.family])
    builders: Mapping[str, Callable[[], Case]] = table.builders()
    chosen = [name for name in builders if not options.only or name in options.only]
    if options.match:
        chosen = [name for name in builders if options.match in name]
    if not chosen:
        console.print(f"none of the {len(builders)} architectures is called so: {', '.join(builders)}")
        return 2
    start, found = time.perf_counter(), {}
    for name in track(chosen, "", console=console, disable=not console.is_terminal):
        found[name] = _one(builders[name], options.way, name in table.DENSE)
        console.print(_line(name, found[name]), soft_wrap=True)
        gc.collect()
    seconds = time.perf_counter() - start
    verdicts = [row["verdict"] for row in found.values()]
    counts = {verdict: verdicts.count(verdict) for verdict in ("ok", "FAIL", "cannot be built")}
    console.print(
        f"{options.family}: " + ", ".join(f"{n} {v}" for v, n in counts.items()) + f"; {seconds:.0f} s"
    )
    if options.json:
        summary = {"family": options.family, "counts": counts, "seconds": round(seconds), "found": found}
        target = options.json / f"sweep_{options.family}.json"
        target.write_text(json.dumps(summary, indent=1) + "\n")
    cache.cleanup()
    return int(counts["ok"] != len(chosen))


def _arguments() -> argparse.Namespace:
    parser = argparse.ArgumentParser(description=(__doc__ or "").splitlines()[0])
    parser.add_argument("family", choices=FAMILIES)
    parser.add_argument("--only", nargs="+", metavar="NAME", help="these architectures")
    parser.add_argument("--match", help="architectures whose name holds this")
    parser.add_argument("--way", choices=WAYS, help="one way to convert instead of all")
    parser.add_argument("--threads", type=int, default=2)
    parser.add_argument("--json", type=Path, help="a folder for sweep_<family>.json, all that was found")
    return parser.parse_args()


def _quiet() -> None:
    warnings.filterwarnings("ignore")
    os.environ["HF_HUB_OFFLINE"] = "1"
    os.environ["TRANSFORMERS_VERBOSITY"] = "error"


def _one(build: Callable[[], Case], way: str | None, stays_dense: bool) -> dict[str, Any]:
    start = time.perf_counter()
    try:
        with _limited():
            checks = Checks(build())
    except Exception as error:
        reason = f"{type(error).__name__}: {' '.join(str(error).split())[:200]}"
        return {"verdict": "cannot be built", "failures": [reason], "seconds": time.perf_counter() - start}
    try:
        with _limited():
            checks.run(way)
    except TimeoutError as error:
        checks.found.failures.append(str(error))
    if not way and bool(checks.found.sparse) == stays_dense:
        checks.found.failures.append(f"{checks.found.sparse} layers became sparse")
    found = asdict(checks.found)
    found["seconds"] = time.perf_counter() - start
    return {"verdict": "FAIL" if checks.found.failures else "ok", **found}


class _limited:
    """TimeoutError after a while."""

    def __enter__(self) -> None:
        signal.signal(signal.SIGALRM, self._late)
        signal.alarm(MOST_S)

    def __exit__(self, *_: object) -> None:
        signal.alarm(0)

    def _late(self, *_: object) -> None:
        raise TimeoutError(f"took longer than {MOST_S} s")


def _line(name: str, row: Mapping[str, Any]) -> str:
    colour = {"ok": "green", "FAIL": "red"}.get(row["verdict"], "yellow")
    head = f"[{colour}]{row['verdict']:<5}[/] {escape(name):<28} {row['seconds']:5.1f} s"
    if "ways" in row:
        head += f"  {row['ways']:>2} ways  {row['sparse']:>3}/{row['layers']:<3} sparse  {row['largest']:.0e}"
        head += f" ({row['where']})" if row["where"] else ""
        head += f"  {row['ties']} ties" if row["ties"] else ""
    return "\n".join([head, *(f"        {escape(failure)}" for failure in row["failures"])])


if __name__ == "__main__":
    sys.exit(main())
