"""Masks under averages of all buffers: torch.optim.swa_utils, and what people write themselves."""

from __future__ import annotations

import copy
import io
import pickle

import pytest
import torch
from copies import by_file
from masks_helpers import OPTIMIZERS, assert_held, data, model, random_masks, train
from torch import nn
from torch.optim.swa_utils import (
    AveragedModel,
    get_ema_avg_fn,
    get_ema_multi_avg_fn,
    get_swa_avg_fn,
    get_swa_multi_avg_fn,
)

from sparseinfer.prune import finalize_, hold_masks_, masks_of

AVERAGES = {
    "default": {},
    "swa": {"avg_fn": get_swa_avg_fn()},
    "swa-multi": {"multi_avg_fn": get_swa_multi_avg_fn()},
    "ema": {"avg_fn": get_ema_avg_fn(0.999)},
    "ema-multi": {"multi_avg_fn": get_ema_multi_avg_fn(0.9)},
}


def averaged(net: nn.Module, how: dict, use_buffers: bool) -> tuple[AveragedModel, list[dict]]:
    """After five steps of training, and the weights that went into it."""
    average = AveragedModel(net, use_buffers=use_buffers, **how)
    optimizer = OPTIMIZERS["sgd-momentum-decay"](list(net.parameters()))
    seen = []
    for _ in range(5):
        train(net, optimizer, 1)
        average.update_parameters(net)
        seen.append({name: p.detach().clone() for name, p in net.named_parameters()})
    return average, seen


@pytest.mark.parametrize("use_buffers", [True, False])
@pytest.mark.parametrize("how", AVERAGES.values(), ids=AVERAGES)
def test_an_averaged_model_holds_the_masks(how: dict, use_buffers: bool) -> None:
    net = model()
    masks = random_masks(net)
    hold_masks_(net, masks)
    average, seen = averaged(net, how, use_buffers)
    assert_held(average.module, masks)
    assert all(type(mask) is torch.Tensor for mask in masks_of(average.module).values())
    if "swa" in str(how) or not how:
        for name, p in average.module.named_parameters():
            mean = torch.stack([each[name] for each in seen]).double().mean(0)
            # Five values below 4 in magnitude, added up one by one.
            torch.testing.assert_close(p.double(), mean, rtol=0, atol=5 * 2 * 4 * 1.2e-7)
    average(data()[0]).sum().backward()
    for fqn, mask in masks.items():
        assert not average.module.get_submodule(fqn).weight.grad[~mask].any()
    finalize_(average.module)
    assert masks_of(average.module) == {}
    assert_held(net, masks)


def test_batch_norms_are_averaged_beside_masks() -> None:
    torch.manual_seed(0)
    net = nn.Sequential(nn.Linear(8, 6), nn.BatchNorm1d(6), nn.Linear(6, 2))
    masks = {"0": torch.rand(6, 8) < 0.5, "2": torch.rand(2, 6) < 0.5}
    hold_masks_(net, masks)
    average = AveragedModel(net, use_buffers=True)
    means = []
    for _ in range(3):
        net(torch.randn(16, 8))
        average.update_parameters(net)
        means.append(net[1].running_mean.clone())
    assert not torch.equal(means[0], means[2])
    torch.testing.assert_close(average.module[1].running_mean, torch.stack(means).mean(0))
    assert_held(average.module, masks)


@pytest.mark.parametrize("how", AVERAGES.values(), ids=AVERAGES)
def test_masks_that_differ_keep_what_any_of_them_keeps(how: dict) -> None:
    """Where the average of the weights is not zero; and nowhere else."""
    net = model()
    first, second = random_masks(net), random_masks(net, seed=1)
    hold_masks_(net, first)
    average = AveragedModel(net, use_buffers=True, **how)
    average.update_parameters(net)
    hold_masks_(net, second)
    with torch.no_grad():
        for fqn in second:
            net.get_submodule(fqn).weight.copy_(second[fqn] * 2.0)
    average.update_parameters(net)
    assert_held(average.module, {fqn: first[fqn] | second[fqn] for fqn in first})


