"""Where each millisecond of a model goes, dense and converted, as a picture.

    python bench/profile_parts.py FILE --model resnet-50 bert-base mobilenet-v2 --batch 1 16

Writes FILE.json, in which other rows stay, and draws all its rows as FILE.png. `ms` is the fastest
of some runs, in turns. Of the dense model the parts are torch's operators, as shares by its profiler; of the
converted one the functions that compute it, timed inside a run, and of a network its steps: each alone, on as
many of the images as there are threads, as shares of the network's time.
"""

from __future__ import annotations

import argparse
import json
import time
from collections import defaultdict
from collections.abc import Callable, Sequence
from dataclasses import replace
from functools import partial
from pathlib import Path
from typing import Any
from unittest import mock

import torch
from profile_blocks import NETWORK, profile
from rich.console import Console
from torch import Tensor, nn
from torch.profiler import ProfilerActivity
from torch.profiler import profile as torch_profile

from sparseinfer import Magnitude, convert, prune_
from sparseinfer._machine import describe_machine
from sparseinfer._timing import num_threads
from sparseinfer.bench.models import MODELS, Model
from sparseinfer.bench.plot import new_figure
from sparseinfer.bench.turns import fastest, time_models
from sparseinfer.ops import active_isa
from sparseinfer.ops.cpu.network import NO_VALUE, Network, Step
from sparseinfer.ops.cpu.packing import describe

RUNS = 5
OTHER = "other"
# Parts of the names of torch's operators, and what they do; the first that is found counts.
_OPERATORS = {
    "attention": "attention",
    "softmax": "attention",
    "bmm": "attention",
    "batch_norm": "batch norm",
    "layer_norm": "layer norm",
    "pool": "pooling",
    "mean": "pooling",
    **dict.fromkeys(("relu", "hardtanh", "clamp", "gelu"), "activation"),
    "add_": "addition",
    "addmm": "linear",
    "linear": "linear",
    "mm": "linear",
    "add": "addition",
}
_STEPS = {"max_pool": "pooling", "mean": "pooling", "add": "addition", "scale": "product"}
# Of `profile`, what a name begins with.
_FUNCTIONS = {
    "1 products": "linear, sum, layer norm",
    "2 products": "MLP, sum, layer norm",
    "q, k and v": "linear",
    "one product": "linear",
    "rest": OTHER,
}
_KINDS = (
    *(
        "stem",
        "1×1 convolution",
        "3×3 convolution",
        "other convolution",
        "depthwise",
        "batch norm",
        "pooling",
    ),
    *("linear", "linear, sum, layer norm", "MLP, sum, layer norm", "attention", "layer norm", "activation"),
    *("addition", "product", OTHER),
)


def convolution(channels: int, kernel_size: Sequence[int]) -> str:
    """The kind of one that reads so many channels."""
    if channels == 1:
        return "depthwise"
    if channels == 3:
        return "stem"
    kind = "{}×{} convolution".format(*kernel_size)
    return kind if kind in _KINDS else "other convolution"


def dense_parts(run: Callable[[], object]) -> dict[str, float]:
    """Seconds of each kind of operator in RUNS runs."""
    with torch_profile(activities=[ProfilerActivity.CPU], record_shapes=True) as profiled:
        for _ in range(RUNS):
            run()
    spent: defaultdict[str, float] = defaultdict(float)
    for event in profiled.key_averages(group_by_input_shape=True):
        kind = next((kind for part, kind in _OPERATORS.items() if part in event.key), OTHER)
        if "convolution" in event.key:
            _, *size = event.input_shapes[1]
            kind = convolution(size[0], size[1:])
        spent[kind] += event.self_cpu_time_total
    return spent


def converted_parts(run: Callable[[], object], threads: int) -> dict[str, float]:
    """Seconds of each kind of function, and of steps of networks, in the fastest of RUNS runs."""
    _, parts = min((profile(run, blocks=True) for _ in range(RUNS)), key=lambda found: found[0])
    spent: defaultdict[str, float] = defaultdict(float)
    for name, seconds in parts.items():
        kind = next((kind for begin, kind in _FUNCTIONS.items() if name.startswith(begin)), name)
        spent[kind] += seconds
    if whole := spent.pop(NETWORK, 0.0):
        steps = steps_of(run, threads)
        for kind, seconds in steps.items():
            spent[kind] += seconds * whole / sum(steps.values())
    return spent


def steps_of(run: Callable[[], object], threads: int) -> dict[str, float]:
    """Seconds of each kind of step of all networks of a run, alone."""
    calls: list[tuple[Network, list[Tensor]]] = []
    plain = Network.run

    def called(network: Network, xs: Sequence[Tensor], **options: Any) -> list[Tensor]:
        calls.append((network, [x[:threads].clone() for x in xs]))
        return plain(network, xs, **options)

    with mock.patch.object(Network, "run", called):
        run()
    spent: defaultdict[str, float] = defaultdict(float)
    for network, values in calls:
        for step in network.steps:
            seconds, y = step_alone(step, values)
            values.append(y)
            spent[kind_of(step)] += seconds
    return spent


