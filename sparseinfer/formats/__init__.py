"""Portable sparse formats, CSR and BSR, as stored in `state_dict`; validated whenever one is made."""

from __future__ import annotations

from sparseinfer.formats.bsr import BSR
from sparseinfer.formats.csr import CSR

__all__ = ["BSR", "CSR"]
