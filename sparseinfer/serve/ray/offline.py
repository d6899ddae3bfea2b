"""Ray Data: a predictor over a data set, in several processes of each node."""

from __future__ import annotations

from typing import Any

import numpy as np

from sparseinfer.serve.ray.shared import Load, shared


class Offline:
    """For `Dataset.map_batches`: adds a column of outputs to each batch.

    ds.map_batches(Offline, fn_constructor_args=(load, "folder"), concurrency=2, num_cpus=2, batch_size=64)
    """

    def __init__(self, load: Load, path: str, input: str = "input", output: str = "output") -> None:
        """input, output: names of columns; load, path: as in `shared`."""
        self._predict = shared(load, path, f"offline {path}")
        self._input, self._output = input, output

    def __call__(self, batch: dict[str, Any]) -> dict[str, Any]:
        """batch: arrays by column. KeyError: no such column."""
        outputs = self._predict(list(batch[self._input]))
        if len(outputs) != len(batch[self._input]):
            raise ValueError(f"outputs: expected {len(batch[self._input])}, got {len(outputs)}")
        return {**batch, self._output: np.asarray(outputs)}
