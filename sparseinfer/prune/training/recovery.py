"""`recover_`: trains a pruned model, with its masks, to recover quality."""

from __future__ import annotations

import time
from collections.abc import Callable, Iterable, Iterator, Mapping
from contextlib import ExitStack
from dataclasses import dataclass, field
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor, nn
from torch.optim import AdamW, Optimizer

from sparseinfer._progress import Progress
from sparseinfer._running import call, evaluating
from sparseinfer.prune.calibration.batches import Forward, checked_batches, every_batch
from sparseinfer.prune.checks import check_positive

# (output, target) -> scalar; target is the teacher's output, or without a teacher the batch
RecoveryLoss = Callable[[Any, Any], Tensor]

# The part of the steps over which the learning rate rises linearly. Chosen, not measured.
_WARMUP = 0.05
# Of AdamW: short memories, as Vaswani et al. 2017 train transformers. Not measured against others here.
_BETAS = (0.9, 0.98)


@dataclass(frozen=True)
class History:
    """The record of `recover_`: the loss of each step, and the total seconds."""

    losses: list[float] = field(default_factory=list)
    seconds: float = 0.0

    @property
    def steps(self) -> int:
        """Optimizer steps that were taken."""
        return len(self.losses)


def recover_(
    model: nn.Module,
    batches: Iterable[Any],
    loss_fn: RecoveryLoss,
    *,
    teacher: nn.Module | None = None,
    hidden: Mapping[str, float] | None = None,
    steps: int,
    seconds: float | None = None,
    lr: float = 1e-3,
    optimizer: Optimizer | None = None,
    clip: float = 1.0,
    forward: Forward | None = None,
    progress: bool = True,
) -> History:
    """Train a pruned model, in place, to recover its quality; masks are kept.

    batches             as in `calibrate`; they are repeated until all steps are done
    loss_fn             (output, target) -> scalar; the target is the teacher's output for the batch, or the
                        batch itself without a teacher. For embeddings `cosine_loss`, for logits
                        `distillation_loss(temperature)`
    teacher             the dense model: distillation, after Hinton et al., "Distilling the Knowledge in a
                        Neural Network" (2015). Run in eval mode without gradients
    hidden              module name -> weight in the loss of how far its output (the first of several) is from
                        the teacher's, relative to it: ‖h - h'‖² / ‖h'‖². Speeds up the recovery of deep
                        models
    steps, seconds      training ends after this number of steps, or earlier when the time is up
    lr                  of AdamW without weight decay on all parameters that require a gradient; it rises over
                        the first twentieth and falls linearly to 0 at the end of steps or seconds
    optimizer           to use instead of AdamW; its learning rates are not changed
    clip                maximum norm of all gradients together
    forward             (model, batch) -> output, instead of a call with the batch
    progress            whether a terminal shows a progress bar

    The model is trained in eval mode, without dropout and with fixed batch norm statistics (see
    `reestimate_batch_norm_`); its modes are restored. TypeError or ValueError: an argument of the
    wrong kind, no batch, or a module that is not in both models; RuntimeError: a loss that is not finite;
    no optimizer step is taken for it.
    """
    batches = checked_batches(batches)
    if not isinstance(steps, int) or steps < 1:
        raise ValueError(f"steps: expected an int of at least 1, got {steps!r}")
    forward = forward or call
    weights = [parameter for parameter in model.parameters() if parameter.requires_grad]
    if not weights:
        raise ValueError("model: expected parameters that require a gradient, got none")
    decays = optimizer is None
    optimizer = optimizer or AdamW(weights, lr=lr, weight_decay=0.0, betas=_BETAS)
    losses: list[float] = []
    started = time.perf_counter()
    with ExitStack() as stack:
        stack.enter_context(evaluating(model))
        stack.enter_context(torch.enable_grad())
        compared = _Compared(model, teacher, hidden or {}, stack)
        if teacher is not None:
            stack.enter_context(evaluating(teacher))
        bar = stack.enter_context(Progress("recovering", steps, shown=progress))
        for batch in _endless(batches):
            done = len(losses) / steps
            if seconds is not None:
                done = max(done, (time.perf_counter() - started) / seconds)
            if done >= 1:
                break
            if decays:
                for group in optimizer.param_groups:
                    group["lr"] = lr * _rate(len(losses), steps, done)
            target = _target(teacher, batch, forward)
            loss = loss_fn(forward(model, batch), target) + compared.loss()
            if not loss.isfinite():
                raise RuntimeError(
                    f"loss_fn: expected a finite loss, got {loss.item()} at step {len(losses)}"
                )
            _descend(optimizer, loss, weights, clip)
            losses.append(loss.item())
            bar.describe(f"recovering, loss {losses[-1]:.4f}")
            bar.advance()
        optimizer.zero_grad()
    return History(losses, time.perf_counter() - started)


