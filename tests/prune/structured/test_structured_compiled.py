"""Pruned models compile and export as dense ones do."""

from __future__ import annotations

from typing import Any

import pytest
import torch
from structured_models import FAMILIES, family
from test_structured_exact import first

from sparseinfer._running import call, run
from sparseinfer.prune.structured import prune_structured_

# torch says this about itself when inductor is loaded.
pytestmark = pytest.mark.filterwarnings("ignore:`torch.jit:DeprecationWarning")

# Their outputs have a cache unless they are told not to.
CACHING = ("gpt2", "llama", "t5", "whisper")


@pytest.mark.parametrize("name", FAMILIES)
def test_pruned_models_compile(name: str) -> None:
    model, inputs = family(name)
    prune_structured_(model, inputs, ratio=0.3)
    expected = first(run(model, inputs))
    torch._dynamo.reset()
    compiled = torch.compile(model, backend="inductor" if name == "densenet" else "eager")
    with torch.no_grad():
        assert torch.allclose(first(call(compiled, inputs)), expected, atol=1e-5)


@pytest.mark.parametrize("name", FAMILIES)
def test_pruned_models_export(name: str) -> None:
    model, inputs = family(name)
    prune_structured_(model, inputs, ratio=0.3)
    expected = first(run(model, inputs))
    args, kwargs = ((), dict(inputs)) if isinstance(inputs, dict) else (inputs, {})
    kwargs |= {"use_cache": False} if name in CACHING else {}
    with torch.no_grad():
        exported: Any = torch.export.export(model, args, kwargs).module()
        assert torch.allclose(first(exported(*args, **kwargs)), expected, atol=1e-5)


@pytest.mark.parametrize("name", ["gpt2", "t5"])
def test_caches_cannot_be_exported_of_dense_models_either(name: str) -> None:
    model, inputs = family(name)
    args, kwargs = ((), dict(inputs)) if isinstance(inputs, dict) else (inputs, {})
    with torch.no_grad(), pytest.raises(RuntimeError, match="Cache'> in output, which is not a known type"):
        torch.export.export(model, args, kwargs)
