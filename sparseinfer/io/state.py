"""The state of a model as the dense model has it, weight by weight: that of converted layers is restored."""

from __future__ import annotations

import json
from collections.abc import Callable
from dataclasses import dataclass, field
from typing import Any

import torch
from torch import Tensor, nn
from torch.nn.utils import prune

from sparseinfer import ops
from sparseinfer._int8 import scale_name
from sparseinfer.convert.assembly.assemble import is_replacement, restored
from sparseinfer.formats.dtypes import WEIGHT_DTYPES
from sparseinfer.io.manifest import Sparse
from sparseinfer.io.smallest import AnyFormat, compressed, described
from sparseinfer.io.writer import storable
from sparseinfer.modules import SharedInputLinear
from sparseinfer.modules.packed import PackedLayer
from sparseinfer.prune.masks.held import held_masks

EXTRA = "_extra_state"


@dataclass
class State:
    """tensors   stored as they are
    formats   weights in a sparse format
    sparse    what the manifest says of these
    aliases   further names of tensors that are shared
    derived   names of buffers that are not in the state_dict
    channels_last   names of tensors in that memory format
    extra     extra states
    """

    tensors: dict[str, Tensor] = field(default_factory=dict)
    formats: dict[str, AnyFormat] = field(default_factory=dict)
    sparse: dict[str, Sparse] = field(default_factory=dict)
    aliases: dict[str, str] = field(default_factory=dict)
    derived: list[str] = field(default_factory=list)
    channels_last: list[str] = field(default_factory=list)
    extra: dict[str, Any] = field(default_factory=dict)

    def saved(self) -> dict[str, Tensor]:
        """Those of `tensors` that are in the state_dict."""
        return {name: t for name, t in self.tensors.items() if name not in self.derived}


def state_of(
    model: nn.Module,
    on_layer: Callable[[], None] = lambda: None,
    may_compress: Callable[[str], bool] = lambda name: True,
) -> State:
    """Collect it. TypeError, ValueError: it cannot be stored.

    on_layer       called after each converted layer
    may_compress   whether a tensor of this name may get a sparse format
    """
    collector = _Collector(model, on_layer, may_compress)
    collector.module(model, "")
    return collector.state


