"""One copy of a model for all processes of a node, in the node's object store.

Packings are made once per node, by a process that ends afterwards; whoever asks for the same model maps them.
A named actor on each node, the shelf, keeps the latest model of a deployment. It asks nothing of other nodes,
so that none depends on another one's life.
"""

from __future__ import annotations

import hashlib
import time
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any, TypeAlias

import ray
from ray import cloudpickle
from ray.exceptions import ActorDiedError, ActorUnavailableError
from ray.util.scheduling_strategies import NodeAffinitySchedulingStrategy

from sparseinfer.serve.ray.frozen import Frozen, freeze, thaw

# From inputs to as many outputs, in order. ValueError and TypeError say that an input is wrong.
Predictor: TypeAlias = Callable[[list[Any]], Sequence[Any]]
# Makes it from the path of a file or folder; both are pickled.
Load: TypeAlias = Callable[[str], Predictor]

# A shelf ends with the process that made it, so that nothing is left behind; another is made then.
_ATTEMPTS, _PAUSE_S = 5, 0.5


def shared(load: Load, path: str, name: str) -> Predictor:
    """What load(path) returns; its tensors are pages that all processes of this node share: do not write.

    name   of the deployment. Only its latest model is kept, for those who come later; a model that somebody
           still uses stays as long
    path   what lies there is read again if it has been replaced since, by `os.replace` or another folder

    What `load` raises is raised here as ray.exceptions.RayTaskError.
    """
    node = ray.get_runtime_context().get_node_id()
    # Of a deployment whose `load` changes, old and new replicas run beside each other for a while.
    code = hashlib.sha256(cloudpickle.dumps(load)).hexdigest()[:16]
    here = NodeAffinitySchedulingStrategy(node, soft=False)
    for attempt in range(_ATTEMPTS):
        shelf = _ShelfActor.options(
            name=f"sparseinfer:{name}:{code}:{node}", get_if_exists=True, scheduling_strategy=here
        ).remote()
        try:
            # In a list, or Ray would pass the object instead of the reference on.
            (reference,) = ray.get(shelf.model.remote(load, str(path)))
            return thaw(ray.get(reference))
        except (ActorDiedError, ActorUnavailableError, ray.exceptions.ObjectLostError):
            if attempt == _ATTEMPTS - 1:
                raise
            time.sleep(_PAUSE_S)
    raise AssertionError("unreachable")


class _Shelf:
    def __init__(self) -> None:
        self._key: tuple[Any, ...] | None = None
        self._reference: Any = None

    def model(self, load: Load, path: str) -> list[Any]:
        key = (path, _state_of(Path(path)))
        if key != self._key:
            here = NodeAffinitySchedulingStrategy(ray.get_runtime_context().get_node_id(), soft=False)
            reference = _packed.options(scheduling_strategy=here).remote(load, path)
            ray.get(reference)  # raises what load raised; that is not kept
            self._key, self._reference = key, reference
        return [self._reference]


_ShelfActor: Any = ray.remote(num_cpus=0)(_Shelf)


@ray.remote(num_cpus=0, max_calls=1, max_retries=0)
def _packed(load: Load, path: str) -> Frozen:
    return freeze(load(path))


def _state_of(path: Path) -> tuple[Any, ...]:
    """What changes when a file, or a file in a folder, is replaced or written to."""
    files = sorted(path.iterdir()) if path.is_dir() else [path] if path.exists() else []
    stats = [(file.name, file.stat()) for file in files]
    return tuple((name, stat.st_ino, stat.st_mtime_ns, stat.st_size) for name, stat in stats)
