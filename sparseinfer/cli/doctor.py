"""sparseinfer doctor: shows what this installation supports on this machine, and why not more."""

from __future__ import annotations

import argparse

import torch
from rich.table import Table

from sparseinfer import ops
from sparseinfer._machine import cpu_model, last_level_cache_bytes, versions
from sparseinfer._native import core
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
        "cpu": f"{cpu_model()}, last-level cache {last_level_cache_bytes() >> 20} MiB",
        "instruction sets": _isa(),
        "kernels": _kernels(),
        "meant for": _purposes(),
        "threads": _threads(),
        "cuda": _cuda(),
    }


def table() -> Table:
    """`facts` as a table."""
    table = Table(title="sparseinfer doctor", title_justify="left", title_style="bold", show_header=False)
    table.add_column(style="bold", no_wrap=True)
    table.add_column(overflow="fold")
    for topic, finding in facts().items():
        table.add_row(topic, finding)
    return table


def _isa() -> str:
    built = dict.fromkeys(kernel.isa for kernel in ops.kernels())
    missing = [isa for isa in built if isa not in ops.isa_levels()]
    text = f"{', '.join(ops.isa_levels())}; in use: {ops.active_isa()}"
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


def _cuda() -> str:
    index = torch.cuda.current_device() if torch.cuda.is_available() else 0
    if reason := ops.cuda_refusal(index):
        no_cuda = "; this torch is built without CUDA" if torch.version.cuda is None else ""
        return f"no: {reason}{no_cuda}"
    major, minor = torch.cuda.get_device_capability(index)
    return f"yes: {torch.cuda.get_device_name(index)} (compute capability {major}.{minor})"