class _Collector:
    def __init__(
        self, model: nn.Module, on_layer: Callable[[], None], may_compress: Callable[[str], bool]
    ) -> None:
        self.state = State()
        self._may_compress = may_compress
        held = (*model.parameters(), *model.buffers())
        self._held = {t.data_ptr() for t in held if t.layout == torch.strided}
        self._on_layer = on_layer
        self._seen: dict[object, str] = {}
        self._layers: dict[nn.Module, str] = {}

    def module(self, module: nn.Module, prefix: str) -> None:
        dense = restored(module)
        if dense is not None:
            self._layer(module, dense, prefix)
        elif any(is_replacement(part) for part in module.modules()):
            self._around(module, prefix)
            for name, child in module._modules.items():
                if child is not None:
                    self.module(child, f"{prefix}{name}.")
        else:
            self._plain(module, prefix)

    def _around(self, module: nn.Module, prefix: str) -> None:
        """What a module that holds converted layers has of its own."""
        if module._state_dict_hooks or module._state_dict_pre_hooks:
            hint = "save the model before convert"
            raise TypeError(
                f"{prefix}: expected no state_dict hooks around converted layers, got some ({hint})"
            )
        content: dict[str, Any] = {}
        module._save_to_state_dict(content, prefix, False)
        self._derived(module, prefix)
        self._entries(content)

    def _layer(self, module: nn.Module, dense: nn.Module, prefix: str) -> None:
        """A converted layer; the model may hold it under several names."""
        if module in self._layers:
            first = self._layers[module]
            for name in dense.state_dict():
                self.state.aliases[prefix + name] = first + name
            return
        self._layers[module] = prefix
        narrower, scales = _stored_as(module)
        for name, t in dense.state_dict().items():
            self._tensor(
                prefix + name, t, narrower=narrower, scales=scales if t.dim() > 1 else None, shared=False
            )
        self._on_layer()

    def _plain(self, module: nn.Module, prefix: str) -> None:
        content = module.state_dict(prefix=prefix)
        for name, inner in module.named_modules(prefix=prefix.removesuffix("."), remove_duplicate=False):
            self._derived(inner, f"{name}." if name else "")
            _finish(inner, f"{name}." if name else "", content)
        self._entries(content)

    def _derived(self, module: nn.Module, prefix: str) -> None:
        for name, buffer in module._buffers.items():
            if buffer is not None and name in module._non_persistent_buffers_set:
                self.state.derived.append(prefix + name)
                self._tensor(prefix + name, buffer, shared=False, whole=True)

    def _entries(self, content: dict[str, Any]) -> None:
        state = self.state
        for name, t in content.items():
            if name.rpartition(".")[2] == EXTRA:
                self._extra(name, t)
            else:
                # Of `quantize_`, whose buffers the state_dict leaves out, or of others.
                beside = scale_name(name)
                scales = content.get(beside, state.tensors.get(beside) if beside in state.derived else None)
                self._tensor(name, t, scales=scales.float() if isinstance(scales, Tensor) else None)

    def _extra(self, name: str, value: Any) -> None:
        if isinstance(value, Tensor):
            self._tensor(name, value, whole=True)
            return
        try:
            same = json.loads(json.dumps(value, allow_nan=False)) == value
        except (TypeError, ValueError):
            same = False
        if not same:
            got = type(value).__name__
            raise TypeError(
                f"{name}: expected an extra state of plain JSON, or a tensor, got {got} (pickle is not used)"
            )
        self.state.extra[name] = value

    def _tensor(
        self,
        name: str,
        t: Any,
        *,
        narrower: tuple[torch.dtype, ...] = (),
        scales: Tensor | None = None,
        shared: bool = True,
        whole: bool = False,
    ) -> None:
        state = self.state
        stored = storable(name, t)
        # Only of what the model holds: an address of something temporary is soon that of another.
        if shared and t.numel() and t.data_ptr() in self._held:
            memory = (t.data_ptr(), t.dtype, tuple(t.shape), t.stride())
            if memory in self._seen:
                state.aliases[name] = self._seen[memory]
                return
            self._seen[memory] = name
        t = stored
        if t.dim() == 4 and not t.is_contiguous() and t.is_contiguous(memory_format=torch.channels_last):
            state.channels_last.append(name)
        fmt = None if whole or not self._may_compress(name) else compressed(t, narrower, scales)
        if fmt is None:
            state.tensors[name] = t
        else:
            state.formats[name] = fmt
            state.sparse[name] = described(fmt, t)
            if state.sparse[name].scales and scale_name(name) in state.derived:
                state.derived.remove(scale_name(name))
                del state.tensors[scale_name(name)]


def _stored_as(module: nn.Module) -> tuple[tuple[torch.dtype, ...], Tensor | None]:
    """Dtypes of packings that are shorter than their layer's, and the scales of one of integers."""
    whole: Any = module.whole if isinstance(module, SharedInputLinear) else module
    held = [part for part in whole.modules() if isinstance(part, PackedLayer)]
    stored = {WEIGHT_DTYPES[ops.describe(part.get_buffer("packing_0")).dtype]: part.dtype for part in held}
    narrower = tuple(dtype for dtype, own in stored.items() if dtype.itemsize < own.itemsize)
    if torch.int8 not in narrower or not isinstance(whole, PackedLayer):
        return narrower, None
    scales = whole.to_format().scales
    assert scales is not None
    rows = slice(module.start, module.stop) if isinstance(module, SharedInputLinear) else slice(None)
    return (), scales[rows]


@torch.no_grad()
def _finish(module: nn.Module, prefix: str, content: dict[str, Any]) -> None:
    """Apply masks of `prune_` and of torch.nn.utils.prune in a module's entries, and leave them out."""
    for held in held_masks(module):
        mask = content.pop(prefix + held.buffer, None)
        weight = content.get(prefix + held.name)
        if isinstance(mask, Tensor) and isinstance(weight, Tensor):
            pruned = ~mask.bool()
            if bool((weight[pruned] != 0).any()):
                content[prefix + held.name] = weight.masked_fill(pruned, 0)
    for hook in module._forward_pre_hooks.values():
        if isinstance(hook, prune.BasePruningMethod):
            name = prefix + hook._tensor_name
            original, mask = content.pop(f"{name}_orig", None), content.pop(f"{name}_mask", None)
            if isinstance(original, Tensor) and isinstance(mask, Tensor):
                content[name] = original * mask
