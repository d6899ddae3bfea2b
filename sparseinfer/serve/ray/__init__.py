"""Ray Serve and Ray Data: a converted model on many machines, with one copy of its weights on each.

    from ray import serve
    from sparseinfer.serve.ray import application

    serve.run(application(load, "folder", num_replicas=2, ray_actor_options={"num_cpus": 2}))

`load(path)` returns a predictor: a function from a list of inputs to as many outputs, together with all that
it needs, such as a converted model and a tokenizer. docs/engines.md shows one.
"""

from __future__ import annotations

from sparseinfer.serve.ray.deployment import Replica, application
from sparseinfer.serve.ray.offline import Offline
from sparseinfer.serve.ray.shared import Load, Predictor, shared

__all__ = ["Load", "Offline", "Predictor", "Replica", "application", "shared"]
