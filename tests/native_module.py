"""A pytest plug-in: `-p native_module` tests the `_core` that SPARSEINFER_NATIVE_MODULE names, a file."""

from __future__ import annotations

import importlib.util
import os
import sys

_spec = importlib.util.spec_from_file_location("sparseinfer._core", os.environ["SPARSEINFER_NATIVE_MODULE"])
assert _spec is not None
assert _spec.loader is not None
_core = importlib.util.module_from_spec(_spec)
sys.modules["sparseinfer._core"] = _core
_spec.loader.exec_module(_core)
