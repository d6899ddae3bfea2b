"""What a Linear multiplies by, whoever computes it, and why some Linears have to stay as they are."""

from __future__ import annotations

from collections import defaultdict
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from functools import cached_property

import torch
from torch import Tensor, nn
from torch.nn.parameter import is_lazy
from torch.nn.utils import parametrize, prune

from sparseinfer import ops
from sparseinfer.prune.masks import HeldMask

_DTYPES = (torch.float32, torch.bfloat16, torch.float16)


@dataclass(frozen=True, eq=False)
class Weights:
    """weight [n, k] and bias [n] of a Linear, detached."""

    weight: Tensor
    bias: Tensor | None

    @property
    def on_gpu(self) -> bool:
        return self.weight.is_cuda

    @cached_property
    def sparsity(self) -> float:
        """Fraction of the weight's elements that are zero."""
        return 1.0 - int(self.weight.count_nonzero()) / self.weight.numel()

    @cached_property
    def empty_blocks(self) -> float:
        """Fraction of the whole 4x4 blocks that hold only zeros: do the zeros lie scattered or in blocks?"""
        n, k = (size // 4 * 4 for size in self.weight.shape)
        if not n or not k:
            return 0.0
        kept = (self.weight[:n, :k] != 0).view(n // 4, 4, k // 4, 4).any(3).any(1)
        return 1.0 - int(kept.count_nonzero()) / kept.numel()

    @property
    def pattern(self) -> str:
        """How the zeros lie: "none", "rows", "blocks" or "unstructured"."""
        if self.sparsity == 0:
            return "none"
        kept_rows = int((self.weight != 0).any(1).count_nonzero()) * self.weight.shape[1]
        if kept_rows <= (1 - self.sparsity) * self.weight.numel():
            return "rows"
        # Of scattered zeros next to no 4x4 block is empty before 90 %.
        scattered = self.sparsity**16
        return "blocks" if self.empty_blocks > max(0.05, 1.5 * scattered) else "unstructured"

    def rounded(self, dtype: torch.dtype) -> Weights | str:
        """The same with the weight rounded to another dtype, or why that cannot be."""
        weight = self.weight.to(dtype)
        if not torch.equal(weight.isfinite(), self.weight.isfinite()):
            return f"its weight exceeds the range of {dtype}"
        return Weights(weight, self.bias)

    def copied(self) -> Weights:
        return Weights(self.weight.clone(), None if self.bias is None else self.bias.clone())

    @property
    def nbytes(self) -> int:
        return self.weight.nbytes + (0 if self.bias is None else self.bias.nbytes)


def require_inference(modules: Mapping[str, nn.Module]) -> None:
    """ValueError that names the first parameter without data, or with a gradient training is about to use."""
    for fqn, module in modules.items():
        for name, parameter in module.named_parameters(prefix=fqn):
            if is_lazy(parameter):
                hint = "run the model once first"
                raise ValueError(f"{name}: expected an initialised parameter, got a lazy one ({hint})")
            if parameter.is_meta:
                hint = "load the model first"
                raise ValueError(f"{name}: expected a parameter with data, got a meta tensor ({hint})")
            if module.training and parameter.grad is not None:
                hint = "finish training, then call model.eval()"
                raise ValueError(f"{name}: expected no gradient, got one in training mode ({hint})")


def refusals(model: nn.Module, modules: Mapping[str, nn.Module]) -> dict[str, str]:
    """fqn -> why the module cannot be replaced, for those that cannot, whatever their weights hold."""
    owners = _owners(model)
    found = {}
    for fqn, module in modules.items():
        if reason := _refusal(module) or _shared(module, fqn, owners):
            found[fqn] = reason
    return found


def read(
    module: nn.Module,
    weight_name: str = "weight",
    bias_name: str = "bias",
    *,
    as_matrix: Callable[[Tensor], Tensor] = lambda weight: weight,
) -> Weights | str:
    """What a module without refusal multiplies by at its next forward, or why no kernel takes that."""
    weight, bias = _effective(module, weight_name), _effective(module, bias_name)
    if weight is None:
        return "it has no weight"
    for t in (weight, bias):
        if t is None:
            continue
        if type(t) is not Tensor or t.layout != torch.strided:
            return f"it holds a {type(t).__name__} of layout {t.layout}, not a plain tensor"
        if reason := _device_refusal(t.device):
            return f"it is on {t.device}: {reason}"
        if t.dtype not in _DTYPES:
            return f"its dtype is {t.dtype}; the kernels take torch.float32, torch.bfloat16 and torch.float16"
    if bias is not None and bias.dtype != weight.dtype:
        return f"its weight is {weight.dtype} and its bias {bias.dtype}"
    if not weight.numel():
        return "its weight has no elements"
    weight = as_matrix(weight)
    if weight.ndim != 2 or (bias is not None and bias.shape != weight.shape[:1]):
        return "its weight and bias are not [n, k] and [n]"
    return Weights(weight, bias)


def _device_refusal(device: torch.device) -> str | None:
    if device.type == "cuda":
        return ops.cuda_refusal(device.index)
    return None if device.type == "cpu" else "the kernels run on cpu and cuda"


def class_of(module: nn.Module) -> type[nn.Module]:
    """Its class before parametrizations."""
    return parametrize.type_before_parametrizations(module)


def _refusal(module: nn.Module) -> str | None:
    if "forward" in vars(module):
        return "its forward has been replaced"
    if _has_hooks(module):
        return "it has hooks that a sparse layer would lose"
    return None


def _has_hooks(module: nn.Module) -> bool:
    before = module._forward_pre_hooks.values()
    foreign = [hook for hook in before if not isinstance(hook, (prune.BasePruningMethod, HeldMask))]
    return any((foreign, module._forward_hooks, module._backward_hooks, module._backward_pre_hooks))


def _shared(module: nn.Module, fqn: str, owners: Mapping[object, set[str]]) -> str | None:
    own = {f"{fqn}.{name}".strip(".") for name, _ in module.named_modules()}
    for name, parameter in module.named_parameters():
        if others := owners[_memory(parameter)] - own:
            return f"its {name} is shared with {', '.join(sorted(map(repr, others)))}"
    return None


def _owners(model: nn.Module) -> dict[object, set[str]]:
    """Memory of a parameter -> fqns of the modules that hold it.

    A module under two names is one owner, under its first name; a parametrization belongs to its module.
    """
    owners: defaultdict[object, set[str]] = defaultdict(set)
    for fqn, module in model.named_modules():
        owner = f".{fqn}".split(".parametrizations.")[0][1:]
        for parameter in module.parameters(recurse=False):
            owners[_memory(parameter)].add(owner)
    return owners


def _memory(t: Tensor) -> object:
    real = t.device.type in ("cpu", "cuda")
    plain = type(t) is nn.Parameter and t.layout == torch.strided and real and t.numel()
    return t.data_ptr() if plain else id(t)


@torch.no_grad()
def _effective(module: nn.Module, name: str) -> Tensor | None:
    """`module.weight` or `module.bias` as the next forward would compute it.

    torch.nn.utils.prune does that in a hook, `weight_orig * weight_mask`, so the attribute may be stale.
    """
    original, mask = module._parameters.get(f"{name}_orig"), module._buffers.get(f"{name}_mask")
    if original is not None and mask is not None:
        return (original * mask).detach()
    t: Tensor | None = getattr(module, name, None)
    return None if t is None else t.detach()
