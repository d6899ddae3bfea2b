"""Portable sparse formats, as stored in `state_dict` and in files; validated whenever one is made."""

from __future__ import annotations

from sparseinfer.formats.bitmap import Bitmap
from sparseinfer.formats.bsr import BSR
from sparseinfer.formats.csr import CSR
from sparseinfer.formats.nm import NM

__all__ = ["BSR", "CSR", "NM", "Bitmap"]
