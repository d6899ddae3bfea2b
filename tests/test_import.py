"""What `import sparseinfer` loads: nothing that takes long and that only some calls need."""

from __future__ import annotations

import subprocess
import sys

import torch

from sparseinfer.modules import _tracing

# The compiler takes a second, rich a tenth of one; bench/import_time.py measures them.
HEAVY = ("torch._dynamo", "rich", "scipy", "transformers", "matplotlib")


def test_loads_no_heavy_package() -> None:
    code = "import sys, torch; before = set(sys.modules); import sparseinfer; print(*{*sys.modules} - before)"
    shown = subprocess.run([sys.executable, "-c", code], check=True, capture_output=True, text=True).stdout
    loaded = set(shown.split())
    assert "sparseinfer.convert" in loaded
    assert not loaded & set(HEAVY)


def test_constants_of_graphs_are_marked_as_torch_does() -> None:
    """The mark is set by hand, because the decorator loads the compiler."""

    @torch.compiler.assume_constant_result
    def marked() -> None: ...

    assert vars(marked).items() <= vars(_tracing._constant).items()
    assert vars(marked)
