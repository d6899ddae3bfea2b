"""Masks of weights that are not called `weight`: attention, recurrent layers, experts."""

from __future__ import annotations

import copy

import pytest
import torch
from convert_helpers import Script
from copies import by_file
from generators import values
from masks_helpers import OPTIMIZERS, descend
from torch import Tensor, nn
from torch.nn.utils import prune as torch_prune

from sparseinfer import convert
from sparseinfer.prune import (
    Cubic,
    Magnitude,
    Pruner,
    RigL,
    finalize_,
    from_torch_prune_,
    hold_masks_,
    masks_of,
    prune_,
    to_torch_prune_,
)

pytestmark = pytest.mark.filterwarnings(
    "ignore:LSTM with projections is not supported with oneDNN:UserWarning"
)
E = 8
X = values(4, 5, E)


class Net(nn.Module):
    def __init__(self, seed: int = 0) -> None:
        super().__init__()
        torch.manual_seed(seed)
        self.encoder = nn.TransformerEncoderLayer(E, 2, 16, dropout=0.0, batch_first=True)
        self.cross = nn.MultiheadAttention(E, 2, kdim=6, vdim=6, batch_first=True)
        self.lstm = nn.LSTM(E, 6, batch_first=True, bidirectional=True, proj_size=3)
        self.cell = nn.GRUCell(E, 3)

    def forward(self, x: Tensor) -> Tensor:
        h = self.encoder(x)
        memory = self.lstm(h)[0]
        return self.cell(self.cross(h, memory, memory)[0][:, -1], h[:, 0, :3])


NAMES = {
    "encoder.self_attn.in_proj_weight",
    *(f"cross.{name}_proj_weight" for name in "qkv"),
    *(f"lstm.weight_{name}_l0{way}" for name in ("ih", "hh", "hr") for way in ("", "_reverse")),
    "cell.weight_ih",
    "cell.weight_hh",
}


def weight_of(net: nn.Module, key: str) -> nn.Parameter:
    parameters = dict(net.named_parameters())
    return parameters[key] if key in parameters else parameters[f"{key}.weight"]


def pruned(seed: int = 0) -> tuple[Net, dict[str, Tensor]]:
    net = Net(seed)
    prune_(net, Magnitude(0.6))
    masks = {key: mask.clone() for key, mask in masks_of(net).items()}
    assert masks.keys() > NAMES
    return net, masks


def assert_kept(net: nn.Module, masks: dict[str, Tensor]) -> None:
    assert masks_of(net).keys() == masks.keys()
    for key, mask in masks.items():
        assert torch.equal(masks_of(net)[key], mask), key
        assert torch.equal(weight_of(net, key) != 0, mask), key


def train(net: nn.Module, optimizer: torch.optim.Optimizer, steps: int = 20) -> None:
    for _ in range(steps):
        descend(optimizer, net(X).square().mean())


@pytest.mark.parametrize("optimizer", OPTIMIZERS)
@pytest.mark.parametrize("old_state", [False, True], ids=["new", "older-than-the-masks"])
def test_zeros_stay_zeros_in_training_and_the_others_move(optimizer: str, old_state: bool) -> None:
    net = Net()
    stepper = OPTIMIZERS[optimizer](list(net.parameters()))
    if old_state:
        train(net, stepper, 3)
    prune_(net, Magnitude(0.6))
    masks = {key: mask.clone() for key, mask in masks_of(net).items()}
    before = copy.deepcopy(net)
    train(net, stepper)
    assert_kept(net, masks)
    for key, mask in masks.items():
        # Those behind an output that is pruned whole have no gradient.
        assert (weight_of(net, key) != weight_of(before, key))[mask].float().mean() > 0.5, key
        assert not weight_of(net, key).grad[~mask].any(), key


