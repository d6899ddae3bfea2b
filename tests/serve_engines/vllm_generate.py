"""Generates greedily with vLLM, in a process of its own, and writes what came as JSON.

    python vllm_generate.py '{"model": "folder", "quantization": "sparseinfer"}' FILE

The first argument holds keywords of `vllm.LLM`; with "own_from", too, packed layers leave their buckets from
this number on to vLLM's own product. Writes {"tokens": [[...], ...], "sparse": [n]}, n layers of each rank
that are sparse: into a file, since vLLM's processes print, too, even after the last answer.
"""

from __future__ import annotations

import json
import os
import sys
from pathlib import Path
from typing import Any

SETTINGS = {
    "VLLM_CPU_KVCACHE_SPACE": "1",
    "VLLM_CPU_OMP_THREADS_BIND": "nobind",
    "VLLM_ENABLE_V1_MULTIPROCESSING": "0",
    "VLLM_HOST_IP": "127.0.0.1",
    "VLLM_NO_USAGE_STATS": "1",
    "HF_HUB_OFFLINE": "1",
}
PROMPTS = ("The capital of France is", "Once upon a time", "def add(a, b):", "In the beginning God created")
TOKENS = 24


def sparse_layers(model: Any) -> int:
    return sum(hasattr(module, "sparseinfer_handle") for module in model.modules())


def hold_both(own_from: int) -> None:
    """Whatever is faster."""
    from sparseinfer.convert.one_by_one import OneByOne
    from sparseinfer.ops import parse_plan

    decide = OneByOne.sparse

    def sparse(self: Any, linear: Any) -> Any:
        made = decide(self, linear)
        return made and made._replace(own_at=tuple(range(own_from, len(parse_plan(made.layer.plan)))))

    OneByOne.sparse = sparse  # type: ignore[method-assign]


def main() -> None:
    os.environ.update(SETTINGS)
    from vllm import LLM, SamplingParams

    keywords = json.loads(sys.argv[1])
    if "own_from" in keywords:
        hold_both(keywords.pop("own_from"))
    llm = LLM(max_model_len=256, gpu_memory_utilization=0.3, seed=0, **keywords)
    greedy = SamplingParams(temperature=0, max_tokens=TOKENS, ignore_eos=True)
    answers = llm.generate(list(PROMPTS), greedy, use_tqdm=False)
    tokens = [list(answer.outputs[0].token_ids) for answer in answers]
    Path(sys.argv[2]).write_text(json.dumps({"tokens": tokens, "sparse": llm.apply_model(sparse_layers)}))


if __name__ == "__main__":
    main()
