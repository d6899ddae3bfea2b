"""LoRA adapters on converted layers, with PEFT itself."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest
import torch
from torch import Tensor, nn

import sparseinfer as si
from sparseinfer.io.peft import with_sparse_layers

peft = pytest.importorskip("peft", reason="needs PEFT (the extra `test` installs it)")

TARGETS = ["q", "k", "out"]


class Block(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.q, self.k = nn.Linear(64, 64), nn.Linear(64, 64)
        self.act, self.out = nn.ReLU(), nn.Linear(64, 32, bias=False)

    def forward(self, x: Tensor) -> Tensor:
        result: Tensor = self.out(self.act(self.q(x) + self.k(x)))
        return result


@pytest.fixture
def x() -> Tensor:
    return torch.randn(5, 64, generator=torch.Generator().manual_seed(1))


@pytest.fixture
def pruned() -> nn.Module:
    torch.manual_seed(0)
    model = Block().eval()
    si.prune_(model, si.Magnitude(sparsity=0.9))
    return si.finalize_(model)


@pytest.fixture
def adapter(pruned: nn.Module, tmp_path: Path) -> Path:
    """An adapter for all three Linears, as training would leave it."""
    dense: Any = peft.get_peft_model(_copy(pruned), peft.LoraConfig(target_modules=TARGETS, r=4))
    with torch.no_grad():
        for name, p in dense.named_parameters():
            if "lora_" in name:
                p.normal_(generator=torch.Generator().manual_seed(len(name)))
    dense.save_pretrained(tmp_path)
    return tmp_path


def _copy(model: nn.Module) -> nn.Module:
    made = Block().eval()
    made.load_state_dict(model.state_dict())
    return made


def loaded(model: nn.Module, adapter: Path) -> Any:
    config = with_sparse_layers(peft.PeftConfig.from_pretrained(adapter))
    return peft.PeftModel.from_pretrained(model, adapter, config=config).eval()


def test_loads_runs_and_unloads(pruned: nn.Module, adapter: Path, x: Tensor) -> None:
    expected = peft.PeftModel.from_pretrained(_copy(pruned), adapter).eval()
    fast = si.convert(pruned, example_inputs=(x,), memory="compact")
    with torch.no_grad():
        plain = fast(x)
        model = loaded(fast, adapter)
        torch.testing.assert_close(model(x), expected(x), rtol=1e-4, atol=1e-4)
        assert not torch.allclose(model(x), plain, atol=0.1)
        with model.disable_adapter():
            assert torch.equal(model(x), plain)
        back = model.unload()
        assert torch.equal(back(x), plain)
    assert isinstance(back.out, si.SparseLinear)


def test_merging_asks_for_dense_layers(pruned: nn.Module, adapter: Path, x: Tensor) -> None:
    fast = si.convert(pruned, example_inputs=(x,), memory="compact")
    with torch.no_grad():
        model = loaded(fast, adapter)
        expected = model(x)
        with pytest.raises(RuntimeError, match=r"merge: expected a dense layer, got .*Linear .*densify_"):
            model.merge_adapter()
        assert torch.equal(model(x), expected)
        merged = si.densify_(model).merge_and_unload()
        torch.testing.assert_close(merged(x), expected, rtol=1e-4, atol=1e-4)
    assert isinstance(merged.out, nn.Linear)


def test_takes_configurations_of_lora_only() -> None:
    with pytest.raises(TypeError, match="config: expected a LoraConfig of PEFT, got IA3Config"):
        with_sparse_layers(peft.IA3Config())
