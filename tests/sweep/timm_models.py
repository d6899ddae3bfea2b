"""The architectures of timm that are swept: of each of its modules the smallest model, made smaller still."""

from __future__ import annotations

import importlib
from collections.abc import Callable, Mapping
from functools import partial
from typing import Any

import torch
from case import Case, noise, randomise

_VIT = {"embed_dim": 48, "depth": 3, "num_heads": 3}
_STAGED = {"embed_dim": 24, "depths": (1, 1, 2, 1), "num_heads": (1, 2, 3, 4)}

# Sides of the images: those that the model takes, tried in this order; a second one if it takes several.
SIDES = (64, 96, 224)
FIXED: Mapping[str, int] = {"crossvit_tiny_240": 240, "efficientformer_l1": 224}

MODELS: Mapping[str, Mapping[str, Any]] = {
    "beit_base_patch16_224": _VIT,
    "cait_xxs24_224": {"embed_dim": 48, "depth": 2, "num_heads": 4},
    "coat_tiny": {},
    "convit_tiny": {"depth": 4, "local_up_to_layer": 2},
    "convnext_atto": {"depths": (1, 1, 2, 1)},
    "cpubone_nano": {},
    "crossvit_tiny_240": {},
    "cs3darknet_focus_s": {},
    "csatv2": {},
    "cspnext_tiny": {},
    "davit_tiny": {"embed_dims": (24, 48, 72, 96), "depths": (1, 1, 1, 1), "num_heads": (1, 2, 3, 4)},
    "deit_tiny_patch16_224": _VIT,
    "densenet121": {"block_config": (2, 2, 2, 2), "growth_rate": 16},
    "dla46x_c": {},
    "dpn48b": {},
    "edgenext_xx_small": {},
    "efficientformer_l1": {"depths": (1, 1, 1, 2)},
    "efficientformerv2_s0": {},
    "efficientvim_m1": {},
    "efficientvit_b0": {},
    "efficientvit_m0": {},
    "ese_vovnet19b_slim_dw": {},
    "eva02_tiny_patch14_224": _VIT,
    "fasternet_t0": {},
    "fastvit_t8": {},
    "gcvit_xxtiny": {},
    "ghostnet_050": {},
    "hardcorenas_b": {},
    "hgnetv2_b0": {},
    "hiera_tiny_224": {"embed_dim": 24, "stages": (1, 1, 2, 1)},
    "hrnet_w18_small": {},
    "iformer_t": {},
    "inception_next_atto": {},
    "inception_v3": {},
    "lambda_resnet26t": {},
    "lcnet_035": {},
    "lcnetv2_small": {},
    "legacy_seresnet18": {},
    "legacy_xception": {},
    "levit_128s": {},
    "lowformer_b0": {},
    "mambaout_femto": {"depths": (1, 1, 2, 1)},
    "maxvit_pico_rw_256": {},
    "mnasnet_small": {},
    "mobilenetv3_small_050": {},
    "mobilevit_xxs": {},
    "mvitv2_tiny": {},
    "naflexvit_base_patch16_parfac_gap": _VIT,
    "nextvit_small": {},
    "pit_ti_224": {},
    "pvt_v2_b0": {},
    "qwen3_vit_88m": _VIT,
    "rdnet_tiny": {},
    "regnetx_002": {},
    "repghostnet_050": {},
    "repvgg_a0": {},
    "repvit_m1": {},
    "res2net50_14w_8s": {"layers": (1, 1, 1, 1)},
    "resnest14d": {"layers": (1, 1, 1, 1)},
    "resnet10t": {},
    "resnetv2_18": {"layers": (1, 1, 1, 1)},
    "rexnet_100": {},
    "sam2_hiera_tiny": {"embed_dim": 24, "stages": (1, 1, 2, 1)},
    "samvit_base_patch16_224": _VIT,
    "selecsls42": {},
    "sequencer2d_s": {
        "layers": (1, 1, 2, 1),
        "embed_dims": (24, 48, 48, 48),
        "hidden_sizes": (8, 16, 16, 16),
    },
    "shvit_s1": {},
    "skresnet18": {"layers": (1, 1, 1, 1)},
    "starnet_s050": {},
    "swiftformer_xs": {},
    "swin_tiny_patch4_window7_224": _STAGED,
    "swinv2_cr_tiny_224": _STAGED,
    "swinv2_tiny_window16_256": _STAGED,
    "test_nfnet": {},
    "tiny_vit_5m_224": {},
    "tnt_s_legacy_patch16_224": {"embed_dim": 48, "depth": 2, "num_heads_outer": 3},
    "tresnet_m": {"layers": (1, 1, 1, 1), "width_factor": 0.5},
    "twins_svt_small": {"embed_dims": (24, 48, 72, 96), "num_heads": (1, 2, 3, 4), "depths": (1, 1, 2, 1)},
    "visformer_tiny": {},
    "vit_base_patch16_224": _VIT,
    "vit_relpos_small_patch16_224": _VIT,
    "vit_tiny_r_s16_p8_224": _VIT,
    "vitamin_small_224": {},
    "volo_d1_224": {},
    "xception41p": {},
    "xcit_nano_12_p8_224": {"depth": 3},
}

