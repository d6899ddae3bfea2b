"""Hugging Face transformers: `from_pretrained` and `save_pretrained` of sparse models.

Importing this makes `quantization_config` method "sparseinfer" known to transformers. A folder has
config.json with that method, and safetensors files whose tensors and manifest are those of `si.save`.
transformers reads the parts of sparse weights, of exact shapes, into a model on meta; they become packings
layer by layer.
"""

from __future__ import annotations

import os
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn
from transformers.quantizers.auto import (
    AUTO_QUANTIZATION_CONFIG_MAPPING,
    register_quantization_config,
    register_quantizer,
)
from transformers.quantizers.base import HfQuantizer
from transformers.utils.quantization_config import QuantizationConfigMixin

from sparseinfer.convert import convert_
from sparseinfer.io.fill import quantization_buffers
from sparseinfer.io.filled import filled, shaped
from sparseinfer.io.header import Entry
from sparseinfer.io.manifest import KEY, VERSION, Manifest, parse_manifest
from sparseinfer.io.mapped import Mapped
from sparseinfer.io.reader import Held
from sparseinfer.io.save import manifest_of
from sparseinfer.io.state import state_of

METHOD = "sparseinfer"
# Of `convert`, which plain JSON can say.
_OPTIONS = ("tokens", "precision", "memory", "measure", "budget_s", "targets", "ignore")


class SparseInferConfig(QuantizationConfigMixin):
    """What transformers keeps as `quantization_config`.

    options   keywords of `convert` for a folder of a dense model: tokens, precision, memory, measure,
              budget_s, targets, ignore. Its weights are pruned already; nothing is pruned here
    """

    def __init__(self, version: int = VERSION, **options: Any) -> None:
        options.pop("quant_method", None)
        if unknown := sorted(options.keys() - set(_OPTIONS)):
            raise TypeError(f"SparseInferConfig: expected keywords {', '.join(_OPTIONS)}, got {unknown[0]!r}")
        if not isinstance(version, int) or version > VERSION:
            hint = "install a newer sparseinfer"
            raise ValueError(f"version: expected up to {VERSION}, got {version!r} ({hint})")
        self.quant_method = METHOD
        self.version = version
        self.options = options

    def to_dict(self) -> dict[str, Any]:
        return {"quant_method": METHOD, "version": self.version, **self.options}


class SparseInferQuantizer(HfQuantizer):
    """Loads a folder of sparse weights, or converts a model that was loaded densely."""

    quantization_config: SparseInferConfig

    def __init__(self, quantization_config: SparseInferConfig, **kwargs: Any) -> None:
        super().__init__(quantization_config, **kwargs)
        self._parts: dict[tuple[nn.Module, str], dict[str, Any]] = {}
        self._folder = Path()
        self._mapped: tuple[Mapped, ...] = ()
        self._manifest = Manifest()
        self._buffers: list[str] = []

    def validate_environment(self, *args: Any, device_map: Any = None, **kwargs: Any) -> None:
        places = set(device_map.values()) if isinstance(device_map, Mapping) else {device_map}
        if not places <= {None, "cpu", torch.device("cpu"), "auto"}:
            hint = "move the model afterwards, with .to"
            raise ValueError(f"device_map: expected cpu, got {device_map!r} ({hint})")

    def update_device_map(self, device_map: Any) -> Any:
        return {"": "cpu"} if device_map == "auto" else device_map

    def _process_model_before_weight_loading(
        self, model: nn.Module, checkpoint_files: Any = None, **kwargs: Any
    ) -> None:
        if not self.pre_quantized:
            return
        stored: dict[str, Entry] = {}
        for file in checkpoint_files or ():
            stored |= self._read_header(Path(file))
        shaped(self._folder, model, self._manifest.structure)
        modules = dict(model.named_modules())
        self._buffers = list(quantization_buffers(self._manifest.derived, modules))
        for key in self._buffers:
            owner, _, name = key.rpartition(".")
            with _naming(self._folder, key):
                # In the state_dict for as long as transformers reads it.
                empty = torch.empty(stored[key].shape, dtype=stored[key].dtype, device="meta")
                modules[owner].register_buffer(name, empty)
        for name, sparse in self._manifest.sparse.items():
            owner, _, attribute = name.rpartition(".")
            with _naming(self._folder, name):
                module = model.get_submodule(owner)
                parts = {part: stored[f"{name}.{part}"] for part in sparse.parts}
                self._hold(module, attribute, parts)

    def _read_header(self, path: Path) -> dict[str, Entry]:
        file = Mapped(path)
        text = file.metadata.get(KEY)
        if text is None:
            hint = "files that sparseinfer wrote have one"
            raise ValueError(f"{path}: expected a manifest of sparseinfer, got none ({hint})")
        self._mapped = (*self._mapped, file)
        self._folder, self._manifest = path.parent, parse_manifest(text, file.nbytes)
        return dict(file.entries)

    def _hold(self, module: nn.Module, name: str, parts: Mapping[str, Entry]) -> None:
        """Put a module that holds the parts of a weight into the place of the parameter, for a while."""
        if not isinstance(getattr(module, name, None), Tensor):
            raise ValueError("expected a weight of the model, got none")
        self._parts[module, name] = dict(module._parameters)
        del module._parameters[name]
        holder = nn.Module()
        for part, entry in parts.items():
            holder.register_buffer(part, torch.empty(entry.shape, dtype=entry.dtype, device="meta"))
        module._modules[name] = holder

    def _process_model_after_weight_loading(self, model: nn.Module, **kwargs: Any) -> nn.Module:
        if not self.pre_quantized:
            convert_(model, **self.quantization_config.options)
            return model
        tensors = model.state_dict()
        for (module, name), before in self._parts.items():
            del module._modules[name]
            now = dict(module._parameters)
            module._parameters.clear()
            module._parameters.update({key: now.get(key, old) for key, old in before.items()})
        self._parts.clear()
        for key in self._buffers:
            owner, _, name = key.rpartition(".")
            model.get_submodule(owner)._non_persistent_buffers_set.add(name)
        mapped, self._mapped = self._mapped, ()
        return filled(Held(self._folder, tensors, self._manifest, mapped), model, "stored")

    def get_state_dict_and_metadata(self, model: nn.Module) -> tuple[dict[str, Tensor], dict[str, str]]:
        """The dense model's state_dict, with sparse weights in parts that the manifest describes."""
        tied = _tied(model)
        state = state_of(model, may_compress=lambda name: name not in tied)
        if state.extra:
            got = next(iter(state.extra))
            raise ValueError(f"{got}: expected no extra states in a model of transformers, got one")
        tensors = state.saved()
        for name, fmt in state.formats.items():
            tensors |= {f"{name}.{part}": t for part, t in fmt.parts().items()}
        # Those that tie weights do it by the model's class, which also makes its buffers.
        state.derived = list(quantization_buffers(state.derived, dict(model.named_modules())))
        state.aliases = {}
        tensors |= {name: state.tensors[name] for name in state.derived}
        return tensors, {KEY: manifest_of(model, state).to_text()}

    def is_serializable(self) -> bool:
        return True

    @property
    def is_trainable(self) -> bool:
        return False


