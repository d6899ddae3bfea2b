"""Corrections of a pruned model that need no training."""

from __future__ import annotations

import copy

import pytest
import torch
from generators import values
from torch import nn

from sparseinfer.prune import Magnitude, calibrate, correct_bias_, prune_, reestimate_batch_norm_


class TestBatchNorm:
    def model(self) -> nn.Sequential:
        torch.manual_seed(0)
        return nn.Sequential(
            nn.Conv1d(3, 4, 3),
            nn.BatchNorm1d(4, momentum=0.3),
            nn.Dropout(0.5),
            nn.Flatten(),
            nn.Linear(24, 6),
            nn.BatchNorm1d(6, affine=False),
            nn.BatchNorm1d(6, track_running_stats=False),
        )

    def test_statistics_are_the_averages_over_the_batches(self) -> None:
        net = self.model().eval()
        net[0].train()
        batches = [values(8, 3, 8, seed=seed) for seed in range(3)]
        assert reestimate_batch_norm_(net, batches) is net
        with torch.no_grad():
            inputs = [net[0](x).double() for x in batches]
            means = torch.stack([x.mean((0, 2)) for x in inputs])
            variances = torch.stack([x.var((0, 2)) for x in inputs])
        torch.testing.assert_close(net[1].running_mean.double(), means.mean(0), rtol=1e-5, atol=1e-6)
        torch.testing.assert_close(net[1].running_var.double(), variances.mean(0), rtol=1e-5, atol=1e-6)
        assert net[1].num_batches_tracked == 3
        assert net[1].momentum == 0.3
        assert [module.training for module in net] == [True, *[False] * 6]
        with torch.no_grad():
            x = torch.cat(batches)
            normed = net[:6](x)  # dropout is off
        assert normed.mean(0).abs().max() < 0.05

    def test_after_an_error_the_old_statistics_are_there(self) -> None:
        net = self.model()
        before = copy.deepcopy(net.state_dict())
        for batches, error in (([], ValueError), ([values(8, 3, 8), values(8, 2, 8)], RuntimeError)):
            with pytest.raises(error):
                reestimate_batch_norm_(net, batches)
            assert all(torch.equal(t, before[name]) for name, t in net.state_dict().items())
            assert net[1].momentum == 0.3
            assert net.training
        with pytest.raises(ValueError, match=r"model: expected batch norms with running statistics"):
            reestimate_batch_norm_(nn.Linear(2, 2), [torch.ones(2, 2)])


class TestBias:
    def test_the_mean_output_of_each_layer_is_that_of_its_dense_weights(self) -> None:
        torch.manual_seed(0)
        dense = nn.Sequential(
            nn.Conv1d(4, 6, 3, padding=1, groups=2),
            nn.Flatten(),
            nn.Linear(48, 5),
            nn.Linear(5, 5, bias=False),
        )
        batches = [values(16, 4, 8, seed=seed) + 0.5 for seed in range(2)]
        net = copy.deepcopy(dense)
        prune_(net, Magnitude(0.6))
        stats = calibrate(dense, batches, gram=False)
        assert correct_bias_(net, dense, stats) is net
        x = torch.cat(batches)
        with torch.no_grad():
            h = dense[0](x)
            torch.testing.assert_close(net[0](x).mean((0, 2)), h.mean((0, 2)), atol=1e-5, rtol=0)
            got, expected = net[2](h.flatten(1)).mean(0), dense[2](h.flatten(1)).mean(0)
            torch.testing.assert_close(got, expected, atol=1e-5, rtol=0)
            assert net[3].bias is None
        assert (net[2].bias - dense[2].bias).abs().min() > 1e-4

    def test_bad_input(self) -> None:
        dense = nn.Sequential(nn.Linear(12, 32), nn.Tanh(), nn.Linear(32, 5))
        net = copy.deepcopy(dense)
        stats = calibrate(dense, [values(16, 12)], gram=False)
        before = copy.deepcopy(net.state_dict())
        other = nn.Sequential(*(nn.Linear(12, 12) for _ in range(3)))
        with pytest.raises(
            ValueError, match=r"dense: expected a layer '0' of shape \(1, 32, 12\), got another"
        ):
            correct_bias_(net, other, stats)
        with pytest.raises(TypeError, match=r"stats: expected CalibrationStats, got dict"):
            correct_bias_(net, dense, {})
        assert all(torch.equal(t, before[name]) for name, t in net.state_dict().items())
