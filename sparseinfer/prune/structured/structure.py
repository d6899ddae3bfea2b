"""The structure of a pruned model: how it differs from what its class and config build, as plain JSON.

It is kept on the model, written by `si.save` and `si.save_pretrained`, and applied to a dense model before
the weights of a file are put into it.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import asdict, dataclass, field
from typing import Any

import torch
from torch import nn

from sparseinfer.prune.structured.kinds import sizes_of

# On the model; deepcopy and pickle keep it.
_NAME = "_sparseinfer_structure"


@dataclass
class Structure:
    """shapes      of parameters and buffers that are smaller, by their names
    attributes  of modules that are not torch's: module -> name -> value
    blocks      of lists of modules: name -> how many there were, and which of them are left
    """

    shapes: dict[str, list[int]] = field(default_factory=dict)
    attributes: dict[str, dict[str, int]] = field(default_factory=dict)
    blocks: dict[str, dict[str, Any]] = field(default_factory=dict)

    def to_json(self) -> dict[str, Any]:
        return asdict(self)

    def __bool__(self) -> bool:
        return bool(self.shapes or self.attributes or self.blocks)


def structure_of(model: nn.Module) -> Structure:
    """A copy of what is kept on the model; empty if it was not pruned."""
    held = vars(model).get(_NAME)
    return from_json(held) if held else Structure()


def set_structure(model: nn.Module, structure: Structure) -> None:
    if structure:
        vars(model)[_NAME] = structure.to_json()
    else:
        vars(model).pop(_NAME, None)


def from_json(content: Any) -> Structure:
    """ValueError: it is not the JSON of a structure."""
    if not isinstance(content, Mapping) or set(content) != set(Structure.__dataclass_fields__):
        raise ValueError(f"structure: expected shapes, attributes and blocks, got {str(content)[:80]!r}")
    shapes, attributes, blocks = (content[name] for name in Structure.__dataclass_fields__)
    if not all(isinstance(part, Mapping) for part in (shapes, attributes, blocks)):
        raise ValueError("structure: expected mappings, got others")
    for name, shape in shapes.items():
        if not (isinstance(shape, list) and len(shape) < 65 and all(map(_is_size, shape))):
            raise ValueError(f"{name}: expected a shape, got {str(shape)[:80]}")
    for name, values in attributes.items():
        if not (isinstance(values, Mapping) and all(map(_is_size, values.values()))):
            raise ValueError(f"{name}: expected sizes by name, got {str(values)[:80]}")
    for name, kept in blocks.items():
        if not (
            isinstance(kept, Mapping)
            and set(kept) == {"count", "kept"}
            and _is_size(kept["count"])
            and isinstance(kept["kept"], list)
            and all(_is_size(i) and i < kept["count"] for i in kept["kept"])
            and kept["kept"] == sorted(set(kept["kept"]))
        ):
            raise ValueError(f"{name}: expected blocks that are left, got {str(kept)[:80]}")
    return Structure(
        {name: list(shape) for name, shape in shapes.items()},
        {name: dict(values) for name, values in attributes.items()},
        {name: {"count": kept["count"], "kept": list(kept["kept"])} for name, kept in blocks.items()},
    )


def _is_size(value: Any) -> bool:
    return type(value) is int and 0 <= value < 2**31


def build(model: nn.Module, structure: Structure) -> Callable[[], None]:
    """Give a model this structure, with weights that have no data yet; returns what takes it all back.

    A config that describes a part of it already has built that part. ValueError that names what the model
    lacks; it is unchanged then.
    """
    if not structure:
        return lambda: None
    undo: list[Callable[[], None]] = []

    def back() -> None:
        while undo:
            undo.pop()()

    try:
        for name, kept in structure.blocks.items():
            undo.append(_cut_list(model, name, kept))
        for name, shape in structure.shapes.items():
            undo.append(_resized(model, name, shape))
        for name, values in structure.attributes.items():
            module = _found(model, name)
            undo.append(_with_attributes(module, values))
        before = structure_of(model)
        undo.append(lambda: set_structure(model, before))
        set_structure(model, structure)
    except BaseException:
        back()
        raise
    return back


def _found(model: nn.Module, name: str) -> nn.Module:
    try:
        return model.get_submodule(name)
    except AttributeError:
        raise ValueError(f"{name}: expected a module of the model, got none") from None


def _cut_list(model: nn.Module, name: str, kept: Mapping[str, Any]) -> Callable[[], None]:
    module = _found(model, name)
    if not isinstance(module, (nn.ModuleList, nn.Sequential)):
        raise ValueError(f"{name}: expected a list of modules, got {type(module).__name__}")
    if len(module) == len(kept["kept"]):
        return lambda: None
    if len(module) != kept["count"]:
        raise ValueError(f"{name}: expected {kept['count']} modules, got {len(module)}")
    return keep_blocks(module, kept["kept"])


def keep_blocks(blocks: nn.Module, kept: list[int]) -> Callable[[], None]:
    """Leave these modules of a list, with new numbers, in their attributes `layer_idx`, too."""
    before = dict(blocks._modules)
    numbers = [
        (inner, int(vars(inner)["layer_idx"]))
        for block in before.values()
        if block is not None
        for inner in block.modules()
        if type(vars(inner).get("layer_idx")) is int
    ]
    modules = list(before.values())
    blocks._modules.clear()
    blocks._modules.update({str(new): modules[old] for new, old in enumerate(kept)})
    new_numbers = {old: new for new, old in enumerate(kept)}
    for inner, number in numbers:
        vars(inner)["layer_idx"] = new_numbers.get(number, number)

    def back() -> None:
        blocks._modules.clear()
        blocks._modules.update(before)
        for inner, number in numbers:
            vars(inner)["layer_idx"] = number

    return back


def _resized(model: nn.Module, name: str, shape: list[int]) -> Callable[[], None]:
    """A tensor of this shape, under all names of the old one."""
    owner, _, attribute = name.rpartition(".")
    module = _found(model, owner)
    registry: dict[str, Any] = module._parameters if attribute in module._parameters else module._buffers
    old = registry.get(attribute)
    if old is None:
        raise ValueError(f"{name}: expected a tensor of the model, got none")
    if list(old.shape) == shape:
        return _with_attributes(module, sizes_of(module))
    if old.dim() != len(shape) or any(new > size for new, size in zip(shape, old.shape, strict=True)):
        raise ValueError(f"{name}: expected a shape within {list(old.shape)}, got {shape}")
    data = torch.empty(shape, dtype=old.dtype, device=old.device)
    if isinstance(old, nn.Parameter):
        new: Any = nn.Parameter(data, requires_grad=old.requires_grad)
        vars(new).update(vars(old))
    else:
        new = data
    held = [
        (place, key)
        for each in model.modules()
        for place in (each._parameters, each._buffers)
        for key, value in place.items()
        if value is old
    ]
    for place, key in held:
        place[key] = new
    undo = [_with_attributes(each, sizes_of(each)) for each in model.modules() if _holds(each, new)]

    def back() -> None:
        for take_back in reversed(undo):
            take_back()
        for place, key in held:
            place[key] = old

    return back


def _holds(module: nn.Module, t: object) -> bool:
    return any(
        value is t for registry in (module._parameters, module._buffers) for value in registry.values()
    )


def _with_attributes(module: nn.Module, values: Mapping[str, Any]) -> Callable[[], None]:
    """Set attributes that the module has."""
    before = {name: vars(module)[name] for name in values if name in vars(module)}
    for name in values:
        if name not in before:
            raise ValueError(f"{type(module).__name__}: expected an attribute {name!r}, got none")
    vars(module).update(values)
    return lambda: vars(module).update(before)
