"""Masks through files and copies, after other writes to the weight, and their end."""

from __future__ import annotations

import copy
import gc
import weakref
from collections.abc import Callable

import pytest
import torch
from copies import by_file
from masks_helpers import OPTIMIZERS, assert_held, data, descend, model, random_masks, train
from torch import nn

from sparseinfer.prune import finalize_, hold_masks_, masks_of


def test_state_dict_round_trip() -> None:
    net = model()
    masks = random_masks(net)
    train(hold_masks_(net, masks), torch.optim.SGD(net.parameters(), lr=0.1), 5)
    state = by_file(net.state_dict(), weights_only=True)
    assert {key for key in state if key.endswith("mask")} == {f"{fqn}.weight_mask" for fqn in masks}

    fresh = model(seed=1)
    hold_masks_(fresh, masks_of(state))
    fresh.load_state_dict(state)
    assert_held(fresh, masks)
    x, _ = data()
    assert torch.equal(fresh(x), net(x))
    train(fresh, OPTIMIZERS["adam"](list(fresh.parameters())), 5)
    assert_held(fresh, masks)


def test_a_state_dict_brings_its_masks_into_a_model_that_holds_others() -> None:
    saved, net = model(), model(seed=1)
    masks = random_masks(saved, seed=3)
    hold_masks_(saved, masks)
    hold_masks_(net, random_masks(net, seed=4))
    net.load_state_dict(saved.state_dict())
    train(net, OPTIMIZERS["sgd-momentum-decay"](list(net.parameters())), 5)
    assert_held(net, masks)


def test_dense_weights_loaded_into_a_model_with_masks_are_masked_at_the_next_forward() -> None:
    net, dense = model(), model(seed=1)
    masks = random_masks(net)
    hold_masks_(net, masks)
    net.load_state_dict(dense.state_dict(), strict=False)
    net(data()[0])
    assert_held(net, masks)
    assert torch.equal(net[3].weight, dense[3].weight * masks["3"])


def test_a_forward_writes_nothing_without_need() -> None:
    """A write to the weight between two forwards and their backward would be an error of autograd's."""
    net = model()
    hold_masks_(net, random_masks(net))
    with torch.no_grad():
        net[3].weight.mul_(2)
    x, _ = data()
    (net(x) + net(x)).sum().backward()


@pytest.mark.parametrize("copied", [copy.deepcopy, by_file])
def test_copies_hold_masks_of_their_own(copied: Callable[[nn.Module], nn.Module]) -> None:
    net = model()
    masks = random_masks(net)
    train(hold_masks_(net, masks), torch.optim.SGD(net.parameters(), lr=0.1), 2)
    clone = copied(net)
    before = copy.deepcopy(net.state_dict())
    clone(data()[0]).sum().backward()
    for fqn, mask in masks.items():
        assert not clone.get_submodule(fqn).weight.grad[~mask].any()
    train(clone, OPTIMIZERS["sgd-momentum-decay"](list(clone.parameters())))
    assert_held(clone, masks)
    finalize_(clone)
    assert_held(net, masks)
    assert all(torch.equal(t, before[name]) for name, t in net.state_dict().items())


def test_a_copy_of_a_layer_that_is_never_called_itself() -> None:
    """The attention of torch reads the weight of its out_proj and calls no forward of it."""
    net = nn.MultiheadAttention(8, 2)
    mask = torch.rand(8, 8) < 0.5
    clone = copy.deepcopy(hold_masks_(net, {"out_proj": mask}))
    stepper = OPTIMIZERS["sgd-momentum-decay"](list(clone.parameters()))
    x = torch.randn(3, 8)
    for _ in range(2):
        descend(stepper, clone(x, x, x)[0].square().sum())
        assert torch.equal(clone.out_proj.weight != 0, mask)
    assert not clone.out_proj.weight.grad[~mask].any()


@pytest.mark.parametrize("dtype", [torch.float64, torch.bfloat16])
def test_another_dtype(dtype: torch.dtype) -> None:
    net = model()
    masks = random_masks(net)
    train(hold_masks_(net, masks), torch.optim.SGD(net.parameters(), lr=0.1), 2)
    net.to(dtype)
    assert net[3].weight.dtype == dtype
    x, y = (t.to(dtype) for t in data())
    stepper = OPTIMIZERS["sgd-momentum-decay"](list(net.parameters()))
    for _ in range(10):
        stepper.zero_grad()
        nn.functional.mse_loss(net(x), y).backward()
        assert not net[3].weight.grad[~masks["3"]].any()
        stepper.step()
    assert all(torch.equal(held, masks[fqn]) for fqn, held in masks_of(net).items())
    assert not any(net.get_submodule(fqn).weight[~mask].any() for fqn, mask in masks.items())


def test_a_parameter_that_takes_the_weights_place() -> None:
    net = model()
    masks = random_masks(net)
    hold_masks_(net, masks)
    net[3].weight = nn.Parameter(torch.ones_like(net[3].weight))
    train(net, OPTIMIZERS["sgd-momentum-decay"](list(net.parameters())), 5)
    assert_held(net, masks)


def test_a_weight_that_is_frozen_and_thawed() -> None:
    net = model()
    masks = random_masks(net)
    net.requires_grad_(False)
    hold_masks_(net, masks)
    net(data()[0])
    net.requires_grad_(True)
    net(data()[0]).sum().backward()
    assert not net[3].weight.grad[~masks["3"]].any()


