"""Masks that are held, beside others' work: torch.nn.utils.prune, several processes, convert."""

from __future__ import annotations

import copy
import os
import sys
from pathlib import Path

import pytest
import torch
import torch.distributed as dist
from convert_helpers import Script, linear
from generators import values
from masks_helpers import descend
from torch import Tensor, nn
from torch.ao.pruning import WeightNormSparsifier
from torch.nn.parallel import DistributedDataParallel
from torch.nn.utils import prune

from sparseinfer import convert, convert_, densify_
from sparseinfer.prune import RigL, finalize_, from_torch_prune_, hold_masks_, masks_of, to_torch_prune_


def model() -> nn.Sequential:
    torch.manual_seed(0)
    return nn.Sequential(nn.Linear(8, 12), nn.Tanh(), nn.Conv1d(1, 4, 3), nn.Flatten(), nn.Linear(40, 2))


def masks_for(net: nn.Module) -> dict[str, Tensor]:
    generator = torch.Generator().manual_seed(1)
    return {
        fqn: torch.rand(module.weight.shape, generator=generator) < 0.5
        for fqn, module in net.named_modules()
        if hasattr(module, "weight")
    }


X = values(6, 1, 8)


def step(net: nn.Module, optimizer: torch.optim.Optimizer) -> None:
    descend(optimizer, net(X).square().mean())


class TestTorchPrune:
    def test_from_torch(self) -> None:
        net = model()
        for index, amount in ((0, 0.3), (2, 0.5), (4, 0.9)):
            prune.l1_unstructured(net[index], "weight", amount=amount)
        prune.random_unstructured(net[4], "weight", amount=0.2)  # a container of two methods
        expected, parameters = net(X), [net[i].weight_orig for i in (0, 2, 4)]
        masks = {str(i): net[i].weight_mask.bool() for i in (0, 2, 4)}
        assert from_torch_prune_(net) is net
        assert torch.equal(net(X), expected)
        assert all(net[i].weight is p for i, p in zip((0, 2, 4), parameters, strict=True))
        held = masks_of(net)
        assert list(held) == list(masks)
        assert all(torch.equal(held[fqn], mask) for fqn, mask in masks.items())
        step(net, torch.optim.SGD(net.parameters(), lr=0.1, momentum=0.9))
        assert all(torch.equal(net.get_submodule(fqn).weight != 0, mask) for fqn, mask in masks.items())

    def test_to_torch(self) -> None:
        net = model()
        masks = masks_for(net)
        hold_masks_(net, masks)
        expected, weight = net(X), net[0].weight
        assert to_torch_prune_(net) is net
        assert torch.equal(net(X), expected)
        assert net[0].weight_orig is weight
        reference = model()
        for fqn, mask in masks.items():
            prune.custom_from_mask(reference.get_submodule(fqn), "weight", mask)
        assert list(net.state_dict()) == list(reference.state_dict())
        for fqn in masks:
            ours, theirs = net.get_submodule(fqn), reference.get_submodule(fqn)
            assert ours.weight_mask.dtype == theirs.weight_mask.dtype
            assert torch.equal(ours.weight_mask, theirs.weight_mask)
        assert masks_of(net) == {}

    def test_there_and_back(self) -> None:
        net = model()
        hold_masks_(net, masks_for(net))
        before = copy.deepcopy(net.state_dict())
        state = from_torch_prune_(to_torch_prune_(net)).state_dict()
        assert set(state) == set(before)
        assert all(torch.equal(state[name], t) for name, t in before.items())

    def test_masks_of_a_file_of_torchs(self) -> None:
        net = model()
        prune.l1_unstructured(net[0], "weight", amount=0.5)
        saved = masks_of(net.state_dict())
        assert torch.equal(saved.pop("0"), net[0].weight_mask.bool())
        assert saved == {}
        alone = prune.l1_unstructured(nn.Linear(4, 4), "weight", amount=0.5)
        assert list(masks_of(alone.state_dict())) == [""]

    def test_masks_on_other_parameters_stay_torchs(self) -> None:
        net = model()
        prune.l1_unstructured(net[0], "bias", amount=0.5)
        from_torch_prune_(net)
        assert masks_of(net) == {}
        assert "bias_orig" in dict(net[0].named_parameters())

    def test_a_model_under_torch_ao_pruning_is_refused(self) -> None:
        net = model()
        sparsifier = WeightNormSparsifier(sparsity_level=0.5)
        sparsifier.prepare(net, [{"tensor_fqn": "0.weight"}])
        sparsifier.step()
        message = r"0.weight: expected torch.nn.utils.prune, got torch.ao.pruning \(call squash_mask"
        with pytest.raises(ValueError, match=message):
            from_torch_prune_(net)
        with pytest.raises(ValueError, match=r"torch.ao.pruning, which does not save masks"):
            masks_of(net.state_dict())

    def test_a_shared_weight_under_two_masks_is_refused(self) -> None:
        a, b = nn.Linear(4, 4), nn.Linear(4, 4)
        b.weight = a.weight
        net = nn.Sequential(a, b)
        prune.l1_unstructured(a, "weight", amount=0.5)
        prune.l1_unstructured(b, "weight", amount=0.25)
        with pytest.raises(ValueError, match=r"1.weight_mask: expected the mask of '0', which shares"):
            from_torch_prune_(net)
        assert prune.is_pruned(a)
        assert prune.is_pruned(b)

    def test_what_torch_prunes_is_not_masked_on_top(self) -> None:
        net = model()
        prune.l1_unstructured(net[0], "weight", amount=0.5)
        with pytest.raises(ValueError, match=r"0.weight: .* computed by torch.nn.utils.prune \(call from_"):
            hold_masks_(net, {"0": torch.ones(12, 8, dtype=torch.bool)})


