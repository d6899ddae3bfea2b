"""Fits sparseinfer/convert/candidates/cost_model.json to times that bench/time_candidates.py measured.

    python bench/fit_cost_model.py FILE ...          of any machines and levels; needs scipy
    python bench/fit_cost_model.py --check FILE ...  how often, and how well, the model chooses the fastest

The check needs times of other shapes than the fit.
"""

from __future__ import annotations

import argparse
import itertools
import json
import math
import sys
from collections import defaultdict
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

import numpy as np

from sparseinfer import ops
from sparseinfer._rates import Rates
from sparseinfer._timing import geometric_mean
from sparseinfer.convert.candidates import cost_model
from sparseinfer.convert.candidates.cost_model import Case, Shape, dense_features, dense_unit, features

OUT = Path(cost_model.__file__).with_name("cost_model.json")
# Times that no plan would try count little: kernels are slow there in other ways. Chosen, not measured.
UNTRIED = 0.1
# What no kernel can cost: with few shapes, one term else stands for another. x and y are copied some times.
MOST = {"x and y": 8.0, "x again": 1.0}
# Microseconds that a call takes with next to nothing to do, of sparse and of dense ways. Measured on Zen 5
# with 64x64 and one token; without these limits, few small shapes leave it to chance.
SPARSE_CALL, DENSE_CALL = (3.4, math.inf), (1.9, 2.5)
SHAPES = [
    Shape(pass_tokens, vector, x_tokens, group, counts_bytes)
    for pass_tokens in (1, 2, 4, 8, 16, 32, 48, 64)
    for vector in (1, 4, 8, 16, 32)
    for x_tokens in (1, 4, 8)
    for group in (1, 4)
    for counts_bytes in (False, True)
    if vector <= pass_tokens or pass_tokens == 1
]
# Kernels of a unit that no machine at hand has: what they cost follows from the cycles counted at the heads
# of csrc/cpu/tilemap-inl.h and bsr_tiles-inl.h, and from the rates of the machine that is asked for.
# Expanding a tile of 512 weights takes 36 cycles once for up to 256 tokens; a product of tiles takes the unit
# 16 cycles for each 16 tokens, of which expansion hides about half. x is copied into tiles and read again.
# Bytes are those of the packing named; to them come waits for what the private caches do not hold.
COMPUTED: Mapping[str, Mapping[str, Any]] = {
    "spmm_tilemap_bf16_t16": {
        "shape": Shape(pass_tokens=256, vector_tokens=16, fills_zeros=True),
        "costs": {"call": 3.4, "far packing": 1.0, "x and y": 3.0, "positions": 30 / 512, "steps": 0.53},
        "bytes of": "spmm_bitmap_bf16_r1",
    },
    "spmm_bsr_bf16_r4": {
        "shape": Shape(pass_tokens=64, vector_tokens=16),
        "costs": {"call": 3.4, "packing": 1.0, "x and y": 3.0, "steps": 1.0},
        "bytes of": "spmm_bsr_bf16_r4",
    },
}


@dataclass(frozen=True)
class Sample:
    """One measured time. `name`: a kernel and its panel, or a dense way and its dtype."""

    name: str
    isa: str
    case: Case
    us: float
    nbytes: float
    unit: str
    speed: Rates
    is_tried: bool


def samples(runs: Sequence[Mapping[str, Any]]) -> tuple[list[Sample], list[Sample]]:
    """Those of kernels and those of dense ways."""
    kernels, dense = [], []
    for run in runs:
        units = {row.base_name: row.unit for row in ops.kernels() if row.isa == run["isa"]}
        speed, dense_speed = (rates_of(run[key]) for key in ("rates", "dense_rates"))
        for row in run["rows"]:
            case = Case(row["n"], row["k"], row["sparsity"], row["tokens"])
            for way, us in row["us"].items():
                nbytes = row["nbytes"][way]
                if way in row["kernels"]:
                    name, panel = row["kernels"][way]
                    full = f"{name}_p{panel}" if panel else name
                    tried = way in row["tried"]
                    kernels.append(Sample(full, run["isa"], case, us, nbytes, units[name], speed, tried))
                elif "block" not in row and "int8" not in row["kind"]:
                    # Dense ways do the same with any zeros, and were timed with those of other dtypes.
                    dtype = row["kind"].split()[1]
                    unit = dense_unit(dtype, dense_speed)
                    name = f"{dtype} {way}"
                    dense.append(Sample(name, "", case, us, nbytes, unit, dense_speed, True))
    return kernels, dense


def rates_of(text: Mapping[str, Any]) -> Rates:
    return Rates(**{**text, "reads": tuple(tuple(pair) for pair in text["reads"])})


def fitted(
    some: Sequence[Sample], rows: Sequence[Sequence[float]], names: Sequence[str]
) -> tuple[float, list[float]]:
    """Root mean square of the relative errors, and the costs of least squares, none of them negative."""
    from scipy.optimize import lsq_linear

    weights = np.array([1.0 if sample.is_tried else UNTRIED for sample in some])
    us = np.array([sample.us for sample in some])
    table = np.array(rows)
    least = [0.0] * len(names)
    most = [MOST.get(name, math.inf) for name in names]
    least[0], most[0] = DENSE_CALL if names is cost_model.DENSE_COSTS else SPARSE_CALL
    costs = lsq_linear(table * (weights / us)[:, None], weights, bounds=(least, most), method="bvls").x
    errors = np.log(np.maximum(table @ costs, 1e-3) / us)
    error = math.sqrt(np.average(errors**2, weights=weights**2))
    return error, [float(f"{max(cost, 0.0):.4g}") for cost in costs]


