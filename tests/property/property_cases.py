"""A drawn model as plain data: its source text, how it is converted, and what it is run with."""

from __future__ import annotations

import dataclasses
import importlib.util
import io
import linecache
import sys
import tempfile
import warnings
from collections.abc import Iterator, Mapping
from contextlib import contextmanager, redirect_stderr
from dataclasses import dataclass, field
from functools import lru_cache
from pathlib import Path
from typing import Any

import torch
from property_models import Cache, Dual, decorate
from torch import Tensor, fx, nn

HEAD = """
import torch
from torch import Tensor, nn
from torch.nn import functional as F
from property_models import *
"""


class _Plain:
    """Prints what differs from the defaults."""

    def __repr__(self) -> str:
        shown = []
        for each in dataclasses.fields(self):  # type: ignore[arg-type]
            value = getattr(self, each.name)
            default = each.default_factory() if callable(each.default_factory) else each.default
            if each.name != "source" and value != default:
                shown.append(f"{each.name}={value!r}")
        return f"{type(self).__name__}({', '.join(shown)})"


@dataclass(frozen=True, repr=False)
class Run(_Plain):
    """One call of the model.

    b, t     its batch, and its length or the sides of its images
    layout   how x lies in memory: plain, transposed, expanded, sliced or channels_last
    x        new: a tensor of its own; same: that of the call before with other numbers; numpy: that of the
             call before, whose numbers changed where torch cannot know of it
    mode     no_grad, inference_mode, thread (no_grad in a thread of its own), vmap, jvp or trace
    flags    the flags of forward
    """

    b: int = 2
    t: int = 3
    layout: str = "plain"
    x: str = "new"
    mode: str = "no_grad"
    flags: Mapping[str, Any] = field(default_factory=dict)


@dataclass(frozen=True, repr=False)
class Case(_Plain):
    """A model and all that is done with it. `source` defines build().

    x         what it takes: flat [b, d], tokens [b, t, d], seq [b, d, t], image [b, d, t, t], grid [b, 8, d]
              or ids [b, t]
    takes     its further arguments: y (like x), cache, mask
    place     file: its source can be read; exec: it cannot
    wrap      fx: a GraphModule of it; dual: one that starts to train when it is copied; in a Sequential
    decorate  (layer, parametrization)
    training  its mode at conversion; `stays`: it is left in it for the runs
    trained   it has run forwards and backwards before
    hooked    modules with hooks at conversion; `watched`: hooks come after it, `altering` ones
    merged    a layer whose weight is added to afterwards, in place
    copied    a deep copy of the converted model is run
    default_dtype at conversion; `default_device` when it is saved
    """

    source: str
    x: str = "flat"
    d: int = 16
    takes: tuple[str, ...] = ()
    seed: int = 0
    sparsity: float = 0.8
    scale: float = 1.0
    dtype: str = "float32"
    place: str = "file"
    wrap: str = ""
    decorate: tuple[tuple[str, str], ...] = ()
    training: bool = False
    stays: bool = False
    trained: bool = False
    hooked: tuple[str, ...] = ()
    watched: tuple[str, ...] = ()
    altering: bool = False
    merged: str = ""
    default_dtype: str = "float32"
    default_device: str = ""
    threads: int = 1
    in_place: bool = False
    copied: bool = False
    options: Mapping[str, Any] = field(default_factory=dict)
    example: Run | None = None
    by_name: bool = False
    runs: tuple[Run, ...] = (Run(),)


def script(case: Case) -> str:
    """The case as a file that runs."""
    head = 'import sys\n\nsys.path.insert(0, "tests/property")\nfrom property_cases import Case, Run\n'
    body = repr(case).removeprefix("Case(")
    indented = case.source.strip("\n")
    return (
        f"{head}from property_check import check\n\n"
        f'SOURCE = """\n{indented}\n"""\n\ncheck(Case(SOURCE, {body})'
    )


@lru_cache(maxsize=64)
def _namespace(source: str, place: str) -> dict[str, Any]:
    text = HEAD + source
    if place == "exec":
        names: dict[str, Any] = {"__name__": "property_exec"}
        exec(compile(text, "<drawn>", "exec"), names)
        return names
    with tempfile.TemporaryDirectory(prefix="property") as folder:
        name = f"property_drawn_{abs(hash(source))}"
        path = Path(folder) / f"{name}.py"
        path.write_text(text)
        spec = importlib.util.spec_from_file_location(name, path)
        assert spec is not None
        assert spec.loader is not None
        module = importlib.util.module_from_spec(spec)
        sys.modules[name] = module
        spec.loader.exec_module(module)
        # inspect.getsource asks linecache, which keeps an entry without a time for ever.
        linecache.cache[str(path)] = (len(text), None, text.splitlines(keepends=True), str(path))
    return vars(module)


