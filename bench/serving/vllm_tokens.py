"""Tokens per second of vLLM on this CPU: pruned SmolLM2-135M, its dense layers against sparse ones.

    python bench/serving/smollm2.py DIR --dtype bfloat16
    python bench/serving/vllm_tokens.py DIR/dense --dtype bfloat16 --json FILE

Both engines are in one process and take turns; a rate is that of the fastest turn. --config are options of
the plug-in: with {"memory": "compact"} every layer is packed, not only those that are faster for any tokens.
Runs in the environment of `make serve-test-vllm`. Rows are added to those of the file.
"""

from __future__ import annotations

import argparse
import json
import os
import sys
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import torch
from safetensors.torch import load_file

sys.path.append(str(Path(__file__).parents[2] / "tests/serve_engines"))
from vllm_generate import SETTINGS, sparse_layers

from sparseinfer import ops
from sparseinfer._machine import describe_machine
from sparseinfer.bench.report import write_json

TOKENS = 64
PROMPT = (504, 3575, 282, 4649, 314)


def measured(
    folder: str, dtype: str, config: dict[str, Any], batches: list[int], turns: int
) -> Iterator[dict[str, Any]]:
    from vllm import LLM, SamplingParams

    overrides = {"quantization_config": {"quant_method": "sparseinfer", **config}}
    common = {"model": folder, "dtype": dtype, "max_model_len": 256, "gpu_memory_utilization": 0.3, "seed": 0}
    engines = {"dense": LLM(**common), "sparse": LLM(**common, hf_overrides=overrides)}
    greedy = SamplingParams(temperature=0, max_tokens=TOKENS, ignore_eos=True, detokenize=False)
    sparsity = round(_sparsity(Path(folder)), 2)
    (sparse,) = engines["sparse"].apply_model(sparse_layers)
    for batch in batches:
        prompts = [{"prompt_token_ids": list(PROMPT)} for _ in range(batch)]
        seconds: dict[str, list[float]] = {name: [] for name in engines}
        tokens = {}
        for turn in range(turns + 1):
            for name, engine in engines.items():
                start = time.perf_counter()
                answers = engine.generate(prompts, greedy, use_tqdm=False)
                if turn:  # the first warms up
                    seconds[name].append(time.perf_counter() - start)
                tokens[name] = [list(answer.outputs[0].token_ids) for answer in answers]
        rates = {name: batch * TOKENS / min(times) for name, times in seconds.items()}
        same = sum(a == b for a, b in zip(tokens["dense"], tokens["sparse"], strict=True))
        yield {
            "model": "smollm2",
            "dtype": dtype,
            "batch": batch,
            "sparsity": sparsity,
            "config": config,
            "sparse_layers": sparse,
            "dense_tokens_per_s": rates["dense"],
            "sparse_tokens_per_s": rates["sparse"],
            "speed_up": rates["sparse"] / rates["dense"],
            "same_answers": f"{same} of {batch}",
        }


def _sparsity(folder: Path) -> float:
    """Of the Linears in its blocks."""
    weights = [t for name, t in load_file(folder / "model.safetensors").items() if "_proj." in name]
    return sum(int((t == 0).sum()) for t in weights) / sum(t.numel() for t in weights)


def main() -> None:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("folder")
    parser.add_argument("--dtype", default="float32")
    parser.add_argument("--config", type=json.loads, default={}, help="JSON of options of the plug-in")
    parser.add_argument("--batch", nargs="+", type=int, default=[1, 8])
    parser.add_argument("--threads", type=int, default=2)
    parser.add_argument("--turns", type=int, default=6)
    parser.add_argument("--json", type=Path, required=True)
    options = parser.parse_args()
    os.environ.update(SETTINGS)
    torch.set_num_threads(options.threads)
    rows = json.loads(options.json.read_text())["rows"] if options.json.exists() else []
    for row in measured(options.folder, options.dtype, options.config, options.batch, options.turns):
        sys.stdout.write(json.dumps(row) + "\n")
        cell = ("dtype", "sparsity", "batch", "config")
        same_cell = [other for other in rows if all(other[name] == row[name] for name in cell)]
        rows = [*(other for other in rows if other not in same_cell), {**row, "threads": options.threads}]
        write_json(options.json, {"machine": describe_machine(ops.active_isa()), "rows": rows})


if __name__ == "__main__":
    main()
