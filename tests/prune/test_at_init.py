"""SNIP and SynFlow against plain transcriptions of their papers."""

from __future__ import annotations

import copy

import numpy as np
import pytest
import torch
from torch import nn

from sparseinfer.prune import masks_of, snip_, synflow_


def model() -> nn.Sequential:
    """Two convolutions and two Linears of very different size, x [batch, 3, 10] -> [batch, 4]."""
    torch.manual_seed(0)
    return nn.Sequential(
        nn.Conv1d(3, 6, 3), nn.BatchNorm1d(6), nn.ReLU(), nn.Conv1d(6, 4, 3), nn.ReLU(), nn.Flatten(),
        nn.Linear(24, 40), nn.ReLU(), nn.Linear(40, 4),
    )  # fmt: skip


LAYERS = ("0", "3", "6", "8")


def lowest(scores: list[torch.Tensor], count: int) -> list[torch.Tensor]:
    """Masks that prune `count` of all scores."""
    flat = np.concatenate([score.detach().numpy().ravel() for score in scores])
    kept = np.ones(len(flat), bool)
    kept[np.argsort(flat, kind="stable")[:count]] = False
    parts = np.split(kept, np.cumsum([score.numel() for score in scores])[:-1])
    return [torch.from_numpy(p.reshape(s.shape)) for p, s in zip(parts, scores, strict=True)]


def assert_pruned_at(net: nn.Module, expected: list[torch.Tensor]) -> None:
    dense = model()
    for fqn, mask in zip(LAYERS, expected, strict=True):
        assert torch.equal(masks_of(net)[fqn], mask)
        assert torch.equal(net.get_submodule(fqn).weight, dense.get_submodule(fqn).weight * mask)
    state = dense.state_dict()
    others = [name for name in state if name.removesuffix(".weight") not in LAYERS]
    assert all(torch.equal(net.state_dict()[name], state[name]) for name in others)


def test_snip() -> None:
    net, reference = model(), model().eval()
    x, y = torch.randn(16, 3, 10), torch.randint(4, (16,))
    report = snip_(net, 0.8, [(x,)], lambda output, batch: nn.functional.cross_entropy(output, y))
    nn.functional.cross_entropy(reference(x), y).backward()
    weights = [reference.get_submodule(fqn).weight for fqn in LAYERS]
    total = sum(weight.numel() for weight in weights)
    assert report.nnz == total - round(0.8 * total)
    assert_pruned_at(net, lowest([(w * w.grad).abs() for w in weights], round(0.8 * total)))
    assert net.training
    assert all(parameter.grad is None for parameter in net.parameters())


@pytest.mark.parametrize("iterations", [1, 7])
def test_synflow(iterations: int) -> None:
    net, twin = model(), model().double().eval()
    report = synflow_(net, 0.9, torch.randn(5, 3, 10), iterations=iterations)
    with torch.no_grad():
        for tensor in twin.state_dict().values():
            tensor.abs_()
    weights = [twin.get_submodule(fqn).weight for fqn in LAYERS]
    total = sum(weight.numel() for weight in weights)
    for i in range(1, iterations + 1):
        twin.zero_grad()
        twin(torch.ones(5, 3, 10, dtype=torch.float64)).sum().backward()
        count = round((1 - 0.1 ** (i / iterations)) * total)
        masks = lowest([w * w.grad for w in weights], count)
        with torch.no_grad():
            for weight, mask in zip(weights, masks, strict=True):
                weight *= mask
    assert report.nnz == total - round(0.9 * total)
    assert_pruned_at(net, masks)


def test_synflow_leaves_a_path_from_inputs_to_outputs() -> None:
    """Where one pass of the same scores cuts a layer off: what the iterations are for."""
    torch.manual_seed(0)
    sizes = ((8, 100), (100, 100), (100, 100), (100, 8))
    net = nn.Sequential(*(nn.Linear(k, n, bias=False) for k, n in sizes))
    sparsity, x = 1 - 60 / 21600, torch.randn(1, 8)
    one = copy.deepcopy(net)
    synflow_(one, sparsity, x, iterations=1)
    synflow_(net, sparsity, x)
    assert not all(mask.any() for mask in masks_of(one).values())
    with torch.no_grad():
        for weight in net.parameters():
            weight.abs_()
    assert net(torch.ones(1, 8)).any()


def test_synflow_runs_on_ids_mappings_and_several_outputs() -> None:
    class Net(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.table, self.a, self.b = nn.Embedding(9, 8), nn.Linear(8, 6), nn.Linear(6, 6)

        def forward(self, ids: torch.Tensor, scale: float = 1.0) -> dict[str, object]:
            h = self.a(self.table(ids)) * scale
            return {"hidden": h, "more": (self.b(h), h)}

    net = Net()
    report = synflow_(net, 0.5, {"ids": torch.arange(6).view(2, 3), "scale": 2.0}, ignore=["b"])
    assert [layer.fqn for layer in report.layers] == ["a"]
    assert report.nnz == 24


def test_bad_input_leaves_the_model_as_it_was() -> None:
    net = model()
    before = copy.deepcopy(net.state_dict())
    with pytest.raises(ValueError, match=r"sparsity: expected a number in \[0, 1\), got 1"):
        synflow_(net, 1, torch.randn(5, 3, 10))
    with pytest.raises(ValueError, match=r"iterations: expected an int of at least 1, got 0"):
        synflow_(net, 0.5, torch.randn(5, 3, 10), iterations=0)
    with pytest.raises(RuntimeError):
        synflow_(net, 0.5, torch.randn(5, 2, 10))
    with pytest.raises(ValueError, match=r"loss_fn: expected a finite loss, got nan"):
        snip_(net, 0.5, [torch.randn(5, 3, 10)], lambda output, batch: output.sum() * float("nan"))
    overflowing = nn.Sequential(nn.Linear(2, 2), nn.Linear(2, 2)).double()
    with torch.no_grad():
        overflowing[0].weight.fill_(1e200)
        overflowing[1].weight.fill_(1e200)
    with pytest.raises(ValueError, match=r"example_inputs: expected a finite sum of outputs, got inf"):
        synflow_(overflowing, 0.5, torch.ones(1, 2))
    assert list(net.state_dict()) == list(before)
    assert all(torch.equal(t, before[name]) for name, t in net.state_dict().items())