@torch.no_grad()
def prepared(case: Case) -> nn.Module:
    """The model, the same one at each call."""
    torch.manual_seed(case.seed)
    model: nn.Module = _namespace(case.source, case.place)["build"]()
    for module in model.modules():
        if isinstance(module, nn.modules.batchnorm._BatchNorm) and module.track_running_stats:
            module.get_buffer("running_mean").uniform_(-1, 1)
            module.get_buffer("running_var").uniform_(0.2, 3)
        if isinstance(module, (nn.modules.batchnorm._BatchNorm, nn.LayerNorm)) and module.weight is not None:
            module.weight.uniform_(0.5, 1.5)
            module.bias.uniform_(-0.5, 0.5)
    for p in model.parameters():
        if p.dim() > 1 and case.sparsity:
            p.mul_(torch.rand_like(p) >= case.sparsity).mul_((1 - case.sparsity) ** -0.5)
        if p.dim() > 1:
            p.mul_(case.scale)
    for name, how in case.decorate:
        decorate(model.get_submodule(name), how)
    if case.wrap in ("fx", "dual"):
        graph = fx.Tracer().trace(model)
        model = fx.GraphModule(model, graph) if case.wrap == "fx" else Dual(model, graph)
    elif case.wrap == "sequential":
        model = nn.Sequential(model)
    model = model.to(getattr(torch, case.dtype)).train(case.training)
    for name in case.hooked:
        model.get_submodule(name).register_forward_hook(lambda module, args, y: None)
    if case.trained:
        with torch.enable_grad():
            model.train()
            given = inputs(case, Run(b=3))
            loss = sum(t.float().sum() for t in tensors(model(*given.args, **given.flags)))
            if isinstance(loss, Tensor) and loss.requires_grad:
                loss.backward()
        model.zero_grad()
        model.train(case.training)
    return model


@dataclass
class Inputs:
    """Arguments of one call."""

    args: tuple[Any, ...]
    flags: dict[str, Any]

    @property
    def x(self) -> Tensor:
        x: Tensor = self.args[0]
        return x


def inputs(
    case: Case, run: Run, number: int = 0, before: Inputs | None = None, *, wide: bool = False
) -> Inputs:
    """The arguments of a run, the same ones at each call but for `before`: whose x to use again.

    wide   the same numbers, in double
    """
    dtype = getattr(torch, case.dtype)
    generator = torch.Generator().manual_seed(100 * case.seed + number)
    drawn, noise = _drawn(case, run, generator), torch.randn(run.b, run.t, case.d, generator=generator)
    other = _like(case, noise).to(dtype)
    cache = Cache(*((run.b, 3, case.d) if case.x == "tokens" else (3, case.d)), dtype=dtype)
    mask = _like(case, noise) > 0
    if wide:
        other, cache.keys = other.double(), cache.keys.double()
        drawn = drawn.double() if drawn.is_floating_point() else drawn
    usable = before is not None and run.x != "new" and before.x.shape == drawn.shape
    usable = usable and before is not None and 0 not in before.x.stride()
    if before is not None and usable and before.x.is_inference() == torch.is_inference_mode_enabled():
        x = before.x
        if run.x == "same" or drawn.dtype == torch.bfloat16:
            x.copy_(drawn)
        else:
            x.numpy()[:] = drawn.numpy()  # the counter of changes stays
    else:
        x = _laid_out(drawn, run.layout)
    others = {"y": other, "cache": cache, "mask": mask}
    return Inputs((x, *(others[name] for name in case.takes)), dict(run.flags))


def _like(case: Case, noise: Tensor) -> Tensor:
    """[b, t, d] in the shape of the case's x."""
    if case.x == "flat":
        return noise[:, 0]
    if case.x == "grid":
        return noise[:, :1].expand(-1, 8, -1).clone()
    if case.x == "seq":
        return noise.transpose(1, 2)
    return noise.transpose(1, 2)[..., None].expand(-1, -1, -1, noise.shape[1]) if case.x == "image" else noise


def _drawn(case: Case, run: Run, generator: torch.Generator) -> Tensor:
    if case.x == "ids":
        return torch.randint(case.d, (run.b, run.t), generator=generator)
    shape = {
        "flat": (run.b, case.d),
        "tokens": (run.b, run.t, case.d),
        "seq": (run.b, case.d, run.t),
        "image": (run.b, case.d, run.t, run.t),
        "grid": (run.b, 8, case.d),
    }[case.x]
    return torch.randn(shape, generator=generator).to(getattr(torch, case.dtype))


def _laid_out(x: Tensor, layout: str) -> Tensor:
    if layout == "transposed":
        return x.transpose(0, -1).contiguous().transpose(0, -1)
    if layout == "expanded":
        return x[:1].expand(x.shape)
    if layout == "sliced":
        whole = x.new_zeros(x.shape[0], *x.shape[1:-1], x.shape[-1] + 3)
        whole[..., 2:-1] = x
        return whole[..., 2:-1]
    if layout == "channels_last" and x.dim() == 4:
        return x.contiguous(memory_format=torch.channels_last)
    return x.clone()


@contextmanager
def quiet() -> Iterator[None]:
    """Without warnings, and without what fx prints of errors."""
    with warnings.catch_warnings(), redirect_stderr(io.StringIO()):
        warnings.simplefilter("ignore")
        yield


def tensors(value: Any) -> list[Tensor]:
    """In lists, tuples, mappings, dataclasses and plain objects."""
    if isinstance(value, Tensor):
        return [value]
    if isinstance(value, Mapping):
        return [t for each in value.values() for t in tensors(each)]
    if isinstance(value, (tuple, list)):
        return [t for each in value for t in tensors(each)]
    if dataclasses.is_dataclass(value) or isinstance(value, Cache):
        return [t for each in vars(value).values() for t in tensors(each)]
    return []


def skeleton(value: Any) -> Any:
    """What is left without the numbers."""
    if isinstance(value, Tensor):
        return "tensor", value.dtype, tuple(value.shape)
    if isinstance(value, Mapping):
        return type(value), [(key, skeleton(each)) for key, each in value.items()]
    if isinstance(value, (tuple, list)):
        return type(value), [skeleton(each) for each in value]
    if dataclasses.is_dataclass(value) or isinstance(value, Cache):
        return type(value), [(key, skeleton(each)) for key, each in vars(value).items()]
    return value