def test_new_masks_replace_those_that_are_held() -> None:
    net = model()
    first, second = random_masks(net), random_masks(net, seed=1)
    hold_masks_(net, first)
    hold_masks_(net, second)
    held = masks_of(net)
    for fqn, mask in second.items():
        assert torch.equal(held[fqn], mask)
        assert torch.equal(net.get_submodule(fqn).weight != 0, mask & first[fqn])
    train(net, OPTIMIZERS["adam"](list(net.parameters())), 5)
    assert_held(net, second)


def test_a_module_under_two_names_and_a_tied_weight_are_held_once() -> None:
    a, b = nn.Linear(6, 6), nn.Linear(6, 6)
    b.weight = a.weight
    net = nn.ModuleDict({"a": a, "again": a, "b": b})
    mask = torch.rand(6, 6) < 0.5
    hold_masks_(net, {"again": mask, "b": mask})
    assert list(masks_of(net)) == ["a"]
    assert [key for key in net.state_dict() if key.endswith("mask")] == ["a.weight_mask", "again.weight_mask"]
    stepper = OPTIMIZERS["adamw"](list(net.parameters()))
    b(torch.ones(1, 6)).sum().backward()
    assert torch.equal(b.weight.grad, mask.float())
    stepper.step()
    assert not b.weight[~mask].any()
    hold_masks_(net, {"b": ~mask})
    assert torch.equal(a.weight_mask, ~mask)
    assert not hasattr(b, "weight_mask")


def test_an_optimizer_of_another_model_writes_nothing() -> None:
    net, other = model(), model(seed=1)
    hold_masks_(net, random_masks(net))
    hold_masks_(other, random_masks(other))
    version = net[3].weight._version
    train(other, torch.optim.SGD(other.parameters(), lr=0.1), 3)
    assert net[3].weight._version == version


def test_finalize_leaves_nothing_but_zeros() -> None:
    net = model()
    masks = random_masks(net)
    plain = set(vars(net[3])), list(net.state_dict())
    assert hold_masks_(net, masks) is net
    assert finalize_(net) is net
    assert (set(vars(net[3])), list(net.state_dict())) == plain
    assert not net[3]._forward_pre_hooks
    assert masks_of(net) == {}
    assert all(torch.equal(net.get_submodule(fqn).weight != 0, mask) for fqn, mask in masks.items())
    train(net, torch.optim.SGD(net.parameters(), lr=0.1), 1)
    assert net[3].weight.all()
    finalize_(net)


def test_held_models_are_forgotten_with_their_last_reference() -> None:
    net = model()
    hold_masks_(net, random_masks(net))
    train(net, torch.optim.Adam(net.parameters()), 2)
    gone = weakref.ref(net[3])
    del net
    gc.collect()
    assert gone() is None


def test_inference_tensors() -> None:
    with torch.inference_mode():
        net = model()
        masks = random_masks(net)
        hold_masks_(net, masks)
        net(data()[0])
        assert_held(net, masks)


def test_compiled() -> None:
    net = model()
    masks = random_masks(net)
    hold_masks_(net, masks)
    compiled = torch.compile(net, backend="eager", fullgraph=True)
    train(compiled, OPTIMIZERS["sgd-momentum-decay"](list(net.parameters())), 3)
    assert_held(net, masks)


EYE = torch.eye(2, 16)
BAD_MASKS = {
    "name": ({"9": EYE > 0}, ValueError, "masks: expected names of the model's modules, got '9'"),
    "dtype": (
        {"5": EYE},
        TypeError,
        "masks['5']: expected a bool tensor, got dtype torch.float32 (True = kept)",
    ),
    "type": ({"5": [[True]]}, TypeError, "masks['5']: expected a bool tensor, got list (True = kept)"),
    "shape": (
        {"5": EYE.T > 0},
        ValueError,
        "masks['5']: expected the weight's shape (2, 16), got shape (16, 2)",
    ),
    "module": ({"1": EYE > 0}, ValueError, "1.weight: expected a parameter to mask, got a Tanh without one"),
}


@pytest.mark.parametrize(("masks", "error", "message"), BAD_MASKS.values(), ids=BAD_MASKS)
def test_bad_masks_leave_the_model_as_it_was(masks: dict, error: type, message: str) -> None:
    net = model()
    good = {"3": torch.zeros(16, 24, dtype=torch.bool)}
    before = copy.deepcopy(net.state_dict())
    with pytest.raises(error) as raised:
        hold_masks_(net, good | masks)
    assert str(raised.value) == message
    assert list(net.state_dict()) == list(before)
    assert all(torch.equal(t, before[name]) for name, t in net.state_dict().items())


def test_other_bad_input() -> None:
    with torch.device("meta"):
        net = nn.Sequential(nn.Linear(2, 2))
    with pytest.raises(ValueError, match=r"0.weight: expected a weight with data, got none yet"):
        hold_masks_(net, {"0": torch.ones(2, 2, dtype=torch.bool)})
    with pytest.raises(TypeError, match=r"model: expected a torch.nn.Module, got int"):
        hold_masks_(3, {})
    with pytest.raises(TypeError, match=r"model: expected a torch.nn.Module, got int"):
        finalize_(3)
    a, b = nn.Linear(2, 2), nn.Linear(2, 2)
    b.weight = a.weight
    eye = torch.eye(2, dtype=torch.bool)
    with pytest.raises(ValueError, match=r"masks\['1'\]: expected the mask of those who share its weight"):
        hold_masks_(nn.Sequential(a, b), {"0": eye, "1": ~eye})
    assert not masks_of(nn.Sequential(a, b))
