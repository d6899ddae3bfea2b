"""Finds norms whose results only linear layers read: scales of these inputs can be folded into the norm.

That nobody else reads a norm is known from the forward of a few classes, of torch and of transformers, and of
nothing else: no run with some inputs can prove it.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from itertools import pairwise

from torch import nn

from sparseinfer._transposed import is_transposed_linear
from sparseinfer.prune.layers.layer import Layer
from sparseinfer.prune.masks.held import HeldMask

# (name of a norm in a block, names of the weights that read it)
_Reads = Sequence[tuple[str, Sequence[str]]]

_LLAMA: _Reads = (
    ("input_layernorm", ("self_attn.q_proj", "self_attn.k_proj", "self_attn.v_proj")),
    ("post_attention_layernorm", ("mlp.gate_proj", "mlp.up_proj")),
)
_ENCODER: _Reads = (("norm1", ("self_attn.in_proj_weight",)), ("norm2", ("linear1",)))
# By the module and the name of the class.
_BLOCKS: Mapping[str, _Reads] = {
    f"transformers.models.{name.lower()}.modeling_{name.lower()}.{name}DecoderLayer": _LLAMA
    for name in ("Llama", "Mistral", "Qwen2", "Qwen3")
} | {
    "transformers.models.gpt2.modeling_gpt2.GPT2Block": (
        ("ln_1", ("attn.c_attn",)),
        ("ln_2", ("mlp.c_fc",)),
    ),
    "torch.nn.modules.transformer.TransformerEncoderLayer": _ENCODER,
}
# Norms whose result is proportional to their weight, but for a bias.
_NORMS = {"LayerNorm", "RMSNorm", *(f"{name}RMSNorm" for name in ("Llama", "Mistral", "Qwen2", "Qwen3"))}


@dataclass(frozen=True, eq=False)
class Fold:
    """A norm, its name, and the layers that read its result, which nobody else does."""

    norm: nn.Module
    fqn: str
    layers: tuple[Layer, ...]


def folds(model: nn.Module, layers: Mapping[str, Layer]) -> tuple[list[Fold], dict[str, str]]:
    """The folds of a model, and why each of the other layers has none."""
    found, refused = [], dict.fromkeys(layers, "nothing proves that only linear layers read its inputs")
    uses = Counter(id(p) for m in model.modules() for p in m._parameters.values() if p is not None)
    places = Counter(id(m) for _, m in model.named_modules(remove_duplicate=False))
    for block_name, block in model.named_modules():
        for norm_name, readers in _reads_of(block):
            names = [f"{block_name}.{reader}".removeprefix(".") for reader in readers]
            fqn = f"{block_name}.{norm_name}".removeprefix(".")
            selected = [layers[name] for name in names if name in layers]
            norm = block.get_submodule(norm_name)
            why = None
            if len(selected) < len(names):
                why = f"others that are not quantized read {fqn} too"
            elif not _is_norm(norm):
                why = f"{fqn} is no norm with a weight for each input"
            elif any(layer.shape[2] != norm.get_parameter("weight").numel() for layer in selected):
                why = f"{fqn} has another number of weights than the layer has inputs"
            elif any(
                uses[id(p)] > 1 for m in (norm, *(s.module for s in selected)) for p in m.parameters(False)
            ):
                why = f"{fqn} or a layer that reads it shares a parameter"
            elif any(places[id(m)] > 1 for m in (block, norm, *(s.module for s in selected))):
                why = f"{fqn} or a layer that reads it is in the model twice"
            elif any(_is_watched(m) for m in (block, *block.modules())):
                why = f"a hook or a forward of its own in {block_name or 'the model'} may read {fqn}"
            if why is None:
                found.append(Fold(norm, fqn, tuple(selected)))
                refused = {name: reason for name, reason in refused.items() if name not in names}
            else:
                refused |= {layer.fqn: why for layer in selected}
    return found, refused


def _reads_of(block: nn.Module) -> Iterator[tuple[str, Sequence[str]]]:
    kind = type(block)
    if kind is nn.Sequential:
        for (norm, before), (reader, after) in pairwise(block.named_children()):
            if _is_norm(before) and (type(after) is nn.Linear or is_transposed_linear(after)):
                yield norm, (reader,)
        return
    if isinstance(block, nn.TransformerEncoderLayer) and not block.norm_first:
        return
    yield from _BLOCKS.get(f"{kind.__module__}.{kind.__qualname__}", ())


def _is_norm(module: nn.Module) -> bool:
    if type(module).__name__ not in _NORMS or not type(module).__module__.startswith(
        ("torch.nn.", "transformers.")
    ):
        return False
    weight = module._parameters.get("weight")
    return weight is not None and weight.dim() == 1


def _is_watched(module: nn.Module) -> bool:
    hooks = [*module._forward_hooks.values(), *module._forward_pre_hooks.values()]
    return "forward" in vars(module) or any(not isinstance(hook, HeldMask) for hook in hooks)