def cosine_loss(output: Tensor, target: Tensor) -> Tensor:
    """1 - cosine similarity, the mean over the rows [..., features] of two embeddings."""
    return 1 - F.cosine_similarity(output, target, dim=-1).mean()


def distillation_loss(temperature: float = 2.0) -> RecoveryLoss:
    """T² · KL(softmax(target / T) ‖ softmax(output / T)) of logits [..., classes], the mean over the rows."""
    check_positive("temperature", temperature)

    def loss(output: Tensor, target: Tensor) -> Tensor:
        p, q = (F.log_softmax(logits.flatten(0, -2) / temperature, -1) for logits in (target, output))
        return temperature**2 * F.kl_div(q, p, log_target=True, reduction="batchmean")

    return loss


def _rate(step: int, steps: int, done: float) -> float:
    """The learning rate of a step over its peak; `done` is how much of the training is over, in [0, 1)."""
    return min((step + 1) / max(_WARMUP * steps, 1), 1 - done)


def _target(teacher: nn.Module | None, batch: Any, forward: Forward) -> Any:
    if teacher is None:
        return batch
    with torch.no_grad():
        return forward(teacher, batch)


def _descend(optimizer: Optimizer, loss: Tensor, weights: list[nn.Parameter], clip: float) -> None:
    optimizer.zero_grad()
    loss.backward()
    nn.utils.clip_grad_norm_(weights, clip)
    optimizer.step()


class _Compared:
    """Keeps what inner modules of the model and of its teacher put out, while the stack is open."""

    def __init__(
        self, model: nn.Module, teacher: nn.Module | None, hidden: Mapping[str, float], stack: ExitStack
    ) -> None:
        if hidden and teacher is None:
            raise ValueError("hidden: expected none without a teacher, got some")
        self._hidden = hidden
        self._outputs: dict[tuple[bool, str], Tensor] = {}
        for is_teacher, network in ((False, model), (True, teacher)):
            modules = {} if network is None else dict(network.named_modules())
            for name in hidden:
                if name not in modules:
                    whose = "teacher's" if is_teacher else "model's"
                    raise ValueError(f"hidden: expected names of the {whose} modules, got {name!r}")
                handle = modules[name].register_forward_hook(self._hook(is_teacher, name))
                stack.callback(handle.remove)

    def loss(self) -> Tensor | float:
        total: Tensor | float = 0.0
        for name, factor in self._hidden.items():
            got, expected = self._outputs.pop((False, name)), self._outputs.pop((True, name))
            total = total + factor * (got - expected).square().sum() / expected.square().sum()
        return total

    def _hook(self, is_teacher: bool, name: str) -> Callable[[nn.Module, Any, Any], None]:
        def keep(module: nn.Module, args: Any, output: Any) -> None:
            self._outputs[is_teacher, name] = output if isinstance(output, Tensor) else output[0]

        return keep


def _endless(batches: Iterable[Any]) -> Iterator[Any]:
    while True:
        yield from every_batch(batches)