@pytest.mark.parametrize("copied", [copy.deepcopy, by_file])
def test_copies_hold_their_own(copied) -> None:
    net, masks = pruned()
    clone = copied(net)
    train(clone, OPTIMIZERS["adamw"](list(clone.parameters())))
    assert_kept(clone, masks)
    finalize_(clone)
    assert masks_of(clone) == {}
    assert_kept(net, masks)


def test_through_a_state_dict() -> None:
    net, masks = pruned()
    state = by_file(net.state_dict(), weights_only=True)
    assert {key for key in state if key.endswith("_mask")} == {
        f"{key}_mask" if key in NAMES else f"{key}.weight_mask" for key in masks
    }
    fresh = hold_masks_(Net(1), masks_of(state))
    fresh.load_state_dict(state)
    assert_kept(fresh, masks)
    assert torch.equal(fresh(X), net(X))


@pytest.mark.parametrize("mode", ["eval", "train"])
def test_dense_weights_that_are_loaded_are_masked_before_anybody_reads_them(mode: str) -> None:
    """In eval mode the encoder reads weights of its attention, which is never called."""
    net, masks = pruned()
    net.train(mode == "train")
    dense = Net(1)
    net.load_state_dict(dense.state_dict(), strict=False)
    assert_kept(net, masks)
    with torch.no_grad():
        expected = finalize_(copy.deepcopy(net))(X)
        for key, mask in masks.items():
            weight_of(dense, key).mul_(mask)
        torch.testing.assert_close(net(X), dense.train(mode == "train")(X))
        assert torch.equal(net(X), expected) or mode == "eval"


def test_other_writes_are_corrected_at_the_next_forward() -> None:
    net, masks = pruned()
    with torch.no_grad():
        for weight in (net.lstm.weight_hh_l0, net.cross.k_proj_weight, net.encoder.self_attn.in_proj_weight):
            weight.add_(1)
    net(X)
    for key in ("lstm.weight_hh_l0", "cross.k_proj_weight", "encoder.self_attn.in_proj_weight"):
        assert not weight_of(net, key)[~masks[key]].any()
    net.lstm.weight_ih_l0 = nn.Parameter(torch.ones_like(net.lstm.weight_ih_l0))
    net(X).sum().backward()
    assert torch.equal(net.lstm.weight_ih_l0 != 0, masks["lstm.weight_ih_l0"])
    assert not net.lstm.weight_ih_l0.grad[~masks["lstm.weight_ih_l0"]].any()


def test_pruning_again_replaces_masks_and_finalize_ends_them() -> None:
    net, masks = pruned()
    plain = Net()
    prune_(net, Magnitude(0.8))
    again = masks_of(net)
    assert all(not (again[key] & ~masks[key]).any() for key in masks)
    assert int(again["lstm.weight_hh_l0"].sum()) == net.lstm.weight_hh_l0.numel() - round(0.8 * 72)
    finalize_(net)
    assert list(net.state_dict()) == list(plain.state_dict())
    assert not any(module._forward_pre_hooks for module in net.modules())
    net, _ = pruned()
    prune_(net, Magnitude(0.5), keep_masks=False)
    assert masks_of(net) == {}


def test_pruner_and_rewind() -> None:
    net = Net()
    start = copy.deepcopy(net)
    pruner = Pruner(net, Magnitude(0.75), Cubic(begin=1, end=4, every=1), rewind_to=0, targets=["LSTM"])
    optimizer = OPTIMIZERS["adam"](list(net.parameters()))
    reports = []
    for _ in range(4):
        train(net, optimizer, 1)
        reports.append(pruner.step())
    assert [layer.fqn.split(".")[0] for layer in reports[-1].layers] == ["lstm"] * 6
    for key, mask in masks_of(net).items():
        assert torch.equal(weight_of(net, key), weight_of(start, key) * mask)
        assert int(mask.sum()) == mask.numel() - round(0.75 * mask.numel())


