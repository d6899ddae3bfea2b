"""sparseinfer doctor: shows what this installation supports on this machine, and why not more."""

from __future__ import annotations

import argparse
import os
import platform
from importlib import metadata

import torch
from rich.table import Table

from sparseinfer import ops
from sparseinfer._machine import cache_bytes, cpu_model, versions
from sparseinfer._native import core
from sparseinfer._rates import rates
from sparseinfer.cli._common import Commands, console


def add(commands: Commands) -> None:
    parser = commands.add_parser("doctor", help="what this installation can do on this machine")
    parser.set_defaults(command=_run)


def _run(options: argparse.Namespace) -> int:
    console().print(table())
    return 0


def facts() -> dict[str, str]:
    """Topic -> finding, in the order of the table."""
    return {
        "versions": ", ".join(f"{name} {version}" for name, version in versions().items()),
        "cpu": f"{cpu_model()}, {_caches()}",
        "instruction sets": _isa(),
        "rates": _rates(),
        "kernels": _kernels(),
        "meant for": _purposes(),
        "threads": _threads(),
        "cuda": _cuda(),
        "optional": _optional(),
        "advice": "\n".join(advice()) or "nothing: all that this machine has is used",
    }


def table() -> Table:
    """`facts` as a table."""
    table = Table(title="sparseinfer doctor", title_justify="left", title_style="bold", show_header=False)
    table.add_column(style="bold", no_wrap=True)
    table.add_column(overflow="fold")
    for topic, finding in facts().items():
        table.add_row(topic, finding)
    return table


def _caches() -> str:
    return ", ".join(f"{name} {_size(nbytes)}" for name, nbytes in cache_bytes().items())


def _size(nbytes: int) -> str:
    return f"{nbytes >> 20} MiB" if nbytes >= 1 << 20 else f"{nbytes >> 10} KiB"


def _rates() -> str:
    """Of one core, as predictions use them."""
    found = rates(ops.active_isa())
    units = (f"{ops.UNITS.get(unit, unit)} {2 * rate:.0f}" for unit, rate in found.units.items())
    reads = (f"{_size(size)} {rate:.0f}" for size, rate in found.measured)
    return (
        f"one core, {found.clock:.1f} GHz; GFLOP/s, or GOP/s of int8: {', '.join(units)}\n"
        f"GB/s, reading so much again and again: {', '.join(reads)}"
    )


def _isa() -> str:
    built = dict.fromkeys(kernel.isa for kernel in ops.kernels())
    missing = [isa for isa in built if isa not in ops.isa_levels()]
    text = f"{', '.join(ops.isa_levels())}; in use: {ops.active_isa()}"
    if (fastest := ops.isa_levels()[-1]) != ops.active_isa():
        text += f", as SPARSEINFER_ISA asks, not {fastest}"
    if core.emulates_tiles:
        text += "; tiles of amx are emulated in this build, slowly"
    reasons = [f"{isa} ({core.isa_refusal(isa)})" for isa in missing]
    return f"{text}; built, but not on this machine: {', '.join(reasons)}" if missing else text


def _kernels() -> str:
    available = [kernel for kernel in ops.kernels() if kernel.available]
    lines = [f"{len(available)} of {len(ops.kernels())} run here"]
    for isa in ops.isa_levels():
        names = [kernel.base_name for kernel in available if kernel.isa == isa]
        lines.append(f"{isa}: {', '.join(names)}")
    return "\n".join(lines)


def _purposes() -> str:
    """What each kernel that the level in use runs is planned for."""
    return "\n".join(
        f"{kernel.base_name}: {_purpose(kernel)}{'' if kernel.native else ', emulated at this level'}"
        for kernel in ops.kernels_at(ops.active_isa())
    )


def _purpose(kernel: ops.KernelInfo) -> str:
    tokens = f"{kernel.min_tokens} {f'to {kernel.max_tokens}' if kernel.max_tokens else 'or more'}"
    if not kernel.is_planned:
        return f"{tokens} tokens; never the fastest, a baseline or the smallest"
    zeros = f"{100 * kernel.min_sparsity:g} to {100 * kernel.max_sparsity:g} % zeros"
    return f"{tokens} tokens, {zeros}" + (", in blocks" if kernel.format == "bsr" else "")


def _threads() -> str:
    count = torch.get_num_threads()
    if core.has_parallel_for():
        return f"{count}, on torch's own pool (torch_parallel_for found)"
    return f"1 of torch's {count}: this torch does not export torch_parallel_for, so kernels run serially"


def advice() -> list[str]:
    """What keeps this machine from being as fast as it could be, and what helps; [] if nothing does."""
    found = []
    levels, active = ops.isa_levels(), ops.active_isa()
    if levels == ["scalar"]:
        found.append(
            f"no vector instructions that kernels are written for ({platform.machine()}): they run as plain "
            "C++, torch's dense product is often faster, and convert then leaves layers dense"
        )
    elif active != levels[-1]:
        found.append(f"unset SPARSEINFER_ISA: kernels of {levels[-1]} are faster than those of {active}")
    cores = len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count() or 1
    if cores < (os.cpu_count() or 1):
        found.append(
            f"this process may use {cores} of {os.cpu_count()} cores (taskset, or a container's limit)"
        )
    if torch.get_num_threads() > cores:
        found.append(f"torch.set_num_threads({cores}): more threads than cores wait for each other")
    if torch.get_num_threads() == 1 < cores:
        found.append(
            f"torch uses one thread of {cores} cores: torch.set_num_threads({cores}), or OMP_NUM_THREADS"
        )
    if not core.has_parallel_for():
        found.append("a torch that exports torch_parallel_for, 2.11 or newer: kernels run on one thread")
    if core.emulates_tiles:
        found.append(
            "a build without SPARSEINFER_EMULATE_TILES: this one is for tests of the kernels for AMX"
        )
    return found


# Packages that something needs which not everybody uses, and what that is.
_OPTIONAL = {
    "transformers": "folders of models: prune, convert, report, bench --model",
    "safetensors": "demo, export",
    "matplotlib": "charts: bench --plot, inspect --plot",
    "onnx": "bench --peers, export",
    "peft": "LoRA adapters",
}


def _optional() -> str:
    lines = []
    for name, use in _OPTIONAL.items():
        try:
            lines.append(f"{name} {metadata.version(name)}: {use}")
        except metadata.PackageNotFoundError:
            lines.append(f"{name}, not installed: {use}")
    return "\n".join(lines)


def _cuda() -> str:
    index = torch.cuda.current_device() if torch.cuda.is_available() else 0
    if reason := ops.cuda_refusal(index):
        no_cuda = "; this torch is built without CUDA" if torch.version.cuda is None else ""
        return f"no: {reason}{no_cuda}"
    major, minor = torch.cuda.get_device_capability(index)
    return f"yes: {torch.cuda.get_device_name(index)} (compute capability {major}.{minor})"
