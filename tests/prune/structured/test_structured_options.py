"""Importances and least squares against plain formulas; amounts, steps of Pruner, latency."""

from __future__ import annotations

import copy
from typing import Any

import pytest
import torch
from structured_models import family
from test_structured_exact import first
from torch import Tensor, nn

import sparseinfer as si
from sparseinfer._running import call, run
from sparseinfer.prune import Linear, OneShot, Pruner, Structured, calibrate
from sparseinfer.prune.structured import latency, prune_blocks_, prune_structured_
from sparseinfer.prune.structured.amounts import kept_count

K, N, M = 6, 12, 4


def mlp() -> tuple[nn.Sequential, list[Tensor]]:
    torch.manual_seed(0)
    batches = [torch.randn(40, K) for _ in range(3)]
    return nn.Sequential(nn.Linear(K, N), nn.ReLU(), nn.Linear(N, M)), batches


def left_by(model: nn.Sequential, scores: Tensor) -> Tensor:
    """Rows of the first layer that are left if a third of the units goes."""
    return model[0].weight[scores.topk(N - N // 3).indices.sort().values]


def hidden(model: nn.Sequential, batches: list[Tensor]) -> Tensor:
    return model[:2](torch.cat(batches)).double()


@pytest.mark.parametrize("name", ["magnitude", "wanda", "variance", "reconstruction", "taylor"])
@torch.no_grad()
def test_importances_are_the_published_ones(name: str) -> None:
    model, batches = mlp()
    x, h = torch.cat(batches).double(), hidden(model, batches)
    w1, w2 = model[0].weight.double(), model[2].weight.double()

    def loss(output: Tensor, batch: Tensor) -> Tensor:
        return output.square().sum()

    stats = calibrate(model, batches, loss_fn=loss if name == "taylor" else None)
    if name == "magnitude":
        expected = (w1**2).sum(1) + (w2**2).sum(0)
    elif name == "wanda":
        expected = (w1.abs() * x.norm(dim=0)).sum(1) + (w2.abs() * h.norm(dim=0)).sum(0)
    elif name == "variance":
        expected = (w2**2 * h.var(0, correction=0)).sum(0)
    elif name == "taylor":
        with torch.enable_grad():
            copied = copy.deepcopy(model).double()
            copied(x).square().sum().backward()
        expected = (w1 * copied[0].weight.grad).sum(1).abs() + (w2 * copied[2].weight.grad).sum(0).abs()
    else:
        gram = h.T @ h
        gram += torch.eye(N) * 0.01 * gram.diagonal().mean()
        # The error of the best fit of all outputs by all units but one.
        expected = torch.zeros(N, dtype=torch.float64)
        for unit in range(N):
            left = [i for i in range(N) if i != unit]
            fit = torch.linalg.solve(gram[left][:, left], gram[left][:, unit])
            rest = gram[unit, unit] - gram[unit, left] @ fit
            expected[unit] = rest * (w2[:, unit] ** 2).sum()
    rows = left_by(model, expected)
    prune_structured_(model, batches[0], name, ratio=1 / 3, round_to=1, stats=stats)
    assert torch.equal(model[0].weight, rows)


@torch.no_grad()
def test_update_is_least_squares() -> None:
    model, batches = mlp()
    h = hidden(model, batches)
    target = h @ model[2].weight.double().T
    stats = calibrate(model, batches)
    fitted, plain = copy.deepcopy(model), copy.deepcopy(model)
    for each, update in ((fitted, True), (plain, False)):
        prune_structured_(each, batches[0], ratio=1 / 3, round_to=1, stats=stats, update=update)
    kept = hidden(fitted, batches)
    best = torch.linalg.lstsq(kept, target).solution.T
    errors = [float((kept @ w.double().T - target).norm()) for w in (best, fitted[2].weight, plain[2].weight)]
    # Damped by 1 % of the mean diagonal.
    assert errors[0] <= errors[1] <= 1.05 * errors[0] < errors[2]


@torch.no_grad()
def test_update_of_a_convolution_and_of_attention_lessens_the_error() -> None:
    for name in ("unet", "llama", "gpt2"):
        model, inputs = family(name)
        stats = calibrate(model, [inputs], ignore=["lm_head"] if name != "unet" else None)
        expected = first(run(model, inputs))
        errors = []
        for update in (True, False):
            pruned = copy.deepcopy(model)
            prune_structured_(pruned, inputs, "wanda", ratio=0.3, round_to=1, stats=stats, update=update)
            errors.append(float((first(run(pruned, inputs)) - expected).norm()))
        assert errors[0] < errors[1], name


def test_counts_are_multiples() -> None:
    assert kept_count(10, 0.3, 1) == 7
    assert kept_count(64, 0.3, 8) == 48
    assert kept_count(64, 0.99, 8) == 8
    assert kept_count(64, 0.0, 16) == 64
    assert kept_count(50, 0.0, 16) == 50
    model, x = nn.Sequential(nn.Linear(8, 256), nn.ReLU(), nn.Linear(256, 8)), torch.randn(2, 8)
    prune_structured_(model, x, ratio=0.4)
    assert model[0].out_features == 160  # of 153.6 the next multiple of 64 bytes
    half = nn.Sequential(nn.Linear(8, 256), nn.ReLU(), nn.Linear(256, 8)).bfloat16()
    prune_structured_(half, x.bfloat16(), ratio=0.4)
    assert half[0].out_features == 160


def test_global_scope_takes_more_from_groups_that_matter_less() -> None:
    model, inputs = family("resnet")
    report = prune_structured_(model, inputs, scope="global", ratio=0.3, round_to=1)
    assert len({round(group.ratio, 2) for group in report.groups}) > 2
    assert all(group.after >= group.before * 0.1 for group in report.groups)
    assert report.parameters[1] < 0.8 * report.parameters[0]


@pytest.mark.parametrize("name", ["resnet", "unet", "bert", "llama"])
def test_flops_are_those_of_torchs_counter_and_meet_the_target(name: str) -> None:
    from torch.utils.flop_counter import FlopCounterMode

    def counted(model: nn.Module, inputs: Any) -> int:
        with torch.no_grad(), FlopCounterMode(display=False) as counter:
            call(model, inputs)
        return counter.get_total_flops()

    model, inputs = family(name)
    # torch's counter does not know the fused attention of CPUs.
    fused = any(hasattr(module, "config") for module in model.modules())
    if fused:
        model.set_attn_implementation("eager")
    dense = counted(model, inputs)
    report = prune_structured_(model, inputs, flops=0.6, round_to=1)
    assert report.flops == (dense, counted(model, inputs))
    assert 0.4 * dense < report.flops[1] <= 0.6 * dense


def test_a_schedule_prunes_ten_percent_a_step_of_what_was_there() -> None:
    model, x = nn.Sequential(nn.Linear(8, 100), nn.ReLU(), nn.Linear(100, 8)), torch.randn(32, 8)
    optimizer = torch.optim.Adam(model.parameters(), 1e-2)
    pruner = Pruner(model, Structured(0.3, x, round_to=1), Linear(2, 6, 2), optimizer=optimizer)
    sizes, losses = [], []
    for _ in range(8):
        optimizer.zero_grad()
        loss = (model(x) - x).square().mean()
        loss.backward()
        optimizer.step()
        pruner.step()
        sizes.append(model[0].out_features)
        losses.append(float(loss.detach()))
    assert sizes == [100, 90, 90, 80, 80, 70, 70, 70]
    assert pruner.done
    assert optimizer.state[model[0].weight]["exp_avg"].shape == (70, 8)
    assert losses[-1] < losses[0]
    with pytest.raises(ValueError, match="rewind_to: expected None with Structured"):
        Pruner(model, Structured(0.3, x), OneShot(3), rewind_to=0)


def test_a_resumed_pruner_counts_from_the_first_sizes() -> None:
    model, x = nn.Sequential(nn.Linear(8, 100), nn.ReLU(), nn.Linear(100, 8)), torch.randn(32, 8)
    method, schedule = Structured(0.5, x, round_to=1), Linear(1, 2, 1)
    pruner = Pruner(model, method, schedule)
    pruner.step()
    state = pruner.state_dict()
    resumed = Pruner(model, method, schedule)
    resumed.load_state_dict(state)
    resumed.step()
    assert model[0].out_features == 50


@pytest.mark.parametrize("name", ["llama", "gpt2", "t5", "bert"])
def test_whole_blocks_go(name: str, tmp_path: Any) -> None:
    model, inputs = family(name)
    prune_structured_(model, inputs, ratio=0.25)
    blocks = next(n for n, m in model.named_modules() if isinstance(m, nn.ModuleList) and len(m) == 2)
    report = prune_blocks_(model, [inputs], 1, blocks=blocks)
    assert [(g.kind, g.before, g.after) for g in report.groups] == [("blocks", 2, 1)]
    expected = first(run(model, inputs))
    si.save(model, tmp_path / "file")
    loaded = si.load(tmp_path / "file", lambda: family(name)[0])
    assert torch.equal(first(run(loaded, inputs)), expected)
    si.save_pretrained(model, tmp_path / "folder")
    loaded = type(model).from_pretrained(tmp_path / "folder")
    assert torch.equal(first(run(loaded, inputs)), expected)
    if name in ("llama", "gpt2"):
        ids = inputs[0][:, :4]
        with torch.no_grad():
            made = [
                loaded.generate(ids, max_new_tokens=5, do_sample=False, use_cache=c) for c in (True, False)
            ]
        assert torch.equal(*made)


def test_the_block_that_changes_least_goes() -> None:
    torch.manual_seed(0)
    blocks = nn.Sequential(*(nn.Linear(8, 8) for _ in range(4)))
    with torch.no_grad():
        blocks[2].weight.copy_(torch.eye(8) * 3)
        blocks[2].bias.zero_()
    names = [blocks[i].weight for i in (0, 1, 3)]
    prune_blocks_(blocks, [torch.randn(5, 8)], 1, blocks="")
    assert all(a is block.weight for a, block in zip(names, blocks, strict=True))
    with pytest.raises(ValueError, match="count: expected fewer than the 3 blocks"):
        prune_blocks_(blocks, [torch.randn(5, 8)], 3, blocks="")
    with pytest.raises(ValueError, match=r"blocks: expected the name of an nn\.ModuleList"):
        prune_blocks_(blocks, [torch.randn(5, 8)], 1, blocks="nothing")


def test_latency_searches_with_times_of_layers(monkeypatch: pytest.MonkeyPatch) -> None:
    """Times are made up: a layer takes as long as it has weights, in the model 10 % more, the rest 1000."""

    def weights(model: nn.Module) -> float:
        return float(sum(m.weight.numel() for m in model.modules() if isinstance(m, nn.Linear)))

    monkeypatch.setattr(latency.Clock, "whole", lambda self, model: 1000 + 1.1 * weights(model))
    monkeypatch.setattr(latency, "_time", lambda module, shape, x: float(shape[0] * shape[1]))
    model, inputs = nn.Sequential(nn.Linear(64, 512), nn.ReLU(), nn.Linear(512, 64)), torch.randn(2, 64)
    dense = 1000 + 1.1 * weights(model)
    report = prune_structured_(model, inputs, latency=0.7 * dense, round_to=1)
    assert report.milliseconds is not None
    predicted, measured = report.milliseconds
    assert measured == 1000 + 1.1 * weights(model)
    assert abs(measured / (0.7 * dense) - 1) < 0.05
    assert predicted <= 0.7 * dense
    with pytest.raises(ValueError, match="latency: expected at least"):
        prune_structured_(model, inputs, latency=10.0)


def test_latency_is_measured(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(latency, "_MODEL_S", 0.02)
    monkeypatch.setattr(latency, "_LAYER_S", 0.002)
    model, x = nn.Sequential(nn.Linear(512, 2048), nn.ReLU(), nn.Linear(2048, 512)), torch.randn(64, 512)
    report = prune_structured_(model, x, latency=1e6)
    assert report.groups[0].after == 2048
    assert min(report.milliseconds) > 0
