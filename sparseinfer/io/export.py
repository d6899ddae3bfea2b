"""Dense models for other tools: the zeros stay in place, nothing of this library is left."""

from __future__ import annotations

import copy
import os
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn

from sparseinfer import _packages
from sparseinfer.convert import densify_
from sparseinfer.convert.assembly.assemble import is_replacement, restored
from sparseinfer.io.atomic import replacing
from sparseinfer.io.state import state_of
from sparseinfer.prune import finalize_


def dense_state_dict(model: nn.Module) -> dict[str, Tensor]:
    """The state_dict of the dense model that a converted or pruned one was made from, without masks.

    Shared tensors stay shared, under all their names. TypeError: an extra state.
    """
    state = state_of(model, may_compress=lambda name: False)
    if state.extra:
        raise TypeError(f"{next(iter(state.extra))}: expected tensors only, got an extra state")
    return state.saved() | {name: state.tensors[of] for name, of in state.aliases.items()}


def export_safetensors(model: nn.Module, path: str | os.PathLike[str]) -> Path:
    """Write `dense_state_dict` as a safetensors file that any reader understands; returns the path.

    Of tensors under several names the first is written, as other libraries do.
    """
    try:
        from safetensors.torch import save
    except ImportError:
        raise _packages.missing("export_safetensors", "safetensors", "demo") from None
    state = state_of(model, may_compress=lambda name: False)
    tensors = {name: t.contiguous() for name, t in state.saved().items()}
    path = Path(path)
    with replacing(path) as file:
        file.write(save(tensors, {"format": "pt"}))
    return path


def export_onnx(
    model: nn.Module, path: str | os.PathLike[str], example_inputs: tuple[Any, ...], **keywords: Any
) -> Path:
    """Write the dense model as ONNX, with its zeros in place; returns the path.

    example_inputs   arguments of one call
    keywords         those of torch.onnx.export, such as dynamic_shapes, input_names, opset_version

    RuntimeError: onnx or onnxscript is missing, or torch cannot export the model.
    """
    try:
        import onnxscript  # noqa: F401
    except ImportError:
        raise _packages.missing("export_onnx", "onnxscript", "onnx") from None
    dense = _dense(model).eval()
    path = Path(path)
    with torch.no_grad():
        program = torch.onnx.export(dense, example_inputs, dynamo=True, verbose=False, **keywords)
    assert program is not None
    with replacing(path) as file:
        file.write(program.model_proto.SerializeToString())
    return path


def _dense(model: nn.Module) -> nn.Module:
    """A copy with dense layers and without masks."""
    whole = restored(model)
    if whole is not None:
        return whole
    dense = copy.deepcopy(model)
    if any(is_replacement(module) for module in dense.modules()):
        densify_(dense)
    return finalize_(dense)