def train_in_a_process(rank: int, folder: str) -> None:
    """Each process sees other data. First the masks stay, then RigL moves them."""
    torch.set_num_threads(1)
    dist.init_process_group("gloo", init_method=f"file://{folder}/store", rank=rank, world_size=2)
    found = {"moved" if moves else "kept": trained_in_parallel(rank, moves) for moves in (False, True)}
    torch.save(found, f"{folder}/{rank}.pt")
    dist.barrier()
    # At once: taking the group and what used it apart now and then waits forever.
    os._exit(0)


def trained_in_parallel(rank: int, moves: bool) -> dict[str, Tensor | None]:
    net = model()
    hold_masks_(net, masks_for(net))
    parallel = DistributedDataParallel(net, broadcast_buffers=False)
    rigl = RigL(net, end=10 if moves else 1, every=4)
    optimizer = torch.optim.SGD(net.parameters(), lr=0.1, momentum=0.9, weight_decay=0.01)
    for count in range(10):
        descend(optimizer, parallel(X + rank + count).square().mean())
        rigl.step()
    return {**net.state_dict(), "grad": net[0].weight.grad}


@pytest.mark.skipif(
    sys.platform != "linux" or not dist.is_gloo_available(), reason="two processes over gloo, on Linux"
)
def test_two_processes(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("GLOO_SOCKET_IFNAME", "lo")
    torch.multiprocessing.spawn(train_in_a_process, (str(tmp_path),), nprocs=2)
    first, second = (torch.load(tmp_path / f"{rank}.pt", weights_only=True) for rank in (0, 1))
    for part in ("kept", "moved"):
        assert all(torch.equal(t, second[part][name]) for name, t in first[part].items())
        for fqn, mask in masks_for(model()).items():
            held, weight = first[part][f"{fqn}.weight_mask"], first[part][f"{fqn}.weight"]
            assert torch.equal(held, mask) == (part == "kept")
            assert held.sum() == mask.sum()
            assert torch.equal(weight != 0, held)
            assert not torch.equal(weight, model().get_submodule(fqn).weight * mask)
    assert not first["kept"]["grad"][~first["kept"]["0.weight_mask"]].any()


@pytest.mark.usefixtures("script")
class TestConvert:
    """A model with masks converts like the same model after finalize_."""

    def held(self) -> nn.Module:
        net = nn.Sequential(
            nn.Sequential(linear(24, 40), nn.ReLU(), linear(40, 24)),
            nn.TransformerEncoderLayer(40, 2, 24, batch_first=True),
            nn.Conv1d(3, 4, 3),
            nn.Embedding(7, 2),
        ).eval()
        names = [f"1.{name}" for name in ("linear1", "linear2", "self_attn.out_proj")]
        masks = {fqn: net.get_submodule(fqn).weight.detach() > 0 for fqn in ("0.0", "0.2", *names, "2", "3")}
        return hold_masks_(net, masks)

    @pytest.mark.parametrize("ratio", [0.5, 2.0], ids=["sparse", "dense"])
    @pytest.mark.parametrize("in_place", [False, True])
    def test_no_mask_comes_along(self, script: Script, ratio: float, in_place: bool) -> None:
        script.ratio = lambda layout, m: ratio
        net = self.held()
        plain = finalize_(copy.deepcopy(net))
        before = copy.deepcopy(net.state_dict())
        fast, expected = convert(net), convert(plain)
        if in_place:
            assert all(torch.equal(t, before[name]) for name, t in net.state_dict().items())
            fast = convert_(net)
        assert masks_of(fast) == {}
        assert list(fast.state_dict()) == list(expected.state_dict())
        assert {n: type(m) for n, m in fast.named_modules()} == {
            n: type(m) for n, m in expected.named_modules()
        }
        assert not any(module._forward_pre_hooks for module in fast.modules())
        x = values(5, 6, 40, integer=True)
        with torch.no_grad():
            assert torch.equal(fast[0](x), plain[0](x))
            assert torch.equal(fast[1](x), expected[1](x))
        densify_(fast)
        assert list(fast.state_dict()) == list(plain.state_dict())
        assert all(torch.equal(fast.state_dict()[name], t) for name, t in plain.state_dict().items())

    def test_the_model_goes_on_training_under_its_masks(self) -> None:
        net = self.held()
        convert(net)
        layer, mask = net[0][0], net[0][0].weight_mask.clone()
        optimizer = torch.optim.SGD(net.parameters(), lr=0.1, momentum=0.9, weight_decay=0.1)
        net[0](values(5, 40)).square().mean().backward()
        optimizer.step()
        assert torch.equal(layer.weight != 0, mask)
