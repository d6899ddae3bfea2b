"""Adapts the unconverted modules around converted layers."""

from __future__ import annotations

from torch import nn

from sparseinfer.convert.assembly.joining import join_all_, part_
from sparseinfer.convert.assembly.regions import capture_all_
from sparseinfer.convert.assembly.replacements import Build
from sparseinfer.convert.assembly.undisturbed import undisturbed
from sparseinfer.convert.options import ConvertOptions
from sparseinfer.modules import SparseMultiheadAttention
from sparseinfer.modules.shared import share_in, unshare_in

# On an encoder that used nested tensors before.
_NESTED = "_sparseinfer_used_nested_tensors"


def finish_(model: nn.Module, built: Build, options: ConvertOptions) -> None:
    """Let Linears share results, layers be chained with what follows them, and regions run as one."""
    fuse = options.fuse
    for fqn, part in built.shared:
        parent = model.get_submodule(fqn)
        while isinstance(parent, (nn.ModuleList, nn.ModuleDict)):  # which are never called
            fqn = fqn.rpartition(".")[0]
            parent = model.get_submodule(fqn)
        share_in(parent, part, checked=not undisturbed(parent, part.all_in(parent)))
    if fuse or built.folds:
        join_all_(model, fuse=fuse)
    if fuse and options.regions:
        capture_all_(model)


def unfinish_(model: nn.Module) -> None:
    """Undo `finish_`."""
    for module in model.modules():
        part_(module)
        unshare_in(module)


def leave_nested_tensors(model: nn.Module) -> None:
    """Stop TransformerEncoder from making nested tensors, whose fast path converted layers do not have."""
    for encoder in _encoders(model):
        holds = any(isinstance(module, SparseMultiheadAttention) for module in encoder.modules())
        if holds and getattr(encoder, "use_nested_tensor", False):
            encoder.use_nested_tensor = False
            setattr(encoder, _NESTED, True)


def return_to_nested_tensors(model: nn.Module) -> None:
    """Undo `leave_nested_tensors`."""
    for encoder in _encoders(model):
        if hasattr(encoder, _NESTED):
            delattr(encoder, _NESTED)
            encoder.use_nested_tensor = True


def _encoders(model: nn.Module) -> list[nn.TransformerEncoder]:
    return [module for module in model.modules() if isinstance(module, nn.TransformerEncoder)]
