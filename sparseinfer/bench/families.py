"""The matrices of well-known models, and how often each occurs: what `bench --layers` measures."""

from __future__ import annotations

from collections.abc import Mapping

Shape = tuple[int, int]

# n and k of each matrix, and its number in the model. Embeddings and heads are left out: they stay dense.
FAMILIES: Mapping[str, Mapping[Shape, int]] = {
    # BERT-base (Devlin et al., 2019): 12 layers of q, k, v and output; both layers of the MLP.
    "bert": {(768, 768): 48, (3072, 768): 12, (768, 3072): 12},
    # ViT-B/16 (Dosovitskiy et al., 2021): 12 layers, q, k and v in one matrix, as timm has it.
    "vit": {(2304, 768): 12, (768, 768): 12, (3072, 768): 12, (768, 3072): 12},
    # ResNet-50 (He et al., 2016) but its stem: k is kernel size times channels, a token is a pixel of the
    # output. Those that occur once, in the shortcuts and at the stages' starts, are in it.
    "resnet": {
        (64, 64): 1,
        (64, 256): 2,
        (64, 576): 3,
        (256, 64): 4,
        (128, 256): 1,
        (128, 512): 3,
        (128, 1152): 4,
        (512, 128): 4,
        (512, 256): 1,
        (256, 512): 1,
        (256, 1024): 5,
        (256, 2304): 6,
        (1024, 256): 6,
        (1024, 512): 1,
        (512, 1024): 1,
        (512, 2048): 2,
        (512, 4608): 3,
        (2048, 512): 3,
        (2048, 1024): 1,
    },
    # Llama 2 7B (Touvron et al., 2023): 32 layers of q, k, v and output; gate and up; down.
    "llama": {(4096, 4096): 128, (11008, 4096): 64, (4096, 11008): 32},
}
ALL = "all"


def named(names: tuple[str, ...]) -> dict[str, Mapping[Shape, int]]:
    """The families of these names, "all" of them by that one. ValueError: an unknown name."""
    for name in names:
        if name not in (*FAMILIES, ALL):
            raise ValueError(f"layers: expected some of {', '.join((*FAMILIES, ALL))}, got {name!r}")
    return {name: FAMILIES[name] for name in FAMILIES if name in names or ALL in names}