# Models whose entry point fixes the sizes: the class, and its arguments.
CLASSES: Mapping[str, tuple[str, Mapping[str, Any]]] = {
    "convmixer": ("convmixer.ConvMixer", {"dim": 48, "depth": 3}),
    "focalnet": ("focalnet.FocalNet", {"embed_dim": 24, "depths": (1, 1, 2, 1)}),
    "metaformer": ("metaformer.MetaFormer", {"depths": (1, 1, 2, 1), "dims": (16, 32, 64, 96)}),
    "mixer": ("mlp_mixer.MlpMixer", {"num_blocks": 3, "embed_dim": 96}),
    "nest": ("nest.Nest", {"embed_dims": (24, 48, 96), "num_heads": (1, 2, 4), "depths": (1, 1, 2)}),
    "vgg": (
        "vgg.VGG",
        {"cfg": [16, "M", 32, "M", 48, 48, "M", 64], "mlp_ratio": 0.05, "norm_layer": torch.nn.BatchNorm2d},
    ),
}

# No layer of theirs is one that convert takes.
DENSE: Mapping[str, str] = {}


def builders() -> dict[str, Callable[[], Case]]:
    found: dict[str, Callable[[], Case]] = {
        name: partial(_build, name, arguments) for name, arguments in MODELS.items()
    }
    return found | {name: partial(_build, where, arguments) for name, (where, arguments) in CLASSES.items()}


def _timm() -> Any:
    """torchvision's operators do not load beside a torch built otherwise; nothing here calls them."""
    try:
        import timm
    except RuntimeError:
        library = torch.library.Library("torchvision", "DEF")
        for operator in ("nms", "qnms"):
            library.define(f"{operator}(Tensor dets, Tensor scores, float iou_threshold) -> Tensor")
        _KEPT.append(library)
        import timm
    return timm


_KEPT: list[Any] = []  # an operator is gone with its library


def _build(name: str, arguments: Mapping[str, Any]) -> Case:
    torch.manual_seed(0)
    model, side = _sized(name, arguments)
    randomise(model, seed=0)
    inputs = {f"{b}x{side}": {"x": noise(b, 3, side, side)} for b in (1, 2, 3)}
    inputs[f"2x{side} channels_last"] = {"x": inputs[f"2x{side}"]["x"].to(memory_format=torch.channels_last)}
    examples = [f"1x{side}"]
    larger = side * 3 // 2 // 32 * 32
    if _takes(model, larger):
        inputs[f"1x{larger}"] = {"x": noise(1, 3, larger, larger)}
        examples.append(f"1x{larger}")
    return Case(model, inputs, tuple(examples), positional=True)


def _sized(name: str, arguments: Mapping[str, Any]) -> tuple[torch.nn.Module, int]:
    """The model for the smallest images that it takes."""
    error: Exception | None = None
    for side in (FIXED[name],) if name in FIXED else SIDES:
        for size in ({"img_size": side}, {}):
            try:
                model = _created(name, {"num_classes": 10, **arguments, **size}).eval()
                model(noise(1, 3, side, side))
            except Exception as e:
                error = error if error is not None and "img_size" in str(e) else e
            else:
                return model, side
    raise error or RuntimeError("no size")


def _created(name: str, arguments: Mapping[str, Any]) -> torch.nn.Module:
    timm = _timm()
    module, _, found = name.partition(".")
    if not found:
        return timm.create_model(name, pretrained=False, **arguments)
    return getattr(importlib.import_module(f"timm.models.{module}"), found)(**arguments)


def _takes(model: torch.nn.Module, side: int) -> bool:
    try:
        model(noise(1, 3, side, side))
    except Exception:
        return False
    return True
