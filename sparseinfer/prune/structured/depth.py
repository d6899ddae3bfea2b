"""`prune_blocks_`: whole blocks of a model go."""

from __future__ import annotations

from collections import Counter
from collections.abc import Callable, Iterable, Mapping
from typing import Any

import torch
from torch import Tensor, nn

from sparseinfer._running import call, evaluating
from sparseinfer.prune.calibration.batches import Forward, checked_batches, every_batch
from sparseinfer.prune.checks import check_int, check_module
from sparseinfer.prune.structured.report import PrunedGroup, StructuredReport
from sparseinfer.prune.structured.shrink import Shrinking
from sparseinfer.prune.structured.structure import keep_blocks, set_structure, structure_of
from sparseinfer.prune.structured.tracing import run_watched, shapes_of


def prune_blocks_(
    model: nn.Module,
    batches: Iterable[Any],
    count: int,
    *,
    blocks: str | None = None,
    forward: Forward | None = None,
) -> StructuredReport:
    """Remove the blocks that change their inputs least, in place; returns a report.

    batches  as in `calibrate`; the first of them is run again with the smaller model
    count    how many blocks go
    blocks   the name of their nn.ModuleList or nn.Sequential; None: the longest list of equal modules whose
             outputs have the shapes of their inputs
    forward  (model, batch) -> output, instead of a call with the batch

    A block's score is 1 - the mean cosine of its input and its output, [..., features], over all tokens: Men
    et al. 2024, "ShortGPT: Layers in Large Language Models are More Redundant Than You Expect". The blocks
    that are left are numbered anew, in their attributes `layer_idx` and in the config, too.

    After an error the model is as before. TypeError or ValueError: an argument of the wrong kind, no such
    list, or blocks that cannot go because their inputs and outputs differ in shape. RuntimeError: the smaller
    model does not run.
    """
    check_module(model)
    check_int("count", count, 1)
    batches = list(every_batch(checked_batches(batches)))
    name = blocks if blocks is not None else _longest(model)
    held = dict(model.named_modules()).get(name)
    if not isinstance(held, (nn.ModuleList, nn.Sequential)):
        raise ValueError(f"blocks: expected the name of an nn.ModuleList or nn.Sequential, got {name!r}")
    if count >= len(held):
        raise ValueError(f"count: expected fewer than the {len(held)} blocks of {name!r}, got {count}")
    scores = _scores(model, {str(i): block for i, block in enumerate(held)}, batches, forward or call)
    alike = _weights_of_most(held)
    free = {
        i: score
        for i, (score, block) in enumerate(zip(scores, held, strict=True))
        if score is not None and {key for key, _ in block.named_parameters()} <= alike
    }
    if len(free) < count:
        hint = "a block goes if its output is shaped like its input, and it has no weight that others lack"
        raise ValueError(f"{name}: expected {count} blocks that can go, got {sorted(free)} ({hint})")
    gone = sorted(free, key=lambda i: free[i])[:count]
    kept = [i for i in range(len(held)) if i not in gone]
    before, size = sum(p.numel() for p in model.parameters()), len(held)
    outputs = shapes_of(_run(model, batches[0], forward))
    undo = Shrinking(model)
    try:
        _record(model, name, kept, undo)
        undo.add_undo(keep_blocks(held, kept))
        undo.add_undo(_renumber_config(model, name, size, kept))
        if shapes_of(_run(model, batches[0], forward)) != outputs:
            raise RuntimeError(f"{name}: expected outputs of the same shapes with fewer blocks, got others")
    except BaseException:
        undo.undo()
        raise
    after = sum(p.numel() for p in model.parameters())
    return StructuredReport([PrunedGroup(name, "blocks", size, len(kept))], parameters=(before, after))


def _longest(model: nn.Module) -> str:
    lists = {
        name: len(module)
        for name, module in model.named_modules()
        if isinstance(module, (nn.ModuleList, nn.Sequential)) and len({type(block) for block in module}) == 1
    }
    if not lists:
        raise ValueError("blocks: expected a model with a list of equal modules, got none")
    return max(lists, key=lambda name: lists[name])


