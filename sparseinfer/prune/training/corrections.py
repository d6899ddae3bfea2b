"""Corrects batch norm statistics and biases after pruning, without training."""

from __future__ import annotations

from collections.abc import Iterable
from typing import Any

import torch
from torch import Tensor, nn

from sparseinfer._running import call, evaluating
from sparseinfer.prune.calibration.batches import Forward, checked_batches, every_batch
from sparseinfer.prune.calibration.statistics import CalibrationStats, check_stats
from sparseinfer.prune.layers.selection import layers_named

_BatchNorm = nn.modules.batchnorm._BatchNorm


def reestimate_batch_norm_(
    model: nn.Module, batches: Iterable[Any], *, forward: Forward | None = None
) -> nn.Module:
    """Recompute the batch norms' means and variances, averaged over the batches; in place, returns the model.

    batches, forward  as in `calibrate`: inputs like those of training, not too few for a variance

    Pruning shifts the inputs of batch norms, whose statistics are still those of the dense model. All other
    modules run in eval mode. Modes are restored; after an error the old statistics are, too. ValueError: no
    batch, or no batch norm with statistics.
    """
    batches = checked_batches(batches)
    norms = [m for m in model.modules() if isinstance(m, _BatchNorm) and m.running_mean is not None]
    if not norms:
        raise ValueError("model: expected batch norms with running statistics, got none")
    forward = forward or call
    before = [({name: t.clone() for name, t in norm.named_buffers()}, norm.momentum) for norm in norms]
    try:
        with evaluating(model), torch.no_grad():
            for norm in norms:
                norm.reset_running_stats()
                norm.momentum = None  # the average of all batches
                norm.train()
            for batch in every_batch(batches):
                forward(model, batch)
    except BaseException:
        for norm, (buffers, _) in zip(norms, before, strict=True):
            for name, t in norm.named_buffers():
                t.copy_(buffers[name])
        raise
    finally:
        for norm, (_, momentum) in zip(norms, before, strict=True):
            norm.momentum = momentum
    return model


@torch.no_grad()
def correct_bias_(model: nn.Module, dense: nn.Module, stats: CalibrationStats) -> nn.Module:
    """Give each layer the mean output that it had with its dense weights; in place, returns the model.

    dense  the model before pruning
    stats  of `calibrate`: the mean input x̄ of each layer. Only these layers are corrected

    The bias grows by (W - Ŵ)·x̄, the mean change by pruning. A layer without bias stays unchanged.
    The bias correction of Nagel et al., "Data-Free Quantization Through Weight Equalization and Bias
    Correction" (2019), for pruning. ValueError: statistics or a dense model of other layers; then the model
    is unchanged.
    """
    if not isinstance(stats, CalibrationStats):
        raise TypeError(f"stats: expected CalibrationStats, got {type(stats).__name__}")
    layers, originals = layers_named(model, stats), layers_named(dense, stats)
    check_stats(stats, layers, frozenset(), "correct_bias_")
    shifts: list[tuple[Tensor, Tensor]] = []
    for fqn, layer in layers.items():
        if fqn not in originals or originals[fqn].shape != layer.shape:
            raise ValueError(f"dense: expected a layer {fqn!r} of shape {layer.shape}, got another model")
        # Of several matrices in one weight the numbers of tokens may differ, and are not known.
        bias = layer.bias if layer.groups == 1 or layer.is_conv else None
        if bias is not None and stats[fqn].tokens:
            lost = originals[fqn].matrix().double() - layer.matrix().double()
            mean = stats[fqn].sum_x.double() / stats[fqn].tokens
            shifts.append((bias, (lost @ mean[..., None]).flatten()))
    for bias, shift in shifts:
        bias.add_(shift.to(bias.dtype))
    return model
