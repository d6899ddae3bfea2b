"""Collects statistics of layer inputs while a model runs; layers with the same input share their sums."""

from __future__ import annotations

import copy
import weakref
from collections.abc import Mapping
from types import TracebackType
from typing import Any

import torch
from torch import Tensor, nn

from sparseinfer.prune.calibration.statistics import CalibrationStats
from sparseinfer.prune.calibration.sums import Sums
from sparseinfer.prune.layers.layer import Layer


class Collector:
    """Sums the inputs of layers during the model's runs in this context.

    Linear layers that are called consecutively with the same tensor in the first run, such as q, k and v,
    share their sums. If they get different tensors in a later run, each continues with its own.
    """

    def __init__(self, layers: Mapping[str, Layer], *, gram: bool, ranges: bool = False) -> None:
        self._layers = layers
        self._gram = gram
        self._ranges = ranges
        self._streams: dict[str, _Stream] = {}
        self._latest: _Stream | None = None
        self._handles: list[Any] = []

    def __enter__(self) -> Collector:
        for layer in self._layers.values():
            if layer.is_seen:
                self._handles.append(layer.called.register_forward_hook(self._hook(layer), with_kwargs=True))
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        for handle in self._handles:
            handle.remove()

    def end_of_run(self) -> None:
        """Call this after every run of the model: layers that have not read the last tensor never will."""
        for stream in set(self._streams.values()):
            self._settle(stream)
        self._latest = None

    def stats(self) -> CalibrationStats:
        """Statistics of the layers whose inputs can be recorded. ValueError names layers never called."""
        seen = [fqn for fqn, layer in self._layers.items() if layer.is_seen]
        if missing := [fqn for fqn in seen if fqn not in self._streams]:
            names = ", ".join(map(repr, missing[:3])) + (
                f" and {len(missing) - 3} more" if missing[3:] else ""
            )
            hint = "name them in ignore= to leave them dense"
            raise ValueError(f"batches: expected to reach every layer, got no input of {names} ({hint})")
        return CalibrationStats({fqn: self._streams[fqn].sums.stats() for fqn in seen})

    def _hook(self, layer: Layer) -> Any:
        def hook(module: nn.Module, args: tuple[Any, ...], kwargs: dict[str, Any], output: Any) -> None:
            with torch.no_grad():
                self._read(layer, layer.inputs(args, kwargs))

        return hook

    def _read(self, layer: Layer, x: Tensor) -> None:
        stream = self._streams.get(layer.fqn)
        if stream is None:
            if self._latest is None or not self._latest.began_with(layer, x):
                sums = Sums(layer, x, gram=self._gram, ranges=self._ranges)
                self._latest = _Stream(layer, x, sums)
            self._latest.readers.add(layer.fqn)
            self._streams[layer.fqn] = self._latest
            return
        if stream.pending is not x or layer.fqn in stream.read_by:
            self._settle(stream)
            stream = self._streams[layer.fqn]
        stream.read(layer, x)
        self._latest = stream

    def _settle(self, stream: _Stream) -> None:
        """A stream of their own for layers that have read a tensor which the others were not given."""
        if stream.pending is not None:
            other = stream.split()
            self._streams.update(dict.fromkeys(other.readers, other))


class _Stream:
    """The tensors that one or several layers read, summed up once for all of them.

    readers  names of these layers
    pending  the latest tensor, which is added to the sums once all readers have read it
    read_by  names of those who have
    """

    def __init__(self, layer: Layer, x: Tensor, sums: Sums) -> None:
        self.sums = sums
        self.sums.add(x)
        self.readers: set[str] = set()
        self.read_by: set[str] = set()
        self.pending: Tensor | None = None
        self._is_conv = layer.is_conv
        self._version = _version(x)
        self._only: weakref.ref[Tensor] | None = weakref.ref(x)

    def began_with(self, layer: Layer, x: Tensor) -> bool:
        """Whether a layer that was never called before may join: x is all that was read so far."""
        same = self._only is not None and self._only() is x and self._version == _version(x)
        return same and not layer.is_conv and not self._is_conv

    def read(self, layer: Layer, x: Tensor) -> None:
        if self.pending is None:
            self.pending, self._version, self._only = x, _version(x), None
        self.read_by.add(layer.fqn)
        if self.read_by == self.readers:
            self._add_pending()

    def split(self) -> _Stream:
        """A new stream for the layers that have read the pending tensor, which this one then drops."""
        other = copy.copy(self)
        other.sums = self.sums.copy()
        other.readers = self.read_by
        other._add_pending()
        self.readers, self.read_by, self.pending = self.readers - self.read_by, set(), None
        return other

    def _add_pending(self) -> None:
        assert self.pending is not None
        if _version(self.pending) != self._version:
            names = ", ".join(map(repr, sorted(self.readers)))
            raise RuntimeError(f"{names}: expected an input that stays as it is, got one changed in place")
        self.sums.add(self.pending)
        self.read_by, self.pending = set(), None


def _version(x: Tensor) -> int:
    """How often it was written in place; inference tensors do not count."""
    return 0 if x.is_inference() else x._version
