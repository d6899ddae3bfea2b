"""Recovery: training under masks, towards a teacher or for a task."""

from __future__ import annotations

import copy
import time

import numpy as np
import pytest
import torch
import torch.nn.functional as F
from generators import values
from torch import Tensor, nn

from sparseinfer.prune import Magnitude, cosine_loss, distillation_loss, masks_of, prune_, recover_


def dense_model() -> nn.Sequential:
    torch.manual_seed(0)
    return nn.Sequential(
        nn.Linear(12, 32), nn.Tanh(), nn.Dropout(0.5), nn.Linear(32, 32), nn.Tanh(), nn.Linear(32, 5)
    )


def pruned(sparsity: float = 0.7) -> tuple[nn.Sequential, nn.Sequential]:
    dense = dense_model()
    net = copy.deepcopy(dense)
    prune_(net, Magnitude(sparsity))
    return net, dense


BATCHES = [values(16, 12, seed=seed) for seed in range(4)]
UNSEEN = values(64, 12, seed=9)


def distance(net: nn.Module, dense: nn.Module) -> float:
    with torch.no_grad():
        return float(F.mse_loss(net.eval()(UNSEEN), dense.eval()(UNSEEN)))


class TestRecover:
    @pytest.mark.parametrize("hidden", [None, {"1": 0.5, "4": 1.0}])
    def test_it_comes_nearer_to_its_teacher_under_the_same_masks(self, hidden: dict | None) -> None:
        net, dense = pruned()
        before, teacher = distance(net, dense), copy.deepcopy(dense.state_dict())
        masks = {fqn: mask.clone() for fqn, mask in masks_of(net).items()}
        net.train()
        net[4].eval()
        history = recover_(net, BATCHES, F.mse_loss, teacher=dense, hidden=hidden, steps=100, lr=5e-3)
        assert history.steps == len(history.losses) == 100
        assert history.losses[-1] < history.losses[0] / 1.5
        assert (net.training, net[0].training, net[4].training) == (True, True, False)
        assert distance(net, dense) < before / 2
        assert all(torch.equal(net.get_submodule(fqn).weight != 0, mask) for fqn, mask in masks.items())
        assert all(torch.equal(t, teacher[name]) for name, t in dense.state_dict().items())
        assert all(parameter.grad is None for parameter in (*net.parameters(), *dense.parameters()))
        assert not any(module._forward_hooks for each in (net, dense) for module in each.modules())

    def test_the_first_step_is_adams_by_the_gradient_of_both_losses(self) -> None:
        """AdamW's first step moves each weight by its learning rate against the gradient's sign."""
        net, dense = pruned()
        reference = copy.deepcopy(net).eval()
        dense.eval()
        x = BATCHES[0]
        student, teacher = reference[:2](x), dense[:2](x)
        loss = F.mse_loss(reference(x), dense(x))
        loss = loss + 0.5 * (student - teacher).square().sum() / teacher.square().sum()
        loss.backward()
        before = copy.deepcopy(net.state_dict())
        history = recover_(net, [x], F.mse_loss, teacher=dense, hidden={"1": 0.5}, steps=1, lr=1e-3)
        assert history.losses[0] == pytest.approx(loss.item(), rel=1e-6)
        for (name, got), expected in zip(net.named_parameters(), reference.parameters(), strict=True):
            step = (got.detach() - before[name]) / 1e-3
            large = expected.grad.abs() > 1e-4
            torch.testing.assert_close(step[large], -expected.grad[large].sign(), atol=1e-2, rtol=0)
            assert large.any()

    def test_a_task_without_a_teacher(self) -> None:
        net, dense = pruned()
        with torch.no_grad():
            batches = [{"input": x, "label": dense.eval()(x).argmax(1)} for x in BATCHES]

        def loss(output: Tensor, batch: dict) -> Tensor:
            return F.cross_entropy(output, batch["label"])

        history = recover_(
            net, batches, loss, steps=60, lr=5e-3, forward=lambda model, batch: model(batch["input"])
        )
        assert history.losses[-1] < history.losses[0] / 2

    def test_only_what_requires_a_gradient_is_trained(self) -> None:
        net, dense = pruned()
        net[3].requires_grad_(False)
        frozen = copy.deepcopy(net[3].state_dict())
        recover_(net, BATCHES, F.mse_loss, teacher=dense, steps=3)
        assert all(torch.equal(t, frozen[name]) for name, t in net[3].state_dict().items())

    def test_an_optimizer_of_the_callers_keeps_its_learning_rate(self) -> None:
        net, dense = pruned()
        optimizer = torch.optim.SGD(net[5].parameters(), lr=0.25)
        first = net[0].weight.detach().clone()
        recover_(net, BATCHES, F.mse_loss, teacher=dense, steps=3, optimizer=optimizer)
        assert optimizer.param_groups[0]["lr"] == 0.25
        assert torch.equal(net[0].weight, first)

    def test_it_stops_when_the_time_is_up(self) -> None:
        net, dense = pruned()

        def slow(model: nn.Module, batch: Tensor) -> Tensor:
            time.sleep(0.01)
            return model(batch)

        history = recover_(net, BATCHES, F.mse_loss, teacher=dense, steps=10_000, seconds=0.2, forward=slow)
        assert 1 <= history.steps <= 10
        assert history.seconds >= 0.2

    def test_losses(self) -> None:
        a, b = values(6, 4, 9, seed=1).double(), values(6, 4, 9, seed=2).double()
        x, y = a.numpy(), b.numpy()
        cosine = (x * y).sum(-1) / np.linalg.norm(x, axis=-1) / np.linalg.norm(y, axis=-1)
        assert cosine_loss(a, b).item() == pytest.approx(1 - cosine.mean(), rel=1e-12)

        def softmax(z: np.ndarray) -> np.ndarray:
            return np.exp(z) / np.exp(z).sum(-1, keepdims=True)

        p, q = softmax(y / 3), softmax(x / 3)
        kl = 9 * (p * np.log(p / q)).sum(-1).mean()
        assert distillation_loss(3.0)(a, b).item() == pytest.approx(kl, rel=1e-12)

    def test_bad_input(self) -> None:
        net, dense = pruned()
        before = copy.deepcopy(net.state_dict())
        for arguments, error, message in (
            ({"steps": 0}, ValueError, "steps: expected an int of at least 1, got 0"),
            ({"batches": []}, ValueError, "batches: expected at least one, got none"),
            ({"batches": UNSEEN}, TypeError, "batches: expected an iterable of batches, got Tensor"),
            ({"hidden": {"9": 1.0}}, ValueError, "hidden: expected names of the model's modules, got '9'"),
            ({"hidden": {"1": 1.0}, "teacher": None}, ValueError, "hidden: expected none without a teacher"),
            (
                {"loss_fn": lambda a, b: F.mse_loss(a, b) * float("inf")},
                RuntimeError,
                "loss_fn: expected a finite loss, got inf at step 0",
            ),
        ):
            options = {"batches": BATCHES, "loss_fn": F.mse_loss, "teacher": dense, "steps": 3} | arguments
            with pytest.raises(error) as raised:
                recover_(net, **options)
            assert str(raised.value).startswith(message)
        assert all(torch.equal(t, before[name]) for name, t in net.state_dict().items())
        assert not any(module._forward_hooks for module in net.modules())
        frozen = copy.deepcopy(net).requires_grad_(False)
        with pytest.raises(ValueError, match=r"model: expected parameters that require a gradient"):
            recover_(frozen, BATCHES, F.mse_loss, steps=1)
        with pytest.raises(ValueError, match=r"temperature: expected a positive number, got 0"):
            distillation_loss(0)
