"""The quantizers that can be selected by name."""

from __future__ import annotations

from sparseinfer.quantize.methods import Quantizer


def quantizers() -> dict[str, type[Quantizer]]:
    """Quantizers by name; call without arguments."""
    return Quantizer.by_name()