def test_rigl_moves_them() -> None:
    net, masks = pruned()
    rigl = RigL(net, end=10, every=2)
    train(net, OPTIMIZERS["sgd"](list(net.parameters())), 1)
    rigl.step()
    train(net, OPTIMIZERS["sgd"](list(net.parameters())), 1)
    assert rigl.step()
    for key in NAMES:
        assert masks_of(net)[key].sum() == masks[key].sum()
    assert not torch.equal(masks_of(net)["lstm.weight_hh_l0"], masks["lstm.weight_hh_l0"])


def test_torchs_masks_and_back() -> None:
    net, expected = Net(), Net()
    for module, name in ((net.lstm, "weight_hh_l0"), (net.encoder.self_attn, "in_proj_weight")):
        torch_prune.l1_unstructured(module, name, amount=0.5)
        torch_prune.l1_unstructured(module, name.replace("weight", "bias"), amount=0.5)
    masks = {
        "encoder.self_attn.in_proj_weight": net.encoder.self_attn.in_proj_weight_mask.bool(),
        "lstm.weight_hh_l0": net.lstm.weight_hh_l0_mask.bool(),
    }
    saved = masks_of(net.state_dict())
    assert saved.keys() == masks.keys()
    assert all(torch.equal(saved[key], mask) for key, mask in masks.items())
    output = net(X)
    from_torch_prune_(net)
    assert torch.equal(net(X), output)
    assert masks_of(net).keys() == masks.keys()
    for key, mask in masks.items():
        assert torch.equal(masks_of(net)[key], mask)
        assert torch.equal(weight_of(net, key), weight_of(expected, key) * mask)
    assert hasattr(net.lstm, "bias_hh_l0_orig")
    to_torch_prune_(net)
    assert torch.equal(net(X), output)
    assert masks_of(net) == {}
    assert torch.equal(net.lstm.weight_hh_l0_mask, masks["lstm.weight_hh_l0"].float())


def test_bad_names() -> None:
    mask = torch.ones(24, 6, dtype=torch.bool)
    for name in ("lstm.weight_hh_l7", "lstm.hidden_size", "nothing.weight_hh_l0", "lstm.weight_hh_l0_orig"):
        with pytest.raises(ValueError, match=rf"masks: expected names of the model's modules, got '{name}'"):
            hold_masks_(Net(), {name: mask})
    with pytest.raises(ValueError, match=r"masks\['cell.weight_hh'\]: expected the weight's shape \(9, 3\)"):
        hold_masks_(Net(), {"cell.weight_hh": mask})
    net = Net()
    torch_prune.l1_unstructured(net.lstm, "weight_hh_l0", amount=0.5)
    with pytest.raises(ValueError, match=r"lstm.weight_hh_l0: .* computed by torch.nn.utils.prune"):
        hold_masks_(net, {"lstm.weight_hh_l0": torch.ones(24, 3, dtype=torch.bool)})
    # By both of its names, with two masks.
    both = {"encoder.linear1": torch.ones(16, E) > 0, "encoder.linear1.weight": torch.ones(16, E) < 0}
    with pytest.raises(
        ValueError, match=r"masks\['encoder.linear1.weight'\]: expected the mask of those who"
    ):
        hold_masks_(Net(), both)


@pytest.mark.usefixtures("script")
def test_converted_models_have_the_zeros_and_no_masks(script: Script) -> None:
    script.ratio = lambda layout, m: 0.5
    net = nn.ModuleDict({"a": nn.MultiheadAttention(16, 2), "r": nn.GRU(16, 12)}).eval()
    prune_(net, Magnitude(0.9))
    fast, expected = convert(net), convert(finalize_(copy.deepcopy(net)))
    assert masks_of(fast) == {}
    assert list(fast.state_dict()) == list(expected.state_dict())
    x = values(3, 2, 16)
    with torch.no_grad():
        assert torch.equal(fast["a"](x, x, x)[0], expected["a"](x, x, x)[0])
        assert torch.equal(fast["r"](x)[0], expected["r"](x)[0])
    assert masks_of(net).keys() == {"a.in_proj_weight", "a.out_proj", "r.weight_ih_l0", "r.weight_hh_l0"}