def test_without_buffers_the_newest_masks_count() -> None:
    net = model()
    hold_masks_(net, random_masks(net))
    average = AveragedModel(net)
    average.update_parameters(net)
    second = {fqn: mask & random_masks(net, seed=1)[fqn] for fqn, mask in random_masks(net).items()}
    hold_masks_(net, second)
    average.update_parameters(net)
    average(data()[0])
    assert_held(average.module, second)


def by_hand(average: torch.Tensor, new: torch.Tensor) -> None:
    average.mul_(0.9).add_(new, alpha=0.1)


def by_subtraction(average: torch.Tensor, new: torch.Tensor) -> None:
    average -= 0.1 * (average - new)


def by_lerp(average: torch.Tensor, new: torch.Tensor) -> None:
    average.lerp_(new, 0.1)


def by_copy(average: torch.Tensor, new: torch.Tensor) -> None:
    average.copy_(average * 0.999 + new * 0.001)


def by_foreach(average: torch.Tensor, new: torch.Tensor) -> None:
    torch._foreach_mul_([average], 0.9)
    torch._foreach_add_([average], [new], alpha=0.1)


@pytest.mark.parametrize("update", [by_hand, by_subtraction, by_lerp, by_copy, by_foreach])
def test_averages_of_ones_own(update) -> None:
    net = model()
    masks = random_masks(net)
    average = copy.deepcopy(hold_masks_(net, masks))
    for _ in range(20):
        for mine, theirs in zip(average.buffers(), net.buffers(), strict=True):
            update(mine, theirs)
    assert_held(average, masks)


def test_a_mask_is_still_a_bool_tensor_of_one_byte() -> None:
    net = model()
    mask = random_masks(net)["3"]
    hold_masks_(net, {"3": mask})
    held = net[3].weight_mask
    assert (held.dtype, held.nbytes) == (torch.bool, 16 * 24)
    assert torch.equal(~held, ~mask)
    assert torch.equal(net[3].weight[held], net[3].weight[mask])
    assert type(held * 2.0) is type(held.float()) is torch.Tensor
    assert type(net[3].weight.detach() * held) is torch.Tensor
    net.to(torch.bfloat16)
    assert net[3].weight_mask.dtype == torch.bool
    masks_of(net)["3"][0, 0] = False  # the memory of the buffer itself
    assert not held[0, 0]


@pytest.mark.parametrize("assign", [False, True])
def test_state_dicts_hold_plain_bools_and_take_them(assign: bool) -> None:
    """Those of older versions are the same, so they load; and averages go on after it."""
    net = model()
    masks = random_masks(net)
    state = hold_masks_(net, masks).state_dict()
    assert all(type(state[f"{fqn}.weight_mask"]) is torch.Tensor for fqn in masks)
    assert all(state[f"{fqn}.weight_mask"].dtype == torch.bool for fqn in masks)
    file = io.BytesIO(pickle.dumps({name: t.numpy() for name, t in state.items()}))
    plain = {name: torch.from_numpy(array) for name, array in pickle.load(file).items()}
    other = model(seed=1)
    hold_masks_(other, random_masks(other, seed=1))
    other.load_state_dict(plain, assign=assign)
    assert_held(other, masks)
    average, _ = averaged(other, {}, use_buffers=True)
    assert_held(average.module, masks)


def test_whole_models_through_a_file_can_be_averaged() -> None:
    net = model()
    masks = random_masks(net)
    loaded = by_file(hold_masks_(net, masks))
    average, _ = averaged(loaded, {}, use_buffers=True)
    assert_held(average.module, masks)


def test_nothing_of_it_is_left_in_the_end() -> None:
    net = model()
    finalize_(hold_masks_(net, random_masks(net)))
    for module in net.modules():
        assert not module._state_dict_hooks
        assert not module._load_state_dict_post_hooks
        assert not module._buffers


def test_exported() -> None:
    net = model().eval()
    hold_masks_(net, random_masks(net))
    x = data()[0]
    exported = torch.export.export(net, (x,))
    assert torch.equal(exported.module()(x), net(x))
