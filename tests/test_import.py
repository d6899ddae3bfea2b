"""What `import sparseinfer` loads: nothing that takes long and that only some calls need."""

from __future__ import annotations

import subprocess
import sys

import pytest
import torch

# The compiler takes a second, rich a tenth of one; bench/import_time.py measures them.
HEAVY = ("torch._dynamo", "rich", "scipy", "transformers", "matplotlib")


@pytest.mark.parametrize("package", HEAVY)
def test_loads_no_heavy_package(package: str) -> None:
    code = (
        f"import sys, torch; before = {package!r} in sys.modules; import sparseinfer;"
        f"print(before or {package!r} not in sys.modules)"
    )
    shown = subprocess.run([sys.executable, "-c", code], check=True, capture_output=True, text=True).stdout
    assert shown.strip() == "True"


def test_constants_of_graphs_are_marked_as_torch_does() -> None:
    """The mark is set by hand, because the decorator loads the compiler."""
    from sparseinfer.modules import _tracing

    @torch.compiler.assume_constant_result
    def marked() -> None: ...

    assert vars(marked).items() <= vars(_tracing._constant).items()
    assert vars(marked)
