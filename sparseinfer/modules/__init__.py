"""The modules that replace torch's dense layers in a converted model, and their parts."""

from __future__ import annotations

from sparseinfer.modules.attention import SparseMultiheadAttention
from sparseinfer.modules.chain import FoldedLayer
from sparseinfer.modules.conv import SparseConv1d, SparseConv2d
from sparseinfer.modules.groups import pack_groups
from sparseinfer.modules.int8 import Int8Linear
from sparseinfer.modules.linear import SparseLinear
from sparseinfer.modules.pooling import ChannelsLastMaxPool2d
from sparseinfer.modules.prepacked import PrepackedLinear
from sparseinfer.modules.recurrent import RecurrentCell, SparseGRU, SparseLSTM, SparseRNN
from sparseinfer.modules.semi_structured import SemiStructuredLinear
from sparseinfer.modules.shared import SharedInputLinear
from sparseinfer.modules.sparse_or_dense import SparseOrDenseLinear

__all__ = [
    "ChannelsLastMaxPool2d",
    "FoldedLayer",
    "Int8Linear",
    "PrepackedLinear",
    "RecurrentCell",
    "SemiStructuredLinear",
    "SharedInputLinear",
    "SparseConv1d",
    "SparseConv2d",
    "SparseGRU",
    "SparseLSTM",
    "SparseLinear",
    "SparseMultiheadAttention",
    "SparseOrDenseLinear",
    "SparseRNN",
    "pack_groups",
]
