"""Modules that take the place of torch's dense ones, and the layers that hold them."""

from __future__ import annotations

from sparseinfer.modules._packed import pack_groups
from sparseinfer.modules.attention import SparseMultiheadAttention
from sparseinfer.modules.chain import FoldedLayer
from sparseinfer.modules.conv import SparseConv1d, SparseConv2d
from sparseinfer.modules.dense import PrepackedLinear
from sparseinfer.modules.linear import SparseLinear
from sparseinfer.modules.pooling import ChannelsLastMaxPool2d
from sparseinfer.modules.recurrent import RecurrentCell, SparseGRU, SparseLSTM, SparseRNN
from sparseinfer.modules.shared import SharedInputLinear

__all__ = [
    "ChannelsLastMaxPool2d",
    "FoldedLayer",
    "PrepackedLinear",
    "RecurrentCell",
    "SharedInputLinear",
    "SparseConv1d",
    "SparseConv2d",
    "SparseGRU",
    "SparseLSTM",
    "SparseLinear",
    "SparseMultiheadAttention",
    "SparseRNN",
    "pack_groups",
]
