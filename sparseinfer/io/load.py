"""`si.load`: a model from a file of `si.save`, or from a file of others with its state_dict."""

from __future__ import annotations

import os
import warnings
from collections.abc import Callable
from pathlib import Path
from typing import get_args

import torch
from torch import nn

from sparseinfer import _packages
from sparseinfer.convert.reload import Planning
from sparseinfer.io.fill import Filling
from sparseinfer.io.filled import filled, shaped
from sparseinfer.io.others import contents_of
from sparseinfer.io.reader import Contents


def load(
    path: str | os.PathLike[str],
    model: nn.Module | Callable[[], nn.Module] | None = None,
    plan: Planning = "stored",
) -> nn.Module:
    """The saved model: its weights and, if it was converted, what `convert` made of it, without running it.

    path    a file of `save`; any other safetensors file, or a folder of one or of shards; a state_dict of
            torch.save (.pt, .pth, .bin). Weights in compressed-tensors' sparse-bitmask and
            sparse-24-bitmask, with masks of torch.nn.utils.prune, or of torch's sparse layouts become dense
    model   a dense model of the same class, which is filled in place; or a function that makes one. The
            function is called where tensors have no data, and again, in earnest, if the model cannot be
            made like that. Not needed for a folder of transformers, whose config says it
    plan    of a converted model: "stored", what `convert` decided, with equal results; what this machine
            has no kernels for is planned anew by predicted times. "predict" and "measure": all is planned
            anew, for the same calls, by predicted or measured times

    Tensors that are stored as they are lie in the mapped file, which processes share, until they are written
    to. Weights of converted layers are read one after another; packings are memory of this process. The model
    is in eval mode if it was saved in it.

    ValueError that names file, tensor, what was expected and what is there: not such a file, a damaged one,
    one of a newer version, or of another model. The model is unchanged then.
    """
    if plan not in get_args(Planning):
        raise ValueError(f"plan: expected one of {', '.join(get_args(Planning))}, got {plan!r}")
    if model is None:
        return _of_transformers(Path(path))
    file = contents_of(Path(path))
    if isinstance(model, nn.Module):
        return filled(file, model, plan)
    if not callable(model):
        raise TypeError(
            f"model: expected a torch.nn.Module or a function that makes one, got {type(model).__name__}"
        )
    made = _without_data(file, model)
    return filled(file, _checked(model()) if made is None else made, plan)


def _of_transformers(folder: Path) -> nn.Module:
    if not (folder / "config.json").is_file():
        raise ValueError(f"model: expected a module or a function that makes one for {folder}, got None")
    _packages.transformers("load", "demo")
    from sparseinfer.io import hf

    return hf.from_folder(folder)


def _without_data(file: Contents, factory: Callable[[], nn.Module]) -> nn.Module | None:
    """The factory's model on meta, if the file has all that it lacks."""
    try:
        with torch.device("meta"), warnings.catch_warnings():
            # Weights that the factory loads are of no use here: the file has them.
            warnings.filterwarnings("ignore", "for .*: copying from a non-meta parameter", UserWarning)
            made = factory()
    except Exception:
        return None  # its own errors come again in earnest
    back = shaped(file.path, _checked(made), file.manifest.structure)
    lacks = Filling(file, made).missing_on_meta()
    back()
    return None if lacks else made


def _checked(made: object) -> nn.Module:
    if not isinstance(made, nn.Module):
        raise TypeError(f"model: expected a function that makes a torch.nn.Module, got {type(made).__name__}")
    return made