def step_alone(step: Step, values: Sequence[Tensor]) -> tuple[float, Tensor]:
    """Seconds of a step as a network of its own, and its result."""
    has_other = step.other != NO_VALUE
    xs = [values[step.x], *([values[step.other]] if has_other else [])]
    alone = Network(len(xs), [replace(step, x=0, other=1 if has_other else NO_VALUE)], [len(xs)])
    best = float("inf")
    for _ in range(RUNS):
        begin = time.perf_counter()
        (y,) = alone.run(xs)
        best = min(best, time.perf_counter() - begin)
    return best, y


def kind_of(step: Step) -> str:
    if step.kind != "conv":
        return _STEPS.get(step.kind, step.kind)
    height, width = step.window[0]
    return convolution(describe(step.packings[0]).k // (height * width), step.window[0])


def measured(spec: Model, batch: int, options: argparse.Namespace) -> dict[str, dict[str, Any]]:
    """For "dense" and "converted" the milliseconds, and those of each part."""
    dense = spec.build()
    prune_(dense, Magnitude(options.sparsity), ignore=spec.ignore, keep_masks=False, progress=False)
    inputs = spec.inputs(batch)
    fast = convert(dense, example_inputs=spec.example(inputs), **spec.options)
    models: dict[str, nn.Module] = {"converted": fast, "default": dense}
    if "channels_last" in spec.memory_formats:
        twin: Any = spec.build()
        models["channels_last"] = twin.to(memory_format=torch.channels_last)
    times = time_models(models, spec.run, inputs, budget_s=options.budget)
    found = {}
    for which, name in (("dense", fastest(times, spec.memory_formats)), ("converted", "converted")):
        ms, run = times[name].min_us / 1e3, partial(spec.run, models[name], inputs)
        parts = dense_parts(run) if which == "dense" else converted_parts(run, options.threads)
        whole = sum(parts.values())
        shares = {kind: round(ms * parts[kind] / whole, 3) for kind in _KINDS if parts.get(kind)}
        found[which] = {"ms": round(ms, 3), "parts": shares}
    return found


def draw(content: dict[str, Any], path: Path) -> None:
    """Two bars for each model and batch, of one scale."""
    import matplotlib
    from matplotlib.patches import Patch

    rows = content["rows"]
    names = list(dict.fromkeys(row["model"] for row in rows))
    batches = sorted({row["batch"] for row in rows})
    about = f"{content['threads']} threads, {content['sparsity']:.0%} zeros, float32"
    figure = new_figure(11, 1.2 + 1.5 * len(names), f"{content['machine']['cpu']}, {about}: milliseconds")
    grid: Any = figure.subplots(len(names), len(batches), squeeze=False)
    colours: dict[str, Any] = dict(zip(_KINDS, matplotlib.colormaps["tab20"].colors, strict=False))  # type: ignore[attr-defined]
    for row in rows:
        axes = grid[names.index(row["model"])][batches.index(row["batch"])]
        axes.set_title(f"{row['model']}, batch {row['batch']}", fontsize="small", loc="left")
        left = 0.0
        for kind, ms in row["parts"].items():
            axes.barh(row["which"], ms, left=left, color=colours[kind])
            left += ms
        axes.annotate(f" {row['ms']:.1f}", (left, row["which"]), va="center", fontsize="small")
    for axes in grid.flat:
        axes.margins(x=0.12)
        axes.invert_yaxis()
    shown = [kind for kind in _KINDS if any(kind in row["parts"] for row in rows)]
    keys = [Patch(color=colours[kind], label=kind) for kind in shown]
    figure.legend(handles=keys, loc="outside lower center", ncols=5, fontsize="small")
    figure.savefig(path, dpi=90)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawTextHelpFormatter)
    parser.add_argument("file", type=Path)
    parser.add_argument("--model", choices=MODELS, nargs="*", default=[], help="none: the picture alone")
    parser.add_argument("--batch", type=int, nargs="+", default=[1, 16])
    parser.add_argument("--sparsity", type=float, default=0.8)
    parser.add_argument("--threads", type=int, default=2)
    parser.add_argument("--budget", type=float, default=4.0, help="seconds of timing for each row")
    options = parser.parse_args()
    file = options.file.with_suffix(".json")
    old = json.loads(file.read_text(encoding="utf-8"))["rows"] if file.is_file() else []
    anew = {(name, batch) for name in options.model for batch in options.batch}
    rows = [row for row in old if (row["model"], row["batch"]) not in anew]
    with num_threads(options.threads), torch.inference_mode():
        for name in options.model:
            for batch in options.batch:
                for which, found in measured(MODELS[name], batch, options).items():
                    rows.append({"model": name, "batch": batch, "which": which, **found})
                Console().print(rows[-2:])
    about = {"sparsity": options.sparsity, "threads": options.threads, "dtype": "float32"}
    content = {"machine": describe_machine(active_isa()), **about, "rows": rows}
    file.write_text(json.dumps(content, indent=1) + "\n", encoding="utf-8")
    draw(content, options.file.with_suffix(".png"))


if __name__ == "__main__":
    main()
