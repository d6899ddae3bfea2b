"""Portable sparse formats: what files, `state_dict` and `to_dense()` speak. Checked whenever one is made."""

from __future__ import annotations

from sparseinfer.formats.bsr import BSR
from sparseinfer.formats.csr import CSR

__all__ = ["BSR", "CSR"]