def save_pretrained(model: nn.Module, folder: str | os.PathLike[str], **keywords: Any) -> None:
    """Write a model of transformers, converted or only pruned, as a folder for `from_pretrained`.

    Weights are stored as by `si.save`. keywords: those of the model's own save_pretrained, such as
    max_shard_size. TypeError: not a model of transformers. A model that `from_pretrained` made sparse can
    also be saved by its own method.
    """
    from transformers import PreTrainedModel

    if not isinstance(model, PreTrainedModel):
        raise TypeError(f"model: expected a model of transformers, got {type(model).__name__}")
    with _known_to_transformers(model):
        model.save_pretrained(folder, **{"save_original_format": False, **keywords})


@contextmanager
def _known_to_transformers(model: Any) -> Iterator[None]:
    if isinstance(getattr(model, "hf_quantizer", None), SparseInferQuantizer):
        yield
        return
    config = SparseInferConfig()
    model.hf_quantizer, model.config.quantization_config = SparseInferQuantizer(config), config
    try:
        yield
    finally:
        del model.hf_quantizer, model.config.quantization_config


def from_folder(folder: str | os.PathLike[str]) -> nn.Module:
    """The model of a folder, of the class that its config names, in eval mode. OSError, ValueError: none."""
    import transformers

    model: nn.Module = class_of(transformers.AutoConfig.from_pretrained(folder)).from_pretrained(folder)
    return model


def class_of(config: Any) -> Any:
    """The class of transformers that a model's config names first; AutoModel where there is no such class."""
    import transformers

    name = (config.architectures or [""])[0]
    return getattr(transformers, name, transformers.AutoModel)


def _tied(model: Any) -> set[str]:
    """Names of weights that the model's class ties; they are stored as they are."""
    tied: Mapping[str, str] = getattr(model, "all_tied_weights_keys", None) or {}
    return {*tied.keys(), *tied.values()}


@contextmanager
def _naming(folder: Path, name: str) -> Iterator[None]:
    try:
        yield
    except (AttributeError, KeyError, ValueError) as error:
        raise ValueError(f"{folder}: {name}: expected it in model and files, got {error}") from error


def register() -> None:
    """Make the method known to transformers; any number of times."""
    if METHOD not in AUTO_QUANTIZATION_CONFIG_MAPPING:
        register_quantization_config(METHOD)(SparseInferConfig)
        register_quantizer(METHOD)(SparseInferQuantizer)


register()
