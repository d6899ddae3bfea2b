"""What `sparseinfer prune` did to a folder's model: kept in the folder, for `sparseinfer report`."""

from __future__ import annotations

import json
import math
import shutil
from collections.abc import Mapping
from dataclasses import asdict, dataclass, field
from pathlib import Path
from typing import Any

from sparseinfer.hub.job import Job
from sparseinfer.hub.result import Result

FILE = "pruning.json"
# No list of layers of a model is longer, and a file may say anything.
_MOST_BYTES = 64 << 20


@dataclass(frozen=True)
class PrunedWeight:
    """A pruned layer's name, sparsity and error as `PrunedLayer` has it; None if there was no calibration."""

    name: str
    sparsity: float
    error: float | None


@dataclass(frozen=True)
class Pruning:
    """One call of `sparseinfer prune`.

    options   that were given or are worth knowing, as text, by name
    layers    all that were pruned
    skipped   weights that were not, and why
    quality   name of the measure; "" without a text to evaluate on
    values    of the measure by step: "dense", "pruned", "int8"
    """

    options: Mapping[str, str]
    layers: tuple[PrunedWeight, ...]
    skipped: Mapping[str, str] = field(default_factory=dict)
    quality: str = ""
    values: Mapping[str, float] = field(default_factory=dict)


def of(job: Job, result: Result) -> Pruning:
    """What a job did."""
    asked = {
        "method": job.method,
        "sparsity": job.sparsity,
        "pattern": job.pattern,
        "budget": job.budget,
        "scope": job.scope,
        "quantize": job.quantize,
        "calibration": None if job.calibration is None else job.calibration.name,
    }
    values = {"dense": result.before, "pruned": result.after, "int8": result.in_int8}
    return Pruning(
        {name: str(value) for name, value in asked.items() if value is not None},
        tuple(PrunedWeight(layer.fqn, layer.sparsity, layer.error) for layer in result.report.layers),
        {weight.name: weight.why for weight in result.report.unlooked},
        result.quality,
        {step: value for step, value in values.items() if value is not None},
    )


def write(folder: Path, pruning: Pruning) -> None:
    (folder / FILE).write_text(json.dumps(asdict(pruning), indent=1), encoding="utf-8")


def carry(old: Path, new: Path) -> None:
    """Copies the file, if there is one, to the folder of the same model in another form."""
    if (old / FILE).is_file():
        shutil.copyfile(old / FILE, new / FILE)


def read(folder: Path) -> Pruning | None:
    """What is in the folder; None if nothing is. ValueError: it is no such file."""
    path = folder / FILE
    if not path.is_file():
        return None
    try:
        if path.stat().st_size > _MOST_BYTES:
            raise ValueError(f"expected at most {_MOST_BYTES} bytes, got {path.stat().st_size}")
        content: dict[str, Any] = json.loads(path.read_text(encoding="utf-8"))
        layers = tuple(
            PrunedWeight(str(one["name"]), _number(one["sparsity"]), _perhaps(one["error"]))
            for one in content["layers"]
        )
        return Pruning(
            {str(name): str(value) for name, value in content["options"].items()},
            layers,
            {str(name): str(why) for name, why in content["skipped"].items()},
            str(content["quality"]),
            {str(step): _number(value) for step, value in content["values"].items()},
        )
    except (KeyError, TypeError, AttributeError, ValueError, OSError) as error:
        raise ValueError(f"{path}: expected a file of sparseinfer prune, got {error!r}") from None


def _number(value: Any) -> float:
    """Infinite is what a broken model's perplexity may be."""
    if isinstance(value, bool) or not isinstance(value, (int, float)) or math.isnan(value):
        raise ValueError(f"expected a number, got {value!r}")
    return float(value)


def _perhaps(value: Any) -> float | None:
    return None if value is None else _number(value)
