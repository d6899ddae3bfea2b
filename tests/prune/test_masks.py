"""Training under masks: bit for bit the same masks after it, whatever the optimizer."""

from __future__ import annotations

import copy

import pytest
import torch
from masks_helpers import OPTIMIZERS, STEPS, assert_held, data, model, random_masks, train
from torch import nn

from sparseinfer._timing import num_threads
from sparseinfer.prune import finalize_, hold_masks_


@pytest.mark.parametrize("optimizer", OPTIMIZERS)
@pytest.mark.parametrize("old_state", [False, True], ids=["new", "older-than-the-masks"])
def test_masks_are_unchanged_after_100_steps(optimizer: str, old_state: bool) -> None:
    net = model()
    stepper = OPTIMIZERS[optimizer](list(net.parameters()))
    if old_state:
        train(net, stepper, 20)
    masks = random_masks(net)
    hold_masks_(net, masks)
    before = copy.deepcopy(net.state_dict())
    train(net, stepper)
    assert_held(net, masks)
    for fqn, mask in masks.items():
        moved = net.get_submodule(fqn).weight != before[f"{fqn}.weight"]
        assert torch.equal(moved, mask)


def test_training_under_masks_is_training_of_a_masked_function() -> None:
    """Momentum, weight decay and all: the kept weights go where those of w * mask go, to the bit."""
    ours, reference = model(), model()
    masks = random_masks(ours)
    hold_masks_(ours, masks)
    with torch.no_grad():
        for fqn, mask in masks.items():
            reference.get_submodule(fqn).weight *= mask
    make = OPTIMIZERS["sgd-momentum-decay"]
    train(ours, make(list(ours.parameters())))

    x, y = data()
    stepper = make(list(reference.parameters()))
    with num_threads(1):
        for _ in range(STEPS):
            stepper.zero_grad()
            masked = {
                name: p * masks[fqn] if (fqn := name.rpartition(".")[0]) in masks and p.dim() > 1 else p
                for name, p in reference.named_parameters()
            }
            nn.functional.mse_loss(torch.func.functional_call(reference, masked, (x,)), y).backward()
            stepper.step()
    for (name, mine), theirs in zip(ours.named_parameters(), reference.parameters(), strict=True):
        assert torch.equal(mine, theirs), name


def test_clipping_sees_masked_gradients() -> None:
    net = model()
    masks = random_masks(net)
    dense = copy.deepcopy(hold_masks_(net, masks))
    finalize_(dense)
    x, y = data()
    for each in (net, dense):
        nn.functional.mse_loss(each(x), y).backward()
    expected = [
        p.grad * masks.get(name.rpartition(".")[0], torch.tensor(1)) if p.dim() > 1 else p.grad
        for name, p in dense.named_parameters()
    ]
    for p, grad in zip(net.parameters(), expected, strict=True):
        assert torch.equal(p.grad, grad)
    norm = nn.utils.clip_grad_norm_(net.parameters(), 1e-3)
    whole = torch.linalg.vector_norm(torch.cat([grad.flatten() for grad in expected]))
    torch.testing.assert_close(norm, whole)


def test_a_gradient_that_is_not_finite_where_weights_are_pruned_is_none() -> None:
    net = nn.Sequential(nn.Linear(2, 1, bias=False))
    hold_masks_(net, {"0": torch.tensor([[True, False]])})
    (net(torch.tensor([[1.0, 3e38]])) * 10).sum().backward()
    assert net[0].weight.grad.tolist() == [[10.0, 0.0]]


def test_amp() -> None:
    net = model()
    masks = random_masks(net)
    hold_masks_(net, masks)
    stepper = OPTIMIZERS["adamw"](list(net.parameters()))
    scaler = torch.amp.GradScaler("cpu", init_scale=2.0**10)
    x, y = data()
    with num_threads(1):
        for _ in range(STEPS):
            stepper.zero_grad()
            with torch.autocast("cpu", torch.bfloat16):
                loss = nn.functional.mse_loss(net(x).float(), y)
            scaler.scale(loss).backward()
            scaler.unscale_(stepper)
            nn.utils.clip_grad_norm_(net.parameters(), 1.0)
            scaler.step(stepper)
            scaler.update()
    assert_held(net, masks)
