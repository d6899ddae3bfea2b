"""RigL against a plain numpy transcription of its rule."""

from __future__ import annotations

import copy
import math

import numpy as np
import pytest
import torch
from masks_helpers import OPTIMIZERS, assert_held, data, model, random_masks, train
from torch import Tensor, nn

from sparseinfer.prune import RigL, finalize_, hold_masks_, masks_of


def numpy_move(weight: np.ndarray, gradient: np.ndarray, mask: np.ndarray, fraction: float) -> np.ndarray:
    """Evci et al., algorithm 1: drop by magnitude, grow by gradient among all that are not kept then."""
    count = round(fraction * mask.sum())
    mask = mask.copy().ravel()
    kept = np.flatnonzero(mask)
    mask[kept[np.argsort(np.abs(weight).ravel()[kept])[:count]]] = False
    free = np.flatnonzero(~mask)
    mask[free[np.argsort(-np.abs(gradient).ravel()[free])[:count]]] = True
    return mask.reshape(weight.shape)


def backward(net: nn.Module, seed: int) -> None:
    x, y = data(seed)
    nn.functional.mse_loss(net(x), y).backward()


def dense_gradients(net: nn.Module, seed: int) -> dict[str, Tensor]:
    plain = finalize_(copy.deepcopy(net))
    plain.zero_grad()
    backward(plain, seed)
    return {fqn: plain.get_submodule(fqn).weight.grad for fqn in masks_of(net)}


@pytest.mark.parametrize("accumulated", [False, True])
def test_moves(accumulated: bool) -> None:
    net = model()
    hold_masks_(net, random_masks(net))
    rigl = RigL(net, end=10, every=4, drop_fraction=0.5)
    optimizer = OPTIMIZERS["sgd-momentum-decay"](list(net.parameters()))
    moved = []
    for step in range(1, 13):
        seeds = (step, step + 100) if accumulated else (step,)
        gradients = [dense_gradients(net, seed) for seed in seeds]
        before = {fqn: mask.clone() for fqn, mask in masks_of(net).items()}
        optimizer.zero_grad()
        for seed in seeds:
            backward(net, seed)
        for fqn, mask in before.items():
            assert not net.get_submodule(fqn).weight.grad[~mask].any()
        optimizer.step()
        weights = {fqn: net.get_submodule(fqn).weight.detach().clone() for fqn in before}
        if rigl.step():
            moved.append(step)
        for fqn, mask in masks_of(net).items():
            expected = before[fqn]
            if step in (4, 8):
                fraction = 0.5 / 2 * (1 + math.cos(step * math.pi / 10))
                gradient = sum(each[fqn] for each in gradients)
                expected = torch.from_numpy(
                    numpy_move(weights[fqn].numpy(), gradient.numpy(), before[fqn].numpy(), fraction)
                )
                assert not torch.equal(expected, before[fqn])
            assert torch.equal(mask, expected)
            assert mask.sum() == before[fqn].sum()
            assert torch.equal(net.get_submodule(fqn).weight, weights[fqn] * mask)
    assert moved == [4, 8]


def test_grown_weights_are_trained_and_the_others_stay_zero() -> None:
    net = model()
    hold_masks_(net, random_masks(net))
    rigl = RigL(net, end=3, every=1)
    optimizer = OPTIMIZERS["adam"](list(net.parameters()))
    backward(net, 0)
    optimizer.step()
    assert rigl.step()
    masks = {fqn: mask.clone() for fqn, mask in masks_of(net).items()}
    train(net, optimizer, 3)
    assert_held(net, masks)


def test_resumed() -> None:
    net = model()
    hold_masks_(net, random_masks(net))
    rigl = RigL(net, end=100, every=5)
    for _ in range(3):
        rigl.step()
    again = RigL(net, end=100, every=5)
    again.load_state_dict(rigl.state_dict())
    assert not again.step()
    backward(net, 0)
    assert again.step()


def test_bad_input() -> None:
    with pytest.raises(ValueError, match=r"model: expected one that holds masks, got none \(call prune_"):
        RigL(model(), end=10)
    net = model()
    hold_masks_(net, random_masks(net))
    with pytest.raises(ValueError, match=r"drop_fraction: expected a number in \(0, 1\], got 0"):
        RigL(net, end=10, drop_fraction=0)
    with pytest.raises(TypeError, match=r"end: expected an int, got float"):
        RigL(net, end=10.0)
    with pytest.raises(ValueError, match=r"every: expected at least 1, got 0"):
        RigL(net, end=10, every=0)
    rigl = RigL(net, end=10, every=1)
    masks = {fqn: mask.clone() for fqn, mask in masks_of(net).items()}
    with pytest.raises(RuntimeError, match=r"step: expected a backward before it that reaches every"):
        rigl.step()
    assert_held(net, masks)
