"""What modules say of the sizes of their weights: which axis makes outputs, and attributes with a size."""

from __future__ import annotations

from typing import Any

from torch import Tensor, nn

_CONVOLUTIONS = (nn.Conv1d, nn.Conv2d, nn.Conv3d)
_TRANSPOSED = (nn.ConvTranspose1d, nn.ConvTranspose2d, nn.ConvTranspose3d)

# Attributes of modules that count heads, or all their elements: the names that transformers, timm and
# diffusers give them. If the projections of a module lose heads, they become smaller in proportion.
HEADS = frozenset(
    (
        *("num_heads", "n_heads", "n_head", "num_attention_heads", "heads", "nheads", "num_query_heads"),
        *("num_key_value_heads", "num_kv_heads", "n_kv_heads", "n_kv_head", "n_head_kv", "kv_heads"),
        *("all_head_size", "embed_dim", "inner_dim", "split_size", "attn_dim"),
    )
)
# Of modules whose weights make or read neurons.
NEURONS = frozenset(
    ("intermediate_size", "ffn_dim", "d_ff", "hidden_features", "n_inner", "hidden_dim", "mlp_dim")
)
# Of modules that take or make the embedding width.
WIDTH = frozenset(("embed_dim", "hidden_size", "d_model", "dim", "n_embd", "embedding_size", "num_features"))
# In a config, by what is shortened.
CONFIG = {"heads": HEADS, "neurons": NEURONS | {"encoder_ffn_dim", "decoder_ffn_dim"}, "width": WIDTH}
CONFIG["heads"] |= {"encoder_attention_heads", "decoder_attention_heads", "num_decoder_heads"}


def output_axis(module: nn.Module, name: str) -> int | None:
    """The axis of a weight that makes what its module puts out. None: no such weight."""
    if name != "weight":
        return None
    if isinstance(module, (nn.Linear, *_CONVOLUTIONS)):
        return 0
    if isinstance(module, (*_TRANSPOSED, nn.Embedding)) or is_conv1d(module):
        return 1
    return None


def input_axis(module: nn.Module, name: str) -> int | None:
    """The axis of a weight that meets what its module is given. None: no such weight, or a depthwise one."""
    axis = output_axis(module, name)
    if axis is None or isinstance(module, nn.Embedding):
        return None
    return None if getattr(module, "groups", 1) > 1 else 1 - axis


def is_conv1d(module: nn.Module) -> bool:
    """Whether it is the Conv1D of transformers, which need not be installed."""
    return type(module).__name__ == "Conv1D" and hasattr(module, "nf")


def fixed_weights(model: nn.Module) -> dict[str, str]:
    """Weights that stay as they are whatever the operators say, with the reason."""
    fixed: dict[str, str] = {}
    for fqn, module in model.named_modules():
        if isinstance(module, nn.MultiheadAttention):
            text = f"{fqn}: nn.MultiheadAttention reads as many rows as its embedding is wide, for all heads"
            fixed |= {f"{fqn}.{name}".strip("."): text for name, _ in module.named_parameters()}
        elif isinstance(module, (nn.RNNBase, nn.RNNCellBase)):
            text = f"{fqn}: the state of a recurrent layer has a fixed size"
            fixed |= {f"{fqn}.{name}".strip("."): text for name, _ in module.named_parameters()}
    return fixed


def sizes_of(module: nn.Module) -> dict[str, Any]:
    """The attributes of one of torch's modules that its weights determine, as these are now."""
    weight = getattr(module, "weight", None)
    if not isinstance(weight, Tensor):
        mean = getattr(module, "running_mean", None)
        return (
            {"num_features": len(mean)}
            if isinstance(mean, Tensor) and hasattr(module, "num_features")
            else {}
        )
    shape = tuple(weight.shape)
    if isinstance(module, nn.Linear):
        return {"out_features": shape[0], "in_features": shape[1]}
    if isinstance(module, _CONVOLUTIONS):
        old: Any = module
        groups = old.groups
        if groups > 1 and groups == old.in_channels:
            groups = shape[0] * old.in_channels // old.out_channels
        return {"out_channels": shape[0], "in_channels": shape[1] * groups, "groups": groups}
    if isinstance(module, _TRANSPOSED):
        return {"in_channels": shape[0], "out_channels": shape[1] * module.groups}
    if isinstance(module, (nn.LayerNorm, nn.RMSNorm)):
        return {"normalized_shape": shape}
    if isinstance(module, nn.GroupNorm):
        return {"num_channels": shape[0]}
    if isinstance(module, nn.Embedding):
        return {"embedding_dim": shape[1]}
    if isinstance(module, nn.PReLU):
        return {"num_parameters": shape[0]}
    if is_conv1d(module):
        return {"nf": shape[1], "nx": shape[0]}
    return {"num_features": shape[0]} if hasattr(module, "num_features") else {}