def _weights_of_most(blocks: Iterable[nn.Module]) -> set[str]:
    """Names of parameters that more than half of the blocks have: others may serve all blocks, such as T5's
    positions, which its first block keeps.
    """
    blocks = list(blocks)
    counts = Counter(name for block in blocks for name, _ in block.named_parameters())
    return {name for name, count in counts.items() if 2 * count > len(blocks)}


def _run(model: nn.Module, batch: Any, forward: Forward | None) -> Any:
    if forward is None:
        return run_watched(model, batch)
    with evaluating(model), torch.no_grad():
        return forward(model, batch)


def _scores(
    model: nn.Module, blocks: Mapping[str, nn.Module], batches: list[Any], forward: Forward
) -> list[float | None]:
    """Of each block; None: it was not called, or its output is not shaped like its input."""
    sums: dict[str, list[float]] = {}
    unlike: set[str] = set()

    def note(name: str) -> Callable[..., None]:
        def hook(module: nn.Module, args: Any, kwargs: Any, output: Any) -> None:
            x = args[0] if args else kwargs.get("hidden_states")
            y = output[0] if isinstance(output, (tuple, list)) else output
            if not (isinstance(x, Tensor) and isinstance(y, Tensor) and x.shape == y.shape):
                unlike.add(name)
                return
            # Of images the features are the channels.
            dim = 1 if x.dim() == 4 else -1
            cosine = nn.functional.cosine_similarity(x.float(), y.float(), dim=dim)
            sums.setdefault(name, []).append(1 - float(cosine.mean()))

        return hook

    handles = [block.register_forward_hook(note(n), with_kwargs=True) for n, block in blocks.items()]
    try:
        with evaluating(model), torch.no_grad():
            for batch in batches:
                forward(model, batch)
    finally:
        for handle in handles:
            handle.remove()
    return [
        None if name in unlike or name not in sums else sum(sums[name]) / len(sums[name]) for name in blocks
    ]


def _record(model: nn.Module, name: str, kept: list[int], undo: Shrinking) -> None:
    """What is kept on the model of its structure, under the new numbers of the blocks."""
    before = structure_of(model)
    undo.add_undo(lambda: set_structure(model, before))
    structure = structure_of(model)
    held = structure.blocks.get(name)
    old = held["kept"] if held else list(range(len(model.get_submodule(name)._modules)))
    count = held["count"] if held else len(old)
    structure.blocks[name] = {"count": count, "kept": [old[i] for i in kept]}
    prefix = f"{name}." if name else ""

    def renamed(key: str) -> str | None:
        number, dot, rest = key.removeprefix(prefix).partition(".")
        if not key.startswith(prefix) or not number.isdecimal():
            return key
        return f"{prefix}{kept.index(int(number))}{dot}{rest}" if int(number) in kept else None

    for part in (structure.shapes, structure.attributes):
        moved = {new: value for key, value in part.items() if (new := renamed(key)) is not None}
        part.clear()
        part.update(moved)  # type: ignore[arg-type]
    set_structure(model, structure)


def _renumber_config(model: nn.Module, name_of_blocks: str, size: int, kept: list[int]) -> Callable[[], None]:
    """The number of layers in the model's config, and lists that have an entry for each."""
    config: Any = getattr(model, "config", None)
    if config is None or not hasattr(config, "to_dict"):
        return lambda: None
    before = dict(vars(config))
    names: tuple[str, ...] = ("num_hidden_layers", "n_layer", "num_layers")
    if getattr(config, "is_encoder_decoder", False):
        is_decoder = "decoder" in name_of_blocks
        names = ("decoder_layers", "num_decoder_layers") if is_decoder else ("encoder_layers", "num_layers")
    for name in names:
        if type(getattr(config, name, None)) is int and getattr(config, name) == size:
            setattr(config, name, len(kept))
    for name, value in list(vars(config).items()):
        if isinstance(value, list) and len(value) == size and name.startswith("layer"):
            setattr(config, name, [value[i] for i in kept])
    return lambda: (vars(config).clear(), vars(config).update(before))[1]