def kernel_row(some: Sequence[Sample], sparsities: Sequence[float]) -> dict[str, Any]:
    """The shape and costs of one kernel that fit its times best, and its bytes a weight by sparsity."""
    best: tuple[float, Shape, list[float]] | None = None
    for shape in SHAPES:
        rows = [features(s.case, shape, s.nbytes, s.unit, s.speed) for s in some]
        error, costs = fitted(some, rows, cost_model.COSTS)
        if best is None or error < best[0]:
            best = error, shape, costs
    assert best is not None
    by_sparsity: dict[float, list[float]] = defaultdict(list)
    for sample in some:
        by_sparsity[sample.case.sparsity].append(sample.nbytes / (sample.case.n * sample.case.k))
    # Bytes follow the zeros in a straight line: where a kernel was not timed they are between neighbours.
    timed = sorted(by_sparsity)
    means = np.interp(sparsities, timed, [geometric_mean(by_sparsity[sparsity]) for sparsity in timed])
    nbytes = [float(f"{mean:.4g}") for mean in means]
    return {"error": round(best[0], 3), "shape": asdict(best[1]), "costs": best[2], "bytes": nbytes}


def computed_row(name: str, tables: Mapping[str, Mapping[str, Any]]) -> dict[str, Any]:
    """One of COMPUTED, with bytes as the nearest level's packing has them."""
    row = COMPUTED[name]
    nbytes = next(t[row["bytes of"]]["bytes"] for t in reversed(tables.values()) if row["bytes of"] in t)
    costs = [round(row["costs"].get(cost, 0.0), 4) for cost in cost_model.COSTS]
    return {"computed": True, "shape": asdict(row["shape"]), "costs": costs, "bytes": nbytes}


def dense_row(some: Sequence[Sample], tokens: Sequence[int]) -> list[list[float]]:
    """Costs for each number of tokens."""
    by_tokens = {m: [sample for sample in some if sample.case.tokens == m] for m in tokens}
    return [
        fitted(
            alike, [dense_features(s.case, s.nbytes, s.unit, s.speed) for s in alike], cost_model.DENSE_COSTS
        )[1]
        for alike in by_tokens.values()
    ]


def fit(runs: Sequence[Mapping[str, Any]]) -> dict[str, Any]:
    kernels, dense = samples(runs)
    tokens = sorted({sample.case.tokens for sample in dense})
    sparsities = sorted({sample.case.sparsity for sample in kernels})
    tables: dict[str, dict[str, Any]] = defaultdict(dict)
    for (isa, name), some in grouped(kernels):
        tables[isa][name] = kernel_row(some, sparsities)
    tables["amx"] = {name: computed_row(name, tables) for name in COMPUTED}
    return {
        "machines": [run["machine"] for run in runs],
        "costs": cost_model.COSTS,
        "dense costs": cost_model.DENSE_COSTS,
        "tokens": tokens,
        "sparsities": sparsities,
        "dense": {name: dense_row(some, tokens) for (_, name), some in grouped(dense)},
        "kernels": tables,
    }


def grouped(some: Sequence[Sample]) -> Iterator[tuple[tuple[str, str], list[Sample]]]:
    def key(sample: Sample) -> tuple[str, str]:
        return sample.isa, sample.name

    for at, alike in itertools.groupby(sorted(some, key=key), key):
        yield at, list(alike)


def check(runs: Sequence[Mapping[str, Any]]) -> str:
    """How often the predicted winner is the measured one, and what it costs, by dtype and tokens.

    Candidates are those that plans try. A loss is the time of the predicted winner over the fastest one's.
    """
    losses: dict[str, list[float]] = defaultdict(list)
    right_kind: dict[str, list[bool]] = defaultdict(list)
    for run in runs:
        assert run["isa"] == ops.active_isa(), f"run it with SPARSEINFER_ISA={run['isa']}"
        for row in run["rows"]:
            left_out = row["kernels"].keys() - set(row["tried"])
            us = {way: us for way, us in row["us"].items() if way not in left_out}
            guess = {way: predicted(row, way) for way in us}
            chosen, fastest = (min(times, key=lambda way: times[way]) for times in (guess, us))
            for key in ("all", row["dtype"], f"{row['dtype']} m={row['tokens']}"):
                losses[key].append(us[chosen] / us[fastest])
                right_kind[key].append((chosen in row["tried"]) == (fastest in row["tried"]))
    lines = [f"{'':14} cells  fastest chosen  dense or sparse right  mean loss  worst"]
    for key, found in losses.items():
        right, kind = (sum(flags) / len(found) for flags in ([loss == 1 for loss in found], right_kind[key]))
        mean, worst = geometric_mean(found), max(found)
        lines.append(f"{key:14} {len(found):5}  {right:14.0%}  {kind:21.0%}  {mean:9.3f}  {worst:5.2f}")
    return "\n".join(lines)


def predicted(row: Mapping[str, Any], way: str) -> float:
    case = Case(row["n"], row["k"], row["sparsity"], row["tokens"])
    if way not in row["kernels"]:
        return cost_model.predict_dense(way, row["kind"].split()[1], case)
    name, panel = row["kernels"][way]
    return cost_model.predict_sparse(name, panel, ops.kernel_info(name).unit, case, ops.active_isa())


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawTextHelpFormatter)
    parser.add_argument("files", type=Path, nargs="+")
    parser.add_argument("--check", action="store_true")
    options = parser.parse_args()
    texts = [path.read_text(encoding="utf-8") for path in options.files]
    runs = [run for text in texts for run in json.loads(text)["runs"]]
    if options.check:
        sys.stdout.write(check(runs) + "\n")
    else:
        OUT.write_text(json.dumps(fit(runs), indent=1) + "\n", encoding="utf-8")


if __name__ == "__main__":
    main()
