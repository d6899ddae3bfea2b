"""Small random models of ten families, with inputs: what structured pruning has to know."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor, nn

WORDS = 50


class Bottleneck(nn.Module):
    """Of ResNet-50: 1×1, 3×3, 1×1, and a shortcut."""

    def __init__(self, inputs: int, width: int, outputs: int, stride: int) -> None:
        super().__init__()
        self.conv1 = nn.Conv2d(inputs, width, 1, bias=False)
        self.bn1 = nn.BatchNorm2d(width)
        self.conv2 = nn.Conv2d(width, width, 3, stride, 1, bias=False)
        self.bn2 = nn.BatchNorm2d(width)
        self.conv3 = nn.Conv2d(width, outputs, 1, bias=False)
        self.bn3 = nn.BatchNorm2d(outputs)
        same = inputs == outputs and stride == 1
        self.shortcut = (
            nn.Identity()
            if same
            else nn.Sequential(nn.Conv2d(inputs, outputs, 1, stride, bias=False), nn.BatchNorm2d(outputs))
        )

    def forward(self, x: Tensor) -> Tensor:
        y = F.relu(self.bn1(self.conv1(x)))
        y = F.relu(self.bn2(self.conv2(y)))
        return F.relu(self.bn3(self.conv3(y)) + self.shortcut(x))


class ResNet(nn.Module):
    """ResNet-50 has depths (3, 4, 6, 3) and width 64."""

    def __init__(self, depths: tuple[int, ...] = (2, 2), width: int = 8, classes: int = 10) -> None:
        super().__init__()
        self.stem = nn.Sequential(nn.Conv2d(3, width, 7, 2, 3, bias=False), nn.BatchNorm2d(width), nn.ReLU())
        inputs, blocks = width, []
        for stage, depth in enumerate(depths):
            for block in range(depth):
                stride = 2 if block == 0 and stage else 1
                blocks.append(Bottleneck(inputs, width << stage, 4 * width << stage, stride))
                inputs = 4 * width << stage
        self.blocks = nn.Sequential(*blocks)
        self.fc = nn.Linear(inputs, classes)

    def forward(self, x: Tensor) -> Tensor:
        x = F.max_pool2d(self.stem(x), 3, 2, 1)
        return self.fc(F.adaptive_avg_pool2d(self.blocks(x), 1).flatten(1))


class DenseNet(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.stem = nn.Conv2d(3, 8, 3, padding=1)
        self.norms = nn.ModuleList(nn.BatchNorm2d(8 + 4 * i) for i in range(3))
        self.convs = nn.ModuleList(nn.Conv2d(8 + 4 * i, 4, 3, padding=1) for i in range(3))
        self.fc = nn.Linear(20 * 16, 10)

    def forward(self, x: Tensor) -> Tensor:
        x = self.stem(x)
        for norm, conv in zip(self.norms, self.convs, strict=True):
            x = torch.cat([x, conv(F.relu(norm(x)))], 1)
        return self.fc(F.adaptive_avg_pool2d(x, 4).flatten(1))


class MobileNet(nn.Module):
    """Inverted residuals: wide depthwise convolutions between narrow ones, with squeeze and excitation."""

    def __init__(self) -> None:
        super().__init__()
        self.stem = nn.Conv2d(3, 8, 3, 2, 1)
        self.wide = nn.ModuleList(nn.Conv2d(8, 24, 1, bias=False) for _ in range(2))
        self.depthwise = nn.ModuleList(nn.Conv2d(24, 24, 3, 1, 1, groups=24, bias=False) for _ in range(2))
        self.norms = nn.ModuleList(nn.BatchNorm2d(24) for _ in range(2))
        self.squeeze = nn.ModuleList(nn.Conv2d(24, 6, 1) for _ in range(2))
        self.excite = nn.ModuleList(nn.Conv2d(6, 24, 1) for _ in range(2))
        self.narrow = nn.ModuleList(nn.Conv2d(24, 8, 1) for _ in range(2))
        self.fc = nn.Linear(8, 10)

    def forward(self, x: Tensor) -> Tensor:
        x = self.stem(x)
        parts = (self.wide, self.depthwise, self.norms, self.squeeze, self.excite, self.narrow)
        for wide, depthwise, norm, squeeze, excite, narrow in zip(*parts, strict=True):
            y = F.hardswish(norm(depthwise(F.relu6(wide(x)))))
            y = y * torch.sigmoid(excite(F.relu(squeeze(y.mean((2, 3), keepdim=True)))))
            x = x + narrow(y)
        return self.fc(x.mean((2, 3)))


class UNet(nn.Module):
    """Two levels with skip connections, one up by a transposed convolution, one by interpolation."""

    def __init__(self) -> None:
        super().__init__()
        self.down1, self.down2 = nn.Conv2d(3, 8, 3, padding=1), nn.Conv2d(8, 12, 3, 2, 1)
        self.middle = nn.Conv2d(12, 16, 3, 2, 1)
        self.norm = nn.BatchNorm2d(16)
        self.up1, self.join1 = nn.ConvTranspose2d(16, 12, 2, 2), nn.Conv2d(24, 12, 3, padding=1)
        self.join2 = nn.Conv2d(20, 8, 3, padding=1)
        self.out = nn.Conv2d(8, 2, 1)

    def forward(self, x: Tensor) -> Tensor:
        a = F.silu(self.down1(x))
        b = F.silu(self.down2(a))
        c = F.silu(self.norm(self.middle(b)))
        b = F.silu(self.join1(torch.cat([b, self.up1(c)], 1)))
        up = F.interpolate(b, scale_factor=2, mode="bilinear")
        return self.out(F.silu(self.join2(torch.cat([up, a], 1))))


def _ids(*shape: int) -> Tensor:
    return torch.randint(3, WORDS, shape, generator=torch.Generator().manual_seed(1))


def _bert() -> tuple[nn.Module, Any]:
    from transformers import BertConfig, BertForSequenceClassification

    config = BertConfig(
        hidden_size=32, num_hidden_layers=2, num_attention_heads=4, intermediate_size=64, vocab_size=WORDS
    )
    ids = _ids(2, 9)
    return BertForSequenceClassification(config), {"input_ids": ids, "attention_mask": torch.ones_like(ids)}


def _vit() -> tuple[nn.Module, Any]:
    from transformers import ViTConfig, ViTForImageClassification

    config = ViTConfig(
        hidden_size=32,
        num_hidden_layers=2,
        num_attention_heads=4,
        intermediate_size=64,
        image_size=16,
        patch_size=4,
    )
    return ViTForImageClassification(config), (torch.randn(2, 3, 16, 16),)


def _gpt2() -> tuple[nn.Module, Any]:
    from transformers import GPT2Config, GPT2LMHeadModel

    config = GPT2Config(
        n_embd=32, n_layer=2, n_head=4, vocab_size=WORDS, n_positions=64, bos_token_id=1, eos_token_id=2
    )
    return GPT2LMHeadModel(config), (_ids(2, 9),)


def _llama() -> tuple[nn.Module, Any]:
    from transformers import LlamaConfig, LlamaForCausalLM

    config = LlamaConfig(
        hidden_size=64,
        num_hidden_layers=2,
        num_attention_heads=8,
        num_key_value_heads=4,
        intermediate_size=64,
        vocab_size=WORDS,
        tie_word_embeddings=True,
    )
    return LlamaForCausalLM(config), (_ids(2, 9),)


def qwen3() -> tuple[nn.Module, Any]:
    from transformers import Qwen3Config, Qwen3ForCausalLM

    config = Qwen3Config(
        hidden_size=32,
        num_hidden_layers=2,
        num_attention_heads=8,
        num_key_value_heads=4,
        head_dim=8,
        intermediate_size=64,
        vocab_size=WORDS,
    )
    return Qwen3ForCausalLM(config), (_ids(2, 9),)


def _t5() -> tuple[nn.Module, Any]:
    from transformers import T5Config, T5ForConditionalGeneration

    config = T5Config(
        d_model=32,
        d_kv=8,
        d_ff=64,
        num_layers=2,
        num_heads=4,
        vocab_size=WORDS,
        feed_forward_proj="gated-gelu",
        decoder_start_token_id=0,
    )
    return T5ForConditionalGeneration(config), {"input_ids": _ids(2, 9), "decoder_input_ids": _ids(2, 5)}


def _whisper() -> tuple[nn.Module, Any]:
    from transformers import WhisperConfig, WhisperForConditionalGeneration

    config = WhisperConfig(
        vocab_size=WORDS,
        d_model=32,
        encoder_layers=2,
        decoder_layers=2,
        encoder_attention_heads=4,
        decoder_attention_heads=4,
        encoder_ffn_dim=64,
        decoder_ffn_dim=64,
        num_mel_bins=8,
        max_source_positions=16,
        max_target_positions=32,
        pad_token_id=0,
        bos_token_id=1,
        eos_token_id=2,
        decoder_start_token_id=1,
    )
    inputs = {"input_features": torch.randn(2, 8, 32), "decoder_input_ids": _ids(2, 5)}
    return WhisperForConditionalGeneration(config), inputs


def _images(model: type[nn.Module], size: int) -> Callable[[], tuple[nn.Module, Any]]:
    return lambda: (model(), (torch.randn(2, 3, size, size),))


FAMILIES: dict[str, Callable[[], tuple[nn.Module, Any]]] = {
    "resnet": _images(ResNet, 32),
    "densenet": _images(DenseNet, 16),
    "mobilenet": _images(MobileNet, 16),
    "unet": _images(UNet, 16),
    "bert": _bert,
    "vit": _vit,
    "gpt2": _gpt2,
    "llama": _llama,
    "t5": _t5,
    "whisper": _whisper,
}
OF_TRANSFORMERS = ("bert", "vit", "gpt2", "llama", "t5", "whisper")


def build(make: Callable[[], tuple[nn.Module, Any]], seed: int = 0) -> tuple[nn.Module, Any]:
    """In eval mode, with random norms and biases too, so that no two units are alike."""
    with torch.random.fork_rng():
        torch.manual_seed(seed)
        model, inputs = make()
        with torch.no_grad():
            for module in model.modules():
                if isinstance(module, nn.modules.batchnorm._BatchNorm):
                    module.running_mean.normal_()
                    module.running_var.uniform_(0.5, 2)
            for parameter in model.parameters():
                if parameter.dim() == 1:
                    parameter.add_(torch.randn_like(parameter) * 0.2)
        return model.eval(), inputs


def family(name: str, seed: int = 0) -> tuple[nn.Module, Any]:
    return build(FAMILIES[name], seed)
