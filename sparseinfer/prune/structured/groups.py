"""Groups: units of a model, alike, that can be removed one by one, each with all its slices of weights."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass

import numpy as np
import numpy.typing as npt
from torch import nn

from sparseinfer.prune.structured.kinds import output_axis
from sparseinfer.prune.structured.labels import Solution
from sparseinfer.prune.structured.tracing import CHANNELS, HEADS, SLICED, UNCHECKED, WIDTH, Trace

NEURONS = "neurons"
Ints = npt.NDArray[np.int64]


@dataclass(frozen=True)
class Member:
    """An axis of a weight, and for each unit of a group the indices of it that go with the unit.

    weight   its name in the model
    indices  [units, indices of each]
    reads    whether a product with the weight sums over the axis
    """

    weight: str
    axis: int
    indices: Ints
    reads: bool = False


@dataclass(frozen=True)
class Group:
    """name     of the weight that makes the units, the first of the model that has them as rows
    kind     heads, neurons, channels or width
    members  all that is sliced
    labels   [units]: the label of each unit, for its work
    is_exact whether the units go without a trace if all weights that read them are zero
    is_sliced whether a forward takes a part of an axis of them
    """

    name: str
    kind: str
    members: tuple[Member, ...]
    labels: Ints
    is_exact: bool
    is_sliced: bool

    @property
    def size(self) -> int:
        return len(self.labels)

    @property
    def maker(self) -> str:
        """The module of the weight that makes the units."""
        return self.name.rpartition(".")[0]

    @property
    def modules(self) -> set[str]:
        """Those that have a part of the units."""
        return {member.weight.rpartition(".")[0] for member in self.members}


@dataclass(frozen=True)
class Refused:
    """Rows of a weight that cannot go, and why."""

    name: str
    reason: str


def groups_of(model: nn.Module, trace: Trace, solution: Solution) -> tuple[list[Group], list[Refused]]:
    """The groups in the order of the model, and the weights of which no row can be removed."""
    found: dict[int, list[tuple[str, int, Ints]]] = {}
    refused: dict[str, str] = {}
    for name, (_, axes) in trace.weights.items():
        for i, axis in enumerate(axes):
            if axis is None:
                continue
            free = np.flatnonzero(solution.pinned[axis] < 0)
            if not free.size and _makes(model, Member(name, i, np.zeros((0, 0), np.int64))):
                refused[name] = solution.reasons[solution.pinned[axis[0]]]
            roots = solution.root[axis[free]]
            order = np.argsort(roots, kind="stable")
            borders = np.flatnonzero(np.diff(roots[order])) + 1
            for indices in np.split(free[order], borders):
                if indices.size:
                    found.setdefault(int(solution.root[axis[indices[0]]]), []).append((name, i, indices))
    alike: dict[object, list[int]] = {}
    for root, parts in found.items():
        key = tuple((name, i, len(indices)) for name, i, indices in parts)
        alike.setdefault(key, []).append(root)
    groups = [_group(model, roots, found, solution, trace) for roots in alike.values()]
    used = {label for work in trace.works for axis in work.axes for label in solution.root[axis].tolist()}
    groups = [group for group in groups if group.size > 1 and used & set(group.labels.tolist())]
    for group in groups:
        if group.is_sliced and not group.is_exact:
            refused[group.name] = (
                "a part of it is taken by numbers that may not change, and a norm is over it"
            )
    groups = [group for group in groups if group.name not in refused]
    return groups, [Refused(name, reason) for name, reason in refused.items()]


def _group(
    model: nn.Module,
    roots: list[int],
    found: Mapping[int, list[tuple[str, int, Ints]]],
    solution: Solution,
    trace: Trace,
) -> Group:
    # Units in the order of their first index.
    roots = sorted(roots, key=lambda root: found[root][0][2][0])
    members = tuple(
        Member(
            name,
            axis,
            np.stack([found[root][at][2] for root in roots]),
            (id(trace.weights[name][0]), axis) in trace.reads,
        )
        for at, (name, axis, _) in enumerate(found[roots[0]])
    )
    tags = {tag for tag, has in solution.tags.items() if has[roots].any()}
    kind = next((tag for tag in (HEADS, WIDTH, CHANNELS) if tag in tags), NEURONS)
    makers = [member.weight for member in members if _makes(model, member)]
    return Group(
        (makers or [members[0].weight])[0],
        kind,
        members,
        np.array(roots, np.int64),
        is_exact=kind != WIDTH and UNCHECKED not in tags and any(member.reads for member in members),
        is_sliced=SLICED in tags,
    )


def _makes(model: nn.Module, member: Member) -> bool:
    owner, _, name = member.weight.rpartition(".")
    return output_axis(model.get_submodule(owner), name) == member.axis
